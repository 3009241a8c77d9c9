//! Bans that were seen before the ledger contains them. Kept on disk: a restart must not give a banned device its rights back.

use super::data::{DataError, read_file, replace_file};
use arc_swap::ArcSwap;
use mayfly_protocol::on_sight::{self, NotOnSight};
use mayfly_protocol::{DeviceId, State, cbor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bans that wait for the ledger.
const ALARMS_MAX: usize = 256;

/// Why an alarm is not taken.
#[derive(Debug, thiserror::Error)]
pub enum AlarmError {
    /// It does not take effect on sight.
    #[error(transparent)]
    NotOnSight(#[from] NotOnSight),
    /// It cannot be saved.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Too many wait for the ledger.
    #[error("{ALARMS_MAX} bans wait for the ledger already")]
    TooMany,
}

/// Banned devices, each with the entry that says so.
#[derive(Debug)]
pub struct Alarms {
    path: PathBuf,
    banned: ArcSwap<BTreeMap<DeviceId, Vec<u8>>>,
    writing: Mutex<()>,
}

impl Alarms {
    /// Reads what an earlier run had seen.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(path: &Path) -> Result<Alarms, DataError> {
        let banned = match read_file(path)? {
            None => BTreeMap::new(),
            Some(bytes) => read(&bytes).ok_or_else(|| DataError::Damaged(path.into()))?,
        };
        Ok(Alarms { path: path.into(), banned: ArcSwap::from_pointee(banned), writing: Mutex::default() })
    }

    /// Whether the device is banned by an entry that the ledger may not contain yet.
    #[inline]
    pub fn banned(&self, device: &DeviceId) -> bool {
        let banned = self.banned.load();
        !banned.is_empty() && banned.contains_key(device)
    }

    /// Takes an entry that came from anywhere. The device that is banned by it, if that is news.
    ///
    /// # Errors
    /// [`AlarmError`].
    pub fn hear(&self, tip: &State, entry: &[u8]) -> Result<Option<DeviceId>, AlarmError> {
        let device = on_sight::ban(tip, entry)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut banned = BTreeMap::clone(&self.banned.load());
        if banned.contains_key(&device) {
            return Ok(None);
        }
        if banned.len() >= ALARMS_MAX {
            return Err(AlarmError::TooMany);
        }
        banned.insert(device, entry.to_vec());
        // In effect even if the disk is full: it only removes rights.
        self.banned.store(Arc::new(banned.clone()));
        self.save(&banned)?;
        Ok(Some(device))
    }

    /// Forgets what the ledger contains, or has overtaken.
    pub fn settle(&self, tip: &State) {
        if self.banned.load().is_empty() {
            return;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut banned = BTreeMap::clone(&self.banned.load());
        let before = banned.len();
        banned.retain(|_, entry| on_sight::ban(tip, entry) != Err(NotOnSight::Overtaken));
        if banned.len() < before {
            if let Err(error) = self.save(&banned) {
                tracing::warn!(%error, "cannot save which bans are settled");
            }
            self.banned.store(Arc::new(banned));
        }
    }

    /// The entries, to pass them on.
    pub fn entries(&self) -> Vec<Vec<u8>> {
        self.banned.load().values().cloned().collect()
    }

    fn save(&self, banned: &BTreeMap<DeviceId, Vec<u8>>) -> Result<(), DataError> {
        let rows: Vec<(DeviceId, minicbor::bytes::ByteVec)> =
            banned.iter().map(|(device, entry)| (*device, entry.clone().into())).collect();
        replace_file(&self.path, &cbor::to_vec(&rows))
    }
}

fn read(bytes: &[u8]) -> Option<BTreeMap<DeviceId, Vec<u8>>> {
    let rows: Vec<(DeviceId, minicbor::bytes::ByteVec)> = cbor::from_exact(bytes).ok()?;
    Some(rows.into_iter().map(|(device, entry)| (device, entry.into())).collect())
}
