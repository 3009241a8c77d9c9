//! `dev.json`: what a development network consists of, and which processes it has.

use crate::cli::process::{self, Identity, Waiting};
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file in the network's folder.
pub const FILE: &str = "dev.json";
/// Version of its layout.
const VERSION: u32 = 1;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// A gateway of the ledger.
    Ledger,
    /// The software TPM of an agent.
    Swtpm,
    /// An agent.
    Agent,
}

/// One process of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Process {
    /// `agent-1`, `ledger-1`; `swtpm-1` is the TPM of `agent-1`.
    pub name: String,
    /// What it does.
    pub role: Part,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// It ends when this process does.
    #[serde(default)]
    pub watch: Option<u32>,
    /// The process, once it was started.
    pub identity: Option<Identity>,
    /// Stopped by `dev pause`.
    #[serde(default)]
    pub paused: bool,
}

/// The whole network.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Book {
    version: u32,
    /// Start times count from this boot of the machine.
    boot_id: String,
    /// All processes, in the order in which they were started.
    pub processes: Vec<Process>,
    /// Scripts that make what vaults stand on, while the network is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scripts: Vec<Identity>,
}

impl Book {
    /// A network without processes.
    pub fn new() -> Result<Self> {
        Ok(Self { version: VERSION, boot_id: process::boot_id()?, processes: Vec::new(), scripts: Vec::new() })
    }

    /// Reads the book of the network in `dir`; `None` if there is none.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let mut book: Book = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
        ensure!(book.version == VERSION, "{} was written by another version of mayfly", path.display());
        if book.boot_id != process::boot_id()? {
            book.processes.iter_mut().for_each(|p| p.identity = None);
            book.scripts.clear();
        }
        Ok(Some(book))
    }

    /// Writes the book so that a reader sees the old or the new one, whole.
    pub fn write(&self, dir: &Path) -> Result<()> {
        let (path, new) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
        let text = serde_json::to_string_pretty(self).context("cannot write the book")?;
        let mut file = File::create(&new).with_context(|| format!("cannot write {}", new.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", new.display()))?;
        std::fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The process with this name.
    pub fn process(&mut self, name: &str) -> Result<&mut Process> {
        let names: Vec<String> = self.processes.iter().map(|p| p.name.clone()).collect();
        let found = self.processes.iter_mut().find(|p| p.name == name);
        found.with_context(|| format!("no process '{name}' in this network; it has {}", names.join(", ")))
    }

    /// `dev status`: names, process ids, roles.
    pub fn status(&self) -> Value {
        let rows: Vec<Value> = self.processes.iter().map(Process::status).collect();
        json!({ "processes": rows })
    }
}

impl Process {
    /// Prepares its program, which begins when it is let go.
    pub fn prepare(&self, log: &Path) -> Result<Waiting> {
        let mut arguments = self.arguments.clone();
        // Our own programs look after it themselves, and end in their own way.
        let guarded = self.watch.filter(|_| self.role == Part::Swtpm);
        if let (Some(pid), None) = (self.watch, guarded) {
            arguments.extend(["--watch-pid".to_owned(), pid.to_string()]);
        }
        process::spawn(&self.program, &arguments, guarded, log)
    }

    /// Whether it runs.
    pub fn is_alive(&self) -> bool {
        self.identity.is_some_and(|i| i.is_alive())
    }

    fn status(&self) -> Value {
        let state = match (self.is_alive(), self.paused) {
            (false, _) => "ended",
            (true, true) => "paused",
            (true, false) => "running",
        };
        let pid = self.identity.filter(Identity::is_alive).map(|i| i.pid);
        json!({ "name": self.name, "pid": pid, "role": self.role, "state": state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survives_writing_and_forgets_another_boot() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Book::read(folder.path()).unwrap().is_none());
        let mut book = Book::new().unwrap();
        let own = Identity::of(i32::try_from(std::process::id()).unwrap());
        book.processes.push(Process {
            name: "agent-1".into(),
            role: Part::Agent,
            program: "mayflyd".into(),
            arguments: vec!["--config".into()],
            watch: None,
            identity: own,
            paused: false,
        });
        book.write(folder.path()).unwrap();
        let mut read = Book::read(folder.path()).unwrap().unwrap();
        assert_eq!(read.processes, book.processes);
        assert_eq!(read.status()["processes"][0]["pid"], std::process::id());
        assert_eq!(read.status()["processes"][0]["role"], "agent");
        assert!(read.process("agent-2").unwrap_err().to_string().contains("agent-1"));

        book.boot_id = "another".into();
        book.write(folder.path()).unwrap();
        let read = Book::read(folder.path()).unwrap().unwrap();
        assert_eq!(read.processes[0].identity, None, "process ids of another boot mean nothing");
    }

    #[test]
    fn a_damaged_book_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{\"version\": 1, \"x\": 2}").unwrap();
        assert!(Book::read(folder.path()).is_err());
    }
}
