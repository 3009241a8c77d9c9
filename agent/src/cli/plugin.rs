//! `mayfly plugin`: which plugins are there, may they be used, do they keep their promises?
//!
//! A library is loaded in the plugins' own process only, and only after its path was found to be safe.

use super::announce::{Announcer, advised, field, table};
use super::interrupt::when_interrupted;
use super::process::{self, Identity};
use super::software::{self, Call, Scripts, Software};
use crate::config::Config;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use mayfly_plugin_api::contract::{self, Report};
use mayfly_plugin_api::{
    HostConfig, Kind, Network, PathRule, PluginInfo, abi, artifact_folders, check_path, find_artifact, inspect,
    sha256_of,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// How the files of plugins begin.
const PREFIXES: [&str; 2] = ["libmayfly_vault_", "libmayfly_ledger_"];
/// How long a software TPM may take until it answers, and until it has ended.
const TPM_TIMEOUT: Duration = Duration::from_secs(20);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Work with plugins
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  mayfly plugin list\n  mayfly plugin pin /usr/lib/mayfly/libmayfly_vault_tpm.so --config /var/lib/mayfly/agent.toml"
)]
pub enum Plugin {
    List(List),
    Verify(Verify),
    Pin(Pin),
    Test(Test),
}

/// List the plugins beside this program and in /usr/lib/mayfly
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly plugin list --json")]
pub struct List {
    /// DANGER: plugins may lie in a build tree that your group can change
    #[arg(long)]
    danger_development: bool,
}

/// Check that a plugin may be used: its path, its table, its SHA-256
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly plugin verify /usr/lib/mayfly/libmayfly_vault_tpm.so")]
pub struct Verify {
    /// The plugin's shared library
    path: PathBuf,
    /// The SHA-256 that it must have, 64 hexadecimal digits
    #[arg(long, value_name = "HEX", value_parser = sha256)]
    sha256: Option<[u8; 32]>,
    /// DANGER: the plugin may lie in a build tree that your group can change
    #[arg(long)]
    danger_development: bool,
}

/// Print the line for agent.toml that lets no other file be loaded than this one
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mayfly plugin pin /usr/lib/mayfly/libmayfly_vault_tpm.so --config /var/lib/mayfly/agent.toml"
)]
pub struct Pin {
    /// The plugin's shared library
    path: PathBuf,
    /// Write the line into the `[vault]` section of this file; the agent reads it at its next start
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// DANGER: the plugin may lie in a build tree that your group can change
    #[arg(long)]
    danger_development: bool,
}

/// Run the contract suite of a plugin's kind
///
/// Without --config, our own vaults get what they need for as long as the test runs: a software TPM (swtpm), a token of SoftHSM, a passphrase.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  mayfly plugin test /usr/lib/mayfly/libmayfly_vault_tpm.so\n  \
    mayfly plugin test ./libmayfly_vault_file.so --config \"passphrase_file = '/root/passphrase'\"")]
pub struct Test {
    /// The plugin's shared library
    path: PathBuf,
    /// Configuration text of the plugin
    #[arg(long, value_name = "TEXT", default_value = "")]
    config: String,
    /// The plugin may use the network
    #[arg(long)]
    network: bool,
    /// Folder for the plugin's data; a temporary one if left out
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// DANGER: the plugin may lie in a build tree that your group can change
    #[arg(long)]
    danger_development: bool,
}

impl Plugin {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
        match self {
            Plugin::List(list) => list.run(out),
            Plugin::Verify(verify) => verify.run(out),
            Plugin::Pin(pin) => pin.run(out),
            Plugin::Test(test) => test.run(out),
        }
    }
}

impl List {
    fn run(&self, out: &Announcer) -> Result<()> {
        let work = Temporary::new()?;
        let rule = path_rule(self.danger_development);
        let mut plugins = Vec::new();
        for folder in artifact_folders() {
            let entries = std::fs::read_dir(&folder).into_iter().flatten().filter_map(Result::ok);
            let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| is_plugin(path)).collect();
            files.sort();
            plugins.extend(files.iter().map(|path| line(path, rule, &work)));
        }
        out.result(&Value::from(plugins), listing)
    }
}

fn is_plugin(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.ends_with(".so") && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// What is known of a file; where it must not be loaded, why.
fn line(path: &Path, rule: PathRule, work: &Temporary) -> Value {
    let hash = File::open(path).and_then(|mut file| sha256_of(&mut file)).ok().map(hex::encode);
    let place = check_path(path, rule).err().map_or_else(|| "ok".to_owned(), |error| error.to_string());
    let info = host(path, rule, work).and_then(|config| Ok(inspect(&config)?));
    let (info, problem) = match info {
        Ok(info) => (Some(info), None),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    json!({
        "path": path,
        "kind": info.as_ref().map(|info| info.kind.word()),
        "name": info.as_ref().map(|info| &info.name),
        "version": info.as_ref().map(|info| &info.version),
        "abi": info.as_ref().map(|_| abi::ABI_VERSION),
        "sha256": hash,
        "path_rule": place,
        "problem": problem,
    })
}

fn listing(plugins: &Value) -> String {
    let plugins = plugins.as_array().map(Vec::as_slice).unwrap_or_default();
    if plugins.is_empty() {
        return "no plugin was found beside this program or in /usr/lib/mayfly".into();
    }
    let heading = ["KIND", "NAME", "VERSION", "ABI", "SHA-256", "FILE"].map(String::from).to_vec();
    let row =
        |plugin: &Value| ["kind", "name", "version", "abi", "sha256", "path"].map(|name| field(plugin, name)).to_vec();
    let mut text = table(&std::iter::once(heading).chain(plugins.iter().map(row)).collect::<Vec<_>>());
    for plugin in plugins.iter().filter(|plugin| !plugin["problem"].is_null()) {
        text.push_str(&format!("not usable: {}\n", field(plugin, "problem")));
    }
    text
}

impl Verify {
    fn run(&self, out: &Announcer) -> Result<()> {
        let found = look(&self.path, self.sha256, self.danger_development)?;
        out.result(&found.json(), |_| {
            let PluginInfo { kind, name, version } = &found.info;
            let (path, hash) = (found.path.display(), hex::encode(found.sha256));
            format!(
                "{path} may be used: {}({name}) {version}, interface version {}\n  SHA-256 {hash}",
                kind.word(),
                abi::ABI_VERSION
            )
        })
    }
}

impl Pin {
    fn run(&self, out: &Announcer) -> Result<()> {
        let found = look(&self.path, None, self.danger_development)?;
        let pin = hex::encode(found.sha256);
        if let Some(config) = &self.config {
            ensure!(found.info.kind == Kind::Vault, "{} is no vault", found.path.display());
            write_pin(config, &found.path, &pin)?;
        }
        let mut result = found.json();
        result["config"] = json!(self.config);
        out.result(&result, |_| match &self.config {
            None => format!("pin = \"{pin}\""),
            Some(config) => format!("{} lets no other file be loaded from the agent's next start on", config.display()),
        })
    }
}

/// A plugin that may be used.
struct Found {
    path: PathBuf,
    info: PluginInfo,
    sha256: [u8; 32],
}

impl Found {
    fn json(&self) -> Value {
        json!({"path": self.path, "kind": self.info.kind.word(), "name": self.info.name, "version": self.info.version,
            "abi": abi::ABI_VERSION, "sha256": hex::encode(self.sha256)})
    }
}

/// The path, then the pin, then the table: what is loaded is what was hashed.
fn look(path: &Path, wanted: Option<[u8; 32]>, danger_development: bool) -> Result<Found> {
    let path = std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()))?;
    let rule = path_rule(danger_development);
    let mut file = check_path(&path, rule).with_context(|| format!("{} may not be used", path.display()))?;
    let sha256 = sha256_of(&mut file).with_context(|| format!("cannot read {}", path.display()))?;
    let work = Temporary::new()?;
    let config = HostConfig { pin: Some(wanted.unwrap_or(sha256)), ..host(&path, rule, &work)? };
    Ok(Found { info: inspect(&config)?, path, sha256 })
}

fn host(path: &Path, rule: PathRule, work: &Temporary) -> Result<HostConfig> {
    Ok(HostConfig { path_rule: rule, ..HostConfig::new(path, work.0.join("look"))? })
}

fn path_rule(danger_development: bool) -> PathRule {
    if danger_development { PathRule::DangerDevelopment } else { PathRule::Strict }
}

fn sha256(text: &str) -> Result<[u8; 32], String> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| "a SHA-256 has 64 hexadecimal digits".to_owned())?;
    Ok(bytes)
}

/// Writes `pin` into the configuration of an agent that uses this very plugin.
fn write_pin(config: &Path, plugin: &Path, pin: &str) -> Result<()> {
    let vault = Config::load(config)?.vault;
    let used = match vault.plugin {
        Some(path) => path,
        None => find_artifact(&format!("libmayfly_vault_{}.so", vault.kind))?,
    };
    let same = std::fs::canonicalize(&used).ok() == std::fs::canonicalize(plugin).ok();
    ensure!(same, "{} uses {}, not {}; nothing was changed", config.display(), used.display(), plugin.display());
    let text = std::fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let Some(text) = with_pin(&text, pin) else {
        let what = format!("{} cannot be changed by this command", config.display());
        return Err(advised(what, format!("write `pin = \"{pin}\"` into its [vault] section")));
    };
    replace(config, &text).with_context(|| format!("cannot write {}", config.display()))
}

/// The configuration with this pin and no other change, comments kept; `None` if that is not what came out.
fn with_pin(text: &str, pin: &str) -> Option<String> {
    let mut wanted: toml::Table = text.parse().ok()?;
    wanted.get_mut("vault")?.as_table_mut()?.insert("pin".into(), pin.into());
    let lines: Vec<&str> = text.lines().collect();
    let header = lines.iter().position(|line| line.trim() == "[vault]")?;
    let is_pin = |line: &&str| line.split('=').next().is_some_and(|name| name.trim() == "pin");
    let end =
        lines.iter().skip(header + 1).position(|line| line.starts_with('[')).map_or(lines.len(), |n| header + 1 + n);
    let old = lines.get(header + 1..end)?.iter().position(is_pin).map(|n| header + 1 + n);
    let mut changed = String::new();
    for (number, line) in lines.iter().enumerate().filter(|(number, _)| Some(*number) != old) {
        changed.push_str(line);
        changed.push('\n');
        if number == header {
            changed.push_str(&format!("pin = \"{pin}\"\n"));
        }
    }
    (changed.parse().ok() == Some(wanted)).then_some(changed)
}

/// A new file in the place of one, of the same owner and mode: readers see the old or the new one, whole.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let found = std::fs::metadata(path)?;
    let new = path.with_extension("toml.new");
    let mut file = File::options().write(true).create_new(true).mode(found.mode() & 0o777).open(&new)?;
    let written = fchown(&file, Some(found.uid()), Some(found.gid()))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        // The first failure is the one to tell.
        let _ = std::fs::remove_file(&new);
    }
    written
}

impl Test {
    fn run(&self, out: &Announcer) -> Result<()> {
        let work = Temporary::new()?;
        let folder = work.0.clone();
        // A software TPM ends with this process.
        when_interrupted(move || remove(&folder))?;
        let path = std::path::absolute(&self.path).with_context(|| format!("cannot use {}", self.path.display()))?;
        let rule = path_rule(self.danger_development);
        let mut config = HostConfig {
            config_text: self.config.clone(),
            network: if self.network { Network::Allowed } else { Network::None },
            path_rule: rule,
            ..HostConfig::new(&path, self.data.clone().unwrap_or_else(|| work.0.join("data")))?
        };
        let info = inspect(&HostConfig { data_dir: work.0.join("look"), ..config.clone() })?;
        let _tpm = if self.config.is_empty() { fill_in(&mut config, &info, &work)? } else { None };
        let report = contract::run(&config)?;
        out.result(&to_json(&report), |_| report.to_string())?;
        if report.passed() { Ok(()) } else { bail!("{} does not keep its contract", report.plugin) }
    }
}

/// Removes the folder of an interrupted test, in which others may still be writing for a moment.
fn remove(folder: &Path) {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        if std::fs::remove_dir_all(folder).is_ok() || !folder.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gives one of our own vaults what it needs, in a folder that goes afterwards.
fn fill_in(config: &mut HostConfig, info: &PluginInfo, work: &Temporary) -> Result<Option<Tpm>> {
    match (info.kind, info.name.as_str()) {
        (Kind::Vault, "tpm") => {
            software::ensure_tools(&[Software::Tpm])?;
            let scripts = Scripts::unpack(work.0.join("softhsm-setup"))?;
            let dir = work.0.join("swtpm");
            run_script(&scripts.make_tpm(&dir, &dir.join("ca")))?;
            config.config_text = format!("tcti = \"{}\"\n", software::tcti(&dir));
            Ok(Some(Tpm::start(&scripts, &dir)?))
        }
        (Kind::Vault, "pkcs11") => {
            software::ensure_tools(&[Software::Token])?;
            let scripts = Scripts::unpack(work.0.join("softhsm-setup"))?;
            let dir = work.0.join("softhsm");
            run_script(&scripts.make_token(&dir, "test"))?;
            let section = std::fs::read_to_string(software::token_section(&dir)).context("the token is not whole")?;
            let section: toml::Table = section.parse().context("the token's section is not TOML")?;
            let vault = section.get("vault").context("the token's section is no [vault]")?;
            config.config_text = vault.get("config").and_then(toml::Value::as_str).unwrap_or_default().to_owned();
            let variables = vault.get("environment").and_then(toml::Value::as_table).into_iter().flatten();
            config.env = variables.filter_map(|(name, value)| Some((name.into(), value.as_str()?.into()))).collect();
            Ok(None)
        }
        _ => {
            contract::fill_in(config).context("cannot make a passphrase for the test")?;
            Ok(None)
        }
    }
}

fn run_script(call: &Call) -> Result<()> {
    let output = Command::new(&call.program).args(&call.arguments).output().context("cannot run a script")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// A software TPM; it ends when this is dropped, and when this process ends in whatever way.
struct Tpm(Identity);

impl Tpm {
    fn start(scripts: &Scripts, dir: &Path) -> Result<Self> {
        let (call, log) = (scripts.run_tpm(dir), dir.join("output.log"));
        let waiting = process::spawn(&call.program, &call.arguments, Some(std::process::id()), &log)?;
        let tpm = Self(waiting.identity);
        drop(waiting.go()?);
        let deadline = Instant::now() + TPM_TIMEOUT;
        while UnixStream::connect(software::tpm_socket(dir)).is_err() {
            let text = || std::fs::read_to_string(&log).unwrap_or_default();
            ensure!(tpm.0.is_alive() && Instant::now() < deadline, "swtpm does not start: {}", text().trim());
            std::thread::sleep(POLL);
        }
        Ok(tpm)
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let ended = self.0.signal(Signal::TERM);
        let left = process::wait_for_end(&self.0.session(), Instant::now() + TPM_TIMEOUT);
        if ended.is_err() || !left.is_empty() {
            eprintln!("mayfly: swtpm, process {}, does not end", self.0.pid);
        }
    }
}

fn to_json(report: &Report) -> Value {
    let cases: Vec<_> = report
        .cases
        .iter()
        .map(|case| json!({"name": case.name, "passed": case.passed, "detail": case.detail, "ms": case.took.as_millis()}))
        .collect();
    json!({"plugin": report.plugin, "passed": report.passed(), "cases": cases})
}

/// A folder that goes when it is dropped.
struct Temporary(PathBuf);

impl Temporary {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("mayfly-plugin-{}", std::process::id()));
        // Everybody can make folders there: one that exists is somebody else's.
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("mayfly: cannot remove {}: {error}", self.0.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_written_and_nothing_else_changes() {
        let pin = "ab".repeat(32);
        let line = format!("pin = \"{pin}\"");
        for (text, changed) in [
            ("[vault]\nkind = \"x\"\n", format!("[vault]\n{line}\nkind = \"x\"\n")),
            (
                "a = 1\n\n[vault]\n# mine\npin = \"00\" # old\nkind = \"x\"",
                format!("a = 1\n\n[vault]\n{line}\n# mine\nkind = \"x\"\n"),
            ),
            (
                "[other]\npin = 1\n[vault]\nkind = \"x\"\n[vault.environment]\npin = \"2\"\n",
                format!("[other]\npin = 1\n[vault]\n{line}\nkind = \"x\"\n[vault.environment]\npin = \"2\"\n"),
            ),
        ] {
            assert_eq!(with_pin(text, &pin).as_deref(), Some(changed.as_str()), "{text}");
        }
        // What cannot be changed by lines is not changed.
        for text in ["vault = { kind = \"x\" }\n", "[vault]\nkind = \"\"\"\npin = 1\n\"\"\"\n", "kind = 1\n", "[vault"]
        {
            assert_eq!(with_pin(text, &pin), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_is_replaced_keeps_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
        replace(&path, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
