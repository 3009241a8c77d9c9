//! Links the module so that it stays in the process once loaded.
//!
//! A PKCS#11 module is unloaded by some applications while threads are still inside it, or at exit in an
//! order that nobody controls; code that is gone then crashes the application. The module has no
//! destructors, so staying costs a few pages.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo:rerun-if-changed=build.rs");
}
