//! The holder's half: releases shards by the ledger's rules, takes shards of new keys, erases what is over.
//!
//! Every rule is asked here again, whatever the assembler or the dealer says: membership, assembler, use, validity on both clocks, epoch,
//! freshness. A share leaves this module as a `Secret` (to our own assembler) or sealed in the envelope of the connection.

use super::clock;
use super::data::DataError;
use super::directory::{Behind, Ledger, View};
use super::fresh::Fresh;
use super::grants::Grants;
use super::limit::RateLimit;
use super::peers::Caller;
use super::shards::{Revoked, ShardError, ShardLabel, ShardStore};
use super::vault::{Bench, Vault};
use mayfly_crypto::enc;
use mayfly_crypto::envelope::Session;
use mayfly_crypto::sign::Ed25519Secret;
use mayfly_ledger_client::with_cause;
use mayfly_protocol::apply::DEADLINE_MS_MAX;
use mayfly_protocol::deal::{self, DEADLINE_MARGIN_MS, DealRefused};
use mayfly_protocol::freshness::{Freshness, NotFresh};
use mayfly_protocol::peer::{Cause, Offer, Refused, Release, Released, Reply};
use mayfly_protocol::record::{Acceptance, Key, VaultOpening};
use mayfly_protocol::rules::Denied;
use mayfly_protocol::{DeviceId, ShardId, State, cbor};
use mayfly_secmem::Secret;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a release may wait for a round of freshness.
const FRESH_PATIENCE: Duration = Duration::from_millis(1000);
/// Time from a key's deletion to the erasure of its shards, milliseconds of the slower clock. Until then an administrator can have it undone.
const DELETE_GRACE_MS: u64 = 24 * 3600 * 1000;
/// Offers that a dealer may make per second, each of which costs a write to the disk; twice as many at once.
const OFFERS_PER_SECOND_MAX: u32 = 200;
/// Most operations that wait for an opening of the vault at the same time; one opening serves all.
const WAITING_FOR_VAULT_MAX: usize = 256;
/// How long a request from somebody who knows more of the ledger may wait for us to catch up.
const CATCH_UP_PATIENCE: Duration = Duration::from_millis(500);

/// A share that may go to the requester, and what it is.
#[derive(Debug)]
pub struct Share {
    /// The shard.
    pub shard: ShardId,
    /// Its evaluation point.
    pub index: u32,
    /// The secret.
    pub value: Secret<64>,
}

/// This device as a holder.
#[derive(Debug)]
pub struct Holder {
    device: DeviceId,
    session: Arc<Ed25519Secret>,
    ledger: Arc<Ledger>,
    fresh: Arc<Fresh>,
    vault: Arc<Vault>,
    shards: ShardStore,
    grants: Arc<Grants>,
    limit: RateLimit,
    offers: RateLimit,
    /// Promotions and erasures go one at a time.
    sweeping: Mutex<()>,
    /// Operations that wait for an opening beside other holders' answers.
    waiting_for_vault: Arc<AtomicUsize>,
}

/// One of those that wait for the vault.
struct Waits(Arc<AtomicUsize>);

impl Waits {
    fn begin(all: &Arc<AtomicUsize>) -> Option<Waits> {
        let waits = Waits(all.clone());
        (all.fetch_add(1, Ordering::AcqRel) < WAITING_FOR_VAULT_MAX).then_some(waits)
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Parts that a holder works with.
#[derive(Debug)]
pub struct Parts {
    /// This run's session key.
    pub session: Arc<Ed25519Secret>,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// Freshness.
    pub fresh: Arc<Fresh>,
    /// The vault.
    pub vault: Arc<Vault>,
    /// Shards at rest.
    pub shards: ShardStore,
    /// Grants.
    pub grants: Arc<Grants>,
    /// Most releases per second for one assembler; 0: no bound.
    pub releases_per_second_max: u32,
}

impl Holder {
    /// A holder of these parts.
    pub fn new(device: DeviceId, parts: Parts) -> Holder {
        let Parts { session, ledger, fresh, vault, shards, grants, releases_per_second_max } = parts;
        let limit = RateLimit::new(releases_per_second_max);
        let offers = RateLimit::new(OFFERS_PER_SECOND_MAX);
        let (sweeping, waiting_for_vault) = (Mutex::default(), Arc::default());
        Holder { device, session, ledger, fresh, vault, shards, grants, limit, offers, sweeping, waiting_for_vault }
    }

    // --- releasing ----------------------------------------------------------------------------------------------------------

    /// Answers an assembler: the share sealed in the connection's envelope, or why not.
    pub fn answer_release(&self, caller: &Caller, session: &mut Session, ask: &Release) -> Reply {
        if ask.requester != caller.device {
            return Reply::Refused(self.refused(Cause::Denied, "the request names another requester"));
        }
        let share = match self.release(ask) {
            Ok(share) => share,
            Err(refused) => {
                tracing::debug!(requester = %caller.device, why = refused.text, "no release");
                return Reply::Refused(refused);
            }
        };
        let view = self.ledger.view();
        let aad = ask.aad(&view.effective.network, &self.device, &share.shard, share.index);
        let mut sealed = Vec::new();
        if let Err(error) = session.seal(&aad, share.value.expose(), &mut sealed) {
            return Reply::Refused(self.refused(Cause::Failed, error.to_string()));
        }
        Reply::Released(Released {
            key: ask.key,
            generation: ask.generation,
            epoch: ask.epoch,
            shard: share.shard,
            index: share.index,
            nonce: ask.nonce,
            head: view.effective.head(),
            sealed,
        })
    }

    /// The share that this request may have. Our own assembler asks here too, and is judged alike.
    ///
    /// # Errors
    /// [`Refused`], with our head.
    pub fn release(&self, ask: &Release) -> Result<Share, Refused> {
        if !self.limit.take(&ask.requester, ask.uses, clock::boot_ms()) {
            let most = self.limit.per_second();
            let text = format!("this device releases shards for at most {most} uses per second to one assembler");
            return Err(self.refused(Cause::Busy, text));
        }
        let (view, shard, index) = self.judge(ask)?;
        let opened = self.opened(&view, ask, &shard)?;
        let clocks = self.fresh.clocks().map_err(|e| self.not_fresh(&e))?;
        let posted = view.posted_grants(&self.device);
        self.grants
            .draw(&ask.key, &ask.requester, ask.uses, clocks.ledger_ms, posted)
            .map_err(|error| self.refused(Cause::Failed, with_cause(&error)))?;
        self.judge_again(ask)?;
        Ok(Share { shard, index, value: opened })
    }

    /// Whether this device may do anything: its vault is not behind the ledger.
    ///
    /// # Errors
    /// [`Behind`].
    pub fn check_vault(&self, view: &View) -> Result<(), Behind> {
        view.check_generation(&self.device, self.vault.generation())
    }

    fn not_behind(&self, view: &View) -> Result<(), Refused> {
        self.check_vault(view).map_err(|behind| self.refused(Cause::Failed, behind.to_string()))
    }

    /// Whether a release needs no opening of the vault that may take long.
    pub fn has_at_hand(&self, opening: VaultOpening) -> bool {
        self.vault.has_at_hand(opening)
    }

    /// How long our own shard usually takes.
    pub fn usual_opening(&self, opening: VaultOpening) -> Duration {
        if self.has_at_hand(opening) { Duration::ZERO } else { self.vault.usual_opening(opening) }
    }

    /// [`Holder::release`] on a thread of its own: the caller asks others meanwhile, and goes on without it when it takes too long.
    ///
    /// # Errors
    /// [`Refused`]: as many wait for the vault already as may.
    pub fn release_beside(self: &Arc<Self>, ask: &Release) -> Result<Receiver<Result<Share, Refused>>, Refused> {
        let busy = || self.refused(Cause::Busy, "too many operations wait for this device's vault");
        let waits = Waits::begin(&self.waiting_for_vault).ok_or_else(busy)?;
        let (answer, answered) = sync_channel(1);
        let (holder, ask) = (self.clone(), ask.clone());
        let release = move || {
            let _waits = waits;
            let _ = answer.send(holder.release(&ask)); // whoever asked may have gone on; the share is wiped then
        };
        let spawned = std::thread::Builder::new().name("vault-open".into()).spawn(release);
        spawned.map_err(|error| self.refused(Cause::Failed, error.to_string()))?;
        Ok(answered)
    }

    /// The ledger's answer. When the requester knows more of the ledger than we do, it is asked again after catching up.
    fn judge(&self, ask: &Release) -> Result<(View, ShardId, u32), Refused> {
        let clocks = self.fresh.ensure(FRESH_PATIENCE).map_err(|e| self.not_fresh(&e))?;
        let query = ask.query();
        let mut view = self.ledger.view();
        let mut found = view.may_release(&query, &self.device, clocks).map(|key| self.own_shard(&key.record));
        if found.is_err() && ask.head.size > view.effective.size() {
            let there = |state: &State| state.size() >= ask.head.size;
            let _ = self.ledger.replica().wait_effective(there, CATCH_UP_PATIENCE);
            view = self.ledger.view();
            found = view.may_release(&query, &self.device, clocks).map(|key| self.own_shard(&key.record));
        }
        self.not_behind(&view)?;
        match found {
            Ok(Some((shard, index))) => Ok((view, shard, index)),
            Ok(None) => Err(self.refused(Cause::Denied, "this device holds no shard of this key")),
            Err(denied) => Err(self.denied(&denied)),
        }
    }

    /// The vault and the disk take their time: what the ledger or an administrator has taken back meanwhile, is not released.
    fn judge_again(&self, ask: &Release) -> Result<(), Refused> {
        let clocks = self.fresh.clocks().map_err(|e| self.not_fresh(&e))?;
        let view = self.ledger.view();
        self.not_behind(&view)?;
        view.may_release(&ask.query(), &self.device, clocks).map_err(|denied| self.denied(&denied))?;
        Ok(())
    }

    fn own_shard(&self, key: &Key) -> Option<(ShardId, u32)> {
        key.shards.iter().find(|s| s.device == self.device).map(|s| (s.id, s.index))
    }

    /// Opens the shard; one that is still pending here is promoted first, since its key is effective.
    fn opened(&self, view: &View, ask: &Release, shard: &ShardId) -> Result<Secret<64>, Refused> {
        let failed = |error: ShardError| {
            tracing::warn!(error = with_cause(&error), "a shard cannot be opened");
            self.refused(Cause::Failed, with_cause(&error))
        };
        if !self.shards.has(shard)
            && let Some(key) = view.effective.keys.get(&ask.key)
            && let Some(label) = self.shards.pending_label(shard)
            && label.accepted == digest(&key.record)
        {
            let _one = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.shards.has(shard) {
                self.shards.promote(shard).map_err(failed)?;
            }
        }
        self.shards.open_share(shard).map_err(failed)
    }

    fn denied(&self, denied: &Denied) -> Refused {
        let cause = match denied {
            Denied::WrongEpoch { .. } => Cause::WrongEpoch,
            _ => Cause::Denied,
        };
        self.refused(cause, denied.to_string())
    }

    fn not_fresh(&self, why: &NotFresh) -> Refused {
        self.refused(Cause::NotFresh, why.to_string())
    }

    fn refused(&self, cause: Cause, text: impl Into<String>) -> Refused {
        Refused::new(cause, text, self.ledger.replica().effective().head())
    }

    // --- taking shards of new keys ------------------------------------------------------------------------------------------

    /// Answers a dealer: our signed acceptance when the shard is checked, sealed and saved, or why not.
    pub fn answer_offer(&self, caller: &Caller, session: &mut Session, offer: &Offer) -> Reply {
        let network = self.ledger.replica().network().network;
        let aad = Offer::aad(&network, &caller.device, &self.device, &offer.key.id);
        match session.open_fixed::<64>(&aad, &offer.sealed) {
            Err(error) => Reply::Refused(self.refused(Cause::Failed, error.to_string())),
            Ok(share) => match self.accept(&offer.key, &caller.device, &share) {
                Ok(acceptance) => Reply::Accepted(acceptance),
                Err(refused) => Reply::Refused(refused),
            },
        }
    }

    /// Checks an offered shard, saves it as pending, and signs. Our own dealer offers here too.
    ///
    /// # Errors
    /// [`Refused`]; nothing is kept then.
    pub fn accept(&self, key: &Key, dealer: &DeviceId, share: &Secret<64>) -> Result<Acceptance, Refused> {
        if !self.offers.take(dealer, 1, clock::boot_ms()) {
            let text = format!("this device takes at most {OFFERS_PER_SECOND_MAX} offers per second of one dealer");
            return Err(self.refused(Cause::Busy, text));
        }
        let clocks = self.fresh.ensure(FRESH_PATIENCE).map_err(|e| self.not_fresh(&e))?;
        let view = self.ledger.view();
        self.not_behind(&view)?;
        if clocks.ledger_ms.max(clocks.local_ms) > key.deadline_ms {
            return Err(self.refused(Cause::Denied, "the offer's deadline has passed"));
        }
        if key.deadline_ms > clocks.ledger_ms.saturating_add(DEADLINE_MS_MAX) {
            return Err(self.refused(Cause::Denied, "the offer's deadline is too far ahead"));
        }
        if view.member(dealer).is_none() {
            return Err(self.refused(Cause::Denied, "the dealer is not a member"));
        }
        if view.tip.keys.contains_key(&key.id) {
            return Err(self.refused(Cause::Denied, "the key is on the ledger already"));
        }
        if !self.vault.offers(key.policy.vault_opening) {
            return Err(
                self.refused(Cause::Denied, "this device's vault does not offer the opening that the key asks for")
            );
        }
        self.check_rate(key)?;
        let shard = deal::check_offer(&view.effective, key, dealer, &self.device, share).map_err(|error| {
            if let DealRefused::Shard(_) = error {
                tracing::error!(%dealer, key = %key.id, "a dealer sent a shard that does not fit its commitments");
            }
            self.refused(Cause::Denied, error.to_string())
        })?;
        let label = ShardLabel {
            shard: shard.id,
            key: key.id,
            generation: key.generation,
            epoch: key.epoch,
            index: shard.index,
            opening: key.policy.vault_opening,
            accepted: digest(key),
            deadline_ms: key.deadline_ms,
            dealer: *dealer,
        };
        self.shards.accept(&label, share).map_err(|error| {
            let cause = match error {
                ShardError::Taken(_) => Cause::Denied,
                ShardError::TooMany | ShardError::TooManyOfDealer => Cause::Busy,
                _ => Cause::Failed,
            };
            tracing::warn!(%dealer, key = %key.id, error = with_cause(&error), "an offered shard is not kept");
            self.refused(cause, with_cause(&error))
        })?;
        let message = deal::acceptance_message(&view.effective.network, key, shard);
        Ok(Acceptance { device: self.device, signature: self.session.sign(&message).to_vec() })
    }

    /// Whether releases can come as often as the key's maker says that it will be used.
    fn check_rate(&self, key: &Key) -> Result<(), Refused> {
        let (opening, rate) = (key.policy.vault_opening, key.policy.rate);
        let most = self.limit.per_second();
        if most != 0 && rate > most {
            let text = format!("this device releases shards for at most {most} uses per second to one assembler");
            return Err(self.refused(Cause::Denied, format!("{text}, the key asks for {rate}")));
        }
        match self.vault.serves(opening, rate) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(text)) => Err(self.refused(Cause::Denied, text)),
            Err(error) => Err(self.refused(Cause::Failed, with_cause(&error))),
        }
    }

    // --- what the ledger has decided since ----------------------------------------------------------------------------------

    /// Promotes shards whose keys are effective, drops those whose deadline is past for good. Called after each change of the effective state,
    /// at the start, and from time to time.
    pub fn sweep(&self) {
        let _one = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        let view = self.ledger.view();
        // A round that is not good any more says nothing about now.
        let round = self.fresh.clocks().ok().and_then(|_| self.fresh.last());
        for label in self.shards.pending() {
            match fate(&label, &self.device, &view.effective, &view.tip, round.as_deref(), clock::local_ms()) {
                Fate::Wait => {}
                Fate::Promote => self.told("promote", &label, self.shards.promote(&label.shard)),
                Fate::Drop => self.told("drop", &label, self.shards.drop_pending(&label.shard)),
            }
        }
    }

    /// Erases shards that are over by both clocks, and those of deleted keys: at once in a network for development, elsewhere [`DELETE_GRACE_MS`] after this device saw the deletion.
    pub fn erase_deleted(&self) {
        let view = self.ledger.view();
        let Ok(clocks) = self.fresh.clocks() else { return };
        let grace_ms = if view.effective.policy().is_some_and(|p| p.dev) { 0 } else { DELETE_GRACE_MS };
        let now_ms = clocks.ledger_ms.min(clocks.local_ms);
        let _one = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        for label in self.shards.active() {
            let Some(key) = view.effective.keys.get(&label.key) else { continue };
            if is_over(&key.record, &label.shard, now_ms) {
                self.told("erase", &label, self.shards.erase(&label.shard));
                continue;
            }
            if !key.deleted {
                continue;
            }
            match self.shards.doomed(&label.shard, now_ms) {
                Ok(since_ms) if since_ms.saturating_add(grace_ms) <= now_ms => {
                    self.told("erase", &label, self.shards.erase(&label.shard));
                }
                Ok(_) => {}
                Err(error) => self.told("doom", &label, Err(error)),
            }
        }
    }

    fn told(&self, what: &str, label: &ShardLabel, result: Result<(), ShardError>) {
        let (shard, key) = (&label.shard, &label.key);
        match result {
            Ok(()) => tracing::info!(what, %shard, %key, "shard"),
            Err(error) => tracing::warn!(what, %shard, %key, error = with_cause(&error), "shard"),
        }
    }

    /// Erased shards that wait for a revocation.
    pub fn waiting(&self) -> usize {
        self.shards.waiting()
    }

    /// Moves the vault on to its next generation, now: no copy of what was erased opens ever again.
    ///
    /// # Errors
    /// [`ShardError`]; it can be tried again at any time.
    pub fn revoke_now(&self) -> Result<Revoked, ShardError> {
        let revoked = self.shards.revoke()?;
        let Revoked { generation, kept, revoked: gone, took, .. } = revoked;
        tracing::info!(generation, kept, gone, ms = took.as_millis() as u64, "the vault has moved to a new generation");
        Ok(revoked)
    }

    /// Measures the vault; with `commit` by a real revocation, too.
    ///
    /// # Errors
    /// [`ShardError`].
    pub fn bench(&self, rounds: usize, commit: bool) -> Result<Bench, ShardError> {
        let mut bench = self.shards.undisturbed(|| self.vault.bench(rounds))?;
        if commit {
            let revoked = self.revoke_now()?;
            bench.commit_ms = Some(revoked.commit.as_secs_f64() * 1e3);
            bench.revocation_ms = Some(revoked.took.as_secs_f64() * 1e3);
            bench.shards = Some(revoked.kept);
            bench.generation = revoked.generation;
        }
        Ok(bench)
    }

    /// Keys whose shards are lost here: no key of the vault opens them.
    pub fn lost(&self) -> Vec<mayfly_protocol::KeyId> {
        self.shards.lost().into_iter().map(|label| label.key).collect()
    }

    /// Whether this device has sealed shards under the generation at which its vault is.
    pub fn had_keys(&self) -> bool {
        self.shards.had_keys()
    }

    /// Shards in use here, and those that wait for their keys.
    pub fn counts(&self) -> (usize, usize) {
        self.shards.counts()
    }

    #[cfg(test)]
    pub(super) fn shards_for_test(&self) -> &ShardStore {
        &self.shards
    }

    /// Grants.
    pub fn grants(&self) -> &Arc<Grants> {
        &self.grants
    }
}

/// What becomes of a pending shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Wait,
    Promote,
    Drop,
}

/// A key that is on the witnessed ledger decides at once. One that is absent can still come while its deadline, the skew of clocks and what is
/// under way allow it: only a round of freshness *after* all that, whose heads we have, says that it never will.
fn fate(
    label: &ShardLabel,
    device: &DeviceId,
    effective: &State,
    tip: &State,
    round: Option<&Freshness>,
    local_ms: u64,
) -> Fate {
    if let Some(key) = effective.keys.get(&label.key) {
        let ours = key.record.shards.iter().any(|s| s.id == label.shard && s.device == *device);
        return if ours && label.accepted == digest(&key.record) { Fate::Promote } else { Fate::Drop };
    }
    let Some(round) = round else { return Fate::Wait };
    let skew = effective.policy().map_or(0, |p| p.skew_ms_max);
    let end = label.deadline_ms.saturating_add(skew).saturating_add(DEADLINE_MARGIN_MS);
    let is_past = round.ledger_ms.min(local_ms) > end;
    let is_absent = round.head.size <= tip.size() && !tip.keys.contains_key(&label.key);
    if is_past && is_absent { Fate::Drop } else { Fate::Wait }
}

/// Whether the shard is past its validity at `now_ms`, the time of the slower clock.
fn is_over(key: &Key, shard: &ShardId, now_ms: u64) -> bool {
    key.shards.iter().any(|s| s.id == *shard && s.valid_until_ms < now_ms)
}

/// What was accepted: the record without acceptances.
fn digest(key: &Key) -> [u8; 32] {
    enc::sha256(&cbor::to_vec(&Key { acceptances: Vec::new(), ..key.clone() }))
}

impl From<DataError> for Refused {
    fn from(error: DataError) -> Self {
        Refused::new(Cause::Failed, with_cause(&error), mayfly_protocol::Head::default())
    }
}

#[cfg(test)]
mod tests;
