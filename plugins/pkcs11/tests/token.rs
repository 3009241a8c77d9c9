//! Tokens that are not as one hopes, in the vault's own process: wrong PINs, missing and pulled tokens, odd mechanisms,
//! a library that crashes or hangs.

#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::{OddToken, SoftHsm, settled};
use mayfly_plugin_api::abi::{HealthState, Status};
use mayfly_plugin_api::{HostConfig, PluginError, Tier, VaultPlugin};
use std::time::Duration;

fn refusal<T>(result: Result<T, PluginError>) -> (Option<Status>, String) {
    let error = result.err().expect("must be refused");
    (error.status(), error.to_string())
}

fn advance(vault: &VaultPlugin) -> u64 {
    let next = vault.generation().unwrap().current + 1;
    vault.stage(next, Tier::Boot).unwrap();
    vault.commit(next).unwrap();
    next
}

#[test]
fn a_wrong_pin_is_tried_once() {
    let token = OddToken::new();
    let right = token.softhsm.pin();
    token.softhsm.write_pin("0000");
    let (status, text) = refusal(token.start("data"));
    assert_eq!(status, Some(Status::Auth));
    assert!(text.contains("C_Login: CKR_PIN_INCORRECT") && text.contains("it is not tried again"), "{text}");
    assert!(!text.contains("0000"), "no PIN in a message: {text}");
    for _ in 0..3 {
        let (status, text) = refusal(token.start("data"));
        assert_eq!(status, Some(Status::Auth));
        assert!(text.contains("the token refused this PIN before"), "{text}");
    }
    assert_eq!(token.calls("C_Login"), 1, "one attempt over four starts");
    token.softhsm.write_pin(&format!("{right}\n"));
    advance(&token.start("data").unwrap());
    assert_eq!(token.calls("C_Login"), 2);
    assert!(!token.softhsm.path("data/pin-refused").exists(), "forgotten after the right one");
    advance(&token.start("data").unwrap());
}

#[test]
fn a_pin_that_turns_wrong_is_tried_once() {
    let token = OddToken::new();
    let vault = token.start("data").unwrap();
    advance(&vault);
    token.softhsm.write_pin("0000");
    token.plan("removed");
    assert_eq!(refusal(vault.open_key(1, Tier::Boot)).0, Some(Status::Transient));
    token.plan("");
    for _ in 0..3 {
        assert_eq!(refusal(vault.open_key(1, Tier::Boot)).0, Some(Status::Auth));
    }
    assert_eq!(vault.health().unwrap().state, HealthState::Down);
    assert_eq!(token.calls("C_Login"), 2, "the good one, and the bad one once");
}

#[test]
fn the_last_attempt_is_never_spent() {
    let token = OddToken::new();
    for (plan, expected) in [("final-try", "one attempt is left"), ("locked", "is locked")] {
        token.plan(plan);
        let (status, text) = refusal(token.start("data"));
        assert_eq!(status, Some(Status::Lockout));
        assert!(text.contains(expected), "{text}");
    }
    assert_eq!(token.calls("C_Login"), 0);
}

#[test]
fn the_credential_of_systemd() {
    let token = SoftHsm::new();
    let with = |more: &str, folder: bool| -> HostConfig {
        let mut config = token.config("data", more);
        config.config_text =
            config.config_text.lines().filter(|line| !line.contains("pin_file")).collect::<Vec<_>>().join("\n");
        if folder {
            config.env.push(("CREDENTIALS_DIRECTORY".into(), token.path("hsm").into()));
        }
        config
    };
    let (status, text) = refusal(VaultPlugin::start(&with("pin_credential = 'user-pin'", false)));
    assert_eq!(status, Some(Status::Config));
    assert!(text.contains("LoadCredentialEncrypted=user-pin:PATH"), "{text}");
    let (status, text) = refusal(VaultPlugin::start(&with("", true)));
    assert_eq!(status, Some(Status::Config));
    assert!(text.contains("wants a PIN: set pin_file or pin_credential"), "{text}");
    let right = token.pin();
    token.write_pin("0000");
    for expected in ["CKR_PIN_INCORRECT", "refused this PIN before"] {
        let (_, text) = refusal(VaultPlugin::start(&with("pin_credential = 'user-pin'", true)));
        assert!(text.contains(expected) && text.contains("then remove"), "{text}");
    }
    token.write_pin(&right);
    std::fs::remove_file(token.path("data/pin-refused")).unwrap();
    advance(&VaultPlugin::start(&with("pin_credential = 'user-pin'", true)).unwrap());
}

#[test]
fn a_token_that_is_not_there() {
    let token = SoftHsm::new();
    let mut config = token.config("data", "");
    config.config_text = config.config_text.replace("token_label = \"mayfly\"", "token_label = \"other\"");
    let (status, text) = refusal(VaultPlugin::start(&config));
    assert_eq!(status, Some(Status::Transient));
    assert!(text.contains("token 'other' is not there; tokens present: 'mayfly' (serial number "), "{text}");
    let (status, text) = refusal(VaultPlugin::start(&token.config("data", "token_serial = \"0\"")));
    assert_eq!(status, Some(Status::Transient));
    assert!(text.contains("token 'mayfly' with serial number 0 is not there"), "{text}");
    // without the variable SoftHSM shows the system's tokens, or none
    config = token.config("data", "");
    config.env = vec![("SOFTHSM2_CONF".into(), token.path("none").into())];
    assert!(VaultPlugin::start(&config).is_err());
}

#[test]
fn a_token_pulled_and_put_back() {
    let token = OddToken::new();
    let vault = token.start("data").unwrap();
    let generation = advance(&vault);
    let pid = vault.host_pid();
    token.plan("removed");
    let (status, text) = refusal(vault.open_key(generation, Tier::Boot));
    assert_eq!(status, Some(Status::Transient));
    assert!(text.contains("token 'mayfly' is not there"), "{text}");
    let health = vault.health().unwrap();
    assert_eq!(health.state, HealthState::Down);
    token.plan("");
    vault.open_key(generation, Tier::Boot).unwrap();
    assert_eq!(vault.health().unwrap().state, HealthState::Ok);
    token.plan("removed");
    assert!(vault.stage(generation + 1, Tier::Boot).is_err());
    token.plan("");
    assert_eq!(advance(&vault), generation + 1);
    assert_eq!(vault.host_pid(), pid, "in the same process");
    assert_eq!(token.calls("C_Login"), 3, "one login per session");
}

/// A library whose token is out of reach often says CKR_GENERAL_ERROR, as SoftHSM does of a wrong tag: nobody is told that
/// the vault is damaged or lost, and the next call begins with a new session.
#[test]
fn a_token_that_fails_for_the_moment_is_not_a_damaged_vault() {
    for (seal, opening) in [("aes-gcm", "C_DecryptInit"), ("aes-key-wrap-pad", "C_UnwrapKey")] {
        let token = OddToken::new();
        let vault = VaultPlugin::start(&token.config("data", &format!("seal = '{seal}'"))).unwrap();
        let generation = advance(&vault);
        for call in [opening, "C_FindObjectsInit"] {
            token.plan(&format!("fails {call}"));
            let sessions = token.calls("C_OpenSession");
            for _ in 0..2 {
                let (status, text) = refusal(vault.open_key(generation, Tier::Boot));
                assert_eq!(status, Some(Status::Io), "{text}");
                assert!(text.contains(&format!("{call}: CKR_GENERAL_ERROR")), "{text}");
                assert_eq!(vault.health().unwrap().state, HealthState::Down, "{call}");
            }
            assert!(token.calls("C_OpenSession") > sessions, "{call}");
            let (status, text) = refusal(
                VaultPlugin::start(&token.config("other", &format!("seal = '{seal}'")))
                    .and_then(|vault| vault.stage(1, Tier::Boot)),
            );
            assert!(matches!(status, Some(Status::Io | Status::Unsupported)), "{text}");
            token.plan("");
            vault.open_key(generation, Tier::Boot).unwrap();
            assert_eq!(vault.health().unwrap().state, HealthState::Ok);
        }
        drop(vault);
        token.plan(&format!("fails {opening}"));
        let (status, text) = refusal(token.start("data"));
        assert_eq!(status, Some(Status::Io), "at the start: {text}");
    }
}

#[test]
fn two_vaults_in_one_token() {
    let token = SoftHsm::new();
    let (one, two) = (token.start("one").unwrap(), token.start("two").unwrap());
    assert_ne!(one.identity_public(None, true).unwrap(), two.identity_public(None, true).unwrap());
    std::thread::scope(|scope| {
        for vault in [&one, &two] {
            scope.spawn(move || {
                for expected in 1..=5 {
                    let key = vault.stage(expected, Tier::Boot).unwrap();
                    vault.commit(expected).unwrap();
                    assert_eq!(vault.open_key(expected, Tier::Boot).unwrap().expose(), key.expose());
                    vault.identity_sign(b"message").unwrap();
                }
            });
        }
    });
    drop(one);
    assert_eq!(two.generation().unwrap().current, 5);
    two.open_key(5, Tier::Boot).unwrap();
    token.start("one").unwrap().open_key(5, Tier::Boot).unwrap();
}

#[test]
fn it_says_what_it_is() {
    let token = OddToken::new();
    let description = token.start("data").unwrap().describe().unwrap();
    assert!(description.software_only);
    assert!(description.hardware.starts_with("SoftHSM project SoftHSM v2, "), "{}", description.hardware);
    assert!(description.security_note.starts_with("software only, for development"));
    token.plan("hardware");
    let description = token.start("data").unwrap().describe().unwrap();
    assert!(!description.software_only);
    assert!(description.hardware.starts_with("Example Corporation HSM 9000, "), "{}", description.hardware);
    assert!(!description.security_note.contains("software"));
}

/// Offset of the way of sealing in the file `generation`.
const SEALING_AT: usize = 8 + 2 + 16 + 8;

#[test]
fn tokens_with_their_own_view_of_mechanisms() {
    for (plan, more, expected) in [
        ("", "", Ok([0, 1])),
        ("no-gcm", "", Ok([0, 2])),
        ("no-gcm", "seal = 'aes-gcm'", Err("it lacks CKM_AES_GCM")),
        ("own-iv", "", Ok([0, 1])),
        ("secret-iv", "", Err("CKM_AES_GCM does not give back what it sealed; set another `seal`")),
        ("secret-iv", "seal = 'aes-key-wrap-pad'", Ok([0, 2])),
        ("no-copyable", "", Ok([0, 1])),
    ] {
        let token = OddToken::new();
        token.plan(plan);
        let config = token.config("data", more);
        let staged = VaultPlugin::start(&config).and_then(|vault| {
            let key = vault.stage(1, Tier::Boot)?;
            vault.commit(1)?;
            assert_eq!(vault.open_key(1, Tier::Boot)?.expose(), key.expose(), "{plan}");
            Ok(())
        });
        match (staged, expected) {
            (Ok(()), Ok(sealing)) => {
                let file = std::fs::read(token.softhsm.path("data/generation")).unwrap();
                assert_eq!(file[SEALING_AT..SEALING_AT + 2], sealing, "{plan} {more}");
            }
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{plan} {more}: {error}"),
            (found, expected) => panic!("{plan} {more}: {found:?}, expected {expected:?}"),
        }
    }
}

/// A token that says "destroyed" and has the key still: the commit is not reported done until a search finds nothing.
#[test]
fn destroyed_is_what_a_new_search_does_not_find() {
    let token = OddToken::new();
    let vault = token.start("data").unwrap();
    advance(&vault);
    vault.stage(2, Tier::Boot).unwrap();
    token.plan("keeps");
    for _ in 0..2 {
        let (status, text) = refusal(vault.commit(2));
        assert_eq!(status, Some(Status::Io));
        assert!(text.contains("still has the key of generation 1 after C_DestroyObject"), "{text}");
        assert_eq!(vault.generation().unwrap().current, 2, "past the point of no return");
        assert_eq!(refusal(vault.open_key(1, Tier::Boot)).0, Some(Status::NoGeneration));
    }
    drop(vault);
    let (_, text) = refusal(token.start("data"));
    assert!(text.contains("still has the key of generation 1"), "a start finishes the commit, or fails: {text}");
    token.plan("");
    let vault = token.start("data").unwrap();
    vault.commit(2).unwrap();
    vault.open_key(2, Tier::Boot).unwrap();
}

/// SIGKILL inside the library, before and after each call that changes the token.
#[test]
fn a_crash_in_any_call_leaves_one_generation() {
    for call in ["C_GenerateKeyPair", "C_GenerateKey", "C_DestroyObject", "C_Login", "C_OpenSession"] {
        for when in ["before", "after"] {
            let token = OddToken::new();
            let vault = token.start("data").unwrap();
            advance(&vault);
            vault.stage(2, Tier::Boot).unwrap();
            token.plan(&format!("dies {when} {call}"));
            match call {
                "C_GenerateKeyPair" => drop(vault.identity_public(None, true)),
                // a second key of a generation: what is staged goes, another comes
                "C_GenerateKey" => drop(vault.discard_staged().and_then(|()| vault.stage(2, Tier::Boot))),
                "C_DestroyObject" => drop(vault.commit(2)),
                _ => {
                    vault.danger_kill_host();
                    drop(vault.generation());
                    drop(vault.generation());
                }
            }
            token.plan("");
            let current = settled(|| vault.generation()).current;
            assert_eq!(current, if call == "C_DestroyObject" { 2 } else { 1 }, "{when} {call}");
            vault.open_key(current, Tier::Boot).unwrap();
            vault.identity_public(None, true).unwrap();
            vault.identity_sign(b"message").unwrap();
            assert_eq!(advance(&vault), current + 1, "{when} {call}");
        }
    }
}

#[test]
fn a_library_that_hangs_is_ended() {
    let token = OddToken::new();
    let config = HostConfig { call_timeout: Duration::from_secs(5), ..token.config("data", "") };
    let vault = VaultPlugin::start(&config).unwrap();
    advance(&vault);
    token.plan("hangs C_GenerateKey");
    let stage = vault.stage(2, Tier::Boot);
    assert!(matches!(stage, Err(PluginError::TimedOut { .. })), "{:?}", stage.err());
    token.plan("");
    settled(|| vault.open_key(1, Tier::Boot));
    assert_eq!(advance(&vault), 2);
}

/// Times that `needle` is in the writable memory of a process; `None` where that cannot be read.
fn found_in_memory(pid: u32, needle: &[u8]) -> Option<usize> {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut found = 0;
    let mut read = 0;
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (from, to) = line.split(' ').next()?.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut bytes = vec![0; (to - from) as usize];
        // memfd_secret and guard pages cannot be read, by nobody
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            read += bytes.len();
            found += bytes.windows(needle.len()).filter(|window| *window == needle).count();
        }
    }
    assert!(read > 100_000, "the process was searched");
    Some(found)
}

/// Neither the PIN nor a vault key stays in the host between calls; SoftHSM's own keys do (see `security_note`).
#[test]
fn nothing_stays_in_the_host() {
    for more in ["seal = 'aes-gcm'", "seal = 'aes-key-wrap-pad'"] {
        let token = SoftHsm::new();
        let vault = VaultPlugin::start(&token.config("data", more)).unwrap();
        let key = vault.stage(1, Tier::Boot).unwrap();
        vault.commit(1).unwrap();
        vault.identity_public(None, true).unwrap();
        vault.open_key(1, Tier::Boot).unwrap();
        let pid = vault.host_pid().unwrap();
        let Some(control) = found_in_memory(pid, token.path("data").as_os_str().as_encoded_bytes()) else {
            println!("the host's memory cannot be read by this user: not searched");
            return;
        };
        assert!(control > 0, "what is there is found: the path of the vault's folder");
        assert_eq!(found_in_memory(pid, token.pin().as_bytes()), Some(0), "the PIN, {more}");
        assert_eq!(found_in_memory(pid, &key.expose()[..]), Some(0), "a vault key, {more}");
        assert_eq!(found_in_memory(pid, &key.expose()[8..24]), Some(0), "half of a vault key, {more}");
    }
}
