//! `mayfly vault show|policy|approve-pcr`: what seals this device's secrets, and approvals of a TPM's registers.

use super::agent::{Agent, LONG_ANSWER_TIMEOUT, ask};
use super::announce::{Announcer, field, table};
use super::ask::confirm;
use super::key::request;
use anyhow::{Context, Result, ensure};
use clap::{ArgGroup, Args, Subcommand};
use serde_json::{Map, Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest policy that is read from a file: what an agent would tell.
const POLICY_BYTES_MAX: u64 = 64 << 10;

/// Show what seals this device's secrets; approve the registers of a TPM
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly vault show")]
pub enum Vault {
    Show(Show),
    Bench(Bench),
    Revoke(Revoke),
    Policy(ShowPolicy),
    ApprovePcr(Box<ApprovePcr>),
}

/// Show the vault: its kind, its state, its generation here and on the ledger
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly vault show --json")]
pub struct Show {}

/// Measure this very chip or token: openings, staging, a commit, releases per second in each tier
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly vault bench --rounds 50 --json")]
pub struct Bench {
    /// How often each tier is opened, 1 to 1000; on a discrete chip an opening takes a second or more
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Do not move the vault on to a new generation, which wears a chip's counter a little
    #[arg(long)]
    no_commit: bool,
}

/// Make every erased shard worthless now, on whatever disk or backup a copy of it is
///
/// The vault moves on to a new generation, and what is still wanted moves with it. It does so by itself, too, some time after shards were erased.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly vault revoke")]
pub struct Revoke {}

/// Show what the TPM's registers are, which are approved, and what the next start needs
///
/// With --json the output is what `mayfly vault approve-pcr` takes as --policy on a device that cannot reach this one.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly vault policy --json > web-1.policy")]
pub struct ShowPolicy {}

/// Approve the registers with which another device's vault opens
///
/// On a device with role pcr-approver, whose identity key is `[pcr] approver` in the other device's vault configuration. Before an update:
/// give the values that the updated host will start with, and no shard waits. After one that was missed: compare what the host shows
/// with what it should have started, then --current; its vault opens by itself.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("values").required(true)),
    after_help = "Example:\n  mayfly vault approve-pcr --device web-1 --current\n  mayfly vault approve-pcr --device web-1 --pcr 7=5f1c…"
)]
pub struct ApprovePcr {
    /// Whose vault: name or id
    #[arg(long)]
    device: String,
    /// The values that its registers have now: as its chip quoted them, where it is attested; else by the device's own word
    #[arg(long, group = "values")]
    current: bool,
    /// A register's value at the next start, in hexadecimal; the registers that are not named keep theirs
    #[arg(long, value_name = "N=HEX", value_parser = register, group = "values")]
    pcr: Vec<(u32, String)>,
    /// The digest over all registers that the vault asks for, in hexadecimal
    #[arg(long, value_name = "HEX", group = "values")]
    digest: Option<String>,
    /// For the generation that the next revocation brings: without an approval for it, nothing is revoked
    #[arg(long)]
    next_generation: bool,
    /// What `mayfly vault policy --json` printed on the device (- for standard input); without it the device is asked
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Do not ask for confirmation where there is nothing but the device's own word
    #[arg(long)]
    yes: bool,
}

fn register(text: &str) -> Result<(u32, String), String> {
    let (number, value) = text.split_once('=').ok_or("a register is N=HEX, as in 7=5f1c…")?;
    let number = number.parse().ok().filter(|n| *n < 24).ok_or("registers have numbers from 0 to 23")?;
    if value.len() != 64 || !value.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err("a register's value is 64 hexadecimal digits (SHA-256 bank)".into());
    }
    Ok((number, value.to_ascii_lowercase()))
}

impl Vault {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        match self {
            Vault::Show(Show {}) => out.result(&ask(socket, &json!({"command": "vault.show"}))?, show),
            Vault::Bench(c) => {
                let wanted = json!({"command": "vault.bench", "rounds": c.rounds, "commit": !c.no_commit});
                out.progress("measuring; keys work on meanwhile");
                let measured = Agent::connect(socket)?.patience(LONG_ANSWER_TIMEOUT)?.ask(&wanted, |_| ())?;
                out.result(&measured, bench)
            }
            Vault::Revoke(Revoke {}) => {
                let wanted = json!({"command": "vault.revoke"});
                let revoked = Agent::connect(socket)?.patience(LONG_ANSWER_TIMEOUT)?.ask(&wanted, |_| ())?;
                out.result(&revoked, |revoked| {
                    format!(
                        "the vault is at generation {}: {} shards moved with it, {} erased ones are worthless everywhere",
                        field(revoked, "generation"),
                        field(revoked, "kept"),
                        field(revoked, "revoked"),
                    )
                })
            }
            Vault::Policy(ShowPolicy {}) => out.result(&ask(socket, &json!({"command": "vault.policy"}))?, policy),
            Vault::ApprovePcr(c) => {
                let approved = c.approve(out, socket)?;
                out.result(&approved, |approved| {
                    format!(
                        "approved for device '{}', generation {}: registers {} with digest {}{}\nits agent brings it to the vault by itself",
                        field(approved, "device"),
                        field(approved, "generation"),
                        field(approved, "registers"),
                        field(approved, "digest"),
                        match approved.get("by").and_then(Value::as_str) {
                            Some("quote") => ", as its chip quoted them with its newest delegation",
                            Some(_) => ", by the device's own word",
                            None => "",
                        },
                    )
                })
            }
        }
    }
}

impl ApprovePcr {
    fn approve(&self, out: &Announcer, socket: &Path) -> Result<Value> {
        let mut agent = Agent::connect(socket)?;
        let mut wanted = self.request()?;
        if !self.current {
            return agent.ask(&wanted, |news| out.progress(news));
        }
        wanted["preview"] = json!(true);
        let seen = agent.ask(&wanted, |news| out.progress(news))?;
        if seen["by"] == "device" && !self.yes {
            confirm(&format!(
                "Registers {} of device '{}' have digest {} by the device's own word: no chip has stated it. Compare it with what the host \
                 should have started.",
                field(&seen, "registers"),
                field(&seen, "device"),
                field(&seen, "digest"),
            ))?;
        }
        // What was shown is what is approved.
        for (name, value) in
            [("preview", Value::Bool(false)), ("current", Value::Bool(false)), ("digest", seen["digest"].clone())]
        {
            wanted[name] = value;
        }
        let mut approved = Agent::connect(socket)?.ask(&wanted, |news| out.progress(news))?;
        approved["by"] = seen["by"].clone();
        Ok(approved)
    }

    fn request(&self) -> Result<Value> {
        let policy = match &self.policy {
            Some(path) => {
                let policy = read(path).with_context(|| format!("cannot read {}", path.display()))?;
                let is_policy = policy.get("vault").is_some_and(Value::is_string);
                ensure!(is_policy, "{} is not what `mayfly vault policy --json` prints", path.display());
                Some(policy)
            }
            None => None,
        };
        let registers: Map<String, Value> =
            self.pcr.iter().map(|(number, value)| (number.to_string(), json!(value))).collect();
        let wanted = [
            ("device", Some(json!(self.device))),
            ("policy", policy),
            ("current", self.current.then_some(json!(true))),
            ("registers", (!registers.is_empty()).then_some(Value::Object(registers))),
            ("digest", self.digest.as_ref().map(|digest| json!(digest))),
            ("next_generation", self.next_generation.then_some(json!(true))),
        ];
        Ok(request("vault.approve-pcr", wanted))
    }
}

fn read(path: &Path) -> Result<Value> {
    let mut text = String::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(POLICY_BYTES_MAX).read_to_string(&mut text)?;
    } else {
        std::fs::File::open(path)?.take(POLICY_BYTES_MAX).read_to_string(&mut text)?;
    }
    Ok(serde_json::from_str(&text)?)
}

fn show(vault: &Value) -> String {
    let software = match vault.get("software_only").and_then(Value::as_bool) {
        Some(true) => "yes: for development",
        Some(false) => "no",
        None => "-",
    };
    let rows = [
        ("kind", field(vault, "kind")),
        ("state", field(vault, "state")),
        ("trouble now", field(vault, "trouble")),
        ("reason", field(vault, "reason")),
        ("next", field(vault, "next")),
        ("generation", field(vault, "generation")),
        ("on the ledger", field(vault, "acknowledged_generation")),
        ("erased, not revoked", field(vault, "unrevoked")),
        ("software only", software.to_owned()),
        ("note", field(vault, "note")),
    ];
    let told = rows.into_iter().filter(|(_, value)| value != "-");
    let mut rows: Vec<Vec<String>> = told.map(|(title, value)| vec![title.to_owned(), value]).collect();
    for tier in vault.get("tiers").and_then(Value::as_array).into_iter().flatten() {
        let cost =
            tier.get("median_ms").and_then(Value::as_f64).map_or("not opened yet".into(), |ms| format!("{ms:.1} ms"));
        rows.push(vec![format!("opening {}", field(tier, "tier")), cost]);
    }
    table(&rows)
}

fn bench(measured: &Value) -> String {
    let ms =
        |of: &Value, name: &str| of.get(name).and_then(Value::as_f64).map_or("-".into(), |ms| format!("{ms:.1} ms"));
    let heading = ["TIER", "OPENING", "95 %", "RELEASES/S"].map(String::from).to_vec();
    let row = |tier: &Value| {
        let rate =
            tier.get("releases_per_second").and_then(Value::as_f64).map_or("-".into(), |rate| format!("{rate:.0}"));
        vec![field(tier, "tier"), ms(tier, "median_ms"), ms(tier, "p95_ms"), rate]
    };
    let tiers = measured.get("tiers").and_then(Value::as_array).into_iter().flatten();
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(tiers.map(row)).collect();
    let software = if measured.get("software_only") == Some(&Value::Bool(true)) { ", software only" } else { "" };
    let mut text = format!("{}{software}\n{}", field(measured, "kind"), table(&rows));
    text.push_str(&format!("stage {}, sign {}\n", ms(measured, "stage_ms"), ms(measured, "sign_ms")));
    if measured.get("commit_ms").is_some_and(Value::is_number) {
        let (commit, all, shards) =
            (ms(measured, "commit_ms"), ms(measured, "revocation_ms"), field(measured, "shards"));
        text.push_str(&format!("commit {commit}; revocation in all {all}, with {shards} shards\n"));
    }
    text
}

fn policy(policy: &Value) -> String {
    let list = |name: &str| policy.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut rows = vec![
        vec!["state".to_owned(), field(policy, "state")],
        vec!["generation".to_owned(), field(policy, "generation")],
        vec!["approver".to_owned(), field(policy, "approver")],
    ];
    for (number, value) in policy.get("registers").and_then(Value::as_object).into_iter().flatten() {
        rows.push(vec![format!("register {number}"), value.as_str().unwrap_or("-").to_owned()]);
    }
    rows.push(vec!["digest".to_owned(), field(policy, "digest")]);
    let mut text = table(&rows);
    for reference in list("references") {
        let (generation, asks) =
            (field(reference, "generation"), reference.get("approver").is_some_and(Value::is_string));
        let approved = reference.get("approved_now") == Some(&Value::Bool(true));
        text.push_str(&match (asks, approved) {
            (false, _) => format!("generation {generation} asks nobody: it opens whatever the registers are\n"),
            (true, true) => format!("generation {generation} opens with the present registers\n"),
            (true, false) => {
                let open = field(policy, "state") == "open" && field(policy, "generation") == generation;
                let open = if open { "; what is open now stays open until the agent ends" } else { "" };
                format!(
                    "generation {generation} does NOT open with the present registers: nobody has approved them{open}\n"
                )
            }
        });
    }
    for approval in list("approvals") {
        let fits = if approval.get("fits_now") == Some(&Value::Bool(true)) { "fits now" } else { "for other values" };
        let (generation, registers, digest) =
            (field(approval, "generation"), field(approval, "registers"), field(approval, "digest"));
        text.push_str(&format!(
            "approved for generation {generation}: registers {registers}, digest {digest} ({fits})\n"
        ));
    }
    if policy.get("approver").is_some_and(Value::is_string) {
        text.push_str(
            "before an update changes registers, an approver approves the values to come: `mayfly vault approve-pcr`\n",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_wrong_and_what_to_do() {
        let vault = json!({"kind": "tpm", "state": "vault-lost", "reason": "another chip", "next": "mayfly join", "generation": null});
        let text = show(&vault);
        for part in ["vault-lost", "another chip", "mayfly join"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(!text.contains("generation"), "what is not known is not shown:\n{text}");
    }

    #[test]
    fn figures_for_people() {
        let tier = json!({"tier": "per-release", "openings": 20, "median_ms": 15.24, "p95_ms": 20.0, "releases_per_second": 64.0});
        let mut measured = json!({"kind": "tpm", "software_only": true, "tiers": [tier], "stage_ms": 12.0, "sign_ms": 8.0, "commit_ms": null});
        let text = bench(&measured);
        for part in ["tpm, software only", "per-release  15.2 ms  20.0 ms  64", "stage 12.0 ms, sign 8.0 ms"] {
            assert!(text.contains(part), "{part} is missing:\n{text}");
        }
        assert!(!text.contains("commit"), "{text}");
        measured["commit_ms"] = json!(25.0);
        assert!(bench(&measured).contains("commit 25.0 ms"));
    }

    #[test]
    fn tells_which_generation_would_open_now() {
        let reference = |generation: u64, approved: bool| json!({"generation": generation, "approver": "02aa", "approved_now": approved});
        let told = policy(
            &json!({"state": "open", "generation": 4, "approver": "02aa", "registers": {"7": "11"}, "digest": "22",
            "references": [reference(4, true), reference(5, false)],
            "approvals": [{"generation": 4, "registers": [7, 11], "digest": "22", "fits_now": true}]}),
        );
        for part in
            ["register 7", "generation 4 opens", "generation 5 does NOT open", "registers 7, 11, digest 22 (fits now)"]
        {
            assert!(told.contains(part), "{part} is missing:\n{told}");
        }
    }

    #[test]
    fn registers_are_checked_before_anybody_is_asked() {
        assert_eq!(register(&format!("7={}", "AB".repeat(32))), Ok((7, "ab".repeat(32))));
        for wrong in ["7", "24=00", "x=00", "7=0011", &format!("7={}", "g".repeat(64))] {
            assert!(register(wrong).is_err(), "{wrong}");
        }
    }
}
