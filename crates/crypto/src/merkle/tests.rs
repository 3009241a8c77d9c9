use super::*;
use proptest::prelude::*;

/// The leaves of the reference tests of google/certificate-transparency (`merkle_tree_test.cc`), also in RFC 9162 libraries.
const REFERENCE_LEAVES: [&str; 8] =
    ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];

/// The roots over the first 1 to 8 of them.
const REFERENCE_ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

/// (leaf, tree size, proof) of the same tests.
const REFERENCE_INCLUSION: [(u64, u64, &[&str]); 5] = [
    (0, 1, &[]),
    (
        0,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        5,
        8,
        &[
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (2, 3, &["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]),
    (
        1,
        5,
        &[
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

/// (old size, new size, proof) of the same tests.
const REFERENCE_CONSISTENCY: [(u64, u64, &[&str]); 4] = [
    (1, 1, &[]),
    (
        1,
        8,
        &[
            "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
        ],
    ),
    (
        6,
        8,
        &[
            "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
            "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
            "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        ],
    ),
    (
        2,
        5,
        &[
            "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
            "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        ],
    ),
];

fn hash(hex_text: &str) -> Hash {
    hex::decode(hex_text).unwrap().try_into().unwrap()
}

fn reference_leaves(count: u64) -> Vec<Hash> {
    REFERENCE_LEAVES[..count as usize].iter().map(|leaf| leaf_hash(&hex::decode(leaf).unwrap())).collect()
}

fn numbered_leaves(count: u64) -> Vec<Hash> {
    (0..count).map(|i| leaf_hash(&i.to_be_bytes())).collect()
}

/// MTH of RFC 6962 section 2.1, word for word: the oracle.
fn recursive_root(leaves: &[Hash]) -> Hash {
    match leaves {
        [] => empty_root(),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
            node_hash(&recursive_root(left), &recursive_root(right))
        }
    }
}

/// A source that knows the leaves and demands that only complete subtrees are asked for.
fn source(leaves: &[Hash]) -> impl FnMut(u32, u64) -> Result<Hash, ProofError> {
    |level, index| {
        let range = (index << level) as usize..((index + 1) << level) as usize;
        Ok(recursive_root(leaves.get(range).expect("only complete subtrees are read")))
    }
}

#[test]
fn reference_roots() {
    assert_eq!(hex::encode(empty_root()), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    for (count, root) in (1..).zip(REFERENCE_ROOTS) {
        assert_eq!(hex::encode(root_of(&reference_leaves(count))), root, "{count} leaves");
    }
}

#[test]
fn reference_inclusion_proofs() {
    for (index, size, expected) in REFERENCE_INCLUSION {
        let leaves = reference_leaves(size);
        let proof = prove_inclusion(index, size, source(&leaves)).unwrap();
        assert_eq!(proof, expected.iter().map(|h| hash(h)).collect::<Vec<_>>(), "leaf {index} of {size}");
        assert_eq!(verify_inclusion(&leaves[index as usize], index, size, &proof, &root_of(&leaves)), Ok(()));
    }
}

#[test]
fn reference_consistency_proofs() {
    for (old, new, expected) in REFERENCE_CONSISTENCY {
        let leaves = reference_leaves(new);
        let proof = prove_consistency(old, new, source(&leaves)).unwrap();
        assert_eq!(proof, expected.iter().map(|h| hash(h)).collect::<Vec<_>>(), "{old} to {new}");
        let (old_root, new_root) = (root_of(&reference_leaves(old)), root_of(&leaves));
        assert_eq!(verify_consistency(old, &old_root, new, &new_root, &proof), Ok(()));
    }
}

#[test]
fn frontier_is_the_recursive_definition_at_every_size() {
    let leaves = numbered_leaves(130);
    let mut frontier = Frontier::new();
    for size in 0..=130 {
        assert_eq!(frontier.size(), size as u64);
        assert_eq!(frontier.root(), recursive_root(&leaves[..size]), "{size} leaves");
        assert_eq!(Frontier::decode(&frontier.encode()), Ok(frontier.clone()));
        if let Some(leaf) = leaves.get(size) {
            frontier.append(leaf);
        }
    }
}

#[test]
fn append_reports_each_complete_node_once() {
    let leaves = numbered_leaves(130);
    let mut frontier = Frontier::new();
    let mut nodes = std::collections::BTreeMap::new();
    for leaf in &leaves {
        frontier.append_with(leaf, |level, index, hash| assert!(nodes.insert((level, index), *hash).is_none()));
    }
    let mut expected = 0;
    for level in 0..8 {
        for index in 0..(130 >> level) {
            assert_eq!(nodes[&(level, index)], source(&leaves)(level, index).unwrap());
            expected += 1;
        }
    }
    assert_eq!(nodes.len(), expected);
}

#[test]
fn frontier_decodes_only_what_encode_wrote() {
    let mut frontier = Frontier::new();
    numbered_leaves(5).iter().for_each(|leaf| frontier.append(leaf));
    let good = frontier.encode();

    for (length, want) in [(0, FrontierError::TooShort(0)), (7, FrontierError::TooShort(7))] {
        assert_eq!(Frontier::decode(&good[..length]), Err(want));
    }
    for (length, size) in [(8, 5), (good.len() - 1, 5), (good.len() - 32, 5)] {
        let want = FrontierError::WrongLength { size, expected: good.len(), actual: length };
        assert_eq!(Frontier::decode(&good[..length]), Err(want));
    }
    let long = [good.as_slice(), &[0]].concat();
    assert!(matches!(Frontier::decode(&long), Err(FrontierError::WrongLength { .. })));
    let huge = (TREE_SIZE_MAX + 1).to_be_bytes();
    assert_eq!(Frontier::decode(&huge), Err(FrontierError::TooLarge(TREE_SIZE_MAX + 1)));
    let largest = [TREE_SIZE_MAX.to_be_bytes().as_slice(), &[7; 32]].concat();
    let mut largest = Frontier::decode(&largest).unwrap();
    largest.append(&[8; 32]);
    assert_eq!(largest.root(), node_hash(&[7; 32], &[8; 32]));
}

#[test]
fn every_proof_of_every_small_tree_holds_and_no_shortened_one_does() {
    let leaves = numbered_leaves(130);
    let wrong_length = |proof: &[Hash]| Err(ProofError::WrongLength(proof.len()));
    for size in 1..=130_u64 {
        let root = root_of(&leaves[..size as usize]);
        for index in 0..size {
            let proof = prove_inclusion(index, size, source(&leaves)).unwrap();
            let leaf = &leaves[index as usize];
            assert!(proof.len() <= PROOF_HASHES_MAX);
            assert_eq!(verify_inclusion(leaf, index, size, &proof, &root), Ok(()), "leaf {index} of {size}");
            if let Some((_, shorter)) = proof.split_last() {
                assert_eq!(verify_inclusion(leaf, index, size, shorter, &root), wrong_length(shorter));
            }
            let longer = [proof.as_slice(), &[root]].concat();
            assert_eq!(verify_inclusion(leaf, index, size, &longer, &root), wrong_length(&longer));
            // Sizes with the same path to this leaf cannot be told apart by an inclusion proof; the signed head binds them.
            let other_index = index ^ 1;
            assert!(verify_inclusion(leaf, other_index, size, &proof, &root).is_err());
        }
        for old in 0..=size {
            let proof = prove_consistency(old, size, source(&leaves)).unwrap();
            let old_root = root_of(&leaves[..old as usize]);
            assert_eq!(verify_consistency(old, &old_root, size, &root, &proof), Ok(()), "{old} to {size}");
            if let Some((_, shorter)) = proof.split_last() {
                assert_eq!(verify_consistency(old, &old_root, size, &root, shorter), wrong_length(shorter));
            }
            let longer = [proof.as_slice(), &[root]].concat();
            assert_eq!(verify_consistency(old, &old_root, size, &root, &longer), wrong_length(&longer));
        }
    }
}

/// Hashes that do lead to the root, with a proof that is too short or too long for the tree: an inner node is no leaf, and a tree of one
/// leaf has no second.
#[test]
fn the_length_of_a_proof_is_bound_to_the_size() {
    let leaves = numbered_leaves(4);
    let (root, left, right) = (root_of(&leaves), root_of(&leaves[..2]), root_of(&leaves[2..]));
    assert_eq!(verify_inclusion(&left, 0, 4, &[right], &root), Err(ProofError::WrongLength(1)));
    assert_eq!(verify_inclusion(&right, 0, 1, &[left], &root), Err(ProofError::WrongLength(1)));
    assert_eq!(verify_consistency(1, &left, 4, &root, &[right]), Err(ProofError::WrongLength(1)));
    assert_eq!(verify_consistency(2, &left, 3, &root, &[right, root]), Err(ProofError::WrongLength(2)));
}

#[test]
fn positions_outside_the_tree_are_refused() {
    let leaves = numbered_leaves(4);
    let root = root_of(&leaves);
    for (index, size) in [(0, 0), (4, 4), (u64::MAX, 4), (0, TREE_SIZE_MAX + 1), (u64::MAX, u64::MAX)] {
        let want = ProofError::OutOfRange { position: index, size };
        assert_eq!(prove_inclusion(index, size, source(&leaves)), Err(want));
        assert_eq!(verify_inclusion(&leaves[0], index, size, &[], &root), Err(want));
    }
    for (old, new) in [(5, 4), (u64::MAX, 4), (1, u64::MAX), (u64::MAX, u64::MAX)] {
        let want = ProofError::OutOfRange { position: old, size: new };
        assert_eq!(prove_consistency(old, new, source(&leaves)), Err(want));
        assert_eq!(verify_consistency(old, &root, new, &root, &[]), Err(want));
    }
}

#[test]
fn an_empty_old_tree_has_one_root_only() {
    let root = root_of(&numbered_leaves(4));
    assert_eq!(verify_consistency(0, &empty_root(), 4, &root, &[]), Ok(()));
    assert_eq!(verify_consistency(0, &root, 4, &root, &[]), Err(ProofError::WrongRoot));
    assert_eq!(verify_consistency(0, &empty_root(), 0, &root, &[]), Err(ProofError::WrongRoot));
    assert_eq!(verify_consistency(4, &root, 4, &empty_root(), &[]), Err(ProofError::WrongRoot));
    assert_eq!(verify_consistency(0, &empty_root(), 4, &root, &[root]), Err(ProofError::WrongLength(1)));
}

#[test]
fn a_source_that_fails_ends_the_proof() {
    #[derive(Debug, PartialEq)]
    enum Failure {
        Disk,
        Proof(ProofError),
    }
    impl From<ProofError> for Failure {
        fn from(error: ProofError) -> Self {
            Failure::Proof(error)
        }
    }
    let broken = |_: u32, _: u64| Err(Failure::Disk);
    assert_eq!(prove_inclusion(1, 5, broken), Err(Failure::Disk));
    assert_eq!(prove_consistency(3, 5, broken), Err(Failure::Disk));
    assert!(matches!(prove_inclusion(5, 5, broken), Err(Failure::Proof(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_mutated_inclusion_proof_fails(size in 2..130_u64, at in any::<prop::sample::Index>(), what in any::<prop::sample::Index>(),
                                       byte in 0..32_usize, bit in 0..8_u32) {
        let leaves = numbered_leaves(size);
        let index = at.index(size as usize) as u64;
        let mut proof = prove_inclusion(index, size, source(&leaves)).unwrap();
        let (mut leaf, mut root) = (leaves[index as usize], root_of(&leaves));
        let targets = proof.len() + 2;
        let target = match what.index(targets) {
            0 => &mut leaf,
            1 => &mut root,
            n => &mut proof[n - 2],
        };
        target[byte] ^= 1 << bit;
        prop_assert_eq!(verify_inclusion(&leaf, index, size, &proof, &root), Err(ProofError::WrongRoot));
    }

    #[test]
    fn a_mutated_consistency_proof_fails(new in 2..130_u64, at in any::<prop::sample::Index>(), what in any::<prop::sample::Index>(),
                                         byte in 0..32_usize, bit in 0..8_u32) {
        let leaves = numbered_leaves(new);
        let old = 1 + at.index(new as usize - 1) as u64;
        let mut proof = prove_consistency(old, new, source(&leaves)).unwrap();
        let (mut old_root, mut new_root) = (root_of(&leaves[..old as usize]), root_of(&leaves));
        let target = match what.index(proof.len() + 2) {
            0 => &mut old_root,
            1 => &mut new_root,
            n => &mut proof[n - 2],
        };
        target[byte] ^= 1 << bit;
        prop_assert_eq!(verify_consistency(old, &old_root, new, &new_root, &proof), Err(ProofError::WrongRoot));
    }

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), index: u64, size: u64,
                            proof in proptest::collection::vec(any::<[u8; 32]>(), 0..70)) {
        let _ = Frontier::decode(&bytes);
        prop_assert!(verify_inclusion(&[1; 32], index, size, &proof, &[2; 32]).is_err());
        prop_assert!(verify_consistency(index, &[1; 32], size, &[2; 32], &proof).is_err());
    }
}
