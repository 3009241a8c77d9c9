//! The configuration file. Unknown keys are errors; paths are relative to the file's folder.

use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Most bytes of the file.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// What `--config` names.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `network.toml`.
    pub network: PathBuf,
    /// The gateway's key: 32 bytes, readable by its owner only.
    pub key: PathBuf,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// A file that gets the bound address (`127.0.0.1:40123`) when the gateway is ready.
    pub ready_file: Option<PathBuf>,
    /// The store.
    pub backend: BackendConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: Limits,
    /// What weakens a guarantee: for development and tests.
    #[serde(default)]
    pub danger: Danger,
}

/// For development and tests only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Danger {
    /// The plugin may lie in a build tree: in folders that the group, or (under a sticky bit) anybody, may write to.
    pub plugin_path_unchecked: bool,
}

/// The store under the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Name of the plugin: `embedded` is `libmayfly_ledger_embedded.so`, beside this program or in `/usr/lib/mayfly`.
    pub plugin: String,
    /// Another place of the plugin.
    pub path: Option<PathBuf>,
    /// SHA-256 that the plugin's file must have, hexadecimal.
    pub sha256: Option<String>,
    /// Folder of the store.
    pub data: PathBuf,
    /// Configuration text for the plugin.
    #[serde(default)]
    pub config: String,
}

/// Bounds that an operator may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections at once. Each takes about 120 KiB (measured), up to 0.8 MiB while it is slow.
    pub connections: usize,
    /// Submissions that one client may make a second, on average; 0: no bound.
    pub submissions_per_second: u32,
    /// Submissions that one client may make at once on top.
    pub submissions_burst: u32,
    /// Memory for the newest bundles, in MiB. Clients that lag further behind are served from the store.
    pub ring_mib: usize,
    /// A client that takes nothing for so many seconds is dropped; it resumes with its token.
    pub slow_seconds: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            submissions_per_second: 200,
            submissions_burst: 1000,
            ring_mib: 64,
            slow_seconds: 30,
        }
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("configuration {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// It is not what it should be.
    #[error("configuration {path}: {what}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What, and where.
        what: String,
    },
}

impl Config {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError`], naming the place.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        let invalid = |what: String| ConfigError::Invalid { path: path.to_owned(), what };
        if std::fs::metadata(path).map_err(io)?.len() > FILE_BYTES_MAX {
            return Err(invalid(format!("longer than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let mut config: Config = toml::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        config.check().map_err(|what| invalid(what.to_owned()))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        for path in [&mut config.network, &mut config.key, &mut config.backend.data] {
            *path = dir.join(&*path);
        }
        for path in [&mut config.ready_file, &mut config.backend.path].into_iter().flatten() {
            *path = dir.join(&*path);
        }
        Ok(config)
    }

    fn check(&self) -> Result<(), &'static str> {
        let plugin = &self.backend.plugin;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
        if plugin.is_empty() || plugin.len() > 32 || !plugin.chars().all(plain) {
            return Err("backend.plugin is a name like \"embedded\"");
        }
        if self.backend.sha256.as_ref().is_some_and(|pin| pin_bytes(pin).is_none()) {
            return Err("backend.sha256 is 64 hexadecimal digits");
        }
        if !(1..=3600).contains(&self.limits.slow_seconds) {
            return Err("limits.slow_seconds is 1 to 3600");
        }
        if !(1..=1_000_000).contains(&self.limits.connections) || !(1..=65_536).contains(&self.limits.ring_mib) {
            return Err("limits.connections is 1 to 1000000, limits.ring_mib 1 to 65536");
        }
        Ok(())
    }
}

impl BackendConfig {
    /// The pinned hash, if there is one.
    pub fn pin(&self) -> Option<[u8; 32]> {
        self.sha256.as_deref().and_then(pin_bytes)
    }
}

fn pin_bytes(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).ok().map(|()| bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = r#"
        network = "network.toml"
        key = "gateway.key"
        listen = "127.0.0.1:0"
        [backend]
        plugin = "embedded"
        data = "store"
    "#;

    fn read(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        let config = Config::read(&path);
        if let Ok(config) = &config {
            assert!(config.backend.data.starts_with(dir.path()) && config.key.is_absolute());
        }
        config
    }

    #[test]
    fn the_sample_is_read_with_defaults() {
        assert_eq!(read(SAMPLE).unwrap().limits, Limits::default());
    }

    #[test]
    fn what_the_page_shows_is_taken_and_is_the_default() {
        let page = include_str!("../../docs/operations.md").split("### ledger.toml\n```toml\n").nth(1);
        let block = page.and_then(|rest| rest.split("```").next()).expect("the example is there");
        let shown = read(block).unwrap();
        assert_eq!((shown.limits, shown.danger), (Limits::default(), Danger::default()));
        let all = block.replace("\n# ", "\n").replace("\"…\"", &format!("\"{}\"", "0".repeat(64)));
        let all = read(&all).unwrap();
        assert!(all.ready_file.is_some() && all.backend.path.is_some() && all.backend.sha256.is_some());
    }

    #[test]
    fn what_is_odd_is_refused_with_a_reason() {
        for (text, expected) in [
            (format!("{SAMPLE}\n[limits]\nconections = 3"), "unknown field"),
            (SAMPLE.replace("embedded", "../evil"), "backend.plugin"),
            (format!("{SAMPLE}\nsha256 = \"12\""), "backend.sha256"),
            (format!("{SAMPLE}\n[limits]\nconnections = 0"), "limits.connections"),
            (SAMPLE.replace("127.0.0.1:0", "nowhere"), "listen"),
            (SAMPLE.replace("key =", "kee ="), "kee"),
        ] {
            let error = read(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }
}
