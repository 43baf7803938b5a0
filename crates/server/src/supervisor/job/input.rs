//! What a job reads as its stdin: a pipe, or the keys of a terminal.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::task::{Context, Poll, ready};

use afar_net::transport::advance;
use bytes::{Bytes, BytesMut};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::written::WrittenInput;

/// Smaller pieces than this are put together.
const SMALL_BYTES: usize = 4096;

/// What became of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The job's pipe took this many bytes.
    Bytes(usize),
    /// The job reads no more: it has closed its stdin, or has ended.
    Closed,
}

/// Bytes on their way into a job. What waits here is bounded by the credit that was granted for it.
#[derive(Debug, Default)]
pub(super) struct Input {
    pipe: Option<AsyncFd<OwnedFd>>,
    queue: VecDeque<Bytes>,
    /// Small pieces that came after what is in `queue`, put together: a million single bytes must
    /// not take the memory of a million pieces.
    small: BytesMut,
    ended: bool,
    /// `Some` iff it is typed on a terminal.
    typed: Option<Typed>,
}

/// How far the typing has come.
#[derive(Clone, Copy, Debug, Default)]
struct Typed {
    /// Whether the last key has not ended a line.
    within_line: bool,
    /// Bytes at the end of what waits that are ours: the keys for the end of input.
    end_bytes: usize,
    /// Whether these were typed, or there are none.
    ended: bool,
}

impl Input {
    pub(super) fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        let pipe =
            pipe.map(|pipe| afar_sys::readiness::watch(pipe, Interest::WRITABLE)).transpose()?;
        Ok(Self { pipe, ..Self::default() })
    }

    /// Keys of a terminal. Their end is typed too, if the terminal has a key for it.
    pub(super) fn of_terminal(terminal: Option<OwnedFd>) -> io::Result<Self> {
        Ok(Self { typed: Some(Typed::default()), ..Self::new(terminal)? })
    }

    /// What waits, and whether more may come.
    pub(super) fn write_down(&self) -> WrittenInput {
        let waiting = self.queue.iter().flatten().chain(&self.small).copied().collect();
        let pipe = self.pipe.as_ref().map(|pipe| pipe.get_ref().as_raw_fd());
        WrittenInput { pipe, waiting, ended: self.ended }
    }

    /// Goes on with what was written down.
    pub(super) fn written_down(written: WrittenInput, is_terminal: bool) -> io::Result<Self> {
        let pipe = written.pipe.map(afar_sys::exec::take_kept).transpose()?;
        let mut input = if is_terminal { Self::of_terminal(pipe)? } else { Self::new(pipe)? };
        input.push(written.waiting.into());
        if written.ended {
            input.end();
        }
        Ok(input)
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if self.pipe.is_none() {
            return;
        }
        if bytes.len() < SMALL_BYTES {
            self.small.extend_from_slice(&bytes);
            return;
        }
        self.gather();
        self.queue.push_back(bytes);
    }

    /// Nothing more comes: the job meets end of file behind what waits.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.gather();
        self.close_if_done();
    }

    /// Closes the pipe at once; what waits is dropped.
    pub(super) fn close(&mut self) {
        self.pipe = None;
        self.queue.clear();
        self.small = BytesMut::new();
    }

    /// Puts what was put together behind what waits.
    fn gather(&mut self) {
        if !self.small.is_empty() {
            self.queue.push_back(self.small.split().freeze());
        }
    }

    fn close_if_done(&mut self) {
        if !self.ended || !self.queue.is_empty() {
            return;
        }
        if let (Some(typed), Some(terminal)) = (&mut self.typed, &self.pipe)
            && !std::mem::replace(&mut typed.ended, true)
            && let Some(key) = afar_sys::pty::end_of_input(terminal.get_ref())
        {
            // Within a line it only ends what was typed of that.
            typed.end_bytes = if typed.within_line { 2 } else { 1 };
            self.queue.push_back(Bytes::from(vec![key; typed.end_bytes]));
            return;
        }
        self.close();
    }

    /// So many bytes of the queue were written; how many of them are not our own.
    fn took(&mut self, count: usize) -> usize {
        let last = self.queue.iter().flatten().nth(count.saturating_sub(1)).copied();
        advance(&mut self.queue, count);
        let Some(typed) = &mut self.typed else { return count };
        typed.within_line = last.is_some_and(|key| key != b'\n' && key != b'\r');
        let left: usize = self.queue.iter().map(Bytes::len).sum();
        let own = typed.end_bytes.saturating_sub(left);
        typed.end_bytes -= own;
        count - own
    }

    /// Writes what waits, as much as the pipe takes at once.
    pub(super) fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Taken> {
        if self.queue.is_empty() {
            self.gather();
        }
        let Some(pipe) = &self.pipe else { return Poll::Pending };
        if self.queue.is_empty() {
            // A job that closes its stdin is noticed even when nothing is to be written: the
            // client must not go on reading its own stdin for nobody.
            return self.poll_closed(context);
        }
        // First without asking: the readiness of a pipe with room may have been taken back while
        // nothing was to be written, and the kernel tells no second time.
        let mut written = self.write_some(pipe);
        while matches!(&written, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            let Ok(mut guard) = ready!(pipe.poll_write_ready(context)) else {
                return Poll::Pending;
            };
            if let Ok(result) = guard.try_io(|pipe| self.write_some(pipe.get_ref())) {
                written = result;
            }
        }
        Poll::Ready(match written {
            Ok(count) => {
                let taken = self.took(count);
                self.close_if_done();
                Taken::Bytes(taken)
            }
            // EPIPE is no error of the job: it reads no more, that is all.
            Err(_) => {
                self.close();
                Taken::Closed
            }
        })
    }

    /// One write of as much as the pipe takes.
    fn write_some(&self, pipe: impl AsFd) -> io::Result<usize> {
        let slices: Vec<io::IoSlice<'_>> =
            self.queue.iter().take(64).map(|bytes| io::IoSlice::new(bytes)).collect();
        Ok(rustix::io::retry_on_intr(|| rustix::io::writev(&pipe, &slices))?)
    }

    /// Ready when the reading end is gone, which epoll reports for a writing end as an error.
    fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<Taken> {
        let Some(pipe) = &self.pipe else { return Poll::Pending };
        loop {
            let Ok(mut guard) = ready!(pipe.poll_write_ready(context)) else {
                return Poll::Pending;
            };
            if guard.ready().is_write_closed() || guard.ready().is_error() {
                self.close();
                return Poll::Ready(Taken::Closed);
            }
            // Writable, with nothing to write: wait for the next edge.
            if reader_is_gone(pipe.get_ref()) {
                self.close();
                return Poll::Ready(Taken::Closed);
            }
            guard.clear_ready();
        }
    }
}

/// Asks the kernel, because clearing the readiness below would forget an error that came with it.
fn reader_is_gone(pipe: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(pipe, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
        && polled.iter().any(|polled| polled.revents().contains(PollFlags::ERR))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read as _;

    use afar_sys::pty::Pty;

    use super::*;

    #[tokio::test]
    async fn input_that_comes_after_a_pause_is_written() {
        let afar_sys::pipe::ChildPipe { ours, childs } = afar_sys::pipe::pipe_to_child().unwrap();
        let mut input = Input::new(Some(ours)).unwrap();
        // Nothing is to be written, and the pipe has room: its readiness comes and is taken back.
        for _ in 0..3 {
            poll_fn(|context| {
                assert_eq!(input.poll_write(context), Poll::Pending);
                Poll::Ready(())
            })
            .await;
            tokio::task::yield_now().await;
        }
        input.push(Bytes::from_static(b"late"));
        let written = poll_fn(|context| Poll::Ready(input.poll_write(context))).await;
        assert_eq!(written, Poll::Ready(Taken::Bytes(4)));
        input.end();
        let mut read = String::new();
        std::fs::File::from(childs).read_to_string(&mut read).unwrap();
        assert_eq!(read, "late");
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_is_noticed_with_nothing_to_write() {
        let afar_sys::pipe::ChildPipe { ours, childs } = afar_sys::pipe::pipe_to_child().unwrap();
        let mut input = Input::new(Some(ours)).unwrap();
        let mut childs = Some(childs);
        let closed = poll_fn(|context| {
            let polled = input.poll_write(context);
            drop(childs.take());
            polled
        });
        assert_eq!(closed.await, Taken::Closed);
    }

    #[tokio::test]
    async fn single_bytes_that_nobody_reads_take_the_memory_of_their_sum() {
        let pipe = afar_sys::pipe::pipe_to_child().unwrap();
        let mut input = Input::new(Some(pipe.ours)).unwrap();
        for byte in 0..=u8::MAX {
            input.push(Bytes::from(vec![byte]));
        }
        input.push(Bytes::from(vec![7; SMALL_BYTES]));
        input.push(Bytes::from_static(b"end"));
        assert_eq!(input.queue.len(), 2);
        let taken = poll_fn(|context| input.poll_write(context)).await;
        assert_eq!(taken, Taken::Bytes(256 + SMALL_BYTES));
        input.end();
        let taken = poll_fn(|context| input.poll_write(context)).await;
        assert_eq!(taken, Taken::Bytes(3));
        let mut read = vec![0; 256 + SMALL_BYTES + 3];
        let count = rustix::io::read(&pipe.childs, read.as_mut_slice()).unwrap();
        assert_eq!(count, read.len());
        assert_eq!((read[..256].to_vec(), &read[count - 3..]), ((0..=255).collect(), &b"end"[..]));
        assert_eq!(rustix::io::read(&pipe.childs, read.as_mut_slice()), Ok(0));
    }

    /// Writes all of it, and tells how much of it was not ours.
    async fn write_all(input: &mut Input) -> usize {
        let mut taken = 0;
        while !input.queue.is_empty() || !input.small.is_empty() {
            match poll_fn(|context| input.poll_write(context)).await {
                Taken::Bytes(count) => taken += count,
                Taken::Closed => break,
            }
        }
        taken
    }

    /// W-5.13
    #[tokio::test]
    async fn the_end_of_typed_input_is_typed_and_is_none_of_its_bytes() {
        let size = afar_sys::terminal::WindowSize { rows: 24, columns: 80, ..Default::default() };
        for (mode, keys, expected) in [
            (("icanon", 1), "whole\r", &["whole\n", ""][..]),
            (("icanon", 1), "part", &["part", ""]),
            (("icanon", 1), "", &[""]),
            // Programs that read keys know of no end.
            (("icanon", 0), "keys", &["keys"]),
        ] {
            let pty = Pty::open(size, [mode]).unwrap();
            // As of a job, whose output is on the same side: with it gone the terminal is hung up.
            let ours = pty.controller.try_clone().unwrap();
            let mut input = Input::of_terminal(Some(ours)).unwrap();
            input.push(Bytes::from_static(keys.as_bytes()));
            input.end();
            assert_eq!(write_all(&mut input).await, keys.len(), "{keys:?}");
            for expected in expected {
                let mut read = [0; 64];
                let count = rustix::io::read(&pty.terminal, &mut read).unwrap();
                assert_eq!(&read[..count], expected.as_bytes(), "{keys:?}");
            }
        }
    }
}
