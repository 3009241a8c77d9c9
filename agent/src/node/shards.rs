//! Shards at rest: sealed records in one redb file, `shards.redb`. Format page: `docs/formats/shard-store.md`.
//!
//! A shard is *pending* from the moment at which this holder has accepted it until its key is on the ledger; then it is *active*. Which of the
//! two it is, is part of what is sealed with it, so a record that is moved from one table to the other does not open.

use super::data::DataError;
use super::vault::{SealingKeys, VaultError};
use mayfly_crypto::enc;
use mayfly_crypto::wrap::{self, WrapError};
use mayfly_protocol::cbor;
use mayfly_protocol::record::VaultOpening;
use mayfly_protocol::{DeviceId, KeyId, ShardId};
use mayfly_secmem::{Secret, ct_eq};
use minicbor::{Decode, Encode};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// Version of the records in the file.
const VERSION: u8 = 1;
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

/// The store.
pub struct ShardStore {
    device: DeviceId,
    vault: Arc<dyn SealingKeys>,
    path: PathBuf,
    db: Database,
    /// For each key with a shard here, the digest of the record that was accepted. Held while the tables change, so that a check and what it
    /// allows are one step.
    accepted: Mutex<HashMap<KeyId, [u8; 32]>>,
    /// All records, still sealed: a release reads no disk.
    active: RwLock<HashMap<ShardId, Arc<Sealed>>>,
    pending: RwLock<HashMap<ShardId, Arc<Sealed>>>,
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
            accepted: Mutex::default(),
            active: RwLock::default(),
            pending: RwLock::default(),
        };
        store.load().map_err(failed)?;
        Ok(store)
    }

    fn load(&self) -> Result<(), redb::Error> {
        let write = self.db.begin_write()?;
        for table in [ACTIVE, PENDING] {
            write.open_table(table)?;
        }
        write.open_table(DOOMED)?;
        write.commit()?;
        let read = self.db.begin_read()?;
        for (table, into) in [(ACTIVE, &self.active), (PENDING, &self.pending)] {
            let mut into = into.write().unwrap_or_else(PoisonError::into_inner);
            for row in read.open_table(table)?.iter()? {
                let (id, bytes) = row?;
                match cbor::from_exact::<Sealed>(bytes.value()) {
                    Ok(sealed) if sealed.version == VERSION && sealed.label.shard.0 == *id.value() => {
                        self.accepted().insert(sealed.label.key, sealed.label.accepted);
                        into.insert(sealed.label.shard, Arc::new(sealed));
                    }
                    _ => tracing::error!(shard = %ShardId(*id.value()), "a shard's record is damaged"),
                }
            }
        }
        Ok(())
    }

    /// Seals a shard as pending, sees that it opens again, and saves it; on return it is on the disk. One that is here already, accepted under
    /// the same record, stays as it is: nothing ever takes the place of a shard for which this holder has signed.
    ///
    /// # Errors
    /// [`ShardError`]; nothing has changed then.
    pub fn accept(&self, label: &ShardLabel, share: &Secret<64>) -> Result<(), ShardError> {
        if self.is_accepted(&self.accepted(), label)? {
            return Ok(());
        }
        let sealed = self.seal(label, Standing::Pending, share)?;
        self.opens_again(&sealed, share)?;
        let bytes = cbor::to_vec(&sealed);
        let mut accepted = self.accepted();
        if self.is_accepted(&accepted, label)? {
            return Ok(());
        }
        let saved = self.transact(|write| {
            // A record that could not be read is in no map; it is not overwritten either.
            let mut pending = write.open_table(PENDING)?;
            let taken =
                pending.get(&label.shard.0)?.is_some() || write.open_table(ACTIVE)?.get(&label.shard.0)?.is_some();
            if !taken {
                pending.insert(&label.shard.0, bytes.as_slice())?;
            }
            Ok(!taken)
        })?;
        if !saved {
            return Err(ShardError::Taken(label.key));
        }
        accepted.insert(label.key, label.accepted);
        self.pending.write().unwrap_or_else(PoisonError::into_inner).insert(label.shard, Arc::new(sealed));
        Ok(())
    }

    /// Whether a shard of exactly this record is here; if none of its key is, whether there is room for one.
    fn is_accepted(&self, accepted: &HashMap<KeyId, [u8; 32]>, label: &ShardLabel) -> Result<bool, ShardError> {
        match accepted.get(&label.key) {
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
        let sealed = get(&self.pending, shard).ok_or(ShardError::Missing(*shard))?;
        let share = self.unseal(&sealed)?;
        let active = self.seal(&sealed.label, Standing::Active, &share)?;
        let bytes = cbor::to_vec(&active);
        let _unchanged = self.accepted();
        self.transact(|write| {
            write.open_table(ACTIVE)?.insert(&shard.0, bytes.as_slice())?;
            write.open_table(PENDING)?.remove(&shard.0)?;
            Ok(())
        })?;
        self.active.write().unwrap_or_else(PoisonError::into_inner).insert(*shard, Arc::new(active));
        self.pending.write().unwrap_or_else(PoisonError::into_inner).remove(shard);
        Ok(())
    }

    /// Erases a pending shard.
    ///
    /// # Errors
    /// [`ShardError::Store`].
    pub fn drop_pending(&self, shard: &ShardId) -> Result<(), ShardError> {
        let mut accepted = self.accepted();
        self.transact(|write| {
            write.open_table(PENDING)?.remove(&shard.0)?;
            Ok(())
        })?;
        let gone = self.pending.write().unwrap_or_else(PoisonError::into_inner).remove(shard);
        gone.map(|sealed| accepted.remove(&sealed.label.key));
        Ok(())
    }

    /// Erases an active shard.
    ///
    /// # Errors
    /// [`ShardError::Store`].
    pub fn erase(&self, shard: &ShardId) -> Result<(), ShardError> {
        let mut accepted = self.accepted();
        self.transact(|write| {
            write.open_table(ACTIVE)?.remove(&shard.0)?;
            write.open_table(DOOMED)?.remove(&shard.0)?;
            Ok(())
        })?;
        let gone = self.active.write().unwrap_or_else(PoisonError::into_inner).remove(shard);
        gone.map(|sealed| accepted.remove(&sealed.label.key));
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
        let sealed = get(&self.active, shard).ok_or(ShardError::Missing(*shard))?;
        self.unseal(&sealed)
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
        let blob = wrap::seal(&key, &self.aad(label, vault_generation, standing), share.expose())?;
        Ok(Sealed { version: VERSION, label: label.clone(), vault_generation, standing, blob })
    }

    fn unseal(&self, sealed: &Sealed) -> Result<Secret<64>, ShardError> {
        let key = self.vault.key(sealed.vault_generation, sealed.label.opening)?;
        let aad = self.aad(&sealed.label, sealed.vault_generation, sealed.standing);
        wrap::open_fixed(&key, &aad, &sealed.blob).map_err(|error| match error {
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

    fn accepted(&self) -> MutexGuard<'_, HashMap<KeyId, [u8; 32]>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
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
