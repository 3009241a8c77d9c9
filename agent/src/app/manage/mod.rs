//! What the command line asks: one JSON object with a `command`, one JSON answer. `docs/formats/management.md` lists both.
//!
//! Root and the agent's own user may ask everything. Everybody else gets `status`, in which only keys and tokens that he may see are counted
//! and named, those tokens and keys themselves, and his own refusals. Secrets never pass here: no key bytes, no PINs.

pub mod attestation;
pub mod devices;
pub mod keys;
pub mod ledger;
pub mod names;
pub mod status;
pub mod tokens;
pub mod vault;

use serde::Deserialize;
use serde_json::{Value, json};

use super::caller::Caller;
use super::ck::{CKR_ARGUMENTS_BAD, CKR_DEVICE_ERROR, CKR_FUNCTION_NOT_SUPPORTED, CKR_FUNCTION_REJECTED};
use super::fail::{Done, Fail};
use super::reply::Reply;

/// Longest request, bytes.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest answer, bytes; it must fit a frame.
pub const ANSWER_BYTES_MAX: usize = 1_000_000;

/// A request.
#[derive(Debug, Deserialize)]
#[serde(tag = "command", deny_unknown_fields)]
enum Command {
    #[serde(rename = "status")]
    Status {},
    #[serde(rename = "why")]
    Why {},
    #[serde(rename = "peers")]
    Peers {},
    #[serde(rename = "key.list")]
    KeyList { token: Option<String> },
    #[serde(rename = "key.show")]
    KeyShow { key: String, token: Option<String> },
    #[serde(rename = "key.create")]
    KeyCreate(Box<keys::Create>),
    #[serde(rename = "key.delete")]
    KeyDelete { key: String, token: Option<String> },
    #[serde(rename = "token.list")]
    TokenList {},
    #[serde(rename = "device.list")]
    DeviceList {},
    #[serde(rename = "device.show")]
    DeviceShow { device: String },
    #[serde(rename = "vault.show")]
    VaultShow {},
    #[serde(rename = "vault.revoke")]
    VaultRevoke {},
    #[serde(rename = "vault.bench")]
    VaultBench { rounds: usize, commit: bool },
    #[serde(rename = "vault.policy")]
    VaultPolicy {},
    #[serde(rename = "vault.approve-pcr")]
    VaultApprovePcr(Box<vault::Approve>),
    #[serde(rename = "chip.show")]
    ChipShow {},
    #[serde(rename = "chip.prove")]
    ChipProve { challenge: String },
    #[serde(rename = "ledger.show")]
    LedgerShow { from: Option<u64>, count: Option<u64> },
    #[serde(rename = "ledger.verify")]
    LedgerVerify {},
}

/// Answers a request.
///
/// # Errors
/// CKR_ARGUMENTS_BAD for what is no request, CKR_FUNCTION_REJECTED for what this user may not ask, CKR_DEVICE_ERROR.
pub fn answer(caller: &Caller<'_>, text: &str) -> Done<Reply> {
    if text.len() > REQUEST_BYTES_MAX {
        return Err(Fail::new(CKR_ARGUMENTS_BAD, "the request is longer than 64 KiB"));
    }
    let answer = carry_out(caller, parse(text)?)?.to_string();
    if answer.len() > ANSWER_BYTES_MAX {
        let reason = "the answer is longer than a frame; ask for a part of it (--token, --from, --count)";
        return Err(Fail::new(CKR_DEVICE_ERROR, reason));
    }
    Ok(Reply::Managed(answer))
}

fn parse(text: &str) -> Done<Command> {
    serde_json::from_str(text).map_err(|error| {
        let unknown = error.to_string().contains("unknown variant");
        let code = if unknown { CKR_FUNCTION_NOT_SUPPORTED } else { CKR_ARGUMENTS_BAD };
        Fail::new(code, format!("not a request that this agent knows: {error}"))
    })
}

fn carry_out(caller: &Caller<'_>, command: Command) -> Done<Value> {
    let for_everybody = matches!(
        command,
        Command::Status {}
            | Command::Why {}
            | Command::KeyList { .. }
            | Command::KeyShow { .. }
            | Command::TokenList {}
    );
    if !for_everybody && !caller.principal.manages() {
        return Err(Fail::ruled(CKR_FUNCTION_REJECTED, "manager", "only root and the agent's own user may ask this"));
    }
    let needs_node = !matches!(command, Command::Status {} | Command::Why {} | Command::VaultShow {});
    if needs_node && !caller.app.keys.has_node() {
        let trouble = caller.app.keys.trouble();
        return Err(trouble.as_ref().map_or_else(|| Fail::new(CKR_DEVICE_ERROR, "the agent is starting"), Fail::from));
    }
    match command {
        Command::Status {} => Ok(status::show(caller)),
        Command::Why {} => Ok(why(caller)),
        Command::Peers {} => Ok(devices::peers(caller)),
        Command::KeyList { token } => keys::list(caller, token.as_deref()),
        Command::KeyShow { key, token } => keys::show(caller, &key, token.as_deref()),
        Command::KeyCreate(create) => keys::create(caller, &create),
        Command::KeyDelete { key, token } => keys::delete(caller, &key, token.as_deref()),
        Command::TokenList {} => Ok(tokens::list(caller)),
        Command::DeviceList {} => Ok(devices::list(caller)),
        Command::DeviceShow { device } => devices::show(caller, &device),
        Command::VaultShow {} => Ok(vault::show(caller)),
        Command::VaultRevoke {} => vault::revoke(caller),
        Command::VaultBench { rounds, commit } => vault::bench(caller, rounds, commit),
        Command::VaultPolicy {} => vault::policy(caller),
        Command::VaultApprovePcr(ask) => vault::approve(caller, &ask),
        Command::ChipShow {} => attestation::show(caller),
        Command::ChipProve { challenge } => attestation::prove(caller, &challenge),
        Command::LedgerShow { from, count } => ledger::show(caller, from, count),
        Command::LedgerVerify {} => ledger::verify(caller),
    }
}

/// The user's own refusals; to managers, everybody's.
fn why(caller: &Caller<'_>) -> Value {
    let whose = if caller.principal.manages() { None } else { Some(caller.principal.uid) };
    let standing = caller.app.keys.trouble();
    let standing = standing.map(|t| json!({ "state": t.state.word(), "reason": t.reason, "next": t.state.next() }));
    json!({ "refusals": caller.app.why.of(whose), "standing": standing })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        for (text, code) in [
            (r#"{"command":"status"}"#, None),
            (r#"{"command":"key.list"}"#, None),
            (r#"{"command":"key.list","token":"dev"}"#, None),
            (r#"{"command":"key.show","key":"k"}"#, None),
            (r#"{"command":"key.create","name":"k","type":"aes:256"}"#, None),
            (r#"{"command":"key.create","name":"k"}"#, Some(CKR_ARGUMENTS_BAD)),
            (r#"{"command":"key.create","name":"k","type":"aes:256","value":"00"}"#, Some(CKR_ARGUMENTS_BAD)),
            (r#"{"command":"key.show"}"#, Some(CKR_ARGUMENTS_BAD)),
            (r#"{"command":"vault.approve-pcr","device":"d","registers":{"7":"00"}}"#, None),
            (r#"{"command":"vault.approve-pcr","device":"d","registers":{"x":"00"}}"#, Some(CKR_ARGUMENTS_BAD)),
            (
                r#"{"command":"vault.approve-pcr","device":"d","policy":{"vault":"","generation":1,"references":[],"registers":{"7":null}}}"#,
                None,
            ),
            (r#"{"command":"status","verbose":1}"#, Some(CKR_ARGUMENTS_BAD)),
            (r#"{"command":"format.disk"}"#, Some(CKR_FUNCTION_NOT_SUPPORTED)),
            (r#"{}"#, Some(CKR_ARGUMENTS_BAD)),
            (r#"[]"#, Some(CKR_ARGUMENTS_BAD)),
            ("", Some(CKR_ARGUMENTS_BAD)),
            (&"[".repeat(5000), Some(CKR_ARGUMENTS_BAD)),
        ] {
            assert_eq!(parse(text).map_err(|fail| fail.code).err(), code, "{text:.80}");
        }
    }
}
