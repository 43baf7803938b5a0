//! A process that we started: its descriptor, its end, and signals that reach it and no other.

use crate::boot::ticks_since_boot;
use crate::errno;
use crate::process_tree::TreeRoot;
use crate::signals::{Signal, send_to_pidfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// Whether a new process leads a session of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Session {
    /// A new session and process group, without a controlling terminal: what a job gets.
    #[default]
    New,
    /// The session and the process group of the caller.
    Inherited,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit; of the number that it gave, the kernel keeps 8 bits.
    Exited {
        /// What it gave to exit.
        code: u8,
    },
    /// A signal ended it. Distinct from an exit with `128 + n`, which is how shells pass one on.
    Signaled {
        /// The signal.
        signal: Signal,
        /// Whether the kernel wrote a core dump.
        core: bool,
    },
}

/// What a process and those of its descendants that it waited for have used (getrusage(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The largest resident set of one of the processes. Before its exec a process shares our
    /// memory, so a small program never shows less than what we held when it was spawned.
    pub max_rss_bytes: u64,
    /// Bytes that were read from storage, and not from the page cache, in whole sectors.
    pub read_bytes: u64,
    /// Bytes that were caused to be written to storage, in whole sectors.
    pub written_bytes: u64,
}

/// The end of a process: everything that wait4(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// At what cost.
    pub usage: Usage,
}

/// A process started by [`spawn`](crate::spawn::spawn), and the only way to reap it.
///
/// [`AsFd`] gives its pidfd, which polls readable once the process has ended; so an async runtime
/// waits on that and then calls [`Child::try_wait`].
///
/// The process must be reaped through this value only: nobody else in this process may wait for any
/// child (except through [`reap_adopted`](crate::process_tree::reap_adopted), which is told which
/// ones are ours), or the status is lost and its pid may belong to somebody else.
///
/// Dropping an unreaped child neither kills nor waits: the process lives on, and when it ends it
/// stays a zombie until we end too.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    session: Session,
    /// Taken just before the start, so a lower bound of the start time in `/proc/PID/stat`.
    started_ticks: u64,
    /// `Some` iff the process has been reaped.
    reaped: Option<Reaped>,
}

#[derive(Clone, Copy, Debug)]
struct Reaped {
    ended: Ended,
    /// Taken before the reaping, so no process that got the same pid afterwards is older.
    at_ticks: u64,
}

impl Child {
    /// Takes charge of a process that was just started.
    ///
    /// # Errors
    /// What pidfd_open(2) gives. The process has then been killed and reaped: without a descriptor
    /// it could be neither waited for nor signalled safely.
    pub(crate) fn adopt(pid: Pid, session: Session, started_ticks: u64) -> Result<Self, Errno> {
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pid, pidfd, session, started_ticks, reaped: None }),
            Err(error) => {
                // Gone already means that somebody else reaped it: its number may be another's.
                if error != Errno::SRCH {
                    kill_and_reap(pid, session);
                }
                Err(error)
            }
        }
    }

    /// A child of this process that it had started before it executed the present program, and has not
    /// reaped since. It led a session of its own.
    ///
    /// # Errors
    /// `ESRCH` if the descriptor is not that of a process of this number; `ECHILD` if that is not our
    /// child.
    pub fn kept(pid: i32, pidfd: OwnedFd, started_ticks: u64) -> Result<Self, Errno> {
        let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
        // It may have ended since, but it stays unreaped: what is peeked at stays.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::PidFd(pidfd.as_fd()), options)?;
        waitid(WaitId::Pid(pid), options)?;
        Ok(Self { pid, pidfd, session: Session::New, started_ticks, reaped: None })
    }

    /// The process id. After the reaping another process may have it: signal through
    /// [`Child::signal`], never by this number.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// The pidfd: readable once the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The end of the process, or `None` while it runs. Never blocks; once it has given an end it
    /// gives the same one again.
    ///
    /// # Errors
    /// `ECHILD`: the status cannot be obtained, because SIGCHLD is ignored or somebody else reaped
    /// the process. The outcome is then unknown, never a number.
    pub fn try_wait(&mut self) -> Result<Option<Ended>, Errno> {
        if let Some(reaped) = self.reaped {
            return Ok(Some(reaped.ended));
        }
        let at_ticks = ticks_since_boot();
        let Some(ended) = wait4(self.pid, libc::WNOHANG)? else { return Ok(None) };
        self.reaped = Some(Reaped { ended, at_ticks });
        Ok(Some(ended))
    }

    /// Blocks until the process has ended. For roles that have nothing else to do, and for tests.
    ///
    /// # Errors
    /// As [`Child::try_wait`].
    pub fn wait(&mut self) -> Result<Ended, Errno> {
        loop {
            if let Some(ended) = self.try_wait()? {
                return Ok(ended);
            }
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Blocks until the process has ended, or for `time`; whether it has ended. It stays unreaped.
    ///
    /// # Errors
    /// Those of poll(2).
    pub fn wait_for(&self, time: Duration) -> Result<bool, Errno> {
        let deadline = Instant::now() + time;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(|_| Errno::INVAL)?;
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Err(Errno::INTR) => {}
                ended => return ended.map(|count| count > 0),
            }
        }
    }

    /// Sends `signal` to this process alone.
    ///
    /// # Errors
    /// `ESRCH` once it has been reaped (a signal to a zombie succeeds and does nothing); `EPERM`
    /// when it has changed to another user.
    pub fn signal(&self, signal: Signal) -> Result<(), Errno> {
        send_to_pidfd(&self.pidfd, signal)
    }

    /// Sends `signal` to the process group that this process leads.
    ///
    /// # Errors
    /// `ESRCH` once it has been reaped, even if others of the group live on: nothing proves any
    /// longer that the group's number is still this group's (see
    /// [`kill_tree`](crate::process_tree::kill_tree) for those). `EINVAL` for a child in our own
    /// session, which leads no group.
    pub fn signal_group(&self, signal: Signal) -> Result<(), Errno> {
        if self.session == Session::Inherited {
            return Err(Errno::INVAL);
        }
        if self.reaped.is_some() {
            return Err(Errno::SRCH);
        }
        // SAFETY: kill touches no memory. The leader is unreaped, so the group's number is its own.
        errno::of_minus_one(unsafe { libc::kill(-self.pid.as_raw_pid(), signal.number()) })
            .map(|_| ())
    }

    /// What finds this process's descendants, also after it has been reaped.
    pub fn tree_root(&self) -> TreeRoot {
        TreeRoot {
            pid: self.pid(),
            leads_session: self.session == Session::New,
            started_ticks: self.started_ticks,
            reaped_ticks: self.reaped.map(|reaped| reaped.at_ticks),
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

fn kill_and_reap(pid: Pid, session: Session) {
    let target = match session {
        Session::New => -pid.as_raw_pid(),
        Session::Inherited => pid.as_raw_pid(),
    };
    // SAFETY: kill touches no memory. The process is our unreaped child, so its pid and its group
    // are still its own.
    unsafe { libc::kill(target, libc::SIGKILL) };
    while let Err(Errno::INTR) = wait4(pid, 0) {}
}

/// Reaps a child that has ended because it could not execute its program.
pub(crate) fn reap_failed(pid: Pid) {
    while let Err(Errno::INTR) = wait4(pid, 0) {}
}

/// wait4(2) for one child. `None` only with `WNOHANG`.
fn wait4(pid: Pid, options: libc::c_int) -> Result<Option<Ended>, Errno> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to writable memory of the right types that outlives the call.
    let code =
        unsafe { libc::wait4(pid.as_raw_pid(), &raw mut status, options, usage.as_mut_ptr()) };
    if errno::of_minus_one(code)? == 0 {
        return Ok(None);
    }
    // SAFETY: rusage consists of integers, for which the zeroes it was made of are valid, whatever
    // the call has filled in.
    let usage = unsafe { usage.assume_init() };
    let Some(status) = decode(status) else { return Ok(None) };
    Ok(Some(Ended { status, usage: decode_usage(&usage) }))
}

/// `None` for a mere stop or continuation, which we never ask for.
fn decode(status: libc::c_int) -> Option<ExitStatus> {
    if libc::WIFEXITED(status) {
        let code = u8::try_from(libc::WEXITSTATUS(status)).ok()?;
        return Some(ExitStatus::Exited { code });
    }
    if libc::WIFSIGNALED(status) {
        let signal = Signal::from_number(libc::WTERMSIG(status))?;
        return Some(ExitStatus::Signaled { signal, core: libc::WCOREDUMP(status) });
    }
    None
}

fn decode_usage(usage: &libc::rusage) -> Usage {
    // Whatever the block size of a file system, the kernel counts sectors here.
    const SECTOR_BYTES: u64 = 512;
    let count = |count: libc::c_long| u64::try_from(count).unwrap_or(0);
    Usage {
        user: decode_time(usage.ru_utime),
        system: decode_time(usage.ru_stime),
        max_rss_bytes: count(usage.ru_maxrss).saturating_mul(1024),
        read_bytes: count(usage.ru_inblock).saturating_mul(SECTOR_BYTES),
        written_bytes: count(usage.ru_oublock).saturating_mul(SECTOR_BYTES),
    }
}

fn decode_time(time: libc::timeval) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let microseconds = u64::try_from(time.tv_usec).unwrap_or(0);
    Duration::from_secs(seconds).saturating_add(Duration::from_micros(microseconds))
}
