//! Pipes between us and a child, and questions about any descriptor.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::{Errno, ioctl_fionread};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// The status flags of a pipe's end that was made just now and has none yet: so they need not be asked for.
const FRESH_AND_NONBLOCKING: OFlags = OFlags::NONBLOCK;

/// A pipe with one end for us and one for a child. Both are close-on-exec; only ours is
/// non-blocking, because the flag belongs to the end, which the child and its descendants share.
#[derive(Debug)]
pub struct ChildPipe {
    /// Our end, non-blocking.
    pub ours: OwnedFd,
    /// The child's end, blocking. To be closed once the child has it, or our end never sees that
    /// the child has closed its own.
    pub childs: OwnedFd,
}

/// A pipe that the child reads: its stdin.
///
/// # Errors
/// `EMFILE`, `ENFILE`: no descriptor is free.
pub fn pipe_to_child() -> io::Result<ChildPipe> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&writer, FRESH_AND_NONBLOCKING)?;
    Ok(ChildPipe { ours: writer, childs: reader })
}

/// A pipe that the child writes: its stdout or stderr.
///
/// # Errors
/// As [`pipe_to_child`].
pub fn pipe_from_child() -> io::Result<ChildPipe> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    fcntl_setfl(&reader, FRESH_AND_NONBLOCKING)?;
    Ok(ChildPipe { ours: reader, childs: writer })
}

/// Makes a descriptor of ours non-blocking. Never for one that was inherited or is shared with
/// another process: the flag is shared with it.
///
/// # Errors
/// Those of fcntl(2), none of which an open descriptor has for this.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}

/// Asks for a pipe that holds `bytes`, and returns what it holds now, which may be more. Larger
/// pipes mean fewer wake-ups: 256 KiB carries 1.7 times what the default of 64 KiB does.
///
/// # Errors
/// `EPERM` above `/proc/sys/fs/pipe-max-size` or when the user's pipes hold too much already,
/// `EBUSY` when it holds more than that now, `EBADF` for what is no pipe. The pipe is as before, so
/// this can be ignored.
pub fn set_pipe_size(fd: impl AsFd, bytes: usize) -> io::Result<usize> {
    Ok(fcntl_setpipe_size(fd, bytes)?)
}

/// How many bytes a read would give now (FIONREAD): of pipes, sockets and terminals.
///
/// # Errors
/// `ENOTTY` for descriptors that cannot tell.
pub fn bytes_readable(fd: impl AsFd) -> io::Result<u64> {
    Ok(ioctl_fionread(fd)?)
}

/// Whether a write would not block now. `true` also when it would fail at once, because the readers
/// are gone.
///
/// # Errors
/// `ENOMEM`, `EINVAL` of poll(2).
pub fn poll_writable_now(fd: impl AsFd) -> io::Result<bool> {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::OUT)];
        match poll(&mut fds, Some(&at_once)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether this is a regular file, which is always ready and which epoll therefore refuses.
///
/// # Errors
/// Those of fstat(2).
pub fn is_regular_file(fd: impl AsFd) -> io::Result<bool> {
    let mode = fstat(fd)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::RegularFile)
}

/// Whether this is a terminal.
pub fn is_terminal(fd: impl AsFd) -> bool {
    rustix::termios::isatty(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, fcntl_getfd, read, write};

    fn is_nonblocking(fd: &OwnedFd) -> bool {
        fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
    }

    #[test]
    fn only_our_end_is_nonblocking_and_both_are_close_on_exec() {
        for pipe in [pipe_to_child().unwrap(), pipe_from_child().unwrap()] {
            assert!(is_nonblocking(&pipe.ours));
            assert!(!is_nonblocking(&pipe.childs));
            for fd in [&pipe.ours, &pipe.childs] {
                assert!(fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC));
            }
        }
    }

    #[test]
    fn the_directions_are_as_named() {
        let pipe = pipe_to_child().unwrap();
        write(&pipe.ours, b"abc").unwrap();
        assert_eq!(bytes_readable(&pipe.childs).unwrap(), 3);

        let pipe = pipe_from_child().unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read(&pipe.ours, &mut buffer), Err(Errno::AGAIN));
        write(&pipe.childs, b"abc").unwrap();
        assert_eq!(read(&pipe.ours, &mut buffer), Ok(3));
    }

    #[test]
    fn a_full_pipe_is_not_writable_and_a_broken_one_is() {
        // Children of tests in other threads hold our descriptors for the instant before their exec.
        if !crate::rig::alone("pipe::tests::a_full_pipe_is_not_writable_and_a_broken_one_is") {
            return;
        }
        let pipe = pipe_to_child().unwrap();
        let size = set_pipe_size(&pipe.ours, 4096).unwrap();
        assert!(poll_writable_now(&pipe.ours).unwrap());
        assert_eq!(write(&pipe.ours, &vec![0; size + 1]), Ok(size));
        assert!(!poll_writable_now(&pipe.ours).unwrap());
        drop(pipe.childs);
        assert!(poll_writable_now(&pipe.ours).unwrap());
    }

    #[test]
    fn a_pipe_grows_when_asked() {
        let pipe = pipe_from_child().unwrap();
        assert!(set_pipe_size(&pipe.ours, 256 * 1024).unwrap() >= 256 * 1024);
        assert!(set_pipe_size(std::fs::File::open("/dev/null").unwrap(), 4096).is_err());
    }

    #[test]
    fn kinds_of_descriptors_are_told_apart() {
        let file = tempfile::tempfile().unwrap();
        let pipe = pipe_from_child().unwrap();
        assert!(is_regular_file(&file).unwrap());
        assert!(!is_regular_file(&pipe.ours).unwrap());
        assert!(!is_terminal(&file));
        assert!(!is_terminal(&pipe.ours));
    }
}
