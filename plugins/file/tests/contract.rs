//! The vault `file` passes the vault suite, in its own process as the agent runs it.

use mayfly_plugin_api::{HostConfig, PathRule, contract, find_artifact};

#[test]
fn passes_the_vault_suite() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = find_artifact("libmayfly_vault_file.so").unwrap();
    let mut config = HostConfig::new(plugin, dir.path().join("data")).unwrap();
    contract::fill_in(&mut config).unwrap();
    // build trees and temporary folders are under folders that others may write to
    config.path_rule = PathRule::DangerDevelopment;
    let report = contract::run(&config).unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.plugin, "vault(file)");
}
