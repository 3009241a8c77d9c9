//! What every vault must do.

use super::{Factory, KILL_DELAYS, Outcome, Report, Suite, ensure, refused, settled, text};
use crate::abi::{Alg, RANDOM_BYTES_MAX, SIGN_MESSAGE_BYTES_MAX, Status, Tier};
use crate::config::HostConfig;
use crate::error::PluginError;
use crate::vault::VaultPlugin;
use mayfly_secmem::Secret;
use std::path::Path;
use std::time::{Duration, Instant};

type Key = Secret<32>;

/// Runs the vault suite: [`vault_rules`], then [`vault_crashes`].
pub fn vault(factory: &Factory<'_>) -> Report {
    let mut report = vault_rules(factory);
    report.cases.extend(vault_crashes(factory).cases);
    report
}

/// The part of the suite in which nothing is killed.
pub fn vault_rules(factory: &Factory<'_>) -> Report {
    let mut suite = begin(factory);
    suite.case("describes itself", describes);
    suite.case("makes one identity and keeps it", identity);
    suite.case("signs by its identity", signs);
    suite.case("starts without a generation", starts_empty);
    suite.case("opens a generation only once it is committed", commit_opens);
    suite.case("keeps tiers apart", tiers);
    suite.case("opens exactly one generation after each revocation", revokes);
    suite.case("stages the next generation only", stages_next_only);
    suite.case("stages again and discards", stages_again);
    suite.case("commits twice without harm, and nothing that is not staged", commit_is_idempotent);
    suite.case("tells the truth about a folder that was put back", rolled_back);
    suite.case("has one user at a time", one_user);
    suite.case("gives random bytes", random);
    suite.case("is healthy", healthy);
    suite.case("serves threads one after the other", threads);
    suite.report
}

/// The part in which the plugin's process is killed again and again: the longer one.
pub fn vault_crashes(factory: &Factory<'_>) -> Report {
    let mut suite = begin(factory);
    suite.case("loses nothing when killed between any two calls", killed_between_calls);
    suite.case("is in exactly one generation when killed in a commit", killed_in_commit);
    suite.case("can stage again when killed in a stage", killed_in_stage);
    suite.report
}

fn begin<'a>(factory: &'a Factory<'a>) -> Suite<'a> {
    let plugin = VaultPlugin::start(&factory("name"));
    Suite::new(plugin.map_or_else(|_| "vault".to_owned(), |vault| format!("vault({})", vault.name())), factory)
}

fn start(config: &HostConfig) -> Result<VaultPlugin, String> {
    VaultPlugin::start(config).map_err(text)
}

fn same(one: &Key, other: &Key) -> bool {
    mayfly_secmem::ct_eq(one.expose(), other.expose())
}

/// Stages every tier on offer and commits; gives the keys.
fn advance(vault: &VaultPlugin) -> Result<(u64, Vec<(Tier, Key)>), String> {
    let next = vault.generation().map_err(text)?.current + 1;
    let keys = stage_all(vault, next)?;
    vault.commit(next).map_err(text)?;
    Ok((next, keys))
}

fn stage_all(vault: &VaultPlugin, next: u64) -> Result<Vec<(Tier, Key)>, String> {
    let tiers = vault.describe().map_err(text)?.tiers;
    tiers.into_iter().map(|tier| Ok((tier, vault.stage(next, tier).map_err(text)?))).collect()
}

/// Exactly `generation` opens, with these keys; its neighbours do not.
fn only_opens(vault: &VaultPlugin, generation: u64, keys: &[(Tier, Key)]) -> Result<(), String> {
    let current = settled(|| vault.generation())?.current;
    ensure!(current == generation, "generation {current}, expected {generation}");
    for (tier, key) in keys {
        let opened = settled(|| vault.open_key(generation, *tier))?;
        ensure!(same(&opened, key), "another key for {tier:?} in generation {generation}");
        for other in [generation.wrapping_sub(1), generation + 1, generation + 2, 0, u64::MAX] {
            let what = format!("open_key({other}) while {generation} is committed");
            refused(&what, vault.open_key(other, *tier), &[Status::NoGeneration])?;
        }
    }
    Ok(())
}

fn describes(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let description = vault.describe().map_err(text)?;
    ensure!(!description.hardware.is_empty(), "hardware is empty");
    ensure!(!description.security_note.is_empty(), "security_note is empty: say what is not protected");
    ensure!(description.tiers.contains(&Tier::Boot), "the boot tier is not offered");
    ensure!(vault.describe().map_err(text)? == description, "a second describe says something else");
    let kind = if description.software_only { "software only" } else { "hardware" };
    Ok(format!("{} {}, {kind}, {}", vault.name(), vault.version(), description.hardware))
}

fn identity(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    refused("the identity before it is made", vault.identity_public(None, false), &[Status::NoIdentity])?;
    refused("signing before it is made", vault.identity_sign(b"x"), &[Status::NoIdentity])?;
    let offered = vault.describe().map_err(text)?.identity_algs;
    for alg in [Alg::Ed25519, Alg::P256] {
        if !offered.contains(&alg) {
            refused(
                "an algorithm that is not offered",
                vault.identity_public(Some(alg), true),
                &[Status::Unsupported],
            )?;
        }
    }
    let made = vault.identity_public(Some(offered[0]), true).map_err(text)?;
    ensure!(vault.identity_public(None, true).map_err(text)? == made, "asking again gives another key");
    vault.danger_kill_host();
    ensure!(settled(|| vault.identity_public(None, false))? == made, "another key after a crash");
    drop(vault);
    let again = start(config)?;
    ensure!(again.identity_public(None, true).map_err(text)? == made, "another key after a restart");
    Ok(format!("{:?}", made.alg))
}

fn signs(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    vault.identity_public(None, true).map_err(text)?;
    // the facade verifies each signature
    for length in [0, 1, 32, 33, 1000, SIGN_MESSAGE_BYTES_MAX] {
        vault.identity_sign(&vec![0x61; length]).map_err(|error| format!("{length} bytes: {error}"))?;
    }
    let too_long = vault.identity_sign(&vec![0; SIGN_MESSAGE_BYTES_MAX + 1]);
    ensure!(matches!(too_long, Err(PluginError::Argument { .. })), "a message beyond the limit was taken");
    Ok(String::new())
}

fn starts_empty(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let found = vault.generation().map_err(text)?;
    ensure!(found.current == 0 && found.staged.is_none(), "{found:?} in a new folder");
    for generation in [0, 1] {
        refused("a key of no generation", vault.open_key(generation, Tier::Boot), &[Status::NoGeneration])?;
        refused("a commit of nothing", vault.commit(generation), &[Status::NoGeneration])?;
    }
    Ok(String::new())
}

fn commit_opens(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let keys = stage_all(&vault, 1)?;
    let found = vault.generation().map_err(text)?;
    ensure!(found.current == 0 && found.staged == Some(1), "{found:?} after staging 1");
    refused("a staged key before the commit", vault.open_key(1, Tier::Boot), &[Status::NoGeneration])?;
    vault.commit(1).map_err(text)?;
    ensure!(vault.generation().map_err(text)?.staged.is_none(), "still staged after the commit");
    only_opens(&vault, 1, &keys)?;
    Ok(String::new())
}

fn tiers(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let (_, keys) = advance(&vault)?;
    for (index, (tier, key)) in keys.iter().enumerate() {
        for (other_tier, other) in &keys[index + 1..] {
            ensure!(!same(key, other), "{tier:?} and {other_tier:?} have one key");
        }
    }
    vault.stage(2, Tier::Boot).map_err(text)?;
    vault.commit(2).map_err(text)?;
    for (tier, _) in keys.iter().filter(|(tier, _)| *tier != Tier::Boot) {
        refused("a tier that was not staged", vault.open_key(2, *tier), &[Status::NotFound])?;
    }
    Ok(format!("{} tiers", keys.len()))
}

fn revokes(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let mut before: Vec<Key> = Vec::new();
    for expected in 1..=4 {
        let (generation, keys) = advance(&vault)?;
        ensure!(generation == expected, "generation {generation} after {expected} commits");
        only_opens(&vault, generation, &keys)?;
        for (_, key) in keys {
            ensure!(before.iter().all(|old| !same(old, &key)), "a key of an earlier generation came again");
            before.push(key);
        }
    }
    drop(vault);
    let again = start(config)?;
    ensure!(again.generation().map_err(text)?.current == 4, "another generation after a restart");
    refused("a revoked key after a restart", again.open_key(3, Tier::Boot), &[Status::NoGeneration])?;
    Ok(String::new())
}

fn stages_next_only(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    advance(&vault)?;
    for next in [0, 1, 3, u64::MAX] {
        refused(&format!("stage({next}) over 1"), vault.stage(next, Tier::Boot), &[Status::Invalid])?;
    }
    Ok(String::new())
}

fn stages_again(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let (_, keys) = advance(&vault)?;
    vault.discard_staged().map_err(text)?;
    let first = vault.stage(2, Tier::Boot).map_err(text)?;
    vault.discard_staged().map_err(text)?;
    vault.discard_staged().map_err(text)?;
    ensure!(vault.generation().map_err(text)?.staged.is_none(), "staged after a discard");
    refused("a commit of what was discarded", vault.commit(2), &[Status::NoGeneration])?;
    only_opens(&vault, 1, &keys)?;
    let second = vault.stage(2, Tier::Boot).map_err(text)?;
    let third = vault.stage(2, Tier::Boot).map_err(text)?;
    ensure!(!same(&first, &second) && !same(&second, &third), "staging again gave the same key");
    vault.commit(2).map_err(text)?;
    only_opens(&vault, 2, &[(Tier::Boot, third)])?;
    Ok(String::new())
}

fn commit_is_idempotent(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let (_, keys) = advance(&vault)?;
    vault.commit(1).map_err(text)?;
    for next in [0, 2, 3, u64::MAX] {
        refused(&format!("commit({next}) with nothing staged over 1"), vault.commit(next), &[Status::NoGeneration])?;
    }
    only_opens(&vault, 1, &keys)?;
    Ok(String::new())
}

fn killed_between_calls(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let kill = || vault.danger_kill_host();
    vault.identity_public(None, true).map_err(text)?;
    for next in 1..=3 {
        kill();
        let keys = {
            let mut keys = Vec::new();
            for tier in settled(|| vault.describe())?.tiers {
                keys.push((tier, settled(|| vault.stage(next, tier))?));
                kill();
            }
            keys
        };
        let found = settled(|| vault.generation())?;
        ensure!(found.current == next - 1, "a stage changed the committed generation: {found:?}");
        ensure!(found.staged == Some(next), "what was staged is gone after a crash: {found:?}");
        kill();
        settled(|| vault.commit(next))?;
        kill();
        only_opens(&vault, next, &keys)?;
    }
    Ok(String::new())
}

/// When calls that usually take so long are killed, after their start: all along them, also where a chip is slow, and after their end.
fn kill_delays(usual: Duration) -> [Duration; KILL_DELAYS.len()] {
    const WITHIN: u32 = KILL_DELAYS.len() as u32 - 2;
    std::array::from_fn(|step| Duration::from_micros(KILL_DELAYS[step]).max(usual * step as u32 / WITHIN))
}

/// The shorter of two: the host may be held up once.
fn usual(mut call: impl FnMut() -> Result<Duration, String>) -> Result<Duration, String> {
    Ok(call()?.min(call()?))
}

fn killed_in_commit(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    advance(&vault)?;
    let (mut current, mut keys) = (0, Vec::new());
    let usual = usual(|| {
        current = vault.generation().map_err(text)?.current + 1;
        keys = stage_all(&vault, current)?;
        let began = Instant::now();
        vault.commit(current).map_err(text)?;
        Ok(began.elapsed())
    })?;
    let mut before_it = 0;
    for delay in kill_delays(usual) {
        let next = current + 1;
        let mut staged = Vec::new();
        for tier in settled(|| vault.describe())?.tiers {
            staged.push((tier, settled(|| vault.stage(next, tier))?));
        }
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(delay);
                vault.danger_kill_host();
            });
            vault.commit(next)
        });
        let found = settled(|| vault.generation())?;
        if found.current == next {
            only_opens(&vault, next, &staged)?;
        } else {
            before_it += 1;
            ensure!(answer.is_err(), "commit {next} was acknowledged and is gone");
            ensure!(found.staged == Some(next), "neither committed nor staged: {found:?}");
            only_opens(&vault, current, &keys)?;
            settled(|| vault.commit(next))?;
            only_opens(&vault, next, &staged)?;
        }
        (current, keys) = (next, staged);
    }
    Ok(format!("{} kills in commits of {usual:.1?}, {before_it} before the commit point", KILL_DELAYS.len()))
}

fn killed_in_stage(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let (current, keys) = advance(&vault)?;
    let usual = usual(|| {
        let began = Instant::now();
        vault.stage(current + 1, Tier::Boot).map_err(text)?;
        Ok(began.elapsed())
    })?;
    for delay in kill_delays(usual) {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(delay);
                vault.danger_kill_host();
            });
            // both are fine: the key, or the news of the crash
            let _ = vault.stage(current + 1, Tier::Boot);
        });
        only_opens(&vault, current, &keys)?;
    }
    let last = settled(|| vault.stage(current + 1, Tier::Boot))?;
    vault.commit(current + 1).map_err(text)?;
    only_opens(&vault, current + 1, &[(Tier::Boot, last)])?;
    Ok(format!("{} kills in stages of {usual:.1?}", KILL_DELAYS.len()))
}

fn rolled_back(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let software = vault.describe().map_err(text)?.software_only;
    let (old, _) = advance(&vault)?;
    drop(vault);
    let backup = config.data_dir.with_extension("backup");
    copy_folder(&config.data_dir, &backup).map_err(|error| format!("copying the folder: {error}"))?;
    let vault = start(config)?;
    advance(&vault)?;
    drop(vault);
    std::fs::remove_dir_all(&config.data_dir).map_err(|error| error.to_string())?;
    copy_folder(&backup, &config.data_dir).map_err(|error| format!("copying the folder: {error}"))?;
    let vault = match VaultPlugin::start(config) {
        Ok(vault) => vault,
        Err(error) => return Ok(format!("refuses to start: {error}")),
    };
    let opens = vault.open_key(old, Tier::Boot).is_ok();
    let told = vault.generation().map(|found| found.current);
    ensure!(software || !opens, "a revoked generation opens from a copied folder, yet it claims to be hardware");
    // the ledger's record of the acknowledged generation can only catch what the vault tells
    ensure!(!opens || told.is_ok_and(|told| told == old), "it opens generation {old} but does not say so");
    let seen =
        if opens { "the old generation opens and is reported: the ledger's check refuses it" } else { "stays dead" };
    Ok(seen.to_owned())
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn one_user(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let (_, keys) = advance(&vault)?;
    match VaultPlugin::start(config) {
        Ok(_) => return Err("a second one opened the same folder".to_owned()),
        Err(error) => ensure!(error.status() == Some(Status::Busy), "expected Busy, got: {error}"),
    }
    only_opens(&vault, 1, &keys)?;
    drop(vault);
    start(config).map(|_| String::new())
}

fn random(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    let mut seen = Vec::new();
    for length in [1, 16, 32, RANDOM_BYTES_MAX, RANDOM_BYTES_MAX + 1] {
        let mut bytes = vec![0; length];
        vault.random(&mut bytes).map_err(|error| format!("{length} bytes: {error}"))?;
        if length >= 16 {
            let head = bytes[..16].to_vec();
            ensure!(!seen.contains(&head), "the same bytes came twice");
            seen.push(head);
        }
    }
    Ok(String::new())
}

fn healthy(config: &HostConfig) -> Outcome {
    let health = start(config)?.health().map_err(text)?;
    ensure!(health.state == crate::abi::HealthState::Ok, "{health:?}");
    Ok(String::new())
}

fn threads(config: &HostConfig) -> Outcome {
    let vault = start(config)?;
    vault.identity_public(None, true).map_err(text)?;
    let (generation, keys) = advance(&vault)?;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let (vault, keys) = (&vault, &keys);
                scope.spawn(move || -> Result<(), String> {
                    for round in 0..10 {
                        let (tier, key) = &keys[(worker + round) % keys.len()];
                        ensure!(same(&vault.open_key(generation, *tier).map_err(text)?, key), "keys got mixed up");
                        vault.identity_sign(&[worker as u8, round as u8]).map_err(text)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
    })?;
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_calls_are_killed_all_along() {
        for usual_ms in [0, 1, 3, 15, 40, 600, 5000] {
            let usual = Duration::from_millis(usual_ms);
            let delays = kill_delays(usual);
            assert!(delays.is_sorted() && delays[0].is_zero() && delays[15] > usual, "{usual_ms} ms: {delays:?}");
            if usual_ms > 0 {
                let longest = delays.windows(2).map(|two| two[1].min(usual).saturating_sub(two[0])).max();
                assert!(longest.is_some_and(|gap| gap <= usual / 2), "{usual_ms} ms: {delays:?}");
                let within = delays.iter().filter(|delay| (usual / 10..usual).contains(*delay)).count();
                assert!(within >= 4, "{usual_ms} ms: {delays:?}");
            }
        }
    }
}
