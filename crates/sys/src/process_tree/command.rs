//! What one command of a long-lived shell has started, apart from the shell and from what its
//! earlier commands have left running.

use super::{KillReport, Process, ProcessId, Sweep, kill_found, take_descendants, take_if};
use super::{TreeRoot, session_is_still_the_roots};
use crate::boot::ticks_since_boot;
use crate::process_tree::procfs::{children_of, environment_entry, processes};
use crate::signals::{Signal, send_to_pidfd};
use rustix::io::Errno;
use rustix::process::getpid;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// A command of a shell that goes on after it.
///
/// A process is the command's if it carries the command's mark, and if it is a child of the shell
/// that was not there when the command began, whatever mark it carries: the user may have made the
/// variable read-only, or have changed it. So is what descends from such processes. What has lost
/// its parents is, if the shell leads its session and it is no older than the command; the mark of
/// another command makes it that one's.
#[derive(Clone, Debug)]
pub struct CommandRoot {
    shell: TreeRoot,
    shell_pidfd: Arc<OwnedFd>,
    started_ticks: u64,
    /// The shell's children when the command began: what earlier ones have left running. `None`
    /// where the kernel does not tell.
    older: Option<Arc<BTreeSet<i32>>>,
    /// `NAME=value`; other commands of the shell have other values.
    mark: Vec<u8>,
    /// Who was found to be the command's. When their parents have ended nothing else may say so.
    found: Arc<Mutex<BTreeSet<ProcessId>>>,
}

impl CommandRoot {
    /// A command that is about to be given to this shell, which leads a session. `mark` is a whole
    /// entry of the environment that what it starts will have and nothing else has.
    pub fn new(shell: TreeRoot, shell_pidfd: Arc<OwnedFd>, mark: Vec<u8>) -> Self {
        let older = children_of(shell.pid).map(Arc::new);
        let started_ticks = ticks_since_boot();
        Self { shell, shell_pidfd, started_ticks, older, mark, found: Arc::default() }
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
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let all = processes()?;
        let session_is_ours = session_is_still_the_roots(&self.shell, &all);
        let shell_is_there = self.shell.reaped_ticks.is_none();
        let our_pid = getpid().as_raw_pid();
        let is_other = |p: &Process| {
            p.is_alive() && p.id.pid != our_pid && !(shell_is_there && p.id.pid == self.shell.pid)
        };
        let is_child = |p: &Process| shell_is_there && p.parent == self.shell.pid;
        // The clock has ticks of a hundredth of a second. Within the first one only the list of the
        // shell's children tells what was there before.
        let is_young = |p: &Process| {
            let was_there = self.older.as_ref().is_some_and(|older| older.contains(&p.id.pid));
            p.id.start_ticks > self.started_ticks
                || (p.id.start_ticks == self.started_ticks && !was_there)
        };
        let is_new_child = |p: &Process| {
            is_child(p) && (self.older.is_some() || p.id.start_ticks > self.started_ticks)
        };
        let is_near = |p: &Process| (session_is_ours && p.session == self.shell.pid) || is_child(p);
        let (mut young, mut old): (Vec<_>, Vec<_>) =
            all.into_iter().filter(is_other).partition(is_young);
        let name_bytes = self.mark.iter().position(|byte| *byte == b'=').map_or(0, |at| at + 1);
        let name = self.mark.get(..name_bytes).unwrap_or_default();
        let marks: BTreeMap<ProcessId, bool> = young
            .iter()
            .filter_map(|p| {
                let mark = environment_entry(p.id.pid, |entry| entry.starts_with(name))?;
                Some((p.id, mark == self.mark))
            })
            .collect();
        let belongs = |p: &Process| {
            known.contains(&p.id) || found.contains(&p.id) || marks.get(&p.id) == Some(&true)
        };
        let (mut members, mut member_pids) = (Vec::new(), BTreeSet::new());
        take_if(&mut young, belongs, &mut members, &mut member_pids);
        let (mut others, mut other_pids) = (Vec::new(), BTreeSet::new());
        take_if(&mut old, is_near, &mut others, &mut other_pids);
        take_descendants(&mut young, &mut others, &mut other_pids);
        take_if(&mut young, is_new_child, &mut members, &mut member_pids);
        take_descendants(&mut young, &mut members, &mut member_pids);
        let is_marked = |p: &Process| marks.contains_key(&p.id);
        take_if(&mut young, is_marked, &mut others, &mut other_pids);
        take_descendants(&mut young, &mut others, &mut other_pids);
        take_if(&mut young, is_near, &mut members, &mut member_pids);
        take_descendants(&mut young, &mut members, &mut member_pids);
        found.extend(members.iter().map(|process| process.id));
        Ok(members)
    }
}
