use super::*;
use proptest::prelude::*;
use proptest::sample::subsequence;

/// The second generator, computed by an independent implementation of RFC 9496 (Python integers).
const SECOND_GENERATOR_HEX: &str = "707a11ce85435dfa4d79c2cb68bc3051775235a1fd31cc03b07418ad87f0c753";

/// One sharing with f_k = SHA-512("f<k>") and g_k = SHA-512("g<k>") mod the order (little-endian), k < 3, by the same implementation.
const ROOT: &str = "2718b8e8fa68d0fb357c1807a2a9c5fe20426f525c9b8ccba680debc8b0c5b08";
const COMMITMENT: [&str; 3] = [
    "fa33d07bda722ed38264162b09600f01229cbfe2f7405a2e2254ffc2e5729328",
    "76e48d7b8f5aa43762b1751752fb707fe0fd52e71cde82c5275a79723859e914",
    "30da67c6c2cd75d7c122a0f2e28772e89e0065331183c0c21b29bafbfee56d48",
];
const SHARES: [(u32, &str, &str); 4] = [
    (
        1,
        "f5853e0d32d55dab9dd524f8fd458289a9bdb65c09af8aa4c2168922f7a76a04",
        "9a31e1427a64c83af9d91342e34ccaf8c143669ea430ecf53750e9c5149fed0d",
    ),
    (
        2,
        "9b7cf4c5956643c584420fc9ae977c6629f904541a28a6f56201b63be4bfa307",
        "5d2875998172a6ff05375cb4cf29d7e60b28d915e76b67777af6de41d0864302",
    ),
    (
        5,
        "d61952527dd0cd88b3271c9222df40ac742b18c8a4f3a8b95ebc4abcb5f2470c",
        "0f90b06a4063c0a453364a7bb8bda2ee826cd2ee74d26b95b2975e10fe1ddc02",
    ),
    (
        u32::MAX,
        "67c260a5eaed9c62a7e05716b731aa3ac9408bcec54ddc35a29a0b26a9b7ea07",
        "7141ae4f349ecfd645934aee6653e621df4036fba1c2b3c8278203f194010d02",
    ),
];
const WEIGHTS_OF_1_2_5: [&str; 3] = [
    "f9e97a2e8d31092c6bce7b51ef7c6f0a00000000000000000000000000000008",
    "478d4e9311420c903913a56c94a694b8aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0a",
    "9b3022f895520ff40758ce8739d0b9665555555555555555555555555555550d",
];

fn bytes<const N: usize>(hex_text: &str) -> [u8; N] {
    hex::decode(hex_text).unwrap().try_into().unwrap()
}

fn secret<const N: usize>(value: [u8; N]) -> Secret<N> {
    Secret::new_with(|slot| *slot = value).unwrap()
}

fn known_commitment() -> Commitment {
    Commitment::new(3, COMMITMENT.iter().map(|point| bytes(point)).collect()).unwrap()
}

fn known_shares() -> Vec<(u32, Share)> {
    SHARES.iter().map(|(x, f, g)| (*x, secret(bytes(&[*f, *g].concat())))).collect()
}

fn borrow<'a>(shares: impl IntoIterator<Item = &'a (u32, Share)>) -> Vec<(u32, &'a Share)> {
    shares.into_iter().map(|(index, share)| (*index, share)).collect()
}

/// The order of the group, little-endian: the smallest encoding that is not canonical.
fn order() -> [u8; 32] {
    let mut order = (-Scalar::ONE).to_bytes();
    order[0] += 1;
    order
}

#[test]
fn the_second_generator_is_pinned() {
    assert_eq!(hex::encode(SECOND_GENERATOR.compress().to_bytes()), SECOND_GENERATOR_HEX);
}

#[test]
fn known_answers() {
    let (commitment, shares) = (known_commitment(), known_shares());
    let scalar = |text| canonical(&bytes(text)).unwrap();
    let mut polynomials = Polynomials { t: 3, coefficients: [(Scalar::ZERO, Scalar::ZERO); MAX_SHARES] };
    for (k, coefficient) in polynomials.coefficients[..3].iter_mut().enumerate() {
        let uniform = |name: &str| Scalar::from_bytes_mod_order_wide(&Sha512::digest(format!("{name}{k}")).into());
        *coefficient = (uniform("f"), uniform("g"));
    }
    assert_eq!(polynomials.coefficients[0].0, scalar(ROOT));
    assert_eq!(polynomials.commitments().collect::<Vec<_>>(), commitment.coefficients);
    for (index, share) in &shares {
        let mut slot = [0; 64];
        polynomials.evaluate(*index, &mut slot);
        assert_eq!(slot, *share.expose());
        verify(*index, share, &commitment).unwrap();
    }
    for (index, weight) in [1, 2, 5].iter().zip(WEIGHTS_OF_1_2_5) {
        assert_eq!(hex::encode(lagrange_at_zero(*index, &[1, 2, 5]).unwrap()), weight);
    }
    for skip in 0..4 {
        let chosen = borrow(shares.iter().enumerate().filter(|(i, _)| *i != skip).map(|(_, share)| share));
        assert_eq!(hex::encode(combine(3, &chosen).unwrap().expose()), ROOT);
    }
}

#[test]
fn committing_is_the_same_with_and_without_the_table() {
    let (value, blind) = (Scalar::from(5_u8), -Scalar::from(7_u8));
    let by_hand = &value * RISTRETTO_BASEPOINT_TABLE + blind * *SECOND_GENERATOR;
    let inside = on_secret_stack(|| deal(&random_root().unwrap(), 2, &[1, 2]).is_ok());
    assert!(inside);
    prepare_table();
    assert_eq!(commit(&value, &blind), by_hand);
}

#[test]
fn deal_refuses_parameters_out_of_range() {
    let root = random_root().unwrap();
    let many: Vec<u32> = (1..=64).collect();
    let threshold = |result: Result<_, ShareError>| matches!(result, Err(ShareError::Threshold { .. }));
    for (t, indices) in
        [(0, &many[..3]), (1, &many[..3]), (4, &many[..3]), (2, &many[..64]), (64, &many[..64]), (2, &[])]
    {
        assert!(threshold(deal(&root, t, indices)), "t = {t}, n = {}", indices.len());
    }
    for indices in [[0, 1, 2], [1, 2, 1], [7, 7, 7]] {
        assert!(matches!(deal(&root, 2, &indices), Err(ShareError::Index(_))), "{indices:?}");
    }
    assert!(matches!(deal(&secret(order()), 2, &many[..3]), Err(ShareError::BadRoot)));
    assert!(matches!(deal(&secret([0xff; 32]), 2, &many[..3]), Err(ShareError::BadRoot)));
    let (commitment, shares) = deal(&root, 63, &many[..63]).unwrap();
    assert_eq!((commitment.threshold(), shares.len()), (63, 63));
    shares.iter().for_each(|(index, share)| verify(*index, share, &commitment).unwrap());
    assert_eq!(combine(63, &borrow(&shares)).unwrap().expose(), root.expose());
}

#[test]
fn combine_refuses_what_would_give_another_root() {
    let shares = known_shares();
    let all = borrow(&shares);
    for (t, count) in [(3, 0), (3, 2), (3, 4), (2, 3)] {
        assert!(matches!(combine(t, &all[..count]), Err(ShareError::Count { .. })), "{count} shares for t = {t}");
    }
    for t in [0, 1, 64, 255] {
        assert!(matches!(combine(t, &all[..1]), Err(ShareError::Threshold { .. })), "t = {t}");
    }
    for index in [0, 1] {
        let chosen = [all[0], (index, all[1].1), all[2]];
        assert!(matches!(combine(3, &chosen), Err(ShareError::Index(found)) if found == index));
    }
    for half in [0, 32] {
        let mut large = *all[1].1.expose();
        large[half..half + 32].copy_from_slice(&order());
        let large = secret(large);
        assert!(matches!(combine(3, &[all[0], (2, &large), all[2]]), Err(ShareError::NotCanonical(2))));
        assert!(matches!(verify(2, &large, &known_commitment()), Err(ShareError::NotCanonical(2))));
    }
}

#[test]
fn commitments_have_exactly_t_canonical_points() {
    let good = known_commitment().coefficients;
    for count in [0, 1, 2] {
        assert!(matches!(Commitment::new(3, good[..count].to_vec()), Err(ShareError::CommitmentLength { .. })));
    }
    let longer = [good.clone(), vec![good[0]]].concat();
    assert!(matches!(Commitment::new(3, longer), Err(ShareError::CommitmentLength { t: 3, actual: 4 })));
    for count in [0, 1, 64] {
        let commitment = Commitment { coefficients: vec![good[0]; count] };
        assert!(matches!(commitment.check(), Err(ShareError::Threshold { .. })));
        assert!(matches!(verify(1, &known_shares()[0].1, &commitment), Err(ShareError::Threshold { .. })));
    }
    // The identity; a negative field element; one that is not below the prime; one on no point (RFC 9496 appendix A.2).
    let bad_points = [
        "00".repeat(32),
        "0100000000000000000000000000000000000000000000000000000000000000".to_owned(),
        "f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f".to_owned(),
        "26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371".to_owned(),
    ];
    for bad in bad_points {
        for k in 0..3 {
            let mut points = good.clone();
            points[k] = bytes(&bad);
            assert!(matches!(Commitment::new(3, points), Err(ShareError::CommitmentPoint(at)) if at == k), "{bad}");
        }
    }
}

#[test]
fn verify_names_the_bad_share_and_only_it() {
    let commitment = known_commitment();
    for (index, share) in known_shares() {
        for byte in [0, 31, 32, 63] {
            let mut flipped = *share.expose();
            flipped[byte] ^= 1;
            let refused = verify(index, &secret(flipped), &commitment);
            assert!(matches!(refused, Err(ShareError::Mismatch(at) | ShareError::NotCanonical(at)) if at == index));
        }
        assert!(matches!(verify(index - 1, &share, &commitment), Err(ShareError::Mismatch(_) | ShareError::Index(0))));
        assert!(matches!(verify(0, &share, &commitment), Err(ShareError::Index(0))));
    }
}

#[test]
fn evaluate_is_the_commitment_to_a_share() {
    let commitment = known_commitment();
    for (index, share) in known_shares() {
        let (value, blind) = read_share(&share).unwrap();
        let expected = &value * RISTRETTO_BASEPOINT_TABLE + blind * *SECOND_GENERATOR;
        assert_eq!(evaluate(&commitment, index).unwrap(), expected.compress().to_bytes());
    }
    assert!(matches!(evaluate(&commitment, 0), Err(ShareError::Index(0))));
    assert!(matches!(lagrange_at_zero(3, &[1, 2]), Err(ShareError::Index(3))));
    assert!(matches!(lagrange_at_zero(1, &[1, 1]), Err(ShareError::Index(1))));
    assert!(matches!(lagrange_at_zero(0, &[0, 1]), Err(ShareError::Index(0))));
}

/// RUSTSEC-2024-0398: with coefficients that are never zero a share is never the root. Here the leading coefficient's low byte is
/// watched, where a bias of that kind or a missing reduction shows.
#[test]
fn coefficients_are_uniform_zero_included() {
    const DEALS: usize = 4_096;
    let root = random_root().unwrap();
    let mut seen = [0_u32; 256];
    for _ in 0..DEALS {
        let mut randomness = [[0; 2 * WIDE_BYTES]; 2];
        random(randomness.as_flattened_mut()).unwrap();
        let polynomials = Polynomials::new(&root, &randomness).unwrap();
        seen[usize::from(polynomials.coefficients[1].0.to_bytes()[0])] += 1;
    }
    // 16 expected in each; a uniform draw misses one of 256 values with a chance of about 3 in 100,000.
    assert!(seen.iter().all(|count| *count > 0 && *count < 64), "{seen:?}");
}

#[test]
fn roots_and_deals_differ_each_time() {
    let (first, second) = (random_root().unwrap(), random_root().unwrap());
    assert_ne!(first.expose(), second.expose());
    let (one, one_shares) = deal(&first, 2, &[1, 2]).unwrap();
    let (two, two_shares) = deal(&first, 2, &[1, 2]).unwrap();
    assert_ne!(one, two);
    assert_ne!(one_shares[0].1.expose(), two_shares[0].1.expose());
}

/// t, distinct indices with at least t of them, and which t are chosen.
fn sharing() -> impl Strategy<Value = (u8, Vec<u32>, Vec<usize>)> {
    let indices = proptest::collection::btree_set(prop_oneof![1..64_u32, any::<u32>().prop_map(|x| x.max(1))], 2..12);
    let indices = indices.prop_map(|set| set.into_iter().collect::<Vec<u32>>()).prop_shuffle();
    indices.prop_flat_map(|indices| {
        let n = indices.len();
        (2..=n, Just(indices)).prop_flat_map(move |(t, indices)| {
            (Just(t as u8), Just(indices), subsequence((0..n).collect::<Vec<_>>(), t).prop_shuffle())
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_t_shares_give_the_root((t, indices, chosen) in sharing()) {
        let root = random_root().unwrap();
        let (commitment, shares) = deal(&root, t, &indices).unwrap();
        prop_assert_eq!(commitment.threshold(), usize::from(t));
        for (index, share) in &shares {
            prop_assert!(verify(*index, share, &commitment).is_ok());
        }
        let chosen = borrow(chosen.iter().map(|at| &shares[*at]));
        let combined = combine(t, &chosen).unwrap();
        prop_assert_eq!(combined.expose(), root.expose());
    }

    /// t-1 shares fit every root: with any value in the place of the t-th the interpolation is some root, and each value gives another.
    #[test]
    fn fewer_shares_fit_any_root((t, indices, chosen) in sharing(), wanted: [u8; 32]) {
        let root = random_root().unwrap();
        let (_, shares) = deal(&root, t, &indices).unwrap();
        let wanted = Scalar::from_bytes_mod_order(wanted);
        let points: Vec<u32> = chosen.iter().map(|at| shares[*at].0).collect();
        let weights = lagrange_weights(&points);
        // Solve for the last share's value so that the sum is the wanted root.
        let (last, known) = chosen.split_last().unwrap();
        let sum: Scalar = known.iter().zip(&weights).map(|(at, w)| w * read_share(&shares[*at].1).unwrap().0).sum();
        let value = (wanted - sum) * weights.last().unwrap().invert();
        let mut invented = *shares[*last].1.expose();
        invented[..32].copy_from_slice(value.as_bytes());
        let invented = secret(invented);
        let mut all = borrow(known.iter().map(|at| &shares[*at]));
        all.push((shares[*last].0, &invented));
        prop_assert_eq!(*combine(t, &all).unwrap().expose(), wanted.to_bytes());
    }

    #[test]
    fn mixed_epochs_give_neither_root_and_are_found((t, indices, chosen) in sharing(), swap in any::<prop::sample::Index>()) {
        let root = random_root().unwrap();
        let (old, old_shares) = deal(&root, t, &indices).unwrap();
        let (new, new_shares) = deal(&root, t, &indices).unwrap();
        let swap = swap.index(chosen.len());
        let mixed: Vec<&(u32, Share)> = chosen.iter().enumerate()
            .map(|(i, at)| if i == swap { &new_shares[*at] } else { &old_shares[*at] }).collect();
        let combined = combine(t, &borrow(mixed.iter().copied())).unwrap();
        prop_assert_ne!(combined.expose(), root.expose());
        for (i, (index, share)) in mixed.into_iter().enumerate() {
            prop_assert_eq!(verify(*index, share, &old).is_ok(), i != swap);
            prop_assert_eq!(verify(*index, share, &new).is_ok(), i == swap);
        }
    }

    #[test]
    fn redistribution_helpers_agree_with_sharing((t, indices, chosen) in sharing()) {
        // The Lagrange combination of committed points at zero is C_0: what DEAL's check relies on.
        let (commitment, _) = deal(&random_root().unwrap(), t, &indices).unwrap();
        let points: Vec<u32> = chosen.iter().map(|at| indices[*at]).collect();
        let sum = points.iter().fold(RistrettoPoint::identity(), |sum, index| {
            let point = CompressedRistretto(evaluate(&commitment, *index).unwrap()).decompress().unwrap();
            sum + point * canonical(&lagrange_at_zero(*index, &points).unwrap()).unwrap()
        });
        prop_assert_eq!(sum.compress().to_bytes(), commitment.coefficients[0]);
    }

    #[test]
    fn garbage_commitments_never_panic(coefficients in proptest::collection::vec(any::<[u8; 32]>(), 0..5), index: u32) {
        let commitment = Commitment { coefficients };
        let _ = (commitment.check(), evaluate(&commitment, index));
        let _ = verify(index, &known_shares()[0].1, &commitment);
    }
}
