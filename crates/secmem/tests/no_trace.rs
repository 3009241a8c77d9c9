//! Nothing is left in ordinary memory: this process searches itself through `/proc/self/mem`, canaries included.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::{isolated, peek, range};
use mayfly_secmem::{Secret, on_secret_stack, random, try_on_secret_stack, verify_free_slots_zero};
use std::hint::black_box;
use std::os::unix::fs::FileExt;

const MASK: u64 = 0x9d3b_7c51_e8a6_420f;
const CHUNK: usize = 1 << 16;

/// Counts the places in readable memory where an 8-byte piece of the secret lies, in raw form or as hex digits. The pieces are
/// kept masked, so that the searcher does not find itself.
struct Search {
    pieces: Vec<u64>,
    buffer: Vec<u8>,
}

impl Search {
    fn new(secret: &Secret<32>) -> Self {
        let pieces = on_secret_stack(|| {
            let raw = secret.expose().chunks_exact(8).map(|piece| word(piece) ^ MASK);
            let hex = secret.expose().chunks_exact(4).map(|piece| {
                let digits = piece.iter().flat_map(|byte| [byte >> 4, byte & 15]);
                let text = digits.map(|digit| char::from_digit(digit.into(), 16).unwrap() as u8);
                text.rev().fold(0, |sum, digit| sum << 8 | u64::from(digit)) ^ MASK
            });
            raw.chain(hex).collect()
        });
        Self { pieces, buffer: vec![0; CHUNK + 8] }
    }

    fn hits(&mut self) -> usize {
        let own = self.buffer.as_ptr() as usize..self.buffer.as_ptr() as usize + self.buffer.len();
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let mut hits = 0;
        for (start, end) in maps.lines().filter(|line| line.contains(" rw")).filter_map(range) {
            for base in (start..end).step_by(CHUNK) {
                let len = (CHUNK + 7).min(end - base);
                // Secret memory answers with an error: it cannot be read this way.
                let Ok(len) = memory.read_at(&mut self.buffer[..len], base as u64) else {
                    continue;
                };
                for (offset, window) in self.buffer[..len].windows(8).enumerate() {
                    let found = self.pieces.contains(&(word(window) ^ MASK));
                    hits += usize::from(found && !own.contains(&(base + offset)));
                }
            }
        }
        self.buffer.fill(0);
        hits
    }
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// Handles the secret as carelessly as one can.
fn careless(secret: &Secret<32>) -> u64 {
    let array = black_box(*secret.expose());
    let mut grown = Vec::new();
    array.iter().for_each(|byte| grown.push(*byte));
    let text: String = grown.iter().map(|byte| format!("{byte:02x}")).collect();
    let boxed = black_box(Box::new(array));
    black_box(text.len() as u64 + u64::from(boxed[0]) + grown.len() as u64)
}

fn new_secret() -> Secret<32> {
    Secret::try_new_with(|bytes| random(bytes)).unwrap()
}

#[test]
fn the_search_finds_canaries() {
    isolated("the_search_finds_canaries", || {
        let secret = new_secret();
        let mut search = Search::new(&secret);
        assert_eq!(search.hits(), 0);
        let canary = black_box(Box::new(*secret.expose()));
        assert!(search.hits() >= 4);
        drop(canary);
        let canary: String = secret.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(search.hits() >= 8);
        drop(black_box(canary));
    });
}

#[test]
fn careless_work_on_the_ordinary_stack_is_found() {
    isolated("careless_work_on_the_ordinary_stack_is_found", || {
        let secret = new_secret();
        let mut search = Search::new(&secret);
        careless(&secret);
        assert!(search.hits() > 0);
    });
}

#[test]
fn careless_work_on_the_secret_stack_leaves_nothing() {
    isolated("careless_work_on_the_secret_stack_leaves_nothing", || {
        let secret = new_secret();
        let mut search = Search::new(&secret);
        for _ in 0..100 {
            on_secret_stack(|| careless(&secret));
        }
        assert_eq!(search.hits(), 0);
        verify_free_slots_zero().unwrap();
    });
}

#[test]
fn a_panic_on_the_secret_stack_leaves_nothing() {
    isolated("a_panic_on_the_secret_stack_leaves_nothing", || {
        let secret = new_secret();
        let mut search = Search::new(&secret);
        let careless_panic = || -> u64 {
            let text: String = secret.expose().iter().map(|byte| format!("{byte:02x}")).collect();
            let array = black_box(*secret.expose());
            careless(&secret);
            panic!("cannot use {text}, that is {array:?}")
        };
        try_on_secret_stack(careless_panic).unwrap_err();
        let payload =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| on_secret_stack(careless_panic))).unwrap_err();
        assert_eq!(search.hits(), 0);
        assert!(payload.downcast_ref::<&str>().is_some_and(|text| text.contains("wiped")));
        verify_free_slots_zero().unwrap();
    });
}

#[test]
fn freed_blocks_are_wiped() {
    isolated("freed_blocks_are_wiped", || {
        for bytes in [24usize, 100, 1000, 5000, 60_000] {
            // SAFETY: C's rules are kept; the freed block is looked at from outside only.
            let address = unsafe {
                let block = libc::malloc(bytes);
                block.cast::<u8>().write_bytes(0xc7, bytes);
                let address = black_box(block) as usize;
                libc::free(block);
                address
            };
            // glibc writes its own pointers into the first 16 bytes (32 for large blocks), and sizes at the end.
            let left = peek(address, bytes).unwrap();
            assert!(!left.windows(2).any(|pair| pair == [0xc7, 0xc7]), "{bytes}");
        }
    });
}

#[test]
fn realloc_keeps_the_contents_and_wipes_what_it_leaves() {
    isolated("realloc_keeps_the_contents_and_wipes_what_it_leaves", || {
        // SAFETY: C's rules are kept; blocks that were given back are looked at from outside only.
        unsafe {
            let block = libc::malloc(1000);
            block.cast::<u8>().write_bytes(0xc7, 1000);
            let _fence = black_box(libc::malloc(16));
            let before = black_box(block) as usize;
            let moved = libc::realloc(block, 50_000);
            assert_ne!(moved as usize, before);
            let kept = std::slice::from_raw_parts(moved.cast::<u8>(), 1000);
            assert!(kept.iter().all(|byte| *byte == 0xc7));
            assert!(!peek(before, 1000).unwrap().windows(2).any(|pair| pair == [0xc7, 0xc7]));

            moved.cast::<u8>().write_bytes(0xc7, 50_000);
            let shrunk = libc::realloc(moved, 30_000);
            assert_eq!(shrunk, moved);
            assert!(peek(shrunk as usize + 30_000, 20_000).unwrap().iter().all(|byte| *byte == 0));
            let before = shrunk as usize;
            let small = libc::reallocarray(shrunk, 10, 10);
            assert!(std::slice::from_raw_parts(small.cast::<u8>(), 100).iter().all(|byte| *byte == 0xc7));
            assert!(!peek(before, 30_000).unwrap().windows(2).any(|pair| pair == [0xc7, 0xc7]));

            assert!(libc::reallocarray(small, usize::MAX, 2).is_null());
            assert!(libc::realloc(small, 0).is_null());
            let fresh = libc::realloc(std::ptr::null_mut(), 10);
            assert!(!fresh.is_null());
            libc::free(fresh);
            libc::free(std::ptr::null_mut());
        }
    });
}

#[test]
fn libraries_use_the_wiping_realloc() {
    isolated("libraries_use_the_wiping_realloc", || {
        assert!(mayfly_secmem::status().wiping_free);
        // libc, linked without knowing of us, grows the line buffer that it was given.
        let text = [b"\xc7".repeat(5000), b"\n".to_vec()].concat();
        // SAFETY: C's rules are kept; the block that libc moved away from is looked at from outside only.
        unsafe {
            let mut len = 64;
            let mut line = libc::malloc(len).cast::<libc::c_char>();
            line.cast::<u8>().write_bytes(0xc7, len);
            let before = black_box(line) as usize;
            let _fence = black_box(libc::malloc(16));
            let file = libc::fmemopen(text.as_ptr().cast_mut().cast(), text.len(), c"r".as_ptr());
            assert_eq!(libc::getline(&mut line, &mut len, file), 5001);
            assert_ne!(line as usize, before);
            assert!(!peek(before, 64).unwrap().windows(2).any(|pair| pair == [0xc7, 0xc7]));
            libc::fclose(file);
            libc::free(line.cast());
        }
    });
}
