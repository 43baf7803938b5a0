//! Errors of a connection, sorted by who is to blame for them (`W-8.1`).

use crate::frame::Kind;
use crate::message::Goodbye;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The peer broke a rule of the protocol; the connection was closed with this reason.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(#[from] Misbehaviour),
    /// The peer speaks no version that we speak.
    #[error("the peer speaks version {theirs} of the protocol, this is version {ours}")]
    PeerIncompatible {
        /// The newest version that the peer offers.
        theirs: u32,
        /// The newest version that we speak.
        ours: u32,
    },
    /// The peer said goodbye.
    #[error("the peer closed the connection: {0}")]
    PeerClosed(Goodbye),
    /// The bytes ended without a goodbye: the link was cut, or the peer was killed (`W-8.4`).
    #[error("the connection was cut")]
    Cut,
    /// Nothing arrived for longer than the peer could have been silent (`W-9.17`), or a deadline of
    /// the handshake passed.
    #[error("the peer has been silent for too long")]
    TimedOut,
    /// We closed it.
    #[error("the connection was closed here")]
    LocallyClosed,
}

/// A rule that the peer broke: the connection is closed, nothing else is harmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Misbehaviour {
    /// A length over the limit of its frame (`W-2.3`).
    #[error("a frame of kind {kind:#04x} states {length} bytes, the limit is {limit}")]
    FrameTooLong {
        /// The frame's kind as sent.
        kind: u8,
        /// The stated length.
        length: u32,
        /// The limit for that kind in that phase.
        limit: u32,
    },
    /// A kind that does not exist and may not be ignored (`W-2.5`).
    #[error("unknown frame kind {0:#04x}")]
    UnknownKind(u8),
    /// Bits that must be zero are not (`W-2.2`).
    #[error("reserved bits are set in a frame of kind {0:#04x}")]
    ReservedBits(u8),
    /// A frame that this role never sends, or not in this phase (`W-3.2`).
    #[error("{0:?} is not expected here")]
    UnexpectedFrame(Kind),
    /// A payload that is not what its kind says (`W-2.6`).
    #[error("malformed {kind:?}: {what}")]
    Malformed {
        /// The frame's kind.
        kind: Kind,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A control message that is not strict JSON of the stated form (`W-2.7`).
    #[error("malformed {kind:?}: {error}")]
    MalformedJson {
        /// The frame's kind.
        kind: Kind,
        /// What the reader said.
        error: crate::json::JsonError,
    },
    /// A channel id that is 0, of the wrong parity, reused or decreasing (`W-5.2`).
    #[error("channel {0} may not be opened")]
    BadChannelId(u32),
    /// A frame for a channel that was never opened (`W-5.3`).
    #[error("channel {0} was never opened")]
    UnknownChannel(u32),
    /// Too many frames for channels that are closed (`W-9.10`).
    #[error("too many frames for closed channels")]
    LateFrames,
    /// A flood of frames that carry nothing (`W-9.9`).
    #[error("too many empty frames")]
    EmptyFrames,
    /// More channels opened and given up than can be cleaned up after (`W-9.6`).
    #[error("channels are opened and given up faster than they can be cleaned up")]
    ChannelChurn,
    /// Replies that the peer asks for and does not read (`W-9.8`).
    #[error("replies are asked for and not read")]
    RepliesUnread,
    /// A window increment of 0, or credit over the limit (`W-6.5`).
    #[error("bad window increment on channel {0}")]
    BadWindow(u32),
    /// The OPEN of another channel began before this one's last chunk (`W-5.5`), or it is too large.
    #[error("malformed OPEN: {0}")]
    BadOpen(&'static str),
}
