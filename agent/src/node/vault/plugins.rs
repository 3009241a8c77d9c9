//! The plugins of a vault: started as the configuration says, asked as one.

use super::VaultError;
use crate::config::{self, Config};
use mayfly_plugin_api::{
    Generations, Health, HostConfig, Network, PathRule, PluginError, Tier, VaultDescription, VaultPlugin, abi,
    find_artifact,
};
use mayfly_secmem::Secret;
use std::path::Path;

/// What seals on this device.
pub(super) struct Plugins {
    plugin: VaultPlugin,
}

impl Plugins {
    pub(super) fn start(config: &Config, data_dir: &Path) -> Result<Plugins, VaultError> {
        Ok(Plugins { plugin: VaultPlugin::start(&host_config(&config.vault, config, data_dir)?)? })
    }

    pub(super) fn describe(&self) -> Result<VaultDescription, PluginError> {
        self.plugin.describe()
    }

    pub(super) fn identity_public(&self, alg: Option<abi::Alg>, create: bool) -> Result<abi::Identity, PluginError> {
        self.plugin.identity_public(alg, create)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<[u8; 64], PluginError> {
        self.plugin.identity_sign(message)
    }

    pub(super) fn generation(&self) -> Result<Generations, VaultError> {
        Ok(self.plugin.generation()?)
    }

    pub(super) fn stage(&self, next: u64, tier: Tier) -> Result<Secret<32>, VaultError> {
        Ok(self.plugin.stage(next, tier)?)
    }

    pub(super) fn commit(&self, next: u64) -> Result<(), VaultError> {
        Ok(self.plugin.commit(next)?)
    }

    pub(super) fn open_key(&self, generation: u64, tier: Tier) -> Result<Secret<32>, VaultError> {
        Ok(self.plugin.open_key(generation, tier)?)
    }

    pub(super) fn health(&self) -> Result<Health, PluginError> {
        self.plugin.health()
    }

    /// The plugin that has a chip; without one, the only one.
    pub(super) fn chip(&self) -> &VaultPlugin {
        &self.plugin
    }

    pub(super) fn host_pid(&self) -> Option<u32> {
        self.plugin.host_pid()
    }
}

fn host_config(vault: &config::Vault, config: &Config, data_dir: &Path) -> Result<HostConfig, VaultError> {
    let plugin = match &vault.plugin {
        Some(path) => path.clone(),
        None => find_artifact(&format!("libmayfly_vault_{}.so", vault.kind))?,
    };
    let mut host = HostConfig::new(plugin, data_dir)?;
    host.config_text.clone_from(&vault.config);
    host.pin = vault.pin.as_ref().map(|pin| {
        let mut bytes = [0; 32];
        hex::decode_to_slice(pin, &mut bytes).expect("checked when the configuration was read");
        bytes
    });
    host.env = vault.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    if vault.network {
        host.network = Network::Allowed;
    }
    if config.danger.plugin_path_unchecked {
        host.path_rule = PathRule::DangerDevelopment;
    }
    Ok(host)
}
