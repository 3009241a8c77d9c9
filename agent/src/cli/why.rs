//! `mayfly why`: the last refusals and what to do about them.

use super::agent::ask;
use super::announce::{Announcer, field, moment};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::path::Path;

/// Explain the last refusals: who was missing, which rule, what to do
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly why --last 3")]
pub struct Why {
    /// How many, newest first
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    last: usize,
}

impl Why {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        let mut answer = ask(socket, &json!({"command": "why"}))?;
        if let Some(refusals) = answer.get_mut("refusals").and_then(Value::as_array_mut) {
            refusals.truncate(self.last);
        }
        out.result(&answer, people)?;
        Ok(())
    }
}

fn people(answer: &Value) -> String {
    let refusals = answer.get("refusals").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let standing = answer.get("standing").filter(|standing| !standing.is_null());
    let standing =
        standing.map(|s| format!("now: {}: {}\n  next: {}\n", field(s, "state"), field(s, "reason"), field(s, "next")));
    if refusals.is_empty() {
        return standing.unwrap_or_else(|| "nothing was refused since the agent started".into());
    }
    standing.into_iter().chain(refusals.iter().map(one)).collect::<Vec<_>>().join("\n")
}

fn one(refusal: &Value) -> String {
    let when = refusal.get("time_ms").and_then(Value::as_u64).map_or("-".into(), moment);
    let key = refusal.get("key").and_then(Value::as_str).map(|key| format!(" with key '{key}'")).unwrap_or_default();
    let mut text = format!("{when}: {}{key}: {}\n", field(refusal, "operation"), field(refusal, "reason"));
    for device in refusal.get("devices").and_then(Value::as_array).into_iter().flatten() {
        text.push_str(&format!("  {}: {}\n", field(device, "device"), field(device, "reason")));
    }
    if let Some(next) = refusal.get("next").and_then(Value::as_str) {
        text.push_str(&format!("  next: {next}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_devices_and_the_next_step() {
        let refusal = json!({"time_ms": 0, "operation": "encrypt", "key": "web", "reason": "1 of 2 shards answered", "rule": "holders",
            "devices": [{"device": "agent-2", "reason": "connection refused"}], "next": "start mayflyd on agent-2"});
        let text = people(&json!({"refusals": [refusal]}));
        for part in ["key 'web'", "1 of 2 shards answered", "agent-2: connection refused", "next: start mayflyd"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(people(&json!({"refusals": [], "standing": null})).contains("nothing was refused"));
        let standing = json!({"state": "vault-lost", "reason": "another token", "next": "put the right one back"});
        let text = people(&json!({"refusals": [], "standing": standing}));
        assert!(text.contains("now: vault-lost: another token\n  next: put the right one back"), "{text}");
    }
}
