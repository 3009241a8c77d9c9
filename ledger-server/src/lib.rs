//! The ledger's gateway: sequencer and fan-out over a backend plugin.
