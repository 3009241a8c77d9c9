//! A thread on a stack of our own, which can be wiped after each call into a plugin.
//!
//! glibc keeps the stacks of its threads mapped and unwiped, also after they end; on memory of ours we know where the
//! stack begins and can zero what the plugin left on it.

use std::ffi::c_void;
use std::io;

/// Wipes the calling thread's stack below the caller's frame.
#[derive(Clone, Copy)]
pub(crate) struct Wiper {
    low: usize,
}

type Body = Box<dyn FnOnce(Wiper) + Send>;

struct Start {
    body: Body,
    wiper: Wiper,
}

/// Starts a detached thread with a stack of `bytes` (a multiple of the page size) and a guard page below it. The memory
/// is never given back: the process ends with the thread.
pub(crate) fn run_on_own_stack(bytes: usize, body: impl FnOnce(Wiper) + Send + 'static) -> io::Result<()> {
    let low = map_stack(bytes)?;
    let start = Box::new(Start { body: Box::new(body), wiper: Wiper { low: low as usize } });
    // SAFETY: an all-zero pthread_attr_t is storage for pthread_attr_init to fill.
    let mut attributes: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
    let mut thread = 0;
    let argument = Box::into_raw(start).cast::<c_void>();
    // SAFETY: `attributes` is initialised before it is used and destroyed after; the stack is ours, mapped, aligned to
    // a page, not used by anybody else and never unmapped; `entry` takes `argument` over exactly once.
    let result = unsafe {
        check(libc::pthread_attr_init(&raw mut attributes))?;
        let result = check(libc::pthread_attr_setstack(&raw mut attributes, low, bytes))
            .and_then(|()| check(libc::pthread_attr_setdetachstate(&raw mut attributes, libc::PTHREAD_CREATE_DETACHED)))
            .and_then(|()| check(libc::pthread_create(&raw mut thread, &raw const attributes, entry, argument)));
        libc::pthread_attr_destroy(&raw mut attributes);
        result
    };
    if result.is_err() {
        // SAFETY: the thread was not made, so nobody took `argument` over.
        drop(unsafe { Box::from_raw(argument.cast::<Start>()) });
    }
    result
}

extern "C" fn entry(argument: *mut c_void) -> *mut c_void {
    // SAFETY: the pointer that `run_on_own_stack` made for this thread alone.
    let start = unsafe { Box::from_raw(argument.cast::<Start>()) };
    let Start { body, wiper } = *start;
    // a panic of our own code may not unwind into C
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || body(wiper))).is_err() {
        std::process::abort();
    }
    std::ptr::null_mut()
}

fn map_stack(bytes: usize) -> io::Result<*mut c_void> {
    let page = rustix::param::page_size();
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists; the lowest page
    // becomes the guard.
    unsafe {
        let start = libc::mmap(
            std::ptr::null_mut(),
            bytes + page,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE,
            -1,
            0,
        );
        if start == libc::MAP_FAILED || libc::mprotect(start, page, libc::PROT_NONE) != 0 {
            return Err(io::Error::last_os_error());
        }
        let low = start.byte_add(page);
        libc::madvise(low, bytes, libc::MADV_DONTDUMP);
        // as much as the limit allows: an unlocked stack may be swapped, which is why it is wiped after each call
        libc::mlock(low, bytes);
        Ok(low)
    }
}

fn check(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) }
}

impl Wiper {
    /// Zeroes this thread's stack from its lower end up to the frame of this function.
    #[inline(never)]
    pub(crate) fn wipe_below(self) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: from the stack's lowest byte up to the stack pointer nothing is in use: asm without `nostack` keeps
        // no red zone, and signals run above or are masked. `low` is this thread's own stack, as `run_on_own_stack`
        // gave it.
        unsafe {
            core::arch::asm!(
                "mov rcx, rsp",
                "sub rcx, rdi",
                "xor eax, eax",
                "cld",
                "rep stosb",
                inout("rdi") self.low => _,
                out("rcx") _,
                out("rax") _,
            );
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            /// More than any frame of this function and the call below.
            const MARGIN_BYTES: usize = 1024;
            let here = 0u8;
            let top = (&raw const here as usize).saturating_sub(MARGIN_BYTES);
            for address in (self.low..top & !7).step_by(8) {
                // SAFETY: below this frame by the margin, on this thread's own stack, aligned to 8: not in use.
                unsafe { (address as *mut u64).write_volatile(0) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: u64 = 0x5ec2_e75e_c2e7_5ec2;

    #[inline(never)]
    fn leave_marks() -> u64 {
        let mut junk = [0u64; 512];
        for word in &mut junk {
            // SAFETY: a write to a local of ours; volatile so that it is made.
            unsafe { std::ptr::write_volatile(word, MARK) };
        }
        std::hint::black_box(junk)[7]
    }

    fn marks(low: usize, bytes: usize) -> usize {
        (low..low + bytes)
            .step_by(8)
            // SAFETY: inside the calling thread's own mapped stack.
            .filter(|address| unsafe { (*address as *const u64).read_volatile() } == MARK)
            .count()
    }

    #[test]
    fn what_a_call_leaves_is_wiped() {
        let (sender, receiver) = std::sync::mpsc::channel();
        const BYTES: usize = 256 * 1024;
        run_on_own_stack(BYTES, move |wiper| {
            leave_marks();
            // stay clear of the frames in use: look at the lower three quarters and the part just below us
            let before = marks(wiper.low, BYTES - 2048);
            wiper.wipe_below();
            let after = marks(wiper.low, BYTES - 2048);
            sender.send((before, after)).unwrap();
        })
        .unwrap();
        let (before, after) = receiver.recv().unwrap();
        assert!(before > 400, "the marks were there: {before}");
        assert_eq!(after, 0, "and are gone");
    }
}
