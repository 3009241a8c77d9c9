//! Reading and writing as in the TPM 2.0 Library, part 2: big-endian integers, 16-bit lengths.

/// Foreign bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Writes a structure.
#[derive(Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Writer {
        Writer::default()
    }

    /// One byte.
    #[must_use]
    pub fn u8(self, value: u8) -> Writer {
        self.raw(&[value])
    }

    /// Two bytes.
    #[must_use]
    pub fn u16(self, value: u16) -> Writer {
        self.raw(&value.to_be_bytes())
    }

    /// Four bytes.
    #[must_use]
    pub fn u32(self, value: u32) -> Writer {
        self.raw(&value.to_be_bytes())
    }

    /// Eight bytes.
    #[must_use]
    pub fn u64(self, value: u64) -> Writer {
        self.raw(&value.to_be_bytes())
    }

    /// Bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A TPM2B: length in 16 bits, then the bytes.
    ///
    /// # Panics
    /// Above 65535 bytes; every structure written here has a named limit far below.
    #[must_use]
    pub fn sized(self, bytes: &[u8]) -> Writer {
        let length = u16::try_from(bytes.len()).expect("our structures are shorter than 64 KiB");
        self.u16(length).raw(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads a structure that came from outside.
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads `bytes` from the start.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader(bytes)
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(length).ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed("cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// A TPM2B of at most `max` bytes.
    ///
    /// # Errors
    /// When it is longer, or cut short.
    pub fn sized(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let length = usize::from(self.u16()?);
        if length > max {
            return Err(Malformed("longer than its limit"));
        }
        self.take(length)
    }

    /// The end.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn finish(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("bytes after its end")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let bytes = Writer::new().u8(1).u16(2).u32(3).u64(4).sized(b"five").raw(b"six").finish();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.sized(4), Ok(&b"five"[..]));
        assert_eq!(reader.take(3), Ok(&b"six"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn edges_are_refused() {
        assert!(Reader::new(&[0]).u16().is_err());
        assert!(Reader::new(&[0, 2, 1]).sized(2).is_err(), "shorter than its length says");
        assert!(Reader::new(&[0, 2, 1, 1]).sized(1).is_err(), "above the limit");
        assert!(Reader::new(&[1]).finish().is_err());
        assert!(Reader::new(&[]).take(usize::MAX).is_err());
    }
}
