//! Configuration text (TOML), and secrets that lie in files or come as systemd credentials (systemd.exec(5),
//! `LoadCredentialEncrypted=`).

use mayfly_plugin_abi::{GuestError, Status};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// Rights that a secret's file may give nobody: its group and others anything.
const FORBIDDEN_OF_FILES: u32 = 0o077;
/// The same of a credential. systemd gives it to a service's user by an access control list, whose mask shows as the
/// group's right to read (0440); the folder of credentials is closed to everybody else.
const FORBIDDEN_OF_CREDENTIALS: u32 = 0o037;

/// A configuration that cannot work.
pub fn refuse(text: impl Into<String>) -> GuestError {
    GuestError::new(Status::Config, text)
}

/// Reads a configuration.
///
/// # Errors
/// [`Status::Config`] with the parser's reason, on one line.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, GuestError> {
    toml::from_str(text).map_err(|error| {
        let lines: Vec<_> = error.message().lines().map(str::trim).collect();
        refuse(lines.join(" "))
    })
}

/// Where a secret lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file that is owned by us or root and closed to others.
    File(PathBuf),
    /// The name of a credential that systemd passes to the service.
    Credential(String),
}

/// A secret as it was found.
pub struct Found {
    /// It.
    pub bytes: Zeroizing<Vec<u8>>,
    /// Names the file as it is now: one with another content has another number, time or length. Nothing of the secret.
    pub stamp: String,
}

impl Source {
    /// The source by the options `NAME_file` and `NAME_credential`, of which one may be set.
    ///
    /// # Errors
    /// [`Status::Config`].
    pub fn of(name: &str, file: Option<&Path>, credential: Option<&str>) -> Result<Option<Source>, GuestError> {
        match (file, credential) {
            (Some(_), Some(_)) => Err(refuse(format!("set {name}_file or {name}_credential, not both"))),
            (Some(path), None) if path.is_absolute() => Ok(Some(Source::File(path.to_owned()))),
            (Some(_), None) => Err(refuse(format!("{name}_file is not an absolute path"))),
            (None, Some(plain)) if is_plain(plain) => Ok(Some(Source::Credential(plain.to_owned()))),
            (None, Some(_)) => Err(refuse(format!("{name}_credential is not a plain name"))),
            (None, None) => Ok(None),
        }
    }

    /// Reads a secret of so many bytes, called `what` in messages, as it is: a line end at its end counts.
    ///
    /// # Errors
    /// [`Status::Config`]: not there, open to others, too short, too long.
    pub fn read(&self, what: &str, bytes: RangeInclusive<usize>) -> Result<Found, GuestError> {
        let path = self.path()?;
        let found = read_file(&path, *bytes.end(), self.forbidden()).map_err(|why| bad(what, &path, &why))?;
        check_length(&found, bytes).map_err(|why| bad(what, &path, &why))?;
        Ok(found)
    }

    /// Reads a secret that people type: one line end at its end does not count.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn read_line(&self, what: &str, bytes: RangeInclusive<usize>) -> Result<Found, GuestError> {
        let path = self.path()?;
        let mut found = read_file(&path, bytes.end() + 2, self.forbidden()).map_err(|why| bad(what, &path, &why))?;
        if found.bytes.last() == Some(&b'\n') {
            found.bytes.pop();
            if found.bytes.last() == Some(&b'\r') {
                found.bytes.pop();
            }
        }
        check_length(&found, bytes).map_err(|why| bad(what, &path, &why))?;
        Ok(found)
    }

    fn forbidden(&self) -> u32 {
        match self {
            Source::File(_) => FORBIDDEN_OF_FILES,
            Source::Credential(_) => FORBIDDEN_OF_CREDENTIALS,
        }
    }

    fn path(&self) -> Result<PathBuf, GuestError> {
        let name = match self {
            Source::File(path) => return Ok(path.clone()),
            Source::Credential(name) => name,
        };
        let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(|| {
            refuse(format!(
                "no credentials were passed to this service (CREDENTIALS_DIRECTORY is not set), \
                 add LoadCredentialEncrypted={name}:PATH to its unit"
            ))
        })?;
        Ok(Path::new(&folder).join(name))
    }
}

/// A name that stays in its folder.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn bad(what: &str, path: &Path, why: &str) -> GuestError {
    refuse(format!("{what} in {}: {why}", path.display()))
}

/// Reads at most one byte more than `bytes_max`.
fn read_file(path: &Path, bytes_max: usize, forbidden: u32) -> Result<Found, String> {
    let text = |error: rustix::io::Errno| io::Error::from(error).to_string();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = rustix::fs::open(path, flags, Mode::empty()).map_err(text)?;
    let stat = rustix::fs::fstat(&file).map_err(text)?;
    check_private(&stat, forbidden)?;
    // room for one more than is read, so that the buffer never grows and leaves a copy behind
    let mut bytes = Zeroizing::new(Vec::with_capacity(bytes_max + 2));
    File::from(file).take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    let stamp = format!("{} {} {}.{} {}", stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec, stat.st_size);
    Ok(Found { bytes, stamp })
}

fn check_private(stat: &Stat, forbidden: u32) -> Result<(), String> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("is not a file".to_owned());
    }
    if stat.st_uid != rustix::process::geteuid().as_raw() && stat.st_uid != 0 {
        return Err("belongs to another user".to_owned());
    }
    if stat.st_mode & forbidden != 0 {
        return Err("is open to others, run `chmod 600` on it".to_owned());
    }
    Ok(())
}

fn check_length(found: &Found, bytes: RangeInclusive<usize>) -> Result<(), String> {
    if bytes.contains(&found.bytes.len()) {
        return Ok(());
    }
    Err(format!("must be {} to {} bytes", bytes.start(), bytes.end()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn sources() {
        let of = |file: Option<&str>, credential| Source::of("pin", file.map(Path::new), credential);
        assert_eq!(of(None, None).unwrap(), None);
        assert_eq!(of(Some("/x"), None).unwrap(), Some(Source::File("/x".into())));
        assert_eq!(of(None, Some("x")).unwrap(), Some(Source::Credential("x".to_owned())));
        assert!(of(Some("/x"), Some("x")).unwrap_err().message.contains("pin_file or pin_credential, not both"));
        assert!(of(Some("x"), None).unwrap_err().message.contains("pin_file is not an absolute path"));
        for name in ["", ".", "..", "../x", "a/b", ".hidden"] {
            assert!(of(None, Some(name)).unwrap_err().message.contains("plain name"), "{name}");
        }
    }

    #[test]
    fn secret_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let source = Source::File(path.clone());
        // content, mode; as it is, as a line: of 5 to 8 bytes
        for (content, mode, whole, line) in [
            (&b"12345678"[..], 0o600, Some(&b"12345678"[..]), Some(&b"12345678"[..])),
            (b"1234567\n", 0o400, Some(b"1234567\n"), Some(b"1234567")),
            (b"12345678\n", 0o600, None, Some(b"12345678")),
            (b"12345678\r\n", 0o600, None, Some(b"12345678")),
            (b"123456\n\n", 0o600, Some(b"123456\n\n"), Some(b"123456\n")),
            (b"1234\n", 0o600, Some(b"1234\n"), None),
            (b"12345678\n\n", 0o600, None, None),
            (b"123456789", 0o600, None, None),
            (b"1234", 0o600, None, None),
            (b"", 0o600, None, None),
            (b"12345678", 0o640, None, None),
            (b"12345678", 0o604, None, None),
        ] {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = source.read("secret", 5..=8).ok();
            assert_eq!(found.as_ref().map(|found| &found.bytes[..]), whole, "{content:?} {mode:o}");
            let found = source.read_line("secret", 5..=8).ok();
            assert_eq!(found.as_ref().map(|found| &found.bytes[..]), line, "{content:?} {mode:o}");
            std::fs::remove_file(&path).unwrap();
        }
        let missing = source.read("secret", 5..=8).err().unwrap();
        assert!(missing.message.contains("No such file"), "{missing}");
        assert!(
            Source::File(dir.path().into()).read("secret", 5..=8).err().unwrap().message.ends_with("is not a file")
        );
    }

    /// As systemd leaves them: 0400 for root, 0440 with an access control list for a service's user.
    #[test]
    fn credentials_show_the_mask_of_their_list() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credential");
        std::fs::write(&path, "12345678").unwrap();
        let (file, credential) = (Source::File(path.clone()), Source::Credential("credential".to_owned()));
        for (mode, as_file, as_credential) in [
            (0o400, true, true),
            (0o440, false, true),
            (0o444, false, false),
            (0o460, false, false),
            (0o450, false, false),
        ] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read_file(&path, 8, file.forbidden()).is_ok(), as_file, "{mode:o}");
            assert_eq!(read_file(&path, 8, credential.forbidden()).is_ok(), as_credential, "{mode:o}");
        }
    }

    #[test]
    fn another_content_has_another_stamp() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let put = |content: &[u8]| {
            let new = dir.path().join("new");
            std::fs::write(&new, content).unwrap();
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
            std::fs::rename(new, &path).unwrap();
            Source::File(path.clone()).read("secret", 1..=8).unwrap().stamp
        };
        let (one, two) = (put(b"one"), put(b"two"));
        assert_ne!(one, two);
        assert_eq!(Source::File(path.clone()).read("secret", 1..=8).unwrap().stamp, two);
    }
}
