//! TPM2_MakeCredential in software (TPM 2.0 Library, part 1, 24): a secret that opens only in the chip with the
//! endorsement key, and only while the object of a given Name is loaded there.

use crate::certificate::EndorsementKey;
use aws_lc_rs::agreement::{self, EphemeralPrivateKey, UnparsedPublicKey};
use aws_lc_rs::cipher::{AES_128, AES_256, EncryptingKey, EncryptionContext, UnboundCipherKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey};
use aws_lc_rs::{digest, hmac};
use mayfly_evidence::marshal::Writer;
use zeroize::Zeroizing;

/// Label of the seed, with its terminating zero.
const IDENTITY: &[u8] = b"IDENTITY\0";
/// Longest seed: SHA-384.
const SEED_BYTES_MAX: usize = 48;

/// A credential could not be made: no random numbers, or a key that is none.
#[derive(Debug, thiserror::Error)]
#[error("the credential could not be made: the endorsement key is not usable, or there are no random numbers")]
pub struct CredentialError;

impl From<Unspecified> for CredentialError {
    fn from(_: Unspecified) -> CredentialError {
        CredentialError
    }
}

/// What goes to the chip.
pub struct Credential {
    /// TPMS_ID_OBJECT: outer HMAC, encrypted secret.
    pub blob: Vec<u8>,
    /// The seed, encrypted to the endorsement key.
    pub seed: Vec<u8>,
}

/// Algorithms that an endorsement key's template fixes.
struct Suite {
    hash: &'static digest::Algorithm,
    hmac: hmac::Algorithm,
    aes_bytes: usize,
}

impl Suite {
    fn of(key: &EndorsementKey) -> Suite {
        match key {
            EndorsementKey::Rsa2048(_) | EndorsementKey::P256(_) => {
                Suite { hash: &digest::SHA256, hmac: hmac::HMAC_SHA256, aes_bytes: 16 }
            }
            EndorsementKey::P384(_) => Suite { hash: &digest::SHA384, hmac: hmac::HMAC_SHA384, aes_bytes: 32 },
        }
    }

    fn hash_bytes(&self) -> usize {
        self.hash.output_len()
    }
}

/// Makes a credential: `secret` for the chip of `key`, while the object of Name `name` is loaded.
///
/// # Errors
/// [`CredentialError`].
pub fn make(key: &EndorsementKey, name: &[u8], secret: &[u8; 32]) -> Result<Credential, CredentialError> {
    let suite = Suite::of(key);
    let mut room = Zeroizing::new([0; SEED_BYTES_MAX]);
    let seed = &mut room[..suite.hash_bytes()];
    let encrypted = match key {
        EndorsementKey::Rsa2048(spki) => seed_by_rsa(spki, seed)?,
        EndorsementKey::P256(point) => seed_by_curve(&suite, &agreement::ECDH_P256, point, seed)?,
        EndorsementKey::P384(point) => seed_by_curve(&suite, &agreement::ECDH_P384, point, seed)?,
    };
    let mut aes = Zeroizing::new([0; 32]);
    let aes = &mut aes[..suite.aes_bytes];
    kdf_a(&suite, seed, b"STORAGE", name, aes);
    let mut wrapped = Writer::new().sized(secret).finish();
    let algorithm = if aes.len() == 16 { &AES_128 } else { &AES_256 };
    // the key is used once, so its IV is zero by the specification
    let iv = EncryptionContext::Iv128(FixedLength::from([0; 16]));
    EncryptingKey::cfb128(UnboundCipherKey::new(algorithm, aes)?)?.less_safe_encrypt(&mut wrapped, iv)?;

    let mut integrity = Zeroizing::new([0; SEED_BYTES_MAX]);
    let integrity = &mut integrity[..suite.hash_bytes()];
    kdf_a(&suite, seed, b"INTEGRITY", &[], integrity);
    let mut outer = hmac::Context::with_key(&hmac::Key::new(suite.hmac, integrity));
    outer.update(&wrapped);
    outer.update(name);
    let blob = Writer::new().sized(outer.sign().as_ref()).raw(&wrapped).finish();
    Ok(Credential { blob, seed: encrypted })
}

fn seed_by_rsa(spki: &[u8], seed: &mut [u8]) -> Result<Vec<u8>, CredentialError> {
    getrandom::fill(seed).map_err(|_| CredentialError)?;
    let key = PublicEncryptingKey::from_der(spki).map_err(|_| CredentialError)?;
    let key = OaepPublicEncryptingKey::new(key)?;
    let mut out = vec![0; key.ciphertext_size()];
    let length = key.encrypt(&OAEP_SHA256_MGF1SHA256, seed, &mut out, Some(IDENTITY))?.len();
    out.truncate(length);
    Ok(out)
}

fn seed_by_curve(
    suite: &Suite,
    curve: &'static agreement::Algorithm,
    point: &[u8],
    seed: &mut [u8],
) -> Result<Vec<u8>, CredentialError> {
    let coordinate = (point.len() - 1) / 2;
    let ours = EphemeralPrivateKey::generate(curve, &SystemRandom::new())?;
    let public = ours.compute_public_key()?;
    let (x, y) =
        public.as_ref().get(1..).ok_or(CredentialError)?.split_at_checked(coordinate).ok_or(CredentialError)?;
    let (x, y) = (x.to_vec(), y.to_vec());
    let theirs = UnparsedPublicKey::new(curve, point);
    let their_x = point.get(1..1 + coordinate).ok_or(CredentialError)?;
    agreement::agree_ephemeral(ours, theirs, CredentialError, |shared| {
        kdf_e(suite, shared, &x, their_x, seed);
        Ok(())
    })?;
    Ok(Writer::new().sized(&x).sized(&y).finish())
}

/// KDFa (part 1, 11.4.10.2): counter mode with HMAC; one block is enough for every key here.
fn kdf_a(suite: &Suite, key: &[u8], label: &[u8], context: &[u8], out: &mut [u8]) {
    let mut hmac = hmac::Context::with_key(&hmac::Key::new(suite.hmac, key));
    hmac.update(&1u32.to_be_bytes());
    hmac.update(label);
    hmac.update(&[0]);
    hmac.update(context);
    hmac.update(&(out.len() as u32 * 8).to_be_bytes());
    out.copy_from_slice(&hmac.sign().as_ref()[..out.len()]);
}

/// KDFe (part 1, 11.4.10.3): a seed from a shared point, with the label of credentials.
fn kdf_e(suite: &Suite, shared: &[u8], ours: &[u8], theirs: &[u8], out: &mut [u8]) {
    let mut hash = digest::Context::new(suite.hash);
    hash.update(&1u32.to_be_bytes());
    hash.update(shared);
    hash.update(IDENTITY);
    hash.update(ours);
    hash.update(theirs);
    out.copy_from_slice(&hash.finish().as_ref()[..out.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::agreement::PrivateKey;
    use aws_lc_rs::cipher::{DecryptingKey, DecryptionContext};
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use mayfly_evidence::marshal::Reader;

    const SECRET: [u8; 32] = [0x5c; 32];

    /// What a chip does with a credential (part 1, 24.5), for keys whose private half is here.
    fn open(suite: &Suite, seed: &[u8], name: &[u8], blob: &[u8]) -> Option<Vec<u8>> {
        let mut reader = Reader::new(blob);
        let outer = reader.sized(48).ok()?.to_vec();
        let mut wrapped = reader.take(34).ok()?.to_vec();
        reader.finish().ok()?;
        let mut integrity = vec![0; suite.hash_bytes()];
        kdf_a(suite, seed, b"INTEGRITY", &[], &mut integrity);
        let message = [wrapped.as_slice(), name].concat();
        hmac::verify(&hmac::Key::new(suite.hmac, &integrity), &message, &outer).ok()?;
        let mut aes = vec![0; suite.aes_bytes];
        kdf_a(suite, seed, b"STORAGE", name, &mut aes);
        let algorithm = if aes.len() == 16 { &AES_128 } else { &AES_256 };
        let key = DecryptingKey::cfb128(UnboundCipherKey::new(algorithm, &aes).unwrap()).unwrap();
        let iv = DecryptionContext::Iv128(FixedLength::from([0; 16]));
        key.decrypt(&mut wrapped, iv).unwrap();
        let mut reader = Reader::new(&wrapped);
        let secret = reader.sized(32).ok()?.to_vec();
        reader.finish().ok()?;
        Some(secret)
    }

    #[test]
    fn rsa() {
        use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let spki = AsDer::<PublicKeyX509Der<'_>>::as_der(&private.public_key()).unwrap();
        let key = EndorsementKey::Rsa2048(spki.as_ref().to_vec());
        let made = make(&key, b"name", &SECRET).unwrap();
        let private = OaepPrivateDecryptingKey::new(private).unwrap();
        let mut room = vec![0; private.min_output_size()];
        let seed = private.decrypt(&OAEP_SHA256_MGF1SHA256, &made.seed, &mut room, Some(IDENTITY)).unwrap();
        let suite = Suite::of(&key);
        assert_eq!(open(&suite, seed, b"name", &made.blob).unwrap(), SECRET);
        assert!(open(&suite, seed, b"other", &made.blob).is_none(), "for another Name");
    }

    #[test]
    fn curves() {
        for (curve, coordinate) in [(&agreement::ECDH_P256, 32), (&agreement::ECDH_P384, 48)] {
            let private = PrivateKey::generate(curve).unwrap();
            let public = private.compute_public_key().unwrap();
            let point = public.as_ref();
            let key = match coordinate {
                32 => EndorsementKey::P256(point.try_into().unwrap()),
                _ => EndorsementKey::P384(point.try_into().unwrap()),
            };
            let suite = Suite::of(&key);
            let made = make(&key, b"name", &SECRET).unwrap();
            let mut reader = Reader::new(&made.seed);
            let (x, y) = (reader.sized(48).unwrap(), reader.sized(48).unwrap());
            let ephemeral = UnparsedPublicKey::new(curve, [&[4], x, y].concat());
            let mut seed = vec![0; suite.hash_bytes()];
            agreement::agree(&private, ephemeral, (), |shared| {
                kdf_e(&suite, shared, x, &point[1..1 + coordinate], &mut seed);
                Ok(())
            })
            .unwrap();
            assert_eq!(open(&suite, &seed, b"name", &made.blob).unwrap(), SECRET);
            assert!(open(&suite, &seed, b"other", &made.blob).is_none());
            assert_ne!(make(&key, b"name", &SECRET).unwrap().blob, made.blob, "fresh each time");
        }
    }

    #[test]
    fn a_point_that_is_none() {
        assert!(make(&EndorsementKey::P256([4; 65]), b"name", &SECRET).is_err());
        assert!(make(&EndorsementKey::Rsa2048(vec![1; 20]), b"name", &SECRET).is_err());
    }
}
