//! What the module's tests share: a C-table client, and an agent that speaks `wire` with toy mechanisms.
//!
//! The toy's "ciphers" are XOR with the lengths, paddings and tags of the real ones: these tests are about
//! the module's states, not about cryptography, which whole-system tests check with the real agent.
#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part; tests say what they expect by unwrapping

pub mod agent;
pub mod client;

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The module's state is the process's: tests of one program that use it take turns.
static TURN: Mutex<()> = Mutex::new(());

/// A place for one test: a folder, and MAYFLY_SOCKET leading into it.
pub struct Stage {
    pub socket: PathBuf,
    _folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    pub fn new() -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        // SAFETY: tests take turns, and the module reads the environment in C_Initialize only, inside a turn.
        unsafe { std::env::set_var("MAYFLY_SOCKET", &socket) };
        // What a test that failed has left.
        client::Client::table().finalize();
        Self { socket, _folder: folder, _turn: turn }
    }
}

/// The shared library that was built beside this test.
pub fn module_file() -> PathBuf {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    deps.join("libmayfly_pkcs11.so")
}
