//! Generations and identity by the rules of the plugin interface, on the files of `record`.
//!
//! | File | Is |
//! |---|---|
//! | `vault` | salt, cost, check value; made once |
//! | `identity` | the sealed Ed25519 seed; made once |
//! | `generation` | the sealed keys that open |
//! | `staged` | the sealed keys that would open after a commit |
//! | `retired` | second name of the old `generation` during a commit, so that it can be overwritten after it |
//!
//! The rename of `staged` to `generation` is the commit. Whatever crashes when, there is one file `generation`.

use crate::config::Config;
use crate::record::{Damaged, GenerationFile, Header, IdentityFile};
use crate::seal::{Master, SALT_BYTES, SEALED_BYTES};
use crate::store::Store;
use ed25519_zebra::{SigningKey, VerificationKeyBytes};
use mayfly_plugin_abi::{
    Alg, Generations, GuestError, Health, HealthState, Identity, SIGNATURE_BYTES, Status, Tier, VAULT_KEY_BYTES,
    VaultDescription, VaultGuest,
};
use std::path::Path;
use zeroize::Zeroizing;

const HEADER: &str = "vault";
const IDENTITY: &str = "identity";
const GENERATION: &str = "generation";
const STAGED: &str = "staged";
const RETIRED: &str = "retired";
/// Less room than this is told as "read-only": a commit must not meet a full disk.
const FREE_BYTES_MIN: u64 = 1024 * 1024;

/// An open vault.
pub struct FileVault {
    store: Store,
    master: Master,
    vault_id: [u8; 16],
}

impl VaultGuest for FileVault {
    const NAME: &'static str = "file";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn open(config: &str, data_dir: &Path) -> Result<FileVault, GuestError> {
        let config = Config::parse(config)?;
        let passphrase = config.passphrase()?;
        let store = Store::open(data_dir)?;
        let (header, master) = match store.read(HEADER)? {
            Some(bytes) => unlock(&store, &bytes, &passphrase)?,
            None => create(&store, &config, &passphrase)?,
        };
        let vault = FileVault { store, master, vault_id: header.vault_id };
        vault.finish_commit()?;
        vault.generation_file(GENERATION)?;
        vault.identity_file()?;
        Ok(vault)
    }

    fn describe(&mut self) -> Result<VaultDescription, GuestError> {
        Ok(VaultDescription {
            software_only: true,
            identity_algs: vec![Alg::Ed25519],
            tiers: Tier::ALL.to_vec(),
            hardware: "none: passphrase-sealed files".to_owned(),
            security_note: "software only, for development: a copy of the folder and the passphrase open every \
                            generation of which a copy exists, revoked ones included"
                .to_owned(),
        })
    }

    fn identity_public(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError> {
        if alg == Some(Alg::P256) {
            return Err(GuestError::new(Status::Unsupported, "identity keys are Ed25519 here"));
        }
        let identity = match self.identity_file()? {
            Some(identity) => identity,
            None if create => self.make_identity()?,
            None => return Err(no_identity()),
        };
        Ok(Identity { alg: Alg::Ed25519, public: identity.public.to_vec() })
    }

    fn identity_sign(&mut self, message: &[u8], signature: &mut [u8; SIGNATURE_BYTES]) -> Result<(), GuestError> {
        let identity = self.identity_file()?.ok_or_else(no_identity)?;
        let mut seed = Zeroizing::new([0u8; 32]);
        self.open_sealed(IDENTITY, &identity.aad(), &identity.seed, &mut seed)?;
        let key = Zeroizing::new(SigningKey::from(*seed));
        *signature = key.sign(message).to_bytes();
        Ok(())
    }

    fn generation(&mut self) -> Result<Generations, GuestError> {
        let current = self.current()?;
        let staged = self.generation_file(STAGED)?.map(|file| file.generation);
        // a staged file of another generation than the next one is left from a folder put together by hand
        Ok(Generations { current, staged: staged.filter(|staged| Some(*staged) == current.checked_add(1)) })
    }

    fn stage(&mut self, next: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        let current = self.current()?;
        if Some(next) != current.checked_add(1) {
            let text = format!("generation {next} cannot be staged over {current}");
            return Err(GuestError::new(Status::Invalid, text));
        }
        let mut file = match self.generation_file(STAGED)? {
            Some(file) if file.generation == next => file,
            _ => GenerationFile { vault_id: self.vault_id, generation: next, keys: Vec::new() },
        };
        getrandom::fill(key).map_err(|error| GuestError::new(Status::Io, format!("random numbers: {error}")))?;
        let sealed = self.seal(&GenerationFile::aad(&self.vault_id, next, tier), key)?;
        file.put(tier, sealed);
        self.store.write(STAGED, &file.encode())
    }

    fn open_key(&mut self, generation: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        let file = self.generation_file(GENERATION)?;
        let Some(file) = file.filter(|file| file.generation == generation) else {
            let current = self.current()?;
            let text = format!("generation {generation} does not open, the committed one is {current}");
            return Err(GuestError::new(Status::NoGeneration, text));
        };
        let Some(sealed) = file.key(tier) else {
            let text = format!("tier {tier:?} has no key in generation {generation}");
            return Err(GuestError::new(Status::NotFound, text));
        };
        self.open_sealed(GENERATION, &GenerationFile::aad(&self.vault_id, generation, tier), sealed, key)
    }

    fn commit(&mut self, next: u64) -> Result<(), GuestError> {
        self.finish_commit()?;
        let current = self.current()?;
        if next == current && next > 0 {
            return Ok(());
        }
        let staged = self.generation_file(STAGED)?;
        let staged = staged.filter(|file| file.generation == next && Some(next) == current.checked_add(1));
        let Some(staged) = staged else {
            let text = format!("generation {next} is neither staged nor committed, the committed one is {current}");
            return Err(GuestError::new(Status::NoGeneration, text));
        };
        // a damaged staged file must not become the only one that is left
        let mut key = Zeroizing::new([0u8; VAULT_KEY_BYTES]);
        for (tier, sealed) in &staged.keys {
            self.open_sealed(STAGED, &GenerationFile::aad(&self.vault_id, next, *tier), sealed, &mut key)?;
        }
        if current > 0 {
            self.store.link(GENERATION, RETIRED)?;
        }
        self.store.rename(STAGED, GENERATION)?;
        self.finish_commit()
    }

    fn discard_staged(&mut self) -> Result<(), GuestError> {
        self.store.wipe(STAGED)
    }

    fn random(&mut self, out: &mut [u8]) -> Result<(), GuestError> {
        getrandom::fill(out).map_err(|error| GuestError::new(Status::Io, format!("random numbers: {error}")))
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        let mut health = Health::ok();
        match self.store.free_bytes() {
            Ok(free) => {
                health.free_bytes = Some(free);
                if free < FREE_BYTES_MIN {
                    health.state = HealthState::ReadOnly;
                    health.detail = format!("only {free} bytes are free under the vault's folder");
                }
            }
            Err(error) => {
                health.state = HealthState::Down;
                health.detail = error.to_string();
            }
        }
        Ok(health)
    }
}

impl FileVault {
    /// Forgets the generation that a commit has replaced; also undoes the first half of a commit that did not happen.
    fn finish_commit(&self) -> Result<(), GuestError> {
        if self.store.same_file(GENERATION, RETIRED)? { self.store.unlink(RETIRED) } else { self.store.wipe(RETIRED) }
    }

    fn current(&self) -> Result<u64, GuestError> {
        Ok(self.generation_file(GENERATION)?.map_or(0, |file| file.generation))
    }

    fn generation_file(&self, name: &str) -> Result<Option<GenerationFile>, GuestError> {
        let Some(bytes) = self.store.read(name)? else { return Ok(None) };
        let file = GenerationFile::decode(&bytes).map_err(|error| corrupt(&self.store, name, error))?;
        self.same_vault(name, &file.vault_id)?;
        Ok(Some(file))
    }

    fn identity_file(&self) -> Result<Option<IdentityFile>, GuestError> {
        let Some(bytes) = self.store.read(IDENTITY)? else { return Ok(None) };
        let file = IdentityFile::decode(&bytes).map_err(|error| corrupt(&self.store, IDENTITY, error))?;
        self.same_vault(IDENTITY, &file.vault_id)?;
        Ok(Some(file))
    }

    fn same_vault(&self, name: &str, vault_id: &[u8; 16]) -> Result<(), GuestError> {
        if *vault_id == self.vault_id {
            return Ok(());
        }
        Err(corrupt(&self.store, name, Damaged("it belongs to another vault".to_owned())))
    }

    fn make_identity(&self) -> Result<IdentityFile, GuestError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(&mut seed[..])
            .map_err(|error| GuestError::new(Status::Io, format!("random numbers: {error}")))?;
        let key = Zeroizing::new(SigningKey::from(*seed));
        let public = <[u8; 32]>::from(VerificationKeyBytes::from(&*key));
        let mut file = IdentityFile { vault_id: self.vault_id, public, seed: [0; SEALED_BYTES] };
        file.seed = self.seal(&file.aad(), &seed)?;
        self.store.write(IDENTITY, &file.encode())?;
        Ok(file)
    }

    fn seal(&self, aad: &[u8], secret: &[u8; 32]) -> Result<[u8; SEALED_BYTES], GuestError> {
        self.master.seal(aad, secret).map_err(|error| GuestError::new(Status::Io, format!("random numbers: {error}")))
    }

    fn open_sealed(
        &self,
        name: &str,
        aad: &[u8],
        sealed: &[u8; SEALED_BYTES],
        secret: &mut [u8; 32],
    ) -> Result<(), GuestError> {
        self.master
            .open(aad, sealed, secret)
            .map_err(|_| corrupt(&self.store, name, Damaged("its sealed part was changed".to_owned())))
    }
}

fn no_identity() -> GuestError {
    GuestError::new(Status::NoIdentity, "there is no identity key yet")
}

fn corrupt(store: &Store, name: &str, damaged: Damaged) -> GuestError {
    let text = format!(
        "{} is damaged: {}; put the whole folder back from a backup, or enrol the device anew",
        store.path_of(name).display(),
        damaged.0
    );
    GuestError::new(Status::Corrupt, text)
}

/// Opens an existing folder.
fn unlock(store: &Store, bytes: &[u8], passphrase: &[u8]) -> Result<(Header, Master), GuestError> {
    let header = Header::decode(bytes).map_err(|error| corrupt(store, HEADER, error))?;
    let master = derive(passphrase, &header)?;
    let mut zero = [0u8; 32];
    master.open(&header.aad(), &header.check, &mut zero).map_err(|_| {
        GuestError::new(Status::Auth, format!("wrong passphrase for {}", store.path_of(HEADER).display()))
    })?;
    Ok((header, master))
}

/// Makes the header of a new folder.
fn create(store: &Store, config: &Config, passphrase: &[u8]) -> Result<(Header, Master), GuestError> {
    for name in [GENERATION, IDENTITY] {
        if store.read(name)?.is_some() {
            return Err(corrupt(store, HEADER, Damaged("it is missing beside the other files".to_owned())));
        }
    }
    let mut header =
        Header { vault_id: [0; 16], cost: config.cost()?, salt: [0; SALT_BYTES], check: [0; SEALED_BYTES] };
    let random = |error| GuestError::new(Status::Io, format!("random numbers: {error}"));
    getrandom::fill(&mut header.vault_id).map_err(random)?;
    getrandom::fill(&mut header.salt).map_err(random)?;
    let master = derive(passphrase, &header)?;
    header.check = master.seal(&header.aad(), &[0; 32]).map_err(random)?;
    store.write(HEADER, &header.encode())?;
    Ok((header, master))
}

fn derive(passphrase: &[u8], header: &Header) -> Result<Master, GuestError> {
    Master::derive(passphrase, &header.salt, header.cost)
        .map_err(|error| GuestError::new(Status::Io, format!("passphrase: {error}")))
}
