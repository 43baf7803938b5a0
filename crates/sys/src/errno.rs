//! Turns the two ways in which libc reports a failure into an `Errno`.

use rustix::io::Errno;
use std::ffi::c_int;

/// The `errno` of the libc call that has just failed on this thread.
pub(crate) fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The result of a call that returns 0 or the error number itself, as the posix_spawn family does.
pub(crate) fn of_returned(code: c_int) -> Result<(), Errno> {
    if code == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(code)) }
}

/// The result of a call that returns -1 and sets `errno`.
pub(crate) fn of_minus_one(code: c_int) -> Result<c_int, Errno> {
    if code == -1 { Err(last()) } else { Ok(code) }
}
