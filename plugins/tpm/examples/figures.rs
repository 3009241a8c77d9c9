//! What a vault in a TPM costs, measured through the plugin's process as the agent uses it.
//!
//! `cargo run --profile ci -p mayfly-vault-tpm --example figures [TCTI]`; without one it starts a private swtpm.

#[path = "../tests/common/mod.rs"]
mod common;

use common::Swtpm;
use mayfly_plugin_api::{Tier, VaultPlugin};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 100;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (chip, tcti) = match std::env::args().nth(1) {
        Some(tcti) => (None, tcti),
        None => {
            let chip = Swtpm::start();
            let tcti = chip.tcti();
            (Some(chip), tcti)
        }
    };
    let config = common::host_config(&tcti, &dir.path().join("data"));
    let started = Instant::now();
    let vault = VaultPlugin::start(&config).expect("the vault opens");
    println!("{}", vault.describe().expect("it describes itself").hardware);
    println!("{:34} {:>8.2} ms", "making the vault, with its process", millis(started.elapsed()));
    once("identity key made", || vault.identity_public(None, true).map(|_| ()).expect("an identity"));
    let mut commits = Vec::new();
    let (mut stages, mut opens, mut signs, mut generations) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for generation in 1..=ROUNDS {
        for tier in Tier::ALL {
            stages.push(time(|| drop(vault.stage(generation, tier).expect("it stages"))));
        }
        commits.push(time(|| vault.commit(generation).expect("it commits")));
        opens.push(time(|| drop(vault.open_key(generation, Tier::PerRelease).expect("it opens"))));
        signs.push(time(|| vault.identity_sign(b"message").map(|_| ()).expect("it signs")));
        generations.push(time(|| vault.generation().map(|_| ()).expect("it tells")));
    }
    show("stage one tier", stages);
    show("commit (three tiers staged)", commits);
    show("open one tier", opens);
    show("sign by the identity", signs);
    show("read the generation", generations);
    drop(vault);
    let mut cold = Vec::new();
    for _ in 0..20 {
        cold.push(time(|| drop(VaultPlugin::start(&config).expect("it starts"))));
    }
    show("start and end of the process", cold);
    let vault = VaultPlugin::start(&config).expect("it starts");
    vault.control("danger-forget", &[]).expect("it is forgotten");
    drop(chip);
}

fn time(body: impl FnOnce()) -> Duration {
    let started = Instant::now();
    body();
    started.elapsed()
}

fn once(what: &str, body: impl FnOnce()) {
    println!("{what:34} {:>8.2} ms", millis(time(body)));
}

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, late) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    println!("{what:34} {:>8.2} ms, 95 of 100 within {:.2} ms", millis(median), millis(late));
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
