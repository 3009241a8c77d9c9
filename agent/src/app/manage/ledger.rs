//! `ledger show`, `ledger verify`: this device's own copy, entry by entry.

use mayfly_protocol::ids::{Hash, ObjectId};
use mayfly_protocol::record::{Kind, PinUser, TargetKind};
use mayfly_protocol::{Entry, KeyId, Record, State};
use serde_json::{Value, json};

use super::{devices, names};
use crate::app::caller::Caller;
use crate::app::ck::CKR_DEVICE_ERROR;
use crate::app::fail::{Done, Fail};
use crate::app::objects::make::label_of;
use crate::app::pins;
use crate::moment::moment;

/// Entries that `ledger show` shows unless told otherwise.
pub const SHOWN: u64 = 20;
/// Most entries in one answer.
pub const SHOWN_MAX: u64 = 1000;
/// Grants of one record that are shown.
const GRANTS_SHOWN: usize = 4;
/// Entries that are read at once for verification.
const READ_AT_ONCE: usize = 1024;

/// Entries, newest last.
///
/// # Errors
/// CKR_DEVICE_ERROR: the copy cannot be read.
pub fn show(caller: &Caller<'_>, from: Option<u64>, count: Option<u64>) -> Done<Value> {
    let (status, state) = (caller.app.keys.ledger(), caller.app.keys.state());
    let count = count.unwrap_or(SHOWN).min(SHOWN_MAX);
    let from = from.unwrap_or_else(|| status.tip.size.saturating_sub(count));
    let entries = caller.app.keys.entries(from, count as usize).map_err(unreadable)?;
    let lines: Vec<Value> =
        entries.iter().map(|(index, time_ms, bytes)| line(&state, *index, *time_ms, bytes)).collect();
    Ok(json!({
        "size": status.tip.size,
        "root": hex::encode(status.tip.root.0),
        "time_ms": state.time_ms,
        "effective_size": status.effective.size,
        "entries": lines,
    }))
}

fn unreadable(why: String) -> Fail {
    Fail::ruled(CKR_DEVICE_ERROR, "storage", format!("this device's copy of the ledger cannot be read: {why}"))
}

fn line(state: &State, index: u64, time_ms: u64, bytes: &[u8]) -> Value {
    let Ok(entry) = Entry::decode(bytes) else {
        return json!({ "index": index, "time_ms": time_ms, "kind": "unreadable" });
    };
    let kind = Kind::from_number(entry.kind);
    let record = kind.and_then(|kind| Record::decode(kind, &entry.payload).ok());
    json!({
        "index": index,
        "time_ms": time_ms,
        "kind": kind.map_or_else(|| entry.kind.to_string(), |kind| format!("{kind:?}").to_uppercase()),
        "author": names::author(state, &entry.author),
        "id": entry.id().to_string(),
        "summary": record.map_or_else(String::new, |record| summary(state, &record)),
    })
}

/// A record in one line, for people.
fn summary(state: &State, record: &Record) -> String {
    let device = |id| state.device_name(id);
    let token =
        |id| state.tokens.get(id).map_or_else(|| "unknown token".to_owned(), |t| format!("token {}", t.record.label));
    match record {
        Record::Genesis(r) => format!("network {} with {} administrators", r.name, r.administrators.len()),
        Record::Invite(r) => format!("invitation until {}", moment(r.not_after_ms)),
        Record::Join(r) => format!("device {} asks to join, vault {}", r.name, r.vault),
        Record::Approve(r) => format!("device {} is approved", device(&r.device)),
        Record::Role(r) => {
            let roles: Vec<_> = r.roles.iter().map(devices::role).collect();
            format!(
                "roles of {}: {}",
                device(&r.device),
                if roles.is_empty() { "none".into() } else { roles.join(", ") }
            )
        }
        Record::Delegate(r) => format!("session {} of its author until {}", r.start_counter, moment(r.not_after_ms)),
        Record::Token(r) => format!("token {}", r.label),
        Record::Pin(r) => {
            let whose = match r.user {
                PinUser::SecurityOfficer => "security officer's",
                PinUser::User => "user's",
            };
            let change = if pins::is_set(Some(&r.verifier)) { "is set" } else { "is taken back" };
            format!("{whose} PIN of {} {change}", token(&r.token))
        }
        Record::Key(r) => {
            let (name, holders) =
                (label_of(&r.attributes), r.shards.iter().map(|s| device(&s.device)).collect::<Vec<_>>());
            format!("key {name}, {}, {} of {} shards: {}", r.key_type, r.t, r.shards.len(), holders.join(", "))
        }
        Record::Attributes(r) => format!("{} attributes of {}", r.set.len(), target(state, r.target, &r.id)),
        Record::Delete(r) => format!("{} is deleted", target(state, r.target, &r.id)),
        Record::Object(r) => format!("object {} in {}", label_of(&r.attributes), token(&r.token)),
        Record::Grant(r) => {
            let shown = r.items.iter().take(GRANTS_SHOWN).map(|item| {
                let key = target(state, TargetKind::Key, &Hash(item.key.0));
                format!("{} may use {key} {} times", device(&item.assembler), item.uses_max)
            });
            let mut text = shown.collect::<Vec<_>>().join("; ");
            if r.items.len() > GRANTS_SHOWN {
                text.push_str(&format!("; and {} more grants", r.items.len() - GRANTS_SHOWN));
            }
            text
        }
        Record::Ban(r) => format!("device {} is banned: {}", device(&r.device), r.reason),
        Record::Unban(r) => format!("device {} is trusted again", device(&r.device)),
        Record::Attest(r) => format!("the chip of {} proved itself: {}", device(&r.device), r.maker),
        Record::VaultGeneration(r) => format!("the vault of its author is at generation {}", r.generation),
        Record::PcrApproval(r) => format!("registers of {} are approved", device(&r.device)),
        Record::Alert(r) => format!("alert about {}: {}", device(&r.about), r.text),
    }
}

/// What a record is about, by name where there is one: deleted keys keep theirs.
fn target(state: &State, kind: TargetKind, id: &Hash) -> String {
    let (what, name) = match kind {
        TargetKind::Key => ("key", state.keys.get(&KeyId(id.0)).map(|key| label_of(&key.attributes))),
        TargetKind::PublicKey => ("public key", state.keys.get(&KeyId(id.0)).map(|key| label_of(&key.attributes))),
        TargetKind::Object => ("object", state.objects.get(&ObjectId(id.0)).map(|object| label_of(&object.attributes))),
    };
    let short = hex::encode(&id.0[..4]);
    match name.filter(|name| !name.is_empty()) {
        Some(name) => format!("{what} {name} ({short})"),
        None => format!("{what} {short}"),
    }
}

/// Judges every entry of this device's copy again, from the first, and compares the root with the one in use.
///
/// # Errors
/// CKR_DEVICE_ERROR: it cannot be read, or does not hold.
pub fn verify(caller: &Caller<'_>) -> Done<Value> {
    let status = caller.app.keys.ledger();
    let mut state = State::default();
    while state.size() < status.tip.size {
        let left = (status.tip.size - state.size()).min(READ_AT_ONCE as u64) as usize;
        let entries = caller.app.keys.entries(state.size(), left).map_err(unreadable)?;
        if entries.is_empty() {
            return Err(unreadable(format!("it ends after {} of {} entries", state.size(), status.tip.size)));
        }
        for (index, time_ms, bytes) in entries {
            let judged = state.apply(time_ms, &bytes);
            judged.map_err(|why| does_not_hold(&format!("entry {index} is not valid: {why}")))?;
            if state.size() == status.effective.size && state.head() != status.effective {
                return Err(does_not_hold("the witnessed head is not the root over its entries"));
            }
        }
    }
    if state.head() != status.tip {
        return Err(does_not_hold("the root over the entries is not the one in use"));
    }
    let witnesses: Vec<_> = state.witnesses().iter().map(|witness| state.device_name(witness)).collect();
    Ok(json!({
        "size": state.size(),
        "root": hex::encode(state.head().root.0),
        "verified": true,
        "checked_entries": state.size(),
        "effective_size": status.effective.size,
        "witnesses": witnesses,
    }))
}

fn does_not_hold(what: &str) -> Fail {
    Fail::ruled(CKR_DEVICE_ERROR, "ledger-verify", format!("this device's copy of the ledger does not hold: {what}"))
        .next("stop the agent, keep the folder as evidence, and fetch the ledger anew")
}
