//! The vault `tpm` passes the vault suite on swtpm, in its own process as the agent runs it; each case on a chip of its own.

mod common;

use common::Swtpm;
use mayfly_plugin_api::contract;
use std::cell::RefCell;

#[test]
fn passes_the_vault_suite() {
    let chips = RefCell::new(Vec::new());
    let report = contract::vault(&|case| {
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
