//! Many signatures at once.

use super::{PublicKey, SIGNATURE_BYTES, SignError};
use ed25519_zebra::VerificationKeyBytes;
use p256::elliptic_curve::rand_core::{TryCryptoRng, TryRng};
use sha2::{Digest, Sha256};
use std::convert::Infallible;
use thiserror::Error;

/// From this many Ed25519 signatures on a batch is tried; below it, one by one is as fast.
const BATCH_MIN: usize = 3;

/// The first signature of a batch that does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("signature {index} of the batch is refused")]
pub struct BatchError {
    /// Its place in the slice, from 0.
    pub index: usize,
    /// Why.
    #[source]
    pub cause: SignError,
}

/// Checks `(key, message, signature)` triples; accepts exactly what [`PublicKey::verify`] accepts one by one (up to a chance of 2^-128 that
/// a bad batch passes).
///
/// # Errors
/// [`BatchError`] names the first bad one.
pub fn verify_batch(items: &[(PublicKey, &[u8], &[u8])]) -> Result<(), BatchError> {
    let ed25519_holds = ed25519_batch_holds(items);
    for (index, (key, message, signature)) in items.iter().enumerate() {
        if ed25519_holds && matches!(key, PublicKey::Ed25519(_)) {
            continue;
        }
        key.verify(message, signature).map_err(|cause| BatchError { index, cause })?;
    }
    Ok(())
}

/// Whether all Ed25519 signatures verify as one batch; `false` also when no batch was tried.
fn ed25519_batch_holds(items: &[(PublicKey, &[u8], &[u8])]) -> bool {
    let count = items.iter().filter(|(key, ..)| matches!(key, PublicKey::Ed25519(_))).count();
    let mut seed = [0; 32];
    if count < BATCH_MIN || getrandom::fill(&mut seed).is_err() {
        return false;
    }
    let mut batch = ed25519_zebra::batch::Verifier::new();
    for (key, message, signature) in items {
        let PublicKey::Ed25519(key) = key else {
            continue;
        };
        let Ok(signature) = <[u8; SIGNATURE_BYTES]>::try_from(*signature) else {
            return false;
        };
        batch.queue((VerificationKeyBytes::from(*key), ed25519_zebra::Signature::from(signature), *message));
    }
    batch.verify(Weights { seed, counter: 0 }).is_ok()
}

/// The random weights of a batch: SHA-256 over a fresh seed and a counter, so that the kernel is asked once.
struct Weights {
    seed: [u8; 32],
    counter: u64,
}

impl TryRng for Weights {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        for chunk in out.chunks_mut(32) {
            let block = Sha256::new().chain_update(self.seed).chain_update(self.counter.to_be_bytes()).finalize();
            self.counter += 1;
            chunk.copy_from_slice(&block[..chunk.len()]);
        }
        Ok(())
    }
}

impl TryCryptoRng for Weights {}
