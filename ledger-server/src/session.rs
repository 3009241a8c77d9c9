//! One client: TLS, WebSocket, hello, then reading and sending side by side until one of them ends.

use crate::backend::Backend;
use crate::clock::{WitnessClocks, now_ms, since_boot};
use crate::config::Limits;
use crate::feed::{Cursor, Feed, Next, cut};
use crate::key::GatewayKey;
use crate::ladder::climb;
use crate::limits::*;
use crate::sequencer::Submission;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use mayfly_plugin_api::ReadAnswer;
use mayfly_protocol::head::Cosignature;
use mayfly_protocol::record::DeviceRole;
use mayfly_protocol::sync::{
    self, Bye, CHALLENGE_BYTES, CLIENT_FRAME_BYTES_MAX, Client, EXPORTER_BYTES, EXPORTER_LABEL, FromClient,
    FromGateway, Hello, PATH, SUBPROTOCOL, hello_message,
};
use mayfly_protocol::{Head, NetworkId};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::{Duration, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Bytes, Error as WsError, Message};

type Socket = WebSocketStream<TlsStream<TcpStream>>;
type Sender = SplitSink<Socket, Message>;
type Receiver = SplitStream<Socket>;

/// Clients whose submission rate is remembered; beyond it those that are at rest are forgotten.
const BUCKETS_MAX: usize = 20_000;
/// Longest time for a good-bye.
const BYE_MAX: Duration = Duration::from_secs(1);

/// What all sessions share.
pub struct Hub {
    /// The network.
    pub network: NetworkId,
    /// The gateway's key.
    pub key: Arc<GatewayKey>,
    /// TLS with that key.
    pub tls: TlsAcceptor,
    /// What there is to send.
    pub feed: Arc<Feed>,
    /// For those who lag behind the feed.
    pub backend: Arc<dyn Backend>,
    /// To the sequencer.
    pub submissions: mpsc::Sender<Submission>,
    /// To the notary.
    pub cosignatures: mpsc::Sender<(Head, Cosignature)>,
    /// What witnesses say of the time.
    pub clocks: Arc<Mutex<WitnessClocks>>,
    /// Becomes true when the gateway stops.
    pub stop: watch::Receiver<bool>,
    /// Bounds.
    pub limits: Limits,
    /// Connections now.
    pub connections: AtomicUsize,
    /// Bounds handshakes under way.
    pub handshakes: Semaphore,
    /// Bounds reads from the store.
    pub store_reads: Semaphore,
    /// Connections of each client.
    pub clients: Mutex<HashMap<Client, usize>>,
    /// Submissions that clients may still make.
    pub buckets: Mutex<HashMap<Client, Bucket>>,
}

/// A token bucket.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

/// One of the connections that a client may have.
struct Place<'h> {
    clients: &'h Mutex<HashMap<Client, usize>>,
    client: Client,
}

impl<'h> Place<'h> {
    fn take(clients: &'h Mutex<HashMap<Client, usize>>, client: Client) -> Option<Place<'h>> {
        let mut all = clients.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = all.entry(client).or_insert(0);
        if *taken >= CONNECTIONS_PER_CLIENT_MAX {
            return None;
        }
        *taken += 1;
        Some(Place { clients, client })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut all = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = all.get_mut(&self.client) {
            *taken -= 1;
            if *taken == 0 {
                all.remove(&self.client);
            }
        }
    }
}

/// Why a session ended.
enum Ended {
    /// The client has gone.
    Gone,
    /// The client is told.
    Bye(Bye, String),
}

impl From<WsError> for Ended {
    fn from(error: WsError) -> Ended {
        match error {
            WsError::Capacity(_) => Ended::Bye(Bye::Malformed, "the frame is too long".into()),
            WsError::Protocol(e) => Ended::Bye(Bye::Malformed, format!("not a WebSocket frame: {e}")),
            _ => Ended::Gone,
        }
    }
}

fn bye<T>(reason: Bye, text: impl Into<String>) -> Result<T, Ended> {
    Err(Ended::Bye(reason, text.into()))
}

impl Hub {
    /// Serves one connection, from first to last. Errors are the client's own.
    pub async fn serve(&self, stream: TcpStream) {
        let peer = stream.peer_addr().map(|a| a.to_string()).unwrap_or_default();
        let socket = timeout(HANDSHAKE_MAX, self.shake_hands(stream)).await;
        let Ok(Some((mut socket, exporter))) = socket else {
            return tracing::debug!(peer, "handshake failed");
        };
        let greeted = timeout(HANDSHAKE_MAX, self.greet(&mut socket, &exporter)).await;
        let greeted = greeted.unwrap_or_else(|_| bye(Bye::Idle, "no hello in time"));
        let ended = match greeted {
            Err(ended) => ended,
            Ok((client, cursor)) => match Place::take(&self.clients, client) {
                Some(_place) => {
                    tracing::info!(peer, ?client, have = cursor.size, "client connected");
                    return self.follow(socket, client, cursor, peer).await;
                }
                None => Ended::Bye(Bye::Crowded, "you have too many connections".into()),
            },
        };
        if let Ended::Bye(reason, text) = ended {
            tracing::info!(peer, ?reason, text, "client refused");
            let farewell = FromGateway::bye(reason, text).encode();
            let _ = timeout(BYE_MAX, async {
                socket.send(Message::binary(farewell)).await?;
                socket.close(None).await
            })
            .await;
        }
    }

    async fn shake_hands(&self, stream: TcpStream) -> Option<(Socket, [u8; EXPORTER_BYTES])> {
        let _permit = self.handshakes.acquire().await.ok()?;
        stream.set_nodelay(true).ok()?; // a small answer waits for no acknowledgement
        // The kernel would let the send buffer of a slow client grow to megabytes.
        rustix::net::sockopt::set_socket_send_buffer_size(&stream, SOCKET_SEND_BYTES).ok()?;
        let stream = self.tls.accept(stream).await.ok()?;
        let (_, tls) = stream.get_ref();
        let exporter = tls.export_keying_material([0; EXPORTER_BYTES], EXPORTER_LABEL, Some(&[])).ok()?;
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(WRITE_BUFFER_BYTES)
            .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
            .max_message_size(Some(CLIENT_FRAME_BYTES_MAX))
            .max_frame_size(Some(CLIENT_FRAME_BYTES_MAX));
        let socket = tokio_tungstenite::accept_hdr_async_with_config(stream, check_request, Some(config)).await.ok()?;
        Some((socket, exporter))
    }

    /// Challenge, hello, welcome.
    async fn greet(&self, socket: &mut Socket, exporter: &[u8; EXPORTER_BYTES]) -> Result<(Client, Cursor), Ended> {
        let mut nonce = [0; CHALLENGE_BYTES];
        if getrandom::fill(&mut nonce).is_err() {
            return bye(Bye::Internal, "the gateway has no randomness");
        }
        send(socket, &FromGateway::Challenge { versions: vec![sync::VERSION], nonce }).await?;
        let hello = loop {
            match next_message(socket.next().await)? {
                None => {}
                Some(FromClient::Hello(hello)) => break hello,
                Some(_) => return bye(Bye::Malformed, "the first message is a hello"),
            }
        };
        let client = self.check_hello(&hello, exporter, &nonce)?;
        let tip = self.feed.tip();
        send(socket, &FromGateway::Welcome { head: tip.head(), first: 0, time_ms: now_ms() }).await?;
        if hello.tip.size > tip.size() {
            let text = format!("this gateway has {} entries, you have {}", tip.size(), hello.tip.size);
            return bye(Bye::Behind, text);
        }
        self.check_token(socket, &hello.tip).await?;
        Ok((client, self.feed.cursor(hello.tip.size, hello.witnessed.min(hello.tip.size))))
    }

    fn check_hello(
        &self,
        hello: &Hello,
        exporter: &[u8; EXPORTER_BYTES],
        nonce: &[u8; CHALLENGE_BYTES],
    ) -> Result<Client, Ended> {
        if hello.version != sync::VERSION {
            return bye(Bye::Version, format!("this gateway speaks version {}", sync::VERSION));
        }
        if hello.network != self.network {
            return bye(Bye::Network, format!("this gateway serves network {}", self.network));
        }
        let message = hello_message(&self.network, &self.key.public(), exporter, nonce, &hello.key.0);
        if hello.key.0.verify(&message, &hello.signature).is_err() {
            return bye(Bye::Authentication, "the hello's signature is bad");
        }
        match Client::identify(&self.feed.tip(), &hello.key.0, now_ms()) {
            Ok(client) => Ok(client),
            Err(reason) => bye(Bye::Authentication, reason.to_string()),
        }
    }

    /// Compares the client's resume token with the ledger; another root there is a fork, which our signature proves.
    async fn check_token(&self, socket: &mut Socket, token: &Head) -> Result<(), Ended> {
        if token.size == 0 {
            return Ok(());
        }
        let Some(ours) = self.head_at(token.size).await else {
            return bye(Bye::Internal, "this gateway cannot read its store");
        };
        if ours == *token {
            return Ok(());
        }
        tracing::error!(
            size = token.size,
            "a client has another root: the ledger has forked, or the client's copy is damaged"
        );
        let note = self.key.note(&self.network, &ours).encode().into_bytes();
        send(socket, &FromGateway::Fork { note }).await?;
        bye(Bye::GoingAway, "the ledger has forked")
    }

    async fn head_at(&self, size: u64) -> Option<Head> {
        let rung = match self.feed.root_at(size)? {
            Ok(head) => return Some(head),
            Err(rung) => rung,
        };
        let mut bundles = Vec::new();
        let mut at = rung.size();
        while at < size {
            let more = self.read_store(at).await?;
            for stored in more {
                at = stored.end;
                match FromGateway::decode(&stored.bytes) {
                    Ok(Some(FromGateway::Bundle(bundle))) => bundles.push(bundle),
                    _ => return None,
                }
            }
        }
        climb(rung, size, &bundles).map(|root| Head { size, root })
    }

    /// Bundles from the store, at least one.
    async fn read_store(&self, from: u64) -> Option<Vec<mayfly_plugin_api::Bundle>> {
        let _permit = self.store_reads.acquire().await.ok()?;
        let backend = self.backend.clone();
        match spawn_blocking(move || backend.read(from, STORE_READ_BYTES)).await.ok()? {
            Ok(ReadAnswer::Bundles(bundles)) if !bundles.is_empty() => Some(bundles),
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "reading the store for a client");
                None
            }
        }
    }

    /// Reads and sends, side by side, until one of them ends.
    async fn follow(&self, socket: Socket, client: Client, cursor: Cursor, peer: String) {
        let (mut sender, mut receiver) = socket.split();
        let (answers, waiting) = mpsc::channel(IN_FLIGHT_MAX);
        let heard = watch::Sender::new(Instant::now());
        let ended = {
            let sending = Sending { hub: self, sender: &mut sender, client, cursor, heard: heard.subscribe() };
            tokio::select! {
                ended = self.read(&mut receiver, client, answers, &heard) => ended,
                ended = sending.run(waiting) => ended,
            }
        };
        let Err(Ended::Bye(reason, text)) = ended else {
            return tracing::info!(peer, ?client, "client gone");
        };
        tracing::info!(peer, ?client, ?reason, text, "client dropped");
        let mut farewell = FromGateway::bye(reason, text);
        if let (Bye::GoingAway, FromGateway::Bye { retry_ms, .. }) = (reason, &mut farewell) {
            *retry_ms = self.spread_ms();
        }
        let _ = timeout(BYE_MAX, async {
            sender.send(Message::binary(farewell.encode())).await?;
            sender.close().await
        })
        .await;
    }

    async fn read(
        &self,
        receiver: &mut Receiver,
        client: Client,
        answers: mpsc::Sender<FromGateway>,
        heard: &watch::Sender<Instant>,
    ) -> Result<(), Ended> {
        loop {
            let message = next_message(receiver.next().await)?;
            heard.send_replace(Instant::now());
            match message {
                None => {}
                Some(FromClient::Hello(_)) => return bye(Bye::Malformed, "a hello is said once"),
                Some(FromClient::Submit { id, entry }) => {
                    // Waits when too many submissions are under way: then nothing more is read from this client.
                    let Ok(reply) = answers.clone().reserve_owned().await else { return Err(Ended::Gone) };
                    self.submit(client, Submission { id, entry, reply: Some(reply) });
                }
                Some(FromClient::Cosign { head, cosignature }) => {
                    if client.now(&self.feed.tip()) != Client::Device(cosignature.witness) {
                        return bye(Bye::Malformed, "a cosignature is its witness's own");
                    }
                    // When the notary does not keep up, the next head gets new ones.
                    let _ = self.cosignatures.try_send((head, cosignature));
                }
                Some(FromClient::Time { asked, time_ms }) => self.told_time(client, asked, time_ms),
            }
        }
    }

    fn told_time(&self, client: Client, asked: u64, time_ms: u64) {
        let tip = self.feed.tip();
        if let Client::Device(device) = client.now(&tip) {
            let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
            clocks.stated(&tip, device, asked, time_ms, since_boot());
        }
    }

    fn submit(&self, client: Client, mut submission: Submission) {
        if let Some(retry_ms) = self.take_token(client) {
            return submission.busy(retry_ms);
        }
        if let Err(e) = self.submissions.try_send(submission) {
            e.into_inner().busy(BUSY_MS);
        }
    }

    /// Takes one submission from the client's allowance; or says in how many milliseconds there is one.
    fn take_token(&self, client: Client) -> Option<u64> {
        let rate = f64::from(self.limits.submissions_per_second);
        let burst = f64::from(self.limits.submissions_burst.max(1));
        if rate == 0.0 {
            return None;
        }
        let now = Instant::now();
        let filled = |b: &Bucket| (b.tokens + now.duration_since(b.at).as_secs_f64() * rate).min(burst);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= BUCKETS_MAX {
            buckets.retain(|_, b| filled(b) < burst);
        }
        let bucket = buckets.entry(client).or_insert(Bucket { tokens: burst, at: now });
        let tokens = filled(bucket);
        let taken = tokens >= 1.0;
        *bucket = Bucket { tokens: if taken { tokens - 1.0 } else { tokens }, at: now };
        (!taken).then(|| ((1.0 - tokens) / rate * 1000.0).ceil() as u64)
    }

    /// When a client should come back after this gateway has stopped: all of them spread over some time.
    fn spread_ms(&self) -> u64 {
        let window = (self.connections.load(Ordering::Relaxed) as u64).saturating_mul(5).min(SPREAD_MS_MAX);
        getrandom::u64().unwrap_or(0) % window.max(1)
    }
}

/// The sending half of a session.
struct Sending<'s> {
    hub: &'s Hub,
    sender: &'s mut Sender,
    client: Client,
    cursor: Cursor,
    heard: watch::Receiver<Instant>,
}

impl Sending<'_> {
    async fn run(mut self, mut answers: mpsc::Receiver<FromGateway>) -> Result<(), Ended> {
        let mut stop = self.hub.stop.clone();
        let mut changes = self.hub.feed.changes();
        let mut stored = VecDeque::new();
        let mut bookmarked: Option<Instant> = None;
        let mut asked: Option<Instant> = None;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changes.borrow_and_update();
            self.check_client()?;
            if asked.is_none_or(|at| at.elapsed() >= ASK_TIME_EVERY) && self.is_witness() {
                let question = FromGateway::AskTime { asked: since_boot().as_millis() as u64 };
                self.push(question.encode().into()).await?;
                asked = Some(Instant::now());
            }
            while self.send_next(&mut answers, &mut stored).await? {}
            // Also under load, since witnesses sign only with a recent one: everything was sent, and the next bundle comes after this.
            if bookmarked.is_none_or(|at| at.elapsed() >= BOOKMARK_EVERY)
                && let Some(frame) = self.hub.feed.bookmark(self.cursor.size, now_ms)
            {
                self.push(frame).await?;
                bookmarked = Some(Instant::now());
            }
            self.within(SinkExt::flush).await?;
            tokio::select! {
                _ = changes.changed() => {}
                Some(answer) = answers.recv() => self.push(answer.encode().into()).await?,
                _ = tick.tick() => self.look_after().await?,
                () = stopped(&mut stop) => return bye(Bye::GoingAway, "the gateway stops"),
            }
        }
    }

    /// Sends one frame, if there is one: answers before heads before bundles.
    async fn send_next(
        &mut self,
        answers: &mut mpsc::Receiver<FromGateway>,
        stored: &mut VecDeque<mayfly_plugin_api::Bundle>,
    ) -> Result<bool, Ended> {
        if let Ok(answer) = answers.try_recv() {
            self.push(answer.encode().into()).await?;
            return Ok(true);
        }
        match self.hub.feed.next(&mut self.cursor) {
            Next::Frame(frame) => self.push(frame).await?,
            Next::Stored => self.send_stored(stored).await?,
            Next::Nothing => return Ok(false),
        }
        Ok(true)
    }

    async fn send_stored(&mut self, stored: &mut VecDeque<mayfly_plugin_api::Bundle>) -> Result<(), Ended> {
        let at = self.cursor.size;
        if stored.front().is_none_or(|b| !(b.first..b.end).contains(&at)) {
            match self.hub.read_store(at).await {
                Some(bundles) => *stored = bundles.into(),
                None => return bye(Bye::Internal, "this gateway cannot read its store"),
            }
        }
        let Some(bundle) = stored.pop_front() else { return Ok(()) };
        self.cursor.size = bundle.end;
        self.push(cut(&bundle.bytes.into(), bundle.first, at)).await
    }

    async fn look_after(&mut self) -> Result<(), Ended> {
        let silence = self.heard.borrow().elapsed();
        if silence > DEAD_AFTER {
            return bye(Bye::Idle, "nothing was heard from you");
        }
        if silence > PING_AFTER {
            self.within(|sender| sender.send(Message::Ping(Bytes::new()))).await?;
        }
        Ok(())
    }

    /// What the ledger says of this client may have changed.
    fn check_client(&mut self) -> Result<(), Ended> {
        let tip = self.hub.feed.tip();
        self.client = self.client.now(&tip);
        match self.client.check(&tip, now_ms()) {
            Ok(()) => Ok(()),
            Err(reason) => bye(Bye::Authentication, reason.to_string()),
        }
    }

    fn is_witness(&self) -> bool {
        let Client::Device(id) = self.client else { return false };
        self.hub.feed.tip().devices.get(&id).is_some_and(|device| device.has_role(DeviceRole::Witness))
    }

    async fn push(&mut self, frame: Bytes) -> Result<(), Ended> {
        self.within(|sender| sender.feed(Message::Binary(frame))).await
    }

    /// Writes, within the time that a client may take.
    async fn within<'a, F>(&'a mut self, write: impl FnOnce(&'a mut Sender) -> F) -> Result<(), Ended>
    where
        F: Future<Output = Result<(), WsError>>,
    {
        match timeout(Duration::from_secs(self.hub.limits.slow_seconds), write(self.sender)).await {
            Ok(written) => Ok(written?),
            Err(_) => bye(Bye::Slow, "you read too slowly"),
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn send(socket: &mut Socket, message: &FromGateway) -> Result<(), Ended> {
    Ok(socket.send(Message::binary(message.encode())).await?)
}

/// A message, or `None` for control frames and messages that may be passed over.
fn next_message(frame: Option<Result<Message, WsError>>) -> Result<Option<FromClient>, Ended> {
    match frame {
        None | Some(Ok(Message::Close(_))) => Err(Ended::Gone),
        Some(Ok(Message::Binary(frame))) => match FromClient::decode(&frame) {
            Ok(message) => Ok(message),
            Err(error) => bye(Bye::Malformed, error.to_string()),
        },
        Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(None),
        Some(Ok(_)) => bye(Bye::Malformed, "messages are binary frames"),
        Some(Err(error)) => Err(error.into()),
    }
}

/// The request of the WebSocket handshake: our path, our subprotocol.
#[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
fn check_request(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let refuse = |status, text: &str| {
        let mut refusal = ErrorResponse::new(Some(text.to_owned()));
        *refusal.status_mut() = status;
        Err(refusal)
    };
    if request.uri().path() != PATH {
        return refuse(StatusCode::NOT_FOUND, "the ledger is at /v1/ledger\n");
    }
    let offered = request.headers().get_all(SEC_WEBSOCKET_PROTOCOL).iter();
    let ours = offered.filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(',')).any(|p| p.trim() == SUBPROTOCOL);
    if !ours {
        return refuse(StatusCode::BAD_REQUEST, "the subprotocol is mayfly-ledger.v1\n");
    }
    response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}
