//! Prints what secret memory costs, in nanoseconds: `cargo run --profile ci -p mayfly-secmem --example figures`.
//! Each figure is the lowest of several rounds, so that other work on the machine counts as little as possible.

use mayfly_secmem::{Secret, SecretBytes, harden_process, mask_signals_on_this_thread, on_secret_stack, status, wipe};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = 9;

fn main() {
    harden_process().expect("this machine has secret memory");
    println!("{:?}", status());
    figure("secret of 32 bytes, taken and dropped", 100_000, || {
        black_box(Secret::<32>::new_with(|_| {}).expect("room"));
    });
    figure("secret of 1 KiB, taken and dropped", 100_000, || {
        black_box(SecretBytes::new_with(1024, |_| {}).expect("room"));
    });
    figure("secret of 16 KiB, taken and dropped", 20_000, || {
        black_box(SecretBytes::new_with(16 * 1024, |_| {}).expect("room"));
    });
    let held: Vec<_> = (0..20_000).map(|_| Secret::<32>::new_with(|_| {}).expect("room")).collect();
    figure("secret of 32 bytes beside 20,000 others", 100_000, || {
        black_box(Secret::<32>::new_with(|_| {}).expect("room"));
    });
    drop(held);
    two_threads();
    figure("block of 32 bytes, malloc and wiping free", 100_000, || {
        black_box(Vec::<u8>::with_capacity(32));
    });
    figure("block of 16 KiB, malloc and wiping free", 20_000, || {
        black_box(Vec::<u8>::with_capacity(16 * 1024));
    });
    figure("growth of a Vec by push to 800 KB", 20, || {
        let mut numbers = Vec::new();
        (0..100_000u64).for_each(|number| numbers.push(number));
        black_box(numbers);
    });
    let mut stack = vec![1u8; 32 * 1024];
    figure("wipe of 32 KiB", 20_000, || wipe(black_box(&mut stack)));
    figure("on_secret_stack, nothing inside", 20_000, || on_secret_stack(|| black_box(())));
    mask_signals_on_this_thread();
    figure("on_secret_stack, signals masked for good", 20_000, || on_secret_stack(|| black_box(())));
}

fn figure(name: &str, times: u32, mut work: impl FnMut()) {
    let lowest = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..times).for_each(|_| work());
            start.elapsed().as_nanos() / u128::from(times)
        })
        .min();
    println!("{:>9} ns  {name}", lowest.unwrap_or(0));
}

fn two_threads() {
    let start = Instant::now();
    let times = 200_000;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..times {
                    black_box(Secret::<32>::new_with(|_| {}).expect("room"));
                }
            });
        }
    });
    println!("{:>9} ns  secret of 32 bytes, two threads at once, each", start.elapsed().as_nanos() / times);
}
