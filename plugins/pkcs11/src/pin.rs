//! Where the PIN comes from, and the memory of a refused one.
//!
//! A token counts wrong PINs and locks after a few. So a PIN that was refused once is not tried again, not by this
//! process and not by the next: a marker in the private folder outlives it. It names the source as it was (the file's
//! number and times), nothing of the PIN: a hash of a mistyped PIN would help to guess the right one.

use crate::config::{Config, refuse};
use crate::store::Store;
use cryptoki::types::RawAuthPin;
use mayfly_plugin_abi::{GuestError, Status};
use rustix::fs::{Mode, OFlags, Stat};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Longest PIN. Network tokens take `user:password` here.
pub(crate) const PIN_BYTES_MAX: usize = 256;
/// The marker of a refused PIN.
pub(crate) const REFUSED: &str = "pin-refused";

/// Source of the PIN, and what became of it last time.
pub(crate) struct PinSource {
    place: Option<Place>,
    store: Arc<Store>,
    refused: bool,
}

enum Place {
    File(PathBuf),
    Credential(String),
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
    pub(crate) fn new(config: &Config, store: Arc<Store>) -> PinSource {
        let place = match (&config.pin_file, &config.pin_credential) {
            (Some(path), _) => Some(Place::File(path.clone())),
            (None, Some(name)) => Some(Place::Credential(name.clone())),
            (None, None) => None,
        };
        PinSource { place, store, refused: false }
    }

    /// Reads the PIN; `None` when no source is configured. Refuses when this very PIN was refused before.
    pub(crate) fn read(&self) -> Result<Option<Pin>, GuestError> {
        let Some(place) = &self.place else { return Ok(None) };
        let pin = match place {
            Place::File(path) => {
                let (bytes, stat) = read_secret_file(path)?;
                // a new content gives a new change time, and mostly a new inode
                let (inode, seconds, nanos) = (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec);
                let origin = format!("file {} {inode} {seconds}.{nanos} {}\n", stat.st_dev, stat.st_size);
                Pin { bytes, origin }
            }
            Place::Credential(name) => {
                let (bytes, _) = read_secret_file(&credential_path(name)?)?;
                // made anew at each start of the service, so its times say nothing
                Pin { bytes, origin: format!("credential {name}\n") }
            }
        };
        let marker = self.store.read(REFUSED)?;
        if self.refused || marker.is_some_and(|marker| marker == pin.origin.as_bytes()) {
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
            Some(Place::Credential(name)) => format!(
                "it is not tried again, so that the token does not lock: put the right one into the credential {name}, \
                 then remove {marker} and start again"
            ),
            Some(Place::File(path)) => format!(
                "it is not tried again, so that the token does not lock: put the right one into {} (which is noticed) \
                 and start again; a right one in an unchanged file needs {marker} removed",
                path.display()
            ),
            None => "enter the right PIN and start again".to_owned(),
        }
    }
}

fn credential_path(name: &str) -> Result<PathBuf, GuestError> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(refuse("pin_credential is not a plain name"));
    }
    match std::env::var_os("CREDENTIALS_DIRECTORY") {
        Some(folder) => Ok(Path::new(&folder).join(name)),
        None => Err(refuse(format!(
            "no credentials were passed to this service (CREDENTIALS_DIRECTORY is not set), \
             add LoadCredential={name}:PATH to its unit"
        ))),
    }
}

fn read_secret_file(path: &Path) -> Result<(Zeroizing<Vec<u8>>, Stat), GuestError> {
    let bad = |what: &str| refuse(format!("PIN in {}: {what}", path.display()));
    let io = |error: rustix::io::Errno| bad(&std::io::Error::from(error).to_string());
    let file =
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty()).map_err(io)?;
    let stat = rustix::fs::fstat(&file).map_err(io)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(bad("is not a file"));
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() && stat.st_uid != 0 {
        return Err(bad("belongs to another user"));
    }
    if stat.st_mode & 0o077 != 0 {
        return Err(bad("is open to others, run `chmod 600` on it"));
    }
    // room for the longest and one more, so that the buffer never grows and leaves a copy behind
    let mut bytes = Zeroizing::new(Vec::with_capacity(PIN_BYTES_MAX + 3));
    let read = File::from(file).take(PIN_BYTES_MAX as u64 + 2).read_to_end(&mut bytes);
    read.map_err(|error| bad(&error.to_string()))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
        if bytes.last() == Some(&b'\r') {
            bytes.pop();
        }
    }
    match bytes.len() {
        1..=PIN_BYTES_MAX => Ok((bytes, stat)),
        _ => Err(bad(&format!("must be 1 to {PIN_BYTES_MAX} bytes"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    fn bench() -> (tempfile::TempDir, PathBuf, PinSource) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        std::fs::DirBuilder::new().mode(0o700).create(&data).unwrap();
        let path = dir.path().join("pin");
        let text = format!("module = '/x'\ntoken_label = 'x'\npin_file = '{}'", path.display());
        let config = Config::parse(&text).unwrap();
        let source = PinSource::new(&config, Arc::new(Store::open(&data).unwrap()));
        (dir, path, source)
    }

    fn put(path: &Path, content: &[u8], mode: u32) {
        let _ = std::fs::remove_file(path);
        std::fs::write(path, content).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn pin_files() {
        let (_dir, path, source) = bench();
        for (content, mode, expected) in [
            (&b"1234"[..], 0o600, Some(&b"1234"[..])),
            (b"1234\n", 0o400, Some(b"1234")),
            (b"1234\r\n", 0o600, Some(b"1234")),
            (&[b'x'; PIN_BYTES_MAX], 0o600, Some(&[b'x'; PIN_BYTES_MAX])),
            (&[b'x'; PIN_BYTES_MAX + 1], 0o600, None),
            (b"", 0o600, None),
            (b"\n", 0o600, None),
            (b"1234", 0o640, None),
            (b"1234", 0o604, None),
        ] {
            put(&path, content, mode);
            let read = source.read().ok().flatten();
            assert_eq!(read.as_ref().map(|pin| &pin.bytes[..]), expected, "{} {mode:o}", content.len());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(source.read().err().unwrap().message.contains("No such file"));
    }

    #[test]
    fn a_refused_pin_is_not_given_out_again_until_its_file_changes() {
        let (_dir, path, mut source) = bench();
        put(&path, b"wrong", 0o600);
        let pin = source.read().unwrap().unwrap();
        let advice = source.refused(Some(&pin));
        assert!(advice.contains("pin-refused"), "{advice}");
        let marker = source.store.read(REFUSED).unwrap().unwrap();
        assert!(!String::from_utf8(marker).unwrap().contains("wrong"));
        assert_eq!(source.read().err().unwrap().status, Status::Auth, "the same process");
        let mut next =
            PinSource { place: Some(Place::File(path.clone())), store: source.store.clone(), refused: false };
        assert_eq!(next.read().err().unwrap().status, Status::Auth, "the next process");
        put(&path, b"right", 0o600);
        assert!(next.read().unwrap().is_some(), "another file");
        next.accepted().unwrap();
        assert!(next.store.read(REFUSED).unwrap().is_none());
        next.refused = true;
        assert!(next.read().is_err());
    }

    #[test]
    fn credential_names_stay_in_their_folder() {
        for name in ["", ".", "..", "../x", "a/b", ".hidden"] {
            assert!(credential_path(name).unwrap_err().message.contains("plain name"), "{name}");
        }
    }
}
