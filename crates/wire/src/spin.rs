//! Waiting awake for the other side of the socket, where that pays.
//!
//! Putting a thread to sleep and waking it on another, idle CPU costs about 30 µs, several times what an operation with a key at hand
//! takes; and the scheduler prefers an idle CPU to the one on which the other side runs. So each side looks for a moment before it sleeps.
//! That is for conversations in full swing: who looked in vain does not look again for a growing number of turns, and at most half of a
//! process's CPUs look at the same time, so that threads with work to do are never outnumbered. On one CPU nobody looks.

use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// How long to look: time for the other side to be woken and to do one operation with a key at hand.
const LOOK: Duration = Duration::from_micros(50);
/// Most turns without a look after one that was in vain.
const PAUSE_TURNS_MAX: u32 = 255;

/// Threads of this process that look at this moment.
static LOOKING: AtomicUsize = AtomicUsize::new(0);

/// One side of a conversation, and how well waiting awake has worked for it.
#[derive(Debug, Default)]
pub struct Spin {
    /// Turns without a look after the last look; 0 after one that was worth it.
    pause: u32,
    /// Turns without a look that are left.
    left: u32,
}

impl Spin {
    /// Looks for at most 50 µs whether there is something to read from a stream: bytes, its end or an error.
    ///
    /// False if nothing came in this time, or if it was not the turn to look; then the caller sleeps.
    pub fn wait(&mut self, stream: impl AsFd) -> bool {
        if !self.is_due() {
            return false;
        }
        let Some(_place) = Place::take() else { return false };
        let began = Instant::now();
        let mut came = is_readable(&stream);
        while !came && began.elapsed() < LOOK {
            std::hint::spin_loop();
            came = is_readable(&stream);
        }
        self.learn(came);
        came
    }

    /// Whether it is the turn to look.
    fn is_due(&mut self) -> bool {
        let is_due = self.left == 0;
        self.left = self.left.saturating_sub(1);
        is_due
    }

    /// Learns from a look.
    fn learn(&mut self, came: bool) {
        self.pause = if came { 0 } else { (self.pause * 2 + 1).min(PAUSE_TURNS_MAX) };
        self.left = self.pause;
    }
}

fn is_readable(stream: impl AsFd) -> bool {
    !matches!(recv(stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT), Err(Errno::AGAIN | Errno::INTR))
}

/// One of the threads that may look at the same time.
struct Place;

impl Place {
    fn take() -> Option<Self> {
        static MOST: OnceLock<usize> = OnceLock::new();
        let most = *MOST.get_or_init(|| std::thread::available_parallelism().map_or(0, |cpus| cpus.get() / 2));
        let place = Self;
        (LOOKING.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        LOOKING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn looks_less_and_less_often_in_vain_and_at_each_turn_when_it_pays() {
        let mut spin = Spin::default();
        let mut looks = |came: bool, turns: u32| -> Vec<u32> {
            let look = |_: &u32| {
                let is_due = spin.is_due();
                if is_due {
                    spin.learn(came);
                }
                is_due
            };
            (0..turns).filter(look).collect()
        };
        assert_eq!(looks(false, 900), [0, 2, 6, 14, 30, 62, 126, 254, 510, 766]);
        assert_eq!(looks(true, 126), [122, 123, 124, 125]);
    }

    #[test]
    fn bytes_and_the_end_are_seen_and_not_taken() {
        let (here, mut there) = UnixStream::pair().unwrap();
        assert!(!is_readable(&here));
        there.write_all(b"x").unwrap();
        assert!(is_readable(&here));
        assert!(is_readable(&here));
        (&here).read_exact(&mut [0]).unwrap();
        assert!(!is_readable(&here));
        drop(there);
        assert!(is_readable(&here));
    }

    #[test]
    fn waits_no_longer_than_it_may() {
        let (here, _there) = UnixStream::pair().unwrap();
        let (mut spin, began) = (Spin::default(), Instant::now());
        let came = (0..10_000).any(|_| spin.wait(&here));
        assert!(!came);
        // 10,000 turns are about 47 looks.
        assert!(began.elapsed() < LOOK * 10_000 / 4, "{:?}", began.elapsed());
    }
}
