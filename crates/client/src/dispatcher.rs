//! The one task that owns a connection and linearizes everything that happens on it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use afar_net::driver::Driver;
use afar_net::transport::AnyTransport;
use afar_proto::connection::{Event, OpenError, Stream, Verdict};
use afar_proto::error::ConnectionError;
use afar_proto::message::{FEATURE_SESSION, GoodbyeCode, JobId, OpenSpec, Opened, Refused};
use afar_proto::outcome::{End, ExitReport, Phase, RefusalReason, Seal, Started};
use afar_proto::{Channel, ChannelId};
use bytes::Bytes;
use tokio::sync::mpsc;

use crate::error::Error;
use crate::job::{Chunk, Finished, JobEvent, JobWires};
use crate::outcome::Outcome;
use crate::session::{JobKey, Request};

/// Requests that are handled before the connection has its turn, so that what they cause leaves in
/// one write.
const REQUESTS_BATCHED: usize = 64;

/// The owner of a connection.
pub(crate) struct Dispatcher {
    driver: Driver<AnyTransport>,
    requests: mpsc::UnboundedReceiver<Request>,
    jobs: Jobs,
}

/// The jobs that have not finished.
struct Jobs {
    target: Arc<str>,
    states: BTreeMap<JobKey, (ChannelId, JobState)>,
    keys: BTreeMap<ChannelId, JobKey>,
    /// Whether the supervisor has said anything: before that no request can have reached one that
    /// lives.
    ready: bool,
    /// Whether it has said that it has sessions.
    has_sessions: bool,
}

/// What is known of a job.
pub(crate) struct JobState {
    id: JobId,
    in_session: bool,
    wires: JobWires,
    stdin: VecDeque<Bytes>,
    stdin_ended: bool,
    /// `Some` iff the server said that the process was started.
    opened: Option<Opened>,
    /// `Some` iff the server said that the process has ended.
    exit: Option<ExitReport>,
    /// Signals that wait for the start.
    signals: Vec<String>,
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    End,
}

impl Dispatcher {
    pub(crate) fn new(
        driver: Driver<AnyTransport>,
        requests: mpsc::UnboundedReceiver<Request>,
        target: Arc<str>,
    ) -> Self {
        let jobs = Jobs {
            target,
            states: BTreeMap::new(),
            keys: BTreeMap::new(),
            ready: false,
            has_sessions: false,
        };
        Self { driver, requests, jobs }
    }

    /// Takes charge of a job whose channel is open already.
    pub(crate) fn adopt(&mut self, key: JobKey, channel: ChannelId, state: JobState) {
        self.jobs.insert(key, channel, state);
    }

    /// Runs until the connection has ended or nobody holds a handle to it any more.
    pub(crate) async fn run(mut self) {
        loop {
            let Self { driver, requests, .. } = &mut self;
            let flow = tokio::select! {
                event = driver.next() => self.handle_event(event),
                request = requests.recv() => self.handle_requests(request),
            };
            if flow == Flow::End {
                break;
            }
        }
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            if let Request::Open { spec, wires, .. } = request {
                JobState::new(&spec, wires).fail_unsent(&self.jobs.target);
            }
        }
        self.driver.finish().await;
    }

    fn handle_requests(&mut self, first: Option<Request>) -> Flow {
        let mut next = first;
        for handled in 1.. {
            match next {
                // Every handle is gone.
                None | Some(Request::Goodbye) => {
                    self.driver.connection().close(GoodbyeCode::Done, "");
                    self.jobs.fail_all(&ConnectionError::LocallyClosed);
                    return Flow::End;
                }
                Some(request) => self.handle_request(request),
            }
            // Before another one is taken out of the queue: what is taken has to be handled.
            if handled == REQUESTS_BATCHED {
                break;
            }
            match self.requests.try_recv() {
                Ok(request) => next = Some(request),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => next = None,
            }
        }
        Flow::Continue
    }

    fn handle_request(&mut self, request: Request) {
        match request {
            Request::Open { job, spec, wires } => self.open(job, &spec, wires),
            Request::Consumed { job, stream, bytes } => {
                self.with_channel(job, |channel, _| channel.consume(stream, bytes));
            }
            Request::Stdin { job, bytes } => self.with_channel(job, |channel, state| {
                state.stdin.push_back(bytes);
                state.pump_stdin(channel);
            }),
            Request::StdinEnd { job } => self.with_channel(job, |channel, state| {
                state.stdin_ended = true;
                state.pump_stdin(channel);
            }),
            Request::Signal { job, name } => self.with_channel(job, |channel, state| {
                // A server has nothing to signal before the start.
                if state.opened.is_some() {
                    channel.signal(&name);
                } else {
                    state.signals.push(name);
                }
            }),
            Request::Stop { job, stream } => {
                self.with_channel(job, |channel, _| channel.stop(stream));
            }
            Request::Close { job } => {
                if let Some((channel, _)) = self.jobs.remove(job)
                    && let Some(channel) = self.driver.connection().channel(channel)
                {
                    channel.close();
                }
            }
            Request::Goodbye => {}
        }
    }

    fn open(&mut self, key: JobKey, spec: &OpenSpec, wires: JobWires) {
        let state = JobState::new(spec, wires);
        match self.driver.connection().open(spec) {
            Ok(channel) => self.jobs.insert(key, channel, state),
            Err(error) => state.fail_open(&self.jobs.target, error),
        }
    }

    fn with_channel(&mut self, key: JobKey, act: impl FnOnce(&mut Channel<'_>, &mut JobState)) {
        if let Some((id, state)) = self.jobs.states.get_mut(&key)
            && let Some(mut channel) = self.driver.connection().channel(*id)
        {
            act(&mut channel, state);
        }
    }

    /// An event may be about a channel that is closed by now: what arrived with it in one read has
    /// been handled before it was told. So there may be no channel to act on, and the event counts
    /// all the same.
    fn with_job(&mut self, id: ChannelId, act: impl FnOnce(Option<Channel<'_>>, &mut JobState)) {
        if let Some(key) = self.jobs.keys.get(&id)
            && let Some((_, state)) = self.jobs.states.get_mut(key)
        {
            act(self.driver.connection().channel(id), state);
        }
    }

    fn handle_event(&mut self, event: Event) -> Flow {
        match event {
            Event::Ready(hello) => {
                self.jobs.ready = true;
                self.jobs.has_sessions = hello.features.iter().any(|name| name == FEATURE_SESSION);
            }
            Event::Opened { channel, opened } => self.handle_opened(channel, opened),
            Event::Refused { channel, mut refused } => {
                // Such a server has found no command in the request, and can't know why (`W-5.9`).
                if !self.jobs.has_sessions && self.jobs.is_in_session(channel) {
                    refused.reason = RefusalReason::Unsupported;
                    "the server is of a version without sessions".clone_into(&mut refused.message);
                }
                self.jobs.finish(channel, |state, target| state.refused(target, refused));
            }
            Event::Data { channel, stream, offset, clock_us, bytes } => {
                let chunk = Chunk { stream, offset, clock_us, bytes };
                self.jobs.tell(channel, JobEvent::Output(chunk));
            }
            Event::End { channel, stream } => self.jobs.tell(channel, JobEvent::OutputEnd(stream)),
            Event::Writable { channel, stream: Stream::Stdin } => {
                self.with_job(channel, |channel, state| {
                    if let Some(mut channel) = channel {
                        state.pump_stdin(&mut channel);
                    }
                });
            }
            Event::Stopped { channel, stream: Stream::Stdin } => {
                self.with_job(channel, |channel, state| {
                    state.stdin.clear();
                    state.wires.stdin_room.close();
                    if let Some(mut channel) = channel {
                        channel.finish(Stream::Stdin);
                    }
                    state.tell(JobEvent::StdinClosed);
                });
            }
            Event::Exit { channel, report } => self.with_job(channel, |_, state| {
                state.exit = Some(report.clone());
                state.tell(JobEvent::Exit(report));
            }),
            Event::Seal { channel, seal, verdict } => {
                self.jobs.finish(channel, |state, target| state.sealed(target, &seal, verdict));
            }
            Event::Failed { channel, message } => {
                self.jobs.finish(channel, |state, target| state.broken(target, message));
            }
            Event::Closed(error) => {
                self.jobs.fail_all(&error);
                return Flow::End;
            }
            // The rest is of no interest here, or is only ever seen by a server.
            _ => {}
        }
        Flow::Continue
    }

    fn handle_opened(&mut self, id: ChannelId, opened: Opened) {
        self.with_job(id, |channel, state| {
            state.opened = Some(opened.clone());
            state.tell(JobEvent::Started(opened));
            let Some(mut channel) = channel else { return };
            for name in std::mem::take(&mut state.signals) {
                channel.signal(&name);
            }
            state.pump_stdin(&mut channel);
        });
    }
}

impl Jobs {
    fn insert(&mut self, key: JobKey, channel: ChannelId, state: JobState) {
        self.keys.insert(channel, key);
        self.states.insert(key, (channel, state));
    }

    fn remove(&mut self, key: JobKey) -> Option<(ChannelId, JobState)> {
        let (channel, state) = self.states.remove(&key)?;
        self.keys.remove(&channel);
        Some((channel, state))
    }

    fn is_in_session(&self, channel: ChannelId) -> bool {
        let state = self.keys.get(&channel).and_then(|key| self.states.get(key));
        state.is_some_and(|(_, state)| state.in_session)
    }

    fn tell(&self, channel: ChannelId, event: JobEvent) {
        if let Some((_, state)) = self.keys.get(&channel).and_then(|key| self.states.get(key)) {
            state.tell(event);
        }
    }

    fn finish(&mut self, channel: ChannelId, end: impl FnOnce(&JobState, &str) -> Finished) {
        let Some(key) = self.keys.get(&channel).copied() else { return };
        if let Some((_, state)) = self.remove(key) {
            let finished = end(&state, &self.target);
            state.finish(finished);
        }
    }

    fn fail_all(&mut self, error: &ConnectionError) {
        self.keys.clear();
        for (_, (_, state)) in std::mem::take(&mut self.states) {
            let finished = match error {
                // The listener's own word, in place of the supervisor's first one.
                ConnectionError::PeerClosed(goodbye) if !self.ready => {
                    state.unavailable(&self.target, &goodbye.message)
                }
                error => state.lost(&self.target, error),
            };
            state.finish(finished);
        }
    }
}

impl JobState {
    pub(crate) fn new(spec: &OpenSpec, wires: JobWires) -> Self {
        Self {
            id: spec.job.clone(),
            in_session: spec.session.is_some(),
            wires,
            stdin: VecDeque::new(),
            stdin_ended: false,
            opened: None,
            exit: None,
            signals: Vec::new(),
        }
    }

    /// The session had ended before the job could be asked for.
    pub(crate) fn fail_unsent(self, target: &str) {
        self.not_sent(target, Phase::Connect, "session_ended", Error::SessionEnded);
    }

    fn fail_open(self, target: &str, error: OpenError) {
        let reason = match error {
            OpenError::TooLong(_) => "too_long",
            OpenError::TooMany | OpenError::Exhausted => "too_many",
            OpenError::DetachedStdin => "invalid",
            OpenError::Closed | OpenError::WrongRole => "session_ended",
        };
        self.not_sent(target, Phase::Authorize, reason, Error::Open(error));
    }

    fn not_sent(self, target: &str, phase: Phase, reason: &str, error: Error) {
        let outcome = Outcome::not_started(target, Some(self.id.as_str()), phase, reason);
        self.finish(failed(outcome, error));
    }

    /// A job that was dropped has nobody to be told; its channel is about to be closed.
    fn tell(&self, event: JobEvent) {
        self.wires.events.send(event);
    }

    fn finish(self, finished: Finished) {
        self.wires.stdin_room.close();
        self.tell(JobEvent::Finished(Box::new(finished)));
    }

    /// Hands the connection as much of the waiting input as it takes.
    fn pump_stdin(&mut self, channel: &mut Channel<'_>) {
        while let Some(front) = self.stdin.front_mut() {
            let taken = channel.writable(Stream::Stdin).min(front.len());
            if taken == 0 {
                return;
            }
            let piece = front.split_to(taken);
            if front.is_empty() {
                self.stdin.pop_front();
            }
            if channel.write(Stream::Stdin, 0, piece).is_err() {
                return;
            }
            self.wires.stdin_room.add_permits(taken);
        }
        if self.stdin_ended {
            channel.finish(Stream::Stdin);
        }
    }

    // Ends.

    /// What is known so far, of a job that did not come to a regular end.
    fn outcome_so_far(&self, target: &str) -> Outcome {
        let (phase, started, end) = match (&self.opened, &self.exit) {
            (_, Some(report)) => (Phase::Stream, Started::Yes, report.end.clone()),
            (Some(_), None) => (Phase::Run, Started::Yes, End::Lost),
            (None, None) => (Phase::Spawn, Started::Unknown, End::Unknown),
        };
        let outcome = Outcome::bare(target, Some(self.id.as_str()), phase, started, end);
        let mut outcome = match &self.exit {
            Some(report) => outcome.with_exit(report),
            None => outcome,
        };
        outcome.started_at = self.opened.as_ref().map(|opened| opened.started_at_us);
        outcome
    }

    fn refused(&self, target: &str, refused: Refused) -> Finished {
        let id = Some(self.id.as_str());
        let outcome = match refused.started {
            Started::No => Outcome::not_started(target, id, refused.phase, refused.reason.as_str()),
            started => Outcome::bare(target, id, refused.phase, started, End::Unknown),
        };
        failed(outcome, Error::NotStarted(Box::new(refused)))
    }

    fn sealed(&self, target: &str, seal: &Seal, verdict: Verdict) -> Finished {
        let mut outcome = self.outcome_so_far(target).with_seal(seal);
        match verdict {
            Verdict::Whole | Verdict::Suffix => {
                outcome.phase = Phase::Done;
                Finished { outcome, error: None }
            }
            Verdict::Mismatch(stream) => failed(outcome, Error::SealMismatch { stream }),
        }
    }

    fn broken(&self, target: &str, message: String) -> Finished {
        let outcome = self.outcome_so_far(target);
        let (phase, started) = (outcome.phase, outcome.started);
        failed(outcome, Error::Broken { phase, started, message })
    }

    fn unavailable(&self, target: &str, message: &str) -> Finished {
        let error = Error::Unavailable { message: message.to_owned() };
        let id = Some(self.id.as_str());
        failed(Outcome::not_started(target, id, error.phase(), error.reason()), error)
    }

    fn lost(&self, target: &str, cause: &ConnectionError) -> Finished {
        let outcome = self.outcome_so_far(target);
        let (phase, started) = (outcome.phase, outcome.started);
        failed(outcome, Error::LinkLost { phase, started, cause: cause.clone() })
    }
}

fn failed(mut outcome: Outcome, error: Error) -> Finished {
    outcome.error = Some(error.to_string());
    Finished { outcome, error: Some(error) }
}

#[cfg(test)]
mod tests;
