//! PINs and passphrases: from a file, the environment or the terminal, straight into locked memory.

use super::announce::plain;
use anyhow::{Context, Result, ensure};
use mayfly_secmem::{Exhausted, SecretBytes, ct_eq};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest PIN or passphrase in bytes.
pub const SECRET_TEXT_BYTES_MAX: usize = 1024;

/// A secret that people type, and the ways in which scripts give it.
pub struct Question<'a> {
    /// What it is, such as `user PIN`.
    pub what: &'a str,
    /// The file given by option; `-` is standard input.
    pub file: Option<&'a Path>,
    /// The variable of the environment that holds it.
    pub variable: &'a str,
    /// It is new: on a terminal it is asked for twice.
    pub is_new: bool,
}

impl Question<'_> {
    /// The answer: file first, then environment, then terminal. A line's end is not part of it.
    pub fn ask(&self) -> Result<SecretBytes> {
        let answer = match (self.file, std::env::var_os(self.variable)) {
            (Some(path), _) => read_line(&mut open(path)?),
            (None, Some(value)) => read_line(&mut value.as_bytes()),
            (None, None) => self.ask_terminal(),
        };
        let answer = answer.with_context(|| format!("no {}", self.what))?;
        ensure!(!answer.is_empty(), "the {} is empty", self.what);
        Ok(answer)
    }

    fn ask_terminal(&self) -> Result<SecretBytes> {
        let mut terminal = File::options().read(true).write(true).open("/dev/tty").with_context(|| {
            format!("there is no terminal to ask at; give it in a file, or in the variable {}", self.variable)
        })?;
        let first = prompt(&mut terminal, &format!("{}: ", self.what))?;
        if self.is_new {
            let again = prompt(&mut terminal, &format!("{}, once more: ", self.what))?;
            ensure!(ct_eq(first.expose(), again.expose()), "the two differ; nothing was changed");
        }
        Ok(first)
    }
}

/// Asks for a plain yes where a person sits at a terminal; scripts are not asked.
pub fn confirm(question: &str) -> Result<()> {
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Ok(());
    }
    eprint!("{} Type yes to go on: ", plain(question));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).context("cannot read the answer")?;
    ensure!(answer.trim() == "yes", "nothing was changed");
    Ok(())
}

/// A file, or standard input itself: std's `Stdin` would keep a copy in its buffer.
fn open(path: &Path) -> Result<File> {
    if path == Path::new("-") {
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        return Ok(input.context("there is no standard input")?.into());
    }
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Asks with the echo off; it comes back on also after an error.
fn prompt(terminal: &mut File, text: &str) -> Result<SecretBytes> {
    write!(terminal, "{text}").context("cannot write to the terminal")?;
    let before = tcgetattr(&*terminal).context("cannot read the terminal's modes")?;
    let mut quiet = before.clone();
    quiet.local_modes -= LocalModes::ECHO;
    tcsetattr(&*terminal, OptionalActions::Flush, &quiet).context("cannot turn the echo off")?;
    let answer = read_line(terminal);
    tcsetattr(&*terminal, OptionalActions::Flush, &before).context("cannot turn the echo on again")?;
    writeln!(terminal).context("cannot write to the terminal")?;
    answer
}

/// Reads up to the first line's end or the end of the input, byte by byte: nothing behind the line is taken, and no buffer keeps a copy.
fn read_line(from: &mut impl Read) -> Result<SecretBytes> {
    let mut length = 0;
    let mut line = SecretBytes::try_new_with(SECRET_TEXT_BYTES_MAX, |memory| {
        while let Some(byte) = memory.get_mut(length..=length) {
            if from.read(byte).map_err(ReadError::Io)? == 0 || byte == b"\n" {
                byte.fill(0);
                return Ok(());
            }
            length += 1;
        }
        Err(ReadError::TooLong)
    });
    let line = match &mut line {
        Ok(line) => line,
        Err(_) => return line.context("cannot read it"),
    };
    if line.expose().get(..length).is_some_and(|text| text.ends_with(b"\r")) {
        length -= 1;
    }
    line.truncate(length);
    let text = SecretBytes::new_with(length, |memory| memory.copy_from_slice(line.expose()));
    text.context("no locked memory for it")
}

/// A whole small secret file, such as a join token.
pub fn read_secret_file(path: &Path, bytes_max: usize) -> Result<SecretBytes> {
    let mut length = 0;
    let mut file = open(path)?;
    let mut secret = SecretBytes::try_new_with(bytes_max, |memory| {
        while let Some(rest) = memory.get_mut(length..).filter(|rest| !rest.is_empty()) {
            match file.read(rest).map_err(ReadError::Io)? {
                0 => return Ok(()),
                count => length += count,
            }
        }
        Err(ReadError::TooLong)
    })
    .with_context(|| format!("cannot read {}", path.display()))?;
    secret.truncate(length);
    Ok(secret)
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("reading failed")]
    Io(#[source] std::io::Error),
    #[error("it is too long")]
    TooLong,
    #[error("no locked memory for it")]
    Memory(#[from] Exhausted),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_where_it_ends() {
        for (input, text) in [
            (&b"1234"[..], &b"1234"[..]),
            (b"1234\n", b"1234"),
            (b"1234\r\n", b"1234"),
            (b"1234\nsecond line", b"1234"),
            (b" 12 34 \n", b" 12 34 "),
            (b"\n", b""),
            (b"", b""),
        ] {
            let mut from = input;
            assert_eq!(read_line(&mut from).unwrap().expose(), text, "{input:?}");
        }
        let long = [b'x'; SECRET_TEXT_BYTES_MAX];
        assert!(read_line(&mut &long[..]).is_err());
        assert!(read_line(&mut &long[1..]).is_ok());
    }

    #[test]
    fn only_the_line_is_taken() {
        let mut from = &b"first\nsecond\n"[..];
        assert_eq!(read_line(&mut from).unwrap().expose(), b"first");
        assert_eq!(read_line(&mut from).unwrap().expose(), b"second");
    }

    #[test]
    fn a_file_comes_before_the_environment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pin");
        std::fs::write(&path, "987654\n").unwrap();
        let question = Question { what: "user PIN", file: Some(&path), variable: "PATH", is_new: false };
        assert_eq!(question.ask().unwrap().expose(), b"987654");
        std::fs::write(&path, "\n").unwrap();
        assert!(question.ask().unwrap_err().to_string().contains("user PIN is empty"));
    }
}
