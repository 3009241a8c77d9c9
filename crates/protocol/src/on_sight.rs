//! Records that take effect when they are seen, before the ledger contains them: they only remove rights. In this version: BAN.
//!
//! The ledger will judge the record by all its rules. On sight less is known (the author's chain may have gone on, or this replica may be
//! behind), so what is asked is: is it certainly an administrator's word, for this network, about a device that the ledger knows, and has
//! the ledger not answered it? Two things answer it: the device is banned there, or m administrators have lifted a ban after this one was
//! made. That another record took its number in the author's chain answers nothing: whoever runs a gateway can bring that about.

use crate::entry::{Entry, EntryError};
use crate::ids::{AuthorId, DeviceId, public_key_id};
use crate::record::{Ban, Kind, Record};
use crate::state::{Device, State};

/// Largest entry that takes effect on sight: a BAN with its reason and one signature is a tenth of it.
pub const ENTRY_BYTES_MAX: usize = 4096;
/// How many records of its author may be missing here before it.
pub const SEQUENCE_AHEAD_MAX: u64 = 64;
/// How many entries more than this replica its author may have known.
pub const HEAD_AHEAD_MAX: u64 = 1024;

/// Why a record does not take effect on sight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOnSight {
    /// Not an entry.
    #[error("malformed entry")]
    Entry(#[from] EntryError),
    /// Larger than [`ENTRY_BYTES_MAX`].
    #[error("an entry of {0} bytes is too large to take effect on sight, {ENTRY_BYTES_MAX} are allowed")]
    TooLarge(usize),
    /// For another network.
    #[error("the entry is for another network")]
    Network,
    /// A kind that takes effect in the ledger's order only.
    #[error("records of kind {0} take effect in the ledger only")]
    Kind(u16),
    /// Not signed by the administrator who is its author.
    #[error("the entry is not signed by an administrator")]
    Signature,
    /// A device that the ledger does not know has no rights to lose.
    #[error("the ledger does not know the device")]
    UnknownDevice,
    /// It could not come next, nor soon.
    #[error("the entry is too far ahead of this ledger")]
    TooFarAhead,
    /// The device is banned in the ledger.
    #[error("the ledger says so already")]
    Banned,
    /// The administrators have lifted a ban of the device since.
    #[error("the administrators have lifted the ban since it was made")]
    Lifted,
}

/// What the ledger can make of a record that takes effect on sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nothing: another record of the same author has its number.
    Overtaken,
    /// Records before it are missing here, or a rule is against it.
    Later,
    /// It can be the next entry.
    Next,
}

/// A ban that takes effect on sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The banned device.
    pub device: DeviceId,
    /// What the ledger can make of the record.
    pub place: Place,
}

/// The device that this entry bans, if it takes effect on sight in `tip`, the newest verified state.
///
/// # Errors
/// [`NotOnSight`].
pub fn ban(tip: &State, bytes: &[u8]) -> Result<Seen, NotOnSight> {
    if bytes.len() > ENTRY_BYTES_MAX {
        return Err(NotOnSight::TooLarge(bytes.len()));
    }
    let entry = Entry::decode(bytes)?;
    if entry.network != tip.network {
        return Err(NotOnSight::Network);
    }
    if entry.kind != Kind::Ban as u16 {
        return Err(NotOnSight::Kind(entry.kind));
    }
    let Ok(Record::Ban(Ban { device, .. })) = Record::decode(Kind::Ban, &entry.payload) else {
        return Err(NotOnSight::Kind(entry.kind));
    };
    let administrators = tip.genesis.iter().flat_map(|genesis| &genesis.administrators);
    let author = administrators.map(|a| &a.key.0).find(|key| AuthorId(public_key_id(key)) == entry.author);
    if !author.is_some_and(|key| entry.is_signed_by(key)) {
        return Err(NotOnSight::Signature);
    }
    let known = tip.devices.get(&device).ok_or(NotOnSight::UnknownDevice)?;
    unanswered(tip, &entry, &device, known)?;
    Ok(Seen { device, place: place(tip, &entry)? })
}

/// Whether neither a ban nor a lifted ban on the ledger answers the entry.
fn unanswered(tip: &State, entry: &Entry, id: &DeviceId, device: &Device) -> Result<(), NotOnSight> {
    if device.is_banned() {
        return Err(NotOnSight::Banned);
    }
    // Its author knew of the UNBAN only if it stands below the head that the author had verified, on this ledger.
    let foreign = tip.recent_head(entry.head.size).is_some_and(|(ours, _)| ours != entry.head);
    match tip.unbanned_at(id) {
        Some(at) if foreign || entry.head.size <= at => Err(NotOnSight::Lifted),
        _ => Ok(()),
    }
}

fn place(tip: &State, entry: &Entry) -> Result<Place, NotOnSight> {
    let (next, _) = tip.author_next(&entry.author);
    if entry.author_seq > next.saturating_add(SEQUENCE_AHEAD_MAX)
        || entry.head.size > tip.size().saturating_add(HEAD_AHEAD_MAX)
    {
        return Err(NotOnSight::TooFarAhead);
    }
    if entry.author_seq < next {
        return Ok(Place::Overtaken);
    }
    Ok(if tip.check(tip.time_ms, entry).is_ok() { Place::Next } else { Place::Later })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Hash;
    use crate::record::{Administrator, Genesis, NetworkPolicy, Unban, Verifier};
    use crate::state::Membership;
    use crate::{EntryId, Head, NetworkId};
    use mayfly_crypto::sign::Ed25519Secret;

    const VICTIM: DeviceId = DeviceId([9; 32]);

    fn signed(key: &Ed25519Secret, network: NetworkId, seq: u64, record: &Record) -> Entry {
        let mut entry = Entry {
            version: 1,
            network,
            kind: record.kind() as u16,
            author: AuthorId(public_key_id(&key.public())),
            author_seq: seq,
            author_prev: EntryId::default(),
            head: Head::default(),
            payload: record.encode(),
            signatures: Vec::new(),
        };
        entry.sign_with(&key.public(), |m| Ok::<_, ()>(key.sign(m).to_vec())).unwrap();
        entry
    }

    fn network() -> (State, Ed25519Secret) {
        let key = Ed25519Secret::generate().unwrap();
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
            administrators: vec![Administrator { name: "a".into(), key: Verifier(key.public()) }],
            administrators_needed: 1,
            gateways: vec![],
            policy,
            nonce: [0; 32],
        };
        let mut state = State::default();
        state.apply(0, &signed(&key, NetworkId::default(), 1, &genesis.into()).encode()).unwrap();
        let device = Device {
            name: "victim".into(),
            identity: key.public(),
            vault: "file".into(),
            software_only: true,
            membership: Membership::Member,
            roles: vec![],
            addresses: vec![],
            vault_generation: 1,
            attestations: Default::default(),
            chip: None,
            generation_stated: None,
            pcr_approvals: vec![],
            delegation: None,
            sessions: vec![],
        };
        state.devices.insert(VICTIM, device);
        (state, key)
    }

    /// Appends the administrator's next record, made on the newest head.
    fn append(state: &mut State, key: &Ed25519Secret, record: &Record) {
        let entry = next(state, key, record, state.head());
        state.apply(0, &entry.encode()).unwrap();
    }

    /// The administrator's next record, made on this head.
    fn next(state: &State, key: &Ed25519Secret, record: &Record, head: Head) -> Entry {
        let (seq, prev) = state.author_next(&AuthorId(public_key_id(&key.public())));
        let mut entry = signed(key, state.network, seq, record);
        (entry.author_prev, entry.head) = (prev, head);
        entry.signatures.clear();
        entry.sign_with(&key.public(), |m| Ok::<_, ()>(key.sign(m).to_vec())).unwrap();
        entry
    }

    fn unban() -> Record {
        Unban { device: VICTIM }.into()
    }

    fn invite(key: &Ed25519Secret) -> Record {
        crate::record::Invite { seed_key: Verifier(key.public()), not_after_ms: 1_000 }.into()
    }

    fn ban_record() -> Record {
        Ban { device: VICTIM, reason: "stolen".into() }.into()
    }

    #[test]
    fn an_administrators_ban_takes_effect_before_the_ledger_has_it() {
        let (state, key) = network();
        let next = next(&state, &key, &ban_record(), state.head());
        assert_eq!(ban(&state, &next.encode()), Ok(Seen { device: VICTIM, place: Place::Next }));
        for (seq, place) in [(1, Place::Overtaken), (3, Place::Later), (2 + SEQUENCE_AHEAD_MAX, Place::Later)] {
            let entry = signed(&key, state.network, seq, &ban_record());
            assert_eq!(ban(&state, &entry.encode()), Ok(Seen { device: VICTIM, place }), "{seq}");
        }
    }

    #[test]
    fn only_a_ban_or_a_later_unban_of_that_device_answers_it() {
        let (mut state, key) = network();
        let before = state.head();
        let early = next(&state, &key, &ban_record(), before).encode();
        // The gateway refuses the BAN; the administrator's next record takes its number.
        append(&mut state, &key, &invite(&Ed25519Secret::generate().unwrap()));
        assert_eq!(ban(&state, &early), Ok(Seen { device: VICTIM, place: Place::Overtaken }));
        append(&mut state, &key, &ban_record());
        assert_eq!(ban(&state, &early), Err(NotOnSight::Banned));
        let banned = state.head();
        append(&mut state, &key, &unban());
        let size = state.size();
        let foreign = |size| Head { size, root: Hash([7; 32]) };
        for (head, expected, why) in [
            (before, Err(NotOnSight::Lifted), "made before"),
            (banned, Err(NotOnSight::Lifted), "made without knowing of the UNBAN"),
            (foreign(size), Err(NotOnSight::Lifted), "made on another ledger"),
            (state.head(), Ok(Place::Next), "made since"),
            (foreign(size + HEAD_AHEAD_MAX), Ok(Place::Later), "made on a newer ledger, perhaps"),
            (foreign(size + HEAD_AHEAD_MAX + 1), Err(NotOnSight::TooFarAhead), "to come back for ever"),
            (foreign(u64::MAX), Err(NotOnSight::TooFarAhead), "to come back for ever"),
        ] {
            let seen = ban(&state, &next(&state, &key, &ban_record(), head).encode());
            assert_eq!(seen.map(|s| s.place), expected, "{why}");
        }
        assert_eq!(ban(&state, &early), Err(NotOnSight::Lifted), "a replay");
    }

    #[test]
    fn nothing_else_does() {
        let (state, key) = network();
        let stranger = Ed25519Secret::generate().unwrap();
        let good = signed(&key, state.network, 2, &ban_record());
        let other = Ban { device: DeviceId([8; 32]), reason: "invented".into() }.into();
        let long = Ban { device: VICTIM, reason: "x".repeat(ENTRY_BYTES_MAX) }.into();
        let changed = |change: fn(&mut Entry)| {
            let mut entry = good.clone();
            change(&mut entry);
            entry.encode()
        };
        for (bytes, why) in [
            (signed(&stranger, state.network, 2, &ban_record()).encode(), "not an administrator"),
            (signed(&key, NetworkId([1; 32]), 2, &ban_record()).encode(), "another network"),
            (signed(&key, state.network, 2, &Unban { device: VICTIM }.into()).encode(), "gives rights"),
            (signed(&key, state.network, 3 + SEQUENCE_AHEAD_MAX, &ban_record()).encode(), "never to come next"),
            (signed(&key, state.network, u64::MAX, &ban_record()).encode(), "never to come next"),
            (signed(&key, state.network, 2, &other).encode(), "a device that nobody knows"),
            (signed(&key, state.network, 2, &long).encode(), "too large"),
            (changed(|e| e.author_seq = 5), "another number than was signed"),
            (changed(|e| e.signatures[0].bytes[0] ^= 1), "bad signature"),
            (changed(|e| e.payload = Vec::new()), "no record"),
            (b"garbage".to_vec(), "no entry"),
        ] {
            assert!(ban(&state, &bytes).is_err(), "{why}");
        }
    }
}
