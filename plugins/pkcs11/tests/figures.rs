//! What the vault costs on SoftHSM, through facade and host process. Not a test: it judges nothing.
//! `cargo test --release -p mayfly-vault-pkcs11 --test figures -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::SoftHsm;
use mayfly_plugin_api::{Tier, VaultPlugin};
use std::time::Instant;

/// Median and 95th percentile in milliseconds.
fn timed(what: &str, rounds: usize, mut body: impl FnMut()) {
    let mut times: Vec<f64> = (0..rounds)
        .map(|_| {
            let started = Instant::now();
            body();
            started.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    times.sort_by(f64::total_cmp);
    println!("{what:40} {:8.3} / {:8.3} ms", times[rounds / 2], times[rounds * 95 / 100]);
}

#[test]
#[ignore = "figures, not a test"]
fn figures() {
    for more in ["seal = 'aes-gcm'", "seal = 'aes-key-wrap-pad'"] {
        println!("{more}");
        let token = SoftHsm::on_disk();
        let config = token.config("data", more);
        let vault = VaultPlugin::start(&config).unwrap();
        vault.identity_public(None, true).unwrap();
        vault.stage(1, Tier::Boot).unwrap();
        vault.commit(1).unwrap();
        timed("open_key, warm", 2000, || drop(vault.open_key(1, Tier::Boot).unwrap()));
        timed("generation", 2000, || assert_eq!(vault.generation().unwrap().current, 1));
        timed("identity_sign", 500, || assert!(vault.identity_sign(b"message").is_ok()));
        let mut next = 2;
        timed("stage one tier, and commit", 30, || {
            vault.stage(next, Tier::Boot).unwrap();
            vault.commit(next).unwrap();
            next += 1;
        });
        timed("stage", 30, || drop(vault.stage(next, Tier::Boot).unwrap()));
        vault.commit(next).unwrap();
        drop(vault);
        timed("cold: host, library, login, open_key", 30, || {
            let vault = VaultPlugin::start(&config).unwrap();
            vault.open_key(next, Tier::Boot).unwrap();
        });
    }
}
