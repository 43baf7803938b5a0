//! The server's answers about a channel, and its last words, at the client.

use super::channel::{Asked, ChannelState, SendStream, Stage, empty_frame};
use super::receive::{Handled, malformed, parse};
use super::{ChannelId, Connection, Event, Stream, Verdict};
use crate::error::Misbehaviour;
use crate::frame::{Frame, Kind};
use crate::limits::SIGNAL_NAME_BYTES_MAX;
use crate::message::{Attached, JobId, Opened};
use crate::outcome::{End, ExitReport, Seal};

impl Connection {
    pub(super) fn handle_answer(&mut self, frame: &Frame) -> Handled {
        let id = frame.channel;
        let Some(state) = self.channels.get(&id) else { return Ok(()) };
        let channel = ChannelId(id);
        match (frame.kind, state.stage, state.asked) {
            (Kind::Opened, Stage::Opening, Asked::Open { detach }) => {
                let opened: Opened = parse(frame)?;
                if !state.asked_for(&opened.job) {
                    return Err(malformed(frame, "another job than was asked for"));
                }
                self.set_stage(id, Stage::Running);
                self.events.push_back(Event::Opened { channel, opened });
                if detach {
                    self.close_channel(id);
                } else {
                    self.answered(id);
                }
            }
            (Kind::Attached, Stage::Opening, Asked::Open { .. } | Asked::Attach { .. }) => {
                self.handle_attached(frame)?;
            }
            (Kind::Answer, Stage::Opening, Asked::Query) => self.handle_last(frame)?,
            (Kind::Answer, Stage::Running, Asked::Attach { follow: false }) => {
                if state.recv.values().any(|recv| !recv.ended && !recv.stopped) {
                    return Err(malformed(frame, "a stream has not ended"));
                }
                self.handle_last(frame)?;
            }
            (Kind::Refused, Stage::Opening, _) => {
                let refused = parse(frame)?;
                self.close_channel(id);
                self.events.push_back(Event::Refused { channel, refused });
            }
            (Kind::Exit, Stage::Running, _) => {
                let report: ExitReport = parse(frame)?;
                match &report.end {
                    End::NotStarted { .. } => {
                        return Err(malformed(frame, "a job that was started was not started"));
                    }
                    End::Signaled { name, .. } if !is_signal_name(name) => {
                        return Err(malformed(frame, "no name of a signal"));
                    }
                    _ => {}
                }
                self.set_stage(id, Stage::Exited);
                if let Some(state) = self.channels.get_mut(&id) {
                    state.end = Some(report.end.clone());
                }
                self.events.push_back(Event::Exit { channel, report });
            }
            (Kind::Seal, Stage::Exited, _) => {
                let mut seal: Box<Seal> = parse(frame)?;
                if state.end.as_ref() != Some(&seal.end) {
                    return Err(malformed(frame, "another end than that of the exit"));
                }
                // Streams of a later version: nothing of them was asked for, and nothing arrived.
                seal.streams.retain(|name, _| Stream::OUTPUTS.iter().any(|s| s.name() == name));
                let verdict = state.verdict(&seal);
                // Who has not got what was sealed does not say so: the server keeps it.
                let mismatch = matches!(verdict, Verdict::Mismatch(_));
                let kind = if mismatch { Kind::Detach } else { Kind::Close };
                self.push_lazy(&empty_frame(kind, id));
                self.close_channel(id);
                self.events.push_back(Event::Seal { channel, seal, verdict });
            }
            (kind, ..) => return Err(Misbehaviour::UnexpectedFrame(kind)),
        }
        Ok(())
    }

    fn handle_last(&mut self, frame: &Frame) -> Handled {
        let answer = Box::new(parse(frame)?);
        self.close_channel(frame.channel);
        self.events.push_back(Event::Answer { channel: ChannelId(frame.channel), answer });
        Ok(())
    }

    fn handle_attached(&mut self, frame: &Frame) -> Handled {
        let attached: Attached = parse(frame)?;
        let id = frame.channel;
        let Some(state) = self.channels.get_mut(&id) else { return Ok(()) };
        if !state.asked_for(&attached.job) {
            return Err(malformed(frame, "another job than was asked for"));
        }
        for (&stream, recv) in &mut state.recv {
            let Some(from) = attached.streams.get(stream.name()) else {
                return Err(malformed(frame, "a stream that was asked for is missing"));
            };
            if from.offset < recv.offset {
                return Err(malformed(frame, "an offset before the one that was asked for"));
            }
            if from.offset > recv.offset {
                // The bytes between are a gap, so no hash of the whole can be known here.
                recv.sealer = None;
            }
            let credit = recv.granted.saturating_sub(recv.offset);
            let unconsumed = recv.unconsumed();
            recv.offset = from.offset;
            recv.consumed = from.offset.saturating_sub(unconsumed);
            recv.acked = from.offset;
            recv.granted = from.offset.saturating_add(credit);
        }
        state.stage = Stage::Running;
        state.resume_stdin(attached.stdin);
        let detach = state.asked == Asked::Open { detach: true };
        self.events.push_back(Event::Attached { channel: ChannelId(id), attached });
        if detach {
            self.close_channel(id);
        } else {
            self.answered(id);
        }
        Ok(())
    }
}

impl ChannelState {
    /// Whether an answer about `job` is one to what this channel has asked for.
    fn asked_for(&self, job: &JobId) -> bool {
        self.job.as_ref().is_none_or(|(asked, prefix)| {
            asked == job || (*prefix && job.as_str().starts_with(asked.as_str()))
        })
    }

    /// stdin goes on where the server says. An end that was asked for before the answer is kept if
    /// nothing can have come before it.
    fn resume_stdin(&mut self, offset: Option<u64>) {
        let early = self.send.get(&Stream::Stdin).is_some_and(|send| send.finished);
        match offset {
            Some(0) if early => return,
            Some(offset) => {
                self.send.insert(Stream::Stdin, SendStream::at(offset));
            }
            None => {
                self.send.remove(&Stream::Stdin);
            }
        }
        self.queue.clear();
    }

    /// Holds the seal against what arrived (`W-7.4`).
    fn verdict(&self, seal: &Seal) -> Verdict {
        let mut verdict = Verdict::Whole;
        // A stream that was stopped may have been cut anywhere: nothing is known of it, as wished.
        for (&stream, recv) in self.recv.iter().filter(|(_, recv)| !recv.stopped) {
            let Some(claimed) = seal.streams.get(stream.name()) else {
                return Verdict::Mismatch(stream);
            };
            match &recv.sealer {
                Some(sealer) if recv.ended && sealer.matches(claimed) => {}
                None if recv.ended && claimed.bytes == recv.offset => verdict = Verdict::Suffix,
                _ => return Verdict::Mismatch(stream),
            }
        }
        verdict
    }
}

/// Names are shown and compared, so they are names: `SIGTERM`, `SIGRTMIN+3`.
fn is_signal_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'-';
    name.len() <= SIGNAL_NAME_BYTES_MAX && name.bytes().all(allowed)
}
