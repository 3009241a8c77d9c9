//! The harness of the whole-system tests: real gateways, agents and clients.
//!
//! Each test makes a [`Network`] of its own by `mayfly dev up` in a temporary folder, so that all can run at the same time. It ends with the
//! test, also when the test fails; should the test's process be killed, the network's processes see that and end by themselves. Nothing here
//! may look inside the programs: what a test knows, it knows from their output, their files and others' tools.
#![forbid(unsafe_code)]

mod network;
mod programs;
mod run;

pub use network::{Agent, Network, Options, id_of};
pub use programs::{program, python};
pub use run::{Ran, run, run_reading};
