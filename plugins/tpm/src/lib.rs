//! The vault of kind `tpm`.
