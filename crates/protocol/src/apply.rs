//! The one pure, deterministic `apply`: who may say what, and what it changes.
//!
//! A record in the ledger has been judged by this function at the sequencer, and is judged again by every replica. A replica that
//! disagrees stops: the sequencer, or this program, is wrong, and nothing may be released on such a ledger.

use crate::cbor::CborError;
use crate::deal;
use crate::entry::{Entry, EntryError, leaf_hash};
use crate::head::Head;
use crate::ids::{AuthorId, DeviceId, Hash, KeyId, NetworkId, ObjectId, TokenId, public_key_id};
use crate::record::{self, Attribute, DeviceRole, Kind, PinVerifier, Record, TargetKind};
use crate::state::{
    AuthorTail, Device, Invite, KeyState, Membership, ObjectState, RECENT_HEADS, RECENT_SESSIONS, Session, State, Token,
};
use imbl::OrdMap;
use mayfly_crypto::sign::PublicKey;
use std::sync::Arc;
use vaults::check_evidence;

mod vaults;

pub use vaults::{ALERT_AGAIN_MS, ALERT_BYTES_MAX, ALERT_NEWS_MS, APPROVAL_BYTES_MAX, EVIDENCE_BYTES_MAX};

/// Longest life of a session key after its delegation was sequenced: 8 hours.
pub const SESSION_MS_MAX: u64 = 8 * 3600 * 1000;
/// Oldest head, in milliseconds of ledger time, on which a delegation may be made.
pub const DELEGATE_HEAD_AGE_MS_MAX: u64 = 15 * 60 * 1000;
/// Longest life of an invitation after it was sequenced: 7 days.
pub const INVITE_MS_MAX: u64 = 7 * 24 * 3600 * 1000;
/// Longest time between a key's record and the deadline of its acceptances: 10 minutes. Holders keep pending shards until then.
pub const DEADLINE_MS_MAX: u64 = 10 * 60 * 1000;
/// Longest token label in bytes (CK_TOKEN_INFO).
pub const TOKEN_LABEL_BYTES_MAX: usize = 32;

/// The rule that a record breaks. Nothing is changed by a refused record, and it takes no number in its author's chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an entry.
    #[error("malformed entry")]
    Entry(#[from] EntryError),
    /// The payload is not a record of its kind.
    #[error("malformed record")]
    Record(#[from] CborError),
    /// A kind that this version does not know, or that is not active.
    #[error("record kind {0} is not known; a newer mayfly may be needed")]
    UnknownKind(u16),
    /// Signed for another network.
    #[error("entry is for network {0}")]
    Network(NetworkId),
    /// Sequenced before its predecessor.
    #[error("time goes back from {before} to {now} ms")]
    Time {
        /// Time of the newest entry.
        before: u64,
        /// Time offered.
        now: u64,
    },
    /// The same record is in the ledger already, at this index.
    #[error("record is in the ledger already, at index {0}")]
    Duplicate(u64),
    /// Not the next record of its author.
    #[error("author's record {got} does not follow its record {last}")]
    AuthorChain {
        /// The author's newest number.
        last: u64,
        /// Number offered.
        got: u64,
    },
    /// Made on a head that this ledger never had.
    #[error(
        "record was made on a head of {0} entries that is not this ledger's: the ledger may have forked or gone back"
    )]
    ForeignHead(u64),
    /// A signature that the rules ask for is missing or bad.
    #[error("signature is missing or bad: {0} must sign")]
    Signature(&'static str),
    /// The author may not say this.
    #[error("not authorised: {0}")]
    Authority(&'static str),
    /// The record contradicts the state, or itself.
    #[error("{0}")]
    Rule(String),
}

impl Refusal {
    /// A stable word for the rule, for answers and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Refusal::Entry(_) => "entry",
            Refusal::Record(_) => "record",
            Refusal::UnknownKind(_) => "kind",
            Refusal::Network(_) => "network",
            Refusal::Time { .. } => "time",
            Refusal::Duplicate(_) => "duplicate",
            Refusal::AuthorChain { .. } => "author-chain",
            Refusal::ForeignHead(_) => "foreign-head",
            Refusal::Signature(_) => "signature",
            Refusal::Authority(_) => "authority",
            Refusal::Rule(_) => "rule",
        }
    }
}

fn rule<T>(text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Rule(text.into()))
}

fn ensure(condition: bool, text: &str) -> Result<(), Refusal> {
    if condition { Ok(()) } else { rule(text) }
}

impl State {
    /// Judges `entry` as the next one, sequenced at `time_ms`, without changing anything.
    pub fn check(&self, time_ms: u64, entry: &Entry) -> Result<Record, Refusal> {
        let kind = Kind::from_number(entry.kind).ok_or(Refusal::UnknownKind(entry.kind))?;
        if time_ms < self.time_ms {
            return Err(Refusal::Time { before: self.time_ms, now: time_ms });
        }
        self.check_place(entry, kind)?;
        let record = Record::decode(kind, &entry.payload)?;
        self.check_record(time_ms, entry, &record)?;
        Ok(record)
    }

    /// Appends the entry with these bytes. On refusal nothing is changed.
    pub fn apply(&mut self, time_ms: u64, bytes: &[u8]) -> Result<Record, Refusal> {
        let entry = Entry::decode(bytes)?;
        let record = self.check(time_ms, &entry)?;
        let index = self.size();
        if let Record::Genesis(_) = record {
            self.network = NetworkId(entry.id().0);
        }
        self.change(time_ms, &entry, index, &record);
        self.authors.insert(entry.author, AuthorTail { seq: entry.author_seq, id: entry.id(), index });
        self.time_ms = time_ms;
        self.frontier.append(&leaf_hash(time_ms, bytes).0);
        if self.recent.len() == RECENT_HEADS {
            self.recent.pop_front();
        }
        self.recent.push_back((self.head(), time_ms));
        Ok(record)
    }

    /// Network, author's chain, and the head that the author claims to know.
    fn check_place(&self, entry: &Entry, kind: Kind) -> Result<(), Refusal> {
        if entry.network != self.network {
            return Err(Refusal::Network(entry.network));
        }
        if (kind == Kind::Genesis) != (self.size() == 0) {
            return rule("the genesis record, and only it, is the first entry");
        }
        let tail = self.authors.get(&entry.author).copied().unwrap_or_default();
        if tail.seq > 0 && entry.id() == tail.id {
            return Err(Refusal::Duplicate(tail.index));
        }
        if entry.author_seq != tail.seq + 1 || entry.author_prev != tail.id {
            return Err(Refusal::AuthorChain { last: tail.seq, got: entry.author_seq });
        }
        if entry.head.size > self.size() {
            return Err(Refusal::ForeignHead(entry.head.size));
        }
        match self.recent_head(entry.head.size) {
            Some((head, _)) if head != entry.head => Err(Refusal::ForeignHead(entry.head.size)),
            _ => Ok(()),
        }
    }

    fn check_record(&self, time_ms: u64, entry: &Entry, record: &Record) -> Result<(), Refusal> {
        match record {
            Record::Genesis(r) => check_genesis(entry, r),
            Record::Invite(r) => {
                self.need_administrators(entry, 1)?;
                self.check_invite(time_ms, r)
            }
            Record::Join(r) => self.check_join(time_ms, entry, r),
            Record::Approve(r) => {
                self.need_all_administrators(entry)?;
                match self.devices.get(&r.device).map(|d| d.membership) {
                    Some(Membership::Pending) => self.check_attested(&r.device),
                    Some(_) => rule("device is not waiting for approval"),
                    None => rule("device has not joined"),
                }
            }
            Record::Role(r) => {
                self.need_all_administrators(entry)?;
                self.check_role(r)
            }
            Record::Delegate(r) => self.check_delegate(time_ms, entry, r),
            Record::Token(r) => self.check_token(time_ms, entry, r),
            Record::Pin(r) => {
                self.need_creator(time_ms, entry, &r.token)?;
                let may_stand = r.verifier == PinVerifier::NONE || r.verifier.has_good_cost();
                ensure(may_stand, "a PIN verifier takes 19 to 256 MiB and 2 to 16 passes")
            }
            Record::Key(r) => {
                let dealer = self.need_creator(time_ms, entry, &r.token)?;
                self.check_deal(r, &dealer).map_err(Refusal::Rule)?;
                self.check_acceptances(time_ms, r)
            }
            Record::Attributes(r) => {
                check_attributes(&r.set)?;
                let token = self.target_token(r.target, &r.id)?;
                self.need_creator(time_ms, entry, &token).map(|_| ())
            }
            Record::Delete(r) => {
                let token = self.target_token(r.target, &r.id)?;
                self.need_creator(time_ms, entry, &token).map(|_| ())
            }
            Record::Object(r) => {
                self.need_creator(time_ms, entry, &r.token)?;
                check_attributes(&r.attributes)?;
                ensure(!self.objects.contains_key(&r.id), "object id is taken")
            }
            Record::Grant(r) => self.check_grant(time_ms, entry, r),
            Record::Ban(r) => {
                self.need_administrators(entry, 1)?;
                check_name_length(&r.reason, 256)?;
                ensure(
                    self.devices.get(&r.device).is_some_and(|d| !d.is_banned()),
                    "device is unknown or banned already",
                )
            }
            Record::Unban(r) => {
                self.need_all_administrators(entry)?;
                ensure(self.devices.get(&r.device).is_some_and(Device::is_banned), "device is not banned")?;
                ensure(self.witnesses() != [r.device], "the last witness stays: appoint another one first")
            }
            Record::Attest(r) => self.check_attest(time_ms, entry, r),
            Record::VaultGeneration(r) => self.check_vault_generation(entry, r),
            Record::PcrApproval(r) => self.check_pcr_approval(time_ms, entry, r),
            Record::Alert(r) => self.check_alert(time_ms, entry, r),
        }
    }

    // --- who signed ---------------------------------------------------------------------------------------------------------

    /// At least `needed` distinct administrators signed, the author among them.
    fn need_administrators(&self, entry: &Entry, needed: usize) -> Result<(), Refusal> {
        let genesis = self.genesis.as_deref().ok_or(Refusal::Authority("before genesis nobody may"))?;
        count_administrators(genesis, entry).and_then(|signed| {
            if signed >= needed { Ok(()) } else { Err(Refusal::Signature("enough administrators (m of n)")) }
        })
    }

    fn need_all_administrators(&self, entry: &Entry) -> Result<(), Refusal> {
        let needed = self.genesis.as_deref().map_or(1, |g| usize::from(g.administrators_needed));
        self.need_administrators(entry, needed)
    }

    /// The author is an approved device and signed with its newest, still valid session key.
    fn need_session(&self, time_ms: u64, entry: &Entry) -> Result<DeviceId, Refusal> {
        let id = DeviceId::from(entry.author);
        self.member(&id).map_err(|_| Refusal::Authority("the author is not an approved device"))?;
        let session = self.devices.get(&id).and_then(Device::session);
        let session = session.ok_or(Refusal::Authority("the author has delegated no session key"))?;
        if session.not_after_ms < time_ms {
            return Err(Refusal::Authority("the author's session key has expired"));
        }
        if entry.is_signed_by(&session.key) { Ok(id) } else { Err(Refusal::Signature("the author's session key")) }
    }

    fn need_creator(&self, time_ms: u64, entry: &Entry, token: &TokenId) -> Result<DeviceId, Refusal> {
        let device = self.need_session(time_ms, entry)?;
        ensure(self.tokens.contains_key(token), "token is not on the ledger")?;
        if self.creates_in(token, &device) {
            Ok(device)
        } else {
            Err(Refusal::Authority("the token's policy does not name this device as a creator"))
        }
    }

    // --- one kind each ------------------------------------------------------------------------------------------------------

    fn check_invite(&self, time_ms: u64, r: &record::Invite) -> Result<(), Refusal> {
        let id = crate::InviteId(public_key_id(&r.seed_key.0));
        ensure(!self.invites.contains_key(&id), "invitation exists already")?;
        ensure(
            r.not_after_ms > time_ms && r.not_after_ms <= time_ms.saturating_add(INVITE_MS_MAX),
            "an invitation lives at most 7 days",
        )
    }

    fn check_join(&self, time_ms: u64, entry: &Entry, r: &record::Join) -> Result<(), Refusal> {
        check_name(&r.name)?;
        check_name(&r.vault)?;
        ensure(public_key_id(&r.identity.0) == entry.author.0, "author is not the id of the identity key")?;
        if !entry.is_signed_by(&r.identity.0) {
            return Err(Refusal::Signature("the identity key"));
        }
        let invite = self.invites.get(&r.invite);
        let invite =
            invite.ok_or(Refusal::Authority("no such invitation; ask an administrator for a new join token"))?;
        ensure(invite.used_by.is_none(), "the join token was used already; ask an administrator for a new one")?;
        ensure(
            invite.record.not_after_ms >= time_ms,
            "the join token has expired; ask an administrator for a new one",
        )?;
        if !entry.is_signed_by(&invite.record.seed_key.0) {
            return Err(Refusal::Signature("the invitation's seed"));
        }
        let id = DeviceId::from(entry.author);
        ensure(!self.devices.contains_key(&id), "device has joined already")?;
        let taken = self.device_by_name(&r.name).is_some_and(|(_, d)| !d.is_banned());
        ensure(!taken, "another device has this name; a banned device's name is free")
    }

    fn check_role(&self, r: &record::Role) -> Result<(), Refusal> {
        let device = self.devices.get(&r.device);
        let may_have = device.is_some_and(|d| d.is_member() || (d.is_banned() && r.roles.is_empty()));
        ensure(may_have, "roles are for approved members; from a banned device they can only be taken")?;
        ensure(r.roles.is_sorted_by(|a, b| a < b), "roles are listed ascending, each once")?;
        let last = self.witnesses() == [r.device];
        ensure(!last || r.roles.contains(&DeviceRole::Witness), "the last witness stays: appoint another one first")
    }

    fn check_delegate(&self, time_ms: u64, entry: &Entry, r: &record::Delegate) -> Result<(), Refusal> {
        let device = self.devices.get(&DeviceId::from(entry.author));
        let device = device.ok_or(Refusal::Authority("the author is not a device"))?;
        if device.is_banned() {
            return Err(Refusal::Authority("the author is banned"));
        }
        if !entry.is_signed_by(&device.identity) {
            return Err(Refusal::Signature("the identity key"));
        }
        // Proof that the device has the key: else it could take another's name on connections.
        if !entry.is_signed_by(&r.session_key.0) {
            return Err(Refusal::Signature("the session key itself"));
        }
        let session_id = public_key_id(&r.session_key.0);
        let owner = self.session_owners.get(&session_id).copied();
        let foreign = owner.is_some_and(|o| AuthorId::from(o) != entry.author)
            || self.devices.contains_key(&DeviceId(session_id));
        ensure(!foreign, "the session key is another key already")?;
        check_addresses(&r.addresses)?;
        ensure(r.session_key.0.alg() == mayfly_crypto::sign::Alg::Ed25519, "a session key is Ed25519")?;
        ensure(
            device.session().is_none_or(|s| s.start_counter < r.start_counter),
            "start counter does not grow; a copy of the device may run",
        )?;
        ensure(r.vault_generation >= device.vault_generation, "the vault's generation went back")?;
        check_evidence(r.quote.as_ref().map(|q| q.statement.as_slice()))?;
        ensure(
            r.not_after_ms > time_ms && r.not_after_ms <= time_ms.saturating_add(SESSION_MS_MAX),
            "a session lives at most 8 hours",
        )?;
        ensure(self.is_recent(&entry.head), "a delegation is made on a recent head")?;
        let fresh = r.quote.as_ref().is_none_or(|q| q.head.size <= entry.head.size && self.is_recent(&q.head));
        ensure(fresh, "a quote is made on a recent head")
    }

    /// Whether this is a head of this ledger on which a delegation may be made still.
    fn is_recent(&self, head: &Head) -> bool {
        self.recent_head(head.size)
            .is_some_and(|(known, at)| known == *head && at.saturating_add(DELEGATE_HEAD_AGE_MS_MAX) >= self.time_ms)
    }

    fn check_token(&self, time_ms: u64, entry: &Entry, r: &record::Token) -> Result<(), Refusal> {
        let dev = self.policy().is_some_and(|p| p.dev);
        if self.need_all_administrators(entry).is_err() {
            let device = self.need_session(time_ms, entry);
            if !dev || device.is_err() {
                return Err(Refusal::Authority("tokens are made by administrators"));
            }
        }
        check_name_length(&r.label, TOKEN_LABEL_BYTES_MAX)?;
        check_rules(&r.allow)?;
        ensure(
            r.devices.len() <= record::LIST_MAX && r.creators.len() <= record::LIST_MAX,
            "too many devices in a list",
        )?;
        ensure(self.token_by_label(&r.label).is_none_or(|(id, _)| *id == r.id), "another token has this label")
    }

    /// All that a holder checks before it accepts its shard, and `apply` again before the key exists. Text of the broken rule.
    pub fn check_deal(&self, r: &record::Key, dealer: &DeviceId) -> Result<(), String> {
        deal::check_shape(&self.network, r)?;
        let fail = |condition: bool, text: &str| if condition { Ok(()) } else { Err(text.to_owned()) };
        fail(!self.keys.contains_key(&r.id), "key exists already")?;
        fail(self.creates_in(&r.token, dealer), "the dealer may not make keys in this token")?;
        for shard in &r.shards {
            let holder = self.devices.get(&shard.device);
            fail(
                holder.is_some_and(|d| d.has_role(record::DeviceRole::Holder)),
                "a shard is for a device that is no holder",
            )?;
        }
        fail(r.assemblers.iter().all(|d| self.member(d).is_ok()), "an assembler is not an approved device")?;
        check_attributes(&r.attributes).map_err(|e| e.to_string())?;
        if let Some(public) = &r.public_attributes {
            check_attributes(public).map_err(|e| e.to_string())?;
        }
        fail(r.policy.vault_opening.is_good(), "a vault's window is 1 to 86400 seconds")?;
        check_rules(&r.policy.allow).map_err(|e| e.to_string())
    }

    fn check_acceptances(&self, time_ms: u64, r: &record::Key) -> Result<(), Refusal> {
        ensure(time_ms <= r.deadline_ms, "the deadline for this key's acceptances has passed")?;
        ensure(r.deadline_ms <= time_ms.saturating_add(DEADLINE_MS_MAX), "a deadline is at most 10 minutes ahead")?;
        let n = r.shards.len();
        let needed = n.min(usize::from(r.t) + 1);
        let mut accepted: Vec<&DeviceId> = Vec::new();
        for acceptance in &r.acceptances {
            let shard = r.shards.iter().find(|s| s.device == acceptance.device);
            let Some(shard) = shard else { return rule("an acceptance is by a device without a shard") };
            ensure(!accepted.contains(&&acceptance.device), "a device accepted twice")?;
            let message = deal::acceptance_message(&self.network, r, shard);
            let session = self.devices.get(&acceptance.device).and_then(Device::session);
            if session.is_none_or(|s| s.key.verify(&message, &acceptance.signature).is_err()) {
                return Err(Refusal::Signature("each accepting holder's session key"));
            }
            accepted.push(&acceptance.device);
        }
        ensure(accepted.len() >= needed, "too few holders accepted their shards")
    }

    fn check_grant(&self, time_ms: u64, entry: &Entry, r: &record::Grant) -> Result<(), Refusal> {
        let holder = self.need_session(time_ms, entry)?;
        ensure(!r.items.is_empty() && r.items.len() <= record::LIST_MAX, "1 to 256 grants in a record")?;
        ensure(r.items.is_sorted_by(|a, b| a.number < b.number), "grants are listed ascending")?;
        let last = self.grants.get(&holder).copied().unwrap_or(0);
        ensure(r.items.first().is_some_and(|g| g.number > last), "grant was posted already")
    }

    fn target_token(&self, target: TargetKind, id: &Hash) -> Result<TokenId, Refusal> {
        let found = match target {
            TargetKind::Key => self.keys.get(&KeyId(id.0)).filter(|k| !k.deleted).map(|k| k.record.token),
            TargetKind::PublicKey => {
                self.keys.get(&KeyId(id.0)).filter(|k| k.public_attributes.is_some()).map(|k| k.record.token)
            }
            TargetKind::Object => self.objects.get(&ObjectId(id.0)).map(|o| o.token),
        };
        found.ok_or_else(|| Refusal::Rule("no such key or object".into()))
    }

    // --- what it changes ----------------------------------------------------------------------------------------------------

    /// Carries out a record that has been judged. Never fails.
    fn change(&mut self, time_ms: u64, entry: &Entry, index: u64, record: &Record) {
        match record {
            Record::Genesis(r) => self.genesis = Some(Arc::new(r.clone())),
            Record::Invite(r) => {
                let id = crate::InviteId(public_key_id(&r.seed_key.0));
                self.invites.insert(id, Invite { record: r.clone(), used_by: None });
            }
            Record::Join(r) => self.join(entry, r),
            Record::Approve(r) => {
                self.with_device(&r.device, |d| d.membership = Membership::Member);
                self.settle_chip(&r.device);
            }
            Record::Role(r) => self.with_device(&r.device, |d| d.roles = r.roles.clone()),
            Record::Delegate(r) => self.delegate(DeviceId::from(entry.author), r),
            Record::Token(r) => self.token(index, r),
            Record::Pin(r) => self.touch(&r.token, index, |t| match r.user {
                record::PinUser::SecurityOfficer => t.so_pin = Some(r.verifier.clone()),
                record::PinUser::User => t.user_pin = Some(r.verifier.clone()),
            }),
            Record::Key(r) => {
                let key = KeyState {
                    record: Arc::new(r.clone()),
                    position: index,
                    dealer: DeviceId::from(entry.author),
                    attributes: Arc::new(r.attributes.clone()),
                    public_attributes: r.public_attributes.clone().map(Arc::new),
                    deleted: false,
                };
                self.keys.insert(r.id, key);
                self.touch(&r.token, index, |_| ());
            }
            Record::Attributes(r) => self.set_attributes(index, r),
            Record::Delete(r) => self.delete(index, r),
            Record::Object(r) => {
                let object =
                    ObjectState { token: r.token, position: index, attributes: Arc::new(r.attributes.clone()) };
                self.objects.insert(r.id, object);
                self.touch(&r.token, index, |_| ());
            }
            Record::Grant(r) => {
                let highest = r.items.last().map_or(0, |g| g.number);
                self.grants.insert(DeviceId::from(entry.author), highest);
            }
            Record::Ban(r) => {
                self.forget_sessions(&r.device, 0);
                self.with_device(&r.device, |d| d.membership = Membership::Banned);
            }
            Record::Unban(r) => {
                self.unbans.insert(r.device, index);
                self.with_device(&r.device, |d| {
                    d.membership = Membership::Member;
                    d.roles.clear(); // roles are granted anew
                });
            }
            Record::Attest(r) => self.attest(time_ms, entry, r),
            Record::VaultGeneration(r) => self.state_generation(time_ms, entry, r),
            Record::PcrApproval(r) => self.approve_registers(r),
            Record::Alert(r) => self.alert(time_ms, entry, r),
        }
    }

    fn with_device(&mut self, id: &DeviceId, change: impl FnOnce(&mut Device)) {
        if let Some(device) = self.devices.get_mut(id) {
            change(device);
        }
    }

    fn delegate(&mut self, id: DeviceId, r: &record::Delegate) {
        self.forget_sessions(&id, RECENT_SESSIONS - 1);
        self.forget_alerts(&id);
        self.session_owners.insert(public_key_id(&r.session_key.0), id);
        self.with_device(&id, |d| {
            d.addresses = r.addresses.clone();
            d.vault_generation = r.vault_generation;
            d.delegation = Some(Arc::new(r.clone()));
            let (key, start_counter) = (r.session_key.0, r.start_counter);
            d.sessions.insert(0, Session { key, start_counter, not_after_ms: r.not_after_ms });
        });
    }

    /// Keeps only the newest `keep` sessions of a device.
    fn forget_sessions(&mut self, id: &DeviceId, keep: usize) {
        let Some(device) = self.devices.get_mut(id) else { return };
        let forgotten = device.sessions.split_off(keep.min(device.sessions.len()));
        for session in forgotten {
            // A session that was prolonged stands there more than once.
            if !device.sessions.iter().any(|kept| kept.key == session.key) {
                self.session_owners.remove(&public_key_id(&session.key));
            }
        }
    }

    fn join(&mut self, entry: &Entry, r: &record::Join) {
        let id = DeviceId::from(entry.author);
        if let Some(invite) = self.invites.get_mut(&r.invite) {
            invite.used_by = Some(id);
        }
        let unapproved = self.policy().is_some_and(|p| p.members_join_unapproved && p.unattested);
        let device = Device {
            name: r.name.clone(),
            identity: r.identity.0,
            vault: r.vault.clone(),
            software_only: r.software_only,
            membership: if unapproved { Membership::Member } else { Membership::Pending },
            roles: Vec::new(),
            addresses: Vec::new(),
            vault_generation: 0,
            attestations: OrdMap::new(),
            chip: None,
            generation_stated: None,
            pcr_approvals: Vec::new(),
            delegation: None,
            sessions: Vec::new(),
        };
        self.devices.insert(id, device);
    }

    fn token(&mut self, index: u64, r: &record::Token) {
        let record = Arc::new(r.clone());
        match self.tokens.get_mut(&r.id) {
            Some(token) => (token.record, token.version) = (record, index + 1),
            None => {
                let token = Token { record, position: index, version: index + 1, so_pin: None, user_pin: None };
                self.tokens.insert(r.id, token);
            }
        }
    }

    fn touch(&mut self, token: &TokenId, index: u64, change: impl FnOnce(&mut Token)) {
        if let Some(token) = self.tokens.get_mut(token) {
            token.version = index + 1;
            change(token);
        }
    }

    fn set_attributes(&mut self, index: u64, r: &record::Attributes) {
        let token = match r.target {
            TargetKind::Key => self.keys.get_mut(&KeyId(r.id.0)).map(|k| {
                merge(&mut k.attributes, &r.set);
                k.record.token
            }),
            TargetKind::PublicKey => self.keys.get_mut(&KeyId(r.id.0)).map(|k| {
                if let Some(attributes) = &mut k.public_attributes {
                    merge(attributes, &r.set);
                }
                k.record.token
            }),
            TargetKind::Object => self.objects.get_mut(&ObjectId(r.id.0)).map(|o| {
                merge(&mut o.attributes, &r.set);
                o.token
            }),
        };
        if let Some(token) = token {
            self.touch(&token, index, |_| ());
        }
    }

    fn delete(&mut self, index: u64, r: &record::Delete) {
        let token = match r.target {
            TargetKind::Key => self.keys.get_mut(&KeyId(r.id.0)).map(|k| {
                k.deleted = true;
                k.record.token
            }),
            TargetKind::PublicKey => self.keys.get_mut(&KeyId(r.id.0)).map(|k| {
                k.public_attributes = None;
                k.record.token
            }),
            TargetKind::Object => self.objects.remove(&ObjectId(r.id.0)).map(|o| o.token),
        };
        if let Some(token) = token {
            self.touch(&token, index, |_| ());
        }
    }
}

/// New values replace old ones of the same type; the rest stays, sorted by type.
fn merge(attributes: &mut Arc<Vec<Attribute>>, set: &[Attribute]) {
    let mut merged: Vec<Attribute> =
        attributes.iter().filter(|a| !set.iter().any(|s| s.kind == a.kind)).chain(set).cloned().collect();
    merged.sort_by_key(|a| a.kind);
    *attributes = Arc::new(merged);
}

fn count_administrators(genesis: &record::Genesis, entry: &Entry) -> Result<usize, Refusal> {
    let is_author = |key: &PublicKey| AuthorId(public_key_id(key)) == entry.author;
    if !genesis.administrators.iter().any(|a| is_author(&a.key.0)) {
        return Err(Refusal::Authority("the author is not an administrator"));
    }
    let signed: Vec<_> = genesis.administrators.iter().filter(|a| entry.is_signed_by(&a.key.0)).collect();
    if signed.iter().any(|a| is_author(&a.key.0)) { Ok(signed.len()) } else { Err(Refusal::Signature("the author")) }
}

fn check_genesis(entry: &Entry, r: &record::Genesis) -> Result<(), Refusal> {
    check_name(&r.name)?;
    let n = r.administrators.len();
    ensure((1..=crate::entry::SIGNATURES_MAX).contains(&n), "1 to 16 administrators")?;
    ensure((1..=n).contains(&usize::from(r.administrators_needed)), "between one and all administrators are needed")?;
    let mut ids: Vec<_> = r.administrators.iter().map(|a| public_key_id(&a.key.0)).collect();
    ids.sort_unstable();
    ids.dedup();
    ensure(ids.len() == n, "an administrator is listed twice")?;
    ensure(r.gateways.len() <= 16, "at most 16 gateways")?;
    for gateway in &r.gateways {
        check_addresses(&gateway.addresses)?;
    }
    ensure((1000..=3_600_000).contains(&r.policy.head_age_ms_max), "heads may be 1 s to 1 h old")?;
    ensure((100..=600_000).contains(&r.policy.skew_ms_max), "clocks may differ by 0.1 s to 10 min")?;
    if count_administrators(r, entry)? < usize::from(r.administrators_needed) {
        return Err(Refusal::Signature("enough administrators (m of n)"));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let printable = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ensure(
        !name.is_empty() && name.len() <= record::NAME_BYTES_MAX && name.chars().all(printable),
        "a name is 1 to 64 letters, digits, '-', '_' or '.'",
    )
}

fn check_name_length(name: &str, max: usize) -> Result<(), Refusal> {
    ensure(name.len() <= max && !name.chars().any(char::is_control), "a text is too long or has control characters")
}

fn check_addresses(addresses: &[String]) -> Result<(), Refusal> {
    ensure(addresses.len() <= record::ADDRESSES_MAX, "too many addresses")?;
    addresses.iter().try_for_each(|a| check_name_length(a, record::ADDRESS_BYTES_MAX))
}

fn check_attributes(attributes: &[Attribute]) -> Result<(), Refusal> {
    ensure(attributes.len() <= record::ATTRIBUTES_MAX, "too many attributes")?;
    ensure(attributes.is_sorted_by(|a, b| a.kind < b.kind), "attributes are listed ascending by type, each once")
}

fn check_rules(allow: &[String]) -> Result<(), Refusal> {
    ensure(allow.len() <= record::LIST_MAX, "too many users in a list")?;
    for text in allow {
        check_name_length(text, 2 * record::NAME_BYTES_MAX + 8)?;
        ensure(text.starts_with("user=") || text.starts_with("group="), "a user is given as user=NAME or group=NAME")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
