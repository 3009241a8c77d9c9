//! Pedersen's verifiable secret sharing over ristretto255: a root, shared t-of-n.
//!
//! A dealer draws two polynomials of degree t-1, `f` with `f(0) = root` and `g` with a random `g(0)`, gives holder `x` the share
//! `(f(x), g(x))`, and publishes `C_k = f_k G + g_k H` for k < t. A share is checked by `f(x) G + g(x) H == sum of x^k C_k`, so a wrong one
//! names its holder before it is used. The commitments hide the root unconditionally: a later quantum computer learns nothing from them
//! (Pedersen, CRYPTO '91).
//!
//! - Every coefficient is uniform, zero included (RUSTSEC-2024-0398 is what a bias costs).
//! - A commitment has exactly t points: a longer one would silently raise the threshold (Trail of Bits, 2024).
//! - Combining takes exactly t shares with distinct, non-zero indices: an index 0 would replace the root, a repeated one would garble it.
//!
//! This module must never use a share that is not canonical, nor say more of a bad share than whose it is.

use curve25519_dalek::constants::RISTRETTO_BASEPOINT_TABLE;
use curve25519_dalek::ristretto::{CompressedRistretto, RistrettoBasepointTable, RistrettoPoint};
use curve25519_dalek::scalar::Scalar;
use curve25519_dalek::traits::Identity;
use mayfly_secmem::{
    Dense, Exhausted, RandomError, Secret, SecretBytes, on_secret_stack, random, runs_on_secret_stack,
};
use sha2::{Digest, Sha512};
use std::sync::{LazyLock, OnceLock};
use thiserror::Error;

/// Most shares of a key, and so the largest threshold.
pub const MAX_SHARES: usize = 63;
/// Smallest threshold: with 1 each share would be the root.
pub const THRESHOLD_MIN: usize = 2;
/// The second generator is `from_uniform_bytes(SHA-512(this string))` (RFC 9496 section 4.3.4): nobody knows its logarithm to the first.
pub const SECOND_GENERATOR_SEED: &str = "mayfly/v1/pedersen-h";

/// Random bytes behind one uniform scalar.
const WIDE_BYTES: usize = 64;

/// What one holder keeps: `f(x) || g(x)`, two canonical scalars, little-endian.
pub type Share = Secret<64>;

/// Why sharing, checking or combining is refused. Indices and counts are public.
#[derive(Debug, Error)]
pub enum ShareError {
    /// Not `2 <= t <= n <= 63`.
    #[error("a threshold of {t} with {n} shares is outside 2 <= t <= n <= 63")]
    Threshold {
        /// Threshold.
        t: usize,
        /// Number of shares.
        n: usize,
    },
    /// An index is zero or occurs twice.
    #[error("share index {0} is zero or repeated")]
    Index(u32),
    /// Not exactly t shares to combine.
    #[error("{actual} shares were given to combine where exactly {t} are needed")]
    Count {
        /// Threshold.
        t: usize,
        /// Shares given.
        actual: usize,
    },
    /// The commitment has other than t points.
    #[error("commitment has {actual} points where exactly {t} are needed")]
    CommitmentLength {
        /// Threshold.
        t: usize,
        /// Points given.
        actual: usize,
    },
    /// A point of the commitment is not canonical, or the identity.
    #[error("point {0} of the commitment is not a canonical, non-identity point")]
    CommitmentPoint(usize),
    /// The share with this index is not two canonical scalars.
    #[error("share {0} is not canonical")]
    NotCanonical(u32),
    /// The share with this index does not fit the commitment.
    #[error("share {0} does not fit the commitment")]
    Mismatch(u32),
    /// The root is not a canonical scalar.
    #[error("root is not a canonical scalar")]
    BadRoot,
    /// No slot for a secret.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// No randomness.
    #[error(transparent)]
    Random(RandomError),
}

impl From<RandomError> for ShareError {
    fn from(error: RandomError) -> Self {
        match error {
            RandomError::Memory(cause) => Self::Memory(cause),
            kernel => Self::Random(kernel),
        }
    }
}

/// The public commitments `C_0 .. C_(t-1)` to both polynomials of one sharing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Commitment {
    /// Compressed ristretto255 points; exactly as many as the threshold. `C_0` never changes while the root stays the same.
    pub coefficients: Vec<[u8; 32]>,
}

impl Commitment {
    /// The commitment of a sharing whose threshold is known, checked.
    ///
    /// # Errors
    /// [`ShareError::CommitmentLength`] unless there are exactly `t` points; those of [`Commitment::check`].
    pub fn new(t: u8, coefficients: Vec<[u8; 32]>) -> Result<Self, ShareError> {
        let (t, actual) = (usize::from(t), coefficients.len());
        if actual != t {
            return Err(ShareError::CommitmentLength { t, actual });
        }
        let commitment = Self { coefficients };
        commitment.check()?;
        Ok(commitment)
    }

    /// Whether these are 2 to 63 canonical points, none of them the identity. Whoever knows the threshold demands
    /// `coefficients.len() == t` besides.
    ///
    /// # Errors
    /// [`ShareError::Threshold`], [`ShareError::CommitmentPoint`].
    pub fn check(&self) -> Result<(), ShareError> {
        self.points().map(|_| ())
    }

    /// The threshold that this commitment stands for.
    #[must_use]
    pub fn threshold(&self) -> usize {
        self.coefficients.len()
    }

    fn points(&self) -> Result<Vec<RistrettoPoint>, ShareError> {
        let t = self.threshold();
        if !(THRESHOLD_MIN..=MAX_SHARES).contains(&t) {
            return Err(ShareError::Threshold { t, n: t });
        }
        let decode = |(k, bytes): (usize, &[u8; 32])| {
            let point = CompressedRistretto(*bytes).decompress();
            point.filter(|point| *point != RistrettoPoint::identity()).ok_or(ShareError::CommitmentPoint(k))
        };
        self.coefficients.iter().enumerate().map(decode).collect()
    }
}

/// A fresh uniform root: a canonical scalar.
///
/// # Errors
/// [`RandomError`] when there is no randomness or no slot.
pub fn random_root() -> Result<Secret<32>, RandomError> {
    let wide = Secret::<64>::try_new_with(|slot| random(slot))?;
    Ok(Secret::new_with(|slot| on_secret_stack(|| *slot = uniform(wide.expose()).to_bytes()))?)
}

/// Shares `root` among these indices so that any `t` shares give it back and fewer say nothing.
///
/// # Errors
/// [`ShareError`] when the parameters are out of range, the root is not canonical, or there is no slot or randomness.
pub fn deal(root: &Secret<32>, t: u8, indices: &[u32]) -> Result<(Commitment, Vec<(u32, Share)>), ShareError> {
    let t = usize::from(t);
    if t < THRESHOLD_MIN || t > indices.len() || indices.len() > MAX_SHARES {
        return Err(ShareError::Threshold { t, n: indices.len() });
    }
    check_indices(indices)?;
    prepare_table();
    let empty_slot = |index: &u32| Ok((*index, Secret::new_with(|_| ())?));
    let mut shares = indices.iter().map(empty_slot).collect::<Result<Vec<(u32, Share)>, ShareError>>()?;
    let randomness = SecretBytes::try_new_with(t * 2 * WIDE_BYTES, random)?;
    let mut coefficients = Vec::with_capacity(t);
    let dealt = on_secret_stack(|| {
        let Some(polynomials) = Polynomials::new(root, randomness.expose().as_chunks().0) else { return false };
        coefficients.extend(polynomials.commitments());
        shares.iter_mut().for_each(|(index, slot)| polynomials.evaluate(*index, slot.expose_mut()));
        true
    });
    if !dealt {
        return Err(ShareError::BadRoot);
    }
    Ok((Commitment { coefficients }, shares))
}

/// Checks a share against its sharing's commitment.
///
/// # Errors
/// [`ShareError::Mismatch`] or [`ShareError::NotCanonical`] when the share is bad; other variants when the index or the commitment is.
pub fn verify(index: u32, share: &Share, commitment: &Commitment) -> Result<(), ShareError> {
    check_indices(&[index])?;
    let expected = evaluate_points(&commitment.points()?, index);
    prepare_table();
    let verdict = on_secret_stack(|| match read_share(share) {
        None => Verdict::NotCanonical,
        Some((value, blind)) if commit(&value, &blind) == expected => Verdict::Fits,
        Some(_) => Verdict::Differs,
    });
    match verdict {
        Verdict::Fits => Ok(()),
        Verdict::NotCanonical => Err(ShareError::NotCanonical(index)),
        Verdict::Differs => Err(ShareError::Mismatch(index)),
    }
}

/// What leaves the secret stack after a check: a byte without a payload (see the crate's page).
#[repr(u8)]
enum Verdict {
    Fits,
    NotCanonical,
    Differs,
}

impl Dense for Verdict {}

/// Puts the root together from exactly `t` shares of one epoch.
///
/// Shares are not verified here: check the derived key's commitment afterwards, and [`verify`] each share when it differs.
///
/// # Errors
/// [`ShareError::Count`], [`ShareError::Index`], [`ShareError::NotCanonical`]; [`ShareError::Memory`].
pub fn combine(t: u8, shares: &[(u32, &Share)]) -> Result<Secret<32>, ShareError> {
    let t = usize::from(t);
    if !(THRESHOLD_MIN..=MAX_SHARES).contains(&t) {
        return Err(ShareError::Threshold { t, n: shares.len() });
    }
    if shares.len() != t {
        return Err(ShareError::Count { t, actual: shares.len() });
    }
    let indices: Vec<u32> = shares.iter().map(|(index, _)| *index).collect();
    check_indices(&indices)?;
    let weights = lagrange_weights(&indices);
    Secret::try_new_with(|slot| {
        // Zero, which is no index, stands for "none": a plain number leaves the secret stack.
        let not_canonical = on_secret_stack(|| {
            let mut root = Scalar::ZERO;
            for ((index, share), weight) in shares.iter().zip(&weights) {
                let Some((value, _)) = read_share(share) else { return *index };
                root += weight * value;
            }
            *slot = root.to_bytes();
            0
        });
        if not_canonical == 0 { Ok(()) } else { Err(ShareError::NotCanonical(not_canonical)) }
    })
}

/// The committed point of the share at `index`, `sum of index^k C_k`, compressed: what a redistribution holds a dealer to.
///
/// # Errors
/// [`ShareError::Index`] for index 0; those of [`Commitment::check`].
pub fn evaluate(commitment: &Commitment, index: u32) -> Result<[u8; 32], ShareError> {
    check_indices(&[index])?;
    Ok(evaluate_points(&commitment.points()?, index).compress().to_bytes())
}

/// The weight of the share at `index` when the shares at `indices` (which contain it) are interpolated at zero; little-endian.
///
/// # Errors
/// [`ShareError::Index`] when an index is zero or repeated, or `index` is not among them; [`ShareError::Threshold`] above 63.
pub fn lagrange_at_zero(index: u32, indices: &[u32]) -> Result<[u8; 32], ShareError> {
    if indices.len() > MAX_SHARES {
        return Err(ShareError::Threshold { t: indices.len(), n: indices.len() });
    }
    check_indices(indices)?;
    let weights = lagrange_weights(indices);
    let found = indices.iter().zip(weights).find(|(other, _)| **other == index);
    found.map(|(_, weight)| weight.to_bytes()).ok_or(ShareError::Index(index))
}

/// The two polynomials of a dealer. Lives on the secret stack only (4 KiB).
struct Polynomials {
    t: usize,
    /// `(f_k, g_k)`.
    coefficients: [(Scalar, Scalar); MAX_SHARES],
}

impl Polynomials {
    /// `f(0)` is the root, all other coefficients come from the randomness: two draws for each degree. `None` when the root is not canonical.
    fn new(root: &Secret<32>, randomness: &[[u8; 2 * WIDE_BYTES]]) -> Option<Self> {
        let mut polynomials = Self { t: randomness.len(), coefficients: [(Scalar::ZERO, Scalar::ZERO); MAX_SHARES] };
        for (coefficient, wide) in polynomials.coefficients.iter_mut().zip(randomness) {
            let ([value, blind], []) = wide.as_chunks() else { unreachable!("two draws are two halves") };
            *coefficient = (uniform(value), uniform(blind));
        }
        polynomials.coefficients[0].0 = canonical(root.expose())?;
        Some(polynomials)
    }

    fn commitments(&self) -> impl Iterator<Item = [u8; 32]> {
        self.coefficients[..self.t].iter().map(|(value, blind)| commit(value, blind).compress().to_bytes())
    }

    /// Horner's rule, both at once, into a share's slot.
    fn evaluate(&self, index: u32, slot: &mut [u8; 64]) {
        let x = Scalar::from(index);
        let start = (Scalar::ZERO, Scalar::ZERO);
        let step = |sum: (Scalar, Scalar), (value, blind): &(Scalar, Scalar)| (sum.0 * x + value, sum.1 * x + blind);
        let (value, blind) = self.coefficients[..self.t].iter().rev().fold(start, step);
        slot[..32].copy_from_slice(value.as_bytes());
        slot[32..].copy_from_slice(blind.as_bytes());
    }
}

/// Uniform over the scalars, zero included: 64 random bytes, reduced. The bias is below 2^-250.
fn uniform(wide: &[u8; WIDE_BYTES]) -> Scalar {
    Scalar::from_bytes_mod_order_wide(wide)
}

fn canonical(bytes: &[u8; 32]) -> Option<Scalar> {
    Scalar::from_canonical_bytes(*bytes).into()
}

fn read_share(share: &Share) -> Option<(Scalar, Scalar)> {
    let ([value, blind], []) = share.expose().as_chunks::<32>() else { unreachable!("64 bytes are two halves") };
    canonical(value).zip(canonical(blind))
}

fn check_indices(indices: &[u32]) -> Result<(), ShareError> {
    for (at, index) in indices.iter().enumerate() {
        if *index == 0 || indices[..at].contains(index) {
            return Err(ShareError::Index(*index));
        }
    }
    Ok(())
}

/// `w_i = product over j != i of x_j / (x_j - x_i)`, with one inversion for all. Indices are distinct and not zero; they are public.
fn lagrange_weights(indices: &[u32]) -> Vec<Scalar> {
    let others = |i: usize| indices.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, x)| Scalar::from(*x));
    let denominator = |(i, x): (usize, &u32)| others(i).map(|other| other - Scalar::from(*x)).product();
    let mut weights: Vec<Scalar> = indices.iter().enumerate().map(denominator).collect();
    // No factor is zero, since indices are distinct and far below the order.
    Scalar::invert_batch_alloc(&mut weights);
    weights.iter_mut().enumerate().for_each(|(i, weight)| *weight *= others(i).product::<Scalar>());
    weights
}

/// `sum of index^k C_k` by Horner's rule. The index is public and small, so each step is a few doublings instead of 255.
fn evaluate_points(points: &[RistrettoPoint], index: u32) -> RistrettoPoint {
    points.iter().rev().fold(RistrettoPoint::identity(), |sum, point| times_public(&sum, index) + point)
}

/// `factor * point` in a time that depends on `factor`.
fn times_public(point: &RistrettoPoint, factor: u32) -> RistrettoPoint {
    let bits = (0..u32::BITS - factor.leading_zeros()).rev();
    bits.fold(RistrettoPoint::identity(), |product, bit| {
        let doubled = product + product;
        if (factor >> bit) & 1 == 1 { doubled + point } else { doubled }
    })
}

/// `value G + blind H`, in constant time.
fn commit(value: &Scalar, blind: &Scalar) -> RistrettoPoint {
    let blinding = match SECOND_TABLE.get() {
        Some(table) => blind * table.as_ref(),
        None => blind * *SECOND_GENERATOR,
    };
    value * RISTRETTO_BASEPOINT_TABLE + blinding
}

static SECOND_GENERATOR: LazyLock<RistrettoPoint> =
    LazyLock::new(|| RistrettoPoint::from_uniform_bytes(&Sha512::digest(SECOND_GENERATOR_SEED).into()));

/// Multiples of the second generator: three times faster than without.
static SECOND_TABLE: OnceLock<Box<RistrettoBasepointTable>> = OnceLock::new();

/// Makes the table, except on the secret stack: it passes 30 KiB through the stack while it is made. Without it [`commit`] is only slower.
fn prepare_table() {
    if !runs_on_secret_stack() {
        SECOND_TABLE.get_or_init(|| Box::new(RistrettoBasepointTable::create(&SECOND_GENERATOR)));
    }
}

#[cfg(test)]
mod tests;
