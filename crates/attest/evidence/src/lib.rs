//! The words that a TPM 2.0 and those who judge it have in common: bytes in, bytes out.
//!
//! | Part | Is |
//! |---|---|
//! | [`marshal`] | big-endian reading and writing as in the TPM 2.0 Library, part 2 |
//! | [`object`] | the public areas of our keys, made from one template each, and their Names |
//! | [`nv`] | the three NV indices of a vault and their Names |
//! | [`ek`] | where endorsement keys and their certificates lie, and their templates (TCG EK Credential Profile) |
//! | [`pcr`] | selections of platform configuration registers |
//! | [`policy`] | policy digests, computed in software |
//! | [`approval`] | an approver's word for values of registers, and what he signs |
//! | [`statement`] | what a TPM signs about itself (TPMS_ATTEST), parsed |
//! | [`exchange`] | the messages between a device and a verifier, and what they bind |
//!
//! The vault plugin makes evidence of these, `mayfly-attest` verifies it. A verifier *rebuilds* the public area of a key
//! from its template and the point (x, y), so that no attribute is ever negotiated.
//!
//! It must never depend on a TPM library (agents verify without one), on `mayfly-secmem` (plugins link this crate), and
//! never hold a secret.

#![forbid(unsafe_code)]

pub mod approval;
pub mod ek;
pub mod exchange;
pub mod marshal;
pub mod nv;
pub mod object;
pub mod pcr;
pub mod policy;
pub mod statement;

pub use marshal::Malformed;

use sha2::{Digest, Sha256};

/// SHA-256 of labelled fields: `lp(label) || u64be(n) || lp(f1) || ..`, `lp(x) = u64be(len) || x`. The same encoding as
/// everywhere in Mayfly (`docs/formats/cryptography.md`); written again here because plugins do not link that crate.
#[must_use]
pub fn hash(label: &str, fields: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update((label.len() as u64).to_be_bytes());
    hasher.update(label);
    hasher.update((fields.len() as u64).to_be_bytes());
    for field in fields {
        hasher.update((field.len() as u64).to_be_bytes());
        hasher.update(field);
    }
    hasher.finalize().into()
}

pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}
