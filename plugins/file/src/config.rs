//! Configuration text (TOML) and where the passphrase comes from.

use crate::seal::{Cost, MEMORY_KIB_DEFAULT, PASSES_DEFAULT};
use mayfly_plugin_abi::{GuestError, Status};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use std::io::Read;
use std::path::{Path, PathBuf};
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
        let config: Config = toml::from_str(text).map_err(|error| refuse(one_line(error.message())))?;
        if config.passphrase_file.is_some() == config.passphrase_credential.is_some() {
            return Err(refuse("set passphrase_file or passphrase_credential, one of the two"));
        }
        if config.passphrase_file.as_ref().is_some_and(|path| !path.is_absolute()) {
            return Err(refuse("passphrase_file is not an absolute path"));
        }
        config.cost()?;
        Ok(config)
    }

    /// The cost for a new folder.
    pub(crate) fn cost(&self) -> Result<Cost, GuestError> {
        Cost::new(self.argon2_memory_kib, self.argon2_passes).map_err(|bounds| refuse(format!("argon2 cost: {bounds}")))
    }

    /// Reads the passphrase.
    pub(crate) fn passphrase(&self) -> Result<Zeroizing<Vec<u8>>, GuestError> {
        match (&self.passphrase_file, &self.passphrase_credential) {
            (Some(path), _) => read_secret_file(path),
            (None, Some(name)) => read_secret_file(&credential_path(name)?),
            (None, None) => Err(refuse("no source of the passphrase")),
        }
    }
}

fn refuse(text: impl Into<String>) -> GuestError {
    GuestError::new(Status::Config, text)
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

fn credential_path(name: &str) -> Result<PathBuf, GuestError> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    if !plain {
        return Err(refuse("passphrase_credential is not a plain name"));
    }
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(folder) => Ok(Path::new(&folder).join(name)),
        None => Err(refuse(format!(
            "no credentials were passed to this service (CREDENTIALS_DIRECTORY is not set), \
             add LoadCredential={name}:PATH to its unit"
        ))),
    }
}

fn read_secret_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, GuestError> {
    let bad = |what: &str| refuse(format!("passphrase in {}: {what}", path.display()));
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map_err(|error| bad(&std::io::Error::from(error).to_string()))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| bad(&std::io::Error::from(error).to_string()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(bad("is not a file"));
    }
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me && stat.st_uid != 0 {
        return Err(bad("belongs to another user"));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(bad("is open to others, run `chmod 600` on it"));
    }
    // room for the longest and one more, so that the buffer never grows and leaves a copy behind
    let mut bytes = Zeroizing::new(Vec::with_capacity(PASSPHRASE_BYTES_MAX + 3));
    std::fs::File::from(file)
        .take(PASSPHRASE_BYTES_MAX as u64 + 2)
        .read_to_end(&mut bytes)
        .map_err(|error| bad(&error.to_string()))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    match bytes.len() {
        PASSPHRASE_BYTES_MIN..=PASSPHRASE_BYTES_MAX => Ok(bytes),
        _ => Err(bad(&format!("must be {PASSPHRASE_BYTES_MIN} to {PASSPHRASE_BYTES_MAX} bytes"))),
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
    fn passphrase_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passphrase");
        let config = Config::parse(&format!("passphrase_file = '{}'", path.display())).unwrap();
        let long = vec![b'x'; PASSPHRASE_BYTES_MAX];
        let too_long = vec![b'x'; PASSPHRASE_BYTES_MAX + 1];
        for (content, mode, expected) in [
            (&b"correct horse"[..], 0o600, Some(&b"correct horse"[..])),
            (b"correct horse\n", 0o400, Some(b"correct horse")),
            (b"correct horse\r\n", 0o600, Some(b"correct horse")),
            (b"correct horse\n\n", 0o600, Some(b"correct horse\n")),
            (&long, 0o600, Some(&long)),
            (&too_long, 0o600, None),
            (b"short", 0o600, None),
            (b"", 0o600, None),
            (b"correct horse", 0o640, None),
            (b"correct horse", 0o604, None),
        ] {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let read = config.passphrase();
            assert_eq!(read.ok().as_deref().map(|bytes| &bytes[..]), expected, "{} {mode:o}", content.len());
            std::fs::remove_file(&path).unwrap();
        }
        assert!(config.passphrase().unwrap_err().message.contains("No such file"));
    }

    #[test]
    fn credential_names_stay_in_their_folder() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden"] {
            assert!(credential_path(name).unwrap_err().message.contains("plain name"), "{name}");
        }
    }
}
