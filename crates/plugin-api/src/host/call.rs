//! What a call into the plugin came to, as an answer.

use crate::abi::{self, MESSAGE_BYTES_MAX, Message};
use crate::codec::{self, Writer};

/// Status, text and fields of an answer.
pub(crate) struct Reply {
    status: i32,
    text: Vec<u8>,
    fields: Writer,
}

impl Reply {
    /// Done, with its fields.
    pub(crate) fn ok(fields: Writer) -> Reply {
        Reply { status: 0, text: Vec::new(), fields }
    }

    /// The host itself refuses; `status` is one of its negative numbers.
    pub(crate) fn host(status: i32, text: &str) -> Reply {
        Reply { status, text: text.as_bytes().to_vec(), fields: Writer::new() }
    }

    /// The plugin said something that the interface does not allow.
    pub(crate) fn lie(text: &str) -> Reply {
        Reply::host(codec::HOST_BAD_ANSWER, text)
    }

    /// Adds the fields that some refusals carry.
    pub(crate) fn with(self, fields: Writer) -> Reply {
        Reply { fields, ..self }
    }

    /// The frame without its length.
    pub(crate) fn frame(self, id: u64) -> Vec<u8> {
        let text = &self.text[..self.text.len().min(MESSAGE_BYTES_MAX)];
        Writer::new().u64(id).i32(self.status).bytes(text).raw(&self.fields.finish()).finish()
    }
}

/// Makes a call with a fresh message buffer. `Ok(())` for status 0, else the reply to give.
pub(crate) fn call(function: impl FnOnce(*mut Message) -> i32) -> Result<(), Reply> {
    let mut text = [0u8; MESSAGE_BYTES_MAX];
    let mut message = Message { text: text.as_mut_ptr(), capacity: text.len(), length: 0 };
    let status = function(&raw mut message);
    if status == abi::Status::Ok.code() {
        return Ok(());
    }
    if abi::Status::from_code(status).is_none() {
        return Err(Reply::lie(&format!("unknown status {status}")));
    }
    let length = message.length;
    let Some(text) = text.get(..length) else {
        return Err(Reply::lie(&format!("a message of {length} bytes in a buffer of {MESSAGE_BYTES_MAX}")));
    };
    Err(Reply { status, text: text.to_vec(), fields: Writer::new() })
}

/// The filled part of an output buffer, or the lie about it.
pub(crate) fn filled(buffer: &[u8], length: usize) -> Result<&[u8], Reply> {
    buffer.get(..length).ok_or_else(|| Reply::lie(&format!("it claims {length} bytes in a buffer of {}", buffer.len())))
}

/// The status of a reply that is not Ok, for refusals that carry fields.
pub(crate) fn is_status(reply: &Reply, status: abi::Status) -> bool {
    reply.status == status.code()
}
