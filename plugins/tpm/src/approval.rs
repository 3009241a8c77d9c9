//! Approvals of register values: the approver's signature over "these values open this generation of this vault".
//!
//! A machine whose firmware or boot loader will change gets an approval of the next values before; one that missed it is
//! `policy-pending`: nothing is lost, and the next approval opens it.

use crate::config::verifying_key;
use crate::error::Fault;
use crate::record::{APPROVALS_MAX, Approval, Approvals};
use crate::tss::{self, PolicySession, Tpm};
use crate::vault::{Link, TpmVault};
use mayfly_evidence::object::{Point, verification_key};
use mayfly_evidence::pcr;
use mayfly_evidence::policy::{approval_message, approver_name};
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::VaultId;
use p256::ecdsa::signature::Verifier;
use sha2::{Digest, Sha256};

const APPROVALS: &str = "approvals";

impl TpmVault {
    pub(crate) fn approvals(&self) -> Result<Approvals, GuestError> {
        let found = self.decode(APPROVALS, Approvals::decode, |file| file.vault_id)?;
        Ok(found.unwrap_or_else(|| Approvals { vault_id: self.header.vault_id, approvals: Vec::new() }))
    }

    /// Takes a new approval, if the configured approver has signed it.
    pub(crate) fn approve(&mut self, approval: Approval) -> Result<(), GuestError> {
        let refuse = |text: &str| GuestError::new(Status::Invalid, format!("approval: {text}"));
        let Some(pcr) = self.config.pcr()? else {
            return Err(refuse("no approver is configured (section [pcr])"));
        };
        if approval.registers.is_empty() {
            return Err(refuse("it names no register"));
        }
        let (registers, digest) = (approval.registers, &approval.digest);
        let message = approval_message(registers, digest, &self.header.vault_id, approval.generation);
        let key = verifying_key(&pcr.approver).ok_or_else(|| refuse("the approver's key is not a point of P-256"))?;
        let signature = p256::ecdsa::Signature::from_slice(&approval.signature);
        let signature = signature.map_err(|_| refuse("its signature is malformed"))?;
        key.verify(&message, &signature)
            .map_err(|_| refuse("its signature is not the approver's, or it is for another vault or generation"))?;
        let mut file = self.approvals()?;
        if file.approvals.contains(&approval) {
            return Ok(());
        }
        if file.approvals.len() == APPROVALS_MAX {
            return Err(refuse("too many are waiting already; revoke to get rid of old ones"));
        }
        file.approvals.push(approval);
        self.store.write(APPROVALS, &file.encode())
    }

    /// Approvals of generations before `current` open nothing any more.
    pub(crate) fn forget_approvals(&self, current: u64) -> Result<(), GuestError> {
        let mut file = self.approvals()?;
        let before = file.approvals.len();
        file.approvals.retain(|approval| approval.generation >= current);
        if file.approvals.len() == before { Ok(()) } else { self.store.write(APPROVALS, &file.encode()) }
    }

    /// The approval of a generation that fits the registers as they are.
    pub(crate) fn approval_for(&self, link: &Link<'_>, generation: u64) -> Result<Approval, Fault> {
        let mut of_generation = 0;
        for approval in self.approvals()?.approvals {
            if approval.generation != generation {
                continue;
            }
            of_generation += 1;
            if pcr::digest(&link.tpm.registers(approval.registers)?) == approval.digest {
                return Ok(approval);
            }
        }
        Err(pending(generation, of_generation))
    }
}

fn pending(generation: u64, approvals: usize) -> Fault {
    let text = format!(
        "the registers (PCR) as they are now are not approved for generation {generation} ({approvals} approvals of other \
         values are here); nothing is lost: let the approver sign the present values (`mayfly vault approve-pcr`)"
    );
    Fault::told(Status::PolicyPending, text)
}

/// Brings an approval before the chip.
pub(crate) fn satisfy(
    tpm: &Tpm,
    policy: &PolicySession<'_>,
    approver: &Point,
    approval: &Approval,
    vault_id: &VaultId,
) -> Result<(), Fault> {
    let message = approval_message(approval.registers, &approval.digest, vault_id, approval.generation);
    let (approved, reference) = message.split_at(32);
    let (approved, reference) = (array(approved), array(reference));
    policy.pcr(approval.registers, &approval.digest).map_err(|error| match error.is(tss::VALUE) {
        // they have changed since they were read
        true => pending(approval.generation, 1),
        false => error.into(),
    })?;
    let key = tpm.load_public(&verification_key(approver))?;
    let signed: [u8; 32] = Sha256::digest(message).into();
    Ok(policy.authorize(&key, &approver_name(approver), &approved, &reference, &approval.signature, &signed)?)
}

fn array(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(bytes);
    out
}
