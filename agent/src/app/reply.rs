//! Answers, before they are bytes: what handlers return, and how it becomes a frame.

use std::sync::Arc;

use mayfly_secmem::SecretBytes;
use mayfly_wire::{
    AttributeAnswer, AttributeState, Data, FrameBuf, FrameError, List, Opaque, Refusal, Response, ResponseFlags,
    Ticket, header, response, types,
};

use super::ck::CKR_DEVICE_MEMORY;
use super::fail::Fail;

/// What a request gave.
#[derive(Debug)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// To Hello.
    Hello {
        /// Version to speak.
        version: u16,
        /// Whether logins went on.
        resumed: bool,
        /// This run of the agent.
        instance: u64,
        /// The application's ticket.
        ticket: Vec<u8>,
    },
    /// All tokens.
    Tokens(Vec<TokenLine>),
    /// What works.
    Mechanisms(Arc<[types::MechanismInfo]>),
    /// A new ticket.
    Ticket(Vec<u8>),
    /// Handles.
    Found {
        /// Whether there are more.
        more: bool,
        /// Ascending.
        handles: Vec<u64>,
    },
    /// Attributes of one object.
    Attributes(Vec<AttributeLine>),
    /// A new object.
    Created(u64),
    /// A new key pair.
    CreatedPair {
        /// Handle of the public key.
        public: u64,
        /// Handle of the private key.
        private: u64,
    },
    /// Size of an object, bytes.
    Size(u64),
    /// So many bytes of the connection's output, in the frame.
    Output(usize),
    /// So many bytes at an offset of the shared buffer.
    SharedOutput {
        /// Where they begin.
        offset: u64,
        /// How many.
        length: u64,
    },
    /// A new operation in parts.
    Begun(u64),
    /// An IV.
    Iv {
        /// The IV.
        iv: Vec<u8>,
        /// JSON, or nothing.
        explanation: String,
    },
    /// A shared buffer of this size, whose descriptor goes along.
    LargeBuffer(u64),
    /// JSON.
    Managed(String),
}

/// A token, with text of its own.
#[derive(Debug)]
pub struct TokenLine {
    /// All but the text.
    pub info: types::TokenInfo<'static>,
    /// Label.
    pub label: String,
    /// Serial number.
    pub serial: String,
}

/// One attribute.
#[derive(Debug)]
pub struct AttributeLine {
    /// Its type.
    pub kind: u64,
    /// Its value, or why there is none.
    pub value: AttributeValue,
}

/// The value of one attribute.
#[derive(Debug)]
pub enum AttributeValue {
    /// Public.
    Public(Vec<u8>),
    /// Secret, shown because its attributes allow it.
    Secret(Arc<SecretBytes>),
    /// Never shown.
    Sensitive,
    /// No such attribute.
    Absent,
    /// Can be asked for.
    OnRequest,
}

impl AttributeLine {
    fn as_answer(&self) -> AttributeAnswer<'_> {
        let state = match &self.value {
            AttributeValue::Public(value) => AttributeState::Value(Opaque(value)),
            AttributeValue::Secret(value) => AttributeState::Value(Opaque(value.expose())),
            AttributeValue::Sensitive => AttributeState::Sensitive,
            AttributeValue::Absent => AttributeState::Absent,
            AttributeValue::OnRequest => AttributeState::OnRequest,
        };
        AttributeAnswer { kind: self.kind, state }
    }

    fn bytes(&self) -> usize {
        match &self.value {
            AttributeValue::Public(value) => value.len(),
            AttributeValue::Secret(value) => value.len(),
            AttributeValue::Sensitive | AttributeValue::Absent | AttributeValue::OnRequest => 0,
        }
    }
}

/// What stands before an answer's body.
#[derive(Debug, Clone, Copy, Default)]
pub struct Head {
    /// The request's number.
    pub request_id: u64,
    /// Version of the objects of the token that the request named.
    pub object_version: u64,
    /// Login state and the like.
    pub flags: ResponseFlags,
}

/// Makes the frame of an answer and gives it to `send`. `output` is the connection's output memory.
///
/// # Errors
/// What `send` says; an answer that does not fit a frame.
pub fn send(
    outcome: &Result<Reply, Fail>,
    output: &[u8],
    head: Head,
    frame: &mut FrameBuf,
    send: impl FnOnce(&[u8]) -> std::io::Result<()>,
) -> Result<(), FrameError> {
    let answer = match outcome {
        Err(fail) => Response::Refused(Refusal { retry_ms: fail.retry_ms, ..Refusal::new(fail.code, &fail.reason) }),
        Ok(Reply::Attributes(lines)) => return send_attributes(lines, head, frame, send),
        Ok(Reply::Tokens(lines)) => {
            let tokens: Vec<_> = lines
                .iter()
                .map(|line| types::TokenInfo { label: &line.label, serial: &line.serial, ..line.info })
                .collect();
            let answer = Response::Tokens(response::Tokens { tokens: List::from(&tokens[..]) });
            return encode(&answer, head, frame, send);
        }
        Ok(reply) => plain(reply, output),
    };
    encode(&answer, head, frame, send)
}

fn plain<'r>(reply: &'r Reply, output: &'r [u8]) -> Response<'r> {
    match reply {
        Reply::Done | Reply::Attributes(_) | Reply::Tokens(_) => Response::Done,
        Reply::Hello { version, resumed, instance, ticket } => Response::Hello(response::Hello {
            version: *version,
            resumed: *resumed,
            instance: *instance,
            ticket: Ticket(ticket),
            agent_version: env!("CARGO_PKG_VERSION"),
        }),
        Reply::Mechanisms(list) => Response::Mechanisms(response::Mechanisms { mechanisms: List::from(&list[..]) }),
        Reply::Ticket(ticket) => Response::Ticket(response::TicketChanged { ticket: Ticket(ticket) }),
        Reply::Found { more, handles } => {
            Response::Found(response::Found { more: *more, handles: List::from(&handles[..]) })
        }
        Reply::Created(object) => Response::Created(response::Created { object: *object }),
        Reply::CreatedPair { public, private } => {
            Response::CreatedPair(response::CreatedPair { public: *public, private: *private })
        }
        Reply::Size(bytes) => Response::Size(response::Size { bytes: *bytes }),
        Reply::Output(length) => {
            let data = Data::inline(output.get(..*length).unwrap_or_default());
            Response::Output(response::Output::new(data))
        }
        Reply::SharedOutput { offset, length } => {
            Response::Output(response::Output::new(Data::Shared { offset: *offset, length: *length }))
        }
        Reply::Begun(operation) => Response::Begun(response::Begun { operation: *operation }),
        Reply::Iv { iv, explanation } => Response::Iv(response::Iv { iv, explanation }),
        Reply::LargeBuffer(size) => Response::LargeBuffer(response::LargeBuffer { size: *size }),
        Reply::Managed(json) => Response::Managed(response::Json { json }),
    }
}

fn encode(
    answer: &Response<'_>,
    head: Head,
    frame: &mut FrameBuf,
    send: impl FnOnce(&[u8]) -> std::io::Result<()>,
) -> Result<(), FrameError> {
    let bytes = match frame.response(head.request_id, head.object_version, head.flags, answer) {
        Err(FrameError::TooLong(_)) => {
            let refusal = Refusal::new(CKR_DEVICE_MEMORY, "the answer is longer than a frame; ask for less at once");
            frame.response(head.request_id, head.object_version, head.flags, &Response::Refused(refusal))?
        }
        other => other?,
    };
    Ok(send(bytes)?)
}

/// Attributes with a secret among them are encoded in secret memory.
fn send_attributes(
    lines: &[AttributeLine],
    head: Head,
    frame: &mut FrameBuf,
    send: impl FnOnce(&[u8]) -> std::io::Result<()>,
) -> Result<(), FrameError> {
    let answers: Vec<_> = lines.iter().map(AttributeLine::as_answer).collect();
    let answer = Response::Attributes(response::Attributes { attributes: List::from(&answers[..]) });
    if !lines.iter().any(|line| matches!(line.value, AttributeValue::Secret(_))) {
        return encode(&answer, head, frame, send);
    }
    let room = mayfly_wire::HEADER_BYTES + 16 + lines.iter().map(|line| line.bytes() + 16).sum::<usize>();
    let mut used = 0;
    let memory = SecretBytes::new_with(room.min(mayfly_secmem::SECRET_BYTES_MAX), |memory| {
        let encoded = header::encode_response_into(memory, head.request_id, head.object_version, head.flags, &answer);
        used = encoded.unwrap_or(usize::MAX);
    });
    match memory.as_ref().ok().and_then(|memory| memory.expose().get(..used)) {
        Some(bytes) => Ok(send(bytes)?),
        None => {
            let refusal = Refusal::new(CKR_DEVICE_MEMORY, "no secret memory for these attributes together");
            encode(&Response::Refused(refusal), head, frame, send)
        }
    }
}
