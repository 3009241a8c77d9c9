//! What applications and the command line are served from: the node, or, as long as the vault does not open, the reason why there is none.
//!
//! Without a vault a device has no identity: the desk then shows no token, does no operation and never touches the ledger; it answers `status`,
//! `why` and `vault show`. It must never try a vault again that counts attempts.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mayfly_ledger_client::{ReplicaStatus, with_cause};
use mayfly_protocol::freshness::NotFresh;
use mayfly_protocol::rules::{Clocks, Use};
use mayfly_protocol::{DeviceId, KeyId, Record, State};

use super::keys::{Agent, Keys};
use crate::config::Config;
use crate::node::attestation::{ChipError, Shown};
use crate::node::{
    AssembledKey, FreshnessStatus, Holdings, KeyError, KeyErrorKind, NewKey, Node, PeerStatus, Phase, Shutdown,
    StartError, Trouble, TroubleState, VaultStatus,
};

/// First pause before a vault that could not be reached is tried again; it doubles each time.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How often a pause looks whether the agent is to end.
const LOOK: Duration = Duration::from_millis(100);

/// See the page of this module.
pub struct Desk {
    config: Config,
    node: OnceLock<Arc<Node>>,
    trouble: Mutex<Option<Trouble>>,
    nothing: Arc<State>,
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("node", &self.node.get()).finish_non_exhaustive()
    }
}

impl Desk {
    /// Starts the node. A vault that does not open is no error: [`Desk::wait_for_vault`] goes on.
    ///
    /// # Errors
    /// Everything else that keeps a node from starting.
    pub fn open(config: Config, shutdown: &Shutdown) -> Result<Arc<Desk>, StartError> {
        let desk = Desk { config, node: OnceLock::new(), trouble: Mutex::default(), nothing: Arc::default() };
        desk.start(shutdown)?;
        Ok(Arc::new(desk))
    }

    fn start(&self, shutdown: &Shutdown) -> Result<(), StartError> {
        let trouble = match Node::start(self.config.clone(), shutdown.clone()) {
            Ok(node) => {
                tracing::info!(device = %node.device(), peers = %node.address(), "agent runs");
                let _ = self.node.set(node); // only one thread starts it
                None
            }
            Err(error) => match Trouble::of_start(&error) {
                Some(trouble) => Some(trouble),
                None => return Err(error),
            },
        };
        self.note(trouble);
        Ok(())
    }

    /// Tries again, ever more rarely, while that can help, until the node runs or `shutdown` is set.
    pub fn wait_for_vault(&self, shutdown: &Shutdown) {
        let mut pause = PAUSE_FIRST;
        while self.node.get().is_none() && self.trouble().is_some_and(|trouble| trouble.state.is_passing()) {
            let until = Instant::now() + pause;
            while Instant::now() < until {
                if shutdown.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(LOOK);
            }
            pause = (pause * 2).min(PAUSE_MAX);
            if let Err(error) = self.start(shutdown) {
                let reason =
                    format!("the vault may be there again, but the agent does not start: {}", with_cause(&error));
                self.note(Some(Trouble { state: TroubleState::Down, reason }));
            }
        }
    }

    /// The node, once it runs.
    pub fn open_node(&self) -> Option<&Arc<Node>> {
        self.node.get()
    }

    fn note(&self, trouble: Option<Trouble>) {
        let mut now = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != trouble {
            match &trouble {
                Some(trouble) => {
                    let (state, next) = (trouble.state.word(), trouble.state.next());
                    tracing::error!(state, reason = trouble.reason, next, "the agent works without its vault");
                }
                None => tracing::info!("the vault is open"),
            }
            *now = trouble;
        }
    }

    fn without_node(&self) -> KeyError {
        match Agent::trouble(self) {
            Some(trouble) => KeyError::new(KeyErrorKind::NotReady, trouble.sentence()).next(trouble.state.next()),
            // The node has come up since.
            None => KeyError::new(KeyErrorKind::NotReady, "the agent is starting").retry(200),
        }
    }
}

impl Keys for Desk {
    fn state(&self) -> Arc<State> {
        self.open_node().map_or_else(|| self.nothing.clone(), |node| node.state())
    }

    fn device(&self) -> DeviceId {
        self.open_node().map_or_else(DeviceId::default, |node| node.device())
    }

    fn with_key(&self, key: &KeyId, purpose: Use, work: &mut dyn FnMut(&AssembledKey)) -> Result<(), KeyError> {
        self.open_node().ok_or_else(|| self.without_node())?.with_key(key, purpose, |key| work(key))
    }

    fn create_key(&self, key: NewKey) -> Result<KeyId, KeyError> {
        self.open_node().ok_or_else(|| self.without_node())?.create_key(key)
    }

    fn post(&self, record: &Record) -> Result<u64, KeyError> {
        self.open_node().ok_or_else(|| self.without_node())?.post(record)
    }
}

impl Agent for Desk {
    fn tip(&self) -> Arc<State> {
        self.open_node().map_or_else(|| self.nothing.clone(), |node| node.replica().tip())
    }

    fn phase(&self) -> Phase {
        self.open_node().map_or(Phase::WithoutVault, |node| node.phase())
    }

    fn has_node(&self) -> bool {
        self.open_node().is_some()
    }

    fn node(&self) -> Option<&Node> {
        self.open_node().map(|node| &**node)
    }

    fn trouble(&self) -> Option<Trouble> {
        match self.open_node() {
            Some(node) => node.trouble(),
            None => self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }

    fn freshness(&self) -> FreshnessStatus {
        let none = || FreshnessStatus {
            fresh: Err(NotFresh::Never),
            last_failure: None,
            age_ms: None,
            head: None,
            skew_ms: None,
            witnesses: 0,
            quorum: 0,
        };
        self.open_node().map_or_else(none, |node| node.freshness())
    }

    fn peers(&self) -> Vec<PeerStatus> {
        self.open_node().map_or_else(Vec::new, |node| node.peers())
    }

    fn clocks(&self) -> Option<Clocks> {
        self.open_node()?.clocks().ok()
    }

    fn ledger(&self) -> ReplicaStatus {
        self.open_node().map_or_else(ReplicaStatus::default, |node| node.replica().status())
    }

    fn entries(&self, from: u64, count: usize) -> Result<Vec<(u64, u64, Vec<u8>)>, String> {
        let node = self.open_node().ok_or_else(|| self.without_node().to_string())?;
        node.replica().entries(from, count).map_err(|error| error.to_string())
    }

    fn vault(&self) -> VaultStatus {
        let unknown = || VaultStatus {
            kind: self.config.vault.kind.clone(),
            software_only: false,
            note: String::new(),
            generation: 0,
            lost: Vec::new(),
        };
        self.open_node().map_or_else(unknown, |node| node.vault())
    }

    fn holdings(&self) -> Holdings {
        self.open_node().map_or_else(Holdings::default, |node| node.holdings())
    }

    fn chip(&self) -> Result<Option<Shown>, ChipError> {
        self.open_node().map_or(Ok(None), |node| node.chip())
    }

    fn prove(&self, challenge: &[u8]) -> Result<Vec<u8>, ChipError> {
        self.open_node().ok_or(ChipError::NoChip)?.prove(challenge)
    }

    fn unattested(&self) -> Vec<(DeviceId, String)> {
        self.open_node().map_or_else(Vec::new, |node| node.unattested())
    }

    fn configured_name(&self) -> &str {
        &self.config.device_name
    }
}
