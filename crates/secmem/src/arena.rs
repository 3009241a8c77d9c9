//! The arena: secret pages cut into slots of a few sizes.
//!
//! Segments of 64 KiB are mapped as needed, up to [`ARENA_BYTES_MAX`], and cut into slabs of 16 KiB. A slab serves one size
//! class at a time and keeps a bitmap of its free slots *outside* the secret pages, so that a free slot is all zeros, which
//! [`verify_free_slots_zero`] checks. Taking and giving back a slot is one compare-and-swap on that bitmap; only growth, or a
//! hunt for a slab with room, takes the lock. Threads on different CPUs take from different slabs while there is room for
//! that, since they would otherwise quarrel over one bitmap.
//!
//! # Rules
//! * A slot's bit is set (free) only after the slot was wiped (`Release`), and taken with `Acquire`.
//! * A slab's class changes only while *all* of its bits are taken by whoever changes it. So whoever holds one bit reads a
//!   class that cannot change under him, and a reader with an old hint notices that the class is not the one he wants.

use crate::bytes::keep_stores;
use crate::sys::{self, Backing, Exhausted};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The longest single secret, bytes.
pub const SECRET_BYTES_MAX: usize = SLAB_BYTES;
/// All secrets of a process together, bytes, not counting the secret stacks.
pub const ARENA_BYTES_MAX: usize = 32 * 1024 * 1024;

const SLAB_BYTES: usize = 16 * 1024;
const SEGMENT_BYTES: usize = 64 * 1024;
const SLOT_BYTES_MIN: usize = 32;
/// 32, 64, … 16,384 bytes.
const CLASSES: usize = (SLAB_BYTES / SLOT_BYTES_MIN).ilog2() as usize + 1;
const WORDS: usize = SLAB_BYTES / SLOT_BYTES_MIN / 64;
/// Groups of CPUs with slabs of their own.
const SHARDS: usize = 8;

/// State of the secret memory, for `status` and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaStatus {
    /// pages come from `memfd_secret(2)`; false: `mlock(2)`, which `/proc/PID/mem` can read, or nothing was mapped yet
    pub memfd_secret: bool,
    /// bytes mapped for slots
    pub capacity_bytes: usize,
    /// bytes of slots that are handed out
    pub used_bytes: usize,
    /// most bytes that slots may ever take
    pub limit_bytes: usize,
    /// secret stacks mapped, of [`crate::SECRET_STACK_BYTES`] each
    pub secret_stacks: usize,
    /// operations run on secret stacks (x86_64); false: in place, with the stack below wiped, which is weaker
    pub stack_switch: bool,
    /// the wiping `free` is the one that this process and its libraries use
    pub wiping_free: bool,
}

/// A free slot or a resting stack that is not all zeros: something was not wiped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("free secret memory is not zero ({place}): a secret was not wiped")]
pub struct DirtySlot {
    /// `slot` or `stack`
    pub place: &'static str,
}

/// One slot of the arena: `bytes` long, zero when taken, wiped when dropped.
pub(crate) struct Slot {
    pointer: NonNull<u8>,
    slab: &'static Slab,
}

impl Slot {
    /// Takes a slot with room for `len` bytes.
    #[inline]
    pub(crate) fn take(len: usize) -> Result<Self, Exhausted> {
        if len > SECRET_BYTES_MAX {
            return Err(Exhausted::TooLarge { wanted_bytes: len, max_bytes: SECRET_BYTES_MAX });
        }
        let class = class_of(len);
        let shard = shard_of_this_cpu();
        let hint = HINTS[shard].0[class].load(Ordering::Acquire);
        // SAFETY: hints are null or point to slabs, which live for ever.
        let slot = match unsafe { hint.as_ref() }.and_then(|slab| slab.take(class)) {
            Some(slot) => slot,
            None => take_slowly(class, shard)?,
        };
        debug_assert!(slot.is_zero(), "a free slot of secret memory was not zero");
        Ok(slot)
    }

    /// First byte of the slot; valid for as many bytes as were asked for.
    #[inline]
    pub(crate) fn pointer(&self) -> NonNull<u8> {
        self.pointer
    }

    fn bytes(&self) -> usize {
        slot_bytes(self.slab.class.load(Ordering::Relaxed) as usize)
    }

    fn is_zero(&self) -> bool {
        is_zero(self.pointer, self.bytes())
    }
}

impl Drop for Slot {
    #[inline]
    fn drop(&mut self) {
        let bytes = self.bytes();
        // SAFETY: the slot is ours until its bit is set below, and `bytes` is its size.
        unsafe { self.pointer.as_ptr().write_bytes(0, bytes) };
        keep_stores(self.pointer.as_ptr());
        let index = (self.pointer.as_ptr() as usize - self.slab.base.as_ptr() as usize) / bytes;
        let class = self.slab.class.load(Ordering::Relaxed) as usize;
        self.slab.free[index / 64].fetch_or(1 << (index % 64), Ordering::Release);
        // The next taker likes a slab that surely has room.
        let shard = self.slab.shard.load(Ordering::Relaxed) as usize;
        let slab = ptr::from_ref(self.slab).cast_mut();
        if HINTS[shard].0[class].load(Ordering::Relaxed) != slab {
            HINTS[shard].0[class].store(slab, Ordering::Release);
        }
    }
}

/// 16 KiB of slots of one size.
#[repr(align(128))]
struct Slab {
    base: NonNull<u8>,
    class: AtomicU8,
    shard: AtomicU8,
    /// bit set = slot free
    free: [AtomicU64; WORDS],
}

// SAFETY: `base` is the address of pages that are mapped for ever and reached only through slots, each held by one owner.
unsafe impl Send for Slab {}
// SAFETY: as above; everything else in it is atomic.
unsafe impl Sync for Slab {}

impl Slab {
    /// Takes a free slot, if there is one and the slab serves `class`.
    #[inline]
    fn take(&'static self, class: usize) -> Option<Slot> {
        for (position, word) in self.free.iter().enumerate() {
            let mut bits = word.load(Ordering::Relaxed);
            while bits != 0 {
                let bit = bits & bits.wrapping_neg();
                match word.compare_exchange_weak(bits, bits & !bit, Ordering::Acquire, Ordering::Relaxed) {
                    Err(now) => bits = now,
                    Ok(_) if self.class.load(Ordering::Relaxed) as usize != class => {
                        // An old hint: the slab serves another class by now. The bit goes back untouched.
                        word.fetch_or(bit, Ordering::Release);
                        return None;
                    }
                    Ok(_) => {
                        return Some(self.slot(position * 64 + bit.trailing_zeros() as usize, class));
                    }
                }
            }
        }
        None
    }

    fn slot(&'static self, index: usize, class: usize) -> Slot {
        Slot { pointer: self.slot_pointer(index, class), slab: self }
    }

    fn slot_pointer(&self, index: usize, class: usize) -> NonNull<u8> {
        // SAFETY: bits exist only for slots inside the slab's 16 KiB.
        unsafe { self.base.add(index * slot_bytes(class)) }
    }

    /// Bookkeeping of a slab lives as long as the process, as its pages do; there are at most `ARENA_BYTES_MAX / SLAB_BYTES`.
    fn leak(base: NonNull<u8>) -> &'static Self {
        Box::leak(Box::new(Self {
            base,
            class: AtomicU8::new(0),
            shard: AtomicU8::new(0),
            free: [const { AtomicU64::new(0) }; WORDS],
        }))
    }

    /// Lets the slab serve `class` and takes its first slot before anybody else can see one. The caller owns the whole slab.
    fn assign(&'static self, class: usize, shard: usize) -> Slot {
        self.class.store(class as u8, Ordering::Relaxed);
        self.shard.store(shard as u8, Ordering::Relaxed);
        for (position, word) in self.free.iter().enumerate() {
            let taken = u64::from(position == 0);
            word.store(full_word(class, position) & !taken, Ordering::Release);
        }
        self.slot(0, class)
    }

    /// Takes every slot at once, or none.
    fn take_all(&self) -> bool {
        let class = self.class.load(Ordering::Relaxed) as usize;
        for (position, word) in self.free.iter().enumerate() {
            let full = full_word(class, position);
            if word.compare_exchange(full, 0, Ordering::Acquire, Ordering::Relaxed).is_err() {
                for (taken, word) in self.free.iter().enumerate().take(position) {
                    word.fetch_or(full_word(class, taken), Ordering::Release);
                }
                return false;
            }
        }
        true
    }

    fn free_slots(&self) -> usize {
        self.free.iter().map(|word| word.load(Ordering::Relaxed).count_ones() as usize).sum()
    }

    /// Checks the free slots one by one; each is taken only while it is looked at.
    fn verify(&'static self) -> Result<(), DirtySlot> {
        let class = self.class.load(Ordering::Relaxed) as usize;
        for (position, word) in self.free.iter().enumerate() {
            for bit in 0..64 {
                if word.fetch_and(!(1 << bit), Ordering::Acquire) & (1 << bit) == 0 {
                    continue;
                }
                let pointer = self.slot_pointer(position * 64 + bit, class);
                let clean = is_zero(pointer, slot_bytes(class));
                word.fetch_or(1 << bit, Ordering::Release);
                if !clean {
                    return Err(DirtySlot { place: "slot" });
                }
            }
        }
        Ok(())
    }
}

/// What grows and moves between classes; behind one lock, off the fast path.
struct Registry {
    /// slabs of each class
    assigned: [Vec<&'static Slab>; CLASSES],
    /// slabs that serve no class yet
    spare: Vec<&'static Slab>,
    mapped_bytes: usize,
}

static REGISTRY: Mutex<Registry> =
    Mutex::new(Registry { assigned: [const { Vec::new() }; CLASSES], spare: Vec::new(), mapped_bytes: 0 });

/// For each class the slab of this shard that last had room.
#[repr(align(128))]
struct Hints([AtomicPtr<Slab>; CLASSES]);

static HINTS: [Hints; SHARDS] = [const { Hints([const { AtomicPtr::new(ptr::null_mut()) }; CLASSES]) }; SHARDS];

impl Registry {
    fn lock() -> MutexGuard<'static, Self> {
        // Nothing behind the lock panics half-way through a change.
        REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot of `class`, by what costs least in the long run: a slab of this shard, a new one, one of another shard, one
    /// that another class has left empty.
    fn slot(&mut self, class: usize, shard: usize) -> Result<Slot, Exhausted> {
        if let Some(slot) = self.slot_of(class, |slab| slab.shard.load(Ordering::Relaxed) as usize == shard) {
            return Ok(slot);
        }
        let slab = match self.spare.pop().map_or_else(|| self.grow(), Ok) {
            Ok(slab) => slab,
            Err(full) => match self.slot_of(class, |_| true) {
                Some(slot) => return Ok(slot),
                None => self.reclaim().ok_or(full)?,
            },
        };
        self.assigned[class].push(slab);
        Ok(slab.assign(class, shard))
    }

    fn slot_of(&self, class: usize, suits: impl Fn(&Slab) -> bool) -> Option<Slot> {
        self.assigned[class].iter().filter(|slab| suits(slab)).find_map(|slab| slab.take(class))
    }

    fn grow(&mut self) -> Result<&'static Slab, Exhausted> {
        if self.mapped_bytes + SEGMENT_BYTES > ARENA_BYTES_MAX {
            return Err(Exhausted::Full { limit_bytes: ARENA_BYTES_MAX });
        }
        let base = sys::map_secret(SEGMENT_BYTES)?;
        self.mapped_bytes += SEGMENT_BYTES;
        for offset in (SLAB_BYTES..SEGMENT_BYTES).step_by(SLAB_BYTES) {
            // SAFETY: the offset lies inside the segment that was just mapped.
            self.spare.push(Slab::leak(unsafe { base.add(offset) }));
        }
        Ok(Slab::leak(base))
    }

    fn reclaim(&mut self) -> Option<&'static Slab> {
        self.assigned.iter_mut().find_map(|slabs| {
            let position = slabs.iter().position(|slab| slab.take_all())?;
            Some(slabs.swap_remove(position))
        })
    }
}

#[cold]
fn take_slowly(class: usize, shard: usize) -> Result<Slot, Exhausted> {
    let slot = Registry::lock().slot(class, shard)?;
    HINTS[shard].0[class].store(ptr::from_ref(slot.slab).cast_mut(), Ordering::Release);
    Ok(slot)
}

/// Maps the first segment, so that a process without secret memory fails at its start.
pub(crate) fn prepare() -> Result<(), Exhausted> {
    Slot::take(SLOT_BYTES_MIN).map(drop)
}

/// What the secret memory of this process is and how full it is.
#[must_use]
pub fn status() -> ArenaStatus {
    let registry = Registry::lock();
    let used_bytes = registry
        .assigned
        .iter()
        .enumerate()
        .map(|(class, slabs)| {
            let free: usize = slabs.iter().map(|slab| slab.free_slots()).sum();
            (slabs.len() * slots_per_slab(class) - free) * slot_bytes(class)
        })
        .sum();
    ArenaStatus {
        memfd_secret: sys::backing() == Backing::MemfdSecret,
        capacity_bytes: registry.mapped_bytes,
        used_bytes,
        limit_bytes: ARENA_BYTES_MAX,
        secret_stacks: crate::stack::mapped_stacks(),
        stack_switch: crate::stack::SWITCHES,
        wiping_free: crate::malloc::is_in_use(),
    }
}

/// Looks at every free slot and every resting secret stack: all must be zero. For `selftest memory`; no searcher outside the
/// process can see this memory. Other threads may go on working meanwhile.
///
/// # Errors
/// [`DirtySlot`] when something was left behind.
pub fn verify_free_slots_zero() -> Result<(), DirtySlot> {
    let registry = Registry::lock();
    for slab in registry.assigned.iter().flatten() {
        slab.verify()?;
    }
    for slab in &registry.spare {
        if !is_zero(slab.base, SLAB_BYTES) {
            return Err(DirtySlot { place: "slot" });
        }
    }
    drop(registry);
    crate::stack::verify_resting_stacks_zero()
}

#[inline]
fn shard_of_this_cpu() -> usize {
    sys::cpu() % SHARDS
}

#[inline]
const fn class_of(len: usize) -> usize {
    if len <= SLOT_BYTES_MIN { 0 } else { ((len - 1) / SLOT_BYTES_MIN).ilog2() as usize + 1 }
}

const fn slot_bytes(class: usize) -> usize {
    SLOT_BYTES_MIN << class
}

const fn slots_per_slab(class: usize) -> usize {
    SLAB_BYTES / slot_bytes(class)
}

/// Bitmap word number `position` of a slab of `class` with every slot free.
const fn full_word(class: usize, position: usize) -> u64 {
    let slots = slots_per_slab(class);
    match slots.saturating_sub(position * 64) {
        0 => 0,
        rest if rest >= 64 => u64::MAX,
        rest => (1 << rest) - 1,
    }
}

/// Whether `len` bytes at `pointer` (mapped, multiple of 32) are all zero.
pub(crate) fn is_zero(pointer: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the caller owns the range for the time of the call.
    unsafe { std::slice::from_raw_parts(pointer.as_ptr(), len) }.iter().fold(0u8, |sum, byte| sum | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_asked_for() {
        for (len, bytes) in [
            (0, 32),
            (1, 32),
            (32, 32),
            (33, 64),
            (64, 64),
            (65, 128),
            (4096, 4096),
            (4097, 8192),
            (SECRET_BYTES_MAX, 16384),
        ] {
            assert_eq!(slot_bytes(class_of(len)), bytes, "{len}");
        }
        assert_eq!(class_of(SECRET_BYTES_MAX), CLASSES - 1);
        for len in 0..=SECRET_BYTES_MAX {
            assert!(slot_bytes(class_of(len)) >= len);
        }
    }

    #[test]
    fn bitmaps_have_one_bit_per_slot() {
        for class in 0..CLASSES {
            let bits: u32 = (0..WORDS).map(|position| full_word(class, position).count_ones()).sum();
            assert_eq!(bits as usize, slots_per_slab(class));
        }
    }

    #[test]
    fn slots_do_not_overlap() {
        let mut taken = Vec::new();
        for round in 0..2000usize {
            taken.push(Slot::take(1 << (round % 15)).unwrap());
        }
        let mut ranges: Vec<_> = taken.iter().map(|slot| (slot.pointer.as_ptr() as usize, slot.bytes())).collect();
        ranges.sort_unstable();
        for pair in ranges.windows(2) {
            assert!(pair[0].0 + pair[0].1 <= pair[1].0);
        }
    }

    #[test]
    fn a_slab_can_be_taken_whole_only_when_empty() {
        let slab = Slab::leak(NonNull::dangling());
        let kept = std::mem::ManuallyDrop::new(slab.assign(3, 0));
        assert!(!slab.take_all());
        assert_eq!(slab.free_slots(), slots_per_slab(3) - 1);
        assert!(slab.take(4).is_none(), "wrong class");
        assert_eq!(slab.free_slots(), slots_per_slab(3) - 1);
        slab.free[0].fetch_or(1, Ordering::Release);
        assert_eq!(kept.pointer, slab.base);
        assert!(slab.take_all());
        assert_eq!(slab.free_slots(), 0);
        assert!(slab.take(3).is_none());
    }
}
