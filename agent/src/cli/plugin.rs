//! `mayfly plugin test PATH`: does a plugin keep its promises?

use super::announce::Announcer;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use mayfly_plugin_api::contract::{self, Report};
use mayfly_plugin_api::{HostConfig, Network, PathRule};
use serde_json::json;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// Work with plugins
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly plugin test ./libmayfly_ledger_embedded.so")]
pub enum Plugin {
    Test(Test),
}

/// Run the contract suite of a plugin's kind
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mayfly plugin test ./libmayfly_vault_file.so --config \"passphrase_file = '/root/passphrase'\""
)]
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
    /// Runs the command; it fails if a case fails.
    pub fn run(self, out: &Announcer) -> Result<()> {
        let Plugin::Test(test) = self;
        match &test.data {
            Some(data) => test.run(out, data),
            None => {
                let data = Temporary::new()?;
                test.run(out, &data.0)
            }
        }
    }
}

impl Test {
    fn run(&self, out: &Announcer, data: &Path) -> Result<()> {
        let path = std::path::absolute(&self.path).with_context(|| format!("cannot use {}", self.path.display()))?;
        let config = HostConfig {
            config_text: self.config.clone(),
            network: if self.network { Network::Allowed } else { Network::None },
            path_rule: if self.danger_development { PathRule::DangerDevelopment } else { PathRule::Strict },
            ..HostConfig::new(path, data)?
        };
        let report = contract::run(&config)?;
        out.result(&to_json(&report), |_| report.to_string())?;
        if report.passed() { Ok(()) } else { bail!("{} does not keep its contract", report.plugin) }
    }
}

fn to_json(report: &Report) -> serde_json::Value {
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
        let path = std::env::temp_dir().join(format!("mayfly-plugin-test-{}", std::process::id()));
        // Everybody can make folders there: one that exists is somebody else's.
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("cannot make {}; name a folder with --data", path.display()))?;
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
