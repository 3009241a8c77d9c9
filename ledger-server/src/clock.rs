//! The gateway's clock, held against the witnesses'. Time on a ledger never goes back, and a leaf at a wrong time is there for ever: one that is
//! dated far ahead ends every session after it, one that is dated too early is cosigned by nobody, nor is anything above it. So nothing is
//! sequenced at a time that no quorum of the witnesses would cosign: a witness agrees with a clock within the network's skew of its own.
//! Pure.
//!
//! Witnesses are asked again and again ([`mayfly_protocol::sync::FromGateway::AskTime`]), so a wrong clock that was set right, theirs or
//! this one, is soon believed again, and so is a host that did not notice how time went by (a paused virtual machine). Until they have been
//! asked after such a pause, the times before it stand; where witnesses stay away, there is nothing to compare with.
//!
//! It must never judge by what a quorum could not overrule: one witness that lies changes nothing where others suffice.

use mayfly_protocol::head::quorum;
use mayfly_protocol::record::DeviceRole;
use mayfly_protocol::{DeviceId, State};
use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// How long a witness's word counts. Clocks of hosts drift apart by less than 0.3 s in it (500 ppm).
const STATED_FOR: Duration = Duration::from_secs(600);

/// What time it is by the witnesses' clocks.
#[derive(Debug, Default)]
pub struct WitnessClocks(BTreeMap<DeviceId, Stated>);

/// A witness's word: its clock showed `time_ms` at some moment between these two, by a clock here that is never set.
#[derive(Debug, Clone, Copy)]
struct Stated {
    time_ms: u64,
    asked: Duration,
    heard: Duration,
}

/// This host's clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// What is put on the ledger: milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// Time since the host started, sleep included: nobody sets this clock.
    pub since_boot: Duration,
}

/// What the witnesses' clocks say of this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A quorum agrees.
    Right,
    /// Too few have told their time.
    Unknown,
}

/// This clock is wrong, or those of the witnesses are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the gateway's clock is {by_ms} ms {} those of {witnesses} witnesses, {allowed_ms} are allowed; set the wrong one right, and entries are taken again a few seconds later",
    if *is_ahead { "ahead of" } else { "behind" }
)]
pub struct WrongClock {
    /// Of the nearest of them.
    by_ms: u64,
    is_ahead: bool,
    witnesses: usize,
    allowed_ms: u64,
}

impl Moment {
    /// Now.
    pub fn now() -> Moment {
        Moment { now_ms: now_ms(), since_boot: since_boot() }
    }
}

impl WitnessClocks {
    /// `witness` was asked at `asked`, in milliseconds since the host started, and its answer was read at `heard`. Nothing is kept of
    /// devices that are no witnesses in `state`.
    pub fn stated(&mut self, state: &State, witness: DeviceId, asked: u64, time_ms: u64, heard: Duration) {
        let is_witness = |id: &DeviceId| state.devices.get(id).is_some_and(|d| d.has_role(DeviceRole::Witness));
        self.0.retain(|id, _| is_witness(id));
        if is_witness(&witness) {
            let asked = Duration::from_millis(asked).min(heard);
            self.0.insert(witness, Stated { time_ms, asked, heard });
        }
    }

    /// Judges this host's clock by the witnesses of `effective`.
    ///
    /// # Errors
    /// [`WrongClock`], when those who do not agree leave no quorum.
    pub fn judge(&self, effective: &State, here: Moment) -> Result<Verdict, WrongClock> {
        let allowed_ms = effective.policy().map_or(0, |p| p.skew_ms_max);
        let (active, needed) = (effective.active_witnesses(), quorum(effective.witnesses().len()));
        let stated = active.iter().filter_map(|id| self.0.get(id)).filter(|s| s.counts(here));
        let (agree, disagree): (Vec<_>, Vec<_>) =
            stated.map(|s| s.difference(here)).partition(|(by_ms, _)| *by_ms <= allowed_ms);
        match disagree.iter().min() {
            Some(&(by_ms, is_ahead)) if disagree.len() > active.len().saturating_sub(needed) => {
                Err(WrongClock { by_ms, is_ahead, witnesses: disagree.len(), allowed_ms })
            }
            _ if agree.len() >= needed => Ok(Verdict::Right),
            _ => Ok(Verdict::Unknown),
        }
    }
}

impl Stated {
    fn counts(&self, here: Moment) -> bool {
        here.since_boot.saturating_sub(self.heard) <= STATED_FOR
    }

    /// By how many milliseconds at least this host's clock is off, and whether it is ahead.
    fn difference(&self, here: Moment) -> (u64, bool) {
        let after = |moment: Duration| {
            let passed = here.since_boot.saturating_sub(moment).as_millis();
            self.time_ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
        };
        let (ahead_ms, behind_ms) =
            (here.now_ms.saturating_sub(after(self.asked)), after(self.heard).saturating_sub(here.now_ms));
        (ahead_ms.max(behind_ms), ahead_ms > 0)
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
    use mayfly_ledger_client::testing::{Device, Ledger, SKEW_MS, START_MS};

    /// Since boot, when a test begins.
    const BOOT_MS: u64 = 500_000;

    /// A ledger with so many witnesses.
    fn world(witnesses: usize) -> (State, Vec<Device>) {
        let mut ledger = Ledger::new();
        ledger.start();
        let devices: Vec<_> = (0..witnesses).map(|n| ledger.device(&format!("w{n}")).0).collect();
        devices.iter().for_each(|device| drop(ledger.witness(device, true)));
        (ledger.state, devices)
    }

    fn moment(now_ms: u64, passed_ms: u64) -> Moment {
        Moment { now_ms, since_boot: Duration::from_millis(BOOT_MS + passed_ms) }
    }

    fn verdict(clocks: &WitnessClocks, state: &State, here: Moment) -> Result<Verdict, (u64, bool)> {
        clocks.judge(state, here).map_err(|wrong| (wrong.by_ms, wrong.is_ahead))
    }

    #[test]
    fn a_clock_agrees_within_what_the_witness_allows_and_the_time_that_its_answer_took() {
        let (state, devices) = world(1);
        let mut clocks = WitnessClocks::default();
        assert_eq!(verdict(&clocks, &state, moment(u64::MAX, 0)), Ok(Verdict::Unknown), "nothing to compare with");
        // Asked 300 ms before the answer was read.
        clocks.stated(&state, devices[0].id(), BOOT_MS - 300, START_MS, Duration::from_millis(BOOT_MS));
        let right = Ok(Verdict::Right);
        for (passed_ms, now_ms, expected) in [
            (0, START_MS, right),
            (0, START_MS + SKEW_MS + 300, right),
            (0, START_MS + SKEW_MS + 301, Err((SKEW_MS + 1, true))),
            (0, START_MS - SKEW_MS, right),
            (0, START_MS - SKEW_MS - 1, Err((SKEW_MS + 1, false))),
            (60_000, START_MS + 60_000, right),
            (60_000, START_MS, Err((60_000, false))),
            (600_000, START_MS + 600_000 + SKEW_MS + 301, Err((SKEW_MS + 1, true))),
            (600_001, START_MS, Ok(Verdict::Unknown)),
            (0, 2_145_916_800_000, Err((2_145_916_800_000 - START_MS - 300, true))),
        ] {
            let found = verdict(&clocks, &state, moment(now_ms, passed_ms));
            assert_eq!(found, expected, "after {passed_ms}: {now_ms}");
        }
    }

    #[test]
    fn a_host_that_was_paused_is_believed_again_when_witnesses_have_been_asked_again() {
        let (state, devices) = world(1);
        let mut clocks = WitnessClocks::default();
        let mut state_time = |time_ms, passed_ms| {
            let boot_ms = BOOT_MS + passed_ms;
            clocks.stated(&state, devices[0].id(), boot_ms, time_ms, Duration::from_millis(boot_ms));
            verdict(&clocks, &state, moment(START_MS + 3_600_000, passed_ms))
        };
        // The wall clock was set after the pause; the clock that is never set knows of one second.
        assert_eq!(state_time(START_MS, 1000), Err((3_600_000, true)));
        assert_eq!(state_time(START_MS + 3_600_000, 6000), Ok(Verdict::Right));
    }

    #[test]
    fn a_quorum_decides_and_one_liar_changes_nothing() {
        let (state, devices) = world(3);
        let now = START_MS + 1_000_000_000;
        let far = now - 60_000;
        for (times, expected) in [
            (vec![now, now, now], Ok(Verdict::Right)),
            (vec![now, now], Ok(Verdict::Right)),
            (vec![now], Ok(Verdict::Unknown)),
            (vec![far], Ok(Verdict::Unknown)),
            (vec![now, far], Ok(Verdict::Unknown)),
            (vec![now, now, 0], Ok(Verdict::Right)),
            (vec![now, now, u64::MAX], Ok(Verdict::Right)),
            (vec![now, far, far], Err((60_000, true))),
            (vec![u64::MAX, far, far], Err((60_000, true))),
            (vec![now + 120_000, now + 60_000], Err((60_000, false))),
        ] {
            let mut clocks = WitnessClocks::default();
            let boot = Duration::from_millis(BOOT_MS);
            for (device, time_ms) in devices.iter().zip(&times) {
                clocks.stated(&state, device.id(), BOOT_MS, *time_ms, boot);
            }
            assert_eq!(verdict(&clocks, &state, moment(now, 0)), expected, "{times:?}");
        }
    }

    #[test]
    fn nobody_but_a_witness_is_asked_and_one_that_was_dismissed_is_forgotten() {
        let (state, devices) = world(1);
        let (without, _) = world(0);
        let boot = Duration::from_millis(BOOT_MS);
        let mut clocks = WitnessClocks::default();
        clocks.stated(&state, devices[0].id(), u64::MAX, 5, boot);
        clocks.stated(&state, DeviceId([7; 32]), 0, 5, boot);
        assert_eq!(clocks.0.keys().collect::<Vec<_>>(), [&devices[0].id()]);
        assert_eq!(clocks.0[&devices[0].id()].asked, boot, "not asked after it was heard");
        clocks.stated(&without, DeviceId([7; 32]), 0, 5, boot);
        assert!(clocks.0.is_empty());
        assert_eq!(verdict(&clocks, &without, moment(0, 0)), Ok(Verdict::Right), "none is needed");
    }
}
