//! `libmayfly_pkcs11.so`: Mayfly's tokens for every application that speaks PKCS#11.
//!
//! A thin face over the application socket (`crates/wire`): the module keeps sessions, checks states,
//! remembers what it has seen of objects, makes digests and random numbers, and sends everything that needs
//! a key to the agent, one frame for one operation.
//!
//! It lives in other people's processes, so there is much that it must never do: hold key bytes; start
//! threads; register exit handlers or thread-local destructors; write to standard output or error; hold a
//! lock while it waits (but for logins and Hellos, which come one after the other); panic into C; use its
//! parent's connections after a fork; trust an agent that is neither root's, `mayfly`'s nor the user's own.
//!
//! Where things are: `ffi` is the C face and, with `sys` and the one pointer in `library`, all of the unsafe
//! code; `library` the state between C_Initialize and C_Finalize; `session`, `slot`, `objects`, `operation`
//! the bodies of the functions, safe and by subject; `mechanism` the table of what is understood; `agent`
//! the way to the agent.

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!("the module passes CK_ULONG values on as they are: 64 bits, little-endian, Linux");

mod agent;
mod bytes;
mod config;
mod digest;
mod ffi;
mod library;
mod mechanism;
mod object;
mod objects;
mod operation;
mod rv;
mod session;
mod slot;
mod sys;

pub use ffi::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};
