//! Streams of bytes that a connection can run over: TLS over TCP, a unix socket, and a program.

mod child_stream;
mod tls_handshake;
mod tls_stream;
mod unix_stream;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::task::{Context, Poll};

use bytes::Bytes;

use crate::record::RecordError;

pub use child_stream::{ChildTransport, OnLine, StartError};
pub use tls_handshake::TlsHandshake;
pub use tls_stream::TlsTransport;
pub use unix_stream::UnixTransport;

/// Most bytes that one system call reads: large enough that the call's own cost does not count.
const READ_BYTES: usize = 256 * 1024;

/// Pieces that one vectored write takes; the kernel's limit is 1,024 (IOV_MAX).
const WRITE_PIECES: usize = 64;

/// Whether more bytes can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Bytes were handed out, or at least progress was made.
    Progress,
    /// The peer has ended its side.
    End,
}

/// A reliable stream of bytes in both directions, without message boundaries.
pub trait Transport {
    /// Hands what has arrived to `sink`, in pieces of any size. `Pending` wakes the task when there
    /// is more.
    ///
    /// # Errors
    /// The stream is broken; nothing more can be read.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Read>>;

    /// Writes the pieces in order and removes what was taken. `Ready` when all of it has been
    /// handed to the kernel; `Pending` wakes the task when more can be.
    ///
    /// # Errors
    /// The stream is broken; nothing more can be written.
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<()>>;

    /// Says that nothing more will be written, so that the peer reads to the end.
    ///
    /// # Errors
    /// The stream is broken.
    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// One of the transports, chosen as the program runs.
#[derive(Debug)]
pub enum AnyTransport {
    /// TLS over TCP.
    Tls(Box<TlsTransport>),
    /// A unix socket.
    Unix(UnixTransport),
    /// A program's stdin and stdout.
    Child(Box<ChildTransport>),
}

impl Transport for AnyTransport {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Read>> {
        match self {
            Self::Tls(transport) => transport.poll_read(context, sink),
            Self::Unix(transport) => transport.poll_read(context, sink),
            Self::Child(transport) => transport.poll_read(context, sink),
        }
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(transport) => transport.poll_write(context, pieces),
            Self::Unix(transport) => transport.poll_write(context, pieces),
            Self::Child(transport) => transport.poll_write(context, pieces),
        }
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tls(transport) => transport.poll_finish(context),
            Self::Unix(transport) => transport.poll_finish(context),
            Self::Child(transport) => transport.poll_finish(context),
        }
    }
}

/// What the peer did against the rules of TLS, if that is what an error of a transport means.
pub(crate) fn breach_of_tls(error: &io::Error) -> Option<String> {
    let inner = error.get_ref()?;
    let of_handshake = inner.downcast_ref::<rustls::Error>().map(ToString::to_string);
    of_handshake.or_else(|| inner.downcast_ref::<RecordError>().map(ToString::to_string))
}

/// Calls `use_buffer` with this thread's read buffer.
///
/// One buffer a thread, not one a connection: a thousand idle connections cost nothing for it, and
/// the large buffer stays in the processor's cache.
fn with_read_buffer<T>(use_buffer: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; READ_BYTES]);
    }
    BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => use_buffer(&mut buffer),
        // A reader inside a reader's sink: rare, so it may pay for its own buffer.
        Err(_) => use_buffer(&mut vec![0; READ_BYTES]),
    })
}

/// Ends the sending side. A peer that has closed its socket already needs to be told nothing.
fn shut_down_sending(socket: impl AsFd) -> io::Result<()> {
    match rustix::net::shutdown(socket, rustix::net::Shutdown::Write) {
        Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Removes `count` bytes from the front of `pieces`.
pub fn advance(pieces: &mut VecDeque<Bytes>, mut count: usize) {
    while count > 0 {
        let Some(front) = pieces.front_mut() else { return };
        if count < front.len() {
            let _ = front.split_to(count);
            return;
        }
        count -= front.len();
        pieces.pop_front();
    }
}

/// The first pieces as slices for one vectored write.
fn slices(pieces: &VecDeque<Bytes>) -> Vec<io::IoSlice<'_>> {
    pieces.iter().take(WRITE_PIECES).map(|piece| io::IoSlice::new(piece)).collect()
}
