//! One AES context of AWS-LC.

use crate::ffi::{Owned, check, failed};
use crate::{Error, secretly};
use aws_lc_sys as lc;
use std::ffi::c_int;
use std::ptr;

/// Block length of AES, bytes.
pub(crate) const BLOCK: usize = 16;
/// Longest piece given to the library at once: its lengths are `int`s.
const PIECE_BYTES_MAX: usize = 1 << 30;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Encrypt,
    Decrypt,
}

/// Mode of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Ecb,
    Cbc,
    Ctr,
    Gcm,
}

/// Key schedule and chaining state, on AWS-LC's heap.
pub(crate) struct CipherContext(Owned<lc::EVP_CIPHER_CTX>);

impl CipherContext {
    /// `iv` has 16 bytes for CBC and CTR, any number for GCM, none for ECB.
    pub(crate) fn new(mode: Mode, direction: Direction, key: &[u8], iv: &[u8]) -> Result<Self, Error> {
        let method = method(mode, key.len())?;
        if matches!((mode, iv.len()), (Mode::Cbc | Mode::Ctr, 0..=15 | 17..) | (Mode::Gcm, 0)) {
            return Err(Error::Parameter("the IV has a wrong length"));
        }
        // SAFETY: a fresh object, ours.
        let context = unsafe { Owned::new(lc::EVP_CIPHER_CTX_new(), "EVP_CIPHER_CTX_new") }?;
        secretly(|| initialise(&context, mode, method, direction, key, iv))?;
        Ok(Self(context))
    }

    /// Processes `input` into the start of `out`, which is as long at least. Block modes get whole blocks only.
    pub(crate) fn update(&mut self, input: &[u8], out: &mut [u8]) -> Result<(), Error> {
        let Some(out) = out.get_mut(..input.len()) else {
            return Err(Error::OutputTooSmall { needed_bytes: input.len() });
        };
        for (input, out) in input.chunks(PIECE_BYTES_MAX).zip(out.chunks_mut(PIECE_BYTES_MAX)) {
            self.piece(out.as_mut_ptr(), input)?;
        }
        Ok(())
    }

    /// Additional data of GCM; before any other data.
    pub(crate) fn additional(&mut self, aad: &[u8]) -> Result<(), Error> {
        // An output of null tells the library what it is.
        aad.chunks(PIECE_BYTES_MAX).try_for_each(|piece| self.piece(ptr::null_mut(), piece))
    }

    fn piece(&mut self, out: *mut u8, input: &[u8]) -> Result<(), Error> {
        let mut written = 0;
        // SAFETY: an initialised context; `input` is readable for its length, which fits an int; `out` is null (additional
        // data) or writable for as many bytes, and the library writes no more than it reads: block modes get whole
        // blocks and keep none back, the others are stream ciphers.
        let result =
            unsafe { lc::EVP_CipherUpdate(self.0.as_ptr(), out, &mut written, input.as_ptr(), input.len() as c_int) };
        check(result, "EVP_CipherUpdate")?;
        if written as usize == input.len() { Ok(()) } else { Err(failed("EVP_CipherUpdate")) }
    }

    /// Ends an encryption with GCM: the first `tag.len()` (1 to 16) bytes of the tag.
    pub(crate) fn tag(&mut self, tag: &mut [u8]) -> Result<(), Error> {
        debug_assert!((1..=BLOCK).contains(&tag.len()));
        let (mut nothing, mut written) = ([0u8; BLOCK], 0);
        // SAFETY: an initialised context; a GCM final writes no data, and the tag is as long as it is said to be.
        unsafe {
            check(lc::EVP_CipherFinal_ex(self.0.as_ptr(), nothing.as_mut_ptr(), &mut written), "EVP_CipherFinal_ex")?;
            check(
                lc::EVP_CIPHER_CTX_ctrl(
                    self.0.as_ptr(),
                    lc::EVP_CTRL_AEAD_GET_TAG,
                    tag.len() as c_int,
                    tag.as_mut_ptr().cast(),
                ),
                "EVP_CTRL_AEAD_GET_TAG",
            )
        }
    }

    /// Ends a decryption with GCM: [`Error::Decrypt`] when `tag` (1 to 16 bytes) is not that of what was decrypted.
    /// The library compares in constant time.
    pub(crate) fn check_tag(&mut self, tag: &[u8]) -> Result<(), Error> {
        debug_assert!((1..=BLOCK).contains(&tag.len()));
        let (mut nothing, mut written) = ([0u8; BLOCK], 0);
        // SAFETY: an initialised context; the library copies the tag, as long as it is said to be, and writes no data.
        let result = unsafe {
            check(
                lc::EVP_CIPHER_CTX_ctrl(
                    self.0.as_ptr(),
                    lc::EVP_CTRL_AEAD_SET_TAG,
                    tag.len() as c_int,
                    tag.as_ptr().cast_mut().cast(),
                ),
                "EVP_CTRL_AEAD_SET_TAG",
            )?;
            lc::EVP_CipherFinal_ex(self.0.as_ptr(), nothing.as_mut_ptr(), &mut written)
        };
        check(result, "EVP_CipherFinal_ex").map_err(|_| Error::Decrypt)
    }
}

/// Sets the method first, then for GCM the length of the IV, then key and IV. The key is as long as `method` reads, the IV
/// as `mode` reads.
fn initialise(
    context: &Owned<lc::EVP_CIPHER_CTX>,
    mode: Mode,
    method: *const lc::EVP_CIPHER,
    direction: Direction,
    key: &[u8],
    iv: &[u8],
) -> Result<(), Error> {
    let raw = context.as_ptr();
    let encrypt = c_int::from(direction == Direction::Encrypt);
    let start = |method, key, iv| {
        // SAFETY: a living context; null means "not now"; otherwise key and IV are as long as is read, see above.
        check(unsafe { lc::EVP_CipherInit_ex(raw, method, ptr::null_mut(), key, iv, encrypt) }, "EVP_CipherInit_ex")
    };
    start(method, ptr::null(), ptr::null())?;
    if mode == Mode::Gcm {
        let len = c_int::try_from(iv.len()).map_err(|_| Error::Parameter("the IV is too long"))?;
        // SAFETY: a context with a method; this command takes a number only.
        let result = unsafe { lc::EVP_CIPHER_CTX_ctrl(raw, lc::EVP_CTRL_AEAD_SET_IVLEN, len, ptr::null_mut()) };
        check(result, "EVP_CTRL_AEAD_SET_IVLEN")?;
    }
    start(ptr::null(), key.as_ptr(), if mode == Mode::Ecb { ptr::null() } else { iv.as_ptr() })?;
    // Padding is ours, in constant time.
    // SAFETY: a context with a method.
    check(unsafe { lc::EVP_CIPHER_CTX_set_padding(raw, 0) }, "EVP_CIPHER_CTX_set_padding")
}

/// The library's method for a mode and a length of key.
fn method(mode: Mode, key_bytes: usize) -> Result<*const lc::EVP_CIPHER, Error> {
    // SAFETY: these return addresses of constants.
    Ok(unsafe {
        match (mode, key_bytes) {
            (Mode::Ecb, 16) => lc::EVP_aes_128_ecb(),
            (Mode::Ecb, 24) => lc::EVP_aes_192_ecb(),
            (Mode::Ecb, 32) => lc::EVP_aes_256_ecb(),
            (Mode::Cbc, 16) => lc::EVP_aes_128_cbc(),
            (Mode::Cbc, 24) => lc::EVP_aes_192_cbc(),
            (Mode::Cbc, 32) => lc::EVP_aes_256_cbc(),
            (Mode::Ctr, 16) => lc::EVP_aes_128_ctr(),
            (Mode::Ctr, 24) => lc::EVP_aes_192_ctr(),
            (Mode::Ctr, 32) => lc::EVP_aes_256_ctr(),
            (Mode::Gcm, 16) => lc::EVP_aes_128_gcm(),
            (Mode::Gcm, 24) => lc::EVP_aes_192_gcm(),
            (Mode::Gcm, 32) => lc::EVP_aes_256_gcm(),
            _ => return Err(Error::KeyLength),
        }
    })
}
