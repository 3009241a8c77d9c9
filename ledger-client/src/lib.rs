//! A verified copy of the ledger, kept up to date over WebSocket, and the way to put records on it.
//!
//! | Part | Is |
//! |---|---|
//! | [`Replica`] | the copy: entries on disk, state at the tip and at the newest witnessed head, one thread that keeps it up to date |
//! | [`Author`] | one author's chain of records: numbers, signs, saves before it submits, finds out what became of each |
//! | [`Chain`] | the pure part: what follows what, and which head is witnessed; the gateway uses it too |
//! | [`NetworkFile`] | `network.toml`: which network, its first entry, its gateways and their keys |
//! | [`tls`] | TLS 1.3 towards gateways whose raw public keys are pinned |
//!
//! What it must never do:
//! - believe a gateway: every entry is judged by `State::apply` here, every head is compared with the root over these entries;
//! - overwrite what it has verified, accept a smaller ledger than the one it has, or go on after two heads did not reconcile;
//! - cosign a head before its entries are verified and synced to disk here.
#![forbid(unsafe_code)]

pub mod tls;

mod author;
mod chain;
mod connection;
mod keeper;
mod network;
mod replica;
mod store;
mod witness;
mod worker;

#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use author::{Author, EntrySigner, PostError};
pub use chain::{Advance, Chain, ChainError, Draft};
pub use keeper::with_cause;
pub use network::{GatewayAddress, NetworkFile, NetworkFileError};
pub use replica::{
    Alarm, Change, HelloSigner, OpenError, Replica, ReplicaConfig, ReplicaStatus, SignerError, StoredEntry,
    SubmitError, Timeout,
};
pub use store::StoreError;
pub use witness::Cosigner;
