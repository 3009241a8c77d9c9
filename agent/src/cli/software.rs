//! Software TPMs and tokens, for `mayfly dev` and `mayfly plugin test`: the scripts of `softhsm-setup`, built in, so that an installed
//! `mayfly` does what a person does with the same scripts.
//!
//! They protect nothing and say so. Nothing outside of the folder that is named is made or changed.

use super::announce::{advised, quoted};
use anyhow::{Context, Result, ensure};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket (`sun_path`, 108 bytes with its end).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The scripts and what they read.
const SCRIPTS: [(&str, &str); 4] = [
    ("swtpm-create", include_str!("../../../softhsm-setup/swtpm-create")),
    ("swtpm-start", include_str!("../../../softhsm-setup/swtpm-start")),
    ("softhsm-token", include_str!("../../../softhsm-setup/softhsm-token")),
    ("softhsm2.conf.in", include_str!("../../../softhsm-setup/softhsm2.conf.in")),
];
/// What runs them.
const SHELL: &str = "/bin/sh";

/// What stands in for hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Software {
    /// swtpm, with endorsement certificates.
    Tpm,
    /// A token of SoftHSM.
    Token,
}

impl Software {
    /// Programs that it takes, each with its Debian package.
    fn tools(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Software::Tpm => &[("swtpm", "swtpm"), ("swtpm_setup", "swtpm-tools"), ("swtpm_localca", "swtpm-tools")],
            Software::Token => &[("softhsm2-util", "softhsm2")],
        }
    }
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
}

/// The scripts, in a folder.
#[derive(Debug)]
pub struct Scripts {
    dir: PathBuf,
}

impl Scripts {
    /// Writes the scripts into a new folder.
    ///
    /// # Errors
    /// The folder exists, or cannot be made; its path is one that the scripts or the programs under them cannot use.
    pub fn unpack(dir: PathBuf) -> Result<Self> {
        let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._+-".contains(byte);
        ensure!(
            dir.as_os_str().as_encoded_bytes().iter().all(is_plain),
            "swtpm and SoftHSM cannot use the path {}: choose one of letters, digits and / . _ + - only",
            quoted(&dir.to_string_lossy())
        );
        DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        for (name, text) in SCRIPTS {
            std::fs::write(dir.join(name), text)
                .with_context(|| format!("cannot write {}", dir.join(name).display()))?;
        }
        Ok(Self { dir })
    }

    /// Makes a TPM in `dir`, certified by the authority in `ca`.
    pub fn make_tpm(&self, dir: &Path, ca: &Path) -> Call {
        self.call("swtpm-create", &[&dir.to_string_lossy(), &ca.to_string_lossy()])
    }

    /// Becomes the TPM in `dir`.
    pub fn run_tpm(&self, dir: &Path) -> Call {
        self.call("swtpm-start", &["--foreground", &dir.to_string_lossy()])
    }

    /// Makes a token in `dir`.
    pub fn make_token(&self, dir: &Path, label: &str) -> Call {
        self.call("softhsm-token", &[&dir.to_string_lossy(), label])
    }

    fn call(&self, script: &str, arguments: &[&str]) -> Call {
        // The path was found to be ASCII.
        let script = self.dir.join(script).to_string_lossy().into_owned();
        let arguments = std::iter::once(script).chain(arguments.iter().map(|&word| word.to_owned())).collect();
        Call { program: SHELL.into(), arguments }
    }
}

/// The socket of the TPM in `dir`.
pub fn tpm_socket(dir: &Path) -> PathBuf {
    dir.join("tpm")
}

/// The longest path of a socket that the TPM in `dir` listens on.
pub fn tpm_control_socket(dir: &Path) -> PathBuf {
    dir.join("tpm.ctrl")
}

/// The way to the TPM in `dir`, for the vault's configuration.
pub fn tcti(dir: &Path) -> String {
    format!("swtpm:path={}", tpm_socket(dir).display())
}

/// The certificates of an authority that certifies TPMs, root and issuer.
pub fn tpm_roots(ca: &Path) -> PathBuf {
    ca.join("roots.pem")
}

/// The `[vault]` section of the token in `dir`, as its script wrote it.
pub fn token_section(dir: &Path) -> PathBuf {
    dir.join("vault.toml")
}

/// Refuses before anything is made when a program is missing.
///
/// # Errors
/// Names what is missing and the command that installs it.
pub fn ensure_tools(wanted: &[Software]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there = |program: &str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let tools = wanted.iter().flat_map(|software| software.tools());
    let missing: Vec<_> = tools.filter(|(program, _)| !is_there(program)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
    packages.dedup();
    let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
    Err(advised(
        format!("not installed: {}", programs.join(", ")),
        format!("sudo apt-get install -y --no-install-recommends {}", packages.join(" ")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_the_programs_cannot_use_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a b", "a,b", "a'b", "a$b", "é"] {
            assert!(Scripts::unpack(folder.path().join(name)).is_err(), "{name}");
        }
        let scripts = Scripts::unpack(folder.path().join("scripts")).unwrap();
        assert!(Scripts::unpack(folder.path().join("scripts")).is_err(), "a folder of somebody else");
        let call = scripts.make_token(Path::new("/x"), "label");
        assert!(Path::new(&call.arguments[0]).is_file());
        assert_eq!(call.arguments[1..], ["/x", "label"]);
    }
}
