//! The gateway's clock, held against the witnesses'. Time on a ledger never goes back, and a leaf at a wrong time is there for ever: one that is
//! dated far ahead ends every session after it, one that is dated too early is cosigned by nobody, nor is anything above it. So nothing is
//! sequenced while this clock differs from those of the witnesses of the newest head by more than the network's skew. Pure.
//!
//! Before the first witnessed head of a run there is nothing to compare with. Nor does anything new come while nothing is sequenced: a gateway
//! whose clock is right, and whose notion of the witnesses' is not, stands still until it is restarted. That is so after the clocks of all
//! witnesses were wrong, and after a virtual machine was paused: its clocks stood still, and only one of them is set afterwards.

use mayfly_protocol::head::Cosignature;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime};

/// Dates of cosignatures are whole seconds.
const ROUNDING_MS: u64 = 1000;
/// One in so many milliseconds that clocks may drift apart while nothing is witnessed.
const DRIFT: u64 = 1000;

/// What time it was by the witnesses of the newest head. One that lies can only widen what is allowed.
#[derive(Debug, Clone, Copy, Default)]
pub struct WitnessTime(Option<Heard>);

#[derive(Debug, Clone, Copy)]
struct Heard {
    earliest_ms: u64,
    latest_ms: u64,
    /// When, by a clock that is never set.
    at: Duration,
}

/// This clock is wrong, or those of all witnesses are, or this host did not notice how time went by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the gateway's clock is {by_ms} ms {} the witnesses' clocks, {allowed_ms} are allowed; set the wrong one right, and restart the gateway if that was not its own",
    if *is_ahead { "ahead of" } else { "behind" }
)]
pub struct WrongClock {
    by_ms: u64,
    allowed_ms: u64,
    is_ahead: bool,
}

impl WitnessTime {
    /// A head was witnessed at `at`, by these.
    pub fn heard(&mut self, cosignatures: &[Cosignature], at: Duration) {
        let times = || cosignatures.iter().map(|c| c.time_ms);
        if let (Some(earliest_ms), Some(latest_ms)) = (times().min(), times().max()) {
            self.0 = Some(Heard { earliest_ms, latest_ms, at });
        }
    }

    /// Whether a clock that shows `now_ms` at `at` agrees.
    ///
    /// # Errors
    /// [`WrongClock`].
    pub fn check(&self, now_ms: u64, at: Duration, skew_ms: u64) -> Result<(), WrongClock> {
        let Some(heard) = self.0 else { return Ok(()) };
        let passed_ms = u64::try_from(at.saturating_sub(heard.at).as_millis()).unwrap_or(u64::MAX);
        let allowed_ms = skew_ms.saturating_add(ROUNDING_MS).saturating_add(passed_ms / DRIFT);
        let ahead_ms = now_ms.saturating_sub(heard.latest_ms.saturating_add(passed_ms));
        let behind_ms = heard.earliest_ms.saturating_add(passed_ms).saturating_sub(now_ms);
        match (ahead_ms > allowed_ms, behind_ms > allowed_ms) {
            (true, _) => Err(WrongClock { by_ms: ahead_ms, allowed_ms, is_ahead: true }),
            (_, true) => Err(WrongClock { by_ms: behind_ms, allowed_ms, is_ahead: false }),
            _ => Ok(()),
        }
    }
}

/// The gateway's clock in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// Time since the host started, sleep included: nobody sets this clock.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0));
    Duration::new(seconds, nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::DeviceId;

    const START_MS: u64 = 1_700_000_000_000;
    const SKEW_MS: u64 = 10_000;

    #[test]
    fn a_clock_agrees_within_the_skew_and_what_has_drifted() {
        let signed = |time_ms| Cosignature { witness: DeviceId([1; 32]), time_ms, signature: vec![] };
        let mut time = WitnessTime::default();
        assert_eq!(time.check(u64::MAX, Duration::ZERO, SKEW_MS), Ok(()), "nothing to compare with");
        let boot = Duration::from_secs(500);
        time.heard(&[signed(START_MS), signed(START_MS + 2000)], boot);
        time.heard(&[], boot);
        let day_ms = 24 * 3600 * 1000;
        for (passed_ms, now_ms, expected) in [
            (0, START_MS, None),
            (0, START_MS + 13_000, None),
            (0, START_MS + 13_001, Some((11_001, true))),
            (0, START_MS - 11_000, None),
            (0, START_MS - 11_001, Some((11_001, false))),
            (60_000, START_MS + 60_000, None),
            (60_000, START_MS, Some((60_000, false))),
            (day_ms, START_MS + day_ms + 2000 + 11_000 + 86_400, None),
            (day_ms, START_MS + day_ms + 2000 + 11_000 + 86_401, Some((97_401, true))),
            (0, 2_145_916_800_000, Some((445_916_798_000, true))),
        ] {
            let found = time.check(now_ms, boot + Duration::from_millis(passed_ms), SKEW_MS).err();
            assert_eq!(found.map(|w| (w.by_ms, w.is_ahead)), expected, "after {passed_ms}: {now_ms}");
        }
    }
}
