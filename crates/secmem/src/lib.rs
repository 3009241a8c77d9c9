//! Locked, guarded, wiped memory: the only home of key bytes.
//!
//! | Part | Is |
//! |---|---|
//! | [`Secret`], [`SecretBytes`] | slots of an arena in `memfd_secret` memory, wiped on drop |
//! | [`on_secret_stack`] | runs a closure on a stack of the same memory; wipes stack and registers after it |
//! | `free`, `realloc`, `reallocarray` | wiping versions, exported by every executable that links this crate |
//! | [`harden_process`], [`status`], [`verify_free_slots_zero`] | set-up, report and inside check of all this |
//!
//! # What it must never do
//! * hand out memory that is not locked: no room is the error [`Exhausted`], never an ordinary buffer;
//! * clone, print or compare a secret in variable time: there is no `Clone`, `Display`, `PartialEq` or `serde` here, and
//!   `Debug` prints the name of the type;
//! * let a panic that begins on the secret stack carry its message, its payload or its frames out.
//!
//! # What is not protected
//! * Root reads what a process may read. `memfd_secret` pages are out of reach of `/proc/PID/mem`, `ptrace`, core files and
//!   `process_vm_readv`, not of a kernel module, a hypervisor or a `read` by the process itself. The fallback (`mlock`)
//!   can be read through `/proc/PID/mem`; [`status`] says which of the two is in use.
//! * What a closure copies out of the secret stack (into a `Vec`, a global, its return value) is out, and so are the unused
//!   bytes of what it returns: see [`on_secret_stack`]. The wiping `free` takes freed copies, not live ones.
//! * What was given to the kernel (pipes, sockets, files) is the kernel's.
//! * A child of `fork` has none of the mappings: it must call `exec`. Touching a secret there ends the child.
//! * x87/MMX and AMX registers are not wiped; nothing that Mayfly runs uses them.
//!
//! # Use
//! ```
//! use mayfly_secmem::{Secret, on_secret_stack, random};
//! let key = Secret::<32>::try_new_with(|bytes| random(bytes))?;
//! let first_bit = on_secret_stack(|| key.expose()[0] & 1);
//! assert!(first_bit < 2);
//! # Ok::<(), mayfly_secmem::RandomError>(())
//! ```
//! Threads that do secret work all day call [`mask_signals_on_this_thread`] once; it saves two system calls per operation.

mod arena;
mod bytes;
mod malloc;
mod process;
mod secret;
mod signals;
mod stack;
mod sys;

pub use arena::{ARENA_BYTES_MAX, ArenaStatus, DirtySlot, SECRET_BYTES_MAX, status, verify_free_slots_zero};
pub use bytes::{RandomError, ct_eq, random, wipe};
pub use process::{HardenError, Hardening, harden_process};
pub use secret::{Secret, SecretBytes};
pub use signals::mask_signals_on_this_thread;
pub use stack::{
    Dense, SECRET_STACK_BYTES, SECRET_STACKS_MAX, SecretPanic, install_panic_hook, on_secret_stack,
    runs_on_secret_stack, try_on_secret_stack,
};
pub use sys::Exhausted;
