//! A real full disk under the ledger: a clear error, nothing lost, the process lives, and goes on when there is room.
//!
//! Needs a small file system of its own, so a right to mount; without it the test says so and ends. Every single step of
//! a write failing is tested without rights in `backend.rs`.

// helpers of tests say what they expect by unwrapping, too
#![allow(clippy::unwrap_used)]

use mayfly_plugin_api::find_artifact;
use mayfly_plugin_api::{
    Append, BackendPlugin, Head, HealthState, HostConfig, PathRule, PluginError, ReadAnswer, Status,
};
use std::path::{Path, PathBuf};
use std::process::Command;

const DISK_MIB: usize = 12;

/// A small file system in memory, unmounted when the test ends, however it ends.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<SmallDisk> {
        std::fs::create_dir(at).unwrap();
        let options = format!("size={DISK_MIB}m,mode=0700");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "mayfly-test"]).arg(at).output();
        mounted.is_ok_and(|run| run.status.success()).then(|| SmallDisk(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // lazily: a host that is just ending may still have a file open
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn next(head: &Head, bundle: &[u8]) -> Head {
    let mut bundle_hash = [0; 32];
    bundle_hash[..8].copy_from_slice(&bundle[..8]);
    Head { size: head.size + 1, epoch: 0, bundle_hash }
}

fn bundle(place: u64) -> Vec<u8> {
    (place + 1).to_be_bytes().repeat(25_000)
}

/// Appends until it is refused; gives the head before the refusal and the refusal.
fn fill_up(backend: &BackendPlugin) -> (Head, Status) {
    let mut head = backend.head().unwrap();
    for _ in 0..1000 {
        let bytes = bundle(head.size);
        let new = next(&head, &bytes);
        match backend.append_if_head(&head, &new, &bytes) {
            Ok(Append::Done) => head = new,
            Ok(Append::Unknown(error)) => return (head, error.status().unwrap_or(Status::Unknown)),
            Ok(Append::Conflict(actual)) => panic!("conflict with {actual:?}"),
            Err(PluginError::Refused { status, message, .. }) => {
                println!("{message}");
                return (head, status);
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("a disk of {DISK_MIB} MiB takes everything");
}

fn check(backend: &BackendPlugin, entries: u64) {
    for place in 0..entries {
        match backend.read(place, 0).unwrap() {
            ReadAnswer::Bundles(bundles) => assert_eq!(bundles[0].bytes, bundle(place), "entry {place}"),
            ReadAnswer::Pruned(first) => panic!("pruned to {first}"),
        }
    }
}

#[test]
fn a_full_disk() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("disk")) else {
        println!("not run: no right to mount a small file system");
        return;
    };
    let data = disk.0.join("ledger");
    let mut config = HostConfig::new(find_artifact("libmayfly_ledger_embedded.so").unwrap(), data).unwrap();
    config.path_rule = PathRule::DangerDevelopment;
    for reserve_mib in [2, 0] {
        config.config_text = format!("reserve_mib = {reserve_mib}");
        let backend = BackendPlugin::start(&config).unwrap();
        let pid = backend.host_pid();
        let ballast = disk.0.join("ballast");
        std::fs::write(&ballast, vec![1; 4 << 20]).unwrap();
        let (head, status) = fill_up(&backend);
        assert!(matches!(status, Status::ReadOnly | Status::Unknown), "{status:?}");
        let health = backend.health().unwrap();
        assert_eq!(health.state, HealthState::ReadOnly, "{health:?}");
        assert!(!health.detail.is_empty());
        assert_eq!(backend.head().unwrap().size, head.size, "nothing lost, nothing half");
        check(&backend, head.size);

        std::fs::remove_file(&ballast).unwrap();
        let bytes = bundle(head.size);
        let new = next(&head, &bytes);
        let answer = backend.append_if_head(&head, &new, &bytes).unwrap();
        assert!(matches!(answer, Append::Done), "with room again: {answer:?}");
        assert_eq!(backend.host_pid(), pid, "the process lived through it");
        check(&backend, new.size);
    }
}
