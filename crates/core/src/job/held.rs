//! What is kept in memory of one output stream: everything from the last release on.

use std::collections::VecDeque;

use afar_proto::json::base64_bytes;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize, Serializer};

/// So many pieces keep their own times however small they are; behind them small ones are put
/// together, so that a million single bytes take the memory of their sum.
const LOOSE_PIECES_MAX: usize = 256;

/// Smaller pieces than this can be put together.
const SMALL_BYTES: usize = 1024;

/// Pieces that were put together are at most this long.
const GATHERED_BYTES_MAX: usize = 4096;

/// A run of bytes that were read together, with the job's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Offset of the first byte.
    pub offset: u64,
    /// The job's clock when the first byte was read, in microseconds.
    pub clock_us: u64,
    /// The bytes; never empty.
    pub bytes: Bytes,
}

impl Piece {
    /// The offset behind the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }

    /// What lies from `from` on, at most `bytes_max` of it; `None` if that is nothing.
    pub(super) fn part(&self, from: u64, bytes_max: usize) -> Option<Self> {
        let skipped = usize::try_from(from.checked_sub(self.offset)?).ok()?;
        let left = self.bytes.len().checked_sub(skipped).filter(|left| *left > 0)?;
        let bytes = self.bytes.slice(skipped..skipped.saturating_add(left.min(bytes_max)));
        (!bytes.is_empty()).then_some(Self { offset: from, clock_us: self.clock_us, bytes })
    }
}

/// Pieces without holes between them: each begins where the one before it ends.
#[derive(Debug, Default, Deserialize)]
#[serde(try_from = "Written")]
pub(super) struct Held {
    pieces: VecDeque<Piece>,
    /// Small pieces behind `pieces`, put together, with the clock of the first.
    gathered: BytesMut,
    gathered_clock_us: u64,
    start: u64,
    end: u64,
}

/// [`Held`] as it is written down.
#[derive(Serialize, Deserialize)]
struct Written {
    start: u64,
    pieces: Vec<WrittenPiece>,
}

#[derive(Serialize, Deserialize)]
struct WrittenPiece {
    clock_us: u64,
    #[serde(with = "base64_bytes")]
    bytes: Vec<u8>,
}

impl Serialize for Held {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let gathered = (!self.gathered.is_empty()).then(|| WrittenPiece {
            clock_us: self.gathered_clock_us,
            bytes: self.gathered.to_vec(),
        });
        let pieces = self.pieces.iter();
        // Of the first one a part may have been released.
        let pieces = pieces.filter_map(|piece| {
            let part = piece.part(self.start.max(piece.offset), usize::MAX)?;
            Some(WrittenPiece { clock_us: part.clock_us, bytes: part.bytes.to_vec() })
        });
        let pieces = pieces.chain(gathered).collect();
        Written { start: self.start, pieces }.serialize(serializer)
    }
}

impl TryFrom<Written> for Held {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, &'static str> {
        let mut held = Self::ending_at(written.start);
        for WrittenPiece { clock_us, bytes } in written.pieces {
            if bytes.is_empty() || held.end.checked_add(bytes.len() as u64).is_none() {
                return Err("a piece of output that can't be");
            }
            held.push(clock_us, bytes.into());
        }
        Ok(held)
    }
}

impl Held {
    /// Nothing of so many bytes.
    pub(super) fn ending_at(end: u64) -> Self {
        Self { start: end, end, ..Self::default() }
    }

    /// Offset of the first byte that is there.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    /// Offset behind the last one.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Bytes that are there.
    pub(super) fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// What they take, with what each piece costs beside its bytes.
    #[cfg(test)]
    fn cost(&self) -> u64 {
        let pieces = self.pieces.len() as u64 + u64::from(!self.gathered.is_empty());
        self.bytes() + pieces * afar_proto::limits::QUEUED_PIECE_BYTES
    }

    /// Adds what was read next.
    pub(super) fn push(&mut self, clock_us: u64, bytes: Bytes) {
        let offset = self.end;
        self.end = self.end.saturating_add(bytes.len() as u64);
        if bytes.len() < SMALL_BYTES && self.pieces.len() >= LOOSE_PIECES_MAX {
            if self.gathered.len().saturating_add(bytes.len()) > GATHERED_BYTES_MAX {
                self.settle(offset);
            }
            if self.gathered.is_empty() {
                self.gathered_clock_us = clock_us;
            }
            self.gathered.extend_from_slice(&bytes);
            return;
        }
        self.settle(offset);
        self.pieces.push_back(Piece { offset, clock_us, bytes });
    }

    /// Makes a piece of what was put together, which ends at `end`.
    fn settle(&mut self, end: u64) {
        if self.gathered.is_empty() {
            return;
        }
        let bytes = self.gathered.split().freeze();
        let offset = end.saturating_sub(bytes.len() as u64);
        self.pieces.push_back(Piece { offset, clock_us: self.gathered_clock_us, bytes });
    }

    /// The bytes from `from` on, as far as they are one piece and at most `bytes_max`. `None` if
    /// there is none at that offset.
    pub(super) fn piece(&mut self, from: u64, bytes_max: usize) -> Option<Piece> {
        if from < self.start {
            return None;
        }
        // The usual case: whoever reads is at the end, and wants the last one.
        let last = self.pieces.back().filter(|piece| piece.offset <= from);
        if let Some(part) = last.and_then(|piece| piece.part(from, bytes_max)) {
            return Some(part);
        }
        if !self.gathered.is_empty() && self.pieces.back().is_none_or(|piece| piece.end() <= from) {
            self.settle(self.end);
        }
        let index = self.pieces.partition_point(|piece| piece.end() <= from);
        self.pieces.get(index)?.part(from, bytes_max)
    }

    /// The offset of the first piece that was read at `clock_us` or later.
    pub(super) fn since(&mut self, clock_us: u64) -> u64 {
        self.settle(self.end);
        let index = self.pieces.partition_point(|piece| piece.clock_us < clock_us);
        self.pieces.get(index).map_or(self.end, |piece| piece.offset).max(self.start)
    }

    /// The offset at which the last `lines` lines begin; an end of line that nothing follows begins
    /// none.
    pub(super) fn tail(&mut self, lines: u64) -> u64 {
        self.settle(self.end);
        if lines == 0 {
            return self.end;
        }
        let mut left = lines;
        for piece in self.pieces.iter().rev() {
            for (index, _) in piece.bytes.iter().enumerate().rev().filter(|(_, b)| **b == b'\n') {
                let behind = piece.offset.saturating_add(index as u64).saturating_add(1);
                if behind == self.end {
                    continue;
                }
                left = left.saturating_sub(1);
                if left == 0 {
                    return behind.max(self.start);
                }
            }
        }
        self.start
    }

    /// Lets go of everything before `to`.
    pub(super) fn release(&mut self, to: u64) {
        let to = to.min(self.end);
        if to <= self.start {
            return;
        }
        self.start = to;
        while self.pieces.front().is_some_and(|piece| piece.end() <= to) {
            self.pieces.pop_front();
        }
        if to == self.end {
            self.gathered = BytesMut::new();
        }
        if self.pieces.is_empty() {
            // An idle job keeps nothing of what it once needed.
            self.pieces = VecDeque::new();
        }
    }

    /// Lets go of the oldest pieces until at most `bytes_max` are left; returns up to where.
    pub(super) fn shorten(&mut self, bytes_max: u64) -> u64 {
        while self.bytes() > bytes_max {
            let end = self.pieces.front().map_or(self.end, Piece::end);
            self.release(end);
        }
        self.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(held: &mut Held, bytes_max: usize) -> Vec<u8> {
        let mut read = Vec::new();
        let mut at = held.start();
        while let Some(piece) = held.piece(at, bytes_max) {
            assert!(piece.offset == at && piece.bytes.len() <= bytes_max);
            at = piece.end();
            read.extend_from_slice(&piece.bytes);
        }
        assert_eq!(at, held.end());
        read
    }

    #[test]
    fn what_was_pushed_is_read_from_any_offset_in_any_steps() {
        let mut held = Held { start: 7, end: 7, ..Held::default() };
        let mut all = Vec::new();
        for length in [1, 2000, 3, 5000, 1, 1] {
            let bytes: Vec<u8> = (0..=250).cycle().take(length).collect();
            held.push(all.len() as u64, bytes.clone().into());
            all.extend_from_slice(&bytes);
        }
        for step in [1, 7, 4096, usize::MAX] {
            assert_eq!(read_all(&mut held, step), all);
        }
        held.release(7 + 1500);
        assert_eq!((held.start(), read_all(&mut held, 64)), (1507, all[1500..].to_vec()));
        assert_eq!(held.piece(1506, 10), None);
        assert_eq!(held.piece(held.end(), 10), None);
    }

    #[test]
    fn a_million_single_bytes_take_the_memory_of_their_sum() {
        let mut held = Held::default();
        for index in 0..1_000_000_u64 {
            held.push(index, Bytes::from_static(b"x"));
        }
        assert!(held.cost() < 1_100_000, "{}", held.cost());
        assert_eq!(read_all(&mut held, usize::MAX).len(), 1_000_000);
        // The first have their own times, those behind them the time of the first of their kind.
        assert_eq!(held.piece(255, 1).map(|piece| piece.clock_us), Some(255));
        assert_eq!(held.piece(256 + 4095, 1).map(|piece| piece.clock_us), Some(256));
    }

    #[test]
    fn what_was_put_together_stays_in_order_with_what_comes_behind_it() {
        let mut held = Held::default();
        let mut all = Vec::new();
        for (index, byte) in (0..=250).cycle().take(2000).enumerate() {
            let bytes = vec![byte; if index % 97 == 0 { 1500 } else { 2 }];
            held.push(0, bytes.clone().into());
            all.extend_from_slice(&bytes);
            if index % 5 == 0 {
                let from = held.end() - 1;
                assert_eq!(held.piece(from, 9).unwrap().bytes, all[all.len() - 1..]);
            }
        }
        assert_eq!(read_all(&mut held, usize::MAX), all);
        held.release(held.end() - 3);
        assert_eq!(read_all(&mut held, 2), all[all.len() - 3..]);
        held.release(held.end());
        assert_eq!((held.bytes(), held.cost()), (0, 0));
    }

    #[test]
    fn lines_are_counted_from_the_end_and_times_from_the_start() {
        let mut held = Held::default();
        for (clock, text) in [(10, "one\ntw"), (20, "o\n"), (30, "three")] {
            held.push(clock, Bytes::from_static(text.as_bytes()));
        }
        let tails = [0, 1, 2, 3, 4].map(|lines| held.tail(lines));
        assert_eq!(tails, [13, 8, 4, 0, 0]);
        held.push(40, Bytes::from_static(b"\n"));
        assert_eq!([held.tail(1), held.tail(2)], [8, 4]);
        let since = [0, 10, 11, 20, 31, 41].map(|clock| held.since(clock));
        assert_eq!(since, [0, 0, 6, 6, 13, 14]);
        held.release(5);
        assert_eq!((held.tail(9), held.since(0)), (5, 5));
    }

    #[test]
    fn shortening_lets_go_of_the_oldest() {
        let mut held = Held::default();
        for _ in 0..4 {
            held.push(0, Bytes::from(vec![1; 100]));
        }
        assert_eq!(held.shorten(250), 200);
        assert_eq!((held.bytes(), held.shorten(250)), (200, 200));
    }
}
