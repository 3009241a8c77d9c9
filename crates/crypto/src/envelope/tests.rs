use super::*;
use proptest::prelude::*;

fn ephemeral(hex_text: &str) -> Ephemeral {
    Ephemeral::from_secret(Secret::new_with(|slot| *slot = array(hex_text)).unwrap())
}

fn array<const N: usize>(hex_text: &str) -> [u8; N] {
    hex::decode(hex_text).unwrap().try_into().unwrap()
}

/// Alice and Bob of RFC 7748 section 6.1.
const ALICE: &str = "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a";
const BOB: &str = "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb";

fn pair(transcript: &[u8]) -> (Session, Session) {
    let (one, two) = (Ephemeral::generate().unwrap(), Ephemeral::generate().unwrap());
    let (one_public, two_public) = (one.public(), two.public());
    (one.agree(&two_public, transcript).unwrap(), two.agree(&one_public, transcript).unwrap())
}

fn sealed(session: &mut Session, aad: &[u8], secret: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    session.seal(aad, secret, &mut out).unwrap();
    out
}

/// The derived keys were made with Python's standard library from RFC 7748's shared secret and the formulas of the module's page.
#[test]
fn known_answers() {
    let (alice, bob) = (ephemeral(ALICE), ephemeral(BOB));
    assert_eq!(hex::encode(alice.public()), "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a");
    assert_eq!(hex::encode(bob.public()), "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f");
    let (alice_public, bob_public) = (alice.public(), bob.public());
    let mut alice = alice.agree(&bob_public, b"transcript").unwrap();
    let mut bob = bob.agree(&alice_public, b"transcript").unwrap();
    assert_eq!(
        hex::encode(alice.send_key.expose()),
        "07aba86e5b4217b80605eaa02c3a7e4df6f03ab68b904bb4ffd27298d3ef539e"
    );
    assert_eq!(
        hex::encode(alice.receive_key.expose()),
        "0c3d660f3c4bea482b3c9398b0f9adcdb768dca0474fb19e20f377bb7c3fb97d"
    );
    assert_eq!(alice.send_key.expose(), bob.receive_key.expose());
    assert_eq!(alice.receive_key.expose(), bob.send_key.expose());
    let first = sealed(&mut alice, b"aad", b"secret");
    assert_eq!(first[..8], [0; 8]);
    assert_eq!(bob.open(b"aad", &first).unwrap().expose(), b"secret");
    assert_eq!(sealed(&mut alice, b"aad", b"")[..8], [0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn both_directions_and_both_openings_work() {
    let (mut one, mut two) = pair(b"t");
    for round in 0..5_u8 {
        let there = sealed(&mut one, b"a", &[round; 64]);
        assert_eq!(there.len(), 64 + OVERHEAD_BYTES);
        assert_eq!(two.open_fixed::<64>(b"a", &there).unwrap().expose(), &[round; 64]);
        let back = sealed(&mut two, b"b", &[round; 3]);
        assert_eq!(one.open(b"b", &back).unwrap().expose(), &[round; 3]);
    }
}

#[test]
fn nothing_is_taken_twice_or_out_of_order_and_losses_do_no_harm() {
    let (mut one, mut two) = pair(b"t");
    let boxes: Vec<_> = (0..5_u8).map(|i| sealed(&mut one, b"", &[i])).collect();
    assert_eq!(two.open(b"", &boxes[1]).unwrap().expose(), &[1]);
    assert!(matches!(two.open(b"", &boxes[1]), Err(EnvelopeError::Replayed { counter: 1, expected: 2 })));
    assert!(matches!(two.open(b"", &boxes[0]), Err(EnvelopeError::Replayed { counter: 0, expected: 2 })));
    assert_eq!(two.open(b"", &boxes[4]).unwrap().expose(), &[4]);
    assert!(matches!(two.open_fixed::<1>(b"", &boxes[3]), Err(EnvelopeError::Replayed { .. })));
}

#[test]
fn a_forged_box_does_not_move_the_window() {
    let (mut one, mut two) = pair(b"t");
    let first = sealed(&mut one, b"", b"first");
    let mut forged = first.clone();
    forged[..8].copy_from_slice(&1_000_u64.to_be_bytes());
    assert!(matches!(two.open(b"", &forged), Err(EnvelopeError::NotAuthentic)));
    assert!(matches!(two.open_fixed::<5>(b"", &forged), Err(EnvelopeError::NotAuthentic)));
    forged[..8].copy_from_slice(&u64::MAX.to_be_bytes());
    assert!(matches!(two.open(b"", &forged), Err(EnvelopeError::NotAuthentic)));
    assert_eq!(two.open(b"", &first).unwrap().expose(), b"first");
}

/// A peer that has the key may claim any counter: the last one would overflow the window, or wedge it.
#[test]
fn the_last_counter_is_refused_even_when_authentic() {
    let (one, mut two) = pair(b"t");
    let mut last = u64::MAX.to_be_bytes().to_vec();
    aead::seal(one.send_key.expose(), &nonce(u64::MAX), b"", b"last", &mut last);
    assert!(matches!(two.open(b"", &last), Err(EnvelopeError::NotAuthentic)));
    assert!(matches!(two.open_fixed::<4>(b"", &last), Err(EnvelopeError::NotAuthentic)));
}

#[test]
fn boxes_belong_to_one_session_and_direction() {
    let (mut one, mut two) = pair(b"t");
    let (mut other, _) = pair(b"t");
    let there = sealed(&mut one, b"", b"secret");
    assert!(matches!(one.open(b"", &there), Err(EnvelopeError::NotAuthentic)), "reflected");
    assert!(matches!(other.open(b"", &there), Err(EnvelopeError::NotAuthentic)));
    assert!(matches!(two.open(b"x", &there), Err(EnvelopeError::NotAuthentic)));
    assert!(matches!(two.open_fixed::<5>(b"", &there), Err(EnvelopeError::NotAuthentic)));

    let (alice, bob) = (ephemeral(ALICE), ephemeral(BOB));
    let (alice_public, bob_public) = (alice.public(), bob.public());
    let mut alice = alice.agree(&bob_public, b"one transcript").unwrap();
    let mut bob = bob.agree(&alice_public, b"another").unwrap();
    assert!(matches!(bob.open(b"", &sealed(&mut alice, b"", b"s")), Err(EnvelopeError::NotAuthentic)));
}

/// All encodings of small-order points that X25519 maps to zero (RFC 7748 section 7; the list is that of libsodium and Wycheproof).
#[test]
fn small_order_and_reflected_keys_are_refused() {
    let small = [
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    ];
    for point in small {
        let refused = Ephemeral::generate().unwrap().agree(&array(point), b"");
        assert!(matches!(refused, Err(EnvelopeError::BadPeerKey)), "{point}");
    }
    let own = Ephemeral::generate().unwrap();
    let public = own.public();
    assert!(matches!(own.agree(&public, b""), Err(EnvelopeError::BadPeerKey)));
}

#[test]
fn a_session_ends_before_a_counter_repeats() {
    let (mut one, mut two) = pair(b"t");
    one.send_counter = u64::MAX - 1;
    let last = sealed(&mut one, b"", b"last");
    assert_eq!(two.open(b"", &last).unwrap().expose(), b"last");
    let mut out = b"kept".to_vec();
    for _ in 0..2 {
        assert!(matches!(one.seal(b"", b"more", &mut out), Err(EnvelopeError::UsedUp)));
    }
    assert_eq!(out, b"kept");
    assert!(matches!(one.seal(b"", &vec![0; SECRET_BYTES_MAX + 1], &mut out), Err(EnvelopeError::TooLong(_))));
}

proptest! {
    #[test]
    fn any_change_is_refused(secret in proptest::collection::vec(any::<u8>(), 0..100), aad in proptest::collection::vec(any::<u8>(), 0..40),
                             at in any::<prop::sample::Index>(), bit in 0..8_u32, cut in any::<prop::sample::Index>()) {
        let (mut one, mut two) = pair(&aad);
        let good = sealed(&mut one, &aad, &secret);
        let mut changed = good.clone();
        changed[at.index(good.len())] ^= 1 << bit;
        prop_assert!(two.open(&aad, &changed).is_err());
        prop_assert!(two.open(&aad, &good[..cut.index(good.len())]).is_err());
        let longer = [good.as_slice(), &[0]].concat();
        prop_assert!(two.open(&aad, &longer).is_err());
        let opened = two.open(&aad, &good).unwrap();
        prop_assert_eq!(opened.expose(), secret.as_slice());
    }
}
