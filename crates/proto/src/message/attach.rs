//! ATTACH and its answer: going on with a job that exists (`W-6.7`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::JobId;

/// Asks to go on with a job that exists (`W-6.7`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The job's identity, or the beginning of it.
    pub job: JobId,
    /// Whether `job` may be the beginning of the id of exactly one job; a whole id goes before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prefix: bool,
    /// The next offset that is wanted, for each output stream by name; none if only the end is.
    pub streams: BTreeMap<String, AttachOffset>,
    /// Where the server shall begin instead, at or behind those offsets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<AttachStart>,
    /// Whether the job is taken over, or looked at.
    #[serde(default, skip_serializing_if = "AttachMode::is_default")]
    pub mode: AttachMode,
    /// Whether to go on with what is produced from now on (`W-6.11`).
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub follow: bool,
}

impl Attach {
    /// Takes over the job with this id at these offsets, to the end of it.
    #[must_use]
    pub const fn new(job: JobId, streams: BTreeMap<String, AttachOffset>) -> Self {
        let mode = AttachMode::Take;
        Self { job, prefix: false, streams, start: None, mode, follow: true }
    }
}

fn yes() -> bool {
    true
}

/// What an attachment may do (`J-2.1`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// Owns the job: whoever owned it before is fenced.
    #[default]
    Take,
    /// Reads along: holds nothing back, and nothing that it says reaches the job.
    Watch,
}

impl AttachMode {
    fn is_default(&self) -> bool {
        *self == Self::Take
    }
}

/// Where the output that is wanted begins, when the client knows no offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachStart {
    /// With what was produced from this point of Unix time on, in microseconds.
    SinceUs(u64),
    /// So many lines before the end of each stream.
    TailLines(u64),
}

/// The next offset that is wanted of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttachOffset(pub u64);

/// The offsets at which the job's streams go on (`W-6.7`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The job's identity, whole.
    pub job: JobId,
    /// The process id on the server's machine; null if the process has ended, or was never seen.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The start, in microseconds of Unix time, by the server's wall clock; null if it is not known.
    #[serde(default)]
    pub started_at_us: Option<u64>,
    /// The output streams by name.
    pub streams: BTreeMap<String, AttachedStream>,
    /// The next offset that the server wants of stdin; null if the job takes none.
    #[serde(default)]
    pub stdin: Option<u64>,
    /// Whether the job has a terminal: its stdout is for one, its stdin is keys (`W-5.13`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

/// Where one output stream goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedStream {
    /// The offset of the next byte that will be sent. If it is over the offset that was wanted,
    /// the bytes between are a gap: they are not there any more.
    pub offset: u64,
}
