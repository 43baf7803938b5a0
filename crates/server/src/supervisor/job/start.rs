//! Starts a job: its pipes, its process, and the task that owns them.

use std::ffi::CString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use afar_core::job::JobKey;
use afar_proto::connection::Stream;
use afar_proto::message::{JobInfo, OpenSpec, Refused, Terminal};
use afar_proto::outcome::{Phase, RefusalReason, Started as WasStarted};
use afar_sys::child::Session;
use afar_sys::pipe::{ChildPipe, pipe_from_child, pipe_to_child};
use afar_sys::process_tree::Tree;
use afar_sys::pty::Pty;
use afar_sys::resolve::diagnose;
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn, spawn_confined};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::ending::{Ending, GRACE};
use super::input::Input;
use super::output::{Kind, Output};
use super::process::{self, ExitWatch, Process};
use super::{Job, Route, ToJob};
use crate::supervisor::Supervisor;
use crate::supervisor::request::{Prepared, refuse_spawn};
use crate::supervisor::session::{SessionRequest, Turn, TurnStreams, submit};

/// A job that is asked for.
pub(in crate::supervisor) struct Opening<'a> {
    /// What is asked.
    pub(in crate::supervisor) spec: &'a OpenSpec,
    /// Which job that is.
    pub(in crate::supervisor) key: JobKey,
    /// What a list says of it.
    pub(in crate::supervisor) info: Box<JobInfo>,
    /// Who asks.
    pub(in crate::supervisor) route: Route,
    /// Where it will run.
    pub(in crate::supervisor) supervisor: &'a Rc<Supervisor>,
}

/// A job whose task is to be run.
#[derive(Debug)]
pub(in crate::supervisor) struct Started {
    /// The task's state.
    pub(in crate::supervisor) job: Box<Job>,
    /// Where to tell it things.
    pub(in crate::supervisor) commands: UnboundedSender<ToJob>,
    /// Its process id; `None` while it waits for its turn.
    pub(in crate::supervisor) pid: Option<u32>,
    /// When it was started, in microseconds of Unix time.
    pub(in crate::supervisor) started_at_us: u64,
    /// What its user should know about how it was started.
    pub(in crate::supervisor) note: Option<String>,
}

/// Starts what was prepared. Blocks until the program executes or could not: half a millisecond,
/// which is less than handing it to another thread and back would cost.
pub(in crate::supervisor) fn start(
    opening: Opening<'_>,
    prepared: &Prepared,
) -> Result<Started, Refused> {
    let Opening { spec, supervisor, .. } = &opening;
    let no_pipe = |error: io::Error| no_resources(&error, WasStarted::No);
    let (ours, childs) = streams(spec).map_err(no_pipe)?;
    let (user, log) = (&supervisor.user, supervisor.log);
    let mut confined =
        supervisor.cgroups.confine(prepared.mark_value(), prepared.limits, user, log);
    let request = SpawnRequest {
        program: &prepared.program,
        argv: &prepared.argv,
        env: &prepared.env,
        cwd: Some(&prepared.cwd),
        stdio: childs.stdio(),
        session: Session::New,
        open_files_soft: supervisor.open_files_soft,
    };
    // Before the start: a short program is half done when posix_spawn returns.
    let (started, started_at_us) = (Instant::now(), super::unix_time_us());
    let child = match confined.confinement() {
        Some(confinement) => spawn_confined(&request, &confinement),
        None => spawn(&request),
    };
    let child = child.map_err(|error| refuse(error, prepared))?;
    // The job must meet the end of its pipes when it has closed its own ends.
    drop(childs);
    let pid = u32::try_from(child.pid()).unwrap_or(0);
    let group = confined.group();
    let tree = Tree::new(child.tree_root(), &prepared.mark, group.clone());
    let ending = Ending::new(tree, spec.terminal.is_some(), grace(spec));
    let watch = ExitWatch::of(&child);
    let unwatched = watch.why_not();
    let job_id = spec.job.clone();
    let (mut job, commands) = Job::new(opening, ours, Process::Own { child, watch, group }, ending);
    job.begin(started, started_at_us, pid);
    if let Some(error) = unwatched {
        log.error(&format!("job {job_id}: it can't be watched: {error}"));
        job.give_up();
    }
    Ok(Started { job, commands, pid: Some(pid), started_at_us, note: confined.take_note() })
}

/// Queues what was prepared in its session.
pub(in crate::supervisor) fn start_in_session(
    opening: Opening<'_>,
    request: SessionRequest,
) -> Result<Started, Refused> {
    let Opening { spec, supervisor, .. } = &opening;
    let no_room = |error: io::Error| no_resources(&error, WasStarted::No);
    let (ours, Pipes { stdin, stdout, stderr }) = pipes(spec).map_err(no_room)?;
    let streams = TurnStreams { stdin: spec.stdin.then_some(stdin), stdout, stderr };
    let (started_sender, started) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    let SessionRequest { key, environment, text, exports, mark } = request;
    let turn = Turn { text, exports, mark, streams, started: started_sender, ended: ended_sender };
    submit(supervisor, &key, &environment, turn)?;
    let process = Process::Waiting(process::Turn { started, ended });
    let ending = Ending::of_nothing(grace(spec));
    let (job, commands) = Job::new(opening, ours, process, ending);
    Ok(Started { job, commands, pid: None, started_at_us: 0, note: None })
}

fn grace(spec: &OpenSpec) -> Duration {
    spec.kill_after_ms.map_or(GRACE, Duration::from_millis)
}

/// Our ends of a job's streams. They are registered with the runtime before there is a process that
/// could be left unwatched.
pub(super) struct Ours {
    pub(super) outputs: [Output; 2],
    pub(super) input: Input,
    /// The job's side of its terminal, if it has one.
    pub(super) held: Option<OwnedFd>,
}

/// The job's ends.
enum Childs {
    Pipes(Pipes),
    Terminal(CString),
}

struct Pipes {
    stdin: OwnedFd,
    stdout: OwnedFd,
    /// `None` iff stderr is merged into stdout.
    stderr: Option<OwnedFd>,
}

impl Childs {
    fn stdio(&self) -> Stdio<'_> {
        match self {
            Self::Pipes(Pipes { stdin, stdout, stderr }) => Stdio::Descriptors {
                stdin: stdin.as_fd(),
                stdout: stdout.as_fd(),
                stderr: stderr.as_ref().unwrap_or(stdout).as_fd(),
            },
            Self::Terminal(path) => Stdio::Terminal { path },
        }
    }
}

fn streams(spec: &OpenSpec) -> io::Result<(Ours, Childs)> {
    match &spec.terminal {
        Some(terminal) => open_terminal(terminal),
        None => pipes(spec).map(|(ours, childs)| (ours, Childs::Pipes(childs))),
    }
}

fn pipes(spec: &OpenSpec) -> io::Result<(Ours, Pipes)> {
    let (stdin, childs_stdin) = if spec.stdin {
        let ChildPipe { ours, childs } = pipe_to_child()?;
        (Some(ours), childs)
    } else {
        (None, OpenOptions::new().read(true).open("/dev/null")?.into())
    };
    let stdout = pipe_from_child()?;
    let stderr = if spec.merge { None } else { Some(pipe_from_child()?) };
    let (stderr, childs_stderr) = stderr.map(|pipe| (pipe.ours, pipe.childs)).unzip();
    let outputs =
        [Output::new(Stream::Stdout, Some(stdout.ours))?, Output::new(Stream::Stderr, stderr)?];
    let ours = Ours { outputs, input: Input::new(stdin)?, held: None };
    Ok((ours, Pipes { stdin: childs_stdin, stdout: stdout.childs, stderr: childs_stderr }))
}

/// What the job shows is its stdout, and what is typed its stdin (`W-5.13`).
fn open_terminal(asked: &Terminal) -> io::Result<(Ours, Childs)> {
    let modes = asked.modes.iter().map(|(name, value)| (name.as_str(), *value));
    let Pty { controller, terminal, path } = Pty::open(super::window_size(asked.size), modes)?;
    let input = Input::of_terminal(Some(controller.try_clone()?))?;
    let outputs = [
        Output::of(Stream::Stdout, Some(controller), Kind::Terminal)?,
        Output::new(Stream::Stderr, None)?,
    ];
    Ok((Ours { outputs, input, held: Some(terminal) }, Childs::Terminal(path)))
}

fn refuse(error: SpawnError, prepared: &Prepared) -> Refused {
    match error {
        SpawnError::NotStarted(errno) => {
            let path = |bytes: &std::ffi::CStr| {
                Path::new(std::ffi::OsStr::from_bytes(bytes.to_bytes())).to_owned()
            };
            refuse_spawn(&diagnose(errno, &path(&prepared.program), &path(&prepared.cwd)))
        }
        SpawnError::EmptyArgv | SpawnError::OutcomeLost => {
            no_resources(&io::Error::other(error), WasStarted::No)
        }
        // The process was there for a moment, and nobody knows what it did.
        SpawnError::Abandoned(_) => no_resources(&io::Error::other(error), WasStarted::Unknown),
    }
}

pub(super) fn no_resources(error: &io::Error, started: WasStarted) -> Refused {
    Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::NoResources,
        message: format!("the job could not be started: {error}"),
        started,
    }
}
