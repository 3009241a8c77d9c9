//! Making a vault: storage root key, indices, counter. Each step can be repeated, so a crash anywhere is finished by
//! the next start.

use crate::chip;
use crate::config::Config;
use crate::error::Fault;
use crate::keys::{Auth, Use};
use crate::record::Header;
use crate::tss::{self, Hierarchy, Object, Tpm};
use crate::vault::{AUTH, ENROLLING, lost};
use mayfly_evidence::nv::{Kind, SECRET_BYTES};
use mayfly_evidence::object::{self, check_storage_key, storage_root};
use mayfly_plugin_abi::{GuestError, Status};
use mayfly_vault_store::{GENERATION, HEADER, IDENTITY, Store, random};
use zeroize::Zeroizing;

/// Places for a vault's indices, from the configured one on; each takes four handles.
const PLACES: u32 = 64;
const PLACE_HANDLES: u32 = 4;

/// Makes a new vault, or finishes making one.
pub(crate) fn make(tpm: &Tpm, config: &Config, store: &Store) -> Result<(Header, Auth), Fault> {
    store.check_empty(&[GENERATION, IDENTITY])?;
    let owner_auth = config.owner_auth()?;
    let srk = storage_root_key(tpm, config, &owner_auth)?;
    let (mut header, auth) = match store.read(ENROLLING)? {
        Some(bytes) => {
            let header = Header::decode(&bytes).map_err(|error| store.damaged(ENROLLING, &error.0.into()))?;
            let auth = existing_auth(config, store, &header)?;
            (header, auth)
        }
        None => plan(tpm, config, store, &srk)?,
    };
    if srk.public()?.1 != header.srk_name {
        return Err(lost("its storage root key is another one than when the vault was begun"));
    }
    header.counter_base = define_all(tpm, &srk, &owner_auth, &header, &auth)?;
    store.write(HEADER, &header.encode())?;
    store.unlink(ENROLLING)?;
    Ok((header, auth))
}

/// Decides on everything that must stay the same if making the vault is interrupted.
fn plan(tpm: &Tpm, config: &Config, store: &Store, srk: &Object<'_>) -> Result<(Header, Auth), Fault> {
    let mut vault_id = [0; 16];
    random(&mut vault_id)?;
    let secret = match config.auth()? {
        Some(secret) => secret,
        None => {
            let mut secret = Zeroizing::new(vec![0; 32]);
            random(&mut secret)?;
            store.write(AUTH, &secret)?;
            secret
        }
    };
    let auth = Auth::new(secret, vault_id);
    let srk_name = srk.public()?.1.try_into().map_err(|_| unusable(config, "its Name is not by SHA-256"))?;
    let header = Header {
        vault_id,
        srk_handle: config.srk_handle,
        srk_name,
        nv_base: free_place(tpm, config.nv_base)?,
        counter_base: 0,
        auth_check: auth.check(),
    };
    store.write(ENROLLING, &header.encode())?;
    Ok((header, auth))
}

/// The auth secret of a vault that exists; a wrong one is told before the chip hears of it.
pub(crate) fn existing_auth(config: &Config, store: &Store, header: &Header) -> Result<Auth, Fault> {
    let secret = match config.auth()? {
        Some(secret) => secret,
        None => store.read(AUTH)?.ok_or_else(|| store.damaged(AUTH, &"it is missing".into()))?,
    };
    let auth = Auth::new(secret, header.vault_id);
    if auth.check() != header.auth_check {
        let text = "the secret behind the auth values (auth_file, auth_credential, or the file 'auth' of the folder) is \
                    not the one that this vault was made with";
        return Err(Fault::told(Status::Auth, text));
    }
    Ok(auth)
}

/// The first place from `base` on whose handles are all free.
fn free_place(tpm: &Tpm, base: u32) -> Result<u32, Fault> {
    let taken = chip::handles(tpm, base)?;
    (0..PLACES)
        .map(|place| base + place * PLACE_HANDLES)
        .find(|place| !taken.iter().any(|handle| (*place..place + PLACE_HANDLES).contains(handle)))
        .ok_or_else(|| Fault::told(Status::Config, format!("no free place for NV indices from {base:#x} on")))
}

/// The storage root key at its persistent handle; made by the common template when there is nothing.
fn storage_root_key<'t>(tpm: &'t Tpm, config: &Config, owner_auth: &[u8]) -> Result<Object<'t>, Fault> {
    let found = match tpm.persistent(config.srk_handle) {
        Err(error) if error.is(tss::HANDLE) => make_root(tpm, config.srk_handle, owner_auth, None)?,
        found => found?,
    };
    check_storage_key(&found.public()?.0).map_err(|error| unusable(config, error.0))?;
    Ok(found)
}

fn unusable(config: &Config, why: &str) -> GuestError {
    let text = format!("the object at srk_handle {:#x} cannot be used: {why}; set another handle", config.srk_handle);
    GuestError::new(Status::Config, text)
}

/// Makes the storage root key again where only its persistent copy was taken away. Another Name is another chip: nothing
/// is changed in it.
pub(crate) fn restore_root(tpm: &Tpm, config: &Config, header: &Header) -> Result<(), Fault> {
    match tpm.persistent(header.srk_handle) {
        Err(error) if error.is(tss::HANDLE) => {
            make_root(tpm, header.srk_handle, &config.owner_auth()?, Some(&header.srk_name)).map(|_| ())
        }
        found => Ok(found.map(|_| ())?),
    }
}

fn make_root<'t>(
    tpm: &'t Tpm,
    handle: u32,
    owner_auth: &[u8],
    expected: Option<&object::Name>,
) -> Result<Object<'t>, Fault> {
    // there is no key yet to salt a session with, and the owner's auth value must not be heard: the null hierarchy
    // gives one for the moment
    let moment = tpm.create_primary(Hierarchy::Null, &[], None, &storage_root())?;
    let session = tpm.session(&moment)?;
    let root = tpm.create_primary(Hierarchy::Owner, owner_auth, Some(&session), &storage_root()).map_err(owner)?;
    let name = root.public()?.1;
    if expected.is_some_and(|expected| name != expected) {
        return Err(lost("its storage root key is gone, and the chip makes another one"));
    }
    tpm.make_persistent(&root, &session, owner_auth, handle).map_err(owner)
}

/// A refused owner's auth value is a matter of configuration.
fn owner(error: tss::TpmError) -> Fault {
    if error.is_auth() {
        let text = "the TPM's owner hierarchy has another auth value: set owner_auth_file or owner_auth_credential";
        return Fault::told(Status::Auth, text);
    }
    error.into()
}

/// Defines the three indices, starts the counter, fills the halves; gives what the counter holds.
fn define_all(tpm: &Tpm, srk: &Object<'_>, owner_auth: &[u8], header: &Header, auth: &Auth) -> Result<u64, Fault> {
    let session = tpm.session(srk)?;
    let indices = [(Kind::Counter, Use::Counter), (Kind::Secret, Use::Half(0)), (Kind::Secret, Use::Half(1))];
    for (place, (kind, what)) in (0..).zip(indices) {
        let public = kind.public(header.nv_base + place);
        match tpm.define(&session, owner_auth, &public, &auth.value(what)[..]) {
            // ours from before a crash, or somebody else's: the auth value tells at the next step
            Err(error) if error.is(tss::NV_DEFINED) => {}
            defined => defined.map_err(owner)?,
        }
    }
    for half in 0..2u32 {
        let index = tpm.index(header.nv_base + 1 + half)?;
        index.set_auth(&auth.value(Use::Half(half as usize))[..])?;
        let mut bytes = Zeroizing::new([0; SECRET_BYTES as usize]);
        random(&mut bytes[..])?;
        index.write(&session, &bytes[..])?;
    }
    start_counter(tpm, &session, header, auth)
}

fn start_counter(tpm: &Tpm, session: &tss::Session<'_>, header: &Header, auth: &Auth) -> Result<u64, Fault> {
    let mut value = [0; 8];
    let counter = tpm.index(header.nv_base)?;
    counter.set_auth(&auth.value(Use::Counter)[..])?;
    match counter.read(session, &mut value) {
        Ok(()) => return Ok(u64::from_be_bytes(value)),
        // a counter that was never incremented holds nothing
        Err(error) if error.is(tss::NV_UNINITIALIZED) => {}
        Err(error) => return Err(error.into()),
    }
    counter.increment(session)?;
    drop(counter);
    // its Name has changed with the first write
    let counter = tpm.index(header.nv_base)?;
    counter.set_auth(&auth.value(Use::Counter)[..])?;
    counter.read(session, &mut value)?;
    Ok(u64::from_be_bytes(value))
}
