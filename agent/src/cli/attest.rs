//! `mayfly device attest`: an administrator challenges the chip of a device through the agent on its host, and puts on the ledger what it saw.
//!
//! The agent only carries messages: whether the chip is believed is judged here, by the certificates that the administrator names.

use super::admin::{self, Administrator, Signing};
use super::agent::ask;
use super::announce::{Announcer, advised, field, short};
use anyhow::{Context, Result, bail};
use clap::Args;
use mayfly_protocol::attested::enrolment_context;
use mayfly_protocol::record;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

use crate::node::attestation::{Roots, challenge};

/// Challenge a device's chip, on the device's own host, and put on the ledger what it proved
///
/// Where several administrators must sign an approval, each of them runs this with a key of their own.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mayfly device attest web-1 --roots /etc/mayfly/tpm-roots.pem --admin net/administrator.key"
)]
pub struct Attest {
    /// Id, or name; the device must be the one whose agent answers here
    device: String,
    /// Certificates of the makers whose chips are believed (PEM)
    #[arg(long, value_name = "FILE")]
    roots: PathBuf,
    /// DANGER: believe a TPM that is a program, whose whole state can be copied
    #[arg(long)]
    danger_allow_software: bool,
    #[command(flatten)]
    signing: Signing,
}

impl Attest {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        let roots = Roots::read(&self.roots, self.danger_allow_software)
            .with_context(|| format!("makers' certificates in {}", self.roots.display()))?;
        let mut administrator = Administrator::open(&self.signing)?;
        let statement = self.judge(&administrator, &roots, socket)?;
        let author = administrator.id();
        administrator
            .state()
            .check_chip(&author, &statement)
            .context("the chip proved itself, but nothing was posted")?;
        administrator.post(statement.clone()).context("the chip proved itself, but the ledger did not take it")?;
        administrator.wait_effective()?;
        let numbers: Vec<u32> = (0..u32::BITS).filter(|n| statement.registers.selected >> n & 1 == 1).collect();
        let name = administrator.state().device_name(&statement.device);
        let seen = json!({
            "device": name,
            "id": statement.device.to_string(),
            "maker": statement.maker,
            "software": statement.software,
            "certificate": hex::encode(statement.chip.certificate.0),
            "generation": statement.generation,
            "registers": { "numbers": numbers, "digest": hex::encode(statement.registers.digest.0) },
        });
        out.result(&seen, attested)
    }

    fn judge(&self, administrator: &Administrator, roots: &Roots, socket: &Path) -> Result<record::Attest> {
        let state = administrator.state();
        let id = admin::device(&state, &self.device)?;
        let device = state.devices.get(&id).context("the device is not on the ledger")?;
        let shown = ask(socket, &json!({"command": "chip.show"}))?;
        if field(&shown, "id") != id.to_string() {
            return Err(advised(
                format!("the agent that answers here is not device '{}'", device.name),
                "run this on the device's own host, or name its agent's socket with --socket",
            ));
        }
        let keys = hex::decode(field(&shown, "keys")).context("the agent's answer has no keys")?;
        let registers = shown.get("registers").and_then(Value::as_u64).and_then(|r| u32::try_from(r).ok());
        let registers = registers.context("the agent's answer has no registers")?;
        let context = enrolment_context(&state.network, &id, &administrator.id());
        let (challenged, message) =
            challenge(roots, (id, &device.identity), &keys, registers, context, administrator.now_ms())
                .with_context(|| format!("device '{}' is not believed", device.name))?;
        let proof = ask(socket, &json!({"command": "chip.prove", "challenge": hex::encode(message)}))?;
        let proof = hex::decode(field(&proof, "proof")).context("the agent's answer has no proof")?;
        challenged
            .judge(&proof, administrator.now_ms())
            .with_context(|| format!("device '{}' is not believed", device.name))
    }
}

/// What was seen of a chip, for people.
fn attested(seen: &Value) -> String {
    let software = if seen.get("software") == Some(&Value::Bool(true)) { " (SOFTWARE, for development)" } else { "" };
    let registers = seen.get("registers").unwrap_or(&Value::Null);
    format!(
        "device '{}' with id {} proved its chip\n  maker {}{software}\n  certificate {}…\n  generation {}\n  registers {}: {}\n",
        field(seen, "device"),
        field(seen, "id"),
        field(seen, "maker"),
        short(&field(seen, "certificate")),
        field(seen, "generation"),
        field(registers, "numbers"),
        field(registers, "digest"),
    )
}

/// Whose word there is for a device, in a few words.
pub fn words(attestation: &Value) -> String {
    let count = attestation.get("count").and_then(Value::as_u64).unwrap_or(0);
    match (attestation.get("by").and_then(Value::as_str), count) {
        (Some("witnesses"), 1) => "1 witness".into(),
        (Some("administrators"), 1) => "1 administrator".into(),
        (Some(by), count) => format!("{count} {by}"),
        (None, _) if attestation.get("unattested_allowed") == Some(&Value::Bool(true)) => {
            "NOT ATTESTED (network policy allows it)".into()
        }
        (None, _) => "NOT ATTESTED".into(),
    }
}

/// The lines of `device show` about a chip.
pub fn lines(device: &Value) -> Vec<(&'static str, String)> {
    let null = Value::Null;
    let attestation = device.get("attestation").unwrap_or(&null);
    let mut lines = vec![("attested by", words(attestation))];
    if let Some(maker) = attestation.get("maker").and_then(Value::as_str) {
        let software =
            if attestation.get("software") == Some(&Value::Bool(true)) { " (SOFTWARE, for development)" } else { "" };
        let registers = attestation.get("registers").unwrap_or(&null);
        lines.push(("chip", format!("{maker}{software}, certificate {}…", short(&field(attestation, "certificate")))));
        lines.push(("registers", format!("{}: {}…", field(registers, "numbers"), short(&field(registers, "digest")))));
    }
    let word = match device.get("vault_generation_proved_ms").and_then(Value::as_u64) {
        Some(at) => format!("proved by its chip at {}", super::announce::moment(at)),
        None => "its own word".into(),
    };
    lines.push(("vault generation", format!("{}, {word}", field(device, "vault_generation"))));
    for alert in device.get("alerts").and_then(Value::as_array).into_iter().flatten() {
        lines.push(("ALERT", format!("{} (says {})", field(alert, "text"), field(alert, "by"))));
        lines.push(("  next", field(alert, "next")));
    }
    lines
}

/// Refuses to approve a device that the network's rules would refuse, with the next step; else what is known of its chip.
pub fn before_approval(administrator: &Administrator, device: &mayfly_protocol::DeviceId) -> Result<Value> {
    let state = administrator.state();
    let Some(known) = state.devices.get(device) else { bail!("the device is not on the ledger") };
    let attestation = crate::app::manage::attestation::of(&state, device, known);
    let missing = attestation.get("by") == Some(&Value::Null);
    let allowed = attestation.get("unattested_allowed") == Some(&Value::Bool(true));
    ensure_attested(missing && !allowed, &known.name)?;
    Ok(attestation)
}

fn ensure_attested(refused: bool, name: &str) -> Result<()> {
    if !refused {
        return Ok(());
    }
    let text =
        format!("nobody has attested the chip of device '{name}', and this network asks for it; nothing was done");
    let next = format!(
        "on its own host `mayfly device attest {name} --roots FILE`; or wait for the witnesses: its agent's log says why they did not"
    );
    Err(advised(text, next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_people() {
        for (attestation, text) in [
            (json!({"by": "witnesses", "count": 2}), "2 witnesses"),
            (json!({"by": "witnesses", "count": 1}), "1 witness"),
            (json!({"by": "administrators", "count": 1}), "1 administrator"),
            (json!({"by": null, "unattested_allowed": true}), "NOT ATTESTED (network policy allows it)"),
            (json!({"by": null, "unattested_allowed": false}), "NOT ATTESTED"),
        ] {
            assert_eq!(words(&attestation), text);
        }
        let alert = json!({"text": "no quote", "by": "w1", "next": "look"});
        let device = json!({"vault_generation": 4, "vault_generation_proved_ms": 1000, "alerts": [alert],
            "attestation": {"by": "witnesses", "count": 2, "maker": "id:00001014 swtpm", "software": true, "certificate": "ab".repeat(32),
            "registers": {"numbers": [0, 7], "digest": "cd".repeat(32)}}});
        let text = format!("{:?}", lines(&device));
        for part in [
            "2 witnesses",
            "SOFTWARE",
            "abababab",
            "0, 7: cdcdcdcd",
            "4, proved by its chip at",
            "no quote (says w1)",
            "look",
        ] {
            assert!(text.contains(part), "{part} is missing: {text}");
        }
        assert!(format!("{:?}", lines(&json!({"vault_generation": 1}))).contains("1, its own word"));
        let refused = format!("{:#}", ensure_attested(true, "web-1").unwrap_err());
        assert!(refused.contains("web-1"), "{refused}");
    }
}
