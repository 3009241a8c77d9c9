//! `device list`, `device show`, `peers`.

use mayfly_protocol::record::DeviceRole;
use mayfly_protocol::rules::Clocks;
use mayfly_protocol::state::{Device, Membership, State};
use mayfly_protocol::{DeviceId, state::KeyState};
use serde_json::{Map, Value, json};

use super::{attestation, names};
use crate::app::caller::Caller;
use crate::app::fail::Done;
use crate::app::objects::make::label_of;
use crate::node::PeerStatus;

/// The word for where a device stands.
pub fn membership(membership: Membership) -> &'static str {
    match membership {
        Membership::Pending => "pending",
        Membership::Member => "member",
        Membership::Banned => "banned",
    }
}

/// The words for a device's roles.
pub fn roles(device: &Device) -> Vec<&'static str> {
    device.roles.iter().map(role).collect()
}

/// The word for a role.
pub fn role(role: &DeviceRole) -> &'static str {
    match role {
        DeviceRole::Holder => "holder",
        DeviceRole::Spare => "spare",
        DeviceRole::Witness => "witness",
        DeviceRole::PcrApprover => "pcr-approver",
    }
}

/// All devices.
pub fn list(caller: &Caller<'_>) -> Value {
    let (state, peers) = (caller.app.keys.state(), caller.app.keys.peers());
    state.devices.iter().map(|(id, device)| Value::Object(line(caller, &state, &peers, id, device))).collect()
}

fn line(
    caller: &Caller<'_>,
    state: &State,
    peers: &[PeerStatus],
    id: &DeviceId,
    device: &Device,
) -> Map<String, Value> {
    let connected = match peers.iter().find(|peer| peer.device == *id) {
        Some(peer) => json!(peer.connected),
        None if *id == caller.app.keys.device() => json!(true),
        None => Value::Null,
    };
    let shards = live_keys(state).filter(|key| key.record.shards.iter().any(|shard| shard.device == *id)).count();
    let mut line = of_ledger(state, id, device);
    line.insert("connected".into(), connected);
    line.insert("shards".into(), shards.into());
    line
}

/// What the ledger says of a device.
pub fn of_ledger(state: &State, id: &DeviceId, device: &Device) -> Map<String, Value> {
    let line = json!({
        "name": device.name,
        "id": id.to_string(),
        "membership": membership(device.membership),
        "roles": roles(device),
        "vault": device.vault,
        "software_only": device.software_only,
        "addresses": device.addresses,
    });
    let mut line = match line {
        Value::Object(line) => line,
        _ => Map::new(),
    };
    attestation::describe(&mut line, state, id, device);
    line
}

fn live_keys(state: &State) -> impl Iterator<Item = &KeyState> {
    state.keys.values().filter(|key| !key.deleted)
}

/// One device, with its shards and what it may put together.
///
/// # Errors
/// CKR_ARGUMENTS_BAD.
pub fn show(caller: &Caller<'_>, name: &str) -> Done<Value> {
    let (state, peers) = (caller.app.keys.state(), caller.app.keys.peers());
    let id = names::device(&state, name)?;
    let Some(device) = state.devices.get(&id) else { return Ok(Value::Null) };
    let sessions: Vec<Value> = device
        .sessions()
        .iter()
        .map(|session| json!({ "start_counter": session.start_counter, "not_after_ms": session.not_after_ms }))
        .collect();
    let mut line = line(caller, &state, &peers, &id, device);
    line.insert("shards".into(), shards(&state, &id, caller.app.keys.clocks()).into());
    line.insert("can_assemble".into(), can_assemble(&state, &id).into());
    line.insert("sessions".into(), sessions.into());
    line.insert("identity".into(), hex::encode(device.identity.bytes()).into());
    Ok(Value::Object(line))
}

/// The shards that a device has, by the ledger.
pub fn shards(state: &State, id: &DeviceId, now: Option<Clocks>) -> Vec<Value> {
    live_keys(state)
        .flat_map(|key| key.record.shards.iter().filter(|shard| shard.device == *id).map(move |shard| (key, shard)))
        .map(|(key, shard)| {
            json!({
                "id": shard.id.to_string(),
                "key": key_name(key),
                "index": shard.index,
                "epoch": key.record.epoch,
                "valid_until_ms": Some(shard.valid_until_ms).filter(|until| *until != u64::MAX),
                "state": super::keys::shard_state(shard, now),
            })
        })
        .collect()
}

/// Names of the keys that a device may put together.
pub fn can_assemble(state: &State, id: &DeviceId) -> Vec<String> {
    live_keys(state).filter(|key| key.record.assemblers.contains(id)).map(key_name).collect()
}

fn key_name(key: &KeyState) -> String {
    Some(label_of(&key.attributes)).filter(|label| !label.is_empty()).unwrap_or_else(|| key.record.id.to_string())
}

/// The other members and the connections to them.
pub fn peers(caller: &Caller<'_>) -> Value {
    let state = caller.app.keys.state();
    let address = |id: &DeviceId| state.devices.get(id).and_then(|device| device.addresses.first().cloned());
    caller
        .app
        .keys
        .peers()
        .into_iter()
        .map(|peer| {
            json!({
                "device": peer.name,
                "address": address(&peer.device),
                "connected": peer.connected,
                "reason": peer.last_error,
                "usual_us": peer.usual_us,
            })
        })
        .collect()
}
