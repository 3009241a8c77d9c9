//! What goes into the node and comes out of it: a new key's description, an assembled key, and how the assembly went.

use mayfly_crypto::schedule::Label;
use mayfly_protocol::record::{Attribute, KeyPolicy, Origin, Schedule};
use mayfly_protocol::rules::KeyType;
use mayfly_protocol::{DeviceId, KeyId, TokenId};
use mayfly_secmem::{Secret, SecretBytes};
use std::time::Duration;

/// What a new key is made of.
#[derive(Debug)]
pub enum Material {
    /// Key bytes are derived from the root: AES, HMAC and generic keys that are made here.
    Derived,
    /// Key bytes that exist already, or have a form of their own (EC): wrapped under a key derived from the root. In the form in which
    /// [`AssembledKey::bytes`] gives them back.
    Wrapped(SecretBytes),
}

/// Who gets shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holders {
    /// Exactly so many of the devices that are holders; those that are connected first.
    Count(usize),
    /// All that are holders, up to what a key can have.
    All,
    /// These.
    Listed(Vec<DeviceId>),
}

/// A key to be made.
#[derive(Debug)]
pub struct NewKey {
    /// Its token.
    pub token: TokenId,
    /// Its type.
    pub key_type: KeyType,
    /// Its bytes.
    pub material: Material,
    /// For the record: made here or brought in.
    pub origin: Origin,
    /// Shares needed, at least 2.
    pub t: u8,
    /// Who gets shards.
    pub holders: Holders,
    /// Who may put it together; `None`: this device alone.
    pub assemblers: Option<Vec<DeviceId>>,
    /// Attributes of the secret or private object, ascending by type.
    pub attributes: Vec<Attribute>,
    /// Attributes of the public object of a pair.
    pub public_attributes: Option<Vec<Attribute>>,
    /// Who may use it for what.
    pub policy: KeyPolicy,
    /// When its shards are refreshed.
    pub schedule: Schedule,
    /// End of validity of its shards, ledger time in milliseconds; `None`: no end.
    pub valid_until_ms: Option<u64>,
}

/// A key, whole, for the moment of one operation (or its window). In secret memory; wiped when the last user lets go.
#[derive(Debug)]
pub struct AssembledKey {
    pub(crate) id: KeyId,
    pub(crate) key_type: KeyType,
    pub(crate) bytes: SecretBytes,
    pub(crate) iv_key: Option<Secret<32>>,
    pub(crate) report: AssemblyReport,
}

impl AssembledKey {
    /// The key's id.
    pub fn id(&self) -> &KeyId {
        &self.id
    }

    /// Its type.
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    /// The key bytes: raw value of AES, HMAC and generic keys; for others what was given as [`Material::Wrapped`].
    pub fn bytes(&self) -> &[u8] {
        self.bytes.expose()
    }

    /// `K_iv` of the IV service; present only when the key was assembled for [`mayfly_protocol::rules::Use::Iv`].
    pub fn iv_key(&self) -> Option<&Secret<32>> {
        self.iv_key.as_ref()
    }

    /// How it was put together.
    pub fn report(&self) -> &AssemblyReport {
        &self.report
    }
}

/// How a key was put together, for `--explain`. Public facts only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssemblyReport {
    /// Shares needed.
    pub t: u8,
    /// Generation of the key.
    pub generation: u64,
    /// Epoch of its shards.
    pub epoch: u64,
    /// Whose shares were combined.
    pub shares: Vec<ShareReport>,
    /// Devices whose shares were found bad on the way, by name.
    pub liars: Vec<String>,
    /// From the beginning until the key was there.
    pub took: Duration,
    /// Size of the ledger that it was judged by.
    pub ledger_size: u64,
    /// What was derived from the root.
    pub derived: Vec<&'static str>,
}

/// One share of an assembly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShareReport {
    /// Name of the holder.
    pub device: String,
    /// Its index.
    pub index: u32,
    /// Whether the holder was this device.
    pub own: bool,
    /// When it was there, from the beginning.
    pub after: Duration,
}

/// Names of labels for [`AssemblyReport::derived`].
pub(crate) fn label_names(labels: &[Label]) -> Vec<&'static str> {
    labels.iter().map(|l| l.as_str()).collect()
}
