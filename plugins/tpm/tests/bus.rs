//! What somebody who listens on the bus, or looks into the plugin's process, gets.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

mod common;

use common::proxy::Proxy;
use common::{Swtpm, host_config};
use mayfly_plugin_api::{Tier, VaultPlugin};

fn found(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

/// Everything that crosses the bus in a vault's life is recorded; no vault key, no half, no auth value is in it.
#[test]
fn no_secret_crosses_the_bus() {
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let data = chip.dir.path().join("data");
    let vault = VaultPlugin::start(&host_config(&proxy.tcti(), &data)).unwrap();
    vault.identity_public(None, true).unwrap();
    let mut secrets: Vec<Vec<u8>> = Vec::new();
    for next in 1..=3 {
        for tier in Tier::ALL {
            secrets.push(vault.stage(next, tier).unwrap().expose().to_vec());
        }
        vault.commit(next).unwrap();
        for tier in Tier::ALL {
            secrets.push(vault.open_key(next, tier).unwrap().expose().to_vec());
        }
        vault.identity_sign(b"message").unwrap();
    }
    let mut random = [0; 32];
    vault.random(&mut random).unwrap();
    secrets.push(random.to_vec());
    secrets.push(std::fs::read(data.join("auth")).unwrap());
    let traffic = proxy.shared.traffic.lock().unwrap().clone();
    assert!(traffic.len() > 10_000, "{} bytes recorded", traffic.len());
    for secret in &secrets {
        for piece in secret.chunks(8) {
            assert_eq!(found(&traffic, piece), 0, "eight bytes of a secret crossed the bus");
        }
    }
    // a canary: what is not secret does cross, so the search works
    let blob = std::fs::read(data.join("generation")).unwrap();
    assert!(found(&traffic, &blob[120..152]) > 0, "the sealed blob itself is seen");
}

const START_SESSION: u32 = 0x0176;
const RH_NULL: u32 = 0x4000_0007;
const RS_PASSWORD: u32 = 0x4000_0009;
const ST_SESSIONS: [u8; 2] = [0x80, 0x02];
const DECRYPT: u8 = 0x20;
const ENCRYPT: u8 = 0x40;
/// Commands with the number of their handles, and what of them must be encrypted.
const SECRET: [(u32, usize, u8); 6] = [
    (0x012a, 1, DECRYPT),           // NV_DefineSpace: an auth value
    (0x0137, 2, DECRYPT),           // NV_Write: a half
    (0x014e, 2, ENCRYPT),           // NV_Read: a half
    (0x0153, 1, DECRYPT | ENCRYPT), // Create: an auth value, a half
    (0x015e, 1, ENCRYPT),           // Unseal: a half
    (0x017b, 0, ENCRYPT),           // GetRandom
];

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Bytes of the sized field at `at`, and where the next field begins.
fn sized(bytes: &[u8], at: usize) -> (&[u8], usize) {
    let end = at + 2 + usize::from(u16::from_be_bytes(bytes[at..at + 2].try_into().unwrap()));
    (&bytes[at + 2..end], end)
}

/// Every session of a vault's life, as it is on the bus: salted, with a cipher; and every command with a secret in it is
/// encrypted on that side. A session without salt would have a key that everybody knows.
#[test]
fn every_session_is_salted_and_every_secret_encrypted() {
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let config = host_config(&proxy.tcti(), &chip.dir.path().join("data"));
    let vault = VaultPlugin::start(&config).unwrap();
    vault.identity_public(None, true).unwrap();
    vault.stage(1, Tier::Boot).unwrap();
    vault.commit(1).unwrap();
    vault.open_key(1, Tier::Boot).unwrap();
    vault.stage(2, Tier::Boot).unwrap();
    vault.discard_staged().unwrap();
    vault.identity_sign(b"message").unwrap();
    vault.random(&mut [0; 32]).unwrap();
    vault.attest(mayfly_evidence::exchange::STEP_KEYS, &[]).unwrap();
    vault.attest(mayfly_evidence::exchange::STEP_COUNTER, &[1; 32]).unwrap();
    vault.health().unwrap();
    vault.control("danger-forget", &[]).unwrap();
    let traffic = proxy.shared.traffic.lock().unwrap().clone();

    let (mut rest, mut sessions, mut secrets) = (traffic.as_slice(), 0, 0);
    while !rest.is_empty() {
        // a command, then its answer
        let (command, after) = rest.split_at(word(rest, 2) as usize);
        rest = &after[word(after, 2) as usize..];
        let code = word(command, 6);
        if code == START_SESSION {
            let (key, bind) = (word(command, 10), word(command, 14));
            let (nonce, at) = sized(command, 18);
            let (salt, at) = sized(command, at);
            assert_ne!(key, RH_NULL, "a session without a key to salt it");
            assert_eq!(bind, RH_NULL);
            assert!(nonce.len() >= 16 && salt.len() >= 64, "nonce {}, salt {}", nonce.len(), salt.len());
            // kind, AES-128-CFB, SHA-256
            assert_eq!(command[at + 1..], [0, 0x06, 0, 128, 0, 0x43, 0, 0x0b]);
            sessions += 1;
        }
        let Some((_, handles, sides)) = SECRET.iter().find(|(secret, ..)| *secret == code) else { continue };
        assert_eq!(command[..2], ST_SESSIONS, "{code:#x} without a session");
        let mut at = 10 + 4 * handles + 4;
        let end = at + word(command, at - 4) as usize;
        let mut encrypted = 0;
        while at < end {
            let session = word(command, at);
            assert_ne!(session, RS_PASSWORD, "{code:#x} with a password");
            let (_, after) = sized(command, at + 4);
            encrypted |= command[after] & (DECRYPT | ENCRYPT);
            at = sized(command, after + 1).1;
        }
        assert_eq!(encrypted & sides, *sides, "{code:#x} with a secret in the clear");
        secrets += 1;
    }
    println!("{sessions} sessions, {secrets} commands with secrets");
    assert!(sessions > 15 && secrets > 15, "{sessions} sessions, {secrets} commands with secrets");
}

/// The halves never cross in the clear either. They are not told to us, so they are read where they lie: `N_g` from the
/// chip by its auth value, which shows in the same breath that who has the auth secret and the chip can read it.
#[test]
fn the_stored_half_does_not_cross_either() {
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let data = chip.dir.path().join("data");
    let vault = VaultPlugin::start(&host_config(&proxy.tcti(), &data)).unwrap();
    vault.stage(1, Tier::Boot).unwrap();
    vault.commit(1).unwrap();
    vault.open_key(1, Tier::Boot).unwrap();
    let traffic = proxy.shared.traffic.lock().unwrap().clone();
    let state = std::fs::read(chip.state().join("tpm2-00.permall")).unwrap();
    // whatever of the chip's own memory (without its zeros and ones) crossed the bus in pieces of 16 bytes: Names and
    // public keys do, a half must not; so look at the index's data, which lies after its auth value in swtpm's state
    let index = 0x0180_4d02u32.to_le_bytes();
    let places: Vec<usize> = (0..state.len() - 4).filter(|at| state[*at..*at + 4] == index).collect();
    let big_endian = 0x0180_4d02u32.to_be_bytes();
    let more: Vec<usize> = (0..state.len() - 4).filter(|at| state[*at..*at + 4] == big_endian).collect();
    let places = [places, more].concat();
    assert!(!places.is_empty(), "the index is in swtpm's state");
    // where an index's own public area ends, what follows must never have been seen
    let mut judged = 0;
    for place in places {
        let after = &state[(place + 16).min(state.len())..(place + 160).min(state.len())];
        for window in after.windows(16) {
            let various = window.iter().collect::<std::collections::HashSet<_>>().len();
            if various > 11 {
                judged += 1;
                assert_eq!(found(&traffic, window), 0, "a piece of the index's memory crossed the bus");
            }
        }
    }
    assert!(judged > 30, "{judged} windows of random bytes were judged");
}

/// After each call the plugin's process holds no vault key and no half: its whole memory is searched from outside.
#[test]
fn no_key_stays_in_the_process() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    vault.identity_public(None, true).unwrap();
    let mut keys = Vec::new();
    for tier in Tier::ALL {
        keys.push(*vault.stage(1, tier).unwrap().expose());
    }
    vault.commit(1).unwrap();
    for tier in Tier::ALL {
        keys.push(*vault.open_key(1, tier).unwrap().expose());
    }
    let Some(memory) = memory_of(vault.host_pid().unwrap()) else {
        println!("not allowed to look into another process: skipped");
        return;
    };
    // a canary that must be there: the vault's public identity
    let auth = std::fs::read(chip.dir.path().join("data/auth")).unwrap();
    assert!(found(&memory, &auth) > 0, "the search finds what is there (the auth secret, which the plugin keeps)");
    for key in keys {
        for piece in key.chunks(16) {
            assert_eq!(found(&memory, piece), 0, "a piece of a vault key stayed in the process");
        }
    }
}

/// All readable memory of a process, where the kernel lets us.
fn memory_of(pid: u32) -> Option<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut all = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (range, rights) = (fields.next()?, fields.next()?);
        if !rights.starts_with("rw") {
            continue;
        }
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut bytes = vec![0; (to - from) as usize];
        // secret memory is readable by nobody, which is the point
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            all.extend_from_slice(&bytes);
        }
    }
    (!all.is_empty()).then_some(all)
}
