//! The state rules of PKCS#11, through the C table, with a toy agent.
#![allow(clippy::unwrap_used)] // tests say what they expect by unwrapping

mod support;

use cryptoki_sys::*;
use mayfly_wire::Kind;
use mayfly_wire::request::Op;
use support::Stage;
use support::agent::{Agent, slot, whole};
use support::client::{Client, attribute, gcm, mechanism, number};

const IV: [u8; 16] = [7; 16];

struct Scene {
    client: Client,
    session: CK_SESSION_HANDLE,
    agent: Agent,
    _stage: Stage,
}

impl Scene {
    fn new() -> Self {
        let stage = Stage::new();
        let agent = Agent::start(&stage.socket);
        let client = Client::initialized();
        let session = client.session();
        Self { client, session, agent, _stage: stage }
    }

    fn key(&self, label: &str) -> CK_OBJECT_HANDLE {
        self.client.by_label(self.session, label)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.client.finalize();
    }
}

#[test]
fn before_initialize_nothing_works_but_the_tables() {
    let _stage = Stage::new();
    let client = Client::table();
    assert_eq!(client.finalize(), CKR_CRYPTOKI_NOT_INITIALIZED);
    let f = client.0;
    let mut info = CK_INFO::default();
    // SAFETY: valid places or plain values.
    unsafe {
        assert_eq!(f.C_GetInfo.unwrap()(&raw mut info), CKR_CRYPTOKI_NOT_INITIALIZED);
        assert_eq!(f.C_GetInfo.unwrap()(std::ptr::null_mut()), CKR_CRYPTOKI_NOT_INITIALIZED);
        let mut slot = 0;
        let wait = f.C_WaitForSlotEvent.unwrap();
        assert_eq!(wait(CKF_DONT_BLOCK, &raw mut slot, std::ptr::null_mut()), CKR_CRYPTOKI_NOT_INITIALIZED);
    }
    assert_eq!((f.version.major, f.version.minor), (2, 40));
}

#[test]
fn initialize_takes_what_real_clients_give() {
    let _stage = Stage::new();
    let client = Client::table();
    let f = client.0;
    unsafe extern "C" fn lock(_: *mut std::ffi::c_void) -> CK_RV {
        CKR_OK
    }
    unsafe extern "C" fn create(_: *mut *mut std::ffi::c_void) -> CK_RV {
        CKR_OK
    }
    let with = |flags, callbacks: usize, reserved: usize| {
        let mut arguments = CK_C_INITIALIZE_ARGS {
            CreateMutex: (callbacks > 0).then_some(create as _),
            DestroyMutex: (callbacks > 1).then_some(lock as _),
            LockMutex: (callbacks > 1).then_some(lock as _),
            UnlockMutex: (callbacks > 1).then_some(lock as _),
            flags,
            pReserved: reserved as *mut _,
        };
        // SAFETY: a valid structure.
        let code = unsafe { f.C_Initialize.unwrap()((&raw mut arguments).cast()) };
        if code == CKR_OK {
            assert_eq!(client.initialize(), CKR_CRYPTOKI_ALREADY_INITIALIZED);
            // SAFETY: an argument that is not null is an error.
            assert_eq!(unsafe { f.C_Finalize.unwrap()((&raw mut arguments).cast()) }, CKR_ARGUMENTS_BAD);
            assert_eq!(client.finalize(), CKR_OK);
        }
        code
    };
    let cant_create = CKF_LIBRARY_CANT_CREATE_OS_THREADS;
    for (flags, callbacks) in [(0, 0), (CKF_OS_LOCKING_OK, 0), (CKF_OS_LOCKING_OK | cant_create, 0), (0, 4), (2, 4)] {
        assert_eq!(with(flags, callbacks, 0), CKR_OK, "{flags} {callbacks}");
    }
    assert_eq!(with(0, 1, 0), CKR_ARGUMENTS_BAD, "some callbacks are none");
    assert_eq!(with(0, 0, 8), CKR_ARGUMENTS_BAD, "pReserved");
}

#[test]
fn sessions_follow_the_rules() {
    let scene = Scene::new();
    let (client, slot) = (&scene.client, CK_SLOT_ID::from(slot()));
    assert_eq!(client.open(slot, CKF_RW_SESSION).0, CKR_SESSION_PARALLEL_NOT_SUPPORTED);
    assert_eq!(client.open(slot + 1, CKF_SERIAL_SESSION).0, CKR_SLOT_ID_INVALID);
    let (_, read_only) = client.open(slot, CKF_SERIAL_SESSION);
    assert_ne!(read_only, scene.session);
    assert_eq!(client.session_state(read_only), (CKR_OK, CKS_RO_PUBLIC_SESSION));
    assert_eq!(client.session_state(scene.session), (CKR_OK, CKS_RW_PUBLIC_SESSION));
    assert_eq!(client.session_state(9999), (CKR_SESSION_HANDLE_INVALID, 0));

    assert_eq!(client.login(read_only, CKU_SO, "12345678"), CKR_SESSION_READ_ONLY_EXISTS);
    assert_eq!(client.login(read_only, CKU_USER, "wrong"), CKR_PIN_INCORRECT);
    assert_eq!(client.login(read_only, CKU_USER, "1234"), CKR_OK);
    assert_eq!(client.session_state(scene.session), (CKR_OK, CKS_RW_USER_FUNCTIONS), "login is for all sessions");
    assert_eq!(client.login(scene.session, CKU_USER, "1234"), CKR_USER_ALREADY_LOGGED_IN);
    assert_eq!(client.login(scene.session, CKU_SO, "12345678"), CKR_USER_ANOTHER_ALREADY_LOGGED_IN);
    assert_eq!(client.login(scene.session, 77, "1234"), CKR_USER_TYPE_INVALID);
    assert_eq!(client.logout(scene.session), CKR_OK);
    assert_eq!(client.logout(scene.session), CKR_USER_NOT_LOGGED_IN);

    assert_eq!(client.login(scene.session, CKU_USER, "1234"), CKR_OK);
    assert_eq!(client.close(read_only), CKR_OK);
    assert_eq!(client.close(read_only), CKR_SESSION_HANDLE_INVALID);
    assert_eq!(client.session_state(scene.session).1, CKS_RW_USER_FUNCTIONS, "one session's end logs nobody out");
    assert_eq!(client.close(scene.session), CKR_OK);
    assert_eq!(scene.agent.lock().logged_in, None, "the last one's does");
    let again = client.session();
    assert_eq!(client.session_state(again).1, CKS_RW_PUBLIC_SESSION);
    assert_eq!(client.login(again, CKU_SO, "12345678"), CKR_OK);
    assert_eq!(client.open(slot, CKF_SERIAL_SESSION).0, CKR_SESSION_READ_WRITE_SO_EXISTS);
}

#[test]
fn pins_are_checked_for_length_and_role() {
    let scene = Scene::new();
    let (client, f) = (&scene.client, scene.client.0);
    let pin = |text: &'static str| (text.as_ptr().cast_mut(), text.len() as CK_ULONG);
    let (good, short) = (pin("4321"), pin("1"));
    // SAFETY: valid slices.
    unsafe {
        assert_eq!(f.C_InitPIN.unwrap()(scene.session, good.0, good.1), CKR_USER_NOT_LOGGED_IN);
        assert_eq!(client.login(scene.session, CKU_SO, "12345678"), CKR_OK);
        assert_eq!(f.C_InitPIN.unwrap()(scene.session, short.0, short.1), CKR_PIN_LEN_RANGE);
        assert_eq!(f.C_InitPIN.unwrap()(scene.session, good.0, good.1), CKR_OK);
        assert_eq!(f.C_SetPIN.unwrap()(scene.session, good.0, good.1, short.0, short.1), CKR_PIN_LEN_RANGE);
        assert_eq!(f.C_SetPIN.unwrap()(scene.session, good.0, good.1, good.0, good.1), CKR_OK);
        let slot = CK_SLOT_ID::from(slot());
        let label = [b' '; 32];
        let init = f.C_InitToken.unwrap();
        assert_eq!(init(slot, good.0, good.1, label.as_ptr().cast_mut()), CKR_SESSION_EXISTS);
        assert_eq!(f.C_CloseAllSessions.unwrap()(slot), CKR_OK);
        assert_eq!(init(slot, good.0, good.1, label.as_ptr().cast_mut()), CKR_PIN_INCORRECT);
    }
    assert_eq!(client.session_state(scene.session).0, CKR_SESSION_HANDLE_INVALID);
}

#[test]
fn every_init_checks_key_and_mechanism_without_asking_twice() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let (aes, ec, public) = (scene.key("aes"), scene.key("ec"), scene.key("ec-public"));
    let cbc = mechanism(CKM_AES_CBC, &IV);
    let params = gcm(&IV[..12], b"", 128);
    let ecdsa = mechanism(CKM_ECDSA, &[]);
    let cases = [
        (f.C_EncryptInit, cbc, 424_242, CKR_KEY_HANDLE_INVALID),
        (f.C_EncryptInit, mechanism(CKM_AES_CBC, &IV[..15]), aes, CKR_MECHANISM_PARAM_INVALID),
        (f.C_EncryptInit, mechanism(CKM_AES_CBC, &[]), aes, CKR_MECHANISM_PARAM_INVALID),
        (f.C_EncryptInit, mechanism(CKM_DES3_CBC, &IV), aes, CKR_MECHANISM_INVALID),
        (f.C_EncryptInit, mechanism(CKM_AES_ECB, &[]), aes, CKR_MECHANISM_INVALID),
        (f.C_EncryptInit, mechanism(CKM_AES_GCM, &params[..40]), aes, CKR_MECHANISM_PARAM_INVALID),
        (f.C_EncryptInit, ecdsa, ec, CKR_MECHANISM_INVALID),
        (f.C_EncryptInit, cbc, ec, CKR_KEY_TYPE_INCONSISTENT),
        (f.C_EncryptInit, cbc, scene.key("lame"), CKR_KEY_FUNCTION_NOT_PERMITTED),
        (f.C_EncryptInit, cbc, scene.key("only-gcm"), CKR_MECHANISM_INVALID),
        (f.C_EncryptInit, mechanism(CKM_AES_GCM, &params), scene.key("only-gcm"), CKR_OK),
        (f.C_SignInit, ecdsa, public, CKR_KEY_TYPE_INCONSISTENT),
        (f.C_VerifyInit, ecdsa, ec, CKR_KEY_TYPE_INCONSISTENT),
        (f.C_SignInit, ecdsa, aes, CKR_KEY_TYPE_INCONSISTENT),
        (f.C_SignInit, ecdsa, ec, CKR_OK),
        (f.C_SignInit, ecdsa, ec, CKR_OPERATION_ACTIVE),
        (f.C_SignRecoverInit, ecdsa, ec, CKR_MECHANISM_INVALID),
    ];
    for (index, (function, mechanism, key, code)) in cases.iter().enumerate() {
        assert_eq!(client.init(*function, s, mechanism, *key), *code, "case {index}");
    }
    let asked = scene.agent.asked(Op::Object);
    for _ in 0..50 {
        // SAFETY: a null mechanism gives an active operation up.
        assert_eq!(unsafe { f.C_SignInit.unwrap()(s, std::ptr::null_mut(), 0) }, CKR_OK);
        assert_eq!(client.init(f.C_SignInit, s, &ecdsa, ec), CKR_OK);
    }
    assert_eq!(scene.agent.asked(Op::Object), asked, "Init costs no round trip");
    assert_eq!(client.close(s), CKR_OK);
    assert_eq!(client.init(f.C_SignInit, client.session(), &ecdsa, ec), CKR_OK);
    assert_eq!(scene.agent.asked(Op::Object), asked, "nor where each operation has a session of its own");
    assert_eq!(scene.agent.asked(Op::Mechanisms), 1);
}

#[test]
fn whole_operations_by_the_book() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let (aes, data) = (scene.key("aes"), b"attack at dawn, bring coffee");
    let params = gcm(&IV[..12], b"aad", 96);
    let ways =
        [(mechanism(CKM_AES_CBC_PAD, &IV), CKM_AES_CBC_PAD, 0), (mechanism(CKM_AES_GCM, &params), CKM_AES_GCM, 12)];
    for (mechanism, code, tag) in ways {
        let right = whole(Kind::Encrypt, code, tag, data, &[]).unwrap();
        assert_eq!(client.in_out(f.C_Encrypt, s, data, 99).0, CKR_OPERATION_NOT_INITIALIZED);
        assert_eq!(client.init(f.C_EncryptInit, s, &mechanism, aes), CKR_OK);
        assert_eq!(client.in_query(f.C_Encrypt, s, data), (CKR_OK, right.len()));
        assert_eq!(client.in_out(f.C_Encrypt, s, data, right.len() - 1).0, CKR_BUFFER_TOO_SMALL);
        let asked = scene.agent.asked(Op::Operate);
        assert_eq!(client.in_out(f.C_Encrypt, s, data, right.len()), (CKR_OK, right.len(), right.clone()));
        assert_eq!(scene.agent.asked(Op::Operate), asked + 1, "one frame for one operation");
        assert_eq!(client.in_out(f.C_Encrypt, s, data, 99).0, CKR_OPERATION_NOT_INITIALIZED, "it is over");

        assert_eq!(client.init(f.C_DecryptInit, s, &mechanism, aes), CKR_OK);
        assert_eq!(client.in_out(f.C_Decrypt, s, &right, 1).0, CKR_BUFFER_TOO_SMALL);
        let back = client.in_out(f.C_Decrypt, s, &right, data.len());
        assert_eq!(back, (CKR_OK, data.len(), data.to_vec()), "exactly enough room");

        let mut damaged = right.clone();
        *damaged.last_mut().unwrap() ^= 0xff;
        assert_eq!(client.init(f.C_DecryptInit, s, &mechanism, aes), CKR_OK);
        assert_eq!(client.in_out(f.C_Decrypt, s, &damaged, 99).0, CKR_ENCRYPTED_DATA_INVALID);
        assert_eq!(client.init(f.C_DecryptInit, s, &mechanism, aes), CKR_OK, "an error ends the operation");
        assert_eq!(client.in_out(f.C_Decrypt, s, &right[..7], 99).0, CKR_ENCRYPTED_DATA_LEN_RANGE);
        assert_eq!(client.init(f.C_DecryptInit, s, &mechanism, aes), CKR_OK, "so does a wrong length");
        let mut length = 9;
        // SAFETY: a null pointer with a length is what is tested.
        let null = unsafe { f.C_Decrypt.unwrap()(s, std::ptr::null_mut(), 5, std::ptr::null_mut(), &raw mut length) };
        assert_eq!(null, CKR_ARGUMENTS_BAD);
        assert_eq!(client.init(f.C_DecryptInit, s, &mechanism, aes), CKR_OK, "so does a null pointer");
        assert_eq!(client.in_out(f.C_Decrypt, s, &right, 99).0, CKR_OK);
    }
}

#[test]
fn a_padded_plaintext_too_long_for_its_buffer_waits_for_a_larger_one() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let pad = mechanism(CKM_AES_CBC_PAD, &IV);
    let sealed = whole(Kind::Encrypt, CKM_AES_CBC_PAD, 0, &[1; 30], &[]).unwrap();
    assert_eq!(client.init(f.C_DecryptInit, s, &pad, scene.key("aes")), CKR_OK);
    // 20 of 32 bytes could be enough, by the length of the ciphertext; they are not.
    let (code, length, _) = client.in_out(f.C_Decrypt, s, &sealed, 20);
    assert_eq!((code, length), (CKR_BUFFER_TOO_SMALL, 30));
    assert_eq!(client.in_out(f.C_Decrypt, s, &sealed, 30), (CKR_OK, 30, vec![1; 30]));
}

#[test]
fn ciphers_in_parts() {
    let scene = Scene::new();
    let (client, f, s, aes) = (&scene.client, scene.client.0, scene.session, scene.key("aes"));
    let params = gcm(&IV[..12], b"aad", 128);
    let ctr = [&number(128)[..], &IV].concat();
    let ways = [
        (mechanism(CKM_AES_CBC, &IV), CKM_AES_CBC, 0),
        (mechanism(CKM_AES_CBC_PAD, &IV), CKM_AES_CBC_PAD, 0),
        (mechanism(CKM_AES_CTR, &ctr), CKM_AES_CTR, 0),
        (mechanism(CKM_AES_GCM, &params), CKM_AES_GCM, 16),
    ];
    let data: Vec<u8> = (0..65_536_u32).map(|n| (n * 7) as u8).collect();
    for (mechanism, code, tag) in ways {
        let right = whole(Kind::Encrypt, code, tag, &data, &[]).unwrap();
        for piece in [1000, 1024, 40_000] {
            let mut sealed = vec![];
            assert_eq!(client.init(f.C_EncryptInit, s, &mechanism, aes), CKR_OK);
            for part in data.chunks(piece) {
                let (_, length) = client.in_query(f.C_EncryptUpdate, s, part);
                let (code, given, bytes) = client.in_out(f.C_EncryptUpdate, s, part, length);
                assert_eq!((code, given), (CKR_OK, length));
                sealed.extend(bytes);
            }
            let (code_end, _, last) = client.out(f.C_EncryptFinal, s, 32);
            sealed.extend(last);
            assert_eq!((code_end, sealed == right), (CKR_OK, true), "{code:#x} {piece}");
        }
        if code == CKM_AES_GCM {
            continue; // has a test of its own
        }
        for piece in [1000, 1024, 40_000] {
            let mut plain = vec![];
            assert_eq!(client.init(f.C_DecryptInit, s, &mechanism, aes), CKR_OK);
            for part in right.chunks(piece) {
                // As pkcs11-tool does it: with whole blocks the output is never longer than the input.
                let room = if piece % 16 == 0 { part.len() } else { part.len() + 16 };
                let (code, _, bytes) = client.in_out(f.C_DecryptUpdate, s, part, room);
                assert_eq!(code, CKR_OK);
                plain.extend(bytes);
            }
            let (code_end, _, last) = client.out(f.C_DecryptFinal, s, 16);
            plain.extend(last);
            assert_eq!((code_end, plain == data), (CKR_OK, true), "{code:#x} {piece}");
        }
    }
}

#[test]
fn sealed_decryption_gives_nothing_before_its_tag_is_checked() {
    let scene = Scene::new();
    let (client, f, s, aes) = (&scene.client, scene.client.0, scene.session, scene.key("aes"));
    let params = gcm(&IV[..12], b"", 128);
    let gcm = mechanism(CKM_AES_GCM, &params);
    let data = vec![9; 100_000];
    let sealed = whole(Kind::Encrypt, CKM_AES_GCM, 16, &data, &[]).unwrap();
    for damage in [false, true] {
        assert_eq!(client.init(f.C_DecryptInit, s, &gcm, aes), CKR_OK);
        for (index, part) in sealed.chunks(30_000).enumerate() {
            let mut part = part.to_vec();
            part[0] ^= u8::from(damage && index == 1);
            assert_eq!(client.in_out(f.C_DecryptUpdate, s, &part, 0), (CKR_OK, 0, vec![]));
        }
        if damage {
            assert_eq!(client.out(f.C_DecryptFinal, s, data.len()).0, CKR_ENCRYPTED_DATA_INVALID);
        } else {
            let (code, length, _) = client.out(f.C_DecryptFinal, s, 1024);
            assert_eq!((code, length), (CKR_BUFFER_TOO_SMALL, data.len()));
            assert_eq!(client.out(f.C_DecryptFinal, s, data.len()), (CKR_OK, data.len(), data.clone()));
        }
        assert_eq!(client.out(f.C_DecryptFinal, s, 99).0, CKR_OPERATION_NOT_INITIALIZED);
    }
}

#[test]
fn a_whole_operation_cannot_follow_a_part() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let (aes, hmac) = (scene.key("aes"), scene.key("hmac"));
    let cbc = mechanism(CKM_AES_CBC, &IV);
    assert_eq!(client.init(f.C_EncryptInit, s, &cbc, aes), CKR_OK);
    assert_eq!(client.in_out(f.C_EncryptUpdate, s, &[0; 20], 99).0, CKR_OK);
    assert_eq!(client.in_out(f.C_Encrypt, s, &[0; 16], 99).0, CKR_OPERATION_ACTIVE);
    assert_eq!(client.init(f.C_EncryptInit, s, &cbc, aes), CKR_OK, "and that has ended it");
    assert_eq!(scene.agent.asked(Op::Cancel), 1, "for the agent too");

    assert_eq!(client.init(f.C_SignInit, s, &mechanism(CKM_SHA256_HMAC, &[]), hmac), CKR_OK);
    assert_eq!(client.input(f.C_SignUpdate, s, b"part"), CKR_OK);
    assert_eq!(client.in_out(f.C_Sign, s, b"all", 99).0, CKR_OPERATION_ACTIVE);

    let mut sha = mechanism(CKM_SHA256, &[]);
    // SAFETY: a valid mechanism.
    assert_eq!(unsafe { f.C_DigestInit.unwrap()(s, &raw mut sha) }, CKR_OK);
    assert_eq!(client.input(f.C_DigestUpdate, s, b"part"), CKR_OK);
    assert_eq!(client.in_out(f.C_Digest, s, b"all", 99).0, CKR_OPERATION_ACTIVE);
    assert_eq!(client.out(f.C_DigestFinal, s, 99).0, CKR_OPERATION_NOT_INITIALIZED);
}

#[test]
fn signatures_whole_and_in_parts() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let (ec, public, hmac) = (scene.key("ec"), scene.key("ec-public"), scene.key("hmac"));
    let eleven = number(11);
    let ways = [
        (mechanism(CKM_ECDSA, &[]), ec, public, 64),
        (mechanism(CKM_ECDSA_SHA256, &[]), ec, public, 64),
        (mechanism(CKM_ECDSA_SHA1, &[]), ec, public, 64),
        (mechanism(CKM_SHA256_HMAC, &[]), hmac, hmac, 32),
        (mechanism(CKM_SHA256_HMAC_GENERAL, &eleven), hmac, hmac, 11),
    ];
    // Long enough for Begin, Update, Finish where the module does not hash.
    for length in [0, 5, 16_384, 16_385, 70_000] {
        let data = vec![3; length];
        for (mechanism, key, verifier, bytes) in &ways {
            assert_eq!(client.init(f.C_SignInit, s, mechanism, *key), CKR_OK);
            assert_eq!(client.in_query(f.C_Sign, s, &data), (CKR_OK, *bytes));
            assert_eq!(client.in_out(f.C_Sign, s, &data, bytes - 1).0, CKR_BUFFER_TOO_SMALL);
            let (code, _, signature) = client.in_out(f.C_Sign, s, &data, 64);
            assert_eq!((code, signature.len()), (CKR_OK, *bytes));

            assert_eq!(client.init(f.C_SignInit, s, mechanism, *key), CKR_OK);
            for part in data.chunks(4000) {
                assert_eq!(client.input(f.C_SignUpdate, s, part), CKR_OK);
            }
            assert_eq!(client.out(f.C_SignFinal, s, bytes - 1), (CKR_BUFFER_TOO_SMALL, *bytes, vec![0xee; bytes - 1]));
            assert_eq!(client.out(f.C_SignFinal, s, 64), (CKR_OK, *bytes, signature.clone()), "{length}");

            let mut damaged = signature.clone();
            damaged[0] ^= 1;
            let cases =
                [(&signature[..], CKR_OK), (&damaged, CKR_SIGNATURE_INVALID), (&[1, 2], CKR_SIGNATURE_LEN_RANGE)];
            for (signature, code) in cases {
                assert_eq!(client.init(f.C_VerifyInit, s, mechanism, *verifier), CKR_OK);
                assert_eq!(client.verify(s, &data, signature), code);
                assert_eq!(client.init(f.C_VerifyInit, s, mechanism, *verifier), CKR_OK, "over in every case");
                for part in data.chunks(4000) {
                    assert_eq!(client.input(f.C_VerifyUpdate, s, part), CKR_OK);
                }
                assert_eq!(client.input(f.C_VerifyFinal, s, signature), code);
            }
        }
    }
}

#[test]
fn digests_need_no_agent_and_dual_functions_feed_both() {
    let scene = Scene::new();
    let (client, f, s, aes) = (&scene.client, scene.client.0, scene.session, scene.key("aes"));
    let mut sha = mechanism(CKM_SHA256, &[]);
    let empty = [0xe3, 0xb0, 0xc4, 0x42];
    // SAFETY: a valid mechanism.
    let digest_init = |sha: &mut CK_MECHANISM| unsafe { f.C_DigestInit.unwrap()(s, std::ptr::from_mut(sha)) };
    assert_eq!(digest_init(&mut sha), CKR_OK);
    assert_eq!(digest_init(&mut sha), CKR_OPERATION_ACTIVE);
    assert_eq!(client.in_query(f.C_Digest, s, b""), (CKR_OK, 32));
    assert_eq!(client.in_out(f.C_Digest, s, b"", 31).0, CKR_BUFFER_TOO_SMALL);
    assert_eq!(client.in_out(f.C_Digest, s, b"", 32).2[..4], empty);
    assert_eq!(digest_init(&mut mechanism(CKM_MD5, &[])), CKR_MECHANISM_INVALID);
    assert_eq!(digest_init(&mut mechanism(CKM_SHA256, &[1])), CKR_MECHANISM_PARAM_INVALID);

    let cbc = mechanism(CKM_AES_CBC, &IV);
    assert_eq!(client.init(f.C_EncryptInit, s, &cbc, aes), CKR_OK);
    let both = client.in_out(f.C_DigestEncryptUpdate, s, &[1; 32], 32);
    assert_eq!(both.0, CKR_OPERATION_NOT_INITIALIZED, "no digest is active");
    assert_eq!(digest_init(&mut sha), CKR_OK);
    assert_eq!(client.init(f.C_EncryptInit, s, &cbc, aes), CKR_OK);
    assert_eq!(client.in_out(f.C_DigestEncryptUpdate, s, &[1; 32], 31).0, CKR_BUFFER_TOO_SMALL);
    let (code, _, sealed) = client.in_out(f.C_DigestEncryptUpdate, s, &[1; 32], 32);
    assert_eq!(code, CKR_OK);
    let (_, _, digest) = client.out(f.C_DigestFinal, s, 32);
    assert_eq!(client.out(f.C_EncryptFinal, s, 32).0, CKR_OK);

    assert_eq!(digest_init(&mut sha), CKR_OK);
    assert_eq!(client.init(f.C_DecryptInit, s, &cbc, aes), CKR_OK);
    assert_eq!(client.in_out(f.C_DecryptDigestUpdate, s, &sealed, 32), (CKR_OK, 32, vec![1; 32]));
    assert_eq!(client.out(f.C_DigestFinal, s, 32).2, digest, "the data went in once, not for the short buffer");
    assert_eq!(digest_init(&mut sha), CKR_OK);
    // SAFETY: plain values.
    assert_eq!(unsafe { f.C_DigestKey.unwrap()(s, aes) }, CKR_KEY_INDIGESTIBLE);
}

#[test]
fn attributes_are_shown_one_by_one() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let open = scene.key("open");
    let (code, values) = client.attributes(s, open, &[CKA_LABEL, CKA_PRIME_1, CKA_CLASS, CKA_MODULUS]);
    assert!(code == CKR_ATTRIBUTE_SENSITIVE || code == CKR_ATTRIBUTE_TYPE_INVALID);
    assert_eq!(values, [Some(b"open".to_vec()), None, Some(number(CKO_SECRET_KEY).to_vec()), None]);

    let asked = (scene.agent.asked(Op::Object), scene.agent.asked(Op::Attributes));
    assert_eq!(client.attributes(s, open, &[CKA_LABEL, CKA_KEY_TYPE]).0, CKR_OK);
    assert_eq!((scene.agent.asked(Op::Object), scene.agent.asked(Op::Attributes)), asked, "no round trip");
    let (code, values) = client.attributes(s, open, &[CKA_LABEL, CKA_VALUE]);
    assert_eq!((code, values[1].as_deref()), (CKR_OK, Some(&b"open secret"[..])), "asked for when wanted");
    assert_eq!(scene.agent.asked(Op::Attributes), asked.1 + 2, "and never remembered");

    let mut short = [attribute(CKA_LABEL, &[0; 2]), attribute(CKA_TOKEN, &[0])];
    let mut token = [9_u8];
    short[1].pValue = token.as_mut_ptr().cast();
    // SAFETY: the values have the room that they say.
    let code = unsafe { f.C_GetAttributeValue.unwrap()(s, open, short.as_mut_ptr(), 2) };
    assert_eq!((code, short[0].ulValueLen, token), (CKR_BUFFER_TOO_SMALL, CK_UNAVAILABLE_INFORMATION, [1]));
    assert_eq!(client.attributes(s, 31337, &[CKA_LABEL]).0, CKR_OBJECT_HANDLE_INVALID);
}

#[test]
fn a_change_elsewhere_is_seen() {
    let scene = Scene::new();
    let (client, s) = (&scene.client, scene.session);
    let aes = scene.key("aes");
    assert_eq!(client.attributes(s, aes, &[CKA_ID]), (CKR_OK, vec![Some(vec![1])]));
    {
        let mut model = scene.agent.lock();
        model.version += 1;
        model.objects.get_mut(&aes).unwrap().attributes.insert(CKA_ID, vec![5]);
    }
    // Any answer that names the token brings the news.
    assert_eq!(client.find(s, &[]).0, CKR_OK);
    assert_eq!(client.attributes(s, aes, &[CKA_ID]), (CKR_OK, vec![Some(vec![5])]));
    // Without any other call it is seen after a second.
    {
        let mut model = scene.agent.lock();
        model.version += 1;
        model.objects.get_mut(&aes).unwrap().attributes.insert(CKA_ID, vec![6]);
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(client.attributes(s, aes, &[CKA_ID]), (CKR_OK, vec![Some(vec![6])]));
}

#[test]
fn objects_are_found_made_changed_and_destroyed() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    let (code, all) = client.find(s, &[]);
    assert_eq!((code, all.len()), (CKR_OK, 8), "over several pages");
    let class = number(CKO_DATA);
    let (token, session) = ([attribute(CKA_CLASS, &class), attribute(CKA_TOKEN, &[1])], [attribute(CKA_CLASS, &class)]);
    let private = [attribute(CKA_CLASS, &class), attribute(CKA_PRIVATE, &[1])];
    let (_, read_only) = client.open(slot().into(), CKF_SERIAL_SESSION);
    assert_eq!(client.create(read_only, &token).0, CKR_SESSION_READ_ONLY);
    assert_eq!(client.create(s, &private).0, CKR_USER_NOT_LOGGED_IN);
    assert_eq!(client.create(s, &[attribute(CKA_TOKEN, &[])]).0, CKR_ATTRIBUTE_VALUE_INVALID);
    let (code, kept) = client.create(s, &token);
    assert_eq!(code, CKR_OK);
    let (code, passing) = client.create(read_only, &session);
    assert_eq!(code, CKR_OK);
    assert_eq!(client.set(read_only, kept, &[attribute(CKA_LABEL, b"x")]), CKR_SESSION_READ_ONLY);
    assert_eq!(client.set(read_only, passing, &[attribute(CKA_LABEL, b"x")]), CKR_OK);
    assert_eq!(client.set(s, kept, &[attribute(CKA_LABEL, b"y")]), CKR_OK);
    assert_eq!(client.attributes(s, kept, &[CKA_LABEL]).1, [Some(b"y".to_vec())], "its own change is seen at once");
    assert_eq!(client.destroy(read_only, kept), CKR_SESSION_READ_ONLY);
    assert_eq!(client.destroy(s, kept), CKR_OK);
    assert_eq!(client.destroy(s, kept), CKR_OBJECT_HANDLE_INVALID);
    assert_eq!(client.close(read_only), CKR_OK);
    assert_eq!(client.attributes(s, passing, &[CKA_LABEL]).0, CKR_OBJECT_HANDLE_INVALID, "went with its session");

    // SAFETY: valid places and plain values.
    unsafe {
        assert_eq!(f.C_FindObjectsInit.unwrap()(s, std::ptr::null_mut(), 0), CKR_OK);
        assert_eq!(f.C_FindObjectsInit.unwrap()(s, std::ptr::null_mut(), 0), CKR_OPERATION_ACTIVE);
        assert_eq!(f.C_FindObjectsFinal.unwrap()(s), CKR_OK);
        assert_eq!(f.C_FindObjectsFinal.unwrap()(s), CKR_OPERATION_NOT_INITIALIZED);
        let mut count = 0;
        assert_eq!(f.C_FindObjects.unwrap()(s, std::ptr::null_mut(), 0, &raw mut count), CKR_OPERATION_NOT_INITIALIZED);
    }
}

#[test]
fn keys_that_want_a_login_each_time() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    assert_eq!(client.login(s, CKU_CONTEXT_SPECIFIC, "1234"), CKR_OPERATION_NOT_INITIALIZED);
    assert_eq!(client.init(f.C_EncryptInit, s, &mechanism(CKM_AES_CBC, &IV), scene.key("aes")), CKR_OK);
    assert_eq!(client.login(s, CKU_CONTEXT_SPECIFIC, "1234"), CKR_OPERATION_NOT_INITIALIZED, "not for this key");
    assert_eq!(client.init(f.C_DecryptInit, s, &mechanism(CKM_AES_CBC, &IV), scene.key("careful")), CKR_OK);
    assert_eq!(client.login(s, CKU_CONTEXT_SPECIFIC, "wrong"), CKR_PIN_INCORRECT);
    assert_eq!(client.login(s, CKU_CONTEXT_SPECIFIC, "1234"), CKR_OK);
    assert_eq!(client.in_out(f.C_Decrypt, s, &[0; 16], 16).0, CKR_OK);

    assert_eq!(client.login(s, CKU_USER, "1234"), CKR_OK);
    assert_eq!(client.init(f.C_DecryptInit, s, &mechanism(CKM_AES_CBC, &IV), scene.key("careful")), CKR_OK);
    assert_eq!(client.in_out(f.C_Decrypt, s, &[0; 16], 16).0, CKR_USER_NOT_LOGGED_IN, "once for each");
    assert_eq!(client.session_state(s), (CKR_OK, CKS_RW_USER_FUNCTIONS), "that was not the user's login");
}

#[test]
fn input_and_output_may_be_the_same_memory() {
    let scene = Scene::new();
    let (client, f, s, aes) = (&scene.client, scene.client.0, scene.session, scene.key("aes"));
    let pad = mechanism(CKM_AES_CBC_PAD, &IV);
    // Inside a frame and beside it; at the same place, and shifted either way.
    for length in [48, 40_000] {
        for (from, to) in [(0, 0), (0, 5), (5, 0), (64, 0), (0, 64)] {
            let plain: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let right = whole(Kind::Encrypt, CKM_AES_CBC_PAD, 0, &plain, &[]).unwrap();
            let mut memory = vec![0xee; length + 200];
            memory[from..][..length].copy_from_slice(&plain);
            let start = memory.as_mut_ptr();
            let turn = |function: CK_C_Encrypt, from: usize, count: usize, to: usize| {
                let mut room = right.len() as CK_ULONG;
                // SAFETY: both places lie within the memory.
                let code =
                    unsafe { function.unwrap()(s, start.add(from), count as CK_ULONG, start.add(to), &raw mut room) };
                assert_eq!(code, CKR_OK);
                room as usize
            };
            assert_eq!(client.init(f.C_EncryptInit, s, &pad, aes), CKR_OK);
            assert_eq!(turn(f.C_Encrypt, from, length, to), right.len());
            // SAFETY: as before.
            assert!(unsafe { std::slice::from_raw_parts(start.add(to), right.len()) } == right, "{length} {from} {to}");
            assert_eq!(client.init(f.C_DecryptInit, s, &pad, aes), CKR_OK);
            assert_eq!(turn(f.C_Decrypt, to, right.len(), from), length);
            // SAFETY: as before.
            assert!(unsafe { std::slice::from_raw_parts(start.add(from), length) } == plain, "{length} {from} {to}");
            assert_eq!(client.init(f.C_EncryptInit, s, &pad, aes), CKR_OK);
            let first = turn(f.C_EncryptUpdate, from, length - 8, from);
            assert!(memory[from..][..first] == right[..first], "in parts");
            assert_eq!(client.out(f.C_EncryptFinal, s, 16).0, CKR_OK);
        }
    }
}

#[test]
fn pointers_need_no_alignment() {
    let scene = Scene::new();
    let (client, f, s, aes) = (&scene.client, scene.client.0, scene.session, scene.key("aes"));
    /// A copy of a value at an odd address.
    fn odd<T: Copy>(memory: &mut [u8; 128], value: T) -> *mut T {
        let place = memory.as_mut_ptr().wrapping_add(1 - memory.as_ptr() as usize % 2).cast::<T>();
        assert!(size_of::<T>() < 127 && place as usize % 2 == 1);
        // SAFETY: within the memory.
        unsafe { place.write_unaligned(value) };
        place
    }
    let mut memory = [[0; 128]; 6];
    let [first, second, third, fourth, fifth, sixth] = &mut memory;
    let params = gcm(&IV[..12], b"aad", 128);
    let data = b"unaligned";
    // SAFETY: every pointer is valid, for the lengths beside it.
    unsafe {
        let params = odd::<[u8; 48]>(first, params.try_into().unwrap());
        let gcm = CK_MECHANISM { mechanism: CKM_AES_GCM, pParameter: params.cast(), ulParameterLen: 48 };
        assert_eq!(f.C_EncryptInit.unwrap()(s, odd(second, gcm), aes), CKR_OK);
        let (length, out) = (odd::<CK_ULONG>(third, 25), odd(fourth, [0_u8; 25]));
        let code = f.C_Encrypt.unwrap()(s, data.as_ptr().cast_mut(), 9, out.cast(), length);
        assert_eq!((code, length.read_unaligned()), (CKR_OK, 25));
        let label = odd(fifth, [0_u8; 3]);
        let template = odd(sixth, CK_ATTRIBUTE { type_: CKA_LABEL, pValue: label.cast(), ulValueLen: 3 });
        assert_eq!(f.C_GetAttributeValue.unwrap()(s, aes, template, 1), CKR_OK);
        assert_eq!((template.read_unaligned().ulValueLen, &label.read_unaligned()), (3, b"aes"));
        assert_eq!(f.C_FindObjectsInit.unwrap()(s, template, 1), CKR_OK);
        let (found, count) = (odd::<CK_OBJECT_HANDLE>(second, 0), odd::<CK_ULONG>(third, 0));
        assert_eq!(f.C_FindObjects.unwrap()(s, found, 1, count), CKR_OK);
        assert_eq!((found.read_unaligned(), count.read_unaligned()), (aes, 1));
        let session = odd::<CK_SESSION_HANDLE>(fourth, 0);
        let flags = CKF_SERIAL_SESSION;
        assert_eq!(f.C_OpenSession.unwrap()(slot().into(), flags, std::ptr::null_mut(), None, session), CKR_OK);
        assert_eq!(client.close(session.read_unaligned()), CKR_OK);
    }
}

#[test]
fn a_write_protected_token_is_read_in_read_write_sessions() {
    let scene = Scene::new();
    let (client, slot) = (&scene.client, CK_SLOT_ID::from(slot()));
    scene.agent.lock().is_write_protected = true;
    assert_eq!(client.token_info(slot).1.flags & CKF_WRITE_PROTECTED, CKF_WRITE_PROTECTED);
    let (code, session) = client.open(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION);
    assert_eq!(code, CKR_OK, "OpenSSH asks for no other");
    assert_eq!(client.init(client.0.C_SignInit, session, &mechanism(CKM_ECDSA, &[]), scene.key("ec")), CKR_OK);
}

#[test]
fn an_agent_that_wants_more_room_than_there_can_be_is_at_fault() {
    let scene = Scene::new();
    let (client, f, s) = (&scene.client, scene.client.0, scene.session);
    assert_eq!(client.init(f.C_EncryptInit, s, &mechanism(CKM_AES_CBC, &IV), scene.key("aes")), CKR_OK);
    scene.agent.lock().refuse_next = Some((CKR_BUFFER_TOO_SMALL, 0));
    assert_eq!(client.in_out(f.C_Encrypt, s, &[0; 16], 16).0, CKR_DEVICE_ERROR);
    assert_eq!(client.in_out(f.C_Encrypt, s, &[0; 16], 16).0, CKR_OPERATION_NOT_INITIALIZED);
}

#[test]
fn lists_follow_the_two_call_convention() {
    let scene = Scene::new();
    let f = scene.client.0;
    let slot = CK_SLOT_ID::from(slot());
    let mut count = 0;
    let mut codes = [0; 64];
    // SAFETY: valid places with the room that they say.
    unsafe {
        let list = f.C_GetMechanismList.unwrap();
        assert_eq!(list(slot, std::ptr::null_mut(), &raw mut count), CKR_OK);
        let all = count;
        count = all - 1;
        assert_eq!(list(slot, codes.as_mut_ptr(), &raw mut count), CKR_BUFFER_TOO_SMALL);
        assert_eq!(count, all);
        assert_eq!(list(slot, codes.as_mut_ptr(), &raw mut count), CKR_OK);
        let listed = &codes[..all as usize];
        assert!(listed.contains(&CKM_ECDSA_SHA256) && listed.contains(&CKM_SHA512));
        assert!(!listed.contains(&0x8000_0777) && !listed.contains(&CKM_AES_ECB), "only what both sides know");
        for code in listed {
            let mut info = CK_MECHANISM_INFO::default();
            assert_eq!(f.C_GetMechanismInfo.unwrap()(slot, *code, &raw mut info), CKR_OK);
            assert_ne!(info.flags, 0);
        }
        count = 0;
        let mut slots = [0; 4];
        assert_eq!(f.C_GetSlotList.unwrap()(1, slots.as_mut_ptr(), &raw mut count), CKR_BUFFER_TOO_SMALL);
        assert_eq!(count, 1);
    }
    let (code, info) = scene.client.token_info(slot);
    assert_eq!((code, info.label.starts_with(b"toy   "), &info.serialNumber[..5]), (CKR_OK, true, &b"0001 "[..]));
    let must = CKF_RNG | CKF_LOGIN_REQUIRED | CKF_TOKEN_INITIALIZED | CKF_USER_PIN_INITIALIZED;
    assert_eq!(info.flags & must, must);
    assert_eq!(info.ulRwSessionCount, 1);
}

#[test]
fn what_has_no_meaning_here_says_so() {
    let scene = Scene::new();
    let (f, s) = (scene.client.0, scene.session);
    let (mut byte, mut length) = ([0_u8; 4], 4);
    // SAFETY: valid places.
    unsafe {
        assert_eq!(f.C_GetFunctionStatus.unwrap()(s), CKR_FUNCTION_NOT_PARALLEL);
        assert_eq!(f.C_CancelFunction.unwrap()(s), CKR_FUNCTION_NOT_PARALLEL);
        assert_eq!(f.C_SeedRandom.unwrap()(s, byte.as_mut_ptr(), 4), CKR_RANDOM_SEED_NOT_SUPPORTED);
        let state = f.C_GetOperationState.unwrap();
        assert_eq!(state(s, byte.as_mut_ptr(), &raw mut length), CKR_OPERATION_NOT_INITIALIZED);
        assert_eq!(f.C_GenerateRandom.unwrap()(s, byte.as_mut_ptr(), 4), CKR_OK);
        assert_eq!(f.C_GenerateRandom.unwrap()(s + 1, byte.as_mut_ptr(), 4), CKR_SESSION_HANDLE_INVALID);
    }
    assert_ne!(byte, [0; 4]);
}
