//! What is known of one job, over all the connections on which it was told of.

use std::collections::BTreeMap;
use std::time::Duration;

use afar_proto::connection::{OpenError, ResumeStream, Stream, Verdict};
use afar_proto::error::ConnectionError;
use afar_proto::gaps::Gaps;
use afar_proto::message::{
    Attach, AttachOffset, Attached, Incarnation, JobId, OpenSpec, Opened, Refused, Resize, Retry,
    SessionName, SessionScope,
};
use afar_proto::outcome::{End, ExitReport, Phase, RefusalReason, Seal, Started};
use afar_proto::{Channel, ChannelId, Connection};
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

use super::input::Input;
use crate::error::Error;
use crate::job::{Finished, JobEvent, JobWires};
use crate::limits::SIGNALS_WAITING_MAX;
use crate::outcome::{Outcome, Verified};

/// Said of a job that was asked for again with less input than it has got.
pub(super) const SHORT_INPUT: &str =
    "the job has got more input already than there is here: it was started with another one";

/// How the server was asked for the job, and whether it has answered.
#[derive(Debug)]
enum Asked {
    /// It is to be started.
    Open { spec: Box<OpenSpec>, sent: Option<Sent> },
    /// It is there, and this client is to be attached.
    Attach(Box<Attach>),
    /// The server has answered: from now on it is attached to.
    Answered(Box<Attach>),
}

/// When an OPEN was sent first (`J-1.6`).
#[derive(Debug)]
struct Sent {
    at: Instant,
    /// The same in the time since boot, which goes on while this machine sleeps, as the runtime's
    /// does not.
    since_boot: Duration,
    /// The supervisor's life at the other end of that connection, if it has said so.
    incarnation: Option<Incarnation>,
    /// Whether that is the present connection.
    on_this_link: bool,
}

impl Sent {
    /// How long ago that was. The server holds it against how long its journal vouches, so a sleep
    /// of this machine has to count.
    fn age(&self, now: Instant, since_boot: Duration) -> Duration {
        let by_runtime = now.saturating_duration_since(self.at);
        by_runtime.max(since_boot.saturating_sub(self.since_boot))
    }
}

/// What is known of a job.
#[derive(Debug)]
pub(crate) struct JobState {
    id: JobId,
    asked: Asked,
    wires: JobWires,
    input: Input,
    own_session: Option<SessionName>,
    in_session: bool,
    /// Whether it was asked for with a terminal.
    terminal: bool,
    /// The terminal's size, if it was told since the request.
    size: Option<Resize>,
    /// Whether its session's shell is another one than it would expect.
    fresh_session: bool,
    detach: bool,
    /// Whether its handle may send input.
    has_stdin: bool,
    /// Whether the server has said that there is such a process.
    started: bool,
    started_at_us: Option<u64>,
    /// `Some` iff the server said that the process has ended.
    exit: Option<ExitReport>,
    /// Signals that wait for the server's answer on this link, or for a link; each once.
    signals: Vec<String>,
    /// Whether the server has answered on the present channel.
    answered_here: bool,
    /// Output streams that nobody wants.
    stopped: Vec<Stream>,
    /// Output streams whose end was told.
    ended: Vec<Stream>,
    /// What was not there any more when it was to be told.
    gaps: BTreeMap<Stream, Gaps>,
    /// Where the output goes on. `Some` iff there is no channel and the server had answered on one.
    resume: Option<BTreeMap<Stream, ResumeStream>>,
    /// Whether its handle was told that the link is lost, and not yet that there is one again.
    away: bool,
    reconnects: u32,
}

impl JobState {
    /// A job that is to be started.
    pub(crate) fn opening(spec: OpenSpec, wires: JobWires) -> Self {
        let session = spec.session.as_ref();
        let own = session.filter(|session| session.scope == SessionScope::Connection);
        let own_session = own.map(|session| session.name.clone());
        let mut state = Self::new(spec.job.clone(), wires);
        state.own_session = own_session;
        state.in_session = session.is_some();
        state.terminal = spec.terminal.is_some();
        state.detach = spec.detach;
        state.has_stdin = spec.stdin;
        state.asked = Asked::Open { spec: Box::new(spec), sent: None };
        state
    }

    /// The same, with its OPEN under way already.
    pub(crate) fn opened_already(spec: OpenSpec, sent_at: Instant, wires: JobWires) -> Self {
        let mut state = Self::opening(spec, wires);
        if let Asked::Open { sent, .. } = &mut state.asked {
            let since_boot = since_boot().saturating_sub(sent_at.elapsed());
            *sent = Some(Sent { at: sent_at, since_boot, incarnation: None, on_this_link: true });
        }
        state
    }

    /// A job that is there already.
    pub(crate) fn attaching(attach: Attach, wires: JobWires) -> Self {
        let mut state = Self::new(attach.job.clone(), wires);
        state.asked = Asked::Attach(Box::new(attach));
        state
    }

    fn new(id: JobId, wires: JobWires) -> Self {
        let asked = Asked::Attach(Box::new(Attach::new(id.clone(), BTreeMap::new())));
        Self {
            id,
            asked,
            wires,
            input: Input::default(),
            own_session: None,
            in_session: false,
            terminal: false,
            size: None,
            fresh_session: false,
            detach: false,
            has_stdin: true,
            started: false,
            started_at_us: None,
            exit: None,
            signals: Vec::new(),
            answered_here: false,
            stopped: Vec::new(),
            ended: Vec::new(),
            gaps: BTreeMap::new(),
            resume: None,
            away: false,
            reconnects: 0,
        }
    }

    pub(super) fn id(&self) -> &JobId {
        &self.id
    }

    pub(super) fn is_in_session(&self) -> bool {
        self.in_session
    }

    pub(super) fn has_terminal(&self) -> bool {
        self.terminal
    }

    /// The session that the job is in, if that is one of its connection.
    pub(super) fn own_session(&self) -> Option<&SessionName> {
        self.own_session.as_ref()
    }

    pub(super) fn meets_a_fresh_session(&mut self) {
        self.fresh_session = true;
    }

    /// Whether the end of this handle is to end the job, wherever the server has got with it.
    pub(super) fn may_be_ended_by_us(&self) -> bool {
        use afar_proto::message::AttachMode::Take;
        match &self.asked {
            Asked::Open { sent, .. } => sent.is_some(),
            Asked::Attach(_) => false,
            Asked::Answered(attach) => attach.mode == Take,
        }
    }

    // Asking.

    /// Asks the server for the job: to start it, to say what became of an earlier request, or to go
    /// on (`J-4.2`).
    pub(super) fn ask(
        &mut self,
        connection: &mut Connection,
        incarnation: Option<&Incarnation>,
    ) -> Result<ChannelId, OpenError> {
        if connection.is_closed() {
            // What there is to go on with is for another connection.
            return Err(OpenError::Closed);
        }
        let channel = match &mut self.asked {
            Asked::Open { spec, sent } => {
                match sent {
                    Some(sent) => {
                        let age = sent.age(Instant::now(), since_boot());
                        let age_ms = u64::try_from(age.as_millis());
                        spec.retry = Some(Retry {
                            age_ms: age_ms.unwrap_or(u64::MAX),
                            incarnation: sent.incarnation.clone(),
                        });
                    }
                    None => {
                        let (at, since_boot) = (Instant::now(), since_boot());
                        let incarnation = incarnation.cloned();
                        *sent = Some(Sent { at, since_boot, incarnation, on_this_link: true });
                    }
                }
                connection.open(spec)?
            }
            Asked::Attach(attach) => {
                let streams = wanted(attach);
                connection.attach(attach, streams)?
            }
            Asked::Answered(attach) => {
                let streams = self.resume.take().unwrap_or_default();
                let offset = |(stream, resume): (&Stream, &ResumeStream)| {
                    (stream.name().to_owned(), AttachOffset(resume.offset))
                };
                attach.streams = streams.iter().map(offset).collect();
                connection.attach(attach, streams)?
            }
        };
        self.answered_here = false;
        // A stream that nobody wants must be read by nobody's waiting for it, either.
        if let Some(mut channel) = connection.channel(channel) {
            self.stopped.iter().for_each(|stream| channel.stop(*stream));
        }
        Ok(channel)
    }

    /// The server has been heard of on this connection.
    pub(super) fn ready(&mut self, incarnation: Option<&Incarnation>, again: bool) {
        if let Asked::Open { sent: Some(sent), .. } = &mut self.asked
            && sent.on_this_link
            && sent.incarnation.is_none()
        {
            sent.incarnation = incarnation.cloned();
        }
        if again && std::mem::take(&mut self.away) {
            self.reconnects = self.reconnects.saturating_add(1);
            self.tell(JobEvent::Reconnected);
        }
    }

    /// The channel has gone with its connection, on which this was received.
    pub(super) fn lose_channel(&mut self, received: Option<BTreeMap<Stream, ResumeStream>>) {
        match &mut self.asked {
            Asked::Open { sent: Some(sent), .. } => sent.on_this_link = false,
            Asked::Answered(_) => self.resume = received,
            _ => {}
        }
    }

    pub(super) fn disconnected(&mut self, cause: &str) {
        if !std::mem::replace(&mut self.away, true) {
            self.tell(JobEvent::Disconnected { cause: cause.to_owned() });
        }
    }

    // What the handle wants.

    pub(super) fn consume_while_away(&mut self, stream: Stream, bytes: usize) {
        if let Some(resume) = self.resume.as_mut().and_then(|resume| resume.get_mut(&stream)) {
            resume.unconsumed = resume.unconsumed.saturating_sub(bytes as u64);
        }
    }

    pub(super) fn push_stdin(&mut self, bytes: Bytes) {
        self.input.push(bytes);
    }

    pub(super) fn end_stdin(&mut self) {
        self.input.end();
    }

    pub(super) fn signal(&mut self, channel: Option<Channel<'_>>, name: String) {
        match channel {
            Some(mut channel) if self.answered_here => channel.signal(&name),
            // A server has nothing to signal before the start, and knows of no attachment before it
            // has granted it (`J-4.5`).
            _ if self.signals.len() >= SIGNALS_WAITING_MAX || self.signals.contains(&name) => {}
            _ => self.signals.push(name),
        }
    }

    pub(super) fn resize(&mut self, channel: Option<Channel<'_>>, size: Resize) {
        self.size = Some(size);
        // A server has nothing to resize before the start.
        if let Some(mut channel) = channel.filter(|_| self.started) {
            channel.resize(size);
        }
    }

    pub(super) fn stop(&mut self, channel: Option<Channel<'_>>, stream: Stream) {
        if !self.stopped.contains(&stream) {
            self.stopped.push(stream);
        }
        if let Some(mut channel) = channel {
            channel.stop(stream);
        }
    }

    // What the server says.

    /// The job was started for this request. Whether its client leaves with that.
    pub(super) fn opened(&mut self, channel: Option<Channel<'_>>, opened: Opened) -> bool {
        self.answered();
        self.started_at_us = Some(opened.started_at_us);
        self.tell(JobEvent::Started(opened));
        self.go_on(channel);
        self.detach
    }

    /// The job was there already. Whether its client leaves with that.
    ///
    /// # Errors
    /// The server wants input that it must have got, or can't know of; or the job has got more than
    /// there is.
    pub(super) fn attached(
        &mut self,
        channel: Option<Channel<'_>>,
        attached: &Attached,
    ) -> Result<bool, &'static str> {
        let again = matches!(self.asked, Asked::Answered(_));
        let asked_to_start = matches!(self.asked, Asked::Open { .. });
        // What this client has asked for itself, whichever of its requests has started it: nobody
        // else can have had the output, and what is missing is missing.
        let ours = match &self.asked {
            Asked::Open { spec, .. } => spec.retry.is_some(),
            Asked::Attach(_) => false,
            Asked::Answered(_) => true,
        };
        let wanted = match &self.asked {
            Asked::Open { .. } => None,
            Asked::Attach(attach) | Asked::Answered(attach) => Some(attach.streams.clone()),
        };
        if !again {
            self.id = attached.job.clone();
            self.started_at_us = attached.started_at_us;
        }
        self.answered();
        if !again {
            self.tell(JobEvent::Attached(attached.clone()));
        }
        match attached.stdin {
            Some(offset) if again => {
                self.input.rewind(offset).map_err(|_| "input that was not kept is asked for")?;
            }
            // What is typed now is not what was typed then.
            Some(offset) if asked_to_start && !self.terminal => self.input.repeat(offset),
            Some(offset) => self.input.begin(offset),
            None => self.close_stdin(),
        }
        for stream in Stream::OUTPUTS {
            let Some(from) = attached.streams.get(stream.name()) else { continue };
            let wanted = wanted.as_ref().map(|wanted| wanted.get(stream.name()));
            let wanted = wanted.map_or(Some(0), |offset| offset.map(|offset| offset.0));
            if let Some(wanted) = wanted.filter(|wanted| *wanted < from.offset) {
                if ours {
                    self.meet_gap(stream, wanted, from.offset);
                } else {
                    // Who comes later has missed what was there before: told, and no fault.
                    self.tell(JobEvent::Gap { stream, from: wanted, to: from.offset });
                }
            }
        }
        self.go_on(channel);
        if self.input.is_short() {
            return Err(SHORT_INPUT);
        }
        Ok(self.detach)
    }

    fn answered(&mut self) {
        self.started = true;
        self.answered_here = true;
        let attach = match &self.asked {
            Asked::Open { .. } => Attach::new(self.id.clone(), BTreeMap::new()),
            Asked::Attach(attach) | Asked::Answered(attach) => Attach {
                job: self.id.clone(),
                prefix: false,
                streams: BTreeMap::new(),
                start: None,
                mode: attach.mode,
                follow: attach.follow,
            },
        };
        self.asked = Asked::Answered(Box::new(attach));
    }

    fn go_on(&mut self, channel: Option<Channel<'_>>) {
        let Some(mut channel) = channel else { return };
        if let Some(size) = self.size {
            channel.resize(size);
        }
        for name in std::mem::take(&mut self.signals) {
            channel.signal(&name);
        }
        self.pump_stdin(Some(channel));
    }

    pub(super) fn pump_stdin(&mut self, channel: Option<Channel<'_>>) {
        let Some(mut channel) = channel else { return };
        let fresh = self.input.pump(&mut channel);
        if fresh > 0 {
            self.wires.stdin_room.add_permits(fresh);
        }
    }

    pub(super) fn input_is_short(&self) -> bool {
        self.input.is_short()
    }

    pub(super) fn ack_stdin(&mut self, offset: u64) {
        self.input.ack(offset);
    }

    pub(super) fn stop_stdin(&mut self, channel: Option<Channel<'_>>) {
        self.close_stdin();
        if let Some(mut channel) = channel {
            channel.finish(Stream::Stdin);
        }
    }

    fn close_stdin(&mut self) {
        self.input.close();
        if self.has_stdin && !self.wires.stdin_room.is_closed() {
            self.wires.stdin_room.close();
            self.tell(JobEvent::StdinClosed);
        }
    }

    pub(super) fn meet_gap(&mut self, stream: Stream, from: u64, to: u64) {
        self.gaps.entry(stream).or_default().add(from..to);
        self.tell(JobEvent::Gap { stream, from, to });
    }

    /// Each connection tells of the end once more.
    pub(super) fn end_output(&mut self, stream: Stream) {
        if !self.ended.contains(&stream) {
            self.ended.push(stream);
            self.tell(JobEvent::OutputEnd(stream));
        }
    }

    /// Likewise.
    pub(super) fn exited(&mut self, report: ExitReport) {
        if self.exit.is_none() {
            self.exit = Some(report.clone());
            self.tell(JobEvent::Exit(report));
        }
    }

    /// A job that was dropped has nobody to be told; its channel is about to be closed.
    pub(super) fn tell(&self, event: JobEvent) {
        self.wires.events.send(event);
    }

    pub(super) fn finish(self, finished: Finished) {
        self.wires.stdin_room.close();
        self.tell(JobEvent::Finished(Box::new(finished)));
    }

    // Ends.

    /// The session had ended before the job could be asked for.
    pub(crate) fn fail_unsent(self, target: &str) {
        self.not_sent(target, Phase::Connect, "session_ended", Error::SessionEnded);
    }

    pub(super) fn fail_open(self, target: &str, error: OpenError) {
        let reason = match error {
            OpenError::TooLong(_) => "too_long",
            OpenError::TooMany | OpenError::Exhausted => "too_many",
            OpenError::Closed | OpenError::WrongRole => "session_ended",
            OpenError::DetachedStdin => "invalid",
        };
        if self.started {
            let outcome = self.outcome_so_far(target);
            let finished = self.failed(outcome, Error::Open(error));
            return self.finish(finished);
        }
        self.not_sent(target, Phase::Authorize, reason, Error::Open(error));
    }

    fn not_sent(self, target: &str, phase: Phase, reason: &str, error: Error) {
        let outcome = Outcome::not_started(target, Some(self.id.as_str()), phase, reason);
        let finished = self.failed(outcome, error);
        self.finish(finished);
    }

    /// The handle leaves, and the job goes on without it; one that was never asked for never will
    /// be.
    pub(super) fn leave(self, target: &str) {
        if let Asked::Open { sent: None, .. } = self.asked {
            return self.fail_unsent(target);
        }
        self.wires.stdin_room.close();
        self.tell(JobEvent::Detached);
    }

    /// What is known so far, of a job that did not come to a regular end. One that was seen to run,
    /// and may run on, has an end that nobody here knows.
    fn outcome_so_far(&self, target: &str) -> Outcome {
        let never_sent = matches!(self.asked, Asked::Open { sent: None, .. });
        let (phase, started, end) = match &self.exit {
            Some(report) => (Phase::Stream, Started::Yes, report.end.clone()),
            None if self.started => (Phase::Run, Started::Yes, End::Unknown),
            None if never_sent => {
                let reason = "unreachable";
                return Outcome::not_started(
                    target,
                    Some(self.id.as_str()),
                    Phase::Connect,
                    reason,
                );
            }
            None if matches!(self.asked, Asked::Attach(_)) => {
                (Phase::Authorize, Started::Unknown, End::Unknown)
            }
            None => (Phase::Spawn, Started::Unknown, End::Unknown),
        };
        let outcome = Outcome::bare(target, Some(self.id.as_str()), phase, started, end);
        let mut outcome = match &self.exit {
            Some(report) => outcome.with_exit(report),
            None => outcome,
        };
        outcome.started_at = self.started_at_us;
        outcome.reconnects = self.reconnects;
        outcome
    }

    pub(super) fn refused(&self, target: &str, refused: Refused) -> Finished {
        let id = Some(self.id.as_str());
        let gone = refused.reason == RefusalReason::NoSuchJob;
        let outcome = match (&self.asked, refused.started) {
            // It was there, and nobody can tell any more what became of it (`J-4.4`).
            (Asked::Answered(_), _) => {
                let mut outcome = self.outcome_so_far(target);
                if gone && self.exit.is_none() {
                    outcome.end = End::Lost;
                }
                let (phase, started) = (outcome.phase, outcome.started);
                let error = Error::NotResumed { phase, started, refused: Box::new(refused) };
                return self.failed(outcome, error);
            }
            // The server knows that there was one, and not what became of it (`J-4.4`).
            (Asked::Attach(_) | Asked::Open { .. }, Started::Yes) if gone => {
                Outcome::bare(target, id, refused.phase, Started::Yes, End::Lost)
            }
            // That there is no such job says nothing of whether there was one.
            (Asked::Attach(_), _) => {
                Outcome::bare(target, id, refused.phase, Started::Unknown, End::Unknown)
            }
            (Asked::Open { .. }, Started::No) => {
                Outcome::not_started(target, id, refused.phase, refused.reason.as_str())
            }
            (Asked::Open { .. }, started) => {
                Outcome::bare(target, id, refused.phase, started, End::Unknown)
            }
        };
        let error = match &self.asked {
            Asked::Attach(_) => Error::Refused(Box::new(refused)),
            _ => Error::NotStarted(Box::new(refused)),
        };
        self.failed(outcome, error)
    }

    pub(super) fn sealed(&self, target: &str, seal: &Seal, verdict: Verdict) -> Finished {
        let mut outcome = self.outcome_so_far(target).with_seal(seal);
        outcome.session_restarted |= self.fresh_session;
        let verified = match verdict {
            Verdict::Whole => Verified::Whole,
            Verdict::Suffix => Verified::Suffix,
            Verdict::Mismatch(stream) => {
                return self.failed(outcome, Error::SealMismatch { stream });
            }
        };
        outcome.verified = Some(verified);
        if let Some((stream, from, to)) = self.unexplained_gap(seal) {
            return self.failed(outcome, Error::OutputLost { stream, from, to });
        }
        outcome.phase = Phase::Done;
        Finished { outcome, error: None }
    }

    /// A range that was missed and that the server does not say to have dropped, as it was told to
    /// (`J-3.8`).
    fn unexplained_gap(&self, seal: &Seal) -> Option<(Stream, u64, u64)> {
        self.gaps.iter().find_map(|(stream, missed)| {
            let dropped = seal.streams.get(stream.name()).map(|seal| &seal.gaps);
            let explained = |range| dropped.is_some_and(|dropped| dropped.cover(&range));
            let unexplained = missed.as_slice().iter().find(|(from, to)| !explained(*from..*to));
            unexplained.map(|(from, to)| (*stream, *from, *to))
        })
    }

    pub(super) fn broken(&self, target: &str, message: String) -> Finished {
        let outcome = self.outcome_so_far(target);
        let (phase, started) = (outcome.phase, outcome.started);
        self.failed(outcome, Error::Broken { phase, started, message })
    }

    pub(super) fn unavailable(&self, target: &str, message: &str) -> Finished {
        let error = Error::Unavailable { message: message.to_owned() };
        let id = Some(self.id.as_str());
        self.failed(Outcome::not_started(target, id, error.phase(), error.reason()), error)
    }

    pub(super) fn lost(
        &self,
        target: &str,
        cause: &ConnectionError,
        gave_up: Option<&str>,
    ) -> Finished {
        let outcome = self.outcome_so_far(target);
        let (phase, started) = (outcome.phase, outcome.started);
        let may_run = started != Started::No && *cause != ConnectionError::LocallyClosed;
        let error = Error::LinkLost {
            phase,
            started,
            cause: cause.clone(),
            gave_up: gave_up.map(ToOwned::to_owned),
            job: may_run.then(|| format!("{target}/{}", self.id)),
        };
        self.failed(outcome, error)
    }

    fn failed(&self, mut outcome: Outcome, error: Error) -> Finished {
        outcome.error = Some(error.to_string());
        outcome.reconnects = self.reconnects;
        Finished { outcome, error: Some(error) }
    }
}

/// The offsets that an ATTACH names: whoever begins at 0 can verify everything.
fn wanted(attach: &Attach) -> BTreeMap<Stream, ResumeStream> {
    let outputs = Stream::OUTPUTS.into_iter();
    outputs
        .filter_map(|stream| Some((stream, attach.streams.get(stream.name())?)))
        .map(|(stream, offset)| (stream, ResumeStream::at(offset.0)))
        .collect()
}

/// Time since boot, sleep included.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `J-1.6`
    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_request_counts_the_time_in_which_the_machine_slept() {
        let (now, boot) = (Instant::now(), Duration::from_secs(1000));
        let sent = Sent { at: now, since_boot: boot, incarnation: None, on_this_link: false };
        let second = Duration::from_secs(1);
        // The runtime has seen a second, the machine an hour.
        assert_eq!(sent.age(now + second, boot + 3600 * second), 3600 * second);
        assert_eq!(sent.age(now + second, boot + second), second);
        assert!(since_boot() > Duration::ZERO);
    }
}
