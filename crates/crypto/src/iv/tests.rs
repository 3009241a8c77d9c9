use super::*;
use proptest::prelude::*;

/// K_iv of the known answers in `schedule`: K = 00..1f, key id 00112233445566778899aabbccddeeff, gen 7, AES-256-GCM.
const K_IV: &str = "e370d701a5380fabad88ac193c5cd1ac467cc69dece89dcf9682d9ed7dfef890";

fn k_iv() -> Secret<32> {
    Secret::new_with(|slot| slot.copy_from_slice(&hex::decode(K_IV).unwrap())).unwrap()
}

fn iv(mode: Mode, context: &[u8], rnd: &[u8], aad: &[u8], plaintext: &[u8]) -> String {
    let mut out = [0; 12];
    synthetic(&k_iv(), mode, context, rnd, aad, plaintext, &mut out).unwrap();
    hex::encode(out)
}

fn streamed<'a>(mode: Mode, rnd: &[u8], aad: &[u8], pieces: impl Iterator<Item = &'a [u8]> + Clone) -> String {
    let total = pieces.clone().map(|piece| piece.len() as u64).sum();
    let mut stream = Stream::new(&k_iv(), mode, b"", rnd, aad, total).unwrap();
    pieces.for_each(|piece| stream.update(piece).unwrap());
    let mut out = [0; 12];
    stream.finish(&mut out).unwrap();
    hex::encode(out)
}

/// Made with Python's standard library from the formula of the module's page.
#[test]
fn known_answers() {
    const FF: [u8; 32] = [0xff; 32];
    let cases: [(Mode, &[u8], &str, &str, &str); 5] = [
        (Mode::Deterministic, b"", "hdr", "hello", "de288bcf271fe8370069651e"),
        (Mode::Deterministic, b"", "", "", "860f96e719cf801b4b4a8140"),
        (Mode::Hedged, &FF, "hdr", "hello", "659d574eb7b03d05b3337d36"),
        (Mode::Deterministic, b"", "a", "bc", "d66b34ae2ad3f54fb7ca2ae2"),
        (Mode::Deterministic, b"", "ab", "c", "40855e6129461addfb8eb5a6"),
    ];
    for (mode, rnd, aad, plaintext, expected) in cases {
        let (aad, plaintext) = (aad.as_bytes(), plaintext.as_bytes());
        assert_eq!(iv(mode, b"", rnd, aad, plaintext), expected);
        assert_eq!(streamed(mode, rnd, aad, plaintext.chunks(2)), expected);
    }
}

#[test]
fn no_boundary_slides() {
    let ivs = [
        iv(Mode::Deterministic, b"", b"", b"", b"abc"),
        iv(Mode::Deterministic, b"", b"", b"abc", b""),
        iv(Mode::Deterministic, b"abc", b"", b"", b""),
        iv(Mode::Deterministic, b"a", b"", b"b", b"c"),
        iv(Mode::Deterministic, b"ab", b"", b"", b"c"),
        iv(Mode::Hedged, b"", &[0; 32], b"", b"abc"),
    ];
    for (i, one) in ivs.iter().enumerate() {
        assert!(!ivs[i + 1..].contains(one), "{i}");
    }
}

#[test]
fn longer_ivs_begin_with_the_shorter_ones() {
    let mut long = [0; IV_BYTES_MAX];
    synthetic(&k_iv(), Mode::Deterministic, b"", b"", b"hdr", b"hello", &mut long).unwrap();
    assert_eq!(hex::encode(&long[..12]), "de288bcf271fe8370069651e");
    for length in [0, IV_BYTES_MAX + 1] {
        let mut out = vec![0; length];
        let refused = synthetic(&k_iv(), Mode::Deterministic, b"", b"", b"", b"", &mut out);
        assert!(matches!(refused, Err(IvError::IvLength(actual)) if actual == length));
        let stream = Stream::new(&k_iv(), Mode::Deterministic, b"", b"", b"", 0).unwrap();
        assert!(matches!(stream.finish(&mut out), Err(IvError::IvLength(actual)) if actual == length));
    }
}

#[test]
fn each_mode_demands_its_randomness() {
    for (mode, lengths) in
        [(Mode::Deterministic, [1, 32].as_slice()), (Mode::Hedged, &[0, 31, 33]), (Mode::Random, &[1, 32])]
    {
        for length in lengths {
            let rnd = vec![0; *length];
            let refused = synthetic(&k_iv(), mode, b"", &rnd, b"", b"", &mut [0; 12]);
            assert!(matches!(refused, Err(IvError::RndLength { .. })), "{mode:?} {length}");
            assert!(matches!(Stream::new(&k_iv(), mode, b"", &rnd, b"", 0), Err(IvError::RndLength { .. })));
        }
    }
    assert!(matches!(Stream::new(&k_iv(), Mode::Random, b"", b"", b"", 0), Err(IvError::NothingToStream)));
    for byte in 0..=u8::MAX {
        assert_eq!(Mode::try_from(byte).ok().map(|mode| mode as u8), (byte < 3).then_some(byte));
    }
}

#[test]
fn random_ivs_do_not_depend_on_the_input() {
    let ivs: Vec<String> = (0..100).map(|_| iv(Mode::Random, b"", b"", b"hdr", b"hello")).collect();
    assert!((0..100).all(|i| !ivs[i + 1..].contains(&ivs[i])));
}

#[test]
fn a_stream_holds_its_writer_to_the_announced_length() {
    let mut stream = Stream::new(&k_iv(), Mode::Deterministic, b"", b"", b"hdr", 5).unwrap();
    stream.update(b"hel").unwrap();
    assert!(matches!(stream.update(b"lo!"), Err(IvError::PlaintextLength { announced: 5 })));
    stream.update(b"lo").unwrap();
    let mut out = [0; 12];
    stream.finish(&mut out).unwrap();
    assert_eq!(hex::encode(out), "de288bcf271fe8370069651e");

    let stream = Stream::new(&k_iv(), Mode::Deterministic, b"", b"", b"hdr", 5).unwrap();
    assert!(matches!(stream.finish(&mut out), Err(IvError::PlaintextLength { announced: 5 })));
}

proptest! {
    #[test]
    fn streaming_is_the_same_function(plaintext in proptest::collection::vec(any::<u8>(), 0..400), piece in 1..200_usize,
                                      rnd: [u8; 32], aad in proptest::collection::vec(any::<u8>(), 0..100)) {
        let once = iv(Mode::Hedged, b"", &rnd, &aad, &plaintext);
        prop_assert_eq!(streamed(Mode::Hedged, &rnd, &aad, plaintext.chunks(piece)), once);
    }
}
