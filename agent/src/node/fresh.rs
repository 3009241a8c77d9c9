//! Drives rounds of freshness: asks the witnesses, keeps the result, tells what time it is.

use super::clock;
use super::directory::Ledger;
use super::peers::{Exchange, Outcome, Peers};
use arc_swap::ArcSwapOption;
use mayfly_protocol::freshness::{Freshness, NONCE_BYTES, NotFresh, Round, Verdict};
use mayfly_protocol::peer::{Ask, Reply};
use mayfly_protocol::rules::Clocks;
use mayfly_protocol::{DeviceId, State};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest time of one round.
pub const ROUND_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a round that failed.
const RETRY: Duration = Duration::from_secs(1);
/// How often a round that waits for the ledger looks at other witnesses' answers.
const CATCH_UP_LOOK: Duration = Duration::from_millis(20);
/// Longest pause between looks whether a round is due.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// What the last rounds came to.
#[derive(Debug)]
pub struct Fresh {
    device: DeviceId,
    ledger: Arc<Ledger>,
    peers: Arc<Peers>,
    current: ArcSwapOption<Freshness>,
    rounds: Rounds,
    /// Witnesses whose newest statement contradicted our ledger, and its size.
    contradicting: Mutex<BTreeMap<DeviceId, u64>>,
}

impl Fresh {
    /// Nothing is fresh yet.
    pub fn new(device: DeviceId, ledger: Arc<Ledger>, peers: Arc<Peers>) -> Self {
        let (rounds, contradicting) = Default::default();
        Self { device, ledger, peers, current: ArcSwapOption::empty(), rounds, contradicting }
    }

    /// Both times, if the last round is good still.
    ///
    /// # Errors
    /// [`NotFresh`].
    #[inline]
    pub fn clocks(&self) -> Result<Clocks, NotFresh> {
        match &*self.current.load() {
            Some(fresh) => fresh.clocks(clock::boot_ms(), clock::local_ms()),
            None => Err(NotFresh::Never),
        }
    }

    /// Both times; when the last round is not good any more, after a new one (or the one that is under way), within `patience`.
    ///
    /// # Errors
    /// [`NotFresh`], of that round.
    #[inline]
    pub fn ensure(&self, patience: Duration) -> Result<Clocks, NotFresh> {
        match self.clocks() {
            Ok(clocks) => Ok(clocks),
            Err(_) => self.round(patience).and_then(|()| self.clocks()),
        }
    }

    /// The last successful round, however old.
    pub fn last(&self) -> Option<Arc<Freshness>> {
        self.current.load_full()
    }

    /// Why the last round failed, if it did.
    pub fn last_failure(&self) -> Option<NotFresh> {
        self.rounds.lock().last.clone().err()
    }

    /// Size of the head by which this witness contradicted our ledger in its newest statement, if it did.
    pub fn contradiction_of(&self, witness: &DeviceId) -> Option<u64> {
        self.contradicting.lock().unwrap_or_else(PoisonError::into_inner).get(witness).copied()
    }

    /// Does a round, or waits for the one that is under way.
    ///
    /// # Errors
    /// [`NotFresh`].
    pub fn round(&self, patience: Duration) -> Result<(), NotFresh> {
        let deadline = Instant::now() + patience.min(ROUND_TIMEOUT);
        self.rounds.one(deadline, || self.conduct(deadline))
    }

    fn conduct(&self, deadline: Instant) -> Result<(), NotFresh> {
        let view = self.ledger.view();
        let mut nonce = [0; NONCE_BYTES];
        mayfly_secmem::random(&mut nonce).map_err(|_| NotFresh::Never)?;
        let mut round = Round::new(&view.effective, self.device, nonce, clock::boot_ms())?;
        let (ask, mut exchange) = (round.ask(view.tip.head()), Exchange::new(&self.peers));
        let replica = self.ledger.replica();
        for witness in round.witnesses().to_vec() {
            if self.ledger.alarms().banned(&witness) {
                continue;
            }
            if witness == self.device {
                // It counts itself, with what it has verified by now.
                let _ = round.take_own(view.tip.head(), clock::local_ms(), clock::boot_ms());
            } else {
                exchange.ask(witness, Box::new(move |_| Ok(Ask::Fresh(ask))));
            }
        }
        loop {
            let tip = replica.tip();
            self.name_contradicting(&round, &tip);
            let why = match round.judge(&tip, clock::local_ms()) {
                Verdict::Fresh(freshness) => {
                    self.current.store(Some(Arc::new(freshness)));
                    return Ok(());
                }
                Verdict::Not(why) => why,
            };
            if let NotFresh::Fork { .. } = why {
                tracing::error!(%why, "freshness");
                self.current.store(None);
                return Err(why);
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(why);
            }
            match why {
                // Others may yet say that what we have is enough; meanwhile what is missing may arrive.
                NotFresh::Behind { .. } if exchange.pending() > 0 => {
                    exchange
                        .wait(deadline.min(now + CATCH_UP_LOOK), |device, came| self.take(&mut round, device, came));
                }
                NotFresh::Behind { size, .. } => {
                    replica.wait_tip(|tip| tip.size() >= size, deadline - now).map_err(|_| why)?;
                }
                _ if exchange.pending() == 0 => return Err(why),
                _ => {
                    exchange.wait(deadline, |device, came| self.take(&mut round, device, came));
                }
            }
        }
    }

    fn take(&self, round: &mut Round, device: DeviceId, came: Outcome<'_>) {
        let Outcome::Answer(Reply::Fresh(statement), _) = came else { return };
        if statement.witness != device {
            return;
        }
        if let Err(error) = round.take(&self.ledger.replica().tip(), &statement, clock::local_ms(), clock::boot_ms()) {
            tracing::warn!(witness = %device, %error, "a witness's statement does not count");
        }
    }

    /// One lying witness stops nobody, but people must hear of it.
    fn name_contradicting(&self, round: &Round, tip: &State) {
        let mut known = self.contradicting.lock().unwrap_or_else(PoisonError::into_inner);
        let now = round.contradicting(tip);
        known.retain(|witness, _| !round.has_answered(witness) || now.iter().any(|(w, _)| w == witness));
        for (witness, size) in now {
            if known.insert(witness, size).is_none() {
                tracing::error!(%witness, name = tip.device_name(&witness), size,
                    "a witness stated a head that contradicts this device's ledger; its word does not count");
            }
        }
    }

    /// Keeps fresh until `stop` says so: a round each third of the allowed age. The body of a thread.
    pub fn keep(&self, stop: impl Fn(Duration) -> bool) {
        let mut pause = Duration::ZERO;
        while !stop(pause) {
            pause = match self.due_in() {
                Some(left) if !left.is_zero() => left.min(LOOK_MAX),
                _ => match self.round(ROUND_TIMEOUT) {
                    Ok(()) => self.due_in().unwrap_or(RETRY).min(LOOK_MAX),
                    Err(_) => RETRY,
                },
            };
        }
    }

    /// Time until the next round is due; `None`: there was none.
    fn due_in(&self) -> Option<Duration> {
        let due = self.current.load().as_ref()?.renew_boot_ms();
        Some(Duration::from_millis(due.saturating_sub(clock::boot_ms())))
    }
}

/// One round at a time; whoever needs one while it is under way waits for it.
#[derive(Debug)]
struct Rounds {
    running: Mutex<Running>,
    ended: Condvar,
}

#[derive(Debug)]
struct Running {
    /// A round is under way.
    busy: bool,
    /// Counts rounds that have ended.
    rounds: u64,
    last: Result<(), NotFresh>,
}

impl Default for Rounds {
    fn default() -> Self {
        let running = Running { busy: false, rounds: 0, last: Err(NotFresh::Never) };
        Self { running: Mutex::new(running), ended: Condvar::new() }
    }
}

impl Rounds {
    /// Conducts a round, or waits until `deadline` for the one that is under way.
    fn one(&self, deadline: Instant, conduct: impl FnOnce() -> Result<(), NotFresh>) -> Result<(), NotFresh> {
        let mut running = self.lock();
        if running.busy {
            let before = running.rounds;
            while running.busy && running.rounds == before {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                running = self.ended.wait_timeout(running, left).unwrap_or_else(PoisonError::into_inner).0;
            }
            return running.last.clone();
        }
        running.busy = true;
        drop(running);
        let mut ends = RoundEnds { rounds: self, outcome: Err(NotFresh::Never) };
        ends.outcome = conduct();
        ends.outcome.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a round when it is dropped: however it ended, by a panic too, the next one can begin.
struct RoundEnds<'r> {
    rounds: &'r Rounds,
    outcome: Result<(), NotFresh>,
}

impl Drop for RoundEnds<'_> {
    fn drop(&mut self) {
        let mut running = self.rounds.lock();
        running.busy = false;
        running.rounds += 1;
        running.last.clone_from(&self.outcome);
        self.rounds.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_that_panicked_does_not_block_the_next() {
        let (rounds, deadline) = (Rounds::default(), Instant::now() + Duration::from_millis(100));
        let panics = std::panic::AssertUnwindSafe(|| rounds.one(deadline, || panic!("in a round")));
        assert!(std::panic::catch_unwind(panics).is_err());
        let mut conducted = false;
        let good = rounds.one(deadline, || {
            conducted = true;
            Ok(())
        });
        assert_eq!((good, conducted), (Ok(()), true));
        assert_eq!(rounds.lock().last, Ok(()));
    }
}
