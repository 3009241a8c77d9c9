//! The ledger's gateway: puts records in order over a backend plugin and sends them to everybody.
//!
//! | Part | Is |
//! |---|---|
//! | [`run`] | the service: a listener, a backend, until told to stop |
//! | `opening` | start: reads the whole store, judges every entry again, and refuses a store that does not add up |
//! | `sequencer` | the one task that decides what comes next; acknowledges only what the backend has made durable |
//! | `notary` | signs heads, collects cosignatures, says which head is witnessed |
//! | `feed` | what there is to send: one shared ring of encoded bundles, a cursor per client |
//! | `session` | one client: TLS, WebSocket, hello, then reading and sending side by side |
//!
//! What it must never do:
//! - acknowledge before the backend has said "durable", or guess what became of an append: doubt is resolved by reading;
//! - hold a queue of its own per client, or wait for a slow one;
//! - be needed for trust: everything it sends is verified by whoever receives it.
#![forbid(unsafe_code)]

pub mod backend;
pub mod config;
pub mod key;

mod clock;
mod feed;
mod ladder;
mod limits;
mod notary;
mod opening;
mod sequencer;
mod server;
mod session;

pub use opening::OpeningError;
pub use server::{Gateway, run};
