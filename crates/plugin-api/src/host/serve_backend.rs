//! The ledger backend's calls: fields in, C call, fields out.

use super::call::{Reply, call, filled, is_status};
use super::load::Open;
use super::serve_vault::{control, health, offered};
use crate::abi::{
    BUNDLE_BYTES_MAX, BackendTable, CHECKPOINT_BYTES_MAX, Head, LEASE_NAME_BYTES_MAX, READ_BYTES_MAX, RawCaps,
    SNAPSHOT_CHUNK_BYTES_MAX, SnapshotInfo, Status,
};
use crate::codec::{Malformed, Op, Reader, Writer};

/// Serves one call. A malformed request is the facade's defect; a lying plugin is a reply.
pub(crate) fn serve(backend: &Open<BackendTable>, op: Op, fields: &mut Reader<'_>) -> Result<Reply, Malformed> {
    let reply = match op {
        Op::Caps => caps(backend),
        Op::Head => head(backend),
        Op::Append => append(backend, &fields.head()?, &fields.head()?, fields.bytes(BUNDLE_BYTES_MAX)?),
        Op::Read => read(backend, fields.u64()?, fields.u64()?),
        Op::Wait => wait(backend, fields.u64()?, fields.u64()?),
        Op::PutCheckpoint => put_checkpoint(backend, fields.u64()?, fields.bytes(CHECKPOINT_BYTES_MAX)?),
        Op::LatestCheckpoint => latest_checkpoint(backend, fields.u64()?),
        Op::PutSnapshot => {
            put_snapshot(backend, &fields.snapshot_info()?, fields.u64()?, fields.bytes(SNAPSHOT_CHUNK_BYTES_MAX)?)
        }
        Op::GetSnapshot => get_snapshot(backend, fields.u64()?, fields.u64()?),
        Op::Prune => prune(backend, fields.u64()?),
        Op::Health => health(backend.table.health, backend.handle),
        Op::Lease => lease(backend, fields.bytes(LEASE_NAME_BYTES_MAX)?, &fields.array::<16>()?, fields.u64()?),
        Op::Control => control(backend.table.control, backend.handle, fields)?,
        _ => Err(Reply::host(crate::codec::HOST_BAD_REQUEST, "not a call of a ledger backend")),
    };
    Ok(reply.unwrap_or_else(|refused| refused))
}

// In each call below the function comes from the checked table, the handle is the plugin's own and live, calls come one
// at a time, and every pointer is valid for the length beside it during the call: the rules of the table.

fn caps(backend: &Open<BackendTable>) -> Result<Reply, Reply> {
    let function = offered(backend.table.caps)?;
    let mut out = RawCaps { size: size_of::<RawCaps>() as u32, ..RawCaps::default() };
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(backend.handle, &raw mut out, message) })?;
    Ok(Reply::ok(Writer::new().u32(out.flags).u64(out.bundle_bytes_max).u64(out.capacity_bytes)))
}

fn head(backend: &Open<BackendTable>) -> Result<Reply, Reply> {
    let function = offered(backend.table.head)?;
    let mut out = Head::default();
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(backend.handle, &raw mut out, message) })?;
    Ok(Reply::ok(Writer::new().head(&out)))
}

fn append(backend: &Open<BackendTable>, expected: &Head, new: &Head, bundle: &[u8]) -> Result<Reply, Reply> {
    let function = offered(backend.table.append_if_head)?;
    let mut actual = Head::default();
    // SAFETY: the rules of the table, see above.
    let result = call(|message| unsafe {
        function(backend.handle, expected, new, bundle.as_ptr(), bundle.len(), &raw mut actual, message)
    });
    match result {
        Err(reply) if is_status(&reply, Status::Conflict) => Err(reply.with(Writer::new().head(&actual))),
        other => other.map(|()| Reply::ok(Writer::new())),
    }
}

fn read(backend: &Open<BackendTable>, from: u64, bytes_max: u64) -> Result<Reply, Reply> {
    let function = offered(backend.table.read)?;
    let mut out = vec![0u8; READ_BYTES_MAX];
    let (mut length, mut first) = (0usize, 0u64);
    // SAFETY: the rules of the table, see above.
    let result = call(|message| unsafe {
        function(backend.handle, from, bytes_max, out.as_mut_ptr(), out.len(), &raw mut length, &raw mut first, message)
    });
    match result {
        Err(reply) if is_status(&reply, Status::Pruned) => Err(reply.with(Writer::new().u64(first))),
        Err(reply) => Err(reply),
        Ok(()) => Ok(Reply::ok(Writer::new().bytes(filled(&out, length)?))),
    }
}

fn wait(backend: &Open<BackendTable>, above: u64, timeout_ms: u64) -> Result<Reply, Reply> {
    let function = offered(backend.table.wait)?;
    let mut out = Head::default();
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(backend.handle, above, timeout_ms, &raw mut out, message) })?;
    Ok(Reply::ok(Writer::new().head(&out)))
}

fn put_checkpoint(backend: &Open<BackendTable>, size: u64, data: &[u8]) -> Result<Reply, Reply> {
    let function = offered(backend.table.put_checkpoint)?;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(backend.handle, size, data.as_ptr(), data.len(), message) })?;
    Ok(Reply::ok(Writer::new()))
}

fn latest_checkpoint(backend: &Open<BackendTable>, size: u64) -> Result<Reply, Reply> {
    let function = offered(backend.table.latest_checkpoint)?;
    let mut out = vec![0u8; CHECKPOINT_BYTES_MAX];
    let (mut found, mut length) = (0u64, 0usize);
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe {
        function(backend.handle, size, &raw mut found, out.as_mut_ptr(), out.len(), &raw mut length, message)
    })?;
    Ok(Reply::ok(Writer::new().u64(found).bytes(filled(&out, length)?)))
}

fn put_snapshot(backend: &Open<BackendTable>, info: &SnapshotInfo, offset: u64, data: &[u8]) -> Result<Reply, Reply> {
    let function = offered(backend.table.put_snapshot)?;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(backend.handle, info, offset, data.as_ptr(), data.len(), message) })?;
    Ok(Reply::ok(Writer::new()))
}

fn get_snapshot(backend: &Open<BackendTable>, size: u64, offset: u64) -> Result<Reply, Reply> {
    let function = offered(backend.table.get_snapshot)?;
    let mut out = vec![0u8; SNAPSHOT_CHUNK_BYTES_MAX];
    let mut info = SnapshotInfo::default();
    let mut length = 0usize;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe {
        function(backend.handle, size, offset, &raw mut info, out.as_mut_ptr(), out.len(), &raw mut length, message)
    })?;
    Ok(Reply::ok(Writer::new().snapshot_info(&info).bytes(filled(&out, length)?)))
}

fn prune(backend: &Open<BackendTable>, up_to: u64) -> Result<Reply, Reply> {
    let function = offered(backend.table.prune)?;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(backend.handle, up_to, message) })?;
    Ok(Reply::ok(Writer::new()))
}

fn lease(backend: &Open<BackendTable>, name: &[u8], holder: &[u8; 16], ttl_ms: u64) -> Result<Reply, Reply> {
    let function = offered(backend.table.lease)?;
    let mut held = 0u32;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe {
        function(backend.handle, name.as_ptr(), name.len(), holder.as_ptr(), ttl_ms, &raw mut held, message)
    })?;
    Ok(Reply::ok(Writer::new().u32(held)))
}
