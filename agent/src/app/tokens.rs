//! Tokens: what there is, logging in and out, C_InitToken, C_InitPIN, C_SetPIN.
//!
//! A wrong PIN is CKR_PIN_INCORRECT and costs its giver time ([`super::throttle`]); nobody else waits, and no PIN is ever locked, so that
//! nobody can lock out another.

use mayfly_protocol::ids::Hash;
use mayfly_protocol::record::{self, PinUser, PinVerifier, TargetKind};
use mayfly_protocol::state::Token;
use mayfly_protocol::{Record, TokenId};
use mayfly_wire::{TokenFlags, User, request, slot_id, types::TokenInfo};

use super::applications::{Login, LoginUser};
use super::caller::{Caller, Glance};
use super::ck::*;
use super::fail::{Done, Fail};
use super::pins;
use super::reply::{Reply, TokenLine};
use super::throttle::Attempt;

/// Longest label of a token, bytes: what CK_TOKEN_INFO holds.
pub const LABEL_BYTES_MAX: usize = 32;
/// Name of the slot that is shown where no token is on the ledger, so that C_InitToken can make one.
pub const EMPTY_SLOT_NAME: &str = "mayfly";
/// Model of every token.
pub const MODEL: &str = "Mayfly";
/// Characters of a serial number (CK_TOKEN_INFO).
const SERIAL_CHARACTERS: usize = 16;

/// All tokens that the user may see on this device.
pub fn list(caller: &Caller<'_>) -> Reply {
    let (state, device) = (caller.app.keys.state(), caller.app.keys.device());
    let catalogue = caller.app.catalogues.of(&state);
    let state = catalogue.state();
    let device_name = state.device_name(&device);
    let seen = catalogue.slots().filter(|(_, id, token)| caller.sees(state, id, token, &device_name));
    let mut lines: Vec<TokenLine> = seen
        .map(|(slot, id, token)| TokenLine {
            info: TokenInfo {
                slot,
                flags: flags(caller, id, token, state.creates_in(id, &device)),
                object_version: token.version + caller.application().changes(),
                ..info()
            },
            label: token.record.label.clone(),
            serial: serial(id),
        })
        .collect();
    if state.tokens.is_empty() && caller.app.keys.has_node() {
        let flags = TokenFlags::PRESENT.with(TokenFlags::LOGIN_REQUIRED);
        let info = TokenInfo { slot: slot_id(EMPTY_SLOT_NAME), flags, ..info() };
        lines.push(TokenLine { info, label: String::new(), serial: "0".repeat(SERIAL_CHARACTERS) });
    }
    Reply::Tokens(lines)
}

fn info() -> TokenInfo<'static> {
    TokenInfo {
        slot: 0,
        flags: TokenFlags::default(),
        object_version: 0,
        pin_bytes_min: pins::PIN_BYTES_MIN as u16,
        pin_bytes_max: mayfly_wire::PIN_BYTES_MAX as u16,
        label: "",
        serial: "",
        model: MODEL,
    }
}

/// The serial number of a token: the beginning of its id, the same on every host.
pub fn serial(id: &TokenId) -> String {
    id.to_string().chars().take(SERIAL_CHARACTERS).collect()
}

fn flags(caller: &Caller<'_>, id: &TokenId, token: &Token, creates: bool) -> TokenFlags {
    let wrong = |security_officer| {
        caller.app.throttle.wrong_count(Attempt { uid: caller.account, token: *id, security_officer }) > 0
    };
    let (user_pin, so_pin) = (pins::is_set(token.user_pin.as_ref()), pins::is_set(token.so_pin.as_ref()));
    TokenFlags::PRESENT
        .with(TokenFlags::LOGIN_REQUIRED)
        .with_if(user_pin || so_pin, TokenFlags::INITIALISED)
        .with_if(user_pin, TokenFlags::USER_PIN_SET)
        .with_if(!creates, TokenFlags::WRITE_PROTECTED)
        .with_if(wrong(false), TokenFlags::USER_PIN_COUNT_LOW)
        .with_if(wrong(true), TokenFlags::SO_PIN_COUNT_LOW)
}

/// C_Login.
///
/// # Errors
/// CKR_PIN_INCORRECT and the other codes of C_Login.
pub fn log_in(caller: &Caller<'_>, glance: &Glance, ask: &request::Login<'_>) -> Done<Reply> {
    if !ask.name.is_empty() {
        return Err(Fail::new(CKR_USER_TYPE_INVALID, "tokens have one user, without a name"));
    }
    let wanted = match ask.user {
        User::SecurityOfficer => LoginUser::SecurityOfficer,
        User::User | User::ContextSpecific => LoginUser::User,
    };
    if ask.user == User::ContextSpecific {
        glance.need_user()?;
    } else if glance.login == Some(wanted) {
        return Err(Fail::new(CKR_USER_ALREADY_LOGGED_IN, "the application is logged in already"));
    } else if glance.login.is_some() {
        return Err(Fail::new(CKR_USER_ANOTHER_ALREADY_LOGGED_IN, "the application is logged in as another user"));
    }
    let token = glance.token_state()?;
    let verifier = match wanted {
        LoginUser::SecurityOfficer => token.so_pin.as_ref(),
        LoginUser::User => token.user_pin.as_ref(),
    };
    prove(caller, &glance.token, wanted, verifier, ask.pin.0)?;
    if ask.user == User::ContextSpecific {
        caller.application().allow_once(glance.token, ask.session);
    } else if let Some(verifier) = verifier {
        caller.application().log_in(glance.token, Login::new(wanted, verifier));
    }
    Ok(Reply::Ticket(caller.attached().ticket()))
}

/// Checks a PIN, after the wait that earlier wrong ones of this user earned.
fn prove(
    caller: &Caller<'_>,
    token: &TokenId,
    user: LoginUser,
    verifier: Option<&PinVerifier>,
    pin: &[u8],
) -> Done<()> {
    let Some(verifier) = verifier.filter(|verifier| pins::is_set(Some(verifier))) else {
        return Err(Fail::ruled(CKR_USER_PIN_NOT_INITIALIZED, "pin", "no PIN is set").next(
            "root or the agent's user sets it, on a device that may make keys in the token: `mayfly token pin LABEL`",
        ));
    };
    let security_officer = user == LoginUser::SecurityOfficer;
    let attempt = Attempt { uid: caller.account, token: *token, security_officer };
    match caller.app.throttle.attempt(attempt, || pins::is_right(verifier, pin)) {
        Ok(true) => Ok(()),
        Ok(false) => {
            let whose = if security_officer { "security officer's" } else { "user's" };
            let state = caller.app.keys.state();
            let label = state.tokens.get(token).map_or_else(String::new, |token| token.record.label.clone());
            let reason = format!("the {whose} PIN of token '{label}' is wrong");
            Err(Fail::ruled(CKR_PIN_INCORRECT, "pin", reason).next(
                "further wrong PINs make this user wait; the security officer sets a new user's PIN: `mayfly token pin LABEL`",
            ))
        }
        Err(Some(fail)) => Err(fail),
        Err(None) => {
            let reason = "too many wrong PINs were given by this user; no further one is looked at for now";
            Err(Fail::ruled(CKR_FUNCTION_FAILED, "pin-throttle", reason).next("wait a minute and try again"))
        }
    }
}

/// C_Logout.
///
/// # Errors
/// CKR_USER_NOT_LOGGED_IN.
pub fn log_out(caller: &Caller<'_>, glance: &Glance) -> Done<Reply> {
    if caller.application().log_out(&glance.token) {
        Ok(Reply::Ticket(caller.attached().ticket()))
    } else {
        Err(Fail::new(CKR_USER_NOT_LOGGED_IN, "the application is not logged in"))
    }
}

/// C_InitToken on a token of the ledger.
///
/// Whoever knows the security officer's PIN may; where none is set yet, in a development network anybody who sees the token, else only
/// who manages the agent. A token with keys or objects is emptied, which only a development network allows without administrators; but
/// who manages the agent sets the first PIN of a token, and nothing is emptied: he may make keys in it without any PIN, so it protects
/// nothing from him.
///
/// # Errors
/// CKR_PIN_INCORRECT, CKR_FUNCTION_REJECTED, CKR_TOKEN_WRITE_PROTECTED, CKR_DEVICE_ERROR.
pub fn init(caller: &Caller<'_>, glance: &Glance, ask: &request::InitToken<'_>) -> Done<Reply> {
    pins::check_length(ask.so_pin.0)?;
    glance.need_creator(&caller.app.keys.device())?;
    let token = glance.token_state()?;
    let dev = glance.state().policy().is_some_and(|policy| policy.dev);
    if pins::is_set(token.so_pin.as_ref()) {
        prove(caller, &glance.token, LoginUser::SecurityOfficer, token.so_pin.as_ref(), ask.so_pin.0)?;
    } else if !dev && !caller.principal.manages() {
        return Err(rejected("the token is not initialised yet; root or the agent's user does that"));
    }
    let label = label(ask.label)?;
    let is_first = !pins::is_set(token.so_pin.as_ref()) && caller.principal.manages();
    let contents = if is_first { Vec::new() } else { contents(glance) };
    if !dev && !contents.is_empty() {
        return Err(rejected("the token has keys; administrators delete them first"));
    }
    if label != token.record.label {
        if !dev {
            return Err(rejected("a token's label is changed by administrators"));
        }
        caller.app.keys.post(&record::Token { label: label.into(), ..(*token.record).clone() }.into())?;
    }
    for delete in contents {
        caller.app.keys.post(&delete)?;
    }
    set_pin(caller, glance.token, PinUser::SecurityOfficer, pins::make(ask.so_pin.0)?)?;
    if pins::is_set(token.user_pin.as_ref()) {
        set_pin(caller, glance.token, PinUser::User, PinVerifier::NONE)?;
    }
    caller.application().close_token(&glance.token);
    Ok(Reply::Done)
}

/// C_InitToken where no token is on the ledger: makes one, in a development network.
///
/// # Errors
/// CKR_SLOT_ID_INVALID, CKR_FUNCTION_REJECTED, CKR_DEVICE_ERROR.
pub fn init_first(caller: &Caller<'_>, ask: &request::InitToken<'_>) -> Done<Reply> {
    let state = caller.app.keys.state();
    if !state.tokens.is_empty() || ask.token != slot_id(EMPTY_SLOT_NAME) {
        return Err(Fail::new(CKR_SLOT_ID_INVALID, "there is no such slot"));
    }
    pins::check_length(ask.so_pin.0)?;
    if !state.policy().is_some_and(|policy| policy.dev) {
        return Err(rejected("tokens are made by administrators").next("mayfly token create LABEL"));
    }
    let mut id = [0; 32];
    mayfly_secmem::random(&mut id)?;
    let (id, label) = (TokenId(id), label(ask.label)?.to_owned());
    let token = record::Token { id, label, devices: Vec::new(), creators: Vec::new(), allow: Vec::new() };
    caller.app.keys.post(&token.into())?;
    set_pin(caller, id, PinUser::SecurityOfficer, pins::make(ask.so_pin.0)?)?;
    Ok(Reply::Done)
}

fn rejected(reason: &'static str) -> Fail {
    Fail::ruled(CKR_FUNCTION_REJECTED, "token-policy", reason)
}

fn label(label: &str) -> Done<&str> {
    let label = label.trim_end_matches([' ', '\0']);
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || label.chars().any(char::is_control) {
        return Err(Fail::new(CKR_ARGUMENTS_BAD, "a token's label has 1 to 32 bytes and no control characters"));
    }
    Ok(label)
}

/// Records that delete everything in the token.
fn contents(glance: &Glance) -> Vec<Record> {
    let (state, delete) = (glance.state(), |target, id| record::Delete { target, id: Hash(id) }.into());
    let keys = state.keys.iter().filter(|(_, key)| key.record.token == glance.token);
    let mut deletes: Vec<Record> = Vec::new();
    for (id, key) in keys {
        if !key.deleted {
            deletes.push(delete(TargetKind::Key, id.0));
        }
        if key.public_attributes.is_some() {
            deletes.push(delete(TargetKind::PublicKey, id.0));
        }
    }
    let objects = state.objects.iter().filter(|(_, object)| object.token == glance.token);
    deletes.extend(objects.map(|(id, _)| delete(TargetKind::Object, id.0)));
    deletes
}

fn set_pin(caller: &Caller<'_>, token: TokenId, user: PinUser, verifier: PinVerifier) -> Done<()> {
    caller.app.keys.post(&record::Pin { token, user, verifier }.into())?;
    Ok(())
}

/// C_InitPIN.
///
/// # Errors
/// CKR_USER_NOT_LOGGED_IN unless the security officer is logged in; CKR_PIN_LEN_RANGE, CKR_TOKEN_WRITE_PROTECTED, CKR_DEVICE_ERROR.
pub fn init_pin(caller: &Caller<'_>, glance: &Glance, ask: &request::InitPin<'_>) -> Done<Reply> {
    if glance.login != Some(LoginUser::SecurityOfficer) {
        return Err(Fail::ruled(CKR_USER_NOT_LOGGED_IN, "login", "the security officer sets the user's first PIN"));
    }
    pins::check_length(ask.pin.0)?;
    glance.need_creator(&caller.app.keys.device())?;
    set_pin(caller, glance.token, PinUser::User, pins::make(ask.pin.0)?)?;
    Ok(Reply::Done)
}

/// C_SetPIN: whoever knows the old PIN sets the new one.
///
/// # Errors
/// CKR_PIN_INCORRECT, CKR_PIN_LEN_RANGE, CKR_TOKEN_WRITE_PROTECTED, CKR_DEVICE_ERROR.
pub fn change_pin(caller: &Caller<'_>, glance: &Glance, ask: &request::SetPin<'_>) -> Done<Reply> {
    let (user, whose) = match ask.user {
        User::SecurityOfficer => (LoginUser::SecurityOfficer, PinUser::SecurityOfficer),
        User::User | User::ContextSpecific => (LoginUser::User, PinUser::User),
    };
    pins::check_length(ask.new.0)?;
    glance.need_creator(&caller.app.keys.device())?;
    let token = glance.token_state()?;
    let verifier = match user {
        LoginUser::SecurityOfficer => token.so_pin.as_ref(),
        LoginUser::User => token.user_pin.as_ref(),
    };
    prove(caller, &glance.token, user, verifier, ask.old.0)?;
    set_pin(caller, glance.token, whose, pins::make(ask.new.0)?)?;
    Ok(Reply::Done)
}
