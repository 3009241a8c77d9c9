//! Failing on purpose: change number N, of the folder or of what is under the vault, is lost, or done but reported
//! failed, and so is every change after it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// When the change that fails does so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum When {
    /// It is lost.
    Before,
    /// It is done, and nobody hears of it.
    After,
}

#[derive(Default)]
struct State {
    count: usize,
    plan: Option<(usize, When)>,
}

/// Counts changes and lets one fail; without a plan, none.
#[derive(Default)]
pub struct Faults(Mutex<State>);

impl Faults {
    /// From now on, change number `number` (from 0) fails, and all after it: the process has crashed.
    pub fn crash_at(&self, number: usize, when: When) {
        *self.lock() = State { count: 0, plan: Some((number, when)) };
    }

    /// Changes tried since [`Faults::crash_at`].
    pub fn tried(&self) -> usize {
        self.lock().count
    }

    /// Makes a change, or does not, or says it did not; `crash` is the error then.
    ///
    /// # Errors
    /// The change's own, or `crash`.
    pub fn around<T, E>(&self, change: impl FnOnce() -> Result<T, E>, crash: impl Fn() -> E) -> Result<T, E> {
        let (number, plan) = {
            let mut state = self.lock();
            state.count += 1;
            (state.count - 1, state.plan)
        };
        match plan {
            Some((at, _)) if number > at => Err(crash()),
            Some((at, When::Before)) if number == at => Err(crash()),
            Some((at, When::After)) if number == at => change().and_then(|_| Err(crash())),
            _ => change(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
