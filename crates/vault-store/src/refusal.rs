//! What every vault refuses in the same words, by the rules of the plugin interface for generations and identity.

use mayfly_plugin_abi::{GuestError, Status, Tier};

/// `next` may be staged over `current` when it follows it.
///
/// # Errors
/// [`Status::Invalid`].
pub fn check_next(current: u64, next: u64) -> Result<(), GuestError> {
    if Some(next) == current.checked_add(1) {
        return Ok(());
    }
    Err(GuestError::new(Status::Invalid, format!("generation {next} cannot be staged over {current}")))
}

/// A generation was asked for that is not the committed one.
#[must_use]
pub fn does_not_open(generation: u64, current: u64) -> GuestError {
    let text = format!("generation {generation} does not open, the committed one is {current}");
    GuestError::new(Status::NoGeneration, text)
}

/// The generation opens, but this tier was not staged under it.
#[must_use]
pub fn no_key(tier: Tier, generation: u64) -> GuestError {
    GuestError::new(Status::NotFound, format!("tier {tier:?} has no key in generation {generation}"))
}

/// A commit of what is not there.
#[must_use]
pub fn not_staged(next: u64, current: u64) -> GuestError {
    let text = format!("generation {next} is neither staged nor committed, the committed one is {current}");
    GuestError::new(Status::NoGeneration, text)
}

/// There is no identity, and none was to be made.
#[must_use]
pub fn no_identity() -> GuestError {
    GuestError::new(Status::NoIdentity, "there is no identity key yet")
}
