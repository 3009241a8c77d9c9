//! The one place that calls tpm2-tss: a thin, safe face over its ESYS layer (`tss2_esys`, raw bindings).
//!
//! Commands take and give marshalled structures (`mayfly-evidence` makes and reads them); every object and session that
//! is held is a value whose `Drop` flushes it from the chip, on every path. A [`Tpm`] lives for one call of the plugin:
//! between calls nothing of ours is in the chip's few slots or in libtss2's buffers, and another program has its turn.
//!
//! It must never start a session that is not salted (its key would be known to whoever listens), send an auth value or
//! a secret over a session without encryption, or hand out a pointer of libtss2's.
//!
//! # Safety rules of all calls here
//! The context is live until [`Tpm`] is dropped, and `Tpm` is neither `Send` nor `Sync`; handles borrow it, so none
//! outlives it. Input pointers come from references that live through the call. Output pointers are null before the call
//! and, after success, point at memory that libtss2 gave us, which [`Given`] owns. That is what `esys!` rests on.

mod attest;
mod library;
mod nv;
mod object;
mod policy;
mod rc;
mod session;
mod tcti;
#[cfg(test)]
mod tests;

pub(crate) use attest::{EndorsementUse, RawSigned};
pub(crate) use library::prepare;
pub(crate) use nv::Index;
pub(crate) use object::{Hierarchy, Object};
pub(crate) use rc::base::{HANDLE, NV_DEFINED, NV_UNINITIALIZED, PCR_CHANGED, POLICY, POLICY_FAIL, VALUE};
pub(crate) use rc::{Layer, TpmError};
pub(crate) use session::{PolicySession, Protect, Session};
pub(crate) use tcti::has_resource_manager;

use std::cell::Cell;
use std::ffi::CString;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::ptr::{NonNull, null_mut};
use tss_esapi_sys as sys;

/// Bytes of the long parameter that overwrites what libtss2's command buffer held (see [`Tpm::scrub`]).
const SCRUB_BYTES: usize = 1024;

/// Calls an ESYS function of this context by the rules of this module's page.
macro_rules! esys {
    ($tpm:expr, $function:ident $(, $argument:expr)* $(,)?) => {{
        let tpm: &$crate::tss::Tpm = $tpm;
        // SAFETY: the rules on the page of `tss`: live context, borrowed inputs, fresh outputs.
        let rc = unsafe { tss_esapi_sys::$function(tpm.raw() $(, $argument)*) };
        $crate::tss::rc::check(stringify!($function), rc)
    }};
}
pub(crate) use esys;

/// An open connection to a TPM.
pub(crate) struct Tpm {
    context: NonNull<sys::ESYS_CONTEXT>,
    tcti: tcti::Tcti,
    /// Something could not be given back.
    left: Cell<bool>,
}

impl Tpm {
    /// Connects by a TCTI configuration such as `device:/dev/tpmrm0`.
    pub(crate) fn open(tcti: &CString) -> Result<Tpm, TpmError> {
        let tcti = tcti::Tcti::open(tcti)?;
        let mut context = null_mut();
        // SAFETY: `context` is a fresh output; the TCTI is live and outlives the context (`Drop` below); a null version
        // asks for no particular one.
        let rc = unsafe { sys::Esys_Initialize(&raw mut context, tcti.raw(), null_mut()) };
        rc::check("Esys_Initialize", rc)?;
        let context = NonNull::new(context).ok_or_else(|| TpmError::local("Esys_Initialize", "gave nothing"))?;
        Ok(Tpm { context, tcti, left: Cell::new(false) })
    }

    /// Whether something of ours may still be in the chip although it was dropped.
    pub(crate) fn has_left(&self) -> bool {
        self.left.get()
    }

    /// Gives an object or a session back. Where that fails it goes with the connection, or stays as a stray.
    fn flush(&self, tr: sys::ESYS_TR) {
        if esys!(self, Esys_FlushContext, tr).is_err() {
            self.left.set(true);
        }
    }

    fn raw(&self) -> *mut sys::ESYS_CONTEXT {
        self.context.as_ptr()
    }

    /// Fills `out` from the chip's random numbers; they cross the bus encrypted.
    pub(crate) fn random(&self, session: &Session<'_>, out: &mut [u8]) -> Result<(), TpmError> {
        let mut filled = 0;
        while filled < out.len() {
            let wanted = (out.len() - filled).min(32) as u16;
            session.ready(Protect::Answer)?;
            let mut bytes = null_mut();
            esys!(self, Esys_GetRandom, session.tr(), NONE, NONE, wanted, &raw mut bytes)?;
            let bytes: Given<sys::TPM2B_DIGEST> = given("Esys_GetRandom", bytes)?;
            let bytes = bytes.bytes().get(..usize::from(wanted)).filter(|bytes| !bytes.is_empty());
            let bytes = bytes.ok_or_else(|| TpmError::local("Esys_GetRandom", "gave too few bytes"))?;
            out[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        }
        Ok(())
    }

    /// TPM2_GetCapability; the answer's union, marshalled, without the capability's number.
    pub(crate) fn capability(&self, capability: u32, property: u32, count: u32) -> Result<Vec<u8>, TpmError> {
        let (mut more, mut data) = (0, null_mut());
        let (more, out) = (&raw mut more, &raw mut data);
        esys!(self, Esys_GetCapability, NONE, NONE, NONE, capability, property, count, more, out)?;
        let data: Given<sys::TPMS_CAPABILITY_DATA> = given("Esys_GetCapability", data)?;
        let bytes = marshal("Esys_GetCapability", sys::Tss2_MU_TPMS_CAPABILITY_DATA_Marshal, &*data)?;
        Ok(bytes.get(4..).unwrap_or_default().to_vec())
    }

    /// A command with a long parameter and no meaning, which overwrites libtss2's command buffer: after Create and
    /// Unseal it keeps the secret in the clear.
    pub(crate) fn scrub(&self) -> Result<(), TpmError> {
        let zeros = sys::TPM2B_MAX_BUFFER { size: SCRUB_BYTES as u16, buffer: [0; SCRUB_BYTES] };
        let (mut hash, mut ticket) = (null_mut(), null_mut());
        let (alg, out) = (mayfly_evidence::object::ALG_SHA256, &raw mut hash);
        esys!(self, Esys_Hash, NONE, NONE, NONE, &raw const zeros, alg, RH_NULL, out, &raw mut ticket)?;
        let _: Given<sys::TPM2B_DIGEST> = given("Esys_Hash", hash)?;
        let _: Given<sys::TPMT_TK_HASHCHECK> = given("Esys_Hash", ticket)?;
        Ok(())
    }
}

impl Drop for Tpm {
    fn drop(&mut self) {
        let mut context = self.raw();
        // SAFETY: the context is live and nothing borrows it any more; the TCTI, which it uses, is dropped after it.
        unsafe { sys::Esys_Finalize(&raw mut context) };
    }
}

/// No session, no object.
pub(crate) const NONE: sys::ESYS_TR = sys::ESYS_TR_NONE;
const RH_NULL: sys::ESYS_TR = sys::ESYS_TR_RH_NULL;

/// What a chip or a caller may keep to itself: wiped when dropped.
pub(crate) struct Wiped<T>(Box<T>);

impl<T> Wiped<T> {
    fn new(value: T) -> Wiped<T> {
        Wiped(Box::new(value))
    }
}

impl<T> Deref for Wiped<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Drop for Wiped<T> {
    fn drop(&mut self) {
        // SAFETY: a live, unshared value of a plain C structure (the only kind put in here), never read again.
        unsafe { zeroize::zeroize_flat_type::<T>(&raw mut *self.0) };
    }
}

/// Memory that libtss2 gave us: wiped and freed when dropped.
pub(crate) struct Given<T>(NonNull<T>, PhantomData<T>);

impl<T> Deref for Given<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: made by `given` from a successful call's output: valid and ours until dropped.
        unsafe { self.0.as_ref() }
    }
}

impl<T> Drop for Given<T> {
    fn drop(&mut self) {
        // SAFETY: valid, ours, plain C data, not used again; libtss2 allocated it and frees it.
        unsafe {
            zeroize::zeroize_flat_type::<T>(self.0.as_ptr());
            sys::Esys_Free(self.0.as_ptr().cast());
        }
    }
}

/// Takes over an output of a call that succeeded.
fn given<T>(call: &'static str, pointer: *mut T) -> Result<Given<T>, TpmError> {
    NonNull::new(pointer)
        .map(|pointer| Given(pointer, PhantomData))
        .ok_or_else(|| TpmError::local(call, "gave nothing"))
}

/// C structures of a length and a buffer.
pub(crate) trait Sized2b: Sized {
    /// The structure with these bytes; `None` when they do not fit.
    fn of(bytes: &[u8]) -> Option<Self>;
    /// The bytes that count.
    fn bytes(&self) -> &[u8];
}

macro_rules! sized2b {
    ($($kind:ident.$field:ident),* $(,)?) => {$(
        impl Sized2b for sys::$kind {
            fn of(bytes: &[u8]) -> Option<Self> {
                // SAFETY: a number and an array of bytes: all zeros are a value.
                let mut out: sys::$kind = unsafe { MaybeUninit::zeroed().assume_init() };
                out.$field.get_mut(..bytes.len())?.copy_from_slice(bytes);
                out.size = bytes.len() as u16;
                Some(out)
            }

            fn bytes(&self) -> &[u8] {
                &self.$field[..usize::from(self.size).min(self.$field.len())]
            }
        }
    )*};
}
sized2b!(
    TPM2B_DIGEST.buffer,
    TPM2B_DATA.buffer,
    TPM2B_NAME.name,
    TPM2B_PRIVATE.buffer,
    TPM2B_SENSITIVE_DATA.buffer,
    TPM2B_MAX_NV_BUFFER.buffer,
    TPM2B_ID_OBJECT.credential,
    TPM2B_ENCRYPTED_SECRET.secret,
    TPM2B_ATTEST.attestationData,
);

/// A structure of bytes of ours or of a file's.
fn sized<T: Sized2b>(call: &'static str, bytes: &[u8]) -> Result<T, TpmError> {
    T::of(bytes).ok_or_else(|| TpmError::local(call, "a parameter is too long"))
}

type Marshal<T> = unsafe extern "C" fn(*const T, *mut u8, sys::size_t, *mut sys::size_t) -> sys::TSS2_RC;
type Unmarshal<T> = unsafe extern "C" fn(*const u8, sys::size_t, *mut sys::size_t, *mut T) -> sys::TSS2_RC;

/// A C structure as bytes.
fn marshal<T>(call: &'static str, function: Marshal<T>, value: &T) -> Result<Vec<u8>, TpmError> {
    let mut bytes = vec![0u8; 4096];
    let mut offset = 0;
    // SAFETY: libtss2's marshalling function of exactly this structure; the buffer is writable for its length.
    let rc = unsafe { function(value, bytes.as_mut_ptr(), bytes.len() as sys::size_t, &raw mut offset) };
    rc::check(call, rc)?;
    bytes.truncate(offset as usize);
    Ok(bytes)
}

/// Bytes as a C structure; all of them must be used.
fn unmarshal<T>(call: &'static str, function: Unmarshal<T>, bytes: &[u8]) -> Result<Box<T>, TpmError> {
    // the C functions refuse a target with a length in it, so it starts as zeros
    let mut value = Box::new(MaybeUninit::<T>::zeroed());
    let mut offset = 0;
    // SAFETY: libtss2's unmarshalling function of exactly this structure; `bytes` is readable for its length.
    let rc = unsafe { function(bytes.as_ptr(), bytes.len() as sys::size_t, &raw mut offset, value.as_mut_ptr()) };
    rc::check(call, rc)?;
    if offset as usize != bytes.len() {
        return Err(TpmError::local(call, "a structure with bytes after its end"));
    }
    // SAFETY: filled by the function, which succeeded; before that all zeros, which is a value of these C structures.
    Ok(unsafe { value.assume_init() })
}

/// A public area as a C structure.
fn public(call: &'static str, area: &[u8]) -> Result<Box<sys::TPM2B_PUBLIC>, TpmError> {
    let bytes = mayfly_evidence::marshal::Writer::new().sized(area).finish();
    unmarshal(call, sys::Tss2_MU_TPM2B_PUBLIC_Unmarshal, &bytes)
}

/// The bytes of a public area.
fn public_bytes(call: &'static str, public: &sys::TPM2B_PUBLIC) -> Result<Vec<u8>, TpmError> {
    marshal(call, sys::Tss2_MU_TPMT_PUBLIC_Marshal, &public.publicArea)
}

/// A selection of registers as a C structure.
fn selection(
    call: &'static str,
    selection: mayfly_evidence::pcr::Selection,
) -> Result<Box<sys::TPML_PCR_SELECTION>, TpmError> {
    unmarshal(call, sys::Tss2_MU_TPML_PCR_SELECTION_Unmarshal, &selection.marshal())
}
