//! The tables, inside a transaction.

use crate::row;
use crate::store::Fault;
use mayfly_plugin_abi::{Bundle, Checkpoint, GuestError, Head, Snapshot, SnapshotInfo, Status};
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new(row::META);
const BUNDLES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new(row::BUNDLES);
const CHECKPOINTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("checkpoints");
const SNAPSHOTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshots");
/// Pieces by (upload, offset).
const PIECES: TableDefinition<'_, (u64, u64), &[u8]> = TableDefinition::new("snapshot_pieces");

const HEAD: &str = "head";
const FORMAT: &str = "format";
/// The snapshot that is coming in: as a snapshot's row; its next offset is where its pieces end.
const UPLOAD: &str = "upload";
const FORMAT_VERSION: &[u8] = b"mayfly ledger 1";
/// Published snapshots that are kept; older ones go when one is published.
const SNAPSHOTS_KEPT: usize = 2;
/// Bundles dropped in one transaction of a prune.
const PRUNE_ROWS_MAX: usize = 4096;

/// All tables, empty, and the head of an empty ledger.
pub(crate) fn make(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let mut meta = transaction.open_table(META)?;
    meta.insert(FORMAT, FORMAT_VERSION)?;
    meta.insert(HEAD, &row::head(&Head::default())[..])?;
    transaction.open_table(BUNDLES)?;
    transaction.open_table(CHECKPOINTS)?;
    transaction.open_table(SNAPSHOTS)?;
    transaction.open_table(PIECES)?;
    Ok(())
}

/// After opening: the format is ours, and the head is that of the last bundle.
pub(crate) fn check(transaction: &ReadTransaction) -> Result<(), Fault> {
    let meta = transaction.open_table(META)?;
    match meta.get(FORMAT)? {
        Some(format) if format.value() == FORMAT_VERSION => {}
        _ => return Err(Fault::Damaged("its format is unknown".to_owned())),
    }
    let head = head_of(&meta)?;
    if let Some((first, last)) = transaction.open_table(BUNDLES)?.last()? {
        let last = row::read_bundle(first.value(), last.value()).map_err(Fault::row(row::BUNDLES, first.value()))?;
        if last.end != head.size || last.bundle_hash != head.bundle_hash {
            return Err(Fault::Damaged("its head is not that of its last bundle".to_owned()));
        }
    }
    Ok(())
}

fn head_of(meta: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<Head, Fault> {
    let Some(stored) = meta.get(HEAD)? else { return Err(Fault::Damaged("it has no head".to_owned())) };
    row::read_head(stored.value()).map_err(Fault::row(row::META, 0))
}

/// The head.
pub(crate) fn head(transaction: &ReadTransaction) -> Result<Head, Fault> {
    head_of(&transaction.open_table(META)?)
}

/// Compare-and-swap; `Some` is the actual head of a conflict.
pub(crate) fn append(
    transaction: &WriteTransaction,
    expected: &Head,
    new: &Head,
    bundle: &[u8],
) -> Result<Option<Head>, Fault> {
    let mut meta = transaction.open_table(META)?;
    let actual = head_of(&meta)?;
    if actual != *expected {
        return Ok(Some(actual));
    }
    if !bundle.is_empty() {
        let stored = row::bundle(expected.size, new.size, &new.bundle_hash, bundle);
        let mut bundles = transaction.open_table(BUNDLES)?;
        if bundles.insert(expected.size, &stored[..])?.is_some() {
            return Err(Fault::Damaged(format!("a bundle lies above its head {}", expected.size)));
        }
    }
    meta.insert(HEAD, &row::head(new)[..])?;
    Ok(None)
}

/// Bundles from the one that contains `from`; `Err` is the first entry that is left.
pub(crate) fn read(
    transaction: &ReadTransaction,
    from: u64,
    bytes_max: usize,
    prefix_bytes: usize,
) -> Result<Result<Vec<Bundle>, u64>, Fault> {
    let head = head(transaction)?;
    if from >= head.size {
        return Ok(Ok(Vec::new()));
    }
    let table = transaction.open_table(BUNDLES)?;
    let Some(start) = table.range(..=from)?.next_back() else {
        let first = table.first()?.map_or(head.size, |(first, _)| first.value());
        return Ok(Err(first));
    };
    let mut bundles: Vec<Bundle> = Vec::new();
    let mut total = 0usize;
    for stored in table.range(start?.0.value()..)? {
        let (first, stored) = stored?;
        let bundle =
            row::read_bundle(first.value(), stored.value()).map_err(Fault::row(row::BUNDLES, first.value()))?;
        let fits = match bundles.last() {
            None => bundle.end > from,
            Some(before) => bundle.first == before.end,
        };
        if !fits {
            return Err(Fault::Damaged(format!("bundle {}..{} is out of place", bundle.first, bundle.end)));
        }
        total = total.saturating_add(prefix_bytes + bundle.bytes.len());
        if total > bytes_max && !bundles.is_empty() {
            break;
        }
        bundles.push(bundle);
    }
    Ok(Ok(bundles))
}

/// Keeps a checkpoint.
pub(crate) fn put_checkpoint(transaction: &WriteTransaction, size: u64, bytes: &[u8]) -> Result<(), Fault> {
    let mut table = transaction.open_table(CHECKPOINTS)?;
    table.insert(size, &row::seal("checkpoints", &[size], &[bytes])[..])?;
    Ok(())
}

/// The newest checkpoint of at most a size.
pub(crate) fn latest_checkpoint(transaction: &ReadTransaction, size: u64) -> Result<Option<Checkpoint>, Fault> {
    let table = transaction.open_table(CHECKPOINTS)?;
    let Some(found) = table.range(..=size)?.next_back() else { return Ok(None) };
    let (size, stored) = found?;
    let size = size.value();
    let bytes = row::open("checkpoints", &[size], stored.value()).map_err(Fault::row("checkpoints", size))?;
    Ok(Some(Checkpoint { size, bytes: bytes.to_vec() }))
}

/// Takes in a piece of a snapshot; the last one publishes it.
pub(crate) fn put_snapshot(
    transaction: &WriteTransaction,
    info: &SnapshotInfo,
    offset: u64,
    piece: &[u8],
) -> Result<(), Fault> {
    let mut meta = transaction.open_table(META)?;
    let mut pieces = transaction.open_table(PIECES)?;
    let pending = match meta.get(UPLOAD)? {
        Some(stored) => Some(row::read_snapshot(row::META, &[], stored.value()).map_err(Fault::row(row::META, 1))?),
        None => None,
    };
    let upload = if offset == 0 {
        if let Some((old, _)) = pending {
            pieces.retain_in((old, 0)..=(old, u64::MAX), |_, _| false)?;
        }
        let newest = pieces.last()?.map_or(0, |(key, _)| key.value().0);
        let upload = newest.max(pending.map_or(0, |(old, _)| old)).saturating_add(1);
        meta.insert(UPLOAD, &row::snapshot(row::META, &[], upload, info)[..])?;
        upload
    } else {
        match pending {
            Some((upload, ref under_way)) if under_way == info => upload,
            _ => return Err(refuse("this snapshot was not begun at offset 0")),
        }
    };
    let expected = end_of(&pieces, upload)?;
    let end = offset.saturating_add(piece.len() as u64);
    if offset != expected || piece.is_empty() || end > info.total_bytes {
        return Err(refuse(&format!("a piece at {offset}, the next one is {expected} of {}", info.total_bytes)));
    }
    pieces.insert((upload, offset), &row::seal("snapshot_pieces", &[upload, offset], &[piece])[..])?;
    if end == info.total_bytes {
        meta.remove(UPLOAD)?;
        publish(transaction, &mut pieces, upload, info)?;
    }
    Ok(())
}

fn refuse(text: &str) -> Fault {
    Fault::Refused(GuestError::new(Status::Invalid, text))
}

/// Where the next piece of an upload goes.
fn end_of(pieces: &impl ReadableTable<(u64, u64), &'static [u8]>, upload: u64) -> Result<u64, Fault> {
    let Some(last) = pieces.range((upload, 0)..=(upload, u64::MAX))?.next_back() else { return Ok(0) };
    let (key, stored) = last?;
    let (_, offset) = key.value();
    let bytes = row::open("snapshot_pieces", &[upload, offset], stored.value())
        .map_err(Fault::row("snapshot_pieces", offset))?;
    Ok(offset + bytes.len() as u64)
}

fn publish(
    transaction: &WriteTransaction,
    pieces: &mut redb::Table<'_, (u64, u64), &'static [u8]>,
    upload: u64,
    info: &SnapshotInfo,
) -> Result<(), Fault> {
    let mut snapshots = transaction.open_table(SNAPSHOTS)?;
    let mut gone = Vec::new();
    let stored = row::snapshot("snapshots", &[info.size], upload, info);
    if let Some(old) = snapshots.insert(info.size, &stored[..])? {
        gone.push(
            row::read_snapshot("snapshots", &[info.size], old.value()).map_err(Fault::row("snapshots", info.size))?.0,
        );
    }
    while snapshots.iter()?.count() > SNAPSHOTS_KEPT {
        let Some((size, old)) = snapshots.pop_first()? else { break };
        let size = size.value();
        gone.push(row::read_snapshot("snapshots", &[size], old.value()).map_err(Fault::row("snapshots", size))?.0);
    }
    for upload in gone {
        pieces.retain_in((upload, 0)..=(upload, u64::MAX), |_, _| false)?;
    }
    Ok(())
}

/// A piece of the newest published snapshot of at most a size.
pub(crate) fn get_snapshot(
    transaction: &ReadTransaction,
    size: u64,
    offset: u64,
    bytes_max: usize,
) -> Result<Option<Snapshot>, Fault> {
    let snapshots = transaction.open_table(SNAPSHOTS)?;
    let Some(found) = snapshots.range(..=size)?.next_back() else { return Ok(None) };
    let (size, stored) = found?;
    let size = size.value();
    let (upload, info) =
        row::read_snapshot("snapshots", &[size], stored.value()).map_err(Fault::row("snapshots", size))?;
    if offset >= info.total_bytes {
        return Ok(Some(Snapshot { info, bytes: Vec::new() }));
    }
    let pieces = transaction.open_table(PIECES)?;
    let missing = || Fault::Damaged(format!("snapshot {size} lacks the piece at {offset}"));
    let piece = pieces.range((upload, 0)..=(upload, offset))?.next_back().ok_or_else(missing)?;
    let (key, stored) = piece?;
    let (_, start) = key.value();
    let bytes =
        row::open("snapshot_pieces", &[upload, start], stored.value()).map_err(Fault::row("snapshot_pieces", start))?;
    let skip = usize::try_from(offset - start).unwrap_or(usize::MAX);
    let bytes = bytes.get(skip..).filter(|bytes| !bytes.is_empty()).ok_or_else(missing)?;
    Ok(Some(Snapshot { info, bytes: bytes[..bytes.len().min(bytes_max)].to_vec() }))
}

/// What must be there before anything below `up_to` may go.
pub(crate) fn may_prune(transaction: &ReadTransaction, up_to: u64) -> Result<(), Fault> {
    let head = head(transaction)?;
    if up_to > head.size {
        return Err(refuse(&format!("entry {up_to} is beyond the head {}", head.size)));
    }
    let checkpoint = transaction.open_table(CHECKPOINTS)?.last()?.map(|(size, _)| size.value());
    let snapshot = transaction.open_table(SNAPSHOTS)?.last()?.map(|(size, _)| size.value());
    if checkpoint.is_none_or(|size| size < up_to) || snapshot.is_none_or(|size| size < up_to) {
        return Err(refuse(&format!("no stored checkpoint and snapshot cover entry {up_to}")));
    }
    Ok(())
}

/// Drops some bundles wholly below `up_to`; true when there may be more. The last bundle always stays: it carries the
/// head's hash.
pub(crate) fn prune_some(transaction: &WriteTransaction, up_to: u64) -> Result<bool, Fault> {
    let mut bundles = transaction.open_table(BUNDLES)?;
    let newest = bundles.last()?.map(|(first, _)| first.value());
    let mut gone = Vec::new();
    for stored in bundles.range(..up_to)?.take(PRUNE_ROWS_MAX) {
        let (first, stored) = stored?;
        let bundle =
            row::read_bundle(first.value(), stored.value()).map_err(Fault::row(row::BUNDLES, first.value()))?;
        if bundle.end > up_to || Some(bundle.first) == newest {
            break;
        }
        gone.push(bundle.first);
    }
    for first in &gone {
        bundles.remove(first)?;
    }
    Ok(gone.len() == PRUNE_ROWS_MAX)
}
