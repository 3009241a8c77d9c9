//! Mayfly's cryptography: sharing, derivation, IV, sealing, signatures, Merkle hashing.
//!
//! Bytes in, bytes out: no state, no clock, no input or output but the kernel's randomness. Nothing here decides *who* may do
//! something; that is `mayfly-protocol`.
//!
//! What must never happen in this crate:
//! - a secret (root, shard, key, seed, shared secret) outside an arena slot of `mayfly-secmem` or the secret stack;
//! - a secret in a `Vec`, a `String`, a `Debug` output or an error;
//! - a branch or a table index that depends on a secret (public keys, indices, commitments and lengths are public);
//! - anything but a slot, a number, a `bool` or a whole array as the result of a secret operation: the unused bytes of an enum, such as an
//!   error with fields, would carry out what lay on the secret stack before (seen here; `tests/no_trace.rs` keeps it away);
//! - a panic, or an allocation without a named bound, on bytes that came from outside.
//!
//! | Module | Is |
//! |---|---|
//! | [`enc`] | the one injective encoding of everything that is hashed, signed or derived from |
//! | [`pedersen`] | a root shared t-of-n, verifiably |
//! | [`schedule`] | keys from a root (HKDF), key commitments |
//! | [`iv`] | synthetic IVs |
//! | [`vault`] | keys from vault keys: windows, several vaults together |
//! | [`wrap`] | sealed records: wrapped keys, shards at rest |
//! | [`envelope`] | secrets between two agents, inside TLS |
//! | [`sign`] | Ed25519 (ZIP-215) and ECDSA P-256 (low-S) |
//! | [`merkle`] | RFC 6962 hashing, frontier, inclusion and consistency proofs |
//! | [`checkpoint`] | C2SP checkpoints, signed notes and cosignatures |
#![forbid(unsafe_code)]

mod aead;
pub mod checkpoint;
pub mod enc;
pub mod envelope;
pub mod iv;
pub mod merkle;
pub mod pedersen;
pub mod schedule;
pub mod sign;
pub mod vault;
pub mod wrap;
