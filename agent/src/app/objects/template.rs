//! From an application's template to a whole object: defaults, computed attributes, contradictions.
//!
//! The rules are PKCS#11's (v2.40, sections 4.1, 4.4-4.11) with these choices (`docs/decisions/0008-keys-in-pkcs11.md` has the reasons):
//! - usage attributes that a template omits are TRUE where the key's type allows (SunPKCS11's templates omit them), but for CKA_WRAP and
//!   CKA_UNWRAP, since wrapping under a key that also decrypts gives keys away (Clulow; Bortolozzo et al. 2010);
//! - CKA_SENSITIVE is TRUE and CKA_EXTRACTABLE FALSE where a template is silent;
//! - CKA_PRIVATE is TRUE for secret and private keys, FALSE for the rest.
//!
//! Secret values never enter a [`Draft`]: it borrows them from the frame, which lies in secret memory.

use std::borrow::Cow;

use mayfly_protocol::record::{ATTRIBUTES_MAX, Attribute};
use mayfly_protocol::rules::{KeyType, Use};
use mayfly_wire::List;

use super::attributes::{self, Change, class, put, put_bool, put_ulong, stored, stored_bool, stored_ulong};
use super::ec;
use crate::app::ck::*;
use crate::app::fail::{Done, Fail};

/// Longest secret value of a session object, bytes.
pub const SESSION_SECRET_BYTES_MAX: usize = 4096;

/// A template as it came, sorted, each attribute once, each value of the right form or of none that we know.
#[derive(Debug)]
pub struct Template<'t> {
    items: Vec<(CK_ATTRIBUTE_TYPE, Value<'t>)>,
}

/// A value; `Debug` shows its length only.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value<'t>(&'t [u8]);

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl<'t> Template<'t> {
    /// Takes a template from a frame.
    ///
    /// # Errors
    /// CKR_TEMPLATE_INCONSISTENT: an attribute twice with two values, or more than 128 attributes.
    pub fn read(list: List<'t, mayfly_wire::Attribute<'t>>) -> Done<Self> {
        if list.len() > ATTRIBUTES_MAX {
            return Err(inconsistent("a template has at most 128 attributes"));
        }
        let mut items: Vec<_> = list.iter().map(|item| (item.kind, Value(item.value.0))).collect();
        items.sort_by_key(|(kind, _)| *kind);
        items.dedup();
        if items.iter().zip(items.iter().skip(1)).any(|(a, b)| a.0 == b.0) {
            return Err(inconsistent("a template names an attribute twice with different values"));
        }
        Ok(Self { items })
    }

    /// All attributes, ascending by type.
    pub fn iter(&self) -> impl Iterator<Item = (CK_ATTRIBUTE_TYPE, &'t [u8])> + '_ {
        self.items.iter().map(|(kind, value)| (*kind, value.0))
    }

    /// The value of an attribute.
    pub fn bytes(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<&'t [u8]> {
        let at = self.items.binary_search_by_key(&kind, |(kind, _)| *kind).ok()?;
        self.items.get(at).map(|(_, value)| value.0)
    }

    /// A truth value.
    pub fn bool(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<bool> {
        self.bytes(kind).and_then(|value| value.first()).map(|byte| *byte != 0)
    }

    /// A number.
    pub fn ulong(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<u64> {
        self.bytes(kind)?.try_into().ok().map(u64::from_le_bytes)
    }
}

fn inconsistent(reason: impl Into<Cow<'static, str>>) -> Fail {
    Fail::new(CKR_TEMPLATE_INCONSISTENT, reason)
}

fn incomplete(reason: &'static str) -> Fail {
    Fail::new(CKR_TEMPLATE_INCOMPLETE, reason)
}

fn bad_value(reason: impl Into<Cow<'static, str>>) -> Fail {
    Fail::new(CKR_ATTRIBUTE_VALUE_INVALID, reason)
}

/// How an object comes to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Birth {
    /// The token makes it, by this mechanism (CK_MECHANISM_TYPE).
    Generated(CK_MECHANISM_TYPE),
    /// The application brings it.
    Brought,
}

/// A whole object that does not exist yet.
#[derive(Debug)]
pub struct Draft<'t> {
    /// A bit of [`class`].
    pub class: u8,
    /// All attributes but secret values, ascending by type. Of a generated key pair's public half, CKA_EC_POINT is still to come.
    pub attributes: Vec<Attribute>,
    /// Type of a key.
    pub key_type: Option<KeyType>,
    /// The secret value that was brought.
    secret: Option<Value<'t>>,
}

impl<'t> Draft<'t> {
    /// CKA_TOKEN.
    pub fn is_token(&self) -> bool {
        stored_bool(&self.attributes, CKA_TOKEN).unwrap_or(false)
    }

    /// CKA_PRIVATE.
    pub fn is_private(&self) -> bool {
        stored_bool(&self.attributes, CKA_PRIVATE).unwrap_or(false)
    }

    /// The secret value that was brought: key bytes, or the contents of a private data object.
    pub fn secret(&self) -> Option<&'t [u8]> {
        self.secret.map(|value| value.0)
    }

    /// An object that the application brings (C_CreateObject).
    ///
    /// # Errors
    /// As PKCS#11 says for templates.
    pub fn brought(template: &Template<'t>) -> Done<Self> {
        let number = template.ulong(CKA_CLASS).ok_or_else(|| incomplete("an object needs CKA_CLASS"))?;
        let class = class::bit(number).ok_or_else(|| bad_value("objects of this class are not kept"))?;
        let mut draft = Self::start(class, template)?;
        match class {
            class::DATA => draft.finish_data(),
            class::CERTIFICATE => draft.finish_certificate()?,
            class::PUBLIC => draft.finish_public()?,
            class::PRIVATE => draft.finish_private(template)?,
            _ => draft.finish_secret(template)?,
        }
        draft.finish(Birth::Brought)
    }

    /// A secret key that the token makes (C_GenerateKey): its length is in the template.
    ///
    /// # Errors
    /// As PKCS#11 says for templates.
    pub fn generated_secret(mechanism: CK_MECHANISM_TYPE, number: CK_KEY_TYPE, template: &Template<'t>) -> Done<Self> {
        let mut draft = Self::start_generated(class::SECRET, number, template)?;
        let bytes = template.ulong(CKA_VALUE_LEN).ok_or_else(|| incomplete("a new secret key needs CKA_VALUE_LEN"))?;
        draft.key_type = Some(secret_type(number, bytes, draft.is_token())?);
        draft.finish(Birth::Generated(mechanism))
    }

    /// One half of a key pair that the token makes. Curve and point are put in by the caller.
    ///
    /// # Errors
    /// As PKCS#11 says for templates.
    pub fn generated_half(
        class: u8,
        mechanism: CK_MECHANISM_TYPE,
        key_type: KeyType,
        template: &Template<'t>,
    ) -> Done<Self> {
        let mut draft = Self::start_generated(class, CKK_EC, template)?;
        draft.key_type = Some(key_type);
        put(&mut draft.attributes, CKA_EC_PARAMS, ec::parameters(key_type));
        draft.finish(Birth::Generated(mechanism))
    }

    /// Takes over what the template says, after checking that each attribute exists and may be given.
    fn start(class: u8, template: &Template<'t>) -> Done<Self> {
        let mut draft = Self { class, attributes: Vec::new(), key_type: None, secret: None };
        for (kind, value) in template.iter() {
            let rule = attributes::rule_for(kind, class)?;
            rule.check(value)?;
            if rule.change == Change::Computed {
                return Err(Fail::new(CKR_ATTRIBUTE_READ_ONLY, format!("attribute {kind:#x} is set by the token")));
            }
            if is_secret_value(kind, class, template) {
                draft.secret = Some(Value(value));
            } else {
                draft.attributes.push(Attribute { kind, value: value.to_vec() });
            }
        }
        if template.bool(CKA_TRUSTED) == Some(true) {
            return Err(Fail::new(CKR_ATTRIBUTE_READ_ONLY, "CKA_TRUSTED is set by the security officer"));
        }
        Ok(draft)
    }

    fn start_generated(class: u8, number: CK_KEY_TYPE, template: &Template<'t>) -> Done<Self> {
        let own_class = |given| class::bit(given) == Some(class);
        if template.ulong(CKA_CLASS).is_some_and(|given| !own_class(given)) {
            return Err(inconsistent("CKA_CLASS does not fit what is to be generated"));
        }
        if template.ulong(CKA_KEY_TYPE).is_some_and(|given| given != number) {
            return Err(inconsistent("CKA_KEY_TYPE does not fit the mechanism"));
        }
        for kind in [CKA_VALUE, CKA_EC_POINT, CKA_MODULUS, CKA_PUBLIC_KEY_INFO, CKA_CHECK_VALUE] {
            if template.bytes(kind).is_some_and(|value| !(kind == CKA_CHECK_VALUE && value.is_empty())) {
                return Err(inconsistent("a value is given for a key that is to be generated"));
            }
        }
        let mut draft = Self::start(class, template)?;
        put_ulong(&mut draft.attributes, CKA_KEY_TYPE, number);
        Ok(draft)
    }

    fn default(&mut self, kind: CK_ATTRIBUTE_TYPE, value: impl Into<Vec<u8>>) {
        if stored(&self.attributes, kind).is_none() {
            put(&mut self.attributes, kind, value);
        }
    }

    fn default_bool(&mut self, kind: CK_ATTRIBUTE_TYPE, value: bool) {
        self.default(kind, [u8::from(value)]);
    }

    fn finish_data(&mut self) {
        self.default(CKA_APPLICATION, []);
        self.default(CKA_OBJECT_ID, []);
        if self.secret.is_none() {
            self.default(CKA_VALUE, []);
        }
    }

    fn finish_certificate(&mut self) -> Done<()> {
        let kind = stored_ulong(&self.attributes, CKA_CERTIFICATE_TYPE);
        if kind.ok_or_else(|| incomplete("a certificate needs CKA_CERTIFICATE_TYPE"))? == CKC_X_509 {
            stored(&self.attributes, CKA_SUBJECT)
                .ok_or_else(|| incomplete("an X.509 certificate needs CKA_SUBJECT"))?;
            let value = stored(&self.attributes, CKA_VALUE).or(stored(&self.attributes, CKA_URL));
            value.ok_or_else(|| incomplete("an X.509 certificate needs CKA_VALUE or CKA_URL"))?;
        }
        for kind in [CKA_ID, CKA_ISSUER, CKA_SERIAL_NUMBER] {
            self.default(kind, []);
        }
        self.default(CKA_CERTIFICATE_CATEGORY, 0_u64.to_le_bytes());
        self.default_bool(CKA_TRUSTED, false);
        Ok(())
    }

    fn key_type_number(&self) -> Done<CK_KEY_TYPE> {
        stored_ulong(&self.attributes, CKA_KEY_TYPE).ok_or_else(|| incomplete("a key needs CKA_KEY_TYPE"))
    }

    /// A public key of any type is kept; only those whose type the engine knows can be used.
    fn finish_public(&mut self) -> Done<()> {
        let number = self.key_type_number()?;
        let needed: &[CK_ATTRIBUTE_TYPE] = match number {
            CKK_RSA => &[CKA_MODULUS, CKA_PUBLIC_EXPONENT],
            CKK_EC | CKK_EC_EDWARDS | CKK_EC_MONTGOMERY => &[CKA_EC_PARAMS, CKA_EC_POINT],
            _ => return Err(bad_value("public keys of this type are not kept")),
        };
        if needed.iter().any(|kind| stored(&self.attributes, *kind).is_none()) {
            return Err(incomplete("a public key needs all parts of its value"));
        }
        if let (CKK_RSA, Some(modulus)) = (number, stored(&self.attributes, CKA_MODULUS)) {
            let bits = modulus_bits(modulus);
            put_ulong(&mut self.attributes, CKA_MODULUS_BITS, bits);
        }
        if number == CKK_EC {
            let key_type = self.curve()?;
            self.key_type = Some(key_type);
            let point = stored(&self.attributes, CKA_EC_POINT).unwrap_or_default();
            let point = ec::point_der(key_type, point)?;
            put(&mut self.attributes, CKA_EC_POINT, point);
        }
        Ok(())
    }

    fn curve(&self) -> Done<KeyType> {
        let parameters =
            stored(&self.attributes, CKA_EC_PARAMS).ok_or_else(|| incomplete("an EC key needs CKA_EC_PARAMS"))?;
        ec::key_type(parameters)
    }

    fn finish_private(&mut self, template: &Template<'t>) -> Done<()> {
        match self.key_type_number()? {
            CKK_EC => self.key_type = Some(self.curve()?),
            _ => return Err(bad_value("private keys of this type cannot be imported")),
        }
        template.bytes(CKA_VALUE).map(|_| ()).ok_or_else(|| incomplete("a private key needs CKA_VALUE"))
    }

    fn finish_secret(&mut self, template: &Template<'t>) -> Done<()> {
        let number = self.key_type_number()?;
        let bytes = template.bytes(CKA_VALUE).ok_or_else(|| incomplete("a secret key needs CKA_VALUE"))?.len() as u64;
        if template.ulong(CKA_VALUE_LEN).is_some_and(|given| given != bytes) {
            return Err(inconsistent("CKA_VALUE_LEN is not the length of CKA_VALUE"));
        }
        self.key_type = Some(secret_type(number, bytes, self.is_token())?);
        Ok(())
    }

    /// What every object has, and what follows from the rest.
    fn finish(mut self, birth: Birth) -> Done<Self> {
        let number = match self.class {
            class::DATA => CKO_DATA,
            class::CERTIFICATE => CKO_CERTIFICATE,
            class::PUBLIC => CKO_PUBLIC_KEY,
            class::PRIVATE => CKO_PRIVATE_KEY,
            _ => CKO_SECRET_KEY,
        };
        put_ulong(&mut self.attributes, CKA_CLASS, number);
        self.default_bool(CKA_TOKEN, false);
        self.default_bool(CKA_PRIVATE, self.class & class::GUARDED != 0);
        self.default(CKA_LABEL, []);
        for kind in [CKA_MODIFIABLE, CKA_DESTROYABLE] {
            self.default_bool(kind, true);
        }
        if self.class & class::KEYS != 0 {
            self.finish_key(birth);
        }
        let copyable = self.class & class::GUARDED == 0 || !self.is_token() || self.flag(CKA_EXTRACTABLE);
        self.default_bool(CKA_COPYABLE, copyable);
        attributes::check_size(&self.attributes)?;
        Ok(self)
    }

    fn finish_key(&mut self, birth: Birth) {
        let mechanism = match birth {
            Birth::Generated(mechanism) => mechanism,
            Birth::Brought => CK_UNAVAILABLE_INFORMATION,
        };
        let made_here = matches!(birth, Birth::Generated(_));
        self.default(CKA_ID, []);
        self.default(CKA_START_DATE, []);
        self.default(CKA_END_DATE, []);
        for (kind, value) in usage_defaults(self.class, self.key_type) {
            self.default_bool(*kind, *value);
        }
        if self.class & class::GUARDED != 0 {
            self.default_bool(CKA_SENSITIVE, true);
            self.default_bool(CKA_EXTRACTABLE, false);
            self.default_bool(CKA_WRAP_WITH_TRUSTED, false);
            // The specification has it for private keys; pkcs11-tool asks secret keys too, and complains where it is absent.
            self.default_bool(CKA_ALWAYS_AUTHENTICATE, false);
            let (sensitive, extractable) = (self.flag(CKA_SENSITIVE), self.flag(CKA_EXTRACTABLE));
            put_bool(&mut self.attributes, CKA_ALWAYS_SENSITIVE, made_here && sensitive);
            put_bool(&mut self.attributes, CKA_NEVER_EXTRACTABLE, made_here && !extractable);
        }
        match self.class {
            class::PRIVATE => {
                self.default(CKA_SUBJECT, []);
            }
            class::PUBLIC => {
                self.default(CKA_SUBJECT, []);
                self.default_bool(CKA_TRUSTED, false);
            }
            _ => {
                self.default_bool(CKA_TRUSTED, false);
                if let Some(bytes) = self.key_type.and_then(KeyType::derived_bytes) {
                    put_ulong(&mut self.attributes, CKA_VALUE_LEN, bytes as u64);
                }
            }
        }
        put_bool(&mut self.attributes, CKA_LOCAL, made_here);
        put_ulong(&mut self.attributes, CKA_KEY_GEN_MECHANISM, mechanism);
    }

    fn flag(&self, kind: CK_ATTRIBUTE_TYPE) -> bool {
        stored_bool(&self.attributes, kind).unwrap_or(false)
    }
}

/// Whether this attribute is a value that must stay in secret memory.
fn is_secret_value(kind: CK_ATTRIBUTE_TYPE, class: u8, template: &Template<'_>) -> bool {
    kind == CKA_VALUE
        && match class {
            class::DATA => template.bool(CKA_PRIVATE) == Some(true),
            class => class & class::GUARDED != 0,
        }
}

/// Usage attributes that a silent template gives a key.
fn usage_defaults(class: u8, key_type: Option<KeyType>) -> &'static [(CK_ATTRIBUTE_TYPE, bool)] {
    let is_ec = matches!(key_type, Some(KeyType::EcP256));
    match (class, key_type) {
        (class::SECRET, Some(KeyType::Aes(_))) => &[
            (CKA_ENCRYPT, true),
            (CKA_DECRYPT, true),
            (CKA_SIGN, true),
            (CKA_VERIFY, true),
            (CKA_DERIVE, true),
            (CKA_WRAP, false),
            (CKA_UNWRAP, false),
        ],
        (class::SECRET, _) => &[
            (CKA_ENCRYPT, false),
            (CKA_DECRYPT, false),
            (CKA_SIGN, true),
            (CKA_VERIFY, true),
            (CKA_DERIVE, true),
            (CKA_WRAP, false),
            (CKA_UNWRAP, false),
        ],
        (class::PRIVATE, _) => &[
            (CKA_DECRYPT, false),
            (CKA_SIGN, true),
            (CKA_SIGN_RECOVER, false),
            (CKA_UNWRAP, false),
            (CKA_DERIVE, true),
        ],
        _ if is_ec => &[
            (CKA_ENCRYPT, false),
            (CKA_VERIFY, true),
            (CKA_VERIFY_RECOVER, false),
            (CKA_WRAP, false),
            (CKA_DERIVE, true),
        ],
        _ => &[
            (CKA_ENCRYPT, true),
            (CKA_VERIFY, true),
            (CKA_VERIFY_RECOVER, true),
            (CKA_WRAP, false),
            (CKA_DERIVE, false),
        ],
    }
}

/// The type of a secret key of so many bytes.
fn secret_type(number: CK_KEY_TYPE, bytes: u64, token: bool) -> Done<KeyType> {
    let size = |bad: &'static str| Fail::new(CKR_KEY_SIZE_RANGE, bad);
    let bytes = usize::try_from(bytes).map_err(|_| size("a key cannot be that long"))?;
    match number {
        CKK_AES if [16, 24, 32].contains(&bytes) => Ok(KeyType::Aes(bytes)),
        CKK_AES => Err(size("an AES key has 16, 24 or 32 bytes")),
        CKK_GENERIC_SECRET | CKK_SHA_1_HMAC | CKK_SHA224_HMAC | CKK_SHA256_HMAC | CKK_SHA384_HMAC | CKK_SHA512_HMAC => {
            let most = if token { mayfly_protocol::rules::GENERIC_BYTES_MAX } else { SESSION_SECRET_BYTES_MAX };
            if (1..=most).contains(&bytes) {
                Ok(KeyType::Generic(bytes))
            } else {
                Err(size("a generic secret has 1 to 512 bytes on the token, 4096 in a session"))
            }
        }
        _ => Err(bad_value("secret keys of this type are not kept")),
    }
}

fn modulus_bits(modulus: &[u8]) -> u64 {
    let significant = modulus.iter().skip_while(|byte| **byte == 0);
    let first = significant.clone().next().map_or(0, |byte| u64::from(8 - byte.leading_zeros()));
    (significant.count() as u64).saturating_sub(1) * 8 + first
}

/// What a key's attributes let it be used for: bits of [`Use`], as they go into its policy on the ledger.
pub fn uses_of(attributes: &[Attribute], key_type: KeyType) -> u32 {
    let flag = |kind| stored_bool(attributes, kind).unwrap_or(false);
    let mut uses = 0;
    for (kind, use_) in USAGE {
        if flag(*kind) {
            uses |= use_.bit();
        }
    }
    if matches!(key_type, KeyType::Aes(_)) && flag(CKA_ENCRYPT) {
        uses |= Use::Iv.bit();
    }
    if flag(CKA_EXTRACTABLE) {
        uses |= Use::Export.bit();
    }
    uses
}

/// Usage attributes of secret and private keys, and the use that each allows.
pub const USAGE: &[(CK_ATTRIBUTE_TYPE, Use)] = &[
    (CKA_ENCRYPT, Use::Encrypt),
    (CKA_DECRYPT, Use::Decrypt),
    (CKA_SIGN, Use::Sign),
    (CKA_VERIFY, Use::Verify),
    (CKA_DERIVE, Use::Derive),
    (CKA_WRAP, Use::Wrap),
    (CKA_UNWRAP, Use::Unwrap),
];

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
