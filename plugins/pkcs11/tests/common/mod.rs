//! A private SoftHSM token per test, and vaults in it as the agent runs them.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping")]

use mayfly_plugin_api::{HostConfig, PathRule, PluginError, VaultPlugin, find_artifact};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A token made by `softhsm-setup/softhsm-token`, the script that people and CI use.
pub struct SoftHsm {
    dir: tempfile::TempDir,
    /// Configuration text for the plugin.
    pub text: String,
    /// SOFTHSM2_CONF of this token.
    pub conf: OsString,
}

impl SoftHsm {
    /// In memory where that is to be had: these tests synchronise files thousands of times.
    pub fn new() -> SoftHsm {
        SoftHsm::within(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap())
    }

    /// On the disk of the temporary folder.
    pub fn on_disk() -> SoftHsm {
        SoftHsm::within(tempfile::tempdir().unwrap())
    }

    fn within(dir: tempfile::TempDir) -> SoftHsm {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../softhsm-setup/softhsm-token");
        let run = Command::new(script).arg(dir.path().join("hsm")).output().expect("softhsm-token runs");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        let section = std::fs::read_to_string(dir.path().join("hsm/vault.toml")).unwrap();
        let between = |start: &str, end: &str| section.split(start).nth(1).unwrap().split(end).next().unwrap();
        let text = between("config = '''\n", "'''").to_owned();
        let conf = between("SOFTHSM2_CONF = \"", "\"").into();
        SoftHsm { dir, text, conf }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A vault in this token, with more lines for the plugin.
    pub fn config(&self, data: &str, more: &str) -> HostConfig {
        let mut config = HostConfig::new(find_artifact("libmayfly_vault_pkcs11.so").unwrap(), self.path(data)).unwrap();
        config.config_text = format!("{}{more}", self.text);
        config.env = vec![("SOFTHSM2_CONF".into(), self.conf.clone())];
        // build trees and temporary folders are under folders that others may write to
        config.path_rule = PathRule::DangerDevelopment;
        config
    }

    pub fn start(&self, data: &str) -> Result<VaultPlugin, PluginError> {
        VaultPlugin::start(&self.config(data, ""))
    }

    /// Puts another PIN into the file that the vault reads; a new file, as an editor makes it.
    pub fn write_pin(&self, pin: &str) {
        let (path, new) = (self.path("hsm/user-pin"), self.path("hsm/user-pin.new"));
        std::fs::write(&new, pin).unwrap();
        std::fs::set_permissions(&new, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    pub fn pin(&self) -> String {
        std::fs::read_to_string(self.path("hsm/user-pin")).unwrap()
    }
}

/// The same, with `examples/odd_token.rs` in front of it.
pub struct OddToken {
    pub softhsm: SoftHsm,
    library: PathBuf,
}

impl OddToken {
    pub fn new() -> OddToken {
        let program = std::env::current_exe().unwrap();
        let library = program.ancestors().nth(2).unwrap().join("examples/libodd_token.so");
        assert!(library.is_file(), "{} is built with the tests", library.display());
        OddToken { softhsm: SoftHsm::new(), library }
    }

    pub fn config(&self, data: &str, more: &str) -> HostConfig {
        let mut config = self.softhsm.config(data, more);
        let module = |line: &str| line.strip_prefix("module = ").map(|path| path.trim_matches('"').to_owned());
        let behind = config.config_text.lines().find_map(module).unwrap();
        config.config_text = config.config_text.replace(&behind, self.library.to_str().unwrap());
        config.config_text.push_str("\ndanger_module_path_unchecked = true\n");
        config.env.push(("ODD_TOKEN_MODULE".into(), behind.into()));
        config.env.push(("ODD_TOKEN_PLAN".into(), self.softhsm.path("plan").into()));
        config
    }

    pub fn start(&self, data: &str) -> Result<VaultPlugin, PluginError> {
        VaultPlugin::start(&self.config(data, ""))
    }

    /// How the token is odd from now on.
    pub fn plan(&self, lines: &str) {
        let (path, new) = (self.softhsm.path("plan"), self.softhsm.path("plan.new"));
        std::fs::write(&new, lines).unwrap();
        std::fs::rename(new, path).unwrap();
    }

    /// How often a function was called.
    pub fn calls(&self, name: &str) -> usize {
        let log = std::fs::read_to_string(self.softhsm.path("plan.log")).unwrap_or_default();
        log.lines().filter(|line| *line == name).count()
    }
}

/// Calls until the host is back: the first calls after a crash may be told of it.
pub fn settled<T>(mut call: impl FnMut() -> Result<T, PluginError>) -> T {
    let started = std::time::Instant::now();
    loop {
        match call() {
            Ok(value) => return value,
            Err(PluginError::Restarting { wait, .. }) if started.elapsed().as_secs() < 30 => std::thread::sleep(wait),
            Err(PluginError::Ended { .. }) if started.elapsed().as_secs() < 30 => {}
            Err(error) => panic!("{error}"),
        }
    }
}
