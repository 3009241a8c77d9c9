//! The administrator's key file: a P-256 key, sealed under a passphrase. Format page: `docs/formats/admin-key.md`.
//!
//! It must never be written unsealed but by [`KeyFile::danger_write_plain`], which `mayfly dev` uses. The key is read into locked memory and
//! opened there.

use argon2::{Algorithm, Argon2, Block, Params, Version};
use mayfly_crypto::sign::{P256_PUBLIC_BYTES, P256Secret, PublicKey};
use mayfly_crypto::{sign, wrap};
use mayfly_secmem::{Exhausted, RandomError, Secret, on_secret_stack, random};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// First bytes of the file.
const MAGIC: &[u8; 12] = b"mayfly-admin";
/// Version of the layout.
const VERSION: u8 = 1;
/// Protection: none, for development.
const PLAIN: u8 = 0;
/// Protection: Argon2id, then AES-256-GCM-SIV.
const ARGON2ID: u8 = 1;
/// Memory of new files, in KiB (RFC 9106, second recommended option).
const MEMORY_KIB: u32 = 64 * 1024;
/// Most memory that a file may ask for, in KiB.
const MEMORY_KIB_MAX: u32 = 1024 * 1024;
/// Passes of new files (RFC 9106, second recommended option).
const PASSES: u32 = 3;
/// Most passes that a file may ask for.
const PASSES_MAX: u32 = 64;
/// Lanes (RFC 9106, second recommended option).
const LANES: u32 = 4;
/// Bytes of the salt.
const SALT_BYTES: usize = 16;
/// Bytes before the key: magic, version, protection, memory, passes, salt, public key.
const HEADER_BYTES: usize = MAGIC.len() + 2 + 4 + 4 + SALT_BYTES + P256_PUBLIC_BYTES;
/// Bytes of the key, sealed.
const SEALED_BYTES: usize = 32 + wrap::OVERHEAD_BYTES;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// The file cannot be read or written.
    #[error("administrator key {}", .0.display())]
    Io(PathBuf, #[source] std::io::Error),
    /// Others may read or write it.
    #[error("administrator key {} may be read or changed by others; run `chmod 600` on it", .0.display())]
    Mode(PathBuf),
    /// Something else.
    #[error("{} is not an administrator key of version {VERSION}", .0.display())]
    NotAKey(PathBuf),
    /// Wrong passphrase, or a changed file.
    #[error("the passphrase does not open the administrator key {}, or the file was changed", .0.display())]
    Passphrase(PathBuf),
    /// No locked memory, or no randomness.
    #[error("no room for the administrator key in locked memory")]
    Memory(#[from] Exhausted),
    /// No randomness.
    #[error("no randomness for the administrator key")]
    Random(#[from] RandomError),
    /// The cost in the file is beyond bounds, or there is no memory for it.
    #[error("the passphrase cannot be stretched: {0} KiB of memory and {1} passes are asked for")]
    Cost(u32, u32),
}

/// A key file that has been read, not opened.
pub struct KeyFile {
    path: PathBuf,
    header: [u8; HEADER_BYTES],
    /// Sealed, or (protection PLAIN) the key itself: always locked memory.
    key: Secret<SEALED_BYTES>,
}

impl KeyFile {
    /// Writes a new file, sealed under a passphrase; an existing one is never overwritten.
    pub fn write_sealed(path: &Path, key: &P256Secret, passphrase: &[u8]) -> Result<(), KeyFileError> {
        let mut salt = [0; SALT_BYTES];
        random(&mut salt)?;
        let header = header(ARGON2ID, MEMORY_KIB, PASSES, &salt, &key.public());
        let stretched = stretch(passphrase, &salt, MEMORY_KIB, PASSES)?;
        let sealed =
            wrap::seal(&stretched, &header, key.scalar().expose()).map_err(|_| KeyFileError::NotAKey(path.into()))?;
        write_new(path, &header, &sealed)
    }

    /// Writes a new file whose key is readable by whoever can read the file: for development.
    pub fn danger_write_plain(path: &Path, key: &P256Secret) -> Result<(), KeyFileError> {
        let header = header(PLAIN, 0, 0, &[0; SALT_BYTES], &key.public());
        write_new(path, &header, key.scalar().expose())
    }

    /// Reads a file. Its mode must keep others out.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let io = |error| KeyFileError::Io(path.into(), error);
        let mut file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.mode() & 0o077 != 0 {
            return Err(KeyFileError::Mode(path.into()));
        }
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).map_err(|_| KeyFileError::NotAKey(path.into()))?;
        let mut length = 0;
        let key = Secret::try_new_with(|slot: &mut [u8; SEALED_BYTES]| {
            while let Some(rest) = slot.get_mut(length..).filter(|rest| !rest.is_empty()) {
                match file.read(rest).map_err(io)? {
                    0 => break,
                    count => length += count,
                }
            }
            Ok::<_, KeyFileError>(())
        })?;
        let is_whole = file.read(&mut [0]).map_err(io)? == 0;
        let read = Self { path: path.into(), header, key };
        let expected = if read.is_plain() { 32 } else { SEALED_BYTES };
        let known = header.starts_with(MAGIC) && read.at(0) == VERSION && [PLAIN, ARGON2ID].contains(&read.at(1));
        if known && is_whole && length == expected { Ok(read) } else { Err(KeyFileError::NotAKey(path.into())) }
    }

    /// Whether no passphrase is needed.
    pub fn is_plain(&self) -> bool {
        self.at(1) == PLAIN
    }

    /// The key; `passphrase` is looked at only if the file is sealed.
    pub fn open(&self, passphrase: &[u8]) -> Result<P256Secret, KeyFileError> {
        let scalar = if self.is_plain() {
            Secret::new_with(|slot: &mut [u8; 32]| {
                self.key.expose().iter().zip(slot).for_each(|(from, to)| *to = *from)
            })?
        } else {
            let (memory_kib, passes) = (self.number(2), self.number(6));
            let stretched = stretch(passphrase, self.slice(10, SALT_BYTES), memory_kib, passes)?;
            let opened = wrap::open_fixed(&stretched, &self.header, self.key.expose());
            opened.map_err(|_| KeyFileError::Passphrase(self.path.clone()))?
        };
        let key = P256Secret::from_scalar(scalar).map_err(|_| KeyFileError::NotAKey(self.path.clone()))?;
        let named = PublicKey::new(sign::Alg::P256, self.slice(10 + SALT_BYTES, P256_PUBLIC_BYTES));
        if named.is_ok_and(|named| named == key.public()) {
            Ok(key)
        } else {
            Err(KeyFileError::NotAKey(self.path.clone()))
        }
    }

    /// A byte of the header, counted behind the magic.
    fn at(&self, offset: usize) -> u8 {
        self.slice(offset, 1).first().copied().unwrap_or(0)
    }

    fn number(&self, offset: usize) -> u32 {
        self.slice(offset, 4).try_into().map_or(0, u32::from_be_bytes)
    }

    fn slice(&self, offset: usize, length: usize) -> &[u8] {
        let start = MAGIC.len() + offset;
        self.header.get(start..start + length).unwrap_or_default()
    }
}

fn header(
    protection: u8,
    memory_kib: u32,
    passes: u32,
    salt: &[u8; SALT_BYTES],
    public: &PublicKey,
) -> [u8; HEADER_BYTES] {
    let parts: [&[u8]; 6] =
        [MAGIC, &[VERSION, protection], &memory_kib.to_be_bytes(), &passes.to_be_bytes(), salt, public.bytes()];
    let mut header = [0; HEADER_BYTES];
    parts.concat().iter().zip(&mut header).for_each(|(from, to)| *to = *from);
    header
}

fn write_new(path: &Path, header: &[u8], key: &[u8]) -> Result<(), KeyFileError> {
    let io = |error| KeyFileError::Io(path.into(), error);
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    file.write_all(header).and_then(|()| file.write_all(key)).and_then(|()| file.sync_all()).map_err(io)
}

/// Argon2id (RFC 9106) of a passphrase, into the arena; its working memory is wiped.
fn stretch(passphrase: &[u8], salt: &[u8], memory_kib: u32, passes: u32) -> Result<Secret<32>, KeyFileError> {
    let cost = || KeyFileError::Cost(memory_kib, passes);
    if memory_kib > MEMORY_KIB_MAX || passes > PASSES_MAX {
        return Err(cost());
    }
    let params = Params::new(memory_kib, passes, LANES, Some(32)).map_err(|_| cost())?;
    let mut memory: Vec<Block> = Vec::new();
    memory.try_reserve_exact(params.block_count()).map_err(|_| cost())?;
    memory.resize(params.block_count(), Block::new());
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let stretched = Secret::try_new_with(|out: &mut [u8; 32]| {
        let hash = || argon2.hash_password_into_with_memory(passphrase, salt, out, &mut memory).is_ok();
        if on_secret_stack(hash) { Ok(()) } else { Err(cost()) }
    });
    memory.iter_mut().for_each(zeroize::Zeroize::zeroize);
    stretched
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn written(passphrase: Option<&[u8]>) -> (tempfile::TempDir, PathBuf, P256Secret) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("administrator.key");
        let key = P256Secret::generate().unwrap();
        match passphrase {
            Some(passphrase) => KeyFile::write_sealed(&path, &key, passphrase).unwrap(),
            None => KeyFile::danger_write_plain(&path, &key).unwrap(),
        }
        (folder, path, key)
    }

    #[test]
    fn opens_with_its_passphrase_only() {
        let (_folder, path, key) = written(Some(b"correct horse"));
        let file = KeyFile::read(&path).unwrap();
        assert!(!file.is_plain());
        assert_eq!(file.open(b"correct horse").unwrap().public(), key.public());
        assert!(matches!(file.open(b"correct horsf"), Err(KeyFileError::Passphrase(_))));
        assert!(matches!(file.open(b""), Err(KeyFileError::Passphrase(_))));
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(32).any(|w| w == key.scalar().expose()), "the key lies in the file unsealed");
    }

    #[test]
    fn plain_needs_none() {
        let (_folder, path, key) = written(None);
        let file = KeyFile::read(&path).unwrap();
        assert!(file.is_plain());
        assert_eq!(file.open(b"").unwrap().public(), key.public());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let (_folder, path, _) = written(Some(b"p"));
        let good = std::fs::read(&path).unwrap();
        assert_eq!(good.len(), HEADER_BYTES + SEALED_BYTES);
        // Cost bytes are left out: they would make this test as slow as they are large.
        let cost = MAGIC.len() + 2..MAGIC.len() + 10;
        for at in (0..good.len()).filter(|at| !cost.contains(at)).step_by(7) {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, bad).unwrap();
            let opened = KeyFile::read(&path).and_then(|file| file.open(b"p"));
            assert!(opened.is_err(), "byte {at}");
        }
        for length in [0, 1, HEADER_BYTES, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            assert!(matches!(KeyFile::read(&path), Err(KeyFileError::NotAKey(_))), "{length} bytes");
        }
        std::fs::write(&path, [&good[..], &[0]].concat()).unwrap();
        assert!(matches!(KeyFile::read(&path), Err(KeyFileError::NotAKey(_))), "a byte too many");
    }

    #[test]
    fn costs_have_bounds() {
        let (_folder, path, _) = written(Some(b"p"));
        let good = std::fs::read(&path).unwrap();
        for at in [MAGIC.len() + 2, MAGIC.len() + 6] {
            let mut bad = good.clone();
            bad[at] = 0xff;
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(KeyFile::read(&path).unwrap().open(b"p"), Err(KeyFileError::Cost(..))));
        }
    }

    #[test]
    fn others_must_not_read_it_and_it_is_never_overwritten() {
        let (_folder, path, key) = written(None);
        assert!(matches!(KeyFile::danger_write_plain(&path, &key), Err(KeyFileError::Io(..))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(KeyFile::read(&path), Err(KeyFileError::Mode(_))));
    }
}
