//! Prints what operations cost, in nanoseconds, the secret stack included:
//! `cargo run --profile ci -p mayfly-engine --example figures`. Each figure is the lowest of several rounds.

use mayfly_engine::{Curve, Gcm, Hash, Hmac, Iv, Key, Mechanism, decrypt, encrypt, generate_ec, sign, verify};
use mayfly_secmem::{Secret, harden_process, mask_signals_on_this_thread, random};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = 9;

fn main() {
    harden_process().expect("this machine has secret memory");
    mask_signals_on_this_thread();
    let bytes = Secret::<32>::try_new_with(|bytes| random(bytes)).expect("room");
    let key = Key::Aes(bytes.expose());
    let plain = vec![1; 1 << 20];
    let mut out = vec![0; (1 << 20) + 32];
    let gcm = Mechanism::AesGcm(Gcm { iv: &[1; 12], aad: &[], tag_bits: 128 });
    let cbc = Mechanism::AesCbcPad(Iv([1; 16]));
    for (name, mechanism) in [("AES-256-GCM", gcm), ("AES-256-CBC-PAD", cbc)] {
        for len in [16, 1024, 16 * 1024, 1 << 20] {
            let times = (20_000_000 / (len as u32 + 2000)).max(4);
            let mut sealed = 0;
            figure(&format!("{name} encrypt {len}"), times, || {
                sealed = encrypt(&mechanism, &key, &plain[..len], &mut out).expect("sealed");
            });
            let ciphertext = out[..sealed].to_vec();
            figure(&format!("{name} decrypt {len}"), times, || {
                black_box(decrypt(&mechanism, &key, &ciphertext, &mut out).expect("opened"));
            });
        }
    }
    let hmac = Mechanism::Hmac(Hmac::full(Hash::Sha256));
    figure("HMAC-SHA-256 1024", 10_000, || {
        black_box(sign(&hmac, &Key::Generic(bytes.expose()), &plain[..1024], &mut out).expect("signed"));
    });
    for curve in Curve::ALL {
        let pair = generate_ec(curve).expect("a key");
        let private = Key::EcPrivate { curve, scalar: pair.private.expose() };
        let public = Key::EcPublic { curve, point: &pair.public };
        let mut signature = vec![0; 2 * curve.scalar_bytes()];
        figure(&format!("ECDSA {curve:?} sign"), 200, || {
            black_box(sign(&Mechanism::Ecdsa, &private, &[7; 32], &mut signature).expect("signed"));
        });
        figure(&format!("ECDSA {curve:?} verify"), 200, || {
            verify(&Mechanism::Ecdsa, &public, &[7; 32], &signature).expect("valid");
        });
        figure(&format!("ECDSA {curve:?} key pair"), 200, || {
            black_box(generate_ec(curve).expect("a key"));
        });
    }
}

fn figure(name: &str, times: u32, mut work: impl FnMut()) {
    let lowest = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..times).for_each(|_| work());
            start.elapsed().as_nanos() / u128::from(times)
        })
        .min();
    println!("{:>9} ns  {name}", lowest.unwrap_or(0));
}
