//! The module's side of the application socket: a pool of connections, and what happens when the agent is
//! away, was restarted, or is slow.
//!
//! A connection is checked out for one call and held by nobody else meanwhile; no lock is held while
//! anything is sent or awaited, with one exception: Hello on a new connection, which is one at a time.
//!
//! All descriptors are noted, those in use too: a child of this process closes them, or the agent would see
//! the parent live on in it.

use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki_sys::{CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR};
use mayfly_wire::{
    CallError, Connection, FrameError, PROTOCOL_VERSION, Request, Response, ResponseHeader, Role, Ticket, request,
};

use crate::rv::{Outcome, fail};
use crate::sys::{self, Descriptor};

/// Most idle connections that are kept. More threads than that open and close their own.
const IDLE_CONNECTIONS_MAX: usize = 32;
/// How long connecting and Hello may take: a local agent that does neither in this time counts as away.
const HELLO_WAIT: Duration = Duration::from_secs(1);
/// How long an answer may take before the operation counts as failed. Key generation asks other hosts.
const ANSWER_WAIT: Duration = Duration::from_secs(30);
/// How long a call waits for an agent that was there a moment ago: it may be restarting.
const RESTART_WAIT: Duration = Duration::from_millis(1000);
/// Pause between two attempts in that time.
const RESTART_POLL: Duration = Duration::from_millis(10);
/// How long an agent that did not answer Hello is left alone.
const SILENT_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause that the agent's hint for trying again may cause.
const RETRY_PAUSE_MAX: Duration = Duration::from_millis(500);
/// A connection with a larger shared buffer than this is not kept while there are others, and the last one gives it back: what processes
/// that do nothing hold would be missing to those of the same user that work.
const IDLE_SHARED_BYTES_MAX: u64 = 2 << 20;
/// The account of the agent, whose processes may be talked to besides root's and our own user's.
const AGENT_ACCOUNT: &str = "mayfly";

/// Whether a request may be repeated when nobody knows whether the agent acted on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// It changes nothing, or twice is the same as once.
    Harmless,
    /// It changes something.
    Never,
}

/// The way to the agent.
pub struct Agent {
    socket: PathBuf,
    pool: Mutex<Pool>,
    identity: Mutex<Identity>,
    /// Counts the agent's runs that this process has met; 0 before the first.
    runs: AtomicU64,
    /// Counts how often the agent did not know our ticket: logins are gone then.
    strangers: AtomicU64,
}

#[derive(Default)]
struct Pool {
    idle: Vec<Kept>,
    /// Of all connections, idle or in use.
    descriptors: Vec<Descriptor>,
}

/// A connection that has said Hello, or is about to.
struct Kept {
    connection: Connection,
    socket: Option<Descriptor>,
    /// Its shared buffer's, and the buffer's size.
    buffer: Option<(Descriptor, u64)>,
    /// As which application it was accepted: [`Agent::strangers`] after its Hello.
    application: u64,
}

#[derive(Default)]
struct Identity {
    /// The agent's random number of its present run.
    instance: Option<u64>,
    ticket: Vec<u8>,
    /// Whether to wait for an agent that cannot be reached: it was there at the last attempt.
    worth_waiting: bool,
    /// Until when an agent that did not answer is left alone.
    silent_until: Option<Instant>,
    process_start: u64,
    name: String,
}

/// Why there is no connection.
enum Away {
    /// Nobody listens: costs nothing to find out.
    Absent,
    /// Somebody listens and does not answer, or is not to be trusted.
    Silent,
}

impl Agent {
    /// A way to the agent at a socket. Does not connect.
    pub fn new(socket: PathBuf) -> Self {
        let identity = Identity { process_start: process_start(), name: process_name(), ..Identity::default() };
        Self {
            socket,
            pool: Mutex::default(),
            identity: Mutex::new(identity),
            runs: AtomicU64::new(0),
            strangers: AtomicU64::new(0),
        }
    }

    /// Which run of the agent was met last; what a different run has told is stale.
    pub fn run(&self) -> u64 {
        self.runs.load(Ordering::Acquire)
    }

    /// Changes when the agent has forgotten our logins.
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Acquire)
    }

    /// Asks, and reads the answer while it is in the connection's memory.
    pub fn call<T>(
        &self,
        repeat: Repeat,
        request: &Request<'_>,
        mut read: impl FnMut(&ResponseHeader, Response<'_>) -> Outcome<T>,
    ) -> Outcome<T> {
        self.with_connection(repeat, |connection| {
            let (header, response) = connection.call(sys::current_cpu(), Ticket::default(), request)?;
            Ok(read(&header, response))
        })
    }

    /// As [`Agent::call`], with the whole connection: for data that goes through its shared buffer.
    pub fn with_connection<T>(
        &self,
        repeat: Repeat,
        mut work: impl FnMut(&mut Connection) -> Result<Outcome<T>, CallError>,
    ) -> Outcome<T> {
        let mut kept = self.check_out()?;
        let (mut may_repeat, mut may_pause) = (true, true);
        loop {
            let error = match work(&mut kept.connection) {
                Ok(result) => {
                    self.check_in(kept);
                    return result;
                }
                Err(error) => error,
            };
            match error {
                CallError::Refused { retry_ms, .. } if retry_ms > 0 && may_pause => {
                    may_pause = false;
                    std::thread::sleep(Duration::from_millis(retry_ms.into()).min(RETRY_PAUSE_MAX));
                }
                CallError::Refused { .. } => {
                    self.check_in(kept);
                    return Err(error.into());
                }
                CallError::NotSent(FrameError::TooLong(_)) => {
                    self.check_in(kept);
                    return fail(CKR_DATA_LEN_RANGE);
                }
                error => {
                    self.close(kept);
                    if is_gone(&error) {
                        // The others of the pool lead to the same agent.
                        self.close_idle();
                    }
                    if !may_repeat || !is_repeatable(&error, repeat) {
                        return Err(error.into());
                    }
                    may_repeat = false;
                    kept = self.check_out()?;
                }
            }
        }
    }

    /// The ticket after a login or logout.
    pub fn set_ticket(&self, ticket: Ticket<'_>) {
        if !ticket.0.is_empty() {
            self.lock_identity().ticket = ticket.0.to_vec();
        }
    }

    /// Comes to the agent as another application from now on: logged in to nothing.
    pub fn start_over(&self) {
        let mut identity = self.lock_identity();
        identity.ticket.clear();
        self.strangers.fetch_add(1, Ordering::AcqRel);
        self.runs.fetch_add(1, Ordering::AcqRel);
        self.close_idle();
    }

    /// Closes what a child has inherited, without a word to the agent: those connections are its parent's.
    /// Their memory stays: dropping a connection would close a number, whatever it stands for now. A pool that
    /// another thread had locked at the time of the fork is left as it is.
    pub fn abandon(&self) {
        if let Ok(mut pool) = self.pool.try_lock() {
            pool.descriptors.drain(..).for_each(Descriptor::close_inherited);
        }
    }

    fn check_out(&self) -> Outcome<Kept> {
        if let Some(kept) = self.lock_pool().idle.pop() {
            return Ok(kept);
        }
        let deadline = Instant::now() + RESTART_WAIT;
        loop {
            match self.connect() {
                Ok(kept) => return Ok(kept),
                Err(Away::Absent) if self.lock_identity().worth_waiting && Instant::now() < deadline => {
                    std::thread::sleep(RESTART_POLL);
                }
                Err(_) => {
                    self.lock_identity().worth_waiting = false;
                    return fail(CKR_DEVICE_ERROR);
                }
            }
        }
    }

    fn check_in(&self, mut kept: Kept) {
        if self.lock_pool().idle.is_empty() && kept.connection.shrink_shared(IDLE_SHARED_BYTES_MAX).is_err() {
            return self.close(kept);
        }
        kept.connection.wipe();
        let buffer = kept.connection.shared_now().map(|buffer| (buffer.as_fd().as_raw_fd(), buffer.size()));
        let is_large = buffer.is_some_and(|(_, size)| size > IDLE_SHARED_BYTES_MAX);
        if buffer != kept.buffer.map(|(noted, size)| (noted.number(), size)) {
            self.note_buffer(&mut kept);
        }
        let mut pool = self.lock_pool();
        let is_of_now = kept.application == self.strangers();
        // One is always kept: the application ends, for the agent, with its last connection.
        if is_of_now && (pool.idle.is_empty() || (pool.idle.len() < IDLE_CONNECTIONS_MAX && !is_large)) {
            pool.idle.push(kept);
            return;
        }
        drop(pool);
        self.close(kept);
    }

    fn note(&self, connection: Connection) -> Kept {
        let socket = Descriptor::of(connection.as_fd());
        self.lock_pool().descriptors.extend(socket);
        Kept { connection, socket, buffer: None, application: 0 }
    }

    fn note_buffer(&self, kept: &mut Kept) {
        let buffer = kept.connection.shared_now().and_then(|now| Some((Descriptor::of(now.as_fd())?, now.size())));
        let old = std::mem::replace(&mut kept.buffer, buffer);
        let mut pool = self.lock_pool();
        pool.descriptors.retain(|noted| Some(*noted) != old.map(|(descriptor, _)| descriptor));
        pool.descriptors.extend(buffer.map(|(descriptor, _)| descriptor));
    }

    fn close(&self, kept: Kept) {
        let gone = [kept.socket, kept.buffer.map(|(descriptor, _)| descriptor)];
        self.lock_pool().descriptors.retain(|noted| !gone.contains(&Some(*noted)));
        drop(kept);
    }

    fn close_idle(&self) {
        let idle = std::mem::take(&mut self.lock_pool().idle);
        idle.into_iter().for_each(|kept| self.close(kept));
    }

    /// A new connection that has said Hello. One at a time: two that find a new run of the agent together
    /// would become two applications.
    fn connect(&self) -> Result<Kept, Away> {
        let mut identity = self.lock_identity();
        if identity.silent_until.is_some_and(|until| Instant::now() < until) {
            return Err(Away::Silent);
        }
        let result = self.open(&mut identity);
        identity.silent_until = matches!(result, Err(Away::Silent)).then(|| Instant::now() + SILENT_PAUSE);
        identity.worth_waiting |= result.is_ok();
        result
    }

    fn open(&self, identity: &mut Identity) -> Result<Kept, Away> {
        let connection = Connection::connect(&self.socket, Some(HELLO_WAIT)).map_err(|error| away(&error))?;
        let mut kept = self.note(connection);
        match self.hello(identity, &mut kept.connection) {
            Ok(()) => {
                kept.application = self.strangers();
                Ok(kept)
            }
            Err(away) => {
                self.close(kept);
                Err(away)
            }
        }
    }

    fn hello(&self, identity: &mut Identity, connection: &mut Connection) -> Result<(), Away> {
        if !sys::peer_uid(connection.as_fd()).is_some_and(is_trusted) {
            return Err(Away::Silent);
        }
        let hello = request::Hello {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            role: Role::Module,
            process_start: identity.process_start,
            name: &identity.name,
        };
        let answer = match connection.hello(Ticket(&identity.ticket), hello) {
            Ok(answer) if answer.version == PROTOCOL_VERSION => answer,
            // It was just going down.
            Err(CallError::NotSent(FrameError::Io(error)) | CallError::Lost(FrameError::Io(error))) => {
                return Err(away(&error));
            }
            _ => return Err(Away::Silent),
        };
        let is_forgotten = !answer.resumed && !identity.ticket.is_empty();
        if is_forgotten {
            self.strangers.fetch_add(1, Ordering::AcqRel);
            // Older connections, if any, are another application's to the agent.
            self.close_idle();
        }
        if is_forgotten || identity.instance != Some(answer.instance) {
            self.runs.fetch_add(1, Ordering::AcqRel);
        }
        identity.instance = Some(answer.instance);
        identity.ticket = answer.ticket.0.to_vec();
        connection.set_timeout(Some(ANSWER_WAIT)).map_err(|_| Away::Silent)
    }

    fn lock_pool(&self) -> MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn away(error: &std::io::Error) -> Away {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Away::Silent,
        _ => Away::Absent,
    }
}

/// Whether an error shows that the agent at the other end is no more; one that is slow still is.
fn is_gone(error: &CallError) -> bool {
    match error {
        CallError::NotSent(FrameError::Io(error)) | CallError::Lost(FrameError::Io(error)) => {
            !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        }
        _ => false,
    }
}

/// Whether sending the request once more on a new connection is right.
fn is_repeatable(error: &CallError, repeat: Repeat) -> bool {
    match error {
        CallError::NotSent(_) => true,
        // A time-out is an agent that is at work: asking again would double it.
        CallError::Lost(FrameError::Io(error)) => {
            repeat == Repeat::Harmless && !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
        }
        _ => false,
    }
}

/// Whether a process of this user may hear our PINs: root, ourselves, or the agent's own account.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == sys::effective_uid() || agent_uid().is_some_and(|agent| agent == uid)
}

/// The agent's account as /etc/passwd has it. The resolver library is not asked: it would load others'
/// code into the application.
fn agent_uid() -> Option<u32> {
    let accounts = std::fs::read_to_string("/etc/passwd").ok()?;
    let mut fields = accounts.lines().map(|line| line.split(':'));
    fields.find_map(|mut line| (line.next() == Some(AGENT_ACCOUNT)).then(|| line.nth(1)?.parse().ok()).flatten())
}

/// Field 22 of /proc/self/stat: the first after the parenthesised name that counts from 3.
fn process_start() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_whitespace().nth(19).and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn process_name() -> String {
    let name = std::fs::read("/proc/self/comm").unwrap_or_default();
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_be_talked_to() {
        assert!(is_trusted(0));
        assert!(is_trusted(sys::effective_uid()));
        assert!(!is_trusted(u32::MAX - 7));
    }

    #[test]
    fn the_process_knows_itself() {
        assert!(process_start() > 0);
        assert!(!process_name().is_empty());
    }

    #[test]
    fn an_absent_agent_costs_no_wait() {
        let agent = Agent::new("/nonexistent/agent.sock".into());
        let start = Instant::now();
        for _ in 0..100 {
            let answer = agent.call(Repeat::Harmless, &Request::Tokens, |_, _| Ok(()));
            assert_eq!(answer, fail(CKR_DEVICE_ERROR));
        }
        assert!(start.elapsed() < Duration::from_millis(500));
    }
}
