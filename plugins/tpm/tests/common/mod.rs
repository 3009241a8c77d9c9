//! A private software TPM per test, and plugins on it. What is started here is ended here, by its own handle.
#![allow(dead_code, clippy::unwrap_used)]

pub mod proxy;

use mayfly_plugin_api::{HostConfig, PathRule, VaultPlugin, find_artifact};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running swtpm with a state of its own.
pub struct Swtpm {
    pub dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Swtpm {
    /// A new TPM, as from the factory, without certificates.
    pub fn start() -> Swtpm {
        let dir = tempfile::Builder::new().prefix("mf").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let mut swtpm = Swtpm { dir, child: None };
        swtpm.on();
        swtpm
    }

    /// A TPM whose folder was prepared before.
    pub fn prepared(prepare: impl FnOnce(&Path)) -> Swtpm {
        let dir = tempfile::Builder::new().prefix("mf").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        prepare(dir.path());
        let mut swtpm = Swtpm { dir, child: None };
        swtpm.on();
        swtpm
    }

    /// Power on.
    pub fn on(&mut self) {
        let socket = self.socket();
        for path in [socket.clone(), control_of(&socket)] {
            let _ = std::fs::remove_file(path);
        }
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
        command.arg("--tpmstate").arg(format!("dir={}", self.state().display()));
        command.arg("--server").arg(format!("type=unixio,path={}", socket.display()));
        command.arg("--ctrl").arg(format!("type=unixio,path={}", control_of(&socket).display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        self.child = Some(command.spawn().expect("swtpm is installed (apt-get install swtpm)"));
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < PATIENCE, "swtpm does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Power off, without a word.
    pub fn off(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Off and on.
    pub fn reset(&mut self) {
        self.off();
        self.on();
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("tpm")
    }

    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.socket().display())
    }

    /// A copy of the whole state, to be put back by [`Swtpm::put_back`].
    pub fn copy_state(&self, name: &str) {
        copy_folder(&self.state(), &self.dir.path().join(name));
    }

    /// Power off, the state of a copy, power on.
    pub fn put_back(&mut self, name: &str) {
        self.off();
        std::fs::remove_dir_all(self.state()).unwrap();
        copy_folder(&self.dir.path().join(name), &self.state());
        self.on();
    }

    /// Runs one of tpm2-tools on this TPM; true when it ends well.
    pub fn tool(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new("tpm2");
        command.arg(name).args(arguments).env("TPM2TOOLS_TCTI", self.tcti()).current_dir(self.dir.path());
        let output = command.output().expect("tpm2-tools are installed");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        match output.status.success() {
            true => Ok(text),
            false => Err(format!("{text}{}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// Number of transient objects and loaded sessions in the chip.
    pub fn occupied(&self) -> usize {
        ["handles-transient", "handles-loaded-session"]
            .iter()
            .map(|kind| self.tool("getcap", &[kind]).unwrap().lines().count())
            .sum()
    }

    /// A plugin's configuration with a data folder under this TPM's.
    pub fn config(&self, data: &str) -> HostConfig {
        host_config(&self.tcti(), &self.dir.path().join(data))
    }

    /// A plugin on this TPM.
    pub fn plugin(&self, data: &str) -> VaultPlugin {
        VaultPlugin::start(&self.config(data)).unwrap()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.off();
    }
}

/// The plugin by its file, with a TCTI.
pub fn host_config(tcti: &str, data: &Path) -> HostConfig {
    let plugin = find_artifact("libmayfly_vault_tpm.so").unwrap();
    let mut config = HostConfig::new(plugin, data).unwrap();
    config.config_text = format!("tcti = '{tcti}'\n");
    // build trees and temporary folders are under folders that others may write to
    config.path_rule = PathRule::DangerDevelopment;
    config
}

pub fn control_of(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".ctrl");
    path.into()
}

pub fn copy_folder(from: &Path, to: &Path) {
    use std::os::unix::fs::DirBuilderExt;
    let _ = std::fs::remove_dir_all(to);
    std::fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Calls until the host is back: the first calls after a kill may be told of it.
pub fn settled<T>(
    mut call: impl FnMut() -> Result<T, mayfly_plugin_api::PluginError>,
) -> Result<T, mayfly_plugin_api::PluginError> {
    use mayfly_plugin_api::PluginError;
    let started = Instant::now();
    loop {
        match call() {
            Err(PluginError::Ended { .. }) if started.elapsed() < PATIENCE => {}
            Err(PluginError::Restarting { wait, .. }) if started.elapsed() < PATIENCE => std::thread::sleep(wait),
            other => return other,
        }
    }
}
