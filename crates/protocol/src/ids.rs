//! Names of things on the ledger: 32-byte identifiers, one type each, so that they cannot be mixed up.

use mayfly_crypto::sign::PublicKey;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};

/// Length of every identifier in bytes.
pub const ID_BYTES: usize = 32;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub [u8; ID_BYTES]);

        impl $name {
            /// The raw 32 bytes.
            pub fn as_bytes(&self) -> &[u8; ID_BYTES] {
                &self.0
            }

            /// The first eight hexadecimal digits, for people.
            pub fn short(&self) -> String {
                hex::encode(&self.0[..4])
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "{}({})", stringify!($name), self.short())
            }
        }

        impl std::str::FromStr for $name {
            type Err = ParseIdError;

            fn from_str(s: &str) -> Result<Self, ParseIdError> {
                let mut out = [0; ID_BYTES];
                hex::decode_to_slice(s, &mut out).map_err(|_| ParseIdError)?;
                Ok(Self(out))
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: encode::Write>(&self, e: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(d: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let at = d.position();
                let bytes = d.bytes()?;
                bytes.try_into().map(Self).map_err(|_| decode::Error::message("identifier is not 32 bytes").at(at))
            }
        }
    };
}

/// A string is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an identifier: 64 hexadecimal digits are expected")]
pub struct ParseIdError;

id!(
    /// A network: the id of its genesis entry.
    NetworkId
);
id!(
    /// A device: the id of the identity key that its vault holds.
    DeviceId
);
id!(
    /// Whoever signs a record: a device (its [`DeviceId`]) or an administrator (the id of the administrator's key).
    AuthorId
);
id!(
    /// A record: SHA-256 of its signed bytes, without signatures.
    EntryId
);
id!(
    /// An invitation: the id of its one-time public key.
    InviteId
);
id!(
    /// A token: a set of keys and objects that applications see as one PKCS#11 token.
    TokenId
);
id!(
    /// A key: derived from the network and the commitment to its root, so it is the same through all epochs.
    KeyId
);
id!(
    /// One device's share of one key in one epoch.
    ShardId
);
id!(
    /// An object without secrets: certificate, public key, data.
    ObjectId
);
id!(
    /// A plain SHA-256 value: tree roots and record links.
    Hash
);

/// The id of a public key: `SHA-256(enc("mayfly/v1/key-id", alg, bytes))`.
pub fn public_key_id(key: &PublicKey) -> [u8; ID_BYTES] {
    mayfly_crypto::enc::hash("mayfly/v1/key-id", &[&[key.alg() as u8], key.bytes()])
}

impl From<DeviceId> for AuthorId {
    fn from(id: DeviceId) -> Self {
        AuthorId(id.0)
    }
}

impl From<AuthorId> for DeviceId {
    fn from(id: AuthorId) -> Self {
        DeviceId(id.0)
    }
}
