//! The verified ledger as the rest of the node asks it: rights are those that *both* the witnessed state and the newest verified state
//! give, less what was seen on sight.

use super::alarms::{Alarms, Banned};
use super::clock;
use super::peers::{self, Standing};
use mayfly_crypto::sign::PublicKey;
use mayfly_ledger_client::Replica;
use mayfly_protocol::rules::{Clocks, Denied, ReleaseQuery};
use mayfly_protocol::state::{Device, KeyState, Membership};
use mayfly_protocol::{DeviceId, Head, State};
use std::sync::Arc;
use std::time::Duration;

/// The two states and the alarms.
pub struct Ledger {
    replica: Arc<Replica>,
    alarms: Arc<Alarms>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({} entries)", self.replica.effective().size())
    }
}

/// One look at the ledger: a decision is made on one.
#[derive(Debug)]
pub struct View {
    /// At the newest witnessed head.
    pub effective: Arc<State>,
    /// At the newest verified head.
    pub tip: Arc<State>,
    banned: Arc<Banned>,
}

impl Ledger {
    /// Over this replica.
    pub fn new(replica: Arc<Replica>, alarms: Arc<Alarms>) -> Self {
        Self { replica, alarms }
    }

    /// The replica.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// Bans seen on sight.
    pub fn alarms(&self) -> &Arc<Alarms> {
        &self.alarms
    }

    /// The ledger now.
    #[inline]
    pub fn view(&self) -> View {
        // The newest verified state last: the effective one is never ahead of it then, and a ban that was settled is in it.
        let (banned, effective) = (self.alarms.snapshot(), self.replica.effective());
        View::new(effective, self.replica.tip(), banned)
    }
}

/// A vault that was put back from a copy: the ledger has this device's own word for a later generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this device's vault is at generation {vault}, but the device has acknowledged generation {acknowledged}: an older copy of the vault was put back"
)]
pub struct Behind {
    /// Of the vault.
    pub vault: u64,
    /// On the ledger.
    pub acknowledged: u64,
}

impl View {
    /// Whether the vault of `device`, which is at `generation`, is what the ledger knows of it. Asked of both states: what the device said
    /// itself needs no witness to bind it.
    ///
    /// # Errors
    /// [`Behind`]: the device is in quarantine.
    pub fn check_generation(&self, device: &DeviceId, generation: u64) -> Result<(), Behind> {
        let acknowledged = self.acknowledged(device);
        if generation < acknowledged { Err(Behind { vault: generation, acknowledged }) } else { Ok(()) }
    }

    /// The newest generation of its vault of which the device has told.
    pub fn acknowledged(&self, device: &DeviceId) -> u64 {
        let of = |state: &State| state.devices.get(device).map_or(0, |d| d.vault_generation);
        of(&self.tip).max(of(&self.effective))
    }

    pub(super) fn new(effective: Arc<State>, tip: Arc<State>, banned: Arc<Banned>) -> View {
        View { effective, tip, banned }
    }

    /// The shard that `holder` may release, if both states allow it.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_release(&self, query: &ReleaseQuery, holder: &DeviceId, clocks: Clocks) -> Result<&KeyState, Denied> {
        self.seen(&query.requester)?;
        self.seen(holder)?;
        let (key, _) = self.effective.may_release(query, holder, clocks)?;
        if self.differ() {
            self.tip.may_release(query, holder, clocks)?;
        }
        Ok(key)
    }

    /// The key, if the requester may put it together by both states.
    ///
    /// # Errors
    /// [`Denied`].
    #[inline]
    pub fn may_assemble(&self, query: &ReleaseQuery) -> Result<&KeyState, Denied> {
        self.seen(&query.requester)?;
        let key = self.effective.may_assemble(query)?;
        if self.differ() {
            self.tip.may_assemble(query)?;
        }
        Ok(key)
    }

    /// The device, if it is a member by both states and no alarm was seen.
    pub fn member(&self, device: &DeviceId) -> Option<&Device> {
        let found = self.effective.devices.get(device).filter(|d| d.is_member())?;
        let still = !self.differ() || self.tip.member(device).is_ok();
        (still && !self.banned.contains(device)).then_some(found)
    }

    /// Highest number of this holder's grants on the ledger.
    pub fn posted_grants(&self, holder: &DeviceId) -> u64 {
        self.tip.grants.get(holder).copied().unwrap_or(0)
    }

    fn differ(&self) -> bool {
        self.effective.size() != self.tip.size()
    }

    fn seen(&self, device: &DeviceId) -> Result<(), Denied> {
        if self.banned.contains(device) {
            return Err(Denied::NotMember(self.effective.device_name(device), "banned"));
        }
        Ok(())
    }

    /// The newest session key of a member, if it has not expired.
    fn session_of(&self, device: &DeviceId) -> Option<PublicKey> {
        let session = self.member(device)?.session()?;
        (clock::local_ms() <= session.not_after_ms).then_some(session.key)
    }

    /// As what the device may speak whose newest session key this is.
    fn standing_of(&self, device: &DeviceId, key: &PublicKey) -> Option<Standing> {
        if self.session_of(device).is_some_and(|session| session == *key) {
            return Some(Standing::Member);
        }
        let candidate = self.effective.devices.get(device).filter(|d| d.membership == Membership::Pending)?;
        let banned = self.tip.is_banned(device) || self.banned.contains(device);
        let session = candidate.session().filter(|s| clock::local_ms() <= s.not_after_ms)?;
        (session.key == *key && !banned).then_some(Standing::Candidate)
    }

    fn caller_of(&self, key: &PublicKey) -> Option<(DeviceId, Standing)> {
        let (device, _) = self.effective.device_by_session(key)?;
        Some((*device, self.standing_of(device, key)?))
    }
}

impl peers::Directory for Ledger {
    fn caller_of(&self, key: &PublicKey, patience: Duration) -> Option<(DeviceId, Standing)> {
        if let Some(caller) = self.view().caller_of(key) {
            return Some(caller);
        }
        let known = |state: &State| state.device_by_session(key).is_some();
        self.replica.wait_effective(known, patience).ok()?;
        self.view().caller_of(key)
    }

    fn standing_of(&self, device: &DeviceId, key: &PublicKey) -> Option<Standing> {
        self.view().standing_of(device, key)
    }

    fn session_of(&self, device: &DeviceId) -> Option<PublicKey> {
        self.view().session_of(device)
    }

    fn addresses_of(&self, device: &DeviceId) -> Vec<String> {
        self.replica.effective().devices.get(device).map(|d| d.addresses.clone()).unwrap_or_default()
    }

    fn head(&self) -> Head {
        self.replica.tip().head()
    }
}
