//! Small values that several messages share.

use std::fmt;

use crate::codec::{Field, Opaque, Reader, Writer, codes, record};
use crate::{DecodeError, INLINE_DATA_MAX, PIN_BYTES_MAX, TICKET_BYTES_MAX};

codes! {
    /// Which program is at the other end. For display and metrics only: identity is SO_PEERCRED.
    Role: u8, "role" {
        /// `libmayfly_pkcs11.so` inside an application.
        Module = 1,
        /// The `mayfly` command line.
        Command = 2,
    }
}

codes! {
    /// Whose PIN it is: PKCS#11's CK_USER_TYPE.
    User: u8, "user type" {
        /// CKU_SO, the security officer.
        SecurityOfficer = 0,
        /// CKU_USER.
        User = 1,
        /// CKU_CONTEXT_SPECIFIC: once more, for the next operation of one session
        /// (keys with CKA_ALWAYS_AUTHENTICATE).
        ContextSpecific = 2,
    }
}

codes! {
    /// What an operation does.
    Kind: u8, "operation kind" {
        /// Plaintext to ciphertext.
        Encrypt = 1,
        /// Ciphertext to plaintext.
        Decrypt = 2,
        /// Data to signature or MAC.
        Sign = 3,
        /// Data and signature to nothing, or CKR_SIGNATURE_INVALID.
        Verify = 4,
        /// Data to a signature that contains it.
        SignRecover = 5,
        /// Such a signature to the data.
        VerifyRecover = 6,
        /// A digest in parts that takes in a key ([`crate::Request::UpdateKey`]); other digests stay in the module.
        Digest = 7,
        /// PKCS#11 v3.0 C_EncryptMessage; the answer carries the IV that was made and the tag.
        MessageEncrypt = 8,
        /// C_DecryptMessage.
        MessageDecrypt = 9,
        /// C_SignMessage.
        MessageSign = 10,
        /// C_VerifyMessage.
        MessageVerify = 11,
    }
}

codes! {
    /// How a synthetic IV is made.
    IvMode: u8, "IV mode" {
        /// From key, context, fresh randomness and plaintext. The default.
        Hedged = 0,
        /// From key, context and plaintext: equal inputs give equal IVs.
        Deterministic = 1,
        /// From key, context and fresh randomness.
        Random = 2,
    }
}

/// Bytes of a PIN. `Debug` shows nothing of it; longer than [`PIN_BYTES_MAX`] is refused in decoding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Pin<'a>(pub &'a [u8]);

impl fmt::Debug for Pin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<pin>")
    }
}

/// What names an application to the agent: opaque, sealed by the agent to uid, pid and start time.
/// At most [`TICKET_BYTES_MAX`] bytes; empty where there is none.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Ticket<'a>(pub &'a [u8]);

impl fmt::Debug for Ticket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<ticket of {} bytes>", self.0.len())
    }
}

fn read_limited<'a>(from: &mut Reader<'a>, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
    let length = u32::read(from)?;
    if length as usize > limit {
        return Err(DecodeError::TooLong { what, length: length.into(), limit });
    }
    from.take(length as usize, what)
}

impl<'a> Field<'a> for Pin<'a> {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        self.0.write(to);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        read_limited(from, "PIN", PIN_BYTES_MAX).map(Self)
    }
}

impl<'a> Field<'a> for Ticket<'a> {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        self.0.write(to);
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        read_limited(from, "ticket", TICKET_BYTES_MAX).map(Self)
    }
}

/// Where an operation's input or output is.
///
/// `Shared` names a place in the [`crate::SharedBuffer`] of the *same connection*. Its bounds are checked
/// against that buffer by whoever uses it, not in decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data<'a> {
    /// In the frame; at most [`INLINE_DATA_MAX`] bytes.
    Inline(Opaque<'a>),
    /// In the connection's shared buffer.
    Shared {
        /// Where it starts, bytes.
        offset: u64,
        /// Its length, bytes.
        length: u64,
    },
}

impl<'a> Data<'a> {
    /// Data inside the frame. The caller has seen to `bytes.len() <= INLINE_DATA_MAX`.
    #[must_use]
    pub fn inline(bytes: &'a [u8]) -> Self {
        Self::Inline(Opaque(bytes))
    }

    /// No data.
    #[must_use]
    pub fn empty() -> Self {
        Self::inline(&[])
    }

    /// Length in bytes, wherever it is.
    #[must_use]
    pub fn length(&self) -> u64 {
        match self {
            Self::Inline(bytes) => bytes.0.len() as u64,
            Self::Shared { length, .. } => *length,
        }
    }
}

impl Default for Data<'_> {
    fn default() -> Self {
        Self::empty()
    }
}

const INLINE: u8 = 0;
const SHARED: u8 = 1;

impl<'a> Field<'a> for Data<'a> {
    const BYTES_MIN: usize = 5;

    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Self::Inline(bytes) => {
                INLINE.write(to);
                bytes.write(to);
            }
            Self::Shared { offset, length } => {
                SHARED.write(to);
                offset.write(to);
                length.write(to);
            }
        }
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match u8::read(from)? {
            INLINE => Ok(Self::inline(read_limited(from, "inline data", INLINE_DATA_MAX)?)),
            SHARED => Ok(Self::Shared { offset: Field::read(from)?, length: Field::read(from)? }),
            tag => Err(DecodeError::UnknownCode { what: "data place", value: tag.into() }),
        }
    }
}

/// Where the agent shall put an operation's output, and how much the caller takes. Longer output is
/// answered by CKR_BUFFER_TOO_SMALL (150) and the operation is not done.
///
/// A shared output may overlap a shared input: the agent reads all of the input first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into the answer; `max` bytes at most, and never more than [`INLINE_DATA_MAX`].
    Inline {
        /// Most bytes.
        max: u32,
    },
    /// Into the connection's shared buffer.
    Shared {
        /// Where it shall start, bytes.
        offset: u64,
        /// Most bytes.
        max: u64,
    },
}

impl Place {
    /// For operations without output.
    pub const NONE: Self = Self::Inline { max: 0 };

    /// Most bytes that the caller takes.
    #[must_use]
    pub fn max(&self) -> u64 {
        match self {
            Self::Inline { max } => u64::from(*max).min(INLINE_DATA_MAX as u64),
            Self::Shared { max, .. } => *max,
        }
    }
}

impl Field<'_> for Place {
    const BYTES_MIN: usize = 5;

    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Self::Inline { max } => {
                INLINE.write(to);
                max.write(to);
            }
            Self::Shared { offset, max } => {
                SHARED.write(to);
                offset.write(to);
                max.write(to);
            }
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match u8::read(from)? {
            INLINE => Ok(Self::Inline { max: Field::read(from)? }),
            SHARED => Ok(Self::Shared { offset: Field::read(from)?, max: Field::read(from)? }),
            tag => Err(DecodeError::UnknownCode { what: "output place", value: tag.into() }),
        }
    }
}

/// A key as people or programs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectRef<'a> {
    /// An object handle.
    Handle(u64),
    /// A key's name (or id) on the ledger, as in `mayfly key show NAME`.
    Name(&'a str),
}

impl<'a> Field<'a> for ObjectRef<'a> {
    const BYTES_MIN: usize = 5;

    fn write(&self, to: &mut Writer<'_>) {
        match self {
            Self::Handle(handle) => {
                0_u8.write(to);
                handle.write(to);
            }
            Self::Name(name) => {
                1_u8.write(to);
                name.write(to);
            }
        }
    }

    fn read(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match u8::read(from)? {
            0 => Ok(Self::Handle(Field::read(from)?)),
            1 => Ok(Self::Name(Field::read(from)?)),
            tag => Err(DecodeError::UnknownCode { what: "object reference", value: tag.into() }),
        }
    }
}

/// What a token is and can, as bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenFlags(pub u32);

impl TokenFlags {
    /// There is a token in the slot (CKF_TOKEN_PRESENT).
    pub const PRESENT: Self = Self(1);
    /// C_InitToken was done (CKF_TOKEN_INITIALIZED).
    pub const INITIALISED: Self = Self(1 << 1);
    /// A user PIN is set (CKF_USER_PIN_INITIALIZED).
    pub const USER_PIN_SET: Self = Self(1 << 2);
    /// Private objects need a login (CKF_LOGIN_REQUIRED).
    pub const LOGIN_REQUIRED: Self = Self(1 << 3);
    /// Nothing can be changed (CKF_WRITE_PROTECTED).
    pub const WRITE_PROTECTED: Self = Self(1 << 4);
    /// The user PIN was wrong at least once since the last right one (CKF_USER_PIN_COUNT_LOW).
    pub const USER_PIN_COUNT_LOW: Self = Self(1 << 5);
    /// The next wrong user PIN locks it (CKF_USER_PIN_FINAL_TRY).
    pub const USER_PIN_FINAL_TRY: Self = Self(1 << 6);
    /// The user PIN is locked (CKF_USER_PIN_LOCKED).
    pub const USER_PIN_LOCKED: Self = Self(1 << 7);
    /// The user PIN must be changed (CKF_USER_PIN_TO_BE_CHANGED).
    pub const USER_PIN_TO_BE_CHANGED: Self = Self(1 << 8);
    /// As USER_PIN_COUNT_LOW, for the security officer.
    pub const SO_PIN_COUNT_LOW: Self = Self(1 << 9);
    /// As USER_PIN_FINAL_TRY, for the security officer.
    pub const SO_PIN_FINAL_TRY: Self = Self(1 << 10);
    /// As USER_PIN_LOCKED, for the security officer.
    pub const SO_PIN_LOCKED: Self = Self(1 << 11);

    /// Whether every bit of `flags` is set.
    #[must_use]
    pub fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those bits.
    #[must_use]
    pub fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// `flags` if `condition`, besides these.
    #[must_use]
    pub fn with_if(self, condition: bool, flags: Self) -> Self {
        if condition { self.with(flags) } else { self }
    }
}

impl Field<'_> for TokenFlags {
    const BYTES_MIN: usize = 4;

    fn write(&self, to: &mut Writer<'_>) {
        self.0.write(to);
    }

    /// Unknown bits are kept: they are news of a later agent that an older module need not act on.
    fn read(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        u32::read(from).map(Self)
    }
}

record! {
    /// One token, and the slot that it is in.
    TokenInfo<'a> {
        /// Slot id: [`crate::slot_id`] of the token's name.
        slot: u32,
        /// What it is and can.
        flags: TokenFlags,
        /// The token's object version (see [`crate::ResponseHeader::object_version`]).
        object_version: u64,
        /// Least length of a PIN, bytes.
        pin_bytes_min: u16,
        /// Greatest length of a PIN, bytes.
        pin_bytes_max: u16,
        /// Label, UTF-8, not padded; longer than 32 bytes is cut by the module.
        label: &'a str,
        /// Serial number, at most 16 characters; the same on every host.
        serial: &'a str,
        /// Model, at most 16 characters.
        model: &'a str,
    }
}

record! {
    /// One mechanism that works now, with what C_GetMechanismInfo tells.
    MechanismInfo {
        /// CK_MECHANISM_TYPE.
        code: u64,
        /// ulMinKeySize, in the unit that PKCS#11 gives for this mechanism.
        key_size_min: u64,
        /// ulMaxKeySize.
        key_size_max: u64,
        /// CKF_ENCRYPT, CKF_SIGN, … as in PKCS#11.
        flags: u64,
    }
}
