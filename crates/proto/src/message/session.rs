//! Sessions: the long-lived shell that a command can ask to be run in (`W-5.9`).

use serde::{Deserialize, Serialize};

use super::name::name_type;
use crate::limits::SESSION_NAME_CHARS_MAX;

/// The feature of a server's JOB_HELLO that says it has sessions.
pub const FEATURE_SESSION: &str = "session";

name_type! {
    /// The name of a session: 1 to 64 characters of `[A-Za-z0-9._-]`.
    SessionName, SessionNameError, SESSION_NAME_CHARS_MAX,
    "a session's name is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'"
}

/// Who shares a session, and for how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionScope {
    /// All connections of the same user under the same grant, one after the other or at once; it
    /// outlives each of them.
    User,
    /// This connection alone; its shell is ended with it.
    Connection,
}

/// The session that a command is run in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionRef {
    /// Its name, within its scope.
    pub name: SessionName,
    /// Its scope.
    pub scope: SessionScope,
}
