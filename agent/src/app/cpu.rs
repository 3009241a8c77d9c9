//! A connection's thread that has slept follows its caller from CPU to CPU.
//!
//! Waking a thread on another, idle core costs about 30 µs; on the caller's own, 4. So the thread moves to where the caller says that it
//! runs, within the CPUs that the agent may use. Where an operation asks other hosts, it is let loose again: then it would only be in
//! the way. A thread that was awake when the request came (`mayfly_wire::spin`) stays where it is. Failing to move is no error.

use std::sync::OnceLock;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Where one thread is bound.
#[derive(Debug, Default)]
pub struct Follow {
    at: Option<u32>,
}

/// The CPUs that the agent was given at its start.
fn allowed() -> Option<&'static CpuSet> {
    static ALLOWED: OnceLock<Option<CpuSet>> = OnceLock::new();
    ALLOWED.get_or_init(|| sched_getaffinity(None).ok()).as_ref()
}

/// Notes the CPUs that the agent may use; before any thread is bound to one.
pub fn note_allowed() {
    let _ = allowed();
}

impl Follow {
    /// Moves the calling thread to the caller's CPU.
    pub fn follow(&mut self, cpu: Option<u32>) {
        let Some(cpu) = cpu.filter(|cpu| self.at != Some(*cpu)) else { return };
        let number = cpu as usize;
        if number >= CpuSet::MAX_CPU || !allowed().is_some_and(|allowed| allowed.is_set(number)) {
            return;
        }
        let mut one = CpuSet::new();
        one.set(number);
        if sched_setaffinity(None, &one).is_ok() {
            self.at = Some(cpu);
        }
    }

    /// Lets the calling thread run anywhere.
    pub fn let_loose(&mut self) {
        if self.at.take().is_some()
            && let Some(allowed) = allowed()
        {
            let _ = sched_setaffinity(None, allowed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_inside_the_mask_and_comes_loose() {
        std::thread::spawn(|| {
            note_allowed();
            let before = sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).unwrap() as u32;
            let mut follow = Follow::default();
            follow.follow(Some(cpu));
            assert_eq!((sched_getaffinity(None).unwrap().count(), follow.at), (1, Some(cpu)));
            for outside in [None, Some(CpuSet::MAX_CPU as u32), Some(u32::MAX)] {
                follow.follow(outside);
                assert_eq!(follow.at, Some(cpu), "{outside:?} is ignored");
            }
            follow.let_loose();
            assert_eq!(sched_getaffinity(None).unwrap(), before);
        })
        .join()
        .unwrap();
    }
}
