//! libmayfly_pkcs11.so: a thin PKCS#11 face over the application socket; no keys, no libcrypto, no threads.
