//! Slots, tokens and what they can.
//!
//! Slots never go away while the module is initialised and keep their ids: an application that has listed
//! them once may go on with what it saw. Without an agent every slot is empty.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use mayfly_wire::types::{MechanismInfo, TokenInfo};
use mayfly_wire::{Pin, Request, Response, TokenFlags, request, slot_id};

use crate::agent::Repeat;
use crate::digest::DIGESTS;
use crate::library::Library;
use crate::mechanism;
use crate::rv::{Outcome, Rv, ensure, fail};
use crate::session::{Who, expect_done};

/// How long a list of tokens counts where a call does not ask for a new one.
const TOKENS_AGE_MAX: Duration = Duration::from_secs(1);
/// Most slots of one process.
const SLOTS_MAX: usize = 1024;
/// The slot that is shown where no token is configured and no agent has been met.
const DEFAULT_TOKEN: &str = "mayfly";
/// How often a waiting C_WaitForSlotEvent looks.
const EVENT_POLL: Duration = Duration::from_millis(200);
/// Manufacturer of everything here.
pub const MANUFACTURER: &str = "Mayfly";

/// A token, as the agent described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its slot.
    pub slot: u32,
    flags: TokenFlags,
    label: String,
    serial: String,
    model: String,
    pin_bytes: (u16, u16),
}

impl Token {
    fn new(info: &TokenInfo<'_>) -> Self {
        Self {
            slot: info.slot,
            flags: info.flags,
            label: info.label.to_owned(),
            serial: info.serial.to_owned(),
            model: info.model.to_owned(),
            pin_bytes: (info.pin_bytes_min, info.pin_bytes_max),
        }
    }

    /// Whether C_InitToken was done.
    pub fn is_initialised(&self) -> bool {
        self.flags.contains(TokenFlags::INITIALISED)
    }

    /// Whether private objects need a login.
    pub fn is_login_required(&self) -> bool {
        self.flags.contains(TokenFlags::LOGIN_REQUIRED)
    }

    /// CKR_PIN_LEN_RANGE unless a new PIN is as long as the token wants.
    pub fn check_pin_length(&self, pin: &[u8]) -> Outcome {
        let (least, most) = (self.pin_bytes.0.into(), usize::from(self.pin_bytes.1).min(mayfly_wire::PIN_BYTES_MAX));
        ensure((least..=most).contains(&pin.len()), CKR_PIN_LEN_RANGE)
    }

    fn ck_flags(&self) -> CK_FLAGS {
        const TABLE: [(TokenFlags, CK_FLAGS); 11] = [
            (TokenFlags::INITIALISED, CKF_TOKEN_INITIALIZED),
            (TokenFlags::USER_PIN_SET, CKF_USER_PIN_INITIALIZED),
            (TokenFlags::LOGIN_REQUIRED, CKF_LOGIN_REQUIRED),
            (TokenFlags::WRITE_PROTECTED, CKF_WRITE_PROTECTED),
            (TokenFlags::USER_PIN_COUNT_LOW, CKF_USER_PIN_COUNT_LOW),
            (TokenFlags::USER_PIN_FINAL_TRY, CKF_USER_PIN_FINAL_TRY),
            (TokenFlags::USER_PIN_LOCKED, CKF_USER_PIN_LOCKED),
            (TokenFlags::USER_PIN_TO_BE_CHANGED, CKF_USER_PIN_TO_BE_CHANGED),
            (TokenFlags::SO_PIN_COUNT_LOW, CKF_SO_PIN_COUNT_LOW),
            (TokenFlags::SO_PIN_FINAL_TRY, CKF_SO_PIN_FINAL_TRY),
            (TokenFlags::SO_PIN_LOCKED, CKF_SO_PIN_LOCKED),
        ];
        let set = TABLE.iter().filter(|(ours, _)| self.flags.contains(*ours));
        set.fold(CKF_RNG | CKF_DUAL_CRYPTO_OPERATIONS, |flags, (_, theirs)| flags | theirs)
    }
}

struct Slot {
    id: u32,
    token: Option<Arc<Token>>,
    /// A token came or went and C_WaitForSlotEvent has not told yet.
    has_event: bool,
}

/// What is known of the slots.
#[derive(Default)]
pub struct Slots {
    slots: Vec<Slot>,
    asked: Option<Instant>,
    mechanisms: HashMap<u32, (u64, Arc<[MechanismInfo]>)>,
}

impl Slots {
    fn merge(&mut self, tokens: Option<Vec<Token>>, configured: &[String]) {
        let is_first = self.asked.is_none();
        self.asked = Some(Instant::now());
        let ids = configured.iter().map(|name| slot_id(name)).chain(tokens.iter().flatten().map(|token| token.slot));
        for id in ids.collect::<Vec<_>>() {
            self.add(id);
        }
        if self.slots.is_empty() {
            self.add(slot_id(DEFAULT_TOKEN));
        }
        let mut tokens: HashMap<u32, Token> = tokens.into_iter().flatten().map(|token| (token.slot, token)).collect();
        for slot in &mut self.slots {
            let token = tokens.remove(&slot.id).filter(|token| token.flags.contains(TokenFlags::PRESENT));
            slot.has_event |= !is_first && token.is_some() != slot.token.is_some();
            if slot.token.as_deref() != token.as_ref() {
                slot.token = token.map(Arc::new);
            }
        }
    }

    fn add(&mut self, id: u32) {
        if self.slots.len() < SLOTS_MAX && !self.slots.iter().any(|slot| slot.id == id) {
            self.slots.push(Slot { id, token: None, has_event: false });
        }
    }
}

impl Library {
    /// C_GetSlotList. `is_new` asks the agent: the first of an application's two calls. The second sees the same
    /// list, unless it comes late: there are applications that make no first one.
    pub fn slot_list(&self, only_with_token: bool, is_new: bool) -> Vec<CK_SLOT_ID> {
        let slots = if is_new { self.ask_for_tokens() } else { self.recent_slots(TOKENS_AGE_MAX) };
        let listed = slots.slots.iter().filter(|slot| !only_with_token || slot.token.is_some());
        listed.map(|slot| slot.id.into()).collect()
    }

    /// The slot of an id, whether or not there is a token in it.
    pub fn slot_of(&self, id: CK_SLOT_ID) -> Outcome<u32> {
        let slots = self.recent_slots(Duration::MAX);
        slots
            .slots
            .iter()
            .find(|slot| CK_SLOT_ID::from(slot.id) == id)
            .map(|slot| slot.id)
            .ok_or(Rv(CKR_SLOT_ID_INVALID))
    }

    /// The token in a slot.
    pub fn token(&self, id: CK_SLOT_ID) -> Outcome<Arc<Token>> {
        self.token_of(&self.recent_slots(TOKENS_AGE_MAX), id)
    }

    fn token_of(&self, slots: &Slots, id: CK_SLOT_ID) -> Outcome<Arc<Token>> {
        let slot = slots.slots.iter().find(|slot| CK_SLOT_ID::from(slot.id) == id).ok_or(Rv(CKR_SLOT_ID_INVALID))?;
        slot.token.clone().ok_or(Rv(CKR_TOKEN_NOT_PRESENT))
    }

    /// The next call asks the agent for its tokens again.
    pub fn forget_tokens(&self) {
        let mut slots = self.lock_slots();
        // `asked` stays set: the list is old, not new.
        slots.asked = slots.asked.and_then(|asked| asked.checked_sub(TOKENS_AGE_MAX)).or(slots.asked);
    }

    /// C_GetSlotInfo.
    pub fn slot_info(&self, id: CK_SLOT_ID) -> Outcome<CK_SLOT_INFO> {
        let slots = self.recent_slots(TOKENS_AGE_MAX);
        let slot = slots.slots.iter().find(|slot| CK_SLOT_ID::from(slot.id) == id).ok_or(Rv(CKR_SLOT_ID_INVALID))?;
        let present = if slot.token.is_some() { CKF_TOKEN_PRESENT } else { 0 };
        Ok(CK_SLOT_INFO {
            slotDescription: padded(&format!("Mayfly slot {}", slot.id)),
            manufacturerID: padded(MANUFACTURER),
            flags: CKF_REMOVABLE_DEVICE | present,
            hardwareVersion: module_version(),
            firmwareVersion: module_version(),
        })
    }

    /// C_GetTokenInfo.
    pub fn token_info(&self, id: CK_SLOT_ID) -> Outcome<CK_TOKEN_INFO> {
        let token = self.token_of(&self.ask_for_tokens(), id)?;
        let (sessions, writable) = self.count_sessions(token.slot);
        Ok(CK_TOKEN_INFO {
            label: padded(&token.label),
            manufacturerID: padded(MANUFACTURER),
            model: padded(&token.model),
            serialNumber: padded(&token.serial),
            flags: token.ck_flags(),
            ulMaxSessionCount: CK_EFFECTIVELY_INFINITE,
            ulSessionCount: sessions,
            ulMaxRwSessionCount: CK_EFFECTIVELY_INFINITE,
            ulRwSessionCount: writable,
            ulMaxPinLen: token.pin_bytes.1.into(),
            ulMinPinLen: token.pin_bytes.0.into(),
            ulTotalPublicMemory: CK_UNAVAILABLE_INFORMATION,
            ulFreePublicMemory: CK_UNAVAILABLE_INFORMATION,
            ulTotalPrivateMemory: CK_UNAVAILABLE_INFORMATION,
            ulFreePrivateMemory: CK_UNAVAILABLE_INFORMATION,
            hardwareVersion: module_version(),
            firmwareVersion: module_version(),
            utcTime: [b' '; 16],
        })
    }

    /// C_InitToken. `label` is as the application gave it, blank-padded.
    pub fn init_token(&self, id: CK_SLOT_ID, so_pin: &[u8], label: &[u8]) -> Outcome {
        let token = self.token(id)?;
        let label = str::from_utf8(label).map_err(|_| Rv(CKR_ARGUMENTS_BAD))?.trim_end_matches([' ', '\0']);
        ensure(self.count_sessions(token.slot).0 == 0, CKR_SESSION_EXISTS)?;
        if token.is_initialised() {
            ensure(so_pin.len() <= mayfly_wire::PIN_BYTES_MAX, CKR_PIN_INCORRECT)?;
        } else {
            token.check_pin_length(so_pin)?;
        }
        let request = request::InitToken { token: token.slot, so_pin: Pin(so_pin), label };
        self.ask(token.slot, Repeat::Never, &Request::InitToken(request), expect_done)?;
        self.set_who(token.slot, Who::Nobody);
        self.forget_tokens();
        Ok(())
    }

    /// What works on a token: the agent's mechanisms that this module understands, its hashing forms of
    /// them, and digests.
    pub fn mechanisms(&self, id: CK_SLOT_ID) -> Outcome<Arc<[MechanismInfo]>> {
        let token = self.token(id)?;
        let run = self.agent.run();
        if let Some((_, known)) = self.lock_slots().mechanisms.get(&token.slot).filter(|(asked, _)| *asked == run) {
            return Ok(known.clone());
        }
        let request = Request::Mechanisms(request::OfToken { token: token.slot });
        let offered: Vec<MechanismInfo> = self.ask(token.slot, Repeat::Harmless, &request, |answer| match answer {
            Response::Mechanisms(answer) => Ok(answer.mechanisms.iter().collect()),
            _ => fail(CKR_DEVICE_ERROR),
        })?;
        let list: Arc<[MechanismInfo]> = understood(&offered).into();
        self.lock_slots().mechanisms.insert(token.slot, (self.agent.run(), list.clone()));
        Ok(list)
    }

    /// C_GetMechanismInfo.
    pub fn mechanism_info(&self, id: CK_SLOT_ID, code: u64) -> Outcome<MechanismInfo> {
        let mechanisms = self.mechanisms(id)?;
        mechanisms.iter().find(|info| info.code == code).copied().ok_or(Rv(CKR_MECHANISM_INVALID))
    }

    /// CKR_MECHANISM_INVALID unless the token offers a mechanism for a use (a CKF_… flag).
    pub fn check_offered(&self, slot: u32, code: u64, use_flag: CK_FLAGS) -> Outcome {
        let info = self.mechanism_info(slot.into(), code).map_err(|error| match error {
            Rv(CKR_TOKEN_NOT_PRESENT) => Rv(CKR_DEVICE_ERROR),
            error => error,
        })?;
        ensure(info.flags & use_flag != 0, CKR_MECHANISM_INVALID)
    }

    /// C_WaitForSlotEvent.
    pub fn wait_for_slot_event(&self, flags: CK_FLAGS) -> Outcome<CK_SLOT_ID> {
        loop {
            ensure(!self.is_finalized(), CKR_CRYPTOKI_NOT_INITIALIZED)?;
            let mut slots = self.ask_for_tokens();
            if let Some(slot) = slots.slots.iter_mut().find(|slot| slot.has_event) {
                slot.has_event = false;
                return Ok(slot.id.into());
            }
            drop(slots);
            ensure(flags & CKF_DONT_BLOCK == 0, CKR_NO_EVENT)?;
            std::thread::sleep(EVENT_POLL);
        }
    }

    fn recent_slots(&self, age_max: Duration) -> MutexGuard<'_, Slots> {
        let slots = self.lock_slots();
        if slots.asked.is_some_and(|asked| asked.elapsed() < age_max) {
            return slots;
        }
        drop(slots);
        self.ask_for_tokens()
    }

    fn ask_for_tokens(&self) -> MutexGuard<'_, Slots> {
        let tokens = self.agent.call(Repeat::Harmless, &Request::Tokens, |_, answer| match answer {
            Response::Tokens(answer) => {
                let usable = answer.tokens.iter().filter(|token| token.slot > 0 && token.slot < 1 << 31);
                Ok(usable.map(|token| Token::new(&token)).collect::<Vec<_>>())
            }
            _ => fail(CKR_DEVICE_ERROR),
        });
        let mut slots = self.lock_slots();
        slots.merge(tokens.ok(), &self.config.tokens);
        slots
    }

    fn lock_slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The part of an agent's mechanisms that the module understands, what it makes of them, and digests.
fn understood(offered: &[MechanismInfo]) -> Vec<MechanismInfo> {
    let by_table = mechanism::TABLE.iter().filter_map(|spec| {
        let base = offered.iter().find(|info| info.code == spec.sent_as)?;
        Some(MechanismInfo { code: spec.code, ..*base })
    });
    let digests = DIGESTS.iter().map(|(code, _)| MechanismInfo {
        code: *code,
        key_size_min: 0,
        key_size_max: 0,
        flags: CKF_DIGEST,
    });
    by_table.chain(digests).collect()
}

/// The module's version, from its manifest.
pub fn module_version() -> CK_VERSION {
    let part = |text: &str| text.parse().unwrap_or(0);
    CK_VERSION { major: part(env!("CARGO_PKG_VERSION_MAJOR")), minor: part(env!("CARGO_PKG_VERSION_MINOR")) }
}

/// Text in a field of PKCS#11: blank-padded, not terminated, cut between characters where it is too long.
pub fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    let text = text.get(..text.floor_char_boundary(N)).unwrap_or_default();
    if let Some(start) = field.get_mut(..text.len()) {
        start.copy_from_slice(text.as_bytes());
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(name: &str) -> Token {
        let info = TokenInfo {
            slot: slot_id(name),
            flags: TokenFlags::PRESENT,
            object_version: 1,
            pin_bytes_min: 4,
            pin_bytes_max: 64,
            label: name,
            serial: "1",
            model: "Mayfly",
        };
        Token::new(&info)
    }

    fn ids(slots: &Slots, only_with_token: bool) -> Vec<u32> {
        slots.slots.iter().filter(|s| !only_with_token || s.token.is_some()).map(|s| s.id).collect()
    }

    #[test]
    fn slots_stay_and_tokens_come_and_go() {
        let mut slots = Slots::default();
        slots.merge(Some(vec![token("a"), token("b")]), &[]);
        let both = vec![slot_id("a"), slot_id("b")];
        assert_eq!(ids(&slots, true), both);
        assert!(!slots.slots.iter().any(|slot| slot.has_event), "the first look is no event");
        slots.merge(None, &[]);
        assert_eq!((ids(&slots, false), ids(&slots, true)), (both.clone(), vec![]));
        assert!(slots.slots.iter().all(|slot| slot.has_event));
        slots.merge(Some(vec![token("c"), token("b")]), &[]);
        assert_eq!(ids(&slots, false), [both, vec![slot_id("c")]].concat(), "in the order first seen");
        assert_eq!(ids(&slots, true), [slot_id("b"), slot_id("c")]);
    }

    #[test]
    fn without_an_agent_slots_are_empty() {
        let mut slots = Slots::default();
        slots.merge(None, &["prod".into(), "test".into()]);
        assert_eq!((ids(&slots, false), ids(&slots, true)), (vec![slot_id("prod"), slot_id("test")], vec![]));
        let mut slots = Slots::default();
        slots.merge(None, &[]);
        assert_eq!(ids(&slots, false), [slot_id("mayfly")]);
        slots.merge(Some(vec![token("mayfly")]), &[]);
        assert_eq!(ids(&slots, true), [slot_id("mayfly")], "an agent with nothing configured fills it");
    }

    #[test]
    fn only_what_the_agent_offers_is_listed() {
        let info = |code, flags| MechanismInfo { code, key_size_min: 16, key_size_max: 32, flags };
        let offered = [info(CKM_ECDSA, CKF_SIGN), info(CKM_AES_GCM, CKF_ENCRYPT), info(0x8000_1234, CKF_SIGN)];
        let codes: Vec<u64> = understood(&offered).iter().map(|info| info.code).collect();
        let ecdsa = [CKM_ECDSA, CKM_ECDSA_SHA1, CKM_ECDSA_SHA224, CKM_ECDSA_SHA256, CKM_ECDSA_SHA384, CKM_ECDSA_SHA512];
        let digests = [CKM_SHA_1, CKM_SHA224, CKM_SHA256, CKM_SHA384, CKM_SHA512];
        assert_eq!(codes, [&[CKM_AES_GCM][..], &ecdsa[..], &digests[..]].concat());
    }

    #[test]
    fn text_is_padded_and_cut_between_characters() {
        assert_eq!(&padded::<5>("ab"), b"ab   ");
        assert_eq!(&padded::<3>("abcd"), b"abc");
        assert_eq!(&padded::<3>("aéé"), "aé".as_bytes());
    }
}
