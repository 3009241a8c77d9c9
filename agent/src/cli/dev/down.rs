//! Ending a network, whole, half-made or long gone.

use super::book::Book;
use super::process::{Identity, wait_for_end};
use anyhow::{Result, bail, ensure};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long processes have to end by themselves.
const TERM_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the kernel has to end what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Ends every process of the network; how many there were, `None` where there is no network. The folder stays, for a look at the logs, and
/// for `dev up`, which starts the network again.
pub fn down(dir: &Path) -> Result<Option<usize>> {
    ensure!(dir.is_dir(), "there is no folder {}", dir.display());
    Book::read(dir)?.as_ref().map(end).transpose()
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
