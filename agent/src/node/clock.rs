//! The two clocks: wall time, and time since boot.

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Milliseconds since the Unix epoch by this device's clock.
#[inline]
pub(crate) fn local_ms() -> u64 {
    millis(clock_gettime(ClockId::Realtime))
}

/// Milliseconds since boot, suspend included; never set back.
#[inline]
pub(crate) fn boot_ms() -> u64 {
    millis(clock_gettime(ClockId::Boottime))
}

fn millis(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanos / 1_000_000)
}
