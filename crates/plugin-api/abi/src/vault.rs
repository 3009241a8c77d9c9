//! The vault kind, from the plugin's side: a safe trait and the table made of it.

use crate::carry::{self, Handle};
use crate::guest::*;
use crate::table::*;
use crate::{Status, fill_text};
use core::ffi::c_void;
use std::path::Path;

/// What seals a device's keys. One writer; calls come one at a time.
///
/// Generations: `current` starts at 0, when nothing opens. `stage(current + 1, tier, ..)` for each tier that is
/// wanted, then `commit(current + 1)`: from then on exactly those keys open and no others, whatever crashes when.
pub trait VaultGuest: Sized + Send + 'static {
    /// Short name, `[a-z0-9-]`, 1 to 32 bytes.
    const NAME: &'static str;
    /// Version for people.
    const VERSION: &'static str;
    /// True when the plugin opens network connections other than unix sockets.
    const NEEDS_NETWORK: bool = false;

    /// Opens the vault whose files are in `data_dir` (mode 0700, this plugin's alone), making what is missing.
    ///
    /// # Errors
    /// `Config`, `Auth`, `Busy`, `Corrupt`, `Io`, `VaultLost`, `PolicyPending`.
    fn open(config: &str, data_dir: &Path) -> Result<Self, GuestError>;

    /// What seals, and what it does not protect against.
    ///
    /// # Errors
    /// `Io` when the chip or token does not answer.
    fn describe(&mut self) -> Result<VaultDescription, GuestError>;

    /// The identity's public key. `alg` `None` means whichever there is (or the preferred one, when made).
    ///
    /// # Errors
    /// `NoIdentity` when there is none and `create` is false; `Unsupported` when there is one of another algorithm.
    fn identity_public(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError>;

    /// Signs `message` (whole, not a digest).
    ///
    /// # Errors
    /// `NoIdentity`.
    fn identity_sign(&mut self, message: &[u8], signature: &mut [u8; SIGNATURE_BYTES]) -> Result<(), GuestError>;

    /// Evidence of the chip about itself; `step` and formats are the plugin's own, described on its page.
    ///
    /// # Errors
    /// `Unsupported` where there is no chip.
    fn attest(&mut self, _step: u32, _input: &[u8]) -> Result<Vec<u8>, GuestError> {
        Err(GuestError::unsupported("attest"))
    }

    /// The committed and the staged generation.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    fn generation(&mut self) -> Result<Generations, GuestError>;

    /// Makes `tier`'s key of generation `next` (= current + 1), durably; writes it into `key`. Staging a tier again
    /// replaces its staged key. It opens only after `commit`.
    ///
    /// # Errors
    /// `Invalid` for another `next`; `Unsupported` for a tier that is not on offer.
    fn stage(&mut self, next: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError>;

    /// The key of `tier` in the committed generation.
    ///
    /// # Errors
    /// `NoGeneration` for any other generation; `NotFound` when the tier was not staged under this one.
    fn open_key(&mut self, generation: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError>;

    /// Makes the staged generation the only one that opens and destroys the old one. Atomic and durable; when it
    /// already is the committed one: done.
    ///
    /// # Errors
    /// `NoGeneration` when `next` is neither staged nor committed.
    fn commit(&mut self, next: u64) -> Result<(), GuestError>;

    /// Destroys what is staged, if anything.
    ///
    /// # Errors
    /// `Io`.
    fn discard_staged(&mut self) -> Result<(), GuestError>;

    /// Fills `out` (at most [`RANDOM_BYTES_MAX`]) from the vault's own source.
    ///
    /// # Errors
    /// `Io`.
    fn random(&mut self, out: &mut [u8]) -> Result<(), GuestError>;

    /// State of what is under the plugin.
    ///
    /// # Errors
    /// Only when not even that can be told.
    fn health(&mut self) -> Result<Health, GuestError>;

    /// Management of the plugin's own, described on its page.
    ///
    /// # Errors
    /// `Unsupported` for an unknown name.
    fn control(&mut self, name: &str, _input: &[u8]) -> Result<Vec<u8>, GuestError> {
        Err(GuestError::unsupported(name))
    }
}

impl VaultTable {
    /// The table of a guest, made at compile time.
    pub const fn of<T: VaultGuest>() -> VaultTable {
        VaultTable {
            header: Header {
                size: size_of::<VaultTable>() as u32,
                abi_version: ABI_VERSION,
                kind: KIND_VAULT,
                flags: if T::NEEDS_NETWORK { FLAG_NEEDS_NETWORK } else { 0 },
                name: T::NAME.as_ptr(),
                name_len: T::NAME.len(),
                version: T::VERSION.as_ptr(),
                version_len: T::VERSION.len(),
            },
            open: Some(open::<T>),
            close: Some(close::<T>),
            describe: Some(describe::<T>),
            identity_public: Some(identity_public::<T>),
            identity_sign: Some(identity_sign::<T>),
            attest: Some(attest::<T>),
            generation: Some(generation::<T>),
            stage: Some(stage::<T>),
            open_key: Some(open_key::<T>),
            commit: Some(commit::<T>),
            discard_staged: Some(discard_staged::<T>),
            random: Some(random::<T>),
            health: Some(health::<T>),
            control: Some(control::<T>),
        }
    }
}

/// Exports a [`VaultGuest`] as this library's plugin.
#[macro_export]
macro_rules! export_vault {
    ($guest:ty) => {
        static MAYFLY_PLUGIN_TABLE: $crate::VaultTable = $crate::VaultTable::of::<$guest>();

        /// The plugin's table; see `mayfly_plugin.h`.
        #[unsafe(no_mangle)]
        pub extern "C" fn mayfly_plugin_v1() -> *const $crate::Header {
            (&raw const MAYFLY_PLUGIN_TABLE).cast()
        }
    };
}

fn tier(code: u32) -> Result<Tier, GuestError> {
    Tier::from_code(code).ok_or_else(|| GuestError::new(Status::Invalid, format!("no tier {code}")))
}

// Each function below is called by the host by the rules of the table (pointers valid for their lengths during the
// call, handle live, one call at a time), which is what the `SAFETY` lines rest on.

/// Also used by the backend kind: configuration and folder from C, guest to a handle.
pub(crate) unsafe fn open_guest<T>(
    config: (*const u8, usize),
    data_dir: (*const u8, usize),
    handle: *mut *mut c_void,
    message: *mut Message,
    make: impl FnOnce(&str, &Path) -> Result<T, GuestError>,
) -> i32 {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::run(message, || {
            let handle = carry::target("handle", handle)?;
            *handle = core::ptr::null_mut();
            let config = carry::input("config", config.0, config.1, CONFIG_BYTES_MAX)?;
            let config = core::str::from_utf8(config)
                .map_err(|_| GuestError::new(Status::Config, "the configuration is not UTF-8"))?;
            let dir = carry::input("data folder", data_dir.0, data_dir.1, PATH_BYTES_MAX)?;
            *handle = Handle::into_raw(make(config, Path::new(std::ffi::OsStr::from_bytes(dir)))?);
            Ok(())
        })
    }
}

unsafe extern "C" fn open<T: VaultGuest>(
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

unsafe extern "C" fn close<T: VaultGuest>(handle: *mut c_void) {
    // SAFETY: the rules of the table: a live handle of ours, given back once.
    unsafe { carry::close::<T>(handle) }
}

unsafe extern "C" fn describe<T: VaultGuest>(
    handle: *mut c_void,
    out: *mut RawVaultDescription,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let out = carry::target("description", out)?;
            if (out.size as usize) < size_of::<RawVaultDescription>() {
                return Err(GuestError::new(Status::Invalid, "describe: the caller's struct is too small"));
            }
            let description = guest.describe()?;
            out.software_only = description.software_only.into();
            out.identity_algs = description.identity_algs.iter().fold(0, |bits, alg| bits | 1 << *alg as u32);
            out.tiers = description.tiers.iter().fold(0, |bits, tier| bits | 1 << *tier as u32);
            fill_text(&mut out.hardware, &description.hardware);
            fill_text(&mut out.security_note, &description.security_note);
            Ok(())
        })
    }
}

unsafe extern "C" fn identity_public<T: VaultGuest>(
    handle: *mut c_void,
    alg: u32,
    create: u32,
    alg_out: *mut u32,
    key: *mut u8,
    capacity: usize,
    length: *mut usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let alg_out = carry::target("algorithm", alg_out)?;
            let wanted = match alg {
                0 => None,
                code => Some(
                    Alg::from_code(code)
                        .ok_or_else(|| GuestError::new(Status::Unsupported, format!("no identity algorithm {code}")))?,
                ),
            };
            let identity = guest.identity_public(wanted, create != 0)?;
            *alg_out = identity.alg as u32;
            carry::copy_out(&identity.public, key, capacity, length)
        })
    }
}

unsafe extern "C" fn identity_sign<T: VaultGuest>(
    handle: *mut c_void,
    data: *const u8,
    data_len: usize,
    signature: *mut u8,
    signature_len: usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let data = carry::input("message", data, data_len, SIGN_MESSAGE_BYTES_MAX)?;
            guest.identity_sign(data, carry::output("signature", signature, signature_len)?)
        })
    }
}

unsafe extern "C" fn attest<T: VaultGuest>(
    handle: *mut c_void,
    step: u32,
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
            let data = carry::input("input", data, data_len, BLOB_BYTES_MAX)?;
            carry::copy_out(&guest.attest(step, data)?, out, capacity, length)
        })
    }
}

unsafe extern "C" fn generation<T: VaultGuest>(
    handle: *mut c_void,
    out: *mut RawGeneration,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            let out = carry::target("generation", out)?;
            let generations = guest.generation()?;
            *out = RawGeneration { current: generations.current, staged: generations.staged.unwrap_or(0) };
            Ok(())
        })
    }
}

unsafe extern "C" fn stage<T: VaultGuest>(
    handle: *mut c_void,
    next: u64,
    tier_code: u32,
    key: *mut u8,
    key_len: usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            guest.stage(next, tier(tier_code)?, carry::output("key", key, key_len)?)
        })
    }
}

unsafe extern "C" fn open_key<T: VaultGuest>(
    handle: *mut c_void,
    generation: u64,
    tier_code: u32,
    key: *mut u8,
    key_len: usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            guest.open_key(generation, tier(tier_code)?, carry::output("key", key, key_len)?)
        })
    }
}

unsafe extern "C" fn commit<T: VaultGuest>(handle: *mut c_void, next: u64, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe { carry::call::<T>(handle, message, |guest| guest.commit(next)) }
}

unsafe extern "C" fn discard_staged<T: VaultGuest>(handle: *mut c_void, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe { carry::call::<T>(handle, message, T::discard_staged) }
}

unsafe extern "C" fn random<T: VaultGuest>(
    handle: *mut c_void,
    out: *mut u8,
    out_len: usize,
    message: *mut Message,
) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe {
        carry::call::<T>(handle, message, |guest| {
            guest.random(carry::output_slice("random", out, out_len, RANDOM_BYTES_MAX)?)
        })
    }
}

unsafe extern "C" fn health<T: VaultGuest>(handle: *mut c_void, out: *mut RawHealth, message: *mut Message) -> i32 {
    // SAFETY: the rules of the table, see above.
    unsafe { carry::call::<T>(handle, message, |guest| carry::write_health(&guest.health()?, out)) }
}

unsafe extern "C" fn control<T: VaultGuest>(
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

pub(crate) fn control_name(name: &[u8]) -> Result<&str, GuestError> {
    core::str::from_utf8(name).map_err(|_| GuestError::new(Status::Invalid, "name: not UTF-8"))
}
