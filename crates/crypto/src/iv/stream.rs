//! The IV of a plaintext that comes in pieces.

use super::{FIELDS, IvError, LABEL, Mode, check_length, check_rnd};
use crate::enc::{Encoder, Sink};
use hmac::digest::array::typenum::Unsigned;
use mayfly_secmem::{Secret, on_secret_stack};
use sha2::digest::common::hazmat::{SerializableState, SerializedState};
use sha2::{Digest, Sha256};

/// Bytes of a suspended SHA-256: chaining value, block count, buffered block.
const STATE_BYTES: usize = <<Sha256 as SerializableState>::SerializedStateSize as Unsigned>::USIZE;
const BLOCK_BYTES: usize = 64;

/// An IV in the making over a plaintext of known length.
///
/// Between two pieces both halves of the HMAC (RFC 2104), which are worth as much as its key, rest in the arena as suspended SHA-256 states.
#[derive(Debug)]
pub struct Stream {
    inner: Secret<STATE_BYTES>,
    outer: Secret<STATE_BYTES>,
    announced: u64,
    left: u64,
}

impl Stream {
    /// Starts an IV over `plaintext_bytes` bytes to come; everything else as in [`super::synthetic`].
    ///
    /// # Errors
    /// [`IvError::RndLength`]; [`IvError::NothingToStream`] in random mode; [`IvError::Memory`].
    pub fn new(
        k_iv: &Secret<32>,
        mode: Mode,
        context: &[u8],
        rnd: &[u8],
        aad: &[u8],
        plaintext_bytes: u64,
    ) -> Result<Self, IvError> {
        check_rnd(mode, rnd)?;
        if mode == Mode::Random {
            return Err(IvError::NothingToStream);
        }
        let inner = Secret::new_with(|slot| {
            on_secret_stack(|| {
                let mut encoder = Encoder::new(keyed(k_iv, 0x36), LABEL, FIELDS);
                for field in [&[mode as u8], context, rnd, aad] {
                    encoder.field(field);
                }
                suspend(&encoder.finish_with_open_field(plaintext_bytes), slot);
            });
        })?;
        let outer = Secret::new_with(|slot| on_secret_stack(|| suspend(&keyed(k_iv, 0x5c), slot)))?;
        Ok(Self { inner, outer, announced: plaintext_bytes, left: plaintext_bytes })
    }

    /// Adds the next piece of the plaintext.
    ///
    /// # Errors
    /// [`IvError::PlaintextLength`] when there is more than was announced; the stream is unchanged then.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), IvError> {
        let too_long = IvError::PlaintextLength { announced: self.announced };
        self.left = self.left.checked_sub(piece.len() as u64).ok_or(too_long)?;
        on_secret_stack(|| {
            let mut sha = resume(&self.inner);
            sha.put(piece);
            suspend(&sha, self.inner.expose_mut());
        });
        Ok(())
    }

    /// Fills `out` (1 to 32 bytes) with the IV.
    ///
    /// # Errors
    /// [`IvError::PlaintextLength`] when there was less than announced; [`IvError::IvLength`].
    pub fn finish(self, out: &mut [u8]) -> Result<(), IvError> {
        check_length(out)?;
        if self.left != 0 {
            return Err(IvError::PlaintextLength { announced: self.announced });
        }
        on_secret_stack(|| {
            let mut outer = resume(&self.outer);
            outer.put(&resume(&self.inner).finalize());
            let iv = outer.finalize();
            out.copy_from_slice(&iv[..out.len()]);
        });
        Ok(())
    }
}

/// SHA-256 after the first block of an HMAC half: the zero-padded key, each byte XORed with `pad`.
fn keyed(key: &Secret<32>, pad: u8) -> Sha256 {
    let mut block = [pad; BLOCK_BYTES];
    block.iter_mut().zip(key.expose()).for_each(|(byte, key)| *byte ^= key);
    Sha256::new_with_prefix(block)
}

fn suspend(sha: &Sha256, slot: &mut [u8; STATE_BYTES]) {
    slot.copy_from_slice(&sha.serialize());
}

fn resume(slot: &Secret<STATE_BYTES>) -> Sha256 {
    let mut state = SerializedState::<Sha256>::default();
    state.copy_from_slice(slot.expose());
    Sha256::deserialize(&state).expect("the slot holds what `suspend` wrote")
}
