//! The numbers of PKCS#11, by its own names.

pub use cryptoki_sys::*;

/// CKA_KEY_GEN_MECHANISM of a key that was not made by the token.
pub const CK_UNAVAILABLE_INFORMATION: CK_ULONG = CK_ULONG::MAX;
