//! The job part of a connection: many jobs over one stream of bytes, for both roles (`W-5`–`W-8`).

mod answer;
mod channel;
mod event;
mod receive;
mod transmit;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{ConnectionError, Misbehaviour};
use crate::frame::{FLAG_MORE, Frame, FrameReader, Kind, Phase};
use crate::json;
use crate::limits::{
    CHANNELS_MAX, CONTROL_PAYLOAD_BYTES_MAX, JOB_HELLO_DEADLINE, KEEPALIVE_INTERVAL,
    KEEPALIVE_TIMEOUT, LATE_FRAMES_MAX, OPEN_BYTES_MAX, WINDOW_BYTES_INITIAL, WINDOW_BYTES_MAX,
};
use crate::message::{
    Attach, Goodbye, GoodbyeCode, Incarnation, JobHello, OpenSpec, Query, bounded_message,
};
use crate::seal::Sealer;
use crate::time::Instant;

use channel::{Asked, ChannelState, RecvStream, SendStream};
pub use channel::{Channel, WriteError};
pub use event::{Event, Verdict};
use transmit::Outbox;

/// The version of the job part that this crate speaks; it also speaks all before it.
pub const JOB_VERSION: u32 = 1;

/// Which side of the connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opens channels.
    Client,
    /// Runs jobs.
    Server,
}

/// A channel's number, unique on its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub(crate) u32);

impl ChannelId {
    /// The number on the wire.
    #[must_use]
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

/// A stream of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stream {
    /// Client to server.
    Stdin,
    /// Server to client.
    Stdout,
    /// Server to client.
    Stderr,
}

impl Stream {
    /// The streams that the server sends.
    pub const OUTPUTS: [Self; 2] = [Self::Stdout, Self::Stderr];

    /// The name in seals and outcomes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }

    /// The number in the flags of a frame (`W-6.1`).
    pub(crate) const fn to_flags(self) -> u8 {
        match self {
            Self::Stdin => 0,
            Self::Stdout => 1,
            Self::Stderr => 2,
        }
    }

    pub(crate) const fn from_flags(flags: u8) -> Option<Self> {
        match flags {
            0 => Some(Self::Stdin),
            1 => Some(Self::Stdout),
            2 => Some(Self::Stderr),
            _ => None,
        }
    }
}

/// What a side may choose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Credit granted on each received stream, in bytes: the most that a stalled stream can make
    /// this side hold. At least 1, at most [`WINDOW_BYTES_MAX`]; brought into that range if not.
    pub window_bytes: u32,
    /// Silence after which a PING is sent.
    pub keepalive_interval: Duration,
    /// Silence after which the connection counts as dead.
    pub keepalive_timeout: Duration,
    /// Name and version of the software, told to the peer.
    pub software: String,
    /// Names of optional features, told to the peer.
    pub features: Vec<String>,
    /// Server: which life of its supervisor this is, told to the client.
    pub incarnation: Option<Incarnation>,
    /// The first channel id, an odd number. Tests begin near the last one.
    pub first_channel: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window_bytes: WINDOW_BYTES_INITIAL,
            keepalive_interval: KEEPALIVE_INTERVAL,
            keepalive_timeout: KEEPALIVE_TIMEOUT,
            software: concat!("afar/", env!("CARGO_PKG_VERSION")).to_owned(),
            features: Vec::new(),
            incarnation: None,
            first_channel: 1,
        }
    }
}

/// Why no channel could be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The specification is larger than [`OPEN_BYTES_MAX`].
    #[error("the command with its arguments and environment is {0} bytes, the limit is 4 MiB")]
    TooLong(usize),
    /// [`CHANNELS_MAX`] channels are open.
    #[error("too many commands at once on one connection (the limit is {CHANNELS_MAX})")]
    TooMany,
    /// Every channel id was used once; the connection ends when its last channel does.
    #[error("the connection has used up its channel numbers")]
    Exhausted,
    /// The connection is closed or closing.
    #[error("the connection is closed")]
    Closed,
    /// Only a client opens channels.
    #[error("only a client opens channels")]
    WrongRole,
    /// A detached job has nobody who sends its stdin.
    #[error("a command can't be detached and be sent stdin")]
    DetachedStdin,
}

/// An output stream that a client has a part of already (see [`Connection::attach`]).
#[derive(Clone, Debug)]
pub struct ResumeStream {
    /// The next offset that is wanted.
    pub offset: u64,
    /// Bytes before that offset, delivered on an earlier connection, that the application has not
    /// [consumed](Channel::consume) yet: so much less credit is granted, and they may be consumed on
    /// this one.
    pub unconsumed: u64,
    /// The seal of everything before that offset, if it was all seen; then the whole is verified.
    pub sealer: Option<Sealer>,
}

impl ResumeStream {
    /// A stream of which nothing has come on an earlier connection, from this offset on.
    #[must_use]
    pub fn at(offset: u64) -> Self {
        Self { offset, unconsumed: 0, sealer: (offset == 0).then(Sealer::new) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Before the peer's JOB_HELLO.
    ExpectHello,
    Open,
    /// Only what is queued, and the goodbye, still leaves.
    Closed,
}

/// One connection's job part: a state machine that does no I/O.
///
/// After every call, drain [`Connection::poll_transmit`], [`Connection::poll_event`] and
/// [`Connection::poll_timeout`]. Any split or merge of the input gives the same events (`W-1.3`).
/// Memory is bounded by the limits of [`crate::limits`] whatever the peer does, provided that
/// events are drained.
#[derive(Debug)]
pub struct Connection {
    role: Role,
    config: Config,
    state: State,
    /// Client: every id was used; a goodbye follows the last channel.
    draining: bool,
    reader: FrameReader,
    outbox: Outbox,
    events: VecDeque<Event>,
    channels: BTreeMap<u32, ChannelState>,
    /// Server: channels that the client gave up and the application has not released yet.
    abandoned: BTreeSet<u32>,
    /// The next id that we open (client), or the least that the peer may open (server).
    next_channel: Option<u32>,
    /// Server: the OPEN whose last chunk has not come yet.
    partial_open: Option<(u32, Vec<u8>)>,
    late_frames: u32,
    empty_frames: u32,
    last_input: Instant,
    ping_sent: bool,
    hello_deadline: Instant,
    /// Client: when the frames that nobody waits for leave by themselves.
    lazy_due: Option<Instant>,
    close_reported: bool,
    /// Client: what had come on each channel when the connection ended.
    received: BTreeMap<u32, BTreeMap<Stream, RecvStream>>,
}

impl Connection {
    /// A connection whose hello is ready to be sent.
    #[must_use]
    pub fn new(role: Role, mut config: Config, now: Instant) -> Self {
        let window_max = u32::try_from(WINDOW_BYTES_MAX).unwrap_or(u32::MAX);
        config.window_bytes = config.window_bytes.clamp(1, window_max);
        let hello = JobHello {
            version: JOB_VERSION,
            software: config.software.clone(),
            features: config.features.clone(),
            incarnation: config.incarnation.clone(),
        };
        let mut outbox = Outbox::default();
        outbox.push_control(&Frame::control(Kind::JobHello, json::to_vec(&hello)));
        Self {
            role,
            state: State::ExpectHello,
            draining: false,
            reader: FrameReader::new(Phase::Jobs),
            outbox,
            events: VecDeque::new(),
            channels: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            next_channel: Some(if role == Role::Client { config.first_channel } else { 1 }),
            partial_open: None,
            late_frames: LATE_FRAMES_MAX,
            empty_frames: 0,
            last_input: now,
            ping_sent: false,
            hello_deadline: now.after(JOB_HELLO_DEADLINE),
            lazy_due: None,
            close_reported: false,
            received: BTreeMap::new(),
            config,
        }
    }

    // Inputs.

    /// Takes bytes from the peer, in any split.
    pub fn handle_input(&mut self, now: Instant, bytes: &[u8]) {
        if self.state == State::Closed {
            return;
        }
        if !bytes.is_empty() {
            self.last_input = now;
            self.ping_sent = false;
        }
        self.reader.push(bytes);
        while self.state != State::Closed {
            match self.reader.next_frame() {
                Ok(Some(frame)) => {
                    if let Err(misbehaviour) = self.handle_frame(&frame) {
                        self.fail(misbehaviour);
                    }
                }
                Ok(None) => break,
                Err(misbehaviour) => self.fail(misbehaviour),
            }
        }
    }

    /// Takes the end of the peer's bytes. Without a goodbye before it, that is a cut.
    pub fn handle_eof(&mut self, _now: Instant) {
        self.end(ConnectionError::Cut);
    }

    /// Lets time pass. To be called when the time of [`Connection::poll_timeout`] has come; a call
    /// too early does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.state == State::Closed {
            return;
        }
        let late_hello = self.state == State::ExpectHello && now >= self.hello_deadline;
        if late_hello || now >= self.last_input.after(self.config.keepalive_timeout) {
            self.say_goodbye(GoodbyeCode::Timeout, "nothing heard for too long");
            self.end(ConnectionError::TimedOut);
        } else if !self.ping_sent && now >= self.last_input.after(self.config.keepalive_interval) {
            self.ping_sent = true;
            self.reader.release();
            let token = now.as_micros().to_be_bytes();
            self.outbox.push_control(&Frame::control(Kind::Ping, token.to_vec()));
        }
        if self.lazy_due.is_some_and(|due| now >= due) {
            self.lazy_due = None;
            self.outbox.hurry();
        }
    }

    // Commands.

    /// Client: asks for a job to be started, and grants the credit for its output.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was sent then.
    pub fn open(&mut self, spec: &OpenSpec) -> Result<ChannelId, OpenError> {
        if spec.detach && spec.stdin {
            return Err(OpenError::DetachedStdin);
        }
        let payload = json::to_vec(spec);
        if payload.len() > OPEN_BYTES_MAX {
            return Err(OpenError::TooLong(payload.len()));
        }
        let id = self.next_id()?;
        let chunk_max = CONTROL_PAYLOAD_BYTES_MAX as usize;
        let payload = Bytes::from(payload);
        let mut at = 0;
        while at < payload.len() {
            let end = payload.len().min(at.saturating_add(chunk_max));
            let flags = if end < payload.len() { FLAG_MORE } else { 0 };
            let payload = payload.slice(at..end);
            self.outbox.push_opening(&Frame { kind: Kind::Open, flags, channel: id, payload });
            at = end;
        }
        let fresh = ResumeStream::at(0);
        let asked = Asked::Open { detach: spec.detach };
        let mut state = ChannelState::new(asked, self.config.window_bytes);
        state.job = Some((spec.job.clone(), false));
        if spec.stdin {
            state.send.insert(Stream::Stdin, SendStream::default());
        }
        // Who leaves with the answer takes no output, and grants none.
        for stream in Stream::OUTPUTS.into_iter().filter(|_| !spec.detach) {
            state.recv.insert(stream, RecvStream::new(fresh.clone()));
        }
        self.insert_with_credit(id, state);
        Ok(ChannelId(id))
    }

    /// Client: asks to go on with a job that exists, at these offsets of its output.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was sent then.
    pub fn attach(
        &mut self,
        attach: &Attach,
        streams: BTreeMap<Stream, ResumeStream>,
    ) -> Result<ChannelId, OpenError> {
        let id = self.next_id()?;
        let payload = Bytes::from(json::to_vec(attach));
        self.outbox.push_opening(&Frame { kind: Kind::Attach, flags: 0, channel: id, payload });
        let asked = Asked::Attach { follow: attach.follow };
        let mut state = ChannelState::new(asked, self.config.window_bytes);
        state.job = Some((attach.job.clone(), attach.prefix));
        for (stream, resume) in streams {
            state.recv.insert(stream, RecvStream::new(resume));
        }
        self.insert_with_credit(id, state);
        Ok(ChannelId(id))
    }

    /// Client: asks about jobs, or for something that needs no channel of the job's own.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was sent then.
    pub fn query(&mut self, query: &Query) -> Result<ChannelId, OpenError> {
        let payload = json::to_vec(query);
        if payload.len() > CONTROL_PAYLOAD_BYTES_MAX as usize {
            return Err(OpenError::TooLong(payload.len()));
        }
        let id = self.next_id()?;
        let payload = Bytes::from(payload);
        self.outbox.push_opening(&Frame { kind: Kind::Query, flags: 0, channel: id, payload });
        self.channels.insert(id, ChannelState::new(Asked::Query, self.config.window_bytes));
        Ok(ChannelId(id))
    }

    /// The handle to an open channel; `None` once it is closed.
    pub fn channel(&mut self, id: ChannelId) -> Option<Channel<'_>> {
        (self.state != State::Closed && self.channels.contains_key(&id.0))
            .then_some(Channel { connection: self, id })
    }

    /// Server: a channel that was [`Event::Abandoned`] is cleaned up after.
    pub fn release(&mut self, id: ChannelId) {
        self.abandoned.remove(&id.0);
    }

    /// Ends the connection: what is queued leaves first, then the goodbye.
    pub fn close(&mut self, code: GoodbyeCode, message: &str) {
        if self.state == State::Closed {
            return;
        }
        let goodbye = Goodbye { code, message: bounded_message(message) };
        self.outbox.finish(&Frame::control(Kind::Goodbye, json::to_vec(&goodbye)));
        self.end(ConnectionError::LocallyClosed);
    }

    // Outputs.

    /// Moves frames to `out`, as pieces to be written in this order, until `budget_bytes` are
    /// reached or nothing is left; returns how many bytes that were.
    ///
    /// Call it when the last pieces have been written: what waits here can still be overtaken by
    /// something more urgent, what is in `out` can not.
    pub fn poll_transmit(&mut self, out: &mut VecDeque<Bytes>, budget_bytes: usize) -> usize {
        let sent = self.outbox.transmit(&mut self.channels, out, budget_bytes, &mut self.events);
        if !self.outbox.has_lazy() {
            self.lazy_due = None;
        }
        if self.draining && self.state != State::Closed && self.channels.is_empty() {
            self.close(GoodbyeCode::Done, "");
            return sent.saturating_add(self.outbox.transmit(
                &mut self.channels,
                out,
                budget_bytes,
                &mut self.events,
            ));
        }
        sent
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Connection::handle_timeout`] is to be called next, if nothing happens before.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silence = match self.state {
            State::Closed => return None,
            _ if self.ping_sent => self.last_input.after(self.config.keepalive_timeout),
            _ => self.last_input.after(self.config.keepalive_interval),
        };
        let hello = (self.state == State::ExpectHello).then_some(self.hello_deadline);
        [Some(silence), hello, self.lazy_due].into_iter().flatten().min()
    }

    /// Client: what had come on a channel when the connection ended, for [`Connection::attach`] on
    /// another one. Each channel's is given once; `None` for one that was closed before.
    pub fn resumption(&mut self, id: ChannelId) -> Option<BTreeMap<Stream, ResumeStream>> {
        let received = self.received.remove(&id.0)?;
        Some(received.into_iter().map(|(stream, recv)| (stream, recv.into_resumption())).collect())
    }

    /// Whether the connection has ended; what is queued can still be transmitted.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Channels that are open now.
    #[must_use]
    pub fn channels_open(&self) -> usize {
        self.channels.len()
    }

    // Helpers.

    fn next_id(&mut self) -> Result<u32, OpenError> {
        if self.role != Role::Client {
            return Err(OpenError::WrongRole);
        }
        if self.state == State::Closed {
            return Err(OpenError::Closed);
        }
        if self.channels.len() >= CHANNELS_MAX {
            return Err(OpenError::TooMany);
        }
        let Some(id) = self.next_channel else {
            self.draining = true;
            return Err(OpenError::Exhausted);
        };
        self.next_channel = id.checked_add(2);
        Ok(id)
    }

    fn insert_with_credit(&mut self, id: u32, state: ChannelState) {
        let streams: Vec<Stream> = state.recv.keys().copied().collect();
        self.channels.insert(id, state);
        for stream in streams {
            self.grant_initial(id, stream);
        }
    }

    fn grant_initial(&mut self, id: u32, stream: Stream) {
        let window = u64::from(self.config.window_bytes);
        if let Some(recv) = self.channels.get_mut(&id).and_then(|c| c.recv.get_mut(&stream)) {
            let increment = recv.credit_due(window);
            recv.granted = recv.granted.saturating_add(increment);
            // The window is a u32; none at all would break a rule (`W-6.5`).
            let increment = u32::try_from(increment).unwrap_or(u32::MAX);
            if increment > 0 {
                self.outbox.push_window(id, stream, increment);
            }
        }
    }

    fn close_channel(&mut self, id: u32) {
        self.channels.remove(&id);
        self.late_frames = LATE_FRAMES_MAX;
    }

    fn say_goodbye(&mut self, code: GoodbyeCode, message: &str) {
        let goodbye = Goodbye { code, message: bounded_message(message) };
        self.outbox.abort(&Frame::control(Kind::Goodbye, json::to_vec(&goodbye)));
    }

    fn fail(&mut self, misbehaviour: Misbehaviour) {
        self.say_goodbye(GoodbyeCode::Protocol, &misbehaviour.to_string());
        self.end(ConnectionError::PeerMisbehaved(misbehaviour));
    }

    fn end(&mut self, error: ConnectionError) {
        if self.close_reported {
            return;
        }
        self.close_reported = true;
        self.state = State::Closed;
        self.partial_open = None;
        self.reader = FrameReader::new(Phase::Jobs);
        self.abandoned.clear();
        if error == ConnectionError::LocallyClosed {
            // What is queued still leaves, but nobody is told any more that there is room again.
            let streams = self.channels.values_mut().flat_map(|channel| channel.send.values_mut());
            streams.for_each(|send| send.waiting = false);
        } else {
            let channels = std::mem::take(&mut self.channels).into_iter();
            if self.role == Role::Client {
                self.received = channels.map(|(id, channel)| (id, channel.recv)).collect();
            }
        }
        if matches!(error, ConnectionError::Cut | ConnectionError::PeerClosed(_)) {
            self.outbox.discard();
        }
        self.events.push_back(Event::Closed(error));
    }
}

#[cfg(test)]
mod tests;
