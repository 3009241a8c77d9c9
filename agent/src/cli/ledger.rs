//! `mayfly ledger show|verify`: what the agent's verified replica holds.

use super::agent::{Agent, LONG_ANSWER_TIMEOUT, ask};
use super::announce::{Announcer, field, moment, short, table};
use super::key::request;
use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::path::Path;

/// Show and verify the ledger
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly ledger show --count 50")]
pub enum Ledger {
    Show(Show),
    Verify(Verify),
}

/// Show entries of the ledger
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly ledger show --from 0 --count 50")]
pub struct Show {
    /// First entry; the newest ones if left out
    #[arg(long, value_name = "INDEX")]
    from: Option<u64>,
    /// How many
    #[arg(long, default_value_t = 20)]
    count: u64,
}

/// Replay the whole replica from its first entry: signatures, rules, tree and heads
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly ledger verify")]
pub struct Verify {}

impl Ledger {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        match self {
            Ledger::Show(c) => {
                let wanted = [("from", c.from.map(Value::from)), ("count", Some(c.count.into()))];
                out.result(&ask(socket, &request("ledger.show", wanted))?, show)?;
            }
            Ledger::Verify(_) => {
                let mut agent = Agent::connect(socket)?.patience(LONG_ANSWER_TIMEOUT)?;
                let verified = agent.ask(&json!({"command": "ledger.verify"}), |news| out.progress(news))?;
                if verified.get("verified") != Some(&Value::Bool(true)) {
                    bail!("the ledger does not verify: {}", field(&verified, "reason"));
                }
                out.result(&verified, verify)?;
            }
        }
        Ok(())
    }
}

fn show(ledger: &Value) -> String {
    let heading = ["INDEX", "TIME", "KIND", "AUTHOR", "SUMMARY"].map(String::from).to_vec();
    let row = |entry: &Value| {
        let time = entry.get("time_ms").and_then(Value::as_u64).map_or("-".into(), moment);
        vec![field(entry, "index"), time, field(entry, "kind"), field(entry, "author"), field(entry, "summary")]
    };
    let entries = ledger.get("entries").and_then(Value::as_array).into_iter().flatten();
    let rows: Vec<_> = std::iter::once(heading).chain(entries.map(row)).collect();
    let head = format!(
        "{} entries, {} in effect, root {}",
        field(ledger, "size"),
        field(ledger, "effective_size"),
        short(&field(ledger, "root"))
    );
    format!("{}\n{head}\n", table(&rows))
}

fn verify(verified: &Value) -> String {
    format!(
        "{} entries are well-formed, signed by whom the rules ask for, and in the tree with root {}; witnesses: {}",
        field(verified, "size"),
        short(&field(verified, "root")),
        field(verified, "witnesses"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_people() {
        let ledger = json!({"size": 3, "effective_size": 3, "root": "ab".repeat(32),
            "entries": [{"index": 0, "time_ms": 0, "kind": "Genesis", "author": "admin", "summary": "network 'dev'"}]});
        assert!(show(&ledger).contains("network 'dev'") && show(&ledger).contains("abababab"));
        assert!(verify(&json!({"size": 3, "root": "ab".repeat(32), "witnesses": ["agent-1"]})).contains("agent-1"));
    }
}
