//! Objects' attributes and templates.
//!
//! Values are canonical, not the C memory: CK_ULONG is 8 bytes little-endian, CK_BBOOL one byte 0 or 1,
//! CK_DATE 8 ASCII digits or empty, CKA_ALLOWED_MECHANISMS a row of 8-byte numbers, a nested template
//! (CKA_WRAP_TEMPLATE and the like) the encoding of a [`List`] of [`Attribute`]s; all else the bytes as
//! PKCS#11 defines them (big integers big-endian, CKA_EC_PARAMS and CKA_EC_POINT DER).

use crate::codec::{Field, List, Opaque, Reader, Writer, record};
use crate::{DecodeError, header};

record! {
    /// One attribute of a template. The value may be secret.
    Attribute<'a> {
        /// CK_ATTRIBUTE_TYPE.
        kind: u64,
        /// Value in the canonical form of this module's page.
        value: Opaque<'a>,
    }
}

impl<'a> Attribute<'a> {
    /// An attribute of a type and a value.
    #[must_use]
    pub fn new(kind: u64, value: &'a [u8]) -> Self {
        Self { kind, value: Opaque(value) }
    }

    /// The value as CK_ULONG, if it has that length.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.value.0.try_into().ok().map(u64::from_le_bytes)
    }

    /// The value as CK_BBOOL, if it is one byte 0 or 1.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.value.0 {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

/// What the agent says about one attribute of one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttributeState<'a> {
    /// Its value.
    Value(Opaque<'a>),
    /// It exists and is never shown (CKR_ATTRIBUTE_SENSITIVE).
    Sensitive,
    /// The object has no such attribute (CKR_ATTRIBUTE_TYPE_INVALID).
    Absent,
    /// It can be read, but costs an assembly or is long: ask for it by [`crate::Request::Attributes`].
    /// Only in answers to [`crate::Request::Object`].
    OnRequest,
}

impl<'a> Field<'a> for AttributeState<'a> {
    const BYTES_MIN: usize = 1;

    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Self::Value(value) => {
                0_u8.write(to);
                value.write(to);
            }
            Self::Sensitive => 1_u8.write(to),
            Self::Absent => 2_u8.write(to),
            Self::OnRequest => 3_u8.write(to),
        }
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match u8::read(from)? {
            0 => Field::read(from).map(Self::Value),
            1 => Ok(Self::Sensitive),
            2 => Ok(Self::Absent),
            3 => Ok(Self::OnRequest),
            tag => Err(DecodeError::UnknownCode { what: "attribute state", value: tag.into() }),
        }
    }
}

record! {
    /// One attribute in an answer.
    AttributeAnswer<'a> {
        /// CK_ATTRIBUTE_TYPE.
        kind: u64,
        /// Value, or why there is none.
        state: AttributeState<'a>,
    }
}

impl<'a> AttributeAnswer<'a> {
    /// A readable attribute.
    #[must_use]
    pub fn value(kind: u64, value: &'a [u8]) -> Self {
        Self { kind, state: AttributeState::Value(Opaque(value)) }
    }
}

/// A template that owns its encoding: made piece by piece, lent out as a [`List`]. Wiped when dropped.
#[derive(Default)]
pub struct TemplateBuf {
    count: u32,
    encoded: zeroize::Zeroizing<Vec<u8>>,
}

impl TemplateBuf {
    /// An empty template.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one attribute.
    pub fn push(&mut self, kind: u64, value: &[u8]) {
        let attribute = Attribute::new(kind, value);
        let start = self.encoded.len();
        header::append(&mut self.encoded, start + Attribute::BYTES_MIN + value.len(), |to| attribute.write(to));
        self.count += 1;
    }

    /// Appends a CK_ULONG.
    pub fn push_u64(&mut self, kind: u64, value: u64) {
        self.push(kind, &value.to_le_bytes());
    }

    /// Appends a CK_BBOOL.
    pub fn push_bool(&mut self, kind: u64, value: bool) {
        self.push(kind, &[u8::from(value)]);
    }

    /// The template as a message takes it.
    #[must_use]
    pub fn as_list(&self) -> List<'_, Attribute<'_>> {
        List::from_encoded(self.count, &self.encoded)
    }

    /// The template as the value of a nested template attribute.
    #[must_use]
    pub fn as_value(&self) -> zeroize::Zeroizing<Vec<u8>> {
        let mut value = zeroize::Zeroizing::new(Vec::with_capacity(4 + self.encoded.len()));
        value.extend_from_slice(&self.count.to_le_bytes());
        value.extend_from_slice(&self.encoded);
        value
    }
}

/// Reads the value of a nested template attribute.
pub fn nested_template(value: &[u8]) -> Result<List<'_, Attribute<'_>>, DecodeError> {
    let mut from = Reader::new(value);
    let template = List::read(&mut from)?;
    from.finish()?;
    Ok(template)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_template_reads_like_a_slice() {
        let mut template = TemplateBuf::new();
        template.push_u64(0, 4);
        template.push_bool(1, true);
        template.push(3, b"label");
        let four = 4_u64.to_le_bytes();
        let slice = [Attribute::new(0, &four), Attribute::new(1, &[1]), Attribute::new(3, b"label")];
        assert_eq!(template.as_list(), List::from(&slice[..]));
        assert_eq!(nested_template(&template.as_value()).unwrap(), template.as_list());
        assert_eq!(slice[0].as_u64(), Some(4));
        assert_eq!(slice[1].as_bool(), Some(true));
        assert_eq!(slice[2].as_u64(), None);
    }
}
