//! Endorsement keys: where TPMs keep the certificates, and the templates by which the keys are made again (TCG EK
//! Credential Profile 2.5, annex B). The maker certified that key and no other, so a verifier encrypts to it.

use crate::marshal::{Malformed, Reader, Writer};
use crate::object::{
    ALG_AES, ALG_CFB, ALG_ECC, ALG_NULL, ALG_RSA, ALG_SHA256, ALG_SHA384, CURVE_P256, CURVE_P384,
    attribute::{
        ADMIN_WITH_POLICY, DECRYPT, FIXED_PARENT, FIXED_TPM, RESTRICTED, SENSITIVE_DATA_ORIGIN, USER_WITH_AUTH,
    },
};

/// PolicyA by SHA-256: the endorsement hierarchy's auth value.
const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52, 0xd7,
    0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];
/// PolicyB by SHA-256: PolicyA or a policy in an index.
const POLICY_B: [u8; 32] = [
    0xca, 0x3d, 0x0a, 0x99, 0xa2, 0xb9, 0x39, 0x06, 0xf7, 0xa3, 0x34, 0x24, 0x14, 0xef, 0xcf, 0xb3, 0xa3, 0x85, 0xd4,
    0x4c, 0xd1, 0xfd, 0x45, 0x90, 0x89, 0xd1, 0x9b, 0x50, 0x71, 0xc0, 0xb7, 0xa0,
];
/// PolicyB by SHA-384.
const POLICY_B_384: [u8; 48] = [
    0xb2, 0x6e, 0x7d, 0x28, 0xd1, 0x1a, 0x50, 0xbc, 0x53, 0xd8, 0x82, 0xbc, 0xf5, 0xfd, 0x3a, 0x1a, 0x07, 0x41, 0x48,
    0xbb, 0x35, 0xd3, 0xb4, 0xe4, 0xcb, 0x1c, 0x0a, 0xd9, 0xbd, 0xe4, 0x19, 0xca, 0xcb, 0x47, 0xba, 0x09, 0x69, 0x96,
    0x46, 0x15, 0x0f, 0x9f, 0xc0, 0x00, 0xf3, 0xf8, 0x0e, 0x12,
];

/// The endorsement keys that are looked for, in the order of preference: elliptic curves cost a chip milliseconds where
/// an RSA key costs seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endorsement {
    /// Template L-2.
    P256Low,
    /// Template H-2.
    P256High,
    /// Template H-3.
    P384High,
    /// Template L-1.
    Rsa2048Low,
    /// Template H-1.
    Rsa2048High,
}

use Endorsement::*;

impl Endorsement {
    /// All of them, best first.
    pub const ALL: [Endorsement; 5] = [P256Low, P256High, P384High, Rsa2048Low, Rsa2048High];

    /// The NV index of its certificate.
    #[must_use]
    pub fn certificate_index(self) -> u32 {
        match self {
            Rsa2048Low => 0x01c0_0002,
            P256Low => 0x01c0_000a,
            Rsa2048High => 0x01c0_0012,
            P256High => 0x01c0_0014,
            P384High => 0x01c0_0016,
        }
    }

    /// The kind whose certificate lies at `index`.
    #[must_use]
    pub fn of_index(index: u32) -> Option<Endorsement> {
        Self::ALL.into_iter().find(|kind| kind.certificate_index() == index)
    }

    /// True when its use takes a policy session with PolicySecret(endorsement); else its empty auth value does.
    #[must_use]
    pub fn by_policy(self) -> bool {
        matches!(self, Rsa2048Low | P256Low)
    }

    /// The template to create it by.
    #[must_use]
    pub fn template(self) -> Vec<u8> {
        let head = self.head();
        match self {
            // the low templates have zeros where the key will be, the high ones nothing
            Rsa2048Low => head.sized(&[0; 256]),
            P256Low => head.sized(&[0; 32]).sized(&[0; 32]),
            Rsa2048High => head.sized(&[]),
            P256High | P384High => head.sized(&[]).sized(&[]),
        }
        .finish()
    }

    /// The key itself (modulus, or x || y) in a public area of this template; its bytes stand in the certificate too.
    ///
    /// # Errors
    /// Another template.
    pub fn key(self, public: &[u8]) -> Result<Vec<u8>, Malformed> {
        let head = self.head().finish();
        let rest = public.strip_prefix(head.as_slice()).ok_or(Malformed("not the endorsement key's template"))?;
        let mut reader = Reader::new(rest);
        let mut key = reader.sized(256)?.to_vec();
        if !matches!(self, Rsa2048Low | Rsa2048High) {
            key.extend_from_slice(reader.sized(48)?);
        }
        reader.finish()?;
        Ok(key)
    }

    fn head(self) -> Writer {
        let (name_alg, policy, aes_bits): (u16, &[u8], u16) = match self {
            Rsa2048Low | P256Low => (ALG_SHA256, &POLICY_A, 128),
            Rsa2048High | P256High => (ALG_SHA256, &POLICY_B, 128),
            P384High => (ALG_SHA384, &POLICY_B_384, 256),
        };
        let fixed = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | ADMIN_WITH_POLICY | RESTRICTED | DECRYPT;
        let attributes = if self.by_policy() { fixed } else { fixed | USER_WITH_AUTH };
        let kind = if matches!(self, Rsa2048Low | Rsa2048High) { ALG_RSA } else { ALG_ECC };
        let head = Writer::new().u16(kind).u16(name_alg).u32(attributes).sized(policy);
        let head = head.u16(ALG_AES).u16(aes_bits).u16(ALG_CFB).u16(ALG_NULL);
        match self {
            Rsa2048Low | Rsa2048High => head.u16(2048).u32(0),
            P256Low | P256High => head.u16(CURVE_P256).u16(ALG_NULL),
            P384High => head.u16(CURVE_P384).u16(ALG_NULL),
        }
    }
}

/// Cuts a certificate out of what an index holds: some makers pad with 0xff, some put a header of the TCG in front.
///
/// # Errors
/// No DER sequence in it.
pub fn cut_certificate(contents: &[u8]) -> Result<&[u8], Malformed> {
    // TCG PC Client: tag 0x1001, type 0, length (16 bits each but the type, 8): five bytes before the certificate
    const HEADER: [u8; 3] = [0x10, 0x01, 0x00];
    let der = match contents.strip_prefix(&HEADER) {
        Some(rest) => rest.get(2..).ok_or(Malformed("cut short"))?,
        None => contents,
    };
    let mut reader = Reader::new(der);
    if reader.u8()? != 0x30 {
        return Err(Malformed("not a certificate"));
    }
    let length = match reader.u8()? {
        short @ 0..=0x7f => 2 + usize::from(short),
        0x81 => 3 + usize::from(reader.u8()?),
        0x82 => 4 + usize::from(reader.u16()?),
        _ => return Err(Malformed("not a certificate")),
    };
    der.get(..length).ok_or(Malformed("cut short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices() {
        for kind in Endorsement::ALL {
            assert_eq!(Endorsement::of_index(kind.certificate_index()), Some(kind));
        }
        assert_eq!(Endorsement::of_index(0x01c0_0003), None);
    }

    #[test]
    fn keys_are_read_out_of_their_own_template_only() {
        for kind in Endorsement::ALL {
            for other in Endorsement::ALL {
                assert_eq!(other.key(&kind.template()).is_ok(), kind == other, "{kind:?} as {other:?}");
            }
        }
    }

    #[test]
    fn certificates_are_cut() {
        let short = [0x30, 2, 1, 2];
        let long: Vec<u8> = [&[0x30, 0x82, 1, 0][..], &[5; 256]].concat();
        let middle: Vec<u8> = [&[0x30, 0x81, 0x80][..], &[5; 128]].concat();
        for der in [&short[..], &middle, &long] {
            assert_eq!(cut_certificate(der), Ok(der));
            assert_eq!(cut_certificate(&[der, &[0xff; 100]].concat()), Ok(der), "padded");
            assert_eq!(cut_certificate(&[&[0x10, 0x01, 0x00, 0, 9][..], der].concat()), Ok(der), "with a header");
            assert!(cut_certificate(&der[..der.len() - 1]).is_err());
        }
        for bad in [&[][..], &[0xff; 40], &[0x30, 0x80, 0, 0], &[0x30, 0x83, 0, 0, 1, 0], &[0x10, 0x01, 0x00]] {
            assert!(cut_certificate(bad).is_err(), "{bad:?}");
        }
    }
}
