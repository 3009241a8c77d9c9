//! Sharing, derivation, IV, signatures and Merkle hashing: bytes in, bytes out; no state, no I/O.
