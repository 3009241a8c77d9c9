//! `mayflyd`: the agent of one host.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::Parser;
use mayfly_agent::app::{Desk, keys::Agent};
use mayfly_agent::config::{Config, Log, LogFormat};
use mayfly_agent::node::Shutdown;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::Mode;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// The agent of one host: holds its shards, puts keys together for one operation, serves applications.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  mayflyd --config /var/lib/mayfly/agent.toml\n\n\
    `mayfly join` writes the configuration. Exit status: 0 stopped as told, 1 failed, 2 wrong use."
)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
    /// End when this process ends
    #[arg(long, value_name = "PID", hide = true)]
    watch_pid: Option<i32>,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mayflyd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let config = Config::load(&arguments.config)?;
    start_logging(&config.log)?;
    mayfly_secmem::install_panic_hook();
    // Before there is any secret: no core files, no reading of our memory by others.
    mayfly_secmem::harden_process().context("this process cannot be protected")?;
    let watched = arguments.watch_pid.map(watch).transpose()?;
    let (path, settings) = (config.socket.clone(), config.settings());
    // The data folder's lock comes first: a second agent is refused before it touches the socket of the first.
    let shutdown = Shutdown::default();
    let desk = Desk::open(config, &shutdown)?;
    let listener = listen(&path)?;
    let server = serve(desk.clone(), listener, settings, shutdown.clone())?;
    let opener = open_vault(desk.clone(), shutdown.clone())?;
    tracing::info!(socket = %path.display(), "applications are served");
    // Also without a vault: a start that fails would be repeated, with another attempt at its PIN each time.
    notify("READY=1");
    let ended = wait_for_end(watched, &server, &desk)?;
    tracing::info!(reason = ended, "agent stops");
    shutdown.store(true, Ordering::Relaxed);
    let served = server.join();
    let _ = opener.join(); // a panic has been told
    desk.open_node().inspect(|node| node.stop());
    let _ = std::fs::remove_file(&path);
    served.map_err(|_| anyhow::anyhow!("serving applications panicked"))?.context("serving applications")
}

fn start_logging(log: &Log) -> Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&log.level).context("log.level")?;
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    match log.format {
        LogFormat::Json => logger.json().init(),
        LogFormat::Text => logger.init(),
    }
    Ok(())
}

/// The applications' socket. What a dead agent left is replaced; a living one is never pushed aside.
fn listen(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        bail!("another agent listens at {}; give each agent its own `socket`", path.display());
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} is a file that is no socket, and is left alone; name another `socket`", path.display())
        }
        Ok(_) => std::fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?,
        Err(_) => {} // none, or one that binding tells about
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
    // Any user may connect: who it is, the kernel tells; what they may do, the ledger's policies.
    rustix::fs::chmod(path, Mode::from_raw_mode(0o666))
        .with_context(|| format!("cannot open {} to users", path.display()))?;
    Ok(listener)
}

/// Waits for a vault that could not be reached at the start.
fn open_vault(desk: Arc<Desk>, shutdown: Shutdown) -> Result<JoinHandle<()>> {
    let thread = std::thread::Builder::new().name("vault".into());
    thread.spawn(move || desk.wait_for_vault(&shutdown)).context("cannot start a thread")
}

fn serve(
    desk: Arc<Desk>,
    listener: UnixListener,
    settings: mayfly_agent::app::Settings,
    shutdown: Shutdown,
) -> Result<JoinHandle<std::io::Result<()>>> {
    let thread = std::thread::Builder::new().name("applications".into());
    let spawned = thread.spawn(move || mayfly_agent::app::serve(desk, listener, settings, shutdown));
    spawned.context("cannot start a thread")
}

/// Waits for SIGTERM, SIGINT, the end of the watched process, or of the server itself; which it was. Meanwhile tells systemd how things stand.
fn wait_for_end(
    watched: Option<oneshot::Receiver<()>>,
    server: &JoinHandle<std::io::Result<()>>,
    desk: &Desk,
) -> Result<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let watched = async {
            match watched {
                Some(gone) => drop(gone.await),
                None => std::future::pending().await,
            }
        };
        tokio::pin!(watched);
        let mut look = tokio::time::interval(SERVER_LOOK);
        let mut told = String::new();
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok("SIGTERM"),
                _ = interrupt.recv() => return Ok("SIGINT"),
                () = &mut watched => return Ok("watched process ended"),
                _ = look.tick() => {
                    if server.is_finished() { return Ok("applications are not served any more") }
                    let standing = standing(desk);
                    if standing != told {
                        notify(&format!("STATUS={standing}"));
                        told = standing;
                    }
                },
            }
        }
    })
}

/// One line for `systemctl status`.
fn standing(desk: &Desk) -> String {
    match desk.trouble() {
        Some(trouble) => trouble.sentence().replace(char::is_control, " "),
        None => desk.phase().word().to_owned(),
    }
}

/// How often it is looked whether applications are still served.
const SERVER_LOOK: std::time::Duration = std::time::Duration::from_secs(5);

/// Watches a process; done when it has ended.
fn watch(pid: i32) -> Result<oneshot::Receiver<()>> {
    let pid = Pid::from_raw(pid).context("--watch-pid is no process id")?;
    let process = pidfd_open(pid, PidfdFlags::empty()).context("--watch-pid")?;
    let (ended, gone) = oneshot::channel();
    std::thread::Builder::new().name("watch-pid".into()).spawn(move || {
        // A pidfd becomes readable when its process ends (pidfd_open(2)).
        while poll(&mut [PollFd::new(&process, PollFlags::IN)], None) == Err(rustix::io::Errno::INTR) {}
        let _ = ended.send(());
    })?;
    Ok(gone)
}

/// sd_notify(3).
fn notify(message: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let socket = socket.to_string_lossy();
    let address = match socket.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name),
        None => UnixAddr::from_pathname(&*socket),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(message.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_dead_agents_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let living = listen(&path).unwrap();
        assert!(listen(&path).unwrap_err().to_string().contains("another agent"));
        drop(living);
        drop(listen(&path).unwrap());
        let file = folder.path().join("precious");
        std::fs::write(&file, "content").unwrap();
        assert!(listen(&file).unwrap_err().to_string().contains("no socket"));
        assert_eq!(std::fs::read(&file).unwrap(), b"content");
        assert!(listen(&folder.path().join("nowhere/agent.sock")).is_err());
    }
}
