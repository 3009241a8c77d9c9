//! Wiping `free`, `realloc` and `reallocarray`: what is given back to the C library holds nothing any more.
//!
//! Every executable that links this crate exports them, so Rust, C code and libraries opened later all use them; glibc's own
//! allocator stays underneath. Other C libraries than glibc do not export the functions that this needs; there it is absent
//! and [`crate::status`] says so. Cost: 3 ns for small blocks, 70 ns for 16 KiB. Growing a large `Vec` by pushing copies and
//! wipes each time: reserve.
//!
//! Must never be linked into a shared library that others load: an application's allocator is not ours. And it must call
//! nothing that allocates or changes `errno`.

/// Blocks from this size on are mapped on their own and unmapped when they are freed, bytes.
const MAPPED_FROM_BYTES: libc::c_int = 1024 * 1024;

/// Makes large blocks (Argon2id's memory, data of 64 MiB) go back to the kernel when they are freed. By itself glibc raises the bound to the
/// largest block that was ever freed (mallopt(3), M_MMAP_THRESHOLD), and each thread's arena then keeps such a block for ever.
pub(crate) fn give_large_blocks_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: changes a setting of the allocator; a refusal costs memory only.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
    };
}

#[cfg(target_env = "gnu")]
mod gnu {
    use crate::bytes::keep_stores;
    use libc::{c_void, size_t};
    use std::ptr;

    unsafe extern "C" {
        fn __libc_free(block: *mut c_void);
        fn __libc_malloc(bytes: size_t) -> *mut c_void;
    }

    /// `free(3)` that wipes the whole block first.
    ///
    /// # Safety
    /// As in C: `block` is null or came from this allocator and is not used again.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn free(block: *mut c_void) {
        if block.is_null() {
            return;
        }
        // SAFETY: the caller gives up a live block of this allocator, of which all `malloc_usable_size` bytes may be written.
        unsafe {
            wipe(block.cast(), libc::malloc_usable_size(block));
            __libc_free(block);
        }
    }

    /// `realloc(3)` that wipes what it leaves: the old block when it moves, the tail when it shrinks.
    ///
    /// # Safety
    /// As in C.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn realloc(block: *mut c_void, bytes: size_t) -> *mut c_void {
        if block.is_null() {
            // SAFETY: no precondition.
            return unsafe { __libc_malloc(bytes) };
        }
        if bytes == 0 {
            // As in glibc: realloc(p, 0) frees.
            // SAFETY: the caller's promise.
            unsafe { free(block) };
            return ptr::null_mut();
        }
        // SAFETY: `block` is a live block of this allocator; `usable` bytes of it may be read and written. The new block is
        // distinct and has room for `bytes`. It may come from the allocator uninitialised and is copied as bytes.
        unsafe {
            let usable = libc::malloc_usable_size(block);
            if bytes <= usable && bytes >= usable / 2 {
                wipe(block.cast::<u8>().add(bytes), usable - bytes);
                return block;
            }
            let moved = __libc_malloc(bytes);
            if !moved.is_null() {
                ptr::copy_nonoverlapping(block.cast::<u8>(), moved.cast(), usable.min(bytes));
                wipe(block.cast(), usable);
                __libc_free(block);
            }
            moved
        }
    }

    /// `reallocarray(3)` on top of the above.
    ///
    /// # Safety
    /// As in C.
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: size_t, bytes: size_t) -> *mut c_void {
        match count.checked_mul(bytes) {
            // SAFETY: the caller's promise.
            Some(total) => unsafe { realloc(block, total) },
            None => {
                // SAFETY: `errno` of this thread is writable.
                unsafe { *libc::__errno_location() = libc::ENOMEM };
                ptr::null_mut()
            }
        }
    }

    #[inline]
    unsafe fn wipe(start: *mut u8, len: usize) {
        // SAFETY: the caller owns `len` bytes at `start`.
        unsafe { start.write_bytes(0, len) };
        keep_stores(start);
    }

    /// Whether the dynamic linker gives everybody *this* `free`.
    pub(crate) fn is_in_use() -> bool {
        // SAFETY: looks a name up; the string ends with a zero byte.
        let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"free".as_ptr()) };
        ptr::eq(found, free as *const c_void)
    }
}

#[cfg(target_env = "gnu")]
pub(crate) use gnu::is_in_use;

/// Only glibc has the functions to stand on.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn is_in_use() -> bool {
    false
}
