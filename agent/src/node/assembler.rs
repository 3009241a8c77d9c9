//! The assembler's half: asks holders, combines, checks, derives. The operation's own thread does all of it.

use super::TroubleState;
use super::directory::{Behind, Ledger, View};
use super::error::{KeyError, KeyErrorKind, Missed};
use super::fresh::Fresh;
use super::holder::{Holder, Share};
use super::key::{AssembledKey, AssemblyReport, ShareReport};
use super::peers::{Exchange, Outcome, Peers};
use mayfly_crypto::pedersen;
use mayfly_crypto::schedule::{self, Label, Prk};
use mayfly_crypto::wrap;
use mayfly_protocol::assembly::{Assembly, Candidate, DEADLINE, Failure, FailureKind, Missing, ShareOf, Step};
use mayfly_protocol::deal;
use mayfly_protocol::peer::{Ask, NONCE_BYTES, Refused, Release, Reply};
use mayfly_protocol::record::Key;
use mayfly_protocol::rules::{Clocks, KeyType, ReleaseQuery, Use};
use mayfly_protocol::{DeviceId, KeyId, State};
use mayfly_secmem::{Exhausted, SECRET_BYTES_MAX, Secret, SecretBytes, on_secret_stack, random};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How often our own vault, while it is being opened, is looked at beside the answers of others.
const OPENING_LOOK: Duration = Duration::from_millis(1);
/// How often an assembly begins anew because the ledger has gone on meanwhile.
const EPOCH_RETRIES: usize = 3;

/// This device as an assembler.
#[derive(Debug)]
pub struct Assembler {
    device: DeviceId,
    ledger: Arc<Ledger>,
    fresh: Arc<Fresh>,
    peers: Arc<Peers>,
    holder: Arc<Holder>,
}

/// What may be assembled now, by the ledger.
pub struct Permit {
    /// The key's record.
    pub key: Arc<Key>,
    /// Local and ledger time.
    pub clocks: Clocks,
    /// Size of the ledger that was asked.
    pub ledger_size: u64,
}

impl Assembler {
    /// An assembler of these parts.
    pub fn new(
        device: DeviceId,
        ledger: Arc<Ledger>,
        fresh: Arc<Fresh>,
        peers: Arc<Peers>,
        holder: Arc<Holder>,
    ) -> Self {
        Self { device, ledger, fresh, peers, holder }
    }

    /// Whether this device may put the key together for this use now: rules of both states, freshness. An operation that `began` then waits
    /// for a round of freshness no longer than [`DEADLINE`] allows.
    ///
    /// # Errors
    /// [`KeyError`].
    #[inline]
    pub fn permit(&self, key: &KeyId, purpose: Use, began: Instant) -> Result<Permit, KeyError> {
        let view = self.ledger.view();
        self.holder.check_vault(&view).map_err(quarantined)?;
        let key = self.allowed(&view, key, purpose)?;
        let patience = || DEADLINE.saturating_sub(began.elapsed());
        let clocks = self.fresh.clocks().or_else(|_| self.fresh.ensure(patience()));
        let clocks = clocks.map_err(|error| self.not_fresh(&error))?;
        Ok(Permit { key, clocks, ledger_size: view.effective.size() })
    }

    fn allowed(&self, view: &View, key: &KeyId, purpose: Use) -> Result<Arc<Key>, KeyError> {
        let state = view.effective.keys.get(key);
        let record = state.map(|k| k.record.clone()).ok_or_else(|| unknown(key))?;
        let (generation, epoch) = (record.generation, record.epoch);
        view.may_assemble(&ReleaseQuery { key: *key, generation, epoch, purpose, requester: self.device })?;
        Ok(record)
    }

    fn not_fresh(&self, error: &mayfly_protocol::freshness::NotFresh) -> KeyError {
        let view = self.ledger.view();
        let silent = view.effective.witnesses().into_iter().filter(|w| *w != self.device).filter_map(|witness| {
            let reason = self.peers.standing(&witness).failed?;
            Some(Missed { device: view.effective.device_name(&witness), reason: format!("(witness) {reason}") })
        });
        let next =
            "see that a quorum of witnesses runs and can be reached, and that clocks agree; `mayfly status` shows both";
        KeyError::new(KeyErrorKind::NotFresh, error.to_string()).devices(silent.collect()).next(self.next_step(next))
    }

    /// What to do about others that do not answer. A banned device is the last to read of its ban: whoever would tell it, turns it away.
    fn next_step(&self, usually: &'static str) -> &'static str {
        if self.ledger.replica().status().hopeless > 0 {
            "the ledger's gateway turns this device away (`mayfly status` says why): ask an administrator"
        } else {
            usually
        }
    }

    /// Puts the key together for `uses` operations, before `began` + [`DEADLINE`].
    ///
    /// # Errors
    /// [`KeyError`], naming who was missing.
    pub fn assemble(&self, id: &KeyId, purpose: Use, uses: u32, began: Instant) -> Result<AssembledKey, KeyError> {
        let mut tries = 0;
        loop {
            let permit = self.permit(id, purpose, began)?;
            let mut attempt = Attempt::new(self, &permit, purpose, uses, began)?;
            match attempt.run() {
                Ok(key) => return Ok(key),
                Err(failure) => {
                    tries += 1;
                    if tries <= EPOCH_RETRIES && self.caught_up(&attempt, permit.ledger_size, began) {
                        continue;
                    }
                    return Err(attempt.explain(failure));
                }
            }
        }
    }

    /// Whether holders refused because they know more of the ledger, and we do now too.
    fn caught_up(&self, attempt: &Attempt<'_>, ours: u64, began: Instant) -> bool {
        let Some(size) = attempt.assembly.newer_ledger().filter(|size| *size > ours) else { return false };
        let left = DEADLINE.saturating_sub(began.elapsed());
        self.ledger.replica().wait_effective(|state| state.size() >= size, left).is_ok()
    }
}

/// Nothing that this device does counts.
pub(super) fn quarantined(behind: Behind) -> KeyError {
    KeyError::new(KeyErrorKind::NotReady, behind.to_string()).next(TroubleState::Quarantined.next())
}

fn unknown(key: &KeyId) -> KeyError {
    KeyError::new(KeyErrorKind::UnknownKey, format!("key {} is not on the ledger", key.short()))
}

/// One attempt: the state machine and what it acts with.
struct Attempt<'a> {
    on: &'a Assembler,
    key: Arc<Key>,
    key_type: KeyType,
    ask: Release,
    assembly: Assembly<Secret<64>>,
    began: Instant,
    ledger_size: u64,
    arrivals: Vec<(DeviceId, Duration)>,
    liars: Vec<DeviceId>,
    /// Our own vault is being opened.
    opening: Option<Receiver<Result<Share, Refused>>>,
}

enum Trouble {
    Failure(Failure),
    Error(KeyError),
}

impl From<KeyError> for Trouble {
    fn from(error: KeyError) -> Self {
        Trouble::Error(error)
    }
}

impl<'a> Attempt<'a> {
    fn new(on: &'a Assembler, permit: &Permit, purpose: Use, uses: u32, began: Instant) -> Result<Self, KeyError> {
        let key = permit.key.clone();
        let key_type = KeyType::parse(&key.key_type).ok_or_else(|| {
            KeyError::new(KeyErrorKind::Invalid, format!("key type '{}' is not known to this version", key.key_type))
        })?;
        let mut nonce = [0; NONCE_BYTES];
        random(&mut nonce)?;
        let ask = Release {
            key: key.id,
            generation: key.generation,
            epoch: key.epoch,
            purpose,
            uses,
            requester: on.device,
            head: on.ledger.replica().effective().head(),
            nonce,
        };
        let candidates = on.candidates(&key, permit.clocks);
        let assembly = Assembly::new(&key, &candidates, DEADLINE);
        let ledger_size = permit.ledger_size;
        Ok(Attempt {
            on,
            key,
            key_type,
            ask,
            assembly,
            began,
            ledger_size,
            arrivals: Vec::new(),
            liars: Vec::new(),
            opening: None,
        })
    }

    fn run(&mut self) -> Result<AssembledKey, Trouble> {
        let on = self.on;
        let mut exchange = Exchange::new(&on.peers);
        loop {
            match self.assembly.next(self.began.elapsed()) {
                Step::Ask(device) if device == on.device => self.ask_ourselves(),
                Step::Ask(device) => {
                    let ask = self.ask.clone();
                    exchange.ask(device, Box::new(move |_| Ok(Ask::Release(ask.clone()))));
                }
                Step::Wait(until) => {
                    let until = self.began + until;
                    if self.opening.is_none() {
                        exchange.wait(until, |device, outcome| self.came(device, outcome));
                    } else if exchange.pending() > 0 {
                        let until = until.min(Instant::now() + OPENING_LOOK);
                        exchange.wait(until, |device, outcome| self.came(device, outcome));
                        self.look_at_our_vault(Instant::now());
                    } else {
                        self.look_at_our_vault(until);
                    }
                }
                Step::Combine => match self.combine()? {
                    Some(assembled) => {
                        self.assembly.fits();
                        return Ok(assembled);
                    }
                    None => self.assembly.does_not_fit(),
                },
                Step::Verify => self.verify(),
                Step::Failed(failure) => return Err(Trouble::Failure(failure)),
                Step::Done => return Err(KeyError::new(KeyErrorKind::Invalid, "the assembly ended twice").into()),
            }
        }
    }

    /// Our own shard, judged as everybody's. A vault that has to be opened for it, which may take long or hang, is waited for beside the others.
    fn ask_ourselves(&mut self) {
        if self.on.holder.has_at_hand(self.key.policy.vault_opening) {
            return self.own_share(self.on.holder.release(&self.ask));
        }
        match self.on.holder.release_beside(&self.ask) {
            Ok(opening) => self.opening = Some(opening),
            Err(refused) => self.own_share(Err(refused)),
        }
    }

    /// Takes what our vault has given until then, if anything.
    fn look_at_our_vault(&mut self, until: Instant) {
        let Some(opening) = &self.opening else { return };
        match opening.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Err(RecvTimeoutError::Timeout) => {}
            answer => {
                self.opening = None;
                match answer {
                    Ok(released) => self.own_share(released),
                    Err(_) => self.assembly.missing(self.on.device, Missing::Lost("its thread ended".into())),
                }
            }
        }
    }

    fn own_share(&mut self, released: Result<Share, Refused>) {
        match released {
            Ok(share) => {
                let about = self.about(share.index);
                self.take(self.on.device, &about, share.value);
            }
            Err(refused) => self.assembly.missing(self.on.device, Missing::Refused(refused)),
        }
    }

    fn about(&self, index: u32) -> ShareOf {
        ShareOf { key: self.key.id, generation: self.key.generation, epoch: self.key.epoch, index }
    }

    fn take(&mut self, device: DeviceId, about: &ShareOf, value: Secret<64>) {
        match self.assembly.share(device, about, value) {
            Ok(()) => self.arrivals.push((device, self.began.elapsed())),
            Err(why) => tracing::debug!(%device, %why, "a share is not taken"),
        }
    }

    fn came(&mut self, device: DeviceId, outcome: Outcome<'_>) {
        let (reply, session) = match outcome {
            Outcome::Answer(reply, session) => (reply, session),
            Outcome::Lost(why) => return self.assembly.missing(device, Missing::Lost(why)),
        };
        let released = match reply {
            Reply::Released(released) if released.answers(&self.ask) => released,
            Reply::Refused(refused) => return self.assembly.missing(device, Missing::Refused(refused)),
            _ => return self.assembly.missing(device, Missing::Lost("an answer to another question".into())),
        };
        let network = &self.on.ledger.replica().network().network;
        let aad = self.ask.aad(network, &device, &released.shard, released.index);
        match session.open_fixed::<64>(&aad, &released.sealed) {
            Ok(share) => {
                let about = ShareOf {
                    key: released.key,
                    generation: released.generation,
                    epoch: released.epoch,
                    index: released.index,
                };
                self.take(device, &about, share);
            }
            Err(error) => self.assembly.missing(device, Missing::Lost(error.to_string())),
        }
    }

    /// The key of exactly t shares, or `None` if it is not the committed one.
    fn combine(&self) -> Result<Option<AssembledKey>, KeyError> {
        let shares: Vec<(u32, &Secret<64>)> = self.assembly.shares().iter().map(|s| (s.index, &s.value)).collect();
        let mut bytes = SecretBytes::new_with(bytes_length(&self.key, self.key_type)?, |_| ())?;
        let mut iv_key = match self.ask.purpose {
            Use::Iv => Some(Secret::<32>::new_with(|_| ())?),
            _ => None,
        };
        let aad = wrap_aad(&self.key);
        match on_secret_stack(|| derive(&self.key, self.key_type, &aad, &shares, &mut bytes, iv_key.as_mut())) {
            Derivation::Done => {}
            Derivation::NotCommitted => return Ok(None),
            Derivation::Damaged => return Err(wrapped_is_damaged(&self.key)),
            Derivation::NoMemory => return Err(KeyError::no_memory()),
        }
        let report = self.report(iv_key.is_some());
        Ok(Some(AssembledKey { id: self.key.id, key_type: self.key_type, report, bytes, iv_key }))
    }

    fn verify(&mut self) {
        let commitment = deal::commitment(&self.key);
        let bad = |s: &&mayfly_protocol::assembly::Share<Secret<64>>| {
            pedersen::verify(s.index, &s.value, &commitment).is_err()
        };
        let liars: Vec<DeviceId> = self.assembly.shares().iter().filter(bad).map(|s| s.device).collect();
        for liar in &liars {
            tracing::error!(device = %liar, key = %self.key.id, "a holder sent a share that does not fit the commitments");
            self.on.peers.distrust(liar, "it sent a share that does not fit the ledger's commitments");
        }
        self.arrivals.retain(|(device, _)| !liars.contains(device));
        self.liars.extend_from_slice(&liars);
        self.assembly.judged(&liars);
    }

    fn report(&self, with_iv: bool) -> AssemblyReport {
        let state = self.on.ledger.replica().effective();
        let share = |s: &mayfly_protocol::assembly::Share<Secret<64>>| ShareReport {
            device: state.device_name(&s.device),
            index: s.index,
            own: s.device == self.on.device,
            after: self.arrivals.iter().find(|(d, _)| *d == s.device).map_or(Duration::ZERO, |(_, after)| *after),
        };
        let own = if self.key.wrapped.is_some() { Label::Wrap } else { Label::KeyBytes };
        let mut labels = vec![Label::Commit, own];
        if with_iv {
            labels.push(Label::Iv);
        }
        AssemblyReport {
            t: self.key.t,
            generation: self.key.generation,
            epoch: self.key.epoch,
            shares: self.assembly.shares().iter().map(share).collect(),
            liars: self.liars.iter().map(|d| state.device_name(d)).collect(),
            took: self.began.elapsed(),
            ledger_size: self.ledger_size,
            derived: super::key::label_names(&labels),
        }
    }

    fn explain(&self, trouble: Trouble) -> KeyError {
        let failure = match trouble {
            Trouble::Error(error) => return error,
            Trouble::Failure(failure) => failure,
        };
        let state = self.on.ledger.replica().effective();
        let reason = |device: &DeviceId, why: &Missing| match why {
            _ if state.is_banned(device) => "it is banned".to_owned(),
            Missing::Late if *device == self.on.device => "its own vault did not open in time".to_owned(),
            why => why.to_string(),
        };
        let missed = |(device, why): &(DeviceId, Missing)| Missed {
            device: state.device_name(device),
            reason: reason(device, why),
        };
        let devices = failure.missing.iter().map(missed).collect();
        let (have, needed) = (failure.have, failure.needed);
        let error = match failure.kind {
            FailureKind::Inconsistent => KeyError::new(
                KeyErrorKind::Inconsistent,
                "the shares are good, but the key made of them is not the committed one: the record of this key is wrong",
            ),
            FailureKind::TooFew => {
                KeyError::new(KeyErrorKind::TooFewHolders, format!("{have} of {needed} shards could be had"))
                    .next(self.on.next_step("start the missing agents, or see why they refuse: `mayfly status`"))
                    .retry(1000)
            }
            FailureKind::Deadline => KeyError::new(
                KeyErrorKind::TooFewHolders,
                format!("{have} of {needed} shards came within {} s", DEADLINE.as_secs_f32()),
            )
            // No hint to try again: the application has waited as long as it shall.
            .next(self.on.next_step("start the missing agents, or see why they are slow: `mayfly status`")),
        };
        error.devices(devices)
    }
}

impl Assembler {
    /// Whom to ask, best first: ourselves, then holders that accepted, by how they answer; those whose acceptance came late are last.
    fn candidates(&self, key: &Key, clocks: Clocks) -> Vec<Candidate> {
        let valid = || key.shards.iter().filter(|s| s.is_valid(clocks));
        let accepted = |device: &DeviceId| key.acceptances.iter().any(|a| a.device == *device);
        let own = valid().filter(|s| s.device == self.device && accepted(&s.device));
        let usual = self.holder.usual_opening(key.policy.vault_opening);
        let mut candidates: Vec<Candidate> = own.map(|s| Candidate { device: s.device, usual }).collect();
        let others = |which: bool| valid().map(|s| s.device).filter(move |d| *d != self.device && accepted(d) == which);
        candidates.extend(self.peers.by_preference(others(true)));
        candidates.extend(self.peers.by_preference(others(false)));
        candidates
    }
}

/// How the derivation went: no fields, so that nothing but the answer leaves the secret stack (decision 0005).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Derivation {
    Done,
    /// The shares give no root, or not the committed one. No error here: the bad ones are looked for next.
    NotCommitted,
    /// The wrapped bytes do not open under the committed root.
    Damaged,
    NoMemory,
}

impl mayfly_secmem::Dense for Derivation {}

impl From<Exhausted> for Derivation {
    fn from(_: Exhausted) -> Self {
        Derivation::NoMemory
    }
}

/// Length of the key bytes.
fn bytes_length(key: &Key, key_type: KeyType) -> Result<usize, KeyError> {
    let length = match &key.wrapped {
        None => key_type.derived_bytes(),
        Some(blob) => blob.len().checked_sub(wrap::OVERHEAD_BYTES),
    };
    length.filter(|length| *length <= SECRET_BYTES_MAX).ok_or_else(|| wrapped_is_damaged(key))
}

/// Writes the key bytes, and the IV key where there is a place for it. Runs on the secret stack.
fn derive(
    key: &Key,
    key_type: KeyType,
    aad: &[u8],
    shares: &[(u32, &Secret<64>)],
    bytes: &mut SecretBytes,
    iv_key: Option<&mut Secret<32>>,
) -> Derivation {
    match try_derive(key, key_type, aad, shares, bytes, iv_key) {
        Ok(()) => Derivation::Done,
        Err(why) => why,
    }
}

fn try_derive(
    key: &Key,
    key_type: KeyType,
    aad: &[u8],
    shares: &[(u32, &Secret<64>)],
    bytes: &mut SecretBytes,
    iv_key: Option<&mut Secret<32>>,
) -> Result<(), Derivation> {
    let prk = checked_root(key, key_type, shares)?;
    let (id, generation, algorithm) = (key.id.as_bytes(), key.generation, key_type.algorithm());
    match &key.wrapped {
        None => prk.derive(Label::KeyBytes, id, generation, algorithm, bytes.expose_mut()),
        Some(blob) => {
            let wrap_key = Secret::<32>::new_with(|out| prk.derive(Label::Wrap, id, generation, algorithm, out))?;
            let opened = wrap::open(&wrap_key, aad, blob).map_err(|error| match error {
                wrap::WrapError::Memory(_) => Derivation::NoMemory,
                _ => Derivation::Damaged,
            })?;
            // Both lengths are that of the record less what sealing adds.
            bytes.expose_mut().copy_from_slice(opened.expose());
        }
    }
    if let Some(out) = iv_key {
        prk.derive(Label::Iv, id, generation, algorithm, out.expose_mut());
    }
    Ok(())
}

/// The root's PRK, if these shares give the committed root.
fn checked_root(key: &Key, key_type: KeyType, shares: &[(u32, &Secret<64>)]) -> Result<Prk, Derivation> {
    let root = pedersen::combine(key.t, shares).map_err(|error| match error {
        pedersen::ShareError::Memory(_) => Derivation::NoMemory,
        _ => Derivation::NotCommitted,
    })?;
    let prk = Prk::extract(&root)?;
    let expected = &key.key_commitment.0;
    let holds = schedule::commitment_holds(&prk, key.id.as_bytes(), key.generation, key_type.algorithm(), expected);
    if holds { Ok(prk) } else { Err(Derivation::NotCommitted) }
}

fn wrapped_is_damaged(key: &Key) -> KeyError {
    KeyError::new(KeyErrorKind::Inconsistent, format!("the wrapped bytes of key {} do not open", key.id.short()))
}

/// Associated data of wrapped key bytes: key id, generation, type, hash of the public key object, digest of the attributes it was made with.
pub(super) fn wrap_aad(key: &Key) -> Vec<u8> {
    use mayfly_protocol::cbor;
    let public = key.public_attributes.as_ref().map(cbor::to_vec).unwrap_or_default();
    mayfly_crypto::enc::enc(
        "mayfly/v1/wrapped-key",
        &[
            key.id.as_bytes(),
            &key.generation.to_be_bytes(),
            key.key_type.as_bytes(),
            &mayfly_crypto::enc::sha256(&public),
            &mayfly_crypto::enc::sha256(&cbor::to_vec(&key.attributes)),
        ],
    )
}

/// When a key that was put together at `clocks` is of no use any more: the moment at which fewer than t of its shards are valid.
pub(super) fn valid_until_ms(key: &Key) -> u64 {
    let mut ends: Vec<u64> = key.shards.iter().map(|s| s.valid_until_ms).collect();
    ends.sort_unstable_by(|a, b| b.cmp(a));
    ends.get(usize::from(key.t).saturating_sub(1)).copied().unwrap_or(0)
}

/// Waits until `state` is so, at most until `deadline`.
pub(super) fn wait_for(ledger: &Ledger, wanted: impl Fn(&State) -> bool, deadline: Instant) -> bool {
    let left = deadline.saturating_duration_since(Instant::now());
    ledger.replica().wait_effective(wanted, left).is_ok()
}
