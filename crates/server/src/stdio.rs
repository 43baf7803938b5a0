//! The protocol over our stdin and stdout (`W-3.3`): relays them to this user's supervisor.
//!
//! Whoever started us has authenticated whoever speaks at the other end (sshd, for `ssh HOST afar
//! stdio`), and we can do nothing that this user can't. So this parses nothing; it says who it is
//! (its own user, as any local client does) and passes bytes on.
//!
//! stdin and stdout are inherited: sockets or pipes that a login shell and its children may share
//! with us. They are used as they are, by blocking calls on a thread for each direction; setting
//! them non-blocking would do so for everybody who shares them.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use afar_core::policy::Grant;
use afar_proto::frame::{Frame, Kind};
use afar_proto::json;
use afar_proto::message::{Goodbye, GoodbyeCode};
use afar_proto::preamble::PREAMBLE;
use afar_sys::users::{current_user, effective_uid};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::launch;

/// Bytes that one call moves at most.
const PIECE_BYTES: usize = 256 * 1024;

/// Bytes that may be on their way to the supervisor.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

/// Relays until the supervisor has ended its side, or nobody reads our stdout any more. The
/// supervisor is started, as the program `executable`, where none runs.
///
/// The thread that reads stdin may be left behind, waiting: the caller is to end the process.
///
/// # Errors
/// There is no supervisor to be had (the other end has been told), or stdout is broken.
pub fn serve_stdio(executable: &Path) -> io::Result<()> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let supervisor = match reach(executable) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            let goodbye = Goodbye { code: GoodbyeCode::Unavailable, message: error.to_string() };
            let frame = Frame::control(Kind::Goodbye, json::to_vec(&goodbye)).to_bytes();
            write_all(stdout, PREAMBLE)?;
            write_all(stdout, &frame)?;
            return Err(error);
        }
    };
    write_all(stdout, PREAMBLE)?;
    let up = supervisor.try_clone()?;
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || relay_up(stdin, &up))?;
    let relayed = relay_down(&supervisor, stdout);
    // What still comes from the other end has nowhere to go.
    let _ = supervisor.shutdown(Shutdown::Both);
    relayed
}

/// A connection to the supervisor which has been told who we are.
fn reach(executable: &Path) -> io::Result<UnixStream> {
    let user = current_user()?.ok_or_else(|| {
        let uid = effective_uid();
        io::Error::other(format!("the user who runs this (uid {uid}) is not in the user database"))
    })?;
    let supervisor = launch::connect(executable).map_err(io::Error::other)?.stream;
    let _ = afar_sys::socket::set_send_buffer(&supervisor, SEND_BUFFER_BYTES);
    let grant = Grant::local(user.name.into_vec(), user.uid);
    (&supervisor).write_all(&Frame::control(Kind::Grant, grant.encode()).to_bytes())?;
    Ok(supervisor)
}

/// From stdin to the supervisor, which sees the end of our stdin as the end of its client.
fn relay_up(stdin: BorrowedFd<'_>, mut supervisor: &UnixStream) {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match wait_while(stdin, PollFlags::IN, || Ok(rustix::io::read(stdin, &mut buffer)?)) {
            Ok(count) if count > 0 => {
                // A supervisor that reads no more says why in the other direction.
                if supervisor.write_all(buffer.get(..count).unwrap_or_default()).is_err() {
                    return;
                }
            }
            Ok(_) | Err(_) => break,
        }
    }
    let _ = supervisor.shutdown(Shutdown::Write);
}

fn relay_down(mut supervisor: &UnixStream, stdout: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES];
    loop {
        match supervisor.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => write_all(stdout, buffer.get(..count).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A supervisor that was killed with our bytes unread: an end as well.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn write_all(stdout: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let write = || Ok(rustix::io::write(&stdout, bytes)?);
        let count = wait_while(stdout.as_fd(), PollFlags::OUT, write)?;
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Repeats a call that was interrupted, or that would block because somebody else who shares the
/// descriptor has made it non-blocking.
fn wait_while(
    fd: BorrowedFd<'_>,
    until: PollFlags,
    mut call: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                match poll(&mut [PollFd::new(&fd, until)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_somebody_made_non_blocking_is_waited_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let bytes = vec![7_u8; 4 * 1024 * 1024];
        std::thread::scope(|scope| {
            scope.spawn(|| write_all(&ours, &bytes).unwrap());
            let mut read = vec![0; bytes.len()];
            (&theirs).read_exact(&mut read).unwrap();
            assert_eq!(read, bytes);
        });
        let mut byte = [0];
        std::thread::scope(|scope| {
            let fd = ours.as_fd();
            let buffer = &mut byte;
            let reader = scope.spawn(move || {
                wait_while(fd, PollFlags::IN, || Ok(rustix::io::read(fd, &mut *buffer)?))
            });
            (&theirs).write_all(b"x").unwrap();
            assert_eq!(reader.join().unwrap().unwrap(), 1);
        });
        assert_eq!(byte, *b"x");
    }
}
