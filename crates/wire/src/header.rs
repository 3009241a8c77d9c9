//! The 32 bytes before every body, and the making of whole frames.

use zeroize::{Zeroize, Zeroizing};

use crate::codec::{Field, Reader, Writer, wipe};
use crate::{
    BODY_BYTES_MAX, DecodeError, FRAME_BYTES_MAX, FrameError, HEADER_BYTES, Op, PROTOCOL_VERSION, Request, Response,
    TICKET_BYTES_MAX, Ticket, response::Answer,
};

/// First two bytes of a request's header after its length.
const REQUEST_MARK: u16 = 0x714d; // "Mq"
/// The same of an answer.
const ANSWER_MARK: u16 = 0x614d; // "Ma"
/// Memory that a [`FrameBuf`] keeps between frames.
const KEPT_BYTES_MAX: usize = 64 << 10;
/// `cpu` of a caller that does not want to be followed.
const CPU_NONE: u32 = u32::MAX;

/// What comes before a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Bytes after the header: ticket and body; at most [`BODY_BYTES_MAX`].
    pub length: u32,
    /// What is asked.
    pub op: Op,
    /// Chosen by the caller; the answer repeats it.
    pub request_id: u64,
    /// The processor on which the caller runs (`sched_getcpu`), so that the thread of its connection can
    /// move there; `None` if it shall not.
    pub cpu: Option<u32>,
    /// Bytes of the ticket at the start of what follows; at most [`TICKET_BYTES_MAX`].
    pub ticket_length: u16,
}

/// What an answer says besides its body, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponseFlags(pub u32);

impl ResponseFlags {
    /// The application is logged in as user to the token that the request named.
    pub const USER_LOGGED_IN: Self = Self(1);
    /// … as security officer.
    pub const SO_LOGGED_IN: Self = Self(1 << 1);
    /// A file descriptor comes with this frame (SCM_RIGHTS).
    pub const CARRIES_FD: Self = Self(1 << 2);

    const KNOWN: u32 = 0b111;

    /// Whether every bit of `flags` is set.
    #[must_use]
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those bits.
    #[must_use]
    pub fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// What comes before an answer's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHeader {
    /// Bytes after the header; at most [`BODY_BYTES_MAX`].
    pub length: u32,
    /// The form of the body.
    pub answer: Answer,
    /// Login state and the like.
    pub flags: ResponseFlags,
    /// The request's own number.
    pub request_id: u64,
    /// Object version of the token that the request named, 0 if it named none. It grows whenever anything
    /// changes that this application can see of the token's objects (another host's changes included), so
    /// that a cache filled under an older version is stale. Comparable within one agent instance only.
    pub object_version: u64,
}

impl RequestHeader {
    /// Checks and reads a header. A frame that is too long or not of this protocol is refused here.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let length = read_start(&mut from, REQUEST_MARK)?;
        let op = Op::read(&mut from)?;
        let ticket_length = u16::read(&mut from)?;
        let cpu = Some(u32::read(&mut from)?).filter(|cpu| *cpu != CPU_NONE);
        let request_id = u64::read(&mut from)?;
        if u64::read(&mut from)? != 0 {
            return Err(DecodeError::BadHeader("a reserved field is not zero"));
        }
        if usize::from(ticket_length) > TICKET_BYTES_MAX {
            return Err(DecodeError::TooLong { what: "ticket", length: ticket_length.into(), limit: TICKET_BYTES_MAX });
        }
        if u32::from(ticket_length) > length {
            return Err(DecodeError::Truncated("ticket"));
        }
        Ok(Self { length, op, request_id, cpu, ticket_length })
    }

    /// Appends the header's 32 bytes.
    pub fn write(&self, to: &mut Writer<'_>) {
        write_start(to, self.length, REQUEST_MARK);
        self.op.write(to);
        self.ticket_length.write(to);
        self.cpu.unwrap_or(CPU_NONE).write(to);
        self.request_id.write(to);
        0_u64.write(to);
    }
}

impl ResponseHeader {
    /// Checks and reads a header.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let length = read_start(&mut from, ANSWER_MARK)?;
        let answer = Answer::read(&mut from)?;
        if u16::read(&mut from)? != 0 {
            return Err(DecodeError::BadHeader("a reserved field is not zero"));
        }
        let flags = ResponseFlags(u32::read(&mut from)?);
        if flags.0 & !ResponseFlags::KNOWN != 0 {
            return Err(DecodeError::UnknownCode { what: "answer flags", value: flags.0.into() });
        }
        Ok(Self { length, answer, flags, request_id: Field::read(&mut from)?, object_version: Field::read(&mut from)? })
    }

    /// Appends the header's 32 bytes.
    pub fn write(&self, to: &mut Writer<'_>) {
        write_start(to, self.length, ANSWER_MARK);
        self.answer.write(to);
        0_u16.write(to);
        self.flags.0.write(to);
        self.request_id.write(to);
        self.object_version.write(to);
    }
}

fn write_start(to: &mut Writer<'_>, length: u32, mark: u16) {
    length.write(to);
    mark.write(to);
    PROTOCOL_VERSION.write(to);
}

fn read_start(from: &mut Reader<'_>, mark: u16) -> Result<u32, DecodeError> {
    let length = u32::read(from)?;
    if u16::read(from)? != mark {
        return Err(DecodeError::BadHeader("wrong mark"));
    }
    if u16::read(from)? != PROTOCOL_VERSION {
        return Err(DecodeError::BadHeader("another version of the protocol"));
    }
    if length as usize > BODY_BYTES_MAX {
        return Err(DecodeError::TooLong { what: "frame", length: length.into(), limit: BODY_BYTES_MAX });
    }
    Ok(length)
}

/// Encodes a whole request frame into `memory`; gives its length, or the error if it is over the limit.
/// Where `memory` is too short the result is longer than it and `memory` holds no frame.
pub fn encode_request_into(
    memory: &mut [u8],
    request_id: u64,
    cpu: Option<u32>,
    ticket: Ticket<'_>,
    request: &Request<'_>,
) -> Result<usize, FrameError> {
    let ticket_length = u16::try_from(ticket.0.len()).unwrap_or(u16::MAX);
    let mut header = RequestHeader { length: 0, op: request.code(), request_id, cpu, ticket_length };
    let used = with_body(memory, |to| {
        to.put(ticket.0);
        request.write_body(to);
    })?;
    header.length = (used - HEADER_BYTES) as u32;
    header.write(&mut Writer::new(memory));
    Ok(used)
}

/// Encodes a whole answer frame into `memory` (an arena slot where the answer holds secrets); gives its
/// length, or the error if it is over the limit. Where `memory` is too short the result is longer than it
/// and `memory` holds no frame.
pub fn encode_response_into(
    memory: &mut [u8],
    request_id: u64,
    object_version: u64,
    flags: ResponseFlags,
    response: &Response<'_>,
) -> Result<usize, FrameError> {
    let mut header = ResponseHeader { length: 0, answer: response.code(), flags, request_id, object_version };
    let used = with_body(memory, |to| response.write_body(to))?;
    header.length = (used - HEADER_BYTES) as u32;
    header.write(&mut Writer::new(memory));
    Ok(used)
}

/// Memory that holds one frame on its way out and is used again for the next. Wiped when dropped.
#[derive(Default)]
pub struct FrameBuf {
    memory: Zeroizing<Vec<u8>>,
    used: usize,
}

impl FrameBuf {
    /// Memory for frames of `capacity` bytes; grows for a longer frame, at most to [`FRAME_BYTES_MAX`].
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { memory: Zeroizing::new(vec![0; capacity.min(FRAME_BYTES_MAX)]), used: 0 }
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.memory.len()
    }

    /// Encodes a request frame; gives its bytes.
    pub fn request(
        &mut self,
        request_id: u64,
        cpu: Option<u32>,
        ticket: Ticket<'_>,
        request: &Request<'_>,
    ) -> Result<&[u8], FrameError> {
        self.fit(|memory| encode_request_into(memory, request_id, cpu, ticket, request))
    }

    /// Encodes an answer frame; gives its bytes.
    pub fn response(
        &mut self,
        request_id: u64,
        object_version: u64,
        flags: ResponseFlags,
        response: &Response<'_>,
    ) -> Result<&[u8], FrameError> {
        self.fit(|memory| encode_response_into(memory, request_id, object_version, flags, response))
    }

    /// Wipes the frame that it held. Memory beyond 64 KiB, which few frames need, is given back.
    pub fn wipe(&mut self) {
        if let Some(used) = self.memory.get_mut(..self.used) {
            wipe(used);
        }
        self.used = 0;
        if self.memory.len() > KEPT_BYTES_MAX {
            self.memory = Zeroizing::default();
        }
    }

    /// Encodes into the present memory, and once more if that was too short.
    fn fit(&mut self, encode: impl Fn(&mut [u8]) -> Result<usize, FrameError>) -> Result<&[u8], FrameError> {
        self.wipe();
        let mut used = encode(&mut self.memory)?;
        if used > self.memory.len() {
            self.memory = Zeroizing::new(vec![0; used.next_power_of_two()]);
            used = encode(&mut self.memory)?;
        }
        self.used = used;
        Ok(self.memory.get(..used).unwrap_or_default())
    }
}

fn with_body(memory: &mut [u8], body: impl FnOnce(&mut Writer<'_>)) -> Result<usize, FrameError> {
    let mut to = Writer::new(memory);
    to.put(&[0; HEADER_BYTES]);
    body(&mut to);
    if to.used() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(to.used()));
    }
    Ok(to.used())
}

/// Appends what `write` writes; `total` is the length that the vector will have.
pub(crate) fn append(encoded: &mut Vec<u8>, total: usize, write: impl FnOnce(&mut Writer<'_>)) {
    let start = encoded.len();
    if encoded.capacity() < total {
        let mut larger = Vec::with_capacity(total.next_power_of_two());
        larger.extend_from_slice(encoded);
        encoded.zeroize();
        *encoded = larger;
    }
    encoded.resize(total, 0);
    if let Some(room) = encoded.get_mut(start..) {
        write(&mut Writer::new(room));
    }
}
