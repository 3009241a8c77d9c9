//! One page of secret memory that facade and host both map: vault keys and random bytes cross here and nowhere else.
//!
//! `memfd_secret` memory (memfd_secret(2), Linux 5.14) is missing from the kernel's own map: no other process can read
//! it, root included. Where the kernel lacks it: an ordinary memfd, locked and left out of core files. Memory that is
//! neither is never used: vault keys would be swapped.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Bytes of the page; the largest answer is [`crate::abi::RANDOM_BYTES_MAX`].
pub(crate) const PAGE_BYTES: usize = 4096;
/// `f_type` of `memfd_secret` files (linux/magic.h).
const SECRETMEM_MAGIC: u64 = 0x5345_434d;

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
        Ok((SecretPage::map(&fd)?, fd))
    }

    /// Maps the page behind a descriptor; an error where its memory cannot be kept from being swapped.
    pub(crate) fn map(fd: &OwnedFd) -> io::Result<SecretPage> {
        let is_secretmem = rustix::fs::fstatfs(fd)?.f_type as u64 == SECRETMEM_MAGIC;
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
            return Err(not_locked(io::Error::last_os_error()));
        }
        let start = NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        let page = SecretPage { start };
        for advice in [libc::MADV_DONTFORK, libc::MADV_DONTDUMP] {
            // SAFETY: advice on our own new mapping, which does not change its contents.
            if unsafe { libc::madvise(address, PAGE_BYTES, advice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // memfd_secret pages are locked by their nature, and answer an explicit lock by an error
        // SAFETY: locks our own new mapping.
        if !is_secretmem && unsafe { libc::mlock(address, PAGE_BYTES) } != 0 {
            return Err(not_locked(io::Error::last_os_error()));
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

/// A file of one page, whose size stays: a host that could shrink it would end its facade by SIGBUS.
fn make_fd() -> io::Result<OwnedFd> {
    // SAFETY: the call takes one flag and gives a new descriptor or an error; libc has no wrapper for it.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: a new descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // such a file takes a size once
        rustix::fs::ftruncate(&fd, PAGE_BYTES as u64)?;
        return Ok(fd);
    }
    let error = io::Error::last_os_error();
    if !matches!(Errno::from_io_error(&error), Some(Errno::NOSYS | Errno::PERM)) {
        return Err(error);
    }
    let fd = rustix::fs::memfd_create("mayfly-secret-page", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, PAGE_BYTES as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

fn not_locked(error: io::Error) -> io::Error {
    let text =
        format!("a page that is never swapped: {error}; raise RLIMIT_MEMLOCK, e.g. LimitMEMLOCK=64M in the unit file");
    io::Error::new(error.kind(), text)
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

    /// On a thread whose system calls fail as they do on an old kernel, with nothing left to lock.
    fn where_the_kernel_refuses<R: Send>(calls: &[(libc::c_long, i32)], test: impl FnOnce() -> R + Send) -> R {
        use seccompiler::{SeccompAction, SeccompFilter};
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                for (call, errno) in calls {
                    let refuse = SeccompAction::Errno(*errno as u32);
                    let arch = std::env::consts::ARCH.try_into().unwrap();
                    let rules = [(*call, Vec::new())].into_iter().collect();
                    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap();
                    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
                    seccompiler::apply_filter(&program).unwrap();
                }
                test()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn without_memfd_secret_the_page_is_locked_or_not_made() {
        let no_secretmem = (libc::SYS_memfd_secret, libc::ENOSYS);
        where_the_kernel_refuses(&[no_secretmem], || {
            let (page, fd) = SecretPage::make().unwrap();
            assert_ne!(rustix::fs::fstatfs(&fd).unwrap().f_type as u64, SECRETMEM_MAGIC);
            let map = std::fs::read_to_string("/proc/thread-self/smaps").unwrap();
            let start = format!("{:08x}-", page.start.as_ptr() as usize);
            let flags = map.split_once(&start).unwrap().1.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
            for flag in ["lo", "dc", "dd"] {
                assert!(flags.split_whitespace().any(|found| found == flag), "{flag} is not in {flags}");
            }
        });
        let error = where_the_kernel_refuses(&[no_secretmem, (libc::SYS_mlock, libc::ENOMEM)], || {
            SecretPage::make().err().unwrap()
        });
        assert!(error.to_string().contains("LimitMEMLOCK"), "{error}");
    }

    #[test]
    fn nobody_can_shrink_the_page() {
        let shrinks = || {
            let (_page, fd) = SecretPage::make().unwrap();
            rustix::fs::ftruncate(&fd, 0).is_ok()
        };
        assert!(!shrinks());
        assert!(!where_the_kernel_refuses(&[(libc::SYS_memfd_secret, libc::ENOSYS)], shrinks));
    }
}
