//! Selections of platform configuration registers (PCR) of the SHA-256 bank.

use crate::marshal::{Malformed, Reader, Writer};
use crate::object::ALG_SHA256;
use crate::sha256;

/// Number of registers.
pub const PCR_COUNT: u32 = 24;

/// Which registers count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection(u32);

impl Selection {
    /// The registers of these numbers.
    ///
    /// # Errors
    /// A number above 23.
    pub fn of(numbers: &[u32]) -> Result<Selection, Malformed> {
        let mut bits = 0;
        for number in numbers {
            if *number >= PCR_COUNT {
                return Err(Malformed("no such register, they go from 0 to 23"));
            }
            bits |= 1 << number;
        }
        Ok(Selection(bits))
    }

    /// The registers of both.
    #[must_use]
    pub fn union(self, other: Selection) -> Selection {
        Selection(self.0 | other.0)
    }

    /// The numbers in order.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..PCR_COUNT).filter(move |number| self.0 >> number & 1 == 1)
    }

    /// True when no register counts.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Three bytes, register 0 in the lowest bit of the first (TPMS_PCR_SELECT).
    #[must_use]
    pub fn bitmap(self) -> [u8; 3] {
        let [low, middle, high, _] = self.0.to_le_bytes();
        [low, middle, high]
    }

    /// The selection of three bytes.
    #[must_use]
    pub fn from_bitmap([low, middle, high]: [u8; 3]) -> Selection {
        Selection(u32::from_le_bytes([low, middle, high, 0]))
    }

    /// TPML_PCR_SELECTION with this one bank; no bank when nothing is selected.
    #[must_use]
    pub fn marshal(self) -> Vec<u8> {
        if self.is_empty() {
            return Writer::new().u32(0).finish();
        }
        Writer::new().u32(1).u16(ALG_SHA256).u8(3).raw(&self.bitmap()).finish()
    }

    /// Reads what [`Selection::marshal`] wrote, and nothing else.
    ///
    /// # Errors
    /// Other banks, other sizes.
    pub fn unmarshal(reader: &mut Reader<'_>) -> Result<Selection, Malformed> {
        match reader.u32()? {
            0 => return Ok(Selection::default()),
            1 => {}
            _ => return Err(Malformed("more than one bank of registers")),
        }
        if reader.u16()? != ALG_SHA256 || reader.u8()? != 3 {
            return Err(Malformed("not the SHA-256 bank of 24 registers"));
        }
        Ok(Selection::from_bitmap(reader.array()?))
    }
}

/// The digest over the values of selected registers, in the order of their numbers.
#[must_use]
pub fn digest(values: &[[u8; 32]]) -> [u8; 32] {
    let parts: Vec<&[u8]> = values.iter().map(<[u8; 32]>::as_slice).collect();
    sha256(&parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selections() {
        let selection = Selection::of(&[0, 7, 23]).unwrap();
        assert_eq!(selection.bitmap(), [0x81, 0, 0x80]);
        assert_eq!(selection.numbers().collect::<Vec<_>>(), [0, 7, 23]);
        assert_eq!(Selection::from_bitmap(selection.bitmap()), selection);
        assert_eq!(selection.union(Selection::of(&[1, 7]).unwrap()), Selection::of(&[0, 1, 7, 23]).unwrap());
        for selection in [selection, Selection::default()] {
            let bytes = selection.marshal();
            let mut reader = Reader::new(&bytes);
            assert_eq!(Selection::unmarshal(&mut reader), Ok(selection));
            assert_eq!(reader.finish(), Ok(()));
        }
        assert!(Selection::of(&[24]).is_err());
        assert!(Selection::of(&[u32::MAX]).is_err());
        let sha1 = Writer::new().u32(1).u16(4).u8(3).raw(&[1, 0, 0]).finish();
        assert!(Selection::unmarshal(&mut Reader::new(&sha1)).is_err());
    }
}
