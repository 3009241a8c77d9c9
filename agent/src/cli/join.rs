//! `mayfly join TOKEN`: this host becomes a device of a network.

use super::announce::{Announcer, advised, field, wrong_use};
use super::ask;
use super::init::{make_private_dir, write_new};
use super::value;
use super::vault::{NewVault, VaultOptions};
use crate::config::{Config, NewKeys};
use crate::join_token::{JoinToken, TEXT_BYTES_MAX};
use crate::node::{self, JoinError, Joined};
use anyhow::{Context, Result, ensure};
use clap::Args;
use serde_json::json;
use std::fs::{DirBuilder, remove_dir, remove_dir_all, remove_file};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The agent's configuration in its folder.
pub const CONFIG: &str = "agent.toml";
/// The network's description in the agent's folder.
const NETWORK: &str = "network.toml";
/// The agent's data in its folder.
const DATA: &str = "data";
/// The vault's folder in the data.
const VAULT: &str = "vault";
/// Where a vault of tokens remembers that its PIN was refused (docs/formats/vault-pkcs11.md), in its folder.
const PIN_REFUSED: &str = "pin-refused";

/// Make this host a device of a network
///
/// The device's identity key is made inside its vault. The agent's configuration is written to the folder; an administrator then approves
/// the device and gives it roles.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  mayfly join mayfly-join-hAFYIA… --name web-1 --advertise web-1.example.org:7411 --vault tpm\n  \
    mayfly join - --vault pkcs11 --module /usr/lib/softhsm/libsofthsm2.so --token-label mayfly < token\n  \
    mayflyd --config /var/lib/mayfly/agent.toml"
)]
pub struct Join {
    /// The token that `mayfly invite` printed; - for standard input
    token: String,
    /// Name of the device; this host's name if left out
    #[arg(long, value_parser = value::name)]
    name: Option<String>,
    /// The agent's folder
    #[arg(long, value_name = "DIR", default_value = crate::config::DATA_DIR_DEFAULT)]
    dir: PathBuf,
    /// Address to listen on for other agents
    #[arg(long, value_name = "ADDRESS:PORT", default_value_t = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7411)))]
    listen: SocketAddr,
    /// Where other agents reach this one; if left out the address listened on, and where that is 0.0.0.0, this host's name
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Socket for applications
    #[arg(long = "agent-socket", value_name = "PATH", default_value = crate::config::SOCKET_DEFAULT)]
    agent_socket: PathBuf,
    #[command(flatten)]
    vault: VaultOptions,
    /// DANGER: plugins may lie in a build tree that your group can change
    #[arg(long)]
    danger_development: bool,
}

/// A device that is to join.
pub struct NewDevice {
    /// Its name.
    pub name: String,
    /// The agent's folder.
    pub dir: PathBuf,
    /// Address for other agents.
    pub listen: SocketAddr,
    /// What other agents are told.
    pub advertise: Option<String>,
    /// Socket for applications.
    pub socket: PathBuf,
    /// Settings of new keys.
    pub new_keys: NewKeys,
    /// Makers of software TPMs that it believes as a witness, for development.
    pub danger_roots: Option<PathBuf>,
    /// Plugins may lie in a build tree.
    pub danger_development: bool,
}

impl NewDevice {
    /// A device of `mayfly dev`: all that it has is in its folder.
    pub fn development(name: &str, dir: &Path, host: IpAddr, new_keys: NewKeys) -> Self {
        Self {
            name: name.into(),
            dir: dir.into(),
            listen: SocketAddr::new(host, 0),
            advertise: None,
            socket: dir.join("agent.sock"),
            new_keys,
            danger_roots: None,
            danger_development: true,
        }
    }
}

impl Join {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
        if let Some(wrong) = self.vault.misused() {
            return Err(wrong_use(wrong));
        }
        let name = match self.name {
            Some(name) => name,
            None => {
                let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
                value::name(&host).map_err(|e| {
                    anyhow::anyhow!("this host's name '{host}' cannot be the device's: {e}; give --name")
                })?
            }
        };
        let device = NewDevice {
            name,
            dir: std::path::absolute(&self.dir).context("cannot use the folder")?,
            listen: self.listen,
            advertise: self.advertise,
            socket: self.agent_socket,
            new_keys: NewKeys::default(),
            danger_roots: None,
            danger_development: self.danger_development,
        };
        // Before anything is asked.
        ensure_new(&device.dir)?;
        let asks_an_approver = self.vault.asks_an_approver();
        let vault = self.vault.choose(&device.dir)?;
        let joined = if self.token == "-" {
            join(ask::read_secret_file(Path::new("-"), TEXT_BYTES_MAX + 2)?.expose(), &device, &vault)?
        } else {
            join(self.token.as_bytes(), &device, &vault)?
        };
        let (id, name) = (joined.device, &device.name);
        let result =
            json!({"device": name, "id": id.to_string(), "vault": joined.vault, "config": device.dir.join(CONFIG)});
        out.result(&result, |r| {
            let mut text = format!(
                "device '{name}' has joined with id {id}, vault {}\n  next, here: mayflyd --config {}\n",
                joined.vault,
                field(r, "config")
            );
            if joined.asks_for_attestation {
                text.push_str(&format!(
                    "  then its chip proves itself: to the witnesses by itself, or here by an administrator: mayfly device attest {name}\n"
                ));
            }
            if asks_an_approver {
                text.push_str(&format!(
                    "  its vault opens when its registers are approved, on the approver: mayfly vault approve-pcr --device {name} --current\n"
                ));
            }
            text + &format!("  next, by an administrator: mayfly device approve {id}")
        })?;
        Ok(())
    }
}

/// Writes the agent's configuration and posts the JOIN record. An attempt that fails leaves nothing behind, unless the ledger may have
/// taken the device: then the next attempt goes on with what is there.
pub fn join(token: &[u8], device: &NewDevice, vault: &NewVault) -> Result<Joined> {
    let token = JoinToken::parse(token)?;
    let config = device.dir.join(CONFIG);
    let text = device.config(vault)?;
    let mut parsed = Config::parse(&text, &config).context("the new configuration is not valid")?;
    parsed.resolve(&device.dir);
    let attempt = Attempt::begin(&device.dir)?;
    let joined = vault.write_secret().and_then(|()| Ok(node::join(&token, &parsed)?));
    let joined = joined.map_err(|error| attempt.failed(error, &parsed, vault))?;
    write_anew(&device.dir.join(NETWORK), joined.network.to_toml().as_bytes())?;
    // Last: whoever finds it finds a device that has joined.
    write_new(&config, text.as_bytes())?;
    Ok(joined)
}

/// Refuses where a device has joined.
fn ensure_new(dir: &Path) -> Result<()> {
    let config = dir.join(CONFIG);
    let shown = config.display();
    ensure!(!config.exists(), "{shown} exists: this host has joined a network already; name another --dir");
    Ok(())
}

/// What was there before an attempt to join.
struct Attempt<'a> {
    dir: &'a Path,
    had_dir: bool,
    had_vault: bool,
}

impl<'a> Attempt<'a> {
    fn begin(dir: &'a Path) -> Result<Self> {
        let had_dir = dir.exists();
        make_private_dir(dir)?;
        ensure_new(dir)?;
        let data = dir.join(DATA);
        // Of an attempt that was refused, only the memory of its PIN is left.
        let had_vault = holds_other_than(&data, VAULT) || holds_other_than(&data.join(VAULT), PIN_REFUSED);
        Ok(Self { dir, had_dir, had_vault })
    }

    /// Takes back what a failed attempt has made, unless the ledger may have taken the device.
    fn failed(&self, error: anyhow::Error, config: &Config, vault: &NewVault) -> anyhow::Error {
        let cause = error.downcast_ref::<JoinError>();
        if cause.is_some_and(JoinError::may_have_joined) {
            let next = "run the same command again: the ledger may have the device already, and what was made for it here was kept";
            return advised(format!("{error:#}"), next);
        }
        // A vault of an earlier attempt stays, and with it the secret that opens it.
        if !self.had_vault {
            if !cause.is_some_and(JoinError::is_refused_secret) {
                // Where there is no vault yet, there is nothing to forget.
                let _ = node::forget(config);
            }
            if let Err(left) = self.undo(vault) {
                return error.context(format!("and not everything could be removed: {left:#}"));
            }
        }
        error
    }

    fn undo(&self, vault: &NewVault) -> Result<()> {
        let data = self.dir.join(DATA);
        // A token locks after some wrong PINs: the next attempt must know which one was refused.
        let (folder, marker) = (data.join(VAULT), data.join(VAULT).join(PIN_REFUSED));
        let refused = std::fs::read(&marker).ok();
        if data.exists() {
            remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        }
        vault.remove_secret()?;
        if let Some(refused) = refused {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.context("cannot note that a PIN was refused")?;
            return write_new(&marker, &refused);
        }
        if !self.had_dir {
            remove_dir(self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        Ok(())
    }
}

/// Whether there is anything of another name in a folder.
fn holds_other_than(dir: &Path, name: &str) -> bool {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(Result::ok).any(|entry| entry.file_name() != name)
}

/// Writes a file in the place of one that an interrupted attempt may have left.
fn write_anew(path: &Path, content: &[u8]) -> Result<()> {
    match remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot replace {}", path.display()))
        }
        _ => write_new(path, content),
    }
}

impl NewDevice {
    /// The agent's configuration, with a line for everything that was chosen.
    fn config(&self, vault: &NewVault) -> Result<String> {
        let text = |path: &Path| -> Result<String> {
            let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
            Ok(toml::Value::from(text).to_string())
        };
        let advertise = self
            .advertise
            .as_ref()
            .map(|a| format!("advertise = {}\n", toml::Value::from(a.as_str())))
            .unwrap_or_default();
        let keys = &self.new_keys;
        let assemblers = toml::Value::from(keys.assemblers.clone());
        let mut config = format!(
            "# The agent of device '{name}': `mayflyd --config THIS-FILE`. docs/operations.md explains each line.\n\
             device_name = \"{name}\"\ndata_dir = \"{DATA}\"\nnetwork = \"{NETWORK}\"\nsocket = {socket}\n\n\
             [peers]\nlisten = \"{listen}\"\n{advertise}\n\
             {vault}\n\
             [new_keys]\nthreshold = {threshold}\nshares = {shares}\nassemblers = {assemblers}\nwindow_seconds = {window}\n\
             vault_open = \"{vault_open}\"\n",
            name = self.name,
            socket = text(&self.socket)?,
            listen = self.listen,
            vault = vault.section(),
            threshold = keys.threshold,
            shares = keys.shares,
            window = keys.window_seconds,
            vault_open = keys.vault_open,
        );
        if let Some(roots) = &self.danger_roots {
            config.push_str(&format!("\n[attestation]\nroots = {}\ndanger_allow_software = true\n", text(roots)?));
        }
        if self.danger_development {
            config.push_str("\n[danger]\nplugin_path_unchecked = true\n");
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_that_are_written_can_be_read() {
        let new_keys = NewKeys {
            threshold: 2,
            shares: 3,
            assemblers: vec!["*".into()],
            window_seconds: 5,
            vault_open: "window:7".into(),
        };
        for dir in ["/var/lib/mayfly", "/tmp/a b\"c\\d"] {
            let mut device =
                NewDevice::development("agent-1", Path::new(dir), "127.1.2.3".parse().unwrap(), new_keys.clone());
            device.advertise = Some("web-1.example.org:7411".into());
            device.danger_roots = Some(Path::new(dir).join("makers.pem"));
            let text = device.config(&NewVault::file(Path::new(dir)).unwrap()).unwrap();
            let config = Config::parse(&text, Path::new("agent.toml")).unwrap();
            assert_eq!((config.device_name.as_str(), &config.new_keys), ("agent-1", &new_keys));
            assert_eq!(config.socket, Path::new(dir).join("agent.sock"));
            assert_eq!(config.peers.advertise.as_deref(), Some("web-1.example.org:7411"));
            assert!(config.danger.plugin_path_unchecked);
            let vault: toml::Table = config.vault.config.parse().unwrap();
            assert_eq!(vault["passphrase_file"].as_str(), Path::new(dir).join("vault.passphrase").to_str());
        }
    }

    #[test]
    fn a_failed_attempt_leaves_nothing_but_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("agent");
        let vault = NewVault::file(&dir).unwrap();
        let attempt = Attempt::begin(&dir).unwrap();
        vault.write_secret().unwrap();
        std::fs::create_dir_all(dir.join("data/vault")).unwrap();
        attempt.undo(&vault).unwrap();
        assert!(!dir.exists());

        std::fs::create_dir(&dir).unwrap();
        let attempt = Attempt::begin(&dir).unwrap();
        vault.write_secret().unwrap();
        std::fs::create_dir_all(dir.join("data/vault")).unwrap();
        std::fs::write(dir.join("data/vault/pin-refused"), "file 7").unwrap();
        std::fs::write(dir.join("data/vault/vault"), "half").unwrap();
        assert!(Attempt::begin(&dir).unwrap().had_vault);
        attempt.undo(&vault).unwrap();
        assert!(!Attempt::begin(&dir).unwrap().had_vault);
        let left =
            |path: &str| std::fs::read_dir(dir.join(path)).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!((left(""), left("data/vault")), (vec![DATA.into()], vec!["pin-refused".into()]));
        assert_eq!(std::fs::read(dir.join("data/vault/pin-refused")).unwrap(), b"file 7");
    }
}
