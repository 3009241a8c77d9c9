//! Certificates of endorsement keys: chain, purpose, maker (TCG EK Credential Profile 2.5).
//!
//! Not done: revocation lists, fetching of missing intermediates (the operator's bundle has them), RSA keys of other
//! sizes than 2048, P-521.

use aws_lc_rs::digest;
use aws_lc_rs::rsa::PublicEncryptingKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use std::time::Duration;
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::der::asn1::{ObjectIdentifier, PrintableStringRef, Utf8StringRef};
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// tcg-kp-EKCertificate, 2.23.133.8.1: the purpose of an endorsement key's certificate.
const EK_PURPOSE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];
/// tcg-at-tpmManufacturer.
const AT_MANUFACTURER: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.1");
/// tcg-at-tpmModel.
const AT_MODEL: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.2");
/// tcg-at-tpmVersion.
const AT_VERSION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.23.133.2.3");
/// Most certificates in a bundle.
const BUNDLE_MAX: usize = 1024;
/// Longest text out of a certificate that is kept.
const TEXT_CHARS_MAX: usize = 64;
/// SubjectPublicKeyInfo of a P-256 key in front of its point.
const P256_HEAD: &[u8] = &[
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The same of P-384.
const P384_HEAD: &[u8] = &[
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22, 0x03, 0x62, 0x00,
];

/// Why a certificate, or a bundle, is not taken.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The operator's bundle is not PEM, has no certificate, or too many.
    #[error("bundle of makers' certificates: {0}")]
    Bundle(String),
    /// No path to a trusted root, not valid now, damaged, or not for an endorsement key.
    #[error("certificate of the endorsement key: {0}")]
    Path(webpki::Error),
    /// A key that is not supported.
    #[error("the endorsement key is neither RSA-2048 nor P-256 nor P-384")]
    Key,
    /// What it says about the chip cannot be read.
    #[error("the certificate does not name the TPM's maker and model")]
    NoMaker,
    /// A TPM that is a program.
    #[error(
        "the TPM is software ({maker} {model}), which anybody can copy; for development there are --danger-allow-software and `[attestation] danger_allow_software`"
    )]
    Software {
        /// Its maker as the certificate says.
        maker: String,
        /// Its model.
        model: String,
    },
}

/// Whose certificates are believed.
pub struct Trust {
    anchors: Vec<TrustAnchor<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trust({} anchors, {} intermediates)", self.anchors.len(), self.intermediates.len())
    }
}

impl Trust {
    /// Two bundles in PEM: certificates that are believed, and those that only may stand between. An anchor need not be
    /// a root: a maker's issuing authority alone may be believed.
    ///
    /// # Errors
    /// [`CertificateError::Bundle`].
    pub fn from_pem(anchors: &[u8], intermediates: &[u8]) -> Result<Trust, CertificateError> {
        let bad = |what: &dyn std::fmt::Display| CertificateError::Bundle(what.to_string());
        let read = |pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, CertificateError> {
            let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
                .take(BUNDLE_MAX + 1)
                .collect::<Result<_, _>>()
                .map_err(|error| bad(&error))?;
            if all.len() > BUNDLE_MAX { Err(bad(&"more than 1024 certificates")) } else { Ok(all) }
        };
        let anchors: Vec<_> = read(anchors)?
            .iter()
            .map(|der| anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()).map_err(|error| bad(&error)))
            .collect::<Result<_, _>>()?;
        if anchors.is_empty() {
            return Err(bad(&"no certificate in it"));
        }
        Ok(Trust { anchors, intermediates: read(intermediates)? })
    }

    /// One bundle in PEM, as an operator keeps it: certificates that sign themselves are believed, the others only may stand
    /// between. Where none signs itself all are believed: a maker's issuing authorities without their root.
    ///
    /// # Errors
    /// [`CertificateError::Bundle`].
    pub fn from_bundle(pem: &[u8]) -> Result<Trust, CertificateError> {
        let own = |der: &CertificateDer<'_>| {
            Certificate::from_der(der).is_ok_and(|c| c.tbs_certificate().issuer() == c.tbs_certificate().subject())
        };
        let all = Trust::from_pem(pem, pem)?;
        let (roots, others): (Vec<_>, Vec<_>) = all.intermediates.iter().cloned().partition(own);
        if roots.is_empty() {
            return Ok(Trust { intermediates: Vec::new(), ..all });
        }
        let anchors = roots.iter().filter_map(|der| Some(anchor_from_trusted_cert(der).ok()?.to_owned())).collect();
        Ok(Trust { anchors, intermediates: others })
    }
}

/// The public half of an endorsement key, as far as credentials need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndorsementKey {
    /// RSA-2048: SubjectPublicKeyInfo (DER).
    Rsa2048(Vec<u8>),
    /// P-256: the point without compression.
    P256([u8; 65]),
    /// P-384: the point without compression.
    P384([u8; 97]),
}

/// A chip whose certificate was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endorsed {
    /// The key that the maker certified.
    pub key: EndorsementKey,
    /// SHA-256 of the certificate. It stands for the machine for life, so the log keeps this hash only.
    pub fingerprint: [u8; 32],
    /// Maker, as `id:` and eight hexadecimal digits.
    pub maker: String,
    /// Model.
    pub model: String,
    /// Version of the firmware when the certificate was made.
    pub version: String,
    /// A TPM that is a program.
    pub software: bool,
}

/// Verifies the certificate `der` at `now_ms` (Unix time).
///
/// # Errors
/// [`CertificateError`]; software TPMs too, unless `danger_allow_software`.
pub fn verify(
    der: &[u8],
    trust: &Trust,
    now_ms: u64,
    danger_allow_software: bool,
) -> Result<Endorsed, CertificateError> {
    let der = CertificateDer::from(der);
    let leaf = EndEntityCert::try_from(&der).map_err(CertificateError::Path)?;
    check_path(&leaf, trust, now_ms)?;
    let key = key_of(leaf.subject_public_key_info().as_ref())?;
    let (maker, model, version) = names(&der).ok_or(CertificateError::NoMaker)?;
    let software = model.to_ascii_lowercase().contains("swtpm");
    if software && !danger_allow_software {
        return Err(CertificateError::Software { maker, model });
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest::digest(&digest::SHA256, &der).as_ref());
    Ok(Endorsed { key, fingerprint, maker, model, version, software })
}

/// Two passes: webpki asks issuers for a demanded purpose too, and makers' authorities have none. So the path is checked
/// with "if there is a purpose, this one", and then the leaf alone, right under its issuer, must have it.
fn check_path(leaf: &EndEntityCert<'_>, trust: &Trust, now_ms: u64) -> Result<(), CertificateError> {
    let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
    let check = |anchors: &[TrustAnchor<'_>], intermediates: &[CertificateDer<'_>], usage: KeyUsage| {
        leaf.verify_for_usage(ALL_VERIFICATION_ALGS, anchors, intermediates, now, usage, None, None).map(|_| ())
    };
    let usage = KeyUsage::required_if_present(EK_PURPOSE);
    let path = leaf
        .verify_for_usage(ALL_VERIFICATION_ALGS, &trust.anchors, &trust.intermediates, now, usage, None, None)
        .map_err(CertificateError::Path)?;
    let issuer = path.intermediate_certificates().next();
    let required = KeyUsage::required(EK_PURPOSE);
    match issuer {
        Some(issuer) => {
            let der = issuer.der();
            let anchor = anchor_from_trusted_cert(&der).map_err(CertificateError::Path)?;
            check(&[anchor], &[], required)
        }
        None => check(std::slice::from_ref(path.anchor()), &[], required),
    }
    .map_err(CertificateError::Path)
}

fn key_of(spki: &[u8]) -> Result<EndorsementKey, CertificateError> {
    fn point<const N: usize>(spki: &[u8], head: &[u8]) -> Option<[u8; N]> {
        let point: [u8; N] = spki.strip_prefix(head)?.try_into().ok()?;
        (point.first() == Some(&4)).then_some(point)
    }
    if let Some(point) = point(spki, P256_HEAD) {
        return Ok(EndorsementKey::P256(point));
    }
    if let Some(point) = point(spki, P384_HEAD) {
        return Ok(EndorsementKey::P384(point));
    }
    match PublicEncryptingKey::from_der(spki) {
        Ok(key) if key.key_size_bits() == 2048 => Ok(EndorsementKey::Rsa2048(spki.to_vec())),
        _ => Err(CertificateError::Key),
    }
}

/// Maker, model and version out of the subject's alternative name.
fn names(der: &[u8]) -> Option<(String, String, String)> {
    let certificate = Certificate::from_der(der).ok()?;
    let (_, names) = certificate.tbs_certificate().get_extension::<SubjectAltName>().ok()??;
    let (mut maker, mut model, mut version) = (None, None, None);
    for name in &names.0 {
        let GeneralName::DirectoryName(name) = name else { continue };
        for part in name.iter() {
            let place = match part.oid {
                AT_MANUFACTURER => &mut maker,
                AT_MODEL => &mut model,
                AT_VERSION => &mut version,
                _ => continue,
            };
            *place = Some(text(&part.value)?);
        }
    }
    Some((maker?, model?, version.unwrap_or_default()))
}

fn text(value: &x509_cert::der::Any) -> Option<String> {
    let text = value
        .decode_as::<Utf8StringRef<'_>>()
        .map(|text| text.as_str().to_owned())
        .or_else(|_| value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned()));
    Some(text.ok()?.chars().filter(|c| !c.is_control()).take(TEXT_CHARS_MAX).collect())
}
