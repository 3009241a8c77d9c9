//! Keys as the engine gets them: bytes borrowed for the time of a call.

use crate::ec::Curve;
use crate::{Error, secretly};
use mayfly_secmem::{SecretBytes, random};
use std::fmt;

/// A key, borrowed. Secret bytes come from [`mayfly_secmem`]; the engine copies them into AWS-LC's wiping heap only, or, for a
/// [`crate::Stream`], into the arena.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Key<'a> {
    /// AES: 16, 24 or 32 bytes
    Aes(&'a [u8]),
    /// a generic secret or HMAC key: 1 to [`crate::HMAC_KEY_BYTES_MAX`] bytes
    Generic(&'a [u8]),
    /// EC private key
    EcPrivate {
        /// its curve
        curve: Curve,
        /// big-endian; leading zeros may be missing
        scalar: &'a [u8],
    },
    /// EC public key
    EcPublic {
        /// its curve
        curve: Curve,
        /// in any encoding of [`crate::ec_point`]
        point: &'a [u8],
    },
}

impl fmt::Debug for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes(_) => "Key::Aes(..)",
            Self::Generic(_) => "Key::Generic(..)",
            Self::EcPrivate { .. } => "Key::EcPrivate(..)",
            Self::EcPublic { .. } => "Key::EcPublic(..)",
        })
    }
}

/// Draws a secret of `len` bytes (an AES key, a generic secret) from the kernel.
///
/// # Errors
/// [`Error::KeyLength`] when `len` is 0; [`Error::Random`], [`Error::Memory`].
pub fn generate_secret(len: usize) -> Result<SecretBytes, Error> {
    if len == 0 {
        return Err(Error::KeyLength);
    }
    Ok(SecretBytes::try_new_with(len, random)?)
}

impl<'a> Key<'a> {
    pub(crate) fn aes(&self) -> Result<&'a [u8], Error> {
        if let Self::Aes(bytes) = self { Ok(bytes) } else { Err(Error::KeyType) }
    }

    pub(crate) fn generic(&self) -> Result<&'a [u8], Error> {
        if let Self::Generic(bytes) = self { Ok(bytes) } else { Err(Error::KeyType) }
    }

    pub(crate) fn ec_private(&self) -> Result<(Curve, &'a [u8]), Error> {
        if let Self::EcPrivate { curve, scalar } = *self { Ok((curve, scalar)) } else { Err(Error::KeyType) }
    }

    pub(crate) fn ec_public(&self) -> Result<(Curve, &'a [u8]), Error> {
        if let Self::EcPublic { curve, point } = *self { Ok((curve, point)) } else { Err(Error::KeyType) }
    }
}

/// A copy of a key's bytes in the arena.
pub(crate) fn kept(bytes: &[u8]) -> Result<SecretBytes, Error> {
    secretly(|| Ok(SecretBytes::new_with(bytes.len(), |copy| copy.copy_from_slice(bytes))?))
}

/// A key that an operation keeps until its end, in the arena.
pub(crate) struct KeptKey {
    bytes: SecretBytes,
    kind: KeptKind,
}

#[derive(Clone, Copy)]
enum KeptKind {
    Aes,
    Generic,
    EcPrivate(Curve),
    EcPublic(Curve),
}

impl KeptKey {
    pub(crate) fn new(key: &Key<'_>) -> Result<Self, Error> {
        let (kind, bytes) = match *key {
            Key::Aes(bytes) => (KeptKind::Aes, bytes),
            Key::Generic(bytes) => (KeptKind::Generic, bytes),
            Key::EcPrivate { curve, scalar } => (KeptKind::EcPrivate(curve), scalar),
            Key::EcPublic { curve, point } => (KeptKind::EcPublic(curve), point),
        };
        Ok(Self { bytes: kept(bytes)?, kind })
    }

    pub(crate) fn borrow(&self) -> Key<'_> {
        let bytes = self.bytes.expose();
        match self.kind {
            KeptKind::Aes => Key::Aes(bytes),
            KeptKind::Generic => Key::Generic(bytes),
            KeptKind::EcPrivate(curve) => Key::EcPrivate { curve, scalar: bytes },
            KeptKind::EcPublic(curve) => Key::EcPublic { curve, point: bytes },
        }
    }
}
