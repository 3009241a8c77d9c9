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
use support::client::{Client, attribute, gcm, mechanism, number};

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

/// For a child: ends it with the thread that made it, killed or not, and after 20 seconds in any case.
fn live_no_longer_than_the_parent() {
    // SAFETY: plain numbers.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(20);
    }
}

/// Sets a flag in any case, or threads that wait for it would outlive a test that has failed.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits for something that comes; fails where it does not.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs `child` in a child process that has 20 seconds; gives its exit status.
fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs only the closure and _exit; the C library keeps its heap usable after fork.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        live_no_longer_than_the_parent();
        let code = child();
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) }
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
        let _over = SetAtEnd(&is_over);
        for _ in 0..40 {
            // The toy agent's own threads are not in the child, but those in the parent serve it.
            let code = forked(|| {
                let is_right = client.initialize() == CKR_OK && client.slots(false).len() == 1;
                i32::from(!is_right || client.finalize() != CKR_OK)
            });
            assert_eq!(code, 0);
        }
    });
    client.finalize();
}

#[test]
fn a_child_closes_what_other_threads_were_using() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    let key = client.by_label(session, "aes");
    let data = vec![0; 1 << 17];
    let encrypts = |client: &Client| {
        let cbc = mechanism(CKM_AES_CBC, &IV);
        assert_eq!(client.init(client.0.C_EncryptInit, session, &cbc, key), CKR_OK);
        assert_eq!(client.in_out(client.0.C_Encrypt, session, &data, data.len()).0, CKR_OK);
    };
    encrypts(&client); // with a shared buffer
    std::thread::scope(|scope| {
        // The toy is busy, so the call stays in its connection.
        let received = agent.received();
        let model = agent.lock();
        let call = scope.spawn(|| encrypts(&Client::table()));
        until("the call reaches the toy", || agent.received() > received);
        let code = forked(|| {
            let files = open_files();
            if client.initialize() != CKR_OK {
                return 1;
            }
            // The socket and the buffer.
            if open_files() != files - 2 { 2 } else { 0 }
        });
        drop(model);
        call.join().unwrap();
        assert_eq!(code, 0);
    });
    encrypts(&client);
    client.finalize();
}

#[test]
fn a_daemon_keeps_the_files_that_took_the_numbers() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    assert!(signs(&client));
    let code = forked(|| {
        // As daemons do: all that is inherited is closed, and the numbers are used again.
        // SAFETY: plain numbers; what else owned them in this process is not used any more.
        unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
        let own: Vec<_> = (0..40).map_while(|_| std::fs::File::open("/dev/null").ok()).collect();
        if own.len() != 40 || client.initialize() != CKR_OK {
            return 1;
        }
        if !signs(&client) {
            return 2;
        }
        if own.iter().all(|file| file.metadata().is_ok_and(|file| !file.is_file())) { 0 } else { 3 }
    });
    assert_eq!(code, 0);
    assert!(signs(&client));
    client.finalize();
}

#[test]
fn a_login_after_the_last_sessions_end_is_not_lost() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let last = client.session();
    assert_eq!(client.login(last, CKU_USER, "1234"), CKR_OK);
    agent.hold(Some(Op::CloseAllSessions));
    let closing = std::thread::spawn(move || Client::table().close(last));
    until("the session is closed here", || client.session_state(last).0 != CKR_OK);
    // The agent has not heard of the end yet when the next one comes.
    let next = client.session();
    let login = std::thread::spawn(move || Client::table().login(next, CKU_USER, "1234"));
    let patience = Instant::now() + Duration::from_millis(100);
    while !login.is_finished() && Instant::now() < patience {
        std::thread::yield_now();
    }
    agent.hold(None);
    assert_eq!((closing.join().unwrap(), login.join().unwrap()), (CKR_OK, CKR_OK));
    assert_eq!(client.session_state(next), (CKR_OK, CKS_RW_USER_FUNCTIONS));
    assert!(agent.lock().logged_in.is_some());
    client.finalize();
}

#[test]
fn a_login_whose_answer_was_lost_is_no_dead_end() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let session = client.session();
    agent.lock().drop_after = Some(Op::Login);
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_DEVICE_ERROR);
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_PUBLIC_SESSION));
    assert!(agent.lock().logged_in.is_some(), "to the agent it was one");
    assert_eq!(client.login(session, CKU_USER, "wrong"), CKR_PIN_INCORRECT, "the PIN is asked for all the same");
    assert_eq!(client.login(session, CKU_USER, "1234"), CKR_OK);
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_USER_FUNCTIONS));
    client.finalize();
}

#[test]
fn sessions_may_be_closed_under_those_who_use_them() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let key = client.by_label(client.session(), "ec");
    for _ in 0..50 {
        let session = client.session();
        let using = std::thread::spawn(move || {
            let client = Client::table();
            loop {
                let init = client.init(client.0.C_SignInit, session, &mechanism(CKM_ECDSA, &[]), key);
                let code = if init == CKR_OK { client.in_out(client.0.C_Sign, session, &[1; 32], 64).0 } else { init };
                if code != CKR_OK {
                    return code;
                }
            }
        });
        std::thread::yield_now();
        assert_eq!(client.close(session), CKR_OK);
        assert_eq!(using.join().unwrap(), CKR_SESSION_HANDLE_INVALID);
    }
    client.finalize();
}

#[test]
fn one_of_many_initializes() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    for _ in 0..20 {
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(|| Client::table().initialize())).collect();
        let mut codes: Vec<CK_RV> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [[CKR_OK; 1].as_slice(), &[CKR_CRYPTOKI_ALREADY_INITIALIZED; 3]].concat());
        assert_eq!(Client::table().finalize(), CKR_OK);
    }
}

#[test]
fn finalize_comes_in_the_middle_of_anything() {
    let stage = Stage::new();
    let files = open_files();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let (slot, key) = (CK_SLOT_ID::from(support::agent::slot()), client.by_label(client.session(), "ec"));
    let (is_over, done) = (AtomicBool::new(false), AtomicBool::new(false));
    let use_it = || {
        let client = Client::table();
        while !is_over.load(Ordering::Relaxed) {
            let (opened, session) = client.open(slot, CKF_SERIAL_SESSION | CKF_RW_SESSION);
            let codes = [
                opened,
                client.login(session, CKU_USER, "1234"),
                client.init(client.0.C_SignInit, session, &mechanism(CKM_ECDSA, &[]), key),
                client.in_out(client.0.C_Sign, session, &[1; 32], 64).0,
                client.close(session),
            ];
            assert!(!codes.contains(&CKR_GENERAL_ERROR), "{codes:x?}");
            done.fetch_or(codes[3] == CKR_OK, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let _over = SetAtEnd(&is_over);
        (0..4).for_each(|_| drop(scope.spawn(use_it)));
        for _ in 0..200 {
            assert_eq!((client.finalize(), client.initialize()), (CKR_OK, CKR_OK));
            std::thread::sleep(Duration::from_millis(1));
        }
        until("one of them signs", || done.load(Ordering::Relaxed));
    });
    assert!(signs(&client));
    client.finalize();
    drop(agent);
    until("both ends of all connections are closed", || open_files() <= files);
}

#[test]
fn signals_interrupt_no_call() {
    extern "C" fn nothing(_: libc::c_int) {}
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    // SAFETY: a handler that does nothing, without SA_RESTART: system calls end with EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()), 0);
    }
    let is_over = AtomicBool::new(false);
    // SAFETY: names this thread, which outlives the scope.
    let target = unsafe { libc::pthread_self() };
    std::thread::scope(|scope| {
        let _over = SetAtEnd(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                // SAFETY: the thread waits for this one to end.
                unsafe { libc::pthread_kill(target, libc::SIGUSR1) };
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        for _ in 0..500 {
            assert!(signs(&client));
        }
    });
    client.finalize();
}

#[test]
fn operations_leave_nothing_behind() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let operations = |count: usize| (0..count).for_each(|_| assert!(signs(&client)));
    operations(1000);
    let before = (open_files(), resident());
    operations(10_000);
    assert_eq!(open_files(), before.0);
    assert!(resident() < before.1 + (2 << 20), "{} bytes more", resident() - before.1);
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
        std::thread::sleep(Duration::from_millis(100));
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
    assert!(start.elapsed() < Duration::from_secs(3), "it waits for a restart, once");
    let start = Instant::now();
    for _ in 0..100 {
        assert_eq!(client.init(client.0.C_EncryptInit, session, &cbc, key), CKR_DEVICE_ERROR);
    }
    let slots = client.slots(false);
    assert_eq!((slots.len(), client.slots(true).len()), (1, 0), "the slot stays, empty");
    assert_eq!(client.token_info(slots[0]).0, CKR_TOKEN_NOT_PRESENT);
    assert_eq!(client.open(slots[0], CKF_SERIAL_SESSION).0, CKR_TOKEN_NOT_PRESENT);
    assert!(start.elapsed() < Duration::from_secs(1), "and not again");

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
    assert_eq!(client.init(client.0.C_DecryptInit, session, &pad, key), CKR_OK);
    assert_eq!(client.in_out(client.0.C_DecryptUpdate, session, &[0; 32], 32).0, CKR_OK);
    agent.lock().refuse_next = Some((CKR_DEVICE_MEMORY, 20));
    let part = client.in_out(client.0.C_DecryptUpdate, session, &[0; 32], 32).0;
    assert_eq!(part, CKR_DEVICE_MEMORY, "a part is not tried again: its refusal was the operation's end");
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
    assert_eq!(client.session_state(session), (CKR_OK, CKS_RW_USER_FUNCTIONS), "some other login was missing");
    agent.lock().refuse_next = Some((CKR_USER_NOT_LOGGED_IN, 0));
    agent.lock().logged_in = None;
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
    // A large buffer is exchanged for a small one at once.
    for (length, buffers) in [(16_000, 0), (16_384, 1), (1 << 20, 2), (1 << 20, 2), (5_000_001, 4), (100, 6)] {
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
fn what_can_be_sealed_can_be_opened() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let client = Client::initialized();
    let (session, f) = (client.session(), client.0);
    let key = client.by_label(session, "aes");
    let params = gcm(&IV[..12], b"", 128);
    let gcm = mechanism(CKM_AES_GCM, &params);
    let data = vec![8; 64 << 20];
    let most = data.len() - 16;
    assert_eq!(client.init(f.C_EncryptInit, session, &gcm, key), CKR_OK);
    assert_eq!(client.in_query(f.C_Encrypt, session, &data[..=most]).0, CKR_DATA_LEN_RANGE);
    assert_eq!(client.init(f.C_EncryptInit, session, &gcm, key), CKR_OK);
    let (code, _, sealed) = client.in_out(f.C_Encrypt, session, &data[..most], data.len());
    assert_eq!((code, sealed.len()), (CKR_OK, data.len()));
    assert_eq!(client.init(f.C_DecryptInit, session, &gcm, key), CKR_OK);
    let (code, _, plain) = client.in_out(f.C_Decrypt, session, &sealed, most);
    assert_eq!((code, plain == data[..most]), (CKR_OK, true));
    assert_eq!(agent.asked(Op::Operate), 2);

    assert_eq!(client.init(f.C_EncryptInit, session, &gcm, key), CKR_OK);
    assert_eq!(client.in_out(f.C_EncryptUpdate, session, &data[..most], most).0, CKR_OK);
    assert_eq!(client.in_out(f.C_EncryptUpdate, session, &[1], 1).0, CKR_DATA_LEN_RANGE, "in parts neither");
    assert_eq!(client.out(f.C_EncryptFinal, session, 16).0, CKR_OPERATION_NOT_INITIALIZED);
    client.finalize();
}

#[test]
fn a_listener_that_never_answers_costs_a_second_once() {
    let stage = Stage::new();
    let listener = UnixListener::bind(&stage.socket).unwrap();
    let client = Client::initialized();
    let start = Instant::now();
    assert_eq!(client.slots(true).len(), 0);
    assert!(start.elapsed() > Duration::from_millis(900) && start.elapsed() < Duration::from_secs(5));
    let start = Instant::now();
    assert_eq!(client.slots(true).len(), 0);
    assert!(start.elapsed() < Duration::from_millis(900));
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
            libc::setgid(65_534);
            libc::setuid(65_534);
        }
        live_no_longer_than_the_parent(); // last: a new user forgets it
        // At its place only when it listens.
        let early = socket.with_extension("early");
        let code = UnixListener::bind(&early)
            .and_then(|listener| std::fs::rename(&early, &socket).map(|()| listener))
            .and_then(|listener| listener.accept())
            .and_then(|(mut stream, _)| stream.read(&mut [0; 64]))
            .map_or(9, |heard| i32::from(heard > 0));
        // SAFETY: ends the child.
        unsafe { libc::_exit(code) };
    }
    until("the child listens", || stage.socket.exists());
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
