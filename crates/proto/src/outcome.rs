//! What became of a job, said so that no two different ends look alike.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::gaps::Gaps;
use crate::json::base64_bytes;

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum End {
    /// The process exited with this status.
    Exited {
        /// The status, 0–255.
        code: u8,
    },
    /// A signal ended the process.
    Signaled {
        /// The signal's number on the server's machine.
        signal: u8,
        /// The signal's name there, such as `SIGSEGV`.
        name: String,
        /// Whether the kernel says that it wrote a core dump.
        core: bool,
    },
    /// The job's time limit passed, whatever the process answered to the signal.
    Timeout,
    /// The client, or whoever may, ended it.
    Cancelled,
    /// The kernel ended it for want of memory.
    Oom,
    /// The supervisor that watched it was killed.
    Lost,
    /// It can't be known.
    Unknown,
    /// No process was started.
    NotStarted {
        /// Why, in a word: see [`RefusalReason::as_str`].
        reason: String,
    },
}

impl End {
    /// The exit status that stands for this end, as `run`, `attach` and `wait` give it.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::Exited { code } => *code,
            Self::Signaled { signal, .. } => 128_u8.saturating_add(*signal),
            Self::Timeout => 124,
            Self::Cancelled => 130,
            Self::Oom => 137,
            Self::NotStarted { reason } => match reason.as_str() {
                "not_found" | "bad_interpreter" => 127,
                "not_executable" | "bad_format" => 126,
                _ => 255,
            },
            Self::Lost | Self::Unknown => 255,
        }
    }
}

/// The step that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Finding the host.
    Resolve,
    /// Reaching it.
    Connect,
    /// Proving who is at each end.
    Authenticate,
    /// Being allowed the request.
    Authorize,
    /// Starting the process.
    Spawn,
    /// The process runs.
    Run,
    /// The process has ended, its output is still coming.
    Stream,
    /// Everything has arrived and was verified.
    Done,
}

impl Phase {
    /// The phase as the outcome object names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Connect => "connect",
            Self::Authenticate => "authenticate",
            Self::Authorize => "authorize",
            Self::Spawn => "spawn",
            Self::Run => "run",
            Self::Stream => "stream",
            Self::Done => "done",
        }
    }
}

/// Whether the process was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Started {
    /// It was.
    Yes,
    /// It was not, and will not be.
    No,
    /// The link was lost before the server said so.
    Unknown,
}

impl Started {
    /// The word as the outcome object has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a job was not started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalReason {
    /// There is no such program.
    NotFound,
    /// The program is there and may not be executed.
    NotExecutable,
    /// The program is a script whose interpreter is not there.
    BadInterpreter,
    /// The program is of no format that the kernel executes.
    BadFormat,
    /// The working directory is not there, is no directory, or may not be entered.
    BadCwd,
    /// The arguments and the environment are longer than the kernel takes (E2BIG).
    TooLong,
    /// No process, descriptor or memory could be had.
    NoResources,
    /// The request itself is not valid: NUL in an argument, a bad name of a variable, ….
    Invalid,
    /// The grant does not allow it.
    Denied,
    /// Too many channels or jobs at once.
    TooMany,
    /// The id is taken by another request.
    Conflict,
    /// There is no such job, or it is not this grant's: the two are not told apart.
    NoSuchJob,
    /// An offset beyond what the job has produced.
    BeyondEnd,
    /// Perhaps it was started, and forgotten: the journal can't tell (`J-1.6`).
    Unknown,
    /// The beginning of more than one id.
    Ambiguous,
    /// What is asked for can only be done with a job that has ended.
    Running,
    /// The server can't do this.
    Unsupported,
    /// A reason that a later version names.
    #[serde(other)]
    Other,
}

impl RefusalReason {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::NotExecutable => "not_executable",
            Self::BadInterpreter => "bad_interpreter",
            Self::BadFormat => "bad_format",
            Self::BadCwd => "bad_cwd",
            Self::TooLong => "too_long",
            Self::NoResources => "no_resources",
            Self::Invalid => "invalid",
            Self::Denied => "denied",
            Self::TooMany => "too_many",
            Self::Conflict => "conflict",
            Self::NoSuchJob => "no_such_job",
            Self::BeyondEnd => "beyond_end",
            Self::Unknown => "unknown",
            Self::Ambiguous => "ambiguous",
            Self::Running => "running",
            Self::Unsupported => "unsupported",
            Self::Other => "other",
        }
    }
}

/// What a job cost, from the kernel's account of its process and the children that it waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Time from spawn to exit, in microseconds, by the monotonic clock.
    pub wall_us: u64,
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub sys_us: u64,
    /// Largest resident set, in bytes; of a small program this can be the supervisor's own
    /// (getrusage(2): the value is inherited over exec).
    pub max_rss_bytes: u64,
    /// Bytes read from storage, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bytes: Option<u64>,
    /// Bytes written to storage, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
}

/// The end of a process, told as soon as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitReport {
    /// How it ended.
    pub end: End,
    /// What it cost.
    pub receipt: Receipt,
}

/// What was produced on one stream: count and hash of exactly these bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamSeal {
    /// Bytes that the job produced.
    pub bytes: u64,
    /// BLAKE3 of these bytes, as `b3sum` computes it.
    #[serde(with = "base64_bytes")]
    pub blake3: Vec<u8>,
    /// Whether the stream ended by itself; false if it was stopped or left open.
    pub complete: bool,
    /// Ranges that were dropped.
    #[serde(default, skip_serializing_if = "Gaps::is_empty")]
    pub gaps: Gaps,
}

/// The server's last word on a job (`W-7.3`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// How the job ended.
    pub end: End,
    /// What it cost.
    pub receipt: Receipt,
    /// The streams by name: `stdout`, `stderr`.
    pub streams: BTreeMap<String, StreamSeal>,
    /// Whether another process still held a stream open when the drain time was over.
    pub streams_left_open: bool,
    /// Whether the shell of the job's session has ended, with this job or since the one before it,
    /// so that what the session's earlier commands had set is lost (`W-7.6`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub session_restarted: bool,
    /// Why the server ended it, where `end` does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<SealDetail>,
}

/// What a [`Seal`] says beside the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SealDetail {
    /// The job was ended because its output was over the quota (`J-3.2`).
    OutputQuota,
    /// Its process was killed and is there all the same: the kernel does not let go of it, or it is
    /// another user's (`J-2.8`).
    Unkillable,
    /// What a later version names.
    #[serde(other)]
    Other,
}
