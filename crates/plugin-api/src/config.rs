//! Which plugin to run, and under which limits.

use crate::artifact::{ArtifactMissing, find_artifact};
use crate::path::PathRule;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

/// Time limit of a call unless said otherwise. Real TPMs need seconds for what swtpm does in milliseconds
/// (an RSA primary key: 8.7 s), so the default is generous; it bounds a hang, it is no performance goal.
pub const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(30);

/// The two kinds of plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Seals a device's keys.
    Vault,
    /// Stores the ledger under a gateway.
    Backend,
}

impl Kind {
    /// The word in front of the plugin's name in messages.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Vault => "vault",
            Kind::Backend => "ledger",
        }
    }

    pub(crate) fn code(self) -> u32 {
        match self {
            Kind::Vault => crate::abi::KIND_VAULT,
            Kind::Backend => crate::abi::KIND_BACKEND,
        }
    }

    pub(crate) fn from_code(code: u32) -> Option<Kind> {
        match code {
            crate::abi::KIND_VAULT => Some(Kind::Vault),
            crate::abi::KIND_BACKEND => Some(Kind::Backend),
            _ => None,
        }
    }
}

/// Whether the host may open network connections (unix sockets are always allowed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// No: the system call filter refuses sockets other than AF_UNIX. A plugin that declares that it needs the
    /// network is refused with a sentence.
    #[default]
    None,
    /// Yes: for etcd, a network HSM, a software TPM over TCP.
    Allowed,
}

/// All that is needed to start a plugin, and to start it again.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// The program `mayfly-plugin-host`.
    pub host_path: PathBuf,
    /// The plugin's shared library.
    pub plugin_path: PathBuf,
    /// SHA-256 of the library; what is hashed and loaded is a sealed copy of it.
    pub pin: Option<[u8; 32]>,
    /// Configuration text for the plugin (TOML for ours).
    pub config_text: String,
    /// Private folder of the plugin; made with mode 0700 when missing, refused when others can look in.
    pub data_dir: PathBuf,
    /// Limit of each call, starting included; a day at most.
    pub call_timeout: Duration,
    /// Whether the plugin may use the network.
    pub network: Network,
    /// How strictly the paths of host and plugin are judged.
    pub path_rule: PathRule,
    /// Environment of the host, which is otherwise empty but for `CREDENTIALS_DIRECTORY` (systemd.exec(5)), passed on
    /// when set. Names by which the dynamic linker or the allocator are steered are refused.
    pub env: Vec<(OsString, OsString)>,
}

impl HostConfig {
    /// A plugin with the defaults: no pin, empty configuration, [`CALL_TIMEOUT_DEFAULT`], no network, strict paths.
    ///
    /// # Errors
    /// [`ArtifactMissing`] when `mayfly-plugin-host` is neither beside this program nor in `/usr/lib/mayfly`.
    pub fn new(plugin_path: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Result<HostConfig, ArtifactMissing> {
        Ok(HostConfig {
            host_path: find_artifact("mayfly-plugin-host")?,
            plugin_path: plugin_path.into(),
            pin: None,
            config_text: String::new(),
            data_dir: data_dir.into(),
            call_timeout: CALL_TIMEOUT_DEFAULT,
            network: Network::None,
            path_rule: PathRule::Strict,
            env: Vec::new(),
        })
    }

    /// The plugin's name as far as its file tells: `libmayfly_vault_file.so` is `file`.
    pub(crate) fn name_guess(&self) -> String {
        let stem = self.plugin_path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        ["libmayfly_vault_", "libmayfly_ledger_", "lib"]
            .iter()
            .find_map(|prefix| stem.strip_prefix(prefix))
            .unwrap_or(&stem)
            .to_owned()
    }
}
