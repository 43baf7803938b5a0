//! The supervisors that run: to tell them that their program was replaced.

use std::io;
use std::path::Path;

use afar_sys::socket::peer_credentials;
use afar_sys::users::effective_uid;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{LaunchError, Launcher};

/// A supervisor that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Whose it is.
    pub uid: u32,
    /// Its process, which stays.
    pub pid: i32,
}

/// Tells this user's supervisor to go on as the program that lies now where its own was found; as root
/// every user's. Whether it can is in its log.
///
/// # Errors
/// One can't be reached, or not be told. Those before it were.
pub fn tell_to_upgrade(socket_dir: &Path) -> Result<Vec<Told>, LaunchError> {
    let launcher = Launcher { socket_dir: socket_dir.to_owned(), ..Launcher::new("".into()) };
    let mut uids = vec![effective_uid()];
    if effective_uid() == 0 {
        uids.extend(users_with_sockets(socket_dir)?);
    }
    uids.dedup();
    let told = uids.into_iter().map(|uid| tell(&launcher, uid));
    told.filter_map(Result::transpose).collect()
}

/// Those for whom root has started one; directories are named by uids.
fn users_with_sockets(socket_dir: &Path) -> Result<Vec<u32>, LaunchError> {
    let listed = match std::fs::read_dir(socket_dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(LaunchError::Io { action: "cannot list the users", source }),
    };
    let names = listed.flatten().map(|entry| entry.file_name());
    let mut uids: Vec<u32> =
        names.filter_map(|name| name.to_str()?.parse().ok()).filter(|uid| *uid != 0).collect();
    uids.sort_unstable();
    Ok(uids)
}

fn tell(launcher: &Launcher, uid: u32) -> Result<Option<Told>, LaunchError> {
    let failed = |source| LaunchError::Io { action: "cannot tell a supervisor", source };
    let Some(stream) = launcher.connect_running(uid)? else { return Ok(None) };
    // It has listened at a socket that only it and root can have made, and is there as long as we are
    // connected to it.
    let peer = peer_credentials(&stream).map_err(failed)?;
    let pid = peer.pid.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let process = Pid::from_raw(pid).ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let pidfd = pidfd_open(process, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
    pidfd_send_signal(&pidfd, Signal::HUP).map_err(|error| failed(error.into()))?;
    Ok(Some(Told { uid, pid }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_those_whose_names_are_numbers() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["1001", "1000", "0", "x", "-1", "99999999999"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        assert_eq!(users_with_sockets(directory.path()).unwrap(), [1000, 1001]);
        assert!(users_with_sockets(Path::new("/nonexistent")).unwrap().is_empty());
    }
}
