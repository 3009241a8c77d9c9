//! The replica on disk: one redb file with the leaves and the witnessed heads.
//!
//! A leaf rests as it is hashed: big-endian time, then the entry. Nothing here is trusted when it is read: replay judges every entry and
//! every witnessed head again. Never write past or over what is there: entries are only added at the end.

use mayfly_protocol::sync::Bundle;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
};
use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Name of the file in the replica's folder.
const FILE: &str = "ledger.redb";
/// Cache of the store: pages are read once, at start.
const CACHE_BYTES: usize = 1024 * 1024;

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

/// The open store.
#[derive(Debug)]
pub struct Store {
    /// `None` after [`Store::reopen`] failed.
    db: Option<Database>,
    path: PathBuf,
    on_disk: bool,
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
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(&path);
        let db = Some(db.map_err(|e| open_error(&path, e))?);
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        Store { db, path, on_disk: true }.of_network(network)
    }

    /// A store that is gone when it is dropped.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn in_memory(network: &[u8; 32]) -> Result<Store, StoreError> {
        let path = PathBuf::from("in memory");
        let db = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(InMemoryBackend::new());
        let db = Some(db.map_err(|e| open_error(&path, e))?);
        Store { db, path, on_disk: false }.of_network(network)
    }

    /// Closes the file and opens it again: redb takes no further call after a write failed.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn reopen(&mut self) -> Result<(), StoreError> {
        if self.on_disk {
            self.db = None;
            let db = Database::builder().set_cache_size(CACHE_BYTES).create(&self.path);
            self.db = Some(db.map_err(|e| open_error(&self.path, e))?);
        }
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
        let mut next = 0;
        for row in leaves.iter()? {
            let (index, leaf) = row?;
            let Some((time, entry)) = leaf.value().split_first_chunk::<8>().filter(|_| index.value() == next) else {
                return Err(self.damaged(format!("leaf {next} is missing or torn")));
            };
            each(Stored::Entry(u64::from_be_bytes(*time), entry)).map_err(|what| self.damaged(what))?;
            next += 1;
            while let Some(head) = heads.next_if(|row| row.as_ref().map_or(true, |(size, _)| size.value() <= next)) {
                each(Stored::Witnessed(head?.1.value())).map_err(|what| self.damaged(what))?;
            }
        }
        Ok(())
    }

    /// Entries from `from` on as (index, time, entry), at most `count`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn entries(&self, from: u64, count: usize) -> Result<Vec<(u64, u64, Vec<u8>)>, StoreError> {
        let leaves = self.db()?.begin_read()?.open_table(LEAVES)?;
        let mut found = Vec::new();
        for row in leaves.range(from..)?.take(count) {
            let (index, leaf) = row?;
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
