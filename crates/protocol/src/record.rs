//! The records of version 1. Format page: `docs/formats/records.md`.
//!
//! A record is never changed once it has been written to a ledger that somebody keeps. A new field gets a new key: critical ones need a
//! new kind and an ACTIVATE; non-critical ones are numbered from [`crate::cbor::NON_CRITICAL_FROM`].

use crate::cbor::{self, CborError};
use crate::head::Head;
use crate::ids::{DeviceId, Hash, InviteId, KeyId, ObjectId, ShardId, TokenId};
use mayfly_crypto::sign::{Alg, PublicKey};
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use std::ops::RangeInclusive;

/// Newest version of records that this crate writes.
pub const VERSION: u8 = 1;
/// Longest name of a network, device, token or user, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most addresses of a device or gateway.
pub const ADDRESSES_MAX: usize = 8;
/// Longest address, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 256;
/// Most attributes of one object.
pub const ATTRIBUTES_MAX: usize = 128;
/// Most rules, assemblers or devices in one list.
pub const LIST_MAX: usize = 256;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal),* $(,)?) => {
        /// What a record is about; the number is part of the signed bytes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Kind { $($(#[$doc])* $name = $number),* }

        /// A decoded record.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is documented at its type")]
        pub enum Record { $($name($name)),* }

        impl Kind {
            /// All kinds, by number.
            pub const ALL: &'static [Kind] = &[$(Kind::$name),*];

            /// The kind with this number.
            pub fn from_number(number: u16) -> Option<Kind> {
                match number { $($number => Some(Kind::$name),)* _ => None }
            }
        }

        impl Record {
            /// Decodes the payload of an entry of this kind.
            pub fn decode(kind: Kind, payload: &[u8]) -> Result<Record, CborError> {
                match kind { $(Kind::$name => cbor::from_record(payload).map(Record::$name)),* }
            }

            /// The record's kind.
            pub fn kind(&self) -> Kind {
                match self { $(Record::$name(_) => Kind::$name),* }
            }

            /// The deterministic encoding of the record.
            pub fn encode(&self) -> Vec<u8> {
                match self { $(Record::$name(r) => cbor::to_vec(r)),* }
            }
        }

        $(impl From<$name> for Record { fn from(r: $name) -> Record { Record::$name(r) } })*
    };
}

kinds! {
    /// The first record of a network.
    Genesis = 0,
    /// A one-time invitation for one device.
    Invite = 1,
    /// A device asks to become a member.
    Join = 2,
    /// An administrator accepts a device.
    Approve = 3,
    /// An administrator gives or takes roles.
    Role = 4,
    /// A device's identity key names its session key.
    Delegate = 5,
    /// A token is made or its policy changed.
    Token = 6,
    /// A PIN of a token is set.
    Pin = 7,
    /// A key is made: who holds which shard, and what the key may do.
    Key = 8,
    /// Attributes of a key or object change.
    Attributes = 9,
    /// A key or object is deleted.
    Delete = 10,
    /// An object without secrets is made.
    Object = 11,
    /// A holder says which uses it released shards for.
    Grant = 12,
    /// A device loses every right.
    Ban = 13,
    /// A banned device is trusted again.
    Unban = 14,
    /// Somebody who challenged a device's chip says what it proved.
    Attest = 15,
    /// A device's vault has moved on to a generation: nothing older opens.
    VaultGeneration = 16,
    /// An approver allows the registers of a device's next start.
    PcrApproval = 17,
    /// A device says that something is wrong with a device.
    Alert = 18,
}

/// A public key as it stands in records: algorithm byte, then 32 (Ed25519) or 33 bytes (P-256, compressed SEC 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verifier(pub PublicKey);

impl<C> Encode<C> for Verifier {
    fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        e.array(2)?.u8(self.0.alg() as u8)?.bytes(self.0.bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Verifier {
    fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let at = d.position();
        if d.array()? != Some(2) {
            return Err(decode::Error::message("a public key is [algorithm, bytes]").at(at));
        }
        let (alg, bytes) = (d.u8()?, d.bytes()?);
        let key = Alg::try_from(alg).and_then(|alg| PublicKey::new(alg, bytes));
        match key {
            Ok(key) if key.check().is_ok() => Ok(Verifier(key)),
            _ => Err(decode::Error::message("public key is malformed or weak").at(at)),
        }
    }
}

/// A PKCS#11 attribute: type and value bytes as an application gave them.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Attribute {
    /// `CKA_…` number.
    #[n(0)]
    pub kind: u64,
    /// Value, in the byte order of the specification for its type; `CK_ULONG` as 8 bytes little-endian, `CK_BBOOL` as one byte.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub value: Vec<u8>,
}

/// An administrator as named by genesis.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Administrator {
    /// For people.
    #[n(0)]
    pub name: String,
    /// ECDSA P-256 or Ed25519.
    #[n(1)]
    pub key: Verifier,
}

/// A gateway of the ledger.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Gateway {
    /// Ed25519 key that authenticates its TLS and signs checkpoints.
    #[n(0)]
    pub key: Verifier,
    /// `host:port` of its `wss` listener.
    #[n(1)]
    pub addresses: Vec<String>,
}

/// Rules of a network that records are judged by.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct NetworkPolicy {
    /// Oldest witness statement, in milliseconds, under which anything is released.
    #[n(0)]
    pub head_age_ms_max: u64,
    /// Largest difference between a device's clock and ledger time, in milliseconds.
    #[n(1)]
    pub skew_ms_max: u64,
    /// An invited device becomes a plain member without approval. Roles are granted by administrators all the same.
    #[n(2)]
    pub members_join_unapproved: bool,
    /// A network for development and tests: tokens may be made and reset by any device, nothing waits for grace periods.
    #[n(3)]
    pub dev: bool,
    /// Devices may be approved whose chips nobody has challenged. Without, a device needs statements ([`Attest`]) of a quorum of
    /// witnesses, or of as many administrators as must sign an APPROVE.
    #[n(4)]
    pub unattested: bool,
}

/// The first record: everything that the rest is judged by.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Genesis {
    /// Name of the network, for people.
    #[n(0)]
    pub name: String,
    /// When it was made, milliseconds.
    #[n(1)]
    pub created_ms: u64,
    /// Administrators, at least one.
    #[n(2)]
    pub administrators: Vec<Administrator>,
    /// How many of them must sign what needs administrators (m of n).
    #[n(3)]
    pub administrators_needed: u8,
    /// Gateways that may sign checkpoints.
    #[n(4)]
    pub gateways: Vec<Gateway>,
    /// Rules.
    #[n(5)]
    pub policy: NetworkPolicy,
    /// 32 random bytes: two networks with equal settings are different networks.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub nonce: [u8; 32],
}

/// An invitation for one device. Its id is the id of `seed_key`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Invite {
    /// Ed25519 public half of the seed in the join token.
    #[n(0)]
    pub seed_key: Verifier,
    /// Last moment of use, ledger time in milliseconds.
    #[n(1)]
    pub not_after_ms: u64,
}

/// A device asks to become a member. Signed by the identity key and by the invitation's seed.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Join {
    /// Unique among members.
    #[n(0)]
    pub name: String,
    /// Identity key; its id is the device's id and this entry's author.
    #[n(1)]
    pub identity: Verifier,
    /// The invitation.
    #[n(2)]
    pub invite: InviteId,
    /// Kind of its vault: `file`, `tpm`, `pkcs11`.
    #[n(3)]
    pub vault: String,
    /// The vault is software on the same disk: for development.
    #[n(4)]
    pub software_only: bool,
}

/// An administrator accepts a device.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Approve {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
}

/// Something that a device may be beyond a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum DeviceRole {
    /// May be given shards.
    #[n(1)]
    Holder,
    /// Is given shards when another holder is lost.
    #[n(2)]
    Spare,
    /// Cosigns heads and answers freshness rounds.
    #[n(3)]
    Witness,
    /// Approves PCR values of the next boot.
    #[n(4)]
    PcrApprover,
}

/// Roles of one device are set to exactly this list.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Role {
    /// The device, a member.
    #[n(0)]
    pub device: DeviceId,
    /// Its roles, ascending, each once.
    #[n(1)]
    pub roles: Vec<DeviceRole>,
}

/// A device names the key of its present run. Signed by the identity key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Delegate {
    /// Ed25519 session key.
    #[n(0)]
    pub session_key: Verifier,
    /// Greater than in every earlier delegation of this device.
    #[n(1)]
    pub start_counter: u64,
    /// Generation of the vault as the device knows it.
    #[n(2)]
    pub vault_generation: u64,
    /// End of validity, at most [`crate::apply::SESSION_MS_MAX`] after it is sequenced.
    #[n(3)]
    pub not_after_ms: u64,
    /// `host:port` where peers reach the device.
    #[n(4)]
    pub addresses: Vec<String>,
    /// The chip's quote of its registers, where there is a chip.
    #[n(5)]
    pub quote: Option<Quoted>,
}

/// A quote and what makes it one of today: nobody could ask for it before that head was known.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Quoted {
    /// A recent head of this ledger.
    #[n(0)]
    pub head: Head,
    /// The chip's statement for [`crate::attested::quote_context`]: message `MTS1` of the attestation page.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub statement: Vec<u8>,
}

/// What a chip proved of itself: enough to judge every later statement of it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Chip {
    /// The key that signs statements, P-256: x and y.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub attestation: [u8; 64],
    /// Name (TPM 2.0 Library, part 1, section 16) of the storage root key.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub storage_root: [u8; 34],
    /// NV index of the vault's counter.
    #[n(2)]
    pub counter: u32,
    /// What the counter held at generation 0.
    #[n(3)]
    pub counter_base: u64,
    /// SHA-256 of the endorsement key's certificate: it names the machine for life, so no more of it is told.
    #[n(4)]
    pub certificate: Hash,
}

/// Registers as a quote states them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(array)]
pub struct Registers {
    /// Bit i: register i, SHA-256 bank; at least one of 0 to 23.
    #[n(0)]
    pub selected: u32,
    /// SHA-256 of their values in ascending order.
    #[n(1)]
    pub digest: Hash,
}

/// Somebody made a challenge that only one genuine chip could open, and saw the answer: the device's identity key is in that chip. By a
/// witness (session key) or an administrator. The same author may say it anew, of the same chip.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Attest {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// Its chip.
    #[n(1)]
    pub chip: Chip,
    /// The chip's maker and model as certified, for people.
    #[n(2)]
    pub maker: String,
    /// A software TPM.
    #[n(3)]
    pub software: bool,
    /// Where its counter stood.
    #[n(4)]
    pub generation: u64,
    /// Its registers: what later quotes are compared with.
    #[n(5)]
    pub registers: Registers,
    /// The challenge's secret, told now that it is used up: with it anybody can check `proof`.
    #[cbor(n(6), with = "minicbor::bytes")]
    pub secret: [u8; 32],
    /// The chip's statements (message `MTP1` of the attestation page).
    #[cbor(n(7), with = "minicbor::bytes")]
    pub proof: Vec<u8>,
}

/// The vault's committed generation, by the identity key. After it the device is refused with any older one.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct VaultGeneration {
    /// Greater than all before.
    #[n(0)]
    pub generation: u64,
    /// The chip's certified counter for [`crate::attested::counter_context`] (message `MTS1`), where there is a chip.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub proof: Option<Vec<u8>>,
}

/// A device with role pcr-approver allows the registers under which another device's vault opens.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct PcrApproval {
    /// Whose vault.
    #[n(0)]
    pub device: DeviceId,
    /// Approval of the page of the vault `tpm`, 107 bytes. The chip itself checks it.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub approval: Vec<u8>,
}

/// What an [`Alert`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(index_only)]
pub enum AlertKind {
    /// Its vault is behind the generation that the ledger knows: it was put back from a copy.
    #[n(0)]
    VaultBehind,
    /// Its vault is ahead of what it ever committed: somebody else moved the counter, and what was sealed is lost.
    #[n(1)]
    VaultAhead,
    /// A statement that its chip must make is missing or wrong.
    #[n(2)]
    Evidence,
    /// Its registers are others than were attested or approved.
    #[n(3)]
    Registers,
}

/// A device says that something is wrong with a device. By the session key; about itself also by the identity key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Alert {
    /// With which device.
    #[n(0)]
    pub about: DeviceId,
    /// What.
    #[n(1)]
    pub what: AlertKind,
    /// For people, at most 256 bytes.
    #[n(2)]
    pub text: String,
}

/// Verifier of a PIN: Argon2id (RFC 9106) of the PIN.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct PinVerifier {
    /// 16 random bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub salt: [u8; 16],
    /// Memory in KiB.
    #[n(1)]
    pub memory_kib: u32,
    /// Passes.
    #[n(2)]
    pub passes: u32,
    /// The tag.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub tag: [u8; 32],
}

impl PinVerifier {
    /// The verifier of no PIN: nothing matches it.
    pub const NONE: Self = Self { salt: [0; 16], memory_kib: 0, passes: 0, tag: [0; 32] };
    /// Memory that checking a PIN takes, KiB. Below, guessing is cheap (OWASP's first recommendation for Argon2id); above, whoever may set
    /// PINs would keep other logins waiting.
    pub const MEMORY_KIB: RangeInclusive<u32> = 19 * 1024..=256 * 1024;
    /// Passes over it; as for the memory.
    pub const PASSES: RangeInclusive<u32> = 2..=16;

    /// Whether checking a PIN costs what it may.
    pub fn has_good_cost(&self) -> bool {
        Self::MEMORY_KIB.contains(&self.memory_kib) && Self::PASSES.contains(&self.passes)
    }
}

/// A token is made, or its policy changed (same id).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Token {
    /// Never changes.
    #[n(0)]
    pub id: TokenId,
    /// `CKA_LABEL` of the token, at most 32 bytes; unique in the network.
    #[n(1)]
    pub label: String,
    /// Devices on which it is seen; empty: all members.
    #[n(2)]
    pub devices: Vec<DeviceId>,
    /// Devices that may make and delete its keys and objects and set its PINs; empty: those on which it is seen.
    #[n(3)]
    pub creators: Vec<DeviceId>,
    /// Users (`user=NAME`, `group=NAME`) who may use the token at all; empty: all.
    #[n(4)]
    pub allow: Vec<String>,
}

/// Whose PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum PinUser {
    /// Security officer (CKU_SO).
    #[n(0)]
    SecurityOfficer,
    /// Normal user (CKU_USER).
    #[n(1)]
    User,
}

/// A PIN of a token is set by an agent that saw the right to do so (the old PIN, or the security officer's).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Pin {
    /// The token.
    #[n(0)]
    pub token: TokenId,
    /// Whose.
    #[n(1)]
    pub user: PinUser,
    /// How to check it.
    #[n(2)]
    pub verifier: PinVerifier,
}

/// How a key came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Origin {
    /// Made and dealt by one device, which held it whole for that moment.
    #[n(0)]
    Dealt,
    /// Brought in from outside.
    #[n(1)]
    Imported,
}

/// One device's share of a key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ShardRecord {
    /// New in each epoch.
    #[n(0)]
    pub id: ShardId,
    /// Who holds it.
    #[n(1)]
    pub device: DeviceId,
    /// Evaluation point, not zero, never used again for another device of this key.
    #[n(2)]
    pub index: u32,
    /// Released from this moment on, ledger time in milliseconds.
    #[n(3)]
    pub valid_from_ms: u64,
    /// Not released after this moment; `u64::MAX`: no end.
    #[n(4)]
    pub valid_until_ms: u64,
}

/// A holder's signed word that it has verified and sealed its pending shard.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Acceptance {
    /// The holder.
    #[n(0)]
    pub device: DeviceId,
    /// By its session key over [`crate::deal::acceptance_message`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

/// How long an assembled key lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Residency {
    /// 0: for the operations that were waiting when it was put together; otherwise a window in seconds.
    #[n(0)]
    pub window_seconds: u32,
}

/// When a holder's vault is opened to release shards of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub enum VaultOpening {
    /// Once, at the agent's start.
    #[n(0)]
    Boot,
    /// When there is a need; it stays open for so many seconds after it, 1 to [`VaultOpening::WINDOW_SECONDS_MAX`].
    #[n(1)]
    Window(#[n(0)] u32),
    /// For each release.
    #[n(2)]
    PerRelease,
}

impl VaultOpening {
    /// Longest window: one day.
    pub const WINDOW_SECONDS_MAX: u32 = 86_400;

    /// Whether it is within bounds.
    pub fn is_good(self) -> bool {
        match self {
            VaultOpening::Window(seconds) => (1..=Self::WINDOW_SECONDS_MAX).contains(&seconds),
            VaultOpening::Boot | VaultOpening::PerRelease => true,
        }
    }
}

/// What a key may be used for, by whom, and how carefully.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct KeyPolicy {
    /// Users (`user=NAME`, `group=NAME`, each optionally with `@DEVICE-NAME`) whose applications may use it; empty: nobody but root.
    #[n(0)]
    pub allow: Vec<String>,
    /// Bits of [`crate::rules::Use`].
    #[n(1)]
    pub uses: u32,
    /// Life of the assembled key.
    #[n(2)]
    pub residency: Residency,
    /// Opening of holders' vaults.
    #[n(3)]
    pub vault_opening: VaultOpening,
    /// Bits of allowed IV modes: 1 deterministic, 2 hedged, 4 random.
    #[n(4)]
    pub iv_modes: u8,
    /// Uses per second that the key was made for; 0: not declared. A holder whose vault cannot serve so many openings does not take a shard.
    #[n(5)]
    pub rate: u32,
}

/// When a key's shards are refreshed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Schedule {
    /// Refresh every so many seconds; 0: never by time.
    #[n(0)]
    pub refresh_seconds: u64,
    /// Refresh after so many granted uses; 0: never by use.
    #[n(1)]
    pub refresh_uses: u64,
}

/// A key: one record holds all that anybody needs to find, check, combine and judge its shards.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Key {
    /// `enc::hash("mayfly/v1/key", network, first commitment, public nonce)`; see [`crate::deal::key_id`].
    #[n(0)]
    pub id: KeyId,
    /// The token that it belongs to.
    #[n(1)]
    pub token: TokenId,
    /// `aes:256`, `hmac:256`, `generic:N`, `ec:p256`, …: [`crate::rules::KeyType`].
    #[n(2)]
    pub key_type: String,
    /// Shares needed.
    #[n(3)]
    pub t: u8,
    /// Counts new key material; 1 for a new key.
    #[n(4)]
    pub generation: u64,
    /// Counts re-sharing; 1 for a new key.
    #[n(5)]
    pub epoch: u64,
    /// Devices that may put the key together.
    #[n(6)]
    pub assemblers: Vec<DeviceId>,
    /// Attributes of the secret or private key object.
    #[n(7)]
    pub attributes: Vec<Attribute>,
    /// Attributes of the public key object of a pair.
    #[n(8)]
    pub public_attributes: Option<Vec<Attribute>>,
    /// How it came to be.
    #[n(9)]
    pub origin: Origin,
    /// Pedersen commitments to the coefficients, exactly t, compressed ristretto255.
    #[n(10)]
    pub commitments: Vec<Hash>,
    /// One per holder, n in all.
    #[n(11)]
    pub shards: Vec<ShardRecord>,
    /// Key commitment, checked in constant time at each assembly.
    #[n(12)]
    pub key_commitment: Hash,
    /// Key bytes sealed under the wrap key derived from the root; absent where the key bytes are derived themselves.
    #[cbor(n(13), with = "minicbor::bytes")]
    pub wrapped: Option<Vec<u8>>,
    /// Who may use it for what.
    #[n(14)]
    pub policy: KeyPolicy,
    /// When it is refreshed.
    #[n(15)]
    pub schedule: Schedule,
    /// When it was made, milliseconds, by the dealer's clock.
    #[n(16)]
    pub created_ms: u64,
    /// The record is refused after this moment of ledger time; then holders drop pending shards.
    #[n(17)]
    pub deadline_ms: u64,
    /// Of at least min(t+1, n) holders.
    #[n(18)]
    pub acceptances: Vec<Acceptance>,
}

/// What a record speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
#[cbor(index_only)]
pub enum TargetKind {
    /// A key: its secret or private object.
    #[n(0)]
    Key,
    /// The public object of a key pair.
    #[n(1)]
    PublicKey,
    /// An object without secrets.
    #[n(2)]
    Object,
}

/// Attributes of a key or object change.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Attributes {
    /// What `id` names.
    #[n(0)]
    pub target: TargetKind,
    /// A [`KeyId`] or [`ObjectId`].
    #[n(1)]
    pub id: Hash,
    /// New values; attributes not named stay.
    #[n(2)]
    pub set: Vec<Attribute>,
}

/// A key or object is deleted: hidden at once.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Delete {
    /// What `id` names. Deleting a key does not delete its public object.
    #[n(0)]
    pub target: TargetKind,
    /// A [`KeyId`] or [`ObjectId`].
    #[n(1)]
    pub id: Hash,
}

/// An object without secrets: certificate, public key, data.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Object {
    /// Random.
    #[n(0)]
    pub id: ObjectId,
    /// The token that it belongs to.
    #[n(1)]
    pub token: TokenId,
    /// All attributes, CKA_CLASS among them.
    #[n(2)]
    pub attributes: Vec<Attribute>,
}

/// Uses of one key by one assembler that a holder took part in.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct GrantItem {
    /// Counts this holder's grants; each is posted once.
    #[n(0)]
    pub number: u64,
    /// The key.
    #[n(1)]
    pub key: KeyId,
    /// Who was answered.
    #[n(2)]
    pub assembler: DeviceId,
    /// At most so many releases.
    #[n(3)]
    pub uses_max: u32,
    /// Until then, ledger time in milliseconds.
    #[n(4)]
    pub until_ms: u64,
}

/// A holder's grants, saved before the first release under each.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Grant {
    /// Ascending by number.
    #[n(0)]
    pub items: Vec<GrantItem>,
}

/// A device loses every right, also where this record is seen outside the ledger first.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Ban {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// For people.
    #[n(1)]
    pub reason: String,
}

/// A banned device is trusted again.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(map)]
pub struct Unban {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
}
