//! Judges what an attested device's chip states on the ledger: the quote of its newest delegation, the proof of its newest generation.
//! Pure: a state in, findings out.

use super::{cut, selection};
use mayfly_attest::evidence::approval::Approval;
use mayfly_attest::evidence::exchange::{Proof, Signed};
use mayfly_attest::evidence::object::Point;
use mayfly_attest::judge::{self, Enrolled, Quote};
use mayfly_protocol::apply::ALERT_BYTES_MAX;
use mayfly_protocol::attested::{counter_context, enrolment_context, quote_context};
use mayfly_protocol::record::{AlertKind, Registers};
use mayfly_protocol::state::{Attestation, Device};
use mayfly_protocol::{AuthorId, DeviceId, State};

/// Something that is wrong with a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Finding {
    /// What.
    pub what: AlertKind,
    /// For people.
    pub text: String,
    /// A record that puts it right may be on its way.
    pub may_heal: bool,
}

/// The newest generation of a device's vault, and whose word that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Generation {
    /// The newest one that the device acknowledged.
    pub generation: u64,
    /// When its chip proved it, milliseconds; `None`: its own word.
    pub proved_ms: Option<u64>,
}

/// What is wrong with an attested member's statements; nothing, where nobody has attested it.
pub fn judge(state: &State, id: &DeviceId) -> Vec<Finding> {
    let Some(device) = state.devices.get(id).filter(|d| d.is_member()) else { return Vec::new() };
    let Some(enrolled) = enrolled(device) else { return Vec::new() };
    let mut findings = Vec::new();
    findings.extend(judge_quote(state, id, device, &enrolled).err());
    findings.extend(judge_generation(state, id, device, &enrolled).err());
    findings
}

/// Whether a device's registers are what was attested, or what an approver has allowed since.
pub fn are_expected(state: &State, id: &DeviceId, registers: &Registers) -> bool {
    let Some(attested) = state.attested_registers(id) else { return false };
    let allowed = |bytes: &[u8]| {
        let approval = Approval::decode(bytes).ok()?;
        Some(Some(approval.registers) == selection(registers.selected) && approval.digest == registers.digest.0)
    };
    let approvals = state.devices.get(id).into_iter().flat_map(|d| &d.pcr_approvals);
    attested == *registers || approvals.filter_map(|a| allowed(&a.approval)).any(|fits| fits)
}

/// The registers that an attested device's chip quoted with its newest delegation; none where nothing of the kind holds.
pub fn quoted(state: &State, id: &DeviceId) -> Option<Registers> {
    let device = state.devices.get(id)?;
    quoted_registers(state, id, device, &enrolled(device)?).ok()?
}

/// The generation that a device is at.
pub fn generation(state: &State, id: &DeviceId) -> Option<Generation> {
    let device = state.devices.get(id)?;
    let generation = device.vault_generation;
    let proved = enrolled(device).map(|enrolled| proofs(state, id, device, &enrolled)).unwrap_or_default();
    let proved_ms = proved.into_iter().filter(|(proved, _)| *proved == generation).map(|(_, at)| at).max();
    Some(Generation { generation, proved_ms })
}

fn finding(what: AlertKind, text: impl Into<String>, may_heal: bool) -> Finding {
    Finding { what, text: cut(text.into(), ALERT_BYTES_MAX), may_heal }
}

/// What later statements are judged by; none where the device's chip was never attested.
fn enrolled(device: &Device) -> Option<Enrolled> {
    let chip = device.chip.as_deref()?;
    let (x, y) = device.identity.coordinates()?;
    let (ax, ay) = chip.attestation.split_at(32);
    Some(Enrolled {
        attestation: Point { x: ax.try_into().ok()?, y: ay.try_into().ok()? },
        identity: Point { x, y },
        storage_root: chip.storage_root,
        counter: chip.counter,
        counter_base: chip.counter_base,
    })
}

fn judge_quote(state: &State, id: &DeviceId, device: &Device, enrolled: &Enrolled) -> Result<(), Finding> {
    let Some(registers) = quoted_registers(state, id, device, enrolled)? else { return Ok(()) };
    if are_expected(state, id, &registers) {
        return Ok(());
    }
    let numbers = selection(registers.selected).into_iter().flat_map(|selected| selected.numbers());
    let numbers = numbers.map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let text = format!("registers {numbers} are others than attested or approved: {}", short(&registers.digest.0));
    Err(finding(AlertKind::Registers, text, false))
}

/// The registers in the quote of a device's newest delegation; none where there is no delegation yet.
fn quoted_registers(
    state: &State,
    id: &DeviceId,
    device: &Device,
    enrolled: &Enrolled,
) -> Result<Option<Registers>, Finding> {
    let wrong = |text: String| finding(AlertKind::Evidence, text, false);
    let Some(delegation) = device.delegation.as_deref() else { return Ok(None) };
    let Some(attested) = state.attested_registers(id) else { return Ok(None) };
    let number = delegation.start_counter;
    let quote = delegation.quote.as_ref().ok_or_else(|| wrong(format!("delegation {number} carries no quote")))?;
    let context = quote_context(&state.network, id, &delegation.session_key.0, number, &quote.head);
    let refused = |why: String| wrong(format!("the quote of delegation {number} does not hold: {why}"));
    let signed = Signed::decode(&quote.statement).map_err(|error| refused(error.to_string()))?;
    let selected = selection(attested.selected).ok_or_else(|| refused("no registers were attested".into()))?;
    let Quote { digest, .. } =
        judge::check_quote(enrolled, &context, selected, &signed).map_err(|error| refused(error.to_string()))?;
    Ok(Some(Registers { digest: mayfly_protocol::ids::Hash(digest), ..attested }))
}

fn judge_generation(state: &State, id: &DeviceId, device: &Device, enrolled: &Enrolled) -> Result<(), Finding> {
    let proved = proofs(state, id, device, enrolled).into_iter().map(|(generation, _)| generation).max();
    let now = device.vault_generation;
    if proved.is_some_and(|proved| proved >= now) {
        return Ok(());
    }
    let stated = device.generation_stated.as_ref().map(|s| &s.record).filter(|r| r.generation == now);
    match stated.map(|r| r.proof.is_some()) {
        Some(true) => {
            let text = format!("the proof of generation {now} does not hold");
            Err(finding(AlertKind::Evidence, text, false))
        }
        Some(false) | None => {
            Err(finding(AlertKind::Evidence, format!("generation {now} is not proven by the chip"), true))
        }
    }
}

/// Generations that the chip has proved, with the time: to those who attested it, and in its newest VAULT-GENERATION. Nobody's word is taken
/// for it: the chip's own statements are on the ledger, and the secrets of the challenges that they answered.
fn proofs(state: &State, id: &DeviceId, device: &Device, enrolled: &Enrolled) -> Vec<(u64, u64)> {
    let proven = |(author, a): (&AuthorId, &Attestation)| {
        let said = &*a.record;
        let context = enrolment_context(&state.network, id, author);
        let (proof, selected) = (Proof::decode(&said.proof).ok()?, selection(said.registers.selected)?);
        let (counter, _) = judge::check_proof(enrolled, &said.secret, &context, selected, &proof).ok()?;
        (counter == said.generation).then_some((counter, a.time_ms))
    };
    let mut proofs: Vec<_> = device.attestations.iter().filter_map(proven).collect();
    if let Some(stated) = &device.generation_stated
        && let Some(proof) = &stated.record.proof
        && let Ok(signed) = Signed::decode(proof)
    {
        let context = counter_context(&state.network, id, stated.record.generation);
        let counter = judge::check_counter(enrolled, &context, &signed);
        if counter.is_ok_and(|counter| counter == stated.record.generation) {
            proofs.push((stated.record.generation, stated.time_ms));
        }
    }
    proofs
}

fn short(digest: &[u8; 32]) -> String {
    let [a, b, c, d, ..] = digest;
    hex::encode([a, b, c, d].map(|byte| *byte))
}
