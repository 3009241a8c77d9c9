//! Proves this device to witnesses: one after the other, until as many as a quorum have attested it.
//!
//! A failure is no alarm here: a witness may be away, or know no makers. It is asked again, more and more rarely.

use super::chip::{Chip, ChipError, Shown};
use crate::node::clock;
use crate::node::directory::Ledger;
use crate::node::identity::Identity;
use crate::node::peers::{Exchange, Outcome, Peers};
use mayfly_protocol::attested::{Attested, enrolment_context};
use mayfly_protocol::peer::{Ask, AttestAsk, AttestBegin, Reply};
use mayfly_protocol::{AuthorId, DeviceId, State};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a witness may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is looked whether there is somebody to be asked.
const LOOK: Duration = Duration::from_secs(1);
/// Pause before a witness that did not attest us is asked again; it doubles.
const PAUSE_FIRST: Duration = Duration::from_secs(3);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Pause after a witness believed us, for its statement to take effect.
const PAUSE_BELIEVED: Duration = Duration::from_secs(30);

/// This device's way to be attested.
#[derive(Debug)]
pub struct Prover {
    chip: Arc<Chip>,
    identity: Arc<Identity>,
    ledger: Arc<Ledger>,
    peers: Arc<Peers>,
    asked: Mutex<BTreeMap<DeviceId, Asked>>,
}

#[derive(Debug, Clone)]
struct Asked {
    again: Instant,
    pause: Duration,
    /// Why it has not attested us.
    why: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum NotAttested {
    #[error(transparent)]
    Chip(#[from] ChipError),
    #[error("{0}")]
    Refused(String),
}

impl Prover {
    /// Nobody has been asked yet.
    pub fn new(chip: Arc<Chip>, identity: Arc<Identity>, ledger: Arc<Ledger>, peers: Arc<Peers>) -> Prover {
        Prover { chip, identity, ledger, peers, asked: Mutex::default() }
    }

    /// Keeps the device attested, until `stop` (which pauses so long). The body of a thread.
    pub fn keep(&self, stop: impl Fn(Duration) -> bool) {
        while !stop(LOOK) {
            let state = self.ledger.replica().effective();
            for witness in self.unconvinced(&state) {
                if !self.is_due(&witness) || stop(Duration::ZERO) {
                    continue;
                }
                match self.chip.show() {
                    Ok(Some(shown)) => self.note(witness, self.prove_to(&state, witness, &shown)),
                    Ok(None) => return, // no chip will ever come
                    Err(error) => self.note(witness, Err(ChipError::from(error).into())),
                }
            }
        }
    }

    /// Why witnesses have not attested this device, as far as they were asked.
    pub fn refusals(&self) -> Vec<(DeviceId, String)> {
        let missing = self.unconvinced(&self.ledger.replica().effective());
        let asked = self.lock();
        missing.into_iter().filter_map(|w| Some((w, asked.get(&w)?.why.clone()?))).collect()
    }

    /// Witnesses that have not attested this device; none when it cannot ask, or when enough have.
    fn unconvinced(&self, state: &State) -> Vec<DeviceId> {
        let us = self.identity.device();
        let Some(device) = state.devices.get(&us).filter(|_| self.identity.delegated(state)) else { return Vec::new() };
        if matches!(state.attested(&us), Attested::ByWitnesses(_)) {
            return Vec::new();
        }
        let convinced = |w: &DeviceId| device.attestations.contains_key(&AuthorId::from(*w));
        state.active_witnesses().into_iter().filter(|w| *w != us && !convinced(w)).collect()
    }

    fn is_due(&self, witness: &DeviceId) -> bool {
        self.lock().get(witness).is_none_or(|asked| asked.again <= Instant::now())
    }

    fn note(&self, witness: DeviceId, came: Result<(), NotAttested>) {
        let mut asked = self.lock();
        let before = asked.get(&witness).map_or(PAUSE_FIRST / 2, |a| a.pause);
        let (pause, why) = match came {
            Ok(()) => (PAUSE_BELIEVED, None),
            Err(error) => ((before * 2).min(PAUSE_MAX), Some(mayfly_ledger_client::with_cause(&error))),
        };
        match &why {
            None => tracing::info!(%witness, "a witness believes this device's chip"),
            Some(why) => tracing::info!(%witness, %why, "a witness has not attested this device"),
        }
        asked.insert(witness, Asked { again: Instant::now() + pause, pause, why });
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<DeviceId, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn prove_to(&self, state: &State, witness: DeviceId, shown: &Shown) -> Result<(), NotAttested> {
        let begin = AttestBegin { keys: shown.keys.clone(), registers: shown.registers };
        let challenge = match self.ask(witness, AttestAsk::Begin(begin))? {
            Reply::Challenge(challenge) => challenge,
            other => return Err(unexpected(other)),
        };
        // For this witness only: it must not be able to pass a challenge of another's on to us.
        let context = enrolment_context(&state.network, &self.identity.device(), &AuthorId::from(witness));
        let began = clock::boot_ms();
        let proof = self.chip.prove(&challenge, &[context])?;
        tracing::debug!(%witness, took_ms = clock::boot_ms() - began, "the chip answered a challenge");
        match self.ask(witness, AttestAsk::Prove(proof))? {
            Reply::Attested => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    fn ask(&self, witness: DeviceId, ask: AttestAsk) -> Result<Reply, NotAttested> {
        let mut exchange = Exchange::new(&self.peers);
        exchange.ask(witness, Box::new(move |_| Ok(Ask::Attest(ask.clone()))));
        let mut came = Err("it did not answer".to_owned());
        exchange.wait(Instant::now() + ANSWER_TIMEOUT, |_, outcome| {
            came = match outcome {
                Outcome::Answer(reply, _) => Ok(reply),
                Outcome::Lost(why) => Err(why),
            };
        });
        came.map_err(NotAttested::Refused)
    }
}

fn unexpected(reply: Reply) -> NotAttested {
    match reply {
        Reply::Refused(refused) => NotAttested::Refused(refused.text),
        _ => NotAttested::Refused("it answered something else".into()),
    }
}
