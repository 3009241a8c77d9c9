//! No operation leaves its key in ordinary memory: the process searches itself through `/proc/self/mem`, which cannot read the
//! arena and the secret stacks. One test, so that nothing runs beside the search.
//!
//! Looked for: 8-byte pieces of each key as it is and reversed (AWS-LC keeps numbers as little-endian limbs), of the padded
//! HMAC key, and of the AES key schedule's later round keys.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

use mayfly_engine::{
    Ctr, Curve, Gcm, Hash, Hmac, Iv, Key, Mechanism, Stream, decrypt, ec_public, encrypt, export_ec_pkcs8, generate_ec,
    import_ec_pkcs8, import_ec_scalar, sign, verify,
};
use mayfly_secmem::{Secret, on_secret_stack, random, status, verify_free_slots_zero};
use std::collections::HashSet;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

const MASK: u64 = 0x9d3b_7c51_e8a6_420f;
const CHUNK: usize = 1 << 16;
const PLAIN: [u8; 1000] = [0x31; 1000];

/// Searches with needles that are kept masked, so that it does not find itself.
struct Search {
    needles: HashSet<u64>,
    buffer: Vec<u8>,
}

impl Search {
    fn new(keys: &Keys) -> Self {
        let mut needles = HashSet::new();
        for key in [&keys.aes, &keys.hmac, &keys.scalar] {
            needles.extend((0..4).flat_map(|piece| on_secret_stack(|| forms(key, piece))));
        }
        needles.extend((0..12).map(|piece| on_secret_stack(|| round_key_piece(&keys.aes, piece))));
        Self { needles, buffer: vec![0; CHUNK + 8] }
    }

    fn hits(&mut self) -> usize {
        let own = self.buffer.as_ptr() as usize..self.buffer.as_ptr() as usize + self.buffer.len();
        let memory = File::open("/proc/self/mem").unwrap();
        let mut hits = 0;
        for line in std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(" rw")) {
            let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
            let (start, end) = (usize::from_str_radix(start, 16).unwrap(), usize::from_str_radix(end, 16).unwrap());
            for base in (start..end).step_by(CHUNK) {
                let len = (CHUNK + 7).min(end - base);
                let Ok(len) = memory.read_at(&mut self.buffer[..len], base as u64) else { continue };
                for (offset, window) in self.buffer[..len].windows(8).enumerate() {
                    let word = u64::from_le_bytes(window.try_into().unwrap()) ^ MASK;
                    hits += usize::from(self.needles.contains(&word) && !own.contains(&(base + offset)));
                }
            }
        }
        self.buffer.fill(0);
        hits
    }
}

/// A piece of 8 bytes, masked: as it is, reversed, and in the two padded forms of HMAC.
fn forms(key: &Secret<32>, piece: usize) -> [u64; 4] {
    let word = u64::from_le_bytes(key.expose()[piece * 8..][..8].try_into().unwrap());
    [word ^ MASK, word.swap_bytes() ^ MASK, word ^ 0x3636_3636_3636_3636 ^ MASK, word ^ 0x5c5c_5c5c_5c5c_5c5c ^ MASK]
}

/// A piece of a later round key of AES-256 (FIPS 197, section 5.2), masked.
fn round_key_piece(key: &Secret<32>, piece: usize) -> u64 {
    let mut words = Secret::<240>::new_with(|bytes| bytes[..32].copy_from_slice(key.expose())).unwrap();
    let words = words.expose_mut();
    let sbox = |byte: u8| {
        let square = |x: u8| multiply(x, x);
        // x^254, then the affine map.
        let inverse =
            (1..7).fold((square(byte), square(byte)), |(power, all), _| (square(power), multiply(all, square(power))));
        let x = inverse.1;
        x ^ x.rotate_left(1) ^ x.rotate_left(2) ^ x.rotate_left(3) ^ x.rotate_left(4) ^ 0x63
    };
    for word in 8..60 {
        let mut last: [u8; 4] = words[word * 4 - 4..][..4].try_into().unwrap();
        if word % 8 == 0 {
            last.rotate_left(1);
        }
        if word % 4 == 0 {
            last = last.map(sbox);
        }
        if word % 8 == 0 {
            last[0] ^= 1 << (word / 8 - 1);
        }
        for byte in 0..4 {
            words[word * 4 + byte] = words[word * 4 - 32 + byte] ^ last[byte];
        }
    }
    u64::from_le_bytes(words[32 + piece * 8..][..8].try_into().unwrap()) ^ MASK
}

fn multiply(a: u8, b: u8) -> u8 {
    let doubled = |x: u8| (x << 1) ^ ((x >> 7) * 0x1b);
    let steps = (0..8).fold((a, 0), |(a, sum), bit| (doubled(a), sum ^ (a * (b >> bit & 1))));
    steps.1
}

struct Keys {
    aes: Secret<32>,
    hmac: Secret<32>,
    scalar: Secret<32>,
}

fn ciphers() -> [Mechanism<'static>; 5] {
    [
        Mechanism::AesEcb,
        Mechanism::AesCbc(Iv([1; 16])),
        Mechanism::AesCbcPad(Iv([1; 16])),
        Mechanism::AesCtr(Ctr { block: [1; 16], counter_bits: 128 }),
        Mechanism::AesGcm(Gcm { iv: &[1; 12], aad: b"aad", tag_bits: 128 }),
    ]
}

fn ciphers_in_one_call(keys: &Keys) {
    let (mut sealed, mut opened) = ([0; 1100], [0; 1100]);
    let key = Key::Aes(keys.aes.expose());
    for mechanism in ciphers() {
        let plain = &PLAIN[..992];
        let len = encrypt(&mechanism, &key, plain, &mut sealed).unwrap();
        assert_eq!(decrypt(&mechanism, &key, &sealed[..len], &mut opened).unwrap(), plain.len());
    }
}

fn ciphers_that_fail(keys: &Keys) {
    let mut out = [0; 1100];
    let key = Key::Aes(keys.aes.expose());
    for mechanism in ciphers() {
        let _ = decrypt(&mechanism, &key, &PLAIN[..992], &mut out);
        let _ = decrypt(&mechanism, &key, &PLAIN[..991], &mut out);
        let _ = encrypt(&mechanism, &key, &PLAIN[..991], &mut out);
        let _ = encrypt(&mechanism, &Key::Aes(&keys.aes.expose()[1..]), &PLAIN, &mut out);
        let _ = encrypt(&mechanism, &key, &PLAIN, &mut out[..10]);
    }
    let overflow = Mechanism::AesCtr(Ctr { block: [0xff; 16], counter_bits: 8 });
    encrypt(&overflow, &key, &PLAIN, &mut out).unwrap_err();
}

fn ciphers_in_parts(keys: &Keys) {
    let mut out = [0; 1100];
    let key = Key::Aes(keys.aes.expose());
    for mechanism in ciphers() {
        for mut stream in [Stream::encrypt(&mechanism, &key).unwrap(), Stream::decrypt(&mechanism, &key).unwrap()] {
            stream.update(&PLAIN[..499], &mut out).unwrap();
            let mut stream = black_box(Box::new(stream));
            if stream.suspend() {
                stream.resume(&key).unwrap();
            }
            let _ = stream.update(&PLAIN[499..992], &mut out);
            let _ = stream.finish(&mut out);
        }
        let abandoned = Stream::encrypt(&mechanism, &key).unwrap();
        drop(black_box(Box::new(abandoned)));
    }
}

fn macs(keys: &Keys) {
    let mut mac = [0; 64];
    let key = Key::Generic(keys.hmac.expose());
    for hash in Hash::ALL {
        let mechanism = Mechanism::Hmac(Hmac::full(hash));
        let len = sign(&mechanism, &key, &PLAIN, &mut mac).unwrap();
        verify(&mechanism, &key, &PLAIN, &mac[..len]).unwrap();
        verify(&mechanism, &key, &PLAIN[1..], &mac[..len]).unwrap_err();
        let mut stream = Stream::sign(&mechanism, &key).unwrap();
        stream.update(&PLAIN, &mut []).unwrap();
        stream.finish(&mut mac).unwrap();
        drop(Stream::verify(&mechanism, &key).unwrap());
    }
}

fn signatures(keys: &Keys) {
    let mut signature = [0; 64];
    let scalar = keys.scalar.expose();
    for curve in [Curve::P256, Curve::Secp256k1] {
        let key = Key::EcPrivate { curve, scalar };
        let mechanism = Mechanism::EcdsaHash(Hash::Sha256);
        sign(&mechanism, &key, &PLAIN, &mut signature).unwrap();
        sign(&Mechanism::Ecdsa, &key, &[], &mut signature).unwrap_err();
        let mut stream = Stream::sign(&mechanism, &key).unwrap();
        stream.update(&PLAIN, &mut []).unwrap();
        stream.finish(&mut signature).unwrap();
        drop(Stream::sign(&mechanism, &key).unwrap());
    }
}

fn key_pairs(keys: &Keys) {
    let scalar = keys.scalar.expose();
    ec_public(Curve::P256, scalar).unwrap();
    ec_public(Curve::P256, &[]).unwrap_err();
    drop(import_ec_scalar(Curve::P256, scalar).unwrap());
    let der = export_ec_pkcs8(Curve::P256, scalar).unwrap();
    let (curve, pair) = import_ec_pkcs8(der.expose()).unwrap();
    assert!(curve == Curve::P256 && pair.private.expose() == scalar);
    import_ec_pkcs8(&der.expose()[..der.len() - 1]).unwrap_err();
    generate_ec(Curve::P256).unwrap();
}

type Operation = (&'static str, fn(&Keys));
const OPERATIONS: &[Operation] = &[
    ("ciphers in one call", ciphers_in_one_call),
    ("ciphers that fail", ciphers_that_fail),
    ("ciphers in parts", ciphers_in_parts),
    ("macs", macs),
    ("signatures", signatures),
    ("key pairs", key_pairs),
];

#[test]
fn operations_leave_no_key_in_ordinary_memory() {
    let draw = || Secret::<32>::try_new_with(|bytes| random(bytes)).unwrap();
    let keys = Keys { aes: draw(), hmac: draw(), scalar: draw() };
    if !status().memfd_secret {
        eprintln!("skipped: without memfd_secret the search would find the arena itself");
        return;
    }
    let mut search = Search::new(&keys);
    assert_eq!(search.hits(), 0, "before the first operation");
    for (name, operation) in OPERATIONS {
        for _ in 0..20 {
            operation(&keys);
        }
        assert_eq!(search.hits(), 0, "after {name}");
    }
    verify_free_slots_zero().unwrap();
    for key in [&keys.aes, &keys.hmac, &keys.scalar] {
        let canary = black_box(Box::new(*key.expose()));
        assert!(search.hits() >= 4, "a canary is found");
        drop(canary);
    }
    // A living context shows that the search knows round keys: AWS-LC's heap is ordinary memory while an operation lasts.
    let living = Stream::encrypt(&Mechanism::AesEcb, &Key::Aes(keys.aes.expose())).unwrap();
    assert!(search.hits() >= 4 + 4, "key and round keys are found");
    drop(living);
}
