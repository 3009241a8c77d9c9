//! Does an identity signature verify? A vault that signs wrongly is found out before the ledger sees it.

use crate::abi::{Alg, Identity, SIGNATURE_BYTES};
use ed25519_zebra::{Signature as EdSignature, VerificationKey};
use p256::ecdsa::signature::Verifier;
use p256::ecdsa::{Signature as EcSignature, VerifyingKey};

/// True when `signature` over `message` verifies under `identity` by the ledger's rules: Ed25519 by ZIP-215; ECDSA
/// P-256 with SHA-256, r || s, s in the lower half of the order.
pub(crate) fn is_good(identity: &Identity, message: &[u8], signature: &[u8; SIGNATURE_BYTES]) -> bool {
    match identity.alg {
        Alg::Ed25519 => VerificationKey::try_from(&identity.public[..])
            .is_ok_and(|key| key.verify(&EdSignature::from(*signature), message).is_ok()),
        Alg::P256 => {
            let Ok(key) = VerifyingKey::from_sec1_bytes(&identity.public) else { return false };
            let Ok(signature) = EcSignature::from_slice(signature) else { return false };
            signature.normalize_s() == signature && key.verify(message, &signature).is_ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::SigningKey as EcKey;
    use p256::ecdsa::signature::Signer;

    #[test]
    fn p256_low_s_only() {
        let key = EcKey::from_slice(&[7; 32]).unwrap();
        let public = key.verifying_key().to_sec1_point(true).as_bytes().to_vec();
        let identity = Identity { alg: Alg::P256, public };
        let made: EcSignature = key.sign(b"message");
        let low = made.normalize_s();
        let bytes: [u8; 64] = low.to_bytes().into();
        assert!(is_good(&identity, b"message", &bytes));
        assert!(!is_good(&identity, b"massage", &bytes));
        let (r, s) = low.split_scalars();
        let high = EcSignature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap();
        assert!(
            !is_good(&identity, b"message", &high.to_bytes().into()),
            "the other s verifies as well, and is refused"
        );
        assert!(!is_good(&identity, b"message", &[0; 64]));
    }

    #[test]
    fn ed25519() {
        let key = ed25519_zebra::SigningKey::from([7; 32]);
        let public = <[u8; 32]>::from(key.verification_key()).to_vec();
        let identity = Identity { alg: Alg::Ed25519, public };
        let good = key.sign(b"message").to_bytes();
        assert!(is_good(&identity, b"message", &good));
        assert!(!is_good(&identity, b"massage", &good));
        let odd = Identity { alg: Alg::Ed25519, public: vec![0xff; 31] };
        assert!(!is_good(&odd, b"message", &good));
    }
}
