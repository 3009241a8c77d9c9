//! Ledger records, the pure `apply`, and the key protocols as state machines.
//!
//! Everything here is a function of its arguments: no tokio, no clock, no files, no randomness of its own. Time is always a parameter
//! in milliseconds since the Unix epoch. The only secrets that pass through are shards, in `mayfly_secmem` types, in [`deal`] and
//! [`assembly`].
//!
//! Things that are written down for ever (records, entries) live in modules named by their version; [`record::VERSION`] is the newest.
#![forbid(unsafe_code)]

pub mod apply;
pub mod assembly;
pub mod attested;
pub mod cbor;
pub mod deal;
pub mod entry;
pub mod freshness;
pub mod head;
pub mod ids;
pub mod on_sight;
pub mod peer;
pub mod record;
pub mod rules;
pub mod state;
pub mod sync;

pub use apply::Refusal;
pub use entry::Entry;
pub use head::Head;
pub use ids::{AuthorId, DeviceId, EntryId, InviteId, KeyId, NetworkId, ObjectId, ShardId, TokenId};
pub use record::{Kind, Record};
pub use state::State;
