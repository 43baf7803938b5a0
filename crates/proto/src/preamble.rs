//! What comes before the protocol where it runs over a program's stdin and stdout (`W-3.3`).
//!
//! A login shell may print before the program that it was to run does: a greeting in a startup
//! file is enough. So the serving side begins with bytes that no greeting has, and the client reads
//! up to these before it sends anything.

use crate::limits::PREAMBLE_SKIPPED_BYTES_MAX;

/// The bytes that the serving side sends first. They begin with NUL, so that a greeting without a
/// line end does not matter, and end with a line end, so that a person who sees them is not left
/// in the middle of a line.
pub const PREAMBLE: &[u8] = b"\0AFAR-STDIO/1\n";

/// Looks for the [`PREAMBLE`].
#[derive(Debug, Default)]
pub struct PreambleReader {
    seen: Vec<u8>,
}

/// Too much came before the preamble: what prints there is not on its way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {PREAMBLE_SKIPPED_BYTES_MAX} bytes came that are not afar's")]
pub struct NoPreamble;

impl PreambleReader {
    /// Takes what has come. `Some` once the preamble was seen: the bytes behind it.
    ///
    /// # Errors
    /// Over [`PREAMBLE_SKIPPED_BYTES_MAX`] bytes come before it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Option<Vec<u8>>, NoPreamble> {
        // What was searched before can only hold the beginning of it.
        let searched = self.seen.len().saturating_sub(PREAMBLE.len().saturating_sub(1));
        self.seen.extend_from_slice(bytes);
        let unsearched = self.seen.get(searched..).unwrap_or_default();
        let found = unsearched.windows(PREAMBLE.len()).position(|window| window == PREAMBLE);
        let skipped = match found {
            Some(at) => searched.saturating_add(at),
            // As if it began behind all that is here, but for what may be its beginning.
            None => self.seen.len().saturating_sub(PREAMBLE.len().saturating_sub(1)),
        };
        if skipped > PREAMBLE_SKIPPED_BYTES_MAX {
            self.seen.truncate(PREAMBLE_SKIPPED_BYTES_MAX);
            return Err(NoPreamble);
        }
        if found.is_none() {
            return Ok(None);
        }
        let mut rest = self.seen.split_off(skipped);
        rest.drain(..PREAMBLE.len());
        Ok(Some(rest))
    }

    /// What came and is not afar's: everything before the preamble, or so far.
    #[must_use]
    pub fn skipped(&self) -> &[u8] {
        &self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `W-1.3`, `W-3.3`
    #[test]
    fn it_is_found_at_every_split_and_what_is_around_it_is_kept_apart() {
        let mut bytes = b"Welcome!\nno line end\0AFAR-STDIO/".to_vec();
        bytes.extend_from_slice(PREAMBLE);
        bytes.extend_from_slice(b"frames");
        for split in 0..=bytes.len() {
            let (first, second) = bytes.split_at(split);
            let mut reader = PreambleReader::default();
            let rest = match reader.push(first).unwrap() {
                Some(rest) => [rest.as_slice(), second].concat(),
                None => reader.push(second).unwrap().unwrap(),
            };
            assert_eq!(rest, b"frames", "{split}");
            assert_eq!(reader.skipped(), b"Welcome!\nno line end\0AFAR-STDIO/");
        }
        let mut reader = PreambleReader::default();
        let found = bytes.iter().filter_map(|byte| reader.push(&[*byte]).unwrap()).count();
        assert_eq!(found, 1);
    }

    /// `W-3.3`, `W-9.23`
    #[test]
    fn fault_86_what_comes_before_it_is_bounded_however_it_is_split() {
        for piece_bytes in [1, 7, PREAMBLE_SKIPPED_BYTES_MAX] {
            for (skipped, expected) in
                [(PREAMBLE_SKIPPED_BYTES_MAX, true), (PREAMBLE_SKIPPED_BYTES_MAX + 1, false)]
            {
                let mut bytes = vec![b'x'; skipped];
                bytes.extend_from_slice(PREAMBLE);
                let mut reader = PreambleReader::default();
                let found = bytes.chunks(piece_bytes).try_fold(false, |found, piece| {
                    reader.push(piece).map(|rest| found || rest.is_some())
                });
                assert_eq!(found.is_ok(), expected, "{piece_bytes} {skipped}");
                assert!(reader.skipped().len() <= PREAMBLE_SKIPPED_BYTES_MAX);
            }
        }
    }
}
