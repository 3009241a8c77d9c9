//! Running other programs: shown, captured, limited in time.

use anyhow::{Context, Result, bail};
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a running program is looked at.
const POLL: Duration = Duration::from_millis(2);

/// What a program left behind.
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// Wall-clock time from start to end.
    pub took: Duration,
    line: String,
}

impl Finished {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output and error as text, for messages and searches.
    pub fn all_text(&self) -> String {
        self.text() + &String::from_utf8_lossy(&self.stderr)
    }

    /// Itself, if the program ended with status 0.
    pub fn done(self) -> Result<Finished> {
        if self.status.success() {
            return Ok(self);
        }
        bail!("`{}` ended with {}\n{}", self.line, self.status, self.all_text().trim_end());
    }
}

/// A command as one would type it.
pub fn line(command: &Command) -> String {
    let word = |text: &std::ffi::OsStr| {
        let text = text.to_string_lossy();
        let plain = |c: char| c.is_alphanumeric() || "-_./=:,+@%".contains(c);
        if !text.is_empty() && text.chars().all(plain) { text.into_owned() } else { format!("'{text}'") }
    };
    let words: Vec<String> = std::iter::once(command.get_program()).chain(command.get_args()).map(word).collect();
    words.join(" ")
}

/// Runs a program with our standard streams; an error unless it ends with status 0.
pub fn show(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command.status().with_context(|| format!("cannot run `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a program without input and collects its output; it is ended after `limit`.
pub fn capture(command: &mut Command, limit: Duration) -> Result<Finished> {
    capture_from(Stdio::null(), command, limit)
}

/// The same with a standard input.
pub fn capture_from(input: Stdio, command: &mut Command, limit: Duration) -> Result<Finished> {
    let line = line(command);
    let started = Instant::now();
    command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run `{line}`"))?;
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let status = wait(&mut child, started, limit).with_context(|| format!("`{line}`"))?;
    let took = started.elapsed();
    let join = |reader: JoinHandle<Vec<u8>>| reader.join().unwrap_or_default();
    Ok(Finished { status, stdout: join(stdout), stderr: join(stderr), took, line })
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut stream) = stream {
            // A broken pipe is the end of the output; the exit status tells the rest.
            let _ = stream.read_to_end(&mut all);
        }
        all
    })
}

fn wait(child: &mut Child, started: Instant, limit: Duration) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("cannot wait for it")? {
            return Ok(status);
        }
        if started.elapsed() > limit {
            child.kill().context("cannot end it")?;
            child.wait().context("cannot wait for it")?;
            bail!("did not end within {} s", limit.as_secs());
        }
        std::thread::sleep(POLL);
    }
}
