//! Revocation: the vault moves on to its next generation, and only what is still wanted moves with it. After it no copy of an erased shard, on
//! any disk or backup, opens again.
//!
//! | Step | Where the shards are |
//! |---|---|
//! | stage the next generation | under g |
//! | re-encrypt everything, one transaction | under g, and in table `next` under g+1; changes enter both from here on |
//! | the vault commits | whichever of the two the vault says |
//! | switch: records of g leave the tables, one transaction | under g+1 |
//!
//! The vault alone decides. After a crash anywhere [`ShardStore::open`] asks it: at g the table `next` is thrown away, at g+1 it takes the place of
//! the others. What was erased and not yet revoked stands in table `erased` until then, so nothing else has to be remembered.

use super::*;
use crate::node::vault::StagedKeys;
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// A revocation that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revoked {
    /// The generation that the vault is at now.
    pub generation: u64,
    /// Shards that moved with it.
    pub kept: usize,
    /// Erased shards that no copy opens any more.
    pub revoked: usize,
    /// Of the vault's commit alone.
    pub commit: Duration,
    /// In all.
    pub took: Duration,
}

/// The shards under the next generation.
pub(super) struct Next {
    generation: u64,
    /// None: the commit's outcome is not known. Vault keys do not lie in memory for as long as that takes; until then nothing changes here.
    pub(super) keys: Option<Arc<StagedKeys>>,
    records: HashMap<ShardId, Arc<Sealed>>,
}

impl Next {
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn forget(&mut self, shard: &ShardId) {
        self.records.remove(shard);
    }
}

impl Books {
    pub(super) fn keep_next(&mut self, sealed: Option<Sealed>) {
        if let Some((next, sealed)) = self.next.as_mut().zip(sealed) {
            next.records.insert(sealed.label.shard, Arc::new(sealed));
        }
    }
}

impl ShardStore {
    /// How many erased shards a copy of this file could still give to who has this vault: a revocation is due.
    pub fn waiting(&self) -> usize {
        self.books().waiting
    }

    /// Moves the vault and all shards on to the next generation. Releases go on meanwhile.
    ///
    /// # Errors
    /// [`ShardError`]: nothing has moved, or it is [`ShardError::Undecided`]; the next call goes on from there.
    pub fn revoke(&self) -> Result<Revoked, ShardError> {
        let _one = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        self.decide()?;
        let waiting = self.waiting();
        let keys = self.vault.stage()?;
        let next = keys.generation();
        if let Err(error) = self.reseal(keys) {
            self.discard_staged();
            return Err(error);
        }
        let commit = self.commit()?;
        let (active, pending) = self.counts();
        let revoked = waiting.saturating_sub(self.waiting());
        Ok(Revoked { generation: next, kept: active + pending, revoked, commit, took: began.elapsed() })
    }

    /// Runs `body` while no revocation runs, with nothing staged.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn undisturbed<T>(&self, body: impl FnOnce() -> Result<T, VaultError>) -> Result<T, ShardError> {
        let _one = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
        self.decide()?;
        Ok(body()?)
    }

    /// Seals every shard under the next generation too, in one transaction, and lets changes enter both from then on.
    pub(super) fn reseal(&self, keys: StagedKeys) -> Result<(), ShardError> {
        let mut opened = HashMap::new();
        let mut books = loop {
            // Openings may take long; the lock is not held for them.
            let generation = self.vault.generation();
            let wanted: HashSet<VaultOpening> = {
                let labels = self.sealed_under(|of| of >= generation).into_iter();
                labels.map(|label| label.opening).filter(|opening| !opened.contains_key(opening)).collect()
            };
            for opening in wanted {
                opened.insert(opening, self.vault.key(generation, opening)?);
            }
            let books = self.books();
            let all = self.sealed_under(|of| of >= generation);
            if all.into_iter().all(|label| opened.contains_key(&label.opening)) {
                break books;
            }
        };
        let records = self.resealed(books.generation, &opened, &keys)?;
        drop(opened);
        self.transact(|write| {
            let mut table = write.open_table(NEXT)?;
            table.retain(|_, _| false)?;
            write.open_table(META)?.insert(STAGED, keys.generation())?;
            for sealed in records.values() {
                table.insert(&sealed.label.shard.0, cbor::to_vec(&**sealed).as_slice())?;
            }
            Ok(())
        })?;
        books.next = Some(Next { generation: keys.generation(), keys: Some(Arc::new(keys)), records });
        Ok(())
    }

    /// A record that does not open under its vault key never will: it stays behind. One of an older generation is lost here, and stays as it
    /// is until the ledger says that its key is over. One of a newer generation means that the vault was put back, and nothing is built on that.
    fn resealed(
        &self,
        generation: u64,
        opened: &HashMap<VaultOpening, Arc<Secret<32>>>,
        keys: &StagedKeys,
    ) -> Result<HashMap<ShardId, Arc<Sealed>>, ShardError> {
        let mut next_keys = HashMap::new();
        for opening in opened.keys() {
            next_keys.insert(*opening, keys.key(*opening)?);
        }
        let mut records = HashMap::new();
        for from in [&self.active, &self.pending] {
            for sealed in from.read().unwrap_or_else(PoisonError::into_inner).values() {
                let (label, shard) = (&sealed.label, sealed.label.shard);
                if sealed.vault_generation > generation {
                    let sealed = sealed.vault_generation;
                    return Err(VaultError::Generation { sealed, now: generation }.into());
                }
                if sealed.vault_generation < generation {
                    tracing::error!(%shard, key = %label.key, "a shard of an older generation of the vault is lost here");
                    records.insert(shard, sealed.clone());
                    continue;
                }
                let share = match self.unseal_by(&opened[&label.opening], sealed) {
                    Err(ShardError::Damaged(_)) => {
                        self.check_steady(generation, label.opening, &opened[&label.opening])?;
                        tracing::error!(%shard, "a shard's record is damaged, and is left behind");
                        continue;
                    }
                    share => share?,
                };
                let key = &next_keys[&label.opening];
                let sealed = self.seal_by(key, keys.generation(), label, sealed.standing, &share)?;
                records.insert(shard, Arc::new(sealed));
            }
        }
        Ok(records)
    }

    /// A vault that gave a wrong key once must not make a whole tier look damaged, and lose it.
    fn check_steady(&self, generation: u64, opening: VaultOpening, key: &Secret<32>) -> Result<(), ShardError> {
        let again = self.vault.key_anew(generation, opening)?;
        if ct_eq(again.expose(), key.expose()) { Ok(()) } else { Err(ShardError::Unsteady) }
    }

    /// The vault moves, and what is in memory after it. Releases that come in between wait for the end of it.
    pub(super) fn commit(&self) -> Result<Duration, ShardError> {
        let switching = self.lock_switching();
        let began = Instant::now();
        let keys = self.books().next.as_ref().and_then(|next| next.keys.clone());
        let keys = keys.ok_or_else(|| ShardError::Undecided(self.vault.generation() + 1))?;
        let committed = self.vault.commit(&keys);
        let (next, commit) = (keys.generation(), began.elapsed());
        drop(keys);
        match committed {
            Ok(()) => {
                let mut books = self.books();
                self.switch(&mut books, next);
                self.settle_disk(&mut books)?;
            }
            Err(error) => {
                tracing::warn!(error = mayfly_ledger_client::with_cause(&error), "the vault's commit failed");
                if let Some(next) = self.books().next.as_mut() {
                    next.keys = None;
                }
                drop(switching);
                self.decide()?;
                if self.vault.generation() < next {
                    return Err(error.into());
                }
            }
        }
        Ok(commit)
    }

    /// Asks the vault where it is, ends a revocation of unknown outcome accordingly, and follows it if it has moved.
    pub(super) fn decide(&self) -> Result<(), ShardError> {
        let _switching = self.lock_switching();
        let open = self.books().next.as_ref().map(|next| next.generation);
        let now = self.vault.settle().map_err(|error| match open {
            Some(next) => {
                tracing::warn!(error = mayfly_ledger_client::with_cause(&error), "the vault does not answer");
                ShardError::Undecided(next)
            }
            None => error.into(),
        })?;
        if open.is_some_and(|next| now < next) {
            self.discard_staged();
        }
        let mut books = self.books();
        self.switch(&mut books, now);
        self.settle_disk(&mut books)
    }

    /// What is staged and never committed opens nothing; staging anew voids it too.
    pub(super) fn discard_staged(&self) {
        if let Err(error) = self.vault.discard_staged() {
            tracing::warn!(error = mayfly_ledger_client::with_cause(&error), "what is staged is not discarded yet");
        }
    }

    /// Waits for a switch that is under way, and follows the vault.
    pub(super) fn follow(&self) {
        let _switching = self.lock_switching();
        let mut books = self.books();
        let now = self.vault.generation();
        if now != books.generation {
            self.switch(&mut books, now);
            if let Err(error) = self.settle_disk(&mut books) {
                tracing::warn!(error = mayfly_ledger_client::with_cause(&error), "shards");
            }
        }
    }

    /// The records in memory become those of generation `now`.
    fn switch(&self, books: &mut Books, now: u64) {
        books.unsettled |= books.next.is_some() || books.generation != now;
        books.generation = now;
        let Some(next) = books.next.take().filter(|next| next.generation == now) else { return };
        let (active, pending): (HashMap<_, _>, _) =
            next.records.into_iter().partition(|(_, sealed)| sealed.standing == Standing::Active);
        let both = active.values().chain(pending.values());
        books.accepted = both.map(|sealed| (sealed.label.key, sealed.label.accepted)).collect();
        *self.active.write().unwrap_or_else(PoisonError::into_inner) = active;
        *self.pending.write().unwrap_or_else(PoisonError::into_inner) = pending;
    }

    /// Brings the tables in line with the records in memory after a switch. No table changes otherwise until this is done.
    pub(super) fn settle_disk(&self, books: &mut Books) -> Result<(), ShardError> {
        if books.unsettled {
            let generation = books.generation;
            books.waiting = self.transact(|write| settle_tables(write, generation))?;
            books.unsettled = false;
        }
        Ok(())
    }

    fn lock_switching(&self) -> MutexGuard<'_, ()> {
        self.switching.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same record under the next generation, while a revocation runs.
    pub(super) fn seal_next(
        &self,
        books: &Books,
        label: &ShardLabel,
        standing: Standing,
        share: &Secret<64>,
    ) -> Result<Option<Sealed>, ShardError> {
        let Some(next) = &books.next else { return Ok(None) };
        let keys = next.keys.as_ref().ok_or(ShardError::Undecided(next.generation))?;
        self.seal_by(&*keys.key(label.opening)?, next.generation, label, standing, share).map(Some)
    }
}

/// The tables as they must be when the vault is at `generation`: what was re-encrypted for it takes the place of everything, what was
/// re-encrypted for a generation that did not come is thrown away. How many erased shards still open from a copy.
pub(super) fn settle_tables(write: &redb::WriteTransaction, generation: u64) -> Result<usize, redb::Error> {
    let mut tables = (write.open_table(ACTIVE)?, write.open_table(PENDING)?, write.open_table(NEXT)?);
    write.open_table(DOOMED)?;
    let staged = write.open_table(META)?.remove(STAGED)?.map(|row| row.value());
    if staged == Some(generation) {
        tables.0.retain(|_, _| false)?;
        tables.1.retain(|_, _| false)?;
        for row in tables.2.iter()? {
            let (id, bytes) = row?;
            match Sealed::read(id.value(), bytes.value()).map(|sealed| sealed.standing) {
                Some(Standing::Active) => tables.0.insert(id.value(), bytes.value())?,
                Some(Standing::Pending) => tables.1.insert(id.value(), bytes.value())?,
                None => {
                    tracing::error!(shard = %ShardId(*id.value()), "a shard's record is damaged");
                    None
                }
            };
        }
    }
    tables.2.retain(|_, _| false)?;
    let mut erased = write.open_table(ERASED)?;
    erased.retain(|_, newest| newest >= generation)?;
    // What was sealed for a generation that did not come opens no more than that.
    let ahead: Vec<[u8; 32]> = erased
        .iter()?
        .filter_map(|row| row.ok().filter(|(_, newest)| newest.value() > generation).map(|(id, _)| *id.value()))
        .collect();
    for id in ahead {
        erased.insert(&id, generation)?;
    }
    Ok(erased.len()? as usize)
}
