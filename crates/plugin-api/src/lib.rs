//! Plugins, seen from our side: a small host process per plugin, a facade that distrusts it, contract suites.
//!
//! | Part | Is |
//! |---|---|
//! | [`VaultPlugin`], [`BackendPlugin`] | what agent and gateway call; each owns one `mayfly-plugin-host` process |
//! | [`HostConfig`], [`find_artifact`] | which plugin, with what configuration, under which limits |
//! | [`inspect`] | what a plugin's table says, without opening it |
//! | [`PluginError`] | every way in which a plugin fails; the text starts with `vault(file): ` or `ledger(embedded): ` |
//! | [`contract`] | the suites that a plugin of a kind must pass; `mayfly plugin test` runs them |
//! | [`host`] | the body of `mayfly-plugin-host` |
//! | [`abi`] | the C table itself (`mayfly-plugin-abi`), which plugins link instead of this crate |
//!
//! # What it must never do
//! * load a plugin into the process of agent or gateway;
//! * believe an answer: lengths, ids, ranges and order are checked before a caller sees them, and a call that takes
//!   too long ends its host;
//! * move a vault key through a pipe or socket: keys travel in one page of `memfd_secret` memory that only the two
//!   processes map (what is written to a socket stays in kernel memory).
//!
//! What a plugin sees: vault keys, or ledger bundles. Never shards, roots or sessions.

pub mod contract;
pub mod host;

mod artifact;
mod backend;
mod client;
mod codec;
mod config;
mod error;
mod page;
mod path;
mod signature;
mod vault;

/// The C table, version 1, and its limits.
pub use mayfly_plugin_abi as abi;

pub use abi::{
    Alg, Bundle, Caps, Checkpoint, Generations, Head, Health, HealthState, Identity, Lease, Snapshot, SnapshotInfo,
    Status, Tier, VaultDescription,
};
pub use artifact::{ArtifactMissing, artifact_folders, find_artifact};
pub use backend::{Append, BackendPlugin, ReadAnswer};
pub use client::{PluginInfo, inspect};
pub use config::{CALL_TIMEOUT_DEFAULT, HostConfig, Kind, Network};
pub use error::PluginError;
pub use path::{PathError, PathRule, check_path, sha256_of};
pub use vault::VaultPlugin;
