//! The language between applications and the agent on one host.
//!
//! `libmayfly_pkcs11.so` and the `mayfly` command line speak it to `mayflyd` over a Unix stream socket:
//! strictly one request, one answer, in the binary form of `docs/formats/app-socket.md`. This crate holds
//! the types ([`Request`], [`Response`]), their encoding, the framing over a stream ([`frame`]), the
//! passing of large buffers ([`shared`]), waiting without sleeping ([`spin`]) and a blocking client
//! ([`Connection`]).
//!
//! What it must never do: allocate by a length that a peer named before that length was checked against a
//! limit below; panic on foreign bytes; print the bytes of a PIN, of data or of an attribute value; decide
//! anything (who may do what is the agent's business, PKCS#11's state rules are the module's).
#![forbid(unsafe_code)]

pub mod attribute;
pub mod client;
pub mod codec;
mod error;
pub mod frame;
pub mod header;
pub mod mechanism;
pub mod request;
pub mod response;
pub mod shared;
pub mod spin;
pub mod types;

pub use attribute::{Attribute, AttributeAnswer, AttributeState, TemplateBuf};
pub use client::{CallError, Connection};
pub use codec::{List, Opaque};
pub use error::{DecodeError, FrameError};
pub use frame::{read_request, read_response, write_frame};
pub use header::{FrameBuf, RequestHeader, ResponseFlags, ResponseHeader};
pub use mechanism::{Mechanism, Parameters};
pub use request::{Op, Request};
pub use response::{Refusal, Response};
pub use shared::SharedBuffer;
pub use spin::Spin;
pub use types::{Data, IvMode, Kind, ObjectRef, Pin, Place, Role, Ticket, TokenFlags, User};

/// Version of the frame layout and of the bodies that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// Length of a request's and of an answer's header, bytes.
pub const HEADER_BYTES: usize = 32;
/// Most bytes after a header (ticket and body together). A longer frame is refused from its header alone.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Most bytes of a whole frame.
pub const FRAME_BYTES_MAX: usize = HEADER_BYTES + BODY_BYTES_MAX;
/// Most bytes of an operation's input or output that travel inside a frame; more goes through a
/// [`SharedBuffer`].
pub const INLINE_DATA_MAX: usize = 16 << 10;
/// Most bytes of an operation's input or output that go through a [`SharedBuffer`]; more is sent in parts.
pub const DATA_BYTES_MAX: usize = 64 << 20;
/// Room for what an operation adds to its input (padding, tag, signature) in a [`SharedBuffer`].
pub const SHARED_SLACK_BYTES: usize = 64 << 10;
/// Most bytes of a ticket.
pub const TICKET_BYTES_MAX: usize = 256;
/// Most bytes of a PIN.
pub const PIN_BYTES_MAX: usize = 255;
/// Most bytes of the reason in a [`Refusal`]; [`Refusal::new`] cuts what is longer.
pub const REASON_BYTES_MAX: usize = 1024;
/// Most handles in one answer to [`Request::FindObjects`]; the rest is fetched with `after`.
pub const FIND_HANDLES_MAX: usize = 65_536;

/// Bit that marks the handle of a session object (CKA_TOKEN false). Such a handle is lost when the agent
/// restarts; a handle without it names the same token object for as long as that object exists.
pub const SESSION_OBJECT_BIT: u64 = 1 << 62;

/// The slot id of a token, from the name that it has on the ledger: the same on every host, over restarts,
/// and known to the module when no agent runs. Below 2^31 (Java reads a signed 32-bit number) and never 0.
///
/// FNV-1a over the name's bytes, folded to 31 bits; on the rare collision the agent moves the token whose
/// name sorts later to the next free id.
#[must_use]
pub fn slot_id(token_name: &str) -> u32 {
    let hash =
        token_name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    ((hash >> 31) ^ (hash & 0x7fff_ffff)).max(1)
}

#[cfg(test)]
mod tests {
    use super::slot_id;

    #[test]
    fn slot_ids_are_fixed() {
        // Whoever changes these moves every installed token to another slot.
        for (name, id) in [("", 18_652_612), ("mayfly", 911_552_614), ("prod", 1_832_792_437)] {
            assert_eq!(slot_id(name), id, "{name}");
        }
    }

    #[test]
    fn slot_ids_fit_java() {
        for number in 0..10_000 {
            let id = slot_id(&number.to_string());
            assert!(id > 0 && id < 1 << 31);
        }
    }
}
