//! Digests, made in the module: no secret is in them, and a round trip would cost more than the hash.

use cryptoki_sys::*;
use sha1::Sha1;
use sha2::digest::Digest;
use sha2::{Sha224, Sha256, Sha384, Sha512};

use crate::bytes::Bytes;

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// Digest mechanisms.
pub const DIGESTS: &[(u64, Hash)] = &[
    (CKM_SHA_1, Hash::Sha1),
    (CKM_SHA224, Hash::Sha224),
    (CKM_SHA256, Hash::Sha256),
    (CKM_SHA384, Hash::Sha384),
    (CKM_SHA512, Hash::Sha512),
];

impl Hash {
    /// The hash of a digest mechanism.
    pub fn of_mechanism(code: u64) -> Option<Self> {
        DIGESTS.iter().find(|(digest, _)| *digest == code).map(|(_, hash)| *hash)
    }

    /// Length of the digest, bytes.
    pub fn bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }
}

/// A digest on its way.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-1.
    Sha1(Sha1),
    /// SHA-224.
    Sha224(Sha224),
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-384.
    Sha384(Sha384),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// A digest of nothing yet.
    pub fn new(hash: Hash) -> Self {
        match hash {
            Hash::Sha1 => Self::Sha1(Sha1::new()),
            Hash::Sha224 => Self::Sha224(Sha224::new()),
            Hash::Sha256 => Self::Sha256(Sha256::new()),
            Hash::Sha384 => Self::Sha384(Sha384::new()),
            Hash::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Takes in data.
    pub fn update(&mut self, data: &[u8]) {
        match self {
            Self::Sha1(state) => state.update(data),
            Self::Sha224(state) => state.update(data),
            Self::Sha256(state) => state.update(data),
            Self::Sha384(state) => state.update(data),
            Self::Sha512(state) => state.update(data),
        }
    }

    /// The digest.
    pub fn finish(self) -> Bytes {
        match self {
            Self::Sha1(state) => Bytes::from(&state.finalize()[..]),
            Self::Sha224(state) => Bytes::from(&state.finalize()[..]),
            Self::Sha256(state) => Bytes::from(&state.finalize()[..]),
            Self::Sha384(state) => Bytes::from(&state.finalize()[..]),
            Self::Sha512(state) => Bytes::from(&state.finalize()[..]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_abc() {
        // FIPS 180-4 examples, first bytes.
        let cases = [
            (Hash::Sha1, [0xa9, 0x99, 0x3e, 0x36]),
            (Hash::Sha224, [0x23, 0x09, 0x7d, 0x22]),
            (Hash::Sha256, [0xba, 0x78, 0x16, 0xbf]),
            (Hash::Sha384, [0xcb, 0x00, 0x75, 0x3f]),
            (Hash::Sha512, [0xdd, 0xaf, 0x35, 0xa1]),
        ];
        for (hash, start) in cases {
            let mut hasher = Hasher::new(hash);
            hasher.update(b"a");
            hasher.update(b"bc");
            let digest = hasher.finish();
            assert_eq!((&digest[..4], digest.len()), (&start[..], hash.bytes()), "{hash:?}");
        }
    }
}
