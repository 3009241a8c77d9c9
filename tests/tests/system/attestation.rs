//! Chips that prove themselves: to witnesses by themselves, to an administrator by `mayfly device attest`; what people are shown.

use mayfly_tests::{Network, Options, Ran, program, run};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../softhsm-setup").join(name)
}

fn device<'a>(devices: &'a serde_json::Value, name: &str) -> &'a serde_json::Value {
    devices.as_array().unwrap().iter().find(|device| device["name"] == name).expect("it is on the ledger")
}

/// Two TPMs and a file vault: each TPM is seen by the two other witnesses, and nobody vouches for the file vault.
#[test]
fn witnesses_attest_the_chips_of_a_network() {
    let network = Network::up(&Options { vaults: "tpm,tpm,file", ..Options::default() });
    let listed = || network.mayfly(&["device", "list", "--json"]).ok().json();
    network.agent(1).wait_status("no quorum attested agent-1", |status| {
        status["attestation"]["by"] == "witnesses" && status["attestation"]["count"] == 2
    });
    network.agent(2).wait_status("no quorum attested agent-2", |status| status["attestation"]["by"] == "witnesses");
    let devices = listed();
    let first = device(&devices, "agent-1");
    assert_eq!(first["attestation"]["software"], true, "{first}");
    assert_eq!(first["attestation"]["registers"]["numbers"], serde_json::json!([0, 2, 4, 7]), "{first}");
    assert!(first["vault_generation_proved_ms"].is_u64(), "{first}");
    assert_ne!(first["attestation"]["certificate"], device(&devices, "agent-2")["attestation"]["certificate"]);
    assert!(device(&devices, "agent-3")["attestation"]["by"].is_null());

    let text = network.mayfly(&["device", "list"]).ok().text();
    assert!(text.contains("2 witnesses") && text.contains("NOT ATTESTED (network policy allows it)"), "{text}");
    let shown = network.mayfly(&["device", "show", "agent-2"]).ok().text();
    assert!(shown.contains("swtpm (SOFTWARE, for development)") && shown.contains("proved by its chip at"), "{shown}");
    let shown = network.mayfly(&["device", "show", "agent-3"]).ok().text();
    assert!(shown.contains("its own word") && !shown.contains("ALERT"), "{shown}");
    // One machine is one device: another one on the same chip is refused by the ledger.
    let ledger = network.mayfly(&["ledger", "show", "--count", "100"]).ok().text();
    assert!(ledger.contains("the chip of agent-1 proved itself"), "{ledger}");
}

/// A host with a TPM whose agent waits for approval; both are ended with it.
struct Host {
    dir: PathBuf,
    tpm: PathBuf,
    agent: Child,
}

impl Host {
    fn join(network: &Network, name: &str) -> (Host, String) {
        let (dir, tpm) = (network.file(name), network.file(&format!("{name}-tpm")));
        run(Command::new(script("swtpm-create")).arg(&tpm)).ok();
        run(Command::new(script("swtpm-start")).arg(&tpm)).ok();
        let token = network.mayfly(&["invite", "--json"]).ok().json()["token"].as_str().unwrap().to_owned();
        let tcti = format!("swtpm:path={}", tpm.join("tpm").display());
        let mut join = Command::new(program("mayfly"));
        join.args(["join", &token, "--json", "--name", name, "--danger-development", "--listen", "127.0.0.1:0"]);
        join.args(["--vault", "tpm", "--tcti", &tcti, "--dir"])
            .arg(&dir)
            .arg("--agent-socket")
            .arg(dir.join("agent.sock"));
        let id = run(&mut join).ok().json()["id"].as_str().unwrap().to_owned();
        let mut agent = Command::new(program("mayflyd"));
        agent.arg("--config").arg(dir.join("agent.toml")).args(["--watch-pid", &std::process::id().to_string()]);
        let agent = agent.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        (Host { dir, tpm, agent }, id)
    }

    fn socket(&self) -> String {
        self.dir.join("agent.sock").display().to_string()
    }

    /// The maker's certificates, in one file.
    fn bundle(&self) -> String {
        let read = |name: &str| std::fs::read(self.tpm.join("ca").join(name)).unwrap();
        let path = self.tpm.join("roots.pem");
        std::fs::write(&path, [read("root.pem"), read("issuer.pem")].concat()).unwrap();
        path.display().to_string()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let stopped = Command::new(script("swtpm-stop")).arg(&self.tpm).status();
        assert!(std::thread::panicking() || stopped.is_ok_and(|status| status.success()), "the TPM does not end");
    }
}

#[test]
fn an_administrator_attests_a_device_on_its_own_host_before_approving_it() {
    let network = Network::three();
    let (host, id) = Host::join(&network, "web");
    let (socket, roots) = (host.socket(), host.bundle());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !Path::new(&socket).exists() {
        assert!(
            std::time::Instant::now() < deadline,
            "the agent does not serve its socket while it waits for approval"
        );
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let attest = |words: &[&str]| -> Ran { network.mayfly(&[&["device", "attest"], words].concat()) };
    let software = "--danger-allow-software";
    attest(&["web", "--roots", &roots, "--socket", &socket]).refused("the TPM is software");
    attest(&["agent-1", "--roots", &roots, software, "--socket", &socket]).refused("is not device 'agent-1'");
    attest(&["agent-1", "--roots", &roots, software]).refused("has no chip that could prove itself");
    attest(&["web", "--roots", "/nowhere", software, "--socket", &socket]).refused("makers' certificates in /nowhere");
    let (other, _) = Host::join(&network, "other");
    attest(&["web", "--roots", &other.bundle(), software, "--socket", &socket])
        .refused("certificate of the endorsement key");

    let seen = attest(&["web", "--roots", &roots, software, "--socket", &socket, "--json"]).ok().json();
    assert_eq!((seen["id"].as_str(), seen["software"].as_bool()), (Some(id.as_str()), Some(true)), "{seen}");
    let approved = network.mayfly(&["device", "approve", &id]).ok().text();
    for part in ["attested by", "1 administrator", "id:00001014 swtpm (SOFTWARE", "registers", "0, 2, 4, 7"] {
        assert!(approved.contains(part), "{part} is missing: {approved}");
    }
    let approved = network.mayfly(&["device", "approve", "other"]).ok().text();
    assert!(approved.contains("NOT ATTESTED (network policy allows it)"), "{approved}");
    // Whoever is attested stays with its chip; the members of a network without makers' certificates say why they do not attest.
    let status = || run(Command::new(program("mayfly")).args(["status", "--json", "--socket", &socket])).ok().json();
    while status()["phase"] != "running" {
        assert!(std::time::Instant::now() < deadline + std::time::Duration::from_secs(20), "{}", status());
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(status()["attestation"]["by"], "administrators", "{}", status());
}
