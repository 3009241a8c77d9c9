//! Bad input, as in Wycheproof: each gets its one error, and nothing else.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::tables::{EC, SP800_38A_IV};
use common::{decrypted, encrypted, hex, hex16, signed, streamed};
use mayfly_engine::{
    Ctr, Curve, ECDSA_HASH_BYTES_MAX, Error, GCM_BUFFER_BYTES_MAX, Gcm, HMAC_KEY_BYTES_MAX, Hash, Hmac, Iv, Key,
    Mechanism, Stream, decrypt, ec_point, ec_public, encrypt, encrypted_len, generate_ec, generate_secret,
    import_ec_pkcs8, import_ec_scalar, sign, verify,
};

const KEY: [u8; 32] = [7; 32];

fn iv() -> Iv {
    Iv(hex16(SP800_38A_IV))
}

#[test]
fn keys_have_the_lengths_of_aes() {
    let gcm = Mechanism::AesGcm(Gcm { iv: &[1; 12], aad: &[], tag_bits: 128 });
    let ctr = Mechanism::AesCtr(Ctr { block: [0; 16], counter_bits: 32 });
    for mechanism in [Mechanism::AesEcb, Mechanism::AesCbc(iv()), Mechanism::AesCbcPad(iv()), ctr, gcm] {
        for len in [0, 1, 15, 17, 31, 33, 64] {
            let key = vec![1; len];
            assert!(matches!(encrypted(&mechanism, &Key::Aes(&key), &[0; 16]), Err(Error::KeyLength)), "{len}");
            assert!(matches!(Stream::decrypt(&mechanism, &Key::Aes(&key)), Err(Error::KeyLength)), "{len}");
        }
        assert!(matches!(encrypted(&mechanism, &Key::Generic(&KEY), &[0; 16]), Err(Error::KeyType)));
    }
}

#[test]
fn gcm_parameters_have_bounds() {
    for (iv_len, tag_bits, works) in [
        (0, 128, false),
        (1, 128, true),
        (256, 128, true),
        (257, 128, false),
        (12, 0, false),
        (12, 8, false),
        (12, 31, false),
        (12, 32, true),
        (12, 64, true),
        (12, 88, false),
        (12, 96, true),
        (12, 97, false),
        (12, 136, false),
        (12, u32::MAX, false),
    ] {
        let iv = vec![3; iv_len];
        let mechanism = Mechanism::AesGcm(Gcm { iv: &iv, aad: b"a", tag_bits });
        let outcome = encrypted(&mechanism, &Key::Aes(&KEY), b"data");
        assert_eq!(outcome.is_ok(), works, "{iv_len} {tag_bits}");
        if let Ok(sealed) = outcome {
            assert_eq!(decrypted(&mechanism, &Key::Aes(&KEY), &sealed).unwrap(), b"data");
        } else {
            assert!(matches!(outcome, Err(Error::Parameter(_))));
            assert!(matches!(Stream::encrypt(&mechanism, &Key::Aes(&KEY)), Err(Error::Parameter(_))));
            assert!(matches!(Stream::decrypt(&mechanism, &Key::Aes(&KEY)), Err(Error::Parameter(_))));
        }
    }
}

#[test]
fn every_flipped_bit_of_gcm_is_one_error() {
    let (iv, aad) = ([9; 12], *b"additional");
    for tag_bits in [32u32, 96, 128] {
        let mechanism = Mechanism::AesGcm(Gcm { iv: &iv, aad: &aad, tag_bits });
        let sealed = encrypted(&mechanism, &Key::Aes(&KEY), b"twenty-one bytes long").unwrap();
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(decrypted(&mechanism, &Key::Aes(&KEY), &bad), Err(Error::Decrypt)));
            let mut stream = Stream::decrypt(&mechanism, &Key::Aes(&KEY)).unwrap();
            assert!(matches!(streamed(&mut stream, &bad, &[5]), Err(Error::Decrypt)));
        }
        for (iv, aad, tag_bits) in
            [([8; 12], aad, tag_bits), (iv, *b"Additional", tag_bits), (iv, aad, if tag_bits == 96 { 104 } else { 96 })]
        {
            let other = Mechanism::AesGcm(Gcm { iv: &iv, aad: &aad, tag_bits });
            assert!(matches!(decrypted(&other, &Key::Aes(&KEY), &sealed), Err(Error::Decrypt)));
        }
        let short = &sealed[..tag_bits as usize / 8 - 1];
        assert!(matches!(decrypted(&mechanism, &Key::Aes(&KEY), short), Err(Error::EncryptedLength)));
    }
}

#[test]
fn gcm_in_parts_gives_nothing_before_the_tag() {
    let mechanism = Mechanism::AesGcm(Gcm { iv: &[9; 12], aad: &[], tag_bits: 128 });
    let mut sealed = encrypted(&mechanism, &Key::Aes(&KEY), &[0x55; 100]).unwrap();
    *sealed.last_mut().unwrap() ^= 1;
    let mut stream = Stream::decrypt(&mechanism, &Key::Aes(&KEY)).unwrap();
    let mut out = vec![0xaa; 200];
    assert_eq!(stream.update(&sealed, &mut out).unwrap(), 0);
    assert_eq!(out, [0xaa; 200]);
    assert_eq!(stream.finish_len(), 100);
    assert!(matches!(stream.finish(&mut out[..99]), Err(Error::OutputTooSmall { needed_bytes: 100 })));
    assert!(matches!(stream.finish(&mut out), Err(Error::Decrypt)));
    assert!(!out.contains(&0x55));
    assert!(matches!(stream.finish(&mut out), Err(Error::Ended)));
}

#[test]
fn the_buffer_of_gcm_has_a_bound() {
    let mechanism = Mechanism::AesGcm(Gcm { iv: &[9; 12], aad: &[], tag_bits: 128 });
    let mut stream = Stream::decrypt(&mechanism, &Key::Aes(&KEY)).unwrap();
    let piece = vec![0; 1 << 20];
    for _ in 0..GCM_BUFFER_BYTES_MAX >> 20 {
        stream.update(&piece, &mut []).unwrap();
    }
    stream.update(&[0; 16], &mut []).unwrap();
    assert!(matches!(stream.update(&[0], &mut []), Err(Error::EncryptedLength)));
    assert!(matches!(stream.update(&[], &mut []), Err(Error::Ended)));
}

#[test]
fn every_bad_padding_is_one_error() {
    // Plaintext blocks that no padding ends with, made with CBC without padding.
    let last = |bytes: &[u8]| [&[0x41; 16][..16 - bytes.len()], bytes].concat();
    for block in [
        last(&[0]),
        last(&[17]),
        last(&[255]),
        last(&[128]),
        last(&[1, 2]),
        last(&[3, 2, 3]),
        last(&[4, 3, 4, 4]),
        [&[15], &[16; 15][..]].concat(),
        [0; 16].to_vec(),
    ] {
        for before in [0, 1, 5] {
            let plain = [vec![0x42; 16 * before], block.clone()].concat();
            let sealed = encrypted(&Mechanism::AesCbc(iv()), &Key::Aes(&KEY), &plain).unwrap();
            let padded = Mechanism::AesCbcPad(iv());
            assert!(matches!(decrypted(&padded, &Key::Aes(&KEY), &sealed), Err(Error::Decrypt)), "{block:?}");
            let mut stream = Stream::decrypt(&padded, &Key::Aes(&KEY)).unwrap();
            assert!(matches!(streamed(&mut stream, &sealed, &[20]), Err(Error::Decrypt)));
        }
    }
}

#[test]
fn block_modes_want_whole_blocks() {
    for mechanism in [Mechanism::AesEcb, Mechanism::AesCbc(iv())] {
        for len in [1, 15, 17] {
            assert!(matches!(encrypted(&mechanism, &Key::Aes(&KEY), &vec![0; len]), Err(Error::DataLength)));
            assert!(matches!(decrypted(&mechanism, &Key::Aes(&KEY), &vec![0; len]), Err(Error::EncryptedLength)));
            let mut stream = Stream::encrypt(&mechanism, &Key::Aes(&KEY)).unwrap();
            assert!(matches!(streamed(&mut stream, &vec![0; len], &[]), Err(Error::DataLength)));
        }
        assert_eq!(encrypted(&mechanism, &Key::Aes(&KEY), &[]).unwrap(), []);
    }
    let padded = Mechanism::AesCbcPad(iv());
    for len in [0, 1, 15, 17, 31] {
        assert!(matches!(decrypted(&padded, &Key::Aes(&KEY), &vec![0; len]), Err(Error::EncryptedLength)), "{len}");
        let mut stream = Stream::decrypt(&padded, &Key::Aes(&KEY)).unwrap();
        assert!(matches!(streamed(&mut stream, &vec![0; len], &[3]), Err(Error::EncryptedLength)));
    }
}

#[test]
fn counters_do_not_run_over() {
    let ctr = |low: u8, counter_bits| {
        let mut block = [0xff; 16];
        block[15] = low;
        Mechanism::AesCtr(Ctr { block, counter_bits })
    };
    // 8 bits from 0xfe: two blocks.
    assert_eq!(encrypted(&ctr(0xfe, 8), &Key::Aes(&KEY), &[0; 32]).unwrap().len(), 32);
    assert!(matches!(encrypted(&ctr(0xfe, 8), &Key::Aes(&KEY), &[0; 33]), Err(Error::DataLength)));
    assert!(matches!(encrypted(&ctr(0xff, 128), &Key::Aes(&KEY), &[0; 17]), Err(Error::DataLength)));
    let mut stream = Stream::encrypt(&ctr(0xff, 1), &Key::Aes(&KEY)).unwrap();
    stream.update(&[0; 16], &mut [0; 16]).unwrap();
    assert!(matches!(stream.update(&[0], &mut [0]), Err(Error::DataLength)));
    for counter_bits in [0, 129, u32::MAX] {
        assert!(matches!(encrypted(&ctr(0, counter_bits), &Key::Aes(&KEY), &[0]), Err(Error::Parameter(_))));
    }
    let from_zero = Mechanism::AesCtr(Ctr { block: [0; 16], counter_bits: 128 });
    assert!(encrypted(&from_zero, &Key::Aes(&KEY), &[0; 1000]).is_ok());
}

#[test]
fn short_outputs_change_nothing() {
    let gcm = Mechanism::AesGcm(Gcm { iv: &[9; 12], aad: &[], tag_bits: 128 });
    let ctr = Mechanism::AesCtr(Ctr { block: [0; 16], counter_bits: 32 });
    for mechanism in [Mechanism::AesEcb, Mechanism::AesCbc(iv()), Mechanism::AesCbcPad(iv()), ctr, gcm] {
        let (plain, key) = ([0x31; 48], Key::Aes(&KEY));
        let needed = encrypted_len(&mechanism, plain.len()).unwrap();
        let mut out = vec![0xaa; needed - 1];
        let refused = encrypt(&mechanism, &key, &plain, &mut out);
        assert!(matches!(refused, Err(Error::OutputTooSmall { needed_bytes }) if needed_bytes == needed));
        assert!(out.iter().all(|byte| *byte == 0xaa));

        let expected = encrypted(&mechanism, &key, &plain).unwrap();
        let refused = decrypt(&mechanism, &key, &expected, &mut out[..46]);
        assert!(matches!(refused, Err(Error::OutputTooSmall { .. })));
        let mut stream = Stream::encrypt(&mechanism, &key).unwrap();
        let mut got = vec![0; stream.update_len(48)];
        assert!(matches!(stream.update(&plain, &mut got[1..]), Err(Error::OutputTooSmall { .. })));
        let done = stream.update(&plain, &mut got).unwrap();
        got.truncate(done);
        let mut rest = vec![0; stream.finish_len()];
        if !rest.is_empty() {
            assert!(matches!(stream.finish(&mut rest[1..]), Err(Error::OutputTooSmall { .. })));
        }
        let done = stream.finish(&mut rest).unwrap();
        assert_eq!([got, rest[..done].to_vec()].concat(), expected);
    }
}

#[test]
fn macs_are_judged() {
    let mechanism = Mechanism::Hmac(Hmac::full(Hash::Sha256));
    let key = Key::Generic(b"key");
    let mac = signed(&mechanism, &key, b"data").unwrap();
    for bit in 0..256 {
        let mut bad = mac.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(matches!(verify(&mechanism, &key, b"data", &bad), Err(Error::Signature)));
    }
    for bad in [&[][..], &mac[..31], &[&mac[..], &[0]].concat()] {
        assert!(matches!(verify(&mechanism, &key, b"data", bad), Err(Error::SignatureLength)));
    }
    for mac_bytes in [0, 33, u32::MAX] {
        let bad = Mechanism::Hmac(Hmac { hash: Hash::Sha256, mac_bytes: Some(mac_bytes) });
        assert!(matches!(signed(&bad, &key, b"data"), Err(Error::Parameter(_))));
        assert!(matches!(Stream::sign(&bad, &key), Err(Error::Parameter(_))));
    }
    let long = vec![1; HMAC_KEY_BYTES_MAX + 1];
    for bytes in [&[][..], &long] {
        assert!(matches!(signed(&mechanism, &Key::Generic(bytes), b"data"), Err(Error::KeyLength)));
    }
    assert!(signed(&mechanism, &Key::Generic(&long[1..]), b"data").is_ok());
}

#[test]
fn ecdsa_refuses_what_is_out_of_range() {
    let order = hex("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551");
    let case = &EC[0];
    let (point, scalar) = (hex(case.public), hex(case.scalar));
    let key = Key::EcPublic { curve: Curve::P256, point: &point };
    let mechanism = Mechanism::EcdsaHash(Hash::Sha256);
    let good = hex(case.signatures[2].1);
    let (r, s) = good.split_at(32);
    let zero = [0; 32];
    let one = hex(&format!("{:064x}", 1));
    for (r, s) in [
        (&zero[..], s),
        (r, &zero),
        (&zero, &zero),
        (&one, &one),
        (&order, s),
        (r, &order),
        (&[0xff; 32], s),
        (r, &[0xff; 32]),
        (s, r),
    ] {
        let bad = [r, s].concat();
        assert!(matches!(verify(&mechanism, &key, b"sample", &bad), Err(Error::Signature)));
    }
    for bad in [&[][..], &good[..63], &good[1..], &[&good[..], &[0, 0]].concat(), &[0]] {
        assert!(matches!(verify(&mechanism, &key, b"sample", bad), Err(Error::SignatureLength)), "{}", bad.len());
    }
    // Shorter halves are allowed, and are other numbers.
    assert!(matches!(verify(&mechanism, &key, b"sample", &good[..62]), Err(Error::Signature)));
    for bad in [vec![], vec![0; ECDSA_HASH_BYTES_MAX + 1]] {
        let private = Key::EcPrivate { curve: Curve::P256, scalar: &scalar };
        assert!(matches!(signed(&Mechanism::Ecdsa, &private, &bad), Err(Error::DataLength)));
        assert!(matches!(verify(&Mechanism::Ecdsa, &key, &bad, &good), Err(Error::DataLength)));
    }
    for bad in [&zero[..], &order, &[0xff; 32]] {
        let private = Key::EcPrivate { curve: Curve::P256, scalar: bad };
        assert!(matches!(signed(&mechanism, &private, b"sample"), Err(Error::KeyValue(_))));
        assert!(matches!(ec_public(Curve::P256, bad), Err(Error::KeyValue(_))));
        assert!(matches!(import_ec_scalar(Curve::P256, bad), Err(Error::KeyValue(_))));
    }
    assert!(matches!(ec_public(Curve::P256, &[]), Err(Error::KeyLength)));
    assert!(matches!(ec_public(Curve::P256, &[1; 65]), Err(Error::KeyLength)));
}

#[test]
fn signatures_with_leading_zeros_may_come_short() {
    // RFC 6979's key and rule; "67895" is the first number in decimal for which r and s both begin with a zero byte.
    let (r, s) = (
        hex("00ea47c561b1d6eef066e9bdd48fd27d4472f10cf56134855a5406b27053a4eb"),
        hex("0082dce3abaac4d25e45177d0c47512900aaee0f2308a3718f076289605d8fab"),
    );
    let point = hex(EC[0].public);
    let public = Key::EcPublic { curve: Curve::P256, point: &point };
    for signature in [[&r[..], &s].concat(), [&r[1..], &s[1..]].concat()] {
        verify(&Mechanism::EcdsaHash(Hash::Sha256), &public, b"67895", &signature).unwrap();
    }
}

#[test]
fn long_hashes_are_cut_to_the_order() {
    let case = &EC[0];
    let (scalar, point) = (hex(case.scalar), hex(case.public));
    let hash = [0x5a; ECDSA_HASH_BYTES_MAX];
    let signature = signed(&Mechanism::Ecdsa, &Key::EcPrivate { curve: Curve::P256, scalar: &scalar }, &hash).unwrap();
    let public = Key::EcPublic { curve: Curve::P256, point: &point };
    verify(&Mechanism::Ecdsa, &public, &hash, &signature).unwrap();
    verify(&Mechanism::Ecdsa, &public, &hash[..32], &signature).unwrap();
    assert!(verify(&Mechanism::Ecdsa, &public, &hash[..31], &signature).is_err());
}

#[test]
fn points_are_checked() {
    for case in EC {
        let good = hex(case.public);
        let n = case.curve.scalar_bytes();
        let mut off = good.clone();
        *off.last_mut().unwrap() ^= 1;
        let mut hybrid = good.clone();
        hybrid[0] = 6;
        let mut too_large = vec![0xff; 1 + 2 * n];
        too_large[0] = 4;
        let mut zero = vec![0; 1 + 2 * n];
        zero[0] = 4;
        let der = mayfly_engine::ec_point_der(case.curve, &good).unwrap();
        let trailing = [&der[..], &[0]].concat();
        for bad in [
            vec![],
            vec![0],
            vec![0; 1 + 2 * n],
            vec![0; 1 + n],
            off,
            hybrid,
            too_large,
            zero,
            good[1..].to_vec(),
            good[..2 * n].to_vec(),
            trailing,
            der[..der.len() - 1].to_vec(),
            vec![4, 1, 0],
            vec![4, 0],
            vec![4, 0x81],
            vec![4, 0x82, 0, 65],
        ] {
            assert!(matches!(ec_point(case.curve, &bad), Err(Error::KeyValue(_))), "{}", hex::encode(bad));
        }
    }
}

#[test]
fn curves_come_by_name_only() {
    for curve in Curve::ALL {
        assert_eq!(Curve::from_params_der(curve.params_der()).unwrap(), curve);
        assert!(matches!(Curve::from_params_der(&curve.params_der()[1..]), Err(Error::Curve)));
        assert!(matches!(Curve::from_params_der(&[curve.params_der(), &[0]].concat()), Err(Error::Curve)));
    }
    assert!(matches!(Curve::from_params_der(&[]), Err(Error::Curve)));
}

#[test]
fn bad_pkcs8_is_refused() {
    for case in EC {
        let good = hex(case.pkcs8);
        for cut in 0..good.len() {
            assert!(import_ec_pkcs8(&good[..cut]).is_err(), "{cut}");
        }
        assert!(matches!(import_ec_pkcs8(&[&good[..], &[0]].concat()), Err(Error::KeyValue(_))));
        let mut other_point = good.clone();
        *other_point.last_mut().unwrap() ^= 1;
        assert!(matches!(import_ec_pkcs8(&other_point), Err(Error::KeyValue(_))));
    }
    // An Ed25519 key (RFC 8410, section 10.3) is PKCS#8, but not of these.
    let ed25519 =
        hex("302e020100300506032b657004220420d4ee72dbf913584ad5b6d8f1f769f8ad3afe7c28cbf1d4fbe097a88f44755842");
    assert!(matches!(import_ec_pkcs8(&ed25519), Err(Error::KeyValue(_))));
}

#[test]
fn mechanisms_serve_their_operations_only() {
    let pair = generate_ec(Curve::P256).unwrap();
    let private = Key::EcPrivate { curve: Curve::P256, scalar: pair.private.expose() };
    let public = Key::EcPublic { curve: Curve::P256, point: &pair.public };
    let hashed = Mechanism::EcdsaHash(Hash::Sha256);
    let hmac = Mechanism::Hmac(Hmac::full(Hash::Sha256));
    assert!(matches!(encrypted(&hmac, &Key::Generic(&KEY), b""), Err(Error::Mechanism)));
    assert!(matches!(Stream::encrypt(&hashed, &private), Err(Error::Mechanism)));
    assert!(matches!(signed(&Mechanism::AesEcb, &Key::Aes(&KEY), b""), Err(Error::Mechanism)));
    assert!(matches!(verify(&Mechanism::AesEcb, &Key::Aes(&KEY), b"", b""), Err(Error::Mechanism)));
    assert!(matches!(Stream::sign(&Mechanism::AesEcb, &Key::Aes(&KEY)), Err(Error::Mechanism)));
    for key in [public, Key::Aes(&KEY), Key::Generic(&KEY)] {
        assert!(matches!(sign(&hashed, &key, b"", &mut [0; 64]), Err(Error::KeyType)));
        assert!(matches!(Stream::sign(&hashed, &key), Err(Error::KeyType)));
    }
    for key in [private, Key::Aes(&KEY)] {
        assert!(matches!(verify(&hashed, &key, b"", &[0; 64]), Err(Error::KeyType)));
        assert!(matches!(Stream::verify(&hashed, &key), Err(Error::KeyType)));
    }
    assert!(matches!(Stream::sign(&Mechanism::Ecdsa, &private), Err(Error::SinglePartOnly)));
    let mut stream = Stream::verify(&hashed, &public).unwrap();
    assert!(matches!(stream.finish(&mut [0; 64]), Err(Error::Mechanism)));
    assert!(matches!(stream.finish_verify(&[0; 64]), Err(Error::Ended)));
    assert!(matches!(generate_secret(0), Err(Error::KeyLength)));
    assert!(matches!(generate_secret(1 << 20), Err(Error::Memory(_))));
}
