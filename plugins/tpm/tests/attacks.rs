//! Attacks and faults, each with what must happen: the rows that can run on a software TPM.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

mod common;

use common::proxy::{Act, Proxy};
use common::{Swtpm, copy_folder, host_config, settled};
use mayfly_evidence::approval::Approval;
use mayfly_evidence::pcr::{self, Selection};
use mayfly_plugin_api::{HealthState, HostConfig, PluginError, Status, Tier, VaultPlugin};
use p256::ecdsa::SigningKey;
use p256::ecdsa::signature::Signer;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Key = [u8; 32];

const INCREMENT: u32 = 0x0134;
const FLUSH: u32 = 0x0165;

fn advance(vault: &VaultPlugin, next: u64) -> Key {
    let key = *vault.stage(next, Tier::Boot).unwrap().expose();
    vault.commit(next).unwrap();
    key
}

fn key(vault: &VaultPlugin, generation: u64) -> Result<Key, PluginError> {
    vault.open_key(generation, Tier::Boot).map(|key| *key.expose())
}

fn status<T>(result: Result<T, PluginError>) -> Status {
    match result {
        Ok(_) => panic!("was allowed"),
        Err(error) => error.status().unwrap_or_else(|| panic!("no status: {error}")),
    }
}

fn folder(chip: &Swtpm, name: &str) -> PathBuf {
    chip.dir.path().join(name)
}

#[test]
fn blobs_put_back_from_a_backup_stay_dead() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    let first = advance(&vault, 1);
    drop(vault);
    copy_folder(&folder(&chip, "data"), &folder(&chip, "backup"));
    let vault = chip.plugin("data");
    advance(&vault, 2);
    drop(vault);
    copy_folder(&folder(&chip, "backup"), &folder(&chip, "data"));

    let vault = chip.plugin("data");
    assert_eq!(vault.generation().unwrap().current, 2, "the counter decides, not the folder");
    assert_eq!(status(key(&vault, 1)), Status::NoGeneration);
    assert_eq!(status(key(&vault, 2)), Status::NoGeneration, "what opened it is gone");
    let health = vault.health().unwrap();
    assert_ne!(health.state, HealthState::Ok);
    assert!(health.detail.contains("put back from a copy"), "{}", health.detail);
    // the way on: the next generation, with re-dealt shards
    let third = advance(&vault, 3);
    assert_eq!(key(&vault, 3).unwrap(), third);
    assert_ne!(third, first);
    assert_eq!(vault.health().unwrap().state, HealthState::Ok);
}

/// The whole chip put back: it opens here, and tells its old generation, so that the ledger can refuse it.
#[test]
fn a_chip_put_back_whole_tells_its_old_generation() {
    let mut chip = Swtpm::start();
    let vault = chip.plugin("data");
    let first = advance(&vault, 1);
    drop(vault);
    chip.off();
    chip.copy_state("state.backup");
    copy_folder(&folder(&chip, "data"), &folder(&chip, "data.backup"));
    chip.on();
    let vault = chip.plugin("data");
    advance(&vault, 2);
    drop(vault);

    // chip and folder: all of the past
    copy_folder(&folder(&chip, "data"), &folder(&chip, "data.new"));
    chip.put_back("state.backup");
    copy_folder(&folder(&chip, "data.backup"), &folder(&chip, "data"));
    let vault = chip.plugin("data");
    assert_eq!(key(&vault, 1).unwrap(), first, "nothing on this machine can tell");
    assert_eq!(vault.generation().unwrap().current, 1, "but the ledger knows better");
    drop(vault);

    // the chip alone: the folder knows better
    copy_folder(&folder(&chip, "data.new"), &folder(&chip, "data"));
    let vault = chip.plugin("data");
    assert_eq!(vault.generation().unwrap().current, 1);
    for generation in [1, 2] {
        assert_eq!(status(key(&vault, generation)), Status::Corrupt, "{generation}");
    }
    assert_eq!(status(vault.stage(2, Tier::Boot)), Status::Corrupt, "nothing is built on a chip of the past");
    assert!(vault.health().unwrap().detail.contains("the TPM's state was put back"));
}

#[test]
fn the_counter_deleted_or_made_anew() {
    const INDEX: &str = "0x1804d00";
    for (what, steps) in [
        ("deleted", &[][..]),
        (
            "made anew",
            &[&["nvdefine", INDEX, "-C", "o", "-s", "8", "-a", "nt=counter|authread|authwrite|no_da"][..]][..],
        ),
        (
            "made anew and incremented",
            &[
                &["nvdefine", INDEX, "-C", "o", "-s", "8", "-a", "nt=counter|authread|authwrite|no_da"],
                &["nvincrement", INDEX, "-C", INDEX],
            ],
        ),
        (
            "replaced by an ordinary index",
            &[&["nvdefine", INDEX, "-C", "o", "-s", "8", "-a", "authread|authwrite|no_da"]],
        ),
    ] {
        let chip = Swtpm::start();
        let vault = chip.plugin("data");
        advance(&vault, 1);
        chip.tool("nvundefine", &[INDEX, "-C", "o"]).unwrap();
        for step in steps {
            chip.tool(step[0], &step[1..]).unwrap();
        }
        assert_eq!(status(key(&vault, 1)), Status::VaultLost, "{what}, while running");
        assert_eq!(vault.health().unwrap().state, HealthState::VaultLost, "{what}");
        drop(vault);
        let started = VaultPlugin::start(&chip.config("data")).map(|_| ());
        assert_eq!(status(started), Status::VaultLost, "{what}, at the start");
        assert_eq!(chip.occupied(), 0, "{what}");
    }
}

#[test]
fn a_cleared_chip_is_told_and_left_alone() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    vault.identity_public(None, true).unwrap();
    advance(&vault, 1);
    chip.tool("clear", &[]).unwrap();
    assert_eq!(status(key(&vault, 1)), Status::VaultLost);
    assert_eq!(status(vault.identity_sign(b"x")), Status::VaultLost);
    assert_eq!(status(vault.generation()), Status::VaultLost);
    assert_eq!(vault.health().unwrap().state, HealthState::VaultLost);
    drop(vault);
    for _ in 0..3 {
        let error = VaultPlugin::start(&chip.config("data")).map(|_| ()).unwrap_err();
        assert_eq!(error.status(), Some(Status::VaultLost));
        assert!(error.to_string().contains("enrol the device anew"), "{error}");
    }
    assert!(chip.tool("getcap", &["handles-persistent"]).unwrap().trim().is_empty(), "nothing was made in it");
    // the way back
    let vault = chip.plugin("new");
    let key_of_new = advance(&vault, 1);
    assert_eq!(key(&vault, 1).unwrap(), key_of_new);
}

#[test]
fn another_chip_is_told() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    advance(&vault, 1);
    drop(vault);
    let other = Swtpm::start();
    // it has a storage root key of its own
    drop(other.plugin("other"));
    let config = host_config(&other.tcti(), &folder(&chip, "data"));
    assert_eq!(status(VaultPlugin::start(&config).map(|_| ())), Status::VaultLost);
}

/// An interposer changes one bit of one answer: the call fails, or its result is right; never a wrong one.
#[test]
fn an_interposer_gets_nowhere() {
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&host_config(&proxy.tcti(), &folder(&chip, "data"))).unwrap();
    let mut good = advance(&vault, 1);
    let mut current = 1;
    // the last byte is in the session's HMAC; further in front lie nonces and parameters
    for from_end in [1, 40, 70] {
        for n in 0..12 {
            let done = Arc::new(AtomicBool::new(false));
            let (flag, length_ok) = (done.clone(), from_end);
            proxy.shared.restart();
            proxy.shared.judge(move |number, code| {
                let short = matches!(code, FLUSH);
                if number == n && !short && !flag.swap(true, Ordering::SeqCst) {
                    return Act::Alter(length_ok, 0x01);
                }
                Act::Pass
            });
            match vault.open_key(current, Tier::Boot) {
                Ok(key) => assert_eq!(key.expose(), &good, "answer {n} altered {from_end} bytes from its end"),
                Err(error) => assert!(error.status().is_some(), "{error}"),
            }
            proxy.shared.pass_all();
            assert_eq!(key(&vault, current).unwrap(), good);
        }
    }
    // the answer to the increment cannot be forged either
    vault.stage(2, Tier::Boot).map(|key| good = *key.expose()).unwrap();
    proxy.shared.judge(|_, code| if code == INCREMENT { Act::Alter(1, 0x80) } else { Act::Pass });
    let error = vault.commit(2).unwrap_err();
    assert!(error.to_string().contains("not authentic"), "{error}");
    proxy.shared.pass_all();
    // it was real all the same: the next look at the counter finishes it
    current = vault.generation().unwrap().current;
    assert_eq!(current, 2);
    assert_eq!(key(&vault, 2).unwrap(), good);
    assert_eq!(chip.occupied(), 0);
}

/// The storage root key's point in an answer to ReadPublic becomes the interposer's: whoever salts a session with it has
/// told him the session's key.
fn key_of_the_interposer(answer: &mut [u8]) {
    let at = end_of_area(answer);
    let point = SigningKey::from_slice(&[7; 32]).unwrap().verifying_key().to_sec1_point(false);
    let bytes = point.as_bytes();
    answer[at - 66..at - 34].copy_from_slice(&bytes[1..33]);
    answer[at - 32..at].copy_from_slice(&bytes[33..]);
}

/// The same, with the Name that goes with it.
fn key_and_name_of_the_interposer(answer: &mut [u8]) {
    key_of_the_interposer(answer);
    let at = end_of_area(answer);
    let name: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest(&answer[12..at]).into();
    answer[at + 4..at + 36].copy_from_slice(&name);
}

/// An answer with another Name at its end: of an index it is the last field.
fn another_name(answer: &mut [u8]) {
    if let Some(last) = answer.last_mut() {
        *last ^= 1;
    }
}

fn end_of_area(answer: &[u8]) -> usize {
    12 + usize::from(u16::from_be_bytes([answer[10], answer[11]]))
}

/// Each single answer about the storage root key or an index is forged, in making a vault and in starting it: no session is started
/// and nothing is written after it. Whichever answer libtss2 keeps, it is one that was judged.
#[test]
fn an_interposer_shows_a_key_of_his_own() {
    const READ_PUBLIC: u32 = 0x0173;
    const NV_READ_PUBLIC: u32 = 0x0169;
    // StartAuthSession, NV_DefineSpace, NV_Write, Create
    const SECRETIVE: [u32; 4] = [0x0176, 0x012a, 0x0137, 0x0153];
    for (read, edit, consistent) in [
        (READ_PUBLIC, key_of_the_interposer as fn(&mut [u8]), false),
        (READ_PUBLIC, key_and_name_of_the_interposer, true),
        (NV_READ_PUBLIC, another_name, false),
    ] {
        // indices are made over a session that was judged before
        for making in if read == READ_PUBLIC { &[true, false][..] } else { &[false] } {
            let making = *making;
            // in making, the first answer is that there is no such key
            let first = usize::from(making);
            let (mut forged, mut refused) = (first, 0);
            loop {
                let chip = Swtpm::start();
                let proxy = Proxy::start(&chip);
                let config = host_config(&proxy.tcti(), &folder(&chip, "data"));
                if !making {
                    drop(VaultPlugin::start(&config).unwrap());
                }
                let hit = Arc::new(AtomicBool::new(false));
                let (flag, mut seen) = (hit.clone(), 0);
                proxy.shared.restart();
                let shared = proxy.shared.clone();
                proxy.shared.judge(move |_, code| {
                    seen += usize::from(code == read);
                    if code != read || seen != forged + 1 {
                        return Act::Pass;
                    }
                    flag.store(true, Ordering::SeqCst);
                    shared.codes.lock().unwrap().clear();
                    Act::Edit(edit)
                });
                let started = VaultPlugin::start(&config).map(|_| ());
                proxy.shared.pass_all();
                if !hit.load(Ordering::SeqCst) {
                    started.unwrap();
                    break;
                }
                // the chip understands a session only if it is salted for the chip: then that answer was not used
                if let Err(error) = started {
                    let after = proxy.shared.codes.lock().unwrap().clone();
                    let told: Vec<_> = after.iter().filter(|code| SECRETIVE.contains(code)).collect();
                    assert!(told.is_empty(), "answer {forged}, making: {making}: {told:x?} after it: {error}");
                    // only what looks like another chip may be told as one
                    assert!(error.status() == Some(Status::Io) || consistent, "{error}");
                    refused += 1;
                }
                // and when he has gone
                advance(&VaultPlugin::start(&config).unwrap(), 1);
                forged += 1;
            }
            println!("making: {making}: {} answers forged, {refused} refused", forged - first);
            assert!(refused >= 2, "making: {making}: {refused} refused");
        }
    }
}

/// A command is changed on its way: refused by the chip, in the words of a wrong auth value where a session authorises it.
/// Nobody is told that the vault is lost, nothing is done, and the next call works.
#[test]
fn a_disturbed_command_is_not_a_lost_vault() {
    const NV_READ: u32 = 0x014e;
    const NV_WRITE: u32 = 0x0137;
    const SIGN: u32 = 0x015d;
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&host_config(&proxy.tcti(), &folder(&chip, "data"))).unwrap();
    vault.identity_public(None, true).unwrap();
    let good = advance(&vault, 1);
    type Call<'a> = &'a dyn Fn() -> Result<(), PluginError>;
    let calls: [(u32, Call<'_>); 5] = [
        (NV_READ, &|| vault.generation().map(|_| ())),
        (NV_READ, &|| key(&vault, 1).map(|_| ())),
        (NV_WRITE, &|| vault.stage(2, Tier::Boot).map(|_| ())),
        (SIGN, &|| vault.identity_sign(b"message").map(|_| ())),
        (INCREMENT, &|| vault.stage(2, Tier::Boot).and_then(|_| vault.commit(2))),
    ];
    for (code, call) in calls {
        let mut once = true;
        proxy.shared.judge(move |_, now| match now == code && std::mem::take(&mut once) {
            true => Act::Garble,
            false => Act::Pass,
        });
        let error = call().unwrap_err();
        assert_eq!(error.status(), Some(Status::Io), "{code:#x}: {error}");
        proxy.shared.pass_all();
        assert_eq!(key(&vault, 1).unwrap(), good, "{code:#x}");
        assert_eq!(chip.occupied(), 0, "{code:#x}");
    }
    vault.commit(2).unwrap();
}

/// An increment that never reached the chip, reported as done, is noticed.
#[test]
fn an_increment_that_did_not_happen_is_noticed() {
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&host_config(&proxy.tcti(), &folder(&chip, "data"))).unwrap();
    let old = advance(&vault, 1);
    vault.stage(2, Tier::Boot).unwrap();
    proxy.shared.judge(|_, code| if code == INCREMENT { Act::Drop } else { Act::Pass });
    assert!(vault.commit(2).is_err());
    proxy.shared.pass_all();
    assert_eq!(vault.generation().unwrap(), mayfly_plugin_api::Generations { current: 1, staged: Some(2) });
    assert_eq!(key(&vault, 1).unwrap(), old);
}

#[test]
fn power_fails_right_after_the_increment() {
    let mut chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let vault = Arc::new(VaultPlugin::start(&host_config(&proxy.tcti(), &folder(&chip, "data"))).unwrap());
    advance(&vault, 1);
    let staged = *vault.stage(2, Tier::Boot).unwrap().expose();
    let killed = vault.clone();
    proxy.shared.judge(move |_, code| {
        if code != INCREMENT {
            return Act::Pass;
        }
        killed.danger_kill_host();
        Act::LoseAnswer
    });
    assert!(vault.commit(2).is_err());
    proxy.shared.wait_idle();
    chip.reset();
    proxy.shared.pass_all();
    assert_eq!(settled(|| vault.generation()).unwrap().current, 2);
    assert_eq!(key(&vault, 2).unwrap(), staged);
    assert_eq!(status(key(&vault, 1)), Status::NoGeneration);
}

#[test]
fn the_chip_goes_away_and_comes_back() {
    let mut chip = Swtpm::start();
    let vault = chip.plugin("data");
    let good = advance(&vault, 1);
    chip.off();
    let error = key(&vault, 1).unwrap_err();
    assert_eq!(error.status(), Some(Status::Io));
    assert!(error.to_string().contains("not reachable"), "{error}");
    assert_eq!(vault.health().unwrap().state, HealthState::Down);
    chip.on();
    assert_eq!(key(&vault, 1).unwrap(), good, "without a restart of the plugin");
    assert_eq!(vault.health().unwrap().state, HealthState::Ok);
}

#[test]
fn a_lockout_of_others_does_not_touch_us() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    vault.identity_public(None, true).unwrap();
    let good = advance(&vault, 1);
    chip.tool("nvdefine", &["0x1500000", "-C", "o", "-s", "8", "-p", "right", "-a", "authread|authwrite"]).unwrap();
    for _ in 0..5 {
        chip.tool("nvwrite", &["0x1500000", "-C", "0x1500000", "-P", "wrong", "-i", "/etc/hostname"]).unwrap_err();
    }
    let refused = chip.tool("nvwrite", &["0x1500000", "-C", "0x1500000", "-P", "right", "-i", "/etc/hostname"]);
    assert!(refused.unwrap_err().contains("lockout"), "the neighbour is locked out");
    assert_eq!(key(&vault, 1).unwrap(), good);
    vault.identity_sign(b"message").unwrap();
    let next = advance(&vault, 2);
    assert_eq!(key(&vault, 2).unwrap(), next);
}

#[test]
fn two_vaults_in_one_chip() {
    let chip = Swtpm::start();
    let (one, two) = (chip.plugin("one"), chip.plugin("two"));
    let (key_one, key_two) = (advance(&one, 1), advance(&two, 1));
    assert_ne!(key_one, key_two);
    advance(&two, 2);
    assert_eq!(key(&one, 1).unwrap(), key_one, "one counter each");
    assert_eq!(one.generation().unwrap().current, 1);
    assert_eq!(chip.tool("getcap", &["handles-nv-index"]).unwrap().lines().count(), 6);
}

#[test]
fn seals_of_another_place_are_refused() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    let boot = *vault.stage(1, Tier::Boot).unwrap().expose();
    vault.stage(1, Tier::Window).unwrap();
    vault.commit(1).unwrap();
    drop(vault);
    let path = folder(&chip, "data").join("generation");
    let good = std::fs::read(&path).unwrap();

    // the two tiers' seals, each in the other's place: same policy, another auth value
    let head = 8 + 2 + 16 + 8 + 1 + 16 + 1;
    let seal = (good.len() - head - 32) / 2;
    let (first, second) = (&good[head..head + seal], &good[head + seal..head + 2 * seal]);
    let swapped = [&good[..head], &first[..4], &second[4..], &second[..4], &first[4..]].concat();
    // the public part of one with the private part of the other
    let private = seal - (4 + 16) - 2 - usize::from(u16::from_be_bytes([first[20], first[21]]));
    let cut = seal - private;
    let mixed = [&good[..head], &first[..cut], &second[cut..], &second[..cut], &first[cut..]].concat();
    for (what, body) in [("swapped", swapped), ("mixed", mixed)] {
        let hash = <sha2::Sha256 as sha2::Digest>::digest(&body);
        std::fs::write(&path, [body.as_slice(), &hash[..]].concat()).unwrap();
        let vault = chip.plugin("data");
        assert_eq!(status(key(&vault, 1)), Status::Corrupt, "{what}");
    }
    let mut torn = good.clone();
    torn[100] ^= 1;
    std::fs::write(&path, &torn).unwrap();
    let refused = VaultPlugin::start(&chip.config("data")).map(|_| ());
    assert_eq!(status(refused), Status::Corrupt, "a flipped bit");
    std::fs::write(&path, &good).unwrap();
    assert_eq!(key(&chip.plugin("data"), 1).unwrap(), boot);
    assert_eq!(chip.occupied(), 0);
}

#[test]
fn a_damaged_staged_generation_is_never_committed() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    let good = advance(&vault, 1);
    vault.stage(2, Tier::Boot).unwrap();
    let path = folder(&chip, "data").join("staged");
    let mut bytes = std::fs::read(&path).unwrap();
    // inside the private part, with a fitting hash
    let at = bytes.len() - 32 - 20;
    bytes[at] ^= 1;
    let hash = <sha2::Sha256 as sha2::Digest>::digest(&bytes[..bytes.len() - 32]);
    let length = bytes.len();
    bytes[length - 32..].copy_from_slice(&hash);
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(status(vault.commit(2)), Status::Corrupt);
    assert_eq!(key(&vault, 1).unwrap(), good);
}

#[test]
fn another_auth_secret_is_told_before_the_chip_hears_of_it() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    let good = advance(&vault, 1);
    drop(vault);
    let path = folder(&chip, "data").join("auth");
    let secret = std::fs::read(&path).unwrap();
    std::fs::write(&path, [9; 32]).unwrap();
    assert_eq!(status(VaultPlugin::start(&chip.config("data")).map(|_| ())), Status::Auth);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(status(VaultPlugin::start(&chip.config("data")).map(|_| ())), Status::Corrupt);
    // the same secret kept elsewhere
    let elsewhere = folder(&chip, "auth.secret");
    write_secret(&elsewhere, &secret);
    let mut config = chip.config("data");
    config.config_text.push_str(&format!("auth_file = '{}'\n", elsewhere.display()));
    assert_eq!(key(&VaultPlugin::start(&config).unwrap(), 1).unwrap(), good);
}

fn write_secret(path: &std::path::Path, bytes: &[u8]) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn an_owner_with_a_password() {
    let chip = Swtpm::start();
    chip.tool("changeauth", &["-c", "owner", "correct horse"]).unwrap();
    let proxy = Proxy::start(&chip);
    let mut config = host_config(&proxy.tcti(), &folder(&chip, "data"));
    let error = VaultPlugin::start(&config).map(|_| ()).unwrap_err();
    assert_eq!(error.status(), Some(Status::Auth));
    assert!(error.to_string().contains("owner_auth_file"), "{error}");

    let password = folder(&chip, "owner");
    write_secret(&password, b"correct horse");
    config.config_text.push_str(&format!("owner_auth_file = '{}'\n", password.display()));
    let vault = VaultPlugin::start(&config).unwrap();
    let good = advance(&vault, 1);
    drop(vault);
    let traffic = proxy.shared.traffic.lock().unwrap().clone();
    assert!(!traffic.windows(13).any(|window| window == b"correct horse"), "the password was on the bus");

    // its permanent storage root key is taken away: made again, since the owner's password is there
    chip.tool("evictcontrol", &["-C", "o", "-P", "correct horse", "-c", "0x81000001"]).unwrap();
    let vault = VaultPlugin::start(&config).unwrap();
    assert_eq!(key(&vault, 1).unwrap(), good);
    // forgetting needs it, too
    vault.control("danger-forget", &[]).unwrap();
    assert!(chip.tool("getcap", &["handles-nv-index"]).unwrap().trim().is_empty());
}

#[test]
fn a_storage_root_key_of_others_is_used() {
    let chip = Swtpm::start();
    let attributes = "restricted|decrypt|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda";
    chip.tool("createprimary", &["-C", "o", "-G", "rsa2048", "-a", attributes, "-c", "srk.ctx"]).unwrap();
    chip.tool("evictcontrol", &["-C", "o", "-c", "srk.ctx", "0x81000001"]).unwrap();
    chip.tool("flushcontext", &["-t"]).unwrap();
    let vault = chip.plugin("data");
    let good = advance(&vault, 1);
    assert_eq!(key(&vault, 1).unwrap(), good);
}

#[test]
fn something_else_at_the_storage_root_keys_handle() {
    let chip = Swtpm::start();
    let attributes = "sign|fixedtpm|fixedparent|sensitivedataorigin|userwithauth";
    chip.tool("createprimary", &["-C", "o", "-G", "ecc256:ecdsa", "-a", attributes, "-c", "key.ctx"]).unwrap();
    chip.tool("evictcontrol", &["-C", "o", "-c", "key.ctx", "0x81000001"]).unwrap();
    chip.tool("flushcontext", &["-t"]).unwrap();
    let error = VaultPlugin::start(&chip.config("data")).map(|_| ()).unwrap_err();
    assert_eq!(error.status(), Some(Status::Config));
    assert!(error.to_string().contains("srk_handle 0x81000001"), "{error}");
    let mut config = chip.config("data");
    config.config_text.push_str("srk_handle = 0x81000002\n");
    advance(&VaultPlugin::start(&config).unwrap(), 1);
}

/// Sessions and objects that others left block the chip: told as transient, and found at the next call.
#[test]
fn slots_that_others_left() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    let good = advance(&vault, 1);
    for n in 0..3 {
        chip.tool("startauthsession", &["-S", &format!("{n}.ctx"), "--hmac-session"]).ok();
    }
    // with tpm2-tools of a swtpm, sessions are saved and not loaded; transient objects stay
    for n in 0..3 {
        chip.tool("createprimary", &["-C", "n", "-G", "ecc", "-c", &format!("o{n}.ctx")]).unwrap();
    }
    assert!(chip.occupied() >= 3);
    match key(&vault, 1) {
        Ok(found) => assert_eq!(found, good),
        Err(error) => assert_eq!(error.status(), Some(Status::Transient), "{error}"),
    }
    assert_eq!(key(&vault, 1).unwrap(), good);
}

// --- registers -------------------------------------------------------------------------------------------------------

struct Approver(SigningKey);

impl Approver {
    fn new(fill: u8) -> Approver {
        Approver(SigningKey::from_slice(&[fill; 32]).unwrap())
    }

    fn public(&self) -> String {
        hex::encode(self.0.verifying_key().to_sec1_point(true).as_bytes())
    }

    /// The approval as `control("approve")` takes it.
    fn sign(&self, vault: &[u8; 16], generation: u64, registers: Selection, digest: [u8; 32]) -> Vec<u8> {
        let mut approval = Approval { generation, registers, digest, signature: [0; 64] };
        let signature: p256::ecdsa::Signature = self.0.sign(&approval.message(vault));
        approval.signature = signature.to_bytes().into();
        approval.encode()
    }
}

fn with_registers(chip: &Swtpm, approver: &Approver) -> HostConfig {
    let mut config = chip.config("data");
    config.config_text.push_str(&format!("[pcr]\nregisters = [16]\napprover = '{}'\n", approver.public()));
    config
}

struct Policy {
    vault: [u8; 16],
    digest: [u8; 32],
    shown: serde_json::Value,
}

impl Policy {
    /// Of the committed generation and of the next one: who must approve, and whether that is done for the present values.
    fn approved(&self) -> [(Option<&str>, bool); 2] {
        [0, 1].map(|place| {
            let entry = &self.shown["references"][place];
            (entry["approver"].as_str(), entry["approved_now"].as_bool().unwrap())
        })
    }
}

fn policy(vault: &VaultPlugin) -> Policy {
    let shown: serde_json::Value = serde_json::from_slice(&vault.control("policy", &[]).unwrap()).unwrap();
    let bytes = |name: &str| hex::decode(shown[name].as_str().unwrap()).unwrap();
    Policy { vault: bytes("vault").try_into().unwrap(), digest: bytes("digest").try_into().unwrap(), shown }
}

const ONE: &str = "16:sha256=1111111111111111111111111111111111111111111111111111111111111111";

#[test]
fn registers_change_and_are_approved_again() {
    let chip = Swtpm::start();
    let approver = Approver::new(9);
    let registers = Selection::of(&[16]).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    let before = policy(&vault);
    assert_eq!(before.digest, pcr::digest(&[[0; 32]]));
    assert_eq!(before.shown["registers"]["16"].as_str().unwrap(), "0".repeat(64));

    let staged = *vault.stage(1, Tier::Boot).unwrap().expose();
    assert_eq!(status(vault.commit(1)), Status::PolicyPending, "a commit that could not be opened is refused");
    for (what, approval) in [
        ("of another approver", Approver::new(8).sign(&before.vault, 1, registers, before.digest)),
        ("for another vault", approver.sign(&[1; 16], 1, registers, before.digest)),
        ("for no register", approver.sign(&before.vault, 1, Selection::default(), before.digest)),
        ("cut", approver.sign(&before.vault, 1, registers, before.digest)[1..].to_vec()),
    ] {
        assert_eq!(status(vault.control("approve", &approval)), Status::Invalid, "{what}");
    }
    let mut other_generation = approver.sign(&before.vault, 1, registers, before.digest);
    other_generation[7] = 2;
    assert_eq!(status(vault.control("approve", &other_generation)), Status::Invalid, "moved to another generation");

    vault.control("approve", &approver.sign(&before.vault, 1, registers, before.digest)).unwrap();
    vault.commit(1).unwrap();
    assert_eq!(key(&vault, 1).unwrap(), staged);

    chip.tool("pcrextend", &[ONE]).unwrap();
    assert_eq!(status(key(&vault, 1)), Status::PolicyPending, "an update that nobody approved");
    assert_eq!(vault.health().unwrap().state, HealthState::PolicyPending);
    drop(vault);
    // not a dead host: the plugin starts, tells, and takes a new approval
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    assert_eq!(vault.generation().unwrap().current, 1);
    assert_eq!(status(key(&vault, 1)), Status::PolicyPending);
    let after = policy(&vault);
    assert_ne!(after.digest, before.digest);
    vault.control("approve", &approver.sign(&after.vault, 1, registers, after.digest)).unwrap();
    assert_eq!(key(&vault, 1).unwrap(), staged, "no shard was lost");
    assert_eq!(vault.health().unwrap().state, HealthState::Ok);
    assert_eq!(policy(&vault).shown["approvals"].as_array().unwrap().len(), 2);

    // an approval dies with its generation
    let next = *vault.stage(2, Tier::Boot).unwrap().expose();
    assert_eq!(status(vault.commit(2)), Status::PolicyPending, "the old approval is for generation 1");
    vault.control("danger-commit-unapproved", &2u64.to_be_bytes()).unwrap();
    assert_eq!(status(key(&vault, 2)), Status::PolicyPending);
    vault.control("approve", &approver.sign(&after.vault, 2, registers, after.digest)).unwrap();
    assert_eq!(key(&vault, 2).unwrap(), next);
    assert_eq!(policy(&vault).shown["approvals"].as_array().unwrap().len(), 1, "old ones are forgotten");
    assert_eq!(chip.occupied(), 0);
}

/// Registers change while the chip checks the policy: another try, and only when that never ends a word about it; the
/// vault is neither damaged nor unapproved.
#[test]
fn registers_that_change_in_the_middle() {
    const UNSEAL: u32 = 0x015e;
    let chip = Swtpm::start();
    let proxy = Proxy::start(&chip);
    let approver = Approver::new(9);
    let mut config = with_registers(&chip, &approver);
    config.config_text = config.config_text.replace(&chip.tcti(), &proxy.tcti());
    let vault = VaultPlugin::start(&config).unwrap();
    let now = policy(&vault);
    let registers = Selection::of(&[16]).unwrap();
    vault.control("approve", &approver.sign(&now.vault, 1, registers, now.digest)).unwrap();
    let good = advance(&vault, 1);
    for (changes, opens) in [(1, true), (4, true), (usize::MAX, false)] {
        let (tcti, mut left) = (chip.tcti(), changes);
        proxy.shared.judge(move |_, code| {
            if code == UNSEAL && left > 0 {
                left -= 1;
                // a register that nobody asks about
                let one = format!("3:sha256={}", "11".repeat(32));
                let run =
                    std::process::Command::new("tpm2").args(["pcrextend", &one]).env("TPM2TOOLS_TCTI", &tcti).status();
                assert!(run.unwrap().success());
            }
            Act::Pass
        });
        match key(&vault, 1) {
            Ok(key) => assert!(opens && key == good, "{changes} changes"),
            Err(error) => {
                assert!(!opens, "{changes} changes: {error}");
                assert_eq!(error.status(), Some(Status::Transient), "{error}");
            }
        }
        proxy.shared.pass_all();
        assert_eq!(chip.occupied(), 0);
    }
    assert_eq!(key(&vault, 1).unwrap(), good);
}

/// The next boot's values, approved before the change: no gap at all.
#[test]
fn an_update_that_was_approved_before() {
    let mut chip = Swtpm::start();
    let approver = Approver::new(9);
    let registers = Selection::of(&[16]).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    let now = policy(&vault);
    let one = [0x11; 32];
    let next_value: [u8; 32] = <sha2::Sha256 as sha2::Digest>::digest([[0; 32], one].concat()).into();
    for digest in [now.digest, pcr::digest(&[next_value])] {
        vault.control("approve", &approver.sign(&now.vault, 1, registers, digest)).unwrap();
    }
    let good = advance(&vault, 1);
    chip.tool("pcrextend", &[ONE]).unwrap();
    assert_eq!(key(&vault, 1).unwrap(), good);
    chip.reset();
    assert_eq!(key(&vault, 1).unwrap(), good, "and back");
}

/// What is shown is enough to sign for the next boot and the next generation on another machine.
#[test]
fn an_approver_elsewhere_needs_only_what_is_shown() {
    let chip = Swtpm::start();
    let approver = Approver::new(9);
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    let shown = policy(&vault).shown;
    let by = approver.public();
    let reference = |generation| {
        let text = hex::encode(mayfly_evidence::policy::approval_reference(
            &hex::decode(shown["vault"].as_str().unwrap()).unwrap().try_into().unwrap(),
            generation,
        ));
        serde_json::json!({"generation": generation, "reference": text, "approver": by, "approved_now": false})
    };
    let expected = serde_json::json!({
        "vault": shown["vault"],
        "generation": 0,
        "references": [reference(0), reference(1)],
        "sealed_to_approver": false,
        "approver": by,
        "registers": {"16": "0".repeat(64)},
        "digest": hex::encode(pcr::digest(&[[0; 32]])),
        "approvals": [],
    });
    assert_eq!(shown, expected, "others build on these names");

    // without registers in the configuration the same fields are there
    let vault = chip.plugin("plain");
    let plain: serde_json::Value = serde_json::from_slice(&vault.control("policy", &[]).unwrap()).unwrap();
    let keys = |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&plain), keys(&shown));
    assert!(plain["approver"].is_null() && plain["digest"].is_null());
    assert_eq!(plain["references"][1]["approved_now"], true, "nobody is asked");
}

/// Approvals of the next generation come before it is staged, outlive the commit, and open it.
#[test]
fn approvals_in_advance_outlive_the_commit() {
    let chip = Swtpm::start();
    let approver = Approver::new(9);
    let registers = Selection::of(&[16]).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    let now = policy(&vault);
    for generation in 1..=3 {
        vault.control("approve", &approver.sign(&now.vault, generation, registers, now.digest)).unwrap();
    }
    for generation in 1..=3 {
        assert!(policy(&vault).approved()[1].1, "{generation} is approved already");
        let staged = advance(&vault, generation);
        assert_eq!(key(&vault, generation).unwrap(), staged);
        assert_eq!(policy(&vault).shown["approvals"].as_array().unwrap().len() as u64, 4 - generation);
    }
    assert!(!policy(&vault).approved()[1].1);
    let old = approver.sign(&now.vault, 2, registers, now.digest);
    let error = vault.control("approve", &old).unwrap_err();
    assert_eq!(error.status(), Some(Status::Invalid));
    assert!(error.to_string().contains("3 is committed"), "{error}");
}

/// Another approver in the configuration counts from the next generation on; until then the present one's word opens.
#[test]
fn another_approver_counts_from_the_next_generation_on() {
    let chip = Swtpm::start();
    let (old, new) = (Approver::new(9), Approver::new(8));
    let registers = Selection::of(&[16]).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &old)).unwrap();
    let before = policy(&vault);
    for generation in [1, 2] {
        vault.control("approve", &old.sign(&before.vault, generation, registers, before.digest)).unwrap();
    }
    let first = advance(&vault, 1);
    drop(vault);

    let vault = VaultPlugin::start(&with_registers(&chip, &new)).unwrap();
    assert_eq!(key(&vault, 1).unwrap(), first, "what was sealed and approved opens on");
    let (by_old, by_new) = (old.public(), new.public());
    assert_eq!(policy(&vault).approved(), [(Some(by_old.as_str()), true), (Some(by_new.as_str()), false)]);
    chip.tool("pcrextend", &[ONE]).unwrap();
    let after = policy(&vault);
    let of = |approver: &Approver, generation| approver.sign(&after.vault, generation, registers, after.digest);
    assert_eq!(status(vault.control("approve", &of(&new, 1))), Status::Invalid, "it could not open generation 1");
    assert_eq!(status(vault.control("approve", &of(&old, 2))), Status::Invalid, "it could not open generation 2");
    assert_eq!(status(key(&vault, 1)), Status::PolicyPending);
    vault.control("approve", &of(&old, 1)).unwrap();
    assert_eq!(key(&vault, 1).unwrap(), first);

    // the old approver's word for generation 2, given before the change, does not count for it
    let second = *vault.stage(2, Tier::Boot).unwrap().expose();
    assert_eq!(status(vault.commit(2)), Status::PolicyPending);
    vault.control("approve", &of(&new, 2)).unwrap();
    vault.commit(2).unwrap();
    assert_eq!(key(&vault, 2).unwrap(), second);
    drop(vault);

    // and without the section: what is sealed is still shown, and still asks its approver
    chip.tool("pcrreset", &["16"]).unwrap();
    let vault = chip.plugin("data");
    let shown = policy(&vault);
    assert_eq!(shown.approved(), [(Some(by_new.as_str()), false), (None, true)]);
    assert_eq!(shown.digest, before.digest);
    assert_eq!(status(key(&vault, 2)), Status::PolicyPending);
    vault.control("approve", &new.sign(&shown.vault, 2, registers, shown.digest)).unwrap();
    assert_eq!(key(&vault, 2).unwrap(), second);
    let third = advance(&vault, 3);
    assert_eq!(key(&vault, 3).unwrap(), third, "and the next generation asks nobody");
    assert_eq!(chip.occupied(), 0);
}

/// The folder takes so many approvals and no more; refused ones leave it as it was.
#[test]
fn approvals_are_bounded() {
    let chip = Swtpm::start();
    let approver = Approver::new(9);
    let registers = Selection::of(&[16]).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    let now = policy(&vault);
    for fill in 0..64 {
        vault.control("approve", &approver.sign(&now.vault, 1, registers, [fill; 32])).unwrap();
    }
    vault.control("approve", &approver.sign(&now.vault, 1, registers, [0; 32])).unwrap();
    let refused = vault.control("approve", &approver.sign(&now.vault, 1, registers, [64; 32]));
    assert!(refused.unwrap_err().to_string().contains("too many"));
    assert_eq!(policy(&vault).shown["approvals"].as_array().unwrap().len(), 64);
}

/// What the folder says about approvals is not believed: each is verified, by us and then by the chip.
#[test]
fn a_forged_approval_in_the_folder_opens_nothing() {
    let chip = Swtpm::start();
    let approver = Approver::new(9);
    let registers = Selection::of(&[16]).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    let now = policy(&vault);
    vault.control("approve", &approver.sign(&now.vault, 1, registers, now.digest)).unwrap();
    advance(&vault, 1);
    chip.tool("pcrextend", &[ONE]).unwrap();
    let after = policy(&vault);
    drop(vault);
    let path = folder(&chip, "data").join("approvals");
    let mut bytes = std::fs::read(&path).unwrap();
    let forged = Approver::new(8).sign(&now.vault, 1, registers, after.digest);
    let head = 8 + 2 + 16 + 2;
    bytes.truncate(head);
    bytes.extend_from_slice(&forged);
    let hash = <sha2::Sha256 as sha2::Digest>::digest(&bytes);
    bytes.extend_from_slice(&hash);
    std::fs::write(&path, &bytes).unwrap();
    let vault = VaultPlugin::start(&with_registers(&chip, &approver)).unwrap();
    assert_eq!(status(key(&vault, 1)), Status::PolicyPending);
    assert_eq!(policy(&vault).shown["approvals"][0]["fits_now"], true, "shown for what it is");
    assert!(!policy(&vault).approved()[0].1);
    assert_eq!(chip.occupied(), 0);
}

#[test]
fn a_vault_that_is_forgotten() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    advance(&vault, 1);
    copy_folder(&folder(&chip, "data"), &folder(&chip, "backup"));
    vault.control("danger-forget", &[]).unwrap();
    drop(vault);
    assert!(chip.tool("getcap", &["handles-nv-index"]).unwrap().trim().is_empty());
    let refused = VaultPlugin::start(&chip.config("backup")).map(|_| ());
    assert_eq!(status(refused), Status::VaultLost, "no copy of the folder revives it");
    let vault = chip.plugin("data");
    assert_eq!(vault.generation().unwrap().current, 0, "a new vault in the old place");
}
