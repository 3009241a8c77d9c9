//! What this vault costs, measured on purpose: `mayfly vault bench`. Nothing that is at rest is touched.

use super::figures::{ms, word};
use super::{SealingKeys, Vault, VaultError, tier};
use mayfly_crypto::enc;
use mayfly_crypto::wrap;
use mayfly_protocol::record::VaultOpening;
use mayfly_secmem::Secret;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Most rounds.
pub const ROUNDS_MAX: usize = 1000;
/// Releases that are tried for each opening where an opening serves more than one.
const RELEASES_PER_ROUND: usize = 100;
/// Length of the window that is tried: it outlives the measurement of its releases.
const WINDOW_SECONDS: u32 = 60;

/// Figures of a vault.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bench {
    /// Kind of the vault.
    pub kind: String,
    /// Nothing but software protects its keys.
    pub software_only: bool,
    /// Generation after it.
    pub generation: u64,
    /// Of each tier that the vault offers.
    pub tiers: Vec<TierBench>,
    /// Staging the next generation, all tiers, milliseconds.
    pub stage_ms: f64,
    /// The vault's commit of it, milliseconds; none unless that was asked for.
    pub commit_ms: Option<f64>,
    /// The whole revocation: staging, re-encrypting every shard of this device, committing, milliseconds.
    pub revocation_ms: Option<f64>,
    /// Shards that moved with it.
    pub shards: Option<usize>,
    /// A signature by the identity key, median, milliseconds.
    pub sign_ms: f64,
}

/// Figures of a tier.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierBench {
    /// `boot`, `window`, `per-release`.
    pub tier: &'static str,
    /// Openings that were measured.
    pub openings: usize,
    /// Median opening, milliseconds.
    pub median_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// Shards opened per second on the tier's path, one after the other.
    pub releases_per_second: f64,
}

impl Vault {
    /// Measures everything but a commit. Nobody stages meanwhile: the caller sees to that.
    ///
    /// # Errors
    /// [`VaultError`].
    pub fn bench(&self, rounds: usize) -> Result<Bench, VaultError> {
        let rounds = rounds.clamp(1, ROUNDS_MAX);
        let openings = [VaultOpening::Boot, VaultOpening::Window(WINDOW_SECONDS), VaultOpening::PerRelease];
        let tiers = openings.into_iter().filter(|opening| self.offers(*opening));
        let tiers = tiers.map(|opening| self.bench_tier(opening, rounds)).collect::<Result<_, _>>()?;
        let mut signatures = times(rounds, || self.sign(b"mayfly/v1/vault-bench").map(drop))?;
        let began = Instant::now();
        let staged = self.stage();
        let stage = began.elapsed();
        self.discard_staged()?;
        drop(staged?);
        Ok(Bench {
            kind: self.kind().to_owned(),
            software_only: self.software_only(),
            generation: self.generation(),
            tiers,
            stage_ms: ms(stage),
            commit_ms: None,
            revocation_ms: None,
            shards: None,
            sign_ms: ms(percentile(&mut signatures, 50)),
        })
    }

    fn bench_tier(&self, opening: VaultOpening, rounds: usize) -> Result<TierBench, VaultError> {
        let generation = self.generation();
        let mut openings = times(rounds, || self.open_tier(generation, tier(opening)).map(drop))?;
        let sample = Secret::<64>::new_with(|slot| slot.fill(7))?;
        let aad = enc::enc("mayfly/v1/vault-bench", &[]);
        let sealed = self.key(generation, opening).map(|key| wrap::seal(&key, &aad, sample.expose()))?;
        let sealed = sealed.map_err(|error| VaultError::Closed(super::VaultState::Closed(error.to_string())))?;
        let releases = match opening {
            VaultOpening::PerRelease => rounds,
            VaultOpening::Boot | VaultOpening::Window(_) => rounds * RELEASES_PER_ROUND,
        };
        let began = Instant::now();
        for _ in 0..releases {
            let key = self.key(generation, opening)?;
            let opened = wrap::open_fixed::<64>(&key, &aad, &sealed);
            opened.map_err(|error| VaultError::Closed(super::VaultState::Closed(error.to_string())))?;
        }
        Ok(TierBench {
            tier: word(tier(opening)),
            openings: openings.len(),
            median_ms: ms(percentile(&mut openings, 50)),
            p95_ms: ms(percentile(&mut openings, 95)),
            releases_per_second: (releases as f64 / began.elapsed().as_secs_f64().max(1e-9)).round(),
        })
    }
}

fn times(rounds: usize, mut step: impl FnMut() -> Result<(), VaultError>) -> Result<Vec<Duration>, VaultError> {
    let one = |_| {
        let began = Instant::now();
        step().map(|()| began.elapsed())
    };
    (0..rounds).map(one).collect()
}

/// Of at least one.
fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * percent / 100).min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}
