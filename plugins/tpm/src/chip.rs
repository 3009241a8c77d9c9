//! What chip this is, from what it says of itself. For people, and to tell software TPMs apart; proves nothing.

use crate::error::Fault;
use crate::tss::Tpm;
use mayfly_evidence::marshal::Reader;

const CAP_HANDLES: u32 = 1;
const CAP_TPM_PROPERTIES: u32 = 6;
/// The first fixed property (TPM_PT_FIXED).
const PT_FIXED: u32 = 0x100;
const PT_REVISION: u32 = 0x102;
const PT_MANUFACTURER: u32 = 0x105;
const PT_VENDOR_STRINGS: std::ops::RangeInclusive<u32> = 0x106..=0x109;
const PT_FIRMWARE_1: u32 = 0x10b;
const PT_FIRMWARE_2: u32 = 0x10c;
/// Properties asked for: more than those above.
const PROPERTIES: u32 = 32;
/// Handles that are asked for at once.
const HANDLES: u32 = 254;

/// A chip's description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chip {
    manufacturer: String,
    model: String,
    revision: u32,
    firmware: (u32, u32),
}

impl Chip {
    /// Asks the chip.
    pub(crate) fn ask(tpm: &Tpm) -> Result<Chip, Fault> {
        let bytes = tpm.capability(CAP_TPM_PROPERTIES, PT_FIXED, PROPERTIES)?;
        Ok(Chip::of(&pairs(&bytes)))
    }

    fn of(properties: &[(u32, u32)]) -> Chip {
        let mut chip = Chip::default();
        for (property, value) in properties {
            match *property {
                PT_REVISION => chip.revision = *value,
                PT_MANUFACTURER => chip.manufacturer = text(*value),
                PT_FIRMWARE_1 => chip.firmware.0 = *value,
                PT_FIRMWARE_2 => chip.firmware.1 = *value,
                property if PT_VENDOR_STRINGS.contains(&property) => chip.model.push_str(&text(*value)),
                _ => {}
            }
        }
        chip
    }

    /// True for the TPMs that are programs: swtpm (libtpms) and Microsoft's simulator.
    pub(crate) fn is_software(&self) -> bool {
        let model: String = self.model.split_whitespace().collect();
        (self.manufacturer == "IBM" && model == "SWTPM") || (self.manufacturer == "MSFT" && model.contains("fTPM"))
    }
}

impl std::fmt::Display for Chip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let model: Vec<&str> = self.model.split_whitespace().collect();
        let (major, minor) = (self.revision / 100, self.revision % 100);
        let (first, second) = self.firmware;
        write!(f, "TPM 2.0 revision {major}.{minor:02}, {} {}, ", self.manufacturer, model.join(" "))?;
        write!(f, "firmware {}.{}.{}.{}", first >> 16, first & 0xffff, second >> 16, second & 0xffff)
    }
}

/// The handles from `first` on that are defined, in order.
pub(crate) fn handles(tpm: &Tpm, first: u32) -> Result<Vec<u32>, Fault> {
    let bytes = tpm.capability(CAP_HANDLES, first, HANDLES)?;
    let mut reader = Reader::new(&bytes);
    let count = reader.u32().unwrap_or_default().min(HANDLES);
    Ok((0..count).map_while(|_| reader.u32().ok()).collect())
}

fn pairs(bytes: &[u8]) -> Vec<(u32, u32)> {
    let mut reader = Reader::new(bytes);
    let count = reader.u32().unwrap_or_default().min(PROPERTIES);
    (0..count).map_while(|_| Some((reader.u32().ok()?, reader.u32().ok()?))).collect()
}

/// Four characters; what is not printable is left out.
fn text(value: u32) -> String {
    value.to_be_bytes().iter().filter(|byte| (0x20..0x7f).contains(*byte)).map(|byte| char::from(*byte)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(text: &[u8; 4]) -> u32 {
        u32::from_be_bytes(*text)
    }

    #[test]
    fn software_is_told() {
        let swtpm = Chip::of(&[
            (PT_REVISION, 164),
            (PT_MANUFACTURER, word(b"IBM\0")),
            (0x106, word(b"SW  ")),
            (0x107, word(b" TPM")),
            (PT_FIRMWARE_1, 0x2019_1023),
            (PT_FIRMWARE_2, 0x0016_3636),
        ]);
        assert!(swtpm.is_software());
        assert_eq!(swtpm.to_string(), "TPM 2.0 revision 1.64, IBM SW TPM, firmware 8217.4131.22.13878");
        let st = Chip::of(&[(PT_MANUFACTURER, word(b"STM ")), (0x106, word(b"ST33"))]);
        assert!(!st.is_software());
        assert_eq!(Chip::of(&[]), Chip::default());
        assert_eq!(pairs(&[0, 0, 0, 9, 0, 0]), []);
    }
}
