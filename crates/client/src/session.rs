//! A live connection on which many commands run at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use afar_net::driver::Driver;
use afar_net::transport::AnyTransport;
use afar_proto::ChannelId;
use afar_proto::connection::Stream;
use afar_proto::message::{JobId, OpenSpec};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::command::Command;
use crate::dispatcher::{Dispatcher, JobState};
use crate::error::Error;
use crate::job::{Job, JobWires};

/// A job on its session; channels are numbered only once they are open.
pub(crate) type JobKey = u64;

/// What a handle asks of the task that owns the connection.
pub(crate) enum Request {
    Open {
        job: JobKey,
        spec: Box<OpenSpec>,
        wires: JobWires,
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
    Stop {
        job: JobKey,
        stream: Stream,
    },
    Close {
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
/// One task owns the connection and keeps it alive. It ends in order (with a goodbye) once the
/// session and all its jobs are dropped; [`Session::close`] also waits for that.
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
}

impl Session {
    /// Sets the task up that drives this connection, which already has the pipelined job's channel.
    pub(crate) fn spawn(
        driver: Driver<AnyTransport>,
        target: &str,
        pipelined: Option<Pipelined>,
    ) -> (Self, Option<Job>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let requests = Requests(sender);
        let target: Arc<str> = target.into();
        let mut dispatcher = Dispatcher::new(driver, receiver, Arc::clone(&target));
        let job = pipelined.map(|Pipelined { channel, spec }| {
            let (job, wires) = Job::new(0, spec.job.clone(), spec.stdin, requests.clone());
            dispatcher.adopt(0, channel, JobState::new(&spec, wires));
            job
        });
        let task = tokio::spawn(dispatcher.run());
        let next_key = Arc::new(AtomicU64::new(1));
        (Self { requests, next_key, task, target }, job)
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
            JobState::new(&spec, wires).fail_unsent(&self.target);
        }
        Ok(job)
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
