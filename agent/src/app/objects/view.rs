//! One object as an application sees it: attributes, and which of them stay hidden.

use std::borrow::Cow;
use std::sync::Arc;

use mayfly_protocol::record::Attribute;
use mayfly_protocol::rules::KeyType;
use mayfly_protocol::state::{KeyState, ObjectState, State};

use super::attributes::{self, class, stored, stored_bool, stored_ulong};
use super::catalogue::Target;
use super::session::SessionObject;
use crate::app::ck::*;

/// An object that exists now.
#[derive(Debug, Clone)]
pub enum View<'s> {
    /// The secret or private object of a key on the ledger.
    Key(&'s KeyState),
    /// The public object of a key pair on the ledger.
    Public(&'s KeyState),
    /// An object without secrets on the ledger.
    Object(&'s mayfly_protocol::ObjectId, &'s ObjectState),
    /// A session object, with its handle.
    Session(u64, Arc<SessionObject>),
}

/// What an application learns of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown<'v> {
    /// Its value.
    Value(Cow<'v, [u8]>),
    /// It exists and is never shown.
    Sensitive,
    /// It does not exist.
    Absent,
    /// It may be read, and lies in secret memory or must be put together first.
    Secret,
}

impl<'s> View<'s> {
    /// The object that `target` names in `state`.
    pub fn of(state: &'s State, target: &'s Target) -> Option<Self> {
        match target {
            Target::Key(id) => state.keys.get(id).filter(|key| !key.deleted).map(View::Key),
            Target::Public(id) => state.keys.get(id).filter(|key| key.public_attributes.is_some()).map(View::Public),
            Target::Object(id) => state.objects.get(id).map(|object| View::Object(id, object)),
        }
    }

    /// The attributes that are written down, ascending by type.
    pub fn attributes(&self) -> &[Attribute] {
        match self {
            View::Key(key) => &key.attributes,
            View::Public(key) => key.public_attributes.as_deref().map_or(&[], Vec::as_slice),
            View::Object(_, object) => &object.attributes,
            View::Session(_, object) => &object.attributes,
        }
    }

    /// A truth value; FALSE where there is none.
    pub fn flag(&self, kind: CK_ATTRIBUTE_TYPE) -> bool {
        stored_bool(self.attributes(), kind).unwrap_or(false)
    }

    /// A number.
    pub fn ulong(&self, kind: CK_ATTRIBUTE_TYPE) -> Option<u64> {
        stored_ulong(self.attributes(), kind)
    }

    /// The object's class, as a bit of [`class`].
    pub fn class(&self) -> u8 {
        let written = self.ulong(CKA_CLASS).and_then(class::bit);
        written.unwrap_or(match self {
            View::Key(key) if key.public_attributes.is_some() => class::PRIVATE,
            View::Key(_) => class::SECRET,
            View::Public(_) => class::PUBLIC,
            View::Object(..) | View::Session(..) => class::DATA,
        })
    }

    /// Type of a key with a secret, as far as it is known here.
    pub fn key_type(&self) -> Option<KeyType> {
        match self {
            View::Key(key) | View::Public(key) => KeyType::parse(&key.record.key_type),
            View::Object(..) | View::Session(..) => self.key_type_by_attributes(),
        }
    }

    fn key_type_by_attributes(&self) -> Option<KeyType> {
        if self.class() & class::KEYS == 0 {
            return None;
        }
        let bytes = || self.ulong(CKA_VALUE_LEN).and_then(|bytes| usize::try_from(bytes).ok());
        match self.ulong(CKA_KEY_TYPE)? {
            CKK_AES => bytes().map(KeyType::Aes),
            CKK_EC => stored(self.attributes(), CKA_EC_PARAMS).and_then(|p| super::ec::key_type(p).ok()),
            _ => bytes().map(KeyType::Generic),
        }
    }

    /// Seen only while logged in as user.
    pub fn is_private(&self) -> bool {
        self.flag(CKA_PRIVATE)
    }

    /// Whether CKA_VALUE is a secret: of secret and private keys, and of data kept as such.
    pub fn has_secret(&self) -> bool {
        match self {
            View::Key(_) => true,
            View::Public(_) | View::Object(..) => false,
            View::Session(_, object) => object.secret.is_some(),
        }
    }

    /// Whether the secret value may leave the token in the open. Data is no key: whoever sees the object may read it.
    pub fn value_is_readable(&self) -> bool {
        self.class() == class::DATA || (!self.flag(CKA_SENSITIVE) && self.flag(CKA_EXTRACTABLE))
    }

    /// What an application learns of one attribute.
    pub fn shown(&self, kind: CK_ATTRIBUTE_TYPE) -> Shown<'_> {
        if kind == CKA_VALUE && self.has_secret() {
            return if self.value_is_readable() { Shown::Secret } else { Shown::Sensitive };
        }
        if let Some(value) = stored(self.attributes(), kind) {
            return Shown::Value(value.into());
        }
        match kind {
            CKA_UNIQUE_ID => Shown::Value(self.unique_id().into_bytes().into()),
            CKA_CHECK_VALUE if self.class() == class::SECRET => Shown::Value(Cow::Borrowed(&[])),
            _ => Shown::Absent,
        }
    }

    /// CKA_UNIQUE_ID (PKCS#11 v3.0): never the same for two objects, the same for ever for one.
    pub fn unique_id(&self) -> String {
        match self {
            View::Key(key) => key.record.id.to_string(),
            View::Public(key) => format!("{}.public", key.record.id),
            View::Object(id, _) => id.to_string(),
            View::Session(handle, _) => format!("session.{handle:x}"),
        }
    }

    /// All attributes that the object has, ascending by type.
    pub fn kinds(&self) -> Vec<CK_ATTRIBUTE_TYPE> {
        let mut kinds: Vec<_> = self.attributes().iter().map(|attribute| attribute.kind).collect();
        kinds.push(CKA_UNIQUE_ID);
        if self.has_secret() {
            kinds.push(CKA_VALUE);
        }
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// Whether the object has this value. A hidden one matches nothing, so that searching does not become guessing.
    pub fn matches(&self, kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> bool {
        matches!(self.shown(kind), Shown::Value(own) if *own == *value)
    }

    /// Bytes that the object takes (C_GetObjectSize): values and their types.
    pub fn bytes(&self) -> u64 {
        let secret = match self {
            View::Key(key) => key.record.wrapped.as_ref().map_or(32, Vec::len),
            View::Session(_, object) => object.secret.as_ref().map_or(0, |secret| secret.len()),
            View::Public(_) | View::Object(..) => 0,
        };
        let attributes: usize = self.attributes().iter().map(|attribute| attribute.value.len() + 8).sum();
        (attributes + secret) as u64
    }

    /// CKA_LABEL as text, for people.
    pub fn label(&self) -> String {
        String::from_utf8_lossy(stored(self.attributes(), CKA_LABEL).unwrap_or_default()).into_owned()
    }

    /// Whether CKA_ALLOWED_MECHANISMS, if given, names the mechanism.
    pub fn allows_mechanism(&self, mechanism: CK_MECHANISM_TYPE) -> bool {
        let allowed = attributes::stored(self.attributes(), CKA_ALLOWED_MECHANISMS).unwrap_or_default();
        allowed.is_empty() || allowed.chunks_exact(8).any(|number| number == mechanism.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mayfly_protocol::TokenId;
    use mayfly_secmem::SecretBytes;

    fn session(class: u64, flags: &[(CK_ATTRIBUTE_TYPE, bool)], secret: bool) -> View<'static> {
        let mut list = Vec::new();
        attributes::put_ulong(&mut list, CKA_CLASS, class);
        attributes::put(&mut list, CKA_LABEL, *b"name");
        flags.iter().for_each(|(kind, value)| attributes::put_bool(&mut list, *kind, *value));
        let secret = secret.then(|| Arc::new(SecretBytes::new_with(4, |b| b.fill(7)).unwrap()));
        View::Session(9, Arc::new(SessionObject { token: TokenId([1; 32]), session: 1, attributes: list, secret }))
    }

    #[test]
    fn values_hide_unless_everything_allows_them() {
        for (class, sensitive, extractable, expected) in [
            (CKO_SECRET_KEY, true, false, Shown::Sensitive),
            (CKO_SECRET_KEY, true, true, Shown::Sensitive),
            (CKO_SECRET_KEY, false, false, Shown::Sensitive),
            (CKO_SECRET_KEY, false, true, Shown::Secret),
            (CKO_PRIVATE_KEY, true, true, Shown::Sensitive),
            (CKO_PRIVATE_KEY, false, true, Shown::Secret),
            (CKO_DATA, false, false, Shown::Secret),
        ] {
            let view = session(class, &[(CKA_SENSITIVE, sensitive), (CKA_EXTRACTABLE, extractable)], true);
            assert_eq!(view.shown(CKA_VALUE), expected, "{class} {sensitive} {extractable}");
            assert!(!view.matches(CKA_VALUE, &[7; 4]), "no guessing");
        }
        assert_eq!(session(CKO_SECRET_KEY, &[], true).shown(CKA_VALUE), Shown::Sensitive, "silence hides");
    }

    #[test]
    fn other_attributes_are_shown_or_absent() {
        let view = session(CKO_SECRET_KEY, &[(CKA_SIGN, true)], true);
        assert_eq!(view.shown(CKA_LABEL), Shown::Value(b"name"[..].into()));
        assert_eq!(view.shown(CKA_MODULUS), Shown::Absent);
        assert_eq!(view.shown(CKA_UNIQUE_ID), Shown::Value(b"session.9"[..].into()));
        assert_eq!(view.shown(CKA_CHECK_VALUE), Shown::Value(Cow::Borrowed(&[])));
        assert!(view.matches(CKA_SIGN, &[1]) && !view.matches(CKA_SIGN, &[0]) && !view.matches(CKA_SIGN, &[]));
        assert!(view.kinds().is_sorted() && view.kinds().contains(&CKA_VALUE));
        assert_eq!(view.label(), "name");
    }

    #[test]
    fn allowed_mechanisms_bind_when_given() {
        let mut list = Vec::new();
        let numbers = [CKM_AES_GCM.to_le_bytes(), CKM_AES_CBC.to_le_bytes()].concat();
        attributes::put(&mut list, CKA_ALLOWED_MECHANISMS, numbers);
        let object = SessionObject { token: TokenId([1; 32]), session: 1, attributes: list, secret: None };
        let view = View::Session(9, Arc::new(object));
        assert!(view.allows_mechanism(CKM_AES_CBC) && !view.allows_mechanism(CKM_AES_ECB));
        assert!(session(CKO_SECRET_KEY, &[], true).allows_mechanism(CKM_AES_ECB));
    }
}
