//! Putting a key together from its holders' shares: whom to ask, when to ask one more, what may be combined, who lied.
//!
//! Pure: the caller asks holders, tells what came of it, and does the arithmetic on shares. Time is what has passed since the operation
//! began. The shares are `S` here, since nothing in these decisions depends on their bytes; agents use `Secret<64>`.
//!
//! Guards, whatever the caller does: exactly t shares are combined, of distinct devices and distinct non-zero indices, all for the key,
//! generation and epoch of the record. A share that was found not to fit its commitment is never combined again.

use crate::ids::{DeviceId, KeyId};
use crate::peer::{Cause, Refused};
use crate::record::Key;
use std::time::Duration;

/// Time after which an operation gives up, from its beginning.
pub const DEADLINE: Duration = Duration::from_millis(1500);
/// Least time after which one more holder is asked; what this holder usually takes comes on top.
pub const HEDGE_MIN: Duration = Duration::from_millis(5);
/// Longest time after which one more holder is asked.
pub const HEDGE_MAX: Duration = Duration::from_millis(500);

/// A holder that may be asked, in order of preference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The holder.
    pub device: DeviceId,
    /// How long it usually takes at most (a high quantile of its answers).
    pub usual: Duration,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Ask this holder; then call [`Assembly::next`] again.
    Ask(DeviceId),
    /// Wait for answers, at the longest until then.
    Wait(Duration),
    /// Combine exactly [`Assembly::shares`], then tell [`Assembly::fits`] or [`Assembly::does_not_fit`].
    Combine,
    /// Check each of [`Assembly::shares`] against the commitments, then tell [`Assembly::judged`].
    Verify,
    /// The key is together.
    Done,
    /// It will not come to anything.
    Failed(Failure),
}

/// Why a holder's share is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// It said no.
    Refused(Refused),
    /// It could not be reached, or the connection was lost.
    Lost(String),
    /// It has not answered in time.
    Late,
    /// Its share does not fit the commitments on the ledger.
    BadShare,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Missing::Refused(r) => write!(f, "refused: {}", r.text),
            Missing::Lost(why) => write!(f, "not reachable: {why}"),
            Missing::Late => f.write_str("did not answer in time"),
            Missing::BadShare => f.write_str("sent a share that does not fit the ledger's commitments"),
        }
    }
}

/// An assembly that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Why.
    pub kind: FailureKind,
    /// Shares needed.
    pub needed: usize,
    /// Good shares that were there.
    pub have: usize,
    /// Each holder that was asked in vain.
    pub missing: Vec<(DeviceId, Missing)>,
}

/// Kinds of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// Fewer than t holders can answer.
    TooFew,
    /// The time is up.
    Deadline,
    /// t good shares gave a key that is not the committed one: the key's record contradicts itself.
    Inconsistent,
}

/// Why a share that came in is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// Not from a holder that was asked and has not answered.
    #[error("this device was not asked, or has answered already")]
    NotAsked,
    /// For another key, generation or epoch, or with another index than the ledger says.
    #[error("the answer is about another shard")]
    OtherShard,
    /// Enough shares are here.
    #[error("not needed any more")]
    NotNeeded,
}

/// A share and whose it is.
#[derive(Debug)]
pub struct Share<S> {
    /// The holder.
    pub device: DeviceId,
    /// Its index, from the ledger.
    pub index: u32,
    /// The share.
    pub value: S,
}

#[derive(Debug)]
struct Holder {
    device: DeviceId,
    index: u32,
    usual: Duration,
    standing: Standing,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Idle,
    /// Asked; not waited for alone after `until`.
    Asked {
        until: Duration,
    },
    /// Asked, and another one was asked in its place; may still answer.
    Late,
    Answered,
    Out(Missing),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Collecting,
    Combining,
    Verifying,
    Done,
    Inconsistent,
}

/// One attempt to put a key together.
#[derive(Debug)]
pub struct Assembly<S> {
    key: KeyId,
    generation: u64,
    epoch: u64,
    t: usize,
    deadline: Duration,
    holders: Vec<Holder>,
    shares: Vec<Share<S>>,
    phase: Phase,
}

impl<S> Assembly<S> {
    /// Plans the assembly of `key` from `candidates`, best first; those without a shard of the key are left out. Gives up at `deadline`.
    pub fn new(key: &Key, candidates: &[Candidate], deadline: Duration) -> Self {
        let mut holders: Vec<Holder> = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let shard = key.shards.iter().find(|s| s.device == candidate.device && s.index != 0);
            let Some(shard) = shard else { continue };
            if holders.iter().any(|h| h.device == shard.device || h.index == shard.index) {
                continue;
            }
            holders.push(Holder {
                device: shard.device,
                index: shard.index,
                usual: candidate.usual,
                standing: Standing::Idle,
            });
        }
        let t = usize::from(key.t);
        Assembly {
            key: key.id,
            generation: key.generation,
            epoch: key.epoch,
            t,
            deadline,
            holders,
            shares: Vec::with_capacity(t),
            phase: Phase::Collecting,
        }
    }

    /// What to do at `now`. Call it again after each [`Step::Ask`], each event, and at the end of each [`Step::Wait`].
    pub fn next(&mut self, now: Duration) -> Step {
        match self.phase {
            Phase::Collecting => self.collect(now),
            Phase::Combining => Step::Combine,
            Phase::Verifying => Step::Verify,
            Phase::Done => Step::Done,
            Phase::Inconsistent => self.failed(FailureKind::Inconsistent),
        }
    }

    fn collect(&mut self, now: Duration) -> Step {
        if self.shares.len() == self.t {
            self.phase = Phase::Combining;
            return Step::Combine;
        }
        if now >= self.deadline {
            return self.failed(FailureKind::Deadline);
        }
        for holder in &mut self.holders {
            if matches!(holder.standing, Standing::Asked { until } if until <= now) {
                holder.standing = Standing::Late;
            }
        }
        let waiting = self.count(|s| matches!(s, Standing::Asked { .. }));
        if self.shares.len() + waiting < self.t {
            if let Some(device) = self.ask_one(now) {
                return Step::Ask(device);
            }
            if self.shares.len() + waiting + self.count(|s| *s == Standing::Late) < self.t {
                return self.failed(FailureKind::TooFew);
            }
        }
        Step::Wait(self.next_look())
    }

    fn ask_one(&mut self, now: Duration) -> Option<DeviceId> {
        let holder = self.holders.iter_mut().find(|h| h.standing == Standing::Idle)?;
        let patience = (HEDGE_MIN + holder.usual).min(HEDGE_MAX);
        holder.standing = Standing::Asked { until: now + patience };
        Some(holder.device)
    }

    fn next_look(&self) -> Duration {
        let hedges = self.holders.iter().filter_map(|h| match h.standing {
            Standing::Asked { until } => Some(until),
            _ => None,
        });
        hedges.min().map_or(self.deadline, |until| until.min(self.deadline))
    }

    fn count(&self, which: impl Fn(&Standing) -> bool) -> usize {
        self.holders.iter().filter(|h| which(&h.standing)).count()
    }

    fn failed(&self, kind: FailureKind) -> Step {
        let missing = self.holders.iter().filter_map(|h| match &h.standing {
            Standing::Out(why) => Some((h.device, why.clone())),
            Standing::Asked { .. } | Standing::Late => Some((h.device, Missing::Late)),
            Standing::Idle | Standing::Answered => None,
        });
        Step::Failed(Failure { kind, needed: self.t, have: self.shares.len(), missing: missing.collect() })
    }

    /// A holder's share came in. On error the share is dropped (and wiped, by its type); [`NotTaken::OtherShard`] also counts the holder
    /// as lost.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn share(&mut self, device: DeviceId, about: &ShareOf, value: S) -> Result<(), NotTaken> {
        let ours = (self.key, self.generation, self.epoch);
        let holder = self.asked(&device)?;
        let index = holder.index;
        if (about.key, about.generation, about.epoch) != ours || about.index != index {
            holder.standing = Standing::Out(Missing::Lost(NotTaken::OtherShard.to_string()));
            return Err(NotTaken::OtherShard);
        }
        holder.standing = Standing::Answered;
        if self.phase != Phase::Collecting || self.shares.len() == self.t {
            return Err(NotTaken::NotNeeded);
        }
        self.shares.push(Share { device, index, value });
        Ok(())
    }

    /// A holder will not send a share.
    pub fn missing(&mut self, device: DeviceId, why: Missing) {
        if let Ok(holder) = self.asked(&device) {
            holder.standing = Standing::Out(why);
        }
    }

    fn asked(&mut self, device: &DeviceId) -> Result<&mut Holder, NotTaken> {
        let waits = |h: &&mut Holder| matches!(h.standing, Standing::Asked { .. } | Standing::Late);
        self.holders.iter_mut().filter(waits).find(|h| h.device == *device).ok_or(NotTaken::NotAsked)
    }

    /// The shares that are here: exactly t at [`Step::Combine`] and [`Step::Verify`].
    pub fn shares(&self) -> &[Share<S>] {
        &self.shares
    }

    /// The combined key is the committed one.
    pub fn fits(&mut self) {
        if self.phase == Phase::Combining {
            self.phase = Phase::Done;
            self.shares.clear();
        }
    }

    /// The combined key is not the committed one, or the shares could not be combined: each share is checked now.
    pub fn does_not_fit(&mut self) {
        if self.phase == Phase::Combining {
            self.phase = Phase::Verifying;
        }
    }

    /// These devices' shares do not fit the commitments. Each is named, its share dropped, and another holder asked.
    pub fn judged(&mut self, liars: &[DeviceId]) {
        if self.phase != Phase::Verifying {
            return;
        }
        let before = self.shares.len();
        self.shares.retain(|s| !liars.contains(&s.device));
        for holder in self.holders.iter_mut().filter(|h| liars.contains(&h.device)) {
            holder.standing = Standing::Out(Missing::BadShare);
        }
        self.phase = if self.shares.len() == before { Phase::Inconsistent } else { Phase::Collecting };
    }

    /// Devices whose shares were found bad so far.
    pub fn liars(&self) -> Vec<DeviceId> {
        let bad = |h: &&Holder| h.standing == Standing::Out(Missing::BadShare);
        self.holders.iter().filter(bad).map(|h| h.device).collect()
    }

    /// Whether a holder refused because it, or we, do not have the newest epoch; and the largest ledger that such a holder has.
    pub fn newer_ledger(&self) -> Option<u64> {
        let sizes = self.holders.iter().filter_map(|h| match &h.standing {
            Standing::Out(Missing::Refused(r)) if r.cause == Cause::WrongEpoch => Some(r.head.size),
            _ => None,
        });
        sizes.max()
    }
}

/// What an answer says that its share is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareOf {
    /// The key.
    pub key: KeyId,
    /// Its generation.
    pub generation: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The evaluation point.
    pub index: u32,
}

#[cfg(test)]
mod tests;
