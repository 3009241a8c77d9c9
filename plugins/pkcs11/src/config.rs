//! Configuration text (TOML): which library, which token, where the PIN is, how to seal.

use mayfly_plugin_abi::GuestError;
use mayfly_vault_store::config::{self, Source, refuse};
use serde::Deserialize;
use std::path::PathBuf;

/// Longest token label (CK_TOKEN_INFO).
const LABEL_BYTES_MAX: usize = 32;
/// Longest serial number (CK_TOKEN_INFO).
const SERIAL_BYTES_MAX: usize = 16;

/// The configuration; its page is `docs/formats/vault-pkcs11.md`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// The vendor's PKCS#11 library.
    pub(crate) module: PathBuf,
    /// SHA-256 of the library, hexadecimal.
    pub(crate) module_sha256: Option<String>,
    /// For development: the library may lie where others can write.
    #[serde(default)]
    pub(crate) danger_module_path_unchecked: bool,
    /// The token's label, without the blanks that pad it.
    pub(crate) token_label: Option<String>,
    /// The token's serial number, without the blanks that pad it.
    pub(crate) token_serial: Option<String>,
    /// File with the PIN; owned by us or root, closed to others. One line end at its end does not count.
    pin_file: Option<PathBuf>,
    /// Name of a systemd credential with the PIN (systemd.exec(5), `LoadCredentialEncrypted=`).
    pin_credential: Option<String>,
    /// Who logs in.
    #[serde(default)]
    pub(crate) user: User,
    /// How vault keys are sealed by the token.
    #[serde(default)]
    pub(crate) seal: Seal,
}

/// `CK_USER_TYPE` of the login.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub(crate) enum User {
    /// By name.
    Named(NamedUser),
    /// A vendor's own type, from `CKU_VENDOR_DEFINED` (0x80000000) on.
    Vendor(u32),
}

/// The user types that have names here. The security officer cannot use keys, so it is not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum NamedUser {
    /// `CKU_USER`.
    User,
}

impl Default for User {
    fn default() -> User {
        User::Named(NamedUser::User)
    }
}

/// How vault keys are sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Seal {
    /// AES-GCM where the token has it, else AES-KEY-WRAP-PAD.
    #[default]
    Auto,
    /// CKM_AES_GCM.
    AesGcm,
    /// CKM_AES_KEY_WRAP_PAD.
    AesKeyWrapPad,
}

impl Config {
    /// Reads the text; unknown keys and values that cannot work are errors.
    pub(crate) fn parse(text: &str) -> Result<Config, GuestError> {
        let config: Config = config::parse(text)?;
        config.pin()?;
        match config.fault() {
            None => Ok(config),
            Some(what) => Err(refuse(what)),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        let fits = |text: &Option<String>, max| text.as_ref().is_none_or(|text| (1..=max).contains(&text.len()));
        let hash = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let vendor = |user: User| !matches!(user, User::Vendor(code) if code < 0x8000_0000);
        let checks = [
            (self.module.is_absolute(), "module must be an absolute path"),
            (self.module_sha256.as_ref().is_none_or(hash), "module_sha256 is a SHA-256 in 64 hexadecimal digits"),
            (self.token_label.is_some() || self.token_serial.is_some(), "set token_label, token_serial or both"),
            (fits(&self.token_label, LABEL_BYTES_MAX), "token_label is 1 to 32 bytes"),
            (fits(&self.token_serial, SERIAL_BYTES_MAX), "token_serial is 1 to 16 bytes"),
            (vendor(self.user), "user is \"user\", or the number of a vendor's user type, from 0x80000000 on"),
        ];
        checks.iter().find(|(holds, _)| !holds).map(|(_, what)| *what)
    }

    /// Where the PIN is, if anywhere.
    pub(crate) fn pin(&self) -> Result<Option<Source>, GuestError> {
        Source::of("pin", self.pin_file.as_deref(), self.pin_credential.as_deref())
    }

    /// The wanted token, for messages.
    pub(crate) fn wanted(&self) -> String {
        match (&self.token_label, &self.token_serial) {
            (Some(label), Some(serial)) => format!("token '{label}' with serial number {serial}"),
            (Some(label), None) => format!("token '{label}'"),
            (None, Some(serial)) => format!("token with serial number {serial}"),
            (None, None) => "token".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page of the format shows every option; what it shows is taken.
    #[test]
    fn the_page_is_right() {
        let page = include_str!("../../../docs/formats/vault-pkcs11.md");
        let block = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
        let section: toml::Table = block.parse().unwrap();
        let text = section["vault"]["config"].as_str().unwrap();
        Config::parse(text).unwrap();
        for option in
            ["module_sha256", "token_serial", "pin_credential", "seal", "user", "danger_module_path_unchecked"]
        {
            assert!(text.contains(option), "{option} is not on the page");
        }
        let all = text.replace("\n# ", "\n").replace("\"...\"", &format!("\"{}\"", "0".repeat(64)));
        Config::parse(&all).unwrap();
    }

    #[test]
    fn configurations() {
        for (text, expected) in [
            ("module = '/x.so'\ntoken_label = 'a'", ""),
            ("module = '/x.so'\ntoken_serial = '1'\npin_file = '/pin'", ""),
            ("module = '/x.so'\ntoken_label = 'a'\npin_credential = 'pin'\nuser = 'user'\nseal = 'aes-gcm'", ""),
            ("module = '/x.so'\ntoken_label = 'a'\nuser = 0x80000001\nseal = 'aes-key-wrap-pad'", ""),
            ("module = '/x.so'\ntoken_label = 'a'\ndanger_module_path_unchecked = true", ""),
            ("token_label = 'a'", "module"),
            ("module = 'x.so'\ntoken_label = 'a'", "absolute"),
            ("module = '/x.so'", "token_label, token_serial"),
            ("module = '/x.so'\ntoken_label = ''", "1 to 32"),
            ("module = '/x.so'\ntoken_serial = '12345678901234567'", "1 to 16"),
            ("module = '/x.so'\ntoken_label = 'a'\nmodule_sha256 = 'abc'", "64 hexadecimal"),
            ("module = '/x.so'\ntoken_label = 'a'\npin_file = '/p'\npin_credential = 'p'", "not both"),
            ("module = '/x.so'\ntoken_label = 'a'\npin = '1234'", "unknown field `pin`"),
            ("module = '/x.so'\ntoken_label = 'a'\nuser = 'so'", "User"),
            ("module = '/x.so'\ntoken_label = 'a'\nuser = 0", "vendor"),
            ("module = '/x.so'\ntoken_label = 'a'\nseal = 'none'", "unknown variant"),
            ("= broken", "key"),
        ] {
            match Config::parse(text) {
                Ok(_) => assert_eq!(expected, "", "{text}"),
                Err(error) => assert!(!expected.is_empty() && error.message.contains(expected), "{text}: {error}"),
            }
        }
    }
}
