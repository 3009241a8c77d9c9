//! PKCS#11 mechanisms on AWS-LC: the only caller of `aws-lc-sys`.
//!
//! Bytes in, bytes out: no handles, no attributes, no sessions, no policy. Whoever calls (the agent) has decided that the
//! operation may happen, translates `CK_` structures to [`Mechanism`], and holds the key in [`mayfly_secmem`].
//!
//! | Ask for | Call |
//! |---|---|
//! | a whole message | [`encrypt`], [`decrypt`], [`sign`], [`verify`], [`digest`] |
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
//! Every function here that touches a key runs its work by [`mayfly_secmem::try_on_secret_stack`] itself. A caller that does
//! more than this one call with a secret (assemble the key, use it, drop it) wraps the whole in `on_secret_stack`; the calls
//! inside then run in place and cost nothing extra. A panic inside becomes [`Error::Panicked`]; it says nothing.
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
pub use gcm::GCM_BUFFER_BYTES_MAX;
pub use key::{Key, generate_secret};
pub use mechanism::{
    Ctr, GCM_AAD_BYTES_MAX, GCM_IV_BYTES, Gcm, HMAC_KEY_BYTES_MAX, Hmac, Iv, Mechanism, MechanismInfo, MechanismKind,
    Operation, mechanisms,
};
pub use oneshot::{decrypt, decrypted_len_max, encrypt, encrypted_len, sign, signature_len, verify};
pub use stream::Stream;

/// Runs secret work on the secret stack; in place, when the caller is there already.
fn secretly<R>(work: impl FnOnce() -> Result<R, Error>) -> Result<R, Error> {
    mayfly_secmem::try_on_secret_stack(work)?
}
