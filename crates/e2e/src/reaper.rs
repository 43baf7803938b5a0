//! A reaper: whatever is started through it, and whatever that leaves behind, hangs below it.

use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::binary;
use crate::deadline::{DEADLINE, Deadline};
use crate::fail;
use crate::process::{Entry, Process, descendants, kill_descendants};

/// A datagram socket of an abstract name (unix(7)), which has no file and no length to mind.
#[derive(Debug)]
pub(crate) struct Mailbox {
    socket: UnixDatagram,
    name: String,
}

/// The command line of a reaper, and the socket on which it will tell the pid of its program.
#[derive(Debug)]
pub(crate) struct Prepared(Mailbox);

/// A reaper that runs.
#[derive(Debug)]
pub(crate) struct Reaper {
    child: Child,
    process: Process,
    program: Process,
}

impl Mailbox {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("afar-e2e-{}-{count}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
        let socket = UnixDatagram::bind_addr(&address).expect("the name is this process's own");
        Self { socket, name }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The first message, unless `sender` ends without one.
    pub(crate) fn receive(&self, sender: &Process) -> Option<String> {
        let fds = [self.socket.as_fd(), sender.as_fd()];
        if Deadline::after(DEADLINE).any_readable(&fds) != Some(0) {
            return None;
        }
        let mut text = [0; 64];
        let count = self.socket.recv(&mut text).expect("it is readable");
        Some(String::from_utf8_lossy(text.get(..count)?).into_owned())
    }
}

impl Prepared {
    pub(crate) fn new() -> Self {
        Self(Mailbox::new())
    }

    /// The command that runs `program` below a reaper.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(binary::reaper());
        command.arg(self.0.name()).arg(program);
        command
    }

    /// The process of the program, once the reaper has told its pid.
    pub(crate) fn program(&self, reaper: &Process) -> Process {
        let Some(pid) = self.0.receive(reaper) else {
            fail("the reaper could not start its program; is it there?");
        };
        // The reaper waits for an answer before it waits for its program, so the pid is still its.
        let program = pid.parse().ok().and_then(Process::open);
        let address = SocketAddr::from_abstract_name(format!("{}-answer", self.0.name()));
        let answered = address.and_then(|address| self.0.socket.send_to_addr(b"seen", &address));
        answered.expect("the reaper waits for the answer");
        program.expect("the reaper tells the pid of a program that nobody has waited for")
    }
}

impl Reaper {
    /// Runs the command that [`Prepared::command`] gave.
    pub(crate) fn start(prepared: &Prepared, command: &mut Command) -> Self {
        let child = command.spawn().expect("the reaper can be run");
        let process = Process::open(child.id()).expect("nobody has waited for it");
        let program = prepared.program(&process);
        Self { child, process, program }
    }

    /// The program that it was started with.
    pub(crate) fn program(&self) -> &Process {
        &self.program
    }

    /// Everything below that has not ended.
    pub(crate) fn living(&self) -> Vec<Entry> {
        descendants(self.process.pid()).into_iter().filter(|entry| entry.state != 'Z').collect()
    }

    /// Kills everything below and waits for the reaper's own end.
    pub(crate) fn end(&mut self) {
        kill_descendants(self.process.pid());
        let _ = self.process.wait_until(Deadline::after(DEADLINE));
        let _ = self.child.wait();
    }
}
