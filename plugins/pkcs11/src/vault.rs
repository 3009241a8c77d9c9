//! Generations and identity by the rules of the plugin interface.
//!
//! | File | Is |
//! |---|---|
//! | `vault` | the vault's id; made once |
//! | `identity` | the identity's public key; made once, after the pair in the token |
//! | `generation` | the sealed keys that open, by the token's key of this generation |
//! | `staged` | the sealed keys that would open after a commit |
//!
//! The rename of `staged` to `generation` is the commit. Then the old generation's key is destroyed in the token;
//! whatever crashes between the two, the next start destroys it. Before the rename only the old generation opens,
//! after it only the new one.

use crate::config::Config;
use crate::module::Module;
use crate::objects;
use crate::record::{FILE_BYTES_MAX, GenerationFile, Header, IdentityFile, SERIAL_BYTES};
use crate::token::{Open, Token};
use mayfly_plugin_abi::{
    Alg, Generations, GuestError, Health, HealthState, Identity, SIGNATURE_BYTES, Status, Tier, VAULT_KEY_BYTES,
    VaultDescription, VaultGuest,
};
use mayfly_vault_store::{GENERATION, HEADER, IDENTITY, STAGED, Store, random, refusal};
use std::path::Path;
use std::sync::Arc;
use zeroize::Zeroizing;

/// An open vault.
pub struct Pkcs11Vault {
    store: Arc<Store>,
    token: Token,
    header: Header,
}

impl VaultGuest for Pkcs11Vault {
    const NAME: &'static str = "pkcs11";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn open(config: &str, data_dir: &Path) -> Result<Pkcs11Vault, GuestError> {
        let config = Config::parse(config)?;
        let store = Arc::new(Store::open(data_dir, FILE_BYTES_MAX)?);
        let module = Module::load(&config)?;
        Pkcs11Vault::open_with(module, config, store)
    }

    fn describe(&mut self) -> Result<VaultDescription, GuestError> {
        let (info, software_only) = self.token.describe()?;
        let hardware = format!(
            "{} {}, hardware {}, firmware {}, token '{}', serial number {}",
            info.manufacturer_id(),
            info.model(),
            info.hardware_version(),
            info.firmware_version(),
            info.label(),
            info.serial_number(),
        );
        let security_note = if software_only {
            "software only, for development: a copy of the token's files and the PIN open every generation of which a \
             copy exists, revoked ones included"
        } else {
            "who has the PIN can use the keys on this token; a backup of the whole token, where its maker offers one, \
             brings revoked generations back, which the ledger's record of the generation then refuses"
        };
        Ok(VaultDescription {
            software_only,
            identity_algs: vec![Alg::P256],
            tiers: Tier::ALL.to_vec(),
            hardware,
            security_note: security_note.to_owned(),
        })
    }

    fn identity_public(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError> {
        if alg == Some(Alg::Ed25519) {
            return Err(GuestError::new(Status::Unsupported, "identity keys are P-256 here"));
        }
        let identity = match self.identity_file()? {
            Some(identity) => identity,
            None if create => self.make_identity()?,
            None => return Err(refusal::no_identity()),
        };
        Ok(Identity { alg: Alg::P256, public: identity.public.to_vec() })
    }

    fn identity_sign(&mut self, message: &[u8], signature: &mut [u8; SIGNATURE_BYTES]) -> Result<(), GuestError> {
        self.identity_file()?.ok_or_else(refusal::no_identity)?;
        let (vault, signing) = (self.header.vault_id, self.token.signing());
        let lost = self.lost("the identity key");
        *signature = self.token.with("signing by the identity key", |open| {
            let key = objects::identity_key(open, &vault)?.ok_or_else(&lost)?;
            signing.sign(&open.session, key, message)
        })?;
        Ok(())
    }

    fn generation(&mut self) -> Result<Generations, GuestError> {
        let current = self.current()?;
        let next = current.checked_add(1);
        let staged = self.generation_file(STAGED)?.map(|file| file.generation).filter(|staged| Some(*staged) == next);
        Ok(Generations { current, staged: if let Some(staged) = staged { self.has_key(staged)? } else { None } })
    }

    fn stage(&mut self, next: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        let current = self.current()?;
        refusal::check_next(current, next)?;
        let mut file = match self.staged(next)? {
            Some(file) => file,
            None => self.begin(current, next)?,
        };
        random(key)?;
        let (vault, sealing) = (self.header.vault_id, file.sealing);
        let lost = self.lost(&format!("the key of generation {next}"));
        let sealed = self.token.with("sealing a vault key", |open| {
            let by = objects::sealing_key(open, &vault, next)?.ok_or_else(&lost)?;
            sealing.seal(&open.session, by, &GenerationFile::aad(&vault, next, tier), key)
        })?;
        file.put(tier, sealed);
        self.store.write(STAGED, &file.encode())
    }

    fn open_key(&mut self, generation: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        let file = self.generation_file(GENERATION)?;
        let Some(file) = file.filter(|file| file.generation == generation) else {
            return Err(refusal::does_not_open(generation, self.current()?));
        };
        let sealed = file.key(tier).ok_or_else(|| refusal::no_key(tier, generation))?;
        self.unseal(&file, tier, sealed, key)
    }

    fn commit(&mut self, next: u64) -> Result<(), GuestError> {
        self.finish_commit()?;
        let current = self.current()?;
        if next == current && next > 0 {
            return Ok(());
        }
        let staged = if Some(next) == current.checked_add(1) { self.staged(next)? } else { None };
        let staged = staged.ok_or_else(|| refusal::not_staged(next, current))?;
        // what does not open must not become the only one that is left
        let mut key = Zeroizing::new([0u8; VAULT_KEY_BYTES]);
        for (tier, sealed) in &staged.keys {
            self.unseal(&staged, *tier, sealed, &mut key)?;
        }
        self.store.rename(STAGED, GENERATION)?;
        self.finish_commit()
    }

    fn discard_staged(&mut self) -> Result<(), GuestError> {
        let current = self.current()?;
        self.destroy(|generation| generation > current)?;
        self.store.unlink(STAGED)
    }

    fn random(&mut self, out: &mut [u8]) -> Result<(), GuestError> {
        self.token.with("drawing random numbers", |open| Ok(open.session.generate_random_slice(out)?))
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        let mut health = self.store.health();
        if let Err(error) = self.check() {
            health.state = match error.status {
                Status::VaultLost => HealthState::VaultLost,
                Status::Lockout => HealthState::Lockout,
                _ => HealthState::Down,
            };
            health.detail = error.message;
        }
        Ok(health)
    }
}

impl Pkcs11Vault {
    /// Opens the vault of a locked folder in the token of a loaded library.
    fn open_with(module: Module, config: Config, store: Arc<Store>) -> Result<Pkcs11Vault, GuestError> {
        let mut token = Token::open(module, config, &store)?;
        let header = match store.read(HEADER)? {
            Some(bytes) => Header::decode(&bytes).map_err(|how| store.damaged(HEADER, &how))?,
            None => create(&store, &mut token)?,
        };
        let mut vault = Pkcs11Vault { store, token, header };
        vault.check()?;
        vault.finish_commit()?;
        Ok(vault)
    }

    /// The token has what the folder says, and no more than the folder knows of.
    fn check(&mut self) -> Result<(), GuestError> {
        let vault = self.header.vault_id;
        let lost = self.lost("the identity key");
        if self.identity_file()?.is_some() {
            self.token.with("searching the token", |open| {
                objects::identity_key(open, &vault)?.map(|_| ()).ok_or_else(|| lost().into())
            })?;
        }
        let file = self.generation_file(GENERATION)?;
        let current = file.as_ref().map_or(0, |file| file.generation);
        let there = self.token.with("searching the token", |open| objects::generation_keys(open, &vault))?;
        let newest = there.last().map_or(0, |(generation, _)| *generation);
        // a staged generation is one above the committed one; a key further above, or instead of ours, was made later
        // than this folder
        let ours = current == 0 || there.iter().any(|(generation, _)| *generation == current);
        if newest > current.saturating_add(1) || (!ours && newest > current) {
            let text = format!(
                "{} is at generation {current}, but {} has the key of generation {newest}: the folder was put back from \
                 an old copy; put its newest copy there, or enrol the device anew",
                self.store.path_of(GENERATION).display(),
                self.token.wanted()
            );
            return Err(GuestError::new(Status::VaultLost, text));
        }
        if !ours {
            return Err(self.lost(&format!("the key of generation {current}"))());
        }
        let Some((file, (tier, sealed))) = file.as_ref().and_then(|file| Some((file, file.keys.first()?))) else {
            return Ok(());
        };
        let mut key = Zeroizing::new([0u8; VAULT_KEY_BYTES]);
        self.unseal(file, *tier, sealed, &mut key)
    }

    /// Destroys the keys of the generations that a commit has replaced.
    fn finish_commit(&mut self) -> Result<(), GuestError> {
        let current = self.current()?;
        self.destroy(|generation| generation < current)
    }

    fn destroy(&mut self, dead: impl Fn(u64) -> bool) -> Result<(), GuestError> {
        let vault = self.header.vault_id;
        self.token.with("destroying keys in the token", |open| objects::destroy_generations(open, &vault, &dead))
    }

    /// Starts generation `next`: a new key in the token, and nothing sealed by it yet.
    fn begin(&mut self, current: u64, next: u64) -> Result<GenerationFile, GuestError> {
        let (vault_id, sealing) = (self.header.vault_id, self.token.sealing());
        self.store.unlink(STAGED)?;
        self.token.with("making a key in the token", |open| {
            objects::destroy_generations(open, &vault_id, |generation| generation > current)?;
            objects::make_generation_key(open, &vault_id, next, sealing)
        })?;
        Ok(GenerationFile { vault_id, generation: next, sealing, keys: Vec::new() })
    }

    /// What is staged as generation `next`, when file and key are both there.
    fn staged(&mut self, next: u64) -> Result<Option<GenerationFile>, GuestError> {
        match self.generation_file(STAGED)?.filter(|file| file.generation == next) {
            Some(file) => Ok(self.has_key(next)?.map(|_| file)),
            None => Ok(None),
        }
    }

    fn has_key(&mut self, generation: u64) -> Result<Option<u64>, GuestError> {
        let vault = self.header.vault_id;
        let key = |open: &Open| objects::generation_key(open, &vault, generation);
        Ok(self.token.with("searching the token", key)?.map(|_| generation))
    }

    fn unseal(
        &mut self,
        file: &GenerationFile,
        tier: Tier,
        sealed: &[u8],
        key: &mut [u8; VAULT_KEY_BYTES],
    ) -> Result<(), GuestError> {
        let (vault, generation) = (self.header.vault_id, file.generation);
        let lost = self.lost(&format!("the key of generation {generation}"));
        self.token.with("opening a vault key", |open| {
            let by = objects::generation_key(open, &vault, generation)?.ok_or_else(&lost)?;
            file.sealing.open(&open.session, by, &GenerationFile::aad(&vault, generation, tier), sealed, key)
        })
    }

    fn current(&self) -> Result<u64, GuestError> {
        Ok(self.generation_file(GENERATION)?.map_or(0, |file| file.generation))
    }

    fn generation_file(&self, name: &str) -> Result<Option<GenerationFile>, GuestError> {
        let Some(bytes) = self.store.read(name)? else { return Ok(None) };
        let file = GenerationFile::decode(&bytes).map_err(|how| self.store.damaged(name, &how))?;
        self.store.check_vault(name, &file.vault_id, &self.header.vault_id)?;
        Ok(Some(file))
    }

    fn identity_file(&self) -> Result<Option<IdentityFile>, GuestError> {
        let Some(bytes) = self.store.read(IDENTITY)? else { return Ok(None) };
        let file = IdentityFile::decode(&bytes).map_err(|how| self.store.damaged(IDENTITY, &how))?;
        self.store.check_vault(IDENTITY, &file.vault_id, &self.header.vault_id)?;
        Ok(Some(file))
    }

    fn make_identity(&mut self) -> Result<IdentityFile, GuestError> {
        let (vault_id, signing) = (self.header.vault_id, self.token.signing());
        let make = |open: &Open| objects::make_identity(open, &vault_id, signing);
        let public = self.token.with("making the identity key in the token", make)?;
        let file = IdentityFile { vault_id, public };
        self.store.write(IDENTITY, &file.encode())?;
        Ok(file)
    }

    /// Something of ours that the token no longer has.
    fn lost(&self, what: &str) -> impl Fn() -> GuestError + use<> {
        let text = format!(
            "{} does not have {what} of this vault, which was made in the token with serial number {}: the token was \
             cleared, replaced or put back from an old copy; enrol the device anew",
            self.token.wanted(),
            self.header.serial_text()
        );
        move || GuestError::new(Status::VaultLost, text.clone())
    }
}

/// Makes the header of a new folder.
fn create(store: &Store, token: &mut Token) -> Result<Header, GuestError> {
    store.check_empty(&[GENERATION, STAGED, IDENTITY])?;
    let (info, _) = token.describe()?;
    let mut header = Header { vault_id: [0; 16], serial: [0; SERIAL_BYTES] };
    mayfly_plugin_abi::fill_text(&mut header.serial, info.serial_number());
    random(&mut header.vault_id)?;
    store.write(HEADER, &header.encode())?;
    Ok(header)
}

#[cfg(test)]
mod tests;
