//! What the agent answers.

use crate::codec::{List, messages, record};
use crate::types::{MechanismInfo, TokenInfo};
use crate::{AttributeAnswer, Data, REASON_BYTES_MAX, Ticket};

record! {
    /// A refusal, or a failure.
    Refusal<'a> {
        /// CK_RV. Never CKR_OK.
        code: u64,
        /// Milliseconds after which the same request may succeed (a device that is coming up, a busy
        /// ledger); 0 where trying again has no point.
        retry_ms: u32,
        /// One sentence for people, lower case, without secrets; may be empty.
        reason: &'a str,
    }
}

impl<'a> Refusal<'a> {
    /// A refusal that is final. A reason over [`REASON_BYTES_MAX`] is cut.
    #[must_use]
    pub fn new(code: u64, reason: &'a str) -> Self {
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        Self { code, retry_ms: 0, reason: reason.get(..end).unwrap_or_default() }
    }
}

record! {
    /// Answer to the first request of a connection.
    Hello<'a> {
        /// The version both will speak on this connection.
        version: u16,
        /// Whether the ticket of the request was accepted: object handles and logins go on.
        resumed: bool,
        /// Random number of this run of the agent. When it changes, object versions, operations in parts
        /// and handles of session objects have lost their meaning.
        instance: u64,
        /// The application's ticket from now on.
        ticket: Ticket<'a>,
        /// The agent's version, `1.2.3`.
        agent_version: &'a str,
    }
}

record! {
    /// All tokens.
    Tokens<'a> {
        /// By ascending slot id.
        tokens: List<'a, TokenInfo<'a>>,
    }
}

record! {
    /// What works on a token.
    Mechanisms<'a> {
        /// Without digests, which the module makes.
        mechanisms: List<'a, MechanismInfo>,
    }
}

record! {
    /// The login state changed, and the ticket with it.
    TicketChanged<'a> {
        /// The application's ticket from now on; empty: as before.
        ticket: Ticket<'a>,
    }
}

record! {
    /// Objects that match.
    Found<'a> {
        /// Whether there are more above the last.
        more: bool,
        /// Handles, ascending.
        handles: List<'a, u64>,
    }
}

record! {
    /// Attributes of one object.
    Attributes<'a> {
        /// In the order of the request; of [`crate::Request::Object`], by ascending type.
        attributes: List<'a, AttributeAnswer<'a>>,
    }
}

record! {
    /// A new object.
    Created {
        /// Its handle.
        object: u64,
    }
}

record! {
    /// A new key pair.
    CreatedPair {
        /// Handle of the public key.
        public: u64,
        /// Handle of the private key.
        private: u64,
    }
}

record! {
    /// C_GetObjectSize.
    Size {
        /// Bytes.
        bytes: u64,
    }
}

record! {
    /// What an operation gave.
    Output<'a> {
        /// The output, where the request's [`crate::Place`] wanted it.
        data: Data<'a>,
        /// The nonce that was made, for message kinds; empty otherwise.
        iv: &'a [u8],
        /// The tag, for [`crate::Kind::MessageEncrypt`]; empty otherwise.
        tag: &'a [u8],
    }
}

impl<'a> Output<'a> {
    /// Plain output.
    #[must_use]
    pub fn new(data: Data<'a>) -> Self {
        Self { data, iv: &[], tag: &[] }
    }
}

record! {
    /// An encapsulated key.
    Encapsulated<'a> {
        /// Handle of the new key.
        object: u64,
        /// The ciphertext for the other side.
        ciphertext: &'a [u8],
    }
}

record! {
    /// An operation in parts.
    Begun {
        /// Its number, unique within this run of the agent; never 0.
        operation: u64,
    }
}

record! {
    /// A synthetic IV.
    Iv<'a> {
        /// The IV.
        iv: &'a [u8],
        /// What happened, as JSON, if it was asked for; empty otherwise.
        explanation: &'a str,
    }
}

record! {
    /// A large buffer; its file descriptor comes with the frame.
    LargeBuffer {
        /// Its size, bytes: at least what was asked.
        size: u64,
    }
}

record! {
    /// JSON text.
    Json<'a> {
        /// JSON.
        json: &'a str,
    }
}

messages! {
    /// An answer's body by its code. Which request is answered by which is told at [`crate::Request`]; each
    /// may be answered by [`Response::Refused`].
    Response<'a>,
    /// Codes of answers.
    Answer, "answer" {
        /// Not done.
        Refused(Refusal<'a>) = 1,
        /// Done, and nothing to tell.
        Done = 2,
        /// To Hello.
        Hello(Hello<'a>) = 3,
        /// To Tokens.
        Tokens(Tokens<'a>) = 4,
        /// To Mechanisms.
        Mechanisms(Mechanisms<'a>) = 5,
        /// To Login, Logout, CloseAllSessions.
        Ticket(TicketChanged<'a>) = 6,
        /// To FindObjects.
        Found(Found<'a>) = 7,
        /// To Object and Attributes.
        Attributes(Attributes<'a>) = 8,
        /// To what makes one object.
        Created(Created) = 9,
        /// To GenerateKeyPair.
        CreatedPair(CreatedPair) = 10,
        /// To ObjectSize.
        Size(Size) = 11,
        /// To operations.
        Output(Output<'a>) = 12,
        /// To Encapsulate.
        Encapsulated(Encapsulated<'a>) = 13,
        /// To Begin.
        Begun(Begun) = 14,
        /// To Iv.
        Iv(Iv<'a>) = 15,
        /// To LargeBuffer.
        LargeBuffer(LargeBuffer) = 16,
        /// To Manage, at the end.
        Managed(Json<'a>) = 17,
        /// To Manage, before the end: what is being done.
        Progress(Json<'a>) = 18,
    }
}
