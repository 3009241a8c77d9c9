//! Wrong PINs cost time, and only the one who gives them.
//!
//! Per user of this host, token and PIN: the first few wrong PINs are free, then each attempt waits, twice as long as the one before, up
//! to a bound. Waiting attempts queue; a queue that would take too long is refused at once. Others' attempts are not touched. Time is
//! a parameter; the caller sleeps.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use mayfly_protocol::TokenId;

/// Wrong PINs before the first delay.
pub const FREE_ATTEMPTS: u32 = 3;
/// The first delay; doubles with each further wrong PIN.
pub const DELAY_FIRST: Duration = Duration::from_millis(500);
/// The longest delay between two attempts.
pub const DELAY_MAX: Duration = Duration::from_secs(16);
/// An attempt that would wait longer than this behind others is refused.
pub const WAIT_MAX: Duration = Duration::from_secs(20);
/// Wrong PINs are forgotten after so long without an attempt.
pub const FORGET_AFTER: Duration = Duration::from_secs(900);
/// Records that are kept; beyond, the oldest is forgotten.
pub const RECORDS_MAX: usize = 4096;

/// Whose attempts on which PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Attempt {
    /// User of this host.
    pub uid: u32,
    /// The token.
    pub token: TokenId,
    /// The security officer's PIN, not the user's.
    pub security_officer: bool,
}

/// Too many attempts are waiting already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooMany {
    /// When to try again.
    pub retry: Duration,
}

#[derive(Debug)]
struct Record {
    wrong: u32,
    free_at: Instant,
    last: Instant,
}

/// All attempts.
#[derive(Debug, Default)]
pub struct Throttle {
    records: HashMap<Attempt, Record>,
}

impl Throttle {
    /// Admits an attempt at `now`: how long to wait before the PIN is looked at.
    ///
    /// # Errors
    /// [`TooMany`].
    pub fn admit(&mut self, now: Instant, attempt: Attempt) -> Result<Duration, TooMany> {
        let Some(record) = self.records.get_mut(&attempt) else { return Ok(Duration::ZERO) };
        let start = record.free_at.max(now);
        let wait = start - now;
        if wait > WAIT_MAX {
            return Err(TooMany { retry: wait });
        }
        // Taken before the outcome is known, so that attempts in parallel gain nothing.
        record.free_at = start + delay(record.wrong);
        record.last = start;
        Ok(wait)
    }

    /// The PIN was wrong.
    pub fn wrong(&mut self, now: Instant, attempt: Attempt) {
        self.forget(now);
        let record = self.records.entry(attempt).or_insert(Record { wrong: 0, free_at: now, last: now });
        record.wrong = record.wrong.saturating_add(1);
        record.free_at = record.free_at.max(now + delay(record.wrong));
        record.last = now;
    }

    /// The PIN was right.
    pub fn right(&mut self, attempt: Attempt) {
        self.records.remove(&attempt);
    }

    /// Wrong PINs since the last right one.
    pub fn wrong_count(&self, attempt: Attempt) -> u32 {
        self.records.get(&attempt).map_or(0, |record| record.wrong)
    }

    fn forget(&mut self, now: Instant) {
        if self.records.len() < RECORDS_MAX {
            return;
        }
        self.records.retain(|_, record| record.last.max(record.free_at) + FORGET_AFTER > now);
        while self.records.len() >= RECORDS_MAX {
            let oldest = self.records.iter().min_by_key(|(_, record)| record.last).map(|(attempt, _)| *attempt);
            let Some(oldest) = oldest else { return };
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

#[cfg(test)]
mod tests {
    use super::*;

    const MALLORY: Attempt = Attempt { uid: 1, token: TokenId([1; 32]), security_officer: false };

    #[test]
    fn delays_grow_to_a_bound() {
        let seconds: Vec<f64> = (0..12).map(|wrong| delay(wrong).as_secs_f64()).collect();
        assert_eq!(seconds, [0.0, 0.0, 0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 16.0, 16.0, 16.0]);
        assert_eq!(delay(u32::MAX), DELAY_MAX);
    }

    #[test]
    fn only_the_guilty_wait() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        for _ in 0..5 {
            assert!(throttle.admit(now, MALLORY).is_ok());
            throttle.wrong(now, MALLORY);
        }
        assert_eq!(throttle.admit(now, MALLORY), Ok(Duration::from_secs(2)));
        for other in [
            Attempt { uid: 2, ..MALLORY },
            Attempt { token: TokenId([2; 32]), ..MALLORY },
            Attempt { security_officer: true, ..MALLORY },
        ] {
            assert_eq!(throttle.admit(now, other), Ok(Duration::ZERO), "{other:?}");
        }
        throttle.right(MALLORY);
        assert_eq!(throttle.admit(now, MALLORY), Ok(Duration::ZERO));
    }

    #[test]
    fn attempts_in_parallel_queue_and_the_queue_is_bounded() {
        let (mut throttle, now) = (Throttle::default(), Instant::now());
        (0..8).for_each(|_| throttle.wrong(now, MALLORY));
        let first = throttle.admit(now, MALLORY).unwrap();
        assert_eq!(first, DELAY_MAX);
        let TooMany { retry } = throttle.admit(now, MALLORY).unwrap_err();
        assert_eq!(retry, 2 * DELAY_MAX);
        let later = now + 2 * DELAY_MAX;
        assert_eq!(throttle.admit(later, MALLORY), Ok(Duration::ZERO), "the bound holds for the patient too");
    }

    #[test]
    fn memory_is_bounded_and_old_records_go_first() {
        let (mut throttle, start) = (Throttle::default(), Instant::now());
        for uid in 0..RECORDS_MAX as u32 + 10 {
            throttle.wrong(start + Duration::from_millis(uid.into()), Attempt { uid, ..MALLORY });
        }
        assert_eq!(throttle.records.len(), RECORDS_MAX);
        assert_eq!(throttle.wrong_count(Attempt { uid: 0, ..MALLORY }), 0);
        throttle.wrong(start + 2 * FORGET_AFTER, MALLORY);
        assert_eq!(throttle.records.len(), 1, "all others are forgotten");
    }
}
