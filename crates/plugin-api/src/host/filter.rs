//! The system call filter (seccomp(2)) under which a plugin runs.
//!
//! A list of what is refused, not of what is allowed: below a plugin are vendors' libraries that nobody here has seen.
//! What goes is what a vault or a ledger store never needs and an intruder does: new programs and processes, other
//! processes of the same user (the agent!) by signal, limit, trace or descriptor, the operator's terminal, the kernel's own
//! configuration, and the network unless the configuration grants it. Unix sockets stay: software TPMs and resource managers are reached by
//! them. Files of the same user stay too: that is what `docs/formats/plugin-abi.md` says is not protected.

use crate::config::Network;
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

/// Refused whatever the arguments.
const NEVER: &[c_long] = &[
    // new programs, other processes
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_tkill,
    libc::SYS_setns,
    libc::SYS_unshare,
    // the kernel
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_personality,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // mounts, names, clocks, identities
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_fsconfig,
    libc::SYS_mount_setattr,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_open_by_handle_at,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

/// Refused when they name another process in their first argument.
const OTHER_PROCESS: &[c_long] =
    &[libc::SYS_kill, libc::SYS_tgkill, libc::SYS_rt_sigqueueinfo, libc::SYS_rt_tgsigqueueinfo];

/// Ways to have the kernel signal another process, when the second argument of `fcntl` or `ioctl` is one of these, and to
/// type at the terminal that standard error may be (libc names only some of them, and in several types).
const FCNTL_NEVER: &[u64] = &[F_SETOWN, F_SETOWN_EX];
const IOCTL_NEVER: &[u64] = &[FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX];
const F_SETOWN: u64 = 8;
const F_SETOWN_EX: u64 = 15;
const FIOSETOWN: u64 = 0x8901;
const SIOCSPGRP: u64 = 0x8902;
const TIOCSTI: u64 = 0x5412;
const TIOCLINUX: u64 = 0x541c;

/// Installs the filter on all threads of this process, for good.
pub(super) fn apply(network: Network) -> Result<(), String> {
    let arch = arch()?;
    for program in [refusals(network, arch), no_clone3(arch)] {
        let program = program.map_err(|error| format!("system call filter: {error}"))?;
        install(&program)?;
    }
    install(&no_x32())
}

fn install(program: &BpfProgram) -> Result<(), String> {
    if program.is_empty() {
        return Ok(());
    }
    seccompiler::apply_filter_all_threads(program).map_err(|error| format!("system call filter: {error}"))
}

fn arch() -> Result<TargetArch, String> {
    std::env::consts::ARCH.try_into().map_err(|_| format!("no system call filter for {}", std::env::consts::ARCH))
}

type Built = Result<BpfProgram, seccompiler::BackendError>;

fn refusals(network: Network, arch: TargetArch) -> Built {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = NEVER.iter().map(|call| (*call, Vec::new())).collect();
    let me = u64::from(std::process::id());
    for call in OTHER_PROCESS {
        rules.insert(*call, vec![when(0, Op::Ne, me)?]);
    }
    // a limit that is set to nothing ends a process as well as a signal does; 0 is the caller
    let other = |pid| SeccompCondition::new(0, Len::Dword, Op::Ne, pid);
    rules.insert(libc::SYS_prlimit64, vec![SeccompRule::new(vec![other(me)?, other(0)?])?]);
    for (call, values) in [(libc::SYS_fcntl, FCNTL_NEVER), (libc::SYS_ioctl, IOCTL_NEVER)] {
        let each = values.iter().map(|value| when(1, Op::Eq, *value)).collect::<Result<_, _>>()?;
        rules.insert(call, each);
    }
    // threads, not processes
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(
        libc::SYS_clone,
        vec![SeccompRule::new(vec![SeccompCondition::new(0, Len::Qword, Op::MaskedEq(thread), 0)?])?],
    );
    if network == Network::None {
        rules.insert(libc::SYS_socket, vec![when(0, Op::Ne, libc::AF_UNIX as u64)?]);
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch)?.try_into()
}

fn when(argument: u8, op: Op, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Len::Dword, op, value)?])
}

/// clone3 hides its flags behind a pointer; with ENOSYS the C library takes clone, whose flags can be seen.
fn no_clone3(arch: TargetArch) -> Built {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32), arch)?.try_into()
}

/// The x32 calls of x86-64 are the same calls under other numbers, from 2^30 on: none of them.
fn no_x32() -> BpfProgram {
    if !cfg!(target_arch = "x86_64") {
        return BpfProgram::new();
    }
    const X32_BIT: u32 = 0x4000_0000;
    // struct seccomp_data starts with the call's number
    const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| seccompiler::sock_filter { code, jt, jf, k };
    vec![
        step(LOAD_NUMBER, 0, 0, 0),
        step(AT_LEAST, 0, 1, X32_BIT),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_built() {
        let arch = arch().unwrap();
        let strict = refusals(Network::None, arch).unwrap();
        let open = refusals(Network::Allowed, arch).unwrap();
        assert!(strict.len() > open.len(), "the rule about sockets is there");
        assert!(!no_clone3(arch).unwrap().is_empty());
    }
}
