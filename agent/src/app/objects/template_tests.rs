use super::*;
use mayfly_wire::TemplateBuf;

type Item<'a> = (CK_ATTRIBUTE_TYPE, &'a [u8]);

const T: &[u8] = &[1];
const F: &[u8] = &[0];
const SECRET_KEY: &[u8] = &[CKO_SECRET_KEY as u8, 0, 0, 0, 0, 0, 0, 0];
const PRIVATE_KEY: &[u8] = &[CKO_PRIVATE_KEY as u8, 0, 0, 0, 0, 0, 0, 0];
const PUBLIC_KEY: &[u8] = &[CKO_PUBLIC_KEY as u8, 0, 0, 0, 0, 0, 0, 0];
const CERTIFICATE: &[u8] = &[CKO_CERTIFICATE as u8, 0, 0, 0, 0, 0, 0, 0];
const DATA: &[u8] = &[0; 8];
const X509: &[u8] = &[0; 8];
const AES: &[u8] = &[CKK_AES as u8, 0, 0, 0, 0, 0, 0, 0];
const GENERIC: &[u8] = &[CKK_GENERIC_SECRET as u8, 0, 0, 0, 0, 0, 0, 0];
const RSA: &[u8] = &[0; 8];
const EC: &[u8] = &[CKK_EC as u8, 0, 0, 0, 0, 0, 0, 0];
const P256: &[u8] = &[0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

fn with<R>(items: &[Item<'_>], f: impl FnOnce(Done<Template<'_>>) -> R) -> R {
    let mut template = TemplateBuf::new();
    items.iter().for_each(|(kind, value)| template.push(*kind, value));
    f(Template::read(template.as_list()))
}

fn a_point() -> Vec<u8> {
    mayfly_engine::generate_ec(mayfly_engine::Curve::P256).unwrap().public
}

fn number(value: u64) -> [u8; 8] {
    value.to_le_bytes()
}

/// Attributes of what `items` gives, or the code of the refusal.
fn brought(items: &[Item<'_>]) -> Result<(Vec<Attribute>, bool), CK_RV> {
    with(items, |t| t.and_then(|t| Draft::brought(&t).map(|d| (d.attributes.clone(), d.secret().is_some()))))
        .map_err(|e| e.code)
}

fn generated(items: &[Item<'_>]) -> Result<Vec<Attribute>, CK_RV> {
    with(items, |t| t.and_then(|t| Draft::generated_secret(CKM_AES_KEY_GEN, CKK_AES, &t).map(|d| d.attributes)))
        .map_err(|e| e.code)
}

#[test]
fn a_silent_template_gives_a_careful_key() {
    let attributes = generated(&[(CKA_VALUE_LEN, &number(32))]).unwrap();
    for (kind, expected) in [
        (CKA_TOKEN, false),
        (CKA_PRIVATE, true),
        (CKA_SENSITIVE, true),
        (CKA_EXTRACTABLE, false),
        (CKA_ALWAYS_SENSITIVE, true),
        (CKA_NEVER_EXTRACTABLE, true),
        (CKA_LOCAL, true),
        (CKA_ENCRYPT, true),
        (CKA_DECRYPT, true),
        (CKA_SIGN, true),
        (CKA_VERIFY, true),
        (CKA_DERIVE, true),
        (CKA_WRAP, false),
        (CKA_UNWRAP, false),
        (CKA_MODIFIABLE, true),
        (CKA_COPYABLE, true),
        (CKA_DESTROYABLE, true),
        (CKA_TRUSTED, false),
        (CKA_WRAP_WITH_TRUSTED, false),
    ] {
        assert_eq!(stored_bool(&attributes, kind), Some(expected), "{kind:#x}");
    }
    assert_eq!(stored_ulong(&attributes, CKA_KEY_GEN_MECHANISM), Some(CKM_AES_KEY_GEN));
    assert_eq!(stored_ulong(&attributes, CKA_VALUE_LEN), Some(32));
    assert_eq!(stored(&attributes, CKA_ID), Some(&b""[..]));
    assert!(attributes.is_sorted_by(|a, b| a.kind < b.kind));
}

#[test]
fn histories_are_told_truly() {
    let cases: &[(&[Item<'_>], bool, bool)] = &[
        (&[(CKA_SENSITIVE, F), (CKA_EXTRACTABLE, F)], false, true),
        (&[(CKA_SENSITIVE, T), (CKA_EXTRACTABLE, T)], true, false),
        (&[(CKA_SENSITIVE, F), (CKA_EXTRACTABLE, T)], false, false),
    ];
    for (items, always_sensitive, never_extractable) in cases {
        let mut all = items.to_vec();
        let length = number(16);
        all.push((CKA_VALUE_LEN, &length));
        let made = generated(&all).unwrap();
        assert_eq!(stored_bool(&made, CKA_ALWAYS_SENSITIVE), Some(*always_sensitive), "{items:?}");
        assert_eq!(stored_bool(&made, CKA_NEVER_EXTRACTABLE), Some(*never_extractable), "{items:?}");
        all.pop();
        all.extend([(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, AES), (CKA_VALUE, &[7; 16][..])]);
        let (taken, has_secret) = brought(&all).unwrap();
        for kind in [CKA_ALWAYS_SENSITIVE, CKA_NEVER_EXTRACTABLE, CKA_LOCAL] {
            assert_eq!(stored_bool(&taken, kind), Some(false), "an imported key has a past: {kind:#x}");
        }
        assert_eq!(stored_ulong(&taken, CKA_KEY_GEN_MECHANISM), Some(CK_UNAVAILABLE_INFORMATION));
        assert!(has_secret);
    }
}

#[test]
fn secret_values_stay_out_of_attributes() {
    let private = [9; 32];
    let cases: &[(&[Item<'_>], bool)] = &[
        (&[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, GENERIC), (CKA_VALUE, b"secret")], true),
        (&[(CKA_CLASS, PRIVATE_KEY), (CKA_KEY_TYPE, EC), (CKA_EC_PARAMS, P256), (CKA_VALUE, &private)], true),
        (&[(CKA_CLASS, DATA), (CKA_PRIVATE, T), (CKA_VALUE, b"secret")], true),
        (&[(CKA_CLASS, DATA), (CKA_VALUE, b"public")], false),
        (&[(CKA_CLASS, CERTIFICATE), (CKA_CERTIFICATE_TYPE, X509), (CKA_SUBJECT, b"s"), (CKA_VALUE, b"der")], false),
    ];
    for (items, secret) in cases {
        let (attributes, has_secret) = brought(items).unwrap();
        assert_eq!(has_secret, *secret, "{items:?}");
        assert_eq!(stored(&attributes, CKA_VALUE).is_none(), *secret, "{items:?}");
    }
}

#[test]
fn refusals() {
    let (bits, sixteen, point) = (number(16), number(16), a_point());
    let short = number(5);
    let cases: &[(&[Item<'_>], CK_RV, &str)] = &[
        (&[], CKR_TEMPLATE_INCOMPLETE, "no class"),
        (&[(CKA_CLASS, &number(CKO_DOMAIN_PARAMETERS))], CKR_ATTRIBUTE_VALUE_INVALID, "unknown class"),
        (&[(CKA_CLASS, &[4])], CKR_TEMPLATE_INCOMPLETE, "class in one byte"),
        (&[(CKA_CLASS, DATA), (CKA_SIGN, T)], CKR_ATTRIBUTE_TYPE_INVALID, "not of this class"),
        (&[(CKA_CLASS, DATA), (0x8000_0001, T)], CKR_ATTRIBUTE_TYPE_INVALID, "vendor's"),
        (&[(CKA_CLASS, DATA), (CKA_TOKEN, &[2])], CKR_ATTRIBUTE_VALUE_INVALID, "no truth value"),
        (&[(CKA_CLASS, DATA), (CKA_UNIQUE_ID, b"x")], CKR_ATTRIBUTE_READ_ONLY, "computed"),
        (&[(CKA_CLASS, DATA), (CKA_LABEL, b"a"), (CKA_LABEL, b"b")], CKR_TEMPLATE_INCONSISTENT, "twice"),
        (&[(CKA_CLASS, CERTIFICATE)], CKR_TEMPLATE_INCOMPLETE, "no certificate type"),
        (&[(CKA_CLASS, CERTIFICATE), (CKA_CERTIFICATE_TYPE, X509)], CKR_TEMPLATE_INCOMPLETE, "no subject"),
        (
            &[(CKA_CLASS, CERTIFICATE), (CKA_CERTIFICATE_TYPE, X509), (CKA_SUBJECT, b"")],
            CKR_TEMPLATE_INCOMPLETE,
            "no value",
        ),
        (
            &[
                (CKA_CLASS, CERTIFICATE),
                (CKA_CERTIFICATE_TYPE, X509),
                (CKA_SUBJECT, b""),
                (CKA_VALUE, b"x"),
                (CKA_TRUSTED, T),
            ],
            CKR_ATTRIBUTE_READ_ONLY,
            "trusted by anybody",
        ),
        (&[(CKA_CLASS, SECRET_KEY), (CKA_VALUE, &[0; 16])], CKR_TEMPLATE_INCOMPLETE, "no key type"),
        (&[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, AES)], CKR_TEMPLATE_INCOMPLETE, "no value"),
        (&[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, AES), (CKA_VALUE, &[0; 17])], CKR_KEY_SIZE_RANGE, "17 bytes"),
        (&[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, GENERIC), (CKA_VALUE, b"")], CKR_KEY_SIZE_RANGE, "nothing"),
        (
            &[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, AES), (CKA_VALUE, &[0; 16]), (CKA_VALUE_LEN, &short)],
            CKR_TEMPLATE_INCONSISTENT,
            "two lengths",
        ),
        (
            &[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, &number(CKK_DES3)), (CKA_VALUE, &[0; 24])],
            CKR_ATTRIBUTE_VALUE_INVALID,
            "DES",
        ),
        (
            &[(CKA_CLASS, SECRET_KEY), (CKA_KEY_TYPE, AES), (CKA_VALUE, &[0; 16]), (CKA_LOCAL, T)],
            CKR_ATTRIBUTE_READ_ONLY,
            "made here, it says",
        ),
        (
            &[(CKA_CLASS, PRIVATE_KEY), (CKA_KEY_TYPE, RSA), (CKA_MODULUS, &bits), (CKA_PUBLIC_EXPONENT, &bits)],
            CKR_ATTRIBUTE_VALUE_INVALID,
            "RSA import",
        ),
        (&[(CKA_CLASS, PRIVATE_KEY), (CKA_KEY_TYPE, EC), (CKA_VALUE, &[1; 32])], CKR_TEMPLATE_INCOMPLETE, "no curve"),
        (
            &[(CKA_CLASS, PRIVATE_KEY), (CKA_KEY_TYPE, EC), (CKA_EC_PARAMS, b"\x05\0"), (CKA_VALUE, &[1; 32])],
            CKR_CURVE_NOT_SUPPORTED,
            "strange curve",
        ),
        (&[(CKA_CLASS, PUBLIC_KEY), (CKA_KEY_TYPE, RSA), (CKA_MODULUS, &bits)], CKR_TEMPLATE_INCOMPLETE, "no exponent"),
        (
            &[(CKA_CLASS, PUBLIC_KEY), (CKA_KEY_TYPE, EC), (CKA_EC_PARAMS, P256), (CKA_EC_POINT, &point[..60])],
            CKR_ATTRIBUTE_VALUE_INVALID,
            "short point",
        ),
        (
            &[(CKA_CLASS, DATA), (CKA_VALUE, &[0; 16_000]), (CKA_APPLICATION, &[0; 16_000])],
            CKR_DEVICE_MEMORY,
            "larger than a record",
        ),
    ];
    for (items, code, what) in cases {
        assert_eq!(brought(items).unwrap_err(), *code, "{what}");
    }
    let generate: &[(&[Item<'_>], CK_RV, &str)] = &[
        (&[], CKR_TEMPLATE_INCOMPLETE, "no length"),
        (&[(CKA_VALUE_LEN, &short)], CKR_KEY_SIZE_RANGE, "5 bytes"),
        (&[(CKA_VALUE_LEN, &number(u64::MAX))], CKR_KEY_SIZE_RANGE, "absurd"),
        (&[(CKA_VALUE_LEN, &sixteen), (CKA_CLASS, PRIVATE_KEY)], CKR_TEMPLATE_INCONSISTENT, "class"),
        (&[(CKA_VALUE_LEN, &sixteen), (CKA_KEY_TYPE, GENERIC)], CKR_TEMPLATE_INCONSISTENT, "type"),
        (&[(CKA_VALUE_LEN, &sixteen), (CKA_VALUE, &[0; 16])], CKR_TEMPLATE_INCONSISTENT, "value"),
    ];
    for (items, code, what) in generate {
        assert_eq!(generated(items).unwrap_err(), *code, "{what}");
    }
}

#[test]
fn many_attributes_and_repeated_ones() {
    let many = vec![(CKA_LABEL, &b"x"[..]); ATTRIBUTES_MAX + 1];
    with(&many, |t| assert_eq!(t.unwrap_err().code, CKR_TEMPLATE_INCONSISTENT));
    let repeated = [(CKA_CLASS, DATA), (CKA_LABEL, b"x"), (CKA_LABEL, b"x")];
    assert!(brought(&repeated).is_ok(), "the same value twice does no harm");
}

#[test]
fn copyable_follows_from_what_copying_would_need() {
    let length = number(32);
    for (items, copyable) in [
        (&[(CKA_TOKEN, T)][..], false),
        (&[(CKA_TOKEN, T), (CKA_EXTRACTABLE, T)], true),
        (&[(CKA_TOKEN, F)], true),
        (&[(CKA_TOKEN, T), (CKA_COPYABLE, T)], true),
        (&[(CKA_TOKEN, F), (CKA_COPYABLE, F)], false),
    ] {
        let mut all = items.to_vec();
        all.push((CKA_VALUE_LEN, &length));
        assert_eq!(stored_bool(&generated(&all).unwrap(), CKA_COPYABLE), Some(copyable), "{items:?}");
    }
}

#[test]
fn public_keys_of_other_types_are_kept_too() {
    let (attributes, _) = brought(&[
        (CKA_CLASS, PUBLIC_KEY),
        (CKA_KEY_TYPE, RSA),
        (CKA_MODULUS, &[0, 0x81, 1]),
        (CKA_PUBLIC_EXPONENT, &[1, 0, 1]),
    ])
    .unwrap();
    assert_eq!(stored_ulong(&attributes, CKA_MODULUS_BITS), Some(16));
    assert_eq!(stored_bool(&attributes, CKA_PRIVATE), Some(false));
    let point = a_point();
    let (attributes, _) =
        brought(&[(CKA_CLASS, PUBLIC_KEY), (CKA_KEY_TYPE, EC), (CKA_EC_PARAMS, P256), (CKA_EC_POINT, &point)]).unwrap();
    assert_eq!(stored(&attributes, CKA_EC_POINT).map(<[u8]>::len), Some(67), "DER OCTET STRING");
}

#[test]
fn uses_follow_from_attributes() {
    let length = number(32);
    for (items, uses) in [
        (
            &[][..],
            Use::Encrypt.bit()
                | Use::Decrypt.bit()
                | Use::Sign.bit()
                | Use::Verify.bit()
                | Use::Derive.bit()
                | Use::Iv.bit(),
        ),
        (
            &[(CKA_ENCRYPT, F), (CKA_SIGN, F), (CKA_VERIFY, F), (CKA_DERIVE, F), (CKA_EXTRACTABLE, T)],
            Use::Decrypt.bit() | Use::Export.bit(),
        ),
    ] {
        let mut all = items.to_vec();
        all.push((CKA_VALUE_LEN, &length));
        assert_eq!(uses_of(&generated(&all).unwrap(), KeyType::Aes(32)), uses, "{items:?}");
    }
}

#[test]
fn bits_of_a_modulus() {
    for (modulus, bits) in [(&[][..], 0), (&[0], 0), (&[1], 1), (&[0x80], 8), (&[0, 1, 0], 9), (&[0xff; 256], 2048)] {
        assert_eq!(modulus_bits(modulus), bits);
    }
}
