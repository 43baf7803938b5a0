//! Seals: the running byte count and hash of one stream.

use blake3::CHUNK_LEN;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode};
use blake3::hazmat::{merge_subtrees_non_root, merge_subtrees_root};

use crate::gaps::Gaps;
use crate::outcome::StreamSeal;

const CHUNK_BYTES: u64 = CHUNK_LEN as u64;

/// Counts and hashes the bytes of one stream, in order, however many there will be (`W-1.4`).
///
/// It can be written down and read again, so that a stream is sealed as a whole by more than one
/// process. For that it keeps BLAKE3's tree itself, which takes little: the chaining values of
/// the whole subtrees so far, from the left, and the bytes of the last chunk.
#[derive(Clone, Debug, Default)]
pub struct Sealer {
    bytes: u64,
    /// Subtrees side by side, the largest first. Two of a size are merged when more is known to come
    /// behind them: the one that is last of all has another form, and can only be made in the end.
    subtrees: Vec<ChainingValue>,
    /// What comes behind the subtrees, a chunk at the most.
    tail: Vec<u8>,
}

/// These bytes are no sealer that was written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed state of a sealer")]
pub struct SealerStateError;

impl Sealer {
    /// A sealer that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes of the stream.
    pub fn update(&mut self, mut bytes: &[u8]) {
        if !self.tail.is_empty() {
            let room = CHUNK_LEN.saturating_sub(self.tail.len());
            let (head, rest) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
            self.append(head);
            bytes = rest;
            if bytes.is_empty() {
                return;
            }
            // The chunk is whole, and not the last.
            let mut chunk = std::mem::take(&mut self.tail);
            let offset = self.bytes.saturating_sub(chunk.len() as u64);
            self.push(offset, &chunk);
            chunk.clear();
            self.tail = chunk;
        }
        while bytes.len() > CHUNK_LEN {
            let (subtree, rest) = bytes.split_at(subtree_bytes(self.bytes, bytes.len()));
            if rest.is_empty() && self.bytes == 0 {
                // Perhaps the stream ends here, and this is the root: its halves never are.
                let (left, right) = subtree.split_at(subtree.len() / 2);
                self.count_and_push(left);
                self.count_and_push(right);
            } else {
                self.count_and_push(subtree);
            }
            bytes = rest;
        }
        if !bytes.is_empty() {
            self.merge_up_to(self.bytes);
            self.append(bytes);
        }
    }

    fn append(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
    }

    fn count_and_push(&mut self, subtree: &[u8]) {
        self.push(self.bytes, subtree);
        self.bytes = self.bytes.saturating_add(subtree.len() as u64);
    }

    /// Adds a whole subtree that begins at `offset`, behind all that is there.
    fn push(&mut self, offset: u64, subtree: &[u8]) {
        self.merge_up_to(offset);
        self.subtrees.push(chaining_value(offset, subtree));
    }

    /// Merges what is whole by now: of `offset` bytes, there is one subtree for each bit.
    fn merge_up_to(&mut self, offset: u64) {
        let whole = (offset / CHUNK_BYTES).count_ones() as usize;
        while self.subtrees.len() > whole {
            let (Some(right), Some(left)) = (self.subtrees.pop(), self.subtrees.pop()) else {
                return;
            };
            self.subtrees.push(merge_subtrees_non_root(&left, &right, Mode::Hash));
        }
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
        let Some((first, between)) = self.subtrees.split_first() else {
            return blake3::hash(&self.tail);
        };
        let (last, between) = if self.tail.is_empty() {
            // Beside the first there is another one, or this would have been kept as bytes.
            between.split_last().map_or((*first, between), |(last, between)| (*last, between))
        } else {
            let offset = self.bytes.saturating_sub(self.tail.len() as u64);
            (chaining_value(offset, &self.tail), between)
        };
        let right = between
            .iter()
            .rev()
            .fold(last, |right, left| merge_subtrees_non_root(left, &right, Mode::Hash));
        merge_subtrees_root(first, &right, Mode::Hash)
    }

    /// Whether `seal` is of exactly the bytes seen so far. What the server has dropped since may
    /// have been seen here all the same.
    #[must_use]
    pub fn matches(&self, seal: &StreamSeal) -> bool {
        seal.bytes == self.bytes && seal.blake3 == self.hash().as_bytes()
    }

    /// Writes the sealer down: the count, the subtrees, the rest. A kilobyte or two at the most,
    /// with no more of the stream itself than its last chunk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let count = u8::try_from(self.subtrees.len()).unwrap_or(u8::MAX);
        let subtrees = self.subtrees.iter().flatten().copied();
        let head = self.bytes.to_be_bytes().into_iter().chain([count]);
        head.chain(subtrees).chain(self.tail.iter().copied()).collect()
    }

    /// The sealer that was written down.
    ///
    /// # Errors
    /// What [`Sealer::to_bytes`] never writes. Damage to the values themselves is not noticed.
    pub fn from_bytes(state: &[u8]) -> Result<Self, SealerStateError> {
        let (bytes, rest) = state.split_first_chunk().ok_or(SealerStateError)?;
        let bytes = u64::from_be_bytes(*bytes);
        let (count, rest) = rest.split_first().ok_or(SealerStateError)?;
        let length = usize::from(*count).saturating_mul(blake3::OUT_LEN);
        let (subtrees, tail) = rest.split_at_checked(length).ok_or(SealerStateError)?;
        let (subtrees, _) = subtrees.as_chunks::<{ blake3::OUT_LEN }>();
        let sealer = Self { bytes, subtrees: subtrees.to_vec(), tail: tail.to_vec() };
        if sealer.is_possible() { Ok(sealer) } else { Err(SealerStateError) }
    }

    /// Whether the parts fit together.
    fn is_possible(&self) -> bool {
        let Some(before) = self.bytes.checked_sub(self.tail.len() as u64) else { return false };
        let chunks = before / CHUNK_BYTES;
        let whole = chunks.count_ones() as usize;
        // Without a rest, the last one stands alone, and so do those that it will be merged with: one
        // for each size from its own up to the smallest of the whole ones.
        let apart = if self.tail.is_empty() && chunks > 1 { chunks.trailing_zeros() } else { 0 };
        let apart = usize::try_from(apart).unwrap_or(usize::MAX);
        self.tail.len() <= CHUNK_LEN
            && before.is_multiple_of(CHUNK_BYTES)
            && !(self.tail.is_empty() && chunks == 1)
            && (whole..=whole.saturating_add(apart)).contains(&self.subtrees.len())
            && (!self.tail.is_empty() || self.subtrees.len() != 1)
    }
}

/// The length of the largest subtree that begins at `offset`, of `available` bytes.
fn subtree_bytes(offset: u64, available: usize) -> usize {
    let available = available.checked_ilog2().map_or(0, |log| 1 << log);
    let aligned = blake3::hazmat::max_subtree_len(offset);
    aligned.map_or(available, |most| available.min(usize::try_from(most).unwrap_or(usize::MAX)))
}

fn chaining_value(offset: u64, subtree: &[u8]) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(subtree).finalize_non_root()
}

#[cfg(test)]
mod tests;
