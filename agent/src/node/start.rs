//! Puts the node together and starts its threads.

use super::alarms::Alarms;
use super::assembler::Assembler;
use super::attestation::{Attester, Chip, Prover, Roots, RootsError, Watch};
use super::data::{DataDir, DataError};
use super::dealer::Dealer;
use super::directory::Ledger;
use super::fresh::Fresh;
use super::gossip::Gossip;
use super::grants::Grants;
use super::holder::{Holder, Parts};
use super::identity::{Identity, Records, StartCounter};
use super::keyring::Keyring;
use super::membership::Member;
use super::peers::{Local, Peers, Server};
use super::registers::Registers;
use super::revocation::Revoker;
use super::service::Answers;
use super::shards::{ShardError, ShardStore};
use super::upkeep::{Clerk, Follower, Stop, Threads};
use super::vault::{Vault, VaultError};
use super::{Node, Phase, Shutdown};
use crate::config::{self, Config};
use mayfly_ledger_client::{NetworkFile, NetworkFileError, OpenError, PostError, Replica, ReplicaConfig};
use mayfly_protocol::DeviceId;
use mayfly_protocol::record::DeviceRole;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Why the agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder, or a file in it.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The network's description cannot be read.
    #[error("cannot read {path}; `mayfly join` writes it")]
    Network {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network's description is wrong.
    #[error("{path}")]
    NetworkFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: NetworkFileError,
    },
    /// The replica of the ledger.
    #[error(transparent)]
    Replica(#[from] OpenError),
    /// The outbox.
    #[error(transparent)]
    Outbox(#[from] PostError),
    /// The shards.
    #[error(transparent)]
    Shards(#[from] ShardError),
    /// No randomness or secret memory for the session key.
    #[error("no session key")]
    Session(#[from] mayfly_secmem::RandomError),
    /// The address for other agents.
    #[error("cannot listen on {address} for other agents")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Makers' certificates.
    #[error("makers' certificates in {path}, `[attestation] roots`")]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: RootsError,
    },
    /// A thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
}

pub(super) fn start(config: Config, shutdown: Shutdown) -> Result<Node, StartError> {
    let data = DataDir::open(&config.data_dir)?;
    let network = network(&config)?;
    let roots = roots(&config.attestation)?;
    let listener = TcpListener::bind(config.peers.listen)
        .and_then(|l| l.set_nonblocking(true).map(|()| l))
        .map_err(|source| StartError::Listen { address: config.peers.listen, source })?;
    let address =
        listener.local_addr().map_err(|source| StartError::Listen { address: config.peers.listen, source })?;
    let vault = Arc::new(Vault::start(&config, &data.join("vault"), false)?);
    let identity = Arc::new(Identity::new(vault.clone())?);
    let device = identity.device();
    let replica = Replica::open(ReplicaConfig {
        dir: data.join("replica"),
        network,
        hello: identity.clone(),
        witness: Some(identity.clone()),
    })?;
    let alarms = Arc::new(Alarms::open(&data.join("alarms"))?);
    let ledger = Arc::new(Ledger::new(replica.clone(), alarms));
    let records = Arc::new(Records::open(replica.clone(), &data.join("outbox"), identity.clone())?);
    let local = Local { network: replica.network().network, device, directory: ledger.clone() };
    let peers = Arc::new(Peers::new(local, identity.session().clone()));
    let fresh = Arc::new(Fresh::new(device, ledger.clone(), peers.clone()));
    let holder = Arc::new(holder(&config, &data, device, &identity, &ledger, &fresh, &vault)?);
    let assembler = Assembler::new(device, ledger.clone(), fresh.clone(), peers.clone(), holder.clone());
    let keyring = Arc::new(Keyring::new(device, Arc::new(assembler)));
    let gossip = Arc::new(Gossip::new(device, ledger.clone(), peers.clone()));
    let registers = Arc::new(Registers {
        device,
        ledger: ledger.clone(),
        vault: vault.clone(),
        peers: peers.clone(),
        records: records.clone(),
    });
    let attester = Arc::new(Attester::new(device, ledger.clone(), roots));
    let answers = Answers {
        device,
        session: identity.session().clone(),
        ledger: ledger.clone(),
        holder: holder.clone(),
        gossip: gossip.clone(),
        registers: registers.clone(),
        attester: attester.clone(),
    };
    let server = Server::new(&peers, Arc::new(answers), config.limits.peer_connections_max);
    let dealer = Dealer {
        device,
        ledger: ledger.clone(),
        fresh: fresh.clone(),
        peers: peers.clone(),
        holder: holder.clone(),
        records: records.clone(),
        accept_deadline: Duration::from_millis(config.danger.accept_deadline_ms),
    };
    let chip = Arc::new(Chip::new(vault.clone()));
    let prover = Arc::new(Prover::new(chip.clone(), identity.clone(), ledger.clone(), peers.clone()));
    let member = Arc::new(Member {
        ledger: ledger.clone(),
        chip: chip.clone(),
        identity,
        records: records.clone(),
        vault: vault.clone(),
        holder: holder.clone(),
        starts: StartCounter::new(data.join("starts")),
        addresses: vec![advertised(&config.peers, address)],
        session_ms: config.danger.session_ms,
        phase: Mutex::new(Phase::Starting),
    });
    let node = Node {
        config,
        device,
        address,
        vault,
        ledger,
        peers,
        fresh,
        holder,
        dealer,
        keyring,
        gossip,
        records,
        registers,
        chip,
        prover,
        attester,
        member,
        server,
        stop: Stop::new(shutdown),
        threads: Threads::default(),
        _data: data,
    };
    node.spawn(listener).map_err(StartError::Thread)?;
    Ok(node)
}

fn network(config: &Config) -> Result<NetworkFile, StartError> {
    let path = || config.network.clone();
    let text = std::fs::read_to_string(&config.network);
    let text = text.map_err(|source| StartError::Network { path: path(), source })?;
    NetworkFile::parse(&text).map_err(|source| StartError::NetworkFile { path: path(), source })
}

fn roots(config: &config::Attestation) -> Result<Option<Roots>, StartError> {
    let Some(path) = &config.roots else { return Ok(None) };
    let roots = Roots::read(path, config.danger_allow_software);
    roots.map(Some).map_err(|source| StartError::Roots { path: path.clone(), source })
}

fn holder(
    config: &Config,
    data: &DataDir,
    device: DeviceId,
    identity: &Identity,
    ledger: &Arc<Ledger>,
    fresh: &Arc<Fresh>,
    vault: &Arc<Vault>,
) -> Result<Holder, StartError> {
    let parts = Parts {
        session: identity.session().clone(),
        ledger: ledger.clone(),
        fresh: fresh.clone(),
        vault: vault.clone(),
        shards: ShardStore::open(&data.join("shards.redb"), device, vault.clone())?,
        grants: Arc::new(Grants::open(&data.join("grants"))?),
        releases_per_second_max: config.limits.releases_per_second_max,
    };
    Ok(Holder::new(device, parts))
}

/// What other agents are told: as configured; else the bound address; else, where that is all addresses, this host's name.
fn advertised(peers: &config::Peers, bound: SocketAddr) -> String {
    match &peers.advertise {
        Some(advertise) => advertise.clone(),
        None if bound.ip().is_unspecified() => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            format!("{host}:{}", bound.port())
        }
        None => bound.to_string(),
    }
}

impl Node {
    fn spawn(&self, listener: TcpListener) -> io::Result<()> {
        let threads = &self.threads;
        let (server, stop) = (self.server.clone(), self.stop.clone());
        threads.spawn("peer-listen", move || server.run(&listener, stop.flag()))?;

        let (peers, ledger, stop, device) = (self.peers.clone(), self.ledger.clone(), self.stop.clone(), self.device);
        threads.spawn("peer-tend", move || peers.tend(|| (!stop.is_set()).then(|| partners(&ledger, device))))?;

        let (member, stop) = (self.member.clone(), self.stop.clone());
        threads.spawn("member", move || member.keep(|pause| stop.pause(pause)))?;

        let (prover, stop) = (self.prover.clone(), self.stop.clone());
        threads.spawn("prove", move || prover.keep(|pause| stop.pause(pause)))?;

        let (attester, records, stop) = (self.attester.clone(), self.records.clone(), self.stop.clone());
        threads.spawn("attest", move || attester.post(&records, || stop.is_set()))?;

        let watch = Watch::new(self.device, self.ledger.clone(), self.records.clone());
        let stop = self.stop.clone();
        threads.spawn("watch", move || watch.keep(|pause| stop.pause(pause)))?;

        let (fresh, member, stop) = (self.fresh.clone(), self.member.clone(), self.stop.clone());
        threads.spawn("fresh", move || {
            while member.phase() != Phase::Running && !stop.pause(START_LOOK) {}
            fresh.keep(|pause| stop.pause(pause));
        })?;

        let follower = Follower {
            ledger: self.ledger.clone(),
            holder: self.holder.clone(),
            keyring: self.keyring.clone(),
            peers: self.peers.clone(),
            server: self.server.clone(),
        };
        let follower = Arc::new(follower);
        let (gossip, acted, stop) = (self.gossip.clone(), follower.clone(), self.stop.clone());
        threads.spawn("gossip", move || gossip.pass_on(|| stop.is_set(), || acted.act()))?;
        let stop = self.stop.clone();
        threads.spawn("follow", move || follower.follow(&stop))?;

        let (registers, stop) = (self.registers.clone(), self.stop.clone());
        threads.spawn("registers", move || registers.keep(&stop))?;

        let (keyring, ledger, stop) = (self.keyring.clone(), self.ledger.clone(), self.stop.clone());
        threads.spawn("windows", move || keyring.keep_swept(|| ledger.view(), || stop.is_set()))?;

        let clerk = Clerk {
            device: self.device,
            ledger: self.ledger.clone(),
            grants: self.holder.grants().clone(),
            records: self.records.clone(),
        };
        let stop = self.stop.clone();
        threads.spawn("grants", move || clerk.post_grants(&stop))?;

        let revoker = Revoker {
            device: self.device,
            ledger: self.ledger.clone(),
            holder: self.holder.clone(),
            vault: self.vault.clone(),
            records: self.records.clone(),
            batch: Duration::from_secs(self.config.vault.erase_batch_seconds.into()),
        };
        let stop = self.stop.clone();
        threads.spawn("vault", move || revoker.keep(&stop))
    }
}

/// How often the first round of freshness looks whether the device is a member yet.
const START_LOOK: Duration = Duration::from_millis(20);

/// Devices with which a connection is kept ready: those that hold shards or witness.
fn partners(ledger: &Ledger, device: DeviceId) -> Vec<DeviceId> {
    let view = ledger.view();
    if view.member(&device).is_none() {
        return Vec::new();
    }
    let serves = |id: &&DeviceId| {
        let roles = [DeviceRole::Holder, DeviceRole::Witness];
        **id != device && view.member(id).is_some_and(|d| roles.iter().any(|role| d.has_role(*role)))
    };
    view.effective.devices.keys().filter(serves).copied().collect()
}
