//! TLS over TCP, driven without a layer between rustls and the socket.
//!
//! An adapter that flushes by itself would send TLS's Finished alone and the first request behind
//! it. Here the caller decides when bytes leave, so that a whole flight is one write (`W-4.3`).

use std::collections::VecDeque;
use std::io::{self, BufRead as _, Write as _};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{Read, Transport, advance, shut_down_sending, slices, with_read_buffer};

/// Encrypted bytes that may wait for the socket before more plaintext is encrypted.
const UNSENT_BYTES_MAX: usize = 512 * 1024;

/// A TLS connection over a TCP socket.
#[derive(Debug)]
pub struct TlsTransport {
    socket: TcpStream,
    tls: rustls::Connection,
    /// An error that came after bytes that were still good.
    failed: Option<io::Error>,
    ended: bool,
    finishing: bool,
    /// Encrypted bytes in `tls` that the socket has not taken.
    unsent_bytes: usize,
    writes: u64,
}

impl TlsTransport {
    /// The transport over this socket, in whatever state the handshake is.
    #[must_use]
    pub fn new(socket: TcpStream, tls: impl Into<rustls::Connection>) -> Self {
        Self {
            socket,
            tls: tls.into(),
            failed: None,
            ended: false,
            finishing: false,
            unsent_bytes: 0,
            writes: 0,
        }
    }

    /// The TLS connection.
    pub fn tls(&mut self) -> &mut rustls::Connection {
        &mut self.tls
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// How many system calls have handed bytes to the socket.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Takes plaintext to be sent, without sending it.
    ///
    /// # Errors
    /// More than rustls's buffer holds.
    pub fn buffer(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(plaintext)
    }

    /// Sends what is buffered: in one write, if the socket takes it.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.socket.poll_write_ready(context))?;
            let mut sink = SocketSink { socket: &self.socket };
            match self.tls.write_tls(&mut sink) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.writes += 1;
                    self.unsent_bytes = self.unsent_bytes.saturating_sub(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.unsent_bytes = 0;
        Poll::Ready(Ok(()))
    }

    /// Decrypts what the socket has, handing plaintext to `sink`. Nothing is written, so what rustls
    /// wants to say (Finished, an alert) waits for the next flush.
    fn decrypt(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes)?;
            let state = self
                .tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let mut left = state.plaintext_bytes_to_read();
            let mut reader = self.tls.reader();
            while left > 0 {
                let chunk = reader.fill_buf()?;
                let count = chunk.len();
                sink(chunk);
                reader.consume(count);
                left = left.saturating_sub(count.max(1));
            }
            if state.peer_has_closed() {
                self.ended = true;
                return Ok(());
            }
        }
        Ok(())
    }
}

impl Transport for TlsTransport {
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        sink: &mut dyn FnMut(&[u8]),
    ) -> Poll<io::Result<Read>> {
        loop {
            if let Some(error) = self.failed.take() {
                return Poll::Ready(Err(error));
            }
            if self.ended {
                return Poll::Ready(Ok(Read::End));
            }
            ready!(self.socket.poll_read_ready(context))?;
            let handed_out = with_read_buffer(|buffer| match self.socket.try_read(buffer) {
                Ok(0) => {
                    // Without close_notify: a cut, which only the layer above can tell from an end.
                    self.ended = true;
                    false
                }
                Ok(count) => {
                    let was_handshaking = self.tls.is_handshaking();
                    let mut handed_out = false;
                    let mut sink = |plaintext: &[u8]| {
                        handed_out |= !plaintext.is_empty();
                        sink(plaintext);
                    };
                    let bytes = buffer.get(..count).unwrap_or_default();
                    self.failed = self.decrypt(bytes, &mut sink).err();
                    // During the handshake there is progress without plaintext, its end above all,
                    // which may be followed by nothing for as long as a person looks for a key. A
                    // failure is none, though it may have an alert to be written: told at once, it
                    // is not mistaken for something to go on with.
                    let progress = was_handshaking || self.tls.wants_write();
                    handed_out || (self.failed.is_none() && progress)
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
                Err(error) => {
                    self.failed = Some(error);
                    false
                }
            });
            if handed_out {
                return Poll::Ready(Ok(Read::Progress));
            }
        }
    }

    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
    ) -> Poll<io::Result<()>> {
        loop {
            // Gathered, so that a header and its data share a record.
            while !pieces.is_empty() && self.unsent_bytes < UNSENT_BYTES_MAX {
                let count = self.tls.writer().write_vectored(&slices(pieces))?;
                if count == 0 {
                    break;
                }
                self.unsent_bytes = self.unsent_bytes.saturating_add(count);
                advance(pieces, count);
            }
            ready!(self.poll_flush(context))?;
            if pieces.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finishing {
            self.finishing = true;
            self.tls.send_close_notify();
        }
        ready!(self.poll_flush(context))?;
        Poll::Ready(shut_down_sending(&self.socket))
    }
}

/// Lets rustls write its records to the socket without blocking, many in one call.
struct SocketSink<'a> {
    socket: &'a TcpStream,
}

impl io::Write for SocketSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.socket.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
