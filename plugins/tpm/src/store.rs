//! The vault's folder: durable atomic writes, one user at a time.
//!
//! Nothing here is overwritten when it goes: what the files hold opens only by the chip, and the chip forgets.

use crate::record::FILE_BYTES_MAX;
use mayfly_plugin_abi::{GuestError, Status};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const LOCK: &str = "lock";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The open, locked folder.
pub(crate) struct Store {
    path: PathBuf,
    folder: OwnedFd,
    _lock: OwnedFd,
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
        Ok(Store { path: path.to_owned(), folder, _lock: lock })
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

    /// A whole file, or `None` when there is none. Wiped when dropped: one of the files is a secret.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, GuestError> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&self.folder, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(io_error(&self.path_of(name), error.into())),
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 2));
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
        let write = || {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.folder, &temporary, flags, Mode::RUSR | Mode::WUSR)?;
            let mut file = File::from(file);
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|error| io_error(&self.path_of(&temporary), error))?;
        self.rename(&temporary, name)
    }

    /// Gives a file the name of another, which it replaces; durable.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), GuestError> {
        rustix::fs::renameat(&self.folder, from, &self.folder, to)
            .map_err(|error| io_error(&self.path_of(to), error.into()))?;
        self.sync()
    }

    /// Takes a name away; durable. No error when it is gone already.
    pub(crate) fn unlink(&self, name: &str) -> Result<(), GuestError> {
        match rustix::fs::unlinkat(&self.folder, name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => self.sync(),
            Err(error) => Err(io_error(&self.path_of(name), error.into())),
        }
    }

    fn sync(&self) -> Result<(), GuestError> {
        rustix::fs::fsync(&self.folder).map_err(|error| io_error(&self.path, error.into()))
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
    use std::os::unix::fs::PermissionsExt;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        dir
    }

    #[test]
    fn files_come_and_go_whole() {
        let dir = folder();
        let store = Store::open(dir.path()).unwrap();
        assert!(store.read("x").unwrap().is_none());
        store.write("x", b"one").unwrap();
        store.write("x", b"two").unwrap();
        assert_eq!(&store.read("x").unwrap().unwrap()[..], b"two");
        store.rename("x", "y").unwrap();
        assert!(store.read("x").unwrap().is_none());
        store.unlink("y").unwrap();
        store.unlink("y").unwrap();
        assert!(store.free_bytes().unwrap() > 0);
        std::fs::write(dir.path().join("long"), vec![0; FILE_BYTES_MAX + 1]).unwrap();
        assert_eq!(store.read("long").unwrap_err().status, Status::Corrupt);
    }

    #[test]
    fn one_user_and_no_others() {
        let dir = folder();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(Store::open(dir.path()).err().unwrap().status, Status::Busy);
        drop(store);
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(Store::open(dir.path()).err().unwrap().status, Status::Config);
    }
}
