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

/// An [`Error`] without unused bytes, to leave the secret stack.
#[derive(Clone, Copy, Default)]
pub(crate) struct FlatError {
    kind: usize,
    numbers: [usize; 2],
    text: &'static str,
}

impl From<&Error> for FlatError {
    fn from(error: &Error) -> Self {
        let flat = |kind, numbers, text| Self { kind, numbers, text };
        let only = |kind| flat(kind, [0, 0], "");
        match *error {
            Error::Mechanism => only(1),
            Error::SinglePartOnly => only(2),
            Error::Parameter(text) => flat(3, [0, 0], text),
            Error::KeyType => only(4),
            Error::KeyLength => only(5),
            Error::KeyValue(text) => flat(6, [0, 0], text),
            Error::Curve => only(7),
            Error::DataLength => only(8),
            Error::EncryptedLength => only(9),
            Error::Decrypt => only(10),
            Error::SignatureLength => only(11),
            Error::Signature => only(12),
            Error::OutputTooSmall { needed_bytes } => flat(13, [needed_bytes, 0], ""),
            Error::Ended => only(14),
            Error::Suspended => only(15),
            Error::Memory(Exhausted::TooLarge { wanted_bytes, max_bytes }) => flat(16, [wanted_bytes, max_bytes], ""),
            Error::Memory(Exhausted::Full { limit_bytes }) => flat(17, [limit_bytes, 0], ""),
            Error::Memory(Exhausted::Refused { call, errno }) => flat(18, [errno as usize, 0], call),
            Error::Library { call } => flat(19, [0, 0], call),
            // Neither arises inside: randomness is drawn outside, and a panic ends the whole.
            Error::Random(_) | Error::Panicked(_) | Error::Memory(_) => flat(19, [0, 0], "secret memory"),
        }
    }
}

impl From<FlatError> for Error {
    fn from(flat: FlatError) -> Self {
        let FlatError { kind, numbers: [first, second], text } = flat;
        match kind {
            1 => Self::Mechanism,
            2 => Self::SinglePartOnly,
            3 => Self::Parameter(text),
            4 => Self::KeyType,
            5 => Self::KeyLength,
            6 => Self::KeyValue(text),
            7 => Self::Curve,
            8 => Self::DataLength,
            9 => Self::EncryptedLength,
            10 => Self::Decrypt,
            11 => Self::SignatureLength,
            12 => Self::Signature,
            13 => Self::OutputTooSmall { needed_bytes: first },
            14 => Self::Ended,
            15 => Self::Suspended,
            16 => Self::Memory(Exhausted::TooLarge { wanted_bytes: first, max_bytes: second }),
            17 => Self::Memory(Exhausted::Full { limit_bytes: first }),
            18 => Self::Memory(Exhausted::Refused { call: text, errno: first as i32 }),
            _ => Self::Library { call: text },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_errors_come_back_whole() {
        let errors = [
            Error::Mechanism,
            Error::SinglePartOnly,
            Error::Parameter("a"),
            Error::KeyType,
            Error::KeyLength,
            Error::KeyValue("b"),
            Error::Curve,
            Error::DataLength,
            Error::EncryptedLength,
            Error::Decrypt,
            Error::SignatureLength,
            Error::Signature,
            Error::OutputTooSmall { needed_bytes: 7 },
            Error::Ended,
            Error::Suspended,
            Error::Memory(Exhausted::TooLarge { wanted_bytes: 3, max_bytes: 2 }),
            Error::Memory(Exhausted::Full { limit_bytes: 9 }),
            Error::Memory(Exhausted::Refused { call: "mmap", errno: -12 }),
            Error::Library { call: "c" },
        ];
        for error in errors {
            assert_eq!(format!("{:?}", Error::from(FlatError::from(&error))), format!("{error:?}"));
        }
        assert!(matches!(Error::from(FlatError::default()), Error::Library { .. }));
    }
}
