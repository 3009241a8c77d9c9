//! No operation of this crate leaves a secret in ordinary memory: the process searches itself through `/proc/self/mem`, as the tests of
//! `mayfly-secmem` do. One test, so that nothing else runs beside the search. Arena and secret stacks cannot be read this way.

use mayfly_crypto::envelope::Ephemeral;
use mayfly_crypto::iv::{self, Mode, Stream};
use mayfly_crypto::schedule::{self, Label, Prk};
use mayfly_crypto::sign::{Ed25519Secret, P256Secret};
use mayfly_crypto::{pedersen, wrap};
use mayfly_secmem::{Secret, SecretBytes, on_secret_stack, random, status, verify_free_slots_zero};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

/// The search keeps its needles XORed with this, so that it does not find itself.
const MASK: u64 = 0x9d3b_7c51_e8a6_420f;
const CHUNK_BYTES: usize = 1 << 16;
const ROUNDS: usize = 20;

#[test]
fn operations_leave_nothing_in_ordinary_memory() {
    let secrets = Secrets::new();
    if !status().memfd_secret {
        eprintln!("skipped: without memfd_secret the search would find the arena itself");
        return;
    }
    let mut search = Search::new(&secrets);
    assert_eq!(search.hits(), 0, "before the first operation");

    for (name, operation) in OPERATIONS {
        for _ in 0..ROUNDS {
            operation(&secrets);
        }
        assert_eq!(search.hits(), 0, "after {name}");
    }
    verify_free_slots_zero().expect("free slots and resting stacks are zero");

    // The same search finds each secret when it is copied on purpose.
    for secret in secrets.all() {
        let canary = black_box(Box::<[u8]>::from(secret));
        assert!(search.hits() > 0, "a canary is found");
        drop(canary);
    }
    let limbs = black_box(Box::new(limbs(secrets.root.expose())));
    assert!(search.hits() > 0, "a canary in limbs is found");
    drop(limbs);
}

/// The secrets that are looked for; all of them come from the kernel straight into the arena, or from dealing.
struct Secrets {
    root: Secret<32>,
    shares: Vec<(u32, Secret<64>)>,
    commitment: pedersen::Commitment,
    prk: Prk,
    key: Secret<32>,
    k_iv: Secret<32>,
    ed25519: Ed25519Secret,
    p256: P256Secret,
    bytes: SecretBytes,
}

impl Secrets {
    fn new() -> Self {
        let root = pedersen::random_root().expect("a root");
        let (commitment, shares) = pedersen::deal(&root, 2, &[1, 2, 3]).expect("a deal");
        let prk = Prk::extract(&root).expect("a slot");
        let derive =
            |label| Secret::new_with(|slot| prk.derive(label, b"key id", 1, "AES-256-GCM", slot)).expect("a slot");
        let (key, k_iv) = (derive(Label::KeyBytes), derive(Label::Iv));
        let bytes = SecretBytes::try_new_with(200, random).expect("a slot");
        let ed25519 = Ed25519Secret::generate().expect("a key pair");
        let p256 = P256Secret::generate().expect("a key pair");
        Self { root, shares, commitment, prk, key, k_iv, ed25519, p256, bytes }
    }

    fn all(&self) -> Vec<&[u8]> {
        let fixed = [&self.root, &self.key, &self.k_iv, self.ed25519.seed(), self.p256.scalar()];
        let shares = self.shares.iter().map(|(_, share)| share.expose().as_slice());
        let fixed = fixed.into_iter().map(|secret| secret.expose().as_slice());
        fixed.chain(shares).chain([self.bytes.expose()]).collect()
    }
}

type Operation = fn(&Secrets);

const OPERATIONS: [(&str, Operation); 7] = [
    ("sharing", |s| {
        black_box(pedersen::deal(&s.root, 2, &[1, 2, 3]).expect("a deal"));
        for (index, share) in &s.shares {
            pedersen::verify(*index, share, &s.commitment).expect("a good share");
        }
        let chosen: Vec<_> = s.shares[1..].iter().map(|(index, share)| (*index, share)).collect();
        black_box(pedersen::combine(2, &chosen).expect("a root"));
    }),
    ("the key schedule", |s| {
        let prk = Prk::extract(&s.root).expect("a slot");
        let key = Secret::<32>::new_with(|slot| prk.derive(Label::KeyBytes, b"key id", 1, "AES-256-GCM", slot));
        black_box((key.expect("a slot"), schedule::commitment(&s.prk, b"key id", 1, "AES-256-GCM")));
    }),
    ("an IV at once", |s| {
        iv::synthetic(&s.k_iv, Mode::Hedged, b"", &[1; 32], b"", b"text", &mut [0; 12]).expect("an IV");
    }),
    ("an IV in pieces", |s| {
        let mut stream = Stream::new(&s.k_iv, Mode::Deterministic, b"", b"", b"", 300).expect("a stream");
        stream.update(&[7; 300]).expect("as announced");
        stream.finish(&mut [0; 12]).expect("an IV");
    }),
    ("sealed records", |s| {
        let record = wrap::seal(&s.key, b"aad", s.bytes.expose()).expect("a record");
        black_box(wrap::open(&s.key, b"aad", &record).expect("a secret"));
        assert!(wrap::open(&s.key, b"other", &record).is_err());
    }),
    ("envelopes", |s| {
        let (one, two) = (Ephemeral::generate().expect("a key pair"), Ephemeral::generate().expect("a key pair"));
        let (one_public, two_public) = (one.public(), two.public());
        let mut one = one.agree(&two_public, b"transcript").expect("a session");
        let mut two = two.agree(&one_public, b"transcript").expect("a session");
        for (_, share) in &s.shares {
            let mut sealed = Vec::new();
            one.seal(b"aad", share.expose(), &mut sealed).expect("a box");
            black_box(two.open_fixed::<64>(b"aad", &sealed).expect("a share"));
        }
    }),
    ("signing", |s| {
        black_box((s.ed25519.sign(b"message"), s.p256.sign(b"message")));
    }),
];

/// Counts places in readable, writable memory where an aligned 8-byte piece of a secret lies: raw, byte-reversed (big numbers of
/// libraries), or as a 52-bit limb of a scalar.
struct Search {
    needles: Vec<u64>,
    buffer: Vec<u8>,
}

impl Search {
    fn new(secrets: &Secrets) -> Self {
        let needles = on_secret_stack(|| {
            let mut needles = Vec::with_capacity(1024);
            for secret in secrets.all() {
                for piece in secret.as_chunks::<8>().0 {
                    needles.push(u64::from_le_bytes(*piece) ^ MASK);
                    needles.push(u64::from_be_bytes(*piece) ^ MASK);
                }
            }
            let scalars = secrets.shares.iter().flat_map(|(_, share)| share.expose().as_chunks::<32>().0);
            for scalar in scalars.chain([secrets.root.expose()]) {
                needles.extend(limbs(scalar).map(|limb| limb ^ MASK));
            }
            needles.sort_unstable();
            needles
        });
        Self { needles, buffer: vec![0; CHUNK_BYTES + 8] }
    }

    fn hits(&mut self) -> usize {
        let own = self.buffer.as_ptr_range();
        let own = own.start as usize..own.end as usize;
        let memory = File::open("/proc/self/mem").expect("own memory");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("own map");
        let writable = maps.lines().filter(|line| line.contains(" rw")).filter_map(range);
        let mut hits = 0;
        for (start, end) in writable {
            for base in (start..end).step_by(CHUNK_BYTES) {
                let wanted = (CHUNK_BYTES + 7).min(end - base);
                // Secret memory answers with an error: it cannot be read this way.
                let Ok(read) = memory.read_at(&mut self.buffer[..wanted], base as u64) else { continue };
                for (offset, window) in self.buffer[..read].windows(8).enumerate() {
                    let word = u64::from_le_bytes(window.try_into().expect("eight bytes"));
                    let found = self.needles.binary_search(&(word ^ MASK)).is_ok();
                    hits += usize::from(found && !own.contains(&(base + offset)));
                }
            }
        }
        self.buffer.fill(0);
        hits
    }
}

/// The four full limbs of a scalar in curve25519-dalek's 64-bit arithmetic.
fn limbs(scalar: &[u8; 32]) -> [u64; 4] {
    std::array::from_fn(|limb| (0..52).fold(0, |sum, bit| sum | u64::from(bit_of(scalar, 52 * limb + bit)) << bit))
}

fn bit_of(bytes: &[u8; 32], bit: usize) -> u8 {
    bytes[bit / 8] >> (bit % 8) & 1
}

fn range(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}
