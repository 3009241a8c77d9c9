//! The calls of the plugin interface.

use crate::config::Config;
use crate::store::{Need, Store};
use crate::tables;
use mayfly_plugin_abi::{
    BUNDLE_BYTES_MAX, BackendGuest, Bundle, CHECKPOINT_BYTES_MAX, Caps, Checkpoint, GuestError, Head, Health,
    HealthState, READ_PREFIX_BYTES, SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, Snapshot, SnapshotInfo, Status,
};
use std::path::Path;

/// Largest bundle: the interface's.
const BUNDLE_MAX: usize = BUNDLE_BYTES_MAX;

/// An open embedded ledger.
pub struct Embedded {
    store: Store,
}

impl BackendGuest for Embedded {
    const NAME: &'static str = "embedded";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn open(config: &str, data_dir: &Path) -> Result<Embedded, GuestError> {
        Ok(Embedded { store: Store::open(Config::parse(config)?, data_dir)? })
    }

    fn caps(&mut self) -> Result<Caps, GuestError> {
        Ok(Caps {
            durable_on_ack: true,
            linearizable: true,
            has_wait: false,
            bundle_bytes_max: BUNDLE_MAX as u64,
            capacity_bytes: None,
        })
    }

    fn head(&mut self) -> Result<Head, GuestError> {
        self.store.read(tables::head)
    }

    fn append_if_head(&mut self, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Option<Head>, GuestError> {
        if bundle.len() > BUNDLE_MAX {
            return Err(too_large("a bundle", BUNDLE_MAX as u64));
        }
        let grows = new.size > expected.size;
        let only_epoch =
            new.size == expected.size && new.bundle_hash == expected.bundle_hash && new.epoch > expected.epoch;
        let allowed = if bundle.is_empty() { only_epoch } else { grows && new.epoch >= expected.epoch };
        if !allowed {
            return Err(GuestError::new(Status::Invalid, "an append that changes the head in no allowed way"));
        }
        self.store.write(Need::Ordinary, |transaction| tables::append(transaction, expected, new, bundle))
    }

    fn read(&mut self, from: u64, bytes_max: usize) -> Result<Result<Vec<Bundle>, u64>, GuestError> {
        self.store.read(|transaction| tables::read(transaction, from, bytes_max, READ_PREFIX_BYTES))
    }

    fn put_checkpoint(&mut self, size: u64, bytes: &[u8]) -> Result<(), GuestError> {
        if bytes.len() > CHECKPOINT_BYTES_MAX {
            return Err(too_large("a checkpoint", CHECKPOINT_BYTES_MAX as u64));
        }
        let result = self.store.write(Need::Small, |transaction| tables::put_checkpoint(transaction, size, bytes));
        result.map_err(repeatable)
    }

    fn latest_checkpoint(&mut self, size: u64) -> Result<Option<Checkpoint>, GuestError> {
        self.store.read(|transaction| tables::latest_checkpoint(transaction, size))
    }

    fn put_snapshot(&mut self, info: &SnapshotInfo, offset: u64, bytes: &[u8]) -> Result<(), GuestError> {
        if info.total_bytes > SNAPSHOT_BYTES_MAX || bytes.len() > SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(too_large("a snapshot", SNAPSHOT_BYTES_MAX));
        }
        let result =
            self.store.write(Need::Ordinary, |transaction| tables::put_snapshot(transaction, info, offset, bytes));
        result.map_err(repeatable)
    }

    fn get_snapshot(&mut self, size: u64, offset: u64, bytes_max: usize) -> Result<Option<Snapshot>, GuestError> {
        self.store.read(|transaction| tables::get_snapshot(transaction, size, offset, bytes_max))
    }

    fn prune(&mut self, up_to: u64) -> Result<(), GuestError> {
        self.store.read(|transaction| tables::may_prune(transaction, up_to))?;
        loop {
            let result = self.store.write(Need::Frees, |transaction| tables::prune_some(transaction, up_to));
            if !result.map_err(repeatable)? {
                return Ok(());
            }
        }
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        let mut health = Health::ok();
        health.used_bytes = self.store.used_bytes();
        health.sync_micros = self.store.sync_micros;
        health.free_bytes = self.store.free_bytes().ok();
        let unwell = match (self.store.read(tables::head), self.store.lack(Need::Ordinary)) {
            (Err(error), _) => Some((HealthState::Down, error.message)),
            (_, Err(error)) => Some((HealthState::Down, error.to_string())),
            (_, Ok(Some(lack))) => Some((HealthState::ReadOnly, lack)),
            (_, Ok(None)) => self.store.trouble().map(|trouble| (HealthState::ReadOnly, trouble.to_owned())),
        };
        if let Some((state, detail)) = unwell {
            (health.state, health.detail) = (state, detail);
        }
        Ok(health)
    }
}

fn too_large(what: &str, limit: u64) -> GuestError {
    GuestError::new(Status::TooLarge, format!("{what} of more than {limit} bytes"))
}

/// A doubtful write of something that may simply be written again.
fn repeatable(error: GuestError) -> GuestError {
    match error.status {
        Status::Unknown => GuestError::new(Status::Transient, error.message),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::faults::When;
    use sha2::{Digest, Sha256};

    struct Ledger {
        dir: tempfile::TempDir,
    }

    impl Ledger {
        fn new() -> Ledger {
            Ledger { dir: tempfile::tempdir().unwrap() }
        }

        fn try_open(&self, config: &str) -> Result<Embedded, GuestError> {
            Embedded::open(config, self.dir.path())
        }

        fn open(&self) -> Embedded {
            self.try_open("reserve_mib = 0").unwrap()
        }

        fn file(&self) -> std::path::PathBuf {
            self.dir.path().join("ledger.redb")
        }
    }

    fn content(place: u64) -> Vec<u8> {
        place.to_be_bytes().repeat(100)
    }

    fn after(head: &Head, bundle: &[u8]) -> Head {
        let bundle_hash = Sha256::new().chain_update(head.bundle_hash).chain_update(bundle).finalize().into();
        Head { size: head.size + 1, epoch: head.epoch, bundle_hash }
    }

    fn fill(ledger: &mut Embedded, count: u64) {
        for _ in 0..count {
            let head = ledger.head().unwrap();
            let bytes = content(head.size);
            assert_eq!(ledger.append_if_head(&head, &after(&head, &bytes), &bytes).unwrap(), None);
        }
    }

    /// Every entry below the head, as `fill` made it.
    fn check(ledger: &mut Embedded) -> Result<u64, GuestError> {
        let head = ledger.head()?;
        let mut from = 0;
        while from < head.size {
            for bundle in ledger.read(from, 100_000)?.unwrap() {
                assert_eq!((bundle.first, &bundle.bytes), (from, &content(from)), "wrong, and not noticed");
                from = bundle.end;
            }
        }
        Ok(head.size)
    }

    /// Each write, growth and sync of an append is lost, done half or done but reported failed, with the disk full from
    /// then on. What was acknowledged stays; after room was made the append goes on by the gateway's rule.
    #[test]
    fn a_disk_that_fills_up_at_any_step_of_an_append() {
        for when in [When::Before, When::Half, When::After] {
            let ledger = Ledger::new();
            let mut open = ledger.open();
            fill(&mut open, 20);
            let (mut unknown, mut refused) = (0, 0);
            for step in 0.. {
                let head = open.head().unwrap();
                let bytes = content(head.size);
                let new = after(&head, &bytes);
                open.store.faults.full_at(step, when);
                let answer = open.append_if_head(&head, &new, &bytes);
                let whole = answer.is_ok();
                if let Err(error) = &answer {
                    assert!(error.message.contains("ledger.redb") || error.message.contains("no storage"), "{error}");
                    let health = open.health().unwrap();
                    assert_ne!(health.state, HealthState::Ok, "step {step} {when:?}");
                    match error.status {
                        Status::Unknown => unknown += 1,
                        Status::ReadOnly | Status::Io => refused += 1,
                        other => panic!("step {step} {when:?}: {other:?} {error}"),
                    }
                }
                let tried = open.store.faults.heal();
                let now = open.head().unwrap();
                assert!(now == head || now == new, "step {step} {when:?}: a head that nobody wrote");
                if matches!(&answer, Err(error) if error.status != Status::Unknown) {
                    assert_eq!(now, head, "step {step} {when:?}: refused for certain, yet stored");
                }
                if now == head {
                    assert!(!whole, "step {step} {when:?}: acknowledged and gone");
                    assert_eq!(open.append_if_head(&head, &new, &bytes).unwrap(), None, "step {step} {when:?}");
                }
                fill(&mut open, 1);
                assert_eq!(open.health().unwrap().state, HealthState::Ok, "step {step} {when:?}: writing goes on");
                check(&mut open).unwrap();
                if tried <= step {
                    break;
                }
            }
            assert!(unknown + refused > 3, "{when:?}: {unknown} unknown, {refused} refused");
        }
    }

    #[test]
    fn a_nearly_full_disk_refuses_before_it_is_touched() {
        let ledger = Ledger::new();
        fill(&mut ledger.open(), 3);
        let mut open = ledger.try_open("reserve_mib = 1048576").unwrap();
        let head = open.head().unwrap();
        let error = open.append_if_head(&head, &after(&head, b"x"), b"x").unwrap_err();
        assert_eq!(error.status, Status::ReadOnly);
        assert!(error.message.contains("nearly full") && error.message.contains("make room"), "{error}");
        assert_eq!(open.health().unwrap().state, HealthState::ReadOnly);
        assert_eq!(
            open.put_snapshot(&SnapshotInfo { size: 1, total_bytes: 1, ..Default::default() }, 0, b"x")
                .unwrap_err()
                .status,
            Status::ReadOnly
        );
        assert_eq!(check(&mut open).unwrap(), 3, "reading goes on");
    }

    /// A flipped byte anywhere is refused or harmless, never a wrong entry.
    #[test]
    fn flipped_bytes() {
        let ledger = Ledger::new();
        let mut open = ledger.open();
        fill(&mut open, 60);
        drop(open);
        let good = std::fs::read(ledger.file()).unwrap();
        let (mut refused, mut harmless) = (0, 0);
        // the header byte by byte, then pages and rows alike
        for position in (0..320).step_by(3).chain((320..good.len()).step_by(4999)) {
            let mut bad = good.clone();
            bad[position] ^= 0x20;
            std::fs::write(ledger.file(), &bad).unwrap();
            match ledger.try_open("reserve_mib = 0").and_then(|mut open| check(&mut open)) {
                Ok(size) => {
                    assert_eq!(size, 60, "byte {position}");
                    harmless += 1;
                }
                Err(error) => {
                    assert_eq!(error.status, Status::Corrupt, "byte {position}: {error}");
                    assert!(error.message.contains("restore"), "{error}");
                    refused += 1;
                }
            }
        }
        assert!(refused > 10 && harmless > 10, "{refused} refused, {harmless} harmless");
        std::fs::write(ledger.file(), &good).unwrap();
        assert_eq!(check(&mut ledger.open()).unwrap(), 60);
    }

    #[test]
    fn torn_empty_and_foreign_files_are_told() {
        let ledger = Ledger::new();
        fill(&mut ledger.open(), 60);
        let good = std::fs::read(ledger.file()).unwrap();
        let half = &good[..good.len() / 2];
        for (what, bytes) in [("half", half), ("one page", &good[..4096]), ("empty", &[][..]), ("foreign", b"not ours")]
        {
            std::fs::write(ledger.file(), bytes).unwrap();
            let error = ledger.try_open("").err().expect("this must not open");
            assert_eq!(error.status, Status::Corrupt, "{what}: {error}");
            assert!(error.message.contains("restore --from-replicas"), "{what}: {error}");
            assert_eq!(std::fs::read(ledger.file()).unwrap(), bytes, "{what}: left as it was found");
        }
    }

    #[test]
    fn a_crash_while_the_file_is_made_starts_again() {
        let ledger = Ledger::new();
        std::fs::write(ledger.dir.path().join("ledger.redb.new"), "half made").unwrap();
        fill(&mut ledger.open(), 1);
        assert_eq!(check(&mut ledger.open()).unwrap(), 1);
    }

    #[test]
    fn a_second_user_is_told() {
        let ledger = Ledger::new();
        let first = ledger.open();
        let error = ledger.try_open("").err().expect("in use");
        assert_eq!(error.status, Status::Busy);
        assert!(error.message.contains("in use by another process"), "{error}");
        drop(first);
        ledger.open();
    }

    #[test]
    fn appends_that_are_never_allowed() {
        let ledger = Ledger::new();
        let mut open = ledger.open();
        let zero = Head::default();
        let one = after(&zero, b"x");
        for (what, new, bundle) in [
            ("no entries", Head { size: 0, ..one }, &b"x"[..]),
            ("entries without bytes", one, b""),
            ("nothing changes", zero, b""),
            ("another hash without bytes", Head { bundle_hash: [1; 32], epoch: 1, ..zero }, b""),
        ] {
            assert_eq!(open.append_if_head(&zero, &new, bundle).unwrap_err().status, Status::Invalid, "{what}");
        }
        let large = vec![0; BUNDLE_BYTES_MAX + 1];
        assert_eq!(open.append_if_head(&zero, &one, &large).unwrap_err().status, Status::TooLarge);
        assert_eq!(open.head().unwrap(), zero);
    }
}
