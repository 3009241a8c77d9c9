//! Becoming a device: the identity key is made inside the vault, and a JOIN record is signed by it and by the invitation's seed.

use super::data::{DataDir, DataError};
use super::vault::{self, Vault, VaultError};
use crate::config::Config;
use crate::join_token::JoinToken;
use mayfly_crypto::sign::{Ed25519Secret, PublicKey};
use mayfly_evidence::exchange::STEP_KEYS;
use mayfly_ledger_client::{
    Author, EntrySigner, GatewayAddress, HelloSigner, NetworkFile, NetworkFileError, OpenError, PostError, Replica,
    ReplicaConfig, ReplicaStatus, SignerError, SubmitError,
};
use mayfly_plugin_api::Status;
use mayfly_protocol::ids::public_key_id;
use mayfly_protocol::record::{Join, Record, Verifier};
use mayfly_protocol::{AuthorId, DeviceId, InviteId, State};
use mayfly_secmem::{Exhausted, Secret};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the ledger may take to be reached, and to take the record.
const TIMEOUT: Duration = Duration::from_secs(20);

/// A device that has joined; an administrator's approval comes next.
#[derive(Debug)]
pub struct Joined {
    /// The device.
    pub device: DeviceId,
    /// Kind of its vault.
    pub vault: String,
    /// The network's description, for the configuration's `network`.
    pub network: NetworkFile,
    /// The network approves only devices whose chips proved themselves.
    pub asks_for_attestation: bool,
}

/// Why a device did not join. A second attempt with the same data folder goes on where the first one ended.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The data folder.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The vault.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// The replica.
    #[error("cannot read the ledger")]
    Open(#[from] OpenError),
    /// No gateway of the token answers, or none has its network.
    #[error("no gateway of the join token serves its network: {0}")]
    NoLedger(String),
    /// What the gateway showed is not the network of the token.
    #[error("the ledger's first entry is not that of the join token's network")]
    Genesis(#[from] NetworkFileError),
    /// The device could never be approved.
    #[error(
        "this network takes devices with TPMs only, which prove themselves, and a vault of kind '{0}' proves nothing; join with --vault tpm, or \
         ask for a network made with `mayfly init --allow-unattested`"
    )]
    NoChip(String),
    /// The ledger did not take the record.
    #[error("the ledger did not take the device")]
    Post(#[from] PostError),
    /// No locked memory.
    #[error(transparent)]
    Memory(#[from] Exhausted),
}

impl JoinError {
    /// Whether the ledger may have taken the device, or may take it still.
    pub fn may_have_joined(&self) -> bool {
        use SubmitError::{Busy, Unavailable, Unknown};
        matches!(
            self,
            JoinError::Post(PostError::Disputed { .. } | PostError::Submit(Unknown | Unavailable(_) | Busy { .. }))
        )
    }

    /// Whether the vault refused its passphrase or PIN: each further try may bring a token nearer to its lock.
    pub fn is_refused_secret(&self) -> bool {
        let JoinError::Vault(VaultError::Plugin(error)) = self else { return false };
        matches!(error.status(), Some(Status::Auth | Status::Lockout))
    }
}

/// Starts the vault, makes the identity key in it, and posts JOIN. Does nothing twice.
///
/// # Errors
/// [`JoinError`].
pub fn join(token: &JoinToken, config: &Config) -> Result<Joined, JoinError> {
    let data = DataDir::open(&config.data_dir)?;
    let vault = Arc::new(Vault::start(config, &data.join("vault"), true)?);
    let seed = Secret::<32>::new_with(|slot| slot.copy_from_slice(token.seed.expose()))?;
    let guest = Arc::new(Guest { vault: vault.clone(), seed: Ed25519Secret::from_seed(seed) });
    let replica = Replica::open_in_memory(ReplicaConfig {
        dir: data.join("replica"),
        network: unverified(token),
        hello: guest.clone(),
        witness: None,
    })?;
    reach(&replica, token)?;
    let network = with_genesis(&replica, token)?;
    let device = vault.device();
    let asks_for_attestation = !replica.tip().policy().is_some_and(|policy| policy.unattested);
    if asks_for_attestation && !has_chip(&vault) {
        return Err(JoinError::NoChip(vault.kind().to_owned()));
    }
    if !replica.tip().devices.contains_key(&device) {
        post(&replica, &data.join("outbox"), &guest, config)?;
    }
    Ok(Joined { device, vault: vault.kind().to_owned(), network, asks_for_attestation })
}

/// Takes back what [`join`] made in the device under the vault, which then never opens again; the data folder may be removed after it.
///
/// # Errors
/// The vault does not start, or keeps nothing outside of its folder that could be removed.
pub fn forget(config: &Config) -> Result<(), VaultError> {
    vault::forget(config, &config.data_dir.join("vault"))
}

/// Whether there is a chip that can prove itself. One that is only disturbed has time until it is challenged.
fn has_chip(vault: &Vault) -> bool {
    let shown = vault.attest(STEP_KEYS, &[]);
    !shown.is_err_and(|error| error.status() == Some(Status::Unsupported))
}

/// Waits until a gateway of the token serves us; no longer than until each has said that it will not.
fn reach(replica: &Replica, token: &JoinToken) -> Result<(), JoinError> {
    let gateways = unverified(token).gateways.len();
    let is_over = |status: &ReplicaStatus| status.connected && status.caught_up || status.hopeless >= gateways;
    let served = replica.wait_status(is_over, TIMEOUT).is_ok() && replica.status().hopeless == 0;
    if served {
        Ok(())
    } else {
        Err(JoinError::NoLedger(replica.status().last_error.unwrap_or_else(|| "no answer".into())))
    }
}

fn post(replica: &Arc<Replica>, outbox: &Path, guest: &Arc<Guest>, config: &Config) -> Result<(), PostError> {
    let author = Author::open(replica.clone(), outbox, AuthorId::from(guest.vault.device()), guest.clone())?;
    let record = Record::Join(Join {
        name: config.device_name.clone(),
        identity: Verifier(*guest.vault.identity()),
        invite: InviteId(public_key_id(&guest.seed.public())),
        vault: guest.vault.kind().to_owned(),
        software_only: guest.vault.software_only(),
    });
    author.post(&record, &[&Seed(guest)], TIMEOUT).map(drop)
}

/// The token's network. The replica holds the first entry that it is shown against the network's id.
fn unverified(token: &JoinToken) -> NetworkFile {
    let gateways = token.gateways.iter().flat_map(|gateway| {
        gateway.addresses.iter().map(|address| GatewayAddress { address: address.clone(), key: gateway.key.0 })
    });
    NetworkFile { network: token.network, genesis: Vec::new(), gateways: gateways.collect() }
}

/// The network's description with its first entry, checked as if it had come as a file.
fn with_genesis(replica: &Replica, token: &JoinToken) -> Result<NetworkFile, JoinError> {
    let entries = replica.entries(0, 1).map_err(|e| JoinError::NoLedger(e.to_string()))?;
    let Some((_, _, genesis)) = entries.into_iter().next() else {
        return Err(JoinError::NoLedger("its ledger is empty".into()));
    };
    Ok(NetworkFile::parse(&NetworkFile { genesis, ..unverified(token) }.to_toml())?)
}

/// A device that is not on the ledger yet: known by its invitation's seed, then by its identity key.
struct Guest {
    vault: Arc<Vault>,
    seed: Ed25519Secret,
}

impl Guest {
    fn by_vault(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.vault.sign(message).map(|s| s.to_vec()).map_err(|e| SignerError(e.to_string()))
    }
}

impl HelloSigner for Guest {
    fn key(&self, tip: &State) -> PublicKey {
        if tip.devices.contains_key(&self.vault.device()) { *self.vault.identity() } else { self.seed.public() }
    }

    fn sign(&self, key: &PublicKey, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        if *key == self.seed.public() { Ok(self.seed.sign(message).to_vec()) } else { self.by_vault(message) }
    }
}

impl EntrySigner for Guest {
    fn key(&self) -> PublicKey {
        *self.vault.identity()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.by_vault(message)
    }
}

/// The invitation's seed as second signer.
struct Seed<'a>(&'a Guest);

impl EntrySigner for Seed<'_> {
    fn key(&self) -> PublicKey {
        self.0.seed.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignerError> {
        Ok(self.0.seed.sign(message).to_vec())
    }
}
