//! An answer: the length of a header, the header, and as many bytes as that says.

use std::fmt;

use serde::Deserialize;

use super::limits::{DATA_SIZE_MAX, HEADER_BYTES_MAX, LENGTH_BYTES};

/// The first two parts of an answer whose third is `data_size` bytes long (`C-4.1`, `C-4.3`).
#[must_use]
pub fn response_header(data_size: u64) -> Vec<u8> {
    // As Python's json.dumps writes it, the space included: scripts compare their logs with it.
    let json = format!("{{\"data_size\": {data_size}}}");
    // It is at most 35 bytes long, so that nothing is lost here.
    let length = i32::try_from(json.len()).unwrap_or(i32::MAX);
    let mut header = length.to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    header
}

/// What of an answer has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// The header is complete: so many bytes of output follow.
    Header {
        /// The number of bytes.
        data_size: u64,
    },
    /// Output; never empty.
    Data(&'a [u8]),
    /// The answer is complete.
    End,
}

/// Why something is no answer; nothing more can be read from the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The length of the header can't be one.
    #[error("the answer states a header of {0} bytes; 1 to {HEADER_BYTES_MAX} are possible")]
    HeaderLength(i32),
    /// It begins with text, not with a length: another protocol is spoken there.
    #[error("what answers there begins with {0:?} and speaks another protocol")]
    OtherProtocol(String),
    /// The header is no JSON object with a `data_size`.
    #[error("the answer's header can't be read: {0}")]
    Header(String),
    /// `data_size` can't be one.
    #[error("the answer states {0} bytes of output; 0 to {DATA_SIZE_MAX} are possible")]
    DataSize(i64),
}

/// The bytes ended within an answer (`C-4.6`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection ended after {arrived} of {expected} bytes of the {part}")]
pub struct Cut {
    /// What was incomplete: `header's length`, `header` or `output`.
    pub part: &'static str,
    /// How many bytes of it had arrived.
    pub arrived: u64,
    /// How many there should have been.
    pub expected: u64,
}

#[derive(Clone)]
enum State {
    Length { bytes: [u8; LENGTH_BYTES], arrived: usize },
    Header { bytes: Vec<u8>, length: usize },
    Data { arrived: u64, size: u64 },
}

impl State {
    const START: Self = Self::Length { bytes: [0; LENGTH_BYTES], arrived: 0 };
}

/// The client's half: gives the parts of answers as they arrive, whatever the split of the bytes
/// (`C-4.5`). No more than a header is ever held.
#[derive(Clone)]
pub struct ResponseReader {
    state: State,
}

impl ResponseReader {
    /// A reader before the first answer.
    #[must_use]
    pub const fn new() -> Self {
        Self { state: State::START }
    }

    /// Takes the next piece from the front of `input`. To be called until it gives `None`, which it
    /// does once `input` is empty; at the end of an answer it is ready for the next one.
    ///
    /// # Errors
    /// See [`ResponseError`].
    pub fn read<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Piece<'a>>, ResponseError> {
        loop {
            match &mut self.state {
                State::Length { bytes, arrived } => {
                    let missing = bytes.get_mut(*arrived..).unwrap_or_default();
                    let taken = take(input, missing.len());
                    let count = taken.len();
                    if count == 0 {
                        return Ok(None);
                    }
                    if let Some(room) = missing.get_mut(..count) {
                        room.copy_from_slice(taken);
                    }
                    *arrived = arrived.saturating_add(count);
                    if *arrived == LENGTH_BYTES {
                        let length = header_length(*bytes)?;
                        self.state = State::Header { bytes: Vec::new(), length };
                    }
                }
                State::Header { bytes, length } => {
                    let taken = take(input, length.saturating_sub(bytes.len()));
                    if taken.is_empty() {
                        return Ok(None);
                    }
                    bytes.extend_from_slice(taken);
                    if bytes.len() == *length {
                        let size = data_size(bytes)?;
                        self.state = State::Data { arrived: 0, size };
                        return Ok(Some(Piece::Header { data_size: size }));
                    }
                }
                State::Data { arrived, size } if arrived == size => {
                    self.state = State::START;
                    return Ok(Some(Piece::End));
                }
                State::Data { arrived, size } => {
                    let left = usize::try_from(size.saturating_sub(*arrived));
                    let taken = take(input, left.unwrap_or(usize::MAX));
                    if taken.is_empty() {
                        return Ok(None);
                    }
                    let count = u64::try_from(taken.len()).unwrap_or(u64::MAX);
                    *arrived = arrived.saturating_add(count);
                    return Ok(Some(Piece::Data(taken)));
                }
            }
        }
    }

    /// Takes the end of the bytes, before the end of an answer that is waited for.
    #[must_use]
    pub fn handle_eof(&self) -> Cut {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        match &self.state {
            State::Length { arrived, .. } => Cut {
                part: "header's length",
                arrived: count(*arrived),
                expected: count(LENGTH_BYTES),
            },
            State::Header { bytes, length } => {
                Cut { part: "header", arrived: count(bytes.len()), expected: count(*length) }
            }
            State::Data { arrived, size } => {
                Cut { part: "output", arrived: *arrived, expected: *size }
            }
        }
    }
}

impl Default for ResponseReader {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for ResponseReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cut { part, arrived, expected } = self.handle_eof();
        write!(f, "ResponseReader({arrived} of {expected} bytes of the {part})")
    }
}

/// Splits at most `count` bytes off the front.
fn take<'a>(input: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(count.min(input.len()));
    *input = rest;
    taken
}

/// Holds the length against its limit before a byte of the header is waited for (`C-4.2`).
fn header_length(bytes: [u8; LENGTH_BYTES]) -> Result<usize, ResponseError> {
    let length = i32::from_le_bytes(bytes);
    match u32::try_from(length) {
        Ok(length @ 1..=HEADER_BYTES_MAX) => Ok(usize::try_from(length).unwrap_or(usize::MAX)),
        _ if bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') => {
            Err(ResponseError::OtherProtocol(bytes.escape_ascii().to_string()))
        }
        _ => Err(ResponseError::HeaderLength(length)),
    }
}

/// The one key that matters; all others are skipped, whatever they hold (`C-4.3`).
#[derive(Deserialize)]
struct Header {
    data_size: i64,
}

fn data_size(json: &[u8]) -> Result<u64, ResponseError> {
    // An array of one number would do for a struct as well.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(ResponseError::Header("it is no JSON object".to_owned()));
    }
    let Header { data_size } =
        serde_json::from_slice(json).map_err(|error| ResponseError::Header(error.to_string()))?;
    u64::try_from(data_size)
        .ok()
        .filter(|size| *size <= DATA_SIZE_MAX)
        .ok_or(ResponseError::DataSize(data_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a reader makes of these bytes in these pieces: the data sizes and the data.
    fn read_all<'a>(
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<Vec<(u64, Vec<u8>, bool)>, ResponseError> {
        let mut reader = ResponseReader::new();
        let mut answers = Vec::new();
        for mut piece in pieces {
            while let Some(found) = reader.read(&mut piece)? {
                match found {
                    Piece::Header { data_size } => answers.push((data_size, Vec::new(), false)),
                    Piece::Data(data) => answers.last_mut().unwrap().1.extend_from_slice(data),
                    Piece::End => answers.last_mut().unwrap().2 = true,
                }
            }
            assert!(piece.is_empty());
        }
        Ok(answers)
    }

    fn answer(header: &str, data: &[u8]) -> Vec<u8> {
        let length = i32::try_from(header.len()).unwrap();
        [&length.to_le_bytes()[..], header.as_bytes(), data].concat()
    }

    fn header_error(header: &str) -> ResponseError {
        read_all([&answer(header, b"")[..]].into_iter()).unwrap_err()
    }

    #[test]
    fn the_bytes_are_those_of_pythons_struct_and_json() {
        // C-4.1, C-4.3: struct.pack('i', n) + json.dumps({'data_size': 12}).encode().
        assert_eq!(response_header(12), b"\x11\0\0\0{\"data_size\": 12}");
        assert_eq!(response_header(0), b"\x10\0\0\0{\"data_size\": 0}");
        assert_eq!(response_header(u64::MAX).len(), 4 + 35);
    }

    #[test]
    fn every_split_gives_the_same_answers() {
        // C-4.5.
        let mut bytes = response_header(3);
        bytes.extend_from_slice(b"abc");
        bytes.extend_from_slice(&response_header(0));
        bytes.extend_from_slice(&answer("{\"x\": [1, {}], \"data_size\": 1}", b"z"));
        let expected =
            vec![(3, b"abc".to_vec(), true), (0, Vec::new(), true), (1, b"z".to_vec(), true)];
        assert_eq!(read_all([&bytes[..]].into_iter()), Ok(expected.clone()));
        for size in 1..bytes.len() {
            assert_eq!(read_all(bytes.chunks(size)), Ok(expected.clone()), "pieces of {size}");
            let (first, rest) = bytes.split_at(size);
            assert_eq!(read_all([first, rest].into_iter()), Ok(expected.clone()), "at {size}");
        }
    }

    #[test]
    fn a_cut_names_what_is_missing() {
        // C-4.6.
        let bytes = [response_header(3), b"abc".to_vec()].concat();
        let cut_after = |count: usize| {
            let mut reader = ResponseReader::new();
            let mut input = &bytes[..count];
            while reader.read(&mut input).unwrap().is_some() {}
            reader.handle_eof().to_string()
        };
        let says = |what: &str| format!("the connection ended after {what}");
        assert_eq!(cut_after(0), says("0 of 4 bytes of the header's length"));
        assert_eq!(cut_after(3), says("3 of 4 bytes of the header's length"));
        assert_eq!(cut_after(4), says("0 of 16 bytes of the header"));
        assert_eq!(cut_after(19), says("15 of 16 bytes of the header"));
        assert_eq!(cut_after(20), says("0 of 3 bytes of the output"));
        assert_eq!(cut_after(22), says("2 of 3 bytes of the output"));
    }

    #[test]
    fn the_length_of_a_header_has_a_limit() {
        // C-4.2, on both sides, before anything of the header has come.
        let read = |length: i32| read_all([&length.to_le_bytes()[..]].into_iter());
        let max = i32::try_from(HEADER_BYTES_MAX).unwrap();
        assert_eq!(read(1), Ok(vec![]));
        assert_eq!(read(max), Ok(vec![]));
        for wrong in [0, -1, i32::MIN, i32::MAX, max + 1] {
            assert_eq!(read(wrong), Err(ResponseError::HeaderLength(wrong)));
        }
        let max = usize::try_from(max).unwrap();
        let padded = format!("{{\"data_size\": 1{}}}", " ".repeat(max - 16));
        assert_eq!(padded.len(), max);
        let bytes = answer(&padded, b"q");
        assert_eq!(read_all([&bytes[..]].into_iter()), Ok(vec![(1, b"q".to_vec(), true)]));
    }

    #[test]
    fn another_protocol_is_named() {
        for (says, begins) in [("HTTP/1.1 400", "HTTP"), ("SSH-2.0", "SSH-"), ("220 x", "220 ")] {
            let error = read_all([says.as_bytes()].into_iter()).unwrap_err();
            assert_eq!(error, ResponseError::OtherProtocol(begins.to_owned()));
        }
    }

    #[test]
    fn a_header_is_an_object_with_a_data_size() {
        // C-4.3, C-4.4.
        let wrong = [
            "[5]",
            "5",
            "{}",
            "nonsense",
            "{\"data_size\": 1.5}",
            "{\"data_size\": \"1\"}",
            "{\"data_size\": null}",
            "{\"data_size\": 1, \"data_size\": 2}",
            "{\"data_size\": 1",
            "{\"data_size\": 1} x",
            "{\"data_size\": 99999999999999999999}",
        ];
        for header in wrong {
            assert!(matches!(header_error(header), ResponseError::Header(_)), "{header}");
        }
        for size in [-1, i64::MIN, (1 << 53) + 1, i64::MAX] {
            let error = header_error(&format!("{{\"data_size\": {size}}}"));
            assert_eq!(error, ResponseError::DataSize(size));
        }
        let largest = format!("{{\"data_size\": {DATA_SIZE_MAX}}}");
        let read = read_all([&answer(&largest, b"")[..]].into_iter());
        assert_eq!(read, Ok(vec![(DATA_SIZE_MAX, Vec::new(), false)]));
        // What other keys hold is nobody's business.
        let odd =
            "  {\"t\": 1e300, \"ns\": 1795341600000000000, \"s\": \"\\udce9\", \"data_size\":0}\n";
        let read = read_all([&answer(odd, b"")[..]].into_iter());
        assert_eq!(read, Ok(vec![(0, Vec::new(), true)]));
    }

    proptest! {
        #[test]
        fn answers_of_any_size_in_any_pieces_arrive(
            outputs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..5),
            cuts in prop::collection::vec(1_usize..200, 1..50),
        ) {
            let mut bytes = Vec::new();
            for output in &outputs {
                bytes.extend(response_header(u64::try_from(output.len()).unwrap()));
                bytes.extend(output);
            }
            let mut sizes = cuts.iter().copied().cycle();
            let mut rest = &bytes[..];
            let pieces = std::iter::from_fn(|| {
                let size = sizes.next()?.min(rest.len());
                let (piece, after) = rest.split_at(size);
                rest = after;
                (!piece.is_empty()).then_some(piece)
            });
            let expected: Vec<_> =
                outputs.iter().map(|o| (u64::try_from(o.len()).unwrap(), o.clone(), true)).collect();
            prop_assert_eq!(read_all(pieces), Ok(expected));
        }
    }
}
