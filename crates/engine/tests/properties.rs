//! Round trips, cuts, suspension, tampering; and the list of mechanisms against what works.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::{decrypted, encrypted, pieces, signed, streamed};
use mayfly_engine::{
    Ctr, Curve, Error, Gcm, Hash, Hmac, Iv, Key, Mechanism, MechanismKind as Kind, Operation, Stream, digest,
    generate_ec, generate_secret, mechanisms, verify,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 16), vec(any::<u8>(), 24), vec(any::<u8>(), 32)]
}

/// A cipher mechanism by number, with parameters from a pool of bytes.
fn cipher<'a>(number: usize, pool: &'a [u8; 64]) -> Mechanism<'a> {
    let block: [u8; 16] = *pool.first_chunk().expect("64 bytes");
    match number {
        0 => Mechanism::AesEcb,
        1 => Mechanism::AesCbc(Iv(block)),
        2 => Mechanism::AesCbcPad(Iv(block)),
        3 => Mechanism::AesCtr(Ctr { block, counter_bits: 128 }),
        4 => Mechanism::AesGcm(Gcm { iv: &pool[..12], aad: &pool[16..], tag_bits: 128 }),
        _ => Mechanism::AesGcm(Gcm { iv: &pool[..33], aad: &[], tag_bits: 96 }),
    }
}

/// Whole blocks for modes that want them.
fn fitting<'a>(mechanism: &Mechanism<'_>, data: &'a [u8]) -> &'a [u8] {
    match mechanism {
        Mechanism::AesEcb | Mechanism::AesCbc(_) => &data[..data.len() / 16 * 16],
        _ => data,
    }
}

proptest! {
    #[test]
    fn ciphers_round_trip_however_cut(
        number in 0usize..6, key in key(), pool in any::<[u8; 64]>(), data in vec(any::<u8>(), 0..300),
        cuts in vec(any::<usize>(), 0..6), back in vec(any::<usize>(), 0..6),
    ) {
        let mechanism = cipher(number, &pool);
        let (key, data) = (Key::Aes(&key), fitting(&mechanism, &data));
        let sealed = encrypted(&mechanism, &key, data).unwrap();
        prop_assert_eq!(decrypted(&mechanism, &key, &sealed).unwrap(), data);
        prop_assert_eq!(&streamed(&mut Stream::encrypt(&mechanism, &key).unwrap(), data, &cuts).unwrap(), &sealed);
        prop_assert_eq!(streamed(&mut Stream::decrypt(&mechanism, &key).unwrap(), &sealed, &back).unwrap(), data);
    }

    #[test]
    fn suspended_operations_go_on(
        number in 0usize..6, key in key(), pool in any::<[u8; 64]>(), data in vec(any::<u8>(), 0..200),
        cuts in vec(any::<usize>(), 0..6), encrypting in any::<bool>(),
    ) {
        let mechanism = cipher(number, &pool);
        let (key, data) = (Key::Aes(&key), fitting(&mechanism, &data));
        let sealed = encrypted(&mechanism, &key, data).unwrap();
        let (mut stream, input, expected) = if encrypting {
            (Stream::encrypt(&mechanism, &key).unwrap(), data, &sealed[..])
        } else {
            (Stream::decrypt(&mechanism, &key).unwrap(), &sealed[..], data)
        };
        let mut all = Vec::new();
        for piece in pieces(input, &cuts) {
            if stream.suspend() {
                prop_assert!(stream.is_suspended());
                let holds = matches!(mechanism, Mechanism::AesGcm(_)) && !encrypting;
                // Buffering needs no key; everything else says that it has none.
                prop_assert!(holds || matches!(stream.update(b"0123456789abcdefg", &mut [0; 64]), Err(Error::Suspended)));
                prop_assert!(holds || !matches!(stream.update(&[], &mut []), Err(Error::Ended)));
                stream.resume(&key).unwrap();
            } else {
                prop_assert!(encrypting && matches!(mechanism, Mechanism::AesGcm(_)));
            }
            let mut out = vec![0; stream.update_len(piece.len())];
            let len = stream.update(piece, &mut out).unwrap();
            all.extend_from_slice(&out[..len]);
        }
        let mut out = vec![0; stream.finish_len()];
        if stream.suspend() {
            prop_assert!(matches!(stream.finish(&mut out), Err(Error::Suspended)));
            stream.resume(&key).unwrap();
        }
        let len = stream.finish(&mut out).unwrap();
        all.extend_from_slice(&out[..len]);
        prop_assert_eq!(all, expected);
    }

    #[test]
    fn tampering_with_gcm_is_found(
        key in key(), pool in any::<[u8; 64]>(), data in vec(any::<u8>(), 0..100), at in any::<usize>(), with in 1u8..,
    ) {
        let mechanism = cipher(4, &pool);
        let mut sealed = encrypted(&mechanism, &Key::Aes(&key), &data).unwrap();
        let at = at % sealed.len();
        sealed[at] ^= with;
        prop_assert!(matches!(decrypted(&mechanism, &Key::Aes(&key), &sealed), Err(Error::Decrypt)));
    }

    #[test]
    fn decryption_of_anything_has_one_error(number in 0usize..6, key in key(), pool in any::<[u8; 64]>(), data in vec(any::<u8>(), 0..80)) {
        let outcome = decrypted(&cipher(number, &pool), &Key::Aes(&key), &data);
        prop_assert!(matches!(outcome, Ok(_) | Err(Error::Decrypt | Error::EncryptedLength)));
    }

    #[test]
    fn ecdsa_signatures_verify_and_only_for_their_data(
        curve in 0usize..4, hash in 0usize..11, data in vec(any::<u8>(), 0..100), cuts in vec(any::<usize>(), 0..4),
        at in any::<usize>(), with in 1u8..,
    ) {
        let (curve, hash) = (Curve::ALL[curve], Hash::ALL[hash]);
        let pair = generate_ec(curve).unwrap();
        let private = Key::EcPrivate { curve, scalar: pair.private.expose() };
        let public = Key::EcPublic { curve, point: &pair.public };
        let mechanism = Mechanism::EcdsaHash(hash);
        let mut stream = Stream::sign(&mechanism, &private).unwrap();
        let parts = streamed(&mut stream, &data, &cuts).unwrap();
        let mut signature = signed(&mechanism, &private, &data).unwrap();
        verify(&mechanism, &public, &data, &parts).unwrap();
        verify(&mechanism, &public, &data, &signature).unwrap();
        // A second signature has a second nonce.
        prop_assert_ne!(&parts, &signature);
        let at = at % signature.len();
        signature[at] ^= with;
        prop_assert!(matches!(verify(&mechanism, &public, &data, &signature), Err(Error::Signature)));
    }

    #[test]
    fn points_of_anything_never_panic(curve in 0usize..4, bytes in vec(any::<u8>(), 0..150)) {
        let _ = mayfly_engine::ec_point(Curve::ALL[curve], &bytes);
        let _ = mayfly_engine::import_ec_pkcs8(&bytes);
        let _ = mayfly_engine::import_ec_scalar(Curve::ALL[curve], &bytes);
    }
}

#[test]
fn signatures_in_parts_can_wait_without_a_key() {
    let pair = generate_ec(Curve::P256).unwrap();
    let private = Key::EcPrivate { curve: Curve::P256, scalar: pair.private.expose() };
    let public = Key::EcPublic { curve: Curve::P256, point: &pair.public };
    let mechanism = Mechanism::EcdsaHash(Hash::Sha384);
    let (hash, then) = mechanism.prehash().unwrap();
    let mut stream = Stream::sign(&mechanism, &private).unwrap();
    assert!(stream.suspend() && stream.is_suspended());
    stream.update(b"hello", &mut []).unwrap();
    let mut signature = [0; 96];
    assert!(matches!(stream.finish(&mut signature), Err(Error::Suspended)));
    stream.resume(&private).unwrap();
    let len = stream.finish(&mut signature).unwrap();
    let mut hashed = [0; 64];
    let hash_len = digest(hash, b"hello", &mut hashed).unwrap();
    verify(&then, &public, &hashed[..hash_len], &signature[..len]).unwrap();
    let mut mac = Stream::sign(&Mechanism::Hmac(Hmac::full(Hash::Sha256)), &Key::Generic(b"k")).unwrap();
    assert!(!mac.suspend() && !mac.is_suspended());
}

/// Every line of the list does what it says, and nothing that it does not say.
#[test]
fn the_list_is_truthful() {
    let aes = [5; 32];
    let generic = [6; 32];
    let pair = generate_ec(Curve::P384).unwrap();
    let private = Key::EcPrivate { curve: Curve::P384, scalar: pair.private.expose() };
    let public = Key::EcPublic { curve: Curve::P384, point: &pair.public };
    let mut seen = Vec::new();
    for info in mechanisms() {
        assert!(!seen.contains(&info.kind), "{:?} twice", info.kind);
        seen.push(info.kind);
        let (mechanism, secret, open) = match info.kind {
            Kind::AesEcb => (Mechanism::AesEcb, Key::Aes(&aes), Key::Aes(&aes)),
            Kind::AesCbc => (Mechanism::AesCbc(Iv([1; 16])), Key::Aes(&aes), Key::Aes(&aes)),
            Kind::AesCbcPad => (Mechanism::AesCbcPad(Iv([1; 16])), Key::Aes(&aes), Key::Aes(&aes)),
            Kind::AesCtr => {
                (Mechanism::AesCtr(Ctr { block: [1; 16], counter_bits: 64 }), Key::Aes(&aes), Key::Aes(&aes))
            }
            Kind::AesGcm => {
                (Mechanism::AesGcm(Gcm { iv: &[1; 12], aad: b"x", tag_bits: 128 }), Key::Aes(&aes), Key::Aes(&aes))
            }
            Kind::Hmac(hash) => (Mechanism::Hmac(Hmac::full(hash)), Key::Generic(&generic), Key::Generic(&generic)),
            Kind::HmacGeneral(hash) => {
                (Mechanism::Hmac(Hmac { hash, mac_bytes: Some(16) }), Key::Generic(&generic), Key::Generic(&generic))
            }
            Kind::Ecdsa => (Mechanism::Ecdsa, private, public),
            Kind::EcdsaHash(hash) => (Mechanism::EcdsaHash(hash), private, public),
            Kind::Digest(hash) => {
                assert_eq!(info.operations, [Operation::Digest]);
                Stream::digest(hash).unwrap();
                continue;
            }
            Kind::AesKeyGen | Kind::GenericSecretKeyGen => {
                assert_eq!(info.operations, [Operation::Generate]);
                for len in [info.key_size.0, info.key_size.1] {
                    assert_eq!(generate_secret(len as usize).unwrap().len(), len as usize);
                }
                continue;
            }
            Kind::EcKeyPairGen => {
                assert_eq!(info.operations, [Operation::GenerateKeyPair]);
                for curve in Curve::ALL {
                    assert!((info.key_size.0..=info.key_size.1).contains(&curve.bits()));
                    generate_ec(curve).unwrap();
                }
                continue;
            }
            other => panic!("{other:?} is listed and not tried"),
        };
        assert_eq!(mechanism.kind(), info.kind);
        let data = [0x33; 32];
        let ciphers = encrypted(&mechanism, &secret, &data).is_ok();
        assert_eq!(info.operations.contains(&Operation::Encrypt), ciphers);
        assert_eq!(info.operations.contains(&Operation::Decrypt), ciphers);
        assert_eq!(Stream::encrypt(&mechanism, &secret).is_ok(), ciphers && info.multi_part);
        assert_eq!(Stream::decrypt(&mechanism, &secret).is_ok(), ciphers && info.multi_part);
        let signature = signed(&mechanism, &secret, &data);
        let signs = signature.is_ok();
        assert_eq!(info.operations.contains(&Operation::Sign), signs);
        assert_eq!(info.operations.contains(&Operation::Verify), signs);
        assert_eq!(Stream::sign(&mechanism, &secret).is_ok(), signs && info.multi_part);
        assert_eq!(Stream::verify(&mechanism, &open).is_ok(), signs && info.multi_part);
        if let Ok(signature) = signature {
            verify(&mechanism, &open, &data, &signature).unwrap();
        }
        assert!(ciphers != signs);
    }
    // PKCS#11 has no number for this one.
    assert!(!seen.contains(&Kind::EcdsaHash(Hash::Sha512_256)));
}
