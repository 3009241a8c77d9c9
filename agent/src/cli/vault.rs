//! The `[vault]` section of a new agent: what seals on this host, and where its secret comes from.
//!
//! A secret is written into a file of mode 0600 or left where the operator keeps it; it is never in the configuration.

use super::announce::advised;
use super::ask::Question;
use super::init::write_new;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use mayfly_secmem::{Secret, SecretBytes, random};
use rustix::fs::{Access, AtFlags, CWD, accessat};
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// The file vault's passphrase, beside the configuration.
const PASSPHRASE: &str = "vault.passphrase";
/// The token's PIN, beside the configuration.
const PIN: &str = "vault.pin";
/// Largest file with a `[vault]` section, in bytes.
const SECTION_BYTES_MAX: u64 = 32 * 1024;
/// The chip, by the kernel's resource manager.
const TCTI_DEFAULT: &str = "device:/dev/tpmrm0";
/// Names that are written over the network, which the plugin's process may then use.
const NETWORK_TCTIS: [&str; 3] = ["mssim", "swtpm:host=", "swtpm:port="];

/// What seals a device's keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum VaultKind {
    /// A file under a passphrase: software only, for development
    File,
    /// The TPM 2.0 of this host
    Tpm,
    /// A PKCS#11 token: smart card, USB token, HSM
    Pkcs11,
}

/// Which vault, and how it is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Vault")]
pub struct VaultOptions {
    /// What seals this device's keys
    #[arg(long, value_enum, value_name = "KIND", default_value = "file")]
    vault: VaultKind,
    /// A file with a ready `[vault]` section, for everything that the other options do not say
    #[arg(long, value_name = "FILE", conflicts_with = "vault")]
    vault_config: Option<PathBuf>,
    /// tpm: way to the chip [default: device:/dev/tpmrm0]
    #[arg(long, value_name = "TCTI")]
    tcti: Option<String>,
    /// tpm: registers whose values must be approved for the vault to open
    #[arg(long, value_name = "NUMBER,…", value_delimiter = ',', requires = "pcr_approver", value_parser = clap::value_parser!(u32).range(0..24))]
    pcr: Vec<u32>,
    /// tpm: public key of the approver (P-256, compressed, 66 hexadecimal digits)
    #[arg(long, value_name = "KEY", requires = "pcr", value_parser = approver)]
    pcr_approver: Option<String>,
    /// pkcs11: the token's library
    #[arg(long, value_name = "PATH", required_if_eq("vault", "pkcs11"))]
    module: Option<PathBuf>,
    /// pkcs11: the token by its label
    #[arg(long, value_name = "LABEL")]
    token_label: Option<String>,
    /// pkcs11: the token by its serial number
    #[arg(long, value_name = "SERIAL")]
    token_serial: Option<String>,
    /// pkcs11: file with the PIN; without this and the next option the PIN is asked for and written beside agent.toml
    #[arg(long, value_name = "PATH", conflicts_with = "pin_credential")]
    pin_file: Option<PathBuf>,
    /// pkcs11: systemd credential with the PIN
    #[arg(long, value_name = "NAME")]
    pin_credential: Option<String>,
}

impl VaultOptions {
    /// Whether the vault opens only in a state that an approver has signed.
    pub fn asks_an_approver(&self) -> bool {
        !self.pcr.is_empty()
    }

    /// Options of one kind beside another kind: `--tcti` and `--vault pkcs11`.
    pub fn misused(&self) -> Option<String> {
        let tpm = [("--tcti", self.tcti.is_some()), ("--pcr", !self.pcr.is_empty())];
        let token = [
            ("--module", self.module.is_some()),
            ("--token-label", self.token_label.is_some()),
            ("--token-serial", self.token_serial.is_some()),
            ("--pin-file", self.pin_file.is_some()),
            ("--pin-credential", self.pin_credential.is_some()),
        ];
        let ready = self.vault_config.is_some();
        let of = |kind, options: &[(&'static str, bool)]| {
            let is_misused = ready || self.vault != kind;
            options.iter().find(|(_, given)| is_misused && *given).map(|(option, _)| *option)
        };
        if let Some(option) = of(VaultKind::Tpm, &tpm) {
            return Some(format!("{option} is for --vault tpm"));
        }
        if let Some(option) = of(VaultKind::Pkcs11, &token) {
            return Some(format!("{option} is for --vault pkcs11"));
        }
        let names_token = self.token_label.is_some() || self.token_serial.is_some();
        let is_open = self.vault == VaultKind::Pkcs11 && !ready && !names_token;
        is_open.then(|| "--vault pkcs11 needs --token-label or --token-serial".to_owned())
    }

    /// The section; asks for what is not given. `dir` is the agent's folder.
    pub fn choose(&self, dir: &Path) -> Result<NewVault> {
        if let Some(path) = &self.vault_config {
            return NewVault::read(path);
        }
        match self.vault {
            VaultKind::File => NewVault::file(dir),
            VaultKind::Tpm => {
                let tcti = self.tcti.as_deref().unwrap_or(TCTI_DEFAULT);
                check_tpm(tcti)?;
                let approver = self.pcr_approver.as_deref();
                NewVault::tpm(tcti, approver.map(|approver| Pcr { registers: &self.pcr, approver }))
            }
            VaultKind::Pkcs11 => self.token(dir),
        }
    }

    fn token(&self, dir: &Path) -> Result<NewVault> {
        let absolute =
            |path: &Path| std::path::absolute(path).with_context(|| format!("cannot use {}", path.display()));
        let module = absolute(self.module.as_deref().context("--module is missing")?)?;
        if !module.is_file() {
            return Err(advised(
                format!("there is no PKCS#11 library {}", module.display()),
                "install the token's software, and name its library with --module",
            ));
        }
        let mut config = toml::Table::new();
        config.insert("module".into(), text(&module)?.into());
        for (name, value) in [("token_label", &self.token_label), ("token_serial", &self.token_serial)] {
            config.extend(value.as_ref().map(|value| (name.to_owned(), value.as_str().into())));
        }
        let mut secret = None;
        match (&self.pin_file, &self.pin_credential) {
            (Some(path), _) => {
                let path = absolute(path)?;
                ensure!(path.is_file(), "there is no PIN file {}", path.display());
                config.insert("pin_file".into(), text(&path)?.into());
            }
            (None, Some(name)) => drop(config.insert("pin_credential".into(), name.as_str().into())),
            (None, None) => {
                let question = Question {
                    what: "PIN of the vault's token",
                    file: None,
                    variable: "MAYFLY_VAULT_PIN",
                    is_new: false,
                };
                let path = dir.join(PIN);
                config.insert("pin_file".into(), text(&path)?.into());
                secret = Some((path, question.ask()?));
            }
        }
        let environment = std::env::var("SOFTHSM2_CONF").ok().map(|conf| ("SOFTHSM2_CONF", conf));
        let is_softhsm = module.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libsofthsm"));
        let section = section("pkcs11", &config, false, environment.filter(|_| is_softhsm))?;
        Ok(NewVault { section, secret })
    }
}

fn approver(key: &str) -> Result<String, String> {
    let is_hex = key.len() == 66 && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex && (key.starts_with("02") || key.starts_with("03")) {
        return Ok(key.to_owned());
    }
    Err("a P-256 key in 66 hexadecimal digits that begin with 02 or 03".into())
}

/// Registers and who approves them.
#[derive(Debug, Clone, Copy)]
pub struct Pcr<'a> {
    /// Their numbers.
    pub registers: &'a [u32],
    /// The approver's key, hexadecimal.
    pub approver: &'a str,
}

/// A vault that is to be: its section in the agent's configuration, and the secret file beside it.
pub struct NewVault {
    section: String,
    secret: Option<(PathBuf, SecretBytes)>,
}

impl NewVault {
    /// A file vault in the agent's folder. A random passphrase keeps the vault's file apart from its opening, no more.
    pub fn file(dir: &Path) -> Result<Self> {
        let path = dir.join(PASSPHRASE);
        let mut config = toml::Table::new();
        config.insert("passphrase_file".into(), text(&path)?.into());
        let section = section("file", &config, false, None)?;
        // One that is there is that of an attempt that may have reached the ledger, whose vault is still there too.
        let secret = if path.exists() { None } else { Some((path, random_passphrase()?)) };
        Ok(Self { section, secret })
    }

    /// The vault in a TPM.
    pub fn tpm(tcti: &str, pcr: Option<Pcr<'_>>) -> Result<Self> {
        let mut config = toml::Table::new();
        config.insert("tcti".into(), tcti.into());
        if let Some(pcr) = pcr {
            let mut table = toml::Table::new();
            let registers: Vec<i64> = pcr.registers.iter().copied().map(i64::from).collect();
            table.insert("registers".into(), registers.into());
            table.insert("approver".into(), pcr.approver.into());
            config.insert("pcr".into(), table.into());
        }
        let network = NETWORK_TCTIS.iter().any(|name| tcti.starts_with(name));
        Ok(Self { section: section("tpm", &config, network, None)?, secret: None })
    }

    /// A ready section.
    pub fn read(path: &Path) -> Result<Self> {
        let length = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        ensure!(length <= SECTION_BYTES_MAX, "{} is larger than {SECTION_BYTES_MAX} bytes", path.display());
        let section = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let table: toml::Table = section.parse().with_context(|| format!("{} is not TOML", path.display()))?;
        let is_section = table.len() == 1 && table.get("vault").is_some_and(toml::Value::is_table);
        ensure!(is_section, "{} has more, or other, than a [vault] section", path.display());
        Ok(Self { section: section.trim_end().to_owned() + "\n", secret: None })
    }

    /// The section's text, for the agent's configuration.
    pub fn section(&self) -> &str {
        &self.section
    }

    /// Writes the secret beside the configuration.
    pub fn write_secret(&self) -> Result<()> {
        let Some((path, secret)) = &self.secret else { return Ok(()) };
        // What an interrupted attempt left there; whoever has joined is not asked again.
        self.remove_secret()?;
        write_new(path, secret.expose())
    }

    /// Removes the file that [`NewVault::write_secret`] wrote.
    pub fn remove_secret(&self) -> Result<()> {
        let Some((path, _)) = &self.secret else { return Ok(()) };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn section(kind: &str, config: &toml::Table, network: bool, variable: Option<(&str, String)>) -> Result<String> {
    let config = toml::to_string(config).context("cannot write the vault's configuration")?;
    let mut section = format!("[vault]\nkind = \"{kind}\"\nconfig = {}\n", toml::Value::from(config));
    if network {
        section.push_str("network = true\n");
    }
    if let Some((name, value)) = variable {
        section.push_str(&format!("\n[vault.environment]\n{name} = {}\n", toml::Value::from(value)));
    }
    Ok(section)
}

fn random_passphrase() -> Result<SecretBytes> {
    let passphrase = SecretBytes::try_new_with(64, |text| {
        let mut bytes = Secret::<32>::try_new_with(|bytes| random(bytes))?;
        for (pair, byte) in text.chunks_exact_mut(2).zip(bytes.expose_mut()) {
            for (digit, nibble) in pair.iter_mut().zip([*byte >> 4, *byte & 15]) {
                *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            }
        }
        Ok::<_, mayfly_secmem::RandomError>(())
    });
    passphrase.context("no randomness for the vault's passphrase")
}

/// What can be seen before the plugin runs, with its next step.
fn check_tpm(tcti: &str) -> Result<()> {
    if let Some(socket) = tcti.strip_prefix("swtpm:path=") {
        return match UnixStream::connect(socket) {
            Ok(_) => Ok(()),
            Err(error) => Err(advised(
                format!("no software TPM answers at {socket}: {error}"),
                "start it: `softhsm-setup/swtpm-start DIR`, or `swtpm socket --tpm2 …`",
            )),
        };
    }
    let Some(device) = tcti.strip_prefix("device:") else { return Ok(()) };
    match accessat(CWD, device, Access::READ_OK | Access::WRITE_OK, AtFlags::EACCESS) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::NOENT) => Err(advised(
            format!("there is no TPM at {device}"),
            "turn it on in the firmware's set-up (TPM 2.0, fTPM, PTT) and look at `dmesg | grep -i tpm`; or choose another --vault",
        )),
        Err(rustix::io::Errno::ACCESS) => Err(advised(
            format!("user {} may not use {device}", rustix::process::geteuid()),
            format!("add the agent's user to the device's group (`usermod -a -G tss mayfly`), or see `ls -l {device}`"),
        )),
        Err(error) => Err(error).with_context(|| format!("cannot use {device}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::announce::Advised;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        vault: VaultOptions,
    }

    fn options(words: &str) -> Result<VaultOptions, clap::Error> {
        Command::try_parse_from(std::iter::once("join").chain(words.split_whitespace())).map(|command| command.vault)
    }

    fn chosen(words: &str, dir: &Path) -> toml::Table {
        let section: toml::Table = options(words).unwrap().choose(dir).unwrap().section().parse().unwrap();
        section["vault"].as_table().unwrap().clone()
    }

    const KEY: &str = "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";

    #[test]
    fn options_that_do_not_go_together_are_wrong_use() {
        for words in
            ["--vault cloud", "--pcr 7", "--vault pkcs11 --token-label x", "--vault tpm --pcr 24 --pcr-approver x"]
        {
            assert!(options(words).is_err(), "{words}");
        }
        for words in [
            "--vault-config x --vault tpm",
            &format!("--vault tpm --pcr 24 --pcr-approver {KEY}"),
            "--vault tpm --pcr 7 --pcr-approver 04aa",
            "--vault pkcs11 --module x --token-label l --pin-file x --pin-credential y",
        ] {
            assert!(options(words).is_err(), "{words}");
        }
        for (words, named) in [
            ("--tcti device:/dev/tpm0", "--tcti"),
            ("--vault tpm --token-label x", "--token-label"),
            ("--vault-config x --pin-file y", "--pin-file"),
            ("--vault pkcs11 --module x", "--token-label or --token-serial"),
        ] {
            assert!(options(words).unwrap().misused().unwrap().contains(named), "{words}");
        }
        for words in ["", "--vault tpm", "--vault pkcs11 --module x --token-serial 1", "--vault-config x"] {
            assert_eq!(options(words).unwrap().misused(), None, "{words}");
        }
    }

    #[test]
    fn sections_say_what_was_chosen() {
        let folder = tempfile::tempdir().unwrap();
        let (dir, module) = (folder.path(), folder.path().join("libtoken.so"));
        std::fs::write(&module, "").unwrap();
        let tpm = chosen(&format!("--vault tpm --tcti mssim:host=tpm --pcr 7,11 --pcr-approver {KEY}"), dir);
        assert_eq!((tpm["kind"].as_str(), tpm["network"].as_bool()), (Some("tpm"), Some(true)));
        let config: toml::Table = tpm["config"].as_str().unwrap().parse().unwrap();
        assert_eq!(config["tcti"].as_str(), Some("mssim:host=tpm"));
        assert_eq!(config["pcr"]["registers"].as_array().unwrap().len(), 2);
        assert_eq!(config["pcr"]["approver"].as_str(), Some(KEY));

        let token = format!("--vault pkcs11 --module {} --token-label x --pin-credential pin", module.display());
        let token = chosen(&token, dir);
        assert!(token.get("network").is_none());
        let config: toml::Table = token["config"].as_str().unwrap().parse().unwrap();
        assert_eq!(config["module"].as_str(), module.to_str());
        assert_eq!((config["token_label"].as_str(), config["pin_credential"].as_str()), (Some("x"), Some("pin")));

        for tcti in ["device:/dev/null", "tabrmd"] {
            assert!(chosen(&format!("--vault tpm --tcti {tcti}"), dir).get("network").is_none(), "{tcti}");
        }
    }

    #[test]
    fn a_ready_section_is_taken_word_for_word_and_nothing_else_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.toml");
        let ready = "# mine\n[vault]\nkind = \"x\"\n\n[vault.environment]\nA = \"b\"\n";
        std::fs::write(&path, ready).unwrap();
        assert_eq!(NewVault::read(&path).unwrap().section(), ready);
        for bad in ["", "vault = 1", "[vault]\nkind = \"x\"\n[danger]\nplugin_path_unchecked = true", "no toml"] {
            std::fs::write(&path, bad).unwrap();
            assert!(NewVault::read(&path).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_passphrase_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PASSPHRASE);
        NewVault::file(folder.path()).unwrap().write_secret().unwrap();
        let first = std::fs::read(&path).unwrap();
        assert!(first.len() == 64 && first.iter().all(u8::is_ascii_hexdigit));
        let again = NewVault::file(folder.path()).unwrap();
        again.write_secret().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
        again.remove_secret().unwrap();
        assert!(path.exists(), "what another attempt made is not removed");
    }

    #[test]
    fn a_tpm_that_is_not_there_is_told_with_the_next_step() {
        for (tcti, text) in [("device:/dev/no-tpm", "there is no TPM"), ("swtpm:path=/no/socket", "no software TPM")] {
            let error = check_tpm(tcti).unwrap_err();
            assert!(error.to_string().contains(text) && error.downcast_ref::<Advised>().is_some(), "{error}");
        }
        assert!(check_tpm("device:/dev/null").is_ok() && check_tpm("tabrmd").is_ok());
    }
}
