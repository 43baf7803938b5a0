//! One channel: the state of its streams, and the handle through which commands are given.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{ChannelId, Connection, Event, ResumeStream, Role, Stream};
use crate::frame::{Frame, Kind};
use crate::json;
use crate::limits::{CHANNEL_QUEUE_BYTES_MAX, DATA_BYTES_SENT_MAX, QUEUED_PIECE_BYTES};
use crate::message::{Attached, JobId, Opened, Refused, Reset, Resize, Signal, bounded_message};
use crate::outcome::{End, ExitReport, Seal};
use crate::seal::Sealer;

/// A stream that this side sends.
#[derive(Debug, Default)]
pub(super) struct SendStream {
    /// Offset of the next byte that is queued.
    pub(super) offset: u64,
    /// Offset of the next byte that leaves; `sent <= offset`.
    pub(super) sent: u64,
    /// Offset up to which the peer has granted credit; `offset <= limit`.
    pub(super) limit: u64,
    /// Offset up to which the peer has acknowledged; `acked <= sent`.
    pub(super) acked: u64,
    pub(super) finished: bool,
    pub(super) stopped: bool,
    /// Whether the application was told that nothing can be written and waits for an event.
    pub(super) waiting: bool,
}

/// A stream that this side receives.
#[derive(Debug)]
pub(super) struct RecvStream {
    /// Offset of the next byte that is expected.
    pub(super) offset: u64,
    /// Offset up to which we have granted credit; `offset <= granted`.
    pub(super) granted: u64,
    /// Offset up to which the application has consumed; `consumed <= offset`.
    pub(super) consumed: u64,
    pub(super) ended: bool,
    pub(super) stopped: bool,
    /// `Some` iff every byte since offset 0 was seen.
    pub(super) sealer: Option<Sealer>,
}

impl SendStream {
    /// A stream that goes on at `offset`, without credit.
    pub(super) fn at(offset: u64) -> Self {
        Self { offset, sent: offset, acked: offset, limit: offset, ..Self::default() }
    }
}

impl RecvStream {
    pub(super) fn new(resume: ResumeStream) -> Self {
        let ResumeStream { offset, sealer } = resume;
        Self { offset, granted: offset, consumed: offset, ended: false, stopped: false, sealer }
    }
}

/// What waits to be sent on a channel, in order.
#[derive(Debug)]
pub(super) enum Queued {
    Data { stream: Stream, offset: u64, clock_us: u64, bytes: Bytes },
    End { stream: Stream, offset: u64 },
}

/// Where a channel stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Asked for, not answered.
    Opening,
    Running,
    /// The exit was told.
    Exited,
}

#[derive(Debug)]
pub(super) struct ChannelState {
    pub(super) stage: Stage,
    pub(super) send: BTreeMap<Stream, SendStream>,
    pub(super) recv: BTreeMap<Stream, RecvStream>,
    pub(super) queue: VecDeque<Queued>,
    /// Cost of what is queued: its bytes, and [`QUEUED_PIECE_BYTES`] for each piece of data.
    pub(super) queued_bytes: u64,
    /// The last frame of this side; it leaves when the queue is empty, and closes the channel.
    pub(super) tail: Option<Frame>,
    /// Whether one of the outbox's rings holds this channel.
    pub(super) scheduled: bool,
    /// Client: whether this channel was asked for by ATTACH. Server: whether it is to be answered
    /// by ATTACHED.
    pub(super) attaching: bool,
    /// Client: the job that was asked for by OPEN.
    pub(super) job: Option<JobId>,
    /// Client: how the process has ended, by its EXIT.
    pub(super) end: Option<End>,
    /// Server: whether the client will send stdin.
    pub(super) wants_stdin: bool,
    pub(super) window_bytes: u32,
}

impl ChannelState {
    pub(super) fn new(window_bytes: u32) -> Self {
        Self {
            stage: Stage::Opening,
            send: BTreeMap::new(),
            recv: BTreeMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            tail: None,
            scheduled: false,
            attaching: false,
            job: None,
            end: None,
            wants_stdin: false,
            window_bytes,
        }
    }

    /// Bytes that `stream` takes now.
    pub(super) fn writable(&self, stream: Stream) -> u64 {
        let Some(send) = self.send.get(&stream) else { return 0 };
        if send.finished || self.stage == Stage::Opening {
            return 0;
        }
        let credit = send.limit.saturating_sub(send.offset);
        credit.min(CHANNEL_QUEUE_BYTES_MAX.saturating_sub(self.queued_bytes))
    }

    /// Reports the streams that wait and take bytes again.
    pub(super) fn wake(&mut self, id: u32, events: &mut VecDeque<Event>) {
        for stream in [Stream::Stdin, Stream::Stdout, Stream::Stderr] {
            let writable = self.writable(stream);
            if let Some(send) = self.send.get_mut(&stream)
                && send.waiting
                && writable > 0
            {
                send.waiting = false;
                events.push_back(Event::Writable { channel: ChannelId(id), stream });
            }
        }
    }
}

/// Why bytes were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// More than the peer has granted credit for.
    #[error("more bytes than the stream takes now")]
    Blocked,
    /// The stream was finished, or this side does not send it.
    #[error("the stream is not open for writing")]
    NotOpen,
}

/// The handle to one open channel.
#[derive(Debug)]
pub struct Channel<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) id: ChannelId,
}

impl Channel<'_> {
    fn state(&mut self) -> Option<&mut ChannelState> {
        self.connection.channels.get_mut(&self.id.0)
    }

    /// The state of a channel that waits for this server's answer.
    fn asked(&mut self) -> Option<&mut ChannelState> {
        if self.connection.role != Role::Server {
            return None;
        }
        self.state().filter(|state| state.stage == Stage::Opening)
    }

    fn push_json(&mut self, kind: Kind, payload: Vec<u8>) {
        let frame = Frame { kind, flags: 0, channel: self.id.0, payload: payload.into() };
        self.connection.outbox.push_control(&frame);
    }

    /// Bytes that `stream` takes now. After a 0, [`Event::Writable`] tells when to ask again.
    pub fn writable(&mut self, stream: Stream) -> usize {
        let Some(state) = self.state() else { return 0 };
        let writable = state.writable(stream);
        if writable == 0
            && let Some(send) = state.send.get_mut(&stream)
        {
            send.waiting = true;
        }
        usize::try_from(writable).unwrap_or(usize::MAX)
    }

    /// Queues bytes of `stream`, read at `clock_us` of the job's clock.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing was queued then.
    pub fn write(
        &mut self,
        stream: Stream,
        clock_us: u64,
        mut bytes: Bytes,
    ) -> Result<(), WriteError> {
        let id = self.id.0;
        let Some(state) = self.state() else { return Err(WriteError::NotOpen) };
        let Some(send) = state.send.get_mut(&stream).filter(|send| !send.finished) else {
            return Err(WriteError::NotOpen);
        };
        // Only the peer's credit is a rule; the bound of the queue is ours, and what was promised
        // to a writer before another stream filled the queue is still taken.
        if bytes.len() as u64 > send.limit.saturating_sub(send.offset) {
            return Err(WriteError::Blocked);
        }
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(DATA_BYTES_SENT_MAX));
            let offset = send.offset;
            let length = piece.len() as u64;
            send.offset = send.offset.saturating_add(length);
            let cost = length.saturating_add(QUEUED_PIECE_BYTES);
            state.queued_bytes = state.queued_bytes.saturating_add(cost);
            state.queue.push_back(Queued::Data { stream, offset, clock_us, bytes: piece });
        }
        self.connection.outbox.schedule(id, &mut self.connection.channels);
        Ok(())
    }

    /// Ends `stream` behind what is queued. A second call does nothing. Before the channel is
    /// answered, the end waits for the answer.
    pub fn finish(&mut self, stream: Stream) {
        let id = self.id.0;
        let Some(state) = self.state() else { return };
        let Some(send) = state.send.get_mut(&stream).filter(|send| !send.finished) else { return };
        send.finished = true;
        let offset = send.offset;
        state.queue.push_back(Queued::End { stream, offset });
        self.connection.outbox.schedule(id, &mut self.connection.channels);
    }

    /// The application has brought `bytes` of a received stream to their destination: they are
    /// acknowledged, and as much credit is granted again. Both are sent when a quarter of the
    /// window has come together.
    pub fn consume(&mut self, stream: Stream, bytes: usize) {
        let id = self.id.0;
        let Some(state) = self.state() else { return };
        // Before the answer there is no credit to renew: the first comes with it.
        if state.stage == Stage::Opening {
            return;
        }
        let window = u64::from(state.window_bytes);
        let Some(recv) = state.recv.get_mut(&stream) else { return };
        recv.consumed = recv.consumed.saturating_add(bytes as u64).min(recv.offset);
        if recv.ended || recv.stopped {
            return;
        }
        let increment = recv.consumed.saturating_add(window).saturating_sub(recv.granted);
        if increment > 0 && increment >= window / 4 {
            recv.granted = recv.granted.saturating_add(increment);
            let consumed = recv.consumed;
            self.connection.outbox.push_ack(id, stream, consumed);
            // The window is a u32, and the increment never exceeds it.
            let increment = u32::try_from(increment).unwrap_or(u32::MAX);
            self.connection.outbox.push_window(id, stream, increment);
        }
    }

    /// Wants no more of a received stream: what still arrives of it is not reported, and the seal
    /// is not held against it.
    pub fn stop(&mut self, stream: Stream) {
        let id = self.id.0;
        let Some(recv) = self.state().and_then(|state| state.recv.get_mut(&stream)) else { return };
        if !recv.stopped && !recv.ended {
            recv.stopped = true;
            self.connection.outbox.push_stream_frame(Kind::Stop, id, stream, Bytes::new());
        }
    }

    /// Client: sends a signal to the job.
    pub fn signal(&mut self, name: &str) {
        if self.connection.role == Role::Client {
            self.push_json(Kind::Signal, json::to_vec(&Signal { name: name.to_owned() }));
        }
    }

    /// Client: tells a new size of the terminal.
    pub fn resize(&mut self, resize: Resize) {
        if self.connection.role == Role::Client {
            self.push_json(Kind::Resize, json::to_vec(&resize));
        }
    }

    /// Client: gives the channel up. A job that still runs is cancelled by the server. A server
    /// says [`Channel::reset`].
    pub fn close(self) {
        if self.connection.role == Role::Server {
            return;
        }
        let frame =
            Frame { kind: Kind::Close, flags: 0, channel: self.id.0, payload: Bytes::new() };
        self.connection.outbox.push_control(&frame);
        self.connection.close_channel(self.id.0);
    }

    /// Server: the job was started. Credit for stdin is granted if the client sends any.
    pub fn accept(&mut self, opened: &Opened) {
        let id = self.id.0;
        let Some(state) = self.asked().filter(|state| !state.attaching) else { return };
        state.stage = Stage::Running;
        let wants_stdin = state.wants_stdin;
        self.push_json(Kind::Opened, json::to_vec(opened));
        self.connection.answered(id);
        if wants_stdin {
            self.connection.grant_initial(id, Stream::Stdin);
        }
    }

    /// Server: the job's streams go on at these offsets.
    pub fn accept_attach(&mut self, attached: &Attached) {
        let id = self.id.0;
        let Some(state) = self.asked().filter(|state| state.attaching) else { return };
        state.stage = Stage::Running;
        for stream in Stream::OUTPUTS {
            let Some(from) = attached.streams.get(stream.name()) else { continue };
            let send = state.send.entry(stream).or_default();
            // Credit that came with the ATTACH counts from the offset at which the stream goes on.
            let limit = from.offset.saturating_add(send.limit);
            *send = SendStream { limit, waiting: send.waiting, ..SendStream::at(from.offset) };
        }
        if let Some(offset) = attached.stdin {
            let resume = ResumeStream { offset, sealer: None };
            state.recv.insert(Stream::Stdin, RecvStream::new(resume));
        }
        let wants_stdin = attached.stdin.is_some();
        self.push_json(Kind::Attached, json::to_vec(attached));
        self.connection.answered(id);
        if wants_stdin {
            self.connection.grant_initial(id, Stream::Stdin);
        }
    }

    /// Server: the job was not started. Closes the channel; does nothing once it is answered.
    pub fn refuse(mut self, refused: &Refused) {
        if self.asked().is_none() {
            return;
        }
        let refused = Refused { message: bounded_message(&refused.message), ..refused.clone() };
        self.push_json(Kind::Refused, json::to_vec(&refused));
        self.connection.close_channel(self.id.0);
    }

    /// Server: the process has ended; told at once, ahead of output that is queued (`W-7.2`).
    pub fn exit(&mut self, report: &ExitReport) {
        let Some(state) = self.state().filter(|state| state.stage == Stage::Running) else {
            return;
        };
        state.stage = Stage::Exited;
        self.push_json(Kind::Exit, json::to_vec(report));
    }

    /// Server: the last word. It leaves behind everything that is queued, and closes the channel.
    /// Streams that were not finished end here. Does nothing before [`Channel::exit`].
    pub fn seal(mut self, seal: &Seal) {
        let id = self.id.0;
        let payload = json::to_vec(seal).into();
        if self.state().is_none_or(|state| state.stage != Stage::Exited) {
            return;
        }
        for stream in Stream::OUTPUTS {
            self.finish(stream);
        }
        let Some(state) = self.state() else { return };
        state.tail = Some(Frame { kind: Kind::Seal, flags: 0, channel: id, payload });
        self.connection.outbox.schedule(id, &mut self.connection.channels);
    }

    /// Breaks the channel off, telling the peer why.
    pub fn reset(self, message: &str) {
        let id = self.id.0;
        self.connection.send_reset(id, message);
        self.connection.close_channel(id);
    }
}

impl Connection {
    /// The channel was answered: what waited for that can leave.
    pub(super) fn answered(&mut self, id: u32) {
        self.outbox.schedule(id, &mut self.channels);
        if let Some(state) = self.channels.get_mut(&id) {
            state.wake(id, &mut self.events);
        }
    }

    pub(super) fn send_reset(&mut self, id: u32, message: &str) {
        let payload = json::to_vec(&Reset { message: bounded_message(message) }).into();
        self.outbox.push_control(&Frame { kind: Kind::Reset, flags: 0, channel: id, payload });
    }
}
