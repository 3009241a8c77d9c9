//! Background processes that are known by process id *and* start time, so that a signal never hits a stranger who got the same number.

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, getppid, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How often a process that shall end is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Who a process is: a number that the kernel uses again, and the moment at which it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id.
    pub pid: i32,
    /// Field 22 of `/proc/PID/stat`: clock ticks since the machine started.
    pub start_time: u64,
}

/// What `/proc/PID/stat` says.
struct Stat {
    state: char,
    session: i32,
    threads: u32,
    start_time: u64,
}

impl Stat {
    /// No thread is left. The first one of a killed process may be a zombie while others, and with them its open files and locks, are still there.
    fn has_ended(&self) -> bool {
        matches!(self.state, 'X' | 'x') || (self.state == 'Z' && self.threads <= 1)
    }
}

impl Identity {
    /// The process that has this number now.
    pub fn of(pid: i32) -> Option<Self> {
        stat(pid).map(|s| Self { pid, start_time: s.start_time })
    }

    /// Whether it runs: a stranger with its number, or a zombie, is not it.
    pub fn is_alive(&self) -> bool {
        stat(self.pid).is_some_and(|s| s.start_time == self.start_time && !s.has_ended())
    }

    /// Sends a signal to this very process; nothing happens if it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { bail!("{} is not a process id", self.pid) };
        // The descriptor is taken first: what is checked afterwards cannot change any more.
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(Errno::SRCH) => return Ok(()),
            other => other.with_context(|| format!("cannot open process {pid}", pid = self.pid))?,
        };
        if !self.is_alive() {
            return Ok(());
        }
        match pidfd_send_signal(&handle, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// The living processes of the session that this process led, and itself. A number stays taken while a session has it, so
    /// if a stranger has the number now, the session is over.
    pub fn session(&self) -> Vec<Identity> {
        if stat(self.pid).is_some_and(|s| s.start_time != self.start_time) {
            return Vec::new();
        }
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
        let member = |pid: i32| {
            let s = stat(pid).filter(|s| (s.session == self.pid || pid == self.pid) && !s.has_ended())?;
            Some(Identity { pid, start_time: s.start_time })
        };
        pids.filter_map(member).collect()
    }
}

/// Waits until all have ended, at most until `deadline`; those that have not.
pub fn wait_for_end(processes: &[Identity], deadline: Instant) -> Vec<Identity> {
    loop {
        let left: Vec<Identity> = processes.iter().copied().filter(Identity::is_alive).collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(POLL);
    }
}

/// A process that waits to be let go; it ends if it is not.
#[must_use]
pub struct Waiting {
    /// The process. It stays the same when the program begins.
    pub identity: Identity,
    child: Child,
}

impl Waiting {
    /// Lets the program begin; it goes on when the child that is given back is let go of.
    ///
    /// # Errors
    /// The process has ended.
    pub fn go(mut self) -> Result<Child> {
        let mut gate = self.child.stdin.take().context("no way to the new process")?;
        gate.write_all(GO).context("a process ended before it began")?;
        Ok(self.child)
    }
}

/// What lets a process begin.
const GO: &[u8] = b"g";

/// Prepares a program in the background: a session of its own, output into `log`, no terminal. It begins when the caller has written down
/// who it is, and lets it: so there is never a process that nobody knows of. With `watch`, it is killed when that process ends.
///
/// `mayfly dev launch` does the part that must happen in the new process (see [`launch`]).
pub fn spawn(program: &Path, arguments: &[String], watch: Option<u32>, log: &Path) -> Result<Waiting> {
    let opened = || {
        File::options().create(true).append(true).open(log).with_context(|| format!("cannot open {}", log.display()))
    };
    let mut command = own(&["dev", "launch"])?;
    command.args(watch.map(|pid| format!("--watch-pid={pid}"))).arg(program).args(arguments);
    command.stdin(Stdio::piped()).stdout(opened()?).stderr(opened()?).current_dir("/");
    let child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let pid = i32::try_from(child.id()).context("process id out of range")?;
    // Not waited for, so even if it has ended already the kernel keeps its entry until we end.
    let identity = Identity::of(pid).with_context(|| format!("cannot look at process {pid}"))?;
    Ok(Waiting { identity, child })
}

/// `mayfly` itself.
fn own(words: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find my own program")?);
    command.args(words);
    Ok(command)
}

/// Becomes the leader of a new session; when it is let go, the program. Returns only if that failed.
pub fn launch(program: &OsStr, arguments: &[OsString], watch: Option<u32>) -> anyhow::Error {
    if let Err(error) = rustix::process::setsid() {
        return anyhow::Error::new(error).context("cannot make a new session");
    }
    if let Err(error) = std::io::stdin().read_exact(&mut [0; GO.len()]) {
        return anyhow::Error::new(error).context("whoever started this ended before it could begin");
    }
    if let Err(error) = watch.map_or(Ok(()), start_guard) {
        return error.context("cannot watch whoever started this");
    }
    let error = Command::new(program).args(arguments).stdin(Stdio::null()).exec();
    anyhow::Error::new(error).context(format!("cannot run {}", PathBuf::from(program).display()))
}

/// A child that stays when this process becomes another program.
fn start_guard(watched: u32) -> Result<()> {
    let mut command = own(&["dev", "guard"])?;
    command.arg(watched.to_string()).arg(std::process::id().to_string()).stdin(Stdio::null()).spawn()?;
    Ok(())
}

/// Kills the parent, which is `guarded`, when the process `watched` ends; ends with either.
pub fn guard(watched: i32, guarded: i32) -> Result<()> {
    let pid = |number| Pid::from_raw(number).with_context(|| format!("{number} is not a process id"));
    let guarded = pid(guarded)?;
    let parent = pidfd_open(guarded, PidfdFlags::empty()).context("cannot open the parent")?;
    // Children change hands when their parent has ended: then this was not its number any more, and there is nothing to do.
    if getppid() != Some(guarded) {
        return Ok(());
    }
    if let Ok(watched) = pidfd_open(pid(watched)?, PidfdFlags::empty()) {
        let mut ends = [&watched, &parent].map(|end| PollFd::new(end, PollFlags::IN));
        while let Err(Errno::INTR) = poll(&mut ends, None) {}
    }
    match pidfd_send_signal(&parent, Signal::KILL) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot end the parent"),
    }
}

/// The boot that start times count from.
pub fn boot_id() -> Result<String> {
    let id =
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the kernel does not tell its boot id")?;
    Ok(id.trim().to_owned())
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The name, second and in parentheses, may hold anything, parentheses too: fields are counted from its last one.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    Some(Stat {
        state: field(3)?.chars().next()?,
        session: field(6)?.parse().ok()?,
        threads: field(20)?.parse().ok()?,
        start_time: field(22)?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_of_awkward_names() {
        let tail = "S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 123456 1 2";
        for name in ["mayflyd", "a) S 5 5 5", "((", " "] {
            let stat = parse_stat(&format!("42 ({name}) {tail}")).unwrap();
            assert_eq!((stat.state, stat.session, stat.start_time), ('S', 77, 123_456), "{name}");
        }
        for (state, threads, ended) in [('S', 1, false), ('Z', 1, true), ('Z', 2, false), ('X', 1, true)] {
            let text = format!("42 (x) {state} 1 77 77 0 -1 4 1 0 0 0 0 0 0 0 20 0 {threads} 0 123456 1");
            assert_eq!(parse_stat(&text).unwrap().has_ended(), ended, "{state} {threads}");
        }
        assert!(parse_stat("42 (x) S 1").is_none());
        assert!(parse_stat("").is_none());
    }

    #[test]
    fn a_stranger_with_the_same_number_is_left_alone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let me = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        let stranger = Identity { start_time: me.start_time + 1, ..me };
        assert!(me.is_alive() && !stranger.is_alive());
        stranger.signal(Signal::KILL).unwrap();
        assert!(child.try_wait().unwrap().is_none(), "the stranger was killed");
        me.signal(Signal::KILL).unwrap();
        assert!(wait_for_end(&[me], Instant::now() + Duration::from_secs(5)).is_empty(), "a zombie counts as ended");
        child.wait().unwrap();
        me.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn ended_processes_have_no_session() {
        let mut child = Command::new("true").spawn().unwrap();
        let identity = Identity::of(i32::try_from(child.id()).unwrap()).unwrap();
        child.wait().unwrap();
        assert!(identity.session().is_empty());
        let own = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.is_alive());
    }
}
