//! Which attributes there are, of which objects, in which form, and who may change them when.
//!
//! One table ([`RULES`]) after PKCS#11 v2.40, sections 4.4 to 4.11, and v3.0. What is not in it is no attribute here
//! (CKR_ATTRIBUTE_TYPE_INVALID). Values are in the canonical form of `mayfly_wire::attribute`.

use mayfly_protocol::record::Attribute;

use crate::app::ck::*;
use crate::app::fail::{Done, Fail};

/// Longest value of one attribute, bytes. Certificates with long chains of extensions fit.
pub const VALUE_BYTES_MAX: usize = 16 * 1024;
/// Longest sum of an object's values, bytes: it must fit a record of the ledger (32 KiB) with its signatures.
pub const OBJECT_BYTES_MAX: usize = 24 * 1024;

/// Sets of object classes, as bits.
pub mod class {
    /// CKO_DATA.
    pub const DATA: u8 = 1;
    /// CKO_CERTIFICATE.
    pub const CERTIFICATE: u8 = 2;
    /// CKO_PUBLIC_KEY.
    pub const PUBLIC: u8 = 4;
    /// CKO_PRIVATE_KEY.
    pub const PRIVATE: u8 = 8;
    /// CKO_SECRET_KEY.
    pub const SECRET: u8 = 16;
    /// Every class.
    pub const ALL: u8 = DATA | CERTIFICATE | KEYS;
    /// Every kind of key.
    pub const KEYS: u8 = PUBLIC | GUARDED;
    /// Keys with something to hide.
    pub const GUARDED: u8 = PRIVATE | SECRET;

    /// The bit of a CK_OBJECT_CLASS; `None` for classes that are not kept here.
    pub fn bit(class: u64) -> Option<u8> {
        use crate::app::ck::*;
        match class {
            CKO_DATA => Some(DATA),
            CKO_CERTIFICATE => Some(CERTIFICATE),
            CKO_PUBLIC_KEY => Some(PUBLIC),
            CKO_PRIVATE_KEY => Some(PRIVATE),
            CKO_SECRET_KEY => Some(SECRET),
            _ => None,
        }
    }
}

/// Form of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One byte, 0 or 1.
    Bool,
    /// Eight bytes.
    Ulong,
    /// Anything.
    Bytes,
    /// Eight digits, or nothing.
    Date,
    /// Numbers of eight bytes.
    Mechanisms,
    /// A template.
    Template,
}

/// Whether C_SetAttributeValue may change it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Made by the token; no template may name it.
    Computed,
    /// Chosen when the object is made.
    Never,
    /// Chosen when the object is made or copied.
    InCopy,
    /// At any time.
    Free,
    /// From FALSE to TRUE.
    ToTrue,
    /// From TRUE to FALSE.
    ToFalse,
    /// By the security officer.
    Officer,
}

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// CK_ATTRIBUTE_TYPE.
    pub kind: CK_ATTRIBUTE_TYPE,
    /// Classes that have it.
    pub classes: u8,
    /// Form of its value.
    pub form: Form,
    /// Who may change it.
    pub change: Change,
}

const fn rule(kind: CK_ATTRIBUTE_TYPE, classes: u8, form: Form, change: Change) -> Rule {
    Rule { kind, classes, form, change }
}

/// Every attribute, ascending by type.
pub const RULES: &[Rule] = {
    use Change::{Computed, Free, InCopy, Never, Officer, ToFalse, ToTrue};
    use Form::{Bool, Bytes, Date, Mechanisms, Template, Ulong};
    use class::*;
    &[
        rule(CKA_CLASS, ALL, Ulong, Never),
        rule(CKA_TOKEN, ALL, Bool, InCopy),
        rule(CKA_PRIVATE, ALL, Bool, InCopy),
        rule(CKA_LABEL, ALL, Bytes, Free),
        rule(CKA_UNIQUE_ID, ALL, Bytes, Computed),
        rule(CKA_APPLICATION, DATA, Bytes, Free),
        rule(CKA_VALUE, ALL, Bytes, Never),
        rule(CKA_OBJECT_ID, DATA, Bytes, Free),
        rule(CKA_CERTIFICATE_TYPE, CERTIFICATE, Ulong, Never),
        rule(CKA_ISSUER, CERTIFICATE, Bytes, Free),
        rule(CKA_SERIAL_NUMBER, CERTIFICATE, Bytes, Free),
        rule(CKA_TRUSTED, CERTIFICATE | PUBLIC | SECRET, Bool, Officer),
        rule(CKA_CERTIFICATE_CATEGORY, CERTIFICATE, Ulong, Never),
        rule(CKA_JAVA_MIDP_SECURITY_DOMAIN, CERTIFICATE, Ulong, Never),
        rule(CKA_URL, CERTIFICATE, Bytes, Never),
        rule(CKA_HASH_OF_SUBJECT_PUBLIC_KEY, CERTIFICATE, Bytes, Never),
        rule(CKA_HASH_OF_ISSUER_PUBLIC_KEY, CERTIFICATE, Bytes, Never),
        rule(CKA_NAME_HASH_ALGORITHM, CERTIFICATE, Ulong, Never),
        rule(CKA_CHECK_VALUE, CERTIFICATE | SECRET, Bytes, Never),
        rule(CKA_KEY_TYPE, KEYS, Ulong, Never),
        rule(CKA_SUBJECT, CERTIFICATE | PUBLIC | PRIVATE, Bytes, Free),
        rule(CKA_ID, CERTIFICATE | KEYS, Bytes, Free),
        rule(CKA_SENSITIVE, GUARDED, Bool, ToTrue),
        rule(CKA_ENCRYPT, PUBLIC | SECRET, Bool, Free),
        rule(CKA_DECRYPT, GUARDED, Bool, Free),
        rule(CKA_WRAP, PUBLIC | SECRET, Bool, Free),
        rule(CKA_UNWRAP, GUARDED, Bool, Free),
        rule(CKA_SIGN, GUARDED, Bool, Free),
        rule(CKA_SIGN_RECOVER, PRIVATE, Bool, Free),
        rule(CKA_VERIFY, PUBLIC | SECRET, Bool, Free),
        rule(CKA_VERIFY_RECOVER, PUBLIC, Bool, Free),
        rule(CKA_DERIVE, KEYS, Bool, Free),
        rule(CKA_START_DATE, CERTIFICATE | KEYS, Date, Free),
        rule(CKA_END_DATE, CERTIFICATE | KEYS, Date, Free),
        rule(CKA_MODULUS, PUBLIC | PRIVATE, Bytes, Never),
        rule(CKA_MODULUS_BITS, PUBLIC, Ulong, Never),
        rule(CKA_PUBLIC_EXPONENT, PUBLIC | PRIVATE, Bytes, Never),
        rule(CKA_PUBLIC_KEY_INFO, CERTIFICATE | PUBLIC | PRIVATE, Bytes, Never),
        rule(CKA_VALUE_LEN, SECRET, Ulong, Never),
        rule(CKA_EXTRACTABLE, GUARDED, Bool, ToFalse),
        rule(CKA_LOCAL, KEYS, Bool, Computed),
        rule(CKA_NEVER_EXTRACTABLE, GUARDED, Bool, Computed),
        rule(CKA_ALWAYS_SENSITIVE, GUARDED, Bool, Computed),
        rule(CKA_KEY_GEN_MECHANISM, KEYS, Ulong, Computed),
        rule(CKA_MODIFIABLE, ALL, Bool, InCopy),
        rule(CKA_COPYABLE, ALL, Bool, ToFalse),
        rule(CKA_DESTROYABLE, ALL, Bool, InCopy),
        rule(CKA_EC_PARAMS, PUBLIC | PRIVATE, Bytes, Never),
        rule(CKA_EC_POINT, PUBLIC, Bytes, Never),
        rule(CKA_ALWAYS_AUTHENTICATE, GUARDED, Bool, Never),
        rule(CKA_WRAP_WITH_TRUSTED, GUARDED, Bool, ToTrue),
        rule(CKA_WRAP_TEMPLATE, PUBLIC | SECRET, Template, Never),
        rule(CKA_UNWRAP_TEMPLATE, GUARDED, Template, Never),
        rule(CKA_ALLOWED_MECHANISMS, KEYS, Mechanisms, Never),
    ]
};

/// The rule of an attribute, whatever the class.
pub fn rule_of(kind: CK_ATTRIBUTE_TYPE) -> Option<&'static Rule> {
    RULES.binary_search_by_key(&kind, |rule| rule.kind).ok().and_then(|at| RULES.get(at))
}

/// The rule of an attribute that objects of this class (a bit of [`class`]) have.
///
/// # Errors
/// CKR_ATTRIBUTE_TYPE_INVALID.
pub fn rule_for(kind: CK_ATTRIBUTE_TYPE, class: u8) -> Done<&'static Rule> {
    let unknown =
        || Fail::new(CKR_ATTRIBUTE_TYPE_INVALID, format!("objects of this class have no attribute {kind:#x}"));
    rule_of(kind).filter(|rule| rule.classes & class != 0).ok_or_else(unknown)
}

impl Rule {
    /// Refuses values that are not of the attribute's form.
    ///
    /// # Errors
    /// CKR_ATTRIBUTE_VALUE_INVALID.
    pub fn check(&self, value: &[u8]) -> Done<()> {
        let good = match self.form {
            Form::Bool => matches!(value, [0 | 1]),
            Form::Ulong => value.len() == 8,
            Form::Bytes => value.len() <= VALUE_BYTES_MAX,
            Form::Date => value.is_empty() || (value.len() == 8 && value.iter().all(u8::is_ascii_digit)),
            Form::Mechanisms => value.len().is_multiple_of(8) && value.len() <= VALUE_BYTES_MAX,
            Form::Template => value.len() <= VALUE_BYTES_MAX && mayfly_wire::attribute::nested_template(value).is_ok(),
        };
        if good {
            Ok(())
        } else {
            Err(Fail::new(
                CKR_ATTRIBUTE_VALUE_INVALID,
                format!("attribute {:#x} has a value of the wrong form", self.kind),
            ))
        }
    }
}

/// The value of an attribute in a list that is sorted by type.
pub fn stored(attributes: &[Attribute], kind: CK_ATTRIBUTE_TYPE) -> Option<&[u8]> {
    let at = attributes.binary_search_by_key(&kind, |attribute| attribute.kind).ok()?;
    attributes.get(at).map(|attribute| attribute.value.as_slice())
}

/// The same as a truth value.
pub fn stored_bool(attributes: &[Attribute], kind: CK_ATTRIBUTE_TYPE) -> Option<bool> {
    stored(attributes, kind).and_then(|value| value.first()).map(|byte| *byte != 0)
}

/// The same as a number.
pub fn stored_ulong(attributes: &[Attribute], kind: CK_ATTRIBUTE_TYPE) -> Option<u64> {
    stored(attributes, kind)?.try_into().ok().map(u64::from_le_bytes)
}

/// Puts a value into a sorted list, in the place of an older one.
pub fn put(attributes: &mut Vec<Attribute>, kind: CK_ATTRIBUTE_TYPE, value: impl Into<Vec<u8>>) {
    let attribute = Attribute { kind, value: value.into() };
    match attributes.binary_search_by_key(&kind, |attribute| attribute.kind) {
        Ok(at) => {
            if let Some(place) = attributes.get_mut(at) {
                *place = attribute;
            }
        }
        Err(at) => attributes.insert(at, attribute),
    }
}

/// [`put`] a truth value.
pub fn put_bool(attributes: &mut Vec<Attribute>, kind: CK_ATTRIBUTE_TYPE, value: bool) {
    put(attributes, kind, [u8::from(value)]);
}

/// [`put`] a number.
pub fn put_ulong(attributes: &mut Vec<Attribute>, kind: CK_ATTRIBUTE_TYPE, value: u64) {
    put(attributes, kind, value.to_le_bytes());
}

/// Refuses objects that no record of the ledger can hold.
///
/// # Errors
/// CKR_DEVICE_MEMORY.
pub fn check_size(attributes: &[Attribute]) -> Done<()> {
    let bytes: usize = attributes.iter().map(|attribute| attribute.value.len() + 16).sum();
    if bytes > OBJECT_BYTES_MAX || attributes.len() > mayfly_protocol::record::ATTRIBUTES_MAX {
        return Err(Fail::new(CKR_DEVICE_MEMORY, "the object is larger than 24 KiB or has more than 128 attributes"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(RULES.is_sorted_by(|a, b| a.kind < b.kind));
        assert!(RULES.iter().all(|rule| rule.classes != 0 && rule.classes & !class::ALL == 0));
    }

    #[test]
    fn forms() {
        let template = mayfly_wire::TemplateBuf::new().as_value().to_vec();
        let cases: &[(CK_ATTRIBUTE_TYPE, &[u8], bool)] = &[
            (CKA_SIGN, &[1], true),
            (CKA_SIGN, &[2], false),
            (CKA_SIGN, &[], false),
            (CKA_SIGN, &[0, 0], false),
            (CKA_CLASS, &[0; 8], true),
            (CKA_CLASS, &[0; 4], false),
            (CKA_LABEL, b"", true),
            (CKA_LABEL, &[0; VALUE_BYTES_MAX], true),
            (CKA_LABEL, &[0; VALUE_BYTES_MAX + 1], false),
            (CKA_START_DATE, b"", true),
            (CKA_START_DATE, b"20260101", true),
            (CKA_START_DATE, b"2026-1-1", false),
            (CKA_ALLOWED_MECHANISMS, &[0; 16], true),
            (CKA_ALLOWED_MECHANISMS, &[0; 12], false),
            (CKA_WRAP_TEMPLATE, &template, true),
            (CKA_WRAP_TEMPLATE, b"x", false),
        ];
        for (kind, value, good) in cases {
            assert_eq!(rule_of(*kind).unwrap().check(value).is_ok(), *good, "{kind:#x} {} bytes", value.len());
        }
    }

    #[test]
    fn classes() {
        for (kind, class, known) in [
            (CKA_LABEL, class::DATA, true),
            (CKA_SIGN, class::PUBLIC, false),
            (CKA_SIGN, class::SECRET, true),
            (CKA_VALUE_LEN, class::PRIVATE, false),
            (CKA_APPLICATION, class::DATA, true),
            (CKA_APPLICATION, class::SECRET, false),
            (0x8000_0001, class::DATA, false),
        ] {
            assert_eq!(rule_for(kind, class).is_ok(), known, "{kind:#x} {class}");
        }
    }

    #[test]
    fn lists_stay_sorted() {
        let mut list = Vec::new();
        for kind in [9, 3, 7, 3] {
            put_ulong(&mut list, kind, kind + 1);
        }
        put_bool(&mut list, 7, true);
        let kinds: Vec<_> = list.iter().map(|a| (a.kind, a.value.len())).collect();
        assert_eq!(kinds, [(3, 8), (7, 1), (9, 8)]);
        assert_eq!((stored_ulong(&list, 9), stored_bool(&list, 7), stored(&list, 8)), (Some(10), Some(true), None));
    }
}
