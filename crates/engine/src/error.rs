//! The errors of the engine: few, constant, and silent about what was being worked on.

use mayfly_secmem::{Exhausted, RandomError, SecretPanic};

/// Why an operation of the engine gave no result.
///
/// There is exactly one error for a ciphertext that does not decrypt, whatever the reason: a tag, a padding, a shortened
/// text. No caller can learn, or pass on, which it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mechanism does not serve this operation (`CKR_MECHANISM_INVALID`).
    #[error("the mechanism does not serve this operation")]
    Mechanism,
    /// The mechanism works on whole messages only, not in parts.
    #[error("the mechanism works in a single part only")]
    SinglePartOnly,
    /// A parameter of the mechanism is out of its bounds (`CKR_MECHANISM_PARAM_INVALID`).
    #[error("mechanism parameter refused: {0}")]
    Parameter(&'static str),
    /// The key is of another type than the mechanism needs (`CKR_KEY_TYPE_INCONSISTENT`).
    #[error("the key is of another type than the mechanism needs")]
    KeyType,
    /// The key has a length that its type does not have (`CKR_KEY_SIZE_RANGE`).
    #[error("the key has a length that its type does not have")]
    KeyLength,
    /// The key is no key: a scalar out of range, a point off the curve, an encoding that does not parse.
    #[error("the key is not valid: {0}")]
    KeyValue(&'static str),
    /// The curve is not one of [`crate::Curve`], or its encoding does not parse (`CKR_DOMAIN_PARAMS_INVALID`).
    #[error("the curve is unknown or its parameters do not parse")]
    Curve,
    /// Plain input of a length that the mechanism does not take (`CKR_DATA_LEN_RANGE`).
    #[error("the data has a length that the mechanism does not take")]
    DataLength,
    /// A ciphertext of a length that no encryption gives (`CKR_ENCRYPTED_DATA_LEN_RANGE`); lengths are public.
    #[error("the encrypted data has a length that no encryption gives")]
    EncryptedLength,
    /// The ciphertext does not decrypt (`CKR_ENCRYPTED_DATA_INVALID`). The one error of decryption.
    #[error("the encrypted data does not decrypt")]
    Decrypt,
    /// A signature or MAC of a wrong length (`CKR_SIGNATURE_LEN_RANGE`).
    #[error("the signature has a wrong length")]
    SignatureLength,
    /// The signature or MAC is not that of the data (`CKR_SIGNATURE_INVALID`).
    #[error("the signature is not valid")]
    Signature,
    /// `out` is too short; nothing was done, the operation goes on (`CKR_BUFFER_TOO_SMALL`).
    #[error("the output needs {needed_bytes} bytes")]
    OutputTooSmall {
        /// length that suffices
        needed_bytes: usize,
    },
    /// The operation has ended already, by a result or an error.
    #[error("the operation has ended")]
    Ended,
    /// The operation is suspended: it holds no key until [`crate::Stream::resume`].
    #[error("the operation is suspended and has no key")]
    Suspended,
    /// No room for secrets.
    #[error(transparent)]
    Memory(#[from] Exhausted),
    /// No randomness.
    #[error(transparent)]
    Random(RandomError),
    /// A defect of ours, or no secret stack.
    #[error(transparent)]
    Panicked(#[from] SecretPanic),
    /// The library failed where it cannot but for want of memory, or by a defect.
    #[error("{call} of the crypto library failed")]
    Library {
        /// the function
        call: &'static str,
    },
}

impl From<RandomError> for Error {
    fn from(why: RandomError) -> Self {
        match why {
            RandomError::Memory(full) => Self::Memory(full),
            why @ RandomError::Kernel(_) => Self::Random(why),
        }
    }
}
