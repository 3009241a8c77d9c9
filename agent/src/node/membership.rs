//! From a started agent to a member with a session: waits for approval, delegates, renews.

use super::attestation::Chip;
use super::clock;
use super::data::DataError;
use super::directory::{Behind, Ledger};
use super::holder::Holder;
use super::identity::{BySession, Identity, Records, StartCounter};
use super::vault::Vault;
use super::{Phase, dealer};
use mayfly_crypto::sign::PublicKey;
use mayfly_ledger_client::PostError;
use mayfly_protocol::State;
use mayfly_protocol::apply::SESSION_MS_MAX;
use mayfly_protocol::attested::quote_context;
use mayfly_protocol::record::{Alert, AlertKind, Delegate, Quoted, Record, Verifier};
use mayfly_protocol::state::Membership;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// By how much a delegation ends before the longest life of a session, so that differing clocks do not make it too long.
const MARGIN_MS: u64 = 60_000;
/// Pause after a failed attempt.
const RETRY: Duration = Duration::from_millis(500);
/// Longest pause between looks at the ledger.
const LOOK: Duration = Duration::from_secs(1);

/// This device's way into the network.
#[derive(Debug)]
pub struct Member {
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// Its keys.
    pub identity: Arc<Identity>,
    /// Its records.
    pub records: Arc<Records>,
    /// Its vault.
    pub vault: Arc<Vault>,
    /// Its shards.
    pub holder: Arc<Holder>,
    /// Its chip, whose quotes go with delegations.
    pub chip: Arc<Chip>,
    /// Counts delegations.
    pub starts: StartCounter,
    /// Where peers reach it.
    pub addresses: Vec<String>,
    /// Life of a session; 0: the longest that the rules allow.
    pub session_ms: u64,
    /// Where it stands.
    pub phase: Mutex<Phase>,
}

#[derive(Debug, thiserror::Error)]
enum DelegateError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Post(#[from] PostError),
}

impl Member {
    /// Where the device stands.
    pub fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the device a member with a valid session, until `stop` (which pauses so long). The body of a thread.
    pub fn keep(&self, stop: impl Fn(Duration) -> bool) {
        let mut pause = Duration::ZERO;
        while !stop(pause) {
            pause = self.step();
        }
        self.set(Phase::Stopping);
    }

    /// Looks where the device stands, and delegates if that is due. How long nothing is due.
    fn step(&self) -> Duration {
        let state = self.ledger.replica().effective();
        let device = state.devices.get(&self.identity.device());
        match device.map(|d| d.membership) {
            _ if self.ledger.alarms().banned(&self.identity.device()) => self.set(Phase::Banned),
            None if self.ledger.replica().status().caught_up => self.set(Phase::NotJoined),
            None => self.set(Phase::Starting),
            Some(Membership::Pending) => {
                self.set(Phase::WaitingForApproval);
                if !self.vault.is_ahead() && self.is_candidate(&state) {
                    return self.keep_session(&state);
                }
            }
            Some(Membership::Banned) => self.set(Phase::Banned),
            Some(Membership::Member) => return self.member(&state),
        }
        self.wait_for_change(&state)
    }

    fn member(&self, state: &State) -> Duration {
        let device = self.identity.device();
        if let Err(behind) = self.ledger.view().check_generation(&device, self.vault.generation()) {
            self.set(Phase::Quarantined);
            return if self.alarm(behind) { self.wait_for_change(state) } else { RETRY };
        }
        if self.vault.is_ahead() && self.was_moved() {
            self.set(Phase::Starting);
            return if self.give_up(state) { self.wait_for_change(state) } else { RETRY };
        }
        let delegated = self.identity.delegated(state);
        if delegated {
            self.set(Phase::Running);
        } else if self.phase() != Phase::Running {
            self.set(Phase::Starting);
        }
        self.keep_session(state)
    }

    /// Whether a session is of use before approval: there are witnesses to whom a chip can prove itself.
    fn is_candidate(&self, state: &State) -> bool {
        let device = self.identity.device();
        let sound = self.ledger.view().check_generation(&device, self.vault.generation()).is_ok();
        sound && !state.active_witnesses().is_empty() && matches!(self.chip.show(), Ok(Some(_)))
    }

    /// Delegates, if it is due. How long nothing is due.
    fn keep_session(&self, state: &State) -> Duration {
        let delegated = self.identity.delegated(state);
        let left = self.session_left(state).filter(|_| delegated);
        if left.is_some_and(|left| left > self.renew_before_ms()) {
            return self.wait_for_change(state);
        }
        match self.delegate(state) {
            Ok(index) => {
                let there = |state: &State| state.size() > index;
                let _ = self.ledger.replica().wait_effective(there, dealer::EFFECTIVE_TIMEOUT);
                Duration::ZERO
            }
            Err(error) => {
                tracing::warn!(
                    error = mayfly_ledger_client::with_cause(&error),
                    "the session key is not on the ledger yet"
                );
                RETRY
            }
        }
    }

    /// Tells the network that this device's vault was put back; done when the ledger has it.
    fn alarm(&self, behind: Behind) -> bool {
        let (device, what) = (self.identity.device(), AlertKind::VaultBehind);
        if self.ledger.replica().tip().alerts.contains_key(&(device, what, device)) {
            return true;
        }
        tracing::error!(
            vault = behind.vault,
            acknowledged = behind.acknowledged,
            "quarantine: the vault was put back from a copy"
        );
        let text = format!("its vault is at generation {}, it had acknowledged {}", behind.vault, behind.acknowledged);
        let alert = Record::Alert(Alert { about: device, what, text });
        let posted = self.records.post_by_identity(&alert, &[], dealer::POST_TIMEOUT);
        posted.inspect_err(|error| tracing::warn!(error = mayfly_ledger_client::with_cause(error), "alert")).is_ok()
    }

    /// Whether the vault, which has no keys of its generation, was brought there by somebody else: this device would have told the ledger, and
    /// its shards would be sealed under it. Otherwise the newest copy of the vault's folder has the keys, and must not be made worthless.
    fn was_moved(&self) -> bool {
        let (device, generation) = (self.identity.device(), self.vault.generation());
        self.ledger.view().acknowledged(&device) < generation && !self.holder.had_keys()
    }

    /// Tells the network that the vault's counter was moved, and gives up the keys that this has cost. Done only when the alert is witnessed:
    /// then everything that this device had told before is known here too, whatever copy of the ledger it was started with.
    fn give_up(&self, state: &State) -> bool {
        let (device, what) = (self.identity.device(), AlertKind::VaultAhead);
        let text = format!(
            "its vault's counter is at generation {}, where this device never brought it",
            self.vault.generation()
        );
        if state.alerts.get(&(device, what, device)).is_some_and(|alert| alert.record.text == text) {
            if !self.vault.is_forsaken() {
                tracing::error!(
                    generation = self.vault.generation(),
                    "the vault's counter was moved: what was sealed is lost here"
                );
                self.vault.forsake();
            }
            return true;
        }
        let alert = Record::Alert(Alert { about: device, what, text });
        let posted = self.records.post_by_identity(&alert, &[], dealer::POST_TIMEOUT);
        posted.inspect_err(|error| tracing::warn!(error = mayfly_ledger_client::with_cause(error), "alert")).is_ok()
    }

    fn session_left(&self, state: &State) -> Option<u64> {
        let session = state.devices.get(&self.identity.device())?.session()?;
        Some(session.not_after_ms.saturating_sub(clock::local_ms()))
    }

    fn life_ms(&self) -> u64 {
        match self.session_ms {
            0 => SESSION_MS_MAX - MARGIN_MS,
            ms => ms.min(SESSION_MS_MAX - MARGIN_MS),
        }
    }

    /// A session is renewed when an eighth of its life is left.
    fn renew_before_ms(&self) -> u64 {
        self.life_ms() / 8
    }

    fn delegate(&self, state: &State) -> Result<u64, DelegateError> {
        let known = state.devices.get(&self.identity.device()).and_then(|d| d.session());
        let start_counter = self.starts.next(known.map_or(0, |s| s.start_counter))?;
        let session = self.identity.session().public();
        let record = Record::Delegate(Delegate {
            session_key: Verifier(session),
            start_counter,
            vault_generation: self.vault.generation(),
            not_after_ms: clock::local_ms().saturating_add(self.life_ms()),
            addresses: self.addresses.clone(),
            quote: self.quote(state, &session, start_counter),
        });
        Ok(self.records.post_by_identity(&record, &[&BySession(&self.identity)], dealer::POST_TIMEOUT)?)
    }

    /// The chip's word on its registers. Without it witnesses alert; a device that cannot quote for the moment goes on all the same.
    fn quote(&self, state: &State, session: &PublicKey, start_counter: u64) -> Option<Quoted> {
        let device = self.identity.device();
        let head = self.ledger.replica().tip().head();
        let context = quote_context(&state.network, &device, session, start_counter, &head);
        let registers = state.attested_registers(&device).map(|r| r.selected);
        let statement = self.chip.quote(context, registers).unwrap_or_else(|error| {
            tracing::warn!(error = mayfly_ledger_client::with_cause(&error), "the chip does not quote its registers");
            None
        });
        statement.map(|statement| Quoted { head, statement })
    }

    fn wait_for_change(&self, state: &State) -> Duration {
        let size = state.size();
        let _ = self.ledger.replica().wait_effective(|s| s.size() != size, LOOK);
        Duration::ZERO
    }

    fn set(&self, phase: Phase) {
        let mut now = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != phase {
            tracing::info!(from = ?*now, to = ?phase, "device");
            *now = phase;
        }
    }
}
