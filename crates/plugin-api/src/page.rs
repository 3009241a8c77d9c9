//! One page of secret memory that facade and host both map: vault keys and random bytes cross here and nowhere else.
//!
//! `memfd_secret` memory (memfd_secret(2), Linux 5.14) is missing from the kernel's own map: no other process can read
//! it, root included. Where the kernel lacks it: an ordinary memfd, locked and left out of core files.

use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes of the page; the largest answer is [`crate::abi::RANDOM_BYTES_MAX`].
pub(crate) const PAGE_BYTES: usize = 4096;

/// A mapping of the page. The other process may write at any time, so it is only ever copied out of.
pub(crate) struct SecretPage {
    start: NonNull<u8>,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access is by volatile copies.
unsafe impl Send for SecretPage {}

impl SecretPage {
    /// Makes a page; the descriptor (close-on-exec) is for the host.
    pub(crate) fn make() -> io::Result<(SecretPage, OwnedFd)> {
        let fd = make_fd()?;
        let length = rustix::fs::ftruncate(&fd, PAGE_BYTES as u64);
        length.map_err(io::Error::from)?;
        Ok((SecretPage::map(&fd)?, fd))
    }

    /// Maps the page behind a descriptor.
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<SecretPage> {
        // SAFETY: a new shared mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let page = SecretPage { start };
        // SAFETY: advice and locking on our own new mapping. memfd_secret pages are locked already and answer an
        // explicit lock by an error, which is why its result does not count.
        unsafe {
            libc::madvise(address, PAGE_BYTES, libc::MADV_DONTFORK);
            libc::madvise(address, PAGE_BYTES, libc::MADV_DONTDUMP);
            libc::mlock(address, PAGE_BYTES);
        }
        Ok(page)
    }

    /// Where a plugin may write `length` bytes; `None` when they do not fit.
    pub(crate) fn target(&self, length: usize) -> Option<*mut u8> {
        (length <= PAGE_BYTES).then_some(self.start.as_ptr())
    }

    /// Moves the first `out.len()` bytes into `out` and wipes them here. Longer than the page: nothing, false.
    pub(crate) fn take(&self, out: &mut [u8]) -> bool {
        if out.len() > PAGE_BYTES {
            return false;
        }
        for (offset, byte) in out.iter_mut().enumerate() {
            // SAFETY: `offset` < PAGE_BYTES, inside the mapping, which lives as long as `self`. Volatile, since the
            // other process may write at the same time; any byte value is valid.
            unsafe { *byte = self.start.as_ptr().add(offset).read_volatile() };
        }
        self.wipe();
        true
    }

    /// Zeroes the whole page.
    pub(crate) fn wipe(&self) {
        for offset in (0..PAGE_BYTES).step_by(8) {
            // SAFETY: inside the mapping and aligned to 8 (the mapping starts at a page).
            unsafe { self.start.as_ptr().add(offset).cast::<u64>().write_volatile(0) };
        }
    }
}

impl Drop for SecretPage {
    fn drop(&mut self) {
        self.wipe();
        // SAFETY: our own mapping, not used after this.
        unsafe { libc::munmap(self.start.as_ptr().cast(), PAGE_BYTES) };
    }
}

fn make_fd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes one flag and gives a new descriptor or an error; libc has no wrapper for it.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: a new descriptor that nobody else owns.
        return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    }
    let error = Errno::from_io_error(&io::Error::last_os_error());
    if !matches!(error, Some(Errno::NOSYS | Errno::PERM)) {
        return Err(io::Error::last_os_error());
    }
    Ok(rustix::fs::memfd_create("mayfly-secret-page", rustix::fs::MemfdFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_share_and_taking_wipes() {
        let (ours, fd) = SecretPage::make().unwrap();
        let theirs = SecretPage::map(&fd).unwrap();
        drop(fd);
        let target = theirs.target(32).unwrap();
        // SAFETY: 32 bytes inside the mapping of `theirs`.
        unsafe { std::ptr::write_bytes(target, 0x5a, 32) };
        let mut key = [0u8; 32];
        assert!(ours.take(&mut key));
        assert_eq!(key, [0x5a; 32]);
        assert!(theirs.take(&mut key));
        assert_eq!(key, [0; 32], "the first take wiped the page for both");
    }

    #[test]
    fn nothing_beyond_the_page() {
        let (page, _fd) = SecretPage::make().unwrap();
        assert!(page.target(PAGE_BYTES + 1).is_none());
        assert!(!page.take(&mut vec![0; PAGE_BYTES + 1]));
    }
}
