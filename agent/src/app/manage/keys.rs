//! `key list`, `key show`, `key create`, `key delete`.

use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{self, Attribute, KeyPolicy, Origin, Residency, Schedule, ShardRecord, TargetKind};
use mayfly_protocol::rules::{Clocks, KeyType, Use};
use mayfly_protocol::state::{KeyState, State};
use mayfly_protocol::{DeviceId, TokenId};
use mayfly_wire::TemplateBuf;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::names;
use crate::app::caller::Caller;
use crate::app::ck::*;
use crate::app::fail::{Done, Fail};
use crate::app::objects::attributes::{class, put};
use crate::app::objects::ec;
use crate::app::objects::make::label_of;
use crate::app::objects::template::{Draft, Template, USAGE, uses_of};
use crate::app::principal::Accounts;
use crate::app::settings::{self, IV_DETERMINISTIC, IV_HEDGED, IV_RANDOM};
use crate::node::{Holders, Material, NewKey};

/// `key create`. What is left out is as the agent's settings say.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    /// CKA_LABEL.
    name: String,
    /// `aes:256`, `hmac:256`, `ec:p256`, …
    #[serde(rename = "type")]
    key_type: String,
    token: Option<String>,
    t: Option<u8>,
    n: Option<usize>,
    holders: Option<Vec<String>>,
    /// Devices; `["*"]`: every member.
    assemblers: Option<Vec<String>>,
    allow: Option<Vec<String>>,
    uses: Option<Vec<String>>,
    residency: Option<String>,
    vault_open: Option<String>,
    iv_modes: Option<Vec<String>>,
    /// Uses per second that the key is made for.
    rate: Option<u32>,
    /// CKA_ID, hexadecimal.
    id: Option<String>,
    extractable: Option<bool>,
}

#[derive(Debug, Serialize)]
struct KeyLine {
    name: String,
    id: String,
    token: String,
    #[serde(rename = "type")]
    key_type: String,
    t: u8,
    n: usize,
    #[serde(rename = "gen")]
    generation: u64,
    epoch: u64,
    uses: Vec<&'static str>,
    allow: Vec<String>,
    residency: String,
    vault_open: String,
    /// Uses per second that it was made for; null: not declared.
    rate: Option<u32>,
    iv_modes: Vec<&'static str>,
    assemblers: Vec<String>,
    created_ms: u64,
    origin: &'static str,
    below_target: bool,
    state: &'static str,
    shards: Vec<ShardLine>,
}

#[derive(Debug, Serialize)]
struct ShardLine {
    id: String,
    device: String,
    index: u32,
    accepted: bool,
    valid_from_ms: u64,
    valid_until_ms: Option<u64>,
    state: &'static str,
}

const IV_NAMES: [(u8, &str); 3] = [(IV_DETERMINISTIC, "deterministic"), (IV_HEDGED, "hedged"), (IV_RANDOM, "random")];

/// Keys that the caller may know of.
///
/// # Errors
/// CKR_TOKEN_NOT_PRESENT.
pub fn list(caller: &Caller<'_>, token: Option<&str>) -> Done<Value> {
    let state = caller.app.keys.state();
    let token = token.map(|name| names::token(caller, &state, Some(name))).transpose()?;
    let keys = state.keys.values().filter(|key| !key.deleted && token.is_none_or(|token| key.record.token == token));
    let mut known: Vec<_> = keys.filter(|key| names::may_know(caller, &state, key)).collect();
    known.sort_by_key(|key| key.position);
    Ok(known.into_iter().map(|key| json!(line(caller, &state, key))).collect())
}

/// One key.
///
/// # Errors
/// CKR_KEY_HANDLE_INVALID, CKR_ARGUMENTS_BAD.
pub fn show(caller: &Caller<'_>, name: &str, token: Option<&str>) -> Done<Value> {
    let state = caller.app.keys.state();
    let token = token.map(|name| names::token(caller, &state, Some(name))).transpose()?;
    let mut shown = json!(line(caller, &state, &names::key(caller, &state, name, token)?));
    shown["vault_open_costs"] = super::vault::costs(caller);
    Ok(shown)
}

fn line(caller: &Caller<'_>, state: &State, key: &KeyState) -> KeyLine {
    let record = &key.record;
    let now = caller.app.keys.clocks();
    KeyLine {
        name: label_of(&key.attributes),
        id: record.id.to_string(),
        token: state.tokens.get(&record.token).map_or_else(String::new, |token| token.record.label.clone()),
        key_type: record.key_type.clone(),
        t: record.t,
        n: record.shards.len(),
        generation: record.generation,
        epoch: record.epoch,
        uses: Use::ALL.into_iter().filter(|u| record.policy.uses & u.bit() != 0).map(Use::name).collect(),
        allow: record.policy.allow.clone(),
        residency: settings::residency_text(record.policy.residency),
        vault_open: settings::vault_opening_text(record.policy.vault_opening),
        rate: Some(record.policy.rate).filter(|rate| *rate != 0),
        iv_modes: IV_NAMES.iter().filter(|(bit, _)| record.policy.iv_modes & bit != 0).map(|(_, name)| *name).collect(),
        assemblers: record.assemblers.iter().map(|device| state.device_name(device)).collect(),
        created_ms: record.created_ms,
        origin: match record.origin {
            Origin::Dealt => "dealt",
            Origin::Imported => "imported",
        },
        below_target: key.below_target(),
        state: if key.deleted { "deleted" } else { "active" },
        shards: record.shards.iter().map(|shard| shard_line(state, key, shard, now)).collect(),
    }
}

fn shard_line(state: &State, key: &KeyState, shard: &ShardRecord, now: Option<Clocks>) -> ShardLine {
    ShardLine {
        id: shard.id.to_string(),
        device: state.device_name(&shard.device),
        index: shard.index,
        accepted: key.record.acceptances.iter().any(|acceptance| acceptance.device == shard.device),
        valid_from_ms: shard.valid_from_ms,
        valid_until_ms: Some(shard.valid_until_ms).filter(|until| *until != u64::MAX),
        state: shard_state(shard, now),
    }
}

/// Where a shard stands in time.
pub fn shard_state(shard: &ShardRecord, now: Option<Clocks>) -> &'static str {
    match now {
        None => "unknown",
        Some(now) if shard.is_valid(now) => "valid",
        Some(now) if now.local_ms.max(now.ledger_ms) > shard.valid_until_ms => "expired",
        Some(_) => "not yet valid",
    }
}

/// Makes a key and shows it.
///
/// # Errors
/// CKR_ARGUMENTS_BAD, CKR_TOKEN_WRITE_PROTECTED, CKR_FUNCTION_REJECTED, CKR_DEVICE_ERROR.
pub fn create(caller: &Caller<'_>, ask: &Create) -> Done<Value> {
    let state = caller.app.keys.state();
    let token = names::token(caller, &state, ask.token.as_deref())?;
    if !state.creates_in(&token, &caller.app.keys.device()) {
        let reason = "the token's policy does not let this device make keys in it";
        return Err(Fail::ruled(CKR_TOKEN_WRITE_PROTECTED, "creators", reason));
    }
    let label = ask.name.trim();
    if label.is_empty() || label.len() > record::NAME_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(bad("a key's name has 1 to 64 bytes, blanks around it not counted, and no control characters"));
    }
    if names::key(caller, &state, label, Some(token)).is_ok() {
        return Err(bad("a key of this name is in the token already; names of new keys must be free"));
    }
    let new = plan(caller, &state, token, label, ask)?;
    let id = caller.app.keys.create_key(new)?;
    let state = caller.app.keys.state();
    let made = state.keys.get(&id);
    let made =
        made.ok_or_else(|| Fail::new(CKR_DEVICE_ERROR, "the key is made, but this device does not see it yet"))?;
    let mut answer = json!(line(caller, &state, made));
    let mut warnings = unknown_users(&state, caller, &made.record.policy.allow);
    let wanted = caller.app.settings.keys.shares;
    let shards = made.record.shards.len();
    if ask.n.is_none() && ask.holders.is_none() && shards < wanted {
        warnings.push(format!("the network's default is {wanted} shards, but only {shards} holders are there"));
    }
    if !warnings.is_empty() {
        answer["warnings"] = warnings.into();
    }
    Ok(answer)
}

/// Rules that let nobody of this host in: most often a name that was mistyped.
fn unknown_users(state: &State, caller: &Caller<'_>, allow: &[String]) -> Vec<String> {
    let (accounts, device) = (Accounts::load(), state.device_name(&caller.app.keys.device()));
    let unknown = allow.iter().filter(|rule| !accounts.knows(rule, &device));
    unknown
        .map(|rule| {
            format!("{rule} is no account of this host (/etc/passwd, /etc/group), so it lets nobody here use the key")
        })
        .collect()
}

fn bad(reason: impl Into<std::borrow::Cow<'static, str>>) -> Fail {
    Fail::new(CKR_ARGUMENTS_BAD, reason)
}

fn plan(caller: &Caller<'_>, state: &State, token: TokenId, label: &str, ask: &Create) -> Done<NewKey> {
    let key_type = KeyType::parse(&ask.key_type);
    let key_type =
        key_type.ok_or_else(|| bad(format!("'{}' is no key type; try aes:256, hmac:256, ec:p256", ask.key_type)))?;
    let objects = objects(key_type, label, ask)?;
    let defaults = &caller.app.settings.keys;
    let mut policy = defaults.policy(allow(caller, ask), objects.uses)?;
    apply_words(&mut policy, ask)?;
    let ids = |names: &[String]| names.iter().map(|name| names::device(state, name)).collect::<Done<Vec<DeviceId>>>();
    let t = ask.t.unwrap_or(defaults.threshold);
    let mut listed = ask.holders.iter().flatten();
    while let Some(name) = listed.next() {
        if listed.clone().any(|other| other == name) {
            return Err(bad(format!("holder '{name}' is listed twice; each gets one shard")));
        }
    }
    let holders = match (&ask.holders, ask.n) {
        (Some(listed), n) if n.is_none_or(|n| n == listed.len()) => Holders::Listed(ids(listed)?),
        (Some(_), _) => return Err(bad("n is not the number of holders that are listed")),
        (None, Some(n)) => Holders::Count(n),
        (None, None) => defaults.holders(state.holders().len(), t)?,
    };
    let assemblers = match ask.assemblers.as_deref() {
        None => defaults.assemblers(state, caller.app.keys.device()),
        Some([all]) if all == "*" => {
            Some(state.devices.iter().filter(|(_, d)| d.is_member()).map(|(id, _)| *id).collect())
        }
        Some(listed) => Some(ids(listed)?),
    };
    let assemblers = assemblers.map(|mut list: Vec<DeviceId>| {
        list.sort_unstable();
        list.dedup();
        list
    });
    Ok(NewKey {
        token,
        key_type,
        material: objects.material,
        origin: Origin::Dealt,
        t,
        holders,
        assemblers,
        attributes: objects.attributes,
        public_attributes: objects.public_attributes,
        policy,
        schedule: Schedule { refresh_seconds: 0, refresh_uses: 0 },
        valid_until_ms: None,
    })
}

fn allow(caller: &Caller<'_>, ask: &Create) -> Vec<String> {
    ask.allow.clone().unwrap_or_else(|| vec![caller.principal.own_rule()])
}

fn apply_words(policy: &mut KeyPolicy, ask: &Create) -> Done<()> {
    if let Some(text) = &ask.residency {
        let residency: Option<Residency> = settings::parse_residency(text);
        policy.residency = residency.ok_or_else(|| bad("residency is per-operation or window:SECONDS (1 to 86400)"))?;
    }
    if let Some(text) = &ask.vault_open {
        let opening = settings::parse_vault_opening(text);
        policy.vault_opening = opening.ok_or_else(|| bad("vault opening is boot, per-release or window:SECONDS"))?;
    }
    policy.rate = ask.rate.unwrap_or(policy.rate);
    if let Some(modes) = &ask.iv_modes {
        policy.iv_modes = 0;
        for mode in modes {
            let bit = IV_NAMES.iter().find(|(_, name)| name == mode).map(|(bit, _)| *bit);
            policy.iv_modes |= bit.ok_or_else(|| bad("IV modes are hedged, deterministic and random"))?;
        }
    }
    Ok(())
}

/// The PKCS#11 objects of a key.
struct Objects {
    material: Material,
    attributes: Vec<Attribute>,
    public_attributes: Option<Vec<Attribute>>,
    uses: u32,
}

/// The same objects that C_GenerateKey and C_GenerateKeyPair would make.
fn objects(key_type: KeyType, label: &str, ask: &Create) -> Done<Objects> {
    let uses = uses(key_type, ask)?;
    let id = hex::decode(ask.id.as_deref().unwrap_or_default())
        .map_err(|_| bad("an id is hexadecimal, two digits for each byte"))?;
    let mut base = TemplateBuf::new();
    base.push_bool(CKA_TOKEN, true);
    base.push(CKA_LABEL, label.as_bytes());
    base.push(CKA_ID, &id);
    let mut own = TemplateBuf::new();
    own.push_bool(CKA_TOKEN, true);
    own.push(CKA_LABEL, label.as_bytes());
    own.push(CKA_ID, &id);
    own.push_bool(CKA_EXTRACTABLE, ask.extractable.unwrap_or(false));
    let is_pair = ec::curve(key_type).is_some();
    for (attribute, purpose) in USAGE {
        let has_it = !is_pair || !matches!(*purpose, Use::Encrypt | Use::Verify | Use::Wrap);
        if let Some(uses) = uses
            && has_it
        {
            own.push_bool(*attribute, uses & purpose.bit() != 0);
        }
    }
    let Some(curve) = ec::curve(key_type) else { return secret(key_type, &mut own, uses) };
    let (public, private) = (Template::read(base.as_list())?, Template::read(own.as_list())?);
    let half = |class, template| Draft::generated_half(class, CKM_EC_KEY_PAIR_GEN, key_type, template);
    let (mut public, private) = (half(class::PUBLIC, &public)?, half(class::PRIVATE, &private)?);
    let pair = mayfly_engine::generate_ec(curve)?;
    put(&mut public.attributes, CKA_EC_POINT, ec::point_der(key_type, &pair.public)?);
    Ok(Objects {
        material: Material::Wrapped(pair.private),
        uses: uses.unwrap_or_else(|| uses_of(&private.attributes, key_type)),
        attributes: private.attributes,
        public_attributes: Some(public.attributes),
    })
}

fn secret(key_type: KeyType, own: &mut TemplateBuf, uses: Option<u32>) -> Done<Objects> {
    own.push_u64(CKA_VALUE_LEN, key_type.derived_bytes().unwrap_or(0) as u64);
    let template = Template::read(own.as_list())?;
    let (mechanism, number) = match key_type {
        KeyType::Aes(_) => (CKM_AES_KEY_GEN, CKK_AES),
        _ => (CKM_GENERIC_SECRET_KEY_GEN, CKK_GENERIC_SECRET),
    };
    let draft = Draft::generated_secret(mechanism, number, &template)?;
    Ok(Objects {
        material: Material::Derived,
        uses: uses.unwrap_or_else(|| uses_of(&draft.attributes, key_type)),
        attributes: draft.attributes,
        public_attributes: None,
    })
}

/// Bits of the uses that were asked for; `None`: what the type allows.
fn uses(key_type: KeyType, ask: &Create) -> Done<Option<u32>> {
    let Some(words) = &ask.uses else { return Ok(None) };
    let able = able(key_type);
    let mut bits = if ask.extractable == Some(true) { Use::Export.bit() } else { 0 };
    for word in words {
        let purpose = Use::from_name(word);
        let purpose = purpose.ok_or_else(|| bad(format!("'{word}' is no use; see `mayfly key create --help`")))?;
        if !able.contains(&purpose) {
            let able: Vec<_> = able.iter().map(|purpose| purpose.name()).collect();
            return Err(bad(format!("a key of type {key_type} cannot {word}; it can {}", able.join(", "))));
        }
        bits |= purpose.bit();
    }
    if matches!(key_type, KeyType::Aes(_)) && bits & Use::Encrypt.bit() != 0 {
        bits |= Use::Iv.bit();
    }
    Ok(Some(bits))
}

/// What keys of this type can be used for.
fn able(key_type: KeyType) -> &'static [Use] {
    match key_type {
        _ if ec::curve(key_type).is_some() => &[Use::Sign, Use::Verify, Use::Derive],
        KeyType::Aes(_) => &Use::ALL,
        _ => &[Use::Sign, Use::Verify, Use::Derive, Use::Iv, Use::Export],
    }
}

/// Deletes a key, with its public half.
///
/// # Errors
/// CKR_KEY_HANDLE_INVALID, CKR_FUNCTION_REJECTED, CKR_DEVICE_ERROR.
pub fn delete(caller: &Caller<'_>, name: &str, token: Option<&str>) -> Done<Value> {
    let state = caller.app.keys.state();
    let token = token.map(|name| names::token(caller, &state, Some(name))).transpose()?;
    let key = names::key(caller, &state, name, token)?;
    let id = key.record.id;
    let delete = |target| caller.app.keys.post(&record::Delete { target, id: Hash(id.0) }.into());
    delete(TargetKind::Key)?;
    if key.public_attributes.is_some() {
        delete(TargetKind::PublicKey)?;
    }
    Ok(json!({ "deleted": id.to_string() }))
}
