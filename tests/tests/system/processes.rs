//! `mayfly dev`: what it starts, it ends.

use mayfly_tests::{Network, program, run};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Processes whose command line or working files name this folder: agents, gateways, plugin hosts, TPMs, scripts.
pub fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let own = std::process::id().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid == own || !pid.chars().all(|c| c.is_ascii_digit()) {
            continue;
        }
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let files = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().filter_map(Result::ok);
        let mut targets = files.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        let names_it = String::from_utf8_lossy(&command).contains(&dir) || targets.any(|t| t.starts_with(&dir));
        if names_it && !is_zombie(&pid) {
            found.push(format!("{pid}: {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

fn is_zombie(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

#[track_caller]
pub fn assert_all_end(dir: &Path, within: Duration) {
    let deadline = Instant::now() + within;
    loop {
        let left = processes_of(dir);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still there: {left:#?}");
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn down_leaves_no_process_and_may_be_repeated() {
    let network = Network::three();
    let dir = network.dir();
    let all = processes_of(&dir);
    assert!(all.len() >= 8, "four programs and four plugin hosts are expected: {all:#?}");
    assert_eq!(network.processes().len(), 4);
    let again = network.mayfly(&["dev", "up", "--dir", &dir.display().to_string()]);
    again.refused("mayfly dev down");
    network.down().ok();
    assert_eq!(processes_of(&dir), Vec::<String>::new());
    network.down().ok();
    let typo = network.mayfly(&["dev", "down", "--dir", &format!("{}-typo", dir.display())]).refused("typo");
    assert_eq!(typo.status.code(), Some(1), "{typo}");
}

#[test]
fn a_network_that_was_ended_is_started_again() {
    let network = Network::three();
    let (dir, watch) = (network.dir().display().to_string(), std::process::id().to_string());
    network.agent(1).mayfly(&["key", "create", "k", "--type", "aes:256"]).ok();
    network.down().ok();
    let up = |words: &[&str]| network.mayfly(&[&["dev", "up", "--dir", &dir, "--watch-pid", &watch], words].concat());
    up(&["--agents", "4"]).refused("a network of 3 agents was ended");
    assert!(up(&[]).ok().text().contains("runs again"));
    network.agent(2).mayfly_reading(&["iv", "--key", "k"], b"text").ok();
    // One agent alone has nobody to ask: it runs, and says what it waits for.
    for name in ["agent-1", "agent-2", "agent-3"] {
        network.dev("kill", name);
    }
    let alone = network.mayfly(&["dev", "start", "--dir", &dir, "agent-1"]).ok();
    assert!(alone.text().contains("too few witnesses run (1 of 3, 2 must)"), "{alone}");
    network.mayfly(&["dev", "start", "--dir", &dir]).ok();
    network.agent(1).mayfly_reading(&["iv", "--key", "k"], b"text").ok();
}

#[test]
fn an_interrupted_start_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let mut up = Command::new(program("mayfly"));
    up.args(["dev", "up", "--dir"]).arg(&dir).stdout(Stdio::null()).stderr(Stdio::null());
    let mut up = up.spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while processes_of(&dir.join("ledger-1")).is_empty() {
        assert!(Instant::now() < deadline, "nothing was started");
        sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(up.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(up.wait().unwrap().code(), Some(130));
    assert_all_end(&dir, Duration::from_millis(500));
}

#[test]
fn a_failed_test_leaves_no_process() {
    let dir = std::thread::spawn(|| {
        let network = Network::three();
        std::fs::write("/dev/null", "").unwrap();
        let dir = network.dir();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _network = network;
            panic!("on purpose");
        }))
        .unwrap_err();
        dir
    })
    .join()
    .unwrap();
    assert_all_end(&dir, Duration::from_millis(100));
}

#[test]
fn a_killed_test_leaves_no_process() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net");
    let mut tester = Command::new("sleep").arg("600").spawn().unwrap();
    let watch = tester.id().to_string();
    run(Command::new(program("mayfly")).args(["dev", "up", "--watch-pid", &watch, "--dir"]).arg(&dir)).ok();
    assert!(!processes_of(&dir).is_empty());
    tester.kill().unwrap();
    tester.wait().unwrap();
    assert_all_end(&dir, Duration::from_secs(5));
}

#[test]
fn plugin_hosts_end_with_their_agent() {
    let network = Network::three();
    let of_agent = || processes_of(&network.dir().join("agent-2")).len();
    assert!(of_agent() >= 2, "an agent and its vault's host");
    network.dev("kill", "agent-2");
    let deadline = Instant::now() + Duration::from_secs(3);
    while of_agent() > 0 {
        assert!(Instant::now() < deadline, "{:#?}", processes_of(&network.dir().join("agent-2")));
        sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_network_that_is_half_made_can_be_ended() {
    for millis in [50, 200, 450] {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().join("net");
        std::fs::DirBuilder::new().create(&dir).unwrap();
        let mut up = Command::new(program("mayfly"));
        up.args(["dev", "up", "--watch-pid", &std::process::id().to_string(), "--dir"]).arg(&dir);
        let mut up = up.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(millis));
        up.kill().unwrap();
        up.wait().unwrap();
        run(Command::new(program("mayfly")).args(["dev", "down", "--dir"]).arg(&dir)).ok();
        assert_all_end(&dir, Duration::from_millis(500));
    }
    // Nothing there at all.
    let folder = tempfile::tempdir().unwrap();
    run(Command::new(program("mayfly")).args(["dev", "down", "--dir"]).arg(folder.path())).ok();
}

/// Whoever starts a process writes it down, then lets it begin: one that is not let go has no parent that knows of it.
#[test]
fn a_process_begins_only_when_it_was_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let begun = folder.path().join("begun");
    for (word, begins) in [(&b""[..], false), (b"g", true)] {
        let mut launch = Command::new(program("mayfly"));
        launch.args(["dev", "launch", "touch"]).arg(&begun).stdin(Stdio::piped()).stderr(Stdio::null());
        let mut child = launch.spawn().unwrap();
        child.stdin.take().unwrap().write_all(word).unwrap();
        assert_eq!(child.wait().unwrap().success(), begins);
        assert_eq!(begun.exists(), begins);
    }
}

#[test]
fn what_later_versions_bring_is_refused_in_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("net").display().to_string();
    for (option, value, word) in [("--ledger", "etcd", "etcd"), ("--gateways", "2", "gateway")] {
        let refused =
            run(Command::new(program("mayfly")).args(["dev", "up", "--dir", &dir, option, value])).refused(word);
        assert_eq!(refused.status.code(), Some(1), "{refused}");
    }
    assert_eq!(
        run(Command::new(program("mayfly")).args(["dev", "up", "--dir", &dir, "--vaults", "cloud"])).status.code(),
        Some(2)
    );
    assert!(!Path::new(&dir).exists(), "a refused command left something behind");
}
