//! Management of this vault: `control` of the plugin interface. `docs/formats/vault-tpm.md` describes each.

use crate::error::Fault;
use crate::record::Approval;
use crate::vault::{AUTH, TpmVault};
use mayfly_evidence::pcr::{self, Selection};
use mayfly_evidence::policy::approval_reference;
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::{GENERATION, HEADER, IDENTITY, STAGED};
use serde_json::json;

impl TpmVault {
    pub(crate) fn manage(&mut self, name: &str, input: &[u8]) -> Result<Vec<u8>, GuestError> {
        match name {
            "policy" => self.show_policy(),
            "approve" => {
                let approval = Approval::decode(input)
                    .map_err(|error| GuestError::new(Status::Invalid, format!("approval: {error}")))?;
                self.approve(approval)?;
                Ok(Vec::new())
            }
            "danger-commit-unapproved" => {
                let next = input.try_into().map(u64::from_be_bytes);
                let next = next.map_err(|_| GuestError::new(Status::Invalid, "the generation: 8 bytes, big-endian"))?;
                self.commit_staged(next, true)?;
                Ok(Vec::new())
            }
            "danger-forget" => {
                self.forget()?;
                Ok(Vec::new())
            }
            name => Err(GuestError::unsupported(name)),
        }
    }

    /// Registers, approvals, and what an approver has to sign, as JSON.
    fn show_policy(&mut self) -> Result<Vec<u8>, GuestError> {
        let standing = self.link(|link| self.settle(link))?;
        let vault_id = self.header.vault_id;
        let reference = |generation: u64| json!({"generation": generation, "reference": hex::encode(approval_reference(&vault_id, generation))});
        let mut shown = json!({
            "vault": hex::encode(vault_id),
            "generation": standing.current,
            "references": [reference(standing.current), reference(standing.current.saturating_add(1))],
            "sealed_to_approver": standing.committed.as_ref().is_some_and(|file| file.approver.is_some()),
        });
        if let Some(pcr) = self.config.pcr()? {
            let values = self.register_values(pcr.registers)?;
            let digest = pcr::digest(&values);
            let values: serde_json::Map<String, serde_json::Value> =
                pcr.registers.numbers().map(|number| number.to_string()).zip(values.iter().map(hex_value)).collect();
            let approvals = self.approvals()?.approvals;
            shown["approver"] = json!(hex::encode(pcr.approver.compressed()));
            shown["registers"] = serde_json::Value::Object(values);
            shown["digest"] = json!(hex::encode(digest));
            shown["approvals"] = approvals.iter().map(|approval| self.show_approval(approval)).collect();
        }
        Ok(shown.to_string().into_bytes())
    }

    fn show_approval(&self, approval: &Approval) -> serde_json::Value {
        let fits = |registers: Selection| -> Option<bool> {
            Some(pcr::digest(&self.register_values(registers).ok()?) == approval.digest)
        };
        json!({
            "generation": approval.generation,
            "registers": approval.registers.numbers().collect::<Vec<_>>(),
            "digest": hex::encode(approval.digest),
            "fits_now": fits(approval.registers),
        })
    }

    /// Removes the vault from the chip and the folder. Nothing of it opens ever again.
    fn forget(&mut self) -> Result<(), GuestError> {
        let owner_auth = self.config.owner_auth()?;
        self.link(|link| {
            for place in 0..3 {
                let index = link.tpm.index(self.header.nv_base + place)?;
                link.tpm.undefine(link.session, &owner_auth, index).map_err(|error| match error.is_auth() {
                    true => Fault::told(Status::Auth, "the TPM's owner hierarchy has another auth value"),
                    false => error.into(),
                })?;
            }
            Ok(())
        })?;
        for name in [STAGED, GENERATION, IDENTITY, "attestation", "approvals", AUTH, HEADER] {
            self.store.unlink(name)?;
        }
        Ok(())
    }
}

fn hex_value(bytes: &[u8; 32]) -> serde_json::Value {
    serde_json::Value::String(hex::encode(bytes))
}
