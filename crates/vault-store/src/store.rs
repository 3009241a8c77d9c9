//! The vault's folder: durable atomic writes, one user at a time, overwriting what must be forgotten.
//!
//! Overwriting reaches the same blocks on most file systems and disks, not on copy-on-write file systems, flash and
//! snapshots. A vault whose files open only by a chip or a token has that forget instead.

use crate::record::Damaged;
use mayfly_plugin_abi::{GuestError, Health, HealthState, Status};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use zeroize::Zeroizing;

/// Less room than this is told as "read-only": a commit must not meet a full disk.
pub const FREE_BYTES_MIN: u64 = 1024 * 1024;
const LOCK: &str = "lock";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The open, locked folder.
pub struct Store {
    path: PathBuf,
    folder: OwnedFd,
    _lock: OwnedFd,
    file_bytes_max: usize,
    /// Names may be otherwise on the disk than they are seen: a change of them was not synced, or the process before this
    /// one was killed, perhaps between such a change and its sync.
    is_unsynced: AtomicBool,
    /// What the tests of a vault have fail.
    #[cfg(any(test, feature = "faults"))]
    pub faults: std::sync::Arc<crate::faults::Faults>,
}

impl Store {
    /// Opens and locks the folder, which must be ours and closed to others; no file in it may be longer than
    /// `file_bytes_max`.
    ///
    /// # Errors
    /// [`Status::Config`] for a folder that others may look into, [`Status::Busy`] for a second user, [`Status::Io`].
    pub fn open(path: &Path, file_bytes_max: usize) -> Result<Store, GuestError> {
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
            Errno::WOULDBLOCK => {
                let what = "is in use by another process; a vault has one user at a time";
                GuestError::new(Status::Busy, format!("{} {what}", path.display()))
            }
            error => io_error(&path.join(LOCK), error.into()),
        })?;
        Ok(Store {
            path: path.to_owned(),
            folder,
            _lock: lock,
            file_bytes_max,
            is_unsynced: AtomicBool::new(true),
            #[cfg(any(test, feature = "faults"))]
            faults: std::sync::Arc::default(),
        })
    }

    /// Where a file is, for messages.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A whole file, or `None` when there is none. Wiped when dropped: a vault may keep a secret in one. What it tells is
    /// on the disk: nobody answers "done already", or destroys what was replaced, for a rename that losing power undoes.
    ///
    /// # Errors
    /// [`Status::Corrupt`] for one that is too long, [`Status::Io`].
    pub fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, GuestError> {
        self.settle()?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error(&self.path_of(name), error.into())),
        };
        // room for one more than allowed, so that the buffer never grows and leaves a copy behind
        let mut bytes = Zeroizing::new(Vec::with_capacity(self.file_bytes_max + 2));
        let read = file.take(self.file_bytes_max as u64 + 1).read_to_end(&mut bytes);
        read.map_err(|error| io_error(&self.path_of(name), error))?;
        if bytes.len() > self.file_bytes_max {
            return Err(self.damaged(name, &"it is too long to be ours".into()));
        }
        Ok(Some(bytes))
    }

    /// Writes a whole file so that after a crash either the old or the new one is there.
    ///
    /// # Errors
    /// [`Status::ReadOnly`] on a full disk, [`Status::Io`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), GuestError> {
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
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn rename(&self, from: &str, to: &str) -> Result<(), GuestError> {
        self.is_unsynced.store(true, Ordering::Relaxed);
        self.step(to, || Ok(rustix::fs::renameat(&self.folder, from, &self.folder, to)?))?;
        self.sync()
    }

    /// Gives a file a second name; durable.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn link(&self, from: &str, to: &str) -> Result<(), GuestError> {
        self.is_unsynced.store(true, Ordering::Relaxed);
        self.step(to, || Ok(rustix::fs::linkat(&self.folder, from, &self.folder, to, AtFlags::empty())?))?;
        self.sync()
    }

    /// Takes a name away; durable. No error when it is gone already.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn unlink(&self, name: &str) -> Result<(), GuestError> {
        self.is_unsynced.store(true, Ordering::Relaxed);
        self.step(name, || match rustix::fs::unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        })?;
        self.sync()
    }

    /// Overwrites a file's bytes with zeros, then takes its name away; durable. No error when it is gone already.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn wipe(&self, name: &str) -> Result<(), GuestError> {
        self.settle()?;
        let is_gone = self.step(name, || {
            let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mut file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
                Ok(file) => File::from(file),
                Err(Errno::NOENT) => return Ok(true),
                Err(error) => return Err(error.into()),
            };
            let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
            file.write_all(&vec![0u8; length.min(self.file_bytes_max)])?;
            file.sync_all()?;
            Ok(false)
        })?;
        if is_gone { Ok(()) } else { self.unlink(name) }
    }

    /// Wipes what a crash in the middle of [`Store::write`] may have left of these files.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn wipe_temporary(&self, names: &[&str]) -> Result<(), GuestError> {
        names.iter().try_for_each(|name| self.wipe(&format!("{name}{TEMPORARY_SUFFIX}")))
    }

    /// True when both names are there and one file.
    ///
    /// # Errors
    /// [`Status::Io`].
    pub fn is_same_file(&self, one: &str, other: &str) -> Result<bool, GuestError> {
        let inode = |name: &str| match rustix::fs::statat(&self.folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(io_error(&self.path_of(name), error.into())),
        };
        Ok(matches!((inode(one)?, inode(other)?), (Some(one), Some(other)) if one == other))
    }

    /// Health as far as the folder tells: whether there is room.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut health = Health::ok();
        match rustix::fs::fstatvfs(&self.folder) {
            Ok(stat) => {
                let free = stat.f_bavail.saturating_mul(stat.f_frsize);
                health.free_bytes = Some(free);
                if free < FREE_BYTES_MIN {
                    health.state = HealthState::ReadOnly;
                    health.detail = format!("only {free} bytes are free under the vault's folder");
                }
            }
            Err(error) => {
                health.state = HealthState::Down;
                health.detail = io_error(&self.path, error.into()).message;
            }
        }
        health
    }

    /// What the operator is told of a file that is not what it should be.
    #[must_use]
    pub fn damaged(&self, name: &str, how: &Damaged) -> GuestError {
        let path = self.path_of(name);
        let text = format!(
            "{} is damaged: {}; put the whole folder back from its newest copy, or enrol the device anew",
            path.display(),
            how.0
        );
        GuestError::new(Status::Corrupt, text)
    }

    /// Whether a file belongs to the vault that it lies in.
    ///
    /// # Errors
    /// [`Status::Corrupt`] when it does not.
    pub fn check_vault(&self, name: &str, found: &crate::VaultId, ours: &crate::VaultId) -> Result<(), GuestError> {
        if found == ours { Ok(()) } else { Err(self.damaged(name, &"it belongs to another vault".into())) }
    }

    /// For a folder without a header: an error when it has any of these files, since then the header is lost.
    ///
    /// # Errors
    /// [`Status::Corrupt`].
    pub fn check_empty(&self, names: &[&str]) -> Result<(), GuestError> {
        for name in names {
            if self.read(name)?.is_some() {
                return Err(self.damaged(crate::HEADER, &"it is missing beside the other files".into()));
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), GuestError> {
        self.step(".", || Ok(rustix::fs::fsync(&self.folder)?))?;
        self.is_unsynced.store(false, Ordering::Relaxed);
        Ok(())
    }

    fn settle(&self) -> Result<(), GuestError> {
        if self.is_unsynced.load(Ordering::Relaxed) { self.sync() } else { Ok(()) }
    }

    /// One change of the folder; tests let any one fail before or after it was done.
    fn step<T>(&self, name: &str, change: impl FnOnce() -> io::Result<T>) -> Result<T, GuestError> {
        #[cfg(any(test, feature = "faults"))]
        let change = || self.faults.around(change, || io::Error::other("crash on purpose"));
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
mod tests {
    use super::*;
    use crate::faults::When;
    use std::os::unix::fs::PermissionsExt;

    const BYTES_MAX: usize = 100;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    fn open(dir: &tempfile::TempDir) -> Result<Store, GuestError> {
        Store::open(dir.path(), BYTES_MAX)
    }

    #[test]
    fn files_come_and_go_whole() {
        let dir = folder();
        let store = open(&dir).unwrap();
        assert!(store.read("x").unwrap().is_none());
        store.check_empty(&["x", "y"]).unwrap();
        store.write("x", b"one").unwrap();
        store.write("x", b"two").unwrap();
        assert_eq!(&store.read("x").unwrap().unwrap()[..], b"two");
        assert_eq!(store.check_empty(&["y", "x"]).unwrap_err().status, Status::Corrupt);
        store.rename("x", "y").unwrap();
        assert!(store.read("x").unwrap().is_none());
        store.unlink("y").unwrap();
        store.unlink("y").unwrap();
        let health = store.health();
        assert_eq!((health.state, health.free_bytes.is_some()), (HealthState::Ok, true));
        for (length, good) in [(BYTES_MAX, true), (BYTES_MAX + 1, false)] {
            std::fs::write(dir.path().join("long"), vec![0; length]).unwrap();
            assert_eq!(store.read("long").is_ok(), good, "{length}");
        }
        assert_eq!(store.read("long").unwrap_err().status, Status::Corrupt);
    }

    #[test]
    fn what_is_wiped_is_overwritten_before_it_goes() {
        let dir = folder();
        let store = open(&dir).unwrap();
        store.write("x", b"secret").unwrap();
        store.link("x", "y").unwrap();
        assert!(store.is_same_file("x", "y").unwrap());
        store.wipe("x").unwrap();
        assert!(store.read("x").unwrap().is_none());
        assert_eq!(&store.read("y").unwrap().unwrap()[..], &[0; 6]);
        assert!(!store.is_same_file("x", "y").unwrap() && !store.is_same_file("x", "none").unwrap());
        store.wipe("x").unwrap();
        std::fs::write(dir.path().join("y.tmp"), "secret").unwrap();
        store.wipe_temporary(&["x", "y"]).unwrap();
        assert!(store.read("y.tmp").unwrap().is_none() && store.read("y").unwrap().is_some());
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new() {
        for when in [When::Before, When::After] {
            for step in 0..3 {
                let dir = folder();
                let store = open(&dir).unwrap();
                store.write("x", b"old").unwrap();
                store.faults.crash_at(step, when);
                assert!(store.write("x", b"new").is_err());
                drop(store);
                let left = open(&dir).unwrap().read("x").unwrap().unwrap();
                let renamed = step > 1 || (step, when) == (1, When::After);
                assert_eq!(&left[..], if renamed { b"new" } else { b"old" }, "step {step} {when:?}");
            }
        }
    }

    #[test]
    fn a_rename_that_was_not_synced_is_not_told() {
        let dir = folder();
        let store = open(&dir).unwrap();
        store.write("x", b"old").unwrap();
        // written and renamed, but the folder is not synced
        store.faults.crash_at(2, When::Before);
        assert!(store.write("x", b"new").is_err());
        assert!(store.read("x").is_err() && store.wipe("x").is_err());
        store.faults.crash_at(usize::MAX, When::Before);
        assert_eq!(&store.read("x").unwrap().unwrap()[..], b"new");
        assert_eq!(store.faults.tried(), 1, "synced by the read");
        store.read("x").unwrap();
        assert_eq!(store.faults.tried(), 1, "once");
    }

    /// The process before may have been killed after a rename: what it has replaced is overwritten after a sync only.
    #[test]
    fn nothing_is_overwritten_before_the_first_sync() {
        let dir = folder();
        open(&dir).unwrap().write("x", b"old").unwrap();
        let store = open(&dir).unwrap();
        store.faults.crash_at(0, When::After);
        assert!(store.wipe("x").is_err());
        assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), b"old");
    }

    #[test]
    fn one_user_and_no_others() {
        let dir = folder();
        let store = open(&dir).unwrap();
        assert_eq!(open(&dir).err().unwrap().status, Status::Busy);
        drop(store);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(open(&dir).err().unwrap().status, Status::Config);
    }
}
