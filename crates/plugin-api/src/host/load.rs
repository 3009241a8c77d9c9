//! Loading a plugin's library and believing as little of its table as possible.

use super::call::{self, Reply};
use crate::abi::{
    ABI_VERSION, BackendTable, FLAG_NEEDS_NETWORK, Header, KIND_BACKEND, KIND_VAULT, NAME_BYTES_MAX, OpenFn, SYMBOL,
    VaultTable,
};
use crate::codec::is_name;
use crate::config::{Kind, Network};
use core::ffi::c_void;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Largest table that is believed; version 1 is far smaller, later minor versions may grow.
const TABLE_BYTES_MAX: u32 = 4096;

/// An open plugin.
pub(crate) enum Loaded {
    Vault(Open<VaultTable>),
    Backend(Open<BackendTable>),
}

/// A checked table and the handle of its plugin.
pub(crate) struct Open<T> {
    pub(crate) table: T,
    pub(crate) handle: *mut c_void,
}

/// A loaded library whose table was checked.
pub(crate) struct Plugin {
    pub(crate) name: String,
    pub(crate) version: String,
    table: Table,
}

#[derive(Clone, Copy)]
enum Table {
    Vault(VaultTable),
    Backend(BackendTable),
}

/// Loads the library behind `file` and checks its table; `wanted` `None` takes either kind.
pub(crate) fn load(file: BorrowedFd<'_>, wanted: Option<Kind>, network: Network) -> Result<Plugin, String> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    // SAFETY: runs the library's initialisers: that is what this process is for. It was checked by the facade.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| format!("it cannot be loaded: {}", error.to_string().replace(&path, "the library")))?;
    // SAFETY: the symbol's type is fixed by the interface; a library that exports something else under this name is
    // one that this process may be hurt by.
    let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const Header>(SYMBOL) }.map_err(|_| {
        "it has no symbol mayfly_plugin_v1: it is no Mayfly plugin, or one of another version".to_owned()
    })?;
    // SAFETY: as above.
    let header = unsafe { entry() };
    // never unloaded: what it made must not outlive its code, and the process ends with it
    let _ = library.into_raw();
    check(header, wanted, network)
}

fn check(header: *const Header, wanted: Option<Kind>, network: Network) -> Result<Plugin, String> {
    if header.is_null() || !header.is_aligned() {
        return Err("mayfly_plugin_v1 gave no table".to_owned());
    }
    // SAFETY: not null and aligned; by the interface a static table. Size, version, kind come first and are read alone
    // before anything else.
    let [size, version, kind] = unsafe { header.cast::<[u32; 3]>().read() };
    if version != ABI_VERSION {
        return Err(format!("it is made for interface version {version}, this is version {ABI_VERSION}"));
    }
    let table_bytes = match kind {
        KIND_VAULT => size_of::<VaultTable>(),
        KIND_BACKEND => size_of::<BackendTable>(),
        other => return Err(format!("it is of unknown kind {other}")),
    };
    if (size as usize) < size_of::<Header>() || size > TABLE_BYTES_MAX {
        return Err(format!("its table claims {size} bytes"));
    }
    let found = if kind == KIND_VAULT { Kind::Vault } else { Kind::Backend };
    if wanted.is_some_and(|wanted| wanted != found) {
        return Err(format!("it is a {} plugin, not what is configured here", found.word()));
    }
    let readable = table_bytes.min(size as usize);
    let table = if kind == KIND_VAULT {
        // SAFETY: the table has `size` >= `readable` bytes; all-zero bytes are a valid table (null pointers, None).
        let table = unsafe { copy_table::<VaultTable>(header, readable) };
        complete_vault(&table).map_err(|name| format!("its table lacks {name}"))?;
        Table::Vault(table)
    } else {
        // SAFETY: as for the vault table.
        let table = unsafe { copy_table::<BackendTable>(header, readable) };
        complete_backend(&table).map_err(|name| format!("its table lacks {name}"))?;
        Table::Backend(table)
    };
    let header = table.header();
    if header.flags & !FLAG_NEEDS_NETWORK != 0 {
        return Err(format!("its flags {:#x} are unknown", header.flags));
    }
    if header.flags & FLAG_NEEDS_NETWORK != 0 && network == Network::None {
        return Err("it needs the network, which its configuration does not allow (set `network = true`)".to_owned());
    }
    // SAFETY: by the interface static text of that length; null is checked there.
    let name = unsafe { text(header.name, header.name_len) }?;
    if !is_name(&name) {
        return Err("its name is not made of a-z, 0-9 and -".to_owned());
    }
    // SAFETY: as for the name.
    let version = unsafe { text(header.version, header.version_len) }?;
    Ok(Plugin { name, version, table })
}

/// # Safety
/// `header` starts a table of at least `bytes` bytes, `bytes` <= `size_of::<T>()`, and all-zero is a valid `T`.
unsafe fn copy_table<T: Copy>(header: *const Header, bytes: usize) -> T {
    let mut table = core::mem::MaybeUninit::<T>::zeroed();
    // SAFETY: source and destination have `bytes` bytes by the contract above and are different memory; zero-filled
    // before, so all of `T` is initialised.
    unsafe {
        core::ptr::copy_nonoverlapping(header.cast::<u8>(), table.as_mut_ptr().cast::<u8>(), bytes);
        table.assume_init()
    }
}

/// # Safety
/// `start` is null or readable for `length` bytes.
unsafe fn text(start: *const u8, length: usize) -> Result<String, String> {
    if start.is_null() || length > NAME_BYTES_MAX {
        return Err(format!("its name or version is missing or longer than {NAME_BYTES_MAX} bytes"));
    }
    // SAFETY: by the contract above.
    let bytes = unsafe { core::slice::from_raw_parts(start, length) };
    if !bytes.iter().all(|byte| (0x20..0x7f).contains(byte)) {
        return Err("its name or version is not printable".to_owned());
    }
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

macro_rules! first_missing {
    ($table:expr, $($field:ident),+) => {
        [$((stringify!($field), $table.$field.is_none())),+]
            .into_iter()
            .find_map(|(name, missing)| missing.then_some(name))
            .map_or(Ok(()), Err)
    };
}

fn complete_vault(table: &VaultTable) -> Result<(), &'static str> {
    first_missing!(
        table,
        open,
        close,
        describe,
        identity_public,
        identity_sign,
        generation,
        stage,
        open_key,
        commit,
        discard_staged,
        random,
        health
    )
}

fn complete_backend(table: &BackendTable) -> Result<(), &'static str> {
    first_missing!(
        table,
        open,
        close,
        caps,
        head,
        append_if_head,
        read,
        put_checkpoint,
        latest_checkpoint,
        put_snapshot,
        get_snapshot,
        prune,
        health
    )
}

impl Table {
    fn header(&self) -> Header {
        match self {
            Table::Vault(table) => table.header,
            Table::Backend(table) => table.header,
        }
    }

    fn open_fn(&self) -> Option<OpenFn> {
        match self {
            Table::Vault(table) => table.open,
            Table::Backend(table) => table.open,
        }
    }
}

impl Plugin {
    pub(crate) fn kind(&self) -> Kind {
        match self.table {
            Table::Vault(_) => Kind::Vault,
            Table::Backend(_) => Kind::Backend,
        }
    }

    /// Calls the plugin's `open`.
    pub(crate) fn open(self, config: &[u8], data_dir: &[u8]) -> Result<Loaded, Reply> {
        let open = self.table.open_fn().ok_or_else(|| Reply::lie("no open"))?;
        let mut handle = core::ptr::null_mut();
        call::call(|message| {
            // SAFETY: the function of the checked table, with pointers valid for their lengths during the call.
            unsafe { open(config.as_ptr(), config.len(), data_dir.as_ptr(), data_dir.len(), &raw mut handle, message) }
        })?;
        if handle.is_null() {
            return Err(Reply::lie("it opened without a handle"));
        }
        Ok(match self.table {
            Table::Vault(table) => Loaded::Vault(Open { table, handle }),
            Table::Backend(table) => Loaded::Backend(Open { table, handle }),
        })
    }
}

impl Loaded {
    /// Calls the plugin's `close`.
    pub(crate) fn close(self) {
        let (close, handle) = match self {
            Loaded::Vault(open) => (open.table.close, open.handle),
            Loaded::Backend(open) => (open.table.close, open.handle),
        };
        if let Some(close) = close {
            // SAFETY: the live handle of this plugin, given back once.
            unsafe { close(handle) }
        }
    }
}
