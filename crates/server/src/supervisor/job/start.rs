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
use afar_sys::resolve::diagnose;
use afar_sys::spawn::{SpawnError, SpawnRequest, Stdio, spawn};
use tokio::io::Interest;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::Instant;

use super::ending::{Ending, GRACE};
use super::input::Input;
use super::output::Output;
use super::{FromJob, Job, ToJob};
use crate::supervisor::request::{Prepared, refuse_spawn};
use crate::supervisor::{Stay, Supervisor};

/// A job that runs.
#[derive(Debug)]
pub(in crate::supervisor) struct Started {
    /// The task's state, to be run.
    pub(in crate::supervisor) job: Job,
    /// Where to tell it things.
    pub(in crate::supervisor) commands: UnboundedSender<ToJob>,
    /// Its process id.
    pub(in crate::supervisor) pid: u32,
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
    let pipes = Pipes::new(spec).map_err(|error| no_resources(&error, WasStarted::No))?;
    let request = SpawnRequest {
        program: &prepared.program,
        argv: &prepared.argv,
        env: &prepared.env,
        cwd: Some(&prepared.cwd),
        stdio: Stdio::Descriptors {
            stdin: pipes.stdin.childs.as_fd(),
            stdout: pipes.stdout.childs.as_fd(),
            stderr: pipes.stderr.as_ref().unwrap_or(&pipes.stdout).childs.as_fd(),
        },
        session: Session::New,
        open_files_soft: supervisor.open_files_soft,
    };
    // Before the start: a short program is half done when posix_spawn returns.
    let started = Instant::now();
    let child = spawn(&request).map_err(|error| refuse(error, prepared))?;
    let Pipes { stdin, stdout, stderr } = pipes;
    let pid = u32::try_from(child.pid()).unwrap_or(0);
    let timeout_at = spec.timeout_ms.and_then(|ms| started.checked_add(Duration::from_millis(ms)));
    let grace = spec.kill_after_ms.map_or(GRACE, Duration::from_millis);
    let ending = Ending::new(&child, prepared.mark.clone(), timeout_at, grace);
    let (commands, received) = unbounded_channel();
    let watch = || -> io::Result<_> {
        let pidfd = child.pidfd().try_clone_to_owned()?;
        let pidfd = afar_sys::readiness::watch(pidfd, Interest::READABLE)?;
        let outputs = [
            Output::new(Stream::Stdout, Some(stdout.ours))?,
            Output::new(Stream::Stderr, stderr.map(|pipe| pipe.ours))?,
        ];
        Ok((pidfd, outputs, Input::new(stdin.ours)?))
    };
    let (pidfd, outputs, input) = match watch() {
        Ok(watched) => watched,
        Err(error) => {
            // It runs, and can't be watched: it must not go on unseen.
            let _ = child.signal_group(afar_sys::signals::Signal::KILL);
            return Err(no_resources(&error, WasStarted::Yes));
        }
    };
    let job = Job {
        channel,
        child,
        pidfd,
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
    };
    Ok(Started { job, commands, pid })
}

/// The job's stdin: a pipe, or `/dev/null` with no end of ours.
struct Stdin {
    ours: Option<OwnedFd>,
    childs: OwnedFd,
}

struct Pipes {
    stdin: Stdin,
    stdout: ChildPipe,
    /// `None` iff stderr is merged into stdout.
    stderr: Option<ChildPipe>,
}

impl Pipes {
    fn new(spec: &OpenSpec) -> io::Result<Self> {
        let stdin = if spec.stdin {
            let ChildPipe { ours, childs } = pipe_to_child()?;
            Stdin { ours: Some(ours), childs }
        } else {
            let null = OpenOptions::new().read(true).open("/dev/null")?;
            Stdin { ours: None, childs: null.into() }
        };
        let stderr = if spec.merge { None } else { Some(pipe_from_child()?) };
        Ok(Self { stdin, stdout: pipe_from_child()?, stderr })
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

fn no_resources(error: &io::Error, started: WasStarted) -> Refused {
    Refused {
        phase: Phase::Spawn,
        reason: RefusalReason::NoResources,
        message: format!("the job could not be started: {error}"),
        started,
    }
}
