//! A Python environment of our own under the target folder, with python-pkcs11: one of the judges of the module.

use crate::{run, tree};
use anyhow::{Context, Result};
use std::process::Command;

/// The version whose examples the tests run.
const PYTHON_PKCS11: &str = "python-pkcs11==0.10.1";

/// Makes the environment `TARGET/python`, where the tests look for it; once, then it is kept.
pub fn prepare() -> Result<()> {
    let folder = tree::target()?.join("python");
    let done = folder.join(PYTHON_PKCS11);
    if done.is_file() {
        return Ok(());
    }
    run::show(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let mut pip = Command::new(folder.join("bin/python3"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", PYTHON_PKCS11]);
    run::show(&mut pip).context("cannot fetch python-pkcs11 from the Python package index")?;
    std::fs::write(&done, "").with_context(|| format!("cannot write {}", done.display()))
}
