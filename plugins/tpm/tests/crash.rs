//! The plugin's process is killed before and after every single TPM command of every call: afterwards exactly one
//! generation opens, with the keys that were staged for it, and the vault can go on.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

mod common;

use common::Swtpm;
use common::proxy::{Act, Proxy};
use common::{host_config, settled};
use mayfly_plugin_api::{PluginError, Status, Tier, VaultPlugin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Key = [u8; 32];

/// Most commands that any one call sends; a call that sends more would escape the test.
const COMMANDS_MAX: usize = 200;

struct Bench {
    chip: Swtpm,
    proxy: Proxy,
    vault: Arc<VaultPlugin>,
}

impl Bench {
    fn start() -> Bench {
        let chip = Swtpm::start();
        let proxy = Proxy::start(&chip);
        let config = host_config(&proxy.tcti(), &chip.dir.path().join("data"));
        let vault = Arc::new(VaultPlugin::start(&config).unwrap());
        Bench { chip, proxy, vault }
    }

    /// Kills the plugin at command `n` of what follows, before the chip sees it or before the answer is back. True in
    /// the flag once it was done.
    fn kill_at(&self, n: usize, after: bool) -> Arc<AtomicBool> {
        let done = Arc::new(AtomicBool::new(false));
        let (vault, flag) = (self.vault.clone(), done.clone());
        self.proxy.shared.restart();
        self.proxy.shared.judge(move |number, _| {
            if number != n || flag.swap(true, Ordering::SeqCst) {
                return Act::Pass;
            }
            vault.danger_kill_host();
            if after { Act::LoseAnswer } else { Act::Drop }
        });
        done
    }

    fn calm(&self) {
        self.proxy.shared.pass_all();
    }

    fn key(&self, generation: u64, tier: Tier) -> Result<Key, PluginError> {
        settled(|| self.vault.open_key(generation, tier)).map(|key| *key.expose())
    }

    /// Exactly this generation opens, with these keys.
    fn opens(&self, generation: u64, keys: &[(Tier, Key)], what: &str) {
        assert_eq!(settled(|| self.vault.generation()).unwrap().current, generation, "{what}");
        for (tier, key) in keys {
            assert_eq!(&self.key(generation, *tier).unwrap(), key, "{what}: {tier:?}");
        }
        for other in [generation.wrapping_sub(1), generation + 1] {
            let status = self.key(other, Tier::Boot).unwrap_err().status();
            assert_eq!(status, Some(Status::NoGeneration), "{what}: {other} opens while {generation} is committed");
        }
    }

    fn stage_all(&self, next: u64) -> Vec<(Tier, Key)> {
        Tier::ALL.map(|tier| (tier, *settled(|| self.vault.stage(next, tier)).unwrap().expose())).to_vec()
    }

    fn advance(&self, next: u64) -> Vec<(Tier, Key)> {
        let keys = self.stage_all(next);
        settled(|| self.vault.commit(next)).unwrap();
        keys
    }
}

/// Runs `round(n, after)` for every command of a call, before and after it, until the call came through unharmed.
fn at_every_command(mut round: impl FnMut(usize, bool) -> bool) -> usize {
    for after in [false, true] {
        let mut n = 0;
        while round(n, after) {
            n += 1;
            assert!(n < COMMANDS_MAX, "the call never ends");
        }
        if after {
            return n;
        }
    }
    unreachable!("the second pass returns")
}

#[test]
fn in_a_commit() {
    let bench = Bench::start();
    let mut current = 1;
    let mut keys = bench.advance(1);
    let (mut before, mut behind) = (0, 0);
    let commands = at_every_command(|n, after| {
        let what = format!("killed {} command {n}", if after { "after" } else { "before" });
        let next = current + 1;
        let staged = bench.stage_all(next);
        let killed = bench.kill_at(n, after);
        let answer = bench.vault.commit(next);
        bench.calm();
        let killed = killed.load(Ordering::SeqCst);
        let found = settled(|| bench.vault.generation()).unwrap();
        if found.current == next {
            behind += 1;
            bench.opens(next, &staged, &what);
        } else {
            before += 1;
            assert!(answer.is_err(), "{what}: acknowledged and gone");
            assert_eq!((found.current, found.staged), (current, Some(next)), "{what}");
            bench.opens(current, &keys, &what);
            settled(|| bench.vault.commit(next)).unwrap();
            bench.opens(next, &staged, &what);
        }
        (current, keys) = (next, staged);
        killed
    });
    println!("{commands} commands in a commit; {before} kills left the old generation, {behind} the new one");
    assert!(before > 0 && behind > 0, "the kills must fall on both sides of the commit point");
    assert_eq!(bench.chip.occupied(), 0, "something stayed in the chip");
}

#[test]
fn in_a_stage() {
    let bench = Bench::start();
    let keys = bench.advance(1);
    for tier in [Tier::Boot, Tier::PerRelease] {
        let commands = at_every_command(|n, after| {
            let what = format!("{tier:?}, killed at command {n}, after: {after}");
            let killed = bench.kill_at(n, after);
            let _ = bench.vault.stage(2, tier);
            bench.calm();
            bench.opens(1, &keys, &what);
            killed.load(Ordering::SeqCst)
        });
        println!("{commands} commands in a stage of {tier:?}");
    }
    // tiers staged before and after all this make one generation
    let staged = bench.stage_all(2);
    settled(|| bench.vault.commit(2)).unwrap();
    bench.opens(2, &staged, "after all");
    assert_eq!(bench.chip.occupied(), 0, "something stayed in the chip");
}

#[test]
fn in_a_discard() {
    let bench = Bench::start();
    let keys = bench.advance(1);
    let commands = at_every_command(|n, after| {
        let what = format!("killed at command {n}, after: {after}");
        settled(|| bench.vault.stage(2, Tier::Boot)).unwrap();
        let killed = bench.kill_at(n, after);
        let _ = bench.vault.discard_staged();
        bench.calm();
        bench.opens(1, &keys, &what);
        settled(|| bench.vault.discard_staged()).unwrap();
        assert_eq!(settled(|| bench.vault.generation()).unwrap().staged, None, "{what}");
        let status = settled(|| bench.vault.commit(2)).unwrap_err().status();
        assert_eq!(status, Some(Status::NoGeneration), "{what}");
        killed.load(Ordering::SeqCst)
    });
    println!("{commands} commands in a discard");
    let staged = bench.stage_all(2);
    settled(|| bench.vault.commit(2)).unwrap();
    bench.opens(2, &staged, "after all");
}

#[test]
fn in_an_open() {
    let bench = Bench::start();
    let keys = bench.advance(1);
    let commands = at_every_command(|n, after| {
        let killed = bench.kill_at(n, after);
        let _ = bench.vault.open_key(1, Tier::Boot);
        bench.calm();
        bench.opens(1, &keys, &format!("killed at command {n}, after: {after}"));
        killed.load(Ordering::SeqCst)
    });
    println!("{commands} commands in an open");
    assert_eq!(bench.chip.occupied(), 0, "something stayed in the chip");
}

/// A vault that is being made: whatever crashes when, the next start finishes it, and no index is left behind.
fn in_the_making(after: bool) {
    let mut n = 0;
    loop {
        let chip = Swtpm::start();
        let proxy = Proxy::start(&chip);
        let config = host_config(&proxy.tcti(), &chip.dir.path().join("data"));
        let done = Arc::new(AtomicBool::new(false));
        let flag = done.clone();
        proxy.shared.judge(move |number, _| {
            if number != n || flag.swap(true, Ordering::SeqCst) {
                return Act::Pass;
            }
            // the process cannot be named yet; to it a broken connection is the same as being killed
            if after { Act::LoseAnswer } else { Act::Drop }
        });
        let first = VaultPlugin::start(&config);
        proxy.shared.pass_all();
        let killed = done.load(Ordering::SeqCst);
        // giving a session back may fail without harm; all else must have been told
        assert!(first.is_ok() || killed, "command {n}, after: {after}");
        drop(first);
        let vault = VaultPlugin::start(&config).unwrap_or_else(|error| panic!("command {n}, {after}: {error}"));
        let key = *vault.stage(1, Tier::Boot).unwrap().expose();
        vault.commit(1).unwrap();
        assert_eq!(vault.open_key(1, Tier::Boot).unwrap().expose(), &key);
        let indices = chip.tool("getcap", &["handles-nv-index"]).unwrap();
        assert_eq!(indices.lines().count(), 3, "command {n}, after: {after}: {indices}");
        if !killed {
            break;
        }
        n += 1;
    }
    println!("{n} commands in the making of a vault");
}

#[test]
fn before_a_command_of_the_making() {
    in_the_making(false);
}

#[test]
fn after_a_command_of_the_making() {
    in_the_making(true);
}

/// The identity key is made once, or not at all.
#[test]
fn in_the_making_of_an_identity() {
    let mut n = 0;
    loop {
        let bench = Bench::start();
        let killed = bench.kill_at(n, n % 2 == 1);
        let told = bench.vault.identity_public(None, true);
        bench.calm();
        let kept = settled(|| bench.vault.identity_public(None, true)).unwrap();
        if let Ok(told) = told {
            assert_eq!(told, kept);
        }
        settled(|| bench.vault.identity_sign(b"message")).unwrap();
        if !killed.load(Ordering::SeqCst) {
            break;
        }
        n += 1;
    }
}
