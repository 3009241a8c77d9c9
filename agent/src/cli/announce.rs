//! What commands print: text for people, or JSON for scripts; progress on standard error.
//!
//! Labels, names and reasons come from applications, other hosts and the ledger. What could move a terminal's cursor, hide text or turn its
//! direction is never printed as it is.

pub use crate::moment::moment;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::io::{ErrorKind, IsTerminal, Write};

/// Prints a command's result in the form that was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Announcer {
    json: bool,
}

impl Announcer {
    /// JSON, or text.
    pub fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON was asked for.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// The result: `value` as JSON, or the text that `people` makes of it.
    ///
    /// # Errors
    /// It cannot be written. A reader that went away (`mayfly key list | head -1`) is no error.
    pub fn result(&self, value: &Value, people: impl FnOnce(&Value) -> String) -> Result<()> {
        let text = if self.json { json_text(value) } else { people_text(value, people) };
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot print the result"),
            _ => Ok(()),
        }
    }

    /// A failure, on standard error: the text with its causes, and the next step where it is known.
    pub fn failure(&self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let next = error.chain().find_map(|cause| cause.downcast_ref::<Advised>()).map(|advised| advised.next.as_str());
        if self.json {
            eprintln!("{}", json_text(&json!({"error": text, "next": next})));
        } else {
            eprintln!("mayfly: {}", plain_lines(&text));
            next.iter().for_each(|next| eprintln!("  next: {}", plain_lines(next)));
        }
    }

    /// News of long work, for people only.
    pub fn progress(&self, text: &str) {
        if !self.json && std::io::stderr().is_terminal() {
            eprintln!("{}", plain(text));
        }
    }
}

/// JSON writes U+0000 to U+001F as escapes anyway; here the others are too, and mean the same.
fn json_text(value: &Value) -> String {
    let is_unprintable = |c: char| c != '\n' && is_unprintable(c);
    escape(&format!("{value:#}"), is_unprintable, |c| {
        c.encode_utf16(&mut [0; 2]).iter().map(|u| format!("\\u{u:04x}")).collect()
    })
    .into_owned()
}

fn people_text(value: &Value, people: impl FnOnce(&Value) -> String) -> String {
    plain_lines(people(&printable(value)).trim_end()).into_owned()
}

/// The same value with texts that can be printed.
fn printable(value: &Value) -> Value {
    match value {
        Value::String(text) => plain(text).into_owned().into(),
        Value::Array(items) => items.iter().map(printable).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), printable(value))).collect(),
        other => other.clone(),
    }
}

/// A text in one line, as it can be printed: `\u{1b}` for what a terminal would obey.
pub fn plain(text: &str) -> Cow<'_, str> {
    escape(text, is_unprintable, |c| c.escape_unicode().to_string())
}

/// An error's text: of several lines where its cause is.
pub fn plain_lines(text: &str) -> Cow<'_, str> {
    escape(text, |c| c != '\n' && is_unprintable(c), |c| c.escape_unicode().to_string())
}

fn escape(text: &str, is_bad: impl Fn(char) -> bool, as_escape: impl Fn(char) -> String) -> Cow<'_, str> {
    if !text.contains(&is_bad) {
        return text.into();
    }
    text.chars().map(|c| if is_bad(c) { as_escape(c) } else { c.to_string() }).collect::<String>().into()
}

/// Control characters (also U+0080 to U+009F, which terminals obey), and what hides text or turns its direction: zero-width characters,
/// line and paragraph separators, bidirectional controls, tags.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A word as a shell reads it back.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''")).into()
}

/// What failed, and what to do next: errors of commands that know it.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Advised {
    /// What failed.
    pub text: String,
    /// The next step.
    pub next: String,
}

/// An error with its next step.
pub fn advised(text: impl Into<String>, next: impl Into<String>) -> anyhow::Error {
    Advised { text: text.into(), next: next.into() }.into()
}

/// A command that cannot be meant: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongUse(String);

/// An error of wrong use that the definition of the options could not find.
pub fn wrong_use(text: impl Into<String>) -> anyhow::Error {
    WrongUse(text.into()).into()
}

/// Rows with aligned columns; the first row is the heading.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A field of an answer as text: what is absent is `-`, lists are joined.
pub fn field(value: &Value, name: &str) -> String {
    shown(value.get(name).unwrap_or(&Value::Null))
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Array(items) if items.is_empty() => "-".into(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// The start of an id, for tables.
pub fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let nasty = "a\u{1b}]0;x\u{7}\r\nb\u{9b}2J\u{202e}c\u{e0041}d é 日";
        let safe = "a\\u{1b}]0;x\\u{7}\\u{d}\\u{a}b\\u{9b}2J\\u{202e}c\\u{e0041}d é 日";
        assert_eq!(plain(nasty), safe);
        assert_eq!(plain_lines("one\ntwo\u{1b}"), "one\ntwo\\u{1b}");
        let value = json!({"list": [{"name": nasty}], "number": 3});
        assert_eq!(
            people_text(&value, |v| format!("{}\n{}\n", field(&v["list"][0], "name"), v["number"])),
            format!("{safe}\n3")
        );
        let text = json_text(&value);
        assert!(text.chars().all(|c| c == '\n' || !is_unprintable(c)), "{text}");
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value, "the same to a program");
    }

    #[test]
    fn words_for_a_shell() {
        for (word, shown) in
            [("a-b/c.d", "a-b/c.d"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(quoted(word), shown);
        }
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["name".into(), "t".into()], vec!["k".into(), "2".into()], vec!["longer name".into()]];
        assert_eq!(table(&rows), "name         t\nk            2\nlonger name\n");
    }

    #[test]
    fn fields_of_an_answer() {
        let value = json!({"a": ["x", "y"], "b": true, "c": 3, "d": "", "e": null, "f": []});
        for (name, text) in [("a", "x, y"), ("b", "yes"), ("c", "3"), ("d", "-"), ("e", "-"), ("f", "-"), ("g", "-")] {
            assert_eq!(field(&value, name), text);
        }
    }
}
