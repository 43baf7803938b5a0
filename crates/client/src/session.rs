//! A live connection on which many commands run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use afar_net::driver::Driver;
use afar_net::transport::AnyTransport;
use afar_proto::ChannelId;
use afar_proto::connection::Stream;
use afar_proto::message::{
    Answer, Attach, JobId, JobInfo, JobPage, JobQuery, JobState as ListedState, KillQuery,
    ListQuery, OpenSpec, Query, Resize,
};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::attachment::{Attachment, JobRef};
use crate::command::Command;
use crate::dispatcher::{Dispatcher, JobState, Reconnector};
use crate::error::Error;
use crate::job::{Job, JobWires};

/// A job on its session; channels are numbered only once they are open.
pub(crate) type JobKey = u64;

/// Who waits for the answer to a question.
pub(crate) type Reply = oneshot::Sender<Result<Box<Answer>, Error>>;

/// What a handle asks of the task that owns the connection.
pub(crate) enum Request {
    Open {
        job: JobKey,
        spec: Box<OpenSpec>,
        wires: JobWires,
    },
    Attach {
        job: JobKey,
        attach: Box<Attach>,
        wires: JobWires,
    },
    Query {
        query: Box<Query>,
        reply: Reply,
    },
    Consumed {
        job: JobKey,
        stream: Stream,
        bytes: usize,
    },
    Stdin {
        job: JobKey,
        bytes: Bytes,
    },
    StdinEnd {
        job: JobKey,
    },
    Signal {
        job: JobKey,
        name: String,
    },
    Resize {
        job: JobKey,
        size: Resize,
    },
    Stop {
        job: JobKey,
        stream: Stream,
    },
    Close {
        job: JobKey,
    },
    Detach {
        job: JobKey,
    },
    /// Ends the session with a goodbye, which cancels what still runs.
    Goodbye,
}

/// The way to that task. The queue has no bound of its own and needs none: stdin is bounded by the
/// job's room, consumption by the windows, and the rest is a few bytes for each call of the user's.
#[derive(Clone, Debug)]
pub(crate) struct Requests(mpsc::UnboundedSender<Request>);

impl Requests {
    /// To a session that has ended there is nothing to be said: its jobs have been told.
    pub(crate) fn send(&self, request: Request) {
        let _ = self.0.send(request);
    }
}

/// A live connection to a target; many commands run on it at once, each as a [`Job`].
///
/// One task owns the connection and keeps it alive. One that is lost is made again, for as long as
/// [`ClientBuilder::reconnect_for`](crate::ClientBuilder::reconnect_for) says, and every job goes on
/// exactly where it was. It ends in order (with a goodbye) once the session and all its jobs are
/// dropped; [`Session::close`] also waits for that.
#[derive(Debug)]
pub struct Session {
    requests: Requests,
    next_key: Arc<AtomicU64>,
    task: JoinHandle<()>,
    target: Arc<str>,
}

/// A job whose channel was opened before the connection was driven.
pub(crate) struct Pipelined {
    pub(crate) channel: ChannelId,
    pub(crate) spec: OpenSpec,
    pub(crate) sent_at: Instant,
}

impl Session {
    /// Sets the task up that drives this connection, which already has the pipelined job's channel.
    pub(crate) fn spawn(
        driver: Driver<AnyTransport>,
        target: &str,
        pipelined: Option<Pipelined>,
        reconnector: Option<Reconnector>,
    ) -> (Self, Option<Job>) {
        let (requests, receiver) = requests();
        let target: Arc<str> = target.into();
        let mut dispatcher = Dispatcher::new(driver, receiver, Arc::clone(&target), reconnector);
        let job = pipelined.map(|Pipelined { channel, spec, sent_at }| {
            let (job, wires) = Job::new(0, spec.job.clone(), spec.stdin, requests.clone());
            let state = JobState::opened_already(spec, sent_at, wires);
            dispatcher.adopt(0, Some(channel), state);
            job
        });
        (Self::over(dispatcher, requests, target), job)
    }

    /// The same, for a connection that was lost when the job's request may have left already: what
    /// became of it is found out on the next one.
    pub(crate) fn spawn_lost(
        target: &str,
        (spec, sent_at): (OpenSpec, Instant),
        reconnector: Reconnector,
        error: &Error,
    ) -> (Self, Job) {
        let (requests, receiver) = requests();
        let target: Arc<str> = target.into();
        let mut dispatcher = Dispatcher::lost(receiver, Arc::clone(&target), reconnector, error);
        let (job, wires) = Job::new(0, spec.job.clone(), spec.stdin, requests.clone());
        dispatcher.adopt(0, None, JobState::opened_already(spec, sent_at, wires));
        (Self::over(dispatcher, requests, target), job)
    }

    fn over(dispatcher: Dispatcher, requests: Requests, target: Arc<str>) -> Self {
        let task = tokio::spawn(dispatcher.run());
        Self { requests, next_key: Arc::new(AtomicU64::new(1)), task, target }
    }

    /// The target as it was asked for.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Starts a command. What becomes of it, a refusal too, is told by the job's events.
    ///
    /// # Errors
    /// [`Error::Command`] if it can't even be asked for.
    pub fn start(&self, command: Command) -> Result<Job, Error> {
        let spec = Box::new(command.into_spec()?);
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let id: JobId = spec.job.clone();
        let (job, wires) = Job::new(key, id, spec.stdin, self.requests.clone());
        let open = Request::Open { job: key, spec, wires };
        if let Err(mpsc::error::SendError(Request::Open { spec, wires, .. })) =
            self.requests.0.send(open)
        {
            JobState::opening(*spec, wires).fail_unsent(&self.target);
        }
        Ok(job)
    }

    /// Goes on with a job that exists: what it writes, and what becomes of it, is told by the events
    /// of the returned handle, as for a command that was started here.
    #[must_use]
    pub fn attach(&self, attachment: Attachment) -> Job {
        let stdin = attachment.has_stdin();
        let attach = Box::new(attachment.into_attach());
        let key = self.next_key.fetch_add(1, Ordering::Relaxed);
        let (job, wires) = Job::new(key, attach.job.clone(), stdin, self.requests.clone());
        let request = Request::Attach { job: key, attach, wires };
        if let Err(mpsc::error::SendError(Request::Attach { attach, wires, .. })) =
            self.requests.0.send(request)
        {
            JobState::attaching(*attach, wires).fail_unsent(&self.target);
        }
        job
    }

    /// A page of the jobs there are, the newest first: those in one of `states`, or all. `after` is
    /// what the page before has said.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn list(
        &self,
        states: Option<&[ListedState]>,
        after: Option<String>,
        limit: Option<u32>,
    ) -> Result<JobPage, Error> {
        let states = states.map(<[ListedState]>::to_vec);
        let list = ListQuery { states, job: None, after, limit };
        match *self.query(Query::List(list)).await? {
            Answer::Page(page) => Ok(page),
            Answer::Done { .. } => Err(Error::answer_to_another_question()),
        }
    }

    /// What there is to be known of one job; `None` if there is none of this id, or none that begins
    /// so.
    ///
    /// # Errors
    /// See [`Error`]; [`Error::Ambiguous`] if several begin so.
    pub async fn job_info(&self, job: &JobRef) -> Result<Option<JobInfo>, Error> {
        let list = ListQuery { job: Some(job.id().clone()), ..ListQuery::default() };
        let page = match *self.query(Query::List(list)).await? {
            Answer::Page(page) => page,
            Answer::Done { .. } => return Err(Error::answer_to_another_question()),
        };
        let mut jobs = page.jobs;
        if let Some(exact) = jobs.iter().position(|info| info.job == *job.id()) {
            return Ok(Some(jobs.swap_remove(exact)));
        }
        if jobs.len() > 1 || page.next.is_some() {
            return Err(Error::Ambiguous { job: job.id().to_string() });
        }
        Ok(jobs.pop().filter(|_| job.may_be_prefix()))
    }

    /// Ends a job and everything that it has started (TERM, the grace, KILL); with the name of a
    /// signal, without `SIG`, only sends that to its process group. Returns the job's whole id as
    /// soon as it is under way.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn kill(&self, job: &JobRef, signal: Option<&str>) -> Result<JobId, Error> {
        let (job, prefix) = job.to_parts();
        let signal = signal.map(ToOwned::to_owned);
        self.done(Query::Kill(KillQuery { job, prefix, signal })).await
    }

    /// Forgets a job that has ended, and what is kept of its output. Returns its whole id.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn remove(&self, job: &JobRef) -> Result<JobId, Error> {
        let (job, prefix) = job.to_parts();
        self.done(Query::Remove(JobQuery { job, prefix })).await
    }

    async fn done(&self, query: Query) -> Result<JobId, Error> {
        match *self.query(query).await? {
            Answer::Done { job } => Ok(job),
            Answer::Page(_) => Err(Error::answer_to_another_question()),
        }
    }

    async fn query(&self, query: Query) -> Result<Box<Answer>, Error> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Query { query: Box::new(query), reply });
        answer.await.unwrap_or(Err(Error::SessionEnded))
    }

    /// Ends the session: commands that still run are cancelled. Returns when the goodbye has left,
    /// at the latest after a second.
    ///
    /// Dropping the future ends the session all the same.
    pub async fn close(self) {
        self.requests.send(Request::Goodbye);
        // The task ends by itself, and by a panic only if the dispatcher has a fault; its jobs
        // have seen their end by then.
        let _ = self.task.await;
    }
}

fn requests() -> (Requests, mpsc::UnboundedReceiver<Request>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (Requests(sender), receiver)
}
