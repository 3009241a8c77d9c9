//! The vault of kind `pkcs11`: a device's keys in a PKCS#11 token (v2.40 or later).
//!
//! Each generation of the vault is an AES-256 key in the token that cannot leave it. A vault key is 32 random bytes
//! whose sealed form lies in the private folder; the token opens it. Revoking destroys the generation's key in the
//! token, so that no copy of the folder opens again. The identity is a P-256 key in the token.
//!
//! | Part | Is |
//! |---|---|
//! | `config` | configuration text |
//! | `pin` | where the PIN comes from, and that a refused one is not tried again |
//! | `module` | the vendor's library: checking its path, loading it, finding the token |
//! | `token` | the session: login, and opening it again when it is lost |
//! | `objects` | the vault's objects in the token: names, making, finding, destroying |
//! | `seal` | AES-GCM with AAD, or AES-KEY-WRAP-PAD, by a key of the token |
//! | `identity` | the P-256 key, its public half, fixed low-S signatures |
//! | `error` | return values of the token as statuses of the plugin interface |
//! | `record` | the files' bytes: `docs/formats/vault-pkcs11.md` |
//! | `vault` | generations and identity by the rules of the plugin interface |
//!
//! The folder itself, and where secrets come from: `mayfly-vault-store`.
//!
//! It must never keep a PIN or a vault key between calls, never try a PIN twice that was refused once, and never say
//! that a generation is gone before a new search of the token has found nothing of it.
//!
//! One token may serve several vaults (and other programs): every object carries the vault's random id in label and id,
//! and nothing else in the token is touched.

mod config;
mod error;
mod identity;
mod module;
mod objects;
mod pin;
mod record;
mod seal;
mod token;
mod vault;

pub use vault::Pkcs11Vault;

mayfly_plugin_abi::export_vault!(Pkcs11Vault);
