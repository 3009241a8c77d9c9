//! Operations in parts.
//!
//! Between two parts an operation keeps its chaining state. The key (of a token) stays for at most [`HOLD`] after its last use: then CBC,
//! CTR, and hash-then-sign let go of it and get it again with the next part, while GCM encryption and HMAC, whose state is as good as the
//! key, are over. Each part is judged by the ledger as it is then. Keys of sessions are in secret memory anyway and stay.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use mayfly_engine::Stream;
use mayfly_protocol::rules::{ReleaseQuery, Use};
use mayfly_protocol::{State, TokenId};
use mayfly_wire::{Kind, Parameters, Place, request};
use zeroize::Zeroizing;

use super::applications::LoginUser;
use super::caller::{Caller, Glance};
use super::ck::*;
use super::fail::{Done, Fail};
use super::io::{Io, Output, check_room};
use super::mechanisms;
use super::operations::{self, Material};
use super::quota::Held;
use super::reply::Reply;

/// How long an operation in parts holds a key of the ledger after its last part.
pub const HOLD: Duration = Duration::from_secs(5);
/// What an operation counts for beside its parameters and what it collects, bytes.
const OPERATION_BYTES: usize = 2048;
/// Secret memory of its chaining state and its copy of the key, bytes.
const SECRET_STATE_BYTES: usize = 256;

/// An operation under way.
#[derive(Debug)]
pub struct Operation {
    /// The token.
    pub token: TokenId,
    /// The session that began it.
    pub session: u64,
    /// It ends with the login.
    pub needs_login: bool,
    purpose: Use,
    material: Material,
    stream: Stream,
    /// When it last used its key; `None`: it holds none, or one of a session.
    held_since: Option<Instant>,
    /// The state of the ledger by which it was last judged; not kept alive for an operation that rests.
    judged_by: Weak<State>,
    /// It held a key that it could not let go of, and its time was over.
    lapsed: bool,
    /// The last output, which was longer than the caller took: he may ask again.
    left: Option<Zeroizing<Vec<u8>>>,
    /// Whether its input is collected until the end.
    collects: bool,
    /// What it counts for.
    memory: Held,
    _secrets: Held,
}

impl Operation {
    /// Lets go of the key if its time is over.
    pub fn suspend_if_due(&mut self, now: Instant) {
        let is_due = self.held_since.is_some_and(|since| now.saturating_duration_since(since) >= HOLD);
        if is_due {
            self.lapsed = !self.stream.suspend();
            if self.lapsed {
                // A digest of nothing in the place of what must go: dropping the old state wipes it.
                if let Ok(empty) = Stream::digest(mayfly_engine::Hash::Sha256) {
                    self.stream = empty;
                }
            }
            self.held_since = None;
        }
    }

    fn lock(operation: &Mutex<Self>) -> MutexGuard<'_, Self> {
        operation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges the next part, and gets the key again if it was let go.
    fn ready(&mut self, caller: &Caller<'_>) -> Done<()> {
        if self.needs_login && caller.application().login(&self.token) != Some(LoginUser::User) {
            // It was begun while another thread logged out.
            return Err(Fail::ruled(
                CKR_USER_NOT_LOGGED_IN,
                "login",
                "the login under which the operation began is over",
            ));
        }
        let now = Instant::now();
        self.suspend_if_due(now);
        if self.lapsed {
            let reason = "the operation paused for more than 5 s; its key was let go of";
            return Err(Fail::ruled(CKR_OPERATION_NOT_INITIALIZED, "hold", reason));
        }
        self.judge(caller)?;
        if self.stream.is_suspended() {
            let Self { material, stream, .. } = self;
            material.with(caller, |key| stream.resume(key))?;
        }
        if matches!(self.material, Material::Ledger { .. }) {
            self.held_since = Some(now);
        }
        Ok(())
    }

    /// Bans, changed policies and deletions end operations at their next part.
    fn judge(&mut self, caller: &Caller<'_>) -> Done<()> {
        let Material::Ledger { id, .. } = &self.material else { return Ok(()) };
        let state = caller.app.keys.state();
        if std::ptr::eq(Arc::as_ptr(&state), self.judged_by.as_ptr()) {
            return Ok(());
        }
        let key = state.keys.get(id).ok_or_else(|| Fail::new(CKR_KEY_HANDLE_INVALID, "the key is gone"))?;
        let query = ReleaseQuery {
            key: *id,
            generation: key.record.generation,
            epoch: key.record.epoch,
            purpose: self.purpose,
            requester: caller.app.keys.device(),
        };
        state.may_assemble(&query).map_err(crate::node::KeyError::from)?;
        self.judged_by = Arc::downgrade(&state);
        Ok(())
    }
}

/// C_EncryptInit and its like, for an operation that will come in parts.
///
/// # Errors
/// The codes of the PKCS#11 function of this kind.
pub fn begin(caller: &Caller<'_>, glance: &Glance, ask: &request::Begin<'_>) -> Done<Reply> {
    let purpose = operations::purpose(ask.kind)?;
    let mechanism = mechanisms::read(&ask.mechanism)?;
    let view = caller.key(glance, ask.object, ask.session, purpose, ask.mechanism.code)?;
    let material = Material::of(&view, purpose)?;
    let allowances = caller.application().allowances();
    let memory = allowances.memory.take(OPERATION_BYTES + parameter_bytes(&ask.mechanism.parameters))?;
    let secrets = allowances.secrets.take_secrets([SECRET_STATE_BYTES, material.secret_bytes()])?;
    let stream = material.with(caller, |key| match ask.kind {
        Kind::Encrypt => Stream::encrypt(&mechanism, key),
        Kind::Decrypt => Stream::decrypt(&mechanism, key),
        Kind::Sign => Stream::sign(&mechanism, key),
        _ => Stream::verify(&mechanism, key),
    })?;
    let held_since = matches!(material, Material::Ledger { .. }).then(Instant::now);
    let operation = Operation {
        token: glance.token,
        session: ask.session,
        needs_login: view.is_private(),
        purpose,
        material,
        stream,
        held_since,
        judged_by: Arc::downgrade(glance.state()),
        lapsed: false,
        left: None,
        collects: purpose == Use::Decrypt && matches!(mechanism, mayfly_engine::Mechanism::AesGcm(_)),
        memory,
        _secrets: secrets,
    };
    let number = caller.application().keep_operation(operation, &caller.app.applications.operation_numbers)?;
    Ok(Reply::Begun(number))
}

/// Bytes of the parameters that an operation keeps.
fn parameter_bytes(parameters: &Parameters<'_>) -> usize {
    match parameters {
        Parameters::Gcm(gcm) => gcm.iv.len() + gcm.aad.len(),
        _ => 0,
    }
}

/// One part. Any error but CKR_BUFFER_TOO_SMALL ends the operation.
///
/// # Errors
/// The codes of the PKCS#11 function of this kind.
pub fn update(caller: &Caller<'_>, io: &mut Io, ask: &request::Update<'_>) -> Done<Reply> {
    ending_on_error(caller, ask.operation, |operation| {
        let (input, mut output) = io.take(&ask.input)?;
        let length = operation.stream.update_len(input.len());
        check_room(length, &ask.output)?;
        operation.ready(caller)?;
        if operation.collects {
            operation.memory.grow(2 * input.len())?; // a vector that grows may have twice its length
        }
        let written = operation.stream.update(input, output.room(length)?)?;
        output.deliver(written, &ask.output)
    })
}

/// The end. The operation is over whatever the answer, CKR_BUFFER_TOO_SMALL excepted.
///
/// # Errors
/// The codes of the PKCS#11 function of this kind.
pub fn finish(caller: &Caller<'_>, io: &mut Io, ask: &request::Finish<'_>) -> Done<Reply> {
    let reply = ending_on_error(caller, ask.operation, |operation| {
        if operation.purpose == Use::Verify {
            let signature = io.small(&ask.signature)?;
            operation.ready(caller)?;
            operation.stream.finish_verify(&signature)?;
            return Ok(Reply::Output(0));
        }
        let (_, mut output) = io.take(&mayfly_wire::Data::empty())?;
        let Some(left) = operation.left.take() else {
            let room = output.room(operation.stream.finish_len())?;
            operation.ready(caller)?;
            // How long a padded plaintext is shows only now.
            let written = operation.stream.finish(room)?;
            let last = Zeroizing::new(room.get(..written).unwrap_or_default().to_vec());
            return hand_over(operation, &mut output, last, &ask.output);
        };
        hand_over(operation, &mut output, left, &ask.output)
    })?;
    caller.application().drop_operation(ask.operation);
    Ok(reply)
}

fn hand_over(
    operation: &mut Operation,
    output: &mut Output<'_>,
    last: Zeroizing<Vec<u8>>,
    place: &Place,
) -> Done<Reply> {
    if let Err(too_small) = check_room(last.len(), place) {
        operation.left = Some(last);
        return Err(too_small);
    }
    output.room(last.len())?.copy_from_slice(&last);
    output.deliver(last.len(), place)
}

/// Ends an operation early. No error where there is none.
pub fn cancel(caller: &Caller<'_>, number: u64) -> Reply {
    caller.application().drop_operation(number);
    Reply::Done
}

fn ending_on_error(caller: &Caller<'_>, number: u64, work: impl FnOnce(&mut Operation) -> Done<Reply>) -> Done<Reply> {
    let operation = caller.application().operation(number)?;
    let outcome = work(&mut Operation::lock(&operation));
    if outcome.as_ref().is_err_and(|fail| fail.code != CKR_BUFFER_TOO_SMALL) {
        caller.application().drop_operation(number);
    }
    outcome
}
