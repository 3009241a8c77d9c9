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
        if !witnesses.contains(&cosignature.witness) || !cosignature.verify(&state, head) {
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
