//! Vault plugin: keys of a device in passphrase-sealed files (software only, for development).
