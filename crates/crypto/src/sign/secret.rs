//! Private keys: in the arena, opened on the secret stack for one signature.
//!
//! The libraries' own key types (which keep the key, and for Ed25519 its expansion, in plain fields) are built there anew for each
//! signature and wiped with that stack.

use super::{Alg, P256_PUBLIC_BYTES, PublicKey, SIGNATURE_BYTES, SignError};
use mayfly_secmem::{RandomError, Secret, on_secret_stack, random};
use p256::ecdsa::signature::Signer;

/// An Ed25519 private key: the seed of RFC 8032.
#[derive(Debug)]
pub struct Ed25519Secret {
    seed: Secret<32>,
    public: [u8; 32],
}

impl Ed25519Secret {
    /// A new key from the kernel's randomness.
    ///
    /// # Errors
    /// [`RandomError`] when there is no randomness or no slot.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self::from_seed(Secret::try_new_with(|seed| random(seed))?))
    }

    /// The key with this seed; every seed is one.
    #[must_use]
    pub fn from_seed(seed: Secret<32>) -> Self {
        let public = on_secret_stack(|| {
            let key = ed25519_zebra::SigningKey::from_bytes(seed.expose());
            ed25519_zebra::VerificationKeyBytes::from(&key).into()
        });
        Self { seed, public }
    }

    /// The seed, to seal it.
    #[must_use]
    pub fn seed(&self) -> &Secret<32> {
        &self.seed
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::Ed25519(self.public)
    }

    /// The public key's 32 bytes.
    #[must_use]
    pub fn public_bytes(&self) -> &[u8; 32] {
        &self.public
    }

    /// Signs (RFC 8032; deterministic).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        on_secret_stack(|| ed25519_zebra::SigningKey::from_bytes(self.seed.expose()).sign(message).to_bytes())
    }
}

/// A P-256 private key: a scalar, 32 bytes big-endian.
#[derive(Debug)]
pub struct P256Secret {
    scalar: Secret<32>,
    public: [u8; P256_PUBLIC_BYTES],
}

impl P256Secret {
    /// A new key from the kernel's randomness.
    ///
    /// # Errors
    /// [`RandomError`] when there is no randomness or no slot.
    pub fn generate() -> Result<Self, RandomError> {
        // Rejection sampling (FIPS 186-5, A.2.2): a draw is refused with chance 2^-32.
        loop {
            if let Ok(key) = Self::from_scalar(Secret::try_new_with(|scalar| random(scalar))?) {
                return Ok(key);
            }
        }
    }

    /// The key with this scalar.
    ///
    /// # Errors
    /// [`SignError::BadSecret`] when it is zero or not below the order.
    pub fn from_scalar(scalar: Secret<32>) -> Result<Self, SignError> {
        let mut public = [0; P256_PUBLIC_BYTES];
        let is_key = on_secret_stack(|| {
            let Ok(key) = signing_key(&scalar) else { return false };
            public.copy_from_slice(key.verifying_key().to_sec1_point(true).as_bytes());
            true
        });
        if !is_key {
            return Err(SignError::BadSecret(Alg::P256));
        }
        Ok(Self { scalar, public })
    }

    /// The scalar, to seal it.
    #[must_use]
    pub fn scalar(&self) -> &Secret<32> {
        &self.scalar
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::P256(self.public)
    }

    /// Signs the SHA-256 of `message` (deterministic, RFC 6979; low S).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_BYTES] {
        on_secret_stack(|| {
            let key = signing_key(&self.scalar).expect("checked when the key was made");
            let signature: p256::ecdsa::Signature = key.sign(message);
            signature.normalize_s().to_bytes().into()
        })
    }
}

fn signing_key(scalar: &Secret<32>) -> Result<p256::ecdsa::SigningKey, SignError> {
    p256::ecdsa::SigningKey::from_slice(scalar.expose()).map_err(|_| SignError::BadSecret(Alg::P256))
}
