//! Roots at any size in little memory: a Merkle frontier every so many entries; the rest is hashed again when somebody asks.

use mayfly_crypto::merkle::Frontier;
use mayfly_protocol::entry::leaf_hash;
use mayfly_protocol::ids::Hash;
use mayfly_protocol::sync::Bundle;

/// Entries between two rungs. A rung has at most 2 KiB, so a million entries cost 3 MiB.
pub const RUNG: u64 = 256;

/// The frontiers at 0, 256, 512, … entries, and the one at the tip.
#[derive(Debug)]
pub struct Ladder {
    rungs: Vec<Frontier>,
    tip: Frontier,
}

impl Default for Ladder {
    /// Of an empty tree.
    fn default() -> Ladder {
        Ladder { rungs: vec![Frontier::new()], tip: Frontier::new() }
    }
}

impl Ladder {
    /// Adds a bundle at the tip.
    pub fn extend(&mut self, bundle: &Bundle) {
        for entry in &bundle.entries {
            self.tip.append(&leaf_hash(bundle.time_ms, entry).0);
            if self.tip.size().is_multiple_of(RUNG) {
                self.rungs.push(self.tip.clone());
            }
        }
    }

    /// The highest rung at or below `size`: the entries from its size on are needed to get there. `None` above the tip.
    pub fn below(&self, size: u64) -> Option<Frontier> {
        if size > self.tip.size() {
            return None;
        }
        self.rungs.get(usize::try_from(size / RUNG).ok()?).cloned()
    }
}

/// Climbs from a rung to `size` over bundles that hold the entries in between. `None` when they do not.
pub fn climb(mut from: Frontier, size: u64, bundles: &[Bundle]) -> Option<Hash> {
    for bundle in bundles {
        if from.size() == size {
            break;
        }
        let skip = from.size().checked_sub(bundle.first)?;
        for entry in bundle.entries.iter().skip(usize::try_from(skip).ok()?) {
            if from.size() == size {
                break;
            }
            from.append(&leaf_hash(bundle.time_ms, entry).0);
        }
    }
    (from.size() == size).then(|| Hash(from.root()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_root_can_be_climbed_to() {
        let mut ladder = Ladder::default();
        let mut whole = Frontier::new();
        let mut roots = vec![whole.root()];
        let mut bundles = Vec::new();
        for first in (0..700u64).step_by(7) {
            let entries = (first..first + 7).map(|i| i.to_be_bytes().to_vec().into()).collect();
            let bundle = Bundle { first, time_ms: first, entries };
            for entry in &bundle.entries {
                whole.append(&leaf_hash(first, entry).0);
                roots.push(whole.root());
            }
            ladder.extend(&bundle);
            bundles.push(bundle);
        }
        for size in 0..=700u64 {
            let rung = ladder.below(size).unwrap();
            let start = bundles.iter().position(|b| b.end() > rung.size()).unwrap_or(bundles.len());
            assert_eq!(climb(rung, size, &bundles[start..]), Some(Hash(roots[size as usize])), "size {size}");
        }
        assert!(ladder.below(701).is_none());
        let rung = ladder.below(300).unwrap();
        assert_eq!(climb(rung.clone(), 300, &bundles[..3]), None, "entries before the rung only");
        assert_eq!(climb(rung, 300, &[]), None);
    }
}
