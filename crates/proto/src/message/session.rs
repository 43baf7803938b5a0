//! Sessions: the long-lived shell that a command can ask to be run in (`W-5.9`).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::SESSION_NAME_CHARS_MAX;

/// The feature of a server's JOB_HELLO that says it has sessions.
pub const FEATURE_SESSION: &str = "session";

/// The name of a session: 1 to 64 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SessionName(String);

/// Why a text is no name of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session's name is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'")]
pub struct SessionNameError;

impl SessionName {
    /// The name that this text is.
    ///
    /// # Errors
    /// Empty, too long, or with a character that a name may not have.
    pub fn new(text: &str) -> Result<Self, SessionNameError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > SESSION_NAME_CHARS_MAX || !text.bytes().all(allowed) {
            return Err(SessionNameError);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionName({})", self.0)
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SessionName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
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
