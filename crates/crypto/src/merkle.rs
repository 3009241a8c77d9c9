//! The Merkle tree of the ledger: RFC 6962 section 2.1, with the verification algorithms of RFC 9162 section 2.1.
//!
//! The tree itself is stored elsewhere: proofs read node hashes through a [`NodeSource`], and a [`Frontier`] (the compact right
//! edge, at most 62 hashes) is all that is needed to append and to know the root.
//!
//! Nodes are named by `(level, index)`: the complete subtree over the leaves `index << level .. (index + 1) << level`. Only
//! complete subtrees have names; their hashes never change once written, so a store may keep as many of them as it likes.

use sha2::{Digest, Sha256};
use thiserror::Error;

mod proof;
pub use proof::{
    NodeSource, PROOF_HASHES_MAX, ProofError, prove_consistency, prove_inclusion, verify_consistency, verify_inclusion,
};

/// A node of the tree: SHA-256.
pub type Hash = [u8; 32];

/// Most leaves that a tree may have. Sizes come from outside; below this bound no sum of sizes overflows.
pub const TREE_SIZE_MAX: u64 = 1 << 62;

/// Most bytes of an encoded [`Frontier`].
pub const FRONTIER_BYTES_MAX: usize = 8 + 62 * 32;

/// The hash of a leaf: `SHA-256(0x00 || leaf)`.
#[must_use]
pub fn leaf_hash(leaf: &[u8]) -> Hash {
    Sha256::new().chain_update([0x00]).chain_update(leaf).finalize().into()
}

/// The hash of an inner node: `SHA-256(0x01 || left || right)`.
#[must_use]
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([0x01]).chain_update(left).chain_update(right).finalize().into()
}

/// The root of the tree without leaves: SHA-256 of nothing.
#[must_use]
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// The root over these leaf hashes, in order.
#[must_use]
pub fn root_of(leaf_hashes: &[Hash]) -> Hash {
    let mut frontier = Frontier::new();
    leaf_hashes.iter().for_each(|leaf| frontier.append(leaf));
    frontier.root()
}

/// Why bytes are not a [`Frontier`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrontierError {
    /// Fewer bytes than the size needs.
    #[error("frontier of {0} bytes is too short for a size")]
    TooShort(usize),
    /// The size is beyond [`TREE_SIZE_MAX`].
    #[error("frontier names a tree of {0} leaves, above the limit")]
    TooLarge(u64),
    /// The number of hashes does not follow from the size.
    #[error("frontier of a tree of {size} leaves has {actual} bytes instead of {expected}")]
    WrongLength {
        /// Leaves that it names.
        size: u64,
        /// Bytes that such a frontier has.
        expected: usize,
        /// Bytes that were given.
        actual: usize,
    },
}

/// The right edge of a tree: for each bit of its size, from the highest down, the root of that complete subtree.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// `size.count_ones()` hashes, largest subtree first.
    hashes: Vec<Hash>,
}

impl Frontier {
    /// The frontier of the empty tree.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads what [`Frontier::encode`] wrote; nothing else is accepted.
    ///
    /// # Errors
    /// [`FrontierError`] when the length does not follow from the size, or the size is beyond [`TREE_SIZE_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrontierError> {
        let (size, hashes) = bytes.split_first_chunk::<8>().ok_or(FrontierError::TooShort(bytes.len()))?;
        let size = u64::from_be_bytes(*size);
        if size > TREE_SIZE_MAX {
            return Err(FrontierError::TooLarge(size));
        }
        let expected = 8 + 32 * size.count_ones() as usize;
        if bytes.len() != expected {
            return Err(FrontierError::WrongLength { size, expected, actual: bytes.len() });
        }
        let (hashes, _) = hashes.as_chunks::<32>();
        Ok(Self { size, hashes: hashes.to_vec() })
    }

    /// Adds a leaf by its [`leaf_hash`].
    pub fn append(&mut self, leaf: &Hash) {
        self.append_with(leaf, |_, _, _| ());
    }

    /// Adds a leaf and reports each node that became complete by it (the leaf first, at level 0): what a store saves.
    pub fn append_with(&mut self, leaf: &Hash, mut complete: impl FnMut(u32, u64, &Hash)) {
        let mut index = self.size;
        let mut level = 0;
        let mut hash = *leaf;
        complete(level, index, &hash);
        while index & 1 == 1 {
            let left = self.hashes.pop().expect("one hash for each one-bit of the size");
            hash = node_hash(&left, &hash);
            level += 1;
            index >>= 1;
            complete(level, index, &hash);
        }
        self.hashes.push(hash);
        self.size = self.size.checked_add(1).expect("a frontier starts at 2^62 leaves or fewer");
    }

    /// Leaves in the tree.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The root of the tree (RFC 6962 section 2.1).
    #[must_use]
    pub fn root(&self) -> Hash {
        let right_to_left = self.hashes.iter().rev().copied();
        right_to_left.reduce(|right, left| node_hash(&left, &right)).unwrap_or_else(empty_root)
    }

    /// `u64be(size)` and the hashes, largest subtree first: at most [`FRONTIER_BYTES_MAX`] bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8 + 32 * self.hashes.len());
        bytes.extend_from_slice(&self.size.to_be_bytes());
        self.hashes.iter().for_each(|hash| bytes.extend_from_slice(hash));
        bytes
    }
}

#[cfg(test)]
mod tests;
