//! `mayfly key create|list|show|delete`.

use super::agent::{Agent, ask};
use super::announce::{Announcer, field, moment, short, table};
use super::ask::confirm;
use super::value::{self, Split};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Bytes of a CKA_ID that nobody chose.
const CKA_ID_BYTES: usize = 8;

/// Make, list, show and delete keys
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly key create web --type ec:p256 --split 2/3 --allow user=www-data --use sign")]
pub enum Key {
    Create(Box<Create>),
    List(List),
    Show(Show),
    Delete(Delete),
}

/// Make a key: its shards are dealt to holders, and the whole key is wiped
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly key create web --type ec:p256 --split 2/3 --allow user=www-data --use sign")]
pub struct Create {
    /// Name: CKA_LABEL, by which applications find it
    name: String,
    /// aes:256, hmac:256, generic:BITS, ec:p256
    #[arg(long = "type", value_name = "TYPE", value_parser = value::key_type)]
    kind: String,
    /// Shards needed and made; the network's default if left out
    #[arg(long, value_name = "T/N", value_parser = value::split)]
    split: Option<Split>,
    /// Token that it belongs to; the only one on this device if left out
    #[arg(long, value_name = "LABEL")]
    token: Option<String>,
    /// Devices that get a shard; chosen by the agent if left out
    #[arg(long, value_delimiter = ',', value_name = "DEVICE,…")]
    holders: Vec<String>,
    /// Devices that may put it together; this one if left out (in `dev`: all)
    #[arg(long, value_delimiter = ',', value_name = "DEVICE,…")]
    assemblers: Vec<String>,
    /// Users whose applications may use it: user=NAME or group=NAME, optionally with @DEVICE
    #[arg(long, value_delimiter = ',', value_name = "USER,…", value_parser = value::user_rule)]
    allow: Vec<String>,
    /// What for: encrypt, decrypt, sign, verify, derive, wrap, unwrap, iv; what the type allows if left out
    #[arg(long = "use", value_delimiter = ',', value_name = "USE,…", value_parser = value::key_use)]
    uses: Vec<String>,
    /// Life of the assembled key: per-operation or window:SECONDS
    #[arg(long, value_parser = value::residency)]
    residency: Option<String>,
    /// When holders open their vaults: boot, window:SECONDS or per-release
    #[arg(long, value_name = "WHEN", value_parser = value::vault_open)]
    vault_open: Option<String>,
    /// Uses per second that the key is made for; holders whose vaults cannot serve them refuse a shard
    #[arg(long, value_name = "N/s", value_parser = value::rate)]
    rate: Option<u32>,
    /// Ways in which IVs may be made: hedged, random, deterministic
    #[arg(long, value_delimiter = ',', value_name = "MODE,…", value_parser = ["hedged", "random", "deterministic"])]
    iv_modes: Vec<String>,
    /// CKA_ID in hexadecimal; random if left out
    #[arg(long, value_name = "HEX")]
    id: Option<String>,
}

/// List keys
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly key list --token mayfly --json")]
pub struct List {
    /// Only keys of this token
    #[arg(long, value_name = "LABEL")]
    token: Option<String>,
}

/// Show a key: its shards, who may use it, how long it lives when it is put together
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly key show web")]
pub struct Show {
    /// Name or id
    name: String,
    /// The token, if two keys have this name
    #[arg(long, value_name = "LABEL")]
    token: Option<String>,
}

/// Delete a key: it is hidden at once, and its shards are erased
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly key delete web")]
pub struct Delete {
    /// Name or id
    name: String,
    /// The token, if two keys have this name
    #[arg(long, value_name = "LABEL")]
    token: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Key {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        match self {
            Key::Create(c) => {
                let made = Agent::connect(socket)?.ask(&c.request()?, |news| out.progress(news))?;
                out.result(&made, |key| format!("made {}", describe(key)))?;
            }
            Key::List(c) => {
                let keys = ask(socket, &request("key.list", [("token", c.token.map(Value::from))]))?;
                out.result(&keys, list)?;
            }
            Key::Show(c) => {
                let wanted = [("key", Some(Value::from(c.name))), ("token", c.token.map(Value::from))];
                out.result(&ask(socket, &request("key.show", wanted))?, show)?;
            }
            Key::Delete(c) => {
                let named =
                    || [("key", Some(Value::from(c.name.clone()))), ("token", c.token.clone().map(Value::from))];
                let key = ask(socket, &request("key.show", named()))?;
                if !c.yes {
                    let network = field(&ask(socket, &json!({"command": "status"}))?, "network_name");
                    let (what, token, id) = (describe(&key), field(&key, "token"), field(&key, "id"));
                    confirm(&format!(
                        "In token '{token}' of network '{network}': {what}; id {id}. It is deleted for ever."
                    ))?;
                }
                // By its id: what was shown is what is deleted.
                let wanted = [("key", key.get("id").cloned()), ("token", None)];
                let deleted = ask(socket, &request("key.delete", wanted))?;
                out.result(&deleted, |_| {
                    format!("key '{}' is deleted: it is hidden now, and holders erase its shards", field(&key, "name"))
                })?;
            }
        }
        Ok(())
    }
}

impl Create {
    fn request(&self) -> Result<Value> {
        let list = |items: &[String]| (!items.is_empty()).then(|| json!(items));
        let assemblers = if self.assemblers == ["all"] { vec!["*".to_owned()] } else { self.assemblers.clone() };
        let wanted = [
            ("name", Some(json!(self.name))),
            ("type", Some(json!(self.kind))),
            ("token", self.token.as_ref().map(|t| json!(t))),
            ("t", self.split.map(|s| json!(s.t))),
            ("n", self.split.map(|s| json!(s.n))),
            ("holders", list(&self.holders)),
            ("assemblers", list(&assemblers)),
            ("allow", list(&self.allow)),
            ("uses", list(&self.uses)),
            ("residency", self.residency.as_ref().map(|r| json!(r))),
            ("vault_open", self.vault_open.as_ref().map(|v| json!(v))),
            ("rate", self.rate.map(|rate| json!(rate))),
            ("iv_modes", list(&self.iv_modes)),
            ("id", Some(json!(self.cka_id()?))),
        ];
        Ok(request("key.create", wanted))
    }

    /// Tools that look for a certificate's key, or for one key of several, need it.
    fn cka_id(&self) -> Result<String> {
        match &self.id {
            Some(id) => Ok(id.clone()),
            None => {
                let mut random = [0; CKA_ID_BYTES];
                getrandom::fill(&mut random).context("the kernel gave no randomness")?;
                Ok(hex::encode(random))
            }
        }
    }
}

/// A management request of those fields that have a value.
pub fn request<const N: usize>(command: &str, fields: [(&str, Option<Value>); N]) -> Value {
    let mut object = Map::new();
    object.insert("command".into(), json!(command));
    object.extend(fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    Value::Object(object)
}

fn describe(key: &Value) -> String {
    let below = if key.get("below_target") == Some(&Value::Bool(true)) {
        ", below target: not all holders answered"
    } else {
        ""
    };
    let warnings = key.get("warnings").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    let warnings: String = warnings.map(|warning| format!("\nwarning: {warning}")).collect();
    format!(
        "key '{}' ({}): any {} of {} shards are needed; held by {}{below}{warnings}",
        field(key, "name"),
        field(key, "type"),
        field(key, "t"),
        field(key, "n"),
        holders(key).join(", "),
    )
}

fn holders(key: &Value) -> Vec<String> {
    shards(key).map(|shard| field(shard, "device")).collect()
}

fn shards(key: &Value) -> impl Iterator<Item = &Value> {
    key.get("shards").and_then(Value::as_array).into_iter().flatten()
}

fn list(keys: &Value) -> String {
    let keys = keys.as_array().map(Vec::as_slice).unwrap_or_default();
    if keys.is_empty() {
        return "no keys; `mayfly key create NAME --type aes:256` makes one".into();
    }
    let heading = ["NAME", "ID", "TYPE", "SPLIT", "GEN", "EPOCH", "TOKEN", "HOLDERS"].map(String::from).to_vec();
    let row = |key: &Value| {
        let split = format!("{}/{}", field(key, "t"), field(key, "n"));
        let fields = ["gen", "epoch", "token"].map(|name| field(key, name));
        let [gen_number, epoch, token] = fields;
        let id = short(&field(key, "id"));
        vec![field(key, "name"), id, field(key, "type"), split, gen_number, epoch, token, holders(key).join(", ")]
    };
    table(&std::iter::once(heading).chain(keys.iter().map(row)).collect::<Vec<_>>())
}

fn show(key: &Value) -> String {
    let mut text = format!("{}\n\n", describe(key));
    for (title, name) in [
        ("id", "id"),
        ("token", "token"),
        ("generation", "gen"),
        ("epoch", "epoch"),
        ("uses", "uses"),
        ("allowed users", "allow"),
        ("assemblers", "assemblers"),
        ("life when assembled", "residency"),
        ("vaults open", "vault_open"),
        ("uses per second", "rate"),
        ("IV modes", "iv_modes"),
        ("origin", "origin"),
        ("state", "state"),
    ] {
        if key.get(name).is_some() {
            text.push_str(&format!("{title:20} {}\n", field(key, name)));
        }
    }
    text.push_str(&costs(key));
    let heading = ["SHARD", "DEVICE", "INDEX", "STATE", "VALID UNTIL"].map(String::from).to_vec();
    let row = |shard: &Value| {
        let until = shard.get("valid_until_ms").and_then(Value::as_u64).map_or("no end".into(), moment);
        vec![short(&field(shard, "id")), field(shard, "device"), field(shard, "index"), field(shard, "state"), until]
    };
    text + "\n" + &table(&std::iter::once(heading).chain(shards(key).map(row)).collect::<Vec<_>>())
}

/// What each way of opening vaults would cost, measured on the device that was asked.
fn costs(key: &Value) -> String {
    let chosen = field(key, "vault_open");
    let line = |cost: &Value| {
        let (tier, opened, exposes) = (field(cost, "tier"), field(cost, "opened"), field(cost, "exposes"));
        let is_chosen = chosen.split(':').next() == Some(tier.as_str());
        let ms = match cost.get("opening_ms").and_then(Value::as_f64) {
            Some(0.0) => String::new(),
            Some(ms) => format!(", {ms:.1} ms here"),
            None => ", not measured here yet".into(),
        };
        format!("  {tier}{}: opened {opened}{ms}; {exposes}\n", if is_chosen { " (chosen)" } else { "" })
    };
    let costs = key.get("vault_open_costs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if costs.is_empty() {
        return String::new();
    }
    let lines: String = costs.iter().map(line).collect();
    format!(
        "\nwhat the choices cost:\n{lines}  life when assembled: per-operation asks the holders for each use; a window asks once, and whoever breaks \
         into an assembler meanwhile has the key\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Value {
        json!({"name": "web", "id": "ab".repeat(32), "type": "ec:p256", "t": 2, "n": 3, "gen": 1, "epoch": 1, "token": "mayfly",
            "residency": "per-operation", "uses": ["sign"], "below_target": true,
            "shards": [{"id": "cd".repeat(32), "device": "agent-1", "index": 1, "state": "valid", "valid_until_ms": null},
                       {"id": "ef".repeat(32), "device": "agent-2", "index": 2, "state": "valid", "valid_until_ms": 0}]})
    }

    #[test]
    fn only_given_options_are_sent() {
        let create = Create {
            name: "web".into(),
            kind: "ec:p256".into(),
            split: Some(Split { t: 2, n: 3 }),
            token: None,
            holders: vec![],
            assemblers: vec!["all".into()],
            allow: vec!["user=www-data".into()],
            uses: vec![],
            residency: None,
            vault_open: None,
            rate: Some(100),
            iv_modes: vec![],
            id: Some("0a".into()),
        };
        let expected = json!({"command": "key.create", "name": "web", "type": "ec:p256", "t": 2, "n": 3, "assemblers": ["*"],
            "allow": ["user=www-data"], "rate": 100, "id": "0a"});
        assert_eq!(create.request().unwrap(), expected);
    }

    #[test]
    fn texts_for_people() {
        let mut example_with_costs = example();
        example_with_costs["vault_open"] = json!("per-release");
        example_with_costs["vault_open_costs"] =
            json!([{"tier": "per-release", "opening_ms": 15.24, "opened": "for each release", "exposes": "little"}]);
        let told = show(&example_with_costs);
        assert!(told.contains("per-release (chosen): opened for each release, 15.2 ms here; little"), "{told}");
        let shown = show(&example());
        for part in ["any 2 of 3", "below target", "cdcdcdcd", "no end", "1970-01-01", "per-operation"] {
            assert!(shown.contains(part), "{part} is missing:\n{shown}");
        }
        assert!(list(&json!([example()])).contains("agent-1, agent-2"));
        assert!(list(&json!([])).contains("mayfly key create"));
    }
}
