//! Attestation from both sides: the plugin on a software TPM that its "maker" certified, and the verifier's crate.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

mod common;

use common::proxy::Proxy;
use common::{Swtpm, host_config};
use mayfly_attest::certificate::{self, CertificateError, EndorsementKey, Trust};
use mayfly_attest::judge::{self, CHALLENGE_MS_MAX, Pending, Refused, Verdict};
use mayfly_evidence::exchange::{
    Challenge, DeviceKeys, Proof, QuoteRequest, STEP_COUNTER, STEP_KEYS, STEP_PROVE, STEP_QUOTE, Signed,
};
use mayfly_evidence::object::Point;
use mayfly_evidence::pcr::{self, Selection};
use mayfly_plugin_api::{PluginError, Status, Tier, VaultPlugin};
use std::path::{Path, PathBuf};
use std::process::Command;

const CONTEXT: [u8; 32] = [0xc0; 32];

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../softhsm-setup").join(name)
}

/// A TPM with endorsement certificates of the authority in `ca`.
fn certified(ca: Option<&Path>) -> Swtpm {
    Swtpm::prepared(|dir| {
        std::fs::remove_dir(dir.join("state")).unwrap();
        let mut command = Command::new(script("swtpm-create"));
        command.arg(dir);
        if let Some(ca) = ca {
            command.arg(ca);
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    })
}

fn trust_of(ca: &Path) -> Trust {
    let read = |name: &str| std::fs::read(ca.join(name)).unwrap();
    Trust::from_pem(&read("root.pem"), &read("issuer.pem")).unwrap()
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64
}

struct Device {
    chip: Swtpm,
    vault: VaultPlugin,
    ca: PathBuf,
}

impl Device {
    fn start() -> Device {
        let chip = certified(None);
        let ca = chip.dir.path().join("ca");
        Device::on(chip, ca)
    }

    fn on(chip: Swtpm, ca: PathBuf) -> Device {
        let vault = chip.plugin("data");
        vault.identity_public(None, true).unwrap();
        vault.stage(1, Tier::Boot).unwrap();
        vault.commit(1).unwrap();
        Device { chip, vault, ca }
    }

    fn keys(&self) -> DeviceKeys {
        DeviceKeys::decode(&self.vault.attest(STEP_KEYS, &[]).unwrap()).unwrap()
    }

    fn challenge(&self, keys: &DeviceKeys, pcrs: Selection) -> (Pending, Challenge) {
        judge::challenge(&trust_of(&self.ca), keys, CONTEXT, pcrs, now(), true).unwrap()
    }

    fn prove(&self, challenge: &Challenge) -> Result<Proof, PluginError> {
        self.vault.attest(STEP_PROVE, &challenge.encode()).map(|proof| Proof::decode(&proof).unwrap())
    }

    fn enrol(&self) -> Verdict {
        let (pending, challenge) = self.challenge(&self.keys(), Selection::default());
        pending.judge(&self.prove(&challenge).unwrap(), now()).unwrap()
    }
}

fn status<T: std::fmt::Debug>(result: Result<T, PluginError>) -> Status {
    let error = result.unwrap_err();
    error.status().unwrap_or_else(|| panic!("no status: {error}"))
}

#[test]
fn a_genuine_device_is_believed() {
    let device = Device::start();
    let keys = device.keys();
    let indices: Vec<u32> = keys.certificates.iter().map(|(index, _)| *index).collect();
    assert_eq!(indices, [0x01c0_0016, 0x01c0_0002], "P-384 first, then RSA");
    let identity = device.vault.identity_public(None, false).unwrap().public;
    assert_eq!(keys.identity.compressed().to_vec(), identity);
    let pcrs = Selection::of(&[0, 7, 16]).unwrap();

    // once with the elliptic curve, once with RSA alone
    for keys in [keys.clone(), DeviceKeys { certificates: keys.certificates[1..].to_vec(), ..keys.clone() }] {
        let (pending, challenge) = device.challenge(&keys, pcrs);
        let proof = device.prove(&challenge).unwrap();
        let verdict = pending.judge(&proof, now()).unwrap();
        assert_eq!(verdict.generation, 1);
        assert_eq!(verdict.enrolled.identity, keys.identity);
        assert!(verdict.endorsed.software && verdict.endorsed.maker == "id:00001014");
        let rsa = matches!(verdict.endorsed.key, EndorsementKey::Rsa2048(_));
        assert_eq!(rsa, keys.certificates.len() == 1);
        assert_eq!(verdict.quote.unwrap().digest, pcr::digest(&[[0; 32]; 3]));
        // anybody else, once the secret is told
        let again = judge::check_proof(&verdict.enrolled, &verdict.secret, &CONTEXT, pcrs, &proof).unwrap();
        assert_eq!(again, (1, verdict.quote));
        // and not with another secret, context or selection
        for (secret, context, pcrs) in [([0; 32], CONTEXT, pcrs), (verdict.secret, [0; 32], pcrs)] {
            let refused = judge::check_proof(&verdict.enrolled, &secret, &context, pcrs, &proof);
            assert!(matches!(refused, Err(Refused::Binding(_))));
        }
        let others = Selection::of(&[7]).unwrap();
        assert!(judge::check_proof(&verdict.enrolled, &verdict.secret, &CONTEXT, others, &proof).is_err());
    }
    assert_eq!(device.chip.occupied(), 0, "something stayed in the chip");
}

#[test]
fn the_counter_and_the_registers_are_certified_later() {
    let device = Device::start();
    let enrolled = device.enrol().enrolled;
    let counter = |context: [u8; 32]| Signed::decode(&device.vault.attest(STEP_COUNTER, &context).unwrap()).unwrap();
    let first = counter(CONTEXT);
    assert_eq!(judge::check_counter(&enrolled, &CONTEXT, &first).unwrap(), 1);
    assert!(matches!(judge::check_counter(&enrolled, &[1; 32], &first), Err(Refused::Binding(_))), "replayed");
    device.vault.stage(2, Tier::Boot).unwrap();
    device.vault.commit(2).unwrap();
    assert_eq!(judge::check_counter(&enrolled, &[2; 32], &counter([2; 32])).unwrap(), 2, "the revocation is proven");

    let pcrs = Selection::of(&[16]).unwrap();
    let quote = |context: [u8; 32]| {
        let request = QuoteRequest { context, pcrs }.encode();
        Signed::decode(&device.vault.attest(STEP_QUOTE, &request).unwrap()).unwrap()
    };
    let before = judge::check_quote(&enrolled, &CONTEXT, pcrs, &quote(CONTEXT)).unwrap();
    assert_eq!(before.digest, pcr::digest(&[[0; 32]]));
    let one = format!("16:sha256={}", "11".repeat(32));
    device.chip.tool("pcrextend", &[&one]).unwrap();
    let after = judge::check_quote(&enrolled, &[1; 32], pcrs, &quote([1; 32])).unwrap();
    assert_ne!(after.digest, before.digest);
    assert_eq!(after.reset_count, before.reset_count);
    // one kind of statement cannot stand in for another, nor another selection
    assert!(judge::check_counter(&enrolled, &CONTEXT, &quote(CONTEXT)).is_err());
    assert!(judge::check_quote(&enrolled, &CONTEXT, pcrs, &counter(CONTEXT)).is_err());
    let others = Selection::of(&[7]).unwrap();
    assert!(matches!(judge::check_quote(&enrolled, &CONTEXT, others, &quote(CONTEXT)), Err(Refused::Claim(_))));
}

#[test]
fn keys_survive_a_restart_and_the_counter_of_starts_tells() {
    let mut device = Device::start();
    let enrolled = device.enrol().enrolled;
    let pcrs = Selection::of(&[16]).unwrap();
    let quote = |device: &Device| {
        let bytes = device.vault.attest(STEP_QUOTE, &QuoteRequest { context: CONTEXT, pcrs }.encode()).unwrap();
        judge::check_quote(&enrolled, &CONTEXT, pcrs, &Signed::decode(&bytes).unwrap()).unwrap()
    };
    let before = quote(&device);
    device.chip.reset();
    let after = quote(&device);
    assert_eq!(after.reset_count.wrapping_sub(before.reset_count), 1);
    assert_eq!(device.enrol().enrolled, enrolled);
}

#[test]
fn certificates_that_are_not_taken() {
    let device = Device::start();
    let keys = device.keys();
    let trust = trust_of(&device.ca);
    let read = |name: &str| std::fs::read(device.ca.join(name)).unwrap();
    for (_, der) in &keys.certificates {
        certificate::verify(der, &trust, now(), true).unwrap();
        // the issuer alone may be believed
        let issuer = Trust::from_pem(&read("issuer.pem"), &[]).unwrap();
        certificate::verify(der, &issuer, now(), true).unwrap();

        let software = certificate::verify(der, &trust, now(), false).unwrap_err();
        assert!(matches!(software, CertificateError::Software { .. }), "{software}");
        let no_issuer = Trust::from_pem(&read("root.pem"), &[]).unwrap();
        let other = certified(None);
        let foreign = trust_of(&other.dir.path().join("ca"));
        for (what, trust, now) in
            [("no intermediate", &no_issuer, now()), ("foreign root", &foreign, now()), ("not yet valid", &trust, 0)]
        {
            let refused = certificate::verify(der, trust, now, true).unwrap_err();
            assert!(matches!(refused, CertificateError::Path(_)), "{what}: {refused}");
        }
        let mut flipped = der.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 1;
        assert!(certificate::verify(&flipped, &trust, now(), true).is_err(), "a bit flipped");
        let long = [der.as_slice(), &[0]].concat();
        assert!(certificate::verify(&long, &trust, now(), true).is_err(), "bytes after the end");
    }
    assert!(Trust::from_pem(b"", b"").is_err());
    assert!(Trust::from_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"").is_err());
}

/// Other certificates of the same authority: none is one of an endorsement key.
#[test]
fn certificates_for_other_purposes() {
    let device = Device::start();
    let trust = trust_of(&device.ca);
    let dir = device.chip.dir.path();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(&["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "key.pem"]);
    openssl(&["req", "-new", "-key", "key.pem", "-subj", "/CN=x", "-out", "request.pem"]);
    for (name, extension) in [
        ("nothing", "basicConstraints=CA:FALSE"),
        ("platform", "extendedKeyUsage=2.23.133.8.2"),
        ("server", "extendedKeyUsage=serverAuth"),
        ("authority", "basicConstraints=critical,CA:TRUE"),
    ] {
        std::fs::write(dir.join("ext"), format!("{extension}\n")).unwrap();
        let issue = ["x509", "-req", "-in", "request.pem", "-CA", "ca/issuer.pem", "-CAkey", "ca/signing-key.pem"];
        let rest = ["-set_serial", "99", "-days", "2", "-extfile", "ext", "-outform", "DER", "-out", "leaf.der"];
        openssl(&[&issue[..], &rest[..]].concat());
        let der = std::fs::read(dir.join("leaf.der")).unwrap();
        let refused = certificate::verify(&der, &trust, now() + 1000, true).unwrap_err();
        assert!(matches!(refused, CertificateError::Path(_)), "{name}: {refused}");
    }
    // the purpose is right, but no TPM is named
    std::fs::write(dir.join("ext"), "extendedKeyUsage=2.23.133.8.1\nsubjectAltName=DNS:x\n").unwrap();
    let issue = ["x509", "-req", "-in", "request.pem", "-CA", "ca/issuer.pem", "-CAkey", "ca/signing-key.pem"];
    let rest = ["-set_serial", "99", "-days", "2", "-extfile", "ext", "-outform", "DER", "-out", "leaf.der"];
    openssl(&[&issue[..], &rest[..]].concat());
    let der = std::fs::read(dir.join("leaf.der")).unwrap();
    let refused = certificate::verify(&der, &trust, now() + 1000, true).unwrap_err();
    assert!(matches!(refused, CertificateError::NoMaker), "{refused}");
}

#[test]
fn challenges_open_in_one_chip_for_one_key() {
    let device = Device::start();
    // another TPM of the same maker
    let other = Device::on(certified(Some(&device.ca)), device.ca.clone());
    let (keys, other_keys) = (device.keys(), other.keys());
    let none = Selection::default();
    let (_, challenge) = device.challenge(&keys, none);
    assert_eq!(status(other.prove(&challenge)), Status::Invalid, "for another chip");

    // a chip that shows its own certificate with another one's attestation key
    let liar = DeviceKeys { certificates: keys.certificates.clone(), ..other_keys.clone() };
    let (_, for_liar) = device.challenge(&liar, none);
    assert_eq!(status(device.prove(&for_liar)), Status::Invalid, "for another attestation key");
    assert_eq!(status(other.prove(&for_liar)), Status::Invalid);

    for (what, change) in [
        ("blob", (|challenge: &mut Challenge| challenge.credential[10] ^= 1) as fn(&mut Challenge)),
        ("seed", |challenge| challenge.seed[10] ^= 1),
        ("certificate", |challenge| challenge.certificate = 0x01c0_0002),
    ] {
        let (_, mut challenge) = device.challenge(&keys, none);
        change(&mut challenge);
        assert_eq!(status(device.prove(&challenge)), Status::Invalid, "{what} changed");
    }
    for input in [&[][..], b"MTC2", &challenge.encode()[1..]] {
        assert_eq!(status(device.vault.attest(STEP_PROVE, input)), Status::Invalid);
    }
    assert_eq!(status(device.vault.attest(99, &[])), Status::Unsupported);
    // the chip works on
    device.enrol();
    assert_eq!(device.chip.occupied(), 0);
    assert_eq!(other.chip.occupied(), 0);
}

#[test]
fn answers_that_are_not_believed() {
    let device = Device::start();
    let keys = device.keys();
    let none = Selection::default();
    let prove = || {
        let (pending, challenge) = device.challenge(&keys, none);
        (pending, device.prove(&challenge).unwrap())
    };
    let (_, old) = prove();
    let (pending, _) = prove();
    assert!(matches!(pending.judge(&old, now()), Err(Refused::Binding(_))), "an answer to another challenge");
    let (pending, proof) = prove();
    assert!(matches!(pending.judge(&proof, now() + CHALLENGE_MS_MAX + 1000), Err(Refused::Late)));
    let (pending, proof) = prove();
    assert!(matches!(pending.judge(&proof, 0), Err(Refused::Late)), "from before the challenge");

    type Change = fn(&mut Proof, &Device);
    let changes: [(&str, Change); 7] = [
        ("a byte of a statement", |proof, _| proof.identity.statement[60] ^= 1),
        ("a byte of a signature", |proof, _| proof.counter.signature[5] ^= 1),
        ("the other half of s", |proof, _| proof.identity.signature = high_s(&proof.identity.signature)),
        ("statements exchanged", |proof, _| std::mem::swap(&mut proof.identity, &mut proof.storage_root)),
        ("the counter left out", |proof, _| proof.counter = proof.identity.clone()),
        ("a quote that nobody asked for", |proof, _| proof.quote = Some(proof.counter.clone())),
        // the identity key signs whatever the device likes, a statement about itself too
        ("signed by the identity key", |proof, device| {
            proof.identity.signature = device.vault.identity_sign(&proof.identity.statement).unwrap();
        }),
    ];
    for (what, change) in changes {
        let (pending, mut proof) = prove();
        change(&mut proof, &device);
        let refused = pending.judge(&proof, now());
        assert!(refused.is_err(), "{what}: was believed");
    }
    // a device that names its identity key as attestation key: the credential is for that Name, and no such key is loaded
    let swapped = DeviceKeys { attestation: keys.identity, ..keys.clone() };
    let (_, challenge) = device.challenge(&swapped, none);
    assert_eq!(status(device.prove(&challenge)), Status::Invalid);
    // keys that are not in the chip at all
    let invented = DeviceKeys { identity: Point { x: [7; 32], ..keys.identity }, ..keys.clone() };
    let (pending, challenge) = device.challenge(&invented, none);
    let refused = pending.judge(&device.prove(&challenge).unwrap(), now());
    assert!(matches!(refused, Err(Refused::Claim("the identity key"))), "{refused:?}");
    let moved = DeviceKeys { counter: keys.counter + 1, ..keys.clone() };
    let (pending, challenge) = device.challenge(&moved, none);
    let refused = pending.judge(&device.prove(&challenge).unwrap(), now());
    assert!(matches!(refused, Err(Refused::Claim("the counter"))), "{refused:?}");
    let ahead = DeviceKeys { counter_base: keys.counter_base + 5, ..keys.clone() };
    let (pending, challenge) = device.challenge(&ahead, none);
    assert!(matches!(pending.judge(&device.prove(&challenge).unwrap(), now()), Err(Refused::Counter)));
    let none_shown = DeviceKeys { certificates: Vec::new(), ..keys };
    let refused = judge::challenge(&trust_of(&device.ca), &none_shown, CONTEXT, none, now(), true);
    assert!(matches!(refused, Err(Refused::NoCertificate)));
}

fn high_s(signature: &[u8; 64]) -> [u8; 64] {
    let low = p256::ecdsa::Signature::from_slice(signature).unwrap();
    let (r, s) = low.split_scalars();
    p256::ecdsa::Signature::from_scalars(r.to_bytes(), (-*s).to_bytes()).unwrap().to_bytes().into()
}

#[test]
fn a_chip_without_certificates() {
    let chip = Swtpm::start();
    let vault = chip.plugin("data");
    assert_eq!(status(vault.attest(STEP_KEYS, &[])), Status::NoIdentity, "nothing to speak for");
    vault.identity_public(None, true).unwrap();
    assert_eq!(status(vault.attest(STEP_COUNTER, &CONTEXT)), Status::Invalid, "no attestation key yet");
    let keys = DeviceKeys::decode(&vault.attest(STEP_KEYS, &[]).unwrap()).unwrap();
    assert!(keys.certificates.is_empty());
    // what needs no certificate works: others may pin the attestation key by hand
    let enrolled = judge::Enrolled::claimed(&keys).unwrap();
    let counter = Signed::decode(&vault.attest(STEP_COUNTER, &CONTEXT).unwrap()).unwrap();
    assert_eq!(judge::check_counter(&enrolled, &CONTEXT, &counter).unwrap(), 0);
}

/// The persistent endorsement keys are gone (TPM2_Clear does that): they are made again, and are the same.
#[test]
fn endorsement_keys_are_made_again() {
    let device = Device::start();
    for handle in ["0x81010001", "0x81010016"] {
        device.chip.tool("evictcontrol", &["-C", "o", "-c", handle]).unwrap();
    }
    let keys = device.keys();
    for keys in [keys.clone(), DeviceKeys { certificates: keys.certificates[1..].to_vec(), ..keys }] {
        let (pending, challenge) = device.challenge(&keys, Selection::default());
        pending.judge(&device.prove(&challenge).unwrap(), now()).unwrap();
    }
    assert_eq!(device.chip.occupied(), 0);
}

#[test]
fn an_endorsement_hierarchy_with_a_password() {
    let chip = certified(None);
    let ca = chip.dir.path().join("ca");
    let device = Device::on(chip, ca);
    device.chip.tool("changeauth", &["-c", "endorsement", "secret"]).unwrap();
    let keys = device.keys();
    let rsa = DeviceKeys { certificates: keys.certificates[1..].to_vec(), ..keys };
    let (_, challenge) = device.challenge(&rsa, Selection::default());
    let error = device.prove(&challenge).unwrap_err();
    assert_eq!(error.status(), Some(Status::Auth));
    assert!(error.to_string().contains("endorsement_auth_file"), "{error}");
    drop(device.vault);

    use std::os::unix::fs::PermissionsExt;
    let path = device.chip.dir.path().join("endorsement");
    std::fs::write(&path, "secret").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut config = device.chip.config("data");
    config.config_text.push_str(&format!("endorsement_auth_file = '{}'\n", path.display()));
    let vault = VaultPlugin::start(&config).unwrap();
    let (pending, challenge) =
        judge::challenge(&trust_of(&device.ca), &rsa, CONTEXT, Selection::default(), now(), true).unwrap();
    let proof = vault.attest(STEP_PROVE, &challenge.encode()).unwrap();
    pending.judge(&Proof::decode(&proof).unwrap(), now()).unwrap();
}

/// The secret of a challenge crosses the bus encrypted, and so do not the auth values.
#[test]
fn the_bus_during_an_enrolment() {
    let chip = certified(None);
    let proxy = Proxy::start(&chip);
    let vault = VaultPlugin::start(&host_config(&proxy.tcti(), &chip.dir.path().join("data"))).unwrap();
    vault.identity_public(None, true).unwrap();
    let keys = DeviceKeys::decode(&vault.attest(STEP_KEYS, &[]).unwrap()).unwrap();
    let trust = trust_of(&chip.dir.path().join("ca"));
    let (pending, challenge) = judge::challenge(&trust, &keys, CONTEXT, Selection::default(), now(), true).unwrap();
    proxy.shared.restart();
    let proof = Proof::decode(&vault.attest(STEP_PROVE, &challenge.encode()).unwrap()).unwrap();
    let commands = proxy.shared.count();
    let verdict = pending.judge(&proof, now()).unwrap();
    let traffic = proxy.shared.traffic.lock().unwrap().clone();
    for piece in verdict.secret.chunks(8) {
        assert!(!traffic.windows(8).any(|window| window == piece), "the secret crossed the bus");
    }
    println!("{commands} commands in an enrolment");
}
