//! A process that watches over another one, its child, and inherits what that one leaves behind.
//!
//! It is split off by fork(2) while this program is still small and has one thread: that takes a tenth of
//! a millisecond and shares the memory, where starting the program a second time would take a dozen
//! times as long. Nothing else in afar forks.

use crate::child::{Child, Ended, Session};
use crate::errno;
use crate::process_tree::{now_ticks, reap_adopted, set_child_subreaper};
use crate::signals::Signal;
use rustix::io::Errno;
use rustix::process::Pid;
use rustix::thread::set_name;
use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::time::Duration;

/// What a guardian is woken by: the ends of processes, and what it passes on.
const WAITED: [Signal; 4] = [Signal::CHLD, Signal::TERM, Signal::INT, Signal::HUP];

/// Which of the two this process is now.
#[derive(Debug)]
pub enum Split {
    /// The parent, a subreaper (prctl(2)): what is orphaned below it becomes its own child.
    Guardian(Guard),
    /// The child, which goes on as the process was.
    Guarded,
}

/// A guardian's view of the process that it watches.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    /// A moment at which nothing had been reaped yet that had not been before.
    unreaped_until_ticks: u64,
}

/// What a guardian has to know.
#[derive(Debug)]
pub enum GuardEvent {
    /// The guarded process has ended; `None` if its status can't be obtained.
    Ended(Option<Ended>),
    /// A signal came that asks for something: TERM, INT or HUP.
    Told(Signal),
}

/// Splits this process in two. The names are what ps(1) and top(1) show, 15 bytes of them.
///
/// # Errors
/// There is another thread, whose locks nobody would ever release in the child, or no process or
/// descriptor can be had. This process is then alone, as before.
pub fn split(guardian: &CStr, guarded: &CStr) -> io::Result<Split> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("this process has another thread"));
    }
    set_child_subreaper()?;
    let mask = block(&WAITED)?;
    // SAFETY: there is no other thread, so the child's copy of the memory is whole, locks included.
    let forked = errno::of_minus_one(unsafe { libc::fork() });
    match forked {
        Ok(0) => {
            restore(&mask);
            let _ = set_name(guarded);
            Ok(Split::Guarded)
        }
        Ok(pid) => {
            let _ = set_name(guardian);
            let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
            let unreaped_until_ticks = now_ticks();
            let child = Child::adopt(pid, Session::Inherited, unreaped_until_ticks);
            child.map_or_else(
                |error| {
                    // It was killed, and we go on in its place.
                    restore(&mask);
                    let _ = set_name(guarded);
                    Err(error.into())
                },
                |child| Ok(Split::Guardian(Guard { child, unreaped_until_ticks })),
            )
        }
        Err(error) => {
            restore(&mask);
            Err(error.into())
        }
    }
}

impl Guard {
    /// The next thing that happens. Reaps what was adopted meanwhile.
    pub fn wait(&mut self) -> GuardEvent {
        loop {
            self.unreaped_until_ticks = now_ticks();
            match self.child.try_wait() {
                Ok(None) => {}
                Ok(ended) => return GuardEvent::Ended(ended),
                Err(_) => return GuardEvent::Ended(None),
            }
            let ours = self.child.pid();
            let _ = reap_adopted(|pid| pid == ours);
            match wait_for(&WAITED, None) {
                Some(Signal::CHLD) | None => {}
                Some(signal) => return GuardEvent::Told(signal),
            }
        }
    }

    /// Passes a signal on. One that has ended gets none.
    pub fn pass_on(&self, signal: Signal) {
        let _ = self.child.signal(signal);
    }

    /// A moment up to which nothing was reaped that was there when the guarded process ended
    /// ([`TreeRoot::of_lost_job`](crate::process_tree::TreeRoot::of_lost_job)).
    pub fn unreaped_until_ticks(&self) -> u64 {
        self.unreaped_until_ticks
    }

    /// Waits for `time`, or until a process below has ended, and reaps what was adopted. Signals are left for
    /// later.
    pub fn pause(&self, time: Duration) {
        wait_for(&[Signal::CHLD], Some(time));
        let ours = self.child.pid();
        // The guarded process has ended and was reaped, so everything that ends is adopted.
        let _ = reap_adopted(|pid| pid == ours && self.is_unreaped());
    }

    fn is_unreaped(&self) -> bool {
        self.child.tree_root().reaped_ticks.is_none()
    }
}

fn set_of(signals: &[Signal]) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to one writable set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in signals {
        // SAFETY: the set was initialised above; a number that there is not changes nothing.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal.number()) };
    }
    // SAFETY: it was initialised above.
    unsafe { set.assume_init() }
}

/// Blocks signals in this thread; returns the mask before.
fn block(signals: &[Signal]) -> Result<libc::sigset_t, Errno> {
    let set = set_of(signals);
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are of the right type; the old one is writable.
    let code =
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) };
    errno::of_returned(code)?;
    // SAFETY: the call has succeeded, and has written it.
    Ok(unsafe { before.assume_init() })
}

fn restore(mask: &libc::sigset_t) {
    // SAFETY: the mask is one that `block` has returned; no old one is asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

/// Takes one of these blocked signals; `None` if none came in time.
fn wait_for(signals: &[Signal], time: Option<Duration>) -> Option<Signal> {
    let set = set_of(signals);
    let nothing = std::ptr::null_mut();
    let number = match time {
        None => {
            // SAFETY: the set is initialised; no information about the signal is asked for.
            unsafe { libc::sigwaitinfo(&raw const set, nothing) }
        }
        Some(time) => {
            let mut limit = MaybeUninit::<libc::timespec>::zeroed();
            // SAFETY: a timespec consists of integers, for which zeroes are valid.
            let limit = unsafe { limit.assume_init_mut() };
            limit.tv_sec = time.as_secs().try_into().unwrap_or(libc::time_t::MAX);
            limit.tv_nsec = time.subsec_nanos().into();
            // SAFETY: as above; the limit is readable.
            unsafe { libc::sigtimedwait(&raw const set, nothing, std::ptr::from_ref(limit)) }
        }
    };
    Signal::from_number(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    // What a split does is in `tests/guard.rs`: it needs a program without threads.

    #[test]
    fn a_process_with_threads_is_not_split() {
        std::thread::spawn(|| split(c"x", c"y").unwrap_err()).join().unwrap();
    }
}
