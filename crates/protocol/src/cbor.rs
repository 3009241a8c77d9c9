//! Deterministic CBOR (RFC 8949, section 4.2.1): one value has one encoding, and every other encoding is refused.
//!
//! A record's payload is a map with unsigned integer keys. Keys below [`NON_CRITICAL_FROM`] are critical: a reader that does not know
//! one refuses the record. Keys from there on may be added later and are ignored, but stay in the signed bytes.

use minicbor::{Decode, Encode};

/// Keys of a record's map from here on may be unknown to a reader.
pub const NON_CRITICAL_FROM: u64 = 1000;
/// How deep arrays and maps may lie in each other.
pub const DEPTH_MAX: u8 = 8;

/// Why bytes are not the one encoding of a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CborError {
    /// The walk over the bytes found something that deterministic encoding does not allow.
    #[error("not deterministic CBOR at byte {at}: {what}")]
    NotCanonical {
        /// Offset of the offending byte.
        at: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// The bytes are CBOR, but not of the expected type.
    #[error("unexpected structure: {0}")]
    Structure(String),
    /// A critical field, or part of one, is unknown to this version.
    #[error("unknown critical field; a newer version of mayfly wrote this")]
    UnknownField,
}

/// The deterministic encoding of a value.
pub fn to_vec<T: Encode<()>>(value: &T) -> Vec<u8> {
    minicbor::to_vec(value).expect("encoding into memory does not fail")
}

/// Decodes a value whose encoding must be exactly `bytes`: no trailing bytes, nothing unknown.
pub fn from_exact<'b, T: Decode<'b, ()> + Encode<()>>(bytes: &'b [u8]) -> Result<T, CborError> {
    walk(bytes)?;
    decode_same(bytes)
}

/// Decodes a record's payload: like [`from_exact`], but unknown non-critical fields of the outer map are passed over.
pub fn from_record<T: for<'b> Decode<'b, ()> + Encode<()>>(bytes: &[u8]) -> Result<T, CborError> {
    walk(bytes)?;
    let critical = critical_part(bytes)?;
    decode_same(&critical)
}

fn decode_same<'b, T: Decode<'b, ()> + Encode<()>>(bytes: &'b [u8]) -> Result<T, CborError> {
    let value: T = minicbor::decode(bytes).map_err(|e| CborError::Structure(e.to_string()))?;
    // Whatever the derived decoder skipped (unknown keys, surplus array elements) shows as a difference here.
    if to_vec(&value) != bytes { Err(CborError::UnknownField) } else { Ok(value) }
}

/// The outer map without its non-critical fields. `bytes` has been walked.
fn critical_part(bytes: &[u8]) -> Result<Vec<u8>, CborError> {
    let mut cursor = Cursor { bytes, at: 0 };
    let (major, pairs) = cursor.head()?;
    if major != MAP {
        return Err(CborError::NotCanonical { at: 0, what: "a record's payload is a map" });
    }
    let start = cursor.at;
    let mut kept = 0;
    let mut end = start;
    for _ in 0..pairs {
        let at = cursor.at;
        let (major, key) = cursor.head()?;
        if major != UNSIGNED {
            return Err(CborError::NotCanonical { at, what: "a record's keys are unsigned integers" });
        }
        cursor.item(1)?;
        if key >= NON_CRITICAL_FROM {
            break; // keys are sorted: all that follow are non-critical too
        }
        kept += 1;
        end = cursor.at;
    }
    if kept == pairs {
        return Ok(bytes.to_vec());
    }
    let mut out = Vec::with_capacity(bytes.len());
    minicbor::Encoder::new(&mut out).map(kept).expect("encoding into memory does not fail");
    out.extend_from_slice(&bytes[start..end]);
    Ok(out)
}

/// Checks that `bytes` is exactly one deterministically encoded item of integers, byte and text strings, arrays, maps, booleans, null.
pub fn walk(bytes: &[u8]) -> Result<(), CborError> {
    let mut cursor = Cursor { bytes, at: 0 };
    cursor.item(0)?;
    if cursor.at != bytes.len() {
        return Err(CborError::NotCanonical { at: cursor.at, what: "trailing bytes" });
    }
    Ok(())
}

const UNSIGNED: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;

struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Cursor<'b> {
    fn fail<T>(&self, what: &'static str) -> Result<T, CborError> {
        Err(CborError::NotCanonical { at: self.at, what })
    }

    fn take(&mut self, n: u64) -> Result<&'b [u8], CborError> {
        let rest = &self.bytes[self.at..];
        match usize::try_from(n).ok().and_then(|n| rest.get(..n)) {
            Some(slice) => {
                self.at += slice.len();
                Ok(slice)
            }
            None => self.fail("ends in the middle of an item"),
        }
    }

    /// Major type and argument, in its shortest form.
    fn head(&mut self) -> Result<(u8, u64), CborError> {
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let width = match info {
            0..=23 => return Ok((major, u64::from(info))),
            24 => 1,
            25 => 2,
            26 => 4,
            27 => 8,
            _ => return self.fail("indefinite length or reserved form"),
        };
        let value = self.take(width)?.iter().fold(0u64, |v, b| v << 8 | u64::from(*b));
        let shortest = match width {
            1 => value >= 24,
            2 => value > 0xff,
            4 => value > 0xffff,
            _ => value > 0xffff_ffff,
        };
        if major == SIMPLE {
            return self.fail("floating point or unassigned simple value");
        }
        if shortest { Ok((major, value)) } else { self.fail("integer is not in its shortest form") }
    }

    fn item(&mut self, depth: u8) -> Result<(), CborError> {
        if depth > DEPTH_MAX {
            return self.fail("nested too deeply");
        }
        let (major, value) = self.head()?;
        match major {
            UNSIGNED | NEGATIVE => Ok(()),
            BYTES => self.take(value).map(|_| ()),
            TEXT => match std::str::from_utf8(self.take(value)?) {
                Ok(_) => Ok(()),
                Err(_) => self.fail("text is not UTF-8"),
            },
            ARRAY => (0..value).try_for_each(|_| self.item(depth + 1)),
            MAP => self.pairs(value, depth),
            SIMPLE if (20..=22).contains(&value) => Ok(()), // false, true, null
            _ => self.fail("tags and other simple values are not used"),
        }
    }

    fn pairs(&mut self, count: u64, depth: u8) -> Result<(), CborError> {
        let mut previous: &[u8] = &[];
        for _ in 0..count {
            let start = self.at;
            self.item(depth + 1)?;
            let key = &self.bytes[start..self.at];
            if key <= previous {
                return self.fail("map keys are not sorted or not unique");
            }
            previous = key;
            self.item(depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Encode, Decode)]
    #[cbor(map)]
    struct Sample {
        #[n(0)]
        a: u64,
        #[n(1)]
        b: Option<String>,
    }

    fn hex(s: &str) -> Vec<u8> {
        hex::decode(s.replace(' ', "")).unwrap()
    }

    #[test]
    fn accepts_the_one_encoding_and_passes_over_non_critical_fields() {
        assert_eq!(from_record::<Sample>(&hex("a1 00 05")), Ok(Sample { a: 5, b: None }));
        assert_eq!(from_record::<Sample>(&hex("a2 00 05 01 61 78")), Ok(Sample { a: 5, b: Some("x".into()) }));
        assert_eq!(
            from_record::<Sample>(&hex("a2 00 05 19 03e8 f5")),
            Ok(Sample { a: 5, b: None }),
            "grease at key 1000"
        );
    }

    #[test]
    fn refuses_every_other_encoding() {
        for (bytes, why) in [
            ("a1 00 1805", "5 in two bytes"),
            ("a1 00 190005", "5 in three bytes"),
            ("bf 00 05 ff", "indefinite map"),
            ("a2 01 61 78 00 05", "keys out of order"),
            ("a2 00 05 00 05", "key twice"),
            ("a1 00 05 00", "trailing byte"),
            ("a1 00", "cut off"),
            ("a2 00 05 02 05", "unknown critical key"),
            ("a1 00 fb3ff8000000000000", "float"),
            ("a1 00 c1 05", "tag"),
            ("a2 00 05 01 61 ff", "text that is not UTF-8"),
            ("a1 00 5bffffffffffffffff", "length far beyond the input"),
            ("9bffffffffffffffff", "array far beyond the input"),
            ("", "nothing"),
            ("a1 61 61 05", "text key"),
            ("82 00 05", "array instead of map"),
        ] {
            assert!(from_record::<Sample>(&hex(bytes)).is_err(), "{why}");
        }
        let deep = [vec![0x81; 40], vec![0]].concat();
        assert!(walk(&deep).is_err(), "nested too deeply");
    }

    proptest::proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = from_record::<Sample>(&bytes);
            let _ = walk(&bytes);
        }

        #[test]
        fn what_is_accepted_is_what_would_be_written(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..12)) {
            if let Ok(value) = from_exact::<Sample>(&bytes) {
                proptest::prop_assert_eq!(to_vec(&value), bytes);
            }
        }
    }
}
