//! The verifier's side.
