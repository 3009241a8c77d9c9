//! Where the agent is, and which tokens there are when it is away.
//!
//! Two keys of `/etc/mayfly/client.toml`, read by hand: a module that is loaded into every application on
//! the host cannot bring a TOML library along, nor complain. What it does not understand it leaves alone:
//! `mayfly doctor` is the place that reports mistakes in this file.

use std::path::{Path, PathBuf};

/// The file for the whole host.
pub const CLIENT_TOML: &str = "/etc/mayfly/client.toml";
/// Where the agent listens unless someone says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/mayfly/agent.sock";
/// Most bytes of the file that are read.
const CLIENT_TOML_BYTES_MAX: u64 = 64 << 10;
/// Most tokens that are taken from it.
const TOKENS_MAX: usize = 64;

/// The module's settings, read once in C_Initialize.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The agent's socket.
    pub socket: PathBuf,
    /// Names of tokens whose slots are shown without an agent.
    pub tokens: Vec<String>,
}

impl Config {
    /// The settings from `environment` (MAYFLY_SOCKET; the caller gives `None` under AT_SECURE), else the
    /// file, else the defaults.
    pub fn load(environment: Option<PathBuf>, file: &Path) -> Self {
        let text = read_bounded(file).unwrap_or_default();
        let socket = environment
            .filter(|path| path.is_absolute())
            .or_else(|| strings_of(&text, "socket").into_iter().next().map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET));
        let mut tokens = strings_of(&text, "tokens");
        tokens.truncate(TOKENS_MAX);
        Self { socket, tokens }
    }
}

fn read_bounded(file: &Path) -> Option<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(file).ok()?.take(CLIENT_TOML_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The strings of a key's value: one, or those of an array, which may go over several lines. Keys inside
/// tables are not ours.
fn strings_of(text: &str, key: &str) -> Vec<String> {
    let mut line_start = 0;
    for line in text.split_inclusive('\n') {
        let content = line.trim_start();
        if content.starts_with('[') {
            break;
        }
        if let Some(value) = content.strip_prefix(key).and_then(|rest| rest.trim_start().strip_prefix('=')) {
            let value_start = line_start + line.len() - value.len();
            return strings(text.get(value_start..).unwrap_or_default().trim_start_matches([' ', '\t']));
        }
        line_start += line.len();
    }
    Vec::new()
}

/// Quoted strings from the start of a value up to the end of its array, or the first one in its line.
fn strings(value: &str) -> Vec<String> {
    let array = value.strip_prefix('[');
    let mut characters = array.unwrap_or(value).chars();
    let mut found = Vec::new();
    while let Some(character) = characters.next() {
        match character {
            '"' | '\'' => found.extend(quoted(&mut characters, character)),
            '#' if array.is_some() => {
                characters.by_ref().find(|c| *c == '\n');
            }
            ']' => break,
            _ => {}
        }
        if array.is_none() {
            break;
        }
    }
    found
}

fn quoted(characters: &mut std::str::Chars<'_>, quote: char) -> Option<String> {
    let mut string = String::new();
    loop {
        match characters.next()? {
            end if end == quote => return Some(string),
            '\n' => return None,
            '\\' if quote == '"' => match characters.next()? {
                plain @ ('"' | '\\') => string.push(plain),
                _ => return None,
            },
            plain => string.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str, environment: Option<&str>) -> Config {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Config::load(environment.map(PathBuf::from), file.path())
    }

    #[test]
    fn files_as_people_write_them() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("", DEFAULT_SOCKET, &[]),
            ("socket = \"/a/b\"", "/a/b", &[]),
            ("# socket = \"/no\"\n  socket='/a'  # yes\ntokens = [\"x\"]\n", "/a", &["x"]),
            ("tokens = [ \"x\", 'y' ] # \"z\"\nsocket = \"/s\"", "/s", &["x", "y"]),
            ("tokens = [\n  \"x\", # \"no\"\n  \"y\\\"q\",\n]\n", DEFAULT_SOCKET, &["x", "y\"q"]),
            ("tokens = []\n", DEFAULT_SOCKET, &[]),
            ("sockets = \"/no\"\n[other]\nsocket = \"/no\"\n", DEFAULT_SOCKET, &[]),
            ("socket = \"/unfinished\ntokens = [\"x\"", DEFAULT_SOCKET, &["x"]),
            ("socket = 7\ntokens = 8\n", DEFAULT_SOCKET, &[]),
            ("tokens =", DEFAULT_SOCKET, &[]),
            ("\u{0}\u{7f}=[[\"", DEFAULT_SOCKET, &[]),
        ];
        for (text, socket, tokens) in cases {
            let got = config(text, None);
            assert_eq!(got.socket.to_str().unwrap(), *socket, "{text:?}");
            assert_eq!(got.tokens, *tokens, "{text:?}");
        }
    }

    #[test]
    fn the_environment_goes_first_if_absolute() {
        assert_eq!(config("socket = \"/a\"", Some("/e")).socket, Path::new("/e"));
        assert_eq!(config("socket = \"/a\"", Some("e")).socket, Path::new("/a"));
        let none = Config::load(None, Path::new("/nonexistent/client.toml"));
        assert_eq!(none, Config { socket: DEFAULT_SOCKET.into(), tokens: vec![] });
    }

    #[test]
    fn a_huge_file_is_cut() {
        let tokens: String = (0..20_000).map(|n| format!("\"{n}\",")).collect();
        assert_eq!(config(&format!("tokens = [{tokens}]"), None).tokens.len(), TOKENS_MAX);
    }
}
