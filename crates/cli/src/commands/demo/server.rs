//! The server of a demonstration: a real `afar serve` as a process of its own, ended for certain.

use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use afar_sys::process_tree::{find_descendants, set_child_subreaper};
use afar_sys::socket::{connect_unix, peer_credentials};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, wait};

use super::place::Place;
use crate::commands::executable;

/// How long the server may take to accept connections.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How often it is looked whether the server has ended instead.
const START_CHECK: Duration = Duration::from_millis(50);

/// How often it is looked for more to be killed; a fork bomb is no demonstration.
const KILL_ROUNDS: usize = 10;

/// How long a process may take to end after it was told to.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A running server. Dropping it ends it, the supervisor that it has started, and what still runs
/// there.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    address: SocketAddr,
    supervisor_socket: PathBuf,
}

impl Server {
    /// Starts it and waits until it accepts connections.
    pub(super) fn start(place: &Place) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("the server could not be started: {error}");
        set_child_subreaper().map_err(failed)?;
        let ready = ReadySocket::bind().map_err(failed)?;
        let log = std::fs::File::create(place.path("serve.log")).map_err(failed)?;
        let child = Command::new(executable().map_err(failed)?)
            .arg("serve")
            .args(["--config", "none", "--listen", "127.0.0.1:0", "--ready-file"])
            .arg(place.path("ready"))
            .arg("--host-key")
            .arg(place.path("host_key"))
            .arg("--authorized-keys")
            .arg(place.path("authorized_keys"))
            .env("XDG_RUNTIME_DIR", place.path("run"))
            .env("XDG_STATE_HOME", place.path("state"))
            .env("XDG_CONFIG_HOME", place.path("config"))
            .env("NOTIFY_SOCKET", &ready.name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for the command, not for the server.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let supervisor_socket = place.path("run/afar/supervisor.sock");
        // From here on dropping it ends it.
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Self { child, address: unknown, supervisor_socket };
        server.wait_ready(&ready, place)?;
        let lines = std::fs::read_to_string(place.path("ready")).map_err(failed)?;
        let address = lines.lines().next().and_then(|line| line.parse().ok());
        server.address = address.ok_or("the server did not say where it listens")?;
        Ok(server)
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    fn wait_ready(&mut self, ready: &ReadySocket, place: &Place) -> Result<(), String> {
        let deadline = Instant::now() + START_TIMEOUT;
        while Instant::now() < deadline {
            if ready.wait(START_CHECK) {
                return Ok(());
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                let log = std::fs::read_to_string(place.path("serve.log")).unwrap_or_default();
                let why = log.lines().last().unwrap_or_default();
                return Err(format!("the server ended at once ({status}): {why}"));
            }
        }
        Err("the server did not accept connections in time".to_owned())
    }

    /// The supervisor, known by who listens at its socket.
    fn supervisor(&self) -> Option<Pid> {
        let stream = connect_unix(&self.supervisor_socket).ok()?;
        let peer = peer_credentials(&stream).ok()?;
        Pid::from_raw(peer.pid?)
    }
}

impl Drop for Server {
    /// Ends everything below this process. What a command has left running comes to this process
    /// when its parent ends, because it is a subreaper.
    fn drop(&mut self) {
        let server = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let supervisor = self.supervisor();
        // The supervisor's parent is its guardian, which ends with it.
        let guardian = supervisor.and_then(|supervisor| {
            let supervisor = supervisor.as_raw_pid();
            let below = find_descendants().unwrap_or_default();
            let found = below.iter().find(|process| process.id.pid == supervisor)?;
            Pid::from_raw(found.parent)
        });
        let kept = [server, supervisor, guardian];
        // What is killed may have made more meanwhile.
        for _ in 0..KILL_ROUNDS {
            let below = find_descendants().unwrap_or_default();
            let below = below.iter().filter_map(|process| Pid::from_raw(process.id.pid));
            let others: Vec<Pid> =
                below.filter(|process| !kept.contains(&Some(*process))).collect();
            if others.is_empty() {
                break;
            }
            for process in others {
                end(process, Signal::KILL);
            }
        }
        // Children before parents, so that each is reaped by who has started it.
        for process in [supervisor, server].into_iter().flatten() {
            end(process, Signal::TERM);
        }
        // It is gone, or was killed: this only reaps it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    }
}

/// Ends a process and waits until it is gone. It is named by a descriptor, so that no other process
/// of that number is ever meant.
fn end(process: Pid, signal: Signal) {
    let Ok(pidfd) = pidfd_open(process, PidfdFlags::empty()) else { return };
    if pidfd_send_signal(&pidfd, signal).is_err() {
        return;
    }
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(END_TIMEOUT.as_secs()).unwrap_or(1),
        tv_nsec: 0,
    };
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    if !rustix::event::poll(&mut fds, Some(&timeout)).is_ok_and(|ended| ended > 0) {
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

/// Where the server tells that it is ready (sd_notify(3)): an abstract socket, which no path limits
/// and nothing has to remove.
struct ReadySocket {
    socket: UnixDatagram,
    name: String,
}

impl ReadySocket {
    fn bind() -> std::io::Result<Self> {
        let random = afar_sys::random::random_bytes::<8>()?;
        let name = format!("afar-demo-{:016x}", u64::from_ne_bytes(random));
        let socket = UnixDatagram::bind_addr(&UnixAddr::from_abstract_name(&name)?)?;
        Ok(Self { socket, name: format!("@{name}") })
    }

    fn wait(&self, time: Duration) -> bool {
        let mut message = [0; 64];
        self.socket.set_read_timeout(Some(time)).is_ok()
            && self.socket.recv(&mut message).is_ok_and(|read| {
                message.get(..read).is_some_and(|message| message.starts_with(b"READY=1"))
            })
    }
}
