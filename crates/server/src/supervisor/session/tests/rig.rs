//! Runs commands in sessions as a conversation does.

use std::cell::Cell;
use std::rc::Rc;

use afar_core::policy::Grant;
use afar_proto::connection::{ChannelId, Config, Role, Stream};
use afar_proto::message::{
    Command, JobId, OpenSpec, Refused, SessionName, SessionRef, SessionScope,
};
use afar_proto::outcome::{End, Seal};
use afar_proto::{Connection, Instant};
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::log::Log;
use crate::supervisor::Supervisor;
use crate::supervisor::job::{Allowance, FromJob, ToJob, start_in_session};
use crate::supervisor::session::{SessionLimits, Sessions, prepare_in_session};

/// The shells whose drivers are tested.
pub(super) const SHELLS: [&str; 3] = ["/bin/dash", "/bin/bash", "/bin/zsh"];

/// A supervisor, and a client that has all the credit there is.
pub(super) struct Rig {
    pub(super) supervisor: Rc<Supervisor>,
    pub(super) grant: Grant,
    pub(super) connection: u64,
    jobs: Cell<u64>,
}

/// What came of a command.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
    pub(super) seal: Seal,
    pub(super) pid: u32,
    pub(super) note: Option<String>,
}

impl Done {
    /// The status, if it exited.
    pub(super) fn code(&self) -> Option<u8> {
        match self.seal.end {
            End::Exited { code } => Some(code),
            _ => None,
        }
    }

    pub(super) fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    pub(super) fn err(&self) -> &str {
        std::str::from_utf8(&self.stderr).unwrap()
    }
}

/// A command on its way.
pub(super) struct Running {
    pub(super) commands: UnboundedSender<ToJob>,
    pub(super) events: UnboundedReceiver<(ChannelId, FromJob)>,
}

impl Rig {
    pub(super) fn new(shell: &str) -> Self {
        Self::with(shell, SessionLimits::default())
    }

    pub(super) fn with(shell: &str, limits: SessionLimits) -> Self {
        let mut user = afar_sys::users::current_user().unwrap().unwrap();
        user.shell = shell.into();
        user.home = "/tmp".into();
        let grant = Grant::local("", user.uid);
        let sessions = Sessions::with_limits(limits);
        let supervisor = Supervisor { sessions, ..Supervisor::new(user, None, Log::default()) };
        let supervisor = Rc::new(supervisor);
        Self { supervisor, grant, connection: 1, jobs: Cell::default() }
    }

    /// A request for the session `s`.
    pub(super) fn spec(&self, script: impl AsRef<[u8]>) -> OpenSpec {
        self.jobs.set(self.jobs.get() + 1);
        let name = SessionName::new("s").unwrap();
        let job = JobId::new(&format!("j{}", self.jobs.get())).unwrap();
        OpenSpec {
            session: Some(SessionRef { name, scope: SessionScope::User }),
            kill_after_ms: Some(300),
            ..OpenSpec::new(job, Command::Script(script.as_ref().to_vec().into()))
        }
    }

    /// Queues a command.
    pub(super) fn start(&self, spec: &OpenSpec) -> Result<Running, Refused> {
        let request = prepare_in_session(spec, &self.grant, self.connection, 0)?.unwrap();
        let mut connection = Connection::new(Role::Client, Config::default(), Instant::ZERO);
        let channel = connection.open(spec).unwrap();
        let (events, told) = unbounded_channel();
        let (waiting, commands) =
            start_in_session(spec, request, channel, events, &self.supervisor)?;
        for stream in Stream::OUTPUTS {
            let all = Allowance { bytes: usize::MAX, pieces: usize::MAX };
            commands.send(ToJob::Allow(stream, all)).unwrap();
        }
        tokio::task::spawn_local(waiting.run());
        Ok(Running { commands, events: told })
    }

    /// Runs a script to its end.
    pub(super) async fn run(&self, script: impl AsRef<[u8]>) -> Done {
        self.run_spec(&self.spec(script), b"").await
    }

    /// Runs a request to its end, with this input.
    pub(super) async fn run_spec(&self, spec: &OpenSpec, stdin: &'static [u8]) -> Done {
        let running = self.start(spec).unwrap();
        running.commands.send(ToJob::Input(Bytes::from_static(stdin))).unwrap();
        running.commands.send(ToJob::InputEnd).unwrap();
        running.done().await.unwrap()
    }
}

impl Running {
    /// Waits for the end; `None` if it never started.
    pub(super) async fn done(mut self) -> Option<Done> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut seal, mut started) = (None, None);
        while let Some((_, event)) = self.events.recv().await {
            match event {
                FromJob::Started { pid, note, .. } => started = Some((pid, note)),
                FromJob::Output { stream: Stream::Stdout, bytes, .. } => stdout.extend(bytes),
                FromJob::Output { bytes, .. } => stderr.extend(bytes),
                FromJob::Sealed(sealed) => seal = Some(*sealed),
                FromJob::Gone => break,
                _ => {}
            }
        }
        let (pid, note) = started?;
        Some(Done { stdout, stderr, seal: seal?, pid, note })
    }

    /// Waits for the end of one that has started.
    pub(super) async fn done_quietly(self) -> Seal {
        self.done_quietly_or_none().await.expect("it has started")
    }

    /// Waits for the last word, whether it has started or not.
    pub(super) async fn done_quietly_or_none(mut self) -> Option<Seal> {
        let mut seal = None;
        while let Some((_, event)) = self.events.recv().await {
            match event {
                FromJob::Sealed(sealed) => seal = Some(*sealed),
                FromJob::Gone => break,
                _ => {}
            }
        }
        seal
    }

    /// Waits until it has written this to stdout.
    pub(super) async fn until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.events.recv().await.expect("it goes on").1 {
                FromJob::Output { bytes, .. } => seen += std::str::from_utf8(&bytes).unwrap(),
                FromJob::Sealed(seal) => panic!("ended: {seal:?}"),
                _ => {}
            }
        }
    }
}

/// Runs a test's future where the tasks of sessions can be.
pub(super) fn in_local_set<F: Future<Output = ()>>(future: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future);
}
