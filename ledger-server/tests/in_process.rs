//! Gateway and replicas in one process, over real TLS and WebSocket, on a store in memory that can fail on purpose.

mod common;

use common::*;
use mayfly_ledger_client::{Alarm, Change, EntrySigner, PostError, SubmitError};
use mayfly_ledger_server::config::Limits;
use mayfly_protocol::record::{self, Record, Verifier};
use mayfly_protocol::sync::reject;
use mayfly_protocol::{Entry, Kind};
use std::time::{Duration, Instant};

fn refused(error: PostError) -> String {
    match error {
        PostError::Submit(SubmitError::Refused { rule, .. }) => rule,
        other => panic!("{other}"),
    }
}

fn disputed(error: PostError) -> String {
    match error {
        PostError::Disputed { rule, .. } => rule,
        other => panic!("{other}"),
    }
}

/// An object of token "t".
fn object(n: u8, author: u8) -> record::Object {
    let mut id = [author; 32];
    id[0] = n;
    record::Object { id: mayfly_protocol::ObjectId(id), token: token("t").id, attributes: vec![] }
}

#[test]
fn records_are_acknowledged_and_every_replica_gets_the_same_state() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let a = world.device(&admin, "a", &at);
    let b = world.device(&admin, "b", &at);
    let index = admin.post(token("one"));
    for replica in [&admin.replica, &a.replica, &b.replica] {
        let state = replica.wait_effective(|s| s.size() > index, SOON).unwrap();
        assert!(state.token_by_label("one").is_some());
    }
    assert_eq!(a.replica.tip().head(), b.replica.tip().head());
    assert_eq!(a.replica.tip().head(), admin.replica.effective().head());
    let stored = a.replica.entries(0, 100).unwrap();
    assert_eq!(stored.len() as u64, index + 1);
    assert_eq!(stored[0].2, world.genesis);
}

#[test]
fn the_same_entry_twice_is_one_entry_and_a_broken_rule_is_named() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let admin = world.admin(&[(gateway.address, 0)]);
    admin.post(token("one"));
    let index = admin.post(token("two"));
    admin.replica.wait_tip(|s| s.size() > index, SOON).unwrap();
    let bytes = admin.replica.entries(index, 1).unwrap().remove(0).2;
    assert_eq!(admin.replica.submit(&bytes, SOON), Ok(index));
    assert_eq!(store.size(), index + 1);

    // a label that is taken
    let mut other = token("three");
    other.label = "two".into();
    assert_eq!(refused(admin.author.post(&other.into(), &[], SOON).unwrap_err()), "rule");
    // the refused one took no number
    assert_eq!(admin.post(token("four")), index + 1);

    // another author's number, a bad signature, garbage
    let mut entry = Entry::decode(&bytes).unwrap();
    entry.author_seq += 2;
    let rule = |bytes: &[u8]| match admin.replica.submit(bytes, SOON) {
        Err(SubmitError::Refused { rule, .. }) => rule,
        other => panic!("{other:?}"),
    };
    assert_eq!(rule(&entry.encode()), "author-chain");
    let tip = admin.replica.wait_tip(|s| s.size() > index + 1, SOON).unwrap();
    (entry.author_seq, entry.author_prev) = tip.author_next(&entry.author);
    let invite = record::Invite { seed_key: Verifier(Key::new().public()), not_after_ms: now_ms() + 1000 };
    (entry.kind, entry.payload) = (Kind::Invite as u16, Record::from(invite).encode());
    assert_eq!(rule(&entry.encode()), "signature");
    assert_eq!(rule(b"garbage"), "entry");
    assert_eq!(rule(&vec![0; 40_000]), "entry");
    assert_eq!(store.size(), index + 2);
}

#[test]
fn a_doubtful_append_is_looked_up_and_neither_lost_nor_doubled() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let admin = world.admin(&[(gateway.address, 0)]);
    let mut expected = admin.post(token("first"));
    for (n, fault) in [Fault::StoredUnknown, Fault::LostUnknown, Fault::StoredUnknown].into_iter().enumerate() {
        store.fault(fault);
        expected += 1;
        assert_eq!(admin.post(token(&format!("t{n}"))), expected, "{fault:?}");
        assert_eq!(store.size(), expected + 1, "{fault:?}");
    }
}

#[test]
fn a_full_store_refuses_clearly_loses_nothing_and_recovers() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let admin = world.admin(&[(gateway.address, 0)]);
    let index = admin.post(token("before"));
    store.fault(Fault::ReadOnly);
    // The author sees nothing wrong with it, so it stays in the outbox and goes first, whatever the gateway says meanwhile.
    for label in ["during", "not even signed"] {
        assert_eq!(disputed(admin.author.post(&token(label).into(), &[], SOON).unwrap_err()), reject::READ_ONLY);
    }
    assert!(admin.replica.status().connected);
    store.fault(Fault::None);
    assert_eq!(admin.post(token("after")), index + 2);
    let tip = admin.replica.tip();
    let there = ["before", "during", "not even signed", "after"].map(|label| tip.token_by_label(label).is_some());
    assert_eq!(there, [true, true, false, true]);
}

#[test]
fn entries_that_queue_make_bundles_that_the_store_takes() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let devices = ["a", "b", "c", "d"].map(|name| world.device(&admin, name, &at));
    let index = admin.post(token("t"));
    store.fault(Fault::Slow);
    std::thread::scope(|scope| {
        for (n, device) in devices.iter().enumerate() {
            scope.spawn(move || {
                device.replica.wait_tip(|s| s.size() > index, SOON).unwrap();
                for at in 0..3 {
                    let value = record::Attribute { kind: 1, value: vec![at; 30_000] };
                    let large = record::Object { attributes: vec![value], ..object(at, n as u8) };
                    device.author.post(&large.into(), &[], SOON).unwrap();
                }
            });
        }
    });
    admin.replica.wait_tip(|s| s.objects.len() == 12, SOON).unwrap();
    let inner = store.inner.lock().unwrap();
    assert!(inner.bundles.iter().any(|b| b.end - b.first > 1), "none queued: the test shows nothing");
    assert_eq!(inner.too_large, 0);
}

#[test]
fn a_restarted_gateway_goes_on_and_replicas_resume() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let address = gateway.address;
    let at = [(address, 0)];
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    let changes = device.replica.subscribe();
    gateway.stop();
    eventually("the device notices", || changes.try_iter().any(|c| c == Change::Disconnected));
    let quick = Duration::from_millis(200);
    assert!(matches!(
        admin.author.post(&token("x").into(), &[], quick),
        Err(PostError::Submit(SubmitError::Unavailable(_)))
    ));

    let _gateway = world.gateway_with(store, 0, address, Limits::default());
    let index = admin.post(token("after"));
    device.replica.wait_effective(|s| s.size() > index, SOON).unwrap();
    eventually("the device is connected again", || changes.try_iter().any(|c| c == Change::Connected));

    // the replica's own restart
    let keys = device.keys.clone();
    let head = device.replica.tip().head();
    drop(device);
    let device = Device::open(&world, "a", keys, &at);
    assert_eq!(device.replica.tip().head(), head, "from disk alone");
    device.replica.wait_caught_up(SOON).unwrap();
}

#[test]
fn two_gateways_over_one_store_serve_as_one() {
    let world = World::new();
    let store = Memory::new();
    let first = world.gateway(store.clone());
    let second = world.gateway_with(store.clone(), 1, "127.0.0.1:0".parse().unwrap(), Limits::default());
    let at_first = world.admin(&[(first.address, 0)]);
    let a = world.device(&at_first, "a", &[(first.address, 0)]);
    let b = world.device(&at_first, "b", &[(second.address, 1)]);
    at_first.post(token("t"));
    b.replica.wait_effective(|s| s.token_by_label("t").is_some(), SOON).expect("entries of the first reach the second");
    // Both append at once: the swap fences, the loser reads and goes on.
    std::thread::scope(|scope| {
        for (d, device) in [&a, &b].into_iter().enumerate() {
            scope.spawn(move || {
                for n in 0..30 {
                    device.author.post(&object(n, d as u8).into(), &[], SOON).unwrap();
                }
            });
        }
    });
    for device in [&a, &b] {
        device.replica.wait_effective(|s| s.objects.len() == 60, SOON).unwrap();
    }
    eventually("both have the same", || a.replica.tip().head() == b.replica.tip().head());
}

#[test]
fn replicas_fail_over_between_gateways() {
    let world = World::new();
    let store = Memory::new();
    let first = world.gateway(store.clone());
    let second = world.gateway_with(store.clone(), 1, "127.0.0.1:0".parse().unwrap(), Limits::default());
    let admin = world.admin(&[(first.address, 0), (second.address, 1)]);
    admin.post(token("one"));
    drop(first);
    admin.post(token("two"));
    assert_eq!(admin.replica.status().gateway, Some(second.address.to_string()));
}

#[test]
fn strangers_wrong_networks_and_wrong_pins_get_nothing() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    admin.post(token("one"));

    let error_of = |world: &World, admin: &World, at: &[(std::net::SocketAddr, usize)]| {
        let _ = admin;
        let stranger = world.admin(at);
        let mut error = None;
        eventually("the connection is refused", || {
            error = stranger.replica.status().last_error;
            error.is_some()
        });
        assert_eq!(stranger.replica.tip().size(), 0);
        error.unwrap()
    };
    let mut stranger = World::new();
    let error = error_of(&stranger, &world, &at);
    assert!(error.contains("pinned"), "another network's gateway key: {error}");
    stranger.gateway_keys = world.gateway_keys.clone();
    let error = error_of(&stranger, &world, &at);
    assert!(error.contains("serves network"), "another network: {error}");
    stranger.network = world.network;
    stranger.genesis = world.genesis.clone();
    let error = error_of(&stranger, &world, &at);
    assert!(error.contains("no device, invitation or administrator"), "a key that nobody knows: {error}");
    let error = error_of(&world, &world, &[(gateway.address, 1)]);
    assert!(error.contains("pinned"), "the other gateway's key: {error}");
}

#[test]
fn a_banned_device_is_cut_off_at_once_and_stays_out() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    device.replica.wait_caught_up(SOON).unwrap();
    let ban = record::Ban { device: device.id(), reason: "test".into() };
    admin.post(ban);
    eventually("the device is told", || {
        device.replica.status().last_error.is_some_and(|e| e.contains("the device is banned"))
    });
    assert!(!device.replica.status().connected);
}

#[test]
fn a_forked_ledger_stops_the_replica_for_good_and_keeps_the_proof() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    let address = gateway.address;
    let fork = store.copy();
    let index = admin.post(token("one side"));
    device.replica.wait_tip(|s| s.size() > index, SOON).unwrap();
    let head = device.replica.tip().head();
    gateway.stop();

    let gateway = world.gateway_with(fork, 0, address, Limits::default());
    let elsewhere = world.admin(&at);
    elsewhere.post(token("other side"));
    elsewhere.post(token("other side, longer"));
    let alarm = || device.replica.status().alarm;
    eventually("the device sees the fork", || matches!(alarm(), Some(Alarm::Fork { .. })));
    let Some(Alarm::Fork { ours, proof }) = alarm() else { panic!() };
    assert_eq!(ours, head);
    let (theirs, _) =
        mayfly_protocol::sync::verify_note(&elsewhere.replica.tip(), &world.network, &proof.theirs).unwrap();
    assert_eq!(theirs.size, ours.size);
    assert_ne!(theirs.root, ours.root);
    assert_eq!(device.replica.tip().head(), head, "nothing was overwritten");

    // Also after a restart, also when the right ledger is back.
    let keys = device.keys.clone();
    drop(device);
    drop(gateway);
    let _gateway = world.gateway_with(store, 0, address, Limits::default());
    let device = Device::open(&world, "a", keys, &at);
    eventually("it stays stopped", || matches!(device.replica.status().alarm, Some(Alarm::Fork { .. })));
    std::thread::sleep(Duration::from_millis(200));
    assert!(!device.replica.status().connected);
}

#[test]
fn a_ledger_that_was_set_back_is_not_followed() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let at = [(gateway.address, 0)];
    let address = gateway.address;
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    let older = store.copy();
    let index = admin.post(token("one"));
    device.replica.wait_tip(|s| s.size() > index, SOON).unwrap();
    gateway.stop();
    let gateway = world.gateway_with(older, 0, address, Limits::default());
    eventually("the device sees it", || matches!(device.replica.status().alarm, Some(Alarm::Behind { .. })));
    assert_eq!(device.replica.tip().size(), index + 1);
    gateway.stop();
    let _gateway = world.gateway_with(store, 0, address, Limits::default());
    device.replica.wait_caught_up(SOON).unwrap();
    assert_eq!(device.replica.status().alarm, None);
}

#[test]
fn a_token_from_long_ago_is_resumed_and_one_of_another_past_is_found_out() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let address = gateway.address;
    let at = [(address, 0)];
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    let fork = store.copy();
    let head = admin.replica.wait_tip(|s| s.size() > 3, SOON).unwrap().head();
    gateway.stop();
    // More entries than any state remembers heads of, in bundles of their own; and the same number of others elsewhere.
    world.fill(&store, 3000, "one");
    world.fill(&fork, 3000, "other");
    let gateway = world.gateway_with(store.clone(), 0, address, Limits { ring_mib: 1, ..Limits::default() });
    let state = device.replica.wait_tip(|s| s.size() == head.size + 3000, SOON).unwrap();
    assert_eq!(state.size(), store.size());
    gateway.stop();

    world.fill(&fork, 2000, "other still");
    let _gateway = world.gateway_with(fork, 0, address, Limits::default());
    eventually("the device sees the fork", || matches!(device.replica.status().alarm, Some(Alarm::Fork { .. })));
    assert_eq!(device.replica.tip().head(), state.head());
}

#[test]
fn heads_take_effect_with_a_quorum_and_not_without() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let [a, b, c] = ["a", "b", "c"].map(|name| world.device(&admin, name, &at));
    world.witnesses(&admin, &[(&a, true), (&b, true), (&c, true)]);
    let index = admin.post(token("three there"));
    admin.replica.wait_effective(|s| s.size() > index, SOON).unwrap();

    let (c_keys, b_keys) = (c.keys.clone(), b.keys.clone());
    drop(c);
    let index = admin.post(token("two there"));
    admin.replica.wait_effective(|s| s.size() > index, SOON).unwrap();
    drop(b);
    let index = admin.post(token("one there"));
    a.replica.wait_tip(|s| s.size() > index, SOON).unwrap();
    assert!(a.replica.wait_effective(|s| s.size() > index, Duration::from_millis(300)).is_err());

    let b = Device::open(&world, "b", b_keys, &at);
    for replica in [&a.replica, &b.replica, &admin.replica] {
        replica.wait_effective(|s| s.size() > index, SOON).expect("two are there again");
    }
    drop(c_keys);
}

#[test]
fn a_new_replica_follows_every_change_of_witnesses_also_of_those_who_left() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let at = [(gateway.address, 0)];
    let address = gateway.address;
    let admin = world.admin(&at);
    let [a, b, c] = ["a", "b", "c"].map(|name| world.device(&admin, name, &at));
    world.witnesses(&admin, &[(&a, true), (&b, true), (&c, true), (&a, false), (&b, false)]);
    drop((a, b));
    let index = admin.post(token("only c signs"));
    admin.replica.wait_effective(|s| s.size() > index, SOON).unwrap();
    let fresh = world.admin(&at);
    let state = fresh.replica.wait_effective(|s| s.size() > index, SOON).unwrap();
    assert_eq!(state.witnesses(), vec![c.id()]);

    // The gateway finds them again after a restart, and so does whoever comes new then; nobody signs anything meanwhile.
    drop((c, fresh));
    gateway.stop();
    let _gateway = world.gateway_with(store, 0, address, Limits::default());
    let fresh = world.admin(&at);
    fresh.replica.wait_effective(|s| s.size() > index, SOON).unwrap();
}

#[test]
fn many_writers_share_bundles_and_all_of_it_arrives() {
    let world = World::new();
    let store = Memory::new();
    let gateway = world.gateway(store.clone());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let devices: Vec<Device> = ["a", "b", "c"].map(|name| world.device(&admin, name, &at)).into();
    world.witnesses(&admin, &devices.iter().map(|d| (d, true)).collect::<Vec<_>>());
    admin.post(token("t"));
    let last: Vec<u64> = std::thread::scope(|scope| {
        let tasks: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(d, device)| {
                scope.spawn(move || {
                    (0..50).map(|n| device.author.post(&object(n, d as u8).into(), &[], SOON).unwrap()).last().unwrap()
                })
            })
            .collect();
        tasks.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let size = last.into_iter().max().unwrap() + 1;
    for device in &devices {
        let state = device.replica.wait_effective(|s| s.size() >= size, SOON).unwrap();
        assert_eq!(state.objects.len(), 150);
    }
}

#[test]
fn an_outbox_is_settled_whatever_became_of_its_entry() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let index = admin.post(token("stored"));
    admin.replica.wait_tip(|s| s.size() > index, SOON).unwrap();
    let stored = admin.replica.entries(index, 1).unwrap().remove(0).2;
    let path = world.dir.path().join("admin").join(format!("{}.entry", admin.author.id()));
    let settle = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let settled = world.admin(&at).author.settle(SOON).unwrap();
        assert!(!path.exists());
        settled
    };
    assert_eq!(settle(&stored), Some(index), "it was appended, the answer was lost");
    assert_eq!(settle(&stored[..stored.len() / 2]), None, "torn");
    assert_eq!(settle(&[0; 40_000]), None, "larger than any entry");
    let mut refused = Entry::decode(&stored).unwrap();
    refused.author_seq += 7;
    assert_eq!(settle(&refused.encode()), None, "refused");

    let mut fresh = Entry::decode(&stored).unwrap();
    (fresh.author_seq, fresh.author_prev) = admin.replica.tip().author_next(&fresh.author);
    fresh.payload = Record::from(token("never sent")).encode();
    fresh.signatures.clear();
    fresh.sign_with(&world.admin.public(), |m| EntrySigner::sign(&world.admin, m)).unwrap();
    assert_eq!(settle(&fresh.encode()), Some(index + 1), "saved, but not sent");
    admin.replica.wait_tip(|s| s.size() > index + 1, SOON).unwrap();
    assert_eq!(admin.post(token("next")), index + 2);
}

#[test]
#[ignore = "a measurement; run with --ignored --nocapture"]
fn measure_submit_to_effective_with_three_witnesses() {
    let world = World::new();
    let gateway = world.gateway(Memory::new());
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let devices = ["a", "b", "c"].map(|name| world.device(&admin, name, &at));
    world.witnesses(&admin, &devices.each_ref().map(|d| (d, true)));
    let mut acks = Vec::new();
    let mut times = Vec::new();
    for n in 0..300 {
        let start = Instant::now();
        let index = admin.post(token(&format!("token {n}")));
        acks.push(start.elapsed());
        devices[0].replica.wait_effective(|s| s.size() > index, SOON).unwrap();
        times.push(start.elapsed());
    }
    for (what, mut times) in [("post to ack", acks), ("post to effective", times)] {
        times.sort();
        println!("{what}: p50 {:?} p90 {:?} p99 {:?}", times[150], times[270], times[297]);
    }
}
