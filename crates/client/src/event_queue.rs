//! The queue of a job's events, whose memory is bounded by the bytes that wait, in whatever pieces
//! they came.
//!
//! The window bounds bytes, and a server may send them one at a time. As events of their own, two
//! million single bytes are hundreds of megabytes, and a piece of a byte can hold on to all that
//! was read with it. So only the first pieces that wait are kept as they came; those behind them
//! are pressed together into blocks, from which each comes out again as it went in.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use afar_proto::connection::Stream;
use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::sync::Notify;

use crate::job::{Chunk, JobEvent};
use crate::limits::{EVENT_BLOCK_BYTES, EVENT_PIECES_LOOSE_MAX};

/// A queue, and its two ends.
pub(crate) fn channel() -> (EventSender, EventReceiver) {
    let shared = Arc::new(Shared { queue: Mutex::default(), changed: Notify::new() });
    (EventSender(Arc::clone(&shared)), EventReceiver(shared))
}

/// Where the dispatcher tells of a job. Dropping it ends the queue behind what waits.
#[derive(Debug)]
pub(crate) struct EventSender(Arc<Shared>);

/// Where the job's handle takes its events.
#[derive(Debug)]
pub(crate) struct EventReceiver(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements that could panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EventSender {
    /// Puts an event behind what waits. To a job that was dropped there is nothing to be told.
    pub(crate) fn send(&self, event: JobEvent) {
        let mut queue = self.0.lock();
        if queue.unwanted {
            return;
        }
        queue.push(event);
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_one();
    }
}

impl EventReceiver {
    /// The next event; `None` once there will be none. Cancellation safe.
    pub(crate) async fn recv(&mut self) -> Option<JobEvent> {
        loop {
            {
                let mut queue = self.0.lock();
                if let Some(event) = queue.pop() {
                    return Some(event);
                }
                if queue.ended {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }
}

impl Drop for EventReceiver {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.unwanted = true;
        queue.waiting.clear();
    }
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Pieces of output that wait as events of their own.
    loose: usize,
    ended: bool,
    unwanted: bool,
}

#[derive(Debug)]
enum Waiting {
    Event(JobEvent),
    Block(Block),
}

impl Queue {
    fn push(&mut self, event: JobEvent) {
        let JobEvent::Output(chunk) = event else {
            self.waiting.push_back(Waiting::Event(event));
            return;
        };
        if let Some(Waiting::Block(block)) = self.waiting.back_mut()
            && block.takes(&chunk)
        {
            block.push(&chunk);
        } else if self.loose < EVENT_PIECES_LOOSE_MAX {
            self.loose += 1;
            self.waiting.push_back(Waiting::Event(JobEvent::Output(chunk)));
        } else {
            let mut block = Block::default();
            block.push(&chunk);
            self.waiting.push_back(Waiting::Block(block));
        }
    }

    fn pop(&mut self) -> Option<JobEvent> {
        loop {
            if let Waiting::Block(block) = self.waiting.front_mut()? {
                if let Some(chunk) = block.pop() {
                    return Some(JobEvent::Output(chunk));
                }
                self.waiting.pop_front();
                continue;
            }
            let Some(Waiting::Event(event)) = self.waiting.pop_front() else { continue };
            if let JobEvent::Output(_) = event {
                self.loose -= 1;
            }
            return Some(event);
        }
    }
}

/// Pieces of output, pressed together: their bytes one behind the other, and beside them what tells
/// where each begins, two numbers in as few bytes as they need.
#[derive(Debug, Default)]
struct Block {
    bytes: BytesMut,
    /// For each piece: its length with its stream in the lowest bit, and by how much its clock is
    /// ahead of that of the piece before it.
    heads: Vec<u8>,
    heads_taken: usize,
    /// Bytes that were ever put in.
    filled: usize,
    /// What the next piece to come in must agree with, and what the next one to go out gets.
    last_in: Place,
    next_out: Place,
}

/// A place in the output: the clock, and the offset in each stream that is known.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    clock_us: u64,
    offsets: [Option<u64>; 2],
}

impl Block {
    fn takes(&self, chunk: &Chunk) -> bool {
        let known = self.last_in.offsets.get(slot(chunk.stream)).copied().flatten();
        self.filled < EVENT_BLOCK_BYTES && known.is_none_or(|offset| offset == chunk.offset)
    }

    fn push(&mut self, chunk: &Chunk) {
        let Chunk { stream, offset, clock_us, bytes } = chunk;
        let slot = slot(*stream);
        // A clock that goes back is none; its pieces count as read together.
        let ahead_us = clock_us.saturating_sub(self.last_in.clock_us);
        self.last_in.clock_us += ahead_us;
        put_varint(&mut self.heads, (bytes.len() as u64) << 1 | slot as u64);
        put_varint(&mut self.heads, ahead_us);
        if let Some(known) = self.last_in.offsets.get_mut(slot) {
            if known.is_none()
                && let Some(out) = self.next_out.offsets.get_mut(slot)
            {
                *out = Some(*offset);
            }
            *known = Some(offset.saturating_add(bytes.len() as u64));
        }
        self.bytes.put_slice(bytes);
        self.filled += bytes.len();
    }

    fn pop(&mut self) -> Option<Chunk> {
        let mut heads = self.heads.get(self.heads_taken..)?;
        let length_and_stream = take_varint(&mut heads)?;
        self.next_out.clock_us += take_varint(&mut heads)?;
        self.heads_taken = self.heads.len() - heads.len();
        let stream = if length_and_stream & 1 == 1 { Stream::Stderr } else { Stream::Stdout };
        let length = usize::try_from(length_and_stream >> 1).ok()?;
        let bytes: Bytes = self.bytes.split_to(length).freeze();
        let known = self.next_out.offsets.get_mut(slot(stream))?.as_mut()?;
        let offset = *known;
        *known = offset.saturating_add(length as u64);
        Some(Chunk { stream, offset, clock_us: self.next_out.clock_us, bytes })
    }
}

fn slot(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// Seven bits a byte, the lowest first; the highest bit says that more follow.
fn put_varint(to: &mut Vec<u8>, mut number: u64) {
    loop {
        let [low, ..] = number.to_le_bytes();
        number >>= 7;
        if number == 0 {
            to.push(low & 0x7f);
            return;
        }
        to.push(low | 0x80);
    }
}

fn take_varint(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(stream: Stream, offset: u64, clock_us: u64, bytes: Bytes) -> JobEvent {
        JobEvent::Output(Chunk { stream, offset, clock_us, bytes })
    }

    /// What a queue holds, without what its loose pieces share with others.
    fn memory_bytes(queue: &Queue) -> usize {
        let blocks = queue.waiting.iter().filter_map(|waiting| match waiting {
            Waiting::Block(block) => Some(block.bytes.capacity() + block.heads.capacity()),
            Waiting::Event(_) => None,
        });
        queue.waiting.capacity() * size_of::<Waiting>() + blocks.sum::<usize>()
    }

    #[tokio::test]
    async fn fault_86_single_bytes_that_nobody_takes_cost_little_more_than_themselves() {
        let (sender, mut receiver) = channel();
        let window = afar_proto::limits::WINDOW_BYTES_INITIAL;
        // Both windows, a byte at a time, in turns, and each byte is a part of something larger.
        let event = |number: u32| {
            let stream = if number.is_multiple_of(2) { Stream::Stdout } else { Stream::Stderr };
            let [low, ..] = number.to_le_bytes();
            let bytes = Bytes::from(vec![low; 2]).slice(1..);
            let clock_us = u64::from(number) * 300;
            piece(stream, u64::from(number / 2), clock_us, bytes)
        };
        for number in 0..2 * window {
            sender.send(event(number));
        }
        let waiting_bytes = 2 * window as usize;
        let memory_bytes = memory_bytes(&receiver.0.lock());
        assert!(memory_bytes < 8 * waiting_bytes, "{memory_bytes} for {waiting_bytes}");
        drop(sender);
        for number in 0..2 * window {
            let (JobEvent::Output(expected), Some(JobEvent::Output(found))) =
                (event(number), receiver.recv().await)
            else {
                panic!("no output at {number}");
            };
            assert_eq!(found, expected);
        }
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn events_keep_their_order_among_pieces() {
        let (sender, mut receiver) = channel();
        let pieces = EVENT_PIECES_LOOSE_MAX as u64 + 3;
        for offset in 0..pieces {
            sender.send(piece(Stream::Stdout, offset, 0, Bytes::from_static(b"x")));
        }
        sender.send(JobEvent::OutputEnd(Stream::Stdout));
        sender.send(piece(Stream::Stderr, 0, 7, Bytes::from_static(b"y")));
        for expected in 0..pieces {
            let event = receiver.recv().await;
            assert!(
                matches!(&event, Some(JobEvent::Output(chunk)) if chunk.offset == expected),
                "{event:?}"
            );
        }
        assert!(matches!(receiver.recv().await, Some(JobEvent::OutputEnd(Stream::Stdout))));
        assert!(
            matches!(receiver.recv().await, Some(JobEvent::Output(chunk)) if chunk.clock_us == 7)
        );
    }

    #[test]
    fn a_block_is_filled_and_no_more_and_a_gap_begins_another_one() {
        let mut queue = Queue { loose: EVENT_PIECES_LOOSE_MAX, ..Queue::default() };
        let blocks = |queue: &Queue| queue.waiting.len();
        queue.push(piece(Stream::Stdout, 0, 0, vec![0; EVENT_BLOCK_BYTES - 1].into()));
        queue.push(piece(Stream::Stdout, EVENT_BLOCK_BYTES as u64 - 1, 0, vec![0].into()));
        assert_eq!(blocks(&queue), 1);
        queue.push(piece(Stream::Stdout, EVENT_BLOCK_BYTES as u64, 0, vec![0].into()));
        assert_eq!(blocks(&queue), 2);
        queue.push(piece(Stream::Stdout, EVENT_BLOCK_BYTES as u64 + 5, 0, vec![0].into()));
        assert_eq!(blocks(&queue), 3);
        let offsets: Vec<u64> = std::iter::from_fn(|| match queue.pop() {
            Some(JobEvent::Output(chunk)) => Some(chunk.offset),
            _ => None,
        })
        .collect();
        let block = EVENT_BLOCK_BYTES as u64;
        assert_eq!(offsets, [0, block - 1, block, block + 5]);
    }

    #[test]
    fn numbers_of_every_length_come_back() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u64::MAX >> 1, u64::MAX];
        let mut encoded = Vec::new();
        numbers.into_iter().for_each(|number| put_varint(&mut encoded, number));
        let mut rest = encoded.as_slice();
        let decoded: Vec<u64> = std::iter::from_fn(|| take_varint(&mut rest)).collect();
        assert_eq!(decoded, numbers);
    }

    #[tokio::test]
    async fn a_job_that_was_dropped_is_told_nothing() {
        let (sender, receiver) = channel();
        sender.send(JobEvent::StdinClosed);
        drop(receiver);
        sender.send(JobEvent::StdinClosed);
        assert!(sender.0.lock().waiting.is_empty());
    }
}
