//! The vault in C that authors of plugins start from: built as its page says, through its own check, through the suite.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

use mayfly_plugin_api::{HostConfig, PathRule, contract};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../plugins/example-c");

/// Runs `make` with its products and temporary files in `dir`; gives what it printed.
fn make(dir: &Path, words: &[&str]) -> String {
    let mut make = Command::new("make");
    make.args(["-C", SOURCE]).args(words).arg(format!("OUT={}", dir.display()));
    let run = make.output().expect("make, cc and libcrypto (Debian: apt-get install make gcc libssl-dev)");
    let text = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{text}");
    text
}

#[test]
fn passes_the_vault_suite() {
    passes("");
}

/// Every undefined operation ends the process: then a case fails. The sanitizer for addresses would have to be the first
/// library of the host's process; it runs in the example's own check.
#[test]
fn passes_the_vault_suite_without_undefined_behaviour() {
    const FLAGS: &str = "-fsanitize=undefined -fsanitize-undefined-trap-on-error";
    if builds_and_runs(FLAGS) {
        passes(FLAGS);
    } else {
        println!("this compiler has no {FLAGS}: skipped");
    }
}

fn passes(flags: &str) {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["plugin", &format!("CFLAGS={flags}")]);
    let key = dir.path().join("key");
    let mut bytes = [0u8; 32];
    mayfly_secmem::random(&mut bytes).unwrap();
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&key).unwrap();
    std::io::Write::write_all(&mut file, &bytes).unwrap();
    let plugin = dir.path().join("libmayfly_vault_example_c.so");
    let config = HostConfig {
        host_path: env!("CARGO_BIN_EXE_mayfly-plugin-host").into(),
        config_text: format!("key_file = '{}'\n", key.display()),
        // temporary folders are under one that others may write to
        path_rule: PathRule::DangerDevelopment,
        ..HostConfig::new(plugin, dir.path().join("data")).unwrap()
    };
    let report = contract::run(&config).unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.plugin, "vault(example-c)");
}

/// Whether the compiler takes these flags, and what it makes of them runs here.
fn builds_and_runs(flags: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    let (source, program) = (dir.path().join("probe.c"), dir.path().join("probe"));
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let mut cc = Command::new("cc");
    let built = cc.args(flags.split(' ')).arg("-o").arg(&program).arg(&source).output();
    built.is_ok_and(|run| run.status.success()) && Command::new(&program).output().is_ok_and(|run| run.status.success())
}

/// First without the compiler's sanitizers, which do not run under every kernel's settings, then, where they do, with
/// them: each time what is run was made for it.
#[test]
fn survives_its_own_check() {
    const SANITIZERS: &str = "-fsanitize=address,undefined -fno-sanitize-recover=all";
    let dir = tempfile::tempdir().unwrap();
    let check = |words: &[&str], sanitized: bool| {
        let text = make(dir.path(), words);
        assert!(text.contains("all good\n"), "{text}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["check"], "nothing is left behind");
        let program = std::fs::read(dir.path().join("check")).unwrap();
        let found = program.windows(13).any(|bytes| bytes == b"__asan_report");
        assert_eq!(found, sanitized, "{words:?} ran what was made for something else");
    };
    check(&["check", "SANITIZE="], false);
    if builds_and_runs(SANITIZERS) {
        check(&["check"], true);
    } else {
        println!("{SANITIZERS} does not run here: skipped");
    }
}
