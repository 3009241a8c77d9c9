//! `mayfly token create|list|pin`: sets of keys that applications see as one PKCS#11 token.

use super::admin::{Administrator, Signing};
use super::agent::{Agent, ask};
use super::announce::{Announcer, advised, field, quoted, table};
use super::ask::Question;
use super::value;
use crate::app::pins::PIN_BYTES_MIN;
use crate::app::tokens::LABEL_BYTES_MAX;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand, ValueEnum};
use mayfly_protocol::record;
use mayfly_protocol::{State, TokenId};
use mayfly_secmem::SecretBytes;
use mayfly_wire::{PIN_BYTES_MAX, Pin, Request, Response, User, request};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Variable with the security officer's PIN.
pub const SO_PIN_VARIABLE: &str = "MAYFLY_SO_PIN";
/// Variable with the user's PIN.
pub const USER_PIN_VARIABLE: &str = "MAYFLY_USER_PIN";
/// Variable with a PIN that replaces another.
const NEW_PIN_VARIABLE: &str = "MAYFLY_NEW_PIN";
/// Longest wait until this device's agent sees a new token.
const SEEN_TIMEOUT: Duration = Duration::from_secs(15);

/// Make and list tokens, set PINs
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  mayfly token create web --creators web-1,web-2")]
pub enum Token {
    Create(Create),
    List(List),
    Pin(SetPin),
}

/// Make a token, and set its PINs on this device
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mayfly token create web --creators web-1,web-2 --allow group=ssl-cert --admin net/administrator.key"
)]
pub struct Create {
    /// Label: what applications see
    label: String,
    /// Devices on which it is seen; all if left out
    #[arg(long, value_delimiter = ',', value_name = "DEVICE,…")]
    devices: Vec<String>,
    /// Devices that may make and delete its keys and set its PINs; those that see it if left out
    #[arg(long, value_delimiter = ',', value_name = "DEVICE,…")]
    creators: Vec<String>,
    /// Users who may use it: user=NAME or group=NAME; all if left out
    #[arg(long, value_delimiter = ',', value_name = "USER,…", value_parser = value::user_rule)]
    allow: Vec<String>,
    /// File with the security officer's PIN (- for standard input); else MAYFLY_SO_PIN or the terminal
    #[arg(long, value_name = "FILE")]
    so_pin_file: Option<PathBuf>,
    /// File with the user's PIN; else MAYFLY_USER_PIN or the terminal
    #[arg(long, value_name = "FILE")]
    user_pin_file: Option<PathBuf>,
    /// Only make the token; `mayfly token pin` or C_InitToken sets PINs later
    #[arg(long)]
    without_pins: bool,
    #[command(flatten)]
    signing: Signing,
}

/// List the tokens that this device sees
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  mayfly token list")]
pub struct List {}

/// Set a PIN: the user's by the security officer's, or one's own by the old one
///
/// Of a token that has no PINs yet, root or the agent's user sets both, on a device that may make keys in it.
#[derive(Debug, Args)]
#[command(
    after_help = "Example: the security officer sets the user's PIN\n  mayfly token pin web --so-pin-file so --new-pin-file user\n\
    Example: the user changes it\n  mayfly token pin web --change user"
)]
pub struct SetPin {
    /// The token
    label: String,
    /// Change this one's PIN by its old PIN, instead of setting the user's by the security officer's
    #[arg(long, value_enum, value_name = "WHO")]
    change: Option<Who>,
    /// File with the security officer's PIN, or with the old PIN; else MAYFLY_SO_PIN, MAYFLY_USER_PIN or the terminal
    #[arg(long, visible_alias = "old-pin-file", value_name = "FILE")]
    so_pin_file: Option<PathBuf>,
    /// File with the new PIN; else MAYFLY_NEW_PIN or the terminal
    #[arg(long, value_name = "FILE")]
    new_pin_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Who {
    /// The normal user
    User,
    /// The security officer
    So,
}

impl Token {
    /// Runs the command.
    pub fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        match self {
            Token::Create(c) => c.run(out, socket),
            Token::List(_) => {
                out.result(&ask(socket, &json!({"command": "token.list"}))?, list)?;
                Ok(())
            }
            Token::Pin(c) => c.run(out, socket),
        }
    }
}

impl Create {
    fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        // PINs first: nothing is made if they are not there.
        let pins = if self.without_pins { None } else { Some(self.pins()?) };
        let mut administrator = Administrator::open(&self.signing)?;
        if pins.is_some() {
            self.check_agent(socket, &administrator.state())?;
        }
        let made = create(&mut administrator, &self.label, &self.devices, &self.creators, &self.allow)?;
        administrator.wait_effective()?;
        if let Some((so_pin, user_pin)) = pins {
            set_first_pins(socket, &self.label, &so_pin, &user_pin)
                .with_context(|| "the token was made, but has no PINs yet")
                .map_err(|error| {
                    let label = quoted(&self.label);
                    advised(format!("{error:#}"), format!("`mayfly token pin {label}` on one of its devices sets them"))
                })?;
        }
        out.result(&made, |token| {
            format!("token '{}' is made; applications see it on every device named for it", field(token, "label"))
        })?;
        Ok(())
    }

    fn pins(&self) -> Result<(SecretBytes, SecretBytes)> {
        let so = new_pin("security officer's PIN", self.so_pin_file.as_deref(), SO_PIN_VARIABLE)?;
        Ok((so, new_pin("user PIN", self.user_pin_file.as_deref(), USER_PIN_VARIABLE)?))
    }

    /// Whether this device's agent can set the PINs: what it would refuse must not leave a token without PINs behind.
    fn check_agent(&self, socket: &Path, state: &State) -> Result<()> {
        const ELSEWHERE: &str =
            "do this on one of its devices, as root or the agent's user, or make it with --without-pins";
        let status = ask(socket, &json!({"command": "status"}))
            .map_err(|error| advised(format!("the PINs cannot be set: {error:#}"), ELSEWHERE))?;
        let refuse = |why: &str| Err(advised(format!("the PINs cannot be set: {why}; nothing was made"), ELSEWHERE));
        if status.get("network") != Some(&json!(state.network.to_string())) {
            return refuse("this device's agent is of another network");
        }
        if status.get("manages") != Some(&json!(true)) {
            return refuse("only root and the agent's own user may set a token's first PINs");
        }
        let own = status.get("device").and_then(Value::as_str).unwrap_or_default();
        let named = |devices: &[String]| -> Result<bool> {
            let ids = device_ids(state, devices)?;
            Ok(ids.is_empty() || ids.iter().any(|id| state.device_name(id) == own))
        };
        if !named(&self.devices)? || !named(&self.creators)? {
            return refuse(&format!("device '{own}' is none of those that see the token and may make keys in it"));
        }
        Ok(())
    }
}

/// A PIN that nobody has had yet, of a length that agents take.
fn new_pin(what: &str, file: Option<&Path>, variable: &str) -> Result<SecretBytes> {
    let pin = Question { what, file, variable, is_new: true }.ask()?;
    let lengths = PIN_BYTES_MIN..=PIN_BYTES_MAX;
    ensure!(
        lengths.contains(&pin.len()),
        "the {what} has {} bytes; a PIN has {PIN_BYTES_MIN} to {PIN_BYTES_MAX}; nothing was changed",
        pin.len()
    );
    Ok(pin)
}

/// Posts the TOKEN record.
pub fn create(
    administrator: &mut Administrator,
    label: &str,
    devices: &[String],
    creators: &[String],
    allow: &[String],
) -> Result<Value> {
    let state = administrator.state();
    ensure!(state.token_by_label(label).is_none(), "there is a token '{label}' already");
    ensure!(
        (1..=LABEL_BYTES_MAX).contains(&label.trim().len()) && !label.chars().any(char::is_control),
        "a token's label has 1 to {LABEL_BYTES_MAX} bytes and no control characters"
    );
    let mut id = [0; 32];
    getrandom::fill(&mut id).context("the kernel gave no randomness")?;
    let record = record::Token {
        id: TokenId(id),
        label: label.into(),
        devices: device_ids(&state, devices)?,
        creators: device_ids(&state, creators)?,
        allow: allow.to_vec(),
    };
    administrator.post(record)?;
    Ok(json!({"label": label, "id": hex::encode(id)}))
}

fn device_ids(state: &State, names: &[String]) -> Result<Vec<mayfly_protocol::DeviceId>> {
    names.iter().map(|name| super::admin::device(state, name)).collect()
}

/// Sets both PINs of a new token, through this device's agent.
pub fn set_first_pins(socket: &Path, label: &str, so_pin: &SecretBytes, user_pin: &SecretBytes) -> Result<()> {
    let mut agent = Agent::connect(socket)?;
    let token = wait_until_seen(&mut agent, label)?;
    let init = request::InitToken { token, so_pin: Pin(so_pin.expose()), label };
    done(&mut agent, &Request::InitToken(init))?;
    set_user_pin(&mut agent, token, so_pin, user_pin)
}

/// The security officer logs in, sets the user's PIN, and is gone.
fn set_user_pin(agent: &mut Agent, token: u32, so_pin: &SecretBytes, user_pin: &SecretBytes) -> Result<()> {
    let pin = Pin(so_pin.expose());
    let login = request::Login { token, session: 0, user: User::SecurityOfficer, name: "", pin };
    let Response::Ticket(_) = agent.call(&Request::Login(login))? else {
        bail!("the agent did not log the security officer in")
    };
    done(agent, &Request::InitPin(request::InitPin { token, pin: Pin(user_pin.expose()) }))?;
    let Response::Ticket(_) = agent.call(&Request::Logout(request::OfToken { token }))? else {
        bail!("the agent did not log out")
    };
    Ok(())
}

fn done(agent: &mut Agent, request: &Request<'_>) -> Result<()> {
    match agent.call(request)? {
        Response::Done => Ok(()),
        _ => bail!("the agent answered something else than was asked"),
    }
}

fn wait_until_seen(agent: &mut Agent, label: &str) -> Result<u32> {
    let deadline = Instant::now() + SEEN_TIMEOUT;
    loop {
        match agent.slot(label) {
            Ok(slot) => return Ok(slot),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

impl SetPin {
    fn run(self, out: &Announcer, socket: &Path) -> Result<()> {
        let has_pins = self.has_pins(socket)?;
        if !has_pins && self.change.is_none() {
            return self.set_first(out, socket);
        }
        if !has_pins {
            let next = format!("`mayfly token pin {}` sets both PINs", quoted(&self.label));
            return Err(advised(format!("token '{}' has no PINs yet", self.label), next));
        }
        let variable = if self.change == Some(Who::User) { USER_PIN_VARIABLE } else { SO_PIN_VARIABLE };
        let what = if self.change == Some(Who::User) { "old user PIN" } else { "security officer's PIN" };
        let old = Question { what, file: self.so_pin_file.as_deref(), variable, is_new: false }.ask()?;
        let new = new_pin("new PIN", self.new_pin_file.as_deref(), NEW_PIN_VARIABLE)?;
        let mut agent = Agent::connect(socket)?;
        let token = agent.slot(&self.label)?;
        match self.change {
            None => set_user_pin(&mut agent, token, &old, &new)?,
            Some(who) => {
                let user = if who == Who::User { User::User } else { User::SecurityOfficer };
                let set = request::SetPin { token, user, old: Pin(old.expose()), new: Pin(new.expose()) };
                done(&mut agent, &Request::SetPin(set))?;
            }
        }
        let label = &self.label;
        out.result(&json!({"label": label, "set": true}), |_| format!("the PIN of token '{label}' is set"))?;
        Ok(())
    }

    /// Whether the security officer has a PIN: then both PINs are set by theirs.
    fn has_pins(&self, socket: &Path) -> Result<bool> {
        let tokens = ask(socket, &json!({"command": "token.list"}))?;
        let mut tokens = tokens.as_array().into_iter().flatten();
        let token = tokens.find(|token| token.get("label").and_then(Value::as_str) == Some(&self.label));
        let token = token.with_context(|| {
            format!("no token '{}' is seen on this device; `mayfly token list` names those that are", self.label)
        })?;
        Ok(token.get("so_pin_set") == Some(&Value::Bool(true)))
    }

    fn set_first(&self, out: &Announcer, socket: &Path) -> Result<()> {
        let so = new_pin("security officer's new PIN", self.so_pin_file.as_deref(), SO_PIN_VARIABLE)?;
        let user = new_pin("user's new PIN", self.new_pin_file.as_deref(), NEW_PIN_VARIABLE)?;
        set_first_pins(socket, &self.label, &so, &user)?;
        let label = &self.label;
        out.result(&json!({"label": label, "set": true, "first": true}), |_| {
            format!("token '{label}' had no PINs; the security officer's and the user's are set")
        })?;
        Ok(())
    }
}

fn list(tokens: &Value) -> String {
    let tokens = tokens.as_array().map(Vec::as_slice).unwrap_or_default();
    if tokens.is_empty() {
        return "no tokens are seen on this device; `mayfly token create LABEL` makes one".into();
    }
    let heading = ["LABEL", "SLOT", "KEYS", "USER PIN", "DEVICES", "ALLOWED USERS"].map(String::from).to_vec();
    let row = |token: &Value| {
        let all = |name: &str| Some(field(token, name)).filter(|list| list != "-").unwrap_or_else(|| "all".into());
        let mut cells = ["label", "slot", "keys", "user_pin_set"].map(|name| field(token, name)).to_vec();
        cells.extend([all("devices"), all("allow")]);
        cells
    };
    table(&std::iter::once(heading).chain(tokens.iter().map(row)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_for_people() {
        assert!(list(&json!([])).contains("mayfly token create"));
        let text = list(
            &json!([{"label": "web", "slot": 7, "keys": 2, "user_pin_set": true, "devices": [], "allow": ["user=www"]}]),
        );
        assert!(text.contains("web") && text.contains("user=www") && text.contains("yes"), "{text}");
        assert!(text.contains("  all  "), "an empty list of devices means all: {text}");
    }
}
