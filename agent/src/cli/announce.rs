//! What commands print: text for people, or JSON for scripts; progress on standard error.

use serde_json::Value;
use std::io::{IsTerminal, Write};

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
    pub fn result(&self, value: &Value, people: impl FnOnce(&Value) -> String) {
        if self.json {
            line(&format!("{value:#}"));
        } else {
            line(people(value).trim_end());
        }
    }

    /// News of long work, for people only.
    pub fn progress(&self, text: &str) {
        if !self.json && std::io::stderr().is_terminal() {
            eprintln!("{text}");
        }
    }
}

/// A reader that went away (`mayfly key list | head -1`) is no error.
fn line(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
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

/// A moment in milliseconds since the epoch as `2026-11-20 18:44:03 UTC`.
pub fn moment(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Days since 1970-01-01 to year, month, day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + z / 146_097 * 400 + u64::from(month <= 2);
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn moments() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400_000, "2000-02-29 00:00:00 UTC"),
            (1_763_664_243_999, "2025-11-20 18:44:03 UTC"),
            (4_107_542_399_000, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400_000, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(moment(ms), text);
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
