//! Other agents: connections to them, questions and answers. Format page: `docs/formats/peer.md`.
//!
//! | Part | Is |
//! |---|---|
//! | [`Peers`] | the connections that this agent opened, kept ready |
//! | [`Exchange`] | questions to several devices at once, asked and awaited by one thread |
//! | [`Server`] | one thread for each connection that others opened |
//!
//! What must never happen here: a byte of an application message before both sides have proved a session key on the ledger; an answer to
//! anything but its attestation for a device that is no member; a shard in a message in the clear; an unbounded wait, frame, or number of
//! connections.

mod conn;
mod exchange;
mod link;
mod pool;
mod server;
mod table;
mod tls;

pub use exchange::{Exchange, Outcome};
pub use pool::Peers;
pub use server::{Caller, Server, Service};

use mayfly_crypto::envelope::Ephemeral;
use mayfly_crypto::sign::PublicKey;
use mayfly_protocol::peer::{Hello, VERSION};
use mayfly_protocol::{DeviceId, Head, NetworkId};
use std::sync::Arc;
use std::time::Duration;

/// How long a peer with an unknown session key is kept waiting for the ledger to bring it.
pub const UNKNOWN_KEY_PATIENCE: Duration = Duration::from_secs(2);
/// Longest time from connecting to the first question.
pub const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Age after which a connection is replaced, and with it the keys of TLS and envelope.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(300);
/// Age after which the serving side closes a connection that its opener has not replaced.
pub const SERVED_AGE_MAX: Duration = Duration::from_secs(600);
/// Most connections that this agent opens to one device.
pub const CONNECTIONS_PER_PEER_MAX: usize = 48;
/// Most connections of one device that are served.
pub const SERVED_PER_PEER_MAX: usize = 64;
/// Longest time until TLS is done, on the serving side: anybody may open a connection and say nothing.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Most connections whose opener has not proved a key yet; beyond, the oldest one of the busiest address makes room.
pub const UNPROVED_MAX: usize = 128;
/// Most of these from one address (an IPv6 network of 64 bits counts as one); beyond, its oldest one makes room.
pub const UNPROVED_PER_ADDRESS_MAX: usize = SERVED_PER_PEER_MAX;

/// Most connections of candidates that are served: whoever has an invitation can be one.
pub const CANDIDATES_MAX: usize = 16;
/// Most connections of one candidate.
pub const CANDIDATE_CONNECTIONS_MAX: usize = 2;
/// Age after which a candidate's connection is closed: an attestation takes seconds.
pub const CANDIDATE_AGE_MAX: Duration = Duration::from_secs(60);
/// Questions after which it is closed: an attestation has two.
pub const CANDIDATE_QUESTIONS_MAX: usize = 8;

/// As what a device may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// As a member: it may ask everything, and each question has rules of its own.
    Member,
    /// It has joined and waits for approval: it may ask to be attested, and nothing else.
    Candidate,
}

/// What connections need to know of the verified ledger.
pub trait Directory: Send + Sync + std::fmt::Debug {
    /// The device whose newest, valid session key this is, and its standing. Waits for the ledger to bring an unknown one, up to `patience`.
    fn caller_of(&self, key: &PublicKey, patience: Duration) -> Option<(DeviceId, Standing)>;
    /// As what the device may speak whose newest, valid session key this is; `None`: it is not, or may not.
    fn standing_of(&self, device: &DeviceId, key: &PublicKey) -> Option<Standing>;
    /// The newest, valid session key of a member that is not banned.
    fn session_of(&self, device: &DeviceId) -> Option<PublicKey>;
    /// Where a member can be reached, `host:port`.
    fn addresses_of(&self, device: &DeviceId) -> Vec<String>;
    /// The newest head that this device has verified.
    fn head(&self) -> Head;
}

/// This device, as it greets.
#[derive(Debug, Clone)]
pub struct Local {
    /// The network.
    pub network: NetworkId,
    /// This device.
    pub device: DeviceId,
    /// The verified ledger.
    pub directory: Arc<dyn Directory>,
}

impl Local {
    fn hello(&self, ephemeral: &Ephemeral) -> Hello {
        Hello {
            version: VERSION,
            network: self.network,
            device: self.device,
            ephemeral: ephemeral.public(),
            head: self.directory.head(),
        }
    }
}

#[cfg(test)]
mod tests;
