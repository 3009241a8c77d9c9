//! The application socket under attack from its own side.

use mayfly_tests::{Network, program, run};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

/// Sends bytes, and waits until the agent hangs up (or for a while).
fn send(network: &Network, bytes: &[u8]) {
    let mut stream = UnixStream::connect(network.agent(1).socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(3))).unwrap();
    // A connection that is closed in the middle is the expected answer.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut Vec::new());
}

/// The agent lives, with the same process, and works.
fn assert_alive(network: &Network, pid: u32, what: &str) {
    assert_eq!(network.pid("agent-1"), pid, "{what}: the agent died");
    network.agent(1).pkcs11_tool(&["--list-objects"]).ok();
}

/// The head of a request: length, mark `Mq`, version, operation, ticket length, processor, number, reserved.
fn header(length: u32, operation: u16) -> Vec<u8> {
    let mut header = length.to_le_bytes().to_vec();
    header.extend(b"qM");
    header.extend(1_u16.to_le_bytes());
    header.extend(operation.to_le_bytes());
    header.extend([0; 22]);
    header.resize(32, 0);
    header
}

#[test]
fn garbage_and_huge_frames_end_the_connection_and_nothing_else() {
    let network = Network::three();
    let pid = network.pid("agent-1");
    let noise: Vec<u8> = (0..100_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    send(&network, &noise);
    assert_alive(&network, pid, "noise");
    send(&network, &[0xff; 32]);
    assert_alive(&network, pid, "all ones");
    for length in [1 << 30, u32::MAX, (1 << 20) + 1] {
        send(&network, &header(length, 1));
        assert_alive(&network, pid, "a frame of a gigabyte");
    }
    for operation in [0, 1, 48, 80, 999, u16::MAX] {
        send(&network, &[header(16, operation), vec![0xa5; 16]].concat());
        assert_alive(&network, pid, "a body that makes no sense");
    }
    // Half frames that never go on.
    let stalled: Vec<UnixStream> = (0..64)
        .map(|_| {
            let mut stream = UnixStream::connect(network.agent(1).socket()).unwrap();
            stream.write_all(&header(1 << 20, 1)).unwrap();
            stream
        })
        .collect();
    assert_alive(&network, pid, "stalled clients");
    drop(stalled);
    let memory = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak_kib < 200 << 10, "the agent took {peak_kib} KiB for it");
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused_and_the_first_goes_on() {
    let network = Network::three();
    let pid = network.pid("agent-1");
    let config = network.dir().join("agent-1/agent.toml");
    let second = run(Command::new(program("mayflyd")).arg("--config").arg(config));
    assert!(!second.is_ok() && !second.stderr.is_empty(), "{second}");
    assert_alive(&network, pid, "a second agent");
}
