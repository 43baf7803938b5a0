//! The supervisors that run: to tell them that their program was replaced, and to hear what comes of it.

use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

pub use afar_net::local::UpgradeNews;
use afar_sys::socket::peer_credentials;
use afar_sys::users::effective_uid;

use super::{LaunchError, Launcher};
use crate::limits::{
    ARCHIVE_DEADLINE, START_DEADLINE, UPGRADE_CHECK_PATIENCE, UPGRADE_FREEZE_PATIENCE,
    UPGRADE_GOODBYE_PATIENCE,
};

/// How long is waited for what comes of an upgrade: as long as all of its steps may take.
const NEWS_PATIENCE: Duration = Duration::from_secs(
    UPGRADE_GOODBYE_PATIENCE.as_secs()
        + 2 * UPGRADE_FREEZE_PATIENCE.as_secs()
        + ARCHIVE_DEADLINE.as_secs()
        + UPGRADE_CHECK_PATIENCE.as_secs()
        + START_DEADLINE.as_secs(),
);

/// A supervisor that was told.
#[derive(Debug)]
pub struct Told {
    /// Whose it is.
    pub uid: u32,
    /// Its process, which stays.
    pub pid: i32,
    /// What has come of it; an error if it does not say.
    pub news: io::Result<UpgradeNews>,
}

/// Tells this user's supervisor to go on as the program that lies now where its own was found, and waits
/// for what comes of it; as root every user's, one after the other. Each is given to `told` when it has
/// answered.
///
/// # Errors
/// One can't be reached. Those before it were told.
pub fn tell_to_upgrade(socket_dir: &Path, mut told: impl FnMut(Told)) -> Result<(), LaunchError> {
    let launcher = Launcher { socket_dir: socket_dir.to_owned(), ..Launcher::new("".into()) };
    let mut uids = vec![effective_uid()];
    if effective_uid() == 0 {
        uids.extend(users_with_sockets(socket_dir)?);
    }
    uids.dedup();
    for uid in uids {
        tell(&launcher, uid)?.into_iter().for_each(&mut told);
    }
    Ok(())
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
    Ok(Some(Told { uid, pid, news: ask(stream) }))
}

/// Asks, and waits for the answer (`W-4.17`).
fn ask(mut stream: UnixStream) -> io::Result<UpgradeNews> {
    let deadline = Instant::now() + NEWS_PATIENCE;
    stream.set_write_timeout(Some(NEWS_PATIENCE))?;
    stream.write_all(&UpgradeNews::wanted())?;
    let (mut received, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if let Some(news) = UpgradeNews::read(&received).map_err(io::Error::other)? {
            return Ok(news);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => received.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            // The time is over, or a signal came.
            Err(error) if [WouldBlock, Interrupted].contains(&error.kind()) => {}
            Err(error) => return Err(error),
        }
    }
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
