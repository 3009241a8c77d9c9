//! The ledger backend of kind `embedded`: one redb file under one gateway, fsync before acknowledging.
//!
//! | Part | Is |
//! |---|---|
//! | `config` | configuration text |
//! | `row` | what a stored row looks like, and its own hash |
//! | `store` | opening, transactions, full disks, damaged files |
//! | `tables` | head, bundles, checkpoints, snapshots in transactions |
//! | `backend` | the calls of the plugin interface |
//!
//! Every row carries its own SHA-256, checked at every read: redb's checksums guard against a torn commit, not against
//! a flipped bit in an old page. What no store can show, a whole file that was put back, the replicas' saved heads do.
//!
//! It must never acknowledge what is not on the disk, nor make room by dropping anything that it was not told to drop.

mod backend;
mod config;
mod row;
mod store;
mod tables;

pub use backend::Embedded;

mayfly_plugin_abi::export_backend!(Embedded);
