//! Bans that were seen before the ledger contains them. Kept on disk: a restart must not give a banned device its rights back.
//!
//! A ban is kept until the ledger answers it: the device is banned there, or m administrators have lifted a ban since. When another record
//! of the same administrator has taken its number the ledger can never contain it; it is kept all the same, and told to people.

use super::data::{DataError, read_file, replace_file};
use arc_swap::ArcSwap;
use mayfly_protocol::on_sight::{self, NotOnSight, Place, Seen};
use mayfly_protocol::{DeviceId, State, cbor};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Most bans that wait for the ledger: one for each device, each of a device that the ledger knows.
const ALARMS_MAX: usize = 4096;

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

/// A ban that waits for the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Waiting {
    entry: Vec<u8>,
    /// Size of the ledger when the device was first seen banned: an UNBAN from there on lifts it, whatever the entry says it knew.
    since: u64,
    /// What the ledger could make of the entry when it was looked at last.
    place: Place,
}

/// The devices that are banned by entries which the ledger does not contain, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Banned(BTreeMap<DeviceId, Waiting>);

impl Banned {
    /// Whether this device is.
    #[inline]
    pub fn contains(&self, device: &DeviceId) -> bool {
        !self.0.is_empty() && self.0.contains_key(device)
    }

    /// What to tell people of this device's ban, if there is one.
    pub fn note(&self, device: &DeviceId) -> Option<&'static str> {
        Some(match self.0.get(device)?.place {
            Place::Next | Place::Later => "banned by an administrator; the ledger does not contain the ban yet",
            Place::Overtaken => {
                "banned by an administrator; the ledger has another record in the ban's place and will never contain it: ban the device again \
                 (then it can be lifted, too)"
            }
        })
    }
}

/// Banned devices, each with the entry that says so.
#[derive(Debug)]
pub struct Alarms {
    path: PathBuf,
    banned: ArcSwap<Banned>,
    writing: Mutex<()>,
}

impl Alarms {
    /// Reads what an earlier run had seen.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(path: &Path) -> Result<Alarms, DataError> {
        let banned = match read_file(path)? {
            None => Banned::default(),
            Some(bytes) => read(&bytes).ok_or_else(|| DataError::Damaged(path.into()))?,
        };
        Ok(Alarms { path: path.into(), banned: ArcSwap::from_pointee(banned), writing: Mutex::default() })
    }

    /// Whether the device is banned by an entry that the ledger may not contain yet.
    #[inline]
    pub fn banned(&self, device: &DeviceId) -> bool {
        self.banned.load().contains(device)
    }

    /// All of them now. A decision takes this *before* it takes the ledger's newest state: a ban moves from here to there.
    #[inline]
    pub fn snapshot(&self) -> Arc<Banned> {
        self.banned.load_full()
    }

    /// Takes an entry that came from anywhere. The device that is banned by it, if that is news.
    ///
    /// # Errors
    /// [`AlarmError`].
    pub fn hear(&self, tip: &State, entry: &[u8]) -> Result<Option<DeviceId>, AlarmError> {
        let Seen { device, place } = on_sight::ban(tip, entry)?;
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut banned = Banned::clone(&self.banned.load());
        let before = banned.0.get(&device);
        // One that the ledger can take replaces one that it cannot.
        if before.is_some_and(|waiting| waiting.place >= place) {
            return Ok(None);
        }
        let (news, since) = (before.is_none(), before.map_or(tip.size(), |waiting| waiting.since));
        if news && banned.0.len() >= ALARMS_MAX {
            return Err(AlarmError::TooMany);
        }
        banned.0.insert(device, Waiting { entry: entry.to_vec(), since, place });
        // In effect even if the disk is full: it only removes rights.
        self.banned.store(Arc::new(banned.clone()));
        self.save(&banned)?;
        Ok(news.then_some(device))
    }

    /// Forgets what the ledger answers.
    pub fn settle(&self, tip: &State) {
        if self.banned.load().0.is_empty() {
            return;
        }
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.banned.load_full();
        let mut banned = Banned::clone(&before);
        banned.0.retain(|device, waiting| {
            let lifted = tip.unbanned_at(device).is_some_and(|at| at >= waiting.since);
            match on_sight::ban(tip, &waiting.entry) {
                _ if lifted => return false,
                Err(NotOnSight::Banned | NotOnSight::Lifted) => return false,
                Ok(Seen { place: Place::Overtaken, .. }) if waiting.place != Place::Overtaken => {
                    tracing::error!(%device, name = tip.device_name(device),
                        "the ledger has another record in the place of a ban that was seen on sight: the device stays banned here");
                    waiting.place = Place::Overtaken;
                }
                Ok(seen) => waiting.place = seen.place,
                Err(_) => {}
            }
            true
        });
        if banned == *before {
            return;
        }
        if banned.0.len() < before.0.len()
            && let Err(error) = self.save(&banned)
        {
            tracing::warn!(%error, "cannot save which bans are settled");
        }
        self.banned.store(Arc::new(banned));
    }

    /// The entries, to pass them on.
    pub fn entries(&self) -> Vec<Vec<u8>> {
        self.banned.load().0.values().map(|waiting| waiting.entry.clone()).collect()
    }

    fn save(&self, banned: &Banned) -> Result<(), DataError> {
        let row = |(device, w): (&DeviceId, &Waiting)| (*device, w.entry.clone().into(), w.since);
        let rows: Vec<Row> = banned.0.iter().map(row).collect();
        replace_file(&self.path, &cbor::to_vec(&rows))
    }
}

/// As saved: device, entry, [`Waiting::since`].
type Row = (DeviceId, minicbor::bytes::ByteVec, u64);

fn read(bytes: &[u8]) -> Option<Banned> {
    let rows: Vec<Row> = cbor::from_exact(bytes).ok()?;
    // What the ledger can make of each is looked at as soon as the ledger is here.
    let waiting = |(device, entry, since): Row| (device, Waiting { entry: entry.into(), since, place: Place::Later });
    Some(Banned(rows.into_iter().map(waiting).collect()))
}

#[cfg(test)]
mod tests;
