//! What openings cost here: the newest of each tier, their median, and the rates that follow.

use super::tier;
use mayfly_plugin_api::Tier;
use mayfly_protocol::record::VaultOpening;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Openings of a tier that count.
const NEWEST: usize = 31;

/// Times of openings, by tier.
#[derive(Debug, Default)]
pub(super) struct Openings([Mutex<Taken>; 3]);

#[derive(Debug, Default)]
struct Taken {
    newest: VecDeque<Duration>,
    all: u64,
}

/// What openings have cost since the agent's start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Of each tier.
    pub tiers: Vec<TierFigures>,
}

/// What openings of a tier have cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TierFigures {
    /// `boot`, `window`, `per-release`.
    pub tier: &'static str,
    /// Openings since the start.
    pub openings: u64,
    /// Median of the newest 31, milliseconds; none yet: null.
    pub median_ms: Option<f64>,
}

impl Openings {
    pub(super) fn took(&self, tier: Tier, time: Duration) {
        let mut taken = self.of(tier).lock().unwrap_or_else(PoisonError::into_inner);
        if taken.newest.len() >= NEWEST {
            taken.newest.pop_front();
        }
        taken.newest.push_back(time);
        taken.all += 1;
    }

    pub(super) fn median(&self, tier: Tier) -> Option<Duration> {
        let taken = self.of(tier).lock().unwrap_or_else(PoisonError::into_inner);
        let mut times: Vec<_> = taken.newest.iter().copied().collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    pub(super) fn figures(&self) -> Figures {
        let of = |tier: Tier| {
            let openings = self.of(tier).lock().unwrap_or_else(PoisonError::into_inner).all;
            TierFigures { tier: word(tier), openings, median_ms: self.median(tier).map(ms) }
        };
        Figures { tiers: Tier::ALL.into_iter().map(of).collect() }
    }

    fn of(&self, tier: Tier) -> &Mutex<Taken> {
        match tier {
            Tier::Boot => &self.0[0],
            Tier::Window => &self.0[1],
            Tier::PerRelease => &self.0[2],
        }
    }
}

/// The tier's word in configuration and output.
pub(super) fn word(tier: Tier) -> &'static str {
    match tier {
        Tier::Boot => "boot",
        Tier::Window => "window",
        Tier::PerRelease => "per-release",
    }
}

pub(super) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Whether a vault with this median opening serves `rate` releases a second; if not, why, and what to ask for.
pub(super) fn serves(median: Duration, opening: VaultOpening, rate: u32) -> Result<(), String> {
    let (seconds, in_ms) = (median.as_secs_f64().max(1e-9), ms(median));
    match opening {
        VaultOpening::PerRelease if f64::from(rate) > 1.0 / seconds => Err(format!(
            "this device opens its vault in {in_ms:.1} ms: at most {:.0} releases per second in {}, the key asks for {rate}; \
             ask for window:SECONDS or boot",
            (1.0 / seconds).floor(),
            word(tier(opening))
        )),
        VaultOpening::Window(window) if f64::from(window) <= seconds => Err(format!(
            "this device opens its vault in {in_ms:.1} ms, which is no less than the window of {window} s; ask for a longer \
             window or boot"
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_served_or_refused_with_figures_and_a_way_out() {
        let ms = Duration::from_millis;
        for (median, opening, rate, refused) in [
            (ms(15), VaultOpening::PerRelease, 66, None),
            (ms(15), VaultOpening::PerRelease, 67, Some("15.0 ms: at most 66 releases per second in per-release")),
            (ms(1500), VaultOpening::PerRelease, 1, Some("at most 0 releases")),
            (ms(15), VaultOpening::Window(1), 1_000_000, None),
            (ms(1500), VaultOpening::Window(1), 1, Some("window of 1 s; ask for a longer window or boot")),
            (ms(1500), VaultOpening::Window(2), 1, None),
            (ms(1500), VaultOpening::Boot, 1_000_000, None),
        ] {
            match (serves(median, opening, rate), refused) {
                (Ok(()), None) => {}
                (Err(text), Some(part)) => assert!(text.contains(part), "{text}"),
                other => panic!("{opening:?} at {rate}: {other:?}"),
            }
        }
    }

    #[test]
    fn the_median_is_of_the_newest() {
        let openings = Openings::default();
        assert_eq!(openings.median(Tier::Window), None);
        for _ in 0..NEWEST {
            openings.took(Tier::Window, Duration::from_secs(9));
        }
        for _ in 0..NEWEST / 2 + 1 {
            openings.took(Tier::Window, Duration::from_millis(3));
        }
        assert_eq!(openings.median(Tier::Window), Some(Duration::from_millis(3)));
        let figures = openings.figures();
        assert_eq!((figures.tiers[1].openings, figures.tiers[1].median_ms), (NEWEST as u64 + 16, Some(3.0)));
        assert_eq!((figures.tiers[0].openings, figures.tiers[0].median_ms), (0, None));
    }
}
