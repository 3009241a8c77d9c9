//! What administrators change: bans and the quorum of witnesses, splits that follow, tokens and their first PINs.

use mayfly_tests::{Network, Options};
use serde_json::Value;

fn warnings(status: &Value) -> String {
    status["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect::<Vec<_>>().join("\n")
}

#[test]
fn bans_do_not_stop_the_network_by_accident() {
    let network = Network::up(&Options { agents: 4, ..Options::default() });
    let agent = network.agent(1);
    agent.make_aes("k");
    let document = network.write("document", b"a document");
    let out = network.file("out").display().to_string();

    let banned = network.mayfly(&["ban", "agent-4", "--reason", "stolen"]).ok().text();
    assert!(banned.contains("  k in token 'mayfly'"), "keys are named: {banned}");
    let take_role = ["device", "role", "agent-4", "--set"];
    assert!(banned.contains("next:") && banned.contains(&format!("`mayfly {}", take_role.join(" "))), "{banned}");
    agent.wait_status("no warning of a quorum without a spare", |status| {
        warnings(status).contains("no witness may fail: 3 of 4 must sign, and 3 can")
    });
    network.mayfly(&["ban", "agent-4"]).refused("banned already");

    let refused = network.mayfly(&["ban", "agent-3", "--json"]);
    assert!(!refused.is_ok() && refused.stdout.is_empty(), "{refused}");
    let error: Value = serde_json::from_slice(&refused.stderr).unwrap();
    assert!(error["error"].as_str().unwrap().contains("2 of 4 witnesses are left, and 3 must sign"), "{error}");
    assert!(error["next"].as_str().unwrap().contains(&format!("`mayfly {}", take_role.join(" "))), "{error}");
    let admin = agent.get("MAYFLY_ADMIN").to_owned();
    let devices = network.mayfly(&["device", "list", "--admin", &admin, "--json", "--socket", "/nowhere"]).ok().json();
    let named = |name: &str| devices.as_array().unwrap().iter().find(|d| d["name"] == name).unwrap().clone();
    assert_eq!(named("agent-3")["membership"], "member", "a ban that was refused: {devices}");
    assert_eq!(named("agent-4")["membership"], "banned", "{devices}");

    // As the command said.
    network.mayfly(&take_role).ok();
    network.mayfly(&["ban", "agent-3"]).ok();
    network.mayfly(&["device", "role", "agent-3", "--set"]).ok();
    for number in [1, 2] {
        network.agent(number).encrypt("k", &document, &out).ok();
    }
    // Splits are as they were asked for, or refused; by default the loss of one holder is never final.
    let create = |words: &[&str]| agent.mayfly(&[&["key", "create", "new", "--type", "aes:256"], words].concat());
    create(&["--split", "2/3"]).refused("a key of 3 shards needs as many holders, and 2 are there");
    create(&[]).refused("--split 2/2");
    assert!(create(&["--split", "2/2"]).ok().text().contains("any 2 of 2"));

    network.mayfly(&["ban", "agent-2"]).refused("appoint another witness");
    let last = network.mayfly(&["ban", "agent-2", "--even-without-quorum", "--json"]).ok().json();
    assert_eq!(last["quorum"], false, "{last}");
    agent.wait_status("the ban is not seen", |status| warnings(status).contains("1 of 2 witnesses are not banned"));
}

#[test]
fn a_token_without_pins_gets_them_with_what_is_in_it() {
    let network = Network::three();
    let agent = network.agent(1);
    let file = |name: &str, pin: &str| network.write(name, pin.as_bytes());
    agent.mayfly(&["token", "create", "three", "--without-pins"]).ok();
    agent.mayfly(&["key", "create", "k", "--type", "aes:256", "--token", "three"]).ok();
    let login = ["--token-label", "three", "--login", "--pin", "31415926", "--list-objects"];
    agent.pkcs11_tool_bare(&login).refused("CKR_TOKEN_NOT_RECOGNIZED");
    agent.mayfly(&["token", "pin", "three", "--change", "user"]).refused("`mayfly token pin three`");
    let (so, user) = (file("so", "12345678"), file("user", "31415926"));
    agent
        .mayfly(&["token", "pin", "three", "--so-pin-file", &so, "--new-pin-file", &file("short", "1")])
        .refused("4 to");
    agent.mayfly(&["token", "pin", "three", "--so-pin-file", &so, "--new-pin-file", &user]).ok();
    let listed = agent.pkcs11_tool_bare(&login).ok().text();
    assert!(listed.contains("label:      k"), "the key is there still: {listed}");
}

#[test]
fn a_token_is_not_made_when_its_pins_cannot_be_set() {
    let network = Network::three();
    let agent = network.agent(1);
    let (so, user) = (network.write("so", b"12345678"), network.write("user", b"31415926"));
    let short = network.write("short", b"1");
    let create = |label: &str, words: &[&str]| agent.mayfly(&[&["token", "create", label], words].concat());
    let pins = ["--so-pin-file", &so, "--user-pin-file", &user];
    create("a", &["--so-pin-file", &so, "--user-pin-file", &short]).refused("user PIN has 1 bytes");
    create("b", &[&pins[..], &["--creators", "agent-2"]].concat()).refused("device 'agent-1' is none of those");
    create("c", &[&pins[..], &["--socket", "/nowhere/agent.sock"]].concat()).refused("/nowhere/agent.sock");
    create(&"d".repeat(33), &pins).refused("1 to 32 bytes");
    let tokens = agent.mayfly(&["token", "list", "--json"]).ok().json();
    assert_eq!(tokens.as_array().unwrap().len(), 1, "a token was left without PINs: {tokens}");
    create("e", &pins).ok();
}
