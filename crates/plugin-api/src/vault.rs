//! The vault facade: what the agent calls.

use crate::abi::{
    self, Alg, Generations, Health, HealthState, Identity, PUBLIC_KEY_BYTES_MAX, RANDOM_BYTES_MAX,
    SIGN_MESSAGE_BYTES_MAX, SIGNATURE_BYTES, Tier, VAULT_KEY_BYTES, VaultDescription,
};
use crate::client::{Answer, Client, Wrong, wrong};
use crate::codec::{Op, Writer};
use crate::config::{HostConfig, Kind};
use crate::error::PluginError;
use crate::signature;
use mayfly_secmem::Secret;
use std::sync::{Mutex, PoisonError};

/// Longest text field of a description on its way here: 512 bytes, of which each may have become a replacement
/// character of three.
const TEXT_BYTES_MAX: usize = 3 * 512;

/// A running vault plugin. Calls may come from any thread; they are served one after the other.
///
/// Every method's errors: [`PluginError`], whose text starts with `vault(NAME): `. After [`PluginError::TimedOut`] or
/// [`PluginError::Ended`] it is not known whether the call took effect; all calls of a vault may be repeated (`stage`
/// gives a fresh key then).
pub struct VaultPlugin {
    client: Client,
    name: String,
    version: String,
    seen: Mutex<Seen>,
}

/// What the plugin has said before; saying otherwise later is a lie.
#[derive(Default)]
struct Seen {
    identity: Option<Identity>,
    generation: u64,
}

impl VaultPlugin {
    /// Starts the host, loads the plugin, opens the vault.
    ///
    /// # Errors
    /// Unsafe paths, a wrong pin, another interface version or kind, a plugin that refuses its configuration.
    pub fn start(config: &HostConfig) -> Result<VaultPlugin, PluginError> {
        let client = Client::start(config, Some(Kind::Vault))?;
        Ok(VaultPlugin::of(client))
    }

    pub(crate) fn of(client: Client) -> VaultPlugin {
        let opened = client.opened();
        let name = opened.as_ref().map_or_else(|| client.config().name_guess(), |opened| opened.name.clone());
        let version = opened.map(|opened| opened.version).unwrap_or_default();
        VaultPlugin { client, name, version, seen: Mutex::default() }
    }

    /// Kind name of the vault: `file`, `tpm`, `pkcs11`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's version, for people.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What seals here, and what it does not protect against.
    ///
    /// # Errors
    /// See [`VaultPlugin`].
    pub fn describe(&self) -> Result<VaultDescription, PluginError> {
        self.client.call(Op::Describe, Writer::new(), |answer| {
            let software_only = match answer.fields.u32()? {
                0 => false,
                1 => true,
                other => return wrong(format!("software_only is {other}")),
            };
            let algs = answer.fields.u32()?;
            let tiers = answer.fields.u32()?;
            let description = VaultDescription {
                software_only,
                identity_algs: [Alg::Ed25519, Alg::P256]
                    .into_iter()
                    .filter(|alg| algs >> *alg as u32 & 1 == 1)
                    .collect(),
                tiers: Tier::ALL.into_iter().filter(|tier| tiers >> *tier as u32 & 1 == 1).collect(),
                hardware: answer.fields.text(TEXT_BYTES_MAX)?,
                security_note: answer.fields.text(TEXT_BYTES_MAX)?,
            };
            if description.identity_algs.is_empty() || description.tiers.is_empty() {
                return wrong("it offers no identity algorithm or no tier");
            }
            Ok(description)
        })
    }

    /// The public half of the identity key; made now when `create` is set and there is none. `alg` `None`: whichever
    /// there is, or the vault's preferred one.
    ///
    /// # Errors
    /// [`abi::Status::NoIdentity`], [`abi::Status::Unsupported`]; a plugin that shows another key than before.
    pub fn identity_public(&self, alg: Option<Alg>, create: bool) -> Result<Identity, PluginError> {
        let fields = Writer::new().u32(alg.map_or(0, |alg| alg as u32)).u8(create.into());
        self.client.call(Op::IdentityPublic, fields, |answer| {
            let code = answer.fields.u32()?;
            let public = answer.fields.bytes(PUBLIC_KEY_BYTES_MAX)?.to_vec();
            let found = Alg::from_code(code).ok_or_else(|| Wrong::Answer(format!("identity algorithm {code}")))?;
            if alg.is_some_and(|wanted| wanted != found) {
                return wrong("an identity of another algorithm than asked for");
            }
            if public.len() != found.public_key_bytes() || (found == Alg::P256 && !matches!(public[0], 2 | 3)) {
                return wrong(format!("an identity key of {} bytes", public.len()));
            }
            let identity = Identity { alg: found, public };
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            match &seen.identity {
                Some(before) if *before != identity => wrong("the identity key is another one than before"),
                _ => {
                    seen.identity = Some(identity.clone());
                    Ok(identity)
                }
            }
        })
    }

    /// Signs `message` (at most 64 KiB) by the identity key: 64 bytes, Ed25519, or P-256 as r || s. The signature was
    /// verified under the identity's public key.
    ///
    /// # Errors
    /// [`abi::Status::NoIdentity`]; see [`VaultPlugin`].
    pub fn identity_sign(&self, message: &[u8]) -> Result<[u8; SIGNATURE_BYTES], PluginError> {
        self.within(Op::IdentitySign, message.len(), SIGN_MESSAGE_BYTES_MAX)?;
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).identity.clone();
        let identity = match seen {
            Some(identity) => identity,
            None => self.identity_public(None, false)?,
        };
        self.client.call(Op::IdentitySign, Writer::new().bytes(message), |answer| {
            let signature = answer.fields.array()?;
            if !signature::is_good(&identity, message, &signature) {
                return wrong("a signature that does not verify");
            }
            Ok(signature)
        })
    }

    /// Evidence of the chip about itself; the steps are described on the plugin's page.
    ///
    /// # Errors
    /// [`abi::Status::Unsupported`] where there is no chip.
    pub fn attest(&self, step: u32, input: &[u8]) -> Result<Vec<u8>, PluginError> {
        self.within(Op::Attest, input.len(), abi::BLOB_BYTES_MAX)?;
        let fields = Writer::new().u32(step).bytes(input);
        self.client.call(Op::Attest, fields, |answer| Ok(answer.fields.bytes(abi::BLOB_BYTES_MAX)?.to_vec()))
    }

    /// The committed generation (0 before the first commit) and the staged one.
    ///
    /// # Errors
    /// A generation below one seen before is a bad answer: the vault under the running plugin was rolled back.
    pub fn generation(&self) -> Result<Generations, PluginError> {
        self.client.call(Op::Generation, Writer::new(), |answer| {
            let current = answer.fields.u64()?;
            let staged = answer.fields.u64()?;
            if staged != 0 && Some(staged) != current.checked_add(1) {
                return wrong(format!("generation {staged} staged over {current}"));
            }
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if current < seen.generation {
                return wrong(format!("generation {current}, but {} was there before", seen.generation));
            }
            seen.generation = current;
            Ok(Generations { current, staged: (staged != 0).then_some(staged) })
        })
    }

    /// Makes and keeps the key of `tier` in generation `next` (= current + 1) and gives it out. It opens only after
    /// [`VaultPlugin::commit`]; staging again gives another key and voids the earlier one.
    ///
    /// # Errors
    /// [`abi::Status::Invalid`] for another `next`; see [`VaultPlugin`].
    pub fn stage(&self, next: u64, tier: Tier) -> Result<Secret<VAULT_KEY_BYTES>, PluginError> {
        self.client.call(Op::Stage, Writer::new().u64(next).u32(tier as u32), take_key)
    }

    /// The key of `tier` in the committed generation.
    ///
    /// # Errors
    /// [`abi::Status::NoGeneration`] for every other generation; see [`VaultPlugin`].
    pub fn open_key(&self, generation: u64, tier: Tier) -> Result<Secret<VAULT_KEY_BYTES>, PluginError> {
        self.client.call(Op::OpenKey, Writer::new().u64(generation).u32(tier as u32), take_key)
    }

    /// Makes the staged generation the only one that opens and destroys the old one; done already is done.
    ///
    /// # Errors
    /// [`abi::Status::NoGeneration`] when `next` is neither staged nor committed; see [`VaultPlugin`].
    pub fn commit(&self, next: u64) -> Result<(), PluginError> {
        self.client.call(Op::Commit, Writer::new().u64(next), |_| Ok(()))?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.generation = seen.generation.max(next);
        Ok(())
    }

    /// Destroys what is staged, if anything.
    ///
    /// # Errors
    /// See [`VaultPlugin`].
    pub fn discard_staged(&self) -> Result<(), PluginError> {
        self.client.call(Op::DiscardStaged, Writer::new(), |_| Ok(()))
    }

    /// Fills `out` with random bytes of the vault's own source, to be mixed with the kernel's, never used alone.
    ///
    /// # Errors
    /// See [`VaultPlugin`].
    pub fn random(&self, out: &mut [u8]) -> Result<(), PluginError> {
        for piece in out.chunks_mut(RANDOM_BYTES_MAX) {
            let length = piece.len() as u32;
            self.client.call(Op::Random, Writer::new().u32(length), |answer| {
                if !answer.page.take(piece) {
                    return wrong("more random bytes than fit");
                }
                if piece.len() >= 16 && piece.iter().all(|byte| *byte == 0) {
                    return wrong("random bytes that are all zero");
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// State of what is under the plugin.
    ///
    /// # Errors
    /// See [`VaultPlugin`].
    pub fn health(&self) -> Result<Health, PluginError> {
        self.client.call(Op::Health, Writer::new(), read_health)
    }

    /// Management of the plugin's own (PCR policy, approvals); names and formats are on the plugin's page.
    ///
    /// # Errors
    /// [`abi::Status::Unsupported`] for an unknown name.
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

    fn within(&self, op: Op, length: usize, max: usize) -> Result<(), PluginError> {
        within(&self.client, op, length, max)
    }
}

/// Moves a vault key from the shared page into the arena. All zero is what a plugin leaves that wrote nothing.
fn take_key(answer: &mut Answer<'_>) -> Result<Secret<VAULT_KEY_BYTES>, Wrong> {
    let key = Secret::<VAULT_KEY_BYTES>::new_with(|bytes| {
        answer.page.take(bytes);
    })?;
    if mayfly_secmem::ct_eq(key.expose(), &[0; VAULT_KEY_BYTES]) {
        return wrong("a key that is all zero");
    }
    Ok(key)
}

pub(crate) fn within(client: &Client, op: Op, length: usize, max: usize) -> Result<(), PluginError> {
    if length <= max {
        return Ok(());
    }
    let what = format!("{length} bytes are more than the limit of {max}");
    Err(PluginError::Argument { who: client.who(), call: op.name(), what })
}

pub(crate) fn control(client: &Client, name: &str, input: &[u8]) -> Result<Vec<u8>, PluginError> {
    within(client, Op::Control, name.len(), abi::NAME_BYTES_MAX)?;
    within(client, Op::Control, input.len(), abi::BLOB_BYTES_MAX)?;
    let fields = Writer::new().bytes(name.as_bytes()).bytes(input);
    client.call(Op::Control, fields, |answer| Ok(answer.fields.bytes(abi::BLOB_BYTES_MAX)?.to_vec()))
}

pub(crate) fn read_health(answer: &mut Answer<'_>) -> Result<Health, Wrong> {
    let state = answer.fields.u32()?;
    let state = HealthState::from_code(state).ok_or_else(|| Wrong::Answer(format!("health state {state}")))?;
    let free = answer.fields.u64()?;
    Ok(Health {
        state,
        free_bytes: (free != u64::MAX).then_some(free),
        used_bytes: answer.fields.u64()?,
        sync_micros: answer.fields.u64()?,
        detail: answer.fields.text(TEXT_BYTES_MAX)?,
    })
}
