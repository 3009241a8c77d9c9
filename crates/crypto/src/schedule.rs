//! From a root to keys: HKDF-SHA-256 (RFC 5869) with one table of labels.
//!
//! ```text
//! PRK    = HKDF-Extract(salt = "mayfly/v1/key-root", IKM = root)
//! output = HKDF-Expand(PRK, enc(label, key id, u64be(gen), alg), length)
//! ```
//!
//! `gen` counts key material and is an input; the epoch counts re-sharing of the same root and must never be one, or a refresh would strand
//! ciphertexts. Outputs go straight into the caller's arena slots.

use crate::enc::enc;
use hkdf::{Hkdf, HkdfExtract};
use mayfly_secmem::{Exhausted, Secret, ct_eq, on_secret_stack};
use sha2::Sha256;

/// Salt of the one extraction.
pub const EXTRACT_SALT: &str = "mayfly/v1/key-root";
/// Most bytes of one output: 255 blocks of SHA-256 (RFC 5869 section 2.3).
pub const OUTPUT_BYTES_MAX: usize = 255 * 32;

/// What an output is for. Two labels never share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// The bytes of an AES, HMAC or generic key.
    KeyBytes,
    /// The key that wraps an RSA, EC, EdDSA or imported key.
    Wrap,
    /// `K_iv` of [`crate::iv`].
    Iv,
    /// The key of Mayfly's own encryption.
    Enc,
    /// The key commitment, which is public.
    Commit,
}

impl Label {
    /// The label as it is hashed. Never changed: keys depend on it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::KeyBytes => "mayfly/v1/key-bytes",
            Self::Wrap => "mayfly/v1/wrap-key",
            Self::Iv => "mayfly/v1/iv-key",
            Self::Enc => "mayfly/v1/enc-key",
            Self::Commit => "mayfly/v1/commit-key",
        }
    }
}

/// The pseudorandom key of one root; all outputs come from it.
#[derive(Debug)]
pub struct Prk(Secret<32>);

impl Prk {
    /// HKDF-Extract of a root.
    ///
    /// # Errors
    /// [`Exhausted`] when there is no slot.
    pub fn extract(root: &Secret<32>) -> Result<Self, Exhausted> {
        let prk = Secret::new_with(|slot| {
            on_secret_stack(|| {
                let mut extract = HkdfExtract::<Sha256>::new(Some(EXTRACT_SALT.as_bytes()));
                extract.input_ikm(root.expose());
                *slot = extract.finalize().0.into();
            });
        })?;
        Ok(Self(prk))
    }

    /// HKDF-Expand into `out`, a slot of the caller's.
    ///
    /// `alg` names what the output is for, such as `AES-256-GCM`, its length included where it may vary.
    ///
    /// # Panics
    /// When `out` is longer than [`OUTPUT_BYTES_MAX`]; lengths follow from key types, never from outside.
    pub fn derive(&self, label: Label, key_id: &[u8], generation: u64, alg: &str, out: &mut [u8]) {
        let info = enc(label.as_str(), &[key_id, &generation.to_be_bytes(), alg.as_bytes()]);
        on_secret_stack(|| {
            let expand = Hkdf::<Sha256>::from_prk(self.0.expose()).expect("a PRK has 32 bytes");
            expand.expand(&info, out).expect("an output is at most 255 blocks");
        });
    }
}

/// The key commitment `C_key`, published with the key and checked at every assembly: AES-GCM and its kin do not commit to their keys.
#[must_use]
pub fn commitment(prk: &Prk, key_id: &[u8], generation: u64, alg: &str) -> [u8; 32] {
    let mut commitment = [0; 32];
    prk.derive(Label::Commit, key_id, generation, alg, &mut commitment);
    commitment
}

/// Whether the assembled key is the committed one, in constant time.
#[must_use]
pub fn commitment_holds(prk: &Prk, key_id: &[u8], generation: u64, alg: &str, expected: &[u8; 32]) -> bool {
    ct_eq(&commitment(prk, key_id, generation, alg), expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY_ID: [u8; 16] = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes();

    fn prk() -> Prk {
        let root = Secret::new_with(|slot| slot.copy_from_slice(&std::array::from_fn::<u8, 32, _>(|i| i as u8)));
        Prk::extract(&root.unwrap()).unwrap()
    }

    fn derived(label: Label, key_id: &[u8], generation: u64, alg: &str, bytes: usize) -> String {
        let mut out = vec![0; bytes];
        prk().derive(label, key_id, generation, alg, &mut out);
        hex::encode(out)
    }

    /// Made with Python's standard library from the formulas of the module's page (also in `docs/formats/cryptography.md`).
    #[test]
    fn known_answers() {
        assert_eq!(hex::encode(prk().0.expose()), "a854ea625fd877c6bc841338d17b765f7decd302cd0d650bed26b020b52e79cb");
        for (label, expected) in [
            (Label::KeyBytes, "a49542fa89c376d944fcd9bad2e3ffc4bba6ef80cbc68220a7b6ebabe87c26e8"),
            (Label::Wrap, "b38a7374f4b3ff185e513d66796f0db413f3512f6c263e2ad535a9a79f56c2b0"),
            (Label::Iv, "e370d701a5380fabad88ac193c5cd1ac467cc69dece89dcf9682d9ed7dfef890"),
            (Label::Enc, "130ea9ddb47743cd4dcf3ed5d6813a3cb54aceb8e2b246f15941b92731d86b08"),
            (Label::Commit, "7e08d64f042355c128f3634dd401c806a3f344b1b939a8e5a9251ff662603e50"),
        ] {
            assert_eq!(derived(label, &KEY_ID, 7, "AES-256-GCM", 32), expected, "{label:?}");
        }
        let public = commitment(&prk(), &KEY_ID, 7, "AES-256-GCM");
        assert_eq!(hex::encode(public), "7e08d64f042355c128f3634dd401c806a3f344b1b939a8e5a9251ff662603e50");
    }

    #[test]
    fn every_input_counts() {
        let base = derived(Label::KeyBytes, &KEY_ID, 7, "AES-256-GCM", 32);
        for other in [
            derived(Label::Enc, &KEY_ID, 7, "AES-256-GCM", 32),
            derived(Label::KeyBytes, &KEY_ID[..15], 7, "AES-256-GCM", 32),
            derived(Label::KeyBytes, &KEY_ID, 8, "AES-256-GCM", 32),
            derived(Label::KeyBytes, &KEY_ID, 7, "AES-256-GCN", 32),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn the_commitment_tells_keys_apart() {
        let good = commitment(&prk(), &KEY_ID, 7, "AES-256-GCM");
        assert!(commitment_holds(&prk(), &KEY_ID, 7, "AES-256-GCM", &good));
        for byte in 0..32 {
            let mut bad = good;
            bad[byte] ^= 1;
            assert!(!commitment_holds(&prk(), &KEY_ID, 7, "AES-256-GCM", &bad));
        }
        assert!(!commitment_holds(&prk(), &KEY_ID, 8, "AES-256-GCM", &good));
    }

    #[test]
    fn outputs_up_to_255_blocks() {
        assert_eq!(derived(Label::KeyBytes, b"", 0, "", OUTPUT_BYTES_MAX).len(), 2 * OUTPUT_BYTES_MAX);
        assert_eq!(derived(Label::KeyBytes, b"", 0, "", 0), "");
    }
}
