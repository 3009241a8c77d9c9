//! The state between C_Initialize and C_Finalize, and how it is found again, or not, after a fork.
//!
//! Everything hangs on one pointer that a child of the process reads as null ([`ForkPointer`]): the child
//! starts with nothing initialised, whatever its parent was doing, even if another thread held our locks
//! at the time of the fork.

use std::collections::HashMap;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cryptoki_sys::*;
use mayfly_wire::{Request, Response, ResponseFlags, request};

use crate::agent::{Agent, Repeat};
use crate::config::{CLIENT_TOML, Config};
use crate::object::ObjectCache;
use crate::rv::{Outcome, Rv, ensure, fail};
use crate::session::{Session, Who};
use crate::slot::Slots;
use crate::sys::{self, ForkPointer};

/// What belongs to one process. Never freed: a thread may be inside.
struct Process {
    /// Whose it is: tells forks apart where the kernel cannot wipe a page.
    pid: u32,
    library: RwLock<Option<Arc<Library>>>,
}

/// The process's own state; null where this process (or child) has made none yet.
static PROCESS: ForkPointer<Process> = ForkPointer::new();
/// The state that was made last, which after fork is the parent's: what is to be abandoned.
static LAST: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());

/// The module's state between C_Initialize and C_Finalize.
pub struct Library {
    /// Settings.
    pub config: Config,
    /// The way to the agent.
    pub agent: Agent,
    /// Slots and tokens.
    pub slots: Mutex<Slots>,
    sessions: RwLock<HashMap<CK_SESSION_HANDLE, Arc<Session>>>,
    /// By slot: who is logged in, and the agent's [`Agent::strangers`] at that time.
    logins: Mutex<HashMap<u32, (Who, u64)>>,
    /// Held by whoever changes a login, until the agent has answered: it must hear of a login after the logout
    /// that came before it. The one lock that is held while something waits.
    login_turn: Mutex<()>,
    /// Objects that were seen.
    pub objects: Mutex<ObjectCache>,
    is_finalized: AtomicBool,
}

/// C_Initialize.
pub fn initialize() -> Outcome {
    let mut library = process().library.write().unwrap_or_else(PoisonError::into_inner);
    ensure(library.is_none(), CKR_CRYPTOKI_ALREADY_INITIALIZED)?;
    let environment = std::env::var_os("MAYFLY_SOCKET").filter(|_| !sys::is_privileged_by_file());
    let config = Config::load(environment.map(Into::into), Path::new(CLIENT_TOML));
    *library = Some(Arc::new(Library::new(config)));
    Ok(())
}

/// C_Finalize. Calls that are in flight finish with what they hold; the connections close after the last.
pub fn finalize() -> Outcome {
    let library = process().library.write().unwrap_or_else(PoisonError::into_inner).take();
    let library = library.ok_or(Rv(CKR_CRYPTOKI_NOT_INITIALIZED))?;
    library.is_finalized.store(true, Ordering::Release);
    Ok(())
}

/// The state, for one call.
pub fn library() -> Outcome<Arc<Library>> {
    let library = process().library.read().unwrap_or_else(PoisonError::into_inner);
    library.clone().ok_or(Rv(CKR_CRYPTOKI_NOT_INITIALIZED))
}

fn process() -> &'static Process {
    let found = PROCESS.load().unwrap_or_else(own_last);
    let process = if found.is_null() { new_process() } else { found };
    // SAFETY: the pointer came from Box::into_raw below and is never freed.
    unsafe { &*process }
}

/// For a kernel without wiped pages: what was made last, if this process made it.
fn own_last() -> *mut Process {
    let last = LAST.load(Ordering::Acquire);
    // SAFETY: null, or made by Box::into_raw below and never freed.
    let is_own = unsafe { last.as_ref() }.is_some_and(|process| process.pid == std::process::id());
    if is_own { last } else { ptr::null_mut() }
}

fn new_process() -> *mut Process {
    let parent = LAST.load(Ordering::Acquire);
    let made = Box::into_raw(Box::new(Process { pid: std::process::id(), library: RwLock::default() }));
    let winner = PROCESS.set_if_null(made).unwrap_or_else(|| {
        match LAST.compare_exchange(parent, made, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => made,
            Err(other) => other,
        }
    });
    if winner != made {
        // SAFETY: `made` was not shared with anybody.
        drop(unsafe { Box::from_raw(made) });
        return winner;
    }
    LAST.store(made, Ordering::Release);
    // SAFETY: null, or once made and never freed. This is the child's copy of its parent's memory.
    if let Some(parent) = unsafe { parent.as_ref() } {
        abandon(parent);
    }
    winner
}

/// Closes the parent's connections in the child without a word to the agent. State that another thread of
/// the parent had locked at the time of the fork stays as it is: nobody will unlock it.
fn abandon(parent: &Process) {
    if let Ok(library) = parent.library.try_read()
        && let Some(library) = library.as_ref()
    {
        library.agent.abandon();
    }
}

impl Library {
    /// State with these settings.
    pub fn new(config: Config) -> Self {
        Self {
            agent: Agent::new(config.socket.clone()),
            config,
            slots: Mutex::default(),
            sessions: RwLock::default(),
            logins: Mutex::default(),
            login_turn: Mutex::default(),
            objects: Mutex::default(),
            is_finalized: AtomicBool::new(false),
        }
    }

    /// Whether C_Finalize was called while this call was in flight.
    pub fn is_finalized(&self) -> bool {
        self.is_finalized.load(Ordering::Acquire)
    }

    /// Asks the agent about a token, and takes note of the object version that the answer brings.
    pub fn ask<T>(
        &self,
        slot: u32,
        repeat: Repeat,
        request: &Request<'_>,
        mut read: impl FnMut(Response<'_>) -> Outcome<T>,
    ) -> Outcome<T> {
        let result = self.agent.call(repeat, request, |header, answer| {
            self.lock_objects().note(self.agent.run(), slot, header.object_version);
            read(answer)
        });
        self.check_login_lost(slot, result)
    }

    /// Where the agent says that a login is missing, ours may be over; or it is another one that is missing: the
    /// security officer's, or one for a single operation.
    pub fn check_login_lost<T>(&self, slot: u32, result: Outcome<T>) -> Outcome<T> {
        if matches!(result, Err(Rv(CKR_USER_NOT_LOGGED_IN))) && self.who(slot) != Who::Nobody {
            self.look_after_login(slot);
        }
        result
    }

    fn look_after_login(&self, slot: u32) {
        // Whoever is changing the login right now learns by that how things are.
        let Ok(_turn) = self.login_turn.try_lock() else { return };
        let expected = match self.who(slot) {
            Who::Nobody => return,
            Who::User => ResponseFlags::USER_LOGGED_IN,
            Who::SecurityOfficer => ResponseFlags::SO_LOGGED_IN,
        };
        let request = Request::Mechanisms(request::OfToken { token: slot });
        let flags = self.agent.call(Repeat::Harmless, &request, |header, _| Ok(header.flags));
        if flags.is_ok_and(|flags| !flags.contains(expected)) {
            self.set_who(slot, Who::Nobody);
        }
    }

    /// The turn to change a login.
    pub fn take_login_turn(&self) -> MutexGuard<'_, ()> {
        self.login_turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who is logged in to a token.
    pub fn who(&self, slot: u32) -> Who {
        let strangers = self.agent.strangers();
        match self.lock_logins().get(&slot) {
            Some((who, since)) if *since == strangers => *who,
            _ => Who::Nobody,
        }
    }

    /// The login of a token has changed, and with it what can be seen of its objects.
    pub fn set_who(&self, slot: u32, who: Who) {
        self.lock_logins().insert(slot, (who, self.agent.strangers()));
        self.lock_objects().forget(slot);
    }

    /// CKR_USER_NOT_LOGGED_IN unless the user is.
    pub fn check_user(&self, slot: u32) -> Outcome {
        if self.who(slot) == Who::User { Ok(()) } else { fail(CKR_USER_NOT_LOGGED_IN) }
    }

    /// The open sessions.
    pub fn read_sessions(&self) -> RwLockReadGuard<'_, HashMap<CK_SESSION_HANDLE, Arc<Session>>> {
        self.sessions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open sessions, to be changed.
    pub fn write_sessions(&self) -> RwLockWriteGuard<'_, HashMap<CK_SESSION_HANDLE, Arc<Session>>> {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The objects that were seen.
    pub fn lock_objects(&self) -> MutexGuard<'_, ObjectCache> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_logins(&self) -> MutexGuard<'_, HashMap<u32, (Who, u64)>> {
        self.logins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
