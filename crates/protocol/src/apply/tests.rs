//! Who may say what: one small network, and every rule broken once.

use super::*;
use crate::head::Head;
use crate::ids::{EntryId, InviteId};
use crate::record::{
    Administrator, Approve, Ban, Delegate, Delete, DeviceRole, Genesis, Grant, GrantItem, Invite, Join, NetworkPolicy,
    Object, Role, Unban, Verifier,
};
use ed25519_zebra::{SigningKey, VerificationKey};
use proptest::prelude::*;

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
        let mut world = World { state: State::default(), log: Vec::new() };
        let genesis = Genesis {
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
            },
            nonce: [7; 32],
        };
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
            world.post(device, &[device], delegate(device + 10, 1)).unwrap();
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
    assert_eq!(world.state.witnesses(), vec![device_id(11)]);

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
    w.refuses(11, &[21], delegate(31, 2), "signature");
    w.refuses(33, &[33], delegate(31, 2), "authority");
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
    w.refuses(11, &[11], delegate(31, 1), "rule");
    w.refuses(11, &[11], Delegate { not_after_ms: T0 + SESSION_MS_MAX + 60_000, ..delegate(31, 2) }, "rule");
    w.refuses(11, &[11], Delegate { vault_generation: 0, ..delegate(31, 2) }, "rule");
    w.post(11, &[11], delegate(31, 2)).unwrap();
    w.refuses(11, &[21], object("t"), "signature");
    w.post(11, &[31], object("t")).unwrap();

    let entry = w.entry(11, &[11], delegate(32, 3));
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
    let variants: [(&str, Box<dyn Fn(&mut Entry)>); 7] = [
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
    w.refuses(11, &[11], delegate(31, 2), "authority");
    w.refuses(ADMIN, &[ADMIN], Role { device: device_id(11), roles: vec![] }, "rule");
    w.refuses(ADMIN, &[ADMIN], Ban { device: device_id(11), reason: String::new() }, "rule");
    w.post(ADMIN, &[ADMIN], Unban { device: device_id(11) }).unwrap();
    assert!(w.state.devices[&device_id(11)].is_member());
    assert!(w.state.devices[&device_id(11)].roles.is_empty());
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

fn arbitrary_payload() -> impl Strategy<Value = (u16, Vec<u8>)> {
    (0u16..16, proptest::collection::vec(any::<u8>(), 0..64))
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
