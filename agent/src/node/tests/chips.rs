//! Software TPMs with certificates of a "maker" of their own. What is started here is ended here, by its own handle.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);

/// A maker: the authority that certifies its chips.
pub struct Maker(tempfile::TempDir);

impl Maker {
    pub fn new() -> Maker {
        Maker(tempfile::Builder::new().prefix("mf").tempdir().unwrap())
    }

    /// A chip from the factory, running.
    pub fn chip(&self) -> Swtpm {
        let dir = tempfile::Builder::new().prefix("mf").tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../softhsm-setup/swtpm-create");
        let output = Command::new(script).arg(dir.path()).arg(self.0.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let mut chip = Swtpm { dir, child: None };
        chip.on();
        chip
    }

    /// What an operator has of the maker: its root and issuing certificate in one file.
    pub fn bundle(&self) -> PathBuf {
        let read = |name: &str| std::fs::read(self.0.path().join(name)).unwrap();
        let path = self.0.path().join("bundle.pem");
        std::fs::write(&path, [read("root.pem"), read("issuer.pem")].concat()).unwrap();
        path
    }
}

/// A running swtpm.
pub struct Swtpm {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Swtpm {
    fn on(&mut self) {
        let socket = self.dir.path().join("tpm");
        let control = self.dir.path().join("tpm.ctrl");
        for path in [&socket, &control] {
            let _ = std::fs::remove_file(path);
        }
        let mut command = Command::new("swtpm");
        command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"]);
        command.arg("--tpmstate").arg(format!("dir={}", self.dir.path().join("state").display()));
        command.arg("--server").arg(format!("type=unixio,path={}", socket.display()));
        command.arg("--ctrl").arg(format!("type=unixio,path={}", control.display()));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        self.child = Some(command.spawn().expect("swtpm is installed (apt-get install swtpm)"));
        let started = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(started.elapsed() < PATIENCE, "swtpm does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Another program booted: a register changes.
    pub fn extend(&self, register: u32) {
        let mut command = Command::new("tpm2_pcrextend");
        command.arg(format!("{register}:sha256={}", "11".repeat(32)));
        let output = command.env("TPM2TOOLS_TCTI", self.tcti()).output().expect("tpm2-tools are installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", self.dir.path().join("tpm").display())
    }

    /// The section of an agent's configuration for a vault on it.
    pub fn vault(&self) -> String {
        format!("[vault]\nkind = \"tpm\"\nconfig = \'\'\'\ntcti = \"{}\"\n\'\'\'\n", self.tcti())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
