//! The vault of kind `file`: a device's keys in a private folder, sealed under a passphrase. Software only.
//!
//! For development, tests, and hosts that have neither a TPM nor a token. Who copies the folder *and* learns the
//! passphrase has every generation of which a copy exists, revoked ones included: no file can forget. The ledger's
//! record of the last acknowledged generation is what stops a rolled-back folder.
//!
//! | Part | Is |
//! |---|---|
//! | `config` | configuration text, passphrase sources |
//! | `record` | the files' bytes: `docs/formats/vault-file.md` |
//! | `seal` | Argon2id (RFC 9106) and AES-256-GCM-SIV (RFC 8452) |
//! | `vault` | generations and identity by the rules of the plugin interface |
//!
//! The folder itself, and where secrets come from: `mayfly-vault-store`.
//!
//! It must never keep a vault key or the identity's seed in memory between calls, nor write one unsealed.

mod config;
mod record;
mod seal;
mod vault;

pub use vault::FileVault;

mayfly_plugin_abi::export_vault!(FileVault);
