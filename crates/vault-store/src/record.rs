//! The frame of every file of a vault: `magic (8) ‖ version (u16) ‖ … ‖ SHA-256 (32) of all before it`. Big-endian.
//!
//! The hash protects nothing: who can write can hash. It tells damage from everything else, which decides what the
//! operator is told.

use sha2::{Digest, Sha256};

/// Bytes of the hash at the end.
pub const HASH_BYTES: usize = 32;

/// A file is not what its page says; the text says how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged(pub String);

impl From<&str> for Damaged {
    fn from(what: &str) -> Damaged {
        Damaged(what.to_owned())
    }
}

/// The head of a file; the fields follow.
#[must_use]
pub fn start(magic: &[u8; 8], version: u16) -> Vec<u8> {
    [&magic[..], &version.to_be_bytes()].concat()
}

/// Ends a file.
#[must_use]
pub fn finish(mut bytes: Vec<u8>) -> Vec<u8> {
    let hash = Sha256::digest(&bytes);
    bytes.extend_from_slice(&hash);
    bytes
}

/// What stands between head and hash.
///
/// # Errors
/// Why the file is not of this kind and version, or damaged.
pub fn body<'a>(bytes: &'a [u8], magic: &[u8; 8], version: u16) -> Result<&'a [u8], &'static str> {
    let (framed, hash) = bytes.split_last_chunk::<HASH_BYTES>().ok_or("too short")?;
    let (found, rest) = framed.split_first_chunk::<8>().ok_or("too short")?;
    if found != magic {
        return Err("not a file of this kind");
    }
    if Sha256::digest(framed)[..] != hash[..] {
        return Err("its checksum does not match");
    }
    let (found, fields) = rest.split_first_chunk::<2>().ok_or("too short")?;
    if u16::from_be_bytes(*found) != version {
        return Err("its version is unknown to this plugin");
    }
    Ok(fields)
}

/// Takes fields from the front of bytes that are not believed.
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// The fields of a file, as by [`body`].
    ///
    /// # Errors
    /// As [`body`].
    pub fn of(bytes: &'a [u8], magic: &[u8; 8], version: u16) -> Result<Fields<'a>, Damaged> {
        Ok(Fields(body(bytes, magic, version)?))
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Damaged> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or("too short")?;
        self.0 = rest;
        Ok(*head)
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn slice(&mut self, length: usize) -> Result<&'a [u8], Damaged> {
        let (head, rest) = self.0.split_at_checked(length).ok_or("too short")?;
        self.0 = rest;
        Ok(head)
    }

    /// The end.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(self) -> Result<(), Damaged> {
        if self.0.is_empty() { Ok(()) } else { Err("something is left over".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: &[u8; 8] = b"MAYFLYXX";

    #[test]
    fn what_is_framed_is_read_and_nothing_else() {
        let good = finish([&start(MAGIC, 1)[..], b"fields"].concat());
        assert_eq!(good.len(), 8 + 2 + 6 + 32);
        assert_eq!(body(&good, MAGIC, 1), Ok(&b"fields"[..]));
        let mut fields = Fields::of(&good, MAGIC, 1).unwrap();
        assert_eq!(fields.array::<2>(), Ok(*b"fi"));
        assert_eq!(fields.slice(4), Ok(&b"elds"[..]));
        assert_eq!(fields.end(), Ok(()));
        assert!(Fields::of(&good, MAGIC, 1).unwrap().array::<7>().is_err());
        assert!(Fields::of(&good, MAGIC, 1).unwrap().slice(usize::MAX).is_err());
        assert!(Fields::of(&good, MAGIC, 1).unwrap().end().is_err());

        assert_eq!(body(&good, b"MAYFLYYY", 1), Err("not a file of this kind"));
        assert_eq!(body(&good, MAGIC, 2), Err("its version is unknown to this plugin"));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(body(&bad, MAGIC, 1).is_err(), "bit {bit}");
        }
        for length in 0..good.len() {
            assert!(body(&good[..length], MAGIC, 1).is_err(), "{length} bytes");
        }
        // well hashed, and shorter than a head
        assert_eq!(body(&finish(MAGIC.to_vec()), MAGIC, 1), Err("too short"));
        assert_eq!(body(&finish(Vec::new()), MAGIC, 1), Err("too short"));
    }
}
