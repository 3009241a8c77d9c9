use super::*;
use crate::record::{DeviceRole, Genesis, NetworkPolicy};
use crate::state::{Device, Membership, Session};
use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use std::sync::Arc;

const NONCE: [u8; NONCE_BYTES] = [5; NONCE_BYTES];
const WALL: u64 = 1_700_000_000_000;

fn id(n: u8) -> DeviceId {
    DeviceId([n; 32])
}

/// A network of `n` witnesses and a plain member (9), with `size` entries.
fn network(n: u8, size: u64) -> (State, Vec<Ed25519Secret>) {
    let keys: Vec<_> = (0..=n).map(|_| Ed25519Secret::generate().unwrap()).collect();
    let policy = NetworkPolicy {
        head_age_ms_max: 60_000,
        skew_ms_max: 2_000,
        members_join_unapproved: false,
        dev: false,
        unattested: true,
    };
    let genesis = Genesis {
        name: "n".into(),
        created_ms: 0,
        administrators: vec![],
        administrators_needed: 1,
        gateways: vec![],
        policy,
        nonce: [0; 32],
    };
    let mut state = State { network: NetworkId([3; 32]), genesis: Some(Arc::new(genesis)), ..State::default() };
    for (at, key) in keys.iter().enumerate() {
        let number = if at == usize::from(n) { 9 } else { at as u8 + 1 };
        let roles = if number == 9 { vec![] } else { vec![DeviceRole::Witness] };
        state.devices.insert(id(number), device(key.public(), roles));
    }
    extend(&mut state, size);
    (state, keys)
}

fn device(key: PublicKey, roles: Vec<DeviceRole>) -> Device {
    Device {
        name: "d".into(),
        identity: key,
        vault: "file".into(),
        software_only: true,
        membership: Membership::Member,
        roles,
        addresses: vec![],
        vault_generation: 1,
        attestations: Default::default(),
        chip: None,
        generation_stated: None,
        pcr_approvals: vec![],
        delegation: None,
        sessions: vec![Session { key, start_counter: 1, not_after_ms: u64::MAX }],
    }
}

fn extend(state: &mut State, size: u64) {
    while state.size() < size {
        state.frontier.append(&[state.size() as u8; 32]);
        state.recent.push_back((state.head(), 0));
    }
}

fn statement(state: &State, keys: &[Ed25519Secret], witness: u8, head: Head, time_ms: u64) -> Statement {
    let message = statement_message(&state.network, &id(witness), &id(9), &head, &NONCE, time_ms);
    let signature = keys[usize::from(witness) - 1].sign(&message).to_vec();
    Statement { witness: id(witness), head, time_ms, signature }
}

fn round(state: &State) -> Round {
    Round::new(state, id(9), NONCE, 1_000).unwrap()
}

/// A round of the plain member with these (witness, ledger size, time) statements, all in at boot time 1,100.
fn verdict(state: &State, keys: &[Ed25519Secret], said: &[(u8, u64, u64)]) -> Verdict {
    let mut round = round(state);
    for (witness, size, time_ms) in said {
        let head = state.recent_head(*size).map_or(Head { size: *size, ..Head::default() }, |h| h.0);
        round.take(state, &statement(state, keys, *witness, head, *time_ms), WALL, 1_100).unwrap();
    }
    round.judge(state, WALL)
}

#[test]
fn a_quorum_of_known_heads_is_fresh_and_one_statement_is_not() {
    let (state, keys) = network(3, 10);
    assert_eq!(verdict(&state, &keys, &[(1, 10, WALL)]), Verdict::Not(NotFresh::TooFew { have: 1, needed: 2 }));
    let Verdict::Fresh(fresh) = verdict(&state, &keys, &[(1, 10, WALL), (3, 8, WALL)]) else { panic!("not fresh") };
    assert_eq!((fresh.head.size, fresh.began_boot_ms, fresh.base_boot_ms), (10, 1_000, 1_100));
}

#[test]
fn ledger_time_is_the_wth_highest() {
    let (state, keys) = network(5, 4);
    for (times, ledger) in [
        ([0i64, 0, 0, 0, 0], 0i64),
        ([900, 500, 100, -500, -900], 100),
        ([1900, 1900, -1000, -1000, -1000], -1000),
        ([1900, 10, 10, 10, -1900], 10),
    ] {
        let said: Vec<_> =
            times.iter().enumerate().map(|(i, t)| (i as u8 + 1, 4, WALL.saturating_add_signed(*t))).collect();
        let Verdict::Fresh(fresh) = verdict(&state, &keys, &said) else { panic!("not fresh") };
        assert_eq!(fresh.ledger_ms, WALL.saturating_add_signed(ledger), "{times:?}");
    }
}

#[test]
fn one_lying_clock_of_three_moves_ledger_time_no_further_than_an_honest_one_says() {
    let (state, keys) = network(3, 4);
    for lie in [0, WALL - 1_000_000, WALL + 1_000_000, u64::MAX] {
        let said = [(1, 4, lie), (2, 4, WALL), (3, 4, WALL + 10)];
        let Verdict::Fresh(fresh) = verdict(&state, &keys, &said) else { panic!("not fresh: {lie}") };
        assert!((WALL..=WALL + 10).contains(&fresh.ledger_ms), "{lie}: {}", fresh.ledger_ms);
    }
}

#[test]
fn a_witness_that_knows_more_must_be_caught_up_with() {
    let (state, keys) = network(3, 10);
    let behind = |size| Verdict::Not(NotFresh::Behind { size, ours: 10 });
    assert_eq!(verdict(&state, &keys, &[(1, 12, WALL), (2, 11, WALL)]), behind(12));
    assert_eq!(verdict(&state, &keys, &[(1, 12, WALL), (2, 10, WALL)]), behind(12));
    assert_eq!(verdict(&state, &keys, &[(1, 12, WALL), (2, 10, WALL), (3, 11, WALL)]), behind(11));
    let quorum_knows_no_more = [(1, 12, WALL), (2, 10, WALL), (3, 9, WALL)];
    assert!(matches!(verdict(&state, &keys, &quorum_knows_no_more), Verdict::Fresh(_)));
}

/// Liars state another root at size 7; honest ones what we have.
fn verdict_with_liars(n: u8, liars: &[u8], honest: &[u8]) -> (Verdict, Vec<(DeviceId, u64)>) {
    let (state, keys) = network(n, 10);
    let mut round = round(&state);
    let forged = Head { size: 7, root: crate::ids::Hash([1; 32]) };
    let said = liars.iter().map(|w| (w, forged)).chain(honest.iter().map(|w| (w, state.head())));
    for (witness, head) in said {
        round.take(&state, &statement(&state, &keys, *witness, head, WALL), WALL, 1_000).unwrap();
    }
    (round.judge(&state, WALL), round.contradicting(&state))
}

#[test]
fn a_contradicting_witness_is_named_and_outvoted_until_no_quorum_is_left() {
    let fork = |v: &Verdict| matches!(v, Verdict::Not(NotFresh::Fork { size: 7, .. }));
    let fresh = |v: &Verdict| matches!(v, Verdict::Fresh(_));
    let few = |v: &Verdict| matches!(v, Verdict::Not(NotFresh::TooFew { .. }));
    type Expect<'a> = &'a dyn Fn(&Verdict) -> bool;
    let cases: [(u8, &[u8], &[u8], Expect<'_>); 8] = [
        (3, &[1], &[2, 3], &fresh),
        (3, &[1], &[2], &few),
        (3, &[1, 2], &[3], &fork),
        (7, &[1, 2, 3], &[4, 5, 6, 7], &fresh),
        (7, &[1, 2, 3, 4], &[5, 6, 7], &fork),
        (5, &[2], &[], &few),
        (2, &[1], &[2], &fork),
        (1, &[1], &[], &fork),
    ];
    for (n, liars, honest, expected) in cases {
        let (verdict, named) = verdict_with_liars(n, liars, honest);
        assert!(expected(&verdict), "{liars:?} of {n} lie, {honest:?} do not: {verdict:?}");
        assert_eq!(named, liars.iter().map(|w| (id(*w), 7)).collect::<Vec<_>>());
    }
}

#[test]
fn a_session_that_is_over_vouches_for_nothing() {
    let (mut state, keys) = network(3, 5);
    state.devices[&id(1)].sessions[0].not_after_ms = WALL;
    let said = statement(&state, &keys, 1, state.head(), WALL);
    assert_eq!(round(&state).take(&state, &said, WALL, 1_000), Ok(()));
    assert_eq!(round(&state).take(&state, &said, WALL + 1, 1_000), Err(StatementRefused::Expired));
}

#[test]
fn clocks_that_differ_too_much_fail_closed_and_age_counts_from_the_beginning_of_the_round() {
    let (state, keys) = network(1, 3);
    let skewed = verdict(&state, &keys, &[(1, 3, WALL + 2_001)]);
    assert_eq!(skewed, Verdict::Not(NotFresh::Skew { skew_ms: 2_001, max_ms: 2_000 }));
    let Verdict::Fresh(fresh) = verdict(&state, &keys, &[(1, 3, WALL + 500)]) else { panic!("not fresh") };
    assert_eq!(fresh.clocks(2_100, WALL + 1_000), Ok(Clocks { local_ms: WALL + 1_000, ledger_ms: WALL + 1_500 }));
    assert!(fresh.clocks(61_000, WALL + 60_000).is_ok());
    assert_eq!(fresh.clocks(61_001, WALL + 60_000), Err(NotFresh::Old { age_ms: 60_001, max_ms: 60_000 }));
    assert!(matches!(fresh.clocks(2_000, WALL + 100_000), Err(NotFresh::Skew { .. })), "the wall clock was set");
}

#[test]
fn statements_that_do_not_count() {
    let (state, keys) = network(3, 5);
    let head = state.head();
    let good = statement(&state, &keys, 1, head, WALL);
    let mut round = round(&state);
    type Change = fn(&mut Statement);
    let changes: [(&str, Change); 5] = [
        ("time", |s| s.time_ms += 1),
        ("head", |s| s.head.size -= 1),
        ("witness", |s| s.witness = id(2)),
        ("signature", |s| s.signature[0] ^= 1),
        ("no signature", |s| s.signature.clear()),
    ];
    for (what, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert_eq!(round.take(&state, &bad, WALL, 1_000), Err(StatementRefused::Signature), "{what}");
    }
    let mut other = Round::new(&state, id(9), [6; NONCE_BYTES], 1_000).unwrap();
    assert_eq!(other.take(&state, &good, WALL, 1_000), Err(StatementRefused::Signature), "another round's nonce");
    let mut other = Round::new(&state, id(8), NONCE, 1_000).unwrap();
    assert_eq!(other.take(&state, &good, WALL, 1_000), Err(StatementRefused::Signature), "said to another device");
    round.take(&state, &good, WALL, 1_000).unwrap();
    assert_eq!(round.take(&state, &good, WALL, 1_000), Err(StatementRefused::Twice));
    assert_eq!(round.take_own(head, WALL, 1_000), Err(StatementRefused::NotWitness));
}

#[test]
fn a_witness_counts_itself_once_and_nobody_can_speak_for_it() {
    let (state, keys) = network(1, 5);
    let mut round = Round::new(&state, id(1), NONCE, 1_000).unwrap();
    let forged = statement(&state, &keys, 1, state.head(), WALL);
    assert_eq!(round.take(&state, &forged, WALL, 1_000), Err(StatementRefused::Signature));
    round.take_own(state.head(), WALL, 1_000).unwrap();
    assert!(matches!(round.judge(&state, WALL), Verdict::Fresh(_)));
}

#[test]
fn without_witnesses_nothing_is_fresh() {
    let (state, _) = network(0, 5);
    assert_eq!(Round::new(&state, id(9), NONCE, 0).unwrap_err(), NotFresh::NoWitnesses);
    let (mut state, keys) = network(2, 5);
    let before = round(&state);
    state.devices[&id(1)].membership = Membership::Banned;
    assert_eq!(round(&state).witnesses(), [id(2)], "a banned witness is none");
    assert_eq!(before.witnesses().len(), 2);
    drop(keys);
}

proptest::proptest! {
    /// Fresh only when at least w distinct witnesses' heads are contained in our ledger; ledger time is never above the w-th highest word.
    #[test]
    fn fresh_means_a_quorum(said in proptest::collection::vec((1..6u8, 1..14u64, 0..3_000u64), 0..9)) {
        let (state, keys) = network(5, 10);
        let mut round = round(&state);
        let mut known = Vec::new();
        for (witness, size, late) in said {
            let head = state.recent_head(size).map_or(Head { size, ..Head::default() }, |h| h.0);
            let taken = round.take(&state, &statement(&state, &keys, witness, head, WALL + late), WALL, 1_000).is_ok();
            if taken && size <= 10 {
                known.push(WALL + late);
            }
        }
        known.sort_unstable_by(|a, b| b.cmp(a));
        match round.judge(&state, WALL) {
            Verdict::Fresh(fresh) => proptest::prop_assert_eq!(Some(&fresh.ledger_ms), known.get(2)),
            Verdict::Not(NotFresh::Skew { .. }) => proptest::prop_assert!(known[2] > WALL + 2_000),
            Verdict::Not(_) => proptest::prop_assert!(known.len() < 3),
        }
    }
}
