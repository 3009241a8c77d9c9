//! `cargo xtask nightly`: what takes too long for every change: property tests with many more cases, the whole-system tests again and again,
//! the vault in C under the compiler's sanitizers, and the figures that the pages quote.

use crate::{packages, python, run, test, tree};
use anyhow::{Result, ensure};
use std::process::Command;

/// Random cases of each property; the everyday number is proptest's own 256.
const PROPERTY_CASES: u32 = 20_000;
/// How often the whole-system tests run.
const SYSTEM_ROUNDS: u32 = 10;
/// Measurements that are no tests: package, what of it is built, name of the test.
const FIGURES: [(&str, &[&str], &str); 4] = [
    ("mayfly-agent", &["--lib"], "figures"),
    ("mayfly-ledger-server", &["--test", "in_process"], "measure"),
    ("mayfly-ledger-server", &["--test", "processes"], "measure"),
    ("mayfly-vault-pkcs11", &["--test", "figures"], "figures"),
];

/// Runs everything; the first failure ends it.
pub fn run() -> Result<()> {
    let root = tree::root()?;
    packages::ensure(packages::For::Tests)?;
    python::prepare()?;
    let cargo = |words: &[&str]| {
        let mut command = Command::new("cargo");
        command.current_dir(&root).args(words);
        command
    };
    run::show(&mut cargo(&["build", "--profile", test::PROFILE, "--workspace"]))?;
    let mut properties = cargo(&["test", "--profile", test::PROFILE, "--workspace", "--exclude", "mayfly-tests"]);
    run::show(properties.env("PROPTEST_CASES", PROPERTY_CASES.to_string()))?;
    sanitized_example()?;
    for round in 1..=SYSTEM_ROUNDS {
        println!("whole-system tests, round {round} of {SYSTEM_ROUNDS}");
        run::show(&mut cargo(&["test", "--profile", test::PROFILE, "--package", "mayfly-tests"]))?;
    }
    for (package, target, name) in FIGURES {
        let mut figures = cargo(&["test", "--profile", test::PROFILE, "--package", package]);
        run::show(figures.args(target).args([name, "--", "--ignored", "--nocapture"]))?;
    }
    Ok(())
}

/// The vault in C checks itself with the Makefile's own sanitizers: here they must run, where the everyday test skips them if they cannot.
fn sanitized_example() -> Result<()> {
    let root = tree::root()?;
    let folder = tree::Folder::new("example-c")?;
    let mut make = Command::new("make");
    make.current_dir(root.join("plugins/example-c")).arg(format!("OUT={}", folder.0.display())).arg("check");
    let checked = run::capture(&mut make, std::time::Duration::from_secs(600))?.done()?.text();
    print!("{checked}");
    ensure!(checked.contains("all good\n"), "plugins/example-c did not end its check");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::{Path, PathBuf};

    /// Where the packages of [`FIGURES`] are.
    const FOLDERS: [(&str, &str); 3] = [
        ("mayfly-agent", "agent"),
        ("mayfly-ledger-server", "ledger-server"),
        ("mayfly-vault-pkcs11", "plugins/pkcs11"),
    ];
    /// It makes a file for the tree, and measures nothing.
    const BY_HAND: [&str; 1] = ["plugins/file/src/vault.rs"];

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for path in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or(".");
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                sources(&path, found);
            } else if name.ends_with(".rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_measurement_is_run() {
        let root = tree::root().expect("the tree");
        let mut files = Vec::new();
        sources(&root, &mut files);
        let mut seen = 0;
        for file in files {
            let text = std::fs::read_to_string(&file).expect("a source");
            let path = file.strip_prefix(&root).expect("below the root").to_str().expect("a name");
            if BY_HAND.contains(&path) || !text.lines().any(|line| line.trim_start().starts_with("#[ignore")) {
                continue;
            }
            seen += 1;
            let is_run = |(package, target, _): &(&str, &[&str], &str)| {
                let is_package = |(name, folder): &(&str, &str)| name == package && path.starts_with(folder);
                let is_target = target.get(1).is_none_or(|name| path.ends_with(&format!("tests/{name}.rs")));
                FOLDERS.iter().any(is_package) && is_target
            };
            assert!(FIGURES.iter().any(is_run), "{path} leaves tests out that nightly does not run");
        }
        assert!(seen >= FIGURES.len(), "only {seen} files leave tests out: does this test look at the right place?");
    }
}
