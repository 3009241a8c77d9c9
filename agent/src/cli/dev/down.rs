//! Ending a network, whole, half-made or long gone.

use super::book::{self, Book};
use super::process::{Identity, wait_for_end};
use anyhow::{Result, bail};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long processes have to end by themselves.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the kernel has to end what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends every process of the network; how many there were. The folder stays, without its book, for a look at the logs.
pub fn down(dir: &Path) -> Result<usize> {
    let Some(book) = Book::read(dir)? else { return Ok(0) };
    let ended = end(&book)?;
    match std::fs::remove_file(dir.join(book::FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            bail!("cannot remove {}: {error}", dir.join(book::FILE).display())
        }
        _ => Ok(ended),
    }
}

/// Asks all to end, agents before gateways; kills what does not.
pub fn end(book: &Book) -> Result<usize> {
    let leaders: Vec<Identity> = book.processes.iter().rev().filter_map(|p| p.identity).collect();
    let all = || leaders.iter().flat_map(Identity::session).collect::<Vec<_>>();
    let count = all().len();
    for process in leaders.iter().filter(|p| p.is_alive()) {
        process.signal(Signal::TERM)?;
        // A stopped process cannot end.
        process.signal(Signal::CONT)?;
    }
    // What a leader leaves behind (a plugin host that hangs) is of its session.
    let deadline = Instant::now() + TERM_TIMEOUT;
    wait_for_end(&leaders, deadline);
    for process in wait_for_end(&all(), deadline.min(Instant::now() + Duration::from_millis(500))) {
        process.signal(Signal::KILL)?;
    }
    let left = wait_for_end(&all(), Instant::now() + KILL_TIMEOUT);
    if !left.is_empty() {
        let pids: Vec<String> = left.iter().map(|p| p.pid.to_string()).collect();
        bail!("processes {} do not end, even killed", pids.join(", "));
    }
    Ok(count)
}
