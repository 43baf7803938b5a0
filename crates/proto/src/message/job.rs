//! Messages of the job part (`W-5` to `W-7`) that are about no one request: the hello, the
//! identity of a job, and the answers to an OPEN.

use serde::{Deserialize, Serialize};

use super::name::name_type;
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
    /// Server: which life of its supervisor this is (`W-5.1`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
}

name_type! {
    /// The identity of a job: 1 to 64 characters of `[A-Za-z0-9._-]`.
    JobId, JobIdError, JOB_ID_CHARS_MAX,
    "a job id is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'"
}

name_type! {
    /// One life of a supervisor: another one when it was started anew, the same after an upgrade. It
    /// has the form of a job's id.
    Incarnation, IncarnationError, JOB_ID_CHARS_MAX,
    "an incarnation is 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'"
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
