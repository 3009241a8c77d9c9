//! The vault `pkcs11` passes the vault suite on SoftHSM, in its own process as the agent runs it.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::SoftHsm;
use mayfly_plugin_api::contract;

#[test]
fn passes_the_vault_suite_with_gcm() {
    passes("seal = 'aes-gcm'");
}

#[test]
fn passes_the_vault_suite_with_key_wrap_pad() {
    passes("seal = 'aes-key-wrap-pad'");
}

fn passes(more: &str) {
    let token = SoftHsm::new();
    let config = token.config("data", more);
    let report = contract::run(&config).unwrap();
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.plugin, "vault(pkcs11)");
}
