//! The channels of a connection that jobs are attached to: what the client says of them, and what
//! the jobs say.

use std::collections::BTreeMap;

use afar_core::job::{Allowance, AttachmentId, Leave, Told};
use afar_net::transport::AnyTransport;
use afar_proto::Connection;
use afar_proto::connection::{ChannelId, Stream};
use afar_proto::message::{Answer, JobId};
use tokio::sync::mpsc::UnboundedSender;

use super::super::job::{FromJob, Said, ToJob};
use afar_net::driver::Driver;

/// A stream's allowance is topped up when at least this much can be added, so that bulk output does
/// not cost a message for every read.
const TOP_UP_BYTES: usize = 64 * 1024;

/// For each of so many bytes of room, one piece is allowed: output that comes in smaller pieces is
/// read no further ahead than 1,024 of them.
const BYTES_PER_PIECE: usize = 1024;

/// What a connection knows of a job that one of its channels is attached to.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) id: AttachmentId,
    pub(super) job: JobId,
    pub(super) commands: UnboundedSender<ToJob>,
    /// What the job may hand over of each output stream and has not handed over yet.
    allowed: [Allowance; 2],
    /// Whether the client still has the channel.
    wanted: bool,
}

impl Attachment {
    pub(super) fn new(id: AttachmentId, job: JobId, commands: UnboundedSender<ToJob>) -> Self {
        Self { id, job, commands, allowed: [Allowance::NONE; 2], wanted: true }
    }

    fn tell(&self, said: Said) {
        // A job that has gone in this moment needs to be told nothing.
        let _ = self.commands.send(ToJob::From(self.id, said));
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Attachments(BTreeMap<ChannelId, Attachment>);

impl Attachments {
    pub(super) fn insert(&mut self, channel: ChannelId, attachment: Attachment) {
        self.0.insert(channel, attachment);
    }

    /// Passes on what the client says.
    pub(super) fn tell(&self, channel: ChannelId, said: Said) {
        if let Some(attachment) = self.0.get(&channel) {
            attachment.tell(said);
        }
    }

    /// The client has left a channel. Whether there was anything on it that has to be waited for
    /// before the channel is forgotten.
    pub(super) fn leave(&mut self, channel: ChannelId, how: Leave) -> bool {
        let Some(attachment) = self.0.get_mut(&channel) else { return false };
        attachment.wanted = false;
        attachment.tell(Said::Leave(how));
        true
    }

    /// The connection has ended, and every attachment with it.
    pub(super) fn leave_all(&mut self, how: Leave) {
        for (_, attachment) in std::mem::take(&mut self.0) {
            if attachment.wanted {
                attachment.tell(Said::Leave(how));
            }
        }
    }

    /// Lets the job hand over as much more of a stream as the connection has room for.
    pub(super) fn top_up(&mut self, connection: &mut Connection, id: ChannelId, stream: Stream) {
        let Some(attachment) = self.0.get_mut(&id) else { return };
        let Some(mut channel) = connection.channel(id) else { return };
        let place = Stream::OUTPUTS.iter().position(|output| *output == stream);
        let Some(allowed) = place.and_then(|place| attachment.allowed.get_mut(place)) else {
            return;
        };
        let room = channel.writable(stream);
        let pieces = if room == 0 { 0 } else { (room / BYTES_PER_PIECE).max(1) };
        let more = Allowance {
            bytes: room.saturating_sub(allowed.bytes),
            pieces: pieces.saturating_sub(allowed.pieces),
        };
        let worth_it = more.bytes >= TOP_UP_BYTES || more.pieces >= TOP_UP_BYTES / BYTES_PER_PIECE;
        if more != Allowance::NONE && (allowed.is_none() || worth_it) {
            allowed.add(more);
            attachment.tell(Said::Allow(stream, more));
        }
    }

    /// Passes on what a job says to the client.
    pub(super) fn handle(
        &mut self,
        driver: &mut Driver<AnyTransport>,
        id: ChannelId,
        event: FromJob,
    ) {
        let connection = driver.connection();
        let wanted = self.0.get(&id).is_none_or(|attachment| attachment.wanted);
        match event {
            FromJob::Gone => {
                self.0.remove(&id);
                connection.release(id);
            }
            _ if !wanted => {}
            FromJob::Opened(opened) => {
                if let Some(mut channel) = connection.channel(id) {
                    channel.accept(&opened);
                }
                self.top_up_all(connection, id);
            }
            FromJob::Attached(attached, at) => {
                if let Some(mut channel) = connection.channel(id) {
                    let taken = at.stdin.map_or(0, |stdin| stdin.taken);
                    channel.accept_attach_with(&attached, taken);
                }
                self.top_up_all(connection, id);
            }
            FromJob::Refused(refused) => {
                if let Some(channel) = connection.channel(id) {
                    channel.refuse(&refused);
                }
            }
            FromJob::Answer(answer) => {
                if let Some(channel) = connection.channel(id) {
                    channel.answer(&answer);
                }
            }
            FromJob::Told(told) => self.handle_told(connection, id, told),
            // These are the conversation's own.
            FromJob::Found(..) | FromJob::Entered(_) => {}
        }
    }

    pub(super) fn top_up_all(&mut self, connection: &mut Connection, id: ChannelId) {
        for stream in Stream::OUTPUTS {
            self.top_up(connection, id, stream);
        }
    }

    fn handle_told(&mut self, connection: &mut Connection, id: ChannelId, told: Told) {
        let Some(attachment) = self.0.get_mut(&id) else { return };
        let Some(mut channel) = connection.channel(id) else { return };
        match told {
            Told::Data { stream, clock_us, bytes } => {
                let count = bytes.len();
                let place = Stream::OUTPUTS.iter().position(|output| *output == stream);
                if let Some(allowed) = place.and_then(|at| attachment.allowed.get_mut(at)) {
                    allowed.take(count);
                }
                if let Err(error) = channel.write(stream, clock_us, bytes) {
                    // The allowance keeps within the room, so this is a fault of ours; a byte must
                    // never be missing in silence.
                    channel.reset(&format!("output was lost: {error}"));
                    self.leave(id, Leave::Lost);
                    return;
                }
                self.top_up(connection, id, stream);
            }
            Told::Gap { stream, to, .. } => channel.gap(stream, to),
            Told::End(stream) => channel.finish(stream),
            Told::InputTaken(count) => channel.consume(Stream::Stdin, count),
            Told::InputClosed => channel.stop(Stream::Stdin),
            Told::Exit(report) => {
                channel.stop(Stream::Stdin);
                channel.exit(&report);
            }
            Told::Seal(seal) => channel.seal(&seal),
            Told::Finished => {
                let answer = Answer::Done { job: attachment.job.clone() };
                channel.answer(&answer);
            }
            Told::Fenced => channel.reset("another client has taken over the job"),
        }
    }
}
