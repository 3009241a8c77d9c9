//! Where things are: the workspace, and what a build leaves in the target folder.

use anyhow::{Context, Result, ensure};
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Everything that `cargo build --workspace` must leave beside each other; the programs find one another there.
pub const ARTEFACTS: [&str; 9] = [
    "mayflyd",
    "mayfly",
    "mayfly-ledger",
    "mayfly-plugin-host",
    "libmayfly_pkcs11.so",
    "libmayfly_vault_file.so",
    "libmayfly_vault_pkcs11.so",
    "libmayfly_vault_tpm.so",
    "libmayfly_ledger_embedded.so",
];

/// The folder of the root manifest.
pub fn root() -> Result<PathBuf> {
    let here = match std::env::var_os("CARGO_MANIFEST_DIR") {
        Some(xtask) => PathBuf::from(xtask),
        None => std::env::current_dir().context("no current folder")?,
    };
    let is_root = |folder: &Path| folder.join("xtask/Cargo.toml").is_file();
    let root = here.ancestors().find(|folder| is_root(folder));
    root.map(Path::to_owned).context("not inside the Mayfly tree: change into it first")
}

/// A folder of our own, among the temporary ones, that goes when we go.
pub struct Folder(pub PathBuf);

impl Folder {
    /// Makes it, open to nobody else.
    pub fn new(purpose: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("mayfly-{purpose}-{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("xtask: cannot remove {}: {error}", self.0.display());
        }
    }
}

/// The target folder: this program lies in `TARGET/PROFILE/`.
pub fn target() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find my own path")?;
    let target = program.parent().and_then(Path::parent);
    target.map(Path::to_owned).context("xtask does not lie in a target folder")
}

/// The folder with the artefacts of `profile`, all of them there.
pub fn built(profile: &str) -> Result<PathBuf> {
    let folder = target()?.join(profile);
    for name in ARTEFACTS {
        ensure!(folder.join(name).is_file(), "the build left no {name} in {}", folder.display());
    }
    Ok(folder)
}
