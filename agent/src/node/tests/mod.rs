//! The node as a whole: a gateway, real vaults, real peers.

mod ahead;
mod attestation;
mod chips;
mod figures;
mod holders;
mod net;
mod vaults;

use super::*;
use mayfly_protocol::record::{Ban, Delete, Residency, TargetKind};
use mayfly_protocol::rules::KeyType;
use net::{Net, PATIENCE, eventually, name, new_key, secret};

/// What an application would see of a key, in a form that may leave.
fn fingerprint(node: &Node, key: &KeyId, purpose: Use) -> Result<[u8; 32], KeyError> {
    node.with_key(key, purpose, |k| mayfly_crypto::enc::sha256(k.bytes()))
}

#[test]
fn a_key_is_the_same_everywhere_and_survives_any_one_agent() {
    let mut net = Net::up(3);
    let key = net.make(|_| ());
    let first = fingerprint(net.node(0), &key, Use::Encrypt).unwrap();
    for node in net.nodes.iter().flatten() {
        assert_eq!(fingerprint(node, &key, Use::Decrypt).unwrap(), first);
    }
    net.node(1)
        .with_key(&key, Use::Iv, |k| {
            assert_eq!((k.bytes().len(), k.iv_key().is_some()), (32, true));
            let report = k.report();
            assert_eq!((report.t, report.shares.len(), report.liars.len()), (2, 2, 0));
            assert!(report.shares.iter().any(|s| s.own));
        })
        .unwrap();

    net.stop(2);
    assert_eq!(fingerprint(net.node(0), &key, Use::Encrypt).unwrap(), first);
    net.stop(1);
    let began = Instant::now();
    let error = fingerprint(net.node(0), &key, Use::Encrypt).unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(2500), "{:?}", began.elapsed());
    assert_eq!(error.kind, KeyErrorKind::TooFewHolders, "{error}");
    let mut missing: Vec<_> = error.devices.iter().map(|m| m.device.as_str()).collect();
    missing.sort_unstable();
    assert_eq!(missing, [name(1), name(2)]);

    net.start(1);
    net.wait_ready();
    eventually("agent 2 is back", || fingerprint(net.node(0), &key, Use::Encrypt) == Ok(first));
    assert_eq!(fingerprint(net.node(1), &key, Use::Encrypt).unwrap(), first, "shards outlive a restart");
}

#[test]
fn bytes_of_their_own_are_wrapped_and_come_back() {
    let net = Net::up(2);
    let value: Vec<u8> = (0..138).collect();
    let key = net.make(|k| {
        k.key_type = KeyType::EcP256;
        k.material = Material::Wrapped(secret(&value));
        k.public_attributes = Some(vec![]);
    });
    for node in net.nodes.iter().flatten() {
        assert_eq!(fingerprint(node, &key, Use::Decrypt).unwrap(), mayfly_crypto::enc::sha256(&value));
    }
    let record = net.node(0).state().keys[&key].record.clone();
    let wrapped = record.wrapped.as_ref().unwrap();
    assert!(!wrapped.windows(16).any(|w| w == &value[..16]));
    assert_eq!(record.acceptances.len(), 2, "all of n when n = t");
}

#[test]
fn policy_assemblers_and_validity_are_judged_by_holders_too() {
    let net = Net::up(3);
    let only_first = vec![net.devices()[0]];
    let key = net.make(|k| k.assemblers = Some(only_first));
    assert!(fingerprint(net.node(0), &key, Use::Encrypt).is_ok());
    assert_eq!(fingerprint(net.node(0), &key, Use::Sign).unwrap_err().kind, KeyErrorKind::Denied);
    assert_eq!(fingerprint(net.node(1), &key, Use::Encrypt).unwrap_err().kind, KeyErrorKind::Denied);
    assert_eq!(fingerprint(net.node(0), &KeyId([1; 32]), Use::Encrypt).unwrap_err().kind, KeyErrorKind::UnknownKey);
    // The second agent lies to itself and asks the third one all the same.
    let ask = release(net.node(1), key);
    let reply = ask_one(net.node(1), net.devices()[2], ask.clone());
    assert!(matches!(&reply, peers_test::Reply::Refused(r) if r.text.contains("not an assembler")), "{reply:?}");
    // Nor does it help to speak for another.
    let reply =
        ask_one(net.node(1), net.devices()[2], mayfly_protocol::peer::Release { requester: net.devices()[0], ..ask });
    assert!(matches!(&reply, peers_test::Reply::Refused(r) if r.text.contains("another requester")), "{reply:?}");

    let soon = net::now_ms() + 3_000;
    let key = net.make(|k| k.valid_until_ms = Some(soon));
    assert!(fingerprint(net.node(0), &key, Use::Encrypt).is_ok());
    eventually("the shards are over", || net::now_ms() > soon);
    assert_eq!(fingerprint(net.node(0), &key, Use::Encrypt).unwrap_err().kind, KeyErrorKind::TooFewHolders);
}

mod peers_test {
    pub use mayfly_protocol::peer::Reply;
}

fn ask_one(node: &Node, device: DeviceId, ask: mayfly_protocol::peer::Release) -> mayfly_protocol::peer::Reply {
    let mut exchange = peers::Exchange::new(&node.peers);
    exchange.ask(device, Box::new(move |_| Ok(mayfly_protocol::peer::Ask::Release(ask.clone()))));
    let mut got = None;
    exchange.wait(Instant::now() + PATIENCE, |_, outcome| {
        if let peers::Outcome::Answer(reply, _) = outcome {
            got = Some(reply);
        }
    });
    got.expect("an answer")
}

#[test]
fn keys_work_on_while_the_ledger_is_down_but_no_new_ones_are_made() {
    let mut net = Net::up(3);
    let key = net.make(|_| ());
    net.stop_gateway();
    for node in net.nodes.iter().flatten() {
        fingerprint(node, &key, Use::Encrypt).unwrap();
        node.fresh.round(Duration::from_secs(2)).unwrap();
    }
    let error = net.node(0).create_key(new_key(net.devices())).unwrap_err();
    assert_eq!(error.kind, KeyErrorKind::Ledger, "{error}");
    eventually("shards wait for their key", || net.node(1).holdings().pending_shards == 1);
    net.start_gateway();
    eventually("it goes on", || net.node(0).replica().status().connected);
    // What was left in the outbox is settled before the next record: the first key may have come to be, never half.
    net.make(|_| ());
    let keys = net.node(1).state().keys.len();
    eventually("as many shards as keys", || net.node(1).holdings().shards == keys);
}

#[test]
fn a_ban_takes_effect_at_once_and_before_the_ledger_has_it() {
    let mut net = Net::up(4);
    let key = net.make(|k| k.policy.residency = Residency { window_seconds: 600 });
    let victim = net.devices()[3];
    fingerprint(net.node(3), &key, Use::Encrypt).unwrap();
    assert_eq!(net.node(3).holdings().windows, 1);
    net.stop_gateway();
    let ban = net.signed(Ban { device: victim, reason: "stolen".into() });
    net.node(0).ban_on_sight(&ban).unwrap();
    for i in 0..3 {
        let node = net.node(i).clone();
        eventually("gossip", || node.ledger.alarms().banned(&victim));
        fingerprint(&node, &key, Use::Encrypt).unwrap();
        assert!(peers::Directory::session_of(&*node.ledger, &victim).is_none());
    }
    // Nobody answers the victim any more: what it has in a window lasts no longer than its last round of freshness.
    assert!(net.node(3).fresh.round(Duration::from_secs(2)).is_err());
    eventually("connections of the victim end", || net.node(0).server.callers().iter().all(|c| c.device != victim));
    assert!(ask_is_refused(net.node(3), net.devices()[0], key));

    // A restart does not forget, and the ledger takes the record when it is back.
    net.stop(1);
    net.start(1);
    assert!(net.node(1).ledger.alarms().banned(&victim));
    net.start_gateway();
    net.node(0).replica().wait_effective(|s| s.devices[&victim].is_banned(), PATIENCE).unwrap();
    eventually("settled", || !net.node(0).ledger.alarms().banned(&victim));
    assert!(net.node(0).ban_on_sight(&ban).is_err(), "the ledger has it");
}

/// What this node asks a holder for one encryption.
fn release(node: &Node, key: KeyId) -> mayfly_protocol::peer::Release {
    mayfly_protocol::peer::Release {
        key,
        generation: 1,
        epoch: 1,
        purpose: Use::Encrypt,
        uses: 1,
        requester: node.device(),
        head: node.state().head(),
        nonce: [1; 16],
    }
}

fn ask_is_refused(node: &Node, device: DeviceId, key: KeyId) -> bool {
    let ask = release(node, key);
    let mut exchange = peers::Exchange::new(&node.peers);
    exchange.ask(device, Box::new(move |_| Ok(mayfly_protocol::peer::Ask::Release(ask.clone()))));
    let mut refused = true;
    exchange.wait(Instant::now() + PATIENCE, |_, outcome| {
        refused = !matches!(outcome, peers::Outcome::Answer(mayfly_protocol::peer::Reply::Released(_), _));
    });
    refused
}

#[test]
fn a_window_keeps_the_key_and_ends_with_its_time_and_with_the_key() {
    let net = Net::up(2);
    let window = |seconds| net.make(|k| k.policy.residency = Residency { window_seconds: seconds });
    let (short, long) = (window(1), window(600));
    let node = net.node(0);
    let (first, again) = (fingerprint(node, &short, Use::Encrypt), fingerprint(node, &short, Use::Decrypt));
    assert_eq!(first.unwrap(), again.unwrap());
    assert_eq!(node.holdings().windows, 1);
    node.with_key(&long, Use::Iv, |k| assert!(k.iv_key().is_some())).unwrap();
    assert_eq!(node.holdings().windows, 1, "a key for IVs is not kept");
    fingerprint(node, &long, Use::Encrypt).unwrap();
    assert_eq!(node.holdings().windows, 2);
    eventually("the short window is wiped without being asked for", || node.holdings().windows == 1);
    node.post(&Delete { target: TargetKind::Key, id: mayfly_protocol::ids::Hash(long.0) }.into()).unwrap();
    assert_eq!(fingerprint(node, &long, Use::Encrypt).unwrap_err().kind, KeyErrorKind::Denied);
    eventually("the window of a deleted key is wiped", || node.holdings().windows == 0);
    eventually("its shard is erased", || node.holdings().shards == 1);
}

#[test]
fn a_lying_holder_is_named_and_another_one_asked() {
    let mut net = Net::up(3);
    let key = net.make(|_| ());
    let good = fingerprint(net.node(0), &key, Use::Encrypt).unwrap();
    // The second agent's shard becomes another one, well sealed: a holder that lies.
    let liar = net.node(1);
    eventually("the second agent has its shard", || !liar.holder.shards_for_test().active().is_empty());
    let label = liar.holder.shards_for_test().active().remove(0);
    let wrong = mayfly_secmem::Secret::<64>::new_with(|s| (s[0], s[32]) = (5, 6)).unwrap();
    let shards = liar.holder.shards_for_test();
    shards.erase(&label.shard).unwrap();
    shards.accept(&label, &wrong).unwrap();
    shards.promote(&label.shard).unwrap();
    // The third agent's shard is fine: whoever asks the liar first still gets the key.
    let node = net.node(0);
    let mut seen = false;
    for _ in 0..20 {
        let (bytes, liars) = node
            .with_key(&key, Use::Encrypt, |k| (mayfly_crypto::enc::sha256(k.bytes()), k.report().liars.clone()))
            .unwrap();
        assert_eq!(bytes, good);
        assert!(liars.iter().all(|l| *l == name(1)));
        seen |= !liars.is_empty();
        if seen {
            break;
        }
        node.peers.distrust(&net.devices()[2], "so that the other one is asked first");
    }
    assert!(seen, "the liar was asked");
    net.stop(2);
    let error = fingerprint(net.node(0), &key, Use::Encrypt).unwrap_err();
    let said = error.devices.iter().find(|m| m.device == name(1)).expect("named");
    assert!(said.reason.contains("does not fit"), "{error}");
}

#[test]
fn a_damaged_shard_is_an_error_with_a_sentence_and_the_others_go_on() {
    let mut net = Net::up(3);
    let key = net.make(|_| ());
    net.stop(1);
    flip_a_bit(&net.dir.path().join(name(1)).join("data/shards.redb"));
    net.start(1);
    net.wait_ready();
    fingerprint(net.node(0), &key, Use::Encrypt).unwrap();
    assert!(fingerprint(net.node(1), &key, Use::Encrypt).is_ok(), "two others hold good ones");
    net.stop(2);
    let error = fingerprint(net.node(1), &key, Use::Encrypt).unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
}

/// Flips a bit in the sealed bytes of the one active shard, through the store's own file format.
fn flip_a_bit(path: &std::path::Path) {
    use redb::{ReadableDatabase, ReadableTable};
    const ACTIVE: redb::TableDefinition<'_, &[u8; 32], &[u8]> = redb::TableDefinition::new("active");
    let db = redb::Database::open(path).unwrap();
    let read = db.begin_read().unwrap();
    let (id, mut bytes) = {
        let table = read.open_table(ACTIVE).unwrap();
        let row = table.iter().unwrap().next().unwrap().unwrap();
        (*row.0.value(), row.1.value().to_vec())
    };
    *bytes.last_mut().unwrap() ^= 1;
    let write = db.begin_write().unwrap();
    write.open_table(ACTIVE).unwrap().insert(&id, bytes.as_slice()).unwrap();
    write.commit().unwrap();
}

#[test]
fn grants_are_posted_and_cover_every_release() {
    let net = Net::up(2);
    let key = net.make(|_| ());
    for _ in 0..100 {
        fingerprint(net.node(0), &key, Use::Encrypt).unwrap();
    }
    let holder = net.node(1);
    let clerk = upkeep::Clerk {
        device: holder.device(),
        ledger: holder.ledger.clone(),
        grants: holder.holder.grants().clone(),
        records: holder.records.clone(),
    };
    assert_eq!(holder.holdings().unposted_grants, 2, "64 uses, then 256");
    clerk.post(PATIENCE);
    assert_eq!(holder.holdings().unposted_grants, 0);
    let posted = holder.replica().tip().grants[&holder.device()];
    assert_eq!(posted, 2);
}

#[test]
fn operations_that_wait_together_share_an_assembly_and_all_are_counted() {
    let net = Net::up(2);
    let key = net.make(|_| ());
    let node = net.node(0);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..25 {
                    fingerprint(node, &key, Use::Encrypt).unwrap();
                }
            });
        }
    });
    let granted: u32 = net.node(1).holder.grants().unposted(0).iter().map(|g| g.uses_max).sum();
    assert!(granted >= 400, "every use was granted: {granted}");
}

#[test]
fn a_second_agent_on_the_same_folder_is_refused() {
    let net = Net::up(1);
    let error = Node::start(net::config(net.dir.path(), 0), Shutdown::default()).unwrap_err();
    assert!(error.to_string().contains("another agent uses"), "{error}");
}
