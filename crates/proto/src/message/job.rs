//! Messages of the job part (`W-5` to `W-7`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use crate::json::ByteString;
use crate::limits::JOB_ID_CHARS_MAX;
use crate::outcome::{Phase, RefusalReason, Started};

/// The first frame of each side in the job part (`W-5.1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobHello {
    /// The newest version of the job part that this side speaks; the lower one is spoken.
    pub version: u32,
    /// Name and version of the software, for logs; escape it before showing it.
    #[serde(default)]
    pub software: String,
    /// Optional features by name.
    #[serde(default)]
    pub features: Vec<String>,
}

/// The identity of a job: 1 to 64 characters of `[A-Za-z0-9._-]`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(String);

/// Why a text is no job id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a job id is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'")]
pub struct JobIdError;

impl JobId {
    /// The id of this text.
    ///
    /// # Errors
    /// Empty, too long, or with a character that an id may not have.
    pub fn new(text: &str) -> Result<Self, JobIdError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if text.is_empty() || text.len() > JOB_ID_CHARS_MAX || !text.bytes().all(allowed) {
            return Err(JobIdError);
        }
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({})", self.0)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for JobId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// What to execute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Exactly these arguments, the program first; no shell has a part in it.
    Argv(Vec<ByteString>),
    /// This script, by the user's shell with `-c`.
    Script(ByteString),
}

/// A job to start (`W-5.4`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSpec {
    /// The job's identity.
    pub job: JobId,
    /// What to execute.
    pub command: Command,
    /// The working directory; the user's home if null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<ByteString>,
    /// Variables to set, in order, over the login environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(ByteString, ByteString)>,
    /// Whether stderr goes where stdout goes, which keeps their exact order.
    #[serde(default)]
    pub merge: bool,
    /// Whether the client will send stdin; if not, the job reads end of file at once.
    #[serde(default)]
    pub stdin: bool,
    /// Time limit in milliseconds from spawn, by the server's monotonic clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Time from TERM to KILL in milliseconds, when the job is ended; 5 s if null.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kill_after_ms: Option<u64>,
}

/// The job was started (`W-5.6`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The job's identity.
    pub job: JobId,
    /// The process id on the server's machine.
    pub pid: u32,
    /// The start, in microseconds of Unix time, by the server's wall clock.
    pub started_at_us: u64,
}

/// The job was not started, or can't be attached to (`W-5.7`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The step that failed.
    pub phase: Phase,
    /// Why, in a word.
    pub reason: RefusalReason,
    /// Why, for people: one line; escape it before showing it.
    #[serde(default)]
    pub message: String,
    /// Whether a process may have been started all the same.
    pub started: Started,
}

/// A signal for the job (`W-7.1`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// The signal's name without `SIG`, such as `TERM`; numbers differ between machines.
    pub name: String,
}

/// A new size of the job's terminal; sizes out of range are clamped by the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Columns.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

/// Asks to go on with a job that exists (`W-6.7`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The job's identity.
    pub job: JobId,
    /// The next offset that is wanted, for each output stream by name.
    pub streams: BTreeMap<String, AttachOffset>,
}

/// The next offset that is wanted of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttachOffset(pub u64);

/// The offsets at which the job's streams go on (`W-6.7`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The output streams by name.
    pub streams: BTreeMap<String, AttachedStream>,
    /// The next offset that the server wants of stdin; null if the job takes none.
    #[serde(default)]
    pub stdin: Option<u64>,
}

/// Where one output stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedStream {
    /// The offset of the next byte that will be sent. If it is over the offset that was wanted,
    /// the bytes between are a gap: they are not there any more.
    pub offset: u64,
}
