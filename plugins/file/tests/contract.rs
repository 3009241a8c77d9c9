//! The vault `file` passes the vault suite, in its own process as the agent runs it.

use mayfly_plugin_api::{HostConfig, PathRule, contract, find_artifact};
use std::os::unix::fs::PermissionsExt;

#[test]
fn passes_the_vault_suite() {
    let dir = tempfile::tempdir().unwrap();
    let passphrase = dir.path().join("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple\n").unwrap();
    std::fs::set_permissions(&passphrase, std::fs::Permissions::from_mode(0o600)).unwrap();
    let plugin = find_artifact("libmayfly_vault_file.so").unwrap();
    let mut config = HostConfig::new(plugin, dir.path().join("data")).unwrap();
    config.config_text = format!("passphrase_file = '{}'", passphrase.display());
    // build trees and temporary folders are under folders that others may write to
    config.path_rule = PathRule::DangerDevelopment;
    let report = contract::run(&config).unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.plugin, "vault(file)");
}
