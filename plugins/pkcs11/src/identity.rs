//! The device's identity: a P-256 key pair of the token, its public half, and signatures as the ledger wants them.

use crate::error::Fault;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::Session;
use mayfly_plugin_abi::{GuestError, SIGNATURE_BYTES, Status};
use p256::PublicKey;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::elliptic_curve::sec1::ToSec1Point;
use sha2::{Digest, Sha256};

use crate::record::PUBLIC_BYTES;

/// DER of the curve's name, secp256r1 (RFC 5480 section 2.1.1.1).
pub(crate) const CURVE: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// Bytes of r, and of s.
const SCALAR_BYTES: usize = SIGNATURE_BYTES / 2;

/// The two ways to ask for a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signing {
    /// `CKM_ECDSA`: the token signs our SHA-256.
    Digest,
    /// `CKM_ECDSA_SHA256`: the token hashes the message.
    Message,
}

impl Signing {
    /// The first that a token offers.
    pub(crate) fn choose(offers: impl Fn(MechanismType) -> bool) -> Option<Signing> {
        [(MechanismType::ECDSA, Signing::Digest), (MechanismType::ECDSA_SHA256, Signing::Message)]
            .into_iter()
            .find_map(|(mechanism, signing)| offers(mechanism).then_some(signing))
    }

    /// Signs: r || s, 32 bytes each, s in the lower half of the order.
    pub(crate) fn sign(
        self,
        session: &Session,
        key: ObjectHandle,
        message: &[u8],
    ) -> Result<[u8; SIGNATURE_BYTES], Fault> {
        let made = match self {
            Signing::Digest => session.sign(&Mechanism::Ecdsa, key, &Sha256::digest(message))?,
            Signing::Message => session.sign(&Mechanism::EcdsaSha256, key, message)?,
        };
        Ok(low_s(&made)?)
    }
}

/// A token's signature in the form of the ledger. Tokens give r || s in equal halves, some without leading zeros.
pub(crate) fn low_s(made: &[u8]) -> Result<[u8; SIGNATURE_BYTES], GuestError> {
    let odd = || GuestError::new(Status::Io, format!("the token made an odd signature of {} bytes", made.len()));
    if made.is_empty() || !made.len().is_multiple_of(2) || made.len() > SIGNATURE_BYTES {
        return Err(odd());
    }
    let (r, s) = made.split_at(made.len() / 2);
    let mut fixed = [0u8; SIGNATURE_BYTES];
    for (half, scalar) in fixed.chunks_exact_mut(SCALAR_BYTES).zip([r, s]) {
        let (_, low) = half.split_at_mut(SCALAR_BYTES - scalar.len());
        low.copy_from_slice(scalar);
    }
    let signature = Signature::from_slice(&fixed).map_err(|_| odd())?;
    Ok(signature.normalize_s().to_bytes().into())
}

/// The compressed form of a CKA_EC_POINT: by the standard an OCTET STRING around the point, by some tokens the point.
pub(crate) fn compressed(point: &[u8]) -> Result<[u8; PUBLIC_BYTES], GuestError> {
    let inner = match point {
        [0x04, length, rest @ ..] if usize::from(*length) == rest.len() && matches!(rest.len(), 33 | 65) => rest,
        raw => raw,
    };
    let odd = || GuestError::new(Status::Io, "the token gives an identity key that is no point of P-256".to_owned());
    let key = PublicKey::from_sec1_bytes(inner).map_err(|_| odd())?;
    key.to_sec1_point(true).as_bytes().try_into().map_err(|_| odd())
}

/// The public half of a pair that was just made or found, proved by a signature of the private half.
pub(crate) fn public_of(
    session: &Session,
    signing: Signing,
    public: ObjectHandle,
    private: ObjectHandle,
) -> Result<[u8; PUBLIC_BYTES], Fault> {
    const PROBE: &[u8] = b"mayfly/v1/vault-pkcs11/identity-probe";
    let point =
        session.get_attributes(public, &[AttributeType::EcPoint])?.into_iter().find_map(|attribute| match attribute {
            Attribute::EcPoint(point) => Some(point),
            _ => None,
        });
    let point =
        point.ok_or_else(|| GuestError::new(Status::Io, "the token does not show its public key".to_owned()))?;
    let public = compressed(&point)?;
    let signature = signing.sign(session, private, PROBE)?;
    let verifies = VerifyingKey::from_sec1_bytes(&public).is_ok_and(|key| {
        Signature::from_slice(&signature)
            .is_ok_and(|signature| key.verify_prehash(&Sha256::digest(PROBE), &signature).is_ok())
    });
    if !verifies {
        return Err(GuestError::new(Status::Io, "the token's identity keys are no pair".to_owned()).into());
    }
    Ok(public)
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::SigningKey;
    use p256::ecdsa::signature::hazmat::PrehashSigner;

    fn key() -> SigningKey {
        SigningKey::from_slice(&[7; 32]).unwrap()
    }

    #[test]
    fn points_in_every_wrapping() {
        let key = key();
        let (long, short) = (key.verifying_key().to_sec1_point(false), key.verifying_key().to_sec1_point(true));
        let (long, short) = (long.as_bytes(), short.as_bytes());
        for point in [long.to_vec(), short.to_vec(), [&[4, 65][..], long].concat(), [&[4, 33][..], short].concat()] {
            assert_eq!(compressed(&point).unwrap(), short, "{} bytes", point.len());
        }
        let mut off = long.to_vec();
        off[64] ^= 1;
        for (what, point) in [
            ("off the curve", off),
            ("empty", vec![]),
            ("cut", long[..64].to_vec()),
            ("wrong inner length", [&[4, 64][..], long].concat()),
            ("infinity", vec![0]),
            ("too long", [long, &[0]].concat()),
        ] {
            assert!(compressed(&point).is_err(), "{what}");
        }
    }

    #[test]
    fn signatures_are_fixed_and_low() {
        let digest = Sha256::digest(b"message");
        let low: Signature = key().sign_prehash(&digest).unwrap();
        let low = low.normalize_s();
        let (r, s) = low.split_scalars();
        let high = Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
        let expected: [u8; 64] = low.to_bytes().into();
        assert_eq!(low_s(&low.to_bytes()).unwrap(), expected);
        assert_eq!(low_s(&high.to_bytes()).unwrap(), expected, "made low");
        // 31-byte halves: as of a token that cuts leading zeros of both
        let short = [&[1u8; 31][..], &[2u8; 31]].concat();
        let fixed = low_s(&short).unwrap();
        assert_eq!((fixed[0], &fixed[1..32], fixed[32], &fixed[33..]), (0, &[1u8; 31][..], 0, &[2u8; 31][..]));
        for odd in [vec![], vec![1; 63], vec![1; 66], vec![0; 64], vec![0xff; 64]] {
            assert!(low_s(&odd).is_err(), "{} bytes", odd.len());
        }
    }
}
