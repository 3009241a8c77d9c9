//! Making a key: deal, offer, collect acceptances, post. Until the record is on the ledger there is no key, and every shard of it is pending.

use super::assembler::{self, wrap_aad};
use super::clock;
use super::directory::{Ledger, View};
use super::error::{KeyError, KeyErrorKind, Missed};
use super::fresh::Fresh;
use super::holder::Holder;
use super::identity::Records;
use super::key::{Holders, Material, NewKey};
use super::peers::{Exchange, Outcome, Peers};
use mayfly_crypto::envelope::Session;
use mayfly_crypto::pedersen::{self, ShareError};
use mayfly_crypto::schedule::{self, Label, Prk};
use mayfly_crypto::wrap::{self, WrapError};
use mayfly_ledger_client::{PostError, SubmitError};
use mayfly_protocol::deal::{self, WRAPPED_BYTES_MAX};
use mayfly_protocol::ids::Hash;
use mayfly_protocol::peer::{Ask, Offer, Reply};
use mayfly_protocol::record::{Acceptance, Key, Record, ShardRecord};
use mayfly_protocol::rules::Clocks;
use mayfly_protocol::{DeviceId, KeyId};
use mayfly_secmem::{Secret, SecretBytes, on_secret_stack};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long holders that are slow are waited for when enough others have accepted.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Longest wait for a posted record to be witnessed.
pub const EFFECTIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the ledger to take a record.
pub const POST_TIMEOUT: Duration = Duration::from_secs(10);

/// This device as a dealer.
#[derive(Debug)]
pub struct Dealer {
    /// This device.
    pub device: DeviceId,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// Freshness.
    pub fresh: Arc<Fresh>,
    /// Other devices.
    pub peers: Arc<Peers>,
    /// Ourselves as a holder.
    pub holder: Arc<Holder>,
    /// Our records.
    pub records: Arc<Records>,
    /// Time from dealing to the deadline of acceptances.
    pub accept_deadline: Duration,
}

/// What the reason of a holder that refused begins with.
const REFUSED: &str = "refused: ";

/// A key as dealt: its record and its shares, by holder.
pub(super) struct Dealt {
    pub(super) key: Key,
    pub(super) shares: Vec<(DeviceId, Secret<64>)>,
}

impl Dealer {
    /// Makes a key; returns when it is effective.
    ///
    /// # Errors
    /// [`KeyError`]. Unless its text says otherwise no key exists then, and none will.
    pub fn create(&self, new: NewKey) -> Result<KeyId, KeyError> {
        let began = Instant::now();
        let clocks = self.fresh.ensure(POST_TIMEOUT).map_err(|e| {
            KeyError::new(KeyErrorKind::NotFresh, e.to_string()).next("see `mayfly status`").retry(1000)
        })?;
        let view = self.ledger.view();
        self.holder.check_vault(&view).map_err(assembler::quarantined)?;
        let holders = self.choose(&view, &new)?;
        let mut dealt = self.deal(&view, &new, &holders, clocks)?;
        drop(new); // key bytes that came from outside are wrapped now
        view.effective.check_deal(&dealt.key, &self.device).map_err(|e| KeyError::new(KeyErrorKind::Denied, e))?;
        dealt.key.acceptances = self.offer(&view, &dealt, began + self.accept_deadline)?;
        let Dealt { key, shares } = dealt;
        drop(shares); // from here on no one device has enough of them
        self.post(key, began + self.accept_deadline)
    }

    /// The holders of the new key: ourselves if we are one, then those that answer best.
    fn choose(&self, view: &View, new: &NewKey) -> Result<Vec<DeviceId>, KeyError> {
        let available: Vec<DeviceId> =
            view.effective.holders().into_iter().filter(|d| view.member(d).is_some()).collect();
        let (own, others): (Vec<_>, Vec<_>) = available.iter().partition(|d| **d == self.device);
        let chosen = match &new.holders {
            Holders::Listed(listed) => listed.clone(),
            Holders::Count(_) | Holders::All => {
                let n = if let Holders::Count(n) = new.holders { n } else { pedersen::MAX_SHARES };
                let others = self.peers.by_preference(others).into_iter().map(|c| c.device);
                own.into_iter().chain(others).take(n).collect()
            }
        };
        let (n, t) = (chosen.len(), usize::from(new.t));
        if let Holders::Count(wanted) = new.holders
            && (n + 1..=pedersen::MAX_SHARES).contains(&wanted)
        {
            let text = format!("a key of {wanted} shards needs as many holders, and {n} are there");
            return Err(KeyError::new(KeyErrorKind::Invalid, text).next(
                "ask for fewer shards, or an administrator names holders: `mayfly device role NAME --set holder`",
            ));
        }
        if t < pedersen::THRESHOLD_MIN || n < t || n > pedersen::MAX_SHARES {
            let text = format!(
                "a key that needs {t} of {n} shards cannot be made; {} holders are there, 2 <= t <= n <= 63",
                available.len()
            );
            return Err(KeyError::new(KeyErrorKind::Invalid, text)
                .next("an administrator names holders: `mayfly device role NAME --set holder`"));
        }
        Ok(chosen)
    }

    pub(super) fn deal(
        &self,
        view: &View,
        new: &NewKey,
        holders: &[DeviceId],
        clocks: Clocks,
    ) -> Result<Dealt, KeyError> {
        let count = u32::try_from(holders.len()).unwrap_or(u32::MAX);
        let indices: Vec<u32> = (1..=count).collect();
        let root = pedersen::random_root()?;
        let (commitment, shares) = pedersen::deal(&root, new.t, &indices).map_err(failed_to_deal)?;
        let network = &view.effective.network;
        let first = commitment.coefficients.first().ok_or_else(|| failed_to_deal(ShareError::BadRoot))?;
        let id = deal::key_id(network, first);
        let skew = view.effective.policy().map_or(0, |p| p.skew_ms_max);
        let accept_ms = u64::try_from(self.accept_deadline.as_millis()).unwrap_or(u64::MAX);
        let mut assemblers = new.assemblers.clone().unwrap_or_else(|| vec![self.device]);
        assemblers.sort_unstable();
        assemblers.dedup();
        let shard = |(device, index): (&DeviceId, &u32)| ShardRecord {
            id: deal::shard_id(&id, 1, 1, *index),
            device: *device,
            index: *index,
            valid_from_ms: clocks.ledger_ms.min(clocks.local_ms).saturating_sub(skew),
            valid_until_ms: new.valid_until_ms.unwrap_or(u64::MAX),
        };
        let mut key = Key {
            id,
            token: new.token,
            key_type: new.key_type.to_string(),
            t: new.t,
            generation: 1,
            epoch: 1,
            assemblers,
            attributes: new.attributes.clone(),
            public_attributes: new.public_attributes.clone(),
            origin: new.origin,
            commitments: commitment.coefficients.iter().map(|c| Hash(*c)).collect(),
            shards: holders.iter().zip(&indices).map(shard).collect(),
            key_commitment: Hash::default(),
            wrapped: None,
            policy: new.policy.clone(),
            schedule: new.schedule,
            created_ms: clock::local_ms(),
            deadline_ms: clocks.ledger_ms.max(clocks.local_ms).saturating_add(accept_ms),
            acceptances: Vec::new(),
        };
        (key.key_commitment, key.wrapped) = seal(&key, new, &root)?;
        let shares = holders.iter().copied().zip(shares.into_iter().map(|(_, share)| share)).collect();
        Ok(Dealt { key, shares })
    }

    /// Offers every holder its shard and collects acceptances: of all, or of enough when the others are slow or refuse.
    fn offer(&self, view: &View, dealt: &Dealt, deadline: Instant) -> Result<Vec<Acceptance>, KeyError> {
        let (network, dealer) = (view.effective.network, self.device);
        let n = dealt.key.shards.len();
        let needed = n.min(usize::from(dealt.key.t) + 1);
        let mut accepted: Vec<Acceptance> = Vec::with_capacity(n);
        let mut missed: Vec<(DeviceId, String)> = Vec::new();
        let mut exchange = Exchange::new(&self.peers);
        for (device, share) in dealt.shares.iter().filter(|(device, _)| *device != dealer) {
            let key = &dealt.key;
            let question = move |session: &mut Session| {
                let mut sealed = Vec::new();
                let aad = Offer::aad(&network, &dealer, device, &key.id);
                session.seal(&aad, share.expose(), &mut sealed).map_err(|e| e.to_string())?;
                Ok(Ask::Offer(Offer { key: key.clone(), sealed }))
            };
            exchange.ask(*device, Box::new(question));
        }
        if let Some((_, own)) = dealt.shares.iter().find(|(device, _)| *device == dealer) {
            match self.holder.accept(&dealt.key, &dealer, own) {
                Ok(acceptance) => accepted.push(acceptance),
                Err(refused) => missed.push((dealer, format!("{REFUSED}{}", refused.text))),
            }
        }
        let patience = Instant::now() + PATIENCE;
        while exchange.pending() > 0 {
            let until = if accepted.len() >= needed { patience.min(deadline) } else { deadline };
            let came = exchange.wait(until, |device, outcome| match outcome {
                Outcome::Answer(Reply::Accepted(acceptance), _) => {
                    match self.good(view, &dealt.key, device, &acceptance) {
                        true => accepted.push(acceptance),
                        false => missed.push((device, "sent an acceptance that does not verify".into())),
                    }
                }
                Outcome::Answer(Reply::Refused(refused), _) => {
                    missed.push((device, format!("{REFUSED}{}", refused.text)))
                }
                Outcome::Answer(..) => missed.push((device, "answered another question".into())),
                Outcome::Lost(why) => missed.push((device, format!("not reachable: {why}"))),
            });
            let hopeless = accepted.len() + exchange.pending() < needed;
            if !came || hopeless {
                break;
            }
        }
        if accepted.len() < needed {
            return Err(too_few_accepted(view, dealt, &accepted, needed, missed));
        }
        accepted.sort_by_key(|a| a.device);
        Ok(accepted)
    }

    fn good(&self, view: &View, key: &Key, device: DeviceId, acceptance: &Acceptance) -> bool {
        let shard = key.shards.iter().find(|s| s.device == device);
        let session = view.effective.devices.get(&device).and_then(|d| d.session());
        let (Some(shard), Some(session)) = (shard, session) else { return false };
        let message = deal::acceptance_message(&view.effective.network, key, shard);
        acceptance.device == device && session.key.verify(&message, &acceptance.signature).is_ok()
    }

    fn post(&self, key: Key, deadline: Instant) -> Result<KeyId, KeyError> {
        let id = key.id;
        let left = deadline.saturating_duration_since(Instant::now()).min(POST_TIMEOUT);
        self.records.post(&Record::Key(key), left).map_err(post_failed)?;
        // Nobody is told of a key that holders may already have given up.
        let end = (Instant::now() + EFFECTIVE_TIMEOUT).min(deadline + Duration::from_millis(deal::DEADLINE_MARGIN_MS));
        if assembler::wait_for(&self.ledger, |s| s.keys.contains_key(&id), end) {
            return Ok(id);
        }
        Err(KeyError::new(KeyErrorKind::Ledger, "the key is on the ledger, but too few witnesses have signed it yet")
            .next("it becomes usable when a quorum of witnesses runs: `mayfly status`"))
    }
}

/// How [`seal_into`] went: no fields, so that nothing but the answer leaves the secret stack (decision 0005).
enum Sealing {
    Done,
    NoMemory,
    NoRandomness,
    TooLong,
}

impl mayfly_secmem::Dense for Sealing {}

/// Key commitment and, for keys that have bytes of their own, those bytes wrapped.
fn seal(key: &Key, new: &NewKey, root: &Secret<32>) -> Result<(Hash, Option<Vec<u8>>), KeyError> {
    let mut commitment = [0; 32];
    let bytes = match &new.material {
        Material::Wrapped(bytes) => Some(bytes),
        Material::Derived => None,
    };
    let mut blob = Vec::new();
    let too_long = || {
        let length = bytes.map_or(0, SecretBytes::len);
        KeyError::new(KeyErrorKind::Invalid, format!("key bytes of {length} are too long"))
    };
    let (aad, algorithm) = (wrap_aad(key), new.key_type.algorithm());
    match on_secret_stack(|| seal_into(key, algorithm, &aad, bytes, root, &mut commitment, &mut blob)) {
        Sealing::Done if blob.len() > WRAPPED_BYTES_MAX => Err(too_long()),
        Sealing::Done => Ok((Hash(commitment), bytes.map(|_| blob))),
        Sealing::NoMemory => Err(KeyError::no_memory()),
        Sealing::NoRandomness => Err(KeyError::new(KeyErrorKind::Memory, "the kernel gives no randomness")),
        Sealing::TooLong => Err(too_long()),
    }
}

/// The part of [`seal`] that runs on the secret stack.
fn seal_into(
    key: &Key,
    algorithm: &str,
    aad: &[u8],
    bytes: Option<&SecretBytes>,
    root: &Secret<32>,
    commitment: &mut [u8; 32],
    blob: &mut Vec<u8>,
) -> Sealing {
    let Ok(prk) = Prk::extract(root) else { return Sealing::NoMemory };
    let id = key.id.as_bytes();
    *commitment = schedule::commitment(&prk, id, key.generation, algorithm);
    let Some(bytes) = bytes else { return Sealing::Done };
    let wrap_key = Secret::<32>::new_with(|out| prk.derive(Label::Wrap, id, key.generation, algorithm, out));
    let Ok(wrap_key) = wrap_key else { return Sealing::NoMemory };
    match wrap::seal(&wrap_key, aad, bytes.expose()) {
        Ok(sealed) => {
            blob.extend_from_slice(&sealed);
            Sealing::Done
        }
        Err(WrapError::Memory(_)) => Sealing::NoMemory,
        Err(WrapError::TooLong(_)) => Sealing::TooLong,
        Err(WrapError::Random(_) | WrapError::NotAuthentic) => Sealing::NoRandomness,
    }
}

fn failed_to_deal(error: ShareError) -> KeyError {
    match error {
        ShareError::Memory(exhausted) => exhausted.into(),
        ShareError::Random(random) => random.into(),
        other => KeyError::new(KeyErrorKind::Invalid, other.to_string()),
    }
}

fn too_few_accepted(
    view: &View,
    dealt: &Dealt,
    accepted: &[Acceptance],
    needed: usize,
    missed: Vec<(DeviceId, String)>,
) -> KeyError {
    let silent = dealt
        .key
        .shards
        .iter()
        .map(|s| s.device)
        .filter(|device| !accepted.iter().any(|a| a.device == *device) && !missed.iter().any(|(d, _)| d == device));
    let silent = silent.map(|device| (device, "did not answer in time".to_owned()));
    let devices = missed.iter().cloned().chain(silent);
    let devices = devices.map(|(device, reason)| Missed { device: view.effective.device_name(&device), reason });
    let text = format!("{} holders accepted their shards, {needed} are needed", accepted.len());
    let is_refused = missed.iter().any(|(_, reason)| reason.starts_with(REFUSED));
    let next = if is_refused && dealt.key.policy.rate > 0 {
        "where holders cannot serve the rate: a lower --rate; --vault-open window:SECONDS or boot; or a higher `[limits] releases_per_second_max` there"
    } else {
        "start the missing agents: `mayfly status`"
    };
    KeyError::new(KeyErrorKind::TooFewHolders, text).devices(devices.collect()).next(next).retry(1000)
}

/// What the outcome of a post means for the caller.
pub(super) fn post_failed(error: PostError) -> KeyError {
    match error {
        PostError::Submit(SubmitError::Refused { rule, text }) => {
            KeyError::new(KeyErrorKind::Refused, format!("the ledger refused the record ({rule}): {text}"))
        }
        PostError::Submit(SubmitError::Busy { retry_ms }) => {
            KeyError::new(KeyErrorKind::Ledger, "the ledger is busy").retry(u32::try_from(retry_ms).unwrap_or(1000))
        }
        PostError::Submit(error) => KeyError::new(KeyErrorKind::Ledger, error.to_string())
            .next("see that a gateway runs and can be reached: `mayfly status`; the record may still be taken")
            .retry(1000),
        PostError::Disputed { .. } => KeyError::new(KeyErrorKind::Ledger, error.to_string())
            .next("it is submitted again before this device's next record; if this goes on, see what the gateway says and whether the clocks agree"),
        PostError::TooLarge(error) => {
            KeyError::new(KeyErrorKind::Invalid, format!("the record is too large for the ledger: {error}"))
        }
        other => KeyError::new(KeyErrorKind::Storage, mayfly_ledger_client::with_cause(&other)),
    }
}
