//! What follows what: the state at the tip, the state at the newest witnessed head, and the heads in between. Pure.
//!
//! Why two states: `docs/decisions/0003-two-states.md`. As long as the effective state has no witness, it follows the tip entry by entry:
//! so the record that appoints the first witness is the last one that takes effect without a witness.

use mayfly_protocol::head::{self, Cosignature};
use mayfly_protocol::sync::Bundle;
use mayfly_protocol::{Head, NetworkId, Refusal, State};
use std::collections::VecDeque;
use std::sync::Arc;

/// Most states kept above the effective one. Beyond it the oldest is let go; a newer head can still be witnessed.
pub const MARKS_MAX: usize = 1024;

/// The two states of a replica.
#[derive(Debug, Clone)]
pub struct Chain {
    network: NetworkId,
    tip: Arc<State>,
    effective: Arc<State>,
    /// States above the effective one, ascending; the last is the tip.
    marks: VecDeque<Arc<State>>,
}

/// Why entries do not extend the chain. Nothing is changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// The entries do not start where the chain ends.
    #[error("entries start at {got}, the next one is {expected}")]
    Gap {
        /// Index that comes next.
        expected: u64,
        /// Index that was given.
        got: u64,
    },
    /// The first entry is another network's.
    #[error("the first entry is of network {0}")]
    OtherNetwork(NetworkId),
    /// An entry breaks a rule: whoever sequenced it, or this program, is wrong.
    #[error("entry {index} breaks a rule")]
    Refused {
        /// Its index.
        index: u64,
        /// The rule.
        #[source]
        refusal: Refusal,
    },
}

/// What a signed head came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// The effective state is now the one at this head.
    Advanced,
    /// Too few witnesses signed it.
    NotWitnessed,
    /// It is at or below the effective head, and agrees as far as this can still be told.
    Old,
    /// Its entries are not here (yet), or its state is not kept any more.
    Unknown,
    /// Its root is not the root over our entries. The head is ours at that size.
    Conflict(Head),
}

/// Entries that may follow the tip. See [`Chain::draft`].
#[derive(Debug)]
pub struct Draft {
    network: NetworkId,
    tip: State,
    effective: Arc<State>,
}

impl Draft {
    /// Judges an entry and appends it; on refusal the draft stays as it was.
    ///
    /// # Errors
    /// [`ChainError::Refused`], [`ChainError::OtherNetwork`] (the draft is of no use then).
    pub fn append(&mut self, time_ms: u64, entry: &[u8]) -> Result<(), ChainError> {
        let index = self.tip.size();
        self.tip.apply(time_ms, entry).map_err(|refusal| ChainError::Refused { index, refusal })?;
        if self.tip.network != self.network {
            return Err(ChainError::OtherNetwork(self.tip.network));
        }
        if self.effective.size() == index && self.effective.witnesses().is_empty() {
            self.effective = Arc::new(self.tip.clone());
        }
        Ok(())
    }

    /// The state after the entries so far.
    pub fn tip(&self) -> &State {
        &self.tip
    }
}

impl Chain {
    /// An empty chain of this network.
    pub fn new(network: NetworkId) -> Chain {
        let empty = Arc::new(State::default());
        Chain { network, tip: empty.clone(), effective: empty, marks: VecDeque::new() }
    }

    /// Appends all entries of the bundle, or none.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn extend(&mut self, bundle: &Bundle) -> Result<(), ChainError> {
        let expected = self.tip.size();
        if bundle.first != expected {
            return Err(ChainError::Gap { expected, got: bundle.first });
        }
        let mut draft = self.draft();
        for entry in &bundle.entries {
            draft.append(bundle.time_ms, entry)?;
        }
        self.install(draft);
        Ok(())
    }

    /// Appends one entry: for replay from disk, where the borders of bundles are not known.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn push(&mut self, time_ms: u64, entry: &[u8]) -> Result<(), ChainError> {
        let mut draft = self.draft();
        draft.append(time_ms, entry)?;
        self.install(draft);
        Ok(())
    }

    /// A copy to judge entries on, before it is known whether they will be stored.
    pub fn draft(&self) -> Draft {
        Draft { network: self.network, tip: State::clone(&self.tip), effective: self.effective.clone() }
    }

    /// Takes over a draft of this chain.
    ///
    /// # Panics
    /// When the draft is of an older tip: a programming error, for drafts never leave their maker.
    pub fn install(&mut self, draft: Draft) {
        assert!(draft.tip.size() >= self.tip.size(), "a draft is installed before the next one is made");
        self.tip = Arc::new(draft.tip);
        if draft.effective.size() > self.effective.size() {
            self.effective = draft.effective;
        }
        self.mark();
    }

    /// Takes a head that witnesses signed.
    pub fn advance(&mut self, head: &Head, cosignatures: &[Cosignature]) -> Advance {
        if let Some(ours) = self.root_at(head.size).filter(|ours| ours != head) {
            return Advance::Conflict(ours);
        }
        if head.size <= self.effective.size() {
            return Advance::Old;
        }
        let Some(state) = self.at(head.size) else { return Advance::Unknown };
        // Signatures are judged by the sessions in the state at that very head, so that every replica judges alike.
        if !head::is_witnessed(&self.effective, &state, head, cosignatures) {
            return Advance::NotWitnessed;
        }
        self.set_effective(state);
        Advance::Advanced
    }

    /// Everything that was verified.
    pub fn tip(&self) -> &Arc<State> {
        &self.tip
    }

    /// The state at the newest witnessed head.
    pub fn effective(&self) -> &Arc<State> {
        &self.effective
    }

    /// The state at this size, if it is kept.
    pub fn at(&self, size: u64) -> Option<Arc<State>> {
        if size == self.effective.size() {
            return Some(self.effective.clone());
        }
        let at = self.marks.binary_search_by_key(&size, |s| s.size()).ok()?;
        self.marks.get(at).cloned()
    }

    /// The head at this size, if it is among those that are still known.
    pub fn root_at(&self, size: u64) -> Option<Head> {
        match self.tip.recent_head(size) {
            Some((head, _)) => Some(head),
            None => self.at(size).map(|s| s.head()),
        }
    }

    /// Keeps the state at the tip.
    fn mark(&mut self) {
        if self.tip.size() > self.effective.size() {
            if self.marks.len() == MARKS_MAX {
                self.marks.pop_front();
            }
            self.marks.push_back(self.tip.clone());
        } else {
            self.marks.clear();
        }
    }

    fn set_effective(&mut self, state: Arc<State>) {
        let size = state.size();
        self.effective = state;
        while self.marks.front().is_some_and(|s| s.size() <= size) {
            self.marks.pop_front();
        }
        // Without witnesses nothing waits for them: what was verified takes effect.
        if self.effective.witnesses().is_empty() {
            self.follow_tip();
        }
    }

    /// Takes the kept states into effect one by one, as long as there is no witness to wait for.
    fn follow_tip(&mut self) {
        while self.effective.witnesses().is_empty() {
            let Some(next) = self.marks.pop_front() else { return };
            self.effective = next;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Ledger, chain};

    #[test]
    fn a_bundle_is_taken_whole_or_not_at_all() {
        let mut ledger = Ledger::new();
        let genesis = ledger.start();
        let (a, b) = (ledger.token("a"), ledger.token("b"));
        let mut broken = b.clone();
        broken.first = a.first;
        broken.entries = [a.entries.clone(), vec![vec![1].into()]].concat();

        let mut chain = chain(ledger.network, std::slice::from_ref(&genesis));
        assert_eq!(chain.extend(&b), Err(ChainError::Gap { expected: 1, got: 2 }));
        assert_eq!(chain.extend(&genesis), Err(ChainError::Gap { expected: 1, got: 0 }));
        assert!(matches!(chain.extend(&broken), Err(ChainError::Refused { index: 2, .. })));
        assert_eq!((chain.tip().size(), chain.effective().size()), (1, 1));
        chain.extend(&a).unwrap();
        chain.extend(&b).unwrap();
        assert_eq!(chain.tip().head(), ledger.head());

        let mut other = Chain::new(NetworkId([9; 32]));
        assert_eq!(other.extend(&genesis), Err(ChainError::OtherNetwork(ledger.network)));
        assert_eq!(other.tip().size(), 0);
    }

    #[test]
    fn without_witnesses_the_tip_is_effective_and_the_first_appointment_ends_that_also_inside_a_bundle() {
        let mut ledger = Ledger::new();
        let mut bundles = vec![ledger.start()];
        let (device, joined) = ledger.device("w");
        bundles.extend(joined);
        let appointed = ledger.witness(&device, true);
        let at = ledger.head();
        let after = ledger.token("t");
        let mut chain = chain(ledger.network, &bundles);
        assert_eq!(chain.effective().size(), chain.tip().size());
        let mut joint = appointed.clone();
        joint.entries.extend(after.entries.clone());
        chain.extend(&joint).unwrap();
        assert_eq!(chain.effective().size(), at.size, "the appointment itself is the last that needs no witness");
        assert_eq!(chain.tip().size(), at.size + 1);
    }

    #[test]
    fn a_head_advances_with_a_quorum_of_those_who_were_witnesses_before_it() {
        let mut ledger = Ledger::new();
        let mut bundles = vec![ledger.start()];
        let mut devices = Vec::new();
        for name in ["a", "b", "c"] {
            let (device, joined) = ledger.device(name);
            bundles.extend(joined);
            devices.push(device);
        }
        let [a, b, c] = &devices[..] else { panic!() };
        bundles.push(ledger.witness(a, true));
        let mut chain = chain(ledger.network, &bundles);
        let first = ledger.head();
        chain.extend(&ledger.witness(b, true)).unwrap();
        let two = ledger.head();
        chain.extend(&ledger.witness(c, true)).unwrap();
        let three = ledger.head();
        let sign = |head: &Head, by: &[&crate::testing::Device]| {
            by.iter().map(|d| d.cosign(&ledger.network, head, 5)).collect::<Vec<_>>()
        };
        // b and c are not witnesses yet in the effective state: they cannot vote themselves in
        assert_eq!(chain.advance(&three, &sign(&three, &[b, c])), Advance::NotWitnessed);
        assert_eq!(chain.advance(&two, &sign(&two, &[a])), Advance::Advanced);
        assert_eq!(chain.advance(&first, &sign(&first, &[a])), Advance::Old);
        assert_eq!(chain.advance(&three, &sign(&three, &[b])), Advance::NotWitnessed, "one of two");
        assert_eq!(chain.advance(&three, &sign(&three, &[b, b])), Advance::NotWitnessed, "twice the same");
        assert_eq!(chain.advance(&three, &sign(&two, &[a, b])), Advance::NotWitnessed, "signatures of another head");
        assert_eq!(chain.advance(&three, &sign(&three, &[a, b])), Advance::Advanced);
        assert_eq!(chain.effective().head(), three);

        let ahead = Head { size: three.size + 1, ..three };
        assert_eq!(chain.advance(&ahead, &sign(&ahead, &[a, b, c])), Advance::Unknown);
        let forked = Head { root: Default::default(), ..two };
        assert_eq!(chain.advance(&forked, &sign(&forked, &[a, b, c])), Advance::Conflict(two));
    }

    #[test]
    fn a_long_wait_for_witnesses_takes_bounded_memory_and_ends_well() {
        let mut ledger = Ledger::new();
        let mut bundles = vec![ledger.start()];
        let (device, joined) = ledger.device("w");
        bundles.extend(joined);
        bundles.push(ledger.witness(&device, true));
        let mut chain = chain(ledger.network, &bundles);
        let before = chain.effective().size();
        for n in 0..MARKS_MAX + 10 {
            chain.extend(&ledger.token(&format!("t{n}"))).unwrap();
        }
        assert_eq!((chain.effective().size(), chain.marks.len()), (before, MARKS_MAX));
        let head = ledger.head();
        assert_eq!(chain.advance(&head, &[device.cosign(&ledger.network, &head, 5)]), Advance::Advanced);
        assert_eq!(chain.effective().head(), head);
        assert!(chain.marks.is_empty());
    }
}
