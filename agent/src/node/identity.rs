//! Who this device is: the identity key in its vault signs who it is, the session key in secret memory signs what it does.

use super::data::{DataError, read_file, replace_file};
use super::vault::Vault;
use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use mayfly_ledger_client::{Author, Cosigner, EntrySigner, HelloSigner, PostError, Replica, SignerError};
use mayfly_protocol::{AuthorId, DeviceId, Record, State};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// The device's two keys. The session key is new at each start and never leaves secret memory.
#[derive(Debug)]
pub struct Identity {
    vault: Arc<Vault>,
    session: Arc<Ed25519Secret>,
    /// Entries are signed by the identity key for the moment.
    by_identity: AtomicBool,
}

impl Identity {
    /// With a new session key.
    ///
    /// # Errors
    /// No randomness or no secret memory.
    pub fn new(vault: Arc<Vault>) -> Result<Identity, mayfly_secmem::RandomError> {
        let session = Arc::new(Ed25519Secret::generate()?);
        Ok(Identity { vault, session, by_identity: AtomicBool::new(false) })
    }

    /// This device.
    pub fn device(&self) -> DeviceId {
        self.vault.device()
    }

    /// The session key.
    pub fn session(&self) -> &Arc<Ed25519Secret> {
        &self.session
    }

    /// Whether this run's session key is the newest in `state`.
    pub fn delegated(&self, state: &State) -> bool {
        let session = state.devices.get(&self.device()).and_then(|d| d.session());
        session.is_some_and(|s| s.key == self.session.public())
    }

    fn by_vault(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.vault.sign(message).map(|s| s.to_vec()).map_err(|e| SignerError(e.to_string()))
    }
}

impl HelloSigner for Identity {
    fn key(&self, tip: &State) -> PublicKey {
        if self.delegated(tip) { self.session.public() } else { *self.vault.identity() }
    }

    fn sign(&self, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        if *key == self.session.public() { Ok(self.session.sign(message).to_vec()) } else { self.by_vault(message) }
    }
}

impl Cosigner for Identity {
    fn device(&self) -> DeviceId {
        self.vault.device()
    }

    fn key(&self) -> Option<PublicKey> {
        Some(self.session.public())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.session.sign(message).to_vec())
    }
}

impl EntrySigner for Identity {
    fn key(&self) -> PublicKey {
        if self.by_identity.load(Ordering::Relaxed) { *self.vault.identity() } else { self.session.public() }
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        if self.by_identity.load(Ordering::Relaxed) {
            self.by_vault(message)
        } else {
            Ok(self.session.sign(message).to_vec())
        }
    }
}

/// The session key, where it signs beside the identity key: proof that the delegation is of a key of ours.
pub struct BySession<'a>(pub &'a Identity);

impl EntrySigner for BySession<'_> {
    fn key(&self) -> PublicKey {
        self.0.session.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.session.sign(message).to_vec())
    }
}

/// The device's own records: one chain, whichever of its keys signs.
pub struct Records {
    author: Author,
    identity: Arc<Identity>,
    one_at_a_time: Mutex<()>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Records({:?})", self.author.id())
    }
}

impl Records {
    /// Opens the outbox in `dir`.
    ///
    /// # Errors
    /// [`PostError::Outbox`].
    pub fn open(replica: Arc<Replica>, dir: &Path, identity: Arc<Identity>) -> Result<Records, PostError> {
        let author = Author::open(replica, dir, AuthorId::from(identity.device()), identity.clone())?;
        Ok(Records { author, identity, one_at_a_time: Mutex::default() })
    }

    /// Posts a record signed by the session key; its index.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn post(&self, record: &Record, timeout: Duration) -> Result<u64, PostError> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        self.author.post(record, &[], timeout)
    }

    /// Posts a record signed by the identity key, and by `also`; its index.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn post_by_identity(
        &self,
        record: &Record,
        also: &[&dyn EntrySigner],
        timeout: Duration,
    ) -> Result<u64, PostError> {
        let _one = self.one_at_a_time.lock().unwrap_or_else(PoisonError::into_inner);
        self.identity.by_identity.store(true, Ordering::Relaxed);
        let posted = self.author.post(record, also, timeout);
        self.identity.by_identity.store(false, Ordering::Relaxed);
        posted
    }
}

/// Counts delegations over all runs, on disk: the ledger takes only growing numbers, and a copy of this device shows by them.
#[derive(Debug)]
pub struct StartCounter {
    path: PathBuf,
}

impl StartCounter {
    /// In this file.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// The next number, above all of earlier runs and above `on_ledger`; saved before it is used.
    ///
    /// # Errors
    /// [`DataError`].
    pub fn next(&self, on_ledger: u64) -> Result<u64, DataError> {
        let damaged = || DataError::Damaged(self.path.clone());
        let saved = match read_file(&self.path)? {
            None => 0,
            Some(bytes) => std::str::from_utf8(&bytes).ok().and_then(|t| t.trim().parse().ok()).ok_or_else(damaged)?,
        };
        let next = saved.max(on_ledger) + 1;
        replace_file(&self.path, next.to_string().as_bytes())?;
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_starts_only_grow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("starts");
        assert_eq!(StartCounter::new(path.clone()).next(0).unwrap(), 1);
        assert_eq!(StartCounter::new(path.clone()).next(0).unwrap(), 2);
        assert_eq!(StartCounter::new(path.clone()).next(7).unwrap(), 8, "the ledger knows of more");
        assert_eq!(StartCounter::new(path.clone()).next(7).unwrap(), 9);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(StartCounter::new(path).next(0).is_err());
    }
}
