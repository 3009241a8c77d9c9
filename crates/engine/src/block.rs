//! AES in ECB and CBC mode, in parts, with and without padding.

use crate::Error;
use crate::cipher::{BLOCK, CipherContext, Direction, Mode};
use mayfly_secmem::Secret;
use std::hint::black_box;

/// ECB or CBC in the making. Between calls it needs no key: chaining state and an unfinished block are enough to go on.
pub(crate) struct BlockStream {
    /// none while suspended
    context: Option<CipherContext>,
    mode: Mode,
    padded: bool,
    direction: Direction,
    /// input that does not fill a block yet, or the last block of a padded ciphertext, which can only be judged at the end
    pending: Secret<BLOCK>,
    pending_len: usize,
    /// CBC: the IV, then the last block of ciphertext
    chain: [u8; BLOCK],
}

impl BlockStream {
    pub(crate) fn new(
        mode: Mode,
        padded: bool,
        direction: Direction,
        iv: [u8; BLOCK],
        key: &[u8],
    ) -> Result<Self, Error> {
        let context = CipherContext::new(mode, direction, key, &iv)?;
        let pending = Secret::new_with(|_| {})?;
        Ok(Self { context: Some(context), mode, padded, direction, pending, pending_len: 0, chain: iv })
    }

    /// Exact length that `update` gives for so much more input.
    pub(crate) fn update_len(&self, input_len: usize) -> usize {
        let total = self.pending_len.saturating_add(input_len);
        let ready = if self.holds_back() { total.saturating_sub(1) } else { total };
        ready / BLOCK * BLOCK
    }

    /// Most that `finish` gives.
    pub(crate) fn finish_len(&self) -> usize {
        match (self.padded, self.direction) {
            (false, _) => 0,
            (true, Direction::Encrypt) => BLOCK,
            (true, Direction::Decrypt) => BLOCK - 1,
        }
    }

    pub(crate) fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let ready = self.update_len(input.len());
        let out = out.get_mut(..ready).ok_or(Error::OutputTooSmall { needed_bytes: ready })?;
        let context = self.context.as_mut().ok_or(Error::Suspended)?;
        if ready == 0 {
            self.keep(input);
            return Ok(0);
        }
        let (mut input, mut rest) = (input, out);
        if self.pending_len > 0 {
            let (head, tail) = input.split_at(BLOCK - self.pending_len);
            self.pending.expose_mut()[self.pending_len..].copy_from_slice(head);
            let (block, after) = rest.split_at_mut(BLOCK);
            context.update(self.pending.expose(), block)?;
            self.chain = *chain_after(self.direction, self.pending.expose(), block).unwrap_or(&self.chain);
            self.pending_len = 0;
            (input, rest) = (tail, after);
        }
        let (whole, tail) = input.split_at(rest.len());
        context.update(whole, rest)?;
        self.chain = *chain_after(self.direction, whole, rest).unwrap_or(&self.chain);
        self.keep(tail);
        Ok(ready)
    }

    /// Ends the operation; `out` has room for `finish_len`.
    pub(crate) fn finish(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let context = self.context.as_mut().ok_or(Error::Suspended)?;
        match (self.padded, self.direction, self.pending_len) {
            (false, _, 0) => Ok(0),
            (false, Direction::Encrypt, _) => Err(Error::DataLength),
            (true, Direction::Encrypt, len) => {
                let out = out.get_mut(..BLOCK).ok_or(Error::OutputTooSmall { needed_bytes: BLOCK })?;
                self.pending.expose_mut()[len..].fill((BLOCK - len) as u8);
                context.update(self.pending.expose(), out)?;
                Ok(BLOCK)
            }
            (true, Direction::Decrypt, BLOCK) => {
                let mut block = Secret::<BLOCK>::new_with(|_| {})?;
                context.update(self.pending.expose(), block.expose_mut())?;
                let len = unpadded_len(block.expose())?;
                let out = out.get_mut(..len).ok_or(Error::OutputTooSmall { needed_bytes: len })?;
                out.copy_from_slice(&block.expose()[..len]);
                Ok(len)
            }
            (_, Direction::Decrypt, _) => Err(Error::EncryptedLength),
        }
    }

    /// Lets go of the key.
    pub(crate) fn suspend(&mut self) {
        self.context = None;
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.context.is_none()
    }

    pub(crate) fn resume(&mut self, key: &[u8]) -> Result<(), Error> {
        self.context = Some(CipherContext::new(self.mode, self.direction, key, &self.chain)?);
        Ok(())
    }

    fn holds_back(&self) -> bool {
        self.padded && self.direction == Direction::Decrypt
    }

    /// Keeps less than a block, or exactly one that is held back.
    fn keep(&mut self, input: &[u8]) {
        let end = self.pending_len + input.len();
        self.pending.expose_mut()[self.pending_len..end].copy_from_slice(input);
        self.pending_len = end;
    }
}

/// The block that CBC chains to the next: the last one of the ciphertext, if there was any.
fn chain_after<'a>(direction: Direction, input: &'a [u8], out: &'a [u8]) -> Option<&'a [u8; BLOCK]> {
    match direction {
        Direction::Encrypt => out.last_chunk(),
        Direction::Decrypt => input.last_chunk(),
    }
}

/// Length of the data in the last block of a padded text (RFC 5652, section 6.3), in a time that does not depend on the
/// block: every byte is looked at, nothing branches before the verdict.
fn unpadded_len(block: &[u8; BLOCK]) -> Result<usize, Error> {
    let pad = block[BLOCK - 1];
    let mut wrong = below(pad, 1) | below(BLOCK as u8, pad);
    for (from_end, byte) in (0u8..).zip(block.iter().rev()) {
        wrong |= below(from_end, pad) & (byte ^ pad);
    }
    if black_box(wrong) == 0 { Ok(BLOCK - usize::from(pad)) } else { Err(Error::Decrypt) }
}

/// 0xff when `a < b`, else 0; without a branch.
fn below(a: u8, b: u8) -> u8 {
    black_box(((i16::from(a) - i16::from(b)) >> 8) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparison_by_arithmetic_is_comparison() {
        for a in 0..=255u8 {
            for b in 0..=255u8 {
                assert_eq!(below(a, b), if a < b { 0xff } else { 0 });
            }
        }
    }

    #[test]
    fn padding_is_judged_like_the_naive_way() {
        fn naive(block: &[u8; BLOCK]) -> Option<usize> {
            let pad = usize::from(block[15]);
            ((1..=16).contains(&pad) && block[16 - pad..].iter().all(|byte| usize::from(*byte) == pad))
                .then(|| 16 - pad)
        }
        for pad in 0..=255u8 {
            for good in 0..=16usize {
                for other in [0u8, 1, pad.wrapping_add(1), 0xff] {
                    let mut block = [other; BLOCK];
                    block[16 - good..].fill(pad);
                    assert_eq!(unpadded_len(&block).ok(), naive(&block), "{block:?}");
                }
            }
        }
    }
}
