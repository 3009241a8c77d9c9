//! python-pkcs11: the basic examples of its documentation.

use mayfly_tests::{Network, python};

const SCRIPT: &str = r#"
import os, pkcs11
from pkcs11 import KeyType, Mechanism, ObjectClass, Attribute
from pkcs11.util.ec import encode_named_curve_parameters, encode_ecdsa_signature, encode_ec_public_key

lib = pkcs11.lib(os.environ["MAYFLY_MODULE"])
token = lib.get_token(token_label=os.environ["MAYFLY_TOKEN_LABEL"])
data = b"INPUT DATA"

with token.open(user_pin=os.environ["MAYFLY_USER_PIN"], rw=True) as session:
    # AES, CBC with padding (the library's default)
    key = session.generate_key(KeyType.AES, 256, label="python-aes", store=True)
    iv = session.generate_random(128)
    assert len(iv) == 16
    crypttext = key.encrypt(data, mechanism_param=iv)
    assert key.decrypt(crypttext, mechanism_param=iv) == data
    long = bytes(range(256)) * 400
    assert key.decrypt(key.encrypt(long, mechanism_param=iv), mechanism_param=iv) == long

    # streaming, in parts
    parts = [b"part %d " % i * 100 for i in range(20)]
    stream = b"".join(key.encrypt(parts, mechanism_param=iv))
    assert b"".join(key.decrypt([stream], mechanism_param=iv)) == b"".join(parts)

    # AES-GCM
    parameters = pkcs11.GCMParams(nonce=session.generate_random(96), aad=b"header", tag_bits=128)
    sealed = key.encrypt(data, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
    assert len(sealed) == len(data) + 16
    assert key.decrypt(sealed, mechanism=Mechanism.AES_GCM, mechanism_param=parameters) == data
    changed = bytes([sealed[0] ^ 1]) + sealed[1:]
    try:
        key.decrypt(changed, mechanism=Mechanism.AES_GCM, mechanism_param=parameters)
        raise SystemExit("a changed ciphertext was decrypted")
    except pkcs11.exceptions.PKCS11Error:
        pass

    # a session key is gone with its session
    session.generate_key(KeyType.AES, 128, label="python-session")

    # EC
    parameters = session.create_domain_parameters(
        KeyType.EC, {Attribute.EC_PARAMS: encode_named_curve_parameters("secp256r1")}, local=True)
    public, private = parameters.generate_keypair(label="python-ec", store=True, mechanism=Mechanism.EC_KEY_PAIR_GEN)
    signature = private.sign(data, mechanism=Mechanism.ECDSA_SHA256)
    assert public.verify(data, signature, mechanism=Mechanism.ECDSA_SHA256)
    assert not public.verify(data + b"!", signature, mechanism=Mechanism.ECDSA_SHA256)
    encode_ecdsa_signature(signature)
    encode_ec_public_key(public)

with token.open(user_pin=os.environ["MAYFLY_USER_PIN"], rw=True) as session:
    assert not list(session.get_objects({Attribute.LABEL: "python-session"})), "a session object outlived its session"
    for key in list(session.get_objects({Attribute.LABEL: "python-aes"})):
        assert key.key_length == 256
        key.destroy()
    assert not list(session.get_objects({Attribute.LABEL: "python-aes"}))
    names = {o.label for o in session.get_objects({Attribute.CLASS: ObjectClass.PRIVATE_KEY})}
    assert names == {"python-ec"}, names

print("all done")
"#;

#[test]
fn the_basic_examples_work() {
    let network = Network::three();
    let script = network.write("examples.py", SCRIPT.as_bytes());
    let ran = network.agent(1).tool(&python().display().to_string(), &[&script]).ok();
    assert!(ran.text().contains("all done"), "{ran}");
}
