//! Vaults that do not open, and vaults that were put back: an agent never ends or spins over them, and never releases anything under an old one.

use mayfly_tests::{Agent, Network};
use std::path::{Path, PathBuf};

fn folder(network: &Network, agent: u8) -> PathBuf {
    network.dir().join(format!("agent-{agent}"))
}

/// Waits until the vault is in this state.
#[track_caller]
fn wait_vault(agent: &Agent<'_>, state: &str) {
    agent.wait_status(state, |status| status["vault"]["state"] == state);
}

/// Waits until the device works as any other.
#[track_caller]
fn wait_running(agent: &Agent<'_>) {
    agent.wait_status("it runs", |status| {
        status["vault"]["state"] == "open" && status["phase"] == "running" && status["fresh"] == true
    });
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let (path, place) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&path, &place);
        } else if entry.file_type().unwrap().is_file() {
            std::fs::copy(&path, &place).unwrap();
        }
    }
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
}

/// What a wrong passphrase does is what a wrong PIN and a wrong auth secret do.
#[test]
fn a_refused_vault_is_told_and_tried_once() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.make_aes("k");
    network.dev("kill", "agent-1");
    let secret = folder(&network, 1).join("vault.passphrase");
    let right = std::fs::read(&secret).unwrap();
    std::fs::write(&secret, "0".repeat(64)).unwrap();
    network.dev_start_only("agent-1");
    wait_vault(&agent, "vault-refused");
    let status = agent.mayfly(&["status"]).ok().text();
    assert!(status.contains("VAULT-REFUSED") && status.contains("tried once"), "{status}");
    let shown = agent.mayfly(&["vault", "show", "--json"]).ok().json();
    assert_eq!(shown["state"], "vault-refused");
    agent.mayfly(&["key", "list"]).refused("vault-refused");
    let why = agent.mayfly(&["why"]).ok().text();
    assert!(why.contains("now: vault-refused") && why.contains("next: put the right PIN"), "{why}");
    // Applications: no token, as if there were no agent; others work on.
    agent.pkcs11_tool(&["--list-objects"]).refused("");
    network.agent(2).mayfly_reading(&["iv", "--key", "k"], b"text").ok();
    // Not even the right one is looked at before somebody says so, by a restart.
    std::fs::write(&secret, &right).unwrap();
    wait_vault(&agent, "vault-refused");
    network.dev("kill", "agent-1");
    network.dev_start_only("agent-1");
    wait_running(&agent);
    agent.mayfly_reading(&["iv", "--key", "k"], b"text").ok();
}

#[test]
fn a_lost_vault_is_told_with_the_way_back() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.make_aes("k");
    network.dev("kill", "agent-1");
    let vault = folder(&network, 1).join("data/vault");
    copy(&vault, &network.file("kept"));
    std::fs::remove_dir_all(&vault).unwrap();
    network.dev_start_only("agent-1");
    wait_vault(&agent, "vault-lost");
    let status = agent.mayfly(&["status"]).ok().text();
    assert!(status.contains("mayfly ban NAME") && status.contains("mayfly join"), "{status}");
    network.agent(2).mayfly_reading(&["iv", "--key", "k"], b"text").ok();
    network.dev("kill", "agent-1");
    std::fs::remove_dir_all(&vault).unwrap();
    copy(&network.file("kept"), &vault);
    network.dev_start_only("agent-1");
    wait_running(&agent);
    agent.mayfly_reading(&["iv", "--key", "k"], b"text").ok();
}
