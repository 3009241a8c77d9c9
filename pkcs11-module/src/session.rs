//! Sessions and who is logged in. Sessions are the module's own: the agent hears of one only when it keeps
//! something for it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cryptoki_sys::*;
use mayfly_wire::{Kind, Pin, Request, Response, Ticket, User, request};

use crate::agent::Repeat;
use crate::library::Library;
use crate::operation::Active;
use crate::rv::{Outcome, Rv, ensure, fail};

/// Most sessions of one process.
const SESSIONS_MAX: usize = 65_536;
/// Number of operation kinds that a session can have active.
const KINDS: usize = 7;

/// Numbers of sessions are not used again within a process, over C_Finalize and C_Initialize.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// Who is logged in to a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Who {
    /// Nobody.
    #[default]
    Nobody,
    /// The user.
    User,
    /// The security officer.
    SecurityOfficer,
}

/// One session.
pub struct Session {
    /// Its handle, and its number for the agent.
    pub handle: u64,
    /// Its token's slot.
    pub slot: u32,
    /// Whether CKF_RW_SESSION was asked for.
    pub is_writable: bool,
    is_known_to_agent: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    operations: [Place; KINDS],
    find: Option<std::vec::IntoIter<u64>>,
}

/// Where an operation of one kind is kept.
#[derive(Default)]
enum Place {
    #[default]
    Idle,
    /// A call is at work with it.
    Busy,
    Active(Box<Active>),
}

/// An operation that a call has taken out of its session. Dropped, it is over; [`Taken::keep`] puts it back.
pub struct Taken<'s> {
    session: &'s Session,
    index: usize,
    operation: Option<Box<Active>>,
}

impl Taken<'_> {
    /// The operation.
    pub fn get(&mut self) -> Outcome<&mut Active> {
        self.operation.as_deref_mut().ok_or(Rv(CKR_GENERAL_ERROR))
    }

    /// The operation goes on.
    pub fn keep(mut self) {
        let place = self.operation.take().map_or(Place::Idle, Place::Active);
        self.session.put(self.index, place);
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if self.operation.is_some() {
            self.session.put(self.index, Place::Idle);
        }
    }
}

impl Session {
    /// Takes an active operation for one call.
    pub fn take(&self, kind: Kind) -> Outcome<Taken<'_>> {
        let index = index(kind)?;
        let mut state = self.lock();
        let place = state.operations.get_mut(index).ok_or(Rv(CKR_GENERAL_ERROR))?;
        match std::mem::replace(place, Place::Busy) {
            Place::Active(operation) => Ok(Taken { session: self, index, operation: Some(operation) }),
            other => {
                *place = other;
                fail(CKR_OPERATION_NOT_INITIALIZED)
            }
        }
    }

    /// Fails if an operation of this kind is active.
    pub fn check_idle(&self, kind: Kind) -> Outcome {
        let state = self.lock();
        ensure(matches!(state.operations.get(index(kind)?), Some(Place::Idle)), CKR_OPERATION_ACTIVE)
    }

    /// Makes an operation active; fails if one of this kind has become active meanwhile.
    pub fn start(&self, kind: Kind, operation: Active) -> Outcome {
        let mut state = self.lock();
        match state.operations.get_mut(index(kind)?) {
            Some(place @ Place::Idle) => {
                *place = Place::Active(Box::new(operation));
                Ok(())
            }
            _ => fail(CKR_OPERATION_ACTIVE),
        }
    }

    /// Whether any operation is active.
    pub fn has_operation(&self) -> bool {
        self.lock().operations.iter().any(|place| !matches!(place, Place::Idle))
    }

    /// Whether an active operation's key demands a login of its own.
    pub fn wants_context_login(&self) -> bool {
        self.lock().operations.iter().any(|place| matches!(place, Place::Active(active) if active.wants_login()))
    }

    /// Starts a search whose result is known.
    pub fn start_find(&self, handles: Vec<u64>) -> Outcome {
        let mut state = self.lock();
        ensure(state.find.is_none(), CKR_OPERATION_ACTIVE)?;
        state.find = Some(handles.into_iter());
        Ok(())
    }

    /// Fails if a search is active.
    pub fn check_no_find(&self) -> Outcome {
        ensure(self.lock().find.is_none(), CKR_OPERATION_ACTIVE)
    }

    /// The next results of a search.
    pub fn next_found(&self, most: usize) -> Outcome<Vec<u64>> {
        let mut state = self.lock();
        let find = state.find.as_mut().ok_or(Rv(CKR_OPERATION_NOT_INITIALIZED))?;
        Ok(find.take(most).collect())
    }

    /// Ends a search.
    pub fn end_find(&self) -> Outcome {
        self.lock().find.take().map(drop).ok_or(Rv(CKR_OPERATION_NOT_INITIALIZED))
    }

    /// The agent is about to keep something for this session.
    pub fn make_known(&self) {
        self.is_known_to_agent.store(true, Ordering::Release);
    }

    /// CKR_SESSION_READ_ONLY unless the session may change token objects.
    pub fn check_writable(&self) -> Outcome {
        ensure(self.is_writable, CKR_SESSION_READ_ONLY)
    }

    fn put(&self, index: usize, new: Place) {
        if let Some(place) = self.lock().operations.get_mut(index) {
            *place = new;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn index(kind: Kind) -> Outcome<usize> {
    match kind {
        Kind::Encrypt => Ok(0),
        Kind::Decrypt => Ok(1),
        Kind::Sign => Ok(2),
        Kind::Verify => Ok(3),
        Kind::SignRecover => Ok(4),
        Kind::VerifyRecover => Ok(5),
        Kind::Digest => Ok(6),
        _ => fail(CKR_FUNCTION_NOT_SUPPORTED),
    }
}

impl Library {
    /// The session of a handle.
    pub fn session(&self, handle: CK_SESSION_HANDLE) -> Outcome<Arc<Session>> {
        self.read_sessions().get(&handle).cloned().ok_or(Rv(CKR_SESSION_HANDLE_INVALID))
    }

    /// C_OpenSession.
    pub fn open_session(&self, slot: CK_SLOT_ID, flags: CK_FLAGS) -> Outcome<CK_SESSION_HANDLE> {
        let token = self.token(slot)?;
        ensure(flags & CKF_SERIAL_SESSION != 0, CKR_SESSION_PARALLEL_NOT_SUPPORTED)?;
        ensure(token.is_initialised(), CKR_TOKEN_NOT_RECOGNIZED)?;
        // A write-protected token is read in such sessions too: OpenSSH opens no other ones. The agent refuses
        // what would change it.
        let is_writable = flags & CKF_RW_SESSION != 0;
        ensure(is_writable || self.who(token.slot) != Who::SecurityOfficer, CKR_SESSION_READ_WRITE_SO_EXISTS)?;
        let mut sessions = self.write_sessions();
        ensure(sessions.len() < SESSIONS_MAX, CKR_SESSION_COUNT)?;
        let handle = NEXT_SESSION.fetch_add(1, Ordering::Relaxed);
        let session = Session {
            handle,
            slot: token.slot,
            is_writable,
            is_known_to_agent: AtomicBool::new(false),
            state: Mutex::default(),
        };
        sessions.insert(handle, Arc::new(session));
        Ok(handle)
    }

    /// C_CloseSession. Closing a token's last session ends its login.
    pub fn close_session(&self, handle: CK_SESSION_HANDLE) -> Outcome {
        let mut turn = None;
        let (session, is_last) = loop {
            let mut sessions = self.write_sessions();
            let session = sessions.get(&handle).ok_or(Rv(CKR_SESSION_HANDLE_INVALID))?.clone();
            let is_last = sessions.values().filter(|other| other.slot == session.slot).nth(1).is_none();
            if !is_last || turn.is_some() {
                sessions.remove(&handle);
                break (session, is_last);
            }
            drop(sessions);
            turn = Some(self.take_login_turn());
        };
        let is_known = session.is_known_to_agent.load(Ordering::Acquire);
        if is_last {
            self.end_sessions(session.slot, is_known);
        } else if is_known {
            let request = request::OfSession { token: session.slot, session: handle };
            // The session is over in any case; what an agent that is away has kept went with it.
            let _ = self.ask(session.slot, Repeat::Harmless, &Request::CloseSession(request), |_| Ok(()));
        }
        Ok(())
    }

    /// C_CloseAllSessions.
    pub fn close_all_sessions(&self, slot: CK_SLOT_ID) -> Outcome {
        let slot = self.slot_of(slot)?;
        let _turn = self.take_login_turn();
        let mut is_known = false;
        self.write_sessions().retain(|_, session| {
            let is_here = session.slot == slot;
            is_known |= is_here && session.is_known_to_agent.load(Ordering::Acquire);
            !is_here
        });
        self.end_sessions(slot, is_known);
        Ok(())
    }

    /// Number of open sessions with a token: all, and those that may write.
    pub fn count_sessions(&self, slot: u32) -> (u64, u64) {
        let sessions = self.read_sessions();
        let here = sessions.values().filter(|session| session.slot == slot);
        here.fold((0, 0), |(all, writable), session| (all + 1, writable + u64::from(session.is_writable)))
    }

    /// C_GetSessionInfo.
    pub fn session_info(&self, handle: CK_SESSION_HANDLE) -> Outcome<CK_SESSION_INFO> {
        let session = self.session(handle)?;
        let state = match (self.who(session.slot), session.is_writable) {
            (Who::Nobody, false) => CKS_RO_PUBLIC_SESSION,
            (Who::Nobody, true) => CKS_RW_PUBLIC_SESSION,
            (Who::User, false) => CKS_RO_USER_FUNCTIONS,
            (Who::User, true) => CKS_RW_USER_FUNCTIONS,
            (Who::SecurityOfficer, _) => CKS_RW_SO_FUNCTIONS,
        };
        let writable = if session.is_writable { CKF_RW_SESSION } else { 0 };
        Ok(CK_SESSION_INFO {
            slotID: session.slot.into(),
            state,
            flags: CKF_SERIAL_SESSION | writable,
            ulDeviceError: 0,
        })
    }

    /// C_Login. `pin` is `None` for a null pointer: there is no other way to enter a PIN.
    pub fn login(&self, handle: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: Option<&[u8]>) -> Outcome {
        let session = self.session(handle)?;
        let user = match user {
            CKU_SO => User::SecurityOfficer,
            CKU_USER => User::User,
            CKU_CONTEXT_SPECIFIC => User::ContextSpecific,
            _ => return fail(CKR_USER_TYPE_INVALID),
        };
        let pin = pin.ok_or(Rv(CKR_ARGUMENTS_BAD))?;
        ensure(pin.len() <= mayfly_wire::PIN_BYTES_MAX, CKR_PIN_INCORRECT)?;
        let _turn = self.take_login_turn();
        self.check_login(&session, user)?;
        if user == User::ContextSpecific {
            session.make_known();
        }
        let token = session.slot;
        let login = Request::Login(request::Login { token, session: handle, user, name: "", pin: Pin(pin) });
        // Not repeated on its own: a PIN that was wrong would count twice.
        let log_in = || self.ask(token, Repeat::Never, &login, |answer| self.take_ticket(answer));
        let mut result = log_in();
        if matches!(result, Err(Rv(CKR_USER_ALREADY_LOGGED_IN | CKR_USER_ANOTHER_ALREADY_LOGGED_IN))) {
            // By an earlier call, whose answer was lost. No PIN was looked at.
            self.tell_logout(token);
            result = log_in();
        }
        result?;
        match user {
            User::User => self.set_who(token, Who::User),
            User::SecurityOfficer => self.set_who(token, Who::SecurityOfficer),
            User::ContextSpecific => {}
        }
        Ok(())
    }

    fn check_login(&self, session: &Session, user: User) -> Outcome {
        let who = self.who(session.slot);
        match (user, who) {
            (User::ContextSpecific, _) => ensure(session.wants_context_login(), CKR_OPERATION_NOT_INITIALIZED),
            (User::User, Who::User) | (User::SecurityOfficer, Who::SecurityOfficer) => fail(CKR_USER_ALREADY_LOGGED_IN),
            (_, Who::User | Who::SecurityOfficer) => fail(CKR_USER_ANOTHER_ALREADY_LOGGED_IN),
            (User::SecurityOfficer, Who::Nobody) => {
                let (all, writable) = self.count_sessions(session.slot);
                ensure(all == writable, CKR_SESSION_READ_ONLY_EXISTS)
            }
            (User::User, Who::Nobody) => Ok(()),
        }
    }

    /// C_Logout.
    pub fn logout(&self, handle: CK_SESSION_HANDLE) -> Outcome {
        let session = self.session(handle)?;
        let _turn = self.take_login_turn();
        ensure(self.who(session.slot) != Who::Nobody, CKR_USER_NOT_LOGGED_IN)?;
        self.set_who(session.slot, Who::Nobody);
        self.tell_logout(session.slot);
        Ok(())
    }

    /// C_InitPIN.
    pub fn init_pin(&self, handle: CK_SESSION_HANDLE, pin: &[u8]) -> Outcome {
        let session = self.session(handle)?;
        ensure(self.who(session.slot) == Who::SecurityOfficer, CKR_USER_NOT_LOGGED_IN)?;
        self.token(session.slot.into())?.check_pin_length(pin)?;
        let request = Request::InitPin(request::InitPin { token: session.slot, pin: Pin(pin) });
        self.ask(session.slot, Repeat::Harmless, &request, expect_done)?;
        self.forget_tokens();
        Ok(())
    }

    /// C_SetPIN.
    pub fn set_pin(&self, handle: CK_SESSION_HANDLE, old: &[u8], new: &[u8]) -> Outcome {
        let session = self.session(handle)?;
        session.check_writable()?;
        ensure(old.len() <= mayfly_wire::PIN_BYTES_MAX, CKR_PIN_INCORRECT)?;
        self.token(session.slot.into())?.check_pin_length(new)?;
        let user = match self.who(session.slot) {
            Who::SecurityOfficer => User::SecurityOfficer,
            Who::User | Who::Nobody => User::User,
        };
        let request = request::SetPin { token: session.slot, user, old: Pin(old), new: Pin(new) };
        self.ask(session.slot, Repeat::Never, &Request::SetPin(request), expect_done)?;
        self.forget_tokens();
        Ok(())
    }

    /// The token's last session is closed.
    fn end_sessions(&self, slot: u32, is_known: bool) {
        let was_logged_in = self.who(slot) != Who::Nobody;
        if was_logged_in {
            self.set_who(slot, Who::Nobody);
        }
        if was_logged_in || is_known {
            let request = Request::CloseAllSessions(request::OfToken { token: slot });
            self.end_login(self.ask(slot, Repeat::Harmless, &request, |answer| self.take_ticket(answer)));
        }
    }

    fn tell_logout(&self, slot: u32) {
        let request = Request::Logout(request::OfToken { token: slot });
        self.end_login(self.ask(slot, Repeat::Harmless, &request, |answer| self.take_ticket(answer)));
    }

    /// A login is over whether or not the agent has heard so; if it has not, the ticket with that login is
    /// not to be used again.
    fn end_login(&self, told: Outcome) {
        if !matches!(told, Ok(()) | Err(Rv(CKR_USER_NOT_LOGGED_IN))) {
            self.agent.start_over();
        }
    }

    fn take_ticket(&self, answer: Response<'_>) -> Outcome {
        match answer {
            Response::Ticket(changed) => {
                self.agent.set_ticket(Ticket(changed.ticket.0));
                Ok(())
            }
            _ => fail(CKR_DEVICE_ERROR),
        }
    }
}

/// The answer to a request that has nothing to tell.
pub fn expect_done(answer: Response<'_>) -> Outcome {
    if answer == Response::Done { Ok(()) } else { fail(CKR_DEVICE_ERROR) }
}
