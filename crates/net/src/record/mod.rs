//! The record layer of TLS 1.3 for application data (RFC 8446 section 5), once rustls has made the
//! handshake.
//!
//! Two things need the records apart from the handshake. A connection is handed from the listener
//! to the user's supervisor with nothing but its traffic secrets and sequence numbers, which a TLS
//! library's connection cannot be rebuilt from. And bulk data is decrypted where it was read and
//! encrypted where it is sent from, without the copies between that a library's own buffers are.
//! The ciphers are the library's, and so is everything of the handshake.

mod keys;
mod opener;
mod sealer;

pub(crate) use keys::{Suite, TrafficKeys};
pub(crate) use opener::{Peer, RecordOpener};
pub(crate) use sealer::RecordSealer;

/// Type, legacy version, length (RFC 8446 section 5.1).
pub(crate) const HEADER_BYTES: usize = 5;

/// Most plaintext of one record (section 5.1).
const PLAINTEXT_BYTES_MAX: usize = 1 << 14;

/// Most that encryption may add: the inner type, the tag, and padding (section 5.2).
const EXPANSION_BYTES_MAX: usize = 256;

/// What our own records add: the inner type and the tag; all three ciphers have one of 16 bytes.
const OVERHEAD_BYTES: usize = HEADER_BYTES + 1 + TAG_BYTES;

pub(crate) const TAG_BYTES: usize = 16;

/// Most bytes of a record on the wire.
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAINTEXT_BYTES_MAX + EXPANSION_BYTES_MAX;

/// The outer type of every encrypted record, and the inner one of data (section 5.1).
pub(crate) const APPLICATION_DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

const KEY_UPDATE: u8 = 24;
const NEW_SESSION_TICKET: u8 = 4;

/// Alerts (section 6).
const CLOSE_NOTIFY: u8 = 0;
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const INTERNAL_ERROR: u8 = 80;
const USER_CANCELED: u8 = 90;

/// What is wrong with the peer's records, or with ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum RecordError {
    /// A record that its key does not open: changed on its way, out of order, or another key's.
    #[error("a record does not decrypt")]
    Decrypt,
    /// A record that is longer than one may be.
    #[error("a record is too long")]
    TooLong,
    /// A record of a type that has no place here.
    #[error("a record of the unexpected type {0}")]
    UnexpectedType(u8),
    /// A handshake message that has no place here, or is not whole in its record.
    #[error("an unexpected handshake message")]
    UnexpectedHandshake,
    /// An alert or a key update that is malformed.
    #[error("a malformed record")]
    Malformed,
    /// A key update that asks for what there is not.
    #[error("a key update of an unknown kind")]
    UnknownUpdate,
    /// More records in a row without data than there is a reason for.
    #[error("too many records without data")]
    Fruitless,
    /// The peer ended the connection with this alert.
    #[error("the peer sent the alert {0}")]
    Alert(u8),
    /// The cipher failed on our side: a fault of ours.
    #[error("encryption failed")]
    Encrypt,
}

impl RecordError {
    /// The alert that tells the peer, if it is to be told.
    fn alert(self) -> Option<u8> {
        match self {
            Self::Decrypt => Some(BAD_RECORD_MAC),
            Self::TooLong => Some(RECORD_OVERFLOW),
            Self::UnexpectedType(_) | Self::UnexpectedHandshake | Self::Fruitless => {
                Some(UNEXPECTED_MESSAGE)
            }
            Self::Malformed => Some(DECODE_ERROR),
            Self::UnknownUpdate => Some(ILLEGAL_PARAMETER),
            Self::Encrypt => Some(INTERNAL_ERROR),
            Self::Alert(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
