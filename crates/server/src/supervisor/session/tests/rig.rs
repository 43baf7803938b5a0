//! Runs commands in sessions as a conversation does.

use std::cell::Cell;
use std::rc::Rc;

use afar_core::job::{Allowance, AttachmentId, Cause, JobKey, Leave, Told};
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
use crate::supervisor::job::{FromJob, Opening, Route, Said, ToJob, describe, start_in_session};
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
    taken: [u64; 2],
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
        let key = JobKey { scope: String::new(), job: spec.job.clone() };
        let route = Route { id: OWNER, channel, to: events };
        let info = describe(&key, spec);
        let opening = Opening { spec, key: key.clone(), info, route, supervisor: &self.supervisor };
        let started = start_in_session(opening, request)?;
        self.supervisor.jobs.enter(key, spec.digest(), self.jobs.get(), started.commands.clone());
        let running = Running { commands: started.commands, events: told, taken: [0; 2] };
        for stream in Stream::OUTPUTS {
            running.say(Said::Allow(stream, Allowance::UNBOUNDED));
        }
        tokio::task::spawn_local(started.job.run());
        Ok(running)
    }

    /// Runs a script to its end.
    pub(super) async fn run(&self, script: impl AsRef<[u8]>) -> Done {
        self.run_spec(&self.spec(script), b"").await
    }

    /// Runs a request to its end, with this input.
    pub(super) async fn run_spec(&self, spec: &OpenSpec, stdin: &'static [u8]) -> Done {
        let running = self.start(spec).unwrap();
        running.say(Said::Input(Bytes::from_static(stdin)));
        running.say(Said::InputEnd);
        running.done().await.unwrap()
    }
}

const OWNER: AttachmentId = AttachmentId(1);

impl Running {
    pub(super) fn say(&self, said: Said) {
        self.commands.send(ToJob::From(OWNER, said)).unwrap();
    }

    /// Has it ended, as whoever may kill it does.
    pub(super) fn cancel(&self) {
        self.commands.send(ToJob::End(Cause::Cancelled)).unwrap();
    }

    /// What it is told next, acknowledged and confirmed as a client does; `None` once it has gone.
    pub(super) async fn next(&mut self) -> Option<FromJob> {
        let (_, event) = self.events.recv().await?;
        match &event {
            FromJob::Told(Told::Data { stream, bytes, .. }) => {
                let at = Stream::OUTPUTS.iter().position(|output| output == stream).unwrap();
                self.taken[at] += bytes.len() as u64;
                self.say(Said::Acked(*stream, self.taken[at]));
            }
            FromJob::Told(Told::Seal(_)) => self.say(Said::Leave(Leave::Closed)),
            FromJob::Gone => return None,
            _ => {}
        }
        Some(event)
    }

    /// Waits for the end; `None` if it never started.
    pub(super) async fn done(mut self) -> Option<Done> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (mut seal, mut started) = (None, None);
        while let Some(event) = self.next().await {
            match event {
                FromJob::Opened(opened) => started = Some((opened.pid, opened.note)),
                FromJob::Told(Told::Data { stream: Stream::Stdout, bytes, .. }) => {
                    stdout.extend(bytes);
                }
                FromJob::Told(Told::Data { bytes, .. }) => stderr.extend(bytes),
                FromJob::Told(Told::Seal(sealed)) => seal = Some(*sealed),
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
        while let Some(event) = self.next().await {
            if let FromJob::Told(Told::Seal(sealed)) = event {
                seal = Some(*sealed);
            }
        }
        seal
    }

    /// Waits until it has written this to stdout.
    pub(super) async fn until(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await.expect("it goes on") {
                FromJob::Told(Told::Data { bytes, .. }) => {
                    seen += std::str::from_utf8(&bytes).unwrap();
                }
                FromJob::Told(Told::Seal(seal)) => panic!("ended: {seal:?}"),
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
