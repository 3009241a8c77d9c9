//! The service: opens the ledger, listens, serves, stops.

use crate::backend::Backend;
use crate::clock::now_ms;
use crate::config::Limits;
use crate::feed::Feed;
use crate::key::GatewayKey;
use crate::limits::{COSIGN_QUEUE_MAX, HANDSHAKES_MAX, QUEUE_MAX, STOP_MAX, STORE_READS_MAX};
use crate::notary::Notary;
use crate::opening::{self, OpeningError};
use crate::sequencer::{Inbox, Sequencer};
use crate::session::Hub;
use mayfly_ledger_client::NetworkFile;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

/// Pause when the system has no descriptor for a new connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a gateway is made of.
pub struct Gateway {
    /// The network; the genesis entry goes into an empty store.
    pub network: NetworkFile,
    /// The gateway's key, one of those in genesis.
    pub key: GatewayKey,
    /// The store.
    pub backend: Arc<dyn Backend>,
    /// Bounds.
    pub limits: Limits,
}

/// Serves on `listener` until `stop` is done. `ready` is called when clients are served.
///
/// # Errors
/// [`OpeningError`], when the ledger cannot be opened. Once it is served, nothing but `stop` ends it.
pub async fn run(
    gateway: Gateway,
    listener: TcpListener,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()>,
) -> Result<(), OpeningError> {
    let Gateway { network, key, backend, limits } = gateway;
    let (id, public, store) = (network.network, key.public(), backend.clone());
    let opened = spawn_blocking(move || opening::open(&network, &public, &*store, now_ms()));
    let mut opened = opened.await.expect("opening does not panic")?;
    tracing::info!(entries = opened.chain.tip().size(), network = %id, "ledger opened");

    let key = Arc::new(key);
    let (stopping, stopped) = watch::channel(false);
    let (submissions, queue) = mpsc::channel(QUEUE_MAX);
    let (cosignatures, cosign_queue) = mpsc::channel(COSIGN_QUEUE_MAX);
    let clocks = Arc::default();
    let ladder = std::mem::take(&mut opened.ladder);
    let (tip, ring) = (opened.chain.tip().clone(), limits.ring_mib << 20);
    let feed = Feed::new(id, key.clone(), ring, tip, ladder, &opened.links, opened.witnessed.as_ref());
    let feed = Arc::new(feed);
    let notary = Notary::new(id, key.clone());
    let inbox =
        Inbox { submissions: queue, cosignatures: cosign_queue, clocks: Arc::clone(&clocks), stop: stopped.clone() };
    let sequencer = Sequencer::new(backend.clone(), feed.clone(), opened, notary, inbox);
    let sequencer = tokio::spawn(sequencer.run());
    let hub = Arc::new(Hub {
        network: id,
        tls: TlsAcceptor::from(Arc::new(key.tls_config())),
        key,
        feed,
        backend,
        submissions,
        cosignatures,
        clocks,
        stop: stopped,
        limits,
        connections: AtomicUsize::new(0),
        handshakes: Semaphore::new(HANDSHAKES_MAX),
        store_reads: Semaphore::new(STORE_READS_MAX),
        clients: Default::default(),
        buckets: Default::default(),
    });

    ready();
    let mut sessions = JoinSet::new();
    tokio::select! {
        () = stop => {}
        () = accept(&listener, &hub, &mut sessions) => {}
    }
    drop(listener);
    tracing::info!("stopping");
    stopping.send_replace(true);
    drop(hub);
    let ended = timeout(STOP_MAX, async {
        let _ = sequencer.await;
        while sessions.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        tracing::warn!("clients did not take their leave in time");
    }
    Ok(())
}

async fn accept(listener: &TcpListener, hub: &Arc<Hub>, sessions: &mut JoinSet<()>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while sessions.try_join_next().is_some() {}
        if hub.connections.load(Ordering::Relaxed) >= hub.limits.connections {
            tracing::warn!("too many connections; one was turned away");
            continue;
        }
        hub.connections.fetch_add(1, Ordering::Relaxed);
        let hub = hub.clone();
        sessions.spawn(async move {
            hub.serve(stream).await;
            hub.connections.fetch_sub(1, Ordering::Relaxed);
        });
    }
}
