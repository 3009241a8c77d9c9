//! What the vault plugins have in common, below what they seal with.
//!
//! | Part | Is |
//! |---|---|
//! | [`Store`] | the private folder: durable atomic writes, one user at a time, overwriting |
//! | [`record`] | the frame of every file: magic and version in front, SHA-256 behind |
//! | [`config`] | configuration text; passphrases, PINs and auth values from files and systemd credentials |
//! | [`refusal`] | what every vault refuses in the same words |
//! | `faults` | failing on purpose, for tests of crashes (feature `faults`) |
//!
//! It must never know what a file means, keep a secret after giving it out, or link `mayfly-secmem`: plugins run in a
//! process whose allocator wipes already, and must not bring an allocator of their own.

#![forbid(unsafe_code)]

pub mod config;
#[cfg(any(test, feature = "faults"))]
pub mod faults;
pub mod record;
pub mod refusal;
mod store;

pub use store::{FREE_BYTES_MIN, Store};

use mayfly_plugin_abi::{GuestError, Status};

/// File that says which vault a folder is; made once.
pub const HEADER: &str = "vault";
/// File of the identity key; made once.
pub const IDENTITY: &str = "identity";
/// File of the keys that open.
pub const GENERATION: &str = "generation";
/// File of the keys that would open after a commit.
pub const STAGED: &str = "staged";

/// Random name of a vault: in each of its files, so that none is taken for another vault's.
pub type VaultId = [u8; 16];

/// Random bytes of the kernel.
///
/// # Errors
/// [`Status::Io`] where the kernel has none.
pub fn random(out: &mut [u8]) -> Result<(), GuestError> {
    getrandom::fill(out).map_err(|error| GuestError::new(Status::Io, format!("random numbers: {error}")))
}
