//! Seals: the running byte count and hash of one stream.

use crate::gaps::Gaps;
use crate::outcome::StreamSeal;

/// Counts and hashes the bytes of one stream, in order, however many there will be (`W-1.4`).
#[derive(Clone, Debug, Default)]
pub struct Sealer {
    bytes: u64,
    /// `Some` iff there was a byte: a hasher takes two kilobytes, and most streams stay silent.
    hasher: Option<Box<blake3::Hasher>>,
}

impl Sealer {
    /// A sealer that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn update(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        self.hasher.get_or_insert_default().update(bytes);
    }

    /// Bytes seen so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The seal of what was seen so far.
    #[must_use]
    pub fn seal(&self, complete: bool) -> StreamSeal {
        StreamSeal {
            bytes: self.bytes,
            blake3: self.hash().as_bytes().to_vec(),
            complete,
            gaps: Gaps::new(),
        }
    }

    fn hash(&self) -> blake3::Hash {
        self.hasher.as_ref().map_or_else(|| blake3::hash(b""), |hasher| hasher.finalize())
    }

    /// Whether `seal` is of exactly the bytes seen so far. What the server has dropped since may
    /// have been seen here all the same.
    #[must_use]
    pub fn matches(&self, seal: &StreamSeal) -> bool {
        seal.bytes == self.bytes && seal.blake3 == self.hash().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seal_is_what_b3sum_prints() {
        let mut sealer = Sealer::new();
        sealer.update(b"a");
        sealer.update(b"bc");
        let seal = sealer.seal(true);
        // The published BLAKE3 test value of "abc".
        let expected = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85";
        let hex: String = seal.blake3.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((seal.bytes, hex.as_str()), (3, expected));
        assert!(sealer.matches(&seal));
    }

    #[test]
    fn a_seal_of_other_bytes_does_not_match_and_one_with_a_gap_that_was_seen_does() {
        let mut sealer = Sealer::new();
        sealer.update(b"abc");
        let seal = sealer.seal(true);
        let mut other = Sealer::new();
        other.update(b"abd");
        assert!(!other.matches(&seal));
        let gap = StreamSeal { gaps: [(0, 1)].into_iter().collect(), ..seal };
        assert!(sealer.matches(&gap));
    }
}
