//! How fast one assembler gets shards: a bucket of tokens each, so that a broken-into assembler cannot take all keys at once.

use mayfly_protocol::DeviceId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Assemblers whose buckets are kept; beyond, full buckets are forgotten.
const BUCKETS_MAX: usize = 4096;

/// A bound for each assembler. A bucket holds what two seconds allow; a request for more takes all of a full one.
#[derive(Debug)]
pub struct RateLimit {
    per_second: u32,
    buckets: Mutex<HashMap<DeviceId, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a use.
    level: u64,
    at_ms: u64,
}

impl RateLimit {
    /// So many uses per second; 0: no bound.
    pub fn new(per_second: u32) -> Self {
        Self { per_second, buckets: Mutex::default() }
    }

    /// The bound; 0: none.
    pub fn per_second(&self) -> u32 {
        self.per_second
    }

    /// Whether `uses` more are allowed at `now_ms` (a clock that is never set back), and counts them if so.
    pub fn take(&self, device: &DeviceId, uses: u32, now_ms: u64) -> bool {
        if self.per_second == 0 {
            return true;
        }
        let full = u64::from(self.per_second) * 2000;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX && !buckets.contains_key(device) {
            buckets.retain(|_, b| self.level(b, now_ms) < full);
        }
        let bucket = buckets.entry(*device).or_insert(Bucket { level: full, at_ms: now_ms });
        let level = self.level(bucket, now_ms);
        let cost = (u64::from(uses) * 1000).min(full);
        let allowed = cost <= level;
        *bucket = Bucket { level: if allowed { level - cost } else { level }, at_ms: now_ms };
        allowed
    }

    fn level(&self, bucket: &Bucket, now_ms: u64) -> u64 {
        let gained = now_ms.saturating_sub(bucket.at_ms).saturating_mul(u64::from(self.per_second));
        bucket.level.saturating_add(gained).min(u64::from(self.per_second) * 2000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_rate_and_each_device_for_itself() {
        let (one, two) = (DeviceId([1; 32]), DeviceId([2; 32]));
        let limit = RateLimit::new(10);
        for (device, uses, at, allowed) in [
            (one, 20, 0, true),
            (one, 1, 0, false),
            (two, 20, 0, true),
            (one, 1, 99, false),
            (one, 1, 100, true),
            (one, 11, 1100, false),
            (one, 10, 1100, true),
            (one, 21, 1_000_000, true),
            (one, 1, 1_000_000, false),
            (one, 500, 1_001_999, false),
            (one, 500, 1_002_000, true),
        ] {
            assert_eq!(limit.take(&device, uses, at), allowed, "{uses} at {at}");
        }
        assert!(RateLimit::new(0).take(&one, u32::MAX, 0));
    }
}
