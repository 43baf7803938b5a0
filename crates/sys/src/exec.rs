//! Becoming another program: exec, with exactly the descriptors that are meant for it.

use crate::errno;
use rustix::io::{Errno, FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// The number of the first descriptor that is passed on beside stdin, stdout and stderr.
const FIRST_PASSED: RawFd = 3;

/// How many may be passed on: as many as [`take_passed`] keeps account of.
pub const PASSED_MAX: usize = 4;

/// Executes the program that `program` is open on, in the place of this process. It keeps stdin,
/// stdout, stderr, and has `passed` as 3, 4 and so on; every other descriptor is closed.
///
/// The descriptor and not a path is executed, so that it is this very program which runs, and that
/// it can be run by a user who may not walk to where it lies.
///
/// Returns only if it failed. Descriptors from 3 on may then be other ones than before.
pub fn exec_in_place(
    program: BorrowedFd<'_>,
    argv: &[CString],
    env: &[CString],
    passed: &[BorrowedFd<'_>],
) -> Errno {
    match try_exec(program, argv, env, passed) {
        Ok(()) => Errno::IO,
        Err(error) => error,
    }
}

fn try_exec(
    program: BorrowedFd<'_>,
    argv: &[CString],
    env: &[CString],
    passed: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    if passed.len() > PASSED_MAX {
        return Err(Errno::INVAL);
    }
    let behind = FIRST_PASSED + RawFd::try_from(passed.len()).map_err(|_| Errno::INVAL)?;
    // First out of the way of the numbers that they are to have, or one would replace another.
    let program = clear_of_targets(program, behind)?;
    let sources =
        passed.iter().map(|fd| clear_of_targets(*fd, behind)).collect::<Result<Vec<_>, _>>()?;
    crate::inherit::set_cloexec_on_inherited()
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    for (source, target) in sources.iter().zip(FIRST_PASSED..) {
        // SAFETY: the source is open; whatever has the number of the target is replaced, and is used
        // by nobody any more, because this process ends or becomes another program.
        errno::of_minus_one(unsafe { libc::dup2(source.as_raw_fd(), target) })?;
    }
    let (argv, env) = (pointers(argv), pointers(env));
    let empty: &CStr = c"";
    // SAFETY: the path is a C string, and the two arrays of C strings end with null; all of it
    // outlives the call.
    let code = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            program.as_raw_fd(),
            empty.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    errno::of_minus_one(c_int::try_from(code).unwrap_or(-1))?;
    Ok(())
}

/// Executes the program at `program` in the place of this process, which keeps its number and its children.
/// Stdin, stdout, stderr and the descriptors `kept` stay open under the numbers that they have; every other descriptor is
/// closed.
///
/// SIGHUP is ignored from here on until the program says otherwise: it may be sent again before the program
/// has a handler for it.
///
/// Returns only if it failed; everything is as before then.
pub fn exec_keeping(program: &CStr, argv: &[CString], env: &[CString], kept: &[RawFd]) -> Errno {
    if let Err(error) = crate::inherit::set_cloexec_on_inherited() {
        return Errno::from_io_error(&error).unwrap_or(Errno::IO);
    }
    let passed = kept.iter().try_for_each(|fd| mark(*fd, 0));
    let error = passed.err().unwrap_or_else(|| {
        let before = ignore_hangup(libc::SIG_IGN);
        let (argv, env) = (pointers(argv), pointers(env));
        // SAFETY: the path is a C string, and the two arrays of C strings end with null; all of it
        // outlives the call.
        unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        let error = errno::last();
        ignore_hangup(before);
        error
    });
    for fd in kept {
        let _ = mark(*fd, libc::FD_CLOEXEC);
    }
    error
}

/// Sets whether a descriptor is closed on exec.
fn mark(fd: RawFd, flags: c_int) -> Result<(), Errno> {
    // SAFETY: F_SETFD changes only the mark of the descriptor of this number, if there is one.
    errno::of_minus_one(unsafe { libc::fcntl(fd, libc::F_SETFD, flags) }).map(|_| ())
}

/// Sets what SIGHUP does; returns what it did.
fn ignore_hangup(action: libc::sighandler_t) -> libc::sighandler_t {
    // SAFETY: the action is "ignore", or one that was this process's own before.
    unsafe { libc::signal(libc::SIGHUP, action) }
}

/// Takes a descriptor that [`exec_keeping`] has kept open; it is closed on exec from now on. To be called
/// while this process has opened nothing yet but what it takes itself.
///
/// # Errors
/// `EBADF` if it is not open, is 0, 1 or 2, or was taken before.
pub fn take_kept(number: RawFd) -> Result<OwnedFd, Errno> {
    static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());
    if number < FIRST_PASSED || !crate::inherit::is_fd_open(number) {
        return Err(Errno::BADF);
    }
    // Whoever has panicked while it held the lock has left the set whole.
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if !taken.insert(number) {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is open, and by the account above nobody has taken it from here before. The
    // caller is the program that was executed with it, before it has opened anything itself.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

fn clear_of_targets(fd: BorrowedFd<'_>, behind: RawFd) -> Result<OwnedFd, Errno> {
    fcntl_dupfd_cloexec(fd, behind)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

/// Takes the descriptor that [`exec_in_place`] has passed as number `3 + index`; it is closed on exec
/// from now on.
///
/// # Errors
/// `EBADF` if there is none, or it was taken before.
pub fn take_passed(index: usize) -> Result<OwnedFd, Errno> {
    static TAKEN: AtomicU8 = AtomicU8::new(0);
    let number = RawFd::try_from(index).map_err(|_| Errno::BADF)? + FIRST_PASSED;
    if index >= PASSED_MAX || !crate::inherit::is_fd_open(number) {
        return Err(Errno::BADF);
    }
    let bit = 1_u8 << index;
    if TAKEN.fetch_or(bit, Ordering::SeqCst) & bit != 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is open, and by the account above nobody has taken it from here before. The
    // caller is the role that was executed with it, before it has opened anything itself.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec_strings::exec_strings;
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::os::fd::AsFd;

    fn file_with(text: &str) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        file
    }

    #[test]
    fn the_other_program_has_what_was_passed_and_nothing_else() {
        let test = "exec::tests::the_other_program_has_what_was_passed_and_nothing_else";
        // It says in the test's place that it has passed.
        if !crate::rig::alone(test) {
            return;
        }
        let script = "read a <&3; read b <&4
            for n in 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo $n is open && exit 1; done
            [ $a$b = onetwo ] && echo 1 passed";
        let argv = exec_strings(["sh", "-c", script]).unwrap();
        let env = exec_strings(["PATH=/bin:/usr/bin"]).unwrap();
        // What is open on 3 and 4 now is in the way, and one more is not to be passed on.
        let (one, two) = (file_with("one\n"), file_with("two\n"));
        let inherited = rustix::io::dup(&one).unwrap();
        let shell = File::open("/bin/sh").unwrap();
        let error = exec_in_place(shell.as_fd(), &argv, &env, &[one.as_fd(), two.as_fd()]);
        drop(inherited);
        panic!("{error}");
    }

    #[test]
    fn the_same_process_goes_on_as_another_program_with_what_was_kept() {
        let test = "exec::tests::the_same_process_goes_on_as_another_program_with_what_was_kept";
        if !crate::rig::alone(test) {
            return;
        }
        let (kept, other) = (file_with("kept\n"), file_with("other\n"));
        let (number, others) = (kept.as_raw_fd(), other.as_raw_fd());
        let missing = exec_keeping(c"/nonexistent", &[], &[], &[number]);
        assert_eq!(missing, Errno::NOENT);
        assert!(rustix::io::fcntl_getfd(&kept).unwrap().contains(FdFlags::CLOEXEC));
        let script = format!(
            "[ $$ = {} ] || exit 1; [ -e /proc/$$/fd/{others} ] && exit 1; read a </proc/$$/fd/{number}
            kill -HUP $$; [ $a = kept ] && echo 1 passed",
            std::process::id()
        );
        let argv = exec_strings(["sh", "-c", &script]).unwrap();
        let env = exec_strings(["PATH=/bin:/usr/bin"]).unwrap();
        let error = exec_keeping(c"/bin/sh", &argv, &env, &[number]);
        panic!("{error}");
    }

    #[test]
    fn what_was_kept_is_taken_once() {
        use std::os::fd::IntoRawFd;
        let number = file_with("").into_raw_fd();
        let taken = take_kept(number).unwrap();
        assert!(rustix::io::fcntl_getfd(&taken).unwrap().contains(FdFlags::CLOEXEC));
        assert_eq!(take_kept(number).unwrap_err(), Errno::BADF);
        assert_eq!(take_kept(2).unwrap_err(), Errno::BADF);
        assert_eq!(take_kept(RawFd::MAX).unwrap_err(), Errno::BADF);
        drop(taken);
    }

    #[test]
    fn what_was_not_passed_can_not_be_taken() {
        assert_eq!(take_passed(PASSED_MAX).unwrap_err(), Errno::BADF);
        assert_eq!(take_passed(usize::MAX).unwrap_err(), Errno::BADF);
    }
}
