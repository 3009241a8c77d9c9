//! Prints what the operations of this crate cost, in microseconds: `cargo run --profile ci -p mayfly-crypto --example bench`.
//!
//! Each figure is the lowest mean of seven rounds, on one thread. Secret operations include their slots and the wiped stack.

use mayfly_crypto::envelope::Ephemeral;
use mayfly_crypto::iv::{self, Mode};
use mayfly_crypto::schedule::{Label, Prk};
use mayfly_crypto::sign::{Ed25519Secret, P256Secret, PublicKey, verify_batch};
use mayfly_crypto::{enc, merkle, pedersen, wrap};
use mayfly_secmem::{Secret, on_secret_stack, random};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ROUNDS: usize = 7;
const ROUND_TIME: Duration = Duration::from_millis(30);

fn main() {
    if std::env::args().any(|arg| arg == "--masked") {
        mayfly_secmem::mask_signals_on_this_thread();
    }
    public_parts();
    sharing();
    keys();
    envelopes();
    signatures();
}

fn measure<R>(name: &str, mut operation: impl FnMut() -> R) {
    let mut lowest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let (start, mut count) = (Instant::now(), 0_u32);
        while start.elapsed() < ROUND_TIME {
            for _ in 0..8 {
                black_box(operation());
            }
            count += 8;
        }
        lowest = lowest.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(count));
    }
    println!("{name:<44}{lowest:>10.2} µs");
}

fn public_parts() {
    let leaf = merkle::leaf_hash(b"leaf");
    let mut frontier = merkle::Frontier::new();
    measure("empty secret stack", || on_secret_stack(|| ()));
    measure("secret slot of 64 bytes, made and dropped", || Secret::<64>::new_with(|_| ()).expect("a slot"));
    measure("enc::hash, three fields", || enc::hash("mayfly/v1/bench", &[&[0; 32], &[0; 32], &[0; 8]]));
    measure("merkle append", || frontier.append(&leaf));
    measure("merkle root", || frontier.root());
}

fn sharing() {
    let root = pedersen::random_root().expect("a root");
    for (t, n) in [(2, 3), (3, 5), (5, 9)] {
        let indices: Vec<u32> = (1..=n).collect();
        let (commitment, shares) = pedersen::deal(&root, t, &indices).expect("a deal");
        let chosen: Vec<_> = shares.iter().take(t.into()).map(|(index, share)| (*index, share)).collect();
        measure(&format!("pedersen deal {t}-of-{n}"), || pedersen::deal(&root, t, &indices).expect("a deal"));
        measure(&format!("pedersen verify, t = {t}"), || pedersen::verify(1, &shares[0].1, &commitment));
        measure(&format!("pedersen combine, t = {t}"), || pedersen::combine(t, &chosen).expect("a root"));
    }
}

fn keys() {
    let root = pedersen::random_root().expect("a root");
    let prk = Prk::extract(&root).expect("a slot");
    let mut key = Secret::<32>::new_with(|_| ()).expect("a slot");
    measure("schedule extract", || Prk::extract(&root).expect("a slot"));
    measure("schedule derive 32 bytes", || prk.derive(Label::KeyBytes, &[0; 32], 1, "AES-256-GCM", key.expose_mut()));

    let mut iv = [0; 12];
    for (name, plaintext) in [("64 bytes", vec![0; 64]), ("16 KiB", vec![0; 16 << 10])] {
        measure(&format!("iv hedged, {name}"), || {
            iv::synthetic(&key, Mode::Hedged, b"", &[7; 32], b"aad", &plaintext, &mut iv).expect("an IV");
        });
    }
    let secret = Secret::<64>::new_with(|_| ()).expect("a slot");
    let record = wrap::seal(&key, b"aad", secret.expose()).expect("a record");
    measure("wrap seal 64 bytes", || wrap::seal(&key, b"aad", secret.expose()).expect("a record"));
    measure("wrap open 64 bytes", || wrap::open_fixed::<64>(&key, b"aad", &record).expect("a secret"));
}

fn envelopes() {
    let peer = Ephemeral::generate().expect("a key pair");
    let peer_public = peer.public();
    measure("envelope generate", || Ephemeral::generate().expect("a key pair"));
    measure("envelope generate and agree", || {
        Ephemeral::generate().expect("a key pair").agree(&peer_public, b"transcript").expect("a session")
    });
    let own = Ephemeral::generate().expect("a key pair");
    let own_public = own.public();
    let mut sender = own.agree(&peer_public, b"transcript").expect("a session");
    let mut receiver = peer.agree(&own_public, b"transcript").expect("a session");
    let secret = Secret::<64>::try_new_with(|slot| random(slot)).expect("a slot");
    let mut sealed = Vec::with_capacity(128);
    measure("envelope seal 64 bytes", || {
        sealed.clear();
        sender.seal(b"aad", secret.expose(), &mut sealed).expect("a box");
    });
    measure("envelope seal and open 64 bytes", || {
        sealed.clear();
        sender.seal(b"aad", secret.expose(), &mut sealed).expect("a box");
        receiver.open_fixed::<64>(b"aad", &sealed).expect("a secret")
    });
}

fn signatures() {
    let message = [7; 200];
    let (ed25519, p256) = (Ed25519Secret::generate().expect("a key pair"), P256Secret::generate().expect("a key pair"));
    let (ed25519_signature, p256_signature) = (ed25519.sign(&message), p256.sign(&message));
    measure("ed25519 sign", || ed25519.sign(&message));
    measure("ed25519 verify", || ed25519.public().verify(&message, &ed25519_signature));
    measure("p256 sign", || p256.sign(&message));
    measure("p256 verify", || p256.public().verify(&message, &p256_signature));
    let keys: Vec<_> = (0..64).map(|_| Ed25519Secret::generate().expect("a key pair")).collect();
    let signed: Vec<_> = keys.iter().map(|key| (key.public(), key.sign(&message))).collect();
    let items: Vec<(PublicKey, &[u8], &[u8])> =
        signed.iter().map(|(key, signature)| (*key, message.as_slice(), signature.as_slice())).collect();
    measure("ed25519 batch of 64, all keys distinct", || verify_batch(&items));
}
