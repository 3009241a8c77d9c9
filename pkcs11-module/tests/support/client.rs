//! The function table as a Rust caller likes it: slices in, (code, value) out.

use std::ptr::{null, null_mut};

use cryptoki_sys::*;

pub struct Client(pub &'static CK_FUNCTION_LIST);

/// An attribute whose value lives as long as the slice.
pub fn attribute(kind: CK_ATTRIBUTE_TYPE, value: &[u8]) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE { type_: kind, pValue: value.as_ptr().cast_mut().cast(), ulValueLen: value.len() as CK_ULONG }
}

pub fn number(value: CK_ULONG) -> [u8; 8] {
    value.to_ne_bytes()
}

/// A mechanism whose parameter lives as long as the slice.
pub fn mechanism(code: CK_MECHANISM_TYPE, parameter: &[u8]) -> CK_MECHANISM {
    let pointer = if parameter.is_empty() { null() } else { parameter.as_ptr() };
    CK_MECHANISM { mechanism: code, pParameter: pointer.cast_mut().cast(), ulParameterLen: parameter.len() as CK_ULONG }
}

/// CK_GCM_PARAMS as bytes.
pub fn gcm(iv: &[u8], aad: &[u8], tag_bits: CK_ULONG) -> Vec<u8> {
    let words =
        [iv.as_ptr() as u64, iv.len() as u64, iv.len() as u64 * 8, aad.as_ptr() as u64, aad.len() as u64, tag_bits];
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Bytes after each output buffer that must stay as they are.
const FENCE: usize = 64;

/// What a call has put into its room, and nowhere else.
fn within(mut buffer: Vec<u8>, room: usize, length: CK_ULONG) -> Vec<u8> {
    assert!(buffer[room..].iter().all(|byte| *byte == 0xee), "written over the end of {room} bytes");
    buffer.truncate(room.min(length as usize));
    buffer
}

type InOut = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, CK_ULONG, *mut u8, *mut CK_ULONG) -> CK_RV;
type Out = unsafe extern "C" fn(CK_SESSION_HANDLE, *mut u8, *mut CK_ULONG) -> CK_RV;

impl Client {
    pub fn table() -> Self {
        let mut list = null_mut();
        // SAFETY: a valid place for a pointer.
        let code = unsafe { mayfly_pkcs11::C_GetFunctionList(&raw mut list) };
        assert_eq!(code, CKR_OK);
        // SAFETY: the table is a static of the module.
        Self(unsafe { &*list })
    }

    /// Initialised for a test.
    pub fn initialized() -> Self {
        let client = Self::table();
        assert_eq!(client.initialize(), CKR_OK);
        client
    }

    pub fn initialize(&self) -> CK_RV {
        // SAFETY: null is a valid argument.
        unsafe { self.0.C_Initialize.unwrap()(null_mut()) }
    }

    pub fn finalize(&self) -> CK_RV {
        // SAFETY: null is the valid argument.
        unsafe { self.0.C_Finalize.unwrap()(null_mut()) }
    }

    pub fn slots(&self, only_with_token: bool) -> Vec<CK_SLOT_ID> {
        let mut count = 0;
        let flag = CK_BBOOL::from(only_with_token);
        // SAFETY: a length query.
        assert_eq!(unsafe { self.0.C_GetSlotList.unwrap()(flag, null_mut(), &raw mut count) }, CKR_OK);
        let mut slots = vec![0; count as usize];
        // SAFETY: room for as many.
        assert_eq!(unsafe { self.0.C_GetSlotList.unwrap()(flag, slots.as_mut_ptr(), &raw mut count) }, CKR_OK);
        slots
    }

    pub fn token_info(&self, slot: CK_SLOT_ID) -> (CK_RV, CK_TOKEN_INFO) {
        let mut info = CK_TOKEN_INFO::default();
        // SAFETY: a valid place.
        (unsafe { self.0.C_GetTokenInfo.unwrap()(slot, &raw mut info) }, info)
    }

    pub fn open(&self, slot: CK_SLOT_ID, flags: CK_FLAGS) -> (CK_RV, CK_SESSION_HANDLE) {
        let mut session = 0;
        // SAFETY: a valid place.
        let code = unsafe { self.0.C_OpenSession.unwrap()(slot, flags, null_mut(), None, &raw mut session) };
        (code, session)
    }

    /// A read-write session with the first token.
    pub fn session(&self) -> CK_SESSION_HANDLE {
        let slot = self.slots(true)[0];
        let (code, session) = self.open(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION);
        assert_eq!(code, CKR_OK);
        session
    }

    pub fn close(&self, session: CK_SESSION_HANDLE) -> CK_RV {
        // SAFETY: plain values.
        unsafe { self.0.C_CloseSession.unwrap()(session) }
    }

    pub fn session_state(&self, session: CK_SESSION_HANDLE) -> (CK_RV, CK_STATE) {
        let mut info = CK_SESSION_INFO::default();
        // SAFETY: a valid place.
        (unsafe { self.0.C_GetSessionInfo.unwrap()(session, &raw mut info) }, info.state)
    }

    pub fn login(&self, session: CK_SESSION_HANDLE, user: CK_USER_TYPE, pin: &str) -> CK_RV {
        // SAFETY: the slice is valid.
        unsafe { self.0.C_Login.unwrap()(session, user, pin.as_ptr().cast_mut(), pin.len() as CK_ULONG) }
    }

    pub fn logout(&self, session: CK_SESSION_HANDLE) -> CK_RV {
        // SAFETY: plain values.
        unsafe { self.0.C_Logout.unwrap()(session) }
    }

    pub fn create(&self, session: CK_SESSION_HANDLE, template: &[CK_ATTRIBUTE]) -> (CK_RV, CK_OBJECT_HANDLE) {
        let mut object = 0;
        // SAFETY: the slice is valid, and its attributes' values.
        let code = unsafe {
            self.0.C_CreateObject.unwrap()(
                session,
                template.as_ptr().cast_mut(),
                template.len() as CK_ULONG,
                &raw mut object,
            )
        };
        (code, object)
    }

    pub fn destroy(&self, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> CK_RV {
        // SAFETY: plain values.
        unsafe { self.0.C_DestroyObject.unwrap()(session, object) }
    }

    pub fn set(&self, session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE, template: &[CK_ATTRIBUTE]) -> CK_RV {
        // SAFETY: the slice is valid, and its attributes' values.
        unsafe {
            self.0.C_SetAttributeValue.unwrap()(
                session,
                object,
                template.as_ptr().cast_mut(),
                template.len() as CK_ULONG,
            )
        }
    }

    pub fn find(&self, session: CK_SESSION_HANDLE, template: &[CK_ATTRIBUTE]) -> (CK_RV, Vec<CK_OBJECT_HANDLE>) {
        // SAFETY: the slice is valid, and its attributes' values.
        let code = unsafe {
            self.0.C_FindObjectsInit.unwrap()(session, template.as_ptr().cast_mut(), template.len() as CK_ULONG)
        };
        if code != CKR_OK {
            return (code, vec![]);
        }
        let (mut all, mut some, mut count) = (vec![], [0; 3], 1);
        while count > 0 {
            // SAFETY: room for three.
            let code = unsafe { self.0.C_FindObjects.unwrap()(session, some.as_mut_ptr(), 3, &raw mut count) };
            assert_eq!(code, CKR_OK);
            all.extend_from_slice(&some[..count as usize]);
        }
        // SAFETY: plain values.
        (unsafe { self.0.C_FindObjectsFinal.unwrap()(session) }, all)
    }

    /// The handle of the object with this label.
    pub fn by_label(&self, session: CK_SESSION_HANDLE, label: &str) -> CK_OBJECT_HANDLE {
        let (code, found) = self.find(session, &[attribute(CKA_LABEL, label.as_bytes())]);
        assert_eq!((code, found.len()), (CKR_OK, 1), "{label}");
        found[0]
    }

    /// Values of attributes by a length query and a fetch; `None` for those that are not shown.
    pub fn attributes(
        &self,
        session: CK_SESSION_HANDLE,
        object: CK_OBJECT_HANDLE,
        kinds: &[CK_ATTRIBUTE_TYPE],
    ) -> (CK_RV, Vec<Option<Vec<u8>>>) {
        let mut template: Vec<CK_ATTRIBUTE> =
            kinds.iter().map(|kind| CK_ATTRIBUTE { type_: *kind, pValue: null_mut(), ulValueLen: 0 }).collect();
        let get = self.0.C_GetAttributeValue.unwrap();
        // SAFETY: the slice is valid; its pointers are null.
        let queried = unsafe { get(session, object, template.as_mut_ptr(), template.len() as CK_ULONG) };
        let mut values: Vec<Option<Vec<u8>>> = template
            .iter()
            .map(|a| (a.ulValueLen != CK_UNAVAILABLE_INFORMATION).then(|| vec![0; a.ulValueLen as usize]))
            .collect();
        for (attribute, value) in template.iter_mut().zip(&mut values) {
            attribute.pValue = value.as_mut().map_or(null_mut(), |value| value.as_mut_ptr().cast());
        }
        // SAFETY: each pointer has the room that was asked for.
        let fetched = unsafe { get(session, object, template.as_mut_ptr(), template.len() as CK_ULONG) };
        assert_eq!(queried, fetched);
        (fetched, values)
    }

    /// C_EncryptInit and the like.
    pub fn init(
        &self,
        function: CK_C_EncryptInit,
        session: CK_SESSION_HANDLE,
        mechanism: &CK_MECHANISM,
        key: CK_OBJECT_HANDLE,
    ) -> CK_RV {
        // SAFETY: the mechanism and its parameter are valid.
        unsafe { function.unwrap()(session, std::ptr::from_ref(mechanism).cast_mut(), key) }
    }

    /// Data in, data out, with a buffer of `room` bytes; gives code, named length, and what is in the buffer.
    pub fn in_out(
        &self,
        function: Option<InOut>,
        session: CK_SESSION_HANDLE,
        data: &[u8],
        room: usize,
    ) -> (CK_RV, usize, Vec<u8>) {
        let (mut buffer, mut length) = (vec![0xee; room + FENCE], room as CK_ULONG);
        // SAFETY: both slices are valid.
        let code = unsafe {
            function.unwrap()(
                session,
                data.as_ptr().cast_mut(),
                data.len() as CK_ULONG,
                buffer.as_mut_ptr(),
                &raw mut length,
            )
        };
        (code, length as usize, within(buffer, room, length))
    }

    /// The length that a function names.
    pub fn in_query(&self, function: Option<InOut>, session: CK_SESSION_HANDLE, data: &[u8]) -> (CK_RV, usize) {
        let mut length = 0;
        // SAFETY: a valid slice; a null buffer asks for the length.
        let code = unsafe {
            function.unwrap()(session, data.as_ptr().cast_mut(), data.len() as CK_ULONG, null_mut(), &raw mut length)
        };
        (code, length as usize)
    }

    /// Data out.
    pub fn out(&self, function: Option<Out>, session: CK_SESSION_HANDLE, room: usize) -> (CK_RV, usize, Vec<u8>) {
        let (mut buffer, mut length) = (vec![0xee; room + FENCE], room as CK_ULONG);
        // SAFETY: a valid slice.
        let code = unsafe { function.unwrap()(session, buffer.as_mut_ptr(), &raw mut length) };
        (code, length as usize, within(buffer, room, length))
    }

    /// Data in.
    pub fn input(&self, function: CK_C_SignUpdate, session: CK_SESSION_HANDLE, data: &[u8]) -> CK_RV {
        // SAFETY: a valid slice.
        unsafe { function.unwrap()(session, data.as_ptr().cast_mut(), data.len() as CK_ULONG) }
    }

    pub fn verify(&self, session: CK_SESSION_HANDLE, data: &[u8], signature: &[u8]) -> CK_RV {
        // SAFETY: valid slices.
        unsafe {
            self.0.C_Verify.unwrap()(
                session,
                data.as_ptr().cast_mut(),
                data.len() as CK_ULONG,
                signature.as_ptr().cast_mut(),
                signature.len() as CK_ULONG,
            )
        }
    }
}
