//! What leaves next: control frames first, then the channels in turn, small ones ahead of bulk.

use std::collections::{BTreeMap, VecDeque};

use bytes::{Bytes, BytesMut};

use super::channel::{CHANNEL_QUEUE_BYTES_MAX, ChannelState, Queued};
use super::{Event, Stream};
use crate::frame::{Frame, Header, Kind};
use crate::limits::{DATA_PREFIX_BYTES, FRAME_HEADER_BYTES};

/// A channel with at most this many bytes queued goes ahead of bulk ones: keystrokes, short output.
const EXPRESS_BYTES_MAX: u64 = 4096;

/// Frames of small channels in a row after which a bulk one has its turn all the same.
const EXPRESS_RUN_MAX: u32 = 32;

/// Frames that wait to be sent. Data waits in its channel; this knows whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    control: VecDeque<Bytes>,
    control_bytes: usize,
    pongs: usize,
    express: VecDeque<u32>,
    bulk: VecDeque<u32>,
    express_run: u32,
    /// The last frame of the connection, when everything else has left.
    goodbye: Option<Bytes>,
    finished: bool,
}

impl Outbox {
    pub(super) fn push_control(&mut self, frame: &Frame) {
        if self.finished {
            return;
        }
        let bytes = frame.to_bytes();
        self.control_bytes = self.control_bytes.saturating_add(bytes.len());
        if frame.kind == Kind::Pong {
            self.pongs = self.pongs.saturating_add(1);
        }
        self.control.push_back(bytes);
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

    /// Control bytes that wait.
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
        self.control.clear();
        self.control_bytes = 0;
        self.express.clear();
        self.bulk.clear();
        self.finish(goodbye);
    }

    /// Puts a channel with something to send into its ring.
    pub(super) fn schedule(&mut self, id: u32, channels: &mut BTreeMap<u32, ChannelState>) {
        let Some(state) = channels.get_mut(&id).filter(|state| !state.scheduled) else { return };
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
        while sent < budget_bytes {
            if let Some(bytes) = self.control.pop_front() {
                self.control_bytes = self.control_bytes.saturating_sub(bytes.len());
                sent = sent.saturating_add(bytes.len());
                out.push_back(bytes);
                continue;
            }
            self.pongs = 0;
            let Some(id) = self.next_channel(channels) else { break };
            sent = sent.saturating_add(self.send_one(id, channels, out, events));
        }
        if self.control.is_empty()
            && self.express.is_empty()
            && self.bulk.is_empty()
            && let Some(goodbye) = self.goodbye.take()
        {
            sent = sent.saturating_add(goodbye.len());
            out.push_back(goodbye);
        }
        sent
    }

    fn next_channel(&mut self, channels: &mut BTreeMap<u32, ChannelState>) -> Option<u32> {
        loop {
            let express_turn = self.bulk.is_empty() || self.express_run < EXPRESS_RUN_MAX;
            if express_turn && let Some(id) = self.express.pop_front() {
                let Some(state) = channels.get(&id) else { continue };
                if state.queued_bytes > EXPRESS_BYTES_MAX {
                    self.bulk.push_back(id);
                    continue;
                }
                self.express_run = self.express_run.saturating_add(1);
                return Some(id);
            }
            self.express_run = 0;
            let id = self.bulk.pop_front()?;
            if channels.contains_key(&id) {
                return Some(id);
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
                state.queued_bytes = state.queued_bytes.saturating_sub(bytes.len() as u64);
                out.push_back(head);
                out.push_back(bytes);
                if state.queued_bytes <= CHANNEL_QUEUE_BYTES_MAX / 2 {
                    state.wake(id, events);
                }
                sent
            }
            Some(Queued::End { stream, offset }) => {
                let payload = Bytes::copy_from_slice(&offset.to_be_bytes());
                let flags = stream.to_flags();
                push_whole(out, &Frame { kind: Kind::End, flags, channel: id, payload })
            }
            None => 0,
        };
        if !state.queue.is_empty() {
            self.schedule(id, channels);
            return sent;
        }
        let Some(tail) = state.tail.take() else { return sent };
        channels.remove(&id);
        sent.saturating_add(push_whole(out, &tail))
    }
}

fn push_whole(out: &mut VecDeque<Bytes>, frame: &Frame) -> usize {
    let bytes = frame.to_bytes();
    let length = bytes.len();
    out.push_back(bytes);
    length
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
