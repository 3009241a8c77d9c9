//! A token that misbehaves on request: a PKCS#11 library in front of another one (SoftHSM), for the tests only.
//!
//! Environment: `ODD_TOKEN_MODULE` is the library behind, `ODD_TOKEN_PLAN` a file that is read at each call; each of
//! its lines is one of the `match` in [`Plan::read`]. Calls that matter are noted in the plan's path with `.log`.

#![allow(non_snake_case)]

use cryptoki_sys::*;
use std::ffi::c_void;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

/// The library behind, and the table that callers get: a copy of its, with some functions of ours.
struct Tables {
    real: CK_FUNCTION_LIST,
    ours: CK_FUNCTION_LIST,
}

// SAFETY: function pointers and a version number, never changed.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}

static TABLES: OnceLock<Tables> = OnceLock::new();

/// How the token is odd at the moment.
#[derive(Default)]
struct Plan {
    /// Flags of CK_TOKEN_INFO in addition.
    token_flags: CK_FLAGS,
    /// Looks like an HSM.
    hardware: bool,
    /// Has no AES-GCM.
    no_gcm: bool,
    /// Is pulled out.
    removed: bool,
    /// Takes an IV of its own for GCM, and gives it back.
    own_iv: bool,
    /// Takes an IV of its own for GCM, and keeps it.
    secret_iv: bool,
    /// Says that it destroyed, and did not.
    keeps: bool,
    /// Does not know CKA_COPYABLE.
    no_copyable: bool,
    /// Ends the process at a call: its name, and whether it is done before.
    dies: Option<(String, bool)>,
    /// Never answers a call of this name.
    hangs: Option<String>,
    /// Answers a call of this name by CKR_GENERAL_ERROR.
    fails: Option<String>,
}

fn plan_path() -> PathBuf {
    PathBuf::from(std::env::var_os("ODD_TOKEN_PLAN").expect("ODD_TOKEN_PLAN is set"))
}

impl Plan {
    fn read() -> Plan {
        let mut plan = Plan::default();
        for line in std::fs::read_to_string(plan_path()).unwrap_or_default().lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["final-try"] => plan.token_flags |= CKF_USER_PIN_FINAL_TRY,
                ["locked"] => plan.token_flags |= CKF_USER_PIN_LOCKED,
                ["hardware"] => plan.hardware = true,
                ["no-gcm"] => plan.no_gcm = true,
                ["removed"] => plan.removed = true,
                ["own-iv"] => plan.own_iv = true,
                ["secret-iv"] => plan.secret_iv = true,
                ["keeps"] => plan.keeps = true,
                ["no-copyable"] => plan.no_copyable = true,
                ["dies", "before", call] => plan.dies = Some((call.to_owned(), false)),
                ["dies", "after", call] => plan.dies = Some((call.to_owned(), true)),
                ["hangs", call] => plan.hangs = Some(call.to_owned()),
                ["fails", call] => plan.fails = Some(call.to_owned()),
                _ => panic!("no such line in a plan: {line}"),
            }
        }
        plan
    }

    /// Notes a call, and is odd around it.
    fn around(&self, name: &str, session: Option<CK_SESSION_HANDLE>, call: impl FnOnce() -> CK_RV) -> CK_RV {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(plan_path().with_extension("log"));
        writeln!(log.expect("the log opens"), "{name}").expect("the log takes a line");
        if self.removed {
            if let Some(session) = session {
                pull_out(session);
            }
            return CKR_DEVICE_REMOVED;
        }
        if self.fails.as_deref() == Some(name) {
            return CKR_GENERAL_ERROR;
        }
        if self.hangs.as_deref() == Some(name) {
            loop {
                std::thread::park();
            }
        }
        match &self.dies {
            Some((at, done)) if at == name => {
                if *done {
                    call();
                }
                // SAFETY: ends this process, as a crash would.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
                unreachable!("a killed process goes on")
            }
            _ => call(),
        }
    }
}

fn real() -> &'static CK_FUNCTION_LIST {
    &TABLES.get().expect("the table was asked for before any call").real
}

/// All sessions of the token end, and with them the login.
fn pull_out(session: CK_SESSION_HANDLE) {
    let mut info = CK_SESSION_INFO::default();
    let table = real();
    // SAFETY: calls of the library behind, with a valid pointer.
    unsafe {
        if table.C_GetSessionInfo.expect("v2.40")(session, &mut info) == CKR_OK {
            table.C_CloseAllSessions.expect("v2.40")(info.slotID);
        }
    }
}

/// The one function that callers look up.
///
/// # Safety
/// `list` is writable, as the standard says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    let tables = TABLES.get_or_init(|| {
        let path = std::env::var_os("ODD_TOKEN_MODULE").expect("ODD_TOKEN_MODULE is set");
        // SAFETY: the library behind is one that the test names, its table has the standard's layout, and it is never
        // unloaded.
        let real = unsafe {
            let library = Box::leak(Box::new(libloading::Library::new(path).expect("the library behind loads")));
            let get = library.get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList\0");
            let mut real = std::ptr::null_mut();
            assert_eq!(get.expect("a PKCS#11 library")(&mut real), CKR_OK);
            *real
        };
        let mut ours = real;
        ours.C_GetSlotList = Some(get_slot_list);
        ours.C_GetSlotInfo = Some(get_slot_info);
        ours.C_GetTokenInfo = Some(get_token_info);
        ours.C_GetMechanismInfo = Some(get_mechanism_info);
        ours.C_OpenSession = Some(open_session);
        ours.C_Login = Some(login);
        ours.C_FindObjectsInit = Some(find_objects_init);
        ours.C_GenerateKey = Some(generate_key);
        ours.C_GenerateKeyPair = Some(generate_key_pair);
        ours.C_DestroyObject = Some(destroy_object);
        ours.C_EncryptInit = Some(encrypt_init);
        ours.C_DecryptInit = Some(decrypt_init);
        ours.C_UnwrapKey = Some(unwrap_key);
        Tables { real, ours }
    });
    // SAFETY: writable by the contract above; the table lives for ever, and callers only read it.
    unsafe { *list = std::ptr::from_ref(&tables.ours).cast_mut() };
    CKR_OK
}

// Each function below is called by the rules of PKCS#11 and hands its arguments to the library behind, which is what
// the `SAFETY` lines rest on.

unsafe extern "C" fn get_slot_list(present: CK_BBOOL, slots: CK_SLOT_ID_PTR, count: CK_ULONG_PTR) -> CK_RV {
    if Plan::read().removed {
        // SAFETY: writable by the rules of PKCS#11.
        unsafe { *count = 0 };
        return CKR_OK;
    }
    // SAFETY: the rules of PKCS#11, see above.
    unsafe { real().C_GetSlotList.expect("v2.40")(present, slots, count) }
}

unsafe extern "C" fn get_slot_info(slot: CK_SLOT_ID, info: CK_SLOT_INFO_PTR) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let result = unsafe { real().C_GetSlotInfo.expect("v2.40")(slot, info) };
    if Plan::read().hardware {
        // SAFETY: as above.
        unsafe { (*info).flags |= CKF_HW_SLOT };
    }
    result
}

unsafe extern "C" fn get_token_info(slot: CK_SLOT_ID, info: CK_TOKEN_INFO_PTR) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let (result, info) = unsafe { (real().C_GetTokenInfo.expect("v2.40")(slot, info), &mut *info) };
    let plan = Plan::read();
    info.flags |= plan.token_flags;
    if plan.hardware {
        info.manufacturerID = *b"Example Corporation             ";
        info.model = *b"HSM 9000        ";
    }
    result
}

unsafe extern "C" fn get_mechanism_info(
    slot: CK_SLOT_ID,
    mechanism: CK_MECHANISM_TYPE,
    info: CK_MECHANISM_INFO_PTR,
) -> CK_RV {
    if mechanism == CKM_AES_GCM && Plan::read().no_gcm {
        return CKR_MECHANISM_INVALID;
    }
    // SAFETY: the rules of PKCS#11, see above.
    unsafe { real().C_GetMechanismInfo.expect("v2.40")(slot, mechanism, info) }
}

unsafe extern "C" fn open_session(
    slot: CK_SLOT_ID,
    flags: CK_FLAGS,
    application: *mut c_void,
    notify: CK_NOTIFY,
    session: CK_SESSION_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let open = || unsafe { real().C_OpenSession.expect("v2.40")(slot, flags, application, notify, session) };
    Plan::read().around("C_OpenSession", None, open)
}

unsafe extern "C" fn login(
    session: CK_SESSION_HANDLE,
    user: CK_USER_TYPE,
    pin: CK_UTF8CHAR_PTR,
    length: CK_ULONG,
) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let login = || unsafe { real().C_Login.expect("v2.40")(session, user, pin, length) };
    Plan::read().around("C_Login", Some(session), login)
}

unsafe extern "C" fn find_objects_init(
    session: CK_SESSION_HANDLE,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let find = || unsafe { real().C_FindObjectsInit.expect("v2.40")(session, template, count) };
    Plan::read().around("C_FindObjectsInit", Some(session), find)
}

unsafe extern "C" fn generate_key(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    let plan = Plan::read();
    // SAFETY: readable by the rules of PKCS#11.
    let attributes = unsafe { std::slice::from_raw_parts(template, count as usize) };
    if plan.no_copyable && attributes.iter().any(|attribute| attribute.type_ == CKA_COPYABLE) {
        return CKR_ATTRIBUTE_TYPE_INVALID;
    }
    // SAFETY: the rules of PKCS#11, see above.
    let generate = || unsafe { real().C_GenerateKey.expect("v2.40")(session, mechanism, template, count, key) };
    plan.around("C_GenerateKey", Some(session), generate)
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn generate_key_pair(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    public: CK_ATTRIBUTE_PTR,
    public_count: CK_ULONG,
    private: CK_ATTRIBUTE_PTR,
    private_count: CK_ULONG,
    public_key: CK_OBJECT_HANDLE_PTR,
    private_key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let generate = || unsafe {
        real().C_GenerateKeyPair.expect("v2.40")(
            session,
            mechanism,
            public,
            public_count,
            private,
            private_count,
            public_key,
            private_key,
        )
    };
    Plan::read().around("C_GenerateKeyPair", Some(session), generate)
}

unsafe extern "C" fn destroy_object(session: CK_SESSION_HANDLE, object: CK_OBJECT_HANDLE) -> CK_RV {
    let plan = Plan::read();
    if plan.keeps {
        return CKR_OK;
    }
    // SAFETY: the rules of PKCS#11, see above.
    plan.around("C_DestroyObject", Some(session), || unsafe { real().C_DestroyObject.expect("v2.40")(session, object) })
}

unsafe extern "C" fn decrypt_init(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let decrypt = || unsafe { real().C_DecryptInit.expect("v2.40")(session, mechanism, key) };
    Plan::read().around("C_DecryptInit", Some(session), decrypt)
}

#[allow(clippy::too_many_arguments)]
unsafe extern "C" fn unwrap_key(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    by: CK_OBJECT_HANDLE,
    wrapped: CK_BYTE_PTR,
    length: CK_ULONG,
    template: CK_ATTRIBUTE_PTR,
    count: CK_ULONG,
    key: CK_OBJECT_HANDLE_PTR,
) -> CK_RV {
    // SAFETY: the rules of PKCS#11, see above.
    let unwrap =
        || unsafe { real().C_UnwrapKey.expect("v2.40")(session, mechanism, by, wrapped, length, template, count, key) };
    Plan::read().around("C_UnwrapKey", Some(session), unwrap)
}

unsafe extern "C" fn encrypt_init(
    session: CK_SESSION_HANDLE,
    mechanism: CK_MECHANISM_PTR,
    key: CK_OBJECT_HANDLE,
) -> CK_RV {
    let plan = Plan::read();
    // SAFETY: a mechanism and its parameters, valid and writable by the rules of PKCS#11 (v3.0 lets a token write the
    // IV); `odd` and `mechanism` live until the library behind has returned, and SoftHSM copies them.
    unsafe {
        let mut mechanism = *mechanism;
        let mut odd = *b"odd token IV";
        let mut params = CK_GCM_PARAMS::default();
        if mechanism.mechanism == CKM_AES_GCM && (plan.own_iv || plan.secret_iv) {
            params = *mechanism.pParameter.cast::<CK_GCM_PARAMS>();
            if plan.own_iv {
                std::ptr::copy_nonoverlapping(odd.as_ptr(), params.pIv, odd.len());
            } else {
                params.pIv = odd.as_mut_ptr();
            }
            mechanism.pParameter = (&raw mut params).cast();
        }
        let result = real().C_EncryptInit.expect("v2.40")(session, &mut mechanism, key);
        std::hint::black_box((&odd, &params));
        result
    }
}
