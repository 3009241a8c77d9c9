//! The suites that a plugin of a kind must pass, ours and others'. `mayfly plugin test PATH` runs them.
//!
//! Each case gets a plugin with an empty data folder of its own, and talks to it through the facade, so that a plugin
//! is judged as agent and gateway will see it. A case that fails says what was expected; the others go on.

mod backend;
mod vault;

use crate::client::Client;
use crate::config::{HostConfig, Kind};
use crate::error::PluginError;
use std::fmt;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

pub use backend::backend;
pub use vault::{vault, vault_crashes, vault_rules};

/// Makes the configuration of one case: a fresh data folder each time, the same plugin.
pub type Factory<'a> = dyn Fn(&str) -> HostConfig + 'a;

/// One case of a suite.
#[derive(Clone, Debug)]
pub struct Case {
    /// What must hold.
    pub name: &'static str,
    /// Whether it did.
    pub passed: bool,
    /// What was seen: why it failed, or a remark.
    pub detail: String,
    /// How long it took.
    pub took: Duration,
}

/// What a suite found.
#[derive(Clone, Debug)]
pub struct Report {
    /// `vault(file)`.
    pub plugin: String,
    /// The cases in order.
    pub cases: Vec<Case>,
}

impl Report {
    /// True when every case passed.
    pub fn passed(&self) -> bool {
        !self.cases.is_empty() && self.cases.iter().all(|case| case.passed)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for case in &self.cases {
            let word = if case.passed { "ok  " } else { "FAIL" };
            let space = if case.detail.is_empty() { "" } else { ": " };
            writeln!(f, "{word} {}{space}{} ({} ms)", case.name, case.detail, case.took.as_millis())?;
        }
        let failed = self.cases.iter().filter(|case| !case.passed).count();
        write!(f, "{}: {} cases, {failed} failed", self.plugin, self.cases.len())
    }
}

/// Runs the suite that fits the plugin. `config` is the plugin's configuration; its data folder is a folder under
/// which each case makes its own.
///
/// # Errors
/// When the plugin cannot even be started once.
pub fn run(config: &HostConfig) -> Result<Report, PluginError> {
    let first = HostConfig { data_dir: config.data_dir.join("probe"), ..config.clone() };
    let probe = Client::start(&first, None)?;
    let kind = probe.opened().map(|opened| opened.kind);
    drop(probe);
    let factory = |case: &str| HostConfig { data_dir: folder(&config.data_dir, case), ..config.clone() };
    Ok(match kind {
        Some(Kind::Backend) => backend(&factory),
        Some(Kind::Vault) | None => vault(&factory),
    })
}

/// Fills in what a plugin of ours needs to be tested where the caller gave no configuration: the vault `file` gets a
/// random passphrase in a file of its own beside the data folder. Others are left as they are.
///
/// # Errors
/// When that file cannot be written.
pub fn fill_in(config: &mut HostConfig) -> io::Result<()> {
    if !config.config_text.is_empty() || config.name_guess() != "file" {
        return Ok(());
    }
    let mut random = [0u8; 16];
    mayfly_secmem::random(&mut random).map_err(io::Error::other)?;
    let path = std::path::absolute(config.data_dir.with_extension("passphrase"))?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    file.write_all(hex::encode(random).as_bytes())?;
    config.config_text = format!("passphrase_file = '{}'\n", path.display());
    Ok(())
}

fn folder(base: &Path, case: &str) -> std::path::PathBuf {
    base.join(case.replace(|c: char| !c.is_ascii_alphanumeric(), "-"))
}

/// What a case says when it fails.
pub(crate) type Outcome = Result<String, String>;

/// Collects cases.
pub(crate) struct Suite<'a> {
    factory: &'a Factory<'a>,
    report: Report,
}

impl<'a> Suite<'a> {
    fn new(plugin: String, factory: &'a Factory<'a>) -> Suite<'a> {
        Suite { factory, report: Report { plugin, cases: Vec::new() } }
    }

    fn case(&mut self, name: &'static str, body: impl FnOnce(&HostConfig) -> Outcome) {
        let started = Instant::now();
        let config = (self.factory)(name);
        let outcome = body(&config);
        let passed = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|what| what);
        self.report.cases.push(Case { name, passed, detail, took: started.elapsed() });
    }
}

/// Fails a case with a sentence unless something holds.
macro_rules! ensure {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}
pub(crate) use ensure;

/// An error of the facade, as a case's failure.
pub(crate) fn text(error: PluginError) -> String {
    error.to_string()
}

/// A refusal with the expected status.
pub(crate) fn refused<T>(
    what: &str,
    result: Result<T, PluginError>,
    allowed: &[crate::abi::Status],
) -> Result<(), String> {
    match result {
        Ok(_) => Err(format!("{what}: was allowed")),
        Err(error) if error.status().is_some_and(|status| allowed.contains(&status)) => Ok(()),
        Err(error) => Err(format!("{what}: expected {allowed:?}, got: {error} ({:?})", error.status())),
    }
}

/// Calls until the host is back: the first calls after a kill may be told of it.
pub(crate) fn settled<T>(mut call: impl FnMut() -> Result<T, PluginError>) -> Result<T, String> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let started = Instant::now();
    loop {
        match call() {
            Err(PluginError::Ended { .. }) if started.elapsed() < PATIENCE => {}
            Err(PluginError::Restarting { wait, .. }) if started.elapsed() < PATIENCE => std::thread::sleep(wait),
            other => return other.map_err(text),
        }
    }
}

/// Delays between the start of a call and the kill, in microseconds, from "before it" to "long after it".
pub(crate) const KILL_DELAYS: [u64; 16] =
    [0, 30, 60, 100, 150, 200, 300, 400, 600, 800, 1200, 1700, 2500, 4000, 8000, 15000];
