//! The vault's folder: durable atomic writes, one user at a time.
//!
//! Nothing here is worth overwriting when it goes: what the files hold opens only by a key of the token, and that key
//! is destroyed.

use crate::record::FILE_BYTES_MAX;
use mayfly_plugin_abi::{GuestError, Status};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

const LOCK: &str = "lock";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The open, locked folder.
pub(crate) struct Store {
    path: PathBuf,
    folder: OwnedFd,
    _lock: OwnedFd,
    #[cfg(test)]
    pub(crate) faults: std::sync::Arc<faults::Faults>,
}

impl Store {
    /// Opens and locks the folder, which must be ours and closed to others.
    pub(crate) fn open(path: &Path) -> Result<Store, GuestError> {
        let folder = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| io_error(path, error.into()))?;
        let stat = rustix::fs::fstat(&folder).map_err(|error| io_error(path, error.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
            let what = "must belong to the user of this process and have mode 0700";
            return Err(GuestError::new(Status::Config, format!("{} {what}", path.display())));
        }
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = rustix::fs::openat(&folder, LOCK, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| io_error(&path.join(LOCK), error.into()))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                let what = "is in use by another process; a vault has one user at a time";
                GuestError::new(Status::Busy, format!("{} {what}", path.display()))
            }
            error => io_error(&path.join(LOCK), error.into()),
        })?;
        Ok(Store {
            path: path.to_owned(),
            folder,
            _lock: lock,
            #[cfg(test)]
            faults: Default::default(),
        })
    }

    /// Where a file is, for messages.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Bytes that the file system has left.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.folder)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// A whole file, or `None` when there is none.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Vec<u8>>, GuestError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error(&self.path_of(name), error.into())),
        };
        let mut bytes = Vec::with_capacity(FILE_BYTES_MAX + 2);
        let read = file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| io_error(&self.path_of(name), error))?;
        if bytes.len() > FILE_BYTES_MAX {
            let text = format!("{} is too long to be ours", self.path_of(name).display());
            return Err(GuestError::new(Status::Corrupt, text));
        }
        Ok(Some(bytes))
    }

    /// Writes a whole file so that after a crash either the old or the new one is there.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), GuestError> {
        let temporary = format!("{name}{TEMPORARY_SUFFIX}");
        self.step(&temporary, || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.folder, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            file.write_all(bytes)?;
            file.sync_all()
        })?;
        self.rename(&temporary, name)
    }

    /// Gives a file the name of another, which it replaces; durable.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), GuestError> {
        self.step(to, || Ok(rustix::fs::renameat(&self.folder, from, &self.folder, to)?))?;
        self.sync()
    }

    /// Takes a name away; durable. No error when it is gone already.
    pub(crate) fn unlink(&self, name: &str) -> Result<(), GuestError> {
        self.step(name, || match rustix::fs::unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        })?;
        self.sync()
    }

    /// Makes what has been done in the folder durable.
    pub(crate) fn sync(&self) -> Result<(), GuestError> {
        self.step(".", || Ok(rustix::fs::fsync(&self.folder)?))
    }

    /// One change of the folder; tests let any one fail before or after it was done.
    fn step<T>(&self, name: &str, change: impl FnOnce() -> io::Result<T>) -> Result<T, GuestError> {
        #[cfg(test)]
        return self
            .faults
            .around(change, || io::Error::other(faults::CRASH))
            .map_err(|e| io_error(&self.path_of(name), e));
        #[cfg(not(test))]
        change().map_err(|error| io_error(&self.path_of(name), error))
    }
}

/// An input or output error as the caller is told: a full disk is a state, the rest a failure.
fn io_error(path: &Path, error: io::Error) -> GuestError {
    let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    let status = if full { Status::ReadOnly } else { Status::Io };
    GuestError::new(status, format!("{}: {error}", path.display()))
}

#[cfg(test)]
pub(crate) mod faults {
    //! Failing on purpose: change number N, of the folder or of the token, is lost, or done but reported failed.

    use std::sync::Mutex;

    pub(crate) const CRASH: &str = "crash on purpose";

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub(crate) enum When {
        Before,
        After,
    }

    #[derive(Default)]
    struct State {
        count: usize,
        plan: Option<(usize, When)>,
    }

    #[derive(Default)]
    pub(crate) struct Faults(Mutex<State>);

    impl Faults {
        /// From now on, change number `number` (from 0) fails, and all after it: the process has crashed.
        pub(crate) fn crash_at(&self, number: usize, when: When) {
            *self.0.lock().unwrap() = State { count: 0, plan: Some((number, when)) };
        }

        /// Changes tried since `crash_at`.
        pub(crate) fn tried(&self) -> usize {
            self.0.lock().unwrap().count
        }

        pub(crate) fn around<T, E>(
            &self,
            change: impl FnOnce() -> Result<T, E>,
            crash: impl Fn() -> E,
        ) -> Result<T, E> {
            let (number, plan) = {
                let mut state = self.0.lock().unwrap();
                state.count += 1;
                (state.count - 1, state.plan)
            };
            match plan {
                Some((at, _)) if number > at => Err(crash()),
                Some((at, When::Before)) if number == at => Err(crash()),
                Some((at, When::After)) if number == at => change().and_then(|_| Err(crash())),
                _ => change(),
            }
        }
    }
}
