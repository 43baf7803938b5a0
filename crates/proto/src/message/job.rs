//! Messages of the job part (`W-5` to `W-7`).

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::session::{SessionName, SessionRef, SessionScope};
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenSpec {
    /// The job's identity.
    pub job: JobId,
    /// What to execute.
    pub command: Command,
    /// The session whose shell executes it; a process of its own if null (`W-5.9`).
    pub session: Option<SessionRef>,
    /// The working directory; the user's home if null. A session has its own.
    pub cwd: Option<ByteString>,
    /// Variables to set, in order, over the login environment; in a session, in its shell.
    pub env: Vec<(ByteString, ByteString)>,
    /// Whether stderr goes where stdout goes, which keeps their exact order.
    pub merge: bool,
    /// Whether the client will send stdin; if not, the job reads end of file at once.
    pub stdin: bool,
    /// Time limit in milliseconds from spawn, by the server's monotonic clock.
    pub timeout_ms: Option<u64>,
    /// Time from TERM to KILL in milliseconds, when the job is ended; 5 s if null.
    pub kill_after_ms: Option<u64>,
}

/// [`OpenSpec`] as it is written. The command of a session stands within `session`, so that a
/// server which knows of no sessions misses the command and refuses, instead of running it in a
/// process of its own (`W-5.9`).
#[derive(Serialize)]
struct OpenWritten<'a> {
    job: &'a JobId,
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<&'a Command>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<SessionWritten<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cwd: Option<&'a ByteString>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    env: &'a [(ByteString, ByteString)],
    merge: bool,
    stdin: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kill_after_ms: Option<u64>,
}

#[derive(Serialize)]
struct SessionWritten<'a> {
    name: &'a SessionName,
    scope: SessionScope,
    command: &'a Command,
}

/// [`OpenSpec`] as it is read.
#[derive(Deserialize)]
struct OpenRead {
    job: JobId,
    command: Option<Command>,
    session: Option<SessionRead>,
    cwd: Option<ByteString>,
    #[serde(default)]
    env: Vec<(ByteString, ByteString)>,
    #[serde(default)]
    merge: bool,
    #[serde(default)]
    stdin: bool,
    timeout_ms: Option<u64>,
    kill_after_ms: Option<u64>,
}

#[derive(Deserialize)]
struct SessionRead {
    name: SessionName,
    scope: SessionScope,
    command: Command,
}

impl Serialize for OpenSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { job, command, session, cwd, env, merge, stdin, timeout_ms, kill_after_ms } =
            self;
        let session = session.as_ref();
        OpenWritten {
            job,
            command: session.is_none().then_some(command),
            session: session.map(|session| SessionWritten {
                name: &session.name,
                scope: session.scope,
                command,
            }),
            cwd: cwd.as_ref(),
            env,
            merge: *merge,
            stdin: *stdin,
            timeout_ms: *timeout_ms,
            kill_after_ms: *kill_after_ms,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for OpenSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error as _;
        let read = OpenRead::deserialize(deserializer)?;
        let (command, session) = match (read.command, read.session) {
            (Some(command), None) => (command, None),
            (None, Some(SessionRead { name, scope, command })) => {
                (command, Some(SessionRef { name, scope }))
            }
            (Some(_), Some(_)) => {
                return Err(D::Error::custom("a command beside the session's own"));
            }
            (None, None) => return Err(D::Error::missing_field("command")),
        };
        Ok(Self {
            job: read.job,
            command,
            session,
            cwd: read.cwd,
            env: read.env,
            merge: read.merge,
            stdin: read.stdin,
            timeout_ms: read.timeout_ms,
            kill_after_ms: read.kill_after_ms,
        })
    }
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
    /// What a person should know about how it was started, one line, at most
    /// [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes; escape it before showing it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
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
