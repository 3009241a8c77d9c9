//! The C face: the function table of PKCS#11 v2.40, each entry a few lines between pointers and a safe body.
//!
//! Every entry comes out of the macro `entry!`: it finds the library's state (CKR_CRYPTOKI_NOT_INITIALIZED where there
//! is none), catches panics, and turns the outcome into CK_RV. What the application's pointers must be is said
//! in `pointers`. Only what PKCS#11 wants found by name is exported: other modules in the same process have
//! functions of the same names.
#![allow(non_snake_case)] // the names are PKCS#11's

mod parameters;
mod pointers;

use std::ffi::{c_uchar, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use cryptoki_sys::*;
use mayfly_wire::{Kind, Mechanism};

use crate::library::{self, Library};
use crate::rv::{Outcome, Rv, ensure, fail};
use crate::slot::{MANUFACTURER, module_version, padded};
use crate::sys;
use parameters::mechanism;
use pointers::{deliver, get, input, kinds, optional_input, put, put_attributes, put_list, room, template};

/// Bytes of the label that C_InitToken takes.
const LABEL_BYTES: CK_ULONG = 32;
/// Most random bytes of one call.
const RANDOM_BYTES_MAX: CK_ULONG = 1 << 24;

/// Runs a body; a panic is CKR_GENERAL_ERROR.
fn guard(body: impl FnOnce() -> Outcome) -> CK_RV {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => CKR_OK,
        Ok(Err(Rv(code))) => code,
        Err(_) => CKR_GENERAL_ERROR,
    }
}

/// Declares an entry of the table. Its body sees the library's state under the first name.
macro_rules! entry {
    ($(fn $name:ident($library:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)*) => {$(
        unsafe extern "C" fn $name($($argument: $type),*) -> CK_RV {
            guard(|| {
                let $library = library::library()?;
                let $library: &Library = &$library;
                // SAFETY: the arguments are the application's, under the contract of `pointers`; the body
                // hands each to a function of `pointers` or `parameters` and does nothing else with it.
                #[allow(unused_unsafe)]
                unsafe { $body }
            })
        }
    )*};
}

/// A mechanism that has to be there.
unsafe fn some_mechanism<'a>(from: *const CK_MECHANISM) -> Outcome<Mechanism<'a>> {
    // SAFETY: the caller's contract.
    unsafe { mechanism(from) }?.ok_or(Rv(CKR_ARGUMENTS_BAD))
}

/// An …Init function with a key.
unsafe fn init(
    library: &Library,
    session: CK_SESSION_HANDLE,
    kind: Kind,
    from: *const CK_MECHANISM,
    key: CK_OBJECT_HANDLE,
) -> Outcome {
    library.session(session)?;
    // SAFETY: the caller's contract.
    match unsafe { mechanism(from) }? {
        Some(mechanism) => library.begin(session, kind, &mechanism, key),
        None => library.cancel(session, kind),
    }
}

/// Runs a call on an active operation. Whatever goes wrong before the operation itself is reached, a null
/// pointer for instance, ends it as every error does; a buffer that is too small does not.
fn on_operation(library: &Library, session: CK_SESSION_HANDLE, kind: Kind, call: impl FnOnce() -> Outcome) -> Outcome {
    let result = call();
    if result.is_err() && result != fail(CKR_BUFFER_TOO_SMALL) {
        library.end(session, kind);
    }
    result
}

/// C_Initialize's argument: null or CK_C_INITIALIZE_ARGS. Mutex callbacks are accepted and not used: the
/// operating system's locks work wherever they do.
unsafe fn check_initialize_arguments(from: *const CK_C_INITIALIZE_ARGS) -> Outcome {
    if from.is_null() {
        return Ok(());
    }
    // SAFETY: not null, valid by the contract.
    let arguments = unsafe { get(from) }?;
    let callbacks = [
        arguments.CreateMutex.is_some(),
        arguments.DestroyMutex.is_some(),
        arguments.LockMutex.is_some(),
        arguments.UnlockMutex.is_some(),
    ];
    let is_consistent = callbacks.iter().all(|given| *given) || callbacks.iter().all(|given| !*given);
    ensure(is_consistent && arguments.pReserved.is_null(), CKR_ARGUMENTS_BAD)
}

unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    guard(|| {
        // SAFETY: null or the application's structure, by PKCS#11.
        unsafe { check_initialize_arguments(arguments.cast()) }?;
        library::initialize()
    })
}

unsafe extern "C" fn C_Finalize(reserved: *mut c_void) -> CK_RV {
    guard(|| {
        ensure(reserved.is_null(), CKR_ARGUMENTS_BAD)?;
        library::finalize()
    })
}

/// The function table of PKCS#11 v2.40.
///
/// # Safety
/// `list` is null or valid for one pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    guard(|| {
        // SAFETY: the caller's contract.
        unsafe { put(list, (&raw const FUNCTIONS).cast_mut()) }
    })
}

/// The interfaces of this module, for applications that know PKCS#11 v3.0: the table of v2.40.
///
/// # Safety
/// The pointers are null or valid; `list` for as many items as `count` says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterfaceList(list: *mut CK_INTERFACE, count: *mut CK_ULONG) -> CK_RV {
    guard(|| {
        // SAFETY: the caller's contract.
        unsafe { put_list(&[INTERFACE.0], list, count) }
    })
}

/// The interface of a name and version; null asks for the default.
///
/// # Safety
/// The pointers are null or valid; `name` is a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetInterface(
    name: *mut CK_UTF8CHAR,
    version: *mut CK_VERSION,
    interface: *mut *mut CK_INTERFACE,
    flags: CK_FLAGS,
) -> CK_RV {
    guard(|| {
        ensure(!interface.is_null(), CKR_ARGUMENTS_BAD)?;
        // SAFETY: not null and a C string by the contract.
        let is_name = name.is_null() || unsafe { std::ffi::CStr::from_ptr(name.cast()) } == INTERFACE_NAME;
        let is_version = version.is_null() || {
            // SAFETY: not null, valid by the contract.
            let version = unsafe { get(version) }?;
            (version.major, version.minor) == (FUNCTIONS.version.major, FUNCTIONS.version.minor)
        };
        ensure(is_name && is_version && flags & !INTERFACE.0.flags == 0, CKR_ARGUMENTS_BAD)?;
        // SAFETY: the caller's contract.
        unsafe { put(interface, (&raw const INTERFACE.0).cast_mut()) }
    })
}

const INTERFACE_NAME: &std::ffi::CStr = c"PKCS 11";

/// An interface's pointers are to statics that nobody writes.
struct Interface(CK_INTERFACE);

// SAFETY: the pointers lead to immutable statics.
unsafe impl Sync for Interface {}

static INTERFACE: Interface = Interface(CK_INTERFACE {
    pInterfaceName: INTERFACE_NAME.as_ptr().cast_mut().cast(),
    pFunctionList: (&raw const FUNCTIONS).cast_mut().cast(),
    flags: 0,
});

entry! {
    fn C_GetInfo(_library, info: *mut CK_INFO) {
        put(info, CK_INFO {
            cryptokiVersion: FUNCTIONS.version,
            manufacturerID: padded(MANUFACTURER),
            flags: 0,
            libraryDescription: padded("Mayfly PKCS#11 module"),
            libraryVersion: module_version(),
        })
    }

    fn C_GetSlotList(library, only_with_token: CK_BBOOL, list: *mut CK_SLOT_ID, count: *mut CK_ULONG) {
        ensure(!count.is_null(), CKR_ARGUMENTS_BAD)?;
        let slots = library.slot_list(only_with_token != CK_FALSE, list.is_null());
        put_list(&slots, list, count)
    }

    fn C_GetSlotInfo(library, slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) {
        ensure(!info.is_null(), CKR_ARGUMENTS_BAD)?;
        put(info, library.slot_info(slot)?)
    }

    fn C_GetTokenInfo(library, slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) {
        ensure(!info.is_null(), CKR_ARGUMENTS_BAD)?;
        put(info, library.token_info(slot)?)
    }

    fn C_GetMechanismList(library, slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: *mut CK_ULONG) {
        ensure(!count.is_null(), CKR_ARGUMENTS_BAD)?;
        let codes: Vec<CK_MECHANISM_TYPE> = library.mechanisms(slot)?.iter().map(|info| info.code).collect();
        put_list(&codes, list, count)
    }

    fn C_GetMechanismInfo(library, slot: CK_SLOT_ID, code: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO) {
        ensure(!info.is_null(), CKR_ARGUMENTS_BAD)?;
        let found = library.mechanism_info(slot, code)?;
        put(info, CK_MECHANISM_INFO {
            ulMinKeySize: found.key_size_min,
            ulMaxKeySize: found.key_size_max,
            flags: found.flags,
        })
    }

    fn C_InitToken(library, slot: CK_SLOT_ID, pin: *mut CK_UTF8CHAR, length: CK_ULONG, label: *mut CK_UTF8CHAR) {
        let pin = optional_input(pin, length)?.ok_or(Rv(CKR_ARGUMENTS_BAD))?;
        let label = optional_input(label, LABEL_BYTES)?.ok_or(Rv(CKR_ARGUMENTS_BAD))?;
        library.init_token(slot, pin, label)
    }

    fn C_InitPIN(library, session: CK_SESSION_HANDLE, pin: *mut CK_UTF8CHAR, length: CK_ULONG) {
        let pin = optional_input(pin, length)?.ok_or(Rv(CKR_ARGUMENTS_BAD))?;
        library.init_pin(session, pin)
    }

    fn C_SetPIN(
        library,
        session: CK_SESSION_HANDLE,
        old: *mut CK_UTF8CHAR,
        old_length: CK_ULONG,
        new: *mut CK_UTF8CHAR,
        new_length: CK_ULONG,
    ) {
        let old = optional_input(old, old_length)?.ok_or(Rv(CKR_ARGUMENTS_BAD))?;
        let new = optional_input(new, new_length)?.ok_or(Rv(CKR_ARGUMENTS_BAD))?;
        library.set_pin(session, old, new)
    }

    fn C_OpenSession(
        library,
        slot: CK_SLOT_ID,
        flags: CK_FLAGS,
        _application: *mut c_void,
        _notify: CK_NOTIFY,
        session: *mut CK_SESSION_HANDLE,
    ) {
        ensure(!session.is_null(), CKR_ARGUMENTS_BAD)?;
        put(session, library.open_session(slot, flags)?)
    }

    fn C_CloseSession(library, session: CK_SESSION_HANDLE) {
        library.close_session(session)
    }

    fn C_CloseAllSessions(library, slot: CK_SLOT_ID) {
        library.close_all_sessions(slot)
    }

    fn C_GetSessionInfo(library, session: CK_SESSION_HANDLE, info: *mut CK_SESSION_INFO) {
        ensure(!info.is_null(), CKR_ARGUMENTS_BAD)?;
        put(info, library.session_info(session)?)
    }

    fn C_GetOperationState(library, session: CK_SESSION_HANDLE, _state: *mut c_uchar, length: *mut CK_ULONG) {
        ensure(!length.is_null(), CKR_ARGUMENTS_BAD)?;
        let has_operation = library.session(session)?.has_operation();
        fail(if has_operation { CKR_STATE_UNSAVEABLE } else { CKR_OPERATION_NOT_INITIALIZED })
    }

    fn C_SetOperationState(
        library,
        session: CK_SESSION_HANDLE,
        _state: *mut c_uchar,
        _length: CK_ULONG,
        _encryption_key: CK_OBJECT_HANDLE,
        _authentication_key: CK_OBJECT_HANDLE,
    ) {
        library.session(session)?;
        fail(CKR_SAVED_STATE_INVALID)
    }

    fn C_Login(
        library,
        session: CK_SESSION_HANDLE,
        user: CK_USER_TYPE,
        pin: *mut CK_UTF8CHAR,
        length: CK_ULONG,
    ) {
        library.login(session, user, optional_input(pin, length)?)
    }

    fn C_Logout(library, session: CK_SESSION_HANDLE) {
        library.logout(session)
    }

    fn C_CreateObject(
        library,
        session: CK_SESSION_HANDLE,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        object: *mut CK_OBJECT_HANDLE,
    ) {
        ensure(!object.is_null() && !attributes.is_null(), CKR_ARGUMENTS_BAD)?;
        put(object, library.create_object(session, &template(attributes, count)?)?)
    }

    fn C_CopyObject(
        library,
        session: CK_SESSION_HANDLE,
        source: CK_OBJECT_HANDLE,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        object: *mut CK_OBJECT_HANDLE,
    ) {
        ensure(!object.is_null(), CKR_ARGUMENTS_BAD)?;
        put(object, library.copy_object(session, source, &template(attributes, count)?)?)
    }

    fn C_DestroyObject(library, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) {
        library.destroy_object(session, object)
    }

    fn C_GetObjectSize(library, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, size: *mut CK_ULONG) {
        ensure(!size.is_null(), CKR_ARGUMENTS_BAD)?;
        put(size, library.object_size(session, object)?)
    }

    fn C_GetAttributeValue(
        library,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    ) {
        let shown = library.attributes(session, object, &kinds(attributes, count)?)?;
        put_attributes(attributes, &shown)
    }

    fn C_SetAttributeValue(
        library,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
    ) {
        ensure(!attributes.is_null(), CKR_ARGUMENTS_BAD)?;
        library.set_attributes(session, object, &template(attributes, count)?)
    }

    fn C_FindObjectsInit(library, session: CK_SESSION_HANDLE, attributes: *mut CK_ATTRIBUTE, count: CK_ULONG) {
        library.find_init(session, &template(attributes, count)?)
    }

    fn C_FindObjects(
        library,
        session: CK_SESSION_HANDLE,
        objects: *mut CK_OBJECT_HANDLE,
        most: CK_ULONG,
        count: *mut CK_ULONG,
    ) {
        ensure(!count.is_null() && (!objects.is_null() || most == 0), CKR_ARGUMENTS_BAD)?;
        let found = library.session(session)?.next_found(usize::try_from(most).unwrap_or(usize::MAX))?;
        put(count, most)?;
        put_list(&found, objects, count)
    }

    fn C_FindObjectsFinal(library, session: CK_SESSION_HANDLE) {
        library.session(session)?.end_find()
    }

    fn C_EncryptInit(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) {
        init(library, session, Kind::Encrypt, mechanism, key)
    }

    fn C_DecryptInit(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) {
        init(library, session, Kind::Decrypt, mechanism, key)
    }

    fn C_SignInit(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) {
        init(library, session, Kind::Sign, mechanism, key)
    }

    fn C_SignRecoverInit(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) {
        init(library, session, Kind::SignRecover, mechanism, key)
    }

    fn C_VerifyInit(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) {
        init(library, session, Kind::Verify, mechanism, key)
    }

    fn C_VerifyRecoverInit(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) {
        init(library, session, Kind::VerifyRecover, mechanism, key)
    }

    fn C_DigestInit(library, session: CK_SESSION_HANDLE, mechanism: *mut CK_MECHANISM) {
        library.session(session)?;
        match parameters::digest(mechanism)? {
            Some(code) => library.digest_begin(session, code),
            None => library.cancel(session, Kind::Digest),
        }
    }

    fn C_DigestUpdate(library, session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG) {
        on_operation(library, session, Kind::Digest, || library.digest_part(session, input(data, length)?))
    }

    fn C_DigestKey(library, session: CK_SESSION_HANDLE, _key: CK_OBJECT_HANDLE) {
        library.digest_key(session)
    }

    fn C_DigestFinal(library, session: CK_SESSION_HANDLE, buffer: *mut CK_BYTE, length: *mut CK_ULONG) {
        on_operation(library, session, Kind::Digest, || {
            deliver(&library.digest_end(session, room(buffer, length)?)?, buffer, length)
        })
    }

    fn C_SignUpdate(library, session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG) {
        on_operation(library, session, Kind::Sign, || {
            library.sign_part(session, Kind::Sign, input(data, length)?)
        })
    }

    fn C_SignFinal(library, session: CK_SESSION_HANDLE, buffer: *mut CK_BYTE, length: *mut CK_ULONG) {
        on_operation(library, session, Kind::Sign, || {
            deliver(&library.sign_end(session, room(buffer, length)?)?, buffer, length)
        })
    }

    fn C_Verify(
        library,
        session: CK_SESSION_HANDLE,
        data: *mut CK_BYTE,
        data_length: CK_ULONG,
        signature: *mut CK_BYTE,
        signature_length: CK_ULONG,
    ) {
        on_operation(library, session, Kind::Verify, || {
            library.verify(session, input(data, data_length)?, input(signature, signature_length)?)
        })
    }

    fn C_VerifyUpdate(library, session: CK_SESSION_HANDLE, data: *mut CK_BYTE, length: CK_ULONG) {
        on_operation(library, session, Kind::Verify, || {
            library.sign_part(session, Kind::Verify, input(data, length)?)
        })
    }

    fn C_VerifyFinal(library, session: CK_SESSION_HANDLE, signature: *mut CK_BYTE, length: CK_ULONG) {
        on_operation(library, session, Kind::Verify, || library.verify_end(session, input(signature, length)?))
    }

    fn C_EncryptFinal(library, session: CK_SESSION_HANDLE, buffer: *mut CK_BYTE, length: *mut CK_ULONG) {
        on_operation(library, session, Kind::Encrypt, || {
            deliver(&library.cipher_end(session, Kind::Encrypt, room(buffer, length)?)?, buffer, length)
        })
    }

    fn C_DecryptFinal(library, session: CK_SESSION_HANDLE, buffer: *mut CK_BYTE, length: *mut CK_ULONG) {
        on_operation(library, session, Kind::Decrypt, || {
            deliver(&library.cipher_end(session, Kind::Decrypt, room(buffer, length)?)?, buffer, length)
        })
    }

    fn C_GenerateKey(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) {
        ensure(!key.is_null(), CKR_ARGUMENTS_BAD)?;
        let mechanism = some_mechanism(mechanism)?;
        put(key, library.generate_key(session, &mechanism, &template(attributes, count)?)?)
    }

    fn C_GenerateKeyPair(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        public: *mut CK_ATTRIBUTE,
        public_count: CK_ULONG,
        private: *mut CK_ATTRIBUTE,
        private_count: CK_ULONG,
        public_key: *mut CK_OBJECT_HANDLE,
        private_key: *mut CK_OBJECT_HANDLE,
    ) {
        ensure(!public_key.is_null() && !private_key.is_null(), CKR_ARGUMENTS_BAD)?;
        let mechanism = some_mechanism(mechanism)?;
        let (public, private) = (template(public, public_count)?, template(private, private_count)?);
        let (public, private) = library.generate_key_pair(session, &mechanism, &public, &private)?;
        put(public_key, public)?;
        put(private_key, private)
    }

    fn C_WrapKey(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        wrapping_key: CK_OBJECT_HANDLE,
        key: CK_OBJECT_HANDLE,
        buffer: *mut CK_BYTE,
        length: *mut CK_ULONG,
    ) {
        let mechanism = some_mechanism(mechanism)?;
        let output = library.wrap_key(session, &mechanism, wrapping_key, key, room(buffer, length)?)?;
        deliver(&output, buffer, length)
    }

    fn C_UnwrapKey(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        unwrapping_key: CK_OBJECT_HANDLE,
        wrapped: *mut CK_BYTE,
        wrapped_length: CK_ULONG,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) {
        ensure(!key.is_null(), CKR_ARGUMENTS_BAD)?;
        let mechanism = some_mechanism(mechanism)?;
        let (wrapped, template) = (input(wrapped, wrapped_length)?, template(attributes, count)?);
        put(key, library.unwrap_key(session, &mechanism, unwrapping_key, wrapped, &template)?)
    }

    fn C_DeriveKey(
        library,
        session: CK_SESSION_HANDLE,
        mechanism: *mut CK_MECHANISM,
        base_key: CK_OBJECT_HANDLE,
        attributes: *mut CK_ATTRIBUTE,
        count: CK_ULONG,
        key: *mut CK_OBJECT_HANDLE,
    ) {
        ensure(!key.is_null(), CKR_ARGUMENTS_BAD)?;
        let mechanism = some_mechanism(mechanism)?;
        put(key, library.derive_key(session, &mechanism, base_key, &template(attributes, count)?)?)
    }

    fn C_SeedRandom(library, session: CK_SESSION_HANDLE, _seed: *mut CK_BYTE, _length: CK_ULONG) {
        library.session(session)?;
        // The kernel's generator needs no seed of ours.
        fail(CKR_RANDOM_SEED_NOT_SUPPORTED)
    }

    fn C_GenerateRandom(library, session: CK_SESSION_HANDLE, buffer: *mut CK_BYTE, length: CK_ULONG) {
        library.session(session)?;
        ensure((!buffer.is_null() || length == 0) && length <= RANDOM_BYTES_MAX, CKR_ARGUMENTS_BAD)?;
        let mut random = crate::bytes::Bytes::zeroed(length as usize)?;
        ensure(sys::random(random.as_mut()), CKR_DEVICE_ERROR)?;
        ptr::copy_nonoverlapping(random.as_ptr(), buffer, random.len());
        Ok(())
    }

    fn C_GetFunctionStatus(_library, _session: CK_SESSION_HANDLE) {
        fail(CKR_FUNCTION_NOT_PARALLEL)
    }

    fn C_CancelFunction(_library, _session: CK_SESSION_HANDLE) {
        fail(CKR_FUNCTION_NOT_PARALLEL)
    }

    fn C_WaitForSlotEvent(library, flags: CK_FLAGS, slot: *mut CK_SLOT_ID, reserved: *mut c_void) {
        ensure(!slot.is_null() && reserved.is_null(), CKR_ARGUMENTS_BAD)?;
        put(slot, library.wait_for_slot_event(flags)?)
    }
}

/// Entries that take data and give data, told apart by the body they call.
macro_rules! data_entry {
    ($($name:ident($kind:expr) = $body:expr;)*) => {$(
        unsafe extern "C" fn $name(
            session: CK_SESSION_HANDLE,
            data: *mut CK_BYTE,
            data_length: CK_ULONG,
            buffer: *mut CK_BYTE,
            length: *mut CK_ULONG,
        ) -> CK_RV {
            guard(|| {
                let library = library::library()?;
                on_operation(&library, session, $kind, || {
                    // SAFETY: the arguments are the application's, under the contract of `pointers`.
                    let (data, room) = unsafe { (input(data, data_length)?, room(buffer, length)?) };
                    let output = $body(&library, session, data, room)?;
                    // SAFETY: as above; the output was made for this room.
                    unsafe { deliver(&output, buffer, length) }
                })
            })
        }
    )*};
}

data_entry! {
    C_Encrypt(Kind::Encrypt) = |l: &Library, s, data, room| l.cipher(s, Kind::Encrypt, data, room);
    C_EncryptUpdate(Kind::Encrypt) = |l: &Library, s, data, room| l.cipher_part(s, Kind::Encrypt, data, room);
    C_Decrypt(Kind::Decrypt) = |l: &Library, s, data, room| l.cipher(s, Kind::Decrypt, data, room);
    C_DecryptUpdate(Kind::Decrypt) = |l: &Library, s, data, room| l.cipher_part(s, Kind::Decrypt, data, room);
    C_Digest(Kind::Digest) = Library::digest;
    C_Sign(Kind::Sign) = |l: &Library, s, data, room| l.sign(s, Kind::Sign, data, room);
    C_SignRecover(Kind::SignRecover) = |l: &Library, s, data, room| l.sign(s, Kind::SignRecover, data, room);
    C_VerifyRecover(Kind::VerifyRecover) = |l: &Library, s, data, room| l.sign(s, Kind::VerifyRecover, data, room);
    C_DigestEncryptUpdate(Kind::Encrypt) = |l: &Library, s, data, room| l.encrypt_part_and(s, Kind::Digest, data, room);
    C_DecryptDigestUpdate(Kind::Decrypt) = |l: &Library, s, data, room| l.decrypt_part_and(s, Kind::Digest, data, room);
    C_SignEncryptUpdate(Kind::Encrypt) = |l: &Library, s, data, room| l.encrypt_part_and(s, Kind::Sign, data, room);
    C_DecryptVerifyUpdate(Kind::Decrypt) = |l: &Library, s, data, room| l.decrypt_part_and(s, Kind::Verify, data, room);
}

/// The table. Its version says 2.40 because its size does.
static FUNCTIONS: CK_FUNCTION_LIST = CK_FUNCTION_LIST {
    version: CK_VERSION { major: 2, minor: 40 },
    C_Initialize: Some(C_Initialize),
    C_Finalize: Some(C_Finalize),
    C_GetInfo: Some(C_GetInfo),
    C_GetFunctionList: Some(C_GetFunctionList),
    C_GetSlotList: Some(C_GetSlotList),
    C_GetSlotInfo: Some(C_GetSlotInfo),
    C_GetTokenInfo: Some(C_GetTokenInfo),
    C_GetMechanismList: Some(C_GetMechanismList),
    C_GetMechanismInfo: Some(C_GetMechanismInfo),
    C_InitToken: Some(C_InitToken),
    C_InitPIN: Some(C_InitPIN),
    C_SetPIN: Some(C_SetPIN),
    C_OpenSession: Some(C_OpenSession),
    C_CloseSession: Some(C_CloseSession),
    C_CloseAllSessions: Some(C_CloseAllSessions),
    C_GetSessionInfo: Some(C_GetSessionInfo),
    C_GetOperationState: Some(C_GetOperationState),
    C_SetOperationState: Some(C_SetOperationState),
    C_Login: Some(C_Login),
    C_Logout: Some(C_Logout),
    C_CreateObject: Some(C_CreateObject),
    C_CopyObject: Some(C_CopyObject),
    C_DestroyObject: Some(C_DestroyObject),
    C_GetObjectSize: Some(C_GetObjectSize),
    C_GetAttributeValue: Some(C_GetAttributeValue),
    C_SetAttributeValue: Some(C_SetAttributeValue),
    C_FindObjectsInit: Some(C_FindObjectsInit),
    C_FindObjects: Some(C_FindObjects),
    C_FindObjectsFinal: Some(C_FindObjectsFinal),
    C_EncryptInit: Some(C_EncryptInit),
    C_Encrypt: Some(C_Encrypt),
    C_EncryptUpdate: Some(C_EncryptUpdate),
    C_EncryptFinal: Some(C_EncryptFinal),
    C_DecryptInit: Some(C_DecryptInit),
    C_Decrypt: Some(C_Decrypt),
    C_DecryptUpdate: Some(C_DecryptUpdate),
    C_DecryptFinal: Some(C_DecryptFinal),
    C_DigestInit: Some(C_DigestInit),
    C_Digest: Some(C_Digest),
    C_DigestUpdate: Some(C_DigestUpdate),
    C_DigestKey: Some(C_DigestKey),
    C_DigestFinal: Some(C_DigestFinal),
    C_SignInit: Some(C_SignInit),
    C_Sign: Some(C_Sign),
    C_SignUpdate: Some(C_SignUpdate),
    C_SignFinal: Some(C_SignFinal),
    C_SignRecoverInit: Some(C_SignRecoverInit),
    C_SignRecover: Some(C_SignRecover),
    C_VerifyInit: Some(C_VerifyInit),
    C_Verify: Some(C_Verify),
    C_VerifyUpdate: Some(C_VerifyUpdate),
    C_VerifyFinal: Some(C_VerifyFinal),
    C_VerifyRecoverInit: Some(C_VerifyRecoverInit),
    C_VerifyRecover: Some(C_VerifyRecover),
    C_DigestEncryptUpdate: Some(C_DigestEncryptUpdate),
    C_DecryptDigestUpdate: Some(C_DecryptDigestUpdate),
    C_SignEncryptUpdate: Some(C_SignEncryptUpdate),
    C_DecryptVerifyUpdate: Some(C_DecryptVerifyUpdate),
    C_GenerateKey: Some(C_GenerateKey),
    C_GenerateKeyPair: Some(C_GenerateKeyPair),
    C_WrapKey: Some(C_WrapKey),
    C_UnwrapKey: Some(C_UnwrapKey),
    C_DeriveKey: Some(C_DeriveKey),
    C_SeedRandom: Some(C_SeedRandom),
    C_GenerateRandom: Some(C_GenerateRandom),
    C_GetFunctionStatus: Some(C_GetFunctionStatus),
    C_CancelFunction: Some(C_CancelFunction),
    C_WaitForSlotEvent: Some(C_WaitForSlotEvent),
};
