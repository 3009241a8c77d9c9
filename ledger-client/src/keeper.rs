//! What a replica knows, and how it comes to know more: verifies what a gateway sends, keeps it on disk, cosigns. No network.
//!
//! Messages are taken one by one and judged at once; [`Keeper::commit`] makes all of them durable together. Only after that may they be
//! published or cosigned.

use crate::chain::{Advance, Chain, ChainError};
use crate::store::{NewHead, Store, StoreError, Stored};
use crate::witness::{self, Cosigner, Duty, Withheld};
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::cbor;
use mayfly_protocol::head::Cosignature;
use mayfly_protocol::sync::{self, Bundle, ForkProof, SyncError, WitnessedHead, verify_note};
use mayfly_protocol::{Head, NetworkId};

/// A gateway's clock may differ from ours by the network's skew and so many milliseconds (its time comes in whole seconds).
const BOOKMARK_ROUNDING_MS: u64 = 1000;

/// What a gateway sent is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// An entry breaks a rule. Nothing of its bundle was taken.
    #[error("the gateway sent entry {index}, which breaks a rule: {refusal}")]
    Rule {
        /// Its index.
        index: u64,
        /// The rule, with its causes.
        refusal: String,
    },
    /// Entries do not follow.
    #[error("the gateway sent entries that do not follow: {0}")]
    Order(ChainError),
    /// Entries are dated further ahead of this device's clock than any honest clock is. Nothing of the bundle was taken.
    #[error(
        "the gateway sent entries dated {ahead_ms} ms ahead of this device's clock; see which of the two clocks is wrong"
    )]
    Future {
        /// By so many milliseconds.
        ahead_ms: u64,
    },
    /// A head that does not reconcile with ours, signed by a gateway.
    #[error("the gateway signed a head that does not reconcile with entry count {} here", ours.size)]
    Fork {
        /// Our head at that size.
        ours: Head,
        /// Both signed heads, as far as they are here.
        proof: ForkProof,
    },
    /// Anything else against the protocol.
    #[error("the gateway broke the protocol: {0}")]
    Protocol(&'static str),
    /// A note is malformed or not signed by a gateway of the network.
    #[error("the gateway sent a bad head")]
    Note(#[from] SyncError),
}

/// How far ahead of this clock, beyond the network's skew, entries may be dated to be stored at all. Cosigning is stricter.
pub const FUTURE_MS_MAX: u64 = 60_000;

/// The verified ledger and its store.
#[derive(Debug)]
pub struct Keeper {
    network: NetworkId,
    store: Store,
    chain: Chain,
    duty: Duty,
    /// Taken, not yet on disk.
    batch: Batch,
    /// The newest head that the gateway asked to be cosigned; gone when that is done.
    proposed: Option<Head>,
    /// The newest signed head that agreed with ours.
    note: Option<Vec<u8>>,
    /// Size of the newest stored witnessed head, if no change of witnesses hangs on it.
    replaceable: Option<u64>,
    /// A write failed: what is on disk is not known, and the store wants to be opened anew.
    doubtful: bool,
}

#[derive(Debug, Default)]
struct Batch {
    bundles: Vec<Bundle>,
    bytes: usize,
    heads: Vec<NewHead>,
}

impl Keeper {
    /// Reads and judges again all that is in the store.
    ///
    /// # Errors
    /// [`StoreError`]; an entry that breaks a rule, or a witnessed head that does not hold, is damage.
    pub fn open(network: NetworkId, store: Store) -> Result<Keeper, StoreError> {
        let mut keeper = Keeper {
            network,
            store,
            chain: Chain::new(network),
            duty: Duty::default(),
            batch: Batch::default(),
            proposed: None,
            note: None,
            replaceable: None,
            doubtful: false,
        };
        keeper.replay()?;
        Ok(keeper)
    }

    fn replay(&mut self) -> Result<(), StoreError> {
        let mut chain = Chain::new(self.network);
        let mut replaceable = None;
        self.store.replay(|stored| match stored {
            Stored::Entry(time_ms, entry) => chain.push(time_ms, entry).map_err(|e| with_cause(&e)),
            Stored::Witnessed(message) => {
                let message: WitnessedHead = cbor::from_exact(message).map_err(|e| with_cause(&e))?;
                let signed = verify_note(chain.tip(), &self.network, &message.note);
                let (head, _) = signed.map_err(|e| with_cause(&e))?;
                let (advance, changed) = advance(&mut chain, &head, &message);
                replaceable = (!changed).then_some(head.size);
                match advance {
                    Advance::Advanced | Advance::Old => Ok(()),
                    other => Err(format!("the witnessed head {} does not hold ({other:?})", head.size)),
                }
            }
        })?;
        self.duty = Duty { withheld: self.store.withheld()?, ..self.duty };
        (self.chain, self.replaceable, self.batch) = (chain, replaceable, Batch::default());
        Ok(())
    }

    /// Opens the store anew and starts from what is really in it, if a write failed before.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn settle_doubt(&mut self) -> Result<(), StoreError> {
        if self.doubtful {
            self.store.reopen()?;
            self.replay()?;
            self.doubtful = false;
        }
        Ok(())
    }

    /// Takes the next entries.
    ///
    /// # Errors
    /// [`Broken::Rule`], [`Broken::Order`], [`Broken::Future`]; nothing is taken then.
    pub fn take_bundle(&mut self, bundle: Bundle, now_ms: u64) -> Result<(), Broken> {
        let before = self.chain.tip().clone();
        let skew_ms = before.policy().map_or(0, |p| p.skew_ms_max);
        let ahead_ms = bundle.time_ms.saturating_sub(now_ms);
        // Time never goes back on a ledger: one entry that is taken with a date far ahead would end every session after it for good.
        if ahead_ms > skew_ms.saturating_add(FUTURE_MS_MAX) {
            return Err(Broken::Future { ahead_ms });
        }
        self.chain.extend(&bundle).map_err(|error| match error {
            ChainError::Refused { index, refusal } => Broken::Rule { index, refusal: with_cause(&refusal) },
            other => Broken::Order(other),
        })?;
        // Only what is part of the ledger can be held against it.
        self.duty.judge_bundle(&before, bundle.first, bundle.time_ms, now_ms);
        self.batch.bytes += bundle.entries.iter().map(|e| e.len()).sum::<usize>();
        self.batch.bundles.push(bundle);
        Ok(())
    }

    /// Takes a head that is to be cosigned.
    ///
    /// # Errors
    /// [`Broken`], when its signature is bad or it does not agree with ours.
    pub fn take_proposed(&mut self, note: Vec<u8>) -> Result<(), Broken> {
        let (head, _) = self.signed_head(&note)?;
        self.proposed = Some(head);
        self.note = Some(note);
        Ok(())
    }

    /// Takes a head that a quorum signed; one that is not signed by enough is ignored.
    ///
    /// # Errors
    /// [`Broken`], when the gateway's signature is bad or it does not agree with ours.
    pub fn take_witnessed(&mut self, message: &WitnessedHead) -> Result<(), Broken> {
        let (head, _) = self.signed_head(&message.note)?;
        let (advance, changed) = advance(&mut self.chain, &head, message);
        match advance {
            Advance::Advanced => {
                self.duty.settle(head.size);
                let replaces = self.replaceable.take();
                self.replaceable = (!changed).then_some(head.size);
                self.batch.heads.push(NewHead { size: head.size, message: cbor::to_vec(message), replaces });
            }
            Advance::NotWitnessed => tracing::warn!(size = head.size, "gateway calls a head witnessed that is not"),
            Advance::Old | Advance::Unknown | Advance::Conflict(_) => {}
        }
        Ok(())
    }

    /// Takes a bookmark: at its time there was nothing but what is here.
    ///
    /// # Errors
    /// [`Broken`], when it is not at the tip.
    pub fn take_bookmark(&mut self, note: &[u8], now_ms: u64) -> Result<(), Broken> {
        let (head, signer) = self.signed_head(note)?;
        let tip = self.chain.tip();
        if head.size != tip.size() {
            return Err(Broken::Protocol("its bookmark is not at the end of what it sent"));
        }
        let time_ms = sync::bookmark_time(&self.network, note, &signer)?;
        let skew_ms = tip.policy().map_or(0, |p| p.skew_ms_max);
        let difference_ms = time_ms.abs_diff(now_ms);
        if difference_ms > skew_ms.saturating_add(BOOKMARK_ROUNDING_MS) {
            tracing::warn!(difference_ms, "the gateway's clock differs from this device's");
        }
        self.duty.bookmark(time_ms, now_ms);
        Ok(())
    }

    /// What a gateway's claim comes to that our resume token is not of its ledger: its signature proves it, or it is worth nothing.
    pub fn judge_claim(&self, note: &[u8]) -> Broken {
        match self.signed_head(note) {
            Err(broken) => broken,
            Ok(_) => Broken::Protocol("it claims a fork and signs our own head"),
        }
    }

    /// Makes all that was taken durable: one sync for all of it. True when there were entries.
    ///
    /// # Errors
    /// [`StoreError`]; [`Keeper::settle_doubt`] must be called before anything else is taken, or published.
    pub fn commit(&mut self) -> Result<bool, StoreError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.bundles.is_empty() && batch.heads.is_empty() {
            return Ok(false);
        }
        self.doubtful = true;
        self.store.keep(&batch.bundles, &batch.heads, self.duty.withheld)?;
        self.doubtful = false;
        Ok(!batch.bundles.is_empty())
    }

    /// Cosigns the newest proposed head if `signer` is a witness and nothing speaks against it; all below it is on disk by now.
    ///
    /// # Errors
    /// Why not. `Ok(None)`: there is nothing to cosign.
    pub fn cosign(&mut self, signer: &dyn Cosigner, now_ms: u64) -> Result<Option<(Head, Cosignature)>, Withheld> {
        debug_assert!(self.batch.bundles.is_empty(), "cosigned before it is on disk");
        let Some(head) = self.proposed.filter(|head| head.size > self.chain.effective().size()) else {
            return Ok(None);
        };
        let Some(state) = self.chain.at(head.size) else { return Ok(None) };
        let key = signer.key().ok_or(Withheld::NoSession)?;
        self.duty.may_cosign(self.chain.effective(), &state, &signer.device(), &key, now_ms)?;
        let cosignature = witness::cosign(signer, &state, &head, now_ms)?;
        self.proposed = None;
        self.duty.cosigned = head.size;
        Ok(Some((head, cosignature)))
    }

    /// A new connection: the gateway repeats what it proposes.
    pub fn forget_proposal(&mut self) {
        self.proposed = None;
    }

    /// Keeps the proof of a fork; see [`Store::fork`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn put_fork(&self, proof: &ForkProof) -> Result<(), StoreError> {
        self.store.put_fork(&cbor::to_vec(proof))
    }

    /// The states.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Bytes of entries that are taken and not yet on disk.
    pub fn uncommitted_bytes(&self) -> usize {
        self.batch.bytes
    }

    /// The head of a note that a gateway signed and that agrees with what is here.
    fn signed_head(&self, note: &[u8]) -> Result<(Head, PublicKey), Broken> {
        let (head, signer) = verify_note(self.chain.tip(), &self.network, note)?;
        if head.size > self.chain.tip().size() {
            return Err(Broken::Protocol("it signs a head of entries that it did not send"));
        }
        match self.chain.root_at(head.size) {
            Some(ours) if ours != head => {
                let proof = ForkProof { network: self.network, ours: self.note.clone(), theirs: note.to_vec() };
                Err(Broken::Fork { ours, proof })
            }
            _ => Ok((head, signer)),
        }
    }
}

/// Takes a witnessed head; true when the witnesses of the effective state changed by it. Such heads are kept for ever: whoever starts from
/// nothing goes from one to the next.
fn advance(chain: &mut Chain, head: &Head, message: &WitnessedHead) -> (Advance, bool) {
    let before = chain.effective().witnesses();
    let advance = chain.advance(head, &message.cosignatures);
    (advance, chain.effective().witnesses() != before)
}

/// An error with its causes, in one line.
pub fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Disk;
    use crate::testing::{Device, Ledger, START_MS, note};
    use mayfly_crypto::sign::Ed25519Secret;
    use std::sync::atomic::Ordering;

    /// A keeper of a ledger with one witness.
    struct World {
        ledger: Ledger,
        device: Device,
        disk: Disk,
        keeper: Keeper,
    }

    impl World {
        fn new() -> World {
            let mut ledger = Ledger::new();
            let mut bundles = vec![ledger.start()];
            let (device, joined) = ledger.device("w");
            bundles.extend(joined);
            bundles.push(ledger.witness(&device, true));
            let disk = Disk::default();
            let store = disk.store(ledger.network.as_bytes()).unwrap();
            let mut keeper = Keeper::open(ledger.network, store).unwrap();
            bundles.into_iter().for_each(|b| keeper.take_bundle(b, START_MS).unwrap());
            keeper.commit().unwrap();
            let mut world = World { ledger, device, disk, keeper };
            world.bookmark(START_MS);
            world
        }

        /// The gateway says, by both clocks at `now`, that there is nothing more.
        fn bookmark(&mut self, now: u64) {
            let bookmark = self.ledger.bookmark(&self.ledger.head(), now);
            self.keeper.take_bookmark(&bookmark, now).unwrap();
        }

        /// One more entry, taken and proposed.
        fn token(&mut self, label: &str) -> Head {
            let bundle = self.ledger.token(label);
            self.keeper.take_bundle(bundle, self.ledger.time_ms).unwrap();
            let head = self.ledger.head();
            self.keeper.take_proposed(self.ledger.note(&head)).unwrap();
            head
        }

        fn reopened(&self) -> Result<Keeper, StoreError> {
            Keeper::open(self.ledger.network, self.disk.store(self.ledger.network.as_bytes())?)
        }
    }

    #[test]
    fn what_was_committed_is_judged_again_from_disk_and_is_the_same() {
        let mut world = World::new();
        let head = world.token("t");
        world.keeper.commit().unwrap();
        world.keeper.take_witnessed(&world.ledger.witnessed(&head, &[&world.device])).unwrap();
        // The witness changes: each of the two records takes effect by those who were witnesses before it.
        let (second, joined) = world.ledger.device("second");
        let mut bundles = joined;
        bundles.push(world.ledger.witness(&second, true));
        bundles.into_iter().for_each(|b| world.keeper.take_bundle(b, START_MS).unwrap());
        let head = world.ledger.head();
        world.keeper.take_witnessed(&world.ledger.witnessed(&head, &[&world.device])).unwrap();
        let gone = world.ledger.witness(&world.device, false);
        world.keeper.take_bundle(gone, START_MS).unwrap();
        let head = world.ledger.head();
        world.keeper.take_witnessed(&world.ledger.witnessed(&head, &[&world.device, &second])).unwrap();
        world.keeper.commit().unwrap();
        let head = world.token("by the second alone");
        world.keeper.take_witnessed(&world.ledger.witnessed(&head, &[&second])).unwrap();
        world.keeper.commit().unwrap();
        let again = world.reopened().unwrap();
        for keeper in [&world.keeper, &again] {
            assert_eq!(keeper.chain().tip().head(), world.ledger.head());
            assert_eq!(keeper.chain().effective().head(), world.ledger.head());
        }
    }

    #[test]
    fn a_flipped_bit_on_disk_is_noticed() {
        let mut world = World::new();
        world.token("needle");
        world.keeper.commit().unwrap();
        world.keeper.store().sync().unwrap();
        world.disk.flip(b"needle");
        match world.reopened() {
            Err(StoreError::Damaged { what, .. }) => assert!(!what.is_empty()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_disk_loses_nothing_and_is_got_over() {
        let mut world = World::new();
        let before = world.keeper.chain().tip().size();
        world.token("t");
        world.disk.is_full.store(true, Ordering::Relaxed);
        world.keeper.commit().unwrap_err();
        assert!(world.keeper.settle_doubt().is_err(), "still full");
        world.disk.is_full.store(false, Ordering::Relaxed);
        world.keeper.settle_doubt().unwrap();
        let kept = world.keeper.chain().tip().size();
        assert!(kept == before || kept == before + 1, "all of the bundle, or nothing");
    }

    #[test]
    fn heads_must_be_signed_by_a_gateway_of_the_network_and_agree() {
        let mut world = World::new();
        let head = world.token("t");
        let (network, stranger) = (world.ledger.network, Ed25519Secret::generate().unwrap());
        let other = Head { root: Default::default(), ..head };
        let ahead = Head { size: head.size + 1, ..head };
        let keeper = &mut world.keeper;
        assert!(matches!(keeper.take_proposed(note(&stranger, &network, &head, None)), Err(Broken::Note(_))));
        assert!(matches!(keeper.take_proposed(note(&stranger, &network, &other, None)), Err(Broken::Note(_))));
        let foreign = note(&world.ledger.gateway, &NetworkId([1; 32]), &head, None);
        assert!(matches!(keeper.take_proposed(foreign), Err(Broken::Note(_))), "another log's");
        assert!(matches!(keeper.take_proposed(b"garbage".to_vec()), Err(Broken::Note(_))));
        assert!(matches!(keeper.take_proposed(world.ledger.note(&ahead)), Err(Broken::Protocol(_))));
        let theirs = world.ledger.note(&other);
        match keeper.take_proposed(theirs.clone()) {
            Err(Broken::Fork { ours, proof }) => {
                assert_eq!(ours, head);
                assert_eq!((proof.ours, proof.theirs), (Some(world.ledger.note(&head)), theirs.clone()));
            }
            other => panic!("{other:?}"),
        }
        // A claim is worth what its signature is worth.
        assert!(matches!(keeper.judge_claim(&theirs), Broken::Fork { .. }));
        assert!(matches!(keeper.judge_claim(&world.ledger.note(&head)), Broken::Protocol(_)));
        assert!(matches!(keeper.judge_claim(&note(&stranger, &network, &other, None)), Broken::Note(_)));
    }

    #[test]
    fn an_entry_that_breaks_a_rule_is_not_taken() {
        let mut world = World::new();
        let mut bundle = world.ledger.token("t");
        let tip = world.keeper.chain().tip().head();
        let at = bundle.entries[0].len() - 1;
        bundle.entries[0][at] ^= 1; // the last byte of the signature
        assert!(matches!(world.keeper.take_bundle(bundle, START_MS), Err(Broken::Rule { .. })));
        assert_eq!(world.keeper.chain().tip().head(), tip);
        assert!(!world.keeper.commit().unwrap());
    }

    #[test]
    fn entries_from_the_future_are_not_stored_and_refused_ones_silence_no_witness() {
        let mut world = World::new();
        let now = world.ledger.time_ms;
        let tip = world.keeper.chain().tip().head();
        let (mut bundle, limit) = (world.ledger.token("t"), crate::testing::SKEW_MS + FUTURE_MS_MAX);
        bundle.time_ms = now + limit + 1;
        assert!(matches!(world.keeper.take_bundle(bundle.clone(), now), Err(Broken::Future { .. })));
        assert_eq!(world.keeper.chain().tip().head(), tip);

        world.keeper.take_bookmark(&world.ledger.bookmark(&tip, now + 100_000), now + 100_000).unwrap();
        let mut garbage = bundle.clone();
        (garbage.time_ms, garbage.entries[0][0]) = (now, 0xff);
        assert!(world.keeper.take_bundle(garbage, now + 100_000).is_err());
        bundle.time_ms = now + 100_000;
        world.keeper.take_bundle(bundle, now + 100_000).unwrap();
        assert_eq!(world.keeper.duty.withheld, None);
    }

    #[test]
    fn a_witness_signs_each_proposed_head_once_and_only_at_its_own_time() {
        let mut world = World::new();
        let now = world.ledger.time_ms;
        let head = world.token("t");
        world.keeper.commit().unwrap();
        let early = now - crate::testing::SKEW_MS - 10;
        assert!(matches!(world.keeper.cosign(&world.device, early), Err(Withheld::Ahead { .. })));
        let (signed, cosignature) = world.keeper.cosign(&world.device, now).unwrap().unwrap();
        assert_eq!(signed, head);
        assert!(cosignature.verify(world.keeper.chain().tip(), &head));
        assert_eq!(world.keeper.cosign(&world.device, now).unwrap(), None, "once");

        // An older head, proposed again, is not signed any more.
        let older = world.keeper.chain().tip().recent_head(head.size).unwrap().0;
        world.token("u");
        world.keeper.commit().unwrap();
        world.keeper.cosign(&world.device, now).unwrap().unwrap();
        world.keeper.take_proposed(world.ledger.note(&older)).unwrap();
        assert_eq!(world.keeper.cosign(&world.device, now), Err(Withheld::Older));

        let (stranger, joined) = world.ledger.device("no-witness");
        joined.into_iter().for_each(|b| world.keeper.take_bundle(b, now).unwrap());
        world.keeper.take_proposed(world.ledger.note(&world.ledger.head())).unwrap();
        world.keeper.commit().unwrap();
        assert_eq!(world.keeper.cosign(&stranger, now), Err(Withheld::NotWitness));
        let renewed = Device { session: Ed25519Secret::generate().unwrap(), ..world.device };
        assert_eq!(world.keeper.cosign(&renewed, now), Err(Withheld::NoSession));
    }

    #[test]
    fn a_backdated_entry_is_not_cosigned_until_others_decided_also_after_a_restart() {
        let mut world = World::new();
        let now = world.ledger.time_ms + 100_000;
        let tip = world.ledger.head();
        world.bookmark(now);
        let backdated = world.ledger.token("t");
        world.keeper.take_bundle(backdated, now).unwrap();
        world.keeper.take_proposed(world.ledger.note(&world.ledger.head())).unwrap();
        world.keeper.commit().unwrap();
        assert_eq!(world.keeper.cosign(&world.device, now), Err(Withheld::Backdated(tip.size)));
        let mut again = world.reopened().unwrap();
        let head = world.ledger.head();
        again.take_proposed(world.ledger.note(&head)).unwrap();
        assert_eq!(again.cosign(&world.device, now), Err(Withheld::Backdated(tip.size)));
        again.take_witnessed(&world.ledger.witnessed(&head, &[&world.device])).unwrap();
        let next = world.ledger.token("u");
        again.take_bundle(next, now).unwrap();
        again.take_proposed(world.ledger.note(&world.ledger.head())).unwrap();
        again.commit().unwrap();
        again.take_bookmark(&world.ledger.bookmark(&world.ledger.head(), now), now).unwrap();
        assert!(again.cosign(&world.device, now).unwrap().is_some());
    }

    #[test]
    fn a_gateway_without_bookmarks_of_this_time_gets_no_cosignature() {
        let limit = crate::testing::SKEW_MS + crate::witness::BOOKMARK_AGE_MS_MAX;
        let mut world = World::new();
        let now = world.ledger.time_ms;
        world.bookmark(now);
        world.token("t");
        world.keeper.commit().unwrap();
        let late = now + limit + 1000; // a bookmark tells whole seconds
        assert_eq!(world.keeper.cosign(&world.device, late), Err(Withheld::NoBookmark));
        // One that is dated long ago, or by a clock far ahead of ours, bounds nothing.
        let head = world.ledger.head();
        world.keeper.take_bookmark(&world.ledger.bookmark(&head, now), late).unwrap();
        assert_eq!(world.keeper.cosign(&world.device, late), Err(Withheld::NoBookmark));
        // Nor does one of before this clock was set back.
        let ahead = late + limit + 1000;
        let duty = world.keeper.duty;
        world.bookmark(ahead);
        assert_eq!(world.keeper.cosign(&world.device, late), Err(Withheld::NoBookmark));
        world.keeper.duty = duty;
        world.bookmark(late);
        assert_eq!(world.keeper.cosign(&world.device, late).unwrap().map(|(signed, _)| signed), Some(head));

        let again = world.reopened().unwrap();
        assert_eq!(again.duty.current_ms, 0, "a start begins without one");
    }

    #[test]
    fn a_bookmark_is_at_the_tip_and_signed() {
        let mut world = World::new();
        let old = world.ledger.head();
        let head = world.token("t");
        let bookmark = world.ledger.bookmark(&head, START_MS);
        world.keeper.take_bookmark(&bookmark, START_MS).unwrap();
        let behind = world.ledger.bookmark(&old, START_MS);
        assert!(matches!(world.keeper.take_bookmark(&behind, START_MS), Err(Broken::Protocol(_))));
        let without_time = world.ledger.note(&head);
        assert!(matches!(world.keeper.take_bookmark(&without_time, START_MS), Err(Broken::Note(_))));
    }
}
