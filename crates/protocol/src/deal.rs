//! Making a key: the dealer's record, what a holder checks before it accepts, and what its acceptance says.
//!
//! The dealer sends each holder the [`Key`] without acceptances and, in the inner envelope, the holder's shard. The holder checks
//! the record against its own state ([`State::check_deal`]), the shard against the commitments, saves it sealed as *pending*, and signs.
//! When enough holders have signed, the dealer posts the record; until its deadline the ledger takes it, after that nobody can.

use crate::ids::{KeyId, NetworkId, ShardId};
use crate::record::{Key, ShardRecord};
use crate::rules::KeyType;
use crate::state::State;
use mayfly_crypto::enc;
use mayfly_crypto::pedersen::{self, Commitment, ShareError};
use mayfly_secmem::Secret;

/// Largest wrapped key in bytes.
pub const WRAPPED_BYTES_MAX: usize = 6 * 1024;
/// Time after a deadline when no witness would cosign an entry from before it any more, in milliseconds, beyond the skew bound.
pub const DEADLINE_MARGIN_MS: u64 = 5_000;

/// A key's id: it follows from the commitment to its root, so it is fixed for ever and cannot be chosen.
pub fn key_id(network: &NetworkId, first_commitment: &[u8; 32]) -> KeyId {
    KeyId(enc::hash("mayfly/v1/key", &[network.as_bytes(), first_commitment]))
}

/// A shard's id: new in each epoch.
pub fn shard_id(key: &KeyId, generation: u64, epoch: u64, index: u32) -> ShardId {
    let numbers = [generation.to_be_bytes(), epoch.to_be_bytes(), u64::from(index).to_be_bytes()];
    ShardId(enc::hash("mayfly/v1/shard", &[key.as_bytes(), &numbers[0], &numbers[1], &numbers[2]]))
}

/// What a holder signs: that it has checked and saved its shard of exactly this key, until the deadline in it.
pub fn acceptance_message(network: &NetworkId, key: &Key, shard: &ShardRecord) -> Vec<u8> {
    let bare = Key { acceptances: Vec::new(), ..key.clone() };
    let digest = crate::entry::sha256(&crate::cbor::to_vec(&bare));
    enc::enc("mayfly/v1/accept", &[network.as_bytes(), &digest, shard.id.as_bytes(), shard.device.as_bytes()])
}

/// Rules that a key record keeps by itself, whatever the state. Text of the broken rule.
pub fn check_shape(network: &NetworkId, key: &Key) -> Result<(), String> {
    let fail = |condition: bool, text: &str| if condition { Ok(()) } else { Err(text.to_owned()) };
    let (t, n) = (usize::from(key.t), key.shards.len());
    fail(2 <= t && t <= n && n <= pedersen::MAX_SHARES, "a key needs 2 <= t <= n <= 63")?;
    fail(key.commitments.len() == t, "exactly t commitments are needed")?;
    fail(commitment(key).check().is_ok(), "a commitment is not a point of ristretto255")?;
    fail(key.id == key_id(network, &key.commitments[0].0), "the key's id does not follow from its commitment")?;
    fail((key.generation, key.epoch) == (1, 1), "a new key has generation 1 and epoch 1")?;
    let key_type = KeyType::parse(&key.key_type).ok_or("key type is not known")?;
    fail(key.wrapped.is_some() || key_type.derived_bytes().is_some(), "this key type needs wrapped key bytes")?;
    fail(key.wrapped.as_ref().is_none_or(|w| w.len() <= WRAPPED_BYTES_MAX), "wrapped key is too long")?;
    fail(!key.assemblers.is_empty() && key.assemblers.len() <= crate::record::LIST_MAX, "1 to 256 assemblers")?;
    fail(key.assemblers.is_sorted_by(|a, b| a < b), "assemblers are listed ascending, each once")?;
    fail(key.shards.is_sorted_by(|a, b| a.index < b.index), "shards are listed ascending by index, each once")?;
    for (at, shard) in key.shards.iter().enumerate() {
        fail(shard.index != 0, "a shard has index 0")?;
        fail(shard.id == shard_id(&key.id, 1, 1, shard.index), "a shard's id does not follow from its index")?;
        fail(shard.valid_from_ms < shard.valid_until_ms, "a shard is never valid")?;
        fail(!key.shards[..at].iter().any(|s| s.device == shard.device), "a device has two shards")?;
    }
    Ok(())
}

/// The commitment of a key record in the form that shares are checked against.
pub fn commitment(key: &Key) -> Commitment {
    Commitment { coefficients: key.commitments.iter().map(|c| c.0).collect() }
}

/// Why a holder does not accept.
#[derive(Debug, thiserror::Error)]
pub enum DealRefused {
    /// The record breaks a rule.
    #[error("key record is not acceptable: {0}")]
    Rule(String),
    /// No shard in it is for this device.
    #[error("no shard of this key is for this device")]
    NotForUs,
    /// The shard does not fit the commitments: the dealer is at fault.
    #[error("shard does not fit the dealer's commitments")]
    Shard(#[from] ShareError),
}

/// A holder's whole check of a deal. The caller seals and saves the shard before it signs [`acceptance_message`].
pub fn check_offer<'k>(
    state: &State,
    key: &'k Key,
    dealer: &crate::DeviceId,
    holder: &crate::DeviceId,
    share: &Secret<64>,
) -> Result<&'k ShardRecord, DealRefused> {
    state.check_deal(key, dealer).map_err(DealRefused::Rule)?;
    let shard = key.shards.iter().find(|s| s.device == *holder).ok_or(DealRefused::NotForUs)?;
    pedersen::verify(shard.index, share, &commitment(key))?;
    Ok(shard)
}
