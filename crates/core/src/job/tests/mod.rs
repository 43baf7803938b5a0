//! The rules of `docs/spec/jobs.md`, one by one, against a machine and simulated time.

mod ends;
mod output;
mod owners;
mod upgrade;

use std::collections::BTreeMap;

use afar_proto::Instant;
use afar_proto::message::JobState;
use afar_proto::outcome::SealDetail;

use super::limits::*;
use super::*;

/// A machine whose actions are carried out at once, and what each attachment was told.
pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) now: Instant,
    pub(super) heard: BTreeMap<AttachmentId, Heard>,
    /// Why the process is to be ended.
    pub(super) ended_for: Vec<Cause>,
    pub(super) closed: Vec<Stream>,
    pub(super) disk: Spool,
}

/// A spool of stdout.
#[derive(Default)]
pub(super) struct Spool {
    pub(super) pieces: Vec<Piece>,
    pub(super) from: u64,
    pub(super) room: usize,
}

impl Spool {
    fn read(&self, from: u64, bytes_max: usize) -> Option<Vec<Piece>> {
        let piece = self.pieces.iter().find(|piece| piece.end() > from)?;
        Some(vec![piece.part(from.max(piece.offset), bytes_max)?])
    }

    fn drop_oldest(&mut self) {
        let dropped = self.pieces.remove(0);
        self.from = dropped.end();
        self.room += dropped.bytes.len();
    }
}

/// What an attachment was told.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Bytes by stream, with `None` for each that is missing.
    pub(super) streams: [Vec<Option<u8>>; 2],
    pub(super) first: [u64; 2],
    pub(super) ends: Vec<Stream>,
    pub(super) exit: Option<ExitReport>,
    pub(super) seal: Option<Seal>,
    pub(super) fenced: bool,
    pub(super) finished: bool,
    pub(super) input_taken: usize,
    pub(super) input_closed: bool,
}

impl Heard {
    /// What was told of stdout, which must have no gap.
    pub(super) fn stdout(&self) -> Vec<u8> {
        self.streams[0].iter().map(|byte| byte.expect("a gap")).collect()
    }

    /// How many bytes of stdout are missing.
    pub(super) fn missing(&self) -> usize {
        self.streams[0].iter().filter(|byte| byte.is_none()).count()
    }
}

pub(super) const A: AttachmentId = AttachmentId(1);
pub(super) const B: AttachmentId = AttachmentId(2);
pub(super) const C: AttachmentId = AttachmentId(3);

pub(super) fn request(id: AttachmentId, mode: AttachMode, from: u64) -> AttachRequest {
    AttachRequest { mode, wanted: [Some(from), Some(0)], ..AttachRequest::opening(id) }
}

pub(super) fn room(bytes: usize) -> Allowance {
    Allowance { bytes, pieces: usize::MAX }
}

impl Rig {
    /// A job that runs, owned by [`A`] without any room.
    pub(super) fn new(settings: Settings) -> Self {
        let mut rig = Self {
            machine: Machine::new(settings),
            now: Instant::ZERO,
            heard: BTreeMap::new(),
            ended_for: Vec::new(),
            closed: Vec::new(),
            disk: Spool::default(),
        };
        rig.attach(&AttachRequest::opening(A));
        rig.machine.started(rig.now);
        rig
    }

    pub(super) fn attach(&mut self, request: &AttachRequest) -> AttachedAt {
        let at = self.machine.attach(request).unwrap();
        let heard = self.heard.entry(request.id).or_default();
        heard.first = at.streams.map(Option::unwrap_or_default);
        self.drain();
        at
    }

    pub(super) fn allow(&mut self, id: AttachmentId, bytes: usize) {
        self.machine.allow(id, Stream::Stdout, room(bytes));
        self.drain();
    }

    /// Writes what may be read of `bytes`, as a process with a full pipe would; returns how much.
    pub(super) fn write(&mut self, bytes: &[u8]) -> usize {
        let allowed = self.machine.readable(Stream::Stdout);
        let taken = if allowed.is_none() { 0 } else { allowed.bytes.min(bytes.len()) };
        self.machine.output(self.now, Stream::Stdout, Bytes::copy_from_slice(&bytes[..taken]));
        self.drain();
        taken
    }

    /// Writes all of it, or fails.
    pub(super) fn write_all(&mut self, bytes: &[u8]) {
        assert_eq!(self.write(bytes), bytes.len());
    }

    /// Writes to the spool what is for it, as far as it has room.
    pub(super) fn spool(&mut self) {
        while self.disk.room > 0
            && let Some((_, piece)) = self.machine.next_for_spool(self.disk.room)
        {
            self.disk.room -= piece.bytes.len();
            self.disk.pieces.push(piece);
        }
        let to = self.disk.pieces.last().map_or(0, Piece::end);
        self.machine.spool_has([to, 0], [self.disk.from, 0]);
        let full = self.disk.room == 0;
        self.machine.spool_is(if full { SpoolState::Full } else { SpoolState::Open });
        self.drain();
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.machine.handle_timeout(self.now);
        self.drain();
    }

    pub(super) fn exit(&mut self, code: u8) {
        self.exit_owing(code, 0);
    }

    pub(super) fn exit_owing(&mut self, code: u8, owed: u64) {
        let exited = Exited {
            end: End::Exited { code },
            receipt: Receipt::default(),
            session_restarted: false,
            owed: [owed, 0],
        };
        self.machine.exited(self.now, exited);
        self.machine.handle_timeout(self.now);
        self.drain();
    }

    pub(super) fn end_streams(&mut self) {
        for stream in Stream::OUTPUTS {
            self.machine.output_end(stream, true);
        }
        self.machine.handle_timeout(self.now);
        self.drain();
    }

    /// Ends it as a process does that says nothing more.
    pub(super) fn finish(&mut self, code: u8) {
        self.end_streams();
        self.exit(code);
    }

    pub(super) fn leave(&mut self, id: AttachmentId, how: Leave) -> bool {
        let cancels = self.machine.leave(id, how);
        self.machine.handle_timeout(self.now);
        self.drain();
        cancels
    }

    pub(super) fn heard(&self, id: AttachmentId) -> &Heard {
        &self.heard[&id]
    }

    pub(super) fn drain(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Tell(id, told) => self.heard.entry(id).or_default().hear(told),
                Action::CloseOutput(stream) => self.closed.push(stream),
                Action::End(cause) => self.ended_for.push(cause),
                Action::Read { id, stream, from, bytes_max } => {
                    let read = self.disk.read(from, bytes_max);
                    self.machine.spool_read(id, stream, read);
                }
                Action::DropSpooled => self.disk.drop_oldest(),
            }
        }
    }
}

impl Heard {
    fn hear(&mut self, told: Told) {
        assert!(!self.fenced && !self.finished && self.seal.is_none(), "told after the last word");
        let at = |stream: Stream| Stream::OUTPUTS.iter().position(|it| *it == stream).unwrap();
        match told {
            Told::Data { stream, bytes, .. } => {
                assert!(!self.ends.contains(&stream) && !bytes.is_empty());
                self.streams[at(stream)].extend(bytes.iter().copied().map(Some));
            }
            Told::Gap { stream, from, to } => {
                let heard = &mut self.streams[at(stream)];
                assert_eq!(self.first[at(stream)] + heard.len() as u64, from);
                heard.extend(std::iter::repeat_n(None, usize::try_from(to - from).unwrap()));
            }
            Told::End(stream) => {
                assert!(!self.ends.contains(&stream));
                self.ends.push(stream);
            }
            Told::InputTaken(bytes) => self.input_taken += bytes,
            Told::InputClosed => self.input_closed = true,
            Told::Exit(report) => assert_eq!(self.exit.replace(*report), None),
            Told::Seal(seal) => self.seal = Some(*seal),
            Told::Finished => self.finished = true,
            Told::Fenced => self.fenced = true,
        }
    }
}
