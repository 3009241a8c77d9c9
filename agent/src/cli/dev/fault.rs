//! Faults on purpose: one process is killed, started again, stopped, or let go on.

use super::book::{Book, Part, Process};
use super::{open, up};
use crate::cli::announce::quoted;
use crate::cli::process::{self, Identity};
use anyhow::{Result, bail, ensure};
use mayfly_protocol::head::quorum;
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

/// What was started.
pub struct Started {
    /// Names of the processes.
    pub names: Vec<String>,
    /// What they wait for, where that was not waited for here.
    pub waits_for: Option<String>,
}

/// Starts a process again, or all that have ended, and, if asked, waits until they work.
///
/// An agent works when enough witnesses answer: where too few run, that is said and not waited for.
pub fn start(dir: &Path, name: Option<&str>, wait: bool) -> Result<Started> {
    let mut book = open(dir)?;
    let names: Vec<String> = match name {
        Some(name) => vec![book.process(name)?.name.clone()],
        None => book.processes.iter().filter(|process| !process.is_alive()).map(|p| p.name.clone()).collect(),
    };
    ensure!(!names.is_empty(), "every process of the network runs already");
    for name in &names {
        let process = start_one(dir, name)?;
        // Agents that come up before the ledger would only wait longer, and before their TPM, end.
        if process.role != Part::Agent && (wait || names.len() > 1) {
            up::wait_until_ready(dir, &process)?;
        }
    }
    let book = open(dir)?;
    let agents: Vec<&Process> = book.processes.iter().filter(|process| process.role == Part::Agent).collect();
    let running = agents.iter().filter(|agent| agent.is_alive() && !agent.paused).count();
    let needed = quorum(agents.len());
    let starts_agents = agents.iter().any(|agent| names.contains(&agent.name));
    if starts_agents && running < needed {
        let rest = format!("`mayfly dev start --dir {}` starts the others", quoted(&dir.to_string_lossy()));
        let waits_for = format!(
            "too few witnesses run ({running} of {}, {needed} must), so no key can be used yet; {rest}",
            agents.len()
        );
        return Ok(Started { names, waits_for: Some(waits_for) });
    }
    for agent in agents.iter().filter(|agent| wait && names.contains(&agent.name)) {
        up::wait_until_ready(dir, agent)?;
    }
    Ok(Started { names, waits_for: None })
}

fn start_one(dir: &Path, name: &str) -> Result<Process> {
    let mut book = open(dir)?;
    ensure!(!book.process(name)?.is_alive(), "{name} runs already");
    ensure_tpm(&book, name)?;
    let process = book.process(name)?;
    if let Some(before) = process.identity {
        // Whatever the last run left behind would be in the way.
        before.session().iter().try_for_each(|left| left.signal(Signal::KILL))?;
    }
    let waiting = process.prepare(&up::log(dir, name))?;
    process.identity = Some(waiting.identity);
    process.paused = false;
    let started = process.clone();
    book.write(dir)?;
    drop(waiting.go()?);
    Ok(started)
}

/// An agent whose TPM does not run could not open its vault.
fn ensure_tpm(book: &Book, name: &str) -> Result<()> {
    let tpm = name.strip_prefix("agent-").map(|number| format!("swtpm-{number}"));
    let tpm = book.processes.iter().find(|process| Some(&process.name) == tpm.as_ref());
    match tpm.filter(|process| !process.is_alive()) {
        None => Ok(()),
        Some(tpm) => bail!("the TPM of {name} does not run; start {} first", tpm.name),
    }
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
