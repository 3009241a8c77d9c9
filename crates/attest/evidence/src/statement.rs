//! What a TPM signs about itself (TPMS_ATTEST; TPM 2.0 Library, part 2, 10.12), parsed strictly.

use crate::marshal::{Malformed, Reader};
use crate::object::{NAME_BYTES, Name};
use crate::pcr::Selection;

/// First bytes of everything that a TPM made itself; a restricted key signs nothing else that starts so.
const GENERATED: u32 = 0xff54_4347;
const ST_ATTEST_NV: u16 = 0x8014;
const ST_ATTEST_CERTIFY: u16 = 0x8017;
const ST_ATTEST_QUOTE: u16 = 0x8018;
/// Longest statement that is taken.
pub const STATEMENT_BYTES_MAX: usize = 1024;
/// Longest `extraData` that is taken; ours has 32 bytes.
const EXTRA_BYTES_MAX: usize = 64;
/// Most bytes of an index in a statement; ours has 8.
const NV_BYTES_MAX: usize = 64;

/// A statement whose signature somebody else has checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Qualified name of the key that signs.
    pub signer: Name,
    /// What the caller of the TPM bound it to.
    pub extra: Vec<u8>,
    /// Starts of this TPM since it was made or cleared; offset by a constant for keys outside the platform hierarchy.
    pub reset_count: u32,
    /// Firmware of the TPM, offset likewise.
    pub firmware: u64,
    /// What is said.
    pub claim: Claim,
}

/// What a statement says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// TPM2_Certify: an object of this Name is loaded.
    Certify {
        /// Its Name.
        name: Name,
        /// Its qualified name.
        qualified: Name,
    },
    /// TPM2_NV_Certify: an index of this Name holds these bytes.
    Nv {
        /// Its Name.
        index: Name,
        /// Where the bytes begin.
        offset: u16,
        /// The bytes.
        contents: Vec<u8>,
    },
    /// TPM2_Quote: the selected registers have this digest.
    Quote {
        /// Which registers.
        selection: Selection,
        /// The digest over their values.
        digest: [u8; 32],
    },
}

impl Statement {
    /// Parses the bytes that were signed.
    ///
    /// # Errors
    /// Not made by a TPM, another kind of statement, Names by another hash, bytes after the end.
    pub fn parse(bytes: &[u8]) -> Result<Statement, Malformed> {
        if bytes.len() > STATEMENT_BYTES_MAX {
            return Err(Malformed("longer than its limit"));
        }
        let mut reader = Reader::new(bytes);
        if reader.u32()? != GENERATED {
            return Err(Malformed("not made by a TPM"));
        }
        let kind = reader.u16()?;
        let signer = name(&mut reader)?;
        let extra = reader.sized(EXTRA_BYTES_MAX)?.to_vec();
        // clockInfo: clock, resetCount, restartCount, safe; the clock falls back after a loss of power
        reader.u64()?;
        let reset_count = reader.u32()?;
        reader.u32()?;
        reader.u8()?;
        let firmware = reader.u64()?;
        let claim = match kind {
            ST_ATTEST_CERTIFY => Claim::Certify { name: name(&mut reader)?, qualified: name(&mut reader)? },
            ST_ATTEST_NV => Claim::Nv {
                index: name(&mut reader)?,
                offset: reader.u16()?,
                contents: reader.sized(NV_BYTES_MAX)?.to_vec(),
            },
            ST_ATTEST_QUOTE => {
                Claim::Quote { selection: Selection::unmarshal(&mut reader)?, digest: digest(&mut reader)? }
            }
            _ => return Err(Malformed("a statement of another kind")),
        };
        reader.finish()?;
        Ok(Statement { signer, extra, reset_count, firmware, claim })
    }
}

fn name(reader: &mut Reader<'_>) -> Result<Name, Malformed> {
    let name: Name = reader.sized(NAME_BYTES)?.try_into().map_err(|_| Malformed("a Name not by SHA-256"))?;
    if name[..2] != crate::object::ALG_SHA256.to_be_bytes() {
        return Err(Malformed("a Name not by SHA-256"));
    }
    Ok(name)
}

fn digest(reader: &mut Reader<'_>) -> Result<[u8; 32], Malformed> {
    reader.sized(32)?.try_into().map_err(|_| Malformed("a digest not by SHA-256"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marshal::Writer;
    use crate::object::named;

    fn head(kind: u16) -> Writer {
        let writer = Writer::new().u32(GENERATED).u16(kind).sized(&named(&[1; 32])).sized(&[2; 32]);
        writer.u64(3).u32(4).u32(5).u8(1).u64(6)
    }

    #[test]
    fn statements() {
        let certify = head(ST_ATTEST_CERTIFY).sized(&named(&[7; 32])).sized(&named(&[8; 32])).finish();
        let parsed = Statement::parse(&certify).unwrap();
        assert_eq!(parsed.signer, named(&[1; 32]));
        assert_eq!((parsed.extra.as_slice(), parsed.reset_count, parsed.firmware), (&[2; 32][..], 4, 6));
        assert_eq!(parsed.claim, Claim::Certify { name: named(&[7; 32]), qualified: named(&[8; 32]) });

        let nv = head(ST_ATTEST_NV).sized(&named(&[7; 32])).u16(0).sized(&9u64.to_be_bytes()).finish();
        let claim = Claim::Nv { index: named(&[7; 32]), offset: 0, contents: vec![0, 0, 0, 0, 0, 0, 0, 9] };
        assert_eq!(Statement::parse(&nv).unwrap().claim, claim);

        let selection = Selection::of(&[7]).unwrap();
        let quote = head(ST_ATTEST_QUOTE).raw(&selection.marshal()).sized(&[3; 32]).finish();
        assert_eq!(Statement::parse(&quote).unwrap().claim, Claim::Quote { selection, digest: [3; 32] });

        for good in [certify, nv, quote] {
            assert!(Statement::parse(&[good.as_slice(), &[0]].concat()).is_err(), "bytes after the end");
            for cut in 0..good.len() {
                assert!(Statement::parse(&good[..cut]).is_err(), "cut at {cut}");
            }
            let mut forged = good.clone();
            forged[0] = 0;
            assert_eq!(Statement::parse(&forged), Err(Malformed("not made by a TPM")));
        }
    }

    #[test]
    fn others_are_refused() {
        // TPM2_GetTime
        assert!(Statement::parse(&head(0x8019).finish()).is_err());
        let sha1 = head(ST_ATTEST_CERTIFY).sized(&[0, 4, 1]).sized(&named(&[8; 32])).finish();
        assert!(Statement::parse(&sha1).is_err());
        assert!(Statement::parse(&vec![0xff; STATEMENT_BYTES_MAX + 1]).is_err());
    }
}
