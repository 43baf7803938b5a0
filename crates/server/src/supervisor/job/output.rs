//! What a job writes, to a pipe or a terminal: read only as far as those who want its output have
//! room.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::task::{Context, Poll, ready};

use afar_core::job::Allowance;
use afar_proto::connection::Stream;
use afar_sys::signals::Signal;
use afar_sys::terminal::WindowSize;
use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Most bytes of one read.
const READ_BYTES: usize = 64 * 1024;

/// A read of at least this much keeps its buffer; a smaller one is copied out of it, so that what is
/// held takes little more memory than it has bytes.
const KEEP_BYTES: usize = READ_BYTES / 4 * 3;

/// What a pipe is asked to hold once it has shown that it carries bulk (fcntl(2), F_SETPIPE_SZ).
const BULK_PIPE_BYTES: usize = 256 * 1024;

/// What came out of the pipe.
#[derive(Debug)]
pub(super) enum Piece {
    Bytes(Bytes),
    /// Nothing more comes; `complete` iff by itself.
    End {
        complete: bool,
    },
}

/// The pipe.
#[derive(Debug)]
pub(super) struct Output {
    stream: Stream,
    /// `Some` until the end was read, or nobody wants more.
    pipe: Option<AsyncFd<OwnedFd>>,
    kind: Kind,
    bulk: bool,
}

/// What it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Pipe,
    /// Our side of a pseudo-terminal.
    Terminal,
}

thread_local! {
    /// One buffer a thread, not one a stream: a thousand idle jobs cost nothing for it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Output {
    /// A pipe of a job that was just started; `None` for a stream that is merged into another.
    pub(super) fn new(stream: Stream, pipe: Option<OwnedFd>) -> io::Result<Self> {
        Self::of(stream, pipe, Kind::Pipe)
    }

    pub(super) fn of(stream: Stream, pipe: Option<OwnedFd>, kind: Kind) -> io::Result<Self> {
        let pipe =
            pipe.map(|pipe| afar_sys::readiness::watch(pipe, Interest::READABLE)).transpose()?;
        Ok(Self { stream, pipe, kind, bulk: false })
    }

    /// Gives a terminal another size. One that is gone, or none, has no size.
    pub(super) fn resize(&self, size: WindowSize) {
        if let (Kind::Terminal, Some(terminal)) = (self.kind, &self.pipe) {
            let _ = afar_sys::terminal::set_window_size(terminal.get_ref(), size);
        }
    }

    /// Sends a signal that a terminal has a key for to what is in its foreground; whether it is such a
    /// signal, and this a terminal.
    pub(super) fn signal_foreground(&self, signal: Signal) -> bool {
        let (Kind::Terminal, Some(terminal)) = (self.kind, &self.pipe) else { return false };
        afar_sys::pty::signal_foreground(terminal.get_ref(), signal).is_ok()
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    /// The number of the pipe's descriptor.
    pub(super) fn number(&self) -> Option<RawFd> {
        self.pipe.as_ref().map(|pipe| pipe.get_ref().as_raw_fd())
    }

    /// Bytes that are in the pipe now. One that can't tell is drained until it is silent, like any
    /// other.
    pub(super) fn owed(&self) -> u64 {
        let pipe = self.pipe.as_ref();
        pipe.map_or(0, |pipe| afar_sys::pipe::bytes_readable(pipe.get_ref()).unwrap_or(0))
    }

    /// Nobody wants more: closes the pipe, so that its writers meet SIGPIPE.
    pub(super) fn close(&mut self) {
        self.pipe = None;
    }

    /// Takes the pipe out, to be drained by somebody else.
    pub(super) fn take_pipe(&mut self) -> Option<AsyncFd<OwnedFd>> {
        self.pipe.take()
    }

    /// Reads the next piece, if so much may be read. `Pending` also while nothing may be: more of it
    /// does not wake the task, its caller polls again.
    pub(super) fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        allowed: Allowance,
    ) -> Poll<Piece> {
        let Some(pipe) = &self.pipe else { return Poll::Pending };
        if allowed.is_none() {
            return Poll::Pending;
        }
        let read_bytes = allowed.bytes.min(READ_BYTES);
        loop {
            let mut guard = match ready!(pipe.poll_read_ready(context)) {
                Ok(guard) => guard,
                // The runtime is shutting down: nothing will ever be read again.
                Err(_) => return Poll::Pending,
            };
            let read = guard.try_io(|pipe| match self.kind {
                Kind::Pipe => read_piece(pipe.get_ref(), read_bytes),
                Kind::Terminal => read_terminal(pipe.get_ref(), read_bytes),
            });
            match read {
                Err(_would_block) => {}
                Ok(Ok(bytes)) if !bytes.is_empty() => {
                    // (What a terminal gives at once says nothing of what it still has.)
                    if bytes.len() < read_bytes && self.kind == Kind::Pipe {
                        // The pipe is empty; the next write is a new edge. Saves the read that
                        // would only say so.
                        guard.clear_ready();
                    }
                    self.took(&bytes);
                    return Poll::Ready(Piece::Bytes(bytes));
                }
                // EIO and the like end the stream as the end of the pipe does; the seal says
                // that it is incomplete.
                Ok(end) => {
                    self.close();
                    return Poll::Ready(Piece::End { complete: end.is_ok() });
                }
            }
        }
    }

    /// Gives a pipe that carries bulk the room for it.
    fn took(&mut self, bytes: &Bytes) {
        if bytes.len() == READ_BYTES
            && !self.bulk
            && self.kind == Kind::Pipe
            && let Some(pipe) = &self.pipe
        {
            self.bulk = true;
            // Past the user's limit for pipes it stays as it is, and only slower.
            let _ = afar_sys::pipe::set_pipe_size(pipe.get_ref(), BULK_PIPE_BYTES);
        }
    }
}

/// Reads what a terminal has now, at most `read_bytes`. It gives no more than 4 KiB at once, so what
/// there is is put together here. The end, for which the kernel says `EIO`, is no bytes: it comes only
/// when everything was read.
fn read_terminal(terminal: &OwnedFd, read_bytes: usize) -> io::Result<Bytes> {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.clear();
        buffer.resize(read_bytes, 0);
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(terminal, rest) {
                Ok(0) | Err(Errno::IO) => break,
                Ok(count) => filled += count,
                Err(_) if filled > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Bytes::copy_from_slice(buffer.get(..filled).unwrap_or_default()))
    })
}

/// One read of at most `read_bytes`.
fn read_piece(pipe: &OwnedFd, read_bytes: usize) -> io::Result<Bytes> {
    BUFFER.with_borrow_mut(|buffer| {
        buffer.clear();
        buffer.reserve_exact(READ_BYTES);
        if buffer.capacity() > read_bytes {
            // Less room at the other end than the buffer has: the reader of a stalled client.
            buffer.resize(read_bytes, 0);
            let count = rustix::io::read(pipe, buffer.as_mut_slice())?;
            return Ok(Bytes::copy_from_slice(buffer.get(..count).unwrap_or_default()));
        }
        rustix::io::read(pipe, rustix::buffer::spare_capacity(buffer))?;
        if buffer.len() >= KEEP_BYTES {
            Ok(std::mem::take(buffer).into())
        } else {
            Ok(Bytes::copy_from_slice(buffer))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_takes_little_more_than_its_bytes() {
        for bytes in [1, 16 * 1024, KEEP_BYTES - 1, KEEP_BYTES, READ_BYTES] {
            let pipe = afar_sys::pipe::pipe_from_child().unwrap();
            let _ = afar_sys::pipe::set_pipe_size(&pipe.ours, BULK_PIPE_BYTES);
            assert_eq!(rustix::io::write(&pipe.childs, &vec![7; bytes]).unwrap(), bytes);
            let piece = read_piece(&pipe.ours, READ_BYTES).unwrap();
            assert_eq!(piece.len(), bytes);
            let held = piece.try_into_mut().unwrap().capacity();
            assert!(held <= bytes.max(64) / 3 * 4 + 64, "{held} for {bytes}");
        }
    }
}
