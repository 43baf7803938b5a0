//! Incoming records: found in the stream of bytes, decrypted where they stand.

use super::{
    ALERT, APPLICATION_DATA, CLOSE_NOTIFY, EXPANSION_BYTES_MAX, HANDSHAKE, HEADER_BYTES,
    KEY_UPDATE, NEW_SESSION_TICKET, PLAINTEXT_BYTES_MAX, RecordError, TrafficKeys, USER_CANCELED,
};

/// Records in a row that may come without data, such as empty ones and key updates: each costs us
/// more than it costs the peer.
pub(super) const FRUITLESS_MAX: u8 = 32;

/// What [`RecordOpener::open`] has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Bytes that are done with; the rest is a record that is not whole yet, or follows the end.
    pub(crate) consumed: usize,
    /// Whether data was handed out.
    pub(crate) data: bool,
    /// Whether the peer said that it sends nothing more.
    pub(crate) end: bool,
    /// Whether the peer wants us to change our own keys.
    pub(crate) update_requested: bool,
    /// What ended it. What was handed out before is good.
    pub(crate) failure: Option<RecordError>,
}

/// The receiving side.
#[derive(Debug)]
pub(crate) struct RecordOpener {
    keys: TrafficKeys,
    peer: Peer,
    fruitless: u8,
}

/// Who is at the other end; only a server has tickets to give (RFC 8446 section 4.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    Client,
    Server,
}

/// What a record that was opened means.
enum Meaning {
    Data,
    Nothing,
    UpdateRequested,
    End,
}

impl RecordOpener {
    pub(crate) fn new(keys: TrafficKeys, peer: Peer) -> Self {
        Self { keys, peer, fruitless: 0 }
    }

    pub(crate) fn keys(&self) -> &TrafficKeys {
        &self.keys
    }

    /// Whether `buffer` begins with something that [`RecordOpener::open`] can make progress with.
    pub(crate) fn is_whole(buffer: &[u8]) -> bool {
        match buffer.first_chunk().map(body_length) {
            None => false,
            Some(Ok(length)) => buffer.len() >= HEADER_BYTES + length,
            Some(Err(_)) => true,
        }
    }

    /// Decrypts the whole records at the front of `buffer` and hands their data to `sink`.
    pub(crate) fn open(&mut self, buffer: &mut [u8], sink: &mut dyn FnMut(&[u8])) -> Opened {
        let mut opened = Opened::default();
        let mut rest = buffer;
        while let Some(header) = rest.first_chunk().copied() {
            let length = match body_length(&header) {
                Ok(length) => length,
                Err(error) => {
                    opened.failure = Some(error);
                    return opened;
                }
            };
            let record_bytes = HEADER_BYTES + length;
            let Some((record, behind)) = rest.split_at_mut_checked(record_bytes) else { break };
            rest = behind;
            let (_, body) = record.split_at_mut(HEADER_BYTES);
            match self.open_one(header, body, sink) {
                Ok(Meaning::Data) => opened.data = true,
                Ok(Meaning::Nothing) => {}
                Ok(Meaning::UpdateRequested) => opened.update_requested = true,
                Ok(Meaning::End) => opened.end = true,
                Err(error) => opened.failure = Some(error),
            }
            opened.consumed += record_bytes;
            if opened.end || opened.failure.is_some() {
                break;
            }
        }
        opened
    }

    fn open_one(
        &mut self,
        header: [u8; HEADER_BYTES],
        body: &mut [u8],
        sink: &mut dyn FnMut(&[u8]),
    ) -> Result<Meaning, RecordError> {
        let inner = self.keys.open(header, body)?;
        // The inner type is the last byte that is not padding (section 5.4).
        let end = inner.iter().rposition(|byte| *byte != 0);
        let (content, content_type) = match end.and_then(|end| inner.get(..=end)?.split_last()) {
            Some((content_type, content)) => (content, *content_type),
            None => return Err(RecordError::UnexpectedType(0)),
        };
        if content.len() > PLAINTEXT_BYTES_MAX {
            return Err(RecordError::TooLong);
        }
        if content_type == APPLICATION_DATA && !content.is_empty() {
            self.fruitless = 0;
            sink(content);
            return Ok(Meaning::Data);
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS_MAX {
            return Err(RecordError::Fruitless);
        }
        match content_type {
            APPLICATION_DATA => Ok(Meaning::Nothing),
            // Only data may be empty (section 5.4).
            ALERT | HANDSHAKE if content.is_empty() => {
                Err(RecordError::UnexpectedType(content_type))
            }
            ALERT => alert(content),
            HANDSHAKE => self.handshake(content),
            other => Err(RecordError::UnexpectedType(other)),
        }
    }

    /// A message of the handshake protocol after the handshake (section 4.6).
    fn handshake(&mut self, mut messages: &[u8]) -> Result<Meaning, RecordError> {
        let mut meaning = Meaning::Nothing;
        while let Some((&[kind, high, middle, low], rest)) = messages.split_first_chunk() {
            let length = u32::from_be_bytes([0, high, middle, low]) as usize;
            let Some((message, behind)) = rest.split_at_checked(length) else {
                return Err(RecordError::UnexpectedHandshake);
            };
            messages = behind;
            match (kind, message) {
                // Afar's listener sends none, and nothing is ever resumed.
                (NEW_SESSION_TICKET, _) if self.peer == Peer::Server => {}
                // Nothing encrypted with the old keys may follow it (section 5.1).
                (KEY_UPDATE, _) if !behind.is_empty() => {
                    return Err(RecordError::UnexpectedHandshake);
                }
                (KEY_UPDATE, [request @ (0 | 1)]) => {
                    self.keys.update()?;
                    if *request == 1 {
                        meaning = Meaning::UpdateRequested;
                    }
                }
                (KEY_UPDATE, [_]) => return Err(RecordError::UnknownUpdate),
                (KEY_UPDATE, _) => return Err(RecordError::Malformed),
                _ => return Err(RecordError::UnexpectedHandshake),
            }
        }
        if messages.is_empty() { Ok(meaning) } else { Err(RecordError::UnexpectedHandshake) }
    }
}

/// The length of a record's body, from its header, held against what it may be (section 5.2).
fn body_length(header: &[u8; HEADER_BYTES]) -> Result<usize, RecordError> {
    let [content_type, _, _, high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    match content_type {
        APPLICATION_DATA if length <= PLAINTEXT_BYTES_MAX + EXPANSION_BYTES_MAX => Ok(length),
        APPLICATION_DATA => Err(RecordError::TooLong),
        other => Err(RecordError::UnexpectedType(other)),
    }
}

fn alert(content: &[u8]) -> Result<Meaning, RecordError> {
    match *content {
        [_, CLOSE_NOTIFY] => Ok(Meaning::End),
        [_, USER_CANCELED] => Ok(Meaning::Nothing),
        [_, description] => Err(RecordError::Alert(description)),
        _ => Err(RecordError::Malformed),
    }
}
