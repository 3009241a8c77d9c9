//! Is a file safe to run? Walks its path the way the kernel does, component by component, through descriptors.
//!
//! Everything on the way (folders, symbolic links, the file) must belong to root or to the user who runs us, and
//! nobody else may write to it: else that somebody decides what we run. What was checked is what is used: the file's
//! descriptor is handed on, its name is not looked up again.

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, Stat};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// Symbolic links followed on one path, as the kernel's own limit (path_resolution(7)).
const LINKS_MAX: usize = 40;
/// Components of one path, links included.
const COMPONENTS_MAX: usize = 512;
/// Largest plugin that is hashed.
const PLUGIN_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Longest name of a memfd (memfd_create(2)).
const MEMFD_NAME_BYTES_MAX: usize = 249;

/// How strictly paths are judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathRule {
    /// Owner root or us, writable by nobody else, on every component.
    #[default]
    Strict,
    /// For a build tree on a developer's machine: what the group may write to, and sticky folders of root (`/tmp`), are
    /// let through. Who shares that group can then replace the plugin.
    DangerDevelopment,
}

/// Why a file must not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It, or something on the way to it, cannot be opened.
    #[error("{path}: {cause}")]
    Unreadable {
        /// The component.
        path: PathBuf,
        /// The cause; in the text, and so no `source`, which would be printed once more.
        cause: io::Error,
    },
    /// Somebody else owns it.
    #[error("{path} belongs to user {owner}; it must belong to root or to the user who runs this program")]
    Owner {
        /// The component.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Somebody else may write to it.
    #[error(
        "{path} can be written to by others (mode {mode:04o}); keep programs and plugins where only root or you can write"
    )]
    Writable {
        /// The component.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not a file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The component.
        path: PathBuf,
    },
    /// Too many symbolic links or components.
    #[error("{path}: too many symbolic links or folders")]
    TooDeep {
        /// The path.
        path: PathBuf,
    },
    /// Its contents are not the pinned ones.
    #[error("{path} has SHA-256 {found}, pinned is {pinned}; if the file was updated on purpose, change the pin")]
    Pin {
        /// The file.
        path: PathBuf,
        /// What was found, hexadecimal.
        found: String,
        /// What was expected, hexadecimal.
        pinned: String,
    },
}

/// Checks every component of `path` and opens the file at its end for reading.
///
/// # Errors
/// [`PathError`] naming the component that is not safe.
pub fn check_path(path: &Path, rule: PathRule) -> Result<File, PathError> {
    let path = &std::path::absolute(path).map_err(|cause| PathError::Unreadable { path: path.to_owned(), cause })?;
    let mut walk = Walk::root(rule)?;
    let mut todo = components(path);
    let mut steps = 0;
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        steps += 1;
        if steps > COMPONENTS_MAX {
            return Err(PathError::TooDeep { path: path.to_owned() });
        }
        let (fd, stat) = walk.look(&name)?;
        judge(&walk.at.join(&name), &stat, rule)?;
        if is(&stat, libc::S_IFLNK) {
            links += 1;
            if links > LINKS_MAX {
                return Err(PathError::TooDeep { path: path.to_owned() });
            }
            let target = walk.link_target(&name)?;
            if target.is_absolute() {
                walk = Walk::root(rule)?;
            }
            for part in components(&target).into_iter().rev() {
                todo.push_front(part);
            }
        } else {
            walk.enter(fd, &name, stat);
        }
    }
    walk.open_file()
}

/// The SHA-256 of a whole file, read through its descriptor; leaves the position at the start.
///
/// # Errors
/// The read's error; `InvalidData` beyond 512 MiB.
pub fn sha256_of(file: &mut File) -> io::Result<[u8; 32]> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 64 * 1024];
    let mut total = 0u64;
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        total += count as u64;
        if total > PLUGIN_BYTES_MAX {
            return Err(too_large());
        }
        hasher.update(&buffer[..count]);
    }
    file.seek(SeekFrom::Start(0))?;
    Ok(hasher.finalize().into())
}

/// A copy of a pinned file that nobody can change any more: what was hashed is what will be loaded, whatever becomes of
/// the file meanwhile.
///
/// # Errors
/// [`PathError::Pin`], [`PathError::Unreadable`].
pub(crate) fn pinned_copy(path: &Path, file: File, pin: &[u8; 32]) -> Result<File, PathError> {
    let unreadable = |cause| PathError::Unreadable { path: path.to_owned(), cause };
    let mut copy = sealed_copy(path, file).map_err(unreadable)?;
    let found = sha256_of(&mut copy).map_err(unreadable)?;
    if found == *pin {
        return Ok(copy);
    }
    Err(PathError::Pin { path: path.to_owned(), found: hex::encode(found), pinned: hex::encode(pin) })
}

fn sealed_copy(path: &Path, file: File) -> io::Result<File> {
    // the name shows in /proc/PID/maps
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let name = &name[..name.len().min(MEMFD_NAME_BYTES_MAX)];
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        made => made,
    };
    let mut copy = File::from(copy?);
    if io::copy(&mut file.take(PLUGIN_BYTES_MAX + 1), &mut copy)? > PLUGIN_BYTES_MAX {
        return Err(too_large());
    }
    rustix::fs::fcntl_add_seals(&copy, SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(copy)
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "larger than 512 MiB")
}

/// The folder (in the end: the file) that the walk has reached.
struct Walk {
    at: PathBuf,
    fd: OwnedFd,
    stat: Option<Stat>,
}

impl Walk {
    fn root(rule: PathRule) -> Result<Walk, PathError> {
        let at = PathBuf::from("/");
        let fd = rustix::fs::open(&at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| unreadable(&at, error))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| unreadable(&at, error))?;
        judge(&at, &stat, rule)?;
        Ok(Walk { at, fd, stat: None })
    }

    fn look(&self, name: &OsStr) -> Result<(OwnedFd, Stat), PathError> {
        let path = self.at.join(name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, name, flags, Mode::empty()).map_err(|error| unreadable(&path, error))?;
        let stat = rustix::fs::fstat(&fd).map_err(|error| unreadable(&path, error))?;
        Ok((fd, stat))
    }

    fn link_target(&self, name: &OsStr) -> Result<PathBuf, PathError> {
        let target: CString = rustix::fs::readlinkat(&self.fd, name, Vec::new())
            .map_err(|error| unreadable(&self.at.join(name), error))?;
        Ok(PathBuf::from(OsString::from_vec(target.into_bytes())))
    }

    fn enter(&mut self, fd: OwnedFd, name: &OsStr, stat: Stat) {
        self.fd = fd;
        self.stat = Some(stat);
        if name == ".." {
            self.at.pop();
        } else {
            self.at.push(name);
        }
    }

    /// Opens what the walk has reached for reading, through its descriptor.
    fn open_file(self) -> Result<File, PathError> {
        if !self.stat.is_some_and(|stat| is(&stat, libc::S_IFREG)) {
            return Err(PathError::NotAFile { path: self.at });
        }
        File::open(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
            .map_err(|cause| PathError::Unreadable { path: self.at, cause })
    }
}

/// The components of a path: names and `..`; the start of an absolute path is the walk's.
fn components(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn judge(path: &Path, stat: &Stat, rule: PathRule) -> Result<(), PathError> {
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != 0 && stat.st_uid != me {
        return Err(PathError::Owner { path: path.to_owned(), owner: stat.st_uid });
    }
    if is(stat, libc::S_IFLNK) {
        // a link's own mode means nothing; its folder was judged before it
        return Ok(());
    }
    let mode = stat.st_mode & 0o7777;
    let forbidden = match rule {
        PathRule::Strict => 0o022,
        PathRule::DangerDevelopment if is(stat, libc::S_IFDIR) && mode & 0o1000 != 0 && stat.st_uid == 0 => 0,
        PathRule::DangerDevelopment => 0o002,
    };
    if mode & forbidden != 0 {
        return Err(PathError::Writable { path: path.to_owned(), mode });
    }
    Ok(())
}

fn is(stat: &Stat, kind: libc::mode_t) -> bool {
    stat.st_mode & libc::S_IFMT == kind
}

fn unreadable(path: &Path, error: rustix::io::Errno) -> PathError {
    PathError::Unreadable { path: path.to_owned(), cause: error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    const DEVELOPMENT: PathRule = PathRule::DangerDevelopment;

    struct Tree(tempfile::TempDir);

    impl Tree {
        /// `a/b/plugin.so`, all closed to others.
        fn new() -> Tree {
            let tree = Tree(tempfile::tempdir().unwrap());
            std::fs::create_dir_all(tree.at("a/b")).unwrap();
            std::fs::write(tree.at("a/b/plugin.so"), "plugin").unwrap();
            for name in ["a", "a/b"] {
                tree.mode(name, 0o755);
            }
            tree.mode("a/b/plugin.so", 0o644);
            tree
        }

        fn at(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn mode(&self, name: &str, mode: u32) {
            std::fs::set_permissions(self.at(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }

        /// Empty when the file may be used.
        fn check(&self, name: &str) -> String {
            check_path(&self.at(name), DEVELOPMENT).err().map(|error| error.to_string()).unwrap_or_default()
        }
    }

    #[test]
    fn a_closed_path_gives_the_file() {
        let tree = Tree::new();
        let mut content = String::new();
        check_path(&tree.at("a/b/plugin.so"), DEVELOPMENT).unwrap().read_to_string(&mut content).unwrap();
        assert_eq!(content, "plugin");
        assert_eq!(tree.check("a/../a/./b/plugin.so"), "");
    }

    #[test]
    fn every_component_counts() {
        for (name, mode) in [("a", 0o757), ("a/b", 0o777), ("a/b/plugin.so", 0o666)] {
            let tree = Tree::new();
            tree.mode(name, mode);
            let text = tree.check("a/b/plugin.so");
            assert!(text.starts_with(&format!("{} can be written to by others", tree.at(name).display())), "{text}");
        }
    }

    #[test]
    fn strict_is_stricter() {
        for (name, mode) in [("a", 0o775), ("a/b", 0o1777)] {
            let tree = Tree::new();
            tree.mode(name, mode);
            let component = tree.at(name);
            let stat = rustix::fs::stat(&component).unwrap();
            assert!(judge(&component, &stat, PathRule::Strict).is_err(), "{name} {mode:o}");
            let sticky_of_root = mode & 0o1000 != 0 && stat.st_uid == 0;
            let allowed = mode & 0o002 == 0 || sticky_of_root;
            assert_eq!(judge(&component, &stat, DEVELOPMENT).is_ok(), allowed, "{name} {mode:o}");
        }
        let sticky = Tree::new();
        sticky.mode("a/b/plugin.so", 0o1666);
        assert!(!sticky.check("a/b/plugin.so").is_empty(), "the sticky bit of a file means nothing");
    }

    #[test]
    fn symbolic_links_are_walked_component_by_component() {
        let tree = Tree::new();
        symlink("b/plugin.so", tree.at("a/relative")).unwrap();
        symlink(tree.at("a/relative"), tree.at("absolute")).unwrap();
        assert_eq!(tree.check("absolute"), "");
        tree.mode("a/b", 0o777);
        assert!(tree.check("absolute").contains("a/b can be written to by others"));
        symlink("loop", tree.at("loop")).unwrap();
        assert!(tree.check("loop").contains("too many symbolic links"));
        symlink("nowhere", tree.at("dangling")).unwrap();
        assert!(tree.check("dangling").contains("No such file"));
    }

    #[test]
    fn only_files() {
        let tree = Tree::new();
        assert!(tree.check("a/b").contains("is not a regular file"));
        assert!(tree.check("a/none").contains("No such file"));
        assert!(tree.check("a/b/plugin.so/x").contains("Not a directory"));
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.at("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(tree.check("fifo").contains("is not a regular file"), "and does not wait for a writer");
    }

    #[test]
    fn other_owners() {
        let tree = Tree::new();
        if !rustix::process::geteuid().is_root() {
            return; // only root can give files away; the container of our tests is root
        }
        chown(tree.at("a/b"), Some(65534), None).unwrap();
        assert!(tree.check("a/b/plugin.so").contains("a/b belongs to user 65534"));
        chown(tree.at("a/b"), Some(0), None).unwrap();
        symlink("b/plugin.so", tree.at("a/link")).unwrap();
        std::os::unix::fs::lchown(tree.at("a/link"), Some(65534), None).unwrap();
        assert!(tree.check("a/link").contains("a/link belongs to user 65534"));
    }

    #[test]
    fn pins() {
        let tree = Tree::new();
        let path = tree.at("a/b/plugin.so");
        let open = || check_path(&path, DEVELOPMENT).unwrap();
        let hash = sha256_of(&mut open()).unwrap();
        let text = pinned_copy(&path, open(), &[0; 32]).unwrap_err().to_string();
        assert!(text.contains(&hex::encode(hash)) && text.contains(&"00".repeat(32)), "{text}");

        let mut copy = pinned_copy(&path, open(), &hash).unwrap();
        std::fs::write(&path, "other!").unwrap();
        assert_eq!(sha256_of(&mut copy).unwrap(), hash, "what was hashed stays");
        assert!(copy.write_all(b"other!").is_err() && copy.set_len(0).is_err());
        assert!(pinned_copy(&path, open(), &hash).is_err());
    }
}
