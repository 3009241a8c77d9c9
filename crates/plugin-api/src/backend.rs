//! The ledger backend facade: what the gateway calls.

use crate::abi::{
    self, BUNDLE_BYTES_MAX, Bundle, CHECKPOINT_BYTES_MAX, Caps, Checkpoint, Head, Health, LEASE_NAME_BYTES_MAX, Lease,
    READ_BYTES_MAX, READ_PREFIX_BYTES, SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, Snapshot, SnapshotInfo, Status,
};
use crate::client::{Client, Wrong, wrong};
use crate::codec::{Op, Reader, Writer};
use crate::config::{HostConfig, Kind};
use crate::error::PluginError;
use crate::vault::{control, read_health, within};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Smallest bundle limit that a backend may declare: one ledger entry of the largest size, with room.
const BUNDLE_BYTES_LEAST: u64 = 64 * 1024;

/// What became of an append.
#[derive(Debug)]
pub enum Append {
    /// Stored durably; the new head is the head.
    Done,
    /// The head was another one; nothing changed.
    Conflict(Head),
    /// It may or may not have been stored. Read at the expected size: our bundle's hash means done, another means
    /// conflict, no change means "append the same bytes again".
    Unknown(PluginError),
}

/// Answer of a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadAnswer {
    /// Whole bundles in order without a gap; empty when the entry is not there yet.
    Bundles(Vec<Bundle>),
    /// The entries were pruned; this is the first one left.
    Pruned(u64),
}

/// A running ledger backend plugin. Calls may come from any thread; they are served one after the other, except
/// [`BackendPlugin::wait`], which has a host process of its own where the backend offers it.
///
/// Every method's errors: [`PluginError`], whose text starts with `ledger(NAME): `.
pub struct BackendPlugin {
    client: Client,
    waiter: OnceLock<Client>,
    caps: Caps,
    name: String,
    version: String,
    /// Greatest head ever answered; an older one later is a lie, or a rollback under our feet.
    seen: Mutex<Head>,
}

impl BackendPlugin {
    /// Starts the host, loads the plugin, opens the store.
    ///
    /// # Errors
    /// Unsafe paths, a wrong pin, another interface version or kind, a store that is damaged or in use.
    pub fn start(config: &HostConfig) -> Result<BackendPlugin, PluginError> {
        BackendPlugin::of(Client::start(config, Some(Kind::Backend))?)
    }

    pub(crate) fn of(client: Client) -> Result<BackendPlugin, PluginError> {
        let opened = client.opened();
        let name = opened.as_ref().map_or_else(|| client.config().name_guess(), |opened| opened.name.clone());
        let version = opened.map(|opened| opened.version).unwrap_or_default();
        let caps = read_caps(&client)?;
        Ok(BackendPlugin { client, waiter: OnceLock::new(), caps, name, version, seen: Mutex::default() })
    }

    /// Kind name of the backend: `embedded`, `etcd`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's version, for people.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What this backend promises.
    pub fn caps(&self) -> Caps {
        self.caps
    }

    /// The head; all zero while the ledger is empty.
    ///
    /// # Errors
    /// A head below one answered before is a bad answer.
    pub fn head(&self) -> Result<Head, PluginError> {
        self.client.call(Op::Head, Writer::new(), |answer| {
            let head = answer.fields.head()?;
            self.not_older(head)
        })
    }

    /// Stores `bundle` as the entries `expected.size..new.size` and makes `new` the head, if the head is `expected`.
    /// An empty bundle with equal size and hash and a greater epoch only changes the epoch.
    ///
    /// # Errors
    /// Only where nothing was stored for certain; everything doubtful is [`Append::Unknown`].
    pub fn append_if_head(&self, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Append, PluginError> {
        within(&self.client, Op::Append, bundle.len(), self.caps.bundle_bytes_max as usize)?;
        if let Some(what) = append_misuse(expected, new, bundle) {
            return Err(PluginError::Argument { who: self.client.who(), call: Op::Append.name(), what });
        }
        let fields = Writer::new().head(expected).head(new).bytes(bundle);
        let limit = self.client.config().call_timeout;
        let result = self.client.call_with(
            Op::Append,
            fields,
            limit,
            |_| Ok(Append::Done),
            |refusal| match refusal.status {
                Status::Conflict => {
                    let actual = self.not_older(refusal.fields.head()?)?;
                    if actual == *expected {
                        return wrong("a conflict with the head that was expected");
                    }
                    Ok(Some(Append::Conflict(actual)))
                }
                _ => Ok(None),
            },
        );
        match result {
            Ok(Append::Done) => {
                self.not_older(*new).ok();
                Ok(Append::Done)
            }
            Err(error) if error.status() == Some(Status::Unknown) || !error.is_before_call() => {
                Ok(Append::Unknown(error))
            }
            other => other,
        }
    }

    /// Bundles from the one that contains entry `from` on, about `bytes_max` bytes (at most 2 MiB) of them.
    ///
    /// # Errors
    /// [`Status::Corrupt`] when a stored bundle is damaged; gaps and overlaps are bad answers.
    pub fn read(&self, from: u64, bytes_max: usize) -> Result<ReadAnswer, PluginError> {
        let bytes_max = bytes_max.min(READ_BYTES_MAX) as u64;
        self.client.call_with(
            Op::Read,
            Writer::new().u64(from).u64(bytes_max),
            self.client.config().call_timeout,
            |answer| Ok(ReadAnswer::Bundles(read_bundles(answer.fields.bytes(READ_BYTES_MAX)?, from)?)),
            |refusal| match refusal.status {
                Status::Pruned => {
                    let first = refusal.fields.u64()?;
                    if first <= from {
                        return wrong(format!("entry {from} pruned, yet {first} is the first left"));
                    }
                    Ok(Some(ReadAnswer::Pruned(first)))
                }
                _ => Ok(None),
            },
        )
    }

    /// Hint: returns when the size is above `above`, or after `timeout`; may be early, late or spurious. Does not hold
    /// up other calls: it runs in a second host process.
    ///
    /// # Errors
    /// [`Status::Unsupported`] where the backend has no wait (see [`BackendPlugin::caps`]).
    pub fn wait(&self, above: u64, timeout: Duration) -> Result<Head, PluginError> {
        if !self.caps.has_wait {
            return Err(PluginError::Refused {
                who: self.client.who(),
                call: Op::Wait.name(),
                status: Status::Unsupported,
                message: "this backend has no wait".to_owned(),
            });
        }
        let waiter = self.waiter.get_or_init(|| Client::idle(self.client.config(), Some(Kind::Backend)));
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let limit = self.client.config().call_timeout.saturating_add(timeout);
        let check = |answer: &mut crate::client::Answer<'_>| Ok(answer.fields.head()?);
        waiter.call_with(Op::Wait, Writer::new().u64(above).u64(millis), limit, check, |_| Ok(None))
    }

    /// Keeps a signed checkpoint (at most 16 KiB) of a size, for ever.
    ///
    /// # Errors
    /// [`Status::ReadOnly`]; see [`BackendPlugin`].
    pub fn put_checkpoint(&self, size: u64, bytes: &[u8]) -> Result<(), PluginError> {
        within(&self.client, Op::PutCheckpoint, bytes.len(), CHECKPOINT_BYTES_MAX)?;
        self.client.call(Op::PutCheckpoint, Writer::new().u64(size).bytes(bytes), |_| Ok(()))
    }

    /// The newest checkpoint of at most `size`.
    ///
    /// # Errors
    /// See [`BackendPlugin`].
    pub fn latest_checkpoint(&self, size: u64) -> Result<Option<Checkpoint>, PluginError> {
        self.client.call_with(
            Op::LatestCheckpoint,
            Writer::new().u64(size),
            self.client.config().call_timeout,
            |answer| {
                let found = answer.fields.u64()?;
                let bytes = answer.fields.bytes(CHECKPOINT_BYTES_MAX)?.to_vec();
                if found > size {
                    return wrong(format!("a checkpoint of size {found}, asked for at most {size}"));
                }
                Ok(Some(Checkpoint { size: found, bytes }))
            },
            |refusal| Ok((refusal.status == Status::NotFound).then_some(None)),
        )
    }

    /// Stores a whole snapshot, in pieces.
    ///
    /// # Errors
    /// [`Status::ReadOnly`], [`Status::TooLarge`]; see [`BackendPlugin`].
    pub fn put_snapshot(&self, info: &SnapshotInfo, bytes: &[u8]) -> Result<(), PluginError> {
        if bytes.is_empty() || bytes.len() as u64 != info.total_bytes || info.total_bytes > SNAPSHOT_BYTES_MAX {
            let what = format!("{} bytes given, {} declared", bytes.len(), info.total_bytes);
            return Err(PluginError::Argument { who: self.client.who(), call: Op::PutSnapshot.name(), what });
        }
        let mut offset = 0u64;
        for piece in bytes.chunks(SNAPSHOT_CHUNK_BYTES_MAX) {
            self.put_snapshot_piece(info, offset, piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Stores one piece (at most 256 KiB) of a snapshot: offset 0 starts anew, the last one publishes.
    ///
    /// # Errors
    /// As [`BackendPlugin::put_snapshot`]; [`Status::Invalid`] for a gap.
    pub fn put_snapshot_piece(&self, info: &SnapshotInfo, offset: u64, piece: &[u8]) -> Result<(), PluginError> {
        within(&self.client, Op::PutSnapshot, piece.len(), SNAPSHOT_CHUNK_BYTES_MAX)?;
        let fields = Writer::new().snapshot_info(info).u64(offset).bytes(piece);
        self.client.call(Op::PutSnapshot, fields, |_| Ok(()))
    }

    /// One piece (at most 256 KiB) of the newest snapshot of at most `size`; empty at its end.
    ///
    /// # Errors
    /// See [`BackendPlugin`].
    pub fn get_snapshot_piece(&self, size: u64, offset: u64) -> Result<Option<Snapshot>, PluginError> {
        self.client.call_with(
            Op::GetSnapshot,
            Writer::new().u64(size).u64(offset),
            self.client.config().call_timeout,
            |answer| {
                let info = answer.fields.snapshot_info()?;
                let bytes = answer.fields.bytes(SNAPSHOT_CHUNK_BYTES_MAX)?.to_vec();
                let end = offset.checked_add(bytes.len() as u64);
                if info.size > size
                    || info.total_bytes > SNAPSHOT_BYTES_MAX
                    || end.is_none_or(|end| end > info.total_bytes)
                {
                    return wrong("a snapshot piece outside its snapshot");
                }
                if bytes.is_empty() && offset < info.total_bytes {
                    return wrong("an empty snapshot piece before the end");
                }
                Ok(Some(Snapshot { info, bytes }))
            },
            |refusal| Ok((refusal.status == Status::NotFound).then_some(None)),
        )
    }

    /// Drops bundles wholly below `up_to`.
    ///
    /// # Errors
    /// [`Status::Invalid`] unless a stored checkpoint and snapshot cover it.
    pub fn prune(&self, up_to: u64) -> Result<(), PluginError> {
        self.client.call(Op::Prune, Writer::new().u64(up_to), |_| Ok(()))
    }

    /// State of what is under the plugin.
    ///
    /// # Errors
    /// See [`BackendPlugin`].
    pub fn health(&self) -> Result<Health, PluginError> {
        self.client.call(Op::Health, Writer::new(), read_health)
    }

    /// Takes or renews a named lease (at most 64 bytes of name) for `ttl`; zero gives it back.
    ///
    /// # Errors
    /// [`Status::Unsupported`] where the backend has no leases.
    pub fn lease(&self, name: &str, holder: &[u8; 16], ttl: Duration) -> Result<Lease, PluginError> {
        within(&self.client, Op::Lease, name.len(), LEASE_NAME_BYTES_MAX)?;
        let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let fields = Writer::new().bytes(name.as_bytes()).raw(holder).u64(millis);
        self.client.call(Op::Lease, fields, |answer| match answer.fields.u32()? {
            0 => Ok(Lease::Taken),
            1 => Ok(Lease::Held),
            other => wrong(format!("held is {other}")),
        })
    }

    /// Management of the plugin's own; names and formats are on the plugin's page.
    ///
    /// # Errors
    /// [`Status::Unsupported`] for an unknown name.
    pub fn control(&self, name: &str, input: &[u8]) -> Result<Vec<u8>, PluginError> {
        control(&self.client, name, input)
    }

    /// Process id of the host, while it runs.
    pub fn host_pid(&self) -> Option<u32> {
        self.client.host_pid()
    }

    /// Kills the host at once, even in the middle of a call on another thread: what a crash looks like. For suites.
    pub fn danger_kill_host(&self) {
        self.client.danger_kill_host();
    }

    /// Remembers a head and refuses one that goes back.
    fn not_older(&self, head: Head) -> Result<Head, Wrong> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if head.size < seen.size || head.epoch < seen.epoch {
            return wrong(format!(
                "head {} (epoch {}), but {} (epoch {}) was there before",
                head.size, head.epoch, seen.size, seen.epoch
            ));
        }
        if head.size == seen.size && head.bundle_hash != seen.bundle_hash {
            return wrong(format!("head {} with another hash than before", head.size));
        }
        *seen = head;
        Ok(head)
    }
}

/// Reasons for which an append can never be right, whatever the head.
pub(crate) fn append_misuse(expected: &Head, new: &Head, bundle: &[u8]) -> Option<String> {
    if new.epoch < expected.epoch {
        return Some("the epoch falls".to_owned());
    }
    if bundle.is_empty() {
        let only_epoch =
            new.size == expected.size && new.bundle_hash == expected.bundle_hash && new.epoch > expected.epoch;
        return (!only_epoch).then(|| "an empty bundle may only raise the epoch".to_owned());
    }
    (new.size <= expected.size).then(|| "a bundle without entries".to_owned())
}

fn read_caps(client: &Client) -> Result<Caps, PluginError> {
    client.call(Op::Caps, Writer::new(), |answer| {
        let flags = answer.fields.u32()?;
        let bundle_bytes_max = answer.fields.u64()?;
        let capacity = answer.fields.u64()?;
        if !(BUNDLE_BYTES_LEAST..=BUNDLE_BYTES_MAX as u64).contains(&bundle_bytes_max) {
            return wrong(format!("a bundle limit of {bundle_bytes_max} bytes"));
        }
        Ok(Caps {
            durable_on_ack: flags & abi::CAP_DURABLE_ON_ACK != 0,
            linearizable: flags & abi::CAP_LINEARIZABLE != 0,
            has_wait: flags & abi::CAP_WAIT != 0,
            bundle_bytes_max,
            capacity_bytes: (capacity != u64::MAX).then_some(capacity),
        })
    })
}

/// Takes a read answer apart: whole bundles, the first containing `from`, without gap or overlap.
fn read_bundles(bytes: &[u8], from: u64) -> Result<Vec<Bundle>, Wrong> {
    let mut fields = Reader::new(bytes);
    let mut bundles: Vec<Bundle> = Vec::new();
    while !fields.is_empty() {
        let (first, end) = (fields.u64()?, fields.u64()?);
        let bundle_hash = fields.array()?;
        let length = usize::try_from(fields.u64()?).unwrap_or(usize::MAX);
        if length == 0 || length > BUNDLE_BYTES_MAX || end <= first {
            return wrong(format!("a bundle {first}..{end} of {length} bytes"));
        }
        let fits = match bundles.last() {
            None => first <= from && from < end,
            Some(before) => first == before.end,
        };
        if !fits {
            return wrong(format!("bundle {first}..{end} is out of place"));
        }
        bundles.push(Bundle { first, end, bundle_hash, bytes: fields.raw(length)?.to_vec() });
    }
    debug_assert!(bundles.len() <= bytes.len() / READ_PREFIX_BYTES);
    Ok(bundles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laid_out(bundles: &[(u64, u64, &[u8])]) -> Vec<u8> {
        let mut writer = Writer::new();
        for (first, end, bytes) in bundles {
            writer = writer.u64(*first).u64(*end).raw(&[7; 32]).u64(bytes.len() as u64).raw(bytes);
        }
        writer.finish()
    }

    #[test]
    fn a_read_answer_is_whole_and_without_a_gap() {
        for (what, bundles, from, good) in [
            ("one", &[(0, 3, &b"abc"[..])][..], 0, true),
            ("in the middle of the first", &[(0, 3, b"abc"), (3, 4, b"d")], 2, true),
            ("starts after what was asked for", &[(3, 4, b"d")], 2, false),
            ("ends before what was asked for", &[(0, 2, b"ab")], 2, false),
            ("gap", &[(0, 3, b"abc"), (4, 5, b"e")], 0, false),
            ("overlap", &[(0, 3, b"abc"), (2, 5, b"e")], 0, false),
            ("no entries", &[(0, 0, b"abc")], 0, false),
            ("no bytes", &[(0, 1, b"")], 0, false),
        ] {
            assert_eq!(read_bundles(&laid_out(bundles), from).is_ok(), good, "{what}");
        }
        let mut cut = laid_out(&[(0, 3, b"abc")]);
        cut.pop();
        assert!(read_bundles(&cut, 0).is_err());
    }

    #[test]
    fn appends_that_can_never_be_right() {
        let head = |size, epoch, hash| Head { size, epoch, bundle_hash: [hash; 32] };
        for (what, expected, new, bundle, misuse) in [
            ("ordinary", head(0, 0, 0), head(2, 0, 1), &b"ab"[..], false),
            ("with a new epoch", head(2, 0, 1), head(3, 1, 2), b"c", false),
            ("epoch only", head(2, 0, 1), head(2, 1, 1), b"", false),
            ("epoch falls", head(2, 1, 1), head(3, 0, 2), b"c", true),
            ("no entries", head(2, 0, 1), head(2, 0, 2), b"c", true),
            ("empty with entries", head(2, 0, 1), head(3, 0, 2), b"", true),
            ("empty, nothing changes", head(2, 0, 1), head(2, 0, 1), b"", true),
        ] {
            assert_eq!(append_misuse(&expected, &new, bundle).is_some(), misuse, "{what}");
        }
    }
}
