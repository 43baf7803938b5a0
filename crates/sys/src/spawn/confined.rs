//! Starts a process that is confined from its first instruction on: born in a cgroup, under limits of
//! its own.
//!
//! posix_spawn of most libcs can do neither, and whoever moves a process after its start misses what it
//! has started by then. So the child is made by clone3(2) with the caller's memory and a stack of its
//! own, exactly as posix_spawn makes it: the caller's thread stands still until the child executes its
//! program, and nothing of the caller's memory is copied however large it is.

use super::{
    FIRST_OTHER_FD, SpawnError, SpawnRequest, Stdio, keep_clear_of_targets, pointers,
    reserve_descriptor,
};
use crate::boot::ticks_since_boot;
use crate::child::{Child, Session};
use crate::errno;
use crate::signals::children_are_kept;
use rustix::io::Errno;
use rustix::process::Pid;
use std::ffi::{c_char, c_int, c_long, c_uint};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// Whether this processor's way to make such a child is known here.
pub const CAN_CONFINE: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// What the child's stack has room for: system calls, and no more.
const STACK_WORDS: usize = 64 * 1024 / size_of::<u128>();

/// The highest number of a signal.
const SIGNAL_MAX: c_long = 64;

/// What the kernel's set of signals and its actions are long (rt_sigaction(2)), in words.
const SIGNAL_SET_WORDS: usize = 1;
const SIGNAL_ACTION_WORDS: usize = 4;

/// What holds a process in, besides what a [`SpawnRequest`] says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Confinement<'a> {
    /// The directory of the cgroup that it is born in (cgroup v2); ours if there is none.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Limits of its own, hard and soft alike.
    pub limits: &'a [(Limit, u64)],
}

/// A limit of each single process (getrlimit(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Bytes of its private memory that can be written: what it allocates, and its threads' stacks.
    /// What is reserved only, shared, or a file, does not count.
    Data,
    /// Processes and threads of its whole user, wherever they come from. Nobody holds root to it.
    Processes,
}

impl Limit {
    fn number(self) -> c_long {
        let resource = match self {
            Self::Data => libc::RLIMIT_DATA,
            Self::Processes => libc::RLIMIT_NPROC,
        };
        c_long::from(resource)
    }
}

/// As [`spawn`](super::spawn), but for what holds it in.
///
/// # Errors
/// As [`spawn`](super::spawn). `NotStarted` with `ENOSYS` on a processor or a kernel that can't
/// (before 5.7 for a cgroup, 5.9 at all), with `ENODEV` for a cgroup that was removed, with `EBUSY`
/// for one that can have no processes, and with `EAGAIN` where its `pids.max` is reached.
pub fn spawn_confined(
    request: &SpawnRequest<'_>,
    confinement: &Confinement<'_>,
) -> Result<Child, SpawnError> {
    if request.argv.is_empty() {
        return Err(SpawnError::EmptyArgv);
    }
    if !children_are_kept() {
        return Err(SpawnError::OutcomeLost);
    }
    let reserve = reserve_descriptor(request).map_err(SpawnError::NotStarted)?;
    let started_ticks = ticks_since_boot();
    let pid = start(request, confinement).map_err(SpawnError::NotStarted)?;
    drop(reserve);
    Child::adopt(pid, request.session, started_ticks).map_err(SpawnError::Abandoned)
}

/// What the child does, made ready for it: it allocates nothing, because it shares our memory while
/// other threads of ours may hold the allocator's locks.
struct Plan<'a> {
    program: *const c_char,
    argv: *const *mut c_char,
    env: *const *mut c_char,
    /// Null for ours.
    cwd: *const c_char,
    streams: Streams,
    new_session: bool,
    limits: &'a [(Limit, u64)],
    open_files: Option<libc::rlimit64>,
    /// The error number of the step that failed, or 0.
    failure: AtomicI32,
}

enum Streams {
    Descriptors([RawFd; 3]),
    Terminal { path: *const c_char, flags: c_int },
}

fn start(request: &SpawnRequest<'_>, confinement: &Confinement<'_>) -> Result<Pid, Errno> {
    // Lives until the child has used the numbers.
    let sources;
    let streams = match request.stdio {
        Stdio::Descriptors { stdin, stdout, stderr } => {
            sources = keep_clear_of_targets([stdin, stdout, stderr])?;
            Streams::Descriptors(sources.each_ref().map(super::Source::as_raw_fd))
        }
        Stdio::Terminal { path } => {
            let no_control = match request.session {
                Session::New => 0,
                Session::Inherited => libc::O_NOCTTY,
            };
            Streams::Terminal { path: path.as_ptr(), flags: libc::O_RDWR | no_control }
        }
    };
    let (argv, env) = (pointers(request.argv), pointers(request.env));
    let plan = Plan {
        program: request.program.as_ptr(),
        argv: argv.as_ptr(),
        env: env.as_ptr(),
        cwd: request.cwd.map_or(std::ptr::null(), std::ffi::CStr::as_ptr),
        streams,
        new_session: request.session == Session::New,
        limits: confinement.limits,
        open_files: request.open_files_soft.map(open_files),
        failure: AtomicI32::new(0),
    };
    let mut stack = Box::<[u128]>::new_uninit_slice(STACK_WORDS);
    let arguments = CloneArguments::new(confinement.cgroup, &mut stack)?;
    let blocked = AllSignalsBlocked::new()?;
    // SAFETY: the arguments describe a stack that is ours alone and outlives the child's use of it,
    // as everything does that the plan points to: with CLONE_VFORK this thread goes on only when the
    // child has executed its program or has ended. `run_child` never returns.
    let pid = unsafe { clone3(&raw const arguments, run_child, &raw const plan) };
    drop(blocked);
    drop(stack);
    let pid = match pid {
        // Of clone3 itself that is a cgroup which was removed, and is told apart from a program.
        Err(Errno::NOENT) => return Err(Errno::NODEV),
        pid => Pid::from_raw(pid?).ok_or(Errno::SRCH)?,
    };
    match plan.failure.load(Ordering::SeqCst) {
        0 => Ok(pid),
        error => {
            crate::child::reap_failed(pid);
            Err(Errno::from_raw_os_error(error))
        }
    }
}

/// The child's limit of open descriptors: this soft one under our hard one.
fn open_files(soft: u64) -> libc::rlimit64 {
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let maximum = maximum.unwrap_or(libc::RLIM64_INFINITY);
    libc::rlimit64 { rlim_cur: soft.min(maximum), rlim_max: maximum }
}

/// `struct clone_args` of clone3(2), as of Linux 5.7.
#[repr(C, align(8))]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl CloneArguments {
    fn new(cgroup: Option<BorrowedFd<'_>>, stack: &mut [MaybeUninit<u128>]) -> Result<Self, Errno> {
        const INTO_CGROUP: u64 = 0x2_0000_0000;
        let shared = libc::CLONE_VM | libc::CLONE_VFORK;
        let mut flags = u64::try_from(shared).map_err(|_| Errno::INVAL)?;
        let mut number = 0;
        if let Some(cgroup) = cgroup {
            flags |= INTO_CGROUP;
            number = u64::try_from(cgroup.as_raw_fd()).map_err(|_| Errno::BADF)?;
        }
        Ok(Self {
            flags,
            pidfd: 0,
            child_tid: 0,
            parent_tid: 0,
            exit_signal: u64::try_from(libc::SIGCHLD).map_err(|_| Errno::INVAL)?,
            stack: stack.as_mut_ptr().expose_provenance() as u64,
            stack_size: size_of_val(stack) as u64,
            tls: 0,
            set_tid: 0,
            set_tid_size: 0,
            cgroup: number,
        })
    }
}

/// No handler of ours may run in the child, which shares our memory: nothing is delivered until it
/// has set all of them to their defaults. libc's own call leaves the two or three signals out that
/// it keeps for itself.
struct AllSignalsBlocked([u64; SIGNAL_SET_WORDS]);

impl AllSignalsBlocked {
    fn new() -> Result<Self, Errno> {
        let mut before = [0; SIGNAL_SET_WORDS];
        set_signal_mask(&[u64::MAX; SIGNAL_SET_WORDS], &mut before)?;
        Ok(Self(before))
    }
}

impl Drop for AllSignalsBlocked {
    fn drop(&mut self) {
        // The mask was this thread's own a moment ago.
        let _ = set_signal_mask(&self.0, &mut [0; SIGNAL_SET_WORDS]);
    }
}

fn set_signal_mask(
    set: &[u64; SIGNAL_SET_WORDS],
    before: &mut [u64; SIGNAL_SET_WORDS],
) -> Result<(), Errno> {
    // SAFETY: both sets are of the length that is stated; the old one is writable.
    let code = unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            set.as_ptr(),
            before.as_mut_ptr(),
            size_of_val(set),
        )
    };
    if code == -1 { Err(errno::last()) } else { Ok(()) }
}

/// The child's life: it becomes the program, or says why it could not and ends.
unsafe extern "C" fn run_child(plan: *const Plan<'_>) -> ! {
    // SAFETY: the pointer is that of the plan which the parent's thread holds while it stands still.
    let plan = unsafe { &*plan };
    if let Err(error) = become_program(plan) {
        plan.failure.store(error.raw_os_error(), Ordering::SeqCst);
    }
    // SAFETY: _exit runs nothing of ours: neither destructors nor what was registered with atexit.
    unsafe { libc::_exit(127) }
}

/// Returns only with an error. Nothing but system calls, as between vfork(2) and exec: `errno`, which
/// libc's wrappers write, is that of the thread which stands still meanwhile.
fn become_program(plan: &Plan<'_>) -> Result<(), Errno> {
    let action = [0_u64; SIGNAL_ACTION_WORDS];
    for signal in 1..=SIGNAL_MAX {
        // SAFETY: an action of zeros is the default one, without flags and with an empty mask; no old
        // one is asked for. KILL and STOP are refused, and are at their defaults anyway.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                size_of::<[u64; SIGNAL_SET_WORDS]>(),
            )
        };
    }
    if plan.new_session {
        // SAFETY: setsid touches no memory.
        errno::of_minus_one(unsafe { libc::setsid() })?;
    }
    if !plan.cwd.is_null() {
        // SAFETY: the path is a C string of the request.
        errno::of_minus_one(unsafe { libc::chdir(plan.cwd) })?;
    }
    take_streams(&plan.streams)?;
    // SAFETY: what is closed are this child's own numbers: the table was copied.
    let closed =
        unsafe { libc::syscall(libc::SYS_close_range, FIRST_OTHER_FD, c_uint::MAX, 0_u32) };
    if closed == -1 {
        return Err(errno::last());
    }
    for (limit, value) in plan.limits {
        let value = libc::rlimit64 { rlim_cur: *value, rlim_max: *value };
        set_limit(limit.number(), &value)?;
    }
    if let Some(limit) = &plan.open_files {
        set_limit(c_long::from(libc::RLIMIT_NOFILE), limit)?;
    }
    set_signal_mask(&[0; SIGNAL_SET_WORDS], &mut [0; SIGNAL_SET_WORDS])?;
    // SAFETY: the program is a C string, the arrays of C strings end with null.
    unsafe { libc::execve(plan.program, plan.argv.cast(), plan.env.cast()) };
    Err(errno::last())
}

fn take_streams(streams: &Streams) -> Result<(), Errno> {
    match streams {
        Streams::Descriptors(sources) => {
            for (source, target) in sources.iter().zip(0..) {
                if *source == target {
                    // SAFETY: F_SETFD changes the mark of an open descriptor of this child.
                    errno::of_minus_one(unsafe { libc::fcntl(target, libc::F_SETFD, 0) })?;
                } else {
                    // SAFETY: both numbers are the child's; what had the target's is replaced.
                    errno::of_minus_one(unsafe { libc::dup2(*source, target) })?;
                }
            }
        }
        Streams::Terminal { path, flags } => {
            // SAFETY: as below; the number is free then, and so the lowest one.
            unsafe { libc::close(0) };
            // SAFETY: the path is a C string of the request.
            let terminal = errno::of_minus_one(unsafe { libc::open(*path, *flags) })?;
            for target in 0..FIRST_OTHER_FD {
                if terminal != target {
                    // SAFETY: both numbers are the child's; what had the target's is replaced.
                    errno::of_minus_one(unsafe { libc::dup2(terminal, target) })?;
                }
            }
        }
    }
    Ok(())
}

/// By the kernel's own call, which takes 64 bits everywhere. A limit above the present hard one is
/// refused to all but root, and then the hard one, which is stricter, stays.
fn set_limit(resource: c_long, limit: &libc::rlimit64) -> Result<(), Errno> {
    // SAFETY: the new limit is readable, no old one is asked for; 0 is this process.
    let code = unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::from_ref(limit),
            std::ptr::null_mut::<libc::rlimit64>(),
        )
    };
    match code {
        -1 => match errno::last() {
            Errno::PERM => Ok(()),
            error => Err(error),
        },
        _ => Ok(()),
    }
}

/// clone3(2) with a stack of the child's own, on which it calls `entry(plan)`.
///
/// # Safety
/// The arguments are valid and their stack is used by nobody else until the child has executed a
/// program or has ended; `entry` never returns and does what may be done in such a child.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    arguments: *const CloneArguments,
    entry: unsafe extern "C" fn(*const Plan<'_>) -> !,
    plan: *const Plan<'_>,
) -> Result<i32, Errno> {
    let result: isize;
    // SAFETY: by the caller's promise. The parent's part clobbers what a system call does and nothing
    // else; the child has its own stack, whose end is aligned as a call wants it, and never gets to
    // the end of this block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<CloneArguments>(),
            in("r12") plan,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    of_kernel(result)
}

/// clone3(2) with a stack of the child's own, on which it calls `entry(plan)`.
///
/// # Safety
/// The arguments are valid and their stack is used by nobody else until the child has executed a
/// program or has ended; `entry` never returns and does what may be done in such a child.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3(
    arguments: *const CloneArguments,
    entry: unsafe extern "C" fn(*const Plan<'_>) -> !,
    plan: *const Plan<'_>,
) -> Result<i32, Errno> {
    let result: isize;
    // SAFETY: by the caller's promise. The parent's part clobbers what a system call does and nothing
    // else; the child has its own stack, and never gets to the end of this block.
    unsafe {
        std::arch::asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            inlateout("x0") arguments => result,
            in("x1") size_of::<CloneArguments>(),
            in("x8") libc::SYS_clone3,
            in("x20") plan,
            in("x21") entry,
        );
    }
    of_kernel(result)
}

/// # Safety
/// None: it does nothing.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone3(
    _arguments: *const CloneArguments,
    _entry: unsafe extern "C" fn(*const Plan<'_>) -> !,
    _plan: *const Plan<'_>,
) -> Result<i32, Errno> {
    Err(Errno::NOSYS)
}

/// A result of the kernel itself: errors are small negative numbers.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn of_kernel(result: isize) -> Result<i32, Errno> {
    match i32::try_from(result) {
        Ok(error @ ..0) => Err(Errno::from_raw_os_error(-error)),
        Ok(pid) => Ok(pid),
        Err(_) => Err(Errno::SRCH),
    }
}

#[cfg(test)]
mod tests;
