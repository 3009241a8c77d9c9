//! What happens when parts of the network die, hang, lie or are taken away.

use mayfly_tests::{Agent, Network, id_of, python};
use redb::ReadableTable;
use serde_json::Value;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// A refusal comes within this time; starting `pkcs11-tool` and logging in are part of it.
const REFUSAL_MAX: Duration = Duration::from_secs(2);

#[test]
fn with_too_few_holders_there_is_a_clear_refusal_that_names_them() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.make_aes("k");
    let document = network.write("document", b"a document");
    let out = network.file("out").display().to_string();
    network.dev("kill", "agent-3");
    agent.encrypt("k", &document, &out).ok();
    network.dev("kill", "agent-2");
    let refused = agent.encrypt("k", &document, &out).refused("CKR_DEVICE_ERROR");
    assert!(refused.took < REFUSAL_MAX, "{refused}");
    let why = agent.mayfly(&["why"]).ok().text();
    assert!(why.contains("agent-2") && why.contains("agent-3") && !why.contains("agent-1:"), "{why}");
    let json = agent.mayfly(&["why", "--json"]).ok().json();
    assert_eq!(json["refusals"][0]["rule"], "holders", "{json}");
    network.dev("start", "agent-2");
    agent.encrypt("k", &document, &out).ok();
}

#[test]
fn agents_that_hang_are_like_dead_ones() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.make_aes("k");
    // More than pkcs11-tool's buffer: with less it tries C_Encrypt, then C_EncryptUpdate, and waits twice.
    let document = network.write("document", &[7; 10_000]);
    let out = network.file("out").display().to_string();
    network.dev("pause", "agent-3");
    for _ in 0..3 {
        let ran = agent.encrypt("k", &document, &out).ok();
        assert!(ran.took < REFUSAL_MAX, "one holder that hangs is waited for: {ran}");
    }
    network.dev("pause", "agent-2");
    let refused = agent.encrypt("k", &document, &out).refused("CKR_DEVICE_ERROR");
    assert!(refused.took < REFUSAL_MAX, "{refused}");
    network.dev("resume", "agent-2");
    network.dev("resume", "agent-3");
    agent.encrypt("k", &document, &out).ok();
}

#[test]
fn keys_work_on_while_the_gateway_is_down() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.make_aes("k");
    let document = network.write("document", b"a document");
    let out = network.file("out").display().to_string();
    network.dev("kill", "ledger-1");
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        agent.encrypt("k", &document, &out).ok();
        sleep(Duration::from_millis(200));
    }
    // What needs the ledger says so.
    let made = agent.mayfly(&["key", "create", "another", "--type", "aes:256"]);
    assert!(!made.is_ok() && made.all().to_lowercase().contains("ledger"), "{made}");
    network.dev("start", "ledger-1");
    agent.wait_status("the agent does not come back to the ledger", |status| status["ledger"]["connected"] == true);
    agent.mayfly(&["key", "create", "later", "--type", "aes:256", "--id", &id_of("later")]).ok();
    // The other agents come back to the ledger in their own time, and know nothing of the key before.
    let deadline = Instant::now() + Duration::from_secs(20);
    while !network.agent(2).mayfly(&["key", "show", "later"]).is_ok() {
        assert!(Instant::now() < deadline, "agent-2 does not come back to the ledger");
        sleep(Duration::from_millis(20));
    }
    network.agent(2).encrypt("later", &document, &out).ok();
}

#[test]
fn every_process_may_crash_and_come_back() {
    let network = Network::three();
    network.agent(1).make_aes("k");
    let document = network.write("document", b"a document");
    let (sealed, opened) = (network.file("sealed").display().to_string(), network.file("opened").display().to_string());
    network.agent(1).encrypt("k", &document, &sealed).ok();
    for name in ["ledger-1", "agent-1", "agent-2", "agent-3"] {
        network.dev("kill", name);
    }
    for name in ["ledger-1", "agent-3"] {
        network.dev_start_only(name);
    }
    network.dev("start", "agent-1");
    network.agent(1).decrypt("k", &sealed, &opened).ok();
    assert_eq!(std::fs::read(&opened).unwrap(), b"a document");
}

#[test]
fn a_crash_while_a_key_is_made_leaves_no_half_key() {
    let network = Network::three();
    let document = network.write("document", b"a document");
    let out = network.file("out").display().to_string();
    for (round, millis) in [0_u64, 10, 20, 35, 60, 100].into_iter().enumerate() {
        let label = format!("crash-{round}");
        let agent = network.agent(1);
        let pid = network.pid("agent-1");
        let mut keygen = start_keygen(&agent, &label);
        sleep(Duration::from_millis(30 + millis));
        let killed = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
        let _ = keygen.wait();
        wait_until_ended(&pid);
        network.dev("start", "agent-1");
    }
    let listed = network.agent(2).mayfly(&["key", "list", "--json"]).ok().json();
    for key in listed.as_array().unwrap() {
        let label = key["name"].as_str().unwrap();
        assert_eq!(key["shards"].as_array().unwrap().len(), 3, "{key}");
        for number in [1, 3] {
            network.agent(number).encrypt(label, &document, &out).ok();
        }
    }
    // And the network makes keys as before.
    network.agent(1).make_aes("after");
    network.agent(1).encrypt("after", &document, &out).ok();
}

#[test]
fn after_the_deadline_no_orphan_shard_is_left() {
    let network = Network::three();
    // Keys of agent-1 have little time, so that the test need not wait long.
    let config = network.dir().join("agent-1/agent.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("[danger]\n", "[danger]\naccept_deadline_ms = 2000\n")).unwrap();
    let pending = |number: u8| {
        let status = network.agent(number).mayfly(&["status", "--json"]).ok().json();
        status["holdings"]["pending_shards"].as_u64().unwrap()
    };
    network.dev("kill", "agent-1");
    network.dev("start", "agent-1");
    // Holders accept their shards without the gateway; the key's record does not get through, and its maker dies.
    network.dev("pause", "ledger-1");
    let mut keygen = start_keygen(&network.agent(1), "orphan");
    let began = Instant::now();
    while pending(2) + pending(3) < 2 {
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "the holders have accepted no shards: the test shows nothing"
        );
    }
    network.dev("kill", "agent-1");
    let _ = keygen.wait();
    // What the gateway has in its socket is past the deadline when it reads it.
    sleep(Duration::from_millis(2500));
    network.dev("resume", "ledger-1");
    assert_eq!(pending(2) + pending(3), 2, "given up too early");
    let deadline = Instant::now() + Duration::from_secs(45);
    while pending(2) + pending(3) > 0 {
        assert!(Instant::now() < deadline, "orphans: {} and {}", pending(2), pending(3));
        sleep(Duration::from_millis(250));
    }
}

#[test]
fn a_banned_device_loses_its_rights_in_the_middle_of_a_connection() {
    const SCRIPT: &str = r#"
import os, sys, time, pkcs11
from pkcs11 import KeyType, ObjectClass, Attribute
token = pkcs11.lib(os.environ["MAYFLY_MODULE"]).get_token(token_label=os.environ["MAYFLY_TOKEN_LABEL"])
with token.open(user_pin=os.environ["MAYFLY_USER_PIN"]) as session:
    key = next(iter(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY, Attribute.LABEL: "k"})))
    end = time.time() + 20
    while time.time() < end:
        try:
            key.encrypt(b"data", mechanism_param=b"0" * 16)
        except pkcs11.exceptions.PKCS11Error as error:
            print("refused:", repr(error))
            sys.exit(3)
        print("worked", flush=True)
        time.sleep(0.02)
sys.exit(4)
"#;
    let network = Network::three();
    network.agent(1).make_aes("k");
    let script = network.write("use.py", SCRIPT.as_bytes());
    let agent = network.agent(3);
    let names = ["MAYFLY_MODULE", "MAYFLY_SOCKET", "MAYFLY_TOKEN_LABEL", "MAYFLY_USER_PIN"];
    let application = Command::new(python())
        .arg(script)
        .envs(names.map(|name| (name, agent.get(name))))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    sleep(Duration::from_secs(1));
    network.mayfly(&["ban", "agent-3", "--reason", "stolen"]).ok();
    let banned = Instant::now();
    let output = application.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "a banned device still uses the key: {text}");
    assert!(banned.elapsed() < Duration::from_secs(3), "the ban took {:?}", banned.elapsed());
    assert!(text.contains("worked"), "{text}");
    // The others go on without it, and it is no longer asked.
    let document = network.write("document", b"a document");
    let out = network.file("out").display().to_string();
    for number in [1, 2] {
        network.agent(number).encrypt("k", &document, &out).ok();
    }
    let devices = network.mayfly(&["device", "list", "--json"]).ok().json();
    let device = devices.as_array().unwrap().iter().find(|d| d["name"] == "agent-3").unwrap();
    assert_eq!(device["membership"], "banned");
    // It is told why nobody answers it, and others why it does not.
    let third = network.agent(3);
    let is_told = |status: &Value| status["ledger"]["last_error"].as_str().is_some_and(|text| text.contains("banned"));
    third.wait_status("the banned device does not hear of it", is_told);
    third.encrypt("k", &document, &out).refused("CKR_DEVICE_ERROR");
    let why = third.mayfly(&["why"]).ok().text();
    assert!(why.contains("turns this device away"), "{why}");
    network.dev("kill", "agent-2");
    network.agent(1).encrypt("k", &document, &out).refused("CKR_DEVICE_ERROR");
    let why = network.agent(1).mayfly(&["why"]).ok().text();
    assert!(why.contains("agent-3: it is banned"), "{why}");
}

#[test]
fn a_flipped_bit_in_a_stored_shard_is_found_and_its_holder_named() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.make_aes("k");
    let document = network.write("document", b"a document");
    let out = network.file("out").display().to_string();
    // A key can be used before its last holder has seen its record: until then the shard waits in another table.
    let third = network.agent(3);
    third.wait_status("agent-3 does not get its shard", |status| status["holdings"]["shards"] == 1);
    network.dev("kill", "agent-3");
    let flipped = flip_shards(&network.dir().join("agent-3/data/shards.redb"));
    assert_eq!(flipped, 1, "the stored shard was not found");
    network.dev("start", "agent-3");
    // Two good shards are enough.
    for _ in 0..5 {
        agent.encrypt("k", &document, &out).ok();
    }
    // The damaged one is needed: it is not used, and its holder is named.
    network.dev("kill", "agent-2");
    agent.encrypt("k", &document, &out).refused("CKR_DEVICE_ERROR");
    let why = agent.mayfly(&["why"]).ok().text();
    assert!(why.contains("agent-3"), "{why}");
    // Nothing else of that agent is lost.
    assert!(network.agent(3).mayfly(&["status"]).is_ok());
    network.dev("start", "agent-2");
    agent.encrypt("k", &document, &out).ok();
}

/// Waits until a process that was killed is gone, or a zombie without threads.
fn wait_until_ended(pid: &impl std::fmt::Display) {
    let runs = || {
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        let fields: Vec<&str> = rest.split(' ').collect(); // from the third on: state; the twentieth: threads
        (fields[0], fields[17]) != ("Z", "1")
    };
    let deadline = Instant::now() + Duration::from_secs(10);
    while runs() {
        assert!(Instant::now() < deadline, "process {pid} was killed and still runs");
        sleep(Duration::from_millis(2));
    }
}

/// Starts to make an AES key, by an application that may be left alone with it.
fn start_keygen(agent: &Agent<'_>, label: &str) -> Child {
    Command::new("pkcs11-tool")
        .args(["--module", agent.get("MAYFLY_MODULE"), "--token-label", agent.get("MAYFLY_TOKEN_LABEL"), "--login"])
        .args(["--pin", agent.get("MAYFLY_USER_PIN"), "--keygen", "--key-type", "AES:32", "--label", label])
        .args(["--id", &id_of(label)])
        .env("MAYFLY_SOCKET", agent.get("MAYFLY_SOCKET"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Flips one bit in each sealed shard of a store (`docs/formats/shard-store.md`); how many.
fn flip_shards(store: &std::path::Path) -> usize {
    const ACTIVE: redb::TableDefinition<'_, &[u8; 32], &[u8]> = redb::TableDefinition::new("active");
    let database = redb::Database::open(store).unwrap();
    let change = database.begin_write().unwrap();
    let mut flipped = 0;
    {
        let mut table = change.open_table(ACTIVE).unwrap();
        let rows = table.iter().unwrap().map(Result::unwrap);
        let rows: Vec<_> = rows.map(|(id, record)| (*id.value(), record.value().to_vec())).collect();
        for (id, mut record) in rows {
            *record.last_mut().unwrap() ^= 0x10;
            table.insert(&id, &record[..]).unwrap();
            flipped += 1;
        }
    }
    change.commit().unwrap();
    flipped
}
