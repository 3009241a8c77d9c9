//! Signs heads, collects cosignatures, says which head is witnessed. No I/O: the sequencer carries out what this returns.
//!
//! Heads are proposed one at a time: the next one when the last is witnessed. So under load all witnesses sign the same heads, however
//! differently entries reach them, and without load every bundle is proposed at once. A proposal that stays without its quorum (witnesses
//! are away) does not hold up newer ones for long.

use crate::key::GatewayKey;
use crate::limits::{PROPOSAL_STALE_AFTER, PROPOSALS_MAX};
use mayfly_ledger_client::{Advance, Chain};
use mayfly_protocol::head::Cosignature;
use mayfly_protocol::sync::WitnessedHead;
use mayfly_protocol::{Head, NetworkId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// Proposed heads and what was signed of them.
pub struct Notary {
    network: NetworkId,
    key: Arc<GatewayKey>,
    /// By size; at most [`PROPOSALS_MAX`].
    proposals: BTreeMap<u64, Proposal>,
    newest: Option<Instant>,
}

struct Proposal {
    head: Head,
    note: Vec<u8>,
    cosignatures: Vec<Cosignature>,
}

/// A head for the feed.
#[derive(Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Its size.
    pub size: u64,
    /// The signed note.
    pub note: Vec<u8>,
}

/// A head that has become effective.
#[derive(Debug)]
pub struct Witnessed {
    /// Its size.
    pub size: u64,
    /// With all signatures that were collected.
    pub head: WitnessedHead,
    /// The witnesses changed by it.
    pub is_link: bool,
}

impl Notary {
    /// A notary that signs with this key.
    pub fn new(network: NetworkId, key: Arc<GatewayKey>) -> Notary {
        Notary { network, key, proposals: BTreeMap::new(), newest: None }
    }

    /// The tip has grown, or a head was witnessed: what to propose now, if anything.
    pub fn propose(&mut self, chain: &Chain, now: Instant) -> Option<Proposed> {
        let head = chain.tip().head();
        let waiting = self.proposals.last_key_value();
        let newest = self.newest.filter(|_| waiting.is_some());
        let is_new = waiting.is_none_or(|(size, _)| *size < head.size);
        if !is_new || newest.is_some_and(|at| now.duration_since(at) < PROPOSAL_STALE_AFTER) {
            return None;
        }
        let note = self.key.note(&self.network, &head).encode().into_bytes();
        // Without witnesses the head is effective already; its signature is still what replicas compare with.
        if chain.effective().size() < head.size {
            if self.proposals.len() == PROPOSALS_MAX {
                self.proposals.pop_first();
            }
            self.proposals.insert(head.size, Proposal { head, note: note.clone(), cosignatures: Vec::new() });
            self.newest = Some(now);
        }
        Some(Proposed { size: head.size, note })
    }

    /// Whether a head waits for its quorum while the tip has moved on.
    pub fn is_behind(&self, chain: &Chain) -> bool {
        self.proposals.last_key_value().is_some_and(|(size, _)| *size < chain.tip().size())
    }

    /// A witness signed a head. On a quorum the chain's effective state moves on.
    pub fn cosigned(&mut self, chain: &mut Chain, head: &Head, cosignature: Cosignature) -> Option<Witnessed> {
        let proposal = self.proposals.get_mut(&head.size).filter(|p| p.head == *head)?;
        if proposal.cosignatures.iter().any(|c| c.witness == cosignature.witness) {
            return None;
        }
        let witnesses = chain.effective().witnesses();
        let state = chain.at(head.size)?;
        if !chain.effective().active_witnesses().contains(&cosignature.witness) || !cosignature.verify(&state, head) {
            return None;
        }
        proposal.cosignatures.push(cosignature);
        match chain.advance(head, &proposal.cosignatures) {
            Advance::Advanced => {}
            _ => return None,
        }
        let is_link = chain.effective().witnesses() != witnesses;
        let proposal = self.proposals.remove(&head.size)?;
        self.proposals = self.proposals.split_off(&head.size);
        let head = WitnessedHead { note: proposal.note, cosignatures: proposal.cosignatures };
        Some(Witnessed { size: proposal.head.size, head, is_link })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_ledger_client::testing::{Device, Ledger, chain};

    /// A ledger with three witnesses, all of it effective.
    fn world() -> (Ledger, [Device; 3], Chain, Notary) {
        let mut ledger = Ledger::new();
        let mut bundles = vec![ledger.start()];
        let devices = ["a", "b", "c"].map(|name| {
            let (device, joined) = ledger.device(name);
            bundles.extend(joined);
            device
        });
        let mut chain = chain(ledger.network, &bundles);
        for (n, device) in devices.iter().enumerate() {
            chain.extend(&ledger.witness(device, true)).unwrap();
            let head = ledger.head();
            let signed: Vec<_> = devices[..n].iter().map(|d| d.cosign(&ledger.network, &head, 5)).collect();
            chain.advance(&head, &signed);
            assert_eq!(chain.effective().head(), head);
        }
        let notary = Notary::new(ledger.network, Arc::new(GatewayKey::generate().unwrap()));
        (ledger, devices, chain, notary)
    }

    #[test]
    fn one_head_at_a_time_is_proposed_and_the_next_when_it_is_witnessed() {
        let (mut ledger, [a, b, c], mut chain, mut notary) = world();
        let now = Instant::now();
        chain.extend(&ledger.token("1")).unwrap();
        let first = ledger.head();
        assert_eq!(notary.propose(&chain, now).map(|p| p.size), Some(first.size));
        assert_eq!(notary.propose(&chain, now), None, "once");
        chain.extend(&ledger.token("2")).unwrap();
        assert_eq!(notary.propose(&chain, now), None, "the first is not witnessed yet");
        assert!(notary.is_behind(&chain));

        let sign = |device: &Device, head: &Head| device.cosign(&ledger.network, head, 5);
        assert!(notary.cosigned(&mut chain, &first, sign(&a, &first)).is_none());
        assert!(notary.cosigned(&mut chain, &first, sign(&a, &first)).is_none(), "the same one twice");
        let forged = Cosignature { witness: b.id(), ..sign(&c, &first) };
        assert!(notary.cosigned(&mut chain, &first, forged).is_none(), "a forged one");
        let other = Head { root: Default::default(), ..first };
        assert!(notary.cosigned(&mut chain, &other, sign(&b, &other)).is_none(), "another head");
        let unproposed = ledger.head();
        assert!(notary.cosigned(&mut chain, &unproposed, sign(&b, &unproposed)).is_none(), "not proposed");
        let witnessed = notary.cosigned(&mut chain, &first, sign(&b, &first)).unwrap();
        assert_eq!((witnessed.size, witnessed.is_link, witnessed.head.cosignatures.len()), (first.size, false, 2));
        assert_eq!(chain.effective().head(), first);
        assert!(notary.cosigned(&mut chain, &first, sign(&c, &first)).is_none(), "late");
        assert_eq!(notary.propose(&chain, now).map(|p| p.size), Some(unproposed.size));
    }

    #[test]
    fn a_proposal_without_a_quorum_does_not_hold_up_newer_ones() {
        let (mut ledger, [a, b, _], mut chain, mut notary) = world();
        let mut now = Instant::now();
        let mut heads = Vec::new();
        for n in 0..PROPOSALS_MAX + 5 {
            chain.extend(&ledger.token(&format!("{n}"))).unwrap();
            heads.push(ledger.head());
            assert!(notary.propose(&chain, now).is_some(), "{n}");
            now += PROPOSAL_STALE_AFTER;
        }
        assert_eq!(notary.proposals.len(), PROPOSALS_MAX);
        let sign = |device: &Device, head: &Head| device.cosign(&ledger.network, head, 5);
        assert!(notary.cosigned(&mut chain, &heads[0], sign(&a, &heads[0])).is_none(), "forgotten");
        let middle = heads[PROPOSALS_MAX];
        assert!(notary.cosigned(&mut chain, &middle, sign(&a, &middle)).is_none());
        assert_eq!(notary.cosigned(&mut chain, &middle, sign(&b, &middle)).unwrap().size, middle.size);
        assert_eq!(notary.proposals.len(), 4, "older ones are over");
    }

    #[test]
    fn a_change_of_witnesses_is_a_link() {
        let (mut ledger, [a, b, c], mut chain, mut notary) = world();
        chain.extend(&ledger.witness(&c, false)).unwrap();
        let head = ledger.head();
        notary.propose(&chain, Instant::now()).unwrap();
        let sign = |device: &Device| device.cosign(&ledger.network, &head, 5);
        assert!(notary.cosigned(&mut chain, &head, sign(&a)).is_none());
        assert!(notary.cosigned(&mut chain, &head, sign(&b)).unwrap().is_link);
        assert_eq!(chain.effective().witnesses().len(), 2);
    }
}
