//! The bytes of the files; `docs/formats/vault-pkcs11.md` is their page. Integers are big-endian.

use crate::seal::Sealing;
use mayfly_plugin_abi::Tier;
use mayfly_vault_store::VaultId;
use mayfly_vault_store::record::{self, Damaged, Fields, finish};

const MAGIC_HEADER: &[u8; 8] = b"MAYFLYPV";
const MAGIC_IDENTITY: &[u8; 8] = b"MAYFLYPI";
const MAGIC_GENERATION: &[u8; 8] = b"MAYFLYPG";
/// The version of all three formats.
const VERSION: u16 = 1;
/// Largest of the files.
pub(crate) const FILE_BYTES_MAX: usize = 1024;
/// Bytes of a token's serial number (CK_TOKEN_INFO).
pub(crate) const SERIAL_BYTES: usize = 16;
/// `alg` of a P-256 identity, as on the ledger.
const ALG_P256: u16 = 2;
/// Bytes of a compressed P-256 point (SEC 1).
pub(crate) const PUBLIC_BYTES: usize = 33;

/// File `vault`: which vault this is, and which token it was made in (for messages only: a token's keys may have been
/// moved to another one by its vendor's means).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) vault_id: VaultId,
    pub(crate) serial: [u8; SERIAL_BYTES],
}

/// File `identity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdentityFile {
    pub(crate) vault_id: VaultId,
    pub(crate) public: [u8; PUBLIC_BYTES],
}

/// Files `generation` and `staged`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GenerationFile {
    pub(crate) vault_id: VaultId,
    pub(crate) generation: u64,
    pub(crate) sealing: Sealing,
    /// At most one per tier, ascending; each of [`Sealing::sealed_bytes`].
    pub(crate) keys: Vec<(Tier, Vec<u8>)>,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        finish([&start(MAGIC_HEADER)[..], &self.vault_id, &self.serial].concat())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, Damaged> {
        let mut fields = Fields::of(bytes, MAGIC_HEADER, VERSION)?;
        let header = Header { vault_id: fields.array()?, serial: fields.array()? };
        fields.end()?;
        Ok(header)
    }

    /// The serial number as text.
    pub(crate) fn serial_text(&self) -> String {
        mayfly_plugin_abi::text_of(&self.serial)
    }
}

impl IdentityFile {
    pub(crate) fn encode(&self) -> Vec<u8> {
        finish([&start(MAGIC_IDENTITY)[..], &self.vault_id, &ALG_P256.to_be_bytes(), &self.public].concat())
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<IdentityFile, Damaged> {
        let mut fields = Fields::of(bytes, MAGIC_IDENTITY, VERSION)?;
        let vault_id = fields.array()?;
        if u16::from_be_bytes(fields.array()?) != ALG_P256 {
            return Err("unknown identity algorithm".into());
        }
        let identity = IdentityFile { vault_id, public: fields.array()? };
        fields.end()?;
        Ok(identity)
    }
}

impl GenerationFile {
    /// What authenticates one tier's key: vault, generation and tier, so that no key can stand in for another.
    pub(crate) fn aad(vault_id: &VaultId, generation: u64, tier: Tier) -> Vec<u8> {
        let generation = generation.to_be_bytes();
        [&start(MAGIC_GENERATION)[..], vault_id, &generation, &(tier as u32).to_be_bytes()].concat()
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = start(MAGIC_GENERATION);
        out.extend_from_slice(&self.vault_id);
        out.extend_from_slice(&self.generation.to_be_bytes());
        out.extend_from_slice(&self.sealing.code().to_be_bytes());
        out.extend_from_slice(&(self.keys.len() as u32).to_be_bytes());
        for (tier, sealed) in &self.keys {
            out.extend_from_slice(&(*tier as u32).to_be_bytes());
            out.extend_from_slice(sealed);
        }
        finish(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<GenerationFile, Damaged> {
        let mut fields = Fields::of(bytes, MAGIC_GENERATION, VERSION)?;
        let (vault_id, generation) = (fields.array()?, u64::from_be_bytes(fields.array()?));
        let Some(sealing) = Sealing::from_code(u16::from_be_bytes(fields.array()?)) else {
            return Err("unknown way of sealing".into());
        };
        let count = u32::from_be_bytes(fields.array()?) as usize;
        if generation == 0 || !(1..=Tier::ALL.len()).contains(&count) {
            return Err("no generation or an odd number of keys".into());
        }
        let mut keys: Vec<(Tier, Vec<u8>)> = Vec::with_capacity(count);
        for _ in 0..count {
            let code = u32::from_be_bytes(fields.array()?);
            let Some(tier) = Tier::from_code(code) else { return Err("unknown tier".into()) };
            if keys.last().is_some_and(|(before, _)| *before >= tier) {
                return Err("tiers out of order".into());
            }
            keys.push((tier, fields.slice(sealing.sealed_bytes())?.to_vec()));
        }
        fields.end()?;
        Ok(GenerationFile { vault_id, generation, sealing, keys })
    }

    /// Puts in or replaces a tier's key.
    pub(crate) fn put(&mut self, tier: Tier, sealed: Vec<u8>) {
        self.keys.retain(|(other, _)| *other != tier);
        self.keys.push((tier, sealed));
        self.keys.sort_by_key(|(tier, _)| *tier);
    }

    pub(crate) fn key(&self, tier: Tier) -> Option<&[u8]> {
        self.keys.iter().find(|(other, _)| *other == tier).map(|(_, sealed)| &sealed[..])
    }
}

fn start(magic: &[u8; 8]) -> Vec<u8> {
    record::start(magic, VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(sealing: Sealing) -> GenerationFile {
        let mut file = GenerationFile { vault_id: [1; 16], generation: 7, sealing, keys: Vec::new() };
        file.put(Tier::PerRelease, vec![6; sealing.sealed_bytes()]);
        file.put(Tier::Boot, vec![4; sealing.sealed_bytes()]);
        file.put(Tier::Boot, vec![5; sealing.sealed_bytes()]);
        file
    }

    #[test]
    fn what_is_written_is_read() {
        let header = Header { vault_id: [1; 16], serial: *b"1234\0\0\0\0\0\0\0\0\0\0\0\0" };
        assert_eq!(Header::decode(&header.encode()), Ok(header.clone()));
        assert_eq!(header.serial_text(), "1234");
        let identity = IdentityFile { vault_id: [1; 16], public: [3; 33] };
        assert_eq!(IdentityFile::decode(&identity.encode()), Ok(identity));
        for sealing in Sealing::ALL {
            let file = generation(sealing);
            assert_eq!(file.key(Tier::Boot), Some(&vec![5; sealing.sealed_bytes()][..]), "staged again: replaced");
            assert_eq!(file.key(Tier::Window), None);
            assert_eq!(GenerationFile::decode(&file.encode()), Ok(file));
        }
    }

    #[test]
    fn lengths_are_those_of_the_page() {
        assert_eq!(Header { vault_id: [1; 16], serial: [0; 16] }.encode().len(), 8 + 2 + 16 + 16 + 32);
        assert_eq!(IdentityFile { vault_id: [1; 16], public: [3; 33] }.encode().len(), 8 + 2 + 16 + 2 + 33 + 32);
        for (sealing, sealed) in [(Sealing::Gcm, 60), (Sealing::KeyWrapPad, 72)] {
            let length = generation(sealing).encode().len();
            assert_eq!(length, 8 + 2 + 16 + 8 + 2 + 4 + 2 * (4 + sealed) + 32);
            assert!(length < FILE_BYTES_MAX);
        }
    }

    /// Well-hashed nonsense, as somebody who can write may leave it.
    #[test]
    fn a_right_checksum_is_not_enough() {
        let body = |bytes: &[u8]| finish([&start(MAGIC_GENERATION)[..], &[1; 16], bytes].concat());
        let head = |generation: u64, sealing: u16, count: u32| {
            [&generation.to_be_bytes()[..], &sealing.to_be_bytes(), &count.to_be_bytes()].concat()
        };
        let one = |tier: u32| [&tier.to_be_bytes()[..], &[0; 60]].concat();
        assert!(GenerationFile::decode(&body(&[head(7, 1, 1), one(2)].concat())).is_ok());
        for (what, bytes) in [
            ("tier 3", [head(7, 1, 1), one(3)].concat()),
            ("generation 0", [head(0, 1, 1), one(0)].concat()),
            ("sealing 0", [head(7, 0, 1), one(0)].concat()),
            ("sealing 2 with the length of 1", [head(7, 2, 1), one(0)].concat()),
            ("no keys", head(7, 1, 0)),
            ("2^32 - 1 keys", [head(7, 1, u32::MAX), one(0)].concat()),
            ("the same tier twice", [head(7, 1, 2), one(0), one(0)].concat()),
            ("left over", [head(7, 1, 1), one(0), vec![0]].concat()),
        ] {
            assert!(GenerationFile::decode(&body(&bytes)).is_err(), "{what}");
        }
    }
}
