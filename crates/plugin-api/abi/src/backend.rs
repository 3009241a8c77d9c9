//! The ledger backend kind, from the plugin's side: a safe trait and the table made of it.

use crate::Status;
use crate::carry;
use crate::guest::*;
use crate::table::*;
use crate::vault::{control_name, open_guest};
use core::ffi::c_void;
use std::path::Path;

/// What a backend promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// An acknowledged append survives power loss (as far as the disk is honest).
    pub durable_on_ack: bool,
    /// `head` never answers with an older head than one already acknowledged to anybody.
    pub linearizable: bool,
    /// `wait` is offered.
    pub has_wait: bool,
    /// Largest bundle in bytes, at most [`BUNDLE_BYTES_MAX`].
    pub bundle_bytes_max: u64,
    /// Bytes that the store can hold, where there is a limit other than the disk.
    pub capacity_bytes: Option<u64>,
}

/// One stored bundle: the entries `first..end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Index of its first entry.
    pub first: u64,
    /// Index after its last entry.
    pub end: u64,
    /// The hash that its append carried.
    pub bundle_hash: [u8; 32],
    /// The bytes that were appended.
    pub bytes: Vec<u8>,
}

/// A stored checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Number of entries that it is about.
    pub size: u64,
    /// The signed bytes.
    pub bytes: Vec<u8>,
}

/// A piece of a stored snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// What it is a piece of.
    pub info: SnapshotInfo,
    /// The bytes from the offset that was asked for; empty at the end.
    pub bytes: Vec<u8>,
}

/// Whether a lease is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// By the one who asked, until its time is over.
    Held,
    /// By somebody else.
    Taken,
}

/// The ordered store under a gateway. One call at a time. It is trusted for order and storage only, and knows
/// nothing of what is in a bundle.
pub trait BackendGuest: Sized + Send + 'static {
    /// Short name, `[a-z0-9-]`, 1 to 32 bytes.
    const NAME: &'static str;
    /// Version for people.
    const VERSION: &'static str;
    /// True when the plugin opens network connections other than unix sockets.
    const NEEDS_NETWORK: bool = false;
    /// True when [`BackendGuest::wait`] is there; `caps` says the same.
    const HAS_WAIT: bool = false;
    /// True when [`BackendGuest::lease`] is there.
    const HAS_LEASE: bool = false;

    /// Opens the store whose files (if any) are in `data_dir`, making what is missing.
    ///
    /// # Errors
    /// `Config`, `Busy` (another process has it), `Corrupt`, `Io`.
    fn open(config: &str, data_dir: &Path) -> Result<Self, GuestError>;

    /// What this backend promises.
    ///
    /// # Errors
    /// None that are usual.
    fn caps(&mut self) -> Result<Caps, GuestError>;

    /// The head.
    ///
    /// # Errors
    /// `Io`, `Transient`.
    fn head(&mut self) -> Result<Head, GuestError>;

    /// Stores `bundle` as entries `expected.size..new.size` and makes `new` the head, if the head is `expected`
    /// (size, epoch and hash). `Ok(None)`: done and durable. `Ok(Some(actual))`: conflict, nothing changed. An empty
    /// bundle with equal sizes and hash and a greater epoch only changes the epoch.
    ///
    /// # Errors
    /// `Unknown` when it may or may not have been stored; `ReadOnly`, `TooLarge`, `Invalid` when it certainly was not.
    fn append_if_head(&mut self, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Option<Head>, GuestError>;

    /// Whole bundles in order from the one that contains `from`, about `bytes_max` bytes of them but at least one
    /// when there is any. `Ok(Err(first))`: pruned, `first` is the first entry that is left.
    ///
    /// # Errors
    /// `Corrupt` when a stored bundle is damaged.
    fn read(&mut self, from: u64, bytes_max: usize) -> Result<Result<Vec<Bundle>, u64>, GuestError>;

    /// Hint: returns when the size is above `above` or after `timeout_ms`; may be early, late or spurious.
    ///
    /// # Errors
    /// `Unsupported` where there is none.
    fn wait(&mut self, _above: u64, _timeout_ms: u64) -> Result<Head, GuestError> {
        Err(GuestError::unsupported("wait"))
    }

    /// Keeps a signed checkpoint; the same size again replaces it.
    ///
    /// # Errors
    /// `ReadOnly`, `TooLarge`.
    fn put_checkpoint(&mut self, size: u64, bytes: &[u8]) -> Result<(), GuestError>;

    /// The newest checkpoint of at most `size`.
    ///
    /// # Errors
    /// `Corrupt`.
    fn latest_checkpoint(&mut self, size: u64) -> Result<Option<Checkpoint>, GuestError>;

    /// A piece of a snapshot. Offset 0 starts (anew); the others follow without a gap; the piece that reaches
    /// `total_bytes` publishes the whole.
    ///
    /// # Errors
    /// `Invalid` for a gap, `ReadOnly`, `TooLarge`.
    fn put_snapshot(&mut self, info: &SnapshotInfo, offset: u64, bytes: &[u8]) -> Result<(), GuestError>;

    /// A piece (at most `bytes_max`) of the newest published snapshot of at most `size`.
    ///
    /// # Errors
    /// `Corrupt`.
    fn get_snapshot(&mut self, size: u64, offset: u64, bytes_max: usize) -> Result<Option<Snapshot>, GuestError>;

    /// Drops bundles wholly below `up_to`.
    ///
    /// # Errors
    /// `Invalid` unless a stored checkpoint and a published snapshot of at least `up_to` are there.
    fn prune(&mut self, up_to: u64) -> Result<(), GuestError>;

    /// State of what is under the plugin.
    ///
    /// # Errors
    /// Only when not even that can be told.
    fn health(&mut self) -> Result<Health, GuestError>;

    /// Takes or renews a named lease; `ttl_ms` 0 gives it back.
    ///
    /// # Errors
    /// `Unsupported` where there is none.
    fn lease(&mut self, _name: &str, _holder: &[u8; 16], _ttl_ms: u64) -> Result<Lease, GuestError> {
        Err(GuestError::unsupported("lease"))
    }

    /// Management of the plugin's own, described on its page.
    ///
    /// # Errors
    /// `Unsupported` for an unknown name.
    fn control(&mut self, name: &str, _input: &[u8]) -> Result<Vec<u8>, GuestError> {
        Err(GuestError::unsupported(name))
    }
}

impl BackendTable {
    /// The table of a guest, made at compile time.
    pub const fn of<T: BackendGuest>() -> BackendTable {
        BackendTable {
            header: Header {
                size: size_of::<BackendTable>() as u32,
                abi_version: ABI_VERSION,
                kind: KIND_BACKEND,
                flags: if T::NEEDS_NETWORK { FLAG_NEEDS_NETWORK } else { 0 },
                name: T::NAME.as_ptr(),
                name_len: T::NAME.len(),
                version: T::VERSION.as_ptr(),
                version_len: T::VERSION.len(),
            },
            open: Some(open::<T>),
            close: Some(close::<T>),
            caps: Some(caps::<T>),
            head: Some(head::<T>),
            append_if_head: Some(append_if_head::<T>),
            read: Some(read::<T>),
            wait: if T::HAS_WAIT { Some(wait::<T>) } else { None },
            put_checkpoint: Some(put_checkpoint::<T>),
            latest_checkpoint: Some(latest_checkpoint::<T>),
            put_snapshot: Some(put_snapshot::<T>),
            get_snapshot: Some(get_snapshot::<T>),
            prune: Some(prune::<T>),
            health: Some(health::<T>),
            lease: if T::HAS_LEASE { Some(lease::<T>) } else { None },
            control: Some(control::<T>),
        }
    }
}

/// Exports a [`BackendGuest`] as this library's plugin.
#[macro_export]
macro_rules! export_backend {
    ($guest:ty) => {
        static MAYFLY_PLUGIN_TABLE: $crate::BackendTable = $crate::BackendTable::of::<$guest>();

        /// The plugin's table; see `mayfly_plugin.h`.
        #[unsafe(no_mangle)]
        pub extern "C" fn mayfly_plugin_v1() -> *const $crate::Header {
            (&raw const MAYFLY_PLUGIN_TABLE).cast()
        }
    };
}

/// Lays bundles out as `read` gives them: first, end (u64 little-endian), hash, length (u64), bytes.
fn encode_bundles(bundles: &[Bundle]) -> Vec<u8> {
    let total = bundles.iter().map(|bundle| READ_PREFIX_BYTES + bundle.bytes.len()).sum();
    let mut out = Vec::with_capacity(total);
    for bundle in bundles {
        out.extend_from_slice(&bundle.first.to_le_bytes());
        out.extend_from_slice(&bundle.end.to_le_bytes());
        out.extend_from_slice(&bundle.bundle_hash);
        out.extend_from_slice(&(bundle.bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(&bundle.bytes);
    }
    out
}

// Each function below is called by the host by the rules of the table (pointers valid for their lengths during the
// call, handle live, one call at a time), which is what the `SAFETY` lines rest on.

unsafe extern "C" fn open<T: BackendGuest>(
    config: *const u8,
    config_len: usize,
    data_dir: *const u8,
    data_dir_len: usize,
    handle: *mut *mut c_void,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe { open_guest((config, config_len), (data_dir, data_dir_len), handle, message, T::open) }
}

unsafe extern "C" fn close<T: BackendGuest>(handle: *mut c_void) {
    // SAFETY: the rules of the table: a live handle of ours, given back once.
    unsafe { carry::close::<T>(handle) }
}

unsafe extern "C" fn caps<T: BackendGuest>(handle: *mut c_void, out: *mut RawCaps, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let out = carry::target("caps", out)?;
            if (out.size as usize) < size_of::<RawCaps>() {
                return Err(GuestError::new(Status::Invalid, "caps: the caller's struct is too small"));
            }
            let caps = guest.caps()?;
            let bit = |set: bool, flag: u32| if set { flag } else { 0 };
            out.flags = bit(caps.durable_on_ack, CAP_DURABLE_ON_ACK)
                | bit(caps.linearizable, CAP_LINEARIZABLE)
                | bit(caps.has_wait, CAP_WAIT);
            out.bundle_bytes_max = caps.bundle_bytes_max;
            out.capacity_bytes = caps.capacity_bytes.unwrap_or(u64::MAX);
            Ok(())
        })
    }
}

unsafe extern "C" fn head<T: BackendGuest>(handle: *mut c_void, out: *mut Head, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            *carry::target("head", out)? = guest.head()?;
            Ok(())
        })
    }
}

unsafe extern "C" fn append_if_head<T: BackendGuest>(
    handle: *mut c_void,
    expected: *const Head,
    new: *const Head,
    bundle: *const u8,
    bundle_len: usize,
    actual: *mut Head,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let expected = *carry::target("expected head", expected.cast_mut())?;
            let new = *carry::target("new head", new.cast_mut())?;
            let actual = carry::target("actual head", actual)?;
            let bundle = carry::input("bundle", bundle, bundle_len, BUNDLE_BYTES_MAX)?;
            match guest.append_if_head(&expected, &new, bundle)? {
                None => {
                    *actual = new;
                    Ok(())
                }
                Some(head) => {
                    *actual = head;
                    Err(GuestError::new(Status::Conflict, "the head is another one"))
                }
            }
        })
    }
}

unsafe extern "C" fn read<T: BackendGuest>(
    handle: *mut c_void,
    from: u64,
    bytes_max: u64,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
    first: *mut u64,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let first = carry::target("first", first)?;
            let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(capacity);
            match guest.read(from, bytes_max)? {
                Ok(bundles) => carry::copy_out(&encode_bundles(&bundles), out, capacity, length),
                Err(left) => {
                    *first = left;
                    Err(GuestError::new(Status::Pruned, format!("entries below {left} were pruned")))
                }
            }
        })
    }
}

unsafe extern "C" fn wait<T: BackendGuest>(
    handle: *mut c_void,
    above: u64,
    timeout_ms: u64,
    out: *mut Head,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            *carry::target("head", out)? = guest.wait(above, timeout_ms)?;
            Ok(())
        })
    }
}

unsafe extern "C" fn put_checkpoint<T: BackendGuest>(
    handle: *mut c_void,
    size: u64,
    data: *const u8,
    data_len: usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            guest.put_checkpoint(size, carry::input("checkpoint", data, data_len, CHECKPOINT_BYTES_MAX)?)
        })
    }
}

unsafe extern "C" fn latest_checkpoint<T: BackendGuest>(
    handle: *mut c_void,
    size: u64,
    size_out: *mut u64,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let size_out = carry::target("size", size_out)?;
            let checkpoint = guest
                .latest_checkpoint(size)?
                .ok_or_else(|| GuestError::new(Status::NotFound, "no checkpoint of that size or below"))?;
            *size_out = checkpoint.size;
            carry::copy_out(&checkpoint.bytes, out, capacity, length)
        })
    }
}

unsafe extern "C" fn put_snapshot<T: BackendGuest>(
    handle: *mut c_void,
    info: *const SnapshotInfo,
    offset: u64,
    data: *const u8,
    data_len: usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let info = *carry::target("snapshot", info.cast_mut())?;
            guest.put_snapshot(&info, offset, carry::input("piece", data, data_len, SNAPSHOT_CHUNK_BYTES_MAX)?)
        })
    }
}

unsafe extern "C" fn get_snapshot<T: BackendGuest>(
    handle: *mut c_void,
    size: u64,
    offset: u64,
    info: *mut SnapshotInfo,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let info = carry::target("snapshot", info)?;
            let snapshot = guest
                .get_snapshot(size, offset, capacity.min(SNAPSHOT_CHUNK_BYTES_MAX))?
                .ok_or_else(|| GuestError::new(Status::NotFound, "no snapshot of that size or below"))?;
            *info = snapshot.info;
            carry::copy_out(&snapshot.bytes, out, capacity, length)
        })
    }
}

unsafe extern "C" fn prune<T: BackendGuest>(handle: *mut c_void, up_to: u64, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe { carry::call::<T>(handle, message, |guest| guest.prune(up_to)) }
}

unsafe extern "C" fn health<T: BackendGuest>(handle: *mut c_void, out: *mut RawHealth, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe { carry::call::<T>(handle, message, |guest| carry::write_health(&guest.health()?, out)) }
}

unsafe extern "C" fn lease<T: BackendGuest>(
    handle: *mut c_void,
    name: *const u8,
    name_len: usize,
    holder: *const u8,
    ttl_ms: u64,
    held: *mut u32,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above; a holder id has 16 bytes.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let held = carry::target("held", held)?;
            let name = control_name(carry::input("name", name, name_len, LEASE_NAME_BYTES_MAX)?)?;
            let holder: [u8; 16] = carry::input("holder", holder, 16, 16)?
                .try_into()
                .map_err(|_| GuestError::new(Status::Invalid, "holder: not 16 bytes"))?;
            *held = (guest.lease(name, &holder, ttl_ms)? == Lease::Held).into();
            Ok(())
        })
    }
}

unsafe extern "C" fn control<T: BackendGuest>(
    handle: *mut c_void,
    name: *const u8,
    name_len: usize,
    data: *const u8,
    data_len: usize,
    out: *mut u8,
    capacity: usize,
    length: *mut usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let name = control_name(carry::input("name", name, name_len, NAME_BYTES_MAX)?)?;
            let data = carry::input("input", data, data_len, BLOB_BYTES_MAX)?;
            carry::copy_out(&guest.control(name, data)?, out, capacity, length)
        })
    }
}
