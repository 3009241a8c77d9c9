//! The vault: which files and which chip belong together, one connection per call, and what a failure means.
//!
//! | File | Is |
//! |---|---|
//! | `vault` | the storage root key's Name, the indices, the counter's start; made once |
//! | `auth` | the secret behind the auth values, unless the operator keeps it elsewhere |
//! | `enrolling` | the plan of a vault that is being made |
//! | `identity`, `attestation` | signing keys, wrapped by the chip |
//! | `generation` | the sealed halves that open |
//! | `staged` | the sealed halves that would open after a commit |
//! | `approvals` | registers that the approver allows |

use crate::chip::Chip;
use crate::config::Config;
use crate::enrol;
use crate::error::Fault;
use crate::keys::{Auth, Use};
use crate::record::{FILE_BYTES_MAX, Header};
use crate::tss::{self, Index, Layer, Object, Session, Tpm, TpmError, has_resource_manager};
use mayfly_evidence::nv::Kind;
use mayfly_evidence::object::Name;
use mayfly_plugin_abi::{
    Alg, Generations, GuestError, Health, HealthState, Identity, SIGNATURE_BYTES, Status, Tier, VAULT_KEY_BYTES,
    VaultDescription, VaultGuest,
};
use mayfly_vault_store::{HEADER, Store, VaultId};
use std::ffi::CString;
use std::path::Path;
use zeroize::Zeroizing;

pub(crate) const AUTH: &str = "auth";
pub(crate) const ENROLLING: &str = "enrolling";

/// An open vault.
pub struct TpmVault {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) header: Header,
    pub(crate) auth: Auth,
    tcti: CString,
    handles: Handles,
    chip: Chip,
    /// Duration of the last commit, microseconds.
    pub(crate) sync_micros: u64,
}

/// What libtss2 knows of the chip's objects, checked when the vault was opened. Later calls start from here: no command
/// is spent, and a chip that was swapped since then fails at the first session, since its salt is for the old one.
pub(crate) struct Handles {
    pub(crate) srk: Vec<u8>,
    pub(crate) counter: Vec<u8>,
    pub(crate) halves: [Vec<u8>; 2],
}

/// One call's connection: the chip, the storage root key, a salted session.
pub(crate) struct Link<'t> {
    pub(crate) tpm: &'t Tpm,
    pub(crate) srk: &'t Object<'t>,
    pub(crate) session: &'t Session<'t>,
    pub(crate) counter: Index<'t>,
    halves: [Index<'t>; 2],
}

impl Link<'_> {
    /// The index that holds the half of a generation.
    pub(crate) fn half(&self, generation: u64) -> &Index<'_> {
        &self.halves[(generation & 1) as usize]
    }
}

impl TpmVault {
    /// Opens a connection for one call and runs `body`; what fails is explained by a look at the chip.
    pub(crate) fn link<R>(&self, body: impl FnOnce(&Link<'_>) -> Result<R, Fault>) -> Result<R, GuestError> {
        let (result, left) = {
            let tpm = Tpm::open(&self.tcti)?;
            (self.linked(&tpm, body), tpm.has_left())
        };
        if left && result.is_ok() {
            // the call is done all the same; what cannot be freed now is found by the next call that needs the room
            let _ = Tpm::open(&self.tcti).and_then(|tpm| self.flush_strays(&tpm));
        }
        result.map_err(|fault| self.explain(fault))
    }

    fn linked<R>(&self, tpm: &Tpm, body: impl FnOnce(&Link<'_>) -> Result<R, Fault>) -> Result<R, Fault> {
        let srk = tpm.deserialize(&self.handles.srk)?;
        let session = match tpm.session(&srk) {
            // nothing was done yet: once the chip is free of what a killed process has left, all is well
            Err(error) if error.is_memory() && self.flush_strays(tpm)? > 0 => tpm.session(&srk)?,
            session => session?,
        };
        let counter = tpm.deserialize_index(&self.handles.counter)?;
        counter.set_auth(&self.auth.value(Use::Counter)[..])?;
        let halves = [0, 1].map(|index| -> Result<Index<'_>, TpmError> {
            let half = tpm.deserialize_index(&self.handles.halves[index])?;
            half.set_auth(&self.auth.value(Use::Half(index))[..])?;
            Ok(half)
        });
        let [even, odd] = halves;
        body(&Link { tpm, srk: &srk, session: &session, counter, halves: [even?, odd?] })
    }

    /// Turns a failure into what the caller is told. A code that may mean "another chip" is looked into, over a new
    /// connection: after an answer that is not authentic libtss2 does nothing more on the old one.
    fn explain(&self, fault: Fault) -> GuestError {
        let Some(error) = fault.tpm().copied() else { return fault.into() };
        let Ok(tpm) = Tpm::open(&self.tcti) else { return error.into() };
        // what could not be given back, and sessions whose start failed on its way back, which nobody knows
        if let Err(error) = self.flush_strays(&tpm) {
            return error.into();
        }
        let suspicious = matches!(error.layer(), Layer::Tpm | Layer::Esys) && !error.is_memory();
        match suspicious.then(|| check_chip(&tpm, &self.header)) {
            Some(Err(Fault::Told(lost))) => lost,
            // our auth secret was checked when the vault was opened, so an index takes another one; but a command that was
            // disturbed on its way is refused in the same words, and nobody is to enrol anew for that
            Some(Ok(_)) if error.is_auth() => match self.indices_refuse(&tpm) {
                true => lost("an index of the vault was made anew by somebody else").into(),
                false => {
                    GuestError::new(Status::Io, format!("tpm: {error}; now it takes it: the way to it is disturbed"))
                }
            },
            _ => error.into(),
        }
    }

    /// Whether an index of ours refuses our auth value.
    fn indices_refuse(&self, tpm: &Tpm) -> bool {
        let read = self.linked(tpm, |link| {
            self.counter(link)?;
            let mut half = Zeroizing::new([0; 32]);
            for index in &link.halves {
                index.read(link.session, &mut half)?;
            }
            Ok(link.tpm.scrub()?)
        });
        read.is_err_and(|fault| fault.tpm().is_some_and(TpmError::is_auth))
    }

    /// Frees slots of the chip where nobody else manages them; after it the caller may try again.
    fn flush_strays(&self, tpm: &Tpm) -> Result<usize, TpmError> {
        if has_resource_manager(&self.config.tcti) { Ok(0) } else { tpm.flush_strays() }
    }

    /// A file's bytes as ours; a damaged one is told with its path.
    pub(crate) fn decode<T>(
        &self,
        name: &str,
        decode: impl FnOnce(&[u8]) -> Result<T, mayfly_evidence::Malformed>,
        vault_id: impl FnOnce(&T) -> VaultId,
    ) -> Result<Option<T>, GuestError> {
        let Some(bytes) = self.store.read(name)? else { return Ok(None) };
        let value = decode(&bytes).map_err(|error| self.store.damaged(name, &error.0.into()))?;
        self.store.check_vault(name, &vault_id(&value), &self.header.vault_id)?;
        Ok(Some(value))
    }
}

/// Whether the chip is the one of this vault: the storage root key and the indices have the Names they must have. Gives
/// what libtss2 needs to know of them.
pub(crate) fn check_chip(tpm: &Tpm, header: &Header) -> Result<Handles, Fault> {
    let srk = tpm.persistent(header.srk_handle).map_err(|error| missing(error, "its storage root key is gone"))?;
    if srk.public()?.1 != header.srk_name {
        return Err(lost("its storage root key is another one"));
    }
    let index = |kind: Kind, handle: u32| -> Result<Vec<u8>, Fault> {
        let index = tpm.index(handle).map_err(|error| missing(error, "an index of the vault is gone"))?;
        if index.public()? != kind.written(handle) {
            return Err(lost("an index of the vault was made anew by somebody else"));
        }
        Ok(index.serialize()?)
    };
    let base = header.nv_base;
    Ok(Handles {
        srk: srk.serialize()?,
        counter: index(Kind::Counter, base)?,
        halves: [index(Kind::Secret, base + 1)?, index(Kind::Secret, base + 2)?],
    })
}

fn missing(error: TpmError, what: &str) -> Fault {
    if error.is(tss::HANDLE) { lost(what) } else { error.into() }
}

/// "Another chip, or cleared": no way back for this folder.
pub(crate) fn lost(what: &str) -> Fault {
    let text = format!(
        "the TPM is another one than this vault was made with, or was cleared: {what}; move the vault's folder away \
         and enrol the device anew"
    );
    Fault::told(Status::VaultLost, text)
}

impl VaultGuest for TpmVault {
    const NAME: &'static str = "tpm";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn open(config: &str, data_dir: &Path) -> Result<TpmVault, GuestError> {
        tss::prepare();
        let config = Config::parse(config)?;
        let store = Store::open(data_dir, FILE_BYTES_MAX)?;
        let tcti = config.tcti()?;
        let tpm = Tpm::open(&tcti)?;
        if !has_resource_manager(&config.tcti) {
            tpm.flush_strays()?;
        }
        let chip = Chip::ask(&tpm)?;
        let (header, auth) = match store.read(HEADER)? {
            Some(bytes) => {
                let header = Header::decode(&bytes).map_err(|error| store.damaged(HEADER, &error.0.into()))?;
                let auth = enrol::existing_auth(&config, &store, &header)?;
                enrol::restore_root(&tpm, &config, &header)?;
                (header, auth)
            }
            None => enrol::make(&tpm, &config, &store)?,
        };
        let handles = check_chip(&tpm, &header)?;
        drop(tpm);
        let vault = TpmVault { store, config, header, auth, tcti, handles, chip, sync_micros: 0 };
        vault.generation_files()?;
        vault.link(|link| vault.settle(link).map(|_| ()))?;
        Ok(vault)
    }

    fn describe(&mut self) -> Result<VaultDescription, GuestError> {
        let software_only = self.chip.is_software();
        let security_note = if software_only {
            "a software TPM, for development: a copy of its state opens every generation of which a copy exists"
        } else if self.config.keeps_auth() {
            "a TPM whose whole state is put back (snapshot of a virtual machine, flash of a firmware TPM) opens revoked \
             generations, which only the ledger notices; auth values lie beside the sealed blobs: set auth_credential"
        } else {
            "a TPM whose whole state is put back (snapshot of a virtual machine, flash of a firmware TPM) opens revoked \
             generations, which only the ledger notices"
        };
        Ok(VaultDescription {
            software_only,
            identity_algs: vec![Alg::P256],
            tiers: Tier::ALL.to_vec(),
            hardware: self.chip.to_string(),
            security_note: security_note.to_owned(),
        })
    }

    fn identity_public(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError> {
        self.identity(alg, create)
    }

    fn identity_sign(&mut self, message: &[u8], signature: &mut [u8; SIGNATURE_BYTES]) -> Result<(), GuestError> {
        self.sign(message, signature)
    }

    fn attest(&mut self, step: u32, input: &[u8]) -> Result<Vec<u8>, GuestError> {
        self.attestation(step, input)
    }

    fn generation(&mut self) -> Result<Generations, GuestError> {
        let standing = self.link(|link| self.settle(link))?;
        Ok(Generations { current: standing.current, staged: standing.staged.map(|file| file.generation) })
    }

    fn stage(&mut self, next: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        self.stage_key(next, tier, key)
    }

    fn open_key(&mut self, generation: u64, tier: Tier, key: &mut [u8; VAULT_KEY_BYTES]) -> Result<(), GuestError> {
        self.open_committed(generation, tier, key)
    }

    fn commit(&mut self, next: u64) -> Result<(), GuestError> {
        self.commit_staged(next, false)
    }

    fn discard_staged(&mut self) -> Result<(), GuestError> {
        self.discard()
    }

    fn random(&mut self, out: &mut [u8]) -> Result<(), GuestError> {
        let mut bytes = Zeroizing::new(vec![0; out.len()]);
        self.link(|link| Ok(link.tpm.random(link.session, &mut bytes)?))?;
        out.copy_from_slice(&bytes);
        Ok(())
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        let mut health = Health { sync_micros: self.sync_micros, ..self.store.health() };
        (health.state, health.detail) = match self.link(|link| self.state(link)) {
            Ok((HealthState::Ok, _)) => return Ok(health),
            Ok(found) => found,
            Err(error) => {
                let state = match error.status {
                    Status::VaultLost => HealthState::VaultLost,
                    Status::PolicyPending => HealthState::PolicyPending,
                    Status::Lockout => HealthState::Lockout,
                    _ => HealthState::Down,
                };
                (state, error.message)
            }
        };
        Ok(health)
    }

    fn control(&mut self, name: &str, input: &[u8]) -> Result<Vec<u8>, GuestError> {
        self.manage(name, input)
    }
}

impl TpmVault {
    /// The Name of the counter, in its policies and statements.
    pub(crate) fn counter_name(&self) -> Name {
        Kind::Counter.name(self.header.nv_base)
    }
}
