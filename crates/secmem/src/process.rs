//! What a process does once at its start, before it touches a secret.

use crate::sys::{Exhausted, errno};

/// What [`harden_process`] achieved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardening {
    /// other processes of the same user can neither trace nor read this one, and it leaves no core file
    pub undumpable: bool,
    /// limit of locked memory after raising it to the hard limit, bytes; `u64::MAX` = none
    pub memlock_bytes: u64,
    /// secret memory is `memfd_secret`; false: `mlock`, which root reads through `/proc/PID/mem`
    pub memfd_secret: bool,
    /// the wiping `free` is in use
    pub wiping_free: bool,
}

/// The process cannot be made fit for secrets; it must not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HardenError {
    /// A system call that cannot fail on a sane system failed.
    #[error("{call} failed with error {errno}: is a system call filter in the way?")]
    System {
        /// the call
        call: &'static str,
        /// its `errno`
        errno: i32,
    },
    /// There is no secret memory to be had.
    #[error("no secret memory")]
    Memory(#[from] Exhausted),
}

/// Makes the process unreadable to its equals and core-free, raises RLIMIT_MEMLOCK to its hard limit, maps the first secret
/// memory and stack, and makes large freed blocks go back to the kernel. Call it first in `main`, before threads and secrets.
///
/// # Errors
/// [`HardenError`]: the process must not handle secrets then.
pub fn harden_process() -> Result<Hardening, HardenError> {
    // SAFETY: changes flags of the process only.
    checked("prctl(PR_SET_DUMPABLE)", unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is valid for the call.
    checked("setrlimit(RLIMIT_CORE)", unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) })?;
    let memlock_bytes = raise_memlock()?;
    crate::malloc::give_large_blocks_back();
    crate::arena::prepare()?;
    crate::stack::prepare()?;
    crate::stack::install_panic_hook();
    let status = crate::status();
    Ok(Hardening {
        // SAFETY: reads a flag of the process.
        undumpable: unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) } == 0,
        memlock_bytes,
        memfd_secret: status.memfd_secret,
        wiping_free: status.wiping_free,
    })
}

fn raise_memlock() -> Result<u64, HardenError> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for the call to fill in.
    checked("getrlimit(RLIMIT_MEMLOCK)", unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid for the call. Raising to the hard limit needs no right.
    checked("setrlimit(RLIMIT_MEMLOCK)", unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) })?;
    Ok(limit.rlim_cur)
}

fn checked(call: &'static str, result: libc::c_int) -> Result<(), HardenError> {
    if result < 0 { Err(HardenError::System { call, errno: errno() }) } else { Ok(()) }
}
