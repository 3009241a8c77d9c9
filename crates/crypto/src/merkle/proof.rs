//! Inclusion and consistency proofs.

use super::{Hash, TREE_SIZE_MAX, empty_root, node_hash};
use thiserror::Error;

/// Most hashes in a proof: the height of a tree of [`TREE_SIZE_MAX`] leaves, and one for the start of a consistency proof.
pub const PROOF_HASHES_MAX: usize = 63;

/// Why a proof does not hold. The three are told apart for people; treat them alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProofError {
    /// The leaf or the old size lies outside the tree, or the tree is beyond the size limit.
    #[error("proof names position {position} in a tree of {size} leaves")]
    OutOfRange {
        /// Index of the leaf, or size of the older tree.
        position: u64,
        /// Size of the (newer) tree.
        size: u64,
    },
    /// Too few or too many hashes.
    #[error("proof has a wrong number of hashes: {0}")]
    WrongLength(usize),
    /// The hashes lead to another root.
    #[error("proof leads to another root")]
    WrongRoot,
}

/// Where a prover reads the hashes of complete subtrees: `(level, index)` as in the module's page.
///
/// Any `FnMut(u32, u64) -> Result<Hash, E>` is one.
pub trait NodeSource<E> {
    /// The hash of the complete subtree over the leaves `index << level .. (index + 1) << level`.
    ///
    /// # Errors
    /// Whatever the store reports; it ends the proof.
    fn node(&mut self, level: u32, index: u64) -> Result<Hash, E>;
}

impl<E, F: FnMut(u32, u64) -> Result<Hash, E>> NodeSource<E> for F {
    fn node(&mut self, level: u32, index: u64) -> Result<Hash, E> {
        self(level, index)
    }
}

/// The hashes that prove leaf `index` in the tree of `size` leaves (RFC 6962 section 2.1.1), for [`verify_inclusion`].
///
/// # Errors
/// [`ProofError::OutOfRange`] (through `E: From<ProofError>`) unless `index < size`; the source's own errors.
pub fn prove_inclusion<E: From<ProofError>>(
    index: u64,
    size: u64,
    mut source: impl NodeSource<E>,
) -> Result<Vec<Hash>, E> {
    if index >= size || size > TREE_SIZE_MAX {
        return Err(ProofError::OutOfRange { position: index, size }.into());
    }
    let mut proof = Vec::new();
    let (mut start, mut end) = (0, size);
    while end - start > 1 {
        let middle = start + largest_power_below(end - start);
        if index < middle {
            proof.push(range_root(middle, end, &mut source)?);
            end = middle;
        } else {
            proof.push(range_root(start, middle, &mut source)?);
            start = middle;
        }
    }
    proof.reverse();
    Ok(proof)
}

/// The hashes that prove that the tree of `old_size` leaves is a prefix of that of `new_size` (RFC 6962 section 2.1.2).
///
/// Empty when the sizes are equal or `old_size` is zero.
///
/// # Errors
/// [`ProofError::OutOfRange`] unless `old_size <= new_size`; the source's own errors.
pub fn prove_consistency<E: From<ProofError>>(
    old_size: u64,
    new_size: u64,
    mut source: impl NodeSource<E>,
) -> Result<Vec<Hash>, E> {
    if old_size > new_size || new_size > TREE_SIZE_MAX {
        return Err(ProofError::OutOfRange { position: old_size, size: new_size }.into());
    }
    let mut proof = Vec::new();
    if old_size == 0 {
        return Ok(proof);
    }
    let (mut start, mut end) = (0, new_size);
    while end != old_size {
        let middle = start + largest_power_below(end - start);
        if old_size <= middle {
            proof.push(range_root(middle, end, &mut source)?);
            end = middle;
        } else {
            proof.push(range_root(start, middle, &mut source)?);
            start = middle;
        }
    }
    // The old tree is now the range start..end. Where it is a node of the new tree that the verifier does not know (it does
    // when the node is the whole old tree), its hash comes first.
    if start != 0 {
        proof.push(range_root(start, end, &mut source)?);
    }
    proof.reverse();
    Ok(proof)
}

/// Checks that the leaf with this hash is number `index` in the tree of `size` leaves under `root` (RFC 9162 section 2.1.3.2).
///
/// # Errors
/// [`ProofError`] when it is not so.
pub fn verify_inclusion(leaf: &Hash, index: u64, size: u64, proof: &[Hash], root: &Hash) -> Result<(), ProofError> {
    if index >= size || size > TREE_SIZE_MAX {
        return Err(ProofError::OutOfRange { position: index, size });
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::WrongLength(proof.len()));
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    match (last, hash == *root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::WrongRoot),
        _ => Err(ProofError::WrongLength(proof.len())),
    }
}

/// Checks that the tree `(old_size, old_root)` is a prefix of `(new_size, new_root)` (RFC 9162 section 2.1.4.2).
///
/// The empty tree is a prefix of every tree; equal sizes demand equal roots; both with an empty proof.
///
/// # Errors
/// [`ProofError`] when it is not so.
pub fn verify_consistency(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if old_size > new_size || new_size > TREE_SIZE_MAX {
        return Err(ProofError::OutOfRange { position: old_size, size: new_size });
    }
    if old_size == 0 || old_size == new_size {
        return verify_trivial(old_size, old_root, new_size, new_root, proof);
    }
    // When the old tree is a complete subtree of the new one, the verifier starts from its root; else from the first hash.
    let (first, rest) = if old_size.is_power_of_two() {
        (old_root, proof)
    } else {
        proof.split_first().ok_or(ProofError::WrongLength(0))?
    };
    let skip = (old_size - 1).trailing_ones();
    let (mut node, mut last) = ((old_size - 1) >> skip, (new_size - 1) >> skip);
    let (mut old_hash, mut new_hash) = (*first, *first);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::WrongLength(proof.len()));
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    match (last, old_hash == *old_root && new_hash == *new_root) {
        (0, true) => Ok(()),
        (0, false) => Err(ProofError::WrongRoot),
        _ => Err(ProofError::WrongLength(proof.len())),
    }
}

fn verify_trivial(
    old_size: u64,
    old_root: &Hash,
    new_size: u64,
    new_root: &Hash,
    proof: &[Hash],
) -> Result<(), ProofError> {
    if !proof.is_empty() {
        return Err(ProofError::WrongLength(proof.len()));
    }
    let old_holds = old_size != 0 || *old_root == empty_root();
    let new_holds = old_size != new_size || old_root == new_root;
    if old_holds && new_holds { Ok(()) } else { Err(ProofError::WrongRoot) }
}

/// The root of the tree over the leaves `start..end`, where `start` is a multiple of the largest complete subtree inside.
fn range_root<E>(start: u64, end: u64, source: &mut impl NodeSource<E>) -> Result<Hash, E> {
    // The complete subtrees of the range, left to right, are the one-bits of its length, highest first.
    let length = end - start;
    let mut from = end;
    let mut root: Option<Hash> = None;
    for level in (0..u64::BITS).filter(|level| (length >> level) & 1 == 1) {
        from -= 1 << level;
        let hash = source.node(level, from >> level)?;
        root = Some(match root {
            Some(right) => node_hash(&hash, &right),
            None => hash,
        });
    }
    Ok(root.unwrap_or_else(empty_root))
}

/// The largest power of two that is smaller than `n`, for `n > 1`: where RFC 6962 splits a tree of `n` leaves.
fn largest_power_below(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}
