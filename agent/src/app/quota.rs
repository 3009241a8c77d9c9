//! What the applications of one user may hold in the agent's memory.
//!
//! Two pots are counted. *Secret memory* has a fixed size for the whole process, and assembling and releasing keys needs room in it; *ordinary
//! memory* holds large data under way, collected ciphertexts and the attributes of session objects. A request that would go beyond is refused
//! at once: nobody waits, and what others hold, or the node itself, is not touched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ck::CKR_DEVICE_MEMORY;
use super::fail::{Done, Fail};

/// Secret memory for one user's session keys and operations in parts, bytes.
pub const SECRET_PER_USER_MAX: usize = 1 << 20;
/// The same for all users together: an eighth of [`mayfly_secmem::ARENA_BYTES_MAX`].
pub const SECRET_ALL_MAX: usize = 4 << 20;
/// The least that a secret counts for: small slots are cut from large pieces, which a few of them keep from other uses.
const SECRET_COUNTED_MIN: usize = 256;

/// A kind of memory, and who holds how much of it.
#[derive(Debug)]
pub struct Pot {
    what: &'static str,
    per_user_max: usize,
    all_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_user: HashMap<u32, usize>,
}

impl Pot {
    /// A pot from which nothing is taken. `what` names it in refusals.
    pub fn new(what: &'static str, per_user_max: usize, all_max: usize) -> Arc<Self> {
        Arc::new(Self { what, per_user_max, all_max, taken: Mutex::default() })
    }

    /// What one user may take of it; `account` is [`super::principal::Peer::account`].
    pub fn of(self: &Arc<Self>, account: u32) -> Allowance {
        Allowance { pot: self.clone(), account }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, account: u32, bytes: usize) -> Done<()> {
        let mut taken = self.lock();
        let own = taken.by_user.get(&account).copied().unwrap_or(0).saturating_add(bytes);
        let all = taken.all.saturating_add(bytes);
        if own > self.per_user_max || all > self.all_max {
            let whose = if own > self.per_user_max { "this user's applications hold" } else { "applications hold" };
            let reason = format!("{whose} all the {} that they may", self.what);
            return Err(Fail::ruled(CKR_DEVICE_MEMORY, "quota", reason)
                .next("close sessions and operations that are not used any more, or send data in smaller parts"));
        }
        taken.all = all;
        if bytes > 0 {
            taken.by_user.insert(account, own);
        }
        Ok(())
    }

    fn give_back(&self, account: u32, bytes: usize) {
        let mut taken = self.lock();
        taken.all = taken.all.saturating_sub(bytes);
        if let Some(own) = taken.by_user.get_mut(&account) {
            *own = own.saturating_sub(bytes);
            if *own == 0 {
                taken.by_user.remove(&account);
            }
        }
    }
}

/// One user's part of a pot.
#[derive(Debug, Clone)]
pub struct Allowance {
    pot: Arc<Pot>,
    account: u32,
}

impl Allowance {
    /// Counts so many bytes until the result is dropped.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY.
    pub fn take(&self, bytes: usize) -> Done<Held> {
        self.pot.add(self.account, bytes)?;
        Ok(Held { allowance: self.clone(), bytes })
    }

    /// The same for secrets of these lengths, counted as the slots that they take.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY.
    pub fn take_secrets(&self, lengths: impl IntoIterator<Item = usize>) -> Done<Held> {
        let slot = |length: usize| length.next_power_of_two().max(SECRET_COUNTED_MIN);
        self.take(lengths.into_iter().map(slot).sum())
    }
}

/// Bytes that are counted; given back when dropped.
#[derive(Debug)]
pub struct Held {
    allowance: Allowance,
    bytes: usize,
}

impl Held {
    /// Counts so many bytes more.
    ///
    /// # Errors
    /// CKR_DEVICE_MEMORY; then nothing has changed.
    pub fn grow(&mut self, bytes: usize) -> Done<()> {
        self.allowance.pot.add(self.allowance.account, bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    /// Gives back all but so many bytes.
    pub fn shrink_to(&mut self, bytes: usize) {
        let less = self.bytes.saturating_sub(bytes);
        self.allowance.pot.give_back(self.allowance.account, less);
        self.bytes -= less;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_bounds_of_their_own_and_one_together() {
        let pot = Pot::new("memory", 100, 150);
        let (one, two) = (pot.of(1), pot.of(2));
        let mut held = one.take(60).unwrap();
        assert_eq!(one.take(41).unwrap_err().code, CKR_DEVICE_MEMORY, "over one's own");
        assert!(one.take(usize::MAX).is_err() && held.grow(usize::MAX).is_err());
        held.grow(40).unwrap();
        let other = two.take(50).unwrap();
        assert!(two.take(1).is_err(), "over all together");
        held.shrink_to(10);
        assert!(two.take(50).is_ok());
        drop((held, other));
        assert_eq!(pot.lock().all, 0, "all is given back");
        drop(one.take(0).unwrap());
        assert_eq!(pot.lock().by_user.len(), 0, "nothing is kept of who holds nothing");
    }

    #[test]
    fn secrets_count_as_slots() {
        let pot = Pot::new("secret memory", 4096, 4096);
        let held = pot.of(1).take_secrets([1, 32, 257]).unwrap();
        assert_eq!(pot.lock().all, 256 + 256 + 512);
        drop(held);
        assert!(pot.of(1).take_secrets([16; 17]).is_err());
        assert_eq!(pot.lock().all, 0);
    }
}
