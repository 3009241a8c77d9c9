//! Why a key could not be used or made: for the application a kind, for people a sentence, for `mayfly why` who was missing.

use mayfly_protocol::rules::Denied;
use std::fmt;

/// What went wrong, as far as callers must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyErrorKind {
    /// The ledger's rules do not allow it: policy, deletion, assemblers, validity, membership.
    Denied,
    /// There is no such key on the ledger.
    UnknownKey,
    /// The agent is starting, waits for approval, or is banned.
    NotReady,
    /// No recent word of a quorum of witnesses: nothing is released.
    NotFresh,
    /// Fewer than t holders answered.
    TooFewHolders,
    /// The shares are good, the key made of them is not the committed one.
    Inconsistent,
    /// The ledger refused the record.
    Refused,
    /// The ledger cannot be reached, or did not take the record in time.
    Ledger,
    /// The vault or the disk failed.
    Storage,
    /// No secret memory is left, or no randomness.
    Memory,
    /// The request itself cannot be fulfilled (parameters).
    Invalid,
}

impl KeyErrorKind {
    /// A stable word for `mayfly why` and metrics.
    pub fn rule(self) -> &'static str {
        match self {
            KeyErrorKind::Denied => "policy",
            KeyErrorKind::UnknownKey => "unknown-key",
            KeyErrorKind::NotReady => "not-ready",
            KeyErrorKind::NotFresh => "freshness",
            KeyErrorKind::TooFewHolders => "holders",
            KeyErrorKind::Inconsistent => "key-commitment",
            KeyErrorKind::Refused => "ledger-rule",
            KeyErrorKind::Ledger => "ledger",
            KeyErrorKind::Storage => "storage",
            KeyErrorKind::Memory => "memory",
            KeyErrorKind::Invalid => "invalid",
        }
    }
}

/// A device's part in a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// Its name.
    pub device: String,
    /// What it said, or that it did not answer.
    pub reason: String,
}

/// A key could not be used or made. The text has no secrets and no names of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyError {
    /// What went wrong.
    pub kind: KeyErrorKind,
    /// One sentence: lower case, no full stop.
    pub text: String,
    /// Devices that were missing, refused or lied.
    pub devices: Vec<Missed>,
    /// What to do next, where that is known.
    pub next: Option<&'static str>,
    /// Milliseconds after which the same request may succeed; 0: no point in trying.
    pub retry_ms: u32,
}

impl KeyError {
    /// An error with its sentence.
    pub fn new(kind: KeyErrorKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), devices: Vec::new(), next: None, retry_ms: 0 }
    }

    /// No room for secrets.
    pub(crate) fn no_memory() -> Self {
        KeyError::new(KeyErrorKind::Memory, "no secret memory is left")
            .next("raise the limit of locked memory (LimitMEMLOCK) or use fewer windows")
            .retry(100)
    }

    /// Names devices.
    pub fn devices(mut self, devices: Vec<Missed>) -> Self {
        self.devices = devices;
        self
    }

    /// Says what to do next.
    pub fn next(mut self, next: &'static str) -> Self {
        self.next = Some(next);
        self
    }

    /// Says when to try again.
    pub fn retry(mut self, retry_ms: u32) -> Self {
        self.retry_ms = retry_ms;
        self
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        for (at, missed) in self.devices.iter().enumerate() {
            write!(f, "{}{} {}", if at == 0 { ": " } else { "; " }, missed.device, missed.reason)?;
        }
        Ok(())
    }
}

impl std::error::Error for KeyError {}

impl From<Denied> for KeyError {
    fn from(denied: Denied) -> Self {
        let kind = match denied {
            Denied::UnknownKey(_) => KeyErrorKind::UnknownKey,
            _ => KeyErrorKind::Denied,
        };
        KeyError::new(kind, denied.to_string())
    }
}

impl From<mayfly_secmem::Exhausted> for KeyError {
    fn from(cause: mayfly_secmem::Exhausted) -> Self {
        KeyError { text: format!("no secret memory is left: {cause}"), ..KeyError::no_memory() }
    }
}

impl From<mayfly_secmem::RandomError> for KeyError {
    fn from(cause: mayfly_secmem::RandomError) -> Self {
        match cause {
            mayfly_secmem::RandomError::Memory(exhausted) => exhausted.into(),
            kernel => KeyError::new(KeyErrorKind::Memory, kernel.to_string()),
        }
    }
}
