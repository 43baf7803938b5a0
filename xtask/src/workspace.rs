//! Where the project is, and how its programs are started.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, Result};

/// The checkout that this xtask was built from, and where cargo puts what it builds.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that `CARGO_TARGET_DIR` and `build.target-dir` are respected.
    pub(crate) fn find() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(manifest)
            .stderr(Stdio::inherit())
            .output()
            .map_err(Failure::io("run cargo metadata"))?;
        if !output.status.success() {
            return Err(Failure::Check("cargo metadata failed".to_owned()));
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|error| Failure::Check(format!("cargo metadata is not JSON: {error}")))?;
        let path = |key: &str| {
            metadata[key]
                .as_str()
                .map(PathBuf::from)
                .ok_or_else(|| Failure::Check(format!("cargo metadata does not say its `{key}`")))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    /// The directory of the root Cargo.toml.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// What cargo built for `profile` under `name`, whether or not it exists.
    pub(crate) fn built(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// A cargo command that runs in the root, stdin closed: nothing here ever asks a question.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = cargo();
        command.args(arguments).current_dir(&self.root).stdin(Stdio::null());
        command
    }
}

/// Says what runs, runs it with the terminal's output, and fails if it does.
pub(crate) fn run_step(command: &mut Command) -> Result<()> {
    let shown = shown(command);
    crate::say::note(format_args!("$ {shown}"));
    let status = command.status().map_err(Failure::io(format!("run `{shown}`")))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::Check(format!("`{shown}` failed: {status}")))
    }
}

/// A command as somebody would type it, near enough for a log.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The absolute path of a program: on PATH, or where system programs are that users' PATHs omit.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    std::env::split_paths(&path)
        .chain(system.iter().map(PathBuf::from))
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

/// Whether this runs under a CI system, where nothing may be skipped.
pub(crate) fn in_ci() -> bool {
    std::env::var_os("CI").is_some_and(|value| !value.is_empty() && value != "false")
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Cargo tells its children which cargo it is; by hand it is whatever PATH has.
fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readmes_cargo_run_means_afar() {
        // Of several programs cargo would not know which.
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .output()
            .unwrap();
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let members = metadata["workspace_default_members"].as_array().unwrap();
        let [member] = members.as_slice() else { panic!("{members:?}") };
        assert!(member.as_str().unwrap().contains("crates/cli"), "{member}");
    }
}
