//! The plugin interface itself: the C table, version 1, and the safe traits by which a Rust plugin fills it.
//!
//! This crate is linked into plugins, which are loaded into a process that replaces `free` and `realloc` by wiping
//! ones. It must therefore never depend on `mayfly-secmem` (a second set of those symbols inside a shared library),
//! nor on anything else: what is here is data layout, status numbers and the code that carries calls across.
//!
//! The layout is written twice, here and in `include/mayfly_plugin.h`; tests on both sides compare every offset.
//! `docs/formats/plugin-abi.md` is the page for people who write a plugin.

mod backend;
mod carry;
mod guest;
mod status;
mod table;
mod vault;

pub use backend::{BackendGuest, Bundle, Caps, Checkpoint, Lease, Snapshot};
pub use guest::{Alg, Generations, GuestError, Health, HealthState, Identity, Tier, VaultDescription};
pub use status::Status;
pub use table::*;
pub use vault::VaultGuest;
