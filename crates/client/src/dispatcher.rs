//! The one task that owns a session's connection and linearizes everything that happens on it.
//!
//! The connection may be lost, and made again, any number of times: the jobs outlive it. While
//! there is none, requests wait here; when there is one again, each job goes on exactly where it
//! was (`J-4.2`).

mod input;
mod job_state;
mod jobs;
mod outage;
mod unacked;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use afar_net::driver::Driver;
use afar_net::transport::AnyTransport;
use afar_proto::connection::{Event, OpenError, Stream};
use afar_proto::error::ConnectionError;
use afar_proto::message::{
    Attached, FEATURE_SESSION, FEATURE_TERMINAL, GoodbyeCode, KillQuery, Opened, Query,
};
use afar_proto::outcome::RefusalReason;
use afar_proto::{Channel, ChannelId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::error::Error;
use crate::job::{Chunk, JobEvent};
use crate::session::{JobKey, Reply, Request};
pub(crate) use job_state::JobState;
use jobs::{Jobs, Question};
use outage::{Loss, Outage, is_for_good, is_progress, is_worth_a_retry};

/// Requests that are handled before the connection has its turn, so that what they cause leaves in
/// one write.
const REQUESTS_BATCHED: usize = 64;

/// A connection on its way.
pub(crate) type Connecting =
    Pin<Box<dyn Future<Output = Result<Box<Driver<AnyTransport>>, Error>> + Send>>;

/// Makes the connection once more, asking nobody (`J-4.1`).
pub(crate) struct Reconnector {
    pub(crate) connect: Box<dyn FnMut() -> Connecting + Send>,
    /// For how long it is tried.
    pub(crate) limit: Duration,
}

/// What bytes go over now.
enum Link {
    Up(Box<Driver<AnyTransport>>),
    /// On the way to the next connection.
    Away(Connecting),
    /// Nothing needs one.
    Down,
}

/// The owner of a session's connection.
pub(crate) struct Dispatcher {
    link: Link,
    requests: mpsc::UnboundedReceiver<Request>,
    jobs: Jobs,
    /// `None` if a link that is lost stays lost.
    reconnector: Option<Reconnector>,
    /// `Some` from the loss of a link until there is one again that serves: a server that only
    /// greets ends no outage, or one that dies of what it is asked would be asked for ever.
    outage: Option<Outage>,
    /// How the link was lost that nobody has needed since.
    lost: Option<Loss>,
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Flow {
    Continue,
    End,
}

/// What a turn of the loop is about.
enum Turn {
    Event(Event),
    Connected(Result<Box<Driver<AnyTransport>>, Error>),
    Request(Option<Request>),
}

impl Dispatcher {
    pub(crate) fn new(
        driver: Driver<AnyTransport>,
        requests: mpsc::UnboundedReceiver<Request>,
        target: Arc<str>,
        reconnector: Option<Reconnector>,
    ) -> Self {
        let link = Link::Up(Box::new(driver));
        Self { link, requests, jobs: Jobs::new(target), reconnector, outage: None, lost: None }
    }

    /// One whose first connection was lost within the login, so, when its request may have left
    /// already.
    pub(crate) fn lost(
        requests: mpsc::UnboundedReceiver<Request>,
        target: Arc<str>,
        reconnector: Reconnector,
        error: &Error,
    ) -> Self {
        let jobs = Jobs::new(target);
        let (reconnector, lost) = (Some(reconnector), Some(Loss::in_login(error)));
        Self { link: Link::Down, requests, jobs, reconnector, outage: None, lost }
    }

    /// Takes charge of a job that was asked for already, on this channel if the link is up.
    pub(crate) fn adopt(&mut self, key: JobKey, channel: Option<ChannelId>, state: JobState) {
        self.jobs.insert(key, channel, state);
    }

    /// Runs until the connection has ended for good or nobody holds a handle to it any more.
    pub(crate) async fn run(mut self) {
        self.make_a_link_if_wanted();
        loop {
            let requests = &mut self.requests;
            let turn = match &mut self.link {
                Link::Up(driver) => tokio::select! {
                    event = driver.next() => Turn::Event(event),
                    request = requests.recv() => Turn::Request(request),
                },
                Link::Away(connecting) => tokio::select! {
                    connected = connecting => Turn::Connected(connected),
                    request = requests.recv() => Turn::Request(request),
                },
                Link::Down => Turn::Request(requests.recv().await),
            };
            let flow = match turn {
                Turn::Event(event) => self.handle_event(event),
                Turn::Connected(connected) => self.handle_connected(connected),
                Turn::Request(request) => self.handle_requests(request),
            };
            if flow == Flow::End {
                break;
            }
        }
        self.requests.close();
        while let Some(request) = self.requests.recv().await {
            match request {
                Request::Open { spec, wires, .. } => {
                    JobState::opening(*spec, wires).fail_unsent(&self.jobs.target);
                }
                Request::Attach { attach, wires, .. } => {
                    JobState::attaching(*attach, wires).fail_unsent(&self.jobs.target);
                }
                // Nobody answers, which its sender is told by the end of the reply's channel.
                _ => {}
            }
        }
        if let Link::Up(driver) = self.link {
            driver.finish().await;
        }
    }

    // Requests.

    fn handle_requests(&mut self, first: Option<Request>) -> Flow {
        let mut next = first;
        for handled in 1.. {
            match next {
                // Every handle is gone.
                None | Some(Request::Goodbye) => return self.say_goodbye(),
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
        self.make_a_link_if_wanted();
        Flow::Continue
    }

    fn make_a_link_if_wanted(&mut self) {
        if let Link::Down = self.link
            && self.jobs.want_a_link()
        {
            let lost = self.lost.take().unwrap_or(Loss::from(ConnectionError::Cut));
            self.begin_outage(lost);
        }
    }

    fn say_goodbye(&mut self) -> Flow {
        if let Link::Up(driver) = &mut self.link {
            driver.connection().close(GoodbyeCode::Done, "");
        }
        self.jobs.fail_all(&ConnectionError::LocallyClosed, None);
        Flow::End
    }

    fn handle_request(&mut self, request: Request) {
        match request {
            Request::Open { job, spec, wires } => self.ask(job, JobState::opening(*spec, wires)),
            Request::Attach { job, attach, wires } => {
                self.ask(job, JobState::attaching(*attach, wires));
            }
            Request::Consumed { job, stream, bytes } => {
                self.with_job(job, |channel, state| match channel {
                    Some(mut channel) => channel.consume(stream, bytes),
                    None => state.consume_while_away(stream, bytes),
                });
            }
            Request::Stdin { job, bytes } => self.with_job(job, |channel, state| {
                state.push_stdin(bytes);
                state.pump_stdin(channel);
            }),
            Request::StdinEnd { job } => self.end_stdin(job),
            Request::Signal { job, name } => self.with_job(job, |channel, state| {
                state.signal(channel, name);
            }),
            Request::Resize { job, size } => self.with_job(job, |channel, state| {
                state.resize(channel, size);
            }),
            Request::Stop { job, stream } => self.with_job(job, |channel, state| {
                state.stop(channel, stream);
            }),
            Request::Close { job } => self.close(job),
            Request::Detach { job } => self.detach(job),
            Request::Query { query, reply } => self.query(*query, reply),
            Request::Goodbye => {}
        }
    }

    fn end_stdin(&mut self, key: JobKey) {
        let mut short = false;
        self.with_job(key, |channel, state| {
            state.end_stdin();
            state.pump_stdin(channel);
            short = state.input_is_short();
        });
        // Without a link it is found out on the next one.
        if short && let Some((Some(channel), _)) = self.jobs.state(key) {
            self.give_up(channel, job_state::SHORT_INPUT);
        }
    }

    /// Asks for a job now, or when there is a link.
    fn ask(&mut self, key: JobKey, mut state: JobState) {
        let Link::Up(driver) = &mut self.link else {
            self.jobs.insert(key, None, state);
            return;
        };
        let incarnation = self.jobs.incarnation.as_ref();
        let asked = state.ask(driver.connection(), incarnation);
        self.asked(key, state, asked);
    }

    fn asked(&mut self, key: JobKey, state: JobState, asked: Result<ChannelId, OpenError>) {
        match asked {
            Ok(channel) => self.jobs.insert(key, Some(channel), state),
            // Its end was read with what came before, and is told next: the job waits for another
            // connection, or ends with this one.
            Err(OpenError::Closed) => self.jobs.insert(key, None, state),
            Err(error) => state.fail_open(&self.jobs.target, error),
        }
    }

    /// The job's handle was dropped: the server is to end the job.
    fn close(&mut self, key: JobKey) {
        let Some((channel, state)) = self.jobs.remove(key) else { return };
        match (&mut self.link, channel) {
            (Link::Up(driver), Some(channel)) => {
                if let Some(channel) = driver.connection().channel(channel) {
                    channel.close();
                }
            }
            // The server learns it as soon as it can be told anything.
            (Link::Away(_), _) if state.may_be_ended_by_us() => {
                let job = state.id().clone();
                let kill = KillQuery { job, prefix: false, signal: None };
                self.jobs.keep_query(Question::new(Query::Kill(kill), None));
            }
            _ => {}
        }
    }

    fn detach(&mut self, key: JobKey) {
        let Some((channel, state)) = self.jobs.remove(key) else { return };
        if let (Link::Up(driver), Some(channel)) = (&mut self.link, channel)
            && let Some(channel) = driver.connection().channel(channel)
        {
            channel.detach();
        }
        state.leave(&self.jobs.target);
    }

    fn query(&mut self, query: Query, reply: Reply) {
        let question = Question::new(query, Some(reply));
        let Link::Up(driver) = &mut self.link else {
            self.jobs.keep_query(question);
            return;
        };
        self.jobs.put(driver.connection(), question);
    }

    fn with_job(&mut self, key: JobKey, act: impl FnOnce(Option<Channel<'_>>, &mut JobState)) {
        let Some((id, state)) = self.jobs.state(key) else { return };
        let channel = match (&mut self.link, id) {
            (Link::Up(driver), Some(id)) => driver.connection().channel(id),
            _ => None,
        };
        act(channel, state);
    }

    /// An event may be about a channel that is closed by now: what arrived with it in one read has
    /// been handled before it was told. So there may be no channel to act on, and the event counts
    /// all the same.
    fn with_channel(
        &mut self,
        id: ChannelId,
        act: impl FnOnce(Option<Channel<'_>>, &mut JobState),
    ) {
        if let Some(key) = self.jobs.key(id) {
            self.with_job(key, act);
        }
    }

    // Events.

    fn handle_event(&mut self, event: Event) -> Flow {
        if is_progress(&event) {
            self.outage = None;
        }
        match event {
            Event::Ready(hello) => {
                let has = |feature| hello.features.iter().any(|name| name == feature);
                self.jobs.has_sessions = has(FEATURE_SESSION);
                self.jobs.has_terminals = has(FEATURE_TERMINAL);
                self.jobs.handle_ready(hello.incarnation, self.outage.is_some());
                if let Some(outage) = &mut self.outage {
                    outage.ready();
                }
            }
            Event::Opened { channel, opened } => self.handle_opened(channel, opened),
            Event::Attached { channel, attached } => self.handle_attached(channel, &attached),
            Event::Refused { channel, mut refused } => {
                // Such a server has found no command in the request, and can't know why (`W-5.9`,
                // `W-5.13`).
                if !self.jobs.has_sessions && self.jobs.is_in_session(channel) {
                    refused.reason = RefusalReason::Unsupported;
                    "the server is of a version without sessions".clone_into(&mut refused.message);
                }
                if !self.jobs.has_terminals && self.jobs.has_terminal(channel) {
                    refused.reason = RefusalReason::Unsupported;
                    "the server is of a version without terminals".clone_into(&mut refused.message);
                }
                self.jobs.handle_refused(channel, refused);
            }
            Event::Data { channel, stream, offset, clock_us, bytes } => {
                let chunk = Chunk { stream, offset, clock_us, bytes };
                self.jobs.tell(channel, JobEvent::Output(chunk));
            }
            Event::Gap { channel, stream, from, to } => {
                self.with_channel(channel, |_, state| state.meet_gap(stream, from, to));
            }
            Event::End { channel, stream } => {
                self.with_channel(channel, |_, state| state.end_output(stream));
            }
            Event::Writable { channel, stream: Stream::Stdin } => {
                self.with_channel(channel, |channel, state| state.pump_stdin(channel));
            }
            Event::Acked { channel, stream: Stream::Stdin, offset } => {
                self.with_channel(channel, |_, state| state.ack_stdin(offset));
            }
            Event::Stopped { channel, stream: Stream::Stdin } => {
                self.with_channel(channel, |channel, state| state.stop_stdin(channel));
            }
            Event::Exit { channel, report } => {
                self.with_channel(channel, |_, state| state.exited(report));
            }
            Event::Seal { channel, seal, verdict } => {
                self.jobs.finish(channel, |state, target| state.sealed(target, &seal, verdict));
            }
            Event::Answer { channel, answer } => self.jobs.handle_answer(channel, answer),
            Event::Failed { channel, message } => self.jobs.handle_failed(channel, message),
            Event::Closed(error) => return self.handle_closed(error),
            // The rest is of no interest here, or is only ever seen by a server.
            _ => {}
        }
        Flow::Continue
    }

    fn handle_opened(&mut self, id: ChannelId, opened: Opened) {
        let mut detached = false;
        self.jobs.note_session(id);
        self.with_channel(id, |channel, state| {
            detached = state.opened(channel, opened);
        });
        if detached {
            self.jobs.leave(id);
        }
    }

    fn handle_attached(&mut self, id: ChannelId, attached: &Attached) {
        let mut result = Ok(false);
        self.with_channel(id, |channel, state| result = state.attached(channel, attached));
        match result {
            Ok(false) => {}
            Ok(true) => {
                if let Link::Up(driver) = &mut self.link
                    && let Some(channel) = driver.connection().channel(id)
                {
                    channel.detach();
                }
                self.jobs.leave(id);
            }
            Err(what) => self.give_up(id, what),
        }
    }

    /// Ends a channel on which nothing can go on. The job does, without us.
    fn give_up(&mut self, id: ChannelId, what: &str) {
        if let Link::Up(driver) = &mut self.link
            && let Some(channel) = driver.connection().channel(id)
        {
            channel.reset(what);
        }
        self.jobs.handle_failed(id, what.to_owned());
    }

    // The link.

    fn handle_closed(&mut self, error: ConnectionError) -> Flow {
        let Link::Up(mut driver) = std::mem::replace(&mut self.link, Link::Down) else {
            return Flow::Continue;
        };
        self.outage.take_if(|outage| outage.has_held());
        // Between two links everything that is no fault of the server's is a failed attempt.
        let again = self.reconnector.is_some()
            && match &self.outage {
                Some(outage) if !outage.is_ready() => outage.is_worth_another(&error),
                _ => is_worth_a_retry(&error, self.jobs.ready),
            };
        if !again {
            self.jobs.fail_all(&error, None);
            return Flow::End;
        }
        self.jobs.lose_channels(driver.connection(), &error);
        // Whoever needs a link later has all of its time for it.
        self.outage.take_if(|_| !self.jobs.want_a_link());
        self.lost = Some(Loss::from(error));
        self.make_a_link_if_wanted();
        Flow::Continue
    }

    /// Sets out for another connection.
    fn begin_outage(&mut self, lost: Loss) {
        let Some(reconnector) = &mut self.reconnector else { return };
        self.jobs.tell_all_lost(lost.told());
        let gives_way = lost.gives_way();
        let outage = match &mut self.outage {
            Some(outage) => {
                outage.lost_again(&lost);
                outage
            }
            None => self.outage.insert(Outage::new(Instant::now(), reconnector.limit, lost)),
        };
        match outage.next_attempt(gives_way) {
            Some(at) => {
                let connecting = (reconnector.connect)();
                let deadline = outage.deadline();
                self.link = Link::Away(Box::pin(outage::attempt(at, deadline, connecting)));
            }
            None => self.link = Link::Away(Box::pin(std::future::ready(Err(Error::TooLate)))),
        }
    }

    fn handle_connected(&mut self, connected: Result<Box<Driver<AnyTransport>>, Error>) -> Flow {
        let (Some(outage), Some(reconnector)) = (&mut self.outage, &mut self.reconnector) else {
            return Flow::End;
        };
        let error = match connected {
            Ok(driver) => {
                self.link = Link::Up(driver);
                self.resume();
                return Flow::Continue;
            }
            Err(error) => error,
        };
        let for_good = is_for_good(&error);
        let next = if for_good { None } else { outage.next_attempt(false) };
        outage.note(&error);
        let Some(at) = next else {
            let why = outage.describe(for_good);
            let cause = outage.cause().clone();
            self.jobs.fail_all(&cause, Some(&why));
            return Flow::End;
        };
        let connecting = (reconnector.connect)();
        self.link = Link::Away(Box::pin(outage::attempt(at, outage.deadline(), connecting)));
        Flow::Continue
    }

    /// Asks for everything again on a new connection: what was answered by its offsets, what was
    /// not once more (`J-4.2`).
    fn resume(&mut self) {
        for key in self.jobs.without_channel() {
            let Some((mut state, incarnation)) = self.jobs.take(key) else { continue };
            let Link::Up(driver) = &mut self.link else { return };
            let asked = state.ask(driver.connection(), incarnation);
            self.asked(key, state, asked);
        }
        let Link::Up(driver) = &mut self.link else { return };
        for question in self.jobs.take_queries() {
            self.jobs.put(driver.connection(), question);
        }
    }
}

#[cfg(test)]
mod tests;
