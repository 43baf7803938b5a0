//! TLS over TCP once the handshake is made: our own record layer, straight on the socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::{Read, Transport, shut_down_sending, with_read_buffer};
use crate::hand_off::HandOff;
use crate::record::{RecordError, RecordOpener, RecordSealer};

/// A TLS connection over a TCP socket.
#[derive(Debug)]
pub struct TlsTransport {
    socket: TcpStream,
    opener: RecordOpener,
    sealer: RecordSealer,
    /// What was read and not decrypted: the part of a record, or, at first, whole ones that were
    /// read together with the end of the handshake.
    unopened: Vec<u8>,
    /// An error that came after bytes that were still good.
    failed: Option<io::Error>,
    ended: bool,
    writes: u64,
}

impl TlsTransport {
    pub(super) fn of_parts(
        socket: TcpStream,
        opener: RecordOpener,
        sealer: RecordSealer,
        unopened: Vec<u8>,
        writes: u64,
    ) -> Self {
        Self { socket, opener, sealer, unopened, failed: None, ended: false, writes }
    }

    /// How many system calls have handed bytes to the socket, the handshake's included.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }

    /// Encrypts bytes that are to be sent, without sending them.
    ///
    /// # Errors
    /// More than can wait (256 KiB): nothing should be sent any more.
    pub fn buffer(&mut self, plaintext: &[u8]) -> io::Result<()> {
        let mut pieces = VecDeque::from([Bytes::copy_from_slice(plaintext)]);
        self.sealer.seal(&mut pieces).map_err(io::Error::other)?;
        if pieces.is_empty() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Sends what is buffered: in one write, if the socket takes it.
    ///
    /// # Errors
    /// The stream is broken.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealer.unsent().is_empty() {
            ready!(self.socket.poll_write_ready(context))?;
            match self.socket.try_write(self.sealer.unsent()) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => {
                    self.writes += 1;
                    self.sealer.sent(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Takes the connection apart, for another process to go on with exactly where this one
    /// stopped.
    ///
    /// # Errors
    /// The connection has ended or failed, so there is nothing to go on with; or the runtime did not
    /// let go of the socket.
    pub fn into_hand_off(self) -> io::Result<(OwnedFd, HandOff)> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        if self.ended || self.sealer.has_ended() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let hand_off = HandOff::of(&self.opener, &self.sealer, self.unopened);
        Ok((self.socket.into_std()?.into(), hand_off))
    }

    /// Goes on with a connection that another process has taken apart.
    ///
    /// # Errors
    /// The descriptor is no stream socket of this process's runtime, or the state is not one.
    pub fn from_hand_off(socket: OwnedFd, state: HandOff) -> io::Result<Self> {
        let socket = std::net::TcpStream::from(socket);
        // Also asks the kernel whether this is a connected socket at all.
        socket.peer_addr()?;
        socket.set_nonblocking(true)?;
        let socket = TcpStream::from_std(socket)?;
        let (opener, sealer, unopened) = state.into_parts().map_err(io::Error::other)?;
        Ok(Self::of_parts(socket, opener, sealer, unopened, 0))
    }

    /// Decrypts what `buffer` holds, as far as there are whole records. Whether there is anything
    /// for the caller to look at.
    fn open(&mut self, buffer: &mut [u8], sink: &mut dyn FnMut(&[u8])) -> bool {
        let opened = self.opener.open(buffer, sink);
        self.ended |= opened.end;
        if opened.update_requested {
            self.sealer.request_update();
        }
        if let Some(error) = opened.failure {
            self.fail(error);
        } else if !opened.end {
            let rest = buffer.get(opened.consumed..).unwrap_or_default();
            self.unopened = rest.to_vec();
        }
        opened.data
    }

    /// The peer is told by an alert, which leaves with the next flush.
    fn fail(&mut self, error: RecordError) {
        let _ = self.sealer.seal_alert(Some(error));
        self.failed = Some(io::Error::new(io::ErrorKind::InvalidData, error));
        self.ended = true;
    }

    /// One read from the socket, behind what is there of a record already.
    fn read(&mut self, buffer: &mut [u8], sink: &mut dyn FnMut(&[u8])) -> bool {
        let kept = std::mem::take(&mut self.unopened);
        let (front, space) = buffer.split_at_mut(kept.len());
        match self.socket.try_read(space) {
            Ok(0) => {
                // Without close_notify: a cut, which only the layer above can tell from an end.
                self.ended = true;
                false
            }
            Ok(count) => {
                front.copy_from_slice(&kept);
                let filled = kept.len() + count;
                self.open(buffer.get_mut(..filled).unwrap_or_default(), sink)
            }
            Err(error) => {
                self.unopened = kept;
                if error.kind() != io::ErrorKind::WouldBlock {
                    self.failed = Some(error);
                }
                false
            }
        }
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
            let data = if RecordOpener::is_whole(&self.unopened) {
                let mut records = std::mem::take(&mut self.unopened);
                self.open(&mut records, sink)
            } else {
                ready!(self.socket.poll_read_ready(context))?;
                with_read_buffer(|buffer| self.read(buffer, sink))
            };
            if data {
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
            self.sealer.seal(pieces).map_err(io::Error::other)?;
            ready!(self.poll_flush(context))?;
            if pieces.is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_finish(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.sealer.seal_alert(None).map_err(io::Error::other)?;
        ready!(self.poll_flush(context))?;
        Poll::Ready(shut_down_sending(&self.socket))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::host_key::{HostKey, HostKeys};
    use crate::tls::{self, TlsServer, Verdict};
    use crate::transport::TlsHandshake;

    /// A client that is rustls alone: says something, renews its keys and wants ours renewed, and
    /// says more, until it has it all back.
    fn talk(address: std::net::SocketAddr) -> Vec<u8> {
        let (mut tls, _) = tls::connect(&[], |_| Verdict::Accept).unwrap();
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        for text in [b"one", b"two", b"six"] {
            stream.write_all(text).unwrap();
            stream.conn.refresh_traffic_keys().unwrap();
        }
        let mut back = [0; 9];
        stream.read_exact(&mut back).unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        let mut rest = back.to_vec();
        stream.read_to_end(&mut rest).unwrap();
        rest
    }

    #[tokio::test]
    async fn a_peer_that_renews_its_keys_and_asks_for_ours_is_followed() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || talk(address));
        let (socket, _) = listener.accept().await.unwrap();
        let keys = HostKeys::new(vec![HostKey::generate().unwrap()]).unwrap();
        let (tls, side) = TlsServer::new(&keys).unwrap().accept().unwrap();
        let mut handshake = TlsHandshake::new(socket, tls);
        while handshake.tls().is_handshaking() {
            let read = poll_fn(|context| handshake.poll_read(context)).await.unwrap();
            assert_eq!(read, Read::Progress);
            poll_fn(|context| handshake.poll_flush(context)).await.unwrap();
        }
        let mut transport = handshake.into_transport(side.traffic_secrets()).unwrap();
        let mut said = VecDeque::new();
        loop {
            let read = poll_fn(|context| {
                let sink = &mut |bytes: &[u8]| said.push_back(Bytes::copy_from_slice(bytes));
                transport.poll_read(context, sink)
            });
            if read.await.unwrap() == Read::End {
                break;
            }
            poll_fn(|context| transport.poll_write(context, &mut said)).await.unwrap();
        }
        poll_fn(|context| transport.poll_finish(context)).await.unwrap();
        drop(transport);
        assert_eq!(client.join().unwrap(), b"onetwosix");
    }
}
