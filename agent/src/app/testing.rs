//! A network of three devices in one process, for tests: real records, real rules, real acceptances; keys are kept whole instead of
//! being put together. What it shows of the application half holds for the node too, as far as the node keeps its word.

use std::collections::HashMap;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use mayfly_crypto::pedersen;
use mayfly_crypto::schedule::{Label, Prk, commitment};
use mayfly_crypto::sign::Ed25519Secret;
use mayfly_ledger_client::ReplicaStatus;
use mayfly_protocol::ids::{Hash, InviteId, public_key_id};
use mayfly_protocol::record::*;
use mayfly_protocol::rules::{Clocks, ReleaseQuery, Use};
use mayfly_protocol::{AuthorId, DeviceId, Entry, KeyId, Record, State, deal};
use mayfly_secmem::{Secret, SecretBytes};
use mayfly_wire::{Connection, Role as Program, Ticket, request};

use super::App;
use super::keys::{Agent, Keys};
use super::server::{Patience, serve_app};
use super::settings::Settings;
use crate::node::attestation::{ChipError, Shown};
use crate::node::{
    AssembledKey, AssemblyReport, FreshnessStatus, Holdings, KeyError, KeyErrorKind, Material, Missed, NewKey,
    PeerStatus, Phase, ShareReport, Trouble, VaultStatus,
};

const T0: u64 = 1_790_000_000_000;
pub const DEVICES: [&str; 3] = ["agent-1", "agent-2", "agent-3"];

struct Device {
    identity: Ed25519Secret,
    session: Ed25519Secret,
}

/// What would lie in shards.
struct Whole {
    bytes: SecretBytes,
    iv_key: Secret<32>,
}

/// The network, seen from its first device.
pub struct TestNet {
    state: ArcSwap<State>,
    log: Mutex<Vec<(u64, Vec<u8>)>>,
    administrator: Ed25519Secret,
    devices: Vec<Device>,
    keys: Mutex<HashMap<KeyId, Arc<Whole>>>,
    /// Devices that answer.
    pub live: AtomicU64,
    /// How often a key was put together.
    pub assemblies: AtomicU64,
    /// What keeps the vault from opening.
    pub trouble: Mutex<Option<Trouble>>,
}

impl TestNet {
    pub fn new(dev: bool) -> Arc<Self> {
        let new = || Ed25519Secret::generate().unwrap();
        let net = Self {
            state: ArcSwap::default(),
            log: Mutex::default(),
            administrator: new(),
            devices: DEVICES.iter().map(|_| Device { identity: new(), session: new() }).collect(),
            keys: Mutex::default(),
            live: AtomicU64::new(3),
            assemblies: AtomicU64::new(0),
            trouble: Mutex::default(),
        };
        net.found(dev);
        Arc::new(net)
    }

    fn found(&self, dev: bool) {
        let admin = &self.administrator;
        let genesis = Genesis {
            name: "test".into(),
            created_ms: T0,
            administrators: vec![Administrator { name: "root".into(), key: Verifier(admin.public()) }],
            administrators_needed: 1,
            gateways: vec![],
            policy: NetworkPolicy {
                head_age_ms_max: 60_000,
                skew_ms_max: 10_000,
                members_join_unapproved: true,
                dev,
                unattested: true,
            },
            nonce: [7; 32],
        };
        self.take(admin, &[admin], &genesis.into()).unwrap();
        for (name, device) in DEVICES.iter().zip(&self.devices) {
            let seed = Ed25519Secret::generate().unwrap();
            let invite = Invite { seed_key: Verifier(seed.public()), not_after_ms: T0 + 1_000_000 };
            self.take(admin, &[admin], &invite.into()).unwrap();
            let join = Join {
                name: (*name).into(),
                identity: Verifier(device.identity.public()),
                invite: InviteId(public_key_id(&seed.public())),
                vault: "file".into(),
                software_only: true,
            };
            self.take(&device.identity, &[&device.identity, &seed], &join.into()).unwrap();
            let roles = vec![DeviceRole::Holder, DeviceRole::Witness];
            let role = mayfly_protocol::record::Role { device: id(device), roles };
            self.take(admin, &[admin], &role.into()).unwrap();
            let delegate = Delegate {
                session_key: Verifier(device.session.public()),
                start_counter: 1,
                vault_generation: 1,
                not_after_ms: T0 + 8 * 3600 * 1000,
                addresses: vec!["127.0.0.1:1".into()],
                quote: None,
            };
            self.take(&device.identity, &[&device.identity, &device.session], &delegate.into()).unwrap();
        }
    }

    /// Puts a record of the administrator on the ledger.
    pub fn administer(&self, record: impl Into<Record>) {
        self.take(&self.administrator, &[&self.administrator], &record.into()).unwrap();
    }

    /// Puts a record of the second device on the ledger.
    pub fn elsewhere(&self, record: impl Into<Record>) {
        let device = &self.devices[1];
        self.take(&device.identity, &[&device.session], &record.into()).unwrap();
    }

    pub fn device_id(&self, number: usize) -> DeviceId {
        id(&self.devices[number])
    }

    fn take(&self, author: &Ed25519Secret, signers: &[&Ed25519Secret], record: &Record) -> Result<u64, String> {
        let mut log = self.log.lock().unwrap();
        let mut state = State::clone(&self.state.load());
        let author = AuthorId(public_key_id(&author.public()));
        let (author_seq, author_prev) = state.author_next(&author);
        let head = if state.size() == 0 { Default::default() } else { state.head() };
        let (network, kind, payload) = (state.network, record.kind() as u16, record.encode());
        let version = mayfly_protocol::entry::VERSION;
        let mut entry =
            Entry { version, network, kind, author, author_seq, author_prev, head, payload, signatures: vec![] };
        for signer in signers {
            entry.sign_with(&signer.public(), |m| Ok::<_, ()>(signer.sign(m).to_vec())).unwrap();
        }
        let (time, bytes) = (T0 + log.len() as u64, entry.encode());
        state.apply(time, &bytes).map_err(|refusal| refusal.to_string())?;
        log.push((time, bytes));
        self.state.store(Arc::new(state));
        Ok(log.len() as u64 - 1)
    }

    fn own(&self) -> &Device {
        &self.devices[0]
    }
}

fn id(device: &Device) -> DeviceId {
    DeviceId(public_key_id(&device.identity.public()))
}

impl Keys for TestNet {
    fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    fn device(&self) -> DeviceId {
        id(self.own())
    }

    fn with_key(&self, key: &KeyId, purpose: Use, work: &mut dyn FnMut(&AssembledKey)) -> Result<(), KeyError> {
        let state = self.state();
        let record = state.keys.get(key).map(|key| key.record.clone());
        let record = record.ok_or_else(|| KeyError::new(KeyErrorKind::UnknownKey, "no such key"))?;
        let (generation, epoch) = (record.generation, record.epoch);
        state.may_assemble(&ReleaseQuery { key: *key, generation, epoch, purpose, requester: self.device() })?;
        if self.live.load(Ordering::Relaxed) < u64::from(record.t) {
            let devices = vec![Missed { device: DEVICES[1].into(), reason: "did not answer".into() }];
            let error = KeyError::new(KeyErrorKind::TooFewHolders, "1 of 2 holders answered").devices(devices);
            return Err(error.next("start the missing devices"));
        }
        self.assemblies.fetch_add(1, Ordering::Relaxed);
        let whole = self.keys.lock().unwrap()[key].clone();
        let share = |n: usize| ShareReport {
            device: DEVICES[n].into(),
            index: n as u32 + 1,
            own: n == 0,
            after: Duration::from_micros(40 * n as u64),
        };
        let assembled = AssembledKey {
            id: *key,
            key_type: mayfly_protocol::rules::KeyType::parse(&record.key_type).unwrap(),
            bytes: SecretBytes::new_with(whole.bytes.len(), |to| to.copy_from_slice(whole.bytes.expose())).unwrap(),
            iv_key: (purpose == Use::Iv)
                .then(|| Secret::new_with(|to| to.copy_from_slice(whole.iv_key.expose())).unwrap()),
            report: AssemblyReport {
                t: record.t,
                generation,
                epoch,
                shares: vec![share(0), share(1)],
                liars: vec![],
                took: Duration::from_micros(60),
                ledger_size: state.size(),
                derived: vec![],
            },
        };
        work(&assembled);
        Ok(())
    }

    fn create_key(&self, new: NewKey) -> Result<KeyId, KeyError> {
        let invalid = |text: String| KeyError::new(KeyErrorKind::Refused, text);
        let root = pedersen::random_root().unwrap();
        let indices: Vec<u32> = (1..=DEVICES.len() as u32).collect();
        let (commitments, _) = pedersen::deal(&root, new.t, &indices).map_err(|e| invalid(e.to_string()))?;
        let state = self.state();
        let key = deal::key_id(&state.network, &commitments.coefficients[0]);
        let (prk, alg) = (Prk::extract(&root).unwrap(), new.key_type.algorithm());
        let wrapped = matches!(new.material, Material::Wrapped(_)).then(|| vec![0; 28]);
        let bytes = match new.material {
            Material::Wrapped(bytes) => bytes,
            Material::Derived => SecretBytes::new_with(new.key_type.derived_bytes().unwrap(), |out| {
                prk.derive(Label::KeyBytes, key.as_bytes(), 1, alg, out);
            })
            .unwrap(),
        };
        let iv_key = Secret::new_with(|out| prk.derive(Label::Iv, key.as_bytes(), 1, alg, out)).unwrap();
        let shard = |(device, index): (&Device, u32)| ShardRecord {
            id: deal::shard_id(&key, 1, 1, index),
            device: id(device),
            index,
            valid_from_ms: 0,
            valid_until_ms: u64::MAX,
        };
        let mut assemblers = new.assemblers.unwrap_or_else(|| vec![self.device()]);
        assemblers.sort();
        let mut record = Key {
            id: key,
            token: new.token,
            key_type: new.key_type.to_string(),
            t: new.t,
            generation: 1,
            epoch: 1,
            assemblers,
            attributes: new.attributes,
            public_attributes: new.public_attributes,
            origin: new.origin,
            commitments: commitments.coefficients.iter().map(|c| Hash(*c)).collect(),
            shards: self.devices.iter().zip(indices).map(shard).collect(),
            key_commitment: Hash(commitment(&prk, key.as_bytes(), 1, alg)),
            wrapped,
            policy: new.policy,
            schedule: new.schedule,
            created_ms: T0,
            deadline_ms: T0 + 300_000,
            acceptances: vec![],
        };
        let accepted = record.shards.iter().zip(&self.devices).map(|(shard, device)| {
            let message = deal::acceptance_message(&state.network, &record, shard);
            Acceptance { device: shard.device, signature: device.session.sign(&message).to_vec() }
        });
        record.acceptances = accepted.collect();
        self.keys.lock().unwrap().insert(key, Arc::new(Whole { bytes, iv_key }));
        self.take(&self.own().identity, &[&self.own().session], &record.into()).map_err(invalid)?;
        Ok(key)
    }

    fn post(&self, record: &Record) -> Result<u64, KeyError> {
        let own = self.own();
        self.take(&own.identity, &[&own.session], record).map_err(|text| KeyError::new(KeyErrorKind::Refused, text))
    }
}

impl Agent for TestNet {
    fn tip(&self) -> Arc<State> {
        self.state()
    }

    fn phase(&self) -> Phase {
        if self.has_node() { Phase::Running } else { Phase::WithoutVault }
    }

    fn has_node(&self) -> bool {
        self.trouble.lock().unwrap().is_none()
    }

    fn node(&self) -> Option<&crate::node::Node> {
        None
    }

    fn trouble(&self) -> Option<Trouble> {
        self.trouble.lock().unwrap().clone()
    }

    fn configured_name(&self) -> &str {
        DEVICES[0]
    }

    fn freshness(&self) -> FreshnessStatus {
        let head = Some(self.state().head());
        FreshnessStatus {
            fresh: Ok(()),
            last_failure: None,
            age_ms: Some(5),
            head,
            skew_ms: Some(0),
            witnesses: 3,
            quorum: 2,
        }
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let live = self.live.load(Ordering::Relaxed) as usize;
        let peer = |n: usize| PeerStatus {
            device: self.device_id(n),
            name: DEVICES[n].into(),
            connected: n < live,
            usual_us: Some(40),
            last_error: (n >= live).then(|| "connection refused".into()),
        };
        vec![peer(1), peer(2)]
    }

    fn clocks(&self) -> Option<Clocks> {
        Some(Clocks { local_ms: T0, ledger_ms: T0 })
    }

    fn ledger(&self) -> ReplicaStatus {
        let head = self.state().head();
        ReplicaStatus { connected: true, tip: head, effective: head, ..ReplicaStatus::default() }
    }

    fn entries(&self, from: u64, count: usize) -> Result<Vec<(u64, u64, Vec<u8>)>, String> {
        let log = self.log.lock().unwrap();
        let from = from as usize;
        let entries = log.iter().enumerate().skip(from).take(count);
        Ok(entries.map(|(index, (time, bytes))| (index as u64, *time, bytes.clone())).collect())
    }

    fn vault(&self) -> VaultStatus {
        VaultStatus { kind: "file".into(), software_only: true, note: String::new(), generation: 1, lost: Vec::new() }
    }

    fn chip(&self) -> Result<Option<Shown>, ChipError> {
        Ok(None)
    }

    fn prove(&self, _: &[u8]) -> Result<Vec<u8>, ChipError> {
        Err(ChipError::NoChip)
    }

    fn unattested(&self) -> Vec<(DeviceId, String)> {
        Vec::new()
    }

    fn holdings(&self) -> Holdings {
        Holdings { shards: 0, pending_shards: 0, windows: 0, unposted_grants: 0, served_connections: 0 }
    }
}

/// An agent over a [`TestNet`], with a socket; ends when dropped.
pub struct Served {
    pub net: Arc<TestNet>,
    pub app: Arc<App>,
    pub socket: PathBuf,
    _folder: tempfile::TempDir,
    shutdown: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    pub fn new(dev: bool) -> Self {
        Self::with(dev, Settings::default(), Patience::default())
    }

    pub fn with(dev: bool, settings: Settings, patience: Patience) -> Self {
        let net = TestNet::new(dev);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let app = Arc::new(App::new(net.clone(), settings, None).unwrap());
        let listener = UnixListener::bind(&socket).unwrap();
        let shutdown = Arc::new(AtomicBool::new(false));
        let (served, stop) = (app.clone(), shutdown.clone());
        let thread = std::thread::spawn(move || serve_app(served, &listener, patience, &stop).unwrap());
        Self { net, app, socket, _folder: folder, shutdown, thread: Some(thread) }
    }

    /// A connection that has not said hello.
    pub fn raw(&self) -> UnixStream {
        UnixStream::connect(&self.socket).unwrap()
    }

    /// A client that has said hello, an application of its own.
    pub fn client(&self) -> Connection {
        self.client_of(&[]).0
    }

    /// A client of the application with this ticket, and the ticket that it was given.
    pub fn client_of(&self, ticket: &[u8]) -> (Connection, Vec<u8>) {
        let mut client = Connection::connect(&self.socket, Some(Duration::from_secs(20))).unwrap();
        let ticket = client.hello(Ticket(ticket), hello()).unwrap().ticket.0.to_vec();
        (client, ticket)
    }

    pub fn stop(&mut self) {
        self.shutdown.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

pub fn hello() -> request::Hello<'static> {
    request::Hello { version_min: 1, version_max: 1, role: Program::Module, process_start: 0, name: "test" }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop();
    }
}
