//! The replica's thread: connects, verifies, stores, publishes, cosigns, submits. One thing after the other.

use crate::chain::{Advance, Chain, ChainError};
use crate::connection::{Connection, ConnectionError};
use crate::network::{GatewayAddress, NetworkFile};
use crate::replica::{Alarm, Change, HelloSigner, OpenError, Shared, SubmitError};
use crate::store::{NewHead, Store, StoreError, Stored};
use crate::witness::{self, Cosigner, Duty};
use futures_util::FutureExt;
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::Head;
use mayfly_protocol::record::Verifier;
use mayfly_protocol::sync::{
    self, Bundle, Bye, CHALLENGE_BYTES, FromClient, FromGateway, Hello, WitnessedHead, hello_message, verify_note,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant, SystemTime};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

/// First wait after a lost connection; doubles, with full jitter.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Longest such wait.
const BACKOFF_MAX: Duration = Duration::from_secs(15);
/// A connection that lasted so long starts the waits anew.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Longest wait for the answer to a hello.
const WELCOME_MAX: Duration = Duration::from_secs(10);
/// How often the connection is looked after.
const TICK: Duration = Duration::from_secs(5);
/// A ping is sent after so much silence from the gateway.
const PING_AFTER: Duration = Duration::from_secs(20);
/// A connection with so much silence is dead.
const DEAD_AFTER: Duration = Duration::from_secs(45);
/// Bundles that arrived together share one sync to disk, up to so many bytes of entries.
const COMMIT_BYTES_MAX: usize = 1024 * 1024;
/// Wait after the disk failed.
const DISK_RETRY_MS: u64 = 1000;
/// Longest wait that a gateway may ask for.
const RETRY_MS_MAX: u64 = 60_000;

/// What users ask of the thread.
pub enum Command {
    /// Put an entry on the ledger.
    Submit {
        /// The entry.
        entry: Vec<u8>,
        /// Where the outcome goes; its reader may have gone.
        reply: SyncSender<Result<u64, SubmitError>>,
        /// Set before the entry is sent for the first time.
        sent: Arc<AtomicBool>,
        /// Nobody waits after this moment.
        deadline: Instant,
    },
    /// Read stored entries.
    Entries {
        /// First index.
        from: u64,
        /// Most entries.
        count: usize,
        /// Where they go.
        reply: SyncSender<Result<Vec<(u64, u64, Vec<u8>)>, StoreError>>,
    },
    /// End.
    Stop,
}

struct Pending {
    entry: Vec<u8>,
    reply: SyncSender<Result<u64, SubmitError>>,
    sent: Arc<AtomicBool>,
    deadline: Instant,
    /// Not sent over the present connection yet.
    unsent: bool,
}

/// How a connection ended.
enum End {
    /// The replica is closed.
    Stop,
    /// The replica must not go on.
    Halt(Alarm),
    /// Try again, another gateway perhaps, after at least so many milliseconds.
    Lost(String, u64),
}

impl From<ConnectionError> for End {
    fn from(e: ConnectionError) -> End {
        End::Lost(e.to_string(), 0)
    }
}

/// What arrived together and is stored and published together.
#[derive(Default)]
struct Batch {
    bundles: Vec<Bundle>,
    bytes: usize,
    /// The newest proposed head.
    proposed: Option<Head>,
    /// Witnessed heads that moved the effective state.
    witnessed: Vec<NewHead>,
}

/// The thread's own.
pub struct Worker {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    store: Store,
    chain: Chain,
    hello: Arc<dyn HelloSigner>,
    witness: Option<Arc<dyn Cosigner>>,
    duty: Duty,
    /// The newest proposed head: cosigned as soon as it may be.
    proposed: Option<Head>,
    /// Size of the newest stored witnessed head that no change of witnesses hangs on.
    replaceable: Option<u64>,
    commands: UnboundedReceiver<Command>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    last_heard: Instant,
    /// A write failed: what is on disk is not known, and the store wants to be opened anew.
    doubtful: bool,
}

/// What [`replay`] found.
pub struct Replayed {
    /// All that is stored, verified.
    pub chain: Chain,
    /// Size of the newest stored witnessed head, if no change of witnesses hangs on it.
    pub replaceable: Option<u64>,
}

/// Reads and judges again all that is stored.
pub fn replay(network: &NetworkFile, store: &Store) -> Result<Replayed, StoreError> {
    let mut found = Replayed { chain: Chain::new(network.network), replaceable: None };
    store.replay(|stored| match stored {
        Stored::Entry(time_ms, entry) => found.chain.push(time_ms, entry).map_err(|e| with_cause(&e)),
        Stored::Witnessed(message) => {
            let message: WitnessedHead =
                mayfly_protocol::cbor::from_exact(message).map_err(|e| format!("a witnessed head: {e}"))?;
            let chain = &mut found.chain;
            let (head, _) = verify_note(chain.tip(), &network.network, &message.note).map_err(|e| with_cause(&e))?;
            let (advance, changed) = advance(chain, &head, &message);
            found.replaceable = (!changed).then_some(head.size);
            match advance {
                Advance::Conflict(_) | Advance::NotWitnessed => {
                    Err(format!("witnessed head {} does not hold", head.size))
                }
                Advance::Advanced | Advance::Old | Advance::Unknown => Ok(()),
            }
        }
    })?;
    Ok(found)
}

/// Takes a witnessed head; true when the witnesses of the effective state changed by it. Such heads are kept for ever: whoever starts from
/// nothing goes from one to the next.
fn advance(chain: &mut Chain, head: &Head, message: &WitnessedHead) -> (Advance, bool) {
    let before = chain.effective().witnesses();
    let advance = chain.advance(head, &message.cosignatures);
    (advance, chain.effective().witnesses() != before)
}

impl Worker {
    /// Prepares the thread's work.
    pub fn new(
        shared: Arc<Shared>,
        store: Store,
        replayed: Replayed,
        hello: Arc<dyn HelloSigner>,
        witness: Option<Arc<dyn Cosigner>>,
        commands: UnboundedReceiver<Command>,
    ) -> Result<Worker, OpenError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
        let duty = Duty { withheld: store.withheld()?, ..Duty::default() };
        Ok(Worker {
            shared,
            runtime: Some(runtime),
            store,
            chain: replayed.chain,
            hello,
            witness,
            duty,
            proposed: None,
            replaceable: replayed.replaceable,
            commands,
            pending: BTreeMap::new(),
            next_id: 0,
            last_heard: Instant::now(),
            doubtful: false,
        })
    }

    /// The thread's body.
    pub fn run(mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        runtime.block_on(self.keep_up());
        if let Err(error) = self.store.sync() {
            tracing::warn!(%error, "replica");
        }
        runtime.shutdown_background(); // a name lookup may still hang
    }

    async fn keep_up(&mut self) {
        if let Some(alarm) = self.old_fork() {
            return self.halt(alarm).await;
        }
        let gateways = self.shared.network.gateways.clone();
        let mut turn = random(gateways.len() as u64) as usize;
        let mut failures = 0;
        loop {
            let Some(gateway) = gateways.get(turn % gateways.len()) else { return };
            let started = Instant::now();
            let end = self.serve(gateway).await;
            self.disconnected(&end);
            match end {
                End::Stop => return,
                End::Halt(alarm) => return self.halt(alarm).await,
                End::Lost(..) if started.elapsed() >= STABLE_AFTER => failures = 0,
                End::Lost(..) => {}
            }
            let asked = match end {
                End::Lost(_, retry_ms) => Duration::from_millis(retry_ms.min(RETRY_MS_MAX)),
                _ => Duration::ZERO,
            };
            if self.pause(asked + backoff(failures)).await.is_break() {
                return;
            }
            failures += 1;
            turn = turn.wrapping_add(1);
        }
    }

    /// One connection, from first to last.
    async fn serve(&mut self, gateway: &GatewayAddress) -> End {
        self.shared.with(|status| status.gateway = Some(gateway.address.clone()));
        if let Err(error) = self.settle_doubt() {
            self.shared.alarm(Alarm::Disk(with_cause(&error)));
            return End::Lost("the replica's store cannot be opened".into(), DISK_RETRY_MS);
        }
        match self.follow(gateway).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn follow(&mut self, gateway: &GatewayAddress) -> Result<std::convert::Infallible, End> {
        let (mut connection, versions, challenge) = Connection::open(gateway).await?;
        if !versions.contains(&sync::VERSION) {
            return Err(End::Lost("the gateway speaks other versions; one side must be updated".into(), RETRY_MS_MAX));
        }
        let hello = self.sign_hello(gateway, &connection, &challenge)?;
        connection.send(&FromClient::Hello(hello)).await?;
        let target = timeout(WELCOME_MAX, self.await_welcome(&mut connection)).await;
        let target = target.map_err(|_| End::from(ConnectionError::TimedOut))??;
        self.welcomed(gateway, target);
        self.send_pending(&mut connection).await?;

        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = connection.receive() => {
                    self.take_all(&mut connection, message?, gateway, target).await?;
                }
                command = self.commands.recv() => {
                    if self.command(command).is_break() {
                        connection.close().await;
                        return Err(End::Stop);
                    }
                    self.send_pending(&mut connection).await?;
                }
                _ = tick.tick() => self.look_after(&mut connection).await?,
            }
        }
    }

    fn sign_hello(
        &self,
        gateway: &GatewayAddress,
        connection: &Connection,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> Result<Hello, End> {
        let tip = self.chain.tip();
        let network = self.shared.network.network;
        let key = self.hello.key(tip);
        let message = hello_message(&network, &gateway.key, connection.exporter(), challenge, &key);
        let signature = self.hello.sign(&key, &message).map_err(|e| End::Lost(e.to_string(), 0))?;
        // A ledger without entries has a root too, but nothing to resume.
        let head = if tip.size() == 0 { Head::default() } else { tip.head() };
        let witnessed = self.chain.effective().size();
        Ok(Hello { version: sync::VERSION, network, tip: head, witnessed, key: Verifier(key), signature })
    }

    /// The size at which this replica will have caught up.
    async fn await_welcome(&mut self, connection: &mut Connection) -> Result<u64, End> {
        loop {
            match connection.receive().await? {
                None => {}
                Some(FromGateway::Welcome { head, first, .. }) => {
                    let ours = self.chain.tip().size();
                    if head.size < ours {
                        return Err(self.behind(head.size));
                    }
                    if first > ours {
                        return Err(End::Lost("the gateway has let go of entries that this replica needs".into(), 0));
                    }
                    return Ok(head.size);
                }
                Some(FromGateway::Fork { note }) => return Err(self.claimed_fork(note)),
                Some(FromGateway::Bye { reason, text, retry_ms }) => return Err(self.bye(reason, text, retry_ms)),
                Some(_) => return Err(ConnectionError::Protocol("it did not answer the hello").into()),
            }
        }
    }

    /// Takes a message and whatever else has arrived by now, then stores, publishes and cosigns.
    async fn take_all(
        &mut self,
        connection: &mut Connection,
        message: Option<FromGateway>,
        gateway: &GatewayAddress,
        target: u64,
    ) -> Result<(), End> {
        let mut batch = Batch::default();
        let mut taken = self.take(message, gateway, &mut batch);
        while taken.is_ok() && batch.bytes < COMMIT_BYTES_MAX {
            match connection.receive().now_or_never() {
                Some(Ok(message)) => taken = self.take(message, gateway, &mut batch),
                Some(Err(error)) => taken = Err(error.into()),
                None => break,
            }
        }
        self.last_heard = Instant::now();
        // What was good is kept, also when it was followed by something that ends the connection.
        if let Err(error) = self.keep(&batch) {
            self.doubtful = true;
            self.shared.alarm(Alarm::Disk(with_cause(&error)));
            return Err(End::Lost("verified entries cannot be stored".into(), DISK_RETRY_MS));
        }
        self.shared.publish(&self.chain);
        let caught_up = self.chain.tip().size() >= target;
        self.shared.with(|status| {
            status.caught_up = caught_up;
            status.last_contact_ms = now_ms();
            if !batch.bundles.is_empty() {
                status.alarm = None; // all of these were raised by entries that were not kept
            }
        });
        taken?;
        self.proposed = batch.proposed.or(self.proposed);
        self.cosign(connection).await
    }

    fn take(&mut self, message: Option<FromGateway>, gateway: &GatewayAddress, batch: &mut Batch) -> Result<(), End> {
        match message {
            None => Ok(()),
            Some(FromGateway::Bundle(bundle)) => self.take_bundle(bundle, batch),
            Some(FromGateway::Proposed { note }) => {
                batch.proposed = Some(self.signed_head(&note)?.0);
                Ok(())
            }
            Some(FromGateway::Witnessed(message)) => self.take_witnessed(message, batch),
            Some(FromGateway::Bookmark { note }) => self.take_bookmark(&note),
            Some(FromGateway::Ack { id, index }) => self.answer(id, Ok(index)),
            Some(FromGateway::Reject { id, rule, text }) => self.answer(id, Err(SubmitError::Refused { rule, text })),
            Some(FromGateway::Busy { id, retry_ms }) => self.answer(id, Err(SubmitError::Busy { retry_ms })),
            Some(FromGateway::Fork { note }) => Err(self.claimed_fork(note)),
            Some(FromGateway::Bye { reason, text, retry_ms }) => Err(self.bye(reason, text, retry_ms)),
            Some(FromGateway::Challenge { .. } | FromGateway::Welcome { .. }) => {
                tracing::warn!(gateway = gateway.address, "message out of place");
                Err(ConnectionError::Protocol("it greets twice").into())
            }
        }
    }

    fn take_bundle(&mut self, bundle: Bundle, batch: &mut Batch) -> Result<(), End> {
        self.duty.judge_bundle(self.chain.tip(), bundle.first, bundle.time_ms, now_ms());
        match self.chain.extend(&bundle) {
            Ok(()) => {
                batch.bytes += bundle.entries.iter().map(|e| e.len()).sum::<usize>();
                batch.bundles.push(bundle);
                Ok(())
            }
            Err(ChainError::Refused { index, refusal }) => {
                let refusal = with_cause(&refusal);
                self.shared.alarm(Alarm::Rule { index, refusal });
                Err(End::Lost("the gateway sent an entry that breaks a rule".into(), RETRY_MS_MAX))
            }
            Err(error) => Err(End::Lost(error.to_string(), 0)),
        }
    }

    fn take_witnessed(&mut self, message: WitnessedHead, batch: &mut Batch) -> Result<(), End> {
        let (head, _) = self.signed_head(&message.note)?;
        let (advance, changed) = advance(&mut self.chain, &head, &message);
        match advance {
            Advance::Advanced => {
                self.duty.settle(head.size);
                let replaces = self.replaceable.take();
                self.replaceable = (!changed).then_some(head.size);
                let message = mayfly_protocol::cbor::to_vec(&message);
                batch.witnessed.push(NewHead { size: head.size, message, replaces });
            }
            Advance::NotWitnessed => tracing::warn!(size = head.size, "gateway calls a head witnessed that is not"),
            Advance::Old | Advance::Unknown | Advance::Conflict(_) => {}
        }
        Ok(())
    }

    fn take_bookmark(&mut self, note: &[u8]) -> Result<(), End> {
        let (head, signer) = self.signed_head(note)?;
        let tip = self.chain.tip();
        if head.size != tip.size() {
            return Err(ConnectionError::Protocol("its bookmark is not at the end of what it sent").into());
        }
        let time_ms = sync::bookmark_time(&tip.network, note, &signer).map_err(ConnectionError::from)?;
        let now = now_ms();
        let skew_ms = tip.policy().map_or(0, |p| p.skew_ms_max);
        if time_ms.abs_diff(now) > skew_ms.saturating_add(1000) {
            tracing::warn!(difference_ms = time_ms.abs_diff(now), "gateway's clock differs from this device's");
        }
        self.duty.current_ms = self.duty.current_ms.max(time_ms.min(now));
        Ok(())
    }

    /// The head of a note that a gateway signed and that agrees with what is here.
    fn signed_head(&self, note: &[u8]) -> Result<(Head, PublicKey), End> {
        let network = &self.shared.network.network;
        let (head, signer) = verify_note(self.chain.tip(), network, note).map_err(ConnectionError::from)?;
        if head.size > self.chain.tip().size() {
            return Err(ConnectionError::Protocol("it signs a head of entries that it did not send").into());
        }
        match self.chain.root_at(head.size) {
            Some(ours) if ours != head => Err(End::Halt(Alarm::Fork { ours, proof: note.to_vec() })),
            _ => Ok((head, signer)),
        }
    }

    /// A gateway says that our resume token is not of its ledger. Its signature proves it, or the claim is worth nothing.
    fn claimed_fork(&self, note: Vec<u8>) -> End {
        match self.signed_head(&note) {
            Err(end) => end,
            Ok(_) => ConnectionError::Protocol("it claims a fork and signs our own head").into(),
        }
    }

    fn behind(&self, theirs: u64) -> End {
        self.shared.alarm(Alarm::Behind { ours: self.chain.tip().size(), theirs });
        End::Lost(format!("the gateway has only {theirs} entries"), 1000)
    }

    fn bye(&self, reason: Bye, text: String, retry_ms: u64) -> End {
        tracing::info!(?reason, text, "gateway ends the connection");
        let wait = match reason {
            Bye::Version | Bye::Network | Bye::Authentication => retry_ms.max(1000),
            _ => retry_ms,
        };
        End::Lost(format!("the gateway says: {text}"), wait)
    }

    /// Writes to disk what was verified. One sync for all of it.
    fn keep(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if batch.bundles.is_empty() && batch.witnessed.is_empty() {
            return Ok(());
        }
        self.store.keep(&batch.bundles, &batch.witnessed, self.duty.withheld)
    }

    /// After a failed write: opens the store anew and starts from what is really in it.
    fn settle_doubt(&mut self) -> Result<(), StoreError> {
        if self.doubtful {
            self.store.reopen()?;
            let replayed = replay(&self.shared.network, &self.store)?;
            (self.chain, self.replaceable) = (replayed.chain, replayed.replaceable);
            self.duty.withheld = self.store.withheld()?;
            self.doubtful = false;
        }
        Ok(())
    }

    /// Cosigns the newest proposed head, if this device is a witness and nothing speaks against it. All below it is on disk.
    async fn cosign(&mut self, connection: &mut Connection) -> Result<(), End> {
        let (Some(head), Some(signer)) = (self.proposed, self.witness.clone()) else { return Ok(()) };
        let Some(state) = self.chain.at(head.size) else { return Ok(()) };
        let effective = self.chain.effective().clone();
        let now = now_ms();
        let device = signer.device();
        let permitted = match signer.key() {
            Some(key) => self.duty.may_cosign(&effective, &state, &device, &key, now),
            None => Err(witness::Withheld::NoSession),
        };
        self.shared.with(|status| status.withheld = permitted.as_ref().err().map(|w| w.to_string()));
        if permitted.is_err() || head.size <= effective.size() {
            return Ok(());
        }
        match witness::cosign(&*signer, &state, &head, now) {
            Ok(cosignature) => {
                self.proposed = None;
                self.duty.cosigned = head.size;
                Ok(connection.send(&FromClient::Cosign { head, cosignature }).await?)
            }
            Err(error) => {
                tracing::warn!(%error, "cosigning");
                Ok(())
            }
        }
    }

    async fn look_after(&mut self, connection: &mut Connection) -> Result<(), End> {
        let silence = self.last_heard.elapsed();
        if silence > DEAD_AFTER {
            return Err(End::Lost("the gateway has fallen silent".into(), 0));
        }
        if silence > PING_AFTER {
            connection.ping().await?;
        }
        self.cosign(connection).await // a clock that was behind may have caught up
    }

    fn answer(&mut self, id: u64, outcome: Result<u64, SubmitError>) -> Result<(), End> {
        if let Some(pending) = self.pending.remove(&id) {
            let _ = pending.reply.send(outcome);
        }
        Ok(())
    }

    fn command(&mut self, command: Option<Command>) -> ControlFlow<()> {
        match command {
            None | Some(Command::Stop) => ControlFlow::Break(()),
            Some(Command::Entries { from, count, reply }) => {
                let _ = reply.send(self.store.entries(from, count));
                ControlFlow::Continue(())
            }
            Some(Command::Submit { entry, reply, sent, deadline }) => {
                self.next_id += 1;
                self.pending.insert(self.next_id, Pending { entry, reply, sent, deadline, unsent: true });
                ControlFlow::Continue(())
            }
        }
    }

    /// Sends submissions that this connection has not seen.
    async fn send_pending(&mut self, connection: &mut Connection) -> Result<(), End> {
        let now = Instant::now();
        self.pending.retain(|_, p| p.deadline > now);
        for (id, pending) in self.pending.iter_mut().filter(|(_, p)| p.unsent) {
            pending.sent.store(true, Ordering::Release);
            pending.unsent = false;
            connection.send(&FromClient::Submit { id: *id, entry: pending.entry.clone() }).await?;
        }
        Ok(())
    }

    fn welcomed(&mut self, gateway: &GatewayAddress, target: u64) {
        let caught_up = self.chain.tip().size() >= target;
        self.last_heard = Instant::now();
        self.proposed = None; // the gateway repeats what it proposes
        self.pending.values_mut().for_each(|p| p.unsent = true);
        self.shared.with(|status| {
            status.connected = true;
            status.caught_up = caught_up;
            status.last_contact_ms = now_ms();
            status.last_error = None;
            status.alarm.take_if(|alarm| matches!(alarm, Alarm::Behind { .. }));
        });
        self.shared.tell(Change::Connected);
        tracing::info!(gateway = gateway.address, "connected to the ledger");
    }

    fn disconnected(&mut self, end: &End) {
        let mut was_connected = false;
        self.shared.with(|status| {
            was_connected = std::mem::replace(&mut status.connected, false);
            status.caught_up = false;
            if let End::Lost(text, _) = end {
                status.last_error = Some(text.clone());
            }
        });
        if let End::Lost(text, _) = end {
            tracing::info!(text, "no connection to the ledger");
        }
        if was_connected {
            self.shared.tell(Change::Disconnected);
        }
    }

    fn old_fork(&self) -> Option<Alarm> {
        match self.store.fork() {
            Ok(None) => None,
            Ok(Some(proof)) => Some(Alarm::Fork { ours: self.chain.tip().head(), proof }),
            Err(error) => Some(Alarm::Disk(with_cause(&error))),
        }
    }

    /// Keeps the proof and answers nothing but questions about what is stored.
    async fn halt(&mut self, alarm: Alarm) {
        if let Alarm::Fork { proof, .. } = &alarm {
            if let Err(error) = self.store.put_fork(proof) {
                tracing::error!(%error, "proof of the fork cannot be stored");
            }
        }
        self.shared.alarm(alarm);
        self.pending.clear(); // whoever waits is told that nobody answers
        while let Some(command) = self.commands.recv().await {
            if self.command(Some(command)).is_break() {
                return;
            }
            self.pending.clear();
        }
    }

    /// Waits, still answering; new submissions wait for the next connection.
    async fn pause(&mut self, time: Duration) -> ControlFlow<()> {
        let end = sleep(time);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => return ControlFlow::Continue(()),
                command = self.commands.recv() => self.command(command)?,
            }
        }
    }
}

/// An error with its causes, in one line.
fn with_cause(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Full jitter: anything from nothing to the doubled wait (so that many clients do not come back together).
fn backoff(failures: u32) -> Duration {
    let ceiling = BACKOFF_FIRST.saturating_mul(1 << failures.min(16)).min(BACKOFF_MAX);
    Duration::from_millis(random(ceiling.as_millis() as u64 + 1))
}

/// A number below `below`; not a secret.
fn random(below: u64) -> u64 {
    getrandom::u64().unwrap_or(0) % below.max(1)
}

/// This device's clock in milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}
