//! What one command of a long-lived shell has started, apart from the shell and from what its
//! earlier commands have left running.

use super::{KillReport, Process, ProcessId, Sweep, kill_found, take_if};
use super::{TreeRoot, session_is_still_the_roots};
use crate::boot::ticks_since_boot;
use crate::process_tree::procfs::{environment_entry, processes};
use crate::signals::{Signal, send_to_pidfd};
use rustix::io::Errno;
use rustix::process::getpid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A command of a shell that goes on after it.
///
/// A process is the command's if it carries the command's mark. One without a mark (a part of the
/// shell that was forked off) is, if the shell is its parent or leads its session, and it is no
/// older than the command and descends from nobody who is. So is what descends from such processes.
/// A process with the mark of another command is that one's.
#[derive(Clone, Debug)]
pub struct CommandRoot {
    shell: TreeRoot,
    shell_pidfd: Arc<OwnedFd>,
    started_ticks: u64,
    /// `NAME=value`; other commands of the shell have other values.
    mark: Vec<u8>,
}

impl CommandRoot {
    /// A command that is about to be given to this shell, which leads a session. `mark` is a whole
    /// entry of the environment that what it starts will have and nothing else has.
    pub fn new(shell: TreeRoot, shell_pidfd: Arc<OwnedFd>, mark: Vec<u8>) -> Self {
        Self { shell, shell_pidfd, started_ticks: ticks_since_boot(), mark }
    }

    /// The shell was reaped: from here on its number may be another's. `shell` is what
    /// [`Child::tree_root`](crate::child::Child::tree_root) gives now.
    pub fn shell_ended(&mut self, shell: TreeRoot) {
        self.shell = shell;
    }

    /// The shell's process id.
    pub fn shell_pid(&self) -> i32 {
        self.shell.pid
    }

    /// Sends `signal` to the shell alone.
    ///
    /// # Errors
    /// `ESRCH` once it has been reaped.
    pub fn signal_shell(&self, signal: Signal) -> Result<(), Errno> {
        send_to_pidfd(&self.shell_pidfd, signal)
    }

    /// The living processes of the command; the shell is none of them.
    ///
    /// # Errors
    /// What reading the directory `/proc` gives.
    pub fn find(&self) -> io::Result<Vec<Process>> {
        self.find_with(&BTreeSet::new())
    }

    /// Sends `signal` once to every process of the command, the shell excepted, and to those that
    /// they start meanwhile; as [`kill_tree`](super::kill_tree) does.
    ///
    /// # Errors
    /// What reading the directory `/proc` gives; some processes may have been signalled by then.
    pub fn kill(&self, signal: Signal) -> io::Result<KillReport> {
        let find = |known: &BTreeSet<ProcessId>| self.find_with(known);
        kill_found(Sweep::new(&find), signal)
    }

    fn find_with(&self, known: &BTreeSet<ProcessId>) -> io::Result<Vec<Process>> {
        let all = processes()?;
        let session_is_ours = session_is_still_the_roots(&self.shell, &all);
        let shell_is_there = self.shell.reaped_ticks.is_none();
        let our_pid = getpid().as_raw_pid();
        let is_other = |p: &Process| {
            p.is_alive() && p.id.pid != our_pid && !(shell_is_there && p.id.pid == self.shell.pid)
        };
        let is_near = |p: &Process| {
            (session_is_ours && p.session == self.shell.pid)
                || (shell_is_there && p.parent == self.shell.pid)
        };
        let (mut young, mut old): (Vec<_>, Vec<_>) =
            all.into_iter().filter(is_other).partition(|p| p.id.start_ticks >= self.started_ticks);
        let name_bytes = self.mark.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
        let name = self.mark.get(..name_bytes).unwrap_or_default();
        let marks: BTreeMap<ProcessId, bool> = young
            .iter()
            .filter_map(|p| {
                let mark = environment_entry(p.id.pid, |entry| entry.starts_with(name))?;
                Some((p.id, mark == self.mark))
            })
            .collect();
        let belongs = |p: &Process| known.contains(&p.id) || marks.get(&p.id) == Some(&true);
        let (mut members, mut member_pids) = (Vec::new(), BTreeSet::new());
        take_if(&mut young, belongs, &mut members, &mut member_pids);
        let (mut others, mut other_pids) = (Vec::new(), BTreeSet::new());
        take_if(&mut old, is_near, &mut others, &mut other_pids);
        let is_marked = |p: &Process| marks.contains_key(&p.id);
        take_if(&mut young, is_marked, &mut others, &mut other_pids);
        take_descendants(&mut young, &mut others, &mut other_pids);
        take_if(&mut young, is_near, &mut members, &mut member_pids);
        take_descendants(&mut young, &mut members, &mut member_pids);
        Ok(members)
    }
}

/// Moves every descendant of `members` among `candidates` to them.
fn take_descendants(
    candidates: &mut Vec<Process>,
    members: &mut Vec<Process>,
    member_pids: &mut BTreeSet<i32>,
) {
    loop {
        let parents = member_pids.clone();
        let count = members.len();
        take_if(candidates, |p: &Process| parents.contains(&p.parent), members, member_pids);
        if members.len() == count {
            return;
        }
    }
}
