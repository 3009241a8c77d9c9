//! What goes wrong inside the plugin, before it becomes a status of the interface.

use crate::tss::TpmError;
use mayfly_plugin_abi::{GuestError, Status};

/// A failure whose TPM code, where there is one, may still be explained by a look at the chip.
#[derive(Debug)]
pub(crate) enum Fault {
    /// A command of the chip.
    Tpm(TpmError),
    /// Anything else, ready for the caller.
    Told(GuestError),
}

impl Fault {
    /// Ready for the caller.
    pub(crate) fn told(status: Status, text: impl Into<String>) -> Fault {
        Fault::Told(GuestError::new(status, text))
    }

    /// The chip's answer, where it is one.
    pub(crate) fn tpm(&self) -> Option<&TpmError> {
        match self {
            Fault::Tpm(error) => Some(error),
            Fault::Told(_) => None,
        }
    }
}

impl From<TpmError> for Fault {
    fn from(error: TpmError) -> Fault {
        Fault::Tpm(error)
    }
}

impl From<GuestError> for Fault {
    fn from(error: GuestError) -> Fault {
        Fault::Told(error)
    }
}

impl From<Fault> for GuestError {
    fn from(fault: Fault) -> GuestError {
        match fault {
            Fault::Tpm(error) => error.into(),
            Fault::Told(error) => error,
        }
    }
}
