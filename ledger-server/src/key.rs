//! The gateway's Ed25519 key: authenticates its TLS as a raw public key, and signs the heads that it sends.
//!
//! The seed rests in a file of 32 bytes that only its owner can read. It is read straight into secret memory and stays there: TLS signs
//! through [`mayfly_crypto`] as well, so that no library holds a copy.

use mayfly_crypto::checkpoint::{Note, SignatureLine};
use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use mayfly_ledger_client::tls;
use mayfly_protocol::head::{self, Cosignature};
use mayfly_protocol::{Head, NetworkId};
use mayfly_secmem::{Exhausted, RandomError, Secret};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::version::TLS13;
use rustls::{ServerConfig, SignatureAlgorithm, SignatureScheme};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Permission bits that a key file must not have: anything for group or others.
const FOREIGN_BITS: u32 = 0o077;

/// Why a key file is not used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be opened, read or written.
    #[error("gateway key {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Others may read it.
    #[error("gateway key {path} can be read by others (mode {mode:04o}); run: chmod 600 {path}")]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not 32 bytes long.
    #[error("gateway key {0} is not a seed of 32 bytes")]
    Length(PathBuf),
    /// No secret memory or randomness.
    #[error("no secret memory for the gateway's key")]
    Exhausted(#[from] Exhausted),
    /// No randomness.
    #[error("no randomness for a new key")]
    Random(#[from] RandomError),
}

/// The key.
pub struct GatewayKey {
    secret: Arc<Ed25519Secret>,
}

impl GatewayKey {
    /// A key that is not kept anywhere.
    ///
    /// # Errors
    /// [`KeyFileError::Random`].
    pub fn generate() -> Result<GatewayKey, KeyFileError> {
        Ok(GatewayKey { secret: Arc::new(Ed25519Secret::generate()?) })
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn read(path: &Path) -> Result<GatewayKey, KeyFileError> {
        let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        if found.mode() & FOREIGN_BITS != 0 {
            return Err(KeyFileError::Readable { path: path.to_owned(), mode: found.mode() & 0o7777 });
        }
        if found.len() != 32 {
            return Err(KeyFileError::Length(path.to_owned()));
        }
        let seed = Secret::<32>::try_new_with(|seed| file.read_exact(seed).map_err(failed))?;
        Ok(GatewayKey { secret: Arc::new(Ed25519Secret::from_seed(seed)) })
    }

    /// Makes a new key and its file, which must not exist.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn create(path: &Path) -> Result<GatewayKey, KeyFileError> {
        let failed = |source| KeyFileError::Io { path: path.to_owned(), source };
        let key = GatewayKey::generate()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        file.write_all(key.secret.seed().expose()).and_then(|()| file.sync_all()).map_err(failed)?;
        Ok(key)
    }

    /// The public half, as it stands in genesis and in `network.toml`.
    pub fn public(&self) -> PublicKey {
        self.secret.public()
    }

    /// TLS 1.3 with this raw public key; no tickets, no certificates.
    pub fn tls_config(&self) -> ServerConfig {
        let spki = self.spki();
        let certified = CertifiedKey::new(vec![CertificateDer::from(spki.as_ref().to_vec())], Arc::new(self.tls_key()));
        let mut config = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_no_client_auth() // clients sign a hello that is bound to the connection
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified))));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config
    }

    /// The checkpoint note of a head, signed.
    pub fn note(&self, network: &NetworkId, head: &Head) -> Note {
        let checkpoint = head.checkpoint(network);
        let signature = self.secret.sign(checkpoint.body().as_bytes());
        let mut note = Note::new(checkpoint);
        let line = SignatureLine::ed25519(&head::origin(network), self.secret.public_bytes(), &signature);
        note.push(line.expect("the origin is a sound name")).expect("the first signature fits");
        note
    }

    /// The note of a head with this key's timestamped signature beside the plain one: a bookmark.
    pub fn bookmark(&self, network: &NetworkId, head: &Head, now_ms: u64) -> Note {
        let mut note = self.note(network, head);
        let signature = self.secret.sign(&Cosignature::message(network, head, now_ms));
        let (name, public) = (head::origin(network), self.secret.public_bytes());
        let line = SignatureLine::cosignature_v1(&name, public, now_ms / 1000, &signature);
        note.push(line.expect("the origin is a sound name")).expect("the second signature fits");
        note
    }

    fn spki(&self) -> SubjectPublicKeyInfoDer<'static> {
        tls::spki(&self.public()).expect("the key is Ed25519")
    }

    fn tls_key(&self) -> TlsKey {
        TlsKey { secret: self.secret.clone(), spki: self.spki() }
    }
}

impl fmt::Debug for GatewayKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GatewayKey({:?})", self.public())
    }
}

/// The key as rustls wants it.
#[derive(Clone)]
struct TlsKey {
    secret: Arc<Ed25519Secret>,
    spki: SubjectPublicKeyInfoDer<'static>,
}

impl fmt::Debug for TlsKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsKey")
    }
}

impl SigningKey for TlsKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.spki.clone())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for TlsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(self.secret.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_is_private_whole_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.key");
        let made = GatewayKey::create(&path).unwrap();
        assert_eq!(GatewayKey::read(&path).unwrap().public(), made.public());
        assert!(matches!(GatewayKey::create(&path), Err(KeyFileError::Io { .. })), "never overwritten");

        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(GatewayKey::read(&path), Err(KeyFileError::Readable { mode: 0o640, .. })));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [1; 31]).unwrap();
        assert!(matches!(GatewayKey::read(&path), Err(KeyFileError::Length(_))));
    }

    #[test]
    fn notes_verify_and_a_bookmark_tells_its_time() {
        let key = GatewayKey::generate().unwrap();
        let (network, head) = (NetworkId([7; 32]), Head { size: 3, root: Default::default() });
        let origin = head::origin(&network);
        let PublicKey::Ed25519(public) = key.public() else { panic!("Ed25519") };
        let note = Note::parse(key.bookmark(&network, &head, 1_700_000_000_999).encode().as_bytes()).unwrap();
        note.verify_log(&origin, &public).unwrap();
        assert_eq!(note.verify_cosignature(&origin, &public), Ok(1_700_000_000));
        assert!(format!("{key:?}").starts_with("GatewayKey(Ed25519:"));
    }
}
