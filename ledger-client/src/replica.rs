//! The replica as others use it: blocking calls, any thread.

use crate::chain::Chain;
use crate::keeper::Keeper;
use crate::network::NetworkFile;
use crate::store::{Store, StoreError};
use crate::witness::Cosigner;
use crate::worker::{Command, Submission, Worker};
use arc_swap::ArcSwap;
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::entry::ENTRY_BYTES_MAX;
use mayfly_protocol::sync::ForkProof;
use mayfly_protocol::{Head, State};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc::UnboundedSender;

/// Stack of the replica's thread: rules recurse no deeper than records nest.
const STACK_BYTES: usize = 1024 * 1024;

/// Signs hellos: says who this client is.
pub trait HelloSigner: Send + Sync {
    /// The key to open connections with, as `tip` stands: a device takes its session key once that is on the ledger, before that its
    /// identity key, before it has joined its invitation's seed; an administrator its own key.
    fn key(&self, tip: &State) -> PublicKey;

    /// Signs with that key.
    ///
    /// # Errors
    /// [`SignerError`]; the connection is tried again later.
    fn sign(&self, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError>;
}

/// A key could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot sign: {0}")]
pub struct SignerError(pub String);

/// What a replica is made with.
pub struct ReplicaConfig {
    /// Folder of its own, made with mode 0700 when missing.
    pub dir: PathBuf,
    /// The network and its gateways.
    pub network: NetworkFile,
    /// Who it is.
    pub hello: Arc<dyn HelloSigner>,
    /// Set on devices that may be witnesses; whether they are is the ledger's word.
    pub witness: Option<Arc<dyn Cosigner>>,
}

/// Why a replica cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Its store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its thread.
    #[error("replica's thread cannot be started")]
    Thread(#[source] std::io::Error),
}

/// What became of a submission that did not end in the ledger, or may not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// It breaks a rule. It took no number in its author's chain.
    #[error("the ledger refused the record ({rule}): {text}")]
    Refused {
        /// [`mayfly_protocol::Refusal::code`], or one of [`mayfly_protocol::sync::reject`].
        rule: String,
        /// For people.
        text: String,
    },
    /// The gateway has too much to do.
    #[error("the ledger is busy; try again in {retry_ms} ms")]
    Busy {
        /// Milliseconds to wait.
        retry_ms: u64,
    },
    /// No gateway was reached; nothing was sent.
    #[error("no ledger gateway can be reached: {0}")]
    Unavailable(String),
    /// It was sent and no answer came: it may be in the ledger. Submitting the same bytes again is safe and tells.
    #[error("the ledger did not answer; the record may have been appended")]
    Unknown,
}

/// A wait was not fulfilled in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ledger did not get there in time")]
pub struct Timeout;

/// Something that must not happen did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    /// Two heads do not reconcile. The replica has stopped for good: only administrators can go on from here.
    #[error("the ledger has forked: here entry count {} has root {}, a gateway signed another; this replica has stopped, proof is kept", ours.size, ours.root)]
    Fork {
        /// Our head at the size in question.
        ours: Head,
        /// Both heads, signed by gateways, as far as they are here.
        proof: ForkProof,
    },
    /// A gateway sequenced an entry that breaks the rules as this program knows them. Nothing of it was kept.
    #[error(
        "entry {index} from the gateway breaks a rule ({refusal}); the gateway is wrong, or this program is too old"
    )]
    Rule {
        /// The entry's index.
        index: u64,
        /// The rule.
        refusal: String,
    },
    /// The gateway has fewer entries than were verified here.
    #[error("the gateway has {theirs} entries, {ours} were verified here: it was set back, or does not show all")]
    Behind {
        /// Entries here.
        ours: u64,
        /// Entries there.
        theirs: u64,
    },
    /// Verified entries cannot be written to disk.
    #[error("verified entries cannot be stored: {0}")]
    Disk(String),
}

/// An entry with its index and the sequencer's time in milliseconds: (index, time, bytes).
pub type StoredEntry = (u64, u64, Vec<u8>);

/// A change of a replica, for subscribers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The tip has grown.
    Tip,
    /// The effective state is a new one.
    Effective,
    /// A gateway serves this replica now.
    Connected,
    /// No gateway serves it any more.
    Disconnected,
    /// Something is badly wrong.
    Alarm(Alarm),
}

/// How a replica is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReplicaStatus {
    /// A gateway serves it.
    pub connected: bool,
    /// Address of that gateway, or of the last one that was tried.
    pub gateway: Option<String>,
    /// It has had, since the connection was made, everything that the gateway had then.
    pub caught_up: bool,
    /// Everything verified.
    pub tip: Head,
    /// The newest witnessed head.
    pub effective: Head,
    /// When a gateway last said anything, milliseconds by this device's clock. 0: never in this run.
    pub last_contact_ms: u64,
    /// Why the last connection ended or failed.
    pub last_error: Option<String>,
    /// Gateways in succession that will not serve this replica, as far as can be told: it is unknown to them, or they are of no use to it.
    pub hopeless: usize,
    /// Why heads are not cosigned, where this is asked of the device.
    pub withheld: Option<String>,
    /// What must not happen and did.
    pub alarm: Option<Alarm>,
}

/// A verified copy of the ledger that keeps itself up to date.
pub struct Replica {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the replica's thread and its users share.
pub(crate) struct Shared {
    pub(crate) network: NetworkFile,
    pub(crate) tip: ArcSwap<State>,
    pub(crate) effective: ArcSwap<State>,
    /// By how much the gateway's clock was ahead of this one when it last welcomed this replica; negative where it was behind.
    pub(crate) gateway_ahead_ms: AtomicI64,
    commands: UnboundedSender<Command>,
    /// Guards what is not a state; never held while anything slow is done.
    inner: Mutex<Inner>,
    /// Told after each change of a state or of `inner`.
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// Counts changes, for those who wait.
    changes: u64,
    status: ReplicaStatus,
    subscribers: Vec<mpsc::Sender<Change>>,
}

impl Replica {
    /// Opens the replica's store, verifies all that is in it, and starts keeping it up to date. Does not wait for a gateway.
    ///
    /// # Errors
    /// [`OpenError`]: a store that is damaged, in use, or of another network.
    pub fn open(config: ReplicaConfig) -> Result<Arc<Replica>, OpenError> {
        let store = Store::open(&config.dir, config.network.network.as_bytes())?;
        Replica::start(config, store)
    }

    /// A replica that keeps nothing on disk, for programs that put one record on the ledger and end. `dir` is not used. Never for a witness:
    /// it would forget what it has signed.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_in_memory(config: ReplicaConfig) -> Result<Arc<Replica>, OpenError> {
        let store = Store::in_memory(config.network.network.as_bytes())?;
        Replica::start(ReplicaConfig { witness: None, ..config }, store)
    }

    fn start(config: ReplicaConfig, store: Store) -> Result<Arc<Replica>, OpenError> {
        let keeper = Keeper::open(config.network.network, store)?;
        let chain = keeper.chain();
        let (commands, inbox) = tokio::sync::mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            network: config.network,
            tip: ArcSwap::new(chain.tip().clone()),
            effective: ArcSwap::new(chain.effective().clone()),
            gateway_ahead_ms: AtomicI64::new(0),
            commands,
            inner: Mutex::default(),
            changed: Condvar::new(),
        });
        shared.with(|status| (status.tip, status.effective) = (chain.tip().head(), chain.effective().head()));
        let worker = Worker::new(shared.clone(), keeper, config.hello, config.witness, inbox)?;
        let thread = std::thread::Builder::new().name("ledger-replica".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn(move || worker.run()).map_err(OpenError::Thread)?;
        Ok(Arc::new(Replica { shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Everything that was verified and is on disk. For judging what comes next; do not act upon it.
    pub fn tip(&self) -> Arc<State> {
        self.shared.tip.load_full()
    }

    /// The state at the newest witnessed head: what to act upon.
    pub fn effective(&self) -> Arc<State> {
        self.shared.effective.load_full()
    }

    /// The network and its gateways.
    pub fn network(&self) -> &NetworkFile {
        &self.shared.network
    }

    /// Waits until the effective state is as wanted.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn wait_effective(&self, wanted: impl Fn(&State) -> bool, timeout: Duration) -> Result<Arc<State>, Timeout> {
        self.shared.wait(timeout, || Some(self.effective()).filter(|state| wanted(state)))
    }

    /// Waits until the tip is as wanted.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn wait_tip(&self, wanted: impl Fn(&State) -> bool, timeout: Duration) -> Result<Arc<State>, Timeout> {
        self.shared.wait(timeout, || Some(self.tip()).filter(|state| wanted(state)))
    }

    /// Waits until a gateway serves this replica and everything it had at the start of that is verified here.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn wait_caught_up(&self, timeout: Duration) -> Result<(), Timeout> {
        self.wait_status(|status| status.connected && status.caught_up, timeout)
    }

    /// Waits until the status is as wanted.
    ///
    /// # Errors
    /// [`Timeout`].
    pub fn wait_status(&self, wanted: impl Fn(&ReplicaStatus) -> bool, timeout: Duration) -> Result<(), Timeout> {
        self.shared.wait(timeout, || wanted(&self.shared.lock().status).then_some(()))
    }

    /// Tells of every change from now on. The receiver may lag or go away; nothing waits for it.
    pub fn subscribe(&self) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::channel();
        self.shared.lock().subscribers.push(sender);
        receiver
    }

    /// Puts an entry on the ledger and returns its index, when it is durable there. Over a lost connection the same bytes are sent again;
    /// an entry that is in the ledger already gives its index.
    ///
    /// # Errors
    /// [`SubmitError`].
    pub fn submit(&self, entry: &[u8], timeout: Duration) -> Result<u64, SubmitError> {
        if entry.len() > ENTRY_BYTES_MAX {
            let text = format!("an entry has at most {ENTRY_BYTES_MAX} bytes");
            return Err(SubmitError::Refused { rule: "entry".into(), text });
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let sent = Arc::new(AtomicBool::new(false));
        let deadline = deadline(timeout);
        let submission = Submission { entry: entry.to_vec(), reply, sent: sent.clone(), deadline, under_way: false };
        self.shared.commands.send(Command::Submit(submission)).map_err(|_| self.unavailable())?;
        match answer.recv_timeout(timeout) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) if sent.load(Ordering::Acquire) => {
                Err(SubmitError::Unknown)
            }
            Err(_) => Err(self.unavailable()),
        }
    }

    /// How it is.
    pub fn status(&self) -> ReplicaStatus {
        self.shared.lock().status.clone()
    }

    /// Entries from `from` on, at most `count`. Fewer come when there are no more, or when they are large (8 MiB an answer): go on with
    /// the index after the last one until nothing comes.
    ///
    /// # Errors
    /// What the store says.
    pub fn entries(&self, from: u64, count: usize) -> Result<Vec<StoredEntry>, StoreError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let gone = || StoreError::Redb(Box::new(redb::Error::DatabaseClosed));
        self.shared.commands.send(Command::Entries { from, count, reply }).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    /// A moment that is past by both clocks, this device's and the gateway's, which dates entries: what has expired by it, has.
    pub(crate) fn past_ms(&self) -> u64 {
        past_ms(now_ms(), self.shared.gateway_ahead_ms.load(Ordering::Relaxed))
    }

    pub(crate) fn unavailable(&self) -> SubmitError {
        let status = self.status();
        let alarm = status.alarm.map(|a| a.to_string());
        let why = alarm.or(status.last_error).unwrap_or_else(|| "no connection was made yet".into());
        SubmitError::Unavailable(why)
    }
}

/// The moment after this time; a time without end is a year.
pub(crate) fn deadline(timeout: Duration) -> Instant {
    const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::now() + timeout.min(YEAR)
}

fn past_ms(now_ms: u64, gateway_ahead_ms: i64) -> u64 {
    now_ms.saturating_add_signed(gateway_ahead_ms.min(0))
}

/// This device's clock in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.shared.commands.send(Command::Stop);
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // The last user may be the thread itself (a cosigner that held the replica).
        if let Some(thread) = thread.filter(|t| t.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the status and wakes whoever waits.
    pub(crate) fn with(&self, change: impl FnOnce(&mut ReplicaStatus)) {
        let mut inner = self.lock();
        change(&mut inner.status);
        inner.changes = inner.changes.wrapping_add(1);
        drop(inner);
        self.changed.notify_all();
    }

    /// Makes new states visible: the tip first, so that the effective state is never ahead of it.
    pub(crate) fn publish(&self, chain: &Chain) {
        let (tip, effective) = (chain.tip(), chain.effective());
        let tip_grew = self.tip.load().size() != tip.size();
        let effective_grew = self.effective.load().size() != effective.size();
        self.tip.store(tip.clone());
        self.effective.store(effective.clone());
        self.with(|status| (status.tip, status.effective) = (tip.head(), effective.head()));
        if tip_grew {
            self.tell(&Change::Tip);
        }
        if effective_grew {
            self.tell(&Change::Effective);
        }
    }

    /// Tells subscribers; those that have gone are forgotten.
    pub(crate) fn tell(&self, change: &Change) {
        self.lock().subscribers.retain(|s| s.send(change.clone()).is_ok());
    }

    /// Raises an alarm, unless the same one is up already.
    pub(crate) fn alarm(&self, alarm: Alarm) {
        let mut is_new = false;
        self.with(|status| is_new = status.alarm.replace(alarm.clone()).is_none_or(|old| old != alarm));
        if is_new {
            tracing::error!(%alarm, "ledger");
            self.tell(&Change::Alarm(alarm));
        }
    }

    /// Waits until `ready` gives something. It is asked without any lock held, anew after each change.
    fn wait<T>(&self, timeout: Duration, ready: impl Fn() -> Option<T>) -> Result<T, Timeout> {
        let deadline = deadline(timeout);
        loop {
            let seen = self.lock().changes;
            if let Some(found) = ready() {
                return Ok(found);
            }
            let mut inner = self.lock();
            loop {
                // Also where something changes all the time.
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(Timeout);
                }
                if inner.changes != seen {
                    break;
                }
                inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_past_when_it_is_by_both_clocks() {
        for (now, ahead, past) in [(5000, 0, 5000), (5000, 900, 5000), (5000, -900, 4100), (5000, i64::MIN, 0)] {
            assert_eq!(past_ms(now, ahead), past, "{now} {ahead}");
        }
    }

    #[test]
    fn a_wait_ends_though_something_changes_all_the_time() {
        let shared = Shared {
            network: NetworkFile {
                network: mayfly_protocol::NetworkId([1; 32]),
                genesis: Vec::new(),
                gateways: Vec::new(),
            },
            tip: ArcSwap::default(),
            effective: ArcSwap::default(),
            gateway_ahead_ms: AtomicI64::default(),
            commands: tokio::sync::mpsc::unbounded_channel().0,
            inner: Mutex::default(),
            changed: Condvar::new(),
        };
        let began = Instant::now();
        let restless = || {
            assert!(began.elapsed() < Duration::from_secs(20), "it goes on for ever");
            shared.with(|_| {});
            None::<()>
        };
        assert_eq!(shared.wait(Duration::from_millis(20), restless), Err(Timeout));
        assert_eq!(shared.wait(Duration::ZERO, || Some(1)), Ok(1), "what is there needs no time");
    }
}
