//! Records that take effect when they are seen, before the ledger contains them: they only remove rights. In this version: BAN.
//!
//! The ledger will judge the record by all its rules. On sight less is known (the author's chain may have gone on, or this replica may be
//! behind), so what is asked is: is it certainly an administrator's word, for this network, and not one that the ledger has overtaken?

use crate::entry::{Entry, EntryError};
use crate::ids::{AuthorId, DeviceId, public_key_id};
use crate::record::{Ban, Kind, Record};
use crate::state::State;

/// Why a record does not take effect on sight.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOnSight {
    /// Not an entry.
    #[error("malformed entry")]
    Entry(#[from] EntryError),
    /// For another network.
    #[error("the entry is for another network")]
    Network,
    /// A kind that takes effect in the ledger's order only.
    #[error("records of kind {0} take effect in the ledger only")]
    Kind(u16),
    /// Not signed by the administrator who is its author.
    #[error("the entry is not signed by an administrator")]
    Signature,
    /// The ledger contains it, or a later record of the same author in its place.
    #[error("the ledger has this record, or another in its place, already")]
    Overtaken,
}

/// The device that this entry bans, if it takes effect on sight in `tip`, the newest verified state.
///
/// # Errors
/// [`NotOnSight`].
pub fn ban(tip: &State, bytes: &[u8]) -> Result<DeviceId, NotOnSight> {
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
    if tip.authors.get(&entry.author).is_some_and(|tail| tail.seq >= entry.author_seq) {
        return Err(NotOnSight::Overtaken);
    }
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Administrator, Genesis, NetworkPolicy, Unban, Verifier};
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
        let policy =
            NetworkPolicy { head_age_ms_max: 60_000, skew_ms_max: 2_000, members_join_unapproved: false, dev: false };
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
        (state, key)
    }

    fn ban_record() -> Record {
        Ban { device: VICTIM, reason: "stolen".into() }.into()
    }

    #[test]
    fn an_administrators_ban_takes_effect_before_the_ledger_has_it() {
        let (state, key) = network();
        for seq in [2, 3, 900] {
            let entry = signed(&key, state.network, seq, &ban_record());
            assert_eq!(ban(&state, &entry.encode()), Ok(VICTIM), "also when records between are missing here");
        }
    }

    #[test]
    fn nothing_else_does() {
        let (state, key) = network();
        let stranger = Ed25519Secret::generate().unwrap();
        let good = signed(&key, state.network, 2, &ban_record());
        let changed = |change: fn(&mut Entry)| {
            let mut entry = good.clone();
            change(&mut entry);
            entry.encode()
        };
        for (bytes, why) in [
            (signed(&stranger, state.network, 2, &ban_record()).encode(), "not an administrator"),
            (signed(&key, NetworkId([1; 32]), 2, &ban_record()).encode(), "another network"),
            (signed(&key, state.network, 2, &Unban { device: VICTIM }.into()).encode(), "gives rights"),
            (signed(&key, state.network, 1, &ban_record()).encode(), "the ledger has gone past it"),
            (changed(|e| e.author_seq = 5), "another number than was signed"),
            (changed(|e| e.signatures[0].bytes[0] ^= 1), "bad signature"),
            (changed(|e| e.payload = Vec::new()), "no record"),
            (b"garbage".to_vec(), "no entry"),
        ] {
            assert!(ban(&state, &bytes).is_err(), "{why}");
        }
    }
}
