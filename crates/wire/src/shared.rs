//! Data that is too large for a frame.
//!
//! The agent makes a memory file, fixes its size by seals, and passes it to the application with
//! SCM_RIGHTS; both sides read and write it with pread and pwrite. It is never mapped: no SIGBUS, and no
//! reading of bytes that the other side changes meanwhile, since each copies what it works on. A buffer
//! belongs to one connection. The agent wipes a request's input before it answers, and its output when that
//! was fetched: at the next request of that connection or its end. The module wipes output that it has read.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::{DATA_BYTES_MAX, SHARED_SLACK_BYTES};

/// Largest size of a shared buffer, bytes.
pub const SHARED_BYTES_MAX: usize = DATA_BYTES_MAX + SHARED_SLACK_BYTES;
/// Smallest size class, bytes; each further one is four times as large.
const CLASS_BYTES_MIN: usize = 256 << 10;
/// Seals of every shared buffer: its size stays.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// The size that is made when `wanted` bytes are asked for: a class of 256 KiB, 1, 4, 16 or 64 MiB of data
/// plus slack. `None` if that is over [`SHARED_BYTES_MAX`].
#[must_use]
pub fn size_class(wanted: u64) -> Option<u64> {
    let classes = std::iter::successors(Some(CLASS_BYTES_MIN), |class| Some(class * 4));
    let mut sizes =
        classes.take_while(|class| *class <= DATA_BYTES_MAX).map(|class| (class + SHARED_SLACK_BYTES) as u64);
    sizes.find(|size| *size >= wanted)
}

/// A memory file of fixed size between the agent and one application.
#[derive(Debug)]
pub struct SharedBuffer {
    file: File,
    size: u64,
}

impl SharedBuffer {
    /// The agent's side: a new buffer of at least `wanted` bytes ([`size_class`]).
    pub fn create(wanted: u64) -> io::Result<Self> {
        let size = size_class(wanted).ok_or(io::ErrorKind::InvalidInput)?;
        let fd = rustix::fs::memfd_create("mayfly-data", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&fd, size)?;
        rustix::fs::fcntl_add_seals(&fd, SEALS)?;
        Ok(Self { file: fd.into(), size })
    }

    /// The application's side: a buffer that came with an answer. Refused if its size can change or is not
    /// what the answer said.
    pub fn accept(fd: OwnedFd, size: u64) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&fd)?;
        let file = File::from(fd);
        if !seals.contains(SEALS) || file.metadata()?.len() != size || size > SHARED_BYTES_MAX as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "shared buffer is not sealed to the size announced",
            ));
        }
        Ok(Self { file, size })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether `length` bytes at `offset` lie inside.
    #[must_use]
    pub fn contains(&self, offset: u64, length: u64) -> bool {
        offset.checked_add(length).is_some_and(|end| end <= self.size)
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        self.check(offset, to.len())?;
        self.file.read_exact_at(to, offset)
    }

    /// Copies bytes in.
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check(offset, from.len())?;
        self.file.write_all_at(from, offset)
    }

    /// Overwrites bytes with zeros.
    pub fn wipe(&self, offset: u64, length: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 64 << 10];
        self.check(offset, length as usize)?;
        let (mut at, end) = (offset, offset + length);
        while at < end {
            let count = (end - at).min(ZEROS.len() as u64);
            self.file.write_all_at(ZEROS.get(..count as usize).unwrap_or_default(), at)?;
            at += count;
        }
        Ok(())
    }

    /// Gives all of its pages back to the kernel; what mattered was wiped before. It reads as zeros then, its size stays, and whoever has
    /// the descriptor may go on using it.
    pub fn discard(&self) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, self.size)?)
    }

    fn check(&self, offset: u64, length: usize) -> io::Result<()> {
        if self.contains(offset, length as u64) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

impl AsFd for SharedBuffer {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Writes a frame with the buffer's file descriptor on its first byte.
pub fn write_frame_with_buffer(stream: &UnixStream, frame: &[u8], buffer: &SharedBuffer) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [buffer.as_fd()];
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let sent = loop {
        match rustix::net::sendmsg(stream, &[IoSlice::new(frame)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    crate::write_frame(stream, frame.get(sent..).unwrap_or_default())
}

/// A stream that keeps the last file descriptor that came with the bytes read through it.
pub(crate) struct FdReader<'s> {
    pub(crate) stream: &'s UnixStream,
    pub(crate) fd: Option<OwnedFd>,
}

impl io::Read for FdReader<'_> {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            rustix::net::recvmsg(self.stream, &mut [IoSliceMut::new(memory)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fd = fds.last().or(self.fd.take());
            }
        }
        Ok(got.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FrameBuf, Response, ResponseFlags, response};

    #[test]
    fn classes_bound_the_size() {
        let cases = [
            (0, Some(327_680)),
            (327_680, Some(327_680)),
            (327_681, Some(1_114_112)),
            (SHARED_BYTES_MAX as u64, Some(SHARED_BYTES_MAX as u64)),
            (SHARED_BYTES_MAX as u64 + 1, None),
            (u64::MAX, None),
        ];
        for (wanted, size) in cases {
            assert_eq!(size_class(wanted), size, "{wanted}");
        }
    }

    #[test]
    fn a_buffer_crosses_the_socket_and_keeps_its_size() {
        let (agent, module) = UnixStream::pair().unwrap();
        let made = SharedBuffer::create(1 << 20).unwrap();
        let answer = Response::LargeBuffer(response::LargeBuffer { size: made.size() });
        let mut memory = FrameBuf::default();
        let frame = memory.response(1, 0, ResponseFlags::CARRIES_FD, &answer).unwrap();
        write_frame_with_buffer(&agent, frame, &made).unwrap();

        let mut reader = FdReader { stream: &module, fd: None };
        let (mut first, mut spill) = ([0; 64], Vec::new());
        let got = crate::read_response(&mut reader, &mut first, &mut spill).unwrap().unwrap();
        assert_eq!(got.response().unwrap(), answer);
        let taken = SharedBuffer::accept(reader.fd.unwrap(), made.size()).unwrap();
        assert!(taken.file.set_len(10).is_err(), "sealed");

        taken.write(5, b"plaintext").unwrap();
        let mut back = [0; 9];
        made.read(5, &mut back).unwrap();
        assert_eq!(&back, b"plaintext");
        made.wipe(0, made.size()).unwrap();
        taken.read(5, &mut back).unwrap();
        assert_eq!(back, [0; 9]);
    }

    #[test]
    fn a_discarded_buffer_is_empty_and_takes_no_memory() {
        use std::os::unix::fs::MetadataExt;
        let buffer = SharedBuffer::create(1).unwrap();
        buffer.write(buffer.size() - 9, b"plaintext").unwrap();
        assert!(buffer.file.metadata().unwrap().blocks() > 0);
        buffer.discard().unwrap();
        let metadata = buffer.file.metadata().unwrap();
        assert_eq!((metadata.blocks(), metadata.len()), (0, buffer.size()));
        let mut back = [1; 9];
        buffer.read(buffer.size() - 9, &mut back).unwrap();
        assert_eq!(back, [0; 9]);
    }

    #[test]
    fn bounds_hold() {
        let buffer = SharedBuffer::create(1).unwrap();
        for (offset, length) in [(buffer.size(), 1), (u64::MAX, 1), (0, buffer.size() + 1)] {
            assert!(!buffer.contains(offset, length));
            assert!(buffer.wipe(offset, length).is_err());
        }
        assert!(buffer.read(buffer.size() - 1, &mut [0; 2]).is_err());
        assert!(buffer.write(buffer.size() - 1, &[0; 2]).is_err());
        assert!(buffer.wipe(0, buffer.size()).is_ok());
    }

    #[test]
    fn an_unsealed_buffer_is_refused() {
        let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&fd, 4096).unwrap();
        assert!(SharedBuffer::accept(fd, 4096).is_err());
        let sealed = SharedBuffer::create(1).unwrap();
        assert!(SharedBuffer::accept(sealed.file.into(), 4096).is_err());
    }
}
