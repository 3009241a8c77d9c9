//! Vaults as agents use them, over real plugins: revocations, what a crash leaves, several vaults together.

use super::chips::Maker;
use super::net::{Net, config, config_with, eventually};
use super::*;
use crate::node::shards::{ShardLabel, ShardStore};
use crate::node::vault::{SealingKeys, VaultState};
use mayfly_plugin_api::{HostConfig, PathRule, Status, Tier, VaultPlugin, find_artifact};
use mayfly_protocol::ShardId;
use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{Delete, TargetKind, VaultOpening};
use mayfly_secmem::Secret;
use std::path::Path;

const OPENINGS: [VaultOpening; 4] =
    [VaultOpening::Boot, VaultOpening::Window(3600), VaultOpening::Window(7), VaultOpening::PerRelease];

fn start(config: &Config) -> Vault {
    let vault = Vault::start(config, &config.data_dir.join("vault"), true).unwrap();
    assert_eq!(vault.state(), VaultState::Open);
    vault
}

fn keys(vault: &Vault) -> Vec<[u8; 32]> {
    OPENINGS.into_iter().map(|opening| *vault.key(vault.generation(), opening).unwrap().expose()).collect()
}

fn all_differ(keys: &[[u8; 32]]) -> bool {
    (0..keys.len()).all(|at| !keys[at + 1..].contains(&keys[at]))
}

fn store(vault: &Arc<Vault>, dir: &Path) -> ShardStore {
    ShardStore::open(&dir.join("shards.redb"), vault.device(), vault.clone()).unwrap()
}

fn label(number: u16) -> ShardLabel {
    let mut id = [0; 32];
    id[..2].copy_from_slice(&number.to_be_bytes());
    ShardLabel {
        shard: ShardId(id),
        key: KeyId(id),
        generation: 1,
        epoch: 1,
        index: 1,
        opening: OPENINGS[usize::from(number) % OPENINGS.len()],
        accepted: [1; 32],
        deadline_ms: 1,
        dealer: DeviceId([u8::try_from(number / 500).unwrap(); 32]),
    }
}

fn fill(store: &ShardStore, numbers: std::ops::Range<u16>) {
    for number in numbers {
        let share = Secret::new_with(|b| b[..2].copy_from_slice(&number.to_be_bytes())).unwrap();
        store.accept(&label(number), &share).unwrap();
        store.promote(&label(number).shard).unwrap();
    }
}

fn check(store: &ShardStore, numbers: impl Iterator<Item = u16>) {
    for number in numbers {
        let share = store.open_share(&label(number).shard).unwrap();
        assert_eq!(share.expose()[..2], number.to_be_bytes(), "{number}");
    }
}

#[test]
fn a_revocation_ends_windows_and_old_keys() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 0);
    let vault = start(&config);
    let before = keys(&vault);
    assert!(all_differ(&before));
    assert_eq!(vault.windows(), 2);
    let boot = Arc::downgrade(&vault.key(1, VaultOpening::Boot).unwrap());
    let staged = vault.stage().unwrap();
    assert_eq!(keys(&vault), before, "staging changes nothing");
    vault.commit(&staged).unwrap();
    assert_eq!((vault.generation(), vault.windows()), (2, 0));
    assert!(boot.upgrade().is_none(), "the old boot key is wiped");
    for opening in OPENINGS {
        let error = vault.key(1, opening).unwrap_err();
        assert!(error.is_of_generation(), "{error}");
        assert_eq!(vault.key(2, opening).unwrap().expose(), staged.key(opening).unwrap().expose());
    }
    let after = keys(&vault);
    assert!(after.iter().all(|key| !before.contains(key)));
    drop(vault);
    assert_eq!(keys(&start(&config)), after);
}

/// A commit's answer is lost, the vault says once where it is and nothing to the next question. That it moved must never be taken for the
/// opposite: what was re-encrypted would be thrown away, and with it every shard.
#[test]
fn a_vault_that_is_silent_after_it_said_where_it_is_loses_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/plugin-api");
    let library = dir.path().join("libmayfly_vault_hostile.so");
    let mut compiler = std::process::Command::new("cc");
    compiler
        .args(["-std=gnu11", "-O1", "-fPIC", "-shared", "-Wno-stringop-overflow", "-I"])
        .arg(plugins.join("include"));
    compiler.arg(plugins.join("tests/hostile/vault.c")).arg("-o").arg(&library).arg("-lpthread");
    assert!(compiler.status().unwrap().success());
    let section = format!(
        "[vault]\nkind = \"hostile\"\nplugin = \"{}\"\nconfig = \"commits, answers once and is silent once\"\n",
        library.display()
    );
    let vault = Arc::new(start(&config_with(dir.path(), 0, &section)));
    let shards = store(&vault, dir.path());
    fill(&shards, 0..1);
    let outcome = shards.revoke();
    eventually("the vault answers", || shards.undisturbed(|| Ok(())).is_ok());
    assert_eq!(vault.generation(), 2);
    println!("{outcome:?}");
    check(&shards, 0..1);
    drop(shards);
    check(&store(&vault, dir.path()), 0..1);
}

/// The plugin's process is killed at any moment of a revocation; whatever that leaves, nothing is lost and one generation opens.
#[test]
fn a_plugin_killed_anywhere_in_a_revocation_loses_no_shard() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), 0);
    let vault = Arc::new(start(&config));
    let shards = store(&vault, dir.path());
    fill(&shards, 0..12);
    let live = || (0..12).filter(|n| *n != 5);
    shards.erase(&label(5).shard).unwrap();
    let mut succeeded = 0;
    for delay_ms in 0..24 {
        let before = vault.generation();
        let outcome = std::thread::scope(|scope| {
            let revoking = scope.spawn(|| shards.revoke());
            std::thread::sleep(Duration::from_millis(delay_ms / 2));
            vault.danger_kill_for_test();
            revoking.join().unwrap()
        });
        succeeded += usize::from(outcome.is_ok());
        eventually("the vault answers", || shards.undisturbed(|| Ok(())).is_ok());
        assert!(vault.generation() - before <= 1, "{outcome:?}");
        assert!(outcome.is_err() || vault.generation() == before + 1);
        eventually("every tier opens", || vault.key_anew(vault.generation(), VaultOpening::PerRelease).is_ok());
        check(&shards, live());
    }
    println!("{succeeded} of 24 revocations succeeded in spite of it");
    drop(shards);
    drop(vault);
    let vault = Arc::new(start(&config));
    check(&store(&vault, dir.path()), live());
}

#[test]
fn deleted_keys_are_revoked_and_the_ledger_is_told() {
    let mut net = Net::up(2);
    let (kept, gone) = (net.make(|_| ()), net.make(|k| k.policy.vault_opening = VaultOpening::Window(60)));
    net.node(0).with_key(&gone, Use::Encrypt, |_| ()).unwrap();
    net.node(0).post(&Delete { target: TargetKind::Key, id: Hash(gone.0) }.into()).unwrap();
    let told = |net: &Net, generation| {
        eventually("the ledger is told", || {
            let tip = net.replica.tip();
            net.devices().iter().all(|device| tip.devices[device].vault_generation == generation)
        });
    };
    told(&net, 2);
    for node in net.nodes.iter().flatten() {
        assert_eq!((node.unrevoked(), node.vault().generation, node.holdings().shards), (0, 2, 1));
        node.with_key(&kept, Use::Encrypt, |_| ()).unwrap();
    }
    net.node(1).revoke_vault().unwrap();
    let device = net.devices()[1];
    eventually("told again", || net.replica.tip().devices[&device].vault_generation == 3);
    let bench = net.node(1).bench_vault(2, true).unwrap();
    assert_eq!((bench.generation, bench.shards, bench.tiers.len()), (4, Some(1), 3), "{bench:?}");
    assert!(bench.tiers.iter().all(|tier| tier.openings == 2 && tier.releases_per_second > 0.0), "{bench:?}");
    net.stop(1);
    net.start(1);
    net.wait_ready();
    eventually("told after a restart", || net.replica.tip().devices[&device].vault_generation == 4);
    net.node(0).with_key(&kept, Use::Encrypt, |_| ()).unwrap();
}

#[test]
fn a_rate_that_the_vault_cannot_serve_is_refused_with_a_way_out() {
    let net = Net::up(2);
    let make = |opening, rate| {
        let mut key = super::net::new_key(net.devices());
        (key.policy.vault_opening, key.policy.rate) = (opening, rate);
        net.node(0).create_key(key)
    };
    let error = make(VaultOpening::PerRelease, 19_999).unwrap_err().to_string();
    assert!(error.contains("releases per second in per-release"), "{error}");
    assert!(error.contains("ask for window:SECONDS or boot"), "{error}");
    let error = make(VaultOpening::Boot, 20_001).unwrap_err().to_string();
    assert!(error.contains("at most 20000 uses per second"), "{error}");
    make(VaultOpening::Boot, 20_000).unwrap();
}

// --- several vaults together ------------------------------------------------------------------------------------------------

/// Makes a section `[vault]` one of the parts of a combined vault.
fn part(section: &str) -> String {
    section.replace("[vault.", "[vault.all.").replace("[vault]", "[[vault.all]]")
}

fn file_part(dir: &Path, name: &str) -> String {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join(name);
    if !path.exists() {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(&path).unwrap();
        std::io::Write::write_all(&mut file, b"correct horse battery staple").unwrap();
    }
    format!("[[vault.all]]\nkind = \"file\"\nconfig = '''\npassphrase_file = \"{}\"\n'''\n", path.display())
}

fn token_part(dir: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../softhsm-setup/softhsm-token");
    let run = std::process::Command::new(script).arg(dir.join("hsm")).output().unwrap();
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    part(&std::fs::read_to_string(dir.join("hsm/vault.toml")).unwrap())
}

fn combined(dir: &Path, parts: &[String]) -> Config {
    config_with(dir, 0, &format!("[vault]\nkind = \"all-of\"\n{}", parts.concat()))
}

/// Part `at` alone, as the agent starts it.
fn alone(config: &Config, at: usize) -> VaultPlugin {
    let part = &config.vault.all[at];
    let plugin = find_artifact(&format!("libmayfly_vault_{}.so", part.kind)).unwrap();
    let folder = config.data_dir.join("vault").join(format!("{}-{}", at + 1, part.kind));
    let mut host = HostConfig::new(plugin, folder).unwrap();
    host.config_text.clone_from(&part.config);
    host.env = part.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    host.path_rule = PathRule::DangerDevelopment;
    VaultPlugin::start(&host).unwrap()
}

fn lockstep(config: &Config) {
    let vault = start(config);
    let first = keys(&vault);
    assert!(all_differ(&first));
    let staged = vault.stage().unwrap();
    vault.commit(&staged).unwrap();
    let second = keys(&vault);
    assert!(second.iter().all(|key| !first.contains(key)));
    drop(vault);
    for at in 0..2 {
        let part = alone(config, at);
        let own = part.open_key(2, Tier::Boot).unwrap();
        assert!(!second.contains(own.expose()), "a part alone is not enough");
        assert_eq!(part.open_key(1, Tier::Boot).unwrap_err().status(), Some(Status::NoGeneration));
    }
    // A crash between the two commits: all have staged, one has committed.
    let vault = start(config);
    assert_eq!(keys(&vault), second);
    let staged = vault.stage().unwrap();
    let third: Vec<_> = OPENINGS.into_iter().map(|opening| *staged.key(opening).unwrap().expose()).collect();
    drop(vault);
    alone(config, 0).commit(3).unwrap();
    let vault = start(config);
    assert_eq!((vault.generation(), keys(&vault)), (3, third), "finished forward");
    drop(vault);
    // One that went ahead alone, as a copy of the other that was put back looks.
    let part = alone(config, 1);
    for tier in Tier::ALL {
        part.stage(4, tier).unwrap();
    }
    part.commit(4).unwrap();
    drop(part);
    let error = Vault::start(config, &config.data_dir.join("vault"), false).unwrap_err();
    assert_eq!(error.status(), Some(Status::Corrupt), "{error}");
    assert!(error.to_string().contains("do not belong together"), "{error}");
}

#[test]
fn two_files_together() {
    let dir = tempfile::tempdir().unwrap();
    let config = combined(dir.path(), &[file_part(dir.path(), "one"), file_part(dir.path(), "two")]);
    let vault = start(&config);
    assert_eq!((vault.kind(), vault.software_only()), ("file+file", true));
    drop(vault);
    lockstep(&config);
    std::fs::remove_dir_all(config.data_dir.join("vault/2-file")).unwrap();
    let error = Vault::start(&config, &config.data_dir.join("vault"), false).unwrap_err();
    assert!(error.to_string().contains("do not belong together"), "{error}");
}

#[test]
fn a_file_and_a_token_together() {
    let dir = tempfile::tempdir().unwrap();
    let config = combined(dir.path(), &[file_part(dir.path(), "one"), token_part(dir.path())]);
    lockstep(&config);
}

#[test]
fn a_chip_and_a_token_together() {
    let dir = tempfile::tempdir().unwrap();
    let (maker, token) = (Maker::new(), token_part(dir.path()));
    let chip = maker.chip();
    let config = combined(dir.path(), &[part(&chip.vault()), token]);
    lockstep(&config);
    drop(chip);
    assert!(Vault::start(&config, &config.data_dir.join("vault"), false).is_err(), "a part is missing");
}

#[test]
#[ignore = "figures"]
fn figures_of_a_revocation() {
    let dir = tempfile::tempdir().unwrap();
    let maker = Maker::new();
    let chip = maker.chip();
    for (what, section) in [("tpm", chip.vault()), ("file", String::new())] {
        let folder = dir.path().join(what);
        std::fs::create_dir(&folder).unwrap();
        let config = if section.is_empty() { config(&folder, 0) } else { config_with(&folder, 0, &section) };
        let vault = Arc::new(start(&config));
        let shards = store(&vault, &folder);
        fill(&shards, 0..1000);
        for _ in 0..3 {
            let revoked = shards.revoke().unwrap();
            println!("{what}: {} shards in {:?}, of it the commit {:?}", revoked.kept, revoked.took, revoked.commit);
        }
        (0..1000).for_each(|number| shards.erase(&label(number).shard).unwrap());
        let revoked = shards.revoke().unwrap();
        println!("{what}: {} shards revoked in {:?}", revoked.revoked, revoked.took);
        println!("{what}: {:#?}", vault.bench(20).unwrap());
    }
}

/// Of what a holder does for a release of tier `boot`: rules, limits, grants, vault.
#[test]
#[ignore = "figures"]
fn figures_of_a_release() {
    let net = Net::up(2);
    let key = net.make(|_| ());
    let ask = super::holders::release(&net, key, 1);
    let holder = &net.node(1).holder;
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..20_000 {
        let began = Instant::now();
        let released = holder.release(&ask).unwrap();
        times.push(began.elapsed());
        drop(released);
    }
    times.sort();
    println!("release, boot: p50 {:?}, p99 {:?}", times[times.len() / 2], times[times.len() * 99 / 100]);
}
