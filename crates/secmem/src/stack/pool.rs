//! Resting secret stacks, one parking place per CPU: a stack stays in the cache of the CPU that wiped it, and taking one is a
//! single swap.

use crate::arena::{DirtySlot, is_zero};
use crate::sys::{self, Exhausted};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};
use std::time::Duration;

/// Size of a secret stack, bytes. All of it is wiped after each operation: 0.13 µs while it fits a first-level cache, eight
/// times that at 64 KiB. The deepest operations measured (Argon2id, a panic with unwinding) need 11 KiB.
pub const SECRET_STACK_BYTES: usize = 32 * 1024;
/// Most stacks of a process: 4 MiB of locked memory. More operations than this at one instant wait for each other.
pub const SECRET_STACKS_MAX: usize = 128;

/// Looks for a free stack before the waiting thread sleeps between looks.
const LOOKS_BEFORE_SLEEP: u32 = 64;
const SLEEP_BETWEEN_LOOKS: Duration = Duration::from_micros(50);

/// Lowest addresses of resting stacks; null = empty place.
static PARKED: [AtomicPtr<u8>; SECRET_STACKS_MAX] = [const { AtomicPtr::new(ptr::null_mut()) }; SECRET_STACKS_MAX];
static MAPPED: AtomicUsize = AtomicUsize::new(0);

/// Takes a stack: a resting one, a new one, or the next that is given back.
///
/// # Errors
/// [`Exhausted`] when the process has none and can map none.
pub(super) fn take() -> Result<NonNull<u8>, Exhausted> {
    let first = place_of_this_cpu();
    if let Some(stack) = take_at(first) {
        return Ok(stack);
    }
    take_slowly(first)
}

/// Parks a stack, wiped by the caller.
pub(super) fn give_back(stack: NonNull<u8>) {
    let first = place_of_this_cpu();
    // There are as many places as stacks can be mapped, so one is empty; the loop only goes round again when others move.
    for place in (first..SECRET_STACKS_MAX).chain(0..SECRET_STACKS_MAX).cycle() {
        if PARKED[place].compare_exchange(ptr::null_mut(), stack.as_ptr(), Ordering::Release, Ordering::Relaxed).is_ok()
        {
            return;
        }
    }
}

/// Maps the first stack, so that a process that cannot have one fails at its start.
pub(crate) fn prepare() -> Result<(), Exhausted> {
    if super::SWITCHES {
        give_back(take()?);
    }
    Ok(())
}

/// Stacks that exist.
pub(crate) fn mapped() -> usize {
    MAPPED.load(Ordering::Relaxed)
}

/// Every resting stack must be all zeros.
pub(crate) fn verify_resting_stacks_zero() -> Result<(), DirtySlot> {
    for place in 0..SECRET_STACKS_MAX {
        if let Some(stack) = take_at(place) {
            let clean = is_zero(stack, SECRET_STACK_BYTES);
            give_back(stack);
            if !clean {
                return Err(DirtySlot { place: "stack" });
            }
        }
    }
    Ok(())
}

#[inline]
fn take_at(place: usize) -> Option<NonNull<u8>> {
    NonNull::new(PARKED[place].swap(ptr::null_mut(), Ordering::Acquire))
}

#[cold]
fn take_slowly(first: usize) -> Result<NonNull<u8>, Exhausted> {
    let mut looks = 0;
    loop {
        for place in (first..SECRET_STACKS_MAX).chain(0..first) {
            if !PARKED[place].load(Ordering::Relaxed).is_null()
                && let Some(stack) = take_at(place)
            {
                return Ok(stack);
            }
        }
        match map_one() {
            Ok(Some(stack)) => return Ok(stack),
            // Others have stacks; one of them will come back.
            Ok(None) => {}
            Err(_) if mapped() > 0 => {}
            Err(cause) => return Err(cause),
        }
        looks += 1;
        if looks < LOOKS_BEFORE_SLEEP {
            std::thread::yield_now();
        } else {
            std::thread::sleep(SLEEP_BETWEEN_LOOKS);
        }
    }
}

/// Maps a new stack unless there are [`SECRET_STACKS_MAX`].
fn map_one() -> Result<Option<NonNull<u8>>, Exhausted> {
    let counted = MAPPED
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| (count < SECRET_STACKS_MAX).then_some(count + 1));
    if counted.is_err() {
        return Ok(None);
    }
    sys::map_secret(SECRET_STACK_BYTES).map(Some).inspect_err(|_| {
        MAPPED.fetch_sub(1, Ordering::Relaxed);
    })
}

#[inline]
fn place_of_this_cpu() -> usize {
    sys::cpu() % SECRET_STACKS_MAX
}
