//! Holders among themselves: offers that would take another's place, releases that the ledger takes back half-way, shards that are over.

use super::net::{Net, PATIENCE, eventually, new_key, now_ms};
use super::*;
use mayfly_protocol::apply::DEADLINE_MS_MAX;
use mayfly_protocol::ids::Hash;
use mayfly_protocol::peer::{Cause, Refused, Release, USES_MAX};
use mayfly_protocol::record::{Acceptance, Delete, Key, NetworkPolicy, Record, TargetKind};

fn deal(net: &Net) -> dealer::Dealt {
    let (node, devices) = (net.node(0), net.devices());
    let clocks = node.fresh.clocks().unwrap();
    node.dealer.deal(&node.ledger.view(), &new_key(devices.clone()), &devices, clocks).unwrap()
}

/// What agent `i` says to its share of `dealt`, offered as part of `key`.
fn offer(net: &Net, i: usize, dealt: &dealer::Dealt, key: &Key) -> Result<Acceptance, Refused> {
    let (device, share) = &dealt.shares[i];
    assert_eq!(*device, net.devices()[i]);
    net.node(i).holder.accept(key, &net.devices()[0], share)
}

pub(super) fn release(net: &Net, key: KeyId, uses: u32) -> Release {
    Release {
        key,
        generation: 1,
        epoch: 1,
        purpose: Use::Encrypt,
        uses,
        requester: net.devices()[0],
        head: net.node(1).state().head(),
        nonce: [1; 16],
    }
}

#[test]
fn a_second_offer_of_a_key_destroys_none_of_its_shards() {
    let net = Net::up(3);
    let dealt = deal(&net);
    let acceptances: Vec<_> = (0..3).map(|i| offer(&net, i, &dealt, &dealt.key).unwrap()).collect();
    // The same commitments, so that the shares fit, and something else around them.
    let forged = Key { created_ms: dealt.key.created_ms + 1, ..dealt.key.clone() };
    for (i, acceptance) in acceptances.iter().enumerate() {
        let refused = offer(&net, i, &dealt, &forged).unwrap_err();
        assert_eq!(refused.cause, Cause::Denied, "{refused:?}");
        assert_eq!(offer(&net, i, &dealt, &dealt.key).as_ref(), Ok(acceptance), "the same offer, the same answer");
    }
    let id = dealt.key.id;
    let mut acceptances = acceptances;
    acceptances.sort_by_key(|a| a.device);
    net.node(0).post(&Record::Key(Key { acceptances, ..dealt.key.clone() })).unwrap();
    for (i, node) in net.nodes.iter().flatten().enumerate() {
        eventually("promoted", || node.holdings().shards == 1 && node.holdings().pending_shards == 0);
        let refused = offer(&net, i, &dealt, &forged).unwrap_err();
        assert!(refused.text.contains("on the ledger already"), "{refused:?}");
        fingerprint(node, &id, Use::Encrypt).unwrap();
    }
}

#[test]
fn offers_are_bounded_in_time_and_number() {
    let net = Net::up(2);
    let dealt = deal(&net);
    let far = Key { deadline_ms: now_ms() + DEADLINE_MS_MAX + 60_000, ..dealt.key.clone() };
    let refused = offer(&net, 1, &dealt, &far).unwrap_err();
    assert!(refused.text.contains("too far ahead"), "{refused:?}");
    let refused = (0..20_000).find_map(|_| offer(&net, 1, &dealt, &dealt.key).err()).expect("a bound");
    assert_eq!(refused.cause, Cause::Busy, "{refused:?}");
    assert!(refused.text.contains("offers per second"), "{refused:?}");
    eventually("later it goes on", || offer(&net, 1, &dealt, &dealt.key).is_ok());
}

#[test]
fn a_release_is_judged_again_after_the_disk_has_taken_its_time() {
    let net = Net::up(2);
    let (key, other) = (net.make(|_| ()), net.make(|_| ()));
    let holder = net.node(1).holder.clone();
    let ask = release(&net, key, 1);
    let disk = holder.grants().held_for_test();
    let refused = std::thread::scope(|scope| {
        let released = scope.spawn(|| holder.release(&ask));
        std::thread::sleep(Duration::from_millis(300));
        net.node(0).post(&Delete { target: TargetKind::Key, id: Hash(key.0) }.into()).unwrap();
        net.node(1).replica().wait_effective(|s| s.keys[&key].deleted, PATIENCE).unwrap();
        drop(disk);
        released.join().unwrap().expect_err("the key is deleted")
    });
    assert_eq!(refused.cause, Cause::Denied, "{refused:?}");
    // One assembler does not get everything at once.
    let ask = release(&net, other, USES_MAX);
    let refused = (0..1000).find_map(|_| holder.release(&ask).err()).expect("a bound");
    assert_eq!(refused.cause, Cause::Busy, "{refused:?}");
    assert!(refused.text.contains("20000 uses per second"), "{refused:?}");
}

#[test]
fn shards_that_are_over_are_erased_and_those_of_deleted_keys_after_the_grace() {
    let policy = NetworkPolicy {
        head_age_ms_max: 60_000,
        skew_ms_max: 2_000,
        members_join_unapproved: false,
        dev: false,
        unattested: true,
    };
    let net = Net::with_policy(2, policy);
    let (kept, old) = (net.make(|_| ()), net.make(|_| ()));
    let soon = now_ms() + 2_500;
    let short = net.make(|k| k.valid_until_ms = Some(soon));
    let holder = &net.node(1).holder;
    let shards = holder.shards_for_test();
    eventually("all are in use", || holder.counts() == (3, 0));
    let shard_of = |key: &KeyId| shards.active().into_iter().find(|l| l.key == *key).map(|l| l.shard);
    // As if this device had seen that deletion long ago.
    shards.doomed(&shard_of(&old).unwrap(), 1).unwrap();
    holder.erase_deleted();
    assert!(shard_of(&old).is_some(), "it is not deleted");
    for key in [kept, old] {
        net.node(0).post(&Delete { target: TargetKind::Key, id: Hash(key.0) }.into()).unwrap();
        net.node(1).replica().wait_effective(|s| s.keys[&key].deleted, PATIENCE).unwrap();
    }
    holder.erase_deleted();
    assert!(shard_of(&old).is_none() && shard_of(&kept).is_some(), "24 hours of grace");
    assert!(now_ms() >= soon || shard_of(&short).is_some());
    eventually("the short one is over", || {
        let _ = net.node(1).fresh.round(Duration::from_secs(2));
        holder.erase_deleted();
        shard_of(&short).is_none()
    });
    assert!(now_ms() > soon && shard_of(&kept).is_some());
}
