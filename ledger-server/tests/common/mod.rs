//! A network in one process: administrator, devices, a store in memory with faults, gateways.
#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "each test file uses its part; a test says what it expects by unwrapping"
)]

pub mod raw;

use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use mayfly_ledger_client::{
    Author, Cosigner, EntrySigner, GatewayAddress, HelloSigner, NetworkFile, Replica, ReplicaConfig, SignerError,
};
use mayfly_ledger_server::backend::Backend;
use mayfly_ledger_server::config::Limits;
use mayfly_ledger_server::key::GatewayKey;
use mayfly_ledger_server::{Gateway, run};
use mayfly_plugin_api::{Append, Bundle, Checkpoint, Head, PluginError, ReadAnswer, Status};
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::{self, DeviceRole, Record, Verifier};
use mayfly_protocol::sync::{self, FromGateway};
use mayfly_protocol::{AuthorId, DeviceId, Entry, InviteId, NetworkId, State};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub const SOON: Duration = Duration::from_secs(20);

pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as u64
}

/// An Ed25519 key that signs whatever it is asked to.
#[derive(Clone)]
pub struct Key(pub Arc<Ed25519Secret>);

impl Key {
    pub fn new() -> Key {
        Key(Arc::new(Ed25519Secret::generate().unwrap()))
    }

    pub fn public(&self) -> PublicKey {
        self.0.public()
    }

    pub fn id(&self) -> [u8; 32] {
        public_key_id(&self.public())
    }
}

impl EntrySigner for Key {
    fn key(&self) -> PublicKey {
        self.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message).to_vec())
    }
}

impl HelloSigner for Key {
    fn key(&self, _tip: &State) -> PublicKey {
        self.public()
    }

    fn sign(&self, _key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.sign(message).to_vec())
    }
}

/// Genesis, its administrator and its gateway keys.
pub struct World {
    pub dir: TempDir,
    pub admin: Key,
    pub network: NetworkId,
    pub genesis: Vec<u8>,
    pub gateway_files: Vec<PathBuf>,
    pub gateway_keys: Vec<PublicKey>,
}

impl World {
    pub fn new() -> World {
        World::with_policy(record::NetworkPolicy {
            head_age_ms_max: 60_000,
            skew_ms_max: 10_000,
            members_join_unapproved: true,
            dev: true,
            unattested: true,
        })
    }

    pub fn with_policy(policy: record::NetworkPolicy) -> World {
        let dir = tempfile::tempdir().unwrap();
        let admin = Key::new();
        let gateway_files: Vec<PathBuf> = (0..2).map(|i| dir.path().join(format!("gateway-{i}.key"))).collect();
        let keys: Vec<_> = gateway_files.iter().map(|f| GatewayKey::create(f).unwrap().public()).collect();
        let genesis = Record::Genesis(record::Genesis {
            name: "test".into(),
            created_ms: now_ms(),
            administrators: vec![record::Administrator { name: "root".into(), key: Verifier(admin.public()) }],
            administrators_needed: 1,
            gateways: keys.iter().map(|k| record::Gateway { key: Verifier(*k), addresses: vec![] }).collect(),
            policy,
            nonce: [7; 32],
        });
        let mut entry = Entry {
            version: mayfly_protocol::entry::VERSION,
            network: NetworkId::default(),
            kind: genesis.kind() as u16,
            author: AuthorId(admin.id()),
            author_seq: 1,
            author_prev: Default::default(),
            head: Default::default(),
            payload: genesis.encode(),
            signatures: vec![],
        };
        entry.sign_with(&admin.public(), |m| EntrySigner::sign(&admin, m)).unwrap();
        let network = NetworkId(entry.id().0);
        World { dir, admin, network, genesis: entry.encode(), gateway_files, gateway_keys: keys }
    }

    /// `network.toml` with these gateways: address, and which key.
    pub fn file(&self, gateways: &[(SocketAddr, usize)]) -> NetworkFile {
        let gateways = gateways
            .iter()
            .map(|(address, key)| GatewayAddress { address: address.to_string(), key: self.gateway_keys[*key] })
            .collect();
        let file = NetworkFile { network: self.network, genesis: self.genesis.clone(), gateways };
        NetworkFile::parse(&file.to_toml()).unwrap()
    }

    /// A gateway of this network in its own thread.
    pub fn gateway(&self, backend: Arc<dyn Backend>) -> RunningGateway {
        self.gateway_with(
            backend,
            0,
            "127.0.0.1:0".parse().unwrap(),
            Limits { submissions_per_second: 0, ..Limits::default() },
        )
    }

    pub fn gateway_with(
        &self,
        backend: Arc<dyn Backend>,
        key: usize,
        listen: SocketAddr,
        limits: Limits,
    ) -> RunningGateway {
        let gateway = Gateway {
            network: self.file(&[("127.0.0.1:1".parse().unwrap(), key)]),
            key: GatewayKey::read(&self.gateway_files[key]).unwrap(),
            backend,
            limits,
        };
        RunningGateway::start(gateway, listen)
    }

    pub fn admin(&self, gateways: &[(SocketAddr, usize)]) -> Member {
        let file = self.file(gateways);
        let config =
            ReplicaConfig { dir: PathBuf::new(), network: file, hello: Arc::new(self.admin.clone()), witness: None };
        let replica = Replica::open_in_memory(config).unwrap();
        let outbox = self.dir.path().join("admin");
        let author =
            Author::open(replica.clone(), &outbox, AuthorId(self.admin.id()), Arc::new(self.admin.clone())).unwrap();
        Member { replica, author }
    }

    /// A device that has joined and delegated a session key; `admin` invites it.
    pub fn device(&self, admin: &Member, name: &str, gateways: &[(SocketAddr, usize)]) -> Device {
        let seed = Key::new();
        let invite = record::Invite { seed_key: Verifier(seed.public()), not_after_ms: now_ms() + 3_600_000 };
        admin.post(invite);
        let keys = Arc::new(DeviceKeys { identity: Key::new(), session: Mutex::new(Key::new()), seed });
        let device = Device::open(self, name, keys, gateways);
        let join = record::Join {
            name: name.into(),
            identity: Verifier(device.keys.identity.public()),
            invite: InviteId(device.keys.seed.id()),
            vault: "file".into(),
            software_only: true,
        };
        let signers: [&dyn EntrySigner; 2] = [&device.keys.identity, &device.keys.seed];
        device.author.post_signed_by(&signers, &join.into(), SOON).unwrap();
        device.delegate(1);
        device
    }

    /// Puts this many entries of the administrator's into a store that no gateway has open.
    pub fn fill(&self, store: &Memory, count: u64, label: &str) {
        let mut state = State::default();
        for stored in store.inner.lock().unwrap().bundles.clone() {
            let Ok(Some(FromGateway::Bundle(bundle))) = FromGateway::decode(&stored.bytes) else { panic!() };
            bundle.entries.iter().for_each(|e| drop(state.apply(bundle.time_ms, e).unwrap()));
        }
        let mut left = count;
        while left > 0 {
            let (first, time_ms) = (state.size(), now_ms().max(state.time_ms));
            let mut entries = Vec::new();
            for _ in 0..left.min(100) {
                let author = AuthorId(self.admin.id());
                let (author_seq, author_prev) = state.author_next(&author);
                let record = Record::from(token(&format!("{label} {}", state.size())));
                let mut entry = Entry {
                    version: mayfly_protocol::entry::VERSION,
                    network: self.network,
                    kind: record.kind() as u16,
                    author,
                    author_seq,
                    author_prev,
                    head: state.head(),
                    payload: record.encode(),
                    signatures: vec![],
                };
                entry.sign_with(&self.admin.public(), |m| EntrySigner::sign(&self.admin, m)).unwrap();
                state.apply(time_ms, &entry.encode()).unwrap();
                entries.push(entry.encode().into());
            }
            left -= entries.len() as u64;
            let expected = store.head().unwrap();
            let frame = FromGateway::Bundle(sync::Bundle { first, time_ms, entries }).encode();
            let bundle_hash = sync::Bundle::chain_hash(&expected.bundle_hash, &frame);
            store.append_if_head(&expected, &Head { size: state.size(), epoch: 0, bundle_hash }, &frame).unwrap();
        }
    }

    /// Makes exactly these devices witnesses, one record each.
    pub fn witnesses(&self, admin: &Member, devices: &[(&Device, bool)]) {
        for (device, is_witness) in devices {
            let roles = if *is_witness { vec![DeviceRole::Witness] } else { vec![] };
            let index = admin.post(record::Role { device: device.id(), roles });
            admin.replica.wait_effective(|s| s.size() > index, SOON).expect("the change of witnesses takes effect");
        }
    }
}

pub struct Member {
    pub replica: Arc<Replica>,
    pub author: Author,
}

impl Member {
    pub fn post(&self, record: impl Into<Record>) -> u64 {
        self.author.post(&record.into(), &[], SOON).unwrap()
    }
}

pub struct DeviceKeys {
    pub identity: Key,
    pub session: Mutex<Key>,
    pub seed: Key,
}

impl DeviceKeys {
    pub fn session(&self) -> Key {
        self.session.lock().unwrap().clone()
    }
}

impl HelloSigner for DeviceKeys {
    fn key(&self, tip: &State) -> PublicKey {
        let session = self.session().public();
        if tip.device_by_session(&session).is_some() {
            session
        } else if tip.devices.contains_key(&DeviceId(self.identity.id())) {
            self.identity.public()
        } else {
            self.seed.public()
        }
    }

    fn sign(&self, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        let keys = [self.session(), self.identity.clone(), self.seed.clone()];
        let signer = keys.iter().find(|k| k.public() == *key).ok_or(SignerError("no such key".into()))?;
        Ok(signer.0.sign(message).to_vec())
    }
}

impl Cosigner for DeviceKeys {
    fn device(&self) -> DeviceId {
        DeviceId(self.identity.id())
    }

    fn key(&self) -> Option<PublicKey> {
        Some(self.session().public())
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.session().0.sign(message).to_vec())
    }
}

pub struct Device {
    pub keys: Arc<DeviceKeys>,
    pub replica: Arc<Replica>,
    pub author: Author,
    pub dir: PathBuf,
}

impl Device {
    pub fn open(world: &World, name: &str, keys: Arc<DeviceKeys>, gateways: &[(SocketAddr, usize)]) -> Device {
        let dir = world.dir.path().join(name);
        let config = ReplicaConfig {
            dir: dir.join("replica"),
            network: world.file(gateways),
            hello: keys.clone(),
            witness: Some(keys.clone()),
        };
        let replica = Replica::open(config).unwrap();
        let id = AuthorId(keys.identity.id());
        let author = Author::open(replica.clone(), &dir.join("outbox"), id, Arc::new(keys.session())).unwrap();
        Device { keys, replica, author, dir }
    }

    pub fn id(&self) -> DeviceId {
        DeviceId(self.keys.identity.id())
    }

    pub fn delegate(&self, start_counter: u64) -> u64 {
        let delegate = record::Delegate {
            session_key: Verifier(self.keys.session().public()),
            start_counter,
            vault_generation: 1,
            not_after_ms: now_ms() + 3_600_000,
            addresses: vec![],
            quote: None,
        };
        let session = self.keys.session();
        self.author.post_signed_by(&[&self.keys.identity, &session], &delegate.into(), SOON).unwrap()
    }
}

/// A record that any administrator may post any number of times.
pub fn token(label: &str) -> record::Token {
    let mut id = [0; 32];
    let n = label.len().min(32);
    id[..n].copy_from_slice(&label.as_bytes()[..n]);
    record::Token {
        id: mayfly_protocol::TokenId(id),
        label: label.into(),
        devices: vec![],
        creators: vec![],
        allow: vec![],
    }
}

// --- gateway ----------------------------------------------------------------------------------------------------------------

pub struct RunningGateway {
    pub address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<Result<(), mayfly_ledger_server::OpeningError>>>,
}

impl RunningGateway {
    fn start(gateway: Gateway, listen: SocketAddr) -> RunningGateway {
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind(listen).await.unwrap();
                let address = listener.local_addr().unwrap();
                let announce = move || ready.send(address).unwrap();
                run(gateway, listener, announce, async { drop(stopped.await) }).await
            })
        });
        match is_ready.recv() {
            Ok(address) => RunningGateway { address, stop: Some(stop), thread: Some(thread) },
            Err(_) => panic!("{}", thread.join().unwrap().unwrap_err()),
        }
    }

    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for RunningGateway {
    fn drop(&mut self) {
        self.end();
    }
}

// --- store in memory, with faults -------------------------------------------------------------------------------------------

/// What goes wrong with the next calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fault {
    #[default]
    None,
    /// Appends are refused.
    ReadOnly,
    /// One append is stored, and nobody knows.
    StoredUnknown,
    /// One append is not stored, and nobody knows.
    LostUnknown,
    /// Each append takes a while, so that others queue.
    Slow,
}

/// The least that any store takes: larger bundles are refused.
pub const BUNDLE_BYTES_LEAST: usize = 64 * 1024;

#[derive(Default)]
pub struct Memory {
    pub inner: Mutex<Inner>,
    grown: Condvar,
}

#[derive(Default, Clone)]
pub struct Inner {
    pub bundles: Vec<Bundle>,
    pub head: Head,
    pub checkpoints: BTreeMap<u64, Vec<u8>>,
    pub fault: Fault,
    /// Bundles that were refused because of their size.
    pub too_large: usize,
}

impl Memory {
    pub fn new() -> Arc<Memory> {
        Arc::default()
    }

    /// A second store with the same contents.
    pub fn copy(&self) -> Arc<Memory> {
        Arc::new(Memory { inner: Mutex::new(self.inner.lock().unwrap().clone()), grown: Condvar::new() })
    }

    pub fn fault(&self, fault: Fault) {
        self.inner.lock().unwrap().fault = fault;
    }

    pub fn size(&self) -> u64 {
        self.inner.lock().unwrap().head.size
    }
}

fn refused(status: Status, message: &str) -> PluginError {
    PluginError::Refused { who: "ledger(memory)".into(), call: "append", status, message: message.into() }
}

impl Backend for Memory {
    fn bundle_bytes_max(&self) -> usize {
        BUNDLE_BYTES_LEAST
    }

    fn head(&self) -> Result<Head, PluginError> {
        Ok(self.inner.lock().unwrap().head)
    }

    fn append_if_head(&self, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Append, PluginError> {
        let mut inner = self.inner.lock().unwrap();
        if inner.fault == Fault::ReadOnly {
            return Err(refused(Status::ReadOnly, "the disk is full"));
        }
        if bundle.len() > BUNDLE_BYTES_LEAST {
            inner.too_large += 1;
            return Err(refused(Status::TooLarge, "a bundle"));
        }
        if inner.fault == Fault::Slow {
            drop(inner);
            std::thread::sleep(Duration::from_millis(200));
            inner = self.inner.lock().unwrap();
        }
        if inner.head != *expected {
            return Ok(Append::Conflict(inner.head));
        }
        let fault = if inner.fault == Fault::Slow { Fault::Slow } else { std::mem::take(&mut inner.fault) };
        if fault == Fault::LostUnknown {
            return Ok(Append::Unknown(refused(Status::Unknown, "lost")));
        }
        inner.bundles.push(Bundle {
            first: expected.size,
            end: new.size,
            bundle_hash: new.bundle_hash,
            bytes: bundle.to_vec(),
        });
        inner.head = *new;
        self.grown.notify_all();
        match fault {
            Fault::StoredUnknown => Ok(Append::Unknown(refused(Status::Unknown, "done"))),
            _ => Ok(Append::Done),
        }
    }

    fn read(&self, from: u64, bytes_max: usize) -> Result<ReadAnswer, PluginError> {
        let inner = self.inner.lock().unwrap();
        let mut bytes = 0;
        let found = inner.bundles.iter().filter(|b| b.end > from).take_while(|b| {
            let take = bytes == 0 || bytes + b.bytes.len() <= bytes_max;
            bytes += b.bytes.len();
            take
        });
        Ok(ReadAnswer::Bundles(found.cloned().collect()))
    }

    fn wait(&self, above: u64, timeout: Duration) -> Option<Result<Head, PluginError>> {
        let inner = self.inner.lock().unwrap();
        let (inner, _) = self.grown.wait_timeout_while(inner, timeout, |inner| inner.head.size <= above).unwrap();
        Some(Ok(inner.head))
    }

    fn put_checkpoint(&self, size: u64, bytes: &[u8]) -> Result<(), PluginError> {
        self.inner.lock().unwrap().checkpoints.insert(size, bytes.to_vec());
        Ok(())
    }

    fn latest_checkpoint(&self, size: u64) -> Result<Option<Checkpoint>, PluginError> {
        let inner = self.inner.lock().unwrap();
        let found = inner.checkpoints.range(..=size).next_back();
        Ok(found.map(|(size, bytes)| Checkpoint { size: *size, bytes: bytes.clone() }))
    }
}

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + SOON;
    while !is_so() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
