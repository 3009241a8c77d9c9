//! Registers (PCR) of a TPM: approvals that the ledger brings for this device's vault, and those that this device makes for others'.
//!
//! What an approval opens is judged by the chip alone. A wrong one is told and left; it must never end or stop the agent, and no shard is lost
//! by a missing one: the vault stays closed until a good one comes.

use super::directory::Ledger;
use super::error::{KeyError, KeyErrorKind, Missed};
use super::identity::Records;
use super::peers::{Exchange, Outcome, Peers};
use super::upkeep::Stop;
use super::vault::{Vault, VaultState};
use super::{VaultError, dealer};
use mayfly_crypto::sign::Alg;
use mayfly_evidence::approval::Approval;
use mayfly_evidence::pcr::Selection;
use mayfly_ledger_client::with_cause;
use mayfly_plugin_api::Status;
use mayfly_protocol::DeviceId;
use mayfly_protocol::peer::{Ask, Reply};
use mayfly_protocol::record::{DeviceRole, PcrApproval, Record};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

/// How long another device may take to tell its policy: its chip may be slow.
const POLICY_PATIENCE: Duration = Duration::from_secs(10);
/// Longest time between looks at the ledger.
const LOOK: Duration = Duration::from_secs(1);
/// The part of the node that has to do with registers.
pub struct Registers {
    /// This device.
    pub device: DeviceId,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// Its vault.
    pub vault: Arc<Vault>,
    /// Other devices.
    pub peers: Arc<Peers>,
    /// Its records.
    pub records: Arc<Records>,
}

/// What is approved: with these registers of this digest the vault opens in that generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ToApprove {
    /// Whose vault.
    pub device: DeviceId,
    /// The vault's id.
    pub vault: [u8; 16],
    /// The generation; the approval dies with it.
    pub generation: u64,
    /// Which registers count.
    pub registers: Selection,
    /// Of their values.
    pub digest: [u8; 32],
}

impl std::fmt::Debug for Registers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registers({:?})", self.vault)
    }
}

impl Registers {
    // --- approvals for this device ------------------------------------------------------------------------------------------

    /// Brings approvals from the ledger to the vault, and opens it when it is closed. The body of a thread.
    pub fn keep(&self, stop: &Stop) {
        let changes = self.ledger.replica().subscribe();
        let mut done = BTreeSet::new();
        loop {
            if self.install(&mut done) && self.vault.state() != VaultState::Open {
                match self.vault.try_open() {
                    VaultState::Open => tracing::info!("the vault is open"),
                    closed => tracing::warn!(reason = %closed, "the vault stays closed"),
                }
            }
            match changes.recv_timeout(LOOK) {
                Ok(_) => while changes.try_recv().is_ok() {}, // one look serves all changes until now
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if stop.is_set() {
                return;
            }
        }
    }

    /// Gives the vault every approval that it has not had from us; whether it took one. Each is told once.
    fn install(&self, done: &mut BTreeSet<Vec<u8>>) -> bool {
        let state = self.ledger.replica().effective();
        let Some(own) = state.devices.get(&self.device) else { return false };
        let mut has_come = false;
        for record in own.pcr_approvals.iter().filter(|a| !done.contains(&a.approval)).collect::<Vec<_>>() {
            let past = Approval::decode(&record.approval).is_ok_and(|a| a.generation < self.vault.generation());
            let taken = if past { Ok(Vec::new()) } else { self.vault.control("approve", &record.approval) };
            match taken {
                Ok(_) if past => {}
                Ok(_) => {
                    tracing::info!("an approval of registers was brought to the vault");
                    has_come = true;
                }
                Err(error) if is_final(&error) => {
                    tracing::warn!(
                        error = with_cause(&error),
                        "an approval of registers on the ledger is of no use to this vault"
                    );
                }
                Err(error) => {
                    tracing::warn!(
                        error = with_cause(&error),
                        "an approval of registers is brought to the vault later"
                    );
                    continue;
                }
            }
            done.insert(record.approval.clone());
        }
        has_come
    }

    /// What this vault's registers are and what it asks for: JSON of the plugin's page.
    ///
    /// # Errors
    /// [`VaultError`]; [`Status::Unsupported`] where there are no registers.
    pub fn policy(&self) -> Result<Vec<u8>, VaultError> {
        self.vault.control("policy", &[])
    }

    // --- approvals by this device -------------------------------------------------------------------------------------------

    /// The policy of another device's vault, asked of the device itself.
    ///
    /// # Errors
    /// [`KeyError`]: it cannot be reached, or refuses.
    pub fn policy_of(&self, device: DeviceId) -> Result<Vec<u8>, KeyError> {
        let mut exchange = Exchange::new(&self.peers);
        exchange.ask(device, Box::new(|_| Ok(Ask::VaultPolicy)));
        let mut policy = Err("did not answer in time".to_owned());
        exchange.wait(Instant::now() + POLICY_PATIENCE, |_, outcome| {
            policy = match outcome {
                Outcome::Answer(Reply::VaultPolicy(policy), _) => Ok(policy.json),
                Outcome::Answer(Reply::Refused(refused), _) => Err(format!("refused: {}", refused.text)),
                Outcome::Answer(..) => Err("answered another question".into()),
                Outcome::Lost(why) => Err(format!("not reachable: {why}")),
            };
        });
        policy.map_err(|reason| {
            let missed = Missed { device: self.ledger.view().effective.device_name(&device), reason };
            KeyError::new(KeyErrorKind::TooFewHolders, "the device does not tell its policy")
                .devices(vec![missed])
                .next("on the device: `mayfly vault policy --json`; bring that here and give it with --policy")
        })
    }

    /// Whether this device can approve registers at all.
    ///
    /// # Errors
    /// [`KeyError`]: a key that no TPM checks, not an approver.
    pub fn check_approver(&self) -> Result<(), KeyError> {
        if self.vault.identity().alg() != Alg::P256 {
            let text = "this device's identity key is Ed25519, and a TPM checks approvals by P-256 keys only";
            return Err(KeyError::new(KeyErrorKind::Invalid, text)
                .next("approve on a device whose vault is a TPM or a PKCS#11 token: their identity keys are P-256"));
        }
        let view = self.ledger.view();
        if !view.member(&self.device).is_some_and(|d| d.has_role(DeviceRole::PcrApprover)) {
            let text = "this device does not have the role pcr-approver";
            return Err(KeyError::new(KeyErrorKind::Denied, text).next(
                "an administrator gives it, with the roles that it has already: `mayfly device role NAME --set holder,witness,pcr-approver`",
            ));
        }
        Ok(())
    }

    /// Signs an approval with this device's identity key and posts it.
    ///
    /// # Errors
    /// [`KeyError`]: as [`Registers::check_approver`]; a vault that does not sign, a ledger that does not take it.
    pub fn approve(&self, what: &ToApprove) -> Result<u64, KeyError> {
        self.check_approver()?;
        let ToApprove { device, vault, generation, registers, digest } = *what;
        let mut approval = Approval { generation, registers, digest, signature: [0; 64] };
        let signed = self.vault.sign(&approval.message(&vault));
        approval.signature = signed.map_err(|error| KeyError::new(KeyErrorKind::Storage, with_cause(&error)))?;
        let record = Record::PcrApproval(PcrApproval { device, approval: approval.encode() });
        self.records.post(&record, dealer::POST_TIMEOUT).map_err(dealer::post_failed)
    }
}

/// Whether the same approval will never be taken.
fn is_final(error: &VaultError) -> bool {
    matches!(error.status(), Some(Status::Invalid | Status::Unsupported | Status::NoGeneration))
}
