//! What keeps a device from its work because of its vault, in words: the state, the reason, the way back.
//!
//! A vault that does not open never ends the agent: systemd would start it again and again, each time with another attempt at a PIN. Instead the
//! agent answers `mayfly status` with what is here, and tries again only where that can help and costs nothing.

use super::{StartError, VaultError, VaultState};
use mayfly_ledger_client::with_cause;
use mayfly_plugin_api::Status;

/// A device's trouble with its vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Which.
    pub state: TroubleState,
    /// What was seen, one sentence.
    pub reason: String,
}

/// Kinds of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleState {
    /// Another chip or token than the one that sealed; a cleared one; one without the identity key.
    Lost,
    /// What the vault keeps is damaged, or folder and chip are not of the same time.
    Damaged,
    /// The vault refused the PIN, passphrase or auth secret. Not tried again: attempts are counted.
    Refused,
    /// The chip or token cannot be reached. Tried again.
    Down,
    /// The chip's registers are not approved.
    PolicyPending,
    /// The vault is behind what the ledger knows of it: it was put back from a copy.
    Quarantined,
}

impl TroubleState {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            TroubleState::Lost => "vault-lost",
            TroubleState::Damaged => "vault-damaged",
            TroubleState::Refused => "vault-refused",
            TroubleState::Down => "vault-down",
            TroubleState::PolicyPending => "policy-pending",
            TroubleState::Quarantined => "quarantined",
        }
    }

    /// Whether it can pass without anybody touching this device.
    pub fn is_passing(self) -> bool {
        matches!(self, TroubleState::Down | TroubleState::PolicyPending)
    }

    /// The way back.
    pub fn next(self) -> &'static str {
        match self {
            TroubleState::Lost => {
                "put the right chip or token back and restart the agent; if there is none any more, this host joins again as a new device: \
                 `mayfly ban NAME` by an administrator (its name is free then, its shards count as lost), move the data folder away, \
                 `mayfly invite`, `mayfly join TOKEN`"
            }
            TroubleState::Damaged => {
                "restart the agent when the disk or token is mended, or the newest copy of the vault's folder is back in its place; no older \
                 copy opens, so if it cannot be mended this host joins again as a new device: `mayfly ban NAME` by an administrator, move the data folder away, `mayfly invite`, `mayfly join TOKEN`"
            }
            TroubleState::Refused => {
                "put the right PIN, passphrase or auth secret where the vault's configuration says, and restart the agent: it is tried once \
                 for each start, since attempts are counted"
            }
            TroubleState::Down => {
                "see that the chip or token is there and its service runs; the agent tries again by itself"
            }
            TroubleState::PolicyPending => {
                "compare the registers in `mayfly vault policy` with what the host should have started; if they are good, on a device with role \
                 pcr-approver: `mayfly vault approve-pcr --device NAME --current`; the vault opens by itself then"
            }
            TroubleState::Quarantined => {
                "an older copy of the vault was put back, and nothing makes it newer: this host joins again as a new device: \
                 `mayfly ban NAME` by an administrator (its name is free then), move the data folder away, \
                 `mayfly invite`, `mayfly join TOKEN`"
            }
        }
    }
}

impl Trouble {
    /// State and reason.
    pub fn sentence(&self) -> String {
        format!("{}: {}", self.state.word(), self.reason)
    }

    /// What kept the agent from starting, where it is the vault and not its configuration.
    pub fn of_start(error: &StartError) -> Option<Trouble> {
        let StartError::Vault(vault) = error else { return None };
        Some(Trouble { state: state_of(vault)?, reason: with_cause(vault) })
    }

    /// What an open node says of its vault.
    pub fn of_vault(state: VaultState) -> Option<Trouble> {
        match state {
            VaultState::Open => None,
            VaultState::PolicyPending(reason) => Some(Trouble { state: TroubleState::PolicyPending, reason }),
            VaultState::Closed(reason) => Some(Trouble { state: TroubleState::Down, reason }),
            VaultState::Ahead(reason) => Some(Trouble { state: TroubleState::Damaged, reason }),
        }
    }
}

/// What a failed call says of the vault; `None` where the plugin, its configuration or its caller is at fault.
fn state_of(error: &VaultError) -> Option<TroubleState> {
    let is_passing = matches!(error, VaultError::Plugin(plugin) if plugin.is_transient());
    match error.status() {
        Some(Status::VaultLost | Status::NoIdentity) => Some(TroubleState::Lost),
        Some(Status::Corrupt | Status::NoGeneration) => Some(TroubleState::Damaged),
        // A locked token counts attempts too.
        Some(Status::Auth | Status::Lockout) => Some(TroubleState::Refused),
        Some(Status::PolicyPending) => Some(TroubleState::PolicyPending),
        Some(Status::Io | Status::Busy | Status::Internal) => Some(TroubleState::Down),
        _ => is_passing.then_some(TroubleState::Down),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_plugin_api::PluginError;

    fn refused(status: Status) -> StartError {
        let (who, message) = ("vault(tpm)".to_owned(), "reason".to_owned());
        VaultError::Plugin(PluginError::Refused { who, call: "open", status, message }).into()
    }

    #[test]
    fn what_can_pass_is_tried_again_and_what_is_counted_is_not() {
        for (status, state, again) in [
            (Status::VaultLost, Some("vault-lost"), false),
            (Status::NoIdentity, Some("vault-lost"), false),
            (Status::Corrupt, Some("vault-damaged"), false),
            (Status::Auth, Some("vault-refused"), false),
            (Status::Lockout, Some("vault-refused"), false),
            (Status::Io, Some("vault-down"), true),
            (Status::Busy, Some("vault-down"), true),
            (Status::Transient, Some("vault-down"), true),
            (Status::PolicyPending, Some("policy-pending"), true),
            (Status::Config, None, false),
            (Status::NoGeneration, Some("vault-damaged"), false),
            (Status::Internal, Some("vault-down"), true),
        ] {
            let trouble = Trouble::of_start(&refused(status));
            assert_eq!(trouble.as_ref().map(|t| t.state.word()), state, "{status:?}");
            assert_eq!(trouble.is_some_and(|t| t.state.is_passing()), again, "{status:?}");
        }
    }
}
