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
        self.store.write(Need::Ordinary, bundle.len(), |transaction| tables::append(transaction, expected, new, bundle))
    }

    fn read(&mut self, from: u64, bytes_max: usize) -> Result<Result<Vec<Bundle>, u64>, GuestError> {
        self.store.read(|transaction| tables::read(transaction, from, bytes_max, READ_PREFIX_BYTES))
    }

    fn put_checkpoint(&mut self, size: u64, bytes: &[u8]) -> Result<(), GuestError> {
        if bytes.len() > CHECKPOINT_BYTES_MAX {
            return Err(too_large("a checkpoint", CHECKPOINT_BYTES_MAX as u64));
        }
        let result =
            self.store.write(Need::Small, bytes.len(), |transaction| tables::put_checkpoint(transaction, size, bytes));
        result.map_err(repeatable)
    }

    fn latest_checkpoint(&mut self, size: u64) -> Result<Option<Checkpoint>, GuestError> {
        self.store.read(|transaction| tables::latest_checkpoint(transaction, size))
    }

    fn put_snapshot(&mut self, info: &SnapshotInfo, offset: u64, bytes: &[u8]) -> Result<(), GuestError> {
        if info.total_bytes > SNAPSHOT_BYTES_MAX || bytes.len() > SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(too_large("a snapshot", SNAPSHOT_BYTES_MAX));
        }
        let result = self
            .store
            .write(Need::Ordinary, bytes.len(), |transaction| tables::put_snapshot(transaction, info, offset, bytes));
        result.map_err(repeatable)
    }

    fn get_snapshot(&mut self, size: u64, offset: u64, bytes_max: usize) -> Result<Option<Snapshot>, GuestError> {
        self.store.read(|transaction| tables::get_snapshot(transaction, size, offset, bytes_max))
    }

    fn prune(&mut self, up_to: u64) -> Result<(), GuestError> {
        self.store.read(|transaction| tables::may_prune(transaction, up_to))?;
        loop {
            let result = self.store.write(Need::Frees, 0, |transaction| tables::prune_some(transaction, up_to));
            if !result.map_err(repeatable)? {
                return Ok(());
            }
        }
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        let mut health = Health::ok();
        health.used_bytes = self.store.used_bytes();
        health.sync_micros = self.store.sync_micros;
        match (self.store.free_bytes(), self.store.read(tables::head)) {
            (_, Err(error)) => {
                health.state = HealthState::Down;
                health.detail = error.message;
            }
            (Err(error), _) => {
                health.state = HealthState::Down;
                health.detail = error.to_string();
            }
            (Ok(free), Ok(_)) => {
                health.free_bytes = Some(free);
                if free < self.store.reserve_bytes() {
                    health.state = HealthState::ReadOnly;
                    health.detail =
                        format!("{} MiB free, {} MiB are kept free", free >> 20, self.store.reserve_bytes() >> 20);
                } else if !self.store.trouble.is_empty() {
                    health.state = HealthState::ReadOnly;
                    health.detail.clone_from(&self.store.trouble);
                }
            }
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
