//! The vault without its process, for what the plugin interface does not show: what lies in the chip itself.

use crate::TpmVault;
use crate::common::Swtpm;
use crate::keys::half_check;
use mayfly_plugin_abi::{Status, Tier, VaultGuest};
use std::os::unix::fs::DirBuilderExt;

fn vault(chip: &Swtpm) -> TpmVault {
    let data = chip.dir.path().join("data");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&data).unwrap();
    TpmVault::open(&format!("tcti = '{}'", chip.tcti()), &data).unwrap()
}

fn half(vault: &TpmVault, generation: u64) -> [u8; 32] {
    let mut half = [0; 32];
    vault.link(|link| Ok(link.half(generation).read(link.session, &mut half)?)).unwrap();
    half
}

fn stage(vault: &mut TpmVault, next: u64) -> [u8; 32] {
    let mut key = [0; 32];
    vault.stage(next, Tier::Boot, &mut key).unwrap();
    key
}

/// The chip forgets: after a commit the old generation's half is gone, after a discard the staged one's.
#[test]
fn halves_are_overwritten() {
    let chip = Swtpm::start();
    let mut vault = vault(&chip);
    stage(&mut vault, 1);
    vault.commit(1).unwrap();
    let first = half(&vault, 1);
    let file = vault.generation_files().unwrap().0.unwrap();
    assert_eq!(half_check(&vault.header.vault_id, 1, &first), file.half_check);

    stage(&mut vault, 2);
    let staged = half(&vault, 2);
    assert_eq!(half(&vault, 1), first, "staging does not touch the half in use");
    vault.discard_staged().unwrap();
    assert_ne!(half(&vault, 2), staged, "discarded");
    assert_eq!(half(&vault, 1), first);

    stage(&mut vault, 2);
    let second = half(&vault, 2);
    vault.commit(2).unwrap();
    assert_ne!(half(&vault, 1), first, "revoked");
    assert_eq!(half(&vault, 2), second);
    // nothing staged: nothing is written, since the chip's memory wears out
    let before = half(&vault, 1);
    vault.discard_staged().unwrap();
    assert_eq!(half(&vault, 1), before);
}

/// Only the chip's half is gone (an index written by somebody with the auth secret): told, not a wrong key.
#[test]
fn a_half_that_was_changed_is_noticed() {
    let chip = Swtpm::start();
    let mut vault = vault(&chip);
    stage(&mut vault, 1);
    vault.commit(1).unwrap();
    stage(&mut vault, 2);
    for generation in [1, 2] {
        vault.link(|link| Ok(link.half(generation).write(link.session, &[7; 32])?)).unwrap();
    }
    let mut key = [0; 32];
    assert_eq!(vault.open_key(1, Tier::Boot, &mut key).unwrap_err().status, Status::Corrupt);
    assert_eq!(key, [0; 32]);
    assert_eq!(vault.commit(2).unwrap_err().status, Status::Corrupt, "it would open nothing");
    assert_eq!(vault.stage(2, Tier::Window, &mut key).unwrap_err().status, Status::Corrupt);
    vault.discard_staged().unwrap();
    let staged = stage(&mut vault, 2);
    vault.commit(2).unwrap();
    vault.open_key(2, Tier::Boot, &mut key).unwrap();
    assert_eq!(key, staged);
}

/// Somebody with the auth secret increments the counter: the seals are dead, which is told; the next generation works.
#[test]
fn a_counter_ahead_is_told() {
    let chip = Swtpm::start();
    let mut vault = vault(&chip);
    stage(&mut vault, 1);
    vault.commit(1).unwrap();
    vault.link(|link| Ok(link.counter.increment(link.session)?)).unwrap();
    assert_eq!(vault.generation().unwrap().current, 2);
    let mut key = [0; 32];
    assert_eq!(vault.open_key(1, Tier::Boot, &mut key).unwrap_err().status, Status::NoGeneration);
    let error = vault.open_key(2, Tier::Boot, &mut key).unwrap_err();
    assert_eq!(error.status, Status::NoGeneration);
    assert!(error.message.contains("the TPM's counter is ahead"), "{error}");
    assert!(vault.health().unwrap().detail.contains("the TPM's counter is ahead"));
    let staged = stage(&mut vault, 3);
    vault.commit(3).unwrap();
    vault.open_key(3, Tier::Boot, &mut key).unwrap();
    assert_eq!(key, staged);
}

/// Nothing is left in the chip by any call, failed ones included.
#[test]
fn nothing_stays_in_the_chip() {
    let chip = Swtpm::start();
    let mut vault = vault(&chip);
    let mut key = [0; 32];
    let mut signature = [0; 64];
    for round in 1..=20 {
        let _ = vault.identity_public(None, round > 2);
        let _ = vault.identity_sign(b"message", &mut signature);
        let _ = vault.attest(mayfly_evidence::exchange::STEP_KEYS, &[]);
        let _ = vault.attest(mayfly_evidence::exchange::STEP_COUNTER, &[round; 32]);
        let _ = vault.open_key(u64::from(round), Tier::Boot, &mut key);
        let _ = vault.stage(u64::from(round) + 1, Tier::Window, &mut key);
        stage(&mut vault, round.into());
        let _ = vault.commit(u64::from(round) + 1);
        vault.commit(round.into()).unwrap();
        let _ = vault.open_key(round.into(), Tier::PerRelease, &mut key);
        vault.health().unwrap();
        let _ = vault.control("policy", &[]);
        assert_eq!(chip.occupied(), 0, "after round {round}");
    }
}

/// The limit of the issue: a cold open within 20 ms. Other work on the machine may not make it fail, so the best of some
/// rounds counts; the figures themselves come from the example `figures`.
#[test]
fn a_cold_open_is_quick() {
    const LIMIT_MS: u128 = 20;
    let chip = Swtpm::start();
    let mut vault = vault(&chip);
    stage(&mut vault, 1);
    vault.commit(1).unwrap();
    let mut key = [0; 32];
    let mut best = u128::MAX;
    for _ in 0..200 {
        let started = std::time::Instant::now();
        vault.open_key(1, Tier::Boot, &mut key).unwrap();
        best = best.min(started.elapsed().as_millis());
        if best < LIMIT_MS {
            println!("{best} ms");
            return;
        }
    }
    panic!("the best of 200 took {best} ms");
}
