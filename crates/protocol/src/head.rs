//! Heads of the ledger, and who must have signed one before records that give power take effect.

use crate::ids::{DeviceId, Hash, NetworkId};
use crate::state::State;
use mayfly_crypto::checkpoint::{self, Checkpoint};
use minicbor::{Decode, Encode};

/// A head: how many entries the ledger has and the RFC 6962 root over them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Encode, Decode)]
#[cbor(array)]
pub struct Head {
    /// Number of entries.
    #[n(0)]
    pub size: u64,
    /// Merkle tree hash over the leaves of these entries.
    #[n(1)]
    pub root: Hash,
}

impl Head {
    /// The 40 bytes that stand for a head in signed encodings: big-endian size, then root.
    pub fn to_bytes(&self) -> [u8; 40] {
        let mut out = [0; 40];
        out[..8].copy_from_slice(&self.size.to_be_bytes());
        out[8..].copy_from_slice(&self.root.0);
        out
    }
}

impl Head {
    /// The checkpoint body for this head of this network's log (C2SP tlog-checkpoint).
    pub fn checkpoint(&self, network: &NetworkId) -> Checkpoint {
        Checkpoint::new(&origin(network), self.size, &self.root.0).expect("the origin line is well-formed")
    }
}

/// The origin line of this network's checkpoints (C2SP tlog-checkpoint).
pub fn origin(network: &NetworkId) -> String {
    mayfly_crypto::checkpoint::origin(network.as_bytes())
}

/// A witness's cosignature of a head (C2SP tlog-cosignature, Ed25519).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Cosignature {
    /// The witness.
    #[n(0)]
    pub witness: DeviceId,
    /// The witness's clock in milliseconds since the Unix epoch; signed in whole seconds.
    #[n(1)]
    pub time_ms: u64,
    /// Ed25519 signature by the witness's session key over the cosignature message.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

impl Cosignature {
    /// The bytes that a witness signs for `head` at `time_ms`.
    pub fn message(network: &NetworkId, head: &Head, time_ms: u64) -> Vec<u8> {
        checkpoint::cosignature_message(time_ms / 1000, &origin(network), head.size, &head.root.0)
    }

    /// Whether the signature is good under the witness's session key in `tip`.
    ///
    /// Delegations are signed by identity keys, so `tip` need not be witnessed itself.
    pub fn verify(&self, tip: &State, head: &Head) -> bool {
        let message = Self::message(&tip.network, head, self.time_ms);
        tip.devices
            .get(&self.witness)
            .into_iter()
            .flat_map(|device| device.sessions())
            .any(|session| session.key.verify(&message, &self.signature).is_ok())
    }
}

/// How many of `witnesses` make a quorum: ⌊N/2⌋+1; with no witness yet, none is asked (a network without devices).
pub fn quorum(witnesses: usize) -> usize {
    if witnesses == 0 { 0 } else { witnesses / 2 + 1 }
}

/// How many lying witnesses a quorum of `w` out of `n` withstands: the largest c with 2w > n + c.
pub fn tolerated_liars(n: usize, w: usize) -> usize {
    (2 * w).saturating_sub(n + 1)
}

/// Whether enough distinct witnesses of `effective` signed `head`. Signatures are checked against sessions in `tip`.
///
/// `effective` is the state at the last witnessed head: a head cannot appoint its own witnesses.
pub fn is_witnessed(effective: &State, tip: &State, head: &Head, cosignatures: &[Cosignature]) -> bool {
    let needed = quorum(effective.witnesses().len());
    let active = effective.active_witnesses();
    let mut seen: Vec<DeviceId> =
        cosignatures.iter().filter(|c| active.contains(&c.witness) && c.verify(tip, head)).map(|c| c.witness).collect();
    seen.sort();
    seen.dedup();
    seen.len() >= needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_and_liars_as_in_the_design() {
        for (n, w, c) in [(0, 0, 0), (1, 1, 0), (2, 2, 1), (3, 2, 0), (5, 3, 0), (7, 4, 0), (15, 8, 0)] {
            assert_eq!(quorum(n), w, "n = {n}");
            assert_eq!(tolerated_liars(n, w), c, "n = {n}");
        }
        assert_eq!(tolerated_liars(7, 5), 2);
    }
}
