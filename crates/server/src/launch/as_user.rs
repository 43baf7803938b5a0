//! `afar as-user`: the small role in which root becomes a user, and then that user's supervisor.
//!
//! It is a process of its own, so that the listener never forks and never changes its own ids. What
//! it does, in this order:
//!
//! 1. As root: looks the user up, makes sure of the directory `/run/afar/UID`, takes the lock that
//!    makes a supervisor the only one, binds the socket, which nobody can connect to yet, opens its
//!    own program, and moves to the user's slice where cgroups are delegated.
//! 2. Becomes the user, for good, and checks that: see [`become_user`].
//! 3. As the user: opens the log, and executes `afar supervisor` with a login's environment, which
//!    listens on the socket and holds the lock.
//!
//! A step that fails ends it: nothing is executed (`W-4.16`).

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use afar_sys::Errno;
use afar_sys::cgroup::Delegation;
use afar_sys::exec::exec_in_place;
use afar_sys::exec_strings::env_entry;
use afar_sys::identity::{BecomeError, Identity, become_user, reset_oom_score};
use afar_sys::private_files::try_lock_exclusive;
use afar_sys::socket::{bind_unix_for, remove_stale_socket};
use afar_sys::users::{User, effective_uid, user_by_name};

use super::{LaunchError, open_log, root};
use crate::log::Log;
use crate::paths::{LOCK_NAME, SOCKET_NAME};
use crate::supervisor::login_variables;

/// What the role is to do.
#[derive(Clone, Debug)]
pub struct AsUser {
    /// The user's name.
    pub name: OsString,
    /// The user's id, as whoever has authenticated the user knows it.
    pub uid: u32,
    /// Where the sockets are.
    pub socket_dir: PathBuf,
    /// What is said before the user's own log is open.
    pub log: Log,
}

/// Why there is no supervisor. Nothing was executed.
#[derive(Debug, thiserror::Error)]
pub enum AsUserError {
    /// Whoever runs this is not root.
    #[error("only root can become another user")]
    NotRoot,
    /// The user database has no such user, or another one by this name.
    #[error("the user database has no {name:?} with uid {uid}")]
    UnknownUser {
        /// The name.
        name: OsString,
        /// The uid that it should have.
        uid: u32,
    },
    /// The socket could not be made.
    #[error("{0}")]
    Launch(#[from] LaunchError),
    /// The privileges could not be dropped.
    #[error("cannot become {name:?}: {error}; nothing was executed")]
    Become {
        /// The user.
        name: OsString,
        /// The step that failed.
        error: BecomeError,
    },
    /// The program could not be executed.
    #[error("cannot execute the supervisor: {0}")]
    Exec(Errno),
    /// The system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> AsUserError {
    move |source| AsUserError::Io { action, source }
}

/// Becomes the user's supervisor. Returns only if it has not: because of an error, or because there is
/// one at work already.
///
/// # Errors
/// See [`AsUserError`].
pub fn run(role: &AsUser) -> Result<(), AsUserError> {
    if effective_uid() != 0 {
        return Err(AsUserError::NotRoot);
    }
    let user = user_by_name(&role.name).map_err(io_error("cannot read the user database"))?;
    let user = user
        .filter(|user| user.uid == role.uid)
        .ok_or_else(|| AsUserError::UnknownUser { name: role.name.clone(), uid: role.uid })?;
    let identity = Identity::of(&user).map_err(io_error("cannot read the group database"))?;
    let Some(place) = Place::take(role)? else { return Ok(()) };
    let program = File::open("/proc/self/exe").map_err(io_error("cannot open afar's program"))?;
    enter_slice(&user, role.log);
    reset_oom_score().map_err(io_error("cannot be chosen when memory runs out"))?;
    become_user(&identity)
        .map_err(|error| AsUserError::Become { name: role.name.clone(), error })?;
    use_log_of(&user, role.log)?;
    let argv = [c"afar".to_owned(), c"supervisor".to_owned(), c"--passed".to_owned()];
    let env = environment(&user);
    let passed = [place.socket.as_fd(), place.lock.as_fd()];
    Err(AsUserError::Exec(exec_in_place(program.as_fd(), &argv, &env, &passed)))
}

/// Moves to the user's part of what is delegated to root's listener, if anything is: only root may, and
/// the user's jobs get their cgroups there.
fn enter_slice(user: &User, log: Log) {
    let Some(delegation) = Delegation::find() else { return };
    if let Err(error) = delegation.slice(user.uid, user.gid).and_then(|slice| slice.enter()) {
        log.error(&format!("no cgroup for the jobs of {:?}: {error}", user.name));
    }
}

/// The socket and the lock of a supervisor that is the only one.
struct Place {
    socket: OwnedFd,
    lock: OwnedFd,
}

impl Place {
    /// `None` if there is a supervisor already.
    fn take(role: &AsUser) -> Result<Option<Self>, AsUserError> {
        let directory = root::ensure_user_dir(&role.socket_dir, role.uid)?;
        let lock = try_lock_exclusive(&directory.join(LOCK_NAME))
            .map_err(io_error("cannot take the supervisor's lock"))?;
        let Some(lock) = lock else { return Ok(None) };
        let path = directory.join(SOCKET_NAME);
        // Whoever has left it behind held the lock, and has it no more.
        remove_stale_socket(&path).map_err(io_error("cannot remove the old socket"))?;
        let socket = bind_unix_for(&path, role.uid).map_err(io_error("cannot make the socket"))?;
        Ok(Some(Self { socket, lock }))
    }
}

/// The stderr of root's listener may be a terminal, or root's log: it is not for the user's processes.
fn use_log_of(user: &User, log: Log) -> Result<(), AsUserError> {
    let file = open_log(&root::log_path(user)).or_else(|error| {
        log.info(&format!("the supervisor of {:?} has no log: {error}", user.name));
        OpenOptions::new().write(true).open("/dev/null")
    });
    let file = file.map_err(io_error("cannot open /dev/null"))?;
    rustix::stdio::dup2_stderr(&file)
        .map_err(|error| io_error("cannot change stderr")(error.into()))
}

/// What a login gives, and the time zone of the server.
fn environment(user: &User) -> Vec<CString> {
    let variables = login_variables(user);
    variables.iter().filter_map(|(name, value)| env_entry(name, value).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str, uid: u32) -> AsUser {
        AsUser {
            name: name.into(),
            uid,
            socket_dir: "/nonexistent/afar".into(),
            log: Log::default(),
        }
    }

    #[test]
    fn fault_54_nobody_is_become_but_who_was_authenticated() {
        if effective_uid() != 0 {
            assert!(matches!(run(&role("root", 0)), Err(AsUserError::NotRoot)));
            return;
        }
        for (name, uid) in [("root", 1), ("no-such-user", 7), ("", 0)] {
            let refused = run(&role(name, uid));
            assert!(matches!(refused, Err(AsUserError::UnknownUser { .. })), "{refused:?}");
        }
    }
}
