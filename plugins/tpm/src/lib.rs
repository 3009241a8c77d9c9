//! The vault of kind `tpm`: a device's keys sealed by its TPM 2.0, in two halves, under a counter that only goes up.
//!
//! A sealed half opens in this chip only, while the counter stands at its generation, for who has the auth value, and,
//! where the operator wants it, in states of the machine that an approver signed. After a commit no older generation
//! opens again, from whatever copy of the folder: the chip refuses its seal, and the other half is overwritten.
//! What that leaves open is a copy of the *chip's* whole state: the ledger's record of the last acknowledged generation
//! is what stops it. `docs/formats/vault-tpm.md` is the page.
//!
//! | Part | Is |
//! |---|---|
//! | `config` | configuration text, sources of auth values |
//! | `tss` | the one place that calls libtss2: a safe face over ESYS |
//! | `record` | the files' bytes |
//! | `keys` | derived auth values; vault keys from their halves |
//! | `vault` | one connection per call; which chip belongs to the folder; what failures mean |
//! | `enrol` | making a vault |
//! | `generation` | stage, open, commit, discard |
//! | `approval` | approvals of registers (PCR) |
//! | `identity`, `attestation` | signing keys; what the chip says about itself |
//! | `control` | management |
//!
//! The folder itself, and where secrets come from: `mayfly-vault-store`.
//!
//! It must never keep a vault key or a half between calls, leave a session or an object in the chip, use a session that
//! is not salted with a key whose Name it knows, or start a chip's lockout (everything of ours is outside it).

mod approval;
mod attestation;
mod chip;
mod config;
mod control;
mod enrol;
mod error;
mod generation;
mod identity;
mod keys;
mod record;
mod tss;
mod vault;

#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
#[cfg(test)]
mod tests;

pub use vault::TpmVault;

mayfly_plugin_abi::export_vault!(TpmVault);
