//! What this half of the agent needs of the other: the ledger's state, keys for the moment of a use, new records.
//!
//! [`super::desk::Desk`] is the one implementation that runs; tests put another in its place, with whole keys.

use std::sync::Arc;

use mayfly_ledger_client::ReplicaStatus;
use mayfly_protocol::rules::{Clocks, Use};
use mayfly_protocol::{DeviceId, KeyId, Record, State};

use super::ck::*;
use super::fail::{Detail, Fail};
use super::why::DeviceReason;
use crate::node::attestation::{ChipError, Shown};
use crate::node::{
    AssembledKey, FreshnessStatus, Holdings, KeyError, KeyErrorKind, NewKey, Node, PeerStatus, Phase, Trouble,
    VaultStatus,
};

/// The node, as applications' requests use it. See the same names at [`crate::node::Node`].
pub trait Keys: Send + Sync {
    /// The state that is acted upon. The same pointer as long as nothing changed.
    fn state(&self) -> Arc<State>;
    /// This device.
    fn device(&self) -> DeviceId;
    /// Lends the assembled key to `work`, once, on the caller's stack: see [`crate::node::Node::with_key`].
    ///
    /// # Errors
    /// [`KeyError`]; `work` was not called then.
    fn with_key(&self, key: &KeyId, purpose: Use, work: &mut dyn FnMut(&AssembledKey)) -> Result<(), KeyError>;
    /// Makes a key; it is effective on return.
    ///
    /// # Errors
    /// [`KeyError`].
    fn create_key(&self, key: NewKey) -> Result<KeyId, KeyError>;
    /// Posts a record; it is effective on return, at this index.
    ///
    /// # Errors
    /// [`KeyError`].
    fn post(&self, record: &Record) -> Result<u64, KeyError>;
}

/// [`Keys`] and what `mayfly status` and its like tell.
pub trait Agent: Keys {
    /// The newest verified state, in effect or not: only to tell people of.
    fn tip(&self) -> Arc<State>;
    /// Where the agent stands.
    fn phase(&self) -> Phase;
    /// Whether there is a node: the vault has opened since the start. Asked before each request.
    fn has_node(&self) -> bool;
    /// The node itself, for what only its vault can answer; tests have none.
    fn node(&self) -> Option<&Node>;
    /// What is wrong with the vault, if anything is.
    fn trouble(&self) -> Option<Trouble>;
    /// This device's name in its configuration: for as long as nothing else is known of it.
    fn configured_name(&self) -> &str;
    /// Whether keys may be used now, and why not.
    fn freshness(&self) -> FreshnessStatus;
    /// The other members.
    fn peers(&self) -> Vec<PeerStatus>;
    /// Local and ledger time; `None` while not fresh.
    fn clocks(&self) -> Option<Clocks>;
    /// How this device's copy of the ledger is.
    fn ledger(&self) -> ReplicaStatus;
    /// Entries of that copy: index, time of the sequencer in milliseconds, bytes.
    ///
    /// # Errors
    /// Why it cannot be read, for people.
    fn entries(&self, from: u64, count: usize) -> Result<Vec<(u64, u64, Vec<u8>)>, String>;
    /// The vault.
    fn vault(&self) -> VaultStatus;
    /// What this device holds for others.
    fn holdings(&self) -> Holdings;
    /// What its chip shows of itself; none where there is no chip.
    ///
    /// # Errors
    /// [`ChipError`].
    fn chip(&self) -> Result<Option<Shown>, ChipError>;
    /// The chip's answer to an administrator's challenge.
    ///
    /// # Errors
    /// [`ChipError`].
    fn prove(&self, challenge: &[u8]) -> Result<Vec<u8>, ChipError>;
    /// Why witnesses have not attested this device.
    fn unattested(&self) -> Vec<(DeviceId, String)>;
}

impl From<&Trouble> for Fail {
    fn from(trouble: &Trouble) -> Self {
        Fail::ruled(CKR_DEVICE_ERROR, "vault", trouble.sentence()).next(trouble.state.next())
    }
}

impl From<KeyError> for Fail {
    fn from(error: KeyError) -> Self {
        let code = match error.kind {
            KeyErrorKind::Denied => CKR_KEY_FUNCTION_NOT_PERMITTED,
            KeyErrorKind::UnknownKey => CKR_KEY_HANDLE_INVALID,
            KeyErrorKind::Refused | KeyErrorKind::Invalid => CKR_FUNCTION_REJECTED,
            KeyErrorKind::Memory => CKR_DEVICE_MEMORY,
            KeyErrorKind::NotReady
            | KeyErrorKind::NotFresh
            | KeyErrorKind::TooFewHolders
            | KeyErrorKind::Inconsistent
            | KeyErrorKind::Ledger
            | KeyErrorKind::Storage => CKR_DEVICE_ERROR,
        };
        let reason = error.to_string();
        let devices = error.devices.into_iter();
        let devices = devices.map(|m| DeviceReason { device: m.device, reason: m.reason }).collect();
        let detail = Detail { rule: error.kind.rule(), devices, next: error.next.map(str::to_owned) };
        Fail::new(code, reason).with(detail).retry(error.retry_ms)
    }
}

impl From<mayfly_engine::Error> for Fail {
    fn from(error: mayfly_engine::Error) -> Self {
        use mayfly_engine::Error;
        let code = match &error {
            Error::Mechanism | Error::SinglePartOnly => CKR_MECHANISM_INVALID,
            Error::Parameter(_) => CKR_MECHANISM_PARAM_INVALID,
            Error::KeyType => CKR_KEY_TYPE_INCONSISTENT,
            Error::KeyLength => CKR_KEY_SIZE_RANGE,
            Error::KeyValue(_) => CKR_ATTRIBUTE_VALUE_INVALID,
            Error::Curve => CKR_CURVE_NOT_SUPPORTED,
            Error::DataLength => CKR_DATA_LEN_RANGE,
            Error::EncryptedLength => CKR_ENCRYPTED_DATA_LEN_RANGE,
            Error::Decrypt => CKR_ENCRYPTED_DATA_INVALID,
            Error::SignatureLength => CKR_SIGNATURE_LEN_RANGE,
            Error::Signature => CKR_SIGNATURE_INVALID,
            Error::OutputTooSmall { .. } => CKR_BUFFER_TOO_SMALL,
            Error::Ended | Error::Suspended => CKR_OPERATION_NOT_INITIALIZED,
            Error::Memory(_) => CKR_DEVICE_MEMORY,
            _ => CKR_DEVICE_ERROR,
        };
        let reason = error.to_string();
        match code {
            CKR_DEVICE_ERROR | CKR_DEVICE_MEMORY => Fail::ruled(code, "engine", reason),
            _ => Fail::new(code, reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Missed;

    #[test]
    fn too_few_holders_is_a_device_error_that_names_them() {
        let missed = Missed { device: "agent-2".into(), reason: "did not answer".into() };
        let error = KeyError::new(KeyErrorKind::TooFewHolders, "1 of 2 holders answered").devices(vec![missed]);
        let fail = Fail::from(error.next("start agent-2").retry(500));
        assert_eq!((fail.code, fail.retry_ms), (CKR_DEVICE_ERROR, 500));
        let detail = fail.detail.unwrap();
        assert_eq!((detail.rule, detail.devices[0].device.as_str()), ("holders", "agent-2"));
        assert_eq!(detail.next.as_deref(), Some("start agent-2"));
    }

    #[test]
    fn codes_of_the_node_and_the_engine() {
        use mayfly_engine::Error;
        for (kind, code) in [
            (KeyErrorKind::Denied, CKR_KEY_FUNCTION_NOT_PERMITTED),
            (KeyErrorKind::NotFresh, CKR_DEVICE_ERROR),
            (KeyErrorKind::Refused, CKR_FUNCTION_REJECTED),
            (KeyErrorKind::Memory, CKR_DEVICE_MEMORY),
        ] {
            assert_eq!(Fail::from(KeyError::new(kind, "x")).code, code, "{kind:?}");
        }
        for (error, code, kept) in [
            (Error::Decrypt, CKR_ENCRYPTED_DATA_INVALID, false),
            (Error::Signature, CKR_SIGNATURE_INVALID, false),
            (Error::SignatureLength, CKR_SIGNATURE_LEN_RANGE, false),
            (Error::Parameter("x"), CKR_MECHANISM_PARAM_INVALID, false),
            (Error::Library { call: "x" }, CKR_DEVICE_ERROR, true),
        ] {
            let fail = Fail::from(error);
            assert_eq!((fail.code, fail.detail.is_some()), (code, kept));
        }
    }
}
