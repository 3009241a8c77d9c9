//! The real `mayfly-ledger` over the real `embedded` plugin. Needs both, and `mayfly-plugin-host`, built: `cargo build --workspace`.

#![allow(clippy::unwrap_used, reason = "a test says what it expects by unwrapping")]

mod common;

use common::raw::{Raw, block_on};

use common::*;
use mayfly_ledger_client::PostError;
use mayfly_plugin_api::find_artifact;
use mayfly_protocol::record;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_mayfly-ledger");

/// A gateway process that ends with its handle.
struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(config: &Path) -> Process {
        Process::spawn(Command::new(PROGRAM).arg("--config").arg(config))
    }

    fn spawn(command: &mut Command) -> Process {
        let own = std::process::id().to_string();
        let mut child =
            command.args(["--watch-pid", &own]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(address) = line.trim().strip_prefix("ready wss ") else {
            let mut text = String::new();
            child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
            panic!("the gateway did not start: {text}");
        };
        let address = address.parse().unwrap();
        // Logs are read away, so that the pipe never fills.
        let mut logs = child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut logs, &mut std::io::sink()));
        Process { child, address }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; the exit status.
    fn terminate(mut self) -> Option<i32> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configure(world: &World, listen: &str, plugin: &str, more: &str) -> PathBuf {
    let dir = world.dir.path();
    let network = world.file(&[("127.0.0.1:1".parse().unwrap(), 0)]);
    std::fs::write(dir.join("network.toml"), network.to_toml()).unwrap();
    let library = find_artifact("libmayfly_ledger_embedded.so").unwrap();
    let text = format!(
        "network = 'network.toml'\nkey = 'gateway-0.key'\nlisten = '{listen}'\nready_file = 'ready'\n\
         [backend]\nplugin = 'embedded'\npath = '{}'\ndata = 'store'\nconfig = '''{plugin}'''\n\
         [danger]\nplugin_path_unchecked = true\n{more}",
        library.display()
    );
    let path = dir.join("gateway.toml");
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn nothing_acknowledged_is_lost_when_the_gateway_is_killed() {
    let world = World::new();
    let config = configure(&world, "127.0.0.1:0", "", "[limits]\nsubmissions_per_second = 0");
    let gateway = Process::start(&config);
    let address = gateway.address;
    let config = configure(&world, &address.to_string(), "", "[limits]\nsubmissions_per_second = 0");
    let at = [(address, 0)];
    let admin = world.admin(&at);
    let devices = ["a", "b", "c"].map(|name| world.device(&admin, name, &at));
    world.witnesses(&admin, &devices.each_ref().map(|d| (d, true)));
    admin.post(token("t"));
    devices.iter().for_each(|d| drop(d.replica.wait_effective(|s| s.token_by_label("t").is_some(), SOON).unwrap()));

    let done = AtomicBool::new(false);
    let acknowledged: Vec<(u64, record::Object)> = std::thread::scope(|scope| {
        let writers: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(d, device)| {
                let done = &done;
                scope.spawn(move || {
                    let mut posted = Vec::new();
                    for n in 0..u8::MAX {
                        if done.load(Ordering::Relaxed) {
                            break;
                        }
                        let mut id = [d as u8; 32];
                        id[0] = n;
                        let id = mayfly_protocol::ObjectId(id);
                        let object = record::Object { id, token: token("t").id, attributes: vec![] };
                        let index = device.author.post(&object.clone().into(), &[], SOON).unwrap();
                        posted.push((index, object));
                    }
                    posted
                })
            })
            .collect();
        let mut gateway = gateway;
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(150));
            gateway.kill();
            gateway = Process::start(&config);
        }
        std::thread::sleep(Duration::from_millis(300));
        done.store(true, Ordering::Relaxed);
        let all = writers.into_iter().flat_map(|w| w.join().unwrap()).collect();
        assert_eq!(gateway.terminate(), Some(0));
        all
    });
    assert!(acknowledged.len() > 3, "{}", acknowledged.len());

    let _gateway = Process::start(&config);
    let fresh = world.admin(&at);
    let last = acknowledged.iter().map(|(index, _)| *index).max().unwrap();
    let state = fresh.replica.wait_effective(|s| s.size() > last, SOON).unwrap();
    for (index, object) in &acknowledged {
        assert_eq!(state.objects.get(&object.id).map(|o| o.position), Some(*index));
    }
    assert_eq!(state.objects.len(), acknowledged.len(), "nothing twice");
    for device in &devices {
        device.replica.wait_effective(|s| s.head() == state.head(), SOON).unwrap();
    }
}

#[test]
fn a_store_that_must_not_grow_refuses_clearly_and_goes_on_reading() {
    let world = World::new();
    let gateway = Process::start(&configure(&world, "127.0.0.1:0", "", ""));
    let address = gateway.address;
    let admin = world.admin(&[(address, 0)]);
    let index = admin.post(token("before"));
    assert_eq!(gateway.terminate(), Some(0));

    // More is to be kept free than there is.
    let gateway = Process::start(&configure(&world, &address.to_string(), "reserve_mib = 1048576", ""));
    let text = full(admin.author.post(&token("during").into(), &[], SOON).unwrap_err());
    assert!(text.contains("ledger(embedded)") && text.contains("free"), "{text}");
    let fresh = world.admin(&[(address, 0)]);
    fresh.replica.wait_effective(|s| s.size() == index + 1, SOON).unwrap();
    gateway.kill();

    let _gateway = Process::start(&configure(&world, &address.to_string(), "", ""));
    assert_eq!(admin.author.settle(SOON).unwrap(), Some(index + 1), "it was tried again");
    assert_eq!(admin.post(token("after")), index + 2);
}

fn full(error: PostError) -> String {
    match error {
        PostError::Disputed { rule, text } if rule == "read-only" => text,
        other => panic!("{other}"),
    }
}

#[test]
fn a_disk_that_is_really_full_refuses_clearly_and_loses_nothing() {
    // A small disk in a mount namespace of the gateway's own: gone with it.
    let unshare = ["unshare", "--mount"];
    if !Command::new(unshare[0]).args(&unshare[1..]).arg("true").status().is_ok_and(|s| s.success()) {
        return eprintln!("skipped: mount namespaces are not allowed here (run as root)");
    }
    let world = World::new();
    let config = configure(&world, "127.0.0.1:0", "reserve_mib = 0", "[limits]\nsubmissions_per_second = 0");
    let store = world.dir.path().join("store");
    let script = format!(
        "mkdir -p -m 700 {s} && mount -t tmpfs -o size=4m,mode=700 tmpfs {s} && exec \"$@\"",
        s = store.display()
    );
    let mut command = Command::new(unshare[0]);
    command.args(&unshare[1..]).args(["sh", "-c", &script, "sh", PROGRAM, "--config"]).arg(&config);
    let gateway = Process::spawn(&mut command);
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let device = world.device(&admin, "a", &at);
    admin.post(token("t"));
    device.replica.wait_tip(|s| s.token_by_label("t").is_some(), SOON).unwrap();
    let mut acknowledged = Vec::new();
    let refusal = loop {
        let n = acknowledged.len();
        assert!(n < 2000, "4 MiB are never full");
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        let value = record::Attribute { kind: 1, value: vec![n as u8; 20_000] };
        let id = mayfly_protocol::ObjectId(id);
        let object = record::Object { id, token: token("t").id, attributes: vec![value] };
        match device.author.post(&object.into(), &[], SOON) {
            Ok(index) => acknowledged.push((index, id)),
            Err(error) => break error,
        }
    };
    full(refusal);
    assert!(acknowledged.len() > 20);
    // It lives, reads, and all that was acknowledged is there.
    let fresh = world.admin(&at);
    let (last, _) = acknowledged.last().unwrap();
    let state = fresh.replica.wait_tip(|s| s.size() > *last, SOON).unwrap();
    assert!(acknowledged.iter().all(|(index, id)| state.objects.get(id).is_some_and(|o| o.position == *index)));
    assert!(device.replica.status().connected);
}

#[test]
fn it_says_when_it_is_ready_and_stops_when_told() {
    let world = World::new();
    let config = configure(&world, "127.0.0.1:0", "", "");
    let socket = world.dir.path().join("notify");
    let notify = UnixDatagram::bind(&socket).unwrap();
    notify.set_read_timeout(Some(SOON)).unwrap();
    let gateway =
        Process::spawn(Command::new(PROGRAM).arg("serve").arg("--config").arg(&config).env("NOTIFY_SOCKET", &socket));
    let mut text = [0; 64];
    let n = notify.recv(&mut text).unwrap();
    assert_eq!(&text[..n], b"READY=1");
    assert_eq!(std::fs::read_to_string(world.dir.path().join("ready")).unwrap(), gateway.address.to_string());
    assert_eq!(gateway.terminate(), Some(0));
}

#[test]
fn it_ends_with_the_process_that_it_watches() {
    let world = World::new();
    let config = configure(&world, "127.0.0.1:0", "", "");
    let mut watched = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = watched.id().to_string();
    let mut gateway = Command::new(PROGRAM)
        .arg("--config")
        .arg(&config)
        .args(["--watch-pid", &pid])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("it is ready", || world.dir.path().join("ready").exists());
    watched.kill().unwrap();
    watched.wait().unwrap();
    eventually("it ends", || gateway.try_wait().unwrap().is_some());
    assert!(gateway.wait().unwrap().success());
}

#[test]
fn wrong_set_ups_are_refused_with_a_sentence() {
    let world = World::new();
    let config = configure(&world, "127.0.0.1:0", "", "");
    let fails = |config: &Path| {
        let output = Command::new(PROGRAM).arg("--config").arg(config).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let text = std::fs::read_to_string(&config).unwrap();
    let changed = |from: &str, to: &str| {
        let path = world.dir.path().join("changed.toml");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        path
    };
    assert!(fails(&world.dir.path().join("nowhere.toml")).contains("nowhere.toml"));
    assert!(fails(&changed("listen", "lisen")).contains("unknown field"));
    let foreign = world.dir.path().join("foreign.key");
    mayfly_ledger_server::key::GatewayKey::create(&foreign).unwrap();
    assert!(fails(&changed("gateway-0.key", "foreign.key")).contains("not among the gateways"));
    assert!(
        fails(&changed("data = 'store'", &format!("data = 'store'\nsha256 = '{}'", "00".repeat(32))))
            .contains("pinned")
    );

    let _gateway = Process::start(&config);
    let second = fails(&config);
    assert!(second.contains("ledger(embedded)"), "the store is in use: {second}");
}

#[test]
fn keys_are_made_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("k");
    let run = |command: &str| Command::new(PROGRAM).arg(command).arg(&path).output().unwrap();
    let made = run("keygen");
    assert!(made.status.success() && made.stdout.starts_with(b"01") && made.stdout.len() == 67);
    assert_eq!(run("key").stdout, made.stdout);
    assert_eq!(run("keygen").status.code(), Some(1), "never overwritten");
    assert_eq!(Command::new(PROGRAM).arg("--nonsense").output().unwrap().status.code(), Some(2));
}

#[test]
#[ignore = "a measurement; run with --ignored --nocapture"]
fn measure_memory_of_a_connected_client() {
    let world = World::new();
    let gateway = Process::start(&configure(&world, "127.0.0.1:0", "", "[limits]\nsubmissions_per_second = 0"));
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    let at = [(gateway.address, 0)];
    let admin = world.admin(&at);
    let devices: Vec<Device> = (0..40).map(|n| world.device(&admin, &format!("d{n}"), &at)).collect();
    let before = resident();
    block_on(async {
        let mut clients = Vec::new();
        for device in &devices {
            for _ in 0..25 {
                clients.push(Raw::admitted_as(&world, gateway.address, &device.keys.identity).await);
            }
        }
        let connected = resident();
        for n in 0..20 {
            admin.post(token(&format!("t{n}")));
        }
        for client in &mut clients {
            let mut bundles = 0;
            while bundles < 20 {
                bundles +=
                    u32::from(matches!(client.next().await, Some(mayfly_protocol::sync::FromGateway::Bundle(_))));
            }
        }
        let n = clients.len() as f64;
        println!(
            "KiB per client: {:.1} connected, {:.1} after 20 bundles",
            (connected - before) / n,
            (resident() - before) / n
        );
    });
}
