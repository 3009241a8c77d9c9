//! What every ledger backend must do.

use super::{Factory, KILL_DELAYS, Outcome, Report, Suite, ensure, refused, settled, text};
use crate::abi::{Bundle, Head, Lease, READ_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, SnapshotInfo, Status};
use crate::backend::{Append, BackendPlugin, ReadAnswer};
use crate::config::HostConfig;
use crate::error::PluginError;
use sha2::{Digest, Sha256};
use std::time::{Duration, Instant};

/// Runs the backend suite.
pub fn backend(factory: &Factory<'_>) -> Report {
    let mut suite = Suite::new("ledger".to_owned(), factory);
    suite.case("starts empty", starts_empty);
    if let Ok(backend) = BackendPlugin::start(&factory("name")) {
        suite.report.plugin = format!("ledger({})", backend.name());
    }
    suite.case("keeps what was appended, in order", keeps_order);
    suite.case("reads from any entry, in pieces", reads_ranges);
    suite.case("refuses an append to another head and names the actual one", conflicts);
    suite.case("shows an append that came twice as a conflict with itself", repeated_append);
    suite.case("fences an old sequencer by its epoch", epochs);
    suite.case("takes bundles up to its limit and none above", limits);
    suite.case("loses nothing when killed between any two calls", killed_between_calls);
    suite.case("has an append wholly or not at all when killed in it", killed_in_append);
    suite.case("lets one of many racing appends win", races);
    suite.case("keeps checkpoints", checkpoints);
    suite.case("keeps snapshots, published whole", snapshots);
    suite.case("prunes only what is covered, and says so to readers", prunes);
    suite.case("has one user at a time, or serves all alike", second_user);
    suite.case("is healthy", healthy);
    suite.case("waits, where it offers to", waits);
    suite.case("leases, where it offers to", leases);
    suite.report
}

fn start(config: &HostConfig) -> Result<BackendPlugin, String> {
    BackendPlugin::start(config).map_err(text)
}

/// The head after `entries` more entries in `bundle`.
fn after(head: &Head, entries: u64, bundle: &[u8]) -> Head {
    let mut hasher = Sha256::new();
    hasher.update(head.bundle_hash);
    hasher.update(bundle);
    Head { size: head.size + entries, epoch: head.epoch, bundle_hash: hasher.finalize().into() }
}

/// A bundle of `length` bytes that names the place it was made for.
fn content(place: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![place as u8; length.max(8)];
    bytes[..8].copy_from_slice(&place.to_le_bytes());
    bytes
}

fn append(backend: &BackendPlugin, head: &Head, entries: u64, bundle: &[u8]) -> Result<Head, String> {
    let new = after(head, entries, bundle);
    match backend.append_if_head(head, &new, bundle).map_err(text)? {
        Append::Done => Ok(new),
        other => Err(format!("append at {}: {other:?}", head.size)),
    }
}

/// Appends bundles of 1, 2, 3, … entries; gives the head and what must be there.
fn fill(backend: &BackendPlugin, count: u64, length: usize) -> Result<(Head, Vec<Bundle>), String> {
    let mut head = backend.head().map_err(text)?;
    let mut bundles = Vec::new();
    for number in 0..count {
        let bytes = content(head.size, length);
        let new = append(backend, &head, 1 + number % 4, &bytes)?;
        bundles.push(Bundle { first: head.size, end: new.size, bundle_hash: new.bundle_hash, bytes });
        head = new;
    }
    Ok((head, bundles))
}

fn read(backend: &BackendPlugin, from: u64, bytes_max: usize) -> Result<Vec<Bundle>, String> {
    match settled(|| backend.read(from, bytes_max))? {
        ReadAnswer::Bundles(bundles) => Ok(bundles),
        ReadAnswer::Pruned(first) => Err(format!("entry {from} is pruned, first is {first}")),
    }
}

fn read_all(backend: &BackendPlugin, mut from: u64, bytes_max: usize) -> Result<Vec<Bundle>, String> {
    let mut all = Vec::new();
    loop {
        let some = read(backend, from, bytes_max)?;
        let Some(last) = some.last() else { return Ok(all) };
        from = last.end;
        all.extend(some);
    }
}

fn starts_empty(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    ensure!(backend.head().map_err(text)? == Head::default(), "a head in a new store");
    ensure!(read(&backend, 0, 1000)?.is_empty(), "bundles in a new store");
    ensure!(read(&backend, u64::MAX, 1000)?.is_empty(), "bundles at the end of all numbers");
    ensure!(backend.latest_checkpoint(u64::MAX).map_err(text)?.is_none(), "a checkpoint in a new store");
    ensure!(backend.get_snapshot_piece(u64::MAX, 0).map_err(text)?.is_none(), "a snapshot in a new store");
    let caps = backend.caps();
    Ok(format!("{} {}, {caps:?}", backend.name(), backend.version()))
}

fn keeps_order(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (head, bundles) = fill(&backend, 20, 300)?;
    ensure!(backend.head().map_err(text)? == head, "another head than appended");
    ensure!(read_all(&backend, 0, READ_BYTES_MAX)? == bundles, "other bundles than appended");
    drop(backend);
    let again = start(config)?;
    ensure!(again.head().map_err(text)? == head, "another head after a restart");
    ensure!(read_all(&again, 0, READ_BYTES_MAX)? == bundles, "other bundles after a restart");
    Ok(String::new())
}

fn reads_ranges(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (head, bundles) = fill(&backend, 12, 100)?;
    for from in 0..head.size {
        let expected: Vec<_> = bundles.iter().filter(|bundle| bundle.end > from).cloned().collect();
        ensure!(read(&backend, from, READ_BYTES_MAX)? == expected, "read from {from}");
        let one = read(&backend, from, 0)?;
        ensure!(one.len() == 1 && one[0] == expected[0], "read from {from} with no room gives {} bundles", one.len());
        let some = read(&backend, from, 400)?;
        ensure!(some.len() <= 3 && some[..] == expected[..some.len()], "read from {from} with 400 bytes");
    }
    ensure!(read(&backend, head.size, 1000)?.is_empty(), "bundles at the head");
    ensure!(read(&backend, head.size + 5, 1000)?.is_empty(), "bundles beyond the head");
    ensure!(read_all(&backend, 0, 1)? == bundles, "one by one");
    Ok(String::new())
}

fn conflicts(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (head, bundles) = fill(&backend, 3, 100)?;
    let other_hash = Head { bundle_hash: [0xee; 32], ..head };
    let other_epoch = Head { epoch: head.epoch + 1, ..head };
    for expected in [
        Head::default(),
        Head { size: head.size - 1, ..head },
        Head { size: head.size + 1, ..head },
        other_hash,
        other_epoch,
    ] {
        let new = after(&expected, 1, b"conflict");
        match backend.append_if_head(&expected, &new, b"conflict").map_err(text)? {
            Append::Conflict(actual) => ensure!(actual == head, "the actual head is {head:?}, told was {actual:?}"),
            other => return Err(format!("{other:?} for an append to {expected:?}")),
        }
    }
    ensure!(backend.head().map_err(text)? == head, "a refused append changed the head");
    ensure!(read_all(&backend, 0, READ_BYTES_MAX)? == bundles, "a refused append changed the bundles");
    Ok(String::new())
}

fn repeated_append(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (head, _) = fill(&backend, 2, 100)?;
    let new = append(&backend, &head, 2, b"the same bytes")?;
    match backend.append_if_head(&head, &new, b"the same bytes").map_err(text)? {
        Append::Conflict(actual) => ensure!(actual == new, "the actual head is {new:?}, told was {actual:?}"),
        other => return Err(format!("{other:?}")),
    }
    ensure!(read_all(&backend, 0, READ_BYTES_MAX)?.len() == 3, "it was stored twice");
    Ok(String::new())
}

fn epochs(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (old, bundles) = fill(&backend, 2, 100)?;
    let taken_over = Head { epoch: old.epoch + 1, ..old };
    let answer = backend.append_if_head(&old, &taken_over, b"").map_err(text)?;
    ensure!(matches!(answer, Append::Done), "raising the epoch: {answer:?}");
    ensure!(backend.head().map_err(text)? == taken_over, "the epoch was not kept");
    match backend.append_if_head(&old, &after(&old, 1, b"late"), b"late").map_err(text)? {
        Append::Conflict(actual) => ensure!(actual == taken_over, "told was {actual:?}"),
        other => return Err(format!("the old sequencer's append: {other:?}")),
    }
    append(&backend, &taken_over, 1, b"the new sequencer")?;
    ensure!(read_all(&backend, 0, READ_BYTES_MAX)?[..2] == bundles[..], "a change of epoch changed bundles");
    Ok(String::new())
}

fn limits(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let limit = backend.caps().bundle_bytes_max as usize;
    let largest = content(0, limit);
    let head = append(&backend, &Head::default(), 256, &largest)?;
    let found = read(&backend, 255, 0)?;
    ensure!(found.len() == 1 && found[0].bytes == largest, "the largest bundle came back otherwise");
    let above = content(1, limit + 1);
    let answer = backend.append_if_head(&head, &after(&head, 1, &above), &above);
    ensure!(matches!(answer, Err(PluginError::Argument { .. })), "a bundle above the limit was taken");
    for (what, new, bundle) in [
        ("no entries", Head { size: head.size, ..after(&head, 1, b"x") }, &b"x"[..]),
        ("fewer entries", Head { size: head.size - 1, ..after(&head, 1, b"x") }, b"x"),
        ("entries without a bundle", after(&head, 1, b""), b""),
        ("no change at all", head, b""),
    ] {
        let answer = backend.append_if_head(&head, &new, bundle);
        ensure!(matches!(answer, Err(PluginError::Argument { .. })), "{what}: {answer:?}");
    }
    Ok(format!("{limit} bytes"))
}

fn killed_between_calls(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let mut head = Head::default();
    for number in 0..5u64 {
        let bytes = content(number, 200);
        let new = after(&head, 1, &bytes);
        backend.danger_kill_host();
        settle_append(&backend, &head, &new, &bytes)?;
        head = new;
        backend.danger_kill_host();
        ensure!(settled(|| backend.head())? == head, "an acknowledged append is gone");
        backend.danger_kill_host();
        let last = read(&backend, number, 0)?;
        ensure!(last.len() == 1 && last[0].bytes == bytes, "another bundle at {number}");
    }
    Ok(String::new())
}

/// An append as the gateway does it: doubts are resolved by reading, then the same bytes go again.
fn settle_append(backend: &BackendPlugin, expected: &Head, new: &Head, bundle: &[u8]) -> Result<bool, String> {
    const TRIES: usize = 50;
    for _ in 0..TRIES {
        match backend.append_if_head(expected, new, bundle) {
            Ok(Append::Done) => return Ok(true),
            Ok(Append::Conflict(actual)) => return Ok(actual == *new),
            Ok(Append::Unknown(_)) => {
                let found = read(backend, expected.size, 0)?;
                if let Some(found) = found.first() {
                    return Ok(found.bundle_hash == new.bundle_hash);
                }
            }
            Err(PluginError::Restarting { wait, .. }) => std::thread::sleep(wait),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("an append stayed unknown".to_owned())
}

fn killed_in_append(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let mut head = Head::default();
    let mut expected = Vec::new();
    let mut stored_at_once = 0;
    for (number, delay) in (0u64..).zip(KILL_DELAYS) {
        let bytes = content(number, 20_000);
        let new = after(&head, 1, &bytes);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_micros(delay));
                backend.danger_kill_host();
            });
            backend.append_if_head(&head, &new, &bytes)
        });
        let found = settled(|| backend.head())?;
        ensure!(found == head || found == new, "a head that nobody wrote: {found:?}");
        ensure!(!matches!(answer, Ok(Append::Done)) || found == new, "append {number} was acknowledged and is gone");
        stored_at_once += u32::from(found == new);
        ensure!(found == new || settle_append(&backend, &head, &new, &bytes)?, "append {number} cannot be repeated");
        expected.push(bytes);
        head = new;
    }
    let found: Vec<_> = read_all(&backend, 0, READ_BYTES_MAX)?.into_iter().map(|bundle| bundle.bytes).collect();
    ensure!(found == expected, "after all kills other bundles are there");
    Ok(format!("{} kills, {stored_at_once} after the append was stored", KILL_DELAYS.len()))
}

fn races(config: &HostConfig) -> Outcome {
    const WRITERS: u64 = 8;
    const EACH: u64 = 5;
    let backend = start(config)?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let backend = &backend;
                scope.spawn(move || -> Result<(), String> {
                    for number in 0..EACH {
                        let bytes = content(writer * EACH + number, 64);
                        loop {
                            let head = backend.head().map_err(text)?;
                            let new = after(&head, 1, &bytes);
                            match backend.append_if_head(&head, &new, &bytes).map_err(text)? {
                                Append::Done => break,
                                Append::Conflict(_) => {}
                                Append::Unknown(error) => return Err(error.to_string()),
                            }
                        }
                    }
                    Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().unwrap_or_else(|_| Err("a thread panicked".to_owned())))
    })?;
    let mut found: Vec<_> = read_all(&backend, 0, READ_BYTES_MAX)?.into_iter().map(|bundle| bundle.bytes).collect();
    found.sort();
    let mut expected: Vec<_> = (0..WRITERS * EACH).map(|place| content(place, 64)).collect();
    expected.sort();
    ensure!(found == expected, "{} bundles of {} are there", found.len(), expected.len());
    Ok(format!("{WRITERS} writers"))
}

fn checkpoints(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    for size in [3u64, 7, 12] {
        backend.put_checkpoint(size, format!("checkpoint {size}").as_bytes()).map_err(text)?;
    }
    backend.put_checkpoint(7, b"checkpoint 7, cosigned").map_err(text)?;
    backend.danger_kill_host();
    for (asked, expected) in [
        (2, None),
        (3, Some((3, "checkpoint 3"))),
        (6, Some((3, "checkpoint 3"))),
        (11, Some((7, "checkpoint 7, cosigned"))),
        (u64::MAX, Some((12, "checkpoint 12"))),
    ] {
        let found = settled(|| backend.latest_checkpoint(asked))?;
        let found = found.as_ref().map(|found| (found.size, String::from_utf8_lossy(&found.bytes).into_owned()));
        let expected = expected.map(|(size, text)| (size, text.to_owned()));
        ensure!(found == expected, "latest_checkpoint({asked}): {found:?}");
    }
    Ok(String::new())
}

fn snapshot(size: u64, length: usize) -> (SnapshotInfo, Vec<u8>) {
    let bytes = content(size, length);
    (SnapshotInfo { size, total_bytes: bytes.len() as u64, state_hash: Sha256::digest(&bytes).into() }, bytes)
}

fn get_whole(backend: &BackendPlugin, size: u64) -> Result<Option<(SnapshotInfo, Vec<u8>)>, String> {
    let mut bytes = Vec::new();
    loop {
        let Some(piece) = settled(|| backend.get_snapshot_piece(size, bytes.len() as u64))? else { return Ok(None) };
        bytes.extend_from_slice(&piece.bytes);
        if bytes.len() as u64 >= piece.info.total_bytes {
            return Ok(Some((piece.info, bytes)));
        }
    }
}

fn snapshots(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let one = snapshot(10, 2 * SNAPSHOT_CHUNK_BYTES_MAX + 77);
    backend.put_snapshot(&one.0, &one.1).map_err(text)?;
    ensure!(get_whole(&backend, 10)? == Some(one.clone()), "another snapshot than stored");
    ensure!(get_whole(&backend, 9)?.is_none(), "a snapshot of more entries than asked for");

    let two = snapshot(20, SNAPSHOT_CHUNK_BYTES_MAX + 5);
    let (first, second) = two.1.split_at(1000);
    backend.put_snapshot_piece(&two.0, 0, first).map_err(text)?;
    ensure!(get_whole(&backend, 20)? == Some(one), "half a snapshot is visible");
    for (what, offset) in [("a gap", 1001), ("an overlap", 999)] {
        refused(what, backend.put_snapshot_piece(&two.0, offset, &second[..10]), &[Status::Invalid])?;
    }
    let other = SnapshotInfo { state_hash: [1; 32], ..two.0 };
    refused("a piece of another snapshot", backend.put_snapshot_piece(&other, 1000, second), &[Status::Invalid])?;
    backend.danger_kill_host();
    settled(|| backend.put_snapshot(&two.0, &two.1))?;
    backend.danger_kill_host();
    ensure!(get_whole(&backend, u64::MAX)? == Some(two), "another snapshot after a crash");
    Ok(String::new())
}

fn prunes(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (head, bundles) = fill(&backend, 10, 100)?;
    let up_to = bundles[4].end - 1;
    refused("pruning with nothing to cover it", backend.prune(up_to), &[Status::Invalid])?;
    backend.put_checkpoint(up_to, b"checkpoint").map_err(text)?;
    refused("pruning without a snapshot", backend.prune(up_to), &[Status::Invalid])?;
    let (info, bytes) = snapshot(up_to, 100);
    backend.put_snapshot(&info, &bytes).map_err(text)?;
    refused("pruning beyond what is covered", backend.prune(up_to + 1), &[Status::Invalid])?;
    backend.prune(up_to).map_err(text)?;
    backend.prune(up_to).map_err(text)?;
    backend.danger_kill_host();
    ensure!(settled(|| backend.head())? == head, "pruning changed the head");
    let left = bundles[4].first;
    for from in 0..left {
        match settled(|| backend.read(from, 1000))? {
            ReadAnswer::Pruned(first) => ensure!(first == left, "first entry left is {left}, told was {first}"),
            ReadAnswer::Bundles(_) => return Err(format!("entry {from} is still there")),
        }
    }
    ensure!(read_all(&backend, left, READ_BYTES_MAX)? == bundles[4..], "pruning took more than it should");
    append(&backend, &head, 1, b"goes on")?;
    Ok(String::new())
}

fn second_user(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (head, bundles) = fill(&backend, 2, 100)?;
    let seen = match BackendPlugin::start(config) {
        Err(error) => {
            ensure!(error.status() == Some(Status::Busy), "expected Busy, got: {error}");
            "one at a time"
        }
        Ok(other) => {
            ensure!(other.head().map_err(text)? == head, "the second one sees another head");
            let new = append(&other, &head, 1, b"by the second")?;
            ensure!(backend.head().map_err(text)? == new, "the first one does not see the second's append");
            "shared"
        }
    };
    ensure!(read_all(&backend, 0, READ_BYTES_MAX)?[..2] == bundles[..], "the second one changed bundles");
    Ok(seen.to_owned())
}

fn healthy(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    fill(&backend, 1, 100)?;
    let health = backend.health().map_err(text)?;
    ensure!(health.state == crate::abi::HealthState::Ok, "{health:?}");
    Ok(format!("last durable write {} µs", health.sync_micros))
}

fn waits(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    if !backend.caps().has_wait {
        refused("wait", backend.wait(0, Duration::from_millis(1)), &[Status::Unsupported])?;
        return Ok("not offered".to_owned());
    }
    let started = Instant::now();
    backend.wait(0, Duration::from_millis(100)).map_err(text)?;
    ensure!(started.elapsed() < Duration::from_secs(5), "a wait of 100 ms took {:?}", started.elapsed());
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| backend.wait(0, Duration::from_secs(10)));
        append(&backend, &Head::default(), 1, b"news")?;
        let head = waiter.join().map_err(|_| "the waiter panicked".to_owned())?.map_err(text)?;
        ensure!(head.size <= 1, "it told of entry {}", head.size);
        Ok(String::new())
    })
}

fn leases(config: &HostConfig) -> Outcome {
    let backend = start(config)?;
    let (one, other) = ([1u8; 16], [2u8; 16]);
    let minute = Duration::from_secs(60);
    match backend.lease("sequencer", &one, minute) {
        Err(error) if error.status() == Some(Status::Unsupported) => return Ok("not offered".to_owned()),
        answer => ensure!(answer.map_err(text)? == Lease::Held, "a free lease was not given"),
    }
    ensure!(backend.lease("sequencer", &other, minute).map_err(text)? == Lease::Taken, "two hold one lease");
    ensure!(backend.lease("sequencer", &one, minute).map_err(text)? == Lease::Held, "the holder cannot renew");
    ensure!(backend.lease("another", &other, minute).map_err(text)? == Lease::Held, "leases are not kept apart");
    backend.lease("sequencer", &one, Duration::ZERO).map_err(text)?;
    ensure!(backend.lease("sequencer", &other, minute).map_err(text)? == Lease::Held, "it was not given back");
    Ok(String::new())
}
