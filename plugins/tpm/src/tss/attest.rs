//! What the chip says about itself, signed by the attestation key; credentials; registers.

use super::object::{own_scheme, signature_bytes};
use super::{
    Given, Index, NONE, Object, PolicySession, Protect, Session, Sized2b, Tpm, TpmError, esys, given, selection, sized,
    sys,
};
use mayfly_evidence::nv::COUNTER_BYTES;
use mayfly_evidence::pcr::Selection;
use std::ptr::null_mut;

/// A statement and its signature, r and s as the chip gave them.
pub(crate) type RawSigned = (Vec<u8>, [u8; 64]);

/// How an endorsement key is used.
pub(crate) enum EndorsementUse<'s, 't> {
    /// By its policy (low templates).
    Policy(PolicySession<'t>),
    /// By its empty auth value (high templates), in a session of its own.
    Session(&'s Session<'t>),
}

impl Tpm {
    /// Opens a credential: the secret crosses the bus encrypted by the attestation key's session.
    pub(crate) fn activate(
        &self,
        (attestation, session): (&Object<'_>, &Session<'_>),
        (endorsement, permission): (&Object<'_>, EndorsementUse<'_, '_>),
        credential: &[u8],
        seed: &[u8],
        secret: &mut [u8; 32],
    ) -> Result<(), TpmError> {
        const CALL: &str = "Esys_ActivateCredential";
        let credential: sys::TPM2B_ID_OBJECT = sized(CALL, credential)?;
        let seed: sys::TPM2B_ENCRYPTED_SECRET = sized(CALL, seed)?;
        session.ready(Protect::Answer)?;
        let permission_tr = match &permission {
            EndorsementUse::Policy(policy) => policy.tr(),
            EndorsementUse::Session(session) => {
                session.ready(Protect::Nothing)?;
                session.tr()
            }
        };
        let mut out = null_mut();
        esys!(
            self,
            Esys_ActivateCredential,
            attestation.tr(),
            endorsement.tr(),
            session.tr(),
            permission_tr,
            NONE,
            &raw const credential,
            &raw const seed,
            &raw mut out,
        )?;
        if let EndorsementUse::Policy(policy) = permission {
            policy.used();
        }
        let out: Given<sys::TPM2B_DIGEST> = given(CALL, out)?;
        let bytes: &[u8; 32] =
            out.bytes().try_into().map_err(|_| TpmError::local(CALL, "a secret of another length"))?;
        secret.copy_from_slice(bytes);
        Ok(())
    }

    /// Certifies that `object` is loaded. Two sessions: one cannot authorise both.
    pub(crate) fn certify(
        &self,
        (object, object_session): (&Object<'_>, &Session<'_>),
        (key, key_session): (&Object<'_>, &Session<'_>),
        extra: &[u8; 32],
    ) -> Result<RawSigned, TpmError> {
        const CALL: &str = "Esys_Certify";
        let extra: sys::TPM2B_DATA = sized(CALL, extra)?;
        let scheme = own_scheme(CALL)?;
        object_session.ready(Protect::Nothing)?;
        key_session.ready(Protect::Nothing)?;
        let mut out = Attested::new();
        esys!(
            self,
            Esys_Certify,
            object.tr(),
            key.tr(),
            object_session.tr(),
            key_session.tr(),
            NONE,
            &raw const extra,
            &raw const *scheme,
            &raw mut out.statement,
            &raw mut out.signature,
        )?;
        out.take(CALL)
    }

    /// Certifies what a counter holds.
    pub(crate) fn certify_counter(
        &self,
        (index, index_session): (&Index<'_>, &Session<'_>),
        (key, key_session): (&Object<'_>, &Session<'_>),
        extra: &[u8; 32],
    ) -> Result<RawSigned, TpmError> {
        const CALL: &str = "Esys_NV_Certify";
        let extra: sys::TPM2B_DATA = sized(CALL, extra)?;
        let scheme = own_scheme(CALL)?;
        index_session.ready(Protect::Nothing)?;
        key_session.ready(Protect::Nothing)?;
        let mut out = Attested::new();
        esys!(
            self,
            Esys_NV_Certify,
            key.tr(),
            index.tr(),
            index.tr(),
            key_session.tr(),
            index_session.tr(),
            NONE,
            &raw const extra,
            &raw const *scheme,
            COUNTER_BYTES,
            0,
            &raw mut out.statement,
            &raw mut out.signature,
        )?;
        out.take(CALL)
    }

    /// Quotes registers.
    pub(crate) fn quote(
        &self,
        (key, session): (&Object<'_>, &Session<'_>),
        registers: Selection,
        extra: &[u8; 32],
    ) -> Result<RawSigned, TpmError> {
        const CALL: &str = "Esys_Quote";
        let extra: sys::TPM2B_DATA = sized(CALL, extra)?;
        let scheme = own_scheme(CALL)?;
        let registers = selection(CALL, registers)?;
        session.ready(Protect::Nothing)?;
        let mut out = Attested::new();
        esys!(
            self,
            Esys_Quote,
            key.tr(),
            session.tr(),
            NONE,
            NONE,
            &raw const extra,
            &raw const *scheme,
            &raw const *registers,
            &raw mut out.statement,
            &raw mut out.signature,
        )?;
        out.take(CALL)
    }

    /// The values of the selected registers, in the order of their numbers.
    pub(crate) fn registers(&self, wanted: Selection) -> Result<Vec<[u8; 32]>, TpmError> {
        const CALL: &str = "Esys_PCR_Read";
        /// A TPM gives at most eight values a call (TPML_DIGEST).
        const AT_ONCE: usize = 8;
        let mut values = Vec::new();
        let numbers: Vec<u32> = wanted.numbers().collect();
        for piece in numbers.chunks(AT_ONCE) {
            let piece_of = Selection::of(piece).map_err(|error| TpmError::local(CALL, error.0))?;
            let ask = selection(CALL, piece_of)?;
            let (mut counter, mut given_selection, mut digests) = (0, null_mut(), null_mut());
            let (count, chosen, out) = (&raw mut counter, &raw mut given_selection, &raw mut digests);
            esys!(self, Esys_PCR_Read, NONE, NONE, NONE, &raw const *ask, count, chosen, out)?;
            let _: Given<sys::TPML_PCR_SELECTION> = given(CALL, given_selection)?;
            let digests: Given<sys::TPML_DIGEST> = given(CALL, digests)?;
            if digests.count as usize != piece.len() {
                return Err(TpmError::local(CALL, "registers of another number: is there a SHA-256 bank"));
            }
            for digest in digests.digests.iter().take(piece.len()) {
                let value = digest.bytes().try_into();
                values.push(value.map_err(|_| TpmError::local(CALL, "a register that is not SHA-256"))?);
            }
        }
        Ok(values)
    }
}

/// Outputs of the attestation commands.
struct Attested {
    statement: *mut sys::TPM2B_ATTEST,
    signature: *mut sys::TPMT_SIGNATURE,
}

impl Attested {
    fn new() -> Attested {
        Attested { statement: null_mut(), signature: null_mut() }
    }

    fn take(self, call: &'static str) -> Result<RawSigned, TpmError> {
        let statement: Given<sys::TPM2B_ATTEST> = given(call, self.statement)?;
        let signature = signature_bytes(call, given(call, self.signature)?)?;
        Ok((statement.bytes().to_vec(), signature))
    }
}
