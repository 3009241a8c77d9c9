//! Values that are typed on the command line.

use mayfly_protocol::rules::{KeyType, Use};
use std::time::Duration;

/// `2/3`: shares needed, shares made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Split {
    /// Shares needed.
    pub t: u8,
    /// Shares made.
    pub n: u8,
}

/// Most shares of a key.
const SHARES_MAX: u8 = 63;

/// Reads `T/N` with 2 <= T <= N <= 63.
pub fn split(text: &str) -> Result<Split, String> {
    let parts = text.split_once('/').and_then(|(t, n)| Some((t.parse().ok()?, n.parse().ok()?)));
    match parts {
        Some((t, n)) if 2 <= t && t <= n && n <= SHARES_MAX => Ok(Split { t, n }),
        _ => Err(format!(
            "a split is given as T/N, such as 2/3: any T of N holders are needed; 2 <= T <= N <= {SHARES_MAX}"
        )),
    }
}

/// Reads a key type and gives it in its one spelling.
pub fn key_type(text: &str) -> Result<String, String> {
    let known = "aes:128, aes:192, aes:256, hmac:BITS, generic:BITS, ec:p256";
    KeyType::parse(text).map(|kind| kind.to_string()).ok_or_else(|| format!("key types are {known}"))
}

/// Reads a use, such as `sign`.
pub fn key_use(text: &str) -> Result<String, String> {
    // The value itself is given out by attributes of PKCS#11 only.
    let known = |u: &&Use| **u != Use::Export;
    let names: Vec<&str> = Use::ALL.iter().filter(known).map(|u| u.name()).collect();
    Use::from_name(text)
        .filter(|u| known(&u))
        .map(|u| u.name().to_owned())
        .ok_or_else(|| format!("uses are {}", names.join(", ")))
}

/// Reads `user=NAME` or `group=NAME`, with an optional `@DEVICE`.
pub fn user_rule(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("user=").or_else(|| text.strip_prefix("group="));
    match name {
        Some(name) if !name.is_empty() && !name.starts_with('@') => Ok(text.to_owned()),
        _ => Err("users are given as user=NAME or group=NAME, optionally with @DEVICE".into()),
    }
}

/// Reads `per-operation` or `window:SECONDS`.
pub fn residency(text: &str) -> Result<String, String> {
    one_of(text, &["per-operation"], "per-operation or window:SECONDS")
}

/// Reads `per-release`, `window:SECONDS` or `boot`.
pub fn vault_open(text: &str) -> Result<String, String> {
    one_of(text, &["per-release", "boot"], "per-release, window:SECONDS or boot")
}

fn one_of(text: &str, words: &[&str], expected: &str) -> Result<String, String> {
    let window = text.strip_prefix("window:").and_then(|s| s.parse::<u32>().ok()).is_some_and(|s| s > 0);
    if words.contains(&text) || window { Ok(text.to_owned()) } else { Err(format!("expected {expected}")) }
}

/// Reads uses per second: `100/s`.
pub fn rate(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    number.parse().ok().filter(|rate| *rate > 0).ok_or_else(|| "expected uses per second, as in 100/s".into())
}

/// Reads `90s`, `15m`, `12h` or `7d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let unit = |letter: char| match letter {
        's' => Some(1),
        'm' => Some(60),
        'h' => Some(3600),
        'd' => Some(86_400),
        _ => None,
    };
    let seconds = text.char_indices().last().and_then(|(at, letter)| {
        let number: u64 = text.get(..at)?.parse().ok()?;
        number.checked_mul(unit(letter)?)
    });
    seconds.filter(|s| *s > 0).map(Duration::from_secs).ok_or_else(|| "a time is given as 90s, 15m, 12h or 7d".into())
}

/// Reads a name as the ledger takes it.
pub fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=mayfly_protocol::record::NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("a name is 1 to 64 letters, digits, '-', '_' or '.'".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits() {
        for (text, expected) in [
            ("2/3", Some((2, 3))),
            ("2/2", Some((2, 2))),
            ("63/63", Some((63, 63))),
            ("1/3", None),
            ("3/2", None),
            ("2/64", None),
            ("2", None),
            ("2/", None),
            ("-2/3", None),
            ("300/300", None),
        ] {
            assert_eq!(split(text).ok().map(|s| (s.t, s.n)), expected, "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, expected) in
            [("100/s", Some(100)), ("7", Some(7)), ("0/s", None), ("1/m", None), ("-1/s", None), ("", None)]
        {
            assert_eq!(rate(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [
            ("90s", Some(90)),
            ("15m", Some(900)),
            ("12h", Some(43_200)),
            ("7d", Some(604_800)),
            ("0s", None),
            ("7", None),
            ("", None),
            ("s", None),
            ("1y", None),
            ("99999999999999999999d", None),
            ("1\u{00e9}", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), seconds, "{text}");
        }
    }

    #[test]
    fn lifetimes() {
        for (text, good) in [
            ("per-operation", true),
            ("window:5", true),
            ("window:0", false),
            ("window:", false),
            ("boot", false),
            ("", false),
        ] {
            assert_eq!(residency(text).is_ok(), good, "{text}");
        }
        assert!(vault_open("boot").is_ok() && vault_open("window:60").is_ok() && vault_open("per-operation").is_err());
    }

    #[test]
    fn types_users_uses_names() {
        assert_eq!(key_type("hmac:256").as_deref(), Ok("generic:256"));
        assert!(key_type("rsa:2048").is_err());
        assert!(user_rule("user=www-data").is_ok() && user_rule("group=ssl@web-1").is_ok());
        assert!(user_rule("user=").is_err() && user_rule("www-data").is_err() && user_rule("user=@x").is_err());
        assert!(key_use("sign").is_ok() && key_use("sing").is_err());
        assert!(name("agent-1").is_ok() && name("").is_err() && name("a b").is_err());
    }
}
