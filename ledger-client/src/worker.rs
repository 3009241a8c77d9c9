//! The replica's thread: connects, takes what comes, publishes, cosigns, submits. One thing after the other.

use crate::connection::{Connection, ConnectionError};
use crate::keeper::{Broken, Keeper, with_cause};
use crate::network::GatewayAddress;
use crate::replica::{Alarm, Change, HelloSigner, OpenError, Shared, StoredEntry, SubmitError, now_ms};
use crate::store::StoreError;
use crate::witness::{Cosigner, Withheld};
use futures_util::FutureExt;
use mayfly_protocol::record::Verifier;
use mayfly_protocol::sync::{self, Bye, CHALLENGE_BYTES, ForkProof, FromClient, FromGateway, Hello, hello_message};
use mayfly_protocol::{Head, cbor};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};
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
/// Wait after the disk failed, milliseconds.
const DISK_RETRY_MS: u64 = 1000;
/// Wait after a gateway that will hardly be different the next moment, milliseconds.
const HOPELESS_RETRY: Duration = Duration::from_secs(1);
/// Longest wait that a gateway may ask for, milliseconds.
const RETRY_MS_MAX: u64 = 60_000;

/// What users ask of the thread.
pub enum Command {
    /// Put an entry on the ledger.
    Submit(Submission),
    /// Read stored entries.
    Entries {
        /// First index.
        from: u64,
        /// Most entries.
        count: usize,
        /// Where they go.
        reply: SyncSender<Result<Vec<StoredEntry>, StoreError>>,
    },
    /// End.
    Stop,
}

/// An entry on its way to the ledger.
pub struct Submission {
    /// The entry.
    pub entry: Vec<u8>,
    /// Where the outcome goes; its reader may have gone.
    pub reply: SyncSender<Result<u64, SubmitError>>,
    /// Set before the entry is sent for the first time.
    pub sent: Arc<AtomicBool>,
    /// Nobody waits after this moment.
    pub deadline: Instant,
    /// Sent over the present connection.
    pub under_way: bool,
}

/// How a connection ended.
enum End {
    /// The replica is closed.
    Stop,
    /// The replica must not go on.
    Halt(Alarm),
    /// Try again, another gateway perhaps, after at least so many milliseconds.
    Lost(String, u64),
    /// As [`End::Lost`], and nothing suggests that the next attempt with this gateway goes better.
    Hopeless(String),
}

impl From<ConnectionError> for End {
    fn from(e: ConnectionError) -> End {
        End::Lost(with_cause(&e), 0)
    }
}

/// The thread's own.
pub struct Worker {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    keeper: Keeper,
    hello: Arc<dyn HelloSigner>,
    witness: Option<Arc<dyn Cosigner>>,
    commands: UnboundedReceiver<Command>,
    submissions: BTreeMap<u64, Submission>,
    next_id: u64,
    last_heard: Instant,
    /// A question for this clock that waits for its answer.
    asked: Option<u64>,
}

impl Worker {
    /// Prepares the thread's work.
    ///
    /// # Errors
    /// [`OpenError::Thread`].
    pub fn new(
        shared: Arc<Shared>,
        keeper: Keeper,
        hello: Arc<dyn HelloSigner>,
        witness: Option<Arc<dyn Cosigner>>,
        commands: UnboundedReceiver<Command>,
    ) -> Result<Worker, OpenError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(OpenError::Thread)?;
        Ok(Worker {
            shared,
            runtime: Some(runtime),
            keeper,
            hello,
            witness,
            commands,
            submissions: BTreeMap::new(),
            next_id: 0,
            last_heard: Instant::now(),
            asked: None,
        })
    }

    /// The thread's body.
    pub fn run(mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        runtime.block_on(self.keep_up());
        if let Err(error) = self.keeper.store().sync() {
            tracing::warn!(error = with_cause(&error), "replica");
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
            let Some(gateway) = gateways.get(turn % gateways.len().max(1)) else { return };
            let started = Instant::now();
            let end = self.serve(gateway).await;
            self.disconnected(&end);
            let asked = match end {
                End::Stop => return,
                End::Halt(alarm) => return self.halt(alarm).await,
                End::Lost(_, retry_ms) => Duration::from_millis(retry_ms.min(RETRY_MS_MAX)),
                End::Hopeless(_) => HOPELESS_RETRY,
            };
            if started.elapsed() >= STABLE_AFTER {
                failures = 0;
            }
            if self.pause(asked + backoff(failures)).await.is_break() {
                return;
            }
            failures += 1;
            turn = turn.wrapping_add(1);
        }
    }

    // --- one connection -----------------------------------------------------------------------------------------------------

    async fn serve(&mut self, gateway: &GatewayAddress) -> End {
        self.shared.with(|status| status.gateway = Some(gateway.address.clone()));
        if let Err(error) = self.keeper.settle_doubt() {
            self.shared.alarm(Alarm::Disk(with_cause(&error)));
            return End::Lost("the replica's store cannot be opened".into(), DISK_RETRY_MS);
        }
        match self.follow(gateway).await {
            Ok(never) => match never {},
            Err(end) => end,
        }
    }

    async fn follow(&mut self, gateway: &GatewayAddress) -> Result<Infallible, End> {
        let (mut connection, versions, challenge) = Connection::open(gateway).await?;
        if !versions.contains(&sync::VERSION) {
            let text = "the gateway speaks other versions of the protocol; one side must be updated";
            return Err(End::Hopeless(text.into()));
        }
        let hello = self.sign_hello(gateway, &connection, &challenge)?;
        connection.send(&FromClient::Hello(hello)).await?;
        let target = timeout(WELCOME_MAX, self.await_welcome(&mut connection)).await;
        let (target, time_ms) = target.map_err(|_| End::from(ConnectionError::TimedOut))??;
        self.welcomed(gateway, target, time_ms);
        self.send_submissions(&mut connection).await?;

        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                message = connection.receive() => self.take_all(&mut connection, message?, target).await?,
                command = self.commands.recv() => {
                    if self.command(command).is_break() {
                        connection.close().await;
                        return Err(End::Stop);
                    }
                    self.send_submissions(&mut connection).await?;
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
        let tip = self.keeper.chain().tip();
        let network = self.shared.network.network;
        let key = self.hello.key(tip);
        let message = hello_message(&network, &gateway.key, connection.exporter(), challenge, &key);
        let signature = self.hello.sign(&key, &message).map_err(|e| End::Hopeless(e.to_string()))?;
        // A ledger without entries has a root too, but nothing to resume.
        let head = if tip.size() == 0 { Head::default() } else { tip.head() };
        let witnessed = self.keeper.chain().effective().size();
        Ok(Hello { version: sync::VERSION, network, tip: head, witnessed, key: Verifier(key), signature })
    }

    /// The size at which this replica will have caught up, and the gateway's clock.
    async fn await_welcome(&mut self, connection: &mut Connection) -> Result<(u64, u64), End> {
        loop {
            match connection.receive().await? {
                None => {}
                Some(FromGateway::Welcome { head, first, time_ms }) => {
                    let ours = self.keeper.chain().tip().size();
                    if head.size < ours {
                        self.shared.alarm(Alarm::Behind { ours, theirs: head.size });
                        return Err(End::Hopeless(format!("the gateway has only {} entries", head.size)));
                    }
                    if first > ours {
                        let text = "the gateway has let go of entries that this replica needs";
                        return Err(End::Hopeless(text.into()));
                    }
                    return Ok((head.size, time_ms));
                }
                Some(FromGateway::Bye { reason, text, retry_ms }) => return Err(bye(reason, &text, retry_ms)),
                Some(_) => return Err(ConnectionError::Protocol("it did not answer the hello").into()),
            }
        }
    }

    /// Takes a message and whatever else has arrived by now; then stores, publishes and cosigns.
    async fn take_all(
        &mut self,
        connection: &mut Connection,
        message: Option<FromGateway>,
        target: u64,
    ) -> Result<(), End> {
        let mut taken = self.take(message);
        while taken.is_ok() && self.keeper.uncommitted_bytes() < COMMIT_BYTES_MAX {
            match connection.receive().now_or_never() {
                Some(Ok(message)) => taken = self.take(message),
                Some(Err(error)) => taken = Err(error.into()),
                None => break,
            }
        }
        self.last_heard = Instant::now();
        // What was good is kept, also when it was followed by something that ends the connection.
        let grew = self.keeper.commit().map_err(|error| {
            self.shared.alarm(Alarm::Disk(with_cause(&error)));
            End::Lost("verified entries cannot be stored".into(), DISK_RETRY_MS)
        })?;
        self.shared.publish(self.keeper.chain());
        let caught_up = self.keeper.chain().tip().size() >= target;
        self.shared.with(|status| {
            status.caught_up = caught_up;
            status.last_contact_ms = now_ms();
            if grew {
                status.alarm = None; // every alarm that is not a halt is about entries that could not be taken
            }
        });
        taken?;
        self.tell_time(connection).await?;
        self.cosign(connection).await
    }

    fn take(&mut self, message: Option<FromGateway>) -> Result<(), End> {
        let taken = match message {
            None => Ok(()),
            Some(FromGateway::Bundle(bundle)) => self.keeper.take_bundle(bundle, now_ms()),
            Some(FromGateway::Proposed { note }) => self.keeper.take_proposed(note),
            Some(FromGateway::Witnessed(head)) => self.keeper.take_witnessed(&head),
            Some(FromGateway::Bookmark { note }) => self.keeper.take_bookmark(&note, now_ms()),
            Some(FromGateway::Fork { note }) => Err(self.keeper.judge_claim(&note)),
            Some(FromGateway::Ack { id, index }) => self.answer(id, Ok(index)),
            Some(FromGateway::Reject { id, rule, text }) => self.answer(id, Err(SubmitError::Refused { rule, text })),
            Some(FromGateway::Busy { id, retry_ms }) => self.answer(id, Err(SubmitError::Busy { retry_ms })),
            Some(FromGateway::AskTime { asked }) => {
                self.asked = Some(asked);
                Ok(())
            }
            Some(FromGateway::Bye { reason, text, retry_ms }) => return Err(bye(reason, &text, retry_ms)),
            Some(FromGateway::Challenge { .. } | FromGateway::Welcome { .. }) => {
                Err(Broken::Protocol("it greets twice"))
            }
        };
        taken.map_err(|broken| self.broken(broken))
    }

    fn broken(&self, broken: Broken) -> End {
        match broken {
            Broken::Fork { ours, proof } => End::Halt(Alarm::Fork { ours, proof }),
            Broken::Rule { index, ref refusal } => {
                self.shared.alarm(Alarm::Rule { index, refusal: refusal.clone() });
                End::Hopeless(with_cause(&broken))
            }
            other => End::Hopeless(with_cause(&other)),
        }
    }

    /// Answers a gateway that holds its clock against those of the witnesses.
    async fn tell_time(&mut self, connection: &mut Connection) -> Result<(), End> {
        match self.asked.take() {
            Some(asked) => Ok(connection.send(&FromClient::Time { asked, time_ms: now_ms() }).await?),
            None => Ok(()),
        }
    }

    async fn cosign(&mut self, connection: &mut Connection) -> Result<(), End> {
        let Some(signer) = &self.witness else { return Ok(()) };
        let cosigned = self.keeper.cosign(&**signer, now_ms());
        let withheld = match &cosigned {
            Ok(_) | Err(Withheld::NotWitness) => None,
            Err(why) => Some(why.to_string()),
        };
        self.shared.with(|status| status.withheld = withheld);
        match cosigned {
            Ok(Some((head, cosignature))) => Ok(connection.send(&FromClient::Cosign { head, cosignature }).await?),
            Ok(None) | Err(_) => Ok(()),
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

    fn welcomed(&mut self, gateway: &GatewayAddress, target: u64, time_ms: u64) {
        self.shared
            .gateway_ahead_ms
            .store(time_ms.cast_signed().saturating_sub(now_ms().cast_signed()), Ordering::Relaxed);
        let caught_up = self.keeper.chain().tip().size() >= target;
        (self.last_heard, self.asked) = (Instant::now(), None);
        self.keeper.forget_proposal();
        self.submissions.values_mut().for_each(|s| s.under_way = false);
        self.shared.with(|status| {
            status.connected = true;
            status.caught_up = caught_up;
            status.last_contact_ms = now_ms();
            status.last_error = None;
            status.hopeless = 0;
            status.alarm.take_if(|alarm| matches!(alarm, Alarm::Behind { .. }));
        });
        self.shared.tell(&Change::Connected);
        tracing::info!(gateway = gateway.address, "connected to the ledger");
    }

    fn disconnected(&mut self, end: &End) {
        let mut was_connected = false;
        self.shared.with(|status| {
            was_connected = std::mem::replace(&mut status.connected, false);
            status.caught_up = false;
            if let End::Lost(text, _) | End::Hopeless(text) = end {
                status.last_error = Some(text.clone());
            }
            status.hopeless = if matches!(end, End::Hopeless(_)) { status.hopeless.saturating_add(1) } else { 0 };
        });
        if let End::Lost(text, _) | End::Hopeless(text) = end {
            tracing::info!(text, "no connection to the ledger");
        }
        if was_connected {
            self.shared.tell(&Change::Disconnected);
        }
    }

    // --- what users ask -----------------------------------------------------------------------------------------------------

    fn command(&mut self, command: Option<Command>) -> ControlFlow<()> {
        match command {
            None | Some(Command::Stop) => return ControlFlow::Break(()),
            Some(Command::Entries { from, count, reply }) => {
                let _ = reply.send(self.keeper.store().entries(from, count));
            }
            Some(Command::Submit(submission)) => {
                self.next_id += 1;
                self.submissions.insert(self.next_id, submission);
            }
        }
        ControlFlow::Continue(())
    }

    /// Sends submissions that this connection has not seen.
    async fn send_submissions(&mut self, connection: &mut Connection) -> Result<(), End> {
        let now = Instant::now();
        self.submissions.retain(|_, s| s.deadline > now);
        for (id, submission) in self.submissions.iter_mut().filter(|(_, s)| !s.under_way) {
            submission.sent.store(true, Ordering::Release);
            submission.under_way = true;
            connection.send(&FromClient::Submit { id: *id, entry: submission.entry.clone() }).await?;
        }
        Ok(())
    }

    fn answer(&mut self, id: u64, outcome: Result<u64, SubmitError>) -> Result<(), Broken> {
        if let Some(submission) = self.submissions.remove(&id) {
            let _ = submission.reply.send(outcome);
        }
        Ok(())
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

    // --- the end ------------------------------------------------------------------------------------------------------------

    fn old_fork(&self) -> Option<Alarm> {
        match self.keeper.store().fork() {
            Ok(None) => None,
            Ok(Some(proof)) => {
                let unreadable =
                    |_| ForkProof { network: self.shared.network.network, ours: None, theirs: proof.clone() };
                let kept = cbor::from_exact(&proof).unwrap_or_else(unreadable);
                Some(Alarm::Fork { ours: self.keeper.chain().tip().head(), proof: kept })
            }
            Err(error) => Some(Alarm::Disk(with_cause(&error))),
        }
    }

    /// Keeps the proof and answers nothing but questions about what is stored.
    async fn halt(&mut self, alarm: Alarm) {
        if let Alarm::Fork { proof, .. } = &alarm
            && let Err(error) = self.keeper.put_fork(proof)
        {
            tracing::error!(error = with_cause(&error), "proof of the fork cannot be stored");
        }
        self.shared.alarm(alarm);
        self.submissions.clear(); // whoever waits learns that nobody answers
        while let Some(command) = self.commands.recv().await {
            if self.command(Some(command)).is_break() {
                return;
            }
            self.submissions.clear();
        }
    }
}

fn bye(reason: Bye, text: &str, retry_ms: u64) -> End {
    let text = format!("the gateway says: {text}");
    match reason {
        Bye::Version | Bye::Network | Bye::Authentication | Bye::Behind => End::Hopeless(text),
        _ => End::Lost(text, retry_ms),
    }
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
