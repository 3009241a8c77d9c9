//! Hashes: SHA-1 (where a mechanism of PKCS#11 names it), SHA-2 (FIPS 180-4), SHA-3 (FIPS 202).

use crate::Error;
use crate::ffi::{Owned, check};
use aws_lc_sys as lc;
use std::ptr;

/// Longest digest, bytes.
pub const DIGEST_BYTES_MAX: usize = 64;

/// A hash function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the names are those of the standards")]
pub enum Hash {
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Sha512_224,
    Sha512_256,
    Sha3_224,
    Sha3_256,
    Sha3_384,
    Sha3_512,
}

impl Hash {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Sha512_224,
        Self::Sha512_256,
        Self::Sha3_224,
        Self::Sha3_256,
        Self::Sha3_384,
        Self::Sha3_512,
    ];

    /// Length of the digest, bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 | Self::Sha512_224 | Self::Sha3_224 => 28,
            Self::Sha256 | Self::Sha512_256 | Self::Sha3_256 => 32,
            Self::Sha384 | Self::Sha3_384 => 48,
            Self::Sha512 | Self::Sha3_512 => 64,
        }
    }

    pub(crate) fn method(self) -> *const lc::EVP_MD {
        // SAFETY: these return addresses of constants.
        unsafe {
            match self {
                Self::Sha1 => lc::EVP_sha1(),
                Self::Sha224 => lc::EVP_sha224(),
                Self::Sha256 => lc::EVP_sha256(),
                Self::Sha384 => lc::EVP_sha384(),
                Self::Sha512 => lc::EVP_sha512(),
                Self::Sha512_224 => lc::EVP_sha512_224(),
                Self::Sha512_256 => lc::EVP_sha512_256(),
                Self::Sha3_224 => lc::EVP_sha3_224(),
                Self::Sha3_256 => lc::EVP_sha3_256(),
                Self::Sha3_384 => lc::EVP_sha3_384(),
                Self::Sha3_512 => lc::EVP_sha3_512(),
            }
        }
    }
}

/// A digest in the making.
pub(crate) struct DigestContext {
    context: Owned<lc::EVP_MD_CTX>,
    hash: Hash,
}

impl DigestContext {
    pub(crate) fn new(hash: Hash) -> Result<Self, Error> {
        // SAFETY: a fresh object, ours.
        let context = unsafe { Owned::new(lc::EVP_MD_CTX_new(), "EVP_MD_CTX_new") }?;
        // SAFETY: a new context and a constant method.
        let result = unsafe { lc::EVP_DigestInit_ex(context.as_ptr(), hash.method(), ptr::null_mut()) };
        check(result, "EVP_DigestInit_ex")?;
        Ok(Self { context, hash })
    }

    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }

    pub(crate) fn update(&mut self, input: &[u8]) -> Result<(), Error> {
        // SAFETY: an initialised context; `input` is readable for its length.
        let result = unsafe { lc::EVP_DigestUpdate(self.context.as_ptr(), input.as_ptr().cast(), input.len()) };
        check(result, "EVP_DigestUpdate")
    }

    /// Writes the digest to the start of `out`; its length. The context is used up.
    pub(crate) fn finish(&mut self, out: &mut [u8; DIGEST_BYTES_MAX]) -> Result<usize, Error> {
        let mut len = 0;
        // SAFETY: an initialised context; `out` has room for the longest digest.
        let result = unsafe { lc::EVP_DigestFinal_ex(self.context.as_ptr(), out.as_mut_ptr(), &mut len) };
        check(result, "EVP_DigestFinal_ex")?;
        Ok(len as usize)
    }
}

/// Digest of `data`; `out` gets it at its start. Returns its length, [`Hash::bytes`]. Digests are public: no secret stack.
///
/// # Errors
/// [`Error::OutputTooSmall`], [`Error::Library`].
pub fn digest(hash: Hash, data: &[u8], out: &mut [u8]) -> Result<usize, Error> {
    let out = out.get_mut(..hash.bytes()).ok_or(Error::OutputTooSmall { needed_bytes: hash.bytes() })?;
    let (mut len, method) = (0, hash.method());
    // SAFETY: `data` is readable for its length, `out` has room for the digest of this method.
    let result = unsafe {
        lc::EVP_Digest(data.as_ptr().cast(), data.len(), out.as_mut_ptr(), &mut len, method, ptr::null_mut())
    };
    check(result, "EVP_Digest")?;
    Ok(len as usize)
}
