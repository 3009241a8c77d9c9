//! What is derived: the auth values of the vault's objects, and vault keys from their two halves.

use hkdf::Hkdf;
use mayfly_evidence::hash;
use mayfly_plugin_abi::{Tier, VAULT_KEY_BYTES};
use mayfly_vault_store::VaultId;
use sha2::Sha256;
use zeroize::Zeroizing;

const LABEL_AUTH: &str = "mayfly/v1/tpm-auth";
const LABEL_AUTH_CHECK: &str = "mayfly/v1/tpm-auth-check";
const LABEL_KEY: &str = "mayfly/v1/tpm-vault-key";
const LABEL_KEY_CHECK: &str = "mayfly/v1/tpm-vault-key-check";
const LABEL_HALF: &str = "mayfly/v1/tpm-half";
/// Bytes of a value that tells the right key from another without telling the key.
pub(crate) const CHECK_BYTES: usize = 16;

/// What an auth value is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Use {
    Counter,
    Half(usize),
    Sealed { generation: u64, tier: Tier },
    Identity,
    Attestation,
}

/// The secret that all auth values of a vault are derived from.
pub(crate) struct Auth {
    secret: Zeroizing<Vec<u8>>,
    vault_id: VaultId,
}

impl Auth {
    pub(crate) fn new(secret: Zeroizing<Vec<u8>>, vault_id: VaultId) -> Auth {
        Auth { secret, vault_id }
    }

    /// The auth value of one object. A chip takes trailing zeros off, so the last byte never is one.
    pub(crate) fn value(&self, what: Use) -> Zeroizing<[u8; 32]> {
        let (code, number, tier) = match what {
            Use::Counter => (0u8, 0, 0),
            Use::Half(index) => (1, index as u64, 0),
            Use::Sealed { generation, tier } => (2, generation, tier as u32),
            Use::Identity => (3, 0, 0),
            Use::Attestation => (4, 0, 0),
        };
        let info = hash(LABEL_AUTH, &[&self.vault_id, &[code], &number.to_be_bytes(), &tier.to_be_bytes()]);
        let mut out = Zeroizing::new([0; 32]);
        self.expand(&info, &mut out[..]);
        out[31] |= 1;
        out
    }

    /// Tells the right secret from another one.
    pub(crate) fn check(&self) -> [u8; CHECK_BYTES] {
        let mut out = [0; CHECK_BYTES];
        self.expand(&hash(LABEL_AUTH_CHECK, &[&self.vault_id]), &mut out);
        out
    }

    fn expand(&self, info: &[u8], out: &mut [u8]) {
        let hkdf = Hkdf::<Sha256>::new(Some(LABEL_AUTH.as_bytes()), &self.secret);
        hkdf.expand(info, out).expect("32 bytes are within HKDF's limit");
    }
}

/// The vault key of a tier from its sealed half and the generation's half in the chip's memory, and its check value.
pub(crate) fn vault_key(
    vault_id: &VaultId,
    generation: u64,
    tier: Tier,
    sealed: &[u8; 32],
    stored: &[u8; 32],
    key: &mut [u8; VAULT_KEY_BYTES],
) -> [u8; CHECK_BYTES] {
    let mut halves = Zeroizing::new([0; 64]);
    halves[..32].copy_from_slice(sealed);
    halves[32..].copy_from_slice(stored);
    let hkdf = Hkdf::<Sha256>::new(Some(LABEL_KEY.as_bytes()), &halves[..]);
    let fields: [&[u8]; 3] = [vault_id, &generation.to_be_bytes(), &(tier as u32).to_be_bytes()];
    hkdf.expand(&hash(LABEL_KEY, &fields), key).expect("32 bytes are within HKDF's limit");
    let mut check = [0; CHECK_BYTES];
    hkdf.expand(&hash(LABEL_KEY_CHECK, &fields), &mut check).expect("16 bytes are within HKDF's limit");
    check
}

/// Tells whether an index still holds the half that was written (32 random bytes: a hash gives nothing away).
pub(crate) fn half_check(vault_id: &VaultId, generation: u64, half: &[u8; 32]) -> [u8; CHECK_BYTES] {
    let digest = hash(LABEL_HALF, &[vault_id, &generation.to_be_bytes(), half]);
    let mut check = [0; CHECK_BYTES];
    check.copy_from_slice(&digest[..CHECK_BYTES]);
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(fill: u8) -> Auth {
        Auth::new(Zeroizing::new(vec![fill; 32]), [1; 16])
    }

    #[test]
    fn auth_values_differ_and_never_end_in_zero() {
        let one = auth(1);
        let mut uses = vec![Use::Counter, Use::Half(0), Use::Half(1), Use::Identity, Use::Attestation];
        for generation in 1..300 {
            uses.extend(Tier::ALL.map(|tier| Use::Sealed { generation, tier }));
        }
        let mut seen = std::collections::HashSet::new();
        for what in uses {
            let value = one.value(what);
            assert_ne!(value[31], 0, "{what:?}");
            assert!(seen.insert(*value), "{what:?} came again");
        }
        assert_ne!(*auth(2).value(Use::Counter), *one.value(Use::Counter));
        assert_ne!(auth(2).check(), one.check());
        let other = Auth::new(Zeroizing::new(vec![1; 32]), [2; 16]);
        assert_ne!(*other.value(Use::Counter), *one.value(Use::Counter), "another vault");
    }

    #[test]
    fn keys_need_both_halves_and_everything_else() {
        let derive = |vault: u8, generation, tier, sealed: u8, stored: u8| {
            let mut key = [0; 32];
            let check = vault_key(&[vault; 16], generation, tier, &[sealed; 32], &[stored; 32], &mut key);
            (key, check)
        };
        let all = [
            derive(1, 1, Tier::Boot, 1, 1),
            derive(2, 1, Tier::Boot, 1, 1),
            derive(1, 2, Tier::Boot, 1, 1),
            derive(1, 1, Tier::Window, 1, 1),
            derive(1, 1, Tier::Boot, 2, 1),
            derive(1, 1, Tier::Boot, 1, 2),
        ];
        for (index, (key, check)) in all.iter().enumerate() {
            assert!(all[index + 1..].iter().all(|(other, other_check)| other != key && other_check != check));
            assert_ne!(key[..16], check[..], "the check value is no part of the key");
        }
        assert_eq!(derive(1, 1, Tier::Boot, 1, 1), all[0]);
    }
}
