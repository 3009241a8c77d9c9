//! `token list`.

use serde_json::{Value, json};

use crate::app::caller::Caller;
use crate::app::{pins, tokens};

/// Tokens that the caller may see on this device; for managers all that the device sees.
pub fn list(caller: &Caller<'_>) -> Value {
    let device = caller.app.keys.device();
    let catalogue = caller.app.catalogues.of(&caller.app.keys.state());
    let state = catalogue.state();
    let device_name = state.device_name(&device);
    let seen = catalogue.slots().filter(|(_, id, token)| {
        caller.sees(state, id, token, &device_name) || (caller.principal.manages() && state.sees_token(id, &device))
    });
    let names = |devices: &[mayfly_protocol::DeviceId]| -> Vec<String> {
        devices.iter().map(|device| state.device_name(device)).collect()
    };
    seen.map(|(slot, id, token)| {
        let keys = state.keys.values().filter(|key| key.record.token == *id && !key.deleted).count();
        json!({
            "label": token.record.label,
            "id": id.to_string(),
            "slot": slot,
            "serial": tokens::serial(id),
            "devices": names(&token.record.devices),
            "creators": names(&token.record.creators),
            "allow": token.record.allow,
            "user_pin_set": pins::is_set(token.user_pin.as_ref()),
            "so_pin_set": pins::is_set(token.so_pin.as_ref()),
            "keys": keys,
        })
    })
    .collect()
}
