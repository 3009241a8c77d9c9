//! A private SoftHSM token per test, and vaults in it as the agent runs them.

#![allow(dead_code, reason = "each test file uses its part")]

use mayfly_plugin_api::{HostConfig, PathRule, find_artifact};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where SoftHSM's library is, as `softhsm-token` found it.
pub struct SoftHsm {
    dir: tempfile::TempDir,
    pub module: PathBuf,
}

impl SoftHsm {
    /// Makes a token by the script that people and CI use.
    pub fn new() -> SoftHsm {
        let dir = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../softhsm-setup/softhsm-token");
        let run = Command::new(script).arg(dir.path().join("hsm")).output().expect("softhsm-token runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let section = std::fs::read_to_string(dir.path().join("hsm/vault.toml")).unwrap();
        let module = section.lines().find_map(|line| line.strip_prefix("module = ")).unwrap();
        SoftHsm { module: module.trim_matches('"').into(), dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The user's PIN.
    pub fn pin(&self) -> String {
        std::fs::read_to_string(self.path("hsm/user-pin")).unwrap()
    }

    /// The script's `[vault]` section, as the agent takes it, with more lines for the plugin.
    pub fn config(&self, data: &str, more: &str) -> HostConfig {
        let section = std::fs::read_to_string(self.path("hsm/vault.toml")).unwrap();
        let between = |start: &str, end: &str| section.split(start).nth(1).unwrap().split(end).next().unwrap();
        let mut config = HostConfig::new(find_artifact("libmayfly_vault_pkcs11.so").unwrap(), self.path(data)).unwrap();
        config.config_text = format!("{}{more}", between("config = '''\n", "'''"));
        config.env = vec![("SOFTHSM2_CONF".into(), between("SOFTHSM2_CONF = \"", "\"").into())];
        // build trees and temporary folders are under folders that others may write to
        config.path_rule = PathRule::DangerDevelopment;
        config
    }
}
