//! Why a request is not done: a code for the application, a sentence for people, and what `mayfly why` keeps of it.
//!
//! Codes of other layers become PKCS#11's in this file and nowhere else.

use std::borrow::Cow;

use super::why::DeviceReason;

use super::ck::{CK_RV, CKR_DEVICE_ERROR, CKR_DEVICE_MEMORY};

/// A refused or failed request.
#[derive(Debug)]
pub struct Fail {
    /// CK_RV.
    pub code: CK_RV,
    /// Milliseconds after which the same request may succeed; 0: no point.
    pub retry_ms: u32,
    /// One sentence, lower case, without secrets.
    pub reason: Cow<'static, str>,
    /// For refusals that people ask about.
    pub detail: Option<Box<Detail>>,
}

/// What `mayfly why` tells beyond the sentence.
#[derive(Debug, Default)]
pub struct Detail {
    /// A stable word.
    pub rule: &'static str,
    /// Devices that were missing or refused.
    pub devices: Vec<DeviceReason>,
    /// What to do next.
    pub next: Option<String>,
}

/// Result of serving a request.
pub type Done<T> = Result<T, Fail>;

impl Fail {
    /// An application's own error: a bad handle, a bad template. Not kept for `mayfly why`.
    pub fn new(code: CK_RV, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { code, retry_ms: 0, reason: reason.into(), detail: None }
    }

    /// A refusal by a rule, kept for `mayfly why`.
    pub fn ruled(code: CK_RV, rule: &'static str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(code, reason).with(Detail { rule, ..Detail::default() })
    }

    /// Adds or replaces what `mayfly why` tells.
    pub fn with(self, detail: Detail) -> Self {
        Self { detail: Some(Box::new(detail)), ..self }
    }

    /// Says what to do next.
    pub fn next(mut self, step: impl Into<String>) -> Self {
        if let Some(detail) = &mut self.detail {
            detail.next = Some(step.into());
        }
        self
    }

    /// Trying again after so many milliseconds may help.
    pub fn retry(self, retry_ms: u32) -> Self {
        Self { retry_ms, ..self }
    }
}

impl std::fmt::Display for Fail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:#x})", self.reason, self.code)
    }
}

/// No locked memory is left.
impl From<mayfly_secmem::Exhausted> for Fail {
    fn from(cause: mayfly_secmem::Exhausted) -> Self {
        Self::ruled(CKR_DEVICE_MEMORY, "memory", format!("no secret memory is left: {cause}")).retry(100)
    }
}

/// The kernel gave no randomness.
impl From<mayfly_secmem::RandomError> for Fail {
    fn from(cause: mayfly_secmem::RandomError) -> Self {
        Self::ruled(CKR_DEVICE_ERROR, "random", cause.to_string())
    }
}
