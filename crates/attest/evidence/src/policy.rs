//! Policy digests as a TPM computes them (TPM 2.0 Library, part 3, 23), so that no trial session is needed and a
//! verifier can say what a sealed secret demands.

use crate::object::{Name, Point, name, verification_key};
use crate::pcr::Selection;
use crate::{hash, sha256};

const CC_POLICY_NV: u32 = 0x0149;
const CC_POLICY_SECRET: u32 = 0x0151;
const CC_POLICY_AUTHORIZE: u32 = 0x016a;
const CC_POLICY_AUTH_VALUE: u32 = 0x016b;
const CC_POLICY_PCR: u32 = 0x017f;
/// TPM_EO_EQ: the operand equals the index.
pub const EQUAL: u16 = 0;
/// Label of the reference in approvals.
const LABEL_APPROVAL: &str = "mayfly/v1/tpm-approval";

/// A policy under construction: the digest of a fresh session, then one step after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy([u8; 32]);

impl Policy {
    /// No step yet.
    #[must_use]
    pub fn new() -> Policy {
        Policy::default()
    }

    /// TPM2_PolicyPCR: the selected registers have this digest.
    #[must_use]
    pub fn pcr(self, selection: Selection, digest: &[u8; 32]) -> Policy {
        Policy(sha256(&[&self.0, &CC_POLICY_PCR.to_be_bytes(), &selection.marshal(), digest]))
    }

    /// TPM2_PolicyAuthorize: whatever came before was approved by the key of `approver`, for `reference`. Forgets what
    /// came before, so what must not be negotiable comes after it.
    #[must_use]
    pub fn authorize(self, approver: &Name, reference: &[u8; 32]) -> Policy {
        let first = sha256(&[&[0; 32], &CC_POLICY_AUTHORIZE.to_be_bytes(), approver]);
        Policy(sha256(&[&first, reference]))
    }

    /// TPM2_PolicyNV: the index of `index` holds exactly `operand`.
    #[must_use]
    pub fn nv_equal(self, index: &Name, operand: &[u8]) -> Policy {
        let arguments = sha256(&[operand, &0u16.to_be_bytes(), &EQUAL.to_be_bytes()]);
        Policy(sha256(&[&self.0, &CC_POLICY_NV.to_be_bytes(), &arguments, index]))
    }

    /// TPM2_PolicyAuthValue: the caller knows the object's auth value.
    #[must_use]
    pub fn auth_value(self) -> Policy {
        Policy(sha256(&[&self.0, &CC_POLICY_AUTH_VALUE.to_be_bytes()]))
    }

    /// TPM2_PolicySecret: the caller knows the auth value of the entity `name` (a hierarchy's Name is its handle).
    #[must_use]
    pub fn secret(self, name: &[u8]) -> Policy {
        let first = sha256(&[&self.0, &CC_POLICY_SECRET.to_be_bytes(), name]);
        Policy(sha256(&[&first]))
    }

    /// The digest.
    #[must_use]
    pub fn digest(self) -> [u8; 32] {
        self.0
    }
}

/// What a sealed half of a vault key demands: the counter at `value`, its auth value, and, where an approver is named,
/// registers that the approver's key approved for this vault and generation.
#[must_use]
pub fn seal(counter: &Name, value: u64, approval: Option<(&Name, &[u8; 32])>) -> [u8; 32] {
    let policy = match approval {
        Some((approver, reference)) => Policy::new().authorize(approver, reference),
        None => Policy::new(),
    };
    policy.nv_equal(counter, &value.to_be_bytes()).auth_value().digest()
}

/// What an approval is for: one generation of one vault. So an approval dies with its generation.
#[must_use]
pub fn approval_reference(vault_id: &[u8; 16], generation: u64) -> [u8; 32] {
    hash(LABEL_APPROVAL, &[vault_id, &generation.to_be_bytes()])
}

/// The message that a PCR approver signs (ECDSA P-256 with SHA-256) so that the registers of `selection` having
/// `digest` open generation `generation` of the vault: TPM2_PolicyAuthorize's policy and reference.
#[must_use]
pub fn approval_message(selection: Selection, digest: &[u8; 32], vault_id: &[u8; 16], generation: u64) -> [u8; 64] {
    let mut message = [0; 64];
    message[..32].copy_from_slice(&Policy::new().pcr(selection, digest).digest());
    message[32..].copy_from_slice(&approval_reference(vault_id, generation));
    message
}

/// The Name of an approver's key as a TPM loads it.
#[must_use]
pub fn approver_name(approver: &Point) -> Name {
    name(&verification_key(approver))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PolicyA of the TCG EK Credential Profile 2.5, table 3: PolicySecret(endorsement hierarchy).
    #[test]
    fn known_answer() {
        let policy = Policy::new().secret(&0x4000_000bu32.to_be_bytes());
        let expected = [
            0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24, 0xfd, 0x52,
            0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
        ];
        assert_eq!(policy.digest(), expected);
    }

    #[test]
    fn everything_counts() {
        let (counter, other) = ([1; 34], [2; 34]);
        let reference = approval_reference(&[1; 16], 1);
        let seals = [
            seal(&counter, 1, None),
            seal(&counter, 2, None),
            seal(&other, 1, None),
            seal(&counter, 1, Some((&other, &reference))),
            seal(&counter, 1, Some((&counter, &reference))),
            seal(&counter, 1, Some((&other, &approval_reference(&[1; 16], 2)))),
            seal(&counter, 1, Some((&other, &approval_reference(&[2; 16], 1)))),
        ];
        for (index, seal) in seals.iter().enumerate() {
            assert!(!seals[index + 1..].contains(seal), "seal {index} came again");
        }
        let authorized = Policy::new().authorize(&counter, &reference);
        assert_eq!(
            Policy::new().auth_value().authorize(&counter, &reference),
            authorized,
            "it forgets what came before"
        );
    }
}
