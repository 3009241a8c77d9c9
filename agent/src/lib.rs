//! The host agent (mayflyd) and the command line (mayfly).
//!
//! | Module | Is |
//! |---|---|
//! | [`config`] | the agent's configuration file |
//! | [`node`] | the agent towards ledger, vault and other agents: membership, freshness, shards, keys |
#![forbid(unsafe_code)]

pub mod config;
pub mod node;
