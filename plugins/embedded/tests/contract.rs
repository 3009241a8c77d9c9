//! The backend `embedded` passes the backend suite, in its own process as the gateway runs it.

use mayfly_plugin_api::{HostConfig, PathRule, contract, find_artifact};

#[test]
fn passes_the_backend_suite() {
    let dir = tempfile::tempdir().unwrap();
    let plugin = find_artifact("libmayfly_ledger_embedded.so").unwrap();
    let mut config = HostConfig::new(plugin, dir.path().join("data")).unwrap();
    // build trees and temporary folders are under folders that others may write to
    config.path_rule = PathRule::DangerDevelopment;
    let report = contract::run(&config).unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.plugin, "ledger(embedded)");
}
