//! The vendor's library: is its file safe to run, loading it, finding the token.
//!
//! It runs inside the plugin's host process, which is there to be hurt by it: whatever it does, hanging included, it
//! does to that process only.

use crate::config::Config;
use crate::error;
use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::slot::{Slot, TokenInfo};
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::config::refuse;
use sha2::{Digest, Sha256};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest library that is hashed.
const LIBRARY_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Most tokens that a message lists.
const LISTED_MAX: usize = 8;

/// The loaded, initialised library.
pub(crate) struct Module {
    library: Pkcs11,
}

/// A token that is present and is the wanted one.
pub(crate) struct Present {
    pub(crate) slot: Slot,
    pub(crate) info: TokenInfo,
}

impl Module {
    /// Checks, loads and initialises the library.
    pub(crate) fn load(config: &Config) -> Result<Module, GuestError> {
        let path = checked_path(config)?;
        let refusal = |error| {
            let text = format!("PKCS#11 library {}: {}", path.display(), error::name(&error));
            GuestError::new(error::status(&error), text)
        };
        let library = Pkcs11::new(&path).map_err(refusal)?;
        initialize(&library).map_err(refusal)?;
        Ok(Module { library })
    }

    /// The library.
    pub(crate) fn library(&self) -> &Pkcs11 {
        &self.library
    }

    /// C_Finalize and C_Initialize: many libraries see a token or a network connection that came back only then.
    pub(crate) fn begin_again(&self) -> Result<(), Error> {
        self.library.clone().finalize()?;
        initialize(&self.library)
    }

    /// Ends the library's work.
    pub(crate) fn end(&self) {
        // the process ends next; a library that cannot finalise changes nothing about that
        let _ = self.library.clone().finalize();
    }

    /// The one token that the configuration means.
    pub(crate) fn find(&self, config: &Config) -> Result<Present, GuestError> {
        let slots = self.library.get_slots_with_token().map_err(error::refusal("looking for tokens"))?;
        let mut found = Vec::new();
        let mut others = Vec::new();
        for slot in slots {
            // a slot whose token does not answer is not the one; a reader next to ours may be in use
            let Ok(info) = self.library.get_token_info(slot) else { continue };
            let label = info.label().trim_end_matches(['\0', ' ']);
            let serial = info.serial_number().trim_end_matches(['\0', ' ']);
            let wanted = |wish: &Option<String>, text: &str| wish.as_ref().is_none_or(|wish| wish == text);
            if wanted(&config.token_label, label) && wanted(&config.token_serial, serial) {
                found.push(Present { slot, info });
            } else if others.len() < LISTED_MAX && info.token_initialized() {
                others.push(format!("'{label}' (serial number {serial})"));
            }
        }
        match (found.pop(), found.len()) {
            (Some(present), 0) => Ok(present),
            (Some(_), more) => {
                let text = format!("{} tokens are called so: set token_serial; wanted: {}", more + 1, config.wanted());
                Err(refuse(text))
            }
            (None, _) => {
                let present = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
                let text = format!("{} is not there; tokens present: {present}", config.wanted());
                Err(GuestError::new(Status::Transient, text))
            }
        }
    }
}

fn initialize(library: &Pkcs11) -> Result<(), Error> {
    match library.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        other => other,
    }
}

/// The library's real path, when nobody but root and us can put another file there.
///
/// The configured path is resolved first, and what is loaded is the resolved one. Each of its components belongs to
/// root or us and is writable by nobody else, so it is still the same file when it is loaded.
fn checked_path(config: &Config) -> Result<PathBuf, GuestError> {
    let bad = |path: &Path, what: &str| refuse(format!("PKCS#11 library: {} {what}", path.display()));
    let real = std::fs::canonicalize(&config.module).map_err(|error| bad(&config.module, &format!("({error})")))?;
    for component in real.ancestors() {
        let stat = std::fs::symlink_metadata(component).map_err(|error| bad(component, &format!("({error})")))?;
        if component == real && !stat.is_file() {
            return Err(bad(component, "is not a file"));
        }
        if config.danger_module_path_unchecked {
            continue;
        }
        if stat.uid() != 0 && stat.uid() != rustix::process::geteuid().as_raw() {
            return Err(bad(component, "belongs to another user; it must belong to root or to the agent's user"));
        }
        if stat.mode() & 0o022 != 0 {
            return Err(bad(component, "can be written to by others"));
        }
    }
    if let Some(pin) = &config.module_sha256 {
        let found = sha256_of(&real).map_err(|error| bad(&real, &format!("({error})")))?;
        if !found.eq_ignore_ascii_case(pin) {
            let what = format!(
                "has SHA-256 {found}, module_sha256 is another one; if it was updated on purpose, change module_sha256"
            );
            return Err(bad(&real, &what));
        }
    }
    Ok(real)
}

fn sha256_of(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?.take(LIBRARY_BYTES_MAX);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            count => hasher.update(buffer.get(..count).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn config(path: &Path, more: &str) -> Config {
        Config::parse(&format!("module = '{}'\ntoken_label = 'x'\n{more}", path.display())).unwrap()
    }

    #[test]
    fn paths() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("library.so");
        std::fs::write(&library, "not a library").unwrap();
        let unchecked = "danger_module_path_unchecked = true";
        assert_eq!(checked_path(&config(&library, unchecked)).unwrap(), library.canonicalize().unwrap());
        let text = |config: &Config| checked_path(config).unwrap_err().message;
        std::fs::set_permissions(&library, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert!(text(&config(&library, "")).contains("library.so can be written to by others"));
        assert!(text(&config(dir.path(), unchecked)).contains("is not a file"));
        assert!(text(&config(&dir.path().join("none"), "")).contains("No such file"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&library, &link).unwrap();
        assert!(text(&config(&link, "")).contains("library.so can be written to"), "the target is judged");
    }

    #[test]
    fn pins() {
        let dir = tempfile::tempdir().unwrap();
        let library = dir.path().join("library.so");
        std::fs::write(&library, "abc").unwrap();
        // FIPS 180-4's example
        let hash = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        let more = |pin: &str| format!("danger_module_path_unchecked = true\nmodule_sha256 = '{pin}'");
        checked_path(&config(&library, &more(hash))).unwrap();
        let other = hash.replace('B', "C");
        assert!(checked_path(&config(&library, &more(&other))).unwrap_err().message.contains("has SHA-256 ba7816bf"));
    }

    #[test]
    fn what_is_no_library_is_a_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("library.so");
        std::fs::write(&path, "not a library").unwrap();
        let error = Module::load(&config(&path, "danger_module_path_unchecked = true")).err().unwrap();
        assert_eq!(error.status, Status::Config);
        assert!(error.message.contains("library.so"), "{error}");
    }
}
