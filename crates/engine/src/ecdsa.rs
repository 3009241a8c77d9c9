//! ECDSA (FIPS 186-5, section 6), signatures as PKCS#11 has them: r and s, big-endian, each as long as a scalar.

use crate::Error;
use crate::ec::{Curve, load_private, load_public};
use crate::ffi::{Owned, check, forget_errors};
use aws_lc_sys as lc;
use std::ptr;

/// Longest hash that `CKM_ECDSA` takes, bytes; what is longer than the curve's order is cut on the right.
pub const ECDSA_HASH_BYTES_MAX: usize = 128;

/// Signs `hash` to the start of `out`. The nonce is drawn by AWS-LC, mixed with key and hash.
pub(crate) fn sign(curve: Curve, scalar: &[u8], hash: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    check_hash(hash)?;
    let half = curve.scalar_bytes();
    let needed_bytes = 2 * half;
    let out = out.get_mut(..needed_bytes).ok_or(Error::OutputTooSmall { needed_bytes })?;
    let (key, _number) = load_private(curve, scalar)?;
    // SAFETY: a living key; `hash` is readable for its length; the signature is a fresh object, ours.
    let signature = unsafe { Owned::new(lc::ECDSA_do_sign(hash.as_ptr(), hash.len(), key.as_ptr()), "ECDSA_do_sign") }?;
    let (mut r, mut s) = (ptr::null(), ptr::null());
    let (first, second) = out.split_at_mut(half);
    // SAFETY: the signature lends its two numbers for its lifetime; both halves are writable for `half` bytes.
    unsafe {
        lc::ECDSA_SIG_get0(signature.as_ptr(), &mut r, &mut s);
        check(lc::BN_bn2bin_padded(first.as_mut_ptr(), half, r), "BN_bn2bin_padded")?;
        check(lc::BN_bn2bin_padded(second.as_mut_ptr(), half, s), "BN_bn2bin_padded")?;
    }
    Ok(needed_bytes)
}

/// Verifies. Halves may be shorter than a scalar, as PKCS#11 allows, but must be of one length.
pub(crate) fn verify(curve: Curve, point: &[u8], hash: &[u8], signature: &[u8]) -> Result<(), Error> {
    check_hash(hash)?;
    if signature.is_empty() || !signature.len().is_multiple_of(2) || signature.len() > 2 * curve.scalar_bytes() {
        return Err(Error::SignatureLength);
    }
    let key = load_public(curve, point)?;
    let (r, s) = signature.split_at(signature.len() / 2);
    // SAFETY: fresh objects, ours; the slices are readable for their lengths; on success ECDSA_SIG_set0 owns both numbers,
    // which is why they are let go of only with the call (they are not null, so it cannot fail).
    let valid = unsafe {
        let parsed = Owned::new(lc::ECDSA_SIG_new(), "ECDSA_SIG_new")?;
        let r = Owned::new(lc::BN_bin2bn(r.as_ptr(), r.len(), ptr::null_mut()), "BN_bin2bn")?;
        let s = Owned::new(lc::BN_bin2bn(s.as_ptr(), s.len(), ptr::null_mut()), "BN_bin2bn")?;
        check(lc::ECDSA_SIG_set0(parsed.as_ptr(), r.into_raw(), s.into_raw()), "ECDSA_SIG_set0")?;
        lc::ECDSA_do_verify(hash.as_ptr(), hash.len(), parsed.as_ptr(), key.as_ptr())
    };
    if valid == 1 {
        Ok(())
    } else {
        forget_errors();
        Err(Error::Signature)
    }
}

fn check_hash(hash: &[u8]) -> Result<(), Error> {
    if (1..=ECDSA_HASH_BYTES_MAX).contains(&hash.len()) { Ok(()) } else { Err(Error::DataLength) }
}
