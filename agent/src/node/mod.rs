//! The node half of the agent: vault, membership, peers, freshness, shards, making and assembling keys.
//!
//! [`Node`] is what the application half ([`crate::app`]) stands on. Rules are in `mayfly-protocol`; here they are asked and carried out.
//!
//! What must never happen here:
//! - a shard, root or key outside secret memory, or in a peer message other than sealed in the connection's inner envelope;
//! - a release or an assembly without fresh word of a quorum of witnesses, or that either the witnessed state or the newest verified one
//!   forbids;
//! - a wait of an operation's thread on another thread's work for other holders: it writes to its holders and polls them itself.

mod error;
mod key;

pub use error::{KeyError, KeyErrorKind, Missed};
pub use key::{AssembledKey, AssemblyReport, Holders, Material, NewKey, ShareReport};

use crate::config::Config;
use mayfly_protocol::freshness::NotFresh;
use mayfly_protocol::rules::{Clocks, Use};
use mayfly_protocol::{DeviceId, Head, KeyId, Record, State};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Where the agent stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// The ledger is being fetched, or the session key is on its way into it.
    Starting,
    /// An administrator has not approved the device yet.
    WaitingForApproval,
    /// Everything works, if witnesses and holders do.
    Running,
    /// The device has lost every right.
    Banned,
    /// The agent is ending.
    Stopping,
}

/// State of freshness, for `status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreshnessStatus {
    /// Whether keys are released and used now; why not.
    pub fresh: Result<(), NotFresh>,
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
    /// Why the last attempt to reach it failed.
    pub last_error: Option<String>,
}

/// Set to stop the agent; every thread looks at it.
pub type Shutdown = Arc<AtomicBool>;

/// The agent towards the network. See the page of this module.
#[derive(Debug)]
pub struct Node {
    device: DeviceId,
    state: Arc<State>,
}

impl Node {
    /// Starts vault, replica, peers and upkeep. Returns as soon as the local parts work; [`Node::phase`] tells the rest.
    ///
    /// # Errors
    /// A sentence with its causes: data folder in use or not private, vault does not open, network unknown, address in use.
    pub fn start(_config: Config, _shutdown: Shutdown) -> Result<Arc<Node>, KeyError> {
        Err(KeyError::new(KeyErrorKind::NotReady, "this build has no vault and no replica"))
    }

    /// This device.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// Where the agent stands.
    pub fn phase(&self) -> Phase {
        Phase::Starting
    }

    /// The state at the newest witnessed head: what is acted upon.
    pub fn state(&self) -> Arc<State> {
        self.state.clone()
    }

    /// Assembles the key (or takes it from its window) and runs `f` with it, once, on the secret stack.
    ///
    /// # Errors
    /// [`KeyError`]; `f` did not run then.
    pub fn with_key<R>(&self, _key: &KeyId, _purpose: Use, _f: impl FnOnce(&AssembledKey) -> R) -> Result<R, KeyError> {
        Err(self.not_ready())
    }

    /// Makes, deals and posts a key; returns when it is effective.
    ///
    /// # Errors
    /// [`KeyError`]; no key exists then, and holders drop their pending shards after the deadline.
    pub fn create_key(&self, _key: NewKey) -> Result<KeyId, KeyError> {
        Err(self.not_ready())
    }

    /// Posts a record signed with the session key; returns its index when it is effective.
    ///
    /// # Errors
    /// [`KeyErrorKind::Refused`], [`KeyErrorKind::Ledger`], [`KeyErrorKind::NotReady`].
    pub fn post(&self, _record: &Record) -> Result<u64, KeyError> {
        Err(self.not_ready())
    }

    /// Local and ledger time, if fresh.
    ///
    /// # Errors
    /// [`NotFresh`].
    pub fn clocks(&self) -> Result<Clocks, NotFresh> {
        Err(NotFresh::Never)
    }

    /// State of freshness.
    pub fn freshness(&self) -> FreshnessStatus {
        FreshnessStatus { fresh: Err(NotFresh::Never), age_ms: None, head: None, skew_ms: None, witnesses: 0, quorum: 0 }
    }

    /// The other members.
    pub fn peers(&self) -> Vec<PeerStatus> {
        Vec::new()
    }

    fn not_ready(&self) -> KeyError {
        KeyError::new(KeyErrorKind::NotReady, "the agent is starting").retry(200)
    }
}
