//! Every function of the C table with null pointers, absurd lengths and wrong numbers, with and without an
//! agent: an error, or success, and never a crash or a wait.
#![allow(clippy::unwrap_used)] // tests say what they expect by unwrapping

mod support;

use std::time::{Duration, Instant};

use cryptoki_sys::*;
use support::Stage;
use support::agent::{Agent, slot};
use support::client::Client;

/// Arguments of each function in the table's order: `s` a number, `p` a pointer.
const SIGNATURES: [(&str, &str); 68] = [
    ("C_Initialize", "p"),
    ("C_Finalize", "p"),
    ("C_GetInfo", "p"),
    ("C_GetFunctionList", "p"),
    ("C_GetSlotList", "spp"),
    ("C_GetSlotInfo", "sp"),
    ("C_GetTokenInfo", "sp"),
    ("C_GetMechanismList", "spp"),
    ("C_GetMechanismInfo", "ssp"),
    ("C_InitToken", "spsp"),
    ("C_InitPIN", "sps"),
    ("C_SetPIN", "spsps"),
    ("C_OpenSession", "ssppp"),
    ("C_CloseSession", "s"),
    ("C_CloseAllSessions", "s"),
    ("C_GetSessionInfo", "sp"),
    ("C_GetOperationState", "spp"),
    ("C_SetOperationState", "spsss"),
    ("C_Login", "ssps"),
    ("C_Logout", "s"),
    ("C_CreateObject", "spsp"),
    ("C_CopyObject", "sspsp"),
    ("C_DestroyObject", "ss"),
    ("C_GetObjectSize", "ssp"),
    ("C_GetAttributeValue", "ssps"),
    ("C_SetAttributeValue", "ssps"),
    ("C_FindObjectsInit", "sps"),
    ("C_FindObjects", "spsp"),
    ("C_FindObjectsFinal", "s"),
    ("C_EncryptInit", "sps"),
    ("C_Encrypt", "spspp"),
    ("C_EncryptUpdate", "spspp"),
    ("C_EncryptFinal", "spp"),
    ("C_DecryptInit", "sps"),
    ("C_Decrypt", "spspp"),
    ("C_DecryptUpdate", "spspp"),
    ("C_DecryptFinal", "spp"),
    ("C_DigestInit", "sp"),
    ("C_Digest", "spspp"),
    ("C_DigestUpdate", "sps"),
    ("C_DigestKey", "ss"),
    ("C_DigestFinal", "spp"),
    ("C_SignInit", "sps"),
    ("C_Sign", "spspp"),
    ("C_SignUpdate", "sps"),
    ("C_SignFinal", "spp"),
    ("C_SignRecoverInit", "sps"),
    ("C_SignRecover", "spspp"),
    ("C_VerifyInit", "sps"),
    ("C_Verify", "spsps"),
    ("C_VerifyUpdate", "sps"),
    ("C_VerifyFinal", "sps"),
    ("C_VerifyRecoverInit", "sps"),
    ("C_VerifyRecover", "spspp"),
    ("C_DigestEncryptUpdate", "spspp"),
    ("C_DecryptDigestUpdate", "spspp"),
    ("C_SignEncryptUpdate", "spspp"),
    ("C_DecryptVerifyUpdate", "spspp"),
    ("C_GenerateKey", "sppsp"),
    ("C_GenerateKeyPair", "sppspspp"),
    ("C_WrapKey", "spsspp"),
    ("C_UnwrapKey", "spspspsp"),
    ("C_DeriveKey", "spspsp"),
    ("C_SeedRandom", "sps"),
    ("C_GenerateRandom", "sps"),
    ("C_GetFunctionStatus", "s"),
    ("C_CancelFunction", "s"),
    ("C_WaitForSlotEvent", "spp"),
];

type Any = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64) -> CK_RV;

/// The table as an array: the pointers stand after the version, padded to one pointer.
fn function(client: &Client, index: usize) -> Any {
    let table: *const CK_FUNCTION_LIST = client.0;
    assert_eq!(size_of::<CK_FUNCTION_LIST>(), (1 + SIGNATURES.len()) * 8);
    // SAFETY: within the table, whose entries are C functions of at most eight word-sized arguments; in the
    // C convention of this platform a function does not see arguments that it does not have.
    unsafe { table.cast::<Any>().add(1 + index).read() }
}

/// A small generator: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % below
    }
}

fn call_with_garbage(client: &Client, index: usize, session: u64, objects: &[u64], numbers: &mut Numbers) -> CK_RV {
    let (name, signature) = SIGNATURES[index];
    let slot = u64::from(slot());
    let scalars = [0, 1, 31, 256, session, session, slot, objects[0], objects[1], 1 << 62, i64::MAX as u64, u64::MAX];
    let starts = [0, 64, CKM_AES_CBC, CKM_ECDSA, CKM_SHA256, CKM_AES_GCM, CKM_SHA256_HMAC, CKM_AES_KEY_GEN];
    let mut buffers = [[0_u64; 1024]; 8];
    let mut arguments = [0; 8];
    for (place, kind) in signature.bytes().enumerate() {
        arguments[place] = match kind {
            b's' => scalars[numbers.next(scalars.len())],
            _ if numbers.next(3) == 0 => 0,
            _ => {
                buffers[place][0] = starts[numbers.next(starts.len())];
                buffers[place].as_mut_ptr() as u64
            }
        };
    }
    if name == "C_WaitForSlotEvent" {
        arguments[0] |= CKF_DONT_BLOCK;
    }
    let [a, b, c, d, e, f, g, h] = arguments;
    // SAFETY: each pointer is null or has 8 KiB of numbers and nulls; lengths are either short enough or
    // beyond every memory.
    unsafe { function(client, index)(a, b, c, d, e, f, g, h) }
}

/// A session (that of the last call, if it lives still) and the toy's objects.
fn ready(client: &Client, with_agent: bool, logged_in: bool) -> (u64, Vec<u64>) {
    if client.initialize() == CKR_OK && with_agent {
        let session = client.session();
        if logged_in {
            client.login(session, CKU_USER, "1234");
        }
        LAST.store(session, std::sync::atomic::Ordering::Relaxed);
    }
    let session = LAST.load(std::sync::atomic::Ordering::Relaxed);
    if with_agent && client.session_state(session).0 != CKR_OK {
        client.finalize();
        return ready(client, with_agent, logged_in);
    }
    (session, (1..9).collect())
}

static LAST: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);

#[test]
fn nothing_crashes_and_nothing_waits() {
    for with_agent in [false, true] {
        let stage = Stage::new();
        let agent = with_agent.then(|| Agent::start(&stage.socket));
        let client = Client::table();
        let mut numbers = Numbers(with_agent.into());
        let start = Instant::now();
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..400 {
            for (index, (name, _)) in SIGNATURES.iter().enumerate() {
                let (session, objects) = ready(&client, with_agent, round % 2 == 0);
                // Often enough for one thing to lead to another.
                for _ in 0..3 {
                    let code = call_with_garbage(&client, index, session, &objects, &mut numbers);
                    assert_ne!(code, CKR_GENERAL_ERROR, "{name} panicked?");
                    seen.insert(code);
                }
            }
        }
        client.finalize();
        assert!(!with_agent || seen.len() > 25, "the calls go deep enough to fail in many ways: {seen:x?}");
        assert!(start.elapsed() < Duration::from_secs(60));
        drop(agent);
    }
}

#[test]
fn all_null_is_an_error_everywhere() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    for (index, (name, signature)) in SIGNATURES.iter().enumerate().skip(2) {
        let first = if signature.starts_with('s') { session } else { 0 };
        // SAFETY: null pointers and small numbers.
        let code = unsafe { function(&client, index)(first, 0, 0, 0, 0, 0, 0, 0) };
        // A session handle is no slot id; no data is fine data; nothing is a template that everything matches.
        let may_succeed = ["C_FindObjectsInit", "C_FindObjectsFinal", "C_GenerateRandom", "C_CloseSession"];
        assert!(code != CKR_OK || may_succeed.contains(name), "{name}");
        assert_ne!(code, CKR_GENERAL_ERROR, "{name}");
        if *name == "C_CloseSession" {
            break;
        }
    }
    client.finalize();
}

#[test]
fn every_entry_is_filled() {
    for (index, (name, _)) in SIGNATURES.iter().enumerate() {
        assert_ne!(function(&Client::table(), index) as usize, 0, "{name}");
    }
}

#[test]
fn interfaces_are_found_or_refused() {
    let (mut count, mut list) = (0, [CK_INTERFACE::default(); 2]);
    let mut interface: *mut CK_INTERFACE = std::ptr::null_mut();
    let name = |text: &'static std::ffi::CStr| text.as_ptr().cast_mut().cast::<CK_UTF8CHAR>();
    let mut version = CK_VERSION { major: 2, minor: 40 };
    let mut later = CK_VERSION { major: 3, minor: 0 };
    let null = std::ptr::null_mut::<CK_VERSION>();
    let get = mayfly_pkcs11::C_GetInterface;
    // SAFETY: valid places, C strings or null.
    unsafe {
        assert_eq!(mayfly_pkcs11::C_GetInterfaceList(std::ptr::null_mut(), &raw mut count), CKR_OK);
        assert_eq!(mayfly_pkcs11::C_GetInterfaceList(list.as_mut_ptr(), &raw mut count), CKR_OK);
        assert_eq!(mayfly_pkcs11::C_GetInterfaceList(list.as_mut_ptr(), std::ptr::null_mut()), CKR_ARGUMENTS_BAD);
        assert_eq!(count, 1);
        for version in [null, &raw mut version] {
            assert_eq!(get(name(c"PKCS 11"), version, &raw mut interface, 0), CKR_OK);
        }
        assert_eq!(get(std::ptr::null_mut(), null, &raw mut interface, 0), CKR_OK);
        assert_eq!((*interface).pFunctionList, list[0].pFunctionList);
        assert_eq!(get(name(c"PKCS 12"), null, &raw mut interface, 0), CKR_ARGUMENTS_BAD);
        assert_eq!(get(name(c"PKCS 11"), &raw mut later, &raw mut interface, 0), CKR_ARGUMENTS_BAD);
        assert_eq!(get(name(c"PKCS 11"), null, &raw mut interface, CKF_INTERFACE_FORK_SAFE), CKR_ARGUMENTS_BAD);
        assert_eq!(get(name(c"PKCS 11"), null, std::ptr::null_mut(), 0), CKR_ARGUMENTS_BAD);
    }
}
