//! What a witness cosigns: its own verified, synced entries, sequenced at times that its clock agrees with. Pure.
//!
//! Two bounds on the time of a leaf. It must not be ahead of this clock by more than the network's skew: checked when a head is cosigned.
//! And it must not be older than the last moment at which this replica had everything there was (less the skew), by the gateway's signed
//! word, a bookmark: whatever was sequenced after that moment carries a later time. This is checked when a bundle arrives, since only then is
//! it known what came after what; so entries that waited for an absent witness are not held against anybody. A gateway that sends no
//! bookmarks would have no such bound, so nothing is cosigned for it.

use crate::replica::SignerError;
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::head::Cosignature;
use mayfly_protocol::{DeviceId, Head, State};

/// Age of the newest bookmark, beyond the network's skew, at which heads are still cosigned. A gateway sends at least two in that time.
pub const BOOKMARK_AGE_MS_MAX: u64 = 30_000;

/// Cosigns heads for a device.
pub trait Cosigner: Send + Sync {
    /// The device, a witness as far as it knows.
    fn device(&self) -> DeviceId;

    /// Its present session key. `None` before the first delegation, or while none is valid.
    fn key(&self) -> Option<PublicKey>;

    /// Signs with that key.
    ///
    /// # Errors
    /// [`SignerError`], when the key is gone.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError>;
}

/// What a witness must remember between heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Duty {
    /// When, by this clock, the replica last had everything that there was. 0: never in this run.
    pub current_ms: u64,
    /// No head above this size is cosigned: the next leaf was sequenced at a wrong time.
    pub withheld: Option<u64>,
    /// Size of the newest head that was cosigned; never falls.
    pub cosigned: u64,
}

/// Why a head is not cosigned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Withheld {
    /// This device is no witness in the effective state.
    #[error("this device is not a witness")]
    NotWitness,
    /// The present session key is not on the ledger at that head yet.
    #[error("this device's session key is not on the ledger yet")]
    NoSession,
    /// A newer head was cosigned before.
    #[error("a newer head was cosigned already")]
    Older,
    /// The head's newest leaf is ahead of this clock.
    #[error("entries are dated {ahead_ms} ms ahead of this device's clock, {skew_ms} are allowed")]
    Ahead {
        /// By so many milliseconds.
        ahead_ms: u64,
        /// Bound of the network's policy.
        skew_ms: u64,
    },
    /// The session key cannot be used.
    #[error(transparent)]
    Signer(#[from] SignerError),
    /// The gateway does not say, or not with the time of this clock, up to when there was nothing but what is here.
    #[error(
        "the gateway sends no bookmarks, or dates them otherwise than this device's clock: nothing bounds the dates of entries"
    )]
    NoBookmark,
    /// A leaf below the head was sequenced at a time that had already passed.
    #[error("entry {0} is dated before this device had last seen the whole ledger")]
    Backdated(u64),
}

impl Duty {
    /// Takes note of a bookmark: at `time_ms`, or now if that is yet to come, there was nothing but what is here. What an earlier one said
    /// stands, but not for a time that this clock, set back since, has not reached again.
    pub fn bookmark(&mut self, time_ms: u64, now_ms: u64) {
        self.current_ms = self.current_ms.max(time_ms).min(now_ms);
    }

    /// Takes note of a bundle's time. `state` is the one before it.
    pub fn judge_bundle(&mut self, state: &State, first: u64, time_ms: u64, now_ms: u64) {
        let seen = self.current_ms.min(now_ms); // the clock may have been set back since
        if self.withheld.is_none() && time_ms.saturating_add(skew_ms(state)) < seen {
            self.withheld = Some(first);
        }
    }

    /// A quorum has signed `effective`: what it decided is not held against it any longer.
    pub fn settle(&mut self, effective: u64) {
        self.withheld = self.withheld.filter(|size| *size >= effective);
    }

    /// Whether `device` may cosign the head of `state` with `key` now.
    pub fn may_cosign(
        &self,
        effective: &State,
        state: &State,
        device: &DeviceId,
        key: &PublicKey,
        now_ms: u64,
    ) -> Result<(), Withheld> {
        if !effective.active_witnesses().contains(device) {
            return Err(Withheld::NotWitness);
        }
        let session = state.devices.get(device).and_then(|d| d.session());
        if session.is_none_or(|s| s.key != *key) {
            return Err(Withheld::NoSession);
        }
        if state.size() < self.cosigned {
            return Err(Withheld::Older);
        }
        let (ahead_ms, skew_ms) = (state.time_ms.saturating_sub(now_ms), skew_ms(state));
        if ahead_ms > skew_ms {
            return Err(Withheld::Ahead { ahead_ms, skew_ms });
        }
        if let Some(size) = self.withheld.filter(|size| state.size() > *size) {
            return Err(Withheld::Backdated(size));
        }
        let is_recent = now_ms.abs_diff(self.current_ms) <= skew_ms.saturating_add(BOOKMARK_AGE_MS_MAX);
        if is_recent { Ok(()) } else { Err(Withheld::NoBookmark) }
    }
}

/// The cosignature of `head`, dated `now_ms`.
pub fn cosign(signer: &dyn Cosigner, state: &State, head: &Head, now_ms: u64) -> Result<Cosignature, SignerError> {
    let message = Cosignature::message(&state.network, head, now_ms);
    Ok(Cosignature { witness: signer.device(), time_ms: now_ms, signature: signer.sign(&message)? })
}

fn skew_ms(state: &State) -> u64 {
    state.policy().map_or(0, |p| p.skew_ms_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backdated_bundle_withholds_heads_above_it_until_a_quorum_decides() {
        let state = State::default(); // a policy of no skew
        for (current, time, now, withheld) in [
            (0, 1, 1000, None),         // never had everything: history
            (1000, 1000, 1001, None),   // live
            (1000, 1000, 90_000, None), // waited for an absent witness
            (1000, 999, 1001, Some(7)), // backdated
            (1000, 500, 400, None),     // our clock was set back: 500 is no longer the past
        ] {
            let mut duty = Duty { current_ms: current, ..Duty::default() };
            duty.judge_bundle(&state, 7, time, now);
            assert_eq!(duty.withheld, withheld, "current {current} time {time} now {now}");
        }
        let mut duty = Duty { withheld: Some(7), ..Duty::default() };
        duty.settle(7);
        assert_eq!(duty.withheld, Some(7), "a head of 7 entries does not contain entry 7");
        duty.settle(8);
        assert_eq!(duty.withheld, None);
    }

    #[test]
    fn a_bookmark_of_a_clock_that_was_ahead_is_outlived() {
        let hour_ms = 3_600_000;
        let mut duty = Duty::default();
        duty.bookmark(2 * hour_ms, 2 * hour_ms);
        duty.bookmark(hour_ms - 1000, hour_ms); // both clocks were set right meanwhile
        let mut other = duty;
        duty.judge_bundle(&State::default(), 7, hour_ms, hour_ms + 60_000);
        assert_eq!(duty.withheld, None, "it came late");
        other.judge_bundle(&State::default(), 7, hour_ms - 1, hour_ms + 60_000);
        assert_eq!(other.withheld, Some(7), "what was there before the clock was set back is older than now");
        duty.bookmark(hour_ms - 30_000, hour_ms + 1);
        assert_eq!(duty.current_ms, hour_ms, "one that is dated earlier takes nothing back");
    }
}
