//! Plugins that lie, hang, crash and break out: the facade survives each with an error that says what happened, and
//! the next call works where the plugin can.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

use mayfly_plugin_api::{
    Append, BackendPlugin, Head, HostConfig, Kind, Network, PathRule, PluginError, Status, Tier, VaultPlugin, abi::Alg,
    inspect,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Longer than any honest call here on a busy machine.
const PATIENT: Duration = Duration::from_secs(20);
/// For the plugins that hang: what the test waits for.
const IMPATIENT: Duration = Duration::from_secs(2);

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    /// Compiles the hostile vault with defines.
    fn build(&self, defines: &[&str]) -> PathBuf {
        let name = format!("libmayfly_vault_hostile{}.so", defines.join("")).replace(['"', ' ', '='], "_");
        self.compile("vault.c", &name, defines)
    }

    fn compile(&self, source: &str, name: &str, defines: &[&str]) -> PathBuf {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let library = self.dir.path().join(name);
        let run = Command::new("cc")
            .args(["-std=gnu11", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Wno-stringop-overflow", "-I"])
            .arg(here.join("include"))
            .args(defines.iter().map(|define| format!("-D{define}")))
            .arg(here.join("tests/hostile").join(source))
            .arg("-o")
            .arg(&library)
            .arg("-lpthread")
            .output()
            .expect("a C compiler named cc (Debian: apt-get install gcc)");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
        library
    }

    fn config(&self, library: &Path, mode: &str) -> HostConfig {
        HostConfig {
            host_path: env!("CARGO_BIN_EXE_mayfly-plugin-host").into(),
            plugin_path: library.into(),
            pin: None,
            config_text: mode.into(),
            data_dir: self.dir.path().join("data").join(mode.replace(' ', "-")),
            call_timeout: if mode.contains("hang") || mode.contains("stops") { IMPATIENT } else { PATIENT },
            network: Network::None,
            path_rule: PathRule::DangerDevelopment,
            env: Vec::new(),
        }
    }

    fn start(&self, library: &Path, mode: &str) -> Result<VaultPlugin, PluginError> {
        VaultPlugin::start(&self.config(library, mode))
    }
}

/// The text of what must not have worked.
fn error_of<T>(result: Result<T, PluginError>) -> String {
    result.err().expect("this must not be believed").to_string()
}

#[test]
fn an_honest_c_vault_works() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let vault = bench.start(&library, "honest").unwrap();
    assert_eq!((vault.name(), vault.version()), ("hostile", "1"));
    let description = vault.describe().unwrap();
    assert_eq!(description.hardware.len(), 256, "a text field without terminator is read to its end");
    assert_eq!(description.security_note, "", "control characters are gone");
    let staged = vault.stage(1, Tier::Window).unwrap();
    assert_eq!(staged.expose(), &[6; 32]);
    vault.commit(1).unwrap();
    assert_eq!(vault.generation().unwrap().current, 1);
    assert_eq!(vault.open_key(1, Tier::Boot).unwrap().expose(), &[0x42; 32]);
    assert_eq!(
        error_of(vault.attest(1, b"")),
        "vault(hostile): attest: not offered by this plugin",
        "a null function is an answer"
    );
    assert_eq!(error_of(vault.control("x", b"")), "vault(hostile): control: not offered by this plugin");
}

/// A look at the table opens nothing: what would end the plugin's process when it starts is not reached.
#[test]
fn a_plugin_can_be_looked_at_without_being_opened() {
    let bench = Bench::new();
    let config = bench.config(&bench.build(&[]), "crashes in open");
    assert!(VaultPlugin::start(&config).is_err(), "the test shows nothing");
    let info = inspect(&config).unwrap();
    assert_eq!((info.kind, info.name.as_str(), info.version.as_str()), (Kind::Vault, "hostile", "1"));
    let pinned = HostConfig { pin: Some([0; 32]), ..config };
    assert!(error_of(inspect(&pinned)).contains("pinned is 0000"));
    let other = bench.config(&bench.build(&["TABLE_VERSION=2"]), "honest");
    assert!(error_of(inspect(&other)).contains("it is made for interface version 2"));
}

/// Libraries that are no plugin, or none for us: refused before anything of them is called.
#[test]
fn tables_that_are_refused() {
    let bench = Bench::new();
    for (defines, expected) in [
        (&["TABLE_VERSION=2"][..], "it is made for interface version 2, this is version 1"),
        (&["TABLE_KIND=2"], "it is a ledger plugin, not what is configured here"),
        (&["TABLE_KIND=9"], "it is of unknown kind 9"),
        (&["TABLE_SIZE=8"], "its table claims 8 bytes"),
        (&["TABLE_SIZE=0xffffffff"], "its table claims 4294967295 bytes"),
        (&["TABLE_SIZE=144"], "its table lacks health"),
        (&["FAULT_NO_COMMIT"], "its table lacks commit"),
        (&["FAULT_NO_SYMBOL"], "it has no symbol mayfly_plugin_v1"),
        (&["FAULT_NULL_TABLE"], "mayfly_plugin_v1 gave no table"),
        (&["FAULT_ODD_TABLE"], "mayfly_plugin_v1 gave no table"),
        (&["TABLE_FLAGS=6"], "its flags 0x6 are unknown"),
        (&["TABLE_FLAGS=1"], "it needs the network, which its configuration does not allow"),
        (&["TABLE_NAME=\"UPPER\""], "its name is not made of a-z, 0-9 and -"),
        (&["TABLE_NAME=\"\""], "its name is not made of a-z, 0-9 and -"),
        (&["TABLE_NAME_LEN=100000"], "its name or version is missing or longer than 32 bytes"),
    ] {
        let library = bench.build(defines);
        let text = error_of(bench.start(&library, "honest"));
        assert!(text.contains("is not usable: ") && text.contains(expected), "{defines:?}: {text}");
    }
    let library = bench.build(&["TABLE_FLAGS=1"]);
    let config = HostConfig { network: Network::Allowed, ..bench.config(&library, "honest") };
    VaultPlugin::start(&config).unwrap();

    let no_library = bench.dir.path().join("text.so");
    std::fs::write(&no_library, "not a library").unwrap();
    let text = error_of(bench.start(&no_library, "honest"));
    assert!(text.starts_with("vault(text): ") && text.contains("it cannot be loaded"), "{text}");
}

#[test]
fn plugins_that_do_not_start() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    for (mode, expected) in [
        ("refuses to open", "vault(hostile): start: wrong pass phrase  [31m\u{fffd}"),
        ("hangs in open", "vault(hostile): start timed out after 2 s"),
        ("crashes in open", "vault(hostile): the plugin ended during start (signal 11)"),
        ("opens without a handle", "vault(hostile): start: bad answer: it opened without a handle"),
    ] {
        assert_eq!(error_of(bench.start(&library, mode)), expected, "{mode}");
    }
    let hangs = bench.build(&["FAULT_HANG"]);
    let config = HostConfig { call_timeout: IMPATIENT, ..bench.config(&hangs, "honest") };
    assert!(error_of(VaultPlugin::start(&config)).ends_with("start timed out after 2 s"));
    let crashes = bench.build(&["FAULT_CONSTRUCTOR"]);
    assert!(error_of(bench.start(&crashes, "honest")).ends_with("the plugin ended during start (signal 11)"));
}

/// One bad `open_key`; afterwards the facade is well and another call is served by a new process.
#[test]
fn bad_calls() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    for (mode, expected) in [
        ("hangs", "open_key timed out after 2 s"),
        ("stops itself", "open_key timed out after 2 s"),
        ("crashes", "the plugin ended during open_key (signal 11)"),
        ("aborts", "the plugin ended during open_key (signal 6)"),
        ("exits", "the plugin ended during open_key (exit status 0)"),
        ("eats the stack", "the plugin ended during open_key (signal 11)"),
        ("writes far beyond the key", "the plugin ended during open_key (signal 11)"),
        ("writes nothing", "open_key: bad answer: a key that is all zero"),
        ("gives an unknown status", "open_key: bad answer: unknown status 4711"),
        ("gives a negative status", "open_key: bad answer: unknown status -2"),
        ("claims a long message", "open_key: bad answer: a message of 1025 bytes in a buffer of 1024"),
        ("claims a message without end", "open_key: bad answer: a message of 18446744073709551615 bytes"),
        ("gives no reason", "open_key: Io, no reason given"),
        ("writes garbage to the socket", "open_key: bad answer: a field is missing"),
        ("writes a giant frame", "open_key: bad answer: an answer of 1073741824 bytes"),
        ("forges an answer", "open_key: bad answer: an answer to another call"),
        ("closes all descriptors", "the plugin ended during open_key"),
        ("makes a process", "open_key: fork refused"),
        ("runs a program", "open_key: exec refused"),
        ("kills the agent", "open_key: kill refused"),
        ("limits the agent", "open_key: prlimit refused"),
        ("has the agent signalled", "open_key: ownership refused"),
        ("types at the terminal", "open_key: typing refused"),
        ("opens a network socket", "open_key: socket refused"),
        ("drips and hangs", "open_key timed out after 2 s"),
    ] {
        let vault = bench.start(&library, mode).unwrap_or_else(|error| panic!("{mode}: {error}"));
        let started = Instant::now();
        let text = error_of(vault.open_key(1, Tier::Boot));
        assert!(text.starts_with("vault(hostile): ") && text.contains(expected), "{mode}: {text}");
        assert!(started.elapsed() < PATIENT / 2, "{mode}: took {:?}", started.elapsed());
        assert_eq!(vault.generation().unwrap().current, 0, "{mode}: the next call works");
    }
    // what smashing its stack does to a plugin is up to the compiler; what it does to us is not
    let vault = bench.start(&library, "smashes the stack").unwrap();
    let _ = vault.open_key(1, Tier::Boot);
    assert_eq!(vault.generation().unwrap().current, 0);
    // the page stays as large as it is: reading it must never be a SIGBUS of ours
    let vault = bench.start(&library, "shrinks the page").unwrap();
    assert_eq!(vault.open_key(1, Tier::Boot).unwrap().expose(), &[0x42; 32]);
    // allowed: many vaults are reached over a unix socket
    bench.start(&library, "opens a unix socket").unwrap().open_key(1, Tier::Boot).unwrap();
}

#[test]
fn lies_in_other_calls() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let start = |mode| bench.start(&library, mode).unwrap();
    type Call = fn(&VaultPlugin) -> String;
    let identity: Call = |vault| error_of(vault.identity_public(Some(Alg::Ed25519), true));
    let cases: [(&str, Call, &str); 12] = [
        ("claims a long key", identity, "it claims 1099511627776 bytes in a buffer of 33"),
        ("claims one byte too many", identity, "it claims 34 bytes in a buffer of 33"),
        ("gives a short key", identity, "an identity key of 31 bytes"),
        ("names an unknown algorithm", identity, "identity algorithm 77"),
        ("names the other algorithm", identity, "an identity of another algorithm than asked for"),
        ("is half software", |vault| error_of(vault.describe()), "software_only is 2"),
        ("offers nothing", |vault| error_of(vault.describe()), "it offers no identity algorithm or no tier"),
        ("stages far ahead", |vault| error_of(vault.generation()), "generation 5 staged over 0"),
        ("has an odd health", |vault| error_of(vault.health()), "health state 99"),
        ("has no random bytes", |vault| error_of(vault.random(&mut [0; 32])), "random bytes that are all zero"),
        ("honest", |vault| error_of(vault.identity_sign(b"message")), "a signature that does not verify"),
        (
            "goes back a generation",
            |vault| {
                assert_eq!(vault.generation().unwrap().current, 10);
                error_of(vault.generation())
            },
            "generation 9, but 10 was there before",
        ),
    ];
    for (mode, call, expected) in cases {
        let text = call(&start(mode));
        assert!(text.contains(&format!("bad answer: {expected}")), "{mode}: {text}");
    }
    let vault = start("changes its identity");
    vault.identity_public(None, true).unwrap();
    assert!(error_of(vault.identity_public(None, true)).contains("the identity key is another one than before"));
    assert_eq!(start("has odd texts").describe().unwrap().security_note.chars().next(), Some('\u{fffd}'));
}

#[test]
fn lies_of_a_backend() {
    let bench = Bench::new();
    let library = bench.compile("backend.c", "libmayfly_ledger_liar.so", &[]);
    type Call = fn(&BackendPlugin) -> String;
    let second_head: Call = |backend| {
        backend.head().unwrap();
        error_of(backend.head())
    };
    let read: Call = |backend| error_of(backend.read(1, 1000));
    let snapshot: Call = |backend| error_of(backend.get_snapshot_piece(7, 0));
    let cases: [(&str, Call, &str); 15] = [
        ("loses an entry", second_head, "head 1 (epoch 1), but 2 (epoch 1) was there before"),
        ("goes back an epoch", second_head, "head 2 (epoch 0), but 2 (epoch 1) was there before"),
        ("changes its hash", second_head, "head 2 with another hash than before"),
        ("prunes what is there", read, "entry 1 pruned, yet 1 is the first left"),
        ("gives a later bundle", read, "a bundle 2..2 of 3 bytes"),
        ("gives an empty range", read, "a bundle 0..0 of 3 bytes"),
        ("claims a long bundle", read, "a bundle 0..2 of 1152921504606846976 bytes"),
        ("cuts the bundle", read, "a field is missing"),
        ("claims a long answer", read, "it claims 2097153 bytes in a buffer of 2097152"),
        (
            "gives a later checkpoint",
            |backend| error_of(backend.latest_checkpoint(5)),
            "a checkpoint of size 6, asked for at most 5",
        ),
        ("gives a later snapshot", snapshot, "a snapshot piece outside its snapshot"),
        ("gives a huge snapshot", snapshot, "a snapshot piece outside its snapshot"),
        ("gives more than the whole", snapshot, "a snapshot piece outside its snapshot"),
        ("gives an empty piece", snapshot, "an empty snapshot piece before the end"),
        ("half holds a lease", |backend| error_of(backend.lease("x", &[0; 16], PATIENT)), "held is 2"),
    ];
    for (mode, call, expected) in cases {
        let text = call(&BackendPlugin::start(&bench.config(&library, mode)).unwrap());
        assert!(
            text.starts_with("ledger(liar): ") && text.contains(&format!("bad answer: {expected}")),
            "{mode}: {text}"
        );
    }
    for (mode, bytes) in [("takes huge bundles", "1099511627776"), ("takes no bundles", "1")] {
        let text = error_of(BackendPlugin::start(&bench.config(&library, mode)));
        assert!(text.ends_with(&format!("caps: bad answer: a bundle limit of {bytes} bytes")), "{mode}: {text}");
    }
}

/// Whatever may have happened to an append is `Unknown`, never an error that reads like "not stored", never "done".
#[test]
fn doubtful_appends_of_a_backend() {
    let bench = Bench::new();
    let library = bench.compile("backend.c", "libmayfly_ledger_liar.so", &[]);
    let append = |mode| {
        let backend = BackendPlugin::start(&bench.config(&library, mode)).unwrap();
        let expected = backend.head().unwrap();
        backend.append_if_head(&expected, &Head { size: 3, bundle_hash: [3; 32], ..expected }, b"entry")
    };
    assert!(matches!(append("honest"), Ok(Append::Done)));
    for mode in ["does not know", "ends in append", "hangs in append", "conflicts with what was expected"] {
        let answer = append(mode);
        assert!(matches!(answer, Ok(Append::Unknown(_))), "{mode}: {answer:?}");
    }
    assert_eq!(append("is full").unwrap_err().status(), Some(Status::ReadOnly), "certainly not stored");
}

#[test]
fn a_wait_holds_up_nothing() {
    let bench = Bench::new();
    let library = bench.compile("backend.c", "libmayfly_ledger_liar.so", &[]);
    let backend = BackendPlugin::start(&bench.config(&library, "waits")).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| backend.wait(9, Duration::from_secs(2)));
        let started = Instant::now();
        backend.head().unwrap();
        assert!(started.elapsed() < Duration::from_secs(1), "head waited {:?}", started.elapsed());
        assert_eq!(waiter.join().unwrap().unwrap().size, 2);
    });
    let backend = BackendPlugin::start(&bench.config(&library, "hangs in wait")).unwrap();
    let pid = backend.host_pid();
    assert!(matches!(backend.wait(9, Duration::from_millis(100)), Err(PluginError::TimedOut { .. })));
    backend.head().unwrap();
    assert_eq!(backend.host_pid(), pid, "the process that appends was left alone");
}

#[test]
fn a_plugin_that_hung_once_works_again() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let vault = bench.start(&library, "hangs once").unwrap();
    assert!(matches!(vault.open_key(1, Tier::Boot), Err(PluginError::TimedOut { .. })));
    assert_eq!(vault.open_key(1, Tier::Boot).unwrap().expose(), &[0x42; 32]);
}

#[test]
fn a_plugin_that_always_fails_is_tried_less_and_less() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let vault = bench.start(&library, "crashes").unwrap();
    let started = Instant::now();
    let (mut tried, mut held_back) = (0, 0);
    while started.elapsed() < Duration::from_secs(2) {
        match vault.open_key(1, Tier::Boot) {
            Err(PluginError::Ended { .. }) => tried += 1,
            Err(PluginError::Restarting { wait, .. }) => {
                assert!(wait <= Duration::from_secs(10));
                held_back += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            other => panic!("{:?}", other.err()),
        }
    }
    assert!((3..=7).contains(&tried), "tried {tried} times in 2 s");
    assert!(held_back > 10, "held back {held_back} times");
}

#[test]
fn a_thread_that_scribbles_on_the_socket_is_found_out() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let vault = bench.start(&library, "leaves a thread behind").unwrap();
    let mut bad = 0;
    for _ in 0..20 {
        match vault.open_key(1, Tier::Boot) {
            Ok(key) => assert_eq!(key.expose(), &[0x42; 32]),
            Err(PluginError::BadAnswer { .. } | PluginError::Ended { .. }) => bad += 1,
            Err(PluginError::Restarting { wait, .. }) => std::thread::sleep(wait),
            Err(error) => panic!("{error}"),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(bad > 0, "garbage on the socket was never noticed");
}

#[test]
fn no_host_outlives_its_facade() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    for mode in ["honest", "hangs in close", "leaves a thread behind"] {
        let vault = bench.start(&library, mode).unwrap();
        let pid = vault.host_pid().unwrap();
        assert!(Path::new(&format!("/proc/{pid}")).exists());
        drop(vault);
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{mode}: host {pid} is still there");
    }
}

/// Nothing of the agent's environment, and none of its descriptors, is in the host.
#[test]
fn a_host_starts_with_nothing() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    // a descriptor without close-on-exec, as a C library may leave one
    let leaked = std::fs::File::open("/dev/null").unwrap();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).unwrap();
    let config = HostConfig { env: vec![("SOFTHSM2_CONF".into(), "/x".into())], ..bench.config(&library, "honest") };
    let vault = VaultPlugin::start(&config).unwrap();
    let proc = PathBuf::from(format!("/proc/{}", vault.host_pid().unwrap()));
    if let Ok(environment) = std::fs::read(proc.join("environ")) {
        assert_eq!(String::from_utf8_lossy(&environment), "SOFTHSM2_CONF=/x\0");
        let open: Vec<_> = std::fs::read_dir(proc.join("fd"))
            .unwrap()
            .map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().into_owned())
            .filter(|target| target != "/dev/null")
            .collect();
        assert!(open.iter().filter(|target| target.starts_with("socket:")).count() == 2, "{open:?}");
        assert!(!open.iter().any(|target| target.contains(".so") || target.contains("secret")), "{open:?}");
    }
    assert_eq!(std::fs::read_to_string(proc.join("oom_score_adj")).unwrap(), "200\n");
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    for line in ["Name:\tmayfly-plugin-h", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    for name in ["LD_PRELOAD", "LD_LIBRARY_PATH", "GLIBC_TUNABLES", "MALLOC_PERTURB_"] {
        let config = HostConfig { env: vec![(name.into(), "x".into())], ..bench.config(&library, "honest") };
        assert!(error_of(VaultPlugin::start(&config)).ends_with(&format!("{name} may not be set for a plugin")));
    }
}

#[test]
fn a_pin_is_kept() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let mut file = std::fs::File::open(&library).unwrap();
    let hash = mayfly_plugin_api::sha256_of(&mut file).unwrap();
    let mut config = HostConfig { pin: Some(hash), ..bench.config(&library, "honest") };
    VaultPlugin::start(&config).unwrap();
    let mut bytes = std::fs::read(&library).unwrap();
    bytes.push(0);
    std::fs::write(&library, bytes).unwrap();
    let error = VaultPlugin::start(&config).err().unwrap();
    let text = error.to_string();
    assert!(text.starts_with("vault(hostile): ") && text.contains("pinned is"), "{text}");
    assert!(std::error::Error::source(&error).is_none(), "the cause is told once");
    config.pin = None;
    VaultPlugin::start(&config).unwrap();
}

/// The checked file itself runs, its name is not looked up again: so a script, whose interpreter would do that, does not.
#[test]
fn the_host_runs_by_descriptor() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let library = bench.build(&[]);
    let config = bench.config(&library, "honest");
    VaultPlugin::start(&config).unwrap();
    let script = bench.dir.path().join("script");
    std::fs::write(&script, format!("#!/bin/sh\nexec '{}' \"$@\"\n", config.host_path.display())).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    error_of(VaultPlugin::start(&HostConfig { host_path: script, ..config }));
}

#[test]
fn relative_paths_mean_what_the_caller_means() {
    let bench = Bench::new();
    let library = bench.build(&[]);
    let up = "../".repeat(std::env::current_dir().unwrap().components().count());
    let relative = |path: &Path| PathBuf::from(format!("{up}{}", path.strip_prefix("/").unwrap().display()));
    let whole = bench.config(&library, "hangs once");
    let config = HostConfig {
        host_path: relative(&whole.host_path),
        plugin_path: relative(&whole.plugin_path),
        data_dir: relative(&whole.data_dir),
        ..whole.clone()
    };
    let vault = VaultPlugin::start(&config).unwrap();
    let _ = vault.open_key(1, Tier::Boot);
    assert!(whole.data_dir.join("mark").exists(), "the plugin works in its data folder");
    vault.open_key(1, Tier::Boot).unwrap();
}

#[test]
fn a_data_folder_that_is_open_to_others_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let library = bench.build(&[]);
    let config = bench.config(&library, "honest");
    std::fs::create_dir_all(&config.data_dir).unwrap();
    std::fs::set_permissions(&config.data_dir, std::fs::Permissions::from_mode(0o750)).unwrap();
    assert!(error_of(VaultPlugin::start(&config)).contains("is open to others; run `chmod 700` on it"));
    std::fs::set_permissions(&config.data_dir, std::fs::Permissions::from_mode(0o700)).unwrap();
    VaultPlugin::start(&config).unwrap();
}
