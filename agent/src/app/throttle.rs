//! Wrong PINs cost time, and only the one who gives them.
//!
//! Per user of this host, token and PIN: one PIN is looked at at a time, the first few wrong ones are free, then each attempt waits, twice as
//! long as the one before, up to a bound. Others' attempts are not touched. Time is a parameter; the caller waits ([`Gate`]).

use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mayfly_protocol::TokenId;

/// Wrong PINs before the first delay.
pub const FREE_ATTEMPTS: u32 = 3;
/// The first delay; doubles with each further wrong PIN.
pub const DELAY_FIRST: Duration = Duration::from_millis(500);
/// The longest delay between two attempts.
pub const DELAY_MAX: Duration = Duration::from_secs(16);
/// An attempt that has waited so long, behind others or for its delay, is refused.
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// Wrong PINs are forgotten after so long without an attempt.
pub const FORGET_AFTER: Duration = Duration::from_secs(900);
/// Records that are kept; beyond, the oldest that nobody waits for is forgotten.
pub const RECORDS_MAX: usize = 4096;

/// Whose attempts on which PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// User of this host: [`super::principal::Peer::account`].
    pub uid: u32,
    /// The token.
    pub token: TokenId,
    /// The security officer's PIN, not the user's.
    pub security_officer: bool,
}

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// The user's earlier wrong PINs want this pause.
    For(Duration),
    /// Another PIN of the same user is being looked at.
    ForAnother,
}

#[derive(Debug)]
struct Record {
    wrong: u32,
    free_at: Instant,
    last: Instant,
    is_busy: bool,
}

/// All attempts.
#[derive(Debug, Default)]
pub struct Throttle {
    records: HashMap<Attempt, Record>,
}

impl Throttle {
    /// Lets one attempt begin at `now`. It ends with [`wrong`](Self::wrong), [`right`](Self::right) or [`undone`](Self::undone).
    ///
    /// # Errors
    /// How to wait before asking again.
    pub fn begin(&mut self, now: Instant, attempt: Attempt) -> Result<(), Wait> {
        self.forget(now);
        let fresh = Record { wrong: 0, free_at: now, last: now, is_busy: false };
        let record = self.records.entry(attempt).or_insert(fresh);
        if record.is_busy {
            return Err(Wait::ForAnother);
        }
        if record.free_at > now {
            return Err(Wait::For(record.free_at - now));
        }
        (record.is_busy, record.last) = (true, now);
        Ok(())
    }

    /// The PIN was wrong.
    pub fn wrong(&mut self, now: Instant, attempt: Attempt) {
        if let Some(record) = self.records.get_mut(&attempt) {
            record.wrong = record.wrong.saturating_add(1);
            record.free_at = now + delay(record.wrong);
            (record.is_busy, record.last) = (false, now);
        }
    }

    /// The PIN was right.
    pub fn right(&mut self, attempt: Attempt) {
        self.records.remove(&attempt);
    }

    /// It was not found out whether the PIN was right.
    pub fn undone(&mut self, attempt: Attempt) {
        if let Some(record) = self.records.get_mut(&attempt) {
            record.is_busy = false;
        }
    }

    /// Wrong PINs since the last right one.
    pub fn wrong_count(&self, attempt: Attempt) -> u32 {
        self.records.get(&attempt).map_or(0, |record| record.wrong)
    }

    fn forget(&mut self, now: Instant) {
        if self.records.len() < RECORDS_MAX {
            return;
        }
        self.records.retain(|_, record| record.is_busy || record.last.max(record.free_at) + FORGET_AFTER > now);
        while self.records.len() >= RECORDS_MAX {
            let idle = self.records.iter().filter(|(_, record)| !record.is_busy);
            let Some(oldest) = idle.min_by_key(|(_, record)| record.last).map(|(attempt, _)| *attempt) else { return };
            self.records.remove(&oldest);
        }
    }
}

fn delay(wrong: u32) -> Duration {
    match wrong.checked_sub(FREE_ATTEMPTS) {
        None => Duration::ZERO,
        Some(beyond) => DELAY_FIRST.saturating_mul(1 << beyond.min(16)).min(DELAY_MAX),
    }
}

/// The throttle, and where its users wait.
#[derive(Debug, Default)]
pub struct Gate {
    throttle: Mutex<Throttle>,
    ended: Condvar,
}

impl Gate {
    fn lock(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for an attempt's turn, runs `check` (is the PIN right?) and notes its outcome.
    ///
    /// # Errors
    /// `Err(None)`: [`WAIT_MAX`] has passed; `Err(Some)`: what `check` says.
    pub fn attempt<E>(&self, attempt: Attempt, check: impl FnOnce() -> Result<bool, E>) -> Result<bool, Option<E>> {
        self.wait_for_turn(attempt, Instant::now() + WAIT_MAX).map_err(|TooLong| None)?;
        let mut turn = Turn { gate: self, attempt, outcome: None };
        let outcome = check();
        turn.outcome = outcome.as_ref().ok().copied();
        drop(turn);
        outcome.map_err(Some)
    }

    fn wait_for_turn(&self, attempt: Attempt, until: Instant) -> Result<(), TooLong> {
        let mut throttle = self.lock();
        loop {
            let now = Instant::now();
            let pause = match throttle.begin(now, attempt) {
                Ok(()) => return Ok(()),
                Err(Wait::For(pause)) => pause,
                Err(Wait::ForAnother) => WAIT_MAX,
            };
            let left = until.saturating_duration_since(now);
            if left.is_zero() {
                return Err(TooLong);
            }
            throttle = self.ended.wait_timeout(throttle, pause.min(left)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Wrong PINs since the last right one.
    pub fn wrong_count(&self, attempt: Attempt) -> u32 {
        self.lock().wrong_count(attempt)
    }
}

struct TooLong;

/// An attempt under way; ends also when its check panics.
struct Turn<'g> {
    gate: &'g Gate,
    attempt: Attempt,
    outcome: Option<bool>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut throttle = self.gate.lock();
        match self.outcome {
            Some(true) => throttle.right(self.attempt),
            Some(false) => throttle.wrong(Instant::now(), self.attempt),
            None => throttle.undone(self.attempt),
        }
        self.gate.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MALLORY: Attempt = Attempt { uid: 1, token: TokenId([1; 32]), security_officer: false };

    fn guess(throttle: &mut Throttle, now: Instant, attempt: Attempt) -> Result<(), Wait> {
        throttle.begin(now, attempt)?;
        throttle.wrong(now, attempt);
        Ok(())
    }

    #[test]
    fn delays_grow_to_a_bound() {
        let seconds: Vec<f64> = (0..12).map(|wrong| delay(wrong).as_secs_f64()).collect();
        assert_eq!(seconds, [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0, 16.0]);
        assert_eq!(delay(u32::MAX), DELAY_MAX);
    }

    #[test]
    fn only_the_guilty_wait() {
        let (mut throttle, mut now) = (Throttle::default(), Instant::now());
        let mut guesses = 0;
        // An hour of trying without a pause.
        let end = now + Duration::from_secs(3600);
        while now < end {
            match guess(&mut throttle, now, MALLORY) {
                Ok(()) => guesses += 1,
                Err(Wait::For(pause)) => now += pause,
                Err(Wait::ForAnother) => unreachable!(),
            }
        }
        assert!((220..240).contains(&guesses), "{guesses} guesses in an hour");
        for other in [
            Attempt { uid: 2, ..MALLORY },
            Attempt { token: TokenId([2; 32]), ..MALLORY },
            Attempt { security_officer: true, ..MALLORY },
        ] {
            assert_eq!(throttle.begin(now, other), Ok(()), "{other:?}");
        }
        assert_eq!(throttle.begin(now + DELAY_MAX, MALLORY), Ok(()), "the bound holds for the patient too");
        throttle.right(MALLORY);
        assert_eq!((throttle.wrong_count(MALLORY), throttle.begin(now, MALLORY)), (0, Ok(())));
    }

    #[test]
    fn attempts_in_parallel_gain_nothing() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        assert_eq!(throttle.begin(now, MALLORY), Ok(()));
        assert_eq!(throttle.begin(now, MALLORY), Err(Wait::ForAnother));
        throttle.undone(MALLORY);
        assert_eq!(throttle.begin(now, MALLORY), Ok(()));

        let gate = Gate::default();
        let at_once = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let check = || {
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(at_once.fetch_add(1, SeqCst), 0);
                        std::thread::sleep(Duration::from_millis(5));
                        at_once.fetch_sub(1, SeqCst);
                        Ok::<_, ()>(false)
                    };
                    assert_eq!(gate.attempt(MALLORY, check), Ok(false));
                });
            }
        });
        assert_eq!(gate.wrong_count(MALLORY), 3);
        let start = Instant::now();
        assert_eq!(gate.attempt(MALLORY, || Ok::<_, ()>(true)), Ok(true));
        assert!(start.elapsed() >= DELAY_FIRST - Duration::from_millis(50), "{:?}", start.elapsed());
        assert_eq!(gate.wrong_count(MALLORY), 0);
    }

    #[test]
    fn a_check_that_fails_or_panics_frees_the_place() {
        let gate = Gate::default();
        assert_eq!(gate.attempt(MALLORY, || Err::<bool, _>("no memory")), Err(Some("no memory")));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = gate.attempt(MALLORY, || -> Result<bool, ()> { panic!("defect") });
        }));
        assert!(panicked.is_err());
        assert_eq!(gate.attempt(MALLORY, || Ok::<_, ()>(true)), Ok(true));
    }

    #[test]
    fn memory_is_bounded_and_old_records_go_first() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for uid in 0..RECORDS_MAX as u32 + 10 {
            let _ = guess(&mut throttle, start + Duration::from_millis(uid.into()), Attempt { uid, ..MALLORY });
        }
        assert_eq!(throttle.records.len(), RECORDS_MAX);
        assert_eq!(throttle.wrong_count(Attempt { uid: 0, ..MALLORY }), 0);
        let _ = guess(&mut throttle, start + 2 * FORGET_AFTER, MALLORY);
        assert_eq!(throttle.records.len(), 1, "all others are forgotten");
    }
}
