//! TLS's handshake over TCP, driven without a layer between rustls and the socket.
//!
//! An adapter that flushes by itself would send TLS's Finished alone and the first request behind
//! it. Here the caller decides when bytes leave, so that a whole flight is one write (`W-4.3`).

use std::io::{self, BufRead as _, Write as _};
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use super::{Read, TlsTransport};
use crate::record::{
    HEADER_BYTES, Peer, RECORD_BYTES_MAX, RecordOpener, RecordSealer, Suite, TrafficKeys,
};
use crate::tls::TrafficSecrets;

/// Bytes of one read. Few, because what comes behind the handshake is not for rustls.
const READ_BYTES: usize = 32 * 1024;

/// A TCP socket on which TLS's handshake is made.
#[derive(Debug)]
pub struct TlsHandshake {
    socket: TcpStream,
    tls: rustls::Connection,
    /// What was read and not given to rustls: a record that is not whole yet, and what follows the
    /// handshake.
    unread: Vec<u8>,
    writes: u64,
}

impl TlsHandshake {
    /// The handshake of `tls` over this socket; nothing of it has been made yet.
    #[must_use]
    pub fn new(socket: TcpStream, tls: impl Into<rustls::Connection>) -> Self {
        Self { socket, tls: tls.into(), unread: Vec::new(), writes: 0 }
    }

    /// The TLS connection.
    pub fn tls(&mut self) -> &mut rustls::Connection {
        &mut self.tls
    }

    /// Takes plaintext to be sent, without sending it: a server's, behind its first flight.
    ///
    /// # Errors
    /// More than rustls's buffer holds.
    pub fn buffer(&mut self, plaintext: &[u8]) -> io::Result<()> {
        self.tls.writer().write_all(plaintext)
    }

    /// Sends what rustls wants to say: in one write, if the socket takes it.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            ready!(self.socket.poll_write_ready(context))?;
            match self.tls.write_tls(&mut SocketSink { socket: &self.socket }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => self.writes += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once, and goes on with the handshake as far as that allows. What follows the handshake
    /// is kept for [`TlsHandshake::into_transport`]. Nothing is written, so what rustls wants to say
    /// (Finished, an alert) waits for the next flush.
    ///
    /// # Errors
    /// The stream is broken, or the peer broke TLS: then the error holds a [`rustls::Error`], and an
    /// alert may wait to be sent.
    pub fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Read>> {
        loop {
            ready!(self.socket.poll_read_ready(context))?;
            let mut buffer = [0; READ_BYTES];
            match self.socket.try_read(&mut buffer) {
                Ok(0) => return Poll::Ready(Ok(Read::End)),
                Ok(count) => {
                    self.unread.extend_from_slice(buffer.get(..count).unwrap_or_default());
                    self.go_on()?;
                    return Poll::Ready(Ok(Read::Progress));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives rustls whole records only, so that it keeps none of what follows the handshake.
    fn go_on(&mut self) -> io::Result<()> {
        let mut given = 0;
        while self.tls.is_handshaking() {
            let rest = self.unread.get(given..).unwrap_or_default();
            let Some(record) = whole_record(rest) else { break };
            given += record.len();
            let mut record = record;
            while !record.is_empty() {
                self.tls.read_tls(&mut record)?;
            }
            self.tls
                .process_new_packets()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
        self.unread.drain(..given);
        Ok(())
    }

    /// What follows the handshake: the connection's data. What rustls has still to say, Finished
    /// above all, leaves in one write with what is sent first.
    ///
    /// # Errors
    /// The handshake is not over, or was not one of ours.
    pub fn into_transport(mut self, secrets: &TrafficSecrets) -> io::Result<TlsTransport> {
        let failed = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        // Behind the peer's last message of the handshake, rustls is given nothing.
        if self.tls.reader().fill_buf().is_ok_and(|early| !early.is_empty()) {
            return Err(failed("data within the handshake"));
        }
        let mut ahead = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut ahead)?;
        }
        let suite = self.tls.negotiated_cipher_suite().and_then(|suite| Suite::of(suite.suite()));
        let suite = suite.ok_or_else(|| failed("no cipher suite of ours"))?;
        let is_client = matches!(self.tls, rustls::Connection::Client(_));
        let extracted = self.tls.dangerous_extract_secrets().map_err(io::Error::other)?;
        let (client, server) =
            secrets.take().ok_or_else(|| failed("the TLS library has told no traffic secrets"))?;
        let peer = if is_client { Peer::Server } else { Peer::Client };
        let (sent_with, received_with) =
            if is_client { (client, server) } else { (server, client) };
        let sending = TrafficKeys::new(suite, &sent_with, extracted.tx.0);
        let receiving = TrafficKeys::new(suite, &received_with, extracted.rx.0);
        let opener = RecordOpener::new(receiving.map_err(io::Error::other)?, peer);
        let sealer = RecordSealer::new(sending.map_err(io::Error::other)?, &ahead);
        let sealer = sealer.map_err(io::Error::other)?;
        Ok(TlsTransport::of_parts(self.socket, opener, sealer, self.unread, self.writes))
    }
}

/// The record at the front of `bytes`, if it is whole. What can't be a record counts as one: rustls
/// says at once what is wrong with it.
fn whole_record(bytes: &[u8]) -> Option<&[u8]> {
    const CONTENT_TYPES: std::ops::RangeInclusive<u8> = 20..=23;
    let [content_type, _, _, high, low] = *bytes.first_chunk::<HEADER_BYTES>()?;
    let length = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if !CONTENT_TYPES.contains(&content_type) || length > RECORD_BYTES_MAX {
        return Some(bytes);
    }
    bytes.get(..length)
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
