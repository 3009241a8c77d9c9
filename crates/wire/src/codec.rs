//! Bytes to fields and back.
//!
//! Little-endian numbers of fixed width; byte strings and text as a u32 length and the bytes; lists as a
//! u32 count and the items; no padding, no optional forms: a value has one encoding. Decoding borrows from
//! the frame and allocates nothing.

use std::fmt;
use std::marker::PhantomData;

use crate::DecodeError;

/// Writes fields into a caller's memory. Goes on counting when the memory is full, so that one failed pass
/// tells how much is needed.
pub struct Writer<'b> {
    memory: &'b mut [u8],
    used: usize,
}

impl<'b> Writer<'b> {
    /// A writer at the start of `memory`.
    pub fn new(memory: &'b mut [u8]) -> Self {
        Self { memory, used: 0 }
    }

    /// Appends bytes as they are.
    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.used.saturating_add(bytes.len());
        if let Some(room) = self.memory.get_mut(self.used..end) {
            room.copy_from_slice(bytes);
        }
        self.used = end;
    }

    /// Bytes that were put so far: more than the memory's length if it did not suffice.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }
}

/// Takes fields off the front of a frame's body.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader at the start of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `count` bytes; `what` names the field in the error.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The end of a body: nothing may be left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::Trailing(left)),
        }
    }
}

/// Overwrites memory that is used again. The memory lives on, so that a plain fill suffices; the barrier
/// keeps it from being merged with the next write.
pub fn wipe(memory: &mut [u8]) {
    memory.fill(0);
    std::hint::black_box(memory);
}

/// A value with exactly one encoding.
pub trait Field<'a>: Sized {
    /// Least number of bytes of any encoding of this type: bounds a list's count by the bytes that are there.
    const BYTES_MIN: usize;

    /// Appends the encoding.
    fn write(&self, to: &mut Writer<'_>);

    /// Takes one value off the front.
    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError>;
}

macro_rules! number {
    ($($type:ty),*) => {$(
        impl Field<'_> for $type {
            const BYTES_MIN: usize = size_of::<$type>();

            fn write(&self, to: &mut Writer<'_>) {
                to.put(&self.to_le_bytes());
            }

            fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let (bytes, rest) = from.rest.split_first_chunk().ok_or(DecodeError::Truncated("a number"))?;
                from.rest = rest;
                Ok(Self::from_le_bytes(*bytes))
            }
        }
    )*};
}

number!(u8, u16, u32, u64);

impl Field<'_> for bool {
    const BYTES_MIN: usize = 1;

    fn write(&self, to: &mut Writer<'_>) {
        u8::from(*self).write(to);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::read(from)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(DecodeError::UnknownCode { what: "truth value", value: value.into() }),
        }
    }
}

impl<'a, const N: usize> Field<'a> for &'a [u8; N] {
    const BYTES_MIN: usize = N;

    fn write(&self, to: &mut Writer<'_>) {
        to.put(*self);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (bytes, rest) = from.rest.split_first_chunk().ok_or(DecodeError::Truncated("fixed bytes"))?;
        from.rest = rest;
        Ok(bytes)
    }
}

impl<'a> Field<'a> for &'a [u8] {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        // A field longer than u32 makes `used` exceed every frame limit, so its cut length is never sent.
        (self.len() as u32).write(to);
        to.put(self);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let length = u32::read(from)? as usize;
        from.take(length, "bytes")
    }
}

impl<'a> Field<'a> for &'a str {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        self.as_bytes().write(to);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        str::from_utf8(<&[u8]>::read(from)?).map_err(|_| DecodeError::NotText)
    }
}

/// Bytes that may be secret (data, attribute values): its `Debug` shows the length only.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Opaque<'a>(pub &'a [u8]);

impl fmt::Debug for Opaque<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl<'a> Field<'a> for Opaque<'a> {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        self.0.write(to);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Field::read(from).map(Self)
    }
}

/// A list in a frame: a borrowed slice on the sending side, checked bytes of the frame on the receiving one.
/// Both compare and iterate alike.
pub struct List<'a, T>(Items<'a, T>);

enum Items<'a, T> {
    Slice(&'a [T]),
    Encoded { count: u32, bytes: &'a [u8], of: PhantomData<fn() -> T> },
}

impl<T> Copy for List<'_, T> {}

impl<T> Clone for List<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Items<'_, T> {}

impl<T> Clone for Items<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Default for List<'_, T> {
    fn default() -> Self {
        Self(Items::Slice(&[]))
    }
}

impl<'a, T> From<&'a [T]> for List<'a, T> {
    fn from(items: &'a [T]) -> Self {
        Self(Items::Slice(items))
    }
}

impl<'a, T> List<'a, T> {
    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        match self.0 {
            Items::Slice(items) => items.len(),
            Items::Encoded { count, .. } => count as usize,
        }
    }

    /// Whether there is no item.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn from_encoded(count: u32, bytes: &'a [u8]) -> Self {
        Self(Items::Encoded { count, bytes, of: PhantomData })
    }
}

impl<'a, T: Field<'a> + Copy> List<'a, T> {
    /// The items in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let (slice, mut reader, mut left) = match self.0 {
            Items::Slice(items) => (items, Reader::new(&[]), 0),
            Items::Encoded { count, bytes, .. } => (&[][..], Reader::new(bytes), count),
        };
        // `read` decoded every item once already, so `ok()` never hides an error here.
        let decoded = std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            T::read(&mut reader).ok()
        });
        slice.iter().copied().chain(decoded)
    }
}

impl<'a, T: Field<'a> + Copy> Field<'a> for List<'a, T> {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        (self.len() as u32).write(to);
        match self.0 {
            Items::Slice(items) => items.iter().for_each(|item| item.write(to)),
            Items::Encoded { bytes, .. } => to.put(bytes),
        }
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let count = u32::read(from)?;
        let bytes_min = u64::from(count) * T::BYTES_MIN.max(1) as u64;
        if bytes_min > from.left() as u64 {
            return Err(DecodeError::Truncated("a list"));
        }
        let start = from.rest;
        for _ in 0..count {
            T::read(from)?;
        }
        let used = start.len() - from.left();
        Ok(Self::from_encoded(count, start.get(..used).unwrap_or_default()))
    }
}

impl<'a, T: Field<'a> + Copy + PartialEq> PartialEq for List<'a, T> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<'a, T: Field<'a> + Copy + Eq> Eq for List<'a, T> {}

impl<'a, T: Field<'a> + Copy + fmt::Debug> fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Declares a struct whose fields are encoded one after the other.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident<$life:lifetime> { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name<$life> { $($(#[$field_meta])* pub $field: $type,)* }
        $crate::codec::record!(@field [$life] $name<$life> { $($field: $type,)* });
    };
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type,)* }
        $crate::codec::record!(@field ['a] $name { $($field: $type,)* });
    };
    (@field [$life:lifetime] $name:ty { $($field:ident: $type:ty,)* }) => {
        impl<$life> $crate::codec::Field<$life> for $name {
            const BYTES_MIN: usize = 0 $(+ <$type as $crate::codec::Field<$life>>::BYTES_MIN)*;

            fn write(&self, to: &mut $crate::codec::Writer<'_>) {
                $(self.$field.write(to);)*
            }

            fn read(from: &mut $crate::codec::Reader<$life>) -> Result<Self, $crate::DecodeError> {
                Ok(Self { $($field: $crate::codec::Field::read(from)?,)* })
            }
        }
    };
}

/// Declares an enum without payload, encoded as one number; an unknown number is an error.
macro_rules! codes {
    ($(#[$meta:meta])* $name:ident: $number:ty, $what:literal { $($(#[$code_meta:meta])* $code:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($number)]
        pub enum $name { $($(#[$code_meta])* $code = $value,)* }

        impl $name {
            /// Every code, in order.
            pub const ALL: &'static [Self] = &[$(Self::$code,)*];

            /// The number on the wire.
            #[must_use]
            pub fn code(self) -> $number {
                self as $number
            }

            /// The meaning of a number; an error if this version has none.
            pub fn from_code(code: $number) -> Result<Self, $crate::DecodeError> {
                match code {
                    $($value => Ok(Self::$code),)*
                    other => Err($crate::DecodeError::UnknownCode { what: $what, value: other.into() }),
                }
            }
        }

        impl $crate::codec::Field<'_> for $name {
            const BYTES_MIN: usize = size_of::<$number>();

            fn write(&self, to: &mut $crate::codec::Writer<'_>) {
                self.code().write(to);
            }

            fn read(from: &mut $crate::codec::Reader<'_>) -> Result<Self, $crate::DecodeError> {
                Self::from_code(<$number as $crate::codec::Field<'_>>::read(from)?)
            }
        }
    };
}

/// Declares an enum of messages: a number chooses the body's type.
macro_rules! messages {
    (
        $(#[$meta:meta])* $name:ident<$life:lifetime>,
        $(#[$codes_meta:meta])* $codes:ident, $what:literal {
            $($(#[$item_meta:meta])* $item:ident $(($type:ty))? = $value:literal,)*
        }
    ) => {
        $crate::codec::codes! {
            $(#[$codes_meta])* $codes: u16, $what { $($(#[$item_meta])* $item = $value,)* }
        }

        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name<$life> { $($(#[$item_meta])* $item $(($type))?,)* }

        impl<$life> $name<$life> {
            /// The number that names this message in a header.
            #[must_use]
            pub fn code(&self) -> $codes {
                match self { $(Self::$item $(($crate::codec::pattern!($type)))? => $codes::$item,)* }
            }

            /// Appends the body.
            pub fn write_body(&self, to: &mut $crate::codec::Writer<'_>) {
                match self {
                    $($crate::codec::pattern!(Self::$item, body $(, $type)?) => {
                        $(<$type as $crate::codec::Field<'_>>::write(body, to);)?
                    })*
                }
            }

            /// Decodes a body whose header named `code`. Borrows from it; trailing bytes are an error.
            pub fn decode(code: $codes, body: &$life [u8]) -> Result<Self, $crate::DecodeError> {
                let mut from = $crate::codec::Reader::new(body);
                let message = match code {
                    $($codes::$item => Self::$item $((<$type as $crate::codec::Field<$life>>::read(&mut from)?))?,)*
                };
                from.finish()?;
                Ok(message)
            }
        }
    };
}

/// Patterns that [`messages!`] cannot spell for bodies that may be absent.
macro_rules! pattern {
    ($type:ty) => {
        _
    };
    ($path:path, $body:ident) => {
        $path
    };
    ($path:path, $body:ident, $type:ty) => {
        $path($body)
    };
}

pub(crate) use {codes, messages, pattern, record};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_writer_tells_what_it_needs() {
        let mut memory = [0; 3];
        let mut to = Writer::new(&mut memory);
        7_u16.write(&mut to);
        9_u32.write(&mut to);
        assert_eq!(to.used(), 6);
        assert_eq!(memory, [7, 0, 0]);
    }

    #[test]
    fn a_list_of_four_billion_is_refused_by_its_count() {
        let bytes = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
        assert_eq!(List::<u64>::read(&mut Reader::new(&bytes)), Err(DecodeError::Truncated("a list")));
    }

    #[test]
    fn both_forms_of_a_list_are_equal() {
        let items = [1_u64, 2, 3];
        let mut memory = [0; 28];
        let list = List::from(&items[..]);
        list.write(&mut Writer::new(&mut memory));
        let back = List::<u64>::read(&mut Reader::new(&memory)).unwrap();
        assert_eq!(back, list);
        assert_eq!(back.iter().collect::<Vec<_>>(), items);
        assert_ne!(back, List::from(&items[..2]));
    }

    #[test]
    fn opaque_bytes_are_not_printed() {
        assert_eq!(format!("{:?}", Opaque(b"1234")), "<4 bytes>");
    }
}
