//! What secret memory promises at the level of processes: each test in one of its own.
#![allow(clippy::unwrap_used, reason = "tests say what they expect by unwrapping, helpers too")]

mod common;

use common::{forbid_memfd_secret, in_own_process, isolated, limit_locked_memory, peek, signal_of, vm_flags};
use mayfly_secmem::{
    ARENA_BYTES_MAX, Exhausted, SECRET_BYTES_MAX, Secret, SecretBytes, SecretPanic, harden_process, on_secret_stack,
    status, try_on_secret_stack, verify_free_slots_zero,
};

fn address(secret: &Secret<32>) -> usize {
    secret.expose().as_ptr() as usize
}

#[test]
fn pages_are_locked_undumped_and_not_inherited() {
    isolated("pages_are_locked_undumped_and_not_inherited", || {
        let secret = Secret::<32>::new_with(|bytes| bytes.fill(1)).unwrap();
        assert!(status().memfd_secret, "this kernel has memfd_secret");
        let flags = vm_flags(address(&secret));
        for flag in ["lo", "dd", "dc"] {
            assert!(flags.iter().any(|f| f == flag), "{flag} in {flags:?}");
        }
        peek(address(&secret), 32).expect_err("memfd_secret cannot be read through /proc");
    });
}

#[test]
fn guards_surround_the_slots() {
    isolated("guards_surround_the_slots", || {
        let secret = Secret::<32>::new_with(|_| {}).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let lines: Vec<_> = maps.lines().collect();
        let inside =
            |line: &&str| common::range(line).is_some_and(|(start, end)| (start..end).contains(&address(&secret)));
        let position = lines.iter().position(inside).unwrap();
        let (start, end) = common::range(lines[position]).unwrap();
        let below = common::range(lines[position - 1]).unwrap();
        let above = common::range(lines[position + 1]).unwrap();
        assert!(below.1 == start && lines[position - 1].contains("---p"));
        assert!(above.0 == end && lines[position + 1].contains("---p"));
    });
}

#[test]
fn a_fork_child_sees_nothing() {
    isolated("a_fork_child_sees_nothing", || {
        let secret = Secret::<32>::new_with(|bytes| bytes.fill(0xa5)).unwrap();
        // SAFETY: the child only reads one byte and exits; both are allowed after fork.
        let (child, status) = unsafe {
            let child = libc::fork();
            if child == 0 {
                let byte = (address(&secret) as *const u8).read_volatile();
                libc::_exit(i32::from(byte));
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &mut status, 0), child);
            (child, status)
        };
        assert!(child > 0);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSEGV, "{status:#x}");
        assert_eq!(*secret.expose(), [0xa5; 32]);
    });
}

#[test]
fn exhaustion_is_an_error_and_room_comes_back() {
    isolated("exhaustion_is_an_error_and_room_comes_back", || {
        fn fill(len: usize) -> (Vec<SecretBytes>, Exhausted) {
            let mut held = Vec::new();
            loop {
                match SecretBytes::new_with(len, |bytes| bytes.fill(0xee)) {
                    Ok(secret) => held.push(secret),
                    Err(why) => return (held, why),
                }
                assert!(held.len() * len <= ARENA_BYTES_MAX);
            }
        }
        let (large, why) = fill(SECRET_BYTES_MAX);
        assert!(matches!(why, Exhausted::Full { .. } | Exhausted::Refused { .. }), "{why:?}");
        assert_eq!(status().used_bytes, large.len() * SECRET_BYTES_MAX);
        assert_eq!(status().used_bytes, status().capacity_bytes);
        let room = large.len() * SECRET_BYTES_MAX;
        drop(large);
        assert_eq!(status().used_bytes, 0);
        // Slabs move to the class that needs them now, and back.
        for len in [32, 4096, SECRET_BYTES_MAX] {
            let (held, _) = fill(len);
            assert_eq!(held.len() * len, room, "{len}");
            drop(held);
            verify_free_slots_zero().unwrap();
        }
    });
}

#[test]
fn memory_that_cannot_be_locked_is_refused() {
    isolated("memory_that_cannot_be_locked_is_refused", || {
        limit_locked_memory(0);
        let why = Secret::<32>::new_with(|_| {}).unwrap_err();
        assert!(matches!(why, Exhausted::Refused { .. }), "{why:?}");
        assert!(why.to_string().contains("LimitMEMLOCK"));
        assert!(matches!(try_on_secret_stack(|| ()), Err(SecretPanic::NoStack(_))));
        harden_process().expect_err("no secret memory");
    });
}

#[test]
fn the_limit_of_locked_memory_is_respected() {
    isolated("the_limit_of_locked_memory_is_respected", || {
        limit_locked_memory(128 * 1024);
        let first: Vec<_> = (0..8).map(|_| SecretBytes::new_with(SECRET_BYTES_MAX, |_| {}).unwrap()).collect();
        let why = SecretBytes::new_with(SECRET_BYTES_MAX, |_| {}).unwrap_err();
        assert!(matches!(why, Exhausted::Refused { .. }), "{why:?}");
        drop(first);
        SecretBytes::new_with(SECRET_BYTES_MAX, |_| {}).unwrap();
    });
}

#[test]
fn without_memfd_secret_pages_are_locked_and_it_is_said() {
    isolated("without_memfd_secret_pages_are_locked_and_it_is_said", || {
        forbid_memfd_secret();
        let secret = Secret::<32>::new_with(|bytes| bytes.fill(1)).unwrap();
        assert!(!status().memfd_secret);
        assert!(!harden_process().unwrap().memfd_secret);
        let flags = vm_flags(address(&secret));
        for flag in ["lo", "dd", "dc"] {
            assert!(flags.iter().any(|f| f == flag), "{flag} in {flags:?}");
        }
        assert_eq!(on_secret_stack(|| secret.expose()[0]), 1);
        verify_free_slots_zero().unwrap();
    });
}

#[test]
fn without_memfd_secret_a_failed_lock_is_an_error() {
    isolated("without_memfd_secret_a_failed_lock_is_an_error", || {
        forbid_memfd_secret();
        limit_locked_memory(64 * 1024);
        let first: Vec<_> = (0..4).map(|_| SecretBytes::new_with(SECRET_BYTES_MAX, |_| {}).unwrap()).collect();
        let why = SecretBytes::new_with(SECRET_BYTES_MAX, |_| {}).unwrap_err();
        assert!(matches!(why, Exhausted::Refused { call: "mlock", .. }), "{why:?}");
        drop(first);
    });
}

#[test]
fn deep_recursion_hits_the_guard() {
    fn deeper(depth: usize) -> usize {
        let frame = std::hint::black_box([depth as u8; 512]);
        if depth == 0 { 0 } else { deeper(depth - 1) + usize::from(frame[7]) }
    }
    let outcome = in_own_process("deep_recursion_hits_the_guard", || {
        on_secret_stack(|| std::hint::black_box(deeper(10_000)));
    });
    if let Some(output) = outcome {
        assert_eq!(signal_of(&output), Some(libc::SIGSEGV), "{output:?}");
    }
}

#[test]
fn more_operations_than_stacks_wait_for_each_other() {
    isolated("more_operations_than_stacks_wait_for_each_other", || {
        // Room for two stacks and one segment.
        limit_locked_memory(128 * 1024);
        drop(Secret::<32>::new_with(|_| {}).unwrap());
        let running = std::sync::atomic::AtomicUsize::new(0);
        let most = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        on_secret_stack(|| {
                            let now = running.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                            most.fetch_max(now, std::sync::atomic::Ordering::SeqCst);
                            std::thread::sleep(std::time::Duration::from_micros(200));
                            running.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                        });
                    }
                });
            }
        });
        assert!((1..=2).contains(&most.into_inner()));
        assert!((1..=2).contains(&status().secret_stacks));
    });
}

#[test]
fn hardening_does_what_it_reports() {
    isolated("hardening_does_what_it_reports", || {
        let report = harden_process().unwrap();
        assert!(report.undumpable && report.wiping_free && report.memfd_secret);
        let mut core = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
        // SAFETY: asks for a limit and a flag of this process.
        let dumpable = unsafe {
            assert_eq!(libc::getrlimit(libc::RLIMIT_CORE, &mut core), 0);
            libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0)
        };
        assert_eq!((core.rlim_cur, core.rlim_max, dumpable), (0, 0, 0));
        assert!(status().capacity_bytes > 0 && status().secret_stacks == 1);
    });
}

#[test]
fn slabs_change_class_under_load_and_nobody_shares_a_slot() {
    isolated("slabs_change_class_under_load_and_nobody_shares_a_slot", || {
        // Four segments for all: the threads take slabs from each other's classes all the time.
        limit_locked_memory(256 * 1024);
        let refused = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 1..=4u8 {
                let refused = &refused;
                scope.spawn(move || {
                    let mut held: Vec<(u8, SecretBytes)> = Vec::new();
                    let mut state = u64::from(thread);
                    for round in 0..30_000u32 {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let (len, mark) = (1 << (state >> 33 & 15).min(14), thread.wrapping_mul(round as u8) | 1);
                        match SecretBytes::new_with(len, |bytes| bytes.fill(mark)) {
                            Ok(secret) => held.push((mark, secret)),
                            Err(_) => drop(refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
                        }
                        if held.len() > (state >> 40 & 7) as usize {
                            let (mark, secret) = held.swap_remove((state >> 50) as usize % held.len());
                            assert!(secret.expose().iter().all(|byte| *byte == mark));
                        }
                        if round % 1000 == 0 {
                            verify_free_slots_zero().unwrap();
                        }
                    }
                });
            }
        });
        assert!(refused.into_inner() > 0, "the test is about scarcity");
        assert_eq!(status().used_bytes, 0);
        verify_free_slots_zero().unwrap();
    });
}

/// A mapping that the kernel refuses may have lost its place by then, and other threads map there.
#[test]
fn refused_mappings_leave_those_of_other_threads_alone() {
    isolated("refused_mappings_leave_those_of_other_threads_alone", || {
        const BYTES: usize = 64 * 1024;
        limit_locked_memory(64 * 1024);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    // SAFETY: a fresh mapping, checked, used inside its bounds, and unmapped once.
                    unsafe {
                        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                        let new =
                            libc::mmap(std::ptr::null_mut(), BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
                        assert_ne!(new, libc::MAP_FAILED);
                        for offset in (0..BYTES).step_by(4096) {
                            new.cast::<u8>().add(offset).write_volatile(7);
                        }
                        std::thread::yield_now();
                        for offset in (0..BYTES).step_by(4096) {
                            assert_eq!(new.cast::<u8>().add(offset).read_volatile(), 7);
                        }
                        libc::munmap(new, BYTES);
                    }
                }
                done.store(true, std::sync::atomic::Ordering::Relaxed);
            });
            let mut refused = 0;
            let mut held = Vec::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                match SecretBytes::new_with(4096, |_| ()) {
                    Ok(secret) => held.push(secret),
                    Err(_) => refused += 1,
                }
            }
            assert!(refused > 100, "the test is about refusals; {refused}");
        });
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
        assert!(maps < 200, "refusals leave nothing behind: {maps} mappings");
    });
}

/// A block that was freed once must not stay: by itself glibc keeps one in each thread's arena.
#[test]
fn large_blocks_go_back_to_the_kernel() {
    isolated("large_blocks_go_back_to_the_kernel", || {
        const BLOCK_BYTES: usize = 19 * 1024 * 1024;
        harden_process().unwrap();
        for _ in 0..3 {
            let threads: Vec<_> =
                (0..4).map(|_| std::thread::spawn(|| drop(std::hint::black_box(vec![1u8; BLOCK_BYTES])))).collect();
            threads.into_iter().for_each(|thread| thread.join().unwrap());
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let resident_kib: usize = resident.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(resident_kib * 1024 < BLOCK_BYTES, "{resident_kib} KiB are resident");
    });
}
