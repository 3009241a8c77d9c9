//! Synthetic IVs.
//!
//! ```text
//! IV = HMAC-SHA-256(K_iv, enc("mayfly/v1/iv", mode, context, rnd, aad, plaintext)), its first bytes
//! ```
//!
//! | Mode | Byte | `rnd` | Equal inputs |
//! |---|---|---|---|
//! | [`Mode::Hedged`] (default) | 0x01 | 32 fresh random bytes | give different IVs; with a broken random generator, equal ones and no worse |
//! | [`Mode::Deterministic`] | 0x00 | empty | give equal IVs: this shows that they are equal |
//! | [`Mode::Random`] | 0x02 | empty | nothing is hashed: the IV is random (the RBG construction of SP 800-38D section 8.2.2) |
//!
//! Lengths are encoded before contents, so no boundary slides, and the plaintext is never copied. Limits on the number of IVs under one key
//! are the caller's to keep. An IV is public; the HMAC state is not: it lives on the secret stack or in the arena.

use crate::enc::{Encoder, Sink};
use hmac::{Hmac, KeyInit, Mac};
use mayfly_secmem::{Exhausted, RandomError, Secret, on_secret_stack, random};
use sha2::Sha256;
use thiserror::Error;

mod stream;
pub use stream::Stream;

/// Longest IV: one HMAC output. The shortest is 1 byte; 12 fits GCM, 16 CBC.
pub const IV_BYTES_MAX: usize = 32;
/// Bytes of `rnd` in hedged mode.
pub const RND_BYTES: usize = 32;

const LABEL: &str = "mayfly/v1/iv";
const FIELDS: usize = 5;

/// How an IV is made; the number is its byte in the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Mode {
    /// From the inputs alone.
    Deterministic = 0x00,
    /// From the inputs and 32 random bytes.
    #[default]
    Hedged = 0x01,
    /// From the kernel's random generator alone.
    Random = 0x02,
}

impl TryFrom<u8> for Mode {
    type Error = IvError;

    fn try_from(byte: u8) -> Result<Self, IvError> {
        match byte {
            0x00 => Ok(Self::Deterministic),
            0x01 => Ok(Self::Hedged),
            0x02 => Ok(Self::Random),
            _ => Err(IvError::UnknownMode(byte)),
        }
    }
}

/// Why no IV is made.
#[derive(Debug, Error)]
pub enum IvError {
    /// No such mode byte.
    #[error("unknown IV mode {0}")]
    UnknownMode(u8),
    /// `rnd` has another length than its mode demands.
    #[error("{mode:?} mode was given {actual} random bytes")]
    RndLength {
        /// The mode.
        mode: Mode,
        /// Bytes given.
        actual: usize,
    },
    /// Longer than an HMAC output, or empty.
    #[error("an IV of {0} bytes is outside 1 to 32")]
    IvLength(usize),
    /// The plaintext of a stream was longer or shorter than announced.
    #[error("plaintext differs from the {announced} bytes that were announced")]
    PlaintextLength {
        /// Bytes announced.
        announced: u64,
    },
    /// Random mode has nothing to stream.
    #[error("random mode takes no plaintext")]
    NothingToStream,
    /// No slot for a secret.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// No randomness.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Fills `out` (1 to 32 bytes) with the IV of these inputs. `rnd` is 32 fresh bytes in hedged mode, else empty; random mode ignores all else.
///
/// # Errors
/// [`IvError::RndLength`], [`IvError::IvLength`]; [`IvError::Random`] in random mode.
pub fn synthetic(
    k_iv: &Secret<32>,
    mode: Mode,
    context: &[u8],
    rnd: &[u8],
    aad: &[u8],
    plaintext: &[u8],
    out: &mut [u8],
) -> Result<(), IvError> {
    check_rnd(mode, rnd)?;
    check_length(out)?;
    if mode == Mode::Random {
        return Ok(random(out)?);
    }
    on_secret_stack(|| {
        let mac = Hmac::<Sha256>::new_from_slice(k_iv.expose()).expect("HMAC takes keys of any length");
        let mut encoder = Encoder::new(mac, LABEL, FIELDS);
        for field in [&[mode as u8], context, rnd, aad, plaintext] {
            encoder.field(field);
        }
        let iv = encoder.finish().finalize().into_bytes();
        out.copy_from_slice(&iv[..out.len()]);
    });
    Ok(())
}

impl Sink for Hmac<Sha256> {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

fn check_rnd(mode: Mode, rnd: &[u8]) -> Result<(), IvError> {
    let wanted = if mode == Mode::Hedged { RND_BYTES } else { 0 };
    if rnd.len() == wanted { Ok(()) } else { Err(IvError::RndLength { mode, actual: rnd.len() }) }
}

fn check_length(out: &[u8]) -> Result<(), IvError> {
    if (1..=IV_BYTES_MAX).contains(&out.len()) { Ok(()) } else { Err(IvError::IvLength(out.len())) }
}

#[cfg(test)]
mod tests;
