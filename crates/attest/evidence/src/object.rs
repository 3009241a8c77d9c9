//! Public areas (TPMT_PUBLIC) of the keys of a vault, each from one template, and their Names.
//!
//! A Name is the hash of a public area, so it stands for every attribute: whoever rebuilds the area from the template and
//! gets the Name that the TPM certified knows that the key cannot leave the chip, was made in it, and what it may sign.

use crate::marshal::{Malformed, Reader, Writer};
use crate::sha256;
use sha2::{Digest, Sha384};

/// TPM_ALG_RSA.
pub const ALG_RSA: u16 = 0x0001;
/// TPM_ALG_AES.
pub const ALG_AES: u16 = 0x0006;
/// TPM_ALG_KEYEDHASH.
pub const ALG_KEYEDHASH: u16 = 0x0008;
/// TPM_ALG_SHA256.
pub const ALG_SHA256: u16 = 0x000b;
/// TPM_ALG_SHA384.
pub const ALG_SHA384: u16 = 0x000c;
/// TPM_ALG_NULL.
pub const ALG_NULL: u16 = 0x0010;
/// TPM_ALG_ECDSA.
pub const ALG_ECDSA: u16 = 0x0018;
/// TPM_ALG_ECC.
pub const ALG_ECC: u16 = 0x0023;
/// TPM_ALG_CFB.
pub const ALG_CFB: u16 = 0x0043;
/// TPM_ECC_NIST_P256.
pub const CURVE_P256: u16 = 0x0003;
/// TPM_ECC_NIST_P384.
pub const CURVE_P384: u16 = 0x0004;
/// TPM_RH_OWNER, the root of our keys' qualified names.
pub const OWNER: u32 = 0x4000_0001;

/// Attributes of objects (TPMA_OBJECT).
pub mod attribute {
    /// Never leaves this TPM.
    pub const FIXED_TPM: u32 = 1 << 1;
    /// Never gets another parent.
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// Made by this TPM.
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// Its auth value alone permits its use.
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// Administration needs its policy.
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// Not subject to the lockout after failed authorisations.
    pub const NO_DA: u32 = 1 << 10;
    /// Only for structures that the TPM itself made.
    pub const RESTRICTED: u32 = 1 << 16;
    /// Decrypts.
    pub const DECRYPT: u32 = 1 << 17;
    /// Signs.
    pub const SIGN: u32 = 1 << 18;
}
use attribute::*;

/// Largest public area that is taken from outside: an RSA-4096 key's has about 600 bytes.
pub const PUBLIC_BYTES_MAX: usize = 1024;
/// Bytes of a Name with SHA-256.
pub const NAME_BYTES: usize = 34;

/// A Name by SHA-256: the algorithm's number and the hash of the public area.
pub type Name = [u8; NAME_BYTES];

/// A point of P-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Big-endian.
    pub x: [u8; 32],
    /// Big-endian.
    pub y: [u8; 32],
}

impl Point {
    /// SEC 1 without compression: 4, x, y.
    #[must_use]
    pub fn uncompressed(&self) -> [u8; 65] {
        let mut out = [4; 65];
        out[1..33].copy_from_slice(&self.x);
        out[33..].copy_from_slice(&self.y);
        out
    }

    /// SEC 1 with compression, as identity keys are on the ledger: 2 or 3, x.
    #[must_use]
    pub fn compressed(&self) -> [u8; 33] {
        let mut out = [2 | (self.y[31] & 1); 33];
        out[1..].copy_from_slice(&self.x);
        out
    }
}

/// What a signing key of a vault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Signs messages of the device: delegations, generations. Not restricted: it may never speak for the TPM.
    Identity,
    /// Signs what the TPM says about itself, and nothing else (restricted).
    Attestation,
}

/// The template of a signing key: its public area up to the point.
fn signing_head(role: Role) -> Writer {
    let own = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | SIGN;
    let attributes = match role {
        Role::Identity => own,
        Role::Attestation => own | RESTRICTED,
    };
    ecc_head(attributes).u16(ALG_NULL).u16(ALG_ECDSA).u16(ALG_SHA256).u16(CURVE_P256).u16(ALG_NULL)
}

fn ecc_head(attributes: u32) -> Writer {
    Writer::new().u16(ALG_ECC).u16(ALG_SHA256).u32(attributes).sized(&[])
}

/// The public area of a signing key; without a point, the template to create one by.
#[must_use]
pub fn signing_key(role: Role, point: Option<&Point>) -> Vec<u8> {
    let head = signing_head(role);
    match point {
        Some(point) => head.sized(&point.x).sized(&point.y),
        None => head.sized(&[]).sized(&[]),
    }
    .finish()
}

/// The point of a signing key whose public area a TPM gave; all else in it must be the template.
///
/// # Errors
/// Another template, or coordinates that are not 32 bytes each (some old chips leave leading zeros out; the Name of such
/// a key could not be rebuilt).
pub fn signing_point(role: Role, public: &[u8]) -> Result<Point, Malformed> {
    let head = signing_head(role).finish();
    let rest = public.strip_prefix(head.as_slice()).ok_or(Malformed("not the key's template"))?;
    let mut reader = Reader::new(rest);
    let point = Point { x: exactly(reader.sized(32)?)?, y: exactly(reader.sized(32)?)? };
    reader.finish()?;
    Ok(point)
}

fn exactly(bytes: &[u8]) -> Result<[u8; 32], Malformed> {
    bytes.try_into().map_err(|_| Malformed("a coordinate without its leading zeros"))
}

/// The storage root key (TCG TPM v2.0 Provisioning Guidance, 7.5.1; ECC P-256, as Linux makes it): the template, with 32
/// zero bytes for each coordinate.
#[must_use]
pub fn storage_root() -> Vec<u8> {
    let attributes = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | USER_WITH_AUTH | NO_DA | RESTRICTED | DECRYPT;
    let head = ecc_head(attributes).u16(ALG_AES).u16(128).u16(ALG_CFB).u16(ALG_NULL).u16(CURVE_P256).u16(ALG_NULL);
    head.sized(&[0; 32]).sized(&[0; 32]).finish()
}

/// Whether a public area is one of a storage key that cannot leave its TPM, by whoever it was made.
///
/// # Errors
/// What is missing.
pub fn check_storage_key(public: &[u8]) -> Result<(), Malformed> {
    if public.len() > PUBLIC_BYTES_MAX {
        return Err(Malformed("longer than its limit"));
    }
    let mut reader = Reader::new(public);
    let (kind, name_alg, attributes) = (reader.u16()?, reader.u16()?, reader.u32()?);
    if !matches!(kind, ALG_RSA | ALG_ECC) {
        return Err(Malformed("neither an RSA nor an ECC key"));
    }
    if name_alg != ALG_SHA256 {
        return Err(Malformed("its Name is not by SHA-256"));
    }
    let needed = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN | RESTRICTED | DECRYPT;
    if attributes & needed != needed || attributes & SIGN != 0 {
        return Err(Malformed("not a storage key that stays in its TPM"));
    }
    Ok(())
}

/// The template of a sealed secret: opens by its policy only (no [`USER_WITH_AUTH`]), cannot leave the TPM or its parent.
#[must_use]
pub fn sealed(policy: &[u8; 32]) -> Vec<u8> {
    sealed_head(policy).sized(&[]).finish()
}

fn sealed_head(policy: &[u8; 32]) -> Writer {
    let attributes = FIXED_TPM | FIXED_PARENT | NO_DA;
    Writer::new().u16(ALG_KEYEDHASH).u16(ALG_SHA256).u32(attributes).sized(policy).u16(ALG_NULL)
}

/// Whether a public area is that of a secret sealed under `policy`.
///
/// # Errors
/// Another template or another policy.
pub fn check_sealed(policy: &[u8; 32], public: &[u8]) -> Result<(), Malformed> {
    let head = sealed_head(policy).finish();
    let rest = public.strip_prefix(head.as_slice()).ok_or(Malformed("sealed under another policy"))?;
    let mut reader = Reader::new(rest);
    reader.sized(32)?;
    reader.finish()
}

/// The public area under which somebody else's P-256 key (the PCR approver's) is loaded to verify signatures.
#[must_use]
pub fn verification_key(point: &Point) -> Vec<u8> {
    let head = ecc_head(SIGN | USER_WITH_AUTH).u16(ALG_NULL).u16(ALG_ECDSA).u16(ALG_SHA256).u16(CURVE_P256);
    head.u16(ALG_NULL).sized(&point.x).sized(&point.y).finish()
}

/// The Name of a public area whose name algorithm is SHA-256 (TPM 2.0 Library, part 1, 16).
#[must_use]
pub fn name(public: &[u8]) -> Name {
    named(&sha256(&[public]))
}

/// The Name of a public area by its own name algorithm (EKs may have SHA-384).
///
/// # Errors
/// An algorithm that is neither SHA-256 nor SHA-384.
pub fn name_by_own_algorithm(public: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut reader = Reader::new(public);
    reader.u16()?;
    match reader.u16()? {
        ALG_SHA256 => Ok(name(public).to_vec()),
        ALG_SHA384 => Ok(Writer::new().u16(ALG_SHA384).raw(&Sha384::digest(public)).finish()),
        _ => Err(Malformed("unknown name algorithm")),
    }
}

/// The qualified name of an object whose parent has the qualified name `parent`; a hierarchy's is its handle.
#[must_use]
pub fn qualified_name(parent: &[u8], name: &Name) -> Name {
    named(&sha256(&[parent, name]))
}

/// The qualified name of a key right under a storage root key of the owner hierarchy.
#[must_use]
pub fn qualified_under(storage_root: &Name, name: &Name) -> Name {
    qualified_name(&qualified_name(&OWNER.to_be_bytes(), storage_root), name)
}

pub(crate) fn named(digest: &[u8; 32]) -> Name {
    let mut out = [0; NAME_BYTES];
    out[..2].copy_from_slice(&ALG_SHA256.to_be_bytes());
    out[2..].copy_from_slice(digest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINT: Point = Point { x: [0x11; 32], y: [0x22; 32] };

    #[test]
    fn a_signing_key_is_its_template_and_a_point() {
        for role in [Role::Identity, Role::Attestation] {
            let public = signing_key(role, Some(&POINT));
            assert_eq!(signing_point(role, &public), Ok(POINT));
            for at in 0..public.len() - 68 {
                let mut other = public.clone();
                other[at] ^= 1;
                assert!(signing_point(role, &other).is_err(), "byte {at} of the template changed");
            }
            let longer = [public.as_slice(), &[0]].concat();
            assert!(signing_point(role, &longer).is_err());
        }
        let identity = signing_key(Role::Identity, Some(&POINT));
        assert!(signing_point(Role::Attestation, &identity).is_err(), "an identity key must never attest");
    }

    #[test]
    fn a_coordinate_keeps_its_zeros() {
        let short = signing_head(Role::Identity).sized(&[1; 31]).sized(&[1; 32]).finish();
        assert!(signing_point(Role::Identity, &short).is_err());
    }

    #[test]
    fn storage_keys() {
        let good = storage_root();
        assert_eq!(check_storage_key(&good), Ok(()));
        for bit in [FIXED_TPM, FIXED_PARENT, SENSITIVE_DATA_ORIGIN, RESTRICTED, DECRYPT, SIGN] {
            let mut other = good.clone();
            let attributes = u32::from_be_bytes([other[4], other[5], other[6], other[7]]) ^ bit;
            other[4..8].copy_from_slice(&attributes.to_be_bytes());
            assert!(check_storage_key(&other).is_err(), "attribute {bit:#x}");
        }
        assert!(check_storage_key(&sealed(&[0; 32])).is_err());
        assert!(check_storage_key(&[]).is_err());
        assert!(check_storage_key(&[good, vec![0; PUBLIC_BYTES_MAX]].concat()).is_err());
    }

    #[test]
    fn sealed_secrets() {
        let public = sealed_head(&[7; 32]).sized(&[9; 32]).finish();
        assert_eq!(check_sealed(&[7; 32], &public), Ok(()));
        assert!(check_sealed(&[8; 32], &public).is_err());
        assert_eq!(public[4..8], [0, 0, 0x04, 0x12], "fixedTPM, fixedParent, noDA, and never userWithAuth");
    }

    #[test]
    fn points() {
        assert_eq!(POINT.compressed()[0], 2);
        assert_eq!(Point { y: [0x23; 32], ..POINT }.compressed()[0], 3);
        assert_eq!(POINT.uncompressed()[..2], [4, 0x11]);
    }
}
