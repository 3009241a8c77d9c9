//! `cargo xtask nightly`: the property tests with many more cases, and the whole-system tests again and again.

use crate::{packages, python, run, test, tree};
use anyhow::Result;
use std::process::Command;

/// Random cases of each property; the everyday number is proptest's own 256.
const PROPERTY_CASES: u32 = 20_000;
/// How often the whole-system tests run.
const SYSTEM_ROUNDS: u32 = 10;

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
    for round in 1..=SYSTEM_ROUNDS {
        println!("whole-system tests, round {round} of {SYSTEM_ROUNDS}");
        run::show(&mut cargo(&["test", "--profile", test::PROFILE, "--package", "mayfly-tests"]))?;
    }
    Ok(())
}
