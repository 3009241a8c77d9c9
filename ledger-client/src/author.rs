//! One author's chain of records: gives each its number, signs it, saves it before it is submitted, and finds out what became of it.
//!
//! Two different records with one number would look like a second copy of the author, and whoever holds both could choose between them. So a
//! record that was submitted stays in the outbox until the author's own replica shows what became of it, over restarts too, and nothing else
//! is signed before. A gateway's word alone is not enough, neither that it took a record nor that it refused it.

use crate::replica::{Replica, SignerError, SubmitError, deadline};
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::entry::{EntryError, VERSION};
use mayfly_protocol::{AuthorId, Entry, Record, Refusal, State};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Shortest wait before a busy ledger is asked again.
const BUSY_WAIT_MIN: Duration = Duration::from_millis(10);
/// How long the replica may take to see why a record was refused: what speaks against it was sequenced before, and is under way.
const REASON_WAIT: Duration = Duration::from_secs(2);

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
    /// The outcome of the submission. A refusal is one that this author's replica agrees with. After [`SubmitError::Unknown`] and
    /// [`SubmitError::Unavailable`] the record stays in the outbox and may still be appended by a later call.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// The gateway refused the record, or said that it took it, and this author's replica does not show why, or that. The gateway has the
    /// signed record and can append it still, so it stays in the outbox: the next call submits it again before anything else.
    #[error(
        "the gateway says of a record: {text} ({rule}); this replica of the ledger does not bear that out, so the record may still be taken"
    )]
    Disputed {
        /// The gateway's rule, as in [`SubmitError::Refused`]; `ack` where it said that it took the record.
        rule: String,
        /// Its text.
        text: String,
    },
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
    /// One record at a time.
    posting: Mutex<()>,
}

/// What the author's replica says of a record in the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is the author's newest record in the ledger, at this index.
    Stored(u64),
    /// It is not appended any more: its number is taken, or a rule speaks against it.
    Over,
    /// It may be appended.
    Open,
}

impl Fate {
    /// By the state at the tip, when `past_ms` is past ([`Replica::past_ms`]): an author whose own clock is ahead must not give up what the
    /// gateway can still append. Nothing is known of a record that was made on more than that.
    fn of(entry: &Entry, tip: &State, past_ms: u64) -> Fate {
        if entry.head.size > tip.size() {
            return Fate::Open;
        }
        match tip.check(past_ms.max(tip.time_ms), entry) {
            Ok(_) => Fate::Open,
            Err(Refusal::Duplicate(index)) => Fate::Stored(index),
            Err(_) => Fate::Over,
        }
    }
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
        Ok(Author { replica, id, signer, path, posting: Mutex::default() })
    }

    /// The author's id.
    pub fn id(&self) -> AuthorId {
        self.id
    }

    /// Puts a record on the ledger and returns its index, when the replica has it; it may not be witnessed yet
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
        let _one = self.posting.lock().unwrap_or_else(PoisonError::into_inner);
        // The number comes from the ledger as it is now, not as it was when the device was switched off.
        self.caught_up(deadline)?;
        self.clear_outbox(deadline)?;
        let entry = self.sign(record, signers)?;
        let bytes = entry.encode();
        Entry::decode(&bytes).map_err(PostError::TooLarge)?;
        self.save(&bytes)?;
        self.submit(&entry, &bytes, deadline)
    }

    /// Finds out what became of a record that an earlier call, or an earlier run, left in the outbox. `Ok(None)`: there was none, or it
    /// is not appended any more (or was, and others followed it); `Ok(Some(index))`: it is in the ledger.
    ///
    /// # Errors
    /// [`PostError`], when this cannot be known yet.
    pub fn settle(&self, timeout: Duration) -> Result<Option<u64>, PostError> {
        let deadline = deadline(timeout);
        let _one = self.posting.lock().unwrap_or_else(PoisonError::into_inner);
        self.caught_up(deadline)?;
        self.clear_outbox(deadline)
    }

    fn caught_up(&self, deadline: Instant) -> Result<(), PostError> {
        Ok(self.replica.wait_caught_up(left(deadline)).map_err(|_| self.replica.unavailable())?)
    }

    fn sign(&self, record: &Record, signers: &[&dyn EntrySigner]) -> Result<Entry, PostError> {
        let tip = self.replica.tip();
        let (author_seq, author_prev) = tip.author_next(&self.id);
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

    fn clear_outbox(&self, deadline: Instant) -> Result<Option<u64>, PostError> {
        let Some(bytes) = self.saved()? else { return Ok(None) };
        let Ok(entry) = Entry::decode(&bytes) else {
            // Torn by a crash before it was submitted: the rename comes after the sync, so this file was never complete.
            self.forget()?;
            return Ok(None);
        };
        match self.fate(&entry) {
            Fate::Stored(index) => self.forget().map(|()| Some(index)),
            Fate::Over => {
                tracing::warn!(number = entry.author_seq, "a record from the outbox is not appended any more");
                self.forget().map(|()| None)
            }
            Fate::Open => match self.submit(&entry, &bytes, deadline) {
                Ok(index) => Ok(Some(index)),
                Err(PostError::Submit(SubmitError::Refused { rule, text })) => {
                    tracing::warn!(rule, text, "record from the outbox was refused");
                    Ok(None)
                }
                Err(error) => Err(error),
            },
        }
    }

    fn submit(&self, entry: &Entry, bytes: &[u8], deadline: Instant) -> Result<u64, PostError> {
        loop {
            match self.replica.submit(bytes, left(deadline)) {
                Ok(index) => return self.stored(bytes, index, deadline),
                Err(SubmitError::Busy { retry_ms }) if left(deadline) > Duration::from_millis(retry_ms) => {
                    sleep(Duration::from_millis(retry_ms).max(BUSY_WAIT_MIN));
                }
                Err(SubmitError::Refused { rule, text }) => return self.refused(entry, rule, text, deadline),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A gateway says that it took the record: it is there when the replica has it.
    fn stored(&self, bytes: &[u8], index: u64, deadline: Instant) -> Result<u64, PostError> {
        self.replica.wait_tip(|tip| tip.size() > index, left(deadline)).map_err(|_| SubmitError::Unknown)?;
        let there = self.replica.entries(index, 1).map_err(|_| SubmitError::Unknown)?;
        if there.first().is_some_and(|(_, _, entry)| entry == bytes) {
            self.forget()?;
            return Ok(index);
        }
        Err(PostError::Disputed { rule: "ack".into(), text: format!("it has index {index}") })
    }

    /// A gateway says no: it is final when the replica sees why. Otherwise the gateway may yet append what it has in hand.
    fn refused(&self, entry: &Entry, rule: String, text: String, deadline: Instant) -> Result<u64, PostError> {
        let patience = left(deadline).min(REASON_WAIT);
        // In vain where nothing changes; but time may have passed.
        let _ = self.replica.wait_tip(|_| self.fate(entry) != Fate::Open, patience);
        match self.fate(entry) {
            // Refused only because it is in the ledger, followed by others perhaps.
            Fate::Stored(index) => self.forget().map(|()| index),
            Fate::Over => {
                self.forget()?;
                Err(SubmitError::Refused { rule, text }.into())
            }
            Fate::Open => Err(PostError::Disputed { rule, text }),
        }
    }

    fn fate(&self, entry: &Entry) -> Fate {
        Fate::of(entry, &self.replica.tip(), self.replica.past_ms())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ledger, START_MS};

    #[test]
    fn a_record_is_over_when_the_replica_shows_it_and_open_until_then() {
        let mut ledger = Ledger::new();
        ledger.start();
        let before = ledger.state.clone();
        let mut entry = |label: &str| {
            let bundle = ledger.token(label);
            (Entry::decode(&bundle.entries[0]).unwrap(), ledger.state.clone())
        };
        let (first, one) = entry("first");
        let (second, two) = entry("second");
        let (third, _) = entry("third");
        let other_number = Entry { author_seq: 9, ..first.clone() };
        let unsigned = Entry { signatures: Vec::new(), ..first.clone() };
        for (entry, tip, fate, why) in [
            (&first, &before, Fate::Open, "as it was signed"),
            (&first, &one, Fate::Stored(1), "in the ledger"),
            (&first, &two, Fate::Over, "in the ledger, followed by another: its number is taken"),
            (&second, &one, Fate::Open, "the next"),
            (&second, &before, Fate::Open, "made on more than this replica has"),
            (&third, &one, Fate::Open, "the same, by two records"),
            (&other_number, &before, Fate::Over, "no such number is next"),
            (&unsigned, &before, Fate::Over, "never in order"),
        ] {
            assert_eq!(Fate::of(entry, tip, START_MS), fate, "{why}");
        }
    }

    #[test]
    fn what_expires_is_over_when_that_is_past() {
        let mut ledger = Ledger::new();
        ledger.start();
        let (device, _) = ledger.device("d");
        let entry = Entry::decode(&ledger.token_of(&device, "t")).unwrap();
        let session = ledger.state.devices[&device.id()].session().unwrap().not_after_ms;
        assert_eq!(Fate::of(&entry, &ledger.state, session), Fate::Open);
        assert_eq!(Fate::of(&entry, &ledger.state, session + 1), Fate::Over);
    }
}
