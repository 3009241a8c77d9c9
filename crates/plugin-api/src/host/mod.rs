//! The body of `mayfly-plugin-host`: one process that holds one plugin and serves one facade.
//!
//! Started by the facade with three inherited descriptors (socket, plugin file, secret page). It makes itself
//! unreadable, gives up what it does not need, loads the plugin and serves calls one by one on a thread whose stack is
//! wiped after each. It ends when the socket closes, even in the middle of a call, so it cannot outlive its agent.
//! (Not by PR_SET_PDEATHSIG: that fires when the *thread* that started us ends, and a restart may come from any.)
//!
//! It must never be trusted by the facade: whatever the plugin does to this process, it does to this process only.

mod call;
mod confine;
mod filter;
mod load;
mod serve_backend;
mod serve_vault;
mod stack;

use crate::abi;
use crate::codec::{self, Op, Reader, Writer};
use crate::config::{Kind, Network};
use crate::page::SecretPage;
use load::Loaded;
use rustix::event::{PollFd, PollFlags};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

/// Stack of the thread that runs the plugin. Own plugins need a few KiB; vendors' libraries are unknown. Wiping it
/// costs about 20 µs a call.
const CALL_STACK_BYTES: usize = 1024 * 1024;
/// How long the plugin may take to close after the facade has gone.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A plugin that eats the memory goes before the agent, by a fifth of all there is; what else eats it goes first
/// (proc_pid_oom_score_adj(5)).
const OOM_SCORE_ADJ: &str = "200";

/// What the command line names: inherited descriptors.
struct Inherited {
    socket: UnixStream,
    plugin: OwnedFd,
    page: OwnedFd,
}

/// Runs the host; returns only when it could not be set up.
pub fn main() -> ExitCode {
    set_out();
    // from here on nobody reads this process, and there is secret memory for nothing else to be in
    let hardened = mayfly_secmem::harden_process();
    let inherited = match arguments(std::env::args().skip(1)) {
        Ok(inherited) => inherited,
        Err(what) => {
            eprintln!("mayfly-plugin-host: {what}; it is started by mayflyd or mayfly-ledger, not by hand");
            return ExitCode::from(2);
        }
    };
    let problem = hardened.err().map(|error| error.to_string()).or_else(|| confine::basics(&inherited.keep()).err());
    let Ok(watched) = inherited.socket.try_clone() else { return ExitCode::FAILURE };
    let started = stack::run_on_own_stack(CALL_STACK_BYTES, move |wiper| serve(inherited, problem, wiper));
    if let Err(error) = started {
        eprintln!("mayfly-plugin-host: no thread for the plugin: {error}");
        return ExitCode::FAILURE;
    }
    wait_for_hang_up(&watched);
    std::thread::sleep(CLOSE_TIMEOUT);
    // the plugin is still busy with its last call, or does not close: nobody is left to answer to
    exit_now(1)
}

/// What the kernel shows and does with this process: a name (it was started by descriptor, which would be shown), and a
/// place in front of its caller when memory runs out. Neither matters enough to fail.
fn set_out() {
    let _ = rustix::thread::set_name(c"mayfly-plugin-host");
    // before this process becomes unreadable, and this file root's
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE_ADJ);
}

impl Inherited {
    fn keep(&self) -> [i32; 3] {
        [self.socket.as_raw_fd(), self.plugin.as_raw_fd(), self.page.as_raw_fd()]
    }
}

fn arguments(mut given: impl Iterator<Item = String>) -> Result<Inherited, String> {
    let mut descriptor = |option: &str| -> Result<OwnedFd, String> {
        if given.next().as_deref() != Some(option) {
            return Err(format!("expected {option}"));
        }
        let number = given.next().and_then(|text| text.parse::<i32>().ok()).filter(|number| *number > 2);
        let number = number.ok_or_else(|| format!("{option} needs the number of a descriptor"))?;
        // SAFETY: a probe of the descriptor table; F_GETFD changes nothing.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            return Err(format!("{option}: descriptor {number} is not open"));
        }
        // SAFETY: open as just seen, inherited for us alone: nothing in this new process owns it yet, and each option
        // comes once.
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(|error| format!("{option}: {error}"))?;
        Ok(fd)
    };
    let socket = descriptor("--socket")?;
    let plugin = descriptor("--plugin")?;
    let page = descriptor("--page")?;
    Ok(Inherited { socket: UnixStream::from(socket), plugin, page })
}

fn wait_for_hang_up(socket: &UnixStream) {
    loop {
        // no event asked for: POLLHUP and POLLERR are always told
        let mut set = [PollFd::new(socket, PollFlags::empty())];
        match rustix::event::poll(&mut set, None) {
            Ok(_) if !set[0].revents().is_empty() => return,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Ends the process without running destructors of the plugin's library, which may hang or crash.
fn exit_now(code: i32) -> ! {
    // SAFETY: _exit ends the process; nothing of ours needs to run after it.
    unsafe { libc::_exit(code) }
}

/// The call thread: requests in, calls, answers out, until the facade goes.
fn serve(inherited: Inherited, problem: Option<String>, wiper: stack::Wiper) {
    mayfly_secmem::mask_signals_on_this_thread();
    let Inherited { mut socket, plugin, page } = inherited;
    let mapped = SecretPage::map(&page);
    drop(page);
    let page = match (problem, mapped) {
        (None, Ok(page)) => page,
        (problem, mapped) => {
            let what = problem.or_else(|| mapped.err().map(|error| format!("secret page: {error}")));
            refuse_everything(&mut socket, what.unwrap_or_default());
            exit_now(1);
        }
    };
    let mut server = Server { plugin: Some(plugin), page, loaded: None };
    let mut request = Vec::new();
    while let Ok(true) = receive(&mut socket, &mut request) {
        let answer = server.answer(&request);
        // what the plugin left on the stack and in registers goes before this thread waits again
        wiper.wipe_below();
        mayfly_secmem::on_secret_stack(|| ());
        if send(&mut socket, answer).is_err() {
            break;
        }
    }
    if let Some(loaded) = server.loaded.take() {
        loaded.close();
    }
    exit_now(0)
}

struct Server {
    plugin: Option<OwnedFd>,
    page: SecretPage,
    loaded: Option<Loaded>,
}

impl Server {
    /// The answer's frame without its length.
    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let mut fields = Reader::new(request);
        let (Ok(id), Ok(op)) = (fields.u64(), fields.u8()) else {
            return call::Reply::host(codec::HOST_BAD_REQUEST, "a request without a head").frame(0);
        };
        let reply = match Op::from_code(op) {
            Some(op @ (Op::Init | Op::Table)) => self.init(op, &mut fields),
            Some(op) => self.call(op, &mut fields),
            None => call::Reply::host(codec::HOST_BAD_REQUEST, &format!("no operation {op}")),
        };
        reply.frame(id)
    }

    fn call(&mut self, op: Op, fields: &mut Reader<'_>) -> call::Reply {
        let result = match &self.loaded {
            Some(Loaded::Vault(vault)) => serve_vault::serve(vault, op, fields, &self.page),
            Some(Loaded::Backend(backend)) => serve_backend::serve(backend, op, fields),
            None => return call::Reply::host(codec::HOST_BAD_REQUEST, "the plugin is not open"),
        };
        result.unwrap_or_else(|malformed| call::Reply::host(codec::HOST_BAD_REQUEST, malformed.0))
    }

    fn init(&mut self, op: Op, fields: &mut Reader<'_>) -> call::Reply {
        let Some(plugin) = self.plugin.take() else {
            return call::Reply::host(codec::HOST_BAD_REQUEST, "opened twice");
        };
        match self.open(op, plugin, fields) {
            Ok(reply) => reply,
            Err(malformed) => call::Reply::host(codec::HOST_BAD_REQUEST, malformed.0),
        }
    }

    fn open(&mut self, op: Op, plugin: OwnedFd, fields: &mut Reader<'_>) -> Result<call::Reply, codec::Malformed> {
        let protocol = fields.u32()?;
        if protocol != codec::PROTOCOL {
            let what = format!(
                "mayfly-plugin-host speaks version {}, its caller {protocol}: they are of two builds",
                codec::PROTOCOL
            );
            return Ok(call::Reply::host(codec::HOST_UNUSABLE, &what));
        }
        let wanted = Kind::from_code(fields.u32()?);
        let network = if fields.u8()? == 0 { Network::None } else { Network::Allowed };
        let config = fields.bytes(abi::CONFIG_BYTES_MAX)?;
        let data_dir = fields.bytes(abi::PATH_BYTES_MAX)?;
        // SAFETY: `plugin` is open for as long as this borrow lives.
        let file = unsafe { BorrowedFd::borrow_raw(plugin.as_raw_fd()) };
        if let Err(what) = filter::apply(network) {
            return Ok(call::Reply::host(codec::HOST_NOT_SAFE, &what));
        }
        // what is only looked at may need a network that it does not get
        let granted = if op == Op::Table { Network::Allowed } else { network };
        let library = match load::load(file, wanted, granted) {
            Ok(library) => library,
            Err(what) => return Ok(call::Reply::host(codec::HOST_UNUSABLE, &what)),
        };
        drop(plugin);
        let described =
            Writer::new().u32(library.kind().code()).bytes(library.name.as_bytes()).bytes(library.version.as_bytes());
        if op == Op::Table {
            return Ok(call::Reply::ok(described));
        }
        Ok(match library.open(config, data_dir) {
            Ok(loaded) => {
                self.loaded = Some(loaded);
                call::Reply::ok(described)
            }
            Err(reply) => reply,
        })
    }
}

/// Answers the first request with the reason for which this host does not work.
fn refuse_everything(socket: &mut UnixStream, what: String) {
    let mut request = Vec::new();
    if let Ok(true) = receive(socket, &mut request) {
        let id = Reader::new(&request).u64().unwrap_or_default();
        // nobody is left to tell when this fails
        let _ = send(socket, call::Reply::host(codec::HOST_NOT_SAFE, &what).frame(id));
    }
}

/// Reads one frame; false at the end of the stream.
fn receive(socket: &mut UnixStream, frame: &mut Vec<u8>) -> io::Result<bool> {
    let mut length = [0u8; 4];
    match socket.read_exact(&mut length) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let length = u32::from_le_bytes(length) as usize;
    if length > codec::FRAME_BYTES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    frame.clear();
    frame.resize(length, 0);
    socket.read_exact(frame)?;
    Ok(true)
}

fn send(socket: &mut UnixStream, frame: Vec<u8>) -> io::Result<()> {
    let length = u32::try_from(frame.len()).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(4 + frame.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&frame);
    socket.write_all(&bytes)
}
