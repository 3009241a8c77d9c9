//! Generations: two halves per vault key, one counter that says which generation lives.
//!
//! `K_g`, one per tier, is sealed in the chip under "the counter is at g"; `N_g`, one per generation, lies in one of two
//! indices in turn. A vault key needs both. Incrementing the counter kills every `K_g` and brings every `K_(g+1)` to life
//! in one command; overwriting `N_g` afterwards makes old blobs worthless even to whoever learns the chip's seeds later.
//!
//! Whatever crashes when, the counter alone decides; [`TpmVault::settle`] finishes what it has decided.

use crate::approval;
use crate::error::Fault;
use crate::keys::{Use, half_check, vault_key};
use crate::record::{GenerationFile, Seal};
use crate::tss::{self, Object, Protect};
use crate::vault::{Link, TpmVault};
use mayfly_evidence::object::{check_sealed, sealed};
use mayfly_evidence::policy::{approval_reference, approver_name, seal as seal_policy};
use mayfly_plugin_abi::{GuestError, HealthState, Status, Tier, VAULT_KEY_BYTES};
use mayfly_vault_store::{GENERATION, STAGED, random, refusal};
use std::time::Instant;
use zeroize::Zeroizing;

/// A chip refuses a policy that looked at registers when any of its registers has changed since; the kernel's own
/// measurements (IMA) do that all the time while a machine starts.
const UNSEALS_MAX: usize = 5;

/// Where the vault stands, by the counter.
pub(crate) struct Standing {
    /// The committed generation.
    pub(crate) current: u64,
    /// What opens it, where the folder has it.
    pub(crate) committed: Option<GenerationFile>,
    /// What is staged over it.
    pub(crate) staged: Option<GenerationFile>,
    /// The generation of the file `generation`, 0 without one.
    held: u64,
}

impl Standing {
    /// The chip's whole state was put back, or another vault's counter stands here: nothing may be built on it.
    fn check_not_rolled_back(&self) -> Result<(), Fault> {
        if self.held <= self.current {
            return Ok(());
        }
        let text = format!(
            "the TPM's counter is at generation {}, the folder at {}: the TPM's state was put back from a copy; ban this \
             device and enrol it anew",
            self.current, self.held
        );
        Err(Fault::told(Status::Corrupt, text))
    }

    /// The folder has no keys of the counter's generation. Who knows more than a vault can know (the ledger) decides whether to wait for the
    /// newest copy of the folder, or to stage and commit the next generation, which ends every copy.
    fn stale(&self) -> Fault {
        let text = format!(
            "the TPM's counter is ahead: it is at generation {}, the folder holds the keys of {}: that was put back from a \
             copy, or somebody incremented the counter",
            self.current, self.held
        );
        Fault::told(Status::NoGeneration, text)
    }
}

impl TpmVault {
    /// Both files, decoded: damage is found at the start.
    pub(crate) fn generation_files(&self) -> Result<(Option<GenerationFile>, Option<GenerationFile>), GuestError> {
        Ok((self.generation_file(GENERATION)?, self.generation_file(STAGED)?))
    }

    fn generation_file(&self, name: &str) -> Result<Option<GenerationFile>, GuestError> {
        self.decode(name, GenerationFile::decode, |file| file.vault_id)
    }

    /// Reads the counter and finishes a commit that it has decided.
    pub(crate) fn settle(&self, link: &Link<'_>) -> Result<Standing, Fault> {
        let current = self.counter(link)?;
        let (mut committed, mut staged) = self.generation_files()?;
        if let Some(file) = staged.take_if(|file| file.generation == current) {
            self.finish_commit(link, current)?;
            committed = Some(file);
        }
        let held = committed.as_ref().map_or(0, |file| file.generation);
        // a staged file of another generation than the next one is left from a folder put together by hand
        let staged = staged.filter(|staged| Some(staged.generation) == current.checked_add(1));
        Ok(Standing { current, committed: committed.filter(|file| file.generation == current), staged, held })
    }

    /// The generation that the counter stands for, over an authenticated session.
    pub(crate) fn counter(&self, link: &Link<'_>) -> Result<u64, Fault> {
        let mut value = [0; 8];
        link.counter.read(link.session, &mut value)?;
        let value = u64::from_be_bytes(value);
        value.checked_sub(self.header.counter_base).ok_or_else(|| {
            let text = "the TPM's counter is lower than when the vault was made: its state was put back from a copy";
            Fault::told(Status::Corrupt, text)
        })
    }

    /// After the increment: the old half goes for good, then the staged file takes its place. Can be repeated.
    fn finish_commit(&self, link: &Link<'_>, current: u64) -> Result<(), Fault> {
        let mut noise = Zeroizing::new([0; 32]);
        random(&mut noise[..])?;
        link.half(current.wrapping_sub(1)).write(link.session, &noise[..])?;
        self.store.rename(STAGED, GENERATION)?;
        self.forget_approvals(current)?;
        Ok(())
    }

    pub(crate) fn stage_key(
        &mut self,
        next: u64,
        tier: Tier,
        key: &mut [u8; VAULT_KEY_BYTES],
    ) -> Result<(), GuestError> {
        self.link(|link| {
            let standing = self.settle(link)?;
            standing.check_not_rolled_back()?;
            refusal::check_next(standing.current, next)?;
            let mut stored = Zeroizing::new([0; 32]);
            let mut file = match standing.staged {
                Some(file) => {
                    self.read_half(link, &file, &mut stored)?;
                    file
                }
                None => self.new_generation(link, next, &mut stored)?,
            };
            let seal = self.seal(link, &file, tier, &stored, key)?;
            file.put(seal);
            self.store.write(STAGED, &file.encode())?;
            Ok(link.tpm.scrub()?)
        })
    }

    /// Writes the half of a new generation into the index that the present one does not use.
    fn new_generation(&self, link: &Link<'_>, next: u64, stored: &mut [u8; 32]) -> Result<GenerationFile, Fault> {
        random(stored)?;
        link.half(next).write(link.session, stored)?;
        Ok(GenerationFile {
            vault_id: self.header.vault_id,
            generation: next,
            approver: self.config.pcr()?.map(|pcr| pcr.approver),
            half_check: half_check(&self.header.vault_id, next, stored),
            seals: Vec::new(),
        })
    }

    fn read_half(&self, link: &Link<'_>, file: &GenerationFile, stored: &mut [u8; 32]) -> Result<(), Fault> {
        link.half(file.generation).read(link.session, stored)?;
        if half_check(&self.header.vault_id, file.generation, stored) == file.half_check {
            return Ok(());
        }
        let text = format!("the TPM does not hold the half of generation {} any more", file.generation);
        Err(Fault::told(Status::Corrupt, text))
    }

    /// Seals a fresh half for a tier, and gives the whole key.
    fn seal(
        &self,
        link: &Link<'_>,
        file: &GenerationFile,
        tier: Tier,
        stored: &[u8; 32],
        key: &mut [u8; VAULT_KEY_BYTES],
    ) -> Result<Seal, Fault> {
        let generation = file.generation;
        let mut half = Zeroizing::new([0; 32]);
        random(&mut half[..])?;
        let policy = self.policy(file);
        let auth = self.auth.value(Use::Sealed { generation, tier });
        let (public, private) = link.tpm.create(link.srk, link.session, &sealed(&policy), &auth[..], &half[..])?;
        check_sealed(&policy, &public).map_err(|error| Fault::told(Status::Io, format!("the TPM's seal: {error}")))?;
        let key_check = vault_key(&self.header.vault_id, generation, tier, &half, stored, key);
        Ok(Seal { tier, key_check, public, private })
    }

    /// The policy of a generation's seals.
    fn policy(&self, file: &GenerationFile) -> [u8; 32] {
        let reference = approval_reference(&self.header.vault_id, file.generation);
        let approver = file.approver.as_ref().map(approver_name);
        let approval = approver.as_ref().map(|name| (name, &reference));
        seal_policy(&self.counter_name(), self.value_at(file.generation), approval)
    }

    /// What the counter holds at a generation.
    fn value_at(&self, generation: u64) -> u64 {
        self.header.counter_base.wrapping_add(generation)
    }

    pub(crate) fn open_committed(
        &mut self,
        generation: u64,
        tier: Tier,
        key: &mut [u8; VAULT_KEY_BYTES],
    ) -> Result<(), GuestError> {
        let file = self.generation_file(GENERATION)?;
        self.link(|link| {
            // the usual case asks nothing first: the chip itself refuses what is not current
            if let Some(file) = file.filter(|file| file.generation == generation) {
                match self.unseal(link, &file, tier, key) {
                    Err(fault) if fault.tpm().is_some_and(|error| error.is(tss::POLICY)) => {}
                    other => return other,
                }
            }
            let standing = self.settle(link)?;
            standing.check_not_rolled_back()?;
            match &standing.committed {
                Some(file) if standing.current == generation => self.unseal(link, file, tier, key),
                None if standing.current == generation && generation > 0 => Err(standing.stale()),
                _ => Err(refusal::does_not_open(generation, standing.current).into()),
            }
        })
    }

    fn unseal(
        &self,
        link: &Link<'_>,
        file: &GenerationFile,
        tier: Tier,
        key: &mut [u8; VAULT_KEY_BYTES],
    ) -> Result<(), Fault> {
        for _ in 1..UNSEALS_MAX {
            match self.unseal_once(link, file, tier, key) {
                Err(fault) if fault.tpm().is_some_and(|error| error.is(tss::PCR_CHANGED)) => {}
                other => return other,
            }
        }
        self.unseal_once(link, file, tier, key)
    }

    fn unseal_once(
        &self,
        link: &Link<'_>,
        file: &GenerationFile,
        tier: Tier,
        key: &mut [u8; VAULT_KEY_BYTES],
    ) -> Result<(), Fault> {
        let generation = file.generation;
        let seal = file.seal(tier).ok_or_else(|| refusal::no_key(tier, generation))?;
        let approval = file.approver.as_ref().zip(self.approval_for(link, file)?);
        let object = self.load(link, file, seal)?;
        let policy = link.tpm.policy_session(link.srk, Protect::Answer)?;
        if let Some((approver, approval)) = &approval {
            approval::satisfy(link.tpm, &policy, approver, approval, &self.header.vault_id)?;
        }
        policy.nv_equal(&link.counter, link.session, &self.value_at(generation).to_be_bytes())?;
        policy.auth_value()?;
        let mut half = Zeroizing::new([0; 32]);
        let mut stored = Zeroizing::new([0; 32]);
        link.tpm.unseal(&object, policy, &mut half).map_err(|error| self.not_unsealed(error))?;
        drop(object);
        self.read_half(link, file, &mut stored)?;
        let mut opened = Zeroizing::new([0; VAULT_KEY_BYTES]);
        let key_check = vault_key(&self.header.vault_id, generation, tier, &half, &stored, &mut opened);
        if key_check != seal.key_check {
            let text = format!("generation {generation}: the halves of tier {tier:?} do not make its key");
            return Err(Fault::told(Status::Corrupt, text));
        }
        link.tpm.scrub()?;
        key.copy_from_slice(&opened[..]);
        Ok(())
    }

    fn not_unsealed(&self, error: tss::TpmError) -> Fault {
        if error.is(tss::POLICY_FAIL) || error.is_auth() {
            let text = "the seal is not one of this vault, generation and tier";
            return Fault::told(Status::Corrupt, text);
        }
        error.into()
    }

    /// Loads a seal; its policy must be the one that we would give it.
    fn load<'t>(&self, link: &Link<'t>, file: &GenerationFile, seal: &Seal) -> Result<Object<'t>, Fault> {
        let (generation, tier) = (file.generation, seal.tier);
        check_sealed(&self.policy(file), &seal.public).map_err(|error| {
            Fault::told(Status::Corrupt, format!("generation {generation}, tier {tier:?}: {error}"))
        })?;
        let object = link.tpm.load(link.srk, &seal.public, &seal.private)?;
        object.set_auth(&self.auth.value(Use::Sealed { generation, tier })[..])?;
        Ok(object)
    }

    pub(crate) fn commit_staged(&mut self, next: u64, unapproved: bool) -> Result<(), GuestError> {
        let started = Instant::now();
        self.link(|link| {
            let standing = self.settle(link)?;
            standing.check_not_rolled_back()?;
            if next == standing.current && next > 0 {
                return Ok(());
            }
            let file = standing.staged.filter(|file| file.generation == next);
            let file = file.ok_or_else(|| refusal::not_staged(next, standing.current))?;
            self.check_staged(link, &file, unapproved)?;
            link.counter.increment(link.session)?;
            let reached = self.counter(link)?;
            if reached != next {
                let text = format!("the TPM's counter went to generation {reached} instead of {next}");
                return Err(Fault::told(Status::Io, text));
            }
            self.finish_commit(link, next)
        })?;
        self.sync_micros = started.elapsed().as_micros() as u64;
        Ok(())
    }

    /// What is staged must not turn out damaged when it is all that is left.
    fn check_staged(&self, link: &Link<'_>, file: &GenerationFile, unapproved: bool) -> Result<(), Fault> {
        let mut stored = Zeroizing::new([0; 32]);
        self.read_half(link, file, &mut stored)?;
        for seal in &file.seals {
            self.load(link, file, seal)?;
        }
        if !unapproved {
            self.approval_for(link, file)?;
        }
        Ok(())
    }

    pub(crate) fn discard(&mut self) -> Result<(), GuestError> {
        if self.store.read(STAGED)?.is_none() {
            return Ok(());
        }
        self.link(|link| {
            let standing = self.settle(link)?;
            self.store.unlink(STAGED)?;
            if standing.staged.is_some() {
                let mut noise = Zeroizing::new([0; 32]);
                random(&mut noise[..])?;
                link.half(standing.current.wrapping_add(1)).write(link.session, &noise[..])?;
            }
            Ok(())
        })
    }

    /// Health as far as generations tell.
    pub(crate) fn state(&self, link: &Link<'_>) -> Result<(HealthState, String), Fault> {
        let standing = self.settle(link)?;
        standing.check_not_rolled_back()?;
        let Some(file) = &standing.committed else {
            return match standing.current {
                0 => Ok((HealthState::Ok, String::new())),
                _ => Err(standing.stale()),
            };
        };
        self.approval_for(link, file)?;
        Ok((HealthState::Ok, String::new()))
    }
}
