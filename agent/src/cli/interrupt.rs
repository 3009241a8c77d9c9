//! What a command puts in order when it is interrupted.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

/// Exit status of a command that a signal ended, as shells have it (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// On SIGINT or SIGTERM `act` runs, on a thread of its own, and this process ends.
pub fn when_interrupted(act: impl FnOnce() + Send + 'static) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot wait for signals")?;
    let inside = runtime.enter();
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (mut interrupt, mut terminate) = (signals.0.context("SIGINT")?, signals.1.context("SIGTERM")?);
    drop(inside);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => (),
                _ = terminate.recv() => (),
            }
        });
        act();
        std::process::exit(INTERRUPTED);
    })?;
    Ok(())
}
