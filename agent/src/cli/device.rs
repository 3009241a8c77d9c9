//! `mayfly device list|show|approve|role` and `mayfly ban`.

use super::admin::{self, Administrator, Signing};
use super::agent::ask;
use super::announce::{Announcer, field, moment, short, table};
use super::key::request;
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use mayfly_protocol::record::{self, DeviceRole};
use mayfly_protocol::state::Membership;
use serde_json::{Value, json};
use std::path::Path;

/// List, show and approve devices, and give them roles
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly device approve web-1 && mayfly device role web-1 --set holder,witness")]
pub enum Device {
    List(List),
    Show(Show),
    Approve(Approve),
    Role(Role),
}

/// List the network's devices
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device list")]
pub struct List {}

/// Show a device: its roles, its shards, the keys that it may put together
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device show web-1")]
pub struct Show {
    /// Name or id
    device: String,
}

/// Accept a device that has joined
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly device approve web-1 --admin net/administrator.key")]
pub struct Approve {
    /// Name or id
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
            Device::List(_) => out.result(&ask(socket, &json!({"command": "device.list"}))?, list)?,
            Device::Show(c) => {
                out.result(&ask(socket, &request("device.show", [("device", Some(c.device.into()))]))?, show)?
            }
            Device::Approve(c) => {
                let mut administrator = Administrator::open(&c.signing)?;
                approve(&mut administrator, &c.device)?;
                administrator.wait_effective()?;
                out.result(&json!({"device": c.device, "membership": "member"}), |_| {
                    format!("device '{}' is a member now", c.device)
                })?;
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

/// Posts the APPROVE record.
pub fn approve(administrator: &mut Administrator, device: &str) -> Result<()> {
    let state = administrator.state();
    let id = admin::device(&state, device)?;
    match state.devices.get(&id).map(|d| d.membership) {
        Some(Membership::Pending) => administrator.post(record::Approve { device: id }),
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
        let state = administrator.state();
        let id = admin::device(&state, &self.device)?;
        administrator
            .post(record::Ban { device: id, reason: self.reason.clone() })
            .context("the device was not banned")?;
        administrator.wait_effective()?;
        let exposed: Vec<String> = state
            .keys
            .values()
            .filter(|key| !key.deleted && key.record.assemblers.contains(&id))
            .map(|key| key.record.id.to_string())
            .collect();
        let answer = json!({"device": self.device, "membership": "banned", "exposed_keys": exposed});
        out.result(&answer, |_| banned(&self.device, &exposed))?;
        Ok(())
    }
}

fn banned(device: &str, exposed: &[String]) -> String {
    let mut text =
        format!("device '{device}' is banned: it is released no shard any more, and its shards are not asked for\n");
    if exposed.is_empty() {
        text.push_str("it could put no key together\n");
    } else {
        text.push_str("it could put these keys together; make new ones if it may have been broken into:\n");
        exposed.iter().for_each(|key| text.push_str(&format!("  {key}\n")));
    }
    text
}

fn list(devices: &Value) -> String {
    let devices = devices.as_array().map(Vec::as_slice).unwrap_or_default();
    let heading =
        ["NAME", "MEMBERSHIP", "ROLES", "VAULT", "SHARDS", "CONNECTED", "ADDRESSES"].map(String::from).to_vec();
    let names = ["name", "membership", "roles", "vault", "shards", "connected", "addresses"];
    let row = |device: &Value| names.map(|name| field(device, name)).to_vec();
    table(&std::iter::once(heading).chain(devices.iter().map(row)).collect::<Vec<_>>())
}

fn show(device: &Value) -> String {
    let mut text = String::new();
    for (title, name) in [
        ("name", "name"),
        ("id", "id"),
        ("membership", "membership"),
        ("roles", "roles"),
        ("vault", "vault"),
        ("vault generation", "vault_generation"),
        ("software only", "software_only"),
        ("addresses", "addresses"),
        ("may put together", "can_assemble"),
    ] {
        text.push_str(&format!("{title:18} {}\n", field(device, name)));
    }
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
        assert!(banned("x", &[]).contains("no key"));
        assert!(banned("x", &["k".into()]).contains("make new ones"));
    }
}
