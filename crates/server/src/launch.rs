//! Reaches a user's supervisor, and starts it where there is none.
//!
//! A user's own supervisor has its socket in a directory of that user's. One that root starts for
//! another user has it in a directory of root's, so that no user can put anything there; see
//! `root`.

pub mod as_user;
mod root;
pub mod running;

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use afar_sys::child::{Child, ExitStatus, Session};
use afar_sys::exec_strings::exec_strings;
use afar_sys::private_files::{PrivateDirError, ensure_private_dir};
use afar_sys::signals::Signal;
use afar_sys::socket::{connect_unix_at_once, peer_credentials};
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn};
use afar_sys::users::{User, current_user, effective_uid};

use crate::limits::{ENDING_PATIENCE, LOG_BYTES_MAX, START_DEADLINE};
use crate::paths::{SOCKET_NAME, runtime_dir, runtime_dir_is_default, state_dir};

pub use root::SOCKET_DIR;

/// For how long others are waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For one that does not accept, because it is stopped or very busy.
    busy: Duration,
    /// For one that has the lock and does not listen: it is about to, or it is ending.
    ending: Duration,
    /// For the same, before it is found out by another start whether the lock is free.
    restart: Duration,
}

const PATIENCE: Patience = Patience {
    busy: Duration::from_secs(10),
    ending: ENDING_PATIENCE,
    restart: Duration::from_millis(250),
};

/// How often is looked whether they do.
const POLL: Duration = Duration::from_millis(2);

/// How long one that was killed is waited for. It ends at once, unless it waits for a disk.
const KILLED_PATIENCE: Duration = Duration::from_secs(1);

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
    /// Another one has the lock, and does not listen.
    #[error("the supervisor is ending, or does not answer; try again in a moment")]
    Ending,
    /// It did not listen in time.
    #[error("the supervisor did not start within {}", seconds(START_DEADLINE))]
    Overlong,
    /// The system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

fn seconds(time: Duration) -> String {
    format!("{} s", time.as_secs())
}

impl LaunchError {
    /// What a client of a listener is told; the rest is for the log.
    pub(crate) fn notice(&self) -> String {
        match self {
            Self::Busy | Self::Ending | Self::Overlong => self.to_string(),
            _ => "the server could not start the supervisor; its log says why".to_owned(),
        }
    }
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
            reach(running, || self.start_own(), log_path, PATIENCE)
        } else if effective_uid() == 0 {
            reach(running, || root::start(self, user), || root::log_path(user), PATIENCE)
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
        let mut child = spawn(&SpawnRequest {
            program: &program,
            argv,
            env,
            cwd: Some(c"/"),
            stdio: Stdio::Descriptors { stdin: null.as_fd(), stdout: theirs.as_fd(), stderr },
            session: Session::New,
            open_files_soft: self.open_files_soft,
        })?;
        drop(theirs);
        if hear_from(ready, &mut child, START_DEADLINE) {
            Ok(child)
        } else {
            reap_later(child);
            Err(LaunchError::Overlong)
        }
    }
}

/// Waits for a line from a child, when it listens, or for the end of the pipe, when it has ended or
/// has nothing more to say. `false` if neither came in time: then it was killed, because it may hold the
/// lock and wait for a home on a server that does not answer.
fn hear_from(ready: OwnedFd, child: &mut Child, patience: Duration) -> bool {
    if is_readable_within(&ready, patience) {
        let _ = File::from(ready).read(&mut [0]);
        return true;
    }
    // One that has ended in this moment needs no signal.
    let _ = child.signal_group(Signal::KILL);
    false
}

fn is_readable_within(descriptor: &impl AsFd, patience: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).ok();
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            // What can't be waited for is read, and says what is wrong.
            answer => return answer != Ok(0),
        }
    }
}

/// Leaves no zombie of a child that was killed, and waits for none that the kernel does not let go.
fn reap_later(mut child: Child) {
    if is_readable_within(&child, KILLED_PATIENCE) {
        let _ = child.try_wait();
        return;
    }
    let _ = std::thread::Builder::new().spawn(move || child.wait());
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

/// Connects; starts what is to be connected to where there is none, and again where that found the lock
/// taken and whoever had it is gone.
fn reach(
    running: impl Fn() -> Result<Option<UnixStream>, LaunchError>,
    start: impl Fn() -> Result<Child, LaunchError>,
    log: impl Fn() -> PathBuf,
    patience: Patience,
) -> Result<Launched, LaunchError> {
    let connect_when_not_busy = || {
        let deadline = Instant::now() + patience.busy;
        loop {
            match running() {
                Err(LaunchError::Busy) if Instant::now() < deadline => std::thread::sleep(POLL),
                other => return other,
            }
        }
    };
    if let Some(stream) = connect_when_not_busy()? {
        return Ok(Launched { stream, started: None });
    }
    let deadline = Instant::now() + patience.ending;
    loop {
        let mut started = start()?;
        let restart = Instant::now() + patience.restart;
        // One that lost the race for the lock to another has ended by now, or is about to.
        let mut has_ended = false;
        while !has_ended || Instant::now() < restart {
            if let Some(stream) = connect_when_not_busy()? {
                return Ok(Launched { stream, started: Some(started) });
            }
            if Instant::now() >= deadline {
                reap_later(started);
                return Err(LaunchError::Ending);
            }
            has_ended = match started.try_wait() {
                Ok(Some(ended)) if ended.status != (ExitStatus::Exited { code: 0 }) => {
                    return Err(LaunchError::Ended { log: log() });
                }
                Ok(None) => false,
                Ok(Some(_)) | Err(_) => true,
            };
            std::thread::sleep(POLL);
        }
    }
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
    // A pipe in its place would have whoever opens it wait for a reader.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600).custom_flags(flags.bits().cast_signed());
    let file = options.open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    if found.len() > LOG_BYTES_MAX {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Strings for exec(3) that hold no NUL, because they come from the user database or from a path.
fn strings<S: AsRef<[u8]>>(strings: &[S]) -> Result<Vec<CString>, LaunchError> {
    exec_strings(strings.iter().map(AsRef::as_ref))
        .map_err(|error| io_error("bad argument")(io::Error::other(error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn child(program: &str, argv: &[&str]) -> Child {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        spawn(&SpawnRequest {
            program: &CString::new(program).unwrap(),
            argv: &strings(argv).unwrap(),
            env: &[],
            cwd: Some(c"/"),
            stdio: Stdio::Descriptors {
                stdin: null.as_fd(),
                stdout: null.as_fd(),
                stderr: null.as_fd(),
            },
            session: Session::New,
            open_files_soft: None,
        })
        .unwrap()
    }

    #[test]
    fn fault_63_a_log_that_is_no_file_is_refused_and_nobody_waits_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("afar");
        let log = place.join("supervisor.log");
        open_log(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, &log, mode).unwrap();
        assert!(open_log(&log).is_err());
        // One that has a reader can be opened, and is no log either.
        let _reader = OpenOptions::new().read(true).write(true).open(&log).unwrap();
        assert!(open_log(&log).unwrap_err().to_string().contains("no regular file"));
        std::fs::remove_file(&log).unwrap();
        std::os::unix::fs::symlink(place.join("other"), &log).unwrap();
        assert!(open_log(&log).is_err());
        assert!(!place.join("other").exists());
    }

    #[test]
    fn one_that_says_nothing_in_time_is_killed() {
        let (ready, theirs) = rustix::pipe::pipe().unwrap();
        let mut silent = child("/bin/sleep", &["sleep", "1000"]);
        assert!(!hear_from(ready, &mut silent, Duration::from_millis(10)));
        assert!(matches!(silent.wait().unwrap().status, ExitStatus::Signaled { .. }));
        drop(theirs);
        let (ready, theirs) = rustix::pipe::pipe().unwrap();
        let mut ended = child("/bin/true", &["true"]);
        drop(theirs);
        assert!(hear_from(ready, &mut ended, Duration::from_secs(60)));
        assert_eq!(ended.wait().unwrap().status, ExitStatus::Exited { code: 0 });
    }

    const IMPATIENT: Patience = Patience {
        busy: Duration::from_millis(20),
        ending: Duration::from_millis(20),
        restart: Duration::from_millis(1),
    };

    #[test]
    fn one_that_has_the_lock_and_is_ending_is_waited_for() {
        let starts = Cell::new(0);
        let start = || {
            starts.set(starts.get() + 1);
            Ok(child("/bin/true", &["true"]))
        };
        // The lock is free the seventh time.
        let running = || Ok((starts.get() == 7).then(|| UnixStream::pair().unwrap().0));
        let patience = Patience { ending: Duration::from_secs(60), ..IMPATIENT };
        assert!(reach(running, start, PathBuf::new, patience).unwrap().started.is_some());
        let never = || Ok(None);
        let given_up = reach(never, start, PathBuf::new, IMPATIENT).unwrap_err();
        assert!(matches!(given_up, LaunchError::Ending), "{given_up}");
        assert!(given_up.notice().contains("is ending"));
    }

    #[test]
    fn one_that_fails_is_not_started_again() {
        let starts = Cell::new(0);
        let start = || {
            starts.set(starts.get() + 1);
            Ok(child("/bin/false", &["false"]))
        };
        let patience = Patience { ending: Duration::from_secs(60), ..IMPATIENT };
        let failed = reach(|| Ok(None), start, PathBuf::new, patience).unwrap_err();
        assert!(matches!(failed, LaunchError::Ended { .. }), "{failed}");
        assert_eq!(starts.get(), 1);
        let busy = reach(|| Err(LaunchError::Busy), start, PathBuf::new, IMPATIENT);
        assert!(matches!(busy, Err(LaunchError::Busy)));
        assert_eq!(starts.get(), 1);
    }
}
