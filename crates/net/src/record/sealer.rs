//! Outgoing records: encrypted from where the data is to where it is sent from.

use std::cell::RefCell;
use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};

use super::{
    ALERT, APPLICATION_DATA, CLOSE_NOTIFY, HANDSHAKE, HEADER_BYTES, KEY_UPDATE, OVERHEAD_BYTES,
    PLAINTEXT_BYTES_MAX, RecordError, TAG_BYTES, TrafficKeys,
};

/// Records that one key encrypts. AES-GCM bears 2^24.5 of full size (RFC 8446 section 5.5); the
/// keys are changed well before that.
const RECORDS_PER_KEY: u64 = 1 << 23;

/// Records that wait for the socket at most. What is encrypted can't be overtaken any more.
const RECORDS_WAITING_MAX: usize = 16;

/// Room that is always left for a key update and an alert.
const RESERVED_BYTES: usize = 64;

/// The encrypted bytes that can wait for the socket.
const OUTBOX_BYTES: usize =
    RECORDS_WAITING_MAX * (PLAINTEXT_BYTES_MAX + OVERHEAD_BYTES) + RESERVED_BYTES;

/// The sending side, with the encrypted bytes that have not been sent.
#[derive(Debug)]
pub(crate) struct RecordSealer {
    keys: TrafficKeys,
    records_per_key: u64,
    /// Whether the peer has asked for new keys.
    owes_update: bool,
    /// Whether an alert has said that nothing more comes.
    ended: bool,
    outbox: Outbox,
}

impl RecordSealer {
    /// `ahead` was encrypted already and is sent first: what the handshake, or the process that had
    /// the connection before, has left to be sent.
    ///
    /// # Errors
    /// It is more than can wait.
    pub(crate) fn new(keys: TrafficKeys, ahead: &[u8]) -> Result<Self, RecordError> {
        let mut outbox = Outbox::default();
        if !ahead.is_empty() {
            outbox.space(ahead.len()).ok_or(RecordError::TooLong)?.copy_from_slice(ahead);
            outbox.end += ahead.len();
        }
        Ok(Self {
            keys,
            records_per_key: RECORDS_PER_KEY,
            owes_update: false,
            ended: false,
            outbox,
        })
    }

    #[cfg(test)]
    pub(super) fn with_records_per_key(mut self, records: u64) -> Self {
        self.records_per_key = records;
        self
    }

    pub(crate) fn keys(&self) -> &TrafficKeys {
        &self.keys
    }

    /// The peer wants new keys: they come before the next data (RFC 8446 section 4.6.3).
    pub(crate) fn request_update(&mut self) {
        self.owes_update = true;
    }

    /// Encrypts from the front of `pieces` as much as there is room for behind what waits already.
    ///
    /// # Errors
    /// The cipher failed, which is a fault of ours. What was encrypted before can be sent.
    pub(crate) fn seal(&mut self, pieces: &mut VecDeque<Bytes>) -> Result<(), RecordError> {
        while let Some(front) = pieces.front_mut() {
            if front.is_empty() {
                pieces.pop_front();
                continue;
            }
            let alone = front.len() >= PLAINTEXT_BYTES_MAX || pieces.len() == 1;
            let bytes: usize = pieces.iter().map(Bytes::len).take(RECORDS_WAITING_MAX).sum();
            let count = bytes.min(PLAINTEXT_BYTES_MAX);
            if self.outbox.room() < count + OVERHEAD_BYTES + RESERVED_BYTES {
                break;
            }
            if self.owes_update || self.keys.sequence() >= self.records_per_key {
                self.owes_update = false;
                self.seal_small(&[KEY_UPDATE, 0, 0, 1, 0], HANDSHAKE)?;
                self.keys.update()?;
            }
            if alone {
                // From where it is, without a copy.
                let plaintext = pieces.front_mut().map(|front| front.split_to(count));
                self.seal_small(&plaintext.unwrap_or_default(), APPLICATION_DATA)?;
            } else {
                // A frame's header and its data share a record.
                self.seal_gathered(pieces, count)?;
            }
        }
        Ok(())
    }

    /// Says that nothing more comes, or, with an error, what the peer did wrong. Only the first of
    /// these is said.
    ///
    /// # Errors
    /// As [`RecordSealer::seal`].
    pub(crate) fn seal_alert(&mut self, error: Option<RecordError>) -> Result<(), RecordError> {
        const WARNING: u8 = 1;
        const FATAL: u8 = 2;
        if std::mem::replace(&mut self.ended, true) {
            return Ok(());
        }
        match error.map(RecordError::alert) {
            None => self.seal_small(&[WARNING, CLOSE_NOTIFY], ALERT),
            Some(Some(description)) => self.seal_small(&[FATAL, description], ALERT),
            Some(None) => Ok(()),
        }
    }

    /// Whether an alert has said that nothing more comes.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What is to be sent now.
    pub(crate) fn unsent(&self) -> &[u8] {
        self.outbox.waiting()
    }

    /// So much of it was.
    pub(crate) fn sent(&mut self, count: usize) {
        self.outbox.sent(count);
    }

    fn seal_small(&mut self, plaintext: &[u8], content_type: u8) -> Result<(), RecordError> {
        let Space { header, ciphertext, type_and_tag } =
            Space::in_outbox(&mut self.outbox, plaintext.len()).ok_or(RecordError::Encrypt)?;
        self.keys.seal(header, plaintext, ciphertext, content_type, type_and_tag)?;
        self.outbox.end += plaintext.len() + OVERHEAD_BYTES;
        Ok(())
    }

    fn seal_gathered(
        &mut self,
        pieces: &mut VecDeque<Bytes>,
        count: usize,
    ) -> Result<(), RecordError> {
        let Space { header, ciphertext, type_and_tag } =
            Space::in_outbox(&mut self.outbox, count).ok_or(RecordError::Encrypt)?;
        gather(pieces, ciphertext);
        self.keys.seal_in_place(header, ciphertext, APPLICATION_DATA, type_and_tag)?;
        self.outbox.end += count + OVERHEAD_BYTES;
        Ok(())
    }
}

/// Where a record is written.
struct Space<'a> {
    /// What was written in front of it, which is authenticated with it.
    header: [u8; HEADER_BYTES],
    ciphertext: &'a mut [u8],
    type_and_tag: &'a mut [u8; 1 + TAG_BYTES],
}

impl<'a> Space<'a> {
    fn in_outbox(outbox: &'a mut Outbox, plaintext_bytes: usize) -> Option<Self> {
        let body_bytes = plaintext_bytes + 1 + TAG_BYTES;
        let [high, low] = u16::try_from(body_bytes).ok()?.to_be_bytes();
        // The version of TLS 1.2, for what stands on the way (RFC 8446 section 5.1).
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let record = outbox.space(HEADER_BYTES + body_bytes)?;
        let (header_space, body) = record.split_first_chunk_mut()?;
        *header_space = header;
        let (ciphertext, type_and_tag) = body.split_last_chunk_mut()?;
        Some(Self { header, ciphertext, type_and_tag })
    }
}

/// Encrypted bytes that wait for the socket.
#[derive(Debug, Default)]
struct Outbox {
    /// `OUTBOX_BYTES`; `Some` unless nothing waits.
    buffer: Option<Vec<u8>>,
    /// What waits in it.
    start: usize,
    end: usize,
}

thread_local! {
    /// A buffer that nothing waits in, one for each thread: a thousand idle connections cost nothing
    /// for theirs, and it stays in the processor's cache.
    static SPARE: RefCell<Option<Vec<u8>>> = const { RefCell::new(None) };
}

impl Outbox {
    fn room(&self) -> usize {
        OUTBOX_BYTES - self.end
    }

    /// The next `count` bytes of room; they wait once `end` is moved behind them.
    fn space(&mut self, count: usize) -> Option<&mut [u8]> {
        let buffer = self.buffer.get_or_insert_with(|| {
            SPARE.with_borrow_mut(Option::take).unwrap_or_else(|| vec![0; OUTBOX_BYTES])
        });
        buffer.get_mut(self.end..)?.get_mut(..count)
    }

    fn waiting(&self) -> &[u8] {
        let buffer = self.buffer.as_deref().unwrap_or_default();
        buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn sent(&mut self, count: usize) {
        self.start += count.min(self.end - self.start);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Some(buffer) = self.buffer.take() {
                SPARE.with_borrow_mut(|spare| *spare = Some(buffer));
            }
        }
    }
}

/// Moves bytes from the front of `pieces` into `out`, which is no longer than they are.
fn gather(pieces: &mut VecDeque<Bytes>, mut out: &mut [u8]) {
    while let Some(piece) = pieces.front_mut().filter(|_| !out.is_empty()) {
        let (now, later) = out.split_at_mut(piece.len().min(out.len()));
        piece.copy_to_slice(now);
        out = later;
        if piece.is_empty() {
            pieces.pop_front();
        }
    }
}
