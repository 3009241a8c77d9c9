//! Chips that are slow, stuck, gone or talk nonsense, and thousands of calls: nothing is left behind, nothing is said that
//! sends people to enrol a device anew.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

mod common;

use common::proxy::{Act, Proxy, refusal};
use common::{Swtpm, host_config, settled};
use mayfly_plugin_api::{HealthState, HostConfig, PluginError, Status, Tier, VaultPlugin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Rounds of the long test; each has ten calls, five of them refused.
const ROUNDS: usize = 250;
/// After these a process has made its caches.
const ROUNDS_WARM: usize = 50;
/// What a process may grow by in all later rounds: less than a byte per call.
const GROWTH_KIB_MAX: u64 = 512;

const FLUSH: u32 = 0x0165;
const GET_CAPABILITY: u32 = 0x017a;

type Key = [u8; 32];

fn advance(vault: &VaultPlugin, next: u64) -> Key {
    let key = *vault.stage(next, Tier::Boot).unwrap().expose();
    vault.commit(next).unwrap();
    key
}

fn key(vault: &VaultPlugin, generation: u64) -> Result<Key, PluginError> {
    vault.open_key(generation, Tier::Boot).map(|key| *key.expose())
}

fn behind(proxy: &Proxy, chip: &Swtpm) -> HostConfig {
    host_config(&proxy.tcti(), &chip.dir.path().join("data"))
}

/// Anonymous memory, KiB, and open files of a process.
fn holds(pid: u32) -> (u64, usize) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let memory = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (memory, std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count())
}

/// Calls that are done, refused by us, refused by the chip, and cut off on the bus: the chip is as empty as before after
/// each round, and the process does not grow.
#[test]
fn thousands_of_calls_leave_nothing() {
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&behind(&proxy, &chip)).unwrap();
    vault.identity_public(None, true).unwrap();
    let good = advance(&vault, 1);
    let pid = vault.host_pid().unwrap();
    let mut warm = None;
    for round in 0..ROUNDS {
        assert_eq!(key(&vault, 1).unwrap(), good);
        vault.identity_sign(b"message").unwrap();
        vault.generation().unwrap();
        vault.random(&mut [0; 32]).unwrap();
        assert_eq!(vault.health().unwrap().state, HealthState::Ok);
        assert!(key(&vault, 2).is_err(), "not committed");
        assert!(vault.commit(9).is_err(), "not staged");
        assert!(vault.attest(99, &[]).is_err(), "no such step");
        // in every third round the connection breaks at the next command of an open, and the chip refuses it in the others
        let n = round / 3 % 10;
        let act = round % 3;
        proxy.shared.restart();
        proxy.shared.judge(move |number, _| match act {
            0 if number == n => Act::LoseAnswer,
            1 if number == n => Act::Forge(refusal(0x908)),
            2 if number == n => Act::Forge(refusal(0x101)),
            _ => Act::Pass,
        });
        let _ = key(&vault, 1);
        proxy.shared.pass_all();
        // each of the 30 ways once; later rounds are for the process
        if round < 30 || round % 25 == 0 {
            assert_eq!(chip.occupied(), 0, "after round {round}: way {act} at command {n}");
        }
        if round == ROUNDS_WARM {
            warm = Some(holds(pid));
        }
    }
    assert_eq!(chip.occupied(), 0);
    assert_eq!(vault.host_pid(), Some(pid), "all in one process");
    let ((memory_warm, files_warm), (memory, files)) = (warm.unwrap(), holds(pid));
    println!("{memory_warm} KiB after {ROUNDS_WARM} rounds, {memory} KiB after {ROUNDS}; {files} open files");
    assert_eq!(files, files_warm, "open files");
    assert!(memory <= memory_warm + GROWTH_KIB_MAX, "from {memory_warm} to {memory} KiB");
}

/// A discrete chip takes a tenth of a second a command.
#[test]
fn a_slow_chip_works() {
    const DELAY: Duration = Duration::from_millis(100);
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    drop(VaultPlugin::start(&behind(&proxy, &chip)).unwrap());
    proxy.shared.judge(|_, _| {
        std::thread::sleep(DELAY);
        Act::Pass
    });
    let vault = VaultPlugin::start(&behind(&proxy, &chip)).unwrap();
    let good = advance(&vault, 1);
    proxy.shared.restart();
    let started = Instant::now();
    assert_eq!(key(&vault, 1).unwrap(), good);
    println!("{} commands in {:?}", proxy.shared.count(), started.elapsed());
    assert!(started.elapsed() >= DELAY * proxy.shared.count() as u32, "the delay was there");
    assert!(proxy.shared.count() <= 10, "each command counts on a slow chip: {}", proxy.shared.count());
    vault.identity_public(None, true).unwrap();
    vault.identity_sign(b"message").unwrap();
    assert_eq!(vault.health().unwrap().state, HealthState::Ok);
}

/// A command that never comes back: the call ends within its limit, so does each further one while the chip hangs, and
/// when the chip answers again all goes on.
#[test]
fn a_chip_that_hangs_is_told_in_time() {
    const LIMIT: Duration = Duration::from_secs(4);
    /// For a machine with much else to do.
    const SLACK: Duration = Duration::from_secs(10);
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&HostConfig { call_timeout: LIMIT, ..behind(&proxy, &chip) }).unwrap();
    let good = advance(&vault, 1);
    let hangs = Arc::new(AtomicBool::new(true));
    let stuck = hangs.clone();
    proxy.shared.judge(move |_, _| {
        while stuck.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Act::Drop
    });
    for _ in 0..2 {
        let started = Instant::now();
        let error = key(&vault, 1).unwrap_err();
        assert!(started.elapsed() < LIMIT + SLACK, "{:?}", started.elapsed());
        assert!(matches!(error, PluginError::TimedOut { .. } | PluginError::Restarting { .. }), "{error}");
    }
    proxy.shared.pass_all_after(&hangs);
    assert_eq!(settled(|| key(&vault, 1)).unwrap(), good);
    assert_eq!(vault.health().unwrap().state, HealthState::Ok);
    assert_eq!(chip.occupied(), 0);
}

/// A chip that is off, refuses everything, or talks nonsense is not another chip: nobody is told to enrol anew, and no
/// file is called damaged.
#[test]
fn a_chip_out_of_reach_is_never_a_lost_one() {
    let mut chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&behind(&proxy, &chip)).unwrap();
    vault.identity_public(None, true).unwrap();
    let good = advance(&vault, 1);
    let long = [&[0x80, 0x01, 0, 0, 0x40, 0][..], &[0; 0x4000 - 6]].concat();
    let answers: [(&str, Vec<u8>, Option<Status>); 9] = [
        ("not started", refusal(0x100), Some(Status::Io)),
        ("failure mode", refusal(0x101), Some(Status::Io)),
        ("asks to try again", refusal(0x922), Some(Status::Transient)),
        ("busy with its tests", refusal(0x90a), Some(Status::Transient)),
        ("locked out", refusal(0x921), Some(Status::Lockout)),
        ("resource manager has no room", refusal(0x000c_0903), Some(Status::Transient)),
        ("nonsense", vec![0xff; 64], Some(Status::Io)),
        ("a head cut short", vec![0x80, 0x01, 0], Some(Status::Io)),
        ("longer than any answer", long, Some(Status::Io)),
    ];
    let check = |what: &str, error: PluginError, expected: Option<Status>| {
        assert!(
            !matches!(error.status(), Some(Status::VaultLost | Status::Corrupt | Status::PolicyPending)),
            "{what}: {error}"
        );
        if let (Some(expected), Some(status)) = (expected, error.status()) {
            assert_eq!(status, expected, "{what}: {error}");
        }
    };
    // everything, or all but the look for strays: then the plugin goes on to ask which chip it is
    let spared = |all: bool, code: u32| !all && matches!(code, GET_CAPABILITY | FLUSH);
    for (what, answer, expected) in &answers {
        for all in [true, false] {
            let answer = answer.clone();
            proxy.shared.judge(move |_, code| if spared(all, code) { Act::Pass } else { Act::Forge(answer.clone()) });
            check(what, key(&vault, 1).unwrap_err(), *expected);
            check(what, vault.generation().unwrap_err(), *expected);
            check(what, vault.identity_sign(b"x").unwrap_err(), *expected);
            check(what, vault.stage(2, Tier::Boot).map(|_| ()).unwrap_err(), *expected);
            check(what, vault.control("policy", &[]).unwrap_err(), *expected);
            let state = vault.health().unwrap().state;
            assert!(matches!(state, HealthState::Down | HealthState::Lockout), "{what}: {state:?}");
            proxy.shared.pass_all();
            assert_eq!(key(&vault, 1).unwrap(), good, "{what}, and well again");
        }
    }
    drop(vault);
    for (what, answer, expected) in &answers {
        for all in [true, false] {
            let answer = answer.clone();
            proxy.shared.judge(move |_, code| if spared(all, code) { Act::Pass } else { Act::Forge(answer.clone()) });
            check(what, VaultPlugin::start(&behind(&proxy, &chip)).map(|_| ()).unwrap_err(), *expected);
        }
    }
    proxy.shared.pass_all();
    chip.off();
    check("off", VaultPlugin::start(&chip.config("data")).map(|_| ()).unwrap_err(), Some(Status::Io));
    chip.on();
    assert_eq!(key(&chip.plugin("data"), 1).unwrap(), good);
}
