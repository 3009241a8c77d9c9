//! `mayfly join TOKEN`: this host becomes a device of a network.

use super::announce::{Announcer, field};
use super::ask;
use super::init::{make_private_dir, write_new};
use super::value;
use crate::config::{Config, NewKeys};
use crate::join_token::{JoinToken, TEXT_BYTES_MAX};
use anyhow::{Context, Result, ensure};
use clap::Args;
use mayfly_protocol::DeviceId;
use mayfly_secmem::random;
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// The agent's configuration in its folder.
pub const CONFIG: &str = "agent.toml";
/// The network's description in the agent's folder.
const NETWORK: &str = "network.toml";
/// The file vault's passphrase in the agent's folder.
const PASSPHRASE: &str = "vault.passphrase";

/// Make this host a device of a network
///
/// The device's identity key is made inside its vault. The agent's configuration is written to the folder; an administrator then approves
/// the device and gives it roles.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mayfly join mayfly-join-hAFYIA… --name web-1 --advertise web-1.example.org:7411\n  \
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
    /// Kind of vault
    #[arg(long, value_name = "KIND", default_value = "file", value_parser = ["file"])]
    vault: String,
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
    /// Kind of vault.
    pub vault: String,
    /// Settings of new keys.
    pub new_keys: NewKeys,
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
            vault: "file".into(),
            new_keys,
            danger_development: true,
        }
    }
}

impl Join {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
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
            vault: self.vault,
            new_keys: NewKeys::default(),
            danger_development: self.danger_development,
        };
        let id = if self.token == "-" {
            join(ask::read_secret_file(Path::new("-"), TEXT_BYTES_MAX + 2)?.expose(), &device)?
        } else {
            join(self.token.as_bytes(), &device)?
        };
        let config = device.dir.join(CONFIG);
        let result = json!({"device": device.name, "id": id.to_string(), "config": config});
        out.result(&result, |r| {
            format!(
                "device '{}' has joined with id {id}\n  next, here: mayflyd --config {}\n  next, by an administrator: mayfly device approve {}",
                device.name,
                field(r, "config"),
                id
            )
        })?;
        Ok(())
    }
}

/// Writes the agent's configuration and posts the JOIN record.
pub fn join(token: &[u8], device: &NewDevice) -> Result<DeviceId> {
    let token = JoinToken::parse(token)?;
    make_private_dir(&device.dir)?;
    let config = device.dir.join(CONFIG);
    ensure!(
        !config.exists(),
        "{} exists: this host has joined a network already; name another --dir",
        config.display()
    );
    write_passphrase(&device.dir.join(PASSPHRASE))?;
    let text = device.config()?;
    let mut parsed = Config::parse(&text, &config).context("the new configuration is not valid")?;
    parsed.resolve(&device.dir);
    let joined = crate::node::join(&token, &parsed)?;
    write_new(&device.dir.join(NETWORK), joined.network.to_toml().as_bytes())?;
    // Last: whoever finds it finds a device that has joined.
    write_new(&config, text.as_bytes())?;
    Ok(joined.device)
}

/// A random passphrase for the file vault: it keeps the vault's file apart from its opening, no more.
fn write_passphrase(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let passphrase = mayfly_secmem::SecretBytes::try_new_with(64, |text| {
        let mut bytes = mayfly_secmem::Secret::<32>::try_new_with(|bytes| random(bytes))?;
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes.expose_mut()) {
            for (digit, nibble) in pair.iter_mut().zip([*byte >> 4, *byte & 15]) {
                *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            }
        }
        Ok::<_, mayfly_secmem::RandomError>(())
    });
    write_new(path, passphrase.context("no randomness for the vault's passphrase")?.expose())
}

impl NewDevice {
    /// The agent's configuration, with a line for everything that was chosen.
    fn config(&self) -> Result<String> {
        let text = |path: &Path| -> Result<String> {
            let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
            Ok(toml::Value::from(text).to_string())
        };
        let passphrase = toml::Value::from(format!("passphrase_file = {}", text(&self.dir.join(PASSPHRASE))?));
        let advertise = self
            .advertise
            .as_ref()
            .map(|a| format!("advertise = {}\n", toml::Value::from(a.as_str())))
            .unwrap_or_default();
        let keys = &self.new_keys;
        let assemblers = toml::Value::from(keys.assemblers.clone());
        let mut config = format!(
            "# The agent of device '{name}': `mayflyd --config THIS-FILE`. docs/operations.md explains each line.\n\
             device_name = \"{name}\"\ndata_dir = \"data\"\nnetwork = \"{NETWORK}\"\nsocket = {socket}\n\n\
             [peers]\nlisten = \"{listen}\"\n{advertise}\n\
             [vault]\nkind = \"{vault}\"\nconfig = {passphrase}\n\n\
             [new_keys]\nthreshold = {threshold}\nshares = {shares}\nassemblers = {assemblers}\nwindow_seconds = {window}\n",
            name = self.name,
            socket = text(&self.socket)?,
            listen = self.listen,
            vault = self.vault,
            threshold = keys.threshold,
            shares = keys.shares,
            window = keys.window_seconds,
        );
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
        let new_keys = NewKeys { threshold: 2, shares: 3, assemblers: vec!["*".into()], window_seconds: 5 };
        for dir in ["/var/lib/mayfly", "/tmp/a b\"c\\d"] {
            let mut device =
                NewDevice::development("agent-1", Path::new(dir), "127.1.2.3".parse().unwrap(), new_keys.clone());
            device.advertise = Some("web-1.example.org:7411".into());
            let text = device.config().unwrap();
            let config = Config::parse(&text, Path::new("agent.toml")).unwrap();
            assert_eq!((config.device_name.as_str(), &config.new_keys), ("agent-1", &new_keys));
            assert_eq!(config.socket, Path::new(dir).join("agent.sock"));
            assert_eq!(config.peers.advertise.as_deref(), Some("web-1.example.org:7411"));
            assert!(config.danger.plugin_path_unchecked);
            let vault: toml::Table = config.vault.config.parse().unwrap();
            assert_eq!(vault["passphrase_file"].as_str(), Path::new(dir).join(PASSPHRASE).to_str());
        }
    }

    #[test]
    fn the_passphrase_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PASSPHRASE);
        write_passphrase(&path).unwrap();
        let first = std::fs::read(&path).unwrap();
        assert!(first.len() == 64 && first.iter().all(u8::is_ascii_hexdigit));
        write_passphrase(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }
}
