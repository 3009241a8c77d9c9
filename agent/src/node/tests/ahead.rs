//! A vault that has no keys of the generation at which its chip is: a counter that somebody else moved, and a folder that was put back.

use super::chips::{Maker, Swtpm};
use super::net::{Net, config_with, eventually};
use super::*;
use mayfly_plugin_api::{HostConfig, PathRule, Tier, VaultPlugin, find_artifact};
use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{Approve, Delete, DeviceRole, Role, TargetKind};
use std::path::{Path, PathBuf};

/// Two devices with vaults in files, and a third one on this chip.
fn net(chip: &Swtpm) -> Net {
    let mut net = Net::up(2);
    let device = join(&net.invite(), &config_with(net.dir.path(), 2, &chip.vault())).unwrap().device;
    net.start_with(2, &chip.vault());
    net.post(Approve { device });
    net.post(Role { device, roles: vec![DeviceRole::Holder, DeviceRole::Witness] });
    net.wait_ready();
    net
}

fn folder(net: &Net) -> PathBuf {
    net.node(2).config().data_dir.join("vault")
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Who has the auth secret moves the counter: with a copy of the folder that is thrown away afterwards.
fn move_counter(net: &Net, folder: &Path, chip: &Swtpm) -> u64 {
    let stolen = net.dir.path().join("stolen");
    copy(folder, &stolen);
    let mut host = HostConfig::new(find_artifact("libmayfly_vault_tpm.so").unwrap(), &stolen).unwrap();
    host.config_text = format!("tcti = \"{}\"\n", chip.tcti());
    host.path_rule = PathRule::DangerDevelopment;
    let plugin = VaultPlugin::start(&host).unwrap();
    let next = plugin.generation().unwrap().current + 1;
    plugin.stage(next, Tier::Boot).unwrap();
    plugin.commit(next).unwrap();
    drop(plugin);
    std::fs::remove_dir_all(stolen).unwrap();
    next
}

/// How often the network was told; the alert stands only until the device delegates anew.
fn alerts(net: &Net) -> usize {
    let entries = net.node(1).replica().entries(0, 1000).unwrap();
    let says = b"its vault's counter is at generation";
    entries.iter().filter(|(_, _, bytes)| bytes.windows(says.len()).any(|part| part == says)).count()
}

#[test]
fn a_counter_that_was_moved_costs_its_shards_and_nothing_else() {
    let maker = Maker::new();
    let chip = maker.chip();
    let mut net = net(&chip);
    let device = net.node(2).device();
    let old = net.make(|_| ());
    eventually("the shard is active", || net.node(2).holdings().shards == 1);
    let vault = folder(&net);
    net.stop(2);
    let moved = move_counter(&net, &vault, &chip);
    net.start_with(2, &chip.vault());
    net.wait_ready();
    eventually("the next generation is committed and told", || {
        net.replica.tip().devices[&device].vault_generation == moved + 1
    });
    let vault = net.node(2).vault();
    assert_eq!((vault.generation, vault.lost), (moved + 1, vec![old]));
    assert_eq!((alerts(&net), net.node(2).trouble()), (1, None));
    assert_eq!(net.node(2).holdings().shards, 1, "the record stays until the ledger says what became of it");
    net.node(2).with_key(&old, Use::Encrypt, |_| ()).expect("others hold two shards");
    net.stop(0);
    let refused = net.node(2).with_key(&old, Use::Encrypt, |_| ()).unwrap_err().to_string();
    assert!(refused.contains("is lost on this device"), "{refused}");
    net.start(0);
    net.wait_ready();
    let new = net.make(|_| ());
    net.stop(2);
    net.start_with(2, &chip.vault());
    net.wait_ready();
    net.stop(0);
    net.node(2).with_key(&new, Use::Encrypt, |_| ()).expect("by this device's shard");
    assert_eq!((alerts(&net), net.node(2).vault().lost), (1, vec![old]));
    net.start(0);
    net.wait_ready();
    net.node(2).post(&Delete { target: TargetKind::Key, id: Hash(old.0) }.into()).unwrap();
    eventually("what is over is erased", || net.node(2).vault().lost.is_empty());
}

#[test]
fn a_folder_put_back_alone_waits_for_its_newest_copy() {
    let maker = Maker::new();
    let chip = maker.chip();
    let mut net = net(&chip);
    let device = net.node(2).device();
    let key = net.make(|_| ());
    eventually("the shard is active", || net.node(2).holdings().shards == 1);
    let (old, newest) = (net.dir.path().join("old"), net.dir.path().join("newest"));
    let vault = folder(&net);
    copy(&vault, &old);
    net.node(2).revoke_vault().unwrap();
    eventually("told", || net.replica.tip().devices[&device].vault_generation == 2);
    net.stop(2);
    copy(&vault, &newest);
    copy(&old, &vault);

    net.start_with(2, &chip.vault());
    net.wait_ready();
    assert!(net.node(2).revoke_vault().is_err(), "nothing is staged over keys that a copy may still have");
    let trouble = net.node(2).trouble().expect("its keys are not here");
    assert_eq!(trouble.state.word(), "vault-damaged");
    assert!(trouble.state.next().contains("the newest copy of the vault's folder"));
    assert_eq!((alerts(&net), net.node(2).vault().generation), (0, 2));
    net.stop(2);
    copy(&newest, &vault);
    net.start_with(2, &chip.vault());
    net.wait_ready();
    assert_eq!(net.node(2).trouble(), None);
    net.stop(0);
    net.node(2).with_key(&key, Use::Encrypt, |_| ()).unwrap();
}
