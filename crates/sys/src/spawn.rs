//! Starts a process by posix_spawn, with exactly what is asked for and nothing else of ours.
//!
//! Never fork: from a process of 1 GiB it takes 50 ms to copy the page tables, and so do
//! `pre_exec`, `uid()` and `gid()` of the standard library. posix_spawn shares the memory until the
//! exec and takes the same half millisecond whatever our size.

mod confined;

pub use confined::{CAN_CONFINE, Confinement, Limit, spawn_confined};

use crate::boot::ticks_since_boot;
use crate::child::{Child, Session};
use crate::errno::of_returned;
use crate::signals::children_are_kept;
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, getpid, getrlimit, pidfd_open};
use std::ffi::{CStr, CString, c_char, c_int, c_short};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use thiserror::Error;

/// The first descriptor that is not stdin, stdout or stderr.
const FIRST_OTHER_FD: RawFd = 3;

/// What to start. Strings are borrowed, nothing of them is copied.
#[derive(Debug)]
pub struct SpawnRequest<'a> {
    /// The file to execute, absolute, as [`resolve`](crate::resolve::resolve) found it. It is
    /// executed after the change to `cwd`; no search happens here.
    pub program: &'a CStr,
    /// The whole argv, its first string included, which need not resemble `program`.
    pub argv: &'a [CString],
    /// The whole environment, each `NAME=value`; nothing of ours is added.
    pub env: &'a [CString],
    /// The working directory, or ours.
    pub cwd: Option<&'a CStr>,
    /// What becomes of 0, 1 and 2. All other descriptors are closed.
    pub stdio: Stdio<'a>,
    /// Whether it leads a session of its own.
    pub session: Session,
    /// The soft limit of open descriptors that it starts with, or ours. A supervisor that has
    /// raised its own limit gives the one it was started with: programs that use select(2), or
    /// that close every possible descriptor, misbehave under a large one.
    pub open_files_soft: Option<u64>,
}

/// Where a process's stdin, stdout and stderr lead.
#[derive(Clone, Copy, Debug)]
pub enum Stdio<'a> {
    /// To these descriptors, which stay ours. They must be blocking: the flag is shared with the
    /// child, and few programs expect `EAGAIN`.
    Descriptors {
        /// Becomes 0.
        stdin: BorrowedFd<'a>,
        /// Becomes 1.
        stdout: BorrowedFd<'a>,
        /// Becomes 2; may be the same as `stdout`.
        stderr: BorrowedFd<'a>,
    },
    /// All three to the terminal of this path (`/dev/pts/N`), which becomes the controlling
    /// terminal of the new session.
    Terminal {
        /// The terminal device.
        path: &'a CStr,
    },
}

/// Why there is no child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SpawnError {
    /// The request has no first argument.
    #[error("argv is empty")]
    EmptyArgv,
    /// SIGCHLD is ignored in this process, so the kernel would throw away how the child ended (see
    /// [`default_sigchld`](crate::signals::default_sigchld)). Nothing was executed.
    #[error("SIGCHLD is ignored, so the outcome of a process could not be obtained")]
    OutcomeLost,
    /// Nothing was executed. [`diagnose`](crate::resolve::diagnose) tells what the number means.
    #[error("nothing was started: {0}")]
    NotStarted(Errno),
    /// The program ran for an instant, but no descriptor could be had for it, so it was killed.
    #[error("the process was started, then killed because it could not be watched: {0}")]
    Abandoned(Errno),
}

/// Starts a process with default signals, an empty signal mask and descriptors 0, 1 and 2 only.
///
/// Returns once the program is executing (or could not), typically after half a millisecond.
///
/// # Errors
/// [`SpawnError`]; unless it is `Abandoned`, nothing has run and nothing is left behind.
pub fn spawn(request: &SpawnRequest<'_>) -> Result<Child, SpawnError> {
    if request.argv.is_empty() {
        return Err(SpawnError::EmptyArgv);
    }
    // A disposition is inherited and a library may change it, and without a status to wait for, not
    // even the child's pid is ours: so it is looked at every time, for one cheap system call.
    if !children_are_kept() {
        return Err(SpawnError::OutcomeLost);
    }
    let reserve = reserve_descriptor(request).map_err(SpawnError::NotStarted)?;
    let started_ticks = ticks_since_boot();
    let pid = posix_spawn(request).map_err(SpawnError::NotStarted)?;
    drop(reserve);
    let child = Child::adopt(pid, request.session, started_ticks).map_err(SpawnError::Abandoned)?;
    #[cfg(not(target_env = "gnu"))]
    limit_started_child(pid, request.open_files_soft);
    Ok(child)
}

/// Reserves the descriptor that is needed after the start: being out of descriptors must show while
/// nothing runs yet. So must a kernel or a sandbox without pidfds, which does not change: one is
/// opened the first time, and later the cheapest descriptor there is.
fn reserve_descriptor(request: &SpawnRequest<'_>) -> Result<OwnedFd, Errno> {
    static HAS_PIDFDS: AtomicBool = AtomicBool::new(false);
    match request.stdio {
        Stdio::Descriptors { stdout, .. } if HAS_PIDFDS.load(Ordering::Relaxed) => {
            fcntl_dupfd_cloexec(stdout, FIRST_OTHER_FD)
        }
        _ => {
            let reserve = pidfd_open(getpid(), PidfdFlags::empty())?;
            HAS_PIDFDS.store(true, Ordering::Relaxed);
            Ok(reserve)
        }
    }
}

fn posix_spawn(request: &SpawnRequest<'_>) -> Result<Pid, Errno> {
    // Lives until after the call: the actions hold the numbers of these descriptors.
    let sources;
    let mut actions_memory = MaybeUninit::uninit();
    let mut actions = FileActions::new(&mut actions_memory)?;
    if let Some(cwd) = request.cwd {
        actions.change_directory(cwd)?;
    }
    match request.stdio {
        Stdio::Descriptors { stdin, stdout, stderr } => {
            sources = keep_clear_of_targets([stdin, stdout, stderr])?;
            for (source, target) in sources.iter().zip(0..) {
                actions.duplicate(source.as_raw_fd(), target)?;
            }
            actions.close_from(FIRST_OTHER_FD)?;
        }
        Stdio::Terminal { path } => {
            let no_control = match request.session {
                Session::New => 0,
                Session::Inherited => libc::O_NOCTTY,
            };
            // A session leader without a controlling terminal gets the first one that it opens.
            actions.open(0, path, libc::O_RDWR | no_control)?;
            actions.duplicate(0, 1)?;
            actions.duplicate(0, 2)?;
            actions.close_from(FIRST_OTHER_FD)?;
        }
    }
    let mut attributes_memory = MaybeUninit::uninit();
    let attributes = Attributes::new(&mut attributes_memory, request.session)?;
    let argv = pointers(request.argv);
    let env = pointers(request.env);
    let _limit = LoweredLimit::apply(request.open_files_soft)?;

    let mut pid = 0;
    // SAFETY: `pid` is writable; the program, every string of argv and env, and the two arrays with
    // their null ends outlive the call; actions and attributes are initialised and destroyed only
    // after it. posix_spawn writes to none of the strings, whatever its prototype says.
    let code = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            request.program.as_ptr(),
            actions.0.as_ptr(),
            attributes.0.as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
        )
    };
    of_returned(code)?;
    Pid::from_raw(pid).ok_or(Errno::SRCH)
}

/// Pointers to the strings and the null that ends them.
fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    let ends = std::iter::once(std::ptr::null_mut());
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain(ends).collect()
}

/// A descriptor whose number no duplication onto 0, 1 or 2 destroys before it has been used.
enum Source<'a> {
    Given(BorrowedFd<'a>),
    Moved(OwnedFd),
}

impl Source<'_> {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Given(fd) => fd.as_raw_fd(),
            Self::Moved(fd) => fd.as_raw_fd(),
        }
    }
}

/// Moves a source that is itself 0, 1 or 2 out of the way, unless it is its own target: then the
/// duplication onto itself clears close-on-exec (POSIX.1-2024, glibc since 2.29, musl always).
fn keep_clear_of_targets<'a>(given: [BorrowedFd<'a>; 3]) -> Result<[Source<'a>; 3], Errno> {
    let keep = |fd: BorrowedFd<'a>, target: RawFd| {
        if fd.as_raw_fd() >= FIRST_OTHER_FD || fd.as_raw_fd() == target {
            return Ok(Source::Given(fd));
        }
        fcntl_dupfd_cloexec(fd, FIRST_OTHER_FD).map(Source::Moved)
    };
    let [stdin, stdout, stderr] = given;
    Ok([keep(stdin, 0)?, keep(stdout, 1)?, keep(stderr, 2)?])
}

/// An initialised `posix_spawn_file_actions_t`, which POSIX does not allow to be moved.
struct FileActions<'m>(&'m mut MaybeUninit<libc::posix_spawn_file_actions_t>);

impl<'m> FileActions<'m> {
    fn new(memory: &'m mut MaybeUninit<libc::posix_spawn_file_actions_t>) -> Result<Self, Errno> {
        // SAFETY: the memory is writable and of the right type; the call initialises it.
        of_returned(unsafe { libc::posix_spawn_file_actions_init(memory.as_mut_ptr()) })?;
        Ok(Self(memory))
    }

    fn change_directory(&mut self, path: &CStr) -> Result<(), Errno> {
        let actions = self.0.as_mut_ptr();
        // SAFETY: the actions are initialised; libc copies the path.
        of_returned(unsafe { libc::posix_spawn_file_actions_addchdir_np(actions, path.as_ptr()) })
    }

    fn duplicate(&mut self, source: RawFd, target: RawFd) -> Result<(), Errno> {
        let actions = self.0.as_mut_ptr();
        // SAFETY: the actions are initialised; the numbers are used in the child only.
        of_returned(unsafe { libc::posix_spawn_file_actions_adddup2(actions, source, target) })
    }

    fn open(&mut self, target: RawFd, path: &CStr, flags: c_int) -> Result<(), Errno> {
        let actions = self.0.as_mut_ptr();
        // SAFETY: the actions are initialised; libc copies the path.
        of_returned(unsafe {
            libc::posix_spawn_file_actions_addopen(actions, target, path.as_ptr(), flags, 0)
        })
    }

    /// Closes every descriptor from `first` on in the child.
    #[cfg(target_env = "gnu")]
    fn close_from(&mut self, first: RawFd) -> Result<(), Errno> {
        let actions = self.0.as_mut_ptr();
        // SAFETY: the actions are initialised; the number is used in the child only.
        of_returned(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(actions, first) })
    }

    /// musl has no such action: there, what would be closed is marked close-on-exec in this process,
    /// which for descriptors of ours changes nothing.
    #[cfg(not(target_env = "gnu"))]
    fn close_from(&mut self, _first: RawFd) -> Result<(), Errno> {
        crate::inherit::set_cloexec_on_inherited()
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    }
}

impl Drop for FileActions<'_> {
    fn drop(&mut self) {
        // SAFETY: the actions were initialised by `new` and are destroyed once, here.
        unsafe { libc::posix_spawn_file_actions_destroy(self.0.as_mut_ptr()) };
    }
}

/// An initialised `posix_spawnattr_t`.
struct Attributes<'m>(&'m mut MaybeUninit<libc::posix_spawnattr_t>);

impl<'m> Attributes<'m> {
    fn new(
        memory: &'m mut MaybeUninit<libc::posix_spawnattr_t>,
        session: Session,
    ) -> Result<Self, Errno> {
        // SAFETY: the memory is writable and of the right type; the call initialises it.
        of_returned(unsafe { libc::posix_spawnattr_init(memory.as_mut_ptr()) })?;
        let attributes = Self(memory);
        let pointer = attributes.0.as_mut_ptr();

        let mut flags = libc::POSIX_SPAWN_SETSIGDEF | libc::POSIX_SPAWN_SETSIGMASK;
        if session == Session::New {
            flags |= c_int::from(libc::POSIX_SPAWN_SETSID);
        }
        let flags = c_short::try_from(flags).map_err(|_| Errno::INVAL)?;
        // SAFETY: the attributes are initialised.
        of_returned(unsafe { libc::posix_spawnattr_setflags(pointer, flags) })?;

        let every_signal = signal_set(u8::MAX);
        // SAFETY: the attributes are initialised and the set is copied.
        of_returned(unsafe {
            libc::posix_spawnattr_setsigdefault(pointer, &raw const every_signal)
        })?;

        let no_signal = signal_set(0);
        // SAFETY: the attributes are initialised and the set is copied.
        of_returned(unsafe { libc::posix_spawnattr_setsigmask(pointer, &raw const no_signal) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes<'_> {
    fn drop(&mut self) {
        // SAFETY: the attributes were initialised by `new` and are destroyed once, here.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// The set of all signals or of none, by filling every bit alike.
///
/// sigfillset(3) leaves out the two or three signals that libc keeps to itself, and for those
/// posix_spawn sets "ignored" in the child where we have a handler (as every program with threads
/// does). An ignored signal outlives the exec, so they are named in the set too.
fn signal_set(fill: u8) -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is to one writable `sigset_t`.
    unsafe { set.as_mut_ptr().write_bytes(fill, 1) };
    // SAFETY: a `sigset_t` is an array of integers; every bit pattern is valid, all are written.
    unsafe { set.assume_init() }
}

/// Our own soft limit of descriptors, lowered while a child is made, since it inherits the limit.
///
/// Nothing is opened by us in between: with glibc, posix_spawn needs no descriptor in the parent.
#[cfg(target_env = "gnu")]
struct LoweredLimit(Option<Rlimit>);

#[cfg(target_env = "gnu")]
impl LoweredLimit {
    fn apply(soft: Option<u64>) -> Result<Self, Errno> {
        let Some(soft) = soft else { return Ok(Self(None)) };
        let ours = getrlimit(Resource::Nofile);
        if ours.current.is_some_and(|current| current <= soft) {
            return Ok(Self(None));
        }
        rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit { current: Some(soft), maximum: ours.maximum },
        )?;
        Ok(Self(Some(ours)))
    }
}

#[cfg(target_env = "gnu")]
impl Drop for LoweredLimit {
    fn drop(&mut self) {
        if let Some(ours) = self.0.take() {
            // A soft limit may always be set back to what it was under the same hard limit.
            let _ = rustix::process::setrlimit(Resource::Nofile, ours);
        }
    }
}

/// musl's posix_spawn opens a pipe in the parent, for which there might be no number under the
/// lowered limit; there the child's limit is set after its start, which its first instructions may
/// precede.
#[cfg(not(target_env = "gnu"))]
struct LoweredLimit;

#[cfg(not(target_env = "gnu"))]
impl LoweredLimit {
    fn apply(_soft: Option<u64>) -> Result<Self, Errno> {
        Ok(Self)
    }
}

#[cfg(not(target_env = "gnu"))]
fn limit_started_child(pid: Pid, soft: Option<u64>) {
    let Some(soft) = soft else { return };
    let ours = getrlimit(Resource::Nofile);
    if ours.current.is_none_or(|current| current > soft) {
        let limit = Rlimit { current: Some(soft), maximum: ours.maximum };
        // The process may have ended already; a limit that is too high is no reason to end it.
        let _ = rustix::process::prlimit(Some(pid), Resource::Nofile, limit);
    }
}

#[cfg(test)]
mod tests;
