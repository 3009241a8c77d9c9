//! Configuration text (TOML) and where the passphrase comes from.

use crate::seal::{Cost, MEMORY_KIB_DEFAULT, PASSES_DEFAULT};
use mayfly_plugin_abi::GuestError;
use mayfly_vault_store::config::{self, Source, refuse};
use serde::Deserialize;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Shortest passphrase. Ours are random; this stops an empty file and a mistyped one.
pub(crate) const PASSPHRASE_BYTES_MIN: usize = 8;
/// Longest passphrase.
pub(crate) const PASSPHRASE_BYTES_MAX: usize = 1024;

/// The configuration: one source of the passphrase, and the cost for a *new* folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// File with the passphrase; owned by us or root, closed to others. One line end at its end does not count.
    passphrase_file: Option<PathBuf>,
    /// Name of a systemd credential (systemd.exec(5), `LoadCredentialEncrypted=`).
    passphrase_credential: Option<String>,
    /// Argon2id memory in KiB, at least the default of 19 MiB (OWASP's first choice with two passes).
    #[serde(default = "memory_default")]
    argon2_memory_kib: u32,
    /// Argon2id passes, at least 2.
    #[serde(default = "passes_default")]
    argon2_passes: u32,
}

fn memory_default() -> u32 {
    MEMORY_KIB_DEFAULT
}

fn passes_default() -> u32 {
    PASSES_DEFAULT
}

impl Config {
    /// Reads the text; unknown keys and weak costs are errors.
    pub(crate) fn parse(text: &str) -> Result<Config, GuestError> {
        let config: Config = config::parse(text)?;
        config.source()?;
        config.cost()?;
        Ok(config)
    }

    /// The cost for a new folder.
    pub(crate) fn cost(&self) -> Result<Cost, GuestError> {
        Cost::new(self.argon2_memory_kib, self.argon2_passes).map_err(|bounds| refuse(format!("argon2 cost: {bounds}")))
    }

    /// Reads the passphrase.
    pub(crate) fn passphrase(&self) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        Ok(self.source()?.read_line("passphrase", PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX)?.bytes)
    }

    fn source(&self) -> Result<Source, GuestError> {
        let source = Source::of("passphrase", self.passphrase_file.as_deref(), self.passphrase_credential.as_deref())?;
        source.ok_or_else(|| refuse("set passphrase_file or passphrase_credential"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn configurations() {
        for (text, good) in [
            ("passphrase_file = '/x'", true),
            ("passphrase_credential = 'x'", true),
            ("passphrase_file = '/x'\nargon2_memory_kib = 65536\nargon2_passes = 3", true),
            ("", false),
            ("passphrase_file = 'x'", false),
            ("passphrase_file = '/x'\npassphrase_credential = 'x'", false),
            ("passphrase_file = '/x'\nunknown = 1", false),
            ("passphrase_file = '/x'\nargon2_memory_kib = 1024", false),
            ("passphrase_file = '/x'\nargon2_memory_kib = 4294967295", false),
            ("passphrase_file = '/x'\nargon2_passes = 1", false),
            ("passphrase = 'in the file'", false),
            ("= broken", false),
        ] {
            assert_eq!(Config::parse(text).is_ok(), good, "{text}");
        }
    }

    #[test]
    fn passphrases_have_a_length() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        let config = Config::parse(&format!("passphrase_file = '{}'", path.display())).unwrap();
        for (length, good) in [(0, false), (7, false), (8, true), (1024, true), (1025, false)] {
            std::fs::write(&path, vec![b'x'; length]).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(config.passphrase().is_ok(), good, "{length}");
        }
    }
}
