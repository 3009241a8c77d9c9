//! Inner envelopes: how secrets travel between two agents, inside TLS but not in reach of its buffers.
//!
//! TLS and WebSocket buffers keep copies of plaintext while a connection is open, so a shard is sealed in the arena before it enters them.
//! The key comes from the agents' own ephemeral exchange, not from TLS, and dies with the [`Session`].
//!
//! ```text
//! Z     = X25519(own ephemeral secret, peer's ephemeral public), refused when all zero (RFC 7748 section 6.1)
//! PRK   = HKDF-Extract(salt = SHA-256(enc("mayfly/v1/envelope", low, high, transcript)), IKM = Z)
//! K_dir = HKDF-Expand(PRK, enc("mayfly/v1/envelope-key", low | high), 32)      the key of what that side sends
//! box   = u64be(counter) || AES-256-GCM-SIV(K_dir, nonce = 0^4 || u64be(counter), AAD, secret)
//! ```
//!
//! `low` and `high` are the two public keys in byte order. The exchange by itself is anonymous: the caller's transcript must name both
//! devices and the public keys must come over a channel, or in a message, that authenticates them.
//!
//! A counter is never used twice, since the sender counts up and stops at the end; a receiver takes only counters above the last it
//! accepted, so nothing is taken twice, lost boxes do no harm, and a box that was overtaken is refused.

use crate::aead::{self, NONCE_BYTES, NotAuthentic, TAG_BYTES};
use crate::enc;
use curve25519_dalek::montgomery::MontgomeryPoint;
use hkdf::Hkdf;
use mayfly_secmem::{Exhausted, RandomError, SECRET_BYTES_MAX, Secret, SecretBytes, ct_eq, on_secret_stack, random};
use sha2::Sha256;
use thiserror::Error;

/// Bytes of an ephemeral public key.
pub const PUBLIC_BYTES: usize = 32;
/// How much longer a box is than its secret, in bytes.
pub const OVERHEAD_BYTES: usize = COUNTER_BYTES + TAG_BYTES;

const COUNTER_BYTES: usize = 8;
const SALT_LABEL: &str = "mayfly/v1/envelope";
const KEY_LABEL: &str = "mayfly/v1/envelope-key";
/// The two directions, named after the sender's public key.
const LOW_SENDS: &[u8] = b"low";
const HIGH_SENDS: &[u8] = b"high";

/// Why an exchange fails, or a box is not made or not opened.
#[derive(Debug, Error)]
pub enum EnvelopeError {
    /// The peer's public key is of small order, or is our own sent back.
    #[error("peer's ephemeral key is refused")]
    BadPeerKey,
    /// The box was made with another key, counter or AAD, or was changed, or is none.
    #[error("envelope is not authentic")]
    NotAuthentic,
    /// The box's counter is not above the last one accepted.
    #[error("envelope {counter} is a replay or was overtaken; expected {expected} or above")]
    Replayed {
        /// The box's counter.
        counter: u64,
        /// Smallest that would be taken.
        expected: u64,
    },
    /// Above the arena's limit for one secret.
    #[error("secret of {0} bytes is above the limit")]
    TooLong(usize),
    /// All 2^64 - 1 counters are used.
    #[error("envelope session is used up")]
    UsedUp,
    /// No slot for a secret.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// No randomness.
    #[error(transparent)]
    Random(RandomError),
}

impl From<NotAuthentic> for EnvelopeError {
    fn from(NotAuthentic: NotAuthentic) -> Self {
        Self::NotAuthentic
    }
}

impl From<RandomError> for EnvelopeError {
    fn from(error: RandomError) -> Self {
        match error {
            RandomError::Memory(cause) => Self::Memory(cause),
            kernel => Self::Random(kernel),
        }
    }
}

/// One side's half of an exchange. Used once.
#[derive(Debug)]
pub struct Ephemeral {
    secret: Secret<32>,
    public: [u8; PUBLIC_BYTES],
}

impl Ephemeral {
    /// A new X25519 key pair.
    ///
    /// # Errors
    /// [`EnvelopeError::Random`], [`EnvelopeError::Memory`].
    pub fn generate() -> Result<Self, EnvelopeError> {
        Ok(Self::from_secret(Secret::try_new_with(|slot| random(slot))?))
    }

    fn from_secret(secret: Secret<32>) -> Self {
        let public = on_secret_stack(|| MontgomeryPoint::mul_base_clamped(*secret.expose()).to_bytes());
        Self { secret, public }
    }

    /// What the peer gets.
    #[must_use]
    pub fn public(&self) -> [u8; PUBLIC_BYTES] {
        self.public
    }

    /// Ends the exchange. Both sides must give the same `transcript`; whatever it names is bound to the session.
    ///
    /// # Errors
    /// [`EnvelopeError::BadPeerKey`]; [`EnvelopeError::Memory`].
    pub fn agree(self, peer_public: &[u8; PUBLIC_BYTES], transcript: &[u8]) -> Result<Session, EnvelopeError> {
        if self.public == *peer_public {
            return Err(EnvelopeError::BadPeerKey);
        }
        let we_are_low = self.public < *peer_public;
        let (low, high) = if we_are_low { (&self.public, peer_public) } else { (peer_public, &self.public) };
        let (own, peers) = if we_are_low { (LOW_SENDS, HIGH_SENDS) } else { (HIGH_SENDS, LOW_SENDS) };
        let salt = enc::hash(SALT_LABEL, &[low, high, transcript]);
        let own = enc::enc(KEY_LABEL, &[own]);
        let peers = enc::enc(KEY_LABEL, &[peers]);

        let (mut send_key, mut receive_key) = (Secret::new_with(|_| ())?, Secret::new_with(|_| ())?);
        let agreed = on_secret_stack(|| {
            let shared = MontgomeryPoint(*peer_public).mul_clamped(*self.secret.expose());
            if ct_eq(shared.as_bytes(), &[0; 32]) {
                return false;
            }
            let prk = Hkdf::<Sha256>::new(Some(&salt), shared.as_bytes());
            prk.expand(&own, send_key.expose_mut()).expect("a key is one block");
            prk.expand(&peers, receive_key.expose_mut()).expect("a key is one block");
            true
        });
        if !agreed {
            return Err(EnvelopeError::BadPeerKey);
        }
        Ok(Session { send_key, receive_key, send_counter: 0, receive_counter: 0 })
    }
}

/// An agreed session: two keys in the arena, one for each direction.
#[derive(Debug)]
pub struct Session {
    send_key: Secret<32>,
    receive_key: Secret<32>,
    /// Counter of the next box that we make.
    send_counter: u64,
    /// Smallest counter that we still take.
    receive_counter: u64,
}

impl Session {
    /// Appends a box with `secret`, borrowed from its slot, to `out`: [`OVERHEAD_BYTES`] more than the secret has.
    ///
    /// # Errors
    /// [`EnvelopeError::TooLong`], [`EnvelopeError::UsedUp`]; `out` is unchanged then.
    pub fn seal(&mut self, aad: &[u8], secret: &[u8], out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        if secret.len() > SECRET_BYTES_MAX {
            return Err(EnvelopeError::TooLong(secret.len()));
        }
        let counter = self.send_counter;
        // Counted before use: an error below can waste a counter, never repeat one.
        self.send_counter = counter.checked_add(1).ok_or(EnvelopeError::UsedUp)?;
        out.reserve(OVERHEAD_BYTES + secret.len());
        out.extend_from_slice(&counter.to_be_bytes());
        aead::seal(self.send_key.expose(), &nonce(counter), aad, secret, out);
        Ok(())
    }

    /// Opens a box of the peer's into a new slot.
    ///
    /// # Errors
    /// [`EnvelopeError::NotAuthentic`], [`EnvelopeError::Replayed`], [`EnvelopeError::Memory`]; the session goes on unchanged.
    pub fn open(&mut self, aad: &[u8], sealed: &[u8]) -> Result<SecretBytes, EnvelopeError> {
        let (counter, sealed) = self.split(sealed)?;
        let length = sealed.len().checked_sub(TAG_BYTES).filter(|length| *length <= SECRET_BYTES_MAX);
        let secret = SecretBytes::try_new_with(length.ok_or(EnvelopeError::NotAuthentic)?, |slot| {
            Ok::<_, EnvelopeError>(aead::open(self.receive_key.expose(), &nonce(counter), aad, sealed, slot)?)
        })?;
        self.receive_counter = counter + 1;
        Ok(secret)
    }

    /// Opens a box whose secret has exactly `N` bytes, such as a share.
    ///
    /// # Errors
    /// As [`Session::open`]; another length is [`EnvelopeError::NotAuthentic`] too.
    pub fn open_fixed<const N: usize>(&mut self, aad: &[u8], sealed: &[u8]) -> Result<Secret<N>, EnvelopeError> {
        let (counter, sealed) = self.split(sealed)?;
        let secret = Secret::try_new_with(|slot| {
            Ok::<_, EnvelopeError>(aead::open(self.receive_key.expose(), &nonce(counter), aad, sealed, slot)?)
        })?;
        self.receive_counter = counter + 1;
        Ok(secret)
    }

    /// The counter, which may be taken, and the ciphertext.
    fn split<'a>(&self, sealed: &'a [u8]) -> Result<(u64, &'a [u8]), EnvelopeError> {
        let (counter, sealed) = sealed.split_first_chunk::<COUNTER_BYTES>().ok_or(EnvelopeError::NotAuthentic)?;
        let counter = u64::from_be_bytes(*counter);
        if counter < self.receive_counter {
            return Err(EnvelopeError::Replayed { counter, expected: self.receive_counter });
        }
        // No sender gets there (`UsedUp`), and the next counter would overflow.
        if counter == u64::MAX {
            return Err(EnvelopeError::NotAuthentic);
        }
        Ok((counter, sealed))
    }
}

fn nonce(counter: u64) -> [u8; NONCE_BYTES] {
    let mut nonce = [0; NONCE_BYTES];
    nonce[NONCE_BYTES - COUNTER_BYTES..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

#[cfg(test)]
mod tests;
