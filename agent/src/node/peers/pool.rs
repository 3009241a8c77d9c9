//! The connections that this agent keeps to other devices, and what is known of how they answer.

use super::conn::Conn;
use super::link::{LinkError, wait_any};
use super::tls::Tls;
use super::{CONNECTION_AGE_MAX, CONNECTIONS_PER_PEER_MAX, Local};
use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use mayfly_protocol::DeviceId;
use mayfly_protocol::assembly::Candidate;
use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Connections that are kept ready to one device when nobody uses them.
const IDLE_MAX: usize = 16;
/// Pause after the first failed attempt to connect; it doubles.
const BACK_OFF_FIRST: Duration = Duration::from_millis(250);
/// Longest pause between attempts.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// How long a connection with an unanswered question is kept.
const LATE_MAX: Duration = Duration::from_secs(5);
/// How often the connections are looked after.
const TEND_INTERVAL: Duration = Duration::from_secs(1);
/// By how much (1/n) the estimate of a device's usual time falls with each faster answer.
const USUAL_DECAY: u64 = 256;

/// All other devices.
#[derive(Debug)]
pub struct Peers {
    local: Local,
    tls: Tls,
    table: RwLock<HashMap<DeviceId, Arc<Peer>>>,
}

/// One device.
pub(super) struct Peer {
    device: DeviceId,
    idle: Mutex<Vec<Conn>>,
    open: AtomicUsize,
    /// A high quantile of the time of its answers, microseconds; 0: none yet.
    usual_us: AtomicU64,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    /// Why it is not asked first at present.
    failed: Option<String>,
    failures: u32,
    retry_at: Option<Instant>,
    /// Addresses as on the ledger, and what they resolved to.
    named: Vec<String>,
    resolved: Vec<SocketAddr>,
    turn: usize,
}

/// How a device is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// A connection is open.
    pub connected: bool,
    /// Usual time of its answers.
    pub usual_us: Option<u64>,
    /// Why it is not asked first at present.
    pub failed: Option<String>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Peer({:?})", self.device)
    }
}

impl Peers {
    /// With this session key.
    pub fn new(local: Local, session: Arc<Ed25519Secret>) -> Self {
        Self { tls: Tls::new(session), local, table: RwLock::default() }
    }

    pub(super) fn local(&self) -> &Local {
        &self.local
    }

    pub(super) fn tls(&self) -> &Tls {
        &self.tls
    }

    pub(super) fn peer(&self, device: &DeviceId) -> Arc<Peer> {
        if let Some(peer) = self.table.read().unwrap_or_else(PoisonError::into_inner).get(device) {
            return peer.clone();
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.entry(*device).or_insert_with(|| Arc::new(Peer::new(*device))).clone()
    }

    /// Devices as candidates for a question, those that answer well and fast first.
    pub fn by_preference(&self, devices: impl IntoIterator<Item = DeviceId>) -> Vec<Candidate> {
        let mut ranked: Vec<(bool, bool, u64, DeviceId)> = devices
            .into_iter()
            .map(|device| {
                let peer = self.peer(&device);
                let standing = peer.standing();
                (standing.failed.is_some(), !standing.connected, standing.usual_us.unwrap_or(0), device)
            })
            .collect();
        ranked.sort();
        let candidate = |(_, _, us, device)| Candidate { device, usual: Duration::from_micros(us) };
        ranked.into_iter().map(candidate).collect()
    }

    /// How a device is doing.
    pub fn standing(&self, device: &DeviceId) -> Standing {
        self.peer(device).standing()
    }

    /// A connection to ask on: a ready one if there is one, else one that is being opened. True: it was ready.
    pub(super) fn take(&self, device: &DeviceId, fresh: bool) -> Result<(Conn, bool), LinkError> {
        let key = self.local.directory.session_of(device).ok_or(LinkError::NotMember)?;
        let peer = self.peer(device);
        if !fresh && let Some(conn) = peer.take_idle(&key) {
            return Ok((conn, true));
        }
        self.open(&peer, key).map(|conn| (conn, false))
    }

    fn open(&self, peer: &Peer, key: PublicKey) -> Result<Conn, LinkError> {
        let address = peer.next_address(&self.local.directory.addresses_of(&peer.device))?;
        if peer.open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_PER_PEER_MAX {
            peer.open.fetch_sub(1, Ordering::Relaxed);
            return Err(std::io::Error::other("too many connections to it are in use").into());
        }
        let opened = Conn::open(&self.tls, peer.device, key, address);
        if opened.is_err() {
            peer.open.fetch_sub(1, Ordering::Relaxed);
        }
        opened
    }

    /// Gives a connection back after use.
    pub(super) fn give_back(&self, conn: Conn) {
        let peer = self.peer(&conn.device());
        let mut idle = lock(&peer.idle);
        let worth_keeping = conn.is_ready() && conn.age() < CONNECTION_AGE_MAX && conn.late() <= 1;
        if worth_keeping && idle.len() < IDLE_MAX {
            idle.push(conn);
        } else {
            drop(idle);
            self.discard(conn);
        }
    }

    /// Ends a connection.
    pub(super) fn discard(&self, conn: Conn) {
        self.peer(&conn.device()).open.fetch_sub(1, Ordering::Relaxed);
        conn.close();
    }

    pub(super) fn answered(&self, device: &DeviceId, took: Duration) {
        self.peer(device).answered(took);
    }

    /// How long a device usually takes at most.
    pub(super) fn usual(&self, device: &DeviceId) -> Duration {
        Duration::from_micros(self.peer(device).usual_us.load(Ordering::Relaxed))
    }

    pub(super) fn failed(&self, device: &DeviceId, why: &str) {
        self.peer(device).failed(why);
    }

    /// What a device said was wrong: it is asked last, until it has answered something else.
    pub fn distrust(&self, device: &DeviceId, why: &str) {
        self.failed(device, why);
    }

    /// Ends the connections to devices that are not members any more, and those to sessions that were replaced.
    pub fn prune(&self) {
        let table: Vec<_> = self.table.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for peer in table {
            let key = self.local.directory.session_of(&peer.device);
            let stale: Vec<Conn> = lock(&peer.idle)
                .extract_if(.., |conn| key != Some(*conn.key()) || conn.age() >= CONNECTION_AGE_MAX)
                .collect();
            stale.into_iter().for_each(|conn| self.discard(conn));
        }
    }

    /// Keeps at least one connection ready to each device that `wanted` names, until it says `None`. The body of a thread.
    pub fn tend(&self, wanted: impl Fn() -> Option<Vec<DeviceId>>) {
        let mut opening: Vec<Conn> = Vec::new();
        while let Some(devices) = wanted() {
            self.prune();
            for device in devices {
                let peer = self.peer(&device);
                peer.resolve(&self.local.directory.addresses_of(&device));
                if !opening.iter().any(|c| c.device() == device) && peer.wants_connection() {
                    opening.extend(self.begin(&peer));
                }
            }
            let until = Instant::now() + TEND_INTERVAL;
            while !opening.is_empty() && Instant::now() < until {
                let watched: Vec<_> = opening.iter().map(Conn::watch).collect();
                if wait_any(&watched, until).is_err() {
                    break;
                }
                opening = opening.into_iter().filter_map(|conn| self.bring_on(conn)).collect();
            }
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
    }

    fn begin(&self, peer: &Peer) -> Option<Conn> {
        let key = self.local.directory.session_of(&peer.device)?;
        self.open(peer, key).inspect_err(|error| peer.failed(&error.to_string())).ok()
    }

    /// Goes on with opening; `None` when it came to an end, good or bad.
    fn bring_on(&self, mut conn: Conn) -> Option<Conn> {
        match conn.advance(&self.local) {
            Ok(false) => return Some(conn),
            Ok(true) => {
                self.peer(&conn.device()).recovered();
                self.give_back(conn);
            }
            Err(error) => {
                self.failed(&conn.device(), &error.to_string());
                self.discard(conn);
            }
        }
        None
    }
}

impl Peer {
    fn new(device: DeviceId) -> Self {
        Self {
            device,
            idle: Mutex::default(),
            open: AtomicUsize::new(0),
            usual_us: AtomicU64::new(0),
            health: Mutex::default(),
        }
    }

    fn standing(&self) -> Standing {
        let usual = self.usual_us.load(Ordering::Relaxed);
        Standing {
            connected: self.open.load(Ordering::Relaxed) > 0,
            usual_us: (usual > 0).then_some(usual),
            failed: lock(&self.health).failed.clone(),
        }
    }

    /// A ready connection on which nothing is outstanding. A look at the socket finds out those that were closed meanwhile.
    fn take_idle(&self, key: &PublicKey) -> Option<Conn> {
        let mut idle = lock(&self.idle);
        let mut at = idle.len();
        while let Some(before) = at.checked_sub(1) {
            at = before;
            match drain(idle.get_mut(at)?) {
                Err(error) => {
                    self.open.fetch_sub(1, Ordering::Relaxed);
                    self.lied(&error);
                    idle.swap_remove(at).close();
                }
                Ok(()) if idle.get(at)?.is_usable(key) => return Some(idle.swap_remove(at)),
                Ok(()) => {}
            }
        }
        None
    }

    /// An address to connect to; each attempt takes the next one.
    fn next_address(&self, named: &[String]) -> Result<SocketAddr, LinkError> {
        let mut health = lock(&self.health);
        if health.named != named {
            // Numeric addresses need no resolver; names wait for the thread that may block.
            health.resolved = named.iter().filter_map(|name| name.parse().ok()).collect();
            health.named = if health.resolved.len() == named.len() { named.to_vec() } else { Vec::new() };
        }
        let turn = health.turn;
        let count = health.resolved.len().max(1);
        let address = health.resolved.get(turn % count).copied();
        address.ok_or_else(|| std::io::Error::other("its address is not known").into())
    }

    /// Looks up names; may block.
    fn resolve(&self, named: &[String]) {
        if lock(&self.health).named == named {
            return;
        }
        let resolved: Vec<SocketAddr> = named.iter().filter_map(|name| name.to_socket_addrs().ok()).flatten().collect();
        let mut health = lock(&self.health);
        (health.named, health.resolved) = (named.to_vec(), resolved);
    }

    fn wants_connection(&self) -> bool {
        let mut idle = lock(&self.idle);
        let drained = |conn: &mut Conn| drain(conn).inspect_err(|error| self.lied(error)).is_ok();
        let gone: Vec<Conn> =
            idle.extract_if(.., |conn| !drained(conn) || (conn.late() > 0 && conn.age() > LATE_MAX)).collect();
        self.open.fetch_sub(gone.len(), Ordering::Relaxed);
        gone.into_iter().for_each(Conn::close);
        let health = lock(&self.health);
        let due = health.retry_at.is_none_or(|at| at <= Instant::now());
        due && (health.failed.is_some() || self.open.load(Ordering::Relaxed) == 0)
    }

    /// A connection that died while nobody used it says nothing about the device; an answer that nobody asked for does.
    fn lied(&self, error: &LinkError) {
        if matches!(error, LinkError::Unasked) {
            self.failed(&error.to_string());
        }
    }

    fn answered(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let usual = self.usual_us.load(Ordering::Relaxed);
        self.usual_us.store(took.max(usual - usual.div_ceil(USUAL_DECAY).min(usual)), Ordering::Relaxed);
        if lock(&self.health).failed.is_some() {
            self.recovered();
        }
    }

    fn recovered(&self) {
        let mut health = lock(&self.health);
        (health.failed, health.failures, health.retry_at) = (None, 0, None);
    }

    fn failed(&self, why: &str) {
        let mut health = lock(&self.health);
        let pause = BACK_OFF_FIRST.saturating_mul(1 << health.failures.min(16)).min(BACK_OFF_MAX);
        health.failures = health.failures.saturating_add(1);
        health.turn = health.turn.wrapping_add(1);
        health.retry_at = Some(Instant::now() + pause);
        health.failed = Some(why.to_owned());
    }
}

/// Reads answers that nobody waits for any more: no more of them than were given up.
fn drain(conn: &mut Conn) -> Result<(), LinkError> {
    conn.answer().map(drop)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
