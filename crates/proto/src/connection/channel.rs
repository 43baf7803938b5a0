//! One channel: the state of its streams, and the handle through which commands are given.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use bytes::Bytes;

use super::{ChannelId, Connection, Event, ResumeStream, Role, Stream};
use crate::frame::{Frame, Kind};
use crate::json;
use crate::limits::{CHANNEL_QUEUE_BYTES_MAX, DATA_BYTES_SENT_MAX, LAZY_DELAY, QUEUED_PIECE_BYTES};
use crate::message::{
    Answer, Attached, JobId, Opened, Refused, Reset, Resize, Signal, bounded_message,
};
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
    /// The stream goes on at `offset`, which the peer has still to be told: with the next data, or
    /// the end, so that gaps side by side are one.
    pub(super) gap: bool,
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
    /// Offset before which nothing is acknowledged any more: the server knows it to have come.
    pub(super) acked: u64,
    pub(super) ended: bool,
    pub(super) stopped: bool,
    /// `Some` iff every byte since offset 0 was seen.
    pub(super) sealer: Option<Sealer>,
    /// Gaps that lie between `consumed` and `offset`, in order.
    pub(super) gaps: VecDeque<Range<u64>>,
    /// Whether a gap is the last thing that came.
    pub(super) behind_gap: bool,
}

impl SendStream {
    /// A stream that goes on at `offset`, without credit.
    pub(super) fn at(offset: u64) -> Self {
        Self { offset, sent: offset, acked: offset, limit: offset, ..Self::default() }
    }
}

impl RecvStream {
    pub(super) fn new(resume: ResumeStream) -> Self {
        let ResumeStream { offset, unconsumed, sealer } = resume;
        Self {
            offset,
            granted: offset,
            consumed: offset.saturating_sub(unconsumed),
            acked: offset,
            ended: false,
            stopped: false,
            sealer,
            gaps: VecDeque::new(),
            behind_gap: false,
        }
    }

    /// Bytes that have come and were not consumed.
    pub(super) fn unconsumed(&self) -> u64 {
        self.offset.saturating_sub(self.consumed).saturating_sub(self.missing())
    }

    pub(super) fn into_resumption(self) -> ResumeStream {
        let unconsumed = self.unconsumed();
        ResumeStream { offset: self.offset, unconsumed, sealer: self.sealer }
    }

    /// The stream goes on at `to`, and its credit with it.
    pub(super) fn skip_to(&mut self, to: u64) {
        let from = self.offset;
        self.granted = to.saturating_add(self.granted.saturating_sub(from));
        self.offset = to;
        self.sealer = None;
        self.behind_gap = true;
        self.gaps.push_back(from..to);
        self.pass_gaps();
    }

    /// The application has brought `bytes` more to their destination.
    pub(super) fn advance(&mut self, bytes: u64) {
        let mut left = bytes;
        while left > 0 {
            let until = self.gaps.front().map_or(self.offset, |gap| gap.start);
            let step = left.min(until.saturating_sub(self.consumed));
            if step == 0 {
                break;
            }
            self.consumed = self.consumed.saturating_add(step);
            left = left.saturating_sub(step);
            self.pass_gaps();
        }
    }

    /// Nobody has to consume what is not there.
    fn pass_gaps(&mut self) {
        while let Some(gap) = self.gaps.pop_front_if(|gap| gap.start <= self.consumed) {
            self.consumed = gap.end;
        }
    }

    /// Credit to grant so that a whole window is open again.
    pub(super) fn credit_due(&self, window: u64) -> u64 {
        let open = self.consumed.saturating_add(self.missing()).saturating_add(window);
        open.saturating_sub(self.granted)
    }

    fn missing(&self) -> u64 {
        self.gaps.iter().map(|gap| gap.end.saturating_sub(gap.start)).sum()
    }
}

/// What waits to be sent on a channel, in order.
#[derive(Debug)]
pub(super) enum Queued {
    Data { stream: Stream, offset: u64, clock_us: u64, bytes: Bytes },
    Gap { stream: Stream, offset: u64 },
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
    /// Server: the seal has left, and was not confirmed.
    Sealed,
}

/// What a channel was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A job to start; a detached one is left with the answer.
    Open { detach: bool },
    /// A job that exists; whether to stay with it.
    Attach { follow: bool },
    /// An answer.
    Query,
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
    pub(super) asked: Asked,
    /// Client: the job that was asked for, and whether that is the beginning of an id only.
    pub(super) job: Option<(JobId, bool)>,
    /// Client: how the process has ended, by its EXIT.
    pub(super) end: Option<End>,
    /// Server: whether the client will send stdin.
    pub(super) wants_stdin: bool,
    pub(super) window_bytes: u32,
}

impl ChannelState {
    pub(super) fn new(asked: Asked, window_bytes: u32) -> Self {
        Self {
            stage: Stage::Opening,
            send: BTreeMap::new(),
            recv: BTreeMap::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            tail: None,
            scheduled: false,
            asked,
            job: None,
            end: None,
            wants_stdin: false,
            window_bytes,
        }
    }

    /// Bytes that `stream` takes now.
    pub(super) fn writable(&self, stream: Stream) -> u64 {
        let Some(send) = self.send.get(&stream) else { return 0 };
        if send.finished || matches!(self.stage, Stage::Opening | Stage::Sealed) {
            return 0;
        }
        let credit = send.limit.saturating_sub(send.offset);
        credit.min(CHANNEL_QUEUE_BYTES_MAX.saturating_sub(self.queued_bytes))
    }

    /// Queues the gap that the peer has to be told of before anything else of `stream`.
    fn queue_gap(&mut self, stream: Stream) {
        if let Some(send) = self.send.get_mut(&stream)
            && std::mem::take(&mut send.gap)
        {
            self.queued_bytes = self.queued_bytes.saturating_add(QUEUED_PIECE_BYTES);
            self.queue.push_back(Queued::Gap { stream, offset: send.offset });
        }
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

/// A frame of a channel that says all by its kind.
pub(super) fn empty_frame(kind: Kind, channel: u32) -> Frame {
    Frame { kind, flags: 0, channel, payload: Bytes::new() }
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
        if !bytes.is_empty() {
            state.queue_gap(stream);
        }
        let Some(send) = state.send.get_mut(&stream) else { return Err(WriteError::NotOpen) };
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

    /// Server: `stream` goes on at `offset`, because the bytes before it are not there any more. The
    /// credit that is left is for the bytes from there on. An offset that is not ahead does nothing.
    pub fn gap(&mut self, stream: Stream, offset: u64) {
        if self.connection.role != Role::Server {
            return;
        }
        let Some(state) = self.state().filter(|state| state.stage != Stage::Opening) else {
            return;
        };
        let Some(send) = state.send.get_mut(&stream).filter(|send| !send.finished) else { return };
        if offset > send.offset {
            let credit = send.limit.saturating_sub(send.offset);
            send.offset = offset;
            send.limit = offset.saturating_add(credit);
            send.gap = true;
        }
    }

    /// Ends `stream` behind what is queued. A second call does nothing. Before the channel is
    /// answered, the end waits for the answer.
    pub fn finish(&mut self, stream: Stream) {
        let id = self.id.0;
        let Some(state) = self.state() else { return };
        let Some(send) = state.send.get_mut(&stream).filter(|send| !send.finished) else { return };
        send.finished = true;
        let offset = send.offset;
        state.queue_gap(stream);
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
        recv.advance(bytes as u64);
        if recv.ended || recv.stopped {
            return;
        }
        let increment = recv.credit_due(window);
        if increment > 0 && increment >= window / 4 {
            recv.granted = recv.granted.saturating_add(increment);
            let consumed = recv.consumed;
            // What came on an earlier connection was acknowledged by the offset of the ATTACH.
            let news = consumed > recv.acked;
            if news {
                recv.acked = consumed;
                self.connection.outbox.push_ack(id, stream, consumed);
            }
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

    /// Client: leaves the channel; the job goes on.
    pub fn detach(self) {
        if self.connection.role == Role::Server {
            return;
        }
        self.connection.outbox.push_control(&empty_frame(Kind::Detach, self.id.0));
        self.connection.close_channel(self.id.0);
    }

    /// Client: gives the channel up. A job that still runs is cancelled by the server. A server
    /// says [`Channel::reset`].
    pub fn close(self) {
        if self.connection.role == Role::Server {
            return;
        }
        self.connection.outbox.push_control(&empty_frame(Kind::Close, self.id.0));
        self.connection.close_channel(self.id.0);
    }

    /// Server: the job was started. Credit for stdin is granted if the client sends any. A channel
    /// whose client wanted to detach is closed by this.
    pub fn accept(&mut self, opened: &Opened) {
        let id = self.id.0;
        let Some(state) = self.asked() else { return };
        let Asked::Open { detach } = state.asked else { return };
        state.stage = Stage::Running;
        let wants_stdin = state.wants_stdin;
        self.push_json(Kind::Opened, json::to_vec(opened));
        if detach {
            return self.connection.close_channel(id);
        }
        self.connection.answered(id);
        if wants_stdin {
            self.connection.grant_initial(id, Stream::Stdin);
        }
    }

    /// Server: the job's streams go on at these offsets. Answers an OPEN too, of a job that exists.
    pub fn accept_attach(&mut self, attached: &Attached) {
        self.accept_attach_with(attached, attached.stdin.unwrap_or(0));
    }

    /// As [`Channel::accept_attach`], where bytes before the offset at which stdin goes on wait
    /// still: those from `taken` on. Credit is granted for a window behind that, so that what waits
    /// stays within a window whoever attaches how often.
    pub fn accept_attach_with(&mut self, attached: &Attached, taken: u64) {
        let id = self.id.0;
        let Some(state) = self.asked().filter(|state| state.asked != Asked::Query) else { return };
        if state.asked == (Asked::Open { detach: true }) {
            self.push_json(Kind::Attached, json::to_vec(attached));
            return self.connection.close_channel(id);
        }
        state.stage = Stage::Running;
        state.send.retain(|stream, _| attached.streams.contains_key(stream.name()));
        state.recv.clear();
        for stream in Stream::OUTPUTS {
            let Some(from) = attached.streams.get(stream.name()) else { continue };
            let Some(send) = state.send.get_mut(&stream) else { continue };
            // Credit that came with the ATTACH counts from the offset at which the stream goes on.
            let limit = from.offset.saturating_add(send.limit);
            *send = SendStream { limit, waiting: send.waiting, ..SendStream::at(from.offset) };
        }
        if let Some(offset) = attached.stdin {
            let unconsumed = offset.saturating_sub(taken);
            let resume = ResumeStream { offset, unconsumed, sealer: None };
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

    /// Server: answers a query, or ends an attachment that does not follow: its streams end behind
    /// what is queued. Closes the channel.
    pub fn answer(mut self, answer: &Answer) {
        let id = self.id.0;
        if self.connection.role != Role::Server {
            return;
        }
        let Some(state) = self.state() else { return };
        let payload = json::to_vec(answer).into();
        let frame = Frame { kind: Kind::Answer, flags: 0, channel: id, payload };
        match (state.asked, state.stage) {
            (Asked::Query, _) => {
                self.connection.outbox.push_control(&frame);
                self.connection.close_channel(id);
            }
            (Asked::Attach { follow: false }, Stage::Running) => self.finish_with(frame),
            _ => {}
        }
    }

    /// Server: the process has ended; told at once, ahead of output that is queued (`W-7.2`).
    pub fn exit(&mut self, report: &ExitReport) {
        let Some(state) = self.state().filter(|state| state.stage == Stage::Running) else {
            return;
        };
        state.stage = Stage::Exited;
        self.push_json(Kind::Exit, json::to_vec(report));
    }

    /// Server: the last word. It leaves behind everything that is queued; streams that were not
    /// finished end here. [`Event::Confirmed`] follows, and closes the channel. Does nothing before
    /// [`Channel::exit`].
    pub fn seal(mut self, seal: &Seal) {
        let id = self.id.0;
        let payload = json::to_vec(seal).into();
        if self.state().is_none_or(|state| state.stage != Stage::Exited) {
            return;
        }
        self.finish_with(Frame { kind: Kind::Seal, flags: 0, channel: id, payload });
    }

    /// Ends what is open and lets this frame leave behind it.
    fn finish_with(&mut self, tail: Frame) {
        for stream in Stream::OUTPUTS {
            self.finish(stream);
        }
        let id = self.id.0;
        let Some(state) = self.state().filter(|state| state.tail.is_none()) else { return };
        state.tail = Some(tail);
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

    /// Client: queues a frame that nobody waits for (`W-5.12`).
    pub(super) fn push_lazy(&mut self, frame: &Frame) {
        self.outbox.push_lazy(frame);
        self.lazy_due.get_or_insert_with(|| self.last_input.after(LAZY_DELAY));
    }

    pub(super) fn send_reset(&mut self, id: u32, message: &str) {
        let payload = json::to_vec(&Reset { message: bounded_message(message) }).into();
        self.outbox.push_control(&Frame { kind: Kind::Reset, flags: 0, channel: id, payload });
    }
}
