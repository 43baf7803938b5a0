//! A unix socket: between the listener and a supervisor, and for the user's own commands.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::UnixStream;

use super::{Read, Transport, advance, shut_down_sending, slices, with_read_buffer};

/// Bytes that may be on their way to the other process.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// A connected unix socket.
#[derive(Debug)]
pub struct UnixTransport {
    socket: UnixStream,
}

impl UnixTransport {
    /// The transport over this socket.
    #[must_use]
    pub fn new(socket: UnixStream) -> Self {
        // With less the two sides take turns instead of working at the same time; where it is not
        // granted it works all the same.
        let _ = afar_sys::socket::set_send_buffer(&socket, SEND_BUFFER_BYTES);
        Self { socket }
    }
}

impl Transport for UnixTransport {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Read>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            let read = with_read_buffer(|buffer| {
                let count = self.socket.try_read(buffer)?;
                sink(buffer.get(..count).unwrap_or_default());
                Ok::<_, io::Error>(count)
            });
            match read {
                Ok(0) => return Poll::Ready(Ok(Read::End)),
                Ok(_) => return Poll::Ready(Ok(Read::Progress)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<()>> {
        while !pieces.is_empty() {
            ready!(self.socket.poll_write_ready(context))?;
            match self.socket.try_write_vectored(&slices(pieces)) {
                Ok(count) => advance(pieces, count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(shut_down_sending(&self.socket))
    }
}
