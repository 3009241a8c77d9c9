//! `mayfly init`: a new network: its first record, an administrator's key, a gateway's key and configuration.

use super::announce::{Announcer, field};
use super::ask::Question;
use super::keyfile::KeyFile;
use super::value;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mayfly_crypto::sign::{Ed25519Secret, P256Secret};
use mayfly_ledger_client::{GatewayAddress, NetworkFile};
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::{Administrator, Gateway, Genesis, NetworkPolicy, Verifier};
use mayfly_protocol::{AuthorId, Entry, EntryId, Head, NetworkId, Record};
use mayfly_secmem::SecretBytes;
use serde_json::json;
use std::fs::{DirBuilder, File};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The network's description: goes to every host.
pub const NETWORK: &str = "network.toml";
/// The administrator's key: goes nowhere.
pub const ADMIN_KEY: &str = "administrator.key";
/// The gateway's configuration: goes to its host, with the folder that it is in.
pub const LEDGER_CONFIG: &str = "ledger-1/ledger.toml";
/// The gateway's key.
const LEDGER_KEY: &str = "ledger-1/gateway.key";
/// Shortest passphrase of an administrator's key, bytes. The key's file is sealed with Argon2id; below this even that is guessed.
const PASSPHRASE_BYTES_MIN: usize = 8;
/// Oldest witness statement under which anything is released, in milliseconds.
const HEAD_AGE_MS_MAX: u64 = 60_000;
/// Largest difference between a device's clock and ledger time, in milliseconds.
const SKEW_MS_MAX: u64 = 10_000;

/// Make a new network: its first record, an administrator's key, a gateway's configuration
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly init net --name example --gateway ledger.example.org:7440\n  \
    mayfly-ledger --config net/ledger-1/ledger.toml &\n  mayfly invite --admin net/administrator.key")]
pub struct Init {
    /// Folder for the network's files; made if it is not there
    dir: PathBuf,
    /// Name of the network
    #[arg(long, value_parser = value::name)]
    name: String,
    /// Where devices reach the ledger's gateway
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7440")]
    gateway: String,
    /// Address that the gateway listens on; every address of its host, with the port of --gateway, if left out
    #[arg(long, value_name = "ADDRESS:PORT")]
    gateway_listen: Option<SocketAddr>,
    /// Name of the administrator
    #[arg(long, value_name = "NAME", default_value = "administrator", value_parser = value::name)]
    administrator: String,
    /// File with the passphrase of the administrator's key (- for standard input); else MAYFLY_ADMIN_PASSPHRASE or the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Invited devices become members without approval; roles are given by administrators all the same
    #[arg(long)]
    join_unapproved: bool,
    /// Devices may be approved without a proof of their TPM; without this, no vault of another kind can take part
    #[arg(long)]
    allow_unattested: bool,
    /// DANGER: the administrator's key lies unsealed in its file
    #[arg(long)]
    danger_plain: bool,
    /// DANGER: a network for development: any device may make and reset tokens, nothing waits for grace periods
    #[arg(long)]
    danger_dev: bool,
}

/// Everything that a network is made from.
pub struct Plan {
    /// Its name.
    pub name: String,
    /// Its administrator's name.
    pub administrator: String,
    /// Where devices reach the gateway.
    pub gateway: String,
    /// Where the gateway listens.
    pub gateway_listen: SocketAddr,
    /// Seals the administrator's key; without it the key is in the clear.
    pub passphrase: Option<SecretBytes>,
    /// Invited devices become members without approval.
    pub join_unapproved: bool,
    /// Devices may be approved without a proof of their TPM.
    pub allow_unattested: bool,
    /// A network for development.
    pub dev: bool,
}

impl Plan {
    /// A network of `mayfly dev`.
    pub fn development(gateway: SocketAddr) -> Self {
        Self {
            name: "dev".into(),
            administrator: "developer".into(),
            gateway: gateway.to_string(),
            gateway_listen: gateway,
            passphrase: None,
            join_unapproved: false,
            allow_unattested: true,
            dev: true,
        }
    }
}

impl Init {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
        let gateway_listen = match self.gateway_listen {
            Some(address) => address,
            None => every_address(&self.gateway)?,
        };
        // Before any question is asked; a folder that is not there is made after it.
        if self.dir.exists() {
            make_private_dir(&self.dir)?;
        }
        for file in [NETWORK, ADMIN_KEY, LEDGER_CONFIG] {
            ensure!(
                !self.dir.join(file).exists(),
                "{} exists already; choose another folder",
                self.dir.join(file).display()
            );
        }
        let passphrase = if self.danger_plain {
            None
        } else {
            let question = Question {
                what: "new passphrase of the administrator's key",
                file: self.passphrase_file.as_deref(),
                variable: "MAYFLY_ADMIN_PASSPHRASE",
                is_new: true,
            };
            let passphrase = question.ask()?;
            ensure!(
                passphrase.len() >= PASSPHRASE_BYTES_MIN,
                "a passphrase of {} bytes is guessed at once; take at least {PASSPHRASE_BYTES_MIN}, such as five words; nothing was made",
                passphrase.len()
            );
            Some(passphrase)
        };
        let plan = Plan {
            name: self.name,
            administrator: self.administrator,
            gateway: self.gateway,
            gateway_listen,
            passphrase,
            join_unapproved: self.join_unapproved,
            allow_unattested: self.allow_unattested,
            dev: self.danger_dev,
        };
        let network = make(&self.dir, &plan)?;
        let dir = self.dir.display().to_string();
        let result = json!({"name": plan.name, "network": network.to_string(), "dir": dir,
            "administrator_key": self.dir.join(ADMIN_KEY), "network_file": self.dir.join(NETWORK), "ledger_config": self.dir.join(LEDGER_CONFIG)});
        out.result(&result, |r| {
            format!(
                "network '{}' is made in {dir}\n  keep {ADMIN_KEY} safe: it is the network's first and only administrator\n  \
                 next: mayfly-ledger --config {}\n  then: mayfly invite --admin {}",
                plan.name,
                field(r, "ledger_config"),
                field(r, "administrator_key"),
            )
        })?;
        Ok(())
    }
}

/// Every address of a host, with the port of `HOST:PORT`.
fn every_address(gateway: &str) -> Result<SocketAddr> {
    let port = gateway.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
    let port = port.filter(|port| *port != 0).with_context(|| format!("'{gateway}' is no gateway; give HOST:PORT"))?;
    Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
}

/// Makes all files of a new network in `dir`; none that exists is overwritten.
pub fn make(dir: &Path, plan: &Plan) -> Result<NetworkId> {
    make_private_dir(dir)?;
    make_private_dir(&dir.join("ledger-1"))?;
    let administrator = P256Secret::generate().context("no randomness for the administrator's key")?;
    let gateway = Ed25519Secret::generate().context("no randomness for the gateway's key")?;
    let genesis = genesis(plan, &administrator, &gateway)?;
    let network = NetworkFile {
        network: NetworkId(genesis.id().0),
        genesis: genesis.encode(),
        gateways: vec![GatewayAddress { address: plan.gateway.clone(), key: gateway.public() }],
    };
    // As any host will read it.
    NetworkFile::parse(&network.to_toml()).context("the new network is not valid")?;
    let key = dir.join(ADMIN_KEY);
    match &plan.passphrase {
        Some(passphrase) => KeyFile::write_sealed(&key, &administrator, passphrase.expose())?,
        None => KeyFile::danger_write_plain(&key, &administrator)?,
    }
    write_new(&dir.join(LEDGER_KEY), gateway.seed().expose())?;
    write_new(&dir.join(LEDGER_CONFIG), ledger_config(plan).as_bytes())?;
    write_new(&dir.join(NETWORK), network.to_toml().as_bytes())?;
    Ok(network.network)
}

fn genesis(plan: &Plan, administrator: &P256Secret, gateway: &Ed25519Secret) -> Result<Entry> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).context("the kernel gave no randomness")?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("this machine's clock is before 1970")?;
    let record = Record::from(Genesis {
        name: plan.name.clone(),
        created_ms: u64::try_from(now.as_millis()).context("this machine's clock is far off")?,
        administrators: vec![Administrator { name: plan.administrator.clone(), key: Verifier(administrator.public()) }],
        administrators_needed: 1,
        gateways: vec![Gateway { key: Verifier(gateway.public()), addresses: vec![plan.gateway.clone()] }],
        policy: NetworkPolicy {
            head_age_ms_max: HEAD_AGE_MS_MAX,
            skew_ms_max: SKEW_MS_MAX,
            members_join_unapproved: plan.join_unapproved,
            dev: plan.dev,
            unattested: plan.allow_unattested,
        },
        nonce,
    });
    let mut entry = Entry {
        version: mayfly_protocol::entry::VERSION,
        network: NetworkId::default(),
        kind: record.kind() as u16,
        author: AuthorId(public_key_id(&administrator.public())),
        author_seq: 1,
        author_prev: EntryId::default(),
        head: Head::default(),
        payload: record.encode(),
        signatures: Vec::new(),
    };
    let sign = |message: &[u8]| Ok::<_, std::convert::Infallible>(administrator.sign(message).to_vec());
    match entry.sign_with(&administrator.public(), sign) {
        Ok(()) => Ok(entry),
    }
}

/// The gateway's configuration; paths are relative to it.
fn ledger_config(plan: &Plan) -> String {
    let listen = plan.gateway_listen;
    let danger = if plan.dev { "\n[danger]\nplugin_path_unchecked = true\n" } else { "" };
    format!(
        "# A gateway of network '{}': `mayfly-ledger --config THIS-FILE`. docs/operations.md explains each line.\n\
         network = \"../{NETWORK}\"\nkey = \"gateway.key\"\nlisten = \"{listen}\"\n\n\
         [backend]\nplugin = \"embedded\"\ndata = \"store\"\n{danger}",
        plan.name
    )
}

/// Reads the `network.toml` in a folder.
pub fn read_network(dir: &Path) -> Result<NetworkFile> {
    read_network_file(&dir.join(NETWORK))
}

/// Reads a network's description.
pub fn read_network_file(path: &Path) -> Result<NetworkFile> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}; `mayfly init` makes one", path.display()))?;
    NetworkFile::parse(&text).with_context(|| path.display().to_string())
}

/// A folder that only its owner can look into. One that exists must be ours, or root's, and others must not be able to put files into it:
/// they could put their own in the place of keys and configurations.
pub fn make_private_dir(dir: &Path) -> Result<()> {
    if let Err(error) = DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        bail!("cannot make {}: {error}", dir.display());
    }
    let found = std::fs::metadata(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
    let is_ours = [0, rustix::process::geteuid().as_raw()].contains(&found.uid());
    ensure!(is_ours, "{} belongs to user {}; choose a folder of your own", dir.display(), found.uid());
    let is_closed = found.mode() & 0o022 == 0;
    ensure!(
        is_closed,
        "others can write to {dir}; run `chmod go-w {dir}` or choose another folder",
        dir = dir.display()
    );
    Ok(())
}

/// Writes a new file, readable by its owner only.
pub fn write_new(path: &Path, content: &[u8]) -> Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.with_context(|| format!("cannot make {}", path.display()))?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_network_is_valid_and_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::development("127.3.2.1:12345".parse().unwrap());
        let id = make(folder.path(), &plan).unwrap();
        let network = read_network(folder.path()).unwrap();
        assert_eq!(network.network, id);
        assert_eq!(network.gateways.len(), 1);
        assert!(KeyFile::read(&folder.path().join(ADMIN_KEY)).unwrap().is_plain());
        assert!(make(folder.path(), &plan).is_err(), "an administrator's key was overwritten");
        assert_eq!(read_network(folder.path()).unwrap().network, id);
    }

    #[test]
    fn the_gateway_listens_where_devices_look_for_it() {
        for (gateway, port) in [
            ("ledger.example.org:7440", Some(7440)),
            ("127.0.0.1:18440", Some(18440)),
            ("[::1]:9", Some(9)),
            ("ledger.example.org", None),
            (":7440", None),
            ("host:0", None),
            ("host:70000", None),
        ] {
            assert_eq!(every_address(gateway).ok().map(|address| address.port()), port, "{gateway}");
        }
    }

    #[test]
    fn two_networks_with_equal_settings_differ() {
        let plan = Plan::development("127.3.2.1:12345".parse().unwrap());
        let ids: Vec<_> = (0..2).map(|_| make(tempfile::tempdir().unwrap().path(), &plan).unwrap()).collect();
        assert_ne!(ids[0], ids[1]);
    }

    #[test]
    fn folders_that_others_can_write_to_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        for (mode, good) in [(0o700, true), (0o755, true), (0o770, false), (0o702, false), (0o1777, false)] {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(make_private_dir(folder.path()).is_ok(), good, "{mode:o}");
        }
        make_private_dir(&folder.path().join("a/b")).unwrap();
        assert_eq!(std::fs::metadata(folder.path().join("a/b")).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn bad_names_are_refused() {
        let mut plan = Plan::development("127.3.2.1:12345".parse().unwrap());
        plan.name = "a b".into();
        assert!(make(tempfile::tempdir().unwrap().path(), &plan).is_err());
    }
}
