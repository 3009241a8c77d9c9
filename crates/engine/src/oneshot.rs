//! Whole messages in one call: the path of almost all operations.

use crate::block::BlockStream;
use crate::cipher::{BLOCK, Direction, Mode};
use crate::ctr::CtrStream;
use crate::digest::{DIGEST_BYTES_MAX, digest};
use crate::mac::HmacContext;
use crate::{Error, Key, Mechanism, ecdsa, gcm, secretly};
use mayfly_secmem::wipe;

/// Length of the ciphertext of `len` bytes, exactly.
///
/// # Errors
/// [`Error::Mechanism`], [`Error::Parameter`]; [`Error::DataLength`] where no such ciphertext exists.
pub fn encrypted_len(mechanism: &Mechanism<'_>, len: usize) -> Result<usize, Error> {
    let sum = match mechanism {
        Mechanism::AesEcb | Mechanism::AesCbc(_) if len.is_multiple_of(BLOCK) => Some(len),
        Mechanism::AesEcb | Mechanism::AesCbc(_) => None,
        Mechanism::AesCbcPad(_) => len.checked_add(BLOCK - len % BLOCK),
        Mechanism::AesCtr(_) => Some(len),
        Mechanism::AesGcm(params) => len.checked_add(params.tag_bytes()?),
        _ => return Err(Error::Mechanism),
    };
    sum.ok_or(Error::DataLength)
}

/// Room that [`decrypt`] wants for `len` bytes of ciphertext: the exact length of the plaintext, or for a padded one the most
/// that it can be.
///
/// # Errors
/// [`Error::Mechanism`], [`Error::Parameter`]; [`Error::EncryptedLength`] where no such ciphertext exists.
pub fn decrypted_len_max(mechanism: &Mechanism<'_>, len: usize) -> Result<usize, Error> {
    let rest = match mechanism {
        Mechanism::AesEcb | Mechanism::AesCbc(_) if len.is_multiple_of(BLOCK) => Some(len),
        Mechanism::AesCbcPad(_) if len.is_multiple_of(BLOCK) => len.checked_sub(1),
        Mechanism::AesEcb | Mechanism::AesCbc(_) | Mechanism::AesCbcPad(_) => None,
        Mechanism::AesCtr(_) => Some(len),
        Mechanism::AesGcm(params) => len.checked_sub(params.tag_bytes()?),
        _ => return Err(Error::Mechanism),
    };
    rest.ok_or(Error::EncryptedLength)
}

/// Length of a signature or MAC, exactly.
///
/// # Errors
/// [`Error::Mechanism`], [`Error::Parameter`], [`Error::KeyType`].
pub fn signature_len(mechanism: &Mechanism<'_>, key: &Key<'_>) -> Result<usize, Error> {
    match (mechanism, key) {
        (Mechanism::Hmac(params), Key::Generic(_)) => params.bytes(),
        (Mechanism::Ecdsa | Mechanism::EcdsaHash(_), Key::EcPrivate { curve, .. } | Key::EcPublic { curve, .. }) => {
            Ok(2 * curve.scalar_bytes())
        }
        (Mechanism::Hmac(_) | Mechanism::Ecdsa | Mechanism::EcdsaHash(_), _) => Err(Error::KeyType),
        _ => Err(Error::Mechanism),
    }
}

/// Encrypts `data` to the start of `out`; returns the length, [`encrypted_len`].
///
/// # Errors
/// [`Error`]; `out` may have been written to.
pub fn encrypt(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let needed_bytes = encrypted_len(mechanism, data.len())?;
    if out.len() < needed_bytes {
        return Err(Error::OutputTooSmall { needed_bytes });
    }
    secretly(|| match mechanism {
        Mechanism::AesGcm(params) => gcm::encrypt(params, key.aes()?, data, out),
        Mechanism::AesCtr(params) => CtrStream::new(params, key.aes()?)?.update(data, out),
        _ => blocks(mechanism, Direction::Encrypt, key, data, out),
    })
}

/// Decrypts `data` to the start of `out`, which needs [`decrypted_len_max`] bytes; returns the length.
///
/// `out` holds unchecked plaintext until this returns, and is wiped when it fails: it must be memory that nobody else sees.
///
/// # Errors
/// [`Error::Decrypt`] for whatever does not decrypt; other errors for wrong use, which depends on public things only.
pub fn decrypt(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let needed_bytes = decrypted_len_max(mechanism, data.len())?;
    let out = out.get_mut(..needed_bytes).ok_or(Error::OutputTooSmall { needed_bytes })?;
    let done = secretly(|| match mechanism {
        Mechanism::AesGcm(params) => gcm::decrypt(params, key.aes()?, data, out),
        Mechanism::AesCtr(params) => CtrStream::new(params, key.aes()?)?.update(data, out),
        _ => blocks(mechanism, Direction::Decrypt, key, data, out),
    });
    if done.is_err() {
        wipe(out);
    }
    done
}

/// Signs or MACs `data` to the start of `out`; returns the length, [`signature_len`].
///
/// # Errors
/// [`Error`].
pub fn sign(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let needed_bytes = signature_len(mechanism, key)?;
    if out.len() < needed_bytes {
        return Err(Error::OutputTooSmall { needed_bytes });
    }
    secretly(|| match mechanism {
        Mechanism::Hmac(params) => {
            let mut context = HmacContext::new(params.hash, params.bytes()?, key.generic()?)?;
            context.update(data)?;
            context.finish(out)
        }
        Mechanism::Ecdsa => key.ec_private().and_then(|(curve, scalar)| ecdsa::sign(curve, scalar, data, out)),
        Mechanism::EcdsaHash(hash) => {
            let (curve, scalar) = key.ec_private()?;
            let mut hashed = [0; DIGEST_BYTES_MAX];
            let len = digest(*hash, data, &mut hashed)?;
            ecdsa::sign(curve, scalar, &hashed[..len], out)
        }
        _ => Err(Error::Mechanism),
    })
}

/// Verifies a signature or MAC of `data`.
///
/// # Errors
/// [`Error::Signature`], [`Error::SignatureLength`]; others for wrong use.
pub fn verify(mechanism: &Mechanism<'_>, key: &Key<'_>, data: &[u8], signature: &[u8]) -> Result<(), Error> {
    match mechanism {
        Mechanism::Hmac(params) => secretly(|| {
            let mut context = HmacContext::new(params.hash, params.bytes()?, key.generic()?)?;
            context.update(data)?;
            context.verify(signature)
        }),
        Mechanism::Ecdsa => key.ec_public().and_then(|(curve, point)| ecdsa::verify(curve, point, data, signature)),
        Mechanism::EcdsaHash(hash) => {
            let (curve, point) = key.ec_public()?;
            let mut hashed = [0; DIGEST_BYTES_MAX];
            let len = digest(*hash, data, &mut hashed)?;
            ecdsa::verify(curve, point, &hashed[..len], signature)
        }
        _ => Err(Error::Mechanism),
    }
}

fn blocks(
    mechanism: &Mechanism<'_>,
    direction: Direction,
    key: &Key<'_>,
    data: &[u8],
    out: &mut [u8],
) -> Result<usize, Error> {
    let mut stream = block_stream(mechanism, direction, key)?;
    let done = stream.update(data, out)?;
    let last = stream.finish(&mut out[done..])?;
    Ok(done + last)
}

/// The block mode that a mechanism names.
pub(crate) fn block_stream(
    mechanism: &Mechanism<'_>,
    direction: Direction,
    key: &Key<'_>,
) -> Result<BlockStream, Error> {
    let (mode, padded, iv) = match mechanism {
        Mechanism::AesEcb => (Mode::Ecb, false, [0; BLOCK]),
        Mechanism::AesCbc(iv) => (Mode::Cbc, false, iv.0),
        Mechanism::AesCbcPad(iv) => (Mode::Cbc, true, iv.0),
        _ => return Err(Error::Mechanism),
    };
    BlockStream::new(mode, padded, direction, iv, key.aes()?)
}
