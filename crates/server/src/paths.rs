//! Where a user's afar keeps its files (XDG Base Directory Specification).

use std::env;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use afar_sys::private_files::{PrivateDirError, ensure_private_dir};
use afar_sys::users::effective_uid;

/// The supervisor's socket within [`runtime_dir`].
pub const SOCKET_NAME: &str = "supervisor.sock";

/// The lock that makes a supervisor the only one, within [`runtime_dir`].
pub const LOCK_NAME: &str = "supervisor.lock";

/// The directory of sockets and locks: `afar` in `$XDG_RUNTIME_DIR` unless that is another user's, in `/run/user/UID` where that
/// variable is missing but the directory is there, else `/tmp/afar-UID`. It is made if it is
/// missing, and refused unless it is this user's alone.
///
/// # Errors
/// It can't be made, or others could have put something into it.
pub fn runtime_dir() -> Result<PathBuf, PrivateDirError> {
    let path = match absolute("XDG_RUNTIME_DIR").filter(|base| is_of(base, effective_uid())) {
        Some(base) => base.join("afar"),
        None => default_runtime_dir(effective_uid(), Path::new("/run/user")),
    };
    ensure_private_dir(&path)?;
    Ok(path)
}

/// Whether [`runtime_dir`] is where it is for everybody who has not moved it.
#[must_use]
pub fn runtime_dir_is_default() -> bool {
    let login = PathBuf::from(format!("/run/user/{}", effective_uid()));
    absolute("XDG_RUNTIME_DIR").is_none_or(|base| base == login)
}

/// Whether a directory is this user's, or is not there yet. Under su the variable is often still that
/// of the user before, and what we left there would be in that user's way.
fn is_of(directory: &Path, uid: u32) -> bool {
    directory.metadata().map_or(true, |found| found.uid() == uid)
}

fn default_runtime_dir(uid: u32, run_user: &Path) -> PathBuf {
    let login = run_user.join(uid.to_string());
    if login.is_dir() { login.join("afar") } else { PathBuf::from(format!("/tmp/afar-{uid}")) }
}

/// The directory of what outlives a reboot: `afar` in `$XDG_STATE_HOME` or `~/.local/state`. Not
/// made here.
#[must_use]
pub fn state_dir(home: &Path) -> PathBuf {
    absolute("XDG_STATE_HOME").unwrap_or_else(|| home.join(".local/state")).join("afar")
}

/// The directory of what a user's supervisor on this machine knows of its jobs. Not made here.
///
/// A home may be on a server and be that of many machines; each has a directory of its own in it, since
/// the processes of another one are nothing that this one could know of.
#[must_use]
pub fn jobs_dir(home: &Path) -> PathBuf {
    state_dir(home).join("jobs").join(machine_name(Path::new("/etc/machine-id")))
}

/// What tells this machine from others: from its machine-id, which is not to be shown itself
/// (machine-id(5)), or its name where it has none.
fn machine_name(id_file: &Path) -> String {
    let id = std::fs::read(id_file).unwrap_or_default();
    let id = id.trim_ascii();
    let host = rustix::system::uname();
    let (context, told) = if id.is_empty() {
        ("afar 2026 jobs directory by host name", host.nodename().to_bytes())
    } else {
        ("afar 2026 jobs directory by machine-id", id)
    };
    let hash = blake3::Hash::from_bytes(blake3::derive_key(context, told));
    hash.to_hex()[..16].to_owned()
}

/// The value of a variable if it is an absolute path; the specification has all others ignored.
fn absolute(name: &str) -> Option<PathBuf> {
    env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_user_is_left_alone() {
        assert!(is_of(Path::new("/proc"), 0));
        assert!(!is_of(Path::new("/proc"), 1000));
        assert!(is_of(Path::new("/nonexistent"), 1000));
    }

    #[test]
    fn each_machine_has_a_directory_for_its_jobs() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("machine-id");
        let by_host = machine_name(&file);
        assert_eq!(by_host.len(), 16);
        std::fs::write(&file, "uninitialized\n").unwrap();
        let by_id = machine_name(&file);
        assert_ne!(by_id, by_host);
        std::fs::write(&file, "uninitialized").unwrap();
        assert_eq!(machine_name(&file), by_id);
        std::fs::write(&file, "\n").unwrap();
        assert_eq!(machine_name(&file), by_host);
    }

    #[test]
    fn without_a_login_directory_the_sockets_are_in_tmp() {
        let missing = Path::new("/nonexistent-run-user");
        assert_eq!(default_runtime_dir(7, missing), Path::new("/tmp/afar-7"));
    }
}
