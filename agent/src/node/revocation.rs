//! When the vault moves on: erased shards wait for others for a while, then one revocation makes all of them worthless on every copy. And the
//! ledger is told.
//!
//! Nothing of this is remembered but what the shards' store and the ledger say: a device that starts anew goes on where it was.

use super::directory::Ledger;
use super::holder::Holder;
use super::identity::Records;
use super::upkeep::Stop;
use super::vault::{Vault, VaultError, VaultState};
use mayfly_ledger_client::{PostError, with_cause};
use mayfly_protocol::DeviceId;
use mayfly_protocol::attested::counter_context;
use mayfly_protocol::record::{Record, VaultGeneration};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest pause: shorter than the shortest window, so that the end of each is known in time.
const LOOK: Duration = Duration::from_millis(250);
/// Pause after a failed attempt; it doubles.
const RETRY: Duration = Duration::from_secs(5);
/// Longest such pause before a revocation: each attempt wears a chip's memory a little, and registers may stay unapproved for days.
const REVOKE_RETRY_MAX: Duration = Duration::from_secs(3600);
/// Longest such pause before the ledger is told.
const TELL_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long the ledger may take.
const POST_TIMEOUT: Duration = Duration::from_secs(5);

/// Moves the vault on, and tells the ledger.
pub struct Revoker {
    /// This device.
    pub device: DeviceId,
    /// The ledger.
    pub ledger: Arc<Ledger>,
    /// The shards.
    pub holder: Arc<Holder>,
    /// The vault.
    pub vault: Arc<Vault>,
    /// Our records.
    pub records: Arc<Records>,
    /// How long an erased shard waits for others.
    pub batch: Duration,
}

#[derive(Debug, thiserror::Error)]
enum TellError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Post(#[from] PostError),
}

/// Attempts that become rarer while they fail.
struct Attempts {
    not_before: Instant,
    pause: Duration,
    longest: Duration,
}

impl Attempts {
    fn new(longest: Duration) -> Self {
        Self { not_before: Instant::now(), pause: RETRY, longest }
    }

    fn are_due(&self) -> bool {
        Instant::now() >= self.not_before
    }

    fn failed(&mut self) {
        self.not_before = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(self.longest);
    }

    fn succeeded(&mut self) {
        *self = Self::new(self.longest);
    }
}

impl Revoker {
    /// The body of a thread.
    pub fn keep(&self, stop: &Stop) {
        // What an earlier run has left waiting has waited long enough.
        let (mut left_over, mut since) = (true, None);
        let (mut revoking, mut telling) = (Attempts::new(REVOKE_RETRY_MAX), Attempts::new(TELL_RETRY_MAX));
        while !stop.pause(self.vault.sweep().unwrap_or(LOOK).min(LOOK)) {
            if self.vault.is_forsaken() {
                left_over = true; // no keys of this generation are left: the next one, at once
            }
            match self.holder.waiting() + usize::from(self.vault.is_forsaken()) {
                0 => (since, left_over) = (None, false),
                _ => {
                    let waited = since.get_or_insert_with(Instant::now).elapsed();
                    if (left_over || waited >= self.batch())
                        && revoking.are_due()
                        && (self.vault.state() == VaultState::Open || self.vault.is_forsaken())
                    {
                        match self.holder.revoke_now() {
                            Ok(_) => {
                                (left_over, since) = (false, None);
                                revoking.succeeded();
                            }
                            Err(error) => {
                                tracing::warn!(error = with_cause(&error), "erased shards are not revoked yet");
                                revoking.failed();
                            }
                        }
                    }
                }
            }
            if telling.are_due() && !self.vault.is_ahead() && self.is_news() {
                match self.tell() {
                    Ok(()) => telling.succeeded(),
                    Err(error) => {
                        tracing::warn!(error = with_cause(&error), "the vault's generation is not on the ledger yet");
                        telling.failed();
                    }
                }
            }
        }
    }

    fn batch(&self) -> Duration {
        match self.ledger.replica().effective().policy() {
            Some(policy) if policy.dev => Duration::ZERO,
            _ => self.batch,
        }
    }

    /// Whether the ledger knows only of an older generation.
    fn is_news(&self) -> bool {
        let tip = self.ledger.replica().tip();
        let known = tip.devices.get(&self.device).filter(|device| device.is_member() && device.session().is_some());
        known.is_some_and(|device| device.vault_generation < self.vault.generation())
    }

    /// The identity key says it, and the chip where there is one.
    fn tell(&self) -> Result<(), TellError> {
        let generation = self.vault.generation();
        let network = self.ledger.replica().network().network;
        let proof = self.vault.certified_counter(&counter_context(&network, &self.device, generation))?;
        let record = Record::VaultGeneration(VaultGeneration { generation, proof });
        let index = self.records.post_by_identity(&record, &[], POST_TIMEOUT)?;
        let _ = self.ledger.replica().wait_tip(|tip| tip.size() > index, POST_TIMEOUT);
        Ok(())
    }
}
