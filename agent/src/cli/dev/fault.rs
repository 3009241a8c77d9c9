//! Faults on purpose: one process is killed, started again, stopped, or let go on.

use super::process::{self, Identity};
use super::{open, up};
use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the kernel has to end what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Kills the process (SIGKILL); what it started must end by itself.
pub fn kill(dir: &Path, name: &str) -> Result<()> {
    let mut book = open(dir)?;
    let process = book.process(name)?;
    let Some(identity) = process.identity.filter(Identity::is_alive) else { bail!("{name} does not run") };
    identity.signal(Signal::KILL)?;
    process.paused = false;
    ensure!(
        process::wait_for_end(&[identity], Instant::now() + KILL_TIMEOUT).is_empty(),
        "{name} does not end, even killed"
    );
    book.write(dir)
}

/// Starts the process again and, if asked, waits until it works.
pub fn start(dir: &Path, name: &str, wait: bool) -> Result<()> {
    let mut book = open(dir)?;
    let process = book.process(name)?;
    ensure!(!process.is_alive(), "{name} runs already");
    if let Some(before) = process.identity {
        // Whatever the last run left behind would be in the way.
        before.session().iter().try_for_each(|left| left.signal(Signal::KILL))?;
    }
    let log = up::log(dir, name);
    process.identity = Some(process::spawn(&process.program, &process.arguments, &log)?);
    process.paused = false;
    let started = process.clone();
    book.write(dir)?;
    if wait { up::wait_until_ready(dir, &started) } else { Ok(()) }
}

/// Stops the process and what it started (SIGSTOP): a host that hangs.
pub fn pause(dir: &Path, name: &str) -> Result<()> {
    signal_session(dir, name, Signal::STOP, true)
}

/// Lets a stopped process go on.
pub fn resume(dir: &Path, name: &str) -> Result<()> {
    signal_session(dir, name, Signal::CONT, false)
}

fn signal_session(dir: &Path, name: &str, signal: Signal, paused: bool) -> Result<()> {
    let mut book = open(dir)?;
    let process = book.process(name)?;
    let Some(identity) = process.identity.filter(Identity::is_alive) else { bail!("{name} does not run") };
    identity.session().iter().try_for_each(|member| member.signal(signal))?;
    process.paused = paused;
    book.write(dir)
}
