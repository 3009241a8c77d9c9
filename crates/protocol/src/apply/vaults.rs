//! Rules of what is said about vaults: attestations, generations, approved registers, alerts.

use super::{Refusal, check_name_length, ensure};
use crate::attested::Attested;
use crate::entry::Entry;
use crate::ids::{AuthorId, DeviceId, public_key_id};
use crate::record::{self, DeviceRole};
use crate::state::{AlertState, Attestation, Membership, PCR_APPROVALS, State};
use std::sync::Arc;

/// Longest statement or proof of a chip: a `MTP1` with four statements.
pub const EVIDENCE_BYTES_MAX: usize = 5 * 1024;
/// Longest approval of registers.
pub const APPROVAL_BYTES_MAX: usize = 256;
/// Longest text of an alert.
pub const ALERT_BYTES_MAX: usize = 256;
/// The same alert of the same device stands for so long, milliseconds, before it may be said anew.
pub const ALERT_AGAIN_MS: u64 = 3600 * 1000;

/// A chip's statement is not judged here, only kept in bounds: whoever acts upon it checks it.
pub(super) fn check_evidence(evidence: Option<&[u8]>) -> Result<(), Refusal> {
    ensure(evidence.is_none_or(|bytes| !bytes.is_empty() && bytes.len() <= EVIDENCE_BYTES_MAX), "evidence is too long")
}

impl State {
    /// Whether the network lets this device be approved.
    pub(super) fn check_attested(&self, device: &DeviceId) -> Result<(), Refusal> {
        let unattested = self.policy().is_some_and(|p| p.unattested);
        ensure(
            unattested || self.attested(device) != Attested::No,
            "nobody has attested the device: it needs statements of a quorum of witnesses, or of the approving administrators \
             (`mayfly device attest`); a network for devices without a TPM is made with `mayfly init --allow-unattested`",
        )
    }

    pub(super) fn check_attest(&self, time_ms: u64, entry: &Entry, r: &record::Attest) -> Result<(), Refusal> {
        if self.need_administrators(entry, 1).is_err() {
            let witness = self.need_session(time_ms, entry)?;
            if !self.devices.get(&witness).is_some_and(|d| d.has_role(DeviceRole::Witness)) {
                return Err(Refusal::Authority("devices are attested by witnesses and administrators"));
            }
            ensure(witness != r.device, "a device does not attest itself")?;
        }
        let device = self.devices.get(&r.device);
        let device =
            device.filter(|d| !d.is_banned()).ok_or(Refusal::Rule("device has not joined, or is banned".into()))?;
        let before = device.attestations.get(&entry.author);
        ensure(
            before.is_none_or(|a| a.record.chip == r.chip),
            "another chip was attested before: a device stays with its chip, enrol it anew",
        )?;
        ensure(r.generation >= device.vault_generation, "the vault's generation went back")?;
        check_name_length(&r.maker, 2 * record::NAME_BYTES_MAX)?;
        check_evidence(Some(&r.proof))
    }

    pub(super) fn check_vault_generation(&self, entry: &Entry, r: &record::VaultGeneration) -> Result<(), Refusal> {
        let device = self.devices.get(&DeviceId::from(entry.author));
        let device = device.ok_or(Refusal::Authority("the author is not a device"))?;
        if device.is_banned() {
            return Err(Refusal::Authority("the author is banned"));
        }
        if !entry.is_signed_by(&device.identity) {
            return Err(Refusal::Signature("the identity key"));
        }
        ensure(r.generation > device.vault_generation, "the vault's generation does not grow")?;
        check_evidence(r.proof.as_deref())
    }

    pub(super) fn check_pcr_approval(
        &self,
        time_ms: u64,
        entry: &Entry,
        r: &record::PcrApproval,
    ) -> Result<(), Refusal> {
        let approver = self.need_session(time_ms, entry)?;
        if !self.devices.get(&approver).is_some_and(|d| d.has_role(DeviceRole::PcrApprover)) {
            return Err(Refusal::Authority("registers are approved by devices with role pcr-approver"));
        }
        let known = self.devices.get(&r.device).is_some_and(|d| d.membership != Membership::Banned);
        ensure(known, "device has not joined, or is banned")?;
        ensure((1..=APPROVAL_BYTES_MAX).contains(&r.approval.len()), "an approval is 1 to 256 bytes")
    }

    pub(super) fn check_alert(&self, time_ms: u64, entry: &Entry, r: &record::Alert) -> Result<(), Refusal> {
        let author = DeviceId::from(entry.author);
        let device = self.devices.get(&author).ok_or(Refusal::Authority("the author is not a device"))?;
        if device.is_banned() {
            return Err(Refusal::Authority("the author is banned"));
        }
        let by_identity = author == r.about && entry.is_signed_by(&device.identity);
        if !by_identity {
            self.need_session(time_ms, entry)?;
        }
        ensure(self.devices.contains_key(&r.about), "no such device")?;
        check_name_length(&r.text, ALERT_BYTES_MAX)?;
        let standing = self.alerts.get(&(r.about, r.what, author));
        ensure(
            standing.is_none_or(|a| a.time_ms.saturating_add(ALERT_AGAIN_MS) <= time_ms || a.record.text != r.text),
            "the alert stands already",
        )
    }

    pub(super) fn attest(&mut self, time_ms: u64, entry: &Entry, r: &record::Attest) {
        let attestation = Attestation { record: Arc::new(r.clone()), time_ms };
        // Its generation is the device's own to say: one lying witness must not be able to put a device into quarantine.
        self.with_device(&r.device, |d| {
            d.attestations.insert(entry.author, attestation);
        });
    }

    pub(super) fn approve_registers(&mut self, r: &record::PcrApproval) {
        self.with_device(&r.device, |d| {
            if d.pcr_approvals.len() >= PCR_APPROVALS {
                d.pcr_approvals.remove(0);
            }
            d.pcr_approvals.push(Arc::new(r.clone()));
        });
    }

    pub(super) fn alert(&mut self, time_ms: u64, entry: &Entry, r: &record::Alert) {
        let alert = AlertState { record: Arc::new(r.clone()), time_ms };
        self.alerts.insert((r.about, r.what, DeviceId::from(entry.author)), alert);
    }

    /// Who has attested the device, as far as it counts now: enough authors who saw the same chip.
    pub fn attested(&self, device: &DeviceId) -> Attested {
        self.attested_chip(device).map_or(Attested::No, |(by, _)| by)
    }

    /// The chip of an attested device: what its later statements are judged by. What one author says of another chip counts for nothing.
    pub fn attested_chip(&self, device: &DeviceId) -> Option<(Attested, &record::Chip)> {
        let (device, genesis) = (self.devices.get(device)?, self.genesis.as_deref()?);
        let saw = |author: &AuthorId, chip: &record::Chip| {
            device.attestations.get(author).is_some_and(|a| a.record.chip == *chip)
        };
        let (witnesses, quorum) = (self.active_witnesses(), crate::head::quorum(self.witnesses().len()));
        let by = |chip: &record::Chip| {
            let administrators = genesis.administrators.iter().map(|a| AuthorId(public_key_id(&a.key.0)));
            let administrators = administrators.filter(|a| saw(a, chip)).count();
            if administrators >= usize::from(genesis.administrators_needed) {
                return Some(Attested::ByAdministrators(administrators));
            }
            let witnesses = witnesses.iter().filter(|w| saw(&AuthorId::from(**w), chip)).count();
            (witnesses > 0 && witnesses >= quorum).then_some(Attested::ByWitnesses(witnesses))
        };
        let chips = device.attestations.values().map(|a| &a.record.chip);
        let found = chips.filter_map(|chip| by(chip).map(|by| (by, chip)));
        // Administrators stand above witnesses, should the two ever have seen different chips.
        found.max_by_key(|(by, _)| matches!(by, Attested::ByAdministrators(_)))
    }
}
