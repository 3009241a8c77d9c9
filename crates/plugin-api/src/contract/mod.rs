//! The suites that a plugin of a kind must pass.
