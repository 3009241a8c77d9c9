//! Shards at rest: sealed records in one redb file, `shards.redb`. Format page: `docs/formats/shard-store.md`.
//!
//! A shard is *pending* from the moment at which this holder has accepted it until its key is on the ledger; then it is *active*. Which of the
//! two it is, is part of what is sealed with it, so a record that is moved from one table to the other does not open.
//!
//! Erasing a record is not the end of a shard: copies of the file have it. `revoke` moves the vault on to its next generation.

mod revoke;

pub use revoke::Revoked;

use super::data::DataError;
use super::vault::{SealingKeys, VaultError};
use mayfly_crypto::enc;
use mayfly_crypto::wrap::{self, WrapError};
use mayfly_protocol::cbor;
use mayfly_protocol::record::VaultOpening;
use mayfly_protocol::{DeviceId, KeyId, ShardId};
use mayfly_secmem::{Secret, ct_eq};
use minicbor::{Decode, Encode};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use revoke::{Next, settle_tables};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Version of the records in the file.
const VERSION: u8 = 2;
/// Pages that redb keeps in memory; sealed records are held by the agent itself.
const CACHE_BYTES: usize = 1 << 20;
/// Most pending shards: what dealers have offered and not yet made a key of.
pub const PENDING_MAX: usize = 4096;
/// Most pending shards of one dealer: no dealer keeps others from making keys.
pub const PENDING_PER_DEALER_MAX: usize = 512;

const ACTIVE: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("active");
const PENDING: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("pending");
/// Shards of deleted keys, and when this device saw that, milliseconds.
const DOOMED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("doomed");

/// While a revocation runs: the same shards under the next generation, from both tables.
const NEXT: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("next");
/// Shards that were erased and still open from a copy: the newest generation of the vault that ever sealed them.
const ERASED: TableDefinition<'_, &[u8; 32], u64> = TableDefinition::new("erased");
/// `staged`: the generation that table `next` is for.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const STAGED: &str = "staged";
/// How often a change is tried that a revocation has overtaken.
const TRIES: usize = 4;

/// Why a shard is not kept or not opened.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The file cannot be opened.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The store.
    #[error("shard store {path}: {source}")]
    Store {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
    /// A record is not what this program wrote, or was changed.
    #[error("shard {} at rest is damaged; it can be repaired from the other holders by a new epoch", .0.short())]
    Damaged(ShardId),
    /// No such shard.
    #[error("shard {} is not here", .0.short())]
    Missing(ShardId),
    /// Sealed under keys that the vault does not have any more.
    #[error(
        "shard {} is lost on this device: it is sealed under generation {sealed} of its vault, which is at {now}; its key has \
         a holder less until it is dealt anew", .shard.short()
    )]
    Lost {
        /// The shard.
        shard: ShardId,
        /// Its generation of the vault.
        sealed: u64,
        /// The vault's.
        now: u64,
    },
    /// Too many offers at once.
    #[error("{PENDING_MAX} offered shards wait for their keys already")]
    TooMany,
    /// Too many offers of one dealer at once.
    #[error("{PENDING_PER_DEALER_MAX} shards that this dealer offered wait for their keys already")]
    TooManyOfDealer,
    /// A shard of this key is here, accepted under another record.
    #[error("a shard of key {} was accepted already, as part of another record", .0.short())]
    Taken(KeyId),
    /// The vault does not give the same key twice.
    #[error("the vault's next opening does not open the shard that was sealed just now")]
    Unsteady,
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Sealing.
    #[error("shard cannot be sealed: {0}")]
    Seal(#[from] WrapError),
    /// The vault has moved on again and again meanwhile.
    #[error("the vault's generation changes all the time")]
    Restless,
    /// A revocation began, and the vault has not said yet whether it happened.
    #[error("the vault has not answered whether its generation {0} is committed; it is asked again from time to time")]
    Undecided(u64),
}

/// Where a shard stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Standing {
    /// Accepted; its key is not known to be on the ledger.
    #[n(0)]
    Pending,
    /// In use.
    #[n(1)]
    Active,
}

/// What a shard is, beside its secret.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ShardLabel {
    /// The shard.
    #[n(0)]
    pub shard: ShardId,
    /// Its key.
    #[n(1)]
    pub key: KeyId,
    /// Generation of the key.
    #[n(2)]
    pub generation: u64,
    /// Epoch of the shards.
    #[n(3)]
    pub epoch: u64,
    /// Evaluation point.
    #[n(4)]
    pub index: u32,
    /// How the vault is opened for it.
    #[n(5)]
    pub opening: VaultOpening,
    /// SHA-256 of the key's record without acceptances, as it was accepted.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub accepted: [u8; 32],
    /// Deadline of the acceptance, ledger time in milliseconds.
    #[n(7)]
    pub deadline_ms: u64,
    /// Who offered it.
    #[n(8)]
    pub dealer: DeviceId,
}

/// A sealed shard.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
struct Sealed {
    #[n(0)]
    version: u8,
    #[n(1)]
    label: ShardLabel,
    #[n(2)]
    vault_generation: u64,
    #[n(3)]
    standing: Standing,
    #[cbor(n(4), with = "minicbor::bytes")]
    blob: Vec<u8>,
}

impl Sealed {
    /// A row as a record of this version, of the shard under whose id it lies.
    fn read(id: &[u8; 32], bytes: &[u8]) -> Option<Sealed> {
        let sealed = cbor::from_exact::<Sealed>(bytes).ok()?;
        (sealed.version == VERSION && sealed.label.shard.0 == *id).then_some(sealed)
    }
}

/// The store.
pub struct ShardStore {
    device: DeviceId,
    vault: Arc<dyn SealingKeys>,
    path: PathBuf,
    db: Database,
    /// Held while the tables change, so that a check and what it allows are one step.
    books: Mutex<Books>,
    /// All records, still sealed: a release reads no disk.
    active: RwLock<HashMap<ShardId, Arc<Sealed>>>,
    pending: RwLock<HashMap<ShardId, Arc<Sealed>>>,
    /// One revocation at a time. Locked before `switching`, that before `books`.
    revoking: Mutex<()>,
    /// Held from a commit of the vault until the records in memory are those of its new generation.
    switching: Mutex<()>,
}

#[derive(Default)]
struct Books {
    /// For each key with a shard here, the digest of the record that was accepted.
    accepted: HashMap<KeyId, [u8; 32]>,
    /// The vault's generation that the records in memory are for.
    generation: u64,
    /// The next one, while a revocation runs.
    next: Option<Next>,
    /// Erased shards that no revocation has reached yet.
    waiting: usize,
    /// The tables are not yet as the records in memory are: a transaction has failed.
    unsettled: bool,
}

impl std::fmt::Debug for ShardStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ShardStore({})", self.path.display())
    }
}

impl ShardStore {
    /// Opens the file, making it if it is missing.
    ///
    /// # Errors
    /// [`ShardError`]; a damaged record is left alone and counts as missing.
    pub fn open(path: &Path, device: DeviceId, vault: Arc<dyn SealingKeys>) -> Result<ShardStore, ShardError> {
        let failed = |source| ShardError::Store { path: path.into(), source: Box::new(source) };
        let db = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| failed(e.into()))?;
        restrict(path)?;
        let store = ShardStore {
            device,
            vault,
            path: path.into(),
            db,
            books: Mutex::default(),
            active: RwLock::default(),
            pending: RwLock::default(),
            revoking: Mutex::default(),
            switching: Mutex::default(),
        };
        store.load().map_err(failed)?;
        Ok(store)
    }

    fn load(&self) -> Result<(), redb::Error> {
        let mut books = self.books();
        books.generation = self.vault.generation();
        let write = self.db.begin_write()?;
        books.waiting = settle_tables(&write, books.generation)?;
        write.commit()?;
        let read = self.db.begin_read()?;
        for (table, into) in [(ACTIVE, &self.active), (PENDING, &self.pending)] {
            let mut into = into.write().unwrap_or_else(PoisonError::into_inner);
            for row in read.open_table(table)?.iter()? {
                let (id, bytes) = row?;
                match Sealed::read(id.value(), bytes.value()) {
                    Some(sealed) => {
                        books.accepted.insert(sealed.label.key, sealed.label.accepted);
                        into.insert(sealed.label.shard, Arc::new(sealed));
                    }
                    None => tracing::error!(shard = %ShardId(*id.value()), "a shard's record is damaged"),
                }
            }
        }
        drop(books);
        self.discard_staged();
        Ok(())
    }

    /// Seals a shard as pending, sees that it opens again, and saves it; on return it is on the disk. One that is here already, accepted under
    /// the same record, stays as it is: nothing ever takes the place of a shard for which this holder has signed.
    ///
    /// # Errors
    /// [`ShardError`]; nothing has changed then.
    pub fn accept(&self, label: &ShardLabel, share: &Secret<64>) -> Result<(), ShardError> {
        if self.is_accepted(&self.books(), label)? {
            return Ok(());
        }
        self.of_this_generation(
            || {
                let sealed = self.seal(label, Standing::Pending, share)?;
                self.opens_again(&sealed, share)?;
                Ok(sealed)
            },
            |books, sealed| {
                if self.is_accepted(books, label)? {
                    return Ok(());
                }
                let next = self.seal_next(books, label, Standing::Pending, share)?;
                let saved = self.transact(|write| {
                    // A record that could not be read is in no map; it is not overwritten either.
                    let mut pending = write.open_table(PENDING)?;
                    let taken = pending.get(&label.shard.0)?.is_some()
                        || write.open_table(ACTIVE)?.get(&label.shard.0)?.is_some();
                    if !taken {
                        pending.insert(&label.shard.0, cbor::to_vec(&sealed).as_slice())?;
                        put_next(write, next.as_ref())?;
                    }
                    Ok(!taken)
                })?;
                if !saved {
                    return Err(ShardError::Taken(label.key));
                }
                books.accepted.insert(label.key, label.accepted);
                books.keep_next(next);
                self.pending.write().unwrap_or_else(PoisonError::into_inner).insert(label.shard, Arc::new(sealed));
                Ok(())
            },
        )
    }

    /// Seals without the lock, which may take an opening of the vault, and then changes the tables under it; from the start if the vault has
    /// moved on meanwhile.
    fn of_this_generation(
        &self,
        seal: impl Fn() -> Result<Sealed, ShardError>,
        change: impl FnOnce(&mut Books, Sealed) -> Result<(), ShardError>,
    ) -> Result<(), ShardError> {
        for _ in 0..TRIES {
            let sealed = match seal() {
                Err(ShardError::Vault(error)) if error.is_of_generation() => {
                    self.follow();
                    continue;
                }
                outcome => outcome?,
            };
            let mut books = self.books();
            self.settle_disk(&mut books)?;
            if sealed.vault_generation == books.generation {
                return change(&mut books, sealed);
            }
            drop(books);
            self.follow();
        }
        Err(ShardError::Restless)
    }

    /// Whether a shard of exactly this record is here; if none of its key is, whether there is room for one.
    fn is_accepted(&self, books: &Books, label: &ShardLabel) -> Result<bool, ShardError> {
        match books.accepted.get(&label.key) {
            Some(digest) if *digest == label.accepted => return Ok(true),
            Some(_) => return Err(ShardError::Taken(label.key)),
            None => {}
        }
        let pending = self.pending.read().unwrap_or_else(PoisonError::into_inner);
        if pending.len() >= PENDING_MAX {
            return Err(ShardError::TooMany);
        }
        if pending.values().filter(|sealed| sealed.label.dealer == label.dealer).count() >= PENDING_PER_DEALER_MAX {
            return Err(ShardError::TooManyOfDealer);
        }
        Ok(false)
    }

    /// Opens a record as a release will, by an opening of the vault of its own: what was sealed under a key that does not come again is no shard.
    fn opens_again(&self, sealed: &Sealed, share: &Secret<64>) -> Result<(), ShardError> {
        let key = self.vault.key_anew(sealed.vault_generation, sealed.label.opening)?;
        let aad = self.aad(&sealed.label, sealed.vault_generation, sealed.standing);
        let opened = wrap::open_fixed::<64>(&key, &aad, &sealed.blob).map_err(|error| match error {
            WrapError::NotAuthentic => ShardError::Unsteady,
            other => other.into(),
        })?;
        if ct_eq(opened.expose(), share.expose()) { Ok(()) } else { Err(ShardError::Unsteady) }
    }

    /// Makes a pending shard active: its key is on the ledger.
    ///
    /// # Errors
    /// [`ShardError`]; it stays pending then.
    pub fn promote(&self, shard: &ShardId) -> Result<(), ShardError> {
        let share = self.opened(|| get(&self.pending, shard).ok_or(ShardError::Missing(*shard)))?;
        let label = self.pending_label(shard).ok_or(ShardError::Missing(*shard))?;
        self.of_this_generation(
            || self.seal(&label, Standing::Active, &share),
            |books, sealed| {
                if !self.pending.read().unwrap_or_else(PoisonError::into_inner).contains_key(shard) {
                    return Err(ShardError::Missing(*shard));
                }
                let next = self.seal_next(books, &label, Standing::Active, &share)?;
                self.transact(|write| {
                    write.open_table(ACTIVE)?.insert(&shard.0, cbor::to_vec(&sealed).as_slice())?;
                    write.open_table(PENDING)?.remove(&shard.0)?;
                    put_next(write, next.as_ref())
                })?;
                books.keep_next(next);
                self.active.write().unwrap_or_else(PoisonError::into_inner).insert(*shard, Arc::new(sealed));
                self.pending.write().unwrap_or_else(PoisonError::into_inner).remove(shard);
                Ok(())
            },
        )
    }

    /// Erases a pending shard. Copies of it open until the next revocation.
    ///
    /// # Errors
    /// [`ShardError::Store`].
    pub fn drop_pending(&self, shard: &ShardId) -> Result<(), ShardError> {
        self.remove(shard, PENDING, &self.pending)
    }

    /// Erases an active shard. Copies of it open until the next revocation.
    ///
    /// # Errors
    /// [`ShardError::Store`].
    pub fn erase(&self, shard: &ShardId) -> Result<(), ShardError> {
        self.remove(shard, ACTIVE, &self.active)
    }

    fn remove(
        &self,
        shard: &ShardId,
        table: TableDefinition<'_, &[u8; 32], &[u8]>,
        from: &RwLock<HashMap<ShardId, Arc<Sealed>>>,
    ) -> Result<(), ShardError> {
        let mut books = self.books();
        self.settle_disk(&mut books)?;
        let newest = books.next.as_ref().map_or(books.generation, Next::generation);
        let waiting = self.transact(|write| {
            write.open_table(table)?.remove(&shard.0)?;
            write.open_table(DOOMED)?.remove(&shard.0)?;
            write.open_table(NEXT)?.remove(&shard.0)?;
            let mut erased = write.open_table(ERASED)?;
            erased.insert(&shard.0, newest)?;
            Ok(erased.len()?)
        })?;
        books.waiting = waiting as usize;
        if let Some(next) = books.next.as_mut() {
            next.forget(shard);
        }
        let gone = from.write().unwrap_or_else(PoisonError::into_inner).remove(shard);
        gone.map(|sealed| books.accepted.remove(&sealed.label.key));
        Ok(())
    }

    /// Since when the shard's key is known to be deleted; from `now_ms` on, if that is news.
    ///
    /// # Errors
    /// [`ShardError::Store`].
    pub fn doomed(&self, shard: &ShardId, now_ms: u64) -> Result<u64, ShardError> {
        let known = || -> Result<Option<u64>, redb::Error> {
            Ok(self.db.begin_read()?.open_table(DOOMED)?.get(&shard.0)?.map(|since| since.value()))
        };
        let failed = |source| ShardError::Store { path: self.path.clone(), source: Box::new(source) };
        if let Some(since) = known().map_err(failed)? {
            return Ok(since);
        }
        self.transact(|write| {
            write.open_table(DOOMED)?.insert(&shard.0, now_ms)?;
            Ok(())
        })?;
        Ok(now_ms)
    }

    /// How many shards are active and pending.
    pub fn counts(&self) -> (usize, usize) {
        let count = |of: &RwLock<HashMap<_, _>>| of.read().unwrap_or_else(PoisonError::into_inner).len();
        (count(&self.active), count(&self.pending))
    }

    /// Opens an active shard.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn open_share(&self, shard: &ShardId) -> Result<Secret<64>, ShardError> {
        self.opened(|| get(&self.active, shard).ok_or(ShardError::Missing(*shard)))
    }

    /// Opens a record; the one that has taken its place, if the vault has moved on meanwhile.
    fn opened(&self, record: impl Fn() -> Result<Arc<Sealed>, ShardError>) -> Result<Secret<64>, ShardError> {
        match self.unseal(&*record()?) {
            Err(ShardError::Vault(error)) if error.is_of_generation() => self.follow(),
            outcome => return outcome,
        }
        let now = self.books().generation;
        let sealed = record()?;
        if sealed.vault_generation < now {
            return Err(ShardError::Lost { shard: sealed.label.shard, sealed: sealed.vault_generation, now });
        }
        match self.unseal(&sealed) {
            Err(ShardError::Vault(error)) if error.is_of_generation() => {
                // Not by a revocation of ours: the vault itself is asked.
                let _one = self.revoking.lock().unwrap_or_else(PoisonError::into_inner);
                self.decide()?;
            }
            outcome => return outcome,
        }
        self.unseal(&*record()?)
    }

    /// Labels of shards that are lost here: sealed under an older generation than the vault's.
    pub fn lost(&self) -> Vec<ShardLabel> {
        let now = self.books().generation;
        self.sealed_under(|generation| generation < now)
    }

    /// Whether a shard here is sealed under the generation at which the vault is: this device had its keys.
    pub fn had_keys(&self) -> bool {
        let now = self.books().generation;
        !self.sealed_under(|generation| generation == now).is_empty()
    }

    fn sealed_under(&self, wanted: impl Fn(u64) -> bool) -> Vec<ShardLabel> {
        let labels = |of: &RwLock<HashMap<ShardId, Arc<Sealed>>>| -> Vec<ShardLabel> {
            let of = of.read().unwrap_or_else(PoisonError::into_inner);
            of.values().filter(|sealed| wanted(sealed.vault_generation)).map(|sealed| sealed.label.clone()).collect()
        };
        [labels(&self.active), labels(&self.pending)].concat()
    }

    /// Labels of the pending shards.
    pub fn pending(&self) -> Vec<ShardLabel> {
        labels(&self.pending)
    }

    /// Labels of the active shards.
    pub fn active(&self) -> Vec<ShardLabel> {
        labels(&self.active)
    }

    /// Whether the shard is here, active.
    pub fn has(&self, shard: &ShardId) -> bool {
        self.active.read().unwrap_or_else(PoisonError::into_inner).contains_key(shard)
    }

    /// The label of a pending shard.
    pub fn pending_label(&self, shard: &ShardId) -> Option<ShardLabel> {
        get(&self.pending, shard).map(|sealed| sealed.label.clone())
    }

    fn seal(&self, label: &ShardLabel, standing: Standing, share: &Secret<64>) -> Result<Sealed, ShardError> {
        let vault_generation = self.vault.generation();
        let key = self.vault.key(vault_generation, label.opening)?;
        self.seal_by(&key, vault_generation, label, standing, share)
    }

    fn seal_by(
        &self,
        key: &Secret<32>,
        vault_generation: u64,
        label: &ShardLabel,
        standing: Standing,
        share: &Secret<64>,
    ) -> Result<Sealed, ShardError> {
        let blob = wrap::seal(key, &self.aad(label, vault_generation, standing), share.expose())?;
        Ok(Sealed { version: VERSION, label: label.clone(), vault_generation, standing, blob })
    }

    fn unseal(&self, sealed: &Sealed) -> Result<Secret<64>, ShardError> {
        let key = self.vault.key(sealed.vault_generation, sealed.label.opening)?;
        self.unseal_by(&key, sealed)
    }

    fn unseal_by(&self, key: &Secret<32>, sealed: &Sealed) -> Result<Secret<64>, ShardError> {
        let aad = self.aad(&sealed.label, sealed.vault_generation, sealed.standing);
        wrap::open_fixed(key, &aad, &sealed.blob).map_err(|error| match error {
            WrapError::NotAuthentic => ShardError::Damaged(sealed.label.shard),
            other => other.into(),
        })
    }

    /// Everything that the record says, so that a record changed in any place, or kept by another device, does not open.
    fn aad(&self, label: &ShardLabel, vault_generation: u64, standing: Standing) -> Vec<u8> {
        enc::enc(
            "mayfly/v1/shard-at-rest",
            &[self.device.as_bytes(), &vault_generation.to_be_bytes(), &[standing as u8], &cbor::to_vec(label)],
        )
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn transact<T>(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, ShardError> {
        let run = || {
            let write = self.db.begin_write()?;
            let outcome = change(&write)?;
            write.commit()?; // durable: redb syncs before it returns
            Ok(outcome)
        };
        run().map_err(|source| ShardError::Store { path: self.path.clone(), source: Box::new(source) })
    }
}

fn put_next(write: &redb::WriteTransaction, next: Option<&Sealed>) -> Result<(), redb::Error> {
    if let Some(sealed) = next {
        write.open_table(NEXT)?.insert(&sealed.label.shard.0, cbor::to_vec(sealed).as_slice())?;
    }
    Ok(())
}

fn get(from: &RwLock<HashMap<ShardId, Arc<Sealed>>>, shard: &ShardId) -> Option<Arc<Sealed>> {
    from.read().unwrap_or_else(PoisonError::into_inner).get(shard).cloned()
}

fn labels(from: &RwLock<HashMap<ShardId, Arc<Sealed>>>) -> Vec<ShardLabel> {
    from.read().unwrap_or_else(PoisonError::into_inner).values().map(|sealed| sealed.label.clone()).collect()
}

fn restrict(path: &Path) -> Result<(), DataError> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(DataError::io("cannot restrict", path))
}

#[cfg(test)]
mod tests;
