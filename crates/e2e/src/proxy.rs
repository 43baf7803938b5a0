//! A TCP proxy that can pass single bytes, stall, and cut.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::deadline::DEADLINE;
use crate::fail;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// Passes connections on to one address. Connections are cut when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Most bytes that are passed on in one write; 0 is no limit.
    piece_bytes: usize,
    stalled: [bool; 2],
    passed: [u64; 2],
    /// Both sockets of every connection that goes on at least one way, by its number.
    sockets: BTreeMap<u64, [TcpStream; 2]>,
    /// How many connections there were.
    connections: u64,
    closed: bool,
    /// Where connections go.
    to: Option<SocketAddr>,
    /// The address that they come from, if not the one that the system picks.
    from: Option<Ipv4Addr>,
}

impl Proxy {
    /// One that passes everything on as it comes.
    ///
    /// # Panics
    /// No port can be had.
    #[must_use]
    pub fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        shared.lock().to = Some(to);
        let ours = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if ours.lock().closed {
                    return;
                }
                // A server that refuses is a connection that ends at once.
                let Ok(server) = ours.reach() else { continue };
                ours.connect(client, server);
            }
        });
        Self { address, shared }
    }

    /// Where it accepts connections.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, at most so many bytes are passed on in one write (with `TCP_NODELAY`); 0 is no
    /// limit.
    pub fn limit_pieces(&self, bytes: usize) {
        self.shared.change(|state| state.piece_bytes = bytes);
    }

    /// From now on nothing is read or passed on that way.
    pub fn stall(&self, direction: Direction) {
        self.shared.change(|state| state.stalled[index(direction)] = true);
    }

    /// From now on, connections go there.
    pub fn redirect(&self, to: SocketAddr) {
        self.shared.change(|state| state.to = Some(to));
    }

    /// From now on, connections come from this address of this machine.
    pub fn come_from(&self, from: Ipv4Addr) {
        self.shared.change(|state| state.from = Some(from));
    }

    /// Ends [`Proxy::stall`].
    pub fn resume(&self, direction: Direction) {
        self.shared.change(|state| state.stalled[index(direction)] = false);
    }

    /// Cuts every connection, as a broken line would be noticed: both ends are closed.
    pub fn cut(&self) {
        self.shared.change(|state| {
            for socket in std::mem::take(&mut state.sockets).into_values().flatten() {
                let _ = socket.shutdown(Shutdown::Both);
            }
        });
    }

    /// How many bytes were passed on that way, over all connections.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.lock().passed[index(direction)]
    }

    /// Waits until so many bytes were passed on that way.
    ///
    /// # Panics
    /// They were not, in time.
    #[track_caller]
    pub fn wait_for(&self, direction: Direction, bytes: u64) {
        let waiting = |state: &mut State| state.passed[index(direction)] < bytes;
        let state = self.shared.lock();
        let waited = self.shared.changed.wait_timeout_while(state, DEADLINE, waiting);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() {
            fail(&format!(
                "{} of {bytes} bytes passed {direction:?}",
                state.passed[index(direction)]
            ));
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.closed = true;
            state.stalled = [false; 2];
        });
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

fn index(direction: Direction) -> usize {
    usize::from(direction == Direction::Down)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn reach(&self) -> std::io::Result<TcpStream> {
        let (to, from) = {
            let state = self.lock();
            (state.to, state.from)
        };
        let to = to.ok_or(ErrorKind::AddrNotAvailable)?;
        let Some(from) = from else { return TcpStream::connect(to) };
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddr::from((from, 0)))?;
        rustix::net::connect(&socket, &to)?;
        Ok(TcpStream::from(socket))
    }

    fn connect(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let copy = |socket: &TcpStream| socket.try_clone().expect("a descriptor can be had");
        for socket in [&client, &server] {
            socket.set_nodelay(true).expect("a TCP socket takes the option");
        }
        let mut number = 0;
        self.change(|state| {
            state.connections += 1;
            number = state.connections;
            state.sockets.insert(number, [copy(&client), copy(&server)]);
        });
        let (from_client, to_server) = (copy(&client), copy(&server));
        let (up, down, both) = (Arc::clone(self), Arc::clone(self), Arc::new(()));
        let also = Arc::clone(&both);
        std::thread::spawn(move || {
            up.pump(from_client, to_server, Direction::Up);
            up.ended(number, both);
        });
        std::thread::spawn(move || {
            down.pump(server, client, Direction::Down);
            down.ended(number, also);
        });
    }

    /// One way of a connection has ended; with the other one, its sockets are let go of.
    fn ended(&self, number: u64, way: Arc<()>) {
        if Arc::into_inner(way).is_some() {
            self.change(|state| drop(state.sockets.remove(&number)));
        }
    }

    /// Passes bytes one way until an end, or an error, which is passed on as an end.
    fn pump(&self, mut from: TcpStream, mut to: TcpStream, direction: Direction) {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            self.wait_while_stalled(direction);
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            self.wait_while_stalled(direction);
            if self.write_in_pieces(&mut to, &buffer[..count], direction).is_err() {
                let _ = from.shutdown(Shutdown::Read);
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    }

    fn write_in_pieces(
        &self,
        to: &mut TcpStream,
        mut bytes: &[u8],
        direction: Direction,
    ) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let limit = self.lock().piece_bytes;
            let count = if limit == 0 { bytes.len() } else { limit.min(bytes.len()) };
            let (piece, rest) = bytes.split_at(count);
            to.write_all(piece)?;
            bytes = rest;
            let passed = u64::try_from(count).unwrap_or(u64::MAX);
            self.change(|state| state.passed[index(direction)] += passed);
        }
        Ok(())
    }

    fn wait_while_stalled(&self, direction: Direction) {
        let stalled = |state: &mut State| state.stalled[index(direction)];
        drop(self.changed.wait_while(self.lock(), stalled));
    }
}
