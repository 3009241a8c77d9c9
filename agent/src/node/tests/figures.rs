//! Figures, for people: `cargo test -p mayfly-agent --profile ci figures -- --ignored --nocapture`.

use super::net::Net;
use super::*;
use mayfly_protocol::record::Residency;

#[test]
#[ignore = "takes seconds and asserts nothing about this machine"]
fn figures() {
    let net = Net::up(3);
    let per_operation = net.make(|_| ());
    let window = net.make(|k| k.policy.residency = Residency { window_seconds: 600 });
    let node = net.node(0);
    for (what, key, count) in [("per-operation 2-of-3", per_operation, 5_000), ("window", window, 500_000)] {
        let mut times: Vec<Duration> = Vec::with_capacity(count);
        let began = Instant::now();
        for _ in 0..count {
            let one = Instant::now();
            node.with_key(&key, Use::Encrypt, |k| assert_eq!(k.bytes().len(), 32)).unwrap();
            times.push(one.elapsed());
        }
        let all = began.elapsed();
        times.sort();
        println!(
            "{what}: {:.0}/s, p50 {:?}, p99 {:?}",
            count as f64 / all.as_secs_f64(),
            times[count / 2],
            times[count * 99 / 100]
        );
    }
    let threads = 8;
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                for _ in 0..2000 {
                    node.with_key(&per_operation, Use::Encrypt, |_| ()).unwrap();
                }
            });
        }
    });
    println!("per-operation, {threads} threads: {:.0}/s", f64::from(threads * 2000) / began.elapsed().as_secs_f64());
}
