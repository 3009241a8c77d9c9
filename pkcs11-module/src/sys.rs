//! What the module asks of the kernel and Rust's library has no safe call for.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A pointer that reads null in a child after fork.
///
/// It lives in a page of its own that the kernel hands to children empty (MADV_WIPEONFORK, Linux 4.14),
/// which costs one load to check where getpid costs a system call. `T` is never freed: whoever loaded the
/// pointer may be using it.
pub struct ForkPointer<T> {
    page: AtomicPtr<AtomicPtr<T>>,
}

/// Bytes of the page that holds a [`ForkPointer`]; a multiple of every page size in use.
const PAGE_BYTES: usize = 64 << 10;

impl<T> ForkPointer<T> {
    /// A pointer that is null.
    pub const fn new() -> Self {
        Self { page: AtomicPtr::new(ptr::null_mut()) }
    }

    /// What it points to; null in a new process and after fork. `None` if the kernel has no such memory.
    pub fn load(&self) -> Option<*mut T> {
        Some(self.cell()?.load(Ordering::Acquire))
    }

    /// Points to `new` if it is null still; gives what it points to afterwards.
    pub fn set_if_null(&self, new: *mut T) -> Option<*mut T> {
        match self.cell()?.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Some(new),
            Err(other) => Some(other),
        }
    }

    fn cell(&self) -> Option<&AtomicPtr<T>> {
        let mut page = self.page.load(Ordering::Acquire);
        if page.is_null() {
            let made = map_page()?.cast();
            page = match self.page.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => made,
                Err(other) => {
                    // SAFETY: `made` is a mapping of PAGE_BYTES that this call made and nobody else knows.
                    unsafe { libc::munmap(made.cast(), PAGE_BYTES) };
                    other
                }
            };
        }
        // SAFETY: `page` is a mapping of at least one AtomicPtr, aligned to a page, zeroed (a null pointer)
        // and never unmapped once it is stored here.
        Some(unsafe { &*page })
    }
}

fn map_page() -> Option<*mut libc::c_void> {
    // SAFETY: a new private anonymous mapping touches no memory in use; the result is checked.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE_BYTES,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return None;
    }
    // SAFETY: the mapping is ours and PAGE_BYTES long.
    if unsafe { libc::madvise(page, PAGE_BYTES, libc::MADV_WIPEONFORK) } == 0 {
        return Some(page);
    }
    // SAFETY: as above; nobody else knows the mapping.
    unsafe { libc::munmap(page, PAGE_BYTES) };
    None
}

/// A descriptor's number, and what it stood for when it was noted. Numbers are used again: daemons close all
/// that they inherit, and open files of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    number: RawFd,
    inode: (u64, u64),
}

impl Descriptor {
    /// Notes an open descriptor.
    pub fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        let number = fd.as_raw_fd();
        Some(Self { number, inode: inode_of(number)? })
    }

    /// Its number.
    pub fn number(self) -> RawFd {
        self.number
    }

    /// Closes it if its number stands for the same still. Only for what a child has inherited and nobody in it
    /// will close again.
    pub fn close_inherited(self) {
        if inode_of(self.number) == Some(self.inode) {
            // SAFETY: touches no memory of ours.
            unsafe { libc::close(self.number) };
        }
    }
}

/// Device and inode; `None` if the number is not open.
fn inode_of(number: RawFd) -> Option<(u64, u64)> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel writes one whole structure, or nothing and an error.
    if unsafe { libc::fstat(number, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: written, since the call succeeded.
    let stat = unsafe { stat.assume_init() };
    Some((stat.st_dev, stat.st_ino))
}

/// Memory of zeros, from the kernel as it is where it is large; `None` instead of the end of the application
/// where there is none.
pub fn zeroed(length: usize) -> Option<Vec<u8>> {
    let layout = std::alloc::Layout::array::<u8>(length).ok()?;
    if length == 0 {
        return Some(Vec::new());
    }
    // SAFETY: the layout is not empty.
    let memory = unsafe { std::alloc::alloc_zeroed(layout) };
    if memory.is_null() {
        return None;
    }
    // SAFETY: fresh memory of this allocator, for `length` bytes, all of them zero.
    Some(unsafe { Vec::from_raw_parts(memory, length, length) })
}

/// Whether the program has rights that its caller has not (set-user-id and the like): its environment is
/// then not to be trusted.
pub fn is_privileged_by_file() -> bool {
    // SAFETY: reads a number from the process's auxiliary vector.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// The process's effective user id.
pub fn effective_uid() -> u32 {
    // SAFETY: always succeeds and touches no memory.
    unsafe { libc::geteuid() }
}

/// The user id of whoever listens at the other end of a connected Unix socket.
pub fn peer_uid(socket: BorrowedFd<'_>) -> Option<u32> {
    let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the borrow; the kernel writes at most `length` bytes
    // to `credentials`, a plain C structure of that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut credentials).cast(),
            &raw mut length,
        )
    };
    (result == 0 && length as usize == size_of::<libc::ucred>()).then_some(credentials.uid)
}

/// The processor on which this thread runs.
pub fn current_cpu() -> Option<u32> {
    // SAFETY: touches no memory of ours.
    u32::try_from(unsafe { libc::sched_getcpu() }).ok()
}

/// Fills memory with the kernel's random numbers; false if the kernel has none (never seen after boot).
pub fn random(memory: &mut [u8]) -> bool {
    let mut rest = memory;
    while !rest.is_empty() {
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
            Err(_) if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_sees_null() {
        static POINTER: ForkPointer<u32> = ForkPointer::new();
        assert_eq!(POINTER.load(), Some(ptr::null_mut()));
        let mut value = 7_u32;
        let here = &raw mut value;
        assert_eq!(POINTER.set_if_null(here), Some(here));
        assert_eq!(POINTER.set_if_null(ptr::null_mut()), Some(here), "only once");
        // SAFETY: the child calls nothing but a load, a comparison and _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let code = i32::from(POINTER.load() != Some(ptr::null_mut()));
            // SAFETY: ends the child without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just made; `status` is a plain number.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0);
        assert_eq!(POINTER.load(), Some(here), "the parent keeps it");
    }

    #[test]
    fn only_what_was_noted_is_closed() {
        use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
        let (reader, _writer) = std::io::pipe().unwrap();
        let noted = Descriptor::of(reader.as_fd()).unwrap();
        let number = reader.into_raw_fd();
        let other = std::fs::File::open("/dev/null").unwrap();
        // SAFETY: plain numbers; `number` comes to stand for another file, as in a daemon that reuses it.
        assert_eq!(unsafe { libc::dup2(other.as_raw_fd(), number) }, number);
        noted.close_inherited();
        assert!(inode_of(number).is_some(), "another file's now");
        // SAFETY: open, and nobody else's.
        drop(unsafe { OwnedFd::from_raw_fd(number) });

        let (reader, _writer) = std::io::pipe().unwrap();
        let noted = Descriptor::of(reader.as_fd()).unwrap();
        let number = reader.into_raw_fd();
        noted.close_inherited();
        assert_eq!(Descriptor { number, ..noted }.number(), number);
        assert_ne!(inode_of(number), Some(noted.inode));
    }

    #[test]
    fn memory_that_is_not_there_is_no_end() {
        assert_eq!(zeroed(0), Some(vec![]));
        assert_eq!(zeroed(70_000), Some(vec![0; 70_000]));
        assert_eq!(zeroed(isize::MAX as usize), None);
        assert_eq!(zeroed(usize::MAX), None);
    }

    #[test]
    fn randomness_differs() {
        let (mut a, mut b) = ([0; 600], [0; 600]);
        assert!(random(&mut a) && random(&mut b));
        assert_ne!(a, b);
        assert!(random(&mut []));
    }

    #[test]
    fn a_socket_pair_is_our_own_peer() {
        use std::os::fd::AsFd;
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_uid(a.as_fd()), Some(effective_uid()));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(peer_uid(file.as_fd()), None);
    }
}
