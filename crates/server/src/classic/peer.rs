//! A client's side of a conversation: the commands that it sends, and whether it is still there.

use std::io;

use afar_net::clock::Clock;
use afar_proto::classic::{RequestError, RequestReader};
use afar_sys::tcp_peer::{TcpPeer, tcp_peer};
use tokio::net::TcpStream;

use super::limits::{LINGER_TIMEOUT, PRESENCE_INTERVAL};

/// Bytes that one call reads: most commands fit many times.
const READ_BYTES: usize = 16 * 1024;

/// What there is to be read of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// More may come.
    Open,
    /// It has ended its sending; it may still wait for an answer.
    Ended,
    /// The connection is broken.
    Broken,
}

/// A client.
#[derive(Debug)]
pub(super) struct Peer {
    socket: TcpStream,
    clock: Clock,
    reader: RequestReader,
    reading: Reading,
}

impl Peer {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { socket, clock: Clock::new(), reader: RequestReader::new(), reading: Reading::Open }
    }

    /// The connection.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The next command; `None` at the end of the conversation. Cancellation safe.
    pub(super) async fn request(&mut self) -> Option<Result<Vec<u8>, RequestError>> {
        loop {
            if self.reading == Reading::Broken {
                return None;
            }
            if let Some(request) = self.reader.poll_request() {
                return Some(request);
            }
            if self.reading == Reading::Ended {
                return None;
            }
            let deadline = self.reader.poll_timeout();
            let deadline = async {
                match deadline {
                    Some(deadline) => {
                        tokio::time::sleep_until(self.clock.to_tokio(deadline)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                readable = self.socket.readable() => match readable {
                    Ok(()) => self.read(),
                    Err(_) => self.reading = Reading::Broken,
                },
                () = deadline => self.reader.handle_timeout(self.clock.now()),
            }
        }
    }

    /// Resolves when nobody waits for an answer any more (`C-2.4`). What arrives meanwhile is the
    /// next command's, up to its limit. Cancellation safe.
    pub(super) async fn departure(&mut self) {
        while self.reading == Reading::Open && !self.reader.is_full() {
            match self.socket.readable().await {
                Ok(()) => self.read(),
                Err(_) => self.reading = Reading::Broken,
            }
        }
        while self.may_be_there() {
            tokio::time::sleep(PRESENCE_INTERVAL).await;
        }
    }

    /// Whether somebody may still wait, once reading on tells no more.
    fn may_be_there(&self) -> bool {
        match self.reading {
            Reading::Broken => false,
            // The end of what a client sends arrives alike from one that has gone and from one that
            // only says that it will send no more. On this machine the kernel can tell them apart.
            Reading::Ended => matches!(tcp_peer(&self.socket), Ok(TcpPeer::User(_))),
            // It has sent more than a command may have, and its end, if there is one, is behind that.
            Reading::Open => !matches!(tcp_peer(&self.socket), Ok(TcpPeer::Gone)),
        }
    }

    /// Reads what is there.
    fn read(&mut self) {
        let mut buffer = [0; READ_BYTES];
        while !self.reader.is_full() {
            match self.socket.try_read(&mut buffer) {
                Ok(0) => {
                    self.reader.handle_eof();
                    self.reading = Reading::Ended;
                    return;
                }
                Ok(count) => self.reader.handle_input(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return self.reader.handle_drained(self.clock.now());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.reading = Reading::Broken;
                    return;
                }
            }
        }
    }

    /// Ends the conversation so that the last answer arrives: closing with unread bytes would reset
    /// the connection and lose it.
    pub(super) async fn linger(&mut self) {
        let drained = async {
            let shutdown = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
            while shutdown.is_ok() && self.socket.readable().await.is_ok() {
                match self.socket.try_read(&mut [0; READ_BYTES]) {
                    Ok(1..) => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Ok(0) | Err(_) => return,
                }
            }
        };
        let _ = tokio::time::timeout(LINGER_TIMEOUT, drained).await;
    }
}
