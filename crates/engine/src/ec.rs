//! Curves, and keys on them: generation, import, export, encodings.

use crate::ffi::{Owned, check, failed, forget_errors};
use crate::{Error, secretly};
use aws_lc_sys as lc;
use mayfly_secmem::{SecretBytes, random};
use std::mem::MaybeUninit;
use std::ptr;

/// Longest private key in PKCS#8, bytes: P-521 with its public key needs 241.
const PKCS8_BYTES_MAX: usize = 512;
/// Tries to draw a scalar in range. One fails with less than 2^-31, whatever the curve.
const DRAWS_MAX: u32 = 16;

/// A curve in short Weierstrass form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Curve {
    /// NIST P-256, also secp256r1, prime256v1
    P256,
    /// NIST P-384, also secp384r1
    P384,
    /// NIST P-521, also secp521r1
    P521,
    /// secp256k1 (SEC 2)
    Secp256k1,
}

/// A fresh key pair.
#[derive(Debug)]
pub struct EcPair {
    /// the private scalar, big-endian, [`Curve::scalar_bytes`] long
    pub private: SecretBytes,
    /// the public point, uncompressed (SEC 1: 0x04, x, y)
    pub public: Vec<u8>,
}

impl Curve {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::P256, Self::P384, Self::P521, Self::Secp256k1];

    /// Length of a scalar, of a coordinate, and of half a signature, bytes.
    #[must_use]
    pub const fn scalar_bytes(self) -> usize {
        match self {
            Self::P256 | Self::Secp256k1 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }

    /// Length of the field, bits: the key size that PKCS#11 shows.
    #[must_use]
    pub const fn bits(self) -> u32 {
        match self {
            Self::P256 | Self::Secp256k1 => 256,
            Self::P384 => 384,
            Self::P521 => 521,
        }
    }

    /// The curve's object identifier in DER: `CKA_EC_PARAMS` (RFC 5480, section 2.1.1.1).
    #[must_use]
    pub const fn params_der(self) -> &'static [u8] {
        match self {
            Self::P256 => &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07],
            Self::P384 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22],
            Self::P521 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x23],
            Self::Secp256k1 => &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x0a],
        }
    }

    /// The curve that `CKA_EC_PARAMS` names. Curves spelled out by their numbers are refused: they have been used to pass
    /// off chosen generators (CVE-2020-0601).
    ///
    /// # Errors
    /// [`Error::Curve`].
    pub fn from_params_der(der: &[u8]) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|curve| curve.params_der() == der).ok_or(Error::Curve)
    }

    fn nid(self) -> i32 {
        match self {
            Self::P256 => lc::NID_X9_62_prime256v1,
            Self::P384 => lc::NID_secp384r1,
            Self::P521 => lc::NID_secp521r1,
            Self::Secp256k1 => lc::NID_secp256k1,
        }
    }

    fn group(self) -> *const lc::EC_GROUP {
        // SAFETY: these return addresses of constants.
        unsafe {
            match self {
                Self::P256 => lc::EC_group_p256(),
                Self::P384 => lc::EC_group_p384(),
                Self::P521 => lc::EC_group_p521(),
                Self::Secp256k1 => lc::EC_group_secp256k1(),
            }
        }
    }
}

/// Draws a key pair; the private half from the kernel straight into the arena.
///
/// # Errors
/// [`Error::Random`], [`Error::Memory`], [`Error::Library`].
pub fn generate_ec(curve: Curve) -> Result<EcPair, Error> {
    for _ in 0..DRAWS_MAX {
        let private = SecretBytes::try_new_with(curve.scalar_bytes(), |scalar| {
            random(scalar)?;
            // Of P-521's 66 bytes only 521 bits are in use.
            scalar[0] &= (0xffu32 >> (scalar.len() as u32 * 8 - curve.bits())) as u8;
            Ok::<(), Error>(())
        })?;
        match ec_public(curve, private.expose()) {
            Ok(public) => return Ok(EcPair { private, public }),
            Err(Error::KeyValue(_)) => {}
            Err(why) => return Err(why),
        }
    }
    Err(Error::Library { call: "getrandom" })
}

/// The public point of a private scalar, uncompressed.
///
/// # Errors
/// [`Error::KeyLength`], [`Error::KeyValue`] when the scalar is 0 or not below the curve's order.
pub fn ec_public(curve: Curve, scalar: &[u8]) -> Result<Vec<u8>, Error> {
    secretly(|| {
        let (_key, number) = load_private(curve, scalar)?;
        let point = multiply_base(curve, &number)?;
        encode_point(curve, &point)
    })
}

/// A private key given as bytes (`CKA_VALUE`), brought to the fixed length. Leading zeros may be missing or too many.
///
/// # Errors
/// [`Error::KeyLength`], [`Error::KeyValue`].
pub fn import_ec_scalar(curve: Curve, bytes: &[u8]) -> Result<SecretBytes, Error> {
    secretly(|| {
        load_private(curve, bytes)?;
        let len = curve.scalar_bytes();
        Ok(SecretBytes::new_with(len, |scalar| {
            let kept = bytes.len().min(len);
            scalar[len - kept..].copy_from_slice(&bytes[bytes.len() - kept..]);
        })?)
    })
}

/// Private key and curve from PKCS#8 (RFC 5208, RFC 5915): `C_UnwrapKey`, key files. The public point that the file may
/// contain is checked against the private key.
///
/// # Errors
/// [`Error::KeyValue`] when it does not parse, has bytes left over, or is no key on a known curve.
pub fn import_ec_pkcs8(der: &[u8]) -> Result<(Curve, EcPair), Error> {
    const REFUSED: Error = Error::KeyValue("no EC key in PKCS#8 encoding");
    let mut found = None;
    let private = secretly(|| {
        let mut input = MaybeUninit::uninit();
        // SAFETY: `input` is initialised by CBS_init over `der`, which outlives it; a parsed key is a fresh object, ours.
        let (key, left) = unsafe {
            lc::CBS_init(input.as_mut_ptr(), der.as_ptr(), der.len());
            let key = Owned::new(lc::EVP_parse_private_key(input.as_mut_ptr()), "EVP_parse_private_key");
            (key.map_err(|_| REFUSED)?, lc::CBS_len(input.as_ptr()))
        };
        if left != 0 {
            return Err(REFUSED);
        }
        // SAFETY: a living key; what it lends is null (another type of key) or lives as long as the key.
        let (nid, number) = unsafe {
            let key = lc::EVP_PKEY_get0_EC_KEY(key.as_ptr());
            if key.is_null() {
                forget_errors();
                return Err(REFUSED);
            }
            (lc::EC_GROUP_get_curve_name(lc::EC_KEY_get0_group(key)), lc::EC_KEY_get0_private_key(key))
        };
        let curve = Curve::ALL.into_iter().find(|curve| curve.nid() == nid).ok_or(Error::Curve)?;
        found = Some(curve);
        SecretBytes::try_new_with(curve.scalar_bytes(), |scalar| {
            // SAFETY: `number` is lent by the key, which lives; `scalar` is writable for its length.
            check(unsafe { lc::BN_bn2bin_padded(scalar.as_mut_ptr(), scalar.len(), number) }, "BN_bn2bin_padded")
        })
    })?;
    let curve = found.ok_or(Error::Curve)?;
    let public = ec_public(curve, private.expose())?;
    Ok((curve, EcPair { private, public }))
}

/// Private key in PKCS#8 (RFC 5208, RFC 5915) with its public point: `C_WrapKey`.
///
/// # Errors
/// [`Error::KeyLength`], [`Error::KeyValue`].
pub fn export_ec_pkcs8(curve: Curve, scalar: &[u8]) -> Result<SecretBytes, Error> {
    secretly(|| {
        let (key, number) = load_private(curve, scalar)?;
        let point = multiply_base(curve, &number)?;
        // SAFETY: living objects; the functions copy, or count a reference to, what they are given.
        let holder = unsafe {
            check(lc::EC_KEY_set_public_key(key.as_ptr(), point.as_ptr()), "EC_KEY_set_public_key")?;
            let holder = Owned::new(lc::EVP_PKEY_new(), "EVP_PKEY_new")?;
            check(lc::EVP_PKEY_set1_EC_KEY(holder.as_ptr(), key.as_ptr()), "EVP_PKEY_set1_EC_KEY")?;
            holder
        };
        let mut len = 0;
        let mut der = SecretBytes::try_new_with(PKCS8_BYTES_MAX, |bytes| {
            let mut output = MaybeUninit::uninit();
            // SAFETY: `output` is initialised by CBB_init_fixed over `bytes`, which outlives it, and cleaned up on both
            // paths; a fixed one owns no memory. CBB_finish gives the length written.
            unsafe {
                check(lc::CBB_init_fixed(output.as_mut_ptr(), bytes.as_mut_ptr(), bytes.len()), "CBB_init_fixed")?;
                let done = lc::EVP_marshal_private_key(output.as_mut_ptr(), holder.as_ptr()) == 1
                    && lc::CBB_finish(output.as_mut_ptr(), ptr::null_mut(), &mut len) == 1;
                lc::CBB_cleanup(output.as_mut_ptr());
                if done { Ok(()) } else { Err(failed("EVP_marshal_private_key")) }
            }
        })?;
        der.truncate(len);
        Ok(der)
    })
}

/// A public point in any encoding that `CKA_EC_POINT` is met in, brought to the uncompressed one: SEC 1, compressed or not,
/// bare or as a DER OCTET STRING. Refused: the point at infinity, and what is not on the curve.
///
/// # Errors
/// [`Error::KeyValue`].
pub fn ec_point(curve: Curve, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let point = decode_point(curve, bytes)?;
    encode_point(curve, &point)
}

/// A public point as DER OCTET STRING: `CKA_EC_POINT` as PKCS#11 v2.40 wants it.
///
/// # Errors
/// [`Error::KeyValue`].
pub fn ec_point_der(curve: Curve, point: &[u8]) -> Result<Vec<u8>, Error> {
    let point = ec_point(curve, point)?;
    let header: &[u8] = if point.len() < 0x80 { &[] } else { &[0x81] };
    // At most 133 bytes: one byte of length.
    Ok([&[0x04], header, &[point.len() as u8], &point].concat())
}

/// The object of a private key, and its scalar as a number.
pub(crate) fn load_private(curve: Curve, scalar: &[u8]) -> Result<(Owned<lc::EC_KEY>, Owned<lc::BIGNUM>), Error> {
    // Twice the length leaves room for any amount of leading zeros that is met; the value is checked by the library.
    if scalar.is_empty() || scalar.len() > 2 * curve.scalar_bytes() {
        return Err(Error::KeyLength);
    }
    // SAFETY: fresh objects, ours; `scalar` is readable for its length.
    unsafe {
        let key = Owned::new(lc::EC_KEY_new_by_curve_name(curve.nid()), "EC_KEY_new_by_curve_name")?;
        let number = Owned::new(lc::BN_bin2bn(scalar.as_ptr(), scalar.len(), ptr::null_mut()), "BN_bin2bn")?;
        check(lc::EC_KEY_set_private_key(key.as_ptr(), number.as_ptr()), "EC_KEY_set_private_key")
            .map_err(|_| Error::KeyValue("the private key is zero or not below the order of the curve"))?;
        Ok((key, number))
    }
}

/// The object of a public key.
pub(crate) fn load_public(curve: Curve, point: &[u8]) -> Result<Owned<lc::EC_KEY>, Error> {
    let point = decode_point(curve, point)?;
    // SAFETY: a fresh object, ours; the point is of the same group and is copied.
    unsafe {
        let key = Owned::new(lc::EC_KEY_new_by_curve_name(curve.nid()), "EC_KEY_new_by_curve_name")?;
        check(lc::EC_KEY_set_public_key(key.as_ptr(), point.as_ptr()), "EC_KEY_set_public_key")
            .map_err(|_| Error::KeyValue("the public key is the point at infinity"))?;
        Ok(key)
    }
}

fn multiply_base(curve: Curve, number: &Owned<lc::BIGNUM>) -> Result<Owned<lc::EC_POINT>, Error> {
    // SAFETY: a fresh point of the same constant group; nulls mean "no second summand" and "no scratch space".
    unsafe {
        let point = Owned::new(lc::EC_POINT_new(curve.group()), "EC_POINT_new")?;
        check(
            lc::EC_POINT_mul(curve.group(), point.as_ptr(), number.as_ptr(), ptr::null(), ptr::null(), ptr::null_mut()),
            "EC_POINT_mul",
        )?;
        Ok(point)
    }
}

fn decode_point(curve: Curve, bytes: &[u8]) -> Result<Owned<lc::EC_POINT>, Error> {
    const REFUSED: Error = Error::KeyValue("the public key is no point of the curve");
    let bare = bare_point(curve, bytes).ok_or(REFUSED)?;
    // SAFETY: a fresh point of a constant group; `bare` is readable for its length. The library checks the curve equation.
    unsafe {
        let point = Owned::new(lc::EC_POINT_new(curve.group()), "EC_POINT_new")?;
        let decoded = lc::EC_POINT_oct2point(curve.group(), point.as_ptr(), bare.as_ptr(), bare.len(), ptr::null_mut());
        check(decoded, "EC_POINT_oct2point").map_err(|_| REFUSED)?;
        Ok(point)
    }
}

/// The point without a DER header. 0x04 begins both a bare uncompressed point and an OCTET STRING, so the length decides; no
/// curve has two encodings of one length.
fn bare_point(curve: Curve, bytes: &[u8]) -> Option<&[u8]> {
    let (compressed, uncompressed) = (1 + curve.scalar_bytes(), 1 + 2 * curve.scalar_bytes());
    let bare = match bytes {
        _ if bytes.len() == compressed || bytes.len() == uncompressed => bytes,
        [0x04, len @ 0..=0x7f, rest @ ..] if usize::from(*len) == rest.len() => rest,
        [0x04, 0x81, len @ 0x80..=0xff, rest @ ..] if usize::from(*len) == rest.len() => rest,
        _ => return None,
    };
    match (bare.len(), bare.first()?) {
        (len, 0x04) if len == uncompressed => Some(bare),
        (len, 0x02 | 0x03) if len == compressed => Some(bare),
        _ => None,
    }
}

fn encode_point(curve: Curve, point: &Owned<lc::EC_POINT>) -> Result<Vec<u8>, Error> {
    let mut bytes = vec![0; 1 + 2 * curve.scalar_bytes()];
    // SAFETY: a living point of the same group; `bytes` is writable for its length.
    let written = unsafe {
        lc::EC_POINT_point2oct(
            curve.group(),
            point.as_ptr(),
            lc::point_conversion_form_t::POINT_CONVERSION_UNCOMPRESSED,
            bytes.as_mut_ptr(),
            bytes.len(),
            ptr::null_mut(),
        )
    };
    if written == bytes.len() { Ok(bytes) } else { Err(failed("EC_POINT_point2oct")) }
}
