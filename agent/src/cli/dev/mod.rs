//! `mayfly dev`: a whole network on this machine, for development and tests.
//!
//! It does what an operator does (init, invite, join, approve, roles, a token), on loopback, with every danger set that this takes. It must
//! never touch a process that it did not start, and `down` leaves none.

mod address;
mod book;
mod down;
mod env;
mod fault;
mod up;
mod vaults;

use super::announce::{Announcer, field, table};
use super::process;
use super::software::SOCKET_PATH_BYTES_MAX;
use anyhow::{Context, Result, bail, ensure};
use book::Book;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A whole network on this machine, for development and tests
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  mayfly dev up --dir /tmp/net && . /tmp/net/env && pkcs11-tool --module $MAYFLY_MODULE -L\n  mayfly dev down --dir /tmp/net"
)]
pub enum Dev {
    Up(up::Up),
    Down(Down),
    /// Kill a process of a network (SIGKILL)
    #[command(after_help = "Example:\n  mayfly dev kill --dir /tmp/net agent-2")]
    Kill(Named),
    Start(Start),
    /// Stop a process of a network (SIGSTOP): a host that hangs
    #[command(after_help = "Example:\n  mayfly dev pause --dir /tmp/net agent-3")]
    Pause(Named),
    /// Let a process that was paused go on (SIGCONT)
    #[command(after_help = "Example:\n  mayfly dev resume --dir /tmp/net agent-3")]
    Resume(Named),
    Status(Status),
    #[command(hide = true)]
    Launch(Launch),
    #[command(hide = true)]
    Guard(Guard),
}

/// End a network; no process is left
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly dev down --dir /tmp/net")]
pub struct Down {
    /// Folder of the network
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Start a process of a network again, or all
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly dev start --dir /tmp/net agent-2\n  mayfly dev start --dir /tmp/net")]
pub struct Start {
    /// Folder of the network
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The process: agent-1, swtpm-1, ledger-1, …; all that have ended if left out
    name: Option<String>,
    /// Do not wait until it works (an agent works when enough witnesses answer)
    #[arg(long)]
    no_wait: bool,
}

// No documentation of its own: it would take the place of each command's.
#[derive(Debug, Args)]
pub struct Named {
    /// Folder of the network
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The process: agent-1, swtpm-1 (the TPM of agent-1), ledger-1, …
    name: String,
}

/// Show the processes of a network
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly dev status --dir /tmp/net --json")]
pub struct Status {
    /// Folder of the network
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// Becomes a program in a session of its own (used by `dev up`)
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly dev launch sleep 60")]
pub struct Launch {
    /// It is killed when this process ends
    #[arg(long, value_name = "PID")]
    watch_pid: Option<u32>,
    /// The program
    program: OsString,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Kills its parent when another process ends (used by `dev launch`)
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly dev guard 4711 4712")]
pub struct Guard {
    /// The process that is watched
    watched: i32,
    /// The parent
    guarded: i32,
}

impl Dev {
    /// Runs the command.
    pub fn run(self, out: &Announcer) -> Result<()> {
        match self {
            Dev::Up(c) => c.run(out),
            Dev::Down(c) => {
                let ended = down::down(&folder(&c.dir)?)?;
                out.result(&json!({"ended": ended.unwrap_or(0)}), |_| match ended {
                    Some(ended) => format!("ended {ended} processes; none is left"),
                    None => format!("there is no network in {}; nothing was ended", c.dir.display()),
                })?;
                Ok(())
            }
            Dev::Kill(c) => c.run(out, fault::kill, "killed"),
            Dev::Start(c) => {
                let started = fault::start(&folder(&c.dir)?, c.name.as_deref(), !c.no_wait)?;
                let waits = started.waits_for.as_deref();
                let answer = json!({"name": c.name, "done": "started", "started": started.names, "waits_for": waits});
                out.result(&answer, |_| {
                    let waits = waits.map(|what| format!("; {what}")).unwrap_or_default();
                    format!("{} started{waits}", started.names.join(", "))
                })?;
                Ok(())
            }
            Dev::Pause(c) => c.run(out, fault::pause, "paused"),
            Dev::Resume(c) => c.run(out, fault::resume, "resumed"),
            Dev::Status(c) => {
                let dir = folder(&c.dir)?;
                out.result(&open(&dir)?.status(), status)?;
                Ok(())
            }
            Dev::Launch(c) => Err(process::launch(&c.program, &c.arguments, c.watch_pid)),
            Dev::Guard(c) => process::guard(c.watched, c.guarded),
        }
    }
}

impl Named {
    fn run(self, out: &Announcer, act: fn(&Path, &str) -> Result<()>, done: &str) -> Result<()> {
        act(&folder(&self.dir)?, &self.name)?;
        out.result(&json!({"name": self.name, "done": done}), |_| format!("{} {done}", self.name))?;
        Ok(())
    }
}

/// The folder as an absolute path: processes work from `/`.
fn folder(dir: &Path) -> Result<PathBuf> {
    std::path::absolute(dir).with_context(|| format!("cannot use {}", dir.display()))
}

fn open(dir: &Path) -> Result<Book> {
    Book::read(dir)?
        .with_context(|| format!("there is no network in {}; `mayfly dev up --dir DIR` makes one", dir.display()))
}

fn status(status: &Value) -> String {
    let heading = ["NAME", "ROLE", "PID", "STATE"].map(String::from).to_vec();
    let row = |process: &Value| ["name", "role", "pid", "state"].map(|name| field(process, name)).to_vec();
    let processes = status.get("processes").and_then(Value::as_array).into_iter().flatten();
    table(&std::iter::once(heading).chain(processes.map(row)).collect::<Vec<_>>())
}

/// Refuses what later versions bring, in one sentence.
fn not_yet(asked: bool, what: &str) -> Result<()> {
    if asked {
        bail!("{what} cannot be used in `mayfly dev` yet; leave the option out");
    }
    Ok(())
}

/// Names of files in the network's folder must fit into a socket's address.
fn check_socket_length(path: &Path) -> Result<()> {
    let length = path.as_os_str().len();
    ensure!(
        length <= SOCKET_PATH_BYTES_MAX,
        "{} has {length} bytes, a socket's path at most {SOCKET_PATH_BYTES_MAX}; choose a shorter --dir",
        path.display()
    );
    Ok(())
}
