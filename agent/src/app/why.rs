//! The last refusals of each user, for `mayfly why`: which rule, which key, which device was missing. In memory only.
//!
//! It must never hold anything secret, nor show one user's refusals to another (root excepted).

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;

use serde::Serialize;

use super::fail::Fail;

/// Refusals kept per user.
pub const REFUSALS_PER_USER_MAX: usize = 64;
/// Users of whom refusals are kept; beyond, the user whose newest refusal is oldest is forgotten.
pub const USERS_MAX: usize = 128;
/// Most bytes of a key's name that are kept: a label may have 16 KiB.
pub const NAME_BYTES_MAX: usize = 128;
/// Most bytes of a reason.
pub const REASON_BYTES_MAX: usize = 1024;

/// A device's part in a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceReason {
    /// Its name.
    pub device: String,
    /// What it said, or that it did not answer.
    pub reason: String,
}

/// One refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// What was asked: `sign`, `login`, …
    pub operation: &'static str,
    /// Name of the key, if the request named one that the user may see.
    pub key: Option<String>,
    /// One sentence.
    pub reason: String,
    /// A stable word for the rule.
    pub rule: &'static str,
    /// Devices that were missing or refused.
    pub devices: Vec<DeviceReason>,
    /// What to do next.
    pub next: Option<String>,
    /// The user, by number.
    pub uid: u32,
}

/// The rings of all users.
#[derive(Debug, Default)]
pub struct Why {
    rings: Mutex<HashMap<u32, VecDeque<Entry>>>,
}

impl Why {
    /// Keeps a refusal, if it is of a kind that people ask about (those that a rule gave).
    pub fn keep(&self, uid: u32, operation: &'static str, key: Option<String>, fail: &Fail, time_ms: u64) {
        let Some(detail) = fail.detail.as_deref() else { return };
        let entry = Entry {
            time_ms,
            operation,
            key: key.map(|key| cut(&key, NAME_BYTES_MAX).to_owned()),
            reason: cut(&fail.reason, REASON_BYTES_MAX).to_owned(),
            rule: detail.rule,
            devices: detail.devices.clone(),
            next: detail.next.clone(),
            uid,
        };
        let mut rings = self.rings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if rings.len() >= USERS_MAX && !rings.contains_key(&uid) {
            forget_one(&mut rings);
        }
        let ring = rings.entry(uid).or_default();
        if ring.len() >= REFUSALS_PER_USER_MAX {
            ring.pop_front();
        }
        ring.push_back(entry);
    }

    /// The refusals of one user, or of all (`None`), newest first.
    pub fn of(&self, uid: Option<u32>) -> Vec<Entry> {
        let rings = self.rings.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let wanted = rings.iter().filter(|(owner, _)| uid.is_none_or(|uid| uid == **owner));
        let mut entries: Vec<Entry> = wanted.flat_map(|(_, ring)| ring.iter().cloned()).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.time_ms));
        entries.truncate(REFUSALS_PER_USER_MAX);
        entries
    }
}

fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or_default()
}

fn forget_one(rings: &mut HashMap<u32, VecDeque<Entry>>) {
    let oldest = rings.iter().min_by_key(|(_, ring)| ring.back().map_or(0, |entry| entry.time_ms));
    if let Some(uid) = oldest.map(|(uid, _)| *uid) {
        rings.remove(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fail(rule: &'static str) -> Fail {
        Fail::ruled(0x30, rule, "no")
    }

    #[test]
    fn users_do_not_see_each_other() {
        let why = Why::default();
        why.keep(1, "sign", Some("a".into()), &fail("fresh"), 10);
        why.keep(2, "sign", None, &fail("policy"), 20);
        why.keep(1, "sign", None, &Fail::new(0x82, "no such object"), 30);
        let own: Vec<_> = why.of(Some(1)).into_iter().map(|e| (e.rule, e.time_ms)).collect();
        assert_eq!(own, [("fresh", 10)], "ordinary errors of an application are not kept");
        assert_eq!(why.of(None).len(), 2);
        assert_eq!(why.of(Some(3)), []);
    }

    #[test]
    fn rings_and_users_are_bounded() {
        let why = Why::default();
        for n in 0..REFUSALS_PER_USER_MAX as u64 + 5 {
            why.keep(1, "sign", None, &fail("policy"), n);
        }
        assert_eq!(why.rings.lock().unwrap()[&1].len(), REFUSALS_PER_USER_MAX);
        assert_eq!(why.of(Some(1))[0].time_ms, REFUSALS_PER_USER_MAX as u64 + 4, "newest first");
        why.keep(
            1,
            "sign",
            Some("é".repeat(NAME_BYTES_MAX)),
            &Fail::ruled(0x30, "r", "é".repeat(REASON_BYTES_MAX)),
            99,
        );
        let long = &why.of(Some(1))[0];
        assert_eq!((long.key.as_ref().unwrap().len(), long.reason.len()), (NAME_BYTES_MAX, REASON_BYTES_MAX));
        for uid in 2..USERS_MAX as u32 + 10 {
            why.keep(uid, "sign", None, &fail("policy"), 1_000 + u64::from(uid));
        }
        assert_eq!(why.rings.lock().unwrap().len(), USERS_MAX);
        assert_eq!(why.of(Some(1)), [], "the oldest user was forgotten");
    }
}
