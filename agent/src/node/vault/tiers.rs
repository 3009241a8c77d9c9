//! Which vault keys are in memory, and for how long.

use super::VaultError;
use mayfly_secmem::Secret;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

/// How long the `window` tier stays open after a need.
const WINDOW: Duration = Duration::from_secs(60);

type Key = Arc<Secret<32>>;

/// Keys of one generation.
#[derive(Default)]
pub(super) struct Tiers {
    /// Of this generation, from the agent's start to the next generation.
    boot: RwLock<Option<(u64, Key)>>,
    window: Mutex<Option<(Key, Instant)>>,
    per_release: PerRelease,
}

/// Openings of the `per-release` tier go one at a time; one serves all that waited when it began.
#[derive(Default)]
struct PerRelease {
    begun: AtomicU64,
    last: Mutex<Weak<Secret<32>>>,
}

impl Tiers {
    /// Forgets every key of another generation.
    pub(super) fn enter(&self, generation: u64, boot: Option<Key>) {
        *self.boot.write().unwrap_or_else(PoisonError::into_inner) = boot.map(|key| (generation, key));
        *self.window.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.per_release.last.lock().unwrap_or_else(PoisonError::into_inner) = Weak::new();
    }

    pub(super) fn boot(&self, generation: u64) -> Option<Key> {
        let boot = self.boot.read().unwrap_or_else(PoisonError::into_inner);
        boot.as_ref().filter(|(of, _)| *of == generation).map(|(_, key)| key.clone())
    }

    pub(super) fn window(&self, open: impl FnOnce() -> Result<Secret<32>, VaultError>) -> Result<Key, VaultError> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((key, until)) = &*window
            && *until > Instant::now()
        {
            return Ok(key.clone());
        }
        let key = Arc::new(open()?);
        *window = Some((key.clone(), Instant::now() + WINDOW));
        Ok(key)
    }

    pub(super) fn per_release(&self, open: impl FnOnce() -> Result<Secret<32>, VaultError>) -> Result<Key, VaultError> {
        let PerRelease { begun, last } = &self.per_release;
        let arrived = begun.load(Ordering::Acquire);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.load(Ordering::Acquire) > arrived
            && let Some(key) = last.upgrade()
        {
            return Ok(key);
        }
        begun.fetch_add(1, Ordering::AcqRel);
        let key = Arc::new(open()?);
        *last = Arc::downgrade(&key);
        Ok(key)
    }

    /// Wipes the key of a window that is over.
    pub(super) fn sweep(&self) {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.as_ref().is_some_and(|(_, until)| *until <= Instant::now()) {
            *window = None;
        }
    }
}
