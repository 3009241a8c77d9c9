//! PKCS#11 mechanisms on AWS-LC: the only caller of `aws-lc-sys`.
//!
//! Bytes in, bytes out: no handles, no attributes, no sessions, no policy. Whoever calls (the agent) has decided that the
//! operation may happen, translates `CK_` structures to [`Mechanism`], and holds the key in [`mayfly_secmem`].
//!
//! | Ask for | Call |
//! |---|---|
//! | a whole message | [`encrypt`], [`decrypt`], [`sign`], [`verify`], [`digest()`] |
//! | a message in parts | [`Stream`] |
//! | lengths | [`encrypted_len`], [`decrypted_len_max`], [`signature_len`], [`Stream::update_len`], [`Stream::finish_len`] |
//! | keys | [`generate_secret`], [`generate_ec`], [`import_ec_pkcs8`], [`import_ec_scalar`], [`export_ec_pkcs8`] |
//! | encodings | [`Curve::params_der`], [`ec_point`], [`ec_point_der`], [`ec_public`] |
//! | what there is | [`mechanisms`] |
//!
//! # What it must never do
//! * say more about a failed decryption than that it failed: [`Error::Decrypt`] is all there is;
//! * give out plaintext of an authenticated mode before its tag was checked;
//! * put a key, or a context made from one, on an ordinary stack or in an ordinary `Vec`;
//! * list a mechanism that does not work, or keep one that works off the list.
//!
//! # What is safe
//! Every function here that touches a key runs that part on the secret stack itself, and lets only plain values leave it
//! (`docs/decisions/0005`). Callers need no `on_secret_stack` around a call; inside one, the calls run in place, and the caller
//! must see to it that no [`Error`] or [`Stream`] travels out as the closure's result. A panic inside becomes
//! [`Error::Panicked`]; it says nothing.
//! AWS-LC's own heap, where contexts live during an operation, is not locked; it wipes what it frees.
//! Outputs go where the caller says: plaintexts that are secret belong into a slot of the arena, and no output of a
//! decryption into memory that others see before the call has returned.
//!
//! Randomness for keys comes from the kernel. The nonces of ECDSA come from AWS-LC's generator, mixed with key and hash.

mod block;
mod cipher;
mod ctr;
mod digest;
mod ec;
mod ecdsa;
mod error;
mod ffi;
mod gcm;
mod key;
mod mac;
mod mechanism;
mod oneshot;
mod stream;

pub use digest::{DIGEST_BYTES_MAX, Hash, digest};
pub use ec::{
    Curve, EcPair, ec_point, ec_point_der, ec_public, export_ec_pkcs8, generate_ec, import_ec_pkcs8, import_ec_scalar,
};
pub use ecdsa::ECDSA_HASH_BYTES_MAX;
pub use error::Error;
use error::FlatError;
pub use gcm::GCM_BUFFER_BYTES_MAX;
pub use key::{Key, generate_secret};
use mayfly_secmem::Dense;
pub use mechanism::{
    Ctr, GCM_AAD_BYTES_MAX, GCM_IV_BYTES, Gcm, HMAC_KEY_BYTES_MAX, Hmac, Iv, Mechanism, MechanismInfo, MechanismKind,
    Operation, mechanisms,
};
pub use oneshot::{decrypt, decrypted_len_max, encrypt, encrypted_len, sign, signature_len, verify};
pub use stream::Stream;

/// Runs secret work on the secret stack; in place, when the caller is there already.
fn secretly<R: Dense>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    if mayfly_secmem::runs_on_secret_stack() {
        return work();
    }
    // The `Result` of `work` ends there; what it holds is written here piece by piece.
    let (mut done, mut failure) = (None, FlatError::default());
    mayfly_secmem::try_on_secret_stack(|| match work() {
        Ok(result) => done = Some(result),
        Err(why) => failure = FlatError::from(&why),
    })?;
    done.ok_or_else(|| failure.into())
}
