//! `cargo xtask test`: what CI runs. Packages, format, lints, docs, build, all tests; the runner's closing lines come last.

use crate::{packages, python, run, tree};
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// The one profile of tests and lints; see the root manifest.
pub const PROFILE: &str = "ci";

/// Runs everything; `filter` narrows the tests themselves (words of the runner).
pub fn run(filter: &[&str]) -> Result<()> {
    let root = tree::root()?;
    packages::ensure(packages::For::Tests)?;
    python::prepare()?;
    let cargo = |words: &[&str]| {
        let mut command = Command::new(env_cargo());
        command.current_dir(&root).args(words);
        command
    };
    run::show(&mut cargo(&["fmt", "--all", "--check"]))?;
    run::show(&mut cargo(&["clippy", "--profile", PROFILE, "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run::show(
        cargo(&["doc", "--profile", PROFILE, "--workspace", "--no-deps", "--document-private-items"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )?;
    // The whole-system tests run the artefacts of this build.
    run::show(&mut cargo(&["build", "--profile", PROFILE, "--workspace"]))?;
    tree::built(PROFILE)?;
    run::show(&mut cargo(&["test", "--quiet", "--profile", PROFILE, "--workspace", "--doc"]))?;
    let mut tests = if has_nextest(&root) {
        cargo(&["nextest", "run", "--cargo-profile", PROFILE, "--workspace", "--no-fail-fast"])
    } else {
        cargo(&["test", "--profile", PROFILE, "--workspace", "--all-targets", "--no-fail-fast"])
    };
    tests.args(filter);
    run_tests(&mut tests)
}

fn env_cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

fn has_nextest(root: &Path) -> bool {
    let mut command = Command::new(env_cargo());
    command.current_dir(root).args(["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs the tests with their output shown, then prints the runner's closing lines once more, at the very end.
fn run_tests(command: &mut Command) -> Result<()> {
    println!("$ {}", run::line(command));
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run the tests")?;
    let stdout = follow(child.stdout.take());
    let stderr = follow(child.stderr.take());
    let status = child.wait().context("cannot wait for the tests")?;
    let mut closing = Vec::new();
    for reader in [stdout, stderr] {
        closing.extend(reader.join().unwrap_or_default());
    }
    println!("\n--- closing lines ---");
    closing.iter().for_each(|line| println!("{line}"));
    if !status.success() {
        bail!("tests failed ({status})");
    }
    Ok(())
}

/// Copies lines through and keeps those with which a runner closes.
fn follow(stream: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut closing = Vec::new();
        let Some(stream) = stream else { return closing };
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // A closed standard output must not stop the tests.
            let _ = writeln!(std::io::stdout(), "{line}");
            if is_closing(&line) {
                closing.push(line);
            }
        }
        closing
    })
}

fn is_closing(line: &str) -> bool {
    let words = line.trim_start();
    ["Summary [", "test result:", "FAIL [", "FLAKY ", "TIMEOUT [", "SIGABRT [", "error: test run failed", "failures:"]
        .iter()
        .any(|start| words.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::is_closing;

    #[test]
    fn closing_lines_of_both_runners() {
        for (line, closing) in [
            ("     Summary [  12.345s] 310 tests run: 310 passed, 0 skipped", true),
            ("        FAIL [   0.003s] mayfly-crypto enc::tests::known", true),
            ("test result: ok. 25 passed; 0 failed; 0 ignored", true),
            ("       FLAKY 2/2 [   5.121s] mayfly-tests::system faults::known", true),
            ("        PASS [   0.003s] mayfly-crypto enc::tests::known", false),
            ("test enc::tests::known ... ok", false),
        ] {
            assert_eq!(is_closing(line), closing, "{line}");
        }
    }
}
