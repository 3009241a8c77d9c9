//! `status`: how this device, its ledger and its peers are; what to worry about.

use mayfly_protocol::head::{quorum, tolerated_liars};
use mayfly_protocol::state::State;
use serde_json::{Value, json};

use super::devices;
use crate::app::caller::Caller;
use crate::app::objects::make::label_of;
use crate::node::{FreshnessStatus, PeerStatus, Trouble};

/// Keys that a warning names at most.
const NAMED_MAX: usize = 5;

/// The whole status. Counts and warnings speak of what the caller may see.
pub fn show(caller: &Caller<'_>) -> Value {
    let agent = &caller.app.keys;
    if !agent.has_node() {
        return without_node(caller);
    }
    let (state, fresh, peers, ledger) = (agent.state(), agent.freshness(), agent.peers(), agent.ledger());
    let (id, holdings) = (agent.device(), agent.holdings());
    let device = state.devices.get(&id);
    let memory = mayfly_secmem::status();
    let witnesses = state.witnesses();
    let w = quorum(witnesses.len());
    let answering: Vec<_> = witnesses
        .iter()
        .filter(|w| **w == id || peers.iter().any(|peer| peer.device == **w && peer.connected))
        .map(|w| state.device_name(w))
        .collect();
    let known = state.keys.values().filter(|key| !key.deleted && super::names::may_know(caller, &state, key)).count();
    let device_name = state.device_name(&id);
    let sees = |token: &_, record| caller.principal.manages() || caller.sees(&state, token, record, &device_name);
    let seen = state.tokens.iter().filter(|(token, record)| sees(token, record));
    let tokens: Vec<_> = seen.map(|(_, token)| token.record.label.clone()).collect();
    let connections: Vec<Value> = peers
        .iter()
        .map(|peer| {
            let address = state.devices.get(&peer.device).and_then(|device| device.addresses.first());
            json!({ "device": peer.name, "address": address, "connected": peer.connected, "reason": peer.last_error })
        })
        .collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": state.device_name(&id),
        "device_id": id.to_string(),
        "network": state.network.to_string(),
        "network_name": state.genesis.as_ref().map(|genesis| genesis.name.clone()),
        "dev": state.policy().is_some_and(|policy| policy.dev),
        "phase": agent.phase().word(),
        "manages": caller.principal.manages(),
        "membership": device.map(|device| devices::membership(device.membership)),
        "roles": device.map(devices::roles).unwrap_or_default(),
        "fresh": fresh.fresh.is_ok(),
        "fresh_reason": fresh.fresh.as_ref().err().map(ToString::to_string),
        "freshness_age_ms": fresh.age_ms,
        "skew_ms": fresh.skew_ms,
        "ledger": {
            "connected": ledger.connected,
            "gateway": ledger.gateway,
            "size": ledger.tip.size,
            "root": hex::encode(ledger.tip.root.0),
            "effective_size": ledger.effective.size,
            "last_contact_ms": Some(ledger.last_contact_ms).filter(|at| *at != 0),
            "last_error": ledger.last_error,
            "alarm": ledger.alarm.as_ref().map(ToString::to_string),
        },
        "witnesses": {
            "n": witnesses.len(),
            "quorum": w,
            "active": active_witnesses(&state, &agent.tip()),
            "tolerated_liars": tolerated_liars(witnesses.len(), w),
            "answering": answering,
        },
        "vault": super::vault::line(caller, &state),
        "alerts": alerts(&state),
        "attestation": device.map(|device| super::attestation::of(&state, &id, device)),
        "holdings": {
            "shards": holdings.shards,
            "pending_shards": holdings.pending_shards,
            "windows": holdings.windows,
            "unposted_grants": holdings.unposted_grants,
            "served_connections": holdings.served_connections,
        },
        "memory": {
            "memfd_secret": memory.memfd_secret,
            "capacity_bytes": memory.capacity_bytes,
            "used_bytes": memory.used_bytes,
        },
        "applications": caller.app.applications.count(),
        "peers": connections,
        "tokens": tokens,
        "keys": known,
        "warnings": warnings(&state, &fresh, &peers, caller),
    })
}

/// As long as the vault does not open: what is known without it.
fn without_node(caller: &Caller<'_>) -> Value {
    let agent = &caller.app.keys;
    let memory = mayfly_secmem::status();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "device": agent.configured_name(),
        "phase": agent.phase().word(),
        "manages": caller.principal.manages(),
        "fresh": false,
        "fresh_reason": "the vault is not open",
        "vault": super::vault::line(caller, &agent.state()),
        "memory": { "memfd_secret": memory.memfd_secret, "capacity_bytes": memory.capacity_bytes, "used_bytes": memory.used_bytes },
        "applications": caller.app.applications.count(),
        "peers": [],
        "tokens": [],
        "keys": 0,
        "alerts": [],
        "warnings": agent.trouble().iter().map(in_trouble).collect::<Vec<_>>(),
    })
}

fn in_trouble(trouble: &Trouble) -> String {
    format!("{}; {}", trouble.sentence(), trouble.state.next())
}

/// Alerts that stand.
fn alerts(state: &State) -> Vec<Value> {
    let devices = state.devices.iter().filter(|(_, device)| !device.is_banned());
    devices.flat_map(|(id, _)| super::attestation::alerts(state, id)).collect()
}

/// Sentences about what weakens this network, gravest first.
fn warnings(state: &State, fresh: &FreshnessStatus, peers: &[PeerStatus], caller: &Caller<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(alarm) = caller.app.keys.ledger().alarm {
        warnings.push(format!("the ledger raised an alarm: {alarm}"));
    }
    warnings.extend(caller.app.keys.trouble().iter().map(in_trouble));
    if let Err(why) = &fresh.fresh {
        warnings.push(format!("no key is used or released now: {why}"));
    }
    let own = caller.app.keys.device();
    // A peer to whom no connection is open now is not away: connections are made when they are needed.
    let away =
        |device| device != own && peers.iter().any(|p| p.device == device && !p.connected && p.last_error.is_some());
    keys_without_spare(state, away, caller, &mut warnings);
    let witnesses = state.witnesses().len();
    warnings.extend(thin_quorum(witnesses, active_witnesses(state, &caller.app.keys.tip())));
    if tolerated_liars(witnesses, quorum(witnesses)) == 0 && witnesses > 0 {
        warnings.push(format!(
            "with {witnesses} witnesses and a quorum of {} a single lying witness can split the ledger",
            quorum(witnesses)
        ));
    }
    let software: Vec<_> =
        state.devices.values().filter(|d| d.is_member() && d.software_only).map(|d| d.name.as_str()).collect();
    if !software.is_empty() {
        warnings.push(format!("software-only vaults, for development: {}", software.join(", ")));
    }
    if caller.principal.manages() {
        warnings.extend(super::attestation::warnings(caller, state));
    }
    if !mayfly_secmem::status().memfd_secret {
        warnings.push("secret memory is locked but not hidden from root: memfd_secret is not available".into());
    }
    warnings
}

/// Witnesses in effect that no ban, in effect or not, keeps from signing: without them no ban takes effect.
fn active_witnesses(effective: &State, tip: &State) -> usize {
    effective.active_witnesses().iter().filter(|id| !tip.is_banned(id)).count()
}

/// What to say of `appointed` witnesses of which `active` are not banned: a quorum is counted over all that are appointed.
fn thin_quorum(appointed: usize, active: usize) -> Option<String> {
    let needed = quorum(appointed);
    let role = "take the witness role from banned devices (`mayfly device role NAME --set`)";
    let another = "appoint another witness (`mayfly device role NAME --set holder,witness`)";
    let advice = if active < appointed { format!("{role}, or {another}") } else { another.to_owned() };
    if active < needed {
        Some(format!(
            "{active} of {appointed} witnesses are not banned, and {needed} must sign: nothing takes effect and no key is used any more"
        ))
    } else if active == needed && appointed > 1 {
        Some(format!("no witness may fail: {needed} of {appointed} must sign, and {active} can; {advice}"))
    } else {
        None
    }
}

/// Keys that the loss of one more holder, or of any, would stop.
fn keys_without_spare(
    state: &State,
    away: impl Fn(mayfly_protocol::DeviceId) -> bool,
    caller: &Caller<'_>,
    warnings: &mut Vec<String>,
) {
    let (mut stopped, mut thin, mut tight, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let lost_here = caller.app.keys.vault().lost;
    for key in state.keys.values().filter(|key| !key.deleted && super::names::may_know(caller, state, key)) {
        let usable = |device| state.devices.get(&device).is_some_and(|d| d.is_member());
        let live = key.accepted().filter(|shard| usable(shard.device) && !away(shard.device)).count();
        let (t, n) = (usize::from(key.record.t), key.record.shards.len());
        let name = label_of(&key.attributes);
        if lost_here.contains(&key.record.id) {
            lost.push(name.clone());
        }
        match live {
            live if live < t => stopped.push(name),
            live if live == t && n > t => thin.push(name),
            _ if n == t => tight.push(name),
            _ => {}
        }
    }
    for (keys, what) in [
        (stopped, "too few holders can be reached to use"),
        (lost, "this device's vault has no keys for its shards any more (a holder less until they are dealt anew) of"),
        (thin, "the loss of one more holder stops"),
        (tight, "made without a spare share, the loss of any holder is final for"),
    ] {
        if !keys.is_empty() {
            let named: Vec<_> = keys.iter().take(NAMED_MAX).map(String::as_str).collect();
            let more =
                if keys.len() > NAMED_MAX { format!(" and {} more", keys.len() - NAMED_MAX) } else { String::new() };
            warnings.push(format!("{what}: {}{more}", named.join(", ")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quorums_without_a_spare_witness_are_warned_of() {
        for (appointed, active, warning) in [
            (0, 0, None),
            (1, 1, None),
            (2, 2, Some("appoint another")),
            (3, 3, None),
            (3, 2, Some("take the witness role")),
            (4, 3, Some("no witness may fail: 3 of 4 must sign, and 3 can")),
            (4, 2, Some("2 of 4 witnesses are not banned, and 3 must sign")),
            (5, 4, None),
        ] {
            let said = thin_quorum(appointed, active);
            assert_eq!(said.is_some(), warning.is_some(), "{appointed}, {active}: {said:?}");
            assert!(said.unwrap_or_default().contains(warning.unwrap_or_default()), "{appointed}, {active}");
        }
    }
}
