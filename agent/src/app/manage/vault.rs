//! `vault show|policy|approve-pcr|revoke|bench`: what seals this device's secrets, how it stands, and approvals of other devices' registers.

use mayfly_evidence::pcr::{self, Selection};
use mayfly_evidence::policy::approval_reference;
use mayfly_ledger_client::with_cause;
use mayfly_protocol::DeviceId;
use mayfly_protocol::record::Registers;
use mayfly_protocol::state::State;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

use super::names;
use crate::app::caller::Caller;
use crate::app::ck::{CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR, CKR_FUNCTION_NOT_SUPPORTED, CKR_FUNCTION_REJECTED};
use crate::app::fail::{Done, Fail};
use crate::node::attestation::evidence;
use crate::node::{Node, ShardError, ToApprove, VaultError};

/// Most rounds of a measurement.
pub const ROUNDS_MAX: usize = 1000;

/// How long the chip or token may take to answer; slow ones take a second.
const HEALTH_PATIENCE: Duration = Duration::from_secs(3);

/// The vault in a few fields; all that there is when it does not open.
pub fn line(caller: &Caller<'_>, state: &State) -> Value {
    let (agent, vault) = (&caller.app.keys, caller.app.keys.vault());
    let trouble = agent.trouble();
    let on_ledger = state.devices.get(&agent.device()).map(|device| device.vault_generation);
    json!({
        "kind": vault.kind,
        "state": trouble.as_ref().map_or("open", |trouble| trouble.state.word()),
        "reason": trouble.as_ref().map(|trouble| &trouble.reason),
        "next": trouble.as_ref().map(|trouble| trouble.state.next()),
        "generation": Some(vault.generation).filter(|_| agent.has_node()),
        "acknowledged_generation": on_ledger,
        "software_only": Some(vault.software_only).filter(|_| agent.has_node()),
        "note": vault.note,
        "unrevoked": agent.node().map(Node::unrevoked),
        "tiers": agent.node().map(|node| json!(node.vault_figures().tiers)),
    })
}

/// The same, and whether the chip or token answers at this moment: a vault that is open needs it only for its next opening.
pub fn show(caller: &Caller<'_>) -> Value {
    let mut shown = line(caller, &caller.app.keys.state());
    let health = caller.app.keys.node().map(|node| node.vault_health(HEALTH_PATIENCE));
    shown["trouble"] = health.and_then(Result::err).map_or(Value::Null, Value::from);
    shown
}

fn node<'a>(caller: &'a Caller<'_>) -> Done<&'a Node> {
    let node = caller.app.keys.node();
    node.ok_or_else(|| Fail::new(CKR_DEVICE_ERROR, "the agent runs without a node"))
}

// --- generations and costs --------------------------------------------------------------------------------------------------

/// Moves the vault on to its next generation now.
///
/// # Errors
/// CKR_DEVICE_ERROR.
pub fn revoke(caller: &Caller<'_>) -> Done<Value> {
    let node = node(caller)?;
    let revoked = node.revoke_vault().map_err(|error| failed(&error))?;
    Ok(json!({
        "generation": revoked.generation,
        "kept": revoked.kept,
        "revoked": revoked.revoked,
        "commit_ms": revoked.commit.as_secs_f64() * 1e3,
        "took_ms": revoked.took.as_secs_f64() * 1e3,
    }))
}

/// Measures the vault; with `commit` by a real revocation, too.
///
/// # Errors
/// CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR.
pub fn bench(caller: &Caller<'_>, rounds: usize, commit: bool) -> Done<Value> {
    if !(1..=ROUNDS_MAX).contains(&rounds) {
        return Err(Fail::new(CKR_ARGUMENTS_BAD, format!("1 to {ROUNDS_MAX} rounds are measured")));
    }
    Ok(json!(node(caller)?.bench_vault(rounds, commit).map_err(|error| failed(&error))?))
}

fn failed(error: &ShardError) -> Fail {
    Fail::ruled(CKR_DEVICE_ERROR, "vault", with_cause(error)).next("`mayfly vault show`")
}

/// What each way of opening holders' vaults costs on this device, and what it leaves open to who breaks in.
pub fn costs(caller: &Caller<'_>) -> Value {
    let figures = caller.app.keys.node().map(Node::vault_figures);
    let median =
        |tier: &str| figures.as_ref().and_then(|f| f.tiers.iter().find(|t| t.tier == tier)).and_then(|t| t.median_ms);
    json!([
        { "tier": "boot", "opening_ms": 0.0, "opened": "once at the agent's start",
          "exposes": "whoever breaks into a holder opens every shard of this tier" },
        { "tier": "window", "opening_ms": median("window"), "opened": "once in each window",
          "exposes": "whoever breaks into a holder during a window opens the shards of that window's keys" },
        { "tier": "per-release", "opening_ms": median("per-release"), "opened": "for each release; one serves all that wait",
          "exposes": "whoever breaks into a holder gets the shards that are asked for meanwhile" },
    ])
}

// --- registers --------------------------------------------------------------------------------------------------------------

/// What the vault asks of the registers, as its plugin tells it, and whose it is.
///
/// # Errors
/// CKR_FUNCTION_NOT_SUPPORTED where there are none, CKR_DEVICE_ERROR.
pub fn policy(caller: &Caller<'_>) -> Done<Value> {
    let node = node(caller)?;
    let policy = node.registers().policy().map_err(|error| no_registers(&error))?;
    let mut policy: Value = serde_json::from_slice(&policy).map_err(odd_policy)?;
    if let Some(fields) = policy.as_object_mut() {
        let (state, id) = (caller.app.keys.state(), node.device());
        fields.insert("device".into(), state.device_name(&id).into());
        fields.insert("device_id".into(), id.to_string().into());
        fields.insert("state".into(), line(caller, &state)["state"].take());
    }
    Ok(policy)
}

fn no_registers(error: &VaultError) -> Fail {
    if error.status() == Some(mayfly_plugin_api::Status::Unsupported) {
        return Fail::ruled(CKR_FUNCTION_NOT_SUPPORTED, "vault", "this device's vault has no registers: it is no TPM");
    }
    Fail::ruled(CKR_DEVICE_ERROR, "vault", error.to_string())
}

fn odd_policy(error: serde_json::Error) -> Fail {
    Fail::ruled(CKR_DEVICE_ERROR, "vault", format!("the policy of the vault cannot be read: {error}"))
}

/// `vault approve-pcr`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approve {
    /// Whose vault: name or id.
    device: String,
    /// Its policy; without it, the device itself is asked.
    policy: Option<Policy>,
    /// The values that its registers have now.
    #[serde(default)]
    current: bool,
    /// Values of the next start; registers that are not named keep theirs.
    #[serde(default, deserialize_with = "numbered")]
    registers: BTreeMap<u32, String>,
    /// Digest over all registers that the vault asks for.
    digest: Option<String>,
    /// For the generation that a revocation will bring, not for the present one.
    #[serde(default)]
    next_generation: bool,
    /// Only tell what would be approved.
    #[serde(default)]
    preview: bool,
}

/// What a vault asks of its registers (`docs/formats/vault-tpm.md`), as far as an approver needs it.
#[derive(Debug, Deserialize)]
pub struct Policy {
    vault: String,
    generation: u64,
    references: Vec<Reference>,
    #[serde(deserialize_with = "numbered")]
    registers: BTreeMap<u32, Option<String>>,
}

/// A map whose keys are numbers: text in JSON, which serde reads as numbers only where it has not looked at the object before (a tag).
fn numbered<'de, D: Deserializer<'de>, V: Deserialize<'de>>(from: D) -> Result<BTreeMap<u32, V>, D::Error> {
    let named = BTreeMap::<String, V>::deserialize(from)?;
    let number = |(name, value): (String, V)| match name.parse() {
        Ok(number) => Ok((number, value)),
        Err(_) => Err(serde::de::Error::custom(format!("'{name}' is no register"))),
    };
    named.into_iter().map(number).collect()
}

#[derive(Debug, Deserialize)]
struct Reference {
    generation: u64,
    reference: String,
    approver: Option<String>,
}

/// Signs and posts an approval.
///
/// # Errors
/// CKR_ARGUMENTS_BAD, CKR_FUNCTION_REJECTED (not this device's to approve), CKR_DEVICE_ERROR.
pub fn approve(caller: &Caller<'_>, ask: &Approve) -> Done<Value> {
    let node = node(caller)?;
    node.registers().check_approver()?;
    let state = caller.app.keys.state();
    let device = names::device(&state, &ask.device)?;
    let asked;
    let policy = match &ask.policy {
        Some(policy) => policy,
        None if device == node.device() => {
            let own = node.registers().policy().map_err(|error| no_registers(&error))?;
            asked = serde_json::from_slice(&own).map_err(odd_policy)?;
            &asked
        }
        None => {
            asked = serde_json::from_slice(&node.registers().policy_of(device)?).map_err(odd_policy)?;
            &asked
        }
    };
    let what = to_approve(device, policy, ask, &hex::encode(node.identity().bytes()))?;
    let by = if ask.current { Some(whose_word(evidence::quoted(&state, &device), &what)?) } else { None };
    let index = if ask.preview { None } else { Some(node.registers().approve(&what)?) };
    let registers: Vec<u32> = what.registers.numbers().collect();
    Ok(json!({
        "by": by,
        "device": state.device_name(&device),
        "device_id": device.to_string(),
        "generation": what.generation,
        "registers": registers,
        "digest": hex::encode(what.digest),
        "index": index,
    }))
}

/// Who says that these are the registers' values: the chip, which quoted them with the device's newest delegation, or the device alone.
fn whose_word(quoted: Option<Registers>, what: &ToApprove) -> Done<&'static str> {
    let bits = what.registers.numbers().fold(0, |bits, number| bits | 1 << number);
    match quoted.filter(|quoted| quoted.selected == bits) {
        None => Ok("device"),
        Some(quoted) if quoted.digest.0 == what.digest => Ok("quote"),
        Some(_) => {
            let reason = "the device tells other values than its chip has quoted with its newest delegation";
            Err(Fail::ruled(CKR_FUNCTION_REJECTED, "registers", reason)
                .next("restart its agent, which quotes anew; if the two still differ, its host is not to be believed"))
        }
    }
}

/// What is to be signed, if it is `own` key that the vault asks.
fn to_approve(device: DeviceId, policy: &Policy, ask: &Approve, own: &str) -> Done<ToApprove> {
    let bad = |reason: &'static str| Fail::new(CKR_ARGUMENTS_BAD, reason);
    let ways = [ask.current, !ask.registers.is_empty(), ask.digest.is_some()];
    if ways.iter().filter(|way| **way).count() != 1 {
        return Err(bad("an approval is of the current values, of values of registers, or of a digest"));
    }
    let vault: [u8; 16] = bytes(&policy.vault).ok_or_else(|| bad("the policy names no vault"))?;
    // A new vault that waits for its approver has no generation yet: the first one is both.
    let next = ask.next_generation || policy.generation == 0;
    let generation = policy.generation.saturating_add(next.into());
    let reference = policy.references.iter().find(|reference| reference.generation == generation);
    let reference = reference.ok_or_else(|| bad("the policy does not tell what that generation asks for"))?;
    if bytes(&reference.reference) != Some(approval_reference(&vault, generation)) {
        return Err(bad("the policy contradicts itself: its reference is not that of its vault and generation"));
    }
    match reference.approver.as_deref() {
        Some(approver) if approver == own => {}
        Some(approver) => {
            let reason = format!("generation {generation} of that vault asks another approver, the key {approver}");
            return Err(Fail::ruled(CKR_FUNCTION_REJECTED, "approver", reason).next(
                "the key of this device, for `[pcr] approver` there, is `identity` in `mayfly device show`; a change of it takes effect with the \
                 next generation",
            ));
        }
        None => {
            let reason = format!("generation {generation} of that vault asks no approver");
            return Err(Fail::ruled(CKR_FUNCTION_REJECTED, "approver", reason).next(
                "its registers are asked for when its vault's configuration has `[pcr]`, from the next generation on",
            ));
        }
    }
    let numbers: Vec<u32> = policy.registers.keys().copied().collect();
    let registers = Selection::of(&numbers).map_err(|_| bad("the policy names registers that there are not"))?;
    if registers.is_empty() {
        return Err(bad("the policy names no registers"));
    }
    if let Some(unknown) = ask.registers.keys().find(|number| !policy.registers.contains_key(number)) {
        let known = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let reason = format!("that vault does not ask for register {unknown}; it asks for {known}");
        return Err(Fail::new(CKR_ARGUMENTS_BAD, reason));
    }
    let digest = match &ask.digest {
        Some(digest) => bytes(digest).ok_or_else(|| bad("a digest is 64 hexadecimal digits"))?,
        None => {
            let value = |(number, now): (&u32, &Option<String>)| {
                let value = ask.registers.get(number).or(now.as_ref());
                value.and_then(|value| bytes(value)).ok_or_else(|| bad("a register's value is 64 hexadecimal digits"))
            };
            pcr::digest(&policy.registers.iter().map(value).collect::<Done<Vec<[u8; 32]>>>()?)
        }
    };
    Ok(ToApprove { device, vault, generation, registers, digest })
}

fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).is_ok().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "02aa";

    fn policy() -> Policy {
        let reference = |generation: u64, approver: Option<&str>| {
            json!({"generation": generation, "approver": approver, "approved_now": false,
                   "reference": hex::encode(approval_reference(&[3; 16], generation))})
        };
        let policy = json!({"vault": "03".repeat(16), "generation": 4, "references": [reference(4, Some(OWN)), reference(5, Some("03bb"))],
            "registers": {"11": "22".repeat(32), "7": "11".repeat(32)}, "digest": null, "approvals": []});
        serde_json::from_value(policy).unwrap()
    }

    fn ask(fields: Value) -> Approve {
        let mut ask = json!({"device": "web-1"});
        ask.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        serde_json::from_value(ask).unwrap()
    }

    fn made(fields: Value) -> Result<ToApprove, String> {
        to_approve(DeviceId([1; 32]), &policy(), &ask(fields), OWN).map_err(|fail| fail.reason.into_owned())
    }

    #[test]
    fn registers_of_the_next_start_take_the_place_of_the_present_ones() {
        let now = made(json!({"current": true})).unwrap();
        assert_eq!((now.generation, now.vault, now.registers), (4, [3; 16], Selection::of(&[7, 11]).unwrap()));
        assert_eq!(now.digest, pcr::digest(&[[0x11; 32], [0x22; 32]]), "in the order of their numbers");
        let next = made(json!({"registers": {"7": "33".repeat(32)}})).unwrap();
        assert_eq!(next.digest, pcr::digest(&[[0x33; 32], [0x22; 32]]));
        assert_eq!(made(json!({"digest": "44".repeat(32)})).unwrap().digest, [0x44; 32]);
    }

    #[test]
    fn what_is_not_ours_to_approve_is_refused() {
        for (fields, reason) in [
            (json!({}), "an approval is of"),
            (json!({"current": true, "digest": "44".repeat(32)}), "an approval is of"),
            (json!({"current": true, "next_generation": true}), "another approver, the key 03bb"),
            (json!({"registers": {"9": "33".repeat(32)}}), "does not ask for register 9; it asks for 7, 11"),
            (json!({"registers": {"7": "33"}}), "64 hexadecimal digits"),
            (json!({"digest": "zz"}), "64 hexadecimal digits"),
        ] {
            let refused = made(fields).unwrap_err();
            assert!(refused.contains(reason), "{refused}");
        }
        let mut other = policy();
        other.references[0].reference = hex::encode(approval_reference(&[3; 16], 5));
        let refused = to_approve(DeviceId([1; 32]), &other, &ask(json!({"current": true})), OWN);
        assert!(refused.unwrap_err().reason.contains("contradicts itself"));
        other = policy();
        other.references[0].approver = None;
        let refused = to_approve(DeviceId([1; 32]), &other, &ask(json!({"current": true})), OWN);
        assert!(refused.unwrap_err().reason.contains("asks no approver"));
    }

    #[test]
    fn the_chips_word_stands_above_the_devices() {
        let what = made(json!({"current": true})).unwrap();
        let quoted = |selected, digest| Some(Registers { selected, digest: mayfly_protocol::ids::Hash(digest) });
        assert_eq!(whose_word(None, &what).ok(), Some("device"));
        assert_eq!(whose_word(quoted(1 << 7, what.digest), &what).ok(), Some("device"), "of other registers");
        assert_eq!(whose_word(quoted(1 << 7 | 1 << 11, what.digest), &what).ok(), Some("quote"));
        let refused = whose_word(quoted(1 << 7 | 1 << 11, [9; 32]), &what).unwrap_err();
        assert!(refused.reason.contains("than its chip has quoted"), "{}", refused.reason);
    }
}
