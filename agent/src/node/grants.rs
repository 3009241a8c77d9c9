//! Grants: before a holder releases a shard to an assembler for the first time, it saves how many uses it grants until when. So each honest
//! holder can show what it took part in, without a write to the disk for every operation. Format page: `docs/formats/grants.md`.
//!
//! A grant is posted to the ledger within [`POST_WITHIN`], also after a crash; its number keeps it from being posted twice.

use super::data::{DataError, replace_file};
use mayfly_crypto::enc;
use mayfly_protocol::cbor;
use mayfly_protocol::record::{GrantItem, LIST_MAX};
use mayfly_protocol::{DeviceId, KeyId};
use std::collections::{HashMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A grant is on the ledger after this time at the latest, if a gateway can be reached.
pub const POST_WITHIN: Duration = Duration::from_secs(60);
/// Uses of the first grant; each that is used up before its end is followed by one four times as large.
pub const USES_FIRST: u32 = 64;
/// Uses of the largest grant.
pub const USES_MAX: u32 = 1 << 16;
/// Life of a grant in milliseconds of ledger time.
pub const LIFE_MS: u64 = 10 * 60 * 1000;
/// Grants that are in force at once; beyond, those that are over are forgotten first.
const LIVE_MAX: usize = 1 << 16;
/// The file is written anew without posted grants when it is larger than this.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a record's length and check.
const HEADER_BYTES: usize = 2 + CHECK_BYTES;
/// Bytes of SHA-256 that tell a torn record.
const CHECK_BYTES: usize = 4;

/// The file of grants and those in force.
#[derive(Debug)]
pub struct Grants {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    file: File,
    length: u64,
    /// A write has failed, so what the file holds is not known: nothing is released before it is written anew.
    broken: bool,
    next: u64,
    live: HashMap<(KeyId, DeviceId), Live>,
    /// The newest on disk, posted or not.
    newest: Option<GrantItem>,
    /// On disk and not known to be on the ledger, ascending by number.
    unposted: VecDeque<GrantItem>,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    left: u32,
    size: u32,
    until_ms: u64,
}

impl Grants {
    /// Opens the file; a record that a crash tore is cut off. Grants of an earlier run are not drawn upon: how much of them is left is unknown.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(path: &Path) -> Result<Grants, DataError> {
        let failed = |what| DataError::io(what, path);
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).mode(0o600).open(path);
        let mut file = file.map_err(failed("cannot open"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("cannot read"))?;
        let (items, good) = read_items(&bytes);
        if good < bytes.len() {
            tracing::warn!(path = %path.display(), "the last grant was not written whole; it is cut off");
            file.set_len(good as u64).and_then(|()| file.sync_all()).map_err(failed("cannot mend"))?;
        }
        let next = items.back().map_or(1, |g| g.number + 1);
        let inner = Inner {
            file,
            length: good as u64,
            broken: false,
            next,
            live: HashMap::new(),
            newest: items.back().cloned(),
            unposted: items,
        };
        Ok(Grants { path: path.into(), inner: Mutex::new(inner) })
    }

    /// Draws `uses` from the grant of `assembler` for `key`; when there is none or it is used up, makes one and saves it first.
    /// `posted` is the highest number of ours on the ledger.
    ///
    /// # Errors
    /// [`DataError`]: nothing may be released.
    pub fn draw(
        &self,
        key: &KeyId,
        assembler: &DeviceId,
        uses: u32,
        ledger_ms: u64,
        posted: u64,
    ) -> Result<(), DataError> {
        let mut inner = self.lock();
        if inner.broken {
            self.rewrite(&mut inner)?;
        }
        let live = inner.live.get_mut(&(*key, *assembler));
        let mut size = USES_FIRST;
        if let Some(live) = live.filter(|live| ledger_ms <= live.until_ms) {
            if let Some(left) = live.left.checked_sub(uses) {
                live.left = left;
                return Ok(());
            }
            size = live.size.saturating_mul(4).min(USES_MAX);
        }
        let size = size.max(uses);
        let item = GrantItem {
            number: inner.next.max(posted + 1),
            key: *key,
            assembler: *assembler,
            uses_max: size,
            until_ms: ledger_ms.saturating_add(LIFE_MS),
        };
        self.save(&mut inner, &item)?;
        if inner.live.len() >= LIVE_MAX {
            inner.live.retain(|_, live| live.until_ms >= ledger_ms);
        }
        inner.live.insert((*key, *assembler), Live { left: size - uses, size, until_ms: item.until_ms });
        Ok(())
    }

    fn save(&self, inner: &mut Inner, item: &GrantItem) -> Result<(), DataError> {
        let record = write_item(item);
        let write = |inner: &mut Inner| {
            inner.file.write_all(&record)?;
            inner.file.sync_data()
        };
        if let Err(source) = write(inner) {
            inner.broken = true;
            return Err(DataError::io("cannot save a grant in", &self.path)(source));
        }
        inner.length += record.len() as u64;
        inner.next = item.number + 1;
        inner.newest = Some(item.clone());
        inner.unposted.push_back(item.clone());
        Ok(())
    }

    /// Grants that are not on the ledger, whose highest number of ours is `posted`; at most as many as one record takes.
    pub fn unposted(&self, posted: u64) -> Vec<GrantItem> {
        let mut inner = self.lock();
        while inner.unposted.front().is_some_and(|g| g.number <= posted) {
            inner.unposted.pop_front();
        }
        inner.unposted.iter().take(LIST_MAX).cloned().collect()
    }

    /// Writes the file anew when posted grants make up most of it.
    ///
    /// # Errors
    /// [`DataError`]; the old file stays.
    pub fn compact(&self) -> Result<(), DataError> {
        let mut inner = self.lock();
        if inner.length < FILE_BYTES_MAX { Ok(()) } else { self.rewrite(&mut inner) }
    }

    /// Puts a new file with what is not posted in the place of the old one. Until that has come to its end, it is not known which of the two
    /// the next record would go to.
    fn rewrite(&self, inner: &mut Inner) -> Result<(), DataError> {
        inner.broken = true;
        // The newest stays, so that its number is never given again.
        let newest = inner.newest.as_ref().filter(|_| inner.unposted.is_empty());
        let keep = inner.unposted.iter().chain(newest).map(write_item).collect::<Vec<_>>().concat();
        replace_file(&self.path, &keep)?;
        let file = OpenOptions::new().read(true).append(true).open(&self.path);
        inner.file = file.map_err(DataError::io("cannot open", &self.path))?;
        inner.length = keep.len() as u64;
        inner.broken = false;
        Ok(())
    }

    /// As long as this is kept, no grant is written.
    #[cfg(test)]
    pub(super) fn held_for_test(&self) -> impl Sized {
        self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Big-endian u16 length of the CBOR, first bytes of its SHA-256, the CBOR.
fn write_item(item: &GrantItem) -> Vec<u8> {
    let content = cbor::to_vec(item);
    let length = u16::try_from(content.len()).expect("a grant has five small fields");
    [&length.to_be_bytes()[..], &check(&content), &content].concat()
}

fn check(content: &[u8]) -> [u8; CHECK_BYTES] {
    let [a, b, c, d, ..] = enc::sha256(content);
    [a, b, c, d]
}

/// All whole records from the start, and how many bytes they take.
fn read_items(bytes: &[u8]) -> (VecDeque<GrantItem>, usize) {
    let (mut items, mut at) = (VecDeque::new(), 0);
    while let Some((item, length)) = bytes.get(at..).and_then(read_item) {
        items.push_back(item);
        at += length;
    }
    (items, at)
}

fn read_item(bytes: &[u8]) -> Option<(GrantItem, usize)> {
    let (header, rest) = bytes.split_first_chunk::<HEADER_BYTES>()?;
    let [high, low, sum @ ..] = *header;
    let content = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
    let item = (check(content) == sum).then(|| cbor::from_exact(content).ok())??;
    Some((item, HEADER_BYTES + content.len()))
}

impl From<DataError> for io::Error {
    fn from(error: DataError) -> Self {
        io::Error::other(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: KeyId = KeyId([1; 32]);
    const ONE: DeviceId = DeviceId([2; 32]);
    const TWO: DeviceId = DeviceId([3; 32]);

    fn opened() -> (tempfile::TempDir, PathBuf, Grants) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grants");
        let grants = Grants::open(&path).unwrap();
        (folder, path, grants)
    }

    fn numbers(grants: &Grants, posted: u64) -> Vec<u64> {
        grants.unposted(posted).iter().map(|g| g.number).collect()
    }

    #[test]
    fn a_grant_is_on_disk_before_its_first_use_and_lasts_for_many() {
        let (_folder, path, grants) = opened();
        for _ in 0..USES_FIRST {
            grants.draw(&KEY, &ONE, 1, 1000, 0).unwrap();
        }
        assert_eq!(numbers(&Grants::open(&path).unwrap(), 0), [1], "one write for {USES_FIRST} uses");
        grants.draw(&KEY, &ONE, 1, 1000, 0).unwrap();
        grants.draw(&KEY, &TWO, 1, 1000, 0).unwrap();
        let items = Grants::open(&path).unwrap().unposted(0);
        let sizes: Vec<_> = items.iter().map(|g| (g.number, g.uses_max)).collect();
        assert_eq!(sizes, [(1, 64), (2, 256), (3, 64)]);
        assert_eq!(items[0].until_ms, 1000 + LIFE_MS);
    }

    #[test]
    fn a_grant_ends_with_its_time_and_covers_no_more_than_its_uses() {
        let (_folder, _path, grants) = opened();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        grants.draw(&KEY, &ONE, 1, LIFE_MS, 0).unwrap();
        assert_eq!(numbers(&grants, 0), [1]);
        grants.draw(&KEY, &ONE, 1, LIFE_MS + 1, 0).unwrap();
        assert_eq!(numbers(&grants, 0), [1, 2]);
        grants.draw(&KEY, &ONE, 5000, LIFE_MS + 1, 0).unwrap();
        assert_eq!(grants.unposted(2)[0].uses_max, 5000);
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_after_a_lost_file() {
        let (_folder, path, grants) = opened();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        drop(grants);
        let grants = Grants::open(&path).unwrap();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        assert_eq!(numbers(&grants, 0), [1, 2], "an earlier run's grant is not drawn upon");
        assert_eq!(numbers(&grants, 1), [2]);
        drop(grants);
        std::fs::remove_file(&path).unwrap();
        let grants = Grants::open(&path).unwrap();
        grants.draw(&KEY, &ONE, 1, 0, 7).unwrap();
        assert_eq!(numbers(&grants, 7), [8], "the ledger remembers the highest number");
    }

    #[test]
    fn a_torn_or_changed_tail_is_cut_off_and_the_rest_kept() {
        let (_folder, path, grants) = opened();
        for device in 1..4 {
            grants.draw(&KEY, &DeviceId([device; 32]), 1, 0, 0).unwrap();
        }
        drop(grants);
        let whole = std::fs::read(&path).unwrap();
        let one = whole.len() / 3;
        for cut in [1, one - 1, 2 * one - 1] {
            std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let grants = Grants::open(&path).unwrap();
            assert_eq!(numbers(&grants, 0).len(), 3 - cut.div_ceil(one), "cut {cut}");
            grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
            let count = numbers(&Grants::open(&path).unwrap(), 0).len();
            assert_eq!(count, 4 - cut.div_ceil(one), "what follows a mended tail is read back");
        }
        let mut changed = whole.clone();
        changed[one + 20] ^= 1;
        std::fs::write(&path, &changed).unwrap();
        assert_eq!(numbers(&Grants::open(&path).unwrap(), 0), [1]);
    }

    #[test]
    fn after_a_failed_save_nothing_is_released_until_the_file_is_mended() {
        let (folder, path, grants) = opened();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        // A disk that takes half a record and no more, nor lets it be cut off.
        grants.lock().file = File::open(&path).unwrap();
        grants.draw(&KEY, &TWO, 1, 0, 0).unwrap_err();
        OpenOptions::new().append(true).open(&path).unwrap().write_all(&[0, 40, 1, 2, 3]).unwrap();
        let away = folder.path().with_extension("away");
        std::fs::rename(folder.path(), &away).unwrap();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap_err();
        std::fs::rename(&away, folder.path()).unwrap();
        // The disk is well again.
        grants.lock().file = OpenOptions::new().append(true).open(&path).unwrap();
        grants.draw(&KEY, &TWO, 1, 0, 0).unwrap();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        assert_eq!(numbers(&Grants::open(&path).unwrap(), 0), [1, 2], "what was released is read back");
    }

    #[test]
    fn a_file_without_unposted_grants_keeps_the_newest_number_when_it_is_mended() {
        let (_folder, path, grants) = opened();
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        assert!(numbers(&grants, 1).is_empty());
        grants.rewrite(&mut grants.lock()).unwrap();
        let grants = Grants::open(&path).unwrap();
        grants.draw(&KEY, &TWO, 1, 0, 0).unwrap();
        assert_eq!(numbers(&grants, 1), [2]);
    }

    #[test]
    fn compaction_keeps_what_is_not_posted_and_the_newest_number() {
        let (_folder, path, grants) = opened();
        while grants.lock().length < FILE_BYTES_MAX {
            let mut inner = grants.lock();
            let number = inner.next;
            let item = GrantItem { number, key: KEY, assembler: ONE, uses_max: 1, until_ms: 0 };
            let record = write_item(&item);
            inner.file.write_all(&record).unwrap();
            (inner.length, inner.next) = (inner.length + record.len() as u64, number + 1);
            inner.newest = Some(item.clone());
            inner.unposted.push_back(item);
        }
        let last = grants.lock().next - 1;
        grants.unposted(last - 2);
        grants.compact().unwrap();
        assert_eq!(numbers(&Grants::open(&path).unwrap(), 0), [last - 1, last]);
        grants.draw(&KEY, &ONE, 1, 0, 0).unwrap();
        assert_eq!(numbers(&Grants::open(&path).unwrap(), 0), [last - 1, last, last + 1]);
    }
}
