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
    let size = ledger.get("size").and_then(Value::as_u64).unwrap_or(0);
    let head = format!(
        "{size} entries, {} in effect, root {}",
        field(ledger, "effective_size"),
        short(&field(ledger, "root"))
    );
    format!("{}\n{head}\n{}", table(&rows), left_out(ledger, size))
}

/// What is not shown of so many entries, and how to see it.
fn left_out(ledger: &Value, size: u64) -> String {
    let entries = ledger.get("entries").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let index = |entry: Option<&Value>| entry.and_then(|entry| entry.get("index")).and_then(Value::as_u64);
    let (Some(first), Some(last)) = (index(entries.first()), index(entries.last())) else { return String::new() };
    let mut text = String::new();
    if first > 0 {
        text += &format!("{first} earlier entries are not shown; --from 0 begins with the first\n");
    }
    if last + 1 < size {
        text += &format!("{} later entries are not shown; --from {} goes on\n", size - last - 1, last + 1);
    }
    text
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
        let part = |first: u64, last: u64| {
            let entries: Vec<_> = (first..=last).map(|index| json!({"index": index})).collect();
            show(&json!({"size": 50, "entries": entries}))
        };
        for (first, last, expected) in [
            (0, 49, &[][..]),
            (30, 49, &["30 earlier entries are not shown; --from 0 "]),
            (0, 19, &["30 later entries are not shown; --from 20 "]),
            (10, 19, &["10 earlier entries", "30 later entries"]),
        ] {
            let shown = part(first, last);
            assert_eq!(shown.matches("not shown").count(), expected.len(), "{first} to {last}: {shown}");
            assert!(expected.iter().all(|text| shown.contains(text)), "{first} to {last}: {shown}");
        }
        assert!(!show(&json!({"size": 5, "entries": []})).contains("not shown"));
        assert!(verify(&json!({"size": 3, "root": "ab".repeat(32), "witnesses": ["agent-1"]})).contains("agent-1"));
    }
}
