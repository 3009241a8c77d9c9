//! `mayfly-ledger`: the gateway of a ledger.
#![forbid(unsafe_code)]

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use mayfly_ledger_client::NetworkFile;
use mayfly_ledger_server::config::Config;
use mayfly_ledger_server::key::GatewayKey;
use mayfly_ledger_server::{Gateway, run};
use mayfly_plugin_api::{BackendPlugin, HostConfig, Network, PathRule, Status, find_artifact};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::Write;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Threads that carry connections.
const WORKERS_MAX: usize = 8;
/// How long the end waits for calls of the plugin.
const STOP_MAX: Duration = Duration::from_secs(2);
/// How long a start waits for a store that another process still has.
const STORE_BUSY_MAX: Duration = Duration::from_secs(3);
/// Pause between two attempts.
const STORE_BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Puts the records of a Mayfly network in order and sends them to every device.
///
/// The gateway is trusted with nothing but order and storage: devices verify every record and every head themselves.
#[derive(Parser)]
#[command(version, after_help = EXAMPLE)]
struct Arguments {
    /// Configuration file (TOML)
    #[arg(long, short, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// End when this process ends
    #[arg(long, value_name = "PID", hide = true, global = true)]
    watch_pid: Option<i32>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the ledger until SIGTERM or SIGINT (this is the default)
    Serve,
    /// Make a new gateway key and print its public half, as genesis and network.toml want it
    Keygen {
        /// The key file to make; it must not exist
        file: PathBuf,
    },
    /// Print the public half of a gateway key
    Key {
        /// The key file
        file: PathBuf,
    },
}

const EXAMPLE: &str = r#"Example configuration:
  network = "network.toml"        # made by `mayfly init`
  key = "gateway.key"             # made by `mayfly init` or `mayfly-ledger keygen`; mode 0600
  listen = "0.0.0.0:7440"         # port 0 takes a free one
  # ready_file = "gateway.addr"   # gets the bound address when clients are served
  [backend]
  plugin = "embedded"             # libmayfly_ledger_embedded.so
  data = "store"                  # folder of the store
  # sha256 = "..."                # refuse the plugin's file unless it has this hash
  # [limits]
  # connections = 10000
  # submissions_per_second = 200  # per client, on average; 0: no bound
  # submissions_burst = 1000
  # ring_mib = 64
  # slow_seconds = 30
  # [danger]
  # plugin_path_unchecked = true  # for build trees

Logs are JSON lines on standard error; MAYFLY_LOG sets what is logged (default: info).
Exit status: 0 stopped as told, 1 failed, 2 wrong use."#;

fn main() -> ExitCode {
    match dispatch(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mayfly-ledger: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.command {
        Some(Command::Keygen { file }) => print_key(&GatewayKey::create(&file)?),
        Some(Command::Key { file }) => print_key(&GatewayKey::read(&file)?),
        None | Some(Command::Serve) => serve(arguments.config.as_deref(), arguments.watch_pid),
    }
}

fn print_key(key: &GatewayKey) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", hex::encode(key.public().to_bytes())).context("standard output")
}

fn serve(config: Option<&Path>, watch_pid: Option<i32>) -> anyhow::Result<()> {
    let Some(path) = config else { bail!("--config FILE is needed; see mayfly-ledger --help") };
    start_logging();
    let config = Config::read(path)?;
    let text = std::fs::read_to_string(&config.network).with_context(|| config.network.display().to_string())?;
    let network = NetworkFile::parse(&text).with_context(|| config.network.display().to_string())?;
    let key = GatewayKey::read(&config.key)?;
    mayfly_secmem::harden_process().context("hardening the process")?;
    let backend = Arc::new(start_backend(&config)?);
    let gateway = Gateway { network, key, backend, limits: config.limits };
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, WORKERS_MAX));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build()?;
    let served = runtime.block_on(async {
        let listener =
            TcpListener::bind(config.listen).await.with_context(|| format!("listening on {}", config.listen))?;
        let address = listener.local_addr()?;
        let stop = stop_signal(watch_pid)?;
        run(gateway, listener, || announce(address, config.ready_file.as_deref()), stop).await?;
        Ok(())
    });
    runtime.shutdown_timeout(STOP_MAX); // a call of the plugin may still hang
    served
}

fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MAYFLY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
}

fn start_backend(config: &Config) -> anyhow::Result<BackendPlugin> {
    let backend = &config.backend;
    let plugin = match &backend.path {
        Some(path) => path.clone(),
        None => find_artifact(&format!("libmayfly_ledger_{}.so", backend.plugin))?,
    };
    let mut host = HostConfig::new(plugin, &backend.data)?;
    host.pin = backend.pin();
    host.config_text.clone_from(&backend.config);
    host.network = if backend.plugin == "embedded" { Network::None } else { Network::Allowed };
    if config.danger.plugin_path_unchecked {
        host.path_rule = PathRule::DangerDevelopment;
    }
    let since = Instant::now();
    loop {
        match BackendPlugin::start(&host) {
            // The plugin of a gateway that was killed ends a moment after it.
            Err(error) if error.status() == Some(Status::Busy) && since.elapsed() < STORE_BUSY_MAX => {
                std::thread::sleep(STORE_BUSY_PAUSE);
            }
            started => return Ok(started?),
        }
    }
}

/// Tells whoever started this program that clients are served, in each way that was asked for.
fn announce(address: SocketAddr, ready_file: Option<&Path>) {
    // Nobody may be listening any more; that is no reason to stop.
    let _ = writeln!(std::io::stdout(), "ready wss {address}");
    if let Some(path) = ready_file {
        let aside = path.with_extension("new");
        let written = std::fs::write(&aside, address.to_string()).and_then(|()| std::fs::rename(&aside, path));
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "ready file");
        }
    }
    if let Some(socket) = std::env::var_os("NOTIFY_SOCKET")
        && let Err(error) = notify(&socket.to_string_lossy())
    {
        tracing::warn!(%error, "NOTIFY_SOCKET");
    }
}

/// sd_notify(3): a path, or `@` and a name in the abstract namespace.
fn notify(socket: &str) -> std::io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => UnixAddr::from_abstract_name(name)?,
        None => UnixAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}

/// Done on SIGTERM, SIGINT, or when the watched process has ended.
fn stop_signal(watch_pid: Option<i32>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let gone = watch_pid.map(watch).transpose()?;
    Ok(async move {
        let gone = async {
            match gone {
                Some(gone) => drop(gone.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = gone => {}
        }
    })
}

/// Watches a process; done when it has ended.
fn watch(pid: i32) -> anyhow::Result<oneshot::Receiver<()>> {
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
