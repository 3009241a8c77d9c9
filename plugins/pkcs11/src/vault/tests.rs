//! On real SoftHSM tokens, one private token per test, in this process: SoftHSM finds its configuration by a variable of
//! the process, so these tests run one after the other.

use super::*;
use crate::record::FILE_BYTES_MAX;
use crate::seal::Sealing;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use mayfly_vault_store::faults::When;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

type Key = [u8; VAULT_KEY_BYTES];

struct Bench {
    dir: tempfile::TempDir,
    config: String,
    _turn: MutexGuard<'static, ()>,
}

impl Bench {
    fn new() -> Bench {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // thousands of fsyncs: in memory where that is to be had
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../softhsm-setup/softhsm-token");
        let run = Command::new(script).arg(dir.path().join("hsm")).output().unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        // SAFETY: the standard library locks its environment; the one C library here that reads it, SoftHSM, does so in
        // C_Initialize, which only tests that hold the lock above call.
        unsafe { std::env::set_var("SOFTHSM2_CONF", dir.path().join("hsm/softhsm2.conf")) };
        let section = std::fs::read_to_string(dir.path().join("hsm/vault.toml")).unwrap();
        let config = section.split("'''").nth(1).unwrap().to_owned();
        Bench { dir, config, _turn: turn }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self, name: &str) -> PathBuf {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.path(name);
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).unwrap();
        path
    }

    fn open(&self, name: &str) -> Result<Pkcs11Vault, GuestError> {
        Pkcs11Vault::open(&self.config, &self.data(name))
    }

    /// Opens with a crash at change number `number`, counted from the very first.
    fn open_to_crash(&self, name: &str, number: usize, when: When) -> Result<Pkcs11Vault, GuestError> {
        let config = Config::parse(&self.config).unwrap();
        let store = Arc::new(Store::open(&self.data(name), FILE_BYTES_MAX).unwrap());
        store.faults.crash_at(number, when);
        let module = Module::load(&config).unwrap();
        Pkcs11Vault::open_with(module, config, store)
    }

    fn copy(&self, from: &str, to: &str) {
        let run = Command::new("cp").arg("-aT").arg(self.path(from)).arg(self.path(to)).status().unwrap();
        assert!(run.success());
    }

    fn put_back(&self, from: &str, to: &str) {
        std::fs::remove_dir_all(self.path(to)).unwrap();
        self.copy(from, to);
    }
}

impl Pkcs11Vault {
    fn stage_key(&mut self, next: u64, tier: Tier) -> Result<Key, GuestError> {
        let mut key = [0; VAULT_KEY_BYTES];
        self.stage(next, tier, &mut key).map(|()| key)
    }

    fn opened(&mut self, generation: u64, tier: Tier) -> Result<Key, GuestError> {
        let mut key = [0; VAULT_KEY_BYTES];
        self.open_key(generation, tier, &mut key).map(|()| key)
    }

    fn advance(&mut self) -> (u64, Key) {
        let next = self.generation().unwrap().current + 1;
        let key = self.stage_key(next, Tier::Boot).unwrap();
        self.commit(next).unwrap();
        (next, key)
    }

    fn generations_in_token(&mut self) -> Vec<u64> {
        let vault = self.header.vault_id;
        let keys = self.token.with("test", |open| objects::generation_keys(open, &vault)).unwrap();
        keys.into_iter().map(|(generation, _)| generation).collect()
    }
}

fn status<T>(result: Result<T, GuestError>) -> Status {
    result.err().expect("must be refused").status
}

/// What a history has promised so far.
#[derive(Default)]
struct Promised {
    identity: Option<Identity>,
    keys: BTreeMap<(u64, Tier), Key>,
    committed: u64,
}

/// Two generations, a third that is discarded, and the identity, with every change of folder and token in it.
fn history(vault: &mut Pkcs11Vault, promised: &mut Promised) -> Result<(), GuestError> {
    promised.identity = Some(vault.identity_public(None, true)?);
    for next in 1..=2 {
        for tier in [Tier::Boot, Tier::PerRelease, Tier::Boot] {
            let key = vault.stage_key(next, tier)?;
            promised.keys.insert((next, tier), key);
        }
        vault.commit(next)?;
        promised.committed = next;
    }
    vault.stage_key(3, Tier::Boot)?;
    vault.discard_staged()
}

/// After a crash exactly one generation opens, it is the last promised one or the one that was being committed, nothing
/// of an older one is left in the token, and work goes on.
fn check(vault: &mut Pkcs11Vault, promised: &Promised) {
    let current = vault.generation().unwrap().current;
    assert!((promised.committed..=promised.committed + 1).contains(&current), "{current}");
    let there = vault.generations_in_token();
    assert!(there.iter().all(|generation| *generation >= current), "{there:?} over {current}");
    assert_eq!(there.iter().filter(|generation| **generation == current).count(), usize::from(current > 0));
    for ((generation, tier), key) in &promised.keys {
        if *generation == current {
            assert_eq!(vault.opened(current, *tier).unwrap(), *key, "{tier:?}");
        } else {
            assert_eq!(status(vault.opened(*generation, *tier)), Status::NoGeneration);
        }
    }
    if let Some(identity) = &promised.identity {
        assert_eq!(vault.identity_public(None, false).unwrap(), *identity);
    }
    vault.identity_public(None, true).unwrap();
    vault.identity_sign(b"message", &mut [0; SIGNATURE_BYTES]).unwrap();
    let (next, key) = vault.advance();
    assert_eq!(next, current + 1);
    assert_eq!(vault.opened(next, Tier::Boot).unwrap(), key);
    assert_eq!(vault.generations_in_token(), [next]);
}

#[test]
fn one_generation_opens_whatever_crashes_when() {
    let bench = Bench::new();
    bench.copy("hsm", "hsm-empty");
    let mut crashes = 0;
    for number in 0.. {
        let mut reached = false;
        for when in [When::Before, When::After] {
            // SoftHSM reads every object of a token at its start
            bench.put_back("hsm-empty", "hsm");
            let name = format!("{number}-{when:?}");
            let mut promised = Promised::default();
            let mut tried = 0;
            let result = bench.open_to_crash(&name, number, when).and_then(|mut vault| {
                let result = history(&mut vault, &mut promised);
                tried = vault.store.faults.tried();
                result
            });
            reached |= result.is_err();
            // and once more, in what the next start does
            for again in [When::Before, When::After] {
                drop(bench.open_to_crash(&name, 0, again));
            }
            check(&mut bench.open(&name).unwrap(), &promised);
            assert!(result.is_err() || tried <= number, "a crash at {number} of {tried} went unnoticed");
            crashes += usize::from(result.is_err());
        }
        if !reached {
            break;
        }
    }
    println!("{crashes} crashes");
    assert!(crashes > 80, "the history has its changes: {crashes}");
}

#[test]
fn the_keys_cannot_leave_the_token() {
    for more in ["seal = 'aes-gcm'", "seal = 'aes-key-wrap-pad'"] {
        let mut bench = Bench::new();
        bench.config.push_str(more);
        let mut vault = bench.open("data").unwrap();
        vault.identity_public(None, true).unwrap();
        let (generation, _) = vault.advance();
        let id = vault.header.vault_id;
        vault
            .token
            .with("test", |open| {
                let sealing = objects::generation_key(open, &id, generation)?.unwrap();
                let identity = objects::identity_key(open, &id)?.unwrap();
                cannot_leave(open, sealing, AttributeType::Value);
                cannot_leave(open, identity, AttributeType::Value);
                Ok(())
            })
            .unwrap();
    }
}

fn cannot_leave(open: &Open, key: ObjectHandle, value: AttributeType) {
    let session = &open.session;
    let shown = session.get_attributes(key, &[value]).unwrap();
    assert!(shown.is_empty(), "the value is not shown");
    for attribute in [
        Attribute::Extractable(true),
        Attribute::Sensitive(false),
        Attribute::Copyable(true),
        Attribute::Modifiable(true),
        Attribute::Label(b"other".to_vec()),
        Attribute::Wrap(true),
        Attribute::Decrypt(true),
    ] {
        assert!(session.update_attributes(key, std::slice::from_ref(&attribute)).is_err(), "{attribute:?} was set");
    }
    for template in [vec![], vec![Attribute::Token(false)], vec![Attribute::Extractable(true)]] {
        assert!(session.copy_object(key, &template).is_err(), "it was copied as {template:?}");
    }
    let wrapping =
        [Attribute::ValueLen(32.into()), Attribute::Wrap(true), Attribute::Unwrap(true), Attribute::Token(false)];
    let wrapping = session.generate_key(&Mechanism::AesKeyGen, &wrapping).unwrap();
    for mechanism in [Mechanism::AesKeyWrapPad, Mechanism::AesKeyWrap] {
        assert!(session.wrap_key(&mechanism, wrapping, key).is_err(), "it was wrapped");
    }
    assert_eq!(session.get_attributes(key, &[AttributeType::Extractable]).unwrap(), [Attribute::Extractable(false)]);
}

/// Who has the PIN puts a key that he knows in the place of one that is being staged: nothing is sealed by it.
#[test]
fn nothing_is_sealed_by_a_key_that_was_put_there() {
    for more in ["seal = 'aes-gcm'", "seal = 'aes-key-wrap-pad'"] {
        let mut bench = Bench::new();
        bench.config.push_str(more);
        let mut vault = bench.open("data").unwrap();
        let (current, key) = vault.advance();
        vault.stage_key(current + 1, Tier::Boot).unwrap();
        let id = vault.header.vault_id;
        let sealing = vault.token.sealing();
        vault
            .token
            .with("test", |open| {
                let real = objects::generation_key(open, &id, current + 1)?.unwrap();
                let names = open.session.get_attributes(real, &[AttributeType::Label, AttributeType::Id])?;
                open.session.destroy_object(real)?;
                let mut template = vec![
                    Attribute::Class(cryptoki::object::ObjectClass::SECRET_KEY),
                    Attribute::KeyType(cryptoki::object::KeyType::AES),
                    Attribute::Token(true),
                    Attribute::Private(true),
                    Attribute::Sensitive(true),
                    Attribute::Extractable(false),
                    Attribute::Value(vec![7; 32]),
                ];
                template.extend(names);
                template.extend(sealing.usage());
                open.session.create_object(&template)?;
                Ok(())
            })
            .unwrap();
        let error = vault.stage_key(current + 1, Tier::Window).unwrap_err();
        assert_eq!(error.status, Status::Corrupt);
        assert!(error.message.contains("was not made in it"), "{error}");
        assert_eq!(status(vault.commit(current + 1)), Status::Corrupt, "what was sealed before does not open by it");
        assert_eq!(vault.opened(current, Tier::Boot).unwrap(), key);
        vault.discard_staged().unwrap();
        vault.advance();
    }
}

/// Each way of sealing opens with its own key, context and every bit, and nothing else.
#[test]
fn sealed_keys_are_bound() {
    let bench = Bench::new();
    let mut vault = bench.open("data").unwrap();
    let id = vault.header.vault_id;
    for (number, sealing) in Sealing::ALL.into_iter().enumerate() {
        let generation = 100 + 2 * number as u64;
        vault
            .token
            .with("test", |open| {
                objects::make_generation_key(open, &id, generation, sealing)?;
                objects::make_generation_key(open, &id, generation + 1, sealing)?;
                let key = objects::generation_key(open, &id, generation)?.unwrap();
                let other_key = objects::generation_key(open, &id, generation + 1)?.unwrap();
                let sealed = sealing.seal(&open.session, key, b"context", &[7; 32])?;
                assert_eq!(sealed.len(), sealing.sealed_bytes());
                let again = sealing.seal(&open.session, key, b"context", &[7; 32])?;
                assert_eq!(sealing == Sealing::Gcm, sealed != again, "GCM has an IV, key wrap has none");
                let opens = |key, context: &[u8], sealed: &[u8]| {
                    let mut out = [0xaa; 32];
                    let result = sealing.open(&open.session, key, context, sealed, &mut out);
                    assert_eq!(out == [7; 32], result.is_ok());
                    assert!(result.is_ok() || out == [0; 32], "nothing of what does not open stays");
                    result.is_ok()
                };
                assert!(opens(key, b"context", &sealed));
                assert!(!opens(key, b"contexT", &sealed));
                assert!(!opens(key, b"", &sealed));
                assert!(!opens(other_key, b"context", &sealed));
                for byte in 0..sealed.len() {
                    let mut bad = sealed.clone();
                    bad[byte] ^= 0x20;
                    assert!(!opens(key, b"context", &bad), "byte {byte}");
                }
                for length in [0, 1, 12, 28, sealed.len() - 1] {
                    assert!(!opens(key, b"context", &sealed[..length]), "{length} bytes");
                }
                Ok(())
            })
            .unwrap();
    }
}

/// Tiers and generations cannot be exchanged in the file by somebody who can write there.
#[test]
fn a_rewritten_file_does_not_open() {
    let bench = Bench::new();
    let mut vault = bench.open("data").unwrap();
    vault.stage_key(1, Tier::Boot).unwrap();
    let staged = vault.stage_key(1, Tier::PerRelease).unwrap();
    vault.commit(1).unwrap();
    let good = vault.generation_file(GENERATION).unwrap().unwrap();
    let mut bad = good.clone();
    let (boot, release) = (good.keys[0].1.clone(), good.keys[1].1.clone());
    bad.keys = vec![(Tier::Boot, release), (Tier::PerRelease, boot)];
    vault.store.write(GENERATION, &bad.encode()).unwrap();
    assert_eq!(status(vault.opened(1, Tier::Boot)), Status::Corrupt);
    vault.store.write(GENERATION, &GenerationFile { generation: 2, ..good.clone() }.encode()).unwrap();
    assert_eq!(status(vault.opened(2, Tier::Boot)), Status::VaultLost);
    vault.store.write(GENERATION, &good.encode()).unwrap();
    assert_eq!(vault.opened(1, Tier::PerRelease).unwrap(), staged);
    vault.store.write(GENERATION, &[0; FILE_BYTES_MAX + 1]).unwrap();
    assert_eq!(status(vault.opened(1, Tier::Boot)), Status::Corrupt);
    drop(vault);
    assert_eq!(status(bench.open("data")), Status::Corrupt);
}

#[test]
fn a_folder_put_back_does_not_open_and_costs_nothing() {
    let bench = Bench::new();
    let mut vault = bench.open("data").unwrap();
    vault.identity_public(None, true).unwrap();
    vault.advance();
    drop(vault);
    bench.copy("data", "old");
    let mut vault = bench.open("data").unwrap();
    let (newest, key) = vault.advance();
    drop(vault);
    bench.copy("data", "new");
    bench.put_back("old", "data");
    let error = bench.open("data").err().unwrap();
    assert_eq!(error.status, Status::VaultLost);
    assert!(error.message.contains("is at generation 1") && error.message.contains("generation 2"), "{error}");
    bench.put_back("new", "data");
    assert_eq!(bench.open("data").unwrap().opened(newest, Tier::Boot).unwrap(), key, "the newest copy still opens");
}

/// The one thing that a token in software cannot prevent: the ledger's record of the generation does.
#[test]
fn a_token_put_back_is_told_truly() {
    let bench = Bench::new();
    let mut vault = bench.open("data").unwrap();
    let (old, key) = vault.advance();
    drop(vault);
    bench.copy("data", "old-data");
    bench.copy("hsm", "old-hsm");
    let mut vault = bench.open("data").unwrap();
    vault.advance();
    drop(vault);
    bench.put_back("old-hsm", "hsm");
    let error = bench.open("data").err().unwrap();
    assert_eq!(error.status, Status::VaultLost, "the token alone: {error}");
    assert!(error.message.contains("does not have the key of generation 2"), "{error}");
    bench.put_back("old-data", "data");
    let mut vault = bench.open("data").unwrap();
    assert_eq!(vault.opened(old, Tier::Boot).unwrap(), key, "both: it opens, and says which it is");
    assert_eq!(vault.generation().unwrap().current, old);
}

#[test]
fn a_cleared_token_is_a_lost_vault() {
    let bench = Bench::new();
    let mut vault = bench.open("data").unwrap();
    vault.advance();
    vault.destroy(|_| true).unwrap();
    assert_eq!(status(vault.opened(1, Tier::Boot)), Status::VaultLost);
    let health = vault.health().unwrap();
    assert_eq!(health.state, HealthState::VaultLost);
    assert!(health.detail.contains("enrol the device anew"), "{}", health.detail);
    drop(vault);
    assert_eq!(status(bench.open("data")), Status::VaultLost);

    let mut vault = bench.open("identity-only").unwrap();
    vault.identity_public(None, true).unwrap();
    let id = vault.header.vault_id;
    let destroy = |open: &Open| Ok(open.session.destroy_object(objects::identity_key(open, &id)?.unwrap())?);
    vault.token.with("test", destroy).unwrap();
    assert_eq!(status(vault.identity_sign(b"x", &mut [0; SIGNATURE_BYTES])), Status::VaultLost);
    drop(vault);
    let error = bench.open("identity-only").err().unwrap();
    assert!(error.message.contains("does not have the identity key"), "{error}");
}

#[test]
fn a_session_lost_or_logged_out_is_opened_again() {
    let bench = Bench::new();
    let mut vault = bench.open("data").unwrap();
    let (generation, key) = vault.advance();
    // another program part of this process logs out: private objects are no longer found
    let logout = |open: &Open| Ok(open.another()?.session.logout()?);
    vault.token.with("test", logout).unwrap();
    assert_eq!(vault.opened(generation, Tier::Boot).unwrap(), key);
    vault.token.with("test", logout).unwrap();
    assert_eq!(vault.generation().unwrap().current, generation);
    assert_eq!(vault.stage_key(generation + 1, Tier::Boot).map(|_| ()).ok(), Some(()));
    vault.token.with("test", logout).unwrap();
    vault.commit(generation + 1).unwrap();
    assert_eq!(vault.generations_in_token(), [generation + 1]);
    // the whole library is started anew under us
    vault.token.begin_again_under_us();
    assert!(vault.opened(generation + 1, Tier::Boot).is_ok());
}

/// Two vaults never see each other's objects, not even to destroy.
#[test]
fn other_objects_are_left_alone() {
    let bench = Bench::new();
    let mut first = bench.open("first").unwrap();
    let (generation, key) = first.advance();
    drop(first);
    let mut second = bench.open("second").unwrap();
    second.advance();
    second.advance();
    second.stage_key(3, Tier::Boot).unwrap();
    second.discard_staged().unwrap();
    second.destroy(|_| true).unwrap();
    drop(second);
    assert_eq!(bench.open("first").unwrap().opened(generation, Tier::Boot).unwrap(), key);
}

#[test]
fn a_header_alone_is_not_made_again() {
    let bench = Bench::new();
    bench.open("data").unwrap().advance();
    std::fs::remove_file(bench.path("data/vault")).unwrap();
    let error = bench.open("data").err().unwrap();
    assert_eq!(error.status, Status::Corrupt);
    assert!(error.message.contains("missing beside the other files"), "{error}");
}
