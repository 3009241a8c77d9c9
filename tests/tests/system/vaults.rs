//! Devices whose vaults are TPMs and tokens (swtpm, SoftHSM): made by `mayfly dev up` and by `mayfly join`, used, taken away, ended.

use crate::processes::{assert_all_end, processes_of};
use mayfly_tests::{Network, Options, Ran, id_of, program, run};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The library of SoftHSM, where packages put it.
fn softhsm() -> PathBuf {
    let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"];
    places
        .iter()
        .map(PathBuf::from)
        .find(|path| path.is_file())
        .expect("SoftHSM is installed (apt-get install softhsm2)")
}

/// A script of `softhsm-setup`, as people run it.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../softhsm-setup").join(name)
}

/// Agents 1, 2 and 3 have a TPM, a token and a file; keys need a shard of each.
fn all_kinds() -> Network {
    let options = Options { threshold: 3, vaults: "tpm,pkcs11,file", vault_open: "per-release", ..Options::default() };
    Network::up(&options)
}

#[test]
fn every_kind_of_vault_gives_its_shard() {
    let network = all_kinds();
    let (first, second) = (network.agent(1), network.agent(2));
    let devices = network.mayfly(&["device", "list", "--json"]).ok().json();
    let kinds: Vec<&str> = devices.as_array().unwrap().iter().filter_map(|device| device["vault"].as_str()).collect();
    for kind in ["tpm", "pkcs11", "file"] {
        assert!(kinds.contains(&kind), "{devices}");
    }
    first.make_aes("k");
    first.pkcs11_tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "ec", "--id", &id_of("ec")]).ok();
    let document = network.write("document", b"a document");
    let paths = ["sealed", "opened", "signature", "public.der"].map(|name| network.file(name).display().to_string());
    let [sealed, opened, signature, public] = &paths;
    first.encrypt("k", &document, sealed).ok();
    second.decrypt("k", sealed, opened).ok();
    assert_eq!(std::fs::read(opened).unwrap(), b"a document");
    let sign =
        ["--sign", "--id", &id_of("ec"), "-m", "ECDSA-SHA256", "-f", "openssl", "-i", &document, "-o", signature];
    second.pkcs11_tool(&sign).ok();
    first.pkcs11_tool(&["--read-object", "--type", "pubkey", "--id", &id_of("ec"), "-o", public]).ok();
    let verify = ["dgst", "-sha256", "-verify", public, "-keyform", "DER", "-signature", signature, &document];
    run(Command::new("openssl").args(verify)).ok();

    // The TPM of agent 1 goes, and comes back under an agent that runs on.
    let agent = network.pid("agent-1");
    network.dev("kill", "swtpm-1");
    second.encrypt("k", &document, sealed).refused("CKR_DEVICE_ERROR");
    let why = second.mayfly(&["why"]).ok().text();
    assert!(why.contains("agent-1: refused: vault(tpm)") && why.contains("TPM is not reachable"), "{why}");
    network.mayfly(&["dev", "start", "--dir", &network.dir().display().to_string(), "agent-1"]).refused("runs already");
    network.dev("start", "swtpm-1");
    second.encrypt("k", &document, sealed).ok();
    assert_eq!(network.pid("agent-1"), agent, "the agent was started again");
}

/// A vault that hangs holds up neither an operation on its own device nor the question how it is.
#[test]
fn a_vault_that_hangs_is_done_without() {
    let options = Options { threshold: 2, vaults: "tpm,file", vault_open: "per-release", ..Options::default() };
    let network = Network::up(&options);
    let first = network.agent(1);
    for (name, split) in [("two", "2/3"), ("three", "3/3")] {
        first.mayfly(&["key", "create", name, "--type", "aes:256", "--split", split]).ok();
    }
    let iv = |key: &str| first.mayfly_reading(&["iv", "--key", key], b"text");
    iv("two").ok();
    network.dev("pause", "swtpm-1");
    let began = Instant::now();
    iv("two").ok();
    assert!(began.elapsed() < Duration::from_secs(5), "others were enough: {:?}", began.elapsed());
    iv("three").refused("2 of 3 shards");
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "a deadline is one for our own vault, too: {:?}",
        began.elapsed()
    );
    let why = first.mayfly(&["why"]).ok().text();
    assert!(why.contains("agent-1: its own vault did not open in time"), "{why}");
    let shown = first.mayfly(&["vault", "show", "--json"]).ok().json();
    assert_eq!(shown["trouble"], "it does not answer", "{shown}");
    network.dev("resume", "swtpm-1");
    iv("three").ok();
}

#[test]
fn tpms_end_with_their_network_and_come_back_before_their_agents() {
    let network = all_kinds();
    network.agent(1).mayfly(&["key", "create", "k", "--type", "aes:256"]).ok();
    let (dir, watch) = (network.dir(), std::process::id().to_string());
    let shown = dir.display().to_string();
    let tpm = network.pid("swtpm-1");
    let status = network.mayfly(&["dev", "status", "--dir", &shown, "--json"]).ok().json();
    let rows = status["processes"].as_array().unwrap();
    assert!(rows.iter().any(|row| row["name"] == "swtpm-1" && row["role"] == "swtpm" && row["pid"] == tpm), "{status}");
    network.down().ok();
    assert_eq!(processes_of(&dir), Vec::<String>::new());
    // An agent alone is not started without its TPM.
    network.mayfly(&["dev", "start", "--dir", &shown, "agent-1"]).refused("swtpm-1");
    network.mayfly(&["dev", "up", "--dir", &shown, "--watch-pid", &watch]).ok();
    assert_ne!(network.pid("swtpm-1"), tpm);
    network.agent(2).mayfly_reading(&["iv", "--key", "k"], b"text").ok();
    // A TPM that hangs is paused and goes on.
    network.dev("pause", "swtpm-1");
    network.dev("resume", "swtpm-1");
    network.agent(2).mayfly_reading(&["iv", "--key", "k"], b"text").ok();
}

#[test]
fn nothing_is_left_of_a_network_that_was_interrupted_while_its_tpms_were_made() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("net");
        let mut up = Command::new(program("mayfly"));
        up.args(["dev", "up", "--vaults", "tpm,pkcs11", "--dir"]).arg(&dir);
        let mut up = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !dir.join("swtpm-1/state").exists() {
            assert!(Instant::now() < deadline, "no TPM is made");
            sleep(Duration::from_millis(1));
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(up.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        up.wait().unwrap();
        run(Command::new(program("mayfly")).args(["dev", "down", "--dir"]).arg(&dir)).ok();
        assert_all_end(&dir, Duration::from_millis(500));
    }
}

#[test]
fn a_tpm_ends_when_whoever_asked_for_it_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let mut tester = Command::new("sleep").arg("600").spawn().unwrap();
    let watch = tester.id().to_string();
    let up = ["dev", "up", "--vaults", "tpm", "--agents", "2", "--watch-pid", &watch, "--dir"];
    run(Command::new(program("mayfly")).args(up).arg(&dir)).ok();
    assert!(processes_of(&dir).iter().any(|process| process.contains("swtpm socket")), "{:#?}", processes_of(&dir));
    tester.kill().unwrap();
    tester.wait().unwrap();
    assert_all_end(&dir, Duration::from_secs(5));
}

#[test]
fn what_cannot_be_made_is_refused_before_anything_is() {
    let folder = tempfile::tempdir().unwrap();
    let up = |dir: &Path, path: &str| {
        let mut up = Command::new(program("mayfly"));
        run(up.args(["dev", "up", "--vaults", "tpm,pkcs11", "--dir"]).arg(dir).env("PATH", path))
    };
    let dir = folder.path().join("net");
    let missing = up(&dir, "/nowhere").refused("sudo apt-get install");
    for package in ["swtpm ", "swtpm-tools", "softhsm2"] {
        assert!(missing.all().contains(package), "{missing}");
    }
    assert!(!dir.exists(), "a refused command left something behind");
    let path = std::env::var("PATH").unwrap();
    let long = folder.path().join("x".repeat(80));
    up(&long, &path).refused("choose a shorter --dir");
    assert!(!long.exists(), "a refused command left something behind");
}

/// Our own vaults pass their suite without any preparation, and nothing of what that took is left.
#[track_caller]
fn passes_its_suite(kind: &str) {
    let folder = tempfile::tempdir().unwrap();
    let library = program(&format!("libmayfly_vault_{kind}.so"));
    let mut test = Command::new(program("mayfly"));
    test.args(["plugin", "test", "--danger-development", "--json"]).arg(library).env("TMPDIR", folder.path());
    let report = run(&mut test).ok().json();
    assert_eq!((&report["plugin"], &report["passed"]), (&format!("vault({kind})").into(), &true.into()), "{report}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "files were left");
    assert_eq!(processes_of(folder.path()), Vec::<String>::new());
}

#[test]
fn the_tpm_vault_passes_its_suite_on_a_tpm_of_its_own() {
    passes_its_suite("tpm");
}

#[test]
fn the_token_vault_passes_its_suite_on_a_token_of_its_own() {
    passes_its_suite("pkcs11");
}

#[test]
fn a_test_that_is_interrupted_leaves_no_tpm() {
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let folder = tempfile::tempdir().unwrap();
        let mut test = Command::new(program("mayfly"));
        test.args(["plugin", "test", "--danger-development"]).arg(program("libmayfly_vault_tpm.so"));
        let mut test = test.env("TMPDIR", folder.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        // Not the one that runs for a moment while the state is made.
        while !processes_of(folder.path()).iter().any(|process| process.contains("--server type=unixio")) {
            assert!(Instant::now() < deadline, "no TPM is started");
            sleep(Duration::from_millis(5));
        }
        let pid = rustix::process::Pid::from_raw(i32::try_from(test.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        test.wait().unwrap();
        assert_all_end(folder.path(), Duration::from_secs(5));
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, usize::from(signal == rustix::process::Signal::KILL), "only what is killed leaves its folder");
    }
}

#[test]
fn plugins_are_listed_verified_and_pinned() {
    let network = Network::three();
    let plugin = |words: &[&str]| network.mayfly(&[&["plugin"], words, &["--danger-development"]].concat());
    let listed = plugin(&["list", "--json"]).ok().json();
    let found = |kind: &str, name: &str| {
        let is_it = |row: &&serde_json::Value| row["kind"] == kind && row["name"] == name && row["abi"] == 1;
        listed.as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("no {name}: {listed}")).clone()
    };
    assert_eq!(found("ledger", "embedded")["path_rule"], "ok");
    for name in ["tpm", "pkcs11"] {
        assert!(found("vault", name)["problem"].is_null(), "{listed}");
    }
    let file = found("vault", "file");
    let (path, hash) = (file["path"].as_str().unwrap(), file["sha256"].as_str().unwrap());
    assert_eq!(plugin(&["verify", path, "--sha256", hash, "--json"]).ok().json()["name"], "file");
    plugin(&["verify", path, "--sha256", &"0".repeat(64)]).refused("pinned is 0000");
    plugin(&["verify", path, "--sha256", "00"]).refused("64 hexadecimal digits");
    plugin(&["verify", &program("libmayfly_pkcs11.so").display().to_string()]).refused("it is no Mayfly plugin");
    let open = network.write("libmayfly_vault_open.so", b"");
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o666)).unwrap();
    plugin(&["verify", &open]).refused("can be written to by others");
    assert_eq!(plugin(&["pin", path]).ok().text().trim(), format!("pin = \"{hash}\""));

    // Into the configuration of an agent, which then takes this file and no other.
    let config = network.dir().join("agent-2/agent.toml").display().to_string();
    let other = found("vault", "tpm");
    plugin(&["pin", other["path"].as_str().unwrap(), "--config", &config]).refused("nothing was changed");
    plugin(&["pin", path, "--config", &config]).ok();
    network.dev("kill", "agent-2");
    network.dev("start", "agent-2");
    network.dev("kill", "agent-2");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(hash, &"0".repeat(64))).unwrap();
    let dir = network.dir().display().to_string();
    network.mayfly(&["dev", "start", "--dir", &dir, "agent-2"]).refused("agent-2 has ended");
    let log = std::fs::read_to_string(network.dir().join("agent-2.log")).unwrap();
    assert!(log.contains("pinned is 0000"), "{log}");
}

/// A host that joins a network by `mayfly join`.
struct Host<'n> {
    network: &'n Network,
    dir: PathBuf,
}

impl Host<'_> {
    fn invitation(&self) -> String {
        self.network.mayfly(&["invite", "--json"]).ok().json()["token"].as_str().unwrap().to_owned()
    }

    fn join(&self, words: &[&str]) -> Ran {
        self.join_with(&self.invitation(), words, &[])
    }

    fn join_with(&self, invitation: &str, words: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut join = Command::new(program("mayfly"));
        join.args(["join", invitation, "--name", "web", "--danger-development", "--listen", "127.0.0.1:0", "--dir"]);
        run(join.arg(&self.dir).args(words).envs(variables.iter().copied()))
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.dir).into_iter().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A failed attempt leaves not even the folder.
    #[track_caller]
    fn is_untouched(&self) {
        assert!(!self.dir.exists(), "{:?} were left", self.files());
    }
}

#[test]
fn a_join_that_fails_says_why_and_leaves_nothing_in_the_way_of_the_next() {
    let network = Network::three();
    let host = Host { network: &network, dir: network.file("host") };
    let tokens = network.file("hsm");
    run(Command::new(script("softhsm-token")).arg(&tokens).arg("vault")).ok();
    let ready = tokens.join("vault.toml");
    let section = |from: &str, to: &str| {
        let text = std::fs::read_to_string(&ready).unwrap();
        assert!(text.contains(from), "{text}");
        network.write("vault.toml", text.replace(from, to).as_bytes())
    };

    let no_tpm =
        host.join(&["--vault", "tpm", "--tcti", "device:/dev/no-tpm"]).refused("there is no TPM at /dev/no-tpm");
    assert!(no_tpm.all().contains("next: "), "{no_tpm}");
    host.is_untouched();
    let absent = section("token_label = \"vault\"", "token_label = \"absent\"");
    host.join(&["--vault-config", &absent]).refused("absent");
    host.is_untouched();

    // A wrong PIN is told once: it is not tried again, and nothing but that is remembered.
    let pin = network.write("pin", b"000000");
    std::fs::set_permissions(&pin, std::fs::Permissions::from_mode(0o600)).unwrap();
    let refused = section(&tokens.join("user-pin").display().to_string(), &pin);
    host.join(&["--vault-config", &refused]).refused("CKR_PIN_INCORRECT");
    assert_eq!(host.files(), ["data"]);
    let again = host.join(&["--vault-config", &refused]).refused("refused this PIN before");
    assert!(!again.all().contains("CKR_PIN_INCORRECT"), "a wrong PIN was tried twice: {again}");

    // By options, with a PIN that is asked for: a wrong one, then the right one.
    let (library, conf) = (softhsm().display().to_string(), tokens.join("softhsm2.conf").display().to_string());
    let right = std::fs::read_to_string(tokens.join("user-pin")).unwrap();
    let options = ["--vault", "pkcs11", "--module", &library, "--token-label", "vault"];
    let variables = |pin| [("MAYFLY_VAULT_PIN", pin), ("SOFTHSM2_CONF", conf.as_str())];
    host.join_with(&host.invitation(), &options, &variables("111111")).refused("CKR_PIN_INCORRECT");
    assert_eq!(host.files(), ["data"]);
    let invitation = host.invitation();
    host.join_with(&invitation, &options, &variables(right.as_str())).ok();
    assert_eq!(host.files(), ["agent.toml", "data", "network.toml", "vault.pin"]);
    let mode = std::fs::metadata(host.dir.join("vault.pin")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let devices = network.mayfly(&["device", "list", "--json"]).ok().json();
    let joined = devices.as_array().unwrap().iter().find(|device| device["name"] == "web").expect("it has joined");
    assert_eq!(joined["vault"], "pkcs11", "{devices}");

    // The ledger takes no invitation twice, and what was made for it by then is taken back.
    let other = Host { network: &network, dir: network.file("other") };
    other.join_with(&invitation, &["--vault", "file"], &[]).refused("no gateway of the join token");
    other.is_untouched();
}

#[test]
fn a_host_joins_with_a_software_tpm_of_the_scripts() {
    let network = Network::three();
    let host = Host { network: &network, dir: network.file("host") };
    let tpm = network.file("tpm");
    run(Command::new(script("swtpm-create")).arg(&tpm)).ok();
    let socket = format!("swtpm:path={}", tpm.join("tpm").display());
    host.join(&["--vault", "tpm", "--tcti", &socket]).refused("no software TPM answers");
    let _tpm = Tpm::start(&tpm);
    let wrong = host.join(&["--vault", "tpm", "--tcti", &socket, "--token-label", "x"]).refused("--token-label is for");
    assert_eq!(wrong.status.code(), Some(2), "{wrong}");
    host.is_untouched();
    let joined = host.join(&["--vault", "tpm", "--tcti", &socket, "--json"]).ok().json();
    assert_eq!(host.files(), ["agent.toml", "data", "network.toml"]);
    network.mayfly(&["device", "approve", joined["id"].as_str().unwrap()]).ok();
}

/// A software TPM that is ended by the script that people use.
struct Tpm(PathBuf);

impl Tpm {
    fn start(dir: &Path) -> Self {
        run(Command::new(script("swtpm-start")).arg(dir)).ok();
        run(Command::new(script("swtpm-start")).arg(dir)).refused("it runs already");
        Self(dir.to_owned())
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let stopped = Command::new(script("swtpm-stop")).arg(&self.0).status();
        assert!(std::thread::panicking() || stopped.is_ok_and(|status| status.success()), "the TPM does not end");
    }
}
