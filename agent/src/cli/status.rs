//! `mayfly status`: how this device stands.

use super::agent::ask;
use super::announce::{Announcer, field, table};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;

/// Show how this device stands: membership, freshness, ledger, vault, peers
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly status --json")]
pub struct Status {}

impl Status {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        let status = ask(socket, &json!({"command": "status"}))?;
        out.result(&status, people)?;
        Ok(())
    }
}

fn people(status: &Value) -> String {
    let part = |name: &str| status.get(name).unwrap_or(&Value::Null);
    let (ledger, witnesses, vault, memory) = (part("ledger"), part("witnesses"), part("vault"), part("memory"));
    let fresh = match (part("fresh"), part("freshness_age_ms").as_u64()) {
        (Value::Bool(true), Some(age)) => format!("yes, {:.1} s ago", age as f64 / 1000.0),
        (Value::Bool(true), None) => "yes".into(),
        _ => {
            let reason = part("fresh_reason").as_str().unwrap_or("too few witnesses answer");
            format!("NO, nothing is released: {reason}")
        }
    };
    let connected = match (ledger.get("connected"), ledger.get("last_error").and_then(Value::as_str)) {
        (Some(Value::Bool(true)), _) => "connected to".into(),
        (_, Some(why)) => format!("NOT connected ({why}); last"),
        _ => "NOT connected; last".into(),
    };
    let software =
        if vault.get("software_only") == Some(&Value::Bool(true)) { " (software only: for development)" } else { "" };
    let memory_kind = if memory.get("memfd_secret") == Some(&Value::Bool(true)) { "memfd_secret" } else { "mlock" };
    let vault_line = match part("vault").get("state").and_then(Value::as_str) {
        None | Some("open") => format!("{}, generation {}{software}", field(vault, "kind"), field(vault, "generation")),
        Some(state) => {
            format!("{}, {}: {}{software}", field(vault, "kind"), state.to_uppercase(), field(vault, "reason"))
        }
    };
    if part("phase") == "without vault" {
        let rows = [("device", field(status, "device")), ("vault", vault_line), ("next", field(vault, "next"))];
        return table(&rows.map(|(title, value)| vec![title.to_owned(), value]))
            + "nothing works on this device until its vault opens; keys work on elsewhere if enough holders are left\n";
    }
    let rows = [
        (
            "device",
            format!("{} ({}), roles: {}", field(status, "device"), field(status, "membership"), field(status, "roles")),
        ),
        ("network", field(status, "network_name")),
        ("fresh", fresh),
        (
            "ledger",
            format!(
                "{} entries, {} in effect; {connected} {}",
                field(ledger, "size"),
                field(ledger, "effective_size"),
                field(ledger, "gateway")
            ),
        ),
        (
            "witnesses",
            format!(
                "{} of {} must sign, {} can; {} may lie",
                field(witnesses, "quorum"),
                field(witnesses, "n"),
                field(witnesses, "active"),
                field(witnesses, "tolerated_liars")
            ),
        ),
        ("vault", vault_line),
        (
            "secret memory",
            format!(
                "{memory_kind}, {} of {} bytes in use",
                field(memory, "used_bytes"),
                field(memory, "capacity_bytes")
            ),
        ),
        ("tokens", field(status, "tokens")),
        ("keys", field(status, "keys")),
    ];
    let mut text = table(&rows.map(|(title, value)| vec![title.to_owned(), value]));
    let peers = part("peers").as_array().map(Vec::as_slice).unwrap_or_default();
    for peer in peers {
        // A connection is open for a while after the other side has stopped answering.
        let state =
            match (peer.get("connected") == Some(&Value::Bool(true)), peer.get("reason").and_then(Value::as_str)) {
                (true, None) => "connected".into(),
                (true, Some(reason)) => format!("connected, but {reason}"),
                (false, _) => field(peer, "reason"),
            };
        text.push_str(&format!("peer {} at {}: {state}\n", field(peer, "device"), field(peer, "address")));
    }
    if let Some(alarm) = ledger.get("alarm").and_then(Value::as_str) {
        text.push_str(&format!("ALARM: {alarm}\n"));
    }
    for warning in part("warnings").as_array().into_iter().flatten().filter_map(Value::as_str) {
        text.push_str(&format!("warning: {warning}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong() {
        let status = json!({"device": "agent-1", "membership": "member", "roles": ["holder"], "fresh": false, "fresh_reason": "1 of 2 answered",
            "ledger": {"connected": false, "last_error": "the device is banned", "gateway": "g:1", "size": 9, "effective_size": 8, "alarm": "the ledger has forked"},
            "vault": {"kind": "file", "generation": 1, "software_only": true}, "warnings": ["clock differs"],
            "peers": [{"device": "agent-2", "address": "a:1", "connected": false, "reason": "refused"},
                      {"device": "agent-3", "address": "a:2", "connected": true, "reason": "did not answer"}]});
        let text = people(&status);
        for part in [
            "NO, nothing is released: 1 of 2",
            "NOT connected (the device is banned)",
            "software only",
            "ALARM: the ledger has forked",
            "clock differs",
            "agent-2 at a:1: refused",
            "agent-3 at a:2: connected, but did not answer",
        ] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
    }
}
