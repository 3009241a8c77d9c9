//! A whole network for tests: a gateway process over the embedded store, and nodes in this process, each with a vault of kind `file` in a
//! plugin host of its own. Everything is in one private folder and ends with it.

use crate::config::Config;
use crate::join_token::JoinToken;
use crate::node::{Holders, Material, NewKey, Node, Shutdown, join};
use mayfly_crypto::sign::{Ed25519Secret, P256Secret, PublicKey};
use mayfly_ledger_client::{
    Author, EntrySigner, GatewayAddress, HelloSigner, NetworkFile, Replica, ReplicaConfig, SignerError,
};
use mayfly_plugin_api::find_artifact;
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::*;
use mayfly_protocol::rules::{KeyType, Use};
use mayfly_protocol::{AuthorId, DeviceId, Entry, EntryId, Head, KeyId, NetworkId, State, TokenId};
use mayfly_secmem::{Secret, SecretBytes};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long anything may take in a test before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The one token.
pub const TOKEN: TokenId = TokenId([7; 32]);

/// An administrator: hello, author and signer at once.
pub struct Administrator(P256Secret);

impl HelloSigner for Administrator {
    fn key(&self, _: &State) -> PublicKey {
        self.0.public()
    }

    fn sign(&self, _: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message).to_vec())
    }
}

impl EntrySigner for Administrator {
    fn key(&self) -> PublicKey {
        self.0.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message).to_vec())
    }
}

pub struct Net {
    pub dir: tempfile::TempDir,
    gateway: Option<Child>,
    pub file: NetworkFile,
    admin: Arc<Administrator>,
    author: Author,
    pub replica: Arc<Replica>,
    pub nodes: Vec<Option<Arc<Node>>>,
}

impl Drop for Net {
    fn drop(&mut self) {
        self.nodes.clear();
        self.stop_gateway();
    }
}

impl Net {
    /// A network of `n` members that are holders and witnesses, with one token, ready for keys.
    pub fn up(n: usize) -> Net {
        Net::with_policy(
            n,
            NetworkPolicy {
                head_age_ms_max: 60_000,
                skew_ms_max: 2_000,
                members_join_unapproved: false,
                dev: true,
                unattested: true,
            },
        )
    }

    pub fn with_policy(n: usize, policy: NetworkPolicy) -> Net {
        let mut net = Net::bare(policy);
        net.fill(n);
        net
    }

    /// A gateway and an administrator, without devices.
    pub fn bare(policy: NetworkPolicy) -> Net {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        if std::env::var_os("MAYFLY_TEST_LOG").is_some() {
            let filter = tracing_subscriber::EnvFilter::from_env("MAYFLY_TEST_LOG");
            let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        }
        let dir = tempfile::tempdir().unwrap();
        let admin = Arc::new(Administrator(P256Secret::generate().unwrap()));
        let gateway_key = Ed25519Secret::generate().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = genesis(&admin, &gateway_key, address, policy);
        std::fs::write(dir.path().join("network.toml"), file.to_toml()).unwrap();
        write_private(&dir.path().join("gateway.key"), gateway_key.seed().expose());
        let config = format!(
            "network = \"network.toml\"\nkey = \"gateway.key\"\nlisten = \"{address}\"\nready_file = \"ready\"\n\
             [backend]\nplugin = \"embedded\"\ndata = \"store\"\n[danger]\nplugin_path_unchecked = true\n"
        );
        std::fs::write(dir.path().join("ledger.toml"), config).unwrap();
        let gateway = Some(start_gateway(dir.path()));
        let replica = Replica::open_in_memory(ReplicaConfig {
            dir: dir.path().join("admin"),
            network: file.clone(),
            hello: admin.clone(),
            witness: None,
        })
        .unwrap();
        let id = AuthorId(public_key_id(&admin.0.public()));
        let author = Author::open(replica.clone(), &dir.path().join("admin-outbox"), id, admin.clone()).unwrap();
        Net { dir, gateway, file, admin, author, replica, nodes: Vec::new() }
    }

    fn fill(&mut self, n: usize) {
        let tokens: Vec<_> = (0..n).map(|_| self.invite()).collect();
        let (dir, devices) = (self.dir.path().to_owned(), &mut Vec::new());
        std::thread::scope(|scope| {
            let dir = &dir;
            let joins: Vec<_> = tokens
                .iter()
                .enumerate()
                .map(|(i, token)| scope.spawn(move || join(token, &config(dir, i)).unwrap().device))
                .collect();
            devices.extend(joins.into_iter().map(|j| j.join().unwrap()));
        });
        self.nodes = (0..n).map(|_| None).collect();
        for i in 0..n {
            self.start(i);
        }
        for device in devices.iter() {
            self.post(Approve { device: *device });
        }
        let (devices_of_token, creators, allow) = Default::default();
        self.post(Token { id: TOKEN, label: "mayfly".into(), devices: devices_of_token, creators, allow });
        for device in devices.iter() {
            self.post(Role { device: *device, roles: vec![DeviceRole::Holder, DeviceRole::Witness] });
        }
        self.wait_ready();
    }

    /// Until every running node is a fresh member, and sees every other's session.
    pub fn wait_ready(&self) {
        let running = self.nodes.iter().flatten().count();
        for node in self.nodes.iter().flatten() {
            assert!(
                node.wait_until_ready(PATIENCE),
                "{:?} {:?} {:?}",
                node.phase(),
                node.freshness(),
                node.replica().status()
            );
            let all = |state: &State| state.witnesses().len() >= running && state.tokens.contains_key(&TOKEN);
            node.replica().wait_effective(all, PATIENCE).unwrap();
        }
    }

    pub fn start(&mut self, i: usize) {
        let node = Node::start(config(self.dir.path(), i), Shutdown::default()).unwrap();
        self.nodes[i] = Some(node);
    }

    /// Starts agent `i` with these sections in its configuration.
    pub fn start_with(&mut self, i: usize, sections: &str) {
        let config = config_with(self.dir.path(), i, sections);
        self.nodes.resize(self.nodes.len().max(i + 1), None);
        self.nodes[i] = Some(Node::start(config, Shutdown::default()).unwrap());
    }

    pub fn stop(&mut self, i: usize) {
        let node = self.nodes[i].take().unwrap();
        node.stop();
        assert_eq!(Arc::strong_count(&node), 1);
    }

    pub fn node(&self, i: usize) -> &Arc<Node> {
        self.nodes[i].as_ref().unwrap()
    }

    pub fn stop_gateway(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            let _ = gateway.kill();
            let _ = gateway.wait();
        }
    }

    pub fn start_gateway(&mut self) {
        let _ = std::fs::remove_file(self.dir.path().join("ready"));
        self.gateway = Some(start_gateway(self.dir.path()));
    }

    pub fn invite(&self) -> JoinToken {
        let seed = Secret::<32>::try_new_with(|s| mayfly_secmem::random(s)).unwrap();
        let public = Ed25519Secret::from_seed(copy(&seed)).public();
        self.post(Invite { seed_key: Verifier(public), not_after_ms: now_ms() + 600_000 });
        let gateways = self.file.gateways.iter();
        let gateways = gateways.map(|g| Gateway { key: Verifier(g.key), addresses: vec![g.address.clone()] });
        JoinToken { network: self.file.network, gateways: gateways.collect(), seed }
    }

    /// The administrator's id.
    pub fn administrator(&self) -> AuthorId {
        self.author.id()
    }

    /// Posts a record of the administrator that is refused; why.
    pub fn refused(&self, record: impl Into<Record>) -> String {
        self.author.post(&record.into(), &[], PATIENCE).unwrap_err().to_string()
    }

    /// Posts a record of the administrator.
    pub fn post(&self, record: impl Into<Record>) -> u64 {
        let index = self.author.post(&record.into(), &[], PATIENCE).unwrap();
        self.replica.wait_tip(|tip| tip.size() > index, PATIENCE).unwrap();
        index
    }

    /// An entry by the administrator that is not posted.
    pub fn signed(&self, record: impl Into<Record>) -> Vec<u8> {
        let (record, tip) = (record.into(), self.replica.tip());
        let author = AuthorId(public_key_id(&self.admin.0.public()));
        let (author_seq, author_prev) = tip.author_next(&author);
        let mut entry = Entry {
            version: 1,
            network: self.file.network,
            kind: record.kind() as u16,
            author,
            author_seq,
            author_prev,
            head: tip.head(),
            payload: record.encode(),
            signatures: Vec::new(),
        };
        entry.sign_with(&self.admin.0.public(), |m| Ok::<_, ()>(self.admin.0.sign(m).to_vec())).unwrap();
        entry.encode()
    }

    pub fn devices(&self) -> Vec<DeviceId> {
        (0..self.nodes.len()).map(|i| self.replica.tip().device_by_name(&name(i)).map(|d| *d.0).unwrap()).collect()
    }

    /// A key of all members, made by node 0.
    pub fn make(&self, change: impl FnOnce(&mut NewKey)) -> KeyId {
        let mut key = new_key(self.devices());
        change(&mut key);
        let id = self.node(0).create_key(key).unwrap();
        for node in self.nodes.iter().flatten() {
            node.replica().wait_effective(|s| s.keys.contains_key(&id), PATIENCE).unwrap();
        }
        id
    }
}

/// An AES-256 key, 2 of all, that all of them may assemble.
pub fn new_key(assemblers: Vec<DeviceId>) -> NewKey {
    NewKey {
        token: TOKEN,
        key_type: KeyType::Aes(32),
        material: Material::Derived,
        origin: Origin::Dealt,
        t: 2,
        holders: Holders::All,
        assemblers: Some(assemblers),
        attributes: vec![Attribute { kind: 3, value: b"key".to_vec() }],
        public_attributes: None,
        policy: KeyPolicy {
            allow: vec![],
            uses: Use::Encrypt.bit() | Use::Decrypt.bit() | Use::Iv.bit(),
            residency: Residency { window_seconds: 0 },
            vault_opening: VaultOpening::Boot,
            iv_modes: 7,
            rate: 0,
        },
        schedule: Schedule { refresh_seconds: 0, refresh_uses: 0 },
        valid_until_ms: None,
    }
}

pub fn name(i: usize) -> String {
    format!("agent-{}", i + 1)
}

pub fn secret(bytes: &[u8]) -> SecretBytes {
    SecretBytes::new_with(bytes.len(), |b| b.copy_from_slice(bytes)).unwrap()
}

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// Polls until `ready`.
pub fn eventually(what: &str, ready: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn copy(secret: &Secret<32>) -> Secret<32> {
    Secret::new_with(|s| s.copy_from_slice(secret.expose())).unwrap()
}

pub fn config(dir: &Path, i: usize) -> Config {
    let folder = folder(dir, i);
    let vault = format!(
        "[vault]\nkind = \"file\"\nconfig = '''\npassphrase_file = \"{}\"\n'''\n",
        folder.join("passphrase").display()
    );
    config_with(dir, i, &vault)
}

fn folder(dir: &Path, i: usize) -> PathBuf {
    let folder = dir.join(name(i));
    if !folder.exists() {
        std::fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
        write_private(&folder.join("passphrase"), b"correct horse battery staple");
    }
    folder
}

/// The configuration of agent `i` with these sections, that of the vault among them.
pub fn config_with(dir: &Path, i: usize, sections: &str) -> Config {
    let folder = folder(dir, i);
    let text = format!(
        "device_name = \"{}\"\ndata_dir = \"data\"\nnetwork = \"../network.toml\"\nsocket = \"agent.sock\"\n\
         [peers]\nlisten = \"127.0.0.1:0\"\n{sections}[danger]\nplugin_path_unchecked = true\n",
        name(i),
    );
    let path = folder.join("agent.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(&path).unwrap()
}

fn write_private(path: &Path, bytes: &[u8]) {
    use std::io::Write;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path).unwrap().write_all(bytes).unwrap();
}

fn artifact(name: &str) -> PathBuf {
    find_artifact(name).unwrap_or_else(|e| panic!("{e}: `cargo build --workspace` first, with the tests' profile"))
}

fn start_gateway(dir: &Path) -> Child {
    let log = std::fs::File::create(dir.join("ledger.log")).unwrap();
    let mut command = Command::new(artifact("mayfly-ledger"));
    command.arg("--config").arg(dir.join("ledger.toml")).arg("--watch-pid").arg(std::process::id().to_string());
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !dir.join("ready").exists() {
        let log = || std::fs::read_to_string(dir.join("ledger.log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "the gateway does not come up: {}", log());
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn genesis(admin: &Administrator, gateway: &Ed25519Secret, address: SocketAddr, policy: NetworkPolicy) -> NetworkFile {
    let record = Record::Genesis(Genesis {
        name: "test".into(),
        created_ms: now_ms(),
        administrators: vec![mayfly_protocol::record::Administrator {
            name: "admin".into(),
            key: Verifier(admin.0.public()),
        }],
        administrators_needed: 1,
        gateways: vec![Gateway { key: Verifier(gateway.public()), addresses: vec![address.to_string()] }],
        policy,
        nonce: [9; 32],
    });
    let mut entry = Entry {
        version: 1,
        network: NetworkId::default(),
        kind: record.kind() as u16,
        author: AuthorId(public_key_id(&admin.0.public())),
        author_seq: 1,
        author_prev: EntryId::default(),
        head: Head::default(),
        payload: record.encode(),
        signatures: Vec::new(),
    };
    entry.sign_with(&admin.0.public(), |m| Ok::<_, ()>(admin.0.sign(m).to_vec())).unwrap();
    let gateways = vec![GatewayAddress { address: address.to_string(), key: gateway.public() }];
    NetworkFile { network: NetworkId(entry.id().0), genesis: entry.encode(), gateways }
}
