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
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), &["plugin"]);
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

/// Without the compiler's sanitizers, which do not run under every kernel's settings; `make check` by hand has them.
#[test]
fn survives_its_own_check() {
    let dir = tempfile::tempdir().unwrap();
    let text = make(dir.path(), &["check", "SANITIZE="]);
    assert!(text.contains("all good\n"), "{text}");
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["check"], "nothing is left behind");
}
