//! Locked, guarded, wiped memory: the only home of key bytes.
