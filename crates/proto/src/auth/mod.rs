//! Hellos and authentication, without I/O, for both roles (`W-4`).
//!
//! TLS is ended elsewhere; what is here sees its plaintext. Nothing of a job is parsed: what comes
//! behind an accepted AUTH is handed out as bytes (`W-3.1`), and behind a refused one it is thrown away.

mod initiator;
mod responder;

pub use initiator::{Initiator, InitiatorEvent};
pub use responder::{Attempt, Responder, ResponderEvent};

use crate::error::Misbehaviour;
use crate::message::Goodbye;

/// The version of the transport part that this crate speaks; it also speaks all before it.
pub const TRANSPORT_VERSION: u32 = 1;

/// Why authentication came to no end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthError {
    /// The peer broke a rule.
    #[error("the peer broke the protocol: {0}")]
    PeerMisbehaved(#[from] Misbehaviour),
    /// The peer speaks no version that we speak.
    #[error("the peer speaks no version of the protocol that this one speaks")]
    PeerIncompatible,
    /// The peer said goodbye.
    #[error("the peer closed the connection: {0}")]
    PeerClosed(Goodbye),
    /// The bytes ended.
    #[error("the connection was cut during authentication")]
    Cut,
    /// The deadline passed (`W-9.13`).
    #[error("authentication took too long")]
    TimedOut,
}

#[cfg(test)]
mod tests;
