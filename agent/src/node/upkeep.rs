//! The node's threads: how they pause, how they end, and the two that follow the ledger and post grants.

use super::Shutdown;
use super::directory::Ledger;
use super::grants::{Grants, POST_WITHIN};
use super::holder::Holder;
use super::identity::Records;
use super::keyring::Keyring;
use super::peers::{Peers, Server};
use mayfly_ledger_client::with_cause;
use mayfly_protocol::DeviceId;
use mayfly_protocol::record::{Grant, Record};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Stack of each of these threads; the deepest thing that they do is to encode a record.
const STACK_BYTES: usize = 512 * 1024;
/// Longest time for which a thread does not look whether it is to end, if nobody rings.
const LOOK: Duration = Duration::from_secs(1);
/// Longest wait for threads at the end.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// How often an ending thread is looked at.
const END_LOOK: Duration = Duration::from_millis(2);
/// How often what follows the ledger is done though nothing has changed: deadlines pass.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long the ledger may take to take grants.
const POST_TIMEOUT: Duration = Duration::from_secs(5);
/// The same at the end of the agent.
const LAST_POST_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends threads, and lets them sleep until then.
#[derive(Debug, Clone)]
pub struct Stop {
    flag: Shutdown,
    bell: Arc<(Mutex<()>, Condvar)>,
}

impl Stop {
    /// With this flag.
    pub fn new(flag: Shutdown) -> Self {
        Self { flag, bell: Arc::default() }
    }

    /// Whether it is time.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }

    /// The flag.
    pub fn flag(&self) -> &Shutdown {
        &self.flag
    }

    /// It is time: wakes everybody who sleeps.
    pub fn ring(&self) {
        self.flag.store(true, Ordering::Relaxed);
        let _guard = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.bell.1.notify_all();
    }

    /// Sleeps; true: it is time to end.
    pub fn pause(&self, duration: Duration) -> bool {
        let deadline = Instant::now() + duration;
        let mut guard = self.bell.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.is_set() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            guard = self.bell.1.wait_timeout(guard, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// Threads that are waited for at the end.
#[derive(Debug, Default)]
pub struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Threads {
    /// Starts one.
    ///
    /// # Errors
    /// The system has no more threads.
    pub fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK_BYTES).spawn(body)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }

    /// Waits for all, not for long: one that waits for the ledger or a peer holds nothing that the end of the process does not wipe. One that
    /// panicked has said so.
    pub fn join(&self) {
        let threads = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + END_TIMEOUT;
        for thread in threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(END_LOOK);
            }
            if thread.is_finished() {
                let _ = thread.join();
            }
        }
    }
}

/// What follows from changes of the ledger.
pub struct Follower {
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// Promotes, drops and erases shards.
    pub holder: Arc<Holder>,
    /// Ends windows.
    pub keyring: Arc<Keyring>,
    /// Ends connections that this agent opened.
    pub peers: Arc<Peers>,
    /// Ends connections of others.
    pub server: Arc<Server>,
}

impl Follower {
    /// Follows the ledger. The body of a thread.
    pub fn follow(&self, stop: &Stop) {
        let changes = self.ledger.replica().subscribe();
        let mut swept: Option<Instant> = None;
        while !stop.is_set() {
            let changed = match changes.recv_timeout(LOOK) {
                Ok(_) => {
                    while changes.try_recv().is_ok() {} // one look serves all changes until now
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let due = swept.is_none_or(|at| at.elapsed() >= SWEEP_INTERVAL);
            if changed || due {
                self.act();
            }
            if due {
                self.holder.erase_deleted();
                swept = Some(Instant::now());
            }
        }
    }

    /// Brings everything in line with the ledger as it is now, and with bans seen on sight.
    pub fn act(&self) {
        self.ledger.alarms().settle(&self.ledger.replica().tip());
        self.server.prune();
        self.peers.prune();
        let view = self.ledger.view();
        if self.holder.check_vault(&view).is_err() {
            self.keyring.clear();
        }
        self.keyring.sweep(&view);
        self.holder.sweep();
    }
}

/// Posts grants to the ledger.
pub struct Clerk {
    /// This device.
    pub device: DeviceId,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// Grants on disk.
    pub grants: Arc<Grants>,
    /// Our records.
    pub records: Arc<Records>,
}

impl Clerk {
    /// Posts what is unposted, a while before it must be; once more at the end. The body of a thread.
    pub fn post_grants(&self, stop: &Stop) {
        let mut oldest: Option<Instant> = None;
        while !stop.pause(LOOK) {
            let unposted = !self.unposted().is_empty();
            let since = oldest.get_or_insert_with(Instant::now);
            if !unposted {
                oldest = None;
            } else if since.elapsed() >= POST_WITHIN / 3 {
                self.post(POST_TIMEOUT);
            }
        }
        if self.ledger.replica().status().connected {
            self.post(LAST_POST_TIMEOUT);
        }
    }

    fn unposted(&self) -> Vec<mayfly_protocol::record::GrantItem> {
        self.grants.unposted(self.ledger.view().posted_grants(&self.device))
    }

    pub(super) fn post(&self, timeout: Duration) {
        let items = self.unposted();
        if items.is_empty() || self.ledger.view().member(&self.device).is_none() {
            return;
        }
        let posted = self.records.post(&Record::Grant(Grant { items }), timeout);
        match posted {
            Ok(index) => {
                let _ = self.ledger.replica().wait_tip(|tip| tip.size() > index, timeout);
                if let Err(error) = self.grants.compact() {
                    tracing::warn!(error = with_cause(&error), "grants");
                }
            }
            Err(error) => tracing::warn!(error = with_cause(&error), "grants are not on the ledger yet"),
        }
    }
}
