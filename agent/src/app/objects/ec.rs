//! Elliptic curves as PKCS#11 writes them: object identifiers of curves, points in DER. The engine knows the encodings; here is which
//! curves keys of the ledger may have.

use mayfly_engine::Curve;
use mayfly_protocol::rules::KeyType;

use crate::app::ck::{CKR_ATTRIBUTE_VALUE_INVALID, CKR_CURVE_NOT_SUPPORTED};
use crate::app::fail::{Done, Fail};

/// The type of keys on the curve that CKA_EC_PARAMS names.
///
/// # Errors
/// CKR_CURVE_NOT_SUPPORTED, for explicit parameters too.
pub fn key_type(parameters: &[u8]) -> Done<KeyType> {
    match Curve::from_params_der(parameters) {
        Ok(Curve::P256) => Ok(KeyType::EcP256),
        _ => Err(Fail::new(CKR_CURVE_NOT_SUPPORTED, "the curve is not supported; P-256 is")),
    }
}

/// The curve of keys of this type.
pub fn curve(key_type: KeyType) -> Option<Curve> {
    match key_type {
        KeyType::EcP256 => Some(Curve::P256),
        KeyType::Aes(_) | KeyType::Generic(_) => None,
    }
}

/// CKA_EC_PARAMS of a key of this type; empty for types without a curve.
pub fn parameters(key_type: KeyType) -> &'static [u8] {
    curve(key_type).map_or(&[], Curve::params_der)
}

/// CKA_EC_POINT: the point as DER OCTET STRING (PKCS#11 v2.40, section 2.3.3), from any encoding that names a point of the curve.
///
/// # Errors
/// CKR_ATTRIBUTE_VALUE_INVALID.
pub fn point_der(key_type: KeyType, point: &[u8]) -> Done<Vec<u8>> {
    let der = curve(key_type).and_then(|curve| mayfly_engine::ec_point_der(curve, point).ok());
    der.ok_or_else(|| Fail::new(CKR_ATTRIBUTE_VALUE_INVALID, "CKA_EC_POINT is no point of its curve"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_in_both_forms() {
        let bare = mayfly_engine::generate_ec(Curve::P256).unwrap().public;
        let der = point_der(KeyType::EcP256, &bare).unwrap();
        assert_eq!((der.len(), &der[..2]), (67, &[4_u8, 65][..]));
        assert_eq!(point_der(KeyType::EcP256, &der).unwrap(), der);
        let off_curve = [&[4_u8][..], &[1; 64]].concat();
        for bad in [&b""[..], &[4], &bare[..64], &der[..66], &off_curve] {
            assert!(point_der(KeyType::EcP256, bad).is_err(), "{} bytes", bad.len());
        }
    }

    #[test]
    fn curves() {
        assert_eq!(key_type(parameters(KeyType::EcP256)).unwrap(), KeyType::EcP256);
        for bad in [&b""[..], Curve::P384.params_der(), b"\x05\x00"] {
            assert_eq!(key_type(bad).unwrap_err().code, CKR_CURVE_NOT_SUPPORTED);
        }
    }
}
