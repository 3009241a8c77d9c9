//! What the ledger says: the result of applying its entries in order. A snapshot costs a few pointers (persistent maps).

use crate::head::Head;
use crate::ids::{AuthorId, DeviceId, EntryId, Hash, InviteId, KeyId, NetworkId, ObjectId, TokenId, public_key_id};
use crate::record::{self, Attribute, DeviceRole};
use imbl::{OrdMap, Vector};
use mayfly_crypto::merkle::Frontier;
use mayfly_crypto::sign::PublicKey;
use std::sync::Arc;

/// How many of the newest heads are kept to judge the `head` of new entries.
pub const RECENT_HEADS: usize = 1024;
/// How many approvals of registers are kept for a device.
pub const PCR_APPROVALS: usize = 16;
/// How many sessions of a device are kept: a cosignature may have been made just before the device renewed its session.
pub const RECENT_SESSIONS: usize = 4;

/// The whole state. Equal logs give equal states, however they were chunked.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The network; zeros before genesis.
    pub network: NetworkId,
    /// The genesis record.
    pub genesis: Option<Arc<record::Genesis>>,
    /// Time of the newest entry, by the sequencer's clock, never going back. Milliseconds.
    pub time_ms: u64,
    /// Invitations.
    pub invites: OrdMap<InviteId, Invite>,
    /// Devices, banned ones included.
    pub devices: OrdMap<DeviceId, Device>,
    /// Tokens.
    pub tokens: OrdMap<TokenId, Token>,
    /// Keys, deleted ones included.
    pub keys: OrdMap<KeyId, KeyState>,
    /// Objects without secrets; deleted ones are gone.
    pub objects: OrdMap<ObjectId, ObjectState>,
    /// The end of each author's own chain.
    pub authors: OrdMap<AuthorId, AuthorTail>,
    /// Highest grant number posted by each holder.
    pub grants: OrdMap<DeviceId, u64>,
    /// Alerts: about whom, what, by whom.
    pub alerts: OrdMap<(DeviceId, record::AlertKind, DeviceId), AlertState>,
    /// Who delegated each session key that is kept in [`Device::sessions`]: no key speaks for two devices.
    pub(crate) session_owners: OrdMap<[u8; 32], DeviceId>,
    /// Index of the newest UNBAN of each device.
    pub(crate) unbans: OrdMap<DeviceId, u64>,
    pub(crate) frontier: Frontier,
    pub(crate) recent: Vector<(Head, u64)>,
}

/// An invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// As posted.
    pub record: record::Invite,
    /// The device that used it up.
    pub used_by: Option<DeviceId>,
}

/// Where a device stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Membership {
    /// Has joined, waits for approval.
    Pending,
    /// Approved.
    Member,
    /// Has lost every right.
    Banned,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Unique name.
    pub name: String,
    /// Identity key.
    pub identity: PublicKey,
    /// Kind of vault.
    pub vault: String,
    /// Whether the vault is software only.
    pub software_only: bool,
    /// Where it stands.
    pub membership: Membership,
    /// Roles, ascending.
    pub roles: Vec<DeviceRole>,
    /// Where peers reach it, from the newest delegation.
    pub addresses: Vec<String>,
    /// The newest generation of its vault that it has acknowledged, in a VAULT-GENERATION or a delegation.
    pub vault_generation: u64,
    /// Who challenged its chip and saw what; the newest statement of each author.
    pub attestations: OrdMap<AuthorId, Attestation>,
    /// Its chip, from the moment on when enough authors had seen it: what its later statements are judged by, for good.
    pub chip: Option<Arc<record::Chip>>,
    /// Its newest VAULT-GENERATION, with its proof.
    pub generation_stated: Option<GenerationStated>,
    /// The newest approvals of its registers, oldest first, at most [`PCR_APPROVALS`].
    pub pcr_approvals: Vec<Arc<record::PcrApproval>>,
    /// The newest delegation, with its quote.
    pub delegation: Option<Arc<record::Delegate>>,
    /// Newest first, at most [`RECENT_SESSIONS`].
    pub(crate) sessions: Vec<Session>,
}

/// What somebody saw of a device's chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attestation {
    /// As posted.
    pub record: Arc<record::Attest>,
    /// When it was sequenced, milliseconds.
    pub time_ms: u64,
}

/// A generation that a device stated in a record of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationStated {
    /// As posted.
    pub record: Arc<record::VaultGeneration>,
    /// When it was sequenced, milliseconds.
    pub time_ms: u64,
}

/// An alert that stands: the newest of its author about this, since the newest delegation of the device that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertState {
    /// As posted.
    pub record: Arc<record::Alert>,
    /// When it was sequenced, milliseconds.
    pub time_ms: u64,
}

/// A session key of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Ed25519.
    pub key: PublicKey,
    /// Start counter of the delegation.
    pub start_counter: u64,
    /// End of validity, milliseconds.
    pub not_after_ms: u64,
}

impl Device {
    /// Approved and not banned.
    pub fn is_member(&self) -> bool {
        self.membership == Membership::Member
    }

    /// Banned.
    pub fn is_banned(&self) -> bool {
        self.membership == Membership::Banned
    }

    /// The newest session: the only one that signs records and opens connections.
    pub fn session(&self) -> Option<&Session> {
        self.sessions.first()
    }

    /// The newest sessions, newest first; older ones still verify cosignatures.
    pub fn sessions(&self) -> &[Session] {
        &self.sessions
    }

    /// Whether the device has the role. Banned devices have none.
    pub fn has_role(&self, role: DeviceRole) -> bool {
        self.is_member() && self.roles.contains(&role)
    }
}

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its newest record.
    pub record: Arc<record::Token>,
    /// Index of the entry that made it: orders slots.
    pub position: u64,
    /// Ledger size after the last change of the token or anything in it.
    pub version: u64,
    /// The security officer's PIN, if set.
    pub so_pin: Option<record::PinVerifier>,
    /// The user's PIN, if set.
    pub user_pin: Option<record::PinVerifier>,
}

/// A key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyState {
    /// As posted; attributes as changed since are beside it.
    pub record: Arc<record::Key>,
    /// Index of its entry: a stable small number for handles.
    pub position: u64,
    /// The device that made it.
    pub dealer: DeviceId,
    /// Attributes of the secret or private object now.
    pub attributes: Arc<Vec<Attribute>>,
    /// Attributes of the public object now; `None` if there is none (any more).
    pub public_attributes: Option<Arc<Vec<Attribute>>>,
    /// Deleted: hidden, not used, shards to be erased.
    pub deleted: bool,
}

impl KeyState {
    /// The holders that accepted their shards.
    pub fn accepted(&self) -> impl Iterator<Item = &record::ShardRecord> {
        self.record.shards.iter().filter(|s| self.record.acceptances.iter().any(|a| a.device == s.device))
    }

    /// Fewer holders than planned have a shard.
    pub fn below_target(&self) -> bool {
        self.accepted().count() < self.record.shards.len()
    }
}

/// An object without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectState {
    /// The token that it belongs to.
    pub token: TokenId,
    /// Index of its entry: a stable small number for handles.
    pub position: u64,
    /// Attributes now.
    pub attributes: Arc<Vec<Attribute>>,
}

/// The end of an author's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AuthorTail {
    /// Number of the author's newest record.
    pub seq: u64,
    /// Its id.
    pub id: EntryId,
    /// Its index in the ledger.
    pub index: u64,
}

impl State {
    /// Number of entries applied.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The head after the newest entry.
    pub fn head(&self) -> Head {
        Head { size: self.frontier.size(), root: Hash(self.frontier.root()) }
    }

    /// The newest head and times, oldest first, at most [`RECENT_HEADS`].
    pub fn recent_heads(&self) -> impl DoubleEndedIterator<Item = &(Head, u64)> {
        self.recent.iter()
    }

    /// The root at `size`, if that is among the newest heads.
    pub fn recent_head(&self, size: u64) -> Option<(Head, u64)> {
        let newest = self.recent.back()?.0.size;
        let back = usize::try_from(newest.checked_sub(size)?).ok()?;
        self.recent.get(self.recent.len().checked_sub(back + 1)?).copied()
    }

    /// Rules of the network. `None` before genesis.
    pub fn policy(&self) -> Option<&record::NetworkPolicy> {
        self.genesis.as_deref().map(|g| &g.policy)
    }

    /// Devices that administrators appointed to cosign heads, ascending by id. A banned one still counts for the quorum, since one
    /// administrator may ban, but only m of them may change how many witnesses must agree.
    pub fn witnesses(&self) -> Vec<DeviceId> {
        let appointed = |d: &Device| d.membership != Membership::Pending && d.roles.contains(&DeviceRole::Witness);
        self.devices.iter().filter(|(_, d)| appointed(d)).map(|(id, _)| *id).collect()
    }

    /// The witnesses whose word counts: those that are not banned, ascending by id.
    pub fn active_witnesses(&self) -> Vec<DeviceId> {
        self.with_role(DeviceRole::Witness)
    }

    /// Devices that may be given shards, ascending by id.
    pub fn holders(&self) -> Vec<DeviceId> {
        self.with_role(DeviceRole::Holder)
    }

    fn with_role(&self, role: DeviceRole) -> Vec<DeviceId> {
        self.devices.iter().filter(|(_, d)| d.has_role(role)).map(|(id, _)| *id).collect()
    }

    /// Index of the newest UNBAN of a device, if there ever was one.
    pub fn unbanned_at(&self, id: &DeviceId) -> Option<u64> {
        self.unbans.get(id).copied()
    }

    /// Whether the device is known and banned.
    pub fn is_banned(&self, id: &DeviceId) -> bool {
        self.devices.get(id).is_some_and(Device::is_banned)
    }

    /// A device's name, or the start of its id.
    pub fn device_name(&self, id: &DeviceId) -> String {
        self.devices.get(id).map_or_else(|| id.short(), |d| d.name.clone())
    }

    /// The device with this name. Names of banned devices may be given again: the one that is not banned, then.
    pub fn device_by_name(&self, name: &str) -> Option<(&DeviceId, &Device)> {
        let mut named = self.devices.iter().filter(|(_, d)| d.name == name);
        let first = named.clone().next();
        named.find(|(_, d)| !d.is_banned()).or(first)
    }

    /// The device whose newest session key this is.
    pub fn device_by_session(&self, key: &PublicKey) -> Option<(&DeviceId, &Device)> {
        let id = self.session_owners.get(&public_key_id(key))?;
        self.devices.get_key_value(id).filter(|(_, d)| d.session().is_some_and(|s| s.key == *key))
    }

    /// The token with this label.
    pub fn token_by_label(&self, label: &str) -> Option<(&TokenId, &Token)> {
        self.tokens.iter().find(|(_, t)| t.record.label == label)
    }

    /// The next place in an author's chain: number, and id of the record before.
    pub fn author_next(&self, author: &AuthorId) -> (u64, EntryId) {
        self.authors.get(author).map_or((1, EntryId::default()), |tail| (tail.seq + 1, tail.id))
    }
}
