//! The C table, version 1. Only plain data; `include/mayfly_plugin.h` says the same in C.
//!
//! Rules that hold for every function: calls block; one call at a time per handle; nothing unwinds or `longjmp`s
//! across; pointers are borrowed for the call only; a pointer with length 0 may be null; `message` takes at most
//! `capacity` bytes of UTF-8 without a terminator and its length goes into `length`.

use core::ffi::c_void;

/// The interface version of this page.
pub const ABI_VERSION: u32 = 1;
/// The exported symbol, with the terminating zero.
pub const SYMBOL: &[u8] = b"mayfly_plugin_v1\0";
/// `Header::kind` of a vault.
pub const KIND_VAULT: u32 = 1;
/// `Header::kind` of a ledger backend.
pub const KIND_BACKEND: u32 = 2;
/// `Header::flags`: the plugin opens network connections (other than unix sockets).
pub const FLAG_NEEDS_NETWORK: u32 = 1;

/// Bytes of a vault key.
pub const VAULT_KEY_BYTES: usize = 32;
/// Bytes of every identity signature: Ed25519 (RFC 8032), or ECDSA P-256 as r || s, big-endian, low s.
pub const SIGNATURE_BYTES: usize = 64;
/// Largest identity public key: a compressed P-256 point (SEC 1); Ed25519 takes 32.
pub const PUBLIC_KEY_BYTES_MAX: usize = 33;
/// Largest message that `identity_sign` must take.
pub const SIGN_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Most bytes of one `random` call.
pub const RANDOM_BYTES_MAX: usize = 1024;
/// Longest configuration text.
pub const CONFIG_BYTES_MAX: usize = 64 * 1024;
/// Longest path of the private data folder.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest name (`[a-z0-9-]`) and longest version in the header.
pub const NAME_BYTES_MAX: usize = 32;
/// Capacity of the message buffer that the host gives.
pub const MESSAGE_BYTES_MAX: usize = 1024;
/// Largest input and output of `attest` and `control`.
pub const BLOB_BYTES_MAX: usize = 64 * 1024;
/// Largest bundle that any backend may declare.
pub const BUNDLE_BYTES_MAX: usize = 1024 * 1024;
/// Largest answer of one `read`.
pub const READ_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Largest signed checkpoint.
pub const CHECKPOINT_BYTES_MAX: usize = 16 * 1024;
/// Largest piece of a snapshot per call.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 256 * 1024;
/// Largest whole snapshot.
pub const SNAPSHOT_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// Bytes in front of each bundle in the answer of `read`.
pub const READ_PREFIX_BYTES: usize = 8 + 8 + 32 + 8;
/// Longest name of a lease.
pub const LEASE_NAME_BYTES_MAX: usize = 64;

/// First field of every table; `size`, `abi_version` and `kind` are read before anything else is believed.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Header {
    /// Bytes of the whole table as the plugin was compiled. Functions beyond it count as null.
    pub size: u32,
    /// [`ABI_VERSION`].
    pub abi_version: u32,
    /// [`KIND_VAULT`] or [`KIND_BACKEND`].
    pub kind: u32,
    /// [`FLAG_NEEDS_NETWORK`]; unknown bits are refused.
    pub flags: u32,
    /// Short name, `[a-z0-9-]`, 1 to [`NAME_BYTES_MAX`] bytes: `file`, `tpm`, `embedded`.
    pub name: *const u8,
    /// Its length.
    pub name_len: usize,
    /// Version of the plugin for people, printable ASCII, at most [`NAME_BYTES_MAX`] bytes.
    pub version: *const u8,
    /// Its length.
    pub version_len: usize,
}

/// Where a plugin writes what went wrong.
#[repr(C)]
pub struct Message {
    /// Start of the caller's buffer.
    pub text: *mut u8,
    /// Bytes that fit.
    pub capacity: usize,
    /// Out: bytes written, at most `capacity`.
    pub length: usize,
}

/// Answer of `describe`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawVaultDescription {
    /// In: bytes of this struct as the caller knows it.
    pub size: u32,
    /// 1 when nothing but software protects the keys.
    pub software_only: u32,
    /// Bit n set: identity algorithm n is offered (1 = Ed25519, 2 = P-256).
    pub identity_algs: u32,
    /// Bit n set: tier n is offered.
    pub tiers: u32,
    /// What seals: chip or token, maker, firmware; UTF-8, zero-padded.
    pub hardware: [u8; 256],
    /// What this vault does not protect against; UTF-8, zero-padded.
    pub security_note: [u8; 512],
}

/// Answer of `generation`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct RawGeneration {
    /// The committed generation; 0 before the first commit.
    pub current: u64,
    /// `current + 1` when at least one tier is staged under it, else 0.
    pub staged: u64,
}

/// Answer of `health`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct RawHealth {
    /// In: bytes of this struct as the caller knows it.
    pub size: u32,
    /// 0 ok, 1 read-only, 2 down, 3 policy pending, 4 vault lost, 5 lockout.
    pub state: u32,
    /// Bytes that can still be stored; `u64::MAX` where that has no meaning.
    pub free_bytes: u64,
    /// Bytes in use; 0 where that has no meaning.
    pub used_bytes: u64,
    /// How long the last durable write took, microseconds; 0 when there was none.
    pub sync_micros: u64,
    /// The reason when `state` is not 0; UTF-8, zero-padded.
    pub detail: [u8; 256],
}

/// A head of the ledger as the backend keeps it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Number of entries.
    pub size: u64,
    /// Epoch of the sequencer that wrote it; never falls.
    pub epoch: u64,
    /// Hash of the last bundle; all zero while the ledger is empty.
    pub bundle_hash: [u8; 32],
}

/// Answer of `caps`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct RawCaps {
    /// In: bytes of this struct as the caller knows it.
    pub size: u32,
    /// Bit 0: an acknowledged append survives power loss. Bit 1: `head` is linearizable. Bit 2: `wait` is offered.
    pub flags: u32,
    /// Largest bundle, at most [`BUNDLE_BYTES_MAX`].
    pub bundle_bytes_max: u64,
    /// Bytes that the store can hold; `u64::MAX` for "as the disk".
    pub capacity_bytes: u64,
}

/// `RawCaps::flags`: an acknowledged append survives power loss.
pub const CAP_DURABLE_ON_ACK: u32 = 1;
/// `RawCaps::flags`: `head` is linearizable.
pub const CAP_LINEARIZABLE: u32 = 2;
/// `RawCaps::flags`: `wait` is offered.
pub const CAP_WAIT: u32 = 4;

/// What a snapshot is, beside its bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Number of entries that the state covers.
    pub size: u64,
    /// Bytes of the whole snapshot.
    pub total_bytes: u64,
    /// Hash that names the state.
    pub state_hash: [u8; 32],
}

/// `open` of both kinds: configuration text, private data folder, out: handle.
pub type OpenFn = unsafe extern "C" fn(*const u8, usize, *const u8, usize, *mut *mut c_void, *mut Message) -> i32;
/// `close`: ends a handle; never fails.
pub type CloseFn = unsafe extern "C" fn(*mut c_void);
/// `attest`: step, input, out buffer, its capacity, out length.
pub type AttestFn =
    unsafe extern "C" fn(*mut c_void, u32, *const u8, usize, *mut u8, usize, *mut usize, *mut Message) -> i32;
/// `control`: name, input, out buffer, its capacity, out length.
pub type ControlFn = unsafe extern "C" fn(
    *mut c_void,
    *const u8,
    usize,
    *const u8,
    usize,
    *mut u8,
    usize,
    *mut usize,
    *mut Message,
) -> i32;
/// `health` of both kinds.
pub type HealthFn = unsafe extern "C" fn(*mut c_void, *mut RawHealth, *mut Message) -> i32;

/// The table of a vault. `attest` and `control` may be null; all else must be there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct VaultTable {
    /// Identification; see [`Header`].
    pub header: Header,
    /// Opens the vault of a private data folder; makes what is missing.
    pub open: Option<OpenFn>,
    /// Ends a handle.
    pub close: Option<CloseFn>,
    /// What seals, and what it does not protect against.
    pub describe: Option<unsafe extern "C" fn(*mut c_void, *mut RawVaultDescription, *mut Message) -> i32>,
    /// The identity's public key: wanted algorithm (0 = any), create flag, out: algorithm, key, capacity, length.
    pub identity_public:
        Option<unsafe extern "C" fn(*mut c_void, u32, u32, *mut u32, *mut u8, usize, *mut usize, *mut Message) -> i32>,
    /// Signs a message by the identity key: message, length, out: [`SIGNATURE_BYTES`].
    pub identity_sign: Option<unsafe extern "C" fn(*mut c_void, *const u8, usize, *mut u8, usize, *mut Message) -> i32>,
    /// Evidence of the chip about itself; the steps are the plugin's own. May be null.
    pub attest: Option<AttestFn>,
    /// The committed and the staged generation.
    pub generation: Option<unsafe extern "C" fn(*mut c_void, *mut RawGeneration, *mut Message) -> i32>,
    /// Makes a tier's key of the next generation, stores it durably, gives it out; it opens only after `commit`.
    pub stage: Option<unsafe extern "C" fn(*mut c_void, u64, u32, *mut u8, usize, *mut Message) -> i32>,
    /// The key of a tier of the committed generation.
    pub open_key: Option<unsafe extern "C" fn(*mut c_void, u64, u32, *mut u8, usize, *mut Message) -> i32>,
    /// Makes the staged generation the only one that opens, destroys the old one; atomic, durable, idempotent.
    pub commit: Option<unsafe extern "C" fn(*mut c_void, u64, *mut Message) -> i32>,
    /// Destroys what is staged; no error when nothing is.
    pub discard_staged: Option<unsafe extern "C" fn(*mut c_void, *mut Message) -> i32>,
    /// Random bytes of the vault's own source, at most [`RANDOM_BYTES_MAX`].
    pub random: Option<unsafe extern "C" fn(*mut c_void, *mut u8, usize, *mut Message) -> i32>,
    /// State of what is under the plugin.
    pub health: Option<HealthFn>,
    /// Management of the plugin's own (PCR policy and approval, unlock); names are the plugin's own. May be null.
    pub control: Option<ControlFn>,
}

/// The table of a ledger backend. `wait`, `lease` and `control` may be null; all else must be there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct BackendTable {
    /// Identification; see [`Header`].
    pub header: Header,
    /// Opens the store of a private data folder; makes what is missing.
    pub open: Option<OpenFn>,
    /// Ends a handle.
    pub close: Option<CloseFn>,
    /// What this backend promises.
    pub caps: Option<unsafe extern "C" fn(*mut c_void, *mut RawCaps, *mut Message) -> i32>,
    /// The head.
    pub head: Option<unsafe extern "C" fn(*mut c_void, *mut Head, *mut Message) -> i32>,
    /// Compare-and-swap of the head with a bundle: expected, new, bundle, length, out: actual head on conflict.
    pub append_if_head: Option<
        unsafe extern "C" fn(*mut c_void, *const Head, *const Head, *const u8, usize, *mut Head, *mut Message) -> i32,
    >,
    /// Bundles from the one that contains an entry on: entry, limit, out buffer, capacity, out length, out: first
    /// entry that is left when pruned.
    pub read:
        Option<unsafe extern "C" fn(*mut c_void, u64, u64, *mut u8, usize, *mut usize, *mut u64, *mut Message) -> i32>,
    /// Hint: returns when the size is above a number or the time (ms) is over. May be null.
    pub wait: Option<unsafe extern "C" fn(*mut c_void, u64, u64, *mut Head, *mut Message) -> i32>,
    /// Keeps a signed checkpoint of a size, for ever.
    pub put_checkpoint: Option<unsafe extern "C" fn(*mut c_void, u64, *const u8, usize, *mut Message) -> i32>,
    /// The newest checkpoint of at most a size: size, out: its size, buffer, capacity, length.
    pub latest_checkpoint:
        Option<unsafe extern "C" fn(*mut c_void, u64, *mut u64, *mut u8, usize, *mut usize, *mut Message) -> i32>,
    /// One piece of a snapshot: info, offset, bytes, length. The piece that completes it publishes it.
    pub put_snapshot:
        Option<unsafe extern "C" fn(*mut c_void, *const SnapshotInfo, u64, *const u8, usize, *mut Message) -> i32>,
    /// One piece of the newest snapshot of at most a size: size, offset, out: info, buffer, capacity, length.
    pub get_snapshot: Option<
        unsafe extern "C" fn(*mut c_void, u64, u64, *mut SnapshotInfo, *mut u8, usize, *mut usize, *mut Message) -> i32,
    >,
    /// Drops bundles wholly below an entry; refused unless a stored checkpoint and snapshot cover it.
    pub prune: Option<unsafe extern "C" fn(*mut c_void, u64, *mut Message) -> i32>,
    /// State of what is under the plugin.
    pub health: Option<HealthFn>,
    /// Takes or renews a named lease: name, length, holder id (16 bytes), time to live (ms, 0 = give back), out:
    /// 1 when held by that holder. May be null.
    pub lease:
        Option<unsafe extern "C" fn(*mut c_void, *const u8, usize, *const u8, u64, *mut u32, *mut Message) -> i32>,
    /// Management of the plugin's own. May be null.
    pub control: Option<ControlFn>,
}

// SAFETY: a table is immutable data: numbers, pointers to 'static text and function pointers; sharing it between
// threads shares nothing that changes.
unsafe impl Sync for VaultTable {}
// SAFETY: as for `VaultTable`.
unsafe impl Sync for BackendTable {}

/// Cuts a zero-padded text field; invalid UTF-8 becomes replacement characters.
pub fn text_of(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Fills a zero-padded text field, cutting at a character boundary; gives the length of the text that fitted.
pub fn fill_text(field: &mut [u8], text: &str) -> usize {
    let mut end = text.len().min(field.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    field.fill(0);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    end
}
