//! Between a job and those who are attached to it: who they are, and what the two say.

use super::written::WrittenJob;
use crate::store::SpoolReader;
use crate::supervisor::jobs::Life;
use afar_core::job::{
    Allowance, AttachRequest, AttachedAt, AttachmentId, Cause, JobKey, Leave, Told,
};
use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::{Answer, Attach, Attached, JobId, JobInfo, Opened, Refused, Resize};
use afar_sys::signals::Signal;
use bytes::Bytes;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

/// What a job is told.
#[derive(Debug)]
pub(in crate::supervisor) enum ToJob {
    /// Somebody attaches.
    Attach(Box<AttachRequest>, Route),
    /// Somebody who has attached says something.
    From(AttachmentId, Said),
    /// Somebody who may wants it ended, or signalled (`J-2.6`); whether there is anything to end.
    Kill(Option<Signal>, oneshot::Sender<bool>),
    /// It is to be ended.
    End(Cause),
    /// What is being ended has no more time for it.
    Hasten,
    /// It is to stand still and to write itself down; `None` if that can't be now, and then it goes on.
    Freeze(oneshot::Sender<Option<Box<WrittenJob>>>),
    /// It goes on, if it stands still.
    Thaw,
    /// What is there to be said of it?
    Describe(oneshot::Sender<JobInfo>),
    /// What is kept of it is to be let go of, if it has ended; whether it has.
    Remove(oneshot::Sender<bool>),
}

/// What an attachment says.
#[derive(Debug)]
pub(in crate::supervisor) enum Said {
    /// Bytes for stdin; bounded by the credit that was granted.
    Input(Bytes),
    /// The end of stdin.
    InputEnd,
    /// It takes so much more of a stream.
    Allow(Stream, Allowance),
    /// It has everything of a stream before this offset.
    Acked(Stream, u64),
    /// It wants no more of a stream.
    Stop(Stream),
    /// A signal for the process group.
    Signal(Signal),
    /// Its terminal has another size.
    Resize(Resize),
    /// It is gone. Answered with [`FromJob::Gone`] once nothing is left of what that has begun.
    Leave(Leave),
}

/// What a conversation is told, on the channel that the route names.
#[derive(Debug)]
pub(in crate::supervisor) enum FromJob {
    /// A job that had to wait for its turn in a session was given to the session's shell.
    Opened(Opened),
    /// The job was there already.
    Attached(Box<Attached>, AttachedAt),
    /// It will not be started, or nobody can attach to it.
    Refused(Box<Refused>),
    /// The answer to a query.
    Answer(Box<Answer>),
    /// It was found out which job is meant, or why none is.
    Found(Wish, Result<Box<Found>, Box<Refused>>),
    /// What was asked for was started, or attached to, while the connection did something else.
    Entered(Box<Entered>),
    /// Something of the job.
    Told(Told),
    /// Nothing is left to be cleaned up that this attachment has begun.
    Gone,
}

/// What is to be done with a job that has still to be found.
#[derive(Debug)]
pub(in crate::supervisor) enum Wish {
    Attach(Box<Attach>),
    Kill(Option<Signal>),
    Remove,
}

/// A job that was found.
#[derive(Debug)]
pub(in crate::supervisor) struct Found {
    pub(in crate::supervisor) key: JobKey,
    /// What the archive says of it; `None` if nobody has asked it.
    pub(in crate::supervisor) archived: Option<Archived>,
}

/// What the archive says of a job.
#[derive(Debug)]
pub(in crate::supervisor) struct Archived {
    pub(in crate::supervisor) life: Life,
    /// What reads its output, if it keeps some.
    pub(in crate::supervisor) reader: Option<SpoolReader>,
}

/// An attachment that a conversation has not entered yet.
#[derive(Debug)]
pub(in crate::supervisor) struct Entered {
    pub(in crate::supervisor) id: AttachmentId,
    pub(in crate::supervisor) job: JobId,
    /// Where to tell the job things.
    pub(in crate::supervisor) commands: UnboundedSender<ToJob>,
    /// What its client is told first, unless the job tells it itself.
    pub(in crate::supervisor) opened: Option<Opened>,
    /// Whether it wants to leave with that.
    pub(in crate::supervisor) leaves: bool,
}

/// Where an attachment is told things.
#[derive(Clone, Debug)]
pub(in crate::supervisor) struct Route {
    pub(in crate::supervisor) id: AttachmentId,
    pub(in crate::supervisor) channel: ChannelId,
    pub(in crate::supervisor) to: UnboundedSender<(ChannelId, FromJob)>,
}

impl Route {
    /// A conversation that is gone has nobody to tell.
    pub(in crate::supervisor) fn tell(&self, event: FromJob) {
        let _ = self.to.send((self.channel, event));
    }
}

/// A route, and how far its attachment has come.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) route: Route,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    /// It has asked for the job to be started, which has not happened yet.
    Opening,
    /// It has attached to a job that has not started yet.
    Attaching(AttachedAt),
    Attached,
    /// It has gone, and is told when the job has.
    Leaving,
}
