//! Reaches this user's supervisor, and starts it where there is none.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use afar_sys::child::{Child, ExitStatus, Session};
use afar_sys::private_files::{PrivateDirError, ensure_private_dir};
use afar_sys::socket::{connect_unix_at_once, peer_credentials};
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn};
use afar_sys::users::{current_user, effective_uid};

use crate::limits::LOG_BYTES_MAX;
use crate::paths::{SOCKET_NAME, runtime_dir, state_dir};

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
    /// It does not accept connections, and as many as may wait for that already do.
    #[error("the supervisor does not accept connections")]
    Busy,
    /// It could not be started.
    #[error("the supervisor could not be started: {0}")]
    Spawn(#[from] SpawnError),
    /// It was started and ended again before it listened.
    #[error("the supervisor ended as soon as it was started; see {log:?}")]
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

/// Connects to the supervisor, if it is running. Never waits.
///
/// # Errors
/// Its directory is not usable, or something else than a missing supervisor is in the way.
pub fn connect_running() -> Result<Option<UnixStream>, LaunchError> {
    let path = runtime_dir()?.join(SOCKET_NAME);
    match connect_unix_at_once(&path) {
        Ok(stream) => check_owner(stream, &path).map(Some),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Ok(None)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(LaunchError::Busy),
        Err(source) => Err(LaunchError::Io { action: "cannot reach the supervisor", source }),
    }
}

fn connect_when_not_busy() -> Result<Option<UnixStream>, LaunchError> {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    loop {
        match connect_running() {
            Err(LaunchError::Busy) if Instant::now() < deadline => std::thread::sleep(WINNER_POLL),
            other => return other,
        }
    }
}

/// Connects to this user's supervisor; starts it, as the program `executable`, if it isn't running.
/// Blocks for some milliseconds in that case.
///
/// # Errors
/// See [`LaunchError`].
pub fn connect(executable: &Path) -> Result<Launched, LaunchError> {
    if let Some(stream) = connect_when_not_busy()? {
        return Ok(Launched { stream, started: None });
    }
    for _ in 0..ATTEMPTS {
        let mut started = start(executable)?;
        // One that lost the race for the lock to another has ended by now, and the other one may
        // need a moment until it listens.
        let deadline = Instant::now() + WINNER_TIMEOUT;
        while Instant::now() < deadline {
            if let Some(stream) = connect_when_not_busy()? {
                return Ok(Launched { stream, started: Some(started) });
            }
            if has_failed(&mut started) {
                return Err(LaunchError::Ended { log: log_path() });
            }
            std::thread::sleep(WINNER_POLL);
        }
    }
    Err(LaunchError::Ended { log: log_path() })
}

/// Whether it has ended otherwise than one does that finds another supervisor at work.
fn has_failed(supervisor: &mut Child) -> bool {
    let success = ExitStatus::Exited { code: 0 };
    matches!(supervisor.try_wait(), Ok(Some(ended)) if ended.status != success)
}

fn check_owner(stream: UnixStream, path: &Path) -> Result<UnixStream, LaunchError> {
    let peer = peer_credentials(&stream).map_err(io_error("cannot tell whose the socket is"))?;
    if peer.uid != effective_uid() {
        return Err(LaunchError::OtherUser { path: path.to_owned(), uid: peer.uid });
    }
    Ok(stream)
}

/// Starts a supervisor and waits until it listens, or until it has ended because another one does.
fn start(executable: &Path) -> Result<Child, LaunchError> {
    let (ready, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|error| LaunchError::Io { action: "no pipe", source: error.into() })?;
    let null = OpenOptions::new()
        .read(true)
        .open("/dev/null")
        .map_err(io_error("cannot open /dev/null"))?;
    let log = open_log().map_err(io_error("cannot open the supervisor's log"))?;
    let program = CString::new(executable.as_os_str().as_bytes())
        .map_err(|error| LaunchError::Io { action: "bad program name", source: error.into() })?;
    let env: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| !JOB_VARIABLES.iter().any(|job| name == job))
        .filter_map(|(name, value)| {
            let mut entry = name.into_vec();
            entry.push(b'=');
            entry.extend(value.into_vec());
            CString::new(entry).ok()
        })
        .collect();
    let child = spawn(&SpawnRequest {
        program: &program,
        argv: &[c"afar".to_owned(), c"supervisor".to_owned()],
        env: &env,
        cwd: Some(c"/"),
        stdio: Stdio::Descriptors {
            stdin: null.as_fd(),
            stdout: theirs.as_fd(),
            stderr: log.as_fd(),
        },
        session: Session::New,
        open_files_soft: None,
    })?;
    drop(theirs);
    // A line when it listens; the end of the pipe when it has ended, or has nothing more to say.
    let mut line = [0];
    let _ = File::from(ready).read(&mut line);
    Ok(child)
}

fn log_path() -> PathBuf {
    let home = current_user().ok().flatten().map(|user| user.home);
    let home = std::env::var_os("HOME").map(PathBuf::from).or(home);
    state_dir(&home.unwrap_or_else(|| PathBuf::from("/"))).join("supervisor.log")
}

fn open_log() -> io::Result<File> {
    let path = log_path();
    if let Some(directory) = path.parent() {
        ensure_private_dir(directory).map_err(io::Error::other)?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let file = options.open(&path)?;
    if file.metadata()?.len() > LOG_BYTES_MAX {
        file.set_len(0)?;
    }
    Ok(file)
}
