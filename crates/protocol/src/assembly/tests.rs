use super::*;
use crate::Head;
use crate::record::{KeyPolicy, Origin, Residency, Schedule, ShardRecord, VaultOpening};
use proptest::prelude::*;

fn device(n: u8) -> DeviceId {
    DeviceId([n; 32])
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn key(t: u8, n: u8) -> Key {
    let shard = |i: u8| ShardRecord {
        id: Default::default(),
        device: device(i),
        index: u32::from(i) * 10,
        valid_from_ms: 0,
        valid_until_ms: u64::MAX,
    };
    Key {
        id: KeyId([7; 32]),
        token: Default::default(),
        key_type: "aes:256".into(),
        t,
        generation: 3,
        epoch: 4,
        assemblers: vec![],
        attributes: vec![],
        public_attributes: None,
        origin: Origin::Dealt,
        commitments: vec![],
        shards: (1..=n).map(shard).collect(),
        key_commitment: Default::default(),
        wrapped: None,
        policy: KeyPolicy {
            allow: vec![],
            uses: 0,
            residency: Residency { window_seconds: 0 },
            vault_opening: VaultOpening::Boot,
            iv_modes: 0,
            rate: 0,
        },
        schedule: Schedule { refresh_seconds: 0, refresh_uses: 0 },
        created_ms: 0,
        deadline_ms: 0,
        acceptances: vec![],
    }
}

fn candidates(devices: impl IntoIterator<Item = u8>) -> Vec<Candidate> {
    devices.into_iter().map(|n| Candidate { device: device(n), usual: ms(1) }).collect()
}

fn of(n: u8) -> ShareOf {
    ShareOf { key: KeyId([7; 32]), generation: 3, epoch: 4, index: u32::from(n) * 10 }
}

fn refused(cause: Cause, size: u64) -> Missing {
    Missing::Refused(Refused::new(cause, "no", Head { size, ..Head::default() }))
}

fn start(t: u8, n: u8) -> Assembly<u8> {
    Assembly::new(&key(t, n), &candidates(1..=n), DEADLINE)
}

#[test]
fn asks_exactly_t_in_order_of_preference_then_combines() {
    let mut a: Assembly<u8> = Assembly::new(&key(2, 3), &candidates([3, 1, 2]), DEADLINE);
    assert_eq!(a.next(ms(0)), Step::Ask(device(3)));
    assert_eq!(a.next(ms(0)), Step::Ask(device(1)));
    assert_eq!(a.next(ms(0)), Step::Wait(ms(6)));
    a.share(device(1), &of(1), 1).unwrap();
    assert_eq!(a.next(ms(1)), Step::Wait(ms(6)));
    a.share(device(3), &of(3), 3).unwrap();
    assert_eq!(a.next(ms(1)), Step::Combine);
    assert_eq!(a.shares().iter().map(|s| s.index).collect::<Vec<_>>(), [10, 30]);
    a.fits();
    assert_eq!(a.next(ms(1)), Step::Done);
    assert!(a.shares().is_empty(), "shares are wiped as soon as they are not needed");
}

#[test]
fn a_late_holder_is_backed_up_by_one_more_and_may_still_answer() {
    let mut a = start(2, 3);
    a.next(ms(0));
    a.next(ms(0));
    a.share(device(1), &of(1), 1).unwrap();
    assert_eq!(a.next(ms(5)), Step::Wait(ms(6)));
    assert_eq!(a.next(ms(6)), Step::Ask(device(3)));
    a.share(device(2), &of(2), 2).unwrap();
    assert_eq!(a.next(ms(7)), Step::Combine);
    assert_eq!(a.share(device(3), &of(3), 3), Err(NotTaken::NotNeeded));
    assert_eq!(a.shares().len(), 2);
}

#[test]
fn with_nobody_left_to_ask_it_waits_for_the_late_until_the_deadline() {
    let mut a = start(2, 2);
    a.next(ms(0));
    a.next(ms(0));
    a.share(device(1), &of(1), 1).unwrap();
    assert_eq!(a.next(ms(100)), Step::Wait(DEADLINE));
    let Step::Failed(failure) = a.next(DEADLINE) else { panic!("not failed") };
    assert_eq!(failure.kind, FailureKind::Deadline);
    assert_eq!((failure.needed, failure.have), (2, 1));
    assert_eq!(failure.missing, [(device(2), Missing::Late)]);
}

#[test]
fn too_few_is_known_at_once_and_names_who_was_missing() {
    let mut a = start(2, 3);
    a.next(ms(0));
    a.next(ms(0));
    a.missing(device(1), Missing::Lost("connection refused".into()));
    assert_eq!(a.next(ms(0)), Step::Ask(device(3)));
    a.missing(device(3), refused(Cause::NotFresh, 9));
    let Step::Failed(failure) = a.next(ms(1)) else { panic!("not failed") };
    assert_eq!(failure.kind, FailureKind::TooFew);
    let names: Vec<_> = failure.missing.iter().map(|(d, _)| *d).collect();
    assert_eq!(names, [device(1), device(2), device(3)], "the one not waited for any more is named too");
}

#[test]
fn a_liar_is_named_dropped_and_replaced() {
    let mut a = start(2, 3);
    a.next(ms(0));
    a.next(ms(0));
    a.share(device(1), &of(1), 1).unwrap();
    a.share(device(2), &of(2), 2).unwrap();
    assert_eq!(a.next(ms(1)), Step::Combine);
    a.does_not_fit();
    assert_eq!(a.next(ms(1)), Step::Verify);
    a.judged(&[device(2)]);
    assert_eq!(a.liars(), [device(2)]);
    assert_eq!(a.next(ms(1)), Step::Ask(device(3)));
    a.share(device(3), &of(3), 3).unwrap();
    assert_eq!(a.next(ms(1)), Step::Combine);
    assert!(a.shares().iter().all(|s| s.device != device(2)));
}

#[test]
fn good_shares_of_a_wrong_key_are_the_records_fault() {
    let mut a = start(2, 3);
    a.next(ms(0));
    a.next(ms(0));
    a.share(device(1), &of(1), 1).unwrap();
    a.share(device(2), &of(2), 2).unwrap();
    a.next(ms(1));
    a.does_not_fit();
    a.judged(&[]);
    assert!(matches!(a.next(ms(1)), Step::Failed(Failure { kind: FailureKind::Inconsistent, .. })));
}

#[test]
fn shares_of_something_else_are_not_taken() {
    for (about, why) in [
        (ShareOf { key: KeyId([8; 32]), ..of(1) }, "another key"),
        (ShareOf { generation: 2, ..of(1) }, "another generation"),
        (ShareOf { epoch: 3, ..of(1) }, "another epoch"),
        (ShareOf { index: 20, ..of(1) }, "another index"),
        (ShareOf { index: 0, ..of(1) }, "index zero: it would be the root itself"),
    ] {
        let mut a = start(2, 2);
        a.next(ms(0));
        assert_eq!(a.share(device(1), &about, 1), Err(NotTaken::OtherShard), "{why}");
        assert!(a.shares().is_empty());
        assert!(matches!(a.next(ms(0)), Step::Ask(_)), "{why}");
        assert!(matches!(a.next(ms(0)), Step::Failed(_)), "{why}");
    }
    let mut a = start(2, 3);
    assert_eq!(a.share(device(1), &of(1), 1), Err(NotTaken::NotAsked));
    a.next(ms(0));
    a.share(device(1), &of(1), 1).unwrap();
    assert_eq!(a.share(device(1), &of(1), 1), Err(NotTaken::NotAsked), "twice");
}

#[test]
fn candidates_without_a_shard_or_named_twice_are_left_out() {
    let mut a: Assembly<u8> = Assembly::new(&key(2, 3), &candidates([9, 1, 1, 2]), DEADLINE);
    assert_eq!(a.next(ms(0)), Step::Ask(device(1)));
    assert_eq!(a.next(ms(0)), Step::Ask(device(2)));
    let mut zero = key(2, 2);
    zero.shards[0].index = 0;
    zero.shards[1].index = 0;
    let mut a: Assembly<u8> = Assembly::new(&zero, &candidates([1, 2]), DEADLINE);
    assert!(matches!(a.next(ms(0)), Step::Failed(_)));
}

#[test]
fn refusals_for_a_wrong_epoch_carry_the_newest_head() {
    let mut a = start(3, 3);
    for _ in 0..3 {
        a.next(ms(0));
    }
    a.missing(device(1), refused(Cause::Denied, 99));
    assert_eq!(a.newer_ledger(), None);
    a.missing(device(2), refused(Cause::WrongEpoch, 5));
    a.missing(device(3), refused(Cause::WrongEpoch, 7));
    assert_eq!(a.newer_ledger(), Some(7));
}

#[derive(Debug, Clone)]
enum Event {
    Share(u8),
    Wrong(u8),
    Missing(u8),
    Time(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1..8u8).prop_map(Event::Share),
        (1..8u8).prop_map(Event::Wrong),
        (1..8u8).prop_map(Event::Missing),
        (0..300u64).prop_map(Event::Time),
    ]
}

proptest! {
    /// Whatever happens: only asked devices count, exactly t distinct shares are combined, liars stay out, and it ends.
    #[test]
    fn guards_hold_under_any_events(
        t in 2..5u8,
        n in 5..8u8,
        events in proptest::collection::vec(event(), 0..60),
        liars in proptest::collection::vec(1..8u8, 0..4),
    ) {
        let mut a = start(t, n);
        let mut now = Duration::ZERO;
        let mut asked = Vec::new();
        let mut ended = false;
        for event in events.into_iter().chain([Event::Time(2000)]) {
            match event {
                Event::Share(d) => { let _ = a.share(device(d), &of(d), d); }
                Event::Wrong(d) => { let _ = a.share(device(d), &ShareOf { epoch: 1, ..of(d) }, d); }
                Event::Missing(d) => a.missing(device(d), Missing::Lost("gone".into())),
                Event::Time(passed) => now += ms(passed),
            }
            loop {
                match a.next(now) {
                    Step::Ask(d) => {
                        prop_assert!(!asked.contains(&d), "asked twice");
                        asked.push(d);
                    }
                    Step::Wait(until) => {
                        prop_assert!(until > now && until <= DEADLINE);
                        break;
                    }
                    Step::Combine => {
                        let mut indices: Vec<u32> = a.shares().iter().map(|s| s.index).collect();
                        indices.sort_unstable();
                        indices.dedup();
                        prop_assert_eq!(indices.len(), usize::from(t));
                        prop_assert!(!indices.contains(&0));
                        prop_assert!(a.shares().iter().all(|s| !a.liars().contains(&s.device)));
                        if a.shares().iter().any(|s| liars.contains(&s.value)) { a.does_not_fit() } else { a.fits() }
                    }
                    Step::Verify => {
                        let bad: Vec<_> =
                            a.shares().iter().filter(|s| liars.contains(&s.value)).map(|s| s.device).collect();
                        prop_assert!(!bad.is_empty());
                        a.judged(&bad);
                    }
                    Step::Done | Step::Failed(_) => {
                        ended = true;
                        break;
                    }
                }
            }
            if ended { break }
        }
        prop_assert!(ended, "by the deadline it is over");
    }
}
