//! The two types that hold secrets.

use crate::arena::{SECRET_BYTES_MAX, Slot};
use crate::bytes::wipe;
use crate::sys::Exhausted;
use std::fmt;

/// `N` secret bytes in a slot of the arena; wiped on drop.
///
/// No `Clone`, no comparison (use [`crate::ct_eq`]); `Debug` prints the type only. Open it late and shortly with
/// [`expose`](Self::expose), inside [`crate::on_secret_stack`].
pub struct Secret<const N: usize> {
    slot: Slot,
}

// SAFETY: the slot has one owner, and its bytes are reached only through `&self` and `&mut self`.
unsafe impl<const N: usize> Send for Secret<N> {}
// SAFETY: `&self` gives shared reading only.
unsafe impl<const N: usize> Sync for Secret<N> {}

impl<const N: usize> Secret<N> {
    const FITS: () = assert!(N >= 1 && N <= SECRET_BYTES_MAX, "a Secret has 1 to 16384 bytes");

    /// Makes a secret in place: `fill` gets the slot, all zeros.
    ///
    /// # Errors
    /// [`Exhausted`] when there is no locked memory left.
    #[inline]
    pub fn new_with(fill: impl FnOnce(&mut [u8; N])) -> Result<Self, Exhausted> {
        Self::try_new_with(|bytes| {
            fill(bytes);
            Ok(())
        })
    }

    /// Like [`new_with`](Self::new_with) with a `fill` that can fail; what it had written is wiped then.
    ///
    /// # Errors
    /// [`Exhausted`], turned into `E`, or whatever `fill` returns.
    #[inline]
    pub fn try_new_with<E: From<Exhausted>>(fill: impl FnOnce(&mut [u8; N]) -> Result<(), E>) -> Result<Self, E> {
        let () = Self::FITS;
        let mut secret = Self { slot: Slot::take(N)? };
        fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn expose(&self) -> &[u8; N] {
        // SAFETY: the slot has room for N bytes (FITS, take), is initialised (zeroed) and lives as long as `self`.
        unsafe { self.slot.pointer().cast().as_ref() }
    }

    /// The bytes, to change them.
    #[inline]
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8; N] {
        // SAFETY: as in `expose`; `&mut self` makes the access exclusive.
        unsafe { self.slot.pointer().cast().as_mut() }
    }
}

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret<{N}>(..)")
    }
}

/// Secret bytes of a length known at run time, up to [`SECRET_BYTES_MAX`]; wiped on drop. Same rules as [`Secret`].
///
/// The length is not secret. It may be 0 (an empty plaintext is one).
pub struct SecretBytes {
    slot: Slot,
    len: usize,
}

// SAFETY: as for `Secret`.
unsafe impl Send for SecretBytes {}
// SAFETY: as for `Secret`.
unsafe impl Sync for SecretBytes {}

impl SecretBytes {
    /// Makes a secret of `len` bytes in place: `fill` gets the slot, all zeros.
    ///
    /// # Errors
    /// [`Exhausted`] when `len` is above [`SECRET_BYTES_MAX`] or there is no locked memory left.
    #[inline]
    pub fn new_with(len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self, Exhausted> {
        Self::try_new_with(len, |bytes| {
            fill(bytes);
            Ok(())
        })
    }

    /// Like [`new_with`](Self::new_with) with a `fill` that can fail; what it had written is wiped then.
    ///
    /// # Errors
    /// [`Exhausted`], turned into `E`, or whatever `fill` returns.
    #[inline]
    pub fn try_new_with<E: From<Exhausted>>(
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut secret = Self { slot: Slot::take(len)?, len };
        fill(secret.expose_mut())?;
        Ok(secret)
    }

    /// Number of bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `len` bytes and wipes the rest; does nothing when there are no more than that.
    pub fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.expose_mut().get_mut(len..) {
            wipe(rest);
            self.len = self.len.min(len);
        }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        // SAFETY: the slot has room for `len` bytes, is initialised (zeroed) and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.slot.pointer().as_ptr(), self.len) }
    }

    /// The bytes, to change them.
    #[inline]
    #[must_use]
    pub fn expose_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `expose`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.slot.pointer().as_ptr(), self.len) }
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Refused;
    impl From<Exhausted> for Refused {
        fn from(_: Exhausted) -> Self {
            Self
        }
    }

    #[test]
    fn slots_start_zeroed_and_keep_what_is_written() {
        let secret = Secret::<48>::new_with(|bytes| {
            assert_eq!(*bytes, [0; 48]);
            bytes.fill(9);
        })
        .unwrap();
        assert_eq!(*secret.expose(), [9; 48]);
        let mut bytes = SecretBytes::new_with(300, |bytes| bytes.fill(5)).unwrap();
        bytes.truncate(301);
        assert_eq!(bytes.len(), 300);
        bytes.truncate(7);
        assert_eq!(bytes.expose(), [5; 7]);
        // SAFETY: the slot is larger than the shortened secret.
        assert_eq!(unsafe { bytes.slot.pointer().add(7).read() }, 0);
        bytes.truncate(0);
        assert!(bytes.is_empty());
    }

    #[test]
    fn lengths_have_a_bound() {
        assert!(SecretBytes::new_with(SECRET_BYTES_MAX, |_| {}).is_ok());
        let refused = SecretBytes::new_with(SECRET_BYTES_MAX + 1, |_| {}).unwrap_err();
        assert!(matches!(refused, Exhausted::TooLarge { .. }));
    }

    #[test]
    fn debug_shows_no_byte() {
        let secret = Secret::<4>::new_with(|bytes| bytes.copy_from_slice(b"\xabLMN")).unwrap();
        let bytes = SecretBytes::new_with(4, |bytes| bytes.copy_from_slice(b"\xabLMN")).unwrap();
        for text in [format!("{secret:?} {secret:#?}"), format!("{bytes:?} {bytes:#?}")] {
            for form in ["171", "ab", "AB", "LMN", "4c4d", "76, 77"] {
                assert!(!text.contains(form), "{text}");
            }
        }
    }

    #[test]
    fn a_failed_fill_leaves_nothing() {
        let mut place = 0usize;
        Secret::<32>::try_new_with(|bytes| {
            place = bytes.as_ptr() as usize;
            bytes.fill(0xee);
            Err::<(), _>(Refused)
        })
        .unwrap_err();
        // The slot went back; look at it through whoever gets it next, or at rest.
        crate::verify_free_slots_zero().unwrap();
        assert_ne!(place, 0);
    }
}
