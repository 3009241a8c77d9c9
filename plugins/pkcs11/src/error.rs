//! Return values of the token (`CK_RV`) as statuses and sentences of the plugin interface. The call's name is kept.

use cryptoki::error::{Error, RvError};
use mayfly_plugin_abi::{GuestError, Status};

/// What a call of the token came to, for the operator: `C_Login: CKR_PIN_INCORRECT`.
pub(crate) fn name(error: &Error) -> String {
    match error {
        Error::Pkcs11(RvError::VendorDefined(code), function) => format!("C_{function:?}: vendor's error {code:#x}"),
        Error::Pkcs11(RvError::UnknownErrorCode(code), function) => format!("C_{function:?}: unknown error {code:#x}"),
        Error::Pkcs11(value, function) => format!("C_{function:?}: {}", constant(&format!("{value:?}"))),
        Error::NullFunctionPointer => "the PKCS#11 library lacks a function that is needed".to_owned(),
        other => other.to_string(),
    }
}

/// `PinIncorrect` to `CKR_PIN_INCORRECT`.
fn constant(variant: &str) -> String {
    let mut out = "CKR".to_owned();
    for letter in variant.chars() {
        if letter.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

/// The status of a failed call.
pub(crate) fn status(error: &Error) -> Status {
    let Error::Pkcs11(value, _) = error else {
        return match error {
            Error::LibraryLoading(_) | Error::MissingSymbol(_) => Status::Config,
            Error::NullFunctionPointer | Error::NotSupported => Status::Unsupported,
            _ => Status::Internal,
        };
    };
    match value {
        RvError::PinIncorrect | RvError::PinInvalid | RvError::PinLenRange | RvError::PinExpired => Status::Auth,
        RvError::PinLocked => Status::Lockout,
        RvError::UserPinNotInitialized => Status::Config,
        _ if is_lost(error) => Status::Transient,
        RvError::FunctionCanceled | RvError::Cancel => Status::Transient,
        RvError::SessionCount | RvError::OperationActive => Status::Busy,
        RvError::UserTooManyTypes | RvError::UserAnotherAlreadyLoggedIn => Status::Busy,
        RvError::DeviceMemory | RvError::TokenWriteProtected | RvError::SessionReadOnly => Status::ReadOnly,
        RvError::MechanismInvalid | RvError::MechanismParamInvalid => Status::Unsupported,
        RvError::FunctionNotSupported | RvError::CurveNotSupported | RvError::KeySizeRange => Status::Unsupported,
        RvError::TemplateInconsistent | RvError::TemplateIncomplete => Status::Unsupported,
        RvError::AttributeTypeInvalid | RvError::AttributeValueInvalid => Status::Unsupported,
        _ => Status::Io,
    }
}

/// True when the session is gone or logged out, so that a new one may help: the token was pulled, the network HSM's
/// connection broke, another program's C_CloseAllSessions or C_Logout hit us.
pub(crate) fn is_lost(error: &Error) -> bool {
    let Error::Pkcs11(value, _) = error else { return false };
    matches!(
        value,
        RvError::SessionHandleInvalid
            | RvError::SessionClosed
            | RvError::DeviceRemoved
            | RvError::DeviceError
            | RvError::TokenNotPresent
            | RvError::TokenNotRecognized
            | RvError::SlotIdInvalid
            | RvError::UserNotLoggedIn
            | RvError::CryptokiNotInitialized
    )
}

/// True for what libraries say when they have no better word: a wrong tag, a full disk, an HSM out of reach.
pub(crate) fn is_vague(error: &Error) -> bool {
    matches!(error, Error::Pkcs11(RvError::GeneralError | RvError::FunctionFailed, _))
}

/// True when the token did not take a template because of an attribute that it does not know.
pub(crate) fn is_template(error: &Error) -> bool {
    let Error::Pkcs11(value, _) = error else { return false };
    matches!(value, RvError::AttributeTypeInvalid | RvError::AttributeValueInvalid | RvError::TemplateInconsistent)
}

/// Why something done in a session did not succeed: the token's answer, or our own refusal of what it answered.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A call failed.
    Token(Error),
    /// The calls succeeded, and what they gave cannot be used.
    Refused(GuestError),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        Fault::Token(error)
    }
}

impl From<GuestError> for Fault {
    fn from(error: GuestError) -> Fault {
        Fault::Refused(error)
    }
}

impl Fault {
    /// As the caller of the plugin is told.
    pub(crate) fn told(self, doing: &str) -> GuestError {
        match self {
            Fault::Token(error) => refusal(doing)(error),
            Fault::Refused(refused) => refused,
        }
    }

    /// See [`is_lost`].
    pub(crate) fn is_lost(&self) -> bool {
        matches!(self, Fault::Token(error) if is_lost(error))
    }

    /// See [`is_vague`].
    pub(crate) fn is_vague(&self) -> bool {
        matches!(self, Fault::Token(error) if is_vague(error))
    }
}

/// Turns a failed call into a refusal: what was being done, and the call's name and answer.
pub(crate) fn refusal(doing: &str) -> impl FnOnce(Error) -> GuestError + '_ {
    move |error| GuestError::new(status(&error), format!("{doing}: {}", name(&error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    #[test]
    fn names_are_those_of_the_standard() {
        for (error, text, expected) in [
            (Error::Pkcs11(RvError::PinIncorrect, Function::Login), "C_Login: CKR_PIN_INCORRECT", Status::Auth),
            (Error::Pkcs11(RvError::PinLocked, Function::Login), "C_Login: CKR_PIN_LOCKED", Status::Lockout),
            (
                Error::Pkcs11(RvError::SessionHandleInvalid, Function::FindObjectsInit),
                "C_FindObjectsInit: CKR_SESSION_HANDLE_INVALID",
                Status::Transient,
            ),
            (
                Error::Pkcs11(RvError::VendorDefined(0x8000_0001), Function::Sign),
                "C_Sign: vendor's error 0x80000001",
                Status::Io,
            ),
            (Error::NullFunctionPointer, "the PKCS#11 library lacks a function that is needed", Status::Unsupported),
        ] {
            assert_eq!(name(&error), text);
            assert_eq!(status(&error), expected, "{text}");
            let refused = refusal("opening")(error);
            assert_eq!(refused.message, format!("opening: {text}"));
        }
    }
}
