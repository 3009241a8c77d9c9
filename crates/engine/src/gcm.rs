//! AES-GCM: in one piece, and in parts. No plaintext leaves before its tag was checked.

use crate::cipher::{BLOCK, CipherContext, Direction, Mode};
use crate::key::kept;
use crate::mechanism::Gcm;
use crate::{Error, secretly};
use mayfly_secmem::{SecretBytes, wipe};

/// Most ciphertext that a decryption in parts keeps until its tag is checked, bytes. Larger messages are decrypted in one
/// piece, or with a format that has a tag per chunk.
pub const GCM_BUFFER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Encrypts `plaintext` to the start of `out`, ciphertext then tag.
pub(crate) fn encrypt(params: &Gcm<'_>, key: &[u8], plaintext: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let mut stream = GcmEncrypt::new(params, key)?;
    let needed_bytes = plaintext.len().saturating_add(stream.tag_bytes);
    if out.len() < needed_bytes {
        return Err(Error::OutputTooSmall { needed_bytes });
    }
    let done = stream.update(plaintext, out)?;
    let tag = stream.finish(&mut out[done..])?;
    Ok(done + tag)
}

/// Decrypts ciphertext and tag to the start of `out`, which is wiped when the tag is wrong. `out` holds unchecked plaintext
/// until this returns: it must not be shared memory.
pub(crate) fn decrypt(params: &Gcm<'_>, key: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let tag_bytes = params.tag_bytes()?;
    let Some((ciphertext, tag)) = sealed.len().checked_sub(tag_bytes).map(|len| sealed.split_at(len)) else {
        return Err(Error::EncryptedLength);
    };
    let needed_bytes = ciphertext.len();
    let out = out.get_mut(..needed_bytes).ok_or(Error::OutputTooSmall { needed_bytes })?;
    let mut context = CipherContext::new(Mode::Gcm, Direction::Decrypt, key, params.iv)?;
    context.additional(params.aad)?;
    let checked = context.update(ciphertext, out).and_then(|()| context.check_tag(tag));
    if let Err(why) = checked {
        wipe(out);
        return Err(why);
    }
    Ok(needed_bytes)
}

/// An encryption in parts. Its state holds the key to the end: GHASH cannot go on without it.
pub(crate) struct GcmEncrypt {
    context: CipherContext,
    pub(crate) tag_bytes: usize,
}

impl GcmEncrypt {
    pub(crate) fn new(params: &Gcm<'_>, key: &[u8]) -> Result<Self, Error> {
        let tag_bytes = params.tag_bytes()?;
        let mut context = CipherContext::new(Mode::Gcm, Direction::Encrypt, key, params.iv)?;
        secretly(|| context.additional(params.aad))?;
        Ok(Self { context, tag_bytes })
    }

    pub(crate) fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        self.context.update(input, out)?;
        Ok(input.len())
    }

    pub(crate) fn finish(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let needed_bytes = self.tag_bytes;
        let out = out.get_mut(..needed_bytes).ok_or(Error::OutputTooSmall { needed_bytes })?;
        self.context.tag(out)?;
        Ok(needed_bytes)
    }
}

/// A decryption in parts: keeps the ciphertext, decrypts at the end.
pub(crate) struct GcmDecrypt {
    /// none while suspended
    key: Option<SecretBytes>,
    iv: Box<[u8]>,
    aad: Box<[u8]>,
    tag_bits: u32,
    tag_bytes: usize,
    sealed: Vec<u8>,
}

impl GcmDecrypt {
    pub(crate) fn new(params: &Gcm<'_>, key: &[u8]) -> Result<Self, Error> {
        let tag_bytes = params.tag_bytes()?;
        let mut stream = Self {
            key: None,
            iv: params.iv.into(),
            aad: params.aad.into(),
            tag_bits: params.tag_bits,
            tag_bytes,
            sealed: Vec::new(),
        };
        stream.resume(key)?;
        Ok(stream)
    }

    pub(crate) fn update(&mut self, input: &[u8]) -> Result<usize, Error> {
        if self.sealed.len().saturating_add(input.len()) > GCM_BUFFER_BYTES_MAX + BLOCK {
            return Err(Error::EncryptedLength);
        }
        self.sealed.extend_from_slice(input);
        Ok(0)
    }

    pub(crate) fn finish_len(&self) -> usize {
        self.sealed.len().saturating_sub(self.tag_bytes)
    }

    pub(crate) fn finish(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let key = self.key.as_ref().ok_or(Error::Suspended)?;
        let params = Gcm { iv: &self.iv, aad: &self.aad, tag_bits: self.tag_bits };
        decrypt(&params, key.expose(), &self.sealed, out)
    }

    /// Lets go of the key.
    pub(crate) fn suspend(&mut self) {
        self.key = None;
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.key.is_none()
    }

    pub(crate) fn resume(&mut self, key: &[u8]) -> Result<(), Error> {
        if !matches!(key.len(), 16 | 24 | 32) {
            return Err(Error::KeyLength);
        }
        self.key = Some(kept(key)?);
        Ok(())
    }
}
