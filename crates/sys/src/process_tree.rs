//! Finds and signals all that a job has started, by what `/proc` tells, and by its cgroup where it has
//! one ([`Tree`]).
//!
//! A process belongs to a job's tree if it is the job's own process, is in the session that the job
//! leads, carries the job's mark in its environment, or descends from such a process. What has left
//! the session, dropped the mark *and* lost its parent is not found: nothing on a machine without
//! delegated cgroups ties it to the job any more.
//!
//! A pid is only a number. Every signal goes through a pidfd whose process was seen to have the
//! start time of the process that was found, so nothing else is ever hit.

mod command;
mod forest;
mod procfs;
mod tree;

pub use command::CommandRoot;
pub use forest::Forest;
pub use procfs::{Process, ProcessId, threads_of_user};
pub use tree::Tree;

use crate::boot::ticks_since_boot;
use crate::errno;
use crate::signals::{Signal, send_to_pidfd};
use procfs::{environment_has, processes, start_ticks_of};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, getpid, pidfd_open};
use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;

/// How often `/proc` is read for one signal before a tree that keeps growing is given up.
const ROUNDS_MAX: usize = 64;

/// Where the search for a tree begins. Cheap to copy, and valid after the process was reaped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRoot {
    pub(crate) pid: i32,
    pub(crate) leads_session: bool,
    pub(crate) started_ticks: u64,
    pub(crate) reaped_ticks: Option<u64>,
}

impl TreeRoot {
    /// The tree of a job whose supervisor is gone, from what it had written down: its process led a
    /// session and is not our child.
    ///
    /// `started_ticks` as [`TreeRoot::started_ticks`] gave it, in this same boot.
    /// `unreaped_until_ticks` is the last moment ([`now_ticks`]) at which that process is known to
    /// have been unreaped; for the guardian, who adopts it, when it learns of the supervisor's end
    /// and has not reaped anything yet.
    pub fn of_lost_job(pid: i32, started_ticks: u64, unreaped_until_ticks: u64) -> Self {
        let reaped_ticks = Some(unreaped_until_ticks);
        Self { pid, leads_session: true, started_ticks, reaped_ticks }
    }

    /// The tree of a lost job of which nobody knows the process: only the mark is left to find it by.
    pub fn of_unknown() -> Self {
        Self { pid: -1, leads_session: false, started_ticks: 0, reaped_ticks: Some(0) }
    }

    /// The pid of the job's own process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// A moment just before its start, in clock ticks since boot.
    pub fn started_ticks(&self) -> u64 {
        self.started_ticks
    }
}

/// What became of a signal to a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KillReport {
    /// How many processes the signal was sent to.
    pub signalled: usize,
    /// Those that may not be signalled by us, such as a program that runs as another user.
    pub refused: Vec<ProcessId>,
    /// Whether the last look found nobody new. `false` only for a tree that grows faster than it
    /// can be read.
    pub settled: bool,
}

/// The living processes of a tree (zombies are none), the root's own included.
///
/// `mark` is a whole entry of the environment, `NAME=value`, that the job was started with and
/// nothing else has. It must not reach what outlives the job on purpose: a supervisor that is
/// started from within a job is started without it.
///
/// Reads all of `/proc`: milliseconds on a machine with hundreds of processes. Our own process is
/// never part of the result.
///
/// # Errors
/// What reading the directory `/proc` gives.
pub fn find_tree(root: &TreeRoot, mark: &[u8]) -> io::Result<Vec<Process>> {
    find_with(root, mark, &BTreeSet::new())
}

/// The living processes below our own: its children, theirs, and so on. Where we are a subreaper
/// ([`set_child_subreaper`]) that is everything that we have started and all that came of it.
///
/// # Errors
/// What reading the directory `/proc` gives.
pub fn find_descendants() -> io::Result<Vec<Process>> {
    let mut candidates: Vec<_> = processes()?.into_iter().filter(Process::is_alive).collect();
    let mut members = Vec::new();
    let mut parents = BTreeSet::from([getpid().as_raw_pid()]);
    take_descendants(&mut candidates, &mut members, &mut parents);
    Ok(members)
}

/// Sends `signal` once to every process of a tree, and to those that it starts meanwhile.
///
/// Before SIGKILL the whole tree is stopped: a parent that died first would leave behind children
/// that nothing ties to it. Other signals are sent as they are; a stopped process acts on them only
/// when it is continued.
///
/// # Errors
/// What reading the directory `/proc` gives; some processes may have been signalled by then.
pub fn kill_tree(root: &TreeRoot, mark: &[u8], signal: Signal) -> io::Result<KillReport> {
    let find = |known: &BTreeSet<ProcessId>| find_with(root, mark, known);
    kill_found(Sweep::new(&find), signal)
}

/// [`kill_tree`] for whatever a sweep finds.
fn kill_found(mut sweep: Sweep<'_>, signal: Signal) -> io::Result<KillReport> {
    if signal != Signal::KILL {
        return sweep.run(signal);
    }
    let frozen = sweep.run(Signal::STOP)?;
    let mut report = KillReport { refused: frozen.refused, ..KillReport::default() };
    for id in &sweep.seen {
        report.count(*id, signal_process(*id, Signal::KILL));
    }
    // If the freeze had settled there is nobody new now; otherwise the race goes on with SIGKILL.
    let rest = sweep.run(Signal::KILL)?;
    report.signalled += rest.signalled;
    report.refused.extend(rest.refused);
    report.refused.sort_unstable();
    report.refused.dedup();
    report.settled = rest.settled;
    Ok(report)
}

/// Sends `signal` to this process, unless its pid has gone to another one since it was found.
///
/// # Errors
/// `ESRCH` when it is gone, `EPERM` when it may not be signalled by us.
pub fn signal_process(id: ProcessId, signal: Signal) -> Result<(), Errno> {
    let pid = Pid::from_raw(id.pid).ok_or(Errno::SRCH)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // Read after the descriptor was opened: if the number has the same start time as before, then
    // it belonged to one process all the while, and the descriptor is of that one.
    if start_ticks_of(id.pid) != Some(id.start_ticks) {
        return Err(Errno::SRCH);
    }
    send_to_pidfd(&pidfd, signal)
}

/// Makes orphaned descendants of this process its children, instead of those of pid 1, so that they
/// can be found, counted and reaped. Stays set until this process ends; is not inherited.
///
/// # Errors
/// Those of prctl(2), none of which a kernel since 3.4 has for this.
pub fn set_child_subreaper() -> io::Result<()> {
    Ok(rustix::process::set_child_subreaper(Some(getpid()))?)
}

/// Reaps ended children that nobody else waits for: what a subreaper has adopted.
///
/// `is_ours` says which pids belong to a [`Child`](crate::child::Child) that is still to be waited
/// for; when such a one comes first in the kernel's list, the rest has to wait for it. So call this
/// after each SIGCHLD and again after each [`Child`](crate::child::Child) that was reaped. Returns
/// how many were reaped. Never blocks.
///
/// # Errors
/// Those of waitid(2), `ECHILD` ("no children at all") excepted, which is 0.
pub fn reap_adopted(mut is_ours: impl FnMut(i32) -> bool) -> Result<usize, Errno> {
    let mut reaped = 0;
    while let Some(pid) = peek_ended_child()? {
        if is_ours(pid) {
            break;
        }
        // SAFETY: a null status is allowed. The pid is that of our own zombie, so nobody else's.
        let code = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        match errno::of_minus_one(code) {
            Ok(_) => reaped += 1,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(reaped)
}

/// The pid of a child that has ended, which stays unreaped.
fn peek_ended_child() -> Result<Option<i32>, Errno> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the pointer is to writable memory of the right type that outlives the call.
    let code = unsafe { libc::waitid(libc::P_ALL, 0, info.as_mut_ptr(), options) };
    match errno::of_minus_one(code) {
        Ok(_) => {}
        Err(Errno::CHILD) => return Ok(None),
        Err(error) => return Err(error),
    }
    // SAFETY: all-zero is a valid `siginfo_t`, and the call has only written valid fields over it.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills in the fields of SIGCHLD; where no child has ended the pid stays zero.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// A look at a tree.
type Find<'a> = dyn Fn(&BTreeSet<ProcessId>) -> io::Result<Vec<Process>> + 'a;

/// One signal's way through a tree, round after round.
struct Sweep<'a> {
    /// Finds the living members, given those of earlier looks.
    find: &'a Find<'a>,
    /// Everyone who has been found, whether or not the signal could be sent.
    seen: BTreeSet<ProcessId>,
}

impl<'a> Sweep<'a> {
    fn new(find: &'a Find<'a>) -> Self {
        Self { find, seen: BTreeSet::new() }
    }

    fn run(&mut self, signal: Signal) -> io::Result<KillReport> {
        let mut report = KillReport::default();
        for _ in 0..ROUNDS_MAX {
            let mut found_new = false;
            for process in (self.find)(&self.seen)? {
                if self.seen.insert(process.id) {
                    found_new = true;
                    report.count(process.id, signal_process(process.id, signal));
                }
            }
            if !found_new {
                report.settled = true;
                break;
            }
        }
        Ok(report)
    }
}

impl KillReport {
    fn count(&mut self, id: ProcessId, sent: Result<(), Errno>) {
        match sent {
            Ok(()) => self.signalled += 1,
            // It ended by itself in the meantime.
            Err(Errno::SRCH) => {}
            Err(_) => self.refused.push(id),
        }
    }
}

/// The living members of a tree, where `known` are members from earlier looks.
fn find_with(
    root: &TreeRoot,
    mark: &[u8],
    known: &BTreeSet<ProcessId>,
) -> io::Result<Vec<Process>> {
    let all = processes()?;
    let session_is_ours = session_is_still_the_roots(root, &all);
    let our_pid = getpid().as_raw_pid();
    // Nothing older than the root descends from it; this also spares reading most environments.
    let mut candidates: Vec<_> = all
        .into_iter()
        .filter(|p| p.is_alive() && p.id.pid != our_pid && p.id.start_ticks >= root.started_ticks)
        .collect();
    let mut members: Vec<Process> = Vec::new();
    let mut member_pids = BTreeSet::new();
    let belongs = |p: &Process| {
        known.contains(&p.id)
            || (session_is_ours && p.session == root.pid)
            || (root.reaped_ticks.is_none() && p.id.pid == root.pid)
            || environment_has(p.id.pid, mark)
    };
    take_if(&mut candidates, belongs, &mut members, &mut member_pids);
    take_descendants(&mut candidates, &mut members, &mut member_pids);
    Ok(members)
}

/// Moves what descends from a process in `pids` from `candidates` to `members`, and notes its pid.
fn take_descendants(
    candidates: &mut Vec<Process>,
    members: &mut Vec<Process>,
    pids: &mut BTreeSet<i32>,
) {
    loop {
        let parents = pids.clone();
        let count = members.len();
        let descends = |p: &Process| parents.contains(&p.parent);
        take_if(candidates, descends, members, pids);
        if members.len() == count {
            return;
        }
    }
}

/// Moves what `wanted` chooses from `candidates` to `members`, and notes its pid.
fn take_if(
    candidates: &mut Vec<Process>,
    wanted: impl Fn(&Process) -> bool,
    members: &mut Vec<Process>,
    member_pids: &mut BTreeSet<i32>,
) {
    candidates.retain(|process| {
        let take = wanted(process);
        if take {
            member_pids.insert(process.id.pid);
            members.push(*process);
        }
        !take
    });
}

/// Whether the session number `root.pid` still means the session that the root made.
///
/// The kernel gives no number away that is in use as a pid or as a session. While the root is
/// unreaped that settles it. Later it is settled by any process in that session which is older than
/// the reaping: it can only be in the old session, so the number was never free.
fn session_is_still_the_roots(root: &TreeRoot, all: &[Process]) -> bool {
    let Some(reaped_ticks) = root.reaped_ticks else { return root.leads_session };
    let is_witness = |p: &Process| {
        p.session == root.pid && (root.started_ticks..=reaped_ticks).contains(&p.id.start_ticks)
    };
    root.leads_session && all.iter().any(is_witness)
}

/// The living process that has this pid now.
pub(crate) fn process_of(pid: i32) -> Option<ProcessId> {
    start_ticks_of(pid).map(|start_ticks| ProcessId { pid, start_ticks })
}

/// Now, in the unit of [`TreeRoot::started_ticks`].
pub fn now_ticks() -> u64 {
    ticks_since_boot()
}

#[cfg(test)]
mod tests;
