//! Approvals: an approver's word that registers (PCR) of certain values open one generation of one vault.
//!
//! Whoever is to sign needs no TPM: values of registers make the digest ([`crate::pcr::digest`]), digest, vault and
//! generation make the message ([`approval_message`]), message and signature make the approval.

use crate::marshal::{Malformed, Reader, Writer};
use crate::pcr::Selection;
use crate::policy::approval_message;

/// Bytes of an encoded approval.
pub const APPROVAL_BYTES: usize = 107;

/// An approval, as a vault takes it (`control("approve")`) and keeps it. It says nothing about who signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approval {
    /// The generation that it opens; it dies with it.
    pub generation: u64,
    /// The registers that count.
    pub registers: Selection,
    /// Of their values, by [`crate::pcr::digest`].
    pub digest: [u8; 32],
    /// ECDSA P-256 with SHA-256 over [`Approval::message`]: r and s, 32 bytes each.
    pub signature: [u8; 64],
}

impl Approval {
    /// What the approver signs.
    #[must_use]
    pub fn message(&self, vault_id: &[u8; 16]) -> [u8; 64] {
        approval_message(self.registers, &self.digest, vault_id, self.generation)
    }

    /// Generation, bitmap of the registers, digest, signature.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = Writer::new().u64(self.generation).raw(&self.registers.bitmap());
        head.raw(&self.digest).raw(&self.signature).finish()
    }

    /// Reads what [`Approval::encode`] wrote, and nothing after it.
    ///
    /// # Errors
    /// Another length.
    pub fn decode(bytes: &[u8]) -> Result<Approval, Malformed> {
        let mut fields = Reader::new(bytes);
        let approval = Approval::read(&mut fields)?;
        fields.finish()?;
        Ok(approval)
    }

    /// Reads one of several.
    ///
    /// # Errors
    /// Fewer bytes than an approval has.
    pub fn read(fields: &mut Reader<'_>) -> Result<Approval, Malformed> {
        Ok(Approval {
            generation: fields.u64()?,
            registers: Selection::from_bitmap(fields.array()?),
            digest: fields.array()?,
            signature: fields.array()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding() {
        let approval = Approval {
            generation: 4,
            registers: Selection::of(&[7, 11]).unwrap(),
            digest: [5; 32],
            signature: [6; 64],
        };
        let bytes = approval.encode();
        assert_eq!(bytes.len(), APPROVAL_BYTES);
        assert_eq!(bytes[..12], [0, 0, 0, 0, 0, 0, 0, 4, 0x80, 0x08, 0, 5]);
        assert_eq!(Approval::decode(&bytes), Ok(approval));
        assert!(Approval::decode(&bytes[1..]).is_err());
        assert!(Approval::decode(&[&bytes[..], &[0]].concat()).is_err());
    }

    /// The whole way from values to message, as computed by another program from the page of the format.
    #[test]
    fn known_message() {
        let registers = Selection::of(&[7, 11]).unwrap();
        let digest = crate::pcr::digest(&[[0x11; 32], [0x22; 32]]);
        let message = approval_message(registers, &digest, &[3; 16], 5);
        assert_eq!(hex(&digest), KNOWN_DIGEST);
        assert_eq!(hex(&message[..32]), KNOWN_POLICY);
        assert_eq!(hex(&message[32..]), KNOWN_REFERENCE);
    }

    const KNOWN_DIGEST: &str = "5189c77d29fe5d546a045ec46986852785fea5c13ac7da9c115ff5fb6edf817c";
    const KNOWN_POLICY: &str = "8f811cfa40cbc2cae93bb41d35a0bdca4b2a3c00efd726215c1c992d74696cfe";
    const KNOWN_REFERENCE: &str = "30b19a45c22a79de2a0245dc43fd9b3f093efa370946c8a05b287e9925fdd426";

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
