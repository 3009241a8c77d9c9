//! What only administrators may say: records signed with their keys, made on a verified replica of their own, submitted to the gateway.
//!
//! No agent is involved, so this works before the first device has joined and when an agent is not to be trusted. An administrator never
//! signs on a ledger that was not verified here from its first record on.

use super::announce::{advised, quoted};
use super::ask::Question;
use super::init;
use super::keyfile::KeyFile;
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use mayfly_crypto::sign::{P256Secret, PublicKey};
use mayfly_ledger_client::{
    Author, EntrySigner, HelloSigner, NetworkFile, OpenError, Replica, ReplicaConfig, SignerError, StoreError,
};
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::{AuthorId, DeviceId, Record, State};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest wait for a gateway, and for a record to be on the ledger.
const LEDGER_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest wait for a connection to a gateway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for witnesses to sign a record.
const WITNESS_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for another command of the same administrator.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(10);
/// Variable with an administrator's passphrase.
const PASSPHRASE_VARIABLE: &str = "MAYFLY_ADMIN_PASSPHRASE";
/// The key's file where no other is named.
const KEY_DEFAULT: &str = "administrator.key";

/// With whose key, and for which network.
#[derive(Debug, Clone, Args)]
pub struct Signing {
    /// Administrator's key file; more than one where several administrators must sign [env: MAYFLY_ADMIN] [default: administrator.key]
    #[arg(long, value_name = "FILE")]
    admin: Vec<PathBuf>,
    /// File with the passphrase (- for standard input); else MAYFLY_ADMIN_PASSPHRASE or the terminal
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The network's description; the one beside the key file if left out
    #[arg(long, value_name = "FILE")]
    network: Option<PathBuf>,
}

impl Signing {
    /// With this key file and nothing else.
    pub fn of(key: PathBuf) -> Self {
        Self { admin: vec![key], passphrase_file: None, network: None }
    }

    /// The passphrase is in this file.
    pub fn with_passphrase(self, passphrase_file: Option<PathBuf>) -> Self {
        Self { passphrase_file, ..self }
    }

    /// What `--admin` adds to commands that are to be repeated as they were given.
    pub fn words(&self) -> String {
        self.admin.iter().map(|path| format!(" --admin {}", quoted(&path.to_string_lossy()))).collect()
    }

    /// The key files: those named, the environment's, or the usual one.
    fn keys(&self) -> Vec<PathBuf> {
        if !self.admin.is_empty() {
            return self.admin.clone();
        }
        vec![super::variable("MAYFLY_ADMIN").unwrap_or_else(|| KEY_DEFAULT.into())]
    }

    fn open_key(&self, path: &Path) -> Result<Arc<Key>> {
        let file = KeyFile::read(path).with_context(|| "no administrator's key; `--admin FILE` names one")?;
        let secret = if file.is_plain() {
            file.open(b"")?
        } else {
            let what = format!("passphrase of {}", path.display());
            let question = Question {
                what: &what,
                file: self.passphrase_file.as_deref(),
                variable: PASSPHRASE_VARIABLE,
                is_new: false,
            };
            file.open(question.ask()?.expose())?
        };
        Ok(Arc::new(Key(secret)))
    }
}

/// An administrator's key, open.
struct Key(P256Secret);

impl Key {
    fn id(&self) -> AuthorId {
        AuthorId(public_key_id(&self.0.public()))
    }
}

impl EntrySigner for Key {
    fn key(&self) -> PublicKey {
        self.0.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message).to_vec())
    }
}

impl HelloSigner for Key {
    fn key(&self, _: &State) -> PublicKey {
        self.0.public()
    }

    fn sign(&self, _: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message).to_vec())
    }
}

/// An administrator with a verified replica and a connection to a gateway.
pub struct Administrator {
    replica: Arc<Replica>,
    author: Author,
    /// Other administrators who sign as well.
    also: Vec<Arc<Key>>,
    /// Index of the newest record of ours.
    newest: Option<u64>,
}

impl Administrator {
    /// Opens the keys and the replica, and catches up with the ledger.
    pub fn open(signing: &Signing) -> Result<Self> {
        let keys = signing.keys();
        let (first, others) = keys.split_first().context("no administrator's key is named")?;
        if !first.exists() {
            let text = format!("there is no administrator's key at {}", first.display());
            return Err(advised(
                text,
                "name it with --admin FILE, or in the variable MAYFLY_ADMIN; `mayfly init` makes one",
            ));
        }
        let folder = first.parent().unwrap_or(Path::new("."));
        let network = match &signing.network {
            Some(path) => init::read_network_file(path)?,
            None => init::read_network(folder)?,
        };
        let key = signing.open_key(first)?;
        let also = others.iter().map(|path| signing.open_key(path)).collect::<Result<Vec<_>>>()?;
        let id = key.id();
        let replica = open_replica(&folder.join("replica"), &network, &key)?;
        replica.wait_caught_up(CONNECT_TIMEOUT).map_err(|_| unreachable(&replica))?;
        check_administrators(&replica.tip(), &key, &also)?;
        let author = Author::open(replica.clone(), &folder.join("outbox"), id, key)?;
        Ok(Self { replica, author, also, newest: None })
    }

    /// Everything that was verified.
    pub fn state(&self) -> Arc<State> {
        self.replica.tip()
    }

    /// What has taken effect.
    pub fn effective(&self) -> Arc<State> {
        self.replica.effective()
    }

    /// The author of what is posted: the first administrator named.
    pub fn id(&self) -> AuthorId {
        self.author.id()
    }

    /// The network and its gateways.
    pub fn network(&self) -> &NetworkFile {
        self.replica.network()
    }

    /// The later of this machine's clock and the ledger's, milliseconds.
    pub fn now_ms(&self) -> u64 {
        let own = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        own.max(self.replica.tip().time_ms)
    }

    /// Puts a record on the ledger; it is verified here when this returns.
    pub fn post(&mut self, record: impl Into<Record>) -> Result<()> {
        let also: Vec<&dyn EntrySigner> = self.also.iter().map(|key| key.as_ref() as &dyn EntrySigner).collect();
        let index = self.author.post(&record.into(), &also, LEDGER_TIMEOUT)?;
        self.replica.wait_tip(|tip| tip.size() > index, LEDGER_TIMEOUT)?;
        self.newest = Some(index);
        Ok(())
    }

    /// Waits until what was posted has taken effect: until witnesses have signed it.
    pub fn wait_effective(&self) -> Result<()> {
        let Some(index) = self.newest else { return Ok(()) };
        let waited = self.replica.wait_effective(|state| state.size() > index, WITNESS_TIMEOUT);
        waited.map(drop).with_context(|| {
            let witnesses = self.replica.effective().witnesses().len();
            format!(
                "the record is on the ledger, but takes effect only when {} of {witnesses} witnesses have signed it; start their agents",
                mayfly_protocol::head::quorum(witnesses)
            )
        })
    }
}

/// A device by its id, its name, or the start of its id.
pub fn device(state: &State, name: &str) -> Result<DeviceId> {
    // Ids first: names are chosen by those who join, and one might choose another's id.
    let by_id = name.parse().ok().filter(|id| state.devices.contains_key(id));
    if let Some(id) = by_id.or_else(|| state.device_by_name(name).map(|(id, _)| *id)) {
        return Ok(id);
    }
    let mut matching = state.devices.keys().filter(|id| name.len() >= 8 && id.to_string().starts_with(name));
    match (matching.next(), matching.next()) {
        (Some(id), None) => Ok(*id),
        (Some(_), Some(_)) => bail!("'{name}' is the start of more than one device's id; give more of it"),
        _ => bail!("no device '{name}' has joined; `mayfly device list` names those that have"),
    }
}

/// Commands of one administrator take turns.
fn open_replica(dir: &Path, network: &NetworkFile, key: &Arc<Key>) -> Result<Arc<Replica>> {
    let deadline = Instant::now() + REPLICA_TIMEOUT;
    loop {
        let config = ReplicaConfig { dir: dir.to_owned(), network: network.clone(), hello: key.clone(), witness: None };
        match Replica::open(config) {
            Err(OpenError::Store(StoreError::InUse(_))) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other.with_context(|| format!("the administrator's replica in {}", dir.display())),
        }
    }
}

fn unreachable(replica: &Replica) -> anyhow::Error {
    let status = replica.status();
    let why = status.alarm.map(|alarm| alarm.to_string()).or(status.last_error).unwrap_or_else(|| "no answer".into());
    let addresses: Vec<&str> = replica.network().gateways.iter().map(|g| g.address.as_str()).collect();
    anyhow::anyhow!("no gateway of the ledger serves us ({}): {why}; is mayfly-ledger running?", addresses.join(", "))
}

fn check_administrators(state: &State, key: &Key, also: &[Arc<Key>]) -> Result<()> {
    let genesis = state.genesis.as_deref().context("the ledger is empty; has the gateway the right folder?")?;
    let is_named = |key: &Key| genesis.administrators.iter().any(|a| a.key.0 == key.0.public());
    ensure!(
        std::iter::once(key).chain(also.iter().map(Arc::as_ref)).all(is_named),
        "a key is not an administrator's of network '{}'",
        genesis.name
    );
    Ok(())
}
