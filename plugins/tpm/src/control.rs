//! Management of this vault: `control` of the plugin interface. `docs/formats/vault-tpm.md` describes each.

use crate::approval::Readings;
use crate::error::Fault;
use crate::generation::Standing;
use crate::vault::{AUTH, TpmVault};
use mayfly_evidence::approval::Approval;
use mayfly_evidence::pcr::Selection;
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

    /// What an approver elsewhere needs to sign, as JSON; every field is always there.
    fn show_policy(&mut self) -> Result<Vec<u8>, GuestError> {
        let pcr = self.config.pcr()?;
        let approvals = self.approvals()?;
        let approved = approvals.iter().fold(Selection::default(), |all, approval| all.union(approval.registers));
        // seals may ask an approver whom the configuration no longer names
        let shown = pcr.map_or(approved, |pcr| pcr.registers);
        let (standing, readings) =
            self.link(|link| Ok((self.settle(link)?, Readings::take(link.tpm, shown.union(approved))?)))?;
        let current = standing.current;
        let references: Result<Vec<_>, GuestError> = [current, current.saturating_add(1)]
            .into_iter()
            .map(|g| self.show_generation(&standing, &readings, &approvals, g))
            .collect();
        let registers = shown.numbers().map(|n| (n.to_string(), json!(readings.value(n).map(hex::encode))));
        let policy = json!({
            "vault": hex::encode(self.header.vault_id),
            "generation": current,
            "references": references?,
            "sealed_to_approver": standing.committed.as_ref().is_some_and(|file| file.approver.is_some()),
            "approver": pcr.map(|pcr| hex::encode(pcr.approver.compressed())),
            "registers": registers.collect::<serde_json::Map<_, _>>(),
            "digest": readings.digest(shown).filter(|_| !shown.is_empty()).map(hex::encode),
            "approvals": approvals.iter().map(|approval| show_approval(approval, &readings)).collect::<Vec<_>>(),
        });
        Ok(policy.to_string().into_bytes())
    }

    fn show_generation(
        &self,
        standing: &Standing,
        readings: &Readings,
        approvals: &[Approval],
        generation: u64,
    ) -> Result<serde_json::Value, GuestError> {
        let approver = self.approver_of(standing, generation)?;
        let vault_id = &self.header.vault_id;
        let mut of_it = approvals.iter().filter(|approval| approval.generation == generation);
        Ok(json!({
            "generation": generation,
            "reference": hex::encode(approval_reference(vault_id, generation)),
            "approver": approver.map(|approver| hex::encode(approver.compressed())),
            "approved_now": approver.is_none_or(|by| of_it.any(|approval| readings.fit(approval, &by, vault_id))),
        }))
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

fn show_approval(approval: &Approval, readings: &Readings) -> serde_json::Value {
    json!({
        "generation": approval.generation,
        "registers": approval.registers.numbers().collect::<Vec<_>>(),
        "digest": hex::encode(approval.digest),
        "fits_now": readings.digest(approval.registers) == Some(approval.digest),
    })
}
