//! What lies in each token, ready to be found: by handle, by CKA_LABEL, by CKA_ID.
//!
//! A catalogue belongs to one state of the ledger. The next one is made from it and the difference of the two states, which persistent
//! maps give without looking at what they share: a change of one object among 100,000 costs microseconds.
//!
//! Handles: `position << 2 | kind`, where the position is the index of the record that made the object: small numbers, the same on every
//! host and after every restart, never used twice.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
use mayfly_protocol::record::Attribute;
use mayfly_protocol::state::{KeyState, ObjectState, Token};
use mayfly_protocol::{KeyId, ObjectId, State, TokenId};

use super::attributes::stored;
use crate::app::ck::{CKA_ID, CKA_LABEL};

/// What a handle without the session bit names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    /// The secret or private object of a key.
    Key(KeyId),
    /// The public object of a key pair.
    Public(KeyId),
    /// An object without secrets.
    Object(ObjectId),
}

impl Target {
    /// The handle of an object whose record has this position.
    pub fn handle(&self, position: u64) -> u64 {
        let kind = match self {
            Self::Key(_) => 0,
            Self::Public(_) => 1,
            Self::Object(_) => 2,
        };
        position << 2 | kind
    }
}

/// The objects of one token.
#[derive(Debug, Clone, Default)]
pub struct Shelf {
    by_handle: OrdMap<u64, Target>,
    by_label: OrdSet<(Arc<[u8]>, u64)>,
    by_id: OrdSet<(Arc<[u8]>, u64)>,
}

impl Shelf {
    /// What a handle names.
    pub fn get(&self, handle: u64) -> Option<&Target> {
        self.by_handle.get(&handle)
    }

    /// All objects above a handle, ascending.
    pub fn above(&self, after: u64) -> impl Iterator<Item = (u64, Target)> + '_ {
        self.by_handle.range(after.saturating_add(1)..).map(|(handle, target)| (*handle, *target))
    }

    /// Objects with exactly this CKA_LABEL above a handle, ascending.
    pub fn labelled(&self, label: &[u8], after: u64) -> Vec<(u64, Target)> {
        self.in_set(&self.by_label, label, after)
    }

    /// Objects with exactly this CKA_ID above a handle, ascending.
    pub fn with_id(&self, id: &[u8], after: u64) -> Vec<(u64, Target)> {
        self.in_set(&self.by_id, id, after)
    }

    /// Number of objects.
    pub fn count(&self) -> usize {
        self.by_handle.len()
    }

    fn in_set(&self, set: &OrdSet<(Arc<[u8]>, u64)>, value: &[u8], after: u64) -> Vec<(u64, Target)> {
        let value: Arc<[u8]> = value.into();
        let range = set.range((value.clone(), after.saturating_add(1))..=(value, u64::MAX));
        range.filter_map(|(_, handle)| self.by_handle.get(handle).map(|target| (*handle, *target))).collect()
    }

    fn put(&mut self, position: u64, target: Target, attributes: &[Attribute]) {
        let handle = target.handle(position);
        self.by_handle.insert(handle, target);
        self.by_label.insert((name(attributes, CKA_LABEL), handle));
        self.by_id.insert((name(attributes, CKA_ID), handle));
    }

    fn take(&mut self, position: u64, target: Target, attributes: &[Attribute]) {
        let handle = target.handle(position);
        self.by_handle.remove(&handle);
        self.by_label.remove(&(name(attributes, CKA_LABEL), handle));
        self.by_id.remove(&(name(attributes, CKA_ID), handle));
    }
}

fn name(attributes: &[Attribute], kind: u64) -> Arc<[u8]> {
    stored(attributes, kind).unwrap_or_default().into()
}

/// All tokens and their objects in one state of the ledger.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    state: Arc<State>,
    shelves: OrdMap<TokenId, Shelf>,
    slots: OrdMap<u32, TokenId>,
}

impl Catalogue {
    /// The state that this is of.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// The objects of a token.
    pub fn shelf(&self, token: &TokenId) -> Option<&Shelf> {
        self.shelves.get(token)
    }

    /// The token in a slot.
    pub fn in_slot(&self, slot: u32) -> Option<(&TokenId, &Token)> {
        let id = self.slots.get(&slot)?;
        self.state.tokens.get(id).map(|token| (id, token))
    }

    /// Slots and their tokens, ascending.
    pub fn slots(&self) -> impl Iterator<Item = (u32, &TokenId, &Token)> {
        self.slots.iter().filter_map(|(slot, id)| self.state.tokens.get(id).map(|token| (*slot, id, token)))
    }

    /// The slot of a token.
    pub fn slot_of(&self, token: &TokenId) -> Option<u32> {
        self.slots.iter().find(|(_, id)| *id == token).map(|(slot, _)| *slot)
    }

    /// The catalogue of a later state.
    fn next(&self, state: &Arc<State>) -> Self {
        let mut next = Self { state: state.clone(), ..self.clone() };
        for change in self.state.keys.diff(&state.keys) {
            match change {
                DiffItem::Add(id, new) => next.put_key(id, new),
                DiffItem::Remove(id, old) => next.take_key(id, old),
                DiffItem::Update { old: (id, old), new: (_, new) } => {
                    next.take_key(id, old);
                    next.put_key(id, new);
                }
            }
        }
        for change in self.state.objects.diff(&state.objects) {
            match change {
                DiffItem::Add(id, new) => next.put_object(id, new),
                DiffItem::Remove(id, old) => next.take_object(id, old),
                DiffItem::Update { old: (id, old), new: (_, new) } => {
                    next.take_object(id, old);
                    next.put_object(id, new);
                }
            }
        }
        next.assign_slots();
        next
    }

    /// A token keeps the slot in which this agent has shown it, whatever it is called later; a new one goes to the slot of its name, or,
    /// should that be taken, to the next free one, in the order of names.
    fn assign_slots(&mut self) {
        let state = self.state.clone();
        let kept: OrdMap<u32, TokenId> =
            self.slots.iter().filter(|(_, id)| state.tokens.contains_key(*id)).map(|(s, id)| (*s, *id)).collect();
        if kept.len() == state.tokens.len() && kept.len() == self.slots.len() {
            return;
        }
        self.slots = kept;
        let placed: Vec<TokenId> = self.slots.values().copied().collect();
        let mut fresh: Vec<_> = state.tokens.iter().filter(|(id, _)| !placed.contains(id)).collect();
        fresh.sort_by_key(|(_, token)| token.record.label.clone());
        for (id, token) in fresh {
            let mut slot = mayfly_wire::slot_id(&token.record.label);
            while self.slots.contains_key(&slot) {
                slot = (slot % (u32::MAX >> 1)) + 1;
            }
            self.slots.insert(slot, *id);
        }
    }

    fn put_key(&mut self, id: &KeyId, key: &KeyState) {
        let shelf = self.shelves.entry(key.record.token).or_default();
        if !key.deleted {
            shelf.put(key.position, Target::Key(*id), &key.attributes);
        }
        if let Some(attributes) = &key.public_attributes {
            shelf.put(key.position, Target::Public(*id), attributes);
        }
    }

    fn take_key(&mut self, id: &KeyId, key: &KeyState) {
        let shelf = self.shelves.entry(key.record.token).or_default();
        shelf.take(key.position, Target::Key(*id), &key.attributes);
        if let Some(attributes) = &key.public_attributes {
            shelf.take(key.position, Target::Public(*id), attributes);
        }
    }

    fn put_object(&mut self, id: &ObjectId, object: &ObjectState) {
        let shelf = self.shelves.entry(object.token).or_default();
        shelf.put(object.position, Target::Object(*id), &object.attributes);
    }

    fn take_object(&mut self, id: &ObjectId, object: &ObjectState) {
        let shelf = self.shelves.entry(object.token).or_default();
        shelf.take(object.position, Target::Object(*id), &object.attributes);
    }
}

/// The newest catalogue; readers never wait for the one who makes the next.
#[derive(Debug, Default)]
pub struct Catalogues {
    newest: ArcSwap<Catalogue>,
    writer: Mutex<()>,
}

impl Catalogues {
    /// The catalogue of `state`, made now if nobody has made it yet.
    pub fn of(&self, state: &Arc<State>) -> Arc<Catalogue> {
        let newest = self.newest.load_full();
        if Arc::ptr_eq(&newest.state, state) {
            return newest;
        }
        let _one_writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = self.newest.load_full();
        // Whoever comes late with an older state gets the newer catalogue: the ledger does not go back.
        if Arc::ptr_eq(&newest.state, state) || newest.state.size() > state.size() {
            return newest;
        }
        let next = Arc::new(newest.next(state));
        self.newest.store(next.clone());
        next
    }
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
