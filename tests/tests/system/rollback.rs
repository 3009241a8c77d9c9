//! Vaults that do not open, and vaults that were put back: an agent never ends or spins over them, and never releases anything under an old one.

use mayfly_tests::{Agent, Network, Options, run};
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Takes folders of a network away and puts copies back: what a snapshot of a virtual machine does.
struct Snapshot<'n> {
    network: &'n Network,
    folders: Vec<&'static str>,
}

impl<'n> Snapshot<'n> {
    /// Of processes that do not run.
    fn take(network: &'n Network, folders: &[&'static str]) -> Self {
        folders.iter().for_each(|name| copy(&network.dir().join(name), &network.file("snapshot").join(name)));
        Self { network, folders: folders.to_vec() }
    }

    fn put_back(&self) {
        for name in &self.folders {
            let place = self.network.dir().join(name);
            std::fs::remove_dir_all(&place).unwrap();
            copy(&self.network.file("snapshot").join(name), &place);
        }
    }
}

/// Generation of the vault, here and on the ledger.
#[track_caller]
fn generations(agent: &Agent<'_>) -> (u64, u64) {
    let vault = agent.mayfly(&["vault", "show", "--json"]).ok().json();
    (vault["generation"].as_u64().unwrap(), vault["acknowledged_generation"].as_u64().unwrap())
}

/// Moves the vault on, until the ledger has it.
#[track_caller]
fn revoke(agent: &Agent<'_>) -> u64 {
    let (before, _) = generations(agent);
    agent.mayfly(&["vault", "revoke"]).ok();
    agent.wait_status("the ledger knows of it", |status| {
        status["vault"]["acknowledged_generation"].as_u64().is_some_and(|generation| generation > before)
    });
    generations(agent).0
}

/// Agent 1 with everything under it is put back to before a revocation; nothing is released by it and nothing assembled.
fn put_back(vaults: &'static str, under: &[&'static str], folders: &[&'static str]) {
    let network = Network::up(&Options { vaults, ..Options::default() });
    let (agent, other) = (network.agent(1), network.agent(2));
    agent.make_aes("k");
    let stop = || [&["agent-1"], under].concat().iter().for_each(|name| network.dev("kill", name));
    let start = || under.iter().for_each(|name| network.dev("start", name));
    stop();
    let snapshot = Snapshot::take(&network, folders);
    start();
    network.dev_start_only("agent-1");
    wait_running(&agent);
    let generation = revoke(&agent);
    agent.mayfly_reading(&["iv", "--key", "k"], b"text").ok();
    stop();
    snapshot.put_back();
    start();
    network.dev_start_only("agent-1");

    agent.wait_status("quarantine", |status| status["phase"] == "quarantined");
    let status = agent.mayfly(&["status"]).ok().text();
    assert!(status.contains("QUARANTINED") && status.contains("mayfly ban NAME"), "{status}");
    assert_eq!(generations(&agent), (generation - 1, generation), "the copy opens: only the ledger tells");
    agent.mayfly_reading(&["iv", "--key", "k"], b"text").refused("quarantine");
    agent.mayfly(&["key", "create", "new", "--type", "aes:256"]).refused("quarantine");
    other.wait_status("the alert", |status| {
        status["alerts"].as_array().is_some_and(|alerts| {
            alerts.iter().any(|alert| alert["device"] == "agent-1" && alert["what"] == "vault behind")
        })
    });
    // It gives nobody its shard: with one more holder away there are too few.
    other.mayfly_reading(&["iv", "--key", "k"], b"text").ok();
    network.dev("kill", "agent-3");
    other.mayfly_reading(&["iv", "--key", "k"], b"text").refused("agent-1");
    // Nor after one more start.
    network.dev("kill", "agent-1");
    network.dev_start_only("agent-1");
    agent.wait_status("quarantine", |status| status["phase"] == "quarantined");
    other.mayfly_reading(&["iv", "--key", "k"], b"text").refused("agent-1");
}

#[test]
fn a_whole_tpm_that_was_put_back_is_in_quarantine() {
    put_back("tpm,file,file", &["swtpm-1"], &["swtpm-1", "agent-1/data"]);
}

#[test]
fn a_whole_token_that_was_put_back_is_in_quarantine() {
    put_back("pkcs11,file,file", &[], &["softhsm-1", "agent-1/data"]);
}

/// The vault has moved on when the power goes, and the ledger does not know it yet.
#[test]
fn a_generation_that_the_ledger_missed_is_told_after_the_next_start() {
    let network = Network::up(&Options { vaults: "tpm,file,file", ..Options::default() });
    let agent = network.agent(1);
    agent.make_aes("k");
    let (before, known) = generations(&agent);
    assert_eq!(before, known);
    network.dev("kill", "ledger-1");
    agent.mayfly(&["vault", "revoke"]).ok();
    assert_eq!(generations(&agent), (before + 1, before));
    network.dev("kill", "agent-1");
    network.dev("start", "ledger-1");
    network.dev_start_only("agent-1");
    wait_running(&agent);
    agent.wait_status("it is told", |status| status["vault"]["acknowledged_generation"] == before + 1);
    agent.mayfly_reading(&["iv", "--key", "k"], b"text").ok();
}

/// Extends register 23 of agent 1's TPM, as an update of what a host starts does. The agent must not run: a TPM without a resource manager has
/// one user.
fn extend(network: &Network, value: &str) {
    let tcti = format!("swtpm:path={}", network.dir().join("swtpm-1/tpm").display());
    run(Command::new("tpm2_pcrextend").arg(format!("23:sha256={value}")).env("TPM2TOOLS_TCTI", tcti)).ok();
}

/// What [`extend`] adds first, and what a register of zeros has after it: SHA-256 of both (TPM 2.0 Library, part 3, 22.2).
const FIRST: (&str, &str) = (
    "1111111111111111111111111111111111111111111111111111111111111111",
    "8878b15a7d6a3a4f464e8f9f42591dbc0cf4bedea0ec309003d2b2ee53655ef8",
);
/// What it adds then.
const SECOND: &str = "2222222222222222222222222222222222222222222222222222222222222222";

#[test]
fn registers_that_nobody_approved_wait_and_lose_nothing() {
    let network = Network::up(&Options { threshold: 3, vaults: "tpm,pkcs11,file", ..Options::default() });
    let (agent, approver) = (network.agent(1), network.agent(2));
    agent.make_aes("k");
    let policy = |field: &str| agent.mayfly(&["vault", "policy", "--json"]).ok().json()[field].clone();
    let administrator = network.dir().join("administrator.key").display().to_string();

    // Agent 2 becomes the approver of agent 1's registers, from the next generation on.
    let roles = ["device", "role", "agent-2", "--set", "holder,witness,pcr-approver", "--admin", &administrator];
    network.mayfly(&roles).ok();
    let key = network.mayfly(&["device", "show", "agent-2", "--json"]).ok().json()["identity"].clone();
    let config = folder(&network, 1).join("agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let pcr = format!("[pcr]\nregisters = [23]\napprover = \"{}\"\n", key.as_str().unwrap());
    let mut table: toml::Table = text.parse().unwrap();
    let plugin = table["vault"]["config"].as_str().unwrap().to_owned() + &pcr;
    table["vault"]["config"] = plugin.into();
    std::fs::write(&config, toml::to_string(&table).unwrap()).unwrap();
    network.dev("kill", "agent-1");
    network.dev_start_only("agent-1");
    wait_running(&agent);
    approver.mayfly(&["vault", "approve-pcr", "--device", "agent-1", "--current"]).refused("asks no approver");
    let next = ["vault", "approve-pcr", "--device", "agent-1", "--current", "--next-generation"];
    network.agent(3).mayfly(&next).refused("Ed25519");
    approver.mayfly(&next).ok();
    wait_for("the approval", || policy("references")[1]["approved_now"] == true);
    revoke(&agent);
    assert_eq!(policy("sealed_to_approver"), true);

    // The good path: approved before the update, never pending.
    let (first, value) = FIRST;
    approver.mayfly(&["vault", "approve-pcr", "--device", "agent-1", "--pcr", &format!("23={value}")]).ok();
    wait_for("the approval", || policy("approvals").as_array().unwrap().len() == 2);
    network.dev("kill", "agent-1");
    extend(&network, first);
    network.dev_start_only("agent-1");
    wait_running(&agent);
    assert_eq!(policy("registers")["23"], value);
    approver.mayfly_reading(&["iv", "--key", "k"], b"text").ok();

    // One that was missed: the agent is a member, works, and gives no shard.
    network.dev("kill", "agent-1");
    extend(&network, SECOND);
    network.dev_start_only("agent-1");
    agent.wait_status("it waits", |status| {
        status["vault"]["state"] == "policy-pending" && status["phase"] == "running" && status["fresh"] == true
    });
    assert_eq!(agent.mayfly(&["status", "--json"]).ok().json()["holdings"]["shards"], 1);
    approver.mayfly_reading(&["iv", "--key", "k"], b"text").refused("agent-1");
    // A wrong one is told, and harmful to nobody.
    approver.mayfly(&["vault", "approve-pcr", "--device", "agent-1", "--digest", &"33".repeat(32)]).ok();
    wait_vault(&agent, "policy-pending");
    approver.mayfly(&["vault", "approve-pcr", "--device", "agent-1", "--current"]).ok();
    wait_vault(&agent, "open");
    approver.mayfly_reading(&["iv", "--key", "k"], b"text").ok();
}

#[track_caller]
fn wait_for(what: &str, done: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}
