//! What each frame of the peer means, by role and by the channel's stage.

use bytes::{Buf, Bytes};
use serde::de::DeserializeOwned;

use super::channel::{ChannelState, RecvStream, SendStream, Stage};
use super::{
    ChannelId, Connection, Event, JOB_VERSION, ResumeStream, Role, State, Stream, Verdict,
};
use crate::error::{ConnectionError, Misbehaviour};
use crate::frame::{FLAG_MORE, Frame, Kind};
use crate::json;
use crate::limits::{
    CHANNELS_ABANDONED_MAX, CHANNELS_MAX, CONTROL_QUEUE_BYTES_MAX, EMPTY_FRAMES_MAX,
    OPEN_BYTES_MAX, PONGS_QUEUED_MAX, SIGNAL_NAME_BYTES_MAX, WINDOW_BYTES_MAX,
};
use crate::message::{
    Attach, Attached, Goodbye, GoodbyeCode, JobHello, OpenSpec, Opened, Refused, Reset,
};
use crate::outcome::{End, ExitReport, Phase, RefusalReason, Seal, Started};

type Handled = Result<(), Misbehaviour>;

fn parse<T: DeserializeOwned>(frame: &Frame) -> Result<T, Misbehaviour> {
    json::from_slice(&frame.payload)
        .map_err(|error| Misbehaviour::MalformedJson { kind: frame.kind, error })
}

fn malformed(frame: &Frame, what: &'static str) -> Misbehaviour {
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
            Kind::Open | Kind::Attach if self.role == Role::Server => self.handle_open(frame),
            Kind::Signal | Kind::Resize | Kind::Close if self.role == Role::Server => {
                self.handle_channel_frame(frame)
            }
            Kind::Opened | Kind::Attached | Kind::Refused | Kind::Exit | Kind::Seal
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
        let state = ChannelState::new(self.config.window_bytes);
        let event = if frame.kind == Kind::Attach {
            json::from_slice::<Attach>(&payload)
                .map(|attach| Event::Attach { channel: ChannelId(id), attach })
        } else {
            json::from_slice::<OpenSpec>(&payload)
                .map(|spec| Event::Open { channel: ChannelId(id), spec: Box::new(spec) })
        };
        match event {
            // A bad request is refused; the connection and its other jobs go on (`W-5.4`).
            Err(error) => {
                self.refuse_unopened(id, RefusalReason::Invalid, &format!("bad request: {error}"));
            }
            Ok(event) => self.insert_opening(id, state, event),
        }
        Ok(())
    }

    fn insert_opening(&mut self, id: u32, mut state: ChannelState, event: Event) {
        for stream in Stream::OUTPUTS {
            state.send.insert(stream, SendStream::default());
        }
        match &event {
            Event::Open { spec, .. } if spec.stdin => {
                // No seal speaks of stdin, so nothing of it is hashed.
                let resume = ResumeStream { offset: 0, sealer: None };
                state.recv.insert(Stream::Stdin, RecvStream::new(resume));
                state.wants_stdin = true;
            }
            Event::Attach { .. } => state.attaching = true,
            _ => {}
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
            self.late_frames = self.late_frames.checked_sub(1).ok_or(Misbehaviour::LateFrames)?;
            return Ok(());
        }
        match frame.kind {
            Kind::Data => self.handle_data(frame),
            Kind::End => self.handle_end(frame),
            Kind::Window => self.handle_window(frame),
            Kind::Ack => self.handle_ack(frame),
            Kind::Stop => self.handle_stop(frame),
            Kind::Reset => self.handle_reset(frame),
            Kind::Close if frame.payload.is_empty() => self.abandon(id),
            Kind::Close => Err(malformed(frame, "a CLOSE carries nothing")),
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
        if let Some(sealer) = &mut recv.sealer {
            sealer.update(&bytes);
        }
        if !recv.stopped {
            let channel = ChannelId(id);
            self.events.push_back(Event::Data { channel, stream, offset, clock_us, bytes });
        }
        Ok(())
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

    // Answers of the server, at the client.

    fn handle_answer(&mut self, frame: &Frame) -> Handled {
        let id = frame.channel;
        let Some(stage) = self.stage(id) else { return Ok(()) };
        let attaching = self.channels.get(&id).is_some_and(|state| state.attaching);
        let channel = ChannelId(id);
        match (frame.kind, stage) {
            (Kind::Opened, Stage::Opening) if !attaching => {
                let opened: Opened = parse(frame)?;
                let asked = self.channels.get(&id).and_then(|state| state.job.as_ref());
                if asked.is_some_and(|asked| *asked != opened.job) {
                    return Err(malformed(frame, "another job than was asked for"));
                }
                self.set_stage(id, Stage::Running);
                self.events.push_back(Event::Opened { channel, opened });
                self.answered(id);
            }
            (Kind::Attached, Stage::Opening) if attaching => self.handle_attached(frame)?,
            (Kind::Refused, Stage::Opening) => {
                let refused = parse(frame)?;
                self.close_channel(id);
                self.events.push_back(Event::Refused { channel, refused });
            }
            (Kind::Exit, Stage::Running) => {
                let report: ExitReport = parse(frame)?;
                match &report.end {
                    End::NotStarted { .. } => {
                        return Err(malformed(frame, "a job that was started was not started"));
                    }
                    End::Signaled { name, .. } if !is_signal_name(name) => {
                        return Err(malformed(frame, "no name of a signal"));
                    }
                    _ => {}
                }
                self.set_stage(id, Stage::Exited);
                if let Some(state) = self.channels.get_mut(&id) {
                    state.end = Some(report.end.clone());
                }
                self.events.push_back(Event::Exit { channel, report });
            }
            (Kind::Seal, Stage::Exited) => {
                let mut seal: Box<Seal> = parse(frame)?;
                if self.channels.get(&id).and_then(|state| state.end.as_ref()) != Some(&seal.end) {
                    return Err(malformed(frame, "another end than that of the exit"));
                }
                // Streams of a later version: nothing of them was asked for, and nothing arrived.
                seal.streams.retain(|name, _| Stream::OUTPUTS.iter().any(|s| s.name() == name));
                let verdict = self.verdict(id, &seal);
                self.close_channel(id);
                self.events.push_back(Event::Seal { channel, seal, verdict });
            }
            (kind, _) => return Err(Misbehaviour::UnexpectedFrame(kind)),
        }
        Ok(())
    }

    fn handle_attached(&mut self, frame: &Frame) -> Handled {
        let attached: Attached = parse(frame)?;
        let id = frame.channel;
        let Some(state) = self.channels.get_mut(&id) else { return Ok(()) };
        for (&stream, recv) in &mut state.recv {
            let Some(from) = attached.streams.get(stream.name()) else {
                return Err(malformed(frame, "a stream that was asked for is missing"));
            };
            if from.offset < recv.offset {
                return Err(malformed(frame, "an offset before the one that was asked for"));
            }
            if from.offset > recv.offset {
                // The bytes between are a gap, so no hash of the whole can be known here.
                recv.sealer = None;
            }
            let credit = recv.granted.saturating_sub(recv.offset);
            recv.offset = from.offset;
            recv.consumed = from.offset;
            recv.granted = from.offset.saturating_add(credit);
        }
        state.stage = Stage::Running;
        if let Some(offset) = attached.stdin {
            state.send.insert(Stream::Stdin, SendStream::at(offset));
        }
        self.events.push_back(Event::Attached { channel: ChannelId(id), attached });
        Ok(())
    }

    /// Holds the seal against what arrived (`W-7.4`).
    fn verdict(&self, id: u32, seal: &Seal) -> Verdict {
        let Some(state) = self.channels.get(&id) else { return Verdict::Suffix };
        let mut verdict = Verdict::Whole;
        // A stream that was stopped may have been cut anywhere: nothing is known of it, as wished.
        for (&stream, recv) in state.recv.iter().filter(|(_, recv)| !recv.stopped) {
            let Some(claimed) = seal.streams.get(stream.name()) else {
                return Verdict::Mismatch(stream);
            };
            match &recv.sealer {
                Some(sealer) if recv.ended && sealer.matches(claimed) => {}
                None if recv.ended && claimed.bytes == recv.offset => verdict = Verdict::Suffix,
                _ => return Verdict::Mismatch(stream),
            }
        }
        verdict
    }

    // Helpers.

    fn stage(&self, id: u32) -> Option<Stage> {
        self.channels.get(&id).map(|state| state.stage)
    }

    fn set_stage(&mut self, id: u32, stage: Stage) {
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
            self.abandon(id)
        } else {
            self.close_channel(id);
            Ok(())
        }
    }

    /// The client has given a channel up: it counts until the application has cleaned up (`W-9.6`).
    fn abandon(&mut self, id: u32) -> Handled {
        self.close_channel(id);
        self.abandoned.insert(id);
        self.events.push_back(Event::Abandoned { channel: ChannelId(id) });
        if self.abandoned.len() > CHANNELS_ABANDONED_MAX {
            return Err(Misbehaviour::ChannelChurn);
        }
        Ok(())
    }
}

/// Names are shown and compared, so they are names: `SIGTERM`, `SIGRTMIN+3`.
fn is_signal_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'-';
    name.len() <= SIGNAL_NAME_BYTES_MAX && name.bytes().all(allowed)
}

fn u64_payload(frame: &Frame) -> Result<u64, Misbehaviour> {
    let bytes: [u8; 8] = frame
        .payload
        .as_ref()
        .try_into()
        .map_err(|_| malformed(frame, "eight bytes were expected"))?;
    Ok(u64::from_be_bytes(bytes))
}
