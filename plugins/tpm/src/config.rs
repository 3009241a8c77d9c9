//! Configuration text (TOML), and where auth values come from.

use crate::error::Fault;
use mayfly_evidence::object::Point;
use mayfly_evidence::pcr::Selection;
use mayfly_plugin_abi::GuestError;
use mayfly_vault_store::config::{self, Source, refuse};
use p256::elliptic_curve::sec1::{FromSec1Point, ToSec1Point};
use serde::Deserialize;
use std::ffi::CString;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Shortest secret that may stand for the vault's own auth values: they guard the sealed halves against whoever can talk
/// to the chip, without any lockout.
const AUTH_BYTES_MIN: usize = 32;
/// Longest secret in a file.
const SECRET_BYTES_MAX: usize = 1024;
/// Longest auth value of a hierarchy: what the chip's SHA-256 takes.
const HIERARCHY_AUTH_BYTES_MAX: usize = 32;
/// Ways to a chip that are taken. Others of libtss2 run programs or record the bus.
const TCTIS: [&str; 4] = ["device", "tabrmd", "swtpm", "mssim"];
/// Handles of persistent objects of the owner (TCG registry of reserved handles).
const OWNER_PERSISTENT: std::ops::RangeInclusive<u32> = 0x8100_0000..=0x817f_ffff;
/// Handles of NV indices of the owner, likewise.
const OWNER_NV: std::ops::RangeInclusive<u32> = 0x0180_0000..=0x01bf_ff00;

/// The configuration.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Way to the chip: `device:/dev/tpmrm0`, `tabrmd`, `swtpm:path=SOCKET`.
    #[serde(default = "tcti_default")]
    pub(crate) tcti: String,
    /// Persistent handle of the storage root key; it is made when there is nothing at it.
    #[serde(default = "srk_handle_default")]
    pub(crate) srk_handle: u32,
    /// The first NV index that may be used; the first four free ones from here on are taken, once.
    #[serde(default = "nv_base_default")]
    pub(crate) nv_base: u32,
    /// File with the secret that the vault's auth values are derived from; without it (and without the credential) one
    /// is made in the data folder, beside the sealed blobs.
    auth_file: Option<PathBuf>,
    /// The same as a systemd credential (systemd.exec(5), `LoadCredentialEncrypted=`).
    auth_credential: Option<String>,
    /// File with the owner hierarchy's auth value, where the owner has one; needed to make and to remove a vault.
    owner_auth_file: Option<PathBuf>,
    /// The same as a systemd credential.
    owner_auth_credential: Option<String>,
    /// File with the endorsement hierarchy's auth value, where it has one; needed to attest.
    endorsement_auth_file: Option<PathBuf>,
    /// The same as a systemd credential.
    endorsement_auth_credential: Option<String>,
    /// Registers that must be approved for the vault to open; without this section none are looked at.
    pcr: Option<Pcr>,
}

/// Which state of the machine opens the vault.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pcr {
    /// Numbers of the registers that are shown for approval.
    registers: Vec<u32>,
    /// Public key of the approver: P-256, compressed, hexadecimal.
    approver: String,
}

/// [`Pcr`], checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PcrPolicy {
    pub(crate) registers: Selection,
    pub(crate) approver: Point,
}

fn tcti_default() -> String {
    "device:/dev/tpmrm0".to_owned()
}

fn srk_handle_default() -> u32 {
    0x8100_0001
}

fn nv_base_default() -> u32 {
    0x0180_4d00
}

impl Config {
    /// Reads the text; unknown keys and values that cannot work are errors.
    pub(crate) fn parse(text: &str) -> Result<Config, GuestError> {
        let config: Config = config::parse(text)?;
        let name = config.tcti.split(':').next().unwrap_or_default();
        if !TCTIS.contains(&name) {
            return Err(refuse(format!("tcti '{name}' is not one of {}", TCTIS.join(", "))));
        }
        if !OWNER_PERSISTENT.contains(&config.srk_handle) {
            return Err(refuse("srk_handle is not a persistent handle of the owner (0x81000000 to 0x817fffff)"));
        }
        if !OWNER_NV.contains(&config.nv_base) {
            return Err(refuse("nv_base is not an index of the owner (0x01800000 to 0x01bfff00)"));
        }
        for secret in Secret::ALL {
            config.source(secret)?;
        }
        config.pcr()?;
        config.tcti()?;
        Ok(config)
    }

    fn source(&self, secret: Secret) -> Result<Option<Source>, GuestError> {
        let (file, credential) = match secret {
            Secret::Auth => (&self.auth_file, &self.auth_credential),
            Secret::OwnerAuth => (&self.owner_auth_file, &self.owner_auth_credential),
            Secret::EndorsementAuth => (&self.endorsement_auth_file, &self.endorsement_auth_credential),
        };
        Source::of(secret.name(), file.as_deref(), credential.as_deref())
    }

    /// The way to the chip, for libtss2.
    pub(crate) fn tcti(&self) -> Result<CString, GuestError> {
        CString::new(self.tcti.as_str()).map_err(|_| refuse("tcti has a zero byte in it"))
    }

    /// The policy on registers, if there is one.
    pub(crate) fn pcr(&self) -> Result<Option<PcrPolicy>, GuestError> {
        let Some(pcr) = &self.pcr else { return Ok(None) };
        let registers = Selection::of(&pcr.registers).map_err(|error| refuse(format!("pcr.registers: {error}")))?;
        if registers.is_empty() {
            return Err(refuse("pcr.registers is empty; leave the section out to look at no register"));
        }
        let approver = decompress(&pcr.approver)
            .ok_or_else(|| refuse("pcr.approver is not a P-256 key (33 bytes, compressed, hexadecimal)"))?;
        Ok(Some(PcrPolicy { registers, approver }))
    }

    /// The secret behind the vault's auth values, where the operator gives one.
    pub(crate) fn auth(&self) -> Result<Option<Zeroizing<Vec<u8>>>, Fault> {
        let Some(source) = self.source(Secret::Auth)? else { return Ok(None) };
        Ok(Some(source.read(Secret::Auth.name(), AUTH_BYTES_MIN..=SECRET_BYTES_MAX)?.bytes))
    }

    /// True when the secret behind the auth values lies in the data folder.
    pub(crate) fn keeps_auth(&self) -> bool {
        self.auth_file.is_none() && self.auth_credential.is_none()
    }

    /// The owner hierarchy's auth value; empty where it has none.
    pub(crate) fn owner_auth(&self) -> Result<Zeroizing<Vec<u8>>, Fault> {
        self.hierarchy_auth(Secret::OwnerAuth)
    }

    /// The endorsement hierarchy's auth value; empty where it has none.
    pub(crate) fn endorsement_auth(&self) -> Result<Zeroizing<Vec<u8>>, Fault> {
        self.hierarchy_auth(Secret::EndorsementAuth)
    }

    fn hierarchy_auth(&self, secret: Secret) -> Result<Zeroizing<Vec<u8>>, Fault> {
        let Some(source) = self.source(secret)? else { return Ok(Zeroizing::default()) };
        let mut auth = source.read(secret.name(), 1..=SECRET_BYTES_MAX)?.bytes;
        // the chip takes trailing zeros off auth values, and computes its HMAC keys without them
        while auth.last() == Some(&0) {
            auth.pop();
        }
        if auth.len() > HIERARCHY_AUTH_BYTES_MAX {
            return Err(refuse(format!("{} is longer than {HIERARCHY_AUTH_BYTES_MAX} bytes", secret.name())).into());
        }
        Ok(auth)
    }
}

/// Secrets that the operator may give.
#[derive(Clone, Copy)]
enum Secret {
    Auth,
    OwnerAuth,
    EndorsementAuth,
}

impl Secret {
    const ALL: [Secret; 3] = [Secret::Auth, Secret::OwnerAuth, Secret::EndorsementAuth];

    /// What its options start with.
    fn name(self) -> &'static str {
        match self {
            Secret::Auth => "auth",
            Secret::OwnerAuth => "owner_auth",
            Secret::EndorsementAuth => "endorsement_auth",
        }
    }
}

fn decompress(text: &str) -> Option<Point> {
    let bytes: [u8; 33] = hex::decode(text).ok()?.try_into().ok()?;
    let key = p256::PublicKey::from_sec1_bytes(&bytes).ok()?;
    let point = key.to_sec1_point(false);
    Some(Point { x: (*point.x()?).into(), y: (*point.y()?).into() })
}

/// The SEC 1 key of a point, if it is one.
pub(crate) fn verifying_key(point: &Point) -> Option<p256::ecdsa::VerifyingKey> {
    let sec1 = p256::Sec1Point::from_bytes(point.uncompressed()).ok()?;
    let key = Option::<p256::PublicKey>::from(p256::PublicKey::from_sec1_point(&sec1))?;
    Some(key.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const APPROVER: &str = "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296";

    #[test]
    fn configurations() {
        for (text, good) in [
            ("", true),
            ("tcti = 'tabrmd'", true),
            ("tcti = 'swtpm:path=/run/swtpm'", true),
            ("tcti = 'device:/dev/tpmrm0'\nsrk_handle = 0x81000002\nnv_base = 0x01810000", true),
            ("tcti = 'cmd:sh'", false),
            ("tcti = 'pcap:swtpm'", false),
            ("tcti = ''", false),
            ("tcti = \"device:/dev/tpm0\\u0000\"", false),
            ("srk_handle = 0x81010001", true),
            ("srk_handle = 0x81800000", false),
            ("srk_handle = 1", false),
            ("nv_base = 0x01c00002", false),
            ("auth_file = '/x'\nauth_credential = 'x'", false),
            ("owner_auth_file = '/x'\nowner_auth_credential = 'x'", false),
            ("pcr.registers = [7]", false),
            ("unknown = 1", false),
            ("= broken", false),
        ] {
            assert_eq!(Config::parse(text).is_ok(), good, "{text}");
        }
        let pcr = |registers: &str, approver: &str| format!("[pcr]\nregisters = {registers}\napprover = '{approver}'");
        assert!(Config::parse(&pcr("[0, 7]", APPROVER)).is_ok());
        for (registers, approver) in [("[]", APPROVER), ("[24]", APPROVER), ("[7]", "02"), ("[7]", &"00".repeat(33))] {
            assert!(Config::parse(&pcr(registers, approver)).is_err(), "{registers} {approver}");
        }
    }

    #[test]
    fn the_approver_is_a_point() {
        let config = Config::parse(&format!("[pcr]\nregisters = [7]\napprover = '{APPROVER}'")).unwrap();
        let point = config.pcr().unwrap().unwrap().approver;
        assert_eq!(hex::encode(point.compressed()), APPROVER);
        assert!(verifying_key(&point).is_some());
        assert!(verifying_key(&Point { y: [0; 32], ..point }).is_none());
    }

    #[test]
    fn secret_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("auth");
        let put = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        let config = Config::parse(&format!("auth_file = '{}'", path.display())).unwrap();
        for (length, good) in [(31, false), (32, true), (SECRET_BYTES_MAX, true), (SECRET_BYTES_MAX + 1, false)] {
            put(&vec![b'\n'; length]);
            assert_eq!(
                config.auth().ok().flatten().map(|auth| auth.len()),
                good.then_some(length),
                "a line end counts"
            );
        }
        let config = Config::parse(&format!("owner_auth_file = '{}'", path.display())).unwrap();
        put(b"owner\0\0");
        assert_eq!(&config.owner_auth().ok().unwrap()[..], b"owner");
        put(&[7; HIERARCHY_AUTH_BYTES_MAX + 1]);
        assert!(config.owner_auth().is_err());
        assert!(Config::parse("").unwrap().owner_auth().ok().unwrap().is_empty());
    }
}
