//! The agent's configuration: one TOML file, unknown keys are errors. Each option, its default and its risk is told here.
//!
//! It must never hold a secret: PINs and passphrases of vaults come from where the vault's own page says (credentials, files).

use crate::app::Settings;
use crate::app::settings::{Connections, KeyDefaults};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest configuration file in bytes.
pub const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Where the agent listens for applications unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/mayfly/agent.sock";
/// Where the agent keeps its data unless told otherwise.
pub const DATA_DIR_DEFAULT: &str = "/var/lib/mayfly";
/// Where the network's description lies unless told otherwise.
pub const NETWORK_DEFAULT: &str = "/etc/mayfly/network.toml";
/// Uses per second for which one assembler gets shards, unless the operator says otherwise: above what one device does, so that only a device
/// that takes all keys at once notices.
pub const RELEASES_PER_SECOND_MAX: u32 = 20_000;
/// Longest time that holders keep an offered shard before its key must be on the ledger.
pub const ACCEPT_DEADLINE: Duration = Duration::from_secs(30);

/// Kind of a vault that is made of several.
pub const ALL_OF: &str = "all-of";
/// How many parts it may have.
pub const VAULT_PARTS: std::ops::RangeInclusive<usize> = 2..=4;
/// How long erased shards wait for others unless the operator says otherwise, seconds.
pub const ERASE_BATCH_SECONDS: u32 = 600;
/// Longest such wait: a day.
pub const ERASE_BATCH_SECONDS_MAX: u32 = 86_400;

/// Stands for all members in a list of devices.
pub const ALL_DEVICES: &str = "*";

/// Everything that an operator may set.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of this device on the ledger, unique in the network.
    pub device_name: String,
    /// Folder of this agent alone: replica, sealed shards, grants. Mode 0700.
    #[serde(default = "data_dir_default")]
    pub data_dir: PathBuf,
    /// Description of the network, as `mayfly init` made it.
    #[serde(default = "network_default")]
    pub network: PathBuf,
    /// Unix socket for applications and `mayfly`.
    #[serde(default = "socket_default")]
    pub socket: PathBuf,
    /// Other agents.
    #[serde(default)]
    pub peers: Peers,
    /// What seals this device's keys.
    pub vault: Vault,
    /// Whose chips this device believes, as a witness.
    #[serde(default)]
    pub attestation: Attestation,
    /// What keys get when their maker does not say it (C_GenerateKey cannot).
    #[serde(default)]
    pub new_keys: NewKeys,
    /// Applications on this host.
    #[serde(default)]
    pub applications: Connections,
    /// Logs.
    #[serde(default)]
    pub log: Log,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// What weakens a guarantee: for development and tests.
    #[serde(default)]
    pub danger: Danger,
}

/// How other agents reach this one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Peers {
    /// Address to listen on. Port 0: any free one.
    pub listen: SocketAddr,
    /// `host:port` that others are told; without it, the address that was bound.
    pub advertise: Option<String>,
}

impl Default for Peers {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 7411)), advertise: None }
    }
}

/// The vault and its plugin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    /// `file`, `tpm`, `pkcs11`: chooses `libmayfly_vault_KIND.so`; or [`ALL_OF`]: the parts in `all` together.
    pub kind: String,
    /// The plugin's file; without it, the one beside the agent's executable or in `/usr/lib/mayfly`.
    pub plugin: Option<PathBuf>,
    /// SHA-256 of the plugin's file, hexadecimal: any other is refused.
    pub pin: Option<String>,
    /// Text that the plugin reads (its page says what is in it).
    #[serde(default)]
    pub config: String,
    /// Variables for the plugin's process, which has no others: what a vendor's library is configured by (`SOFTHSM2_CONF`).
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Whether the plugin may open network connections: the library of a network HSM, a simulated TPM over TCP.
    #[serde(default)]
    pub network: bool,
    /// With kind `all-of`: the parts, 2 to 4; nothing opens without every one. The first has the identity key; a TPM comes first.
    #[serde(default)]
    pub all: Vec<VaultPart>,
    /// How long erased shards may wait for others, so that one revocation serves all, in seconds: until it, a copy of this device's disk
    /// together with its vault opens them. Every revocation wears the chip's counter a little. 0 in networks for development.
    #[serde(default = "erase_batch_default")]
    pub erase_batch_seconds: u32,
}

/// A part of a combined vault; as in [`Vault`].
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaultPart {
    /// `file`, `tpm`, `pkcs11`.
    pub kind: String,
    /// The plugin's file.
    pub plugin: Option<PathBuf>,
    /// SHA-256 of the plugin's file.
    pub pin: Option<String>,
    /// Text that the plugin reads.
    #[serde(default)]
    pub config: String,
    /// Variables for the plugin's process.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Whether the plugin may open network connections.
    #[serde(default)]
    pub network: bool,
}

impl Vault {
    /// The plugins that make the vault: itself, or its parts.
    pub fn parts(&self) -> Vec<VaultPart> {
        if self.kind == ALL_OF {
            return self.all.clone();
        }
        vec![VaultPart {
            kind: self.kind.clone(),
            plugin: self.plugin.clone(),
            pin: self.pin.clone(),
            config: self.config.clone(),
            environment: self.environment.clone(),
            network: self.network,
        }]
    }

    /// Its kind for people: `file`, or `tpm+pkcs11`.
    pub fn kinds(&self) -> String {
        self.parts().into_iter().map(|part| part.kind).collect::<Vec<_>>().join("+")
    }

    /// Whether the parts are as they must be: some where there must be some, and nothing beside them that would be ignored.
    fn parts_fit(&self) -> bool {
        let own = self.plugin.is_some()
            || self.pin.is_some()
            || !self.config.is_empty()
            || !self.environment.is_empty()
            || self.network;
        match self.kind == ALL_OF {
            true => VAULT_PARTS.contains(&self.all.len()) && !own && self.all.iter().all(|p| p.kind != ALL_OF),
            false => self.all.is_empty(),
        }
    }
}

/// Judging other devices' chips.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Attestation {
    /// Certificates of the makers whose chips are believed, in PEM: their roots, and what stands between. Without it this device attests no
    /// other. Usually `/etc/mayfly/tpm-roots.pem`.
    pub roots: Option<PathBuf>,
    /// DANGER: believes TPMs that are programs, whose whole state can be copied: for development and tests.
    pub danger_allow_software: bool,
}

/// Settings of new keys whose maker does not name them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NewKeys {
    /// Shares needed, 2 to 63.
    pub threshold: u8,
    /// Shares made, at least the threshold; fewer where there are fewer holders, but then more than the threshold, or none.
    pub shares: u8,
    /// Names of the devices that may put the key together; `*`: all members; none: this device alone. Each one that may can be broken into.
    pub assemblers: Vec<String>,
    /// How long an assembled key is kept, in seconds; 0: for one operation.
    pub window_seconds: u32,
    /// When holders open their vaults for it: `boot`, `window:SECONDS`, `per-release`. The later, the less an intruder finds open, and
    /// the slower.
    pub vault_open: String,
}

impl Default for NewKeys {
    fn default() -> Self {
        Self { threshold: 2, shares: 3, assemblers: Vec::new(), window_seconds: 0, vault_open: "boot".into() }
    }
}

/// Form of the logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs, on standard error.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Form.
    pub format: LogFormat,
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,mayfly_agent::node=debug`.
    pub level: String,
    /// Whether names of keys appear. Their ids do not say what a key is for.
    pub key_names: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".into(), key_names: false }
    }
}

/// Bounds that an operator may move.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Most uses per second for which shards are released to one assembler; 0: no bound.
    pub releases_per_second_max: u32,
    /// Most inbound connections of other agents, all together.
    pub peer_connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { releases_per_second_max: RELEASES_PER_SECOND_MAX, peer_connections_max: 256 }
    }
}

/// For development and tests only.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Danger {
    /// How long holders keep an offered shard, milliseconds. Shorter than it takes to write the key: keys cannot be made.
    pub accept_deadline_ms: u64,
    /// Length of a session in milliseconds; 0: as the network's rules say (8 h).
    pub session_ms: u64,
    /// Plugins may lie in folders that others can write to.
    pub plugin_path_unchecked: bool,
}

impl Default for Danger {
    fn default() -> Self {
        let accept_deadline_ms = ACCEPT_DEADLINE.as_millis() as u64;
        Self { accept_deadline_ms, session_ms: 0, plugin_path_unchecked: false }
    }
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("{0} is larger than {FILE_BYTES_MAX} bytes")]
    TooLarge(PathBuf),
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{path}: {text}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and what, for people.
        text: String,
    },
    /// A value that cannot work.
    #[error("{path}: {what}")]
    Value {
        /// The file.
        path: PathBuf,
        /// Which and why.
        what: &'static str,
    },
}

impl Config {
    /// Reads and checks the file. Relative paths in it are relative to the file's folder.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        if std::fs::metadata(path).map_err(read)?.len() > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge(path.into()));
        }
        let mut config = Config::parse(&std::fs::read_to_string(path).map_err(read)?, path)?;
        config.resolve(path.parent().unwrap_or(Path::new(".")));
        Ok(config)
    }

    /// Makes relative paths relative to `folder`.
    pub fn resolve(&mut self, folder: &Path) {
        let plugins = self.vault.plugin.iter_mut().chain(self.vault.all.iter_mut().filter_map(|p| p.plugin.as_mut()));
        for place in [&mut self.data_dir, &mut self.network, &mut self.socket]
            .into_iter()
            .chain(plugins.chain(&mut self.attestation.roots))
        {
            *place = folder.join(&*place);
        }
    }

    /// What the application half is told.
    pub fn settings(&self) -> Settings {
        let residency = match self.new_keys.window_seconds {
            0 => "per-operation".into(),
            seconds => format!("window:{seconds}"),
        };
        let keys = KeyDefaults {
            threshold: self.new_keys.threshold,
            shares: self.new_keys.shares.into(),
            residency,
            vault_open: self.new_keys.vault_open.clone(),
            all_assemble: self.new_keys.assemblers.iter().any(|a| a == ALL_DEVICES),
        };
        Settings { connections: self.applications.clone(), keys }
    }

    /// Reads a configuration; `path` is for messages.
    ///
    /// # Errors
    /// [`ConfigError::Parse`], [`ConfigError::Value`].
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|e| ConfigError::Parse { path: path.into(), text: e.to_string().trim_end().to_owned() })?;
        match config.fault() {
            None => Ok(config),
            Some(what) => Err(ConfigError::Value { path: path.into(), what }),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        let word = |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let variable = |s: &String| !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let pin_ok = |pin: &String| pin.len() == 64 && pin.chars().all(|c| c.is_ascii_hexdigit());
        let parts = self.vault.parts();
        let checks = [
            (word(&self.device_name), "device_name has letters, digits, '-', '_' and '.' only"),
            (
                self.vault.parts_fit(),
                "a vault of kind all-of has 2 to 4 parts [[vault.all]], which say everything else; any other has none",
            ),
            (parts.iter().all(|p| word(&p.kind)), "vault.kind is one word, such as file, tpm or pkcs11"),
            (
                parts.iter().all(|p| p.pin.as_ref().is_none_or(pin_ok)),
                "vault.pin is a SHA-256 in 64 hexadecimal digits",
            ),
            (
                parts.iter().all(|p| p.environment.keys().all(variable)),
                "names in vault.environment have letters, digits and '_' only",
            ),
            (
                parts.iter().skip(1).all(|p| p.kind != "tpm"),
                "of the parts of a combined vault a tpm comes first: its identity key can be attested; there is one at most",
            ),
            (self.vault.erase_batch_seconds <= ERASE_BATCH_SECONDS_MAX, "vault.erase_batch_seconds is at most 86400"),
            (self.peers.advertise.as_ref().is_none_or(|a| a.contains(':')), "peers.advertise is host:port"),
            ((2..=63).contains(&self.new_keys.threshold), "new_keys.threshold is 2 to 63"),
            (
                (self.new_keys.threshold..=63).contains(&self.new_keys.shares),
                "new_keys.shares is new_keys.threshold to 63",
            ),
            (
                self.new_keys.window_seconds <= crate::app::settings::WINDOW_SECONDS_MAX,
                "new_keys.window_seconds is at most 86400",
            ),
            (
                crate::app::settings::parse_vault_opening(&self.new_keys.vault_open).is_some(),
                "new_keys.vault_open is boot, window:SECONDS or per-release",
            ),
            (
                self.applications.all_max > 0 && self.applications.per_user_max > 0,
                "applications.all_max and applications.per_user_max are at least 1",
            ),
            (
                self.applications.memory_per_user_mib_max > 0
                    && self.applications.memory_per_user_mib_max <= self.applications.memory_all_mib_max,
                "applications.memory_per_user_mib_max is 1 to applications.memory_all_mib_max",
            ),
            (self.new_keys.assemblers.iter().all(|a| a == ALL_DEVICES), "new_keys.assemblers is [] or [\"*\"]"),
            (self.limits.peer_connections_max > 0, "limits.peer_connections_max is at least 1"),
            (self.danger.accept_deadline_ms > 0, "danger.accept_deadline_ms is at least 1"),
        ];
        checks.iter().find(|(holds, _)| !holds).map(|(_, what)| *what)
    }
}

fn data_dir_default() -> PathBuf {
    DATA_DIR_DEFAULT.into()
}

fn erase_batch_default() -> u32 {
    ERASE_BATCH_SECONDS
}

fn network_default() -> PathBuf {
    NETWORK_DEFAULT.into()
}

fn socket_default() -> PathBuf {
    SOCKET_DEFAULT.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALLEST: &str = "device_name = \"one\"\n[vault]\nkind = \"file\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    #[test]
    fn the_smallest_file_gives_the_defaults() {
        let config = parse(SMALLEST).unwrap();
        assert_eq!(config.socket, Path::new(SOCKET_DEFAULT));
        assert_eq!(config.peers.listen.port(), 7411);
        assert_eq!(config.danger.accept_deadline_ms, 30_000);
        assert!(!config.log.key_names);
        assert_eq!(config.vault.erase_batch_seconds, 600);
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_errors_that_name_them() {
        for (addition, names) in [
            ("colour = 1\n", "colour"),
            ("[peers]\nlisten = \"nowhere\"\n", "listen"),
            ("[peers]\nport = 1\n", "port"),
            ("[log]\nformat = \"xml\"\n", "format"),
            ("[danger]\nskip_checks = true\n", "skip_checks"),
            ("[attestation]\ninsecure = true\n", "insecure"),
            ("[vault.environment]\n\"A=B\" = \"c\"\n", "vault.environment"),
            ("[danger]\naccept_deadline_ms = 0\n", "accept_deadline_ms"),
            ("[peers]\nadvertise = \"host\"\n", "advertise"),
            ("[new_keys]\nthreshold = 1\n", "threshold"),
            ("[new_keys]\nthreshold = 4\n", "shares"),
            ("[new_keys]\nwindow_seconds = 86401\n", "window_seconds"),
            ("[new_keys]\nvault_open = \"never\"\n", "vault_open"),
            ("[applications]\nall_max = 0\n", "all_max"),
            ("[applications]\nmemory_all_mib_max = 10\n", "memory_per_user_mib_max"),
        ] {
            let error = parse(&format!("{SMALLEST}{addition}")).unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
        }
        assert!(parse(&SMALLEST.replace("one", "a b")).unwrap_err().to_string().contains("device_name"));
        assert!(parse("").is_err());
    }

    #[test]
    fn a_combined_vault_has_its_parts_and_nothing_else() {
        let of = |vault: &str| parse(&format!("device_name = \"one\"\n[vault]\n{vault}"));
        let part = |kind: &str| format!("[[vault.all]]\nkind = \"{kind}\"\n");
        let all = "kind = \"all-of\"\n";
        let good = of(&format!("{all}{}{}", part("tpm"), part("pkcs11"))).unwrap();
        assert_eq!(good.vault.kinds(), "tpm+pkcs11");
        assert_eq!(parse(SMALLEST).unwrap().vault.kinds(), "file");
        for (vault, names) in [
            (all.to_owned(), "2 to 4 parts"),
            (format!("{all}{}", part("tpm")), "2 to 4 parts"),
            (format!("{all}{}", part("file").repeat(5)), "2 to 4 parts"),
            (format!("{all}config = \"x\"\n{}", part("file").repeat(2)), "2 to 4 parts"),
            (format!("{all}{}{}", part("file"), part("all-of")), "2 to 4 parts"),
            (format!("kind = \"file\"\n{}", part("file")), "2 to 4 parts"),
            (format!("{all}{}{}", part("pkcs11"), part("tpm")), "a tpm comes first"),
            (format!("{all}{}[[vault.all]]\nkind = \"file\"\npin = \"12\"\n", part("file")), "vault.pin"),
            (format!("{all}{}[[vault.all]]\nkind = \"file\"\ncolour = 1\n", part("file")), "colour"),
            ("kind = \"file\"\nerase_batch_seconds = 86401\n".into(), "erase_batch_seconds"),
        ] {
            let error = of(&vault).unwrap_err().to_string();
            assert!(error.contains(names), "{vault}: {error}");
        }
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("agent.toml");
        std::fs::write(&file, format!("data_dir = \"data\"\nsocket = \"/x/agent.sock\"\n{SMALLEST}")).unwrap();
        let config = Config::load(&file).unwrap();
        assert_eq!(config.data_dir, folder.path().join("data"));
        assert_eq!(config.socket, Path::new("/x/agent.sock"));
    }
}
