//! Where the PIN comes from, and the memory of a refused one.
//!
//! A token counts wrong PINs and locks after a few. So a PIN that was refused once is not tried again, not by this
//! process and not by the next: a marker in the private folder outlives it. It names the source as it was (the file's
//! number and times), nothing of the PIN: a hash of a mistyped PIN would help to guess the right one.

use cryptoki::types::RawAuthPin;
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::Store;
use mayfly_vault_store::config::Source;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Longest PIN. Network tokens take `user:password` here.
pub(crate) const PIN_BYTES_MAX: usize = 256;
/// The marker of a refused PIN.
pub(crate) const REFUSED: &str = "pin-refused";

/// Source of the PIN, and what became of it last time.
pub(crate) struct PinSource {
    place: Option<Source>,
    store: Arc<Store>,
    refused: bool,
}

/// A PIN on its way to the token, and the words that name its source as it is now.
pub(crate) struct Pin {
    bytes: Zeroizing<Vec<u8>>,
    origin: String,
}

impl Pin {
    /// The bytes as the token's library takes them; wiped when dropped. They are moved, not copied.
    pub(crate) fn take(&mut self) -> RawAuthPin {
        RawAuthPin::new(Box::new(std::mem::take(&mut *self.bytes)))
    }
}

impl PinSource {
    /// The source that the configuration names, if any.
    pub(crate) fn new(place: Option<Source>, store: Arc<Store>) -> PinSource {
        PinSource { place, store, refused: false }
    }

    /// Reads the PIN; `None` when no source is configured. Refuses when this very PIN was refused before.
    pub(crate) fn read(&self) -> Result<Option<Pin>, GuestError> {
        let Some(place) = &self.place else { return Ok(None) };
        let found = place.read_line("PIN", 1..=PIN_BYTES_MAX)?;
        let origin = match place {
            Source::File(_) => format!("file {}\n", found.stamp),
            // made anew at each start of the service, so its times say nothing
            Source::Credential(name) => format!("credential {name}\n"),
        };
        let pin = Pin { bytes: found.bytes, origin };
        let marker = self.store.read(REFUSED)?;
        if self.refused || marker.is_some_and(|marker| *marker == pin.origin.as_bytes()) {
            return Err(GuestError::new(Status::Auth, format!("the token refused this PIN before; {}", self.advice())));
        }
        Ok(Some(pin))
    }

    /// Remembers that the token refused `pin`; gives what the operator is to do.
    pub(crate) fn refused(&mut self, pin: Option<&Pin>) -> String {
        self.refused = true;
        let Some(pin) = pin else { return "enter the right PIN and start again".to_owned() };
        match self.store.write(REFUSED, pin.origin.as_bytes()) {
            Ok(()) => self.advice(),
            Err(error) => format!("{}; and that could not be noted: {error}", self.advice()),
        }
    }

    /// Forgets an earlier refusal: the token has taken a PIN.
    pub(crate) fn accepted(&self) -> Result<(), GuestError> {
        match self.store.read(REFUSED)? {
            Some(_) => self.store.unlink(REFUSED),
            None => Ok(()),
        }
    }

    fn advice(&self) -> String {
        let marker = self.store.path_of(REFUSED);
        let marker = marker.display();
        match &self.place {
            Some(Source::Credential(name)) => format!(
                "it is not tried again, so that the token does not lock: put the right one into the credential {name}, \
                 then remove {marker} and start again"
            ),
            Some(Source::File(path)) => format!(
                "it is not tried again, so that the token does not lock: put the right one into {} (which is noticed) \
                 and start again; a right one in an unchanged file needs {marker} removed",
                path.display()
            ),
            None => "enter the right PIN and start again".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    use std::path::{Path, PathBuf};

    fn bench() -> (tempfile::TempDir, PathBuf, PinSource) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::DirBuilder::new().mode(0o700).create(&data).unwrap();
        let path = dir.path().join("pin");
        let source = PinSource::new(Some(Source::File(path.clone())), Arc::new(Store::open(&data, 1024).unwrap()));
        (dir, path, source)
    }

    fn put(path: &Path, content: &[u8], mode: u32) {
        let _ = std::fs::remove_file(path);
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn pins_have_a_length() {
        let (_dir, path, source) = bench();
        for (length, good) in [(0, false), (1, true), (PIN_BYTES_MAX, true), (PIN_BYTES_MAX + 1, false)] {
            put(&path, &vec![b'1'; length], 0o600);
            assert_eq!(source.read().ok().flatten().map(|pin| pin.bytes.len()), good.then_some(length));
        }
    }

    #[test]
    fn a_refused_pin_is_not_given_out_again_until_its_file_changes() {
        let (_dir, path, mut source) = bench();
        put(&path, b"wrong", 0o600);
        let pin = source.read().unwrap().unwrap();
        let advice = source.refused(Some(&pin));
        assert!(advice.contains("pin-refused"), "{advice}");
        let marker = source.store.read(REFUSED).unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&marker).contains("wrong"));
        assert_eq!(source.read().err().unwrap().status, Status::Auth, "the same process");
        let mut next = PinSource::new(source.place.clone(), source.store.clone());
        assert_eq!(next.read().err().unwrap().status, Status::Auth, "the next process");
        put(&path, b"right", 0o600);
        assert!(next.read().unwrap().is_some(), "another file");
        next.accepted().unwrap();
        assert!(next.store.read(REFUSED).unwrap().is_none());
        next.refused = true;
        assert!(next.read().is_err());
    }
}
