//! The plugins of a vault: started as the configuration says, asked as one.
//!
//! A combined vault (`docs/formats/vault-combined.md`) has a key only where every part gives its own. Its parts go from generation to generation
//! in lockstep: all stage, then one after the other commits, in the order of the configuration. Whatever crashes between two commits is finished
//! forward: a part that is one ahead was only allowed to go there when all others had it staged.

use super::VaultError;
use crate::config::{self, Config};
use mayfly_crypto::vault::key_of_all;
use mayfly_plugin_api::{
    Generations, Health, HealthState, HostConfig, Network, PathRule, PluginError, Tier, VaultDescription, VaultPlugin,
    abi, find_artifact,
};
use mayfly_secmem::Secret;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

/// The part of this kind has a chip that states things about itself.
const CHIP: &str = "tpm";

/// What seals on this device: at least one part.
pub(super) struct Plugins {
    parts: Vec<Part>,
}

struct Part {
    kind: String,
    plugin: VaultPlugin,
}

impl Plugins {
    pub(super) fn start(config: &Config, data_dir: &Path) -> Result<Plugins, VaultError> {
        let parts = config.vault.parts();
        let combined = parts.len() > 1;
        if combined {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(data_dir);
            made.map_err(|source| VaultError::Folder { path: data_dir.into(), source })?;
        }
        let start = |(at, part): (usize, &config::VaultPart)| {
            let dir = if combined { data_dir.join(format!("{}-{}", at + 1, part.kind)) } else { data_dir.into() };
            Ok(Part { kind: part.kind.clone(), plugin: VaultPlugin::start(&host_config(part, config, &dir)?)? })
        };
        Ok(Plugins { parts: parts.iter().enumerate().map(start).collect::<Result<_, VaultError>>()? })
    }

    /// Of all parts together: what every one offers; software only if all are; the notes of all.
    pub(super) fn describe(&self) -> Result<VaultDescription, PluginError> {
        let mut all: Option<VaultDescription> = None;
        for part in &self.parts {
            let one = part.plugin.describe()?;
            all = Some(match all {
                None => one,
                Some(before) => VaultDescription {
                    software_only: before.software_only && one.software_only,
                    identity_algs: before.identity_algs,
                    tiers: before.tiers.into_iter().filter(|tier| one.tiers.contains(tier)).collect(),
                    hardware: format!("{} and {}", before.hardware, one.hardware),
                    security_note: format!("{}; {}: {}", before.security_note, part.kind, one.security_note),
                },
            });
        }
        Ok(all.expect("a vault has a part"))
    }

    /// The first part's.
    pub(super) fn identity_public(&self, alg: Option<abi::Alg>, create: bool) -> Result<abi::Identity, PluginError> {
        self.first().identity_public(alg, create)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; 64], PluginError> {
        self.first().identity_sign(message)
    }

    /// The one generation at which all parts are; commits that a crash has left undone are done first.
    pub(super) fn generation(&self) -> Result<Generations, VaultError> {
        let each: Vec<Generations> = self.each(VaultPlugin::generation)?;
        let newest = each.iter().map(|g| g.current).max().expect("a vault has a part");
        let behind = || self.parts.iter().zip(&each).filter(|(_, g)| g.current != newest);
        for (part, at) in behind() {
            if at.staged != Some(newest) {
                let text = format!(
                    "do not belong together: {} is at generation {}, another at {newest}: one was put back from a copy, or \
                     made anew; move the vault's folder away and enrol the device anew",
                    part.kind, at.current
                );
                return Err(VaultError::Parts(text));
            }
        }
        for (part, _) in behind() {
            tracing::warn!(part = part.kind, generation = newest, "a commit that was interrupted is finished");
            part.plugin.commit(newest)?;
        }
        let alike = behind().next().is_none() && each.iter().all(|g| g.staged == each[0].staged);
        Ok(Generations { current: newest, staged: each[0].staged.filter(|_| alike) })
    }

    pub(super) fn stage(&self, next: u64, tier: Tier) -> Result<Secret<32>, VaultError> {
        let keys = self.each(|plugin| plugin.stage(next, tier))?;
        together(keys, next, tier)
    }

    pub(super) fn open_key(&self, generation: u64, tier: Tier) -> Result<Secret<32>, VaultError> {
        let keys = self.each(|plugin| plugin.open_key(generation, tier))?;
        together(keys, generation, tier)
    }

    pub(super) fn commit(&self, next: u64) -> Result<(), VaultError> {
        if self.parts.len() > 1 {
            // None may go ahead where another cannot follow.
            let each: Vec<Generations> = self.each(VaultPlugin::generation)?;
            if !each.iter().all(|g| g.current == next || g.staged == Some(next)) {
                return Err(VaultError::Parts(format!("have not all staged generation {next}; stage it again")));
            }
        }
        self.each(|plugin| plugin.commit(next)).map(drop)
    }

    pub(super) fn discard_staged(&self) -> Result<(), VaultError> {
        self.each(VaultPlugin::discard_staged).map(drop)
    }

    /// The worst of all parts.
    pub(super) fn health(&self) -> Result<Health, PluginError> {
        let each = self.parts.iter().map(|part| part.plugin.health()).collect::<Result<Vec<_>, _>>()?;
        let worst = each.iter().position(|health| health.state != HealthState::Ok).unwrap_or(0);
        Ok(each.into_iter().nth(worst).expect("a vault has a part"))
    }

    /// The part that has a chip; without one, the first.
    pub(super) fn chip(&self) -> &VaultPlugin {
        self.parts.iter().find(|part| part.kind == CHIP).map_or(self.first(), |part| &part.plugin)
    }

    fn first(&self) -> &VaultPlugin {
        &self.parts.first().expect("a vault has a part").plugin
    }

    /// Asks all parts, in their order, until one fails.
    fn each<T>(&self, ask: impl Fn(&VaultPlugin) -> Result<T, PluginError>) -> Result<Vec<T>, VaultError> {
        Ok(self.parts.iter().map(|part| ask(&part.plugin)).collect::<Result<_, _>>()?)
    }
}

fn together(mut keys: Vec<Secret<32>>, generation: u64, tier: Tier) -> Result<Secret<32>, VaultError> {
    if keys.len() == 1 {
        return Ok(keys.remove(0));
    }
    Ok(key_of_all(&keys, generation, tier as u32)?)
}

fn host_config(part: &config::VaultPart, config: &Config, data_dir: &Path) -> Result<HostConfig, VaultError> {
    let plugin = match &part.plugin {
        Some(path) => path.clone(),
        None => find_artifact(&format!("libmayfly_vault_{}.so", part.kind))?,
    };
    let mut host = HostConfig::new(plugin, data_dir)?;
    host.config_text.clone_from(&part.config);
    host.pin = part.pin.as_ref().map(|pin| {
        let mut bytes = [0; 32];
        hex::decode_to_slice(pin, &mut bytes).expect("checked when the configuration was read");
        bytes
    });
    host.env = part.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    if part.network {
        host.network = Network::Allowed;
    }
    if config.danger.plugin_path_unchecked {
        host.path_rule = PathRule::DangerDevelopment;
    }
    Ok(host)
}
