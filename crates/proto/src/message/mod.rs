//! The control messages: what the JSON objects of the frames hold.
//!
//! Unknown fields are ignored, so that a message can grow. Which version may send what is settled
//! by the hellos.

mod attach;
mod auth;
mod job;
mod name;
mod open;
mod query;
mod session;
mod terminal;

pub use attach::{Attach, AttachMode, AttachOffset, AttachStart, Attached, AttachedStream};
pub use auth::{
    AuthOk, AuthQuery, AuthQueryResult, AuthRefused, AuthRequest, Delegate, Hello, KeyBytes,
    Transcript,
};
pub use job::{
    Incarnation, IncarnationError, JobHello, JobId, JobIdError, Opened, Refused, Signal,
};
pub use open::{Command, OnDisconnect, OpenSpec, Overflow, Retry};
pub use query::{
    Answer, JobInfo, JobPage, JobQuery, JobState, KillQuery, ListQuery, Query, StreamInfo,
};
pub use session::{FEATURE_SESSION, SessionName, SessionNameError, SessionRef, SessionScope};
pub use terminal::{FEATURE_TERMINAL, Resize, Terminal};

use serde::{Deserialize, Serialize};

use crate::limits::MESSAGE_BYTES_MAX;

/// Why a side ends the connection (`W-8.3`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {
    /// The reason, in a word.
    pub code: GoodbyeCode,
    /// The reason for people, at most [`MESSAGE_BYTES_MAX`] bytes; escape it before showing it.
    #[serde(default)]
    pub message: String,
}

impl std::fmt::Display for Goodbye {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let code = match self.code {
            GoodbyeCode::Done => "done",
            GoodbyeCode::Protocol => "protocol error",
            GoodbyeCode::Incompatible => "no common version",
            GoodbyeCode::Timeout => "timeout",
            GoodbyeCode::Unavailable => "unavailable",
            GoodbyeCode::Revoked => "revoked",
            GoodbyeCode::Restart => "restart",
            GoodbyeCode::Other => "other",
        };
        if self.message.is_empty() {
            f.write_str(code)
        } else {
            write!(f, "{code}: {}", self.message)
        }
    }
}

/// The reasons of [`Goodbye`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoodbyeCode {
    /// Nothing more to do.
    Done,
    /// The receiver of the goodbye broke the protocol.
    Protocol,
    /// No common version.
    Incompatible,
    /// The receiver of the goodbye was silent for too long.
    Timeout,
    /// The server can't serve now: it shuts down, or lacks a resource.
    Unavailable,
    /// The key was revoked or removed.
    Revoked,
    /// The server's process gives way to another one; come back at once (`J-4.3`).
    Restart,
    /// A reason that a later version names.
    #[serde(other)]
    Other,
}

/// A channel is broken off (`W-5.8`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// The reason for people; escape it before showing it.
    #[serde(default)]
    pub message: String,
}

/// `text` cut to the limit of messages, at a character's boundary.
#[must_use]
pub fn bounded_message(text: &str) -> String {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end = end.saturating_sub(1);
    }
    text.get(..end).unwrap_or_default().to_owned()
}
