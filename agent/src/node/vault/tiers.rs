//! Which vault keys are in memory, and for how long.
//!
//! Keys of one generation only: what another generation's opening brings too late is not kept.

use super::VaultError;
use mayfly_crypto::vault::window_key;
use mayfly_secmem::Secret;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

type Key = Arc<Secret<32>>;

/// The keys.
#[derive(Default)]
pub(super) struct Tiers {
    /// Of this generation, from the agent's start to the next generation.
    boot: RwLock<Option<(u64, Key)>>,
    windows: Windows,
    per_release: PerRelease,
}

/// The tier's own key is in memory only while the keys of windows are derived from it, so that a window of an hour voids none of a minute.
#[derive(Default)]
struct Windows {
    /// Held during an opening of the tier; one serves all lengths that waited when it began.
    opening: Mutex<()>,
    wanted: Mutex<BTreeSet<u32>>,
    open: Mutex<OpenWindows>,
}

#[derive(Default)]
struct OpenWindows {
    generation: u64,
    keys: HashMap<u32, (Key, Instant)>,
}

/// Openings of the `per-release` tier go one at a time; one serves all that waited when it began.
#[derive(Default)]
struct PerRelease {
    begun: AtomicU64,
    last: Mutex<(u64, Weak<Secret<32>>)>,
}

impl Tiers {
    /// Forgets every key of another generation.
    pub(super) fn enter(&self, generation: u64, boot: Option<Key>) {
        *self.boot.write().unwrap_or_else(PoisonError::into_inner) = boot.map(|key| (generation, key));
        *self.windows.lock() = OpenWindows { generation, keys: HashMap::new() };
    }

    pub(super) fn boot(&self, generation: u64) -> Option<Key> {
        let boot = self.boot.read().unwrap_or_else(PoisonError::into_inner);
        boot.as_ref().filter(|(of, _)| *of == generation).map(|(_, key)| key.clone())
    }

    /// The key of windows of `seconds`, which `open`s the tier if none is open.
    pub(super) fn window(
        &self,
        generation: u64,
        seconds: u32,
        open: impl FnOnce() -> Result<Secret<32>, VaultError>,
    ) -> Result<Key, VaultError> {
        let Windows { opening, wanted, .. } = &self.windows;
        if let Some(key) = self.windows.live(generation, seconds) {
            return Ok(key);
        }
        wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(seconds);
        let _one = opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = self.windows.live(generation, seconds) {
            wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(&seconds);
            return Ok(key);
        }
        let mut served = std::mem::take(&mut *wanted.lock().unwrap_or_else(PoisonError::into_inner));
        served.insert(seconds);
        let tier = open()?;
        let derived = |seconds: u32| Ok((seconds, Arc::new(window_key(&tier, seconds)?)));
        let keys = served.into_iter().map(derived).collect::<Result<Vec<_>, VaultError>>()?;
        drop(tier);
        let ours = keys.iter().find(|(of, _)| *of == seconds).map(|(_, key)| key.clone());
        let mut windows = self.windows.lock();
        if windows.generation == generation {
            let now = Instant::now();
            let until = |seconds: u32| now + Duration::from_secs(seconds.into());
            windows.keys.extend(keys.into_iter().map(|(seconds, key)| (seconds, (key, until(seconds)))));
        }
        Ok(ours.expect("it was added to those served"))
    }

    /// Whether the key of such a window is in memory.
    pub(super) fn has_window(&self, generation: u64, seconds: u32) -> bool {
        self.windows.live(generation, seconds).is_some()
    }

    pub(super) fn per_release(
        &self,
        generation: u64,
        open: impl FnOnce() -> Result<Secret<32>, VaultError>,
    ) -> Result<Key, VaultError> {
        let PerRelease { begun, last } = &self.per_release;
        let arrived = begun.load(Ordering::Acquire);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.load(Ordering::Acquire) > arrived
            && last.0 == generation
            && let Some(key) = last.1.upgrade()
        {
            return Ok(key);
        }
        begun.fetch_add(1, Ordering::AcqRel);
        let key = Arc::new(open()?);
        *last = (generation, Arc::downgrade(&key));
        Ok(key)
    }

    /// Wipes the keys of windows that are over. How long the next one lasts.
    pub(super) fn sweep(&self) -> Option<Duration> {
        let (mut windows, now) = (self.windows.lock(), Instant::now());
        windows.keys.retain(|_, (_, until)| *until > now);
        windows.keys.values().map(|(_, until)| until.saturating_duration_since(now)).min()
    }

    /// How many windows are open.
    pub(super) fn windows(&self) -> usize {
        self.windows.lock().keys.len()
    }
}

impl Windows {
    fn lock(&self) -> MutexGuard<'_, OpenWindows> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn live(&self, generation: u64, seconds: u32) -> Option<Key> {
        let open = self.lock();
        let (key, until) = open.keys.get(&seconds).filter(|_| open.generation == generation)?;
        (*until > Instant::now()).then(|| key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn key(fill: u8) -> Secret<32> {
        Secret::new_with(|slot| slot.fill(fill)).unwrap()
    }

    fn same(one: &Key, other: &Key) -> bool {
        one.expose() == other.expose()
    }

    fn entered(generation: u64) -> Tiers {
        let tiers = Tiers::default();
        tiers.enter(generation, Some(Arc::new(key(9))));
        tiers
    }

    fn counted(openings: &AtomicUsize) -> Result<Secret<32>, VaultError> {
        openings.fetch_add(1, Ordering::Relaxed);
        Ok(key(1))
    }

    #[test]
    fn windows_have_keys_of_their_own_and_end_on_time() {
        let (tiers, openings) = (entered(1), AtomicUsize::new(0));
        let window = |seconds| tiers.window(1, seconds, || counted(&openings)).unwrap();
        let (short, long) = (window(1), window(3600));
        assert!(!same(&short, &long) && same(&short, &Arc::new(window_key(&key(1), 1).unwrap())));
        assert!(same(&short, &window(1)) && same(&long, &window(3600)));
        assert_eq!((openings.load(Ordering::Relaxed), tiers.windows()), (2, 2));
        let weak = Arc::downgrade(&short);
        drop(short);
        let began = Instant::now();
        while weak.upgrade().is_some() {
            assert!(began.elapsed() < Duration::from_secs(20), "the window of one second does not end");
            let next = tiers.sweep().expect("the long one");
            std::thread::sleep(next.min(Duration::from_millis(20)));
        }
        assert_eq!(tiers.windows(), 1, "the long one is still open");
        window(3600);
        assert_eq!(openings.load(Ordering::Relaxed), 2);
        window(1);
        assert_eq!(openings.load(Ordering::Relaxed), 3);
    }

    #[test]
    fn one_opening_serves_all_that_wait() {
        const WAITING: usize = 8;
        let (tiers, openings) = (entered(1), AtomicUsize::new(0));
        let held = tiers.windows.opening.lock().unwrap();
        std::thread::scope(|scope| {
            for seconds in 1..=WAITING as u32 {
                let (tiers, openings) = (&tiers, &openings);
                scope.spawn(move || tiers.window(1, 1000 + seconds % 4, || counted(openings)).unwrap());
            }
            while tiers.windows.wanted.lock().unwrap().len() < 4 {
                std::thread::yield_now();
            }
            drop(held);
        });
        // Whoever asks for a length that was not wanted when the opening began opens again; all four were.
        assert_eq!((openings.load(Ordering::Relaxed), tiers.windows()), (1, 4));
    }

    #[test]
    fn what_opens_too_late_for_its_generation_is_not_kept() {
        let tiers = entered(1);
        let late = tiers.window(1, 60, || {
            tiers.enter(2, None);
            Ok(key(1))
        });
        assert!(late.is_ok(), "the release that asked fails by the record, not here");
        assert_eq!(tiers.windows(), 0);
        assert!(tiers.boot(1).is_none() && tiers.boot(2).is_none());
        let one = tiers.per_release(1, || Ok(key(1))).unwrap();
        let other = tiers.per_release(2, || Ok(key(2))).unwrap();
        assert!(!same(&one, &other));
    }

    #[test]
    fn a_new_generation_ends_windows_and_wipes_the_boot_key() {
        let tiers = entered(1);
        tiers.window(1, 3600, || Ok(key(1))).unwrap();
        tiers.enter(2, Some(Arc::new(key(8))));
        assert_eq!(tiers.windows(), 0);
        assert!(tiers.boot(1).is_none() && same(&tiers.boot(2).unwrap(), &Arc::new(key(8))));
    }
}
