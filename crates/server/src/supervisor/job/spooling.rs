//! A job's spool: what its machine has for it, and what is read back.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use afar_core::job::{AttachRequest, AttachmentId, Machine, Piece, SpoolState};
use afar_core::journal::Entry as Journaled;
use afar_proto::connection::Stream;
use afar_proto::message::AttachStart;
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, spawn_blocking};

use super::route::Route;
use crate::log::Log;
use crate::store::{Room, SpoolEvent, SpoolReader, SpoolWriter};
use crate::supervisor::jobs::Spooled;

/// Most bytes of one piece that is handed over.
const PIECE_BYTES_MAX: u64 = 256 * 1024;

/// How much is dropped at once where the oldest part makes room, in bytes.
const DROP_BYTES: u64 = 4 * 1024 * 1024;

/// The spool of one job.
#[derive(Debug)]
pub(super) struct Spooling {
    /// With its name; `None` for a job that has ended long ago.
    writer: Option<(String, SpoolWriter)>,
    /// `None` while it reads.
    reader: Option<SpoolReader>,
    tasks: VecDeque<Task>,
    reading: Option<JoinHandle<Option<(SpoolReader, Done)>>>,
    located: Vec<Located>,
    released: [u64; 2],
}

/// What is to be done by a thread that may wait for the disk.
#[derive(Debug)]
enum Task {
    Read(Wanted),
    Locate(Box<AttachRequest>, Route),
}

#[derive(Debug)]
enum Done {
    Read(Wanted, Option<Vec<Piece>>),
    Located(Located),
}

/// Somebody who attaches where a time or a number of lines says, which was found.
#[derive(Debug)]
pub(super) struct Located {
    pub(super) request: Box<AttachRequest>,
    pub(super) route: Route,
}

/// What is to be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) id: AttachmentId,
    pub(super) stream: Stream,
    pub(super) from: u64,
    pub(super) bytes_max: usize,
}

impl Spooling {
    pub(super) fn new(writer: Option<(String, SpoolWriter)>, reader: SpoolReader) -> Self {
        let (tasks, reading, located) = (VecDeque::new(), None, Vec::new());
        Self { writer, reader: Some(reader), tasks, reading, located, released: [0; 2] }
    }

    /// Whether nobody waits for anything of it.
    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.reading.is_none() && self.located.is_empty()
    }

    /// Whether it is one that is still written, and nothing is on its way.
    pub(super) fn stands_still(&self) -> bool {
        self.writer.is_some() && self.is_idle()
    }

    /// What is left of it when its job is over.
    pub(super) fn into_spooled(self, journaled: Box<Journaled>, needed: bool) -> Option<Spooled> {
        self.writer.map(|(name, writer)| Spooled { name, writer, journaled, needed })
    }

    pub(super) fn want(&mut self, wanted: Wanted) {
        self.tasks.push_back(Task::Read(wanted));
    }

    /// Finds where somebody who attaches begins: they come out at [`Spooling::located`].
    pub(super) fn locate(&mut self, request: Box<AttachRequest>, route: Route) {
        self.tasks.push_back(Task::Locate(request, route));
    }

    /// Those whose beginning was found.
    pub(super) fn located(&mut self) -> Vec<Located> {
        std::mem::take(&mut self.located)
    }

    pub(super) fn drop_oldest(&mut self) {
        if let Some((_, writer)) = &mut self.writer {
            writer.drop_oldest(DROP_BYTES);
        }
    }

    /// Hands over what there is, and hears what became of it; tells whether anything happened.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        machine: &mut Machine,
        readers: &Arc<Semaphore>,
        log: Log,
    ) -> bool {
        let mut progress = self.poll_reading(context, machine, readers);
        let released = machine.released();
        let Some((_, writer)) = &mut self.writer else { return progress };
        if released != self.released {
            self.released = released;
            writer.release(released);
        }
        while machine.has_for_spool() {
            let state = match writer.room() {
                Room::For(bytes) => {
                    machine.spool_is(SpoolState::Open);
                    let bytes_max = usize::try_from(bytes.min(PIECE_BYTES_MAX)).unwrap_or(0);
                    let Some((stream, piece)) = machine.next_for_spool(bytes_max) else { break };
                    writer.append(stream, piece.offset, piece.clock_us, piece.bytes);
                    progress = true;
                    continue;
                }
                Room::Later => SpoolState::Open,
                Room::Full => SpoolState::Full,
                Room::Failed => SpoolState::Failed,
            };
            machine.spool_is(state);
            break;
        }
        while let Poll::Ready(event) = writer.poll_event(context) {
            progress = true;
            match event {
                SpoolEvent::Written { to, kept_from } => machine.spool_has(to, kept_from),
                SpoolEvent::Failed(failure) => {
                    log.error(&format!("no more output is kept on the disk: {failure}"));
                    machine.spool_is(SpoolState::Failed);
                }
            }
        }
        progress
    }

    fn poll_reading(
        &mut self,
        context: &mut Context<'_>,
        machine: &mut Machine,
        readers: &Arc<Semaphore>,
    ) -> bool {
        let mut progress = false;
        loop {
            if let Some(reading) = &mut self.reading {
                let Poll::Ready(read) = Pin::new(reading).poll(context) else { return progress };
                self.reading = None;
                progress = true;
                // An error: the runtime is shutting down.
                let Ok(Some((reader, done))) = read else { return false };
                self.reader = Some(reader);
                match done {
                    Done::Read(Wanted { id, stream, .. }, pieces) => {
                        machine.spool_read(id, stream, pieces);
                    }
                    Done::Located(located) => self.located.push(located),
                }
            }
            let Some(task) = self.tasks.pop_front() else { return progress };
            let Some(mut reader) = self.reader.take() else { return progress };
            let turn = Arc::clone(readers).acquire_owned();
            self.reading = Some(tokio::task::spawn_local(async move {
                // The semaphore is never closed.
                let turn = turn.await.ok();
                let done = match task {
                    Task::Read(wanted) => {
                        let read = move || {
                            let _turn = turn;
                            let pieces = read(&mut reader, wanted);
                            (reader, pieces)
                        };
                        let (reader, pieces) = spawn_blocking(read).await.ok()?;
                        (reader, Done::Read(wanted, pieces))
                    }
                    Task::Locate(request, route) => {
                        let locate = move || {
                            let _turn = turn;
                            let request = locate(&mut reader, request);
                            (reader, request)
                        };
                        let (reader, request) = spawn_blocking(locate).await.ok()?;
                        (reader, Done::Located(Located { request, route }))
                    }
                };
                Some(done)
            }));
        }
    }
}

/// The request with offsets in the place of a time or of lines. What can't be read is told from its
/// beginning, gap and all.
fn locate(reader: &mut SpoolReader, mut request: Box<AttachRequest>) -> Box<AttachRequest> {
    let found = match request.start.take() {
        Some(AttachStart::SinceUs(clock_us)) => reader.since(clock_us).ok(),
        Some(AttachStart::TailLines(lines)) => reader.last_lines(lines).ok(),
        None => None,
    };
    for (wanted, found) in request.wanted.iter_mut().zip(found.unwrap_or_default()) {
        *wanted = wanted.map(|wanted| wanted.max(found));
    }
    request
}

/// `None` if it can't be read.
fn read(reader: &mut SpoolReader, wanted: Wanted) -> Option<Vec<Piece>> {
    let from = Stream::OUTPUTS.map(|stream| (stream == wanted.stream).then_some(wanted.from));
    let read = reader.read(from, wanted.bytes_max).ok()?;
    let of_stream = read.pieces.into_iter().filter(|piece| piece.stream == wanted.stream);
    let pieces = of_stream.map(|piece| Piece {
        offset: piece.offset,
        clock_us: piece.clock_us,
        bytes: piece.bytes,
    });
    Some(pieces.collect())
}
