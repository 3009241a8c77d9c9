//! Assembled keys: who may share one, how long it lives, when it ends.
//!
//! *Per operation*: an assembly serves exactly the operations that were waiting when its shards were asked for; the key is wiped when the last of
//! them has used it. *Window*: the derived key stays for so many seconds, but rules and freshness are asked at each use, and it is wiped at
//! once when the key is deleted or changed, or this device loses its right. Keys for IVs are never kept.

use super::assembler::{Assembler, Permit, valid_until_ms};
use super::clock;
use super::directory::View;
use super::error::{KeyError, KeyErrorKind};
use super::key::AssembledKey;
use mayfly_protocol::assembly::DEADLINE;
use mayfly_protocol::peer::USES_MAX;
use mayfly_protocol::rules::{ReleaseQuery, Use};
use mayfly_protocol::{DeviceId, KeyId};
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// How long operations that came while the same key is being put together wait before they begin an assembly of their own.
const GATHER: Duration = Duration::from_millis(2);
/// Most assemblies at once; further operations wait for their turn.
const ASSEMBLIES_MAX: usize = 32;
/// Most windows; beyond, keys are put together for each operation.
const WINDOWS_MAX: usize = 4096;

/// The keys of this moment.
#[derive(Debug)]
pub struct Keyring {
    device: DeviceId,
    assembler: Arc<Assembler>,
    windows: RwLock<HashMap<KeyId, Window>>,
    /// Told when a window is added that may end first.
    sooner: Condvar,
    sweeping: Mutex<bool>,
    flights: Mutex<HashMap<(KeyId, Use), Slot>>,
    turns: Turns,
}

#[derive(Debug)]
struct Window {
    key: Arc<AssembledKey>,
    generation: u64,
    epoch: u64,
    until_boot_ms: u64,
    /// By either clock.
    valid_until_ms: u64,
}

/// Assemblies of one key for one use.
#[derive(Debug, Default)]
struct Slot {
    /// Under way.
    departed: usize,
    /// Gathering operations; departs when the one before has landed, or after [`GATHER`].
    gathering: Option<Arc<Flight>>,
}

/// One assembly and those who wait for it.
#[derive(Debug)]
struct Flight {
    state: Mutex<FlightState>,
    changed: Condvar,
}

#[derive(Debug)]
struct FlightState {
    uses: u32,
    may_depart: bool,
    result: Option<Result<Arc<AssembledKey>, KeyError>>,
}

impl Keyring {
    /// Empty.
    pub fn new(device: DeviceId, assembler: Arc<Assembler>) -> Self {
        Self {
            device,
            assembler,
            windows: RwLock::default(),
            sooner: Condvar::new(),
            sweeping: Mutex::new(false),
            flights: Mutex::default(),
            turns: Turns::default(),
        }
    }

    /// The key for one operation.
    ///
    /// # Errors
    /// [`KeyError`].
    #[inline]
    pub fn obtain(&self, id: &KeyId, purpose: Use) -> Result<Arc<AssembledKey>, KeyError> {
        let began = Instant::now();
        let permit = self.assembler.permit(id, purpose, began)?;
        let seconds = permit.key.policy.residency.window_seconds;
        if seconds == 0 || purpose == Use::Iv {
            return self.fly(id, purpose, began);
        }
        if let Some(key) = self.windowed(id, &permit) {
            return Ok(key);
        }
        let key = self.fly(id, purpose, began)?;
        self.keep(&key, &permit, seconds);
        Ok(key)
    }

    // --- windows ------------------------------------------------------------------------------------------------------------

    #[inline]
    fn windowed(&self, id: &KeyId, permit: &Permit) -> Option<Arc<AssembledKey>> {
        let windows = self.windows.read().unwrap_or_else(PoisonError::into_inner);
        let window = windows.get(id)?;
        let same = (window.generation, window.epoch) == (permit.key.generation, permit.key.epoch);
        let latest = permit.clocks.local_ms.max(permit.clocks.ledger_ms);
        let open = clock::boot_ms() < window.until_boot_ms && latest <= window.valid_until_ms;
        (same && open).then(|| window.key.clone())
    }

    fn keep(&self, key: &Arc<AssembledKey>, permit: &Permit, seconds: u32) {
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= WINDOWS_MAX && !windows.contains_key(key.id()) {
            return;
        }
        // A window that another thread has opened meanwhile keeps its end: windows are not lengthened by use.
        let window = windows.entry(*key.id()).or_insert_with(|| Window {
            key: key.clone(),
            generation: permit.key.generation,
            epoch: permit.key.epoch,
            until_boot_ms: clock::boot_ms() + u64::from(seconds) * 1000,
            valid_until_ms: valid_until_ms(&permit.key),
        });
        if (window.generation, window.epoch) != (permit.key.generation, permit.key.epoch)
            || window.until_boot_ms <= clock::boot_ms()
        {
            windows.remove(key.id());
        }
        drop(windows);
        *lock(&self.sweeping) = true;
        self.sooner.notify_all();
    }

    /// Ends the windows that are over or that the ledger does not allow any more. Returns when the next one is over.
    pub fn sweep(&self, view: &View) -> Option<Duration> {
        let now = clock::boot_ms();
        let mut windows = self.windows.write().unwrap_or_else(PoisonError::into_inner);
        windows.retain(|id, window| now < window.until_boot_ms && self.still_allowed(view, id, window));
        let next = windows.values().map(|w| w.until_boot_ms).min()?;
        Some(Duration::from_millis(next.saturating_sub(now)))
    }

    fn still_allowed(&self, view: &View, id: &KeyId, window: &Window) -> bool {
        let uses = view.effective.keys.get(id).map_or(0, |k| k.record.policy.uses);
        let Some(purpose) = Use::ALL.into_iter().find(|u| uses & u.bit() != 0) else { return false };
        let (generation, epoch) = (window.generation, window.epoch);
        view.may_assemble(&ReleaseQuery { key: *id, generation, epoch, purpose, requester: self.device }).is_ok()
    }

    /// Ends every window.
    pub fn clear(&self) {
        self.windows.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Keys that are kept at this moment.
    pub fn windows(&self) -> usize {
        self.windows.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Wipes each window at its end, until `stop`. The body of a thread.
    pub fn keep_swept(&self, view: impl Fn() -> View, stop: impl Fn() -> bool) {
        const LOOK: Duration = Duration::from_secs(2);
        while !stop() {
            let pause = self.sweep(&view()).map_or(LOOK, |left| left.min(LOOK));
            let mut added = lock(&self.sweeping);
            if !*added {
                added = self.sooner.wait_timeout(added, pause).unwrap_or_else(PoisonError::into_inner).0;
            }
            *added = false;
        }
        self.clear();
    }

    // --- operations that wait together --------------------------------------------------------------------------------------

    fn fly(&self, id: &KeyId, purpose: Use, began: Instant) -> Result<Arc<AssembledKey>, KeyError> {
        let place = (*id, purpose);
        let mut flights = lock(&self.flights);
        let slot = flights.entry(place).or_default();
        if let Some(flight) = slot.gathering.clone() {
            let mut state = lock(&flight.state);
            if state.uses < USES_MAX {
                state.uses += 1;
                drop(flights);
                return flight.landed(state, began);
            }
        }
        let flight = Arc::new(Flight::new());
        if slot.departed > 0 && slot.gathering.is_none() {
            slot.gathering = Some(flight.clone());
            drop(flights);
            flight.gather();
            flights = lock(&self.flights);
            let slot = flights.entry(place).or_default();
            slot.gathering = None;
            slot.departed += 1;
        } else {
            slot.departed += 1;
        }
        drop(flights);
        self.lead(&flight, &place, began)
    }

    /// Puts the key together for all that wait in the flight.
    fn lead(&self, flight: &Flight, place: &(KeyId, Use), began: Instant) -> Result<Arc<AssembledKey>, KeyError> {
        let landing = Landing { ring: self, flight, place };
        let uses = lock(&flight.state).uses;
        let result = match self.turns.take(began + DEADLINE) {
            Some(_turn) => self.assembler.assemble(&place.0, place.1, uses, began).map(Arc::new),
            None => Err(KeyError::new(KeyErrorKind::TooFewHolders, "too many keys are being put together").retry(100)),
        };
        lock(&flight.state).result = Some(result.clone());
        drop(landing);
        result
    }
}

/// Lets the next flight depart, and those who wait go on, whatever happened (a panic too).
struct Landing<'a> {
    ring: &'a Keyring,
    flight: &'a Flight,
    place: &'a (KeyId, Use),
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut flights = lock(&self.ring.flights);
        if let Some(slot) = flights.get_mut(self.place) {
            slot.departed = slot.departed.saturating_sub(1);
            match &slot.gathering {
                Some(next) => next.depart(),
                None if slot.departed == 0 => drop(flights.remove(self.place)),
                None => {}
            }
        }
        drop(flights);
        let mut state = lock(&self.flight.state);
        let died = || Err(KeyError::new(KeyErrorKind::Invalid, "the assembly ended without a result"));
        state.result.get_or_insert_with(died);
        drop(state);
        self.flight.changed.notify_all();
    }
}

impl Flight {
    fn new() -> Self {
        let state = FlightState { uses: 1, may_depart: false, result: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits until the flight before has landed, not for long.
    fn gather(&self) {
        let state = lock(&self.state);
        let result = self.changed.wait_timeout_while(state, GATHER, |s| !s.may_depart);
        drop(result.unwrap_or_else(PoisonError::into_inner));
    }

    fn depart(&self) {
        lock(&self.state).may_depart = true;
        self.changed.notify_all();
    }

    /// Waits for the result.
    fn landed(&self, mut state: MutexGuard<'_, FlightState>, began: Instant) -> Result<Arc<AssembledKey>, KeyError> {
        // The leader may have begun later than this operation, by the time of gathering.
        let deadline = began + DEADLINE + GATHER;
        loop {
            if let Some(result) = &state.result {
                return result.clone();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(KeyError::new(KeyErrorKind::TooFewHolders, "the key did not come together in time"));
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A bound on assemblies at once.
#[derive(Debug, Default)]
struct Turns {
    taken: Mutex<usize>,
    freed: Condvar,
}

struct Turn<'a>(&'a Turns);

impl Turns {
    fn take(&self, deadline: Instant) -> Option<Turn<'_>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let taken = lock(&self.taken);
        let waited = self.freed.wait_timeout_while(taken, left, |taken| *taken >= ASSEMBLIES_MAX);
        let (mut taken, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            return None;
        }
        *taken += 1;
        Some(Turn(self))
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *lock(&self.0.taken) -= 1;
        self.0.freed.notify_one();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
