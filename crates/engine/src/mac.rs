//! HMAC.

use crate::digest::{DIGEST_BYTES_MAX, Hash};
use crate::ffi::{Owned, check};
use crate::mechanism::HMAC_KEY_BYTES_MAX;
use crate::{Error, secretly};
use aws_lc_sys as lc;
use mayfly_secmem::{Secret, ct_eq};
use std::ptr;

/// An HMAC in the making. Its state is as good as the key.
pub(crate) struct HmacContext {
    context: Owned<lc::HMAC_CTX>,
    mac_bytes: usize,
}

impl HmacContext {
    pub(crate) fn new(hash: Hash, mac_bytes: usize, key: &[u8]) -> Result<Self, Error> {
        if key.is_empty() || key.len() > HMAC_KEY_BYTES_MAX {
            return Err(Error::KeyLength);
        }
        // SAFETY: a fresh object, ours.
        let context = unsafe { Owned::new(lc::HMAC_CTX_new(), "HMAC_CTX_new") }?;
        // SAFETY: a new context; `key` is readable for its length and not null.
        let start = || unsafe {
            lc::HMAC_Init_ex(context.as_ptr(), key.as_ptr().cast(), key.len(), hash.method(), ptr::null_mut())
        };
        secretly(|| check(start(), "HMAC_Init_ex"))?;
        Ok(Self { context, mac_bytes })
    }

    pub(crate) fn mac_bytes(&self) -> usize {
        self.mac_bytes
    }

    pub(crate) fn update(&mut self, input: &[u8]) -> Result<(), Error> {
        // SAFETY: an initialised context; `input` is readable for its length.
        check(unsafe { lc::HMAC_Update(self.context.as_ptr(), input.as_ptr(), input.len()) }, "HMAC_Update")
    }

    /// Writes the MAC to the start of `out`, which has room for it (`mac_bytes`). The context is used up.
    pub(crate) fn finish(&mut self, out: &mut [u8]) -> Result<usize, Error> {
        let whole = self.finish_whole()?;
        let out = out.get_mut(..self.mac_bytes).ok_or(Error::OutputTooSmall { needed_bytes: self.mac_bytes })?;
        out.copy_from_slice(&whole.expose()[..self.mac_bytes]);
        Ok(self.mac_bytes)
    }

    /// Compares in constant time. The context is used up.
    pub(crate) fn verify(&mut self, mac: &[u8]) -> Result<(), Error> {
        if mac.len() != self.mac_bytes {
            return Err(Error::SignatureLength);
        }
        let whole = self.finish_whole()?;
        if ct_eq(&whole.expose()[..self.mac_bytes], mac) { Ok(()) } else { Err(Error::Signature) }
    }

    /// The whole MAC: of a shortened one the rest stays secret.
    fn finish_whole(&mut self) -> Result<Secret<DIGEST_BYTES_MAX>, Error> {
        Secret::try_new_with(|whole: &mut [u8; DIGEST_BYTES_MAX]| {
            let mut len = 0;
            // SAFETY: an initialised context; `whole` has room for the longest MAC.
            check(unsafe { lc::HMAC_Final(self.context.as_ptr(), whole.as_mut_ptr(), &mut len) }, "HMAC_Final")
        })
    }
}
