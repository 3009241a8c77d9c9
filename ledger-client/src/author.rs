//! One author's chain of records: gives each its number, signs it, saves it before it is submitted, and finds out what became of it.
//!
//! Two different records with one number would look like a second copy of the author. So a record that was submitted stays in the outbox
//! until it is known to be in the ledger or refused, over restarts too, and nothing else is signed before.

use crate::replica::{Replica, SignerError, SubmitError, deadline};
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::entry::{EntryError, VERSION};
use mayfly_protocol::{AuthorId, Entry, EntryId, Record};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Shortest wait before a busy ledger is asked again.
const BUSY_WAIT_MIN: Duration = Duration::from_millis(10);

/// Signs entries: a session key, an identity key in a vault, an administrator's key.
pub trait EntrySigner: Send + Sync {
    /// The public half.
    fn key(&self) -> PublicKey;

    /// Signs; 64 bytes.
    ///
    /// # Errors
    /// [`SignerError`], when the key cannot be used.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError>;
}

/// What became of a record that was not posted, or may not have been.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The outcome of the submission. After [`SubmitError::Unknown`] and [`SubmitError::Unavailable`] the record stays in the outbox and
    /// may still be appended by a later call.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A key could not be used.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The record is larger than an entry may be.
    #[error("record is too large")]
    TooLarge(#[source] EntryError),
    /// The outbox could not be written; nothing was submitted.
    #[error("outbox {path} cannot be written")]
    Outbox {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// An author.
pub struct Author {
    replica: Arc<Replica>,
    id: AuthorId,
    signer: Arc<dyn EntrySigner>,
    path: PathBuf,
    /// One record at a time. The end of the chain as far as this author knows, which may be ahead of the replica.
    tail: Mutex<(u64, EntryId)>,
}

impl Author {
    /// The author `id`, whose records `signer` signs. `dir` is its outbox, made with mode 0700 when missing.
    ///
    /// # Errors
    /// [`PostError::Outbox`].
    pub fn open(
        replica: Arc<Replica>,
        dir: &Path,
        id: AuthorId,
        signer: Arc<dyn EntrySigner>,
    ) -> Result<Author, PostError> {
        let path = dir.join(format!("{id}.entry"));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| PostError::Outbox { path: path.clone(), source })?;
        Ok(Author { replica, id, signer, path, tail: Mutex::default() })
    }

    /// The author's id.
    pub fn id(&self) -> AuthorId {
        self.id
    }

    /// Puts a record on the ledger and returns its index, when it is durable there; the replica may be a moment behind
    /// ([`Replica::wait_effective`] until the size is above the index). `also` sign beside the author, in this order.
    ///
    /// # Errors
    /// [`PostError`]. A refused record took no number.
    pub fn post(&self, record: &Record, also: &[&dyn EntrySigner], timeout: Duration) -> Result<u64, PostError> {
        let signers: Vec<&dyn EntrySigner> = std::iter::once(&*self.signer).chain(also.iter().copied()).collect();
        self.post_signed_by(&signers, record, timeout)
    }

    /// As [`Author::post`], with exactly these signers: a device's delegation and its joining are signed by the identity key, its other
    /// records by the session key, all in one chain.
    ///
    /// # Errors
    /// [`PostError`].
    pub fn post_signed_by(
        &self,
        signers: &[&dyn EntrySigner],
        record: &Record,
        timeout: Duration,
    ) -> Result<u64, PostError> {
        let deadline = deadline(timeout);
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear_outbox(&mut tail, deadline)?;
        // The number comes from the ledger as it is now, not as it was when the device was switched off.
        self.replica.wait_caught_up(left(deadline)).map_err(|_| self.replica.unavailable())?;
        let entry = self.sign(record, signers, &tail)?;
        let bytes = entry.encode();
        Entry::decode(&bytes).map_err(PostError::TooLarge)?;
        self.save(&bytes)?;
        self.submit(&entry, &bytes, &mut tail, deadline)
    }

    /// Finds out what became of a record that an earlier call, or an earlier run, left in the outbox. `Ok(None)`: there was none, or it
    /// was refused; `Ok(Some(index))`: it is in the ledger.
    ///
    /// # Errors
    /// [`PostError`], when this cannot be known yet.
    pub fn settle(&self, timeout: Duration) -> Result<Option<u64>, PostError> {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        self.clear_outbox(&mut tail, deadline(timeout))
    }

    fn sign(&self, record: &Record, signers: &[&dyn EntrySigner], tail: &(u64, EntryId)) -> Result<Entry, PostError> {
        let tip = self.replica.tip();
        let on_ledger = tip.author_next(&self.id);
        let (author_seq, author_prev) = if tail.0 >= on_ledger.0 { (tail.0 + 1, tail.1) } else { on_ledger };
        let mut entry = Entry {
            version: VERSION,
            network: self.replica.network().network,
            kind: record.kind() as u16,
            author: self.id,
            author_seq,
            author_prev,
            head: tip.head(),
            payload: record.encode(),
            signatures: Vec::new(),
        };
        for signer in signers {
            entry.sign_with(&signer.key(), |message| signer.sign(message))?;
        }
        Ok(entry)
    }

    fn clear_outbox(&self, tail: &mut (u64, EntryId), deadline: Instant) -> Result<Option<u64>, PostError> {
        let Some(bytes) = self.saved()? else { return Ok(None) };
        let Ok(entry) = Entry::decode(&bytes) else {
            // Torn by a crash before it was submitted: the rename comes after the sync, so this file was never complete.
            self.forget()?;
            return Ok(None);
        };
        match self.submit(&entry, &bytes, tail, deadline) {
            Ok(index) => Ok(Some(index)),
            Err(PostError::Submit(SubmitError::Refused { rule, text })) => {
                tracing::warn!(rule, text, "record from the outbox was refused");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn submit(
        &self,
        entry: &Entry,
        bytes: &[u8],
        tail: &mut (u64, EntryId),
        deadline: Instant,
    ) -> Result<u64, PostError> {
        loop {
            match self.replica.submit(bytes, left(deadline)) {
                Ok(index) => {
                    *tail = (entry.author_seq, entry.id());
                    self.forget()?;
                    return Ok(index);
                }
                Err(SubmitError::Busy { retry_ms }) if left(deadline) > Duration::from_millis(retry_ms) => {
                    sleep(Duration::from_millis(retry_ms).max(BUSY_WAIT_MIN));
                }
                Err(refused @ SubmitError::Refused { .. }) => {
                    // It may be refused only because it is in the ledger, followed by others already.
                    if let Some(index) = self.index_of(entry) {
                        self.forget()?;
                        return Ok(index);
                    }
                    self.forget()?;
                    return Err(refused.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The entry's index, if it is the author's newest in the replica.
    fn index_of(&self, entry: &Entry) -> Option<u64> {
        self.replica.tip().authors.get(&self.id).filter(|tail| tail.id == entry.id()).map(|tail| tail.index)
    }

    fn saved(&self) -> Result<Option<Vec<u8>>, PostError> {
        match fs::read(&self.path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.failed(source)),
        }
    }

    /// Saves an entry before it is submitted: write aside, sync, rename, sync the folder.
    fn save(&self, bytes: &[u8]) -> Result<(), PostError> {
        let aside = self.path.with_extension("new");
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
            file.write_all(bytes)?;
            file.sync_data()?;
            fs::rename(&aside, &self.path)?;
            self.path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
        };
        write().map_err(|source| self.failed(source))
    }

    /// Its outcome is known. Should the removal be lost in a crash, the entry is submitted again, and found to be in the ledger, or refused.
    fn forget(&self) -> Result<(), PostError> {
        fs::remove_file(&self.path).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> PostError {
        PostError::Outbox { path: self.path.clone(), source }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
