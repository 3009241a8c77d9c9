//! The border to AWS-LC: owned objects and checked calls. Objects are made by `_new`, live on AWS-LC's heap, which wipes what
//! it frees, and are never copied to a stack of ours.

use crate::Error;
use aws_lc_sys as lc;
use std::ffi::c_int;
use std::ptr::NonNull;

/// Something that AWS-LC makes and frees.
pub(crate) trait Object {
    /// # Safety
    /// `object` came from the library, is not null and is not used again.
    unsafe fn free(object: *mut Self);
}

macro_rules! objects {
    ($($object:ident by $free:ident),* $(,)?) => {$(
        impl Object for lc::$object {
            unsafe fn free(object: *mut Self) {
                // SAFETY: the caller's promise.
                unsafe { lc::$free(object) }
            }
        }
    )*};
}

objects! {
    EVP_CIPHER_CTX by EVP_CIPHER_CTX_free,
    EVP_MD_CTX by EVP_MD_CTX_free,
    HMAC_CTX by HMAC_CTX_free,
    EVP_PKEY by EVP_PKEY_free,
    EC_KEY by EC_KEY_free,
    EC_POINT by EC_POINT_free,
    ECDSA_SIG by ECDSA_SIG_free,
    BIGNUM by BN_clear_free,
}

/// An object of the library; freed, and by that wiped, on drop.
pub(crate) struct Owned<T: Object>(NonNull<T>);

impl<T: Object> Owned<T> {
    /// Takes over what `call` returned.
    ///
    /// # Safety
    /// `pointer` is null or a fresh object that nobody else frees.
    pub(crate) unsafe fn new(pointer: *mut T, call: &'static str) -> Result<Self, Error> {
        NonNull::new(pointer).map(Self).ok_or_else(|| failed(call))
    }

    pub(crate) fn as_ptr(&self) -> *mut T {
        self.0.as_ptr()
    }

    /// Gives the object to the library, which frees it from now on.
    pub(crate) fn into_raw(self) -> *mut T {
        std::mem::ManuallyDrop::new(self).as_ptr()
    }
}

impl<T: Object> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object is ours and this is its last use.
        unsafe { T::free(self.0.as_ptr()) }
    }
}

// SAFETY: these objects are plain data on a heap, tied to no thread; `Owned` has one owner and is not `Sync`.
unsafe impl<T: Object> Send for Owned<T> {}

/// 1 is success, for every function of the library that is called here.
pub(crate) fn check(result: c_int, call: &'static str) -> Result<(), Error> {
    if result == 1 { Ok(()) } else { Err(failed(call)) }
}

/// The error of a failed call; the library's own queue of errors is emptied, it would only grow old.
pub(crate) fn failed(call: &'static str) -> Error {
    forget_errors();
    Error::Library { call }
}

/// Empties the library's queue of errors of this thread, after a failure that was expected.
pub(crate) fn forget_errors() {
    // SAFETY: no precondition.
    unsafe { lc::ERR_clear_error() }
}
