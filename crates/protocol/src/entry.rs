//! The signed envelope of every record, version 1. Format page: `docs/formats/records.md`.

use crate::cbor::{self, CborError};
use crate::head::Head;
use crate::ids::{AuthorId, EntryId, Hash, NetworkId, public_key_id};
use mayfly_crypto::enc;
use mayfly_crypto::sign::PublicKey;
use minicbor::{Decode, Encode};
use sha2::{Digest, Sha256};

/// Version of the envelope.
pub const VERSION: u8 = 1;
/// Largest entry in bytes, signatures included.
pub const ENTRY_BYTES_MAX: usize = 32 * 1024;
/// Most signatures on one entry: every administrator of a large network, or a joining device and its invitation.
pub const SIGNATURES_MAX: usize = 16;

/// One signature over an entry's signed bytes.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Signature {
    /// Id of the public key that verifies it ([`public_key_id`]).
    #[cbor(n(0), with = "minicbor::bytes")]
    pub key_id: [u8; 32],
    /// 64 bytes: Ed25519 (RFC 8032), or ECDSA P-256 as r‖s with low s.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub bytes: Vec<u8>,
}

/// A record with its author, its place in the author's own chain, the head that the author knew, and its signatures.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Entry {
    /// [`VERSION`].
    #[n(0)]
    pub version: u8,
    /// The network; zeros in the genesis entry, whose id becomes the network's.
    #[n(1)]
    pub network: NetworkId,
    /// Number of the record's kind ([`crate::record::Kind`]).
    #[n(2)]
    pub kind: u16,
    /// Device or administrator who says this.
    #[n(3)]
    pub author: AuthorId,
    /// 1 for the author's first record, then one more each.
    #[n(4)]
    pub author_seq: u64,
    /// Id of the author's previous record; zeros before the first.
    #[n(5)]
    pub author_prev: EntryId,
    /// The newest head that the author had verified.
    #[n(6)]
    pub head: Head,
    /// The record, deterministic CBOR.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub payload: Vec<u8>,
    /// Signatures over [`Entry::signed_bytes`], the author's first.
    #[n(8)]
    pub signatures: Vec<Signature>,
}

/// Why bytes are not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Larger than [`ENTRY_BYTES_MAX`].
    #[error("entry of {0} bytes is larger than {ENTRY_BYTES_MAX}")]
    TooLarge(usize),
    /// Not the deterministic encoding of an entry.
    #[error("entry is malformed")]
    Malformed(#[from] CborError),
    /// Written by another version.
    #[error("entry has version {0}, this program knows {VERSION}")]
    Version(u8),
    /// No signature, or more than [`SIGNATURES_MAX`].
    #[error("entry carries {0} signatures, 1 to {SIGNATURES_MAX} are allowed")]
    Signatures(usize),
}

impl Entry {
    /// Decodes received bytes. Signatures are *not* checked here: [`crate::State::apply`] does.
    pub fn decode(bytes: &[u8]) -> Result<Entry, EntryError> {
        if bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::TooLarge(bytes.len()));
        }
        let entry: Entry = cbor::from_exact(bytes)?;
        if entry.version != VERSION {
            return Err(EntryError::Version(entry.version));
        }
        if entry.signatures.is_empty() || entry.signatures.len() > SIGNATURES_MAX {
            return Err(EntryError::Signatures(entry.signatures.len()));
        }
        Ok(entry)
    }

    /// The entry as it travels and rests.
    pub fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// What signatures cover: `enc("mayfly/v1/entry", network, kind, author, author_seq, author_prev, head, payload)`.
    pub fn signed_bytes(&self) -> Vec<u8> {
        enc::enc(
            "mayfly/v1/entry",
            &[
                self.network.as_bytes(),
                &u64::from(self.kind).to_be_bytes(),
                self.author.as_bytes(),
                &self.author_seq.to_be_bytes(),
                self.author_prev.as_bytes(),
                &self.head.to_bytes(),
                &self.payload,
            ],
        )
    }

    /// The entry's id: SHA-256 of its signed bytes. Signatures are left out, since some can be changed without a key.
    pub fn id(&self) -> EntryId {
        EntryId(sha256(&self.signed_bytes()))
    }

    /// Adds a signature made by whoever holds `key`: `sign` gets the signed bytes.
    pub fn sign_with<E>(&mut self, key: &PublicKey, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<(), E> {
        let bytes = sign(&self.signed_bytes())?;
        self.signatures.push(Signature { key_id: public_key_id(key), bytes });
        Ok(())
    }

    /// Whether one of the signatures is by `key` and good.
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let id = public_key_id(key);
        let message = self.signed_bytes();
        self.signatures.iter().filter(|s| s.key_id == id).any(|s| key.verify(&message, &s.bytes).is_ok())
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// The bytes of a leaf of the tree: big-endian milliseconds at which the sequencer took the entry, then the entry.
pub fn leaf(time_ms: u64, entry: &[u8]) -> Vec<u8> {
    [&time_ms.to_be_bytes(), entry].concat()
}

/// RFC 6962 hash of a leaf.
pub fn leaf_hash(time_ms: u64, entry: &[u8]) -> Hash {
    Hash(mayfly_crypto::merkle::leaf_hash(&leaf(time_ms, entry)))
}
