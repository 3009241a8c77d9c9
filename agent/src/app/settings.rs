//! What an operator may set about applications: bounds, and how keys are made that applications make.

use mayfly_protocol::DeviceId;
use mayfly_protocol::record::{KeyPolicy, Residency, VaultOpening};
use mayfly_protocol::state::State;
use serde::Deserialize;

use super::ck::{CKR_FUNCTION_FAILED, CKR_FUNCTION_REJECTED};
use super::fail::{Done, Fail};
use crate::node::Holders;

/// Longest window of an assembled key, seconds.
pub const WINDOW_SECONDS_MAX: u32 = 24 * 3600;
/// IV modes of keys that PKCS#11 applications make: hedged and random. The deterministic one shows equal inputs; it must be asked for.
pub const IV_MODES: u8 = IV_HEDGED | IV_RANDOM;
/// Bit of the deterministic mode in [`KeyPolicy::iv_modes`].
pub const IV_DETERMINISTIC: u8 = 1;
/// Bit of the hedged mode.
pub const IV_HEDGED: u8 = 2;
/// Bit of the random mode.
pub const IV_RANDOM: u8 = 4;

/// Settings of the application half.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Bounds.
    pub connections: Connections,
    /// Keys that applications make.
    pub keys: KeyDefaults,
}

/// Bounds of the application socket.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Connections {
    /// Most connections at the same time. Each costs a thread and 4 KiB of secret memory.
    pub all_max: usize,
    /// Most connections of one user (root excepted, for whom some are kept free). A connection may have a frame of 1 MiB under way.
    pub per_user_max: usize,
    /// Most memory for the data, operations and session objects of one user's applications, MiB. Data of 64 MiB at once takes 192.
    pub memory_per_user_mib_max: usize,
    /// The same for all users together, MiB.
    pub memory_all_mib_max: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self { all_max: 4096, per_user_max: 1024, memory_per_user_mib_max: 512, memory_all_mib_max: 2048 }
    }
}

/// How keys are made that applications make through PKCS#11, which has no words for it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeyDefaults {
    /// Shares needed to put a key together (t).
    pub threshold: u8,
    /// Shares dealt (n); 0: one for each holder.
    pub shares: usize,
    /// `per-operation`, or `window:SECONDS`: how long an assembled key lives. A window is faster, and a broken-into host has the key for
    /// so long.
    pub residency: String,
    /// `boot`, `window:SECONDS` or `per-release`: when holders' vaults are opened.
    pub vault_open: String,
    /// Every member may put these keys together, not only the device where they are made: for development, and for keys of a service
    /// that runs on all hosts.
    pub all_assemble: bool,
}

impl Default for KeyDefaults {
    fn default() -> Self {
        Self {
            threshold: 2,
            shares: 0,
            residency: "per-operation".into(),
            vault_open: "boot".into(),
            all_assemble: false,
        }
    }
}

impl KeyDefaults {
    /// Who gets shards of a key that needs `t`: as many as the settings say, or all holders where there are fewer, but never so few that
    /// the loss of one is final, unless the settings themselves say so.
    ///
    /// # Errors
    /// CKR_FUNCTION_REJECTED: too few holders.
    pub fn holders(&self, holders: usize, t: u8) -> Done<Holders> {
        let wanted = if self.shares == 0 { mayfly_crypto::pedersen::MAX_SHARES } else { self.shares };
        let n = holders.min(wanted);
        if n <= usize::from(t) && n < wanted {
            let least = usize::from(t) + 1;
            let reason =
                format!("{holders} holders are there, and a key that any {t} of its shards make needs {least}");
            return Err(Fail::ruled(CKR_FUNCTION_REJECTED, "holders", reason).next(format!(
                "an administrator appoints another: `mayfly device role NAME --set holder`; a key that no holder may miss: --split {t}/{t}"
            )));
        }
        Ok(if self.shares == 0 { Holders::All } else { Holders::Count(n) })
    }

    /// Who may put the key together.
    pub fn assemblers(&self, state: &State, device: DeviceId) -> Option<Vec<DeviceId>> {
        if !self.all_assemble {
            return Some(vec![device]);
        }
        Some(state.devices.iter().filter(|(_, d)| d.is_member()).map(|(id, _)| *id).collect())
    }

    /// Policy of a key for these users and uses.
    ///
    /// # Errors
    /// CKR_FUNCTION_FAILED if the settings make no sense.
    pub fn policy(&self, allow: Vec<String>, uses: u32) -> Done<KeyPolicy> {
        let bad = |what: &str| {
            Fail::ruled(CKR_FUNCTION_FAILED, "settings", format!("the agent's setting {what} makes no sense"))
        };
        Ok(KeyPolicy {
            allow,
            uses,
            residency: parse_residency(&self.residency).ok_or_else(|| bad("keys.residency"))?,
            vault_opening: parse_vault_opening(&self.vault_open).ok_or_else(|| bad("keys.vault_open"))?,
            iv_modes: IV_MODES,
            rate: 0,
        })
    }
}

/// Reads `per-operation` or `window:SECONDS`.
pub fn parse_residency(text: &str) -> Option<Residency> {
    match text.split_once(':') {
        None if text == "per-operation" => Some(Residency { window_seconds: 0 }),
        Some(("window", seconds)) => window(seconds).map(|window_seconds| Residency { window_seconds }),
        _ => None,
    }
}

/// The words for it.
pub fn residency_text(residency: Residency) -> String {
    match residency.window_seconds {
        0 => "per-operation".into(),
        seconds => format!("window:{seconds}"),
    }
}

/// Reads `boot`, `per-release` or `window:SECONDS`.
pub fn parse_vault_opening(text: &str) -> Option<VaultOpening> {
    match text.split_once(':') {
        None if text == "boot" => Some(VaultOpening::Boot),
        None if text == "per-release" => Some(VaultOpening::PerRelease),
        Some(("window", seconds)) => window(seconds).map(VaultOpening::Window),
        _ => None,
    }
}

/// The words for it.
pub fn vault_opening_text(opening: VaultOpening) -> String {
    match opening {
        VaultOpening::Boot => "boot".into(),
        VaultOpening::Window(seconds) => format!("window:{seconds}"),
        VaultOpening::PerRelease => "per-release".into(),
    }
}

fn window(seconds: &str) -> Option<u32> {
    seconds.parse().ok().filter(|seconds| (1..=WINDOW_SECONDS_MAX).contains(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_default_the_loss_of_one_holder_is_never_final() {
        for (shares, holders, t, expected) in [
            (0, 5, 2, Some(Holders::All)),
            (0, 3, 2, Some(Holders::All)),
            (0, 2, 2, None),
            (3, 5, 2, Some(Holders::Count(3))),
            (3, 3, 2, Some(Holders::Count(3))),
            (3, 2, 2, None),
            (4, 3, 2, Some(Holders::Count(3))),
            (5, 3, 3, None),
            // The settings themselves ask for it.
            (2, 2, 2, Some(Holders::Count(2))),
            (2, 5, 2, Some(Holders::Count(2))),
        ] {
            let defaults = KeyDefaults { shares, ..KeyDefaults::default() };
            assert_eq!(defaults.holders(holders, t).ok(), expected, "{shares} shares, {holders} holders, t = {t}");
        }
    }

    #[test]
    fn words_for_residency_and_opening() {
        for (text, seconds) in [
            ("per-operation", Some(0)),
            ("window:1", Some(1)),
            ("window:86400", Some(86_400)),
            ("window:86401", None),
            ("window:0", None),
            ("window:", None),
            ("window", None),
            ("always", None),
        ] {
            assert_eq!(parse_residency(text).map(|r| r.window_seconds), seconds, "{text}");
        }
        for (text, opening) in [
            ("boot", Some(VaultOpening::Boot)),
            ("per-release", Some(VaultOpening::PerRelease)),
            ("window:60", Some(VaultOpening::Window(60))),
            ("never", None),
        ] {
            assert_eq!(parse_vault_opening(text), opening, "{text}");
        }
    }

    #[test]
    fn the_defaults_make_sense() {
        let policy = KeyDefaults::default().policy(vec!["user=a".into()], 3).unwrap();
        assert_eq!((policy.residency.window_seconds, policy.iv_modes), (0, 6));
        let nonsense = KeyDefaults { residency: "x".into(), ..KeyDefaults::default() };
        assert!(nonsense.policy(Vec::new(), 0).is_err());
    }
}
