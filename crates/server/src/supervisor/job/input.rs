//! The pipe that a job reads as its stdin.

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
}

impl Input {
    pub(super) fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        let pipe =
            pipe.map(|pipe| afar_sys::readiness::watch(pipe, Interest::WRITABLE)).transpose()?;
        Ok(Self { pipe, ..Self::default() })
    }

    /// What waits, and whether more may come.
    pub(super) fn write_down(&self) -> WrittenInput {
        let waiting = self.queue.iter().flatten().chain(&self.small).copied().collect();
        let pipe = self.pipe.as_ref().map(|pipe| pipe.get_ref().as_raw_fd());
        WrittenInput { pipe, waiting, ended: self.ended }
    }

    /// Goes on with what was written down.
    pub(super) fn written_down(written: WrittenInput) -> io::Result<Self> {
        let pipe = written.pipe.map(afar_sys::exec::take_kept).transpose()?;
        let mut input = Self::new(pipe)?;
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
        if self.ended && self.queue.is_empty() {
            self.close();
        }
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
                advance(&mut self.queue, count);
                self.close_if_done();
                Taken::Bytes(count)
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
}
