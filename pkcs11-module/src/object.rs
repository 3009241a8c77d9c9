//! What the module remembers of objects, so that Init calls, attribute reads and checks cost no round trip.
//!
//! An object is remembered under its token's object version. Each answer that names the token brings the
//! present version; another one, another run of the agent, a login or a logout, or a second without any
//! news makes what is remembered stale. Only what the agent calls readable without an assembly is here:
//! no key bytes.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use mayfly_wire::{AttributeAnswer, AttributeState, List, SESSION_OBJECT_BIT};

/// Most objects that are remembered of one token; a module in a program that lists 100,000 objects shall
/// not keep them all.
const OBJECTS_MAX: usize = 4096;
/// How long what is remembered counts without news of the token.
const NEWS_AGE_MAX: Duration = Duration::from_secs(1);

/// One object's attributes, as of one version.
#[derive(Debug, Default)]
pub struct Object {
    entries: Vec<Entry>,
    values: Vec<u8>,
    /// CKA_CLASS.
    pub class: Option<u64>,
    /// CKA_KEY_TYPE.
    pub key_type: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: u64,
    state: State,
    start: usize,
    end: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Value,
    Sensitive,
    Absent,
    OnRequest,
}

impl Object {
    /// Takes an agent's answer apart.
    pub fn new(attributes: &List<'_, AttributeAnswer<'_>>) -> Self {
        let mut object = Self::default();
        for attribute in attributes.iter() {
            let start = object.values.len();
            let state = match attribute.state {
                AttributeState::Value(value) => {
                    object.values.extend_from_slice(value.0);
                    State::Value
                }
                AttributeState::Sensitive => State::Sensitive,
                AttributeState::Absent => State::Absent,
                AttributeState::OnRequest => State::OnRequest,
            };
            object.entries.push(Entry { kind: attribute.kind, state, start, end: object.values.len() });
        }
        object.entries.sort_by_key(|entry| entry.kind);
        object.class = object.number(CKA_CLASS);
        object.key_type = object.number(CKA_KEY_TYPE);
        object
    }

    /// What is known of an attribute.
    pub fn attribute(&self, kind: u64) -> AttributeState<'_> {
        let found = self.entries.binary_search_by_key(&kind, |entry| entry.kind).ok();
        match found.and_then(|index| self.entries.get(index)) {
            Some(entry) => match entry.state {
                State::Value => AttributeState::Value(mayfly_wire::Opaque(
                    self.values.get(entry.start..entry.end).unwrap_or_default(),
                )),
                State::Sensitive => AttributeState::Sensitive,
                State::Absent => AttributeState::Absent,
                State::OnRequest => AttributeState::OnRequest,
            },
            None => AttributeState::Absent,
        }
    }

    /// The value of a readable attribute.
    pub fn value(&self, kind: u64) -> Option<&[u8]> {
        match self.attribute(kind) {
            AttributeState::Value(value) => Some(value.0),
            _ => None,
        }
    }

    /// The value of a CK_ULONG attribute.
    pub fn number(&self, kind: u64) -> Option<u64> {
        self.value(kind)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// Whether a CK_BBOOL attribute is there and true.
    pub fn is(&self, kind: u64) -> bool {
        self.value(kind) == Some(&[1])
    }

    /// Length of one coordinate of the key's curve, bytes, where CKA_EC_PARAMS names one that is known here.
    pub fn coordinate_bytes(&self) -> Option<usize> {
        const CURVES: [(&[u8], usize); 4] = [
            (b"\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07", 32), // P-256
            (b"\x06\x05\x2b\x81\x04\x00\x22", 48),             // P-384
            (b"\x06\x05\x2b\x81\x04\x00\x23", 66),             // P-521
            (b"\x06\x05\x2b\x81\x04\x00\x0a", 32),             // secp256k1
        ];
        let parameters = self.value(CKA_EC_PARAMS)?;
        CURVES.iter().find(|(oid, _)| *oid == parameters).map(|(_, bytes)| *bytes)
    }
}

/// The objects remembered of all tokens.
#[derive(Default)]
pub struct ObjectCache {
    run: u64,
    tokens: HashMap<u32, TokenObjects>,
}

#[derive(Default)]
struct TokenObjects {
    version: u64,
    news: Option<Instant>,
    objects: HashMap<u64, Arc<Object>>,
}

impl ObjectCache {
    /// An object that is remembered and not stale.
    pub fn find(&self, run: u64, slot: u32, handle: u64) -> Option<Arc<Object>> {
        let token = self.tokens.get(&slot).filter(|_| self.run == run)?;
        token.news.filter(|news| news.elapsed() < NEWS_AGE_MAX)?;
        token.objects.get(&handle).cloned()
    }

    /// An answer named the token with this object version.
    pub fn note(&mut self, run: u64, slot: u32, version: u64) {
        if self.run != run {
            self.tokens.clear();
            self.run = run;
        }
        let token = self.tokens.entry(slot).or_default();
        // An answer that was overtaken by a newer one brings no news.
        if version < token.version {
            return;
        }
        if version > token.version {
            token.objects.clear();
            token.version = version;
        }
        token.news = Some(Instant::now());
    }

    /// Remembers an object that came with an answer of this version.
    pub fn insert(&mut self, run: u64, slot: u32, version: u64, handle: u64, object: Arc<Object>) {
        self.note(run, slot, version);
        let Some(token) = self.tokens.get_mut(&slot).filter(|token| token.version == version) else { return };
        if token.objects.len() >= OBJECTS_MAX {
            token.objects.clear();
        }
        token.objects.insert(handle, object);
    }

    /// Forgets a token's objects: who is logged in has changed, and with it what may be seen.
    pub fn forget(&mut self, slot: u32) {
        if let Some(token) = self.tokens.get_mut(&slot) {
            token.objects.clear();
        }
    }
}

/// Whether a handle is of a session object.
pub fn is_session_object(handle: u64) -> bool {
    handle & SESSION_OBJECT_BIT != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(label: &[u8]) -> Arc<Object> {
        let class = CKO_SECRET_KEY.to_le_bytes();
        let attributes = [
            AttributeAnswer::value(CKA_LABEL, label),
            AttributeAnswer::value(CKA_CLASS, &class),
            AttributeAnswer::value(CKA_ENCRYPT, &[1]),
            AttributeAnswer { kind: CKA_VALUE, state: AttributeState::Sensitive },
        ];
        Arc::new(Object::new(&List::from(&attributes[..])))
    }

    #[test]
    fn attributes_are_found_in_any_order() {
        let object = object(b"a");
        assert_eq!(object.value(CKA_LABEL), Some(&b"a"[..]));
        assert_eq!(object.class, Some(CKO_SECRET_KEY));
        assert!(object.is(CKA_ENCRYPT) && !object.is(CKA_DECRYPT) && !object.is(CKA_LABEL));
        assert_eq!(object.attribute(CKA_VALUE), AttributeState::Sensitive);
        assert_eq!(object.attribute(CKA_ID), AttributeState::Absent);
    }

    #[test]
    fn what_is_stale_is_not_found() {
        let mut cache = ObjectCache::default();
        cache.insert(1, 5, 10, 77, object(b"a"));
        assert!(cache.find(1, 5, 77).is_some());
        assert!(cache.find(2, 5, 77).is_none(), "another run");
        assert!(cache.find(1, 6, 77).is_none(), "another token");
        cache.note(1, 5, 9);
        assert!(cache.find(1, 5, 77).is_some(), "an answer that was overtaken");
        cache.insert(1, 5, 9, 78, object(b"old"));
        assert!(cache.find(1, 5, 78).is_none(), "an object that was overtaken");
        cache.note(1, 5, 11);
        assert!(cache.find(1, 5, 77).is_none(), "another version");
        cache.insert(1, 5, 11, 77, object(b"b"));
        cache.forget(5);
        assert!(cache.find(1, 5, 77).is_none(), "after a login");
        cache.insert(1, 5, 11, 77, object(b"b"));
        cache.note(2, 5, 0);
        assert!(cache.find(2, 5, 77).is_none() && cache.find(1, 5, 77).is_none(), "a new run starts empty");
    }

    #[test]
    fn memory_is_bounded() {
        let mut cache = ObjectCache::default();
        let one = object(b"a");
        for handle in 0..3 * OBJECTS_MAX as u64 {
            cache.insert(1, 5, 10, handle, one.clone());
        }
        assert!(cache.tokens[&5].objects.len() <= OBJECTS_MAX);
        assert!(cache.find(1, 5, 3 * OBJECTS_MAX as u64 - 1).is_some(), "the newest is there");
    }
}
