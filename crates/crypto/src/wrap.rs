//! Sealed records: a secret under a key that is at hand again when the secret is needed.
//!
//! AES-256-GCM-SIV (RFC 8452) with a random nonce: `nonce (12) || ciphertext || tag (16)`. For wrapped key bytes on the ledger and shards at
//! rest. Should a nonce repeat, all that shows is whether two secrets are equal. The caller's AAD, an [`crate::enc::enc`] of what the record
//! is, keeps a record from standing in for another.
//!
//! The AEAD does not commit to its key: where more than one key could open a record, check a key commitment first
//! ([`crate::schedule::commitment_holds`]).

use crate::aead::{self, NONCE_BYTES, NotAuthentic, TAG_BYTES};
use mayfly_secmem::{Exhausted, RandomError, SECRET_BYTES_MAX, Secret, SecretBytes, random};
use thiserror::Error;

/// How much longer a record is than its secret, in bytes.
pub const OVERHEAD_BYTES: usize = NONCE_BYTES + TAG_BYTES;

/// Why a secret is not sealed or a record not opened.
#[derive(Debug, Error)]
pub enum WrapError {
    /// The record was made with another key or AAD, or was changed, or is none.
    #[error("sealed record is not authentic")]
    NotAuthentic,
    /// Above the arena's limit for one secret.
    #[error("secret of {0} bytes is above the limit")]
    TooLong(usize),
    /// No slot for the secret.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// No randomness for the nonce.
    #[error(transparent)]
    Random(RandomError),
}

impl From<NotAuthentic> for WrapError {
    fn from(NotAuthentic: NotAuthentic) -> Self {
        Self::NotAuthentic
    }
}

/// Seals `secret`, borrowed from its slot.
///
/// # Errors
/// [`WrapError::TooLong`], [`WrapError::Random`].
pub fn seal(key: &Secret<32>, aad: &[u8], secret: &[u8]) -> Result<Vec<u8>, WrapError> {
    if secret.len() > SECRET_BYTES_MAX {
        return Err(WrapError::TooLong(secret.len()));
    }
    let mut nonce = [0; NONCE_BYTES];
    random(&mut nonce).map_err(WrapError::Random)?;
    let mut record = Vec::with_capacity(OVERHEAD_BYTES + secret.len());
    record.extend_from_slice(&nonce);
    aead::seal(key.expose(), &nonce, aad, secret, &mut record);
    Ok(record)
}

/// Opens a record into a new slot.
///
/// # Errors
/// [`WrapError::NotAuthentic`], one and the same for every cause; [`WrapError::Memory`].
pub fn open(key: &Secret<32>, aad: &[u8], record: &[u8]) -> Result<SecretBytes, WrapError> {
    let (nonce, sealed) = split(record)?;
    let length = sealed.len().checked_sub(TAG_BYTES).filter(|length| *length <= SECRET_BYTES_MAX);
    SecretBytes::try_new_with(length.ok_or(WrapError::NotAuthentic)?, |slot| {
        Ok(aead::open(key.expose(), nonce, aad, sealed, slot)?)
    })
}

/// Opens a record whose secret has exactly `N` bytes.
///
/// # Errors
/// As [`open`]; another length is [`WrapError::NotAuthentic`] too.
pub fn open_fixed<const N: usize>(key: &Secret<32>, aad: &[u8], record: &[u8]) -> Result<Secret<N>, WrapError> {
    let (nonce, sealed) = split(record)?;
    Secret::try_new_with(|slot| Ok(aead::open(key.expose(), nonce, aad, sealed, slot)?))
}

fn split(record: &[u8]) -> Result<(&[u8; NONCE_BYTES], &[u8]), WrapError> {
    record.split_first_chunk().ok_or(WrapError::NotAuthentic)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(fill: u8) -> Secret<32> {
        Secret::new_with(|slot| slot.fill(fill)).unwrap()
    }

    #[test]
    fn a_record_opens_with_its_key_and_aad_only() {
        let record = seal(&key(1), b"aad", b"a secret").unwrap();
        assert_eq!(record.len(), 8 + OVERHEAD_BYTES);
        assert_eq!(open(&key(1), b"aad", &record).unwrap().expose(), b"a secret");
        assert_eq!(open_fixed::<8>(&key(1), b"aad", &record).unwrap().expose(), b"a secret");
        let refused = |result: Result<_, WrapError>| matches!(result, Err(WrapError::NotAuthentic));
        assert!(refused(open(&key(2), b"aad", &record)));
        assert!(refused(open(&key(1), b"aae", &record)));
        assert!(refused(open(&key(1), b"", &record)));
        assert!(matches!(open_fixed::<7>(&key(1), b"aad", &record), Err(WrapError::NotAuthentic)));
        assert!(matches!(open_fixed::<9>(&key(1), b"aad", &record), Err(WrapError::NotAuthentic)));
    }

    #[test]
    fn lengths_from_nothing_to_the_limit() {
        for length in [0, 1, 16, SECRET_BYTES_MAX] {
            let secret = vec![7; length];
            let record = seal(&key(1), b"", &secret).unwrap();
            assert_eq!(open(&key(1), b"", &record).unwrap().expose(), secret);
        }
        assert!(matches!(seal(&key(1), b"", &vec![0; SECRET_BYTES_MAX + 1]), Err(WrapError::TooLong(_))));
        for length in [0, NONCE_BYTES, OVERHEAD_BYTES - 1, OVERHEAD_BYTES, SECRET_BYTES_MAX + OVERHEAD_BYTES + 1] {
            assert!(matches!(open(&key(1), b"", &vec![0; length]), Err(WrapError::NotAuthentic)), "{length}");
        }
    }

    #[test]
    fn the_same_secret_gives_different_records() {
        let records: Vec<_> = (0..20).map(|_| seal(&key(1), b"aad", b"a secret").unwrap()).collect();
        assert!((0..20).all(|i| !records[i + 1..].contains(&records[i])));
    }

    proptest! {
        #[test]
        fn any_change_is_refused(secret in proptest::collection::vec(any::<u8>(), 0..100), aad in proptest::collection::vec(any::<u8>(), 0..40),
                                 at in any::<prop::sample::Index>(), bit in 0..8_u32, cut in any::<prop::sample::Index>()) {
            let record = seal(&key(3), &aad, &secret).unwrap();
            let opened = open(&key(3), &aad, &record).unwrap();
            prop_assert_eq!(opened.expose(), secret.as_slice());
            let mut changed = record.clone();
            changed[at.index(record.len())] ^= 1 << bit;
            prop_assert!(open(&key(3), &aad, &changed).is_err());
            prop_assert!(open(&key(3), &aad, &record[..cut.index(record.len())]).is_err());
            let longer = [record.as_slice(), &[0]].concat();
            prop_assert!(open(&key(3), &aad, &longer).is_err());
        }
    }
}
