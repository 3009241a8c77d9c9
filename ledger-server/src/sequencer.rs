//! The one task that decides what comes next.
//!
//! It takes what has queued, judges each entry on a draft of the state, appends the good ones as one bundle, and acknowledges when the
//! backend says "durable". What queued meanwhile is the next bundle: the backend's own speed makes the batches, nothing waits on a timer.
//! An append whose outcome is not known is looked up before anything else happens.
//!
//! Nothing is sequenced while this gateway's clock and those of the witnesses disagree ([`crate::clock`]), nor, for a while after the start,
//! before they have told.

use crate::backend::Backend;
use crate::clock::{Moment, Verdict, WitnessClocks, WrongClock, now_ms};
use crate::feed::Feed;
use crate::limits::{
    ASK_FIRST_MAX, ASK_FIRST_POLL, BUSY_MS, CHECKPOINT_EVERY, FOREIGN_PAUSE, FOREIGN_WAIT, PROPOSAL_STALE_AFTER,
    RESOLVE_EVERY, STORE_BUSY_MS,
};
use crate::notary::{Notary, Witnessed};
use crate::opening::{self, Opened, StoredHead};
use mayfly_ledger_client::with_cause;
use mayfly_ledger_client::{Chain, ChainError, Draft};
use mayfly_plugin_api::{Append, Head as StoreHead, PluginError, ReadAnswer, Status};
use mayfly_protocol::cbor;
use mayfly_protocol::head::Cosignature;
use mayfly_protocol::sync::{BUNDLE_BYTES_MAX, BUNDLE_ENTRIES_MAX, Bundle, FromGateway, reject};
use mayfly_protocol::{Head, Refusal};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

/// Most bytes of a bundle's frame beside its entries: their lengths, and what stands in front.
const BUNDLE_FRAMING_BYTES: usize = 5 * BUNDLE_ENTRIES_MAX + 32;

/// An entry that a client wants appended.
pub struct Submission {
    /// The client's number for it.
    pub id: u64,
    /// The entry.
    pub entry: Vec<u8>,
    /// Room for the one answer; `None` when it was given.
    pub reply: Option<mpsc::OwnedPermit<FromGateway>>,
}

impl Submission {
    /// Answers, once. The client may have gone; what is in the ledger stays there.
    pub fn answer(&mut self, answer: FromGateway) {
        if let Some(reply) = self.reply.take() {
            reply.send(answer);
        }
    }

    /// Tells the client to submit the same again later.
    pub fn busy(&mut self, retry_ms: u64) {
        self.answer(FromGateway::Busy { id: self.id, retry_ms });
    }
}

/// What the sessions bring.
pub struct Inbox {
    /// Entries.
    pub submissions: mpsc::Receiver<Submission>,
    /// Cosignatures of heads.
    pub cosignatures: mpsc::Receiver<(Head, Cosignature)>,
    /// What witnesses say of the time.
    pub clocks: Arc<Mutex<WitnessClocks>>,
    /// Becomes true when the gateway stops.
    pub stop: watch::Receiver<bool>,
}

/// The task's own.
pub struct Sequencer {
    backend: Arc<dyn Backend>,
    feed: Arc<Feed>,
    chain: Chain,
    /// Head of the store.
    head: StoreHead,
    notary: Notary,
    submissions: mpsc::Receiver<Submission>,
    cosignatures: mpsc::Receiver<(Head, Cosignature)>,
    clocks: Arc<Mutex<WitnessClocks>>,
    started: Instant,
    stop: watch::Receiver<bool>,
    /// Told when the store may have grown by somebody else's hand.
    foreign: mpsc::Receiver<()>,
    /// The store's size as far as this sequencer knows, for the one who watches for others.
    known: Arc<AtomicU64>,
    /// Size of the newest stored head by which the witnesses changed.
    link: Option<u64>,
    /// The newest witnessed head, while it is not stored.
    unstored: Option<Witnessed>,
    storing: Option<JoinHandle<()>>,
    stored_at: Option<Instant>,
}

/// A bundle that is on its way into the store.
struct Flight {
    bundle: Bundle,
    frame: Vec<u8>,
    draft: Draft,
    expected: StoreHead,
    new: StoreHead,
    /// Submissions in the order of the entries, with their indices.
    accepted: Vec<(Submission, u64)>,
}

/// What became of a bundle.
enum Landing {
    Stored,
    Conflict,
    /// Nothing was stored, by anybody.
    Lost,
    Refused(PluginError),
}

impl Sequencer {
    /// A sequencer that goes on from here.
    pub fn new(backend: Arc<dyn Backend>, feed: Arc<Feed>, opened: Opened, notary: Notary, inbox: Inbox) -> Sequencer {
        let Inbox { submissions, cosignatures, clocks, stop } = inbox;
        let link = opened.links.last().map(|(size, _)| *size);
        let Opened { chain, head, .. } = opened;
        let known = Arc::new(AtomicU64::new(head.size));
        let foreign = watch_for_others(backend.clone(), known.clone(), stop.clone());
        Sequencer {
            backend,
            feed,
            chain,
            head,
            notary,
            submissions,
            cosignatures,
            clocks,
            started: Instant::now(),
            stop,
            foreign,
            known,
            link,
            unstored: None,
            storing: None,
            stored_at: None,
        }
    }

    /// The task. Ends when it is told to stop, after the bundle that is under way.
    pub async fn run(mut self) {
        self.propose();
        while !*self.stop.borrow() {
            let stale = self.notary.is_behind(&self.chain);
            let waits = self.awaits_clocks();
            tokio::select! {
                biased;
                _ = self.stop.changed() => break,
                Some((head, cosignature)) = self.cosignatures.recv() => self.cosigned(head, cosignature).await,
                Some(()) = self.foreign.recv() => self.take_up_foreign().await,
                Some(first) = self.submissions.recv(), if !waits => self.sequence(first).await,
                () = sleep(ASK_FIRST_POLL), if waits => if stale { self.propose() },
                () = sleep(PROPOSAL_STALE_AFTER), if stale => self.propose(),
                else => break,
            }
        }
        self.store_newest_head().await;
    }

    // --- entries ------------------------------------------------------------------------------------------------------------

    async fn sequence(&mut self, first: Submission) {
        let mut queue = self.gather(first);
        while !queue.is_empty() {
            let Some(mut flight) = self.prepare(queue) else { return self.feed.not_sequenced() };
            let landing = self.append(&mut flight).await;
            queue = self.land(flight, landing).await;
        }
    }

    /// Everything that has queued, up to the size of a bundle. Every store takes a bundle of one entry, whatever its size
    /// (`docs/formats/plugin-abi.md`).
    fn gather(&mut self, first: Submission) -> Vec<Submission> {
        let bytes_max = self.backend.bundle_bytes_max().saturating_sub(BUNDLE_FRAMING_BYTES).min(BUNDLE_BYTES_MAX);
        let mut bytes = first.entry.len();
        let mut queue = vec![first];
        // An entry is far smaller than a bundle, so stopping below the limit less one entry wastes little.
        while queue.len() < BUNDLE_ENTRIES_MAX && bytes + mayfly_protocol::entry::ENTRY_BYTES_MAX <= bytes_max {
            let Ok(next) = self.submissions.try_recv() else { break };
            bytes += next.entry.len();
            queue.push(next);
        }
        queue
    }

    /// Judges the entries; `None` when none of them can be appended.
    fn prepare(&mut self, queue: Vec<Submission>) -> Option<Flight> {
        let mut draft = self.chain.draft();
        if let Err(wrong) = self.judge_clock() {
            tracing::error!(%wrong, "no entries are taken");
            let refused = |mut s: Submission| s.answer(FromGateway::reject(s.id, reject::CLOCK, wrong.to_string()));
            queue.into_iter().for_each(refused);
            return None;
        }
        let time_ms = self.feed.sequencing(|| now_ms().max(draft.tip().time_ms));
        let mut entries = Vec::new();
        let mut accepted = Vec::new();
        let mut repeated = Vec::new();
        for mut submission in queue {
            let index = draft.tip().size();
            match draft.append(time_ms, &submission.entry) {
                Ok(()) => {
                    entries.push(submission.entry.clone().into());
                    accepted.push((submission, index));
                }
                Err(ChainError::Refused { refusal: Refusal::Duplicate(index), .. }) => {
                    repeated.push((submission, index))
                }
                Err(ChainError::Refused { refusal, .. }) => {
                    submission.answer(FromGateway::reject(submission.id, refusal.code(), with_cause(&refusal)));
                }
                Err(error) => submission.answer(FromGateway::reject(submission.id, "rule", with_cause(&error))),
            }
        }
        let first = self.head.size;
        for (mut submission, index) in repeated {
            if index < first {
                submission.answer(FromGateway::Ack { id: submission.id, index }); // durable since long
            } else {
                accepted.push((submission, index)); // twice in this very bundle
            }
        }
        if entries.is_empty() {
            return None;
        }
        let bundle = Bundle { first, time_ms, entries };
        let frame = FromGateway::Bundle(bundle.clone()).encode();
        let expected = self.head;
        let new = StoreHead {
            size: bundle.end(),
            epoch: expected.epoch,
            bundle_hash: Bundle::chain_hash(&expected.bundle_hash, &frame),
        };
        Some(Flight { bundle, frame, draft, expected, new, accepted })
    }

    fn judge_clock(&self) -> Result<Verdict, WrongClock> {
        let clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        clocks.judge(self.chain.effective(), Moment::now())
    }

    /// Whether entries wait for the witnesses to say what time it is: a gateway that starts knows nothing of its own clock.
    fn awaits_clocks(&self) -> bool {
        self.started.elapsed() < ASK_FIRST_MAX && self.judge_clock() == Ok(Verdict::Unknown)
    }

    /// Appends, and goes on collecting cosignatures meanwhile.
    async fn append(&mut self, flight: &mut Flight) -> Landing {
        let (backend, expected, new, frame) = (self.backend.clone(), flight.expected, flight.new, flight.frame.clone());
        let appended = self.meanwhile(move || backend.append_if_head(&expected, &new, &frame)).await;
        match appended {
            Ok(Append::Done) => Landing::Stored,
            Ok(Append::Conflict(_)) => Landing::Conflict,
            Err(error) => Landing::Refused(error),
            Ok(Append::Unknown(error)) => {
                tracing::warn!(%error, "an append may or may not have been stored; looking");
                self.look_up(flight).await
            }
        }
    }

    /// Finds out what became of a doubtful append: our bundle, another one, or none. Waits until the store answers; new submissions are told
    /// to come later.
    async fn look_up(&mut self, flight: &mut Flight) -> Landing {
        loop {
            let (backend, from) = (self.backend.clone(), flight.expected.size);
            match self.meanwhile(move || backend.read(from, 1)).await {
                Ok(ReadAnswer::Bundles(bundles)) => {
                    return match bundles.first() {
                        Some(found) if found.bundle_hash == flight.new.bundle_hash => Landing::Stored,
                        Some(_) => Landing::Conflict,
                        None => Landing::Lost,
                    };
                }
                Ok(ReadAnswer::Pruned(first)) => tracing::error!(first, "the store lost the end of the ledger"),
                Err(error) => tracing::warn!(%error, "the store does not answer"),
            }
            while let Ok(mut waiting) = self.submissions.try_recv() {
                waiting.busy(STORE_BUSY_MS);
            }
            flight.accepted.iter_mut().for_each(|(waiting, _)| waiting.busy(STORE_BUSY_MS));
            sleep(RESOLVE_EVERY).await;
        }
    }

    /// Makes the outcome known. Gives back what has to be judged again.
    async fn land(&mut self, mut flight: Flight, landing: Landing) -> Vec<Submission> {
        match landing {
            Landing::Stored => {
                self.chain.install(flight.draft);
                self.set_head(flight.new);
                for (submission, index) in &mut flight.accepted {
                    let (id, index) = (submission.id, *index);
                    submission.answer(FromGateway::Ack { id, index });
                }
                self.feed.push_bundle(&flight.bundle, flight.frame, self.chain.tip().clone());
                self.propose();
                Vec::new()
            }
            Landing::Conflict => {
                // The other bundle may be old: no bookmark may pass it by.
                self.take_up_foreign().await;
                self.feed.not_sequenced();
                flight.accepted.into_iter().map(|(submission, _)| submission).collect()
            }
            // Again, at the time that it is now: the old one may be long ago. Should the first append be stored after all, the second is a conflict.
            Landing::Lost => flight.accepted.into_iter().map(|(submission, _)| submission).collect(),
            Landing::Refused(error) => {
                self.feed.not_sequenced();
                let text = with_cause(&error);
                tracing::error!(error = text, "the store refused a bundle");
                for (submission, _) in &mut flight.accepted {
                    match error.status() {
                        Some(Status::ReadOnly) => submission.answer(FromGateway::reject(
                            submission.id,
                            reject::READ_ONLY,
                            format!("the ledger takes no entries now: {text}"),
                        )),
                        _ => submission.busy(STORE_BUSY_MS),
                    }
                }
                Vec::new()
            }
        }
    }

    /// Another gateway appended first: takes that up, until it works.
    async fn take_up_foreign(&mut self) {
        loop {
            let backend = self.backend.clone();
            let mut chain = self.chain.clone();
            let mut hash = self.head.bundle_hash;
            let caught_up = spawn_blocking(move || {
                let head = backend.head()?;
                let found = opening::catch_up(&mut chain, &mut hash, &*backend)?;
                Ok::<_, opening::OpeningError>((chain, hash, head.epoch, found))
            });
            match caught_up.await {
                Ok(Ok((chain, bundle_hash, epoch, found))) => {
                    self.chain = chain;
                    self.set_head(StoreHead { size: self.chain.tip().size(), epoch, bundle_hash });
                    for (bundle, frame) in found {
                        self.feed.push_bundle(&bundle, frame, self.chain.tip().clone());
                    }
                    return self.propose();
                }
                Ok(Err(error)) => {
                    tracing::error!(error = with_cause(&error), "the store has entries that cannot be taken up")
                }
                Err(error) => tracing::error!(%error, "reading the store"),
            }
            while let Ok(mut waiting) = self.submissions.try_recv() {
                waiting.busy(STORE_BUSY_MS);
            }
            sleep(RESOLVE_EVERY).await;
        }
    }

    fn set_head(&mut self, head: StoreHead) {
        self.head = head;
        self.known.store(head.size, Ordering::Relaxed);
    }

    /// Runs a call of the backend, and goes on collecting cosignatures meanwhile.
    async fn meanwhile<T: Send + 'static>(
        &mut self,
        call: impl FnOnce() -> Result<T, PluginError> + Send + 'static,
    ) -> Result<T, PluginError> {
        let mut call = spawn_blocking(call);
        loop {
            tokio::select! {
                done = &mut call => return done.expect("calls of the backend do not panic"),
                Some((head, cosignature)) = self.cosignatures.recv() => self.cosigned(head, cosignature).await,
            }
        }
    }

    // --- heads --------------------------------------------------------------------------------------------------------------

    fn propose(&mut self) {
        if let Some(proposed) = self.notary.propose(&self.chain, Instant::now()) {
            self.feed.propose(proposed.size, proposed.note);
        }
    }

    async fn cosigned(&mut self, head: Head, cosignature: Cosignature) {
        let Some(witnessed) = self.notary.cosigned(&mut self.chain, &head, cosignature) else { return };
        tracing::debug!(size = witnessed.size, "witnessed");
        // Nobody may see a head by which the witnesses change before it is safe: without it, whoever starts from nothing would be stuck.
        if witnessed.is_link && !self.store_link(&witnessed).await {
            return;
        }
        self.feed.witnessed(witnessed.size, &witnessed.head, witnessed.is_link);
        if !witnessed.is_link {
            self.unstored = Some(witnessed);
            self.store_sometimes();
        }
        self.propose();
    }

    async fn store_link(&mut self, witnessed: &Witnessed) -> bool {
        let bytes = stored(witnessed, self.link);
        loop {
            let (backend, bytes, size) = (self.backend.clone(), bytes.clone(), witnessed.size);
            match spawn_blocking(move || backend.put_checkpoint(size, &bytes)).await {
                Ok(Ok(())) => break,
                Ok(Err(error)) => tracing::error!(%error, "a witnessed head cannot be stored"),
                Err(error) => tracing::error!(%error, "storing a witnessed head"),
            }
            if *self.stop.borrow() {
                return false; // it was not shown to anybody; witnesses sign again after the start
            }
            sleep(RESOLVE_EVERY).await;
        }
        (self.link, self.unstored) = (Some(witnessed.size), None);
        true
    }

    /// Stores the newest witnessed head in the background, not too often. It only saves time after a restart.
    fn store_sometimes(&mut self) {
        let busy = self.storing.as_ref().is_some_and(|task| !task.is_finished());
        if busy || self.stored_at.is_some_and(|at| at.elapsed() < CHECKPOINT_EVERY) {
            return;
        }
        if let Some(witnessed) = self.unstored.take() {
            let (backend, bytes) = (self.backend.clone(), stored(&witnessed, self.link));
            self.stored_at = Some(Instant::now());
            self.storing = Some(spawn_blocking(move || {
                if let Err(error) = backend.put_checkpoint(witnessed.size, &bytes) {
                    tracing::warn!(%error, "a witnessed head cannot be stored");
                }
            }));
        }
    }

    async fn store_newest_head(&mut self) {
        if let Some(task) = self.storing.take() {
            let _ = task.await;
        }
        self.stored_at = None;
        self.store_sometimes();
        if let Some(task) = self.storing.take() {
            let _ = task.await;
        }
        self.submissions.close();
        while let Ok(mut waiting) = self.submissions.try_recv() {
            waiting.busy(BUSY_MS);
        }
    }
}

/// Where others may append too: tells when the store has grown beyond what is known here. The hint may be wrong; reading is the truth.
fn watch_for_others(
    backend: Arc<dyn Backend>,
    known: Arc<AtomicU64>,
    stop: watch::Receiver<bool>,
) -> mpsc::Receiver<()> {
    let (tell, told) = mpsc::channel(1);
    spawn_blocking(move || {
        while !*stop.borrow() && !tell.is_closed() {
            let above = known.load(Ordering::Relaxed);
            match backend.wait(above, FOREIGN_WAIT) {
                None => return,
                Some(Ok(head)) if head.size > above && known.load(Ordering::Relaxed) <= above => {
                    // The sequencer may be appending that very bundle; it knows by the time it reads this.
                    if tell.blocking_send(()).is_err() {
                        return;
                    }
                    std::thread::sleep(FOREIGN_PAUSE);
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "watching the store");
                    std::thread::sleep(RESOLVE_EVERY);
                }
            }
        }
    });
    told
}

fn stored(witnessed: &Witnessed, link_before: Option<u64>) -> Vec<u8> {
    cbor::to_vec(&StoredHead { head: witnessed.head.clone(), link_before })
}
