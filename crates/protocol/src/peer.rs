//! What agents say to each other, version 1. Format page: `docs/formats/peer.md`.
//!
//! Messages travel as length-prefixed frames inside TLS 1.3 ([`ALPN`]). Who speaks is known from the channel: the session key of the TLS
//! handshake, looked up on the verified ledger. Nothing here is secret: shards are sealed before they become part of a message, and a
//! message carries the sealed bytes only.

use crate::apply::EVIDENCE_BYTES_MAX;
use crate::cbor::{self, CborError};
use crate::freshness::{FreshAsk, Statement};
use crate::head::Head;
use crate::ids::{DeviceId, KeyId, NetworkId, ShardId};
use crate::record;
use crate::rules::{ReleaseQuery, Use};
use mayfly_crypto::enc;
use minicbor::{Decode, Encode};

/// Version of the messages; part of [`ALPN`].
pub const VERSION: u8 = 1;
/// Application protocol of peer connections (RFC 7301).
pub const ALPN: &[u8] = b"mayfly-peer/1";
/// Label of the TLS exporter (RFC 8446, section 7.5) that the inner envelope is bound to; 32 bytes, no context.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-mayfly-peer-v1";
/// Largest frame in bytes, without its length: a key record with room for the rest.
pub const FRAME_BYTES_MAX: usize = 48 * 1024;
/// Bytes of a frame's length.
pub const FRAME_HEADER_BYTES: usize = 4;
/// Bytes of the nonce of a release.
pub const NONCE_BYTES: usize = 16;
/// Longest sealed share: 64 bytes of share, nonce or counter, tag.
pub const SEALED_SHARE_BYTES_MAX: usize = 160;
/// Longest explanation in bytes.
pub const TEXT_BYTES_MAX: usize = 512;
/// Longest policy of a vault: 64 approvals and every register.
pub const POLICY_BYTES_MAX: usize = 32 * 1024;
/// Longest `MTK1`: five certificates, keys, the rest.
pub const CHIP_KEYS_BYTES_MAX: usize = 22 * 1024;
/// Longest `MTC1`.
pub const CHALLENGE_BYTES_MAX: usize = 1024;
/// Most operations that one release may be for.
pub const USES_MAX: u32 = 4096;

/// Why bytes from a peer are not a message. The connection is closed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// A frame announces more than [`FRAME_BYTES_MAX`], or nothing.
    #[error("frame of {0} bytes, 1 to {FRAME_BYTES_MAX} are allowed")]
    FrameLength(u64),
    /// Not the deterministic encoding of a message.
    #[error("malformed message")]
    Malformed(#[from] CborError),
    /// A field is out of its bounds.
    #[error("{0} is out of bounds")]
    Bounds(&'static str),
    /// The peer speaks another version.
    #[error("peer speaks version {0}, this program {VERSION}")]
    Version(u8),
    /// The peer belongs to another network.
    #[error("peer belongs to network {0}")]
    Network(NetworkId),
    /// The peer's TLS key and its greeting name different devices.
    #[error("peer calls itself device {named}, its key is that of {authenticated}")]
    Device {
        /// From the greeting.
        named: DeviceId,
        /// From the handshake.
        authenticated: DeviceId,
    },
}

/// First message of both sides.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Hello {
    /// [`VERSION`].
    #[n(0)]
    pub version: u8,
    /// The sender's network.
    #[n(1)]
    pub network: NetworkId,
    /// The sender; must be the device whose session key authenticated TLS.
    #[n(2)]
    pub device: DeviceId,
    /// X25519 public key, made for this connection only, of the inner envelope.
    #[cbor(n(3), with = "minicbor::bytes")]
    pub ephemeral: [u8; 32],
    /// The newest head that the sender has verified.
    #[n(4)]
    pub head: Head,
}

/// A numbered question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Request {
    /// Chosen by the asker, repeated in the answer; a late answer is told from the awaited one by it.
    #[n(0)]
    pub id: u64,
    /// The question.
    #[n(1)]
    pub ask: Ask,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[expect(clippy::large_enum_variant, reason = "questions are made and read one at a time; the common one is small")]
pub enum Ask {
    /// Release the shard of a key for one assembly.
    #[n(0)]
    Release(#[n(0)] Release),
    /// Take a shard of a new key.
    #[n(1)]
    Offer(#[n(0)] Offer),
    /// State your head and time, as a witness.
    #[n(2)]
    Fresh(#[n(0)] FreshAsk),
    /// Hear of a record that takes effect on sight.
    #[n(3)]
    Alarm(#[n(0)] Alarm),
    /// Tell what your vault asks of its registers: by a device with role pcr-approver.
    #[n(5)]
    VaultPolicy,
    /// Challenge my chip. The only question that a device may ask which waits for approval.
    #[n(4)]
    Attest(#[n(0)] AttestAsk),
}

/// The two questions of an attestation. Page of the messages in them: `docs/formats/attestation.md`.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AttestAsk {
    /// Make a challenge for this chip.
    #[n(0)]
    Begin(#[n(0)] AttestBegin),
    /// My chip's answer to your challenge: `MTP1`.
    #[n(1)]
    Prove(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
}

/// What a device says of its chip before anything is proven.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct AttestBegin {
    /// Its keys and certificates: `MTK1`.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub keys: Vec<u8>,
    /// Registers that its quotes will be of; bit i: register i.
    #[n(1)]
    pub registers: u32,
}

/// The answer to the request with the same number.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Answer {
    /// The request's number.
    #[n(0)]
    pub id: u64,
    /// The answer.
    #[n(1)]
    pub reply: Reply,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// No, and why.
    #[n(0)]
    Refused(#[n(0)] Refused),
    /// The shard, sealed for the asker.
    #[n(1)]
    Released(#[n(0)] Released),
    /// The shard is checked and saved.
    #[n(2)]
    Accepted(#[n(0)] record::Acceptance),
    /// A witness's statement.
    #[n(3)]
    Fresh(#[n(0)] Statement),
    /// Heard.
    #[n(4)]
    Noted,
    /// What the vault asks of its registers.
    #[n(7)]
    VaultPolicy(#[n(0)] VaultPolicy),
    /// A challenge for the asker's chip: `MTC1`.
    #[n(5)]
    Challenge(#[cbor(n(0), with = "minicbor::bytes")] Vec<u8>),
    /// The chip is believed; the statement is on its way to the ledger.
    #[n(6)]
    Attested,
}

/// What an approver needs to know of a vault.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct VaultPolicy {
    /// As on the page of the vault `tpm`; at most [`POLICY_BYTES_MAX`] bytes.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub json: Vec<u8>,
}

/// Asks for a shard. The holder checks every field against its own state; the requester must be the device at the other end.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Release {
    /// The key.
    #[n(0)]
    pub key: KeyId,
    /// Its generation, as the asker knows it.
    #[n(1)]
    pub generation: u64,
    /// Its epoch, as the asker knows it.
    #[n(2)]
    pub epoch: u64,
    /// What the key will be used for.
    #[n(3)]
    pub purpose: Use,
    /// How many operations wait for this assembly, 1 to [`USES_MAX`]; counted against the asker's grant.
    #[n(4)]
    pub uses: u32,
    /// The asker.
    #[n(5)]
    pub requester: DeviceId,
    /// The newest head that the asker has verified.
    #[n(6)]
    pub head: Head,
    /// Fresh randomness: no answer fits two requests.
    #[cbor(n(7), with = "minicbor::bytes")]
    pub nonce: [u8; NONCE_BYTES],
}

impl Release {
    /// The question that the ledger's rules answer.
    pub fn query(&self) -> ReleaseQuery {
        ReleaseQuery {
            key: self.key,
            generation: self.generation,
            epoch: self.epoch,
            purpose: self.purpose,
            requester: self.requester,
        }
    }

    /// Associated data of the sealed share that answers this request: a share moved to any other place does not open.
    pub fn aad(&self, network: &NetworkId, holder: &DeviceId, shard: &ShardId, index: u32) -> Vec<u8> {
        enc::enc(
            "mayfly/v1/release",
            &[
                network.as_bytes(),
                holder.as_bytes(),
                self.requester.as_bytes(),
                self.key.as_bytes(),
                &self.generation.to_be_bytes(),
                &self.epoch.to_be_bytes(),
                &u64::from(self.purpose as u8).to_be_bytes(),
                &self.nonce,
                shard.as_bytes(),
                &u64::from(index).to_be_bytes(),
            ],
        )
    }
}

/// A released shard. Repeats what it answers, so that a mix-up shows before anything is combined.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Released {
    /// The key.
    #[n(0)]
    pub key: KeyId,
    /// Its generation.
    #[n(1)]
    pub generation: u64,
    /// Its epoch.
    #[n(2)]
    pub epoch: u64,
    /// The shard.
    #[n(3)]
    pub shard: ShardId,
    /// Its evaluation point.
    #[n(4)]
    pub index: u32,
    /// The request's nonce.
    #[cbor(n(5), with = "minicbor::bytes")]
    pub nonce: [u8; NONCE_BYTES],
    /// The holder's newest verified head.
    #[n(6)]
    pub head: Head,
    /// The share (64 bytes), sealed in the connection's inner envelope with [`Release::aad`].
    #[cbor(n(7), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

impl Released {
    /// Whether this answers `ask`: same key, generation, epoch and nonce.
    pub fn answers(&self, ask: &Release) -> bool {
        (self.key, self.generation, self.epoch, self.nonce) == (ask.key, ask.generation, ask.epoch, ask.nonce)
    }
}

/// A shard of a key that is being made.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Offer {
    /// The key's record, without acceptances.
    #[n(0)]
    pub key: record::Key,
    /// The share (64 bytes), sealed in the connection's inner envelope with [`Offer::aad`].
    #[cbor(n(1), with = "minicbor::bytes")]
    pub sealed: Vec<u8>,
}

impl Offer {
    /// Associated data of the sealed share in an offer by `dealer` to `holder`.
    pub fn aad(network: &NetworkId, dealer: &DeviceId, holder: &DeviceId, key: &KeyId) -> Vec<u8> {
        enc::enc("mayfly/v1/offer", &[network.as_bytes(), dealer.as_bytes(), holder.as_bytes(), key.as_bytes()])
    }
}

/// A signed ledger entry that takes effect on sight: in this version, a BAN.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Alarm {
    /// The entry as it will stand in the ledger.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub entry: Vec<u8>,
}

/// Why a peer does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
#[cbor(array)]
pub struct Refused {
    /// What to make of it.
    #[n(0)]
    pub cause: Cause,
    /// The rule, for people.
    #[n(1)]
    pub text: String,
    /// The refusing device's newest verified head: an asker that is behind learns of it.
    #[n(2)]
    pub head: Head,
}

impl Refused {
    /// A refusal whose text is cut to [`TEXT_BYTES_MAX`].
    pub fn new(cause: Cause, text: impl Into<String>, head: Head) -> Refused {
        let mut text = text.into();
        while text.len() > TEXT_BYTES_MAX {
            text.pop();
        }
        Refused { cause, text, head }
    }
}

/// Kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
#[cbor(index_only)]
pub enum Cause {
    /// A rule of the ledger forbids it.
    #[n(0)]
    Denied,
    /// The request names another generation or epoch than the holder knows: whoever is behind syncs, then the asker asks again.
    #[n(1)]
    WrongEpoch,
    /// The refusing device has had no round of freshness lately, so it releases nothing.
    #[n(2)]
    NotFresh,
    /// Too many requests.
    #[n(3)]
    Busy,
    /// The asker's session key is not its newest any more: it must connect anew.
    #[n(4)]
    Session,
    /// The refusing device could not (vault, disk, memory).
    #[n(5)]
    Failed,
}

/// A message of either direction that can be put into a frame and taken from one.
pub trait Message: Sized {
    /// The message as deterministic CBOR.
    fn to_bytes(&self) -> Vec<u8>;
    /// Decodes a frame's content and checks bounds.
    ///
    /// # Errors
    /// [`PeerError`]: the connection is to be closed.
    fn from_bytes(bytes: &[u8]) -> Result<Self, PeerError>;

    /// The message with its length before it.
    fn frame(&self) -> Vec<u8> {
        let content = self.to_bytes();
        let length = u32::try_from(content.len()).expect("messages are bounded by what they are made of");
        [&length.to_be_bytes()[..], &content].concat()
    }
}

/// Length of the frame that starts with these bytes.
///
/// # Errors
/// [`PeerError::FrameLength`] when it is zero or above [`FRAME_BYTES_MAX`].
pub fn frame_length(header: [u8; FRAME_HEADER_BYTES]) -> Result<usize, PeerError> {
    let length = u32::from_be_bytes(header);
    match usize::try_from(length) {
        Ok(n) if (1..=FRAME_BYTES_MAX).contains(&n) => Ok(n),
        _ => Err(PeerError::FrameLength(length.into())),
    }
}

impl Message for Hello {
    fn to_bytes(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, PeerError> {
        let hello: Hello = cbor::from_exact(bytes)?;
        if hello.version == VERSION { Ok(hello) } else { Err(PeerError::Version(hello.version)) }
    }
}

impl Hello {
    /// Whether the greeting comes from our network and from the device that authenticated the channel.
    ///
    /// # Errors
    /// [`PeerError::Network`], [`PeerError::Device`].
    pub fn check(&self, network: &NetworkId, authenticated: &DeviceId) -> Result<(), PeerError> {
        if self.network != *network {
            return Err(PeerError::Network(self.network));
        }
        if self.device != *authenticated {
            return Err(PeerError::Device { named: self.device, authenticated: *authenticated });
        }
        Ok(())
    }
}

/// What the inner envelope of a connection is bound to: both devices, both ephemeral keys, and the TLS connection itself.
///
/// `client` opened the connection. `exporter` is TLS exporter output for [`EXPORTER_LABEL`]; it binds, it is not the source of the key.
pub fn channel_transcript(client: &Hello, server: &Hello, exporter: &[u8; 32]) -> Vec<u8> {
    enc::enc(
        "mayfly/v1/peer-channel",
        &[
            client.network.as_bytes(),
            client.device.as_bytes(),
            server.device.as_bytes(),
            &client.ephemeral,
            &server.ephemeral,
            exporter,
        ],
    )
}

impl Message for Request {
    fn to_bytes(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, PeerError> {
        let request: Request = cbor::from_exact(bytes)?;
        match &request.ask {
            Ask::Release(r) => bound("number of uses", (1..=USES_MAX).contains(&r.uses))?,
            Ask::Offer(o) => {
                bound("sealed share", o.sealed.len() <= SEALED_SHARE_BYTES_MAX)?;
                bound("acceptances in an offer", o.key.acceptances.is_empty())?;
            }
            Ask::VaultPolicy => {}
            Ask::Alarm(a) => bound("entry", a.entry.len() <= crate::entry::ENTRY_BYTES_MAX)?,
            Ask::Attest(AttestAsk::Begin(b)) => bound("keys of a chip", b.keys.len() <= CHIP_KEYS_BYTES_MAX)?,
            Ask::Attest(AttestAsk::Prove(p)) => bound("proof", p.len() <= EVIDENCE_BYTES_MAX)?,
            Ask::Fresh(_) => {}
        }
        Ok(request)
    }
}

impl Message for Answer {
    fn to_bytes(&self) -> Vec<u8> {
        cbor::to_vec(self)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, PeerError> {
        let answer: Answer = cbor::from_exact(bytes)?;
        match &answer.reply {
            Reply::Refused(r) => bound("text", r.text.len() <= TEXT_BYTES_MAX)?,
            Reply::VaultPolicy(p) => bound("policy", p.json.len() <= POLICY_BYTES_MAX)?,
            Reply::Released(r) => bound("sealed share", r.sealed.len() <= SEALED_SHARE_BYTES_MAX)?,
            Reply::Accepted(a) => bound("signature", a.signature.len() == mayfly_crypto::sign::SIGNATURE_BYTES)?,
            Reply::Challenge(c) => bound("challenge", c.len() <= CHALLENGE_BYTES_MAX)?,
            Reply::Fresh(_) | Reply::Noted | Reply::Attested => {}
        }
        Ok(answer)
    }
}

fn bound(what: &'static str, holds: bool) -> Result<(), PeerError> {
    if holds { Ok(()) } else { Err(PeerError::Bounds(what)) }
}

#[cfg(test)]
mod tests;
