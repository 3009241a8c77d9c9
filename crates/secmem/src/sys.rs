//! Mappings from the kernel: secret, locked, never dumped, never inherited, fenced by guard pages.

use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

/// Address space without access on each side of a mapping: a multiple of every page size, and wider than any stack frame
/// of C code that does not probe its pages.
pub(crate) const GUARD_BYTES: usize = 64 * 1024;

/// No room for a secret. Never answered by ordinary memory instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Exhausted {
    /// One secret was asked to be larger than a slot can be.
    #[error("a secret of {wanted_bytes} bytes is larger than the {max_bytes} bytes that one slot of secret memory has")]
    TooLarge {
        /// what was asked for
        wanted_bytes: usize,
        /// what a slot has: [`crate::SECRET_BYTES_MAX`]
        max_bytes: usize,
    },
    /// Every byte that Mayfly allows itself is in use.
    #[error(
        "secret memory is full: all of its {limit_bytes} bytes are in use; close sessions or spread the load over more hosts"
    )]
    Full {
        /// [`crate::ARENA_BYTES_MAX`]
        limit_bytes: usize,
    },
    /// The kernel refused to lock more memory.
    #[error(
        "the system refused more locked memory ({call}: error {errno}); raise RLIMIT_MEMLOCK, e.g. LimitMEMLOCK=64M in the unit file"
    )]
    Refused {
        /// the system call that failed
        call: &'static str,
        /// its `errno`
        errno: i32,
    },
}

/// What kind of pages the process gets; settled by the first mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Backing {
    /// nothing mapped yet
    Unknown = 0,
    /// `memfd_secret(2)`: unreadable through `/proc/PID/mem`, gone from the kernel's own direct map
    MemfdSecret = 1,
    /// anonymous pages with `mlock(2)`: not swapped, not dumped, but readable through `/proc/PID/mem`
    Mlock = 2,
}

static BACKING: AtomicU8 = AtomicU8::new(Backing::Unknown as u8);

/// What kind of pages this process uses.
pub(crate) fn backing() -> Backing {
    match BACKING.load(Ordering::Relaxed) {
        1 => Backing::MemfdSecret,
        2 => Backing::Mlock,
        _ => Backing::Unknown,
    }
}

/// Maps `len` zeroed, locked, writable bytes between two guards. They are never unmapped: arenas live as long as the process.
///
/// # Errors
/// [`Exhausted::Refused`] when the kernel gives no such memory.
pub(crate) fn map_secret(len: usize) -> Result<NonNull<u8>, Exhausted> {
    let mut fence = Fence::reserve(len)?;
    if backing() != Backing::Mlock {
        match memfd_secret() {
            Ok(fd) => {
                fill_from_memfd(&mut fence, fd)?;
                settle(Backing::MemfdSecret);
                return Ok(fence.keep());
            }
            // Not built in, switched off, or filtered: the older way. Anything else (no descriptors, no memory) is an error.
            Err(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::EINVAL) if backing() == Backing::Unknown => {}
            Err(errno) => {
                return Err(Exhausted::Refused { call: "memfd_secret", errno });
            }
        }
    }
    fill_with_locked_pages(&mut fence)?;
    settle(Backing::Mlock);
    Ok(fence.keep())
}

/// Address space without access; unmapped again unless [`Fence::keep`] is called.
struct Fence {
    start: *mut libc::c_void,
    len: usize,
    /// All of it is ours still.
    is_whole: bool,
}

impl Fence {
    fn reserve(inner_len: usize) -> Result<Self, Exhausted> {
        let len = inner_len + 2 * GUARD_BYTES;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(refused("mmap"));
        }
        Ok(Self { start, len, is_whole: true })
    }

    /// The address between the guards.
    fn inner(&self) -> *mut libc::c_void {
        self.start.cast::<u8>().wrapping_add(GUARD_BYTES).cast()
    }

    /// Bytes between the guards.
    fn inner_len(&self) -> usize {
        self.len - 2 * GUARD_BYTES
    }

    /// Maps pages between the guards.
    fn map(&mut self, flags: libc::c_int, fd: libc::c_int, call: &'static str) -> Result<(), Exhausted> {
        let (base, len) = (self.inner(), self.inner_len());
        // SAFETY: `base..base+len` lies inside the fence, which nobody else uses: MAP_FIXED replaces only that.
        let mapped =
            unsafe { libc::mmap(base, len, libc::PROT_READ | libc::PROT_WRITE, flags | libc::MAP_FIXED, fd, 0) };
        if mapped != libc::MAP_FAILED {
            return Ok(());
        }
        let refused = refused(call);
        // Linux takes away what was there before it asks whether it may put something there (secret pages over RLIMIT_MEMLOCK). Another
        // thread may have mapped into the hole already; what can be had back is ours again.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE maps only where nothing is mapped.
        let again = unsafe { libc::mmap(base, len, libc::PROT_NONE, flags, -1, 0) };
        self.is_whole = again == base;
        if again != base && again != libc::MAP_FAILED {
            // SAFETY: a fresh mapping of our own, elsewhere: a kernel before 4.17 takes the address as a hint.
            unsafe { libc::munmap(again, len) };
        }
        Err(refused)
    }

    fn keep(self) -> NonNull<u8> {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: mmap returned `start`, and `inner` lies a guard above it: never null.
        unsafe { NonNull::new_unchecked(this.inner().cast()) }
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `reserve` got, and nobody was given an address inside it; where a part of it may be another
        // thread's by now, only the guards go, which have always been ours.
        unsafe {
            if self.is_whole {
                libc::munmap(self.start, self.len);
            } else {
                libc::munmap(self.start, GUARD_BYTES);
                libc::munmap(self.inner().cast::<u8>().add(self.inner_len()).cast(), GUARD_BYTES);
            }
        }
    }
}

/// The system call, which libc has no wrapper for.
fn memfd_secret() -> Result<libc::c_int, i32> {
    // SAFETY: the call takes one flag word and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC as libc::c_uint) };
    if fd < 0 { Err(errno()) } else { Ok(fd as libc::c_int) }
}

/// Puts secret pages of `fd` inside the fence and closes `fd`: the mapping alone keeps them.
fn fill_from_memfd(fence: &mut Fence, fd: libc::c_int) -> Result<(), Exhausted> {
    // SAFETY: `fd` is ours.
    let outcome = if unsafe { libc::ftruncate(fd, fence.inner_len() as libc::off_t) } != 0 {
        Err(refused("ftruncate"))
    } else {
        fence.map(libc::MAP_SHARED, fd, "mmap of memfd_secret")
    };
    // SAFETY: `fd` is ours and is not used again.
    unsafe { libc::close(fd) };
    outcome?;
    ready(fence)
}

/// Puts anonymous pages inside the fence and locks them; the lock is checked.
fn fill_with_locked_pages(fence: &mut Fence) -> Result<(), Exhausted> {
    fence.map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, "mmap")?;
    // SAFETY: the range was just mapped and is ours.
    if unsafe { libc::mlock(fence.inner(), fence.inner_len()) } != 0 {
        return Err(refused("mlock"));
    }
    ready(fence)
}

fn ready(fence: &Fence) -> Result<(), Exhausted> {
    advise(fence.inner(), fence.inner_len())?;
    touch(fence.inner(), fence.inner_len());
    Ok(())
}

/// Never in a core file, never in a child.
fn advise(base: *mut libc::c_void, len: usize) -> Result<(), Exhausted> {
    for (advice, call) in [(libc::MADV_DONTFORK, "madvise(DONTFORK)"), (libc::MADV_DONTDUMP, "madvise(DONTDUMP)")] {
        // SAFETY: the range is a mapping of ours, and neither advice changes its contents.
        if unsafe { libc::madvise(base, len, advice) } != 0 {
            return Err(refused(call));
        }
    }
    Ok(())
}

/// Gets every page now: a page that cannot be had must fail at start, not in the middle of an operation.
fn touch(base: *mut libc::c_void, len: usize) {
    for offset in (0..len).step_by(4096) {
        // SAFETY: the whole range was just mapped readable and writable.
        unsafe { base.cast::<u8>().add(offset).write_volatile(0) };
    }
}

fn settle(kind: Backing) {
    BACKING.store(kind as u8, Ordering::Relaxed);
}

fn refused(call: &'static str) -> Exhausted {
    Exhausted::Refused { call, errno: errno() }
}

/// `errno` of this thread.
pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Number of the CPU that runs the caller; a hint, out of date as soon as it is known. 1 ns.
#[inline]
pub(crate) fn cpu() -> usize {
    // SAFETY: takes nothing and touches nothing of ours; -1 on a system without it.
    usize::try_from(unsafe { libc::sched_getcpu() }).unwrap_or(0)
}
