//! Forks, threads, agents that go and come back, and data that is too large for a frame.
#![allow(clippy::unwrap_used)] // tests say what they expect by unwrapping

mod support;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use mayfly_wire::Kind;
use mayfly_wire::request::Op;
use support::Stage;
use support::agent::{Agent, whole};
use support::client::{Client, attribute, mechanism, number};

const IV: [u8; 16] = [7; 16];

/// One whole signature with a fresh session; false if anything is wrong. Allocates little and never panics,
/// so that a child can run it.
fn signs(client: &Client) -> bool {
    let slots = client.slots(true);
    let Some(slot) = slots.first() else { return false };
    let (code, session) = client.open(*slot, CKF_SERIAL_SESSION);
    let (found, keys) = client.find(session, &[attribute(CKA_LABEL, b"ec")]);
    let Some(key) = keys.first() else { return false };
    let init = client.init(client.0.C_SignInit, session, &mechanism(CKM_ECDSA, &[]), *key);
    let (signed, length, _) = client.in_out(client.0.C_Sign, session, &[1; 32], 64);
    let closed = client.close(session);
    [code, found, init, signed, closed] == [CKR_OK; 5] && length == 64
}

/// Runs `child` in a child process that has 20 seconds; gives its exit status.
fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs only the closure and _exit; the C library keeps its heap usable after fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: plain numbers; ends the child without running anything of the parent's.
        unsafe {
            libc::alarm(20);
            libc::_exit(child())
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child just made.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}

fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[test]
fn a_child_starts_anew_and_its_parent_goes_on() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
    let asked_before = agent.lock().asked.values().sum::<u32>();

    let silent = forked(|| {
        let mut info = CK_INFO::default();
        // SAFETY: a valid place.
        let code = unsafe { client.0.C_GetInfo.unwrap()(&raw mut info) };
        let states = client.session_state(session).0;
        i32::from([code, states, client.finalize()] != [CKR_CRYPTOKI_NOT_INITIALIZED; 3])
    });
    assert_eq!(silent, 0, "before its own C_Initialize nothing works");
    assert_eq!(agent.lock().asked.values().sum::<u32>(), asked_before, "and the agent hears nothing of it");

    let connections = agent.lock().connections;
    let working = forked(|| {
        let files = open_files();
        if client.initialize() != CKR_OK {
            return 1;
        }
        if open_files() != files - 1 {
            return 2; // its parent's connection is closed in the child
        }
        if client.session_state(session).0 != CKR_SESSION_HANDLE_INVALID {
            return 3;
        }
        if !signs(&client) {
            return 4;
        }
        if client.finalize() != CKR_OK { 5 } else { 0 }
    });
    assert_eq!(working, 0);
    assert_eq!(agent.lock().connections, connections + 1, "by a connection of its own");
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_USER_FUNCTIONS));
    assert!(signs(&client));
    assert_eq!(agent.lock().connections, connections + 1, "the parent's own still works");
    client.finalize();
}

#[test]
fn children_of_busy_threads_are_not_stuck() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let client = Client::table();
                while !is_over.load(Ordering::Relaxed) {
                    assert!(signs(&client));
                }
            });
        }
        for _ in 0..40 {
            // The toy agent's own threads are not in the child, but those in the parent serve it.
            let code = forked(|| {
                let is_right = client.initialize() == CKR_OK && client.slots(false).len() == 1;
                i32::from(!is_right || client.finalize() != CKR_OK)
            });
            assert_eq!(code, 0);
        }
        is_over.store(true, Ordering::Relaxed);
    });
    client.finalize();
}

#[test]
fn threads_share_the_pool() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let client = Client::table();
                for _ in 0..50 {
                    assert!(signs(&client));
                }
            });
        }
    });
    assert!(agent.lock().connections <= 8, "{}", agent.lock().connections);
    client.finalize();
}

#[test]
fn an_agent_that_restarts_is_not_noticed() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
    let key = client.by_label(session, "aes");
    let cbc = mechanism(CKM_AES_CBC, &IV);
    let f = client.0;
    assert_eq!(client.init(f.C_EncryptInit, session, &cbc, key), CKR_OK);
    assert_eq!(client.init(f.C_DecryptInit, session, &cbc, key), CKR_OK);
    assert_eq!(client.in_out(f.C_DecryptUpdate, session, &[0; 16], 16).0, CKR_OK);
    let (_, passing) = client.create(session, &[attribute(CKA_CLASS, &number(CKO_DATA))]);

    let model = agent.stop();
    model.lock().unwrap().objects.remove(&passing);
    let socket = stage.socket.clone();
    let back = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        Agent::resume(&socket, model)
    });
    assert_eq!(client.in_out(f.C_Encrypt, session, &[0; 16], 16).0, CKR_OK, "in the middle of the restart");
    let agent = back.join().unwrap();
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_USER_FUNCTIONS), "the ticket keeps the login");
    assert_eq!(client.in_out(f.C_DecryptUpdate, session, &[0; 16], 16).0, CKR_OPERATION_NOT_INITIALIZED);
    assert_eq!(client.attributes(session, passing, &[CKA_CLASS]).0, CKR_OBJECT_HANDLE_INVALID);
    assert_eq!(client.attributes(session, key, &[CKA_LABEL]).0, CKR_OK);

    let model = agent.stop();
    model.lock().unwrap().is_forgetful = true;
    let _agent = Agent::resume(&stage.socket, model);
    assert_eq!(client.find(session, &[]).0, CKR_OK);
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_PUBLIC_SESSION), "a forgotten ticket loses it");
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_USER_FUNCTIONS));
    client.finalize();
}

#[test]
fn an_agent_that_is_gone_is_told_quickly() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    let key = client.by_label(session, "aes");
    let cbc = mechanism(CKM_AES_CBC, &IV);
    assert_eq!(client.init(client.0.C_EncryptInit, session, &cbc, key), CKR_OK);
    let model = agent.stop();
    let start = Instant::now();
    assert_eq!(client.in_out(client.0.C_Encrypt, session, &[0; 16], 16).0, CKR_DEVICE_ERROR);
    assert!(start.elapsed() < Duration::from_millis(1500), "it waits for a restart, once");
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(client.init(client.0.C_EncryptInit, session, &cbc, key), CKR_DEVICE_ERROR);
    }
    let slots = client.slots(false);
    assert_eq!((slots.len(), client.slots(true).len()), (1, 0), "the slot stays, empty");
    assert_eq!(client.token_info(slots[0]).0, CKR_TOKEN_NOT_PRESENT);
    assert_eq!(client.open(slots[0], CKF_SERIAL_SESSION).0, CKR_TOKEN_NOT_PRESENT);
    assert!(start.elapsed() < Duration::from_millis(200));

    let mut slot = 0;
    // SAFETY: valid place.
    let event = |slot: &mut CK_SLOT_ID| unsafe {
        client.0.C_WaitForSlotEvent.unwrap()(CKF_DONT_BLOCK, std::ptr::from_mut(slot), std::ptr::null_mut())
    };
    assert_eq!((event(&mut slot), slot), (CKR_OK, slots[0]));
    assert_eq!(event(&mut slot), CKR_NO_EVENT);
    let _agent = Agent::resume(&stage.socket, model);
    assert_eq!((event(&mut slot), slot), (CKR_OK, slots[0]));
    assert_eq!(client.attributes(session, key, &[CKA_LABEL]).0, CKR_OK, "and all is well again");
    client.finalize();
}

#[test]
fn only_harmless_requests_are_repeated() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    let key = client.by_label(session, "aes");
    let pad = mechanism(CKM_AES_CBC_PAD, &IV);
    agent.lock().drop_next = Some(Op::Operate);
    assert_eq!(client.init(client.0.C_EncryptInit, session, &pad, key), CKR_OK);
    assert_eq!(client.in_out(client.0.C_Encrypt, session, b"x", 16).0, CKR_OK);
    assert_eq!(agent.asked(Op::Operate), 2);
    agent.lock().drop_next = Some(Op::CreateObject);
    assert_eq!(client.create(session, &[attribute(CKA_CLASS, &number(CKO_DATA))]).0, CKR_DEVICE_ERROR);
    assert_eq!(agent.asked(Op::CreateObject), 1);
    agent.lock().refuse_next = Some((CKR_DEVICE_ERROR, 20));
    assert_eq!(client.find(session, &[]).0, CKR_OK, "the agent's hint to try again");
    agent.lock().refuse_next = Some((CKR_DEVICE_ERROR, 0));
    assert_eq!(client.find(session, &[]).0, CKR_DEVICE_ERROR);
    agent.lock().refuse_next = Some((CKR_OK, 0));
    assert_eq!(client.find(session, &[]).0, CKR_GENERAL_ERROR, "a refusal that says CKR_OK");
    client.finalize();
}

#[test]
fn a_login_that_the_agent_has_ended_is_over() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
    agent.lock().refuse_next = Some((CKR_USER_NOT_LOGGED_IN, 0));
    assert_eq!(client.find(session, &[]).0, CKR_USER_NOT_LOGGED_IN);
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_PUBLIC_SESSION));
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
    client.finalize();
}

#[test]
fn a_logout_that_the_agent_missed_is_one() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    for by_logout in [true, false] {
        let client = Client::initialized();
        let session = client.session();
        assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
        agent.lock().refuse_next = Some((CKR_DEVICE_ERROR, 0));
        assert_eq!(if by_logout { client.logout(session) } else { client.close(session) }, CKR_OK);
        assert!(agent.lock().logged_in.is_some(), "it has not heard");
        let session = client.session();
        assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_PUBLIC_SESSION));
        assert!(agent.lock().logged_in.is_none(), "another application, to the agent");
        assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
        assert_eq!(client.logout(session), CKR_OK);
        client.finalize();
    }
}

#[test]
fn large_data_goes_beside_the_frames() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    let key = client.by_label(session, "aes");
    let pad = mechanism(CKM_AES_CBC_PAD, &IV);
    let f = client.0;
    for (length, buffers) in [(16_000, 0), (16_384, 1), (1 << 20, 2), (1 << 20, 2), (5_000_001, 3), (100, 3)] {
        let data: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        let right = whole(Kind::Encrypt, CKM_AES_CBC_PAD, 0, &data, &[]).unwrap();
        assert_eq!(client.init(f.C_EncryptInit, session, &pad, key), CKR_OK);
        let (code, _, sealed) = client.in_out(f.C_Encrypt, session, &data, right.len());
        assert_eq!((code, sealed == right), (CKR_OK, true), "{length}");
        assert_eq!(agent.asked(Op::LargeBuffer), buffers, "{length}");
        assert_eq!(client.init(f.C_DecryptInit, session, &pad, key), CKR_OK);
        let (code, _, plain) = client.in_out(f.C_Decrypt, session, &sealed, sealed.len());
        assert_eq!((code, plain == data), (CKR_OK, true), "{length}");
    }
    assert_eq!(agent.lock().connections, 1);
    client.finalize();
}

#[test]
fn data_over_every_limit_goes_in_pieces() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    let key = client.by_label(session, "aes");
    let pad = mechanism(CKM_AES_CBC_PAD, &IV);
    let data = vec![8; (64 << 20) + (1 << 20)];
    assert_eq!(client.init(client.0.C_EncryptInit, session, &pad, key), CKR_OK);
    let (code, _, sealed) = client.in_out(client.0.C_Encrypt, session, &data, data.len() + 16);
    let right = whole(Kind::Encrypt, CKM_AES_CBC_PAD, 0, &data, &[]).unwrap();
    assert_eq!((code, sealed == right), (CKR_OK, true));
    assert_eq!(agent.asked(Op::Update), 2);
    client.finalize();
}

#[test]
fn a_listener_that_never_answers_costs_a_second_once() {
    let stage = Stage::new();
    let listener = UnixListener::bind(&stage.socket).unwrap();
    let client = Client::initialized();
    let start = Instant::now();
    assert_eq!(client.slots(true).len(), 0);
    assert!(start.elapsed() > Duration::from_millis(900) && start.elapsed() < Duration::from_secs(2));
    let start = Instant::now();
    assert_eq!(client.slots(true).len(), 0);
    assert!(start.elapsed() < Duration::from_millis(500));
    client.finalize();
    drop(listener);
}

#[test]
fn a_foreign_listener_hears_nothing() {
    // SAFETY: reads a number.
    if unsafe { libc::geteuid() } != 0 {
        return; // needs another user's process
    }
    let stage = Stage::new();
    let folder = stage.socket.parent().unwrap();
    std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let socket = stage.socket.clone();
    // SAFETY: the child listens as another user and says by its exit status whether it heard anything.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: plain numbers.
        unsafe {
            libc::alarm(20);
            libc::setgid(65_534);
            libc::setuid(65_534);
        }
        let code = UnixListener::bind(&socket)
            .and_then(|listener| listener.accept())
            .and_then(|(mut stream, _)| stream.read(&mut [0; 64]))
            .map_or(9, |heard| i32::from(heard > 0));
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    while !stage.socket.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(50));
    let client = Client::initialized();
    assert_eq!(client.slots(true).len(), 0);
    client.finalize();
    let mut status = 0;
    // SAFETY: waits for the child made above.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!((libc::WIFEXITED(status), libc::WEXITSTATUS(status)), (true, 0), "the listener heard something");
}

#[test]
fn a_waiting_thread_is_released_by_finalize() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let waiting = std::thread::spawn(|| {
        let (client, mut slot) = (Client::table(), 0);
        // SAFETY: a valid place.
        unsafe { client.0.C_WaitForSlotEvent.unwrap()(0, &raw mut slot, std::ptr::null_mut()) }
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(client.finalize(), CKR_OK);
    assert_eq!(waiting.join().unwrap(), CKR_CRYPTOKI_NOT_INITIALIZED);
}
