//! The replica on disk: one redb file with the leaves and the witnessed heads.
//!
//! A leaf rests as it is hashed: big-endian time, then the entry. Nothing here is trusted when it is read: replay judges every entry and
//! every witnessed head again. Never write past or over what is there: entries are only added at the end.

use crate::replica::StoredEntry;
use mayfly_protocol::sync::Bundle;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
};
use std::fmt;
use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the file in the replica's folder.
const FILE: &str = "ledger.redb";
/// Cache of the store: pages are read once, at start.
const CACHE_BYTES: usize = 1024 * 1024;

/// Most bytes of one answer of [`Store::entries`].
const ENTRIES_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Index to leaf.
const LEAVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leaves");
/// Size of a witnessed head to the message that proves it.
const WITNESSED: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("witnessed");
/// Words to values.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// Network id, 32 bytes.
const META_NETWORK: &str = "network";
/// A head that does not reconcile with ours: the gateway's note. The replica stays stopped while it is here.
const META_FORK: &str = "fork";
/// Witnesses do not cosign heads above this size, for a leaf there was sequenced at a wrong time. Big-endian u64.
const META_WITHHELD: &str = "withheld";

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the file.
    #[error("replica {0} is in use by another process")]
    InUse(PathBuf),
    /// The file belongs to another network.
    #[error("replica {0} is of another network; give each network its own folder")]
    OtherNetwork(PathBuf),
    /// The file is damaged.
    #[error("replica {path} is damaged: {what}; move it away to fetch the ledger anew")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The folder or file could not be made or opened.
    #[error("replica {path} cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A read or write failed: full disk, dying disk.
    #[error("replica cannot be read or written")]
    Redb(#[source] Box<redb::Error>),
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(e: E) -> StoreError {
        StoreError::Redb(Box::new(e.into()))
    }
}

/// A witnessed head to keep.
#[derive(Debug)]
pub struct NewHead {
    /// Its size.
    pub size: u64,
    /// The message that proves it.
    pub message: Vec<u8>,
    /// The older head that is let go.
    pub replaces: Option<u64>,
}

/// Opens the database, anew each time.
type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send>;

/// The open store.
pub struct Store {
    /// `None` after [`Store::reopen`] failed.
    db: Option<Database>,
    open: Opener,
    path: PathBuf,
}

impl Store {
    /// Opens the store in this folder (made with mode 0700 if missing), or makes an empty one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(dir: &Path, network: &[u8; 32]) -> Result<Store, StoreError> {
        let path = dir.join(FILE);
        let failed = |source| StoreError::Open { path: path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        // Private from the first byte on, whatever the umask.
        let made = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        made.and_then(|file| file.set_permissions(Permissions::from_mode(0o600))).map_err(failed)?;
        let file = path.clone();
        Store::opened_by(path.clone(), Box::new(move || builder().create(&file)), network)
    }

    /// A store that is gone when it is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn in_memory(network: &[u8; 32]) -> Result<Store, StoreError> {
        let open = || builder().create_with_backend(InMemoryBackend::new());
        Store::opened_by(PathBuf::from("in memory"), Box::new(open), network)
    }

    fn opened_by(path: PathBuf, open: Opener, network: &[u8; 32]) -> Result<Store, StoreError> {
        let mut store = Store { db: None, open, path };
        store.reopen()?;
        store.of_network(network)
    }

    /// Closes the file and opens it again: redb takes no further call after a write failed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        self.db = None; // the file's lock must be free
        self.db = Some((self.open)().map_err(|e| open_error(&self.path, e))?);
        Ok(())
    }

    fn db(&self) -> Result<&Database, StoreError> {
        self.db.as_ref().ok_or_else(|| StoreError::Redb(Box::new(redb::Error::DatabaseClosed)))
    }

    fn of_network(self, network: &[u8; 32]) -> Result<Store, StoreError> {
        let write = self.db()?.begin_write()?;
        {
            write.open_table(LEAVES)?;
            write.open_table(WITNESSED)?;
            let mut meta = write.open_table(META)?;
            let known = meta.get(META_NETWORK)?.map(|v| v.value().to_vec());
            match known {
                None => drop(meta.insert(META_NETWORK, network.as_slice())?),
                Some(known) if known == network => {}
                Some(_) => return Err(StoreError::OtherNetwork(self.path)),
            }
        }
        write.commit()?;
        Ok(self)
    }

    /// Adds verified bundles and witnessed heads: all of it, or nothing. Bundles are durable then.
    ///
    /// Heads alone become durable with the next write. That is soon enough: the entries below them are durable already, and a witnessed
    /// head that was forgotten is sent again.
    ///
    /// # Errors
    /// [`StoreError`]; a gap or an overlap is damage. After an error call [`Store::reopen`].
    pub fn keep(&self, bundles: &[Bundle], heads: &[NewHead], withheld: Option<u64>) -> Result<(), StoreError> {
        let mut write = self.db()?.begin_write()?;
        if bundles.is_empty() {
            write.set_durability(Durability::None)?;
        }
        self.keep_leaves(&mut write.open_table(LEAVES)?, bundles)?;
        {
            let mut table = write.open_table(WITNESSED)?;
            for head in heads {
                if let Some(old) = head.replaces {
                    table.remove(old)?;
                }
                table.insert(head.size, head.message.as_slice())?;
            }
            let mut meta = write.open_table(META)?;
            match withheld {
                Some(size) => drop(meta.insert(META_WITHHELD, size.to_be_bytes().as_slice())?),
                None => drop(meta.remove(META_WITHHELD)?),
            }
        }
        write.commit()?;
        Ok(())
    }

    fn keep_leaves(&self, leaves: &mut Table<'_, u64, &[u8]>, bundles: &[Bundle]) -> Result<(), StoreError> {
        let mut next = leaves.len()?;
        for bundle in bundles {
            if bundle.first != next {
                return Err(self.damaged(format!("{next} entries are stored, {} should be", bundle.first)));
            }
            for entry in &bundle.entries {
                let leaf = mayfly_protocol::entry::leaf(bundle.time_ms, entry);
                leaves.insert(next, leaf.as_slice())?;
                next += 1;
            }
        }
        Ok(())
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn sync(&self) -> Result<(), StoreError> {
        self.db()?.begin_write()?.commit()?;
        Ok(())
    }

    /// Keeps the proof of a fork, durably.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_fork(&self, proof: &[u8]) -> Result<(), StoreError> {
        let write = self.db()?.begin_write()?;
        write.open_table(META)?.insert(META_FORK, proof)?;
        write.commit()?;
        Ok(())
    }

    /// The proof of a fork that was found earlier.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn fork(&self) -> Result<Option<Vec<u8>>, StoreError> {
        let meta = self.db()?.begin_read()?.open_table(META)?;
        Ok(meta.get(META_FORK)?.map(|v| v.value().to_vec()))
    }

    /// The size above which no head is cosigned, if any.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn withheld(&self) -> Result<Option<u64>, StoreError> {
        let meta = self.db()?.begin_read()?.open_table(META)?;
        let value = meta.get(META_WITHHELD)?;
        Ok(value.and_then(|v| v.value().try_into().ok()).map(u64::from_be_bytes))
    }

    /// Gives every leaf in order as (index, time, entry), and after each size with a witnessed head that message.
    ///
    /// # Errors
    /// [`StoreError`], or what `each` returns as the text of a damage.
    pub fn replay(&self, mut each: impl FnMut(Stored<'_>) -> Result<(), String>) -> Result<(), StoreError> {
        let read = self.db()?.begin_read()?;
        let leaves = read.open_table(LEAVES)?;
        let witnessed = read.open_table(WITNESSED)?;
        let mut heads = witnessed.iter()?.peekable();
        for (expected, row) in (0..).zip(leaves.iter()?) {
            let (index, leaf) = row?;
            let leaf = Some(leaf.value()).filter(|_| index.value() == expected);
            let Some((time, entry)) = leaf.and_then(|leaf| leaf.split_first_chunk::<8>()) else {
                return Err(self.damaged(format!("leaf {expected} is missing or torn")));
            };
            each(Stored::Entry(u64::from_be_bytes(*time), entry)).map_err(|what| self.damaged(what))?;
            let size = expected + 1;
            while let Some(head) = heads.next_if(|row| row.as_ref().map_or(true, |(at, _)| at.value() <= size)) {
                each(Stored::Witnessed(head?.1.value())).map_err(|what| self.damaged(what))?;
            }
        }
        Ok(())
    }

    /// Entries from `from` on, at most `count`, at most [`ENTRIES_BYTES_MAX`] (and one entry) of them.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn entries(&self, from: u64, count: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let leaves = self.db()?.begin_read()?.open_table(LEAVES)?;
        let (mut found, mut bytes) = (Vec::new(), 0);
        for row in leaves.range(from..)?.take(count) {
            let (index, leaf) = row?;
            bytes += leaf.value().len();
            if bytes > ENTRIES_BYTES_MAX && !found.is_empty() {
                break;
            }
            if let Some((time, entry)) = leaf.value().split_first_chunk::<8>() {
                found.push((index.value(), u64::from_be_bytes(*time), entry.to_vec()));
            }
        }
        Ok(found)
    }

    fn damaged(&self, what: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), what }
    }
}

/// What [`Store::replay`] gives.
#[derive(Debug)]
pub enum Stored<'b> {
    /// Time and entry.
    Entry(u64, &'b [u8]),
    /// A witnessed head's message.
    Witnessed(&'b [u8]),
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.path.display())
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::InUse(path),
        DatabaseError::RepairAborted | DatabaseError::UpgradeRequired(_) => {
            StoreError::Damaged { path, what: error.to_string() }
        }
        DatabaseError::Storage(redb::StorageError::Io(source)) => StoreError::Open { path, source },
        DatabaseError::Storage(redb::StorageError::Corrupted(what)) => StoreError::Damaged { path, what },
        other => StoreError::Redb(Box::new(other.into())),
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    /// A disk in memory that can be full. What was written survives its reopening.
    #[derive(Debug, Clone, Default)]
    pub struct Disk {
        bytes: Arc<Mutex<Vec<u8>>>,
        pub is_full: Arc<AtomicBool>,
    }

    impl Disk {
        pub fn store(&self, network: &[u8; 32]) -> Result<Store, StoreError> {
            let disk = self.clone();
            let open = move || builder().create_with_backend(disk.clone());
            Store::opened_by("disk".into(), Box::new(open), network)
        }

        pub fn flip(&self, needle: &[u8]) {
            let mut bytes = self.bytes.lock().unwrap();
            let at = bytes.windows(needle.len()).position(|w| w == needle).expect("the bytes are on the disk");
            bytes[at] ^= 1;
        }

        fn check(&self) -> io::Result<()> {
            if self.is_full.load(Ordering::Relaxed) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
        }
    }

    impl redb::StorageBackend for Disk {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().unwrap().len() as u64)
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            let at = offset as usize;
            out.copy_from_slice(&self.bytes.lock().unwrap()[at..at + out.len()]);
            Ok(())
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.check()?;
            self.bytes.lock().unwrap().resize(len as usize, 0);
            Ok(())
        }

        fn sync_data(&self) -> io::Result<()> {
            self.check()
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check()?;
            let at = offset as usize;
            self.bytes.lock().unwrap()[at..at + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    fn bundle(first: u64, entries: &[&[u8]]) -> Bundle {
        Bundle { first, time_ms: first + 1, entries: entries.iter().map(|e| e.to_vec().into()).collect() }
    }

    fn contents(store: &Store) -> Vec<String> {
        let mut found = Vec::new();
        store
            .replay(|stored| {
                found.push(match stored {
                    Stored::Entry(time, entry) => format!("{time}:{}", String::from_utf8_lossy(entry)),
                    Stored::Witnessed(message) => format!("witnessed {}", String::from_utf8_lossy(message)),
                });
                Ok(())
            })
            .unwrap();
        found
    }

    #[test]
    fn what_was_kept_comes_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let head = |size, replaces| NewHead { size, message: format!("at {size}").into_bytes(), replaces };
        {
            let store = Store::open(dir.path(), &[1; 32]).unwrap();
            assert!(matches!(Store::open(dir.path(), &[1; 32]), Err(StoreError::InUse(_))));
            store.keep(&[bundle(0, &[b"a", b"b"]), bundle(2, &[b"c"])], &[head(2, None)], Some(2)).unwrap();
            store.keep(&[], &[head(3, Some(2))], None).unwrap();
            store.keep(&[bundle(3, &[b"d"])], &[], Some(3)).unwrap();
        }
        let store = Store::open(dir.path(), &[1; 32]).unwrap();
        assert_eq!(contents(&store), ["1:a", "1:b", "3:c", "witnessed at 3", "4:d"]);
        assert_eq!(store.withheld().unwrap(), Some(3));
        assert_eq!(store.entries(1, 2).unwrap(), [(1, 1, b"b".to_vec()), (2, 3, b"c".to_vec())]);
        assert!(matches!(store.keep(&[bundle(5, &[b"f"])], &[], None), Err(StoreError::Damaged { .. })), "a gap");
        assert!(matches!(store.keep(&[bundle(3, &[b"x"])], &[], None), Err(StoreError::Damaged { .. })), "an overlap");
        drop(store);
        assert!(matches!(Store::open(dir.path(), &[2; 32]), Err(StoreError::OtherNetwork(_))));
    }

    #[test]
    fn a_full_disk_is_an_error_and_what_was_kept_before_is_there_after_reopening() {
        let disk = Disk::default();
        let mut store = disk.store(&[1; 32]).unwrap();
        store.keep(&[bundle(0, &[b"a"])], &[], None).unwrap();
        disk.is_full.store(true, Ordering::Relaxed);
        assert!(store.keep(&[bundle(1, &[b"b"])], &[], None).is_err());
        disk.is_full.store(false, Ordering::Relaxed);
        store.reopen().unwrap();
        assert_eq!(contents(&store)[0], "1:a");
        let next = contents(&store).len() as u64;
        store.keep(&[bundle(next, &[b"c"])], &[], None).unwrap();
    }
}
