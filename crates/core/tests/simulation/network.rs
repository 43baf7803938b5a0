//! Links between clients and the supervisor: bytes are delayed, split, merged and cut, never
//! reordered or changed.

use std::collections::VecDeque;
use std::time::Duration;

use afar_proto::Instant;

use super::rng::Rng;

/// One direction of a link.
#[derive(Debug)]
pub(crate) struct Direction {
    flight: VecDeque<(Instant, Vec<u8>)>,
    delay: Duration,
    /// When the receiver sees the end of the bytes.
    end: Option<Instant>,
    /// Whether the path is gone without anybody being told.
    pub(crate) silent: bool,
}

impl Direction {
    fn new(rng: &mut Rng) -> Self {
        let delay = rng.duration(Duration::from_millis(200));
        Self { flight: VecDeque::new(), delay, end: None, silent: false }
    }

    pub(crate) fn send(&mut self, now: Instant, rng: &mut Rng, bytes: Vec<u8>) {
        if self.silent || self.end.is_some() || bytes.is_empty() {
            return;
        }
        let jitter = rng.duration(Duration::from_millis(20));
        let last = self.flight.back().map_or(now, |(at, _)| *at);
        self.flight.push_back((now.after(self.delay + jitter).max(last), bytes));
    }

    /// Some of what has arrived.
    pub(crate) fn receive(&mut self, now: Instant, rng: &mut Rng) -> Option<Vec<u8>> {
        let (at, bytes) = self.flight.front_mut()?;
        if *at > now || self.silent {
            return None;
        }
        if rng.percent(10) {
            let part = bytes.drain(..rng.index(bytes.len()) + 1).collect();
            if bytes.is_empty() {
                self.flight.pop_front();
            }
            return Some(part);
        }
        let mut all = Vec::new();
        while let Some((_, bytes)) = self.flight.pop_front_if(|(at, _)| *at <= now) {
            all.extend(bytes);
        }
        Some(all)
    }

    /// Whether the receiver has seen everything there will ever be.
    pub(crate) fn has_ended(&self, now: Instant) -> bool {
        !self.silent && self.flight.is_empty() && self.end.is_some_and(|end| end <= now)
    }

    /// Nothing comes behind what is under way.
    pub(crate) fn close(&mut self, now: Instant) {
        let last = self.flight.back().map_or(now, |(at, _)| *at);
        self.end.get_or_insert(last);
    }

    /// The path breaks: what is under way arrives up to some byte.
    fn cut(&mut self, now: Instant, rng: &mut Rng) {
        let total: usize = self.flight.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut left = rng.index(total + 1);
        for (_, bytes) in &mut self.flight {
            bytes.truncate(left);
            left -= bytes.len();
        }
        self.flight.retain(|(_, bytes)| !bytes.is_empty());
        self.close(now);
    }

    fn next(&self) -> Option<Instant> {
        if self.silent {
            return None;
        }
        self.flight.front().map(|(at, _)| *at).or(self.end)
    }
}

/// Both directions.
#[derive(Debug)]
pub(crate) struct Link {
    /// From the client.
    pub(crate) up: Direction,
    /// To the client.
    pub(crate) down: Direction,
}

impl Link {
    pub(crate) fn new(rng: &mut Rng) -> Self {
        Self { up: Direction::new(rng), down: Direction::new(rng) }
    }

    /// Breaks at any byte of both directions. A side that is not told finds out by itself.
    pub(crate) fn cut(&mut self, now: Instant, rng: &mut Rng) {
        self.up.cut(now, rng);
        self.down.cut(now, rng);
        match rng.below(6) {
            0 => self.up.silent = true,
            1 => self.down.silent = true,
            2 => (self.up.silent, self.down.silent) = (true, true),
            _ => {}
        }
    }

    /// When something arrives next. Ends are kept by the receivers.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.up.next().into_iter().chain(self.down.next()).min()
    }
}
