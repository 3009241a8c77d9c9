//! What can be wrong with bytes from the other side.

use std::io;

/// Why a frame's bytes do not say anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body ends inside this field.
    #[error("frame ends inside {0}")]
    Truncated(&'static str),
    /// The body goes on after its last field.
    #[error("{0} bytes follow the last field of the frame")]
    Trailing(usize),
    /// A field is longer than its named limit.
    #[error("{what} of {length} bytes is longer than {limit}")]
    TooLong {
        /// The field.
        what: &'static str,
        /// What the peer named.
        length: u64,
        /// The limit.
        limit: usize,
    },
    /// A code that this version does not know.
    #[error("unknown {what} {value:#x}")]
    UnknownCode {
        /// Which list of codes.
        what: &'static str,
        /// The code.
        value: u64,
    },
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    NotText,
    /// The header does not start a frame of this protocol.
    #[error("not a frame of this protocol: {0}")]
    BadHeader(&'static str),
}

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The socket failed, timed out, or ended inside a frame.
    #[error("application socket failed")]
    Io(#[from] io::Error),
    /// The frame makes no sense. The connection is of no further use.
    #[error("bad frame on the application socket")]
    Decode(#[from] DecodeError),
    /// What is to be sent exceeds [`crate::FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes is longer than {max}", max = crate::FRAME_BYTES_MAX)]
    TooLong(usize),
}
