//! The bytes between facade and host: one request, one answer, both with a length in front.
//!
//! Both ends are of one build, so this is no format that anybody else reads; [`PROTOCOL`] catches a host from another
//! build. Numbers are little-endian. Reading never panics and never allocates beyond [`FRAME_BYTES_MAX`].
//!
//! | Frame | Fields |
//! |---|---|
//! | request | length u32, call id u64, operation u8, fields of the operation |
//! | answer | length u32, call id u64, status i32, text (u32 length), fields of the operation |

use crate::abi;

/// Changes whenever anything on this page does.
pub(crate) const PROTOCOL: u32 = 1;
/// Largest frame without its length: the largest `read` answer and room for the rest.
pub(crate) const FRAME_BYTES_MAX: usize = abi::READ_BYTES_MAX + 128 * 1024;

/// Status numbers of the host itself; a plugin's own are never negative here.
pub(crate) const HOST_BAD_ANSWER: i32 = -1;
/// The library cannot be loaded or is no plugin of this version and kind.
pub(crate) const HOST_UNUSABLE: i32 = -2;
/// The host does not understand the request.
pub(crate) const HOST_BAD_REQUEST: i32 = -3;
/// The host could not be made safe (memory, filter).
pub(crate) const HOST_NOT_SAFE: i32 = -4;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    Init = 1,
    Describe = 2,
    IdentityPublic = 3,
    IdentitySign = 4,
    Attest = 5,
    Generation = 6,
    Stage = 7,
    OpenKey = 8,
    Commit = 9,
    DiscardStaged = 10,
    Random = 11,
    Health = 12,
    Control = 13,
    Table = 14,
    Caps = 20,
    Head = 21,
    Append = 22,
    Read = 23,
    Wait = 24,
    PutCheckpoint = 25,
    LatestCheckpoint = 26,
    PutSnapshot = 27,
    GetSnapshot = 28,
    Prune = 29,
    Lease = 30,
}

impl Op {
    const ALL: [Op; 25] = [
        Op::Init,
        Op::Describe,
        Op::IdentityPublic,
        Op::IdentitySign,
        Op::Attest,
        Op::Generation,
        Op::Stage,
        Op::OpenKey,
        Op::Commit,
        Op::DiscardStaged,
        Op::Random,
        Op::Health,
        Op::Control,
        Op::Table,
        Op::Caps,
        Op::Head,
        Op::Append,
        Op::Read,
        Op::Wait,
        Op::PutCheckpoint,
        Op::LatestCheckpoint,
        Op::PutSnapshot,
        Op::GetSnapshot,
        Op::Prune,
        Op::Lease,
    ];

    pub(crate) fn from_code(code: u8) -> Option<Op> {
        Op::ALL.into_iter().find(|op| *op as u8 == code)
    }

    /// The name that error texts use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Init => "start",
            Op::Describe => "describe",
            Op::IdentityPublic => "identity_public",
            Op::IdentitySign => "identity_sign",
            Op::Attest => "attest",
            Op::Generation => "generation",
            Op::Stage => "stage",
            Op::OpenKey => "open_key",
            Op::Commit => "commit",
            Op::DiscardStaged => "discard_staged",
            Op::Random => "random",
            Op::Health => "health",
            Op::Control => "control",
            Op::Table => "table",
            Op::Caps => "caps",
            Op::Head => "head",
            Op::Append => "append_if_head",
            Op::Read => "read",
            Op::Wait => "wait",
            Op::PutCheckpoint => "put_checkpoint",
            Op::LatestCheckpoint => "latest_checkpoint",
            Op::PutSnapshot => "put_snapshot",
            Op::GetSnapshot => "get_snapshot",
            Op::Prune => "prune",
            Op::Lease => "lease",
        }
    }
}

/// Builds the fields of a frame.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new() -> Writer {
        Writer::default()
    }

    pub(crate) fn u8(mut self, value: u8) -> Writer {
        self.0.push(value);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Writer {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn i32(mut self, value: i32) -> Writer {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Writer {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Length (u32) and bytes.
    pub(crate) fn bytes(self, bytes: &[u8]) -> Writer {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.u32(length).raw(bytes)
    }

    pub(crate) fn head(self, head: &abi::Head) -> Writer {
        self.u64(head.size).u64(head.epoch).raw(&head.bundle_hash)
    }

    pub(crate) fn snapshot_info(self, info: &abi::SnapshotInfo) -> Writer {
        self.u64(info.size).u64(info.total_bytes).raw(&info.state_hash)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// A field is missing, too long, or something is left over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Takes the fields of a frame apart.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    pub(crate) fn raw(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(Malformed("a field is missing"))?;
        self.0 = rest;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.raw(N)?);
        Ok(out)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Length (u32) and at most `max` bytes.
    pub(crate) fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(Malformed("a field is too long"));
        }
        self.raw(length)
    }

    pub(crate) fn text(&mut self, max: usize) -> Result<String, Malformed> {
        Ok(clean_text(self.bytes(max)?))
    }

    pub(crate) fn head(&mut self) -> Result<abi::Head, Malformed> {
        Ok(abi::Head { size: self.u64()?, epoch: self.u64()?, bundle_hash: self.array()? })
    }

    pub(crate) fn snapshot_info(&mut self) -> Result<abi::SnapshotInfo, Malformed> {
        Ok(abi::SnapshotInfo { size: self.u64()?, total_bytes: self.u64()?, state_hash: self.array()? })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("something is left over")) }
    }
}

/// Foreign text for logs and people: valid UTF-8, one line, no control characters.
pub(crate) fn clean_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect::<String>()
        .trim()
        .to_owned()
}

/// True for what may be a plugin's name; it stands in every message.
pub(crate) fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=abi::NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_and_nothing_may_be_left() {
        let head = abi::Head { size: 7, epoch: 2, bundle_hash: [9; 32] };
        let bytes = Writer::new().u8(1).u32(2).i32(-3).u64(4).bytes(b"five").head(&head).finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!((reader.u8(), reader.u32(), reader.i32(), reader.u64()), (Ok(1), Ok(2), Ok(-3), Ok(4)));
        assert_eq!(reader.bytes(4), Ok(&b"five"[..]));
        assert_eq!(reader.head(), Ok(head));
        assert_eq!(reader.finish(), Ok(()));
        let mut short = Reader::new(&bytes);
        assert_eq!(short.u8(), Ok(1));
        assert_eq!(short.finish(), Err(Malformed("something is left over")));
    }

    #[test]
    fn no_length_is_believed() {
        let huge = Writer::new().u32(u32::MAX).raw(b"abc").finish();
        assert_eq!(Reader::new(&huge).bytes(1 << 20), Err(Malformed("a field is too long")));
        assert_eq!(Reader::new(&huge).bytes(usize::MAX), Err(Malformed("a field is missing")));
        assert_eq!(Reader::new(&[1, 2]).u32(), Err(Malformed("a field is missing")));
    }

    #[test]
    fn every_operation_has_its_own_number() {
        for op in Op::ALL {
            assert_eq!(Op::from_code(op as u8), Some(op));
        }
        assert_eq!(Op::from_code(0), None);
        assert_eq!(Op::from_code(255), None);
    }

    #[test]
    fn foreign_text_cannot_forge_log_lines() {
        assert_eq!(clean_text(b"bad\nERROR all is lost\x1b[31m\xff"), "bad ERROR all is lost [31m\u{fffd}");
    }
}
