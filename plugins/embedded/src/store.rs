//! The database file: opening, transactions, and what happens when the disk does not play along.
//!
//! After an input or output error redb refuses all further work, so the database is dropped and opened again with the
//! next call, by the ordinary path with its repair. A damaged file is never repaired by guessing: the text says where
//! another copy comes from.

use crate::config::Config;
use crate::{row, tables};
use mayfly_plugin_abi::{BUNDLE_BYTES_MAX, GuestError, Status};
use redb::{Database, ReadTransaction, ReadableDatabase, StorageError, WriteTransaction};
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FILE: &str = "ledger.redb";
const FILE_NEW: &str = "ledger.redb.new";
const LOCK: &str = "lock";
/// Room that every ordinary write must find above the reserve, whatever its size: the largest bundle, so that `health`
/// and the refusal say the same.
const ROOM_BYTES: u64 = BUNDLE_BYTES_MAX as u64;
/// How long a failed write is told by `health`.
const TROUBLE_TIME: Duration = Duration::from_secs(5);

/// How much room a write must leave.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Entries and snapshots stop at the reserve.
    Ordinary,
    /// Checkpoints may use three quarters of the reserve.
    Small,
    /// Pruning makes room.
    Frees,
}

/// The open folder and, most of the time, the open database.
pub(crate) struct Store {
    folder: PathBuf,
    config: Config,
    database: Option<Database>,
    /// Why a write failed, and when.
    trouble: Option<(String, Instant)>,
    /// Duration of the last durable commit.
    pub(crate) sync_micros: u64,
    _lock: OwnedFd,
    #[cfg(test)]
    pub(crate) faults: faults::Faults,
}

impl Store {
    /// Opens the folder's database, or makes it.
    pub(crate) fn open(config: Config, folder: &Path) -> Result<Store, GuestError> {
        let lock = lock(folder)?;
        let mut store = Store {
            folder: folder.to_owned(),
            config,
            database: None,
            trouble: None,
            sync_micros: 0,
            _lock: lock,
            #[cfg(test)]
            faults: faults::Faults::default(),
        };
        if !store.path().exists() {
            store.make()?;
        }
        store.read(tables::check)?;
        Ok(store)
    }

    fn path(&self) -> PathBuf {
        self.folder.join(FILE)
    }

    /// Makes the file under another name first, so that an empty or half-made `ledger.redb` is always damage, never a
    /// reason to start an empty ledger.
    fn make(&self) -> Result<(), GuestError> {
        let new = self.folder.join(FILE_NEW);
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&new, &error)),
            _ => {}
        }
        let made = (|| -> Result<(), redb::Error> {
            let database = Database::builder().set_cache_size(self.config.cache_bytes()).create(&new)?;
            let mut transaction = database.begin_write()?;
            transaction.set_quick_repair(true);
            tables::make(&transaction)?;
            transaction.commit()?;
            Ok(())
        })();
        made.map_err(|error| self.failure(&error))?;
        let durable = File::open(&new)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&new, self.path()))
            .and_then(|()| File::open(&self.folder)?.sync_all());
        durable.map_err(|error| io_error(&new, &error))
    }

    fn database(&mut self) -> Result<&Database, GuestError> {
        if self.database.is_none() {
            let path = self.path();
            if let Ok(0) = std::fs::metadata(&path).map(|found| found.len()) {
                return Err(self.damaged("it is empty"));
            }
            // redb may panic on a file whose pages contradict each other
            let opened = catch_unwind(AssertUnwindSafe(|| self.open_file(&path)));
            match opened {
                Ok(Ok(database)) => self.database = Some(database),
                Ok(Err(error)) => return Err(self.failure(&error.into())),
                Err(_) => return Err(self.damaged("its pages contradict each other")),
            }
        }
        self.database.as_ref().ok_or_else(|| GuestError::new(Status::Internal, "no database"))
    }

    fn open_file(&self, path: &Path) -> Result<Database, redb::DatabaseError> {
        let mut builder = Database::builder();
        builder.set_cache_size(self.config.cache_bytes());
        #[cfg(test)]
        return builder.create_with_backend(faults::Faulty::open(path, &self.faults)?);
        #[cfg(not(test))]
        builder.open(path)
    }

    /// Reads in one transaction.
    pub(crate) fn read<T>(&mut self, body: impl FnOnce(&ReadTransaction) -> Result<T, Fault>) -> Result<T, GuestError> {
        let database = self.database()?;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let transaction = database.begin_read().map_err(redb::Error::from)?;
            body(&transaction)
        }));
        let result = result.unwrap_or(Err(Fault::Damaged("its pages contradict each other".to_owned())));
        result.map_err(|fault| self.translate(fault))
    }

    /// Writes in one transaction, which is on the disk when this returns `Ok`. `body` may refuse without a change.
    ///
    /// # Errors
    /// [`Status::Unknown`] when the commit itself failed: it may or may not be on the disk.
    pub(crate) fn write<T>(
        &mut self,
        need: Need,
        body: impl FnOnce(&WriteTransaction) -> Result<T, Fault>,
    ) -> Result<T, GuestError> {
        self.admit(need)?;
        let started = Instant::now();
        let database = self.database()?;
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut transaction = database.begin_write().map_err(redb::Error::from)?;
            // two phases and the allocator's state with each commit: a crash needs no walk over the file, and what
            // devices write cannot choose between two half commits (see redb's page on 1-phase commits)
            transaction.set_quick_repair(true);
            let value = body(&transaction)?;
            transaction.commit().map_err(|error| Fault::Commit(error.into()))?;
            Ok(value)
        }));
        let result = result.unwrap_or(Err(Fault::Damaged("its pages contradict each other".to_owned())));
        match result {
            Ok(value) => {
                self.sync_micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.trouble = None;
                Ok(value)
            }
            Err(fault) => Err(self.translate(fault)),
        }
    }

    /// Refuses a write that would leave less room than the reserve: nothing is lost by waiting, much by a full disk.
    fn admit(&self, need: Need) -> Result<(), GuestError> {
        match self.lack(need).map_err(|error| io_error(&self.folder, &error))? {
            None => Ok(()),
            Some(text) => Err(GuestError::new(Status::ReadOnly, text)),
        }
    }

    /// Why there is no room for a write, if there is none.
    pub(crate) fn lack(&self, need: Need) -> io::Result<Option<String>> {
        let reserve = match need {
            Need::Ordinary => self.config.reserve_bytes() + ROOM_BYTES,
            Need::Small => self.config.reserve_bytes() / 4,
            Need::Frees => 0,
        };
        let free = self.free_bytes()?;
        Ok((free < reserve).then(|| {
            format!(
                "the disk under {} is nearly full: {} MiB free, {} MiB are kept free; make room, writing goes on by itself",
                self.folder.display(),
                free >> 20,
                reserve >> 20
            )
        }))
    }

    /// Bytes that the file system has left.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Bytes of the file.
    pub(crate) fn used_bytes(&self) -> u64 {
        std::fs::metadata(self.path()).map_or(0, |found| found.len())
    }

    fn translate(&mut self, fault: Fault) -> GuestError {
        match fault {
            Fault::Refused(error) => error,
            Fault::Damaged(what) => {
                self.close();
                self.damaged(&what)
            }
            Fault::Database(error) => self.broken(&error),
            Fault::Commit(error) => {
                let error = self.broken(&error);
                GuestError::new(Status::Unknown, format!("{}; whether it was stored is not known", error.message))
            }
        }
    }

    /// After an error of redb: the database is opened anew by the next call.
    fn broken(&mut self, error: &redb::Error) -> GuestError {
        self.close();
        let failure = self.failure(error);
        self.trouble = Some((failure.message.clone(), Instant::now()));
        failure
    }

    /// Why a write failed a moment ago. Who asks holds writes back meanwhile; then the next one is tried.
    pub(crate) fn trouble(&self) -> Option<&str> {
        self.trouble.as_ref().filter(|(_, since)| since.elapsed() < TROUBLE_TIME).map(|(text, _)| text.as_str())
    }

    /// Closes the database. redb writes at this moment and may panic on a damaged file.
    fn close(&mut self) {
        let database = self.database.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(database)));
    }

    fn failure(&self, error: &redb::Error) -> GuestError {
        match error {
            redb::Error::Io(error) if error.kind() == io::ErrorKind::InvalidData => self.damaged(&error.to_string()),
            redb::Error::Io(error) => io_error(&self.path(), error),
            redb::Error::DatabaseAlreadyOpen => busy(&self.folder),
            redb::Error::Corrupted(what) => self.damaged(what),
            redb::Error::UpgradeRequired(version) => {
                self.damaged(&format!("its file format {version} is of another release"))
            }
            redb::Error::TableDoesNotExist(table) => self.damaged(&format!("table {table} is missing")),
            redb::Error::TableTypeMismatch { table, .. } => self.damaged(&format!("table {table} has another type")),
            other => GuestError::new(Status::Io, format!("{}: {other}", self.path().display())),
        }
    }

    fn damaged(&self, what: &str) -> GuestError {
        let text = format!(
            "{} is damaged ({what}); move it away and restore it from a backup, or from the devices' replicas with \
             `mayfly-ledger restore --from-replicas`",
            self.path().display()
        );
        GuestError::new(Status::Corrupt, text)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

/// Why a transaction did not happen.
pub(crate) enum Fault {
    /// The call was refused by its own rules.
    Refused(GuestError),
    /// A row is not what was written.
    Damaged(String),
    /// redb failed before the commit: nothing was stored.
    Database(redb::Error),
    /// redb failed in the commit.
    Commit(redb::Error),
}

impl From<GuestError> for Fault {
    fn from(error: GuestError) -> Fault {
        Fault::Refused(error)
    }
}

impl From<redb::Error> for Fault {
    fn from(error: redb::Error) -> Fault {
        Fault::Database(error)
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Fault {
        Fault::Database(error.into())
    }
}

impl From<redb::TableError> for Fault {
    fn from(error: redb::TableError) -> Fault {
        Fault::Database(error.into())
    }
}

impl Fault {
    /// A row of a table that does not open.
    pub(crate) fn row(table: &str, key: u64) -> impl FnOnce(row::Damaged) -> Fault {
        let what = format!("row {key} of {table} has a wrong hash");
        move |row::Damaged| Fault::Damaged(what)
    }
}

fn lock(folder: &Path) -> Result<OwnedFd, GuestError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = folder.join(LOCK);
    let lock =
        rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(|error| io_error(&path, &error.into()))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(busy(folder)),
        Err(error) => Err(io_error(&path, &error.into())),
    }
}

fn busy(folder: &Path) -> GuestError {
    let what = "is in use by another process; an embedded ledger has one gateway";
    GuestError::new(Status::Busy, format!("{} {what}", folder.display()))
}

fn io_error(path: &Path, error: &io::Error) -> GuestError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let status = if full { Status::ReadOnly } else { Status::Io };
    GuestError::new(status, format!("{}: {error}", path.display()))
}

#[cfg(test)]
pub(crate) mod faults {
    //! A file whose changes fail on purpose: number N is lost, done half, or done but reported failed; the disk is full
    //! from then on until it is healed.

    use redb::backends::FileBackend;
    use redb::{BackendError, DatabaseError, StorageBackend};
    use std::io;
    use std::ops::Bound;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::Mutex;

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum When {
        Before,
        Half,
        After,
    }

    #[derive(Default, Debug)]
    struct Plan {
        count: usize,
        at: Option<(usize, When)>,
    }

    #[derive(Clone, Default, Debug)]
    pub(crate) struct Faults(Arc<Mutex<Plan>>);

    impl Faults {
        /// From now on, change number `number` (from 0) fails, and all after it.
        pub(crate) fn full_at(&self, number: usize, when: When) {
            *self.0.lock().unwrap() = Plan { count: 0, at: Some((number, when)) };
        }

        /// The disk has room again. Gives the number of changes tried since `full_at`.
        pub(crate) fn heal(&self) -> usize {
            std::mem::take(&mut *self.0.lock().unwrap()).count
        }

        fn next(&self) -> Option<When> {
            let mut plan = self.0.lock().unwrap();
            let number = plan.count;
            plan.count += 1;
            match plan.at {
                Some((at, when)) if number == at => Some(when),
                Some((at, _)) if number > at => Some(When::Before),
                _ => None,
            }
        }
    }

    #[derive(Debug)]
    pub(crate) struct Faulty {
        file: FileBackend,
        faults: Faults,
    }

    impl Faulty {
        pub(crate) fn open(path: &Path, faults: &Faults) -> Result<Faulty, DatabaseError> {
            let file = std::fs::File::options().read(true).write(true).open(path)?;
            Ok(Faulty { file: FileBackend::new(file)?, faults: faults.clone() })
        }

        fn change(
            &self,
            whole: impl FnOnce() -> io::Result<()>,
            half: impl FnOnce() -> io::Result<()>,
        ) -> io::Result<()> {
            let full = || Err(io::Error::from(io::ErrorKind::StorageFull));
            match self.faults.next() {
                None => whole(),
                Some(When::Before) => full(),
                Some(When::Half) => half().and_then(|()| full()),
                Some(When::After) => whole().and_then(|()| full()),
            }
        }
    }

    impl StorageBackend for Faulty {
        fn len(&self) -> io::Result<u64> {
            self.file.len()
        }

        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.file.read(offset, out)
        }

        fn set_len(&self, len: u64) -> io::Result<()> {
            self.change(|| self.file.set_len(len), || Ok(()))
        }

        fn sync_data(&self) -> io::Result<()> {
            self.change(|| self.file.sync_data(), || Ok(()))
        }

        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.change(|| self.file.write(offset, data), || self.file.write(offset, &data[..data.len() / 2]))
        }

        fn close(&self) -> io::Result<()> {
            self.file.close()
        }

        fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.file.try_lock_range(start, end)
        }

        fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
            self.file.try_lock_shared_range(start, end)
        }

        fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
            self.file.unlock_range(start, end)
        }
    }
}
