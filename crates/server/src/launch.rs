//! Reaches a user's supervisor, and starts it where there is none.
//!
//! A user's own supervisor has its socket in a directory of that user's. One that root starts for
//! another user has it in a directory of root's, so that no user can put anything there; see
//! [`root`].

pub mod as_user;
mod root;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use afar_sys::child::{Child, ExitStatus, Session};
use afar_sys::exec_strings::exec_strings;
use afar_sys::private_files::{PrivateDirError, ensure_private_dir};
use afar_sys::socket::{connect_unix_at_once, peer_credentials};
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn};
use afar_sys::users::{User, current_user, effective_uid};

use crate::limits::LOG_BYTES_MAX;
use crate::paths::{SOCKET_NAME, runtime_dir, runtime_dir_is_default, state_dir};

pub use root::SOCKET_DIR;

/// How often a supervisor is started before giving up: one that ends for idleness just as we come
/// takes a second try, and two such accidents in a row do not happen.
const ATTEMPTS: u32 = 3;

/// How long another supervisor, which has taken the lock, may need until it listens.
const WINNER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long one that does not accept, because it is stopped or very busy, is waited for.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// How often is looked whether it does.
const WINNER_POLL: Duration = Duration::from_millis(2);

/// The variables by which a supervisor that was started from within a job would seem to be part of
/// that job.
pub(crate) const JOB_VARIABLES: [&str; 2] = ["AFAR_JOB_ID", "AFAR_JOB_MARK"];

/// Why no supervisor could be reached.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// Its directory can't be used.
    #[error("{0}")]
    Directory(#[from] PrivateDirError),
    /// Another user listens at its socket.
    #[error("the supervisor's socket {path:?} is another user's (uid {uid})")]
    OtherUser {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
    },
    /// Only root can start one for another user.
    #[error("only root can start a supervisor for {name:?}")]
    NotRoot {
        /// The other user.
        name: PathBuf,
    },
    /// It does not accept connections, and as many as may wait for that already do.
    #[error("the supervisor does not accept connections")]
    Busy,
    /// It could not be started.
    #[error("the supervisor could not be started: {0}")]
    Spawn(#[from] SpawnError),
    /// It was started and ended again before it listened.
    #[error(
        "the supervisor ended as soon as it was started; see {log:?} if nothing above says why"
    )]
    Ended {
        /// Where it says why.
        log: PathBuf,
    },
    /// The system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn io_error(action: &'static str) -> impl Fn(io::Error) -> LaunchError {
    move |source| LaunchError::Io { action, source }
}

/// A connection to a supervisor, whose uid was checked.
#[derive(Debug)]
pub struct Launched {
    /// The connection.
    pub stream: UnixStream,
    /// The supervisor's process if it was started by this call: whoever lives on should reap it.
    pub started: Option<Child>,
}

/// Reaches supervisors: the user's own, and for root those of all users.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// Afar's own program.
    pub executable: PathBuf,
    /// Where the sockets of supervisors are that root starts for other users: [`SOCKET_DIR`].
    pub socket_dir: PathBuf,
    /// The soft limit of open descriptors that a supervisor starts with, or ours: a listener that has
    /// raised its own gives the one that it was started with.
    pub open_files_soft: Option<u64>,
}

impl Launcher {
    /// With the usual directory, and limits that are ours.
    #[must_use]
    pub fn new(executable: PathBuf) -> Self {
        Self { executable, socket_dir: SOCKET_DIR.into(), open_files_soft: None }
    }

    /// Connects to the user's supervisor, if it is running. Never waits.
    ///
    /// # Errors
    /// Its directory is not usable, or something else than a missing supervisor is in the way.
    pub fn connect_running(&self, uid: u32) -> Result<Option<UnixStream>, LaunchError> {
        if uid == effective_uid() {
            connect_to(&runtime_dir()?.join(SOCKET_NAME), uid)
        } else {
            root::connect_running(&self.socket_dir, uid)
        }
    }

    /// Connects to the user's supervisor; starts it if it isn't running. Blocks for some milliseconds
    /// in that case.
    ///
    /// # Errors
    /// See [`LaunchError`].
    pub fn connect(&self, user: &User) -> Result<Launched, LaunchError> {
        let running = || self.connect_running(user.uid);
        if user.uid == effective_uid() {
            reach(running, || self.start_own(), log_path)
        } else if effective_uid() == 0 {
            reach(running, || root::start(self, user), || root::log_path(user))
        } else {
            Err(LaunchError::NotRoot { name: PathBuf::from(&user.name) })
        }
    }

    fn start_own(&self) -> Result<Child, LaunchError> {
        let log = open_log(&log_path()).map_err(io_error("cannot open the supervisor's log"))?;
        let env: Vec<CString> = std::env::vars_os()
            .filter(|(name, _)| !JOB_VARIABLES.iter().any(|job| name == job))
            .filter_map(|(name, value)| {
                let mut entry = name.into_vec();
                entry.push(b'=');
                entry.extend(value.into_vec());
                CString::new(entry).ok()
            })
            .collect();
        let argv = [c"afar".to_owned(), c"supervisor".to_owned()];
        self.start(&argv, &env, log.as_fd())
    }

    /// Starts a role of ours and waits until the supervisor that it is or becomes listens, or until it
    /// has ended because another one does.
    fn start(
        &self,
        argv: &[CString],
        env: &[CString],
        stderr: BorrowedFd<'_>,
    ) -> Result<Child, LaunchError> {
        let (ready, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| LaunchError::Io { action: "no pipe", source: error.into() })?;
        let null = OpenOptions::new()
            .read(true)
            .open("/dev/null")
            .map_err(io_error("cannot open /dev/null"))?;
        let program = CString::new(self.executable.as_os_str().as_bytes()).map_err(|error| {
            LaunchError::Io { action: "bad program name", source: error.into() }
        })?;
        let child = spawn(&SpawnRequest {
            program: &program,
            argv,
            env,
            cwd: Some(c"/"),
            stdio: Stdio::Descriptors { stdin: null.as_fd(), stdout: theirs.as_fd(), stderr },
            session: Session::New,
            open_files_soft: self.open_files_soft,
        })?;
        drop(theirs);
        // A line when it listens; the end of the pipe when it has ended, or has nothing more to say.
        let mut line = [0];
        let _ = File::from(ready).read(&mut line);
        Ok(child)
    }
}

/// Connects to the supervisor of the user who runs this, for the target `local`; starts it, as the
/// program `executable`, if it isn't running.
///
/// # Errors
/// See [`LaunchError`].
pub fn connect(executable: &Path) -> Result<Launched, LaunchError> {
    let uid = effective_uid();
    // One that root has started for this user is this user's: a job that came over the network is
    // seen from here too. Whoever moves the directories moves all of afar's.
    if uid != 0 && runtime_dir_is_default() {
        match root::connect_running(SOCKET_DIR.as_ref(), uid) {
            Ok(Some(stream)) => return Ok(Launched { stream, started: None }),
            // What is not root's is none of ours; in a container it may look like anybody's.
            Ok(None) | Err(LaunchError::Directory(_)) => {}
            Err(error) => return Err(error),
        }
    }
    let user = current_user()
        .map_err(io_error("cannot read the user database"))?
        .ok_or_else(|| io_error("cannot start a supervisor")(unknown_user(uid)))?;
    Launcher::new(executable.to_owned()).connect(&user)
}

fn unknown_user(uid: u32) -> io::Error {
    io::Error::other(format!("uid {uid} is not in the user database"))
}

/// Connects, and starts what is to be connected to as often as is worth trying.
fn reach(
    running: impl Fn() -> Result<Option<UnixStream>, LaunchError>,
    start: impl Fn() -> Result<Child, LaunchError>,
    log: impl Fn() -> PathBuf,
) -> Result<Launched, LaunchError> {
    let connect_when_not_busy = || {
        let deadline = Instant::now() + BUSY_TIMEOUT;
        loop {
            match running() {
                Err(LaunchError::Busy) if Instant::now() < deadline => {
                    std::thread::sleep(WINNER_POLL);
                }
                other => return other,
            }
        }
    };
    if let Some(stream) = connect_when_not_busy()? {
        return Ok(Launched { stream, started: None });
    }
    for _ in 0..ATTEMPTS {
        let mut started = start()?;
        // One that lost the race for the lock to another has ended by now, and the other one may
        // need a moment until it listens.
        let deadline = Instant::now() + WINNER_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(stream) = connect_when_not_busy()? {
                return Ok(Launched { stream, started: Some(started) });
            }
            if has_failed(&mut started) {
                return Err(LaunchError::Ended { log: log() });
            }
            std::thread::sleep(WINNER_POLL);
        }
    }
    Err(LaunchError::Ended { log: log() })
}

/// Whether it has ended otherwise than one does that finds another supervisor at work.
fn has_failed(supervisor: &mut Child) -> bool {
    let success = ExitStatus::Exited { code: 0 };
    matches!(supervisor.try_wait(), Ok(Some(ended)) if ended.status != success)
}

/// A connection to whoever listens at `path`, who must be of the user `uid` (`W-4.8`).
fn connect_to(path: &Path, uid: u32) -> Result<Option<UnixStream>, LaunchError> {
    let stream = match connect_unix_at_once(path) {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(None),
                io::ErrorKind::WouldBlock => Err(LaunchError::Busy),
                _ => Err(io_error("cannot reach the supervisor")(error)),
            };
        }
    };
    let peer = peer_credentials(&stream).map_err(io_error("cannot tell whose the socket is"))?;
    if peer.uid != uid {
        return Err(LaunchError::OtherUser { path: path.to_owned(), uid: peer.uid });
    }
    Ok(Some(stream))
}

fn log_path() -> PathBuf {
    let home = current_user().ok().flatten().map(|user| user.home);
    let home = std::env::var_os("HOME").map(PathBuf::from).or(home);
    state_dir(&home.unwrap_or_else(|| PathBuf::from("/"))).join("supervisor.log")
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        ensure_private_dir(directory).map_err(io::Error::other)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let file = options.open(path)?;
    if file.metadata()?.len() > LOG_BYTES_MAX {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Strings for exec(3) that hold no NUL, because they come from the user database or from a path.
fn strings<S: AsRef<[u8]>>(strings: &[S]) -> Result<Vec<CString>, LaunchError> {
    exec_strings(strings.iter().map(AsRef::as_ref))
        .map_err(|error| io_error("bad argument")(io::Error::other(error.to_string())))
}
