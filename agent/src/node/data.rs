//! The agent's folder: who may use it, what lies in it, and how files in it are written so that a crash leaves the old or the new.

use rustix::fs::{FlockOperation, flock};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// Another agent runs on it.
    #[error("another agent uses {0}; each agent has a data folder of its own")]
    InUse(PathBuf),
    /// Others may look into it.
    #[error("{0} is open to others; run `chmod 700` on it")]
    Open(PathBuf),
    /// It belongs to somebody else.
    #[error("{0} belongs to another user")]
    Owner(PathBuf),
    /// A file in it.
    #[error("{what} {path}")]
    Io {
        /// What could not be done.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file's content is not what this program wrote.
    #[error("{0} is damaged; restore it from a copy, or let the device join anew")]
    Damaged(PathBuf),
}

impl DataError {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError + use<> {
        let path = path.to_owned();
        move |source| DataError::Io { what, path, source }
    }
}

/// The folder, held by this process.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Holds the lock for the life of the agent.
    _lock: File,
}

impl DataDir {
    /// Makes the folder if it is missing (mode 0700) and locks it.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn open(path: &Path) -> Result<DataDir, DataError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(DataError::io("cannot make folder", path))?;
        let meta = std::fs::metadata(path).map_err(DataError::io("cannot look at", path))?;
        if meta.uid() != rustix::process::geteuid().as_raw() {
            return Err(DataError::Owner(path.into()));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(DataError::Open(path.into()));
        }
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(DataError::io("cannot open", &lock_path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(DataDir { path: path.into(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataError::InUse(path.into())),
            Err(error) => Err(DataError::io("cannot lock", &lock_path)(error.into())),
        }
    }

    /// A file or folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Replaces a file so that a crash leaves the old content or the new one: written aside, synced, renamed, folder synced.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), DataError> {
    let write = || {
        let aside = path.with_extension("new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(DataError::io("cannot write", path))
}

/// A file's content, or `None` if there is no such file.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, DataError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataError::io("cannot read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn one_agent_at_a_time_in_a_private_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataDir::open(&path).unwrap();
        assert!(DataDir::open(&path).unwrap_err().to_string().contains("another agent uses"));
        drop(first);
        drop(DataDir::open(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert!(DataDir::open(&path).unwrap_err().to_string().contains("chmod 700"));
    }

    #[test]
    fn replacing_keeps_the_old_when_the_new_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        replace_file(&path, b"old").unwrap();
        std::fs::create_dir(folder.path().join("x.new")).unwrap();
        assert!(replace_file(&path, b"new").is_err());
        assert_eq!(read_file(&path).unwrap().unwrap(), b"old");
        assert_eq!(read_file(&folder.path().join("y")).unwrap(), None);
    }
}
