//! Questions about jobs, and their answers (`W-5.11`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::job::JobId;
use crate::gaps::Gaps;
use crate::json::{self, ByteString};
use crate::limits::{ANSWER_BYTES_MAX, COMMAND_SHOWN_BYTES_MAX, CWD_SHOWN_BYTES_MAX};
use crate::outcome::{End, Receipt};

/// What is asked, or asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Query {
    /// Which jobs there are.
    List(ListQuery),
    /// Ends a job, or sends it a signal.
    Kill(KillQuery),
    /// Forgets a job that has ended, and what is kept of its output.
    Remove(JobQuery),
}

/// A page of the list of jobs, the newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListQuery {
    /// Only jobs in one of these states; in any if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub states: Option<Vec<JobState>>,
    /// Only the job with this id, or with the id that begins so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// Goes on where the page ended that gave this as `next`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Most jobs on the page; the server may give fewer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Which job is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobQuery {
    /// Its id, or the beginning of it.
    pub job: JobId,
    /// Whether the beginning of the id of exactly one job will do; a whole id goes before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prefix: bool,
}

/// A job to end, or to send a signal to (`J-2.6`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KillQuery {
    /// Its id, or the beginning of it.
    pub job: JobId,
    /// Whether the beginning of the id of exactly one job will do; a whole id goes before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prefix: bool,
    /// The signal's name without `SIG`; missing to end the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// The answer to a [`Query`], or the end of an attachment that does not follow (`W-6.11`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Answer {
    /// A page of jobs.
    Page(JobPage),
    /// What was asked for is done, with this job.
    Done {
        /// The job's whole id.
        job: JobId,
    },
}

/// Some jobs of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPage {
    /// The jobs, the newest first.
    pub jobs: Vec<JobInfo>,
    /// Where the next page begins; null if this is the last one.
    pub next: Option<String>,
}

impl JobPage {
    /// Adds a job if the page still fits a frame with it. `bytes` is what the page takes so far, 0 in
    /// the beginning.
    pub fn push(&mut self, bytes: &mut usize, info: JobInfo) -> Result<(), Box<JobInfo>> {
        let more = json::to_vec(&info).len().saturating_add(1);
        let total = bytes.saturating_add(more);
        if total > ANSWER_BYTES_MAX {
            return Err(Box::new(info));
        }
        *bytes = total;
        self.jobs.push(info);
        Ok(())
    }
}

/// How far a job has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It waits for its turn in a session.
    Waiting,
    /// Its process runs.
    Running,
    /// It waits in a write, because nobody takes its output and the quota is used up.
    Blocked,
    /// It has ended.
    Ended,
}

impl JobState {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Blocked => "blocked",
            Self::Ended => "ended",
        }
    }
}

/// What a list says of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its id.
    pub job: JobId,
    /// How far it has come.
    pub state: JobState,
    /// Its command for people, at most [`COMMAND_SHOWN_BYTES_MAX`] bytes.
    pub command: ByteString,
    /// Whether `command` was longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub command_cut: bool,
    /// The session that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Whether it has a terminal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
    /// Its working directory, if one was asked for; at most [`CWD_SHOWN_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<ByteString>,
    /// Its process, while it runs.
    #[serde(default)]
    pub pid: Option<u32>,
    /// The start, in microseconds of Unix time; null if it has not started, or nobody knows.
    #[serde(default)]
    pub started_at_us: Option<u64>,
    /// The end, likewise.
    #[serde(default)]
    pub ended_at_us: Option<u64>,
    /// How it ended.
    #[serde(default)]
    pub end: Option<End>,
    /// What it cost.
    #[serde(default)]
    pub receipt: Option<Receipt>,
    /// Its output streams by name.
    #[serde(default)]
    pub streams: BTreeMap<String, StreamInfo>,
    /// Whether somebody owns it now.
    #[serde(default)]
    pub owner: bool,
    /// How many look at it now.
    #[serde(default)]
    pub watchers: u32,
    /// Whether it was started by a client that left at once.
    #[serde(default)]
    pub detached: bool,
    /// Until when its output is kept, in microseconds of Unix time; null while that is not settled.
    #[serde(default)]
    pub keep_until_us: Option<u64>,
}

impl JobInfo {
    /// What is known of every job.
    #[must_use]
    pub fn new(job: JobId, state: JobState, command: &[u8]) -> Self {
        let (shown, command_cut) = cut(command, COMMAND_SHOWN_BYTES_MAX);
        Self {
            job,
            state,
            command: shown,
            command_cut,
            session: None,
            terminal: false,
            cwd: None,
            pid: None,
            started_at_us: None,
            ended_at_us: None,
            end: None,
            receipt: None,
            streams: BTreeMap::new(),
            owner: false,
            watchers: 0,
            detached: false,
            keep_until_us: None,
        }
    }

    /// Says where the job runs.
    pub fn set_cwd(&mut self, cwd: &[u8]) {
        self.cwd = Some(cut(cwd, CWD_SHOWN_BYTES_MAX).0);
    }
}

/// The first `max` bytes of what a peer has sent, cut at a character where it is text.
fn cut(bytes: &[u8], max: usize) -> (ByteString, bool) {
    let Some(head) = bytes.get(..max) else { return (bytes.to_vec().into(), false) };
    let head = match std::str::from_utf8(head) {
        Err(error) if error.error_len().is_none() => head.get(..error.valid_up_to()),
        _ => Some(head),
    };
    (head.unwrap_or_default().to_vec().into(), bytes.len() > max)
}

/// What there is of one output stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamInfo {
    /// Bytes that were produced so far.
    pub bytes: u64,
    /// The first offset that can still be had; `bytes` if nothing can.
    pub kept_from: u64,
    /// Ranges that were dropped, as in the seal.
    #[serde(default, skip_serializing_if = "Gaps::is_empty")]
    pub gaps: Gaps,
}
