//! Rules of what is said about vaults: attestations, generations, approved registers, alerts.

use super::{Refusal, check_name_length, ensure};
use crate::attested::Attested;
use crate::entry::Entry;
use crate::ids::{AuthorId, DeviceId, public_key_id};
use crate::record::{self, DeviceRole};
use crate::state::{AlertState, Attestation, Device, GenerationStated, Membership, PCR_APPROVALS, State};
use std::cmp::Reverse;
use std::sync::Arc;

/// Longest statement or proof of a chip: a `MTP1` with four statements.
pub const EVIDENCE_BYTES_MAX: usize = 5 * 1024;
/// Longest approval of registers.
pub const APPROVAL_BYTES_MAX: usize = 256;
/// Longest text of an alert.
pub const ALERT_BYTES_MAX: usize = 256;
/// Number of registers (PCR) of a chip.
const REGISTERS: u32 = 24;
/// The same alert of the same device stands for so long, milliseconds, before it may be said anew.
pub const ALERT_AGAIN_MS: u64 = 3600 * 1000;
/// The same device's alert about the same thing in other words, likewise: nobody fills the ledger by it.
pub const ALERT_NEWS_MS: u64 = 60 * 1000;

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
            "nobody has attested the device, and this network asks for it: run `mayfly device attest` on the device's own host, or \
             start witnesses that know its maker's certificates (`[attestation] roots`)",
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
        self.check_chip(&entry.author, r)
    }

    /// Whether an attestation by this author fits what is known of the device and of other devices: all but who may say it.
    ///
    /// # Errors
    /// [`Refusal::Rule`].
    pub fn check_chip(&self, author: &AuthorId, r: &record::Attest) -> Result<(), Refusal> {
        let device = self.devices.get(&r.device);
        let device =
            device.filter(|d| !d.is_banned()).ok_or(Refusal::Rule("device has not joined, or is banned".into()))?;
        let before = device.attestations.get(author).map(|a| &a.record.chip);
        ensure(
            before.into_iter().chain(device.chip.as_deref()).all(|chip| *chip == r.chip),
            "another chip was attested before: a device stays with its chip, ban it and enrol it anew",
        )?;
        // One machine under several names could hold several shards of a key.
        let elsewhere = self.devices.iter().filter(|(id, d)| **id != r.device && !d.is_banned());
        let mut chips = elsewhere.filter_map(|(_, d)| d.chip.as_deref());
        ensure(
            chips.all(|chip| chip.certificate != r.chip.certificate),
            "another device is enrolled with this chip; ban it first if this one takes its place",
        )?;
        ensure(r.generation >= device.vault_generation, "the vault's generation went back")?;
        ensure(
            r.registers.selected != 0 && r.registers.selected >> REGISTERS == 0,
            "an attestation is of one or more of registers 0 to 23",
        )?;
        check_name_length(&r.maker, 2 * record::NAME_BYTES_MAX)?;
        check_evidence(Some(&r.proof))
    }

    pub(super) fn check_vault_generation(&self, entry: &Entry, r: &record::VaultGeneration) -> Result<(), Refusal> {
        let device = self.speaking_member(entry)?;
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
        let (author, device) = (DeviceId::from(entry.author), self.speaking_member(entry)?);
        let by_identity = author == r.about && entry.is_signed_by(&device.identity);
        if !by_identity {
            self.need_session(time_ms, entry)?;
        }
        ensure(self.devices.contains_key(&r.about), "no such device")?;
        check_name_length(&r.text, ALERT_BYTES_MAX)?;
        let standing = self.alerts.get(&(r.about, r.what, author));
        let pause = |text: &str| if text == r.text { ALERT_AGAIN_MS } else { ALERT_NEWS_MS };
        ensure(
            standing.is_none_or(|a| a.time_ms.saturating_add(pause(&a.record.text)) <= time_ms),
            "the alert stands already: the same one for an hour, another about the same for a minute",
        )
    }

    /// The approved device that is the author: one that only waits for approval does not fill the ledger.
    fn speaking_member(&self, entry: &Entry) -> Result<&Device, Refusal> {
        let id = DeviceId::from(entry.author);
        self.member(&id).map_err(|_| Refusal::Authority("the author is not an approved device"))?;
        self.devices.get(&id).ok_or(Refusal::Authority("the author is not a device"))
    }

    pub(super) fn attest(&mut self, time_ms: u64, entry: &Entry, r: &record::Attest) {
        let attestation = Attestation { record: Arc::new(r.clone()), time_ms };
        // Its generation is the device's own to say: one lying witness must not be able to put a device into quarantine.
        self.with_device(&r.device, |d| {
            d.attestations.insert(entry.author, attestation);
        });
        self.settle_chip(&r.device);
        let unapproved = self.policy().is_some_and(|p| p.members_join_unapproved);
        if unapproved && self.attested(&r.device) != Attested::No {
            self.with_device(&r.device, |d| {
                if d.membership == Membership::Pending {
                    d.membership = Membership::Member;
                }
            });
        }
    }

    /// A chip that enough authors have seen is the device's for good, whoever is a witness later.
    pub(super) fn settle_chip(&mut self, id: &DeviceId) {
        let chip = self.attested_chip(id).map(|(_, chip)| Arc::new(chip.clone()));
        self.with_device(id, |d| d.chip = d.chip.take().or(chip));
    }

    pub(super) fn state_generation(&mut self, time_ms: u64, entry: &Entry, r: &record::VaultGeneration) {
        let stated = GenerationStated { record: Arc::new(r.clone()), time_ms };
        self.with_device(&DeviceId::from(entry.author), |d| {
            d.vault_generation = r.generation;
            d.generation_stated = Some(stated);
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

    /// A new delegation says anew how a device stands: what was wrong before is history, what still is is said again.
    pub(super) fn forget_alerts(&mut self, about: &DeviceId) {
        let of_it: Vec<_> = self.alerts_about(about).map(|(key, _)| *key).collect();
        for key in &of_it {
            self.alerts.remove(key);
        }
    }

    /// The alerts that stand about a device.
    pub fn alerts_about(
        &self,
        about: &DeviceId,
    ) -> impl Iterator<Item = (&(DeviceId, record::AlertKind, DeviceId), &AlertState)> {
        let first = (*about, record::AlertKind::VaultBehind, DeviceId([0; 32]));
        self.alerts.range(first..).take_while(move |(key, _)| key.0 == first.0)
    }

    /// Who has attested the device, as far as it counts now: enough authors who saw the same chip.
    pub fn attested(&self, device: &DeviceId) -> Attested {
        self.attested_chip(device).map_or(Attested::No, |(by, _)| by)
    }

    /// The chip that enough authors have seen. What one author says of another chip counts for nothing.
    fn attested_chip(&self, device: &DeviceId) -> Option<(Attested, &record::Chip)> {
        let device = self.devices.get(device)?;
        let (quorum, needed) =
            (crate::head::quorum(self.witnesses().len()), usize::from(self.genesis.as_deref()?.administrators_needed));
        let by = |chip: &record::Chip| {
            let (administrators, witnesses) = self.who_saw(device, |a| a.chip == *chip);
            if administrators >= needed {
                return Some(Attested::ByAdministrators(administrators));
            }
            (witnesses > 0 && witnesses >= quorum).then_some(Attested::ByWitnesses(witnesses))
        };
        let chips: Vec<&record::Chip> = match device.chip.as_deref() {
            Some(chip) => vec![chip],
            None => device.attestations.values().map(|a| &a.record.chip).collect(),
        };
        let found = chips.into_iter().filter_map(|chip| by(chip).map(|by| (by, chip)));
        // Administrators stand above witnesses, should the two ever have seen different chips.
        found.max_by_key(|(by, _)| matches!(by, Attested::ByAdministrators(_)))
    }

    /// How many administrators, and how many witnesses that are not banned, have said so of the device.
    fn who_saw(&self, device: &Device, so: impl Fn(&record::Attest) -> bool) -> (usize, usize) {
        let said = |author: AuthorId| device.attestations.get(&author).is_some_and(|a| so(&a.record));
        let administrators = self.genesis.iter().flat_map(|g| &g.administrators);
        let administrators = administrators.filter(|a| said(AuthorId(public_key_id(&a.key.0)))).count();
        (administrators, self.active_witnesses().iter().filter(|w| said(AuthorId::from(**w))).count())
    }

    /// The registers with which quotes of an attested device are compared: an administrator's newest word, else what most others saw, be
    /// they witnesses still or not; among equals the first.
    pub fn attested_registers(&self, device: &DeviceId) -> Option<record::Registers> {
        let device = self.devices.get(device)?;
        let chip = device.chip.as_deref()?;
        let administrators = self.genesis.iter().flat_map(|g| &g.administrators);
        let by_administrators =
            administrators.filter_map(|a| device.attestations.get(&AuthorId(public_key_id(&a.key.0))));
        let newest = by_administrators.filter(|a| a.record.chip == *chip).max_by_key(|a| a.time_ms);
        if let Some(newest) = newest {
            return Some(newest.record.registers);
        }
        let of_it = || device.attestations.values().filter(|a| a.record.chip == *chip);
        let so = |registers| of_it().filter(|a| a.record.registers == registers).count();
        let most = of_it().max_by_key(|a| (so(a.record.registers), Reverse(a.time_ms)))?;
        Some(most.record.registers)
    }
}
