//! What the vaults of a network stand on: a software TPM, or a token of SoftHSM, for each agent that takes one.

use super::book::{Part, Process};
use super::check_socket_length;
use super::up::{Site, agent_name, log};
use crate::cli::software::{self, Scripts, Software};
use crate::cli::vault::NewVault;
use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// How long making a TPM or a token may take. Its keys are a matter of luck: RSA primes.
const MAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the scripts are looked at.
const POLL: Duration = Duration::from_millis(5);
/// How much of a failed script's output is told, in lines.
const LOG_LINES: usize = 6;

/// What seals an agent's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VaultKind {
    /// A TPM 2.0: swtpm
    Tpm,
    /// A PKCS#11 token: SoftHSM
    Pkcs11,
    /// A file under a passphrase
    File,
}

impl VaultKind {
    fn software(self) -> Option<Software> {
        match self {
            VaultKind::Tpm => Some(Software::Tpm),
            VaultKind::Pkcs11 => Some(Software::Token),
            VaultKind::File => None,
        }
    }
}

/// The kinds of a network's agents, dealt round-robin.
#[derive(Debug, Clone)]
pub struct Vaults {
    dir: PathBuf,
    /// Of agent 1, 2, …
    kinds: Vec<VaultKind>,
}

impl Vaults {
    /// The vaults of `agents` agents of the network in `dir`.
    pub fn deal(kinds: &[VaultKind], agents: u8, dir: &Path) -> Self {
        Self { dir: dir.to_owned(), kinds: kinds.iter().copied().cycle().take(agents.into()).collect() }
    }

    /// Refuses what would fail later.
    pub fn check(&self) -> Result<()> {
        let is_needed = |software: &Software| self.kinds.iter().any(|kind| kind.software() == Some(*software));
        let needed: Vec<Software> = [Software::Tpm, Software::Token].into_iter().filter(is_needed).collect();
        software::ensure_tools(&needed)?;
        self.check_sockets()
    }

    fn check_sockets(&self) -> Result<()> {
        self.of(VaultKind::Tpm).try_for_each(|n| check_socket_length(&software::tpm_control_socket(&self.tpm(n))))
    }

    /// Begins to make what they stand on.
    pub fn begin(&self, site: &mut Site) -> Result<Making> {
        let mut making = Making { scripts: None, running: Vec::new() };
        if self.kinds.iter().all(|kind| kind.software().is_none()) {
            return Ok(making);
        }
        let scripts = Scripts::unpack(self.dir.join("softhsm-setup"))?;
        for (number, kind) in self.numbered() {
            let call = match kind {
                VaultKind::Tpm => scripts.make_tpm(&self.tpm(number), &self.authority()),
                VaultKind::Pkcs11 => scripts.make_token(&self.token(number), &agent_name(number)),
                VaultKind::File => continue,
            };
            let log = log(&self.dir, &format!("{}-vault", agent_name(number)));
            let child = site.run(&call, &log)?;
            making.running.push((number, log, child));
        }
        making.scripts = Some(scripts);
        Ok(making)
    }

    /// Waits until everything is made, and starts the TPMs.
    pub fn finish(&self, mut making: Making, site: &mut Site) -> Result<()> {
        let deadline = Instant::now() + MAKE_TIMEOUT;
        for (number, log, child) in &mut making.running {
            wait(child, log, deadline).with_context(|| format!("cannot make the vault of {}", agent_name(*number)))?;
        }
        site.forget_scripts()?;
        let Some(scripts) = making.scripts else { return Ok(()) };
        let numbers = self.of(VaultKind::Tpm);
        let started = numbers.map(|n| site.start(&tpm_name(n), Part::Swtpm, scripts.run_tpm(&self.tpm(n))));
        let started = started.collect::<Result<Vec<Process>>>()?;
        started.iter().try_for_each(|process| super::up::wait_until_ready(&self.dir, process))
    }

    /// Certificates of the authority that stands for the makers of the TPMs; none where there is no TPM. Once they are made.
    pub fn makers(&self) -> Option<PathBuf> {
        self.of(VaultKind::Tpm).next().map(|_| software::tpm_roots(&self.authority()))
    }

    /// The `[vault]` section of an agent.
    pub fn section(&self, number: u8) -> Result<NewVault> {
        match self.kinds.get(usize::from(number) - 1) {
            Some(VaultKind::Tpm) => NewVault::tpm(&software::tcti(&self.tpm(number)), None),
            Some(VaultKind::Pkcs11) => NewVault::read(&software::token_section(&self.token(number))),
            Some(VaultKind::File) | None => NewVault::file(&self.dir.join(agent_name(number))),
        }
    }

    fn authority(&self) -> PathBuf {
        self.dir.join("swtpm-ca")
    }

    fn numbered(&self) -> impl Iterator<Item = (u8, VaultKind)> {
        (1..).zip(self.kinds.iter().copied())
    }

    fn of(&self, wanted: VaultKind) -> impl Iterator<Item = u8> {
        self.numbered().filter(move |(_, kind)| *kind == wanted).map(|(number, _)| number)
    }

    fn tpm(&self, number: u8) -> PathBuf {
        self.dir.join(tpm_name(number))
    }

    fn token(&self, number: u8) -> PathBuf {
        self.dir.join(format!("softhsm-{number}"))
    }
}

/// Scripts that run side by side.
pub struct Making {
    scripts: Option<Scripts>,
    running: Vec<(u8, PathBuf, Child)>,
}

fn wait(script: &mut Child, log: &Path, deadline: Instant) -> Result<()> {
    let status = loop {
        if let Some(status) = script.try_wait().context("cannot wait for the script")? {
            break status;
        }
        ensure!(Instant::now() < deadline, "waited {} s; see {}", MAKE_TIMEOUT.as_secs(), log.display());
        std::thread::sleep(POLL);
    };
    if !status.success() {
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(LOG_LINES);
        bail!("{}", lines.get(last..).unwrap_or_default().join("\n"));
    }
    Ok(())
}

fn tpm_name(number: u8) -> String {
    format!("swtpm-{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_dealt_round_robin() {
        use VaultKind::{File, Pkcs11, Tpm};
        for (kinds, agents, dealt) in [
            (&[File][..], 3, &[File, File, File][..]),
            (&[Tpm, Pkcs11, File], 5, &[Tpm, Pkcs11, File, Tpm, Pkcs11]),
            (&[Tpm, Pkcs11, File], 2, &[Tpm, Pkcs11]),
        ] {
            assert_eq!(Vaults::deal(kinds, agents, Path::new("/net")).kinds, dealt);
        }
    }

    #[test]
    fn a_tpms_socket_must_have_a_name_that_fits() {
        let vaults = |length| Vaults::deal(&[VaultKind::Tpm], 1, Path::new(&format!("/{}", "x".repeat(length - 1))));
        let longest = software::SOCKET_PATH_BYTES_MAX - "/swtpm-1/tpm.ctrl".len();
        assert!(vaults(longest).check_sockets().is_ok());
        assert!(vaults(longest + 1).check_sockets().unwrap_err().to_string().contains("choose a shorter --dir"));
    }
}
