//! The vault `tpm` passes the vault suite on swtpm, in its own process as the agent runs it.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

mod common;

use common::Swtpm;
use mayfly_plugin_api::contract;
use std::cell::RefCell;

/// Each case on a chip of its own.
fn passes(suite: fn(&contract::Factory<'_>) -> contract::Report) {
    let chips = RefCell::new(Vec::new());
    let report = suite(&|case| {
        let chip = Swtpm::start();
        let data = case.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        let config = chip.config(&data);
        chips.borrow_mut().push(chip);
        config
    });
    println!("{report}");
    assert!(report.passed(), "{report}");
    assert_eq!(report.plugin, "vault(tpm)");
}

#[test]
fn keeps_the_rules_of_the_vault_suite() {
    passes(contract::vault_rules);
}

#[test]
fn survives_the_crashes_of_the_vault_suite() {
    passes(contract::vault_crashes);
}
