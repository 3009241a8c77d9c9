//! This device's vault: its identity key signs, its vault keys seal shards at rest. What opens when is the key's policy.
//!
//! Each tier has a vault key of its own, so that the `boot` key in memory opens no shard of a key that asks for more.

use crate::config;
use mayfly_crypto::sign::{Alg, PublicKey, SignError};
use mayfly_plugin_api::{
    ArtifactMissing, HostConfig, Network, PathRule, PluginError, Tier, VaultPlugin, abi, find_artifact,
};
use mayfly_protocol::DeviceId;
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::VaultOpening;
use mayfly_secmem::Secret;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long the `window` tier stays open after a need.
pub const WINDOW: Duration = Duration::from_secs(60);

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
}

/// Where the keys that seal shards at rest come from: the vault.
pub trait SealingKeys: Send + Sync {
    /// The committed generation of vault keys.
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
}

/// The vault of this device.
pub struct Vault {
    plugin: VaultPlugin,
    kind: String,
    software_only: bool,
    note: String,
    tiers: Vec<Tier>,
    generation: u64,
    identity: PublicKey,
    boot: Arc<Secret<32>>,
    window: Mutex<Option<(Arc<Secret<32>>, Instant)>>,
    per_release: PerRelease,
}

/// Openings of the `per-release` tier go one at a time; one serves all that waited when it began.
#[derive(Debug, Default)]
struct PerRelease {
    begun: AtomicU64,
    last: Mutex<Weak<Secret<32>>>,
}

impl PerRelease {
    fn key(&self, open: impl FnOnce() -> Result<Secret<32>, PluginError>) -> Result<Arc<Secret<32>>, VaultError> {
        let arrived = self.begun.load(Ordering::Acquire);
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.begun.load(Ordering::Acquire) > arrived
            && let Some(key) = last.upgrade()
        {
            return Ok(key);
        }
        self.begun.fetch_add(1, Ordering::AcqRel);
        let key = Arc::new(open()?);
        *last = Arc::downgrade(&key);
        Ok(key)
    }
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({}, generation {})", self.kind, self.generation)
    }
}

impl Vault {
    /// Starts the plugin and opens the vault; makes the identity key if `create` and there is none; makes the first generation of vault keys.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn start(config: &config::Config, data_dir: &Path, create: bool) -> Result<Vault, VaultError> {
        let plugin = VaultPlugin::start(&host_config(config, data_dir)?)?;
        let description = plugin.describe()?;
        let wanted = if create { preferred(&description.identity_algs) } else { None };
        let identity = plugin.identity_public(wanted, create)?;
        let alg = match identity.alg {
            abi::Alg::Ed25519 => Alg::Ed25519,
            abi::Alg::P256 => Alg::P256,
        };
        let identity = PublicKey::new(alg, &identity.public)?;
        identity.check()?;
        let generation = first_generation(&plugin, &description.tiers)?;
        let boot = Arc::new(plugin.open_key(generation, Tier::Boot)?);
        Ok(Vault {
            kind: config.vault.kind.clone(),
            software_only: description.software_only,
            note: description.security_note,
            tiers: description.tiers,
            plugin,
            generation,
            identity,
            boot,
            window: Mutex::default(),
            per_release: PerRelease::default(),
        })
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
        Ok(self.plugin.identity_sign(message)?)
    }

    /// Kind: `file`, `tpm`, `pkcs11`.
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

    /// The committed generation of vault keys.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The process that hosts the plugin.
    pub fn host_pid(&self) -> Option<u32> {
        self.plugin.host_pid()
    }

    /// Whether shards can be kept that are opened like this.
    pub fn offers(&self, opening: VaultOpening) -> bool {
        self.tiers.contains(&tier(opening))
    }

    fn check(&self, generation: u64, opening: VaultOpening) -> Result<(), VaultError> {
        if generation != self.generation {
            return Err(VaultError::Generation { sealed: generation, now: self.generation });
        }
        if self.offers(opening) { Ok(()) } else { Err(VaultError::Tier(opening)) }
    }

    fn window_key(&self) -> Result<Arc<Secret<32>>, VaultError> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, until)) = &*window
            && *until > Instant::now()
        {
            return Ok(key.clone());
        }
        let key = Arc::new(self.plugin.open_key(self.generation, Tier::Window)?);
        *window = Some((key.clone(), Instant::now() + WINDOW));
        Ok(key)
    }

    /// Wipes the key of a window that is over. Called from time to time.
    pub fn sweep(&self) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.as_ref().is_some_and(|(_, until)| *until <= Instant::now()) {
            *window = None;
        }
    }
}

impl SealingKeys for Vault {
    fn generation(&self) -> u64 {
        self.generation
    }

    fn key(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        self.check(generation, opening)?;
        match opening {
            VaultOpening::Boot => Ok(self.boot.clone()),
            VaultOpening::Window(_) => self.window_key(),
            VaultOpening::PerRelease => {
                self.per_release.key(|| self.plugin.open_key(self.generation, Tier::PerRelease))
            }
        }
    }

    fn key_anew(&self, generation: u64, opening: VaultOpening) -> Result<Arc<Secret<32>>, VaultError> {
        self.check(generation, opening)?;
        match opening {
            VaultOpening::Boot => Ok(self.boot.clone()),
            VaultOpening::Window(_) => Ok(Arc::new(self.plugin.open_key(generation, Tier::Window)?)),
            VaultOpening::PerRelease => Ok(Arc::new(self.plugin.open_key(generation, Tier::PerRelease)?)),
        }
    }
}

fn tier(opening: VaultOpening) -> Tier {
    match opening {
        VaultOpening::Boot => Tier::Boot,
        VaultOpening::Window(_) => Tier::Window,
        VaultOpening::PerRelease => Tier::PerRelease,
    }
}

fn preferred(offered: &[abi::Alg]) -> Option<abi::Alg> {
    offered.first().copied()
}

/// Commits a first generation in a new vault. A generation that was staged and not committed is staged again: keys and all.
fn first_generation(plugin: &VaultPlugin, tiers: &[Tier]) -> Result<u64, VaultError> {
    let generations = plugin.generation()?;
    if generations.current > 0 {
        return Ok(generations.current);
    }
    for tier in tiers {
        plugin.stage(1, *tier)?;
    }
    plugin.commit(1)?;
    Ok(1)
}

fn host_config(config: &config::Config, data_dir: &Path) -> Result<HostConfig, VaultError> {
    let plugin = match &config.vault.plugin {
        Some(path) => path.clone(),
        None => find_artifact(&format!("libmayfly_vault_{}.so", config.vault.kind))?,
    };
    let mut host = HostConfig::new(plugin, data_dir)?;
    host.config_text.clone_from(&config.vault.config);
    host.pin = config.vault.pin.as_ref().map(|pin| {
        let mut bytes = [0; 32];
        hex::decode_to_slice(pin, &mut bytes).expect("checked when the configuration was read");
        bytes
    });
    host.env = config.vault.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    if config.vault.network {
        host.network = Network::Allowed;
    }
    if config.danger.plugin_path_unchecked {
        host.path_rule = PathRule::DangerDevelopment;
    }
    Ok(host)
}
