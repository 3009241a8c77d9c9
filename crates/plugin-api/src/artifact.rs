//! Where our own programs and plugins are found.

use std::path::{Path, PathBuf};

/// Where packages install what is not beside the program.
const INSTALLED_DIR: &str = "/usr/lib/mayfly";

/// Something of ours that should be there is not.
#[derive(Debug, thiserror::Error)]
#[error("{name} was found neither in {} nor in {INSTALLED_DIR}; build the whole workspace or install the package", .beside.display())]
pub struct ArtifactMissing {
    /// File name that was looked for.
    pub name: String,
    /// Folder of the running program.
    pub beside: PathBuf,
}

/// Where [`find_artifact`] looks, in this order.
pub fn artifact_folders() -> Vec<PathBuf> {
    let beside = beside();
    let mut folders = vec![beside.clone()];
    if beside.file_name().is_some_and(|folder| folder == "deps" || folder == "examples") {
        // cargo's layout: libraries are beside a test, programs one level up
        folders.extend(beside.parent().map(Path::to_owned));
    }
    folders.push(PathBuf::from(INSTALLED_DIR));
    folders
}

fn beside() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    program.parent().unwrap_or(Path::new("/")).to_owned()
}

/// Finds a program or plugin of ours (`libmayfly_vault_file.so`) by its file name: beside the running program, above
/// it when that is a test in cargo's `deps`, then in `/usr/lib/mayfly`.
///
/// # Errors
/// [`ArtifactMissing`], also for a name that is not a plain file name.
pub fn find_artifact(name: &str) -> Result<PathBuf, ArtifactMissing> {
    let missing = || ArtifactMissing { name: name.to_owned(), beside: beside() };
    if name.is_empty() || name.contains('/') {
        return Err(missing());
    }
    artifact_folders().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::find_artifact;

    #[test]
    fn a_missing_or_odd_name_is_a_sentence() {
        for name in ["no-such-artifact", "", "../mayfly", "/etc/passwd"] {
            let text = find_artifact(name).unwrap_err().to_string();
            assert!(text.contains("/usr/lib/mayfly"), "{text}");
        }
    }

    #[test]
    fn the_running_program_finds_itself() {
        let me = std::env::current_exe().unwrap();
        let name = me.file_name().unwrap().to_str().unwrap();
        assert_eq!(find_artifact(name).unwrap(), me);
    }
}
