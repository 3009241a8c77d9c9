//! Who may say what: one small network, and every rule broken once.

use super::*;
use crate::ids::{EntryId, InviteId};
use crate::record::{
    Administrator, Approve, Ban, Delegate, Delete, DeviceRole, Genesis, Grant, GrantItem, Invite, Join, NetworkPolicy,
    Object, Role, Unban, Verifier,
};
use ed25519_zebra::{SigningKey, VerificationKey};
use proptest::prelude::*;

mod vaults;

/// Time of the first entry.
const T0: u64 = 1_790_000_000_000;

fn key(seed: u8) -> SigningKey {
    SigningKey::from([seed; 32])
}

fn public(key: &SigningKey) -> PublicKey {
    PublicKey::new(mayfly_crypto::sign::Alg::Ed25519, VerificationKey::from(key).as_ref()).unwrap()
}

fn id(key: &SigningKey) -> [u8; 32] {
    public_key_id(&public(key))
}

/// A network with one administrator (key 1), two members with sessions (identities 11, 12; sessions 21, 22) and a token.
struct World {
    state: State,
    log: Vec<(u64, Vec<u8>)>,
}

const ADMIN: u8 = 1;
const INVITE: u8 = 5;

impl World {
    fn genesis() -> World {
        World::genesis_with(|_| ())
    }

    fn genesis_with(change: impl FnOnce(&mut NetworkPolicy)) -> World {
        let mut world = World { state: State::default(), log: Vec::new() };
        let mut genesis = Genesis {
            name: "test".into(),
            created_ms: T0,
            administrators: vec![Administrator { name: "root".into(), key: Verifier(public(&key(ADMIN))) }],
            administrators_needed: 1,
            gateways: vec![],
            policy: NetworkPolicy {
                head_age_ms_max: 60_000,
                skew_ms_max: 10_000,
                members_join_unapproved: false,
                dev: false,
                unattested: true,
            },
            nonce: [7; 32],
        };
        change(&mut genesis.policy);
        world.post(ADMIN, &[ADMIN], genesis).unwrap();
        world
    }

    fn new() -> World {
        let mut world = World::genesis();
        for device in [11, 12] {
            world.enroll(device);
            world.post(ADMIN, &[ADMIN], Approve { device: device_id(device) }).unwrap();
            let roles = vec![DeviceRole::Holder, DeviceRole::Witness];
            world.post(ADMIN, &[ADMIN], Role { device: device_id(device), roles }).unwrap();
            world.post(device, &[device, device + 10], delegate(device + 10, 1)).unwrap();
        }
        world.post(ADMIN, &[ADMIN], token("t")).unwrap();
        world
    }

    fn enroll(&mut self, device: u8) {
        let seed = device + 40;
        let not_after_ms = T0 + 1_000_000;
        self.post(ADMIN, &[ADMIN], Invite { seed_key: Verifier(public(&key(seed))), not_after_ms }).unwrap();
        self.post(device, &[device, seed], join(device, seed)).unwrap();
    }

    /// The entry by `author` (seed of its identity key), signed by the keys with these seeds.
    fn entry(&self, author: u8, signers: &[u8], record: impl Into<Record>) -> Entry {
        let record = record.into();
        let author = AuthorId(id(&key(author)));
        let (author_seq, author_prev) = self.state.author_next(&author);
        let mut entry = Entry {
            version: crate::entry::VERSION,
            network: self.state.network,
            kind: record.kind() as u16,
            author,
            author_seq,
            author_prev,
            head: self.state.head(),
            payload: record.encode(),
            signatures: vec![],
        };
        if self.state.size() == 0 {
            entry.head = Head::default();
        }
        sign(&mut entry, signers);
        entry
    }

    fn post(&mut self, author: u8, signers: &[u8], record: impl Into<Record>) -> Result<(), Refusal> {
        let entry = self.entry(author, signers, record);
        self.take(&entry)
    }

    fn take(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let (time, bytes) = (T0 + self.log.len() as u64, entry.encode());
        let before = (self.state.head(), self.state.clone());
        match self.state.apply(time, &bytes) {
            Ok(_) => self.log.push((time, bytes)),
            Err(refusal) => {
                assert_eq!(self.state.head(), before.0, "a refused record changes nothing");
                assert_eq!(self.state.authors, before.1.authors, "a refused record takes no number");
                return Err(refusal);
            }
        }
        Ok(())
    }

    fn refuses(&mut self, author: u8, signers: &[u8], record: impl Into<Record>, code: &str) {
        let record = record.into();
        let kind = record.kind();
        let refusal = self.post(author, signers, record).expect_err(&format!("{kind:?} must be refused"));
        assert_eq!(refusal.code(), code, "{kind:?}: {refusal}");
    }
}

fn sign(entry: &mut Entry, signers: &[u8]) {
    for signer in signers {
        let key = key(*signer);
        let done: Result<(), ()> = entry.sign_with(&public(&key), |m| Ok(key.sign(m).to_bytes().to_vec()));
        done.unwrap();
    }
}

fn device_id(seed: u8) -> DeviceId {
    DeviceId(id(&key(seed)))
}

fn join(device: u8, seed: u8) -> Join {
    Join {
        name: format!("d{device}"),
        identity: Verifier(public(&key(device))),
        invite: InviteId(id(&key(seed))),
        vault: "file".into(),
        software_only: true,
    }
}

fn delegate(session: u8, counter: u64) -> Delegate {
    Delegate {
        session_key: Verifier(public(&key(session))),
        start_counter: counter,
        vault_generation: 1,
        not_after_ms: T0 + SESSION_MS_MAX,
        addresses: vec!["127.0.0.1:1".into()],
        quote: None,
    }
}

fn token(label: &str) -> record::Token {
    let id = TokenId(mayfly_crypto::enc::hash("test", &[label.as_bytes()]));
    record::Token { id, label: label.into(), devices: vec![], creators: vec![], allow: vec![] }
}

fn object(token_label: &str) -> Object {
    let attributes = vec![Attribute { kind: 0, value: vec![1] }, Attribute { kind: 3, value: b"x".to_vec() }];
    Object { id: ObjectId([9; 32]), token: token(token_label).id, attributes }
}

#[test]
fn an_ordinary_life_is_accepted_and_replays_to_the_same_state() {
    let mut world = World::new();
    world.post(11, &[21], object("t")).unwrap();
    let set = vec![Attribute { kind: 3, value: b"y".to_vec() }];
    world.post(12, &[22], record::Attributes { target: TargetKind::Object, id: Hash([9; 32]), set }).unwrap();
    assert_eq!(world.state.objects[&ObjectId([9; 32])].attributes[1].value, b"y");
    world.post(12, &[22], Delete { target: TargetKind::Object, id: Hash([9; 32]) }).unwrap();
    assert!(world.state.objects.is_empty());
    world.post(ADMIN, &[ADMIN], Ban { device: device_id(12), reason: "stolen".into() }).unwrap();
    assert_eq!(world.state.active_witnesses(), vec![device_id(11)]);

    let mut replica = State::default();
    for (time, bytes) in &world.log {
        replica.apply(*time, bytes).unwrap();
    }
    assert_eq!(replica.head(), world.state.head());
    assert_eq!(replica.devices, world.state.devices);
}

#[test]
fn every_kind_needs_its_signer() {
    let mut w = World::new();
    let invite = || Invite { seed_key: Verifier(public(&key(INVITE))), not_after_ms: T0 + 1000 };
    w.refuses(ADMIN, &[2], invite(), "signature");
    w.refuses(11, &[21], invite(), "authority");
    w.refuses(11, &[21], Approve { device: device_id(12) }, "authority");
    w.refuses(11, &[11], Role { device: device_id(11), roles: vec![DeviceRole::PcrApprover] }, "authority");
    w.refuses(11, &[21], token("u"), "authority");
    w.refuses(11, &[21], Ban { device: device_id(12), reason: String::new() }, "authority");
    w.refuses(11, &[21], Unban { device: device_id(12) }, "authority");
    w.refuses(11, &[22], object("t"), "signature");
    w.refuses(11, &[11], object("t"), "signature");
    w.refuses(33, &[33], object("t"), "authority");
    w.refuses(11, &[21, 31], delegate(31, 2), "signature");
    w.refuses(11, &[11], delegate(31, 2), "signature");
    w.refuses(33, &[33], delegate(31, 2), "authority");
    w.refuses(11, &[22], vaults::attest(12, 1), "signature");
    w.refuses(11, &[11], vaults::attest(12, 1), "signature");
    w.refuses(33, &[33], vaults::attest(12, 1), "authority");
    w.refuses(ADMIN, &[21], vaults::attest(12, 1), "authority");
    w.refuses(11, &[21], vaults::generation(2), "signature");
    w.refuses(33, &[33], vaults::generation(2), "authority");
    w.refuses(ADMIN, &[ADMIN], vaults::generation(2), "authority");
    w.refuses(11, &[21], vaults::approval(12), "authority");
    w.refuses(ADMIN, &[ADMIN], vaults::approval(12), "authority");
    w.refuses(11, &[22], vaults::alert(12, "x"), "signature");
    w.refuses(11, &[11], vaults::alert(12, "x"), "signature");
    w.refuses(33, &[33], vaults::alert(12, "x"), "authority");
    w.refuses(ADMIN, &[ADMIN], vaults::alert(12, "x"), "authority");
    w.refuses(11, &[21], Genesis { ..(*w.state.genesis.clone().unwrap()).clone() }, "rule");
}

#[test]
fn join_needs_identity_and_invitation_once_and_in_time() {
    let mut w = World::new();
    let not_after_ms = T0 + 1_000_000;
    w.post(ADMIN, &[ADMIN], Invite { seed_key: Verifier(public(&key(60))), not_after_ms }).unwrap();
    w.refuses(13, &[13], join(13, 60), "signature");
    w.refuses(13, &[60], join(13, 60), "signature");
    w.refuses(14, &[13, 60], join(13, 60), "rule");
    w.refuses(13, &[13, 61], join(13, 61), "authority");
    w.refuses(13, &[13, 60], Join { name: "d11".into(), ..join(13, 60) }, "rule");
    w.refuses(13, &[13, 60], Join { name: "../x".into(), ..join(13, 60) }, "rule");
    w.post(13, &[13, 60], join(13, 60)).unwrap();
    w.refuses(14, &[14, 60], join(14, 60), "rule");
    assert!(!w.state.devices[&device_id(13)].is_member(), "joined, but not approved");
    w.refuses(13, &[13], object("t"), "authority");

    let entry = {
        w.post(ADMIN, &[ADMIN], Invite { seed_key: Verifier(public(&key(62))), not_after_ms }).unwrap();
        w.entry(14, &[14, 62], join(14, 62))
    };
    assert!(w.state.clone().apply(not_after_ms, &entry.encode()).is_ok());
    let late = w.state.clone().apply(not_after_ms + 1, &entry.encode()).unwrap_err();
    assert!(late.to_string().contains("expired"), "{late}");
}

#[test]
fn delegations_grow_are_short_and_know_a_recent_head() {
    let mut w = World::new();
    w.refuses(11, &[11, 31], delegate(31, 1), "rule");
    w.refuses(11, &[11, 31], Delegate { not_after_ms: T0 + SESSION_MS_MAX + 60_000, ..delegate(31, 2) }, "rule");
    w.refuses(11, &[11, 31], Delegate { vault_generation: 0, ..delegate(31, 2) }, "rule");
    w.refuses(11, &[11, 22], delegate(22, 2), "rule"); // another device's key, even if it lends its signature
    w.post(11, &[11, 31], delegate(31, 2)).unwrap();
    w.refuses(11, &[21], object("t"), "signature");
    w.post(11, &[31], object("t")).unwrap();

    let entry = w.entry(11, &[11, 32], delegate(32, 3));
    let mut later = w.state.clone();
    later.time_ms += DELEGATE_HEAD_AGE_MS_MAX + 10;
    let refusal = later.apply(later.time_ms, &entry.encode()).unwrap_err();
    assert!(refusal.to_string().contains("recent head"), "{refusal}");

    let expired = w.entry(11, &[31], Delete { target: TargetKind::Object, id: Hash([9; 32]) });
    let refusal = w.state.clone().apply(T0 + SESSION_MS_MAX + 1, &expired.encode()).unwrap_err();
    assert!(refusal.to_string().contains("expired"), "{refusal}");
}

#[test]
fn place_in_the_authors_chain_and_in_this_log() {
    let mut w = World::new();
    let first = w.entry(11, &[21], object("t"));
    w.take(&first).unwrap();
    assert!(matches!(w.take(&first), Err(Refusal::Duplicate(_))), "the same record twice is one entry");

    let mut resigned = first.clone();
    resigned.signatures.clear();
    sign(&mut resigned, &[21, 33]);
    assert!(matches!(w.take(&resigned), Err(Refusal::Duplicate(_))), "other signatures, same record");

    let delete = || Delete { target: TargetKind::Object, id: Hash([9; 32]) };
    let good = w.entry(11, &[], delete());
    type Change = Box<dyn Fn(&mut Entry)>;
    let variants: [(&str, Change); 7] = [
        ("author-chain", Box::new(|e| e.author_seq += 1)),
        ("author-chain", Box::new(|e| e.author_seq -= 1)),
        ("author-chain", Box::new(|e| e.author_prev = EntryId([1; 32]))),
        ("network", Box::new(|e| e.network = NetworkId([1; 32]))),
        ("foreign-head", Box::new(|e| e.head.root = Hash([1; 32]))),
        ("foreign-head", Box::new(|e| e.head.size += 1)),
        ("kind", Box::new(|e| e.kind = 999)),
    ];
    for (code, change) in variants {
        let mut entry = good.clone();
        change(&mut entry);
        sign(&mut entry, &[21]);
        assert_eq!(w.take(&entry).unwrap_err().code(), code);
    }
    let mut entry = good.clone();
    sign(&mut entry, &[21]);
    let back = w.state.time_ms - 1;
    assert_eq!(w.state.clone().apply(back, &entry.encode()).unwrap_err().code(), "time");
    w.take(&entry).unwrap();
}

#[test]
fn a_changed_byte_anywhere_is_refused() {
    let w = World::new();
    let bytes = w.entry(11, &[21], object("t")).encode();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert!(w.state.clone().apply(T0 + 100, &damaged).is_err(), "byte {at}");
    }
    assert!(w.state.clone().apply(T0 + 100, &bytes).is_ok());
}

#[test]
fn banned_devices_say_nothing_and_come_back_without_roles() {
    let mut w = World::new();
    w.post(ADMIN, &[ADMIN], Ban { device: device_id(11), reason: String::new() }).unwrap();
    w.refuses(11, &[21], object("t"), "authority");
    w.refuses(11, &[11, 31], delegate(31, 2), "authority");
    w.refuses(ADMIN, &[ADMIN], Role { device: device_id(11), roles: vec![DeviceRole::Holder] }, "rule");
    w.refuses(ADMIN, &[ADMIN], Ban { device: device_id(11), reason: String::new() }, "rule");
    w.post(ADMIN, &[ADMIN], Unban { device: device_id(11) }).unwrap();
    assert!(w.state.devices[&device_id(11)].is_member());
    assert!(w.state.devices[&device_id(11)].roles.is_empty());
    assert!(
        w.state.devices[&device_id(11)].session().is_none(),
        "a thief's session does not come back with the device"
    );
    w.refuses(11, &[21], object("t"), "authority");
}

#[test]
fn a_session_is_prolonged_and_its_key_stays_known() {
    let mut w = World::new();
    for counter in 2..10 {
        w.post(11, &[11, 21], delegate(21, counter)).unwrap();
        assert_eq!(w.state.device_by_session(&public(&key(21))).unwrap().0, &device_id(11));
    }
    for counter in 10..16 {
        let session = 100 + counter as u8;
        w.post(11, &[11, session], delegate(session, counter)).unwrap();
    }
    assert!(w.state.device_by_session(&public(&key(21))).is_none());
    assert_eq!(w.state.session_owners.len(), 1 + RECENT_SESSIONS, "what is not kept is forgotten");
}

#[test]
fn a_ban_does_not_lower_the_quorum_and_the_last_witness_stays() {
    let mut w = World::new();
    w.post(ADMIN, &[ADMIN], Ban { device: device_id(11), reason: String::new() }).unwrap();
    w.post(ADMIN, &[ADMIN], Ban { device: device_id(12), reason: String::new() }).unwrap();
    assert_eq!((w.state.witnesses().len(), w.state.active_witnesses().len()), (2, 0));
    w.post(ADMIN, &[ADMIN], Role { device: device_id(11), roles: vec![] }).unwrap();
    w.refuses(ADMIN, &[ADMIN], Role { device: device_id(12), roles: vec![] }, "rule");
    w.refuses(ADMIN, &[ADMIN], Unban { device: device_id(12) }, "rule");
}

#[test]
fn checking_a_pin_costs_neither_too_little_nor_too_much() {
    let mut w = World::new();
    let pin = |memory_kib, passes, tag| record::Pin {
        token: token("t").id,
        user: record::PinUser::User,
        verifier: PinVerifier { salt: [0; 16], memory_kib, passes, tag },
    };
    for good in [pin(0, 0, [0; 32]), pin(19 << 10, 2, [1; 32]), pin(256 << 10, 16, [1; 32])] {
        w.post(11, &[21], good).unwrap();
    }
    for (memory_kib, passes) in
        [(0, 0), (64, 2), ((19 << 10) - 1, 2), (19 << 10, 1), ((256 << 10) + 1, 2), (19 << 10, 17)]
    {
        w.refuses(11, &[21], pin(memory_kib, passes, [1; 32]), "rule");
    }
}

#[test]
fn tokens_name_their_creators() {
    let mut w = World::new();
    let record = record::Token { creators: vec![device_id(12)], devices: vec![device_id(12)], ..token("u") };
    w.post(ADMIN, &[ADMIN], record).unwrap();
    w.refuses(11, &[21], object("u"), "authority");
    assert!(!w.state.sees_token(&token("u").id, &device_id(11)));
    w.post(12, &[22], object("u")).unwrap();
    w.refuses(ADMIN, &[ADMIN], record::Token { id: TokenId([3; 32]), ..token("t") }, "rule");
    w.refuses(ADMIN, &[ADMIN], record::Token { allow: vec!["www".into()], ..token("v") }, "rule");
    w.refuses(12, &[22], object("missing"), "rule");
}

#[test]
fn grants_are_posted_once() {
    let mut w = World::new();
    let item = |number| GrantItem { number, key: KeyId([1; 32]), assembler: device_id(12), uses_max: 10, until_ms: T0 };
    w.post(11, &[21], Grant { items: vec![item(1), item(2)] }).unwrap();
    w.refuses(11, &[21], Grant { items: vec![item(2)] }, "rule");
    w.refuses(11, &[21], Grant { items: vec![] }, "rule");
    w.refuses(11, &[21], Grant { items: vec![item(5), item(4)] }, "rule");
    w.post(11, &[21], Grant { items: vec![item(3)] }).unwrap();
    w.post(12, &[22], Grant { items: vec![item(1)] }).unwrap();
}

#[test]
fn m_of_n_administrators() {
    let genesis = |needed| Genesis {
        name: "m".into(),
        created_ms: T0,
        administrators: (1..=3)
            .map(|n| Administrator { name: format!("a{n}"), key: Verifier(public(&key(n))) })
            .collect(),
        administrators_needed: needed,
        gateways: vec![],
        policy: NetworkPolicy {
            head_age_ms_max: 60_000,
            skew_ms_max: 10_000,
            members_join_unapproved: false,
            dev: false,
            unattested: true,
        },
        nonce: [8; 32],
    };
    let mut w = World { state: State::default(), log: vec![] };
    w.refuses(1, &[1], genesis(2), "signature");
    w.refuses(1, &[1, 2, 3], genesis(4), "rule");
    w.refuses(4, &[1, 2], genesis(2), "authority");
    w.post(1, &[1, 2], genesis(2)).unwrap();
    w.refuses(1, &[1], token("t"), "authority");
    w.refuses(1, &[1, 1], token("t"), "authority");
    w.refuses(1, &[2, 3], token("t"), "authority");
    w.post(3, &[3, 1], token("t")).unwrap();
}

/// A 2-of-2 key dealt by device 11, with the session keys' acceptances, and the shares.
fn dealt_key(w: &World) -> (record::Key, Vec<(u32, mayfly_secmem::Secret<64>)>) {
    let root = mayfly_crypto::pedersen::random_root().unwrap();
    let (commitment, shares) = mayfly_crypto::pedersen::deal(&root, 2, &[1, 2]).unwrap();
    let id = deal::key_id(&w.state.network, &commitment.coefficients[0]);
    let shard = |index, device| record::ShardRecord {
        id: deal::shard_id(&id, 1, 1, index),
        device: device_id(device),
        index,
        valid_from_ms: 0,
        valid_until_ms: u64::MAX,
    };
    let mut assemblers = vec![device_id(11), device_id(12)];
    assemblers.sort();
    let mut key = record::Key {
        id,
        token: token("t").id,
        key_type: "aes:256".into(),
        t: 2,
        generation: 1,
        epoch: 1,
        assemblers,
        attributes: vec![Attribute { kind: 3, value: b"k".to_vec() }],
        public_attributes: None,
        origin: record::Origin::Dealt,
        commitments: commitment.coefficients.iter().map(|c| Hash(*c)).collect(),
        shards: vec![shard(1, 11), shard(2, 12)],
        key_commitment: Hash([1; 32]),
        wrapped: None,
        policy: record::KeyPolicy {
            allow: vec![],
            uses: crate::rules::Use::Encrypt.bit(),
            residency: record::Residency { window_seconds: 0 },
            vault_opening: record::VaultOpening::Boot,
            iv_modes: 2,
            rate: 0,
        },
        schedule: record::Schedule { refresh_seconds: 0, refresh_uses: 0 },
        created_ms: T0,
        deadline_ms: T0 + 10_000,
        acceptances: vec![],
    };
    accept(w, &mut key, &[(11, 21), (12, 22)]);
    (key, shares)
}

fn accept(w: &World, key: &mut record::Key, holders: &[(u8, u8)]) {
    key.acceptances = holders
        .iter()
        .map(|(device, session)| {
            let shard = key.shards.iter().find(|s| s.device == device_id(*device)).unwrap();
            let message = deal::acceptance_message(&w.state.network, key, shard);
            let signature = self::key(*session).sign(&message).to_bytes().to_vec();
            record::Acceptance { device: device_id(*device), signature }
        })
        .collect();
}

#[test]
fn a_dealt_key_is_taken_until_its_deadline_and_released_by_the_rules() {
    let mut w = World::new();
    let (key, shares) = dealt_key(&w);
    for ((_, share), device) in shares.iter().zip([11, 12]) {
        deal::check_offer(&w.state, &key, &device_id(11), &device_id(device), share).unwrap();
    }
    let swapped = deal::check_offer(&w.state, &key, &device_id(11), &device_id(11), &shares[1].1);
    assert!(matches!(swapped, Err(deal::DealRefused::Shard(_))), "another holder's shard is not mine");
    let stranger = deal::check_offer(&w.state, &key, &device_id(11), &device_id(40), &shares[0].1);
    assert!(matches!(stranger, Err(deal::DealRefused::NotForUs)));

    let entry = w.entry(11, &[21], key.clone());
    let refusal = w.state.clone().apply(key.deadline_ms + 1, &entry.encode()).unwrap_err();
    assert!(refusal.to_string().contains("deadline"), "{refusal}");
    let mut patient = key.clone();
    patient.deadline_ms = u64::MAX;
    accept(&w, &mut patient, &[(11, 21), (12, 22)]);
    w.refuses(11, &[21], patient, "rule");
    w.take(&entry).unwrap();
    w.refuses(11, &[21], key.clone(), "rule");

    let query = |device, purpose, epoch| crate::rules::ReleaseQuery {
        key: key.id,
        generation: 1,
        epoch,
        purpose,
        requester: device_id(device),
    };
    use crate::rules::{Clocks, Denied, Use};
    let clocks = Clocks { local_ms: T0, ledger_ms: T0 };
    let ask = |w: &World, q| w.state.may_release(&q, &device_id(12), clocks).map(|(_, s)| s.index);
    assert_eq!(ask(&w, query(11, Use::Encrypt, 1)), Ok(2));
    assert!(matches!(ask(&w, query(11, Use::Sign, 1)), Err(Denied::Use(Use::Sign))));
    assert!(matches!(ask(&w, query(11, Use::Encrypt, 2)), Err(Denied::WrongEpoch { .. })));
    assert!(matches!(ask(&w, query(40, Use::Encrypt, 1)), Err(Denied::NotMember(..))));
    let mut banned = World { state: w.state.clone(), log: w.log.clone() };
    banned.post(ADMIN, &[ADMIN], Ban { device: device_id(11), reason: String::new() }).unwrap();
    assert!(matches!(ask(&banned, query(11, Use::Encrypt, 1)), Err(Denied::NotMember(_, "banned"))));
    w.post(12, &[22], Delete { target: TargetKind::Key, id: Hash(key.id.0) }).unwrap();
    assert!(matches!(ask(&w, query(11, Use::Encrypt, 1)), Err(Denied::Deleted(_))));
}

#[test]
fn a_key_that_breaks_any_rule_is_refused() {
    let mut w = World::new();
    let (key, _) = dealt_key(&w);
    type Change = fn(&World, &mut record::Key);
    let changes: [(&str, Change); 17] = [
        ("id not from the commitment", |_, k| k.id = KeyId([1; 32])),
        ("t below 2", |_, k| k.t = 1),
        ("t above n", |_, k| k.t = 3),
        ("one commitment too many", |_, k| k.commitments.push(k.commitments[0])),
        ("one commitment too few", |_, k| k.commitments.truncate(1)),
        ("a commitment that is no point", |_, k| k.commitments[1] = Hash([0xff; 32])),
        ("index 0", |_, k| k.shards[0].index = 0),
        ("index twice", |_, k| k.shards[1].index = 1),
        ("two shards for one device", |_, k| k.shards[1].device = k.shards[0].device),
        ("a shard for a device that is no holder", |_, k| k.shards[1].device = DeviceId([3; 32])),
        ("a foreign shard id", |_, k| k.shards[1].id = crate::ShardId([3; 32])),
        ("never valid", |_, k| k.shards[1].valid_until_ms = 0),
        ("no assembler", |_, k| k.assemblers.clear()),
        ("assembler that is no member", |_, k| k.assemblers = vec![DeviceId([3; 32])]),
        ("unknown type", |_, k| k.key_type = "des:56".into()),
        ("pair without wrapped key", |_, k| k.key_type = "ec:p256".into()),
        ("generation 2", |_, k| k.generation = 2),
    ];
    for (what, change) in changes {
        let mut bad = key.clone();
        change(&w, &mut bad);
        let holders: Vec<(u8, u8)> = [(11, 21), (12, 22)]
            .into_iter()
            .filter(|(d, _)| bad.shards.iter().any(|s| s.device == device_id(*d)))
            .collect();
        accept(&w, &mut bad, &holders);
        let refusal = w.post(11, &[21], bad).expect_err(what);
        assert_eq!(refusal.code(), "rule", "{what}: {refusal}");
    }
    let mut few = key.clone();
    few.acceptances.pop();
    w.refuses(11, &[21], few, "rule");
    let mut twice = key.clone();
    twice.acceptances[1] = twice.acceptances[0].clone();
    w.refuses(11, &[21], twice, "rule");
    let mut forged = key.clone();
    accept(&w, &mut forged, &[(11, 22), (12, 22)]);
    w.refuses(11, &[21], forged, "signature");
    let mut changed_after_acceptance = key.clone();
    changed_after_acceptance.policy.uses = u32::MAX;
    w.refuses(11, &[21], changed_after_acceptance, "signature");
    w.post(11, &[21], key).unwrap();
}

fn arbitrary_payload() -> impl Strategy<Value = (u16, Vec<u8>)> {
    (0u16..19, proptest::collection::vec(any::<u8>(), 0..64))
}

proptest! {
    /// Whoever holds no administrator's key changes no device, role, token or ban, whatever it posts.
    #[test]
    fn nobody_without_the_right_gains_power(payloads in proptest::collection::vec(arbitrary_payload(), 1..8), roles in any::<bool>()) {
        let mut w = World::new();
        let before = (w.state.devices.clone(), w.state.tokens.len());
        for (kind, payload) in payloads {
            let mut entry = w.entry(11, &[], object("t"));
            (entry.kind, entry.payload) = (kind, payload);
            sign(&mut entry, &[21]);
            let _ = w.take(&entry);
        }
        if roles {
            let _ = w.post(11, &[21], Role { device: device_id(11), roles: vec![DeviceRole::Spare] });
        }
        prop_assert_eq!(before, (w.state.devices.clone(), w.state.tokens.len()));
    }
}
