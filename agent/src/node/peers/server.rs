//! The answering side: one blocking thread for each connection that another agent opened, so that an answer needs no hop.

use super::conn::exporter;
use super::link::{Link, LinkError};
use super::table::{Admission, Table};
use super::tls::{self, Tls};
use super::{
    CANDIDATE_AGE_MAX, CANDIDATE_CONNECTIONS_MAX, CANDIDATE_QUESTIONS_MAX, CANDIDATES_MAX, HANDSHAKE_TIMEOUT, Local,
    OPEN_TIMEOUT, Peers, SERVED_AGE_MAX, SERVED_PER_PEER_MAX, Standing,
};
use mayfly_crypto::envelope::{Ephemeral, Session};
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::DeviceId;
use mayfly_protocol::peer::{self, Answer, Ask, Cause, Hello, Message, Refused, Reply, Request};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stack of a connection's thread; secrets are worked on elsewhere (the secret stack).
const STACK_BYTES: usize = 256 * 1024;
/// Pause after a failed `accept` (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the accepting thread looks whether it is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Who asks: proved in the TLS handshake, looked up again for each question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The device.
    pub device: DeviceId,
    /// Its session key.
    pub key: PublicKey,
    /// As what it speaks.
    pub standing: Standing,
}

/// Answers questions.
pub trait Service: Send + Sync {
    /// Answers one question; called on the connection's thread.
    fn answer(&self, caller: &Caller, session: &mut Session, ask: Ask) -> Reply;
}

/// The open connections of others.
pub struct Server {
    local: Local,
    tls: Arc<rustls::ServerConfig>,
    service: Arc<dyn Service>,
    served: Mutex<Table>,
}

impl Server {
    /// Serves connections of members with `peers`' session key.
    pub fn new(peers: &Peers, service: Arc<dyn Service>, connections_max: usize) -> Arc<Server> {
        let local = peers.local().clone();
        let tls = Arc::new(Tls::server(peers.tls(), local.directory.clone()));
        Arc::new(Server { local, tls, service, served: Mutex::new(Table::new(connections_max)) })
    }

    /// Accepts connections until `shutdown` is set. The body of a thread.
    pub fn run(self: &Arc<Self>, listener: &TcpListener, shutdown: &AtomicBool) {
        while !shutdown.load(Ordering::Relaxed) {
            let watched = [(std::os::fd::AsFd::as_fd(listener), rustix::event::PollFlags::IN)];
            match super::link::wait_any(&watched, Instant::now() + LOOK_INTERVAL) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => std::thread::sleep(ACCEPT_PAUSE),
            }
            match listener.accept() {
                Ok((socket, from)) => self.admit(socket, from),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer's connection");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        }
        self.end(|_| true);
    }

    /// Ends the connections of callers that `which` names (and of those not known yet, when all are meant).
    pub fn end(&self, which: impl Fn(Option<&Caller>) -> bool) {
        self.served().end(which);
    }

    /// Ends connections whose caller may not speak any more, or has a newer session.
    pub fn prune(&self) {
        let directory = &self.local.directory;
        self.end(|caller| caller.is_some_and(|c| directory.standing_of(&c.device, &c.key).is_none()));
    }

    /// Who has a connection.
    pub fn callers(&self) -> Vec<Caller> {
        self.served().callers().cloned().collect()
    }

    /// Connections that are open.
    pub fn count(&self) -> usize {
        self.served().len()
    }

    fn served(&self) -> MutexGuard<'_, Table> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(self: &Arc<Self>, socket: TcpStream, from: SocketAddr) {
        let Ok(second) = socket.try_clone() else { return };
        let Admission::Admitted(number) = self.served().admit(from.ip(), second) else {
            tracing::warn!(%from, "too many connections of peers; one is refused");
            return;
        };
        let server = self.clone();
        let thread = std::thread::Builder::new().name("peer".into()).stack_size(STACK_BYTES).spawn(move || {
            mayfly_secmem::mask_signals_on_this_thread();
            match server.serve(socket, number) {
                Ok(()) | Err(LinkError::Closed) => tracing::debug!(%from, "a peer's connection ended"),
                Err(error) => tracing::info!(%from, %error, "a peer's connection ended"),
            }
            server.served().remove(number);
        });
        if let Err(error) = thread {
            tracing::warn!(%error, "no thread for a peer's connection");
            self.served().remove(number);
        }
    }

    fn serve(&self, socket: TcpStream, number: u64) -> Result<(), LinkError> {
        let (mut link, caller, mut session) = self.open(socket, number)?;
        let (age_max, mut questions) = match caller.standing {
            Standing::Member => (SERVED_AGE_MAX, usize::MAX),
            Standing::Candidate => (CANDIDATE_AGE_MAX, CANDIDATE_QUESTIONS_MAX),
        };
        let end = Instant::now() + age_max;
        while Instant::now() < end && questions > 0 {
            match link.frame()? {
                Some(frame) => {
                    questions -= 1;
                    self.one(&mut link, &caller, &mut session, &frame)?;
                }
                None => {
                    link.wait(end)?;
                }
            }
        }
        link.close();
        Ok(())
    }

    /// TLS before [`HANDSHAKE_TIMEOUT`], greetings and envelope before [`OPEN_TIMEOUT`], or not at all.
    fn open(&self, socket: TcpStream, number: u64) -> Result<(Link, Caller, Session), LinkError> {
        let began = Instant::now();
        let (handshake_end, deadline) = (began + HANDSHAKE_TIMEOUT, began + OPEN_TIMEOUT);
        let tls = rustls::ServerConnection::new(self.tls.clone())?;
        let mut link = Link::new(socket, rustls::Connection::Server(tls))?;
        while !link.shake()? {
            if !link.wait(handshake_end)? {
                return Err(LinkError::Late);
            }
        }
        let key = tls::peer_key(link.tls()).ok_or(LinkError::NotMember)?;
        let (device, standing) = self.local.directory.caller_of(&key, Duration::ZERO).ok_or(LinkError::NotMember)?;
        let theirs = loop {
            match link.frame()? {
                Some(frame) => break Hello::from_bytes(&frame)?,
                None if link.wait(deadline)? => {}
                None => return Err(LinkError::Late),
            }
        };
        theirs.check(&self.local.network, &device)?;
        let caller = Caller { device, key, standing };
        self.register(number, &caller)?;
        let ephemeral = Ephemeral::generate()?;
        let ours = self.local.hello(&ephemeral);
        let transcript = peer::channel_transcript(&theirs, &ours, &exporter(link.tls())?);
        let session = ephemeral.agree(&theirs.ephemeral, &transcript)?;
        link.send(&ours.frame())?;
        Ok((link, caller, session))
    }

    fn register(&self, number: u64, caller: &Caller) -> Result<(), LinkError> {
        let mut served = self.served();
        let per_device_max = match caller.standing {
            Standing::Member => SERVED_PER_PEER_MAX,
            Standing::Candidate => CANDIDATE_CONNECTIONS_MAX,
        };
        if served.callers().filter(|c| c.device == caller.device).count() >= per_device_max {
            return Err(std::io::Error::other("this device has too many connections already").into());
        }
        let candidates = served.callers().filter(|c| c.standing == Standing::Candidate).count();
        if caller.standing == Standing::Candidate && candidates >= CANDIDATES_MAX {
            return Err(std::io::Error::other("too many devices that wait for approval are connected already").into());
        }
        if served.prove(number, caller.clone()) { Ok(()) } else { Err(LinkError::Closed) }
    }

    /// One question. The standing is looked up for each: a ban takes effect in the middle of a connection.
    fn one(&self, link: &mut Link, caller: &Caller, session: &mut Session, frame: &[u8]) -> Result<(), LinkError> {
        let Request { id, ask } = Request::from_bytes(frame)?;
        let refused = |cause, text| Reply::Refused(Refused::new(cause, text, self.local.directory.head()));
        let standing = self.local.directory.standing_of(&caller.device, &caller.key);
        let reply = match (standing, ask) {
            (Some(Standing::Member), ask) => self.service.answer(caller, session, ask),
            (Some(Standing::Candidate), ask @ Ask::Attest(_)) => self.service.answer(caller, session, ask),
            (Some(Standing::Candidate), _) => {
                refused(Cause::Denied, "a device that waits for approval may only ask to be attested")
            }
            (None, _) => refused(Cause::Session, "the session key is not that of a device that may ask any more"),
        };
        link.send(&Answer { id, reply }.frame())?;
        if standing.is_some() { Ok(()) } else { Err(LinkError::NotMember) }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Server({} connections)", self.count())
    }
}
