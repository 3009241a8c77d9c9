//! Operations whole, in one frame: the path of almost everything.

use std::sync::Arc;

use mayfly_engine::{self as engine, Key, Mechanism};
use mayfly_protocol::KeyId;
use mayfly_protocol::rules::{KeyType, Use};
use mayfly_secmem::SecretBytes;
use mayfly_wire::{Kind, request};

use super::caller::{Caller, Glance};
use super::ck::*;
use super::cpu::Follow;
use super::fail::{Done, Fail};
use super::io::{Io, check_room};
use super::mechanisms;
use super::objects::attributes::stored;
use super::objects::ec;
use super::objects::view::View;
use super::reply::Reply;

/// What an operation works with.
#[derive(Debug, Clone)]
pub enum Material {
    /// A key on the ledger: put together for the moment of use.
    Ledger {
        /// Its id.
        id: KeyId,
        /// Its type.
        key_type: KeyType,
        /// What for.
        purpose: Use,
        /// Whether it stays for a time once it was put together.
        windowed: bool,
    },
    /// A key of a session, which is here.
    Session {
        /// Its bytes.
        bytes: Arc<SecretBytes>,
        /// Its type.
        key_type: KeyType,
    },
    /// A public key: nothing is put together.
    Public {
        /// Its type.
        key_type: KeyType,
        /// CKA_EC_POINT.
        point: Vec<u8>,
    },
}

impl Material {
    /// What the key behind a handle is made of.
    ///
    /// # Errors
    /// CKR_KEY_TYPE_INCONSISTENT.
    pub fn of(view: &View<'_>, purpose: Use) -> Done<Self> {
        let unusable = || Fail::new(CKR_KEY_TYPE_INCONSISTENT, "keys of this type cannot be used");
        let key_type = view.key_type().ok_or_else(unusable)?;
        match view {
            View::Key(key) => {
                let windowed = key.record.policy.residency.window_seconds > 0;
                Ok(Self::Ledger { id: key.record.id, key_type, purpose, windowed })
            }
            View::Session(_, object) if object.secret.is_some() => {
                let bytes = object.secret.clone().ok_or_else(unusable)?;
                Ok(Self::Session { bytes, key_type })
            }
            View::Public(_) | View::Object(..) | View::Session(..) => {
                let point = stored(view.attributes(), CKA_EC_POINT).ok_or_else(unusable)?;
                Ok(Self::Public { key_type, point: point.to_vec() })
            }
        }
    }

    /// Type of the key.
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Ledger { key_type, .. } | Self::Session { key_type, .. } | Self::Public { key_type, .. } => *key_type,
        }
    }

    /// Bytes of secret memory that stay in use as long as this does.
    pub fn secret_bytes(&self) -> usize {
        match self {
            Self::Session { bytes, .. } => bytes.len(),
            Self::Ledger { .. } | Self::Public { .. } => 0,
        }
    }

    /// Whether no other host is asked, as far as can be told before.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Ledger { windowed, .. } => *windowed,
            Self::Session { .. } | Self::Public { .. } => true,
        }
    }

    /// The key without its bytes: enough to learn lengths from.
    fn shape(&self) -> Key<'_> {
        match self {
            Self::Public { key_type, point } => public_key(*key_type, point),
            Self::Ledger { key_type, .. } | Self::Session { key_type, .. } => secret_key(*key_type, &[]),
        }
    }

    /// Lends the key to `work`. The engine goes to the secret stack itself, and flattens what leaves it.
    ///
    /// # Errors
    /// What `work` says; why the key is not there.
    pub fn with<R>(&self, caller: &Caller<'_>, mut work: impl FnMut(&Key<'_>) -> Result<R, engine::Error>) -> Done<R> {
        match self {
            Self::Public { key_type, point } => Ok(work(&public_key(*key_type, point))?),
            Self::Session { bytes, key_type } => Ok(work(&secret_key(*key_type, bytes.expose()))?),
            Self::Ledger { id, key_type, purpose, .. } => {
                let mut done = None;
                caller.app.keys.with_key(id, *purpose, &mut |assembled| {
                    done = Some(work(&secret_key(*key_type, assembled.bytes())));
                })?;
                let unlent = || Fail::ruled(CKR_DEVICE_ERROR, "engine", "the key was not lent");
                Ok(done.ok_or_else(unlent)??)
            }
        }
    }
}

/// The engine's key of these bytes.
pub fn secret_key(key_type: KeyType, bytes: &[u8]) -> Key<'_> {
    match ec::curve(key_type) {
        Some(curve) => Key::EcPrivate { curve, scalar: bytes },
        None if matches!(key_type, KeyType::Aes(_)) => Key::Aes(bytes),
        None => Key::Generic(bytes),
    }
}

fn public_key(key_type: KeyType, point: &[u8]) -> Key<'_> {
    match ec::curve(key_type) {
        Some(curve) => Key::EcPublic { curve, point },
        None => Key::Generic(&[]),
    }
}

/// What a kind of operation is, in the ledger's words.
///
/// # Errors
/// CKR_FUNCTION_NOT_SUPPORTED.
pub fn purpose(kind: Kind) -> Done<Use> {
    match kind {
        Kind::Encrypt => Ok(Use::Encrypt),
        Kind::Decrypt => Ok(Use::Decrypt),
        Kind::Sign => Ok(Use::Sign),
        Kind::Verify => Ok(Use::Verify),
        Kind::SignRecover
        | Kind::VerifyRecover
        | Kind::Digest
        | Kind::MessageEncrypt
        | Kind::MessageDecrypt
        | Kind::MessageSign
        | Kind::MessageVerify => Err(Fail::new(CKR_FUNCTION_NOT_SUPPORTED, "operations of this kind are not offered")),
    }
}

/// Does an operation.
///
/// # Errors
/// The codes of the PKCS#11 function of this kind. Nothing was done then; a ciphertext that does not decrypt is
/// CKR_ENCRYPTED_DATA_INVALID, whatever is wrong with it.
pub fn operate(
    caller: &Caller<'_>,
    glance: &Glance,
    io: &mut Io,
    follow: &mut Follow,
    cpu: Option<u32>,
    ask: &request::Operate<'_>,
) -> Done<Reply> {
    let purpose = purpose(ask.kind)?;
    let mechanism = mechanisms::read(&ask.mechanism)?;
    let view = caller.key(glance, ask.object, ask.session, purpose, ask.mechanism.code)?;
    let material = Material::of(&view, purpose)?;
    if material.is_local() {
        follow.follow(cpu)
    } else {
        follow.let_loose()
    }
    if purpose == Use::Verify {
        let signature = io.small(&ask.signature)?;
        let (input, _) = io.take(&ask.input)?;
        material.with(caller, |key| engine::verify(&mechanism, key, input, &signature))?;
        return Ok(Reply::Output(0));
    }
    let (input, mut output) = io.take(&ask.input)?;
    let length = length(purpose, &mechanism, &material, input.len())?;
    if !matches!((purpose, &mechanism), (Use::Decrypt, Mechanism::AesCbcPad(_))) {
        check_room(length, &ask.output)?; // known exactly: refused before the key is put together
    }
    let room = output.room(length)?;
    let written = material.with(caller, |key| match purpose {
        Use::Encrypt => engine::encrypt(&mechanism, key, input, room),
        Use::Decrypt => engine::decrypt(&mechanism, key, input, room),
        _ => engine::sign(&mechanism, key, input, room),
    })?;
    output.deliver(written, &ask.output)
}

/// Length of the output, or for a padded plaintext the most that it can be.
fn length(purpose: Use, mechanism: &Mechanism<'_>, material: &Material, input: usize) -> Done<usize> {
    Ok(match purpose {
        Use::Encrypt => engine::encrypted_len(mechanism, input)?,
        Use::Decrypt => engine::decrypted_len_max(mechanism, input)?,
        _ => engine::signature_len(mechanism, &material.shape())?,
    })
}
