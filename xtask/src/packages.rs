//! The Debian packages that building and testing need. Each is looked for by what it brings, so that other systems pass as well.

use crate::run;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, Stdio};

/// A package and how one sees that it is there.
struct Package {
    name: &'static str,
    sign: Sign,
}

enum Sign {
    /// A program on the path.
    Program(&'static str),
    /// A file below one of the library folders.
    Library(&'static str),
    /// Modules that Python can import.
    PythonModules(&'static str),
}

const BUILD: &[Package] = &[
    Package { name: "gcc", sign: Sign::Program("cc") },
    Package { name: "libc6-dev", sign: Sign::Library("libpthread.a") },
    Package { name: "cmake", sign: Sign::Program("cmake") },
    // the vault tpm
    Package { name: "pkg-config", sign: Sign::Program("pkg-config") },
    Package { name: "libtss2-dev", sign: Sign::Library("libtss2-esys.so") },
];

const USE: &[Package] = &[
    Package { name: "openssl", sign: Sign::Program("openssl") },
    Package { name: "opensc", sign: Sign::Program("pkcs11-tool") },
    Package { name: "libengine-pkcs11-openssl", sign: Sign::Library("engines-3/pkcs11.so") },
    // what the vaults pkcs11 and tpm stand on
    Package { name: "softhsm2", sign: Sign::Program("softhsm2-util") },
    Package { name: "swtpm", sign: Sign::Program("swtpm") },
    Package { name: "swtpm-tools", sign: Sign::Program("swtpm_setup") },
];

const TEST: &[Package] = &[
    Package { name: "python3", sign: Sign::Program("/usr/bin/python3") },
    Package { name: "python3-venv", sign: Sign::PythonModules("venv, ensurepip") },
    // the vault in C, plugins/example-c
    Package { name: "make", sign: Sign::Program("make") },
    Package { name: "libssl-dev", sign: Sign::Library("libcrypto.so") },
    // the attacks on the vault tpm
    Package { name: "tpm2-tools", sign: Sign::Program("tpm2") },
];

/// What is to be done, and so which packages it takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// Building, a network with vaults of every kind, and using the module with others' tools.
    Quickstart,
    /// The same and the tests.
    Tests,
}

/// Sees to it that the packages are there, and says what it did.
pub fn ensure(purpose: For) -> Result<()> {
    let tests = if purpose == For::Tests { TEST } else { &[] };
    let needed = || BUILD.iter().chain(USE).chain(tests);
    let missing: Vec<&str> = needed().filter(|p| !p.is_present()).map(|p| p.name).collect();
    if missing.is_empty() {
        println!("packages: all {} are here", needed().count());
        return Ok(());
    }
    install(&missing)?;
    match needed().find(|p| !p.is_present()) {
        None => Ok(()),
        Some(p) => bail!("package {} was installed, but {} is still not found", p.name, p.sign.text()),
    }
}

fn install(missing: &[&str]) -> Result<()> {
    let by_hand =
        format!("sudo apt-get update && sudo apt-get install -y --no-install-recommends {}", missing.join(" "));
    if !on_path("apt-get") {
        bail!("these Debian packages are missing: {}; install what your system calls them", missing.join(", "));
    }
    if !is_root()? {
        bail!(
            "these Debian packages are missing: {}; run this command, then try again:\n\n    {by_hand}\n",
            missing.join(", ")
        );
    }
    let apt = |arguments: &[&str]| {
        run::show(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "-qq"])?;
    let mut arguments = vec!["install", "-y", "-qq", "--no-install-recommends"];
    arguments.extend(missing);
    apt(&arguments)
}

impl Package {
    fn is_present(&self) -> bool {
        match self.sign {
            Sign::Program(name) => on_path(name),
            Sign::Library(file) => library_folders().any(|folder| Path::new(&folder).join(file).exists()),
            Sign::PythonModules(modules) => {
                let mut python = Command::new("/usr/bin/python3");
                python.args(["-c", &format!("import {modules}")]).stdout(Stdio::null()).stderr(Stdio::null());
                python.status().is_ok_and(|status| status.success())
            }
        }
    }
}

impl Sign {
    fn text(&self) -> &'static str {
        match self {
            Sign::Program(text) | Sign::Library(text) | Sign::PythonModules(text) => text,
        }
    }
}

fn library_folders() -> impl Iterator<Item = String> {
    let machine = format!("{}-linux-gnu", std::env::consts::ARCH);
    [format!("/usr/lib/{machine}"), "/usr/lib64".into(), "/usr/lib".into()].into_iter()
}

/// Whether a program can be found; an absolute path is taken as it is.
pub fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

fn is_root() -> Result<bool> {
    let id = run::capture(Command::new("id").arg("-u"), std::time::Duration::from_secs(10))?.done()?;
    Ok(id.text().trim() == "0")
}
