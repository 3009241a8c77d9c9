//! TLS 1.3 towards a gateway: its raw public key (RFC 7250) is pinned; no names, no certificates, no other versions.

use mayfly_crypto::sign::PublicKey;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, InvalidMessage, PeerIncompatible, SignatureScheme, version::TLS13,
};
use std::sync::Arc;

/// The DER prefix of an Ed25519 SubjectPublicKeyInfo (RFC 8410, section 4).
const ED25519_SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The SubjectPublicKeyInfo of an Ed25519 key, as RFC 7250 carries it. `None` for other algorithms.
pub fn spki(key: &PublicKey) -> Option<SubjectPublicKeyInfoDer<'static>> {
    match key {
        PublicKey::Ed25519(bytes) => Some([ED25519_SPKI_PREFIX.as_slice(), bytes].concat().into()),
        PublicKey::P256(_) => None,
    }
}

/// rustls on AWS-LC with X25519MLKEM768 first: the one provider of our programs.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The configuration of a client that talks to exactly this gateway. `None` when the key is not Ed25519.
pub fn client_config(gateway: &PublicKey) -> Option<ClientConfig> {
    let provider = provider();
    let verifier = PinnedGateway { spki: spki(gateway)?, algorithms: provider.signature_verification_algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .expect("the provider has TLS 1.3")
        .dangerous() // rustls' word for a verifier of one's own; ours accepts one key instead of a web of names
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Some(config)
}

/// The name that rustls wants for a connection; it is neither sent nor checked.
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from("mayfly-ledger").expect("a plain host name")
}

#[derive(Debug)]
struct PinnedGateway {
    spki: SubjectPublicKeyInfoDer<'static>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PinnedGateway {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // With raw public keys the "certificate" is the SubjectPublicKeyInfo itself (RFC 7250, section 3).
        if end_entity.as_ref() == self.spki.as_ref() && intermediates.is_empty() {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("the gateway's key is not the pinned one".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if cert.as_ref() != self.spki.as_ref() {
            return Err(Error::InvalidMessage(InvalidMessage::InvalidCertificateStatusType));
        }
        verify_tls13_signature_with_raw_key(message, &self.spki, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
