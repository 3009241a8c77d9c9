//! Signatures: Ed25519 by ZIP-215 rules, and ECDSA P-256 with SHA-256 and low S.
//!
//! Every replica of the ledger must accept exactly the same signatures, single or in a batch: RFC 8032 leaves edge cases open on
//! which implementations differ ("Taming the many EdDSAs", eprint 2020/1244), ZIP-215 does not. An ECDSA signature has a second
//! form (r, n - s); only the low one is accepted, so that a stranger cannot make a second valid signature from a first.
//!
//! Verification must never accept a key that [`PublicKey::check`] refused when it was registered; it does not repeat that check.

use p256::ecdsa::signature::Verifier;
use p256::elliptic_curve::scalar::IsHigh;
use std::fmt;
use thiserror::Error;

mod batch;
mod secret;
pub use batch::{BatchError, verify_batch};
pub use secret::{Ed25519Secret, P256Secret};

/// Bytes of every signature: Ed25519 `R || s`, P-256 `r || s` (big-endian, fixed length).
pub const SIGNATURE_BYTES: usize = 64;
/// Bytes of an Ed25519 public key (RFC 8032).
pub const ED25519_PUBLIC_BYTES: usize = 32;
/// Bytes of a P-256 public key: compressed SEC 1.
pub const P256_PUBLIC_BYTES: usize = 33;

/// A signature algorithm; the number is its byte on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Alg {
    /// Ed25519 (RFC 8032), verified by ZIP-215.
    Ed25519 = 1,
    /// ECDSA over P-256 with SHA-256 (FIPS 186-5), low S.
    P256 = 2,
}

impl TryFrom<u8> for Alg {
    type Error = SignError;

    fn try_from(byte: u8) -> Result<Self, SignError> {
        match byte {
            1 => Ok(Self::Ed25519),
            2 => Ok(Self::P256),
            _ => Err(SignError::UnknownAlg(byte)),
        }
    }
}

impl From<Alg> for u8 {
    fn from(alg: Alg) -> u8 {
        alg as u8
    }
}

/// Why a key or a signature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SignError {
    /// No such algorithm byte.
    #[error("unknown signature algorithm {0}")]
    UnknownAlg(u8),
    /// The key has a wrong length for its algorithm.
    #[error("{alg:?} public key has {actual} bytes")]
    KeyLength {
        /// Its algorithm.
        alg: Alg,
        /// Its bytes.
        actual: usize,
    },
    /// The key is not a point on the curve, not in canonical form, the identity, or of small or mixed order.
    #[error("{0:?} public key is not a sound point")]
    UnsoundKey(Alg),
    /// The signature is not one of this key over this message, or not in its only accepted form.
    #[error("{0:?} signature does not verify")]
    BadSignature(Alg),
    /// The bytes are no private key of this algorithm (P-256: zero, or not below the order).
    #[error("not a private key of {0:?}")]
    BadSecret(Alg),
}

/// A public key with its algorithm. Holding one says nothing of its soundness: see [`PublicKey::check`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublicKey {
    /// Ed25519: a compressed Edwards point.
    Ed25519([u8; ED25519_PUBLIC_BYTES]),
    /// P-256: a compressed SEC 1 point.
    P256([u8; P256_PUBLIC_BYTES]),
}

impl PublicKey {
    /// A key of this algorithm; only its length is looked at.
    ///
    /// # Errors
    /// [`SignError::KeyLength`].
    pub fn new(alg: Alg, bytes: &[u8]) -> Result<Self, SignError> {
        let wrong_length = |_| SignError::KeyLength { alg, actual: bytes.len() };
        Ok(match alg {
            Alg::Ed25519 => Self::Ed25519(bytes.try_into().map_err(wrong_length)?),
            Alg::P256 => Self::P256(bytes.try_into().map_err(wrong_length)?),
        })
    }

    /// Reads `alg byte || key`, as [`PublicKey::to_bytes`] writes it.
    ///
    /// # Errors
    /// [`SignError::UnknownAlg`], [`SignError::KeyLength`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignError> {
        let (alg, key) = bytes.split_first().ok_or(SignError::UnknownAlg(0))?;
        Self::new(Alg::try_from(*alg)?, key)
    }

    /// Its algorithm.
    #[must_use]
    pub fn alg(&self) -> Alg {
        match self {
            Self::Ed25519(_) => Alg::Ed25519,
            Self::P256(_) => Alg::P256,
        }
    }

    /// The key without its algorithm byte: 32 or 33 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Ed25519(bytes) => bytes,
            Self::P256(bytes) => bytes,
        }
    }

    /// `alg byte || key`: 33 or 34 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.alg().into()];
        bytes.extend_from_slice(self.bytes());
        bytes
    }

    /// The coordinates x and y of a P-256 key, as a TPM names one; none of an Ed25519 key, or of what is no point.
    #[must_use]
    pub fn coordinates(&self) -> Option<([u8; 32], [u8; 32])> {
        let Self::P256(bytes) = self else { return None };
        let point = p256_key(bytes).ok()?.to_sec1_point(false);
        Some(((*point.x()?).into(), (*point.y()?).into()))
    }

    /// Whether this key may be registered: a canonical point of the curve, of full order, never the identity.
    ///
    /// ZIP-215 verification accepts small-order keys, under which one signature fits many messages: they are refused here, once.
    ///
    /// # Errors
    /// [`SignError::UnsoundKey`].
    pub fn check(&self) -> Result<(), SignError> {
        let sound = match self {
            Self::Ed25519(bytes) => ed25519_is_sound(bytes),
            Self::P256(bytes) => p256_key(bytes).is_ok(),
        };
        if sound { Ok(()) } else { Err(SignError::UnsoundKey(self.alg())) }
    }

    /// Checks `signature` (64 bytes) over `message`.
    ///
    /// # Errors
    /// [`SignError::BadSignature`] for whatever is not the one accepted form of a valid signature, [`SignError::UnsoundKey`] when the key
    /// is not a point at all.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), SignError> {
        let bad = SignError::BadSignature(self.alg());
        let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| bad)?;
        match self {
            Self::Ed25519(key) => {
                let key =
                    ed25519_zebra::VerificationKey::try_from(*key).map_err(|_| SignError::UnsoundKey(Alg::Ed25519))?;
                key.verify(&ed25519_zebra::Signature::from(*signature), message).map_err(|_| bad)
            }
            Self::P256(key) => {
                let key = p256_key(key)?;
                let signature = p256::ecdsa::Signature::from_slice(signature).map_err(|_| bad)?;
                if signature.s().is_high().into() {
                    return Err(bad);
                }
                key.verify(message, &signature).map_err(|_| bad)
            }
        }
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:", self.alg())?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Of prime order; the identity is torsion-free too, so both questions are asked. Such a point has one encoding only: of the 19 values
/// of y with a second one none belongs to a point of prime order (a test looks at all).
fn ed25519_is_sound(bytes: &[u8; ED25519_PUBLIC_BYTES]) -> bool {
    let point = curve25519_dalek::edwards::CompressedEdwardsY(*bytes).decompress();
    point.is_some_and(|point| point.is_torsion_free() && !point.is_small_order())
}

fn p256_key(bytes: &[u8; P256_PUBLIC_BYTES]) -> Result<p256::ecdsa::VerifyingKey, SignError> {
    // The library also reads "compact" points (tag 0x05): a second name for the same key.
    let compressed = matches!(bytes, [2 | 3, ..]);
    let key = p256::ecdsa::VerifyingKey::from_sec1_bytes(bytes).ok().filter(|_| compressed);
    key.ok_or(SignError::UnsoundKey(Alg::P256))
}

#[cfg(test)]
mod tests;
