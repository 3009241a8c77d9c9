//! The code that carries a call from the C side to a safe trait: checks pointers, catches panics, writes the message.
//!
//! It must never let a panic cross, and never touch a handle again after a panic inside it.

use crate::Status;
use crate::guest::{GuestError, Health};
use crate::table::{Message, RawHealth, fill_text};
use core::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a handle points at: the guest, and whether a panic has left it in an unknown state.
pub(crate) struct Handle<T> {
    guest: T,
    poisoned: bool,
}

impl<T> Handle<T> {
    /// Moves a guest to the heap and gives it away as a handle.
    pub(crate) fn into_raw(guest: T) -> *mut c_void {
        Box::into_raw(Box::new(Handle { guest, poisoned: false })).cast()
    }
}

/// Frees a handle.
///
/// # Safety
/// `handle` is null or came from [`Handle::into_raw`] of the same `T` and is not used afterwards.
pub(crate) unsafe fn close<T>(handle: *mut c_void) {
    if handle.is_null() {
        return;
    }
    // SAFETY: by the contract above the pointer came from Box::into_raw of this type and is given back once.
    let boxed = unsafe { Box::from_raw(handle.cast::<Handle<T>>()) };
    let _ = catch_unwind(AssertUnwindSafe(move || drop(boxed)));
}

/// Runs `body` on the guest behind `handle`.
///
/// # Safety
/// `handle` is null or a live handle of `T` that no other thread is using; `message` is null or points at a
/// [`Message`] whose buffer is writable for `capacity` bytes.
pub(crate) unsafe fn call<T>(
    handle: *mut c_void,
    message: *mut Message,
    body: impl FnOnce(&mut T) -> Result<(), GuestError>,
) -> i32 {
    // SAFETY: null or live and unshared, by the contract above.
    let Some(handle) = (unsafe { handle.cast::<Handle<T>>().as_mut() }) else {
        // SAFETY: `message` as promised by our caller.
        return unsafe { report(message, Err(GuestError::new(Status::Invalid, "null handle"))) };
    };
    // SAFETY: `message` as promised by our caller.
    unsafe {
        run(message, || {
            if handle.poisoned {
                return Err(GuestError::new(Status::Internal, "unusable after a panic, start it again"));
            }
            let guest = &mut handle.guest;
            catch_unwind(AssertUnwindSafe(|| body(guest))).unwrap_or_else(|_| {
                handle.poisoned = true;
                Err(GuestError::new(Status::Internal, "the plugin panicked"))
            })
        })
    }
}

/// Runs `body`, turning a panic into [`Status::Internal`].
///
/// # Safety
/// As for [`call`], of `message`.
pub(crate) unsafe fn run(message: *mut Message, body: impl FnOnce() -> Result<(), GuestError>) -> i32 {
    let result = catch_unwind(AssertUnwindSafe(body))
        .unwrap_or_else(|_| Err(GuestError::new(Status::Internal, "the plugin panicked")));
    // SAFETY: `message` as promised by our caller.
    unsafe { report(message, result) }
}

/// Writes the text of a refusal and gives its number.
///
/// # Safety
/// As for [`call`], of `message`.
unsafe fn report(message: *mut Message, result: Result<(), GuestError>) -> i32 {
    let Err(error) = result else {
        return Status::Ok.code();
    };
    // SAFETY: null or valid, by the contract above.
    if let Some(message) = unsafe { message.as_mut() } {
        message.length = 0;
        if !message.text.is_null() && message.capacity > 0 {
            // SAFETY: the buffer is writable for `capacity` bytes by the contract above.
            let buffer = unsafe { core::slice::from_raw_parts_mut(message.text, message.capacity) };
            message.length = fill_text(buffer, &error.message);
        }
    }
    error.status.code()
}

/// Borrows an input.
///
/// # Safety
/// `data` is null or readable for `len` bytes while the slice lives.
pub(crate) unsafe fn input<'a>(what: &str, data: *const u8, len: usize, max: usize) -> Result<&'a [u8], GuestError> {
    if len == 0 {
        return Ok(&[]);
    }
    if data.is_null() || len > max {
        return Err(GuestError::new(Status::Invalid, format!("{what}: null, or longer than {max} bytes")));
    }
    // SAFETY: not null, and readable for `len` bytes by the contract above.
    Ok(unsafe { core::slice::from_raw_parts(data, len) })
}

/// Borrows an output of exactly `N` bytes.
///
/// # Safety
/// `data` is null or writable for `len` bytes, unshared, while the reference lives.
pub(crate) unsafe fn output<'a, const N: usize>(
    what: &str,
    data: *mut u8,
    len: usize,
) -> Result<&'a mut [u8; N], GuestError> {
    if data.is_null() || len != N {
        return Err(GuestError::new(Status::Invalid, format!("{what}: null, or not {N} bytes")));
    }
    // SAFETY: not null, exactly N bytes, writable and unshared by the contract above.
    Ok(unsafe { &mut *data.cast::<[u8; N]>() })
}

/// Borrows an output of any length up to `max`.
///
/// # Safety
/// As for [`output`].
pub(crate) unsafe fn output_slice<'a>(
    what: &str,
    data: *mut u8,
    len: usize,
    max: usize,
) -> Result<&'a mut [u8], GuestError> {
    if len == 0 {
        return Ok(&mut []);
    }
    if data.is_null() || len > max {
        return Err(GuestError::new(Status::Invalid, format!("{what}: null, or longer than {max} bytes")));
    }
    // SAFETY: not null, writable and unshared for `len` bytes by the contract above.
    Ok(unsafe { core::slice::from_raw_parts_mut(data, len) })
}

/// Borrows a reference to write a result into.
///
/// # Safety
/// `pointer` is null or valid, writable and unshared while the reference lives.
pub(crate) unsafe fn target<'a, T>(what: &str, pointer: *mut T) -> Result<&'a mut T, GuestError> {
    // SAFETY: by the contract above.
    unsafe { pointer.as_mut() }.ok_or_else(|| GuestError::new(Status::Invalid, format!("{what}: null")))
}

/// Copies bytes into the caller's buffer, or says how many are needed.
///
/// # Safety
/// `out` is null or writable for `capacity` bytes; `length` is null or writable.
pub(crate) unsafe fn copy_out(
    bytes: &[u8],
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
) -> Result<(), GuestError> {
    // SAFETY: by the contract above.
    *unsafe { target("length", length) }? = bytes.len();
    if bytes.len() > capacity {
        return Err(GuestError::new(Status::BufferTooSmall, format!("needs {} bytes", bytes.len())));
    }
    if !bytes.is_empty() {
        // SAFETY: writable for `capacity` >= `bytes.len()` bytes by the contract above.
        let out = unsafe { output_slice("output", out, bytes.len(), capacity) }?;
        out.copy_from_slice(bytes);
    }
    Ok(())
}

/// Fills the C form of a health answer.
///
/// # Safety
/// `out` is null or valid, writable and unshared.
pub(crate) unsafe fn write_health(health: &Health, out: *mut RawHealth) -> Result<(), GuestError> {
    // SAFETY: by the contract above.
    let out = unsafe { target("health", out) }?;
    if (out.size as usize) < size_of::<RawHealth>() {
        return Err(GuestError::new(Status::Invalid, "health: the caller's struct is too small"));
    }
    out.state = health.state as u32;
    out.free_bytes = health.free_bytes.unwrap_or(u64::MAX);
    out.used_bytes = health.used_bytes;
    out.sync_micros = health.sync_micros;
    fill_text(&mut out.detail, &health.detail);
    Ok(())
}
