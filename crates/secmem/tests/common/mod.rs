//! Helpers of the whole-process tests.
#![allow(dead_code, clippy::unwrap_used)]

use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

const CHILD: &str = "MAYFLY_SECMEM_TEST_CHILD";

/// Runs `body` in a process of its own: the test's executable once more, with this test alone. `None` in that process, after
/// `body` has returned; its outcome in the one that started it.
pub fn in_own_process(test: &str, body: impl FnOnce()) -> Option<Output> {
    if std::env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    Some(command.output().unwrap())
}

/// As above, and it must succeed.
pub fn isolated(test: &str, body: impl FnOnce()) {
    if let Some(output) = in_own_process(test, body) {
        let ran = text(&output.stdout).contains("1 passed");
        assert!(ran && output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The signal that ended a child process.
pub fn signal_of(output: &Output) -> Option<i32> {
    output.status.signal()
}

/// Reads this process' memory the way another process would.
pub fn peek(address: usize, len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    std::fs::File::open("/proc/self/mem")?.read_exact_at(&mut bytes, address as u64)?;
    Ok(bytes)
}

/// `VmFlags` of the mapping that contains `address`.
pub fn vm_flags(address: usize) -> Vec<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut inside = false;
    for line in smaps.lines() {
        if let Some((start, end)) = range(line) {
            inside = (start..end).contains(&address);
        } else if let Some(flags) = line.strip_prefix("VmFlags: ")
            && inside
        {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    Vec::new()
}

/// The addresses that a line of `/proc/self/maps` begins with.
pub fn range(line: &str) -> Option<(usize, usize)> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

/// Gives up root's right to lock without limit, and allows `bytes`.
pub fn limit_locked_memory(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: plain system calls on this (own) process; 65534 is nobody.
    unsafe {
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit), 0);
        if libc::geteuid() == 0 {
            assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        }
    }
}

/// Makes `memfd_secret` fail as on a kernel without it.
pub fn forbid_memfd_secret() {
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_memfd_secret as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is valid for the call, which copies it.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter), 0);
    }
}
