//! One connection: request by request.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use mayfly_wire::{Data, PROTOCOL_VERSION, Request, ResponseFlags, SharedBuffer, Ticket, request};

use super::App;
use super::applications::{Allowances, Identity, Login, LoginUser};
use super::caller::{Caller, Glance};
use super::ck::*;
use super::cpu::Follow;
use super::fail::{Done, Fail};
use super::io::Io;
use super::objects::template::Template;
use super::objects::view::View;
use super::objects::{change, find, make};
use super::principal::{Accounts, Peer, Principal};
use super::reply::{Head, Reply};
use super::{iv, manage, operations, streams, tokens};

/// A connection's state between two requests.
#[derive(Debug)]
pub struct Client<'a> {
    app: &'a App,
    peer: Peer,
    /// `None` until Hello.
    caller: Option<Caller<'a>>,
    /// Data of operations.
    pub io: Io,
    follow: Follow,
}

/// What every request carries beside its body.
#[derive(Debug, Clone, Copy)]
pub struct Envelope<'f> {
    /// The request's number.
    pub request_id: u64,
    /// The caller's CPU.
    pub cpu: Option<u32>,
    /// The application's ticket; may be empty after Hello.
    pub ticket: Ticket<'f>,
    /// Whether all of the frame lies in secret memory.
    pub is_secret: bool,
}

impl<'a> Client<'a> {
    /// A connection whose other end the kernel has named.
    pub fn new(app: &'a App, peer: Peer) -> Self {
        let io = Io::new(app.memory.of(peer.account));
        Self { app, peer, caller: None, io, follow: Follow::default() }
    }

    /// The user at the other end.
    pub fn uid(&self) -> u32 {
        self.peer.uid
    }

    /// The client has been idle for a while.
    pub fn rest(&mut self) {
        if let Some(caller) = &mut self.caller {
            caller.rest();
        }
        self.follow.let_loose();
    }

    /// Serves one request. Never panics on what it says.
    pub fn serve(&mut self, envelope: Envelope<'_>, request: &Request<'_>) -> (Done<Reply>, Head) {
        let data = data_of(request).into_iter().flatten();
        self.io.settle(data.clone());
        let mut head = Head { request_id: envelope.request_id, ..Head::default() };
        let outcome = self.dispatch(envelope, request, &mut head);
        self.io.consumed(data);
        if let Err(fail) = &outcome {
            self.note(request, fail);
        }
        (outcome, head)
    }

    fn dispatch(&mut self, envelope: Envelope<'_>, request: &Request<'_>, head: &mut Head) -> Done<Reply> {
        if let Request::Hello(hello) = request {
            return self.hello(envelope.ticket, hello);
        }
        let Self { caller, io, follow, .. } = self;
        let caller = caller.as_mut().ok_or_else(|| Fail::new(CKR_GENERAL_ERROR, "the first request must be Hello"))?;
        if !envelope.ticket.0.is_empty() && !caller.attached().owns(envelope.ticket.0) {
            return Err(Fail::new(CKR_GENERAL_ERROR, "the ticket is of another application"));
        }
        if carries_secrets(request) && !envelope.is_secret {
            return Err(Fail::new(CKR_ARGUMENTS_BAD, "a request with a PIN or a key is longer than 4 KiB"));
        }
        if !caller.app.keys.has_node() && needs_node(request) {
            let trouble = caller.app.keys.trouble();
            return Err(trouble
                .as_ref()
                .map_or_else(|| Fail::new(CKR_DEVICE_ERROR, "the agent is starting"), Fail::from));
        }
        place_thread(follow, envelope.cpu, request);
        let glance = match token_of(request) {
            Some(slot) => match caller.glance(slot) {
                Ok(glance) => Some(glance),
                Err(missing) => return without_token(caller, io, request).unwrap_or(Err(missing)),
            },
            None => None,
        };
        let outcome = match &glance {
            Some(glance) => with_token(caller, glance, io, follow, envelope.cpu, request),
            None => without_token(caller, io, request).unwrap_or_else(|| Err(not_offered())),
        };
        if let Some(glance) = glance {
            let now = if changes_view(request) { caller.glance(glance.slot).unwrap_or(glance) } else { glance };
            (head.object_version, head.flags) = (now.object_version, now.flags());
        }
        if matches!(outcome, Ok(Reply::LargeBuffer(_))) {
            head.flags = ResponseFlags::CARRIES_FD;
        }
        outcome
    }

    fn hello(&mut self, ticket: Ticket<'_>, hello: &request::Hello<'_>) -> Done<Reply> {
        if !(hello.version_min..=hello.version_max).contains(&PROTOCOL_VERSION) {
            let reason = format!("the agent speaks version {PROTOCOL_VERSION} of the application socket");
            return Err(Fail::new(CKR_GENERAL_ERROR, reason));
        }
        if self.caller.is_some() {
            return Err(Fail::new(CKR_GENERAL_ERROR, "Hello was said already"));
        }
        let principal = Principal::resolve(&self.peer, &Accounts::load(), self.app.uid);
        let Peer { uid, pid, start, .. } = self.peer;
        let state = self.app.keys.state();
        let still_good = |token: &_, login: &Login| {
            let pin = state.tokens.get(token).and_then(|token| match login.user {
                LoginUser::SecurityOfficer => token.so_pin.as_ref(),
                LoginUser::User => token.user_pin.as_ref(),
            });
            pin.is_some_and(|verifier| Login::new(login.user, verifier) == *login)
        };
        let account = self.peer.account;
        let allowances = Allowances { secrets: self.app.secrets.of(account), memory: self.app.memory.of(account) };
        let attached = self.app.applications.attach(Identity { uid, pid, start }, ticket.0, allowances, still_good);
        let (resumed, ticket) = (attached.resumed, attached.ticket());
        self.caller = Some(Caller::new(self.app, principal, account, attached));
        let instance = self.app.applications.instance();
        Ok(Reply::Hello { version: PROTOCOL_VERSION, resumed, instance, ticket })
    }

    /// Keeps a refusal for `mayfly why`.
    fn note(&self, request: &Request<'_>, fail: &Fail) {
        if fail.detail.is_some() {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
            self.app.why.keep(self.peer.uid, operation_name(request), self.key_name(request), fail, now);
        }
    }

    /// The label of the key that a request names, if this user may know it.
    fn key_name(&self, request: &Request<'_>) -> Option<String> {
        let caller = self.caller.as_ref()?;
        let (slot, object) = match request {
            Request::Operate(ask) => (ask.token, ask.object),
            Request::Begin(ask) => (ask.token, ask.object),
            Request::Attributes(ask) => (ask.token, ask.object),
            Request::CopyObject(ask) => (ask.token, ask.object),
            Request::SetAttributes(ask) => (ask.token, ask.object),
            Request::DestroyObject(ask) => (ask.token, ask.object),
            Request::Iv(ask) => match ask.key {
                mayfly_wire::ObjectRef::Name(name) => return Some(name.to_owned()),
                mayfly_wire::ObjectRef::Handle(handle) => (ask.token, handle),
            },
            _ => return None,
        };
        let catalogue = self.app.catalogues.of(&self.app.keys.state());
        let (token, _) = catalogue.in_slot(slot)?;
        let view = View::of(catalogue.state(), catalogue.shelf(token)?.get(object)?)?;
        let device_name = catalogue.state().device_name(&self.app.keys.device());
        // Names of keys are public to devices, not to every user of one.
        let may_know = match &view {
            View::Key(key) => caller.principal.may_use(&key.record.policy.allow, &device_name),
            _ => true,
        };
        (may_know || caller.principal.manages()).then(|| view.label())
    }
}

/// Requests that make no sense while the vault does not open; the rest tell applications that there is no token, and people why.
fn needs_node(request: &Request<'_>) -> bool {
    !matches!(request, Request::Tokens | Request::LargeBuffer(_) | Request::Manage(_))
}

/// Requests whose frames must lie in secret memory: whatever can hold a PIN or a key.
fn carries_secrets(request: &Request<'_>) -> bool {
    match request {
        Request::Login(_) | Request::InitToken(_) | Request::InitPin(_) | Request::SetPin(_) => true,
        Request::CreateObject(ask) => holds_key(ask.template.iter()),
        _ => false,
    }
}

fn holds_key<'t>(mut template: impl Iterator<Item = mayfly_wire::Attribute<'t>>) -> bool {
    template.any(|attribute| match attribute.kind {
        CKA_CLASS => matches!(attribute.as_u64(), Some(CKO_SECRET_KEY | CKO_PRIVATE_KEY)),
        CKA_PRIVATE => attribute.as_bool() == Some(true),
        _ => false,
    })
}

/// The thread follows its caller where no other host is asked; [`operations`] decides by itself.
fn place_thread(follow: &mut Follow, cpu: Option<u32>, request: &Request<'_>) {
    match request {
        Request::Operate(_) => {}
        Request::Tokens
        | Request::Mechanisms(_)
        | Request::FindObjects(_)
        | Request::Object(_)
        | Request::ObjectSize(_)
        | Request::CloseSession(_)
        | Request::Update(_)
        | Request::Cancel(_) => follow.follow(cpu),
        _ => follow.let_loose(),
    }
}

/// Requests after which the application may see something else than before.
fn changes_view(request: &Request<'_>) -> bool {
    !matches!(
        request,
        Request::Operate(_)
            | Request::FindObjects(_)
            | Request::Object(_)
            | Request::Attributes(_)
            | Request::ObjectSize(_)
            | Request::Mechanisms(_)
            | Request::Begin(_)
            | Request::Iv(_)
    )
}

/// Data of a request that may lie in the shared buffer.
fn data_of<'r>(request: &Request<'r>) -> [Option<Data<'r>>; 2] {
    match request {
        Request::Operate(ask) => [Some(ask.input), Some(ask.signature)],
        Request::Update(ask) => [Some(ask.input), None],
        Request::Finish(ask) => [Some(ask.signature), None],
        Request::Iv(ask) => [Some(ask.plaintext), None],
        Request::Unwrap(ask) | Request::Decapsulate(ask) => [Some(ask.wrapped), None],
        _ => [None, None],
    }
}

fn token_of(request: &Request<'_>) -> Option<u32> {
    match request {
        Request::Mechanisms(ask) | Request::Logout(ask) | Request::CloseAllSessions(ask) => Some(ask.token),
        Request::Login(ask) => Some(ask.token),
        Request::InitToken(ask) => Some(ask.token),
        Request::InitPin(ask) => Some(ask.token),
        Request::SetPin(ask) => Some(ask.token),
        Request::FindObjects(ask) => Some(ask.token),
        Request::Object(ask) | Request::DestroyObject(ask) | Request::ObjectSize(ask) => Some(ask.token),
        Request::Attributes(ask) => Some(ask.token),
        Request::CreateObject(ask) => Some(ask.token),
        Request::CopyObject(ask) => Some(ask.token),
        Request::SetAttributes(ask) => Some(ask.token),
        Request::CloseSession(ask) => Some(ask.token),
        Request::GenerateKey(ask) => Some(ask.token),
        Request::GenerateKeyPair(ask) => Some(ask.token),
        Request::Wrap(ask) => Some(ask.token),
        Request::Unwrap(ask) | Request::Decapsulate(ask) => Some(ask.token),
        Request::Derive(ask) | Request::Encapsulate(ask) => Some(ask.token),
        Request::Operate(ask) => Some(ask.token),
        Request::Begin(ask) => Some(ask.token),
        Request::Iv(ask) => Some(ask.token).filter(|slot| *slot != 0),
        Request::Hello(_)
        | Request::Tokens
        | Request::Update(_)
        | Request::UpdateKey(_)
        | Request::Finish(_)
        | Request::Cancel(_)
        | Request::LargeBuffer(_)
        | Request::Manage(_) => None,
    }
}

fn with_token(
    caller: &Caller<'_>,
    glance: &Arc<Glance>,
    io: &mut Io,
    follow: &mut Follow,
    cpu: Option<u32>,
    request: &Request<'_>,
) -> Done<Reply> {
    match request {
        Request::Operate(ask) => operations::operate(caller, glance, io, follow, cpu, ask),
        Request::Begin(ask) => streams::begin(caller, glance, ask),
        Request::Mechanisms(_) => Ok(Reply::Mechanisms(caller.app.mechanisms.clone())),
        Request::Login(ask) => tokens::log_in(caller, glance, ask),
        Request::Logout(_) => tokens::log_out(caller, glance),
        Request::InitToken(ask) => tokens::init(caller, glance, ask),
        Request::InitPin(ask) => tokens::init_pin(caller, glance, ask),
        Request::SetPin(ask) => tokens::change_pin(caller, glance, ask),
        Request::FindObjects(ask) => find::find(caller, glance, ask),
        Request::Object(ask) => find::all_attributes(caller, glance, ask.object),
        Request::Attributes(ask) => find::chosen_attributes(caller, glance, ask.object, ask.kinds),
        Request::ObjectSize(ask) => caller.seen(glance, ask.object).map(|view| Reply::Size(view.bytes())),
        Request::CreateObject(ask) => make::create(caller, glance, ask),
        Request::CopyObject(ask) => make::copy(caller, glance, ask),
        Request::SetAttributes(ask) => change::set(caller, glance, ask.object, &Template::read(ask.template)?),
        Request::DestroyObject(ask) => change::destroy(caller, glance, ask.object),
        Request::GenerateKey(ask) => make::generate(caller, glance, ask),
        Request::GenerateKeyPair(ask) => make::generate_pair(caller, glance, ask),
        Request::CloseSession(ask) => {
            caller.application().close_session(ask.session);
            Ok(Reply::Done)
        }
        Request::CloseAllSessions(_) => {
            caller.application().close_token(&glance.token);
            Ok(Reply::Ticket(caller.attached().ticket()))
        }
        Request::Iv(ask) => iv::make(caller, Some(glance), io, ask),
        Request::Wrap(ask) => Err(super::mechanisms::unknown(ask.mechanism.code)),
        Request::Unwrap(ask) | Request::Decapsulate(ask) => Err(super::mechanisms::unknown(ask.mechanism.code)),
        Request::Derive(ask) | Request::Encapsulate(ask) => Err(super::mechanisms::unknown(ask.mechanism.code)),
        _ => Err(not_offered()),
    }
}

/// Requests that name no token, or one that is not there; `None` for the rest.
fn without_token(caller: &Caller<'_>, io: &mut Io, request: &Request<'_>) -> Option<Done<Reply>> {
    match request {
        Request::Tokens => Some(Ok(tokens::list(caller))),
        Request::InitToken(ask) => Some(tokens::init_first(caller, ask)),
        Request::Mechanisms(_) if caller.app.keys.state().tokens.is_empty() => {
            Some(Ok(Reply::Mechanisms(caller.app.mechanisms.clone())))
        }
        Request::Update(ask) => Some(streams::update(caller, io, ask)),
        Request::Finish(ask) => Some(streams::finish(caller, io, ask)),
        Request::Cancel(ask) => Some(Ok(streams::cancel(caller, ask.operation))),
        Request::LargeBuffer(ask) => Some(large_buffer(io, ask.size)),
        Request::Iv(ask) if ask.token == 0 => Some(iv::make(caller, None, io, ask)),
        Request::Manage(ask) => Some(manage::answer(caller, ask.json)),
        _ => None,
    }
}

fn large_buffer(io: &mut Io, size: u64) -> Done<Reply> {
    let too_large = || Fail::new(CKR_DATA_LEN_RANGE, "a shared buffer has at most 64 MiB");
    let size = mayfly_wire::shared::size_class(size).ok_or_else(too_large)?;
    let none =
        |error| Fail::ruled(CKR_DEVICE_MEMORY, "shared-buffer", format!("no memory for a shared buffer: {error}"));
    io.share(size, || SharedBuffer::create(size).map_err(none))?;
    Ok(Reply::LargeBuffer(size))
}

fn not_offered() -> Fail {
    Fail::new(CKR_FUNCTION_NOT_SUPPORTED, "the agent does not do this")
}

/// The request in a word, for `mayfly why`.
fn operation_name(request: &Request<'_>) -> &'static str {
    use mayfly_wire::Kind;
    let kind = |kind: Kind| match kind {
        Kind::Encrypt | Kind::MessageEncrypt => "encrypt",
        Kind::Decrypt | Kind::MessageDecrypt => "decrypt",
        Kind::Sign | Kind::SignRecover | Kind::MessageSign => "sign",
        Kind::Verify | Kind::VerifyRecover | Kind::MessageVerify => "verify",
        Kind::Digest => "digest",
    };
    match request {
        Request::Operate(ask) => kind(ask.kind),
        Request::Begin(ask) => kind(ask.kind),
        Request::Update(_) | Request::UpdateKey(_) | Request::Finish(_) | Request::Cancel(_) => "operation in parts",
        Request::Login(_) | Request::Logout(_) => "login",
        Request::InitToken(_) => "initialise token",
        Request::InitPin(_) | Request::SetPin(_) => "set PIN",
        Request::GenerateKey(_) | Request::GenerateKeyPair(_) => "make key",
        Request::CreateObject(_) | Request::CopyObject(_) => "make object",
        Request::SetAttributes(_) => "change attributes",
        Request::DestroyObject(_) => "destroy object",
        Request::Attributes(_) | Request::Object(_) | Request::ObjectSize(_) | Request::FindObjects(_) => {
            "read attributes"
        }
        Request::Iv(_) => "iv",
        Request::Wrap(_) | Request::Unwrap(_) => "wrap",
        Request::Derive(_) | Request::Encapsulate(_) | Request::Decapsulate(_) => "derive",
        Request::LargeBuffer(_) => "large buffer",
        Request::Manage(_) => "management",
        Request::Hello(_)
        | Request::Tokens
        | Request::Mechanisms(_)
        | Request::CloseSession(_)
        | Request::CloseAllSessions(_) => "session",
    }
}
