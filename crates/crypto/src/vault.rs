//! Keys from vault keys: one per length of window, one of several vaults together (HKDF-SHA-256, RFC 5869).
//!
//! Without the vault key, or without any one of several, nothing of the output is known; one output tells nothing about another.

use crate::enc::enc;
use hkdf::HkdfExtract;
use mayfly_secmem::{Exhausted, Secret, on_secret_stack};
use sha2::Sha256;

/// Salt and label of [`window_key`].
pub const WINDOW_LABEL: &str = "mayfly/v1/vault-window";
/// Salt and label of [`key_of_all`].
pub const ALL_OF_LABEL: &str = "mayfly/v1/vault-all-of";

/// The key of windows of `seconds`, from the vault key of tier `window`.
///
/// # Errors
/// [`Exhausted`] when there is no slot.
pub fn window_key(tier: &Secret<32>, seconds: u32) -> Result<Secret<32>, Exhausted> {
    derive(WINDOW_LABEL, &[tier], &[&seconds.to_be_bytes()])
}

/// One vault key of several vaults' keys of the same generation and tier, in the order of the configuration.
///
/// # Errors
/// [`Exhausted`] when there is no slot.
pub fn key_of_all(keys: &[Secret<32>], generation: u64, tier: u32) -> Result<Secret<32>, Exhausted> {
    let number = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    let fields: [&[u8]; 3] = [&generation.to_be_bytes(), &tier.to_be_bytes(), &number.to_be_bytes()];
    derive(ALL_OF_LABEL, &keys.iter().collect::<Vec<_>>(), &fields)
}

fn derive(label: &str, keys: &[&Secret<32>], fields: &[&[u8]]) -> Result<Secret<32>, Exhausted> {
    let info = enc(label, fields);
    Secret::new_with(|slot| {
        on_secret_stack(|| {
            let mut extract = HkdfExtract::<Sha256>::new(Some(label.as_bytes()));
            for key in keys {
                extract.input_ikm(key.expose());
            }
            let (_, expand) = extract.finalize();
            expand.expand(&info, slot).expect("one block");
        });
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fill: u8) -> Secret<32> {
        Secret::new_with(|slot| slot.fill(fill)).unwrap()
    }

    fn all(fills: &[u8], generation: u64, tier: u32) -> String {
        let keys: Vec<_> = fills.iter().map(|fill| key(*fill)).collect();
        hex::encode(key_of_all(&keys, generation, tier).unwrap().expose())
    }

    /// The page's values, made with an independent implementation (Python's `hmac`).
    #[test]
    fn values_of_the_page() {
        assert_eq!(hex::encode(window_key(&key(1), 60).unwrap().expose()), WINDOW_60);
        assert_eq!(all(&[1, 2], 3, 1), ALL_OF_TWO);
    }

    #[test]
    fn every_input_counts() {
        let window = |fill, seconds| hex::encode(window_key(&key(fill), seconds).unwrap().expose());
        let differing = [
            window(1, 60),
            window(1, 61),
            window(2, 60),
            all(&[1, 2], 3, 1),
            all(&[2, 1], 3, 1),
            all(&[1, 2], 4, 1),
            all(&[1, 2], 3, 2),
            all(&[1, 2, 2], 3, 1),
            all(&[1], 3, 1),
        ];
        for (at, one) in differing.iter().enumerate() {
            assert!(!differing[at + 1..].contains(one), "{at}");
        }
    }

    const WINDOW_60: &str = "8c05e3bf5a6eb23ec026de79e6deca4ab9da54f36e7cd92d6d72219ef23a4b88";
    const ALL_OF_TWO: &str = "c85744db63aa3dbfad53ca251736dff40c34bfb384cc7b2fb8424319ff4817c6";
}
