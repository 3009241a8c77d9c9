//! Stored rows and their hashes. Integers are big-endian.
//!
//! | Row | Bytes |
//! |---|---|
//! | bundle | SHA-256, end u64, bundle hash 32, the bundle |
//! | head | SHA-256, size u64, epoch u64, bundle hash 32 |
//! | checkpoint, snapshot piece | SHA-256, the bytes |
//! | snapshot | SHA-256, upload u64, size u64, total u64, state hash 32 |
//!
//! The SHA-256 covers the table's name, the key and everything behind it, so that a row cannot stand in for another.

use mayfly_plugin_abi::{Bundle, Head, SnapshotInfo};
use sha2::{Digest, Sha256};

const HASH_BYTES: usize = 32;

/// A row is not what was written.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Damaged;

/// Puts the hash in front of a row's bytes.
pub(crate) fn seal(table: &str, key: &[u64], parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HASH_BYTES + parts.iter().map(|part| part.len()).sum::<usize>());
    out.extend_from_slice(&[0; HASH_BYTES]);
    for part in parts {
        out.extend_from_slice(part);
    }
    let hash = hash(table, key, &out[HASH_BYTES..]);
    out[..HASH_BYTES].copy_from_slice(&hash);
    out
}

/// Checks the hash of a row and gives what is behind it.
pub(crate) fn open<'a>(table: &str, key: &[u64], row: &'a [u8]) -> Result<&'a [u8], Damaged> {
    let (stored, body) = row.split_at_checked(HASH_BYTES).ok_or(Damaged)?;
    if stored == hash(table, key, body) { Ok(body) } else { Err(Damaged) }
}

fn hash(table: &str, key: &[u64], body: &[u8]) -> [u8; HASH_BYTES] {
    let mut hasher = Sha256::new();
    hasher.update((table.len() as u64).to_be_bytes());
    hasher.update(table.as_bytes());
    hasher.update((key.len() as u64).to_be_bytes());
    for part in key {
        hasher.update(part.to_be_bytes());
    }
    hasher.update(body);
    hasher.finalize().into()
}

/// Name of the bundle table inside hashes and in the file.
pub(crate) const BUNDLES: &str = "bundles";
/// Name of the table of the head and the format version.
pub(crate) const META: &str = "meta";

/// A bundle's row.
pub(crate) fn bundle(first: u64, end: u64, bundle_hash: &[u8; 32], bytes: &[u8]) -> Vec<u8> {
    seal(BUNDLES, &[first], &[&end.to_be_bytes(), bundle_hash, bytes])
}

/// A bundle from its row.
pub(crate) fn read_bundle(first: u64, row: &[u8]) -> Result<Bundle, Damaged> {
    let body = open(BUNDLES, &[first], row)?;
    let (end, rest) = body.split_first_chunk::<8>().ok_or(Damaged)?;
    let (bundle_hash, bytes) = rest.split_first_chunk::<32>().ok_or(Damaged)?;
    Ok(Bundle { first, end: u64::from_be_bytes(*end), bundle_hash: *bundle_hash, bytes: bytes.to_vec() })
}

/// The head's row.
pub(crate) fn head(head: &Head) -> Vec<u8> {
    seal(META, &[], &[&head.size.to_be_bytes(), &head.epoch.to_be_bytes(), &head.bundle_hash])
}

/// The head from its row.
pub(crate) fn read_head(row: &[u8]) -> Result<Head, Damaged> {
    let body: &[u8; 48] = open(META, &[], row)?.try_into().map_err(|_| Damaged)?;
    let (size, rest) = body.split_first_chunk::<8>().ok_or(Damaged)?;
    let (epoch, rest) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
    let bundle_hash = rest.try_into().map_err(|_| Damaged)?;
    Ok(Head { size: u64::from_be_bytes(*size), epoch: u64::from_be_bytes(*epoch), bundle_hash })
}

/// A snapshot's row: which upload its pieces are under, and what it is.
pub(crate) fn snapshot(table: &str, key: &[u64], upload: u64, info: &SnapshotInfo) -> Vec<u8> {
    let parts: [&[u8]; 4] =
        [&upload.to_be_bytes(), &info.size.to_be_bytes(), &info.total_bytes.to_be_bytes(), &info.state_hash];
    seal(table, key, &parts)
}

/// A snapshot from its row.
pub(crate) fn read_snapshot(table: &str, key: &[u64], row: &[u8]) -> Result<(u64, SnapshotInfo), Damaged> {
    let body = open(table, key, row)?;
    let (upload, rest) = body.split_first_chunk::<8>().ok_or(Damaged)?;
    let (size, rest) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
    let (total, rest) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
    let state_hash = rest.try_into().map_err(|_| Damaged)?;
    let info = SnapshotInfo { size: u64::from_be_bytes(*size), total_bytes: u64::from_be_bytes(*total), state_hash };
    Ok((u64::from_be_bytes(*upload), info))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_opens_under_its_own_name_and_key_only() {
        let row = bundle(3, 5, &[7; 32], b"bytes");
        let read = read_bundle(3, &row).unwrap();
        assert_eq!((read.first, read.end, read.bundle_hash, &read.bytes[..]), (3, 5, [7; 32], &b"bytes"[..]));
        assert_eq!(read_bundle(4, &row), Err(Damaged));
        assert_eq!(open(META, &[3], &row), Err(Damaged));
        for bit in 0..row.len() * 8 {
            let mut bad = row.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_bundle(3, &bad), Err(Damaged), "bit {bit}");
        }
        for length in 0..row.len() {
            assert_eq!(read_bundle(3, &row[..length]), Err(Damaged), "{length} bytes");
        }
    }

    #[test]
    fn head_and_snapshot_rows_come_back() {
        let one = Head { size: 1, epoch: 2, bundle_hash: [3; 32] };
        assert_eq!(read_head(&head(&one)), Ok(one));
        let info = SnapshotInfo { size: 4, total_bytes: 5, state_hash: [6; 32] };
        let row = snapshot("snapshots", &[4], 9, &info);
        assert_eq!(read_snapshot("snapshots", &[4], &row), Ok((9, info)));
        assert_eq!(read_snapshot("snapshots", &[5], &row), Err(Damaged));
    }
}
