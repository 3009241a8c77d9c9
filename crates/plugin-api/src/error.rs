//! Every way in which a plugin fails, in words.

use crate::abi::Status;
use crate::path::PathError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A plugin's failure. `who` is `vault(file)` or `ledger(embedded)`; the text is fit for an operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The plugin itself refused, with its reason.
    #[error("{who}: {call}: {message}")]
    Refused {
        /// Which plugin.
        who: String,
        /// Which call.
        call: &'static str,
        /// Why, as a number.
        status: Status,
        /// Why, in the plugin's words (control characters removed).
        message: String,
    },
    /// No answer within the limit; the host was killed and starts anew with the next call.
    #[error("{who}: {call} timed out after {} s", .limit.as_secs_f32())]
    TimedOut {
        /// Which plugin.
        who: String,
        /// Which call.
        call: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The host process ended in the middle of a call; it starts anew with the next call.
    #[error("{who}: the plugin ended during {call} ({how})")]
    Ended {
        /// Which plugin.
        who: String,
        /// Which call.
        call: &'static str,
        /// Exit status or signal.
        how: String,
    },
    /// The host has failed several times; the call was not tried.
    #[error("{who}: restarting after failures, next attempt in {} ms", .wait.as_millis())]
    Restarting {
        /// Which plugin.
        who: String,
        /// Time until a call is tried again.
        wait: Duration,
    },
    /// An answer that the interface does not allow. The host was killed: its memory cannot be trusted any more.
    #[error("{who}: {call}: bad answer: {what}")]
    BadAnswer {
        /// Which plugin.
        who: String,
        /// Which call.
        call: &'static str,
        /// What was wrong.
        what: String,
    },
    /// The file is no plugin of this interface version and kind.
    #[error("{who}: {path} is not usable: {what}")]
    Unusable {
        /// Which plugin.
        who: String,
        /// The file.
        path: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The host found no locked memory or no system call filter; it loads nothing then.
    #[error("{who}: the plugin host cannot be made safe: {what}")]
    NotSafe {
        /// Which plugin.
        who: String,
        /// What was missing.
        what: String,
    },
    /// The caller gave something that the interface does not allow; the plugin was not asked.
    #[error("{who}: {call}: {what}")]
    Argument {
        /// Which plugin.
        who: String,
        /// Which call.
        call: &'static str,
        /// What was wrong.
        what: String,
    },
    /// A file on the way is not safe to use.
    #[error("{who}: {cause}")]
    Path {
        /// Which plugin.
        who: String,
        /// What and why; in the text, and so no `source`, which would be printed once more.
        cause: PathError,
    },
    /// The host process could not be started or spoken to.
    #[error("{who}: {action}: {cause}")]
    Host {
        /// Which plugin.
        who: String,
        /// What was being done.
        action: String,
        /// The cause, as above.
        cause: io::Error,
    },
    /// No room in secret memory for the answer.
    #[error("{who}: {call}: no secret memory left for the answer")]
    NoSecretMemory {
        /// Which plugin.
        who: String,
        /// Which call.
        call: &'static str,
        /// The cause.
        source: mayfly_secmem::Exhausted,
    },
}

impl PluginError {
    /// The plugin's own status, when it was the plugin that refused.
    pub fn status(&self) -> Option<Status> {
        match self {
            PluginError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// True when the same call may succeed later without anybody doing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            PluginError::Refused { status, .. } => {
                matches!(status, Status::Transient | Status::Lockout | Status::ReadOnly)
            }
            PluginError::TimedOut { .. } | PluginError::Ended { .. } | PluginError::Restarting { .. } => true,
            _ => false,
        }
    }

    /// True when the plugin was certainly not reached, so nothing happened.
    pub(crate) fn is_before_call(&self) -> bool {
        !matches!(self, PluginError::TimedOut { .. } | PluginError::Ended { .. } | PluginError::BadAnswer { .. })
    }
}
