//! Plain Rust types on the plugin's side of the table.

use crate::Status;

/// Why a plugin refuses; crosses the table as number and text.
#[derive(Debug)]
pub struct GuestError {
    /// The number.
    pub status: Status,
    /// What failed, on what, and what to do next; lower case, no full stop.
    pub message: String,
}

impl GuestError {
    /// An error of a status with its text.
    pub fn new(status: Status, message: impl Into<String>) -> GuestError {
        GuestError { status, message: message.into() }
    }

    /// "Not offered", for optional calls.
    pub fn unsupported(what: &str) -> GuestError {
        GuestError::new(Status::Unsupported, format!("{what} is not offered by this plugin"))
    }
}

impl core::fmt::Display for GuestError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for GuestError {}

/// Algorithm of an identity key; the same numbers as on the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Alg {
    /// Ed25519 (RFC 8032): 32-byte public key.
    Ed25519 = 1,
    /// ECDSA P-256 with SHA-256: 33-byte compressed public key, signature r || s with low s.
    P256 = 2,
}

impl Alg {
    /// The algorithm of a number.
    pub fn from_code(code: u32) -> Option<Alg> {
        match code {
            1 => Some(Alg::Ed25519),
            2 => Some(Alg::P256),
            _ => None,
        }
    }

    /// Bytes of a public key.
    pub fn public_key_bytes(self) -> usize {
        match self {
            Alg::Ed25519 => 32,
            Alg::P256 => 33,
        }
    }
}

/// How long a vault key stays open on a holder. Each tier has a vault key of its own under the same generation, so
/// that one does not void another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Tier {
    /// Opened once after the start.
    Boot = 0,
    /// Opened for some seconds.
    Window = 1,
    /// Opened for the releases that are waiting, then closed.
    PerRelease = 2,
}

impl Tier {
    /// All tiers.
    pub const ALL: [Tier; 3] = [Tier::Boot, Tier::Window, Tier::PerRelease];

    /// The tier of a number.
    pub fn from_code(code: u32) -> Option<Tier> {
        Tier::ALL.into_iter().find(|tier| *tier as u32 == code)
    }
}

/// What a vault says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultDescription {
    /// True when nothing but software protects the keys.
    pub software_only: bool,
    /// Identity algorithms on offer.
    pub identity_algs: Vec<Alg>,
    /// Tiers on offer.
    pub tiers: Vec<Tier>,
    /// What seals: chip or token, maker, firmware; at most 256 bytes are kept.
    pub hardware: String,
    /// What this vault does not protect against; at most 512 bytes are kept.
    pub security_note: String,
}

/// The identity key's public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its algorithm.
    pub alg: Alg,
    /// [`Alg::public_key_bytes`] bytes.
    pub public: Vec<u8>,
}

/// The generations of a vault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generations {
    /// The one that opens; 0 before the first commit.
    pub current: u64,
    /// `current + 1` when at least one tier is staged.
    pub staged: Option<u64>,
}

/// State of what is under a plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HealthState {
    /// Everything works.
    Ok = 0,
    /// Reads work, writes are refused.
    ReadOnly = 1,
    /// Nothing works.
    Down = 2,
    /// Sealed under a machine state that is not the present one.
    PolicyPending = 3,
    /// The chip or token is another one.
    VaultLost = 4,
    /// Refused for a while after failed authorisations.
    Lockout = 5,
}

impl HealthState {
    /// The state of a number.
    pub fn from_code(code: u32) -> Option<HealthState> {
        use HealthState::*;
        [Ok, ReadOnly, Down, PolicyPending, VaultLost, Lockout].into_iter().find(|state| *state as u32 == code)
    }
}

/// Answer of `health`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The state.
    pub state: HealthState,
    /// The reason when the state is not [`HealthState::Ok`].
    pub detail: String,
    /// Bytes that can still be stored, where that has a meaning.
    pub free_bytes: Option<u64>,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Duration of the last durable write, microseconds; 0 when there was none.
    pub sync_micros: u64,
}

impl Health {
    /// "All well", without figures.
    pub fn ok() -> Health {
        Health { state: HealthState::Ok, detail: String::new(), free_bytes: None, used_bytes: 0, sync_micros: 0 }
    }
}
