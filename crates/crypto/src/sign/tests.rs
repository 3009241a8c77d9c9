use super::*;
use curve25519_dalek::constants::EIGHT_TORSION;
use mayfly_secmem::Secret;
use p256::ecdsa::signature::Signer;
use p256::elliptic_curve::ops::Neg;

/// Seed, public key, message, signature: RFC 8032 section 7.1, tests 1 to 3.
const RFC8032: [(&str, &str, &str, &str); 3] = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
];

/// RFC 6979 appendix A.2.5 (P-256, SHA-256): private key, compressed public key, message, r || s as printed there.
const RFC6979_SECRET: &str = "c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721";
const RFC6979_PUBLIC: &str = "0360fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6";
const RFC6979: [(&str, &str); 2] = [
    (
        "sample",
        "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8",
    ),
    (
        "test",
        "f1abb023518351cd71d881567b1ea663ed3efcf6c5132b354f28d3b0b7d38367019f4113742a2b14bd25926b49c649155f267e60d3814b4c0cc84250e46f0083",
    ),
];

fn bytes(hex_text: &str) -> Vec<u8> {
    hex::decode(hex_text).unwrap()
}

fn ed25519(public: &str) -> PublicKey {
    PublicKey::new(Alg::Ed25519, &bytes(public)).unwrap()
}

fn p256() -> PublicKey {
    PublicKey::new(Alg::P256, &bytes(RFC6979_PUBLIC)).unwrap()
}

/// The other valid form of an ECDSA signature: (r, n - s).
fn negate_s(signature: &[u8]) -> Vec<u8> {
    let signature = p256::ecdsa::Signature::from_slice(signature).unwrap();
    let (r, s) = signature.split_scalars();
    p256::ecdsa::Signature::from_scalars(r, s.neg()).unwrap().to_vec()
}

#[test]
fn ed25519_vectors_of_rfc_8032() {
    for (_, public, message, signature) in RFC8032 {
        let (key, message, signature) = (ed25519(public), bytes(message), bytes(signature));
        assert_eq!(key.check(), Ok(()));
        assert_eq!(key.verify(&message, &signature), Ok(()));
        let longer = [message.as_slice(), b"x"].concat();
        assert_eq!(key.verify(&longer, &signature), Err(SignError::BadSignature(Alg::Ed25519)));
    }
}

#[test]
fn p256_vectors_of_rfc_6979_verify_in_their_low_form_only() {
    assert_eq!(p256().check(), Ok(()));
    for (message, signature) in RFC6979 {
        let printed = bytes(signature);
        let other = negate_s(&printed);
        let is_low = |form: &[u8]| form[32] < 0x80;
        let (low, high) = if is_low(&printed) { (printed, other) } else { (other, printed) };
        assert_eq!(p256().verify(message.as_bytes(), &low), Ok(()), "{message}");
        assert_eq!(p256().verify(message.as_bytes(), &high), Err(SignError::BadSignature(Alg::P256)), "{message}");
    }
}

#[test]
fn every_flipped_bit_of_a_signature_is_refused() {
    let (_, public, message, signature) = RFC8032[2];
    let (_, low) = RFC6979[1];
    let cases = [(ed25519(public), bytes(message), bytes(signature)), (p256(), b"test".to_vec(), bytes(low))];
    for (key, message, signature) in cases {
        for bit in 0..512 {
            let mut flipped = signature.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(key.verify(&message, &flipped).is_err(), "{key:?} bit {bit}");
        }
        for length in [0, 63, 65] {
            let mut cut = signature.clone();
            cut.resize(length, 0);
            assert_eq!(key.verify(&message, &cut), Err(SignError::BadSignature(key.alg())));
        }
    }
}

#[test]
fn small_mixed_and_non_canonical_ed25519_keys_are_refused() {
    for point in EIGHT_TORSION {
        let key = PublicKey::Ed25519(point.compress().to_bytes());
        assert_eq!(key.check(), Err(SignError::UnsoundKey(Alg::Ed25519)), "{key:?}");
    }
    let honest =
        curve25519_dalek::edwards::CompressedEdwardsY(bytes(RFC8032[0].1).try_into().unwrap()).decompress().unwrap();
    let mixed = PublicKey::Ed25519((honest + EIGHT_TORSION[1]).compress().to_bytes());
    assert_eq!(mixed.check(), Err(SignError::UnsoundKey(Alg::Ed25519)));
    // y = p .. p + 18 are the second encodings of y = 0 .. 18; y = 2 is on no point.
    let second_encodings = (0xed..=0xff).flat_map(|low| {
        let mut key = [0xff; 32];
        key[0] = low;
        [0x7f, 0xff].map(|high| {
            key[31] = high;
            key
        })
    });
    let mut off_curve = [0; 32];
    off_curve[0] = 2;
    for key in second_encodings.chain([off_curve]) {
        assert_eq!(PublicKey::Ed25519(key).check(), Err(SignError::UnsoundKey(Alg::Ed25519)), "{key:?}");
    }
}

#[test]
fn points_off_p256_are_refused() {
    let mut cases = vec![[0; P256_PUBLIC_BYTES], [0xff; P256_PUBLIC_BYTES]];
    let good: [u8; P256_PUBLIC_BYTES] = bytes(RFC6979_PUBLIC).try_into().unwrap();
    for tag in [0, 1, 4, 5, 6, 7] {
        let mut bad_tag = good;
        bad_tag[0] = tag;
        cases.push(bad_tag);
    }
    // x = 1 has no y on P-256.
    let mut no_point = [0; P256_PUBLIC_BYTES];
    (no_point[0], no_point[32]) = (2, 1);
    cases.push(no_point);
    for key in cases.into_iter().map(PublicKey::P256) {
        assert_eq!(key.check(), Err(SignError::UnsoundKey(Alg::P256)), "{key:?}");
        assert!(key.verify(b"test", &bytes(RFC6979[1].1)).is_err());
    }
}

/// ZIP-215: all 14 encodings of small-order points as key and as R, with s = 0, verify for every message; RFC 8032's stricter readers
/// refuse some. What counts is that single and batch agree.
#[test]
fn zip215_edge_cases_are_the_same_single_and_in_a_batch() {
    let mut encodings: Vec<[u8; 32]> = EIGHT_TORSION.iter().map(|point| point.compress().to_bytes()).collect();
    // Non-canonical ones: y = p, p + 1 with both signs, and -0 forms (ZIP-215's test vectors list the same).
    let p_plus = |add: u8, sign: u8| {
        let mut y = [0xff; 32];
        (y[0], y[31]) = (0xed + add, 0x7f | sign);
        y
    };
    encodings.extend([p_plus(0, 0), p_plus(0, 0x80), p_plus(1, 0), p_plus(1, 0x80)]);
    let mut minus_zero = [0; 32];
    (minus_zero[0], minus_zero[31]) = (1, 0x80);
    let mut minus_one = [0xff; 32];
    minus_one[0] = 0xec;
    encodings.extend([minus_zero, minus_one]);
    assert_eq!(encodings.len(), 14);

    for key in &encodings {
        for r in &encodings {
            let signature = [r.as_slice(), &[0; 32]].concat();
            let key = PublicKey::Ed25519(*key);
            assert_eq!(key.verify(b"Zcash", &signature), Ok(()), "{key:?}");
            let item = (key, b"Zcash".as_slice(), signature.as_slice());
            assert_eq!(verify_batch(&[item; 4]), Ok(()));
        }
    }
}

#[test]
fn a_batch_names_its_first_bad_signature() {
    let low = bytes(RFC6979[1].1);
    let vectors: Vec<_> = RFC8032.iter().map(|(_, key, msg, sig)| (ed25519(key), bytes(msg), bytes(sig))).collect();
    let mut good: Vec<(PublicKey, &[u8], &[u8])> =
        vectors.iter().map(|(k, m, s)| (*k, m.as_slice(), s.as_slice())).collect();
    good.push((p256(), b"test", &low));
    good.extend_from_within(..);
    assert_eq!(verify_batch(&good), Ok(()));
    assert_eq!(verify_batch(&[]), Ok(()));

    for index in 0..good.len() {
        for message in [b"another".as_slice(), b""] {
            let mut bad = good.clone();
            if bad[index].1 == message {
                continue;
            }
            bad[index].1 = message;
            assert_eq!(
                verify_batch(&bad),
                Err(BatchError { index, cause: SignError::BadSignature(bad[index].0.alg()) })
            );
        }
        let mut short = good.clone();
        short[index].2 = &short[index].2[..63];
        assert_eq!(verify_batch(&short).map_err(|error| error.index), Err(index));
    }
}

#[test]
fn keys_have_one_form_on_the_wire() {
    for key in [ed25519(RFC8032[0].1), p256()] {
        let wire = key.to_bytes();
        assert_eq!(PublicKey::from_bytes(&wire), Ok(key));
        assert!(PublicKey::from_bytes(&wire[..wire.len() - 1]).is_err());
        assert!(PublicKey::from_bytes(&[wire.as_slice(), &[0]].concat()).is_err());
    }
    assert_eq!(PublicKey::from_bytes(&[]), Err(SignError::UnknownAlg(0)));
    assert_eq!(PublicKey::from_bytes(&[3; 33]), Err(SignError::UnknownAlg(3)));
    assert_eq!(format!("{:?}", p256()), format!("P256:{RFC6979_PUBLIC}"));
}

/// The crate's own signer agrees with the vectors, which keeps the constants above honest.
#[test]
fn coordinates_of_p256_keys() {
    // RFC 6979, section A.2.5
    let (x, y) = p256().coordinates().unwrap();
    assert_eq!(hex::encode(x), "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6");
    assert_eq!(hex::encode(y), "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299");
    assert_eq!(ed25519(RFC8032[0].1).coordinates(), None);
}

#[test]
fn p256_constants_belong_together() {
    let key = p256::ecdsa::SigningKey::from_slice(&bytes(RFC6979_SECRET)).unwrap();
    assert_eq!(hex::encode(key.verifying_key().to_sec1_point(true).as_bytes()), RFC6979_PUBLIC);
    let signature: p256::ecdsa::Signature = key.sign(RFC6979[0].0.as_bytes());
    assert_eq!(hex::encode(signature.to_bytes()), RFC6979[0].1);
}

fn secret(hex_text: &str) -> Secret<32> {
    Secret::new_with(|slot| slot.copy_from_slice(&bytes(hex_text))).unwrap()
}

#[test]
fn ed25519_signs_as_in_rfc_8032() {
    for (seed, public, message, signature) in RFC8032 {
        let key = Ed25519Secret::from_seed(secret(seed));
        assert_eq!(key.public(), ed25519(public));
        assert_eq!(hex::encode(key.sign(&bytes(message))), signature);
    }
}

#[test]
fn p256_signs_as_in_rfc_6979_with_low_s() {
    let key = P256Secret::from_scalar(secret(RFC6979_SECRET)).unwrap();
    assert_eq!(key.public(), p256());
    for (message, printed) in RFC6979 {
        let signature = key.sign(message.as_bytes());
        let printed = bytes(printed);
        assert!(signature[..] == printed || signature[..] == negate_s(&printed));
        assert_eq!(key.public().verify(message.as_bytes(), &signature), Ok(()));
    }
}

#[test]
fn generated_keys_are_sound_and_sign() {
    for message in [b"".as_slice(), b"message", &[7; 10_000]] {
        let (first, second) = (Ed25519Secret::generate().unwrap(), P256Secret::generate().unwrap());
        for (key, signature) in [(first.public(), first.sign(message)), (second.public(), second.sign(message))] {
            assert_eq!(key.check(), Ok(()));
            assert_eq!(key.verify(message, &signature), Ok(()));
            assert!(key.verify(b"other", &signature).is_err());
        }
    }
}

#[test]
fn scalars_out_of_range_are_no_p256_keys() {
    let order = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
    for scalar in ["00".repeat(32), order.to_owned(), "ff".repeat(32)] {
        assert_eq!(P256Secret::from_scalar(secret(&scalar)).unwrap_err(), SignError::BadSecret(Alg::P256));
    }
}

#[test]
fn private_keys_print_their_public_half_only() {
    let seed = "5a".repeat(32);
    let text =
        format!("{:?} {:?}", Ed25519Secret::from_seed(secret(&seed)), P256Secret::from_scalar(secret(&seed)).unwrap());
    assert!(!text.contains("90, 90") && !text.contains("5a5a"), "{text}");
}
