//! The bytes of the files; `docs/formats/vault-tpm.md` is their page. Integers are big-endian.
//! What must not be changed is checked by the chip (sealed blobs, policies) or against it (Names).

use crate::keys::CHECK_BYTES;
use mayfly_evidence::approval::Approval;
use mayfly_evidence::marshal::{Malformed, Reader, Writer};
use mayfly_evidence::object::{Name, PUBLIC_BYTES_MAX, Point, Role};
use mayfly_plugin_abi::Tier;
use mayfly_vault_store::{VaultId, record};

const MAGIC_HEADER: &[u8; 8] = b"MAYFLYTV";
const MAGIC_KEY: &[u8; 8] = b"MAYFLYTK";
const MAGIC_GENERATION: &[u8; 8] = b"MAYFLYTG";
const MAGIC_APPROVALS: &[u8; 8] = b"MAYFLYTA";
const VERSION: u16 = 1;
/// Largest private part of an object.
const PRIVATE_BYTES_MAX: usize = 1024;
/// Most approvals that are kept.
pub(crate) const APPROVALS_MAX: usize = 64;
/// Largest of the files.
pub(crate) const FILE_BYTES_MAX: usize = 16 * 1024;

/// File `vault`, and file `enrolling` while it is being made: which chip, which indices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) vault_id: VaultId,
    pub(crate) srk_handle: u32,
    /// The storage root key's Name: another one is another chip.
    pub(crate) srk_name: Name,
    /// The counter's index; the two halves' are the next two.
    pub(crate) nv_base: u32,
    /// What the counter held at generation 0; 0 while enrolling.
    pub(crate) counter_base: u64,
    /// Tells the right auth secret from another.
    pub(crate) auth_check: [u8; CHECK_BYTES],
}

/// Files `identity` and `attestation`: a signing key, as the chip wrapped it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyFile {
    pub(crate) vault_id: VaultId,
    pub(crate) role: Role,
    pub(crate) public: Vec<u8>,
    pub(crate) private: Vec<u8>,
}

/// Files `generation` and `staged`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GenerationFile {
    pub(crate) vault_id: VaultId,
    pub(crate) generation: u64,
    /// Whose approvals of registers the seals demand.
    pub(crate) approver: Option<Point>,
    /// Of the half that lies in the chip.
    pub(crate) half_check: [u8; CHECK_BYTES],
    /// At most one per tier, ascending.
    pub(crate) seals: Vec<Seal>,
}

/// The sealed half of one tier's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) tier: Tier,
    /// Of the whole key.
    pub(crate) key_check: [u8; CHECK_BYTES],
    pub(crate) public: Vec<u8>,
    pub(crate) private: Vec<u8>,
}

/// File `approvals`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Approvals {
    pub(crate) vault_id: VaultId,
    pub(crate) approvals: Vec<Approval>,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let out = start(MAGIC_HEADER, &self.vault_id).u32(self.srk_handle).raw(&self.srk_name);
        finish(out.u32(self.nv_base).u64(self.counter_base).raw(&self.auth_check))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, Malformed> {
        let (mut fields, vault_id) = check(bytes, MAGIC_HEADER)?;
        let header = Header {
            vault_id,
            srk_handle: fields.u32()?,
            srk_name: fields.array()?,
            nv_base: fields.u32()?,
            counter_base: fields.u64()?,
            auth_check: fields.array()?,
        };
        fields.finish()?;
        Ok(header)
    }
}

impl KeyFile {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let role = match self.role {
            Role::Identity => 1,
            Role::Attestation => 2,
        };
        finish(start(MAGIC_KEY, &self.vault_id).u8(role).sized(&self.public).sized(&self.private))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<KeyFile, Malformed> {
        let (mut fields, vault_id) = check(bytes, MAGIC_KEY)?;
        let role = match fields.u8()? {
            1 => Role::Identity,
            2 => Role::Attestation,
            _ => return Err(Malformed("a key for something else")),
        };
        let (public, private) = blob(&mut fields)?;
        fields.finish()?;
        Ok(KeyFile { vault_id, role, public, private })
    }
}

impl GenerationFile {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let out = start(MAGIC_GENERATION, &self.vault_id).u64(self.generation);
        let out = match &self.approver {
            Some(point) => out.u8(1).raw(&point.x).raw(&point.y),
            None => out.u8(0),
        };
        let mut out = out.raw(&self.half_check).u8(self.seals.len() as u8);
        for seal in &self.seals {
            out = out.u32(seal.tier as u32).raw(&seal.key_check).sized(&seal.public).sized(&seal.private);
        }
        finish(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<GenerationFile, Malformed> {
        let (mut fields, vault_id) = check(bytes, MAGIC_GENERATION)?;
        let generation = fields.u64()?;
        let approver = match fields.u8()? {
            0 => None,
            1 => Some(Point { x: fields.array()?, y: fields.array()? }),
            _ => return Err(Malformed("neither with nor without an approver")),
        };
        let half_check = fields.array()?;
        let count = usize::from(fields.u8()?);
        if generation == 0 || !(1..=Tier::ALL.len()).contains(&count) {
            return Err(Malformed("no generation, or an odd number of keys"));
        }
        let mut seals: Vec<Seal> = Vec::with_capacity(count);
        for _ in 0..count {
            let tier = Tier::from_code(fields.u32()?).ok_or(Malformed("unknown tier"))?;
            if seals.last().is_some_and(|before| before.tier >= tier) {
                return Err(Malformed("tiers out of order"));
            }
            let key_check = fields.array()?;
            let (public, private) = blob(&mut fields)?;
            seals.push(Seal { tier, key_check, public, private });
        }
        fields.finish()?;
        Ok(GenerationFile { vault_id, generation, approver, half_check, seals })
    }

    /// Puts in or replaces a tier's seal.
    pub(crate) fn put(&mut self, seal: Seal) {
        self.seals.retain(|other| other.tier != seal.tier);
        self.seals.push(seal);
        self.seals.sort_by_key(|seal| seal.tier);
    }

    pub(crate) fn seal(&self, tier: Tier) -> Option<&Seal> {
        self.seals.iter().find(|seal| seal.tier == tier)
    }
}

impl Approvals {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = start(MAGIC_APPROVALS, &self.vault_id).u16(self.approvals.len() as u16);
        for approval in &self.approvals {
            out = out.raw(&approval.encode());
        }
        finish(out)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Approvals, Malformed> {
        let (mut fields, vault_id) = check(bytes, MAGIC_APPROVALS)?;
        let count = usize::from(fields.u16()?);
        if count > APPROVALS_MAX {
            return Err(Malformed("too many approvals"));
        }
        let approvals = (0..count).map(|_| Approval::read(&mut fields)).collect::<Result<_, _>>()?;
        fields.finish()?;
        Ok(Approvals { vault_id, approvals })
    }
}

fn blob(fields: &mut Reader<'_>) -> Result<(Vec<u8>, Vec<u8>), Malformed> {
    Ok((fields.sized(PUBLIC_BYTES_MAX)?.to_vec(), fields.sized(PRIVATE_BYTES_MAX)?.to_vec()))
}

fn start(magic: &[u8; 8], vault_id: &VaultId) -> Writer {
    Writer::new().raw(&record::start(magic, VERSION)).raw(vault_id)
}

fn finish(out: Writer) -> Vec<u8> {
    record::finish(out.finish())
}

fn check<'a>(bytes: &'a [u8], magic: &[u8; 8]) -> Result<(Reader<'a>, VaultId), Malformed> {
    let mut fields = Reader::new(record::body(bytes, magic, VERSION).map_err(Malformed)?);
    let vault_id = fields.array()?;
    Ok((fields, vault_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_evidence::pcr::Selection;

    fn round<T: PartialEq + std::fmt::Debug>(
        value: T,
        encode: impl Fn(&T) -> Vec<u8>,
        decode: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) {
        let bytes = encode(&value);
        assert!(bytes.len() <= FILE_BYTES_MAX);
        assert_eq!(decode(&bytes), Ok(value));
        for end in 0..bytes.len() - record::HASH_BYTES {
            // well hashed, and cut
            let cut = record::finish(bytes[..end].to_vec());
            assert!(decode(&cut).is_err(), "cut at {end}");
        }
    }

    fn seal(tier: Tier) -> Seal {
        Seal { tier, key_check: [6; 16], public: vec![7; 80], private: vec![8; 150] }
    }

    #[test]
    fn files() {
        let header = Header {
            vault_id: [1; 16],
            srk_handle: 0x8100_0001,
            srk_name: [2; 34],
            nv_base: 0x0180_4d00,
            counter_base: 9,
            auth_check: [3; 16],
        };
        round(header, Header::encode, Header::decode);
        for role in [Role::Identity, Role::Attestation] {
            let key = KeyFile { vault_id: [1; 16], role, public: vec![4; 88], private: vec![5; 126] };
            round(key, KeyFile::encode, KeyFile::decode);
        }
        for approver in [None, Some(Point { x: [1; 32], y: [2; 32] })] {
            let seals = Tier::ALL.map(seal).to_vec();
            let file = GenerationFile { vault_id: [1; 16], generation: 3, approver, half_check: [4; 16], seals };
            round(file, GenerationFile::encode, GenerationFile::decode);
        }
        let approval =
            Approval { generation: 4, registers: Selection::of(&[7]).unwrap(), digest: [5; 32], signature: [6; 64] };
        let approvals = Approvals { vault_id: [1; 16], approvals: vec![approval; APPROVALS_MAX] };
        round(approvals, Approvals::encode, Approvals::decode);
    }

    #[test]
    fn one_seal_per_tier_in_order() {
        let mut file = GenerationFile {
            vault_id: [1; 16],
            generation: 1,
            approver: None,
            half_check: [0; 16],
            seals: vec![seal(Tier::Window)],
        };
        file.put(seal(Tier::Boot));
        file.put(Seal { key_check: [9; 16], ..seal(Tier::Window) });
        assert_eq!(file.seals.iter().map(|seal| seal.tier).collect::<Vec<_>>(), [Tier::Boot, Tier::Window]);
        assert_eq!(file.seal(Tier::Window).unwrap().key_check, [9; 16]);
        assert!(file.seal(Tier::PerRelease).is_none());
        file.seals.swap(0, 1);
        assert!(GenerationFile::decode(&file.encode()).is_err());
    }
}
