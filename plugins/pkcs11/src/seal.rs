//! Sealing 32 bytes by a key of the token, in one of two ways.
//!
//! - `CKM_AES_GCM`, the context as additional data: IV (12 bytes), ciphertext (32), tag (16).
//! - `CKM_AES_KEY_WRAP_PAD` (RFC 5649) for tokens without GCM. It has no additional data, so what is wrapped is
//!   SHA-256(context) and the secret, 64 bytes, and the hash is compared after unwrapping: 72 bytes.
//!
//! What was sealed is opened at once and compared: a token that takes its own view of a mechanism (an IV of its own
//! that it does not give back, a tag elsewhere) is found out before anything depends on it.

use crate::error::{self, Fault};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismInfo, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::random;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// Bytes of what is sealed.
pub(crate) const SECRET_BYTES: usize = 32;
/// Bytes of an IV (NIST SP 800-38D).
const IV_BYTES: usize = 12;
/// Bits of a tag.
const TAG_BITS: u64 = 128;
/// v3.0's answer to a wrong tag, which the cryptoki crate does not name.
const CKR_AEAD_DECRYPT_FAILED: u64 = 0x35;
/// Bytes of a context's hash in what is wrapped.
const CONTEXT_BYTES: usize = 32;
/// RFC 5649: 8 bytes more than what is wrapped, which is a multiple of 8 here.
const WRAP_BYTES: usize = 8;

/// The two ways; the numbers are in the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Sealing {
    /// `CKM_AES_GCM`.
    Gcm = 1,
    /// `CKM_AES_KEY_WRAP_PAD`.
    KeyWrapPad = 2,
}

impl Sealing {
    /// Both, the preferred one first.
    pub(crate) const ALL: [Sealing; 2] = [Sealing::Gcm, Sealing::KeyWrapPad];

    pub(crate) fn code(self) -> u16 {
        self as u16
    }

    pub(crate) fn from_code(code: u16) -> Option<Sealing> {
        Sealing::ALL.into_iter().find(|sealing| sealing.code() == code)
    }

    /// Bytes of a sealed secret.
    pub(crate) fn sealed_bytes(self) -> usize {
        match self {
            Sealing::Gcm => IV_BYTES + SECRET_BYTES + (TAG_BITS / 8) as usize,
            Sealing::KeyWrapPad => CONTEXT_BYTES + SECRET_BYTES + WRAP_BYTES,
        }
    }

    pub(crate) fn mechanism(self) -> MechanismType {
        match self {
            Sealing::Gcm => MechanismType::AES_GCM,
            Sealing::KeyWrapPad => MechanismType::AES_KEY_WRAP_PAD,
        }
    }

    /// The standard's name, for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Sealing::Gcm => "CKM_AES_GCM",
            Sealing::KeyWrapPad => "CKM_AES_KEY_WRAP_PAD",
        }
    }

    /// True when the token does with the mechanism what we need.
    pub(crate) fn is_offered(self, info: &MechanismInfo) -> bool {
        match self {
            Sealing::Gcm => info.encrypt() && info.decrypt(),
            Sealing::KeyWrapPad => info.wrap() && info.unwrap(),
        }
    }

    /// What a generation's key is allowed to do: this, and nothing else.
    pub(crate) fn usage(self) -> [Attribute; 4] {
        let gcm = self == Sealing::Gcm;
        [Attribute::Encrypt(gcm), Attribute::Decrypt(gcm), Attribute::Wrap(!gcm), Attribute::Unwrap(!gcm)]
    }

    /// Seals `secret` for `context`.
    pub(crate) fn seal(
        self,
        session: &Session,
        key: ObjectHandle,
        context: &[u8],
        secret: &[u8; SECRET_BYTES],
    ) -> Result<Vec<u8>, Fault> {
        let sealed = self.try_seal(session, key, context, secret)?;
        if !self.gives_back(session, key, context, &sealed, secret) {
            let text = format!(
                "the token's {} does not give back what it sealed; set another `seal` in the vault's configuration",
                self.name()
            );
            return Err(GuestError::new(Status::Unsupported, text).into());
        }
        Ok(sealed)
    }

    /// Opens what [`Sealing::seal`] made into `secret`, which is zero when it does not open.
    pub(crate) fn open(
        self,
        session: &Session,
        key: ObjectHandle,
        context: &[u8],
        sealed: &[u8],
        secret: &mut [u8; SECRET_BYTES],
    ) -> Result<(), Fault> {
        secret.zeroize();
        match self.try_open(session, key, context, sealed, secret) {
            Err(Fault::Token(error)) if means_wrong(&error) => Err(does_not_open(&error::name(&error)).into()),
            // said of a wrong tag by some tokens, and of anything by a library whose token is out of reach: a token that
            // works is asked for a proof before people are told that their vault is damaged
            Err(Fault::Token(error)) if error::is_vague(&error) && self.works(session, key) => {
                Err(does_not_open(&error::name(&error)).into())
            }
            other => other,
        }
    }

    /// Whether the token seals and opens with this key at the moment.
    fn works(self, session: &Session, key: ObjectHandle) -> bool {
        const PROBE: [u8; SECRET_BYTES] = [0; SECRET_BYTES];
        let sealed = self.try_seal(session, key, b"probe", &PROBE);
        sealed.is_ok_and(|sealed| self.gives_back(session, key, b"probe", &sealed, &PROBE))
    }

    fn gives_back(
        self,
        session: &Session,
        key: ObjectHandle,
        context: &[u8],
        sealed: &[u8],
        secret: &[u8; SECRET_BYTES],
    ) -> bool {
        let mut again = Zeroizing::new([0u8; SECRET_BYTES]);
        sealed.len() == self.sealed_bytes()
            && self.try_open(session, key, context, sealed, &mut again).is_ok()
            && bool::from(again[..].ct_eq(&secret[..]))
    }

    fn try_seal(
        self,
        session: &Session,
        key: ObjectHandle,
        context: &[u8],
        secret: &[u8; SECRET_BYTES],
    ) -> Result<Vec<u8>, Fault> {
        match self {
            Sealing::Gcm => encrypt(session, key, context, secret),
            Sealing::KeyWrapPad => wrap(session, key, context, secret),
        }
    }

    fn try_open(
        self,
        session: &Session,
        key: ObjectHandle,
        context: &[u8],
        sealed: &[u8],
        secret: &mut [u8; SECRET_BYTES],
    ) -> Result<(), Fault> {
        match self {
            Sealing::Gcm => decrypt(session, key, context, sealed, secret),
            Sealing::KeyWrapPad => unwrap(session, key, context, sealed, secret),
        }
    }
}

fn does_not_open(why: &str) -> GuestError {
    let text = format!(
        "the sealed key does not open under the token's key ({why}): it was changed, or the token's key was replaced; \
         put the folder back from its newest copy, or enrol the device anew"
    );
    GuestError::new(Status::Corrupt, text)
}

/// Answers of tokens to a wrong tag or a wrong padding, and to nothing else. SoftHSM says CKR_GENERAL_ERROR: see
/// [`error::is_vague`].
fn means_wrong(error: &Error) -> bool {
    let Error::Pkcs11(value, _) = error else { return false };
    matches!(
        value,
        RvError::EncryptedDataInvalid
            | RvError::EncryptedDataLenRange
            | RvError::DataInvalid
            | RvError::DataLenRange
            | RvError::SignatureInvalid
            | RvError::SignatureLenRange
            | RvError::WrappedKeyInvalid
            | RvError::WrappedKeyLenRange
            | RvError::UnknownErrorCode(CKR_AEAD_DECRYPT_FAILED)
    )
}

fn encrypt(session: &Session, key: ObjectHandle, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut iv = [0u8; IV_BYTES];
    random(&mut iv)?;
    let params = GcmParams::new(&mut iv, context, TAG_BITS.into())?;
    let body = session.encrypt(&Mechanism::AesGcm(params), key, secret)?;
    // a token may have put its own IV there, so it is taken after the call
    Ok([&iv[..], &body].concat())
}

fn decrypt(
    session: &Session,
    key: ObjectHandle,
    context: &[u8],
    sealed: &[u8],
    secret: &mut [u8; SECRET_BYTES],
) -> Result<(), Fault> {
    let Some((iv, body)) = sealed.split_first_chunk::<IV_BYTES>() else {
        return Err(does_not_open("too short").into());
    };
    let mut iv = *iv;
    let params = GcmParams::new(&mut iv, context, TAG_BITS.into())?;
    let opened = Zeroizing::new(session.decrypt(&Mechanism::AesGcm(params), key, body)?);
    take(&opened, secret)
}

fn take(opened: &[u8], secret: &mut [u8; SECRET_BYTES]) -> Result<(), Fault> {
    if opened.len() != SECRET_BYTES {
        return Err(does_not_open("it has another length").into());
    }
    secret.copy_from_slice(opened);
    Ok(())
}

/// A secret in a session object that can be wrapped, or was unwrapped; destroyed with this guard.
struct Passing<'a> {
    session: &'a Session,
    object: ObjectHandle,
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        // a session object ends with its session at the latest
        let _ = self.session.destroy_object(self.object);
    }
}

fn passing_template() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
}

fn wrap(session: &Session, key: ObjectHandle, context: &[u8], secret: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut value = Vec::with_capacity(CONTEXT_BYTES + SECRET_BYTES);
    value.extend_from_slice(&Sha256::digest(context));
    value.extend_from_slice(secret);
    let mut template = passing_template();
    template.push(Attribute::Value(value));
    let object = session.create_object(&template);
    for attribute in &mut template {
        if let Attribute::Value(value) = attribute {
            value.zeroize();
        }
    }
    let passing = Passing { session, object: object? };
    let mut sealed = session.wrap_key(&Mechanism::AesKeyWrapPad, key, passing.object)?;
    // the first answer about the length may have been an upper bound
    sealed.truncate(Sealing::KeyWrapPad.sealed_bytes());
    Ok(sealed)
}

fn unwrap(
    session: &Session,
    key: ObjectHandle,
    context: &[u8],
    sealed: &[u8],
    secret: &mut [u8; SECRET_BYTES],
) -> Result<(), Fault> {
    let object = session.unwrap_key(&Mechanism::AesKeyWrapPad, key, sealed, &passing_template())?;
    let passing = Passing { session, object };
    let attributes = session.get_attributes(passing.object, &[AttributeType::Value])?;
    for attribute in attributes {
        let Attribute::Value(value) = attribute else { continue };
        let value = Zeroizing::new(value);
        let Some((bound, opened)) = value.split_first_chunk::<CONTEXT_BYTES>() else { continue };
        if !bool::from(bound[..].ct_eq(&Sha256::digest(context)[..])) {
            return Err(does_not_open("it was sealed for another place").into());
        }
        return take(opened, secret);
    }
    Err(does_not_open("the token does not show what it unwrapped").into())
}
