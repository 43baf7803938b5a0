//! Starts a job: its pipes, its process, and the task that owns them.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::{OpenSpec, Refused};
use afar_proto::outcome::{Phase, RefusalReason, Started as WasStarted};
use afar_sys::child::Session;
use afar_sys::pipe::{ChildPipe, pipe_from_child, pipe_to_child};
use afar_sys::process_tree::Tree;
use afar_sys::resolve::diagnose;
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn, spawn_confined};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::ending::{Ending, GRACE};
use super::input::Input;
use super::output::Output;
use super::process::{ExitWatch, Process};
use super::{FromJob, Job, ToJob};
use crate::supervisor::request::{Prepared, refuse_spawn};
use crate::supervisor::{Stay, Supervisor};

/// A job that runs.
#[derive(Debug)]
pub(in crate::supervisor) struct Started {
    /// The task's state, to be run.
    pub(in crate::supervisor) job: Box<Job>,
    /// Where to tell it things.
    pub(in crate::supervisor) commands: UnboundedSender<ToJob>,
    /// Its process id.
    pub(in crate::supervisor) pid: u32,
    /// What its user should know about how it was started.
    pub(in crate::supervisor) note: Option<String>,
}

/// Starts what was prepared. Blocks until the program executes or could not: half a millisecond,
/// which is less than handing it to another thread and back would cost.
pub(in crate::supervisor) fn start(
    spec: &OpenSpec,
    prepared: &Prepared,
    channel: ChannelId,
    events: UnboundedSender<(ChannelId, FromJob)>,
    supervisor: &Rc<Supervisor>,
) -> Result<Started, Refused> {
    let no_pipe = |error: io::Error| no_resources(&error, WasStarted::No);
    let Pipes { ours, childs } = Pipes::new(spec).map_err(no_pipe)?;
    let (user, log) = (&supervisor.user, supervisor.log);
    let mut confined =
        supervisor.cgroups.confine(prepared.mark_value(), prepared.limits, user, log);
    let request = SpawnRequest {
        program: &prepared.program,
        argv: &prepared.argv,
        env: &prepared.env,
        cwd: Some(&prepared.cwd),
        stdio: Stdio::Descriptors {
            stdin: childs.stdin.as_fd(),
            stdout: childs.stdout.as_fd(),
            stderr: childs.stderr.as_ref().unwrap_or(&childs.stdout).as_fd(),
        },
        session: Session::New,
        open_files_soft: supervisor.open_files_soft,
    };
    // Before the start: a short program is half done when posix_spawn returns.
    let started = Instant::now();
    let child = match confined.confinement() {
        Some(confinement) => spawn_confined(&request, &confinement),
        None => spawn(&request),
    };
    let child = child.map_err(|error| refuse(error, prepared))?;
    // The job must meet the end of its pipes when it has closed its own ends.
    drop(childs);
    let pid = u32::try_from(child.pid()).unwrap_or(0);
    let timeout_at = spec.timeout_ms.and_then(|ms| started.checked_add(Duration::from_millis(ms)));
    let grace = spec.kill_after_ms.map_or(GRACE, Duration::from_millis);
    let group = confined.group();
    let tree = Tree::new(child.tree_root(), &prepared.mark, group.clone());
    let ending = Ending::new(tree, timeout_at, grace);
    let (commands, received) = unbounded_channel();
    let watch = ExitWatch::of(&child);
    let unwatched = watch.why_not();
    let Ours { outputs, input } = ours;
    let mut job = Box::new(Job {
        channel,
        process: Process::Own { child, watch, group },
        outputs,
        input,
        started,
        ending,
        exit: None,
        sealed: false,
        commands: received,
        heard: true,
        wanted: true,
        events,
        timer: Box::pin(tokio::time::sleep_until(started)),
        stay: Stay::new(supervisor),
    });
    if let Some(error) = unwatched {
        supervisor.log.error(&format!("job {}: it can't be watched: {error}", spec.job.as_str()));
        job.give_up();
    }
    Ok(Started { job, commands, pid, note: confined.take_note() })
}

/// The pipes of a job that is about to be started. Ours are registered with the runtime before
/// there is a process that could be left unwatched.
pub(super) struct Pipes {
    pub(super) ours: Ours,
    pub(super) childs: Childs,
}

pub(super) struct Ours {
    pub(super) outputs: [Output; 2],
    pub(super) input: Input,
}

pub(super) struct Childs {
    pub(super) stdin: OwnedFd,
    pub(super) stdout: OwnedFd,
    /// `None` iff stderr is merged into stdout.
    pub(super) stderr: Option<OwnedFd>,
}

impl Pipes {
    pub(super) fn new(spec: &OpenSpec) -> io::Result<Self> {
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
        Ok(Self {
            ours: Ours { outputs, input: Input::new(stdin)? },
            childs: Childs { stdin: childs_stdin, stdout: stdout.childs, stderr: childs_stderr },
        })
    }
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
