use super::*;
use crate::node::vault::{StagedKeys, VaultState};
use mayfly_plugin_api::Tier;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Instant;

const DEALER: DeviceId = DeviceId([8; 32]);

/// A vault in memory that can be told to fail. What it holds outlives the store, as a chip outlives the agent.
#[derive(Default)]
struct Keys {
    /// Added to keys of fresh openings.
    off: AtomicU8,
    chip: Mutex<Chip>,
}

#[derive(Default)]
struct Chip {
    /// At which it is; `seen`: at which the agent saw it last.
    generation: u64,
    seen: u64,
    /// Told apart from an earlier stage of the same generation.
    staged: Option<(u64, u8)>,
    stages: u8,
    /// What seals in the committed generation.
    committed: u8,
    commits: usize,
    fails: Option<Fails>,
}

/// Which call fails next, and whether it has happened all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fails {
    Stage,
    CommitBefore,
    CommitAfter,
    /// The commit's answer is lost, and the vault says nothing more until it is well again.
    CommitAfterThenSilent,
    CommitBeforeThenSilent,
    Silent,
    Keys,
}

fn failed() -> VaultError {
    VaultError::Closed(VaultState::Closed("it does not answer".into()))
}

impl Keys {
    fn new() -> Arc<Keys> {
        let chip = Chip { generation: 1, seen: 1, ..Chip::default() };
        Arc::new(Keys { chip: Mutex::new(chip), ..Keys::default() })
    }

    fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap()
    }

    fn fail(&self, how: impl Into<Option<Fails>>) {
        self.chip().fails = how.into();
    }

    /// What this stage of a generation seals with.
    fn secret(&self, generation: u64, stage: u8, opening: VaultOpening) -> Arc<Secret<32>> {
        secret32([number(opening), generation as u8, stage])
    }
}

fn number(opening: VaultOpening) -> u8 {
    match opening {
        VaultOpening::Boot => 0,
        VaultOpening::Window(_) => 1,
        VaultOpening::PerRelease => 2,
    }
}

fn secret32(first: [u8; 3]) -> Arc<Secret<32>> {
    Arc::new(Secret::new_with(|b| b[..3].copy_from_slice(&first)).unwrap())
}

impl SealingKeys for Keys {
    fn generation(&self) -> u64 {
        let Chip { seen, .. } = *self.chip();
        seen
    }

    fn key(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        let chip = self.chip();
        if chip.fails == Some(Fails::Keys) {
            return Err(failed());
        }
        if generation != chip.generation {
            return Err(VaultError::Generation { sealed: generation, now: chip.generation });
        }
        Ok(self.secret(generation, chip.committed, opening))
    }

    fn key_anew(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        match self.off.load(Ordering::Relaxed) {
            0 => self.key(generation, opening),
            off => Ok(secret32([number(opening) + off, 0, 0])),
        }
    }

    fn stage(&self) -> Result<StagedKeys, VaultError> {
        let mut chip = self.chip();
        chip.stages += 1;
        let (next, stage) = (chip.generation + 1, chip.stages);
        chip.staged = Some((next, stage));
        if chip.fails == Some(Fails::Stage) {
            return Err(failed());
        }
        let of = |opening| self.secret(next, stage, opening);
        let keys = vec![(Tier::Boot, of(VaultOpening::Boot)), (Tier::PerRelease, of(VaultOpening::PerRelease))];
        Ok(StagedKeys::new(next, keys))
    }

    fn commit(&self, staged: &StagedKeys) -> Result<(), VaultError> {
        let mut chip = self.chip();
        let silent = match chip.fails {
            Some(Fails::CommitBefore) => return Err(failed()),
            Some(Fails::CommitBeforeThenSilent) => {
                chip.fails = Some(Fails::Silent);
                return Err(failed());
            }
            Some(Fails::CommitAfterThenSilent) => Some(Fails::Silent),
            other => other,
        };
        let (next, stage) = chip.staged.take().expect("staged");
        assert_eq!(staged.generation(), next);
        (chip.generation, chip.committed) = (next, stage);
        chip.commits += 1;
        match chip.fails {
            Some(Fails::CommitAfter | Fails::CommitAfterThenSilent) => {
                chip.fails = silent;
                Err(failed())
            }
            _ => {
                chip.seen = next;
                Ok(())
            }
        }
    }

    fn settle(&self) -> Result<u64, VaultError> {
        let mut chip = self.chip();
        if chip.fails == Some(Fails::Silent) {
            return Err(failed());
        }
        chip.seen = chip.generation;
        Ok(chip.seen)
    }

    fn discard_staged(&self) -> Result<(), VaultError> {
        self.chip().staged = None;
        Ok(())
    }
}

fn share(value: u8) -> Secret<64> {
    Secret::new_with(|b| (b[0], b[32]) = (value, value)).unwrap()
}

/// Of key and shard `number`; `record` stands for what the dealer's record says.
fn label(number: u16, record: u8, dealer: DeviceId) -> ShardLabel {
    let mut id = [0; 32];
    id[..2].copy_from_slice(&number.to_be_bytes());
    ShardLabel {
        shard: ShardId(id),
        key: KeyId(id),
        generation: 1,
        epoch: 1,
        index: 1,
        opening: VaultOpening::PerRelease,
        accepted: [record; 32],
        deadline_ms: 1,
        dealer,
    }
}

struct Opened {
    dir: tempfile::TempDir,
    keys: Arc<Keys>,
    store: Option<ShardStore>,
}

impl Opened {
    fn new() -> Self {
        let mut opened = Opened { dir: tempfile::tempdir().unwrap(), keys: Keys::new(), store: None };
        opened.restart();
        opened
    }

    fn restart(&mut self) {
        self.store = None;
        let mut chip = self.keys.chip();
        chip.seen = chip.generation;
        drop(chip);
        let path = self.dir.path().join("shards.redb");
        self.store = Some(ShardStore::open(&path, DeviceId([1; 32]), self.keys.clone()).unwrap());
    }

    fn store(&self) -> &ShardStore {
        self.store.as_ref().unwrap()
    }
}

#[test]
fn a_second_offer_never_takes_the_place_of_a_shard() {
    let mut opened = Opened::new();
    let (first, second) = (label(1, 1, DEALER), label(1, 2, DeviceId([9; 32])));
    let elsewhere = ShardLabel { shard: ShardId([7; 32]), ..second.clone() };
    opened.store().accept(&first, &share(5)).unwrap();
    for promoted in [false, true] {
        for restarted in [false, true] {
            if restarted {
                opened.restart();
            }
            let store = opened.store();
            assert!(matches!(store.accept(&second, &share(6)), Err(ShardError::Taken(_))), "{promoted} {restarted}");
            assert!(
                matches!(store.accept(&elsewhere, &share(6)), Err(ShardError::Taken(_))),
                "another place of the key"
            );
            store.accept(&first, &share(5)).expect("the same offer again changes nothing");
            let present = if promoted { store.active() } else { store.pending() };
            assert_eq!(present, std::slice::from_ref(&first));
        }
        if !promoted {
            opened.store().promote(&first.shard).unwrap();
        }
    }
    assert_eq!(opened.store().open_share(&first.shard).unwrap().expose()[0], 5);
    opened.store().erase(&first.shard).unwrap();
    opened.store().accept(&second, &share(6)).unwrap();
    opened.store().drop_pending(&second.shard).unwrap();
    opened.store().accept(&first, &share(5)).expect("what is gone stands in nobody's way");
}

#[test]
fn offers_at_the_same_time_leave_one_shard_and_one_acceptance() {
    let opened = Opened::new();
    let store = opened.store();
    for number in 0..20 {
        let taken = |record: u8| store.accept(&label(number, record, DEALER), &share(record)).is_ok();
        let accepted: Vec<u8> = std::thread::scope(|scope| {
            let tries: Vec<_> = (1..5).map(|record| (record, scope.spawn(move || taken(record)))).collect();
            tries.into_iter().filter_map(|(record, done)| done.join().unwrap().then_some(record)).collect()
        });
        let [record] = accepted[..] else { panic!("{accepted:?} were accepted") };
        assert_eq!(store.pending_label(&label(number, 0, DEALER).shard).unwrap().accepted, [record; 32]);
    }
}

#[test]
fn a_record_that_cannot_be_read_is_not_overwritten() {
    let mut opened = Opened::new();
    opened
        .store()
        .transact(|write| {
            write.open_table(PENDING)?.insert(&label(1, 1, DEALER).shard.0, &b"?"[..])?;
            Ok(())
        })
        .unwrap();
    opened.restart();
    assert!(matches!(opened.store().accept(&label(1, 1, DEALER), &share(5)), Err(ShardError::Taken(_))));
}

#[test]
fn a_dealer_has_a_quota_and_leaves_room_for_others() {
    let opened = Opened::new();
    let store = opened.store();
    let model = store.seal(&label(0, 0, DEALER), Standing::Pending, &share(1)).unwrap();
    for number in 0..PENDING_PER_DEALER_MAX as u16 {
        let sealed = Sealed { label: label(number, 1, DEALER), ..model.clone() };
        store.pending.write().unwrap().insert(sealed.label.shard, Arc::new(sealed));
    }
    assert!(matches!(store.accept(&label(9999, 1, DEALER), &share(5)), Err(ShardError::TooManyOfDealer)));
    store.accept(&label(9999, 1, DeviceId([9; 32])), &share(5)).unwrap();
    store.drop_pending(&label(0, 1, DEALER).shard).unwrap();
    store.accept(&label(9998, 1, DEALER), &share(5)).unwrap();
}

#[test]
fn what_the_vault_cannot_open_again_is_not_accepted() {
    let opened = Opened::new();
    opened.keys.off.store(100, Ordering::Relaxed);
    assert!(matches!(opened.store().accept(&label(1, 1, DEALER), &share(5)), Err(ShardError::Unsteady)));
    assert_eq!(opened.store().counts(), (0, 0));
    opened.keys.off.store(0, Ordering::Relaxed);
    opened.store().accept(&label(1, 1, DEALER), &share(5)).unwrap();
}

/// Shards 0 to 9 are active, 10 to 14 pending; 3 and 12 are erased.
fn filled() -> Opened {
    let opened = Opened::new();
    for number in 0..15 {
        let opening = if number % 2 == 0 { VaultOpening::Boot } else { VaultOpening::PerRelease };
        opened.store().accept(&ShardLabel { opening, ..label(number, 1, DEALER) }, &share(number as u8)).unwrap();
        if number < 10 {
            opened.store().promote(&id(number)).unwrap();
        }
    }
    opened.store().erase(&id(3)).unwrap();
    opened.store().drop_pending(&id(12)).unwrap();
    assert_eq!(opened.store().waiting(), 2);
    opened
}

fn id(number: u16) -> ShardId {
    label(number, 1, DEALER).shard
}

/// Every live shard is here once, sealed under the vault's generation, and opens; the erased ones are nowhere.
fn check_all_live(opened: &Opened, what: &str) {
    let (store, generation) = (opened.store(), opened.keys.chip().generation);
    assert_eq!(store.counts(), (9, 4), "{what}");
    let open = |from: &RwLock<HashMap<ShardId, Arc<Sealed>>>, number: u16| {
        let sealed = get(from, &id(number)).unwrap_or_else(|| panic!("{what}: {number} is gone"));
        assert_eq!(sealed.vault_generation, generation, "{what}: {number}");
        assert_eq!(store.unseal(&sealed).unwrap().expose()[0], number as u8, "{what}");
    };
    (0..10).filter(|number| *number != 3).for_each(|number| open(&store.active, number));
    (10..15).filter(|number| *number != 12).for_each(|number| open(&store.pending, number));
    assert!(store.books().next.is_none() && !store.books().unsettled, "{what}");
    let rows = |table| store.db.begin_read().unwrap().open_table(table).unwrap().len().unwrap();
    assert_eq!((rows(ACTIVE), rows(PENDING), rows(NEXT)), (9, 4, 0), "{what}");
}

#[test]
fn a_revocation_moves_every_live_shard_by_one_commit_and_no_old_copy_opens() {
    let mut opened = filled();
    let copy = opened.dir.path().join("copy.redb");
    // As a backup would have it: the file of a store that is closed.
    opened.store = None;
    std::fs::copy(opened.dir.path().join("shards.redb"), &copy).unwrap();
    opened.restart();
    assert_eq!(opened.store().waiting(), 2, "what waits outlives a restart");
    let revoked = opened.store().revoke().unwrap();
    assert_eq!((revoked.generation, revoked.kept, revoked.revoked), (2, 13, 2));
    assert_eq!((opened.keys.chip().commits, opened.store().waiting()), (1, 0));
    check_all_live(&opened, "after it");
    opened.restart();
    check_all_live(&opened, "after a restart");
    assert_eq!(opened.store().waiting(), 0);
    let old = ShardStore::open(&copy, DeviceId([1; 32]), opened.keys.clone()).unwrap();
    for label in old.active() {
        let error = old.open_share(&label.shard).unwrap_err();
        assert!(matches!(error, ShardError::Lost { sealed: 1, now: 2, .. }), "{error}");
    }
}

#[test]
fn whatever_fails_or_crashes_there_is_one_generation_with_every_live_shard() {
    use Fails::*;
    for fails in [Stage, Keys, CommitBefore, CommitAfter, CommitBeforeThenSilent, CommitAfterThenSilent] {
        for crashes in [false, true] {
            let mut opened = filled();
            let what = format!("{fails:?}, crash {crashes}");
            opened.keys.fail(fails);
            let outcome = opened.store().revoke();
            let silent = opened.keys.chip().fails == Some(Silent);
            assert_eq!(outcome.is_ok(), fails == CommitAfter, "{what}: {outcome:?}");
            if silent {
                assert!(matches!(outcome, Err(ShardError::Undecided(2))), "{what}: {outcome:?}");
                let new = opened.store().accept(&label(99, 1, DEALER), &share(9)).unwrap_err();
                assert!(
                    matches!(new, ShardError::Undecided(2) | ShardError::Vault(_) | ShardError::Restless),
                    "{what}: {new}"
                );
            }
            opened.keys.fail(None);
            if crashes {
                opened.restart();
            } else {
                opened.store().undisturbed(|| Ok(())).unwrap();
            }
            let happened = [CommitAfter, CommitAfterThenSilent].contains(&fails);
            assert_eq!(opened.keys.chip().generation, if happened { 2 } else { 1 }, "{what}");
            if !happened && fails != Stage {
                assert_eq!(opened.keys.chip().staged, None, "{what}: what is staged is discarded");
            }
            check_all_live(&opened, &what);
            assert_eq!(opened.store().waiting(), if happened { 0 } else { 2 }, "{what}");
            let more = opened.store().revoke().unwrap();
            assert_eq!(more.generation, if happened { 3 } else { 2 }, "{what}");
            check_all_live(&opened, &what);
        }
    }
}

/// The process ends between the steps of a revocation: nothing more of it runs, and another store opens the same file.
#[test]
fn a_crash_between_any_two_steps_is_recovered_at_the_start() {
    for step in 0..5 {
        let mut opened = filled();
        let store = opened.store();
        let staged = (step > 0).then(|| store.vault.stage().unwrap());
        let next = Arc::new(match (step > 1, staged) {
            (true, Some(keys)) => {
                store.reseal(keys).unwrap();
                store.books().next.as_ref().and_then(|next| next.keys.clone())
            }
            _ => None,
        });
        if step > 2 {
            store.vault.commit(next.as_ref().as_ref().unwrap()).unwrap();
        }
        if step > 3 {
            store.follow();
        }
        opened.restart();
        assert_eq!(opened.keys.chip().generation, if step > 2 { 2 } else { 1 });
        assert_eq!(opened.keys.chip().staged, None, "what was staged is discarded");
        check_all_live(&opened, &format!("step {step}"));
        assert_eq!(opened.store().waiting(), if step > 2 { 0 } else { 2 });
        opened.store().revoke().unwrap();
        check_all_live(&opened, &format!("step {step}, again"));
    }
}

#[test]
fn what_changes_during_a_revocation_changes_in_both_generations() {
    for commits in [false, true] {
        for restarts in [false, true] {
            let mut opened = filled();
            let what = format!("commits {commits}, restarts {restarts}");
            let store = opened.store();
            store.reseal(store.vault.stage().unwrap()).unwrap();
            store.accept(&label(20, 1, DEALER), &share(20)).unwrap();
            store.accept(&label(21, 1, DEALER), &share(21)).unwrap();
            store.promote(&id(21)).unwrap();
            store.promote(&id(10)).unwrap();
            store.erase(&id(4)).unwrap();
            store.drop_pending(&id(11)).unwrap();
            if commits {
                store.commit().unwrap();
            } else {
                store.decide().unwrap();
            }
            if restarts {
                opened.restart();
            }
            let store = opened.store();
            for number in [0, 1, 2, 5, 9, 10, 21] {
                assert_eq!(store.open_share(&id(number)).unwrap().expose()[0], number as u8, "{what}: {number}");
            }
            assert!(store.pending_label(&id(20)).is_some() && store.pending_label(&id(13)).is_some(), "{what}");
            assert!(!store.has(&id(4)) && store.pending_label(&id(11)).is_none() && !store.has(&id(3)), "{what}");
            assert_eq!(store.counts(), (10, 3), "{what}");
            // 3 and 12 were gone before; 4 and 11 are in the staged records of a copy, which a commit brings to life.
            assert_eq!(store.waiting(), if commits { 2 } else { 4 }, "{what}");
            store.revoke().unwrap();
            assert_eq!(store.waiting(), 0, "{what}");
            assert_eq!(store.counts(), (10, 3), "{what}");
        }
    }
}

#[test]
fn releases_and_offers_go_on_during_revocations() {
    let opened = filled();
    let (store, over) = (opened.store(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for number in [0, 1, 2, 4, 5, 6, 7, 8, 9] {
                        assert_eq!(store.open_share(&id(number)).unwrap().expose()[0], number as u8);
                    }
                }
            });
        }
        let offers = scope.spawn(|| {
            for number in 100..140 {
                store.accept(&label(number, 1, DEALER), &share(number as u8)).unwrap();
                store.promote(&id(number)).unwrap();
                if number % 2 == 0 {
                    store.erase(&id(number)).unwrap();
                }
            }
        });
        while !offers.is_finished() {
            store.revoke().unwrap();
        }
        over.store(true, Ordering::Relaxed);
        offers.join().unwrap();
    });
    assert_eq!(store.counts(), (9 + 20, 4));
    store.revoke().unwrap();
    assert_eq!((store.counts(), store.waiting()), ((9 + 20, 4), 0));
    (100..140).filter(|n| n % 2 == 1).for_each(|n| assert_eq!(store.open_share(&id(n)).unwrap().expose()[0], n as u8));
}

#[test]
fn damaged_records_stay_behind_lost_ones_are_told_and_a_vault_that_was_put_back_stops_everything() {
    let mut opened = filled();
    let change = |store: &ShardStore, number: u16, change: &dyn Fn(&mut Sealed)| {
        let mut active = store.active.write().unwrap();
        let mut sealed = Sealed::clone(&active[&id(number)]);
        change(&mut sealed);
        active.insert(id(number), Arc::new(sealed));
    };
    change(opened.store(), 0, &|sealed| sealed.blob[20] ^= 1);
    change(opened.store(), 1, &|sealed| sealed.vault_generation = 0);
    assert_eq!(opened.store().revoke().unwrap().kept, 12);
    opened.restart();
    assert_eq!(opened.store().counts(), (8, 4));
    assert!(!opened.store().has(&id(0)));
    assert_eq!(opened.store().lost().into_iter().map(|label| label.shard).collect::<Vec<_>>(), [id(1)]);
    let refused = opened.store().open_share(&id(1)).unwrap_err();
    assert!(matches!(refused, ShardError::Lost { sealed: 0, now: 2, .. }), "{refused}");
    opened.keys.chip().generation = 1;
    opened.restart();
    let error = opened.store().revoke().unwrap_err();
    assert!(matches!(error, ShardError::Vault(VaultError::Generation { sealed: 2, now: 1 })), "{error}");
    assert_eq!((opened.store().counts(), opened.keys.chip().commits), ((8, 4), 1), "nothing is lost by it");
}

#[test]
#[ignore = "figures"]
fn figures() {
    let opened = Opened::new();
    let store = opened.store();
    let model = store.seal(&label(0, 1, DEALER), Standing::Active, &share(1)).unwrap();
    for number in 0..1000 {
        let sealed = store.seal(&label(number, 1, DEALER), Standing::Active, &share(1)).unwrap();
        store.active.write().unwrap().insert(id(number), Arc::new(sealed));
    }
    drop(model);
    for _ in 0..5 {
        let revoked = store.revoke().unwrap();
        println!("{} shards moved in {:?}, vault apart", revoked.kept, revoked.took);
    }
    let (began, rounds) = (Instant::now(), 100_000);
    for number in 0..rounds {
        store.open_share(&id(number as u16 % 1000)).unwrap();
    }
    println!("open_share: {:.2} us", began.elapsed().as_secs_f64() * 1e6 / f64::from(rounds));
}
