//! The node half of the agent: vault, membership, peers, freshness, shards, making and assembling keys.
//!
//! [`Node`] is what the application half stands on. Rules are in `mayfly-protocol`; here they are asked and carried out.
//!
//! | Module | Is |
//! |---|---|
//! | [`join()`], `membership`, `identity` | from an invitation to a member with a session key on the ledger |
//! | [`attestation`] | what a device's chip proves, to whom, and who watches it |
//! | `directory`, `alarms`, `gossip` | rights: by the witnessed state, the newest verified state, and bans seen on sight |
//! | `fresh` | rounds of freshness and ledger time |
//! | `vault`, `shards`, `grants` | what this device keeps |
//! | `revocation` | when the vault moves on, so that erased shards are gone for good |
//! | `trouble`, `registers` | what keeps a vault from opening, and the way back; approvals of a TPM's registers |
//! | `holder`, `dealer`, `assembler`, `keyring` | the four parts that a device plays for a key |
//! | [`peers`] | connections between agents |
//!
//! What must never happen here:
//! - a shard, root or key outside secret memory, or in a peer message other than sealed in the connection's inner envelope;
//! - a release or an assembly without fresh word of a quorum of witnesses, or that either the witnessed state or the newest verified one
//!   forbids;
//! - a wait of an operation's thread on another thread's work for other holders: it writes to its holders and polls them itself.

mod alarms;
mod assembler;
pub mod attestation;
mod clock;
mod data;
mod dealer;
mod directory;
mod error;
mod fresh;
mod gossip;
mod grants;
mod holder;
mod identity;
mod join;
mod key;
mod keyring;
mod limit;
mod membership;
pub mod peers;
mod registers;
mod revocation;
mod service;
mod shards;
mod start;
mod trouble;
mod upkeep;
mod vault;

pub use alarms::AlarmError;
pub use data::{DataDir, DataError};
pub use error::{KeyError, KeyErrorKind, Missed};
pub use join::{JoinError, Joined, forget, join};
pub use key::{AssembledKey, AssemblyReport, Holders, Material, NewKey, ShareReport};
pub use registers::{Registers, ToApprove};
pub use shards::{Revoked, ShardError};
pub use start::StartError;
pub use trouble::{Trouble, TroubleState};
pub use vault::{Bench, Figures, TierBench, TierFigures, Vault, VaultError, VaultState};

use crate::config::Config;
use attestation::{Attester, Chip, ChipError, Prover, Shown};
use dealer::Dealer;
use directory::Ledger;
use fresh::Fresh;
use gossip::Gossip;
use holder::Holder;
use identity::Records;
use keyring::Keyring;
use mayfly_ledger_client::Replica;
use mayfly_protocol::attested::enrolment_context;
use mayfly_protocol::freshness::NotFresh;
use mayfly_protocol::head::quorum;
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::rules::{Clocks, Use};
use mayfly_protocol::{AuthorId, DeviceId, Head, KeyId, Record, State};
use membership::Member;
use peers::{Peers, Server};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use upkeep::{Stop, Threads};

/// Where the agent stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The ledger is being fetched, or the session key is on its way into it.
    Starting,
    /// The ledger does not know this device: `mayfly join` comes first.
    NotJoined,
    /// An administrator has not approved the device yet.
    WaitingForApproval,
    /// Everything works, if witnesses and holders do.
    Running,
    /// The device has lost every right.
    Banned,
    /// The vault is behind the ledger: the device does nothing but say so.
    Quarantined,
    /// The vault does not open, so there is no identity to be anybody with: [`Trouble`] says why.
    WithoutVault,
    /// The agent is ending.
    Stopping,
}

impl Phase {
    /// The words for it.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::NotJoined => "not joined",
            Phase::WaitingForApproval => "waiting for approval",
            Phase::Running => "running",
            Phase::Banned => "banned",
            Phase::Quarantined => "quarantined",
            Phase::WithoutVault => "without vault",
            Phase::Stopping => "stopping",
        }
    }
}

/// State of freshness, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshnessStatus {
    /// Whether keys are released and used now; why not.
    pub fresh: Result<(), NotFresh>,
    /// Why the newest round failed, if it did; the one before may still be good.
    pub last_failure: Option<NotFresh>,
    /// When the last successful round began, milliseconds ago.
    pub age_ms: Option<u64>,
    /// Head that its witnesses stated.
    pub head: Option<Head>,
    /// Local minus ledger time, milliseconds.
    pub skew_ms: Option<i64>,
    /// Witnesses that there are.
    pub witnesses: usize,
    /// Witnesses that must answer.
    pub quorum: usize,
}

/// Another agent, for `status` and `peers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub name: String,
    /// Whether a connection to it is open.
    pub connected: bool,
    /// Usual time of its answers, microseconds.
    pub usual_us: Option<u64>,
    /// Why it is not asked first at present, or not at all: a ban that was seen on sight, a lie as a witness.
    pub last_error: Option<String>,
}

/// The vault, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultStatus {
    /// `file`, `tpm`, `pkcs11`.
    pub kind: String,
    /// Nothing but software protects its keys: for development.
    pub software_only: bool,
    /// What it does not protect against.
    pub note: String,
    /// Generation of its keys.
    pub generation: u64,
    /// Keys whose shards are lost here: sealed under a generation of which the vault has no keys any more.
    pub lost: Vec<KeyId>,
}

/// What this device keeps, for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Holdings {
    /// Shards in use.
    pub shards: usize,
    /// Shards whose keys are not on the ledger yet.
    pub pending_shards: usize,
    /// Assembled keys whose window is open.
    pub windows: usize,
    /// Grants that are not on the ledger yet.
    pub unposted_grants: usize,
    /// Connections of other agents.
    pub served_connections: usize,
}

/// Set to stop the agent; every thread looks at it.
pub type Shutdown = Arc<AtomicBool>;

/// The agent towards the network. See the page of this module.
#[derive(Debug)]
pub struct Node {
    config: Config,
    device: DeviceId,
    address: SocketAddr,
    vault: Arc<Vault>,
    ledger: Arc<Ledger>,
    peers: Arc<Peers>,
    fresh: Arc<Fresh>,
    holder: Arc<Holder>,
    dealer: Dealer,
    keyring: Arc<Keyring>,
    gossip: Arc<Gossip>,
    records: Arc<Records>,
    registers: Arc<Registers>,
    chip: Arc<Chip>,
    prover: Arc<Prover>,
    attester: Arc<Attester>,
    member: Arc<Member>,
    server: Arc<Server>,
    stop: Stop,
    threads: Threads,
    _data: DataDir,
}

impl Node {
    /// Starts vault, replica, peers and upkeep. Returns as soon as the local parts work; [`Node::phase`] tells the rest.
    ///
    /// # Errors
    /// A sentence with its causes: data folder in use or not private, vault does not open, network unknown, address in use.
    pub fn start(config: Config, shutdown: Shutdown) -> Result<Arc<Node>, StartError> {
        start::start(config, shutdown).map(Arc::new)
    }

    /// Ends every thread and wipes what is in memory. Done by dropping the node, too.
    pub fn stop(&self) {
        self.stop.ring();
        self.server.end(|_| true);
        self.keyring.clear();
        self.threads.join();
    }

    // --- keys ---------------------------------------------------------------------------------------------------------------

    /// Assembles the key (or takes it from its window) and lends it to `f`, once, on the caller's stack: what works on the bytes (the engine,
    /// [`mayfly_crypto`]) goes to the secret stack itself and lets only plain values leave it (decision 0005), so that `f` may return what it
    /// likes. An `f` that touches bytes itself does so inside [`mayfly_secmem::on_secret_stack`].
    ///
    /// # Errors
    /// [`KeyError`]; `f` did not run then.
    pub fn with_key<R>(&self, key: &KeyId, purpose: Use, f: impl FnOnce(&AssembledKey) -> R) -> Result<R, KeyError> {
        let key = self.keyring.obtain(key, purpose).map_err(|error| self.or_not_ready(error))?;
        Ok(f(&key))
    }

    /// Makes, deals and posts a key; returns when it is effective.
    ///
    /// # Errors
    /// [`KeyError`]; no key exists then (unless the text says that the ledger may still take it), and holders drop their pending shards after
    /// the deadline.
    pub fn create_key(&self, key: NewKey) -> Result<KeyId, KeyError> {
        self.dealer.create(key).map_err(|error| self.or_not_ready(error))
    }

    /// Posts a record signed with the session key; returns its index when it is effective.
    ///
    /// # Errors
    /// [`KeyErrorKind::Refused`], [`KeyErrorKind::Ledger`], [`KeyErrorKind::NotReady`].
    pub fn post(&self, record: &Record) -> Result<u64, KeyError> {
        let posted = self.records.post(record, dealer::POST_TIMEOUT).map_err(dealer::post_failed);
        let index = posted.map_err(|error| self.or_not_ready(error))?;
        let deadline = Instant::now() + dealer::EFFECTIVE_TIMEOUT;
        if assembler::wait_for(&self.ledger, |state| state.size() > index, deadline) {
            return Ok(index);
        }
        Err(KeyError::new(
            KeyErrorKind::Ledger,
            "the record is on the ledger, but too few witnesses have signed it yet",
        )
        .next("it takes effect when a quorum of witnesses runs: `mayfly status`"))
    }

    /// Acts upon a signed BAN before the ledger contains it, tells the other agents, and offers it to the ledger.
    ///
    /// # Errors
    /// [`AlarmError`].
    pub fn ban_on_sight(&self, entry: &[u8]) -> Result<(), AlarmError> {
        self.gossip.hear(entry)
    }

    /// A device that is not running has one reason for every failure.
    fn or_not_ready(&self, error: KeyError) -> KeyError {
        let not_ready = |text: &str| KeyError::new(KeyErrorKind::NotReady, text);
        match self.phase() {
            Phase::Running => error,
            Phase::Starting => not_ready("the agent is starting: the ledger does not know its session key yet")
                .next("see that a gateway and a quorum of witnesses run: `mayfly status`")
                .retry(200),
            Phase::NotJoined => not_ready("the ledger does not know this device").next("`mayfly join TOKEN`"),
            Phase::WaitingForApproval => {
                not_ready("this device waits for approval").next("an administrator runs `mayfly device approve`")
            }
            Phase::Banned => not_ready("this device is banned"),
            Phase::Quarantined => {
                not_ready("this device is in quarantine: its vault is behind what the ledger knows of it")
                    .next(TroubleState::Quarantined.next())
            }
            Phase::WithoutVault => not_ready("the vault does not open").next("`mayfly status`"),
            Phase::Stopping => not_ready("the agent is ending").retry(1000),
        }
    }

    // --- facts --------------------------------------------------------------------------------------------------------------

    /// This device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Its identity key.
    pub fn identity(&self) -> &mayfly_crypto::sign::PublicKey {
        self.vault.identity()
    }

    /// Its configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where other agents' connections are taken.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the agent stands.
    pub fn phase(&self) -> Phase {
        self.member.phase()
    }

    /// The state at the newest witnessed head: what is acted upon.
    pub fn state(&self) -> Arc<State> {
        self.ledger.replica().effective()
    }

    /// The verified copy of the ledger.
    pub fn replica(&self) -> &Arc<Replica> {
        self.ledger.replica()
    }

    /// Local and ledger time, if fresh.
    ///
    /// # Errors
    /// [`NotFresh`].
    pub fn clocks(&self) -> Result<Clocks, NotFresh> {
        self.fresh.clocks()
    }

    /// State of freshness.
    pub fn freshness(&self) -> FreshnessStatus {
        let (boot, local) = (clock::boot_ms(), clock::local_ms());
        let last = self.fresh.last();
        let skew = |f: &Arc<mayfly_protocol::freshness::Freshness>| {
            let clocks = f.clocks_unchecked(boot, local);
            i64::try_from(i128::from(clocks.local_ms) - i128::from(clocks.ledger_ms)).unwrap_or(i64::MAX)
        };
        let witnesses = self.state().witnesses().len();
        FreshnessStatus {
            fresh: self.fresh.clocks().map(drop),
            last_failure: self.fresh.last_failure(),
            age_ms: last.as_ref().map(|f| boot.saturating_sub(f.began_boot_ms)),
            head: last.as_ref().map(|f| f.head),
            skew_ms: last.as_ref().map(skew),
            witnesses,
            quorum: quorum(witnesses),
        }
    }

    /// The other members.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let (banned, state) = (self.ledger.alarms().snapshot(), self.state());
        let others = state.devices.iter().filter(|(id, device)| **id != self.device && device.is_member());
        let status = |(id, device): (&DeviceId, &mayfly_protocol::state::Device)| {
            let standing = self.peers.standing(id);
            let contradiction = || {
                let size = self.fresh.contradiction_of(id)?;
                Some(format!("as a witness it stated a head of {size} entries that contradicts this device's ledger"))
            };
            PeerStatus {
                device: *id,
                name: device.name.clone(),
                connected: standing.connected,
                usual_us: standing.usual_us,
                last_error: banned.note(id).map(str::to_owned).or_else(contradiction).or(standing.failed),
            }
        };
        others.map(status).collect()
    }

    /// What is wrong with the vault, if anything is.
    pub fn trouble(&self) -> Option<Trouble> {
        match self.holder.check_vault(&self.ledger.view()) {
            Err(behind) => Some(Trouble { state: TroubleState::Quarantined, reason: behind.to_string() }),
            Ok(()) => Trouble::of_vault(self.vault.state()),
        }
    }

    /// Registers of this device's vault, and approvals for others'.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The vault.
    pub fn vault(&self) -> VaultStatus {
        VaultStatus {
            kind: self.vault.kind().to_owned(),
            software_only: self.vault.software_only(),
            note: self.vault.note().to_owned(),
            generation: self.vault.generation(),
            lost: self.holder.lost(),
        }
    }

    /// Moves the vault on to its next generation now: no copy of what was erased here opens ever again.
    ///
    /// # Errors
    /// [`ShardError`]; it can be tried again at any time.
    pub fn revoke_vault(&self) -> Result<Revoked, ShardError> {
        self.holder.revoke_now()
    }

    /// Measures the vault, with so many openings in each tier; with `commit` by a real revocation, too.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn bench_vault(&self, rounds: usize, commit: bool) -> Result<Bench, ShardError> {
        self.holder.bench(rounds, commit)
    }

    /// What openings of the vault have cost since the start.
    pub fn vault_figures(&self) -> Figures {
        self.vault.figures()
    }

    /// Whether the chip or token is well now, as far as it says within `patience`.
    ///
    /// # Errors
    /// A sentence: what is wrong with it.
    pub fn vault_health(&self, patience: Duration) -> Result<(), String> {
        self.vault.health_within(patience)
    }

    /// Erased shards that a copy of this device's disk could still give to who has its vault: they wait for a revocation.
    pub fn unrevoked(&self) -> usize {
        self.holder.waiting()
    }

    /// What this device's chip shows of itself; none where there is no chip.
    ///
    /// # Errors
    /// [`ChipError::Vault`].
    pub fn chip(&self) -> Result<Option<Shown>, ChipError> {
        Ok(self.chip.show()?)
    }

    /// The chip's answer to a challenge of one of the network's administrators.
    ///
    /// # Errors
    /// [`ChipError`].
    pub fn prove(&self, challenge: &[u8]) -> Result<Vec<u8>, ChipError> {
        let state = self.replica().tip();
        let administrators = state.genesis.iter().flat_map(|genesis| &genesis.administrators);
        let ids = administrators.map(|a| AuthorId(public_key_id(&a.key.0)));
        let contexts: Vec<_> = ids.map(|id| enrolment_context(&state.network, &self.device, &id)).collect();
        self.chip.prove(challenge, &contexts)
    }

    /// Why witnesses have not attested this device, as far as they were asked and as far as it matters.
    pub fn unattested(&self) -> Vec<(DeviceId, String)> {
        self.prover.refusals()
    }

    /// What this device keeps.
    pub fn holdings(&self) -> Holdings {
        let (shards, pending_shards) = self.holder.counts();
        let posted = self.ledger.view().posted_grants(&self.device);
        Holdings {
            shards,
            pending_shards,
            windows: self.keyring.windows(),
            unposted_grants: self.holder.grants().unposted(posted).len(),
            served_connections: self.server.count(),
        }
    }

    /// Waits until the device is a member with a session and the first round of freshness has succeeded.
    pub fn wait_until_ready(&self, timeout: Duration) -> bool {
        const LOOK: Duration = Duration::from_millis(20);
        let deadline = Instant::now() + timeout;
        while !(self.phase() == Phase::Running && self.fresh.clocks().is_ok()) {
            if Instant::now() >= deadline || self.stop.is_set() {
                return false;
            }
            self.stop.pause(LOOK);
        }
        true
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests;
