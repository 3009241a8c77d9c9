//! Where there is no switch: run on the thread's own stack, then wipe what lies below.
//!
//! Weaker than the switch: the thread's stack is not locked and not secret while the operation runs, frames deeper than
//! [`SECRET_STACK_BYTES`] are not wiped, and of the registers only those that the wiping itself uses are overwritten.

use super::SECRET_STACK_BYTES;
use crate::bytes::keep_stores;
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Calls `entry(task)` and wipes [`SECRET_STACK_BYTES`] of the stack below this frame.
///
/// # Safety
/// `entry` does not unwind and may be called with `task`.
#[inline(never)]
pub(super) unsafe fn call_and_wipe(entry: extern "C" fn(*mut c_void), task: *mut c_void) {
    entry(task);
    wipe_below();
}

/// Overwrites its own frame, which lies where the frames of `entry` lay.
#[inline(never)]
fn wipe_below() {
    let mut area = MaybeUninit::<[u8; SECRET_STACK_BYTES]>::uninit();
    let start = area.as_mut_ptr().cast::<u8>();
    // SAFETY: `area` is that long and ours.
    unsafe { start.write_bytes(0, SECRET_STACK_BYTES) };
    keep_stores(start);
}
