//! Judges what a TPM says about itself: is this key in a genuine chip, where does that chip's counter stand, what did the
//! machine boot.
//!
//! | Part | Is |
//! |---|---|
//! | [`certificate`] | the endorsement key's certificate, up to a maker's root that the operator trusts |
//! | [`credential`] | TPM2_MakeCredential without a TPM: a secret that only one chip opens, for one attestation key |
//! | [`judge`] | the exchange: a challenge, then the statements bound to what was in it |
//!
//! A challenge convinces whoever made it, and nobody else: the credential is opened in secret. So each approving
//! administrator, or w witnesses, make their own, and sign what they saw. The statements (key, counter, registers)
//! can be checked by anyone afterwards, from the log, once the secret of the challenge is told.
//!
//! Bytes in, verdicts out; time and context are arguments. It must never need a TPM library, and never judge by anything
//! that a device says in the clear: public areas are rebuilt from templates, so no attribute of a key is negotiable.

#![forbid(unsafe_code)]

pub mod certificate;
pub mod credential;
pub mod judge;

pub use mayfly_evidence as evidence;
