//! A descriptor that travels with bytes over a unix socket (unix(7), SCM_RIGHTS).

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Sends bytes, and a descriptor with the first of them. How many bytes went: at least one, and
/// then the descriptor did too.
///
/// The receiver gets a descriptor of its own for the same open file description, so flags such as
/// `O_NONBLOCK` are shared.
///
/// # Errors
/// Those of sendmsg(2): `ETOOMANYREFS` when too many descriptors are on their way already, and
/// `EAGAIN` on a non-blocking socket without room; nothing was sent then.
pub fn send_with_descriptor(
    socket: impl AsFd,
    bytes: &[u8],
    descriptor: BorrowedFd<'_>,
) -> io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let pushed = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(pushed, "the space is made for one descriptor");
    Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Receives bytes, and the descriptor that came with them, if one did.
///
/// The descriptor is closed on exec.
///
/// # Errors
/// Those of recvmsg(2); `EMFILE` when the kernel has dropped a descriptor that this process has no
/// room for (`MSG_CTRUNC`), or a second one. The bytes are gone then.
pub fn receive_with_descriptor(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE.into());
    }
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            for received in descriptors {
                descriptor.get_or_insert(received);
            }
        }
    }
    Ok((received.bytes, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_comes_with_its_bytes_and_not_with_others() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut pipe_out, pipe_in) = io::pipe().unwrap();
        (&ours).write_all(b"before").unwrap();
        assert_eq!(send_with_descriptor(&ours, b"with", pipe_in.as_fd()).unwrap(), 4);
        drop(pipe_in);
        let mut buffer = [0; 6];
        let (count, none) = receive_with_descriptor(&theirs, &mut buffer).unwrap();
        assert_eq!((buffer.get(..count), none.is_none()), (Some(&b"before"[..]), true));
        let (count, descriptor) = receive_with_descriptor(&theirs, &mut buffer).unwrap();
        assert_eq!(buffer.get(..count), Some(&b"with"[..]));
        let descriptor = descriptor.unwrap();
        let flags = rustix::io::fcntl_getfd(&descriptor).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        std::fs::File::from(descriptor).write_all(b"through it").unwrap();
        let mut text = String::new();
        pipe_out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through it");
    }

    #[test]
    fn a_descriptor_that_there_is_no_room_for_is_no_silence() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let pipe = io::pipe().unwrap();
        let two = [pipe.0.as_fd(), pipe.1.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let many = two.repeat(4);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&many)));
        sendmsg(&ours, &[IoSlice::new(b"x")], &mut ancillary, SendFlags::empty()).unwrap();
        let error = receive_with_descriptor(&theirs, &mut [0; 8]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::MFILE.raw_os_error()));
    }

    #[test]
    fn the_end_is_no_bytes() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let (count, none) = receive_with_descriptor(&theirs, &mut [0; 8]).unwrap();
        assert_eq!((count, none.is_none()), (0, true));
    }
}
