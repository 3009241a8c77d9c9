//! The witness's side: makes challenges for devices that ask, judges their answers, and posts what it saw.
//!
//! Whoever has an invitation can ask, so everything is bounded: one challenge for a device, for five minutes and one answer; so many
//! challenges in all; a pause between two of the same device.

use super::{Challenged, NotBelieved, Roots, challenge, evidence};
use crate::node::clock;
use crate::node::directory::Ledger;
use crate::node::identity::Records;
use crate::node::peers::Caller;
use mayfly_attest::judge::CHALLENGE_MS_MAX;
use mayfly_ledger_client::with_cause;
use mayfly_protocol::attested::enrolment_context;
use mayfly_protocol::peer::{AttestAsk, AttestBegin, Cause, Refused, Reply};
use mayfly_protocol::record::{Attest, DeviceRole};
use mayfly_protocol::{AuthorId, DeviceId, Record, State};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Most devices that are remembered for a challenge.
const CHALLENGES_MAX: usize = 256;
/// Shortest time between two challenges for one device.
const BEGIN_PAUSE: Duration = Duration::from_secs(2);
/// Statements that wait to be posted.
const QUEUE_MAX: usize = 64;
/// How long the ledger may take to take a statement.
const POST_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the posting thread looks whether it is to end.
const LOOK: Duration = Duration::from_secs(1);

/// What a witness needs to attest devices.
#[derive(Debug)]
pub struct Attester {
    device: DeviceId,
    ledger: Arc<Ledger>,
    roots: Option<Roots>,
    open: Mutex<HashMap<DeviceId, Open>>,
    statements: SyncSender<Attest>,
    queue: Mutex<Receiver<Attest>>,
}

#[derive(Debug)]
struct Open {
    began: Instant,
    /// Taken by the answer.
    challenged: Option<Challenged>,
}

/// Why a device is not attested.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("this device is not a witness")]
    NoWitness,
    #[error("this witness has no makers' certificates to judge chips by (`[attestation] roots` in its configuration)")]
    NoRoots,
    #[error("this witness has attested the device already")]
    Already,
    #[error("the device has not joined")]
    Unknown,
    #[error("too soon after the last challenge")]
    TooSoon,
    #[error("this witness makes too many challenges at the moment")]
    Busy,
    #[error("no challenge is open; ask for a new one")]
    NoChallenge,
    #[error("its registers are others than attested or approved; an administrator may attest it anew")]
    Registers,
    #[error("the chip is not believed")]
    NotBelieved(#[from] NotBelieved),
    #[error("{0}")]
    Rule(String),
}

impl Attester {
    /// With the operator's makers; without, nothing is attested.
    pub fn new(device: DeviceId, ledger: Arc<Ledger>, roots: Option<Roots>) -> Attester {
        let (statements, queue) = sync_channel(QUEUE_MAX);
        Attester { device, ledger, roots, open: Mutex::default(), statements, queue: Mutex::new(queue) }
    }

    /// Answers a device. Takes milliseconds: what it saw is posted by [`Attester::post`].
    pub fn answer(&self, caller: &Caller, ask: AttestAsk) -> Reply {
        let answer = match ask {
            AttestAsk::Begin(begin) => self.begin(&caller.device, &begin, Instant::now()),
            AttestAsk::Prove(proof) => self.judge(&caller.device, &proof),
        };
        answer.unwrap_or_else(|denied| {
            tracing::info!(device = %caller.device, why = with_cause(&denied), "a device is not attested");
            let cause = match denied {
                Denied::TooSoon | Denied::Busy => Cause::Busy,
                _ => Cause::Denied,
            };
            Reply::Refused(Refused::new(cause, with_cause(&denied), self.ledger.replica().tip().head()))
        })
    }

    fn begin(&self, device: &DeviceId, begin: &AttestBegin, now: Instant) -> Result<Reply, Denied> {
        let view = self.ledger.view();
        if !view.member(&self.device).is_some_and(|d| d.has_role(DeviceRole::Witness)) {
            return Err(Denied::NoWitness);
        }
        let roots = self.roots.as_ref().ok_or(Denied::NoRoots)?;
        let known = view.effective.devices.get(device).ok_or(Denied::Unknown)?;
        let said = |state: &State| {
            state.devices.get(device).is_some_and(|d| d.attestations.contains_key(&AuthorId::from(self.device)))
        };
        if said(&view.effective) || said(&view.tip) {
            return Err(Denied::Already);
        }
        self.make_room(device, now)?;
        let context = enrolment_context(&view.effective.network, device, &AuthorId::from(self.device));
        let made =
            challenge(roots, (*device, &known.identity), &begin.keys, begin.registers, context, clock::local_ms());
        let (challenged, message) = made?;
        self.open().insert(*device, Open { began: now, challenged: Some(challenged) });
        Ok(Reply::Challenge(message))
    }

    /// Counts the attempt, whatever comes of it.
    fn make_room(&self, device: &DeviceId, now: Instant) -> Result<(), Denied> {
        let mut open = self.open();
        open.retain(|_, o| now.duration_since(o.began).as_millis() <= u128::from(CHALLENGE_MS_MAX));
        if open.get(device).is_some_and(|o| now.duration_since(o.began) < BEGIN_PAUSE) {
            return Err(Denied::TooSoon);
        }
        if open.len() >= CHALLENGES_MAX && !open.contains_key(device) {
            return Err(Denied::Busy);
        }
        open.insert(*device, Open { began: now, challenged: None });
        Ok(())
    }

    fn judge(&self, device: &DeviceId, proof: &[u8]) -> Result<Reply, Denied> {
        let challenged = self.open().get_mut(device).and_then(|o| o.challenged.take()).ok_or(Denied::NoChallenge)?;
        let statement = challenged.judge(proof, clock::local_ms())?;
        let tip = self.ledger.replica().tip();
        check_registers(&tip, &statement)?;
        let author = AuthorId::from(self.device);
        tip.check_chip(&author, &statement).map_err(|refusal| Denied::Rule(refusal.to_string()))?;
        self.statements.try_send(statement).map_err(|_| Denied::Busy)?;
        Ok(Reply::Attested)
    }

    /// Posts what was seen, until `stop`. What the ledger does not take is forgotten: the device asks again. The body of a thread.
    pub fn post(&self, records: &Records, stop: impl Fn() -> bool) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while !stop() {
            match queue.recv_timeout(LOOK) {
                Ok(statement) => {
                    let device = statement.device;
                    match records.post(&Record::Attest(statement), POST_TIMEOUT) {
                        Ok(index) => tracing::info!(%device, index, "this witness has attested a device"),
                        Err(error) => {
                            tracing::warn!(%device, error = with_cause(&error), "an attestation is not on the ledger")
                        }
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<DeviceId, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A device whose chip is known does not get other registers attested by asking the next witness: that would be a way around approval.
fn check_registers(state: &State, statement: &Attest) -> Result<(), Denied> {
    let is_settled = state.devices.get(&statement.device).is_some_and(|d| d.chip.is_some());
    if !is_settled || evidence::are_expected(state, &statement.device, &statement.registers) {
        return Ok(());
    }
    Err(Denied::Registers)
}
