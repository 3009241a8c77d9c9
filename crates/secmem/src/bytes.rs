//! Three small verbs on bytes: wipe, compare in constant time, fill with randomness.

use crate::Exhausted;
use std::hint::black_box;

/// The kernel gave no randomness, or there was no room for it.
#[derive(Debug, thiserror::Error)]
pub enum RandomError {
    /// `getrandom(2)` failed; on Linux only a filter (seccomp) can cause this.
    #[error("the kernel gave no random bytes")]
    Kernel(#[source] getrandom::Error),
    /// The secret that was to be filled found no room. Lets [`random`] serve in `Secret::try_new_with`.
    #[error(transparent)]
    Memory(#[from] Exhausted),
}

/// Fills `out` with random bytes from the kernel, written straight into it.
///
/// # Errors
/// [`RandomError::Kernel`]; `out` is then wiped.
pub fn random(out: &mut [u8]) -> Result<(), RandomError> {
    getrandom::fill(out).map_err(|cause| {
        wipe(out);
        RandomError::Kernel(cause)
    })
}

/// Overwrites `bytes` with zeros in a way that the compiler cannot leave out.
#[inline]
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    keep_stores(bytes.as_mut_ptr());
}

/// Compares two strings of bytes in a time that depends on their lengths only (lengths are public).
#[must_use]
pub fn ct_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    // The barrier keeps the compiler from turning the sum into an early return.
    let difference = a.iter().zip(b).fold(0u8, |sum, (x, y)| black_box(sum | (x ^ y)));
    black_box(difference) == 0
}

/// Tells the compiler that someone may read the memory behind `pointer` now, so that stores to it must have happened.
#[inline(always)]
pub(crate) fn keep_stores(pointer: *mut u8) {
    // SAFETY: no instruction is emitted; without `nomem` the block counts as a reader of all memory that escaped to it.
    unsafe { std::arch::asm!("/* {0} */", in(reg) pointer, options(nostack, preserves_flags)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_is_equality() {
        for (a, b, equal) in [
            (&b""[..], &b""[..], true),
            (b"a", b"a", true),
            (b"a", b"b", false),
            (b"a", b"", false),
            (b"abcdefgh", b"abcdefgH", false),
            (b"\x80bcdefgh", b"\x00bcdefgh", false),
        ] {
            assert_eq!(ct_eq(a, b), equal, "{a:?} {b:?}");
        }
    }

    #[test]
    fn random_fills_everything() {
        let mut sum = [0u8; 64];
        for _ in 0..32 {
            let mut buffer = [0u8; 64];
            random(&mut buffer).unwrap();
            sum.iter_mut().zip(buffer).for_each(|(s, b)| *s |= b);
        }
        assert!(sum.iter().all(|byte| *byte != 0));
    }

    #[test]
    fn wipe_wipes() {
        let mut buffer = [7u8; 100];
        wipe(&mut buffer);
        assert_eq!(buffer, [0u8; 100]);
    }
}
