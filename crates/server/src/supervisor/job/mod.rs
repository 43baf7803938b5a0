//! One job: a task that owns the child, its pipes and its clock, and tells a conversation what
//! happens.

mod ending;
mod input;
mod output;
mod process;
mod start;
mod waiting;

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll};
use std::time::Duration;

use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::Refused;
use afar_proto::outcome::{End, ExitReport, Receipt, Seal};
use afar_sys::child::ExitStatus;
use afar_sys::signals::Signal;
use bytes::Bytes;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::Instant;

use super::Stay;
use ending::{Cause, Ending};
use input::{Input, Taken};
use output::{Output, Piece};
use process::{Process, ProcessEnd};

pub(super) use start::start;
pub(super) use waiting::start_in_session;

/// Silence after which output that others still hold open counts as over (`W-7.5`).
pub const DRAIN_SILENCE: Duration = Duration::from_millis(250);

/// Time after which it counts as over even if it is not silent (`W-7.5`).
pub const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How much of a stream may be read: bytes, and pieces, because a million single bytes take far
/// more memory on their way than their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowance {
    pub(super) bytes: usize,
    pub(super) pieces: usize,
}

impl Allowance {
    const UNBOUNDED: Self = Self { bytes: usize::MAX, pieces: usize::MAX };

    pub(super) fn add(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.pieces = self.pieces.saturating_add(more.pieces);
    }

    /// Takes one piece of so many bytes off.
    pub(super) fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.pieces = self.pieces.saturating_sub(1);
    }
}

/// What a conversation tells a job.
#[derive(Debug)]
pub(super) enum ToJob {
    /// Bytes for its stdin; bounded by the credit that was granted.
    Input(Bytes),
    /// The end of its stdin.
    InputEnd,
    /// So much more of a stream may be read.
    Allow(Stream, Allowance),
    /// Nobody wants more of a stream.
    Stop(Stream),
    /// A signal for its process group.
    Signal(Signal),
    /// The client is gone, or wants no more of it.
    Cancel,
}

/// What a job tells its conversation.
#[derive(Debug)]
pub(super) enum FromJob {
    /// A job that had to wait for its turn in a session was given to the session's shell.
    Started {
        pid: u32,
        started_at_us: u64,
        note: Option<String>,
    },
    /// A job that had to wait for its turn will not be started.
    Refused(Box<Refused>),
    Output {
        stream: Stream,
        clock_us: u64,
        bytes: Bytes,
    },
    OutputEnd(Stream),
    /// Its pipe took so many bytes of stdin.
    InputTaken(usize),
    /// It reads no more stdin.
    InputClosed,
    Exited(ExitReport),
    /// The last word for the client.
    Sealed(Box<Seal>),
    /// Nothing of it is left to be cleaned up.
    Gone,
}

/// The task's state. One task owns it and linearizes everything that happens to the job.
#[derive(Debug)]
pub(super) struct Job {
    channel: ChannelId,
    process: Process,
    outputs: [Output; 2],
    input: Input,
    started: Instant,
    ending: Ending,
    exit: Option<Exit>,
    sealed: bool,
    commands: UnboundedReceiver<ToJob>,
    /// Whether the conversation may still say something.
    heard: bool,
    /// Whether somebody still wants the output; if not, it is read and dropped.
    wanted: bool,
    events: UnboundedSender<(ChannelId, FromJob)>,
    timer: std::pin::Pin<Box<tokio::time::Sleep>>,
    /// Keeps the supervisor from ending for idleness.
    stay: Stay,
}

/// The process has ended.
#[derive(Debug)]
struct Exit {
    end: End,
    receipt: Receipt,
    session_restarted: bool,
    /// When output that others hold open counts as silent; moves with each piece.
    silent_at: Instant,
    /// When it counts as over in any case.
    over_at: Instant,
}

impl Job {
    /// Runs until the job has ended, its output is sealed, and nothing of its tree is left that was
    /// to be ended.
    ///
    /// Boxed, because a future holds what it is given twice over: once as it came, once as it runs.
    pub(super) async fn run(mut self: Box<Self>) {
        poll_fn(|context| self.poll(context)).await;
        self.tell(FromJob::Gone);
        self.hand_over_open_pipes();
    }

    /// It runs, and can't be watched: it must not go on unseen.
    fn give_up(&mut self) {
        self.ending.begin_at_once(Cause::Lost);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut progress = self.poll_commands(context);
            progress |= self.poll_outputs(context);
            progress |= self.poll_input(context);
            progress |= self.poll_exit(context);
            let now = Instant::now();
            progress |= self.ending.poll(context, now, self.exit.is_some());
            self.seal_if_over(now);
            if self.sealed && self.ending.is_over() {
                return Poll::Ready(());
            }
            if !progress && self.poll_timer(context, now).is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_commands(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        while self.heard {
            let Poll::Ready(command) = self.commands.poll_recv(context) else { break };
            progress = true;
            match command {
                Some(command) => self.obey(command),
                None => {
                    self.heard = false;
                    self.obey(ToJob::Cancel);
                }
            }
        }
        progress
    }

    fn obey(&mut self, command: ToJob) {
        match command {
            ToJob::Input(bytes) => self.input.push(bytes),
            ToJob::InputEnd => self.input.end(),
            ToJob::Allow(stream, more) => {
                if let Some(output) = self.output(stream) {
                    output.allow(more);
                }
            }
            ToJob::Stop(stream) => {
                if let Some(output) = self.output(stream).filter(|output| output.is_open()) {
                    output.close();
                    self.tell(FromJob::OutputEnd(stream));
                }
            }
            ToJob::Signal(signal) => {
                // A process that has ended in this moment is no error of whoever signals it.
                self.process.signal(signal);
            }
            ToJob::Cancel => {
                self.wanted = false;
                self.input.close();
                for output in &mut self.outputs {
                    // Read on, for nobody: a job that handles TERM may have things to say on its
                    // way out, and must not hang in a full pipe instead.
                    output.allow(Allowance::UNBOUNDED);
                }
                if self.exit.is_none() {
                    self.ending.begin(Cause::Cancelled);
                }
            }
        }
    }

    fn output(&mut self, stream: Stream) -> Option<&mut Output> {
        self.outputs.iter_mut().find(|output| output.stream() == stream)
    }

    fn poll_outputs(&mut self, context: &mut Context<'_>) -> bool {
        let mut progress = false;
        for index in 0..self.outputs.len() {
            let Some(output) = self.outputs.get_mut(index) else { continue };
            let Poll::Ready(piece) = output.poll_read(context) else { continue };
            progress = true;
            let stream = output.stream();
            match piece {
                Piece::Bytes(bytes) => {
                    let clock_us = micros(self.started.elapsed());
                    if let Some(exit) = &mut self.exit {
                        exit.silent_at = Instant::now() + DRAIN_SILENCE;
                    }
                    if self.wanted {
                        self.tell(FromJob::Output { stream, clock_us, bytes });
                    }
                }
                Piece::End => self.tell(FromJob::OutputEnd(stream)),
            }
        }
        progress
    }

    fn poll_input(&mut self, context: &mut Context<'_>) -> bool {
        let Poll::Ready(taken) = self.input.poll_write(context) else { return false };
        self.tell(match taken {
            Taken::Bytes(count) => FromJob::InputTaken(count),
            Taken::Closed => FromJob::InputClosed,
        });
        true
    }

    fn poll_exit(&mut self, context: &mut Context<'_>) -> bool {
        if self.exit.is_some() {
            return false;
        }
        let Poll::Ready(ended) = self.process.poll_ended(context) else { return false };
        self.exited(ended);
        true
    }

    fn exited(&mut self, ended: ProcessEnd) {
        let now = Instant::now();
        let end = match self.ending.cause() {
            Some(Cause::Timeout) => End::Timeout,
            Some(Cause::Cancelled) => End::Cancelled,
            Some(Cause::Lost) => End::Lost,
            None => ended.end,
        };
        self.ending.process_ended(&self.process);
        let receipt = Receipt {
            wall_us: micros(now - self.started),
            user_us: micros(ended.user),
            sys_us: micros(ended.system),
            max_rss_bytes: ended.max_rss_bytes,
            read_bytes: ended.io.map(|io| io.read_bytes),
            written_bytes: ended.io.map(|io| io.written_bytes),
        };
        for output in &mut self.outputs {
            output.process_ended();
        }
        // Nobody is left to read it, unless a child inherited it; then the pipe stays open in the
        // child, and what was sent so far is there.
        self.input.end();
        self.tell(FromJob::Exited(ExitReport { end: end.clone(), receipt }));
        let (silent_at, over_at) = (now + DRAIN_SILENCE, now + DRAIN_MAX);
        let session_restarted = ended.session_restarted;
        self.exit = Some(Exit { end, receipt, session_restarted, silent_at, over_at });
    }

    /// Whether nothing more is to be expected of a stream, or waited for (`W-7.5`).
    fn is_drained(output: &Output, exit: &Exit, now: Instant) -> bool {
        if !output.is_open() {
            return true;
        }
        let silent = !output.is_held_back() && now >= exit.silent_at;
        output.owes_nothing() && (silent || now >= exit.over_at)
    }

    fn seal_if_over(&mut self, now: Instant) {
        let Some(exit) = self.exit.as_ref().filter(|_| !self.sealed) else { return };
        if !self.outputs.iter().all(|output| Self::is_drained(output, exit, now)) {
            return;
        }
        let left_open: Vec<Stream> =
            self.outputs.iter().filter(|output| output.is_open()).map(Output::stream).collect();
        let streams: BTreeMap<String, _> = self
            .outputs
            .iter()
            .map(|output| (output.stream().name().to_owned(), output.seal()))
            .collect();
        let seal = Seal {
            end: exit.end.clone(),
            receipt: exit.receipt,
            streams,
            streams_left_open: !left_open.is_empty(),
            session_restarted: exit.session_restarted,
            detail: None,
        };
        self.sealed = true;
        for stream in left_open {
            self.tell(FromJob::OutputEnd(stream));
        }
        self.tell(FromJob::Sealed(Box::new(seal)));
    }

    /// Waits for the next moment at which something is due.
    fn poll_timer(&mut self, context: &mut Context<'_>, now: Instant) -> Poll<()> {
        let drain = self.exit.as_ref().filter(|_| !self.sealed).map(|exit| {
            if now < exit.silent_at { exit.silent_at.min(exit.over_at) } else { exit.over_at }
        });
        let drain = drain.filter(|at| *at > now);
        let look = self.process.look_interval().filter(|_| self.exit.is_none());
        let look = look.map(|interval| now + interval);
        let ending = self.ending.due(self.exit.is_some());
        let Some(due) = [drain, ending, look].into_iter().flatten().min() else {
            return Poll::Pending;
        };
        if self.timer.deadline() != due {
            self.timer.as_mut().reset(due);
        }
        self.timer.as_mut().poll(context)
    }

    /// A conversation that is gone has nobody to tell.
    fn tell(&self, event: FromJob) {
        let _ = self.events.send((self.channel, event));
    }

    /// What others hold open is read and dropped for as long as they do, so that a daemon that a
    /// job left behind never blocks on a full pipe and never meets a closed one.
    fn hand_over_open_pipes(&mut self) {
        for output in &mut self.outputs {
            if let Some(pipe) = output.take_pipe() {
                tokio::task::spawn_local(drain_for_nobody(pipe, self.stay.clone()));
            }
        }
    }
}

async fn drain_for_nobody(pipe: AsyncFd<OwnedFd>, _stay: Stay) {
    while let Ok(mut guard) = pipe.readable().await {
        // On the stack only while something is there to be read, and not in the task meanwhile.
        let read = guard.try_io(|pipe| Ok(rustix::io::read(pipe.get_ref(), &mut [0; 4096])?));
        if matches!(read, Ok(Ok(0) | Err(_))) {
            return;
        }
    }
}

/// The end of a process as the kernel tells it.
pub(super) fn end_of(status: &ExitStatus) -> End {
    match *status {
        ExitStatus::Exited { code } => End::Exited { code },
        ExitStatus::Signaled { signal, core } => End::Signaled {
            signal: u8::try_from(signal.number()).unwrap_or(u8::MAX),
            name: format!("SIG{}", signal.name()),
            core,
        },
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests;
