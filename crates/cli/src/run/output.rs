//! The command's output on our own stdout and stderr, in the order in which it arrives.
//!
//! What can't block is written at once. Everything else goes through a thread, because an inherited
//! descriptor must not be made non-blocking, and a write to a reader that has stopped (`| less`)
//! must not stop the connection. Two streams that are the same file (a terminal, `2>&1`) share one
//! thread, so that their order is kept.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use afar_client::Stream;
use afar_net::transport::advance;
use bytes::{Buf as _, Bytes};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::termios::isatty;
use tokio::sync::Notify;

use super::stdin::is_null_device;
use crate::tty;

/// What may wait here, by its cost, before no more of the job's events are taken.
const QUEUED_COST_MAX: usize = 1024 * 1024;

/// What a waiting piece costs beside its bytes: a million single bytes are more than a megabyte of
/// memory.
const PIECE_COST: usize = 128;

/// A pipe that polls as writable takes this much without blocking (pipe(7), PIPE_BUF).
const PIPE_BYTES: usize = 4096;

/// What a pipe is asked to hold once bulk goes through it.
const PIPE_BUFFER_BYTES: usize = 256 * 1024;

/// Pieces of one vectored write; the kernel's limit is 1,024 (IOV_MAX).
const PIECES_MAX: usize = 64;

/// Our stdout and stderr.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: Lane,
    /// `None` iff stderr shares stdout's lane.
    stderr: Option<Lane>,
    /// Streams whose reader went away, or that failed otherwise: nothing more is written.
    failed: [bool; 2],
    /// Whether stdout and stderr are terminals; `None` until it was found out.
    terminals: [Option<bool>; 2],
    /// Whether the command has left a line on a terminal without an end.
    mid_line: bool,
    changed: Arc<Notify>,
}

impl Output {
    /// The streams as this process was started with.
    pub(crate) fn new() -> Self {
        Self::over([rustix::stdio::stdout(), rustix::stdio::stderr()])
    }

    fn over(descriptors: Descriptors) -> Self {
        let changed = Arc::new(Notify::new());
        let lane = || Lane::new(descriptors, Arc::clone(&changed));
        Self {
            stdout: lane(),
            stderr: (!same_file(descriptors)).then(lane),
            failed: [false; 2],
            terminals: [None; 2],
            mid_line: false,
            changed,
        }
    }

    /// Writes, now or as soon as the reader takes it. Never blocks.
    pub(crate) fn push(&mut self, stream: Stream, bytes: Bytes) {
        if bytes.is_empty() || self.has_failed(stream) {
            return;
        }
        if self.is_terminal(stream) {
            self.mid_line = !bytes.ends_with(b"\n");
        }
        self.enqueue(stream, bytes);
    }

    /// Writes a text of our own to stderr, behind what the command has written; on a terminal on a
    /// line of its own. `same_line` is whether it goes on with our last one in place of that.
    pub(super) fn push_own(&mut self, text: &str, same_line: bool) {
        if self.has_failed(Stream::Stderr) {
            return;
        }
        let ends_line = self.is_terminal(Stream::Stderr) && !same_line && self.mid_line;
        self.mid_line &= !ends_line;
        let before = if ends_line { "\r\n" } else { "" };
        let mut text = format!("{before}{text}");
        if tty::is_raw() {
            text = text.replace('\n', "\r\n");
        }
        self.enqueue(Stream::Stderr, text.into());
    }

    fn is_terminal(&mut self, stream: Stream) -> bool {
        let fd = descriptor(self.stdout.shared.descriptors, stream);
        let known = self.terminals.get_mut(slot(stream));
        known.is_some_and(|known| *known.get_or_insert_with(|| isatty(fd)))
    }

    fn enqueue(&mut self, stream: Stream, bytes: Bytes) {
        let lane = match (&mut self.stderr, stream) {
            (Some(stderr), Stream::Stderr) => stderr,
            _ => &mut self.stdout,
        };
        lane.push(stream, bytes);
    }

    /// Whether more may be pushed before [`Output::changed`] is waited for.
    pub(crate) fn has_room(&self) -> bool {
        self.lanes().all(|lane| lane.shared.lock().cost < QUEUED_COST_MAX)
    }

    /// Whether everything was written, or given up.
    pub(crate) fn is_empty(&self) -> bool {
        self.lanes().all(|lane| {
            let queue = lane.shared.lock();
            queue.cost == 0 && queue.failures.is_empty()
        })
    }

    /// Waits until a thread has written something, or failed. Cancellation safe; may return for
    /// nothing.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A stream that can't be written to any more, once.
    pub(crate) fn take_failure(&mut self) -> Option<(Stream, io::Error)> {
        let failure = self.lanes().find_map(|lane| lane.shared.lock().failures.pop())?;
        if let Some(failed) = self.failed.get_mut(slot(failure.0)) {
            *failed = true;
        }
        Some(failure)
    }

    /// Whether a stream can't be written to any more.
    pub(super) fn has_failed(&self, stream: Stream) -> bool {
        self.failed.get(slot(stream)).copied().unwrap_or(false)
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        std::iter::once(&self.stdout).chain(&self.stderr)
    }
}

fn slot(stream: Stream) -> usize {
    usize::from(stream == Stream::Stderr)
}

/// Stdout and stderr; they live as long as the process.
type Descriptors = [BorrowedFd<'static>; 2];

fn descriptor([stdout, stderr]: Descriptors, stream: Stream) -> BorrowedFd<'static> {
    if stream == Stream::Stderr { stderr } else { stdout }
}

/// Whether stdout and stderr are one file, so that the order between them can be seen.
fn same_file([stdout, stderr]: Descriptors) -> bool {
    match (fstat(stdout), fstat(stderr)) {
        (Ok(out), Ok(err)) => {
            (out.st_dev, out.st_ino, out.st_rdev) == (err.st_dev, err.st_ino, err.st_rdev)
        }
        _ => false,
    }
}

/// One order of writes, to one descriptor or two.
#[derive(Debug)]
struct Lane {
    shared: Arc<Shared>,
    running: bool,
    /// What may be written at once, for stdout and stderr; `None` until it was found out.
    directness: [Option<Directness>; 2],
}

/// What a lane and its thread share.
#[derive(Debug)]
struct Shared {
    descriptors: Descriptors,
    queue: Mutex<Queue>,
    work: Condvar,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<(Stream, Bytes)>,
    /// The cost of what waits, of what the thread is writing too; 0 iff nothing does.
    cost: usize,
    failures: Vec<(Stream, io::Error)>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may be written to a descriptor by the task that must not block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Directness {
    /// Everything: files and `/dev/null` never wait for a reader.
    All,
    /// A small piece while there is room: pipes.
    Small,
    /// Nothing: a terminal may be stopped at any moment.
    Nothing,
}

impl Directness {
    fn of(fd: BorrowedFd<'_>) -> Self {
        let Ok(stat) = fstat(fd) else { return Self::Nothing };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Self::All,
            FileType::CharacterDevice if is_null_device(&stat) => Self::All,
            FileType::Fifo => Self::Small,
            _ => Self::Nothing,
        }
    }

    fn allows(self, fd: BorrowedFd<'_>, bytes: usize) -> bool {
        match self {
            Self::All => true,
            Self::Small => bytes <= PIPE_BYTES && is_writable_now(fd),
            Self::Nothing => false,
        }
    }
}

fn is_writable_now(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
}

impl Lane {
    fn new(descriptors: Descriptors, changed: Arc<Notify>) -> Self {
        let shared = Shared { descriptors, queue: Mutex::default(), work: Condvar::new(), changed };
        Self { shared: Arc::new(shared), running: false, directness: [None; 2] }
    }

    fn push(&mut self, stream: Stream, mut bytes: Bytes) {
        let idle = self.shared.lock().cost == 0;
        if idle && self.may_write_now(stream, bytes.len()) {
            match write_some(self.fd(stream), &bytes) {
                Ok(written) => bytes.advance(written),
                Err(Errno::AGAIN) => {}
                Err(error) => return self.fail(stream, error.into()),
            }
            if bytes.is_empty() {
                return;
            }
        }
        self.enqueue(stream, bytes);
    }

    fn may_write_now(&mut self, stream: Stream, bytes: usize) -> bool {
        let fd = self.fd(stream);
        let Some(known) = self.directness.get_mut(slot(stream)) else { return false };
        known.get_or_insert_with(|| Directness::of(fd)).allows(fd, bytes)
    }

    fn fd(&self, stream: Stream) -> BorrowedFd<'static> {
        descriptor(self.shared.descriptors, stream)
    }

    fn fail(&self, stream: Stream, error: io::Error) {
        self.shared.lock().failures.push((stream, error));
        self.shared.changed.notify_one();
    }

    fn enqueue(&mut self, stream: Stream, bytes: Bytes) {
        if !self.running {
            self.running = true;
            let shared = Arc::clone(&self.shared);
            // The thread is never waited for: the program's end ends it.
            let spawned =
                thread::Builder::new().name("output".to_owned()).spawn(move || write_all(&shared));
            if let Err(error) = spawned {
                self.running = false;
                return self.fail(stream, error);
            }
            // Larger pipes mean fewer switches between us and the reader; where the system does not
            // allow it they work all the same.
            let _ = rustix::pipe::fcntl_setpipe_size(self.fd(stream), PIPE_BUFFER_BYTES);
        }
        let mut queue = self.shared.lock();
        queue.cost += cost(&bytes);
        queue.pieces.push_back((stream, bytes));
        drop(queue);
        self.shared.work.notify_one();
    }
}

fn cost(piece: &Bytes) -> usize {
    piece.len() + PIECE_COST
}

/// One write, of as much as is taken.
fn write_some(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| rustix::io::write(fd, bytes))
}

/// The thread of a lane. What has come together is written together: for bulk, a switch to this
/// thread and back costs as much as the copy of what it writes.
fn write_all(shared: &Shared) {
    let mut failed = [false; 2];
    loop {
        let (stream, mut batch) = {
            let mut queue = shared.lock();
            loop {
                if let Some(batch) = queue.take_batch() {
                    break batch;
                }
                queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
        };
        let batch_cost: usize = batch.iter().map(cost).sum();
        let already_failed = failed.get(slot(stream)).copied().unwrap_or(true);
        let fd = descriptor(shared.descriptors, stream);
        let result = if already_failed { Ok(()) } else { write_blocking(fd, &mut batch) };
        let mut queue = shared.lock();
        queue.cost -= batch_cost;
        if let Err(error) = result {
            if let Some(failed) = failed.get_mut(slot(stream)) {
                *failed = true;
            }
            queue.failures.push((stream, error));
        }
        drop(queue);
        shared.changed.notify_one();
    }
}

impl Queue {
    /// The next pieces of one stream, as many as a large pipe takes at once.
    fn take_batch(&mut self) -> Option<(Stream, VecDeque<Bytes>)> {
        let (stream, first) = self.pieces.pop_front()?;
        let mut length = first.len();
        let mut batch = VecDeque::from([first]);
        while let Some((_, bytes)) = self.pieces.pop_front_if(|(next, bytes)| {
            *next == stream && length + bytes.len() <= PIPE_BUFFER_BYTES && batch.len() < PIECES_MAX
        }) {
            length += bytes.len();
            batch.push_back(bytes);
        }
        Some((stream, batch))
    }
}

fn write_blocking(fd: BorrowedFd<'_>, batch: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !batch.is_empty() {
        let slices: Vec<io::IoSlice<'_>> =
            batch.iter().map(|bytes| io::IoSlice::new(bytes)).collect();
        match rustix::io::retry_on_intr(|| rustix::io::writev(fd, &slices)) {
            Ok(written) => advance(batch, written),
            // Somebody else has made the descriptor non-blocking.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
