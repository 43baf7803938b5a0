//! One running command: its events, its input, and the ways to steer it.

use std::sync::Arc;

use afar_proto::connection::Stream;
use afar_proto::message::{Attached, JobId, Opened, Resize};
use afar_proto::outcome::ExitReport;
use bytes::{Bytes, BytesMut};
use tokio::sync::Semaphore;

use crate::error::Error;
use crate::event_queue::{self, EventReceiver, EventSender};
use crate::limits::STDIN_QUEUED_BYTES_MAX;
use crate::outcome::Outcome;
use crate::session::{JobKey, Request, Requests};

/// Consumed bytes that are gathered before the session hears of them. Far below a quarter of the
/// window, which is when the server is told.
const CONSUMED_BYTES_GATHERED: usize = 64 * 1024;

/// What happens to a job, in the order in which it was learned.
#[derive(Debug)]
#[non_exhaustive]
pub enum JobEvent {
    /// The process was started.
    Started(Opened),
    /// The job was there already, started by an earlier request with its id, or to be attached to.
    Attached(Attached),
    /// The process wrote something. Every byte of a stream comes once and in order; the two streams
    /// come in the order in which the server read them.
    Output(Chunk),
    /// Bytes of an output stream that are not there any more: they were released or dropped before
    /// they could be told.
    Gap {
        /// The stream.
        stream: Stream,
        /// Offset of the first byte that is missing.
        from: u64,
        /// Offset of the next byte that will come.
        to: u64,
    },
    /// An output stream has ended.
    OutputEnd(Stream),
    /// The job takes no more of its stdin: it closed it, or has ended.
    StdinClosed,
    /// The process has ended. Output may still come.
    Exit(ExitReport),
    /// The link is lost. The job goes on, and so does this handle as soon as there is another link.
    Disconnected {
        /// How it was lost, in one line that may be shown.
        cause: String,
    },
    /// There is a link again.
    Reconnected,
    /// Everything has come that will: the last event.
    Finished(Box<Finished>),
    /// The job goes on without this handle, as was asked for: the last event.
    Detached,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// `Stdout` or `Stderr`.
    pub stream: Stream,
    /// Offset of the first byte in its stream.
    pub offset: u64,
    /// When the server read it, in microseconds since the job's start.
    pub clock_us: u64,
    /// The bytes; never empty.
    pub bytes: Bytes,
}

/// The end of a job.
#[derive(Debug)]
pub struct Finished {
    /// What became of it.
    pub outcome: Outcome,
    /// Why the outcome is not that of a command that ran and was seen to its end; `None` iff it is
    /// (whatever its status).
    pub error: Option<Error>,
}

/// All output of a command, and what became of it.
#[derive(Clone, Debug)]
pub struct Output {
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: Vec<u8>,
    /// What became of it.
    pub outcome: Outcome,
}

/// A command on its way, running, or ended.
///
/// Events wait here until [`Job::next`] takes them. The server may send ahead of that by a window
/// of 2 MiB a stream and no further, so a job whose events are not taken costs a bounded amount of
/// memory, however small the pieces are in which its output comes, and stalls no other.
///
/// **Dropping a job that has not finished cancels it**: the server ends the process and everything
/// it has started. Whoever is not interested in the output takes it all the same, or stops it with
/// [`Job::stop`]; whoever wants it to go on alone leaves it with [`Job::detach`]. A job that is only
/// watched is not cancelled.
#[derive(Debug)]
pub struct Job {
    key: JobKey,
    id: JobId,
    events: EventReceiver,
    requests: Requests,
    stdin: Option<Stdin>,
    /// Bytes of stdout and stderr that the caller was given and the session was not told of.
    consumed: [usize; 2],
    finished: bool,
}

/// The session's side of a job's wires.
#[derive(Debug)]
pub(crate) struct JobWires {
    pub(crate) events: EventSender,
    pub(crate) stdin_room: Arc<Semaphore>,
}

impl Job {
    /// A job and the session's end of it.
    pub(crate) fn new(key: JobKey, id: JobId, stdin: bool, requests: Requests) -> (Self, JobWires) {
        let (sender, events) = event_queue::channel();
        let stdin_room = Arc::new(Semaphore::new(STDIN_QUEUED_BYTES_MAX));
        let wires = JobWires { events: sender, stdin_room: Arc::clone(&stdin_room) };
        let stdin =
            stdin.then(|| Stdin { key, requests: requests.clone(), room: stdin_room, open: true });
        let job = Self { key, id, events, requests, stdin, consumed: [0; 2], finished: false };
        (job, wires)
    }

    /// The job's id, as far as it was given: of one that was attached to by the beginning of its id,
    /// [`JobEvent::Attached`] has the whole.
    #[must_use]
    pub fn id(&self) -> &JobId {
        &self.id
    }

    /// The next event; `None` after [`JobEvent::Finished`] or [`JobEvent::Detached`].
    ///
    /// The bytes of a [`JobEvent::Output`] count as consumed when the *next* event is asked for;
    /// only then may the server send as many more. Cancellation safe: no event is lost.
    pub async fn next(&mut self) -> Option<JobEvent> {
        if self.finished {
            return None;
        }
        self.report_consumed();
        let event = self.events.recv().await;
        match &event {
            Some(JobEvent::Output(chunk)) => {
                if let Some(consumed) = self.consumed.get_mut(slot(chunk.stream)) {
                    *consumed += chunk.bytes.len();
                }
            }
            Some(JobEvent::Finished(_) | JobEvent::Detached) | None => self.finished = true,
            Some(_) => {}
        }
        event
    }

    /// The job's stdin, once: `None` if it was taken or the command was made without
    /// [`crate::Command::stdin`]. Dropping it ends the input.
    pub fn take_stdin(&mut self) -> Option<Stdin> {
        self.stdin.take()
    }

    /// Sends a signal, by its name without `SIG`, once to the job's process group. Before the job
    /// has started, and while there is no link, it is kept until then, each name once, like a
    /// signal that is pending (signal(7)); after the job's end it does nothing.
    pub fn signal(&self, name: &str) {
        self.requests.send(Request::Signal { job: self.key, name: name.to_owned() });
    }

    /// Tells the job's terminal another size. Before the job has started the last one is kept until
    /// then, and while there is no link until there is one; a job without a terminal has none.
    pub fn resize(&self, size: Resize) {
        self.requests.send(Request::Resize { job: self.key, size });
    }

    /// Wants no more of an output stream. It is closed at its source: the command meets a closed
    /// pipe there, as it would here. The other stream and the end still come.
    pub fn stop(&self, stream: Stream) {
        self.requests.send(Request::Stop { job: self.key, stream });
    }

    /// Leaves the job, which goes on: [`JobEvent::Detached`] is the last event then. What it writes is
    /// kept for whoever attaches to it.
    pub fn detach(&self) {
        self.requests.send(Request::Detach { job: self.key });
    }

    /// Gives the job up: the server ends the process (TERM, then KILL) and everything it has
    /// started, and nothing more is heard of it. The same as dropping it.
    pub fn cancel(self) {}

    /// Everything the command writes, at most `bytes_max` of both streams together, and its outcome.
    ///
    /// Dropping the future cancels the job.
    ///
    /// # Errors
    /// The job came to no regular end (see [`Finished::error`]), or wrote more than `bytes_max`;
    /// it is cancelled then. A status other than 0 is no error.
    pub async fn output(mut self, bytes_max: usize) -> Result<Output, Error> {
        drop(self.take_stdin());
        let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
        while let Some(event) = self.next().await {
            match event {
                JobEvent::Output(chunk) => {
                    let room = bytes_max.saturating_sub(stdout.len() + stderr.len());
                    if chunk.bytes.len() > room {
                        return Err(Error::OutputTooLong { bytes_max });
                    }
                    let buffer =
                        if chunk.stream == Stream::Stdout { &mut stdout } else { &mut stderr };
                    buffer.extend_from_slice(&chunk.bytes);
                }
                JobEvent::Finished(finished) => {
                    if let Some(error) = finished.error {
                        return Err(error);
                    }
                    let (stdout, stderr) = (stdout.into(), stderr.into());
                    return Ok(Output { stdout, stderr, outcome: finished.outcome });
                }
                _ => {}
            }
        }
        Err(Error::SessionEnded)
    }

    /// Waits for the end and lets all output pass by.
    ///
    /// Dropping the future cancels the job.
    pub async fn wait(mut self) -> Option<Finished> {
        while let Some(event) = self.next().await {
            if let JobEvent::Finished(finished) = event {
                return Some(*finished);
            }
        }
        None
    }

    fn report_consumed(&mut self) {
        for stream in Stream::OUTPUTS {
            let Some(consumed) = self.consumed.get_mut(slot(stream)) else { continue };
            if *consumed >= CONSUMED_BYTES_GATHERED {
                let bytes = std::mem::take(consumed);
                self.requests.send(Request::Consumed { job: self.key, stream, bytes });
            }
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.finished {
            self.requests.send(Request::Close { job: self.key });
        }
    }
}

fn slot(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// The job takes no more input: it has ended, or closed its stdin. For many commands that is no
/// fault (`head` does it).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the command takes no more input")]
pub struct StdinClosed;

/// Where a job's input is written. Dropping it ends the input.
#[derive(Debug)]
pub struct Stdin {
    key: JobKey,
    requests: Requests,
    room: Arc<Semaphore>,
    open: bool,
}

impl Stdin {
    /// Writes all of `bytes`, as fast as the command takes them: waits while half a MiB waits
    /// already.
    ///
    /// What a dropped future has written and what not can't be told: drop the [`Stdin`] too.
    ///
    /// # Errors
    /// [`StdinClosed`]; a part may have been written.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<(), StdinClosed> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(afar_proto::limits::DATA_BYTES_SENT_MAX));
            let permits = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            let room = self.room.acquire_many(permits).await.map_err(|_| StdinClosed)?;
            // The session gives the room back when the connection has taken the piece.
            room.forget();
            self.requests.send(Request::Stdin { job: self.key, bytes: piece });
        }
        Ok(())
    }

    /// Ends the input behind what was written.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if self.open {
            self.open = false;
            self.requests.send(Request::StdinEnd { job: self.key });
        }
    }
}

impl Drop for Stdin {
    fn drop(&mut self) {
        self.end();
    }
}
