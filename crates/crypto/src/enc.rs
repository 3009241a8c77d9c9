//! The one encoding of everything that Mayfly hashes, signs, MACs or derives from.
//!
//! ```text
//! lp(x)                 = u64be(len(x)) || x
//! enc(label, f1 .. fn)  = lp(label) || u64be(n) || lp(f1) || .. || lp(fn)
//! ```
//!
//! It is injective: two different lists of fields never give the same bytes, so no boundary between fields can slide (compare
//! TupleHash, SP 800-185 section 5). The label separates domains; labels are listed where they are used and never reused.
//!
//! The encoding must never be decoded: it is an input of functions, not a format.

use sha2::{Digest, Sha256};

/// The encoding of `label` and `fields` as one string of bytes.
///
/// For public fields only: the result lies on the heap. Secrets are streamed by the modules that need it.
#[must_use]
pub fn enc(label: &str, fields: &[&[u8]]) -> Vec<u8> {
    let bytes = fields.iter().map(|field| 8 + field.len()).sum::<usize>() + 16 + label.len();
    let mut encoder = Encoder::new(Vec::with_capacity(bytes), label, fields.len());
    fields.iter().for_each(|field| encoder.field(field));
    encoder.finish()
}

/// SHA-256 of [`enc`], without building it.
#[must_use]
pub fn hash(label: &str, fields: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Hasher::new(label, fields.len());
    fields.iter().for_each(|field| hasher.field(field));
    hasher.finish()
}

/// SHA-256 of plain bytes: for content that is addressed by its hash and for nothing that is signed or derived from.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// SHA-256 of an [`enc`] whose fields arrive one after the other. For public fields only.
#[derive(Clone, Debug)]
pub struct Hasher(Encoder<Sha256>);

impl Hasher {
    /// Starts the hash of `label` with exactly `n_fields` fields to follow.
    #[must_use]
    pub fn new(label: &str, n_fields: usize) -> Self {
        Self(Encoder::new(Sha256::new(), label, n_fields))
    }

    /// Adds the next field.
    ///
    /// # Panics
    /// If more fields are added than were announced: a programming error, since counts never come from outside.
    pub fn field(&mut self, field: &[u8]) {
        self.0.field(field);
    }

    /// The hash.
    ///
    /// # Panics
    /// If fewer fields were added than were announced.
    #[must_use]
    pub fn finish(self) -> [u8; 32] {
        self.0.finish().finalize().into()
    }
}

/// What takes the bytes of an encoding.
pub(crate) trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for Sha256 {
    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }
}

/// Writes one encoding into a sink and holds its writer to the announced number of fields.
#[derive(Clone, Debug)]
pub(crate) struct Encoder<S> {
    sink: S,
    fields_left: usize,
}

impl<S: Sink> Encoder<S> {
    pub(crate) fn new(mut sink: S, label: &str, n_fields: usize) -> Self {
        put_prefixed(&mut sink, label.as_bytes());
        sink.put(&(n_fields as u64).to_be_bytes());
        Self { sink, fields_left: n_fields }
    }

    pub(crate) fn field(&mut self, field: &[u8]) {
        self.count_field();
        put_prefixed(&mut self.sink, field);
    }

    pub(crate) fn finish(self) -> S {
        assert_eq!(self.fields_left, 0, "an encoding has as many fields as it announced");
        self.sink
    }

    /// Ends the encoding with the length of its last field, whose `bytes` bytes the caller then puts into the sink itself.
    pub(crate) fn finish_with_open_field(mut self, bytes: u64) -> S {
        self.count_field();
        self.sink.put(&bytes.to_be_bytes());
        self.finish()
    }

    fn count_field(&mut self) {
        self.fields_left = self.fields_left.checked_sub(1).expect("an encoding has as many fields as it announced");
    }
}

fn put_prefixed(sink: &mut impl Sink, bytes: &[u8]) {
    sink.put(&(bytes.len() as u64).to_be_bytes());
    sink.put(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_as_written_down() {
        let expected = "000000000000000161\
                        0000000000000002\
                        00000000000000026263\
                        0000000000000000";
        assert_eq!(hex::encode(enc("a", &[b"bc", b""])), expected);
        assert_eq!(hex::encode(enc("", &[])), "00".repeat(16));
    }

    /// Each pair would collide if a length or the number of fields were left out.
    #[test]
    fn boundaries_do_not_slide() {
        let lists: [(&str, &[&[u8]]); 8] = [
            ("l", &[b"a", b"bc"]),
            ("l", &[b"ab", b"c"]),
            ("l", &[b"abc"]),
            ("l", &[b"abc", b""]),
            ("l", &[b"", b"abc"]),
            ("la", &[b"bc"]),
            ("l", &[]),
            ("", &[b"l"]),
        ];
        for (i, (label, fields)) in lists.iter().enumerate() {
            for (other_label, other_fields) in &lists[i + 1..] {
                assert_ne!(enc(label, fields), enc(other_label, other_fields));
                assert_ne!(hash(label, fields), hash(other_label, other_fields));
            }
        }
    }

    #[test]
    fn hash_is_the_hash_of_the_encoding() {
        let fields: [&[u8]; 3] = [b"one", &[0u8; 300], b""];
        let expected: [u8; 32] = Sha256::digest(enc("mayfly/v1/test", &fields)).into();
        assert_eq!(hash("mayfly/v1/test", &fields), expected);

        let mut hasher = Hasher::new("mayfly/v1/test", 3);
        fields.iter().for_each(|field| hasher.field(field));
        assert_eq!(hasher.finish(), expected);
    }

    #[test]
    #[should_panic(expected = "as many fields")]
    fn too_many_fields_are_refused() {
        let mut hasher = Hasher::new("l", 0);
        hasher.field(b"x");
    }

    #[test]
    #[should_panic(expected = "as many fields")]
    fn too_few_fields_are_refused() {
        let _ = Hasher::new("l", 1).finish();
    }
}
