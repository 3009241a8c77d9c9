//! The network of the quickstart: `mayfly dev`, ended again however the story ends.

use crate::run::{self, Finished};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest time for one command.
const LIMIT: Duration = Duration::from_secs(super::STEP_SECONDS_MAX);

pub struct Network {
    dir: PathBuf,
    programs: PathBuf,
    /// What `DIR/env` exports.
    env: BTreeMap<String, String>,
    is_up: bool,
}

impl Network {
    /// Starts a network of three agents, keys 2-of-3. Its processes end by themselves if we die.
    pub fn up(dir: &Path, programs: &Path, options: &[&str]) -> Result<Self> {
        let mut network =
            Self { dir: dir.to_owned(), programs: programs.to_owned(), env: BTreeMap::new(), is_up: true };
        let watch = std::process::id().to_string();
        let dir = network.dir();
        let words = ["dev", "up", "--dir", &dir, "--agents", "3", "--threshold", "2", "--watch-pid", &watch];
        network.mayfly(&[&words, options].concat())?;
        network.env = read_env(&network.dir.join("env"))?;
        Ok(network)
    }

    /// Ends the network and looks that nothing of it is left.
    pub fn down(&mut self) -> Result<()> {
        let before = self.processes()?;
        self.is_up = false;
        let dir = self.dir();
        self.mayfly(&["dev", "down", "--dir", &dir])?;
        let left: Vec<_> = before.into_iter().filter(|(_, pid)| is_running(pid)).map(|(name, _)| name).collect();
        ensure!(left.is_empty(), "{} still runs", left.join(", "));
        Ok(())
    }

    pub fn dir(&self) -> String {
        self.dir.display().to_string()
    }

    /// A program of ours with the network's environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.envs(&self.env);
        command
    }

    /// Runs `mayfly`; its standard output, or an error.
    pub fn mayfly(&self, arguments: &[&str]) -> Result<String> {
        Ok(run::capture(self.command("mayfly").args(arguments), LIMIT)?.done()?.text())
    }

    /// Runs the unmodified `pkcs11-tool`, logged in.
    pub fn pkcs11_tool(&self, arguments: &[&str]) -> Result<Finished> {
        let token = ["--module", self.get("MAYFLY_MODULE"), "--token-label", self.get("MAYFLY_TOKEN_LABEL")];
        let login = ["--login", "--pin", self.get("MAYFLY_USER_PIN")];
        self.tool("pkcs11-tool", &[&token[..], &login, arguments].concat())
    }

    /// Runs another's program with the network's environment and our module.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Result<Finished> {
        let mut command = Command::new(program);
        command.envs(&self.env).env("PKCS11_MODULE_PATH", self.get("MAYFLY_MODULE")).args(arguments);
        run::capture(&mut command, LIMIT)
    }

    /// Runs `mayfly` with a file as its standard input.
    pub fn mayfly_reading(&self, input: &Path, arguments: &[&str]) -> Result<Finished> {
        let input = File::open(input).with_context(|| format!("cannot open {}", input.display()))?;
        run::capture_from(Stdio::from(input), self.command("mayfly").args(arguments), LIMIT)?.done()
    }

    /// The PKCS#11 URI (RFC 7512) of a private key.
    pub fn uri(&self, key: &str) -> String {
        let (token, pin) = (self.get("MAYFLY_TOKEN_LABEL"), self.get("MAYFLY_USER_PIN"));
        format!("pkcs11:token={token};object={key};type=private;pin-value={pin}")
    }

    fn get(&self, name: &str) -> &str {
        self.env.get(name).map_or("", String::as_str)
    }

    /// Names and process ids in `dev status --json`; xtask has no JSON parser, and needs none for two fields.
    pub fn processes(&self) -> Result<Vec<(String, String)>> {
        let dir = self.dir();
        let status = self.mayfly(&["dev", "status", "--dir", &dir, "--json"])?;
        let after = |object: &str, field: &str| {
            let text = object.split_once(&format!("\"{field}\":"))?.1.trim_start().trim_start_matches('"');
            Some(text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-').collect::<String>())
        };
        let process = |object: &str| Some((after(object, "name")?, after(object, "pid")?));
        let processes: Vec<_> = status.split('}').filter_map(process).filter(|(_, pid)| pid != "null").collect();
        ensure!(!processes.is_empty(), "`mayfly dev status` names no process: {status}");
        Ok(processes)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if self.is_up {
            let dir = self.dir();
            if let Err(error) = self.mayfly(&["dev", "down", "--dir", &dir]) {
                eprintln!("quickstart: {error:#}");
            }
        }
    }
}

/// Whether a process runs; one that has ended and waits for its parent to look (a zombie) does not.
fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat"));
    stat.is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X'])))
}

/// Reads `export NAME='value'` lines.
fn read_env(path: &Path) -> Result<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let entry = |line: &str| {
        let (name, value) = line.strip_prefix("export ")?.split_once('=')?;
        Some((name.to_owned(), value.trim_matches('\'').to_owned()))
    };
    Ok(text.lines().filter_map(entry).collect())
}
