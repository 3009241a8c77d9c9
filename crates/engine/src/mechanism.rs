//! What can be asked of the engine: mechanisms with their parameters, and the truthful list of them.
//!
//! A new mechanism is a variant of [`Mechanism`] and of [`MechanismKind`], a line in [`mechanisms`], and one arm where it is
//! carried out (`oneshot.rs`, and `stream.rs` if it works in parts). A test goes through the list and does what each line says.

use crate::Error;
use crate::digest::Hash;

/// Shortest and longest IV of GCM, bytes (PKCS#11 v2.40, `CK_GCM_PARAMS`).
pub const GCM_IV_BYTES: std::ops::RangeInclusive<usize> = 1..=256;
/// Most additional data of GCM, bytes. The specification allows 2^61; nobody sends that.
pub const GCM_AAD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Longest key of an HMAC, bytes.
pub const HMAC_KEY_BYTES_MAX: usize = 4096;

/// A mechanism with its parameters, borrowed from the caller for the time of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mechanism<'a> {
    /// AES in ECB mode (SP 800-38A), whole blocks. Shows equal blocks as equal; offered because PKCS#11 users ask for it.
    AesEcb,
    /// AES in CBC mode (SP 800-38A), whole blocks. Not authenticated.
    AesCbc(Iv),
    /// AES in CBC mode with the padding of PKCS#7. Not authenticated.
    AesCbcPad(Iv),
    /// AES in CTR mode (SP 800-38A), any length. Not authenticated.
    AesCtr(Ctr),
    /// AES in GCM mode (SP 800-38D); the ciphertext ends with the tag.
    AesGcm(Gcm<'a>),
    /// HMAC (RFC 2104, FIPS 198-1).
    Hmac(Hmac),
    /// ECDSA (FIPS 186-5) over a hash that the caller made; hashes longer than the curve's order are cut, as FIPS says.
    Ecdsa,
    /// ECDSA over data that the engine hashes.
    EcdsaHash(Hash),
}

/// Initialisation vector of CBC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iv(pub [u8; 16]);

/// Parameters of CTR (`CK_AES_CTR_PARAMS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ctr {
    /// first counter block
    pub block: [u8; 16],
    /// how many of its low bits count, 1 to 128; data that would make them overflow is refused
    pub counter_bits: u32,
}

/// Parameters of GCM (`CK_GCM_PARAMS`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gcm<'a> {
    /// [`GCM_IV_BYTES`] long; 12 bytes is the length to use
    pub iv: &'a [u8],
    /// authenticated, not encrypted; up to [`GCM_AAD_BYTES_MAX`]
    pub aad: &'a [u8],
    /// 32, 64, 96, 104, 112, 120 or 128; below 96 only for the special uses of SP 800-38D, appendix C
    pub tag_bits: u32,
}

/// Parameters of HMAC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hmac {
    /// the hash
    pub hash: Hash,
    /// how many bytes of the MAC are used, 1 to the hash's length (`CKM_..._HMAC_GENERAL`); `None`: all
    pub mac_bytes: Option<u32>,
}

impl Hmac {
    /// All of the MAC.
    #[must_use]
    pub fn full(hash: Hash) -> Self {
        Self { hash, mac_bytes: None }
    }

    /// Length of the MAC.
    ///
    /// # Errors
    /// [`Error::Parameter`] when it is 0 or longer than the hash.
    pub fn bytes(&self) -> Result<usize, Error> {
        match self.mac_bytes.map(|bytes| bytes as usize) {
            None => Ok(self.hash.bytes()),
            Some(bytes) if (1..=self.hash.bytes()).contains(&bytes) => Ok(bytes),
            Some(_) => Err(Error::Parameter("the length of the MAC is not between 1 and that of the hash")),
        }
    }
}

impl Gcm<'_> {
    /// Checks all parameters and gives the length of the tag, bytes.
    ///
    /// # Errors
    /// [`Error::Parameter`].
    pub fn tag_bytes(&self) -> Result<usize, Error> {
        if !GCM_IV_BYTES.contains(&self.iv.len()) {
            return Err(Error::Parameter("the IV of GCM has 1 to 256 bytes"));
        }
        if self.aad.len() > GCM_AAD_BYTES_MAX {
            return Err(Error::Parameter("the additional data is longer than 16 MiB"));
        }
        match self.tag_bits {
            32 | 64 | 96 | 104 | 112 | 120 | 128 => Ok(self.tag_bits as usize / 8),
            _ => Err(Error::Parameter("the tag of GCM has 32, 64, 96, 104, 112, 120 or 128 bits")),
        }
    }
}

/// What is done with a mechanism; one bit of `CK_MECHANISM_INFO.flags`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// `CKF_ENCRYPT`
    Encrypt,
    /// `CKF_DECRYPT`
    Decrypt,
    /// `CKF_SIGN`
    Sign,
    /// `CKF_VERIFY`
    Verify,
    /// `CKF_DIGEST`
    Digest,
    /// `CKF_GENERATE`
    Generate,
    /// `CKF_GENERATE_KEY_PAIR`
    GenerateKeyPair,
}

/// A mechanism without parameters: what `C_GetMechanismList` lists, one for each `CKM_` number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MechanismKind {
    /// `CKM_AES_KEY_GEN`; the bytes come from [`crate::generate_secret`] or a derivation
    AesKeyGen,
    /// `CKM_GENERIC_SECRET_KEY_GEN`, likewise
    GenericSecretKeyGen,
    /// `CKM_EC_KEY_PAIR_GEN`
    EcKeyPairGen,
    /// `CKM_AES_ECB`
    AesEcb,
    /// `CKM_AES_CBC`
    AesCbc,
    /// `CKM_AES_CBC_PAD`
    AesCbcPad,
    /// `CKM_AES_CTR`
    AesCtr,
    /// `CKM_AES_GCM`
    AesGcm,
    /// `CKM_SHA…_HMAC`
    Hmac(Hash),
    /// `CKM_SHA…_HMAC_GENERAL`
    HmacGeneral(Hash),
    /// `CKM_ECDSA`
    Ecdsa,
    /// `CKM_ECDSA_SHA…`
    EcdsaHash(Hash),
    /// `CKM_SHA…`
    Digest(Hash),
}

/// One line of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MechanismInfo {
    /// which mechanism
    pub kind: MechanismKind,
    /// what it does here
    pub operations: &'static [Operation],
    /// smallest and largest key, in the unit that PKCS#11 uses for the mechanism: bytes for AES and generic secrets, bits for
    /// EC, 0 and 0 where there is no key
    pub key_size: (u32, u32),
    /// whether it works in parts
    pub multi_part: bool,
}

const AES_KEY: (u32, u32) = (16, 32);
const HMAC_KEY: (u32, u32) = (1, HMAC_KEY_BYTES_MAX as u32);
const EC_KEY: (u32, u32) = (256, 521);

/// Everything that the engine offers. What is not here does not work, and what is here does.
pub fn mechanisms() -> impl Iterator<Item = MechanismInfo> {
    use MechanismKind as Kind;
    use Operation::{Decrypt, Digest, Encrypt, Generate, GenerateKeyPair, Sign, Verify};
    let line = |kind, operations, key_size, multi_part| MechanismInfo { kind, operations, key_size, multi_part };
    let fixed = [
        line(Kind::AesKeyGen, &[Generate][..], AES_KEY, false),
        line(Kind::GenericSecretKeyGen, &[Generate], HMAC_KEY, false),
        line(Kind::EcKeyPairGen, &[GenerateKeyPair], EC_KEY, false),
        line(Kind::AesEcb, &[Encrypt, Decrypt], AES_KEY, true),
        line(Kind::AesCbc, &[Encrypt, Decrypt], AES_KEY, true),
        line(Kind::AesCbcPad, &[Encrypt, Decrypt], AES_KEY, true),
        line(Kind::AesCtr, &[Encrypt, Decrypt], AES_KEY, true),
        line(Kind::AesGcm, &[Encrypt, Decrypt], AES_KEY, true),
        line(Kind::Ecdsa, &[Sign, Verify], EC_KEY, false),
    ];
    let hashed = Hash::ALL.iter().flat_map(move |hash| {
        [
            line(Kind::Digest(*hash), &[Digest][..], (0, 0), true),
            line(Kind::Hmac(*hash), &[Sign, Verify], HMAC_KEY, true),
            line(Kind::HmacGeneral(*hash), &[Sign, Verify], HMAC_KEY, true),
            line(Kind::EcdsaHash(*hash), &[Sign, Verify], EC_KEY, true),
        ]
    });
    // SHA-512/t has no ECDSA mechanism in PKCS#11.
    let has_number = |info: &MechanismInfo| !matches!(info.kind, Kind::EcdsaHash(Hash::Sha512_224 | Hash::Sha512_256));
    fixed.into_iter().chain(hashed).filter(has_number)
}

impl Mechanism<'_> {
    /// The mechanism without its parameters.
    #[must_use]
    pub fn kind(&self) -> MechanismKind {
        match self {
            Self::AesEcb => MechanismKind::AesEcb,
            Self::AesCbc(_) => MechanismKind::AesCbc,
            Self::AesCbcPad(_) => MechanismKind::AesCbcPad,
            Self::AesCtr(_) => MechanismKind::AesCtr,
            Self::AesGcm(_) => MechanismKind::AesGcm,
            Self::Hmac(hmac) if hmac.mac_bytes.is_none() => MechanismKind::Hmac(hmac.hash),
            Self::Hmac(hmac) => MechanismKind::HmacGeneral(hmac.hash),
            Self::Ecdsa => MechanismKind::Ecdsa,
            Self::EcdsaHash(hash) => MechanismKind::EcdsaHash(*hash),
        }
    }

    /// For signature mechanisms that hash first: the hash, and the mechanism that signs or verifies the digest. Whoever works
    /// in parts digests with the first, without holding a key meanwhile, and then calls the second once.
    #[must_use]
    pub fn prehash(&self) -> Option<(Hash, Mechanism<'static>)> {
        match self {
            Self::EcdsaHash(hash) => Some((*hash, Mechanism::Ecdsa)),
            _ => None,
        }
    }
}
