use super::*;
use crate::node::directory::View;
use mayfly_crypto::sign::Ed25519Secret;
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::*;
use mayfly_protocol::{AuthorId, Entry, EntryId, Head, InviteId};

/// A ledger with one administrator (who alone is m of n) and a device that has joined.
struct World {
    state: State,
    admin: Ed25519Secret,
    victim: DeviceId,
}

fn entry(state: &State, signers: &[&Ed25519Secret], head: Head, record: &Record) -> Vec<u8> {
    let author = AuthorId(public_key_id(&signers[0].public()));
    let (author_seq, author_prev) =
        if state.size() == 0 { (1, EntryId::default()) } else { state.author_next(&author) };
    let (network, payload, signatures) = (state.network, record.encode(), Vec::new());
    let kind = record.kind() as u16;
    let mut entry = Entry { version: 1, network, kind, author, author_seq, author_prev, head, payload, signatures };
    for signer in signers {
        entry.sign_with(&signer.public(), |m| Ok::<_, ()>(signer.sign(m).to_vec())).unwrap();
    }
    entry.encode()
}

fn key() -> Ed25519Secret {
    Ed25519Secret::generate().unwrap()
}

fn world() -> World {
    let (admin, seed, identity) = (key(), key(), key());
    let policy = NetworkPolicy {
        head_age_ms_max: 60_000,
        skew_ms_max: 2_000,
        members_join_unapproved: true,
        dev: true,
        unattested: true,
    };
    let genesis = Genesis {
        name: "n".into(),
        created_ms: 0,
        administrators: vec![Administrator { name: "a".into(), key: Verifier(admin.public()) }],
        administrators_needed: 1,
        gateways: vec![],
        policy,
        nonce: [0; 32],
    };
    let invite = Invite { seed_key: Verifier(seed.public()), not_after_ms: 1_000 };
    let join = Join {
        name: "victim".into(),
        identity: Verifier(identity.public()),
        vault: "file".into(),
        software_only: true,
        invite: InviteId(public_key_id(&seed.public())),
    };
    let mut state = State::default();
    for (signers, record) in
        [(vec![&admin], Record::from(genesis)), (vec![&admin], invite.into()), (vec![&identity, &seed], join.into())]
    {
        let bytes = entry(&state, &signers, state.head(), &record);
        state.apply(0, &bytes).unwrap();
    }
    let victim = DeviceId(public_key_id(&identity.public()));
    World { state, admin, victim }
}

impl World {
    fn made(&self, head: Head, record: impl Into<Record>) -> Vec<u8> {
        entry(&self.state, &[&self.admin], head, &record.into())
    }

    fn append(&mut self, record: impl Into<Record>) {
        let bytes = self.made(self.state.head(), record);
        self.state.apply(0, &bytes).unwrap();
    }

    fn ban(&self) -> Ban {
        Ban { device: self.victim, reason: "stolen".into() }
    }
}

fn open() -> (tempfile::TempDir, Alarms) {
    let folder = tempfile::tempdir().unwrap();
    let alarms = Alarms::open(&folder.path().join("alarms")).unwrap();
    (folder, alarms)
}

#[test]
fn a_ban_whose_number_another_record_took_stays_until_the_ledger_bans_the_device() {
    let (folder, alarms) = open();
    let mut w = world();
    let ban = w.made(w.state.head(), w.ban());
    assert_eq!(alarms.hear(&w.state, &ban).unwrap(), Some(w.victim));
    assert!(alarms.snapshot().note(&w.victim).unwrap().contains("not contain the ban yet"));
    w.append(Invite { seed_key: Verifier(key().public()), not_after_ms: 1_000 });
    alarms.settle(&w.state);
    assert!(alarms.banned(&w.victim), "the gateway lifts no ban");
    assert!(alarms.snapshot().note(&w.victim).unwrap().contains("ban the device again"));
    // Nor does a restart, nor is an agent of another mind that hears of it only now.
    let again = Alarms::open(&folder.path().join("alarms")).unwrap();
    again.settle(&w.state);
    assert_eq!(again.snapshot(), alarms.snapshot());
    assert_eq!(open().1.hear(&w.state, &ban).unwrap(), Some(w.victim));
    // Said again it can stand in the ledger; that is what is passed on then.
    let better = w.made(w.state.head(), w.ban());
    for entry in [&better, &ban] {
        assert_eq!(alarms.hear(&w.state, entry).unwrap(), None, "no news");
        assert_eq!(alarms.entries(), std::slice::from_ref(&better));
    }
    w.state.apply(0, &better).unwrap();
    alarms.settle(&w.state);
    assert!(!alarms.banned(&w.victim), "the ledger has it");
}

#[test]
fn an_unban_lifts_a_ban_that_claims_to_be_made_in_the_future() {
    let (_folder, alarms) = open();
    let mut w = world();
    let future = Head { size: w.state.size() + 1_000, ..Head::default() };
    assert_eq!(alarms.hear(&w.state, &w.made(future, w.ban())).unwrap(), Some(w.victim));
    alarms.settle(&w.state);
    assert!(alarms.banned(&w.victim));
    w.append(w.ban());
    w.append(Unban { device: w.victim });
    // It sees both at once: never that the device is banned.
    alarms.settle(&w.state);
    assert!(!alarms.banned(&w.victim));
}

#[test]
fn invented_devices_take_no_room() {
    let (_folder, alarms) = open();
    let w = world();
    for n in 0..=255 {
        let ban = Ban { device: DeviceId([n; 32]), reason: "invented".into() };
        let heard = alarms.hear(&w.state, &w.made(w.state.head(), ban));
        assert!(matches!(heard, Err(AlarmError::NotOnSight(NotOnSight::UnknownDevice))));
    }
    assert!(alarms.entries().is_empty());
    assert_eq!(alarms.hear(&w.state, &w.made(w.state.head(), w.ban())).unwrap(), Some(w.victim));
}

#[test]
fn a_look_from_before_the_ledger_settled_a_ban_keeps_it() {
    let (_folder, alarms) = open();
    let mut w = world();
    let ban = w.made(w.state.head(), w.ban());
    alarms.hear(&w.state, &ban).unwrap();
    let before = Arc::new(w.state.clone());
    let view = View::new(before.clone(), before, alarms.snapshot());
    w.state.apply(0, &ban).unwrap();
    alarms.settle(&w.state);
    assert!(!alarms.banned(&w.victim), "it is the ledger's now");
    assert!(view.member(&w.victim).is_none());
}
