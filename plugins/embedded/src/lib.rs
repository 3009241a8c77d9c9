//! Ledger backend plugin: one redb file, fsync before acknowledging.
