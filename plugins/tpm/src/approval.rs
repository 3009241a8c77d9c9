//! Approvals of register values: the approver's signature over "these values open this generation of this vault".
//!
//! A machine whose firmware or boot loader will change gets an approval of the next values before; one that missed it is
//! `policy-pending`: nothing is lost, and the next approval opens it.

use crate::config::verifying_key;
use crate::error::Fault;
use crate::generation::Standing;
use crate::record::{APPROVALS_MAX, Approvals, GenerationFile};
use crate::tss::{self, PolicySession, Tpm};
use crate::vault::{Link, TpmVault};
use mayfly_evidence::approval::Approval;
use mayfly_evidence::object::{Point, verification_key};
use mayfly_evidence::pcr::{self, Selection};
use mayfly_evidence::policy::approver_name;
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::VaultId;
use p256::ecdsa::signature::Verifier;
use sha2::{Digest, Sha256};

const APPROVALS: &str = "approvals";

/// Values of registers, read at once.
pub(crate) struct Readings(Vec<(u32, [u8; 32])>);

impl Readings {
    pub(crate) fn take(tpm: &Tpm, registers: Selection) -> Result<Readings, Fault> {
        Ok(Readings(registers.numbers().zip(tpm.registers(registers)?).collect()))
    }

    /// The digest over some of them; `None` when one of these was not read.
    pub(crate) fn digest(&self, registers: Selection) -> Option<[u8; 32]> {
        let values: Option<Vec<[u8; 32]>> = registers.numbers().map(|number| self.value(number)).collect();
        Some(pcr::digest(&values?))
    }

    pub(crate) fn value(&self, number: u32) -> Option<[u8; 32]> {
        self.0.iter().find_map(|(other, value)| (*other == number).then_some(*value))
    }

    /// Whether an approval is of these values, and whether `approver` has signed it.
    pub(crate) fn fit(&self, approval: &Approval, approver: &Point, vault_id: &VaultId) -> bool {
        self.digest(approval.registers) == Some(approval.digest) && is_signed(approval, approver, vault_id)
    }
}

impl TpmVault {
    pub(crate) fn approvals(&self) -> Result<Vec<Approval>, GuestError> {
        let found = self.decode(APPROVALS, Approvals::decode, |file| file.vault_id)?;
        Ok(found.map_or_else(Vec::new, |file| file.approvals))
    }

    fn keep_approvals(&self, approvals: Vec<Approval>) -> Result<(), GuestError> {
        let file = Approvals { vault_id: self.header.vault_id, approvals };
        self.store.write(APPROVALS, &file.encode())
    }

    /// Takes a new approval, if it is of the approver whom its generation's seals ask.
    pub(crate) fn approve(&mut self, approval: Approval) -> Result<(), GuestError> {
        let refuse = |text: &str| GuestError::new(Status::Invalid, format!("approval: {text}"));
        if approval.registers.is_empty() {
            return Err(refuse("it names no register"));
        }
        let standing = self.link(|link| self.settle(link))?;
        if approval.generation < standing.current.max(1) {
            return Err(refuse(&format!(
                "it is for generation {}; {} is committed, sign for that or a later one",
                approval.generation, standing.current
            )));
        }
        let approver = self.approver_of(&standing, approval.generation)?;
        let approver = approver.ok_or_else(|| refuse("this generation asks no approver (section [pcr])"))?;
        if !is_signed(&approval, &approver, &self.header.vault_id) {
            return Err(refuse(&format!(
                "it is not signed by {}, or for another vault, generation or selection of registers",
                hex::encode(approver.compressed())
            )));
        }
        let mut approvals = self.approvals()?;
        if approvals.contains(&approval) {
            return Ok(());
        }
        if approvals.len() == APPROVALS_MAX {
            return Err(refuse("too many are waiting already; revoke to get rid of old ones"));
        }
        approvals.push(approval);
        self.keep_approvals(approvals)
    }

    /// Whom the seals of a generation ask: what they were made with; before they are made, the configuration.
    pub(crate) fn approver_of(&self, standing: &Standing, generation: u64) -> Result<Option<Point>, GuestError> {
        let made =
            [&standing.committed, &standing.staged].into_iter().flatten().find(|file| file.generation == generation);
        Ok(match made {
            Some(file) => file.approver,
            None => self.config.pcr()?.map(|pcr| pcr.approver),
        })
    }

    /// Approvals of generations before `current` open nothing any more.
    pub(crate) fn forget_approvals(&self, current: u64) -> Result<(), GuestError> {
        let mut approvals = self.approvals()?;
        let before = approvals.len();
        approvals.retain(|approval| approval.generation >= current);
        if approvals.len() == before { Ok(()) } else { self.keep_approvals(approvals) }
    }

    /// The approval that opens what is sealed in `file` with the registers as they are; `None` where no approver is asked.
    pub(crate) fn approval_for(&self, link: &Link<'_>, file: &GenerationFile) -> Result<Option<Approval>, Fault> {
        let Some(approver) = &file.approver else { return Ok(None) };
        let mut approvals = self.approvals()?;
        approvals.retain(|approval| approval.generation == file.generation);
        let all = approvals.iter().fold(Selection::default(), |all, approval| all.union(approval.registers));
        let readings = Readings::take(link.tpm, all)?;
        let found = approvals.iter().find(|approval| readings.fit(approval, approver, &self.header.vault_id));
        match found {
            Some(approval) => Ok(Some(approval.clone())),
            None => Err(pending(file.generation, approvals.len())),
        }
    }
}

/// Whether `approver` has signed it, for this vault.
fn is_signed(approval: &Approval, approver: &Point, vault_id: &VaultId) -> bool {
    let (Some(key), Ok(signature)) = (verifying_key(approver), p256::ecdsa::Signature::from_slice(&approval.signature))
    else {
        return false;
    };
    key.verify(&approval.message(vault_id), &signature).is_ok()
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
    let message = approval.message(vault_id);
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
