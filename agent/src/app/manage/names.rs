//! Keys, tokens and devices as people name them: by label, name or id.

use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::state::{KeyState, State};
use mayfly_protocol::{AuthorId, DeviceId, KeyId, TokenId};

use crate::app::caller::Caller;
use crate::app::ck::{CKR_ARGUMENTS_BAD, CKR_KEY_HANDLE_INVALID, CKR_TOKEN_NOT_PRESENT};
use crate::app::fail::{Done, Fail};
use crate::app::objects::make::label_of;

/// Keys that are named in a refusal at most.
const NAMED_MAX: usize = 8;

/// An author as people name it: an administrator's or a device's name, or the start of its id.
pub fn author(state: &State, author: &AuthorId) -> String {
    let mut administrators = state.genesis.iter().flat_map(|genesis| &genesis.administrators);
    match administrators.find(|a| public_key_id(&a.key.0) == author.0) {
        Some(administrator) => administrator.name.clone(),
        None => state.device_name(&DeviceId::from(*author)),
    }
}

/// Whether the caller may know of a key: managers of all that the device sees, others of those that they may use.
pub fn may_know(caller: &Caller<'_>, state: &State, key: &KeyState) -> bool {
    let device = caller.app.keys.device();
    let device_name = state.device_name(&device);
    let token = state.tokens.get(&key.record.token);
    let sees = token.is_some_and(|token| caller.sees(state, &key.record.token, token, &device_name));
    let managed = caller.principal.manages() && state.sees_token(&key.record.token, &device);
    managed || (sees && caller.principal.may_use(&key.record.policy.allow, &device_name))
}

/// The key with this label or id.
///
/// # Errors
/// CKR_KEY_HANDLE_INVALID: none, or none that the caller may know of; CKR_ARGUMENTS_BAD: several.
pub fn key(caller: &Caller<'_>, state: &State, name: &str, token: Option<TokenId>) -> Done<KeyState> {
    if name.is_empty() {
        return Err(Fail::new(CKR_ARGUMENTS_BAD, "an empty name is no key's; give a name or an id"));
    }
    let named = |id: &KeyId, key: &KeyState| id.to_string() == name || label_of(&key.attributes) == name;
    let found: Vec<_> = state
        .keys
        .iter()
        .filter(|(id, key)| !key.deleted && token.is_none_or(|token| key.record.token == token) && named(id, key))
        .filter(|(_, key)| may_know(caller, state, key))
        .take(NAMED_MAX)
        .collect();
    match found.as_slice() {
        [] => Err(Fail::new(
            CKR_KEY_HANDLE_INVALID,
            format!("there is no key '{name}' that you may use; see mayfly key list"),
        )),
        [(_, key)] => Ok((*key).clone()),
        several => {
            let ids: Vec<_> = several.iter().map(|(id, _)| id.to_string()).collect();
            Err(Fail::new(
                CKR_ARGUMENTS_BAD,
                format!("'{name}' is the name of several keys; give an id: {}", ids.join(", ")),
            ))
        }
    }
}

/// The token with this label or id; without a name, the only one that the caller sees.
///
/// # Errors
/// CKR_TOKEN_NOT_PRESENT, CKR_ARGUMENTS_BAD.
pub fn token(caller: &Caller<'_>, state: &State, name: Option<&str>) -> Done<TokenId> {
    let device = caller.app.keys.device();
    let device_name = state.device_name(&device);
    let seen = state.tokens.iter().filter(|(id, token)| {
        caller.sees(state, id, token, &device_name) || (caller.principal.manages() && state.sees_token(id, &device))
    });
    let mut found: Vec<_> = seen
        .filter(|(id, token)| name.is_none_or(|name| token.record.label == name || id.to_string() == name))
        .map(|(id, token)| (*id, token.record.label.clone()))
        .collect();
    match (found.pop(), found.is_empty(), name) {
        (Some((id, _)), true, _) => Ok(id),
        (None, _, Some(name)) => {
            Err(Fail::new(CKR_TOKEN_NOT_PRESENT, format!("there is no token '{name}' on this device")))
        }
        (None, _, None) => Err(Fail::new(
            CKR_TOKEN_NOT_PRESENT,
            "there is no token on this device; an administrator makes one: mayfly token create",
        )),
        (Some(_), false, _) => Err(Fail::new(CKR_ARGUMENTS_BAD, "there are several tokens; say which: --token LABEL")),
    }
}

/// The device with this name or id.
///
/// # Errors
/// CKR_ARGUMENTS_BAD.
pub fn device(state: &State, name: &str) -> Done<DeviceId> {
    // Ids first: names are chosen by those who join, and one might choose another's id.
    let by_id = name.parse().ok().filter(|id| state.devices.contains_key(id));
    by_id
        .or_else(|| state.device_by_name(name).map(|(id, _)| *id))
        .ok_or_else(|| Fail::new(CKR_ARGUMENTS_BAD, format!("there is no device '{name}'; see mayfly device list")))
}
