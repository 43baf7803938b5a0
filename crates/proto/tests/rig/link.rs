//! One direction of a link: bytes that are split, merged, delayed or cut, never reordered.

use std::collections::VecDeque;
use std::time::Duration;

use afar_proto::Instant;

/// One direction of a link in simulated time.
#[derive(Debug)]
pub(crate) struct Link {
    /// Most bytes that arrive at once.
    pub(crate) segment: usize,
    pub(crate) delay: Duration,
    /// Bytes go in and never come out, and nobody is told.
    pub(crate) silent: bool,
    in_flight: VecDeque<(Instant, Vec<u8>)>,
    /// Everything that was ever sent.
    pub(crate) record: Vec<u8>,
}

impl Link {
    pub(crate) fn new() -> Self {
        Self {
            segment: usize::MAX,
            delay: Duration::ZERO,
            silent: false,
            in_flight: VecDeque::new(),
            record: Vec::new(),
        }
    }

    pub(crate) fn send(&mut self, now: Instant, bytes: &[u8]) {
        self.record.extend_from_slice(bytes);
        if !self.silent && !bytes.is_empty() {
            self.in_flight.push_back((now.after(self.delay), bytes.to_vec()));
        }
    }

    /// What arrives now, at most `max` bytes of it and at most a segment.
    pub(crate) fn receive(&mut self, now: Instant, max: usize) -> Vec<u8> {
        let wanted = self.segment.min(max);
        let mut received = Vec::new();
        while received.len() < wanted {
            let Some((at, bytes)) = self.in_flight.front_mut() else { break };
            if *at > now {
                break;
            }
            let taken = bytes.len().min(wanted - received.len());
            received.extend(bytes.drain(..taken));
            if bytes.is_empty() {
                self.in_flight.pop_front();
            }
        }
        received
    }

    /// When the next bytes arrive.
    pub(crate) fn next_arrival(&self) -> Option<Instant> {
        self.in_flight.front().map(|(at, _)| *at)
    }

    /// Bytes under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Loses what is under way.
    pub(crate) fn lose(&mut self) {
        self.in_flight.clear();
    }
}
