//! Messages between a replica and a gateway, version 1. Format page: `docs/formats/ledger-sync.md`.
//!
//! One message is one binary WebSocket frame under the subprotocol [`SUBPROTOCOL`]: a deterministic CBOR array that starts with the
//! message's number. Its length is checked before anything is decoded. Numbers from [`IGNORABLE_FROM`] on may be unknown to a reader,
//! who passes over them; any other unknown number ends the connection.
//!
//! Nothing in a message is believed because of where it came from: entries carry their authors' signatures, heads those of gateway and
//! witnesses. The TLS connection only says *which* gateway may be blamed for what it sent.

use crate::cbor::{self, CborError};
use crate::head::{self, Cosignature, Head};
use crate::ids::{AuthorId, DeviceId, Hash, InviteId, NetworkId, public_key_id};
use crate::record::Verifier;
use crate::state::{Membership, State};
use mayfly_crypto::checkpoint::{Note, NoteError};
use mayfly_crypto::enc;
use mayfly_crypto::sign::PublicKey;
use minicbor::bytes::ByteVec;
use minicbor::{Decode, Encode};

/// WebSocket subprotocol (RFC 6455, section 1.9).
pub const SUBPROTOCOL: &str = "mayfly-ledger.v1";
/// Path of the WebSocket on a gateway.
pub const PATH: &str = "/v1/ledger";
/// Version of these messages.
pub const VERSION: u16 = 1;
/// Most versions that a side may offer.
pub const VERSIONS_MAX: usize = 16;
/// Largest frame from a gateway, in bytes.
pub const GATEWAY_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Largest frame from a client, in bytes: an entry of the largest size, with room.
pub const CLIENT_FRAME_BYTES_MAX: usize = 64 * 1024;
/// Most entries of a bundle.
pub const BUNDLE_ENTRIES_MAX: usize = 256;
/// Most bytes of a bundle's entries together.
pub const BUNDLE_BYTES_MAX: usize = 256 * 1024;
/// Most bytes of a text for people.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Most cosignatures on a head.
pub const COSIGNATURES_MAX: usize = 32;
/// Messages with this number or a higher one are passed over by readers that do not know them.
pub const IGNORABLE_FROM: u64 = 128;
/// The one such message that either side knows: [`FromGateway::AskTime`], [`FromClient::Time`].
const TIME: u64 = IGNORABLE_FROM;
/// Label of the TLS exporter that a hello is bound to (RFC 9266, section 2), with an empty context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";
/// Bytes of that exporter.
pub const EXPORTER_BYTES: usize = 32;
/// Bytes of a gateway's challenge.
pub const CHALLENGE_BYTES: usize = 32;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum FromClient {
    /// The first message, after the gateway's [`FromGateway::Challenge`].
    #[n(0)]
    Hello(#[n(0)] Hello),
    /// Please append this entry. May be repeated: the same record twice is one entry.
    #[n(1)]
    Submit {
        /// Chosen by the client, named in the answer.
        #[n(0)]
        id: u64,
        /// The entry, as it will rest on the ledger.
        #[cbor(n(1), with = "minicbor::bytes")]
        entry: Vec<u8>,
    },
    /// A witness's cosignature of a head that the gateway proposed.
    #[n(2)]
    Cosign {
        /// The head.
        #[n(0)]
        head: Head,
        /// The signature.
        #[n(1)]
        cosignature: Cosignature,
    },
    /// The answer to [`FromGateway::AskTime`]. Not signed: a gateway asks for its own sake, and this connection says who answers.
    #[n(128)]
    Time {
        /// From the question.
        #[n(0)]
        asked: u64,
        /// The client's clock, milliseconds since the Unix epoch.
        #[n(1)]
        time_ms: u64,
    },
}

/// Who a client is and what it has.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Hello {
    /// The version that the client chose from the gateway's offer.
    #[n(0)]
    pub version: u16,
    /// The network.
    #[n(1)]
    pub network: NetworkId,
    /// The resume token: everything up to here is verified and kept. Size 0 for nothing.
    #[n(2)]
    pub tip: Head,
    /// Size of the newest witnessed head that the client knows; 0 for none.
    #[n(3)]
    pub witnessed: u64,
    /// The key that signs this hello: session or identity key of a device, an invitation's seed, an administrator's key.
    #[n(4)]
    pub key: Verifier,
    /// By that key over [`hello_message`].
    #[cbor(n(5), with = "minicbor::bytes")]
    pub signature: Vec<u8>,
}

/// What a gateway says.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(flat)]
pub enum FromGateway {
    /// The first message of a connection.
    #[n(0)]
    Challenge {
        /// Versions that the gateway speaks, ascending.
        #[n(0)]
        versions: Vec<u16>,
        /// Random; signed by the client.
        #[cbor(n(1), with = "minicbor::bytes")]
        nonce: [u8; CHALLENGE_BYTES],
    },
    /// The hello was accepted; bundles follow from the client's resume token on.
    #[n(1)]
    Welcome {
        /// The gateway's head at this moment: a client that has reached it has caught up.
        #[n(0)]
        head: Head,
        /// Index of the first entry that can still be had.
        #[n(1)]
        first: u64,
        /// The gateway's clock, milliseconds.
        #[n(2)]
        time_ms: u64,
    },
    /// The next entries. Stored by backends in exactly this form.
    #[n(2)]
    Bundle(#[n(0)] Bundle),
    /// The gateway signs a head of what it sent before and asks witnesses to cosign it.
    #[n(3)]
    Proposed {
        /// Checkpoint note.
        #[cbor(n(0), with = "minicbor::bytes")]
        note: Vec<u8>,
    },
    /// A quorum of witnesses signed a head of what was sent before.
    #[n(4)]
    Witnessed(#[n(0)] WitnessedHead),
    /// A submitted entry is in the ledger, durably.
    #[n(5)]
    Ack {
        /// From the submission.
        #[n(0)]
        id: u64,
        /// The entry's index.
        #[n(1)]
        index: u64,
    },
    /// A submitted entry breaks a rule, or cannot be stored; it was not appended.
    #[n(6)]
    Reject {
        /// From the submission.
        #[n(0)]
        id: u64,
        /// A stable word ([`crate::Refusal::code`], or one of [`reject`]).
        #[n(1)]
        rule: String,
        /// For people, at most [`TEXT_BYTES_MAX`] bytes.
        #[n(2)]
        text: String,
    },
    /// The entry was not looked at; come again.
    #[n(7)]
    Busy {
        /// From the submission.
        #[n(0)]
        id: u64,
        /// After so many milliseconds.
        #[n(1)]
        retry_ms: u64,
    },
    /// Nothing new: the gateway's head and time, signed twice: as a checkpoint, and with the time (C2SP tlog-cosignature).
    #[n(8)]
    Bookmark {
        /// Checkpoint note with the gateway's signature and the gateway's timestamped cosignature.
        #[cbor(n(0), with = "minicbor::bytes")]
        note: Vec<u8>,
    },
    /// The client's resume token is not of this ledger. The note is for the size of that token, signed by the gateway: if the client
    /// has another root there, two heads exist that do not reconcile, and these bytes prove it.
    #[n(9)]
    Fork {
        /// Checkpoint note, signed by the gateway.
        #[cbor(n(0), with = "minicbor::bytes")]
        note: Vec<u8>,
    },
    /// The last message of a connection.
    #[n(10)]
    Bye {
        /// Why.
        #[n(0)]
        reason: Bye,
        /// For people, at most [`TEXT_BYTES_MAX`] bytes.
        #[n(1)]
        text: String,
        /// Come again after so many milliseconds; 0: as the client likes.
        #[n(2)]
        retry_ms: u64,
    },
    /// What time it is by the client's clock. Asked of witnesses, who answer with [`FromClient::Time`].
    #[n(128)]
    AskTime {
        /// Chosen by the gateway, named in the answer.
        #[n(0)]
        asked: u64,
    },
}

/// Entries in order, sequenced at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Bundle {
    /// Index of the first.
    #[n(0)]
    pub first: u64,
    /// The sequencer's clock, milliseconds: part of each leaf.
    #[n(1)]
    pub time_ms: u64,
    /// At least one.
    #[n(2)]
    pub entries: Vec<ByteVec>,
}

/// A head with the gateway's and enough witnesses' signatures.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct WitnessedHead {
    /// Checkpoint note, signed by the gateway.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub note: Vec<u8>,
    /// At most [`COSIGNATURES_MAX`].
    #[n(1)]
    pub cosignatures: Vec<Cosignature>,
}

/// What a replica keeps when two signed heads do not reconcile.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct ForkProof {
    /// The network.
    #[n(0)]
    pub network: NetworkId,
    /// The newest note that agreed with the replica's own entries, if it had one.
    #[cbor(n(1), with = "minicbor::bytes")]
    pub ours: Option<Vec<u8>>,
    /// The note that did not.
    #[cbor(n(2), with = "minicbor::bytes")]
    pub theirs: Vec<u8>,
}

/// Words of [`FromGateway::Reject`] beside those of [`crate::Refusal::code`].
pub mod reject {
    /// The store takes no writes now (disk full, quota).
    pub const READ_ONLY: &str = "read-only";
    /// The gateway's clock and those of the witnesses disagree.
    pub const CLOCK: &str = "clock";
}

/// Why a gateway ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Bye {
    /// The gateway stops or restarts.
    #[n(0)]
    GoingAway,
    /// No common version.
    #[n(1)]
    Version,
    /// Another network.
    #[n(2)]
    Network,
    /// The hello's key is unknown, banned or expired, or its signature is bad.
    #[n(3)]
    Authentication,
    /// A frame that is no message, or not one for this moment.
    #[n(4)]
    Malformed,
    /// The client reads too slowly. Nothing is lost: it resumes with its token.
    #[n(5)]
    Slow,
    /// The gateway has fewer entries than the client's resume token names.
    #[n(6)]
    Behind,
    /// Too many connections.
    #[n(7)]
    Crowded,
    /// The client was silent for too long.
    #[n(8)]
    Idle,
    /// The gateway cannot read its store.
    #[n(9)]
    Internal,
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    /// Longer than a frame of that side may be.
    #[error("frame of {0} bytes is longer than {1}")]
    TooLong(usize, usize),
    /// Not the deterministic encoding of a message.
    #[error("not a message")]
    Malformed(#[from] CborError),
    /// A list or text is beyond its limit.
    #[error("message goes beyond the limit of its {0}")]
    Limit(&'static str),
    /// A checkpoint note is malformed, of another log, or not signed by a gateway of the network.
    #[error("head is not signed by a gateway of this network")]
    Note(#[from] NoteError),
}

impl FromClient {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads a frame. `None`: a message that may be passed over.
    pub fn decode(frame: &[u8]) -> Result<Option<FromClient>, SyncError> {
        decode(frame, CLIENT_FRAME_BYTES_MAX)
    }
}

impl FromGateway {
    /// The frame.
    pub fn encode(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    /// Reads a frame. `None`: a message that may be passed over.
    pub fn decode(frame: &[u8]) -> Result<Option<FromGateway>, SyncError> {
        let message = decode(frame, GATEWAY_FRAME_BYTES_MAX)?;
        match &message {
            Some(FromGateway::Challenge { versions, .. }) => at_most(versions.len(), VERSIONS_MAX, "versions")?,
            Some(FromGateway::Bundle(bundle)) => bundle.check()?,
            Some(FromGateway::Witnessed(head)) => at_most(head.cosignatures.len(), COSIGNATURES_MAX, "cosignatures")?,
            Some(FromGateway::Reject { rule, text, .. }) => {
                at_most(rule.len().max(text.len()), TEXT_BYTES_MAX, "text")?
            }
            Some(FromGateway::Bye { text, .. }) => at_most(text.len(), TEXT_BYTES_MAX, "text")?,
            _ => {}
        }
        Ok(message)
    }

    /// The end of a connection, its text cut to the limit.
    pub fn bye(reason: Bye, text: impl Into<String>) -> FromGateway {
        FromGateway::Bye { reason, text: cut(text.into()), retry_ms: 0 }
    }

    /// A refusal, its text cut to the limit.
    pub fn reject(id: u64, rule: &str, text: impl Into<String>) -> FromGateway {
        FromGateway::Reject { id, rule: rule.to_owned(), text: cut(text.into()) }
    }
}

impl Bundle {
    /// Index after the last entry.
    pub fn end(&self) -> u64 {
        self.first.saturating_add(self.entries.len() as u64)
    }

    /// The hash that names this stored bundle at the end of its chain: `enc::hash("mayfly/v1/bundle", previous, frame)`.
    ///
    /// It is what a backend compares and swaps on, and shows a bundle that a store lost or changed.
    pub fn chain_hash(previous: &[u8; 32], frame: &[u8]) -> [u8; 32] {
        enc::hash("mayfly/v1/bundle", &[previous, frame])
    }

    fn check(&self) -> Result<(), SyncError> {
        if self.entries.is_empty() {
            return Err(SyncError::Limit("entries"));
        }
        at_most(self.entries.len(), BUNDLE_ENTRIES_MAX, "entries")?;
        at_most(self.entries.iter().map(|e| e.len()).sum(), BUNDLE_BYTES_MAX, "bytes")
    }
}

fn decode<'b, T: Decode<'b, ()> + Encode<()>>(frame: &'b [u8], limit: usize) -> Result<Option<T>, SyncError> {
    if frame.len() > limit {
        return Err(SyncError::TooLong(frame.len(), limit));
    }
    if number(frame).is_some_and(|n| n >= IGNORABLE_FROM && n != TIME) {
        cbor::walk(frame)?;
        return Ok(None);
    }
    Ok(Some(cbor::from_exact(frame)?))
}

/// The number of a message.
fn number(frame: &[u8]) -> Option<u64> {
    let mut decoder = minicbor::Decoder::new(frame);
    decoder.array().ok()??;
    decoder.u64().ok()
}

fn at_most(actual: usize, limit: usize, what: &'static str) -> Result<(), SyncError> {
    if actual > limit { Err(SyncError::Limit(what)) } else { Ok(()) }
}

fn cut(mut text: String) -> String {
    let end = (0..=TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

/// What the key of a [`Hello`] signs: `enc("mayfly/v1/ledger-hello", network, gateway key, TLS exporter, challenge, client key id)`.
///
/// The exporter binds it to one TLS connection, the gateway's key to one gateway: nobody can pass a hello on.
pub fn hello_message(
    network: &NetworkId,
    gateway: &PublicKey,
    exporter: &[u8; EXPORTER_BYTES],
    challenge: &[u8; CHALLENGE_BYTES],
    key: &PublicKey,
) -> Vec<u8> {
    enc::enc(
        "mayfly/v1/ledger-hello",
        &[network.as_bytes(), &gateway.to_bytes(), exporter, challenge, &public_key_id(key)],
    )
}

/// Whom a gateway serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Client {
    /// An administrator.
    Administrator(AuthorId),
    /// A device that joined, approved or not.
    Device(DeviceId),
    /// Whoever has an unused invitation.
    Invited(InviteId),
}

/// Why a gateway does not serve a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotServed {
    /// Nobody's key.
    #[error(
        "the ledger knows no device, invitation or administrator by this key (that of a banned device is forgotten)"
    )]
    Unknown,
    /// A banned device's.
    #[error("the device is banned")]
    Banned,
    /// A session key whose time is over; the identity key still opens a connection.
    #[error("the session key has expired")]
    Expired,
    /// An invitation that is used up or over.
    #[error("the invitation was used already or has expired")]
    InviteOver,
}

impl Client {
    /// Who this key belongs to, at `now_ms` by the gateway's clock.
    pub fn identify(state: &State, key: &PublicKey, now_ms: u64) -> Result<Client, NotServed> {
        let id = public_key_id(key);
        let administrators = state.genesis.iter().flat_map(|g| &g.administrators);
        if administrators.into_iter().any(|a| a.key.0 == *key) {
            return Ok(Client::Administrator(AuthorId(id)));
        }
        let client = if state.devices.contains_key(&DeviceId(id)) {
            Client::Device(DeviceId(id))
        } else if let Some((device, found)) = state.device_by_session(key) {
            if found.session().is_none_or(|s| s.not_after_ms < now_ms) {
                return Err(NotServed::Expired);
            }
            Client::Device(*device)
        } else {
            Client::Invited(InviteId(id))
        };
        client.check(state, now_ms).map(|()| client)
    }

    /// Who this is now: whoever joined with an invitation is that device from then on.
    pub fn now(self, state: &State) -> Client {
        match self {
            Client::Invited(id) => {
                state.invites.get(&id).and_then(|invite| invite.used_by).map_or(self, Client::Device)
            }
            other => other,
        }
    }

    /// Whether the client is still served: asked again whenever the ledger changes.
    pub fn check(&self, state: &State, now_ms: u64) -> Result<(), NotServed> {
        match self {
            Client::Administrator(_) => Ok(()),
            Client::Device(id) => match state.devices.get(id).map(|d| d.membership) {
                Some(Membership::Banned) => Err(NotServed::Banned),
                Some(_) => Ok(()),
                None => Err(NotServed::Unknown),
            },
            Client::Invited(id) => match state.invites.get(id) {
                Some(invite) if invite.used_by.is_none() && invite.record.not_after_ms >= now_ms => Ok(()),
                Some(_) => Err(NotServed::InviteOver),
                None => Err(NotServed::Unknown),
            },
        }
    }
}

/// Reads a note and checks that a gateway named by genesis signed it for this network. Gives the head and the gateway's key.
pub fn verify_note(state: &State, network: &NetworkId, note: &[u8]) -> Result<(Head, PublicKey), SyncError> {
    let note = Note::parse(note)?;
    let origin = head::origin(network);
    let unsigned = || SyncError::Note(NoteError::NotSigned(origin.clone()));
    if note.checkpoint().origin() != origin {
        return Err(unsigned());
    }
    let gateways = state.genesis.iter().flat_map(|g| &g.gateways).map(|g| &g.key.0);
    let signer = gateways.into_iter().find(|key| match key {
        PublicKey::Ed25519(bytes) => note.verify_log(&origin, bytes).is_ok(),
        _ => false,
    });
    let signer = signer.ok_or_else(unsigned)?;
    Ok((Head { size: note.checkpoint().size(), root: Hash(*note.checkpoint().root()) }, *signer))
}

/// Time of a bookmark in milliseconds: the gateway's timestamped signature on a note that [`verify_note`] accepted from `signer`.
pub fn bookmark_time(network: &NetworkId, note: &[u8], signer: &PublicKey) -> Result<u64, SyncError> {
    let origin = head::origin(network);
    let PublicKey::Ed25519(key) = signer else { return Err(NoteError::NotSigned(origin).into()) };
    let seconds = Note::parse(note)?.verify_cosignature(&origin, key)?;
    Ok(seconds.saturating_mul(1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(s: &str) -> Vec<u8> {
        hex::decode(s.replace(' ', "")).unwrap()
    }

    fn samples() -> Vec<FromGateway> {
        let head = Head { size: 3, root: Hash([7; 32]) };
        vec![
            FromGateway::Challenge { versions: vec![1], nonce: [9; 32] },
            FromGateway::Welcome { head, first: 0, time_ms: 1_700_000_000_000 },
            FromGateway::Bundle(Bundle { first: 2, time_ms: 5, entries: vec![vec![1, 2].into(), vec![3].into()] }),
            FromGateway::Proposed { note: b"note".to_vec() },
            FromGateway::Witnessed(WitnessedHead {
                note: b"note".to_vec(),
                cosignatures: vec![Cosignature { witness: DeviceId([1; 32]), time_ms: 5, signature: vec![2; 64] }],
            }),
            FromGateway::Ack { id: 1, index: 2 },
            FromGateway::reject(1, "rule", "no"),
            FromGateway::Busy { id: 1, retry_ms: 100 },
            FromGateway::Bookmark { note: b"note".to_vec() },
            FromGateway::Fork { note: b"note".to_vec() },
            FromGateway::bye(Bye::Slow, "too slow"),
        ]
    }

    #[test]
    fn messages_of_a_gateway_read_back_and_keep_their_numbers() {
        for (number, message) in samples().into_iter().enumerate() {
            let frame = message.encode();
            assert_eq!(super::number(&frame), Some(number as u64), "{message:?}");
            assert_eq!(FromGateway::decode(&frame), Ok(Some(message)));
        }
    }

    #[test]
    fn messages_of_a_client_read_back() {
        let mut base_point = [0x66; 32];
        base_point[0] = 0x58;
        let key = Verifier(PublicKey::Ed25519(base_point));
        let hello = Hello {
            version: 1,
            network: NetworkId([1; 32]),
            tip: Head::default(),
            witnessed: 0,
            key,
            signature: vec![4; 64],
        };
        let cosignature = Cosignature { witness: DeviceId([1; 32]), time_ms: 5, signature: vec![2; 64] };
        for (number, message) in [
            FromClient::Hello(hello),
            FromClient::Submit { id: 7, entry: vec![1, 2, 3] },
            FromClient::Cosign { head: Head::default(), cosignature },
        ]
        .into_iter()
        .enumerate()
        {
            let frame = message.encode();
            assert_eq!(super::number(&frame), Some(number as u64));
            assert_eq!(FromClient::decode(&frame), Ok(Some(message)));
        }
    }

    #[test]
    fn a_known_frame_stays_what_it_is() {
        assert_eq!(FromGateway::Ack { id: 1, index: 1000 }.encode(), hex("83 05 01 1903e8"));
        assert_eq!(FromGateway::AskTime { asked: 5 }.encode(), hex("82 1880 05"));
        assert_eq!(FromClient::Time { asked: 5, time_ms: 1000 }.encode(), hex("83 1880 05 1903e8"));
        let bundle = Bundle { first: 2, time_ms: 5, entries: vec![vec![0xaa].into()] };
        assert_eq!(FromGateway::Bundle(bundle).encode(), hex("82 02 83 02 05 81 41 aa"));
        assert_eq!(FromGateway::bye(Bye::Slow, "x").encode(), hex("84 0a 05 61 78 00"));
    }

    #[test]
    fn what_is_no_message_is_refused_and_grease_is_passed_over() {
        for (frame, why) in [
            ("83 05 01 02 00", "trailing byte"),
            ("83 05 01 1802", "longer form of a number"),
            ("84 05 01 02 03", "surplus field"),
            ("82 05 01", "missing field"),
            ("82 0b 01", "unknown number that may not be passed over"),
            ("82 02 83 02 05 80", "bundle without entries"),
            ("82 1880 f5", "a known number that may be unknown to others, with a wrong field"),
            ("05", "not an array"),
            ("", "nothing"),
        ] {
            assert!(FromGateway::decode(&hex(frame)).is_err(), "{why}");
        }
        assert_eq!(FromGateway::decode(&hex("82 1880 05")), Ok(Some(FromGateway::AskTime { asked: 5 })));
        assert_eq!(FromGateway::decode(&hex("82 1881 f5")), Ok(None));
        assert_eq!(FromClient::decode(&hex("81 18ff")), Ok(None));
        assert!(FromClient::decode(&hex("82 1881 bf ff")).is_err(), "grease is deterministic CBOR too");
    }

    #[test]
    fn limits_hold() {
        assert!(matches!(FromClient::decode(&vec![0; CLIENT_FRAME_BYTES_MAX + 1]), Err(SyncError::TooLong(..))));
        let many = Bundle { first: 0, time_ms: 0, entries: vec![vec![1].into(); BUNDLE_ENTRIES_MAX + 1] };
        assert_eq!(FromGateway::decode(&FromGateway::Bundle(many).encode()), Err(SyncError::Limit("entries")));
        let large = Bundle { first: 0, time_ms: 0, entries: vec![vec![1; BUNDLE_BYTES_MAX / 2 + 1].into(); 2] };
        assert_eq!(FromGateway::decode(&FromGateway::Bundle(large).encode()), Err(SyncError::Limit("bytes")));
        let FromGateway::Bye { text, .. } = FromGateway::bye(Bye::Slow, "ä".repeat(TEXT_BYTES_MAX)) else { panic!() };
        assert_eq!(text.len(), TEXT_BYTES_MAX);
    }

    #[test]
    fn a_hello_signature_depends_on_every_part() {
        let key = PublicKey::Ed25519([3; 32]);
        let base = hello_message(&NetworkId([1; 32]), &key, &[2; 32], &[3; 32], &key);
        let other = PublicKey::Ed25519([4; 32]);
        for changed in [
            hello_message(&NetworkId([9; 32]), &key, &[2; 32], &[3; 32], &key),
            hello_message(&NetworkId([1; 32]), &other, &[2; 32], &[3; 32], &key),
            hello_message(&NetworkId([1; 32]), &key, &[9; 32], &[3; 32], &key),
            hello_message(&NetworkId([1; 32]), &key, &[2; 32], &[9; 32], &key),
            hello_message(&NetworkId([1; 32]), &key, &[2; 32], &[3; 32], &other),
        ] {
            assert_ne!(base, changed);
        }
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = FromClient::decode(&bytes);
            let _ = FromGateway::decode(&bytes);
        }

        #[test]
        fn a_changed_message_is_refused_or_reads_back_as_itself(at in 0usize..200, bit in 0u8..8, which in 0usize..11) {
            let mut frame = samples()[which].encode();
            let at = at % frame.len();
            frame[at] ^= 1 << bit;
            if let Ok(Some(message)) = FromGateway::decode(&frame) {
                proptest::prop_assert_eq!(message.encode(), frame);
            }
        }
    }
}
