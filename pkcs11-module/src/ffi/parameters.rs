//! CK_MECHANISM and its parameter structures, as values.

use cryptoki_sys::*;
use mayfly_wire::mechanism::{Ctr, Gcm};
use mayfly_wire::{Mechanism, Parameters};

use super::pointers::{get, input};
use crate::mechanism::{Shape, find};
use crate::rv::{Outcome, Rv, ensure};

/// Most bytes of a GCM nonce (PKCS#11).
const IV_BYTES_MAX: usize = 256;
/// Most bytes of additional authenticated data: it has to go into a frame beside the data.
const AAD_BYTES_MAX: usize = mayfly_wire::BODY_BYTES_MAX / 2;

/// The mechanism of an …Init or key function; `None` for a null pointer. A mechanism that the module does
/// not know is CKR_MECHANISM_INVALID, parameters of another form CKR_MECHANISM_PARAM_INVALID.
///
/// # Safety
/// A pointer that is not null is valid, with the pointers inside for the lengths beside them, for `'a`.
pub unsafe fn mechanism<'a>(from: *const CK_MECHANISM) -> Outcome<Option<Mechanism<'a>>> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, valid by the contract.
    let given = unsafe { get(from) }?;
    let shape = find(given.mechanism)?.shape;
    // SAFETY: the caller's contract.
    let parameters = unsafe { parameters(shape, &given) }.map_err(|_| Rv(CKR_MECHANISM_PARAM_INVALID))?;
    Ok(Some(Mechanism { code: given.mechanism, parameters }))
}

/// The code of a digest mechanism, which takes no parameters; `None` for a null pointer.
///
/// # Safety
/// A pointer that is not null is valid.
pub unsafe fn digest(from: *const CK_MECHANISM) -> Outcome<Option<u64>> {
    if from.is_null() {
        return Ok(None);
    }
    // SAFETY: not null, valid by the contract.
    let given = unsafe { get(from) }?;
    ensure(given.ulParameterLen == 0, CKR_MECHANISM_PARAM_INVALID)?;
    Ok(Some(given.mechanism))
}

unsafe fn parameters<'a>(shape: Shape, given: &CK_MECHANISM) -> Outcome<Parameters<'a>> {
    // SAFETY: pParameter is valid for ulParameterLen bytes by the caller's contract.
    let bytes: &'a [u8] = unsafe { input(given.pParameter.cast(), given.ulParameterLen) }?;
    match shape {
        Shape::None => ensure(bytes.is_empty(), CKR_MECHANISM_PARAM_INVALID).map(|()| Parameters::None),
        Shape::Iv(length) => {
            ensure(bytes.len() == length, CKR_MECHANISM_PARAM_INVALID)?;
            Ok(Parameters::Iv(bytes))
        }
        Shape::MacLength => {
            let length = bytes.try_into().map_err(|_| Rv(CKR_MECHANISM_PARAM_INVALID))?;
            Ok(Parameters::MacLength(CK_ULONG::from_ne_bytes(length)))
        }
        Shape::Ctr => {
            // CK_AES_CTR_PARAMS is a CK_ULONG and 16 bytes, without padding.
            let (bits, block) = bytes.split_first_chunk().ok_or(Rv(CKR_MECHANISM_PARAM_INVALID))?;
            let block = block.try_into().map_err(|_| Rv(CKR_MECHANISM_PARAM_INVALID))?;
            let counter_bits = number(CK_ULONG::from_ne_bytes(*bits))?;
            Ok(Parameters::Ctr(Ctr { counter_bits, block }))
        }
        Shape::Gcm => {
            ensure(bytes.len() == size_of::<CK_GCM_PARAMS>(), CKR_MECHANISM_PARAM_INVALID)?;
            // SAFETY: as many bytes as the structure has; every bit pattern is one.
            let gcm: CK_GCM_PARAMS = unsafe { get(bytes.as_ptr().cast()) }?;
            // SAFETY: the caller's contract for the pointers inside.
            let (iv, aad) = unsafe { (input(gcm.pIv, gcm.ulIvLen)?, input(gcm.pAAD, gcm.ulAADLen)?) };
            ensure(iv.len() <= IV_BYTES_MAX && aad.len() <= AAD_BYTES_MAX, CKR_MECHANISM_PARAM_INVALID)?;
            Ok(Parameters::Gcm(Gcm { iv, aad, tag_bits: number(gcm.ulTagBits)? }))
        }
    }
}

fn number(value: CK_ULONG) -> Outcome<u32> {
    u32::try_from(value).map_err(|_| Rv(CKR_MECHANISM_PARAM_INVALID))
}
