//! Where the built programs are: beside the tests.

use std::path::{Path, PathBuf};

/// What a build of the workspace must have left.
const ARTEFACTS: [&str; 9] = [
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

/// The folder of the running test's profile.
fn folder() -> PathBuf {
    let test = std::env::current_exe().expect("a process knows its program");
    // TARGET/PROFILE/deps/TEST
    let folder = test.parent().and_then(Path::parent).expect("tests lie in a target folder").to_owned();
    let missing: Vec<&str> = ARTEFACTS.into_iter().filter(|name| !folder.join(name).is_file()).collect();
    assert!(
        missing.is_empty(),
        "{} is not in {}: run `cargo build --workspace` with the tests' profile first (`cargo xtask test` does)",
        missing.join(", "),
        folder.display()
    );
    folder
}

/// A program or library of ours.
pub fn program(name: &str) -> PathBuf {
    folder().join(name)
}

/// The interpreter of the environment that `cargo xtask test` makes, with python-pkcs11.
pub fn python() -> PathBuf {
    let target = folder().parent().expect("a profile's folder lies in a target folder").to_owned();
    let python = target.join("python/bin/python3");
    assert!(python.exists(), "{} is not there: `cargo xtask test` makes it", python.display());
    python
}
