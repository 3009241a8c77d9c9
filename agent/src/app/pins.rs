//! PINs against their verifiers: Argon2id (RFC 9106), in memory that is wiped.
//!
//! A verifier lies on the ledger, so whoever has a replica can guess offline at Argon2id's price; `docs/THREAT-MODEL.md` says so. (The
//! threshold form, where a guess needs the holders, replaces it.) The PIN itself never leaves secret memory, and nothing here remembers it.

use std::sync::{Condvar, Mutex, PoisonError};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use mayfly_protocol::record::PinVerifier;
use zeroize::Zeroize;

use super::ck::{CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY, CKR_PIN_LEN_RANGE};
use super::fail::{Done, Fail};

/// Shortest PIN, bytes.
pub const PIN_BYTES_MIN: usize = 4;
/// PINs that are checked at the same time; others wait their turn.
pub const CHECKS_AT_ONCE: usize = 2;

/// Whether there is a PIN.
pub fn is_set(verifier: Option<&PinVerifier>) -> bool {
    verifier.is_some_and(|verifier| *verifier != PinVerifier::NONE)
}

/// Refuses PINs of a bad length.
///
/// # Errors
/// CKR_PIN_LEN_RANGE.
pub fn check_length(pin: &[u8]) -> Done<()> {
    if (PIN_BYTES_MIN..=mayfly_wire::PIN_BYTES_MAX).contains(&pin.len()) {
        Ok(())
    } else {
        Err(Fail::new(CKR_PIN_LEN_RANGE, "a PIN has 4 to 255 bytes"))
    }
}

/// A new verifier of `pin`, with a fresh salt. About 20 ms.
///
/// # Errors
/// CKR_DEVICE_ERROR if the kernel gives no randomness, CKR_DEVICE_MEMORY.
pub fn make(pin: &[u8]) -> Done<PinVerifier> {
    let (memory_kib, passes) = (*PinVerifier::MEMORY_KIB.start(), *PinVerifier::PASSES.start());
    let mut verifier = PinVerifier { memory_kib, passes, ..PinVerifier::NONE };
    mayfly_secmem::random(&mut verifier.salt)?;
    let mut tag = [0; 32]; // public: it goes to the ledger
    with_tag(&verifier, pin, |computed| tag = *computed)?;
    verifier.tag = tag;
    Ok(verifier)
}

/// Whether `pin` is the one that `verifier` was made of.
///
/// # Errors
/// CKR_DEVICE_ERROR if the verifier's cost is out of bounds, CKR_DEVICE_MEMORY.
pub fn is_right(verifier: &PinVerifier, pin: &[u8]) -> Done<bool> {
    let mut equal = false;
    with_tag(verifier, pin, |computed| equal = mayfly_secmem::ct_eq(computed, &verifier.tag))?;
    Ok(equal)
}

/// Computes the tag on the secret stack and lends it to `then`, there.
fn with_tag(verifier: &PinVerifier, pin: &[u8], then: impl FnOnce(&[u8; 32])) -> Done<()> {
    if !verifier.has_good_cost() {
        return Err(Fail::ruled(CKR_DEVICE_ERROR, "pin-cost", "the token's PIN verifier is too cheap or too costly"));
    }
    let unusable = || Fail::ruled(CKR_DEVICE_ERROR, "pin-verifier", "the token's PIN verifier cannot be used");
    let params = Params::new(verifier.memory_kib, verifier.passes, 1, Some(32)).map_err(|_| unusable())?;
    let _turn = Turn::take();
    let mut memory: Vec<Block> = Vec::new();
    let blocks = params.block_count();
    memory
        .try_reserve_exact(blocks)
        .map_err(|_| Fail::new(CKR_DEVICE_MEMORY, "no memory to check a PIN").retry(500))?;
    memory.resize(blocks, Block::new());
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let is_made = mayfly_secmem::on_secret_stack(|| {
        let mut tag = [0; 32];
        let is_made = argon2.hash_password_into_with_memory(pin, &verifier.salt, &mut tag, &mut memory).is_ok();
        if is_made {
            then(&tag);
        }
        is_made
    });
    memory.iter_mut().for_each(Zeroize::zeroize);
    if is_made { Ok(()) } else { Err(unusable()) }
}

/// One of [`CHECKS_AT_ONCE`] places.
struct Turn;

static BUSY: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Turn {
    fn take() -> Self {
        let busy = BUSY.lock().unwrap_or_else(PoisonError::into_inner);
        let mut busy = FREED.wait_while(busy, |busy| *busy >= CHECKS_AT_ONCE).unwrap_or_else(PoisonError::into_inner);
        *busy += 1;
        Self
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *BUSY.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_and_wrong() {
        let verifier = make(b"1234").unwrap();
        for (pin, right) in [(&b"1234"[..], true), (b"1235", false), (b"", false), (b"12345", false)] {
            assert_eq!(is_right(&verifier, pin).unwrap(), right, "{pin:?}");
        }
        assert_ne!(make(b"1234").unwrap().tag, verifier.tag, "salted");
    }

    #[test]
    fn own_memory_changes_nothing() {
        // Same inputs through the crate's own memory handling.
        let verifier = PinVerifier { salt: *b"somesalt12345678", memory_kib: 20 << 10, passes: 2, tag: [0; 32] };
        let mut ours = [0; 32];
        with_tag(&verifier, b"password", |tag| ours = *tag).unwrap();
        let mut theirs = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(20 << 10, 2, 1, None).unwrap())
            .hash_password_into(b"password", b"somesalt12345678", &mut theirs)
            .unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn verifiers_that_cost_too_much_or_little_are_refused() {
        let good = make(b"1234").unwrap();
        for bad in [
            PinVerifier { memory_kib: PinVerifier::MEMORY_KIB.end() + 1, ..good.clone() },
            PinVerifier { memory_kib: PinVerifier::MEMORY_KIB.start() - 1, ..good.clone() },
            PinVerifier { passes: PinVerifier::PASSES.end() + 1, ..good.clone() },
            PinVerifier { passes: 1, ..good.clone() },
            PinVerifier { memory_kib: 0, passes: 0, ..good.clone() },
        ] {
            assert_eq!(is_right(&bad, b"1234").unwrap_err().code, CKR_DEVICE_ERROR, "{bad:?}");
        }
    }

    #[test]
    fn no_pin_matches_nothing() {
        assert!(!is_set(None) && !is_set(Some(&PinVerifier::NONE)) && is_set(Some(&make(b"1234").unwrap())));
        assert!(is_right(&PinVerifier::NONE, b"").is_err());
    }

    #[test]
    fn lengths() {
        for (length, ok) in [(0, false), (3, false), (4, true), (255, true), (256, false)] {
            assert_eq!(check_length(&vec![b'1'; length]).is_ok(), ok, "{length}");
        }
    }
}
