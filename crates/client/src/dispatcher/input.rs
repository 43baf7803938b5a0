//! A job's stdin on its way: what waits for credit, and what may have to be sent again.

use std::collections::VecDeque;

use afar_proto::Channel;
use afar_proto::connection::Stream;
use bytes::Bytes;

use super::unacked::{NotKept, Unacked};

/// The input of one job, over all connections.
#[derive(Debug, Default)]
pub(super) struct Input {
    waiting: VecDeque<Bytes>,
    /// Bytes at the front of those that wait that have been sent on an earlier connection.
    again: usize,
    /// Bytes at the front of all input that the job has got already, from an earlier request.
    repeated: u64,
    unacked: Unacked,
    ended: bool,
}

impl Input {
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.waiting.push_back(bytes);
    }

    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Hands the connection as much as it takes; returns how many bytes of it were new to it.
    pub(super) fn pump(&mut self, channel: &mut Channel<'_>) -> usize {
        let mut fresh = self.drop_repeated();
        while let Some(front) = self.waiting.front_mut() {
            let taken = channel.writable(Stream::Stdin).min(front.len());
            if taken == 0 {
                return fresh;
            }
            let piece = front.split_to(taken);
            if front.is_empty() {
                self.waiting.pop_front();
            }
            self.unacked.push(&piece);
            if channel.write(Stream::Stdin, 0, piece).is_err() {
                return fresh;
            }
            let repeated = self.again.min(taken);
            self.again -= repeated;
            fresh += taken - repeated;
        }
        if self.ended && self.repeated == 0 {
            channel.finish(Stream::Stdin);
        }
        fresh
    }

    /// Lets go of what the job has got already; returns how many bytes that was.
    fn drop_repeated(&mut self) -> usize {
        let mut dropped = 0;
        while self.repeated > 0
            && let Some(front) = self.waiting.front_mut()
        {
            let piece = front.split_to(
                usize::try_from(self.repeated).map_or(front.len(), |most| most.min(front.len())),
            );
            if front.is_empty() {
                self.waiting.pop_front();
            }
            self.repeated = self.repeated.saturating_sub(piece.len() as u64);
            dropped += piece.len();
        }
        dropped
    }

    /// Whether all of it is less than what the job has got already: then it was another input.
    pub(super) fn is_short(&self) -> bool {
        self.ended && self.waiting.is_empty() && self.repeated > 0
    }

    pub(super) fn ack(&mut self, offset: u64) {
        self.unacked.ack(offset);
    }

    /// The job takes input from `offset` on, on a connection on which nothing was sent yet.
    ///
    /// # Errors
    /// The offset is not one of what was sent and not acknowledged.
    pub(super) fn rewind(&mut self, offset: u64) -> Result<(), NotKept> {
        let mut pieces = self.unacked.rewind(offset)?;
        self.again += pieces.iter().map(Bytes::len).sum::<usize>();
        pieces.append(&mut self.waiting);
        self.waiting = pieces;
        Ok(())
    }

    /// The job was there before us: its input goes on at `offset`.
    pub(super) fn begin(&mut self, offset: u64) {
        self.unacked = Unacked::at(offset);
    }

    /// The job was started by an earlier request with the same input, and has got it up to `offset`.
    pub(super) fn repeat(&mut self, offset: u64) {
        self.begin(offset);
        self.repeated = offset;
    }

    /// The job takes no more.
    pub(super) fn close(&mut self) {
        self.waiting.clear();
        self.again = 0;
        self.repeated = 0;
        self.unacked.clear();
    }
}
