//! Ending a network, whole, half-made or long gone.

use super::book::{Book, Part};
use crate::cli::process::{Identity, wait_for_end};
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

/// Asks all to end: agents before gateways, and before the TPMs, which agents may need to the last; kills what does not.
pub fn end(book: &Book) -> Result<usize> {
    let leaders = |parts: &[Part]| -> Vec<Identity> {
        book.processes.iter().rev().filter(|p| parts.contains(&p.role)).filter_map(|p| p.identity).collect()
    };
    let rounds = [leaders(&[Part::Agent, Part::Ledger]), leaders(&[Part::Swtpm])];
    let all = || rounds.iter().flatten().chain(&book.scripts).flat_map(Identity::session).collect::<Vec<_>>();
    let count = all().len();
    for script in book.scripts.iter().flat_map(Identity::session) {
        script.signal(Signal::KILL)?;
    }
    let deadline = Instant::now() + TERM_TIMEOUT;
    for round in &rounds {
        for process in round.iter().filter(|p| p.is_alive()) {
            process.signal(Signal::TERM)?;
            // A stopped process cannot end.
            process.signal(Signal::CONT)?;
        }
        wait_for_end(round, deadline);
    }
    // What a leader leaves behind (a plugin host that hangs) is of its session.
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
