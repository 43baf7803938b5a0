//! The process of a session's shell, and the two pipes that it is spoken to by.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use afar_proto::message::Refused;
use afar_sys::child::{Child, Ended, Session};
use afar_sys::exec::take_kept;
use afar_sys::exec_strings::exec_string;
use afar_sys::pipe::{ChildPipe, pipe_from_child, pipe_to_child};
use afar_sys::resolve::resolve;
use afar_sys::signals::Signal;
use afar_sys::spawn::{SpawnRequest, Stdio, spawn};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::dialect::{Choice, choose};
use super::driver::{Answer, CpuTime, Driver, Evaluation, Paths, Tried, Variable, bound_received};
use super::limits::SHELL_END_GRACE;
use super::written::WrittenShell;
use super::{Turn, TurnStreams};
use crate::supervisor::Supervisor;
use crate::supervisor::environment::shell_of;
use crate::supervisor::request::{SessionEnvironment, refuse_spawn, refuse_unsupported};

/// A shell that runs.
#[derive(Debug)]
pub(super) struct Shell {
    child: Child,
    pidfd: AsyncFd<OwnedFd>,
    /// For the commands' signals; the same process.
    pub(super) signal_fd: Arc<OwnedFd>,
    script: AsyncFd<OwnedFd>,
    answers: AsyncFd<OwnedFd>,
    /// Held open, so that the shell can open it by its path, again for each answer.
    answers_childs: OwnedFd,
    /// Our own directory in the procfs that the shell sees.
    own_fds: String,
    pub(super) driver: Driver,
    number: u64,
    /// What the user should know about the shell, until it was told.
    pub(super) note: Option<String>,
}

/// What came of a question to the shell.
#[derive(Debug)]
pub(super) enum Asked<T> {
    Answered(T),
    /// The shell has ended; `None` if its status can't be obtained.
    Ended(Option<Ended>),
}

/// What was read of the shell's answer.
enum Reply<T> {
    Whole(T),
    /// The answer lacks something, which these lines ask for.
    AskAgain(Vec<u8>),
}

impl Shell {
    /// Starts the user's shell.
    pub(super) fn start(
        supervisor: &Supervisor,
        environment: SessionEnvironment,
    ) -> Result<Self, Refused> {
        let choice = choose(shell_of(&supervisor.user)).map_err(|why| refuse_unsupported(&why))?;
        let Choice { dialect, program, note } = choice;
        let SessionEnvironment { env, cwd } = environment;
        let cwd_path = Path::new(std::ffi::OsStr::from_bytes(cwd.as_bytes()));
        let program = resolve(program.as_os_str().as_bytes(), None, cwd_path)
            .map_err(|failure| refuse_spawn(&failure))?;
        let name = program.file_name().unwrap_or_default();
        let no_room = |error: io::Error| super::keeper::no_resources(&error);
        let invalid =
            |error: afar_sys::exec_strings::ExecStringError| refuse_unsupported(&error.to_string());
        let argv = [exec_string(name.as_bytes()).map_err(invalid)?, c"-s".to_owned()];
        let program = exec_string(program.as_os_str().as_bytes()).map_err(invalid)?;
        let ChildPipe { ours: script, childs: script_childs } = pipe_to_child().map_err(no_room)?;
        let ChildPipe { ours: answers, childs: answers_childs } =
            pipe_from_child().map_err(no_room)?;
        let null = OpenOptions::new().write(true).open("/dev/null").map_err(no_room)?;
        let own_fds = own_fds().map_err(no_room)?;
        check_reachable(Path::new(&own_fds), supervisor.user.uid)
            .map_err(|why| refuse_unsupported(&why))?;
        let child = spawn(&SpawnRequest {
            program: &program,
            argv: &argv,
            env: &env,
            cwd: Some(&cwd),
            stdio: Stdio::Descriptors {
                stdin: script_childs.as_fd(),
                stdout: null.as_fd(),
                stderr: null.as_fd(),
            },
            session: Session::New,
            open_files_soft: supervisor.open_files_soft,
        })
        .map_err(|error| no_room(io::Error::other(error)))?;
        let (pidfd, signal_fd, script, answers) =
            watch(&child, script, answers).map_err(|error| {
                // It has been told nothing yet, so nothing but its own start-up is lost.
                let _ = child.signal_group(Signal::KILL);
                no_room(error)
            })?;
        let driver = Driver::new(dialect);
        Ok(Self {
            child,
            pidfd,
            signal_fd,
            script,
            answers,
            answers_childs,
            own_fds,
            driver,
            number: 0,
            note,
        })
    }

    /// Between two commands: what another program has to know to go on with it.
    pub(super) fn write_down(&self) -> WrittenShell {
        WrittenShell {
            pid: self.child.pid(),
            started_ticks: self.child.tree_root().started_ticks(),
            pidfd: self.child.pidfd().as_raw_fd(),
            script: self.script.get_ref().as_raw_fd(),
            answers: self.answers.get_ref().as_raw_fd(),
            answers_childs: self.answers_childs.as_raw_fd(),
            driver: self.driver.clone(),
            number: self.number,
            note: self.note.clone(),
        }
    }

    /// Goes on with it, in the program that has these descriptors.
    ///
    /// # Errors
    /// One is not there, or the shell is not our child.
    pub(super) fn go_on(written: WrittenShell) -> io::Result<Self> {
        let WrittenShell { pid, started_ticks, driver, number, note, .. } = written;
        let child = Child::kept(pid, take_kept(written.pidfd)?, started_ticks)?;
        let (script, answers) = (take_kept(written.script)?, take_kept(written.answers)?);
        let answers_childs = take_kept(written.answers_childs)?;
        let (pidfd, signal_fd, script, answers) = watch(&child, script, answers)?;
        let own_fds = own_fds()?;
        Ok(Self {
            child,
            pidfd,
            signal_fd,
            script,
            answers,
            answers_childs,
            own_fds,
            driver,
            number,
            note,
        })
    }

    pub(super) fn child(&self) -> &Child {
        &self.child
    }

    /// Asks the shell whether these variables can be set. Not cancellation safe.
    pub(super) async fn try_exports(&mut self, variables: &[Variable]) -> io::Result<Asked<Tried>> {
        self.number += 1;
        let (number, answer) = (self.number, self.path(self.answers_childs.as_raw_fd()));
        let lines = self.driver.compose_trial(number, variables, &answer);
        let read = |_: &mut Driver, received: &[u8]| {
            Driver::read_trial(number, received).map(Reply::Whole)
        };
        self.ask(lines, read).await
    }

    /// Gives the shell a command and waits for its answer. Not cancellation safe.
    pub(super) async fn evaluate(&mut self, turn: &Turn) -> io::Result<Asked<(u8, CpuTime)>> {
        self.number += 1;
        let (number, answer) = (self.number, self.path(self.answers_childs.as_raw_fd()));
        let TurnStreams { stdin, stdout, stderr } = &turn.streams;
        let stdin = stdin.as_ref().map_or("/dev/null".to_owned(), |fd| self.path(fd.as_raw_fd()));
        let stderr = stderr.as_ref().map(|fd| self.path(fd.as_raw_fd()));
        let paths = Paths {
            stdin: &stdin,
            stdout: &self.path(stdout.as_raw_fd()),
            stderr: stderr.as_deref(),
            answer: &answer,
        };
        let Turn { text, exports, .. } = turn;
        let lines = self.driver.compose(&Evaluation { number, text, exports, paths });
        let read = |driver: &mut Driver, received: &[u8]| {
            Some(match driver.read(number, &answer, received)? {
                Answer::Status(status, cpu) => Reply::Whole((status, cpu)),
                Answer::AskAgain(line) => Reply::AskAgain(line),
            })
        };
        self.ask(lines, read).await
    }

    /// Where the shell finds a descriptor of ours.
    fn path(&self, fd: RawFd) -> String {
        format!("{}/{fd}", self.own_fds)
    }

    /// Gives the shell these lines, and reads what it answers until that is whole.
    async fn ask<T>(
        &mut self,
        mut lines: Vec<u8>,
        read: impl Fn(&mut Driver, &[u8]) -> Option<Reply<T>>,
    ) -> io::Result<Asked<T>> {
        let mut sent = 0;
        let mut received = Vec::new();
        loop {
            tokio::select! {
                biased;
                more = read_some(&self.answers, &mut received) => {
                    more?;
                    bound_received(&mut received);
                    match read(&mut self.driver, &received) {
                        Some(Reply::Whole(answer)) => return Ok(Asked::Answered(answer)),
                        Some(Reply::AskAgain(line)) => {
                            received.clear();
                            lines.extend(line);
                        }
                        None => {}
                    }
                }
                ended = self.pidfd.readable() => {
                    // The guard's readiness stays set: an ended process stays ended.
                    drop(ended?);
                    if let Some(ended) = self.ended() {
                        return Ok(Asked::Ended(ended));
                    }
                }
                written = write_some(&self.script, unsent(&lines, sent)), if sent < lines.len() => {
                    // A shell that reads no more is about to end, which is seen above.
                    sent = written.map_or(lines.len(), |count| sent + count);
                }
            }
        }
    }

    /// Resolves when the shell has ended by itself. Cancellation safe.
    pub(super) async fn gone(&mut self) {
        loop {
            match self.pidfd.readable().await {
                Ok(mut guard) => {
                    if !matches!(self.child.try_wait(), Ok(None)) {
                        return;
                    }
                    guard.clear_ready();
                }
                // The runtime is shutting down.
                Err(_) => return,
            }
        }
    }

    /// `Some` once the process has ended, within which `None` means that nobody knows how.
    pub(super) fn ended(&mut self) -> Option<Option<Ended>> {
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(ended)) => Some(Some(ended)),
            Err(_) => Some(None),
        }
    }

    /// Ends the shell: the end of its script lets it run its EXIT trap and exit; after a grace it is
    /// killed. What its commands have left running is left alone.
    pub(super) async fn end(self) {
        let Self { mut child, pidfd, script, answers, answers_childs, .. } = self;
        drop((script, answers, answers_childs));
        let ended = async {
            while let (Ok(mut guard), Ok(None)) = (pidfd.readable().await, child.try_wait()) {
                guard.clear_ready();
            }
        };
        if tokio::time::timeout(SHELL_END_GRACE, ended).await.is_err() {
            let _ = child.signal(Signal::KILL);
            let _ = pidfd.readable().await;
            let _ = child.try_wait();
        }
    }
}

/// Where the shell finds our descriptors. Asked for instead of known: the procfs may be another pid
/// namespace's.
fn own_fds() -> io::Result<String> {
    Ok(format!("/proc/{}/fd", std::fs::read_link("/proc/self")?.display()))
}

type Watched = AsyncFd<OwnedFd>;

/// Has the runtime tell of the shell's end, and of its pipes; and what it is signalled by.
fn watch(
    child: &Child,
    script: OwnedFd,
    answers: OwnedFd,
) -> io::Result<(Watched, Arc<OwnedFd>, Watched, Watched)> {
    let pidfd = child.pidfd().try_clone_to_owned()?;
    let signal_fd = Arc::new(pidfd.try_clone()?);
    Ok((
        afar_sys::readiness::watch(pidfd, Interest::READABLE)?,
        signal_fd,
        afar_sys::readiness::watch(script, Interest::WRITABLE)?,
        afar_sys::readiness::watch(answers, Interest::READABLE)?,
    ))
}

fn unsent(lines: &[u8], sent: usize) -> &[u8] {
    lines.get(sent..).unwrap_or_default()
}

/// Whether the shell, a process of this user's, can open our descriptors by their paths. The
/// kernel gives them to root when our program may be executed by the user and not read (proc(5),
/// "dumpable"); the shell would then wait for streams that it never gets.
fn check_reachable(own_fds: &Path, uid: u32) -> Result<(), String> {
    use std::os::unix::fs::MetadataExt as _;
    match own_fds.metadata() {
        Ok(found) if uid == 0 || found.uid() == uid => Ok(()),
        Ok(_) => Err("a session needs a program of afar's that its user may read".to_owned()),
        Err(error) => Err(format!("a session needs {}: {error}", own_fds.display())),
    }
}

async fn read_some(pipe: &AsyncFd<OwnedFd>, received: &mut Vec<u8>) -> io::Result<usize> {
    let mut buffer = [0; 4096];
    loop {
        let mut guard = pipe.readable().await?;
        if let Ok(read) = guard.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut buffer)?)) {
            let count = read?;
            received.extend_from_slice(buffer.get(..count).unwrap_or_default());
            return Ok(count);
        }
    }
}

async fn write_some(pipe: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<usize> {
    loop {
        let mut guard = pipe.writable().await?;
        if let Ok(written) = guard.try_io(|pipe| Ok(rustix::io::write(pipe.get_ref(), bytes)?)) {
            return written;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_that_another_user_owns_are_out_of_reach() {
        let uid = afar_sys::users::effective_uid();
        assert_eq!(check_reachable(Path::new("/proc/self/fd"), uid), Ok(()));
        let other = check_reachable(Path::new("/proc/self/fd"), uid + 1);
        assert!(other.is_err_and(|why| why.contains("may read")));
        let missing = check_reachable(Path::new("/proc/self/nothing"), uid);
        assert!(missing.is_err_and(|why| why.contains("/proc/self/nothing")));
    }
}
