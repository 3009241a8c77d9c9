//! The host agent (mayflyd) and the command line (mayfly).
//!
//! | Module | Is |
//! |---|---|
//! | [`app`] | the agent towards applications and the command line: sockets, tokens, objects, operations |
//! | [`cli`] | the command line |
//! | [`config`] | the agent's configuration file |
//! | [`join_token`] | what `mayfly invite` prints and `mayfly join` takes |
//! | [`node`] | the agent towards ledger, vault and other agents: membership, freshness, shards, keys |
#![forbid(unsafe_code)]

pub mod app;
pub mod cli;
pub mod config;
pub mod join_token;
mod moment;
pub mod node;
