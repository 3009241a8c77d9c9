//! Signal masks: a handler that runs in the middle of secret work leaves the registers of that work in its frame, on a stack
//! that nobody wipes. So none runs there.

use std::cell::Cell;
use std::mem::MaybeUninit;

thread_local! {
    static MASKED_FOR_GOOD: Cell<bool> = const { Cell::new(false) };
}

/// Blocks all signals on the calling thread for the rest of its life, and remembers that, so that each
/// [`crate::on_secret_stack`] on it saves two system calls. For threads that serve operations. Signals of the process are
/// then handled by its other threads; a fault in this thread (SIGSEGV, …) ends the process, without any handler.
pub fn mask_signals_on_this_thread() {
    block_all();
    MASKED_FOR_GOOD.set(true);
}

/// Blocks all signals until [`Mask::restore`].
pub(crate) struct Mask(Option<libc::sigset_t>);

impl Mask {
    /// Blocks all signals, if this thread has not done so for good.
    #[inline]
    pub(crate) fn block() -> Self {
        Self(if MASKED_FOR_GOOD.get() { None } else { Some(block_all()) })
    }

    /// Puts the mask back that was there before.
    #[inline]
    pub(crate) fn restore(self) {
        if let Some(before) = self.0 {
            // SAFETY: `before` is a mask that the same call filled in. It cannot fail with a valid `how`.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
        }
    }
}

fn block_all() -> libc::sigset_t {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are filled in by the calls before they are read; neither call fails with these arguments.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usr1_is_blocked() -> bool {
        // SAFETY: asks for the current mask only; the set is filled in by the call.
        unsafe {
            let mut now = MaybeUninit::<libc::sigset_t>::uninit();
            libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::null(), now.as_mut_ptr());
            libc::sigismember(now.as_ptr(), libc::SIGUSR1) == 1
        }
    }

    #[test]
    fn masks_during_the_operation_and_only_then() {
        std::thread::spawn(|| {
            assert!(!usr1_is_blocked());
            assert!(crate::on_secret_stack(usr1_is_blocked));
            assert!(!usr1_is_blocked());
            mask_signals_on_this_thread();
            assert!(crate::on_secret_stack(usr1_is_blocked));
            assert!(usr1_is_blocked());
        })
        .join()
        .unwrap();
    }
}
