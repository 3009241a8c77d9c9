//! Sealing under the passphrase: Argon2id (RFC 9106) to a master key, AES-256-GCM-SIV (RFC 8452) under it.

use aes_gcm_siv::aead::{AeadInOut, KeyInit};
use aes_gcm_siv::{Aes256GcmSiv, Nonce, Tag};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use mayfly_plugin_abi::GuestError;
use mayfly_vault_store::random;
use zeroize::{Zeroize, Zeroizing};

/// Argon2id memory for a new folder: 19 MiB.
pub(crate) const MEMORY_KIB_DEFAULT: u32 = 19 * 1024;
/// Most memory that is believed when reading.
pub(crate) const MEMORY_KIB_MAX: u32 = 1024 * 1024;
/// Argon2id passes for a new folder.
pub(crate) const PASSES_DEFAULT: u32 = 2;
/// Most passes that are believed when reading.
pub(crate) const PASSES_MAX: u32 = 64;
/// Bytes of salt.
pub(crate) const SALT_BYTES: usize = 16;
/// Bytes of a nonce (RFC 8452).
pub(crate) const NONCE_BYTES: usize = 12;
/// Bytes of a tag (RFC 8452).
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of a sealed 32-byte secret: nonce, ciphertext, tag.
pub(crate) const SEALED_BYTES: usize = NONCE_BYTES + 32 + TAG_BYTES;

/// Cost of the passphrase; one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cost {
    pub(crate) memory_kib: u32,
    pub(crate) passes: u32,
}

impl Cost {
    /// A cost within the bounds; below the default nothing is accepted, so a changed header cannot weaken.
    pub(crate) fn new(memory_kib: u32, passes: u32) -> Result<Cost, String> {
        let bound = |name, value, low, high| match value {
            value if (low..=high).contains(&value) => Ok(()),
            value => Err(format!("{name} {value} is not in {low}..={high}")),
        };
        bound("memory (KiB)", memory_kib, MEMORY_KIB_DEFAULT, MEMORY_KIB_MAX)?;
        bound("passes", passes, PASSES_DEFAULT, PASSES_MAX)?;
        Ok(Cost { memory_kib, passes })
    }
}

/// Something does not open under this key: wrong key, or damaged.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DoesNotOpen;

/// The key that the passphrase gives. Lives on the heap (one address, wiped when dropped) while the vault is open.
pub(crate) struct Master(Box<Zeroizing<[u8; 32]>>);

impl Master {
    /// Argon2id of the passphrase. `Err` when the memory cannot be had.
    pub(crate) fn derive(passphrase: &[u8], salt: &[u8; SALT_BYTES], cost: Cost) -> Result<Master, String> {
        let params = Params::new(cost.memory_kib, cost.passes, 1, Some(32)).map_err(|error| error.to_string())?;
        let mut blocks: Vec<Block> = Vec::new();
        blocks
            .try_reserve_exact(params.block_count())
            .map_err(|_| format!("{} KiB of memory for Argon2id cannot be had", cost.memory_kib))?;
        blocks.resize(params.block_count(), Block::default());
        let mut key = Box::new(Zeroizing::new([0u8; 32]));
        let result = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(passphrase, salt, &mut key[..], &mut blocks[..])
            .map_err(|error| error.to_string());
        blocks.zeroize();
        result.map(|()| Master(key))
    }

    fn cipher(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new((&**self.0).into())
    }

    /// Seals 32 bytes: nonce, ciphertext, tag.
    pub(crate) fn seal(&self, aad: &[u8], secret: &[u8; 32]) -> Result<[u8; SEALED_BYTES], GuestError> {
        let mut sealed = [0u8; SEALED_BYTES];
        let (nonce, rest) = sealed.split_at_mut(NONCE_BYTES);
        let (body, tag) = rest.split_at_mut(32);
        random(nonce)?;
        body.copy_from_slice(secret);
        let nonce: [u8; NONCE_BYTES] = nonce.try_into().expect("split at NONCE_BYTES");
        let made = self
            .cipher()
            .encrypt_inout_detached(&Nonce::from(nonce), aad, body.into())
            .expect("32 bytes and a short AAD are below the limits of RFC 8452 section 6");
        tag.copy_from_slice(&made);
        Ok(sealed)
    }

    /// Opens what [`Master::seal`] made into `secret`, which is zero when it does not open.
    pub(crate) fn open(
        &self,
        aad: &[u8],
        sealed: &[u8; SEALED_BYTES],
        secret: &mut [u8; 32],
    ) -> Result<(), DoesNotOpen> {
        let nonce: [u8; NONCE_BYTES] = sealed[..NONCE_BYTES].try_into().expect("constant length");
        let tag: [u8; TAG_BYTES] = sealed[NONCE_BYTES + 32..].try_into().expect("constant length");
        secret.copy_from_slice(&sealed[NONCE_BYTES..NONCE_BYTES + 32]);
        let opened = self.cipher().decrypt_inout_detached(
            &Nonce::from(nonce),
            aad,
            secret.as_mut_slice().into(),
            &Tag::from(tag),
        );
        opened.map_err(|_| {
            secret.zeroize();
            DoesNotOpen
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(passphrase: &[u8]) -> Master {
        Master::derive(passphrase, &[7; SALT_BYTES], Cost::new(MEMORY_KIB_DEFAULT, PASSES_DEFAULT).unwrap()).unwrap()
    }

    #[test]
    fn opens_only_with_key_aad_and_every_bit() {
        let ours = master(b"correct horse");
        let sealed = ours.seal(b"aad", &[0x11; 32]).unwrap();
        let mut out = [0u8; 32];
        assert_eq!(ours.open(b"aad", &sealed, &mut out), Ok(()));
        assert_eq!(out, [0x11; 32]);
        assert_eq!(ours.open(b"aaD", &sealed, &mut out), Err(DoesNotOpen));
        assert_eq!(out, [0; 32], "nothing of an unauthentic plaintext stays");
        assert_eq!(master(b"wrong horse").open(b"aad", &sealed, &mut out), Err(DoesNotOpen));
        for byte in 0..SEALED_BYTES {
            let mut flipped = sealed;
            flipped[byte] ^= 0x10;
            assert_eq!(ours.open(b"aad", &flipped, &mut out), Err(DoesNotOpen), "byte {byte}");
        }
    }

    #[test]
    fn costs_have_bounds() {
        for (memory, passes, good) in [
            (MEMORY_KIB_DEFAULT, PASSES_DEFAULT, true),
            (MEMORY_KIB_MAX, PASSES_MAX, true),
            (MEMORY_KIB_DEFAULT - 1, PASSES_DEFAULT, false),
            (MEMORY_KIB_MAX + 1, PASSES_DEFAULT, false),
            (MEMORY_KIB_DEFAULT, PASSES_DEFAULT - 1, false),
            (MEMORY_KIB_DEFAULT, PASSES_MAX + 1, false),
        ] {
            assert_eq!(Cost::new(memory, passes).is_ok(), good, "{memory} {passes}");
        }
    }
}
