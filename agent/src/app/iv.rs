//! Synthetic IVs: asked of a key on the ledger, derived, explained; the key is gone before the answer is sent.

use std::time::{Duration, Instant};

use mayfly_crypto::iv::{self, Mode, RND_BYTES};
use mayfly_protocol::rules::Use;
use mayfly_protocol::state::KeyState;
use mayfly_wire::{IvMode, ObjectRef, request};
use serde::Serialize;

use super::applications::LoginUser;
use super::caller::{Caller, Glance};
use super::ck::*;
use super::fail::{Done, Fail};
use super::io::Io;
use super::manage::names;
use super::objects::make::label_of;
use super::objects::view::View;
use super::reply::Reply;
use super::settings::{IV_DETERMINISTIC, IV_HEDGED, IV_RANDOM};
use crate::node::AssemblyReport;

/// Shortest IV, bytes: below 96 bits two of 2^32 would collide too easily.
pub const IV_BYTES_MIN: usize = 12;

/// What `--explain` shows.
#[derive(Debug, Serialize)]
struct Explanation {
    key: String,
    mode: &'static str,
    length: usize,
    ledger: LedgerSeen,
    steps: Vec<Step>,
    holders: Vec<Holder>,
}

/// The head that the key was judged by.
#[derive(Debug, Serialize)]
struct LedgerSeen {
    size: u64,
    root: String,
}

/// One step.
#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    us: u64,
    text: String,
}

/// One holder.
#[derive(Debug, Serialize)]
struct Holder {
    device: String,
    answered: bool,
    us: u64,
}

/// Makes an IV.
///
/// # Errors
/// CKR_KEY_HANDLE_INVALID, CKR_KEY_FUNCTION_NOT_PERMITTED, CKR_MECHANISM_PARAM_INVALID, CKR_DEVICE_ERROR.
pub fn make(caller: &Caller<'_>, glance: Option<&Glance>, io: &mut Io, ask: &request::Iv<'_>) -> Done<Reply> {
    let start = Instant::now();
    let length = usize::from(ask.length);
    if !(IV_BYTES_MIN..=iv::IV_BYTES_MAX).contains(&length) {
        return Err(Fail::new(CKR_MECHANISM_PARAM_INVALID, "an IV has 12 to 32 bytes"));
    }
    let state = caller.app.keys.state();
    let key = match (ask.key, glance) {
        (ObjectRef::Handle(handle), Some(glance)) => by_handle(caller, glance, handle)?,
        (ObjectRef::Handle(_), None) => return Err(Fail::new(CKR_KEY_HANDLE_INVALID, "there is no such key")),
        (ObjectRef::Name(name), _) => {
            let key = names::key(caller, &state, name, glance.map(|glance| glance.token))?;
            may_use_by_name(caller, &key)?;
            key
        }
    };
    let mode = allowed_mode(&key, ask)?;
    let queried = start.elapsed();
    let (plaintext, _) = io.take(&ask.plaintext)?;
    let mut rnd = [0; RND_BYTES];
    let rnd: &[u8] = if mode == Mode::Hedged {
        mayfly_secmem::random(&mut rnd)?;
        &rnd
    } else {
        &[]
    };
    let mut out = vec![0; length];
    let made = derive(caller, &key, mode, ask, rnd, plaintext, &mut out)?;
    let explanation = if ask.explain {
        let told = explain(&key, mode, length, queried, start.elapsed(), &made, &state.head());
        serde_json::to_string(&told).unwrap_or_default()
    } else {
        String::new()
    };
    Ok(Reply::Iv { iv: out, explanation })
}

/// A key that is named, not found in a session: its policy must let the user in, and a private one wants a login, from which managers of
/// the agent are free: the command line has none.
fn may_use_by_name(caller: &Caller<'_>, key: &KeyState) -> Done<()> {
    let view = View::Key(key);
    caller.may_use(&view)?;
    if caller.principal.manages() {
        return Ok(());
    }
    let login = caller.application().login(&key.record.token);
    if view.is_private() && login != Some(LoginUser::User) {
        return Err(Fail::ruled(CKR_USER_NOT_LOGGED_IN, "login", "the key is private: log in to its token first"));
    }
    if view.flag(CKA_ALWAYS_AUTHENTICATE) {
        let reason =
            "the key wants the PIN before each use (CKA_ALWAYS_AUTHENTICATE), which asking by name cannot give";
        return Err(Fail::ruled(CKR_USER_NOT_LOGGED_IN, "login", reason));
    }
    Ok(())
}

fn by_handle(caller: &Caller<'_>, glance: &Glance, handle: u64) -> Done<KeyState> {
    match caller.key(glance, handle, 0, Use::Iv, CK_UNAVAILABLE_INFORMATION)? {
        View::Key(key) => Ok(key.clone()),
        _ => Err(Fail::new(CKR_KEY_TYPE_INCONSISTENT, "IVs are made by keys of the token")),
    }
}

fn allowed_mode(key: &KeyState, ask: &request::Iv<'_>) -> Done<Mode> {
    let (mode, bit) = match ask.mode {
        IvMode::Hedged => (Mode::Hedged, IV_HEDGED),
        IvMode::Deterministic => (Mode::Deterministic, IV_DETERMINISTIC),
        IvMode::Random => (Mode::Random, IV_RANDOM),
    };
    if key.record.policy.iv_modes & bit == 0 {
        let reason = format!("the key's policy does not allow {} IVs", mode_name(mode));
        return Err(Fail::ruled(CKR_KEY_FUNCTION_NOT_PERMITTED, "iv-mode", reason)
            .next("modes are chosen when a key is made (mayfly key create --iv-modes)"));
    }
    if mode == Mode::Deterministic && ask.context.is_empty() {
        let reason = "deterministic IVs need a context: equal inputs in one context give equal IVs";
        return Err(Fail::ruled(CKR_MECHANISM_PARAM_INVALID, "iv-context", reason));
    }
    Ok(mode)
}

/// How it went.
struct Made {
    report: Option<AssemblyReport>,
    derive: Duration,
}

/// Random mode takes nothing from the key, so none is put together for it; that the policy lets the key be used so is asked all the same.
fn derive(
    caller: &Caller<'_>,
    key: &KeyState,
    mode: Mode,
    ask: &request::Iv<'_>,
    rnd: &[u8],
    plaintext: &[u8],
    out: &mut [u8],
) -> Done<Made> {
    if mode == Mode::Random {
        if key.record.policy.uses & Use::Iv.bit() == 0 {
            return Err(Fail::ruled(CKR_KEY_FUNCTION_NOT_PERMITTED, "policy", "the key's policy does not allow 'iv'"));
        }
        mayfly_secmem::random(out)?;
        return Ok(Made { report: None, derive: Duration::ZERO });
    }
    let mut done = None;
    caller.app.keys.with_key(&key.record.id, Use::Iv, &mut |assembled| {
        let start = Instant::now();
        let result = match assembled.iv_key() {
            Some(k_iv) => iv::synthetic(k_iv, mode, ask.context, rnd, ask.aad, plaintext, out),
            None => Err(iv::IvError::IvLength(0)),
        };
        done = Some(result.map(|()| Made { report: Some(assembled.report().clone()), derive: start.elapsed() }));
    })?;
    let broken = |text: String| Fail::ruled(CKR_DEVICE_ERROR, "iv", text);
    done.ok_or_else(|| broken("the key was not lent".into()))?.map_err(|error| broken(error.to_string()))
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Deterministic => "deterministic",
        Mode::Hedged => "hedged",
        Mode::Random => "random",
    }
}

fn explain(
    key: &KeyState,
    mode: Mode,
    length: usize,
    queried: Duration,
    whole: Duration,
    made: &Made,
    head: &mayfly_protocol::Head,
) -> Explanation {
    let us = |time: Duration| time.as_micros() as u64;
    let step = |step, time, text| Step { step, us: us(time), text };
    let (record, name) = (&key.record, label_of(&key.attributes));
    let mut steps = vec![step(
        "query the ledger",
        queried,
        format!(
            "key {name}: generation {}, epoch {}, {} of {} shares, by the witnessed head of {} entries",
            record.generation,
            record.epoch,
            record.t,
            record.shards.len(),
            head.size
        ),
    )];
    match &made.report {
        None => steps.push(step(
            "derive",
            whole.saturating_sub(queried),
            "random bytes of the kernel; no key was needed".into(),
        )),
        Some(report) => steps.extend(steps_of(report, mode, length, whole.saturating_sub(queried), made.derive)),
    }
    let shares = made.report.iter().flat_map(|report| &report.shares);
    let holders = shares.map(|share| Holder { device: share.device.clone(), answered: true, us: us(share.after) });
    let lied = made.report.iter().flat_map(|report| &report.liars);
    let liars = lied.map(|device| Holder { device: device.clone(), answered: false, us: 0 });
    Explanation {
        key: if name.is_empty() { record.id.to_string() } else { name },
        mode: mode_name(mode),
        length,
        ledger: LedgerSeen { size: head.size, root: hex::encode(head.root.0) },
        steps,
        holders: holders.chain(liars).collect(),
    }
}

fn steps_of(report: &AssemblyReport, mode: Mode, length: usize, rest: Duration, derive: Duration) -> [Step; 4] {
    let us = |time: Duration| time.as_micros() as u64;
    let step = |step, time, text| Step { step, us: us(time), text };
    let names: Vec<_> = report
        .shares
        .iter()
        .map(|s| if s.own { format!("{} (this device)", s.device) } else { s.device.clone() })
        .collect();
    let asked = report.shares.iter().map(|share| share.after).max().unwrap_or_default();
    [
        step("ask the holders", asked, format!("shares of {}, each sealed to this one request", names.join(", "))),
        step(
            "reconstruct",
            report.took.saturating_sub(asked),
            format!("{} shares combined in locked memory; the key commitment on the ledger holds", report.t),
        ),
        step(
            "derive",
            derive,
            format!("{length} bytes, {} mode: HMAC-SHA-256 under a key for IVs alone", mode_name(mode)),
        ),
        step(
            "destroy",
            rest.saturating_sub(report.took + derive),
            "shares, root, derived key, stack and registers are overwritten; nothing of the key is left here".into(),
        ),
    ]
}
