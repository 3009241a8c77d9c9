use super::*;
use std::sync::atomic::{AtomicU8, Ordering};

const DEALER: DeviceId = DeviceId([8; 32]);

/// A vault whose key for fresh openings can be made to differ from the one that seals.
#[derive(Default)]
struct Keys {
    off: AtomicU8,
}

fn number(opening: VaultOpening) -> u8 {
    match opening {
        VaultOpening::Boot => 0,
        VaultOpening::Window(_) => 1,
        VaultOpening::PerRelease => 2,
    }
}

fn secret32(first: u8) -> Arc<Secret<32>> {
    Arc::new(Secret::new_with(|b| b[0] = first).unwrap())
}

impl SealingKeys for Keys {
    fn generation(&self) -> u64 {
        1
    }

    fn key(&self, _: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        Ok(secret32(number(opening)))
    }

    fn key_anew(&self, _: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        Ok(secret32(number(opening) + self.off.load(Ordering::Relaxed)))
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
        let mut opened = Opened { dir: tempfile::tempdir().unwrap(), keys: Arc::default(), store: None };
        opened.restart();
        opened
    }

    fn restart(&mut self) {
        self.store = None;
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
