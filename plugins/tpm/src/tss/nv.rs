//! NV indices. Their Names enter every authorisation, so a chip cannot be made to use another index in their place.

use super::object::{serialize, set_auth};
use super::session::tr_close;
use super::{Given, NONE, Protect, Session, Sized2b, Tpm, TpmError, Wiped, esys, given, sized, sys, unmarshal};
use mayfly_evidence::marshal::Writer;
use mayfly_evidence::object::{self, NAME_BYTES};
use std::ptr::null_mut;

/// An index, with the auth value by which it is used. One at a time for a handle: libtss2 3 has one handle of its own for
/// it, and closing the first would close the second.
pub(crate) struct Index<'t> {
    tpm: &'t Tpm,
    tr: sys::ESYS_TR,
}

impl Tpm {
    /// The index at `handle`, by the public area that the chip gives now.
    pub(crate) fn index(&self, handle: u32) -> Result<Index<'_>, TpmError> {
        Ok(Index { tpm: self, tr: self.tr_of(handle)? })
    }

    /// An index that was serialized before: no command.
    pub(crate) fn deserialize_index(&self, bytes: &[u8]) -> Result<Index<'_>, TpmError> {
        Ok(Index { tpm: self, tr: self.deserialize_tr(bytes)? })
    }

    /// Defines an index; its auth value crosses the bus encrypted.
    pub(crate) fn define(
        &self,
        session: &Session<'_>,
        owner_auth: &[u8],
        public: &[u8],
        auth: &[u8],
    ) -> Result<(), TpmError> {
        const CALL: &str = "Esys_NV_DefineSpace";
        let bytes = Writer::new().sized(public).finish();
        let public = unmarshal(CALL, sys::Tss2_MU_TPM2B_NV_PUBLIC_Unmarshal, &bytes)?;
        let auth = Wiped::new(sized::<sys::TPM2B_DIGEST>(CALL, auth)?);
        let owner = owner(self, owner_auth)?;
        session.ready(Protect::Command)?;
        let mut tr = NONE;
        let (auth, public) = (&raw const *auth, &raw const *public);
        esys!(self, Esys_NV_DefineSpace, owner, session.tr(), NONE, NONE, auth, public, &raw mut tr)?;
        // failure leaves a handle of libtss2's, which goes with the context
        let _ = tr_close(self, tr);
        Ok(())
    }

    /// Removes an index.
    pub(crate) fn undefine(&self, session: &Session<'_>, owner_auth: &[u8], index: Index<'_>) -> Result<(), TpmError> {
        let owner = owner(self, owner_auth)?;
        session.ready(Protect::Nothing)?;
        esys!(self, Esys_NV_UndefineSpace, owner, index.tr, session.tr(), NONE, NONE)
    }

    /// Reads a piece of an index that everybody may read: a maker's certificate.
    pub(crate) fn read_open(&self, index: &Index<'_>, size: u16, offset: u16) -> Result<Vec<u8>, TpmError> {
        let mut data = null_mut();
        let (tr, out) = (index.tr, &raw mut data);
        esys!(self, Esys_NV_Read, tr, tr, sys::ESYS_TR_PASSWORD, NONE, NONE, size, offset, out)?;
        let data: Given<sys::TPM2B_MAX_NV_BUFFER> = given("Esys_NV_Read", data)?;
        Ok(data.bytes().to_vec())
    }
}

fn owner(tpm: &Tpm, auth: &[u8]) -> Result<sys::ESYS_TR, TpmError> {
    set_auth(tpm, sys::ESYS_TR_RH_OWNER, auth)?;
    Ok(sys::ESYS_TR_RH_OWNER)
}

impl Index<'_> {
    pub(super) fn tr(&self) -> sys::ESYS_TR {
        self.tr
    }

    /// The auth value with which it is used from now on.
    pub(crate) fn set_auth(&self, auth: &[u8]) -> Result<(), TpmError> {
        set_auth(self.tpm, self.tr, auth)
    }

    /// What libtss2 knows of it, for [`Tpm::deserialize_index`] within this process.
    pub(crate) fn serialize(&self) -> Result<Vec<u8>, TpmError> {
        serialize(self.tpm, self.tr)
    }

    /// Its public area, as the chip says. As for objects: the Name must be the area's, and the one by which libtss2 will
    /// authenticate.
    pub(crate) fn public(&self) -> Result<Vec<u8>, TpmError> {
        const CALL: &str = "Esys_NV_ReadPublic";
        let (mut area, mut name, mut kept) = (null_mut(), null_mut(), null_mut());
        esys!(self.tpm, Esys_NV_ReadPublic, self.tr, NONE, NONE, NONE, &raw mut area, &raw mut name)?;
        let area: Given<sys::TPM2B_NV_PUBLIC> = given(CALL, area)?;
        let name: Given<sys::TPM2B_NAME> = given(CALL, name)?;
        esys!(self.tpm, Esys_TR_GetName, self.tr, &raw mut kept)?;
        let kept: Given<sys::TPM2B_NAME> = given(CALL, kept)?;
        let area = super::marshal(CALL, sys::Tss2_MU_TPMS_NV_PUBLIC_Marshal, &area.nvPublic)?;
        let fits = name.bytes().len() != NAME_BYTES || name.bytes() == object::name(&area);
        if !fits || kept.bytes() != name.bytes() {
            return Err(TpmError::local(CALL, super::object::UNFIT));
        }
        Ok(area)
    }

    /// Reads the index from its start; the bytes cross the bus encrypted.
    pub(crate) fn read<const N: usize>(&self, session: &Session<'_>, out: &mut [u8; N]) -> Result<(), TpmError> {
        const CALL: &str = "Esys_NV_Read";
        session.ready(Protect::Answer)?;
        let mut data = null_mut();
        let (tr, size) = (self.tr, N as u16);
        esys!(self.tpm, Esys_NV_Read, tr, tr, session.tr(), NONE, NONE, size, 0, &raw mut data)?;
        let data: Given<sys::TPM2B_MAX_NV_BUFFER> = given(CALL, data)?;
        let bytes: &[u8; N] = data.bytes().try_into().map_err(|_| TpmError::local(CALL, "bytes of another number"))?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    /// Writes the whole index; the bytes cross the bus encrypted.
    pub(crate) fn write(&self, session: &Session<'_>, bytes: &[u8]) -> Result<(), TpmError> {
        const CALL: &str = "Esys_NV_Write";
        let data = Wiped::new(sized::<sys::TPM2B_MAX_NV_BUFFER>(CALL, bytes)?);
        session.ready(Protect::Command)?;
        esys!(self.tpm, Esys_NV_Write, self.tr, self.tr, session.tr(), NONE, NONE, &raw const *data, 0)
    }

    /// Adds one to a counter.
    pub(crate) fn increment(&self, session: &Session<'_>) -> Result<(), TpmError> {
        session.ready(Protect::Nothing)?;
        esys!(self.tpm, Esys_NV_Increment, self.tr, self.tr, session.tr(), NONE, NONE)
    }
}

impl Drop for Index<'_> {
    fn drop(&mut self) {
        let _ = tr_close(self.tpm, self.tr);
    }
}
