//! Descriptors of ours that an async runtime waits on.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime of this thread.
///
/// # Errors
/// Those of `epoll_ctl(2)`: `EPERM` for what can't be waited on, such as a regular file, `ENOSPC`
/// past the user's limit of watches. The descriptor is closed then.
///
/// # Panics
/// Outside of a runtime with I/O.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the only owner of an open descriptor and gives the same number for as
    // long as it lives; the `AsyncFd` owns it and deregisters it before it is closed.
    let registered = unsafe { AsyncFd::register_with_interest(fd, interest) };
    registered.map_err(|error| error.into_parts().1)
}
