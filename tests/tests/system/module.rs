//! The PKCS#11 module under `pkcs11-tool`.

use mayfly_tests::{Network, id_of};
use std::time::{Duration, Instant};

/// A file of 1 MiB in which no block repeats.
fn mebibyte() -> Vec<u8> {
    (0..1u32 << 18).flat_map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()).collect()
}

#[test]
fn lists_slots_mechanisms_and_objects_and_gives_random_numbers() {
    let network = Network::three();
    for number in 1..=3 {
        let agent = network.agent(number);
        let slots = agent.pkcs11_tool_bare(&["--list-slots"]).ok().text();
        assert!(slots.contains(agent.get("MAYFLY_TOKEN_LABEL")), "agent-{number} does not show the token: {slots}");
    }
    let agent = network.agent(1);
    let mechanisms = agent.pkcs11_tool_bare(&["--list-mechanisms"]).ok().text();
    for name in [
        "AES-GCM",
        "AES-CBC-PAD",
        "AES-CBC,",
        "AES-KEY-GEN",
        "SHA256-HMAC",
        "ECDSA,",
        "ECDSA-SHA256",
        "ECDSA-KEY-PAIR-GEN",
    ] {
        assert!(mechanisms.contains(name), "{name} is missing: {mechanisms}");
    }
    agent.make_aes("listed");
    // A key that is made on one host is seen on all.
    for number in 1..=3 {
        assert!(
            network.agent(number).pkcs11_tool(&["--list-objects"]).ok().text().contains("listed"),
            "agent-{number}"
        );
    }
    let (one, two) = (network.file("one"), network.file("two"));
    for file in [&one, &two] {
        agent.pkcs11_tool_bare(&["--generate-random", "48", "--output-file", &file.display().to_string()]).ok();
    }
    let (one, two) = (std::fs::read(one).unwrap(), std::fs::read(two).unwrap());
    assert_eq!((one.len(), two.len()), (48, 48));
    assert_ne!(one, two);
}

#[test]
fn a_file_survives_any_one_agent() {
    let network = Network::three();
    let plain = mebibyte();
    let document = network.write("document", &plain);
    let (sealed, opened) = (network.file("sealed").display().to_string(), network.file("opened").display().to_string());
    network.agent(1).make_aes("files");
    network.agent(1).encrypt("files", &document, &sealed).ok();
    let ciphertext = std::fs::read(&sealed).unwrap();
    assert_eq!(ciphertext.len(), plain.len() + 16);
    assert!(!plain.chunks_exact(16).zip(ciphertext.chunks_exact(16)).any(|(p, c)| p == c), "plaintext shows");
    for dead in 1..=3 {
        let name = format!("agent-{dead}");
        network.dev("kill", &name);
        let alive = network.agent(if dead == 1 { 2 } else { 1 });
        alive.decrypt("files", &sealed, &opened).ok();
        assert_eq!(std::fs::read(&opened).unwrap(), plain, "{name} dead");
        alive.encrypt("files", &document, &opened).ok();
        assert_eq!(std::fs::read(&opened).unwrap(), ciphertext, "{name} dead: another ciphertext under the same IV");
        network.dev("start", &name);
    }
}

#[test]
fn key_pairs_sign_and_verify() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.pkcs11_tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "pair", "--id", "0a0b"]).ok();
    let (message, other) = (network.write("message", b"a message"), network.write("other", b"a massage"));
    let path = |name: &str| network.file(name).display().to_string();
    let (signature, der, pem) = (path("signature"), path("public.der"), path("public.pem"));
    agent.pkcs11_tool(&["--read-object", "--type", "pubkey", "--id", "0a0b", "-o", &der]).ok();
    agent.openssl(&["pkey", "-pubin", "-inform", "DER", "-in", &der, "-out", &pem]).ok();

    // Hashed by the module; the signature is openssl's to judge.
    agent
        .pkcs11_tool(&[
            "--sign",
            "--id",
            "0a0b",
            "-m",
            "ECDSA-SHA256",
            "-f",
            "openssl",
            "-i",
            &message,
            "-o",
            &signature,
        ])
        .ok();
    agent.openssl(&["dgst", "-sha256", "-verify", &pem, "-signature", &signature, &message]).ok();
    assert!(!agent.openssl(&["dgst", "-sha256", "-verify", &pem, "-signature", &signature, &other]).is_ok());

    // Hashed by openssl, signed raw.
    let digest = path("digest");
    agent.openssl(&["dgst", "-sha256", "-binary", "-out", &digest, &message]).ok();
    agent
        .pkcs11_tool(&["--sign", "--id", "0a0b", "-m", "ECDSA", "-f", "openssl", "-i", &digest, "-o", &signature])
        .ok();
    agent.openssl(&["dgst", "-sha256", "-verify", &pem, "-signature", &signature, &message]).ok();

    // And the module verifies what it signed, on another host too.
    agent.pkcs11_tool(&["--sign", "--id", "0a0b", "-m", "ECDSA-SHA256", "-i", &message, "-o", &signature]).ok();
    for number in [1, 2] {
        let words = ["--verify", "--id", "0a0b", "-m", "ECDSA-SHA256", "--signature-file", &signature, "-i"];
        let verify = |file: &str| network.agent(number).pkcs11_tool(&[&words[..], &[file]].concat());
        assert!(verify(&message).ok().all().contains("is valid"));
        assert!(verify(&other).all().contains("Invalid signature"), "agent-{number} accepted another message");
    }
}

#[test]
fn imported_keys_are_the_keys_that_were_given() {
    let network = Network::three();
    let agent = network.agent(1);
    let key: Vec<u8> = (1..=32).collect();
    let document = network.write("document", &mebibyte()[..100_000]);
    let path = |name: &str| network.file(name).display().to_string();
    agent.import_aes("known", &key);
    let (ours, theirs) = (path("ours"), path("theirs"));
    agent.encrypt("known", &document, &ours).ok();
    let (hex, iv) = (hex::encode(&key), "000102030405060708090a0b0c0d0e0f");
    agent.openssl(&["enc", "-aes-256-cbc", "-K", &hex, "-iv", iv, "-in", &document, "-out", &theirs]).ok();
    assert_eq!(
        std::fs::read(&ours).unwrap(),
        std::fs::read(&theirs).unwrap(),
        "openssl encrypts differently under the same key"
    );
    // And another host uses it.
    network.agent(3).decrypt("known", &theirs, &ours).ok();
    assert_eq!(std::fs::read(&ours).unwrap(), std::fs::read(&document).unwrap());
    // It does not come out again.
    let read = agent.pkcs11_tool(&["--read-object", "--type", "secrkey", "--id", &id_of("known"), "-o", &path("out")]);
    assert!(
        !read.is_ok() || std::fs::read(path("out")).map_or(true, |out| out != key),
        "a sensitive key was read back: {read}"
    );
}

#[test]
fn macs_are_macs() {
    let network = Network::three();
    let agent = network.agent(1);
    let key: Vec<u8> = (101..=132).collect();
    let message = network.write("message", b"authentic");
    let mac = network.file("mac").display().to_string();
    agent.import_mac("mac", &key);
    agent.pkcs11_tool(&["--sign", "--id", &id_of("mac"), "-m", "SHA256-HMAC", "-i", &message, "-o", &mac]).ok();
    let option = format!("hexkey:{}", hex::encode(&key));
    let theirs =
        agent.openssl(&["dgst", "-sha256", "-mac", "HMAC", "-macopt", &option, "-binary", &message]).ok().stdout;
    assert_eq!(std::fs::read(&mac).unwrap(), theirs);
}

#[test]
fn certificates_and_keys_are_written_read_and_deleted() {
    let network = Network::three();
    let agent = network.agent(1);
    let path = |name: &str| network.file(name).display().to_string();
    let (key, pem, der, back) = (path("key.pem"), path("cert.pem"), path("cert.der"), path("back.der"));
    let words = [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        "/CN=mayfly",
        "-days",
        "2",
    ];
    agent.openssl(&[&words[..], &["-keyout", &key, "-out", &pem]].concat()).ok();
    agent.openssl(&["x509", "-in", &pem, "-outform", "DER", "-out", &der]).ok();
    agent.pkcs11_tool(&["--write-object", &der, "--type", "cert", "--label", "cert", "--id", "77"]).ok();
    network.agent(2).pkcs11_tool(&["--read-object", "--type", "cert", "--id", "77", "-o", &back]).ok();
    assert_eq!(std::fs::read(&der).unwrap(), std::fs::read(&back).unwrap());

    agent.make_aes("gone");
    agent.pkcs11_tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "gone-pair", "--id", "78"]).ok();
    for (kind, id) in [("secrkey", id_of("gone").as_str()), ("privkey", "78"), ("pubkey", "78"), ("cert", "77")] {
        agent.pkcs11_tool(&["--delete-object", "--type", kind, "--id", id]).ok();
    }
    for number in 1..=3 {
        let left = network.agent(number).pkcs11_tool(&["--list-objects"]).ok().text();
        assert!(!left.contains("gone") && !left.contains("cert"), "agent-{number} still shows: {left}");
    }
}

#[test]
fn wrong_pins_are_refused_and_throttled() {
    let network = Network::three();
    let agent = network.agent(1);
    let label = agent.get("MAYFLY_TOKEN_LABEL");
    let login =
        |pin: &str| agent.pkcs11_tool_bare(&["--token-label", label, "--login", "--pin", pin, "--list-objects"]);
    login("00000000wrong").refused("CKR_PIN_INCORRECT");
    login(agent.get("MAYFLY_USER_PIN")).ok();
    // Guessing gets slow: ten guesses take longer than one guess ten times, or the PIN is locked.
    let started = Instant::now();
    let locked = (0..10).any(|_| login("00000000wrong").refused("CKR_PIN_").all().contains("CKR_PIN_LOCKED"));
    assert!(locked || started.elapsed() > Duration::from_secs(3), "ten guesses took {:?}", started.elapsed());
    // Nobody else pays: the right PIN works again, at the latest after the wait that the agent names.
    let deadline = Instant::now() + Duration::from_secs(40);
    while !login(agent.get("MAYFLY_USER_PIN")).is_ok() {
        assert!(
            Instant::now() < deadline,
            "the right PIN does not work any more: {}",
            login(agent.get("MAYFLY_USER_PIN"))
        );
        std::thread::sleep(Duration::from_millis(500));
    }
}

#[test]
fn without_an_agent_there_is_a_quiet_empty_slot() {
    let network = Network::three();
    let agent = network.agent(1);
    network.dev("kill", "agent-1");
    let listed = agent.pkcs11_tool_bare(&["--list-slots"]).ok();
    assert!(listed.took < Duration::from_secs(2), "{listed}");
    assert!(listed.text().contains("(empty)") && listed.stderr.is_empty(), "{listed}");
    assert!(!agent.pkcs11_tool(&["--list-objects"]).is_ok());
    network.dev("start", "agent-1");
    agent.pkcs11_tool(&["--list-objects"]).ok();
}

#[test]
fn an_application_initialises_a_token_of_its_own() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.mayfly(&["token", "create", "second", "--without-pins"]).ok();
    agent.wait_status("the token is not seen", |status| {
        status["tokens"].as_array().is_some_and(|t| t.contains(&"second".into()))
    });
    let slots = agent.mayfly(&["token", "list", "--json"]).ok().json();
    let second = slots.as_array().unwrap().iter().find(|token| token["label"] == "second").unwrap().clone();
    let slot = second["slot"].to_string();
    agent.pkcs11_tool_bare(&["--init-token", "--slot", &slot, "--so-pin", "87654321", "--label", "second"]).ok();
    agent
        .pkcs11_tool_bare(&[
            "--init-pin",
            "--slot",
            &slot,
            "--login",
            "--login-type",
            "so",
            "--so-pin",
            "87654321",
            "--new-pin",
            "4711",
        ])
        .ok();
    agent
        .pkcs11_tool_bare(&[
            "--slot",
            &slot,
            "--login",
            "--pin",
            "4711",
            "--keygen",
            "--key-type",
            "AES:16",
            "--label",
            "theirs",
        ])
        .ok();
    assert!(!agent.pkcs11_tool(&["--list-objects"]).ok().text().contains("theirs"), "tokens show each other's keys");
    // On another host it is the same token, with the same PIN and the same key.
    let shown =
        network.agent(2).pkcs11_tool_bare(&["--slot", &slot, "--login", "--pin", "4711", "--list-objects"]).ok();
    assert!(shown.text().contains("theirs"), "{shown}");
}
