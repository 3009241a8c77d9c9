//! Settings of libtss2 and of the libcrypto under it, made once, before either is first used.

use libloading::os::unix::{Library, RTLD_NOW};
use std::ffi::{c_int, c_void};
use std::sync::Once;

/// libtss2's variable for its messages.
const LOG: &str = "TSS2_LOG";
/// The libcrypto that libtss2 of today's distributions uses. Another one is left as it is.
const LIBCRYPTO: &str = "libcrypto.so.3";
/// dlopen(3): only what is loaded already.
const RTLD_NOLOAD: c_int = 4;
// OPENSSL_init_crypto(3)
const NO_ADD_ALL_CIPHERS: u64 = 0x10;
const NO_ADD_ALL_DIGESTS: u64 = 0x20;

type InitCrypto = unsafe extern "C" fn(options: u64, settings: *const c_void) -> c_int;

/// To be called before anything else here.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        be_quiet();
        let _ = be_quick();
    });
}

/// libtss2 writes to standard error what we tell better; an operator may turn it on again by `TSS2_LOG`.
fn be_quiet() {
    if std::env::var_os(LOG).is_none() {
        // SAFETY: a plugin's host has one other thread, which sleeps in poll and never looks at the environment; this
        // runs before the first call into libtss2.
        unsafe { std::env::set_var(LOG, "all+none") };
    }
}

/// libtss2 makes a library context of libcrypto's for every hash, HMAC, nonce and encryption, and each begins by copying
/// the names of all algorithms of OpenSSL 1's table. Left empty, that table costs nothing: every session is quicker by
/// half, and what is computed is the same, since libtss2 gets its algorithms from the contexts' providers.
///
/// False where there is another libcrypto, or it is set up already: slower, and nothing else.
fn be_quick() -> bool {
    // SAFETY: nothing is loaded, so no initialiser runs.
    let Ok(library) = (unsafe { Library::open(Some(LIBCRYPTO), RTLD_NOLOAD | RTLD_NOW) }) else { return false };
    // SAFETY: the type is that of OPENSSL_init_crypto(3) in libcrypto 3.
    let Ok(init) = (unsafe { library.get::<InitCrypto>(b"OPENSSL_init_crypto\0") }) else { return false };
    // SAFETY: documented to be called at any time by any thread; no settings.
    unsafe { init(NO_ADD_ALL_CIPHERS | NO_ADD_ALL_DIGESTS, std::ptr::null()) == 1 }
}

#[cfg(test)]
mod tests {
    /// Where the project's own machines would lose half the speed unnoticed.
    #[test]
    fn libcrypto_takes_it() {
        // libtss2 is linked, and libcrypto with it
        assert!(super::be_quick());
    }
}
