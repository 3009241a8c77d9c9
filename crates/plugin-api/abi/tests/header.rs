//! The C header and the Rust tables are one layout: every offset, type, parameter and number, asked of a C compiler.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

use mayfly_plugin_abi::*;
use std::fmt::Write;
use std::process::Command;

/// How C writes a type of the tables.
trait C {
    fn c() -> String;
}

macro_rules! named {
    ($($rust:ty => $c:literal),+ $(,)?) => {
        $(impl C for $rust {
            fn c() -> String {
                $c.to_owned()
            }
        })+
    };
}

named! {
    () => "void",
    core::ffi::c_void => "void",
    u8 => "uint8_t",
    u32 => "uint32_t",
    u64 => "uint64_t",
    usize => "size_t",
    i32 => "int32_t",
    Header => "mayfly_header",
    Message => "mayfly_message",
    RawVaultDescription => "mayfly_vault_description",
    RawGeneration => "mayfly_generation",
    RawHealth => "mayfly_health",
    Head => "mayfly_head",
    RawCaps => "mayfly_caps",
    SnapshotInfo => "mayfly_snapshot_info",
}

impl<T: C> C for *const T {
    fn c() -> String {
        format!("const {} *", T::c())
    }
}

impl<T: C> C for *mut T {
    fn c() -> String {
        format!("{} *", T::c())
    }
}

impl<const N: usize> C for [u8; N] {
    fn c() -> String {
        format!("uint8_t[{N}]")
    }
}

/// Functions with these numbers of parameters.
macro_rules! functions {
    ($(($($parameter:ident)+))+) => {
        $(impl<R: C, $($parameter: C),+> C for Option<unsafe extern "C" fn($($parameter),+) -> R> {
            fn c() -> String {
                format!("{} (*)({})", R::c(), [$($parameter::c()),+].join(", "))
            }
        })+
    };
}

functions! { (A0) (A0 A1) (A0 A1 A2) (A0 A1 A2 A3) (A0 A1 A2 A3 A4) (A0 A1 A2 A3 A4 A5) (A0 A1 A2 A3 A4 A5 A6) (A0 A1 A2 A3 A4 A5 A6 A7) (A0 A1 A2 A3 A4 A5 A6 A7 A8) }

/// How C writes the type of a field.
fn type_of<T, F: C>(_: fn(&T) -> &F) -> String {
    F::c()
}

/// `_Static_assert`s for the named fields of one struct, and for its size.
macro_rules! layout {
    ($out:ident, $rust:ty, $c:literal, $($field:ident),+) => {
        $(
            let name = stringify!($field);
            let offset = std::mem::offset_of!($rust, $field);
            writeln!($out, "_Static_assert(offsetof({}, {name}) == {offset}, \"{}.{name}\");", $c, $c).unwrap();
            let of = format!("__typeof__((({} *)0)->{name})", $c);
            let wanted = type_of(|value: &$rust| &value.$field);
            writeln!($out, "_Static_assert(__builtin_types_compatible_p({of}, {wanted}), \"type of {}.{name}\");", $c)
                .unwrap();
        )+
        writeln!($out, "_Static_assert(sizeof({}) == {}, \"{}\");", $c, size_of::<$rust>(), $c).unwrap();
    };
}

fn same_number(out: &mut String, name: &str, value: u64) {
    writeln!(out, "_Static_assert(MAYFLY_{name} == {value}, \"{name}\");").unwrap();
}

fn assertions() -> String {
    let mut out = String::from("#include \"mayfly_plugin.h\"\n");
    layout!(out, Header, "mayfly_header", size, abi_version, kind, flags, name, name_len, version, version_len);
    layout!(out, Message, "mayfly_message", text, capacity, length);
    layout!(
        out,
        RawVaultDescription,
        "mayfly_vault_description",
        size,
        software_only,
        identity_algs,
        tiers,
        hardware,
        security_note
    );
    layout!(out, RawGeneration, "mayfly_generation", current, staged);
    layout!(out, RawHealth, "mayfly_health", size, state, free_bytes, used_bytes, sync_micros, detail);
    layout!(out, Head, "mayfly_head", size, epoch, bundle_hash);
    layout!(out, RawCaps, "mayfly_caps", size, flags, bundle_bytes_max, capacity_bytes);
    layout!(out, SnapshotInfo, "mayfly_snapshot_info", size, total_bytes, state_hash);
    layout!(
        out,
        VaultTable,
        "mayfly_vault_table",
        header,
        open,
        close,
        describe,
        identity_public,
        identity_sign,
        attest,
        generation,
        stage,
        open_key,
        commit,
        discard_staged,
        random,
        health,
        control
    );
    layout!(
        out,
        BackendTable,
        "mayfly_backend_table",
        header,
        open,
        close,
        caps,
        head,
        append_if_head,
        read,
        wait,
        put_checkpoint,
        latest_checkpoint,
        put_snapshot,
        get_snapshot,
        prune,
        health,
        lease,
        control
    );
    for status in Status::ALL {
        let mut name = String::new();
        for c in format!("{status:?}").chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('_');
            }
            name.push(c.to_ascii_uppercase());
        }
        same_number(&mut out, &name, status.code() as u64);
    }
    for (name, value) in [
        ("ABI_VERSION", u64::from(ABI_VERSION)),
        ("KIND_VAULT", u64::from(KIND_VAULT)),
        ("KIND_BACKEND", u64::from(KIND_BACKEND)),
        ("FLAG_NEEDS_NETWORK", u64::from(FLAG_NEEDS_NETWORK)),
        ("VAULT_KEY_BYTES", VAULT_KEY_BYTES as u64),
        ("SIGNATURE_BYTES", SIGNATURE_BYTES as u64),
        ("PUBLIC_KEY_BYTES_MAX", PUBLIC_KEY_BYTES_MAX as u64),
        ("SIGN_MESSAGE_BYTES_MAX", SIGN_MESSAGE_BYTES_MAX as u64),
        ("RANDOM_BYTES_MAX", RANDOM_BYTES_MAX as u64),
        ("CONFIG_BYTES_MAX", CONFIG_BYTES_MAX as u64),
        ("PATH_BYTES_MAX", PATH_BYTES_MAX as u64),
        ("NAME_BYTES_MAX", NAME_BYTES_MAX as u64),
        ("MESSAGE_BYTES_MAX", MESSAGE_BYTES_MAX as u64),
        ("BLOB_BYTES_MAX", BLOB_BYTES_MAX as u64),
        ("BUNDLE_BYTES_MAX", BUNDLE_BYTES_MAX as u64),
        ("READ_BYTES_MAX", READ_BYTES_MAX as u64),
        ("CHECKPOINT_BYTES_MAX", CHECKPOINT_BYTES_MAX as u64),
        ("SNAPSHOT_CHUNK_BYTES_MAX", SNAPSHOT_CHUNK_BYTES_MAX as u64),
        ("SNAPSHOT_BYTES_MAX", SNAPSHOT_BYTES_MAX),
        ("READ_PREFIX_BYTES", READ_PREFIX_BYTES as u64),
        ("LEASE_NAME_BYTES_MAX", LEASE_NAME_BYTES_MAX as u64),
        ("ALG_ED25519", Alg::Ed25519 as u64),
        ("ALG_P256", Alg::P256 as u64),
        ("TIER_BOOT", Tier::Boot as u64),
        ("TIER_WINDOW", Tier::Window as u64),
        ("TIER_PER_RELEASE", Tier::PerRelease as u64),
        ("HEALTH_OK", HealthState::Ok as u64),
        ("HEALTH_READ_ONLY", HealthState::ReadOnly as u64),
        ("HEALTH_DOWN", HealthState::Down as u64),
        ("HEALTH_POLICY_PENDING", HealthState::PolicyPending as u64),
        ("HEALTH_VAULT_LOST", HealthState::VaultLost as u64),
        ("HEALTH_LOCKOUT", HealthState::Lockout as u64),
        ("CAP_DURABLE_ON_ACK", u64::from(CAP_DURABLE_ON_ACK)),
        ("CAP_LINEARIZABLE", u64::from(CAP_LINEARIZABLE)),
        ("CAP_WAIT", u64::from(CAP_WAIT)),
    ] {
        same_number(&mut out, name, value);
    }
    out
}

/// Standard error of the C compiler over `source`; empty when it is fine.
fn compile(source: &str) -> String {
    let dir = std::env::temp_dir().join(format!("mayfly-header-{}-{}", std::process::id(), source.len()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("layout.c");
    std::fs::write(&file, source).unwrap();
    let include = concat!(env!("CARGO_MANIFEST_DIR"), "/../include");
    let run = Command::new("cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I", include])
        .arg(&file)
        .output()
        .expect("a C compiler named cc (Debian: apt-get install gcc)");
    std::fs::remove_dir_all(&dir).unwrap();
    String::from_utf8_lossy(&run.stderr).into_owned()
}

#[test]
fn header_and_tables_agree() {
    let source = assertions();
    assert!(source.matches("_Static_assert").count() > 190);
    assert_eq!(compile(&source), "");
}

/// A number that stands in the header alone would be compared with nothing.
#[test]
fn every_number_of_the_header_is_compared() {
    let header = include_str!("../../include/mayfly_plugin.h");
    let source = assertions();
    let names =
        header.lines().filter_map(|line| line.strip_prefix("#define MAYFLY_")?.split_once(' ')).map(|name| name.0);
    let missing: Vec<_> =
        names.filter(|name| *name != "STATIC_ASSERT" && !source.contains(&format!("(MAYFLY_{name} == "))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_difference_would_be_seen() {
    for wrong in [
        "_Static_assert(offsetof(mayfly_vault_table, commit) == 128, \"moved\");",
        "_Static_assert(MAYFLY_CONFLICT == 15, \"renumbered\");",
        "_Static_assert(__builtin_types_compatible_p(__typeof__(((mayfly_generation *)0)->staged), uint32_t), \"\");",
    ] {
        assert!(compile(&format!("#include \"mayfly_plugin.h\"\n{wrong}\n")).contains("static assertion failed"));
    }
}
