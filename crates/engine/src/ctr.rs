//! AES in CTR mode, in parts.

use crate::cipher::{BLOCK, CipherContext, Direction, Mode};
use crate::mechanism::Ctr;
use crate::{Error, secretly};

/// CTR in the making; both directions are the same. Between calls it needs no key: the position is enough to go on.
pub(crate) struct CtrStream {
    /// none while suspended
    context: Option<CipherContext>,
    start: u128,
    done_bytes: u128,
    /// how much data the counter allows
    room_bytes: u128,
}

impl CtrStream {
    pub(crate) fn new(params: &Ctr, key: &[u8]) -> Result<Self, Error> {
        let largest = match params.counter_bits {
            128 => u128::MAX,
            bits @ 1..=127 => (1u128 << bits) - 1,
            _ => return Err(Error::Parameter("the counter of CTR has 1 to 128 bits")),
        };
        let start = u128::from_be_bytes(params.block);
        let blocks = (largest - (start & largest)).saturating_add(1);
        let mut stream = Self { context: None, start, done_bytes: 0, room_bytes: blocks.saturating_mul(BLOCK as u128) };
        stream.resume(key)?;
        Ok(stream)
    }

    pub(crate) fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let done_after = self.done_bytes.saturating_add(input.len() as u128);
        if done_after > self.room_bytes {
            return Err(Error::DataLength);
        }
        self.context.as_mut().ok_or(Error::Suspended)?.update(input, out)?;
        self.done_bytes = done_after;
        Ok(input.len())
    }

    /// Lets go of the key.
    pub(crate) fn suspend(&mut self) {
        self.context = None;
    }

    pub(crate) fn is_suspended(&self) -> bool {
        self.context.is_none()
    }

    /// Starts a context at the block in progress and throws away the key stream that was used of it.
    pub(crate) fn resume(&mut self, key: &[u8]) -> Result<(), Error> {
        let block = self.start.wrapping_add(self.done_bytes / BLOCK as u128).to_be_bytes();
        let mut context = CipherContext::new(Mode::Ctr, Direction::Encrypt, key, &block)?;
        let used = (self.done_bytes % BLOCK as u128) as usize;
        let mut key_stream = mayfly_secmem::Secret::<BLOCK>::new_with(|_| {})?;
        secretly(|| context.update(&[0; BLOCK][..used], key_stream.expose_mut()))?;
        self.context = Some(context);
        Ok(())
    }
}
