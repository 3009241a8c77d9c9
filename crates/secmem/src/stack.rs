//! `on_secret_stack`: run a closure where its locals, spilled registers and callees' frames are secret memory, and wipe it.
//!
//! One operation: block signals, take a resting stack, switch to it (or, elsewhere than on x86_64, stay in place), run the
//! closure with panics caught, switch back, wipe the whole stack and the registers, put the stack back, unblock signals.

#[cfg(any(test, not(all(target_arch = "x86_64", target_os = "linux"))))]
mod in_place;
mod pool;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod switch_x86_64;

use crate::secret::{Secret, SecretBytes};
use crate::signals::Mask;
use crate::sys::Exhausted;
use std::any::Any;
use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

pub use pool::{SECRET_STACK_BYTES, SECRET_STACKS_MAX};
pub(crate) use pool::{mapped as mapped_stacks, prepare, verify_resting_stacks_zero};

/// Whether operations run on stacks of their own here.
pub(crate) const SWITCHES: bool = cfg!(all(target_arch = "x86_64", target_os = "linux"));

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A secret operation did not give a result. Says nothing of what it was working on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretPanic {
    /// The closure panicked; its message and payload were wiped.
    #[error("a secret operation panicked; its message was wiped")]
    Panicked,
    /// The process has no secret stack at all: the closure did not run.
    #[error("no secret stack")]
    NoStack(#[source] Exhausted),
}

/// Runs `f` on a secret stack of [`SECRET_STACK_BYTES`]; afterwards the stack and the registers are wiped.
///
/// A call inside a call runs in place: the outer one wipes. When all stacks are in use, waits for one. The stack is small:
/// no deep recursion, no large arrays, no formatting of backtraces; an overflow hits a guard and ends the process.
///
/// What `f` may return is [`Dense`]: nothing, a number, a whole array, an enum without fields. More than that it writes into
/// places of the caller's. A `Result` does not compile:
/// ```compile_fail,E0277
/// mayfly_secmem::on_secret_stack(|| Ok::<(), String>(()));
/// ```
///
/// # Panics
/// When `f` panics: with a fixed text in place of `f`'s payload, after wiping. When the process can map no secret stack at
/// all; [`crate::harden_process`] finds that out at start.
pub fn on_secret_stack<R: Dense>(f: impl FnOnce() -> R) -> R {
    if INSIDE.get() {
        return f();
    }
    match run(f) {
        Ok(result) => result,
        // The hook has spoken already; the payload that travels on is a constant.
        Err(SecretPanic::Panicked) => {
            panic::resume_unwind(Box::new("a secret operation panicked; its message was wiped"))
        }
        Err(SecretPanic::NoStack(cause)) => panic!("no secret stack: {cause}"),
    }
}

/// Like [`on_secret_stack`], but a panic of `f` becomes an error.
///
/// # Errors
/// [`SecretPanic`].
pub fn try_on_secret_stack<R: Dense>(f: impl FnOnce() -> R) -> Result<R, SecretPanic> {
    if INSIDE.get() { caught(f) } else { run(f) }
}

/// Whether the caller is inside [`on_secret_stack`].
#[must_use]
pub fn runs_on_secret_stack() -> bool {
    INSIDE.get()
}

/// What may leave a secret stack: a type every byte of which is part of its value. The value that a closure returns is moved
/// off that stack *with all its bytes*: padding, and the bytes of an enum that its present variant does not use, hold whatever
/// lay there before, pieces of keys included (`docs/decisions/0005`).
///
/// Implement it for enums without fields, and for nothing else. Never for a `Result` or an `Option` of ours: write into a place
/// of the caller's, and return which way it went.
pub trait Dense {}

macro_rules! dense {
    ($($type:ty),+) => { $(impl Dense for $type {})+ };
}
dense!((), bool, u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize, SecretBytes);
impl<const N: usize> Dense for Secret<N> {}
impl<T: Dense, const N: usize> Dense for [T; N] {}
/// Its elements are public: they lie on the ordinary heap.
impl<T: Dense> Dense for Vec<T> {}

/// What travels to the other stack by address and back.
struct Task<F, R> {
    f: Option<F>,
    /// none after a panic; not a `Result`, whose unused bytes would come along
    result: Option<R>,
}

fn run<R, F: FnOnce() -> R>(f: F) -> Result<R, SecretPanic> {
    install_panic_hook();
    let mut task = Task { f: Some(f), result: None };
    let address = (&raw mut task).cast::<c_void>();
    let mask = Mask::block();
    INSIDE.set(true);
    // SAFETY: `entry` is the one for the types of `task`, which outlives the call and is not touched during it.
    let outcome = unsafe { call(entry::<R, F>, address) };
    INSIDE.set(false);
    mask.restore();
    outcome.map_err(SecretPanic::NoStack)?;
    task.result.ok_or(SecretPanic::Panicked)
}

/// Calls `entry(task)` on a secret stack.
///
/// # Safety
/// `entry` must not unwind and must be sound to call with `task`.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe fn call(entry: extern "C" fn(*mut c_void), task: *mut c_void) -> Result<(), Exhausted> {
    let stack = pool::take()?;
    // SAFETY: the stack is ours until it is given back, SECRET_STACK_BYTES long; the rest is the caller's promise.
    unsafe { switch_x86_64::call_and_wipe(stack, entry, task) };
    pool::give_back(stack);
    Ok(())
}

/// Calls `entry(task)` in place and wipes below; the weaker form for other machines.
///
/// # Safety
/// As above.
#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
unsafe fn call(entry: extern "C" fn(*mut c_void), task: *mut c_void) -> Result<(), Exhausted> {
    // SAFETY: the caller's promise.
    unsafe { in_place::call_and_wipe(entry, task) };
    Ok(())
}

/// First function on the secret stack.
extern "C" fn entry<R, F: FnOnce() -> R>(task: *mut c_void) {
    // SAFETY: `run` passes a live `Task<F, R>` and leaves it alone until we return.
    let task = unsafe { &mut *task.cast::<Task<F, R>>() };
    if let Some(f) = task.f.take()
        && let Ok(result) = caught(f)
    {
        task.result = Some(result);
    }
}

fn caught<R>(f: impl FnOnce() -> R) -> Result<R, SecretPanic> {
    panic::catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        discard(payload);
        SecretPanic::Panicked
    })
}

/// Drops the payload here, where its destructor still runs on the secret stack; the wiping `free` wipes what it held.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(second) = panic::catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // A destructor that panics with a payload whose destructor may panic: no third try.
        let _never_dropped = std::mem::ManuallyDrop::new(second);
    }
}

/// Makes panics inside secret operations print their place in the source only, never their message, and no backtrace (which
/// would need more stack than there is). All other panics go to the hook that was there before. [`on_secret_stack`] does this
/// by itself on first use; a program that sets a hook of its own does so before that, or its hook replaces this one.
pub fn install_panic_hook() {
    static INSTALLED: Once = Once::new();
    if INSTALLED.is_completed() || std::thread::panicking() {
        return;
    }
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| if INSIDE.get() { say_where(info) } else { before(info) }));
    });
}

fn say_where(info: &PanicHookInfo<'_>) {
    if let Some(place) = info.location() {
        eprintln!("panic in a secret operation at {}:{} (message withheld)", place.file(), place.line());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_what_the_closure_returns() {
        let mut outside = 1;
        let text = on_secret_stack(|| {
            outside += 1;
            b"public".to_vec()
        });
        assert_eq!((outside, &text[..]), (2, &b"public"[..]));
    }

    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    #[test]
    fn runs_elsewhere_and_nested_calls_stay() {
        fn here() -> usize {
            let local = 0u8;
            std::hint::black_box(&raw const local) as usize
        }
        let outside = here();
        let [outer, inner] = on_secret_stack(|| [here(), on_secret_stack(here)]);
        assert!(outer.abs_diff(inner) < SECRET_STACK_BYTES);
        assert!(outer.abs_diff(outside) > SECRET_STACK_BYTES);
        assert!(!runs_on_secret_stack());
    }

    #[test]
    fn panics_come_back_without_their_message() {
        let payload = panic::catch_unwind(|| on_secret_stack::<()>(|| panic!("the key is {}", 42))).unwrap_err();
        let text = payload.downcast_ref::<&str>().unwrap();
        assert!(!text.contains("42"), "{text}");
        assert_eq!(try_on_secret_stack(|| panic!("the key is {}", 42)), Err::<(), _>(SecretPanic::Panicked));
        let nested = on_secret_stack(|| try_on_secret_stack::<()>(|| panic!("the key is {}", 42)).is_err());
        assert!(nested);
        assert!(!runs_on_secret_stack());
        crate::verify_free_slots_zero().unwrap();
    }

    #[test]
    fn many_threads_share_the_pool() {
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                scope.spawn(move || {
                    for round in 0..2000u32 {
                        let secret = Secret::<32>::new_with(|bytes| bytes.fill(thread)).unwrap();
                        let sum =
                            on_secret_stack(|| secret.expose().iter().map(|b| u32::from(*b)).sum::<u32>() + round);
                        assert_eq!(sum, u32::from(thread) * 32 + round);
                    }
                });
            }
        });
        crate::verify_free_slots_zero().unwrap();
        assert!(!SWITCHES || mapped_stacks() >= 1);
    }

    #[test]
    fn the_weaker_form_works_too() {
        let mut task = Task { f: Some(|| 7), result: None };
        let address = (&raw mut task).cast::<c_void>();
        fn entry_of<R, F: FnOnce() -> R>(_: &Task<F, R>) -> extern "C" fn(*mut c_void) {
            entry::<R, F>
        }
        let entry = entry_of(&task);
        // SAFETY: `entry` is the one for the types of `task`.
        unsafe { in_place::call_and_wipe(entry, address) };
        assert_eq!(task.result, Some(7));
    }
}
