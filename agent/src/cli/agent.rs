//! The agent as the command line sees it: management requests in JSON, and the binary operations that carry secrets.

use super::announce::advised;
use anyhow::{Context, Result, bail};
use mayfly_wire::{CallError, Connection, PROTOCOL_VERSION, Request, Response, Role, Ticket, request};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest wait for an answer: making a key waits for holders and for a witnessed head.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait for an answer for which the agent goes through its whole ledger: about a minute for a million entries.
pub const LONG_ANSWER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Longest wait for the next step after a refusal.
const ADVICE_TIMEOUT: Duration = Duration::from_secs(2);
/// The account that packages run the agent under.
const AGENT_USER: &str = "mayfly";

/// A connection to the agent.
pub struct Agent {
    connection: Connection,
    ticket: Vec<u8>,
    path: PathBuf,
}

impl Agent {
    /// Connects, checks who listens there, and says hello.
    pub fn connect(path: &Path) -> Result<Self> {
        let connection = Connection::connect(path, Some(ANSWER_TIMEOUT)).with_context(|| {
            format!("no agent answers at {}; start mayflyd, or name its socket with --socket", path.display())
        })?;
        check_peer(&connection, path)?;
        let mut agent = Self { connection, ticket: Vec::new(), path: path.to_owned() };
        let answer = agent.connection.hello(Ticket::default(), hello()).map_err(|e| explain(e, path))?;
        agent.ticket = answer.ticket.0.to_vec();
        Ok(agent)
    }

    /// A management request; `progress` is told what the agent does meanwhile.
    pub fn ask(&mut self, request: &Value, progress: impl FnMut(&str)) -> Result<Value> {
        let answer = self.connection.manage(&request.to_string(), progress).map_err(|e| explain(e, &self.path))?;
        serde_json::from_str(&answer).context("the agent's answer is not JSON; is it of another version?")
    }

    /// A binary request. The last ticket goes with it, and the next one is kept.
    pub fn call(&mut self, request: &Request<'_>) -> Result<Response<'_>> {
        let path = &self.path;
        let answer = self.connection.call(None, Ticket(&self.ticket), request).map_err(|e| explain(e, path))?.1;
        if let Response::Ticket(changed) = &answer
            && !changed.ticket.0.is_empty()
        {
            self.ticket = changed.ticket.0.to_vec();
        }
        Ok(answer)
    }

    /// Waits so long for each answer from now on.
    pub fn patience(self, timeout: Duration) -> Result<Self> {
        self.connection.set_timeout(Some(timeout)).context("cannot wait for the agent")?;
        Ok(self)
    }

    /// The connection itself, for shared buffers.
    pub fn connection(&mut self) -> &mut Connection {
        &mut self.connection
    }

    /// The slot id of a token, by its label.
    pub fn slot(&mut self, label: &str) -> Result<u32> {
        let Response::Tokens(answer) = self.call(&Request::Tokens)? else { bail!("the agent did not list its tokens") };
        let found = answer.tokens.iter().find(|token| token.label == label).map(|token| token.slot);
        found.with_context(|| {
            format!("no token '{label}' is seen on this device; `mayfly token list` names those that are")
        })
    }
}

fn hello() -> request::Hello<'static> {
    request::Hello {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        role: Role::Command,
        process_start: 0,
        name: "mayfly",
    }
}

/// One management request on a connection of its own.
pub fn ask(socket: &Path, request: &Value) -> Result<Value> {
    Agent::connect(socket)?.ask(request, |_| ())
}

/// PINs are sent only to an agent that runs as root, as the agents' account, or as the caller.
fn check_peer(connection: &Connection, path: &Path) -> Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(connection).context("the kernel does not tell who listens")?;
    let uid = peer.uid.as_raw();
    if uid == 0 || uid == rustix::process::getuid().as_raw() || Some(uid) == uid_of(AGENT_USER) {
        return Ok(());
    }
    bail!(
        "the process at {} runs as user {uid}, which is neither root nor '{AGENT_USER}' nor you; nothing was sent",
        path.display()
    )
}

fn uid_of(user: &str) -> Option<u32> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
    line.split(':').nth(2)?.parse().ok()
}

/// What the agent advises after this refusal: what `mayfly why` would tell.
fn next_step(path: &Path, reason: &str) -> Option<String> {
    let mut connection = Connection::connect(path, Some(ADVICE_TIMEOUT)).ok()?;
    connection.hello(Ticket::default(), hello()).ok()?;
    let why: Value = serde_json::from_str(&connection.manage(r#"{"command":"why"}"#, |_| ()).ok()?).ok()?;
    let newest =
        why.get("refusals")?.as_array()?.iter().find(|r| r.get("reason").and_then(Value::as_str) == Some(reason))?;
    Some(newest.get("next")?.as_str()?.to_owned())
}

fn explain(error: CallError, path: &Path) -> anyhow::Error {
    match error {
        CallError::Refused { code, reason, .. } if reason.is_empty() => {
            anyhow::anyhow!("the agent refused ({code:#x}); `mayfly why` may tell more")
        }
        CallError::Refused { reason, .. } => match next_step(path, &reason) {
            Some(next) => advised(reason, next),
            None => anyhow::anyhow!(reason),
        },
        other => anyhow::Error::new(other)
            .context(format!("the agent at {} did not answer as it should; its log may tell why", path.display())),
    }
}
