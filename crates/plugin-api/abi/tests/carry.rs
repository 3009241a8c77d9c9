//! The guest side of the table, called the way C calls it: odd pointers, small buffers, panics.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

use mayfly_plugin_abi::*;
use std::ffi::c_void;
use std::path::Path;
use std::ptr::null_mut;

struct Toy {
    panics: bool,
}

impl VaultGuest for Toy {
    const NAME: &'static str = "toy";
    const VERSION: &'static str = "1";

    fn open(config: &str, data_dir: &Path) -> Result<Toy, GuestError> {
        match config {
            "panic" => panic!("in open"),
            "refuse" => Err(GuestError::new(Status::Config, "ä".repeat(2000))),
            _ => Ok(Toy { panics: data_dir == Path::new("/panics") }),
        }
    }

    fn describe(&mut self) -> Result<VaultDescription, GuestError> {
        Ok(VaultDescription {
            software_only: true,
            identity_algs: vec![Alg::P256],
            tiers: vec![Tier::Boot, Tier::PerRelease],
            hardware: "x".repeat(1000),
            security_note: "ä".repeat(1000),
        })
    }

    fn identity_public(&mut self, alg: Option<Alg>, create: bool) -> Result<Identity, GuestError> {
        assert!(create);
        Ok(Identity { alg: alg.unwrap_or(Alg::P256), public: vec![2; 33] })
    }

    fn identity_sign(&mut self, message: &[u8], signature: &mut [u8; 64]) -> Result<(), GuestError> {
        signature.fill(message.len() as u8);
        Ok(())
    }

    fn generation(&mut self) -> Result<Generations, GuestError> {
        assert!(!self.panics, "as asked for");
        Ok(Generations { current: 3, staged: None })
    }

    fn stage(&mut self, _: u64, tier: Tier, key: &mut [u8; 32]) -> Result<(), GuestError> {
        key.fill(tier as u8 + 1);
        Ok(())
    }

    fn open_key(&mut self, generation: u64, _: Tier, _: &mut [u8; 32]) -> Result<(), GuestError> {
        Err(GuestError::new(Status::NoGeneration, format!("generation {generation}")))
    }

    fn commit(&mut self, _: u64) -> Result<(), GuestError> {
        Ok(())
    }

    fn discard_staged(&mut self) -> Result<(), GuestError> {
        Ok(())
    }

    fn random(&mut self, out: &mut [u8]) -> Result<(), GuestError> {
        out.fill(7);
        Ok(())
    }

    fn health(&mut self) -> Result<Health, GuestError> {
        Ok(Health { free_bytes: Some(5), ..Health::ok() })
    }
}

static TABLE: VaultTable = VaultTable::of::<Toy>();

/// A message buffer and the last message.
struct Said {
    text: [u8; 64],
    message: Message,
}

impl Said {
    fn new() -> Box<Said> {
        let mut said =
            Box::new(Said { text: [0; 64], message: Message { text: null_mut(), capacity: 64, length: 999 } });
        said.message.text = said.text.as_mut_ptr();
        said
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.text[..self.message.length]).unwrap()
    }
}

fn open(config: &str, dir: &str, said: &mut Said) -> (i32, *mut c_void) {
    let mut handle = null_mut();
    // SAFETY: pointers valid for their lengths, by the rules of the table.
    let status = unsafe {
        TABLE.open.unwrap()(
            config.as_ptr(),
            config.len(),
            dir.as_ptr(),
            dir.len(),
            &raw mut handle,
            &raw mut said.message,
        )
    };
    (status, handle)
}

fn close(handle: *mut c_void) {
    // SAFETY: a handle of `open`, given back once; null is allowed.
    unsafe { TABLE.close.unwrap()(handle) };
}

#[test]
fn refusals_and_panics_of_open() {
    let mut said = Said::new();
    let (status, handle) = open("refuse", "/", &mut said);
    assert_eq!((status, handle.is_null()), (Status::Config.code(), true));
    assert_eq!(said.text(), "ä".repeat(32), "cut at a character's boundary, to what fits");
    said.message.capacity = 63;
    open("refuse", "/", &mut said);
    assert_eq!(said.text(), "ä".repeat(31));
    let (status, handle) = open("panic", "/", &mut said);
    assert_eq!((status, handle.is_null()), (Status::Internal.code(), true));
    assert_eq!(said.text(), "the plugin panicked");
    close(null_mut());
}

#[test]
fn a_panic_ends_the_handle_not_the_process() {
    let mut said = Said::new();
    let (_, handle) = open("", "/panics", &mut said);
    let mut out = RawGeneration::default();
    for expected in ["the plugin panicked", "unusable after a panic, start it again"] {
        // SAFETY: a live handle and valid pointers.
        let status = unsafe { TABLE.generation.unwrap()(handle, &raw mut out, &raw mut said.message) };
        assert_eq!((status, said.text()), (Status::Internal.code(), expected));
    }
    close(handle);
}

#[test]
fn odd_arguments_are_refused() {
    let mut said = Said::new();
    let (status, handle) = open("", "/", &mut said);
    assert_eq!(status, 0);
    let message = &raw mut said.message;
    let mut key = [0u8; 33];
    let (mut alg, mut length) = (0u32, 0usize);
    let invalid = Status::Invalid.code();
    // SAFETY: each pointer is null or valid for the length beside it, except where the call must refuse it unread.
    unsafe {
        let stage = TABLE.stage.unwrap();
        for (what, tier, out, out_len, expected) in [
            ("right", 2, key.as_mut_ptr(), 32, 0),
            ("no tier 3", 3, key.as_mut_ptr(), 32, invalid),
            ("too long", 0, key.as_mut_ptr(), 33, invalid),
            ("too short", 0, key.as_mut_ptr(), 31, invalid),
            ("null", 0, null_mut(), 32, invalid),
        ] {
            assert_eq!(stage(handle, 1, tier, out, out_len, message), expected, "{what}");
        }
        assert_eq!(key[..32], [3; 32]);
        assert_eq!(stage(null_mut(), 1, 0, key.as_mut_ptr(), 32, message), invalid, "null handle");
        assert_eq!(TABLE.open_key.unwrap()(handle, 9, 0, key.as_mut_ptr(), 32, null_mut()), 9, "no message buffer");

        let public = TABLE.identity_public.unwrap();
        let small = public(handle, 2, 1, &raw mut alg, key.as_mut_ptr(), 32, &raw mut length, message);
        assert_eq!((small, length), (Status::BufferTooSmall.code(), 33));
        assert_eq!(public(handle, 2, 1, &raw mut alg, key.as_mut_ptr(), 33, &raw mut length, message), 0);
        assert_eq!((alg, length, key), (2, 33, [2; 33]));
        let unknown = public(handle, 9, 1, &raw mut alg, key.as_mut_ptr(), 33, &raw mut length, message);
        assert_eq!(unknown, Status::Unsupported.code());
        assert_eq!(public(handle, 0, 1, null_mut(), key.as_mut_ptr(), 33, &raw mut length, message), invalid);
        assert_eq!(public(handle, 0, 1, &raw mut alg, key.as_mut_ptr(), 33, null_mut(), message), invalid);

        let sign = TABLE.identity_sign.unwrap();
        let mut signature = [9u8; 64];
        assert_eq!(sign(handle, null_mut(), 0, signature.as_mut_ptr(), 64, message), 0, "an empty message may be null");
        assert_eq!(signature, [0; 64]);
        assert_eq!(sign(handle, null_mut(), 1, signature.as_mut_ptr(), 64, message), invalid);
        assert_eq!(sign(handle, key.as_ptr(), usize::MAX, signature.as_mut_ptr(), 64, message), invalid);

        let random = TABLE.random.unwrap();
        assert_eq!(random(handle, null_mut(), 0, message), 0);
        assert_eq!(random(handle, key.as_mut_ptr(), RANDOM_BYTES_MAX + 1, message), invalid);

        let attest = TABLE.attest.unwrap();
        let refused = attest(handle, 1, null_mut(), 0, null_mut(), 0, &raw mut length, message);
        assert_eq!(refused, Status::Unsupported.code());
    }
    close(handle);
}

#[test]
fn structs_are_filled_only_when_they_are_large_enough() {
    let mut said = Said::new();
    let (_, handle) = open("", "/", &mut said);
    let message = &raw mut said.message;
    let mut description = RawVaultDescription {
        size: size_of::<RawVaultDescription>() as u32,
        software_only: 9,
        identity_algs: 9,
        tiers: 9,
        hardware: [1; 256],
        security_note: [1; 512],
    };
    let mut health = RawHealth { size: 8, state: 9, free_bytes: 9, used_bytes: 9, sync_micros: 9, detail: [1; 256] };
    // SAFETY: a live handle and valid pointers.
    unsafe {
        assert_eq!(TABLE.describe.unwrap()(handle, &raw mut description, message), 0);
        assert_eq!(TABLE.health.unwrap()(handle, &raw mut health, message), Status::Invalid.code());
        assert_eq!(health.state, 9, "untouched");
        health.size = size_of::<RawHealth>() as u32 + 100;
        assert_eq!(TABLE.health.unwrap()(handle, &raw mut health, message), 0, "a later caller's struct is larger");
    }
    assert_eq!((description.software_only, description.identity_algs, description.tiers), (1, 0b100, 0b101));
    assert_eq!(text_of(&description.hardware), "x".repeat(256));
    assert_eq!(text_of(&description.security_note), "ä".repeat(256));
    assert_eq!((health.state, health.free_bytes, text_of(&health.detail)), (0, 5, String::new()));
    close(handle);
}
