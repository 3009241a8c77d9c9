//! Ledger records, the pure apply, and the key protocols as state machines: no tokio, no clock, no files.
