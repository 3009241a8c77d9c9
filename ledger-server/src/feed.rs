//! What there is to send: the newest bundles in one shared ring, the witnessed and the proposed head. Each client has a cursor, no queue.

use crate::key::GatewayKey;
use crate::ladder::Ladder;
use mayfly_crypto::merkle::Frontier;
use mayfly_protocol::sync::{Bundle, FromGateway, WitnessedHead};
use mayfly_protocol::{Head, NetworkId, State};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Bytes;

/// A shared bookmark serves all idle clients for so many milliseconds.
const BOOKMARK_MS: u64 = 1000;

/// What is sent to everybody.
pub struct Feed {
    network: NetworkId,
    key: Arc<GatewayKey>,
    ring_bytes_max: usize,
    inner: RwLock<Inner>,
    bookmark: Mutex<Option<(Head, u64, Bytes)>>,
    /// Changes with every change here.
    wake: watch::Sender<u64>,
}

struct Inner {
    /// The newest bundles without a gap up to the tip; may be empty.
    ring: VecDeque<Framed>,
    ring_bytes: usize,
    tip: Arc<State>,
    ladder: Ladder,
    /// Witnessed heads by which the witnesses changed, ascending: whoever starts from nothing needs each of them.
    links: Vec<Signed>,
    witnessed: Option<Signed>,
    proposed: Option<Signed>,
    /// Time of the bundle that is on its way into the store: nothing later may be said of what is here.
    sequencing_ms: Option<u64>,
}

struct Framed {
    first: u64,
    end: u64,
    frame: Bytes,
}

#[derive(Clone)]
struct Signed {
    size: u64,
    frame: Bytes,
}

/// Where a client is.
#[derive(Debug, Clone, Copy)]
pub struct Cursor {
    /// Entries that it has.
    pub size: u64,
    link: usize,
    witnessed: u64,
    proposed: u64,
}

/// What a client gets next.
#[derive(Debug)]
pub enum Next {
    /// This frame.
    Frame(Bytes),
    /// A bundle that is not in the ring any more: to be read from the store, then [`Cursor::size`] moves on.
    Stored,
    /// Nothing; it has everything.
    Nothing,
}

impl Feed {
    /// A feed of this state of things.
    pub fn new(
        network: NetworkId,
        key: Arc<GatewayKey>,
        ring_bytes_max: usize,
        tip: Arc<State>,
        ladder: Ladder,
        links: &[(u64, WitnessedHead)],
        witnessed: Option<&(u64, WitnessedHead)>,
    ) -> Feed {
        let signed = |(size, head): &(u64, WitnessedHead)| Signed { size: *size, frame: witnessed_frame(head) };
        let inner = Inner {
            ring: VecDeque::new(),
            ring_bytes: 0,
            tip,
            ladder,
            links: links.iter().map(signed).collect(),
            witnessed: witnessed.map(signed),
            proposed: None,
            sequencing_ms: None,
        };
        let (wake, _) = watch::channel(0);
        Feed { network, key, ring_bytes_max, inner: RwLock::new(inner), bookmark: Mutex::default(), wake }
    }

    /// A bundle is about to be made; its time. Until its outcome is known bookmarks are not dated later, however long the store takes:
    /// witnesses would hold it against the bundle. Where it is made once more, the first one counts, which may be stored after all.
    pub fn sequencing(&self, clock: impl FnOnce() -> u64) -> u64 {
        let mut inner = self.write();
        let now_ms = clock();
        inner.sequencing_ms = Some(inner.sequencing_ms.map_or(now_ms, |first_ms| first_ms.min(now_ms)));
        now_ms
    }

    /// The bundle was not stored.
    pub fn not_sequenced(&self) {
        self.write().sequencing_ms = None;
    }

    /// A bundle is in the store; `tip` is the state after it.
    pub fn push_bundle(&self, bundle: &Bundle, frame: Vec<u8>, tip: Arc<State>) {
        let mut inner = self.write();
        inner.ladder.extend(bundle);
        inner.ring_bytes += frame.len();
        inner.ring.push_back(Framed { first: bundle.first, end: bundle.end(), frame: frame.into() });
        while inner.ring_bytes > self.ring_bytes_max {
            let Some(oldest) = inner.ring.pop_front() else { break };
            inner.ring_bytes -= oldest.frame.len();
        }
        inner.tip = tip;
        inner.sequencing_ms = None;
        drop(inner);
        self.wake();
    }

    /// A head to be cosigned.
    pub fn propose(&self, size: u64, note: Vec<u8>) {
        let frame = FromGateway::Proposed { note }.encode().into();
        self.write().proposed = Some(Signed { size, frame });
        self.wake();
    }

    /// A head is witnessed; `is_link`: the witnesses changed by it.
    pub fn witnessed(&self, size: u64, head: &WitnessedHead, is_link: bool) {
        let signed = Signed { size, frame: witnessed_frame(head) };
        let mut inner = self.write();
        if is_link {
            inner.links.push(signed.clone());
        }
        inner.witnessed = Some(signed);
        drop(inner);
        self.wake();
    }

    /// The state at the tip.
    pub fn tip(&self) -> Arc<State> {
        self.read().tip.clone()
    }

    /// Tells of changes.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.wake.subscribe()
    }

    /// The cursor of a client that has `size` entries and knows that the first `witnessed` of them are witnessed.
    pub fn cursor(&self, size: u64, witnessed: u64) -> Cursor {
        let link = self.read().links.partition_point(|l| l.size <= witnessed);
        Cursor { size, link, witnessed, proposed: 0 }
    }

    /// What the client at `cursor` gets next; the cursor moves on. Heads come before bundles: they are what others wait for.
    pub fn next(&self, cursor: &mut Cursor) -> Next {
        let inner = self.read();
        if let Some(link) = inner.links.get(cursor.link).filter(|l| l.size <= cursor.size) {
            cursor.link += 1;
            cursor.witnessed = cursor.witnessed.max(link.size);
            return Next::Frame(link.frame.clone());
        }
        let newest = inner.witnessed.as_ref();
        if let Some(head) = newest.filter(|h| h.size <= cursor.size && h.size > cursor.witnessed) {
            cursor.witnessed = head.size;
            return Next::Frame(head.frame.clone());
        }
        let proposed = inner.proposed.as_ref();
        if let Some(head) = proposed.filter(|h| h.size <= cursor.size && h.size > cursor.proposed.max(cursor.witnessed))
        {
            cursor.proposed = head.size;
            return Next::Frame(head.frame.clone());
        }
        if cursor.size >= inner.tip.size() {
            return Next::Nothing;
        }
        let at = inner.ring.partition_point(|b| b.end <= cursor.size);
        match inner.ring.get(at) {
            Some(bundle) if bundle.first <= cursor.size => {
                let frame = cut(&bundle.frame, bundle.first, cursor.size);
                cursor.size = bundle.end;
                Next::Frame(frame)
            }
            _ => Next::Stored,
        }
    }

    /// A bookmark at exactly `size` entries; `None` when the ledger has moved on.
    pub fn bookmark(&self, size: u64, clock: impl FnOnce() -> u64) -> Option<Bytes> {
        let (head, now_ms) = {
            let inner = self.read();
            let head = inner.tip.head();
            if head.size != size {
                return None;
            }
            // Both under one lock: what is not in the ledger now will be dated later than this.
            (head, inner.sequencing_ms.unwrap_or_else(clock))
        };
        let mut shared = self.bookmark.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, frame)) =
            shared.as_ref().filter(|(h, at, _)| *h == head && now_ms.abs_diff(*at) < BOOKMARK_MS)
        {
            return Some(frame.clone());
        }
        let note = self.key.bookmark(&self.network, &head, now_ms).encode().into_bytes();
        let frame = Bytes::from(FromGateway::Bookmark { note }.encode());
        *shared = Some((head, now_ms, frame.clone()));
        Some(frame)
    }

    /// The head at `size` if it is a recent one; else the rung of the ladder below it. `None` above the tip.
    pub fn root_at(&self, size: u64) -> Option<Result<Head, Frontier>> {
        let inner = self.read();
        match inner.tip.recent_head(size) {
            Some((head, _)) => Some(Ok(head)),
            None => inner.ladder.below(size).map(Err),
        }
    }

    fn wake(&self) {
        self.wake.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of a bundle's frame from entry `from` on: a resume token may point into a bundle.
pub fn cut(frame: &Bytes, first: u64, from: u64) -> Bytes {
    if from <= first {
        return frame.clone();
    }
    match FromGateway::decode(frame) {
        Ok(Some(FromGateway::Bundle(bundle))) => {
            let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
            let entries = bundle.entries.into_iter().skip(skip).collect();
            FromGateway::Bundle(Bundle { first: from, time_ms: bundle.time_ms, entries }).encode().into()
        }
        _ => frame.clone(), // our own frames decode; the client would refuse what does not
    }
}

fn witnessed_frame(head: &WitnessedHead) -> Bytes {
    FromGateway::Witnessed(head.clone()).encode().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_ledger_client::testing::Ledger;

    struct World {
        ledger: Ledger,
        feed: Feed,
    }

    impl World {
        fn new(ring_bytes_max: usize) -> World {
            let mut ledger = Ledger::new();
            let genesis = ledger.start();
            let key = Arc::new(GatewayKey::generate().unwrap());
            let feed = Feed::new(ledger.network, key, ring_bytes_max, Arc::default(), Ladder::default(), &[], None);
            let world = World { ledger, feed };
            world.push(&genesis);
            world
        }

        fn push(&self, bundle: &Bundle) {
            let frame = FromGateway::Bundle(bundle.clone()).encode();
            self.feed.push_bundle(bundle, frame, Arc::new(self.ledger.state.clone()));
        }

        fn token(&mut self, label: &str) {
            let bundle = self.ledger.token(label);
            self.push(&bundle);
        }

        fn witnessed(&self, size: u64, is_link: bool) {
            let head = WitnessedHead { note: size.to_string().into_bytes(), cosignatures: vec![] };
            self.feed.witnessed(size, &head, is_link);
        }
    }

    /// What a client gets from `cursor` on, in words; ends where the feed has no more.
    fn sent(feed: &Feed, cursor: &mut Cursor) -> Vec<String> {
        let mut words = Vec::new();
        loop {
            words.push(match feed.next(cursor) {
                Next::Nothing => return words,
                Next::Stored => {
                    words.push("stored".into());
                    return words;
                }
                Next::Frame(frame) => match FromGateway::decode(&frame).unwrap().unwrap() {
                    FromGateway::Bundle(b) => format!("{}..{}", b.first, b.end()),
                    FromGateway::Proposed { note } => format!("proposed {}", String::from_utf8(note).unwrap()),
                    FromGateway::Witnessed(head) => format!("witnessed {}", String::from_utf8(head.note).unwrap()),
                    other => format!("{other:?}"),
                },
            });
        }
    }

    #[test]
    fn a_client_gets_bundles_links_in_their_place_and_the_newest_heads_once() {
        let mut world = World::new(1 << 20);
        world.token("a");
        world.witnessed(2, true);
        world.token("b");
        world.witnessed(3, false);
        world.token("c");
        world.witnessed(4, true);
        world.token("d");
        world.feed.propose(5, b"5".to_vec());
        let mut fresh = world.feed.cursor(0, 0);
        let all = ["0..1", "1..2", "witnessed 2", "2..3", "3..4", "witnessed 4", "4..5", "proposed 5"];
        assert_eq!(sent(&world.feed, &mut fresh), all);
        assert!(sent(&world.feed, &mut fresh).is_empty(), "once");
        assert_eq!(sent(&world.feed, &mut world.feed.cursor(4, 2)), ["witnessed 4", "4..5", "proposed 5"]);
        assert_eq!(sent(&world.feed, &mut world.feed.cursor(5, 4)), ["proposed 5"]);
        world.witnessed(5, false);
        assert_eq!(sent(&world.feed, &mut fresh), ["witnessed 5"]);
        assert_eq!(
            sent(&world.feed, &mut world.feed.cursor(5, 5)),
            [""; 0],
            "what is witnessed is not proposed any more"
        );
    }

    #[test]
    fn a_token_inside_a_bundle_gets_the_rest_of_it() {
        let mut world = World::new(1 << 20);
        let (mut a, b) = (world.ledger.token("a"), world.ledger.token("b"));
        a.entries.extend(b.entries);
        world.push(&a);
        let mut cursor = world.feed.cursor(2, 0);
        assert_eq!(sent(&world.feed, &mut cursor), ["2..3"]);
        assert_eq!(cursor.size, 3);
    }

    #[test]
    fn the_ring_is_bounded_and_who_fell_out_is_served_from_the_store() {
        let mut world = World::new(2000);
        for n in 0..50 {
            world.token(&format!("t{n}"));
        }
        assert!(world.feed.read().ring_bytes <= 2000);
        assert_eq!(sent(&world.feed, &mut world.feed.cursor(0, 0)), ["stored"]);
        let newest = world.ledger.state.size() - 1;
        assert_eq!(sent(&world.feed, &mut world.feed.cursor(newest, 0)), [format!("{newest}..{}", newest + 1)]);
    }

    #[test]
    fn a_bookmark_is_of_the_very_end_and_shared_for_a_moment() {
        let mut world = World::new(1 << 20);
        let first = world.feed.bookmark(1, || 5000).unwrap();
        assert_eq!(world.feed.bookmark(1, || 5500), Some(first.clone()));
        assert_ne!(world.feed.bookmark(1, || 7000), Some(first));
        world.token("a");
        assert_eq!(world.feed.bookmark(1, || 7000), None);
        assert!(world.feed.bookmark(2, || 7000).is_some());
    }

    #[test]
    fn a_bookmark_is_not_dated_after_a_bundle_that_is_being_stored() {
        let mut world = World::new(1 << 20);
        let at_7000 = world.feed.bookmark(1, || 7000).unwrap();
        assert_eq!(world.feed.sequencing(|| 7000), 7000);
        assert_eq!(world.feed.bookmark(1, || 60_000), Some(at_7000.clone()));
        assert_eq!(world.feed.sequencing(|| 50_000), 50_000, "made once more");
        assert_eq!(world.feed.bookmark(1, || 60_000), Some(at_7000.clone()), "the first one may be stored");
        world.feed.not_sequenced();
        assert_ne!(world.feed.bookmark(1, || 60_000), Some(at_7000), "it was not stored");
        world.feed.sequencing(|| 7000);
        world.token("a");
        let (stored, later) = (world.feed.bookmark(2, || 60_000), world.feed.bookmark(2, || 7000));
        assert!(stored.is_some() && stored != later, "it is stored: its time is over");
    }
}
