//! Configuration text (TOML); an empty one is fine.

use mayfly_plugin_abi::{GuestError, Status};
use serde::Deserialize;

/// Free bytes below which appends are refused.
const RESERVE_MIB_DEFAULT: u64 = 64;
/// Most that may be reserved.
const RESERVE_MIB_MAX: u64 = 1024 * 1024;
/// Page cache.
const CACHE_MIB_DEFAULT: usize = 16;
/// Largest page cache.
const CACHE_MIB_MAX: usize = 4096;

/// What an operator may set.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    /// Free disk space, in MiB, that appends leave alone; checkpoints may use three quarters of it.
    reserve_mib: u64,
    /// Memory for database pages, in MiB.
    cache_mib: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config { reserve_mib: RESERVE_MIB_DEFAULT, cache_mib: CACHE_MIB_DEFAULT }
    }
}

impl Config {
    /// Reads the text; unknown keys and odd values are errors.
    pub(crate) fn parse(text: &str) -> Result<Config, GuestError> {
        let config: Config = toml::from_str(text)
            .map_err(|error| GuestError::new(Status::Config, error.message().lines().collect::<Vec<_>>().join(" ")))?;
        if config.reserve_mib > RESERVE_MIB_MAX || !(1..=CACHE_MIB_MAX).contains(&config.cache_mib) {
            return Err(GuestError::new(
                Status::Config,
                format!("reserve_mib is at most {RESERVE_MIB_MAX}, cache_mib 1 to {CACHE_MIB_MAX}"),
            ));
        }
        Ok(config)
    }

    /// Free bytes that appends leave alone.
    pub(crate) fn reserve_bytes(&self) -> u64 {
        self.reserve_mib << 20
    }

    /// Bytes of page cache.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.cache_mib << 20
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    #[test]
    fn configurations() {
        for (text, good) in [
            ("", true),
            ("reserve_mib = 0", true),
            ("reserve_mib = 128\ncache_mib = 64", true),
            ("reserve_mib = -1", false),
            ("reserve_mib = 99999999", false),
            ("cache_mib = 0", false),
            ("cache_mib = 5000", false),
            ("path = '/x'", false),
            ("= broken", false),
        ] {
            assert_eq!(Config::parse(text).is_ok(), good, "{text}");
        }
    }
}
