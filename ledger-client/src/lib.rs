//! Verified replica of the ledger and its WebSocket sync.
