//! Running programs to their end, with a limit.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Longest time for one program, under load.
const LIMIT: Duration = Duration::from_secs(60);

/// How a program ended.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Wall-clock time from start to end.
    pub took: Duration,
    line: String,
}

impl Ran {
    /// Whether it ended with status 0.
    pub fn is_ok(&self) -> bool {
        self.status.success()
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output and error as text.
    pub fn all(&self) -> String {
        self.text() + &String::from_utf8_lossy(&self.stderr)
    }

    /// Itself, having ended with status 0.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert!(self.is_ok(), "{self}");
        self
    }

    /// Itself, having failed with these words somewhere in its output.
    #[track_caller]
    pub fn refused(self, words: &str) -> Ran {
        assert!(!self.is_ok(), "it should have failed: {self}");
        assert!(self.all().contains(words), "'{words}' is missing: {self}");
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` ended with {} after {:?}\n{}", self.line, self.status, self.took, self.all())
    }
}

/// Runs a program without input.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    run_reading(command, &[])
}

/// Runs a program that reads `input`.
#[track_caller]
pub fn run_reading(command: &mut Command, input: &[u8]) -> Ran {
    let line = line(command);
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run `{line}`: {error}"));
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let (mut stdin, input) = (child.stdin.take().expect("it was piped"), input.to_vec());
    // A program that does not read its input is no error.
    let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
    let status = wait(&mut child, started, &line);
    let took = started.elapsed();
    feeder.join().expect("the feeder does not panic");
    let join = |reader: JoinHandle<Vec<u8>>| reader.join().expect("a reader does not panic");
    Ran { status, stdout: join(stdout), stderr: join(stderr), took, line }
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for word in command.get_args() {
        let _ = write!(line, " {}", word.to_string_lossy());
    }
    line
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut stream) = stream {
            let _ = stream.read_to_end(&mut all);
        }
        all
    })
}

#[track_caller]
fn wait(child: &mut Child, started: Instant, line: &str) -> ExitStatus {
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status;
        }
        if started.elapsed() > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            panic!("`{line}` did not end within {} s", LIMIT.as_secs());
        }
        thread::sleep(Duration::from_millis(1));
    }
}
