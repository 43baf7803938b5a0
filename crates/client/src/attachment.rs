//! Which job is meant, and how it is looked at or taken over.

use std::collections::BTreeMap;
use std::time::Duration;

use afar_proto::connection::Stream;
use afar_proto::message::{Attach, AttachMode, AttachOffset, AttachStart, JobId};

/// A job by its id, or by the beginning of that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRef {
    job: JobId,
    prefix: bool,
}

impl JobRef {
    /// The job with exactly this id.
    #[must_use]
    pub fn exact(job: JobId) -> Self {
        Self { job, prefix: false }
    }

    /// The job with this id, or else the only one whose id begins so.
    #[must_use]
    pub fn prefix(job: JobId) -> Self {
        Self { job, prefix: true }
    }

    pub(crate) fn id(&self) -> &JobId {
        &self.job
    }

    pub(crate) fn may_be_prefix(&self) -> bool {
        self.prefix
    }

    pub(crate) fn to_parts(&self) -> (JobId, bool) {
        (self.job.clone(), self.prefix)
    }
}

/// How to go on with a job that exists, for [`Session::attach`](crate::Session::attach).
///
/// Without more said, it is taken over, with everything of its output that is still there, to its
/// end. Whoever owned it before is told so and hears nothing more of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    job: JobRef,
    mode: AttachMode,
    streams: BTreeMap<Stream, u64>,
    start: Option<AttachStart>,
    follow: bool,
    stdin: bool,
}

impl Attachment {
    /// Takes the job over.
    #[must_use]
    pub fn take(job: JobRef) -> Self {
        let streams = Stream::OUTPUTS.map(|stream| (stream, 0)).into();
        Self { job, mode: AttachMode::Take, streams, start: None, follow: true, stdin: true }
    }

    /// Reads along, beside whoever owns the job: takes nothing from it, and has no say.
    #[must_use]
    pub fn watch(job: JobRef) -> Self {
        Self { mode: AttachMode::Watch, ..Self::take(job) }
    }

    /// Waits for the end, and wants no output.
    #[must_use]
    pub fn wait(job: JobRef) -> Self {
        Self { streams: BTreeMap::new(), ..Self::watch(job) }
    }

    /// Only these streams, each from the offset that it is to begin at.
    #[must_use]
    pub fn streams(mut self, streams: impl IntoIterator<Item = (Stream, u64)>) -> Self {
        self.streams = streams.into_iter().filter(|(stream, _)| *stream != Stream::Stdin).collect();
        self
    }

    /// Begins with what was written this long after 1970, in UTC by the server's clock.
    #[must_use]
    pub fn since(mut self, unix: Duration) -> Self {
        let since_us = u64::try_from(unix.as_micros()).unwrap_or(u64::MAX);
        self.start = Some(AttachStart::SinceUs(since_us));
        self
    }

    /// Begins so many lines before the end of each stream.
    #[must_use]
    pub fn tail_lines(mut self, lines: u64) -> Self {
        self.start = Some(AttachStart::TailLines(lines));
        self
    }

    /// Whether to go on with what the job writes from now on; without that the last event is
    /// [`JobEvent::Detached`](crate::JobEvent::Detached), unless the job has ended.
    #[must_use]
    pub fn follow(mut self, follow: bool) -> Self {
        self.follow = follow;
        self
    }

    /// Whether the handle has a [`Stdin`](crate::Stdin) for the job's input. Without one the input is
    /// left as it is, open if it was, for whoever comes next.
    #[must_use]
    pub fn stdin(mut self, stdin: bool) -> Self {
        self.stdin = stdin;
        self
    }

    pub(crate) fn has_stdin(&self) -> bool {
        self.stdin
    }

    pub(crate) fn into_attach(self) -> Attach {
        let offset =
            |(stream, offset): (Stream, u64)| (stream.name().to_owned(), AttachOffset(offset));
        let (job, prefix) = self.job.to_parts();
        Attach {
            job,
            prefix,
            streams: self.streams.into_iter().map(offset).collect(),
            start: self.start,
            mode: self.mode,
            follow: self.follow,
        }
    }
}
