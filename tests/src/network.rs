//! A network of `mayfly dev`, one per test.

use crate::programs::{program, python};
use crate::run::{Ran, run, run_reading};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How many lines of each log are shown when a test fails.
const LOG_LINES: usize = 25;

/// What a network is like; [`Options::default`] is what most tests take.
#[derive(Debug, Clone)]
pub struct Options {
    /// Number of agents.
    pub agents: u8,
    /// Shards that a key needs.
    pub threshold: u8,
    /// `per-operation` or `window:SECONDS`.
    pub residency: &'static str,
    /// Kinds of vault, dealt round-robin: `tpm,pkcs11,file`.
    pub vaults: &'static str,
    /// `boot`, `window:SECONDS` or `per-release`.
    pub vault_open: &'static str,
}

impl Default for Options {
    fn default() -> Self {
        Self { agents: 3, threshold: 2, residency: "per-operation", vaults: "file", vault_open: "boot" }
    }
}

/// A running network; it ends when this is dropped.
#[derive(Debug)]
pub struct Network {
    folder: TempDir,
    env: BTreeMap<String, String>,
}

impl Network {
    /// Three agents, keys 2-of-3.
    #[track_caller]
    pub fn three() -> Self {
        Self::up(&Options::default())
    }

    /// Starts a network and waits until it is ready.
    #[track_caller]
    pub fn up(options: &Options) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut network = Self { folder, env: BTreeMap::new() };
        let up = network.command(&["dev", "up", "--agents", &options.agents.to_string()]);
        let (threshold, watch) = (options.threshold.to_string(), std::process::id().to_string());
        let dir = network.dir().display().to_string();
        let words = ["--threshold", &threshold, "--residency", options.residency, "--watch-pid", &watch, "--dir", &dir];
        let words = [&words[..], &["--vaults", options.vaults, "--vault-open", options.vault_open]].concat();
        run(&mut with(up, &words)).ok();
        network.env = read_env(&network.dir().join("env"));
        network
    }

    /// Its folder.
    pub fn dir(&self) -> PathBuf {
        self.folder.path().join("net")
    }

    /// A file of the test's own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A file of the test's own with this content; its path as text.
    pub fn write(&self, name: &str, content: &[u8]) -> String {
        let path = self.file(name);
        std::fs::write(&path, content).expect("a temporary file can be written");
        path.display().to_string()
    }

    /// The view from agent `number`.
    pub fn agent(&self, number: u8) -> Agent<'_> {
        let env = read_env(&self.dir().join(format!("agent-{number}/env")));
        Agent { network: self, env }
    }

    /// Runs `mayfly` with the environment of agent 1.
    #[track_caller]
    pub fn mayfly(&self, words: &[&str]) -> Ran {
        run(&mut self.command(words))
    }

    /// Runs `mayfly dev WORD --dir DIR NAME`.
    #[track_caller]
    pub fn dev(&self, word: &str, name: &str) {
        let dir = self.dir().display().to_string();
        self.mayfly(&["dev", word, "--dir", &dir, name]).ok();
    }

    /// Starts a process again without waiting until it works.
    #[track_caller]
    pub fn dev_start_only(&self, name: &str) {
        let dir = self.dir().display().to_string();
        self.mayfly(&["dev", "start", "--no-wait", "--dir", &dir, name]).ok();
    }

    /// Processes by name: (name, pid), those that run.
    #[track_caller]
    pub fn processes(&self) -> Vec<(String, u32)> {
        let dir = self.dir().display().to_string();
        let status = self.mayfly(&["dev", "status", "--dir", &dir, "--json"]).ok().json();
        let rows = status["processes"].as_array().expect("processes are a list").clone();
        let pid = |row: &Value| row["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        rows.iter().filter_map(|row| Some((row["name"].as_str()?.to_owned(), pid(row)?))).collect()
    }

    /// The process id of one process.
    #[track_caller]
    pub fn pid(&self, name: &str) -> u32 {
        let found = self.processes().into_iter().find(|(n, _)| n == name);
        found.unwrap_or_else(|| panic!("{name} does not run")).1
    }

    /// A variable of the network's environment.
    pub fn get(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// Ends it now; what a test does that looks at what is left.
    #[track_caller]
    pub fn down(&self) -> Ran {
        let dir = self.dir().display().to_string();
        self.mayfly(&["dev", "down", "--dir", &dir])
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(program("mayfly"));
        command.envs(&self.env).args(words);
        command
    }

    fn show_logs(&self) {
        let Ok(entries) = std::fs::read_dir(self.dir()) else { return };
        for path in entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "log")) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {} ({} lines)", path.display(), lines.len());
            lines.iter().skip(lines.len().saturating_sub(LOG_LINES)).for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        let dir = self.dir();
        let mut down = Command::new(program("mayfly"));
        let status = down.args(["dev", "down", "--dir"]).arg(&dir).stdout(std::process::Stdio::null()).status();
        if !status.is_ok_and(|status| status.success()) && !std::thread::panicking() {
            panic!("the network in {} could not be ended", dir.display());
        }
    }
}

/// The network as an application on one agent's host sees it.
#[derive(Debug)]
pub struct Agent<'n> {
    network: &'n Network,
    env: BTreeMap<String, String>,
}

impl Agent<'_> {
    /// A variable of the agent's environment.
    pub fn get(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// The agent's socket.
    pub fn socket(&self) -> &Path {
        Path::new(self.get("MAYFLY_SOCKET"))
    }

    /// Runs `mayfly`.
    #[track_caller]
    pub fn mayfly(&self, words: &[&str]) -> Ran {
        self.mayfly_reading(words, &[])
    }

    /// Runs `mayfly` with input.
    #[track_caller]
    pub fn mayfly_reading(&self, words: &[&str], input: &[u8]) -> Ran {
        run_reading(Command::new(program("mayfly")).envs(&self.env).args(words), input)
    }

    /// Runs `pkcs11-tool`, logged in as user.
    #[track_caller]
    pub fn pkcs11_tool(&self, words: &[&str]) -> Ran {
        let login = ["--token-label", self.get("MAYFLY_TOKEN_LABEL"), "--login", "--pin", self.get("MAYFLY_USER_PIN")];
        self.pkcs11_tool_bare(&[&login, words].concat())
    }

    /// Runs `pkcs11-tool` with our module and nothing else.
    #[track_caller]
    pub fn pkcs11_tool_bare(&self, words: &[&str]) -> Ran {
        self.tool("pkcs11-tool", &[&["--module", self.get("MAYFLY_MODULE")], words].concat())
    }

    /// Runs `openssl`, whose engine finds our module.
    #[track_caller]
    pub fn openssl(&self, words: &[&str]) -> Ran {
        self.tool("openssl", words)
    }

    /// The PKCS#11 URI (RFC 7512) of a private key.
    pub fn uri(&self, key: &str) -> String {
        let (token, pin) = (self.get("MAYFLY_TOKEN_LABEL"), self.get("MAYFLY_USER_PIN"));
        format!("pkcs11:token={token};object={key};type=private;pin-value={pin}")
    }

    /// Runs another's program with the agent's environment.
    #[track_caller]
    pub fn tool(&self, program: &str, words: &[&str]) -> Ran {
        let mut command = Command::new(program);
        run(command.envs(&self.env).env("PKCS11_MODULE_PATH", self.get("MAYFLY_MODULE")).args(words))
    }

    /// Makes an AES-256 key, with the CKA_ID [`id_of`] its label.
    #[track_caller]
    pub fn make_aes(&self, label: &str) {
        self.pkcs11_tool(&["--keygen", "--key-type", "AES:32", "--label", label, "--id", &id_of(label)]).ok();
    }

    /// Imports an AES key by `pkcs11-tool`.
    #[track_caller]
    pub fn import_aes(&self, label: &str, key: &[u8]) {
        let (raw, size) = (self.network.write("raw", key), format!("AES:{}", key.len()));
        let words = ["--write-object", &raw, "--type", "secrkey", "--key-type", &size, "--label", label];
        self.pkcs11_tool(&[&words[..], &["--id", &id_of(label), "--usage-decrypt"]].concat()).ok();
    }

    /// Imports a key for MACs by python-pkcs11 (`pkcs11-tool` 0.23 imports ciphers' keys only).
    #[track_caller]
    pub fn import_mac(&self, label: &str, key: &[u8]) {
        let script = self.network.write("import.py", IMPORT_MAC.as_bytes());
        let (python, key, id) = (python().display().to_string(), hex::encode(key), id_of(label));
        self.tool(&python, &[&script, label, &id, &key]).ok();
    }

    /// Encrypts a file by `pkcs11-tool` with AES-CBC-PAD.
    #[track_caller]
    pub fn encrypt(&self, key: &str, from: &str, to: &str) -> Ran {
        self.cbc("--encrypt", key, from, to)
    }

    /// Decrypts a file by `pkcs11-tool` with AES-CBC-PAD.
    #[track_caller]
    pub fn decrypt(&self, key: &str, from: &str, to: &str) -> Ran {
        self.cbc("--decrypt", key, from, to)
    }

    #[track_caller]
    fn cbc(&self, verb: &str, key: &str, from: &str, to: &str) -> Ran {
        let iv = "000102030405060708090a0b0c0d0e0f";
        self.pkcs11_tool(&[verb, "--id", &id_of(key), "-m", "AES-CBC-PAD", "--iv", iv, "-i", from, "-o", to])
    }

    /// Waits until the agent's status is as wanted.
    #[track_caller]
    pub fn wait_status(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let ran = self.mayfly(&["status", "--json"]);
            if ran.is_ok() && wanted(&ran.json()) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {ran}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The network that it belongs to.
    pub fn network(&self) -> &Network {
        self.network
    }
}

const IMPORT_MAC: &str = r#"
import os, sys, pkcs11
from pkcs11 import Attribute, KeyType, ObjectClass
label, id, key = sys.argv[1], bytes.fromhex(sys.argv[2]), bytes.fromhex(sys.argv[3])
token = pkcs11.lib(os.environ["MAYFLY_MODULE"]).get_token(token_label=os.environ["MAYFLY_TOKEN_LABEL"])
with token.open(user_pin=os.environ["MAYFLY_USER_PIN"], rw=True) as session:
    session.create_object({
        Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.KEY_TYPE: KeyType.GENERIC_SECRET, Attribute.TOKEN: True,
        Attribute.LABEL: label, Attribute.ID: id, Attribute.SIGN: True, Attribute.VERIFY: True, Attribute.VALUE: key})
"#;

/// The CKA_ID of keys that tests make: `pkcs11-tool` chooses by id where there are several.
pub fn id_of(label: &str) -> String {
    hex::encode(label)
}

fn with(mut command: Command, words: &[&str]) -> Command {
    command.args(words);
    command
}

#[track_caller]
fn read_env(path: &Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
    let entry = |line: &str| {
        let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    text.lines().filter_map(entry).collect()
}
