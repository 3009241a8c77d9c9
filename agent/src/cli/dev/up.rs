//! Making a network: init, gateway, agents (in parallel), approval, roles, a token with its PINs, environment files.

use super::address;
use super::book::{Book, Part, Process};
use super::down;
use super::env::Env;
use super::fault;
use super::vaults::{VaultKind, Vaults};
use super::{check_socket_length, not_yet};
use crate::cli::admin::{Administrator, Signing};
use crate::cli::agent::Agent;
use crate::cli::announce::{Announcer, advised, quoted};
use crate::cli::init::{self, Plan};
use crate::cli::interrupt::when_interrupted;
use crate::cli::join::{self, NewDevice};
use crate::cli::process::{self, Identity};
use crate::cli::software::{self, Call};
use crate::cli::value;
use crate::cli::{device, invite, token};
use crate::config::NewKeys;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use mayfly_plugin_api::find_artifact;
use mayfly_protocol::record::DeviceRole;
use mayfly_secmem::SecretBytes;
use serde_json::{Value, json};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The administrator's key in the network's folder.
pub const ADMIN_KEY: &str = "administrator.key";
/// Label of the token.
const TOKEN_LABEL: &str = "mayfly";
/// Most agents of one network.
const AGENTS_MAX: u8 = 63;
/// How many unless told otherwise.
const AGENTS_DEFAULT: u8 = 3;
/// How long a process may take until it works.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
/// The shell's environment in the network's folder, and in each agent's.
const ENV: &str = "env";
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(3);

/// Make a network: a ledger, agents, and a token that all of them show
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  mayfly dev up --dir /tmp/net --agents 3 --threshold 2 --vaults tpm,pkcs11,file && . /tmp/net/env\n  \
    pkcs11-tool --module $MAYFLY_MODULE --login --pin $MAYFLY_USER_PIN --keygen --key-type AES:32 --label k"
)]
pub struct Up {
    /// Folder of the network; made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many agents [default: 3, or as many as the network has that was ended]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(2..=i64::from(AGENTS_MAX)))]
    agents: Option<u8>,
    /// How many shards a key needs
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=i64::from(AGENTS_MAX)))]
    threshold: u8,
    /// Kinds of vault, dealt round-robin: tpm and pkcs11 are software here (swtpm, SoftHSM)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "KIND,…", default_value = "file")]
    vaults: Vec<VaultKind>,
    /// Store of the ledger
    #[arg(long, value_enum, value_name = "KIND", default_value = "embedded", hide = true)]
    ledger: LedgerKind,
    /// How many gateways
    #[arg(long, value_name = "COUNT", default_value_t = 1, hide = true, value_parser = clap::value_parser!(u8).range(1..))]
    gateways: u8,
    /// Life of assembled keys: per-operation or window:SECONDS
    #[arg(long, value_name = "LIFE", default_value = "per-operation", value_parser = value::residency)]
    residency: String,
    /// When holders open their vaults for new keys: boot, window:SECONDS or per-release
    #[arg(long, value_name = "WHEN", default_value = "boot", value_parser = value::vault_open)]
    vault_open: String,
    /// Every process ends when this one does
    #[arg(long, value_name = "PID", hide = true)]
    watch_pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LedgerKind {
    /// A file of the one gateway
    Embedded,
    /// An etcd cluster
    Etcd,
}

impl Up {
    /// Runs the command. What was started is ended again if the network does not come up.
    pub fn run(self, out: &Announcer) -> Result<()> {
        self.check()?;
        let dir = super::folder(&self.dir)?;
        let started = Instant::now();
        if let Some(names) = self.start_again(&dir)? {
            let again = json!({"dir": dir, "started": names, "env": dir.join("env")});
            out.result(&again, |_| format!("the network in {} runs again\n\n{}", dir.display(), steps(&dir)))?;
            return Ok(());
        }
        let vaults = Vaults::deal(&self.vaults, self.agents(), &dir);
        vaults.check()?;
        let mut site = Site::new(&dir, self.agents(), self.watch_pid)?;
        end_when_interrupted(&dir)?;
        if let Err(error) = self.make(&mut site, &vaults) {
            // Not while an interrupt ends it: that ends us as well.
            let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            down::end(&site.book).context("the network did not come up, and could not be ended")?;
            return Err(error.context(format!("the network did not come up; its logs are in {}", dir.display())));
        }
        let seconds = (started.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        let result = json!({"dir": dir, "agents": self.agents(), "threshold": self.threshold, "seconds": seconds,
            "env": dir.join("env"), "processes": site.book.status().get("processes").cloned().unwrap_or_default()});
        out.result(&result, |_| {
            let (agents, threshold) = (self.agents(), self.threshold);
            format!("{agents} agents are ready after {seconds:.1} s; keys need {threshold} of them\n\n{}", steps(&dir))
        })?;
        Ok(())
    }

    /// Starts the network that was ended in this folder, if there is one; the names of its processes.
    fn start_again(&self, dir: &Path) -> Result<Option<Vec<String>>> {
        ensure!(!dir.exists() || dir.is_dir(), "{} is not a folder; choose another --dir", dir.display());
        let Some(mut book) = Book::read(dir)? else { return Ok(None) };
        let shown = quoted(&dir.to_string_lossy()).into_owned();
        ensure!(
            !book.processes.iter().any(Process::is_alive),
            "a network runs in {shown}; end it with `mayfly dev down --dir {shown}`, or start what has ended with `mayfly dev start --dir {shown}`"
        );
        let agents = book.processes.iter().filter(|process| process.role == Part::Agent).count();
        // The environment is what is written last.
        if !dir.join(ENV).exists() {
            return Err(advised(
                format!("the network in {shown} was never finished"),
                format!("`rm -r {shown}`, or choose another --dir"),
            ));
        }
        ensure!(
            self.agents.is_none_or(|wanted| agents == usize::from(wanted)),
            "a network of {agents} agents was ended in {shown}: start it without --agents, or choose another --dir"
        );
        // What they watched, if anything, was another run's.
        book.processes.iter_mut().for_each(|process| process.watch = self.watch_pid);
        book.write(dir)?;
        Ok(Some(fault::start(dir, None, true)?.names))
    }

    fn agents(&self) -> u8 {
        self.agents.unwrap_or(AGENTS_DEFAULT)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.threshold <= self.agents(),
            "{} agents cannot hold keys that need {}",
            self.agents(),
            self.threshold
        );
        not_yet(self.ledger == LedgerKind::Etcd, "etcd")?;
        not_yet(self.gateways != 1, "more than one gateway")
    }

    fn make(&self, site: &mut Site, vaults: &Vaults) -> Result<()> {
        let gateway = address::choose()?;
        let step = Steps::new();
        let making = vaults.begin(site)?;
        init::make(&site.dir, &Plan::development(gateway))?;
        site.start_gateway(gateway)?;
        step.done("gateway");
        let mut administrator = Administrator::open(&Signing::of(site.dir.join(ADMIN_KEY)))?;
        step.done("administrator");
        let invitations = (0..self.agents()).map(|_| invite::make_text(&mut administrator, READY_TIMEOUT));
        let invitations = invitations.collect::<Result<Vec<SecretBytes>>>()?;
        step.done("invitations");
        vaults.finish(making, site)?;
        step.done("vaults");
        self.join_all(site, gateway, vaults, &invitations)?;
        step.done("joined");
        site.start_agents(self.agents())?;
        for number in 1..=self.agents() {
            device::approve(&mut administrator, &agent_name(number))?;
        }
        token::create(&mut administrator, TOKEN_LABEL, &[], &[], &[])?;
        for number in 1..=self.agents() {
            device::set_roles(&mut administrator, &agent_name(number), &[DeviceRole::Holder, DeviceRole::Witness])?;
        }
        step.done("approved");
        self.finish(site, &step)?;
        step.done("ready");
        Ok(())
    }

    /// Every device joins at the same time.
    fn join_all(&self, site: &Site, gateway: SocketAddr, vaults: &Vaults, invitations: &[SecretBytes]) -> Result<()> {
        let new_keys = NewKeys {
            threshold: self.threshold,
            shares: self.agents(),
            assemblers: vec!["*".into()],
            window_seconds: self.residency.strip_prefix("window:").and_then(|s| s.parse().ok()).unwrap_or(0),
            vault_open: self.vault_open.clone(),
        };
        let makers = vaults.makers();
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (number, invitation) in (1..).zip(invitations) {
                let (folder, new_keys, makers) = (site.dir.join(agent_name(number)), new_keys.clone(), makers.clone());
                let vault = vaults.section(number)?;
                threads.push(scope.spawn(move || {
                    let mut device = NewDevice::development(&agent_name(number), &folder, gateway.ip(), new_keys);
                    device.danger_roots = makers;
                    join::join(invitation.expose(), &device, &vault)
                        .with_context(|| format!("{} cannot join", agent_name(number)))
                }));
            }
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("joining panicked"))?.map(drop))
        })
    }

    /// PINs, environment files, and the wait until every agent works.
    fn finish(&self, site: &Site, step: &Steps) -> Result<()> {
        let (so_pin, user_pin) = (random_pin(8)?, random_pin(6)?);
        let secret = |pin: &str| SecretBytes::new_with(pin.len(), |slot| slot.copy_from_slice(pin.as_bytes()));
        wait_until_fresh(&site.socket(1))?;
        step.done("fresh");
        token::set_first_pins(&site.socket(1), TOKEN_LABEL, &secret(&so_pin)?, &secret(&user_pin)?)?;
        step.done("PINs");
        let module = find_artifact("libmayfly_pkcs11.so")?;
        for number in 1..=self.agents() {
            let socket = site.socket(number);
            wait_until_usable(&socket, self.agents())?;
            let env = Env {
                dir: &site.dir,
                module: &module,
                socket: &socket,
                token_label: TOKEN_LABEL,
                so_pin: &so_pin,
                user_pin: &user_pin,
            };
            env.write(&site.dir.join(agent_name(number)).join(ENV))?;
        }
        // Last: where it is, the network is whole.
        std::fs::copy(site.dir.join(agent_name(1)).join(ENV), site.dir.join(ENV)).context("cannot write env")?;
        Ok(())
    }
}

/// A network that is being made.
pub struct Site {
    dir: PathBuf,
    book: Book,
    watch: Option<u32>,
}

impl Site {
    fn new(dir: &Path, agents: u8, watch_pid: Option<u32>) -> Result<Self> {
        check_socket_length(&dir.join(agent_name(agents)).join("agent.sock"))?;
        init::make_private_dir(dir)?;
        ensure!(is_empty(dir)?, "{} is not empty; choose another --dir, or empty it", dir.display());
        Ok(Self { dir: dir.to_owned(), book: Book::new()?, watch: watch_pid })
    }

    fn socket(&self, number: u8) -> PathBuf {
        self.dir.join(agent_name(number)).join("agent.sock")
    }

    /// Starts a program. It is in the book before it begins, so that `down` finds it whatever happens next.
    pub fn start(&mut self, name: &str, role: Part, call: Call) -> Result<Process> {
        let Call { program, arguments } = call;
        let mut process = Process {
            name: name.to_owned(),
            role,
            program,
            arguments,
            watch: self.watch,
            identity: None,
            paused: false,
        };
        // Whoever ends an interrupted network finds every process that was started.
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = process.prepare(&log(&self.dir, name))?;
        process.identity = Some(waiting.identity);
        self.book.processes.push(process.clone());
        self.book.write(&self.dir)?;
        drop(waiting.go()?);
        Ok(process)
    }

    /// Runs a script beside everything else; it is in the book until [`Site::forget_scripts`].
    pub fn run(&mut self, call: &Call, log: &Path) -> Result<Child> {
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = process::spawn(&call.program, &call.arguments, None, log)?;
        self.book.scripts.push(waiting.identity);
        self.book.write(&self.dir)?;
        waiting.go()
    }

    /// All scripts have ended.
    pub fn forget_scripts(&mut self) -> Result<()> {
        self.book.scripts.clear();
        self.book.write(&self.dir)
    }

    /// Starts one of our own programs.
    fn start_own(&mut self, name: &str, role: Part, program: &str, config: &Path) -> Result<Process> {
        let config = config.to_str().with_context(|| format!("{} is not UTF-8", config.display()))?;
        let arguments = vec!["--config".to_owned(), config.to_owned()];
        self.start(name, role, Call { program: find_artifact(program)?, arguments })
    }

    fn start_gateway(&mut self, address: SocketAddr) -> Result<()> {
        let config = self.dir.join(init::LEDGER_CONFIG);
        let process = self.start_own("ledger-1", Part::Ledger, "mayfly-ledger", &config)?;
        wait_for_gateway(&process, address)
    }

    fn start_agents(&mut self, agents: u8) -> Result<()> {
        for number in 1..=agents {
            let name = agent_name(number);
            let config = self.dir.join(&name).join(join::CONFIG);
            self.start_own(&name, Part::Agent, "mayflyd", &config)?;
        }
        Ok(())
    }
}

/// What a person does next.
fn steps(dir: &Path) -> String {
    let (env, dir) = (dir.join(ENV), quoted(&dir.to_string_lossy()).into_owned());
    format!("  . {}\n  mayfly dev down --dir {dir}", quoted(&env.to_string_lossy()))
}

/// Held while a process is started and written down.
static STARTING: Mutex<()> = Mutex::new(());

/// Ends what was started so far when `dev up` itself is ended.
fn end_when_interrupted(dir: &Path) -> Result<()> {
    let dir = dir.to_owned();
    when_interrupted(move || {
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        match down::down(&dir) {
            Ok(ended) => eprintln!("mayfly: interrupted; ended {} processes, none is left", ended.unwrap_or(0)),
            Err(error) => eprintln!("mayfly: interrupted, and the network could not be ended: {error:#}"),
        }
    })
}

/// The log file of a process.
pub fn log(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

/// Waits until a process that was started works.
pub fn wait_until_ready(dir: &Path, process: &Process) -> Result<()> {
    match process.role {
        Part::Ledger => {
            let network = init::read_network(dir)?;
            let gateway = network.gateways.first().context("the network has no gateway")?;
            let address =
                gateway.address.parse().with_context(|| format!("'{}' is not an address", gateway.address))?;
            wait_for_gateway(process, address)
        }
        Part::Swtpm => {
            let socket = software::tpm_socket(&dir.join(&process.name));
            wait(READY_TIMEOUT, || {
                ensure_alive(process)?;
                Ok(UnixStream::connect(&socket).is_ok())
            })
            .with_context(|| does_not_become_ready(dir, process))
        }
        Part::Agent => {
            let socket = dir.join(&process.name).join("agent.sock");
            wait(READY_TIMEOUT, || {
                ensure_alive(process)?;
                status(&socket).map(|status| is_fresh(&status)).or(Ok(false))
            })
            .with_context(|| does_not_become_ready(dir, process))
        }
    }
}

fn does_not_become_ready(dir: &Path, process: &Process) -> String {
    format!("{} does not become ready; its log is {}", process.name, log(dir, &process.name).display())
}

fn wait_for_gateway(process: &Process, address: SocketAddr) -> Result<()> {
    wait(READY_TIMEOUT, || {
        ensure_alive(process)?;
        Ok(TcpStream::connect(address).is_ok())
    })
    .with_context(|| format!("no gateway answers at {address}"))
}

fn ensure_alive(process: &Process) -> Result<()> {
    if process.identity.as_ref().is_some_and(Identity::is_alive) { Ok(()) } else { bail!("{} has ended", process.name) }
}

fn wait_until_fresh(socket: &Path) -> Result<()> {
    wait(READY_TIMEOUT, || Ok(status(socket).is_ok_and(|s| is_fresh(&s))))
        .with_context(|| format!("the agent at {} does not become ready", socket.display()))
}

/// Fresh, connected to all others, and the token with both PINs is seen.
fn wait_until_usable(socket: &Path, agents: u8) -> Result<()> {
    let connected = |status: &Value| {
        let peers = status.get("peers").and_then(Value::as_array).into_iter().flatten();
        peers.filter(|peer| peer.get("connected") == Some(&Value::Bool(true))).count()
    };
    wait(READY_TIMEOUT, || {
        let Ok(status) = status(socket) else { return Ok(false) };
        let all = connected(&status) + 1 >= usize::from(agents);
        Ok(all && is_fresh(&status) && sees_token(socket)?)
    })
    .with_context(|| format!("the agent at {} does not become ready", socket.display()))
}

fn sees_token(socket: &Path) -> Result<bool> {
    let tokens = crate::cli::agent::ask(socket, &json!({"command": "token.list"}))?;
    let ready = |token: &Value| {
        token.get("label") == Some(&json!(TOKEN_LABEL)) && token.get("user_pin_set") == Some(&json!(true))
    };
    Ok(tokens.as_array().is_some_and(|tokens| tokens.iter().any(ready)))
}

fn status(socket: &Path) -> Result<Value> {
    Agent::connect(socket)?.ask(&json!({"command": "status"}), |_| ())
}

fn is_fresh(status: &Value) -> bool {
    status.get("fresh") == Some(&Value::Bool(true))
}

/// Polls until `ready` says so; its error, or the time-out, ends the wait.
fn wait(timeout: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !ready()? {
        ensure!(Instant::now() < deadline, "waited {} s", timeout.as_secs());
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Name of an agent, and of its folder.
pub fn agent_name(number: u8) -> String {
    format!("agent-{number}")
}

fn is_empty(dir: &Path) -> Result<bool> {
    let mut entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    Ok(entries.next().is_none())
}

/// Decimal digits; written to `env`, so no secret.
fn random_pin(digits: usize) -> Result<String> {
    let mut random = vec![0; digits];
    getrandom::fill(&mut random).context("the kernel gave no randomness")?;
    Ok(random.iter().map(|byte| char::from(b'0' + byte % 10)).collect())
}

/// Where the time goes, with `MAYFLY_DEV_TIMES` set.
struct Steps {
    started: Instant,
    shown: bool,
}

impl Steps {
    fn new() -> Self {
        Self { started: Instant::now(), shown: std::env::var_os("MAYFLY_DEV_TIMES").is_some() }
    }

    fn done(&self, step: &str) {
        if self.shown {
            eprintln!("{:6} ms  {step}", self.started.elapsed().as_millis());
        }
    }
}
