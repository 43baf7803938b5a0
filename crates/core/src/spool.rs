//! The format of spooled output: names of directories and segments, and what stands in a record
//! (`J-5.5` to `J-5.7`).

use std::fmt;

use afar_proto::connection::Stream;

use crate::record::{Magic, Salt};

/// What a segment begins with (`J-5.1`).
pub const SEGMENT_MAGIC: Magic = *b"afarspl1";

/// The kind of the records of a segment (`J-5.6`).
pub const PIECE_KIND: u8 = 16;

/// Bytes of a record's payload before the output itself (`J-5.6`).
pub const PIECE_PREFIX_BYTES: usize = 17;

/// Hexadecimal digits of a number in a name.
const DIGITS: usize = 16;

/// The name of the directory of a job's output (`J-5.5`).
#[must_use]
pub fn spool_name(number: u64, salt: Salt) -> String {
    format!("{number:016x}-{:016x}", salt.0)
}

/// The number and the salt in such a name; `None` if it is another one.
#[must_use]
pub fn parse_spool_name(name: &str) -> Option<(u64, Salt)> {
    let (number, salt) = name.split_once('-')?;
    Some((parse_number(number)?, Salt(parse_number(salt)?)))
}

fn parse_number(text: &str) -> Option<u64> {
    let digits =
        text.len() == DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    digits.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// The index of an output stream in arrays of two; `None` for stdin.
#[must_use]
pub const fn output_index(stream: Stream) -> Option<usize> {
    match stream {
        Stream::Stdout => Some(0),
        Stream::Stderr => Some(1),
        Stream::Stdin => None,
    }
}

/// What a segment's name says (`J-5.5`): enough to find the segment of an offset or of a time without
/// opening one, and to name what is missing when one can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    /// Its place among the job's segments, from 0.
    pub sequence: u64,
    /// The offset of the first byte of each output stream that it, or a later one, holds.
    pub from: [u64; 2],
    /// The job's clock when it was begun, in microseconds: no piece in it is older.
    pub clock_us: u64,
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, from: [stdout, stderr], clock_us } = self;
        write!(f, "{sequence:016x}-{stdout:016x}-{stderr:016x}-{clock_us:016x}.seg")
    }
}

impl SegmentName {
    /// Reads a name; `None` if it is another one.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_suffix(".seg")?.split('-').map(parse_number);
        let mut number = || numbers.next().flatten();
        let (sequence, stdout, stderr, clock_us) = (number()?, number()?, number()?, number()?);
        let parsed = Self { sequence, from: [stdout, stderr], clock_us };
        numbers.next().is_none().then_some(parsed)
    }
}

/// A piece of output in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which stream.
    pub stream: Stream,
    /// The offset of its first byte in the stream.
    pub offset: u64,
    /// The job's clock when it was read, in microseconds.
    pub clock_us: u64,
    /// The output.
    pub bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// What stands before the output in the record.
    #[must_use]
    pub fn prefix(&self) -> [u8; PIECE_PREFIX_BYTES] {
        let mut prefix = [0; PIECE_PREFIX_BYTES];
        prefix[0] = u8::from(self.stream == Stream::Stderr);
        prefix[1..9].copy_from_slice(&self.offset.to_be_bytes());
        prefix[9..].copy_from_slice(&self.clock_us.to_be_bytes());
        prefix
    }

    /// Reads a record's payload; `None` if it is of another form, or its offsets overflow.
    #[must_use]
    pub fn read(payload: &'a [u8]) -> Option<Self> {
        let (prefix, bytes) = payload.split_first_chunk::<PIECE_PREFIX_BYTES>()?;
        let stream = *Stream::OUTPUTS.get(usize::from(prefix[0]))?;
        let number = |from: usize| {
            prefix[from..from + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let piece = Self { stream, offset: number(1), clock_us: number(9), bytes };
        piece.offset.checked_add(bytes.len() as u64)?;
        Some(piece)
    }

    /// The offset behind its last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.bytes.len() as u64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_of_another_form_is_none() {
        let name = spool_name(7, Salt(0xabc));
        assert_eq!(name, "0000000000000007-0000000000000abc");
        assert_eq!(parse_spool_name(&name), Some((7, Salt(0xabc))));
        for bad in ["", "-", "7-abc", "0000000000000007", "0000000000000007-0000000000000ABC"] {
            assert_eq!(parse_spool_name(bad), None, "{bad}");
        }
        let name = SegmentName { sequence: 1, from: [2, 3], clock_us: 4 }.to_string();
        for bad in ["", ".seg", "x.seg", &name[1..], &format!("{name}x"), &name.replace('1', "+")] {
            assert_eq!(SegmentName::parse(bad), None, "{bad}");
        }
        let longer = name.replace(".seg", "-0000000000000000.seg");
        assert_eq!(SegmentName::parse(&longer), None);
    }

    proptest! {
        /// J-5.5, J-5.6
        #[test]
        fn names_and_pieces_come_back_as_they_were_written(
            numbers in any::<[u64; 4]>(),
            stderr in any::<bool>(),
            bytes in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let [sequence, stdout, other, clock_us] = numbers;
            let name = SegmentName { sequence, from: [stdout, other], clock_us };
            prop_assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
            let stream = if stderr { Stream::Stderr } else { Stream::Stdout };
            let piece = Piece { stream, offset: stdout, clock_us, bytes: &bytes };
            let mut payload = piece.prefix().to_vec();
            payload.extend_from_slice(&bytes);
            let expected = stdout.checked_add(bytes.len() as u64).map(|_| piece);
            prop_assert_eq!(Piece::read(&payload), expected);
        }

        #[test]
        fn any_bytes_are_a_piece_or_none(payload in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some(piece) = Piece::read(&payload) {
                prop_assert_eq!(piece.bytes.len() + PIECE_PREFIX_BYTES, payload.len());
            }
        }
    }
}
