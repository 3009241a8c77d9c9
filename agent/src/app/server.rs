//! The Unix socket: accepting, bounds, one blocking thread per connection.
//!
//! A client can hurt itself only: connections are counted per user, a frame that has begun must end in time, an answer must be fetched in
//! time, and what is no frame ends the connection with one line in the log.

use std::collections::HashMap;
use std::io::{self, Read};
use std::net::Shutdown as Direction;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mayfly_ledger_client::with_cause;
use mayfly_secmem::{SecretBytes, wipe};
use mayfly_wire::{FrameBuf, FrameError, HEADER_BYTES, Request, Spin, read_request, shared, write_frame};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::{Client, Envelope};
use super::fail::Fail;
use super::keys::Agent;
use super::principal::Peer;
use super::reply::{self, Head, Reply};
use super::settings::{Connections, Settings};
use super::{App, ck, cpu};
use crate::node::Shutdown;

/// Secret memory for the frames of one connection: every frame with a PIN or a key fits.
pub const SECRET_FRAME_BYTES: usize = 4096;
/// Memory for longer frames that a connection keeps between requests.
pub const SPILL_KEPT_BYTES_MAX: usize = 64 << 10;
/// Stack of a connection's thread, bytes: operations call holders from it.
const STACK_BYTES: usize = 512 << 10;
/// One connection in so many is kept free for root, who must be able to ask what is wrong when users have taken all others.
const KEPT_FOR_ROOT: usize = 64;
/// Descriptors that the agent needs beside those of connections: peers, files, shared buffers.
const DESCRIPTORS_ELSE: usize = 4096;
/// How often the accepting thread looks whether it shall end.
const ACCEPT_POLL: Duration = Duration::from_millis(200);
/// How long connections get to end when the agent does.
const FAREWELL: Duration = Duration::from_millis(500);
/// How often keys of paused operations in parts are looked after.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Refused and broken connections that get a line each in the log, within [`COMPLAINTS_EVERY`]; the others are counted.
const COMPLAINTS_MAX: u32 = 10;
/// How often such lines begin anew, and the count of the others is told.
const COMPLAINTS_EVERY: Duration = Duration::from_secs(10);

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From connecting to a whole Hello.
    pub hello: Duration,
    /// From a frame's first byte to its last; the same for fetching an answer.
    pub frame: Duration,
    /// How often a waiting thread looks at these.
    pub tick: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { hello: Duration::from_secs(10), frame: Duration::from_secs(10), tick: Duration::from_secs(10) }
    }
}

/// How much of the log refused and broken connections may fill, whoever makes them.
#[derive(Debug, Default)]
struct Complaints {
    /// Since when these are counted.
    since: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Complaints {
    /// Whether one more gets a line at `now`.
    fn may_tell(&mut self, now: Instant) -> bool {
        self.since.get_or_insert(now);
        let tell = self.told < COMPLAINTS_MAX;
        if tell {
            self.told += 1
        } else {
            self.left_out += 1
        }
        tell
    }

    /// How many got no line, when it is time to say so; they begin anew then.
    fn overdue(&mut self, now: Instant) -> Option<u64> {
        self.since.filter(|since| now.duration_since(*since) >= COMPLAINTS_EVERY)?;
        let left_out = std::mem::take(self).left_out;
        (left_out > 0).then_some(left_out)
    }
}

/// [`Complaints`] of all threads.
type SharedComplaints = Arc<Mutex<Complaints>>;

fn may_complain(complaints: &SharedComplaints) -> bool {
    complaints.lock().unwrap_or_else(PoisonError::into_inner).may_tell(Instant::now())
}

/// Serves applications until `shutdown` is set. Connections that are open then are closed.
///
/// # Errors
/// The listener fails, or there is no secret memory to begin with.
pub fn serve(agent: Arc<dyn Agent>, listener: UnixListener, settings: Settings, shutdown: Shutdown) -> io::Result<()> {
    raise_descriptor_limit(settings.connections.all_max);
    let app = App::new(agent, settings, None).map_err(io::Error::other)?;
    serve_app(Arc::new(app), &listener, Patience::default(), &shutdown)
}

/// Lets the process have a descriptor for each connection, as far as it may; then fewer are accepted at the same time.
fn raise_descriptor_limit(connections: usize) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let now = getrlimit(Resource::Nofile);
    let wanted = (connections + DESCRIPTORS_ELSE) as u64;
    let possible = now.maximum.map_or(wanted, |most| wanted.min(most));
    if now.current.is_some_and(|current| current < possible) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(possible), maximum: now.maximum });
    }
}

/// [`serve`] over any node.
///
/// # Errors
/// The listener fails.
pub fn serve_app(
    app: Arc<App>,
    listener: &UnixListener,
    patience: Patience,
    shutdown: &Arc<AtomicBool>,
) -> io::Result<()> {
    cpu::note_allowed();
    listener.set_nonblocking(true)?;
    let open = Arc::new(Open::new(app.settings.connections.clone()));
    let complaints = SharedComplaints::default();
    let mut swept = Instant::now();
    while !shutdown.load(Ordering::Relaxed) {
        match accept(listener) {
            Ok(Some(stream)) => admit(&app, &open, &complaints, stream, patience),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(%error, "accepting an application failed");
                std::thread::sleep(ACCEPT_POLL); // out of descriptors: they come back when connections end
            }
        }
        if swept.elapsed() >= SWEEP_EVERY {
            swept = Instant::now();
            app.applications.all().iter().for_each(|application| application.suspend_idle_operations(swept));
            if let Some(count) = complaints.lock().unwrap_or_else(PoisonError::into_inner).overdue(swept) {
                tracing::warn!(count, "further applications were not served, or their connections closed");
            }
        }
    }
    open.close_all();
    Ok(())
}

fn accept(listener: &UnixListener) -> io::Result<Option<UnixStream>> {
    let wait = Timespec { tv_sec: 0, tv_nsec: ACCEPT_POLL.as_nanos() as _ };
    match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(None),
        Ok(_) => {}
        Err(error) => return Err(error.into()),
    }
    match listener.accept() {
        Ok((stream, _)) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a connection in, or closes it with a line in the log.
fn admit(app: &Arc<App>, open: &Arc<Open>, complaints: &SharedComplaints, stream: UnixStream, patience: Patience) {
    let peer = match Peer::of(&stream) {
        Ok(peer) => peer,
        Err(error) => {
            if may_complain(complaints) {
                tracing::warn!(%error, "an application was not served");
            }
            return;
        }
    };
    let (uid, pid) = (peer.uid, peer.pid);
    let Some(place) = open.take(Arc::new(stream), peer.account) else {
        if may_complain(complaints) {
            tracing::warn!(uid, pid, "an application was not served: too many connections are open");
        }
        return;
    };
    let (app, shared) = (app.clone(), complaints.clone());
    let thread = std::thread::Builder::new().name("application".into()).stack_size(STACK_BYTES);
    let spawned = thread.spawn(move || {
        mayfly_secmem::mask_signals_on_this_thread();
        match converse(&app, peer, &place.stream, patience) {
            Ok(()) => tracing::debug!(uid, pid, "connection ended"),
            Err(error) if may_complain(&shared) => {
                tracing::warn!(uid, pid, error = %with_cause(&error), "connection closed");
            }
            Err(_) => {}
        }
    });
    if let Err(error) = spawned
        && may_complain(complaints)
    {
        tracing::warn!(uid, pid, %error, "an application was not served: no thread");
    }
}

/// Talks to one client until it ends.
///
/// # Errors
/// Why the connection is of no further use.
pub fn converse(app: &App, peer: Peer, stream: &UnixStream, patience: Patience) -> Result<(), FrameError> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(patience.tick))?;
    stream.set_write_timeout(Some(patience.frame))?;
    let no_memory = |error: mayfly_secmem::Exhausted| FrameError::Io(io::Error::other(error));
    let mut first = SecretBytes::new_with(SECRET_FRAME_BYTES, |_| ()).map_err(no_memory)?;
    let (mut spill, mut frame) = (Vec::new(), FrameBuf::default());
    let mut client = Client::new(app, peer);
    let hello_by = Some(Instant::now() + patience.hello);
    let mut reader =
        Timed { stream, patience, began: None, hello_by, is_resting: false, spin: Spin::default(), was_awake: false };
    loop {
        reader.began = None;
        let request = match read_request(&mut reader, first.expose_mut(), &mut spill) {
            Err(FrameError::Io(error)) if reader.is_idle(&error) => {
                client.rest();
                reader.is_resting = true;
                continue;
            }
            other => other?,
        };
        let Some(request) = request else { return Ok(()) };
        reader.is_resting = false;
        let header = request.header;
        let length = HEADER_BYTES + header.length as usize;
        let envelope = Envelope {
            request_id: header.request_id,
            // Who is awake on another CPU when the request comes, is best where he is.
            cpu: header.cpu.filter(|_| !reader.was_awake),
            ticket: request.ticket,
            is_secret: length <= SECRET_FRAME_BYTES,
        };
        let (outcome, head) = match request.request() {
            Ok(request) => {
                reader.hello_by = reader.hello_by.filter(|_| !matches!(request, Request::Hello(_)));
                client.serve(envelope, &request)
            }
            Err(error) => {
                let refused = Fail::new(ck::CKR_GENERAL_ERROR, error.to_string());
                (Err(refused), Head { request_id: header.request_id, ..Head::default() })
            }
        };
        answer(&client, &outcome, head, &mut frame, stream)?;
        client.io.wipe();
        forget(&mut first, &mut spill, length);
        frame.wipe();
    }
}

fn answer(
    client: &Client<'_>,
    outcome: &Result<Reply, Fail>,
    head: Head,
    frame: &mut FrameBuf,
    stream: &UnixStream,
) -> Result<(), FrameError> {
    let buffer = client.io.shared().filter(|_| matches!(outcome, Ok(Reply::LargeBuffer(_))));
    reply::send(outcome, client.io.output(), head, frame, |bytes| match buffer {
        Some(buffer) => shared::write_frame_with_buffer(stream, bytes, buffer),
        None => write_frame(stream, bytes),
    })
}

/// Wipes a request that was answered.
fn forget(first: &mut SecretBytes, spill: &mut Vec<u8>, length: usize) {
    wipe(first.expose_mut().get_mut(..length.min(SECRET_FRAME_BYTES)).unwrap_or_default());
    if length > SECRET_FRAME_BYTES {
        wipe(spill.get_mut(..length).unwrap_or_default());
        if spill.capacity() > SPILL_KEPT_BYTES_MAX {
            *spill = Vec::new();
        }
    }
}

/// A stream whose reader loses patience: with a frame that does not end, and with a Hello that does not come. Between frames it waits
/// for ever.
struct Timed<'s> {
    stream: &'s UnixStream,
    patience: Patience,
    began: Option<Instant>,
    hello_by: Option<Instant>,
    /// It was told already that nothing comes.
    is_resting: bool,
    spin: Spin,
    /// The frame came while this thread looked for it.
    was_awake: bool,
}

impl Timed<'_> {
    /// Whether an error of reading only means that nothing has come for a while, between two frames.
    fn is_idle(&self, error: &io::Error) -> bool {
        error.kind() == io::ErrorKind::WouldBlock && self.began.is_none()
    }

    fn check(&self) -> io::Result<()> {
        let now = Instant::now();
        let is_late = self.began.is_some_and(|began| now.duration_since(began) > self.patience.frame)
            || self.hello_by.is_some_and(|by| now > by);
        if is_late { Err(io::Error::new(io::ErrorKind::TimedOut, "the client is too slow")) } else { Ok(()) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, memory: &mut [u8]) -> io::Result<usize> {
        if self.began.is_some() || self.hello_by.is_some() {
            self.check()?;
        }
        if self.began.is_none() {
            self.was_awake = self.spin.wait(self.stream);
        }
        loop {
            let mut stream = self.stream;
            match stream.read(memory) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.check()?;
                    if self.began.is_none() && !self.is_resting {
                        return Err(error);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(count) => {
                    self.began.get_or_insert_with(Instant::now);
                    return Ok(count);
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Connections that are open.
#[derive(Debug)]
struct Open {
    bounds: Connections,
    streams: Mutex<HashMap<u64, (u32, Arc<UnixStream>)>>,
    next: std::sync::atomic::AtomicU64,
}

/// One connection's place among them; given back when dropped.
#[derive(Debug)]
struct Place {
    open: Arc<Open>,
    number: u64,
    stream: Arc<UnixStream>,
}

impl Open {
    fn new(bounds: Connections) -> Self {
        Self { bounds, streams: Mutex::default(), next: 0.into() }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, (u32, Arc<UnixStream>)>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, stream: Arc<UnixStream>, account: u32) -> Option<Place> {
        let mut streams = self.lock();
        let own = streams.values().filter(|(owner, _)| *owner == account).count();
        let all_max = self.bounds.all_max;
        let is_full = match account {
            0 => streams.len() >= all_max,
            _ => streams.len() >= all_max - all_max / KEPT_FOR_ROOT || own >= self.bounds.per_user_max,
        };
        if is_full {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        streams.insert(number, (account, stream.clone()));
        Some(Place { open: self.clone(), number, stream })
    }

    fn close_all(&self) {
        for (_, stream) in self.lock().values() {
            let _ = stream.shutdown(Direction::Both);
        }
        let until = Instant::now() + FAREWELL;
        while !self.lock().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.lock().remove(&self.number);
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
