//! Steps of a policy session, in the order of `mayfly_evidence::policy`.

use super::{
    Given, Index, NONE, Object, PolicySession, Session, TpmError, esys, given, selection, sized, sys, unmarshal,
};
use mayfly_evidence::marshal::Writer;
use mayfly_evidence::object::{ALG_ECDSA, ALG_SHA256, Name};
use mayfly_evidence::pcr::Selection;
use mayfly_evidence::policy::EQUAL;
use std::ptr::{null, null_mut};

impl PolicySession<'_> {
    /// The selected registers have this digest now.
    pub(crate) fn pcr(&self, registers: Selection, digest: &[u8; 32]) -> Result<(), TpmError> {
        const CALL: &str = "Esys_PolicyPCR";
        let digest: sys::TPM2B_DIGEST = sized(CALL, digest)?;
        let registers = selection(CALL, registers)?;
        let (digest, registers) = (&raw const digest, &raw const *registers);
        esys!(self.tpm(), Esys_PolicyPCR, self.tr(), NONE, NONE, NONE, digest, registers)
    }

    /// `approver` (of Name `name`) has signed `approved || reference`: the chip verifies it, then forgets what came before.
    pub(crate) fn authorize(
        &self,
        approver: &Object<'_>,
        name: &Name,
        approved: &[u8; 32],
        reference: &[u8; 32],
        signature: &[u8; 64],
        signed: &[u8; 32],
    ) -> Result<(), TpmError> {
        const VERIFY: &str = "Esys_VerifySignature";
        const CALL: &str = "Esys_PolicyAuthorize";
        let digest: sys::TPM2B_DIGEST = sized(VERIFY, signed)?;
        let (r, s) = signature.split_at(32);
        let bytes = Writer::new().u16(ALG_ECDSA).u16(ALG_SHA256).sized(r).sized(s).finish();
        let signature = unmarshal(VERIFY, sys::Tss2_MU_TPMT_SIGNATURE_Unmarshal, &bytes)?;
        let mut ticket = null_mut();
        let (digest, signature, out) = (&raw const digest, &raw const *signature, &raw mut ticket);
        esys!(self.tpm(), Esys_VerifySignature, approver.tr(), NONE, NONE, NONE, digest, signature, out)?;
        let ticket: Given<sys::TPMT_TK_VERIFIED> = given(VERIFY, ticket)?;

        let approved: sys::TPM2B_DIGEST = sized(CALL, approved)?;
        let reference: sys::TPM2B_DIGEST = sized(CALL, reference)?;
        let name: sys::TPM2B_NAME = sized(CALL, name)?;
        let (approved, reference, name) = (&raw const approved, &raw const reference, &raw const name);
        let (tr, ticket) = (self.tr(), &raw const *ticket);
        esys!(self.tpm(), Esys_PolicyAuthorize, tr, NONE, NONE, NONE, approved, reference, name, ticket)
    }

    /// The index holds exactly `operand`; `session` authorises to read it.
    pub(crate) fn nv_equal(&self, index: &Index<'_>, session: &Session<'_>, operand: &[u8; 8]) -> Result<(), TpmError> {
        let operand: sys::TPM2B_DIGEST = sized("Esys_PolicyNV", operand)?;
        session.ready(super::Protect::Nothing)?;
        let (index, tr, operand) = (index.tr(), self.tr(), &raw const operand);
        esys!(self.tpm(), Esys_PolicyNV, index, index, tr, session.tr(), NONE, NONE, operand, 0, EQUAL)
    }

    /// The object's auth value enters the authorisation.
    pub(crate) fn auth_value(&self) -> Result<(), TpmError> {
        esys!(self.tpm(), Esys_PolicyAuthValue, self.tr(), NONE, NONE, NONE)
    }

    /// The endorsement hierarchy's auth value is known.
    pub(crate) fn endorsement(&self, session: &Session<'_>, auth: &[u8]) -> Result<(), TpmError> {
        const CALL: &str = "Esys_PolicySecret";
        let endorsement = sys::ESYS_TR_RH_ENDORSEMENT;
        super::object::set_auth(self.tpm(), endorsement, auth)?;
        session.ready(super::Protect::Nothing)?;
        let (mut timeout, mut ticket) = (null_mut(), null_mut());
        let (tr, auth, out, tickets) = (self.tr(), session.tr(), &raw mut timeout, &raw mut ticket);
        // no nonce, no command, no reference, no expiry
        esys!(
            self.tpm(),
            Esys_PolicySecret,
            endorsement,
            tr,
            auth,
            NONE,
            NONE,
            null(),
            null(),
            null(),
            0,
            out,
            tickets
        )?;
        let _: Given<sys::TPM2B_DIGEST> = given(CALL, timeout)?;
        let _: Given<sys::TPMT_TK_AUTH> = given(CALL, ticket)?;
        Ok(())
    }

    /// The digest so far.
    #[cfg(test)]
    pub(crate) fn digest(&self) -> Result<[u8; 32], TpmError> {
        use super::Sized2b;
        const CALL: &str = "Esys_PolicyGetDigest";
        let mut digest = null_mut();
        esys!(self.tpm(), Esys_PolicyGetDigest, self.tr(), NONE, NONE, NONE, &raw mut digest)?;
        let digest: Given<sys::TPM2B_DIGEST> = given(CALL, digest)?;
        digest.bytes().try_into().map_err(|_| TpmError::local(CALL, "a digest of another length"))
    }
}
