//! Questions that agents ask of the state before they act: may this device release, assemble, see, make? Pure answers with reasons.

use crate::ids::{DeviceId, KeyId, TokenId};
use crate::record::{ShardRecord, VaultOpening};
use crate::state::{KeyState, State};

/// What a key is assembled for; each is one bit of [`crate::record::KeyPolicy::uses`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, minicbor::Encode, minicbor::Decode)]
#[cbor(index_only)]
#[repr(u8)]
pub enum Use {
    /// C_Encrypt.
    #[n(0)]
    Encrypt,
    /// C_Decrypt.
    #[n(1)]
    Decrypt,
    /// C_Sign, MACs included.
    #[n(2)]
    Sign,
    /// C_Verify; for public keys nothing is assembled.
    #[n(3)]
    Verify,
    /// C_DeriveKey.
    #[n(4)]
    Derive,
    /// C_WrapKey.
    #[n(5)]
    Wrap,
    /// C_UnwrapKey.
    #[n(6)]
    Unwrap,
    /// A synthetic IV.
    #[n(7)]
    Iv,
    /// The value itself, of keys that are extractable and not sensitive.
    #[n(8)]
    Export,
}

impl Use {
    /// Every use.
    pub const ALL: [Use; 9] =
        [Use::Encrypt, Use::Decrypt, Use::Sign, Use::Verify, Use::Derive, Use::Wrap, Use::Unwrap, Use::Iv, Use::Export];

    /// The use's bit in a policy.
    pub fn bit(self) -> u32 {
        1 << self as u8
    }

    /// The word for it on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Use::Encrypt => "encrypt",
            Use::Decrypt => "decrypt",
            Use::Sign => "sign",
            Use::Verify => "verify",
            Use::Derive => "derive",
            Use::Wrap => "wrap",
            Use::Unwrap => "unwrap",
            Use::Iv => "iv",
            Use::Export => "export",
        }
    }

    /// The use with this name.
    pub fn from_name(name: &str) -> Option<Use> {
        Use::ALL.into_iter().find(|u| u.name() == name)
    }
}

/// Type of a key, as `--type` and records name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// AES with a key of 16, 24 or 32 bytes.
    Aes(usize),
    /// HMAC or other generic secret of so many bytes.
    Generic(usize),
    /// NIST P-256.
    EcP256,
}

/// Largest generic secret in bytes.
pub const GENERIC_BYTES_MAX: usize = 512;

impl KeyType {
    /// Reads `aes:256`, `hmac:256`, `generic:128` (bits) or `ec:p256`.
    pub fn parse(text: &str) -> Option<KeyType> {
        let (family, parameter) = text.split_once(':')?;
        let bytes = || parameter.parse::<usize>().ok().filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
        match family {
            "aes" => bytes().filter(|n| [16, 24, 32].contains(n)).map(KeyType::Aes),
            "hmac" | "generic" => bytes().filter(|n| (1..=GENERIC_BYTES_MAX).contains(n)).map(KeyType::Generic),
            "ec" if parameter == "p256" => Some(KeyType::EcP256),
            _ => None,
        }
    }

    /// Length of the key bytes when they are derived from the root; `None` for keys that are always wrapped.
    pub fn derived_bytes(self) -> Option<usize> {
        match self {
            KeyType::Aes(n) | KeyType::Generic(n) => Some(n),
            KeyType::EcP256 => None,
        }
    }

    /// The `alg` in key-derivation labels.
    pub fn algorithm(self) -> &'static str {
        match self {
            KeyType::Aes(16) => "AES-128-GCM",
            KeyType::Aes(24) => "AES-192-GCM",
            KeyType::Aes(_) => "AES-256-GCM",
            KeyType::Generic(_) => "GENERIC",
            KeyType::EcP256 => "EC-P256",
        }
    }
}

impl std::fmt::Display for KeyType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeyType::Aes(n) => write!(f, "aes:{}", n * 8),
            KeyType::Generic(n) => write!(f, "generic:{}", n * 8),
            KeyType::EcP256 => f.write_str("ec:p256"),
        }
    }
}

/// Why a holder does not release, or an assembler does not use, a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// No such key in this state.
    #[error("key {} is not on the ledger", .0.short())]
    UnknownKey(KeyId),
    /// Deleted.
    #[error("key {} is deleted", .0.short())]
    Deleted(KeyId),
    /// The request names another generation or epoch. The asker, or the asked, is behind.
    #[error(
        "wrong epoch: asked for generation {asked_generation} epoch {asked_epoch}, the ledger says {generation} and {epoch}"
    )]
    WrongEpoch {
        /// From the request.
        asked_generation: u64,
        /// From the request.
        asked_epoch: u64,
        /// From the state.
        generation: u64,
        /// From the state.
        epoch: u64,
    },
    /// The requester is no member, or banned.
    #[error("device {0} is {1}")]
    NotMember(String, &'static str),
    /// The requester is not in the key's list of assemblers.
    #[error("device {0} is not an assembler of this key")]
    NotAssembler(String),
    /// This device holds no shard of the key in this epoch.
    #[error("device {0} holds no shard of this key")]
    NoShard(String),
    /// The shard is not valid yet or any more.
    #[error("shard {shard} is valid {from} to {until} (ms), the time is {now}", shard = .0.id.short(), from = .0.valid_from_ms, until = .0.valid_until_ms, now = .1)]
    OutsideValidity(ShardRecord, u64),
    /// The key's policy does not allow this use.
    #[error("the key's policy does not allow '{}'", .0.name())]
    Use(Use),
    /// The token is not shown on this device.
    #[error("token {} is not for this device", .0.short())]
    Token(TokenId),
}

/// The two clocks that validity is judged by: refuse as soon as either is past, erase only when both are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// This device's clock, milliseconds.
    pub local_ms: u64,
    /// The w-th highest witness time of the last freshness round, advanced by the monotonic clock since.
    pub ledger_ms: u64,
}

impl ShardRecord {
    /// Whether the shard may be released now.
    pub fn is_valid(&self, clocks: Clocks) -> bool {
        let (earliest, latest) = (clocks.local_ms.min(clocks.ledger_ms), clocks.local_ms.max(clocks.ledger_ms));
        self.valid_from_ms <= earliest && latest <= self.valid_until_ms
    }

    /// Whether the shard's end is past on both clocks.
    pub fn is_over(&self, clocks: Clocks) -> bool {
        self.valid_until_ms < clocks.local_ms.min(clocks.ledger_ms)
    }
}

/// What an assembler asks a holder for. Every field is checked by the holder against its own state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReleaseQuery {
    /// The key.
    pub key: KeyId,
    /// Generation that the asker knows.
    pub generation: u64,
    /// Epoch that the asker knows.
    pub epoch: u64,
    /// What for.
    pub purpose: Use,
    /// Who asks; authenticated by the channel.
    pub requester: DeviceId,
}

impl State {
    /// The shard that `holder` may release for this query, or the rule that forbids it.
    pub fn may_release(
        &self,
        query: &ReleaseQuery,
        holder: &DeviceId,
        clocks: Clocks,
    ) -> Result<(&KeyState, &ShardRecord), Denied> {
        let key = self.may_assemble(query)?;
        self.member(holder)?;
        let shard = key
            .record
            .shards
            .iter()
            .find(|s| s.device == *holder)
            .ok_or_else(|| Denied::NoShard(self.device_name(holder)))?;
        if !shard.is_valid(clocks) {
            return Err(Denied::OutsideValidity(shard.clone(), clocks.local_ms.max(clocks.ledger_ms)));
        }
        Ok((key, shard))
    }

    /// The key, if the requester may put it together for this use. Asked by the assembler of itself and by every holder.
    pub fn may_assemble(&self, query: &ReleaseQuery) -> Result<&KeyState, Denied> {
        let key = self.keys.get(&query.key).ok_or(Denied::UnknownKey(query.key))?;
        if key.deleted {
            return Err(Denied::Deleted(query.key));
        }
        let record = &key.record;
        if (query.generation, query.epoch) != (record.generation, record.epoch) {
            return Err(Denied::WrongEpoch {
                asked_generation: query.generation,
                asked_epoch: query.epoch,
                generation: record.generation,
                epoch: record.epoch,
            });
        }
        self.member(&query.requester)?;
        if !record.assemblers.contains(&query.requester) {
            return Err(Denied::NotAssembler(self.device_name(&query.requester)));
        }
        if record.policy.uses & query.purpose.bit() == 0 {
            return Err(Denied::Use(query.purpose));
        }
        Ok(key)
    }

    /// Refuses devices that are not approved members, or are banned.
    pub fn member(&self, device: &DeviceId) -> Result<(), Denied> {
        match self.devices.get(device) {
            None => Err(Denied::NotMember(device.short(), "not a member")),
            Some(d) if d.is_banned() => Err(Denied::NotMember(d.name.clone(), "banned")),
            Some(d) if !d.is_member() => Err(Denied::NotMember(d.name.clone(), "not approved yet")),
            Some(_) => Ok(()),
        }
    }

    /// Whether applications on `device` see the token.
    pub fn sees_token(&self, token: &TokenId, device: &DeviceId) -> bool {
        self.tokens.get(token).is_some_and(|t| t.record.devices.is_empty() || t.record.devices.contains(device))
    }

    /// Whether `device` may make and delete keys and objects of the token and set its PINs.
    pub fn creates_in(&self, token: &TokenId, device: &DeviceId) -> bool {
        self.tokens.get(token).is_some_and(|t| {
            if t.record.creators.is_empty() {
                self.sees_token(token, device)
            } else {
                t.record.creators.contains(device)
            }
        })
    }

    /// The vault opening that holders of this key use.
    pub fn vault_opening(&self, key: &KeyId) -> Option<VaultOpening> {
        self.keys.get(key).map(|k| k.record.policy.vault_opening)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_types() {
        for (text, parsed) in [
            ("aes:256", Some(KeyType::Aes(32))),
            ("aes:100", None),
            ("aes:512", None),
            ("hmac:256", Some(KeyType::Generic(32))),
            ("generic:0", None),
            ("generic:4104", None),
            ("ec:p256", Some(KeyType::EcP256)),
            ("ec:", None),
            ("aes", None),
            ("", None),
        ] {
            assert_eq!(KeyType::parse(text), parsed, "{text}");
        }
    }

    #[test]
    fn validity_needs_both_clocks_inside_and_erasing_needs_both_past() {
        let shard = ShardRecord {
            id: Default::default(),
            device: Default::default(),
            index: 1,
            valid_from_ms: 100,
            valid_until_ms: 200,
        };
        for (local, ledger, valid, over) in [
            (150, 150, true, false),
            (99, 150, false, false),
            (150, 99, false, false),
            (201, 150, false, false),
            (150, 201, false, false),
            (201, 201, false, true),
            (100, 200, true, false),
        ] {
            let clocks = Clocks { local_ms: local, ledger_ms: ledger };
            assert_eq!((shard.is_valid(clocks), shard.is_over(clocks)), (valid, over), "{clocks:?}");
        }
    }
}
