//! The supervisors that root starts for other users, and the directory of their sockets.
//!
//! `/run/afar/UID/supervisor.sock`: both directories are root's, others may only walk through, and the
//! socket is the user's alone. So nobody but root can put anything where the listener connects, and
//! no user can be there before the supervisor is.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use afar_sys::child::Child;
use afar_sys::exec_strings::env_entry;
use afar_sys::private_files::{ensure_passable_dir, is_owned_dir};
use afar_sys::users::User;

use super::{LaunchError, Launcher, connect_to, strings};
use crate::paths::SOCKET_NAME;

/// Where the sockets are of the supervisors that root starts for other users.
pub const SOCKET_DIR: &str = "/run/afar";

const ROOT: u32 = 0;

/// The directory of one user's socket and lock.
fn user_dir(socket_dir: &Path, uid: u32) -> PathBuf {
    socket_dir.join(uid.to_string())
}

/// Connects to the supervisor that root has started for `uid`, if it runs (`W-4.16`).
pub(super) fn connect_running(
    socket_dir: &Path,
    uid: u32,
) -> Result<Option<UnixStream>, LaunchError> {
    let directory = user_dir(socket_dir, uid);
    // Nobody but root could have put the socket there, or anything that leads elsewhere.
    if !is_owned_dir(socket_dir, ROOT)? || !is_owned_dir(&directory, ROOT)? {
        return Ok(None);
    }
    connect_to(&directory.join(SOCKET_NAME), uid)
}

/// Makes sure of the directories, as root, and returns that of the user.
pub(super) fn ensure_user_dir(socket_dir: &Path, uid: u32) -> Result<PathBuf, LaunchError> {
    ensure_passable_dir(socket_dir)?;
    let directory = user_dir(socket_dir, uid);
    ensure_passable_dir(&directory)?;
    Ok(directory)
}

/// Starts the role that becomes the user's supervisor. What it has to say before it has become the
/// user goes to our stderr.
pub(super) fn start(launcher: &Launcher, user: &User) -> Result<Child, LaunchError> {
    let uid = user.uid.to_string();
    let argv = strings::<&[u8]>(&[
        b"afar",
        b"as-user",
        b"--uid",
        uid.as_bytes(),
        b"--socket-dir",
        launcher.socket_dir.as_os_str().as_bytes(),
        b"--",
        user.name.as_bytes(),
    ])?;
    // Nothing of root's environment is the user's business but the time zone.
    let zone: Option<CString> =
        std::env::var_os("TZ").and_then(|zone| env_entry(b"TZ", zone.as_bytes()).ok());
    let env: Vec<CString> = zone.into_iter().collect();
    let stderr = rustix::stdio::stderr();
    launcher.start(&argv, &env, stderr)
}

/// The log of a supervisor that root has started, which is the user's.
pub(super) fn log_path(user: &User) -> PathBuf {
    user.home.join(".local/state/afar/supervisor.log")
}
