//! Whole-system tests: what Mayfly promises, judged by unmodified `pkcs11-tool`, `openssl` and python-pkcs11, and by what is left behind.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]

mod attestation;
mod command;
mod faults;
mod memory;
mod module;
mod openssl;
mod processes;
mod python;
mod rights;
mod rollback;
mod socket;
mod table;
mod vaults;
