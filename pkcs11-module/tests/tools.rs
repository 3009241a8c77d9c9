//! The built library under real programs: what it exports, how large it is, what `pkcs11-tool` says without
//! an agent and with the toy.
#![allow(clippy::unwrap_used)] // tests say what they expect by unwrapping

mod support;

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use cryptoki_sys::*;
use support::agent::{Agent, slot};
use support::{Stage, module_file};

fn pkcs11_tool(socket: &Path, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new("pkcs11-tool");
    command.arg("--module").arg(module_file()).args(arguments).env("MAYFLY_SOCKET", socket);
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: pkcs11-tool is not installed (package opensc)");
            None
        }
        Err(error) => panic!("pkcs11-tool: {error}"),
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn the_library_loads_works_and_stays() {
    let stage = Stage::new();
    let _agent = Agent::start(&stage.socket);
    for _ in 0..3 {
        // SAFETY: our own library, whose loading runs nothing.
        let library = unsafe { libloading::Library::new(module_file()) }.unwrap();
        // SAFETY: the type is that of PKCS#11.
        let get: libloading::Symbol<'_, unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV> =
            unsafe { library.get(b"C_GetFunctionList\0") }.unwrap();
        let mut list = std::ptr::null_mut();
        // SAFETY: a valid place for a pointer.
        assert_eq!(unsafe { get(&raw mut list) }, CKR_OK);
        // SAFETY: the table lives as long as the library.
        let client = support::client::Client(unsafe { &*list });
        assert_eq!(client.initialize(), CKR_OK);
        assert_eq!(client.slots(true), [CK_SLOT_ID::from(slot())]);
        client.finalize();
        // SAFETY: as before.
        assert!(unsafe { library.get::<*const ()>(b"C_Encrypt\0") }.is_err(), "only three names are exported");
        library.close().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(maps.contains("libmayfly_pkcs11.so"), "closing does not unload it");
    }
}

#[test]
fn without_an_agent_pkcs11_tool_sees_an_empty_slot_at_once() {
    let stage = Stage::new();
    let start = Instant::now();
    let Some(output) = pkcs11_tool(&stage.socket, &["-L"]) else { return };
    assert!(start.elapsed() < Duration::from_secs(2));
    let said = text(&output);
    assert!(output.status.success() && said.contains("Mayfly slot") && said.contains("(empty)"), "{said}");
    let output = pkcs11_tool(&stage.socket, &["-T"]).unwrap();
    assert!(!text(&output).contains("token label"), "{}", text(&output));
}

#[test]
fn pkcs11_tool_lists_signs_and_encrypts() {
    let stage = Stage::new();
    let agent = Agent::start(&stage.socket);
    let Some(output) = pkcs11_tool(&stage.socket, &["-L"]) else { return };
    assert!(text(&output).contains("token label        : toy"), "{}", text(&output));
    let folder = stage.socket.parent().unwrap();
    let (plain, sealed, back) = (folder.join("plain"), folder.join("sealed"), folder.join("back"));
    let data: Vec<u8> = (0..1_048_577_u32).map(|n| (n % 253) as u8).collect();
    std::fs::write(&plain, &data).unwrap();
    let iv = "00112233445566778899aabbccddeeff";
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let (p, s, b) = (path(&plain), path(&sealed), path(&back));
    let runs: &[&[&str]] = &[
        &["-M"],
        &["-O"],
        &["-I"],
        &["--generate-random", "32"],
        &["--hash", "-m", "SHA256", "-i", &p, "-o", &b],
        &["-l", "-p", "1234", "-O"],
        &["-l", "-p", "1234", "--keygen", "--key-type", "AES:32", "--label", "new"],
        &["-l", "-p", "1234", "--sign", "-m", "ECDSA-SHA256", "--label", "ec", "-i", &p, "-o", &s],
        &["-l", "-p", "1234", "--encrypt", "-m", "AES-CBC-PAD", "--iv", iv, "--id", "01", "-i", &p, "-o", &s],
        &["-l", "-p", "1234", "--decrypt", "-m", "AES-CBC-PAD", "--iv", iv, "--id", "01", "-i", &s, "-o", &b],
    ];
    for arguments in runs {
        let output = pkcs11_tool(&stage.socket, arguments).unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
    }
    assert_eq!(std::fs::metadata(&sealed).unwrap().len(), 1_048_592);
    assert!(std::fs::read(&back).unwrap() == data, "byte for byte");
    assert!(
        agent
            .lock()
            .objects
            .values()
            .any(|thing| { thing.attributes.get(&CKA_LABEL).is_some_and(|label| label == b"new") })
    );
    let output = pkcs11_tool(&stage.socket, &["--test-fork"]).unwrap();
    assert!(output.status.success(), "{}", text(&output));
}
