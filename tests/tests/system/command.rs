//! The command line: what scripts rely on, and a network made by hand as an operator makes it.

use mayfly_tests::{Network, program, run};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[test]
fn json_that_scripts_rely_on() {
    let network = Network::three();
    let agent = network.agent(1);
    let dir = network.dir().display().to_string();
    let status = agent.mayfly(&["dev", "status", "--dir", &dir, "--json"]).ok().json();
    let names: Vec<&str> = status["processes"].as_array().unwrap().iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["ledger-1", "agent-1", "agent-2", "agent-3"]);
    assert!(
        status["processes"].as_array().unwrap().iter().all(|p| p["pid"].is_u64() && p["role"].is_string()),
        "{status}"
    );

    let made = agent
        .mayfly(&["key", "create", "web", "--type", "ec:p256", "--split", "2/3", "--use", "sign", "--json"])
        .ok()
        .json();
    let shown = agent.mayfly(&["key", "show", "web", "--json"]).ok().json();
    let listed = network.agent(3).mayfly(&["key", "list", "--json"]).ok().json();
    for key in [&made, &shown, &listed[0]] {
        assert_eq!((&key["name"], &key["type"]), (&"web".into(), &"ec:p256".into()), "{key}");
        assert_eq!((key["t"].as_u64(), key["n"].as_u64()), (Some(2), Some(3)), "{key}");
        assert_eq!((key["gen"].as_u64(), key["epoch"].as_u64()), (Some(1), Some(1)), "{key}");
        assert!(key["id"].as_str().is_some_and(|id| id.len() == 64), "{key}");
        let mut holders: Vec<&str> =
            key["shards"].as_array().unwrap().iter().filter_map(|s| s["device"].as_str()).collect();
        holders.sort_unstable();
        assert_eq!(holders, ["agent-1", "agent-2", "agent-3"], "{key}");
    }
    let status = agent.mayfly(&["status", "--json"]).ok().json();
    assert_eq!((&status["device"], &status["fresh"]), (&"agent-1".into(), &true.into()), "{status}");
    let devices = agent.mayfly(&["device", "list", "--json"]).ok().json();
    assert_eq!(devices.as_array().unwrap().len(), 3);
    let device = agent.mayfly(&["device", "show", "agent-2", "--json"]).ok().json();
    assert_eq!(device["shards"].as_array().unwrap().len(), 1, "{device}");
    let verified = agent.mayfly(&["ledger", "verify", "--json"]).ok().json();
    assert!(verified["verified"] == true && verified["size"].as_u64().is_some_and(|n| n > 10), "{verified}");
    assert!(agent.mayfly(&["ledger", "show"]).ok().text().contains("GENESIS"), "{}", agent.mayfly(&["ledger", "show"]));
}

#[test]
fn exit_statuses_and_reasons() {
    let network = Network::three();
    let agent = network.agent(1);
    for (words, code, reason) in [
        (&["key", "show", "nothing"][..], 1, "nothing"),
        (&["key", "create", "x", "--type", "aes:256", "--split", "4/9"], 1, "holder"),
        (&["key", "create", "x", "--type", "aes:100"], 2, "aes:128"),
        (&["key", "create", "x", "--type", "aes:256", "--split", "3/2"], 2, "T/N"),
        (&["device", "show", "nobody"], 1, "nobody"),
        (&["ban", "nobody"], 1, "nobody"),
        (&["token", "create", "mayfly", "--without-pins"], 1, "mayfly"),
        (&["status", "--socket", "/nowhere/agent.sock"], 1, "/nowhere/agent.sock"),
        (&["no-such-command"], 2, "no-such-command"),
    ] {
        let ran = agent.mayfly(words);
        assert_eq!(ran.status.code(), Some(code), "{ran}");
        assert!(String::from_utf8_lossy(&ran.stderr).contains(reason), "'{reason}' is missing: {ran}");
        assert!(ran.stdout.is_empty(), "a refusal belongs on standard error: {ran}");
    }
    agent.mayfly(&["key", "create", "once", "--type", "aes:256"]).ok();
    agent.mayfly(&["key", "delete", "once"]).ok();
    agent.mayfly(&["key", "show", "once"]).refused("once");
}

#[test]
fn ivs_are_made_and_explained() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.mayfly(&["key", "create", "k", "--type", "aes:256", "--iv-modes", "hedged,random,deterministic"]).ok();
    let iv = |words: &[&str], text: &[u8]| {
        let ran = agent.mayfly_reading(&[&["iv", "--key", "k"], words].concat(), text).ok();
        ran.text().trim().to_owned()
    };
    let (one, two) = (iv(&[], b"text"), iv(&[], b"text"));
    assert!(one.len() == 24 && one.chars().all(|c| c.is_ascii_hexdigit()), "{one}");
    assert_ne!(one, two, "hedged IVs of equal texts");
    let deterministic = |context: &str, text: &[u8]| iv(&["--mode", "deterministic", "--context", context], text);
    assert_eq!(deterministic("a", b"text"), deterministic("a", b"text"));
    assert_ne!(deterministic("a", b"text"), deterministic("b", b"text"));
    assert_ne!(deterministic("a", b"text"), deterministic("a", b"texu"));
    // Every host derives the same.
    let elsewhere = network
        .agent(2)
        .mayfly_reading(&["iv", "--key", "k", "--mode", "deterministic", "--context", "a"], b"text")
        .ok();
    assert_eq!(elsewhere.text().trim(), deterministic("a", b"text"));
    assert_eq!(iv(&["--length", "16"], b"text").len(), 32);
    // More than a frame holds.
    let large = vec![7; 3 << 20];
    assert_eq!(deterministic("a", &large), deterministic("a", &large));

    let explained = agent.mayfly_reading(&["iv", "--key", "k", "--explain"], b"text").ok();
    assert_eq!(explained.text().trim().len(), 24, "only the IV is on standard output: {explained}");
    let explained = explained.all().to_lowercase();
    for word in ["ledger", "reconstruct", "derive", "destroy", "agent-"] {
        assert!(explained.contains(word), "{word} is not explained:\n{explained}");
    }
    // A key whose policy does not allow it.
    agent.mayfly(&["key", "create", "hedged-only", "--type", "aes:256"]).ok();
    let refused = agent.mayfly_reading(&["iv", "--key", "hedged-only", "--mode", "deterministic"], b"text");
    assert!(!refused.is_ok() && refused.all().contains("deterministic"), "{refused}");
}

#[test]
fn pins_are_changed() {
    let network = Network::three();
    let agent = network.agent(1);
    let label = agent.get("MAYFLY_TOKEN_LABEL").to_owned();
    let pin = |text: &str| network.write(text, text.as_bytes());
    agent.mayfly(&["token", "pin", &label, "--change", "user", "--new-pin-file", &pin("31415926")]).ok();
    let login = |number: u8, pin: &str| {
        network.agent(number).pkcs11_tool_bare(&["--token-label", &label, "--login", "--pin", pin, "--list-objects"])
    };
    login(1, "31415926").ok();
    login(2, "31415926").ok();
    login(1, agent.get("MAYFLY_USER_PIN")).refused("CKR_PIN_INCORRECT");
    // The security officer sets it anew.
    agent.mayfly(&["token", "pin", &label, "--new-pin-file", &pin("27182818")]).ok();
    login(1, "27182818").ok();
    let wrong =
        agent.mayfly(&["token", "pin", &label, "--so-pin-file", &pin("00000000"), "--new-pin-file", &pin("1111")]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong}");
}

#[test]
fn plugins_of_both_kinds_keep_their_contract() {
    let folder = tempfile::tempdir().unwrap();
    let passphrase = folder.path().join("passphrase");
    std::fs::write(&passphrase, "a passphrase of a test").unwrap();
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&passphrase, owner_only).unwrap();
    let config = format!("passphrase_file = '{}'", passphrase.display());
    for (library, config) in [("libmayfly_vault_file.so", config.as_str()), ("libmayfly_ledger_embedded.so", "")] {
        let mut test = Command::new(program("mayfly"));
        test.args(["plugin", "test", "--danger-development", "--json", "--config", config]).arg(program(library));
        let report = run(&mut test).ok().json();
        assert!(report["passed"] == true && report["cases"].as_array().is_some_and(|c| c.len() > 5), "{report}");
    }
    let nonsense = folder.path().join("nonsense.so");
    std::fs::write(&nonsense, "no library").unwrap();
    let refused = run(Command::new(program("mayfly")).args(["plugin", "test", "--danger-development"]).arg(&nonsense));
    assert_eq!(refused.status.code(), Some(1), "{refused}");
}

/// A process of a network made by hand; it ends with the test.
struct Process(Child);

impl Process {
    fn start(program_name: &str, config: &Path) -> Self {
        let watch = std::process::id().to_string();
        let mut command = Command::new(program(program_name));
        command.arg("--config").arg(config).args(["--watch-pid", &watch]).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_operator_makes_a_network_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let net = folder.path().join("net");
    let text = |path: &Path| path.display().to_string();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        text(&path)
    };
    let passphrase = write("passphrase", "correct horse battery staple");
    let admin = text(&net.join("administrator.key"));
    let mayfly = |words: &[&str]| run(Command::new(program("mayfly")).args(words));
    let signed = |words: &[&str]| mayfly(&[words, &["--admin", &admin, "--passphrase-file", &passphrase]].concat());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let words = [
        "init",
        &text(&net),
        "--name",
        "by-hand",
        "--passphrase-file",
        &passphrase,
        "--gateway",
        &port,
        "--gateway-listen",
        &port,
        // Devices with file vaults have no chip that could prove itself.
        "--allow-unattested",
    ];
    mayfly(&words).ok();
    // An existing administrator's key is never overwritten, and without its passphrase nothing is said.
    mayfly(&words).refused("exists already");
    // The plugins of a test lie in a build tree, which may be in a folder that others can write to.
    let config = net.join("ledger-1/ledger.toml");
    let text_of_config = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text_of_config + "\n[danger]\nplugin_path_unchecked = true\n").unwrap();
    let _gateway = Process::start("mayfly-ledger", &net.join("ledger-1/ledger.toml"));
    let wrong = write("wrong", "incorrect horse");
    mayfly(&["invite", "--admin", &admin, "--passphrase-file", &wrong]).refused("passphrase");

    let mut agents = Vec::new();
    for name in ["alpha", "beta", "gamma"] {
        let token = signed(&["invite", "--expires", "10m"]).ok().text().trim().to_owned();
        let dir = folder.path().join(name);
        let socket = text(&dir.join("agent.sock"));
        let join = |name: &str, dir: &str| {
            let place = ["--dir", dir, "--agent-socket", &socket, "--listen", "127.0.0.1:0", "--danger-development"];
            mayfly(&[&["join", &token, "--name", name], &place[..]].concat())
        };
        join(name, &text(&dir)).ok();
        // A token is good for one device.
        let other = text(&folder.path().join(format!("{name}-again")));
        let began = Instant::now();
        let again = join(&format!("{name}-again"), &other);
        assert!(began.elapsed() < Duration::from_secs(10), "what each gateway refuses is refused at once");
        assert!(!again.is_ok() && again.all().contains("token"), "{again}");
        agents.push(Process::start("mayflyd", &dir.join("agent.toml")));
        signed(&["device", "approve", name]).ok();
        wait_for_agent(&socket);
    }
    for name in ["alpha", "beta", "gamma"] {
        signed(&["device", "role", name, "--set", "holder,witness"]).ok();
    }
    let socket = text(&folder.path().join("alpha/agent.sock"));
    let (so, user) = (write("so", "12345678"), write("user", "123456"));
    let words = ["token", "create", "vault", "--so-pin-file", &so, "--user-pin-file", &user, "--socket", &socket];
    signed(&words).ok();
    mayfly(&["key", "create", "k", "--type", "aes:256", "--split", "2/3", "--socket", &socket]).ok();
    let mut tool = Command::new("pkcs11-tool");
    tool.arg("--module").arg(program("libmayfly_pkcs11.so")).args(["--login", "--pin", "123456", "--list-objects"]);
    assert!(run(tool.env("MAYFLY_SOCKET", &socket)).ok().text().contains("k"));
    // Only administrators make tokens here: this is no network for development.
    let mut init = Command::new("pkcs11-tool");
    init.arg("--module").arg(program("libmayfly_pkcs11.so")).args([
        "--init-token",
        "--slot-index",
        "0",
        "--so-pin",
        "11111111",
        "--label",
        "x",
    ]);
    assert!(!run(init.env("MAYFLY_SOCKET", &socket)).is_ok());
}

fn wait_for_agent(socket: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let ran = run(Command::new(program("mayfly")).args(["status", "--json", "--socket", socket]));
        if ran.is_ok() && ran.json()["membership"] == "member" {
            return;
        }
        assert!(Instant::now() < deadline, "{ran}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
