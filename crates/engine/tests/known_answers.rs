//! The engine gives the published answers, in one call and in parts.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::tables::{
    DIGEST_ABC, EC, GCM, HMAC, HMAC_INPUT, SP800_38A, SP800_38A_COUNTER, SP800_38A_IV, SP800_38A_PLAIN,
};
use common::{decrypted, encrypted, hex, hex16, signed, streamed};
use mayfly_engine::{
    Ctr, Error, Gcm, Hash, Hmac, Iv, Key, Mechanism, Stream, digest, ec_point, ec_point_der, ec_public,
    export_ec_pkcs8, import_ec_pkcs8, import_ec_scalar, verify,
};

const CUTS: &[&[usize]] = &[&[], &[1], &[15, 16, 17], &[16, 32], &[7, 7, 40]];

fn check_cipher(mechanism: &Mechanism<'_>, key: &Key<'_>, plain: &[u8], cipher: &[u8]) {
    assert_eq!(encrypted(mechanism, key, plain).unwrap(), cipher);
    assert_eq!(decrypted(mechanism, key, cipher).unwrap(), plain);
    for cuts in CUTS {
        let mut stream = Stream::encrypt(mechanism, key).unwrap();
        assert_eq!(streamed(&mut stream, plain, cuts).unwrap(), cipher);
        let mut stream = Stream::decrypt(mechanism, key).unwrap();
        assert_eq!(streamed(&mut stream, cipher, cuts).unwrap(), plain);
    }
}

#[test]
fn sp_800_38a() {
    for (mode, key, cipher) in SP800_38A {
        let mechanism = match *mode {
            "ECB" => Mechanism::AesEcb,
            "CBC" => Mechanism::AesCbc(Iv(hex16(SP800_38A_IV))),
            _ => Mechanism::AesCtr(Ctr { block: hex16(SP800_38A_COUNTER), counter_bits: 128 }),
        };
        check_cipher(&mechanism, &Key::Aes(&hex(key)), &hex(SP800_38A_PLAIN), &hex(cipher));
    }
}

#[test]
fn cbc_with_padding_continues_cbc_without() {
    // The blocks before the last are those of CBC; the last decrypts, without unpadding, to data and padding.
    let (_, key, cipher) = SP800_38A.iter().find(|(mode, ..)| *mode == "CBC").unwrap();
    let (key, cipher, iv) = (hex(key), hex(cipher), Iv(hex16(SP800_38A_IV)));
    for len in [0, 1, 15, 16, 17, 63, 64] {
        let plain = &hex(SP800_38A_PLAIN)[..len];
        let padded = encrypted(&Mechanism::AesCbcPad(iv), &Key::Aes(&key), plain).unwrap();
        let whole = len / 16 * 16;
        assert_eq!(padded[..whole], cipher[..whole]);
        let raw = decrypted(&Mechanism::AesCbc(iv), &Key::Aes(&key), &padded).unwrap();
        let pad = 16 - len % 16;
        assert_eq!(raw, [plain, &vec![pad as u8; pad]].concat());
        check_cipher(&Mechanism::AesCbcPad(iv), &Key::Aes(&key), plain, &padded);
    }
}

#[test]
fn gcm_specification() {
    for case in GCM {
        let (key, iv, aad) = (hex(case.key), hex(case.iv), hex(case.aad));
        let (plain, sealed) = (hex(case.plain), hex(case.sealed));
        for tag_bits in [128u32, 120, 112, 104, 96, 64, 32] {
            let mechanism = Mechanism::AesGcm(Gcm { iv: &iv, aad: &aad, tag_bits });
            let cut = sealed.len() - 16 + tag_bits as usize / 8;
            check_cipher(&mechanism, &Key::Aes(&key), &plain, &sealed[..cut]);
        }
    }
}

#[test]
fn digests() {
    for (hash, expected) in DIGEST_ABC {
        let mut out = [0; 64];
        let len = digest(*hash, b"abc", &mut out).unwrap();
        assert_eq!((hex::encode(&out[..len]).as_str(), len), (*expected, hash.bytes()));
        let mut stream = Stream::digest(*hash).unwrap();
        assert_eq!(streamed(&mut stream, b"abc", &[1, 2]).unwrap(), hex(expected));
        assert!(matches!(digest(*hash, b"abc", &mut out[..len - 1]), Err(Error::OutputTooSmall { .. })));
    }
    assert_eq!(DIGEST_ABC.len(), Hash::ALL.len());
}

#[test]
fn hmacs() {
    for (hash, case, expected) in HMAC {
        let (key, data) = HMAC_INPUT[*case];
        let (key, data, expected) = (hex(key), hex(data), hex(expected));
        let key = Key::Generic(&key);
        for bytes in [None, Some(hash.bytes() as u32), Some(12), Some(1)] {
            let mechanism = Mechanism::Hmac(Hmac { hash: *hash, mac_bytes: bytes });
            let mac = &expected[..bytes.map_or(hash.bytes(), |bytes| bytes as usize)];
            assert_eq!(signed(&mechanism, &key, &data).unwrap(), mac);
            verify(&mechanism, &key, &data, mac).unwrap();
            let mut stream = Stream::sign(&mechanism, &key).unwrap();
            assert_eq!(streamed(&mut stream, &data, &[3, 9]).unwrap(), mac);
            let mut stream = Stream::verify(&mechanism, &key).unwrap();
            stream.update(&data, &mut []).unwrap();
            stream.finish_verify(mac).unwrap();
        }
    }
}

#[test]
fn ecdsa_signatures_of_rfc_6979_verify() {
    for case in EC {
        let point = hex(case.public);
        let key = Key::EcPublic { curve: case.curve, point: &point };
        for (hash, signature) in case.signatures {
            let (signature, mechanism) = (hex(signature), Mechanism::EcdsaHash(*hash));
            verify(&mechanism, &key, b"sample", &signature).unwrap();
            assert!(matches!(verify(&mechanism, &key, b"Sample", &signature), Err(Error::Signature)));
            let mut hashed = [0; 64];
            let len = digest(*hash, b"sample", &mut hashed).unwrap();
            verify(&Mechanism::Ecdsa, &key, &hashed[..len], &signature).unwrap();
            let mut stream = Stream::verify(&mechanism, &key).unwrap();
            for byte in b"sample" {
                assert_eq!(stream.update(&[*byte], &mut []).unwrap(), 0);
            }
            stream.finish_verify(&signature).unwrap();
        }
    }
}

#[test]
fn encodings_of_ec_keys() {
    for case in EC {
        let (scalar, point, curve) = (hex(case.scalar), hex(case.public), case.curve);
        assert_eq!(ec_public(curve, &scalar).unwrap(), point);
        let (found, pair) = import_ec_pkcs8(&hex(case.pkcs8)).unwrap();
        assert_eq!((found, pair.private.expose(), &pair.public), (curve, &scalar[..], &point));
        assert_eq!(hex::encode(export_ec_pkcs8(curve, &scalar).unwrap().expose()), case.pkcs8);

        let der = ec_point_der(curve, &point).unwrap();
        for encoding in [&point, &hex(case.compressed), &der] {
            assert_eq!(ec_point(curve, encoding).unwrap(), point);
        }
        let compressed = hex(case.compressed);
        let der_compressed = [&[0x04, compressed.len() as u8], &compressed[..]].concat();
        assert_eq!(ec_point(curve, &der_compressed).unwrap(), point);

        let short: Vec<u8> = scalar.iter().copied().skip_while(|byte| *byte == 0).collect();
        let long = [&[0, 0][..], &scalar].concat();
        for form in [&short, &scalar, &long] {
            assert_eq!(import_ec_scalar(curve, form).unwrap().expose(), scalar);
        }
    }
}
