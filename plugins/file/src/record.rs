//! The bytes of the files; `docs/formats/vault-file.md` is their page. Integers are big-endian.

use crate::seal::{Cost, SALT_BYTES, SEALED_BYTES};
use mayfly_plugin_abi::Tier;
use mayfly_vault_store::VaultId;
use mayfly_vault_store::record::{self, Damaged, Fields, finish};

const MAGIC_HEADER: &[u8; 8] = b"MAYFLYVF";
const MAGIC_IDENTITY: &[u8; 8] = b"MAYFLYVI";
const MAGIC_GENERATION: &[u8; 8] = b"MAYFLYVG";
/// The version of all three formats.
const VERSION: u16 = 1;
/// Largest of the files.
pub(crate) const FILE_BYTES_MAX: usize = 1024;
/// `alg` of an Ed25519 identity.
const ALG_ED25519: u16 = 1;

/// File `vault`: which folder this is, and how the passphrase becomes the master key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) vault_id: VaultId,
    pub(crate) cost: Cost,
    pub(crate) salt: [u8; SALT_BYTES],
    /// 32 zero bytes, sealed: opens under the right passphrase only.
    pub(crate) check: [u8; SEALED_BYTES],
}

/// File `identity`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IdentityFile {
    pub(crate) vault_id: VaultId,
    pub(crate) public: [u8; 32],
    pub(crate) seed: [u8; SEALED_BYTES],
}

/// Files `generation` and `staged`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GenerationFile {
    pub(crate) vault_id: VaultId,
    pub(crate) generation: u64,
    /// At most one per tier, ascending.
    pub(crate) keys: Vec<(Tier, [u8; SEALED_BYTES])>,
}

impl Header {
    /// What authenticates the check value: everything in front of it.
    pub(crate) fn aad(&self) -> Vec<u8> {
        let mut out = start(MAGIC_HEADER);
        out.extend_from_slice(&self.vault_id);
        out.extend_from_slice(&self.cost.memory_kib.to_be_bytes());
        out.extend_from_slice(&self.cost.passes.to_be_bytes());
        out.extend_from_slice(&self.salt);
        out
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.aad();
        out.extend_from_slice(&self.check);
        finish(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, Damaged> {
        let mut fields = Fields::of(bytes, MAGIC_HEADER, VERSION)?;
        let vault_id = fields.array()?;
        let (memory_kib, passes) = (u32::from_be_bytes(fields.array()?), u32::from_be_bytes(fields.array()?));
        let cost = Cost::new(memory_kib, passes).map_err(Damaged)?;
        let header = Header { vault_id, cost, salt: fields.array()?, check: fields.array()? };
        fields.end()?;
        Ok(header)
    }
}

impl IdentityFile {
    pub(crate) fn aad(&self) -> Vec<u8> {
        let mut out = start(MAGIC_IDENTITY);
        out.extend_from_slice(&self.vault_id);
        out.extend_from_slice(&ALG_ED25519.to_be_bytes());
        out.extend_from_slice(&self.public);
        out
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = self.aad();
        out.extend_from_slice(&self.seed);
        finish(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<IdentityFile, Damaged> {
        let mut fields = Fields::of(bytes, MAGIC_IDENTITY, VERSION)?;
        let vault_id = fields.array()?;
        if u16::from_be_bytes(fields.array()?) != ALG_ED25519 {
            return Err("unknown identity algorithm".into());
        }
        let identity = IdentityFile { vault_id, public: fields.array()?, seed: fields.array()? };
        fields.end()?;
        Ok(identity)
    }
}

impl GenerationFile {
    /// What authenticates one tier's key: folder, generation and tier, so that no key can stand in for another.
    pub(crate) fn aad(vault_id: &VaultId, generation: u64, tier: Tier) -> Vec<u8> {
        let mut out = start(MAGIC_GENERATION);
        out.extend_from_slice(vault_id);
        out.extend_from_slice(&generation.to_be_bytes());
        out.extend_from_slice(&(tier as u32).to_be_bytes());
        out
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = start(MAGIC_GENERATION);
        out.extend_from_slice(&self.vault_id);
        out.extend_from_slice(&self.generation.to_be_bytes());
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
        let count = u32::from_be_bytes(fields.array()?) as usize;
        if generation == 0 || !(1..=Tier::ALL.len()).contains(&count) {
            return Err("no generation or an odd number of keys".into());
        }
        let mut keys: Vec<(Tier, [u8; SEALED_BYTES])> = Vec::with_capacity(count);
        for _ in 0..count {
            let code = u32::from_be_bytes(fields.array()?);
            let Some(tier) = Tier::from_code(code) else { return Err("unknown tier".into()) };
            if keys.last().is_some_and(|(before, _)| *before >= tier) {
                return Err("tiers out of order".into());
            }
            keys.push((tier, fields.array()?));
        }
        fields.end()?;
        Ok(GenerationFile { vault_id, generation, keys })
    }

    /// Puts in or replaces a tier's key.
    pub(crate) fn put(&mut self, tier: Tier, sealed: [u8; SEALED_BYTES]) {
        self.keys.retain(|(other, _)| *other != tier);
        self.keys.push((tier, sealed));
        self.keys.sort_by_key(|(tier, _)| *tier);
    }

    pub(crate) fn key(&self, tier: Tier) -> Option<&[u8; SEALED_BYTES]> {
        self.keys.iter().find(|(other, _)| *other == tier).map(|(_, sealed)| sealed)
    }
}

fn start(magic: &[u8; 8]) -> Vec<u8> {
    record::start(magic, VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header { vault_id: [1; 16], cost: Cost::new(19 * 1024, 2).unwrap(), salt: [2; 16], check: [3; SEALED_BYTES] }
    }

    fn generation() -> GenerationFile {
        let mut file = GenerationFile { vault_id: [1; 16], generation: 7, keys: Vec::new() };
        file.put(Tier::PerRelease, [6; SEALED_BYTES]);
        file.put(Tier::Boot, [4; SEALED_BYTES]);
        file.put(Tier::Boot, [5; SEALED_BYTES]);
        file
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Header::decode(&header().encode()), Ok(header()));
        let identity = IdentityFile { vault_id: [1; 16], public: [8; 32], seed: [9; SEALED_BYTES] };
        assert_eq!(IdentityFile::decode(&identity.encode()), Ok(identity));
        let file = generation();
        assert_eq!(file.key(Tier::Boot), Some(&[5; SEALED_BYTES]), "staged again: replaced");
        assert_eq!(file.key(Tier::Window), None);
        assert_eq!(GenerationFile::decode(&file.encode()), Ok(file));
    }

    #[test]
    fn lengths_are_those_of_the_page() {
        assert_eq!(header().encode().len(), 8 + 2 + 16 + 4 + 4 + 16 + 60 + 32);
        assert_eq!(generation().encode().len(), 8 + 2 + 16 + 8 + 4 + 2 * 64 + 32);
        assert!(generation().encode().len() < FILE_BYTES_MAX);
    }

    /// Well-hashed nonsense, as somebody who can write may leave it.
    #[test]
    fn a_right_checksum_is_not_enough() {
        let body = |bytes: &[u8]| finish([&start(MAGIC_GENERATION)[..], &[1; 16], bytes].concat());
        let one_key = |tier: u32| [&7u64.to_be_bytes()[..], &[0, 0, 0, 1], &tier.to_be_bytes(), &[0; 60]].concat();
        assert!(GenerationFile::decode(&body(&one_key(2))).is_ok());
        for (what, bytes) in [
            ("tier 3", one_key(3)),
            ("generation 0", [&0u64.to_be_bytes()[..], &one_key(0)[8..]].concat()),
            ("no keys", [&7u64.to_be_bytes()[..], &[0; 4]].concat()),
            ("2^32 - 1 keys", [&7u64.to_be_bytes()[..], &[0xff; 4], &[0; 4], &[0; 60]].concat()),
            ("the same tier twice", {
                [&7u64.to_be_bytes()[..], &[0, 0, 0, 2], &[0; 4], &[0; 60], &[0; 4], &[0; 60]].concat()
            }),
            ("left over", [one_key(0), vec![0]].concat()),
        ] {
            assert!(GenerationFile::decode(&body(&bytes)).is_err(), "{what}");
        }
        let weak =
            finish([&start(MAGIC_HEADER)[..], &[1; 16], &[0, 0, 0, 8], &[0, 0, 0, 1], &[2; 16], &[3; 60]].concat());
        assert!(Header::decode(&weak).unwrap_err().0.contains("memory"));
    }
}
