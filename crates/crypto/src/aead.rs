//! AES-256-GCM-SIV (RFC 8452) from arena to public bytes and back: what [`crate::wrap`] and [`crate::envelope`] share.
//!
//! The cipher is keyed anew for each call, on the secret stack: its type keeps the round keys in plain fields, which have no place in the
//! arena. RFC 8452 derives fresh keys per nonce anyway, so that most of the key set-up could not be kept.

use aes_gcm_siv::aead::inout::InOutBuf;
use aes_gcm_siv::{AeadInOut, Aes256GcmSiv, KeyInit};
use mayfly_secmem::{on_secret_stack, wipe};

pub(crate) const NONCE_BYTES: usize = 12;
pub(crate) const TAG_BYTES: usize = 16;

/// A ciphertext is not authentic. There is no more to say of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAuthentic;

/// Appends `ciphertext || tag` of `secret` to `out`. The key must be exposed from a slot, the secret from a slot or the secret stack.
pub(crate) fn seal(key: &[u8; 32], nonce: &[u8; NONCE_BYTES], aad: &[u8], secret: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + secret.len() + TAG_BYTES, 0);
    let (ciphertext, tag) = out[start..].split_at_mut(secret.len());
    on_secret_stack(|| {
        let buffer = InOutBuf::new(secret, ciphertext).expect("made as long as the secret");
        let cipher = Aes256GcmSiv::new(key.into());
        let made = cipher.encrypt_inout_detached(nonce.into(), aad, buffer).expect("secrets and AADs are below 64 GiB");
        tag.copy_from_slice(&made);
    });
}

/// Opens `ciphertext || tag` into `slot`, which is [`TAG_BYTES`] shorter. A refused one leaves the slot zeroed.
pub(crate) fn open(
    key: &[u8; 32],
    nonce: &[u8; NONCE_BYTES],
    aad: &[u8],
    sealed: &[u8],
    slot: &mut [u8],
) -> Result<(), NotAuthentic> {
    let (ciphertext, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(NotAuthentic)?;
    if ciphertext.len() != slot.len() {
        return Err(NotAuthentic);
    }
    let is_open = on_secret_stack(|| {
        let Ok(buffer) = InOutBuf::new(ciphertext, slot) else { return false };
        let cipher = Aes256GcmSiv::new(key.into());
        cipher.decrypt_inout_detached(nonce.into(), aad, buffer, tag.into()).is_ok()
    });
    if is_open {
        return Ok(());
    }
    // SIV decrypts before it can verify, and with separate buffers the library leaves what it got.
    wipe(slot);
    Err(NotAuthentic)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Key, nonce, AAD, plaintext, result: RFC 8452 appendix C.2 (four of it) and C.3 (counter wrap).
    const RFC8452: [(&str, &str, &str, &str, &str); 5] = [
        (
            "0100000000000000000000000000000000000000000000000000000000000000",
            "030000000000000000000000",
            "",
            "",
            "07f5f4169bbf55a8400cd47ea6fd400f",
        ),
        (
            "0100000000000000000000000000000000000000000000000000000000000000",
            "030000000000000000000000",
            "",
            "0100000000000000",
            "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28",
        ),
        (
            "0100000000000000000000000000000000000000000000000000000000000000",
            "030000000000000000000000",
            "01",
            "0200000000000000",
            "1de22967237a813291213f267e3b452f02d01ae33e4ec854",
        ),
        (
            "0000000000000000000000000000000000000000000000000000000000000000",
            "000000000000000000000000",
            "",
            "000000000000000000000000000000004db923dc793ee6497c76dcc03a98e108",
            "f3f80f2cf0cb2dd9c5984fcda908456cc537703b5ba70324a6793a7bf218d3eaffffffff000000000000000000000000",
        ),
        (
            "0000000000000000000000000000000000000000000000000000000000000000",
            "000000000000000000000000",
            "",
            "eb3640277c7ffd1303c7a542d02d3e4c0000000000000000",
            "18ce4f0b8cb4d0cac65fea8f79257b20888e53e72299e56dffffffff000000000000000000000000",
        ),
    ];

    fn array<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn vectors_of_rfc_8452() {
        for (key, nonce, aad, plaintext, expected) in RFC8452 {
            let (key, nonce, aad) = (array(key), array(nonce), hex::decode(aad).unwrap());
            let plaintext = hex::decode(plaintext).unwrap();
            let mut sealed = b"before".to_vec();
            seal(&key, &nonce, &aad, &plaintext, &mut sealed);
            assert_eq!(hex::encode(&sealed[6..]), expected);
            let mut slot = vec![0; plaintext.len()];
            assert_eq!(open(&key, &nonce, &aad, &sealed[6..], &mut slot), Ok(()));
            assert_eq!(slot, plaintext);
        }
    }

    #[test]
    fn a_refused_ciphertext_leaves_the_slot_zeroed() {
        let (key, nonce) = ([1; 32], [2; NONCE_BYTES]);
        let mut sealed = Vec::new();
        seal(&key, &nonce, b"aad", b"a secret", &mut sealed);
        *sealed.last_mut().unwrap() ^= 1;
        let mut slot = [0; 8];
        assert_eq!(open(&key, &nonce, b"aad", &sealed, &mut slot), Err(NotAuthentic));
        assert_eq!(slot, [0; 8]);
        for wrong in [7, 9] {
            assert_eq!(open(&key, &nonce, b"aad", &sealed, &mut vec![0; wrong]), Err(NotAuthentic));
        }
        assert_eq!(open(&key, &nonce, b"aad", &[0; TAG_BYTES - 1], &mut []), Err(NotAuthentic));
    }
}
