//! TLS 1.3 between agents: raw public keys (RFC 7250) on both sides, each a session key on the verified ledger: a member's; or, of the
//! opener, that of a device which waits for approval.
//!
//! No certificates, names, resumption, earlier versions, or application data before both sides are known. The session's private key stays
//! in secret memory: rustls asks [`SessionSigner`] for a signature and never sees the key.

use super::Directory;
use mayfly_crypto::sign::{Alg, Ed25519Secret, PublicKey};
use mayfly_ledger_client::tls::spki;
use mayfly_protocol::peer::ALPN;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig, SignatureAlgorithm,
    SignatureScheme,
};
use std::sync::Arc;

/// Bytes before the key in an Ed25519 SubjectPublicKeyInfo (RFC 8410, section 4).
const SPKI_PREFIX_BYTES: usize = 12;

/// Signs TLS handshakes with the session key.
#[derive(Debug, Clone)]
struct SessionSigner(Arc<Ed25519Secret>);

impl SigningKey for SessionSigner {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SignatureScheme::ED25519).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        spki(&self.0.public())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for SessionSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.0.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Makes the configurations of both sides.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    certified: Arc<CertifiedKey>,
}

impl Tls {
    /// For this session key.
    pub(super) fn new(session: Arc<Ed25519Secret>) -> Tls {
        let spki = spki(&session.public()).expect("a session key is Ed25519");
        let key = CertifiedKey::new(vec![CertificateDer::from(spki.to_vec())], Arc::new(SessionSigner(session)));
        Tls { provider: mayfly_ledger_client::tls::provider(), certified: Arc::new(key) }
    }

    /// Towards exactly the device whose session key is `peer`.
    pub(super) fn client(&self, peer: &PublicKey) -> Option<ClientConfig> {
        let verifier = PeerVerifier::new(&self.provider, Accept::Exactly(spki(peer)?));
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .dangerous() // rustls' word for a verifier of one's own; ours accepts one key instead of a web of names
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = false;
        config.resumption = Resumption::disabled();
        Some(config)
    }

    /// For whoever is known to `directory`: what it may ask is its standing.
    pub(super) fn server(&self, directory: Arc<dyn Directory>) -> ServerConfig {
        let verifier = PeerVerifier::new(&self.provider, Accept::Known(directory));
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has TLS 1.3")
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.certified.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        config
    }
}

/// The name that rustls wants for a connection; it is neither sent nor checked.
pub(super) fn server_name() -> ServerName<'static> {
    ServerName::try_from("mayfly-peer").expect("a plain host name")
}

/// The session key that the other side proved.
pub(super) fn peer_key(connection: &rustls::Connection) -> Option<PublicKey> {
    key_of(connection.peer_certificates()?.first()?)
}

fn key_of(spki_der: &[u8]) -> Option<PublicKey> {
    let key = PublicKey::new(Alg::Ed25519, spki_der.get(SPKI_PREFIX_BYTES..)?).ok()?;
    (spki(&key)?.as_ref() == spki_der).then_some(key)
}

#[derive(Debug)]
enum Accept {
    Exactly(SubjectPublicKeyInfoDer<'static>),
    Known(Arc<dyn Directory>),
}

#[derive(Debug)]
struct PeerVerifier {
    accept: Accept,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PeerVerifier {
    fn new(provider: &CryptoProvider, accept: Accept) -> Self {
        Self { accept, algorithms: provider.signature_verification_algorithms }
    }

    /// With raw public keys the "certificate" is the SubjectPublicKeyInfo itself (RFC 7250, section 3).
    fn judge(&self, spki: &[u8], more: &[CertificateDer<'_>]) -> Result<(), Error> {
        let known = match &self.accept {
            Accept::Exactly(expected) => spki == expected.as_ref(),
            Accept::Known(directory) => key_of(spki).is_some_and(|key| is_known(directory.as_ref(), &key)),
        };
        if known && more.is_empty() {
            Ok(())
        } else {
            Err(Error::General("the peer's key is not the session key of a device that may connect".into()))
        }
    }

    fn signature(
        &self,
        message: &[u8],
        spki: &[u8],
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(spki), dss, &self.algorithms)
    }
}

/// Whether this is a session key of a member or a candidate; an unknown key is given time to arrive with the ledger.
fn is_known(directory: &dyn Directory, key: &PublicKey) -> bool {
    directory.caller_of(key, super::UNKNOWN_KEY_PATIENCE).is_some()
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
