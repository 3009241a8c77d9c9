//! CK_RV as an error type.

use std::fmt;

use cryptoki_sys::CK_RV;
use mayfly_wire::CallError;

/// A PKCS#11 return value other than CKR_OK.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rv(pub CK_RV);

/// What every function of the module gives.
pub type Outcome<T = ()> = Result<T, Rv>;

impl fmt::Debug for Rv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CK_RV {:#x}", self.0)
    }
}

impl fmt::Display for Rv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PKCS#11 return value {:#x}", self.0)
    }
}

impl std::error::Error for Rv {}

impl From<CallError> for Rv {
    /// A refusal keeps the agent's code (a refusal that says CKR_OK is a fault of the agent); what went
    /// wrong on the way is CKR_DEVICE_ERROR.
    fn from(error: CallError) -> Self {
        match error {
            CallError::Refused { code: cryptoki_sys::CKR_OK, .. } => Self(cryptoki_sys::CKR_GENERAL_ERROR),
            CallError::Refused { code, .. } => Self(code),
            CallError::NotSent(_) | CallError::Lost(_) | CallError::Unexpected => Self(cryptoki_sys::CKR_DEVICE_ERROR),
        }
    }
}

/// The error of a code, in the short form that rules read well with.
pub fn fail<T>(code: CK_RV) -> Outcome<T> {
    Err(Rv(code))
}

/// Fails with `code` unless the condition holds.
pub fn ensure(condition: bool, code: CK_RV) -> Outcome {
    if condition { Ok(()) } else { Err(Rv(code)) }
}
