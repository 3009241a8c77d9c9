//! `mayfly iv`: an IV from a key, a context and the plaintext itself.

use super::agent::Agent;
use super::announce::{Announcer, field, plain_lines};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use mayfly_wire::{DATA_BYTES_MAX, Data, INLINE_DATA_MAX, IvMode, ObjectRef, Request, Response, request};
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

/// Make an IV for the plaintext on standard input
///
/// The agent queries the ledger, fetches enough shards, puts the key together, derives the IV from key, context and plaintext, and destroys
/// the key at once. --explain tells each step.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly iv --key document-key --context invoices --explain < invoice.pdf")]
pub struct Iv {
    /// Name or id of the key
    #[arg(long, value_name = "NAME")]
    key: String,
    /// How the IV is made
    #[arg(long, value_enum, default_value = "hedged")]
    mode: Mode,
    /// What the IV is for: the same inputs in another context give another IV
    #[arg(long, value_name = "TEXT", default_value = "")]
    context: String,
    /// File with additional authenticated data
    #[arg(long, value_name = "FILE")]
    aad: Option<std::path::PathBuf>,
    /// Length in bytes, 12 to 32: 12 for GCM, 16 for CBC and CTR
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(12..=32))]
    length: u16,
    /// Tell each step and how long it took, on standard error
    #[arg(long)]
    explain: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// From key, context, plaintext and fresh randomness
    Hedged,
    /// From key, context and plaintext: equal inputs give equal IVs, and show that they are equal
    Deterministic,
    /// Fresh randomness
    Random,
}

impl From<Mode> for IvMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Hedged => IvMode::Hedged,
            Mode::Deterministic => IvMode::Deterministic,
            Mode::Random => IvMode::Random,
        }
    }
}

impl Iv {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        let plaintext = read_all(std::io::stdin().lock(), "standard input")?;
        let aad = match &self.aad {
            Some(path) => {
                let file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
                read_all(file, "the additional data")?
            }
            None => Vec::new(),
        };
        ensure!(aad.len() <= INLINE_DATA_MAX, "additional data of more than {INLINE_DATA_MAX} bytes is not taken");
        let mut agent = Agent::connect(socket)?;
        let data = self.place(&mut agent, &plaintext)?;
        let request = request::Iv {
            token: 0,
            key: ObjectRef::Name(&self.key),
            mode: self.mode.into(),
            length: self.length,
            explain: self.explain,
            context: self.context.as_bytes(),
            aad: &aad,
            plaintext: data,
        };
        let Response::Iv(answer) = agent.call(&Request::Iv(request))? else { bail!("the agent gave no IV") };
        let explanation: Value = serde_json::from_str(answer.explanation).unwrap_or(Value::Null);
        let result = json!({"iv": hex::encode(answer.iv), "key": self.key, "explanation": &explanation});
        // Not on standard output: scripts take the IV from there.
        if !out.is_json() {
            eprint!("{}", plain_lines(&steps(&explanation)));
        }
        out.result(&result, |result| field(result, "iv"))?;
        Ok(())
    }

    /// Puts the plaintext where the agent reads it.
    fn place<'p>(&self, agent: &mut Agent, plaintext: &'p [u8]) -> Result<Data<'p>> {
        if plaintext.len() <= INLINE_DATA_MAX {
            return Ok(Data::inline(plaintext));
        }
        let length = plaintext.len() as u64;
        let buffer = agent.connection().shared(length).context("the agent gave no buffer for the plaintext")?;
        buffer.write(0, plaintext).context("cannot hand over the plaintext")?;
        Ok(Data::Shared { offset: 0, length })
    }
}

fn read_all(from: impl Read, what: &str) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    from.take(DATA_BYTES_MAX as u64 + 1).read_to_end(&mut all).with_context(|| format!("cannot read {what}"))?;
    ensure!(all.len() <= DATA_BYTES_MAX, "{what} has more than {} MiB", DATA_BYTES_MAX >> 20);
    Ok(all)
}

/// The steps, if they were asked for.
fn steps(explanation: &Value) -> String {
    let mut text = String::new();
    for step in explanation.get("steps").and_then(Value::as_array).into_iter().flatten() {
        let us = step.get("us").and_then(Value::as_u64).map(|us| format!("{us} µs")).unwrap_or_default();
        text.push_str(&format!("{:22} {us:>10}  {}\n", field(step, "step"), field(step, "text")));
    }
    for holder in explanation.get("holders").and_then(Value::as_array).into_iter().flatten() {
        let us = holder.get("us").and_then(Value::as_u64).map(|us| format!(" after {us} µs")).unwrap_or_default();
        let verb = if holder.get("answered") == Some(&Value::Bool(true)) { "answered" } else { "did not answer" };
        text.push_str(&format!("holder {} {verb}{us}\n", field(holder, "device")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_each_step() {
        let explanation = json!({"steps": [{"step": "query the ledger", "us": 12, "text": "key is valid"}],
            "holders": [{"device": "agent-2", "answered": true, "us": 80}, {"device": "agent-3", "answered": false}]});
        let text = steps(&explanation);
        for part in ["query the ledger", "12 µs", "agent-2 answered after 80 µs", "agent-3 did not answer"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert_eq!(steps(&Value::Null), "");
    }
}
