//! Input that was sent and not acknowledged: what a new link may have to carry once more (`J-4.2`).

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use crate::limits::INPUT_PIECE_COPIED_BYTES;

/// The end of a stream, from the last acknowledgement on.
///
/// Bounded by the credit that the server has granted. Small pieces are copied together, because a
/// byte that holds on to a buffer of its own costs a hundred.
#[derive(Debug, Default)]
pub(super) struct Unacked {
    /// Offset of the first byte that is kept.
    start: u64,
    /// Offset behind the last one.
    end: u64,
    pieces: VecDeque<Bytes>,
    /// Small pieces behind those.
    tail: BytesMut,
}

/// A server asks for bytes that it has acknowledged, or that were never sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotKept;

impl Unacked {
    /// Nothing, of a stream that goes on at `offset`.
    pub(super) fn at(offset: u64) -> Self {
        Self { start: offset, end: offset, ..Self::default() }
    }

    /// Keeps what is sent now.
    pub(super) fn push(&mut self, piece: &Bytes) {
        self.end += piece.len() as u64;
        if piece.len() <= INPUT_PIECE_COPIED_BYTES {
            self.tail.extend_from_slice(piece);
            if self.tail.len() >= INPUT_PIECE_COPIED_BYTES {
                self.close_tail();
            }
        } else {
            self.close_tail();
            self.pieces.push_back(piece.clone());
        }
    }

    /// Lets go of what has reached its destination.
    pub(super) fn ack(&mut self, offset: u64) {
        while self.start < offset.min(self.end) {
            let surplus = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
            let dropped = match self.pieces.front_mut() {
                Some(front) if front.len() <= surplus => {
                    self.pieces.pop_front().map_or(0, |piece| piece.len())
                }
                Some(front) => front.split_to(surplus).len(),
                None => self.tail.split_to(surplus.min(self.tail.len())).len(),
            };
            self.start += dropped as u64;
        }
    }

    /// Everything from `offset` on, which the server wants to have next; nothing is kept any more
    /// until it is sent again.
    ///
    /// # Errors
    /// [`NotKept`] if there is no such offset here.
    pub(super) fn rewind(&mut self, offset: u64) -> Result<VecDeque<Bytes>, NotKept> {
        if offset < self.start || offset > self.end {
            return Err(NotKept);
        }
        self.ack(offset);
        self.close_tail();
        self.end = self.start;
        Ok(std::mem::take(&mut self.pieces))
    }

    /// Keeps nothing of what there is: the stream is over.
    pub(super) fn clear(&mut self) {
        self.start = self.end;
        self.pieces.clear();
        self.tail.clear();
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream in which every offset can be told from its neighbours.
    fn stream(range: std::ops::Range<usize>) -> Bytes {
        range.map(|at| u8::try_from(at % 251).unwrap()).collect()
    }

    fn filled(lengths: &[usize]) -> Unacked {
        let mut unacked = Unacked::default();
        let mut at = 0;
        for length in lengths {
            unacked.push(&stream(at..at + length));
            at += length;
        }
        unacked
    }

    fn joined(pieces: VecDeque<Bytes>) -> Vec<u8> {
        pieces.into_iter().flatten().collect()
    }

    /// `J-4.2`
    #[test]
    fn what_was_not_acknowledged_is_there_from_any_offset_on() {
        let large = INPUT_PIECE_COPIED_BYTES + 1;
        let lengths = [3, 1, large, 2, large, INPUT_PIECE_COPIED_BYTES, 5];
        let total: usize = lengths.iter().sum();
        let offsets = [0, 1, 3, 4, 5, 4 + large, total - 5, total - 1, total];
        for acked in offsets {
            for wanted in offsets.into_iter().filter(|wanted| *wanted >= acked) {
                let mut unacked = filled(&lengths);
                unacked.ack(acked as u64);
                let again = joined(unacked.rewind(wanted as u64).unwrap());
                assert_eq!(again, stream(wanted..total), "{acked} {wanted}");
                // It is sent once more, and goes on where it was.
                for piece in [again.into(), stream(total..total + 7)] {
                    unacked.push(&piece);
                }
                let again = joined(unacked.rewind(total as u64).unwrap());
                assert_eq!(again, stream(total..total + 7));
            }
        }
    }

    #[test]
    fn a_stream_that_was_begun_by_somebody_else_goes_on_where_it_is() {
        let mut unacked = Unacked::at(7);
        unacked.push(&stream(7..9));
        assert_eq!(unacked.rewind(6), Err(NotKept));
        assert_eq!(joined(unacked.rewind(8).unwrap()), stream(8..9));
    }

    #[test]
    fn what_is_not_there_is_not_made_up() {
        let mut unacked = filled(&[10]);
        unacked.ack(4);
        assert_eq!(unacked.rewind(3), Err(NotKept));
        assert_eq!(unacked.rewind(11), Err(NotKept));
        // Nor does an acknowledgement of what was never sent do any harm.
        unacked.ack(1000);
        assert_eq!(unacked.rewind(10), Ok(VecDeque::new()));
    }

    #[test]
    fn single_bytes_do_not_hold_on_to_a_buffer_each() {
        let mut unacked = Unacked::default();
        let count = 4 * INPUT_PIECE_COPIED_BYTES;
        for _ in 0..count {
            unacked.push(&Bytes::from(vec![1]));
        }
        assert!(unacked.pieces.len() <= 4, "{}", unacked.pieces.len());
        assert_eq!(joined(unacked.rewind(0).unwrap()).len(), count);
    }

    #[test]
    fn a_stream_that_is_over_keeps_nothing_and_its_place() {
        let mut unacked = filled(&[10, INPUT_PIECE_COPIED_BYTES + 1]);
        unacked.clear();
        let end = 11 + INPUT_PIECE_COPIED_BYTES as u64;
        assert_eq!(unacked.rewind(0), Err(NotKept));
        assert_eq!(unacked.rewind(end), Ok(VecDeque::new()));
    }
}
