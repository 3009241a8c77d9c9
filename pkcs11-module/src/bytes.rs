//! Bytes that are wiped when they are no longer needed.
//!
//! The application's data is not our secret, but it has no business staying in freed memory either.

use std::fmt;
use std::ops::Deref;

use mayfly_wire::codec::wipe;

/// Owned bytes, wiped when dropped and when they move to larger memory. `Debug` shows the length only.
#[derive(Default)]
pub struct Bytes(Vec<u8>);

impl Bytes {
    /// As many zeros.
    pub fn zeroed(length: usize) -> Self {
        Self(vec![0; length])
    }

    /// Appends a copy.
    pub fn append(&mut self, more: &[u8]) {
        let length = self.0.len() + more.len();
        if length > self.0.capacity() {
            let mut larger = Vec::with_capacity(length.next_power_of_two());
            larger.extend_from_slice(&self.0);
            wipe(&mut self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(more);
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
