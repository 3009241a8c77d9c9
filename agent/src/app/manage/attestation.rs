//! `chip.show`, `chip.prove`; what the ledger says of a device's chip, for `device list`, `device show` and `status`.

use super::names;
use crate::app::caller::Caller;
use crate::app::ck::{CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR};
use crate::app::fail::{Done, Fail};
use crate::node::attestation::{ChipError, evidence};
use mayfly_protocol::attested::Attested;
use mayfly_protocol::record::AlertKind;
use mayfly_protocol::state::{Device, State};
use mayfly_protocol::{AuthorId, DeviceId};
use serde_json::{Map, Value, json};

/// What this device's chip shows of itself, for whoever makes a challenge for it.
///
/// # Errors
/// CKR_DEVICE_ERROR: no chip, or it does not answer.
pub fn show(caller: &Caller<'_>) -> Done<Value> {
    let shown = caller.app.keys.chip().map_err(failed)?.ok_or_else(|| failed(ChipError::NoChip))?;
    let device = caller.app.keys.device();
    Ok(json!({ "id": device.to_string(), "keys": hex::encode(shown.keys), "registers": shown.registers }))
}

/// The chip's answer to an administrator's challenge.
///
/// # Errors
/// CKR_ARGUMENTS_BAD: no challenge; CKR_DEVICE_ERROR: it is not for this device, or the chip does not open it.
pub fn prove(caller: &Caller<'_>, challenge: &str) -> Done<Value> {
    let challenge =
        hex::decode(challenge).map_err(|_| Fail::new(CKR_ARGUMENTS_BAD, "the challenge is not hexadecimal"))?;
    let proof = caller.app.keys.prove(&challenge).map_err(failed)?;
    Ok(json!({ "proof": hex::encode(proof) }))
}

fn failed(error: ChipError) -> Fail {
    Fail::ruled(CKR_DEVICE_ERROR, "chip", mayfly_ledger_client::with_cause(&error))
}

/// Adds to a device's line who attested it, whose word its generation is, and what is wrong with it.
pub fn describe(line: &mut Map<String, Value>, state: &State, id: &DeviceId, device: &Device) {
    let generation = evidence::generation(state, id);
    line.insert("attestation".into(), of(state, id, device));
    line.insert("vault_generation".into(), device.vault_generation.into());
    line.insert("vault_generation_proved_ms".into(), generation.and_then(|g| g.proved_ms).into());
    line.insert("alerts".into(), alerts(state, id).into());
}

/// Who attested a device, and what they saw.
pub fn of(state: &State, id: &DeviceId, device: &Device) -> Value {
    let (by, count) = match state.attested(id) {
        Attested::No => (None, 0),
        Attested::ByAdministrators(count) => (Some("administrators"), count),
        Attested::ByWitnesses(count) => (Some("witnesses"), count),
    };
    let of_chip = |chip| device.chip.as_deref().is_none_or(|known| known == chip);
    let newest = device.attestations.values().filter(|a| of_chip(&a.record.chip)).max_by_key(|a| a.time_ms);
    let newest = newest.map(|a| &a.record);
    let registers = state.attested_registers(id).or(newest.map(|r| r.registers));
    let author = |author: &AuthorId| names::author(state, author);
    json!({
        "by": by,
        "count": count,
        "authors": device.attestations.keys().map(author).collect::<Vec<_>>(),
        "unattested_allowed": state.policy().is_some_and(|policy| policy.unattested),
        "maker": newest.map(|r| r.maker.clone()),
        "software": newest.map(|r| r.software),
        "certificate": newest.map(|r| hex::encode(r.chip.certificate.0)),
        "registers": registers.map(|r| {
            let numbers: Vec<u32> = (0..u32::BITS).filter(|n| r.selected >> n & 1 == 1).collect();
            json!({ "numbers": numbers, "digest": hex::encode(r.digest.0) })
        }),
    })
}

/// The word for what an alert is about.
pub fn what(kind: AlertKind) -> &'static str {
    match kind {
        AlertKind::VaultBehind => "vault behind",
        AlertKind::VaultAhead => "vault ahead",
        AlertKind::Evidence => "evidence",
        AlertKind::Registers => "registers",
    }
}

/// What to do about an alert.
fn next(kind: AlertKind, name: &str) -> String {
    match kind {
        AlertKind::VaultBehind | AlertKind::VaultAhead => {
            format!("look at `mayfly status` on {name}; where nobody put anything back on purpose, `mayfly ban {name}`")
        }
        AlertKind::Evidence => {
            format!("see the agent's log on {name}; if that host may have been broken into, `mayfly ban {name}`")
        }
        AlertKind::Registers => format!(
            "after an update of firmware or boot loader approve them (`mayfly vault approve-pcr`) or attest {name} anew \
             (`mayfly device attest`); where nobody changed anything, `mayfly ban {name}`"
        ),
    }
}

/// The alerts that stand about a device.
pub fn alerts(state: &State, id: &DeviceId) -> Vec<Value> {
    let name = state.device_name(id);
    let line = |((_, kind, author), alert): (&(DeviceId, AlertKind, DeviceId), &mayfly_protocol::state::AlertState)| {
        json!({
            "device": name,
            "what": what(*kind),
            "text": alert.record.text,
            "by": state.device_name(author),
            "time_ms": alert.time_ms,
            "next": next(*kind, &name),
        })
    };
    state.alerts_about(id).map(line).collect()
}

/// What `status` warns of: alerts, and why this device is not attested where it ought to be.
pub fn warnings(caller: &Caller<'_>, state: &State) -> Vec<String> {
    let mut warnings = Vec::new();
    for (id, _) in state.devices.iter().filter(|(_, device)| !device.is_banned()) {
        for alert in alerts(state, id) {
            let part = |name: &str| alert.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
            warnings.push(format!(
                "device {}: {} (says {}); {}",
                part("device"),
                part("text"),
                part("by"),
                part("next")
            ));
        }
    }
    let wanted = state.policy().is_some_and(|policy| !policy.unattested);
    for (witness, why) in caller.app.keys.unattested().into_iter().filter(|_| wanted) {
        warnings.push(format!("witness {} has not attested this device: {why}", state.device_name(&witness)));
    }
    warnings
}
