//! What leaves next: control frames first, then the channels in turn, small ones ahead of bulk
//! (`W-6.9`).

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::channel::{ChannelState, Queued, Stage};
use super::{Event, Stream};
use crate::frame::{Frame, Header, Kind};
use crate::limits::{
    CHANNEL_QUEUE_BYTES_MAX, DATA_PREFIX_BYTES, FRAME_HEADER_BYTES, QUEUED_PIECE_BYTES,
};

/// A channel with at most this many bytes queued goes ahead of bulk ones: keystrokes, short output.
const EXPRESS_BYTES_MAX: u64 = 4096;

/// Frames of small channels in a row after which a bulk one has its turn all the same.
const EXPRESS_RUN_MAX: u32 = 32;

/// What leaves next, when no control frame waits.
enum Turn {
    Opening(Bytes),
    Channel(u32),
}

/// Frames that wait to be sent. Data waits in its channel; this knows whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    control: VecDeque<Bytes>,
    control_bytes: usize,
    pongs: usize,
    /// OPENs, ATTACHs and what follows them on their channels, in order. They can be megabytes, so
    /// they take turns with the channels instead of going ahead of everything.
    openings: VecDeque<(u32, Bytes)>,
    openings_bytes: usize,
    /// How many entries of `openings` each channel has.
    opening: BTreeMap<u32, usize>,
    express: VecDeque<u32>,
    bulk: VecDeque<u32>,
    express_run: u32,
    /// Whether a bulk channel was the last to send, so that an opening is next.
    bulk_was_last: bool,
    /// Frames that nobody waits for: they leave with the next ones, ahead of them.
    lazy: VecDeque<Bytes>,
    /// The last frame of the connection, when everything else has left.
    goodbye: Option<Bytes>,
    finished: bool,
}

impl Outbox {
    pub(super) fn push_control(&mut self, frame: &Frame) {
        if self.finished {
            return;
        }
        if self.opening.contains_key(&frame.channel) {
            return self.push_opening(frame);
        }
        let bytes = frame.to_bytes();
        self.control_bytes = self.control_bytes.saturating_add(bytes.len());
        if frame.kind == Kind::Pong {
            self.pongs = self.pongs.saturating_add(1);
        }
        self.control.push_back(bytes);
    }

    /// Queues an OPEN or ATTACH, or a frame that must not overtake that of its channel.
    pub(super) fn push_opening(&mut self, frame: &Frame) {
        if self.finished {
            return;
        }
        let bytes = frame.to_bytes();
        self.openings_bytes = self.openings_bytes.saturating_add(bytes.len());
        let entries = self.opening.entry(frame.channel).or_default();
        *entries = entries.saturating_add(1);
        self.openings.push_back((frame.channel, bytes));
    }

    /// Queues a frame that leaves when something else does, or when [`Outbox::hurry`] says so.
    pub(super) fn push_lazy(&mut self, frame: &Frame) {
        if !self.finished {
            self.lazy.push_back(frame.to_bytes());
        }
    }

    /// What nobody waits for has waited long enough.
    pub(super) fn hurry(&mut self) {
        let bytes: usize = self.lazy.iter().map(Bytes::len).sum();
        self.control_bytes = self.control_bytes.saturating_add(bytes);
        self.control.append(&mut self.lazy);
    }

    pub(super) fn has_lazy(&self) -> bool {
        !self.lazy.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.control.is_empty()
            && self.openings.is_empty()
            && self.express.is_empty()
            && self.bulk.is_empty()
    }

    fn pop_opening(&mut self) -> Option<Bytes> {
        let (channel, bytes) = self.openings.pop_front()?;
        self.openings_bytes = self.openings_bytes.saturating_sub(bytes.len());
        if let Some(entries) = self.opening.get_mut(&channel) {
            *entries = entries.saturating_sub(1);
            if *entries == 0 {
                self.opening.remove(&channel);
            }
        }
        Some(bytes)
    }

    pub(super) fn push_stream_frame(
        &mut self,
        kind: Kind,
        channel: u32,
        stream: Stream,
        payload: Bytes,
    ) {
        self.push_control(&Frame { kind, flags: stream.to_flags(), channel, payload });
    }

    pub(super) fn push_window(&mut self, channel: u32, stream: Stream, increment: u32) {
        let payload = Bytes::copy_from_slice(&increment.to_be_bytes());
        self.push_stream_frame(Kind::Window, channel, stream, payload);
    }

    pub(super) fn push_ack(&mut self, channel: u32, stream: Stream, offset: u64) {
        let payload = Bytes::copy_from_slice(&offset.to_be_bytes());
        self.push_stream_frame(Kind::Ack, channel, stream, payload);
    }

    /// Control bytes that wait, openings not counted.
    pub(super) fn control_bytes(&self) -> usize {
        self.control_bytes
    }

    /// PONGs that wait.
    pub(super) fn pongs(&self) -> usize {
        self.pongs
    }

    /// Nothing is queued behind this frame any more; what is queued leaves before it.
    pub(super) fn finish(&mut self, goodbye: &Frame) {
        self.goodbye = Some(goodbye.to_bytes());
        self.finished = true;
    }

    /// Drops everything that is queued: this frame is all that still leaves.
    pub(super) fn abort(&mut self, goodbye: &Frame) {
        *self = Self::default();
        self.finish(goodbye);
    }

    /// Drops everything that is queued: the peer has gone.
    pub(super) fn discard(&mut self) {
        *self = Self { finished: true, ..Self::default() };
    }

    /// Puts a channel with something to send into its ring.
    pub(super) fn schedule(&mut self, id: u32, channels: &mut BTreeMap<u32, ChannelState>) {
        let Some(state) = channels.get_mut(&id).filter(|state| !state.scheduled) else { return };
        if state.stage == Stage::Opening {
            return;
        }
        if state.queue.is_empty() && state.tail.is_none() {
            return;
        }
        state.scheduled = true;
        if state.queued_bytes <= EXPRESS_BYTES_MAX {
            self.express.push_back(id);
        } else {
            self.bulk.push_back(id);
        }
    }

    pub(super) fn transmit(
        &mut self,
        channels: &mut BTreeMap<u32, ChannelState>,
        out: &mut VecDeque<Bytes>,
        budget_bytes: usize,
        events: &mut VecDeque<Event>,
    ) -> usize {
        let mut sent: usize = 0;
        if !self.lazy.is_empty() && (!self.is_idle() || self.goodbye.is_some()) {
            // Ahead of the others: a channel that this closes must not count when the next opens.
            self.control_bytes =
                self.lazy.iter().map(Bytes::len).fold(self.control_bytes, usize::saturating_add);
            self.lazy.append(&mut self.control);
            std::mem::swap(&mut self.lazy, &mut self.control);
        }
        while sent < budget_bytes {
            if let Some(bytes) = self.control.pop_front() {
                self.control_bytes = self.control_bytes.saturating_sub(bytes.len());
                if bytes.first() == Some(&Kind::Pong.to_byte()) {
                    self.pongs = self.pongs.saturating_sub(1);
                }
                sent = sent.saturating_add(bytes.len());
                out.push_back(bytes);
                continue;
            }
            sent = sent.saturating_add(match self.next_turn(channels) {
                Some(Turn::Opening(bytes)) => {
                    let length = bytes.len();
                    out.push_back(bytes);
                    length
                }
                Some(Turn::Channel(id)) => self.send_one(id, channels, out, events),
                None => break,
            });
        }
        if self.is_idle()
            && let Some(goodbye) = self.goodbye.take()
        {
            sent = sent.saturating_add(goodbye.len());
            out.push_back(goodbye);
        }
        sent
    }

    fn next_turn(&mut self, channels: &mut BTreeMap<u32, ChannelState>) -> Option<Turn> {
        loop {
            let openings_small = self.openings_bytes as u64 <= EXPRESS_BYTES_MAX;
            let bulk_waits = !self.bulk.is_empty() || !openings_small;
            let express_turn = !bulk_waits || self.express_run < EXPRESS_RUN_MAX;
            if express_turn
                && openings_small
                && let Some(bytes) = self.pop_opening()
            {
                self.express_run = self.express_run.saturating_add(1);
                return Some(Turn::Opening(bytes));
            }
            if express_turn && let Some(id) = self.express.pop_front() {
                let Some(state) = channels.get(&id) else { continue };
                if state.queued_bytes > EXPRESS_BYTES_MAX {
                    self.bulk.push_back(id);
                    continue;
                }
                self.express_run = self.express_run.saturating_add(1);
                return Some(Turn::Channel(id));
            }
            self.express_run = 0;
            if (self.bulk_was_last || self.bulk.is_empty())
                && let Some(bytes) = self.pop_opening()
            {
                self.bulk_was_last = false;
                return Some(Turn::Opening(bytes));
            }
            let id = self.bulk.pop_front()?;
            if channels.contains_key(&id) {
                self.bulk_was_last = true;
                return Some(Turn::Channel(id));
            }
        }
    }

    /// Sends one frame of a channel that was taken out of its ring, and puts it back if it has more.
    fn send_one(
        &mut self,
        id: u32,
        channels: &mut BTreeMap<u32, ChannelState>,
        out: &mut VecDeque<Bytes>,
        events: &mut VecDeque<Event>,
    ) -> usize {
        let Some(state) = channels.get_mut(&id) else { return 0 };
        state.scheduled = false;
        let sent = match state.queue.pop_front() {
            Some(Queued::Data { stream, offset, clock_us, bytes }) => {
                let head = data_head(id, stream, offset, clock_us, bytes.len());
                let sent = head.len().saturating_add(bytes.len());
                let cost = QUEUED_PIECE_BYTES.saturating_add(bytes.len() as u64);
                state.queued_bytes = state.queued_bytes.saturating_sub(cost);
                if let Some(send) = state.send.get_mut(&stream) {
                    send.sent = offset.saturating_add(bytes.len() as u64);
                }
                out.push_back(head);
                out.push_back(bytes);
                if state.queued_bytes <= CHANNEL_QUEUE_BYTES_MAX / 2 {
                    state.wake(id, events);
                }
                sent
            }
            Some(Queued::Gap { stream, offset }) => {
                state.queued_bytes = state.queued_bytes.saturating_sub(QUEUED_PIECE_BYTES);
                if let Some(send) = state.send.get_mut(&stream) {
                    send.sent = offset;
                }
                push_whole(out, &offset_frame(Kind::Gap, id, stream, offset))
            }
            Some(Queued::End { stream, offset }) => {
                push_whole(out, &offset_frame(Kind::End, id, stream, offset))
            }
            None => 0,
        };
        if !state.queue.is_empty() {
            self.schedule(id, channels);
            return sent;
        }
        let Some(tail) = state.tail.take() else { return sent };
        if tail.kind == Kind::Seal {
            // It counts until the client has confirmed it, and takes little.
            state.stage = Stage::Sealed;
            state.recv.clear();
        } else {
            channels.remove(&id);
        }
        sent.saturating_add(push_whole(out, &tail))
    }
}

fn push_whole(out: &mut VecDeque<Bytes>, frame: &Frame) -> usize {
    let bytes = frame.to_bytes();
    let length = bytes.len();
    out.push_back(bytes);
    length
}

fn offset_frame(kind: Kind, channel: u32, stream: Stream, offset: u64) -> Frame {
    let payload = Bytes::copy_from_slice(&offset.to_be_bytes());
    Frame { kind, flags: stream.to_flags(), channel, payload }
}

/// Header and prefix of a DATA frame; the data follows as a piece of its own and is never copied.
fn data_head(channel: u32, stream: Stream, offset: u64, clock_us: u64, data_bytes: usize) -> Bytes {
    let length = u32::try_from(data_bytes.saturating_add(DATA_PREFIX_BYTES)).unwrap_or(u32::MAX);
    let header = Header { kind: Kind::Data, flags: stream.to_flags(), channel, length };
    let mut head = BytesMut::with_capacity(FRAME_HEADER_BYTES.saturating_add(DATA_PREFIX_BYTES));
    head.extend_from_slice(&header.to_bytes());
    head.extend_from_slice(&offset.to_be_bytes());
    head.extend_from_slice(&clock_us.to_be_bytes());
    head.freeze()
}
