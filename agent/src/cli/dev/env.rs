//! `DIR/env` and `DIR/agent-N/env`: what a shell needs to use the network.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The variables of DESIGN section 12.
pub struct Env<'a> {
    /// Folder of the network.
    pub dir: &'a Path,
    /// The PKCS#11 module.
    pub module: &'a Path,
    /// An agent's socket.
    pub socket: &'a Path,
    /// Label of the token.
    pub token_label: &'a str,
    /// PINs of the token: a network for development has nothing to hide from its owner.
    pub so_pin: &'a str,
    /// See `so_pin`.
    pub user_pin: &'a str,
}

impl Env<'_> {
    /// Writes the file, readable by its owner only.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = self.text()?;
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    fn text(&self) -> Result<String> {
        let path =
            |path: &Path| path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()));
        let values = [
            ("MAYFLY_DIR", path(self.dir)?),
            ("MAYFLY_MODULE", path(self.module)?),
            ("MAYFLY_SOCKET", path(self.socket)?),
            ("MAYFLY_TOKEN_LABEL", self.token_label.to_owned()),
            ("MAYFLY_SO_PIN", self.so_pin.to_owned()),
            ("MAYFLY_USER_PIN", self.user_pin.to_owned()),
            ("MAYFLY_ADMIN", path(&self.dir.join(super::up::ADMIN_KEY))?),
        ];
        let mut text = String::new();
        for (name, value) in values {
            text.push_str(&format!("export {name}='{}'\n", value.replace('\'', "'\\''")));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(dir: &str) -> Result<String> {
        let dir = Path::new(dir);
        Env { dir, module: dir, socket: dir, token_label: "mayfly", so_pin: "12345678", user_pin: "1234" }.text()
    }

    #[test]
    fn a_shell_reads_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("env");
        for dir in ["/tmp/a b$c;\"d", "/tmp/it's", "/tmp/plain"] {
            std::fs::write(&path, text(dir).unwrap()).unwrap();
            let script = format!(". '{}' && printf '%s|%s' \"$MAYFLY_DIR\" \"$MAYFLY_USER_PIN\"", path.display());
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{dir}|1234"));
        }
    }
}
