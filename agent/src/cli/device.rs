//! `mayfly device list|show|approve|role` and `mayfly ban`.

use super::admin::{self, Administrator, Signing};
use super::agent::ask;
use super::announce::{Announcer, advised, field, moment, short, table};
use super::key::request;
use super::{ask, attest};
use crate::app::manage::devices;
use crate::app::objects::make::label_of;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use mayfly_protocol::DeviceId;
use mayfly_protocol::head::quorum;
use mayfly_protocol::record::{self, DeviceRole};
use mayfly_protocol::state::{self, KeyState, Membership, State};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// List, show and approve devices, and give them roles
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly device approve web-1 && mayfly device role web-1 --set holder,witness")]
pub enum Device {
    List(List),
    Show(Show),
    Attest(attest::Attest),
    Approve(Approve),
    Role(Role),
}

/// List the network's devices
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device list\n  mayfly device list --admin net/administrator.key")]
pub struct List {
    #[command(flatten)]
    source: Source,
}

/// Show a device: its roles, its shards, the keys that it may put together
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device show web-1")]
pub struct Show {
    /// Name or id
    device: String,
    #[command(flatten)]
    source: Source,
}

/// Whose copy of the ledger is asked.
#[derive(Debug, Args)]
struct Source {
    /// Ask no agent, but the verified copy of the ledger beside this administrator's key
    #[arg(long, value_name = "FILE")]
    admin: Option<PathBuf>,
    /// File with that key's passphrase (- for standard input); else MAYFLY_ADMIN_PASSPHRASE or the terminal
    #[arg(long, value_name = "FILE", requires = "admin")]
    passphrase_file: Option<PathBuf>,
}

/// Accept a device that has joined
///
/// Names are chosen by whoever joins. Give the id that `mayfly join` printed on the host: then no other device can be meant.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device approve web-1 --admin net/administrator.key")]
pub struct Approve {
    /// Id, or name; the id that is approved is printed
    device: String,
    #[command(flatten)]
    signing: Signing,
}

/// Set a device's roles to exactly these
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device role web-1 --set holder,witness --admin net/administrator.key")]
pub struct Role {
    /// Name or id
    device: String,
    /// holder, spare, witness, pcr-approver; none to take all
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROLE,…", num_args = 0.., required = true)]
    set: Vec<RoleName>,
    #[command(flatten)]
    signing: Signing,
}

/// Take every right from a device, at once
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly ban web-1 --reason 'stolen on the train' --admin net/administrator.key")]
pub struct Ban {
    /// Name or id
    device: String,
    /// For people; kept on the ledger
    #[arg(long, default_value = "")]
    reason: String,
    /// Ban a witness even if too few are left: then no key can be used and no right be changed until the network is made anew
    #[arg(long)]
    even_without_quorum: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    signing: Signing,
}

/// A role on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleName {
    /// May be given shards
    Holder,
    /// Is given shards when another holder is lost
    Spare,
    /// Cosigns heads and answers freshness rounds
    Witness,
    /// Approves PCR values of the next boot
    PcrApprover,
}

impl From<RoleName> for DeviceRole {
    fn from(name: RoleName) -> Self {
        match name {
            RoleName::Holder => DeviceRole::Holder,
            RoleName::Spare => DeviceRole::Spare,
            RoleName::Witness => DeviceRole::Witness,
            RoleName::PcrApprover => DeviceRole::PcrApprover,
        }
    }
}

impl Device {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        match self {
            Device::List(c) => {
                let devices = match c.source.open()? {
                    Some(state) => state.devices.iter().map(|(id, device)| known(&state, id, device)).collect(),
                    None => ask(socket, &json!({"command": "device.list"}))?,
                };
                out.result(&devices, list)?;
            }
            Device::Show(c) => {
                let device = match c.source.open()? {
                    Some(state) => {
                        let id = admin::device(&state, &c.device)?;
                        state.devices.get(&id).map_or(Value::Null, |device| known(&state, &id, device))
                    }
                    None => ask(socket, &request("device.show", [("device", Some(c.device.into()))]))?,
                };
                out.result(&device, show)?;
            }
            Device::Attest(c) => c.run(out, socket)?,
            Device::Approve(c) => {
                let mut administrator = Administrator::open(&c.signing)?;
                let id = approve(&mut administrator, &c.device)?;
                administrator.wait_effective()?;
                let state = administrator.state();
                let Some(device) = state.devices.get(&id) else { bail!("the device is not on the ledger") };
                let mut approved = devices::of_ledger(&state, &id, device);
                approved.insert("device".into(), device.name.clone().into());
                out.result(&Value::Object(approved), |device| approved_text(device, &id))?;
            }
            Device::Role(c) => {
                let mut administrator = Administrator::open(&c.signing)?;
                let roles: Vec<DeviceRole> = c.set.iter().map(|r| (*r).into()).collect();
                set_roles(&mut administrator, &c.device, &roles)?;
                administrator.wait_effective()?;
                let names: Vec<String> =
                    c.set.iter().filter_map(|r| Some(r.to_possible_value()?.get_name().to_owned())).collect();
                let text = if names.is_empty() { "none".into() } else { names.join(", ") };
                out.result(&json!({"device": c.device, "roles": names}), |_| {
                    format!("roles of device '{}': {text}", c.device)
                })?;
            }
        }
        Ok(())
    }
}

impl Source {
    /// The administrator's copy of the ledger, if that is the source.
    fn open(self) -> Result<Option<Arc<State>>> {
        let Some(admin) = self.admin else { return Ok(None) };
        let signing = Signing::of(admin).with_passphrase(self.passphrase_file);
        Ok(Some(Administrator::open(&signing)?.state()))
    }
}

/// A device as the ledger has it; the fields of `device.show` that need no agent.
fn known(state: &State, id: &DeviceId, device: &state::Device) -> Value {
    let mut line = devices::of_ledger(state, id, device);
    line.insert("shards".into(), devices::shards(state, id, None).into());
    line.insert("can_assemble".into(), devices::can_assemble(state, id).into());
    line.insert("identity".into(), hex::encode(device.identity.bytes()).into());
    Value::Object(line)
}

/// Posts the APPROVE record; whose.
pub fn approve(administrator: &mut Administrator, device: &str) -> Result<DeviceId> {
    let state = administrator.state();
    let id = admin::device(&state, device)?;
    match state.devices.get(&id).map(|d| d.membership) {
        Some(Membership::Pending) => {
            attest::before_approval(administrator, &id)?;
            administrator.post(record::Approve { device: id }).map(|()| id)
        }
        Some(Membership::Member) => bail!("device '{device}' is a member already"),
        _ => bail!("device '{device}' is banned"),
    }
}

/// Posts the ROLE record.
pub fn set_roles(administrator: &mut Administrator, device: &str, roles: &[DeviceRole]) -> Result<()> {
    let device = admin::device(&administrator.state(), device)?;
    let mut roles = roles.to_vec();
    roles.sort();
    roles.dedup();
    administrator.post(record::Role { device, roles })
}

impl Ban {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
        let mut administrator = Administrator::open(&self.signing)?;
        let (state, effective) = (administrator.state(), administrator.effective());
        let id = admin::device(&state, &self.device)?;
        let device = state.devices.get(&id).context("the device is not on the ledger")?;
        ensure!(!device.is_banned(), "device '{}' is banned already", device.name);
        let admin_words = self.signing.words();
        // Both are in force: the one for this record, the other when what is on the ledger already has taken effect.
        let short =
            [&effective, &state].map(|s| Witnesses::without(s, &state, &id)).into_iter().find(|w| !w.is_quorum());
        if let Some(short) = short.as_ref().filter(|_| !self.even_without_quorum) {
            return Err(advised(short.refusal(&device.name), short.way_out(&admin_words)));
        }
        let network = state.genesis.as_ref().map(|genesis| genesis.name.clone()).unwrap_or_default();
        if !self.yes {
            ask::confirm(&format!("Device '{}' with id {id} of network '{network}' loses every right.", device.name))?;
        }
        administrator
            .post(record::Ban { device: id, reason: self.reason.clone() })
            .context("the device was not banned")?;
        if short.is_none() {
            administrator.wait_effective()?;
        }
        let exposed = state.keys.values().filter(|key| !key.deleted && key.record.assemblers.contains(&id));
        let exposed: Vec<Value> = exposed.map(|key| exposed_key(&state, key)).collect();
        let next = Witnesses::without(&administrator.state(), &state, &id).after_ban(&admin_words);
        let answer = json!({"device": device.name, "id": id.to_string(), "network": network, "membership": "banned",
            "exposed_keys": exposed, "quorum": short.is_none(), "next": next});
        out.result(&answer, banned)?;
        Ok(())
    }
}

fn exposed_key(state: &State, key: &KeyState) -> Value {
    let token = state.tokens.get(&key.record.token).map(|token| token.record.label.clone());
    json!({"id": key.record.id.to_string(), "name": label_of(&key.attributes), "token": token})
}

/// Who signs heads when a device is banned. A banned witness counts until its role is taken: one administrator may ban, but only all
/// that the network asks for may change how many must sign.
#[derive(Debug, PartialEq, Eq)]
struct Witnesses {
    appointed: usize,
    needed: usize,
    /// That may sign still.
    left: usize,
    /// That count and cannot sign: banned earlier.
    banned_before: Vec<String>,
    /// The device that is banned now, if it is a witness.
    banned_now: Option<String>,
}

impl Witnesses {
    /// Witnesses are those of `rules`; banned are those of `tip`, and `device`.
    fn without(rules: &State, tip: &State, device: &DeviceId) -> Self {
        let witnesses =
            rules.witnesses().into_iter().map(|id| (tip.device_name(&id), tip.is_banned(&id), id == *device));
        Self::count(&witnesses.collect::<Vec<_>>())
    }

    /// Of each witness: its name, whether it is banned, whether it is banned now.
    fn count(witnesses: &[(String, bool, bool)]) -> Self {
        let named = |wanted: fn(bool, bool) -> bool| {
            witnesses.iter().filter(move |(_, before, now)| wanted(*before, *now)).map(|(name, ..)| name.clone())
        };
        let (banned_before, banned_now) = (named(|before, now| before && !now), named(|_, now| now).next());
        Self {
            appointed: witnesses.len(),
            needed: quorum(witnesses.len()),
            left: named(|before, now| !before && !now).count(),
            banned_before: banned_before.collect(),
            banned_now,
        }
    }

    /// Whether the ban leaves enough to sign it and what follows; a device that is no witness takes nobody away.
    fn is_quorum(&self) -> bool {
        self.banned_now.is_none() || self.left >= self.needed
    }

    fn refusal(&self, device: &str) -> String {
        format!(
            "device '{device}' is a witness; without it {} of {} witnesses are left, and {} must sign: no key could be used and no right \
             be changed any more; nothing was done",
            self.left, self.appointed, self.needed
        )
    }

    /// What makes the ban possible, and what does it all the same.
    fn way_out(&self, admin: &str) -> String {
        let mut steps = take_roles(&self.banned_before, admin);
        let counted = self.appointed - self.banned_before.len();
        if self.left < quorum(counted) {
            steps.push(format!("appoint another witness: `mayfly device role NAME --set holder,witness{admin}`"));
        }
        format!(
            "{}, then ban again; a network that stands still may be better than a stolen device that goes on: --even-without-quorum",
            steps.join(", then ")
        )
    }

    /// What is left to do after the ban.
    fn after_ban(&self, admin: &str) -> Option<String> {
        let banned: Vec<String> = self.banned_now.iter().chain(&self.banned_before).cloned().collect();
        (self.banned_now.is_some() && !banned.is_empty()).then(|| {
            format!(
                "it counts as a witness still ({} of {} must sign, {} can): {}",
                self.needed,
                self.appointed,
                self.left,
                take_roles(&banned, admin).join(", ")
            )
        })
    }
}

/// The commands that take every role from devices that are banned.
fn take_roles(devices: &[String], admin: &str) -> Vec<String> {
    devices.iter().map(|device| format!("`mayfly device role {device} --set{admin}`")).collect()
}

fn banned(answer: &Value) -> String {
    let device = field(answer, "device");
    let mut text =
        format!("device '{device}' is banned: it is released no shard any more, and its shards are not asked for\n");
    if answer.get("quorum") == Some(&Value::Bool(false)) {
        text.push_str(
            "too few witnesses are left to sign it: agents that see it obey it, and no key is used any more\n",
        );
    }
    let exposed = answer.get("exposed_keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if exposed.is_empty() {
        text.push_str("it could put no key together\n");
    } else {
        text.push_str("it could put these keys together; make new ones if it may have been broken into:\n");
        let line = |key: &Value| {
            let id = short(&field(key, "id"));
            format!("  {} in token '{}' (id {id}…)\n", field(key, "name"), field(key, "token"))
        };
        exposed.iter().for_each(|key| text.push_str(&line(key)));
    }
    if let Some(next) = answer.get("next").and_then(Value::as_str) {
        text.push_str(&format!("next: {next}\n"));
    }
    text
}

fn list(devices: &Value) -> String {
    let devices = devices.as_array().map(Vec::as_slice).unwrap_or_default();
    let heading = ["NAME", "ID", "MEMBERSHIP", "ROLES", "VAULT", "ATTESTED BY", "SHARDS", "CONNECTED", "ADDRESSES"]
        .map(String::from)
        .to_vec();
    let names = ["name", "id", "membership", "roles", "vault", "attestation", "shards", "connected", "addresses"];
    let cell = |device: &Value, name: &str| match (name, device.get(name)) {
        ("id", _) => short(&field(device, name)),
        ("shards", Some(Value::Array(shards))) => shards.len().to_string(),
        ("attestation", Some(attestation)) => attest::words(attestation),
        _ => field(device, name),
    };
    let row = |device: &Value| names.map(|name| cell(device, name)).to_vec();
    let alerts = devices.iter().filter_map(|device| device.get("alerts")?.as_array()).flatten();
    let alerts: String = alerts
        .map(|alert| {
            format!("ALERT {}: {} (says {})\n", field(alert, "device"), field(alert, "text"), field(alert, "by"))
        })
        .collect();
    table(&std::iter::once(heading).chain(devices.iter().map(row)).collect::<Vec<_>>()) + &alerts
}

/// What was approved, so that nobody has to look it up.
fn approved_text(device: &Value, id: &DeviceId) -> String {
    let chip =
        attest::lines(device).into_iter().filter(|(title, _)| ["attested by", "chip", "registers"].contains(title));
    let chip: String = chip.map(|(title, value)| format!("\n  {title:12} {value}")).collect();
    format!("device '{}' with id {id} is a member now{chip}", field(device, "device"))
}

fn show(device: &Value) -> String {
    let mut text = String::new();
    for (title, name) in [
        ("name", "name"),
        ("id", "id"),
        ("membership", "membership"),
        ("roles", "roles"),
        ("identity key", "identity"),
        ("vault", "vault"),
        ("software only", "software_only"),
        ("addresses", "addresses"),
        ("may put together", "can_assemble"),
    ] {
        text.push_str(&format!("{title:18} {}\n", field(device, name)));
    }
    attest::lines(device).into_iter().for_each(|(title, value)| text.push_str(&format!("{title:18} {value}\n")));
    let heading = ["SHARD", "KEY", "INDEX", "EPOCH", "VALID UNTIL"].map(String::from).to_vec();
    let row = |shard: &Value| {
        let until = shard.get("valid_until_ms").and_then(Value::as_u64).map_or("no end".into(), moment);
        vec![short(&field(shard, "id")), field(shard, "key"), field(shard, "index"), field(shard, "epoch"), until]
    };
    let shards = device.get("shards").and_then(Value::as_array).into_iter().flatten();
    text + "\n" + &table(&std::iter::once(heading).chain(shards.map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_for_people() {
        let device = json!({"name": "agent-1", "membership": "member", "roles": ["holder", "witness"], "vault": "file",
            "shards": [{"id": "ab".repeat(32), "key": "web", "index": 1, "epoch": 1, "valid_until_ms": null}]});
        assert!(list(&json!([device])).contains("holder, witness"));
        assert!(show(&device).contains("abababab") && show(&device).contains("no end"));
        assert!(banned(&json!({"device": "x", "exposed_keys": []})).contains("no key"));
        let key = json!({"id": "ab".repeat(32), "name": "web", "token": "mayfly"});
        let text = banned(&json!({"device": "x", "exposed_keys": [key], "next": "the next step"}));
        assert!(
            text.contains("make new ones") && text.contains("web in token 'mayfly'") && text.contains("the next step")
        );
    }

    /// The first of so many witnesses is banned, when the last `banned` are.
    fn after_ban(witnesses: usize, banned: usize) -> Witnesses {
        let witness = |number: usize| (format!("w{number}"), number > witnesses - banned, number == 1);
        Witnesses::count(&(1..=witnesses).map(witness).collect::<Vec<_>>())
    }

    #[test]
    fn a_ban_never_takes_the_quorum_by_accident() {
        for (witnesses, banned, stands) in [
            (1, 0, false),
            (2, 0, false),
            (3, 0, true),
            (3, 1, false),
            (4, 0, true),
            (4, 1, false),
            (5, 1, true),
            (5, 2, false),
            (7, 2, true),
        ] {
            let after = after_ban(witnesses, banned);
            assert_eq!(after.is_quorum(), stands, "{witnesses} witnesses, {banned} banned: {after:?}");
        }
        let bystander = Witnesses::count(&[("w1".into(), true, false), ("w2".into(), false, false)]);
        assert!(bystander.is_quorum(), "who is no witness may be banned in any network");
        assert_eq!(bystander.after_ban(""), None);
    }

    #[test]
    fn refused_bans_name_their_way_out() {
        let refused = after_ban(4, 1);
        assert!(
            refused.refusal("w1").contains("2 of 4 witnesses are left, and 3 must sign"),
            "{}",
            refused.refusal("w1")
        );
        let way = refused.way_out(" --admin net/a.key");
        assert!(way.starts_with("`mayfly device role w4 --set --admin net/a.key`, then ban again"), "{way}");
        // Roles alone do not help: of two witnesses both must sign.
        assert!(after_ban(3, 1).way_out("").contains("appoint another witness"));
        assert!(after_ban(2, 0).way_out("").starts_with("appoint another witness"));
        let next = after_ban(4, 0).after_ban("").unwrap();
        assert!(next.contains("3 of 4 must sign, 3 can") && next.contains("`mayfly device role w1 --set`"), "{next}");
    }
}
