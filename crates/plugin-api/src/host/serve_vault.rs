//! The vault's calls: fields in, C call, fields out.

use super::call::{Reply, call, filled};
use super::load::Open;
use crate::abi::{
    self, BLOB_BYTES_MAX, PUBLIC_KEY_BYTES_MAX, RANDOM_BYTES_MAX, RawGeneration, RawHealth, RawVaultDescription,
    SIGN_MESSAGE_BYTES_MAX, SIGNATURE_BYTES, VAULT_KEY_BYTES, VaultTable,
};
use crate::codec::{Malformed, Op, Reader, Writer};
use crate::page::SecretPage;
use core::ffi::c_void;

/// Serves one call. A malformed request is the facade's defect; a lying plugin is a reply.
pub(crate) fn serve(
    vault: &Open<VaultTable>,
    op: Op,
    fields: &mut Reader<'_>,
    page: &SecretPage,
) -> Result<Reply, Malformed> {
    let reply = match op {
        Op::Describe => describe(vault),
        Op::IdentityPublic => identity_public(vault, fields.u32()?, fields.u8()?),
        Op::IdentitySign => identity_sign(vault, fields.bytes(SIGN_MESSAGE_BYTES_MAX)?),
        Op::Attest => attest(vault, fields.u32()?, fields.bytes(BLOB_BYTES_MAX)?),
        Op::Generation => generation(vault),
        Op::Stage => key(vault.table.stage, vault.handle, fields.u64()?, fields.u32()?, page),
        Op::OpenKey => key(vault.table.open_key, vault.handle, fields.u64()?, fields.u32()?, page),
        Op::Commit => commit(vault, fields.u64()?),
        Op::DiscardStaged => discard_staged(vault),
        Op::Random => random(vault, fields.u32()? as usize, page),
        Op::Health => health(vault.table.health, vault.handle),
        Op::Control => control(vault.table.control, vault.handle, fields)?,
        _ => Err(Reply::host(crate::codec::HOST_BAD_REQUEST, "not a call of a vault")),
    };
    Ok(reply.unwrap_or_else(|refused| refused))
}

/// A function of the table that may be missing.
pub(crate) fn offered<F: Copy>(function: Option<F>) -> Result<F, Reply> {
    function.ok_or_else(|| Reply::host(abi::Status::Unsupported.code(), "not offered by this plugin"))
}

// In each call below the function comes from the checked table, the handle is the plugin's own and live, calls come one
// at a time, and every pointer is valid for the length beside it during the call: the rules of the table.

fn describe(vault: &Open<VaultTable>) -> Result<Reply, Reply> {
    let function = offered(vault.table.describe)?;
    let mut out = RawVaultDescription {
        size: size_of::<RawVaultDescription>() as u32,
        software_only: 0,
        identity_algs: 0,
        tiers: 0,
        hardware: [0; 256],
        security_note: [0; 512],
    };
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(vault.handle, &raw mut out, message) })?;
    Ok(Reply::ok(
        Writer::new()
            .u32(out.software_only)
            .u32(out.identity_algs)
            .u32(out.tiers)
            .bytes(abi::text_of(&out.hardware).as_bytes())
            .bytes(abi::text_of(&out.security_note).as_bytes()),
    ))
}

fn identity_public(vault: &Open<VaultTable>, alg: u32, create: u8) -> Result<Reply, Reply> {
    let function = offered(vault.table.identity_public)?;
    let mut key = [0u8; PUBLIC_KEY_BYTES_MAX];
    let (mut alg_out, mut length) = (0u32, 0usize);
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe {
        function(
            vault.handle,
            alg,
            create.into(),
            &raw mut alg_out,
            key.as_mut_ptr(),
            key.len(),
            &raw mut length,
            message,
        )
    })?;
    Ok(Reply::ok(Writer::new().u32(alg_out).bytes(filled(&key, length)?)))
}

fn identity_sign(vault: &Open<VaultTable>, data: &[u8]) -> Result<Reply, Reply> {
    let function = offered(vault.table.identity_sign)?;
    let mut signature = [0u8; SIGNATURE_BYTES];
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe {
        function(vault.handle, data.as_ptr(), data.len(), signature.as_mut_ptr(), signature.len(), message)
    })?;
    Ok(Reply::ok(Writer::new().raw(&signature)))
}

fn attest(vault: &Open<VaultTable>, step: u32, data: &[u8]) -> Result<Reply, Reply> {
    let function = offered(vault.table.attest)?;
    let mut out = vec![0u8; BLOB_BYTES_MAX];
    let mut length = 0usize;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe {
        function(vault.handle, step, data.as_ptr(), data.len(), out.as_mut_ptr(), out.len(), &raw mut length, message)
    })?;
    Ok(Reply::ok(Writer::new().bytes(filled(&out, length)?)))
}

fn generation(vault: &Open<VaultTable>) -> Result<Reply, Reply> {
    let function = offered(vault.table.generation)?;
    let mut out = RawGeneration::default();
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(vault.handle, &raw mut out, message) })?;
    Ok(Reply::ok(Writer::new().u64(out.current).u64(out.staged)))
}

type KeyFn = unsafe extern "C" fn(*mut c_void, u64, u32, *mut u8, usize, *mut abi::Message) -> i32;

/// `stage` and `open_key`: the plugin writes the key straight into the shared page.
fn key(
    function: Option<KeyFn>,
    handle: *mut c_void,
    generation: u64,
    tier: u32,
    page: &SecretPage,
) -> Result<Reply, Reply> {
    let function = offered(function)?;
    page.wipe();
    let out = page.target(VAULT_KEY_BYTES).ok_or_else(|| Reply::lie("no page"))?;
    // SAFETY: the rules of the table, see above; `out` is writable for VAULT_KEY_BYTES.
    let result = call(|message| unsafe { function(handle, generation, tier, out, VAULT_KEY_BYTES, message) });
    if result.is_err() {
        page.wipe();
    }
    result.map(|()| Reply::ok(Writer::new()))
}

fn commit(vault: &Open<VaultTable>, next: u64) -> Result<Reply, Reply> {
    let function = offered(vault.table.commit)?;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(vault.handle, next, message) })?;
    Ok(Reply::ok(Writer::new()))
}

fn discard_staged(vault: &Open<VaultTable>) -> Result<Reply, Reply> {
    let function = offered(vault.table.discard_staged)?;
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(vault.handle, message) })?;
    Ok(Reply::ok(Writer::new()))
}

fn random(vault: &Open<VaultTable>, length: usize, page: &SecretPage) -> Result<Reply, Reply> {
    let function = offered(vault.table.random)?;
    let out = page.target(length).filter(|_| length <= RANDOM_BYTES_MAX);
    let out = out.ok_or_else(|| Reply::host(crate::codec::HOST_BAD_REQUEST, "too many random bytes"))?;
    page.wipe();
    // SAFETY: the rules of the table, see above; `out` is writable for `length`.
    call(|message| unsafe { function(vault.handle, out, length, message) })?;
    Ok(Reply::ok(Writer::new()))
}

/// `health` of both kinds.
pub(crate) fn health(function: Option<abi::HealthFn>, handle: *mut c_void) -> Result<Reply, Reply> {
    let function = offered(function)?;
    let mut out = RawHealth {
        size: size_of::<RawHealth>() as u32,
        state: u32::MAX,
        free_bytes: 0,
        used_bytes: 0,
        sync_micros: 0,
        detail: [0; 256],
    };
    // SAFETY: the rules of the table, see above.
    call(|message| unsafe { function(handle, &raw mut out, message) })?;
    Ok(Reply::ok(
        Writer::new()
            .u32(out.state)
            .u64(out.free_bytes)
            .u64(out.used_bytes)
            .u64(out.sync_micros)
            .bytes(abi::text_of(&out.detail).as_bytes()),
    ))
}

/// `control` of both kinds.
pub(crate) fn control(
    function: Option<abi::ControlFn>,
    handle: *mut c_void,
    fields: &mut Reader<'_>,
) -> Result<Result<Reply, Reply>, Malformed> {
    let name = fields.bytes(abi::NAME_BYTES_MAX)?;
    let data = fields.bytes(BLOB_BYTES_MAX)?;
    let mut out = vec![0u8; BLOB_BYTES_MAX];
    let mut length = 0usize;
    Ok(offered(function).and_then(|function| {
        // SAFETY: the rules of the table, see above.
        call(|message| unsafe {
            function(
                handle,
                name.as_ptr(),
                name.len(),
                data.as_ptr(),
                data.len(),
                out.as_mut_ptr(),
                out.len(),
                &raw mut length,
                message,
            )
        })?;
        Ok(Reply::ok(Writer::new().bytes(filled(&out, length)?)))
    }))
}
