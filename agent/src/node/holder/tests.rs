use super::*;
use mayfly_protocol::Head;
use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{
    Genesis, KeyPolicy, NetworkPolicy, Origin, Residency, Schedule, ShardRecord, VaultOpening,
};
use mayfly_protocol::state::KeyState;
use mayfly_protocol::{KeyId, TokenId};

const US: DeviceId = DeviceId([1; 32]);
const DEADLINE: u64 = 100_000;
/// Deadline, skew of 2 s, margin.
const END: u64 = DEADLINE + 2_000 + DEADLINE_MARGIN_MS;

fn key() -> Key {
    let shard = ShardRecord { id: ShardId([3; 32]), device: US, index: 1, valid_from_ms: 0, valid_until_ms: u64::MAX };
    Key {
        id: KeyId([2; 32]),
        token: TokenId::default(),
        key_type: "aes:256".into(),
        t: 2,
        generation: 1,
        epoch: 1,
        assemblers: vec![US],
        attributes: vec![],
        public_attributes: None,
        origin: Origin::Dealt,
        commitments: vec![Hash([4; 32]); 2],
        shards: vec![shard],
        key_commitment: Hash::default(),
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
        deadline_ms: DEADLINE,
        acceptances: vec![],
    }
}

fn label() -> ShardLabel {
    ShardLabel {
        shard: ShardId([3; 32]),
        key: KeyId([2; 32]),
        generation: 1,
        epoch: 1,
        index: 1,
        opening: VaultOpening::Boot,
        accepted: digest(&key()),
        deadline_ms: DEADLINE,
        dealer: DeviceId([8; 32]),
    }
}

fn state(with: Option<Key>) -> State {
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
    let mut state = State::default();
    state.genesis = Some(Arc::new(genesis));
    if let Some(key) = with {
        let key = KeyState {
            record: Arc::new(key),
            position: 0,
            dealer: US,
            attributes: Arc::default(),
            public_attributes: None,
            deleted: false,
        };
        state.keys.insert(KeyId([2; 32]), key);
    }
    state
}

/// A round whose witnesses stated a ledger of `size` entries at `ledger_ms`.
fn round(size: u64, ledger_ms: u64) -> Freshness {
    Freshness {
        head: Head { size, ..Head::default() },
        ledger_ms,
        base_boot_ms: 0,
        began_boot_ms: 0,
        age_ms_max: 60_000,
        skew_ms_max: 2_000,
    }
}

fn decide(effective: &State, tip: &State, round: Option<&Freshness>, local_ms: u64) -> Fate {
    fate(&label(), &US, effective, tip, round, local_ms)
}

#[test]
fn a_key_on_the_witnessed_ledger_decides_at_once() {
    let there = state(Some(Key { acceptances: vec![], ..key() }));
    assert_eq!(decide(&there, &there, None, 0), Fate::Promote, "whatever the time, fresh or not");
    let (none, changes): (State, [fn(&mut Key); 3]) =
        (state(None), [|k| k.commitments[1] = Hash([9; 32]), |k| k.t = 3, |k| k.shards[0].device = DeviceId([9; 32])]);
    for change in changes {
        let mut other = key();
        change(&mut other);
        let other = state(Some(other));
        assert_eq!(decide(&other, &other, None, 0), Fate::Drop, "another record than was accepted took its place");
    }
    assert_eq!(decide(&none, &there, Some(&round(0, END + 1)), END + 1), Fate::Wait, "it is on its way");
}

#[test]
fn an_absent_key_is_given_up_only_when_no_witness_would_cosign_it_any_more() {
    let none = state(None);
    for (what, ledger_ms, local_ms, size, fate) in [
        ("both clocks past the end", END + 1, END + 1, 0, Fate::Drop),
        ("the deadline alone is not the end", DEADLINE + 1, DEADLINE + 1, 0, Fate::Wait),
        ("the end itself is not past", END, END, 0, Fate::Wait),
        ("our clock is behind", END + 1, END, 0, Fate::Wait),
        ("the round was before the end, though our clock is past it", END, END + 50_000, 0, Fate::Wait),
        ("witnesses know more than we do", END + 1, END + 1, 1, Fate::Wait),
    ] {
        assert_eq!(decide(&none, &none, Some(&round(size, ledger_ms)), local_ms), fate, "{what}");
    }
    assert_eq!(decide(&none, &none, None, u64::MAX), Fate::Wait, "not fresh");
}
