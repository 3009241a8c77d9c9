//! Start: reads the whole store and judges every entry again. A store that does not add up is refused, with the place.

use crate::backend::Backend;
use crate::ladder::Ladder;
use crate::limits::STORE_READ_BYTES;
use mayfly_crypto::merkle::TREE_SIZE_MAX;
use mayfly_crypto::sign::PublicKey;
use mayfly_ledger_client::with_cause;
use mayfly_ledger_client::{Advance, Chain, NetworkFile};
use mayfly_plugin_api::{Append, Head as StoreHead, PluginError, ReadAnswer};
use mayfly_protocol::State;
use mayfly_protocol::cbor;
use mayfly_protocol::sync::{Bundle, FromGateway, WitnessedHead, verify_note};
use minicbor::{Decode, Encode};

/// A witnessed head as it rests in the store.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct StoredHead {
    /// The head and its signatures.
    #[n(0)]
    pub head: WitnessedHead,
    /// Size of the newest stored head below by which the witnesses changed: the way back to the first one.
    #[n(1)]
    pub link_before: Option<u64>,
}

/// Why a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum OpeningError {
    /// The plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// This gateway's key is not one that the network knows.
    #[error("the gateway's key {0:?} is not among the gateways of this network's genesis record")]
    ForeignKey(PublicKey),
    /// The store's contents are not what was put into it.
    #[error("the ledger's store is damaged at entry {at}: {what}; restore it from a replica")]
    Damaged {
        /// Index of the entry, or size of the head.
        at: u64,
        /// What was found.
        what: String,
    },
    /// Entries that witnesses have signed are gone.
    #[error(
        "the ledger's store has {have} entries, but witnesses have signed {witnessed}: it was set back; restore it from a replica"
    )]
    Truncated {
        /// Entries in the store.
        have: u64,
        /// Size of the newest witnessed head.
        witnessed: u64,
    },
    /// The first entries are not there any more.
    #[error("the ledger's store begins at entry {0}; this version needs all entries")]
    Pruned(u64),
}

/// What was found.
pub struct Opened {
    /// The states.
    pub chain: Chain,
    /// The store's head.
    pub head: StoreHead,
    /// Roots at any size.
    pub ladder: Ladder,
    /// Witnessed heads by which the witnesses changed, ascending.
    pub links: Vec<(u64, WitnessedHead)>,
    /// The newest witnessed head.
    pub witnessed: Option<(u64, WitnessedHead)>,
}

/// Reads and verifies the store; an empty one gets the genesis entry at `now_ms`.
///
/// # Errors
/// [`OpeningError`].
pub fn open(
    network: &NetworkFile,
    key: &PublicKey,
    backend: &dyn Backend,
    now_ms: u64,
) -> Result<Opened, OpeningError> {
    let mut head = backend.head()?;
    if head.size == 0 {
        head = write_genesis(network, backend, &head, now_ms)?;
    }
    let mut reading = Reading::new(network, stored_heads(backend)?);
    while reading.chain.tip().size() < head.size {
        reading.read_on(backend)?;
    }
    if reading.chain.tip().size() != head.size || reading.bundle_hash != head.bundle_hash {
        return Err(reading.damaged("the entries do not lead to the store's own head"));
    }
    if let Some((witnessed, _)) = reading.heads.front() {
        return Err(OpeningError::Truncated { have: head.size, witnessed: *witnessed });
    }
    if !knows_gateway(reading.chain.tip(), key) {
        return Err(OpeningError::ForeignKey(*key));
    }
    let Reading { chain, ladder, links, witnessed, .. } = reading;
    Ok(Opened { chain, head, ladder, links, witnessed })
}

/// Takes up what another gateway has appended: from the chain's tip to the store's end. Gives the new head and the bundles' frames.
///
/// # Errors
/// [`OpeningError`].
pub fn catch_up(
    chain: &mut Chain,
    bundle_hash: &mut [u8; 32],
    backend: &dyn Backend,
) -> Result<Vec<(Bundle, Vec<u8>)>, OpeningError> {
    let mut found = Vec::new();
    loop {
        let from = chain.tip().size();
        let bundles = read(backend, from)?;
        if bundles.is_empty() {
            return Ok(found);
        }
        for stored in bundles {
            let bundle = check_bundle(&stored, bundle_hash)?;
            let extended = chain.extend(&bundle);
            extended.map_err(|e| OpeningError::Damaged { at: stored.first, what: with_cause(&e) })?;
            found.push((bundle, stored.bytes));
        }
    }
}

fn write_genesis(
    network: &NetworkFile,
    backend: &dyn Backend,
    empty: &StoreHead,
    now_ms: u64,
) -> Result<StoreHead, OpeningError> {
    let bundle = Bundle { first: 0, time_ms: now_ms, entries: vec![network.genesis.clone().into()] };
    let frame = FromGateway::Bundle(bundle).encode();
    let new = StoreHead { size: 1, epoch: empty.epoch, bundle_hash: Bundle::chain_hash(&empty.bundle_hash, &frame) };
    match backend.append_if_head(empty, &new, &frame)? {
        Append::Done => Ok(new),
        // Another gateway was first, or it may have been done: what is read next is judged all the same.
        Append::Conflict(_) | Append::Unknown(_) => Ok(backend.head()?),
    }
}

/// All stored heads that matter, ascending.
fn stored_heads(backend: &dyn Backend) -> Result<Vec<(u64, WitnessedHead)>, OpeningError> {
    let mut heads = Vec::new();
    let mut next = backend.latest_checkpoint(TREE_SIZE_MAX)?;
    while let Some(checkpoint) = next {
        let damaged = |what: &str| OpeningError::Damaged { at: checkpoint.size, what: what.into() };
        let stored: StoredHead =
            cbor::from_exact(&checkpoint.bytes).map_err(|_| damaged("a witnessed head is unreadable"))?;
        heads.push((checkpoint.size, stored.head));
        next = match stored.link_before {
            None => None,
            Some(size) if size >= checkpoint.size => return Err(damaged("witnessed heads are out of order")),
            Some(size) => match backend.latest_checkpoint(size)? {
                Some(found) if found.size == size => Some(found),
                _ => return Err(damaged("an earlier witnessed head is missing")),
            },
        };
    }
    heads.reverse();
    Ok(heads)
}

struct Reading<'n> {
    network: &'n NetworkFile,
    chain: Chain,
    ladder: Ladder,
    bundle_hash: [u8; 32],
    /// Witnessed heads not reached yet, ascending.
    heads: std::collections::VecDeque<(u64, WitnessedHead)>,
    links: Vec<(u64, WitnessedHead)>,
    witnessed: Option<(u64, WitnessedHead)>,
}

impl<'n> Reading<'n> {
    fn new(network: &'n NetworkFile, heads: Vec<(u64, WitnessedHead)>) -> Reading<'n> {
        Reading {
            network,
            chain: Chain::new(network.network),
            ladder: Ladder::default(),
            bundle_hash: [0; 32],
            heads: heads.into(),
            links: Vec::new(),
            witnessed: None,
        }
    }

    fn read_on(&mut self, backend: &dyn Backend) -> Result<(), OpeningError> {
        let bundles = read(backend, self.chain.tip().size())?;
        if bundles.is_empty() {
            return Err(self.damaged("entries below the store's head are missing"));
        }
        for stored in bundles {
            let bundle = check_bundle(&stored, &mut self.bundle_hash)?;
            self.chain.extend(&bundle).map_err(|e| self.damaged(&with_cause(&e)))?;
            self.ladder.extend(&bundle);
            self.take_head()?;
        }
        Ok(())
    }

    /// The witnessed head at the tip, if one is stored.
    fn take_head(&mut self) -> Result<(), OpeningError> {
        let size = self.chain.tip().size();
        let Some((_, message)) = self.heads.pop_front_if(|(at, _)| *at == size) else { return Ok(()) };
        let before = self.chain.effective().witnesses();
        let signed = verify_note(self.chain.tip(), &self.network.network, &message.note);
        let (head, _) = signed.map_err(|e| self.damaged(&with_cause(&e)))?;
        match self.chain.advance(&head, &message.cosignatures) {
            Advance::Advanced | Advance::Old => {}
            other => return Err(self.damaged(&format!("the witnessed head does not hold ({other:?})"))),
        }
        if self.chain.effective().witnesses() != before {
            self.links.push((size, message.clone()));
        }
        self.witnessed = Some((size, message));
        Ok(())
    }

    fn damaged(&self, what: &str) -> OpeningError {
        OpeningError::Damaged { at: self.chain.tip().size(), what: what.into() }
    }
}

fn read(backend: &dyn Backend, from: u64) -> Result<Vec<mayfly_plugin_api::Bundle>, OpeningError> {
    match backend.read(from, STORE_READ_BYTES)? {
        ReadAnswer::Bundles(bundles) => Ok(bundles),
        ReadAnswer::Pruned(first) => Err(OpeningError::Pruned(first)),
    }
}

fn check_bundle(stored: &mayfly_plugin_api::Bundle, hash: &mut [u8; 32]) -> Result<Bundle, OpeningError> {
    let damaged = |what: &str| OpeningError::Damaged { at: stored.first, what: what.into() };
    let next = Bundle::chain_hash(hash, &stored.bytes);
    if next != stored.bundle_hash {
        return Err(damaged("a bundle is not the one that was stored"));
    }
    match FromGateway::decode(&stored.bytes) {
        Ok(Some(FromGateway::Bundle(bundle))) if (bundle.first, bundle.end()) == (stored.first, stored.end) => {
            *hash = next;
            Ok(bundle)
        }
        _ => Err(damaged("a bundle is unreadable")),
    }
}

fn knows_gateway(state: &State, key: &PublicKey) -> bool {
    state.genesis.iter().flat_map(|g| &g.gateways).any(|g| g.key.0 == *key)
}
