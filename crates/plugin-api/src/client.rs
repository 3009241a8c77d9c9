//! One plugin host as its facade sees it: starting, calling within a time limit, killing, starting again.
//!
//! One call at a time (a mutex). Whatever goes wrong on the way, an answer that is late, cut, too long or not to this
//! call, ends the host: its state is unknown, and a new process is cheap. The next call starts it again, at once after
//! the first failure, then with a growing pause, so that a plugin that cannot work costs next to nothing.

use crate::abi::{self, Status};
use crate::codec::{self, Malformed, Op, Reader, Writer};
use crate::config::{HostConfig, Kind, Network};
use crate::error::PluginError;
use crate::page::SecretPage;
use crate::path::{check_path, pinned_copy};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;
use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pause before the second restart in a row; it doubles.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
/// Longest pause between restarts.
const BACK_OFF_MAX: Duration = Duration::from_secs(10);
/// Longest call that is waited for: a configuration's "for ever" may not overflow the clock.
const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The host's program, in messages about itself.
const HOST: &str = "mayfly-plugin-host";
/// How long a host may take to close its files when it is told to end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long to wait for a killed host; one in an uninterruptible system call is left to a thread.
const KILL_TIMEOUT: Duration = Duration::from_millis(500);

/// What a plugin's table says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginInfo {
    /// What it is for.
    pub kind: Kind,
    /// Its name, `[a-z0-9-]+`, at most 32 bytes.
    pub name: String,
    /// Its version, for people, at most 32 bytes.
    pub version: String,
}

/// Loads a plugin as it would be used, with its path rule and its pin, and reads its table; it is not opened, so its configuration does
/// not matter.
///
/// # Errors
/// Unsafe paths, a wrong pin, a file that is no plugin, another interface version.
pub fn inspect(config: &HostConfig) -> Result<PluginInfo, PluginError> {
    let client = Client::idle(config, None);
    client.introduce(&mut client.lock(), Op::Table)
}

/// A plugin and its host process.
pub(crate) struct Client {
    config: HostConfig,
    kind: Option<Kind>,
    state: Mutex<State>,
    /// Kills without waiting for a call that is under way.
    killer: Mutex<Option<OwnedFd>>,
}

struct State {
    running: Option<Running>,
    opened: Option<PluginInfo>,
    failures: u32,
    not_before: Option<Instant>,
    next_id: u64,
}

struct Running {
    child: Child,
    socket: UnixStream,
    page: SecretPage,
}

/// An answer with status 0: its fields and the secret page, both only within the call.
pub(crate) struct Answer<'a> {
    pub(crate) fields: Reader<'a>,
    pub(crate) page: &'a SecretPage,
}

/// An answer of the plugin that is not [`Status::Ok`], with the fields that some statuses carry.
pub(crate) struct Refusal<'a> {
    pub(crate) status: Status,
    pub(crate) message: String,
    pub(crate) fields: Reader<'a>,
}

/// What an answer's check found wrong; becomes [`PluginError::BadAnswer`], or an error of our own making.
pub(crate) enum Wrong {
    Answer(String),
    NoSecretMemory(mayfly_secmem::Exhausted),
}

impl From<Malformed> for Wrong {
    fn from(malformed: Malformed) -> Wrong {
        Wrong::Answer(malformed.0.to_owned())
    }
}

impl From<mayfly_secmem::Exhausted> for Wrong {
    fn from(exhausted: mayfly_secmem::Exhausted) -> Wrong {
        Wrong::NoSecretMemory(exhausted)
    }
}

/// A [`Wrong`] answer, for checks.
pub(crate) fn wrong<T>(what: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Answer(what.into()))
}

impl Client {
    /// Starts the plugin of `config`, which must be of `kind` if one is given.
    pub(crate) fn start(config: &HostConfig, kind: Option<Kind>) -> Result<Client, PluginError> {
        let client = Client::idle(config, kind);
        client.ensure_running(&mut client.lock())?;
        Ok(client)
    }

    /// As [`Client::start`], but the host is started by the first call.
    pub(crate) fn idle(config: &HostConfig, kind: Option<Kind>) -> Client {
        let mut config = config.clone();
        // the host works in the data folder: relative paths would mean something else there
        for path in [&mut config.host_path, &mut config.plugin_path, &mut config.data_dir] {
            *path = std::path::absolute(&*path).unwrap_or_else(|_| path.clone());
        }
        Client {
            config,
            kind,
            state: Mutex::new(State { running: None, opened: None, failures: 0, not_before: None, next_id: 1 }),
            killer: Mutex::new(None),
        }
    }

    /// What the plugin said of itself.
    pub(crate) fn opened(&self) -> Option<PluginInfo> {
        self.lock().opened.clone()
    }

    pub(crate) fn config(&self) -> &HostConfig {
        &self.config
    }

    /// `vault(file)`.
    pub(crate) fn who(&self) -> String {
        self.who_of(&self.lock())
    }

    fn who_of(&self, state: &State) -> String {
        let (kind, name) = match &state.opened {
            Some(opened) => (Some(opened.kind), opened.name.clone()),
            None => (self.kind, self.config.name_guess()),
        };
        format!("{}({name})", kind.map_or("plugin", Kind::word))
    }

    /// One call; any refusal is an error.
    pub(crate) fn call<T>(
        &self,
        op: Op,
        fields: Writer,
        check: impl FnOnce(&mut Answer<'_>) -> Result<T, Wrong>,
    ) -> Result<T, PluginError> {
        self.call_with(op, fields, self.config.call_timeout, check, |_| Ok(None))
    }

    /// One call; `refused` may turn a refusal into a result.
    pub(crate) fn call_with<T>(
        &self,
        op: Op,
        fields: Writer,
        limit: Duration,
        check: impl FnOnce(&mut Answer<'_>) -> Result<T, Wrong>,
        refused: impl FnOnce(&mut Refusal<'_>) -> Result<Option<T>, Wrong>,
    ) -> Result<T, PluginError> {
        let mut state = self.lock();
        self.ensure_running(&mut state)?;
        let result = self.exchange(&mut state, op, fields, limit, check, refused);
        match &result {
            Ok(_) | Err(PluginError::Refused { .. } | PluginError::NoSecretMemory { .. }) => state.failures = 0,
            Err(_) => self.fail(&mut state),
        }
        result
    }

    fn exchange<T>(
        &self,
        state: &mut State,
        op: Op,
        fields: Writer,
        limit: Duration,
        check: impl FnOnce(&mut Answer<'_>) -> Result<T, Wrong>,
        refused: impl FnOnce(&mut Refusal<'_>) -> Result<Option<T>, Wrong>,
    ) -> Result<T, PluginError> {
        let who = self.who_of(state);
        let id = state.next_id;
        state.next_id += 1;
        let Some(running) = &mut state.running else {
            return Err(PluginError::Restarting { who, wait: Duration::ZERO });
        };
        let call = op.name();
        let limit = limit.min(CALL_TIMEOUT_MAX);
        let deadline = Instant::now() + limit;
        let frame = transfer(running, id, op, fields, deadline).map_err(|error| match error.kind() {
            io::ErrorKind::TimedOut => PluginError::TimedOut { who: who.clone(), call, limit },
            io::ErrorKind::InvalidData => PluginError::BadAnswer { who: who.clone(), call, what: error.to_string() },
            _ => PluginError::Ended { who: who.clone(), call, how: how_it_ended(running, &error) },
        })?;
        let result = self.judge(id, &frame, &running.page, check, refused);
        running.page.wipe();
        result.map_err(|verdict| match verdict {
            Verdict::Wrong(Wrong::Answer(what)) => PluginError::BadAnswer { who, call, what },
            Verdict::Wrong(Wrong::NoSecretMemory(source)) => PluginError::NoSecretMemory { who, call, source },
            Verdict::Refused(status, message) => PluginError::Refused { who, call, status, message },
            Verdict::NotSafe(what) => PluginError::NotSafe { who, what },
            Verdict::Unusable(what) => PluginError::Unusable { who, path: self.config.plugin_path.clone(), what },
        })
    }

    /// Takes an answer apart, from the outside in.
    fn judge<T>(
        &self,
        id: u64,
        frame: &[u8],
        page: &SecretPage,
        check: impl FnOnce(&mut Answer<'_>) -> Result<T, Wrong>,
        refused: impl FnOnce(&mut Refusal<'_>) -> Result<Option<T>, Wrong>,
    ) -> Result<T, Verdict> {
        let mut fields = Reader::new(frame);
        if fields.u64()? != id {
            return Err(Verdict::Wrong(Wrong::Answer("an answer to another call".to_owned())));
        }
        let code = fields.i32()?;
        let message = fields.text(abi::MESSAGE_BYTES_MAX)?;
        match code {
            0 => {
                let mut answer = Answer { fields, page };
                let value = check(&mut answer)?;
                answer.fields.finish()?;
                Ok(value)
            }
            codec::HOST_UNUSABLE => Err(Verdict::Unusable(message)),
            codec::HOST_NOT_SAFE => Err(Verdict::NotSafe(message)),
            code if code < 0 => Err(Verdict::Wrong(Wrong::Answer(message))),
            code => {
                let Some(status) = Status::from_code(code) else {
                    return Err(Verdict::Wrong(Wrong::Answer(format!("unknown status {code}"))));
                };
                let message = if message.is_empty() { format!("{status:?}, no reason given") } else { message };
                let mut refusal = Refusal { status, message, fields };
                match refused(&mut refusal)? {
                    Some(value) => {
                        refusal.fields.finish()?;
                        Ok(value)
                    }
                    None => Err(Verdict::Refused(status, refusal.message)),
                }
            }
        }
    }

    /// Kills the host process at once, even in the middle of a call: what a crash looks like. For tests and suites.
    pub(crate) fn danger_kill_host(&self) {
        if let Some(pidfd) = &*self.killer.lock().unwrap_or_else(PoisonError::into_inner) {
            // the host may have ended by itself meanwhile: nothing is left to do then
            let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Process id of the running host.
    pub(crate) fn host_pid(&self) -> Option<u32> {
        self.lock().running.as_ref().map(|running| running.child.id())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // a panic of a check under the lock leaves a host with an unread answer at worst, and that is found out by
        // the call id
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, state: &mut State) {
        self.end(state);
        let pause = match state.failures {
            0 => Duration::ZERO,
            n => BACK_OFF_FIRST.saturating_mul(1 << (n - 1).min(16)).min(BACK_OFF_MAX),
        };
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + pause);
    }

    fn end(&self, state: &mut State) {
        *self.killer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Some(running) = state.running.take() {
            running.kill();
        }
    }

    fn ensure_running(&self, state: &mut State) -> Result<(), PluginError> {
        if state.running.is_some() {
            return Ok(());
        }
        let now = Instant::now();
        if let Some(at) = state.not_before.filter(|at| *at > now) {
            return Err(PluginError::Restarting { who: self.who_of(state), wait: at - now });
        }
        let result = self.launch(state);
        if result.is_err() {
            self.fail(state);
        }
        result
    }

    fn launch(&self, state: &mut State) -> Result<(), PluginError> {
        let who = self.who_of(state);
        let before = state.opened.clone();
        let opened = self.introduce(state, Op::Init)?;
        if before.is_some_and(|before| (before.kind, &before.name) != (opened.kind, &opened.name)) {
            let what = format!("after a restart it is {}({})", opened.kind.word(), opened.name);
            return Err(PluginError::Unusable { who, path: self.config.plugin_path.clone(), what });
        }
        state.opened = Some(opened);
        Ok(())
    }

    /// Starts a host and has it load the plugin ([`Op::Table`]), and open it ([`Op::Init`]).
    fn introduce(&self, state: &mut State, op: Op) -> Result<PluginInfo, PluginError> {
        let running = spawn(&self.config, &self.who_of(state))?;
        *self.killer.lock().unwrap_or_else(PoisonError::into_inner) = pidfd_of(&running.child).ok();
        state.running = Some(running);
        let fields = Writer::new()
            .u32(codec::PROTOCOL)
            .u32(self.kind.map_or(0, Kind::code))
            .u8((self.config.network == Network::Allowed).into())
            .bytes(self.config.config_text.as_bytes())
            .bytes(self.config.data_dir.as_os_str().as_bytes());
        self.exchange(
            state,
            op,
            fields,
            self.config.call_timeout,
            |answer| {
                let kind = answer.fields.u32()?;
                let kind = Kind::from_code(kind).ok_or(Wrong::Answer(format!("unknown kind {kind}")))?;
                let name = answer.fields.text(abi::NAME_BYTES_MAX)?;
                let version = answer.fields.text(abi::NAME_BYTES_MAX)?;
                // the host has checked it, but the plugin's initialisers ran in the host before
                if !codec::is_name(&name) {
                    return wrong("a name that is not made of a-z, 0-9 and -");
                }
                Ok(PluginInfo { kind, name, version })
            },
            |_| Ok(None),
        )
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = state.running.take() {
            running.close();
        }
    }
}

enum Verdict {
    Wrong(Wrong),
    Refused(Status, String),
    Unusable(String),
    NotSafe(String),
}

impl From<Malformed> for Verdict {
    fn from(malformed: Malformed) -> Verdict {
        Verdict::Wrong(malformed.into())
    }
}

impl From<Wrong> for Verdict {
    fn from(wrong: Wrong) -> Verdict {
        Verdict::Wrong(wrong)
    }
}

impl Running {
    /// Lets the host close its files and end; kills it when it does not.
    fn close(self) {
        let Running { mut child, socket, page } = self;
        drop(socket);
        drop(page);
        if !ended_within(&mut child, CLOSE_TIMEOUT) {
            kill(child);
        }
    }

    fn kill(self) {
        kill(self.child);
    }
}

fn kill(mut child: Child) {
    // an error means that it has ended already
    let _ = child.kill();
    if !ended_within(&mut child, KILL_TIMEOUT) {
        std::thread::spawn(move || child.wait());
    }
}

fn ended_within(child: &mut Child, limit: Duration) -> bool {
    if matches!(child.try_wait(), Ok(Some(_))) {
        return true;
    }
    if let Ok(pidfd) = pidfd_of(child) {
        let _ = wait_for(&pidfd, PollFlags::IN, Instant::now() + limit);
    }
    matches!(child.try_wait(), Ok(Some(_)))
}

fn pidfd_of(child: &Child) -> io::Result<OwnedFd> {
    let pid = rustix::process::Pid::from_child(child);
    Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
}

fn how_it_ended(running: &mut Running, error: &io::Error) -> String {
    if !ended_within(&mut running.child, KILL_TIMEOUT) {
        return error.to_string();
    }
    match running.child.try_wait() {
        Ok(Some(status)) => match status.signal() {
            Some(signal) => format!("signal {signal}"),
            None => format!("exit status {}", status.code().unwrap_or(-1)),
        },
        _ => error.to_string(),
    }
}

/// Starts the host process; the plugin is not opened yet.
fn spawn(config: &HostConfig, who: &str) -> Result<Running, PluginError> {
    let path = |who: &str| {
        let who = who.to_owned();
        move |cause| PluginError::Path { who, cause }
    };
    let host = |action: &str| {
        let (who, action) = (who.to_owned(), action.to_owned());
        move |cause| PluginError::Host { who, action, cause }
    };
    let mut plugin = check_path(&config.plugin_path, config.path_rule).map_err(path(who))?;
    if let Some(pin) = &config.pin {
        plugin = pinned_copy(&config.plugin_path, plugin, pin).map_err(path(who))?;
    }
    let program = check_path(&config.host_path, config.path_rule).map_err(path(HOST))?;
    prepare_data_dir(&config.data_dir).map_err(host(&format!("data folder {}", config.data_dir.display())))?;
    let (page, page_fd) = SecretPage::make().map_err(host("secret memory"))?;
    let (ours, theirs) = UnixStream::pair().map_err(host("socket pair"))?;
    ours.set_nonblocking(true).map_err(host("socket pair"))?;
    let inherited = [OwnedFd::from(theirs), OwnedFd::from(plugin), page_fd];
    let numbers: [i32; 3] = std::array::from_fn(|index| inherited[index].as_raw_fd());

    // the file that was checked, whatever its name leads to by now; the child's descriptors have the same numbers
    let mut command = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()));
    command.arg0("mayfly-plugin-host");
    for (option, number) in ["--socket", "--plugin", "--page"].iter().zip(numbers) {
        command.arg(option).arg(number.to_string());
    }
    command.env_clear().envs(environment(config).map_err(host("environment"))?);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.current_dir(&config.data_dir).process_group(0);
    // SAFETY: runs in the child between fork and exec; fcntl is async-signal-safe, and only descriptors of the child
    // itself lose their close-on-exec flag.
    unsafe {
        command.pre_exec(move || {
            for number in numbers {
                if libc::fcntl(number, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        })
    };
    let child = command.spawn().map_err(host(&format!("starting {}", config.host_path.display())))?;
    Ok(Running { child, socket: ours, page })
}

/// Makes the private folder, or checks that it is private.
fn prepare_data_dir(path: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let found = std::fs::symlink_metadata(path)?;
    if !found.is_dir() {
        return Err(io::Error::other("is not a folder"));
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::Error::other("belongs to another user"));
    }
    if found.mode() & 0o077 != 0 {
        return Err(io::Error::other("is open to others; run `chmod 700` on it"));
    }
    Ok(())
}

/// The host's environment: what the configuration lists, and where systemd put credentials.
fn environment(config: &HostConfig) -> io::Result<Vec<(std::ffi::OsString, std::ffi::OsString)>> {
    const CREDENTIALS: &str = "CREDENTIALS_DIRECTORY";
    let mut all = config.env.clone();
    if let (Some(folder), false) = (std::env::var_os(CREDENTIALS), all.iter().any(|(name, _)| name == CREDENTIALS)) {
        all.push((CREDENTIALS.into(), folder));
    }
    match all.iter().find(|(name, _)| steers_loading(name)) {
        Some((name, _)) => Err(io::Error::other(format!("{} may not be set for a plugin", name.display()))),
        None => Ok(all),
    }
}

fn steers_loading(name: &OsStr) -> bool {
    let name = name.as_bytes();
    [&b"LD_"[..], b"GLIBC_", b"MALLOC_", b"GCONV_", b"LOCPATH"].iter().any(|prefix| name.starts_with(prefix))
}

/// Sends a request and receives the answer's frame (without its length), all before the deadline.
fn transfer(running: &mut Running, id: u64, op: Op, fields: Writer, deadline: Instant) -> io::Result<Vec<u8>> {
    let fields = fields.finish();
    let length = 9 + fields.len();
    let mut request = Vec::with_capacity(4 + length);
    let length = u32::try_from(length).map_err(|_| io::Error::other("request too long"))?;
    request.extend_from_slice(&length.to_le_bytes());
    request.extend_from_slice(&id.to_le_bytes());
    request.push(op as u8);
    request.extend_from_slice(&fields);
    write_all(&mut running.socket, &request, deadline)?;
    let mut length = [0u8; 4];
    read_exact(&mut running.socket, &mut length, deadline)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > codec::FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("an answer of {length} bytes")));
    }
    let mut frame = vec![0u8; length];
    read_exact(&mut running.socket, &mut frame, deadline)?;
    Ok(frame)
}

fn write_all(socket: &mut UnixStream, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) => retry(socket, error, PollFlags::OUT, deadline)?,
        }
    }
    Ok(())
}

fn read_exact(socket: &mut UnixStream, mut out: &mut [u8], deadline: Instant) -> io::Result<()> {
    while !out.is_empty() {
        match socket.read(out) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => out = &mut out[count..],
            Err(error) => retry(socket, error, PollFlags::IN, deadline)?,
        }
    }
    Ok(())
}

fn retry(socket: &UnixStream, error: io::Error, flags: PollFlags, deadline: Instant) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::Interrupted => Ok(()),
        // poll looks once more after the deadline, so an agent that was stopped (SIGSTOP) finds an answer that is there
        io::ErrorKind::WouldBlock if wait_for(socket, flags, deadline)? => Ok(()),
        io::ErrorKind::WouldBlock => Err(io::ErrorKind::TimedOut.into()),
        _ => Err(error),
    }
}

/// True when `fd` is ready before (or at) the deadline.
fn wait_for(fd: impl AsFd, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match rustix::event::poll(&mut [PollFd::new(&fd, flags)], Some(&timeout)) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
