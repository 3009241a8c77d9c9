//! What a vault in a TPM costs, measured through the plugin's process as the agent uses it: what a caller waits, and
//! what of it is work of the plugin's process, which does not depend on what else the machine does.
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
    let started = Instant::now();
    vault.identity_public(None, true).expect("an identity");
    println!("{:34} {:>8.2} ms", "identity key made", millis(started.elapsed()));
    let names =
        ["stage one tier", "commit (three tiers staged)", "open one tier", "sign by the identity", "generation"];
    let mut figures = names.map(Figure::new);
    let [stage, commit, open, sign, generation] = &mut figures;
    for next in 1..=ROUNDS {
        for tier in Tier::ALL {
            stage.take(&vault, |vault| drop(vault.stage(next, tier).expect("it stages")));
        }
        commit.take(&vault, |vault| vault.commit(next).expect("it commits"));
        open.take(&vault, |vault| drop(vault.open_key(next, Tier::PerRelease).expect("it opens")));
        sign.take(&vault, |vault| assert!(vault.identity_sign(b"message").is_ok()));
        generation.take(&vault, |vault| assert!(vault.generation().is_ok()));
    }
    for figure in figures {
        figure.show();
    }
    drop(vault);
    let mut cold = Figure::new("start, open one tier, end");
    for _ in 0..20 {
        let started = Instant::now();
        let vault = VaultPlugin::start(&config).expect("it starts");
        drop(vault.open_key(ROUNDS, Tier::Boot).expect("it opens"));
        let work = work(&vault);
        drop(vault);
        cold.taken.push((started.elapsed(), work));
    }
    cold.show();
    let vault = VaultPlugin::start(&config).expect("it starts");
    vault.control("danger-forget", &[]).expect("it is forgotten");
    drop(chip);
}

/// One kind of call, timed.
struct Figure {
    what: &'static str,
    /// What the caller waited, and what the plugin's process worked.
    taken: Vec<(Duration, Duration)>,
}

impl Figure {
    fn new(what: &'static str) -> Figure {
        Figure { what, taken: Vec::new() }
    }

    fn take(&mut self, vault: &VaultPlugin, call: impl FnOnce(&VaultPlugin)) {
        let (started, before) = (Instant::now(), work(vault));
        call(vault);
        self.taken.push((started.elapsed(), work(vault).saturating_sub(before)));
    }

    fn show(self) {
        let (mut waited, mut worked): (Vec<_>, Vec<_>) = self.taken.into_iter().unzip();
        waited.sort();
        worked.sort();
        let (middle, late) = (waited.len() / 2, waited.len() * 95 / 100);
        println!(
            "{:34} {:>8.2} ms, 95 of 100 within {:.2} ms; {:.2} ms of work",
            self.what,
            millis(waited[middle]),
            millis(waited[late]),
            millis(worked[middle])
        );
    }
}

/// Time that the threads of the plugin's process have spent on a processor.
fn work(vault: &VaultPlugin) -> Duration {
    let pid = vault.host_pid().expect("it runs");
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    // nanoseconds (proc(5))
    let texts = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok());
    texts.filter_map(|text| Some(Duration::from_nanos(text.split(' ').next()?.parse().ok()?))).sum()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
