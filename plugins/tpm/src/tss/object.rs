//! Keys and sealed secrets.

use super::session::tr_close;
use super::{
    Given, NONE, PolicySession, Protect, RH_NULL, Session, Sized2b, Tpm, TpmError, Wiped, esys, given, marshal, public,
    public_bytes, sized, sys, unmarshal,
};
use mayfly_evidence::marshal::{Reader, Writer};
use mayfly_evidence::object::{self, ALG_ECDSA, ALG_NULL, ALG_SHA256, NAME_BYTES};
use std::ptr::null_mut;

/// TPM_ST_HASHCHECK.
const ST_HASHCHECK: u16 = 0x8024;
/// TPM_RH_NULL, in a ticket.
const TICKET_NULL: u32 = 0x4000_0007;

/// What two answers that cannot both be the chip's come to.
pub(super) const UNFIT: &str = "the answers do not fit together, something stands between us and the TPM";

/// A root of primary keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hierarchy {
    /// Storage keys; survives restarts, ends with TPM2_Clear.
    Owner,
    /// Endorsement keys.
    Endorsement,
    /// For one power cycle, by nobody's permission.
    Null,
}

impl Hierarchy {
    fn tr(self) -> sys::ESYS_TR {
        match self {
            Hierarchy::Owner => sys::ESYS_TR_RH_OWNER,
            Hierarchy::Endorsement => sys::ESYS_TR_RH_ENDORSEMENT,
            Hierarchy::Null => RH_NULL,
        }
    }
}

/// An object in the chip: loaded by us (flushed when dropped) or persistent.
pub(crate) struct Object<'t> {
    tpm: &'t Tpm,
    tr: sys::ESYS_TR,
    transient: bool,
}

impl Object<'_> {
    pub(super) fn tr(&self) -> sys::ESYS_TR {
        self.tr
    }

    /// The auth value with which it is used from now on.
    pub(crate) fn set_auth(&self, auth: &[u8]) -> Result<(), TpmError> {
        set_auth(self.tpm, self.tr, auth)
    }

    /// Its public area and Name, as the chip says.
    ///
    /// Nothing authenticates the chip's word, and libtss2 compares nothing. So the Name must be the area's, and the area
    /// must be the one that libtss2 keeps, by which it would salt a session: what is judged is what is used.
    pub(crate) fn public(&self) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        const CALL: &str = "Esys_ReadPublic";
        let (mut area, mut name, mut qualified) = (null_mut(), null_mut(), null_mut());
        let (out, n, q) = (&raw mut area, &raw mut name, &raw mut qualified);
        esys!(self.tpm, Esys_ReadPublic, self.tr, NONE, NONE, NONE, out, n, q)?;
        let area: Given<sys::TPM2B_PUBLIC> = given(CALL, area)?;
        let name: Given<sys::TPM2B_NAME> = given(CALL, name)?;
        let _: Given<sys::TPM2B_NAME> = given(CALL, qualified)?;
        let (area, name) = (public_bytes(CALL, &area)?, name.bytes().to_vec());
        // a Name by another hash is never one that was pinned
        let fits = name.len() != NAME_BYTES || name == object::name(&area);
        if !fits || !self.serialize()?.ends_with(&Writer::new().sized(&area).finish()) {
            return Err(TpmError::local(CALL, UNFIT));
        }
        Ok((area, name))
    }

    /// What libtss2 knows of it, for [`Tpm::deserialize`] within this process.
    pub(crate) fn serialize(&self) -> Result<Vec<u8>, TpmError> {
        serialize(self.tpm, self.tr)
    }
}

impl Drop for Object<'_> {
    fn drop(&mut self) {
        if self.transient {
            self.tpm.flush(self.tr);
        } else {
            let _ = tr_close(self.tpm, self.tr);
        }
    }
}

pub(super) fn set_auth(tpm: &Tpm, tr: sys::ESYS_TR, auth: &[u8]) -> Result<(), TpmError> {
    let auth = Wiped::new(sized::<sys::TPM2B_DIGEST>("Esys_TR_SetAuth", auth)?);
    esys!(tpm, Esys_TR_SetAuth, tr, &raw const *auth)
}

pub(super) fn serialize(tpm: &Tpm, tr: sys::ESYS_TR) -> Result<Vec<u8>, TpmError> {
    let (mut bytes, mut length) = (null_mut(), 0);
    esys!(tpm, Esys_TR_Serialize, tr, &raw mut bytes, &raw mut length)?;
    if bytes.is_null() {
        return Err(TpmError::local("Esys_TR_Serialize", "gave nothing"));
    }
    // SAFETY: the call succeeded, so `bytes` is `length` bytes of memory that is ours to free.
    unsafe {
        let copy = std::slice::from_raw_parts(bytes, length as usize).to_vec();
        sys::Esys_Free(bytes.cast());
        Ok(copy)
    }
}

impl Tpm {
    fn object(&self, tr: sys::ESYS_TR, transient: bool) -> Object<'_> {
        Object { tpm: self, tr, transient }
    }

    /// A persistent object. Its public area is the chip's word: whoever salts a session with it compares its Name first,
    /// by [`Object::public`].
    pub(crate) fn persistent(&self, handle: u32) -> Result<Object<'_>, TpmError> {
        Ok(self.object(self.tr_of(handle)?, false))
    }

    pub(super) fn tr_of(&self, handle: u32) -> Result<sys::ESYS_TR, TpmError> {
        let mut tr = NONE;
        esys!(self, Esys_TR_FromTPMPublic, handle, NONE, NONE, NONE, &raw mut tr)?;
        Ok(tr)
    }

    /// A persistent object or an index that was serialized before: no command, and the public area of then counts.
    pub(crate) fn deserialize(&self, bytes: &[u8]) -> Result<Object<'_>, TpmError> {
        Ok(self.object(self.deserialize_tr(bytes)?, false))
    }

    pub(super) fn deserialize_tr(&self, bytes: &[u8]) -> Result<sys::ESYS_TR, TpmError> {
        let mut tr = NONE;
        esys!(self, Esys_TR_Deserialize, bytes.as_ptr(), bytes.len() as sys::size_t, &raw mut tr)?;
        Ok(tr)
    }

    /// Makes a primary key by `template`. The hierarchy is authorised by the session, or, without one, by the empty
    /// password (which is all that the null hierarchy has).
    pub(crate) fn create_primary(
        &self,
        hierarchy: Hierarchy,
        hierarchy_auth: &[u8],
        session: Option<&Session<'_>>,
        template: &[u8],
    ) -> Result<Object<'_>, TpmError> {
        const CALL: &str = "Esys_CreatePrimary";
        let template = public(CALL, template)?;
        let sensitive = sensitive(CALL, &[], &[])?;
        let (data, pcrs) = nothing_else(CALL)?;
        let authorisation = match session {
            Some(session) => {
                set_auth(self, hierarchy.tr(), hierarchy_auth)?;
                session.ready(Protect::Nothing)?;
                session.tr()
            }
            None => sys::ESYS_TR_PASSWORD,
        };
        let mut tr = NONE;
        let mut out = Created::new();
        esys!(
            self,
            Esys_CreatePrimary,
            hierarchy.tr(),
            authorisation,
            NONE,
            NONE,
            &raw const *sensitive,
            &raw const *template,
            &raw const data,
            &raw const *pcrs,
            &raw mut tr,
            &raw mut out.public,
            &raw mut out.data,
            &raw mut out.hash,
            &raw mut out.ticket,
        )?;
        let object = self.object(tr, true);
        out.take(CALL)?;
        Ok(object)
    }

    /// Gives a key of the owner hierarchy a persistent handle.
    pub(crate) fn make_persistent(
        &self,
        object: &Object<'_>,
        session: &Session<'_>,
        owner_auth: &[u8],
        handle: u32,
    ) -> Result<Object<'_>, TpmError> {
        set_auth(self, Hierarchy::Owner.tr(), owner_auth)?;
        session.ready(Protect::Nothing)?;
        let mut tr = NONE;
        let owner = Hierarchy::Owner.tr();
        esys!(self, Esys_EvictControl, owner, object.tr, session.tr(), NONE, NONE, handle, &raw mut tr)?;
        Ok(self.object(tr, false))
    }

    /// Makes an object under `parent`: a key (`secret` empty) or a sealed secret. Public and private part.
    pub(crate) fn create(
        &self,
        parent: &Object<'_>,
        session: &Session<'_>,
        template: &[u8],
        auth: &[u8],
        secret: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), TpmError> {
        const CALL: &str = "Esys_Create";
        let template = public(CALL, template)?;
        let sensitive = sensitive(CALL, auth, secret)?;
        let (data, pcrs) = nothing_else(CALL)?;
        session.ready(Protect::Both)?;
        let mut private = null_mut();
        let mut out = Created::new();
        esys!(
            self,
            Esys_Create,
            parent.tr,
            session.tr(),
            NONE,
            NONE,
            &raw const *sensitive,
            &raw const *template,
            &raw const data,
            &raw const *pcrs,
            &raw mut private,
            &raw mut out.public,
            &raw mut out.data,
            &raw mut out.hash,
            &raw mut out.ticket,
        )?;
        let private: Given<sys::TPM2B_PRIVATE> = given(CALL, private)?;
        Ok((out.take(CALL)?, private.bytes().to_vec()))
    }

    /// Loads an object under its parent, whose auth value is empty. Nothing here is secret (the chip wrapped the private
    /// part itself), and every use of the object is authenticated with its Name, so no session's HMAC is spent on it.
    pub(crate) fn load(&self, parent: &Object<'_>, area: &[u8], private: &[u8]) -> Result<Object<'_>, TpmError> {
        const CALL: &str = "Esys_Load";
        let area = public(CALL, area)?;
        let private: sys::TPM2B_PRIVATE = sized(CALL, private)?;
        let mut tr = NONE;
        let (private, area) = (&raw const private, &raw const *area);
        esys!(self, Esys_Load, parent.tr, sys::ESYS_TR_PASSWORD, NONE, NONE, private, area, &raw mut tr)?;
        Ok(self.object(tr, true))
    }

    /// Loads somebody else's public key, in a hierarchy whose tickets PolicyAuthorize takes.
    pub(crate) fn load_public(&self, area: &[u8]) -> Result<Object<'_>, TpmError> {
        let area = public("Esys_LoadExternal", area)?;
        let mut tr = NONE;
        let (area, owner) = (&raw const *area, Hierarchy::Owner.tr());
        esys!(self, Esys_LoadExternal, NONE, NONE, NONE, std::ptr::null(), area, owner, &raw mut tr)?;
        Ok(self.object(tr, true))
    }

    /// Opens a sealed secret by its satisfied policy; the answer is encrypted by the policy session.
    pub(crate) fn unseal(
        &self,
        object: &Object<'_>,
        policy: PolicySession<'_>,
        secret: &mut [u8; 32],
    ) -> Result<(), TpmError> {
        const CALL: &str = "Esys_Unseal";
        let mut data = null_mut();
        esys!(self, Esys_Unseal, object.tr, policy.tr(), NONE, NONE, &raw mut data)?;
        policy.used();
        let data: Given<sys::TPM2B_SENSITIVE_DATA> = given(CALL, data)?;
        let bytes: &[u8; 32] =
            data.bytes().try_into().map_err(|_| TpmError::local(CALL, "a secret of another length"))?;
        secret.copy_from_slice(bytes);
        Ok(())
    }

    /// Signs a SHA-256 digest by an unrestricted P-256 key: r and s as the chip gave them.
    pub(crate) fn sign(
        &self,
        key: &Object<'_>,
        session: &Session<'_>,
        digest: &[u8; 32],
    ) -> Result<[u8; 64], TpmError> {
        const CALL: &str = "Esys_Sign";
        let digest: sys::TPM2B_DIGEST = sized(CALL, digest)?;
        let scheme = ecdsa(CALL)?;
        let ticket = Writer::new().u16(ST_HASHCHECK).u32(TICKET_NULL).sized(&[]).finish();
        let ticket = unmarshal(CALL, sys::Tss2_MU_TPMT_TK_HASHCHECK_Unmarshal, &ticket)?;
        session.ready(Protect::Nothing)?;
        let mut signature = null_mut();
        let (digest, scheme, ticket) = (&raw const digest, &raw const *scheme, &raw const *ticket);
        esys!(self, Esys_Sign, key.tr, session.tr(), NONE, NONE, digest, scheme, ticket, &raw mut signature)?;
        signature_bytes(CALL, given(CALL, signature)?)
    }
}

/// What every Create gives beside the key, and nobody needs.
struct Created {
    public: *mut sys::TPM2B_PUBLIC,
    data: *mut sys::TPM2B_CREATION_DATA,
    hash: *mut sys::TPM2B_DIGEST,
    ticket: *mut sys::TPMT_TK_CREATION,
}

impl Created {
    fn new() -> Created {
        Created { public: null_mut(), data: null_mut(), hash: null_mut(), ticket: null_mut() }
    }

    /// Takes everything over; the public area.
    fn take(self, call: &'static str) -> Result<Vec<u8>, TpmError> {
        let _: Given<sys::TPM2B_CREATION_DATA> = given(call, self.data)?;
        let _: Given<sys::TPM2B_DIGEST> = given(call, self.hash)?;
        let _: Given<sys::TPMT_TK_CREATION> = given(call, self.ticket)?;
        let public: Given<sys::TPM2B_PUBLIC> = given(call, self.public)?;
        public_bytes(call, &public)
    }
}

fn sensitive(call: &'static str, auth: &[u8], secret: &[u8]) -> Result<Wiped<sys::TPM2B_SENSITIVE_CREATE>, TpmError> {
    let sensitive = sys::TPMS_SENSITIVE_CREATE { userAuth: sized(call, auth)?, data: sized(call, secret)? };
    Ok(Wiped::new(sys::TPM2B_SENSITIVE_CREATE { size: 0, sensitive }))
}

/// No outside information, no registers recorded.
fn nothing_else(call: &'static str) -> Result<(sys::TPM2B_DATA, Box<sys::TPML_PCR_SELECTION>), TpmError> {
    Ok((sized(call, &[])?, super::selection(call, Default::default())?))
}

/// ECDSA with SHA-256, as a scheme.
fn ecdsa(call: &'static str) -> Result<Box<sys::TPMT_SIG_SCHEME>, TpmError> {
    let bytes = Writer::new().u16(ALG_ECDSA).u16(ALG_SHA256).finish();
    unmarshal(call, sys::Tss2_MU_TPMT_SIG_SCHEME_Unmarshal, &bytes)
}

/// "The key's own scheme".
pub(super) fn own_scheme(call: &'static str) -> Result<Box<sys::TPMT_SIG_SCHEME>, TpmError> {
    unmarshal(call, sys::Tss2_MU_TPMT_SIG_SCHEME_Unmarshal, &ALG_NULL.to_be_bytes())
}

/// r and s of an ECDSA signature by SHA-256, padded to 32 bytes each.
pub(super) fn signature_bytes(call: &'static str, signature: Given<sys::TPMT_SIGNATURE>) -> Result<[u8; 64], TpmError> {
    let bytes = marshal(call, sys::Tss2_MU_TPMT_SIGNATURE_Marshal, &*signature)?;
    read_signature(&bytes).ok_or_else(|| TpmError::local(call, "a signature of another kind"))
}

fn read_signature(bytes: &[u8]) -> Option<[u8; 64]> {
    let mut reader = Reader::new(bytes);
    if reader.u16().ok()? != ALG_ECDSA || reader.u16().ok()? != ALG_SHA256 {
        return None;
    }
    let (r, s) = (reader.sized(32).ok()?, reader.sized(32).ok()?);
    reader.finish().ok()?;
    let mut out = [0; 64];
    out[32 - r.len()..32].copy_from_slice(r);
    out[64 - s.len()..].copy_from_slice(s);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_padded() {
        let short = Writer::new().u16(ALG_ECDSA).u16(ALG_SHA256).sized(&[1; 31]).sized(&[2; 32]).finish();
        let read = read_signature(&short).unwrap();
        assert_eq!(read[..2], [0, 1]);
        assert_eq!(read[31..33], [1, 2]);
        let long = Writer::new().u16(ALG_ECDSA).u16(ALG_SHA256).sized(&[1; 33]).sized(&[2; 32]).finish();
        assert!(read_signature(&long).is_none());
        let other = Writer::new().u16(0x14).u16(ALG_SHA256).sized(&[1; 32]).finish();
        assert!(read_signature(&other).is_none());
    }
}
