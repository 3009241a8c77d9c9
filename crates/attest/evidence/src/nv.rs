//! The NV indices of a vault (TPMS_NV_PUBLIC) and their Names.

use crate::marshal::Writer;
use crate::object::{ALG_SHA256, Name, named};
use crate::sha256;

/// Attributes of indices (TPMA_NV).
mod attribute {
    pub(super) const AUTH_WRITE: u32 = 1 << 2;
    pub(super) const COUNTER: u32 = 1 << 4;
    pub(super) const AUTH_READ: u32 = 1 << 18;
    pub(super) const NO_DA: u32 = 1 << 25;
    pub(super) const WRITTEN: u32 = 1 << 29;
}
use attribute::*;

/// Bytes of a counter.
pub const COUNTER_BYTES: u16 = 8;
/// Bytes of an index that holds half of a vault key.
pub const SECRET_BYTES: u16 = 32;

/// What an index of a vault holds. Read and written by its auth value only, not by the owner; never subject to the
/// lockout; not ORDERLY, since such a counter may jump after a loss of power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Counts generations, upwards only.
    Counter,
    /// Half of the vault key of a generation.
    Secret,
}

impl Kind {
    /// Bytes that it holds.
    #[must_use]
    pub fn data_bytes(self) -> u16 {
        match self {
            Kind::Counter => COUNTER_BYTES,
            Kind::Secret => SECRET_BYTES,
        }
    }

    fn attributes(self) -> u32 {
        let own = AUTH_WRITE | AUTH_READ | NO_DA;
        match self {
            Kind::Counter => own | COUNTER,
            Kind::Secret => own,
        }
    }

    /// The public area of an index at `handle` as it is defined.
    #[must_use]
    pub fn public(self, handle: u32) -> Vec<u8> {
        self.area(handle, self.attributes())
    }

    /// The public area once it was written, from which its Name comes for the rest of its life.
    #[must_use]
    pub fn written(self, handle: u32) -> Vec<u8> {
        self.area(handle, self.attributes() | WRITTEN)
    }

    /// The Name of an index at `handle` that was written.
    #[must_use]
    pub fn name(self, handle: u32) -> Name {
        named(&sha256(&[&self.written(handle)]))
    }

    fn area(self, handle: u32, attributes: u32) -> Vec<u8> {
        Writer::new().u32(handle).u16(ALG_SHA256).u32(attributes).sized(&[]).u16(self.data_bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_kind_place_and_first_write_apart() {
        let names = [
            Kind::Counter.name(0x0180_0000),
            Kind::Counter.name(0x0180_0001),
            Kind::Secret.name(0x0180_0000),
            named(&sha256(&[&Kind::Counter.public(0x0180_0000)])),
        ];
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name));
        }
    }
}
