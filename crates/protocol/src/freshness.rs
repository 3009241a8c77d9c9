//! Freshness: is what we know of the ledger recent, and what time is it? Witnesses say so over live connections; no gateway is involved.
//!
//! A round asks every witness to sign (its newest verified head, our nonce, its time). With statements of a quorum of w witnesses whose
//! heads our own verified ledger contains, no head was witnessed before the round began that we do not have: any quorum that cosigned
//! such a head shares a witness with ours, and that witness would have stated it. A witness therefore states its newest *verified* head,
//! not the newest that it knows to be witnessed.
//!
//! Pure: clocks are arguments. `boot_ms` is CLOCK_BOOTTIME, which runs on in suspend and is never set; `local_ms` the wall clock.

use crate::head::{Head, quorum};
use crate::ids::{DeviceId, NetworkId};
use crate::rules::Clocks;
use crate::state::State;
use mayfly_crypto::enc;
use minicbor::{Decode, Encode};

/// Bytes of a round's nonce.
pub const NONCE_BYTES: usize = 32;

/// Asks a witness for its statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct FreshAsk {
    /// The round's nonce, random.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub nonce: [u8; NONCE_BYTES],
    /// The asker's newest verified head: a witness that is behind learns of it.
    #[n(1)]
    pub head: Head,
}

/// What a witness says: at this time by my clock, the newest head that I have verified was this.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Statement {
    /// The witness.
    #[n(0)]
    pub witness: DeviceId,
    /// Its newest verified and saved head.
    #[n(1)]
    pub head: Head,
    /// Its clock, milliseconds since the Unix epoch.
    #[n(2)]
    pub time_ms: u64,
    /// Ed25519 by its session key over [`statement_message`]. Empty in our own statement to ourselves.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

/// The bytes that a witness signs.
pub fn statement_message(
    network: &NetworkId,
    witness: &DeviceId,
    requester: &DeviceId,
    head: &Head,
    nonce: &[u8; NONCE_BYTES],
    time_ms: u64,
) -> Vec<u8> {
    let fields: [&[u8]; 6] =
        [network.as_bytes(), witness.as_bytes(), requester.as_bytes(), &head.to_bytes(), nonce, &time_ms.to_be_bytes()];
    enc::enc("mayfly/v1/fresh", &fields)
}

/// Why nothing is released now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotFresh {
    /// No round has succeeded since the start.
    #[error("no quorum of witnesses has answered since the agent started")]
    Never,
    /// The last round is too long ago.
    #[error("the last answer of a quorum of witnesses is {:.1} s old, at most {} s are allowed", *age_ms as f64 / 1000.0, max_ms / 1000)]
    Old {
        /// Time since that round began.
        age_ms: u64,
        /// Bound of the network's policy.
        max_ms: u64,
    },
    /// This device's clock and the witnesses' differ too much.
    #[error("this device's clock differs from the witnesses' by {skew_ms} ms, {max_ms} are allowed: set the clock")]
    Skew {
        /// Difference.
        skew_ms: u64,
        /// Bound of the network's policy.
        max_ms: u64,
    },
    /// No device has the role of witness.
    #[error("the network has no witnesses yet; an administrator names them")]
    NoWitnesses,
    /// The ledger has no policy: genesis is not here yet.
    #[error("the ledger is empty")]
    NoLedger,
    /// Not enough usable statements.
    #[error("{have} of {needed} witnesses answered")]
    TooFew {
        /// Usable statements.
        have: usize,
        /// Quorum.
        needed: usize,
    },
    /// The witnesses know more than we do.
    #[error("the witnesses have a ledger of {size} entries, this device has verified {ours}")]
    Behind {
        /// What we must have first.
        size: u64,
        /// What we have.
        ours: u64,
    },
    /// So many witnesses signed heads that contradict ours that the others are no quorum: one of the two ledgers is forged.
    #[error(
        "{witnesses} stated a head of {size} entries that contradicts this device's ledger: the ledger has forked, or they lie"
    )]
    Fork {
        /// Names of the witnesses.
        witnesses: String,
        /// Size of the first one's head.
        size: u64,
    },
}

/// Why a statement does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StatementRefused {
    /// Not by a witness of this round.
    #[error("not a witness")]
    NotWitness,
    /// The witness has answered already.
    #[error("answered twice")]
    Twice,
    /// The signature does not fit the witness's session key, our nonce, or the rest.
    #[error("signature does not verify")]
    Signature,
    /// The witness's session is over: what its key says proves nothing about now.
    #[error("the witness's session key has expired")]
    Expired,
}

/// One round: a nonce and the statements that answer it.
#[derive(Debug, Clone)]
pub struct Round {
    network: NetworkId,
    requester: DeviceId,
    nonce: [u8; NONCE_BYTES],
    witnesses: Vec<DeviceId>,
    needed: usize,
    began_boot_ms: u64,
    statements: Vec<Stated>,
}

#[derive(Debug, Clone, Copy)]
struct Stated {
    witness: DeviceId,
    head: Head,
    time_ms: u64,
    /// When it came in.
    boot_ms: u64,
}

/// What a round has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A quorum says that we know the newest witnessed head.
    Fresh(Freshness),
    /// Not yet, for this reason. [`NotFresh::Behind`] can be cured by syncing up to its size.
    Not(NotFresh),
}

impl Round {
    /// Begins a round among the witnesses of `effective`, at `boot_ms`, with a random `nonce`.
    ///
    /// # Errors
    /// [`NotFresh::NoWitnesses`].
    pub fn new(
        effective: &State,
        requester: DeviceId,
        nonce: [u8; NONCE_BYTES],
        boot_ms: u64,
    ) -> Result<Round, NotFresh> {
        let needed = quorum(effective.witnesses().len());
        let witnesses = effective.active_witnesses();
        if witnesses.is_empty() {
            return Err(NotFresh::NoWitnesses);
        }
        let network = effective.network;
        Ok(Round { network, requester, nonce, witnesses, needed, began_boot_ms: boot_ms, statements: Vec::new() })
    }

    /// Witnesses to ask, the requester itself included if it is one.
    pub fn witnesses(&self) -> &[DeviceId] {
        &self.witnesses
    }

    /// The question to each of them.
    pub fn ask(&self, head: Head) -> FreshAsk {
        FreshAsk { nonce: self.nonce, head }
    }

    /// Takes a statement that came in at `boot_ms`, when the wall clock showed `local_ms`. The signature is checked against the witness's
    /// newest session in `tip`, which must not be over; delegations are signed by identity keys, so `tip` need not be witnessed.
    ///
    /// # Errors
    /// [`StatementRefused`]; the round goes on without it.
    pub fn take(
        &mut self,
        tip: &State,
        statement: &Statement,
        local_ms: u64,
        boot_ms: u64,
    ) -> Result<(), StatementRefused> {
        let session = tip.devices.get(&statement.witness).and_then(|d| d.session());
        let message = statement_message(
            &self.network,
            &statement.witness,
            &self.requester,
            &statement.head,
            &self.nonce,
            statement.time_ms,
        );
        let good = session.is_some_and(|s| s.key.verify(&message, &statement.signature).is_ok());
        if statement.witness == self.requester || !good {
            return Err(StatementRefused::Signature);
        }
        if session.is_none_or(|s| s.not_after_ms < local_ms) {
            return Err(StatementRefused::Expired);
        }
        self.count(statement.witness, statement.head, statement.time_ms, boot_ms)
    }

    /// Counts the requester's own word, if it is a witness.
    ///
    /// # Errors
    /// [`StatementRefused::NotWitness`] if it is none, [`StatementRefused::Twice`].
    pub fn take_own(&mut self, head: Head, local_ms: u64, boot_ms: u64) -> Result<(), StatementRefused> {
        self.count(self.requester, head, local_ms, boot_ms)
    }

    fn count(&mut self, witness: DeviceId, head: Head, time_ms: u64, boot_ms: u64) -> Result<(), StatementRefused> {
        if !self.witnesses.contains(&witness) {
            return Err(StatementRefused::NotWitness);
        }
        if self.has_answered(&witness) {
            return Err(StatementRefused::Twice);
        }
        self.statements.push(Stated { witness, head, time_ms, boot_ms });
        Ok(())
    }

    /// Whether a statement of this witness was counted.
    pub fn has_answered(&self, witness: &DeviceId) -> bool {
        self.statements.iter().any(|s| s.witness == *witness)
    }

    /// The witnesses who stated a head that contradicts `tip`, and the sizes of these heads. Such a word proves nothing: no gateway and no
    /// other witness stands behind it. It does not count, and its witness is to be named.
    pub fn contradicting(&self, tip: &State) -> Vec<(DeviceId, u64)> {
        let contradicts = |s: &&Stated| matches!(relation(tip, &s.head), Relation::Contradicts);
        self.statements.iter().filter(contradicts).map(|s| (s.witness, s.head.size)).collect()
    }

    /// What the statements so far say about `tip`, our newest verified state.
    pub fn judge(&self, tip: &State, local_ms: u64) -> Verdict {
        let Some(policy) = tip.policy() else { return Verdict::Not(NotFresh::NoLedger) };
        let (mut known, mut ahead) = (Vec::new(), Vec::new());
        for stated in &self.statements {
            match relation(tip, &stated.head) {
                Relation::Contained => known.push(*stated),
                Relation::Ahead => ahead.push(stated.head.size),
                Relation::TooOld | Relation::Contradicts => {}
            }
        }
        if let Some(fork) = self.fork(tip) {
            return Verdict::Not(fork);
        }
        if known.len() < self.needed {
            return Verdict::Not(self.short_of(tip, known.len(), ahead));
        }
        let freshness = self.conclude(known, policy.head_age_ms_max, policy.skew_ms_max);
        match freshness.clocks(freshness.base_boot_ms, local_ms) {
            Err(skewed @ NotFresh::Skew { .. }) => Verdict::Not(skewed),
            _ => Verdict::Fresh(freshness),
        }
    }

    /// One liar is outvoted; when the witnesses that do not contradict are no quorum, there is nobody left to believe.
    fn fork(&self, tip: &State) -> Option<NotFresh> {
        let contradicting = self.contradicting(tip);
        let size = contradicting.first()?.1;
        if self.witnesses.len() - contradicting.len() >= self.needed {
            return None;
        }
        let names: Vec<_> = contradicting.iter().map(|(witness, _)| tip.device_name(witness)).collect();
        Some(NotFresh::Fork { witnesses: names.join(", "), size })
    }

    /// What is missing: knowledge that some witnesses have, or witnesses.
    fn short_of(&self, tip: &State, have: usize, mut ahead: Vec<u64>) -> NotFresh {
        ahead.sort_unstable();
        match ahead.get(self.needed - have - 1) {
            Some(size) => NotFresh::Behind { size: *size, ours: tip.size() },
            None => NotFresh::TooFew { have, needed: self.needed },
        }
    }

    /// Ledger time is the w-th highest of the witnesses' times, each carried forward to the moment of the last statement.
    fn conclude(&self, known: Vec<Stated>, age_ms_max: u64, skew_ms_max: u64) -> Freshness {
        let base_boot_ms = known.iter().map(|s| s.boot_ms).max().unwrap_or(self.began_boot_ms);
        let mut times: Vec<u64> =
            known.iter().map(|s| s.time_ms.saturating_add(base_boot_ms.saturating_sub(s.boot_ms))).collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        Freshness {
            head: known.iter().map(|s| s.head).max().unwrap_or_default(),
            ledger_ms: times.get(self.needed - 1).copied().unwrap_or_default(),
            base_boot_ms,
            began_boot_ms: self.began_boot_ms,
            age_ms_max,
            skew_ms_max,
        }
    }
}

enum Relation {
    Contained,
    Ahead,
    TooOld,
    Contradicts,
}

fn relation(tip: &State, head: &Head) -> Relation {
    if head.size > tip.size() {
        return Relation::Ahead;
    }
    match tip.recent_head(head.size) {
        Some((ours, _)) if ours == *head => Relation::Contained,
        Some(_) => Relation::Contradicts,
        None => Relation::TooOld,
    }
}

/// The result of a round: good for a while, by CLOCK_BOOTTIME, from the moment at which the round *began*.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    /// The newest head that a counted witness stated.
    pub head: Head,
    /// Ledger time at `base_boot_ms`.
    pub ledger_ms: u64,
    /// When that was.
    pub base_boot_ms: u64,
    /// When the round began.
    pub began_boot_ms: u64,
    /// Policy's bound on age.
    pub age_ms_max: u64,
    /// Policy's bound on skew.
    pub skew_ms_max: u64,
}

impl Freshness {
    /// Local and ledger time now, if the round is still good and the two clocks agree well enough.
    ///
    /// # Errors
    /// [`NotFresh::Old`], [`NotFresh::Skew`].
    #[inline]
    pub fn clocks(&self, boot_ms: u64, local_ms: u64) -> Result<Clocks, NotFresh> {
        let age_ms = boot_ms.saturating_sub(self.began_boot_ms);
        if age_ms > self.age_ms_max {
            return Err(NotFresh::Old { age_ms, max_ms: self.age_ms_max });
        }
        let clocks = self.clocks_unchecked(boot_ms, local_ms);
        let skew_ms = clocks.local_ms.abs_diff(clocks.ledger_ms);
        if skew_ms > self.skew_ms_max {
            return Err(NotFresh::Skew { skew_ms, max_ms: self.skew_ms_max });
        }
        Ok(clocks)
    }

    /// Both times, however old the round: for reports, never to release.
    pub fn clocks_unchecked(&self, boot_ms: u64, local_ms: u64) -> Clocks {
        let elapsed = boot_ms.saturating_sub(self.base_boot_ms);
        Clocks { local_ms, ledger_ms: self.ledger_ms.saturating_add(elapsed) }
    }

    /// When it is time for the next round: after a third of the allowed age.
    pub fn renew_boot_ms(&self) -> u64 {
        self.began_boot_ms + self.age_ms_max / 3
    }
}

#[cfg(test)]
mod tests;
