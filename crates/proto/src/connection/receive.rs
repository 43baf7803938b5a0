//! What each frame of the peer means, by role and by the channel's stage.

use bytes::{Buf, Bytes};
use serde::de::DeserializeOwned;

use super::channel::{Asked, ChannelState, RecvStream, SendStream, Stage};
use super::{ChannelId, Connection, Event, JOB_VERSION, ResumeStream, Role, State, Stream};
use crate::error::{ConnectionError, Misbehaviour};
use crate::frame::{FLAG_MORE, Frame, Kind};
use crate::json;
use crate::limits::{
    CHANNELS_ABANDONED_MAX, CHANNELS_MAX, CONTROL_QUEUE_BYTES_MAX, EMPTY_FRAMES_MAX,
    OPEN_BYTES_MAX, PONGS_QUEUED_MAX, WINDOW_BYTES_MAX,
};
use crate::message::{Goodbye, GoodbyeCode, JobHello, Refused, Reset};
use crate::outcome::{Phase, RefusalReason, Started};

pub(super) type Handled = Result<(), Misbehaviour>;

pub(super) fn parse<T: DeserializeOwned>(frame: &Frame) -> Result<T, Misbehaviour> {
    json::from_slice(&frame.payload)
        .map_err(|error| Misbehaviour::MalformedJson { kind: frame.kind, error })
}

pub(super) fn malformed(frame: &Frame, what: &'static str) -> Misbehaviour {
    Misbehaviour::Malformed { kind: frame.kind, what }
}

impl Connection {
    pub(super) fn handle_frame(&mut self, frame: &Frame) -> Handled {
        let of_connection =
            matches!(frame.kind, Kind::JobHello | Kind::Goodbye | Kind::Ping | Kind::Pong);
        if of_connection && frame.channel != 0 {
            return Err(malformed(frame, "a frame of the connection names a channel"));
        }
        // Whatever the peer sends can make us queue something: credit for its data, answers. Who
        // sends and does not read must not make that grow.
        if frame.kind != Kind::Goodbye && self.outbox.control_bytes() > CONTROL_QUEUE_BYTES_MAX {
            return Err(Misbehaviour::RepliesUnread);
        }
        if self.state == State::ExpectHello {
            return match frame.kind {
                Kind::JobHello => self.handle_hello(frame),
                Kind::Goodbye => self.handle_goodbye(frame),
                kind => Err(Misbehaviour::UnexpectedFrame(kind)),
            };
        }
        match frame.kind {
            Kind::Goodbye => self.handle_goodbye(frame),
            Kind::Ping => self.handle_ping(frame),
            Kind::Pong if frame.payload.len() == 8 => Ok(()),
            Kind::Pong => Err(malformed(frame, "a PONG carries eight bytes")),
            Kind::Open | Kind::Attach | Kind::Query if self.role == Role::Server => {
                self.handle_open(frame)
            }
            Kind::Signal | Kind::Resize | Kind::Close | Kind::Detach
                if self.role == Role::Server =>
            {
                self.handle_channel_frame(frame)
            }
            Kind::Opened
            | Kind::Attached
            | Kind::Refused
            | Kind::Exit
            | Kind::Seal
            | Kind::Gap
            | Kind::Answer
                if self.role == Role::Client =>
            {
                self.handle_channel_frame(frame)
            }
            Kind::Data | Kind::End | Kind::Window | Kind::Ack | Kind::Stop | Kind::Reset => {
                self.handle_channel_frame(frame)
            }
            kind => Err(Misbehaviour::UnexpectedFrame(kind)),
        }
    }

    fn handle_hello(&mut self, frame: &Frame) -> Handled {
        let hello: JobHello = parse(frame)?;
        if hello.version == 0 {
            self.say_goodbye(GoodbyeCode::Incompatible, "no common version");
            let theirs = hello.version;
            self.end(ConnectionError::PeerIncompatible { theirs, ours: JOB_VERSION });
            return Ok(());
        }
        self.state = State::Open;
        self.events.push_back(Event::Ready(hello));
        Ok(())
    }

    fn handle_goodbye(&mut self, frame: &Frame) -> Handled {
        let goodbye: Goodbye = parse(frame)?;
        self.end(ConnectionError::PeerClosed(goodbye));
        Ok(())
    }

    /// The answer has the same bytes (`W-8.2`).
    fn handle_ping(&mut self, frame: &Frame) -> Handled {
        if frame.payload.len() != 8 {
            return Err(malformed(frame, "a PING carries eight bytes"));
        }
        // Whoever asks for replies must read them (`W-9.8`).
        if self.outbox.pongs() >= PONGS_QUEUED_MAX {
            return Err(Misbehaviour::RepliesUnread);
        }
        self.outbox.push_control(&Frame::control(Kind::Pong, frame.payload.clone()));
        Ok(())
    }

    // Opening, at the server.

    fn handle_open(&mut self, frame: &Frame) -> Handled {
        let payload = match self.partial_open.take() {
            Some((channel, mut payload)) => {
                if channel != frame.channel || frame.kind != Kind::Open {
                    return Err(Misbehaviour::BadOpen("another channel began in its middle"));
                }
                payload.extend_from_slice(&frame.payload);
                payload
            }
            None => {
                self.claim_id(frame.channel)?;
                frame.payload.to_vec()
            }
        };
        if payload.len() > OPEN_BYTES_MAX {
            return Err(Misbehaviour::BadOpen("longer than 4 MiB"));
        }
        if frame.flags & FLAG_MORE != 0 {
            if frame.payload.is_empty() {
                return Err(Misbehaviour::BadOpen("an empty chunk"));
            }
            self.partial_open = Some((frame.channel, payload));
            return Ok(());
        }
        let id = frame.channel;
        if self.channels.len() >= CHANNELS_MAX {
            self.refuse_unopened(id, RefusalReason::TooMany, "too many commands at once");
            return Ok(());
        }
        let channel = ChannelId(id);
        let event = match frame.kind {
            Kind::Attach => {
                json::from_slice(&payload).map(|attach| Event::Attach { channel, attach })
            }
            Kind::Query => json::from_slice(&payload).map(|query| Event::Query { channel, query }),
            _ => {
                json::from_slice(&payload).map(|spec| Event::Open { channel, spec: Box::new(spec) })
            }
        };
        match event {
            // A bad request is refused; the connection and its other jobs go on (`W-5.4`).
            Err(error) => {
                self.refuse_unopened(id, RefusalReason::Invalid, &format!("bad request: {error}"));
            }
            Ok(event) => self.insert_opening(id, event),
        }
        Ok(())
    }

    fn insert_opening(&mut self, id: u32, event: Event) {
        let (asked, outputs) = match &event {
            Event::Open { spec, .. } => {
                let outputs = if spec.detach { Vec::new() } else { Stream::OUTPUTS.to_vec() };
                (Asked::Open { detach: spec.detach }, outputs)
            }
            Event::Attach { attach, .. } => {
                let wanted = |stream: &Stream| attach.streams.contains_key(stream.name());
                let outputs = Stream::OUTPUTS.into_iter().filter(wanted).collect();
                (Asked::Attach { follow: attach.follow }, outputs)
            }
            _ => (Asked::Query, Vec::new()),
        };
        let mut state = ChannelState::new(asked, self.config.window_bytes);
        for stream in outputs {
            state.send.insert(stream, SendStream::default());
        }
        if let Event::Open { spec, .. } = &event
            && spec.stdin
        {
            // No seal speaks of stdin, so nothing of it is hashed.
            let resume = ResumeStream { sealer: None, ..ResumeStream::at(0) };
            state.recv.insert(Stream::Stdin, RecvStream::new(resume));
            state.wants_stdin = true;
        }
        self.channels.insert(id, state);
        self.events.push_back(event);
    }

    fn refuse_unopened(&mut self, id: u32, reason: RefusalReason, message: &str) {
        let message = crate::message::bounded_message(message);
        let refused = Refused { phase: Phase::Authorize, reason, message, started: Started::No };
        let payload = json::to_vec(&refused).into();
        self.outbox.push_control(&Frame { kind: Kind::Refused, flags: 0, channel: id, payload });
        self.late_frames = crate::limits::LATE_FRAMES_MAX;
    }

    /// Ids of the client are odd and increase (`W-5.2`).
    fn claim_id(&mut self, id: u32) -> Handled {
        match self.next_channel {
            Some(least) if id % 2 == 1 && id >= least => {
                self.next_channel = id.checked_add(2);
                Ok(())
            }
            _ => Err(Misbehaviour::BadChannelId(id)),
        }
    }

    // Frames of a channel.

    fn was_opened(&self, id: u32) -> bool {
        let parity = id % 2 == 1;
        parity && self.next_channel.is_none_or(|next| id < next)
    }

    fn handle_channel_frame(&mut self, frame: &Frame) -> Handled {
        let id = frame.channel;
        if !self.channels.contains_key(&id) {
            if !self.was_opened(id) || self.partial_open.as_ref().is_some_and(|(p, _)| *p == id) {
                return Err(Misbehaviour::UnknownChannel(id));
            }
            return self.count_late();
        }
        match (self.stage(id), frame.kind) {
            // What the client sent before it had the seal.
            (Some(Stage::Sealed), kind)
                if !matches!(kind, Kind::Close | Kind::Detach | Kind::Reset) =>
            {
                return self.count_late();
            }
            // A question has no streams, and nothing that could be signalled.
            (Some(_), kind)
                if self.is_query(id)
                    && !matches!(
                        kind,
                        Kind::Close | Kind::Reset | Kind::Refused | Kind::Answer
                    ) =>
            {
                return Err(Misbehaviour::UnexpectedFrame(kind));
            }
            _ => {}
        }
        match frame.kind {
            Kind::Data => self.handle_data(frame),
            Kind::End => self.handle_end(frame),
            Kind::Window => self.handle_window(frame),
            Kind::Ack => self.handle_ack(frame),
            Kind::Stop => self.handle_stop(frame),
            Kind::Reset => self.handle_reset(frame),
            Kind::Close | Kind::Detach if !frame.payload.is_empty() => {
                Err(malformed(frame, "it carries nothing"))
            }
            Kind::Close if self.stage(id) == Some(Stage::Sealed) => {
                self.close_channel(id);
                self.events.push_back(Event::Confirmed { channel: ChannelId(id) });
                Ok(())
            }
            Kind::Close => self.give_up(id, Event::Abandoned { channel: ChannelId(id) }),
            Kind::Detach => self.give_up(id, Event::Detached { channel: ChannelId(id) }),
            Kind::Gap => self.handle_gap(frame),
            Kind::Signal => {
                let signal = parse(frame)?;
                self.events.push_back(Event::Signal { channel: ChannelId(id), signal });
                Ok(())
            }
            Kind::Resize => {
                let resize = parse(frame)?;
                self.events.push_back(Event::Resize { channel: ChannelId(id), resize });
                Ok(())
            }
            _ => self.handle_answer(frame),
        }
    }

    fn stream_of(&self, frame: &Frame) -> Result<Stream, Misbehaviour> {
        Stream::from_flags(frame.flags).ok_or_else(|| malformed(frame, "no such stream"))
    }

    /// The stream of DATA and END: one that the peer sends, or the frame is of the wrong role.
    fn incoming_stream(&self, frame: &Frame) -> Result<Stream, Misbehaviour> {
        let stream = self.stream_of(frame)?;
        if (stream == Stream::Stdin) == (self.role == Role::Server) {
            Ok(stream)
        } else {
            Err(malformed(frame, "a stream of the other direction"))
        }
    }

    /// The stream of WINDOW, ACK and STOP: one that we send.
    fn outgoing_stream(&self, frame: &Frame) -> Result<Stream, Misbehaviour> {
        let stream = self.stream_of(frame)?;
        if (stream == Stream::Stdin) == (self.role == Role::Client) {
            Ok(stream)
        } else {
            Err(malformed(frame, "a stream of the other direction"))
        }
    }

    fn handle_data(&mut self, frame: &Frame) -> Handled {
        let stream = self.incoming_stream(frame)?;
        let mut payload = frame.payload.clone();
        let (Ok(offset), Ok(clock_us)) = (payload.try_get_u64(), payload.try_get_u64()) else {
            return Err(malformed(frame, "shorter than its prefix"));
        };
        if payload.is_empty() {
            self.empty_frames = self.empty_frames.saturating_add(1);
            if self.empty_frames > EMPTY_FRAMES_MAX {
                return Err(Misbehaviour::EmptyFrames);
            }
        } else {
            self.empty_frames = 0;
        }
        let id = frame.channel;
        self.check_answered(frame)?;
        match self.take_data(id, stream, offset, clock_us, payload) {
            Ok(()) => Ok(()),
            Err(what) => self.stream_error(id, what),
        }
    }

    fn take_data(
        &mut self,
        id: u32,
        stream: Stream,
        offset: u64,
        clock_us: u64,
        bytes: Bytes,
    ) -> Result<(), &'static str> {
        if self.stage(id) == Some(Stage::Opening) {
            return Err("data before the answer to its OPEN");
        }
        let recv = self.recv(id, stream).ok_or("data on a stream that was not announced")?;
        if recv.ended {
            return Err("data after the end of its stream");
        }
        if offset != recv.offset {
            return Err("data at a wrong offset");
        }
        let length = bytes.len() as u64;
        if length > recv.granted.saturating_sub(recv.offset) {
            // What was not granted was not to be sent (`W-6.4`).
            return Err("data beyond the window");
        }
        if bytes.is_empty() {
            return Ok(());
        }
        recv.offset = recv.offset.saturating_add(length);
        recv.behind_gap = false;
        if let Some(sealer) = &mut recv.sealer {
            sealer.update(&bytes);
        }
        if !recv.stopped {
            let channel = ChannelId(id);
            self.events.push_back(Event::Data { channel, stream, offset, clock_us, bytes });
        }
        Ok(())
    }

    /// The stream goes on at a later offset, and its credit with it (`W-6.10`).
    fn handle_gap(&mut self, frame: &Frame) -> Handled {
        let stream = self.incoming_stream(frame)?;
        let to = u64_payload(frame)?;
        let id = frame.channel;
        self.check_answered(frame)?;
        let outcome = match self.recv(id, stream) {
            None => Err("a gap of a stream that was not announced"),
            Some(recv) if recv.ended => Err("a gap after the end of its stream"),
            Some(recv) if recv.behind_gap => Err("a gap behind a gap"),
            Some(recv) if to <= recv.offset => Err("a gap that leads nowhere"),
            Some(recv) => {
                let from = recv.offset;
                recv.skip_to(to);
                Ok((from, recv.stopped))
            }
        };
        match outcome {
            Ok((from, stopped)) => {
                if !stopped {
                    self.events.push_back(Event::Gap { channel: ChannelId(id), stream, from, to });
                }
                Ok(())
            }
            Err(what) => self.stream_error(id, what),
        }
    }

    /// The end says the length, so that nothing can be missing before it (`W-6.3`).
    fn handle_end(&mut self, frame: &Frame) -> Handled {
        let stream = self.incoming_stream(frame)?;
        let total = u64_payload(frame)?;
        let id = frame.channel;
        self.check_answered(frame)?;
        let opening = self.stage(id) == Some(Stage::Opening);
        let outcome = match self.recv(id, stream) {
            _ if opening => Err("an end before the answer to its OPEN"),
            None => Err("the end of a stream that was not announced"),
            Some(recv) if recv.ended => Err("a second end of a stream"),
            Some(recv) if recv.offset != total => Err("an end at a wrong offset"),
            Some(recv) => {
                recv.ended = true;
                Ok(recv.stopped)
            }
        };
        match outcome {
            Ok(stopped) => {
                if !stopped {
                    self.events.push_back(Event::End { channel: ChannelId(id), stream });
                }
                Ok(())
            }
            Err(what) => self.stream_error(id, what),
        }
    }

    fn handle_window(&mut self, frame: &Frame) -> Handled {
        let stream = self.outgoing_stream(frame)?;
        let id = frame.channel;
        let bytes: [u8; 4] = frame
            .payload
            .as_ref()
            .try_into()
            .map_err(|_| malformed(frame, "a WINDOW carries four bytes"))?;
        let increment = u64::from(u32::from_be_bytes(bytes));
        if increment == 0 {
            return Err(Misbehaviour::BadWindow(id));
        }
        let Some(state) = self.channels.get_mut(&id) else { return Ok(()) };
        let Some(send) = state.send.get_mut(&stream) else { return Ok(()) };
        let outstanding = send.limit.saturating_sub(send.offset).saturating_add(increment);
        if outstanding > WINDOW_BYTES_MAX {
            return Err(Misbehaviour::BadWindow(id));
        }
        send.limit = send.limit.checked_add(increment).ok_or(Misbehaviour::BadWindow(id))?;
        state.wake(id, &mut self.events);
        Ok(())
    }

    /// What is acknowledged was sent, and stays acknowledged (`W-6.6`).
    fn handle_ack(&mut self, frame: &Frame) -> Handled {
        let stream = self.outgoing_stream(frame)?;
        let offset = u64_payload(frame)?;
        let id = frame.channel;
        let Some(send) = self.channels.get_mut(&id).and_then(|c| c.send.get_mut(&stream)) else {
            return Ok(());
        };
        if offset > send.sent || offset < send.acked {
            return self.stream_error(id, "an acknowledgement of bytes that were not sent");
        }
        if offset == send.acked {
            return Ok(());
        }
        send.acked = offset;
        self.events.push_back(Event::Acked { channel: ChannelId(id), stream, offset });
        Ok(())
    }

    /// The peer wants no more of a stream (`W-6.8`).
    fn handle_stop(&mut self, frame: &Frame) -> Handled {
        let stream = self.outgoing_stream(frame)?;
        if !frame.payload.is_empty() {
            return Err(malformed(frame, "a STOP carries nothing"));
        }
        let id = frame.channel;
        if let Some(send) = self.channels.get_mut(&id).and_then(|c| c.send.get_mut(&stream))
            && !send.stopped
        {
            send.stopped = true;
            self.events.push_back(Event::Stopped { channel: ChannelId(id), stream });
        }
        Ok(())
    }

    fn handle_reset(&mut self, frame: &Frame) -> Handled {
        let reset: Reset = parse(frame)?;
        self.drop_channel(frame.channel, reset.message)
    }

    // Helpers.

    pub(super) fn stage(&self, id: u32) -> Option<Stage> {
        self.channels.get(&id).map(|state| state.stage)
    }

    pub(super) fn set_stage(&mut self, id: u32, stage: Stage) {
        if let Some(state) = self.channels.get_mut(&id) {
            state.stage = stage;
        }
    }

    fn recv(&mut self, id: u32, stream: Stream) -> Option<&mut RecvStream> {
        self.channels.get_mut(&id)?.recv.get_mut(&stream)
    }

    /// A server sends nothing of a job that it has not answered for.
    fn check_answered(&self, frame: &Frame) -> Handled {
        if self.role == Role::Client && self.stage(frame.channel) == Some(Stage::Opening) {
            return Err(Misbehaviour::UnexpectedFrame(frame.kind));
        }
        Ok(())
    }

    /// A rule of one channel was broken: it is reset, all others go on (`W-5.8`).
    fn stream_error(&mut self, id: u32, what: &'static str) -> Handled {
        self.send_reset(id, what);
        self.drop_channel(id, what.to_owned())
    }

    fn drop_channel(&mut self, id: u32, message: String) -> Handled {
        self.events.push_back(Event::Failed { channel: ChannelId(id), message });
        if self.role == Role::Server {
            self.give_up(id, Event::Abandoned { channel: ChannelId(id) })
        } else {
            self.close_channel(id);
            Ok(())
        }
    }

    /// The client has given a channel up, or left it: it counts until the application has cleaned up
    /// (`W-9.6`).
    fn give_up(&mut self, id: u32, event: Event) -> Handled {
        self.close_channel(id);
        self.abandoned.insert(id);
        self.events.push_back(event);
        if self.abandoned.len() > CHANNELS_ABANDONED_MAX {
            return Err(Misbehaviour::ChannelChurn);
        }
        Ok(())
    }

    /// A frame for a channel that is closed here (`W-9.10`).
    fn count_late(&mut self) -> Handled {
        self.late_frames = self.late_frames.checked_sub(1).ok_or(Misbehaviour::LateFrames)?;
        Ok(())
    }

    fn is_query(&self, id: u32) -> bool {
        self.channels.get(&id).is_some_and(|state| state.asked == Asked::Query)
    }
}

fn u64_payload(frame: &Frame) -> Result<u64, Misbehaviour> {
    let bytes: [u8; 8] = frame
        .payload
        .as_ref()
        .try_into()
        .map_err(|_| malformed(frame, "eight bytes were expected"))?;
    Ok(u64::from_be_bytes(bytes))
}
