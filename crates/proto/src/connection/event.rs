//! What a connection tells its application.

use bytes::Bytes;

#[cfg(doc)]
use super::{Channel, Connection};
use super::{ChannelId, Stream};
use crate::error::ConnectionError;
use crate::message::{
    Answer, Attach, Attached, JobHello, OpenSpec, Opened, Query, Refused, Resize, Signal,
};
use crate::outcome::{ExitReport, Seal};

/// What has happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The peer's hello has arrived.
    Ready(JobHello),
    /// Server: a job is wanted. Answer with [`Channel::accept`] or [`Channel::refuse`].
    Open {
        /// The new channel.
        channel: ChannelId,
        /// The job.
        spec: Box<OpenSpec>,
    },
    /// Server: a job that exists is wanted. Answer with [`Channel::accept_attach`] or
    /// [`Channel::refuse`].
    Attach {
        /// The new channel.
        channel: ChannelId,
        /// The job and the offsets.
        attach: Attach,
    },
    /// Server: a question, or a wish. Answer with [`Channel::answer`] or [`Channel::refuse`].
    Query {
        /// The new channel.
        channel: ChannelId,
        /// What is asked.
        query: Query,
    },
    /// Client: the answer to a query, or the end of an attachment that does not follow; the channel
    /// is closed.
    Answer {
        /// The channel.
        channel: ChannelId,
        /// The answer.
        answer: Box<Answer>,
    },
    /// Client: the job was started. If it was to be detached, the channel is closed.
    Opened {
        /// The channel.
        channel: ChannelId,
        /// What the server says of it.
        opened: Opened,
    },
    /// Client: the job's streams go on at these offsets. The answer to an OPEN too, if the job exists
    /// already; if that was to be detached, the channel is closed.
    Attached {
        /// The channel.
        channel: ChannelId,
        /// The offsets.
        attached: Attached,
    },
    /// Client: the job was not started; the channel is closed.
    Refused {
        /// The channel.
        channel: ChannelId,
        /// Why.
        refused: Refused,
    },
    /// Bytes of a stream, each once and in order.
    Data {
        /// The channel.
        channel: ChannelId,
        /// The stream.
        stream: Stream,
        /// Offset of the first byte.
        offset: u64,
        /// The job's clock when the bytes were read, in microseconds since its start.
        clock_us: u64,
        /// The bytes; never empty.
        bytes: Bytes,
    },
    /// Client: the stream goes on at `to`; the bytes between are not there any more.
    Gap {
        /// The channel.
        channel: ChannelId,
        /// The stream.
        stream: Stream,
        /// Offset of the first byte that is missing.
        from: u64,
        /// Offset of the next byte that will come.
        to: u64,
    },
    /// A stream has ended.
    End {
        /// The channel.
        channel: ChannelId,
        /// The stream.
        stream: Stream,
    },
    /// A stream on which [`Channel::writable`] gave 0 takes bytes again.
    Writable {
        /// The channel.
        channel: ChannelId,
        /// The stream.
        stream: Stream,
    },
    /// The peer wants no more of a stream.
    Stopped {
        /// The channel.
        channel: ChannelId,
        /// The stream.
        stream: Stream,
    },
    /// Everything before `offset` has reached its destination and need not be kept.
    Acked {
        /// The channel.
        channel: ChannelId,
        /// The stream.
        stream: Stream,
        /// The offset.
        offset: u64,
    },
    /// Server: a signal for the job.
    Signal {
        /// The channel.
        channel: ChannelId,
        /// The signal.
        signal: Signal,
    },
    /// Server: a new size of the job's terminal.
    Resize {
        /// The channel.
        channel: ChannelId,
        /// The size.
        resize: Resize,
    },
    /// Client: the process has ended; output may still come.
    Exit {
        /// The channel.
        channel: ChannelId,
        /// How it ended.
        report: ExitReport,
    },
    /// Client: the job's last word, held against the bytes that arrived; the channel is closed.
    Seal {
        /// The channel.
        channel: ChannelId,
        /// The outcome and what was produced.
        seal: Box<Seal>,
        /// Whether that is what arrived.
        verdict: Verdict,
    },
    /// Server: the client has got the seal; the channel is closed.
    Confirmed {
        /// The channel.
        channel: ChannelId,
    },
    /// Server: the client has left the channel, and the job goes on. Clean up, then call
    /// [`Connection::release`].
    Detached {
        /// The channel.
        channel: ChannelId,
    },
    /// Server: the client has given the channel up, or broken it (then [`Event::Failed`] came
    /// before). Clean up, then call [`Connection::release`].
    Abandoned {
        /// The channel.
        channel: ChannelId,
    },
    /// The peer has broken the channel off, or broken its rules; the channel is closed. At a
    /// server, [`Event::Abandoned`] follows.
    Failed {
        /// The channel.
        channel: ChannelId,
        /// Why, for people; escape it before showing it.
        message: String,
    },
    /// The connection has ended; there are no events after this one.
    Closed(ConnectionError),
}

/// Whether a seal is of the bytes that arrived (`W-7.4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every byte of every stream, those aside that this side had [stopped](Channel::stop).
    Whole,
    /// Every byte since the offset at which this client attached, as far as counts can tell.
    Suffix,
    /// Not these bytes: nothing of this stream is to be trusted.
    Mismatch(Stream),
}
