//! OpenSSL's `pkcs11` engine (libp11) on the module.

use mayfly_tests::Network;

#[test]
fn the_engine_signs_and_makes_certificates() {
    let network = Network::three();
    let agent = network.agent(1);
    agent.pkcs11_tool(&["--keypairgen", "--key-type", "EC:prime256v1", "--label", "web"]).ok();
    let (message, uri) = (network.write("message", b"signed by a key that exists nowhere"), agent.uri("web"));
    let path = |name: &str| network.file(name).display().to_string();
    let (signature, public, csr, certificate) =
        (path("signature"), path("public.pem"), path("web.csr"), path("web.pem"));
    let engine = ["-engine", "pkcs11", "-keyform", "engine"];

    agent.openssl(&[&["dgst"], &engine[..], &["-sha256", "-sign", &uri, "-out", &signature, &message]].concat()).ok();
    agent.openssl(&["pkey", "-engine", "pkcs11", "-inform", "engine", "-in", &uri, "-pubout", "-out", &public]).ok();
    agent.openssl(&["dgst", "-sha256", "-verify", &public, "-signature", &signature, &message]).ok();

    agent.openssl(&[&["req", "-new"], &engine[..], &["-key", &uri, "-subj", "/CN=web", "-out", &csr]].concat()).ok();
    assert!(agent.openssl(&["req", "-in", &csr, "-verify", "-noout"]).ok().all().contains("verify OK"));
    agent
        .openssl(&[&["req", "-x509"], &engine[..], &["-key", &uri, "-subj", "/CN=web", "-out", &certificate]].concat())
        .ok();
    agent.openssl(&["verify", "-CAfile", &certificate, &certificate]).ok();
}
