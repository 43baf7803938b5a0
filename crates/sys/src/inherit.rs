//! What this process has inherited, and what it must not pass on: descriptors and their limit.

use crate::errno;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::ffi::{c_int, c_uint};
use std::io;
use std::os::fd::RawFd;

/// The limits of open descriptors; `None` is "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFilesLimit {
    /// The soft limit before it was raised: what children are to start with
    /// (`SpawnRequest::open_files_soft`).
    pub inherited_soft: Option<u64>,
    /// The soft limit now, equal to the hard one.
    pub now: Option<u64>,
}

/// Raises the soft limit of open descriptors to the hard one. A supervisor of a thousand jobs needs
/// several thousand; the usual soft limit of 1,024 exists for programs that use select(2).
///
/// # Errors
/// Those of setrlimit(2); the limit is then as before.
pub fn raise_nofile_limit() -> io::Result<OpenFilesLimit> {
    let inherited = getrlimit(Resource::Nofile);
    if inherited.current != inherited.maximum {
        let raised = Rlimit { current: inherited.maximum, maximum: inherited.maximum };
        setrlimit(Resource::Nofile, raised)?;
    }
    Ok(OpenFilesLimit { inherited_soft: inherited.current, now: inherited.maximum })
}

/// Marks every open descriptor from 3 on close-on-exec: what whoever started us forgot to close is
/// not for our children. Descriptors that were kept through a re-exec are marked again too.
///
/// # Errors
/// Those of close_range(2), or, on kernels before 5.11, of reading `/proc/self/fd`.
pub fn set_cloexec_on_inherited() -> io::Result<()> {
    let (first, last): (c_uint, c_uint) = (3, c_uint::MAX);
    // SAFETY: with this flag the call changes only the close-on-exec mark of open descriptors; it
    // closes none and touches no memory.
    let code =
        unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
    if code != -1 {
        return Ok(());
    }
    match errno::last() {
        Errno::NOSYS | Errno::INVAL | Errno::PERM => set_cloexec_one_by_one(),
        error => Err(error.into()),
    }
}

/// Whether this number is an open descriptor.
pub fn is_fd_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD reads a flag, and fails with EBADF for a number that is not open.
    unsafe { libc::fcntl(fd, libc::F_GETFD) != -1 }
}

fn set_cloexec_one_by_one() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<c_int>().ok());
        if let Some(fd) = number.filter(|fd| *fd >= 3) {
            // SAFETY: F_SETFD changes only the close-on-exec mark. The number may have been closed
            // since it was listed, then it fails with EBADF.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::{FdFlags, dup, fcntl_getfd, fcntl_setfd};
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn inherited_descriptors_are_marked_by_both_ways() {
        let fd = dup(File::open("/dev/null").unwrap()).unwrap();
        assert!(!fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
        set_cloexec_on_inherited().unwrap();
        assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));

        fcntl_setfd(&fd, FdFlags::empty()).unwrap();
        set_cloexec_one_by_one().unwrap();
        assert!(fcntl_getfd(&fd).unwrap().contains(FdFlags::CLOEXEC));
    }

    #[test]
    fn stdin_stdout_and_stderr_are_left_alone() {
        let before = fcntl_getfd(rustix::stdio::stdout()).unwrap();
        set_cloexec_on_inherited().unwrap();
        assert_eq!(fcntl_getfd(rustix::stdio::stdout()).unwrap(), before);
    }

    #[test]
    fn open_and_never_open_numbers_are_told_apart() {
        let fd = File::open("/dev/null").unwrap();
        assert!(is_fd_open(fd.as_raw_fd()));
        assert!(!is_fd_open(-1));
        assert!(!is_fd_open(c_int::MAX));
    }

    #[test]
    fn the_limit_is_raised_once_and_what_was_inherited_is_told() {
        if !crate::rig::alone(
            "inherit::tests::the_limit_is_raised_once_and_what_was_inherited_is_told",
        ) {
            return;
        }
        let lowered = Rlimit { current: Some(200), ..getrlimit(Resource::Nofile) };
        setrlimit(Resource::Nofile, lowered).unwrap();
        let before = getrlimit(Resource::Nofile);
        let raised = raise_nofile_limit().unwrap();
        assert_eq!(raised.inherited_soft, before.current);
        assert_eq!(getrlimit(Resource::Nofile).current, before.maximum);
        assert_eq!(raise_nofile_limit().unwrap().inherited_soft, before.maximum);
    }
}
