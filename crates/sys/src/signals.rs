//! Signals: names and numbers, sending them to a descriptor, and our own dispositions.

use crate::errno;
use rustix::io::Errno;
use std::borrow::Cow;
use std::ffi::c_int;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

/// The highest signal number of Linux (`_NSIG` is one more, except on MIPS with its 128).
const NUMBER_MAX: c_int = 64;

/// Names without `SIG`. Where a number has two names, the first is the one that is shown.
const NAMES: &[(&str, c_int)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// A signal that this kernel knows: `1 <= number <= 64`. Zero, the question "is it there?", is none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(c_int);

impl Signal {
    /// A hang-up: the terminal or the controlling client is gone.
    pub const HUP: Self = Self(libc::SIGHUP);
    /// What Ctrl-C sends.
    pub const INT: Self = Self(libc::SIGINT);
    /// What Ctrl-\ sends.
    pub const QUIT: Self = Self(libc::SIGQUIT);
    /// Cannot be caught, blocked or ignored.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// The first signal without a meaning of its own.
    pub const USR1: Self = Self(libc::SIGUSR1);
    /// The second signal without a meaning of its own.
    pub const USR2: Self = Self(libc::SIGUSR2);
    /// A write to a pipe that nobody reads.
    pub const PIPE: Self = Self(libc::SIGPIPE);
    /// The polite request to end.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// A child has ended.
    pub const CHLD: Self = Self(libc::SIGCHLD);
    /// Resumes a stopped process.
    pub const CONT: Self = Self(libc::SIGCONT);
    /// What Ctrl-Z sends.
    pub const TSTP: Self = Self(libc::SIGTSTP);
    /// Stops a process; cannot be caught, blocked or ignored.
    pub const STOP: Self = Self(libc::SIGSTOP);
    /// A terminal has another size.
    pub const WINCH: Self = Self(libc::SIGWINCH);

    /// The signal with this number, if there is one.
    pub fn from_number(number: i32) -> Option<Self> {
        (1..=NUMBER_MAX).contains(&number).then_some(Self(number))
    }

    /// Reads `TERM`, `SIGTERM`, `term`, `15`, `RTMIN`, `RTMIN+3` or `RTMAX-2`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Self::from_number(text.parse().ok()?);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(Self(*number));
        }
        Self::parse_realtime(name)
    }

    fn parse_realtime(name: &str) -> Option<Self> {
        let (first, last) = (libc::SIGRTMIN(), libc::SIGRTMAX());
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            first.checked_add(realtime_distance(rest, '+')?)?
        } else {
            last.checked_sub(realtime_distance(name.strip_prefix("RTMAX")?, '-')?)?
        };
        (first..=last).contains(&number).then_some(Self(number))
    }

    /// Sends it to the calling thread, which has met it when this returns: stopped by it, this comes back
    /// when somebody continues the process.
    ///
    /// # Errors
    /// None that a signal of this type has.
    pub fn raise(self) -> Result<(), Errno> {
        // SAFETY: raise touches no memory.
        errno::of_minus_one(unsafe { libc::raise(self.0) }).map(|_| ())
    }

    /// The number on this machine; names, not numbers, are the same everywhere.
    pub fn number(self) -> i32 {
        self.0
    }

    /// The name without `SIG`: `TERM`, `RTMIN+3`; the number for the few that libc keeps to itself.
    pub fn name(self) -> Cow<'static, str> {
        if let Some((name, _)) = NAMES.iter().find(|(_, number)| *number == self.0) {
            return Cow::Borrowed(name);
        }
        match self.0 - libc::SIGRTMIN() {
            0 => Cow::Borrowed("RTMIN"),
            distance if distance > 0 => Cow::Owned(format!("RTMIN+{distance}")),
            _ => Cow::Owned(self.0.to_string()),
        }
    }

    /// Every signal of this machine that a user can name, in the order of the numbers.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=NUMBER_MAX)
            .map(Self)
            .filter(|signal| signal.0 >= libc::SIGRTMIN() || NAMES.iter().any(|n| n.1 == signal.0))
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SIG{}", self.name())
    }
}

/// As kill(1) writes it: the name without `SIG`.
impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// What follows `RTMIN` or `RTMAX`: nothing, or a sign and a number.
fn realtime_distance(text: &str, sign: char) -> Option<c_int> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// Sends `signal` to the process that `pidfd` refers to, and to no other (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` when the process has been reaped, `EPERM` when it is not ours to signal.
pub fn send_to_pidfd(pidfd: impl AsFd, signal: Signal) -> Result<(), Errno> {
    let (fd, no_info, flags) = (pidfd.as_fd().as_raw_fd(), std::ptr::null::<libc::siginfo_t>(), 0);
    // SAFETY: all four arguments of the call are given with the kernel's widths; a null siginfo is
    // allowed and means that of kill(2).
    let code =
        unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal.number(), no_info, flags) };
    if code == -1 { Err(errno::last()) } else { Ok(()) }
}

/// Makes a write to a closed pipe or socket fail with `EPIPE` instead of ending this process.
///
/// The Rust runtime does this before `main`; a role that is entered by re-exec relies on nothing.
pub fn ignore_sigpipe() {
    set_disposition(libc::SIGPIPE, libc::SIG_IGN);
}

/// Gives SIGCHLD its default effect.
///
/// A process that is started with SIGCHLD ignored loses the status of every child: the kernel
/// reaps them at once. Whoever spawns calls this first.
pub fn default_sigchld() {
    set_disposition(libc::SIGCHLD, libc::SIG_DFL);
}

/// Whether the kernel keeps ended children for us to reap: SIGCHLD is not ignored.
pub(crate) fn children_are_kept() -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action only asks; the pointer is to writable memory of the right type.
    unsafe { libc::sigaction(libc::SIGCHLD, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: a sigaction is of integers and an optional function pointer, for which the zeroes it
    // was made of are valid, whatever the call has filled in.
    let action = unsafe { action.assume_init() };
    action.sa_sigaction != libc::SIG_IGN && action.sa_flags & libc::SA_NOCLDWAIT == 0
}

/// Ends this process as `signal` would have, so that a waiting shell sees a death by signal.
///
/// No core is dumped: whoever passes on the death of another process would overwrite its core. A
/// signal whose default is not to end a process gives the exit status `128 + number` instead.
pub fn die_of_signal(signal: Signal) -> ! {
    let no_core = rustix::process::Rlimit { current: Some(0), maximum: Some(0) };
    // Failing leaves a core that is only superfluous.
    let _ = rustix::process::setrlimit(rustix::process::Resource::Core, no_core);
    set_disposition(signal.number(), libc::SIG_DFL);
    unblock(signal.number());
    // SAFETY: raise has no memory obligations; the disposition is the default one, no handler runs.
    unsafe { libc::raise(signal.number()) };
    // SAFETY: _exit ends the process and touches no memory; nothing of ours needs unwinding, just
    // as nothing would have been unwound by the signal.
    unsafe { libc::_exit(128 + signal.number()) }
}

fn set_disposition(number: c_int, disposition: libc::sighandler_t) {
    // SAFETY: the disposition is SIG_IGN or SIG_DFL, so that no code of ours runs as a handler.
    // Failing is possible only for SIGKILL and SIGSTOP, whose default cannot be changed anyway.
    unsafe { libc::signal(number, disposition) };
}

fn unblock(number: c_int) {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to writable memory of the right type, which the call initialises.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set has been initialised above; an unknown number is refused by libc.
    unsafe { libc::sigaddset(set.as_mut_ptr(), number) };
    // SAFETY: the set is initialised, and a null old set is allowed.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn names_and_numbers_are_read() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(Signal::parse(text), Some(Signal::TERM), "{text}");
        }
        assert_eq!(Signal::parse("CLD").unwrap().name(), "CHLD");
        assert_eq!(Signal::parse("RTMIN").unwrap().number(), libc::SIGRTMIN());
        assert_eq!(Signal::parse("SIGRTMIN+3").unwrap().name(), "RTMIN+3");
        assert_eq!(Signal::parse("RTMAX-1").unwrap().number(), libc::SIGRTMAX() - 1);
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "",
            "0",
            "65",
            "-9",
            "+9",
            "SIG",
            "TERMINATE",
            "RTMIN+",
            "RTMIN+-1",
            "RTMIN+31",
            "RTMIN-1",
            "RTMAX+1",
            "99999999999",
        ] {
            assert_eq!(Signal::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn every_listed_signal_is_read_back_from_its_name() {
        let all: Vec<_> = Signal::all().collect();
        assert!(all.len() >= 60, "{}", all.len());
        for signal in all {
            assert_eq!(Signal::parse(&signal.name()), Some(signal));
        }
    }

    const DYING: &str = "signals::tests::dying_of_a_signal_is_seen_as_that_signal";

    fn rerun_and_die_of(signal: &str) -> std::process::ExitStatus {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", DYING, "--nocapture"]).env("AFAR_SYS_TEST_DIE_OF", signal);
        command.stdout(std::process::Stdio::null()).status().unwrap()
    }

    #[test]
    fn dying_of_a_signal_is_seen_as_that_signal() {
        if let Ok(name) = std::env::var("AFAR_SYS_TEST_DIE_OF") {
            ignore_sigpipe();
            die_of_signal(Signal::parse(&name).unwrap());
        }
        for signal in [Signal::TERM, Signal::PIPE, Signal::KILL, Signal::QUIT] {
            let status = rerun_and_die_of(&signal.name());
            assert_eq!(status.signal(), Some(signal.number()));
            assert!(!status.core_dumped());
        }
        let status = rerun_and_die_of("WINCH");
        assert_eq!(status.code(), Some(128 + Signal::WINCH.number()));
    }
}
