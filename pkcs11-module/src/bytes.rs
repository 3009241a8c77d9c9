//! Bytes that are wiped when they are no longer needed.
//!
//! The application's data is not our secret, but it has no business staying in freed memory either.

use std::fmt;
use std::ops::Deref;

use cryptoki_sys::CKR_HOST_MEMORY;
use mayfly_wire::codec::wipe;

use crate::rv::{Outcome, Rv};
use crate::sys;

/// Owned bytes, wiped when dropped and when they move to larger memory. `Debug` shows the length only.
///
/// What an application decides the length of is CKR_HOST_MEMORY where there is no memory for it: running out
/// of memory is not ours to end the application for.
#[derive(Default)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// As many zeros.
    pub fn zeroed(length: usize) -> Outcome<Self> {
        sys::zeroed(length).map(Self).ok_or(Rv(CKR_HOST_MEMORY))
    }

    /// A copy.
    pub fn copy(bytes: &[u8]) -> Outcome<Self> {
        let mut copy = Self::default();
        copy.append(bytes)?;
        Ok(copy)
    }

    /// Appends a copy.
    pub fn append(&mut self, more: &[u8]) -> Outcome {
        let length = self.0.len().checked_add(more.len()).ok_or(Rv(CKR_HOST_MEMORY))?;
        if length > self.0.capacity() {
            let mut larger = Vec::new();
            let room = length.checked_next_power_of_two().unwrap_or(length);
            larger.try_reserve_exact(room).map_err(|_| Rv(CKR_HOST_MEMORY))?;
            larger.extend_from_slice(&self.0);
            wipe(&mut self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(more);
        Ok(())
    }

    /// The bytes, to be written.
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}
