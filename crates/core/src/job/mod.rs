//! The life of a job without I/O: who may start it, who is attached to it, what is kept of its
//! output, and when it is over (`docs/spec/jobs.md`).
//!
//! Two parts, each with its own bounds:
//!
//! - a [`Register`] holds the ids of a user's jobs, and says what a request for one means: start it,
//!   attach to it, or refuse it;
//! - a [`Machine`] is one job. What its process writes and how it ends comes in, and so does what
//!   those who are attached say; what each of them is to be told, how much of each pipe may be read
//!   now, and when the process is to be ended goes out as [`Action`]s.
//!
//! Time comes in as an argument, by the job's own clock, which starts with it. After every call,
//! drain [`Machine::poll_action`] and ask [`Machine::poll_timeout`].

mod attachment;
mod held;
pub mod limits;
mod machine;
mod register;
mod source;
#[cfg(test)]
mod tests;

use std::time::Duration;

use afar_proto::connection::Stream;
use afar_proto::message::{AttachMode, AttachStart, OnDisconnect, OpenSpec, Overflow};
use afar_proto::outcome::{End, ExitReport, Receipt, Seal};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use held::Piece;
pub use machine::Machine;
pub use register::{Decision, Digest, JobKey, Register, Retry, Vouch};

/// One attachment: a channel of a connection on which a job's output is told. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttachmentId(pub u64);

/// How much may be read: bytes, and pieces, because a million single bytes take far more memory on
/// their way than their sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Bytes.
    pub bytes: usize,
    /// Reads, however little each of them brings.
    pub pieces: usize,
}

impl Allowance {
    /// Nothing.
    pub const NONE: Self = Self { bytes: 0, pieces: 0 };

    /// As much as there is.
    pub const UNBOUNDED: Self = Self { bytes: usize::MAX, pieces: usize::MAX };

    /// So many bytes, in any number of pieces.
    #[must_use]
    pub fn of_bytes(bytes: u64) -> Self {
        Self { bytes: usize::try_from(bytes).unwrap_or(usize::MAX), pieces: usize::MAX }
    }

    /// Whether nothing may be read.
    #[must_use]
    pub fn is_none(self) -> bool {
        self.bytes == 0 || self.pieces == 0
    }

    /// Adds to it.
    pub fn add(&mut self, more: Self) {
        self.bytes = self.bytes.saturating_add(more.bytes);
        self.pieces = self.pieces.saturating_add(more.pieces);
    }

    /// Takes one piece of so many bytes off.
    pub fn take(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.pieces = self.pieces.saturating_sub(1);
    }
}

/// What the request for a job says about its life.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// What happens to output for which there is no room.
    pub overflow: Overflow,
    /// What the loss of the owner's link does.
    pub on_disconnect: Option<OnDisconnect>,
    /// `Some` iff acknowledgements release nothing: for how long the output is kept from the end on.
    pub keep: Option<Duration>,
    /// The time limit, from the spawn.
    pub timeout: Option<Duration>,
    /// Whether the job reads stdin of its owner.
    pub stdin: bool,
    /// Whether stderr goes where stdout goes.
    pub merged: bool,
}

impl Settings {
    /// Those of a request.
    #[must_use]
    pub fn of(spec: &OpenSpec) -> Self {
        let keep = spec.keep_s.map(Duration::from_secs);
        Self {
            overflow: spec.overflow,
            on_disconnect: spec.on_disconnect,
            keep: keep.or(spec.detach.then_some(limits::UNCONFIRMED_LIFETIME)),
            timeout: spec.timeout_ms.map(Duration::from_millis),
            // Whoever takes a terminal over types on it, whatever its first client had to say.
            stdin: spec.stdin || spec.terminal.is_some(),
            merged: spec.merge || spec.terminal.is_some(),
        }
    }
}

/// What somebody wants who attaches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    /// Who it is.
    pub id: AttachmentId,
    /// As what.
    pub mode: AttachMode,
    /// The next offset that is wanted of stdout and of stderr; `None` if nothing is.
    pub wanted: [Option<u64>; 2],
    /// Where to begin instead, at or behind these. Times are of the job's clock.
    pub start: Option<AttachStart>,
    /// Whether to go on with what is produced from now on.
    pub follow: bool,
}

impl AttachRequest {
    /// Owns the job from its first byte on, as whoever opens it.
    #[must_use]
    pub fn opening(id: AttachmentId) -> Self {
        let mode = AttachMode::Take;
        Self { id, mode, wanted: [Some(0); 2], start: None, follow: true }
    }
}

/// Where somebody who has attached goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttachedAt {
    /// The offsets of the next bytes of stdout and stderr that will be told.
    pub streams: [Option<u64>; 2],
    /// The stdin that is wanted; `None` if none is.
    pub stdin: Option<StdinAt>,
}

/// How far stdin has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdinAt {
    /// The next offset that is wanted.
    pub received: u64,
    /// What the job's pipe has taken; `taken <= received`.
    pub taken: u64,
}

/// Why nobody was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The job has not produced so much.
    #[error(transparent)]
    BeyondEnd(#[from] afar_proto::resume::BeyondEnd),
    /// There are [`limits::ATTACHMENTS_MAX`] attachments.
    #[error("too many are attached to this job (the limit is {})", limits::ATTACHMENTS_MAX)]
    TooMany,
}

/// How an attachment ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// By DETACH: the job goes on, whatever its settings.
    Detached,
    /// Its connection is gone.
    Lost,
    /// The server has asked it to come again (`J-4.3`): the job goes on, whatever its settings.
    SentAway,
    /// Its client has said goodbye to the server.
    Goodbye,
    /// By CLOSE: its client wants no more of the job; behind the seal, it has it (`J-3.6`).
    Closed,
}

/// Why a job is ended; the first cause stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cause {
    /// Its time limit has passed.
    Timeout,
    /// Its owner, or whoever may, wants it ended.
    Cancelled,
    /// Its end could not be noticed.
    Lost,
    /// Its output is over the quota.
    Overflow,
}

/// How a process has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exited {
    /// As the kernel tells it.
    pub end: End,
    /// What it cost.
    pub receipt: Receipt,
    /// Whether its session lost its shell.
    pub session_restarted: bool,
    /// Bytes in the pipes of stdout and stderr at this moment: they may be the process's own.
    pub owed: [u64; 2],
}

/// What a job's spool takes now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpoolState {
    /// There is none.
    #[default]
    Absent,
    /// It takes output, now or once what is on its way to it was written.
    Open,
    /// Its quota is used up.
    Full,
    /// It takes nothing ever again; what it has can be read.
    Failed,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Tell this attachment.
    Tell(AttachmentId, Told),
    /// Close the pipe of this stream: nobody wants more of it (`J-2.4`).
    CloseOutput(Stream),
    /// Read from the spool, for this attachment, from this offset on, so many bytes at most; answered
    /// by [`Machine::spool_read`].
    Read {
        /// Who waits for it.
        id: AttachmentId,
        /// The stream.
        stream: Stream,
        /// Offset of the first byte that is wanted.
        from: u64,
        /// Bytes that there is room for.
        bytes_max: usize,
    },
    /// Drop the oldest part of what is spooled, so that there is room again (`J-3.2`).
    DropSpooled,
    /// End the tree of the process. A job that waits for its turn is not started any more.
    End(Cause),
}

/// What an attachment is told.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Bytes of a stream, in order.
    Data {
        /// The stream.
        stream: Stream,
        /// The job's clock when they were read.
        clock_us: u64,
        /// The bytes; never empty.
        bytes: Bytes,
    },
    /// The stream goes on at `to`: what is between is not there any more (`J-3.5`).
    Gap {
        /// The stream.
        stream: Stream,
        /// The offset that would have come next.
        from: u64,
        /// The one that does.
        to: u64,
    },
    /// A stream has ended.
    End(Stream),
    /// The job's pipe took so many bytes of stdin.
    InputTaken(usize),
    /// The job reads no more stdin.
    InputClosed,
    /// The process has ended.
    Exit(Box<ExitReport>),
    /// The last word. The attachment stays until it leaves.
    Seal(Box<Seal>),
    /// Everything that there was is told, and no more was wanted. The attachment is gone.
    Finished,
    /// Somebody else owns the job now (`J-2.2`). The attachment is gone.
    Fenced,
}
