//! Messages in parts.

use crate::block::BlockStream;
use crate::cipher::Direction;
use crate::ctr::CtrStream;
use crate::digest::{DIGEST_BYTES_MAX, DigestContext, Hash};
use crate::gcm::{GcmDecrypt, GcmEncrypt};
use crate::key::KeptKey;
use crate::mac::HmacContext;
use crate::oneshot::{self, block_stream};
use crate::{Dense, Error, Key, Mechanism, secretly};
use std::fmt;

/// An operation in parts: made by [`encrypt`](Self::encrypt) and its like, fed by [`update`](Self::update), ended by
/// [`finish`](Self::finish) or [`finish_verify`](Self::finish_verify).
///
/// Errors end it, except [`Error::OutputTooSmall`] and [`Error::Suspended`], which change nothing. How the message is cut
/// does not change the result.
///
/// It holds the key, or what is as good as it, in the arena or on AWS-LC's wiping heap. Most can let go of it between calls:
/// [`suspend`](Self::suspend), [`resume`](Self::resume). Drop it as soon as it is not needed.
pub struct Stream {
    state: State,
}

/// State of each kind of operation. One more kind of mechanism is one more variant.
enum State {
    Block(BlockStream),
    Ctr(CtrStream),
    GcmEncrypt(GcmEncrypt),
    GcmDecrypt(GcmDecrypt),
    Sign(Authenticator),
    Verify(Authenticator),
    Digest(DigestContext),
    Ended,
}

/// Signing and verifying differ only at the end.
enum Authenticator {
    Hmac(HmacContext),
    /// hash first; the key (none while suspended) is needed at the end only
    Prehashed {
        digest: DigestContext,
        then: Mechanism<'static>,
        key: Option<KeptKey>,
        signature_len: usize,
    },
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream(..)")
    }
}

impl Stream {
    /// Begins an encryption.
    ///
    /// # Errors
    /// [`Error`] of mechanism, parameter or key.
    pub fn encrypt(mechanism: &Mechanism<'_>, key: &Key<'_>) -> Result<Self, Error> {
        let state = match mechanism {
            Mechanism::AesGcm(params) => State::GcmEncrypt(GcmEncrypt::new(params, key.aes()?)?),
            Mechanism::AesCtr(params) => State::Ctr(CtrStream::new(params, key.aes()?)?),
            _ => State::Block(block_stream(mechanism, Direction::Encrypt, key)?),
        };
        Ok(Self { state })
    }

    /// Begins a decryption. With GCM it keeps up to [`crate::GCM_BUFFER_BYTES_MAX`] of ciphertext and gives the plaintext at
    /// the end, when the tag was checked. CBC and CTR give plaintext at once: they authenticate nothing.
    ///
    /// # Errors
    /// [`Error`] of mechanism, parameter or key.
    pub fn decrypt(mechanism: &Mechanism<'_>, key: &Key<'_>) -> Result<Self, Error> {
        let state = match mechanism {
            Mechanism::AesGcm(params) => State::GcmDecrypt(GcmDecrypt::new(params, key.aes()?)?),
            Mechanism::AesCtr(params) => State::Ctr(CtrStream::new(params, key.aes()?)?),
            _ => State::Block(block_stream(mechanism, Direction::Decrypt, key)?),
        };
        Ok(Self { state })
    }

    /// Begins a signature or MAC.
    ///
    /// # Errors
    /// [`Error`] of mechanism, parameter or key; [`Error::SinglePartOnly`].
    pub fn sign(mechanism: &Mechanism<'_>, key: &Key<'_>) -> Result<Self, Error> {
        if mechanism.prehash().is_some() {
            key.ec_private()?;
        }
        Ok(Self { state: State::Sign(Authenticator::new(mechanism, key)?) })
    }

    /// Begins a verification.
    ///
    /// # Errors
    /// [`Error`] of mechanism, parameter or key; [`Error::SinglePartOnly`].
    pub fn verify(mechanism: &Mechanism<'_>, key: &Key<'_>) -> Result<Self, Error> {
        if mechanism.prehash().is_some() {
            key.ec_public()?;
        }
        Ok(Self { state: State::Verify(Authenticator::new(mechanism, key)?) })
    }

    /// Begins a digest.
    ///
    /// # Errors
    /// [`Error::Library`].
    pub fn digest(hash: Hash) -> Result<Self, Error> {
        Ok(Self { state: State::Digest(DigestContext::new(hash)?) })
    }

    /// Takes the next part. Ciphers write to the start of `out`, which needs [`update_len`](Self::update_len) bytes, and
    /// return how many they wrote; the others write nothing and return 0.
    ///
    /// # Errors
    /// [`Error::OutputTooSmall`] and [`Error::Suspended`] change nothing; any other error ends the operation.
    pub fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let needed_bytes = self.update_len(input.len());
        if out.len() < needed_bytes {
            return Err(Error::OutputTooSmall { needed_bytes });
        }
        self.step(|state| match state {
            State::Block(stream) => stream.update(input, out),
            State::Ctr(stream) => stream.update(input, out),
            State::GcmEncrypt(stream) => stream.update(input, out),
            State::GcmDecrypt(stream) => stream.update(input),
            State::Sign(authenticator) | State::Verify(authenticator) => authenticator.update(input).map(|()| 0),
            State::Digest(context) => context.update(input).map(|()| 0),
            State::Ended => Err(Error::Ended),
        })
    }

    /// Writes what is left (last block, tag, plaintext of GCM, signature, MAC, digest) to the start of `out`, which needs
    /// [`finish_len`](Self::finish_len) bytes, and returns how many those were. The operation has ended then.
    ///
    /// `out` must be memory that nobody else sees: with GCM it holds unchecked plaintext for a moment, wiped on failure.
    ///
    /// # Errors
    /// As [`update`](Self::update); [`Error::Decrypt`] for whatever does not decrypt.
    pub fn finish(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let needed_bytes = self.finish_len();
        if out.len() < needed_bytes {
            return Err(Error::OutputTooSmall { needed_bytes });
        }
        let done = self.step(|state| match state {
            State::Block(stream) => stream.finish(out),
            State::Ctr(stream) if stream.is_suspended() => Err(Error::Suspended),
            State::Ctr(_) => Ok(0),
            State::GcmEncrypt(stream) => stream.finish(out),
            State::GcmDecrypt(stream) => stream.finish(out),
            State::Sign(authenticator) => authenticator.sign(out),
            State::Verify(_) => Err(Error::Mechanism),
            State::Digest(context) => {
                let mut digest = [0; DIGEST_BYTES_MAX];
                let len = context.finish(&mut digest)?;
                out[..len].copy_from_slice(&digest[..len]);
                Ok(len)
            }
            State::Ended => Err(Error::Ended),
        })?;
        self.state = State::Ended;
        Ok(done)
    }

    /// Ends a verification.
    ///
    /// # Errors
    /// [`Error::Signature`], [`Error::SignatureLength`]; [`Error::Suspended`] changes nothing.
    pub fn finish_verify(&mut self, signature: &[u8]) -> Result<(), Error> {
        self.step(|state| match state {
            State::Verify(authenticator) => authenticator.verify(signature),
            State::Ended => Err(Error::Ended),
            _ => Err(Error::Mechanism),
        })?;
        self.state = State::Ended;
        Ok(())
    }

    /// What the next [`update`](Self::update) with `input_len` bytes writes, exactly.
    #[must_use]
    pub fn update_len(&self, input_len: usize) -> usize {
        match &self.state {
            State::Block(stream) => stream.update_len(input_len),
            State::Ctr(_) | State::GcmEncrypt(_) => input_len,
            _ => 0,
        }
    }

    /// Room that [`finish`](Self::finish) wants: the exact length, or for a padded plaintext the most that it can be.
    #[must_use]
    pub fn finish_len(&self) -> usize {
        match &self.state {
            State::Block(stream) => stream.finish_len(),
            State::GcmEncrypt(stream) => stream.tag_bytes,
            State::GcmDecrypt(stream) => stream.finish_len(),
            State::Sign(authenticator) => authenticator.signature_len(),
            State::Digest(context) => context.hash().bytes(),
            State::Ctr(_) | State::Verify(_) | State::Ended => 0,
        }
    }

    /// Lets go of the key between calls, keeping chaining state. True when the operation holds no key now; false for GCM
    /// encryption and HMAC, whose state is as good as the key: they must be ended or dropped.
    pub fn suspend(&mut self) -> bool {
        match &mut self.state {
            State::Block(stream) => stream.suspend(),
            State::Ctr(stream) => stream.suspend(),
            State::GcmDecrypt(stream) => stream.suspend(),
            State::Sign(Authenticator::Prehashed { key, .. }) | State::Verify(Authenticator::Prehashed { key, .. }) => {
                *key = None;
            }
            State::GcmEncrypt(_) | State::Sign(_) | State::Verify(_) => return false,
            State::Digest(_) | State::Ended => {}
        }
        true
    }

    /// Whether the operation waits for [`resume`](Self::resume).
    #[must_use]
    pub fn is_suspended(&self) -> bool {
        match &self.state {
            State::Block(stream) => stream.is_suspended(),
            State::Ctr(stream) => stream.is_suspended(),
            State::GcmDecrypt(stream) => stream.is_suspended(),
            State::Sign(Authenticator::Prehashed { key, .. }) | State::Verify(Authenticator::Prehashed { key, .. }) => {
                key.is_none()
            }
            _ => false,
        }
    }

    /// Gives the key back to a suspended operation: the same one, or the result is nonsense. Does nothing to one that has it.
    ///
    /// # Errors
    /// [`Error`] of the key; the operation has ended then.
    pub fn resume(&mut self, key: &Key<'_>) -> Result<(), Error> {
        if !self.is_suspended() {
            return Ok(());
        }
        let resumed = self.give(key);
        if resumed.is_err() {
            self.state = State::Ended;
        }
        resumed
    }

    fn give(&mut self, key: &Key<'_>) -> Result<(), Error> {
        match &mut self.state {
            State::Block(stream) => stream.resume(key.aes()?),
            State::Ctr(stream) => stream.resume(key.aes()?),
            State::GcmDecrypt(stream) => stream.resume(key.aes()?),
            State::Sign(Authenticator::Prehashed { key: kept, .. })
            | State::Verify(Authenticator::Prehashed { key: kept, .. }) => {
                *kept = Some(KeptKey::new(key)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// One step on the secret stack; what fails ends the operation, unless nothing was done.
    fn step<R: Dense>(&mut self, work: impl FnOnce(&mut State) -> Result<R, Error>) -> Result<R, Error> {
        let done = secretly(|| work(&mut self.state));
        if !matches!(done, Ok(_) | Err(Error::OutputTooSmall { .. } | Error::Suspended)) {
            self.state = State::Ended;
        }
        done
    }
}

impl Authenticator {
    fn new(mechanism: &Mechanism<'_>, key: &Key<'_>) -> Result<Self, Error> {
        if let Mechanism::Hmac(params) = mechanism {
            return Ok(Self::Hmac(HmacContext::new(params.hash, params.bytes()?, key.generic()?)?));
        }
        let signature_len = oneshot::signature_len(mechanism, key)?;
        let (hash, then) = mechanism.prehash().ok_or(Error::SinglePartOnly)?;
        Ok(Self::Prehashed { digest: DigestContext::new(hash)?, then, key: Some(KeptKey::new(key)?), signature_len })
    }

    fn update(&mut self, input: &[u8]) -> Result<(), Error> {
        match self {
            Self::Hmac(context) => context.update(input),
            Self::Prehashed { digest, .. } => digest.update(input),
        }
    }

    fn signature_len(&self) -> usize {
        match self {
            Self::Hmac(context) => context.mac_bytes(),
            Self::Prehashed { signature_len, .. } => *signature_len,
        }
    }

    fn sign(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        match self {
            Self::Hmac(context) => context.finish(out),
            Self::Prehashed { digest, then, key, .. } => {
                let key = key.as_ref().ok_or(Error::Suspended)?;
                let mut hashed = [0; DIGEST_BYTES_MAX];
                let len = digest.finish(&mut hashed)?;
                oneshot::sign(then, &key.borrow(), &hashed[..len], out)
            }
        }
    }

    fn verify(&mut self, signature: &[u8]) -> Result<(), Error> {
        match self {
            Self::Hmac(context) => context.verify(signature),
            Self::Prehashed { digest, then, key, .. } => {
                let key = key.as_ref().ok_or(Error::Suspended)?;
                let mut hashed = [0; DIGEST_BYTES_MAX];
                let len = digest.finish(&mut hashed)?;
                oneshot::verify(then, &key.borrow(), &hashed[..len], signature)
            }
        }
    }
}
