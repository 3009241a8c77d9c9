//! This device's vault: its identity key signs, its vault keys seal shards at rest. What opens when is the key's policy.
//!
//! | Module | Is |
//! |---|---|
//! | `plugins` | the plugins that seal, asked as one |
//! | `tiers` | which vault keys are in memory, and for how long |
//! | `figures` | what openings cost here, and which rates follow |
//! | `bench` | the same, measured on purpose |
//!
//! Each tier has a vault key of its own, so that the `boot` key in memory opens no shard of a key that asks for more.

mod bench;
mod figures;
mod plugins;
mod tiers;

pub use bench::{Bench, TierBench};
pub use figures::{Figures, TierFigures};

use crate::config;
use figures::Openings;
use mayfly_crypto::sign::{Alg, PublicKey, SignError};
use mayfly_crypto::vault::window_key;
use mayfly_plugin_api::{ArtifactMissing, Health, HealthState, PluginError, Status, Tier, abi};
use mayfly_protocol::DeviceId;
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::VaultOpening;
use mayfly_secmem::Secret;
use plugins::Plugins;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tiers::Tiers;

/// What an opening is thought to take before one was measured.
const OPENING_GUESS: Duration = Duration::from_millis(20);

/// Why the vault does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The plugin, or what is under it.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// The plugin's file is not there.
    #[error(transparent)]
    Missing(#[from] ArtifactMissing),
    /// The identity key is of no use.
    #[error("vault's identity key: {0}")]
    Identity(#[from] SignError),
    /// The vault has no key for this tier.
    #[error("the vault does not offer opening '{0:?}'")]
    Tier(VaultOpening),
    /// The shard was sealed under another generation.
    #[error("shard is sealed under generation {sealed} of the vault, it is at {now}")]
    Generation {
        /// Of the shard.
        sealed: u64,
        /// Of the vault.
        now: u64,
    },
    /// It was not opened when it should have been.
    #[error("the vault is closed: {0}")]
    Closed(VaultState),
    /// The vaults of a combined one do not belong together.
    #[error("the combined vault's parts {0}")]
    Parts(String),
    /// No secret memory is left for a key.
    #[error("no secret memory is left for a vault key")]
    Memory(#[from] mayfly_secmem::Exhausted),
    /// The folder of a combined vault's parts.
    #[error("cannot make the folder {path} for the parts of the vault")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl VaultError {
    /// The status by which the plugin refused, if it was the plugin.
    pub fn status(&self) -> Option<Status> {
        match self {
            VaultError::Plugin(error) => error.status(),
            VaultError::Closed(VaultState::PolicyPending(_)) => Some(Status::PolicyPending),
            VaultError::Parts(_) => Some(Status::Corrupt),
            _ => None,
        }
    }

    /// Whether the vault may have moved on to another generation meanwhile: then what was asked for may be asked for anew.
    pub fn is_of_generation(&self) -> bool {
        matches!(self, VaultError::Generation { .. }) || self.status() == Some(Status::NoGeneration)
    }
}

/// Whether shards can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VaultState {
    /// Yes.
    Open,
    /// The machine's registers are not approved; the plugin's words. An approval opens it, see [`Vault::try_open`].
    PolicyPending(String),
    /// It could not be opened after a change of generation; why. It is tried again from time to time.
    Closed(String),
    /// It has no keys of the generation at which it is: its folder was put back from a copy, or somebody else moved its counter. The plugin's
    /// words. Nothing is staged until the ledger has said which, see [`Vault::forsake`].
    Ahead(String),
}

impl VaultState {
    fn after(opening: Result<(), VaultError>) -> VaultState {
        match opening {
            Ok(()) => VaultState::Open,
            Err(error) if error.status() == Some(Status::PolicyPending) => VaultState::PolicyPending(error.to_string()),
            Err(error) if error.status() == Some(Status::NoGeneration) => VaultState::Ahead(error.to_string()),
            Err(error) => VaultState::Closed(error.to_string()),
        }
    }
}

impl std::fmt::Display for VaultState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            VaultState::Open => f.write_str("open"),
            VaultState::PolicyPending(why) | VaultState::Closed(why) | VaultState::Ahead(why) => f.write_str(why),
        }
    }
}

/// Where the keys that seal shards at rest come from: the vault.
pub trait SealingKeys: Send + Sync {
    /// The committed generation of vault keys, as far as it is known: see [`SealingKeys::settle`].
    fn generation(&self) -> u64;

    /// The vault key of this generation for this kind of opening. Let go of it as soon as the shard is open.
    ///
    /// # Errors
    /// [`VaultError`].
    fn key(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError>;

    /// The same key by an opening of its own, where there is more than one in the life of the agent: what a later release will get.
    ///
    /// # Errors
    /// [`VaultError`].
    fn key_anew(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError>;

    /// Makes the keys of the next generation, of every tier. They open nothing before [`SealingKeys::commit`]; those staged before are void.
    ///
    /// # Errors
    /// [`VaultError`].
    fn stage(&self) -> Result<StagedKeys, VaultError>;

    /// Makes the staged generation the only one that ever opens again, and wipes what is in memory of the one before.
    ///
    /// # Errors
    /// [`VaultError`]; whether it happened is then not known before [`SealingKeys::settle`] answers.
    fn commit(&self, staged: &StagedKeys) -> Result<(), VaultError>;

    /// Asks the vault itself at which generation it is, and goes on from there.
    ///
    /// # Errors
    /// [`VaultError`]: it does not answer.
    fn settle(&self) -> Result<u64, VaultError>;

    /// Destroys what is staged, if anything.
    ///
    /// # Errors
    /// [`VaultError`].
    fn discard_staged(&self) -> Result<(), VaultError>;
}

/// Keys of a generation that is not committed.
pub struct StagedKeys {
    generation: u64,
    keys: Vec<(Tier, Arc<Secret<32>>)>,
}

impl std::fmt::Debug for StagedKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StagedKeys(generation {})", self.generation)
    }
}

impl StagedKeys {
    /// These keys of `generation`.
    pub fn new(generation: u64, keys: Vec<(Tier, Arc<Secret<32>>)>) -> StagedKeys {
        StagedKeys { generation, keys }
    }

    /// The generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What will open shards of this opening.
    ///
    /// # Errors
    /// [`VaultError::Tier`], [`VaultError::Memory`].
    pub fn key(&self, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        let key = self.tier(tier(opening)).ok_or(VaultError::Tier(opening))?;
        match opening {
            VaultOpening::Window(seconds) => Ok(Arc::new(window_key(&key, seconds)?)),
            VaultOpening::Boot | VaultOpening::PerRelease => Ok(key),
        }
    }

    fn tier(&self, tier: Tier) -> Option<Arc<Secret<32>>> {
        self.keys.iter().find(|(of, _)| *of == tier).map(|(_, key)| key.clone())
    }
}

/// The vault of this device.
pub struct Vault {
    plugins: Plugins,
    kind: String,
    software_only: bool,
    note: String,
    offered: Vec<Tier>,
    identity: PublicKey,
    generation: AtomicU64,
    tiers: Tiers,
    openings: Openings,
    /// A question about its health waits for an answer.
    health_asked: AtomicBool,
    /// Held while it is being opened.
    state: Mutex<VaultState>,
    /// The generation whose keys are given up; 0: none.
    forsaken: AtomicU64,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({}, generation {})", self.kind, self.generation())
    }
}

impl Vault {
    /// Starts the plugin and opens the vault; makes the identity key if `create` and there is none; makes the first generation of vault keys.
    /// Registers that nobody has approved are no error: [`Vault::state`] tells them.
    ///
    /// # Errors
    /// [`VaultError`], with the plugin's status: vault lost, wrong PIN, put back from a copy.
    pub fn start(config: &config::Config, data_dir: &Path, create: bool) -> Result<Vault, VaultError> {
        let plugins = Plugins::start(config, data_dir)?;
        let description = plugins.describe()?;
        let wanted = if create { description.identity_algs.first().copied() } else { None };
        let identity = plugins.identity_public(wanted, create)?;
        let alg = match identity.alg {
            abi::Alg::Ed25519 => Alg::Ed25519,
            abi::Alg::P256 => Alg::P256,
        };
        let identity = PublicKey::new(alg, &identity.public)?;
        identity.check()?;
        let vault = Vault {
            plugins,
            kind: config.vault.kinds(),
            software_only: description.software_only,
            note: description.security_note,
            offered: description.tiers,
            identity,
            generation: AtomicU64::new(0),
            tiers: Tiers::default(),
            openings: Openings::default(),
            health_asked: AtomicBool::new(false),
            state: Mutex::new(VaultState::Closed("it was not opened yet".into())),
            forsaken: AtomicU64::new(0),
        };
        let mut state = vault.lock_state();
        *state = match vault.open() {
            Err(error) if matches!(error.status(), Some(Status::PolicyPending | Status::NoGeneration)) => {
                VaultState::after(Err(error))
            }
            outcome => outcome.map(|()| VaultState::Open)?,
        };
        drop(state);
        Ok(vault)
    }

    /// Opens what is not open: after an approval was installed, and from time to time. Open already is open.
    pub fn try_open(&self) -> VaultState {
        let mut state = self.lock_state();
        if *state != VaultState::Open {
            *state = VaultState::after(self.open());
        }
        state.clone()
    }

    /// Whether it has no keys of the generation at which it is.
    pub fn is_ahead(&self) -> bool {
        matches!(*self.lock_state(), VaultState::Ahead(_))
    }

    /// Gives up the keys of the generation at which the vault is: somebody else moved its counter, so no copy of its folder has them. From now
    /// on the next generation may be staged. Only who has the ledger's word for it may say so.
    pub fn forsake(&self) {
        self.forsaken.store(self.generation(), Ordering::Release);
    }

    /// Whether the next generation has to be committed because no keys of the present one are left.
    pub fn is_forsaken(&self) -> bool {
        self.is_ahead() && self.forsaken.load(Ordering::Acquire) == self.generation()
    }

    /// Finds the committed generation, makes the first one if there is none, and opens its boot tier.
    fn open(&self) -> Result<(), VaultError> {
        match self.plugins.generation()?.current {
            0 => self.open_at(self.first_generation()?),
            generation => self.open_at(generation),
        }
    }

    /// The vault is at `generation`, whether its boot tier opens or not.
    fn open_at(&self, generation: u64) -> Result<(), VaultError> {
        self.tiers.enter(generation, None);
        self.generation.store(generation, Ordering::Release);
        let boot = self.open_tier(generation, Tier::Boot)?;
        self.tiers.enter(generation, Some(Arc::new(boot)));
        Ok(())
    }

    /// Opens a tier, and takes the time.
    fn open_tier(&self, generation: u64, tier: Tier) -> Result<Secret<32>, VaultError> {
        let began = Instant::now();
        let key = self.plugins.open_key(generation, tier)?;
        self.openings.took(tier, began.elapsed());
        Ok(key)
    }

    /// Commits a first generation in a new vault. One that was staged and not committed is staged again: keys and all.
    fn first_generation(&self) -> Result<u64, VaultError> {
        for tier in &self.offered {
            self.plugins.stage(1, *tier)?;
        }
        self.plugins.commit(1)?;
        Ok(1)
    }

    fn lock_state(&self) -> MutexGuard<'_, VaultState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether shards can be opened.
    pub fn state(&self) -> VaultState {
        self.lock_state().clone()
    }

    /// The identity key.
    pub fn identity(&self) -> &PublicKey {
        &self.identity
    }

    /// The device that this vault makes.
    pub fn device(&self) -> DeviceId {
        DeviceId(public_key_id(&self.identity))
    }

    /// Signs with the identity key.
    ///
    /// # Errors
    /// [`VaultError::Plugin`].
    pub fn sign(&self, message: &[u8]) -> Result<[u8; 64], VaultError> {
        Ok(self.plugins.sign(message)?)
    }

    /// Kind: `file`, `tpm`, `pkcs11`; of a combined vault all of them, `tpm+pkcs11`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Whether nothing but software protects its keys.
    pub fn software_only(&self) -> bool {
        self.software_only
    }

    /// What it does not protect against.
    pub fn note(&self) -> &str {
        &self.note
    }

    /// The committed generation of vault keys; 0: there is none yet, since an approval is missing.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// State of what is under the plugin.
    ///
    /// # Errors
    /// [`VaultError::Plugin`].
    pub fn health(&self) -> Result<Health, VaultError> {
        Ok(self.plugins.health()?)
    }

    /// Whether it is well, as far as it says within `patience`: one that hangs holds up nobody who only wants to know, and one question at a
    /// time waits for it.
    ///
    /// # Errors
    /// A sentence: what is wrong.
    pub fn health_within(self: &Arc<Self>, patience: Duration) -> Result<(), String> {
        let silent = || Err("it does not answer".to_owned());
        if self.health_asked.swap(true, Ordering::AcqRel) {
            return silent();
        }
        let (vault, (answer, answered)) = (self.clone(), sync_channel(1));
        let ask = move || {
            let health = match vault.health() {
                Ok(health) if health.state == HealthState::Ok => Ok(()),
                Ok(health) => Err(health.detail),
                Err(error) => Err(error.to_string()),
            };
            vault.health_asked.store(false, Ordering::Release);
            let _ = answer.send(health); // whoever asked may have lost patience
        };
        if let Err(error) = std::thread::Builder::new().name("vault-health".into()).spawn(ask) {
            self.health_asked.store(false, Ordering::Release);
            return Err(error.to_string());
        }
        answered.recv_timeout(patience).unwrap_or_else(|_| silent())
    }

    /// Management of the plugin's own, described on its page; of a combined vault, of its TPM.
    ///
    /// # Errors
    /// [`VaultError::Plugin`]; [`Status::Unsupported`] where there is no such call.
    pub fn control(&self, name: &str, input: &[u8]) -> Result<Vec<u8>, VaultError> {
        Ok(self.plugins.chip().control(name, input)?)
    }

    /// A step of attestation (`docs/formats/attestation.md`); of a combined vault, by its TPM.
    ///
    /// # Errors
    /// [`VaultError::Plugin`]; [`Status::Unsupported`] where there is no chip.
    pub fn attest(&self, step: u32, input: &[u8]) -> Result<Vec<u8>, VaultError> {
        Ok(self.plugins.chip().attest(step, input)?)
    }

    /// The chip's statement about its counter, bound to `context` (message `MTS1`); none where there is no chip, or where it has no
    /// attestation key, since nobody has challenged it.
    ///
    /// # Errors
    /// [`VaultError::Plugin`].
    pub fn certified_counter(&self, context: &[u8; 32]) -> Result<Option<Vec<u8>>, VaultError> {
        match self.attest(mayfly_evidence::exchange::STEP_COUNTER, context) {
            Ok(signed) => Ok(Some(signed)),
            Err(error) if matches!(error.status(), Some(Status::Unsupported | Status::Invalid)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    #[cfg(test)]
    pub(super) fn danger_kill_for_test(&self) {
        self.plugins.chip().danger_kill_host();
    }

    /// Whether the key of this opening is in memory, or never will be: no wait for the chip either way.
    pub fn has_at_hand(&self, opening: VaultOpening) -> bool {
        match opening {
            VaultOpening::Boot => true,
            VaultOpening::Window(seconds) => self.tiers.has_window(self.generation(), seconds),
            VaultOpening::PerRelease => false,
        }
    }

    /// How long an opening usually takes here; a guess before the first.
    pub fn usual_opening(&self, opening: VaultOpening) -> Duration {
        self.openings.median(tier(opening)).unwrap_or(OPENING_GUESS)
    }

    /// Whether shards can be kept that are opened like this.
    pub fn offers(&self, opening: VaultOpening) -> bool {
        self.offered.contains(&tier(opening))
    }

    fn check(&self, generation: u64, opening: VaultOpening) -> Result<(), VaultError> {
        let now = self.generation();
        if now == 0 {
            return Err(VaultError::Closed(self.state()));
        }
        if generation != now {
            return Err(VaultError::Generation { sealed: generation, now });
        }
        if !self.offers(opening) {
            return Err(VaultError::Tier(opening));
        }
        if self.tiers.boot(generation).is_none() && self.is_ahead() {
            return Err(VaultError::Closed(self.state()));
        }
        Ok(())
    }

    fn boot_key(&self, generation: u64) -> Result<Arc<Secret<32>>, VaultError> {
        self.tiers.boot(generation).ok_or_else(|| VaultError::Closed(self.state()))
    }

    /// Wipes the keys of windows that are over. How long the next one lasts.
    pub fn sweep(&self) -> Option<Duration> {
        self.tiers.sweep()
    }

    /// How many windows are open.
    pub fn windows(&self) -> usize {
        self.tiers.windows()
    }

    /// What openings have cost so far.
    pub fn figures(&self) -> Figures {
        self.openings.figures()
    }

    /// Whether shards of a key with this opening can be released `rate` times a second; if not, a sentence that says what can.
    ///
    /// # Errors
    /// [`VaultError`]: the cost of an opening is not known yet, and the vault does not open.
    pub fn serves(&self, opening: VaultOpening, rate: u32) -> Result<Result<(), String>, VaultError> {
        let tier = tier(opening);
        if rate == 0 || tier == Tier::Boot {
            return Ok(Ok(()));
        }
        let median = match self.openings.median(tier) {
            Some(median) => median,
            None => {
                let began = Instant::now();
                self.open_tier(self.generation(), tier)?;
                self.openings.median(tier).unwrap_or_else(|| began.elapsed())
            }
        };
        Ok(figures::serves(median, opening, rate))
    }
}

impl SealingKeys for Vault {
    fn generation(&self) -> u64 {
        Vault::generation(self)
    }

    fn key(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        self.check(generation, opening)?;
        match opening {
            VaultOpening::Boot => self.boot_key(generation),
            VaultOpening::Window(seconds) => {
                self.tiers.window(generation, seconds, || self.open_tier(generation, Tier::Window))
            }
            VaultOpening::PerRelease => {
                self.tiers.per_release(generation, || self.open_tier(generation, Tier::PerRelease))
            }
        }
    }

    fn key_anew(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        self.check(generation, opening)?;
        match opening {
            VaultOpening::Boot => self.boot_key(generation),
            VaultOpening::Window(seconds) => {
                Ok(Arc::new(window_key(&self.open_tier(generation, Tier::Window)?, seconds)?))
            }
            VaultOpening::PerRelease => Ok(Arc::new(self.open_tier(generation, Tier::PerRelease)?)),
        }
    }

    fn stage(&self) -> Result<StagedKeys, VaultError> {
        if self.is_ahead() && !self.is_forsaken() {
            return Err(VaultError::Closed(self.state()));
        }
        let next = self.generation() + 1;
        let staged = |tier: &Tier| Ok((*tier, Arc::new(self.plugins.stage(next, *tier)?)));
        Ok(StagedKeys::new(next, self.offered.iter().map(staged).collect::<Result<_, VaultError>>()?))
    }

    fn commit(&self, staged: &StagedKeys) -> Result<(), VaultError> {
        self.plugins.commit(staged.generation)?;
        let mut state = self.lock_state();
        self.tiers.enter(staged.generation, staged.tier(Tier::Boot));
        self.generation.store(staged.generation, Ordering::Release);
        *state = VaultState::Open;
        Ok(())
    }

    fn settle(&self) -> Result<u64, VaultError> {
        let now = self.plugins.generation()?.current;
        if now != self.generation() {
            // By this very answer: asked once more the vault might be silent, and what it has committed would count as not committed.
            let mut state = self.lock_state();
            *state = VaultState::after(self.open_at(now));
            if *state != VaultState::Open {
                let why = &*state;
                tracing::warn!(%why, "the vault has moved to generation {now} and is not open");
            }
        }
        Ok(now)
    }

    fn discard_staged(&self) -> Result<(), VaultError> {
        self.plugins.discard_staged()
    }
}

fn tier(opening: VaultOpening) -> Tier {
    match opening {
        VaultOpening::Boot => Tier::Boot,
        VaultOpening::Window(_) => Tier::Window,
        VaultOpening::PerRelease => Tier::PerRelease,
    }
}

/// Removes what the vault keeps outside of its folder; nothing of it opens again.
///
/// # Errors
/// [`VaultError`].
pub fn forget(config: &config::Config, data_dir: &Path) -> Result<(), VaultError> {
    Plugins::start(config, data_dir)?.chip().control("danger-forget", &[])?;
    Ok(())
}
